"""Rows under a key: appended to tables in turn, and the last twenty of a table, as a chat shows them.

A store holds as many rows as it would keys, a hundred of them in each table.
"""

import random
from collections.abc import Sequence
from time import perf_counter

from bench.adapters.base import TABLES, Adapter
from bench.cells.base import (
    EMPTY,
    SOME_MAX,
    Cell,
    Holds,
    Timing,
    Work,
    at_once,
    chunks,
    spread,
    time_pairs,
)
from bench.data import Data, WrongAnswer

GROUP = "tables"
ROWS_PER_TABLE = 100
LAST_COUNT = 20


def appended_to(data: Data) -> list[bytes]:
    """The table of each row, in the order of appending. Values are those of data.values."""
    count = data.key_count
    keys = [key[::-1] for key in data.inserts[: -(-count // ROWS_PER_TABLE)]]
    return [b"t" + keys[i // ROWS_PER_TABLE][1:] for i in random.Random(0).sample(range(count), count)]


def rows_of(data: Data) -> dict[bytes, list[bytes]]:
    rows: dict[bytes, list[bytes]] = {}
    for table, value in zip(appended_to(data), data.values, strict=True):
        rows.setdefault(table, []).append(value)
    return rows


def load_tables(adapter: Adapter, data: Data) -> None:
    with adapter.writes() as writes:
        time_pairs(writes.append, appended_to(data), data.values)


def run_append(adapter: Adapter, work: Work) -> Timing:
    tables = appended_to(work.data)
    with adapter.writes() as writes:
        seconds = time_pairs(writes.append, tables, work.data.values)
    rows = rows_of(work.data)
    with adapter.reads() as reads:
        for table in spread(list(rows)):
            _check(rows[table], reads.rows(table, reads.last(table, LAST_COUNT)))
    return Timing(len(tables), seconds)


def run_last(adapter: Adapter, work: Work) -> Timing:
    rows, seconds, done = rows_of(work.data), 0.0, 0
    tables = random.Random(work.generation).choices(list(rows), k=min(work.data.key_count, SOME_MAX) // LAST_COUNT)
    tables = [bytes(bytearray(table)) for table in tables]  # Objects of their own, in the order of use.
    with adapter.reads() as reads:
        last = reads.last
        for chunk in chunks(tables, at_once(work.setting, LAST_COUNT)):
            started = perf_counter()
            answers = [last(table, LAST_COUNT) for table in chunk]
            seconds += perf_counter() - started
            for table, answer in zip(chunk, answers, strict=True):
                found = reads.rows(table, answer)
                _check(rows[table], found)
                done += len(found)
    return Timing(done, seconds)


def _check(rows: list[bytes], found: Sequence[bytes]) -> None:
    if list(found) != rows[-LAST_COUNT:]:
        raise WrongAnswer(f"the last {LAST_COUNT} rows of a table were {len(found)} others")


CELLS = (
    Cell(
        name="table-append",
        title="table: append",
        group=GROUP,
        unit="rows/s",
        bar=1.5,
        writes=True,
        needs=EMPTY,
        leaves=Holds.TABLES,
        needs_feature=TABLES,
        limit="cffi no-op",
        run=run_append,
    ),
    Cell(
        name="table-last",
        title="table: last(20)",
        group=GROUP,
        unit="rows/s",
        bar=0.7,
        writes=False,
        needs=frozenset({Holds.TABLES}),
        leaves=None,
        needs_feature=TABLES,
        limit="pairs of bytes",
        run=run_last,
    ),
)
