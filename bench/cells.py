"""The cells: what is done to a store, what of it is timed, and how the answers are checked.

Timed loops are alike for everyone: the callable is a local name, the loop does nothing but call it. `limits.py` runs
the same loops around an empty call, which shows what of a figure is the loop. Reads are timed in chunks of CHUNK_COUNT,
and every timed answer is checked between chunks. Writes are timed in one piece, because a pause would give background
work time that nobody counts; what they wrote is read back afterwards, up to CHECK_COUNT_MAX keys of it.
"""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from time import perf_counter
from typing import Any, TypeVar

from bench.adapters.base import Adapter
from bench.data import Data, check_absent, check_values, value_of

Share = TypeVar("Share")

CHUNK_COUNT = 10_000
CHECK_COUNT_MAX = 50_000
WARM_COUNT = 50_000  # Untimed gets before the timed ones: caches of all peers start warm.
MANY = 100  # Keys per get_many and per batch.


class Holds(Enum):
    """What is in a store between cells."""

    NOTHING = "nothing"
    LOADED = "every key at generation 0"
    CHANGED = "every key, some at a later generation"
    UNKNOWN = "unknown"


FULL = frozenset({Holds.LOADED, Holds.CHANGED})


@dataclass(frozen=True, slots=True)
class Work:
    """What a cell is given: `generation` differs for every attempt on one store."""

    data: Data
    generation: int
    sync_count: int


@dataclass(frozen=True, slots=True)
class Timing:
    operations: int  # keys, also where one call takes many
    seconds: float


@dataclass(frozen=True, slots=True)
class Cell:
    name: str
    title: str
    bar: float  # kvsvr against the best peer, at least
    durable: bool
    writes: bool
    needs: frozenset[Holds]
    leaves: Holds | None  # None: as it was
    run: Callable[[Adapter, Work], Timing]


# --- the loops ---


def time_pairs(call: Callable[[bytes, bytes], object], keys: Sequence[bytes], values: Sequence[bytes]) -> float:
    started = perf_counter()
    for key, value in zip(keys, values, strict=True):
        call(key, value)
    return perf_counter() - started


def time_each(call: Callable[[Any], object], arguments: Iterable[Any]) -> float:
    started = perf_counter()
    for argument in arguments:
        call(argument)
    return perf_counter() - started


def time_answers(call: Callable[[Any], Any], arguments: Iterable[Any]) -> tuple[float, list[Any]]:
    started = perf_counter()
    answers = [call(argument) for argument in arguments]
    return perf_counter() - started, answers


def chunks(items: Sequence[Any], count: int) -> list[Any]:
    return [items[i : i + count] for i in range(0, len(items), count)]


# --- single operations, safe from kill -9 ---


def run_put(adapter: Adapter, work: Work) -> Timing:
    keys, values = work.data.inserts, work.data.values
    with adapter.writes() as writes:
        seconds = time_pairs(writes.put, keys, values)
    _check_written(adapter, keys, 0)
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
    return _time_gets(adapter, work.data.reads, lambda keys, answers: check_values(keys, answers, 0))


def run_get_miss(adapter: Adapter, work: Work) -> Timing:
    return _time_gets(adapter, work.data.absent, check_absent)


def _time_gets(adapter: Adapter, keys: list[bytes], check: Callable[[list[bytes], list[Any]], None]) -> Timing:
    seconds = 0.0
    with adapter.reads() as reads:
        time_each(reads.get, keys[-WARM_COUNT:])
        for chunk in chunks(keys, CHUNK_COUNT):
            chunk_seconds, answers = time_answers(reads.get, chunk)
            seconds += chunk_seconds
            check(chunk, answers)
    return Timing(len(keys), seconds)


