"""Many keys: in one call, or all of them again and again. Safe from kill -9 when the call returns."""

import random
from collections.abc import Sequence

from bench.adapters.base import Adapter
from bench.cells.base import (
    EMPTY,
    FULL,
    LOADED,
    MANY,
    WARM_COUNT,
    Cell,
    Holds,
    Timing,
    Work,
    at_once,
    check_written,
    chunks,
    time_answers,
    time_each,
    time_pairs,
)

GROUP = "many keys"
ROUNDS = 3


def run_get_many(adapter: Adapter, work: Work) -> Timing:
    seconds = 0.0
    with adapter.reads() as reads:
        groups = chunks(work.data.reads, MANY)
        time_each(reads.get_many, groups[-WARM_COUNT // MANY :])
        for chunk in chunks(groups, at_once(work.setting, MANY)):
            chunk_seconds, answers = time_answers(reads.get_many, chunk)
            seconds += chunk_seconds
            for keys, answer in zip(chunk, answers, strict=True):
                work.data.check(keys, reads.values(keys, answer), 0)
    return Timing(work.data.key_count, seconds)


def run_put_many(adapter: Adapter, work: Work) -> Timing:
    return _time_put_many(adapter, work, work.data.inserts, work.data.values)


def run_put_many_ordered(adapter: Adapter, work: Work) -> Timing:
    keys = work.data.ordered
    return _time_put_many(adapter, work, keys, [work.data.value(key, 0) for key in keys])


def _time_put_many(adapter: Adapter, work: Work, keys: Sequence[bytes], values: Sequence[bytes]) -> Timing:
    """One call with everything: into how many transactions a peer best cuts it is the adapter's to know."""
    pairs = list(zip(keys, values, strict=True))
    with adapter.writes() as writes:
        seconds = time_each(writes.put_many, [pairs])
    check_written(adapter, work.data, keys, 0)
    return Timing(len(keys), seconds)


def run_overwrite(adapter: Adapter, work: Work) -> Timing:
    """Single puts, each round in another order: what a log-structured store must clean up behind them."""
    generations = range(work.generation, work.generation + ROUNDS)
    keys: list[bytes] = []
    for generation in generations:
        keys += random.Random(generation).sample(work.data.inserts, work.data.key_count)
    values = [work.data.value(key, generations[i // work.data.key_count]) for i, key in enumerate(keys)]
    with adapter.writes() as writes:
        seconds = time_pairs(writes.put, keys, values)
    check_written(adapter, work.data, work.data.reads, generations[-1])
    return Timing(len(keys), seconds)


GET_MANY = Cell(
    name="get-many",
    title="get_many of 100",
    group=GROUP,
    bar=3.0,
    writes=False,
    needs=LOADED,
    leaves=None,
    limit="dict get",
    run=run_get_many,
)

OVERWRITE = Cell(
    name="overwrite-3",
    title="overwrite everything three times",
    group=GROUP,
    bar=3.0,
    writes=True,
    needs=FULL,
    leaves=Holds.CHANGED,
    limit="cffi no-op",
    run=run_overwrite,
)

# Each into a store of its own.
PUT_MANY = (
    Cell(
        name="put-many",
        title="put_many, random order",
        group=GROUP,
        bar=3.0,
        writes=True,
        needs=EMPTY,
        leaves=Holds.LOADED,
        limit="dict put",
        run=run_put_many,
    ),
    Cell(
        name="put-many-ordered",
        title="put_many, in key order",
        group=GROUP,
        bar=0.5,
        writes=True,
        needs=EMPTY,
        leaves=Holds.LOADED,
        limit="dict put",
        run=run_put_many_ordered,
    ),
)
