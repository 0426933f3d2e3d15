"""The engine as coroutines: `db.aio`. The same calls, for programs that live in an event loop.

What runs where:
  inline     gets and puts of up to LARGE_SIZE bytes, and everything else that is a memcpy and no disk. A thread would
             cost more than the call.
  told       durability, and waiting for a version. Nothing waits: C is asked, and rings an eventfd (store.h).
  a thread   of the loop's default executor: larger values, many keys, pages of a scan, work on the store as a whole.

A write is inline also where it shall be durable: it is made with durable=LATER, then its place in the flow is awaited.
All who wait in one turn of the loop ask once, and share one group commit with everybody else's.

Cancelling who waits cancels the waiting and nothing else: a write that was begun is written, and stays.

A `Bell` belongs to one loop and is used in its thread alone. An AsyncEngine belongs to none: it finds the bell of the
loop that runs, so one store serves any number of loops, in any threads, one after the other or at a time.

Life: the loop holds its bell, the bell the Handle, never the Engine; so a loop that has once waited keeps no forgotten
store open. `Bells` holds loops weakly: one that is closed and dropped takes its bell along. When the store is closed C
rings; the bell fails whoever waits, and leaves the loop. In a forked child C answers ClosedError to everything.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
import weakref
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from itertools import islice
from types import TracebackType
from typing import Any, Final, Generic, TypeVar, overload

from kvsvr.errors import ClosedError, KvError, UsageError, VersionConflict, shown
from kvsvr.native import LATER, Handle, lib, own
from kvsvr.store.aio_tables import AsyncListing, AsyncSnapshot, AsyncTable
from kvsvr.store.aio_threads import LARGE_SIZE, MANY_COUNT, Stream, in_thread, size_of
from kvsvr.store.backup import BackupReport
from kvsvr.store.batch import Batch, Writes
from kvsvr.store.engine import Engine, _deadline
from kvsvr.store.table import TableReads
from kvsvr.store.transaction import ATTEMPTS, PAUSE_MAX, PAUSE_MIN, Transaction
from kvsvr.store.verify import Progress, Report
from kvsvr.types import BytesLike, Versioned

__all__ = ["AsyncEngine", "AsyncTransaction", "Bells", "Block", "Stream"]

T = TypeVar("T")
E = TypeVar("E")
W = TypeVar("W")

# How many waiters are looked after before the loop gets its turn: a write may concern thousands of them.
LOOK_COUNT_MAX: Final = 128
# Another process writes, and nobody here is told.
POLL_SECONDS: Final = 0.005


# --- being told ---


class Bell:
    """An eventfd that C rings, and who in this loop wants to hear of it."""

    __slots__ = (
        "__weakref__",
        "_asking",
        "_fd",
        "_handle",
        "_let_go",
        "_looked",
        "_looking",
        "_unsynced",
        "_upto",
        "_watchers",
    )

    def __init__(self, handle: Handle, loop: asyncio.AbstractEventLoop) -> None:
        self._handle = handle
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._let_go = weakref.finalize(self, _let_go, handle, self._fd)
        self._let_go.atexit = False
        # In the order of their positions, because a tail only grows.
        self._unsynced: dict[asyncio.Future[None], int] = {}
        self._upto = 0
        self._asking = False
        self._watchers: dict[asyncio.Future[None], tuple[Callable[[], int], int]] = {}
        self._looked = -1
        self._looking = False
        handle.notify(self._fd)
        loop.add_reader(self._fd, self.rung)

    @property
    def ended(self) -> bool:
        return not self._let_go.alive

    def rung(self) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(self._fd)
        self._settle()
        self._look()

    def _end(self) -> None:
        """The store is closed: nothing rings any more."""
        if self._let_go.alive:
            asyncio.get_running_loop().remove_reader(self._fd)
            self._let_go()

    def _call(self, function: Any, *arguments: int) -> int:
        caller = self._handle.take()
        result: int = function(caller.pointer, *arguments)
        if result < 0:
            raise self._handle.failed(result, caller)
        self._handle.callers.append(caller)
        return result

    # --- until it is on disk ---

    async def durable(self) -> None:
        """Returns when everything this thread has written is on disk."""
        loop = asyncio.get_running_loop()
        self._upto = self._call(lib.kv_tail)
        future = loop.create_future()
        self._unsynced[future] = self._upto
        if not self._asking:
            # Not at once: whoever has his turn before that writes first, and shares the commit.
            self._asking = True
            loop.call_soon(self._settle)
        try:
            await future
        finally:
            self._unsynced.pop(future, None)

    def _settle(self) -> None:
        """Answers those whose writes are on disk, and asks for the others."""
        self._asking = False
        try:
            durable = self._call(lib.kv_ask_durable, self._upto)
        except (KvError, MemoryError) as error:
            self._settle_each()
            if isinstance(error, ClosedError):
                self._end()
            return
        for future, upto in self._unsynced.items():
            if upto > durable:
                break
            _resolve(future)

    def _settle_each(self) -> None:
        """One asking failed: each asks for itself, for an exception of its own. Some may be durable nevertheless."""
        for future, upto in self._unsynced.items():
            try:
                if self._call(lib.kv_ask_durable, upto) >= upto:
                    _resolve(future)
            except (KvError, MemoryError) as error:
                _fail(future, error)

    # --- until a key is newer ---

    async def newer(self, look: Callable[[], int], version: int, seconds: float | None) -> int:
        """Returns what look() says as soon as that is above `version`, or when the seconds are over."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        timer = None if seconds is None else loop.call_later(seconds, _resolve, future)
        self._watchers[future] = look, version
        try:
            # In this order: what is written before the asking is seen by the look, and what comes later rings.
            self._call(lib.kv_ask_written)
            if look() <= version:
                await future
            return look()
        finally:
            del self._watchers[future]
            if timer is not None:
                timer.cancel()

    def _look(self) -> None:
        """Begins a look after all who watch, if anything was written since the last one began."""
        if self._looking or not self._watchers:
            return
        try:
            written = self._call(lib.kv_ask_written)
        except (KvError, MemoryError):
            self._fail_watchers()
            return
        if written != self._looked:
            self._looked = written
            self._looking = True
            self._look_on(iter(list(self._watchers.items())))

    def _look_on(self, due: Iterator[tuple[asyncio.Future[None], tuple[Callable[[], int], int]]]) -> None:
        loop = asyncio.get_running_loop()
        count = 0
        for future, (look, version) in islice(due, LOOK_COUNT_MAX):
            count += 1
            try:
                if not future.done() and look() > version:
                    _resolve(future)
            except Exception as error:
                _fail(future, error)
        if count == LOOK_COUNT_MAX:
            loop.call_soon(self._look_on, due)
        else:
            # Rings were not answered meanwhile.
            self._looking = False
            loop.call_soon(self._look)

    def _fail_watchers(self) -> None:
        for future in self._watchers:
            try:
                self._call(lib.kv_ask_written)
            except (KvError, MemoryError) as error:
                _fail(future, error)


