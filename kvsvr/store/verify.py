"""Verify: is the store what was written? And salvage: what is left of one that is not, into a new store.

Two read-only openers look at the same files up to the same position. One opens as every opener does, from the newest
checkpoint. The other believes nothing but the flow: it reads every record there is, verifies it, goes on behind what is
damaged and notes it, and builds index, order and counters anew. Then both are asked for everything, and must agree.
Each also recounts what its index points at, and compares that with its counters.

So damage in the flow, in value files, index files and runs is found, and so is a shortcut that says something else than
the flow. Nothing is changed on the disk.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from heapq import merge
from itertools import groupby
from pathlib import Path
from struct import Struct
from typing import Any, Final

from kvsvr.config import Config
from kvsvr.errors import CorruptionError, LockedError, UsageError
from kvsvr.native import Handle
from kvsvr.store.catalog import Catalog
from kvsvr.store.reads import Reads
from kvsvr.store.steps import audit
from kvsvr.store.table import TableReads
from kvsvr.types import BytesLike, Versioned

Progress = Callable[[int, int], None]
"""Called with names looked at and names in all."""

Position = tuple[int, int]
EVERYTHING: Final = (0, 0)
PROGRESS_EVERY: Final = 256
LOCK_NAME: Final = "LOCK"
_LOCK: Final = Struct("hhqqi4x")  # struct flock, as Linux has it on 64 bits
FINDINGS_MAX: Final = 1000
"""More than so many differences say no more."""


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes that are not what was written."""

    file: str
    offset: int
    size: int
    """0: unknown, or a file that is missing."""
    what: str


@dataclass(slots=True)
class Report:
    """What verify found."""

    path: str
    damages: list[Damage] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    """Where index, order or counters say something else than the flow."""
    notes: list[str] = field(default_factory=list)
    """What every opener does without, and makes anew: a catalog or checkpoint that cannot be used. No damage."""
    key_count: int = 0
    table_count: int = 0
    row_count: int = 0
    record_count: int = 0
    """Records of the flow, dead ones included."""
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return not self.damages and not self.differences


class _View(Reads):
    """Reads from a handle of its own."""

    __slots__ = ("_handle",)

    _handle: Handle

    def __init__(self, handle: Handle) -> None:
        self._handle = handle

    def table(self, key: BytesLike) -> TableReads:
        return TableReads(self._handle, key)

    @property
    def name_count(self) -> int:
        return sum(self._handle.measure_one(name) for name in ("key_count", "table_count", "row_count"))


def verify(path: str | os.PathLike[str], *, progress: Progress | None = None) -> Report:
    """Of a store that nobody has open for writing: else LockedError, and its writer calls Engine.verify."""
    directory = os.fspath(path)
    with alone(directory):
        try:
            kept: Handle | CorruptionError = open_kept(directory)
        except CorruptionError as error:
            kept = error
        return compare(directory, kept, notes=_notes(directory, kept), progress=progress)


@contextmanager
def alone(directory: str) -> Iterator[None]:
    """No writer opens the store meanwhile: the lock that it would take is taken. It is not, where it cannot be."""
    try:
        descriptor = os.open(os.path.join(directory, LOCK_NAME), os.O_RDWR | os.O_CLOEXEC)
    except OSError:  # No writer was ever there, or this is a copy that may not be written to.
        yield
        return
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        yield
    except (BlockingIOError, PermissionError):
        holder = os.read(descriptor, 20).strip()
        raise LockedError(directory, int(holder) if holder.isdigit() else 0) from None
    finally:
        os.close(descriptor)


def _notes(directory: str, kept: Handle | CorruptionError) -> list[str]:
    catalog = Catalog(directory)
    described = catalog.checkpoint()
    notes = [] if catalog.note is None else [f"the catalog is not used: {catalog.note}"]
    if described is not None and isinstance(kept, Handle) and not kept.measure_one("used_checkpoint"):
        notes.append("the checkpoint does not fit the flow or its files: the flow was read instead")
    return notes


def open_kept(path: str, *, until: Position = EVERYTHING) -> Handle:
    """As every opener does it."""
    return Handle(path, Config(readonly=True), Catalog(path).checkpoint(), until=until)


