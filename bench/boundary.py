"""How much of an operation is the core, and how much the way to it from Python: `python -m bench boundary`.

The same operations on the same keys in the same order, four ways: by `native/bench/harness.c`, which has no Python in
it; by the loop alone, around nothing; through `lib.kv_*` with everything prepared, so that what is left is the call and
the answer as bytes; through Engine, as a program would. Differences between these are what each adds.

The workload is written to files once, one or two a cell, and all read it from there: sameness is not left to two
programs that make it twice. Counts follow from the sizes of the files. A repetition takes the four one after the
other and each next one starts with another, so that a machine that slows down slows all. Keys and values of one cell
are in memory at a time, each its own bytes object in the order of use, as in cells.py.

Durable cells ask for it call by call on a store opened with sync="none": in C the same path as sync="always", and no
side has to reopen its store in the middle.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, ClassVar

from rich.table import Table

import kvsvr
from bench.cells import CHUNK_COUNT, MANY, WARM_COUNT, chunks, spread, time_threads
from bench.data import KEY_SIZE, VALUE_SIZE, Data, WrongAnswer, value_of
from bench.load import Load, Snapshot, settle
from bench.results import rotated
from kvsvr.config import Config
from kvsvr.native import Handle, Many, Operations, ffi, lib

FORMAT = 1
ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "bench"
HARNESS = BUILD / "kv_harness"
THREAD_COUNT = 8


class HarnessFailed(Exception):
    """The C harness cannot be built or run; the text says why and what to do."""


# --- what is done ---


class Do(Enum):
    PUT = auto()
    GET = auto()
    GET_MANY = auto()
    BATCH = auto()
    DELETE = auto()


@dataclass(frozen=True, slots=True)
class Cell:
    """`generation` is that of the values that are written or answered; None: the keys are absent, or will be."""

    name: str
    do: Do
    keys: Callable[[Data, int], list[bytes]]
    generation: int | None
    durable: bool = False
    thread_count: int = 1


def _some_synced(keys_per_sync: int, generation: int) -> Callable[[Data, int], list[bytes]]:
    return lambda data, sync_count: data.some(sync_count * keys_per_sync, generation)


# In this order one store serves all, as in harness.c. Names are those of cells.py where the cell is one of those.
CELLS: Sequence[Cell] = (
    Cell("put", Do.PUT, lambda data, _: data.inserts, 0),
    Cell("get-hit", Do.GET, lambda data, _: data.reads, 0),
    Cell("get-miss", Do.GET, lambda data, _: data.absent, None),
    Cell("get-many", Do.GET_MANY, lambda data, _: data.reads, 0),
    Cell("overwrite", Do.PUT, lambda data, _: data.some(data.key_count, 1), 1),
    Cell("batch", Do.BATCH, lambda data, _: data.some(data.key_count, 2), 2),
    Cell("put-fsync", Do.PUT, _some_synced(1, 3), 3, durable=True),
    Cell("put-fsync-8", Do.PUT, _some_synced(1, 4), 4, durable=True, thread_count=THREAD_COUNT),
    Cell("batch-fsync", Do.BATCH, _some_synced(MANY, 5), 5, durable=True),
    Cell("delete", Do.DELETE, lambda data, _: data.deletes, None),
)


@dataclass(frozen=True, slots=True)
class Work:
    """The keys of a cell, or of one of its chunks or threads, and their values: None where they are absent."""

    keys: list[bytes]
    values: list[bytes] | None

    def part(self, which: slice) -> Work:
        return Work(self.keys[which], None if self.values is None else self.values[which])

    @property
    def expected(self) -> Sequence[bytes | None]:
        return [None] * len(self.keys) if self.values is None else self.values

    @property
    def pairs(self) -> Iterator[tuple[bytes, bytes]]:
        assert self.values is not None
        return zip(self.keys, self.values, strict=True)


def write_workload(directory: Path, data: Data, sync_count: int) -> None:
    for cell in CELLS:
        keys = cell.keys(data, sync_count)
        (directory / f"{cell.name}.keys").write_bytes(b"".join(keys))
        if cell.generation is not None:
            with (directory / f"{cell.name}.values").open("wb") as file:
                file.writelines(value_of(key, cell.generation) for key in keys)


def read_work(directory: Path, cell: Cell) -> Work:
    values_path = directory / f"{cell.name}.values"
    values = _cut(values_path.read_bytes(), VALUE_SIZE) if cell.generation is not None else None
    return Work(_cut((directory / f"{cell.name}.keys").read_bytes(), KEY_SIZE), values)


def _cut(blob: bytes, size: int) -> list[bytes]:
    return [blob[at : at + size] for at in range(0, len(blob), size)]


# --- the sides that are Python ---

Loop = Callable[[], list[Any]]
"""What is timed, with everything it needs already made. Reads return their answers, writes an empty list."""


class Side(ABC):
    """One way to do the operations. Threads: `puts` is called in the thread that runs its loop, all else in one."""

    name: ClassVar[str]
    answers: ClassVar[bool] = True

    @abstractmethod
    def open(self, directory: Path) -> None: ...
    @abstractmethod
    def close(self) -> None: ...
    @abstractmethod
    def puts(self, work: Work, durable: bool) -> Loop: ...
    @abstractmethod
    def gets(self, work: Work) -> Loop: ...
    @abstractmethod
    def get_manys(self, work: Work) -> Loop: ...
    @abstractmethod
    def batches(self, work: Work, durable: bool) -> Loop: ...
    @abstractmethod
    def deletes(self, work: Work) -> Loop: ...

    def values(self, answer: Any) -> list[bytes | None]:
        """The values in one answer to get_many."""
        return list(answer)


class Empty(Side):
    """The loops around nothing. A loop over groups costs a hundredth: building a batch pair by pair is Engine's way."""

    name = "loop"
    answers = False

    def open(self, directory: Path) -> None:
        pass

    def close(self) -> None:
        pass

    def puts(self, work: Work, durable: bool) -> Loop:
        keys, values = work.keys, work.expected

        def loop() -> list[Any]:
            for _key, _value in zip(keys, values, strict=True):
                pass
            return []

        return loop

    def gets(self, work: Work) -> Loop:
        keys = work.keys
        return lambda: [None for _ in keys]

    def get_manys(self, work: Work) -> Loop:
        groups = chunks(work.keys, MANY)
        return lambda: [None for _ in groups]

    def batches(self, work: Work, durable: bool) -> Loop:
        return self._each(chunks(work.keys, MANY))

    def deletes(self, work: Work) -> Loop:
        return self._each(work.keys)

    def _each(self, items: Sequence[Any]) -> Loop:
        def loop() -> list[Any]:
            for _ in items:
                pass
            return []

        return loop


