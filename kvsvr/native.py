"""The border to the C core: the only importer of _native. Handles, their lifetimes, and statuses as exceptions.

A `Handle` is one open kv_store, a `Caller` one kv_caller with the buffer it leaves answers in. A `SnapshotHandle` lends
out callers, as a Handle does, that read one moment. Both are a `Pool`, and who only reads asks for no more.

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
import functools
import os
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from struct import Struct
from typing import Any, Final, TypeAlias, TypeVar, cast
from weakref import WeakSet

from kvsvr._native import ffi, lib
from kvsvr._quick import Collecting, Door, Listing, Pairs, Quick, Quickened, pack
from kvsvr.config import Config
from kvsvr.errors import (
    ClosedError,
    CorruptionError,
    DiskError,
    KvError,
    LockedError,
    SnapshotExpired,
    UsageError,
    VersionConflict,
    WrongType,
    shown,
    shown_key,
)
from kvsvr.types import BytesLike

__all__ = [
    "ABSENT",
    "CONFLICT",
    "KEY_SIZE_MAX",
    "LATER",
    "SMALL_SIZE",
    "Caller",
    "Checkpoint",
    "Collecting",
    "Expectations",
    "Handle",
    "Listing",
    "Many",
    "Operations",
    "Pairs",
    "Pool",
    "Quickened",
    "ServerHandle",
    "SnapshotHandle",
    "as_bytes",
    "borrow",
    "ffi",
    "lib",
    "own",
    "quick",
    "row_of",
    "table_key",
    "ttl_ms",
]

ABSENT: Final = -lib.KV_ABSENT  # As a kv_result has it: normal endings come with their sign turned.
CONFLICT: Final = lib.KV_ECONFLICT
KEY_SIZE_MAX: Final = lib.KV_KEY_SIZE_MAX
TTL_MS_MAX: Final = 10**15  # Some 30,000 years: added to any clock, an int64 still holds it.

SMALL_SIZE: Final = lib.KV_SMALL_SIZE
LATER: Final = lib.KV_LATER  # Where a call takes `durable`: it never waits, whatever `sync` says.

# A caller that had to make more room than this for an answer is not kept: reading 1 GiB once must not cost it for ever.
KEPT_SIZE_MAX: Final = 4 << 20

MEMORY_SIZE: Final = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

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


def as_bytes(part: object, what: str) -> bytes:
    return bytes(borrow(part, what))


def own(key: object) -> bytes:
    """A key as bytes of our own: another thread may change a borrowed buffer between its hash and its record."""
    return bytes(borrow(key, "key"))


def table_key(key: object) -> bytes:
    """The key of a table. Checked where it is named: what is called later would be the wrong line to point at."""
    name = own(key)
    if not 0 < len(name) <= KEY_SIZE_MAX:
        raise UsageError(f"a table has a key of 1 to {KEY_SIZE_MAX} bytes; this one has {len(name)}")
    return name


def row_of(row: object) -> bytes:
    name = row if isinstance(row, bytes) else bytes(borrow(row, "row"))
    if len(name) > KEY_SIZE_MAX:
        raise UsageError(f"a row has 0 to {KEY_SIZE_MAX} bytes; this one has {len(name)}")
    return name


def ttl_ms(ttl: float) -> int:
    """Seconds as C takes them. Never 0, which would mean "no expiry": the shortest time to live is 1 ms."""
    if not isinstance(ttl, int | float) or isinstance(ttl, bool) or not ttl > 0:
        raise UsageError(f"ttl is a positive number of seconds, not {shown(ttl)}; leave it out for no expiry")
    if ttl > TTL_MS_MAX // 1000:  # Compared, not multiplied: an int may be larger than any float.
        raise UsageError(f"ttl is at most {TTL_MS_MAX // 1000} seconds, not {shown(ttl)}; leave it out for no expiry")
    return max(1, round(ttl * 1000))


class Many:
    """Keys laid out as kv_many wants them; keeps what its pointers point to."""

    __slots__ = ("_held", "count", "pointer")

    def __init__(self, keys: Sequence[BytesLike]) -> None:
        plain = keys if set(map(type, keys)) == {bytes} else [own(key) for key in keys]
        try:
            sizes = ffi.from_buffer("uint32_t[]", array("I", map(len, plain)))
        except OverflowError:
            raise UsageError(f"a key has 1 to {KEY_SIZE_MAX} bytes; one of these has more than 4 GiB") from None
        joined = ffi.from_buffer("uint8_t[]", b"".join(plain))
        self.count = len(keys)
        self.pointer = ffi.new("kv_many *", {"count": self.count, "keys": joined, "keys_size": len(joined)})
        self.pointer.key_sizes = sizes
        self._held = joined, sizes


_OPERATION: Final = Struct("=QQQqQIIQ")
_OPERATION_FIELDS: Final = ("key", "value", "value_size", "ttl_ms", "table", "key_size", "table_size", "row_id")
assert array("I").itemsize == ffi.sizeof("uint32_t")
assert _OPERATION.size == ffi.sizeof("kv_operation")
assert [ffi.offsetof("kv_operation", name) for name in _OPERATION_FIELDS] == [0, 8, 16, 24, 32, 40, 44, 48]

_EXPECTATION: Final = Struct("=QQQII")
_EXPECTATION_FIELDS: Final = ("key", "version", "table", "key_size", "table_size")
assert _EXPECTATION.size == ffi.sizeof("kv_expectation")
assert [ffi.offsetof("kv_expectation", name) for name in _EXPECTATION_FIELDS] == [0, 8, 16, 24, 28]

Content: TypeAlias = tuple[bytes | None, int]
"""What becomes of a name in a batch: its value, or None to delete it, and its ttl_ms."""


class Expectations:
    """Keys and rows at versions, as `kv_expectation[]` that grows; keeps the names its pointers point to."""

    __slots__ = ("_held", "_packed", "names")

    def __init__(self) -> None:
        self.names: list[tuple[bytes, bytes | None]] = []
        """Key or row, and the table of a row."""
        self._held: list[Any] = []
        self._packed = bytearray()

    def add(self, name: bytes, version: int, table: bytes | None = None) -> None:
        at, table_at = self._keep(name), 0 if table is None else self._keep(table)
        self._packed += _EXPECTATION.pack(at, version, table_at, len(name), len(table or b""))
        self.names.append((name, table))

    def _keep(self, name: bytes) -> int:
        self._held.append(ffi.from_buffer("uint8_t[]", name))
        return int(ffi.cast("uintptr_t", self._held[-1]))

    def __len__(self) -> int:
        return len(self.names)

    @property
    def pointer(self) -> Any:
        """For one call: as long as it lives, nothing can be added."""
        return ffi.from_buffer("kv_expectation[]", self._packed)


class Operations:
    """What a batch does, as `kv_operation[]` that grows; keeps what its pointers point to.

    Packed by native/python/pack.c: setting the fields of a cffi struct costs 1 us an operation, more than to write it.
    """

    __slots__ = ("_held", "_packed")

    def __init__(self) -> None:
        self._held: list[Any] = []
        self._packed = bytearray()

    def add(self, batch: dict[bytes, Content], table: bytes | None = None) -> None:
        """Keys, or rows of one table."""
        if not self.try_add(batch, table):
            raise TypeError("names in a batch are bytes")

    def try_add(self, batch: dict[Any, Content], table: bytes | None = None) -> bool:
        """The same; False, and nothing was added, if a name is no bytes."""
        packed = pack(batch, table)
        if packed is None:
            return False
        self._packed += packed
        self._held += batch, table
        return True

    def append(self, value: bytes, expiry: int, table: bytes) -> int:
        """A row under an id of its own; the index of the operation, for row_id()."""
        index = len(self)
        value_at, table_at = self._keep(value), self._keep(table)
        self._packed += _OPERATION.pack(0, value_at, len(value), expiry, table_at, 0, len(table), 0)
        return index

    def _keep(self, content: bytes) -> int:
        self._held.append(ffi.from_buffer("uint8_t[]", content))
        return int(ffi.cast("uintptr_t", self._held[-1]))

    def __len__(self) -> int:
        return len(self._packed) // _OPERATION.size

    @property
    def pointer(self) -> Any:
        """For one call: as long as it lives, nothing can be added."""
        return ffi.from_buffer("kv_operation[]", self._packed)

    def row_id(self, index: int) -> int:
        """What C gave to an append, after the call."""
        row_id: int = _OPERATION.unpack_from(self._packed, index * _OPERATION.size)[-1]
        return row_id


# --- handles ---

F = TypeVar("F", bound=Callable[..., Any])


def quick(method: F) -> F:
    """A method that C does, by its name, where nothing about a call is special; where something is, C calls the method:
    native/python/quick.c."""
    return cast(F, functools.update_wrapper(cast(Any, Quick(method)), method))


class Caller:
    """One way into the store, for one call at a time.

    An answer of up to SMALL_SIZE bytes is in `small`, whose place never changes, so a get has nothing to look up
    but that; `content` knows where the others are.
    """

    __slots__ = ("address", "answer", "moment", "pointer", "small")

    def __init__(self, pointer: Any) -> None:
        self.pointer = pointer
        self.address = int(ffi.cast("uintptr_t", pointer))
        self.moment: _Moment | None = None
        """The snapshot it reads, which lives as long as it may do so; None: the present."""
        self.answer = lib.kv_caller_answer(pointer)
        self.small = ffi.buffer(self.answer.small, SMALL_SIZE)

    def content(self, size: int) -> bytes:
        """The answer of the last call, of that size."""
        content: bytes = self.small[:size] if size <= SMALL_SIZE else ffi.buffer(self.answer.large, size)[:]
        return content


class Pool(ABC):
    """Callers: pop one of `callers`, or make one with `new_caller`; append it when done. Threads: any."""

    __slots__ = ("callers", "door", "path")

    path: str
    callers: list[Caller]
    door: Door | None
    """The quick way to the present; None: it reads a snapshot."""

    @abstractmethod
    def new_caller(self) -> Caller: ...

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

    def failed(self, result: int, caller: Caller, key: Any = None, table: bytes | None = None) -> Exception:
        """The exception for an error, with what the caller knows about it; gives the caller back. `key` is a row's if
        there is a table."""
        if result == CONFLICT:
            error: Exception = VersionConflict(bytes(key), caller.answer.version, table=table)
        else:
            error = failure(result, caller.answer.fault, self.path, key, table)
        self.release(caller)
        return error


class Handle(Pool):
    """One open kv_store."""

    __slots__ = ("__weakref__", "_free", "_io", "_out", "_pid")

    door: Door

    def __init__(
        self,
        path: str,
        config: Config,
        checkpoint: bytes | None,
        *,
        sequence_min: int = 0,
        salvage: bool = False,
        until: tuple[int, int] = (0, 0),
    ) -> None:
        # C writes the store into it. Here before the call, so that no interrupt behind it can lose an open store.
        self._out: Any = ffi.new("kv_store **")
        self._free = lib.kv_store_free  # At interpreter exit this module may be gone before the last Handle.
        self.path = path
        self.callers: list[Caller] = []
        self.door = Door(0, 0)
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
                "snapshot_size_max": config.snapshot_size_max,
                "sequence_min": sequence_min,
                "salvage": salvage,
                "replay_until": until[0] << 32 | until[1],
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
        self.door = Door(int(ffi.cast("uintptr_t", self._out[0])), MEMORY_SIZE)
        _handles.add(self)

    def free(self) -> None:
        """Gives the store back, closed or not. The second time: nothing."""
        out, self._out = self._out, None
        if out is not None and out[0]:
            self.callers.clear()
            self.door.shut()
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

    def pin(self) -> tuple[int, int, int]:
        """Until `unpin`, no file leaves the directory. Segment and offset up to which everything is durable, and the
        last version before it."""
        position, sequence = ffi.new("kv_position *"), ffi.new("uint64_t *")
        caller = self.take()
        result = lib.kv_pin(caller.pointer, position, sequence)
        if result < 0:
            raise self.failed(result, caller)
        self.release(caller)
        return position.segment, position.offset, sequence[0]

    def tail(self) -> tuple[int, int]:
        """Segment and offset behind the last record."""
        caller = self.take()
        order = lib.kv_tail(caller.pointer)
        if order < 0:
            raise self.failed(order, caller)
        self.release(caller)
        return order >> 32, order & 0xFFFFFFFF

    def unpin(self) -> None:
        caller = self.take()
        lib.kv_unpin(caller.pointer)
        self.release(caller)

    def damages(self) -> list[tuple[int, int, int, str]]:
        """What a salvaging reader met: segment, offset, bytes, and what is wrong there."""
        count = ffi.new("size_t *")
        found = lib.kv_store_damages(self._alive(), count)
        return [
            (one.segment, one.offset, one.size, ffi.string(one.what).decode(errors="replace"))
            for one in (found[i] for i in range(count[0]))
        ]

    @property
    def pointer(self) -> Any:
        return self._alive()

    def _alive(self) -> Any:
        if self._out is None:
            raise ClosedError(f"{self.path} was dropped: open it again")
        return self._out[0]

    def notify(self, fd: int) -> None:
        """Has C ring an eventfd; store.h says when."""
        status = lib.kv_store_notify(self._alive(), fd)
        if status != lib.KV_OK:
            raise failure(status, None, self.path)

    def unnotify(self, fd: int) -> None:
        """C will not touch it any more."""
        if self._out is not None:
            lib.kv_store_unnotify(self._out[0], fd)

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


class _Moment:
    """A kv_snapshot. It is closed when nobody can read it any more: when the SnapshotHandle has let go of it, and no
    caller that another thread is inside with. Counting references is what finds that out, lost callers included."""

    __slots__ = ("_close", "_handle", "_out")

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self._close = lib.kv_snapshot_close  # At interpreter exit this module may be gone before the last of them.
        self._out: Any = ffi.new("kv_snapshot **")
        status = lib.kv_snapshot_open(handle._alive(), self._out)
        if status != lib.KV_OK:
            raise failure(status, None, handle.path)

    @property
    def pointer(self) -> Any:
        return self._out[0]

    def __del__(self) -> None:
        # In a cycle of garbage the Handle may be finalized first, and then C has given the snapshot back.
        if self._out[0] and not self._handle.freed:
            self._close(self._out[0])


class SnapshotHandle(Pool):
    """A snapshot, as a pool of callers that read it. They are the Handle's, and go back to it at the end."""

    __slots__ = ("_handle", "_moment", "version")

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self._moment: _Moment | None = _Moment(handle)
        self.path = handle.path
        self.callers = []
        self.door = None
        self.version: int = lib.kv_snapshot_version(self._moment.pointer)

    def new_caller(self) -> Caller:
        moment = self._moment
        if moment is None:
            raise ClosedError("the snapshot was closed: take another with db.snapshot()")
        caller = self._handle.take()
        caller.moment = moment
        lib.kv_caller_bind(caller.pointer, moment.pointer)
        return caller

    def take(self) -> Caller:
        # Not left to the pool: a caller that was under way may have come back to it after close(), and all of them
        # went with a store that was given back.
        return self.new_caller() if self._moment is None or self._handle.freed else super().take()

    def release(self, caller: Caller) -> None:
        if self._moment is None:
            self._unbind(caller)
        else:
            super().release(caller)

    def _unbind(self, caller: Caller) -> None:
        lib.kv_caller_bind(caller.pointer, ffi.NULL)
        caller.moment = None
        self._handle.release(caller)

    def close(self) -> None:
        """Whoever is inside, in another thread, is answered yet."""
        self._moment = None
        if self._handle.freed:
            self.callers.clear()
        while self.callers:
            with suppress(IndexError):
                self._unbind(self.callers.pop())

    @property
    def closed(self) -> bool:
        return self._moment is None


