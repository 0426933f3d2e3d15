"""The border to the C core: the only importer of _native. Handles, their lifetimes, and statuses as exceptions.

A `Handle` is one open kv_store, a `Caller` one kv_caller with the buffer it leaves answers in.

Callers are pooled, not kept per thread. A caller serves one call at a time, and a call may be interrupted between
the C function and the copy of its answer: by a signal handler, or by a finalizer that the garbage collector runs,
in the same thread. Had they the thread's caller in common, the inner call would overwrite the outer one's answer.
Popping from a list is atomic under the GIL, cheaper than a thread-local attribute, and whoever comes in between
gets another caller. One that is lost to such an exception (Ctrl-C in the middle of a get) goes with the store.

Freeing: callers die with their store, and it with its Handle. Not through ffi.gc: within a cycle of garbage Python
runs finalizers in any order, so the store could go before its callers, or before somebody's __del__ that still
wants to write to it. A Handle that was finalized has no callers and makes none: who comes later is told it is closed.

No cdata object leaves this module and kvsvr.store.
"""

from __future__ import annotations

import errno
import os
from array import array
from collections.abc import Sequence
from struct import Struct
from typing import Any, Final
from weakref import WeakSet

from kvsvr._native import ffi, lib
from kvsvr.config import Config
from kvsvr.errors import (
    ClosedError,
    CorruptionError,
    DiskError,
    KvError,
    LockedError,
    UsageError,
    VersionConflict,
    WrongType,
    shown,
)
from kvsvr.types import BytesLike

__all__ = [
    "ABSENT",
    "CONFLICT",
    "KEY_SIZE_MAX",
    "SMALL_SIZE",
    "Caller",
    "Checkpoint",
    "Expectations",
    "Handle",
    "Many",
    "borrow",
    "ffi",
    "lib",
    "operations",
    "own",
    "ttl_ms",
]

ABSENT: Final = -lib.KV_ABSENT  # As a kv_result has it: normal endings come with their sign turned.
CONFLICT: Final = lib.KV_ECONFLICT
KEY_SIZE_MAX: Final = lib.KV_KEY_SIZE_MAX
TTL_MS_MAX: Final = 10**15  # Some 30,000 years: added to any clock, an int64 still holds it.

SMALL_SIZE: Final = lib.KV_SMALL_SIZE

# A caller that had to make more room than this for an answer is not kept: reading 1 GiB once must not cost it for ever.
KEPT_SIZE_MAX: Final = 4 << 20

_SYNC_MODES: Final = {"none": lib.KV_SYNC_NONE, "batch": lib.KV_SYNC_BATCH, "always": lib.KV_SYNC_ALWAYS}


# --- what goes in ---


def borrow(data: object, what: str) -> Any:
    """Something cffi takes as `const uint8_t *` and whose len() is its bytes, for the length of one call.

    `bytes` need no such help: cffi passes their address. Everything else comes here, for its address, too, or to
    be refused: left alone, cffi would take a list of integers.
    """
    if isinstance(data, bytes):
        return data
    if isinstance(data, str):
        raise TypeError(f"a {what} is bytes, not str: use .encode()")
    try:
        return ffi.from_buffer("uint8_t[]", data)
    except TypeError:
        raise TypeError(f"a {what} is bytes, bytearray or memoryview, not {type(data).__name__}") from None
    except (BufferError, ValueError):
        raise UsageError(f"the {what} is a memoryview with gaps: copy it with bytes()") from None


def own(key: object) -> bytes:
    """A key as bytes of our own: another thread may change a borrowed buffer between its hash and its record."""
    return bytes(borrow(key, "key"))


