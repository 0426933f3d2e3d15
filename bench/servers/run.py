"""In which order, and what comes of it.

A repetition takes the sets one after the other, each fresh, with the keys written once, then its works; the next
repetition begins with another set. One set of processes is there at a time. Kills and timelines come last, once.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from bench.data import KEY_SIZE
from bench.document import SUBJECT, Cell, Document, LimitBeside, Peer, Setting, Timeline
from bench.limits import fdatasync_rate
from bench.load import Load, Snapshot
from bench.results import Figure, Limit, best_peer, rotated
from bench.servers import cells as table
from bench.servers import generator, kills
from bench.servers.cells import LARGE, WORKS, Work
from bench.servers.generator import Outcome
from bench.servers.kills import Kills
from bench.servers.processes import ServerFailed
from bench.servers.systems import System

FILL_CLIENTS = 64
LARGE_COUNT, LARGE_BASE = 200, 1 << 30  # Keys of 64 KiB values: few, because some keep all of them in memory.
WARM_PART, WARM_SECONDS_MAX = 0.3, 1.0
SYNC_COUNT = 300
ARRIVE_SECONDS = 1.0  # For what was written to be everywhere: a stale read that finds nothing would be called wrong.


@dataclass(frozen=True, slots=True)
class Plan:
    systems: Mapping[str, type[System]]
    cells: Sequence[table.Cell]
    directory: Path
    key_count: int
    seconds: float
    repeat: int
    kill_count: int
    timeline_part: float
    """Of the usual length; 0: none."""

    def works_of(self, system: str) -> list[Work]:
        wanted = {cell.work for cell in self.cells if system in cell.systems}
        return [work for work in WORKS.values() if work.name in wanted]

    def kills(self, system: str) -> bool:
        return any(cell.by_killing and system in cell.systems for cell in self.cells)

    @property
    def step_count(self) -> int:
        once = sum(1 + len(self.works_of(name)) for name in self.systems)
        killing = sum(self.kill_count + 2 for name in self.systems if self.kills(name))
        return self.repeat * (1 + once) + killing + 1


@dataclass(frozen=True, slots=True)
class Sample:
    """One work of one system; or (work None) its memory after them, or why it gave none."""

    system: str
    peer: str
    work: str | None
    repetition: int
    outcome: Outcome | None
    cpu_us: float
    memory: int
    load: Load | None
    error: str | None = None


@dataclass(slots=True)
class Found:
    """Filled as the run goes, so that an interrupted one still has what it found."""

    samples: list[Sample] = field(default_factory=list)
    sync_rates: list[float] = field(default_factory=list)
    kills: dict[str, Kills] = field(default_factory=dict)
    timelines: list[Timeline] = field(default_factory=list)

    def failed(self, system: type[System], repetition: int, error: Exception, work: str | None = None) -> None:
        text = f"{type(error).__name__}: {error}"
        self.samples.append(Sample(system.name, system.peer, work, repetition, None, 0.0, 0, None, text))


def run(plan: Plan, found: Found, progress: Callable[[str], None]) -> None:
    """`progress` is called before every step with what comes next."""
    for repetition in range(plan.repeat):
        progress(f"{repetition + 1}/{plan.repeat} limits")
        found.sync_rates.append(fdatasync_rate(plan.directory, SYNC_COUNT))
        for name in rotated(list(plan.systems), repetition, plan.repeat):
            progress(f"{repetition + 1}/{plan.repeat} {name}: start")
            system = plan.systems[name]
            try:
                _works(plan, found, system, repetition, progress)
            except (ServerFailed, OSError, ValueError) as error:
                found.failed(system, repetition, error)
    for name, system in plan.systems.items():
        if not plan.kills(name):
            continue
        try:
            _kills(plan, found, system, progress)
        except (ServerFailed, OSError, ValueError) as error:
            found.failed(system, 0, error, "kills")
    progress("done")


class _Place:
    """A directory for one set, removed with what is in it."""

    def __init__(self, plan: Plan) -> None:
        self._path = plan.directory / "set"

    def __enter__(self) -> Path:
        self._path.mkdir()
        return self._path

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._path, ignore_errors=True)


def _works(plan: Plan, found: Found, kind: type[System], repetition: int, progress: Callable[[str], None]) -> None:
    works = plan.works_of(kind.name)
    if not works:
        return
    with _Place(plan) as place, kind(place) as system:
        generator.run(system.dialects["put"], system.ports_of("put"), "fill", c=FILL_CLIENTS, k=plan.key_count)
        for work in works:
            progress(f"{repetition + 1}/{plan.repeat} {kind.name}: {work.title}")
            found.samples.append(_sample(plan, system, work, repetition))
        memory = system.anonymous_size()
    found.samples.append(Sample(kind.name, kind.peer, None, repetition, None, 0.0, memory, None))


def _sample(plan: Plan, system: System, work: Work, repetition: int) -> Sample:
    if work.kind == "put":
        os.sync()  # What others left in the page cache is not to be waited for by our fdatasync.
    if work.kind == "stale":
        time.sleep(ARRIVE_SECONDS)
    warm = min(WARM_SECONDS_MAX, WARM_PART * plan.seconds)
    options: dict[str, object] = {
        "c": work.clients,
        "P": work.pipeline,
        "v": work.value_size,
        "t": plan.seconds,
        "w": warm,
    }
    large = work.value_size == LARGE
    options |= {"k": LARGE_COUNT, "b": LARGE_BASE} if large else {"k": plan.key_count}
    mode = "set" if work.kind == "put" else "get"
    owners = system.slot_owners() if work.kind != "stale" else None
    if owners is not None:
        (plan.directory / "owners").write_bytes(owners)
        options["o"] = plan.directory / "owners"
    before, cpu_before = _snapshot(system), system.cpu_seconds()
    ports = system.ports_of(work.kind)
    outcome = generator.run(system.dialects[work.kind], ports, mode, expected=plan.seconds + warm, **options)
    load = before.until(_snapshot(system))
    cpu_us = 1e6 * (system.cpu_seconds() - cpu_before) / max(1, outcome.all_operations)
    return Sample(system.name, system.peer, work.name, repetition, outcome, cpu_us, 0, load)


def _snapshot(system: System) -> Snapshot:
    """The servers' work is ours: they are children, but have not ended."""
    taken = Snapshot.take()
    return replace(taken, own=taken.own + system.cpu_seconds())


