"""A run as a document: what is written to JSON, read back, and shown by everything that shows a run.

Table, page, plots and comparison take a Document and nothing else, so that a page made from a file a year later says
what the terminal said. Format 2; an object at every level, so that a field can be added without a new number, and a
reader ignores what it does not know. Files come from other machines and from editors: `read` checks every field that
it takes, and its complaint names the file and the field. What it returns may be trusted.

A ratio of kvsvr to a peer is above 1 where kvsvr is ahead, whether more or less is better.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from sys import float_info
from typing import Any, Literal, NoReturn, TypeVar, cast

from bench import data
from bench.adapters.base import Adapter
from bench.cells.base import Better
from bench.cells.base import Cell as CellToRun
from bench.results import Figure, Limit, Repetition, best_peer, figures_of

FORMAT = 2
SUBJECT = "kvsvr"
UNSYNCED, SYNCED = "kill -9 safe, not power safe", "power safe"
FIGURE_FIELDS = ("median", "low", "high", "operations", "seconds", "repetition_count", "disturbed_count", "curve")

Item = TypeVar("Item")


class Unreadable(Exception):
    """The file is no run that can be shown; the text says what is wrong and where."""


@dataclass(frozen=True, slots=True)
class Setting:
    key_count: int
    key_size: int
    value_size: int
    varying: bool
    threads: int

    @property
    def values_text(self) -> str:
        return data.Setting(self.key_count, self.value_size, self.varying).values_text


@dataclass(frozen=True, slots=True)
class LimitBeside:
    """A limit in the unit of the cell it stands beside."""

    name: str
    value: float


@dataclass(frozen=True, slots=True)
class Peer:
    library: str
    settings: str
    survives_unsynced: str
    survives_fsync: str
    is_peer: bool


@dataclass(frozen=True, slots=True)
class Failure:
    peer: str
    cell: str
    text: str


@dataclass(frozen=True, slots=True)
class Cell:
    name: str
    title: str
    group: str
    unit: str
    better: Better
    durability: str
    setting: Setting
    bar: float | None
    bar_absolute: float | None
    best_peer: str | None
    ratio: float | None
    limit: LimitBeside | None
    figures: Mapping[str, Figure]

    @property
    def subject(self) -> Figure | None:
        return self.figures.get(SUBJECT)

    @property
    def is_durable(self) -> bool:
        return self.durability == SYNCED

    @property
    def ahead(self) -> bool | None:
        """None: nothing to compare."""
        return None if self.ratio is None else self.ratio >= 1

    @property
    def bar_met(self) -> bool | None:
        """Every bar that the cell has; None if it has none, or nothing to hold against it."""
        checks: list[bool | None] = []
        if self.bar is not None:
            checks.append(None if self.ratio is None else self.ratio >= self.bar)
        if self.bar_absolute is not None:
            checks.append(None if self.subject is None else self._reaches(self.subject.median, self.bar_absolute))
        if False in checks:
            return False
        return None if None in checks or not checks else True

    @property
    def has_bar(self) -> bool:
        return self.bar is not None or self.bar_absolute is not None

    @property
    def of_limit(self) -> float | None:
        """How much of what the machine allows kvsvr reaches; 1 is all of it."""
        if self.subject is None or self.limit is None or not self.subject.median or not self.limit.value:
            return None
        share = self.subject.median / self.limit.value
        return share if self.better == "more" else 1 / share

    def _reaches(self, value: float, bar: float) -> bool:
        return value >= bar if self.better == "more" else value <= bar


@dataclass(frozen=True, slots=True)
class Timeline:
    """Of one peer, through a kill: by buckets of so many milliseconds. No latency where nothing was answered: None."""

    peer: str
    bucket_ms: int
    killed_ms: float
    returned_ms: float
    rates: Sequence[float]
    p50_us: Sequence[float | None]
    p99_us: Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Tally:
    """How many cells kvsvr is ahead in, and how many bars it meets; the rest of each was not measured."""

    cells: int
    ahead: int
    behind: int
    bars: int
    met: int
    missed: int


@dataclass(frozen=True, slots=True)
class Document:
    run: Mapping[str, Any]
    machine: Mapping[str, Any]
    peers: Mapping[str, Peer]
    skipped: Mapping[str, str]
    cells: Sequence[Cell]
    limits: Sequence[Limit]
    repetitions: Sequence[Mapping[str, Any]]
    timelines: Sequence[Timeline] = ()

    @property
    def groups(self) -> dict[str, list[Cell]]:
        """In the order of their first cells."""
        groups: dict[str, list[Cell]] = {}
        for cell in self.cells:
            groups.setdefault(cell.group, []).append(cell)
        return groups

    @property
    def counting(self) -> list[str]:
        """kvsvr and its peers, without what only stands beside."""
        return [name for name, peer in self.peers.items() if peer.is_peer or name == SUBJECT]

    @property
    def failures(self) -> list[Failure]:
        return [Failure(r["peer"], r["cell"], r["error"]) for r in self.repetitions if r.get("error")]

    @property
    def tally(self) -> Tally:
        ahead, met = [cell.ahead for cell in self.cells], [cell.bar_met for cell in self.cells]
        return Tally(
            cells=len(self.cells),
            ahead=ahead.count(True),
            behind=ahead.count(False),
            bars=sum(cell.has_bar for cell in self.cells),
            met=met.count(True),
            missed=met.count(False),
        )

    def write(self, path: Path) -> None:
        facts = {
            "format": FORMAT,
            "run": self.run,
            "machine": self.machine,
            "peers": {name: asdict(peer) for name, peer in self.peers.items()},
            "skipped": self.skipped,
            "cells": [_cell_facts(cell) for cell in self.cells],
            "limits": [asdict(limit) for limit in self.limits],
            "repetitions": self.repetitions,
            "timelines": [asdict(timeline) for timeline in self.timelines],
        }
        path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def _cell_facts(cell: Cell) -> dict[str, Any]:
    facts = asdict(cell)
    facts["figures"] = {
        peer: {field: figure[field] for field in FIGURE_FIELDS} for peer, figure in facts["figures"].items()
    }
    return facts


# --- of a run that was just made ---


def document_of(
    *,
    run: Mapping[str, Any],
    machine: Mapping[str, Any],
    cells: Sequence[CellToRun],
    adapters: Mapping[str, Adapter],
    skipped: Mapping[str, str],
    repetitions: Sequence[Repetition],
    limits: Sequence[Limit],
) -> Document:
    figures = figures_of(repetitions)
    peers = [name for name, adapter in adapters.items() if adapter.is_peer]
    return Document(
        run=dict(run),
        machine=dict(machine),
        peers={name: _peer_of(adapter) for name, adapter in adapters.items()},
        skipped=dict(skipped),
        cells=[_cell_of(cell, run, peers, figures, limits) for cell in cells],
        limits=list(limits),
        repetitions=[{**asdict(r), "rate": r.rate, "disturbed": r.disturbed} for r in repetitions],
    )


def _peer_of(adapter: Adapter) -> Peer:
    unsynced, synced = adapter.durability
    return Peer(adapter.library_version(), adapter.settings, unsynced, synced, adapter.is_peer)


def _cell_of(
    cell: CellToRun,
    run: Mapping[str, Any],
    peers: Sequence[str],
    figures: Mapping[tuple[str, str], Figure],
    limits: Sequence[Limit],
) -> Cell:
    best = best_peer(cell.name, peers, figures)
    subject = figures.get((cell.name, SUBJECT))
    ratio = None if subject is None or best is None else subject.ahead_of(figures[cell.name, best])
    if cell.setting is not None:
        key_count, value_size, varying = cell.setting.key_count, cell.setting.value_size, cell.setting.varying
    else:
        key_count, value_size, varying = run["key_count"], data.VALUE_SIZE, False
    setting = Setting(key_count, data.KEY_SIZE, value_size, varying, cell.threads)
    return Cell(
        name=cell.name,
        title=cell.title,
        group=cell.group,
        unit=cell.unit,
        better=cell.better,
        durability=SYNCED if cell.durable else UNSYNCED,
        setting=setting,
        bar=cell.bar,
        bar_absolute=cell.bar_absolute,
        best_peer=best,
        ratio=ratio if ratio is not None and isfinite(ratio) else None,  # By nothing at all: no ratio, and no JSON.
        limit=next((_beside(limit, cell.unit, setting) for limit in limits if limit.name == cell.limit), None),
        figures={name: figure for (of, name), figure in figures.items() if of == cell.name},
    )


def _beside(limit: Limit, unit: str, setting: Setting) -> LimitBeside | None:
    """A limit is a rate: of calls, or of bytes, of which a pair has so many. None in a unit that no rate becomes."""
    rate = limit.figure[0]
    if limit.unit == "bytes/s":
        rate /= setting.key_size + setting.value_size
    seconds_in = {"us": 1e6, "ms": 1e3, "s": 1.0}
    if unit.endswith("/s"):
        return LimitBeside(limit.name, rate)
    return LimitBeside(limit.name, seconds_in[unit] / rate) if unit in seconds_in and rate else None


# --- of a file ---


def read(path: Path) -> Document:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise Unreadable(f"{path}: {reason}") from error
    try:
        found = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"{path}: not JSON: {error}") from error
    return _document(_Field(str(path), "", found))


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _document(root: "_Field") -> Document:
    number = root["format"].integer()
    if number != FORMAT:
        hint = "it was written by an earlier version: measure again" if number < FORMAT else "it needs a later version"
        root["format"].refuse(f"format {number}, where {FORMAT} is read; {hint}")
    peers = root["peers"].each(_peer)
    cells = root["cells"].items(lambda field: _cell(field, peers))
    names = [cell.name for cell in cells]
    for name in names:
        if names.count(name) > 1:
            root["cells"].refuse(f"two cells are named {name}")
    return Document(
        run=_run(root["run"]),
        machine=_machine(root["machine"]),
        peers=peers,
        skipped=root["skipped"].each(_Field.text),
        cells=cells,
        limits=root["limits"].items(_limit),
        repetitions=root["repetitions"].items(_repetition),
        timelines=tuple(root["timelines"].items(_timeline)) if "timelines" in root.object() else (),
    )


def _run(field: "_Field") -> Mapping[str, Any]:
    field["started_at"].text()
    field["arguments"].items(_Field.text)
    field["key_count"].integer()
    field["sync_count"].integer()
    field["repeat"].integer()
    field["interrupted"].flag()
    return field.object()


def _machine(field: "_Field") -> Mapping[str, Any]:
    field["cpu_model"].text()
    field["core_count"].integer()
    field["memory_bytes"].integer()
    field["kernel"].text()
    field["python"].text()
    field["file_system"]["type"].text()
    field["file_system"]["device"].text()
    field["packages"].object()
    return field.object()


def _peer(field: "_Field") -> Peer:
    return Peer(
        library=field["library"].text(),
        settings=field["settings"].text(),
        survives_unsynced=field["survives_unsynced"].text(),
        survives_fsync=field["survives_fsync"].text(),
        is_peer=field["is_peer"].flag(),
    )


def _cell(field: "_Field", peers: Mapping[str, Peer]) -> Cell:
    name = field["name"].text()
    field = field.known_as(name)
    unit, better = field["unit"].text(), field["better"].text()
    if better not in ("more", "less"):
        field["better"].refuse(f'"more" or "less" is needed, not "{better}"')
    direction = cast(Literal["more", "less"], better)
    figures = field["figures"].each(lambda one: _figure(one, unit, direction))
    for peer in figures:
        if peer not in peers:
            field["figures"].refuse(f"{peer} is not among the peers")
    best = field["best_peer"].or_none(_Field.text)
    if best is not None and best not in figures:
        field["best_peer"].refuse(f"{best} has no figure")
    return Cell(
        name=name,
        title=field["title"].text(),
        group=field["group"].text(),
        unit=unit,
        better=direction,
        durability=field["durability"].text(),
        setting=_setting(field["setting"]),
        bar=field["bar"].or_none(_Field.number),
        bar_absolute=field["bar_absolute"].or_none(_Field.number),
        best_peer=best,
        ratio=field["ratio"].or_none(_Field.number),
        limit=field["limit"].or_none(lambda one: LimitBeside(one["name"].text(), one["value"].number())),
        figures=figures,
    )


def _setting(field: "_Field") -> Setting:
    return Setting(
        key_count=field["key_count"].integer(),
        key_size=field["key_size"].integer(),
        value_size=field["value_size"].integer(),
        varying=field["varying"].flag(),
        threads=field["threads"].integer(),
    )


def _figure(field: "_Field", unit: str, better: Better) -> Figure:
    figure = Figure(
        median=field["median"].number(),
        low=field["low"].number(),
        high=field["high"].number(),
        operations=field["operations"].integer(),
        seconds=field["seconds"].number(),
        repetition_count=field["repetition_count"].integer(),
        disturbed_count=field["disturbed_count"].integer(),
        unit=unit,
        better=better,
        curve=field["curve"].or_none(lambda one: one.each(_Field.number)),
    )
    if not figure.low <= figure.median <= figure.high:
        field.refuse("low, median and high are not in this order")
    return figure


def _limit(field: "_Field") -> Limit:
    rates = tuple(field["rates"].items(_Field.number))
    if not rates:
        field["rates"].refuse("a limit without a rate")
    return Limit(field["name"].text(), field["unit"].text(), rates)


def _timeline(field: "_Field") -> Timeline:
    def maybe(one: "_Field") -> float | None:
        return one.or_none(_Field.number)

    found = Timeline(
        peer=field["peer"].text(),
        bucket_ms=field["bucket_ms"].integer(),
        killed_ms=field["killed_ms"].number(),
        returned_ms=field["returned_ms"].number(),
        rates=field["rates"].items(_Field.number),
        p50_us=field["p50_us"].items(maybe),
        p99_us=field["p99_us"].items(maybe),
    )
    if not len(found.rates) == len(found.p50_us) == len(found.p99_us):
        field.refuse("rates, p50_us and p99_us are not of one length")
    return found


def _repetition(field: "_Field") -> Mapping[str, Any]:
    """Kept as they are: only who, what and the error are ever looked at."""
    field["peer"].text()
    field["cell"].text()
    field["error"].or_none(_Field.text)
    return field.object()


class _Field:
    """A value in the file and the way to it, for the complaint."""

    def __init__(self, file: str, where: str, value: Any) -> None:
        self._file, self._where, self._value = file, where, value

    def refuse(self, text: str) -> NoReturn:
        raise Unreadable(f"{self._file}: {self._where + ': ' if self._where else ''}{text}")

    def known_as(self, name: str) -> "_Field":
        return _Field(self._file, f"{self._where} ({name})", self._value)

    def __getitem__(self, name: str) -> "_Field":
        found = self.object()
        where = f"{self._where}.{name}" if self._where else name
        if name not in found:
            _Field(self._file, where, None).refuse("missing")
        return _Field(self._file, where, found[name])

    def object(self) -> dict[str, Any]:
        if not isinstance(self._value, dict):
            self._needs("an object")
        return cast(dict[str, Any], self._value)

    def each(self, take: Callable[["_Field"], Item]) -> dict[str, Item]:
        return {name: take(self[name]) for name in self.object()}

    def items(self, take: Callable[["_Field"], Item]) -> list[Item]:
        return [take(field) for field in self._elements()]

    def _elements(self) -> Iterator["_Field"]:
        if not isinstance(self._value, list):
            self._needs("a list")
        for i, value in enumerate(self._value):
            yield _Field(self._file, f"{self._where}[{i}]", value)

    def or_none(self, take: Callable[["_Field"], Item]) -> Item | None:
        return None if self._value is None else take(self)

    def text(self) -> str:
        if not isinstance(self._value, str):
            self._needs("a text")
        return self._value

    def flag(self) -> bool:
        if not isinstance(self._value, bool):
            self._needs("true or false")
        return self._value

    def integer(self) -> int:
        if not isinstance(self._value, int) or isinstance(self._value, bool):
            self._needs("a whole number")
        return self._value

    def number(self) -> float:
        """Not negative: nothing here can be. 1e999 is read as infinity, which is no number either."""
        if not isinstance(self._value, int | float) or isinstance(self._value, bool):
            self._needs("a number")
        if not 0 <= self._value <= float_info.max:
            self._needs("a number from 0 on")
        return float(self._value)

    def _needs(self, what: str) -> NoReturn:
        said = json.dumps(self._value)
        self.refuse(f"{what} is needed, not {said if len(said) <= 40 else said[:37] + '...'}")
