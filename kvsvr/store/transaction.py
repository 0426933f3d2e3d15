"""Optimistic transactions: reads of one moment, then a batch that is written only if what was read has not changed.

Nothing is locked between reads, so a transaction may take as long as it likes and holds nobody up; it is who comes
second that has to begin again. What C does for it, and why it never sees part of a batch, is in native/src/expect.c.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final, TypeVar, overload

from kvsvr.config import SlotMode
from kvsvr.errors import UsageError, VersionConflict
from kvsvr.native import ABSENT, Expectations, Handle, failure, ffi, lib, row_of
from kvsvr.store.batch import Names, Row, RowWrites, Writes, write
from kvsvr.types import BytesLike

T = TypeVar("T")

ATTEMPTS: Final = 32

# The first pause is about as long as a short transaction; the last is one that a person would not notice.
PAUSE_MIN: Final = 0.0002
PAUSE_MAX: Final = 0.05


class Transaction(Writes):
    """Reads, and collects operations as a Batch does. Its own writes are visible to its own reads.

        with db.transaction() as t:
            t[b"from"] = b"%d" % (int(t[b"from"]) - 10)
            t[b"to"] = b"%d" % (int(t.get(b"to", b"0")) + 10)
        t.version  # one version for both

    A key that was read once gives the same again. A read raises VersionConflict as soon as something read before has
    changed; the end of the block does so if that is found out only then, also if nothing was put or deleted. Either
    way nothing is written, as with any exception. What was read is kept in memory until the end.

    Expired keys count as absent: one that was read and expires before the end is a conflict. All of this goes for
    rows, too, by table(). Not for several threads at a time.
    """

    __slots__ = ("_expected", "_seen", "_sequence")

    _again = "the transaction has ended: begin another with db.transaction(), or give it to db.run() as a function"

    def __init__(self, handle: Handle, *, durable: bool, slots: SlotMode) -> None:
        super().__init__(handle, durable=durable, slots=slots)
        self._seen: dict[bytes | Row, bytes | None] = {}
        self._expected = Expectations()
        self._sequence = ffi.new("uint64_t *")

    @overload
    def get(self, key: BytesLike) -> bytes | None: ...
    @overload
    def get(self, key: BytesLike, default: T) -> bytes | T: ...
    def get(self, key: BytesLike, default: T | None = None) -> bytes | T | None:
        """The value, or `default` if the key is absent or has expired."""
        name = self._name(key)
        if name in self._tables:
            raise failure(lib.KV_EWRONGTYPE, None, self._handle.path, name)
        value = self._look(name, name, None)
        return default if value is None else value

    def table(self, key: BytesLike) -> TransactionRows:
        """The rows of a table: read with the rest, and written with it."""
        return TransactionRows(self, key)

    def _look(self, seen_as: bytes | Row, name: bytes, table: bytes | None) -> bytes | None:
        if seen_as in self._operations:
            return self._operations[seen_as][0]
        if seen_as not in self._seen:
            self._seen[seen_as] = self._read(name, table)
        return self._seen[seen_as]

    def _look_row(self, table: bytes, row: bytes) -> bytes | None:
        self._refuse_done()
        if table in self._operations:
            if self._operations[table][0] is not None:
                raise failure(lib.KV_EWRONGTYPE, None, self._handle.path, row, table)
            return None  # Deleted here, with all its rows.
        return self._look((table, row), row, table)

    def _read(self, name: bytes, table: bytes | None) -> bytes | None:
        caller, expected = self._handle.take(), self._expected
        asked = (expected.pointer, len(expected), self._sequence)
        if table is None:
            size = lib.kv_get_with(caller.pointer, name, len(name), *asked)
        else:
            size = lib.kv_row_get_with(caller.pointer, table, len(table), name, len(name), *asked)
        del asked  # While a pointer into them is held, nothing can be added to the expectations.
        if size < 0 and size != ABSENT:
            changed = expected.names[caller.answer.number] if size == lib.KV_ECONFLICT else (name, table)
            raise self._handle.failed(size, caller, *changed)
        value = None if size == ABSENT else caller.content(size)
        expected.add(name, caller.answer.version, table)
        self._handle.release(caller)
        return value

    def __getitem__(self, key: BytesLike) -> bytes:
        value = self.get(key)
        if value is None:
            raise KeyError(key)
        return value

    def __setitem__(self, key: BytesLike, value: BytesLike) -> None:
        self.put(key, value)

    def __delitem__(self, key: BytesLike) -> None:
        if key not in self:
            raise KeyError(key)
        self.delete(key)

    def __contains__(self, key: BytesLike) -> bool:
        return self.get(key) is not None

    # Without it Python would take __getitem__ for a sequence's, and try the key 0.
    __iter__ = None

    def _write(self, names: Names) -> int:
        return write(self._handle, names, self._expected, durable=self._durable)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            super().__exit__(kind, error, trace)
        finally:
            self._seen, self._expected = {}, Expectations()


class TransactionRows(RowWrites):
    """The rows of one table in a transaction. A row that is appended has no name yet, and cannot be read."""

    __slots__ = ("_transaction",)

    def __init__(self, transaction: Transaction, key: BytesLike) -> None:
        super().__init__(transaction, key)
        self._transaction = transaction

    @overload
    def get(self, row: BytesLike) -> bytes | None: ...
    @overload
    def get(self, row: BytesLike, default: T) -> bytes | T: ...
    def get(self, row: BytesLike, default: T | None = None) -> bytes | T | None:
        """The value, or `default` if the row is absent or has expired, or the table is."""
        value = self._transaction._look_row(self._key, row_of(row))
        return default if value is None else value

    def __getitem__(self, row: BytesLike) -> bytes:
        value = self.get(row)
        if value is None:
            raise KeyError(row)
        return value

    def __setitem__(self, row: BytesLike, value: BytesLike) -> None:
        self.put(row, value)

    def __delitem__(self, row: BytesLike) -> None:
        if row not in self:
            raise KeyError(row)
        self.delete(row)

    def __contains__(self, row: BytesLike) -> bool:
        return self.get(row) is not None

    # As above.
    __iter__ = None


def run(begin: Callable[[], Transaction], fn: Callable[[Transaction], T], attempts: int) -> T:
    """fn in a transaction, again after a conflict; the last conflict is raised."""
    if not isinstance(attempts, int) or isinstance(attempts, bool) or attempts < 1:
        raise UsageError(f"attempts is a whole number from 1 up, not {attempts!r}")
    pause = PAUSE_MIN
    for _ in range(attempts - 1):
        try:
            return _once(begin(), fn)
        except VersionConflict:
            # Of random length, so that two that met do not meet again; growing, in case they are many.
            time.sleep(random.uniform(0, pause))
            pause = min(2 * pause, PAUSE_MAX)
    return _once(begin(), fn)


def _once(transaction: Transaction, fn: Callable[[Transaction], T]) -> T:
    with transaction:
        return fn(transaction)
