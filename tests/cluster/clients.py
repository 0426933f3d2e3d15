"""Clients of a set in processes of their own: each runs workers (work.py) until its stdin ends, and says what they
know. `python -m tests.cluster.clients FIRST COUNT PORT PORT PORT` runs workers FIRST to FIRST + COUNT - 1."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import redis

from tests.cluster.work import Record, Worker, judge

PROCESSES = 3
WORKERS = 2
"""In each of them."""
END_S = 120


class Ports:
    """A set as a worker sees it."""

    def __init__(self, ports: Mapping[int, int]) -> None:
        self._ports = ports
        self.ids = list(ports)

    def client(self, id_: int, **options: Any) -> redis.Redis:
        return redis.Redis(port=self._ports[id_], **{"socket_timeout": 10, **options})


class Clients:
    """The processes, from outside. `records` are there once they have ended."""

    def __init__(self, ports: Sequence[int]) -> None:
        self.records: list[Record] = []
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.cluster.clients", str(number * WORKERS), str(WORKERS), *map(str, ports)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for number in range(PROCESSES)
        ]

    def end(self) -> None:
        """They all find out what they are in doubt about, and say what they know."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
            process.stdin = None
        for process in self._processes:
            said, _ = process.communicate(timeout=END_S)
            assert process.returncode == 0
            self.records += [_record(one) for one in json.loads(said)]

    def kill(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()

    def judge(self, client: redis.Redis) -> list[str]:
        """What is wrong with what a replica holds."""
        counters = [int(client.get(f"counter:{number}") or 0) for number in range(len(self.records))]
        keys = sorted({key for record in self.records for key in record.elements})
        held: dict[str, Any] = {key: client.get(key) for key in keys}
        sets = {key: (value or b"").decode().split() for key, value in held.items()}
        return judge(self.records, counters, sets)

    def told(self) -> str:
        return (
            f"{len(self.records)} workers in {PROCESSES} processes: "
            f"{sum(record.operation_count for record in self.records):,} writes, "
            f"{sum(record.doubt_count for record in self.records)} in doubt, longest pause of a client "
            f"{max(record.gap_s for record in self.records):.2f} s"
        )


@contextmanager
def at_work(ports: Sequence[int]) -> Iterator[Clients]:
    """While clients work; whatever comes of it, they end."""
    clients = Clients(ports)
    try:
        yield clients
        clients.end()
    except BaseException:
        clients.kill()
        raise


def _record(said: dict[str, Any]) -> Record:
    record = Record(**{**said, "elements": defaultdict(list)})
    record.elements.update(said["elements"])
    return record


def main(first: int, count: int, *ports: int) -> int:
    nodes, stop = Ports(dict(enumerate(ports, 1))), threading.Event()
    workers = [Worker(nodes, number, stop) for number in range(first, first + count)]
    for worker in workers:
        worker.start()
    sys.stdin.read()
    stop.set()
    for worker in workers:
        worker.join()
    for worker in workers:
        if worker.failure is not None:
            raise worker.failure
    print(json.dumps([{one.name: getattr(worker.record, one.name) for one in fields(Record)} for worker in workers]))
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
