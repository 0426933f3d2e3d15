"""Single operations, safe from kill -9."""

from collections.abc import Callable
from typing import Any

from bench.adapters.base import Adapter
from bench.cells.base import (
    EMPTY,
    FULL,
    LOADED,
    WARM_COUNT,
    Cell,
    Holds,
    Timing,
    Work,
    at_once,
    check_written,
    chunks,
    spread,
    time_answers,
    time_each,
    time_pairs,
)
from bench.data import check_absent

GROUP = "single keys"


def run_put(adapter: Adapter, work: Work) -> Timing:
    keys, values = work.data.inserts, work.data.values
    with adapter.writes() as writes:
        seconds = time_pairs(writes.put, keys, values)
    check_written(adapter, work.data, keys, 0)
    return Timing(len(keys), seconds)


def run_delete(adapter: Adapter, work: Work) -> Timing:
    keys = work.data.deletes
    with adapter.writes() as writes:
        seconds = time_each(writes.delete, keys)
    with adapter.reads() as reads:
        some = spread(keys)
        check_absent(some, [reads.get(key) for key in some])
    return Timing(len(keys), seconds)


def run_get_hit(adapter: Adapter, work: Work) -> Timing:
    return _time_gets(adapter, work, work.data.reads, lambda keys, answers: work.data.check(keys, answers, 0))


def run_get_miss(adapter: Adapter, work: Work) -> Timing:
    return _time_gets(adapter, work, work.data.absent, check_absent)


def _time_gets(
    adapter: Adapter, work: Work, keys: list[bytes], check: Callable[[list[bytes], list[Any]], None]
) -> Timing:
    seconds = 0.0
    with adapter.reads() as reads:
        time_each(reads.get, keys[-WARM_COUNT:])
        for chunk in chunks(keys, at_once(work.setting)):
            chunk_seconds, answers = time_answers(reads.get, chunk)
            seconds += chunk_seconds
            check(chunk, answers)
    return Timing(len(keys), seconds)


CELLS = (
    Cell(
        name="put",
        title="single put",
        group=GROUP,
        bar=2.5,
        writes=True,
        needs=EMPTY,
        leaves=Holds.LOADED,
        limit="cffi no-op",
        run=run_put,
    ),
    Cell(
        name="get-hit",
        title="random get, hit",
        group=GROUP,
        bar=1.5,
        writes=False,
        needs=LOADED,
        leaves=None,
        limit="cffi no-op",
        run=run_get_hit,
    ),
    Cell(
        name="get-miss",
        title="random get, miss",
        group=GROUP,
        bar=2.0,
        writes=False,
        needs=FULL,
        leaves=None,
        limit="cffi no-op",
        run=run_get_miss,
    ),
)

# Last, because it empties the store.
DELETE = Cell(
    name="delete",
    title="single delete",
    group=GROUP,
    bar=2.5,
    writes=True,
    needs=FULL,
    leaves=Holds.UNKNOWN,
    limit="cffi no-op",
    run=run_delete,
)
