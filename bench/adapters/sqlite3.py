"""SQLite through the standard library: one WITHOUT ROWID table, WAL, statements prepared once by the module's cache.

Every put is a transaction of its own (autocommit); gets run inside one read transaction. Each writing thread has its
own connection; they take turns by a lock, because SQLite itself waits for a busy log by sleeping.
"""

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

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
    from_pairs,
)
from bench.adapters.rows import BEHIND_ROWS, ascending, numbered

UPSERT = "INSERT INTO kv VALUES (?, ?) ON CONFLICT (k) DO UPDATE SET v = excluded.v"
DELETE = "DELETE FROM kv WHERE k = ?"
SELECT = "SELECT v FROM kv WHERE k = ?"
SCAN_FROM = "SELECT k, v FROM kv WHERE k >= ? ORDER BY k LIMIT ?"
SCAN_ALL = "SELECT k, v FROM kv ORDER BY k"
LAST_ROWS = "SELECT k, v FROM kv WHERE k >= ? AND k < ? ORDER BY k DESC LIMIT ?"


class SqliteAdapter(Adapter):
    name = "sqlite3"
    features = frozenset({SCAN, FULL_SCAN, TABLES, SNAPSHOTS})
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

    def open(self, directory: Path, *, durable: bool, key_count: int, value_size: int = 100) -> None:
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

            yield Writes(put, delete, write_batch, put_many=write_batch, append=numbered(put))

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

            def scan(start: bytes, count: int) -> list[Pair]:
                return execute(SCAN_FROM, (start, count)).fetchall()

            def scan_all() -> Iterator[Pair]:
                return connection.execute(SCAN_ALL)

            def last(table: bytes, count: int) -> list[Pair]:
                return execute(LAST_ROWS, (table, table + BEHIND_ROWS, count)).fetchall()

            execute("BEGIN")
            yield Reads(get, get_many, from_pairs, scan, scan_all, last, ascending)
            execute("COMMIT")

    @contextmanager
    def mix(self) -> Iterator[Mix]:
        """One connection, every statement a transaction of its own."""
        with closing(self._connect()) as connection:
            execute = connection.cursor().execute

            def read(key: bytes) -> bytes | None:
                row = execute(SELECT, (key,)).fetchone()
                return None if row is None else row[0]

            def put(key: bytes, value: bytes) -> None:
                execute(UPSERT, (key, value))

            def read_modify_write(key: bytes, value: bytes) -> bytes | None:
                before = read(key)
                execute(UPSERT, (key, value))
                return before

            yield Mix(read, put, read_modify_write, lambda start, n: execute(SCAN_FROM, (start, n)).fetchall())

    @contextmanager
    def snapshots(self) -> Iterator[SnapshotRead]:
        with closing(self._connect()) as connection:
            execute = connection.cursor().execute

            def read(keys: list[bytes]) -> Sequence[bytes | None]:
                execute("BEGIN")
                rows = [execute(SELECT, (key,)).fetchone() for key in keys]
                execute("COMMIT")
                return [None if row is None else row[0] for row in rows]

            yield read

    def close(self) -> None:
        if self._keeper is not None:
            self._keeper.close()
        self._keeper = None

    def library_version(self) -> str:
        return f"SQLite {sqlite3.sqlite_version}"
