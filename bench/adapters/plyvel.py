"""LevelDB through plyvel: a Bloom filter and a block cache that holds everything, no compression, because the values
do not compress. It has no multi-get, so get_many is `map` over get."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from bench.adapters.base import Adapter, Pair, Reads, Writes, in_order, load_module


class PlyvelAdapter(Adapter):
    name = "plyvel"
    distribution = "plyvel"
    settings = "compression=None bloom_filter_bits=10 lru_cache_size=512M write_buffer_size=64M; fsync cells sync=True"
    durability = (
        "kill -9; after power loss a prefix of the writes",
        "power loss: fdatasync of the log, grouped by LevelDB",
    )

    def __init__(self) -> None:
        self._plyvel = load_module("plyvel")
        self._db: Any = None
        self._durable = False

    def open(self, directory: Path, *, durable: bool, key_count: int) -> None:
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

        if durable:
            yield Writes(partial(db.put, sync=True), partial(db.delete, sync=True), write_batch)
        else:
            yield Writes(db.put, db.delete, write_batch)

    @contextmanager
    def reads(self) -> Iterator[Reads]:
        get = self._db.get
        yield Reads(get=get, get_many=lambda keys: list(map(get, keys)), values=in_order)

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
        self._db = None

    def library_version(self) -> str:
        return f"LevelDB {self._plyvel.__leveldb_version__}"
