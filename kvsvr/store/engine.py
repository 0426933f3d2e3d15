"""The engine: one open store, its keys and values, and the way to its tables and snapshots.

What each call promises is in its docstring; those that a Snapshot has, too, are in reads.py.

Threads: any number, all methods. Calls release the GIL; reads take no lock, writers one short one in C, and so do the
reads of a transaction. A batch or transaction belongs to one thread.

Life: an Engine is closed by close() or by `with`. One that is dropped, or still open when the interpreter ends, is
closed by its finalizer. That holds everything but the Engine itself, and neither the housekeeping thread, nor a batch,
nor a scan holds the Engine, so none of them keeps a forgotten store open. A forked child gets ClosedError from
everything and touches nothing on disk.

Processes: one writer per directory. C's lock says so; `_Writers` knows it of this process before C has touched the
directory, by device and inode, however the path was spelt. A forked child lets go of its copy of the lock.

Speed: get, put and delete are compared by the nanosecond, and are quick: C does them where nothing about them is
special (kvsvr.native.quick). What stands here is what they mean, and is called where something is.
"""

from __future__ import annotations

import math
import os
import stat
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

from kvsvr.config import Config, SlotMode, SyncMode
from kvsvr.errors import ClosedError, DiskError, LockedError, UsageError, shown
from kvsvr.native import ABSENT, Handle, Many, Quickened, borrow, ffi, lib, own, quick, ttl_ms
from kvsvr.store.arguments import WRITE_COUNT_MAX, addend, chunks, expiry_of, pair_source, pairs_of, version_of
from kvsvr.store.backup import BackupReport, backup
from kvsvr.store.batch import Batch
from kvsvr.store.catalog import Catalog, sync_directory
from kvsvr.store.housekeeping import Housekeeper
from kvsvr.store.reads import Reads
from kvsvr.store.snapshot import Snapshot
from kvsvr.store.table import Table, TableReads
from kvsvr.store.transaction import ATTEMPTS, Transaction, run
from kvsvr.store.verify import Progress, Report, compare, open_kept
from kvsvr.types import BytesLike

if TYPE_CHECKING:
    from kvsvr.store.aio import AsyncEngine, Bells

T = TypeVar("T")

# How long C waits before Python may look at signals: what Ctrl-C feels like.
WAIT_MS_MAX: Final = 100

# Some 30 years, in seconds: who means longer means None.
TIMEOUT_MAX: Final = 10**9


def open(
    path: str | os.PathLike[str],
    *,
    sync: SyncMode = "batch",
    readonly: bool = False,
    sync_ms_max: int = 10,
    checkpoint_size: int | None = 64 << 20,
    write_calls: bool = False,
    compaction: bool = True,
    slots: SlotMode = "any",
    snapshot_size_max: int = 1 << 30,
) -> Engine:
    """Opens the store in the directory `path`; makes it if there is none and its parent is there.

    The settings are those of Config. With readonly=True nothing in the directory is changed, the store must exist,
    and refresh() takes in what its writer has written since.
    """
    return Engine(
        path,
        Config(
            sync=sync,
            sync_ms_max=sync_ms_max,
            readonly=readonly,
            checkpoint_size=checkpoint_size,
            write_calls=write_calls,
            compaction=compaction,
            slots=slots,
            snapshot_size_max=snapshot_size_max,
        ),
    )


