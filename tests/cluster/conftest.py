"""Sets of replica processes for tests: real ones, on loopback, with directories of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis

from kvsvr.node.report import Report, State
from kvsvr.ops.place import free_base
from tests.cluster import sanitized
from tests.cluster.proxy import Wire

READY_S = 30


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    base = free_base(count)
    return [*range(base, base + count)]


class Replicas:
    """The processes of one set. Replicas count from 1."""

    def __init__(self, directory: Path, count: int, *flags: str, wired: bool = False) -> None:
        """`flags`: for each of them. `wired`: what they tell each other goes through `wires`, by pair, lower first."""
        self.directory = directory
        self.flags = flags
        self._count = count
        self.ids: Sequence[int] = range(1, count + 1)
        self._own_flags: dict[int, tuple[str, ...]] = {}
        ports = free_ports(2 * count)
        self.ports = dict(zip(self.ids, ports[:count], strict=True))
        self.peer_ports = dict(zip(self.ids, ports[count:], strict=True))
        pairs = [(low, high) for high in self.ids for low in self.ids if low < high and wired]
        self.wires = {pair: Wire(self.peer_ports[pair[0]]) for pair in pairs}  # The higher one dials.
        self._processes: dict[int, subprocess.Popen[str]] = {}
        for id_ in self.ids:
            self.start(id_)

    def join(self, id_: int, *flags: str, but: int) -> None:
        """One that comes later, with an empty directory, in the place of one that is down. Others' settings stay."""
        self.ports[id_], self.peer_ports[id_] = free_ports(2)
        self._own_flags[id_] = flags
        self.ids = [*(other for other in self.ids if other != but), id_]
        self.start(id_)

    def command(self, *arguments: object) -> int:
        """`kvsvr` with these: its exit code."""
        return subprocess.run([sys.executable, "-m", "kvsvr.ops.cli", *map(str, arguments)], check=False).returncode

    def start(self, id_: int) -> None:
        known = self.ids if id_ in self._own_flags else range(1, self._count + 1)
        ports = {other: self.peer_ports[other] for other in known if other != id_}
        ports |= {low: wire.port for (low, high), wire in self.wires.items() if high == id_}
        peers = [f"--peer={other}=127.0.0.1:{port}" for other, port in ports.items()]
        arguments = ["serve", f"--id={id_}", f"--dir={self.directory / str(id_)}", *peers, *self.flags]
        arguments += [f"--status-file={self.directory / f'{id_}.status'}", *self._own_flags.get(id_, ())]
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

    def figure(self, id_: int, name: str) -> int:
        report = self.report(id_)
        return 0 if report is None else report.figures.get(name, 0)

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
