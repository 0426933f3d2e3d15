"""Every call of a replica set, once, as a coroutine: over asyncio's connections it is `aio`, over such that block it is
what store.py hands to threads. How a call finds its replica, and happens once, is in caller.py.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar, overload

from kvsvr.client.blocks import AsyncBlock, AsyncRemoteTransaction, RemoteBatch, RemoteTransaction, Seen, packed
from kvsvr.client.caller import Caller
from kvsvr.client.words import (
    Consistency,
    Durability,
    Words,
    figures_of,
    is_data,
    is_stale,
    key_of,
    page,
    single,
    value_of,
)
from kvsvr.errors import UsageError, VersionConflict, shown
from kvsvr.native import borrow, failure, lib, own, ttl_ms
from kvsvr.store.arguments import addend, chunks, expiry_of, limit_of, pair_chunks, version_of
from kvsvr.store.batch import Names
from kvsvr.store.transaction import ATTEMPTS, PAUSE_MAX, PAUSE_MIN
from kvsvr.types import BytesLike, Versioned

if TYPE_CHECKING:
    from kvsvr.client.store import RemoteTable
    from kvsvr.client.tables import AsyncRemoteTable

T = TypeVar("T")

PAGE_COUNT: Final = 512
WAIT_S: Final = 1.0
"""So long a replica waits for a version, at most; below PATIENCE_S, so that it is not taken for one that hangs."""
BYTES: Final = (bytes, bytearray, memoryview, str)
MANY_COUNT: Final = 512
READ_COUNT: Final = 64
"""Fewer: nobody knows how large their answers are."""


class AsyncRemote:
    """A replica set: the calls of an embedded store's `aio`, but for those that a set has no command for.

    What is answered is on the disks of a majority, so `durable` changes nothing, and sync() has nothing to do. Reads
    are linearizable; get and get_many may be told to be "stale". Used in one event loop.
    """

    def __init__(
        self, caller: Caller, consistency: Consistency, durability: Durability, closes: Callable[[], None] | None = None
    ) -> None:
        self._caller = caller
        self._stale = is_stale(consistency)
        self._data = is_data(durability)
        self._closes = closes

    def _is_data(self, durability: Durability | None) -> bool:
        return self._data if durability is None else is_data(durability)

    def _is_stale(self, consistency: Consistency | None) -> bool:
        return self._stale if consistency is None else is_stale(consistency)

    # --- one key ---

    @overload
    async def get(self, key: BytesLike, *, consistency: Consistency | None = None) -> bytes | None: ...
    @overload
    async def get(self, key: BytesLike, default: T, *, consistency: Consistency | None = None) -> bytes | T: ...
    async def get(
        self, key: BytesLike, default: T | None = None, *, consistency: Consistency | None = None
    ) -> bytes | T | None:
        """The value, or `default` if the key is absent or has expired. WrongType if it is a table."""
        name = key_of(key)
        value: bytes | None = await self._caller.read("GET", name, key=name, stale=self._is_stale(consistency))
        return default if value is None else value

    async def get_versioned(self, key: BytesLike) -> Versioned | None:
        """The value with its version and expiry, all of one moment; None if the key is absent."""
        return await self.look(key_of(key), None)

    async def look(self, name: bytes, table: bytes | None) -> Versioned | None:
        """The same of a key, or of a row of a table."""
        words = ("KV.LOOK", name) if table is None else ("KV.LOOK", table, name)
        found = await self._caller.read(*words, key=name, table=table)
        if found is None:
            return None
        if found[0] == b"table":
            raise failure(lib.KV_EWRONGTYPE, None, self._caller.path, name)
        return Versioned(found[3], found[1], found[2] / 1000 if found[2] else None)

    async def contains(self, key: BytesLike) -> bool:
        """Whether the key has a value. A table has none."""
        name = key_of(key)
        return bool(await self._caller.read("TYPE", name, key=name) == b"string")

    async def put(
        self,
        key: BytesLike,
        value: BytesLike,
        *,
        ttl: float | None = None,
        durable: bool = False,
        durability: Durability | None = None,
    ) -> int:
        """Sets the value, in place of what was there, a table included; the new version."""
        name, words = key_of(key), value_of(value)
        write = single("PUT", name, value=words, ttl_ms=expiry_of(ttl))
        return await self._version(write, name, durability)

    async def delete(self, key: BytesLike, *, version: int | None = None, durable: bool = False) -> bool:
        """Whether the key, or the table, was there. With `version`, only at that version: else VersionConflict."""
        name, expected = key_of(key), -1 if version is None else version_of(version, least=1)
        return await self._version(single("DELETE", name, argument=expected), name) > 0

    async def cas(
        self,
        key: BytesLike,
        value: BytesLike,
        version: int,
        *,
        ttl: float | None = None,
        durable: bool = False,
        durability: Durability | None = None,
    ) -> int:
        """Sets the value if the key is at `version`, 0 meaning absent; the new version. Else VersionConflict."""
        name, content = key_of(key), value_of(value)
        expected = version_of(version, least=0)
        write = single("CAS", name, value=content, argument=expected, ttl_ms=expiry_of(ttl))
        return await self._version(write, name, durability)

    async def incr(self, key: BytesLike, by: int = 1, *, ttl: float | None = None, durable: bool = False) -> int:
        """Adds to a counter kept as decimal digits, an absent one counting as 0; the new number."""
        name, expiry, amount = key_of(key), expiry_of(ttl), addend(by)
        return await self._number(single("INCR", name, argument=amount, ttl_ms=expiry), name)

    async def append(
        self,
        key: BytesLike,
        data: BytesLike,
        *,
        ttl: float | None = None,
        durable: bool = False,
        durability: Durability | None = None,
    ) -> int:
        """Puts bytes behind the value, an absent one counting as empty; the new length."""
        name, content = key_of(key), value_of(data)
        return await self._number(single("APPEND", name, value=content, ttl_ms=expiry_of(ttl)), name, durability)

    async def expire(self, key: BytesLike, ttl: float, *, durable: bool = False) -> bool:
        """Lets the key expire `ttl` seconds from now; False if it is absent."""
        if ttl is None or ttl == 0:
            raise UsageError(f"ttl is a positive number of seconds, not {ttl!r}: persist() takes an expiry away")
        name = key_of(key)
        return await self._version(single("EXPIRE", name, ttl_ms=ttl_ms(ttl)), name) > 0

    async def persist(self, key: BytesLike, *, durable: bool = False) -> bool:
        """Takes the key's expiry away; False if it is absent or has none."""
        name = key_of(key)
        return await self._version(single("EXPIRE", name), name) > 0

    async def ttl(self, key: BytesLike) -> float | None:
        """Seconds until the key expires, by its owner's clock; None if it has no expiry or is absent."""
        name = key_of(key)
        left: int = await self._caller.read("PTTL", name, key=name)
        return left / 1000 if left >= 0 else None

    async def _version(self, words: Words, key: bytes, durability: Durability | None = None) -> int:
        return (await self._caller.once(self._caller.write_of(words, data=self._is_data(durability), key=key)))[0]

    async def _number(self, words: Words, key: bytes, durability: Durability | None = None) -> int:
        return (await self._caller.once(self._caller.write_of(words, data=self._is_data(durability), key=key)))[1]

    # --- many keys ---

    async def get_many(
        self, keys: Iterable[BytesLike], *, consistency: Consistency | None = None
    ) -> list[bytes | None]:
        """The values in the order of the keys, None for those that are absent. As single gets: not of one moment."""
        stale = self._is_stale(consistency)
        values: list[bytes | None] = []
        for chunk in chunks(keys, READ_COUNT):
            names = [key_of(key) for key in chunk]
            values += await self._caller.read_many(names, lambda name: ("GET", name), stale=stale)
        return values

    async def put_many(
        self,
        pairs: Iterable[tuple[BytesLike, BytesLike]],
        *,
        ttl: float | None = None,
        durable: bool = False,
        durability: Durability | None = None,
    ) -> int:
        """Sets many values; how many pairs were written. Not atomic: an exception leaves some of them written."""
        expiry, data, count = expiry_of(ttl), self._is_data(durability), 0
        for keys, values in pair_chunks(pairs):
            writes = []
            for key, value in zip(keys, values, strict=True):
                name = key_of(key)
                words = single("PUT", name, value=value_of(value), ttl_ms=expiry)
                writes.append(self._caller.write_of(words, data=data, key=name))
            await self._caller.once_each(writes)
            count += len(writes)
        return count

    async def delete_many(self, keys: Iterable[BytesLike], *, durable: bool = False) -> int:
        """Deletes many keys; how many were there. Not atomic, as put_many."""
        count = 0
        for chunk in chunks(keys, MANY_COUNT):
            names = [key_of(key) for key in chunk]
            writes = [
                self._caller.write_of(single("DELETE", name, argument=-1), data=False, key=name) for name in names
            ]
            count += sum(answer[0] > 0 for answer in await self._caller.once_each(writes))
        return count

    # --- in order ---

    def scan(
        self,
        start: BytesLike | None = None,
        stop: BytesLike | None = None,
        *,
        prefix: BytesLike | None = None,
        reverse: bool = False,
        limit: int | None = None,
    ) -> AsyncIterator[tuple[bytes, bytes]]:
        """(key, value) in the order of keys, from all shards. Nothing is held between pages."""
        return listing(self._caller, b"KEYS", None, start, stop, prefix, reverse, limit, values=True)

    def keys(
        self,
        start: BytesLike | None = None,
        stop: BytesLike | None = None,
        *,
        prefix: BytesLike | None = None,
        reverse: bool = False,
        limit: int | None = None,
    ) -> AsyncIterator[bytes]:
        """The keys alone, as scan() gives them; no value is read."""
        return listing(self._caller, b"KEYS", None, start, stop, prefix, reverse, limit, values=False)

    def tables(self, prefix: BytesLike | None = None) -> AsyncIterator[bytes]:
        """The keys of tables in order, all or those that begin with `prefix`."""
        return listing(self._caller, b"TABLES", None, None, None, prefix, False, None, values=False)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self.keys()

    def table(self, key: BytesLike) -> AsyncRemoteTable:
        """The table under this key, which comes into being with its first row. Costs nothing: it is a name."""
        from kvsvr.client.tables import AsyncRemoteTable  # Not above: it imports this module.

        return AsyncRemoteTable(self._caller, key, self._data)

    # --- together ---

    def batch(self, *, durable: bool = False, durability: Durability | None = None) -> AsyncBlock[RemoteBatch]:
        """An `async with` block whose puts and deletes are written together at its end: all or nothing, one version.
        With several shards, its keys are of one hash slot."""
        batch = RemoteBatch()
        return AsyncBlock(batch, batch, self, self._is_data(durability))

    def transaction(self, *, durable: bool = False) -> AsyncBlock[AsyncRemoteTransaction]:
        """An `async with` block that reads, and whose writes are written at its end, if nothing it has read has changed
        meanwhile; else VersionConflict, and nothing. Its keys are of one hash slot, as those of a batch."""
        inner = RemoteTransaction(lambda name, table: None)
        return AsyncBlock(AsyncRemoteTransaction(self, inner), inner, self, self._data)

    async def run(
        self,
        fn: Callable[[AsyncRemoteTransaction], Awaitable[T]],
        *,
        attempts: int = ATTEMPTS,
        durable: bool = False,
    ) -> T:
        """Awaits fn(t) with a transaction, commits, and returns what fn gave; once more after a VersionConflict."""
        if not isinstance(attempts, int) or isinstance(attempts, bool) or attempts < 1:
            raise UsageError(f"attempts is a whole number from 1 up, not {shown(attempts)}")
        pause = PAUSE_MIN
        for _ in range(attempts - 1):
            try:
                async with self.transaction() as t:
                    return await fn(t)
            except VersionConflict:
                await asyncio.sleep(random.uniform(0, pause))
                pause = min(2 * pause, PAUSE_MAX)
        async with self.transaction() as t:
            return await fn(t)

    async def write_together(self, names: Names, seen: Seen, *, data: bool) -> int:
        """What a block has collected, if what it has seen stands; the version."""
        one_slot = packed(names, seen, strict=await self._caller.is_spread())
        if one_slot is None:
            return 0
        at, words = one_slot
        try:
            return (await self._caller.once(self._caller.write_of(words, data=data, at=at)))[0]
        except VersionConflict as conflict:
            raise await self._blamed(seen, conflict) from None

    async def _blamed(self, seen: Seen, conflict: VersionConflict) -> VersionConflict:
        """Which of those seen has changed: the set tells its version, and not its name."""
        for (table, name), version in seen.items():
            found = await self._caller.read(
                "KV.LOOK", *((name,) if table is None else (table, name)), key=name, table=table
            )
            if (found[1] if found else 0) != version:
                return VersionConflict(name, found[1] if found else 0, table=table)
        table, name = next(iter(seen))
        return VersionConflict(name, conflict.current, table=table)

    # --- the set as a whole ---

    async def wait(
        self, key: BytesLike | AsyncRemoteTable | RemoteTable, version: int, timeout: float | None = None
    ) -> int:
        """Waits until the key, or the table, is newer than `version`; the version it has then.

        At the timeout, in seconds (None: no bound), the version it has: not above `version`. Any replica tells, from
        what it has applied.
        """
        name, known = key_of(key if isinstance(key, BYTES) else key.key), version_of(version, least=0)
        deadline = deadline_of(timeout)
        while True:
            left = WAIT_S if deadline is None else max(0.0, min(WAIT_S, deadline - time.monotonic()))
            current: int = await self._caller.read("KV.WAIT", name, known, round(left * 1000), key=name)
            if current > known or (deadline is not None and time.monotonic() >= deadline):
                return current

    async def sync(self) -> None:
        """What was answered is on the disks of a majority: there is nothing to wait for."""

    async def count(self) -> int:
        """Keys that have a value, expired ones included until they are reclaimed."""
        return int(await self._caller.read("KV.COUNT"))

    async def stats(self) -> dict[str, Any]:
        """Figures of one of the replicas: INFO, as a dict."""
        return figures_of(await self._caller.read("INFO"))

    async def close(self) -> None:
        """Lets go of the connections. The second time: nothing."""
        await self._caller.close()
        if self._closes is not None:
            self._closes()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __bool__(self) -> bool:
        """True, also when empty."""
        return True

    def __repr__(self) -> str:
        return f"<kvsvr.AsyncRemote {self._caller.path}>"