def _let_go(handle: Handle, fd: int) -> None:
    handle.unnotify(fd)
    os.close(fd)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _fail(future: asyncio.Future[None], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


class Bells:
    """The bells of one store, by event loop."""

    __slots__ = ("_bells", "_handle")

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        # No lock: a loop's entry is written in that loop's thread alone.
        self._bells: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Bell] = weakref.WeakKeyDictionary()

    def here(self) -> Bell:
        """The bell of the running loop."""
        loop = asyncio.get_running_loop()
        bell = self._bells.get(loop)
        if bell is None or bell.ended:
            self._sweep()
            bell = self._bells[loop] = Bell(self._handle, loop)
        return bell

    def _sweep(self) -> None:
        """A loop that was closed under its tasks is held by what they await: nobody else would let go of it."""
        for reference in self._bells.keyrefs():
            loop = reference()
            if loop is not None and loop.is_closed():
                self._bells.pop(loop, None)

    def closed(self) -> None:
        """The store was closed: the running loop need not wait for the ring."""
        bell = self._bells.get(asyncio.get_running_loop())
        if bell is not None and not bell.ended:
            bell.rung()

    def of(self, engine: Engine) -> AsyncEngine:
        # Made anew each time: one that was kept would hold the Engine, which holds this.
        return AsyncEngine(engine, self)


