"""What only a set has: addresses, time-outs, stale reads, durability, what it does not offer; and importing little."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import kvsvr
from kvsvr.client.store import Remote
from kvsvr.ops.place import free_base
from kvsvr.testing import ReplicaSet
from tests.cluster.conftest import Replicas, until


def test_importing_kvsvr_brings_no_redis() -> None:
    """A program that embeds a store does not pay for the client."""
    code = "import kvsvr, sys; assert not {'redis', 'asyncio', 'socket'} & set(sys.modules), sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("said", ["", "localhost", "localhost:", ":7101", "localhost:x", "localhost:70000", [], "a:1,"])
def test_addresses_that_are_none(said: Any) -> None:
    with pytest.raises(kvsvr.UsageError, match="address"):
        kvsvr.connect(said)


@pytest.mark.parametrize("settings", [{"timeout": 0}, {"timeout": "1"}, {"consistency": "x"}, {"durability": "x"}])
def test_settings_that_are_none(settings: dict[str, Any]) -> None:
    with pytest.raises(kvsvr.UsageError):
        kvsvr.connect("localhost:7101", **settings)


def test_nobody_is_there() -> None:
    """Nothing was sent, so a write is Unavailable, too; and it is known in time."""
    with kvsvr.connect(f"127.0.0.1:{free_base(1)}", timeout=0.5) as remote:
        began = time.monotonic()
        with pytest.raises(kvsvr.Unavailable):
            remote.get(b"k")
        with pytest.raises(kvsvr.Unavailable):
            remote.put(b"k", b"v")
        assert time.monotonic() - began < 3


def test_no_majority(replicas: Callable[..., Replicas]) -> None:
    """A read is Unavailable; a write, which may yet happen, Unknown. When the others are back, all goes on."""
    nodes = replicas(3)
    until(nodes.served)
    with kvsvr.connect([f"127.0.0.1:{port}" for port in nodes.ports.values()], timeout=2) as remote:
        remote.put(b"k", b"v")
        with nodes.client(1) as one:
            assert one.get("k") == b"v"  # Which it then has itself.
        nodes.kill(2)
        nodes.kill(3)
        with pytest.raises(kvsvr.Unavailable):
            remote.get(b"k")
        with pytest.raises(kvsvr.Unknown):
            remote.put(b"k", b"w")
        assert remote.get(b"k", consistency="stale") == b"v"
        nodes.start(2)
        nodes.start(3)
        until(nodes.served)
        remote.put(b"k", b"x")
        assert remote.get(b"k") == b"x"


def test_a_replica_that_hangs(replicas: Callable[..., Replicas]) -> None:
    """SIGSTOP: after a while another one is asked, under the same number."""
    nodes = replicas(3)
    until(nodes.served)
    with kvsvr.connect([f"127.0.0.1:{port}" for port in nodes.ports.values()], timeout=20) as remote:
        keys = [b"counter:%d" % i for i in range(6)]
        assert [remote.incr(key) for key in keys] == [1] * 6
        nodes.pause(1)
        assert [remote.incr(key) for key in keys] == [2] * 6
        nodes.wake(1)
        assert [remote.incr(key) for key in keys] == [3] * 6


def test_a_password(replicas: Callable[..., Replicas], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said; without it, or with another, what to do is told."""
    monkeypatch.setenv("KVSVR_PASSWORD", "open sesame")
    nodes = replicas(1)
    until(nodes.served)
    address = f"127.0.0.1:{nodes.ports[1]}"
    with kvsvr.connect(address, password="open sesame") as remote:
        assert remote.put(b"k", b"v") > 0
    for password in (None, "another"):
        with kvsvr.connect(address, password=password) as remote, pytest.raises(kvsvr.UsageError, match="password"):
            remote.get(b"k")


