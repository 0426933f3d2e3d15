"""How long single operations take: each by itself between two looks at the clock.

The figure is the 99.9th percentile, in microseconds; the curve has the others. Looking at the clock costs some 50 ns an
operation, which is in every figure; "empty timed call" among the limits is the same loop around nothing.
"""

from array import array
from collections.abc import Callable, Sequence
from time import perf_counter_ns

from bench.adapters.base import Adapter
from bench.cells.base import (
    FULL,
    LOADED,
    SOME_MAX,
    WARM_COUNT,
    Cell,
    Holds,
    Timing,
    Work,
    check_written,
    time_each,
)
from bench.curve import curve_of

GROUP = "latency"
BAR = 1 / 1.5  # At most one and a half times the best.


def time_each_put(
    call: Callable[[bytes, bytes], object], keys: Sequence[bytes], values: Sequence[bytes]
) -> "array[int]":
    clock, taken = perf_counter_ns, array("q")
    keep = taken.append
    for key, value in zip(keys, values, strict=True):
        started = clock()
        call(key, value)
        keep(clock() - started)
    return taken


def time_each_get(
    call: Callable[[bytes], bytes | None], keys: Sequence[bytes]
) -> tuple["array[int]", list[bytes | None]]:
    clock, taken = perf_counter_ns, array("q")
    keep = taken.append
    answers: list[bytes | None] = []
    for key in keys:
        started = clock()
        answer = call(key)
        keep(clock() - started)
        answers.append(answer)
    return taken, answers


def timing_of(taken: "array[int]") -> Timing:
    curve = curve_of(taken)
    return Timing(len(taken), sum(taken) / 1e9, value=curve["p99.9"], curve=curve)


def run_put(adapter: Adapter, work: Work) -> Timing:
    keys = work.data.some(SOME_MAX, work.generation)
    values = [work.data.value(key, work.generation) for key in keys]
    with adapter.writes() as writes:
        taken = time_each_put(writes.put, keys, values)
    check_written(adapter, work.data, keys, work.generation)
    return timing_of(taken)


def run_get(adapter: Adapter, work: Work) -> Timing:
    keys = work.data.reads[:SOME_MAX]
    with adapter.reads() as reads:
        time_each(reads.get, keys[-WARM_COUNT:])
        taken, answers = time_each_get(reads.get, keys)
    work.data.check(keys, answers, 0)
    return timing_of(taken)


GET = Cell(
    name="get-latency",
    title="get: p99.9",
    group=GROUP,
    unit="us",
    better="less",
    bar=BAR,
    writes=False,
    needs=LOADED,
    leaves=None,
    limit="empty timed call",
    run=run_get,
)

PUT = Cell(
    name="put-latency",
    title="put: p99.9",
    group=GROUP,
    unit="us",
    better="less",
    bar=BAR,
    writes=True,
    needs=FULL,
    leaves=Holds.CHANGED,
    limit="empty timed call",
    run=run_put,
)
