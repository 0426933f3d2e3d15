"""What a run found: repetitions as they were, and the statistics made of them. Frozen values, no I/O."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from bench.load import Load


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

    @property
    def rate(self) -> float:
        return self.operations / self.seconds if self.seconds else 0.0

    @property
    def disturbed(self) -> bool:
        return self.load is not None and self.load.disturbed


@dataclass(frozen=True, slots=True)
class Figure:
    """Operations per second of one peer in one cell."""

    median: float
    low: float
    high: float
    operations: int
    seconds: float  # median of a repetition
    repetition_count: int
    disturbed_count: int


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
    rates = [repetition.rate for repetition in kept]
    return Figure(
        median=median(rates),
        low=min(rates),
        high=max(rates),
        operations=kept[0].operations,
        seconds=median(repetition.seconds for repetition in kept),
        repetition_count=len(kept),
        disturbed_count=sum(repetition.disturbed for repetition in kept),
    )


def figures_of(repetitions: Sequence[Repetition]) -> dict[tuple[str, str], Figure]:
    """By (cell, peer)."""
    groups: dict[tuple[str, str], list[Repetition]] = {}
    for repetition in repetitions:
        groups.setdefault((repetition.cell, repetition.peer), []).append(repetition)
    figures = {which: figure_of(group) for which, group in groups.items()}
    return {which: figure for which, figure in figures.items() if figure is not None}


def best_peer(cell: str, peers: Iterable[str], figures: Mapping[tuple[str, str], Figure]) -> str | None:
    """The fastest by median, among `peers`."""
    measured = [peer for peer in peers if (cell, peer) in figures]
    return max(measured, key=lambda peer: figures[cell, peer].median, default=None)


def rotated(names: Sequence[str], repetition: int, repeat: int) -> list[str]:
    """The order of peers in one repetition: over all repetitions the starts are spread over the list."""
    if not names:
        return []
    shift = repetition * max(1, len(names) // repeat) % len(names)
    return [*names[shift:], *names[:shift]]