class Engine(Quickened, Reads):
    """One open store. `kvsvr.open` makes it."""

    __slots__ = ("__weakref__", "_bells", "_catalog", "_config", "_keeper", "_shut")

    _handle: Handle

    def __init__(self, path: str | os.PathLike[str], config: Config) -> None:
        self._config = config
        self._bells: Bells | None = None
        directory = _directory(path, create=not config.readonly)
        place = None if config.readonly else _writers.enter(directory)
        try:
            self._catalog = Catalog(directory)
            self._handle = Handle(directory, config, self._catalog.checkpoint())
            self._door = self._handle.door
            self._keeper = Housekeeper(self._handle, self._catalog, config)
            self._shut = weakref.finalize(self, _shut, self._handle, self._keeper, place)
            if not config.readonly:
                self._keeper.start()
        except BaseException:
            # Ctrl-C may come behind any of these lines. C first, then the place: nobody may be let in before.
            if hasattr(self, "_shut"):
                self._shut()
            else:
                if hasattr(self, "_handle"):
                    self._handle.free()
                _writers.leave(place)
            raise

    # --- one key ---

    @quick
    def put(self, key: BytesLike, value: BytesLike, *, ttl: float | None = None, durable: bool = False) -> int:
        """Sets the value, in place of what was there, a table included; the new version. The key's expiry is `ttl`
        seconds from now, or none.

        `durable=True` returns when the write is on disk, whatever the store's `sync` says.
        """
        name, content, expiry = own(key), borrow(value, "value"), expiry_of(ttl)
        caller = self._handle.take()
        version: int = lib.kv_put(caller.pointer, name, len(name), content, len(content), expiry, durable)
        if version <= 0:
            raise self._handle.failed(version, caller, name)
        self._handle.callers.append(caller)
        return version

    @quick
    def delete(self, key: BytesLike, *, version: int | None = None, durable: bool = False) -> bool:
        """Whether the key, or the table, was there. With `version`, only at that version: else VersionConflict."""
        name, expected = own(key), -1 if version is None else version_of(version, least=1)
        caller = self._handle.take()
        result = lib.kv_delete(caller.pointer, name, len(name), expected, durable)
        if result < 0 and result != ABSENT:
            raise self._handle.failed(result, caller, name)
        self._handle.callers.append(caller)
        return bool(result > 0)

    def cas(
        self, key: BytesLike, value: BytesLike, version: int, *, ttl: float | None = None, durable: bool = False
    ) -> int:
        """Sets the value if the key is at `version`, 0 meaning absent; the new version. Else VersionConflict."""
        name, content = own(key), borrow(value, "value")
        expected, expiry = version_of(version, least=0), expiry_of(ttl)
        caller = self._handle.take()
        result = lib.kv_cas(caller.pointer, name, len(name), content, len(content), expected, expiry, durable)
        if result <= 0:
            raise self._handle.failed(result, caller, name)
        self._handle.callers.append(caller)
        return int(result)

    def incr(self, key: BytesLike, by: int = 1, *, ttl: float | None = None, durable: bool = False) -> int:
        """Adds to a counter kept as decimal digits, an absent one counting as 0; the new number.

        The key keeps its expiry unless `ttl` sets one. A value that is no 64-bit integer raises WrongType; a sum
        beyond 64 bits UsageError. Either leaves the value as it is.
        """
        name, expiry = own(key), expiry_of(ttl)
        amount = addend(by)
        caller = self._handle.take()
        result = lib.kv_incr(caller.pointer, name, len(name), amount, expiry, durable)
        if result <= 0:
            raise self._handle.failed(result, caller, name)
        number: int = caller.answer.number
        self._handle.callers.append(caller)
        return number

    def append(self, key: BytesLike, data: BytesLike, *, ttl: float | None = None, durable: bool = False) -> int:
        """Puts bytes behind the value, an absent one counting as empty; the new length. Expiry as with incr."""
        name, content, expiry = own(key), borrow(data, "value"), expiry_of(ttl)
        caller = self._handle.take()
        result = lib.kv_append(caller.pointer, name, len(name), content, len(content), expiry, durable)
        if result < 0:
            raise self._handle.failed(result, caller, name)
        self._handle.release(caller)
        return int(result)

    def expire(self, key: BytesLike, ttl: float, *, durable: bool = False) -> bool:
        """Lets the key expire `ttl` seconds from now; False if it is absent."""
        if ttl is None or ttl == 0:
            raise UsageError(f"ttl is a positive number of seconds, not {ttl!r}: persist() takes an expiry away")
        return self._expire(own(key), ttl_ms(ttl), durable)

    def persist(self, key: BytesLike, *, durable: bool = False) -> bool:
        """Takes the key's expiry away; False if it is absent or has none."""
        return self._expire(own(key), 0, durable)

    def ttl(self, key: BytesLike) -> float | None:
        """Seconds until the key expires, by the store's clock; None if it has no expiry or is absent."""
        name = own(key)
        caller = self._handle.take()
        size = lib.kv_look(caller.pointer, name, len(name))
        if size < 0 and size != ABSENT:
            raise self._handle.failed(size, caller, name)
        expires_ms: int = caller.answer.expires_ms if size >= 0 else 0
        now_ms: int = lib.kv_now(caller.pointer) if expires_ms else 0
        if now_ms < 0:
            raise self._handle.failed(now_ms, caller, name)
        self._handle.callers.append(caller)
        return max(0, expires_ms - now_ms) / 1000 if expires_ms else None

    def _expire(self, name: Any, expiry: int, durable: bool) -> bool:
        caller = self._handle.take()
        result = lib.kv_expire(caller.pointer, name, len(name), expiry, durable)
        if result < 0 and result != ABSENT:
            raise self._handle.failed(result, caller, name)
        self._handle.callers.append(caller)
        return bool(result > 0)

    # --- many keys ---

    def put_many(
        self, pairs: Iterable[tuple[BytesLike, BytesLike]], *, ttl: float | None = None, durable: bool = False
    ) -> int:
        """Sets many values; how many pairs were written. Not atomic: batch() is.

        Written in groups of at most 1 MiB; an exception in the middle leaves those before it. The answer is a
        count and no version, because on a replica set the pairs lie in several slots, which share no version.
        """
        source, expiry, count = pair_source(pairs), expiry_of(ttl), 0
        while group := pairs_of(source):
            count += self._many(lib.kv_put_many, ffi.cast("kv_many *", group.address), expiry)
        if durable:
            self.sync()
        return count

    def delete_many(self, keys: Iterable[BytesLike], *, durable: bool = False) -> int:
        """Deletes many keys; how many were there. Not atomic, as put_many."""
        count = 0
        for chunk in chunks(keys, WRITE_COUNT_MAX):
            many = Many(chunk)  # It lives as long as its pointer is used.
            count += self._many(lib.kv_delete_many, many.pointer)
        if durable:
            self.sync()
        return count

    def _many(self, function: Any, many: Any, *arguments: int) -> int:
        # Never durable by itself: one sync behind the last group is enough.
        caller = self._handle.take()
        result: int = function(caller.pointer, many, *arguments, 0)
        if result < 0:
            raise self._handle.failed(result, caller)
        self._handle.callers.append(caller)
        return result

    # --- tables ---

    def table(self, key: BytesLike) -> Table:
        """The table under this key, which comes into being with its first row. Costs nothing: it is a name."""
        return Table(self._handle, key)

    def snapshot(self) -> Snapshot:
        """The store as it is now, to read from in a `with` block, whatever is written meanwhile."""
        return Snapshot(self._handle)

    # --- together ---

    def batch(self, *, durable: bool = False) -> Batch:
        """A `with` block whose puts and deletes are written together at its end: all or nothing, one version."""
        return Batch(self._handle, durable=durable, slots=self._config.slots)

    # --- transactions ---

    def transaction(self, *, durable: bool = False) -> Transaction:
        """A `with` block that reads as of one moment, and whose writes are written at its end: all of them, if nothing
        it has read has changed meanwhile, absent keys included; else VersionConflict, and nothing."""
        self._refuse_readonly("a transaction")
        return Transaction(self._handle, durable=durable, slots=self._config.slots)

    def run(self, fn: Callable[[Transaction], T], *, attempts: int = ATTEMPTS, durable: bool = False) -> T:
        """Calls fn(t) with a transaction, commits, and returns what fn returned.

        After a VersionConflict once more, with a new transaction, up to `attempts` times in all; then the last one is
        raised. So fn may run several times: what it does besides reading and writing through `t` should bear that.
        """
        self._refuse_readonly("a transaction")
        return run(lambda: self.transaction(durable=durable), fn, attempts)

    def _refuse_readonly(self, what: str) -> None:
        if self._config.readonly:
            raise UsageError(
                f"{self._handle.path} was opened with readonly=True, and {what} needs the writer: open it without"
            )

    # --- the store as a whole ---

    @property
    def aio(self) -> AsyncEngine:
        """The same calls as coroutines, in any event loop."""
        if self._bells is None:
            from kvsvr.store.aio import Bells  # Not above: it imports this module, and asyncio, which few need.

            self._bells = Bells(self._handle)
        return self._bells.of(self)

    def wait(self, key: BytesLike | TableReads, version: int, timeout: float | None = None) -> int:
        """Waits until the key, or the table, is newer than `version`; the version it has then.

        At the timeout, in seconds (None: no bound), the version it has: not above `version`. 0 means never seen; a
        deleted key keeps the version of its deletion for a while, so deletions wake, too. Expiry does when the store
        gets round to deleting what has expired, some time after.
        """
        name, known = own(key.key if isinstance(key, TableReads) else key), version_of(version, least=0)
        deadline = _deadline(timeout)
        while True:
            left_ms = WAIT_MS_MAX if deadline is None else max(0, round((deadline - time.monotonic()) * 1000))
            current = self._wait(name, known, min(left_ms, WAIT_MS_MAX))
            if current > known or left_ms == 0:
                return current

    def _wait(self, name: Any, version: int, timeout_ms: int) -> int:
        caller = self._handle.take()
        result: int = lib.kv_wait(caller.pointer, name, len(name), version, timeout_ms)
        if result < 0:
            raise self._handle.failed(result, caller, name)
        self._handle.callers.append(caller)
        return result

    def compact(self) -> None:
        """Gives back, now, all the space that can be had; a store does as much by itself when it has the time.

        What open snapshots and backups hold on to stays. Reads and writes go on meanwhile.
        """
        self._refuse_readonly("compact")
        if self._handle.closed:
            raise ClosedError(f"{self._handle.path} was closed: open it again")
        self._keeper.compact()

    def backup(self, path: str | os.PathLike[str], *, progress: Progress | None = None) -> BackupReport:
        """Copies the store, as of one moment, into a new or empty directory, durably; reads and writes go on meanwhile.

        `progress(done, total)` hears of bytes. `kvsvr.restore` makes a store of the copy.
        """
        self._refuse_readonly("backup")
        with self._keeper.alone:  # No segment is just on its way out.
            end = self._handle.pin()
        try:
            pinned = partial(self._handle.measure_one, "sequence")  # ClosedError: another opener may remove files.
            return backup(self._handle.path, path, end, pinned, progress=progress)
        finally:
            self._handle.unpin()

    def verify(self, *, progress: Progress | None = None) -> Report:
        """Reads everything there is, twice, and compares: see kvsvr.store.verify. Reads and writes go on meanwhile."""
        self._refuse_readonly("verify")
        with self._keeper.alone:
            segment, offset, _ = self._handle.pin()
            try:
                kept = open_kept(self._handle.path, until=(segment, offset))
            except BaseException:
                self._handle.unpin()
                raise
        try:
            return compare(self._handle.path, kept, until=(segment, offset), progress=progress)
        finally:
            self._handle.unpin()

    def sync(self) -> None:
        """Returns when everything written so far is on disk."""
        self._call(lib.kv_sync)

    def refresh(self) -> int:
        """For read-only openers: takes in what the writer has written since; how many records that was."""
        if not self._config.readonly:
            raise UsageError("refresh() is for stores opened with readonly=True: a writer is always up to date")
        return self._call(lib.kv_refresh)

    def _call(self, function: Any) -> int:
        caller = self._handle.take()
        result: int = function(caller.pointer)
        if result < 0:
            raise self._handle.failed(result, caller)
        self._handle.callers.append(caller)
        return result

    def stats(self) -> dict[str, Any]:
        """Figures of the store (store.h has each one), its checkpoints, and `catalog`: why it is ignored, or None."""
        return self._handle.measure() | self._keeper.stats() | {"catalog": self._catalog.note}

    def close(self) -> None:
        """Ends writing, makes a last checkpoint, syncs, and lets go. The second time: nothing."""
        self._shut()

    # --- as a dict, and as a context ---

    def __setitem__(self, key: BytesLike, value: BytesLike) -> None:
        self.put(key, value)

    def __delitem__(self, key: BytesLike) -> None:
        if not self.delete(key):
            raise KeyError(key)

    def __len__(self) -> int:
        """Keys that have a value, expired ones included until they are reclaimed. Tables are not counted."""
        return self._call(lib.kv_count)

    def __bool__(self) -> bool:
        """True, also when empty: `if db` asks whether there is a store."""
        return True

    def __enter__(self) -> Engine:
        if not self._shut.alive:
            raise ClosedError(f"{self._handle.path} was closed: open it again")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_shut") and self._shut.alive and not self._handle.forked:
            warnings.warn(f"{self!r} was not closed: use with or close()", ResourceWarning, source=self, stacklevel=2)

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "an open store is of this process and has one writer, so it is neither pickled nor copied: "
            "pass its path, and open it there, with readonly=True if it stays open here"
        )

    def __repr__(self) -> str:
        state = "closed" if not self._shut.alive else "readonly" if self._config.readonly else self._config.sync
        return f"<kvsvr.Engine {self._handle.path!r} {state}>"


