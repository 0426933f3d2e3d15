"""How a set of one machine is: from what its replicas and the launcher wrote, and the process table.

Nobody is asked, so a process that hangs is seen as well as one that answers: its report is old.

    lag     versions that some replica knows to be committed and this one has not applied, over all shards. All write
            their reports at the same moment, so it is near 0 also while there are many writes. None: it made no report.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from kvsvr.node.report import Report, State
from kvsvr.ops.place import Place, Replica

STALE_S: Final = 3.0
"""A report of a living process that is older than this is one of a process that hangs."""


class Health(StrEnum):
    """Of the set."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    """A majority serves, and somebody does not."""
    UNAVAILABLE = "unavailable"
    STOPPED = "stopped"
    """No process of it is there."""


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """One replica, as it is found."""

    id: int
    pid: int | None
    address: str
    state: State
    shards: int
    voting: int
    """Shards in which it has a vote: not those that it only learns, nor those with a damaged record it waits for."""
    lag: int | None
    clients: int
    links: int
    commands: int
    restarts: int
    given_up: bool
    leaving: bool
    """Another one takes its place."""
    age: float | None
    """Seconds since it said something; None: it never did."""
    error: str


@dataclass(frozen=True, slots=True)
class SetStatus:
    """All of them."""

    directory: str
    state: Health
    launcher: int | None
    shard_count: int
    replicas: Sequence[ReplicaStatus]

    @property
    def owned(self) -> int:
        return sum(one.shards for one in self.replicas)


def look(place: Place, now: float | None = None) -> SetStatus:
    now = time.time() if now is None else now
    launcher = _launcher(place)
    reports = {one.node: Report.read(one.status_file) for one in place.replicas}
    newest = _newest(report for report in reports.values() if report is not None)
    replicas = [
        _replica(one, reports[one.node], newest, launcher.get(str(one.node), {}), now, one.node in place.leaving)
        for one in place.replicas
    ]
    return SetStatus(
        directory=str(place.directory),
        state=_health(replicas, place.replicas[0].config.shard_count),
        launcher=launcher_pid(place),
        shard_count=place.replicas[0].config.shard_count,
        replicas=replicas,
    )


def running(replica: Replica) -> int | None:
    """The process that serves it, also one that has said nothing yet."""
    report = Report.read(replica.status_file)
    if report is not None and _serves(report.pid, replica):
        return report.pid
    return next((int(name) for name in os.listdir("/proc") if name.isdigit() and _serves(int(name), replica)), None)


def _serves(pid: int, replica: Replica) -> bool:
    """A number alone may by now be another process': its command line has to name our file."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return os.fsencode(replica.config_file) in file.read().split(b"\0")
    except OSError:
        return False


def launcher_pid(place: Place) -> int | None:
    """Who holds the launcher's lock."""
    with suppress(OSError, ValueError), open(place.lock_file, "r+", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return int(file.read())
    return None


def _launcher(place: Place) -> dict[str, Any]:
    """What it says of each replica; of one that is gone, nothing that still holds."""
    if launcher_pid(place) is None:
        return {}
    with suppress(OSError, ValueError, KeyError):
        found = json.loads(place.launcher_file.read_text(encoding="utf-8"))["replicas"]
        return found if isinstance(found, dict) else {}
    return {}


def _newest(reports: Any) -> list[int]:
    """By shard: the highest version that anybody knows to be committed."""
    found: list[int] = []
    for report in reports:
        commits = list(report.commits)
        found = [max(pair) for pair in zip(found, commits, strict=False)] if found and commits else found or commits
    return found


def _replica(
    one: Replica, report: Report | None, newest: list[int], told: dict[str, Any], now: float, leaving: bool
) -> ReplicaStatus:
    alive = report is not None and _serves(report.pid, one)
    state = State.DOWN if report is None else _state(report, alive, now)
    figures = report.figures if report is not None and alive else {}
    lag = None
    if report is not None and report.applied:
        lag = sum(max(0, high - low) for high, low in zip(newest, report.applied, strict=False))
    error = report.error if report is not None and state is State.FAILED else ""
    return ReplicaStatus(
        id=one.node,
        pid=report.pid if report is not None and alive else None,
        address=one.address,
        state=state,
        shards=figures.get("shards_owned", 0) if state is State.SERVING or state is State.WAITING else 0,
        voting=figures.get("shards_voting", 0) if state is State.SERVING or state is State.WAITING else 0,
        lag=lag,
        clients=figures.get("clients", 0),
        links=figures.get("links", 0),
        commands=figures.get("commands", 0),
        restarts=int(told.get("restarts", 0)),
        given_up=bool(told.get("given_up", False)),
        leaving=leaving,
        age=None if report is None else max(0.0, now - report.time),
        error=error or str(told.get("error", "")),
    )


def _state(report: Report, alive: bool, now: float) -> State:
    ended = report.state in (State.STOPPED, State.FAILED)
    if not alive:
        return report.state if ended else State.DOWN
    # A replay may take longer, and its process has nobody yet who would write.
    if now - report.time > STALE_S and not ended and report.state is not State.STARTING:
        return State.STUCK
    return report.state


def _health(replicas: Sequence[ReplicaStatus], shard_count: int) -> Health:
    """Of those that stay; with one that does not vote everywhere yet, the next failure may be one too many."""
    staying = [one for one in replicas if not one.leaving]
    serving = sum(one.state is State.SERVING for one in staying)
    if serving == len(staying) and all(one.voting == shard_count for one in staying):
        return Health.HEALTHY
    if 2 * serving > len(staying):
        return Health.DEGRADED
    return Health.UNAVAILABLE if any(one.pid is not None for one in replicas) else Health.STOPPED
