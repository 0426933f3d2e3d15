"""Backup of a set while it runs, and a new set of a backup (docs/decisions/0051 says what that is, and what not).

    BACKUP/set.json     what set it is of; written last, so a directory without it is no backup
    BACKUP/1/           the log of replica 1 up to a position, and backup.json with a digest of every file

To restore it, the copies are started as the set they were, in DIR.restoring and on ports of their own; what they agree
on is read from them and written to the new set in DIR.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from kvsvr.client import connect
from kvsvr.errors import CorruptionError, KvError, UsageError
from kvsvr.node.monitor import WAIT_MS
from kvsvr.node.report import Report, State, pin_of
from kvsvr.ops import launcher
from kvsvr.ops.place import Place, Replica, free_base, make
from kvsvr.ops.status import look, running
from kvsvr.ops.transfer import dump, load
from kvsvr.store import Engine
from kvsvr.store.backup import copy_back, copy_log, new_directory

MANIFEST: Final = "set.json"
FORMAT: Final = 1
REPORT_S: Final = 5.0
"""So long a replica has to say how far its log is durable; it does each second."""
SERVE_S: Final = 120.0
CALL_S: Final = 30.0
KEPT: Final = ("durability", "inline_max")
"""Settings that a restored set has, too."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class SetBackup:
    """What was copied."""

    path: str
    copied: Sequence[int]
    """Replicas."""
    left_out: Sequence[int]
    """That said nothing, or not in time; never so many that something acknowledged could be missing."""
    size: int
    seconds: float


@dataclass(frozen=True, slots=True)
class SetRestored:
    """The new set, which does not run."""

    path: str
    replicas: int
    written_count: int
    """Keys and rows."""
    expired_count: int
    seconds: float


# --- backup ---


def backup(place: Place, destination: Path, say: Say = lambda text: None) -> SetBackup:
    """KvError: there is no majority that could be copied."""
    with ExitStack() as pins:
        for one in place.replicas:
            pins.enter_context(_pinned(one))
        return _backup(place, destination, say)


def _backup(place: Place, destination: Path, say: Say) -> SetBackup:
    begun, wall = time.monotonic(), time.time()
    ends = {one.node: _end(one, wall) for one in place.replicas}
    copied = [node for node, end in ends.items() if end is not None]
    if 2 * len(copied) <= len(ends):
        raise KvError(
            f"{place.directory}: only {len(copied)} of {len(ends)} replicas say how far their log is durable, which is "
            "no majority: kvsvr status says what they lack"
        )
    new_directory(destination)
    size = 0
    for node in copied:
        end = ends[node]
        assert end is not None
        say(f"replica {node}")
        size += copy_log(str(place.replica(node).config.directory), destination / str(node), end.position)
        if _life(place.replica(node)) != end.life:
            raise KvError(
                f"replica {node} was started or ended while it was copied, which may have let go of segments: "
                f"remove {destination}, and begin again"
            )
    config = place.replicas[0].config
    content = {
        "format": FORMAT,
        "created": wall,
        "set": config.set_name,
        "shards": config.shard_count,
        "nodes": [one.node for one in place.replicas],
        "copied": copied,
        "settings": {name: str(getattr(config, name)) for name in KEPT},
    }
    _write(destination / MANIFEST, content)
    left_out = [node for node in ends if node not in copied]
    return SetBackup(str(destination), copied, left_out, size, time.monotonic() - begun)


@contextmanager
def _pinned(replica: Replica) -> Iterator[None]:
    """No segment of its log goes meanwhile, from its next report on."""
    with open(pin_of(replica.status_file), "ab") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


@dataclass(frozen=True, slots=True)
class _End:
    position: tuple[int, int]
    """Segment and offset up to which the log is durable."""
    life: float | None
    """When its process began; None: it does not run."""


def _life(replica: Replica) -> float | None:
    report = Report.read(replica.status_file)
    return None if report is None or running(replica) is None else report.started


def _end(replica: Replica, since: float) -> _End | None:
    """As of a moment after `since`. None: it does not say."""
    deadline = time.monotonic() + REPORT_S
    if running(replica) is None:
        return _end_of_files(replica)
    while time.monotonic() < deadline:
        report = Report.read(replica.status_file)
        # A second more, because its figures may be that much older than itself.
        if report is not None and report.time > since + WAIT_MS / 1000 and report.figures.get("pinned"):
            durable = report.figures["durable"]
            return _End((durable >> 32, durable & 0xFFFFFFFF), report.started)
        time.sleep(launcher.PAUSE_S)
    return None


