"""Is this store, and the place it lies in, fit for work? Measures, judges, names the cure; changes nothing.

Each check is a function that yields Findings. The thresholds are at the top, so that they can be argued about.

The store is opened read-only, beside a writer if there is one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import statistics
import struct
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from kvsvr.config import Config
from kvsvr.errors import CorruptionError, DiskError, KvError, UsageError
from kvsvr.store import Engine
from kvsvr.store.catalog import FILE_NAME as CATALOG_NAME

SYNC_ROUND_COUNT: Final = 100
SYNC_SECONDS_MAX: Final = 2.0
SYNC_WRITE_SIZE: Final = 4096
SYNC_MEDIAN_WARN_MS: Final = 20.0
SYNC_P99_WARN_MS: Final = 200.0

FREE_FAIL_SIZE: Final = 128 << 20  # two segments of the largest kind: the next ones are made ahead of need
FREE_WARN_SHARE: Final = 0.1
FREE_WARN_SIZE: Final = 1 << 30

FILES_SPARE: Final = 64
MAPS_PER_FILE: Final = 2
REPLAY_WARN_SIZE: Final = 256 << 20  # four times what a store lets gather before it makes a checkpoint by itself

VOLATILE_KINDS: Final = {"tmpfs", "ramfs"}
REMOTE_KINDS: Final = {"nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "ceph", "glusterfs"}

# struct flock of Linux on 64 bits: type, whence, start, size, process.
_FLOCK: Final = struct.Struct("@hhqqi4x")


class Verdict(StrEnum):
    PASS = "PASS"
    WARN = "WARN"
    FAIL = "FAIL"
    DAMAGE = "DAMAGE"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. `cure` is empty where all is well; `figures` are what the verdict rests on."""

    check: str
    verdict: Verdict
    what: str
    cure: str = ""
    figures: dict[str, Any] | None = None


def examine(directory: Path) -> Iterator[Finding]:
    """The findings, as they come. UsageError if there is no store to look at, or one of a newer format."""
    if not directory.is_dir():
        raise UsageError(f"there is no store at {directory}: check the path")
    holder = lock_holder(directory)
    yield _lock(holder)
    yield from _store(directory, holder)
    yield _disk_sync(directory)
    yield _free_space(directory)
    yield from _limits(directory)


# --- the store ---


def lock_holder(directory: Path) -> int:
    """The process that has the store open for writing, -1 if it did not say which it is; 0: none."""
    try:
        descriptor = os.open(directory / "LOCK", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise DiskError(f"LOCK: {error.strerror}", path=str(directory), errno=error.errno or 0) from error
    try:
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, *_ = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))
        text = os.pread(descriptor, 32, 0).strip()
    finally:
        os.close(descriptor)
    if kind == fcntl.F_UNLCK:
        return 0
    # The lock belongs to an open file, not to a process: who took it has written its number.
    return int(text) if text.isdigit() else -1


def _lock(holder: int) -> Finding:
    what = f"process {holder} ({_program(holder)}) writes to it" if holder else "nobody writes to it"
    return Finding("lock", Verdict.PASS, what, figures={"holder": holder})


