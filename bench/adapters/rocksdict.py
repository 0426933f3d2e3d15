"""RocksDB through rocksdict, raw bytes: a Bloom filter and a block cache that holds everything, no compression, because
the values do not compress. The log is written at every put; get_many is its get with a list."""

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
    Pair,
    Reads,
    SnapshotRead,
    Writes,
    in_order,
    load_module,
)
from bench.adapters.rows import BEHIND_ROWS, ascending, numbered

MANY = 1000  # Pairs per batch of put_many.


class RocksdictAdapter(Adapter):
    name = "rocksdict"
    distribution = "rocksdict"
    features = frozenset({SCAN, FULL_SCAN, TABLES, SNAPSHOTS})
    settings = "raw_mode compression=none bloom=10 block_cache=512M, log on; fsync cells sync=True"
    durability = (
        "kill -9; after power loss a prefix of the writes",
        "power loss: fdatasync of the log, grouped by RocksDB",
    )

    def __init__(self) -> None:
        self._rocksdict = load_module("rocksdict")
        self._db: Any = None

    def open(self, directory: Path, *, durable: bool, key_count: int, value_size: int = 100) -> None:
        rocksdict = self._rocksdict
        blocks = rocksdict.BlockBasedOptions()
        blocks.set_bloom_filter(10, False)
        blocks.set_block_cache(rocksdict.Cache(512 << 20))
        options = rocksdict.Options(raw_mode=True)
        options.create_if_missing(True)
        options.set_compression_type(rocksdict.DBCompressionType.none())
        options.set_block_based_table_factory(blocks)
        self._db = rocksdict.Rdict(str(directory / "rocksdb"), options)
        write_options = rocksdict.WriteOptions()
        write_options.sync = durable
        self._db.set_write_options(write_options)

    @contextmanager
    def writes(self) -> Iterator[Writes]:
        new_batch, write = self._rocksdict.WriteBatch, self._db.write

        def write_batch(pairs: Sequence[Pair]) -> None:
            batch = new_batch(raw_mode=True)
            put = batch.put
            for key, value in pairs:
                put(key, value)
            write(batch)

        def put_many(pairs: Sequence[Pair]) -> None:
            for first in range(0, len(pairs), MANY):
                write_batch(pairs[first : first + MANY])

        put = self._db.put
        yield Writes(put, self._db.delete, write_batch, put_many, append=numbered(put))

    @contextmanager
    def reads(self) -> Iterator[Reads]:
        items = self._db.items

        def scan(start: bytes, count: int) -> list[Pair]:
            return list(islice(items(from_key=start), count))

        def last(table: bytes, count: int) -> list[Pair]:
            return list(islice(items(backwards=True, from_key=table + BEHIND_ROWS), count))

        yield Reads(self._db.get, self._db.get, in_order, scan, items, last, ascending)

    @contextmanager
    def snapshots(self) -> Iterator[SnapshotRead]:
        take = self._db.snapshot

        def read(keys: list[bytes]) -> Sequence[bytes | None]:
            return list(map(take().__getitem__, keys))  # It has no get.

        yield read

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
        self._db = None