def ttl_ms(ttl: float) -> int:
    """Seconds as C takes them. Never 0, which would mean "no expiry": the shortest time to live is 1 ms."""
    if not isinstance(ttl, int | float) or isinstance(ttl, bool) or not ttl > 0:
        raise UsageError(f"ttl is a positive number of seconds, not {shown(ttl)}; leave it out for no expiry")
    if ttl > TTL_MS_MAX // 1000:  # Compared, not multiplied: an int may be larger than any float.
        raise UsageError(f"ttl is at most {TTL_MS_MAX // 1000} seconds, not {shown(ttl)}; leave it out for no expiry")
    return max(1, round(ttl * 1000))


class Many:
    """Keys, and values if there are some, laid out as kv_many wants them; keeps what its pointers point to."""

    __slots__ = ("_held", "count", "pointer")

    def __init__(self, keys: Sequence[BytesLike], values: Sequence[BytesLike] | None = None) -> None:
        self.count = len(keys)
        self.pointer = ffi.new("kv_many *")
        self.pointer.count = self.count
        key_bytes, key_sizes = _joined(keys, "key")
        self.pointer.keys = key_bytes
        self.pointer.keys_size = len(key_bytes)
        self.pointer.key_sizes = key_sizes
        self._held = [key_bytes, key_sizes]
        if values is not None:
            value_bytes, value_sizes = _joined(values, "value")
            self.pointer.values = value_bytes
            self.pointer.values_size = len(value_bytes)
            self.pointer.value_sizes = value_sizes
            self._held += [value_bytes, value_sizes]


def _joined(parts: Sequence[BytesLike], what: str) -> tuple[Any, Any]:
    """The parts one behind the other as a `uint8_t[]`, and their sizes as a `uint32_t[]`."""
    plain = parts if set(map(type, parts)) == {bytes} else [bytes(borrow(part, what)) for part in parts]
    try:
        sizes = array("I", map(len, plain))
    except OverflowError:
        raise UsageError(f"a {what} is larger than 4 GiB; values have at most 1 GiB") from None
    return ffi.from_buffer("uint8_t[]", b"".join(plain)), ffi.from_buffer("uint32_t[]", sizes)


_OPERATION: Final = Struct("=QQQqI4x")
assert array("I").itemsize == ffi.sizeof("uint32_t")
assert _OPERATION.size == ffi.sizeof("kv_operation")
assert [ffi.offsetof("kv_operation", name) for name in ("key", "value", "value_size", "ttl_ms", "key_size")] == [
    0,
    8,
    16,
    24,
    32,
]


_EXPECTATION: Final = Struct("=QQI4x")
assert _EXPECTATION.size == ffi.sizeof("kv_expectation")
assert [ffi.offsetof("kv_expectation", name) for name in ("key", "version", "key_size")] == [0, 8, 16]


class Expectations:
    """Keys at versions, as `kv_expectation[]` that grows; keeps the keys its pointers point to."""

    __slots__ = ("_held", "_packed", "keys")

    def __init__(self) -> None:
        self.keys: list[bytes] = []
        self._held: list[Any] = []
        self._packed = bytearray()

    def add(self, key: bytes, version: int) -> None:
        address = ffi.from_buffer("uint8_t[]", key)
        self._packed += _EXPECTATION.pack(int(ffi.cast("uintptr_t", address)), version, len(key))
        self._held.append(address)
        self.keys.append(key)

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def pointer(self) -> Any:
        """For one call: as long as it lives, nothing can be added."""
        return ffi.from_buffer("kv_expectation[]", self._packed)


def operations(batch: dict[bytes, tuple[bytes | None, int]]) -> tuple[Any, list[Any]]:
    """A batch, key -> (value or None, ttl_ms), as `kv_operation[]`, and what must live as long as that is used.

    Packed as bytes: setting five fields of a cffi struct costs 1 us an operation, more than C needs to write it.
    """
    keys = ffi.from_buffer("uint8_t[]", b"".join(batch))
    values = ffi.from_buffer("uint8_t[]", b"".join([value for value, _ in batch.values() if value is not None]))
    key_at = int(ffi.cast("uintptr_t", keys))
    value_at = int(ffi.cast("uintptr_t", values))
    packed = bytearray(_OPERATION.size * len(batch))
    offset = 0
    for key, (value, expiry) in batch.items():
        size = 0 if value is None else len(value)
        _OPERATION.pack_into(packed, offset, key_at, 0 if value is None else value_at, size, expiry, len(key))
        offset += _OPERATION.size
        key_at += len(key)
        value_at += size
    return ffi.from_buffer("kv_operation[]", packed), [keys, values]