class Direct(Side):
    """`lib.kv_*` from Python, with a caller of its own, known sizes, and arguments laid out before. What was written is
    checked by reading it back, so results of writes are not looked at."""

    name = "cffi"

    def __init__(self) -> None:
        self._handle: Handle | None = None

    @property
    def handle(self) -> Handle:
        assert self._handle is not None
        return self._handle

    def open(self, directory: Path) -> None:
        directory.mkdir()
        self._handle = Handle(str(directory), Config(sync="none"), None)

    def close(self) -> None:
        if self._handle is not None:
            self._handle.close()
        self._handle = None

    def puts(self, work: Work, durable: bool) -> Loop:
        caller, callers, kv_put = self.handle.take(), self.handle.callers, lib.kv_put
        pointer, keys, values = caller.pointer, work.keys, work.expected

        def loop() -> list[Any]:
            for key, value in zip(keys, values, strict=True):
                kv_put(pointer, key, KEY_SIZE, value, VALUE_SIZE, 0, durable)
            callers.append(caller)
            return []

        return loop

    def gets(self, work: Work) -> Loop:
        caller, callers, kv_get = self.handle.take(), self.handle.callers, lib.kv_get
        pointer, small, keys = caller.pointer, caller.small, work.keys

        def loop() -> list[Any]:
            found = [small[:size] if (size := kv_get(pointer, key, KEY_SIZE)) >= 0 else None for key in keys]
            callers.append(caller)
            return found

        return loop

    def get_manys(self, work: Work) -> Loop:
        """One bytes object for a hundred values: cutting it up is Python's part, like joining the keys."""
        caller, callers, kv_get_many = self.handle.take(), self.handle.callers, lib.kv_get_many
        pointer, small = caller.pointer, caller.small
        prepared = [Many(keys) for keys in chunks(work.keys, MANY)]
        sizes = ffi.new("int64_t[]", MANY)

        def loop() -> list[Any]:
            found = [small[: kv_get_many(pointer, many.pointer, sizes)] for many in prepared]
            callers.append(caller)
            return found

        return loop

    def batches(self, work: Work, durable: bool) -> Loop:
        caller, callers, kv_batch = self.handle.take(), self.handle.callers, lib.kv_batch
        pointer = caller.pointer
        prepared = []
        for pairs in chunks(list(work.pairs), MANY):
            group = Operations()
            group.add({key: (value, 0) for key, value in pairs})
            prepared.append((len(group), group.pointer, group))

        def loop() -> list[Any]:
            for count, packed, _group in prepared:
                kv_batch(pointer, packed, count, ffi.NULL, 0, durable)
            callers.append(caller)
            return []

        return loop

    def deletes(self, work: Work) -> Loop:
        caller, callers, kv_delete = self.handle.take(), self.handle.callers, lib.kv_delete
        pointer, keys = caller.pointer, work.keys

        def loop() -> list[Any]:
            for key in keys:
                kv_delete(pointer, key, KEY_SIZE, -1, 0)
            callers.append(caller)
            return []

        return loop

    def values(self, answer: Any) -> list[bytes | None]:
        return [*_cut(answer, VALUE_SIZE)]