# --- opening and closing ---


class _Writers:
    """The directories this process has open for writing, by device and inode, so that whoever asks again
    learns that it was here."""

    def __init__(self) -> None:
        # Re-entrant: the collector may run the finalizer of a dropped Engine while this thread is in here.
        self._lock = threading.RLock()
        self._places: set[tuple[int, int]] = set()
        os.register_at_fork(after_in_child=self._forget)

    def enter(self, directory: str) -> tuple[int, int]:
        status = os.stat(directory)
        place = status.st_dev, status.st_ino
        with self._lock:
            if place in self._places:
                raise LockedError(directory, os.getpid(), here=True)
            self._places.add(place)
        return place

    def leave(self, place: tuple[int, int] | None) -> None:
        """None: a reader, who never entered."""
        with self._lock:
            if place is not None:
                self._places.remove(place)

    def _forget(self) -> None:
        """In a forked child nothing is open, and the lock may have been held by a thread that is not here."""
        self.__dict__.update(_lock=threading.RLock(), _places=set())


_writers: Final = _Writers()


def _directory(path: str | os.PathLike[str], *, create: bool) -> str:
    """The absolute path of a directory that exists. Made here rather than by C, because it must have an inode before
    `_Writers` can say whether C may touch it."""
    if not os.fsdecode(path):
        raise UsageError('the path is empty: give the directory of the store, "." for this one')
    directory = os.path.realpath(os.fsdecode(path))
    parent = os.path.dirname(directory)
    try:
        if create and not os.path.lexists(directory):
            with suppress(FileExistsError):  # Somebody else came first; who opens it is settled later, by the lock.
                os.mkdir(directory)
            sync_directory(parent)
        if not stat.S_ISDIR(os.stat(directory).st_mode):
            raise UsageError(f"{directory} is a file; a store is a directory: give another path")
    except FileNotFoundError:
        if create:
            raise UsageError(f"{parent} is not there: make it first; a store makes its own directory only") from None
        raise UsageError(
            f"there is no store at {directory}: check the path, or open it without readonly=True"
        ) from None
    except OSError as error:
        raise DiskError(
            f"{directory} cannot be opened: {error.strerror}", path=directory, errno=error.errno or 0
        ) from error
    return directory


