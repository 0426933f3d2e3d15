"""Tables: ordered rows under one key, with a version and a change feed of their own.

A Table is a name, the handle and the key, not a thing that is open: it is made in no time, held as long as one likes,
and means whatever table the key names at the time of a call. The first row brings the table into being; it then stays,
also when its last row has gone, until it is dropped, replaced by a put of its key, or expires. What is made under the
key afterwards is another table.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Final, NoReturn, TypeVar, overload

from kvsvr.errors import UsageError
from kvsvr.native import ABSENT, Handle, Pool, Quickened, borrow, ffi, lib, quick, row_of, table_key
from kvsvr.store.arguments import WRITE_COUNT_MAX, addend, expiry_of, limit_of, pair_chunks, version_of
from kvsvr.store.batch import write_rows
from kvsvr.store.reads import versioned
from kvsvr.store.scan import listing
from kvsvr.types import BytesLike, Changes, Versioned

T = TypeVar("T")

CHANGE_COUNT_MAX: Final = 8192
"""Rows of a page of changes, unless a limit says otherwise; C ends it at 1 MiB as well."""

DELETED: Final = 0xFFFFFFFF  # A value size, as C says it in 32 bits.
assert lib.KV_DELETED == -1

ROW_ID_SIZE: Final = 8


class TableReads(Quickened):
    """What is read of a table; of a snapshot's, that is all."""

    __slots__ = ()

    _handle: Pool
    _named = staticmethod(table_key)

    @property
    def key(self) -> bytes:
        return self._key

    # --- one row ---

    @overload
    def get(self, row: BytesLike) -> bytes | None: ...
    @overload
    def get(self, row: BytesLike, default: T) -> bytes | T: ...
    @quick
    def get(self, row: BytesLike, default: T | None = None) -> bytes | T | None:
        """The value, or `default` if the row is absent or has expired, or the table is."""
        name, key, handle = row_of(row), self._key, self._handle
        caller = handle.take()
        size = lib.kv_row_get(caller.pointer, key, len(key), name, len(name))
        if size < 0 and size != ABSENT:
            raise handle.failed(size, caller, name, key)
        value = default if size == ABSENT else caller.content(size)
        handle.release(caller)
        return value

    def size_of(self, row: BytesLike) -> int:
        """The size of a row's value, without reading it; 0 if it is absent, or where something is wrong, which whoever
        reads it is told."""
        name = row_of(row)
        caller = self._handle.take()
        size: int = lib.kv_row_look(caller.pointer, self._key, len(self._key), name, len(name))
        self._handle.release(caller)
        return max(0, size)

    def get_versioned(self, row: BytesLike) -> Versioned | None:
        """The value with its version and expiry, all of one moment; None if the row is absent."""
        name = row_of(row)
        caller = self._handle.take()
        size = lib.kv_row_get(caller.pointer, self._key, len(self._key), name, len(name))
        if size < 0 and size != ABSENT:
            raise self._handle.failed(size, caller, name, self._key)
        found = versioned(caller, size)
        self._handle.release(caller)
        return found

    # --- many rows ---

    def rows(
        self,
        start: BytesLike | None = None,
        stop: BytesLike | None = None,
        *,
        prefix: BytesLike | None = None,
        reverse: bool = False,
        limit: int | None = None,
    ) -> Iterator[tuple[bytes, bytes]]:
        """(row, value) in the order of rows: from `start` on, below `stop`, or all that begin with `prefix`.

        With reverse=True the same range from its end; with `limit` at most so many. As scan(): nothing is held between
        pages, and what is there throughout appears exactly once. A table that is absent has no rows; one that is
        dropped meanwhile has no more.
        """
        return self._listing(start, stop, prefix, reverse, limit, values=True)

    def keys(
        self,
        start: BytesLike | None = None,
        stop: BytesLike | None = None,
        *,
        prefix: BytesLike | None = None,
        reverse: bool = False,
        limit: int | None = None,
    ) -> Iterator[bytes]:
        """What the rows are called, as rows() gives them; no value is read."""
        return self._listing(start, stop, prefix, reverse, limit, values=False)

    @quick
    def last(self, count: int) -> list[tuple[bytes, bytes]]:
        """The last `count` rows, or as many as there are; in ascending order, the very last one at the end."""
        if count is None:
            raise UsageError("last() gives so many rows from the end: say how many; rows() gives all")
        return list(self.rows(reverse=True, limit=count))[::-1]

    def _listing(
        self,
        start: BytesLike | None,
        stop: BytesLike | None,
        prefix: BytesLike | None,
        reverse: bool,
        limit: int | None,
        *,
        values: bool,
    ) -> Iterator[Any]:
        return listing(
            self._handle,
            lib.KV_SCAN_ROWS,
            start=start,
            stop=stop,
            prefix=prefix,
            reverse=reverse,
            limit=limit,
            table=self._key,
            values=values,
        )

    # --- the table ---

    @property
    def version(self) -> int:
        """The version of its newest write, for changes() and db.wait(); 0 if the table is absent."""
        return self._look()[1]

    @property
    def expires_at(self) -> float | None:
        """When the table as a whole expires, in seconds since 1970; None: never, or it is absent. db.expire(key, ttl)
        and db.persist(key) set it."""
        expires_ms = self._look()[2]
        return expires_ms / 1000 if expires_ms else None

    def _look(self) -> tuple[int, int, int]:
        """Rows, version, expiry in ms: zeros if it is absent."""
        caller = self._handle.take()
        count = lib.kv_table_look(caller.pointer, self._key, len(self._key))
        if count < 0 and count != ABSENT:
            raise self._handle.failed(count, caller, None, self._key)
        answer = caller.answer
        found = (0, 0, 0) if count == ABSENT else (int(count), int(answer.version), int(answer.expires_ms))
        self._handle.release(caller)
        return found

    def changes(self, since: int, limit: int | None = None) -> Changes:
        """What changed above the version `since`, up to the table's version: O(changes), one page of them.

        Whoever applies `rows` and `deleted` to a copy, goes on from `version` while there is `more`, and begins anew
        from nothing and 0 where `complete` is False, has the table:

            page = t.changes(since)
            if not page.complete:
                copy, page = {}, t.changes(0)
            copy.update(page.rows)
            for row in page.deleted:
                copy.pop(row, None)
            since = page.version

        A row is in a page once, as it is now, however often it was written. A page ends between two versions, so a
        batch is in it wholly or not at all; therefore `limit` is the number of rows it ends behind, not a bound. None:
        some thousands, or 1 MiB. From 0 the first page reaches at least to the floor (see trim), however many rows that
        is: a snapshot's rows() and version are the cheaper start for a large table that is trimmed.

        A row that expires is not a change at that time, so a copy drops what was put with a `ttl` by itself; it is
        `deleted`, under a version of its own, when the store gets round to deleting it. `complete` is False where the
        floor is above `since`, and where `since` is of a table that was dropped, or above all versions of this one.
        """
        known, most = version_of(since, least=0), limit_of(limit, least=1) or CHANGE_COUNT_MAX
        page, floor = self._change_page(known, most)
        if known > 0 or page.version >= floor:
            return page
        return self._changes_to_floor(page, floor, most)

    def _changes_to_floor(self, first: Changes, floor: int, most: int) -> Changes:
        """Goes on behind the first page from 0, which knows nothing of deletes, to where `complete` can be told.

        The pages belong together as long as the floor stays: what was deleted at or below it was gone before the
        first of them. If it is raised meanwhile, a row of an earlier page may be gone for good, so: once more.
        """
        whole, page = first, first
        while page.more and page.version < floor:
            page, now = self._change_page(page.version, most)
            if now != floor:
                return self.changes(0, most)
            rows = dict(whole.rows) | dict(page.rows)
            for row in page.deleted:
                rows.pop(row, None)
            whole = Changes(list(rows.items()), [*whole.deleted, *page.deleted], page.version, page.more, True)
        return whole

    def _change_page(self, since: int, most: int) -> tuple[Changes, int]:
        """One page as C makes it, and the floor."""
        out = ffi.new("kv_change_page *")
        caller = self._handle.take()
        total = lib.kv_changes(caller.pointer, self._key, len(self._key), since, most, out)
        if total < 0:
            raise self._handle.failed(total, caller, None, self._key)
        content, sizes = caller.content(total), ffi.unpack(out.page.sizes, 2 * out.page.count) if out.page.count else []
        self._handle.release(caller)
        rows, deleted = _cut(content, sizes)
        return Changes(rows, deleted, out.version, bool(out.more), bool(out.complete)), out.floor

    # --- as a dict ---

    def __getitem__(self, row: BytesLike) -> bytes:
        value = self.get(row)
        if value is None:
            raise KeyError(row)
        return value

    def __contains__(self, row: BytesLike) -> bool:
        return self.get(row) is not None

    def __iter__(self) -> Iterator[bytes]:
        """What the rows are called, in order."""
        return self.keys()

    def __len__(self) -> int:
        """Its rows, expired ones included until they are reclaimed; 0 if it is absent."""
        return self._look()[0]

    def __bool__(self) -> bool:
        """True, also when empty."""
        return True

    def __reduce__(self) -> NoReturn:
        raise TypeError("a table is of this process, so it is neither pickled nor copied: pass its key")

    def __repr__(self) -> str:
        return f"<kvsvr.{type(self).__name__} {self._key!r} of {self._handle.path!r}>"


