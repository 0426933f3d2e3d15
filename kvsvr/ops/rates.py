"""What the replicas of a set do each second: how what they said of themselves last differs from what they said before.

Replicas write their reports at whole seconds (kvsvr/node/monitor.py), so there is no more than one figure for each. CPU
and memory are from /proc, at the moment somebody looks.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from kvsvr.node.report import Report
from kvsvr.ops.place import Place
from kvsvr.ops.status import SetStatus, look

KEPT: Final = 60
COUNTED: Final = ("commands", "forwarded", "errors", "syncs", "received_size", "sent_size")
"""Figures that only grow; each is told as so many a second."""
_CLOCK_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PAGE_SIZE: Final = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Rates:
    """Of one replica. What is not known yet, as with one report only, is not in `each_second`, or None."""

    each_second: Mapping[str, float]
    cpu: float | None
    """Cores."""
    memory_size: int | None


@dataclass(frozen=True, slots=True)
class Frame:
    """One look at the set."""

    status: SetStatus
    rates: Mapping[int, Rates]
    commands: tuple[float, ...]
    """Of all replicas, a second: at the looks so far, the newest last."""


class Rater:
    """Remembers what was seen last. `look` about once a second."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._reports: dict[int, tuple[Report | None, Report]] = {}
        self._cpu: dict[int, tuple[float, float]] = {}
        self._commands: deque[float] = deque(maxlen=KEPT)

    def look(self) -> Frame:
        status = look(self._place)
        for one in self._place.replicas:
            self._note(one.node, Report.read(one.status_file))
        rates = {one.id: self._rates(one.id, one.pid) for one in status.replicas}
        known = [found.each_second["commands"] for found in rates.values() if "commands" in found.each_second]
        if known:
            self._commands.append(sum(known))
        return Frame(status, rates, tuple(self._commands))

    def _note(self, node: int, report: Report | None) -> None:
        """A process that was started again counts from 0: what came before it is of another."""
        if report is None:
            self._reports.pop(node, None)
            return
        before = self._reports.get(node)
        if before is None or before[1].pid != report.pid:
            self._reports[node] = (None, report)
        elif before[1].time != report.time:
            self._reports[node] = (before[1], report)

    def _rates(self, node: int, pid: int | None) -> Rates:
        if pid is None or node not in self._reports:
            return Rates({}, None, None)
        before, last = self._reports[node]
        counted: dict[str, float] = {}
        if before is not None and last.time > before.time:
            for name in COUNTED:
                grown = last.figures.get(name, 0) - before.figures.get(name, 0)
                counted[name] = max(0, grown) / (last.time - before.time)
        return Rates(counted, self._cores(node, pid), _memory_size(pid))

    def _cores(self, node: int, pid: int) -> float | None:
        used, now = _cpu_seconds(pid), time.monotonic()
        before = self._cpu.get(node)
        if used is None:
            self._cpu.pop(node, None)
            return None
        self._cpu[node] = (used, now)
        if before is None or used < before[0] or now <= before[1]:
            return None
        return (used - before[0]) / (now - before[1])


def _cpu_seconds(pid: int) -> float | None:
    with suppress(OSError, ValueError, IndexError), open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _CLOCK_TICKS
    return None


def _memory_size(pid: int) -> int | None:
    """What it has in memory, pages of its log that the system keeps for it anyway left out."""
    with suppress(OSError, ValueError, IndexError), open(f"/proc/{pid}/statm", encoding="ascii") as file:
        fields = file.read().split()
        return (int(fields[1]) - int(fields[2])) * _PAGE_SIZE
    return None
