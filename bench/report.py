"""What people see in the terminal: the cells of a run, group by group, and what the machine allows."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.document import SUBJECT, SYNCED, UNSYNCED, Cell, Document
from bench.results import Figure, Limit
from bench.units import short, span, text_of

SURVIVES: Mapping[str, str] = {UNSYNCED: "kill -9", SYNCED: "power loss"}


def print_report(console: Console, document: Document) -> None:
    console.print(cell_table(document))
    console.print(limit_table(document.limits))
    console.print(summary(document))
    for failure in document.failures:
        console.print(f"{failure.peer}, {failure.cell}: {failure.text}", style="red", markup=False)


def cell_table(document: Document) -> Table:
    table = Table(title="median (min to max), the best peer in bold; * disturbed by other load", show_lines=True)
    table.add_column("cell")
    table.add_column("survives\nkeys\nseconds", no_wrap=True)
    for name in document.peers:
        table.add_column(escape(name), justify="right")
    table.add_column(f"{SUBJECT} / best peer", justify="right")
    table.add_column("limit", justify="right")
    failed = {(failure.cell, failure.peer) for failure in document.failures}
    for group, cells in document.groups.items():
        table.add_row(f"[bold]{escape(group)}[/bold]")
        for cell in cells:
            table.add_row(
                f"{escape(cell.title)}\n[dim]{cell.unit}\n{cell.better} is better[/dim]",
                "\n".join((survives_text(cell), *_effort(list(cell.figures.values())))),
                *(
                    "[red]failed[/red]"
                    if (cell.name, name) in failed
                    else _figure(cell.figures.get(name), bold=name == cell.best_peer)
                    for name in document.peers
                ),
                _ratio(cell),
                _limit(cell),
            )
    return table


def survives_text(cell: Cell) -> str:
    """Or what else there is to say of a cell's writes, or reads."""
    return SURVIVES.get(cell.durability, cell.durability)


def bar_lines(cell: Cell) -> list[str]:
    """What is asked of the cell, and of those that are no ratio also whether it is met, as colours need not be seen."""
    lines = []
    if cell.bar is not None:
        lines.append(f"bar {cell.bar:.3g} x")
    if cell.bar_absolute is not None:
        lines.append(
            f"bar {'at least' if cell.better == 'more' else 'at most'} {text_of(cell.bar_absolute, cell.unit)}"
        )
    return lines


def summary(document: Document) -> str:
    tally = document.tally
    compared = f"{SUBJECT} is ahead of the best peer in {tally.ahead} of {tally.ahead + tally.behind} cells"
    unknown = tally.bars - tally.met - tally.missed
    return f"{compared}; of {tally.bars} bars {tally.met} are met, {tally.missed} missed" + (
        f", {unknown} not measured" if unknown else ""
    )


def _figure(figure: Figure | None, *, bold: bool) -> str:
    if figure is None:
        return "-"
    mark = "*" if figure.disturbed_count else ""
    middle = text_of(figure.median, figure.unit)
    return f"{f'[bold]{middle}[/bold]' if bold else middle}{mark}\n({span(figure.low, figure.high, figure.unit)})"


def _effort(figures: Sequence[Figure]) -> list[str]:
    if not figures:
        return []
    seconds = [figure.seconds for figure in figures]
    return [f"{max(figure.operations for figure in figures):,}", f"{min(seconds):.2g} to {max(seconds):.2g} s"]


def _ratio(cell: Cell) -> str:
    ratio = "-" if cell.ratio is None else f"{cell.ratio:.2f} x"
    best = [escape(cell.best_peer)] if cell.best_peer is not None else []
    if not cell.has_bar:
        return "\n".join((ratio, *best, "no bar"))
    colour, word = {True: ("green", "met"), False: ("red", "missed"), None: ("dim", "not measured")}[cell.bar_met]
    bars = [*bar_lines(cell)]
    bars[-1] += f" [{colour}]{word}[/{colour}]"
    return "\n".join((f"[{colour}]{ratio}[/{colour}]", *best, *bars))


def _limit(cell: Cell) -> str:
    if cell.limit is None:
        return ""
    share = [share_text(cell.of_limit)] if cell.of_limit is not None else []
    return "\n".join((escape(cell.limit.name), text_of(cell.limit.value, cell.unit), *share))


def share_text(share: float) -> str:
    """Of a limit that may be beaten: the limit is of one call or one sync, and the cell may take many keys in one."""
    if share >= 2:
        return f"{share:.3g} x of it"
    return f"{share:.0%} of it" if share >= 0.1 else f"{share * 100:.2g}% of it"


def limit_table(limits: Sequence[Limit]) -> Table:
    table = Table(title="what the machine allows: median (min to max)")
    for name in ("limit", "rate", "each"):
        table.add_column(name)
    for limit in limits:
        middle, low, high = limit.figure
        table.add_row(escape(limit.name), f"{short(middle)} {limit.unit} ({span(low, high)})", each_text(limit))
    return table


def each_text(limit: Limit) -> str:
    middle = limit.figure[0]
    return "" if limit.unit == "bytes/s" or not middle else f"{1e9 / middle:,.0f} ns"
