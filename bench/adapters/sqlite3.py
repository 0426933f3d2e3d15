"""SQLite through the standard library: one WITHOUT ROWID table, WAL, statements prepared once by the module's cache.

Every put is a transaction of its own (autocommit); gets run inside one read transaction. Each writing thread has its
own connection; they take turns by a lock, because SQLite itself waits for a busy log by sleeping.
"""

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from bench.adapters.base import Adapter, Pair, Reads, Writes, from_pairs

UPSERT = "INSERT INTO kv VALUES (?, ?) ON CONFLICT (k) DO UPDATE SET v = excluded.v"
DELETE = "DELETE FROM kv WHERE k = ?"
SELECT = "SELECT v FROM kv WHERE k = ?"


class SqliteAdapter(Adapter):
    name = "sqlite3"
    settings = (
        "journal_mode=WAL cache_size=512M mmap_size=2G WITHOUT ROWID; unsynced cells synchronous=OFF, "
        "fsync cells synchronous=FULL"
    )
    durability = (
        "kill -9; power loss may damage the file",
        "power loss: fdatasync of the log at every commit",
    )

    def __init__(self) -> None:
        self._path = ""
        self._durable = False
        self._turn = threading.Lock()
        self._keeper: sqlite3.Connection | None = None

    def open(self, directory: Path, *, durable: bool, key_count: int) -> None:
        self._path, self._durable = str(directory / "sqlite.db"), durable
        # Kept open: when the last connection closes, SQLite copies the whole log into the file, and that would
        # fall into the time of the threads that end.
        self._keeper = self._connect()
        self._keeper.execute("CREATE TABLE IF NOT EXISTS kv (k BLOB PRIMARY KEY, v BLOB NOT NULL) WITHOUT ROWID")

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, isolation_level=None, timeout=60)
        for pragma in (
            "journal_mode = WAL",
            f"synchronous = {'FULL' if self._durable else 'OFF'}",
            "cache_size = -524288",
            "mmap_size = 2147483648",
        ):
            connection.execute("PRAGMA " + pragma)
        return connection

    @contextmanager
    def writes(self) -> Iterator[Writes]:
        with closing(self._connect()) as connection:
            execute, executemany, turn = connection.cursor().execute, connection.cursor().executemany, self._turn

            def put(key: bytes, value: bytes) -> None:
                with turn:
                    execute(UPSERT, (key, value))

            def delete(key: bytes) -> None:
                with turn:
                    execute(DELETE, (key,))

            def write_batch(pairs: Sequence[Pair]) -> None:
                with turn, connection:
                    execute("BEGIN IMMEDIATE")
                    executemany(UPSERT, pairs)

            yield Writes(put=put, delete=delete, write_batch=write_batch)

    @contextmanager
    def reads(self) -> Iterator[Reads]:
        with closing(self._connect()) as connection:
            execute = connection.cursor().execute
            select_many: dict[int, str] = {}

            def get(key: bytes) -> bytes | None:
                row = execute(SELECT, (key,)).fetchone()
                return None if row is None else row[0]

            def get_many(keys: list[bytes]) -> list[Pair]:
                count = len(keys)
                sql = select_many.get(count)
                if sql is None:
                    sql = f"SELECT k, v FROM kv WHERE k IN ({', '.join('?' * count)})"
                    select_many[count] = sql
                return execute(sql, keys).fetchall()

            execute("BEGIN")
            yield Reads(get=get, get_many=get_many, values=from_pairs)
            execute("COMMIT")

    def close(self) -> None:
        if self._keeper is not None:
            self._keeper.close()
        self._keeper = None

    def library_version(self) -> str:
        return f"SQLite {sqlite3.sqlite_version}"
