"""RocksDB through rocksdict, raw bytes: a Bloom filter and a block cache that holds everything, no compression, because
the values do not compress. The log is written at every put; get_many is its get with a list."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.adapters.base import Adapter, Pair, Reads, Writes, in_order, load_module


class RocksdictAdapter(Adapter):
    name = "rocksdict"
    distribution = "rocksdict"
    settings = "raw_mode compression=none bloom=10 block_cache=512M, log on; fsync cells sync=True"
    durability = (
        "kill -9; after power loss a prefix of the writes",
        "power loss: fdatasync of the log, grouped by RocksDB",
    )

    def __init__(self) -> None:
        self._rocksdict = load_module("rocksdict")
        self._db: Any = None

    def open(self, directory: Path, *, durable: bool, key_count: int) -> None:
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

        yield Writes(put=self._db.put, delete=self._db.delete, write_batch=write_batch)

    @contextmanager
    def reads(self) -> Iterator[Reads]:
        yield Reads(get=self._db.get, get_many=self._db.get, values=in_order)

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
        self._db = None
