"""Work that C does a short step at a time, without the GIL: begun, stepped until it is done, always given back."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Any, ClassVar, Final, Self

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

    @property
    def count(self) -> int:
        """Forgotten so far."""
        count: int = lib.kv_forget_count(self._pointer)
        return count

    def _fault(self) -> Any:
        return lib.kv_forget_fault(self._pointer)


EXPIRE_SLOTS: Final = 4096


def expire(handle: Handle, cursor: int) -> int:
    """Deletes what has expired in a stretch of the index, from a cursor on; the next cursor, 0 when it came round."""
    place = ffi.new("uint64_t *", cursor)
    caller = handle.take()
    result = lib.kv_expire_step(caller.pointer, place, EXPIRE_SLOTS)
    if result < 0:
        raise handle.failed(result, caller)
    handle.release(caller)
    return int(place[0])


@dataclass(frozen=True, slots=True)
class Segment:
    """One file of the flow."""

    id: int
    size: int
    """Bytes of records."""
    live_size: int
    """Of those that count."""
    sealed: bool
    removable: bool
    """Nothing in it is live, or wanted by a snapshot or backup: it goes with the next checkpoint."""


def segments(handle: Handle) -> list[Segment]:
    """Oldest first."""
    out, count = ffi.new("kv_segment_stats **"), ffi.new("size_t *")
    status = lib.kv_store_segments(handle.pointer, out, count)
    if status != lib.KV_OK:
        raise failure(status, None, handle.path)
    try:
        return [
            Segment(one.id, one.size, one.live_size, bool(one.sealed), bool(one.removable))
            for one in out[0][0 : count[0]]
        ]
    finally:
        lib.kv_segments_free(out[0])


def audit(handle: Handle) -> list[str]:
    """Counters that are not what counting anew gives, in words."""
    counted = ffi.new("kv_audit *")
    status = lib.kv_store_audit(handle.pointer, counted)
    if status != lib.KV_OK:
        raise failure(status, None, handle.path)
    kept = handle.measure()
    wrong = [
        f"{name} is {kept[name]}, and {getattr(counted, name)} are there"
        for name in _COUNTED
        if kept[name] != getattr(counted, name)
    ]
    if counted.slot_count != kept["index_slot_count"]:
        wrong.append(f"the index counts {kept['index_slot_count']} slots, and {counted.slot_count} are there")
    if counted.wrong_slot_count:
        wrong.append(f"{counted.wrong_slot_count} slots of the index point at something else than their records")
    if counted.wrong_segment_count:
        wrong.append(f"of {counted.wrong_segment_count} segments the live bytes are not what is counted")
    return wrong


_COUNTED: Final = (
    "key_count",
    "table_count",
    "row_count",
    "tombstone_count",
    "row_tombstone_count",
    "big_count",
    "big_size",
    "live_size",
)
