"""A batch: what is put and deleted in a `with` block, written at its end as one record group, all of it or nothing."""

from __future__ import annotations

from types import TracebackType
from typing import Any, ClassVar, Self, TypeAlias

from kvsvr.config import SlotMode
from kvsvr.errors import UsageError
from kvsvr.native import CONFLICT, KEY_SIZE_MAX, Expectations, Handle, borrow, ffi, lib, operations, own, ttl_ms
from kvsvr.store.slots import OneSlot
from kvsvr.types import BytesLike

Operations: TypeAlias = dict[bytes, tuple[bytes | None, int]]


class Writes:
    """What batches and transactions have in common: a `with` block that collects operations and writes them."""

    __slots__ = ("_done", "_durable", "_handle", "_operations", "_slot", "_version")

    _again: ClassVar[str]
    """What to tell who uses it after its end."""

    def __init__(self, handle: Handle, *, durable: bool, slots: SlotMode) -> None:
        self._handle = handle
        self._durable = durable
        self._slot = OneSlot() if slots == "strict" else None
        self._operations: Operations = {}
        self._done = False
        self._version: int | None = None

    @property
    def version(self) -> int | None:
        """The version all of it was written under; 0 if there was nothing to do; None before the block has ended."""
        return self._version

    def put(self, key: BytesLike, value: BytesLike, ttl: float | None = None) -> None:
        content = value if value.__class__ is bytes else bytes(borrow(value, "value"))
        self._operations[self._name(key)] = content, 0 if ttl is None else ttl_ms(ttl)

    def delete(self, key: BytesLike) -> None:
        """A key that is absent when this is written stays so, and does not count."""
        self._operations[self._name(key)] = None, 0

    def __len__(self) -> int:
        return len(self._operations)

    def __bool__(self) -> bool:
        """True, also when empty."""
        return True

    def _name(self, key: BytesLike) -> bytes:
        self._refuse_done()
        name = key if key.__class__ is bytes else own(key)
        # Here, not when it is written: the traceback then points at the line that is wrong.
        if not 0 < len(name) <= KEY_SIZE_MAX:
            raise UsageError(f"a key has 1 to {KEY_SIZE_MAX} bytes; this one has {len(name)}")
        if self._slot is not None:
            self._slot.enter(name)
        return name

    def _refuse_done(self) -> None:
        if self._done:
            raise UsageError(self._again)

    def _write(self, operations_: Operations) -> int:
        return write(self._handle, operations_, None, durable=self._durable)

    def __enter__(self) -> Self:
        self._refuse_done()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done = True
        collected, self._operations = self._operations, {}
        if kind is None:
            self._version = self._write(collected)


class Batch(Writes):
    """Collects operations; the last one of a key wins. Nothing is visible, and nothing on disk, before the block ends.

        with db.batch() as b:
            b.put(b"from", b"90")
            b.put(b"to", b"110")
        b.version  # one version for both

    An exception in the block writes nothing. Keys and values are copied as they come, so buffers may be used again.
    Not for several threads at a time.
    """

    __slots__ = ()

    _again = "the batch has been written: begin another with db.batch()"


def write(handle: Handle, batch: Operations, expected: Expectations | None, *, durable: bool) -> int:
    """Writes all of it if all that is expected holds; the version, 0 if there was nothing to do."""
    pointer, held = operations(batch)
    expectations: Any = ffi.NULL if expected is None else expected.pointer
    count = 0 if expected is None else len(expected)
    caller = handle.take()
    version: int = lib.kv_batch(caller.pointer, pointer, len(batch), expectations, count, durable)
    del held  # C has copied what it needs.
    if version < 0:
        key = expected.keys[caller.answer.number] if expected is not None and version == CONFLICT else None
        raise handle.failed(version, caller, key)
    handle.callers.append(caller)
    return version
