"""A replica gives back the front of its log while it runs, and loses nothing by it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from kvsvr.node.report import pin_of
from tests.cluster.conftest import Replicas, until

Start = Callable[..., Replicas]
MIB = 1 << 20
KEYS = 50
VALUE_SIZE = 20_000
KEEP = ("--keep-size-max=2MiB", "--inline-max=1MiB")


def size_of(directory: Path) -> int:
    """Bytes of the segments; those that are made ahead among them."""
    return sum(file.stat().st_size for file in (directory / "flow").iterdir())


def write(nodes: Replicas, id_: int, rounds: range, commands: int = 20) -> dict[bytes, bytes]:
    """Each key is written in each round; what stands there afterwards."""
    written = {}
    with nodes.client(id_) as client:
        for number in rounds:
            pipeline = client.pipeline(transaction=False)
            for key in range(KEYS):
                value = b"%d:%d:" % (number, key) + os.urandom(VALUE_SIZE // 2).hex().encode()
                pipeline.set(b"key:%d" % key, value)
                written[b"key:%d" % key] = value
                if len(pipeline) == commands:
                    assert all(pipeline.execute())
            assert all(pipeline.execute())
    return written


def check(nodes: Replicas, id_: int, written: dict[bytes, bytes]) -> None:
    with nodes.client(id_) as client:
        for key, value in written.items():
            assert client.get(key) == value


@pytest.mark.parametrize("count", [1, 3])
def test_a_running_replica_gives_disk_back(replicas: Start, count: int) -> None:
    """Ninety times what is live is written, and the directory stays bounded. One is killed and one stopped in between:
    what was kept is enough to start from, with the checkpoint, and from the log alone."""
    nodes = replicas(count, *KEEP)
    until(nodes.served)
    once = write(nodes, 1, range(1, 2))
    once = {b"once:" + key: value for key, value in once.items()}
    with nodes.client(1) as client:
        assert client.mset(once)
    for step in range(3):
        written = write(nodes, 1 + step % count, range(30 * step, 30 * (step + 1)))
        victim = 1 + (step + 1) % count
        if step == 0:
            nodes.kill(victim)
        else:
            assert nodes.stop(victim) == 0
        if step == 2:
            (nodes.directory / str(victim) / "checkpoint").unlink()
        nodes.start(victim)
        until(nodes.served)
        for id_ in nodes.ids:
            check(nodes, id_, written | once)
    for id_ in nodes.ids:
        until(lambda id_=id_: size_of(nodes.directory / str(id_)) < 24 * MIB)  # type: ignore[misc]
        assert (nodes.directory / str(id_) / "checkpoint").exists()
        assert nodes.figure(id_, "damaged") == 0


def test_a_replica_that_was_away_for_long_catches_up_with_what_is_left(replicas: Start) -> None:
    """Records that it lacks are gone everywhere by then: it gets snapshots."""
    nodes = replicas(3, *KEEP)
    until(nodes.served)
    old = write(nodes, 1, range(1))
    nodes.kill(3)
    new = write(nodes, 1, range(1, 40))
    until(lambda: all(nodes.figure(id_, "segments_removed") > 0 for id_ in (1, 2)))
    nodes.start(3)
    until(nodes.served)
    for id_ in (1, 2):
        nodes.kill(id_)
        nodes.start(id_)
    until(nodes.served)
    assert old.keys() == new.keys()
    for id_ in nodes.ids:
        check(nodes, id_, new)


def test_nothing_goes_while_somebody_copies(replicas: Start) -> None:
    """As a backup does it: the replica says when it has seen the lock, and from then on every segment stays."""
    nodes = replicas(1, *KEEP)
    until(nodes.served)
    write(nodes, 1, range(10))
    segments = nodes.directory / "1" / "flow"
    with open(pin_of(nodes.directory / "1.status"), "ab") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        until(lambda: nodes.figure(1, "pinned") == 1)
        there = {one.name for one in segments.iterdir()}
        write(nodes, 1, range(10, 50))
        assert there <= {one.name for one in segments.iterdir()}
    until(lambda: not there <= {one.name for one in segments.iterdir()})
