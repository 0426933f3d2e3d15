"""A server as a process of ours: started with its output in a file, looked at through /proc, ended by its pid.

Nothing that was not started here is ever touched: servers of the same name that the machine runs anyway go on.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from kvsvr.ops.place import free_base

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
READY_SECONDS = 60.0
STOP_SECONDS = 20.0
LOG_LINES = 6  # Of a server that failed, for the message.


class ServerFailed(Exception):
    """A server, or the load generator, did not do what it is there for; the text says which and what it said."""


class Process:
    def __init__(self, arguments: Sequence[str], log: Path) -> None:
        self._arguments, self._log = list(arguments), log
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                self._arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    @property
    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    @property
    def pid(self) -> int:
        return self._running.pid

    @property
    def ended(self) -> bool:
        return self._running.poll() is not None

    def kill(self) -> None:
        """SIGKILL, and it is gone when this returns."""
        self._running.kill()
        self._running.wait()

    def stop(self) -> None:
        self._running.terminate()
        try:
            self._running.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()

    def said(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-LOG_LINES:])

    def cpu_seconds(self) -> float:
        """Of all its threads, in ticks of 10 ms."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND

    def anonymous_size(self) -> int:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
        return 0


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    base = free_base(count)
    return [*range(base, base + count)]


def until(condition: Callable[[], bool], what: str, processes: Sequence[Process] = ()) -> None:
    """Waits. ServerFailed if one of `processes` ends meanwhile, or if it takes too long. A server that cannot be asked
    yet says no."""
    end = time.monotonic() + READY_SECONDS
    while True:
        try:
            if condition():
                return
        except (OSError, ValueError):
            pass
        for process in processes:
            if process.ended:
                raise ServerFailed(f"{what}: a process ended: {process.said()}")
        if time.monotonic() > end:
            said = "\n".join(process.said() for process in processes)
            raise ServerFailed(f"{what}: not within {READY_SECONDS:.0f} s: {said}")
        time.sleep(0.02)
