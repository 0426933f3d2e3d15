"""Gets and puts by 1, 2, 4 and 8 threads of one process, which share the keys among them. Python's lock is in every
figure: what is to be seen is whether a peer loses by threads, and whether it gives the lock away while it works."""

from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter

from bench.adapters.base import Adapter
from bench.cells.base import (
    FULL,
    LOADED,
    SOME_MAX,
    Cell,
    Holds,
    Timing,
    Work,
    check_written,
    time_answers,
    time_pairs,
    time_threads,
)

GROUP = "threads"
COUNTS = (1, 2, 4, 8)


def run_gets(adapter: Adapter, work: Work, *, thread_count: int) -> Timing:
    keys = work.data.reads[:SOME_MAX]
    found: list[tuple[Sequence[bytes], Sequence[bytes | None]]] = []

    def read_share(share: Sequence[bytes], ready: Callable[[], object]) -> float:
        with adapter.reads() as reads:
            get = reads.get
            ready()
            _, answers = time_answers(get, share)
            ended = perf_counter()
        found.append((share, answers))
        return ended

    seconds = time_threads([keys[i::thread_count] for i in range(thread_count)], read_share)
    for share, answers in found:
        work.data.check(share, answers, 0)
    return Timing(len(keys), seconds)


def run_puts(adapter: Adapter, work: Work, *, thread_count: int, count_max: int = SOME_MAX) -> Timing:
    """Overwrites of random keys; those on disk are in durable.py."""
    keys = work.data.some(count_max, work.generation)

    def write_share(share: Sequence[bytes], ready: Callable[[], object]) -> float:
        values = [work.data.value(key, work.generation) for key in share]
        with adapter.writes() as writes:
            put = writes.put
            ready()
            time_pairs(put, share, values)
            return perf_counter()  # Before the peer tidies up behind its writes.

    seconds = time_threads([keys[i::thread_count] for i in range(thread_count)], write_share)
    check_written(adapter, work.data, keys, work.generation)
    return Timing(len(keys), seconds)


def _many(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


GETS = tuple(
    Cell(
        name=f"get-threads-{count}",
        title=f"get, {_many(count)}",
        group=GROUP,
        writes=False,
        needs=LOADED,
        leaves=None,
        threads=count,
        limit="cffi no-op",
        run=partial(run_gets, thread_count=count),
    )
    for count in COUNTS
)

PUTS = tuple(
    Cell(
        name=f"put-threads-{count}",
        title=f"put, {_many(count)}",
        group=GROUP,
        writes=True,
        needs=FULL,
        leaves=Holds.CHANGED,
        threads=count,
        limit="cffi no-op",
        run=partial(run_puts, thread_count=count),
    )
    for count in COUNTS
)
