"""How late an event loop is while a store works in it: `python -m bench lag`.

A ticker sleeps a millisecond at a time and notes by how much it is late. That is what every other coroutine of the
program feels: whatever holds up the loop, in this thread or through the GIL, makes the ticker late. The same is
measured with nothing beside it, because an idle loop on an idle machine is late as well (the timer's slack, the
scheduler): only the difference is the store's. That is done again at the end; where the two differ, the machine did.

It is a measurement, never a test: one disturbed by other programs says so by its baseline.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from array import array
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from rich.table import Table

import kvsvr
from kvsvr.store.aio import AsyncEngine

FORMAT = 1
TICK_SECONDS = 0.001
LARGE_SIZE = 64 << 20
SMALL_SIZE = 100
KEY_COUNT = 100_000
SMALL_STOP = b"1"  # Behind the keys of small values.
PUTTER_COUNT = 64
OVERWRITE_SLICE = 20
QUANTILES = (0.5, 0.99, 0.999)

BASELINE = "nothing"

Step = Callable[[AsyncEngine, int], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Cell:
    """`steps` are what goes on beside the ticker: each is repeated by so many coroutines."""

    name: str
    steps: tuple[tuple[Step, int], ...]


def cells(large_size: int) -> list[Cell]:
    large, small = os.urandom(large_size), os.urandom(SMALL_SIZE)

    async def large_puts(aio: AsyncEngine, number: int) -> None:
        # Over the same few keys, so that the directory does not grow without bound.
        await aio.put(b"large%d" % (number % 4), large, durable=True)

    async def large_gets(aio: AsyncEngine, number: int) -> None:
        await aio.get(b"large%d" % (number % 4))

    async def durable_puts(aio: AsyncEngine, number: int) -> None:
        await aio.put(key_of(number * 7919 % KEY_COUNT), small, durable=True)

    async def scans(aio: AsyncEngine, number: int) -> None:
        async for _ in aio.scan(key_of(number * 7919 % KEY_COUNT), SMALL_STOP, limit=10_000):
            pass

    async def overwrites(aio: AsyncEngine, number: int) -> None:
        # In slices, as a program does that has other work, too: what is looked for is compaction, which they keep busy.
        for i in range(OVERWRITE_SLICE):
            await aio.put(key_of((number * OVERWRITE_SLICE + i) * 7919 % KEY_COUNT), small)
        await asyncio.sleep(TICK_SECONDS)

    return [
        Cell(BASELINE, ()),
        Cell("durable puts", ((durable_puts, PUTTER_COUNT),)),
        Cell(f"{large_size >> 20} MiB puts", ((large_puts, 1),)),
        Cell(f"{large_size >> 20} MiB gets", ((large_gets, 1),)),
        Cell("overwriting and compaction", ((overwrites, 1),)),
        Cell("scans", ((scans, 2),)),
        Cell("puts and scans", ((durable_puts, PUTTER_COUNT), (large_puts, 1), (scans, 1))),
        Cell(BASELINE + ", again", ()),
    ]


def key_of(number: int) -> bytes:
    return b"%015d" % number


@dataclass(frozen=True, slots=True)
class Lag:
    """How late the ticks of a cell were, in milliseconds, and how often its steps were done meanwhile."""

    name: str
    tick_count: int
    p50_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    done: dict[str, float]
    """Steps per second."""


async def tick(seconds: float) -> array[float]:
    late = array("d")
    end = perf_counter() + seconds
    before = perf_counter()
    while before < end:
        await asyncio.sleep(TICK_SECONDS)
        now = perf_counter()
        late.append(now - before - TICK_SECONDS)
        before = now
    return late


async def measure_cell(aio: AsyncEngine, cell: Cell, seconds: float) -> Lag:
    counts: dict[str, int] = {}

    async def repeat(step: Step, numbers: itertools.count[int]) -> None:
        while True:
            await step(aio, next(numbers))
            counts[step.__name__] = counts.get(step.__name__, 0) + 1

    tasks = []
    for step, task_count in cell.steps:
        numbers = itertools.count()
        tasks += [asyncio.create_task(repeat(step, numbers)) for _ in range(task_count)]
    started = perf_counter()
    late = await tick(seconds)
    elapsed = perf_counter() - started
    for task in tasks:
        task.cancel()
    for task in tasks:
        with suppress(asyncio.CancelledError):
            await task
    await aio.sync()
    return lag_of(cell.name, late, {name: count / elapsed for name, count in counts.items()})


def lag_of(name: str, late: array[float], done: dict[str, float]) -> Lag:
    ordered = sorted(late)
    p50, p99, p999 = (1000 * ordered[min(len(ordered) - 1, int(len(ordered) * q))] for q in QUANTILES)
    return Lag(name, len(ordered), p50, p99, p999, 1000 * ordered[-1], done)


async def measure(directory: Path, seconds: float, large_size: int, show: Callable[[str], object]) -> list[Lag]:
    lags = []
    async with kvsvr.open(directory / "store").aio as aio:
        await aio.put_many((key_of(i), bytes(SMALL_SIZE)) for i in range(KEY_COUNT))
        for cell in cells(large_size):
            show(f"beside {cell.name} ...")
            lags.append(await measure_cell(aio, cell, seconds))
    return lags


def run(directory: Path, seconds: float, large_size: int, show: Callable[[str], object]) -> list[Lag]:
    return asyncio.run(measure(directory, seconds, large_size, show))


def table_of(lags: list[Lag]) -> Table:
    table = Table(title="how late a 1 ms tick of the event loop is, in ms", title_justify="left")
    table.add_column("beside it")
    for name in ("ticks", "p50", "p99", "p99.9", "max"):
        table.add_column(name, justify="right")
    table.add_column("done meanwhile, per second")
    for lag in lags:
        figures = (f"{figure:.2f}" for figure in (lag.p50_ms, lag.p99_ms, lag.p999_ms, lag.max_ms))
        done = ", ".join(f"{name} {rate:,.1f}" for name, rate in lag.done.items())
        table.add_row(lag.name, f"{lag.tick_count:,}", *figures, done)
    return table


def document_of(lags: list[Lag], run_facts: dict[str, Any], machine: dict[str, Any]) -> dict[str, Any]:
    return {"format": FORMAT, "run": run_facts, "machine": machine, "lags": [asdict(lag) for lag in lags]}
