"""kvsvr itself, through its public interface.

A batch is `db.batch()`, not `put_many`: the peers' batches are atomic, and put_many does not promise that.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.adapters.base import INDEX_SIZE, TENFOLD, Adapter, NotInstalled, Pair, Reads, Writes, in_order, load_module


class KvsvrAdapter(Adapter):
    name = "kvsvr"
    distribution = "kvsvr"
    is_peer = False
    features = frozenset({INDEX_SIZE, TENFOLD})
    settings = 'unsynced cells sync="none", fsync cells sync="always"'
    durability = (
        "kill -9; after power loss a prefix of the writes",
        "power loss: group commit with fdatasync",
    )

    def __init__(self) -> None:
        self._kvsvr = load_module("kvsvr")
        if not hasattr(self._kvsvr, "open"):
            # A folder of that name beside the program is found as a namespace package and is not kvsvr.
            raise NotInstalled("a folder kvsvr without open()")
        self._db: Any = None

    def open(self, directory: Path, *, durable: bool, key_count: int) -> None:
        self._db = self._kvsvr.open(str(directory / "kvsvr"), sync="always" if durable else "none")

    @contextmanager
    def writes(self) -> Iterator[Writes]:
        batch = self._db.batch

        def write_batch(pairs: Sequence[Pair]) -> None:
            with batch() as open_batch:
                put = open_batch.put
                for key, value in pairs:
                    put(key, value)

        yield Writes(put=self._db.put, delete=self._db.delete, write_batch=write_batch)

    @contextmanager
    def reads(self) -> Iterator[Reads]:
        yield Reads(get=self._db.get, get_many=self._db.get_many, values=in_order)

    def index_size(self) -> int:
        return int(self._db.stats()["index_memory_size"])

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
        self._db = None
