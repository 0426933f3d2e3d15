"""docs/commands.md, made of the table that the server runs by: `make commands` writes it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from kvsvr.native import commands

PAGE: Final = Path(__file__).parents[2] / "docs" / "commands.md"

GROUPS: Final = {
    "connection": "Connections",
    "string": "Strings",
    "hash": "Hashes, which are tables",
    "generic": "Keys",
    "transactions": "Transactions",
    "pubsub": "Channels",
    "server": "The server",
    "kv": "Versions",
    "table": "Tables",
}

MISSING: Final = {
    "generic": "dump migrate move object restore sort sort_ro",
    "string": "lcs",
    "cluster": "asking",
    "pubsub": "spublish ssubscribe sunsubscribe",
    "server": "acl bgrewriteaof bgsave debug failover lastsave latency lolwut memory module monitor psync replconf "
    "replicaof restore-asking save slaveof slowlog swapdb sync",
    "list": "blmove blmpop blpop brpop brpoplpush lindex linsert llen lmove lmpop lpop lpos lpush lpushx lrange lrem "
    "lset ltrim rpop rpoplpush rpush rpushx",
    "set": "sadd scard sdiff sdiffstore sinter sintercard sinterstore sismember smembers smismember smove spop "
    "srandmember srem sscan sunion sunionstore",
    "sorted-set": "bzmpop bzpopmax bzpopmin zadd zcard zcount zdiff zdiffstore zincrby zinter zintercard zinterstore "
    "zlexcount zmpop zmscore zpopmax zpopmin zrandmember zrange zrangebylex zrangebyscore zrangestore zrank zrem "
    "zremrangebylex zremrangebyrank zremrangebyscore zrevrange zrevrangebylex zrevrangebyscore zrevrank zscan zscore "
    "zunion zunionstore",
    "stream": "xack xadd xautoclaim xclaim xdel xgroup xinfo xlen xpending xrange xread xreadgroup xrevrange "
    "xsetid xtrim",
    "bitmap": "bitcount bitfield bitfield_ro bitop bitpos getbit setbit",
    "geo": "geoadd geodist geohash geopos georadius georadius_ro georadiusbymember georadiusbymember_ro geosearch "
    "geosearchstore",
    "hyperloglog": "pfadd pfcount pfdebug pfmerge pfselftest",
    "scripting": "eval eval_ro evalsha evalsha_ro fcall fcall_ro function script",
}

HEAD: Final = """\
# Commands

What a replica understands on its client port, from the table that it runs by (`make commands` writes this page, and a
test fails when it is old). Replies and errors are those of Redis 7.0, which `tests/cluster/test_against_redis.py`
compares word for word; what differs stands beside the command. RESP2 and RESP3, commands as arrays or as lines.

**Any replica takes any command.** What it does not own it passes on, and a read it answers itself, once it has heard
from the owner how far it must have applied: what is read is never older than what anybody was told. A write is
answered when a majority has it on its disks. A command that is answered with an error that begins with UNKNOWN may
have been executed.

**Keys of several slots.** With several replicas, keys are spread by the slots of Redis Cluster, `{tag}` included.
MGET, MSET, DEL, UNLINK, EXISTS and TOUCH are done for each slot by itself: another client may see a part of it, and
if one part fails, the others may have been done. Everything else wants its keys in one slot, and says CROSSSLOT else.
With one replica there is one shard (`shards`), and any keys go together; so they do in a set of several that was made
with `shards = 1`, where one replica owns everything. Caches want that which set many keys, and when they end, in one
transaction, as those of Django and aiocache do.

**Commands that read and then write** (all but SET, GET, DEL of one key, INCR, APPEND and their like) run again when
another write came between, until `request_ms` is over: then TRYAGAIN, and nothing was done ([decision
0034](decisions/0034-a-command-is-a-function-over-a-draft.md)).
**Pipelines.** What one connection sends without waiting takes effect in its order as far as one slot goes, through
takeovers, too, and side by side otherwise ([decision 0050](decisions/0050-writes-of-a-client-take-turns.md)). Reads
wait for the writes before them, and writes for reads, so a pipeline that alternates is done one by one. Commands of
several keys, transactions and PUBLISH wait for all before them.

**Limits.** A key has 1 to 65,535 bytes, a value 16 MiB, a batch or a transaction 32 MiB. A transaction cannot make a
hash of what was a string before it. Expired keys are deleted by the replica that owns them, by its clock.
"""


def missing() -> set[str]:
    return {name for names in MISSING.values() for name in names.split()}


def words(command: dict[str, Any]) -> str:
    count = command["arity"]
    return f"{count - 1}" if count > 0 else f"{-count - 1} or more"


def page() -> str:
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    found = commands()
    yield HEAD
    for group, title in GROUPS.items():
        yield f"## {title}\n\n| command | words behind it | what it does | what differs from Redis |\n|---|---|---|---|"
        for one in found:
            if one["group"] == group:
                yield f"| {one['name'].upper()} | {words(one)} | {one['summary']} | {one['differs'] or ''} |"
        yield ""
    yield "## Missing\n\nWhat Redis 7.0 has and this has not, by Redis' groups:\n"
    for group, names in MISSING.items():
        yield f"- **{group}**: {names.upper()}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
