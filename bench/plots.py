"""A run as pictures for documents and slides: `python -m bench plot RUN.json`. One PNG for the ratios of all cells, one
for each group, one for each cell with a latency curve.

matplotlib comes with the extra `kvsvr[bench]` and is imported here alone, when it is asked for: everything else works
without it. The page has its own pictures and does not need these.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.adapters.base import NotInstalled, load_module
from bench.charts import ratio_scale, scale_of, wanted
from bench.document import SUBJECT, Cell, Document, Timeline, Unreadable, read
from bench.report import bar_lines, survives_text
from bench.units import text_of

SUBJECT_COLOUR, BEST_COLOUR, OTHER_COLOUR, LIMIT_COLOUR, BEHIND_COLOUR = (
    "#2457c5",
    "#77808e",
    "#c2c8d0",
    "#b3541e",
    "#b3202a",
)
LINE_COLOURS = ("#2457c5", "#b3541e", "#16713f", "#7b3fc4", "#8f7300", "#00758a", "#b8206a", "#5f6570")
DOTS_PER_INCH = 130
COLUMN_COUNT = 2


class NoPlots(Exception):
    """matplotlib is missing or broken; the text says what to do."""


def plot(document: Document, directory: Path) -> list[Path]:
    """Writes the files and returns them."""
    matplotlib, module = _matplotlib()
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    with matplotlib.rc_context({"text.parse_math": False}):  # A $ in a title is a $.
        for name, figure in _figures(document, module):
            path = directory / f"{name}.png"
            figure.savefig(path, dpi=DOTS_PER_INCH, facecolor="white")
            written.append(path)
    return written


def _matplotlib() -> tuple[Any, Any]:
    """Figures without pyplot: no display, no state that outlives a picture."""
    try:
        return load_module("matplotlib"), load_module("matplotlib.figure")
    except NotInstalled as reason:
        raise NoPlots(f"plots need matplotlib: pip install 'kvsvr[bench]' ({reason})") from reason


def _figures(document: Document, module: Any) -> Iterator[tuple[str, Any]]:
    if any(cell.ratio for cell in document.cells):
        yield "ratios", _ratios(document, module)
    for group, cells in document.groups.items():
        if any(cell.figures for cell in cells):
            yield f"group-{_file_name(group)}", _group(document, group, cells, module)
    for cell in document.cells:
        if any(figure.curve for figure in cell.figures.values()):
            yield f"curve-{_file_name(cell.name)}", _curves(document, cell, module)
    for timeline in document.timelines:
        yield f"timeline-{_file_name(timeline.peer)}", _timeline(timeline, module)


def _file_name(text: str) -> str:
    return "".join(letter if letter.isalnum() or letter in ".@" else "-" for letter in text)


def _ratios(document: Document, module: Any) -> Any:
    cells = [cell for cell in document.cells if cell.ratio]
    figure = module.Figure(figsize=(9, 1.4 + 0.3 * len(cells)), layout="constrained")
    axes = figure.add_subplot()
    places = range(len(cells))
    ratios = [cell.ratio or 1.0 for cell in cells]
    colours = [SUBJECT_COLOUR if cell.ahead else BEHIND_COLOUR for cell in cells]
    # A logarithmic bar from 1 x needs its length as a difference.
    axes.barh(places, [ratio - 1 for ratio in ratios], left=1, color=colours, height=0.6)
    with_bar = [(place, cell.bar) for place, cell in zip(places, cells, strict=True) if cell.bar is not None]
    axes.scatter([bar for _, bar in with_bar], [place for place, _ in with_bar], marker="|", s=120, color="black")
    axes.axvline(1, color="black", linewidth=0.8)
    low, high = ratio_scale(cells)
    axes.set_xscale("log")
    axes.set_xlim(low * 0.9, high * 1.1)
    ticks = [tick for tick in (0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64) if low * 0.9 <= tick <= high * 1.1]
    axes.set_xticks(ticks, [f"{tick:g} x" for tick in ticks])
    axes.minorticks_off()
    labels = [f"{cell.title}  {cell.ratio:.2f} x" for cell in cells]
    axes.set_yticks(places, labels)
    axes.invert_yaxis()
    axes.set_title(f"{SUBJECT} against the best peer; the tick is the bar", loc="left", fontsize=11)
    _plain(axes)
    return figure


def _group(document: Document, group: str, cells: Sequence[Cell], module: Any) -> Any:
    row_count = -(-len(cells) // COLUMN_COUNT)
    column_count = min(len(cells), COLUMN_COUNT)
    size = (6.2 * column_count, 0.6 + row_count * (1.1 + 0.25 * len(document.peers)))
    figure = module.Figure(figsize=size, layout="constrained")
    for i, cell in enumerate(cells):
        _bars(document, cell, figure.add_subplot(row_count, column_count, i + 1))
    figure.suptitle(group, fontsize=12, fontweight="bold")
    return figure


def _bars(document: Document, cell: Cell, axes: Any) -> None:
    scale = scale_of(cell, document.counting)
    names = list(document.peers)
    for place, name in enumerate(names):
        found = cell.figures.get(name)
        if found is None:
            axes.text(0, place, " -", va="center", fontsize=8)
            continue
        colour = SUBJECT_COLOUR if name == SUBJECT else BEST_COLOUR if name == cell.best_peer else OTHER_COLOUR
        axes.barh(place, min(found.median, scale), color=colour, height=0.65)
        if found.median <= scale:
            axes.plot((found.low, min(found.high, scale)), (place, place), color="black", linewidth=1)
        text = text_of(found.median, cell.unit) + ("*" if found.disturbed_count else "")
        axes.text(scale * 1.02, place, text + (" >" if found.median > scale else ""), va="center", fontsize=8)
    target = wanted(cell)
    if target is not None and target <= scale and SUBJECT in names:
        place = names.index(SUBJECT)
        axes.plot((target, target), (place - 0.45, place + 0.45), color="black", linewidth=2.5)
    if cell.limit is not None and cell.limit.value <= scale:
        axes.axvline(cell.limit.value, color=LIMIT_COLOUR, linestyle="--", linewidth=1.2)
    axes.set_xlim(0, scale * 1.2)
    axes.set_xticks([])
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.4, -0.6)  # The first on top, and room also for those without a bar.
    ratio = "" if cell.ratio is None else f"   {cell.ratio:.2f} x of {cell.best_peer}"
    said = {True: " (met)", False: " (missed)", None: ""}[cell.bar_met]
    lines = [f"{cell.title}{ratio}", f"{cell.unit}, {cell.better} is better; survives {survives_text(cell)}"]
    lines[1] += "".join(f"; {line}" for line in bar_lines(cell)) + said
    if cell.limit is not None:
        lines[1] += f"; {cell.limit.name} {text_of(cell.limit.value, cell.unit)}"
    axes.set_title("\n".join(lines), loc="left", fontsize=8)
    _plain(axes)


def _curves(document: Document, cell: Cell, module: Any) -> Any:
    figure = module.Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    quantiles: list[str] = []
    for number, name in enumerate(document.peers):
        found = cell.figures.get(name)
        if found is None or not found.curve:
            continue
        quantiles = quantiles or list(found.curve)
        points = [(i, found.curve[q]) for i, q in enumerate(quantiles) if found.curve.get(q, 0.0) > 0]
        style: dict[str, Any] = {"color": LINE_COLOURS[number % len(LINE_COLOURS)], "marker": "o", "markersize": 3}
        axes.plot(*zip(*points, strict=True), label=name, linewidth=2.5 if name == SUBJECT else 1.2, **style)
    axes.set_xticks(range(len(quantiles)), quantiles)
    _by_powers_of_ten(axes)
    axes.grid(axis="y", color="#dfdcd5")
    axes.legend(frameon=False, fontsize=8)
    axes.set_title(f"{cell.title}: latency by quantile, less is better", loc="left", fontsize=11)
    _plain(axes)
    return figure


def _timeline(timeline: Timeline, module: Any) -> Any:
    """Requests a second above, latency below; a hole where nothing was answered."""
    figure = module.Figure(figsize=(9, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    seconds = [(i + 0.5) * timeline.bucket_ms / 1000 for i in range(len(timeline.rates))]
    above.plot(seconds, timeline.rates, color=SUBJECT_COLOUR)
    above.set_ylim(bottom=0)
    above.set_title(
        f"{timeline.peer} through a kill: SETs a second, by {timeline.bucket_ms} ms", loc="left", fontsize=11
    )
    for name, values, colour in (("p50", timeline.p50_us, LINE_COLOURS[2]), ("p99", timeline.p99_us, LINE_COLOURS[1])):
        shown = [float("nan") if us is None else us for us in values]
        below.plot(seconds, shown, color=colour, label=name, marker=".", markersize=3)
    _by_powers_of_ten(below)
    below.set_xlabel("s")
    below.legend(frameon=False, fontsize=8)
    for axes in (above, below):
        for at in (timeline.killed_ms, timeline.returned_ms):
            axes.axvline(at / 1000, color=LIMIT_COLOUR, linestyle="--", linewidth=1)
        _plain(axes)
    return figure


def _by_powers_of_ten(axes: Any) -> None:
    """Microseconds, upwards."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    ticks = [10.0**power for power in range(-3, 10) if low <= 10.0**power <= high]
    axes.set_yticks(ticks, [text_of(tick, "us") for tick in ticks])
    axes.minorticks_off()


def _plain(axes: Any) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0)


# --- the command ---


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="python -m bench plot", description="A run as PNG files.")
    result.add_argument("run", type=Path, metavar="RUN.json")
    result.add_argument("--out", type=Path, metavar="DIR", help="default: RUN-plots")
    return result


def main(argv: Sequence[str]) -> int:
    options = parser().parse_args(argv)
    out: Path = options.out or options.run.with_name(options.run.stem + "-plots")
    try:
        written = plot(read(options.run), out)
    except (Unreadable, OSError) as error:
        print(f"python -m bench plot: {error}", file=sys.stderr)
        return 2
    except NoPlots as error:
        print(f"python -m bench plot: {error}", file=sys.stderr)
        return 1
    for path in written:
        print(f"written to {path}")
    return 0
