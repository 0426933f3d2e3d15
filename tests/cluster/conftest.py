"""Sets of replica processes for tests: real ones, on loopback, with directories of their own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

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


class Replicas:
    """The processes of one set. Replicas count from 1."""

    def __init__(self, directory: Path, count: int) -> None:
        self.directory = directory
        self.ids = range(1, count + 1)
        ports = free_ports(2 * count)
        self.ports = dict(zip(self.ids, ports[:count], strict=True))
        self.peer_ports = dict(zip(self.ids, ports[count:], strict=True))
        self._processes: dict[int, subprocess.Popen[str]] = {}
        for id_ in self.ids:
            self.start(id_)

    def start(self, id_: int) -> None:
        peers = [f"--peer={other}=127.0.0.1:{self.peer_ports[other]}" for other in self.ids if other != id_]
        arguments = ["serve", f"--id={id_}", f"--dir={self.directory / str(id_)}", *peers]
        arguments += [f"--listen=127.0.0.1:{self.ports[id_]}", f"--peer-listen=127.0.0.1:{self.peer_ports[id_]}"]
        with open(self.directory / f"{id_}.log", "a") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", "from kvsvr.ops.cli import main; main()", *arguments],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self._processes[id_] = process
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line == f"ready 127.0.0.1:{self.ports[id_]}\n", (self.directory / f"{id_}.log").read_text()

    def client(self, id_: int, **options: Any) -> redis.Redis:
        return redis.Redis(port=self.ports[id_], socket_timeout=10, **options)

    def kill(self, id_: int) -> None:
        self._processes[id_].kill()
        self._ended(id_)

    def stop(self, id_: int) -> int:
        """Its exit code."""
        self._processes[id_].send_signal(signal.SIGTERM)
        return self._ended(id_)

    def _ended(self, id_: int) -> int:
        process = self._processes[id_]
        code = process.wait(timeout=READY_S)
        assert process.stdout is not None
        process.stdout.close()
        return code

    def pid(self, id_: int) -> int:
        return self._processes[id_].pid

    def close(self) -> None:
        for id_, process in self._processes.items():
            if process.poll() is None:
                os.kill(process.pid, signal.SIGCONT)
                process.kill()
            self._ended(id_)


@pytest.fixture
def replicas(tmp_path: Path) -> Iterator[Callable[[int], Replicas]]:
    """replicas(3) starts a set of three, which ends with the test."""
    started: list[Replicas] = []

    def start(count: int) -> Replicas:
        started.append(Replicas(tmp_path, count))
        return started[-1]

    yield start
    for one in started:
        one.close()


def until(condition: Callable[[], bool], seconds: float = READY_S) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to be so"
        time.sleep(0.02)