_CHECKPOINT_STEPS: Final = 32
"""Of C's at a call: beside a thread that computes, getting the GIL back costs 5 ms each time, a step 0.1 to 2."""


class Checkpoint:
    """A checkpoint under way: `step` until it is False, keep what `describe` says, then `published`. Always `free`."""

    __slots__ = ("_handle", "_pointer")

    def __init__(self, handle: Handle, pointer: Any) -> None:
        self._handle = handle
        self._pointer = pointer

    def step(self) -> bool:
        status = lib.kv_checkpoint_steps(self._pointer, _CHECKPOINT_STEPS)
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


class ServerHandle:
    """One kv_server. `run` is one thread's, and keeps it until `stop`; `look`, `link` and `part` are any thread's, and
    end before `free`."""

    __slots__ = ("_path", "_pointer", "_shard_count", "replays_all")

    def __init__(
        self,
        path: str,
        *,
        node: int,
        members: Sequence[int],
        gone: Sequence[int],
        shard_count: int,
        client_socket: int,
        log_pipe: int,
        limits: Mapping[str, int],
        rules: Mapping[str, int],
        password: bytes,
        announce: str,
        data: bool,
        inline_max: int,
    ) -> None:
        """`limits` and `rules`: fields of kv_server_options and kv_replica_options, by name. What is damaged with the
        checkpoint may be told by a replay of everything, which is then made: `replays_all`. `data`: a majority is to
        have the bytes of writes, too."""
        self._path = path
        self._shard_count = shard_count
        options = ffi.new("kv_server_options *")
        replica = options.replica
        replica.node = node
        replica.member_count = len(members)
        replica.members[0 : len(members)] = members
        replica.joins = node not in members
        replica.gone_count = min(len(gone), lib.KV_NODES_MAX)
        replica.gone[0 : replica.gone_count] = gone[-lib.KV_NODES_MAX :]
        replica.shard_count = shard_count
        replica.policy = 1
        replica.inline_max = inline_max or lib.KV_INLINE_NOTHING
        replica.store.sync = lib.KV_SYNC_BATCH
        replica.store.background = 0
        for name, value in rules.items():
            setattr(replica, name, value)
        options.log_pipe = log_pipe
        for name, value in limits.items():
            setattr(options, name, value)
        options.password = password
        options.announce = announce.encode()
        options.durability = lib.KV_DURABILITY_DATA if data else lib.KV_DURABILITY_VERSION
        try:
            self._open(options, client_socket)
        except CorruptionError:
            options.replays_all = 1
            self._open(options, client_socket)
        finally:
            os.close(client_socket)
        self.replays_all = bool(options.replays_all)

    def _open(self, options: Any, client_socket: int) -> None:
        options.client_socket = os.dup(client_socket)  # It goes with a server that cannot be opened.
        io, out, fault = ffi.new("kv_io **"), ffi.new("kv_server **"), ffi.new("kv_fault *")
        status = lib.kv_io_posix_new(os.fsencode(self._path), True, io)
        if status != lib.KV_OK:
            raise failure(
                status, ffi.new("kv_fault *", {"os_error": ffi.errno, "what": b"opening the directory"}), self._path
            )
        status = lib.kv_server_new(io[0], options, fault, out)
        if status != lib.KV_OK:
            raise failure(status, fault, self._path)
        self._pointer = out[0]

    def run(self) -> None:
        fault = ffi.new("kv_fault *")
        status = lib.kv_server_run(self._pointer, fault)
        if status != lib.KV_OK:
            raise failure(status, fault, self._path)

    def stop(self) -> None:
        lib.kv_server_stop(self._pointer)

    def link(self, node: int, descriptor: int) -> None:
        status = lib.kv_server_link(self._pointer, node, descriptor)
        if status != lib.KV_OK:
            os.close(descriptor)

    def part(self, node: int) -> None:
        """It will never be back."""
        lib.kv_server_part(self._pointer, node)

    def pin(self, *, pinned: bool) -> None:
        """While it is, no segment goes; the figures say when that is so."""
        lib.kv_server_pin(self._pointer, pinned)

    def look(self, wait_ms: int) -> tuple[dict[str, int], list[tuple[int, int, int]]] | None:
        """Figures, and of each shard commit, applied and owner. None: the loop did not come round in so long."""
        found, shards = ffi.new("kv_server_figures *"), ffi.new("kv_server_shard[]", self._shard_count)
        if lib.kv_server_look(self._pointer, wait_ms, found, shards) != lib.KV_OK:
            return None
        figures = {name: int(getattr(found, name)) for name, _ in ffi.typeof("kv_server_figures").fields}
        return figures, [(int(one.commit), int(one.applied), int(one.owner)) for one in shards]

    def free(self) -> None:
        pointer, self._pointer = self._pointer, ffi.NULL
        lib.kv_server_free(pointer)