def _program(process: int) -> str:
    try:
        return Path(f"/proc/{process}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return "name unknown"


def _store(directory: Path, holder: int) -> Iterator[Finding]:
    try:
        with Engine(directory, Config(readonly=True)) as db:
            figures = db.stats()
    except CorruptionError as error:
        yield Finding("store", Verdict.DAMAGE, str(error), "restore it from a backup; keep the directory for a look")
        return
    except UsageError:
        raise
    except KvError as error:
        yield Finding("store", Verdict.FAIL, str(error), "the message says what to do")
        return
    count, size = figures["key_count"], figures["flow_size"]
    yield Finding("store", Verdict.PASS, f"opens: {count} keys, {size_text(size)} of records", figures=figures)
    yield _catalog(figures)
    yield _checkpoint(figures, holder, is_new=not (directory / CATALOG_NAME).exists())
    yield _file_system(directory, by_call=bool(figures["writes_by_call"]))


def _catalog(figures: dict[str, Any]) -> Finding:
    if figures["catalog"] is None:
        return Finding("catalog", Verdict.PASS, "whole, or not made yet")
    what = f"ignored: {figures['catalog']}; opening replays everything"
    return Finding("catalog", Verdict.WARN, what, "write a key and close the store: it is made anew")


def _checkpoint(figures: dict[str, Any], holder: int, *, is_new: bool) -> Finding:
    """A writer that closes makes a last checkpoint, so what is left to replay tells how the last one ended.

    `is_new`: there never was one. So restore leaves a store, and so does a first writer that was killed.
    """
    count, size = figures["replayed_count"], figures["since_checkpoint_size"]
    told = {name: figures[name] for name in ("replayed_count", "since_checkpoint_size", "used_checkpoint")}
    replayed = f"{count} records replayed since the last checkpoint ({size_text(size)})"
    if size > REPLAY_WARN_SIZE:
        cure = (
            "opening will be slow: close the store, or give it a smaller checkpoint_size; look in its log for failures"
        )
        return Finding("checkpoint", Verdict.WARN, replayed, cure, told)
    if count == 0 or holder:
        return Finding(
            "checkpoint", Verdict.PASS, replayed if holder else "closed cleanly: nothing to replay", figures=told
        )
    if is_new:
        what = f"none was made yet: just restored, or its first writer did not close it: {count} records replayed"
        cure = "nothing durable is lost; open and close it once: put a key, or import an empty file"
        return Finding("checkpoint", Verdict.WARN, what, cure, told)
    cure = (
        "nothing durable is lost; the system's log may say why it ended (kill, power, memory). Open and close it once"
    )
    return Finding("checkpoint", Verdict.WARN, f"the last writer did not close it: {replayed}", cure, told)


# --- the place ---


def _file_system(directory: Path, *, by_call: bool) -> Finding:
    kind = file_system_kind(directory)
    how = "write calls: it does not write mapped pages back in place" if by_call else "writes through mappings"
    figures = {"kind": kind, "writes_by_call": by_call}
    if kind in VOLATILE_KINDS:
        cure = "fine for tests; move the store to a disk to keep it"
        return Finding("file system", Verdict.WARN, f"{kind} is memory: gone when the machine restarts", cure, figures)
    if kind in REMOTE_KINDS:
        cure = "move the store to a local disk: locks and syncs are promises of the server's there"
        return Finding("file system", Verdict.WARN, f"{kind} is remote; {how}", cure, figures)
    return Finding("file system", Verdict.PASS, f"{kind}; {how}", figures=figures)


def file_system_kind(directory: Path) -> str:
    """As the kernel names it; the last mount on the longest way to the directory is the one that shows."""
    place = os.path.realpath(directory)
    kind, longest = "unknown", -1
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return kind
    for mount in mounts:
        before, _, after = mount.partition(" - ")
        point = before.split(" ")[4].replace("\\040", " ")
        inside = point == "/" or place == point or place.startswith(point + "/")
        if inside and len(point) >= longest:
            kind, longest = after.split(" ")[0], len(point)
    return kind


def _disk_sync(directory: Path) -> Finding:
    try:
        times = sorted(sync_times_ms(directory))
    except OSError as error:
        cure = "make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "run doctor as the user that writes"
        return Finding("disk sync", Verdict.WARN, f"cannot be measured: {error.strerror}", cure)
    median, p99 = statistics.median(times), times[min(len(times) - 1, len(times) * 99 // 100)]
    figures = {"median_ms": round(median, 3), "p99_ms": round(p99, 3), "count": len(times)}
    what = f"median {median:.2f} ms, p99 {p99:.2f} ms of {len(times)} syncs of {SYNC_WRITE_SIZE} bytes"
    if median > SYNC_MEDIAN_WARN_MS or p99 > SYNC_P99_WARN_MS:
        cure = "durable writes wait that long: use a faster disk, or find who else keeps it busy"
        return Finding("disk sync", Verdict.WARN, what, cure, figures)
    return Finding("disk sync", Verdict.PASS, what, figures=figures)


def sync_times_ms(directory: Path) -> list[float]:
    """How long fdatasync took for small writes behind one another: what one durable write waits for."""
    times: list[float] = []
    end = time.monotonic() + SYNC_SECONDS_MAX
    with tempfile.NamedTemporaryFile(dir=directory, prefix=".doctor-", buffering=0) as file:
        while len(times) < SYNC_ROUND_COUNT and time.monotonic() < end:
            file.write(b"\x5a" * SYNC_WRITE_SIZE)
            start = time.perf_counter()
            os.fdatasync(file.fileno())
            times.append((time.perf_counter() - start) * 1000)
    return times


def _free_space(directory: Path) -> Finding:
    facts = os.statvfs(directory)
    free, used = facts.f_bavail * facts.f_frsize, sum(size for size, _ in _files(directory))
    figures = {"free_size": free, "store_size": used}
    what = f"{size_text(free)} free, the store takes {size_text(used)}"
    if free < FREE_FAIL_SIZE:
        return Finding("free space", Verdict.FAIL, what, "make room now: writes are about to be refused", figures)
    if free < max(FREE_WARN_SIZE, used * FREE_WARN_SHARE):
        return Finding("free space", Verdict.WARN, what, "make room, or move the store to a larger disk", figures)
    return Finding("free space", Verdict.PASS, what, figures=figures)


def _limits(directory: Path) -> Iterator[Finding]:
    files = list(_files(directory))
    yield _limit(
        "open files",
        resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        len(files) + FILES_SPARE,
        "raise it: ulimit -n, or LimitNOFILE= of the service",
    )
    yield _limit(
        "address space",
        resource.getrlimit(resource.RLIMIT_AS)[0],
        2 * sum(size for _, size in files) + (1 << 30),
        "raise it: ulimit -v unlimited",
    )
    yield _limit("memory maps", _map_count_max(), MAPS_PER_FILE * len(files) + 1024, "raise vm.max_map_count (sysctl)")


def _limit(check: str, limit: int, needed: int, cure: str) -> Finding:
    figures = {"limit": None if limit == resource.RLIM_INFINITY else limit, "needed": needed}
    if limit == resource.RLIM_INFINITY:
        return Finding(check, Verdict.PASS, "unlimited here", figures=figures)
    what = f"{limit} allowed here, the store wants some {needed}"
    return (
        Finding(check, Verdict.PASS, what, figures=figures)
        if limit >= needed
        else Finding(check, Verdict.WARN, what, cure, figures)
    )


def _map_count_max() -> int:
    try:
        return int(Path("/proc/sys/vm/max_map_count").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return resource.RLIM_INFINITY


def _files(directory: Path) -> Iterator[tuple[int, int]]:
    """Of every file of the store: what it takes on disk, and its length."""
    for place, _, names in os.walk(directory):
        for name in names:
            try:
                status = os.lstat(os.path.join(place, name))
            except FileNotFoundError:
                continue  # A writer at work drops files.
            yield status.st_blocks * 512, status.st_size


def size_text(size: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