# --- handles ---


class Caller:
    """One way into the store, for one call at a time.

    An answer of up to SMALL_SIZE bytes is in `small`, whose place never changes, so a get has nothing to look up
    but that; `content` knows where the others are.
    """

    __slots__ = ("answer", "pointer", "small")

    def __init__(self, pointer: Any) -> None:
        self.pointer = pointer
        self.answer = lib.kv_caller_answer(pointer)
        self.small = ffi.buffer(self.answer.small, SMALL_SIZE)

    def content(self, size: int) -> bytes:
        """The answer of the last call, of that size."""
        content: bytes = self.small[:size] if size <= SMALL_SIZE else ffi.buffer(self.answer.large, size)[:]
        return content


class Handle:
    """One open kv_store.

    Threads: any. `callers` is the pool: pop one, or make one with `new_caller`; append it when done.
    """

    __slots__ = ("__weakref__", "_free", "_io", "_out", "_pid", "callers", "path")

    def __init__(self, path: str, config: Config, checkpoint: bytes | None) -> None:
        # C writes the store into it. Here before the call, so that no interrupt behind it can lose an open store.
        self._out: Any = ffi.new("kv_store **")
        self._free = lib.kv_store_free  # At interpreter exit this module may be gone before the last Handle.
        self.path = path
        self.callers: list[Caller] = []
        self._pid = os.getpid()
        self._io = self._open_directory(create=not config.readonly)
        options = ffi.new(
            "kv_options *",
            {
                "sync": _SYNC_MODES[config.sync],
                "sync_ms_max": config.sync_ms_max,
                "readonly": config.readonly,
                "background": not config.readonly,
                "write_calls": config.write_calls,
            },
        )
        fault = ffi.new("kv_fault *")
        described = ffi.NULL if checkpoint is None else checkpoint
        try:
            status = lib.kv_store_open(self._io, options, described, len(checkpoint or b""), fault, self._out)
            if status != lib.KV_OK:
                raise failure(status, fault, path)
        except BaseException:
            self.free()  # Not left to the finalizer: the traceback may keep this object for long.
            raise
        _handles.add(self)

    def free(self) -> None:
        """Gives the store back, closed or not. The second time: nothing."""
        out, self._out = self._out, None
        if out is not None and out[0]:
            self.callers.clear()
            self._free(out[0])

    __del__ = free

    def _open_directory(self, *, create: bool) -> Any:
        out = ffi.new("kv_io **")
        status = lib.kv_io_posix_new(os.fsencode(self.path), create, out)
        if status == lib.KV_ABSENT:
            raise UsageError(f"there is no store at {self.path}: check the path, or drop readonly=True")
        if status != lib.KV_OK:
            fault = ffi.new("kv_fault *", {"os_error": ffi.errno, "what": b"opening the directory"})
            raise failure(status, fault, self.path)
        return out[0]

    @property
    def freed(self) -> bool:
        return self._out is None

    @property
    def closed(self) -> bool:
        """C has let go of the directory. Asked of C: an interrupt may come between its doing so and any note of it."""
        return self._out is None or lib.kv_store_measure(self._out[0], ffi.new("kv_stats *")) == lib.KV_ECLOSED

    @property
    def forked(self) -> bool:
        """This process is a child of the one that opened the store."""
        return os.getpid() != self._pid

    def new_caller(self) -> Caller:
        out = ffi.new("kv_caller **")
        status = lib.kv_caller_new(self._alive(), out)
        if status != lib.KV_OK:
            raise failure(status, None, self.path)
        return Caller(out[0])

    def take(self) -> Caller:
        try:
            return self.callers.pop()
        except IndexError:
            return self.new_caller()

    def release(self, caller: Caller) -> None:
        """Gives a caller back after an answer that may have been large, or lets it go if it was very large."""
        if caller.answer.large_capacity <= KEPT_SIZE_MAX:
            self.callers.append(caller)
        else:
            lib.kv_caller_free(caller.pointer)

    def failed(self, result: int, caller: Caller, key: Any = None) -> Exception:
        """The exception for an error, with what the caller knows about it; gives the caller back."""
        if result == CONFLICT:
            error: Exception = VersionConflict(bytes(key), caller.answer.version)
        else:
            error = failure(result, caller.answer.fault, self.path, key)
        self.release(caller)
        return error

    def measure(self) -> dict[str, Any]:
        stats = self._measured()
        figures = {name: getattr(stats, name) for name, _ in _STATS_FIELDS}
        return figures | {"store_id": bytes(stats.store_id).hex()}

    def measure_one(self, name: str) -> int:
        value: int = getattr(self._measured(), name)
        return value

    def _measured(self) -> Any:
        stats = ffi.new("kv_stats *")
        status = lib.kv_store_measure(self._alive(), stats)
        if status != lib.KV_OK:
            raise failure(status, None, self.path)
        return stats

    def shift_clock(self, shift: float) -> None:
        """For tests of clocks that jump: what the store takes for the time is the wall clock and so many seconds."""
        lib.kv_io_posix_shift_clock(self._io, round(shift * 1000))

    def checkpoint(self) -> Checkpoint | None:
        """Begins a checkpoint; None if nothing changed since the last one."""
        out = ffi.new("kv_checkpoint **")
        status = lib.kv_checkpoint_begin(self._alive(), out)
        if status == lib.KV_EOF:
            return None
        if status == lib.KV_ECORRUPT:
            raise CorruptionError(self.path, "an index file is damaged; the index is rebuilt at the next open")
        if status != lib.KV_OK:
            raise failure(status, None, self.path)
        return Checkpoint(self, out[0])

    def _alive(self) -> Any:
        if self._out is None:
            raise ClosedError(f"{self.path} was dropped: open it again")
        return self._out[0]

    def quiesce(self) -> None:
        lib.kv_store_quiesce(self._alive())

    def close(self) -> None:
        """Seals, syncs, gives up the lock. Whatever comes later is told that the store is closed."""
        fault = ffi.new("kv_fault *")
        status = lib.kv_store_close(self._alive(), fault)
        if status != lib.KV_OK:
            raise failure(status, fault, self.path)


