"""Bits of one replica's log are flipped while it is down: what was damaged it fetches back from the others."""

from __future__ import annotations

import random
import re
import struct
from collections.abc import Callable
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.cluster.conftest import Replicas, until

Start = Callable[..., Replicas]
COUNT = 4000
FLIPS = 6
"""In a segment."""
VALUE = re.compile(rb"value of key (\d+): x{1900}")


def flip(file: Path, at: int) -> None:
    with open(file, "r+b") as opened:
        opened.seek(at)
        byte = opened.read(1)[0]
        opened.seek(at)
        opened.write(bytes([byte ^ 1 << at % 8]))


def replay_start(data: Path) -> int:
    """The segment that a start with the checkpoint begins with (native/src/replica_trim.c)."""
    return int(struct.unpack_from("<Q", (data / "checkpoint").read_bytes(), 8)[0]) >> 32


def damage(data: Path, before: int) -> int:
    """One bit in each of some values that lie in segments before that one, and none of the last written; how many."""
    found = 0
    for file in sorted((data / "flow").iterdir()):
        content = file.read_bytes() if int(file.stem, 16) < before else b""
        places = [one.start() for one in VALUE.finditer(content) if int(one[1]) < COUNT - 100]
        for at in random.Random(1).sample(places, min(len(places), FLIPS)):
            flip(file, at + 100)
            found += 1
    return found


def test_flipped_bits_are_mended_from_the_others(replicas: Start) -> None:
    """All over the log: no value is read wrong, the replica says what it found, and votes in every shard again; then it
    can be one of the two that are left."""
    nodes = replicas(3)
    marks = fill(nodes)
    assert nodes.stop(2) == 0
    count = damage(nodes.directory / "2", before=1 << 31)
    assert count >= FLIPS
    nodes.start(2)
    until(nodes.served)
    until(lambda: nodes.figure(2, "repaired") == nodes.figure(2, "damaged") >= count)
    until(lambda: nodes.figure(2, "shards_voting") == 64)
    nodes.kill(1)
    assert all_read(nodes, marks)


def test_what_no_start_has_looked_at_is_found_when_it_is_read(replicas: Start) -> None:
    """A checkpoint spares a start the look at what lies before. The process ends when it meets the damage, and its next
    start looks at all there is, and mends it."""
    nodes = replicas(3, "--keep-size-max=1MiB")
    marks = fill(nodes)
    until(lambda: nodes.figure(2, "checkpoints") > 0)
    assert nodes.stop(2) == 0
    assert damage(nodes.directory / "2", replay_start(nodes.directory / "2")) > 0
    nodes.start(2)
    until(nodes.served)
    assert nodes.figure(2, "damaged") == 0
    assert not all_read(nodes, marks)
    assert nodes.wait(2) == 1
    nodes.start(2)
    until(nodes.served)
    until(lambda: nodes.figure(2, "shards_voting") == 64)
    nodes.kill(1)
    assert all_read(nodes, marks)


def fill(nodes: Replicas) -> list[bytes]:
    """What the keys hold."""
    until(nodes.served)
    marks = [b"value of key %d: %s" % (number, b"x" * 2000) for number in range(COUNT)]
    with nodes.client(1) as client:
        pipeline = client.pipeline(transaction=False)
        for number, mark in enumerate(marks):
            pipeline.set(b"key:%d" % number, mark)
        assert all(pipeline.execute())
    return marks


def all_read(nodes: Replicas, marks: list[bytes]) -> bool:
    """At the one that was damaged. False: it ended."""
    try:
        with nodes.client(2, retry=Retry(NoBackoff(), 0)) as client:
            for number, mark in enumerate(marks):
                assert client.get(b"key:%d" % number) == mark
    except redis.ConnectionError:
        return False
    return True
