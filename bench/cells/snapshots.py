"""Snapshots, and puts with an expiry."""

from bench.adapters.base import EXPIRY, SNAPSHOTS, Adapter
from bench.cells.base import (
    FULL,
    LOADED,
    SOME_MAX,
    Cell,
    Holds,
    Timing,
    Work,
    check_written,
    chunks,
    time_answers,
    time_pairs,
)

GROUP = "snapshots and expiry"
KEYS_PER_SNAPSHOT = 1000


def run_snapshot(adapter: Adapter, work: Work) -> Timing:
    groups = chunks(work.data.reads[:SOME_MAX], KEYS_PER_SNAPSHOT)
    with adapter.snapshots() as read:
        seconds, answers = time_answers(read, groups)
    for keys, answer in zip(groups, answers, strict=True):
        work.data.check(keys, answer, 0)
    return Timing(len(groups), seconds)


def run_put_expiring(adapter: Adapter, work: Work) -> Timing:
    keys = work.data.some(SOME_MAX, work.generation)
    values = [work.data.value(key, work.generation) for key in keys]
    with adapter.writes() as writes:
        seconds = time_pairs(writes.put_expiring, keys, values)
    check_written(adapter, work.data, keys, work.generation)
    return Timing(len(keys), seconds)


SNAPSHOT = Cell(
    name="snapshot",
    title="snapshot: take it, read 1,000 keys, close it",
    group=GROUP,
    unit="snapshots/s",
    writes=False,
    needs=LOADED,
    leaves=None,
    needs_feature=SNAPSHOTS,
    limit="dict get",
    run=run_snapshot,
)

PUT_EXPIRING = Cell(
    name="put-expiring",
    title="put with an expiry",
    group=GROUP,
    writes=True,
    needs=FULL,
    leaves=Holds.CHANGED,
    needs_feature=EXPIRY,
    limit="cffi no-op",
    run=run_put_expiring,
)