def _kills(plan: Plan, found: Found, kind: type[System], progress: Callable[[str], None]) -> None:
    def show(number: int) -> None:
        progress(f"{kind.name}: kill {number + 1} of {plan.kill_count}")

    progress(f"{kind.name}: start, to be killed")
    with _Place(plan) as place, kind(place) as system:
        found.kills[kind.name] = kills.measure(system, place, plan.kill_count, show)
    progress(f"{kind.name}: timeline through a kill")
    if plan.timeline_part == 0:
        return
    with _Place(plan) as place, kind(place) as system:
        found.timelines.append(kills.timeline(system, place, plan.timeline_part))


# --- as a document ---


def document_of(
    plan: Plan,
    found: Found,
    versions: Mapping[str, str],
    skipped: Mapping[str, str],
    run_facts: Mapping[str, Any],
    machine: Mapping[str, Any],
) -> Document:
    limits = [Limit("fdatasync", "syncs/s", tuple(found.sync_rates))] if found.sync_rates else []
    peers: dict[str, type[System]] = {}
    for system in plan.systems.values():
        peers.setdefault(system.peer, system)
    rows = [_row(cell, plan, found, limits) for cell in plan.cells]
    return Document(
        run={**run_facts, "generator_cpu_us": _generator_cost(found.samples)},
        machine=machine,
        peers={
            name: Peer(versions[name], system.settings, "-", system.survives, name != SUBJECT)
            for name, system in peers.items()
        },
        skipped=dict(skipped),
        cells=[row for row in rows if row is not None],
        limits=limits,
        repetitions=[_facts(sample) for sample in found.samples]
        + [_kill_facts(plan, *of) for of in found.kills.items()],
        timelines=found.timelines,
    )


def _generator_cost(samples: Iterable[Sample]) -> dict[str, float]:
    """Microseconds of a core that a request cost the generator, by "system work": median of the repetitions."""
    costs: dict[str, list[float]] = {}
    for sample in samples:
        if sample.outcome is not None:
            costs.setdefault(f"{sample.system} {sample.work}", []).append(sample.outcome.cpu_us)
    return {name: round(median(each), 1) for name, each in costs.items()}


