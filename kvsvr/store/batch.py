"""A batch: what is put and deleted in a `with` block, written at its end as one record group, all of it or nothing."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TypeAlias

from kvsvr.errors import UsageError
from kvsvr.native import KEY_SIZE_MAX, borrow, own, ttl_ms
from kvsvr.types import BytesLike

Operations: TypeAlias = dict[bytes, tuple[bytes | None, int]]


class Batch:
    """Collects operations; the last one of a key wins. Nothing is visible, and nothing on disk, before the block ends.

        with db.batch() as b:
            b.put(b"from", b"90")
            b.put(b"to", b"110")
        b.version  # one version for both

    An exception in the block writes nothing. Keys and values are copied as they come, so buffers may be used again.
    Not for several threads at a time.
    """

    __slots__ = ("_done", "_operations", "_version", "_write")

    def __init__(self, write: Callable[[Operations], int]) -> None:
        self._write = write
        self._operations: Operations = {}
        self._done = False
        self._version: int | None = None

    @property
    def version(self) -> int | None:
        """The version all of it was written under; 0 if there was nothing to do; None before the block has ended."""
        return self._version

    def put(self, key: BytesLike, value: BytesLike, ttl: float | None = None) -> None:
        content = value if value.__class__ is bytes else bytes(borrow(value, "value"))
        self._add(key, content, 0 if ttl is None else ttl_ms(ttl))

    def delete(self, key: BytesLike) -> None:
        """A key that is absent when the batch is written stays so, and does not count."""
        self._add(key, None, 0)

    def __len__(self) -> int:
        return len(self._operations)

    def _add(self, key: BytesLike, value: bytes | None, expiry: int) -> None:
        if self._done:
            raise UsageError("the batch has been written: begin another with db.batch()")
        name = key if key.__class__ is bytes else own(key)
        # Here, not when it is written: the traceback then points at the line that is wrong.
        if not 0 < len(name) <= KEY_SIZE_MAX:
            raise UsageError(f"a key has 1 to {KEY_SIZE_MAX} bytes; this one has {len(name)}")
        self._operations[name] = value, expiry

    def __enter__(self) -> Batch:
        if self._done:
            raise UsageError("the batch has been written: begin another with db.batch()")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done = True
        operations, self._operations = self._operations, {}
        if kind is None:
            self._version = self._write(operations)
