"""A batch: what is put and deleted in a `with` block, written at its end as one record group, all of it or nothing."""

from __future__ import annotations

from types import TracebackType
from typing import Any, ClassVar, Final, Self, TypeAlias

from kvsvr.config import SlotMode
from kvsvr.errors import UsageError, WrongType, shown_key
from kvsvr.native import (
    CONFLICT,
    KEY_SIZE_MAX,
    Collecting,
    Content,
    Expectations,
    Handle,
    Operations,
    borrow,
    ffi,
    lib,
    own,
    quick,
    row_of,
    table_key,
    ttl_ms,
)
from kvsvr.store.slots import OneSlot
from kvsvr.types import BytesLike


class Appended:
    """A row that a batch appends. `row` is its name, known once the batch has been written."""

    __slots__ = ("_row", "table")

    def __init__(self, table: bytes) -> None:
        self.table: Final = table
        self._row: bytes | None = None

    @property
    def row(self) -> bytes:
        if self._row is None:
            raise UsageError("which row it becomes is known once the batch has been written: ask after its block")
        return self._row


Row: TypeAlias = tuple[bytes, bytes]  # table, row
Name: TypeAlias = bytes | Row | Appended
Names: TypeAlias = dict[Name, Content]


class Writes(Collecting):
    """What batches and transactions have in common: a `with` block that collects operations and writes them."""

    __slots__ = ("_done", "_durable", "_handle", "_slot", "_tables", "_version")

    _operations: Names

    _again: ClassVar[str]
    """What to tell who uses it after its end."""

    def __init__(self, handle: Handle, *, durable: bool, slots: SlotMode) -> None:
        self._handle = handle
        self._durable = durable
        self._slot = OneSlot() if slots == "strict" else None
        self._operations = {}
        self._plain = self._slot is None  # Until there is more to look at: a table, or the end.
        self._tables: set[bytes] = set()
        """Those that rows are written of."""
        self._done = False
        self._version: int | None = None

    @property
    def version(self) -> int | None:
        """The version all of it was written under; 0 if there was nothing to do; None before the block has ended."""
        return self._version

    @quick
    def put(self, key: BytesLike, value: BytesLike, ttl: float | None = None) -> None:
        content = value if value.__class__ is bytes else bytes(borrow(value, "value"))
        self._operations[self._written(key)] = content, 0 if ttl is None else ttl_ms(ttl)

    def delete(self, key: BytesLike) -> None:
        """A key that is absent when this is written stays so, and does not count."""
        self._operations[self._written(key)] = None, 0

    def __len__(self) -> int:
        return len(self._operations)

    def __bool__(self) -> bool:
        """True, also when empty."""
        return True

    def _name(self, key: BytesLike) -> bytes:
        self._refuse_done()
        name = key if key.__class__ is bytes else own(key)
        # Here, not when it is written: the traceback then points at the line that is wrong.
        if not 0 < len(name) <= KEY_SIZE_MAX:
            raise UsageError(f"a key has 1 to {KEY_SIZE_MAX} bytes; this one has {len(name)}")
        if self._slot is not None:
            self._slot.enter(name)
        return name

    def _written(self, key: BytesLike) -> bytes:
        name = self._name(key)
        if name in self._tables:
            raise _both(name)
        return name

    def _enter_table(self, table: bytes) -> None:
        """Rows of it are about to be written."""
        self._refuse_done()
        if table in self._operations:
            raise _both(table)
        self._tables.add(table)
        self._plain = False

    def _refuse_done(self) -> None:
        if self._done:
            raise UsageError(self._again)

    def _write(self, names: Names) -> int:
        return write(self._handle, names, None, durable=self._durable)

    def __enter__(self) -> Self:
        self._refuse_done()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done, self._plain = True, False
        collected, self._operations = self._operations, {}
        if kind is None:
            self._version = self._write(collected)


def _both(key: bytes) -> UsageError:
    return UsageError(
        f"{shown_key(key)} would be written as a key and as a table at once, and a batch has no order: use two batches"
    )


