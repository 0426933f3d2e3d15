"""What people and programs get to see: two tables in the terminal, one JSON file."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.adapters.base import Adapter
from bench.cells import Cell
from bench.results import Figure, Limit, Repetition, best_peer, figures_of

FORMAT = 1
SUBJECT = "kvsvr"
UNSYNCED, SYNCED = "kill -9 safe, not power safe", "power safe"
UNSYNCED_SHORT, SYNCED_SHORT = "kill -9", "power loss"


def short(rate: float) -> str:
    """Three significant digits: more would claim a precision that repetitions do not have."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if rate >= size * 0.9995:
            return f"{rate / size:.3g} {unit}"
    return f"{rate:.3g}"


def span(low: float, high: float) -> str:
    """`132 to 168 k`: the unit once, where both have the same."""
    low_text, high_text = short(low), short(high)
    number, _, unit = low_text.partition(" ")
    return f"{number if high_text.endswith(' ' + unit) else low_text} to {high_text}"


def cell_table(cells: Sequence[Cell], adapters: Mapping[str, Adapter], repetitions: Sequence[Repetition]) -> Table:
    figures = figures_of(repetitions)
    failed = {(r.cell, r.peer) for r in repetitions if r.error}
    table = Table(title="keys per second: median (min to max); * disturbed by other load", show_lines=True)
    table.add_column("cell")
    table.add_column("survives", no_wrap=True)
    table.add_column("keys\nseconds", no_wrap=True)
    for name in adapters:
        table.add_column(name, justify="right")
    table.add_column(f"{SUBJECT} / best peer", justify="right")
    peers = [name for name, adapter in adapters.items() if adapter.is_peer]
    for cell in cells:
        best = best_peer(cell.name, peers, figures)
        table.add_row(
            cell.title,
            SYNCED_SHORT if cell.durable else UNSYNCED_SHORT,
            _effort([figures[cell.name, name] for name in adapters if (cell.name, name) in figures]),
            *(
                "[red]failed[/red]"
                if (cell.name, name) in failed
                else _figure(figures.get((cell.name, name)), bold=name == best)
                for name in adapters
            ),
            _ratio(cell, best, figures),
        )
    return table


def _figure(figure: Figure | None, *, bold: bool) -> str:
    if figure is None:
        return "-"
    mark = "*" if figure.disturbed_count else ""
    middle = f"[bold]{short(figure.median)}[/bold]" if bold else short(figure.median)
    return f"{middle}{mark}\n({span(figure.low, figure.high)})"


def _effort(figures: Sequence[Figure]) -> str:
    if not figures:
        return "-"
    seconds = [figure.seconds for figure in figures]
    return f"{max(figure.operations for figure in figures):,}\n{min(seconds):.2g} to {max(seconds):.2g} s"


def ratio_of(cell: str, best: str | None, figures: Mapping[tuple[str, str], Figure]) -> float | None:
    subject = figures.get((cell, SUBJECT))
    if subject is None or best is None:
        return None
    return subject.ahead_of(figures[cell, best])


def _ratio(cell: Cell, best: str | None, figures: Mapping[tuple[str, str], Figure]) -> str:
    ratio = ratio_of(cell.name, best, figures)
    bar = "no bar" if cell.bar is None else f"bar {cell.bar:g} x"
    if ratio is None:
        return f"-\n{bar}"
    colour = "green" if cell.bar is None or ratio >= cell.bar else "red"
    return f"[{colour}]{ratio:.2f} x[/{colour}] of {best}\n{bar}"


def limit_table(limits: Sequence[Limit]) -> Table:
    table = Table(title="what the machine allows: median (min to max)")
    for name in ("limit", "rate", "each"):
        table.add_column(name)
    for limit in limits:
        middle, low, high = limit.figure
        each = "" if limit.unit == "bytes/s" else f"{1e9 / middle:,.0f} ns"
        table.add_row(limit.name, f"{short(middle)} {limit.unit} ({span(low, high)})", each)
    return table


def print_report(
    console: Console,
    cells: Sequence[Cell],
    adapters: Mapping[str, Adapter],
    repetitions: Sequence[Repetition],
    limits: Sequence[Limit],
) -> None:
    console.print(cell_table(cells, adapters, repetitions))
    console.print(limit_table(limits))
    for repetition in repetitions:
        if repetition.error:
            console.print(f"{repetition.peer}, {repetition.cell}: {repetition.error}", style="red", markup=False)


def write_json(
    path: Path,
    *,
    run: Mapping[str, Any],
    machine: Mapping[str, Any],
    cells: Sequence[Cell],
    adapters: Mapping[str, Adapter],
    skipped: Mapping[str, str],
    repetitions: Sequence[Repetition],
    limits: Sequence[Limit],
) -> None:
    figures = figures_of(repetitions)
    peers = [name for name, adapter in adapters.items() if adapter.is_peer]
    document = {
        "format": FORMAT,
        "run": run,
        "machine": machine,
        "peers": {name: _peer_facts(adapter) for name, adapter in adapters.items()},
        "skipped": dict(skipped),
        "cells": [_cell_facts(cell, peers, figures) for cell in cells],
        "limits": [asdict(limit) for limit in limits],
        "repetitions": [{**asdict(r), "rate": r.rate, "disturbed": r.disturbed} for r in repetitions],
    }
    path.write_text(json.dumps(document, indent=1) + "\n")


def _peer_facts(adapter: Adapter) -> dict[str, Any]:
    return {
        "library": adapter.library_version(),
        "settings": adapter.settings,
        "survives_unsynced": adapter.durability[0],
        "survives_fsync": adapter.durability[1],
        "is_peer": adapter.is_peer,
    }


def _cell_facts(cell: Cell, peers: Sequence[str], figures: Mapping[tuple[str, str], Figure]) -> dict[str, Any]:
    best = best_peer(cell.name, peers, figures)
    return {
        "name": cell.name,
        "title": cell.title,
        "durability": SYNCED if cell.durable else UNSYNCED,
        "bar": cell.bar,
        "best_peer": best,
        "ratio": ratio_of(cell.name, best, figures),
        "figures": {name: asdict(figure) for (of, name), figure in figures.items() if of == cell.name},
    }