class Through(Side):
    """Engine, its housekeeping included, called as the adapter of `python -m bench` calls it."""

    name = "Engine"

    def __init__(self) -> None:
        self._db: kvsvr.Engine | None = None

    @property
    def db(self) -> kvsvr.Engine:
        assert self._db is not None
        return self._db

    def open(self, directory: Path) -> None:
        self._db = kvsvr.open(directory, sync="none")

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
        self._db = None

    def puts(self, work: Work, durable: bool) -> Loop:
        put = partial(self.db.put, durable=True) if durable else self.db.put
        keys, values = work.keys, work.values or []

        def loop() -> list[Any]:
            for key, value in zip(keys, values, strict=True):
                put(key, value)
            return []

        return loop

    def gets(self, work: Work) -> Loop:
        get, keys = self.db.get, work.keys
        return lambda: [get(key) for key in keys]

    def get_manys(self, work: Work) -> Loop:
        get_many, groups = self.db.get_many, chunks(work.keys, MANY)
        return lambda: [get_many(keys) for keys in groups]

    def batches(self, work: Work, durable: bool) -> Loop:
        batch, groups = self.db.batch, chunks(list(work.pairs), MANY)

        def loop() -> list[Any]:
            for pairs in groups:
                with batch(durable=durable) as open_batch:
                    put = open_batch.put
                    for key, value in pairs:
                        put(key, value)
            return []

        return loop

    def deletes(self, work: Work) -> Loop:
        delete, keys = self.db.delete, work.keys

        def loop() -> list[Any]:
            for key in keys:
                delete(key)
            return []

        return loop