class Table(TableReads):
    """Ordered rows under one key of the store. Rows have 0 to 65,535 bytes; values, ttl and durable are as for keys."""

    __slots__ = ()

    _handle: Handle

    # --- one row ---

    @quick
    def put(self, row: BytesLike, value: BytesLike, *, ttl: float | None = None, durable: bool = False) -> int:
        """Sets the value; the new version, of the row and of the table. The row's expiry is `ttl` seconds from now, or
        none. WrongType if the key holds a value."""
        name = row_of(row)
        content: Any = value if value.__class__ is bytes else borrow(value, "value")
        key, handle, expiry = self._key, self._handle, 0 if ttl is None else expiry_of(ttl)
        caller = handle.take()
        version: int = lib.kv_row_put(
            caller.pointer, key, len(key), name, len(name), content, len(content), expiry, durable
        )
        if version <= 0:
            raise handle.failed(version, caller, name, key)
        handle.callers.append(caller)
        return version

    def delete(self, row: BytesLike, *, version: int | None = None, durable: bool = False) -> bool:
        """Whether the row was there. With `version`, only at that version: else VersionConflict."""
        name, expected = row_of(row), -1 if version is None else version_of(version, least=1)
        result = self._call(lib.kv_row_delete, name, expected, durable, also=ABSENT)
        return result > 0

    def cas(
        self, row: BytesLike, value: BytesLike, version: int, *, ttl: float | None = None, durable: bool = False
    ) -> int:
        """Sets the value if the row is at `version`, 0 meaning absent; the new version. Else VersionConflict."""
        content: Any = borrow(value, "value")
        expected, expiry = version_of(version, least=0), expiry_of(ttl)
        return self._call(lib.kv_row_cas, row_of(row), content, len(content), expected, expiry, durable)

    def incr(self, row: BytesLike, by: int = 1, *, ttl: float | None = None, durable: bool = False) -> int:
        """Adds to a counter, as Engine.incr does; the new number."""
        name, expiry, amount, key = row_of(row), expiry_of(ttl), addend(by), self._key
        caller = self._handle.take()
        result = lib.kv_row_incr(caller.pointer, key, len(key), name, len(name), amount, expiry, durable)
        if result <= 0:
            raise self._handle.failed(result, caller, name, key)
        number: int = caller.answer.number
        self._handle.callers.append(caller)
        return number

    @quick
    def append(self, value: BytesLike, *, ttl: float | None = None, durable: bool = False) -> bytes:
        """Puts the value under a new row behind all that this table ever gave; the row, 8 bytes, a big-endian number.

        Never given twice, also after a crash, and when the row or the whole table has gone. Numbers grow; they leave
        gaps. int.from_bytes(row) has the number. Rows of eight bytes that were put by hand count, as in a copy of a
        table; others stand where their names sort, most of them behind.
        """
        content: Any = borrow(value, "value")
        expiry, key = expiry_of(ttl), self._key
        caller = self._handle.take()
        result = lib.kv_row_append(caller.pointer, key, len(key), content, len(content), expiry, durable)
        if result <= 0:
            raise self._handle.failed(result, caller, None, key)
        number: int = caller.answer.number
        self._handle.callers.append(caller)
        return number.to_bytes(ROW_ID_SIZE, "big")

    def _call(self, function: Any, name: bytes, *arguments: Any, also: int = 0) -> int:
        """A row's call that answers with a version, or with what is `also` fine."""
        caller = self._handle.take()
        result: int = function(caller.pointer, self._key, len(self._key), name, len(name), *arguments)
        if result <= 0 and result != also:
            raise self._handle.failed(result, caller, name, self._key)
        self._handle.callers.append(caller)
        return result

    # --- many rows ---

    def put_many(
        self, pairs: Iterable[tuple[BytesLike, BytesLike]], *, ttl: float | None = None, durable: bool = False
    ) -> int:
        """Sets many rows; how many pairs were written. Not atomic as a whole: batch() is.

        Written in batches of at most 1 MiB, each under one version; an exception in the middle leaves those before it.
        """
        expiry, count = expiry_of(ttl), 0
        for names, values in pair_chunks(pairs):
            contents = ((bytes(borrow(value, "value")), expiry) for value in values)
            # A dict: of a row that comes twice the last value counts, as it would one by one.
            write_rows(self._handle, self._key, dict(zip(map(row_of, names), contents, strict=True)))
            count += len(names)
        self._sync_if(durable and count > 0)
        return count

    def delete_range(
        self, start: BytesLike | None = None, stop: BytesLike | None = None, *, durable: bool = False
    ) -> int:
        """Deletes the rows from `start` on and below `stop`, without either all; how many were found.

        Not atomic as a whole: batches of some thousands, each under one version. To be rid of the table, drop() it.
        """
        names, count = self.keys(start, stop), 0
        while batch := list(islice(names, WRITE_COUNT_MAX)):
            write_rows(self._handle, self._key, dict.fromkeys(batch, (None, 0)))
            count += len(batch)
        self._sync_if(durable and count > 0)
        return count

    def _sync_if(self, durable: bool) -> None:
        if durable:
            self._whole(lib.kv_sync)

    # --- the table ---

    def drop(self, *, durable: bool = False) -> bool:
        """Deletes the table with all its rows, at once and at no cost that grows with them; False if it was absent."""
        return self._whole(lib.kv_table_drop, self._key, len(self._key), durable, also=ABSENT) > 0

    def trim(self, version: int, *, durable: bool = False) -> int:
        """Raises the floor of changes() to `version`, at most to the table's own: what was deleted at or below it may
        be forgotten. Say so when every consumer has come that far. The floor as it is now; 0 if the table is absent."""
        known = version_of(version, least=0)
        floor = self._whole(lib.kv_table_trim, self._key, len(self._key), known, durable, also=ABSENT)
        return max(floor, 0)

    def _whole(self, function: Any, *arguments: Any, also: int = 0) -> int:
        caller = self._handle.take()
        result: int = function(caller.pointer, *arguments)
        if result < 0 and result != also:
            raise self._handle.failed(result, caller, None, self._key)
        self._handle.callers.append(caller)
        return result

    # --- as a dict ---

    def __setitem__(self, row: BytesLike, value: BytesLike) -> None:
        self.put(row, value)

    def __delitem__(self, row: BytesLike) -> None:
        if not self.delete(row):
            raise KeyError(row)


def _cut(content: bytes, sizes: list[int]) -> tuple[list[tuple[bytes, bytes]], list[bytes]]:
    """A page of changes into rows with values, and deleted rows."""
    rows: list[tuple[bytes, bytes]] = []
    deleted: list[bytes] = []
    start = 0
    numbers = iter(sizes)
    for row_size, value_size in zip(numbers, numbers, strict=True):
        middle = start + row_size
        if value_size == DELETED:
            deleted.append(content[start:middle])
            start = middle
        else:
            start = middle + value_size
            rows.append((content[middle - row_size : middle], content[middle:start]))
    return rows, deleted