def compare(
    path: str,
    kept: Handle | CorruptionError,
    *,
    until: Position = EVERYTHING,
    notes: list[str] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Compares what an opener got, which is given back, with what the flow holds up to a position."""
    begun = time.monotonic()
    report = Report(path, notes=notes or [])
    try:
        rebuilt = Handle(path, Config(readonly=True), None, salvage=True, until=until)
        try:
            report.damages += _damages(rebuilt)
            report.record_count = rebuilt.measure_one("replayed_count")
            report.differences += [f"rebuilt from the flow: {line}" for line in audit(rebuilt)]
            listed = False
            if isinstance(kept, CorruptionError):
                if not report.damages:
                    report.damages.append(Damage("", 0, 0, str(kept)))
            else:
                try:
                    report.differences += audit(kept)
                except CorruptionError as error:
                    report.damages.append(Damage("index", 0, 0, f"a file of the index: {error.what}"))
                listed = _Comparison(report, _View(kept), _View(rebuilt), progress).run()
            if not listed:  # What is left is read all the same: value files may be damaged, too.
                _Comparison(report, _View(rebuilt), _View(rebuilt), progress).run()
        finally:
            rebuilt.free()
    finally:
        if isinstance(kept, Handle):
            kept.free()
    report.seconds = time.monotonic() - begun
    return report


def _damages(handle: Handle) -> list[Damage]:
    return [Damage(f"flow/{segment:08x}.seg", offset, size, what) for segment, offset, size, what in handle.damages()]


def _union(left: Iterator[bytes], right: Iterator[bytes]) -> Iterator[bytes]:
    """Names in order that one of them lists, or both."""
    return (name for name, _ in groupby(merge(left, right)))


class _Comparison:
    """Asks both for everything, one name at a time, so that one that is damaged hides no other."""

    def __init__(self, report: Report, kept: _View, rebuilt: _View, progress: Progress | None) -> None:
        self._report = report
        self._kept = kept
        self._rebuilt = rebuilt
        self._progress = progress
        self._done = 0
        self._total = kept.name_count

    def run(self) -> bool:
        """False: a name could not be listed, nor those behind it."""
        self._report.key_count = self._report.table_count = self._report.row_count = 0
        try:
            listed = _listed(self._kept, self._rebuilt)
            for key in listed:
                self._report.key_count += 1
                self._same(f"key {key!r}", lambda view, key=key: view.get_versioned(key))  # type: ignore[misc]
            for key in _union(self._kept.tables(), self._rebuilt.tables()):
                self._report.table_count += 1
                self._table(key)
        except CorruptionError as error:
            self._damaged(error)
            return False
        return True

    def _table(self, key: bytes) -> None:
        self._same(f"table {key!r}", lambda view: (view.table(key).version, len(view.table(key))))
        for row in _union(iter(self._kept.table(key)), iter(self._rebuilt.table(key))):
            self._report.row_count += 1
            self._same(
                f"table {key!r}, row {row!r}",
                lambda view, row=row: view.table(key).get_versioned(row),  # type: ignore[misc]
            )

    def _same(self, what: str, ask: Callable[[_View], object]) -> None:
        self._done += 1
        if self._progress is not None and self._done % PROGRESS_EVERY == 0:
            self._progress(self._done, max(self._done, self._total))
        try:
            before, rebuilt, after = ask(self._kept), ask(self._rebuilt), None
            if before != rebuilt:
                after = ask(self._kept)  # It may have expired between the two.
            if before != rebuilt != after and len(self._report.differences) < FINDINGS_MAX:
                self._report.differences.append(f"{what} is not as the flow has it")
        except CorruptionError as error:
            self._damaged(error)

    def _damaged(self, error: CorruptionError) -> None:
        segment, offset = error.position or (0, 0)
        found = Damage(f"flow/{segment:08x}.seg" if segment else "", offset, 0, str(error))
        damages = self._report.damages
        known = any(one.file == found.file and one.offset <= offset < one.offset + one.size for one in damages)
        if not known and found not in damages and len(damages) < FINDINGS_MAX:
            damages.append(found)


def _listed(kept: _View, rebuilt: _View) -> Iterator[bytes]:
    return _union(kept.keys(), rebuilt.keys())


# --- salvage ---


@dataclass(slots=True)
class Salvage:
    """What was saved, and what was not."""

    path: str
    damages: list[Damage]
    key_count: int = 0
    table_count: int = 0
    row_count: int = 0
    lost: list[str] = field(default_factory=list)
    """Names that are there and whose value cannot be read."""


def salvage(
    source: str | os.PathLike[str], destination: str | os.PathLike[str], *, progress: Progress | None = None
) -> Salvage:
    """Copies everything that can be read from a damaged store into a new one; nothing is changed in the source.

    Where a record is lost, so is its name, and an older value of its key may be the newest that is left: the damages
    say where to look. Versions begin anew; expiries stay. LockedError: somebody has it open for writing.
    """
    from kvsvr.store.engine import open as open_store  # Which imports this module, for Engine.verify.

    origin, target = Path(os.fspath(source)), Path(os.fspath(destination))
    if not origin.is_dir():
        raise UsageError(f"there is no store at {origin}: check the path")
    if target.exists() and any(target.iterdir()):
        raise UsageError(f"{target} is not empty: give a new or an empty directory")
    with alone(str(origin)):
        return _salvage(origin, target, open_store, progress)


def _salvage(origin: Path, target: Path, open_store: Callable[[Path], Any], progress: Progress | None) -> Salvage:
    handle = Handle(str(origin), Config(readonly=True), None, salvage=True)
    try:
        result = Salvage(str(target), _damages(handle))
        view = _View(handle)
        with open_store(target) as db:
            for done, (key, row, found) in enumerate(_left_over(view, result), 1):
                ttl = _left(found.expires_at)
                if row is None:
                    db.put(key, found.value, ttl=ttl)
                else:
                    db.table(key).put(row, found.value, ttl=ttl)
                if progress is not None and done % PROGRESS_EVERY == 0:
                    progress(done, max(done, view.name_count))
            for key in view.tables():  # Behind their rows, the first of which brought them into being.
                ttl = _left(view.table(key).expires_at)
                if ttl is not None:
                    db.expire(key, ttl)
        return result
    finally:
        handle.free()


def _left(expires_at: float | None) -> float | None:
    return None if expires_at is None else max(0.001, expires_at - time.time())


def _left_over(view: _View, result: Salvage) -> Iterator[tuple[bytes, bytes | None, Versioned]]:
    """Key, row if it is one, and value of all that can be read."""
    for key in view:
        found = _saved(result, f"key {key!r}", view.get_versioned, key)
        if found is not None:
            result.key_count += 1
            yield key, None, found
    for key in view.tables():
        result.table_count += 1
        table = view.table(key)
        for row in table:
            found = _saved(result, f"table {key!r}, row {row!r}", table.get_versioned, row)
            if found is not None:
                result.row_count += 1
                yield key, row, found


def _saved(result: Salvage, what: str, read: Callable[[BytesLike], Versioned | None], name: bytes) -> Versioned | None:
    try:
        return read(name)
    except CorruptionError as error:
        result.lost.append(f"{what}: {error}")
        return None
