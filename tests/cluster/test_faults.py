"""Replicas are killed, stopped, restarted and cut off while clients count and collect: nothing acknowledged is lost,
nothing is done twice, nothing stale is read (work.py). KVSVR_FAULT_ROUNDS makes it longer, KVSVR_FAULT_SEED the same
again.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.cluster.conftest import READY_S, Replicas, until
from tests.cluster.proxy import Wire
from tests.cluster.work import Record, Worker, judge

ROUNDS = int(os.environ.get("KVSVR_FAULT_ROUNDS", "3"))
SEED = int(os.environ.get("KVSVR_FAULT_SEED", "0")) or random.randrange(1, 1 << 32)
WORKER_COUNT = 4
PROGRESS = 25
"""Operations of all workers between one fault and the next."""

Start = Callable[..., Replicas]
Fault = Callable[[Replicas, random.Random], None]


def kill_one(nodes: Replicas, chance: random.Random) -> None:
    """And start it again, after others had time to notice, or none."""
    victim = chance.choice(nodes.ids)
    nodes.kill(victim)
    time.sleep(chance.choice([0.0, 0.05, 0.4]))
    nodes.start(victim)


def stop_one(nodes: Replicas, chance: random.Random) -> None:
    """It wakes up owning what others have taken over."""
    victim = chance.choice(nodes.ids)
    nodes.pause(victim)
    time.sleep(chance.choice([0.05, 0.3, 1.0]))
    nodes.wake(victim)


def kill_all(nodes: Replicas, chance: random.Random) -> None:
    for id_ in chance.sample(nodes.ids, len(nodes.ids)):
        nodes.kill(id_)
    for id_ in chance.sample(nodes.ids, len(nodes.ids)):
        nodes.start(id_)


def roll(nodes: Replicas, chance: random.Random) -> None:
    """Each is stopped gently and started again, the next when all serve."""
    for id_ in chance.sample(nodes.ids, len(nodes.ids)):
        assert nodes.stop(id_) == 0
        nodes.start(id_)
        until(nodes.served)


def cut_one(nodes: Replicas, chance: random.Random) -> None:
    """What was passed on over it is asked again; who hears of it may take a living owner's shards over."""
    nodes.wires[chance.choice(list(nodes.wires))].cut()
    time.sleep(chance.choice([0.0, 0.05, 0.2]))


def hold_one(nodes: Replicas, chance: random.Random) -> None:
    """Two that do not hear each other, and a third that hears both."""
    hold([nodes.wires[chance.choice(list(nodes.wires))]], chance)


def cut_off(nodes: Replicas, chance: random.Random) -> None:
    """One that nobody hears: it is taken for gone, and does not know."""
    victim = chance.choice(nodes.ids)
    hold([wire for pair, wire in nodes.wires.items() if victim in pair], chance)


def hold(wires: list[Wire], chance: random.Random) -> None:
    for wire in wires:
        wire.hold()
    time.sleep(chance.choice([0.05, 0.3, 1.0]))
    for wire in wires:
        wire.release()


@contextmanager
def working(nodes: Replicas) -> Iterator[list[Worker]]:
    """Whatever comes of it, they end."""
    stop = threading.Event()
    workers = [Worker(nodes, number, stop) for number in range(WORKER_COUNT)]
    for worker in workers:
        worker.start()
    try:
        yield workers
    finally:
        stop.set()
        for worker in workers:
            worker.join()


def done(workers: list[Worker]) -> int:
    for worker in workers:
        if worker.failure is not None:
            raise worker.failure
    return sum(worker.record.operation_count for worker in workers)


@pytest.mark.parametrize("fault", [kill_one, stop_one, kill_all, roll, cut_one, hold_one, cut_off])
def test_nothing_acknowledged_is_lost(replicas: Start, fault: Fault, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = replicas(3, wired=fault in (cut_one, hold_one, cut_off))
    until(nodes.served)
    chance = random.Random(f"{SEED} {fault.__name__}")
    began = time.monotonic()
    with working(nodes) as workers:
        for _ in range(ROUNDS):
            before = done(workers)
            until(lambda before=before: done(workers) >= before + PROGRESS)  # type: ignore[misc]
            fault(nodes, chance)
            until(nodes.served)
        before = done(workers)
        until(lambda: done(workers) >= before + PROGRESS)
    records = [worker.record for worker in workers]
    keys = sorted({key for record in records for key in record.elements})
    wrong = []
    for id_ in nodes.ids:
        with nodes.client(id_, socket_timeout=READY_S) as client:
            counters = [int(client.get(worker.counter) or 0) for worker in workers]
            sets = {key: (client.get(key) or b"").decode().split() for key in keys}
        wrong += [f"replica {id_}: {text}" for text in judge(records, counters, sets)]
    with capsys.disabled():
        print(f"\n{fault.__name__}: {told(records, time.monotonic() - began)}; seed {SEED}: {len(wrong)} wrong")
    assert wrong == []


def told(records: list[Record], seconds: float) -> str:
    return (
        f"{ROUNDS} faults, {sum(record.operation_count for record in records):,} writes in {seconds:.1f} s, "
        f"{sum(record.doubt_count for record in records)} in doubt of which "
        f"{sum(record.happened_count for record in records)} had happened, longest pause of a client "
        f"{max(record.gap_s for record in records):.2f} s"
    )


# --- the judge ---


def record(count: int, *elements: str) -> Record:
    one = Record(count=count)
    one.elements["s"] += elements
    return one


def test_the_judge_lets_pass_what_is_right() -> None:
    assert judge([record(2, "1.0", "1.1"), record(1, "2.0")], [2, 1], {"s": ["1.0", "2.0", "1.1"]}) == []


@pytest.mark.parametrize(
    ("counters", "held", "words"),
    [
        ([1, 1], ["1.0", "1.1", "2.0"], "counter 0 is 1, and 2 additions were made"),
        ([2, 2], ["1.0", "1.1", "2.0"], "counter 1 is 2, and 1 additions were made"),
        ([2, 1], ["1.0", "2.0"], "s: 1.1 is lost"),
        ([2, 1], [], "s: 2.0 is lost"),
        ([2, 1], ["1.0", "1.1", "2.0", "1.0"], "s: 1.0 is there 1 times too often"),
        ([2, 1], ["1.0", "1.1", "2.0", "3.0"], "s: 3.0 is there 1 times too often"),
        ([2, 1], ["1.1", "1.0", "2.0"], "not in the order"),
    ],
)
def test_the_judge_notices(counters: list[int], held: list[str], words: str) -> None:
    found = judge([record(2, "1.0", "1.1"), record(1, "2.0")], counters, {"s": held})
    assert any(words in text for text in found), found


def test_the_judge_repeats_what_a_worker_saw() -> None:
    one = Record(wrong=["it was read as 1"])
    assert judge([one], [0], {}) == ["it was read as 1"]