class RowWrites:
    """The rows of one table in a batch or transaction, as table() gives them. The last operation of a row wins."""

    __slots__ = ("_key", "_writes")

    def __init__(self, writes: Writes, key: BytesLike) -> None:
        self._writes = writes
        self._key = writes._name(table_key(key))

    def put(self, row: BytesLike, value: BytesLike, ttl: float | None = None) -> None:
        content = bytes(borrow(value, "value"))
        self._set(row, content, 0 if ttl is None else ttl_ms(ttl))

    def delete(self, row: BytesLike) -> None:
        """A row that is absent when this is written stays so, and does not count."""
        self._set(row, None, 0)

    def append(self, value: BytesLike, ttl: float | None = None) -> Appended:
        """Puts a new row behind those that were appended before; what it is called, `.row` says after the block."""
        content, expiry = bytes(borrow(value, "value")), 0 if ttl is None else ttl_ms(ttl)
        self._writes._enter_table(self._key)
        appended = Appended(self._key)
        self._writes._operations[appended] = content, expiry
        return appended

    def _set(self, row: BytesLike, content: bytes | None, expiry: int) -> None:
        name = row_of(row)
        self._writes._enter_table(self._key)
        self._writes._operations[self._key, name] = content, expiry


class Batch(Writes):
    """Collects operations; the last one of a key wins. Nothing is visible, and nothing on disk, before the block ends.

        with db.batch() as b:
            b.put(b"from", b"90")
            b.put(b"to", b"110")
            line = b.table(b"journal").append(b"10 from, to")
        b.version  # one version for all
        line.row

    An exception in the block writes nothing. Keys and values are copied as they come, so buffers may be used again.
    A key is written either itself or with rows under it. Not for several threads at a time.
    """

    __slots__ = ()

    _again = "the batch has been written: begin another with db.batch()"

    def table(self, key: BytesLike) -> RowWrites:
        """The rows of a table, written with the rest."""
        return RowWrites(self, key)


def write(handle: Handle, names: Names, expected: Expectations | None, *, durable: bool) -> int:
    """Writes all of it if all that is expected holds; the version, 0 if there was nothing to do."""
    operations, appended = _packed(names)
    expectations: Any = ffi.NULL if expected is None else expected.pointer
    count = 0 if expected is None else len(expected)
    caller = handle.take()
    version: int = lib.kv_batch(caller.pointer, operations.pointer, len(operations), expectations, count, durable)
    if version < 0:
        raise _failed(handle, version, caller, expected)
    handle.callers.append(caller)
    for one, index in appended:
        one._row = operations.row_id(index).to_bytes(8, "big")
    return version


def write_rows(handle: Handle, table: bytes, rows: dict[bytes, Content]) -> int:
    """As write(), of one table and nothing else."""
    operations = Operations()
    operations.add(rows, table)
    caller = handle.take()
    version: int = lib.kv_batch(caller.pointer, operations.pointer, len(operations), ffi.NULL, 0, 0)
    if version < 0:
        raise handle.failed(version, caller, table, table)
    handle.callers.append(caller)
    return version


def _packed(names: Names) -> tuple[Operations, list[tuple[Appended, int]]]:
    """The operations of keys, then table by table, as C likes it; and the index of each append."""
    operations = Operations()
    if operations.try_add(names):
        return operations, []
    keys: dict[bytes, Content] = {}
    tables: dict[bytes, dict[bytes, Content]] = {}
    appends: list[tuple[Appended, bytes, int]] = []
    for name, content in names.items():
        if isinstance(name, bytes):
            keys[name] = content
        elif isinstance(name, tuple):
            tables.setdefault(name[0], {})[name[1]] = content
        else:
            appends.append((name, content[0] or b"", content[1]))
    operations.add(keys)
    for table, rows in tables.items():
        operations.add(rows, table)
    return operations, [(one, operations.append(value, expiry, one.table)) for one, value, expiry in appends]


def _failed(handle: Handle, result: int, caller: Any, expected: Expectations | None) -> Exception:
    if result == CONFLICT and expected is not None:
        return handle.failed(result, caller, *expected.names[caller.answer.number])
    error = handle.failed(result, caller)
    if result == lib.KV_EWRONGTYPE:
        return WrongType("one of the tables is a key with a value: get() reads it, delete() makes room for a table")
    return error
