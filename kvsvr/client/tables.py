"""Tables of a set: ordered rows under one key, all of them in its shard."""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine, Iterable
from typing import Any, TypeVar, overload

from kvsvr.client.caller import Caller
from kvsvr.client.calls import MANY_COUNT, listing
from kvsvr.client.words import Durability, Words, is_data, single, value_of
from kvsvr.errors import UsageError
from kvsvr.native import failure, lib, row_of, table_key
from kvsvr.store.arguments import addend, expiry_of, limit_of, pair_chunks, version_of
from kvsvr.types import BytesLike, Changes, Versioned

T = TypeVar("T")

ROW_ID_SIZE = 8
CHANGE_COUNT = 4096
"""Rows of a page of changes, unless a limit says otherwise."""


class AsyncRemoteTable:
    """A name, not a thing that is open. Rows have 0 to 65,535 bytes."""

    def __init__(self, caller: Caller, key: BytesLike, data: bool) -> None:
        self._caller = caller
        self._key = table_key(key)
        self._data = data

    @property
    def key(self) -> bytes:
        return self._key

    # --- one row ---

    @overload
    async def get(self, row: BytesLike) -> bytes | None: ...
    @overload
    async def get(self, row: BytesLike, default: T) -> bytes | T: ...
    async def get(self, row: BytesLike, default: T | None = None) -> bytes | T | None:
        """The value, or `default` if the row is absent or has expired, or the table is."""
        found = await self.get_versioned(row)
        return default if found is None else found.value

    async def get_versioned(self, row: BytesLike) -> Versioned | None:
        """The value with its version and expiry, all of one moment; None if the row is absent."""
        name = row_of(row)
        found = await self._caller.read("KV.LOOK", self._key, name, key=name, table=self._key)
        return None if found is None else Versioned(found[3], found[1], found[2] / 1000 if found[2] else None)

    async def put(
        self,
        row: BytesLike,
        value: BytesLike,
        *,
        ttl: float | None = None,
        durable: bool = False,
        durability: Durability | None = None,
    ) -> int:
        """Sets the value; the new version, of the row and of the table. WrongType if the key holds a value."""
        name, content = row_of(row), value_of(value)
        words = single("PUT", name, table=self._key, value=content, ttl_ms=expiry_of(ttl))
        return (await self._once(words, name, durability))[0]

    async def delete(self, row: BytesLike, *, version: int | None = None, durable: bool = False) -> bool:
        """Whether the row was there. With `version`, only at that version: else VersionConflict."""
        name, expected = row_of(row), -1 if version is None else version_of(version, least=1)
        return (await self._once(single("DELETE", name, table=self._key, argument=expected), name))[0] > 0

    async def cas(
        self,
        row: BytesLike,
        value: BytesLike,
        version: int,
        *,
        ttl: float | None = None,
        durable: bool = False,
        durability: Durability | None = None,
    ) -> int:
        """Sets the value if the row is at `version`, 0 meaning absent; the new version. Else VersionConflict."""
        content, expected, expiry, name = value_of(value), version_of(version, least=0), expiry_of(ttl), row_of(row)
        words = single("CAS", name, table=self._key, value=content, argument=expected, ttl_ms=expiry)
        return (await self._once(words, name, durability))[0]

    async def incr(self, row: BytesLike, by: int = 1, *, ttl: float | None = None, durable: bool = False) -> int:
        """Adds to a counter; the new number."""
        name, expiry, amount = row_of(row), expiry_of(ttl), addend(by)
        words = single("INCR", name, table=self._key, argument=amount, ttl_ms=expiry)
        return (await self._once(words, name))[1]

    async def append(
        self,
        value: BytesLike,
        *,
        ttl: float | None = None,
        durable: bool = False,
        durability: Durability | None = None,
    ) -> bytes:
        """Puts the value under a new row behind those that were appended; the row, 8 bytes, a big-endian number."""
        words = single("ROW.APPEND", table=self._key, value=value_of(value), ttl_ms=expiry_of(ttl))
        return (await self._once(words, None, durability))[1].to_bytes(ROW_ID_SIZE, "big")

    def _once(
        self, words: Words, row: bytes | None, durability: Durability | None = None
    ) -> Coroutine[Any, Any, list[int]]:
        data = self._data if durability is None else is_data(durability)
        return self._caller.once(self._caller.write_of(words, data=data, key=row, table=self._key))

    # --- many rows ---

    async def put_many(
        self, pairs: Iterable[tuple[BytesLike, BytesLike]], *, ttl: float | None = None, durable: bool = False
    ) -> int:
        """Sets many rows; how many pairs were written. In batches of at most 1 MiB, each under one version."""
        expiry, count = expiry_of(ttl), 0
        for names, values in pair_chunks(pairs):
            rows = {row_of(name): value_of(value) for name, value in zip(names, values, strict=True)}
            items = list(rows.items())
            for first in range(0, len(items), MANY_COUNT):
                steps = [("PUT", self._key, row, value, expiry) for row, value in items[first : first + MANY_COUNT]]
                await self._once(("BATCH", *(word for step in steps for word in step)), None)
            count += len(names)
        return count

    async def delete_range(
        self, start: BytesLike | None = None, stop: BytesLike | None = None, *, durable: bool = False
    ) -> int:
        """Deletes the rows from `start` on and below `stop`, without either all; how many were found. Not atomic."""
        found = [row async for row in self.keys(start, stop)]
        for first in range(0, len(found), MANY_COUNT):
            steps = [("DELETE", self._key, row, b"", 0) for row in found[first : first + MANY_COUNT]]
            await self._once(("BATCH", *(word for step in steps for word in step)), None)
        return len(found)

    def rows(
        self,
        start: BytesLike | None = None,
        stop: BytesLike | None = None,
        *,
        prefix: BytesLike | None = None,
        reverse: bool = False,
        limit: int | None = None,
    ) -> AsyncIterator[tuple[bytes, bytes]]:
        """(row, value) in the order of rows. Nothing is held between pages."""
        return listing(self._caller, b"", self._key, start, stop, prefix, reverse, limit, values=True)

    def keys(
        self,
        start: BytesLike | None = None,
        stop: BytesLike | None = None,
        *,
        prefix: BytesLike | None = None,
        reverse: bool = False,
        limit: int | None = None,
    ) -> AsyncIterator[bytes]:
        """What the rows are called, as rows() gives them; no value is read."""
        return listing(self._caller, b"", self._key, start, stop, prefix, reverse, limit, values=False)

    async def last(self, count: int) -> list[tuple[bytes, bytes]]:
        """The last `count` rows, or as many as there are; in ascending order, the very last one at the end."""
        if count is None:
            raise UsageError("last() gives so many rows from the end: say how many; rows() gives all")
        limit_of(count)
        return [pair async for pair in self.rows(reverse=True, limit=count)][::-1]

    # --- the table ---

    async def look(self) -> tuple[int, int, int]:
        """Rows, version, expiry in ms: zeros if it is absent."""
        found = await self._caller.read("KV.LOOK", self._key, key=self._key)
        if found is None:
            return 0, 0, 0
        if found[0] != b"table":
            raise failure(lib.KV_EWRONGTYPE, None, self._caller.path, None, self._key)
        return int(found[3]), int(found[1]), int(found[2])

    async def version(self) -> int:
        """The version of its newest write; 0 if the table is absent."""
        return (await self.look())[1]

    async def expires_at(self) -> float | None:
        """When the table as a whole expires, in seconds since 1970; None: never, or it is absent."""
        expires_ms = (await self.look())[2]
        return expires_ms / 1000 if expires_ms else None

    async def count(self) -> int:
        """Its rows, expired ones included until they are reclaimed; 0 if it is absent."""
        return (await self.look())[0]

    async def changes(self, since: int, limit: int | None = None) -> Changes:
        """What changed above the version `since`, up to the table's version, one page of it, as the embedded store has
        it. From 0 the first page reaches at least to the floor (see trim)."""
        known, most = version_of(since, least=0), limit_of(limit, least=1) or CHANGE_COUNT
        first, floor, through = await self._page(known, 0, most)
        page, whole = first, first
        while known == 0 and page.more and page.version < floor:
            page, floor, _ = await self._page(page.version, through, most)
            if not page.complete:  # Another table, or a row of an earlier page may be gone for good.
                return await self.changes(0, limit)
            rows = dict(whole.rows) | dict(page.rows)
            for row in page.deleted:
                rows.pop(row, None)
            whole = Changes(list(rows.items()), [*whole.deleted, *page.deleted], page.version, page.more, True)
        return whole

    async def _page(self, since: int, began: int, most: int) -> tuple[Changes, int, int]:
        """One page, the floor, and the table's version."""
        words = ("TBL.CHANGES", self._key, since, began, most)
        version, more, complete, floor, through, *pairs = await self._caller.read(*words, table=self._key)
        both = list(zip(pairs[::2], pairs[1::2], strict=True))
        rows = [(row, value) for row, value in both if value is not None]
        deleted = [row for row, value in both if value is None]
        return Changes(rows, deleted, version, bool(more), bool(complete)), floor, through

    async def trim(self, version: int, *, durable: bool = False) -> int:
        """Raises the floor of changes() to `version`, at most to the table's own; the floor as it is now, 0 if there
        is no table."""
        known = version_of(version, least=0)
        write = self._caller.write_of(
            single("TRIM", self._key, argument=known), data=False, at=self._key, table=self._key
        )
        await self._caller.once(write)
        return (await self._page(0, 0, 1))[1]

    async def drop(self, *, durable: bool = False) -> bool:
        """Deletes the table with all its rows; False if it was absent."""
        write = self._caller.write_of(single("DROP", self._key), data=False, at=self._key, table=self._key)
        return (await self._caller.once(write))[0] > 0

    def __bool__(self) -> bool:
        """True, also when empty."""
        return True

    def __repr__(self) -> str:
        return f"<kvsvr.AsyncRemoteTable {self._key!r} of {self._caller.path}>"