def test_stale_reads_and_durable_bytes(remote: Any) -> None:
    """Per call, and for all."""
    large = b"x" * 100_000
    remote.put(b"k", large, durability="data")
    with remote.batch(durability="data") as batch:
        batch.put(b"{k}2", large)
    assert remote.get(b"k") == large
    deadline = time.monotonic() + 10
    while remote.get(b"k", consistency="stale") != large or remote.get_many([b"{k}2"], consistency="stale") != [large]:
        assert time.monotonic() < deadline
    with pytest.raises(kvsvr.UsageError, match="consistency"):
        remote.get(b"k", consistency="x")
    with pytest.raises(kvsvr.UsageError, match="durability"):
        remote.put(b"k", b"v", durability="x")


def test_what_a_set_does_not_offer(remote: Any) -> None:
    """It is said, and never made up."""
    with pytest.raises(kvsvr.UsageError, match="append"), remote.batch() as batch:
        batch.table(b"t").append(b"v")
    for name in ("snapshot", "compact", "backup", "verify", "refresh"):
        assert not hasattr(remote, name)


def test_what_is_too_large(remote: Any) -> None:
    """It is refused, and the next call goes on."""
    with pytest.raises(kvsvr.UsageError, match="16 MiB"):
        remote.put(b"k", b"x" * (17 << 20))
    with pytest.raises(kvsvr.UsageError, match=r"too large|larger"), remote.batch() as batch:
        for number in range(5):
            batch.put(b"{k}%d" % number, b"x" * (8 << 20))
    assert remote.get(b"k") is None


def test_a_batch_of_two_slots(set_of: Callable[[int], ReplicaSet]) -> None:
    """One replica has one shard, and takes it; three refuse it before anything is sent."""
    with set_of(1).connect() as remote, remote.batch() as batch:
        batch.put(b"a", b"1")
        batch.put(b"b", b"2")
    with set_of(3).connect() as remote:
        remote.delete_many([b"a", b"b"])
        with pytest.raises(kvsvr.UsageError, match="hash slot"), remote.batch() as batch:
            batch.put(b"a", b"1")
            batch.put(b"b", b"2")
        assert remote.get_many([b"a", b"b"]) == [None, None]


def test_threads(remote: Any) -> None:
    """One client, many threads: every addition counts."""

    def add() -> None:
        for _ in range(50):
            remote.incr(b"n")

    threads = [threading.Thread(target=add) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert remote[b"n"] == b"400"


def test_coroutines(remote: Any) -> None:
    """`aio` has the same calls, side by side in one loop."""

    async def body() -> None:
        db = remote.aio
        assert await db.put(b"k", b"v") > 0
        assert await db.get(b"k") == b"v"
        assert sorted(await asyncio.gather(*(db.incr(b"n") for _ in range(40)))) == list(range(1, 41))
        await db.put_many((b"key:%d" % i, b"v") for i in range(50))
        assert len([key async for key in db.keys(prefix=b"key:")]) == 50
        table = db.table(b"t")
        row = await table.append(b"v")
        assert [pair async for pair in table.rows()] == [(row, b"v")]
        assert await table.version() > 0
        async with db.batch() as batch:
            batch.put(b"{a}1", b"1")
        assert batch.version > 0

        async def add(t: Any) -> int:
            value = int(await t.get(b"sum", b"0")) + 1
            t.put(b"sum", b"%d" % value)
            return value

        assert sorted(await asyncio.gather(*(db.run(add, attempts=1000) for _ in range(6)))) == [1, 2, 3, 4, 5, 6]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await db.get(b"k")
        assert await db.get(b"k") == b"v"
        await db.close()

    asyncio.run(body())
    with pytest.raises(kvsvr.ClosedError):
        remote.get(b"k")


def test_the_fixtures(kvsvr_store: kvsvr.Engine, kvsvr_set: Callable[[int], ReplicaSet]) -> None:
    """A store, and a set, that a test may throw away."""
    assert kvsvr_store.put(b"k", b"v") > 0
    with kvsvr_set(1).connect() as remote:
        assert remote.put(b"k", b"v") > 0


def as_store(remote: Remote) -> kvsvr.Store:
    """For mypy: services stand on the protocol, and take a set as they take a store."""
    return remote
