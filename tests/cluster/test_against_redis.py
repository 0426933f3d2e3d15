"""Any row of commands is answered as redis-server 7.0 answers it, word for word, errors included.

Run where there is a redis-server; Debian has the one whose words we speak. Commands are drawn by Hypothesis, so what
differs is shown as the shortest row that still does.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvsvr.native import commands
from tests.cluster.conftest import Replicas, free_ports, until
from tests.node.commands_page import missing

EXAMPLES: Final = int(os.environ.get("KVSVR_REDIS_EXAMPLES", "60"))
CLOCK_SLACK_MS: Final = 2000
"""Two servers are asked one after the other, and one of them waits for a disk."""

Command = tuple[bytes, ...]

KEYS: Final = st.sampled_from([b"{t}a", b"{t}b", b"{t}c", b"{t}h"])
ANY_KEYS: Final = st.sampled_from([b"{t}a", b"{t}b", b"{t}h", b"x", b"y", b"z"])
FIELDS: Final = st.sampled_from([b"f", b"g", b"", b"long field"])
LARGE: Final = (b"9223372036854775807", b"-9223372036854775808")
NUMBERS: Final = st.sampled_from([b"0", b"1", b"-7", b"10", *LARGE, b"x", b"+1", b"007"])
SMALL: Final = st.sampled_from([b"0", b"1", b"2", b"-1", b"-3", b"5", b"100", b"nan?"])
FLOATS: Final = st.sampled_from([b"0.1", b"3", b"-1.5", b"1e3", b"inf", b"x", b"5.0e-2"])
TEXTS: Final = st.one_of(NUMBERS, FLOATS, st.sampled_from([b"", b"text", b"\x00\xff\r\n", b"Hello World"]))
SECONDS: Final = st.sampled_from([b"100", b"1000", b"5000", b"0", b"-5", b"x", b"9223372036854775807"])
MOMENTS: Final = st.sampled_from([b"4102444800", b"4102448400", b"1", b"-1", b"x"])
MOMENTS_MS: Final = st.sampled_from([b"4102444800000", b"4102448400123", b"1", b"0", b"x"])


def word(name: str) -> st.SearchStrategy[bytes]:
    return st.just(name.encode())


def joined(rows: list[Command]) -> Command:
    return tuple(word for row in rows for word in row)


def command(name: str, *parts: st.SearchStrategy[bytes]) -> st.SearchStrategy[Command]:
    return st.tuples(word(name), *parts)


def several(name: str, *parts: st.SearchStrategy[bytes], before: tuple[st.SearchStrategy[bytes], ...] = ()) -> Any:
    """The name, and one to four times these parts."""
    rows = st.lists(st.tuples(*parts), min_size=1, max_size=4).map(joined)
    return st.tuples(st.tuples(word(name), *before), rows).map(lambda two: two[0] + two[1])


def optional(base: st.SearchStrategy[Command], *options: st.SearchStrategy[Command]) -> st.SearchStrategy[Command]:
    more = st.lists(st.one_of(*options), max_size=3).map(joined)
    return st.tuples(base, more).map(lambda two: two[0] + two[1])


EXPIRIES: Final = [
    command("EX", SECONDS),
    command("PX", SECONDS),
    command("EXAT", MOMENTS),
    command("PXAT", MOMENTS_MS),
]
SET_OPTIONS: Final = [*EXPIRIES, *(command(name) for name in ("NX", "XX", "GET", "KEEPTTL", "nx", "BAD"))]
EXPIRE_OPTIONS: Final = [command(name) for name in ("NX", "XX", "GT", "LT", "BAD")]

COPY_OPTIONS: Final = [command("REPLACE"), command("BAD"), command("DB", st.sampled_from([b"0", b"99", b"x"]))]

STRINGS: Final = [
    optional(command("SET", KEYS, TEXTS), *SET_OPTIONS),
    command("SET", KEYS, TEXTS),
    command("GET", KEYS),
    command("SETNX", KEYS, TEXTS),
    command("GETSET", KEYS, TEXTS),
    command("GETDEL", KEYS),
    optional(command("GETEX", KEYS), *EXPIRIES, command("PERSIST")),
    command("SETEX", KEYS, SECONDS, TEXTS),
    command("PSETEX", KEYS, SECONDS, TEXTS),
    command("APPEND", KEYS, TEXTS),
    command("STRLEN", KEYS),
    command("GETRANGE", KEYS, SMALL, SMALL),
    command("SUBSTR", KEYS, SMALL, SMALL),
    command("SETRANGE", KEYS, SMALL, TEXTS),
    command("INCR", KEYS),
    command("DECR", KEYS),
    command("INCRBY", KEYS, NUMBERS),
    command("DECRBY", KEYS, NUMBERS),
    command("INCRBYFLOAT", KEYS, FLOATS),
    several("MSETNX", KEYS, TEXTS),
]
GENERIC: Final = [
    command("TYPE", KEYS),
    optional(command("EXPIRE", KEYS, SECONDS), *EXPIRE_OPTIONS),
    optional(command("PEXPIRE", KEYS, SECONDS), *EXPIRE_OPTIONS),
    optional(command("EXPIREAT", KEYS, MOMENTS), *EXPIRE_OPTIONS),
    optional(command("PEXPIREAT", KEYS, MOMENTS_MS), *EXPIRE_OPTIONS),
    command("RENAME", KEYS, KEYS),
    command("RENAMENX", KEYS, KEYS),
    optional(command("COPY", KEYS, KEYS), *COPY_OPTIONS),
    *(command(name, KEYS) for name in ("TTL", "PTTL", "EXPIRETIME", "PEXPIRETIME", "PERSIST")),
]
SPREAD: Final = [
    several("MSET", ANY_KEYS, TEXTS),
    several("MSET", ANY_KEYS),
    *(several(name, ANY_KEYS) for name in ("MGET", "DEL", "UNLINK", "EXISTS", "TOUCH")),
]
HASHES: Final = [
    several("HSET", FIELDS, TEXTS, before=(KEYS,)),
    several("HSET", FIELDS, before=(KEYS,)),
    several("HMSET", FIELDS, TEXTS, before=(KEYS,)),
    command("HSETNX", KEYS, FIELDS, TEXTS),
    command("HGET", KEYS, FIELDS),
    several("HMGET", FIELDS, before=(KEYS,)),
    several("HDEL", FIELDS, before=(KEYS,)),
    *(command(name, KEYS) for name in ("HLEN", "HGETALL", "HKEYS", "HVALS")),
    *(command(name, KEYS, FIELDS) for name in ("HEXISTS", "HSTRLEN")),
    command("HINCRBY", KEYS, FIELDS, NUMBERS),
    command("HINCRBYFLOAT", KEYS, FIELDS, FLOATS),
    command("HRANDFIELD", KEYS),
    command("HRANDFIELD", KEYS, SMALL),
    command("HRANDFIELD", KEYS, SMALL, st.sampled_from([b"WITHVALUES", b"BAD"])),
]
ALL_KEYS: Final = [
    command("DBSIZE"),
    command("RANDOMKEY"),
    command("KEYS", st.sampled_from([b"*", b"{t}*", b"?", b"{t}[a-b]", b"\\{t}h", b"[^x]", b"none"])),
]
OTHER: Final = [
    command("PING"),
    command("ECHO", TEXTS),
    command("SELECT", st.sampled_from([b"0", b"x"])),
    command("GET"),
    command("NOSUCH", TEXTS, TEXTS),
    command("OBJECT_", KEYS),
]
NOT_IN_ONE_BATCH: Final = "ResponseError: a transaction cannot make a hash of a string: delete the key before it"
"""The one thing that is known to differ, and docs/commands.md says so."""
TRANSACTION: Final = st.one_of(*STRINGS, *GENERIC, *HASHES)
"""What a transaction of one slot may hold."""

UNORDERED: Final = {b"KEYS", b"HKEYS", b"HVALS"}
LOTS: Final = {b"RANDOMKEY", b"HRANDFIELD"}
TIMES: Final = {b"TTL": 1000, b"EXPIRETIME": 1000, b"PTTL": 1, b"PEXPIRETIME": 1}


def transactions() -> st.SearchStrategy[list[Command]]:
    inner = st.lists(TRANSACTION, max_size=5)
    end = st.sampled_from([(b"EXEC",), (b"EXEC",), (b"EXEC",), (b"DISCARD",)])
    watch = st.lists(several("WATCH", KEYS), max_size=1)
    return st.tuples(watch, inner, end).map(lambda three: [*three[0], (b"MULTI",), *three[1], three[2]])


ROWS: Final = st.lists(
    st.one_of(
        st.one_of(*STRINGS, *GENERIC, *HASHES, *SPREAD, *ALL_KEYS, *OTHER).map(lambda one: [one]),
        st.one_of(*STRINGS).map(lambda one: [one]),
        st.one_of(*HASHES).map(lambda one: [one]),
        transactions(),
    ),
    max_size=25,
).map(lambda rows: [one for row in rows for one in row])


class Peer:
    """One connection, its replies as they are: an error is its text."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._connection: Any = client.connection_pool.get_connection()

    def ask(self, *words: bytes) -> Any:
        self._connection.send_command(*words)
        try:
            return plain(self._connection.read_response())
        except redis.RedisError as error:
            return f"{type(error).__name__}: {error}"

    def close(self) -> None:
        self._connection.disconnect()
        self._client.close()