def _end_of_files(replica: Replica) -> _End | None:
    """Of one that does not run: all there is. What was being written when it ended is found and cut by who opens it."""
    segments = sorted((replica.config.directory / "flow").glob("*.seg"))
    return _End((int(segments[-1].stem, 16), segments[-1].stat().st_size), None) if segments else None


def _write(file: Path, content: dict[str, Any]) -> None:
    with open(file, "w", encoding="utf-8") as stream:
        json.dump(content, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())


# --- restore ---


def is_backup(directory: Path) -> bool:
    return (directory / MANIFEST).is_file()


def restore(source: Path, destination: Path, count: int | None, port: int, say: Say = lambda text: None) -> SetRestored:
    """A new set of `count` replicas; of as many as there were. CorruptionError: a file is not what was copied, or the
    copies make no set any more."""
    begun = time.monotonic()
    content = _manifest(source)
    nodes: list[int] = content["nodes"]
    old_place = destination.with_name(destination.name + ".restoring")
    if old_place.exists():
        raise UsageError(f"{old_place} is left of a restore that was interrupted: remove it")
    settings = {name: str(content["settings"][name]) for name in KEPT}
    count = len(nodes) if count is None else count
    try:
        old = make(old_place, len(nodes), free_base(len(nodes)), {**settings, "shards": str(content["shards"])}, nodes)
        for node in content["copied"]:
            say(f"copying replica {node}")
            copy_back(source / str(node), old.replica(node).config.directory)
        new = make(destination, count, port, settings)
        say("starting the copies, and the new set")
        with served(old, content["copied"]) as origin, served(new, [one.node for one in new.replicas]) as target:
            written, expired = _transfer(origin, target, say)
    finally:
        shutil.rmtree(old_place, ignore_errors=True)
    return SetRestored(str(destination), count, written, expired, time.monotonic() - begun)


def _manifest(source: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads((source / MANIFEST).read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise UsageError(f"{source} was backed up by a newer kvsvr: upgrade this one")
        if not 2 * len(content["copied"]) > len(content["nodes"]) or not set(content["copied"]) <= set(
            content["nodes"]
        ):
            raise ValueError("it names no majority")
        return {**content, "shards": int(content["shards"]), "settings": dict(content["settings"])}
    except FileNotFoundError:
        raise UsageError(f"{source} holds no {MANIFEST}: it is no backup of a set, or not a whole one") from None
    except UsageError:
        raise  # Which is a ValueError, too.
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptionError(str(source), f"{MANIFEST} cannot be read ({error}): take another backup") from None


@contextmanager
def served(place: Place, nodes: Sequence[int]) -> Iterator[str]:
    """These replicas run, and every shard has an owner: their addresses. All end with the block."""
    replicas = [place.replica(node) for node in nodes]
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for one in replicas:
            processes.append(launcher.start(one))
        deadline = time.monotonic() + SERVE_S
        while not _serves(place, nodes):
            failed = [one for one in look(place).replicas if one.state is State.FAILED]
            if failed:
                raise CorruptionError(str(place.directory), f"replica {failed[0].id} does not start: {failed[0].error}")
            if time.monotonic() >= deadline:
                raise KvError(f"{place.directory} is no set after {SERVE_S:g} s: its log.jsonl files say why")
            time.sleep(launcher.PAUSE_S)
        yield ",".join(one.address for one in replicas)
    finally:
        for one in replicas:
            launcher.end(one)
        for process in processes:
            process.wait()


def _serves(place: Place, nodes: Sequence[int]) -> bool:
    status = look(place)
    there = [one for one in status.replicas if one.id in nodes]
    return status.owned == status.shard_count and all(one.state is State.SERVING for one in there)


def _transfer(origin: str, target: str, say: Say) -> tuple[int, int]:
    written = expired = 0
    with connect(origin, timeout=CALL_S) as old, connect(target, timeout=CALL_S) as new:
        for done in load(cast(Engine, new), dump(cast(Engine, old))):  # They have the same calls.
            written, expired = done.written_count, done.expired_count
            say(f"{written} keys and rows written")
    return written, expired
