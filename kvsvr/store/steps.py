"""Work that C does a short step at a time, without the GIL: begun, stepped until it is done, always given back."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Any, ClassVar, Self

from kvsvr.native import Handle, failure, ffi, lib


class Steps:
    """One piece of work under way: a `with` block around calls of `step`, until that is False."""

    __slots__ = ("_handle", "_pointer")

    _kind: ClassVar[str]

    def __init__(self, handle: Handle, *arguments: int) -> None:
        self._handle = handle
        out = ffi.new(f"kv_{self._kind} **")
        status = getattr(lib, f"kv_{self._kind}_begin")(handle.pointer, *arguments, out)
        if status != lib.KV_OK:
            raise failure(status, None, handle.path)
        self._pointer = out[0]

    def step(self) -> bool:
        """Whether there is more to do."""
        status = getattr(lib, f"kv_{self._kind}_step")(self._pointer)
        if status not in (lib.KV_MORE, lib.KV_EOF):
            raise failure(status, self._fault(), self._handle.path)
        return bool(status == lib.KV_MORE)

    def _fault(self) -> Any:
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        getattr(lib, f"kv_{self._kind}_free")(self._pointer)


class Sweep(Steps):
    """Rows of dropped tables leave the index."""

    __slots__ = ()
    _kind = "sweep"


class Compaction(Steps):
    """What is live in one segment is written anew."""

    __slots__ = ()
    _kind = "compaction"

    @property
    def moved_size(self) -> int:
        size: int = lib.kv_compaction_look(self._pointer).moved_size
        return size

    def _fault(self) -> Any:
        return ffi.addressof(lib.kv_compaction_look(self._pointer), "fault")


class Forget(Steps):
    """Tombstones that shadow nothing leave the index."""

    __slots__ = ()
    _kind = "forget"


@dataclass(frozen=True, slots=True)
class Segment:
    """One file of the flow."""

    id: int
    size: int
    """Bytes of records."""
    live_size: int
    """Of those that count."""
    sealed: bool


def segments(handle: Handle) -> list[Segment]:
    """Oldest first."""
    out, count = ffi.new("kv_segment_stats **"), ffi.new("size_t *")
    status = lib.kv_store_segments(handle.pointer, out, count)
    if status != lib.KV_OK:
        raise failure(status, None, handle.path)
    try:
        return [Segment(one.id, one.size, one.live_size, bool(one.sealed)) for one in out[0][0 : count[0]]]
    finally:
        lib.free(out[0])
