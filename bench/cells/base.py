"""What a cell is: what it needs of a store, what of it is timed, in which unit, and how the answers are checked.

Timed loops are alike for everyone: the callable is a local name, the loop does nothing but call it. `limits.py` runs
the same loops around an empty call, which shows what of a figure is the loop. Reads are timed in chunks,
and every timed answer is checked between chunks. Writes are timed in one piece, because a pause would give background
work time that nobody counts; what they wrote is read back afterwards, up to CHECK_COUNT_MAX keys of it.

Every figure is a cell, also one of space, memory or time: `unit` says of what, `better` in which direction. The cells
themselves are in the files beside this one, a family each.
"""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, TypeVar

from bench.adapters.base import Adapter
from bench.data import Data, Setting
from bench.results import RATE

Share = TypeVar("Share")
Better = Literal["more", "less"]

CHUNK_COUNT = 10_000  # Answers that are held at once,
CHUNK_SIZE = 16 << 20  # and bytes of values in them, both at most.
ANSWERS_SIZE_MAX = 1 << 30  # Of values, where writes forbid a pause to check them.
CHECK_COUNT_MAX = 50_000
WARM_COUNT = 50_000  # Untimed gets before the timed ones: caches of all peers start warm.
MANY = 100  # Keys per get_many and per batch.
SOME_MAX = 200_000  # Operations in cells that need not walk over every key.
GENERATIONS = 4  # That an attempt may use: from Work.generation on.
LARGE_BAR = 0.8  # Of every cell at 1 KiB and 64 KiB.


class Holds(Enum):
    """What is in a store between cells."""

    NOTHING = "nothing"
    LOADED = "every key at generation 0"
    CHANGED = "every key, some at a later generation"
    GROWN = "every key at some generation, and others"
    TABLES = "the rows of tables.py"
    UNKNOWN = "unknown"


EMPTY = frozenset({Holds.NOTHING})
LOADED = frozenset({Holds.LOADED})
EXACT = frozenset({Holds.LOADED, Holds.CHANGED})
FULL = EXACT | {Holds.GROWN}
ANY = frozenset(Holds)  # For cells that make a store of their own and leave the open one alone.


@dataclass(frozen=True, slots=True)
class Work:
    """What a cell is given: `generation` differs for every attempt on one store, `directory` is empty, on the disk of
    the stores, and removed after the cell."""

    data: Data
    generation: int
    sync_count: int
    directory: Path

    @property
    def setting(self) -> Setting:
        return self.data.setting


@dataclass(frozen=True, slots=True)
class Timing:
    """The figure is `value` if there is one, in the unit of the cell, else operations by seconds. `curve` is of a cell
    that looks at single operations: microseconds by name of the quantile, "p50" to "max"."""

    operations: int  # keys, also where one call takes many
    seconds: float
    value: float | None = None
    curve: dict[str, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    name: str
    title: str
    group: str  # the heading it stands under
    run: Callable[[Adapter, Work], Timing]
    needs: frozenset[Holds]
    leaves: Holds | None  # None: as it was
    writes: bool
    unit: str = RATE
    better: Better = "more"
    bar: float | None = None  # kvsvr against the best peer, at least: above 1 kvsvr is ahead, whatever the unit
    bar_absolute: float | None = None  # kvsvr's own figure: at least that much if more is better, at most if less
    once: bool = False  # it repeats within itself or counts bytes: one repetition, one attempt
    quick: bool = True  # part of a quick run of everything
    durable: bool = False
    threads: int = 1
    needs_feature: str | None = None  # that a peer must have: see Adapter.can
    limit: str | None = None  # of limits.py, to stand beside
    bars: Mapping[str, float] = field(default_factory=dict)  # at other sizes, by Setting.suffix
    bars_absolute: Mapping[str, float] = field(default_factory=dict)
    setting: Setting | None = None  # of this run; set when cells are chosen

    def at(self, setting: Setting) -> "Cell":
        """The same cell under its name and with its bar at these sizes."""
        suffix = setting.suffix
        if not suffix:
            return replace(self, setting=setting)
        large = LARGE_BAR if self.bar is not None and setting.value_size >= 1024 and not setting.varying else None
        return replace(
            self,
            name=self.name + suffix,
            title=f"{self.title}, {setting.values_text}",
            bar=self.bars.get(suffix, large),
            bar_absolute=self.bars_absolute.get(suffix),
            setting=setting,
        )


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


def at_once(setting: Setting, per_call: int = 1) -> int:
    """Calls whose answers, of `per_call` values each, make a chunk."""
    return max(1, min(CHUNK_COUNT, CHUNK_SIZE // setting.value_size) // per_call)


def chunks(items: Sequence[Any], count: int) -> list[Any]:
    return [items[i : i + count] for i in range(0, len(items), count)]


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


# --- checks ---


def spread(items: Sequence[bytes]) -> Sequence[bytes]:
    """At most CHECK_COUNT_MAX of them, first to last."""
    return items[:: max(1, -(-len(items) // CHECK_COUNT_MAX))]


def check_written(adapter: Adapter, data: Data, keys: Sequence[bytes], generation: int) -> None:
    some = spread(keys)
    with adapter.reads() as reads:
        data.check(some, [reads.get(key) for key in some], generation)


def load(adapter: Adapter, data: Data) -> None:
    """Every key at generation 0, untimed, for cells that need a full store."""
    with adapter.writes() as writes:
        writes.put_many(list(zip(data.inserts, data.values, strict=True)))