def _facts(sample: Sample) -> dict[str, Any]:
    outcome = {} if sample.outcome is None else {**asdict(sample.outcome), "rate": sample.outcome.rate}
    return {
        "peer": sample.peer,
        "cell": sample.work or ("all" if sample.error else "memory"),
        "system": sample.system,
        "repetition": sample.repetition,
        **outcome,
        "generator_cpu_us": sample.outcome.cpu_us if sample.outcome else None,
        "system_cpu_us": sample.cpu_us,
        "memory": sample.memory,
        "load": None if sample.load is None else asdict(sample.load),
        "disturbed": sample.load is not None and sample.load.disturbed,
        "error": sample.error,
    }


def _kill_facts(plan: Plan, system: str, found: Kills) -> dict[str, Any]:
    return {"peer": plan.systems[system].peer, "cell": "kills", "system": system, **asdict(found), "error": None}


def _row(cell: table.Cell, plan: Plan, found: Found, limits: Sequence[Limit]) -> Cell | None:
    """None: nothing to show, or, of what stands in another row as well, nothing to compare."""
    figures = {
        plan.systems[name].peer: figure
        for name in cell.systems
        if name in plan.systems and (figure := _figure(cell, name, found)) is not None
    }
    if not figures or (cell.again and list(figures) == [SUBJECT]):
        return None
    by_cell = {(cell.name, peer): figure for peer, figure in figures.items()}
    best = best_peer(cell.name, [peer for peer in figures if peer != SUBJECT], by_cell)
    subject = figures.get(SUBJECT)
    theirs = figures[best].median if best is not None else 0.0
    comparable = subject is not None and best is not None and subject.median > 0 and theirs > 0
    work = WORKS.get(cell.work or "")
    return Cell(
        name=cell.name,
        title=cell.title,
        group=cell.group,
        unit=cell.unit,
        better=cell.better,
        durability=cell.durability,
        setting=Setting(plan.key_count, KEY_SIZE, work.value_size if work else 100, False, 1),
        bar=cell.bar,
        bar_absolute=cell.bar_absolute,
        best_peer=best,
        ratio=subject.ahead_of(figures[best]) if comparable and subject is not None and best is not None else None,
        limit=next((LimitBeside(one.name, one.figure[0]) for one in limits if one.name == cell.limit), None),
        figures=figures,
    )


def _figure(cell: table.Cell, system: str, found: Found) -> Figure | None:
    if cell.by_killing:
        return _kill_figure(cell, found.kills[system]) if system in found.kills else None
    samples = [one for one in found.samples if one.system == system and one.work in (cell.work, None)]
    if any(one.error for one in samples):
        return None
    samples = [one for one in samples if one.work == cell.work]
    if not samples:
        return None
    values = [_value(cell, one) for one in samples]
    outcomes = [one.outcome for one in samples if one.outcome is not None]
    return Figure(
        median=median(values),
        low=min(values),
        high=max(values),
        operations=outcomes[0].operations if outcomes else 1,
        seconds=median(one.seconds for one in outcomes) if outcomes else 0.0,
        repetition_count=len(samples),
        disturbed_count=sum(one.load is not None and one.load.disturbed for one in samples),
        unit=cell.unit,
        better=cell.better,
        curve=_curve(outcomes) if cell.sample == "rate" else None,
    )


def _value(cell: table.Cell, sample: Sample) -> float:
    if cell.sample == "memory":
        return float(sample.memory)
    if cell.sample == "cpu":
        return sample.cpu_us
    return sample.outcome.rate if sample.outcome is not None else 0.0


def _curve(outcomes: Sequence[Outcome]) -> dict[str, float] | None:
    return {name: median(one.curve[name] for one in outcomes) for name in outcomes[0].curve} if outcomes else None


def _kill_figure(cell: table.Cell, of: Kills) -> Figure | None:
    if not of.gaps_ms:
        return None
    if cell.sample == "lost":
        middle = low = high = float(of.lost)
    else:
        middle = kills.quantile(of.gaps_ms, 0.5 if cell.sample == "gap-p50" else 0.99)
        low, high = min(of.gaps_ms), max(of.gaps_ms)
    count = of.acknowledged if cell.sample == "lost" else len(of.gaps_ms)
    return Figure(middle, low, high, count, of.seconds, 1, 0, cell.unit, cell.better)
