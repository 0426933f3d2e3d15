"""diskcache: a cache in Python over SQLite, here without evicting anything, and with SQLite set as in sqlite3.py.

Values stay in the database however large: what diskcache puts into files of its own it does not sync. Threads take
turns by a lock, as in sqlite3.py. It has no scan from a key on, so no rows either; it iterates over all keys in order.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.adapters.base import (
    EXPIRY,
    EXPIRY_SECONDS,
    FULL_SCAN,
    Adapter,
    Pair,
    Reads,
    Writes,
    in_order,
    load_module,
)

ALL_IN_SQLITE = 1 << 40
SYNC_OFF, SYNC_FULL = 0, 2  # The pragma synchronous.


class DiskcacheAdapter(Adapter):
    name = "diskcache"
    distribution = "diskcache"
    features = frozenset({FULL_SCAN, EXPIRY})
    settings = (
        "eviction_policy=none, WAL sqlite_cache_size=512M sqlite_mmap_size=2G auto_vacuum=0, all values in SQLite; "
        "unsynced cells synchronous=OFF, fsync cells synchronous=FULL"
    )
    durability = (
        "kill -9; power loss may damage the file",
        "power loss: fdatasync of the log at every commit",
    )

    def __init__(self) -> None:
        self._diskcache = load_module("diskcache")
        self._turn = threading.Lock()
        self._opener = threading.get_ident()
        self._cache: Any = None

    def open(self, directory: Path, *, durable: bool, key_count: int, value_size: int = 100) -> None:
        self._cache = self._diskcache.Cache(
            str(directory / "diskcache"),
            eviction_policy="none",
            cull_limit=0,
            size_limit=1 << 60,
            disk_min_file_size=ALL_IN_SQLITE,
            sqlite_auto_vacuum=0,
            sqlite_cache_size=-524288,
            sqlite_mmap_size=2147483648,
            sqlite_synchronous=SYNC_FULL if durable else SYNC_OFF,
        )

    @contextmanager
    def writes(self) -> Iterator[Writes]:
        cache, turn = self._cache, self._turn

        def put(key: bytes, value: bytes) -> None:
            with turn:
                cache.set(key, value)

        def put_expiring(key: bytes, value: bytes) -> None:
            with turn:
                cache.set(key, value, EXPIRY_SECONDS)

        def delete(key: bytes) -> None:
            with turn:
                cache.delete(key)

        def write_batch(pairs: Sequence[Pair]) -> None:
            with turn, cache.transact():
                for key, value in pairs:
                    cache.set(key, value)

        try:
            yield Writes(put, delete, write_batch, put_many=write_batch, put_expiring=put_expiring)
        finally:
            self._leave_thread()

    @contextmanager
    def reads(self) -> Iterator[Reads]:
        cache = self._cache
        get = cache.get

        def scan_all() -> Iterator[Pair]:
            return ((key, cache[key]) for key in cache.iterkeys())

        try:
            yield Reads(get, lambda keys: list(map(get, keys)), in_order, scan_all=scan_all)
        finally:
            self._leave_thread()

    def _leave_thread(self) -> None:
        """A thread's connection is its own to close; the opener's stays, so that closing it folds no log in between."""
        if threading.get_ident() != self._opener:
            self._cache.close()

    def close(self) -> None:
        if self._cache is not None:
            self._cache.close()
        self._cache = None
