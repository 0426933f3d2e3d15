"""Writes that are durable when they return: overwrites of random keys in a full store."""

from collections.abc import Callable

from bench.adapters.base import Adapter
from bench.cells.base import (
    FULL,
    MANY,
    Cell,
    Holds,
    Timing,
    Work,
    check_written,
    chunks,
    time_each,
    time_pairs,
)
from bench.cells.threads import run_puts

SYNCS_PER_BATCH = 5  # Fewer batches than puts: one that touches a hundred pages takes LMDB some 10 ms.


def run_put_fsync(adapter: Adapter, work: Work) -> Timing:
    keys = work.data.some(work.sync_count, work.generation)
    values = [work.data.value(key, work.generation) for key in keys]
    with adapter.writes() as writes:
        seconds = time_pairs(writes.put, keys, values)
    check_written(adapter, work.data, keys, work.generation)
    return Timing(len(keys), seconds)


def run_put_fsync_8(adapter: Adapter, work: Work) -> Timing:
    return run_puts(adapter, work, thread_count=8, count_max=work.sync_count)


def run_batch_fsync(adapter: Adapter, work: Work) -> Timing:
    keys = work.data.some(max(1, work.sync_count // SYNCS_PER_BATCH) * MANY, work.generation)
    groups = chunks([(key, work.data.value(key, work.generation)) for key in keys], MANY)
    with adapter.writes() as writes:
        seconds = time_each(writes.write_batch, groups)
    check_written(adapter, work.data, keys, work.generation)
    return Timing(len(keys), seconds)


def _cell(name: str, title: str, bar: float, run: Callable[[Adapter, Work], Timing], threads: int = 1) -> Cell:
    return Cell(
        name=name,
        title=title,
        group="durable",
        bar=bar,
        durable=True,
        writes=True,
        needs=FULL,
        leaves=Holds.CHANGED,
        threads=threads,
        limit="fdatasync",
        run=run,
    )


CELLS = (
    _cell("put-fsync", "put + fsync, 1 thread", 1.3, run_put_fsync),
    _cell("put-fsync-8", "put + fsync, 8 threads", 1.5, run_put_fsync_8, threads=8),
    _cell("batch-fsync", "batches of 100 + fsync", 3.0, run_batch_fsync),
)