def time_side(side: Side, workload: Path, store: Path) -> dict[str, float]:
    """Nanoseconds per key of every cell, on a store that is made and removed."""
    found: dict[str, float] = {}
    try:
        side.open(store)
        for cell in CELLS:
            work = read_work(workload, cell)
            if side.answers:
                settle()
            gc.collect()
            gc.disable()
            try:
                found[cell.name] = time_cell(side, cell, work) * 1e9 / len(work.keys)
            finally:
                gc.enable()
    finally:
        side.close()
        shutil.rmtree(store, ignore_errors=True)
    return found


def time_cell(side: Side, cell: Cell, work: Work) -> float:
    """Seconds. Reads go in chunks and are all checked, writes in one piece and are read back, as in cells.py."""
    if cell.do in (Do.GET, Do.GET_MANY):
        return _time_reads(side, cell, work)
    if cell.do is Do.PUT:
        seconds = _time_puts(side, cell, work)
    elif cell.do is Do.BATCH:
        seconds = _timed(side.batches(work, cell.durable))[0]
    else:
        seconds = _timed(side.deletes(work))[0]
    if side.answers:
        some = Work(list(spread(work.keys)), None if work.values is None else list(spread(work.values)))
        check(cell, some, side.gets(some)())
    return seconds


def _timed(loop: Loop) -> tuple[float, list[Any]]:
    started = perf_counter()
    answers = loop()
    return perf_counter() - started, answers


def _time_reads(side: Side, cell: Cell, work: Work) -> float:
    make = side.gets if cell.do is Do.GET else side.get_manys
    make(work.part(slice(-WARM_COUNT, None)))()
    seconds = 0.0
    for first in range(0, len(work.keys), CHUNK_COUNT):
        chunk = work.part(slice(first, first + CHUNK_COUNT))
        chunk_seconds, answers = _timed(make(chunk))
        seconds += chunk_seconds
        if side.answers:
            found = answers if cell.do is Do.GET else [value for answer in answers for value in side.values(answer)]
            check(cell, chunk, found)
    return seconds


