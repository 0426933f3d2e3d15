"""A whole store out of and into records (see kvsvr.ops.records), a page or a group at a time in memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

from kvsvr.errors import shown_key
from kvsvr.ops.records import BadInput, Entry, Expiry, Record, Row
from kvsvr.store import Engine

GROUP_COUNT_MAX: Final = 8192
GROUP_SIZE_MAX: Final = 1 << 20
TTL_MAX: Final = 10**12  # seconds; what the store takes


def dump(db: Engine) -> Iterator[Entry]:
    """Every key in order, then every table with its rows in order; each value and expiry of one moment. What comes or
    goes meanwhile may be missing. Of a table without rows nothing is told."""
    for key in db:
        found = db.get_versioned(key)
        if found is not None:
            yield Record(key, found.value, found.expires_at)
    for key in db.tables():
        table = db.table(key)
        for row in table:
            found = table.get_versioned(row)
            if found is not None:
                yield Row(key, row, found.value, found.expires_at)
        expires_at = table.expires_at
        if expires_at is not None:
            yield Expiry(key, expires_at)


@dataclass(slots=True)
class Loaded:
    """What an import did so far."""

    written_count: int = 0
    expired_count: int = 0
    skipped_count: int = 0


class _Group:
    """What is written at a time: the last record of every name, as it would count one by one."""

    def __init__(self, db: Engine, done: Loaded) -> None:
        self._db = db
        self._done = done
        self._keys: dict[bytes, Record] = {}
        self._tables: dict[bytes, dict[bytes, Row]] = {}
        self._count = 0
        self._size = 0

    def add(self, record: Entry) -> BadInput | None:
        """None, or why it cannot be written: a key with a value takes no rows, while a value replaces a table."""
        match record:
            case Record():
                self._note(len(record.key) + len(record.value), record.key in self._tables)
                self._keys[record.key] = record
                return None
            case Row():
                self._note(len(record.row) + len(record.value), record.table in self._keys)
                if record.table not in self._tables and record.table in self._db:
                    return _no_table(record)
                self._tables.setdefault(record.table, {})[record.row] = record
                return None
            case Expiry():
                self.write()  # Its rows first: they bring it into being.
                if record.table in self._db:
                    return _no_table(record)
                self._expire(record)
                return None

    def _note(self, size: int, other_kind: bool) -> None:
        if other_kind:
            self.write()
        self._count += 1
        self._size += size

    @property
    def is_full(self) -> bool:
        return self._size >= GROUP_SIZE_MAX or self._count >= GROUP_COUNT_MAX

    def write(self) -> None:
        db, done = self._db, self._done
        ahead = self._ahead()
        done.written_count += db.put_many((r.key, r.value) for r in self._keys.values() if r.expires_at is None)
        for record in self._keys.values():
            if record.expires_at is not None:
                left = record.expires_at - ahead
                self._put_or_delete(left, partial(db.put, record.key, record.value), partial(db.delete, record.key))
        for key, rows in self._tables.items():
            table = db.table(key)
            done.written_count += table.put_many((r.row, r.value) for r in rows.values() if r.expires_at is None)
            for row in rows.values():
                if row.expires_at is not None:
                    left = row.expires_at - ahead
                    self._put_or_delete(left, partial(table.put, row.row, row.value), partial(table.delete, row.row))
        self._keys.clear()
        self._tables.clear()
        self._count = self._size = 0

    def _put_or_delete(self, left: float, put: Callable[..., object], delete: Callable[[], object]) -> None:
        ttl = left - time.time()
        if ttl > 0:
            put(ttl=min(ttl, TTL_MAX))
            self._done.written_count += 1
        else:
            delete()
            self._done.expired_count += 1

    def _expire(self, record: Expiry) -> None:
        ttl = record.expires_at - self._ahead() - time.time()
        if ttl > 0:
            self._db.expire(record.table, min(ttl, TTL_MAX))
        else:
            self._db.table(record.table).drop()
            self._done.expired_count += 1

    def _ahead(self) -> float:
        """The store may judge expiries by a later time than the wall clock's, which may have been set back.

        A set does not say."""
        return max(0.0, float(self._db.stats().get("clock_ms", 0)) / 1000 - time.time())


def _no_table(record: Row | Expiry) -> BadInput:
    what = f"{shown_key(record.table)} holds a value and is no table: delete that first, or give the table another key"
    return BadInput(record.line, 1, what)


def load(
    db: Engine,
    records: Iterable[Entry | BadInput],
    *,
    skip: Callable[[BadInput], None] | None = None,
) -> Iterator[Loaded]:
    """Sets every key and row to what its record says; yields what has been done, once per group written.

    A record whose expiry has passed leaves its key or row absent. What cannot be read, or is a row of what is no table,
    is given to `skip` and counted; without `skip` it is raised, after everything before it has been written.
    """
    done = Loaded()
    group = _Group(db, done)
    for record in records:
        bad = record if isinstance(record, BadInput) else group.add(record)
        if bad is not None:
            if skip is None:
                group.write()
                yield done
                raise bad
            done.skipped_count += 1
            skip(bad)
            continue
        if group.is_full:
            group.write()
            yield done
    group.write()
    yield done
