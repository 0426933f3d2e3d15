"""What an Engine and a Snapshot read in the same way: they differ in whose callers they read with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from struct import iter_unpack
from typing import Final, TypeVar, overload

from kvsvr.native import ABSENT, Caller, Many, Pool, ffi, lib, own, quick
from kvsvr.store.arguments import READ_COUNT_MAX, chunks
from kvsvr.store.scan import listing
from kvsvr.types import BytesLike, Versioned

T = TypeVar("T")

KV_SCAN_KEYS: Final = lib.KV_SCAN_KEYS


class Reads:
    """Keys and values."""

    __slots__ = ()

    _handle: Pool

    @overload
    def get(self, key: BytesLike) -> bytes | None: ...
    @overload
    def get(self, key: BytesLike, default: T) -> bytes | T: ...
    @quick
    def get(self, key: BytesLike, default: T | None = None) -> bytes | T | None:
        """The value, or `default` if the key is absent or has expired. WrongType if it is a table."""
        name = own(key)
        caller = self._handle.take()
        size = lib.kv_get(caller.pointer, name, len(name))
        if size < 0 and size != ABSENT:
            raise self._handle.failed(size, caller, name)
        value = default if size == ABSENT else caller.content(size)
        self._handle.release(caller)
        return value

    def get_versioned(self, key: BytesLike) -> Versioned | None:
        """The value with its version and expiry, all of one moment; None if the key is absent."""
        name = own(key)
        caller = self._handle.take()
        size = lib.kv_get(caller.pointer, name, len(name))
        if size < 0 and size != ABSENT:
            raise self._handle.failed(size, caller, name)
        found = versioned(caller, size)
        self._handle.release(caller)
        return found

    @quick
    def get_many(self, keys: Iterable[BytesLike]) -> list[bytes | None]:
        """The values in the order of the keys, None for those that are absent. As single gets: not of one moment, but
        in a snapshot."""
        values: list[bytes | None] = []
        for chunk in chunks(keys, READ_COUNT_MAX):
            values += self._get_chunk(chunk)
        return values

    def _get_chunk(self, keys: list[BytesLike]) -> Iterable[bytes | None]:
        many = Many(keys)
        sizes = ffi.new("int64_t[]", many.count)
        caller = self._handle.take()
        total = lib.kv_get_many(caller.pointer, many.pointer, sizes)
        if total < 0:
            raise self._handle.failed(total, caller)
        content = caller.content(total)
        self._handle.release(caller)
        return _split(content, ffi.unpack(sizes, many.count))

    def scan(
        self,
        start: BytesLike | None = None,
        stop: BytesLike | None = None,
        *,
        prefix: BytesLike | None = None,
        reverse: bool = False,
        limit: int | None = None,
    ) -> Iterator[tuple[bytes, bytes]]:
        """(key, value) in the order of keys: from `start` on, below `stop`, or all that begin with `prefix`.

        With reverse=True the same range from its end; with `limit` at most so many. Nothing is held between pages:
        what is there throughout appears exactly once, what comes or goes meanwhile may or may not. A value is as of
        the moment its page was read. Tables are not in it: tables() lists them.
        """
        return listing(self._handle, KV_SCAN_KEYS, start=start, stop=stop, prefix=prefix, reverse=reverse, limit=limit)

    def keys(
        self,
        start: BytesLike | None = None,
        stop: BytesLike | None = None,
        *,
        prefix: BytesLike | None = None,
        reverse: bool = False,
        limit: int | None = None,
    ) -> Iterator[bytes]:
        """The keys alone, as scan() gives them; no value is read."""
        return listing(
            self._handle,
            KV_SCAN_KEYS,
            start=start,
            stop=stop,
            prefix=prefix,
            reverse=reverse,
            limit=limit,
            values=False,
        )

    def tables(self, prefix: BytesLike | None = None) -> Iterator[bytes]:
        """The keys of tables in order, all or those that begin with `prefix`; paged as scan() is.

        A table is there from its first row until it is dropped, also if none of its rows is left.
        """
        return listing(self._handle, lib.KV_SCAN_TABLES, prefix=prefix, values=False)

    def __getitem__(self, key: BytesLike) -> bytes:
        value = self.get(key)
        if value is None:
            raise KeyError(key)
        return value

    def __contains__(self, key: BytesLike) -> bool:
        """Whether the key has a value. A table has none."""
        name = own(key)
        caller = self._handle.take()
        size = lib.kv_look(caller.pointer, name, len(name))
        if size == 0:  # An empty value, or a table: a get tells them apart, and has nothing to copy.
            size = lib.kv_get(caller.pointer, name, len(name))
        if size < 0 and size not in (ABSENT, lib.KV_EWRONGTYPE):
            raise self._handle.failed(size, caller, name)
        self._handle.release(caller)
        return bool(size >= 0)

    def __iter__(self) -> Iterator[bytes]:
        """The keys in order, as keys() gives them."""
        return self.keys()


def versioned(caller: Caller, size: int) -> Versioned | None:
    """What a get has left with the caller; None: nothing was there."""
    if size < 0:
        return None
    answer = caller.answer
    return Versioned(caller.content(size), answer.version, answer.expires_ms / 1000 if answer.expires_ms else None)


def _split(content: bytes, sizes: list[int]) -> Iterable[bytes | None]:
    """Cuts the answer of kv_get_many into values. Equal sizes, the usual case, are cut by C."""
    first = sizes[0]
    if first > 0 and sizes.count(first) == len(sizes):
        return [value for (value,) in iter_unpack(f"{first}s", content)]
    values: list[bytes | None] = []
    end = 0
    for size in sizes:
        if size < 0:
            values.append(None)
        else:
            values.append(content[end : end + size])
            end += size
    return values