# --- blocks ---


class AsyncTransaction:
    """A transaction whose reads are awaited; see Transaction. Writes are collected, so they are plain calls."""

    __slots__ = ("_aio", "_inner")

    def __init__(self, aio: AsyncEngine, inner: Transaction) -> None:
        self._aio = aio
        self._inner = inner

    @property
    def version(self) -> int | None:
        return self._inner.version

    @overload
    async def get(self, key: BytesLike) -> bytes | None: ...
    @overload
    async def get(self, key: BytesLike, default: T) -> bytes | T: ...
    async def get(self, key: BytesLike, default: T | None = None) -> bytes | T | None:
        if self._aio._size(key) > LARGE_SIZE:
            return await in_thread(self._inner.get, key, default)
        return self._inner.get(key, default)

    def put(self, key: BytesLike, value: BytesLike, ttl: float | None = None) -> None:
        self._inner.put(key, value, ttl)

    def delete(self, key: BytesLike) -> None:
        self._inner.delete(key)

    def __len__(self) -> int:
        return len(self._inner)

    def __bool__(self) -> bool:
        """True, also when empty."""
        return True


class Block(Generic[W]):
    """`async with` around a batch or transaction: what is collected is written at its end, and awaited if durable."""

    __slots__ = ("_aio", "_durable", "_face", "_writes")

    def __init__(self, aio: AsyncEngine, writes: Writes, face: W, *, durable: bool) -> None:
        self._aio = aio
        self._writes = writes
        self._face = face
        self._durable = durable

    async def __aenter__(self) -> W:
        self._writes.__enter__()
        return self._face

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None or self._is_small():
            self._writes.__exit__(kind, error, trace)
        else:
            await in_thread(self._writes.__exit__, None, None, None)
        if kind is None and self._writes.version:
            await self._aio._settled(self._durable)

    def _is_small(self) -> bool:
        operations = self._writes._operations
        size = sum(len(value or b"") for value, _ in operations.values())
        return len(operations) <= MANY_COUNT and size <= LARGE_SIZE


def _value_size(pair: object) -> int:
    """0 for what is no pair, which put_many refuses."""
    return size_of(pair[1]) if isinstance(pair, tuple | list) and len(pair) == 2 else 0


# --- the engine ---


