"""What a replica process says of itself in its status file, and how that is written and read.

A file, and no question over the wire: it can be read when the process hangs, is stopped or has died, and then its age
tells. It is replaced as a whole, so a reader finds one report or the next. It is not synced: after a loss of power
there is no process whose report it could be.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path


class State(StrEnum):
    """Of a replica process, as it sees itself."""

    STARTING = "starting"
    """It reads its log."""
    WAITING = "waiting"
    """It takes commands; some shards have no owner that it could ask: there is no majority, or not yet."""
    SERVING = "serving"
    STUCK = "stuck"
    """It is there, and does not come round: it is stopped, or its disk keeps it waiting."""
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"
    """It ended, and `error` says why."""
    DOWN = "down"
    """There is no such process, and it did not say that it ends. Of a report only for who reads it."""


@dataclass(frozen=True, slots=True)
class Report:
    """One replica process at one moment."""

    node: int
    pid: int
    address: str
    peer_address: str
    started: float
    time: float
    state: State
    error: str = ""
    figures: Mapping[str, int] = field(default_factory=dict)
    commits: Sequence[int] = ()
    """By shard: up to which version it knows the shard to be committed."""
    applied: Sequence[int] = ()
    owners: Sequence[int] = ()

    def write(self, file: Path) -> None:
        draft = file.with_name(file.name + ".new")
        draft.write_text(json.dumps(asdict(self)), encoding="utf-8")
        os.replace(draft, file)

    @staticmethod
    def read(file: Path) -> Report | None:
        """None: there is none, or not of this version."""
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            return Report(**{**found, "state": State(found["state"])})
        except (OSError, ValueError, TypeError, KeyError):
            return None


def pin_of(status_file: Path) -> Path:
    """The file whose lock whoever copies the replica's log holds (kvsvr/ops/set_backup.py)."""
    return status_file.with_suffix(".pin")
