"""Two runs side by side: `python -m bench compare A.json B.json`.

A ratio is B against A, of medians, and above 1 where B is better, also where less is better. It is a difference only
if the ranges of repetitions do not overlap: noise moves a median. Runs on different machines can be compared, but what
differs is named, and so is what the peers did: if sqlite3 is a tenth slower in B, so was the machine.

Exit codes: 0; 1 with --fail-below if a median of kvsvr fell below that ratio, overlap or not (the ratio is the room for
noise), or if its cell failed in B; 2 if the files cannot be read or have nothing in common.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.document import SUBJECT, Cell, Document, Unreadable, read
from bench.results import Figure
from bench.units import span, text_of

CHANGING = ("load_average",)  # Facts that differ between any two runs and explain nothing.
RUN_FACTS = ("workload", "key_count", "value_size", "varying", "sync_count", "repeat")


class Verdict(Enum):
    BETTER = "better"
    WORSE = "worse"
    SAME = "no difference"
    UNSURE = "one repetition only"
    FAILED = "failed in B"


@dataclass(frozen=True, slots=True)
class Change:
    cell: Cell
    peer: str
    before: Figure
    after: Figure | None  # None: it failed

    @property
    def ratio(self) -> float | None:
        if self.after is None:
            return None
        if self.after.median == self.before.median:
            return 1.0  # Also of nothing by nothing.
        return self.after.ahead_of(self.before)

    @property
    def verdict(self) -> Verdict:
        if self.after is None or self.ratio is None:
            return Verdict.FAILED
        if min(self.before.repetition_count, self.after.repetition_count) < 2:
            return Verdict.UNSURE  # One figure has no range, and any two differ.
        if self.before.low <= self.after.high and self.after.low <= self.before.high:
            return Verdict.SAME
        return Verdict.BETTER if self.ratio > 1 else Verdict.WORSE

    @property
    def disturbed(self) -> bool:
        return any(figure is not None and figure.disturbed_count for figure in (self.before, self.after))

    def fell_below(self, ratio: float) -> bool:
        return self.ratio is None or self.ratio < ratio


def comparable(before: Cell, after: Cell) -> bool:
    """The same thing in the same unit on as many keys; anything else would be a ratio of nothing."""
    return (before.unit, before.better, before.durability, before.setting) == (
        after.unit,
        after.better,
        after.durability,
        after.setting,
    )


def changes(before: Document, after: Document) -> list[Change]:
    """Of every cell and peer with a figure in A, and in B a figure or a failure."""
    later = {cell.name: cell for cell in after.cells}
    failed = {(failure.cell, failure.peer) for failure in after.failures}
    found = []
    for cell in before.cells:
        if cell.name not in later or not comparable(cell, later[cell.name]):
            continue
        for peer, figure in cell.figures.items():
            other = later[cell.name].figures.get(peer)
            if other is not None or (cell.name, peer) in failed:
                found.append(Change(cell, peer, figure, other))
    return found


def differences(before: Document, after: Document) -> Iterator[str]:
    """Every fact of machine, run and peers in which the two differ, in a line each."""
    machine_before, machine_after = _flat(before.machine), _flat(after.machine)
    for name in _both(machine_before, machine_after):
        if name.partition("[")[0] not in CHANGING and machine_before.get(name) != machine_after.get(name):
            yield _difference(name, machine_before.get(name), machine_after.get(name))
    for name in RUN_FACTS:
        if before.run.get(name) != after.run.get(name):
            yield _difference(name, before.run.get(name), after.run.get(name))
    for name in [name for name in before.peers if name in after.peers]:
        facts_before, facts_after = asdict(before.peers[name]), asdict(after.peers[name])
        for fact in facts_before:
            if facts_before[fact] != facts_after[fact]:
                yield _difference(f"{name}, {fact}", facts_before[fact], facts_after[fact])


def left_out(before: Document, after: Document) -> Iterator[str]:
    ours, theirs = {cell.name: cell for cell in before.cells}, {cell.name: cell for cell in after.cells}
    for name in _both(ours, theirs):
        if name not in theirs or name not in ours:
            yield f"{name}: only in {'A' if name in ours else 'B'}"
        elif not comparable(ours[name], theirs[name]):
            yield f"{name}: measured differently (unit, durability or setting), not compared"


def _both(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    return [*before, *(name for name in after if name not in before)]


def _difference(name: str, before: Any, after: Any) -> str:
    return f"{name}: {'-' if before is None else before} in A, {'-' if after is None else after} in B"


def _flat(facts: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, fact in facts.items():
        if isinstance(fact, dict):
            found |= _flat(fact, f"{prefix}{name}.")
        else:
            found[prefix + name] = fact
    return found


# --- what is shown ---

_COLOURS = {Verdict.BETTER: "green", Verdict.WORSE: "red", Verdict.FAILED: "red"}


def change_table(found: Sequence[Change]) -> Table:
    table = Table(title="B against A: above 1 B is better; * disturbed by other load")
    for name in ("cell", "peer"):
        table.add_column(name)
    for name in ("A (min to max)", "B (min to max)", "ratio"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict")
    last = None
    for change in found:
        if last is not None and last is not change.cell:
            table.add_section()
        colour = _COLOURS.get(change.verdict, "dim")
        table.add_row(
            escape(change.cell.title) if last is not change.cell else "",
            f"[bold]{SUBJECT}[/bold]" if change.peer == SUBJECT else escape(change.peer),
            _figure(change.before),
            _figure(change.after),
            "-" if change.ratio is None else f"{change.ratio:.2f}",
            f"[{colour}]{change.verdict.value}[/{colour}]" + ("*" if change.disturbed else ""),
        )
        last = change.cell
    return table


def _figure(figure: Figure | None) -> str:
    if figure is None:
        return "-"
    return f"{text_of(figure.median, figure.unit)} ({span(figure.low, figure.high, figure.unit)})"


def summary(found: Sequence[Change]) -> Iterator[str]:
    subject = [change for change in found if change.peer == SUBJECT]
    counts = [f"{sum(change.verdict is verdict for change in subject)} {verdict.value}" for verdict in Verdict]
    yield f"{SUBJECT}, {len(subject)} cells: " + ", ".join(text for text in counts if not text.startswith("0 "))
    others = [change.ratio for change in found if change.peer != SUBJECT and change.ratio is not None]
    if others:
        yield f"all others, which did not change unless it is said above: median ratio {median(others):.2f}"


# --- the command ---


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m bench compare", description="Two runs side by side; a ratio above 1: B is better."
    )
    result.add_argument("before", type=Path, metavar="A.json")
    result.add_argument("after", type=Path, metavar="B.json")
    result.add_argument(
        "--fail-below", type=_ratio, metavar="RATIO", help=f"exit code 1 if a cell of {SUBJECT} is below, such as 0.9"
    )
    return result


def _ratio(text: str) -> float:
    ratio = float(text)
    if not 0 < ratio < float("inf"):
        raise ValueError(text)
    return ratio


def main(argv: Sequence[str]) -> int:
    options = parser().parse_args(argv)
    try:
        before, after = read(options.before), read(options.after)
    except Unreadable as error:
        return _refuse(str(error))
    found = changes(before, after)
    if not found:
        return _refuse(f"{options.before} and {options.after} have no cell in common that can be compared")
    if options.fail_below is not None and all(change.peer != SUBJECT for change in found):
        return _refuse(f"--fail-below: there is no cell of {SUBJECT} in both")
    console = Console(width=None if sys.stdout.isatty() else 200)
    for line in (f"A: {options.before}, {before.run['started_at']}", f"B: {options.after}, {after.run['started_at']}"):
        console.print(line, markup=False)
    for line in (*differences(before, after), *left_out(before, after)):
        console.print(line, style="yellow", markup=False)
    console.print(change_table(found))
    for line in summary(found):
        console.print(line, markup=False)
    if options.fail_below is None:
        return 0
    fallen = [change for change in found if change.peer == SUBJECT and change.fell_below(options.fail_below)]
    for change in fallen:
        what = "failed" if change.ratio is None else f"{change.ratio:.2f}"
        console.print(f"below {options.fail_below:g}: {change.cell.name}, {what}", style="red", markup=False)
    return 1 if fallen else 0


def _refuse(text: str) -> int:
    print(f"python -m bench compare: {text}", file=sys.stderr)
    return 2