def _shut(handle: Handle, keeper: Housekeeper, place: tuple[int, int] | None) -> None:
    """Closes what an Engine had open: called once, by close(), by the collector, or as the interpreter ends."""
    if handle.forked or handle.freed:
        return
    if keeper.is_here:
        # The collector chose this thread, maybe inside a checkpoint, and there can be no second one inside it.
        keeper.leave_closing(partial(_end, handle, keeper, place))
    else:
        _end(handle, keeper, place)


def _end(handle: Handle, keeper: Housekeeper, place: tuple[int, int] | None) -> None:
    """Whatever interrupts the last checkpoint, C is closed. The place is kept if even that could not be called: it is
    better to let nobody in than a second writer."""
    try:
        if place is not None:
            keeper.stop()
            with keeper.alone:  # Whoever compacts by hand has been told to stop, too.
                handle.quiesce()
                keeper.checkpoint()
    finally:
        try:
            handle.close()
        finally:
            if handle.closed:
                _writers.leave(place)


# --- arguments and answers ---


def _deadline(timeout: float | None) -> float | None:
    """When a wait ends, by the monotonic clock; None: never."""
    if timeout is None or timeout == math.inf:
        return None
    if not isinstance(timeout, int | float) or not 0 <= timeout <= TIMEOUT_MAX:
        raise UsageError(
            f"timeout is a number of seconds from 0 to {TIMEOUT_MAX}, or None to wait without bound, "
            f"not {shown(timeout)}"
        )
    return time.monotonic() + timeout
