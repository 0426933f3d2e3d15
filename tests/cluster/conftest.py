"""Sets of replica processes for tests: real ones, on loopback, with directories of their own."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from kvsvr.node.report import Report, State
from tests.cluster import sanitized
from tests.cluster.proxy import Wire

READY_S = 30


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now; held together, so that they differ."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


def free_base(count: int) -> int:
    """The first of so many consecutive ports that nobody listens on now. Below those that connections are given, so
    that none of these takes one in between."""
    for _ in range(100):
        base = random.randrange(10_000, 30_000)
        with contextlib.ExitStack() as held, contextlib.suppress(OSError):
            for port in range(base, base + count):
                held.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return base
    raise AssertionError("no ports are free")


class Replicas:
    """The processes of one set. Replicas count from 1."""

    def __init__(self, directory: Path, count: int, *flags: str, wired: bool = False) -> None:
        """`flags`: for each of them. `wired`: what they tell each other goes through `wires`, by pair, lower first."""
        self.directory = directory
        self.flags = flags
        self.ids = range(1, count + 1)
        ports = free_ports(2 * count)
        self.ports = dict(zip(self.ids, ports[:count], strict=True))
        self.peer_ports = dict(zip(self.ids, ports[count:], strict=True))
        pairs = [(low, high) for high in self.ids for low in self.ids if low < high and wired]
        self.wires = {pair: Wire(self.peer_ports[pair[0]]) for pair in pairs}  # The higher one dials.
        self._processes: dict[int, subprocess.Popen[str]] = {}
        for id_ in self.ids:
            self.start(id_)

    def start(self, id_: int) -> None:
        ports = {other: self.peer_ports[other] for other in self.ids if other != id_}
        ports |= {low: wire.port for (low, high), wire in self.wires.items() if high == id_}
        peers = [f"--peer={other}=127.0.0.1:{port}" for other, port in ports.items()]
        arguments = ["serve", f"--id={id_}", f"--dir={self.directory / str(id_)}", *peers, *self.flags]
        arguments += [f"--status-file={self.directory / f'{id_}.status'}"]
        arguments += [f"--listen=127.0.0.1:{self.ports[id_]}", f"--peer-listen=127.0.0.1:{self.peer_ports[id_]}"]
        (self.directory / f"{id_}.status").unlink(missing_ok=True)
        with open(self.directory / f"{id_}.log", "a") as log:
            process = subprocess.Popen(
                [*sanitized.command(), *arguments],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=sanitized.environment(),
            )
        self._processes[id_] = process
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line == f"ready 127.0.0.1:{self.ports[id_]}\n", (self.directory / f"{id_}.log").read_text()

    def report(self, id_: int) -> Report | None:
        """What it says of itself."""
        return Report.read(self.directory / f"{id_}.status")

    def served(self) -> bool:
        """Each of them serves, and each shard has one owner."""
        reports = [report for id_ in self.ids if (report := self.report(id_)) is not None]
        owned = sum(one.figures.get("shards_owned", 0) for one in reports)
        whole = len(reports) == len(self.ids) and all(one.state is State.SERVING for one in reports)
        return whole and owned == len(reports[0].owners)

    def events(self, id_: int) -> list[dict[str, Any]]:
        """What it has logged."""
        return [json.loads(line) for line in (self.directory / f"{id_}.log").read_text().splitlines() if line[0] == "{"]

    def client(self, id_: int, **options: Any) -> redis.Redis:
        return redis.Redis(port=self.ports[id_], **{"socket_timeout": 10, **options})

    def kill(self, id_: int) -> None:
        self._processes[id_].kill()
        self.wait(id_)

    def stop(self, id_: int) -> int:
        """Its exit code."""
        self._processes[id_].send_signal(signal.SIGTERM)
        return self.wait(id_)

    def wait(self, id_: int) -> int:
        """Until it has ended; its exit code."""
        process = self._processes[id_]
        code = process.wait(timeout=READY_S)
        assert process.stdout is not None
        process.stdout.close()
        return code

    def running(self, id_: int) -> bool:
        return self._processes[id_].poll() is None

    def pid(self, id_: int) -> int:
        return self._processes[id_].pid

    def pause(self, id_: int) -> None:
        """SIGSTOP, and until it has come to all its threads: one that runs goes on for a while."""
        os.kill(self.pid(id_), signal.SIGSTOP)
        threads = list(Path(f"/proc/{self.pid(id_)}/task").iterdir())
        until(lambda: all(" T " in (thread / "stat").read_text() for thread in threads))

    def wake(self, id_: int) -> None:
        os.kill(self.pid(id_), signal.SIGCONT)

    def close(self) -> None:
        for wire in self.wires.values():
            wire.close()
        for id_, process in self._processes.items():
            if process.poll() is None:
                os.kill(process.pid, signal.SIGCONT)
                process.kill()
            self.wait(id_)
        for id_ in self.ids:
            found = sanitized.reports(self.directory / f"{id_}.log")
            assert not found, "\n".join(found)


@pytest.fixture
def replicas(tmp_path: Path) -> Iterator[Callable[..., Replicas]]:
    """replicas(3) starts a set of three, which ends with the test."""
    started: list[Replicas] = []

    def start(count: int, *flags: str, wired: bool = False) -> Replicas:
        started.append(Replicas(tmp_path, count, *flags, wired=wired))
        return started[-1]

    yield start
    for one in started:
        one.close()


def until(condition: Callable[[], bool], seconds: float = READY_S) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to be so"
        time.sleep(0.02)
