"""Bits of one replica's log are flipped while it is down: what was damaged it fetches back from the others."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.cluster.conftest import Replicas, until

Start = Callable[..., Replicas]
FLIPS = 20
HEADER_SIZE = 4096
"""Of a segment. What is damaged there nothing tells (docs/next.md)."""


def flip(file: Path, at: int) -> None:
    with open(file, "r+b") as opened:
        opened.seek(at)
        byte = opened.read(1)[0]
        opened.seek(at)
        opened.write(bytes([byte ^ 1 << at % 8]))


def damage(data: Path, marks: list[bytes]) -> int:
    """One bit in each of these, wherever they lie in the log; how many were found."""
    found = 0
    for file in sorted((data / "flow").iterdir()):
        content = file.read_bytes()
        for mark in marks:
            at = content.find(mark, HEADER_SIZE)
            if at >= 0:
                flip(file, at + len(mark) // 2)
                found += 1
    return found


@pytest.mark.parametrize("checkpointed", [False, True])
def test_flipped_bits_are_mended_from_the_others(replicas: Start, checkpointed: bool) -> None:
    """Values in the middle of the log, all over it: none of them is read wrong, the replica says what it found, and votes in
    every shard again; then it can be one of the two that are left. With a checkpoint, which spares a start the look at what
    lies before, a record may be found to be damaged only when it is read; then the process ends, and its next start looks at all."""
    nodes = replicas(3, *(["--keep-size-max=1MiB"] if checkpointed else []))
    until(nodes.served)
    marks = [b"value of key %d: %s" % (number, b"x" * 2000) for number in range(4000)]
    with nodes.client(1) as client:
        pipeline = client.pipeline(transaction=False)
        for number, mark in enumerate(marks):
            pipeline.set(b"key:%d" % number, mark)
        assert all(pipeline.execute())
    until(lambda: not checkpointed or nodes.figure(2, "checkpoints") > 0)
    assert nodes.stop(2) == 0
    assert (nodes.directory / "2" / "checkpoint").exists() == checkpointed
    chosen = random.Random(1).sample(marks[:-1], FLIPS)
    assert damage(nodes.directory / "2", chosen) == FLIPS
    nodes.start(2)
    until(nodes.served)
    if not checkpointed:
        assert nodes.figure(2, "damaged") >= FLIPS
        until(lambda: nodes.figure(2, "repaired") == nodes.figure(2, "damaged"))
        until(lambda: nodes.figure(2, "shards_voting") == 64)
    for _ in range(3):
        if all_read(nodes, marks):
            break
        assert nodes.wait(2) == 1, "what it meets while it runs is for a restart to mend"
        nodes.start(2)
        until(lambda: nodes.figure(2, "shards_voting") == 64)
    nodes.kill(1)
    assert all_read(nodes, marks)


def all_read(nodes: Replicas, marks: list[bytes]) -> bool:
    """At the one that was damaged. False: it ended."""
    try:
        with nodes.client(2, retry=Retry(NoBackoff(), 0)) as client:
            for number, mark in enumerate(marks):
                assert client.get(b"key:%d" % number) == mark
    except redis.ConnectionError:
        return False
    return True
