"""A replica set for threads: the methods of an embedded store, as far as a set has them.

Each call runs the coroutine of the same name (calls.py, tables.py) over connections that block, so it never suspends
and needs no event loop. Any number of threads; a batch or transaction belongs to one. A fork shares its parent's
connections, which nobody may: connect in the child.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Generic, NoReturn, Self, TypeVar, overload

from kvsvr.client.blocks import RemoteBatch, RemoteTransaction, Seen
from kvsvr.client.caller import Caller
from kvsvr.client.calls import AsyncRemote
from kvsvr.client.routes import Routes, addresses_of
from kvsvr.client.tables import AsyncRemoteTable
from kvsvr.client.wire import Blocking, Looping, finished
from kvsvr.client.words import Consistency, Durability, is_data, is_stale
from kvsvr.errors import ClosedError, UsageError, shown
from kvsvr.store.batch import Names
from kvsvr.store.transaction import ATTEMPTS, run
from kvsvr.types import BytesLike, Changes, Versioned

T = TypeVar("T")


class Pages(Iterator[T], Generic[T]):
    """What a listing gives, read as it is asked for."""

    __slots__ = ("_source",)

    def __init__(self, source: AsyncIterator[T]) -> None:
        self._source = source

    def __next__(self) -> T:
        try:
            return finished(self._next())
        except StopAsyncIteration:
            raise StopIteration from None

    async def _next(self) -> T:
        return await anext(self._source)


class Remote:
    """A replica set. `kvsvr.connect` makes it.

    What is answered is on the disks of a majority, so `durable` changes nothing. `consistency="stale"`, of get and
    get_many, lets any replica answer at once with what it has. `durability="data"`, of what writes values, waits until
    a majority has the bytes of large ones, too, and not their versions alone.
    """

    def __init__(
        self,
        addresses: str | Iterable[str],
        *,
        password: str | None,
        timeout: float,
        consistency: Consistency,
        durability: Durability,
    ) -> None:
        is_stale(consistency)
        self._data = is_data(durability)
        if not isinstance(timeout, int | float) or isinstance(timeout, bool) or not 0 < timeout <= 10**9:
            raise UsageError(f"timeout is a positive number of seconds, not {shown(timeout)}")
        known = addresses_of(addresses)
        self._path = ",".join(f"{host}:{port}" for host, port in known)
        self._routes = Routes(known)
        self._caller = Caller(self._routes, Blocking(password), timeout, self._path)
        self._calls = AsyncRemote(self._caller, consistency, durability)
        other = Caller(self._routes, Looping(password), timeout, self._path)
        self._aio = AsyncRemote(other, consistency, durability, self.close)
        self._pid = os.getpid()

    @property
    def _here(self) -> AsyncRemote:
        if os.getpid() != self._pid:
            raise ClosedError(f"{self._path} was connected to before fork: connect again in the child")
        return self._calls

    @property
    def aio(self) -> AsyncRemote:
        """The same calls as coroutines, for one event loop, over connections of their own. Closing it closes this."""
        return self._aio

    # --- one key ---

    @overload
    def get(self, key: BytesLike, *, consistency: Consistency | None = None) -> bytes | None: ...
    @overload
    def get(self, key: BytesLike, default: T, *, consistency: Consistency | None = None) -> bytes | T: ...
    def get(
        self, key: BytesLike, default: T | None = None, *, consistency: Consistency | None = None
    ) -> bytes | T | None:
        """The value, or `default` if the key is absent or has expired. WrongType if it is a table."""
        return finished(self._here.get(key, default, consistency=consistency))

    def get_versioned(self, key: BytesLike) -> Versioned | None:
        return finished(self._here.get_versioned(key))

    def put(
        self,
        key: BytesLike,
        value: BytesLike,
        *,
        ttl: float | None = None,
        durable: bool = False,
        durability: Durability | None = None,
    ) -> int:
        return finished(self._here.put(key, value, ttl=ttl, durability=durability))

    def delete(self, key: BytesLike, *, version: int | None = None, durable: bool = False) -> bool:
        return finished(self._here.delete(key, version=version))

    def cas(
        self,
        key: BytesLike,
        value: BytesLike,
        version: int,
        *,
        ttl: float | None = None,
        durable: bool = False,
        durability: Durability | None = None,
    ) -> int:
        return finished(self._here.cas(key, value, version, ttl=ttl, durability=durability))

    def incr(self, key: BytesLike, by: int = 1, *, ttl: float | None = None, durable: bool = False) -> int:
        return finished(self._here.incr(key, by, ttl=ttl))

    def append(
        self,
        key: BytesLike,
        data: BytesLike,
        *,
        ttl: float | None = None,
        durable: bool = False,
        durability: Durability | None = None,
    ) -> int:
        return finished(self._here.append(key, data, ttl=ttl, durability=durability))

    def expire(self, key: BytesLike, ttl: float, *, durable: bool = False) -> bool:
        return finished(self._here.expire(key, ttl))

    def persist(self, key: BytesLike, *, durable: bool = False) -> bool:
        return finished(self._here.persist(key))

    def ttl(self, key: BytesLike) -> float | None:
        return finished(self._here.ttl(key))

    # --- many keys ---

    def get_many(self, keys: Iterable[BytesLike], *, consistency: Consistency | None = None) -> list[bytes | None]:
        return finished(self._here.get_many(keys, consistency=consistency))

    def put_many(
        self,
        pairs: Iterable[tuple[BytesLike, BytesLike]],
        *,
        ttl: float | None = None,
        durable: bool = False,
        durability: Durability | None = None,
    ) -> int:
        return finished(self._here.put_many(pairs, ttl=ttl, durability=durability))

    def delete_many(self, keys: Iterable[BytesLike], *, durable: bool = False) -> int:
        return finished(self._here.delete_many(keys))

    # --- in order ---

    def scan(
        self,
        start: BytesLike | None = None,
        stop: BytesLike | None = None,
        *,
        prefix: BytesLike | None = None,
        reverse: bool = False,
        limit: int | None = None,
    ) -> Iterator[tuple[bytes, bytes]]:
        return Pages(self._here.scan(start, stop, prefix=prefix, reverse=reverse, limit=limit))

    def keys(
        self,
        start: BytesLike | None = None,
        stop: BytesLike | None = None,
        *,
        prefix: BytesLike | None = None,
        reverse: bool = False,
        limit: int | None = None,
    ) -> Iterator[bytes]:
        return Pages(self._here.keys(start, stop, prefix=prefix, reverse=reverse, limit=limit))

    def tables(self, prefix: BytesLike | None = None) -> Iterator[bytes]:
        return Pages(self._here.tables(prefix))

    def table(self, key: BytesLike) -> RemoteTable:
        return RemoteTable(self._here.table(key))

    # --- together ---

    def batch(self, *, durable: bool = False, durability: Durability | None = None) -> RemoteBatch:
        """A `with` block whose puts and deletes are written together at its end: all or nothing, one version. With
        several shards, its keys are of one hash slot."""
        return RemoteBatch(self._writer(self._data if durability is None else is_data(durability)))

    def transaction(self, *, durable: bool = False) -> RemoteTransaction:
        """A `with` block that reads, and whose writes are written at its end, if nothing it has read has changed
        meanwhile; else VersionConflict, and nothing. Its keys are of one hash slot, as those of a batch."""
        return RemoteTransaction(lambda name, table: finished(self._here.look(name, table)), self._writer(self._data))

    def _writer(self, data: bool) -> Callable[[Names, Seen], int]:
        return lambda names, seen: finished(self._here.write_together(names, seen, data=data))

    def run(self, fn: Callable[[RemoteTransaction], T], *, attempts: int = ATTEMPTS, durable: bool = False) -> T:
        """Calls fn(t) with a transaction, commits, and returns what fn returned; once more after a VersionConflict."""
        return run(self.transaction, fn, attempts)  # type: ignore[arg-type]

    # --- the set as a whole ---

    def wait(self, key: BytesLike | RemoteTable, version: int, timeout: float | None = None) -> int:
        """Waits until the key, or the table, is newer than `version`; the version it has then, or at the timeout."""
        return finished(self._here.wait(key, version, timeout))

    def sync(self) -> None:
        """What was answered is on the disks of a majority: there is nothing to wait for."""

    def stats(self) -> dict[str, Any]:
        """Figures of one of the replicas: INFO, as a dict."""
        return finished(self._here.stats())

    def close(self) -> None:
        """Lets go of the connections. The second time: nothing."""
        finished(self._caller.close())

    # --- as a dict, and as a context ---

    def __getitem__(self, key: BytesLike) -> bytes:
        value = self.get(key)
        if value is None:
            raise KeyError(key)
        return value

    def __setitem__(self, key: BytesLike, value: BytesLike) -> None:
        self.put(key, value)

    def __delitem__(self, key: BytesLike) -> None:
        if not self.delete(key):
            raise KeyError(key)

    def __contains__(self, key: BytesLike) -> bool:
        return finished(self._here.contains(key))

    def __iter__(self) -> Iterator[bytes]:
        return self.keys()

    def __len__(self) -> int:
        """Keys that have a value, expired ones included until they are reclaimed. Tables are not counted."""
        return finished(self._here.count())

    def __bool__(self) -> bool:
        """True, also when empty."""
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("connections are of this process, so they are neither pickled nor copied: connect there")

    def __repr__(self) -> str:
        return f"<kvsvr.Remote {self._path}>"


class RemoteTable:
    """Ordered rows under one key of the set. Rows have 0 to 65,535 bytes."""

    def __init__(self, calls: AsyncRemoteTable) -> None:
        self._calls = calls

    @property
    def key(self) -> bytes:
        return self._calls.key

    @property
    def version(self) -> int:
        """The version of its newest write; 0 if the table is absent."""
        return finished(self._calls.version())

    @property
    def expires_at(self) -> float | None:
        """When the table as a whole expires, in seconds since 1970; None: never, or it is absent."""
        return finished(self._calls.expires_at())

    @overload
    def get(self, row: BytesLike) -> bytes | None: ...
    @overload
    def get(self, row: BytesLike, default: T) -> bytes | T: ...
    def get(self, row: BytesLike, default: T | None = None) -> bytes | T | None:
        return finished(self._calls.get(row, default))

    def get_versioned(self, row: BytesLike) -> Versioned | None:
        return finished(self._calls.get_versioned(row))

    def put(
        self,
        row: BytesLike,
        value: BytesLike,
        *,
        ttl: float | None = None,
        durable: bool = False,
        durability: Durability | None = None,
    ) -> int:
        return finished(self._calls.put(row, value, ttl=ttl, durability=durability))

    def put_many(
        self, pairs: Iterable[tuple[BytesLike, BytesLike]], *, ttl: float | None = None, durable: bool = False
    ) -> int:
        return finished(self._calls.put_many(pairs, ttl=ttl))

    def append(
        self,
        value: BytesLike,
        *,
        ttl: float | None = None,
        durable: bool = False,
        durability: Durability | None = None,
    ) -> bytes:
        return finished(self._calls.append(value, ttl=ttl, durability=durability))

    def delete(self, row: BytesLike, *, version: int | None = None, durable: bool = False) -> bool:
        return finished(self._calls.delete(row, version=version))

    def delete_range(
        self, start: BytesLike | None = None, stop: BytesLike | None = None, *, durable: bool = False
    ) -> int:
        return finished(self._calls.delete_range(start, stop))

    def cas(
        self,
        row: BytesLike,
        value: BytesLike,
        version: int,
        *,
        ttl: float | None = None,
        durable: bool = False,
        durability: Durability | None = None,
    ) -> int:
        return finished(self._calls.cas(row, value, version, ttl=ttl, durability=durability))

    def incr(self, row: BytesLike, by: int = 1, *, ttl: float | None = None, durable: bool = False) -> int:
        return finished(self._calls.incr(row, by, ttl=ttl))

    def rows(
        self,
        start: BytesLike | None = None,
        stop: BytesLike | None = None,
        *,
        prefix: BytesLike | None = None,
        reverse: bool = False,
        limit: int | None = None,
    ) -> Iterator[tuple[bytes, bytes]]:
        return Pages(self._calls.rows(start, stop, prefix=prefix, reverse=reverse, limit=limit))

    def keys(
        self,
        start: BytesLike | None = None,
        stop: BytesLike | None = None,
        *,
        prefix: BytesLike | None = None,
        reverse: bool = False,
        limit: int | None = None,
    ) -> Iterator[bytes]:
        return Pages(self._calls.keys(start, stop, prefix=prefix, reverse=reverse, limit=limit))

    def last(self, count: int) -> list[tuple[bytes, bytes]]:
        return finished(self._calls.last(count))

    def changes(self, since: int, limit: int | None = None) -> Changes:
        return finished(self._calls.changes(since, limit))

    def trim(self, version: int, *, durable: bool = False) -> int:
        return finished(self._calls.trim(version))

    def drop(self, *, durable: bool = False) -> bool:
        return finished(self._calls.drop())

    def __getitem__(self, row: BytesLike) -> bytes:
        value = self.get(row)
        if value is None:
            raise KeyError(row)
        return value

    def __setitem__(self, row: BytesLike, value: BytesLike) -> None:
        self.put(row, value)

    def __delitem__(self, row: BytesLike) -> None:
        if not self.delete(row):
            raise KeyError(row)

    def __contains__(self, row: BytesLike) -> bool:
        return self.get(row) is not None

    def __iter__(self) -> Iterator[bytes]:
        return self.keys()

    def __len__(self) -> int:
        """Its rows, expired ones included until they are reclaimed; 0 if it is absent."""
        return finished(self._calls.count())

    def __bool__(self) -> bool:
        """True, also when empty."""
        return True

    def __repr__(self) -> str:
        return f"<kvsvr.RemoteTable {self.key!r}>"
