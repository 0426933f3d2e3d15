"""Keeps the replicas of a set running, as processes of this machine: starts, restarts, gives up, stops.

It is one loop without threads: every PAUSE_S it looks who has ended, starts whom it is time for, looks how the set is,
and hands new lines of the logs to whoever reads. Replicas write to their logs themselves and have process groups of
their own, so they neither wait for the launcher nor end with its terminal: if it is killed, they go on unattended, and
the next launcher ends and starts them.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

from kvsvr.errors import LockedError, UsageError
from kvsvr.node.config import PREFIX
from kvsvr.node.report import Report, State
from kvsvr.ops.place import Place, Replica, find
from kvsvr.ops.restarts import LONGEST_S, Restarts, ending
from kvsvr.ops.status import Health, SetStatus, launcher_pid, look, running

PAUSE_S: Final = 0.05
LOOK_S: Final = 0.25
STOP_S: Final = 15.0
"""A replica that has not ended so long after SIGTERM is killed."""
ASK_S: Final = 10.0
SPREAD_S: Final = 3.0


class Log:
    """Lines that are added to a file, from now on."""

    def __init__(self, file: Path) -> None:
        file.touch()
        self._file: BinaryIO = open(file, "rb")  # noqa: SIM115
        self._file.seek(0, os.SEEK_END)
        self._part = b""

    def lines(self) -> Iterator[str]:
        self._part += self._file.read()
        *whole, self._part = self._part.split(b"\n")
        yield from (line.decode(errors="replace") for line in whole)

    def close(self) -> None:
        self._file.close()


@dataclass(slots=True)
class Child:
    """A replica, its process if it has one, and what became of those before."""

    replica: Replica
    log: Log
    process: subprocess.Popen[bytes] | None = None
    restarts: Restarts = field(default_factory=Restarts)
    start_at: float = 0.0
    served_since: float | None = None
    given_up: bool = False
    leaving: bool = False
    """Another one takes its place: if it ends, that is that."""
    error: str = ""

    def told(self) -> dict[str, Any]:
        """What launcher.json has of it."""
        return {"restarts": self.restarts.count, "given_up": self.given_up, "error": self.error}


Say = Callable[[str, Mapping[str, Any]], None]
"""Gets an event and its fields: "log" (node, line), "started", "died", "given_up", "orphan", "trouble", "health",
"ready"."""


class Launcher:
    """Of one place. `run` is it; `stop` ends it, also from a signal handler."""

    def __init__(self, place: Place, say: Say) -> None:
        self._place = place
        self._say = say
        self._stopping = False
        self._children: list[Child] = []
        self._parted: list[subprocess.Popen[bytes]] = []
        self._health = Health.STOPPED
        self._ready = False
        self._looked_at = 0.0
        self._owned_since: float | None = None

    def stop(self) -> None:
        self._stopping = True

    def run(self) -> bool:
        """Until it is stopped, or all are given up. False: somebody was given up."""
        with _lock(self._place):
            try:
                for replica in self._place.replicas:
                    self._end_orphan(replica)
                self._children = [
                    Child(one, Log(one.log_file), leaving=one.node in self._place.leaving)
                    for one in self._place.replicas
                ]
                self._write()
                while not self._stopping and not all(child.given_up for child in self._children):
                    self._round()
                    time.sleep(PAUSE_S)
            finally:
                self._stop_all()
        return not any(child.given_up and not child.leaving for child in self._children)

    # --- a round ---

    def _round(self) -> None:
        now = time.monotonic()
        for child in self._children:
            code = None if child.process is None else child.process.poll()
            if code is not None:
                self._died(child, code, now)
            if child.process is None and not child.given_up and not child.leaving and now >= child.start_at:
                self._start(child)
        self._parted = [process for process in self._parted if process.poll() is None]
        self._hand_logs_on()
        if now - self._looked_at >= LOOK_S:
            self._looked_at = now
            self._look_for_others()
            self._see(look(self._place), now)

    def _look_for_others(self) -> None:
        """`kvsvr replace` makes a folder, and takes one away."""
        files = {one.config_file for one in self._place.replicas}
        if set(self._place.directory.glob("*/replica.toml")) == files:
            return
        try:
            self._place = find(self._place.directory)
        except UsageError as error:
            self._say("trouble", {"error": str(error)})
            return
        there = {child.replica.node: child for child in self._children}
        self._children = [
            there.pop(one.node) if one.node in there else Child(one, Log(one.log_file)) for one in self._place.replicas
        ]
        for child in self._children:
            child.leaving = child.replica.node in self._place.leaving
        for child in there.values():
            self._drop(child)
        self._write()

    def _drop(self, child: Child) -> None:
        child.log.close()
        if child.process is not None:
            child.process.terminate()
            child.process.send_signal(signal.SIGCONT)
            self._parted.append(child.process)

    def _start(self, child: Child) -> None:
        try:
            child.replica.status_file.unlink(missing_ok=True)  # What the one before it said is not said by this one.
            child.process = start(child.replica)
        except OSError as error:  # No memory or no processes now: that says nothing of the replica.
            child.start_at = time.monotonic() + LONGEST_S
            self._trouble(error)
            return
        child.served_since = None
        self._say("started", {"node": child.replica.node, "pid": child.process.pid})
        self._write()

    def _died(self, child: Child, code: int, now: float) -> None:
        served_s = 0.0 if child.served_since is None else now - child.served_since
        pause = child.restarts.died(code, served_s)
        child.process = None
        child.served_since = None
        report = Report.read(child.replica.status_file)
        why = report.error if report is not None and report.state is State.FAILED else ""
        child.error = ending(code) + (f": {why}" if why else "")
        child.given_up = pause is None or child.leaving
        child.start_at = now + (pause or 0.0)
        fields = {"node": child.replica.node, "error": child.error, "log": str(child.replica.log_file)}
        self._hand_logs_on()
        if not child.leaving:
            self._say("given_up" if child.given_up else "died", {**fields, "pause_s": pause})
        self._write()

    def _hand_logs_on(self) -> None:
        for child in self._children:
            for line in child.log.lines():
                self._say("log", {"node": child.replica.node, "line": line})

    def _see(self, status: SetStatus, now: float) -> None:
        for child, one in zip(self._children, status.replicas, strict=True):
            serves = one.state is State.SERVING
            child.served_since = (child.served_since or now) if serves else None
        if not self._ready and self._whole(status, now):
            self._ready = True
            self._health = status.state
            self._say("ready", {"status": status})
            self._write()
        elif self._ready and status.state is not self._health:
            self._health = status.state
            self._say("health", {"state": status.state})
            self._write()

    def _whole(self, status: SetStatus, now: float) -> bool:
        """Every replica serves that can be had, every shard has an owner, and a command gets its answer from each.

        Who came last owns nothing at first: that shards are spread is waited for, but not long.
        """
        there = [one for one in status.replicas if not one.given_up and not one.leaving]
        if status.state not in (Health.HEALTHY, Health.DEGRADED) or status.owned != status.shard_count:
            return False
        if any(one.state is not State.SERVING for one in there):
            return False
        self._owned_since = self._owned_since or now
        if any(one.shards == 0 for one in there) and now - self._owned_since < SPREAD_S:
            return False
        return all(answers(one.address) for one in there)

    def _write(self) -> None:
        said = {
            "pid": os.getpid(),
            "ready": self._ready,
            "replicas": {str(child.replica.node): child.told() for child in self._children},
        }
        draft = self._place.launcher_file.with_suffix(".new")
        try:
            draft.write_text(json.dumps(said), encoding="utf-8")
            os.replace(draft, self._place.launcher_file)
        except OSError as error:  # A full disk shall not end a set that may still serve.
            self._trouble(error)

    def _trouble(self, error: OSError) -> None:
        self._say("trouble", {"error": str(error)})

    # --- the ends ---

    def _end_orphan(self, replica: Replica) -> None:
        pid = running(replica)
        if pid is not None:
            self._say("orphan", {"node": replica.node, "pid": pid})
            end(replica)

    def _stop_all(self) -> None:
        """All at once: they notice that nobody stays who could take over, and hand nothing over."""
        there = [child for child in self._children if child.process is not None]
        for child in there:
            assert child.process is not None
            child.process.terminate()
            child.process.send_signal(signal.SIGCONT)  # One that was stopped would not hear the other.
        deadline = time.monotonic() + STOP_S
        for child in there:
            assert child.process is not None
            try:
                child.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()
        self._hand_logs_on()
        for child in self._children:
            child.log.close()


@contextlib.contextmanager
def _lock(place: Place) -> Iterator[None]:
    """One launcher for a place. The file keeps the name of who holds it."""
    with open(place.lock_file, "a+", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockedError(str(place.directory), launcher_pid(place) or 0) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def command(*arguments: str) -> list[str]:
    """`kvsvr` with these, by the Python that runs this."""
    return [sys.executable, "-m", "kvsvr.ops.cli", *arguments]


def start(replica: Replica) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    with open(replica.log_file, "ab") as log:
        return subprocess.Popen(
            command("serve", "--config", str(replica.config_file)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            env=environment,
            start_new_session=True,
        )


def end(replica: Replica) -> bool:
    """Ends whatever process serves it, child or not. False: there was none."""
    pid = running(replica)
    if pid is None:
        return False
    deadline = time.monotonic() + STOP_S
    _signal(pid, signal.SIGTERM)
    _signal(pid, signal.SIGCONT)
    while running(replica) == pid:
        if time.monotonic() >= deadline:
            _signal(pid, signal.SIGKILL)
        time.sleep(PAUSE_S)
    return True


def kill(replica: Replica) -> int | None:
    """SIGKILL for whatever process serves it. None: there was none."""
    pid = running(replica)
    if pid is not None:
        _signal(pid, signal.SIGKILL)
    return pid


def end_launcher(place: Place) -> int | None:
    """The launcher ends its replicas, and then itself. None: none runs."""
    pid = launcher_pid(place)
    if pid is None:
        return None
    _signal(pid, signal.SIGTERM)
    while launcher_pid(place) == pid:
        time.sleep(PAUSE_S)
    return pid


def answers(address: str) -> bool:
    """Whether a read gets its answer, which needs an owner and a majority behind it. Where a password is wanted, being
    told so has to do."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), ASK_S) as connection:
            connection.sendall(b"GET kvsvr:is-there-a-majority\r\n")
            return connection.recv(64).startswith((b"$", b"_", b"-NOAUTH"))
    except OSError:
        return False


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