def run_get_many(adapter: Adapter, work: Work) -> Timing:
    seconds = 0.0
    with adapter.reads() as reads:
        groups = chunks(work.data.reads, MANY)
        time_each(reads.get_many, groups[-WARM_COUNT // MANY :])
        for chunk in chunks(groups, CHUNK_COUNT // MANY):
            chunk_seconds, answers = time_answers(reads.get_many, chunk)
            seconds += chunk_seconds
            for keys, answer in zip(chunk, answers, strict=True):
                check_values(keys, reads.values(keys, answer), 0)
    return Timing(work.data.key_count, seconds)


# --- writes that are durable when they return: overwrites of random keys in a full store ---


def run_put_fsync(adapter: Adapter, work: Work) -> Timing:
    keys = work.data.some(work.sync_count, work.generation)
    values = [value_of(key, work.generation) for key in keys]
    with adapter.writes() as writes:
        seconds = time_pairs(writes.put, keys, values)
    _check_written(adapter, keys, work.generation)
    return Timing(len(keys), seconds)


def run_put_fsync_8(adapter: Adapter, work: Work) -> Timing:
    thread_count = 8
    keys = work.data.some(work.sync_count, work.generation)

    def write_share(share: Sequence[bytes], ready: Callable[[], object]) -> float:
        values = [value_of(key, work.generation) for key in share]
        with adapter.writes() as writes:
            put = writes.put
            ready()
            time_pairs(put, share, values)
            return perf_counter()  # Before the peer tidies up behind its writes.

    seconds = time_threads([keys[i::thread_count] for i in range(thread_count)], write_share)
    _check_written(adapter, keys, work.generation)
    return Timing(len(keys), seconds)


def time_threads(shares: Sequence[Share], work: Callable[[Share, Callable[[], object]], float]) -> float:
    """A thread per share, from the moment the last one is ready until the last one is done.

    `work` prepares, calls the function it is given, works, and returns the time at which it had done so.
    """
    started = 0.0
    ended: list[float] = []
    failures: list[BaseException] = []

    def start() -> None:
        nonlocal started
        started = perf_counter()

    barrier = threading.Barrier(len(shares), action=start)

    def run_share(share: Share) -> None:
        try:
            ended.append(work(share, barrier.wait))
        except BaseException as failure:
            failures.append(failure)
            barrier.abort()  # The others would wait for this thread forever.

    threads = [threading.Thread(target=run_share, args=(share,)) for share in shares]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        # Threads that were only released by abort() say less than the one that failed.
        raise min(failures, key=lambda failure: isinstance(failure, threading.BrokenBarrierError))
    return max(ended) - started


def run_batch_fsync(adapter: Adapter, work: Work) -> Timing:
    keys = work.data.some(work.sync_count * MANY, work.generation)
    groups = chunks([(key, value_of(key, work.generation)) for key in keys], MANY)
    with adapter.writes() as writes:
        seconds = time_each(writes.write_batch, groups)
    _check_written(adapter, keys, work.generation)
    return Timing(len(keys), seconds)


# --- checks ---


def spread(items: Sequence[bytes]) -> Sequence[bytes]:
    """At most CHECK_COUNT_MAX of them, first to last."""
    return items[:: max(1, -(-len(items) // CHECK_COUNT_MAX))]


def _check_written(adapter: Adapter, keys: Sequence[bytes], generation: int) -> None:
    some = spread(keys)
    with adapter.reads() as reads:
        check_values(some, [reads.get(key) for key in some], generation)


def load(adapter: Adapter, data: Data) -> None:
    """Every key at generation 0, untimed, for cells that need a full store."""
    with adapter.writes() as writes:
        for pairs in chunks(list(zip(data.inserts, data.values, strict=True)), 1000):
            writes.write_batch(pairs)


_NEW, _LOADED = frozenset({Holds.NOTHING}), frozenset({Holds.LOADED})

# In this order one store serves all: put fills it, delete empties it. Titles and bars are those of the issue.
CELLS: Mapping[str, Cell] = {
    cell.name: cell
    for cell in (
        Cell("put", "single put", 2.5, False, True, _NEW, Holds.LOADED, run_put),
        Cell("get-hit", "random get, hit", 1.5, False, False, _LOADED, None, run_get_hit),
        Cell("get-miss", "random get, miss", 2.0, False, False, FULL, None, run_get_miss),
        Cell("get-many", "get_many of 100", 3.0, False, False, _LOADED, None, run_get_many),
        Cell("put-fsync", "put + fsync, 1 thread", 1.3, True, True, FULL, Holds.CHANGED, run_put_fsync),
        Cell("put-fsync-8", "put + fsync, 8 threads", 1.5, True, True, FULL, Holds.CHANGED, run_put_fsync_8),
        Cell("batch-fsync", "batches of 100 + fsync", 3.0, True, True, FULL, Holds.CHANGED, run_batch_fsync),
        Cell("delete", "single delete", 2.5, False, True, FULL, Holds.UNKNOWN, run_delete),
    )
}
