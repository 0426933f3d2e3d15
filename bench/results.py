"""What a run found: repetitions as they were, and the statistics made of them. Frozen values, no I/O."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from bench.load import Load

RATE = "keys/s"


@dataclass(frozen=True, slots=True)
class Repetition:
    """One attempt at one cell by one peer. Of several attempts at a repetition one is kept: the least disturbed."""

    peer: str
    cell: str
    repetition: int
    attempt: int
    operations: int
    seconds: float
    settle_seconds: float  # background work left over by a write, waited for outside the timer
    load: Load | None
    error: str | None = None
    kept: bool = False
    unit: str = RATE
    better: Literal["more", "less"] = "more"
    measured: float | None = None  # of a cell whose figure is not operations by seconds
    curve: dict[str, float] | None = None  # microseconds by quantile

    @property
    def rate(self) -> float:
        return self.operations / self.seconds if self.seconds else 0.0

    @property
    def value(self) -> float:
        """What the figure is made of, in `unit`."""
        return self.rate if self.measured is None else self.measured

    @property
    def disturbed(self) -> bool:
        return self.load is not None and self.load.disturbed


@dataclass(frozen=True, slots=True)
class Figure:
    """What one peer reached in one cell, in `unit`."""

    median: float
    low: float
    high: float
    operations: int
    seconds: float  # median of a repetition
    repetition_count: int
    disturbed_count: int
    unit: str = RATE
    better: Literal["more", "less"] = "more"
    curve: dict[str, float] | None = None  # the medians, quantile by quantile

    def ahead_of(self, other: "Figure") -> float:
        """How many times better; above 1 it is ahead, whichever direction is better."""
        ours, theirs = (self.median, other.median) if self.better == "more" else (other.median, self.median)
        return ours / theirs if theirs else float("inf")


@dataclass(frozen=True, slots=True)
class Limit:
    """What the machine allows at best, once per repetition."""

    name: str
    unit: str
    rates: tuple[float, ...]

    @property
    def figure(self) -> tuple[float, float, float]:
        return median(self.rates), min(self.rates), max(self.rates)


def figure_of(repetitions: Iterable[Repetition]) -> Figure | None:
    """None if there is nothing to show; an error in one repetition makes the others worthless too."""
    kept = [repetition for repetition in repetitions if repetition.kept]
    if not kept or any(repetition.error for repetition in kept):
        return None
    values = [repetition.value for repetition in kept]
    return Figure(
        median=median(values),
        low=min(values),
        high=max(values),
        operations=kept[0].operations,
        seconds=median(repetition.seconds for repetition in kept),
        repetition_count=len(kept),
        disturbed_count=sum(repetition.disturbed for repetition in kept),
        unit=kept[0].unit,
        better=kept[0].better,
        curve=_curve_of([repetition.curve for repetition in kept if repetition.curve is not None]),
    )


def _curve_of(curves: Sequence[Mapping[str, float]]) -> dict[str, float] | None:
    return {name: median(curve[name] for curve in curves) for name in curves[0]} if curves else None


def figures_of(repetitions: Sequence[Repetition]) -> dict[tuple[str, str], Figure]:
    """By (cell, peer)."""
    groups: dict[tuple[str, str], list[Repetition]] = {}
    for repetition in repetitions:
        groups.setdefault((repetition.cell, repetition.peer), []).append(repetition)
    figures = {which: figure_of(group) for which, group in groups.items()}
    return {which: figure for which, figure in figures.items() if figure is not None}


def best_peer(cell: str, peers: Iterable[str], figures: Mapping[tuple[str, str], Figure]) -> str | None:
    """The one with the best median, among `peers`."""
    best: str | None = None
    for peer in peers:
        figure = figures.get((cell, peer))
        if figure is not None and (best is None or figure.ahead_of(figures[cell, best]) > 1):
            best = peer
    return best


def rotated(names: Sequence[str], repetition: int, repeat: int) -> list[str]:
    """The order of peers in one repetition: over all repetitions the starts are spread over the list."""
    if not names:
        return []
    shift = repetition * max(1, len(names) // repeat) % len(names)
    return [*names[shift:], *names[:shift]]
