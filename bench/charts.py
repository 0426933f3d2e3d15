"""The pictures of the page: bars, the ratio beside its bar, latency curves. HTML and SVG without a script, coloured by
page.css, so that light, dark and paper each have their own.

Bars are scaled to kvsvr and the peers that count. What would make those unreadable, a dict or a limit far beyond, or a
peer that takes a thousand times longer, ends at the edge and is drawn as cut off; its number stands beside it all the
same. kvsvr is never cut off.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import ceil, floor, log10

from bench.document import SUBJECT, Cell, Document
from bench.markup import Markup, join, tag
from bench.results import Figure
from bench.units import span, text_of

BEYOND_MAX = 2.5  # A limit or a bar this many times beyond the largest figure still widens the scale.
SLOW_MAX = 5.0  # Where less is better, nobody is drawn longer than this many times kvsvr and the best peer.
RATIO_LEAST, RATIO_MOST = 0.25, 8.0  # The scale of ratios, at least; logarithmic, so that 0.5 x and 2 x are as long.
CURVE_WIDTH, CURVE_HEIGHT = 640.0, 300.0
CURVE_LEFT, CURVE_RIGHT, CURVE_TOP, CURVE_BOTTOM = 58.0, 118.0, 12.0, 30.0
LABEL_HEIGHT = 15.0


def percent(value: float) -> str:
    return f"{value * 100:.2f}%"


def wanted(cell: Cell) -> float | None:
    """What kvsvr has to reach by the stricter of its bars, in the unit of the cell."""
    marks = [cell.bar_absolute] if cell.bar_absolute is not None else []
    if cell.bar is not None and cell.best_peer is not None:
        best = cell.figures[cell.best_peer].median
        marks.append(best * cell.bar if cell.better == "more" else best / cell.bar)
    if not marks:
        return None
    return max(marks) if cell.better == "more" else min(marks)


def scale_of(cell: Cell, counting: Sequence[str]) -> float:
    """The value at the right edge."""
    highs = [figure.high for name, figure in cell.figures.items() if name in counting]
    largest = max(highs or [figure.high for figure in cell.figures.values()], default=0.0) or 1.0
    if cell.better == "less":
        shown = [figure.high for name, figure in cell.figures.items() if name in (SUBJECT, cell.best_peer)]
        largest = min(largest, SLOW_MAX * max(shown, default=largest)) or 1.0
    marks = [mark for mark in (wanted(cell), cell.limit.value if cell.limit else None) if mark is not None]
    return max([largest, *(mark * 1.03 for mark in marks if mark <= largest * BEYOND_MAX)])


def bars(cell: Cell, document: Document, failed: Sequence[str]) -> Markup:
    """A row for each peer of the run, also for those that have no figure."""
    scale = scale_of(cell, document.counting)
    rows = [_bar_row(cell, name, scale, name in failed) for name in document.peers]
    head = tag("tr", *(tag("th", text, scope="col") for text in ("store", "", "median", "min to max")))
    return tag("table", tag("thead", head, class_="unseen"), tag("tbody", *rows), class_="bars")


def _bar_row(cell: Cell, name: str, scale: float, failed: bool) -> Markup:
    figure = cell.figures.get(name)
    kind = "subject" if name == SUBJECT else "best" if name == cell.best_peer else "other"
    marks = [_line("limit", cell.limit.value, scale)] if cell.limit is not None else []
    if name == SUBJECT:
        marks.append(_line("wanted", wanted(cell), scale))
    track = tag("div", *([] if figure is None else _bar(figure, scale)), *marks, class_="track", aria_hidden="true")
    if figure is None:
        median, spread = ("failed" if failed else "-"), ""
    else:
        mark = "*" if figure.disturbed_count else ""
        median = text_of(figure.median, cell.unit) + mark
        spread = span(figure.low, figure.high, cell.unit)
    return tag(
        "tr",
        tag("th", name, scope="row"),
        tag("td", track, class_="drawn"),
        tag("td", median, class_="number failed" if failed else "number"),
        tag("td", spread, class_="number spread"),
        class_=kind,
    )


def _bar(figure: Figure, scale: float) -> list[Markup]:
    cut = figure.median > scale
    found = [tag("i", class_="bar cut" if cut else "bar", style=f"width:{percent(min(1.0, figure.median / scale))}")]
    if not cut:
        low, high = figure.low / scale, min(1.0, figure.high / scale)
        found.append(tag("i", class_="range", style=f"left:{percent(low)};width:{percent(high - low)}"))
    return found


def _line(kind: str, value: float | None, scale: float) -> Markup:
    if value is None or value > scale:
        return Markup("")
    return tag("i", class_=kind, style=f"left:{percent(value / scale)}")


# --- ratios ---


def ratio_scale(cells: Sequence[Cell]) -> tuple[float, float]:
    found = [value for cell in cells for value in (cell.ratio, cell.bar) if value]
    return min([RATIO_LEAST, *found]), max([RATIO_MOST, *found])


def ratio_bar(cell: Cell, scale: tuple[float, float]) -> Markup:
    """From 1 x to the ratio, with a tick at the bar."""
    least, most = scale
    if cell.ratio is None:
        return Markup("")

    def at(ratio: float) -> float:
        return log10(max(least, ratio) / least) / log10(most / least)

    low, high = sorted((at(1.0), at(cell.ratio)))
    kind = "ahead" if cell.ahead else "behind"
    marks = [tag("i", class_=f"bar {kind}", style=f"left:{percent(low)};width:{percent(high - low)}")]
    marks.append(tag("i", class_="one", style=f"left:{percent(at(1.0))}"))
    if cell.bar is not None:
        marks.append(tag("i", class_="wanted", style=f"left:{percent(at(cell.bar))}"))
    return tag("div", *marks, class_="track ratio", aria_hidden="true")


# --- curves ---


def curves(cell: Cell, names: Sequence[str]) -> Markup:
    """Latency by quantile, both so spread that the tail is seen: nines evenly, microseconds by powers of ten. `names`
    are all stores of the run: a store has the same colour in every picture."""
    found = {name: figure.curve for name, figure in cell.figures.items() if figure.curve}
    if not found:
        return Markup("")
    quantiles = list(next(iter(found.values())))
    values = [value for curve in found.values() for value in curve.values() if value > 0]
    if len(quantiles) < 2 or not values:
        return Markup("")
    frame = _Frame(quantiles, floor(log10(min(values))), max(ceil(log10(max(values))), floor(log10(min(values))) + 1))
    labels = _apart({name: frame.y(curve.get(quantiles[-1], 0.0)) for name, curve in found.items()})
    drawn = [_curve(frame, name, curve, names.index(name), labels[name]) for name, curve in found.items()]
    return tag(
        "svg",
        tag("title", f"{cell.title}: microseconds by quantile"),
        *frame.grid(),
        *drawn,
        viewBox=f"0 0 {CURVE_WIDTH:.0f} {CURVE_HEIGHT:.0f}",
        role="img",
        class_="curves",
    )


class _Frame:
    """Where a quantile and a time are in the picture."""

    def __init__(self, quantiles: Sequence[str], low: int, high: int) -> None:
        self.quantiles, self._low, self._high = quantiles, low, high

    def x(self, index: int) -> float:
        return CURVE_LEFT + index * (CURVE_WIDTH - CURVE_LEFT - CURVE_RIGHT) / (len(self.quantiles) - 1)

    def y(self, us: float) -> float:
        part = (log10(us) - self._low) / (self._high - self._low) if us > 0 else 0.0
        return CURVE_HEIGHT - CURVE_BOTTOM - part * (CURVE_HEIGHT - CURVE_TOP - CURVE_BOTTOM)

    def grid(self) -> list[Markup]:
        right, bottom = CURVE_WIDTH - CURVE_RIGHT, CURVE_HEIGHT - CURVE_BOTTOM
        found = []
        for power in range(self._low, self._high + 1):
            y = self.y(10.0**power)
            found.append(tag("line", x1=CURVE_LEFT, x2=right, y1=y, y2=y, class_="grid"))
            found.append(tag("text", text_of(10.0**power, "us"), x=CURVE_LEFT - 8, y=y + 4, text_anchor="end"))
        for index, name in enumerate(self.quantiles):
            found.append(tag("text", name, x=self.x(index), y=bottom + 20, text_anchor="middle"))
        return found


def _curve(frame: _Frame, name: str, curve: Mapping[str, float], number: int, label_y: float) -> Markup:
    points = [(frame.x(i), frame.y(curve[q])) for i, q in enumerate(frame.quantiles) if curve.get(q, 0.0) > 0]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    label = tag("text", name, x=CURVE_WIDTH - CURVE_RIGHT + 10, y=label_y + 4)
    return tag("g", tag("path", d=path), label, class_=f"curve curve-{number % 8}")


def _apart(wished: Mapping[str, float]) -> dict[str, float]:
    """Labels in the order of their lines and none over another: pushed down where they touch, then all up if the last
    one fell off the picture."""
    found = dict(sorted(wished.items(), key=lambda item: item[1]))
    for before, name in pairwise(found):
        found[name] = max(found[name], found[before] + LABEL_HEIGHT)
    over = max(0.0, max(found.values()) - (CURVE_HEIGHT - 6))
    return {name: y - over for name, y in found.items()}


def curve_numbers(cell: Cell) -> Markup:
    """The same as numbers, for whoever cannot see the picture."""
    found = {name: figure.curve for name, figure in cell.figures.items() if figure.curve}
    if not found:
        return Markup("")
    quantiles = list(next(iter(found.values())))
    head = tag("tr", tag("th", "store", scope="col"), *(tag("th", q, scope="col", class_="number") for q in quantiles))
    rows = [
        tag(
            "tr",
            tag("th", name, scope="row"),
            *(tag("td", text_of(curve[q], "us") if q in curve else "-", class_="number") for q in quantiles),
        )
        for name, curve in found.items()
    ]
    return tag("div", tag("table", tag("thead", head), tag("tbody", join(*rows)), class_="facts"), class_="wide")
