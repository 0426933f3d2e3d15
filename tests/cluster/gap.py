"""How long clients wait when a replica is killed: `python -m tests.cluster.gap --kills 1000`.

A client at each of three replicas adds to counters, one command after the other. A random replica is killed and started
again; what counts is the longest any client of the two others waited for an answer. In the end every counter is held
against what was acknowledged: clients of a replica that was killed may have been left in doubt once for each kill.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.cluster.conftest import Replicas, until

KEY_COUNT = 300
AFTER_S = 0.5


class Adder(threading.Thread):
    """A client of one replica, which waits for that one while it is down."""

    def __init__(self, nodes: Replicas, id_: int, stop: threading.Event) -> None:
        super().__init__()
        self.waits: list[tuple[float, float]] = []
        self.doubts = 0
        self._id = id_
        self._stop_event = stop
        self._client = nodes.client(id_, socket_timeout=60, retry=Retry(NoBackoff(), 0))

    def run(self) -> None:
        chance = random.Random(self._id)
        in_doubt = False
        while not self._stop_event.is_set():
            began = time.perf_counter()
            try:
                self._client.incr(f"counter:{chance.randrange(KEY_COUNT)}")
            except redis.RedisError:
                self.doubts += not in_doubt
                in_doubt = True
                time.sleep(0.01)
                continue
            in_doubt = False
            self.waits.append((began, time.perf_counter() - began))
        self._client.close()

    def longest(self, since: float) -> float:
        return max((wait for began, wait in reversed(self.waits[-20_000:]) if began + wait >= since), default=0.0)


def measure(nodes: Replicas, kills: int, seed: int) -> tuple[list[float], int, int, int]:
    """Gaps in seconds, and what was acknowledged, in doubt and found."""
    chance, stop = random.Random(seed), threading.Event()
    adders = {id_: Adder(nodes, id_, stop) for id_ in nodes.ids}
    for adder in adders.values():
        adder.start()
    gaps = []
    for number in range(kills):
        victim = chance.choice(nodes.ids)
        killed = time.perf_counter()
        nodes.kill(victim)
        time.sleep(AFTER_S)
        gaps.append(max(adder.longest(killed) for id_, adder in adders.items() if id_ != victim))
        nodes.start(victim)
        until(nodes.served)
        time.sleep(chance.random() * AFTER_S)
        if (number + 1) % 100 == 0:
            print(f"{number + 1} kills, median {statistics.median(gaps) * 1000:.0f} ms", file=sys.stderr)
    stop.set()
    for adder in adders.values():
        adder.join()
    with nodes.client(1) as client:
        found = sum(int(client.get(f"counter:{number}") or 0) for number in range(KEY_COUNT))
    acked = sum(len(adder.waits) for adder in adders.values())
    return gaps, acked, sum(adder.doubts for adder in adders.values()), found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster.gap", description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        nodes = Replicas(Path(directory), 3)
        try:
            until(nodes.served)
            gaps, acked, doubts, found = measure(nodes, chosen.kills, chosen.seed)
        finally:
            nodes.close()
    gaps.sort()
    shown = {"p50": gaps[len(gaps) // 2], "p99": gaps[len(gaps) * 99 // 100], "max": gaps[-1]}
    print(f"{len(gaps)} kills: " + ", ".join(f"{name} {gap * 1000:.0f} ms" for name, gap in shown.items()))
    lost = max(0, acked - found)
    print(f"{acked:,} additions acknowledged, {doubts} in doubt, {found:,} found: {lost} lost")
    return 0 if acked <= found <= acked + doubts else 1


if __name__ == "__main__":
    sys.exit(main())
