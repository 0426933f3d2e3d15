"""LMDB, with and without writemap.

A single put is a transaction of its own: only a commit survives kill -9. (Many puts in one long transaction are far
faster and survive nothing until it ends.) `begin` and `commit` are called directly, without a `with` block around them.
Gets use one long read transaction, the cheapest way LMDB has; get_many is `map` over its get, because py-lmdb's
cursor.getmulti, which answers with pairs, measured slower for random keys.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.adapters.base import Adapter, Pair, Reads, Writes, in_order, load_module

MAP_SIZE_MIN = 1 << 30
MAP_SIZE_PER_KEY = 2048  # Room for half-full pages and for those that old readers pin; the file stays sparse.


class LmdbAdapter(Adapter):
    name = "lmdb"
    distribution = "lmdb"
    settings = "writemap=False; unsynced cells sync=False, fsync cells sync=True metasync=True"
    durability = (
        "kill -9; power loss may damage the file",
        "power loss: fdatasync of data, then the meta page through O_DSYNC",
    )
    writemap = False

    def __init__(self) -> None:
        self._lmdb = load_module("lmdb")
        self._env: Any = None

    def open(self, directory: Path, *, durable: bool, key_count: int) -> None:
        self._env = self._lmdb.open(
            str(directory / "lmdb"),
            map_size=MAP_SIZE_MIN + key_count * MAP_SIZE_PER_KEY,
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

        yield Writes(put=put, delete=delete, write_batch=write_batch)

    @contextmanager
    def reads(self) -> Iterator[Reads]:
        with self._env.begin() as txn:
            get = txn.get
            yield Reads(get=get, get_many=lambda keys: list(map(get, keys)), values=in_order)

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