def examine_replica(path: str, *, node: int, members: Sequence[int], shard_count: int) -> dict[str, int]:
    """What lies in a replica's directory, which nobody has open: the fields of kv_examination."""
    fault, out, io = ffi.new("kv_fault *"), ffi.new("kv_examination *"), ffi.new("kv_io **")
    status = lib.kv_io_posix_new(os.fsencode(path), True, io)
    if status != lib.KV_OK:
        raise failure(status, ffi.new("kv_fault *", {"os_error": ffi.errno, "what": b"opening the directory"}), path)
    options = ffi.new("kv_replica_options *")
    options.node = node
    options.member_count = len(members)
    options.members[0 : len(members)] = members
    options.shard_count = shard_count
    status = lib.kv_replica_examine(io[0], options, fault, out)
    if status != lib.KV_OK:
        raise failure(status, fault, path)
    return {name: int(getattr(out, name)) for name, _ in ffi.typeof("kv_examination").fields}


def commands() -> list[dict[str, Any]]:
    """What the server knows of its commands, by name: the fields of kv_command_facts, None where there is no text."""
    facts = ffi.new("kv_command_facts *")
    found = []
    for index in range(lib.kv_command_look(0, facts)):
        lib.kv_command_look(index, facts)
        row = {name: getattr(facts, name) for name, _ in ffi.typeof("kv_command_facts").fields}
        for name in ("name", "group", "summary", "differs"):
            row[name] = None if row[name] == ffi.NULL else ffi.string(row[name]).decode()
        found.append(row)
    return found


_STATS_FIELDS: Final = ffi.typeof("kv_stats").fields


# --- what comes out wrong ---


def failure(status: int, fault: Any, path: str, key: Any = None, table: bytes | None = None) -> Exception:
    """The exception for a status. `fault` is a kv_fault, or None where the call has none to tell. `key` is a row's if
    there is a table."""
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
            table=table,
        )
    if status == lib.KV_EWRONGTYPE:
        return _wrong_type(None if key is None else bytes(key), table)
    if status == lib.KV_ESNAPSHOT:
        return SnapshotExpired(
            f"{path}: the snapshot held on to more than snapshot_size_max bytes of what has been replaced since it was "
            "taken, and was ended: take another and be done sooner, or open the store with a larger snapshot_size_max"
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


def _wrong_type(key: bytes | None, table: bytes | None) -> WrongType:
    if table is not None:
        what = f"{shown_key(table)} has a value and is no table: get() reads it, delete() makes room for a table"
        return WrongType(what, key=table)
    name = "one of the keys" if key is None else shown_key(key)
    return WrongType(f"{name} is a table and has no value: table() gives its rows, put() or delete() drop it", key=key)


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
    lib.KV_EBACKWARDS: "kvsvr replace puts another in its place; its directory is of no use any more",
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