_handles: Final[WeakSet[Handle]] = WeakSet()


def _after_fork() -> None:
    """In the child: the writers' locks stay with the parent alone."""
    for handle in list(_handles):
        if not handle.freed:
            lib.kv_store_let_go(handle._out[0])


os.register_at_fork(after_in_child=_after_fork)


class Checkpoint:
    """A checkpoint under way: `step` until it is False, keep what `describe` says, then `published`. Always `free`."""

    __slots__ = ("_handle", "_pointer")

    def __init__(self, handle: Handle, pointer: Any) -> None:
        self._handle = handle
        self._pointer = pointer

    def step(self) -> bool:
        status = lib.kv_checkpoint_step(self._pointer)
        if status not in (lib.KV_MORE, lib.KV_EOF):
            raise failure(status, None, self._handle.path)
        return bool(status == lib.KV_MORE)

    def describe(self) -> bytes:
        out, size = ffi.new("const uint8_t **"), ffi.new("size_t *")
        status = lib.kv_checkpoint_describe(self._pointer, out, size)
        if status != lib.KV_OK:
            raise failure(status, None, self._handle.path)
        return bytes(ffi.buffer(out[0], size[0]))

    def published(self) -> None:
        status = lib.kv_checkpoint_published(self._pointer)
        if status != lib.KV_OK:
            raise failure(status, None, self._handle.path)

    def free(self) -> None:
        lib.kv_checkpoint_free(self._pointer)


