"""In which order, on which store, and when again.

A repetition takes the stages one after the other, in a stage the peers, and each peer takes all cells of it; the next
repetition starts with another peer, so that a machine that slows down slows everyone. One store is open at a time, and
nothing else runs in the process: the progress display is redrawn between cells only, and the garbage collector is off
while a cell runs.

A cell that was disturbed is done again, at most `retry_max` times, on a store in the state the cell needs; the least
disturbed attempt is kept, and marked if it still was. A cell that fails or answers wrongly is not done again.
"""

import gc
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench import heap
from bench.adapters.base import Adapter
from bench.cells.base import GENERATIONS, Cell, Holds, Work, load
from bench.cells.tables import load_tables
from bench.data import Data, Setting
from bench.load import Load, Snapshot, settle
from bench.results import Limit, Repetition, rotated
from bench.workloads import Stage

Measure = Callable[[Snapshot], Load]


@dataclass(frozen=True, slots=True)
class Plan:
    peers: Mapping[str, Callable[[], Adapter]]
    stages: Sequence[Stage]
    data_of: Callable[[Setting], Data]
    directory: Path
    repeat: int
    sync_count: int
    retry_max: int


@dataclass(slots=True)
class Outcome:
    """Filled as the run goes, so that an interrupted one still has what it found."""

    repetitions: list[Repetition] = field(default_factory=list)
    limit_rates: list[dict[str, float]] = field(default_factory=list)

    def limits(self, units: Mapping[str, str]) -> list[Limit]:
        found = [(name, tuple(r[name] for r in self.limit_rates if name in r)) for name in units]
        return [Limit(name, units[name], rates) for name, rates in found if rates]


def measure_since(started: Snapshot) -> Load:
    return started.until(Snapshot.take())


def run(
    plan: Plan,
    outcome: Outcome,
    *,
    measure_limits: Callable[[], dict[str, float]],
    progress: Callable[[str], None],
    measure: Measure = measure_since,
) -> None:
    """`progress` is called before every cell and after the last, with what comes next."""
    for repetition in range(plan.repeat):
        progress(f"{repetition + 1}/{plan.repeat} limits")
        outcome.limit_rates.append(measure_limits())
        for stage in plan.stages:
            data = plan.data_of(stage.setting)
            heap.prepare(stage.setting)
            for name in rotated(list(plan.peers), repetition, plan.repeat):
                try:
                    with Stand(plan, data, plan.peers[name]()) as stand:
                        for cell in stage.cells:
                            if not suits(stand.adapter, cell) or (cell.once and repetition > 0):
                                continue
                            progress(f"{repetition + 1}/{plan.repeat} {name}: {cell.title}")
                            outcome.repetitions += repeat_cell(stand, cell, repetition, measure)
                except Exception as error:  # Cells catch their own; what is left is closing the last store.
                    outcome.repetitions.append(_failure(name, "close", repetition, 0, error))
    progress("done")


def suits(adapter: Adapter, cell: Cell) -> bool:
    return (adapter.is_durable or not cell.durable) and adapter.can(cell.needs_feature)


def repeat_cell(stand: "Stand", cell: Cell, repetition: int, measure: Measure) -> list[Repetition]:
    """All attempts, exactly one of them kept."""
    attempts: list[Repetition] = []
    for attempt in range(1 if cell.once else stand.plan.retry_max + 1):
        attempts.append(stand.attempt(cell, repetition, attempt, measure))
        if attempts[-1].error or not attempts[-1].disturbed:
            break
    if attempts[-1].error:
        kept = len(attempts) - 1
    else:
        kept = min(range(len(attempts)), key=lambda i: _other_share(attempts[i]))
    return [replace(attempt, kept=i == kept) for i, attempt in enumerate(attempts)]


def _failure(peer: str, cell: str, repetition: int, attempt: int, error: Exception) -> Repetition:
    return Repetition(peer, cell, repetition, attempt, 0, 0.0, 0.0, None, error=f"{type(error).__name__}: {error}")


def _other_share(repetition: Repetition) -> float:
    load = repetition.load
    return load.other_seconds / load.wall_seconds if load is not None and load.wall_seconds else 0.0


class Stand:
    """One adapter and its store, brought into the state that a cell needs."""

    def __init__(self, plan: Plan, data: Data, adapter: Adapter) -> None:
        self.plan, self.data, self.adapter = plan, data, adapter
        self._directory = plan.directory / adapter.name
        self._scratch = plan.directory / f"{adapter.name}-scratch"
        self._holds = Holds.UNKNOWN
        self._durable = False
        self._generation = 0

    def __enter__(self) -> "Stand":
        return self

    def __exit__(self, *_: object) -> None:
        self.adapter.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def attempt(self, cell: Cell, repetition: int, attempt: int, measure: Measure) -> Repetition:
        try:
            self._prepare(cell)
            self._generation += GENERATIONS
            self._scratch.mkdir()
            work = Work(self.data, self._generation, self.plan.sync_count, self._scratch)
            held, self._holds = self._holds, Holds.UNKNOWN  # Until the cell has ended well.
            gc.collect()
            gc.disable()
            started = Snapshot.take()
            timing = cell.run(self.adapter, work)
            load = measure(started)
            settle_seconds = settle() if cell.writes else 0.0
            self._holds = held if cell.leaves is None else cell.leaves
        except Exception as error:  # Whatever a peer throws is its result in this cell; the others go on.
            return _failure(self.adapter.name, cell.name, repetition, attempt, error)
        finally:
            gc.enable()
            shutil.rmtree(self._scratch, ignore_errors=True)
        return Repetition(
            peer=self.adapter.name,
            cell=cell.name,
            repetition=repetition,
            attempt=attempt,
            operations=timing.operations,
            seconds=timing.seconds,
            settle_seconds=settle_seconds,
            load=load,
            unit=cell.unit,
            better=cell.better,
            measured=timing.value,
            curve=timing.curve,
        )

    def _prepare(self, cell: Cell) -> None:
        if self._holds in cell.needs and self._durable == cell.durable:
            return
        if self._holds not in cell.needs:
            self._start_anew()
            if Holds.NOTHING not in cell.needs:
                self._holds, fill = (Holds.LOADED, load) if Holds.LOADED in cell.needs else (Holds.TABLES, load_tables)
                fill(self.adapter, self.data)
        if self._durable != cell.durable:
            self.adapter.close()
            self._open(cell.durable)
        settle()  # Opening, loading and removing the store before leave work behind, too.

    def _start_anew(self) -> None:
        self.adapter.close()
        self.adapter = type(self.adapter)()
        shutil.rmtree(self._directory, ignore_errors=True)
        self._directory.mkdir(parents=True)
        self._open(False)
        self._holds = Holds.NOTHING

    def _open(self, durable: bool) -> None:
        setting = self.data.setting
        self.adapter.open(self._directory, durable=durable, key_count=setting.key_count, value_size=setting.value_size)
        self._durable = durable
