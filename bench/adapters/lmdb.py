"""LMDB, with and without writemap.

A single put is a transaction of its own: only a commit survives kill -9. (Many puts in one long transaction are far
faster and survive nothing until it ends.) `begin` and `commit` are called directly, without a `with` block around them.
Gets use one long read transaction, the cheapest way LMDB has; get_many is `map` over its get, because py-lmdb's
cursor.getmulti, which answers with pairs, measured slower for random keys.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from bench.adapters.base import (
    FULL_SCAN,
    SCAN,
    SNAPSHOTS,
    TABLES,
    Adapter,
    Mix,
    Pair,
    Reads,
    SnapshotRead,
    Writes,
    in_order,
    load_module,
)
from bench.adapters.rows import BEHIND_ROWS, ascending, numbered

MAP_SIZE_MIN = 1 << 30
MAP_SIZE_PER_KEY = 2048  # Room for half-full pages and for those that old readers pin; the file stays sparse.
MAP_SIZE_PER_BYTE = 4
MANY = 100_000  # Pairs per transaction of put_many: a tenth more than with 10,000, and its pages fit into memory.


class LmdbAdapter(Adapter):
    name = "lmdb"
    distribution = "lmdb"
    features = frozenset({SCAN, FULL_SCAN, TABLES, SNAPSHOTS})
    settings = "writemap=False; unsynced cells sync=False, fsync cells sync=True metasync=True"
    durability = (
        "kill -9; power loss may damage the file",
        "power loss: fdatasync of data, then the meta page through O_DSYNC",
    )
    writemap = False

    def __init__(self) -> None:
        self._lmdb = load_module("lmdb")
        self._env: Any = None

    def open(self, directory: Path, *, durable: bool, key_count: int, value_size: int = 100) -> None:
        self._env = self._lmdb.open(
            str(directory / "lmdb"),
            map_size=MAP_SIZE_MIN + key_count * (MAP_SIZE_PER_KEY + MAP_SIZE_PER_BYTE * value_size),
            sync=durable,
            metasync=durable,
            writemap=self.writemap,
            max_spare_txns=16,
        )

    @contextmanager
    def writes(self) -> Iterator[Writes]:
        begin = self._env.begin

        def put(key: bytes, value: bytes) -> None:
            txn = begin(write=True)
            txn.put(key, value)
            txn.commit()

        def delete(key: bytes) -> None:
            txn = begin(write=True)
            txn.delete(key)
            txn.commit()

        def write_batch(pairs: Sequence[Pair]) -> None:
            with begin(write=True) as txn, txn.cursor() as cursor:
                cursor.putmulti(pairs)

        def put_many(pairs: Sequence[Pair]) -> None:
            for first in range(0, len(pairs), MANY):
                write_batch(pairs[first : first + MANY])

        yield Writes(put, delete, write_batch, put_many, append=numbered(put))

    @contextmanager
    def reads(self) -> Iterator[Reads]:
        with self._env.begin() as txn:
            get, cursor = txn.get, txn.cursor()
            set_range, iternext = cursor.set_range, cursor.iternext

            def scan(start: bytes, count: int) -> list[Pair]:
                return list(islice(iternext(), count)) if set_range(start) else []

            def last(table: bytes, count: int) -> list[Pair]:
                # Onto the last row: the entry before what stands behind the rows, which may be the end of the store.
                if not (cursor.prev() if set_range(table + BEHIND_ROWS) else cursor.last()):
                    return []
                return list(islice(cursor.iterprev(), count))

            scan_all = txn.cursor().iternext
            yield Reads(get, lambda keys: list(map(get, keys)), in_order, scan, scan_all, last, ascending)

    @contextmanager
    def mix(self) -> Iterator[Mix]:
        """A transaction for every read: one that stays open would not see what is written. Spares are kept."""
        with self.writes() as writes:
            begin = self._env.begin

            def read(key: bytes) -> bytes | None:
                txn = begin()
                value: bytes | None = txn.get(key)
                txn.abort()
                return value

            def read_modify_write(key: bytes, value: bytes) -> bytes | None:
                txn = begin(write=True)
                before: bytes | None = txn.get(key)
                txn.put(key, value)
                txn.commit()
                return before

            def scan(start: bytes, count: int) -> list[Pair]:
                with begin() as txn:
                    cursor = txn.cursor()
                    return list(islice(cursor.iternext(), count)) if cursor.set_range(start) else []

            yield Mix(read, writes.put, read_modify_write, scan)

    @contextmanager
    def snapshots(self) -> Iterator[SnapshotRead]:
        begin = self._env.begin

        def read(keys: list[bytes]) -> Sequence[bytes | None]:
            with begin() as txn:
                return list(map(txn.get, keys))

        yield read

    def close(self) -> None:
        if self._env is not None:
            self._env.close()
        self._env = None

    def library_version(self) -> str:
        return "LMDB " + ".".join(map(str, self._lmdb.version()))


class LmdbWritemapAdapter(LmdbAdapter):
    name = "lmdb-writemap"
    settings = "writemap=True; unsynced cells sync=False, fsync cells sync=True metasync=True"
    durability = (
        "kill -9; power loss may damage the file",
        "power loss: msync of data, then of the meta page",
    )
    writemap = True