_STATS_FIELDS: Final = ffi.typeof("kv_stats").fields


# --- what comes out wrong ---


def failure(status: int, fault: Any, path: str, key: Any = None) -> Exception:
    """The exception for a status. `fault` is a kv_fault, or None where the call has none to tell."""
    what = "" if fault is None else ffi.string(fault.what).decode(errors="replace")
    if status in _USAGE:
        return UsageError(_USAGE[status].format(path=path, what=what))
    if status == lib.KV_EKEYSIZE:
        size = "" if key is None else f"; this one has {len(key)}"
        return UsageError(f"a key has 1 to {KEY_SIZE_MAX} bytes{size}")
    if status == lib.KV_ENOTINT:
        return WrongType(
            "the value is no decimal 64-bit integer: incr() counts only what incr() or put(b'<digits>') wrote",
            key=None if key is None else bytes(key),
        )
    if status == lib.KV_EWRONGTYPE:
        return WrongType(
            "the key names a table, this call wants a value (or the other way round)",
            key=None if key is None else bytes(key),
        )
    if status == lib.KV_ELOCKED:
        return LockedError(path, fault.os_error)  # For this one status: the holder's process id, or 0.
    if status == lib.KV_ECLOSED:
        return ClosedError(f"{path} was closed: open it again")
    if status == lib.KV_EFORKED:
        return ClosedError(f"{path} was opened before fork: open it again in the child")
    if status == lib.KV_ENOMEM:
        return MemoryError(what or f"no memory for {path}")
    if status == lib.KV_ECORRUPT:
        position = (fault.position.segment, fault.position.offset) if fault is not None else (0, 0)
        return CorruptionError(path, what or "bytes are not what was written", position if position[0] else None)
    if status == lib.KV_EBEHIND:
        return KvError(f"{path}: what was not read yet has been compacted away: open it again")
    if status in _DISK:
        return _disk_failure(status, fault, path, what)
    name = ffi.string(lib.kv_status_name(status)).decode()
    return KvError(f"{path}: {name} ({status}) where no such answer was expected: {what or 'no details'}")


_USAGE: Final = {
    lib.KV_EUSAGE: "the call cannot be right as it stands: {what}",
    lib.KV_EVALUESIZE: "a value has at most 1 GiB: split it over several keys",
    lib.KV_EBATCHSIZE: "the batch is too large to be written as one: split it, or use put_many() where that will do",
    lib.KV_EREADONLY: "{path} was opened with readonly=True: open it without to write",
    lib.KV_EOVERFLOW: "the sum does not fit 64 bits: the counter was left as it is",
    lib.KV_ENOTSTORE: "{path} holds something else than a store ({what}): give a directory of its own",
    lib.KV_EFORMAT: "{path} was written by a newer kvsvr ({what}): upgrade this one",
    lib.KV_ENOTFOUND: "there is no store at {path}: check the path, or drop readonly=True",
}

_DISK: Final = {
    lib.KV_EDISK: "look at the disk and the system's log",
    lib.KV_ENOSPC: "the disk is full: reads go on, and writes too once there is room",
    lib.KV_EPOISONED: "an earlier write or sync failed, so nothing more is written: repair the disk, then open again",
    lib.KV_ELIMIT: "this process has too many files open: close some, or raise the limit (ulimit -n), then go on",
    lib.KV_EMAPPING: "a file was cut short or cannot be read: restore it, then open again",
}


def _disk_failure(status: int, fault: Any, path: str, what: str) -> DiskError:
    number = 0 if fault is None else fault.os_error
    if status == lib.KV_ENOSPC:
        number = number or errno.ENOSPC  # DiskError.full goes by the number.
    reason = os.strerror(number) if number else ffi.string(lib.kv_status_name(status)).decode()
    about = f" ({what})" if what else ""
    return DiskError(f"{path}: {reason}{about}: {_DISK[status]}", path=path, errno=number)