def listing(
    caller: Caller,
    what: bytes,
    table: bytes | None,
    start: BytesLike | None,
    stop: BytesLike | None,
    prefix: BytesLike | None,
    reverse: bool,
    limit: int | None,
    *,
    values: bool,
) -> AsyncIterator[Any]:
    """Checked now, read as it is asked for."""
    if prefix is None:
        first, behind = None if start is None else own(start), None if stop is None else own(stop)
    elif start is not None or stop is not None:
        raise UsageError("prefix says where to start and to stop: give either it or them")
    else:
        first = bytes(borrow(prefix, "prefix"))
        behind = successor(first)
    return _pages(caller, what, table, first, behind, bool(reverse), limit_of(limit), values)


async def _pages(
    caller: Caller,
    what: bytes,
    table: bytes | None,
    start: bytes | None,
    stop: bytes | None,
    reverse: bool,
    left: int | None,
    values: bool,
) -> AsyncIterator[Any]:
    command = "KV.PAGE" if table is None else "TBL.PAGE"
    while left is None or left > 0:
        count = PAGE_COUNT if left is None else min(left, PAGE_COUNT)
        words = page(what if table is None else table, start, stop, count, values=values, reverse=reverse)
        resume, *entries = await caller.read(command, *words, key=table)
        found = list(zip(entries[::2], entries[1::2], strict=True)) if values else entries
        left = None if left is None else left - len(found)
        for entry in found:
            yield entry
        if resume is None:
            return
        start, stop = (start, resume) if reverse else (resume + b"\0", stop)


def deadline_of(timeout: float | None) -> float | None:
    """When a wait ends, by the monotonic clock; None: never."""
    if timeout is None or timeout == math.inf:
        return None
    if not isinstance(timeout, int | float) or not 0 <= timeout <= 10**9:
        raise UsageError(f"timeout is a number of seconds from 0 to {10**9}, or None to wait, not {shown(timeout)}")
    return time.monotonic() + timeout


def successor(prefix: bytes) -> bytes | None:
    """The lowest string above all that begin with the prefix; None: there is none."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else None
