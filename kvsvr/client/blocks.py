"""Batches and transactions of a set: what is collected here, and written as one request at the end.

They collect as those of an embedded store do, and refuse what those refuse. Two things are otherwise. With several
shards all of it is of one hash slot. And a transaction's reads are single reads, each of its own moment: that something
has changed is found out at the end, where nothing is written, and not at the read that comes after the change.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast, overload

from kvsvr.client.words import Word, Words
from kvsvr.errors import UsageError, shown_key
from kvsvr.native import Handle
from kvsvr.store.batch import Appended, Batch, Names, RowWrites, Writes
from kvsvr.store.slots import slot_of
from kvsvr.store.transaction import Transaction, TransactionRows
from kvsvr.types import BytesLike, Versioned

if TYPE_CHECKING:
    from kvsvr.client.calls import AsyncRemote

T = TypeVar("T")
W = TypeVar("W")

Seen = dict[tuple[bytes | None, bytes], int]
"""Table or None, name: the version that was read; 0: absent."""


def _no_append() -> UsageError:
    return UsageError(
        "a replica set does not say yet which row an append in a batch became: use table().append(), or put() rows"
    )


class RemoteRows(RowWrites):
    """Rows of a table in a batch."""

    __slots__ = ()

    def append(self, value: BytesLike, ttl: float | None = None) -> Appended:
        raise _no_append()


class RemoteTransactionRows(TransactionRows):
    """Rows of a table in a transaction."""

    __slots__ = ()

    def append(self, value: BytesLike, ttl: float | None = None) -> Appended:
        raise _no_append()


class RemoteBatch(Batch):
    """Collects; whoever made it writes."""

    __slots__ = ("_write_it",)

    def __init__(self, write: Callable[[Names, Seen], int] | None = None) -> None:
        super().__init__(cast(Handle, None), durable=False, slots="any")
        self._write_it = write

    def table(self, key: BytesLike) -> RemoteRows:
        return RemoteRows(self, key)

    def _write(self, names: Names) -> int:
        assert self._write_it is not None
        return self._write_it(names, {})


class RemoteTransaction(Transaction):
    """Reads by the function it is given, and remembers which versions it saw."""

    __slots__ = ("_look_it", "_versions", "_write_it")

    def __init__(
        self,
        look: Callable[[bytes, bytes | None], Versioned | None],
        write: Callable[[Names, Seen], int] | None = None,
    ) -> None:
        super().__init__(cast(Handle, None), durable=False, slots="any")
        self._look_it = look
        self._write_it = write
        self._versions: Seen = {}

    def table(self, key: BytesLike) -> RemoteTransactionRows:
        return RemoteTransactionRows(self, key)

    def _read(self, name: bytes, table: bytes | None) -> bytes | None:
        return self.saw(name, table, self._look_it(name, table))

    def saw(self, name: bytes, table: bytes | None, found: Versioned | None) -> bytes | None:
        self._versions[table, name] = 0 if found is None else found.version
        return None if found is None else found.value

    def _write(self, names: Names) -> int:
        assert self._write_it is not None
        return self._write_it(names, self._versions)


class AsyncRemoteTransaction:
    """As the `aio` of an embedded store has it."""

    __slots__ = ("_inner", "_remote")

    def __init__(self, remote: AsyncRemote, inner: RemoteTransaction) -> None:
        self._remote = remote
        self._inner = inner

    @property
    def version(self) -> int | None:
        return self._inner.version

    @overload
    async def get(self, key: BytesLike) -> bytes | None: ...
    @overload
    async def get(self, key: BytesLike, default: T) -> bytes | T: ...
    async def get(self, key: BytesLike, default: T | None = None) -> bytes | T | None:
        name = self._inner._name(key)
        if name not in self._inner._operations and name not in self._inner._seen:
            self._inner._seen[name] = self._inner.saw(name, None, await self._remote.look(name, None))
        return self._inner.get(name, default)

    def put(self, key: BytesLike, value: BytesLike, ttl: float | None = None) -> None:
        self._inner.put(key, value, ttl)

    def delete(self, key: BytesLike) -> None:
        self._inner.delete(key)

    def __len__(self) -> int:
        return len(self._inner)

    def __bool__(self) -> bool:
        """True, also when empty."""
        return True


class AsyncBlock(Generic[W]):
    """An `async with` block around one of them."""

    __slots__ = ("_data", "_face", "_remote", "_writes")

    def __init__(self, face: W, writes: Writes, remote: AsyncRemote, data: bool) -> None:
        self._face = face
        self._writes = writes
        self._remote = remote
        self._data = data

    async def __aenter__(self) -> W:
        self._writes._refuse_done()
        return self._face

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        writes = self._writes
        writes._done, writes._plain = True, False
        collected, writes._operations = writes._operations, {}
        seen = writes._versions if isinstance(writes, RemoteTransaction) else {}
        if kind is None:
            writes._version = await self._remote.write_together(collected, seen, data=self._data)


def packed(names: Names, seen: Seen, *, strict: bool) -> tuple[bytes, Words] | None:
    """A key that says where it goes, and the end of a KV.ONCE that is a batch; None: there is nothing to do."""
    words: list[Word] = ["BATCH"]
    keys: list[bytes] = []
    for name, (content, expiry) in names.items():
        table, key = name if isinstance(name, tuple) else (None, _plain(name))
        keys.append(key if table is None else table)
        words += ["DELETE" if content is None else "PUT", table or b"", key, content or b"", expiry]
    for (table, key), version in seen.items():
        keys.append(key if table is None else table)
        words += ["EXPECT", table or b"", key, b"", version]
    if strict:
        _refuse_slots(keys)
    return (keys[0], tuple(words)) if keys else None


def _plain(name: Any) -> bytes:
    assert isinstance(name, bytes)
    return name


def _refuse_slots(keys: list[bytes]) -> None:
    slots = {slot_of(key): key for key in reversed(keys)}
    if len(slots) < 2:
        return
    (one, first), (other, second) = list(slots.items())[-1], next(iter(slots.items()))
    raise UsageError(
        f"{shown_key(first)} is in hash slot {one}, {shown_key(second)} in {other}; in a replica set the keys of a "
        'batch or transaction share one: give them a hash tag in common, as in b"{user:42}:name"'
    )
