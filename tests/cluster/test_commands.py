"""What no comparison with redis-server covers: what several do at once, connections, cursors, slots, our commands."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.cluster.conftest import Replicas, until

SET = pytest.mark.parametrize("count", [1, 3])


@pytest.fixture
def nodes(replicas: Callable[[int], Replicas], count: int) -> Replicas:
    return replicas(count)


@pytest.fixture
def client(nodes: Replicas) -> Iterator[Any]:
    """Of the last replica: with three, one that owns a third of the keys."""
    with nodes.client(max(nodes.ids)) as one:
        yield one


def at_once(nodes: Replicas, work: Callable[[Any, int], None], workers: int = 6) -> None:
    """`work` by that many clients, at all replicas in turn."""

    def run(which: int) -> None:
        with nodes.client(which % len(nodes.ids) + 1) as one:
            work(one, which)

    with ThreadPoolExecutor(workers) as pool:
        for done in [pool.submit(run, which) for which in range(workers)]:
            done.result()


# --- several at once ---


@SET
def test_what_reads_and_then_writes_is_not_lost_to_others(nodes: Replicas, client: Any) -> None:
    def work(one: Any, which: int) -> None:
        for number in range(20):
            one.hincrby("hash", "counter", 1)
            one.incrbyfloat("float", 0.5)
            one.setrange("text", 10 * which, "0123456789")
            one.hset("hash", f"{which}:{number}", number)

    at_once(nodes, work)
    assert client.hget("hash", "counter") == b"120"
    assert client.hlen("hash") == 121
    assert client.get("float") == b"60"
    assert client.get("text") == b"0123456789" * 6


@SET
def test_of_many_that_want_an_absent_key_one_gets_it(nodes: Replicas) -> None:
    won: list[int] = []

    def work(one: Any, which: int) -> None:
        won.extend(number for number in range(15) if one.set(f"lock:{number}", which, nx=True))

    at_once(nodes, work)
    assert sorted(won) == list(range(15))


@SET
def test_transactions_that_watch_lose_nothing(nodes: Replicas, client: Any) -> None:
    """Money moves between two accounts, under WATCH; each move is there once."""
    client.mset({"{bank}a": 500, "{bank}b": 500})

    def work(one: Any, which: int) -> None:
        moved = 0
        while moved < 10:
            with one.pipeline() as pipe:
                pipe.watch("{bank}a", "{bank}b")
                a, b = (int(pipe.get(name)) for name in ("{bank}a", "{bank}b"))
                pipe.multi()
                pipe.set("{bank}a", a - which)
                pipe.set("{bank}b", b + which)
                try:
                    pipe.execute()
                except redis.WatchError:
                    continue
                moved += 1

    at_once(nodes, work)
    moved = 10 * sum(range(6))
    assert [int(value) for value in client.mget("{bank}a", "{bank}b")] == [500 - moved, 500 + moved]


@SET
def test_exec_is_all_or_nothing_for_who_reads(nodes: Replicas) -> None:
    stop = threading.Event()

    def work(one: Any, which: int) -> None:
        if which == 0:
            for number in range(60):
                one.pipeline().set("{t}a", number).hset("{t}h", "f", number).incr("{t}n").execute()
            stop.set()
        while not stop.is_set():
            a, b = one.pipeline().get("{t}a").hget("{t}h", "f").execute()
            assert a == b

    at_once(nodes, work, workers=3)


@SET
def test_the_last_field_takes_its_hash_with_it(nodes: Replicas, client: Any) -> None:
    """Whoever deletes it, and whoever deletes the one before it at the same time."""
    for round in range(10):
        client.hset("hash", mapping={str(which): which for which in range(6)})
        at_once(nodes, lambda one, which: one.hdel("hash", str(which)))
        assert (client.exists("hash"), client.type("hash")) == (0, b"none"), round
        assert (client.keys("*"), client.dbsize()) == ([], 0), round


def test_a_replica_dies_and_what_reads_and_writes_goes_on(replicas: Callable[[int], Replicas]) -> None:
    nodes = replicas(3)
    added = [0, 0]
    stop = threading.Event()

    def work(one: Any, which: int) -> None:
        while not stop.is_set():
            one.pipeline().hincrby("{t}h", "n", 1).incr("{t}n").execute()
            added[which] += 1

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(lambda: at_once_of_two(nodes, work))
        for _ in range(2):
            goal = sum(added) + 30
            until(lambda goal=goal: sum(added) >= goal or done.done())  # type: ignore[misc]
            nodes.kill(3)
            goal = sum(added) + 30
            until(lambda goal=goal: sum(added) >= goal or done.done())  # type: ignore[misc]
            nodes.start(3)
        stop.set()
        done.result()
    with nodes.client(3) as one:
        assert (int(one.hget("{t}h", "n")), int(one.get("{t}n"))) == (sum(added), sum(added))


def at_once_of_two(nodes: Replicas, work: Callable[[Any, int], None]) -> None:
    """At the replicas that stay."""

    def run(which: int) -> None:
        with nodes.client(which + 1) as one:
            work(one, which)

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(run, which) for which in range(2)]:
            done.result()


# --- several keys ---


@SET
def test_keys_of_many_slots(client: Any, count: int) -> None:
    names = [f"key:{number}" for number in range(1500)]
    client.mset({name: name for name in names})
    client.hset("hash", "f", "v")
    assert client.mget(*names, "absent", "hash", names[0]) == [*map(str.encode, names), None, None, names[0].encode()]
    assert client.exists(*names, "absent", names[0]) == 1501
    assert client.delete(*names[:700], "absent") == 700
    assert client.unlink(*names[700:1400]) == 700
    assert sorted(client.keys("key:*")) == sorted(map(str.encode, names[1400:]))
    assert client.dbsize() == 101
    if count > 1:
        with pytest.raises(redis.ResponseError, match="same slot"):
            client.msetnx({"a": 1, "b": 2})
        with pytest.raises(redis.ResponseError, match="same slot"):
            client.pipeline().set("a", 1).set("b", 2).execute()
    else:
        assert client.msetnx({"a": 1, "b": 2})
    assert client.flushall()
    assert client.dbsize() == 0


@SET
def test_a_scan_meets_everything_that_was_there_throughout(client: Any) -> None:
    names = {f"{kind}:{number}".encode() for kind in ("text", "hash") for number in range(150)}
    for name in names:
        client.hset(name, "f", "v") if name.startswith(b"hash") else client.set(name, "v")
    cursor, found = 0, []
    while True:
        cursor, page = client.scan(cursor, count=17)
        found += page
        client.set(b"new:%d" % len(found), "v")
        client.delete(b"new:%d" % (len(found) - len(page)))
        if cursor == 0:
            break
    kept = [name for name in found if not name.startswith(b"new:")]
    assert len(kept) == len(names) and set(kept) == names
    assert sorted(client.scan_iter(match="hash:1*")) == sorted(name for name in names if name.startswith(b"hash:1"))
    assert set(client.scan_iter(_type="hash")) == {name for name in names if name.startswith(b"hash")}
    client.hset("large", mapping={f"f{number}": number for number in range(700)})
    assert dict(client.hscan_iter("large")) == {b"f%d" % number: b"%d" % number for number in range(700)}
    assert len(dict(client.hscan_iter("large", match="f1?"))) == 10
    with pytest.raises(redis.ResponseError, match="invalid cursor"):
        client.scan(12345)


# --- time ---


@SET
def test_what_ends_is_gone_everywhere(nodes: Replicas, client: Any) -> None:
    client.set("short", "v", px=60)
    client.hset("hash", "f", "v")
    assert client.pexpire("hash", 60)
    assert client.set("kept", "v", ex=100)
    assert client.set("kept", "w", keepttl=True)
    assert 99 <= client.ttl("kept") <= 100
    clients = [nodes.client(id_) for id_ in nodes.ids]
    until(lambda: all(one.exists("short", "hash") == 0 for one in clients), 10)
    assert client.hset("hash", "g", "w") == 1
    assert (client.hgetall("hash"), client.ttl("hash")) == ({b"g": b"w"}, -1)
    for one in clients:
        one.close()


# --- connections ---


def test_a_password_is_asked_for(replicas: Callable[[int], Replicas], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVSVR_PASSWORD", "right")
    nodes = replicas(3)
    with nodes.client(1) as stranger, pytest.raises(redis.AuthenticationError, match="authenticated"):
        stranger.get("key")
    with (
        nodes.client(1, password="wrong") as stranger,
        pytest.raises(redis.AuthenticationError, match="invalid username"),
    ):
        stranger.get("key")
    for protocol in (2, 3):
        with nodes.client(2, password="right", protocol=protocol) as one:
            assert one.set("key", "v") and one.get("key") == b"v"
    with socket.create_connection(("127.0.0.1", nodes.ports[1])) as raw:
        raw.sendall(b"*1\r\n$99999\r\n")
        assert raw.recv(100) == b"-ERR Protocol error: unauthenticated bulk length\r\n"


@SET
def test_a_connection_knows_its_client(client: Any) -> None:
    assert client.client_setname("me") and client.client_getname() == "me"
    assert client.client_info()["name"] == "me"
    assert [one["name"] for one in client.client_list()].count("me") == 1
    assert client.client_id() == client.client_info()["id"]
    with pytest.raises(redis.ResponseError, match=r"unknown subcommand 'MAINT_NOTIFICATIONS'\. Try CLIENT HELP"):
        client.execute_command("CLIENT", "MAINT_NOTIFICATIONS", "ON")
    with pytest.raises(redis.ResponseError, match="cannot contain spaces"):
        client.client_setname("a b")
    assert client.config_get("max*") == {"maxclients": "10000", "maxmemory": "0", "maxmemory-policy": "noeviction"}
    with pytest.raises(redis.ResponseError, match="can't set immutable config"):
        client.config_set("save", "60 1")
    assert client.config_resetstat()
    assert client.info("clients")["connected_clients"] >= 1
    assert client.info()["role"] == "master"
    assert client.command_count() == len(client.command_list()) > 80
    assert client.command_getkeys("MSET", "a", 1, "b", 2) == ["a", "b"]
    assert client.wait(1, 100) in (0, 1)
    assert client.role()[0] in (b"master", "master")
    assert len(client.time()) == 2


@SET
def test_who_listens_hears_what_is_published_here(nodes: Replicas, client: Any) -> None:
    with nodes.client(max(nodes.ids), protocol=2) as other:
        for one in (client, other):
            listener = one.pubsub()
            listener.subscribe("news")
            listener.psubscribe("n?ws", "other*")
            for _ in range(3):
                listener.get_message(timeout=5)
            assert client.publish("news", "hello") == 2
            heard = [listener.get_message(timeout=5) for _ in range(2)]
            assert {(m["type"], m["pattern"], m["channel"], m["data"]) for m in heard} == {
                ("message", None, b"news", b"hello"),
                ("pmessage", b"n?ws", b"news", b"hello"),
            }
            assert client.pubsub_channels() == [b"news"]
            assert client.pubsub_numsub("news", "none") == [(b"news", 1), (b"none", 0)]
            assert client.pubsub_numpat() == 2
            listener.unsubscribe()
            listener.punsubscribe()
            listener.close()
            until(lambda: client.publish("news", "hello") == 0)


def test_what_is_published_is_heard_at_every_replica(replicas: Callable[[int], Replicas]) -> None:
    """In the order in which one client published it, once; of a transaction when it stands; and after a kill again."""
    nodes = replicas(3)
    until(nodes.served)
    clients: list[Any] = [nodes.client(id_) for id_ in nodes.ids]
    listeners = [one.pubsub() for one in clients]
    for listener in listeners:
        listener.subscribe("news")
        listener.psubscribe("n*")
        assert [listener.get_message(timeout=5)["data"] for _ in range(2)] == [1, 2]
    for number in range(50):
        assert clients[0].publish("news", number) == 2
    with clients[1].pipeline() as pipe:
        assert pipe.set("key", 1).publish("news", "of a transaction").execute() == [True, 2]
        pipe.watch("key")
        pipe.multi()
        clients[2].set("key", 2)
        with pytest.raises(redis.WatchError):
            pipe.publish("news", "never").get("key").execute()
    clients[2].publish("news", b"x" * 1_000_000)
    expected = [str(number).encode() for number in range(50)]
    for listener in listeners:
        heard = [listener.get_message(timeout=5) for _ in range(2 * 52)]
        for kind in ("message", "pmessage"):
            said = [one["data"] for one in heard if one["type"] == kind]
            assert [one for one in said if len(one) < 3] == expected
            assert sorted(map(len, said))[-2:] == [len("of a transaction"), 1_000_000]
        assert listener.get_message(timeout=0.1) is None
    nodes.kill(2)
    nodes.start(2)
    until(nodes.served)
    assert clients[1].publish("news", "back") == 0
    assert [listeners[at].get_message(timeout=5)["data"] for at in (0, 2)] == [b"back"] * 2


@SET
def test_transactions_end_as_in_redis(client: Any) -> None:
    pool = client.connection_pool
    connection = pool.get_connection()

    def ask(*words: str) -> Any:
        connection.send_command(*words)
        try:
            return connection.read_response()
        except redis.ResponseError as error:
            return str(error)

    assert ask("MULTI") == b"OK"
    assert ask("MULTI") == "MULTI calls can not be nested"
    assert ask("WATCH", "key") == "WATCH inside MULTI is not allowed"
    assert ask("SET", "key") == "wrong number of arguments for 'set' command"
    assert ask("EXEC") == "Transaction discarded because of previous errors."
    assert ask("EXEC") == "EXEC without MULTI"
    assert ask("DISCARD") == "DISCARD without MULTI"
    assert ask("WATCH", "key") == b"OK"
    client.set("key", "other")
    assert (ask("MULTI"), ask("SET", "key", "mine"), ask("EXEC")) == (b"OK", b"QUEUED", None)
    assert (ask("WATCH", "key"), ask("UNWATCH")) == (b"OK", b"OK")
    client.set("key", "again")
    assert (ask("MULTI"), ask("PING"), ask("SET", "key", "mine")) == (b"OK", b"QUEUED", b"QUEUED")
    assert ask("EXEC") == [b"PONG", b"OK"]
    assert (ask("MULTI"), ask("EXEC")) == (b"OK", [])
    assert (ask("MULTI"), ask("RESET"), ask("GET", "key")) == (b"OK", b"RESET", b"mine")
    pool.release(connection)


def test_cluster_clients_go_to_the_owner(replicas: Callable[[int], Replicas]) -> None:
    nodes = replicas(3)
    with nodes.client(1) as one:
        until(lambda: len(one.execute_command("CLUSTER SHARDS")) == 3)
    with redis.RedisCluster(host="127.0.0.1", port=nodes.ports[1]) as cluster:
        assert sorted(node.port for node in cluster.get_nodes()) == sorted(nodes.ports.values())
        for number in range(30):
            assert cluster.set(f"key:{number}", number)
        assert [cluster.get(f"key:{number}") for number in range(30)] == [b"%d" % number for number in range(30)]
        assert cluster.cluster_keyslot("{tag}key") == cluster.keyslot("{tag}key")
        found = cluster.cluster_nodes()
        assert set(found) == {f"127.0.0.1:{port}" for port in nodes.ports.values()}
        ranges = [(int(first), int(last)) for one in found.values() for first, last in one["slots"]]
        assert sum(last - first + 1 for first, last in ranges) == 16384
        assert [one["connected"] for one in found.values()] == [True] * 3
        assert sum("myself" in one["flags"] for one in found.values()) == 1
        assert cluster.cluster_info(target_nodes="random")["cluster_state"] == "ok"
    with nodes.client(2) as one:
        slots = one.execute_command("CLUSTER SLOTS")
        assert slots
        shards = one.execute_command("CLUSTER SHARDS")
        assert len(shards) == 3
        assert one.execute_command("READONLY")


@SET
def test_every_key_and_field_may_be_drawn(client: Any) -> None:
    keys = {f"key:{number}".encode() for number in range(20)} | {b"hash"}
    assert client.randomkey() is None
    for key in keys - {b"hash"}:
        client.set(key, 1)
    client.hset("hash", mapping={f"f{number}": number for number in range(10)})
    with client.pipeline(transaction=False) as pipe:
        for _ in range(1000):
            pipe.randomkey()
        assert set(pipe.execute()) == keys
    fields = {f"f{number}".encode() for number in range(10)}
    drawn = client.hrandfield("hash", 8)
    assert len(set(drawn)) == 8
    assert set(drawn) < fields
    assert set(client.hrandfield("hash", -500)) == fields
    assert sorted(client.hrandfield("hash", 99)) == sorted(fields)
    values = client.execute_command("HRANDFIELD", "hash", 10, "WITHVALUES")
    flat = values if isinstance(values[0], bytes) else [word for pair in values for word in pair]
    assert dict(zip(flat[::2], flat[1::2], strict=True)) == client.hgetall("hash")
    client.delete(*keys)
    assert client.randomkey() is None


def test_names_of_two_slots_do_not_change_places(replicas: Callable[[int], Replicas]) -> None:
    with replicas(3).client(1) as client:
        client.set("a", 1)
        for words in (("RENAME", "a", "b"), ("RENAMENX", "a", "b"), ("COPY", "a", "b")):
            with pytest.raises(redis.ResponseError, match="don't hash to the same slot"):
                client.execute_command(*words)
        client.hset("{x}h", mapping={f"f{number}": "v" * number for number in range(300)})
        client.expire("{x}h", 1000)
        assert client.rename("{x}h", "{x}i")
        assert (client.hlen("{x}i"), client.exists("{x}h"), client.ttl("{x}i") > 990) == (300, 0, True)
        assert client.execute_command("TBL.VERSION", "{x}i") > 0


def test_shutdown_ends_a_replica(replicas: Callable[[int], Replicas]) -> None:
    nodes = replicas(1)
    with nodes.client(1) as one:
        one.shutdown(nosave=True)
    assert nodes.wait(1) == 0


# --- our own ---


@SET
def test_versions(client: Any) -> None:
    ask = client.execute_command
    assert ask("KV.GET", "k") is None
    version = ask("KV.CAS", "k", 0, "one")
    assert ask("KV.GET", "k") == [b"one", version]
    with pytest.raises(redis.ResponseError, match=f"CONFLICT it is at version {version}"):
        ask("KV.CAS", "k", 0, "two")
    second = ask("KV.CAS", "k", version, "two", "PX", 100_000)
    assert second > version and 99 <= client.ttl("k") <= 100
    batch = ["EXPECT", "{k}x", 0, "PUT", "{k}x", "1", "ROW.PUT", "{k}t", "row", "value", "ROW.EXPECT", "{k}t", "row", 0]
    third = ask("KV.BATCH", *batch)
    assert (ask("KV.GET", "{k}x"), ask("TBL.GET", "{k}t", "row")) == ([b"1", third], [b"value", third])
    with pytest.raises(redis.ResponseError, match="CONFLICT"):
        ask("KV.BATCH", *batch)
    with pytest.raises(redis.ResponseError, match="syntax error"):
        ask("KV.BATCH", "PUT", "k")
    assert ask("KV.BATCH", "DEL", "{k}x", "ROW.DEL", "{k}t", "row") > third
    assert client.exists("{k}x") == 0


@SET
def test_tables_are_hashes_in_order(client: Any) -> None:
    ask = client.execute_command
    version = ask("TBL.PUT", "t", "b", "2", "a", "1", "d", "4", "c", "3")
    assert ask("TBL.VERSION", "t") == version and ask("TBL.VERSION", "none") == 0
    assert ask("TBL.RANGE", "t", "-", "+") == [b"a", b"1", b"b", b"2", b"c", b"3", b"d", b"4"]
    assert ask("TBL.RANGE", "t", "(a", "[c") == [b"b", b"2", b"c", b"3"]
    assert ask("TBL.RANGE", "t", "[b", "(d", "REV", "LIMIT", 1) == [b"c", b"3"]
    assert ask("TBL.LAST", "t", 2) == [b"d", b"4", b"c", b"3"]
    assert client.hgetall("t") == {b"a": b"1", b"b": b"2", b"c": b"3", b"d": b"4"}
    rows = [ask("TBL.APPEND", "log", f"entry {number}") for number in range(1200)]
    assert rows == sorted(rows) and all(len(row) == 8 for row in rows)
    assert ask("TBL.RANGE", "log", "-", "+")[::2] == rows
    assert ask("TBL.RANGE", "log", "-", "+", "REV")[::2] == rows[::-1]
    assert ask("TBL.LAST", "log") == [rows[-1], b"entry 1199"]
    client.set("text", "v")
    with pytest.raises(redis.ResponseError, match="wrong kind"):
        ask("TBL.APPEND", "text", "v")


@SET
def test_large_answers_and_large_commands(client: Any, tmp_path: Path) -> None:
    value = b"x" * 300_000
    client.mset({f"{{t}}{number}": value for number in range(10)})
    assert client.mget(*(f"{{t}}{number}" for number in range(10))) == [value] * 10
    client.hset("{t}h", mapping={str(number): value for number in range(10)})
    assert client.hgetall("{t}h") == {b"%d" % number: value for number in range(10)}
    with pytest.raises(redis.ResponseError, match="exceeds maximum allowed size"):
        client.set("{t}large", b"x" * (17 << 20), nx=True)
    with pytest.raises(redis.ResponseError, match="exceeds maximum allowed size"):
        client.set("{t}large", b"x" * (40 << 20))
