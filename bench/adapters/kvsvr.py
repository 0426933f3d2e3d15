"""kvsvr itself, through its public interface.

A batch is `db.batch()`, not `put_many`: the peers' batches are atomic, and put_many does not promise that.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from bench.adapters.base import (
    EXPIRY,
    EXPIRY_SECONDS,
    FULL_SCAN,
    INDEX_SIZE,
    SCAN,
    SNAPSHOTS,
    TABLES,
    TENFOLD,
    Adapter,
    NotInstalled,
    Pair,
    Reads,
    SnapshotRead,
    Writes,
    in_order,
    load_module,
)


class KvsvrAdapter(Adapter):
    name = "kvsvr"
    distribution = "kvsvr"
    is_peer = False
    features = frozenset({SCAN, FULL_SCAN, TABLES, SNAPSHOTS, EXPIRY, INDEX_SIZE, TENFOLD})
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

    def open(self, directory: Path, *, durable: bool, key_count: int, value_size: int = 100) -> None:
        self._db = self._kvsvr.open(str(directory / "kvsvr"), sync="always" if durable else "none")

    @contextmanager
    def writes(self) -> Iterator[Writes]:
        batch = self._db.batch

        def write_batch(pairs: Sequence[Pair]) -> None:
            with batch() as open_batch:
                put = open_batch.put
                for key, value in pairs:
                    put(key, value)

        table = self._db.table
        yield Writes(
            put=self._db.put,
            delete=self._db.delete,
            write_batch=write_batch,
            put_many=self._db.put_many,
            put_expiring=partial(self._db.put, ttl=EXPIRY_SECONDS),
            append=lambda key, value: table(key).append(value),
        )

    @contextmanager
    def reads(self) -> Iterator[Reads]:
        scan, table = self._db.scan, self._db.table
        yield Reads(
            get=self._db.get,
            get_many=self._db.get_many,
            values=in_order,
            scan=lambda start, count: list(scan(start, limit=count)),
            scan_all=scan,
            last=lambda key, count: table(key).last(count),
            rows=lambda key, answer: [value for _, value in answer],
        )

    @contextmanager
    def snapshots(self) -> Iterator[SnapshotRead]:
        take = self._db.snapshot

        def read(keys: list[bytes]) -> Sequence[bytes | None]:
            with take() as snapshot:
                found: Sequence[bytes | None] = snapshot.get_many(keys)
                return found

        yield read

    def index_size(self) -> int:
        return int(self._db.stats()["index_memory_size"])

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
        self._db = None
