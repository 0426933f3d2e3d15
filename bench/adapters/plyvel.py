"""LevelDB through plyvel: a Bloom filter and a block cache that holds everything, no compression, because the values
do not compress. It has no multi-get, so get_many is `map` over get."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from bench.adapters.base import (
    FULL_SCAN,
    SCAN,
    SNAPSHOTS,
    TABLES,
    Adapter,
    Pair,
    Reads,
    SnapshotRead,
    Writes,
    in_order,
    load_module,
)
from bench.adapters.rows import BEHIND_ROWS, ascending, numbered

MANY = 1000  # Pairs per batch of put_many.


class PlyvelAdapter(Adapter):
    name = "plyvel"
    distribution = "plyvel"
    features = frozenset({SCAN, FULL_SCAN, TABLES, SNAPSHOTS})
    settings = "compression=None bloom_filter_bits=10 lru_cache_size=512M write_buffer_size=64M; fsync cells sync=True"
    durability = (
        "kill -9; after power loss a prefix of the writes",
        "power loss: fdatasync of the log, grouped by LevelDB",
    )

    def __init__(self) -> None:
        self._plyvel = load_module("plyvel")
        self._db: Any = None
        self._durable = False

    def open(self, directory: Path, *, durable: bool, key_count: int, value_size: int = 100) -> None:
        self._durable = durable
        self._db = self._plyvel.DB(
            str(directory / "leveldb"),
            create_if_missing=True,
            compression=None,
            bloom_filter_bits=10,
            lru_cache_size=512 << 20,
            write_buffer_size=64 << 20,
        )

    @contextmanager
    def writes(self) -> Iterator[Writes]:
        db, durable = self._db, self._durable

        def write_batch(pairs: Sequence[Pair]) -> None:
            with db.write_batch(sync=durable) as batch:
                put = batch.put
                for key, value in pairs:
                    put(key, value)

        def put_many(pairs: Sequence[Pair]) -> None:
            for first in range(0, len(pairs), MANY):
                write_batch(pairs[first : first + MANY])

        if durable:
            put, delete = partial(db.put, sync=True), partial(db.delete, sync=True)
        else:
            put, delete = db.put, db.delete
        yield Writes(put, delete, write_batch, put_many, append=numbered(put))

    @contextmanager
    def reads(self) -> Iterator[Reads]:
        get, iterator = self._db.get, self._db.iterator

        def scan(start: bytes, count: int) -> list[Pair]:
            return list(islice(iterator(start=start), count))

        def last(table: bytes, count: int) -> list[Pair]:
            return list(islice(iterator(start=table, stop=table + BEHIND_ROWS, reverse=True), count))

        yield Reads(get, lambda keys: list(map(get, keys)), in_order, scan, iterator, last, ascending)

    @contextmanager
    def snapshots(self) -> Iterator[SnapshotRead]:
        take = self._db.snapshot

        def read(keys: list[bytes]) -> Sequence[bytes | None]:
            with take() as snapshot:
                return list(map(snapshot.get, keys))

        yield read

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
        self._db = None

    def library_version(self) -> str:
        return f"LevelDB {self._plyvel.__leveldb_version__}"