class AsyncEngine(AsyncListing):
    """One open store, for coroutines. What each call does is in the docstring of the Engine's; differences are here.

    A buffer that is passed in must not change before the call has returned: it may be read in a thread.
    """

    __slots__ = ("_always", "_bells", "_engine", "_handle")

    def __init__(self, engine: Engine, bells: Bells) -> None:
        super().__init__(engine)
        self._engine = engine
        self._bells = bells
        self._handle = engine._handle
        self._always = engine._config.sync == "always"

    async def _settled(self, durable: bool) -> None:
        """Behind a write that was made with LATER: waits as long as it has to."""
        if durable or self._always:
            await self._bells.here().durable()

    def _size(self, key: BytesLike) -> int:
        """The size of a value, without reading it; 0 also where something is wrong, which whoever reads it is told."""
        name: Any = key if key.__class__ is bytes else own(key)
        caller = self._handle.take()
        size: int = lib.kv_look(caller.pointer, name, len(name))
        self._handle.release(caller)
        return max(0, size)

    # --- one key ---

    @overload
    async def get(self, key: BytesLike) -> bytes | None: ...
    @overload
    async def get(self, key: BytesLike, default: T) -> bytes | T: ...
    async def get(self, key: BytesLike, default: T | None = None) -> bytes | T | None:
        if self._size(key) > LARGE_SIZE:
            return await in_thread(self._engine.get, key, default)
        return self._engine.get(key, default)

    async def get_versioned(self, key: BytesLike) -> Versioned | None:
        if self._size(key) > LARGE_SIZE:
            return await in_thread(self._engine.get_versioned, key)
        return self._engine.get_versioned(key)

    async def put(self, key: BytesLike, value: BytesLike, *, ttl: float | None = None, durable: bool = False) -> int:
        if size_of(value) > LARGE_SIZE:
            return await in_thread(self._engine.put, key, value, ttl=ttl, durable=durable)
        version = self._engine.put(key, value, ttl=ttl, durable=LATER)
        await self._settled(durable)
        return version

    async def delete(self, key: BytesLike, *, version: int | None = None, durable: bool = False) -> bool:
        was_there = self._engine.delete(key, version=version, durable=LATER)
        await self._settled(durable)
        return was_there

    async def cas(
        self, key: BytesLike, value: BytesLike, version: int, *, ttl: float | None = None, durable: bool = False
    ) -> int:
        if size_of(value) > LARGE_SIZE:
            return await in_thread(self._engine.cas, key, value, version, ttl=ttl, durable=durable)
        new_version = self._engine.cas(key, value, version, ttl=ttl, durable=LATER)
        await self._settled(durable)
        return new_version

    async def incr(self, key: BytesLike, by: int = 1, *, ttl: float | None = None, durable: bool = False) -> int:
        number = self._engine.incr(key, by, ttl=ttl, durable=LATER)
        await self._settled(durable)
        return number

    async def append(self, key: BytesLike, data: BytesLike, *, ttl: float | None = None, durable: bool = False) -> int:
        if self._size(key) + size_of(data) > LARGE_SIZE:
            return await in_thread(self._engine.append, key, data, ttl=ttl, durable=durable)
        size = self._engine.append(key, data, ttl=ttl, durable=LATER)
        await self._settled(durable)
        return size

    async def expire(self, key: BytesLike, ttl: float, *, durable: bool = False) -> bool:
        is_there = self._engine.expire(key, ttl, durable=LATER)
        await self._settled(durable)
        return is_there

    async def persist(self, key: BytesLike, *, durable: bool = False) -> bool:
        had_expiry = self._engine.persist(key, durable=LATER)
        await self._settled(durable)
        return had_expiry

    async def ttl(self, key: BytesLike) -> float | None:
        return self._engine.ttl(key)

    # --- many keys ---

    async def get_many(self, keys: Iterable[BytesLike]) -> list[bytes | None]:
        wanted = _listed(keys)
        if len(wanted) <= MANY_COUNT and sum(map(self._size, wanted)) <= LARGE_SIZE:
            return self._engine.get_many(wanted)
        return await in_thread(self._engine.get_many, wanted)

    async def put_many(
        self, pairs: Iterable[tuple[BytesLike, BytesLike]], *, ttl: float | None = None, durable: bool = False
    ) -> int:
        if isinstance(pairs, Mapping):
            return self._engine.put_many(pairs, ttl=ttl)  # Refused, and there is one who says so.
        wanted = list(pairs)
        is_small = len(wanted) <= MANY_COUNT and sum(map(_value_size, wanted)) <= LARGE_SIZE
        return await self._many(self._engine.put_many, wanted, is_small, durable, ttl=ttl)

    async def delete_many(self, keys: Iterable[BytesLike], *, durable: bool = False) -> int:
        wanted = _listed(keys)
        return await self._many(self._engine.delete_many, wanted, len(wanted) <= MANY_COUNT, durable)

    async def _many(self, call: Callable[..., int], wanted: Any, is_small: bool, durable: bool, **named: Any) -> int:
        # With sync="always" C waits after each group of them, which may be several.
        if self._always or not is_small:
            return await in_thread(call, wanted, durable=durable, **named)
        count = call(wanted, **named)
        await self._settled(durable)
        return count

    def batch(self, *, durable: bool = False) -> Block[Batch]:
        """`async with db.aio.batch() as b`: what it gives is a plain Batch, whose calls wait for nothing."""
        batch = self._engine.batch(durable=LATER)
        return Block(self, batch, batch, durable=durable)

    # --- transactions ---

    def transaction(self, *, durable: bool = False) -> Block[AsyncTransaction]:
        """`async with db.aio.transaction() as t`: `await t.get(...)`, then t.put(...) and t.delete(...)."""
        transaction = self._engine.transaction(durable=LATER)
        return Block(self, transaction, AsyncTransaction(self, transaction), durable=durable)

    async def run(
        self, fn: Callable[[AsyncTransaction], Awaitable[T]], *, attempts: int = ATTEMPTS, durable: bool = False
    ) -> T:
        """Awaits fn(t); again after a VersionConflict, as Engine.run."""
        if not isinstance(attempts, int) or isinstance(attempts, bool) or attempts < 1:
            raise UsageError(f"attempts is a whole number from 1 up, not {shown(attempts)}")
        pause = PAUSE_MIN
        for _ in range(attempts - 1):
            try:
                return await self._once(fn, durable)
            except VersionConflict:
                await asyncio.sleep(random.uniform(0, pause))
                pause = min(2 * pause, PAUSE_MAX)
        return await self._once(fn, durable)

    async def _once(self, fn: Callable[[AsyncTransaction], Awaitable[T]], durable: bool) -> T:
        async with self.transaction(durable=durable) as transaction:
            return await fn(transaction)

    # --- tables and snapshots ---

    def table(self, key: BytesLike) -> AsyncTable:
        return AsyncTable(self._engine.table(key), self._settled)

    def snapshot(self) -> AsyncSnapshot:
        return AsyncSnapshot(self._engine.snapshot())

    # --- the store as a whole ---

    async def wait(self, key: BytesLike | TableReads | AsyncTable, version: int, timeout: float | None = None) -> int:
        """As Engine.wait, and no thread waits. Read-only, it looks every few milliseconds."""
        deadline, name = _deadline(timeout), own(key.key if isinstance(key, TableReads | AsyncTable) else key)
        look = partial(self._engine.wait, name, version, 0)
        if self._engine._config.readonly:
            return await _poll(look, version, deadline)
        current = look()
        seconds = None if deadline is None else deadline - time.monotonic()
        if current > version or (seconds is not None and seconds <= 0):
            return current
        return await self._bells.here().newer(look, version, seconds)

    async def sync(self) -> None:
        if self._engine._config.readonly:
            self._engine.sync()  # Refused.
        await self._bells.here().durable()

    async def refresh(self) -> int:
        return await in_thread(self._engine.refresh)

    async def compact(self) -> None:
        await in_thread(self._engine.compact)

    async def backup(self, path: str | os.PathLike[str], *, progress: Progress | None = None) -> BackupReport:
        """As Engine.backup; `progress` is called in a thread."""
        return await in_thread(self._engine.backup, path, progress=progress)

    async def verify(self, *, progress: Progress | None = None) -> Report:
        """As Engine.verify; `progress` is called in a thread."""
        return await in_thread(self._engine.verify, progress=progress)

    async def stats(self) -> dict[str, Any]:
        return await in_thread(self._engine.stats)

    async def close(self) -> None:
        """As Engine.close. Coroutines that still wait for something get ClosedError."""
        try:
            await in_thread(self._engine.close)
        finally:
            self._bells.closed()

    async def __aenter__(self) -> AsyncEngine:
        self._engine.__enter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<kvsvr.Engine.aio of {self._engine!r}>"


async def _poll(look: Callable[[], int], version: int, deadline: float | None) -> int:
    while True:
        current = await in_thread(look)
        if current > version or (deadline is not None and time.monotonic() >= deadline):
            return current
        await asyncio.sleep(POLL_SECONDS)


def _listed(keys: Iterable[BytesLike]) -> list[BytesLike]:
    """The keys, taken from a generator here and not in a thread. One key instead of a list is refused by the Engine."""
    if isinstance(keys, bytes | bytearray | memoryview | str):
        raise TypeError(f"a list of keys is wanted, not one key: [{shown(keys)}]")
    return list(keys)
