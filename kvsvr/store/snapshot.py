"""A snapshot: the store as it was when it was taken, for as long as it is open."""

from __future__ import annotations

from types import TracebackType
from typing import NoReturn

from kvsvr.errors import ClosedError
from kvsvr.native import Handle, SnapshotHandle
from kvsvr.store.reads import Reads
from kvsvr.store.table import TableReads
from kvsvr.types import BytesLike


class Snapshot(Reads):
    """Reads what the store held at one moment, never part of a batch, whatever is written or expires meanwhile.

        with db.snapshot() as s:
            total = sum(int(value) for _, value in s.scan(prefix=b"account:"))
            newest = s.table(b"journal").last(1)

    It costs writers nothing but what they replace: that is kept as long as a snapshot may ask for it. Beyond the
    store's `snapshot_size_max` the oldest snapshot ends, and its reads raise SnapshotExpired. So close it: by `with`,
    or close(). Any number of threads may read it at a time. It does not outlive the store.
    """

    __slots__ = ("__weakref__", "_handle")

    _handle: SnapshotHandle

    def __init__(self, handle: Handle) -> None:
        self._handle = SnapshotHandle(handle)

    @property
    def version(self) -> int:
        """The newest version it shows; of no key in particular."""
        return self._handle.version

    def table(self, key: BytesLike) -> TableReads:
        """The table under this key, as it was."""
        return TableReads(self._handle, key)

    def close(self) -> None:
        """Lets go of what it kept. The second time: nothing."""
        self._handle.close()

    def __enter__(self) -> Snapshot:
        if self._handle.closed:
            raise ClosedError("the snapshot was closed: take another with db.snapshot()")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a snapshot is of this process, so it is neither pickled nor copied: read from it here")

    def __repr__(self) -> str:
        state = "closed" if self._handle.closed else f"at version {self.version}"
        return f"<kvsvr.Snapshot of {self._handle.path!r} {state}>"
