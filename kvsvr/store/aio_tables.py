"""Tables and snapshots for coroutines: see kvsvr.store.aio. What each call does is in the docstring of its twin."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from types import TracebackType
from typing import TypeVar, overload

from kvsvr.native import LATER
from kvsvr.store.aio_threads import LARGE_SIZE, Stream, in_thread, size_of
from kvsvr.store.reads import Reads
from kvsvr.store.snapshot import Snapshot
from kvsvr.store.table import Table, TableReads
from kvsvr.types import BytesLike, Changes, Versioned

T = TypeVar("T")

Settled = Callable[[bool], Awaitable[None]]


class AsyncTableReads:
    """A table, for coroutines. len() and `version` wait for nothing."""

    __slots__ = ("_table",)

    def __init__(self, table: TableReads) -> None:
        self._table = table

    @property
    def key(self) -> bytes:
        return self._table.key

    @property
    def version(self) -> int:
        return self._table.version

    @property
    def expires_at(self) -> float | None:
        return self._table.expires_at

    def __len__(self) -> int:
        return len(self._table)

    def __bool__(self) -> bool:
        return True

    @overload
    async def get(self, row: BytesLike) -> bytes | None: ...
    @overload
    async def get(self, row: BytesLike, default: T) -> bytes | T: ...
    async def get(self, row: BytesLike, default: T | None = None) -> bytes | T | None:
        if self._table.size_of(row) > LARGE_SIZE:
            return await in_thread(self._table.get, row, default)
        return self._table.get(row, default)

    async def get_versioned(self, row: BytesLike) -> Versioned | None:
        if self._table.size_of(row) > LARGE_SIZE:
            return await in_thread(self._table.get_versioned, row)
        return self._table.get_versioned(row)

    def rows(
        self,
        start: BytesLike | None = None,
        stop: BytesLike | None = None,
        *,
        prefix: BytesLike | None = None,
        reverse: bool = False,
        limit: int | None = None,
    ) -> AsyncIterator[tuple[bytes, bytes]]:
        return Stream(self._table.rows(start, stop, prefix=prefix, reverse=reverse, limit=limit))

    def keys(
        self,
        start: BytesLike | None = None,
        stop: BytesLike | None = None,
        *,
        prefix: BytesLike | None = None,
        reverse: bool = False,
        limit: int | None = None,
    ) -> AsyncIterator[bytes]:
        return Stream(self._table.keys(start, stop, prefix=prefix, reverse=reverse, limit=limit))

    async def last(self, count: int) -> list[tuple[bytes, bytes]]:
        return await in_thread(self._table.last, count)

    async def changes(self, since: int, limit: int | None = None) -> Changes:
        return await in_thread(self._table.changes, since, limit)


class AsyncTable(AsyncTableReads):
    """The same, with what writes."""

    __slots__ = ("_settled",)

    _table: Table

    def __init__(self, table: Table, settled: Settled) -> None:
        super().__init__(table)
        self._settled = settled

    async def put(self, row: BytesLike, value: BytesLike, *, ttl: float | None = None, durable: bool = False) -> int:
        if size_of(value) > LARGE_SIZE:
            return await in_thread(self._table.put, row, value, ttl=ttl, durable=durable)
        version = self._table.put(row, value, ttl=ttl, durable=LATER)
        await self._settled(durable)
        return version

    async def delete(self, row: BytesLike, *, version: int | None = None, durable: bool = False) -> bool:
        was_there = self._table.delete(row, version=version, durable=LATER)
        await self._settled(durable)
        return was_there

    async def cas(
        self, row: BytesLike, value: BytesLike, version: int, *, ttl: float | None = None, durable: bool = False
    ) -> int:
        if size_of(value) > LARGE_SIZE:
            return await in_thread(self._table.cas, row, value, version, ttl=ttl, durable=durable)
        new_version = self._table.cas(row, value, version, ttl=ttl, durable=LATER)
        await self._settled(durable)
        return new_version

    async def incr(self, row: BytesLike, by: int = 1, *, ttl: float | None = None, durable: bool = False) -> int:
        number = self._table.incr(row, by, ttl=ttl, durable=LATER)
        await self._settled(durable)
        return number

    async def append(self, value: BytesLike, *, ttl: float | None = None, durable: bool = False) -> bytes:
        if size_of(value) > LARGE_SIZE:
            return await in_thread(self._table.append, value, ttl=ttl, durable=durable)
        row = self._table.append(value, ttl=ttl, durable=LATER)
        await self._settled(durable)
        return row

    async def put_many(
        self, pairs: Iterable[tuple[BytesLike, BytesLike]], *, ttl: float | None = None, durable: bool = False
    ) -> int:
        return await in_thread(self._table.put_many, pairs, ttl=ttl, durable=durable)

    async def delete_range(
        self, start: BytesLike | None = None, stop: BytesLike | None = None, *, durable: bool = False
    ) -> int:
        return await in_thread(self._table.delete_range, start, stop, durable=durable)

    async def trim(self, version: int, *, durable: bool = False) -> int:
        floor = self._table.trim(version, durable=LATER)
        await self._settled(durable)
        return floor

    async def drop(self, *, durable: bool = False) -> bool:
        was_there = self._table.drop(durable=LATER)
        await self._settled(durable)
        return was_there


class AsyncListing:
    """Keys and tables in order, of a store or of a snapshot."""

    __slots__ = ("_reads",)

    def __init__(self, reads: Reads) -> None:
        self._reads = reads

    def scan(
        self,
        start: BytesLike | None = None,
        stop: BytesLike | None = None,
        *,
        prefix: BytesLike | None = None,
        reverse: bool = False,
        limit: int | None = None,
    ) -> AsyncIterator[tuple[bytes, bytes]]:
        return Stream(self._reads.scan(start, stop, prefix=prefix, reverse=reverse, limit=limit))

    def keys(
        self,
        start: BytesLike | None = None,
        stop: BytesLike | None = None,
        *,
        prefix: BytesLike | None = None,
        reverse: bool = False,
        limit: int | None = None,
    ) -> AsyncIterator[bytes]:
        return Stream(self._reads.keys(start, stop, prefix=prefix, reverse=reverse, limit=limit))

    def tables(self, prefix: BytesLike | None = None) -> AsyncIterator[bytes]:
        return Stream(self._reads.tables(prefix))


class AsyncSnapshot(AsyncListing):
    """A snapshot, for coroutines. Its reads run in threads: what it shows may be cold."""

    __slots__ = ("_snapshot",)

    def __init__(self, snapshot: Snapshot) -> None:
        super().__init__(snapshot)
        self._snapshot = snapshot

    @property
    def version(self) -> int:
        return self._snapshot.version

    @overload
    async def get(self, key: BytesLike) -> bytes | None: ...
    @overload
    async def get(self, key: BytesLike, default: T) -> bytes | T: ...
    async def get(self, key: BytesLike, default: T | None = None) -> bytes | T | None:
        return await in_thread(self._snapshot.get, key, default)

    async def get_versioned(self, key: BytesLike) -> Versioned | None:
        return await in_thread(self._snapshot.get_versioned, key)

    async def get_many(self, keys: Iterable[BytesLike]) -> list[bytes | None]:
        return await in_thread(self._snapshot.get_many, keys)

    def table(self, key: BytesLike) -> AsyncTableReads:
        return AsyncTableReads(self._snapshot.table(key))

    def close(self) -> None:
        self._snapshot.close()

    async def __aenter__(self) -> AsyncSnapshot:
        self._snapshot.__enter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
