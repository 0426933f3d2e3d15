"""The catalog: what is small and must change as one, in an LMDB environment beside the flow. Sole importer of lmdb.

It is a shortcut, never the only copy: today it holds the description of the newest checkpoint, without which an
opener replays the whole flow and comes to the same state. So damage here is noted and otherwise ignored, and the
next write makes the file anew.

LMDB trusts its pages: a flipped bit or a file cut short under its mapping is a wild pointer or a SIGBUS, not an
error. It therefore never maps the file itself. The file is read whole, checked by a digest that this module adds
behind LMDB's pages, and copied to anonymous memory (memfd), and LMDB opens that. A change runs the other way: a
transaction in memory, then a new file, synced, renamed over the old one, the directory synced. Hence

  - the file is whole and of one moment for whoever opens it, other processes and read-only openers included;
  - nothing stays open between calls: no environment is opened twice, or taken across a fork, or locked;
  - a read-only opener writes nothing.

The price is that a change costs the size of the file, which SIZE_MAX bounds, and two syncs. It is paid once a
checkpoint. Byte table and damage: docs/formats/catalog.md. Threads: one at a time, which the owner sees to.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from struct import Struct
from typing import Final

import lmdb

FILE_NAME: Final = "catalog.mdb"
NEW_NAME: Final = "catalog.new"
SIZE_MAX: Final = 16 << 20

_MAGIC: Final = b"kvsvrcat"
_FORMAT: Final = 1
_HEAD: Final = Struct("<8sIIQ")  # magic, format, zero, size of LMDB's pages
_DIGEST_SIZE: Final = 32
TRAILER_SIZE: Final = _HEAD.size + _DIGEST_SIZE

CHECKPOINT_KEY: Final = b"checkpoint.1"
"""The number is the version of what the value means: a description of another make gets another key."""


class Catalog:
    """The catalog of one store directory. `note` says why it could not be used the last time it was looked at."""

    def __init__(self, directory: str) -> None:
        self._directory = Path(directory)
        self.note: str | None = None

    def checkpoint(self) -> bytes | None:
        """What the newest published checkpoint said of itself; None if there is none, or none to be trusted."""
        pages = self._read()
        if pages is None:
            return None
        try:
            with _environment(pages, readonly=True) as (environment, _), environment.begin() as transaction:
                value = transaction.get(CHECKPOINT_KEY)
        except (lmdb.Error, OSError) as error:
            self.note = f"LMDB refuses it: {error}"
            return None
        return None if value is None else bytes(value)

    def put_checkpoint(self, description: bytes) -> None:
        """Keeps a description in place of the one before; durable when this returns.

        OSError: it may have taken its place or not (the rename may be done, and only the directory's sync have failed);
        what a reader finds is whole in either case.
        """
        self._change(CHECKPOINT_KEY, description)

    def forget_checkpoint(self) -> None:
        """The checkpoint proved to be damaged: the next opener shall replay everything."""
        self._change(CHECKPOINT_KEY, None)

    def _change(self, key: bytes, value: bytes | None) -> None:
        pages = self._read() or b""
        try:
            pages = _changed(pages, key, value)
        except lmdb.Error:
            pages = _anew(key, value)  # Pages LMDB cannot use: begin a new file.
        self._write(pages)
        self.note = None

    def _read(self) -> bytes | None:
        """LMDB's pages, checked; None with a note if there is a file that is not what was written."""
        self.note = None
        try:
            with open(self._directory / FILE_NAME, "rb") as file:
                content = file.read(SIZE_MAX + TRAILER_SIZE + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            self.note = f"it cannot be read: {error.strerror}"
            return None
        self.note = _complaint(content)
        return None if self.note else content[:-TRAILER_SIZE]

    def _write(self, pages: bytes) -> None:
        new = self._directory / NEW_NAME
        try:
            with open(new, "wb") as file:
                file.write(pages + _trailer(pages))
                file.flush()
                os.fsync(file.fileno())
            os.replace(new, self._directory / FILE_NAME)
        except OSError:
            with suppress(OSError):
                os.unlink(new)
            raise
        sync_directory(self._directory)


def sync_directory(directory: str | os.PathLike[str]) -> None:
    """Makes the names in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _trailer(pages: bytes) -> bytes:
    head = _HEAD.pack(_MAGIC, _FORMAT, 0, len(pages))
    return head + blake2b(pages + head, digest_size=_DIGEST_SIZE).digest()


def _complaint(content: bytes) -> str | None:
    """Why the content of the file is not to be trusted; None if it is what was written."""
    if len(content) > SIZE_MAX + TRAILER_SIZE:
        return f"it is larger than {SIZE_MAX} bytes"
    if len(content) < TRAILER_SIZE:
        return "it is too short to be one"
    magic, format_, zero, _ = _HEAD.unpack_from(content, len(content) - TRAILER_SIZE)
    if magic != _MAGIC:
        return "its trailer is missing: it was cut short, or is no catalog"
    if content[-TRAILER_SIZE:] != _trailer(content[:-TRAILER_SIZE]):
        # A newer format may count its digest otherwise, so its number is believed, for the text of the note alone.
        return "it is not what was written" if (format_, zero) == (_FORMAT, 0) else f"its format is {format_}"
    return None


def _changed(pages: bytes, key: bytes, value: bytes | None) -> bytes:
    """The pages after one transaction that sets one key, or takes it away."""
    with _environment(pages, readonly=False) as (environment, descriptor):
        with environment.begin(write=True) as transaction:
            if value is None:
                transaction.delete(key)
            else:
                transaction.put(key, value)
        return os.pread(descriptor, SIZE_MAX, 0)


def _anew(key: bytes, value: bytes | None) -> bytes:
    """Pages with nothing else in them. What LMDB says about its own memory is the system's trouble: OSError."""
    try:
        return _changed(b"", key, value)
    except lmdb.Error as error:
        raise OSError(errno.EIO, f"LMDB cannot make the catalog: {error}") from error


@contextmanager
def _environment(pages: bytes, *, readonly: bool) -> Iterator[tuple[lmdb.Environment, int]]:
    """LMDB over a copy of the pages in memory, and the descriptor of that memory."""
    descriptor = os.memfd_create("kvsvr-catalog")
    try:
        view = memoryview(pages)
        while view:
            view = view[os.write(descriptor, view) :]
        # Not synced and not locked: it is memory, and this function's alone.
        with lmdb.open(
            f"/proc/self/fd/{descriptor}",
            subdir=False,
            lock=False,
            sync=False,
            readonly=readonly,
            map_size=SIZE_MAX,
        ) as environment:
            yield environment, descriptor
    finally:
        os.close(descriptor)