def plain(answer: Any) -> Any:
    if isinstance(answer, list):
        return [plain(one) for one in answer]
    if isinstance(answer, redis.RedisError):
        return f"{type(answer).__name__}: {answer}"
    return answer


def alike(words: Command, theirs: Any, ours: Any) -> bool:
    name = words[0].upper()
    if name in TIMES and isinstance(theirs, int) and isinstance(ours, int) and theirs > 0 and ours > 0:
        return abs(theirs - ours) * TIMES[name] <= CLOCK_SLACK_MS
    if name in LOTS and type(theirs) is type(ours) and not isinstance(theirs, str):
        return not isinstance(theirs, list) or len(theirs) == len(ours)
    if isinstance(theirs, list) and isinstance(ours, list):
        if name in UNORDERED:
            return sorted(theirs) == sorted(ours)
        if name == b"HGETALL":
            return pairs(theirs) == pairs(ours)
    return bool(theirs == ours)


def pairs(flat: list[bytes]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def same_answers(rows: list[Command], theirs: Peer, ours: Peer) -> None:
    for peer in (theirs, ours):
        peer.ask(b"DISCARD")
        peer.ask(b"UNWATCH")
        assert peer.ask(b"FLUSHALL") == b"OK"
    queued: list[Command] | None = None
    for index, words in enumerate(rows):
        expected, got = theirs.ask(*words), ours.ask(*words)
        if got == NOT_IN_ONE_BATCH:
            return
        if words[0] == b"EXEC" and queued is not None and isinstance(expected, list) and isinstance(got, list):
            assert len(expected) == len(got)
            for one, left, right in zip(queued, expected, got, strict=True):
                assert alike(one, left, right), f"{rows[: index + 1]}: {one}: {left!r}, and here {right!r}"
        else:
            assert alike(words, expected, got), f"{rows[: index + 1]}: {expected!r}, and here {got!r}"
        if words[0] == b"MULTI":
            queued = []
        elif words[0] in (b"EXEC", b"DISCARD"):
            queued = None
        elif queued is not None and got == b"QUEUED":
            queued.append(words)


@pytest.fixture
def original(tmp_path: Path) -> Iterator[Callable[[int], redis.Redis]]:
    """redis-server, and clients of it."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("there is no redis-server")
    port = free_ports(1)[0]
    arguments = [program, "--port", str(port), "--save", "", "--appendonly", "no", "--dir", str(tmp_path)]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL)

    def is_there() -> bool:
        with suppress(redis.ConnectionError), redis.Redis(port=port) as client:
            return bool(client.ping())
        return False

    until(is_there)
    yield lambda protocol: redis.Redis(port=port, protocol=protocol)
    process.terminate()
    process.wait()


@pytest.mark.parametrize(("count", "protocol"), [(1, 2), (1, 3), (3, 3)])
def test_commands_are_answered_as_by_redis(
    replicas: Callable[[int], Replicas], original: Callable[[int], redis.Redis], count: int, protocol: int
) -> None:
    theirs, ours = Peer(original(protocol)), Peer(replicas(count).client(count, protocol=protocol))

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=EXAMPLES == 60)
    @given(ROWS)
    def compare(rows: list[Command]) -> None:
        same_answers(rows, theirs, ours)

    compare()
    theirs.close()
    ours.close()


def test_every_command_of_redis_is_there_or_said_to_be_missing(original: Callable[[int], redis.Redis]) -> None:
    with original(2) as theirs:
        names = {name.decode() for name in theirs.execute_command("COMMAND LIST")}
    names = {name for name in names if "|" not in name}
    assert names - {one["name"] for one in commands()} == missing()
