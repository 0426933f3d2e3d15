"""Backup and restore: a store's files as of one position, copied while it goes on, and made a store again.

The flow is the store, so a backup is its segments up to one durable position, and the value files. Index, runs and
catalog are left out: whoever opens the copy makes them anew. While the copy is made nothing leaves the directory (a
pin in C). Sealed segments are copied whole. Of the last one, only what lies before the position: of its header page
what it is, and which segments before it are gone, so that the copy knows neither of a watermark nor of a seal that lie
behind its end. The copy is a store that was not closed, and opens as one.

backup.json says what belongs to it, with a digest of every file; it comes last, so a directory without it is no backup.

A restored store goes on with versions far above those of the backup, and so above all that the original gave out since:
nobody takes a new version for one that was seen before.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO, Final

from kvsvr.config import Config
from kvsvr.errors import CorruptionError, DiskError, UsageError
from kvsvr.native import Handle
from kvsvr.store.catalog import sync_directory

__all__ = ["BackupReport", "backup", "copy_back", "copy_log", "new_directory", "restore"]

MANIFEST: Final = "backup.json"
FORMAT: Final = 1
DIRECTORIES: Final = ("flow", "values")
PIECE_SIZE: Final = 1 << 20
HEADER_SIZE: Final = 4096
HEADER_KEPT: Final = ((0, 512), (1536, 2048))
"""The header's first block, written when the segment was made, and its link. Between them are watermark and seal, which
speak of the end (docs/formats/flow.md)."""
_FILE: Final = re.compile(r"flow/[0-9a-f]{8}\.seg|values/[0-9a-f]{16}\.val")
VERSION_JUMP: Final = 1 << 40
"""A store would have to write a million records a second for twelve days after its backup to get so far."""

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""


@dataclass(frozen=True, slots=True)
class BackupReport:
    """What was copied."""

    path: str
    file_count: int
    size: int
    """Bytes of the files."""
    version: int
    """The newest in it."""
    seconds: float


def backup(
    path: str,
    destination: str | os.PathLike[str],
    end: tuple[int, int, int],
    pinned: Callable[[], object],
    *,
    progress: Progress | None = None,
) -> BackupReport:
    """Copies the store at `path` into a new directory. `end`: segment, offset and version of what is durable. `pinned`
    raises when it is no longer sure that nothing is removed: the store was closed."""
    with _disk_errors(destination):
        begun = time.monotonic()
        target, files = _copy_out(Path(path), destination, end[:2], pinned, progress)
        _check_end(Path(path), target, end[:2])
        _write_manifest(target, {"format": FORMAT, "version": end[2], "created": time.time(), "files": files})
        size = sum(file["size"] for file in files.values())
        return BackupReport(str(target), len(files), size, end[2], time.monotonic() - begun)


def copy_log(
    path: str, destination: str | os.PathLike[str], end: tuple[int, int], *, progress: Progress | None = None
) -> int:
    """Copies a log that only grows, a replica's, up to a position that is durable, into a new directory, with a
    manifest; the size. Who opens the copy finds out whether it is whole."""
    with _disk_errors(destination):
        target, files = _copy_out(Path(path), destination, end, lambda: None, progress)
        _write_manifest(target, {"format": FORMAT, "version": 0, "created": time.time(), "files": files})
        return sum(file["size"] for file in files.values())


def _copy_out(
    source: Path,
    destination: str | os.PathLike[str],
    end: tuple[int, int],
    pinned: Callable[[], object],
    progress: Progress | None,
) -> tuple[Path, dict[str, dict[str, Any]]]:
    target = _new_store(destination)
    segment, offset = end
    names = list(_names(source, segment))
    total = sum(offset if name == _segment_name(segment) else (source / name).stat().st_size for name in names)
    files: dict[str, dict[str, Any]] = {}
    done = 0
    for name in names:
        pinned()
        files[name] = _copy(source / name, target / name, offset if name == _segment_name(segment) else None)
        done += files[name]["size"]
        if progress is not None:
            progress(done, total)
    for directory in DIRECTORIES:
        sync_directory(target / directory)
    pinned()
    return target, files


def restore(
    source: str | os.PathLike[str], destination: str | os.PathLike[str], *, progress: Progress | None = None
) -> BackupReport:
    """Makes a store of a backup in a new directory, after comparing every file with its digest.

    The store's versions go on above those of the backup by 2 to the 40. CorruptionError: a file is not what was backed
    up; the new directory is then left as it is, and is no store to be used.
    """
    with _disk_errors(destination):
        begun = time.monotonic()
        target, manifest = _copy_in(Path(os.fspath(source)), destination, progress)
        handle = Handle(str(target), Config(), None, sequence_min=manifest["version"] + VERSION_JUMP)
        try:
            handle.close()
        finally:
            handle.free()
        size = sum(file["size"] for file in manifest["files"].values())
        return BackupReport(str(target), len(manifest["files"]), size, manifest["version"], time.monotonic() - begun)


def copy_back(
    source: str | os.PathLike[str], destination: str | os.PathLike[str], *, progress: Progress | None = None
) -> None:
    """What copy_log() made, in a new directory, every file compared with its digest: CorruptionError, as restore()."""
    with _disk_errors(destination):
        _copy_in(Path(os.fspath(source)), destination, progress)


def _copy_in(
    origin: Path, destination: str | os.PathLike[str], progress: Progress | None
) -> tuple[Path, dict[str, Any]]:
    manifest = _manifest(origin)
    target = _new_store(destination)
    total = sum(file["size"] for file in manifest["files"].values())
    done = 0
    for name, file in manifest["files"].items():
        try:
            same = _copy(origin / name, target / name, None) == file
        except FileNotFoundError:
            same = False
        if not same:
            raise CorruptionError(str(origin), f"{name} is not what was backed up: take another backup")
        done += file["size"]
        if progress is not None:
            progress(done, total)
    for directory in DIRECTORIES:
        sync_directory(target / directory)
    sync_directory(target)
    with suppress(PermissionError):  # As with a new store: who may not look into the parent cannot sync it.
        sync_directory(target.parent)
    return target, manifest


def _check_end(source: Path, copy: Path, end: tuple[int, int]) -> None:
    """The copy is read as an opener reads it. Its newest segment has neither seal nor watermark, so damage in it would
    pass for the end of the log, and all behind it for never written."""
    handle = Handle(str(copy), Config(readonly=True), None)
    try:
        found = handle.tail()
    finally:
        handle.free()
    if found != end:
        raise CorruptionError(str(source), "a record of the newest segment is damaged: verify() names it", found)


@contextmanager
def _disk_errors(destination: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        path = str(error.filename or os.fspath(destination))
        raise DiskError(f"{path}: {error.strerror}", path=path, errno=error.errno or 0) from error


def new_directory(directory: Path) -> None:
    """One that is not there, or has nothing in it. UsageError: neither."""
    try:
        directory.mkdir()
    except FileExistsError:
        if not directory.is_dir() or any(directory.iterdir()):
            raise UsageError(f"{directory} is there already: give a new or an empty directory") from None
    except FileNotFoundError:
        raise UsageError(f"{directory.parent} is not there: make it first") from None


def _new_store(path: str | os.PathLike[str]) -> Path:
    directory = Path(os.fspath(path))
    new_directory(directory)
    for name in DIRECTORIES:
        (directory / name).mkdir()
    return directory


def _segment_name(segment: int) -> str:
    return f"flow/{segment:08x}.seg"


def _names(source: Path, last: int) -> Iterator[str]:
    """What belongs to a copy that ends in segment `last`: later ones hold nothing yet that it needs."""
    for path in sorted((source / "flow").glob("*.seg")):
        if int(path.stem, 16) <= last:
            yield f"flow/{path.name}"
    with suppress(FileNotFoundError):
        for path in sorted((source / "values").glob("*.val")):
            yield f"values/{path.name}"


def _copy(source: Path, target: Path, end: int | None) -> dict[str, Any]:
    """Copies a file, durably; its size and digest. `end`: a segment that goes on behind it."""
    digest = blake2b(digest_size=32)
    size = 0
    with open(source, "rb") as reading, open(target, "wb") as writing:
        for piece in _pieces(reading, end):
            digest.update(piece)
            size += writing.write(piece)
        writing.flush()
        os.fsync(writing.fileno())
    return {"size": size, "blake2b": digest.hexdigest()}


def _pieces(file: BinaryIO, end: int | None) -> Iterator[bytes]:
    left = end
    if left is not None:
        page = file.read(HEADER_SIZE)
        kept = bytearray(HEADER_SIZE)
        for start, stop in HEADER_KEPT:
            kept[start:stop] = page[start:stop]
        yield bytes(kept)
        left -= HEADER_SIZE
    while piece := file.read(PIECE_SIZE if left is None else min(PIECE_SIZE, left)):
        yield piece
        if left is not None:
            left -= len(piece)


def _write_manifest(directory: Path, content: dict[str, Any]) -> None:
    sync_directory(directory)  # First what it vouches for.
    with open(directory / MANIFEST, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    sync_directory(directory)


def _manifest(directory: Path) -> dict[str, Any]:
    try:
        with open(directory / MANIFEST, encoding="utf-8") as file:
            content = json.load(file)
        if content["format"] != FORMAT:
            raise UsageError(f"{directory} was backed up by a newer kvsvr: upgrade this one")
        if not all(_FILE.fullmatch(name) for name in content["files"]):
            raise ValueError("it names files that no backup has")
        files = {
            str(name): {"size": int(of["size"]), "blake2b": str(of["blake2b"])} for name, of in content["files"].items()
        }
        return {"version": int(content["version"]), "files": files}
    except FileNotFoundError:
        raise UsageError(f"{directory} holds no {MANIFEST}: it is no backup, or one that was not finished") from None
    except UsageError:
        raise  # Which is a ValueError, too.
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptionError(str(directory), f"{MANIFEST} cannot be read ({error}): take another backup") from None