def _time_puts(side: Side, cell: Cell, work: Work) -> float:
    if cell.thread_count == 1:
        return _timed(side.puts(work, cell.durable))[0]

    def write_share(share: Work, ready: Callable[[], object]) -> float:
        loop = side.puts(share, cell.durable)
        ready()
        loop()
        return perf_counter()

    count, threads = len(work.keys), cell.thread_count
    ends = [count * i // threads for i in range(threads + 1)]  # As harness.c shares them out.
    shares = [work.part(slice(first, end)) for first, end in pairwise(ends)]
    return time_threads(shares, write_share)


def check(cell: Cell, work: Work, answers: Sequence[bytes | None]) -> None:
    if list(answers) != list(work.expected):
        raise WrongAnswer(f"{cell.name}: an answer is not what was written")


# --- the side that is C ---


def build_harness() -> Path:
    """Up to date with the sources, if there is cmake; else as `make bench-harness` left it."""
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    cmake = shutil.which("cmake", path=places)
    if cmake is None:
        if HARNESS.exists():
            return HARNESS
        raise HarnessFailed("the C harness is not built and cmake is not installed: run `make bench-harness`")
    commands = [[cmake, "--build", str(BUILD), "--target", "kv_harness"]]
    if not (BUILD / "CMakeCache.txt").exists():
        # The generator of the Makefile, if it is there: cmake refuses a folder that was made with another one.
        generator = ["-G", "Ninja"] if shutil.which("ninja", path=places) else []
        options = ["-DKV_EXTENSION=OFF", "-DKV_BENCH=ON", *generator]
        commands.insert(0, [cmake, "-S", str(ROOT / "native"), "-B", str(BUILD), *options])
    for command in commands:
        result = subprocess.run(
            command, capture_output=True, text=True, check=False, env={**os.environ, "PATH": places}
        )
        if result.returncode != 0:
            said = "\n".join([*result.stdout.splitlines()[-10:], *result.stderr.splitlines()[-10:]])
            raise HarnessFailed(f"the C harness cannot be built: {' '.join(command)}\n{said}")
    return HARNESS


def run_harness(harness: Path, workload: Path) -> dict[str, float]:
    """Nanoseconds per key of every cell; refused if the harness has other cells or another number of keys."""
    result = subprocess.run([harness, workload], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise HarnessFailed(f"the C harness failed ({result.returncode}): {result.stderr.strip()}")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    found, expected = [(line["cell"], line["operations"]) for line in lines], list(key_counts(workload).items())
    if found != expected:
        raise HarnessFailed(f"the C harness did {found}, not {expected}")
    return {line["cell"]: line["ns"][0] for line in lines}


def key_counts(workload: Path) -> dict[str, int]:
    return {cell.name: (workload / f"{cell.name}.keys").stat().st_size // KEY_SIZE for cell in CELLS}


# --- a run ---

C, LOOP, CFFI, ENGINE = "C", Empty.name, Direct.name, Through.name


@dataclass(slots=True)
class Outcome:
    """Nanoseconds per key, by cell and side, one number a repetition; and what else the machine did meanwhile."""

    counts: Mapping[str, int]
    ns: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    loads: list[Load] = field(default_factory=list)

    def add(self, side: str, figures: Mapping[str, float], load: Load) -> None:
        self.loads.append(load)
        for cell, ns in figures.items():
            self.ns.setdefault(cell, {}).setdefault(side, []).append(ns)

    @property
    def disturbed_count(self) -> int:
        return sum(load.disturbed for load in self.loads)

    def parts(self, cell: str) -> dict[str, list[float]]:
        """What each adds, per repetition: within one, C, Engine and loop make the total; cffi is beside it."""
        c, loop, cffi, engine = (self.ns[cell][side] for side in (C, LOOP, CFFI, ENGINE))
        return {
            "C": c,
            "Engine adds": [y - x - z for x, z, y in zip(c, loop, engine, strict=True)],
            "loop": loop,
            "total": engine,
            "cffi would add": [y - x - z for x, z, y in zip(c, loop, cffi, strict=True)],
        }


def run(harness: Path, workload: Path, repeat: int, progress: Callable[[str], None]) -> Outcome:
    sides: dict[str, Callable[[], dict[str, float]]] = {C: partial(run_harness, harness, workload)}
    for side in (Empty(), Direct(), Through()):
        sides[side.name] = partial(time_side, side, workload, workload / "store-python")
    outcome = Outcome(key_counts(workload))
    for repetition in range(repeat):
        for name in rotated(list(sides), repetition, repeat):
            progress(f"{repetition + 1}/{repeat} {name}")
            started = Snapshot.take()
            figures = sides[name]()
            outcome.add(name, figures, started.until(Snapshot.take()))
    return outcome


# --- what is shown ---


def boundary_table(outcome: Outcome) -> Table:
    table = Table(title="nanoseconds per key: median (min to max)")
    table.add_column("cell")
    table.add_column("keys", justify="right")
    for number, cell in enumerate(outcome.ns):
        parts = outcome.parts(cell)
        if number == 0:
            for name in parts:
                table.add_column(name, justify="right")
        table.add_row(cell, f"{outcome.counts[cell]:,}", *map(_figure, parts.values()))
    return table


def _figure(ns: Sequence[float]) -> str:
    return f"{_short(median(ns))} ({_short(min(ns))} to {_short(max(ns))})"


def _short(ns: float) -> str:
    return f"{ns:,.0f}" if abs(ns) >= 10 else f"{ns:.1f}"


def document_of(outcome: Outcome, run_facts: Mapping[str, Any], machine: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "run": run_facts,
        "machine": machine,
        "disturbed": [load.disturbed for load in outcome.loads],
        "cells": [
            {
                "name": cell,
                "operations": outcome.counts[cell],
                "ns": outcome.ns[cell],
                "parts": {
                    name: {"median": median(ns), "low": min(ns), "high": max(ns)}
                    for name, ns in outcome.parts(cell).items()
                },
            }
            for cell in outcome.ns
        ],
    }
