"""Throughput and latency through a kill, as SVG for the page: a picture for each set, one above the other in time.

Requests a second are above, scaled to the largest; the latency of half and of 99 in 100 is below, by powers of ten,
with a hole where nothing was answered. Two lines mark the kill and the return.
"""

from collections.abc import Sequence
from itertools import groupby
from math import ceil, floor, log10

from bench.document import Timeline
from bench.markup import Markup, tag
from bench.units import short, text_of

WIDTH, LEFT, RIGHT = 640.0, 58.0, 40.0
RATE_TOP, RATE_BOTTOM, TIME_TOP, TIME_BOTTOM = 24.0, 130.0, 160.0, 270.0
HEIGHT = 300.0

Point = tuple[float, float]


def picture(timeline: Timeline) -> Markup:
    span_ms = len(timeline.rates) * timeline.bucket_ms or 1

    def x(ms: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * ms / span_ms

    def middle(index: int) -> float:
        return x((index + 0.5) * timeline.bucket_ms)

    top = max(timeline.rates, default=0.0) or 1.0
    rates = [(middle(i), RATE_BOTTOM - (RATE_BOTTOM - RATE_TOP) * rate / top) for i, rate in enumerate(timeline.rates)]
    known = [us for us in (*timeline.p50_us, *timeline.p99_us) if us]
    low = floor(log10(min(known, default=1.0)))
    high = max(low + 1, ceil(log10(max(known, default=10.0))))

    def y(us: float) -> float:
        return TIME_BOTTOM - (TIME_BOTTOM - TIME_TOP) * (log10(us) - low) / (high - low)

    def curve(values: Sequence[float | None]) -> list[Markup]:
        found = [(middle(i), y(us)) if us else None for i, us in enumerate(values)]
        pieces = [list(group) for there, group in groupby(found, key=lambda point: point is not None) if there]
        return [_path([point for point in piece if point is not None]) for piece in pieces]

    marks = []
    for name, ms in (("killed", timeline.killed_ms), ("started again", timeline.returned_ms)):
        marks.append(tag("line", x1=x(ms), x2=x(ms), y1=RATE_TOP, y2=TIME_BOTTOM, class_="event"))
        marks.append(tag("text", name, x=x(ms) + 4, y=RATE_TOP - 8))
    scale = [
        tag("text", f"{short(top)}/s", x=LEFT - 8, y=RATE_TOP + 4, text_anchor="end"),
        tag("text", "0", x=LEFT - 8, y=RATE_BOTTOM + 4, text_anchor="end"),
    ]
    for power in range(low, high + 1):
        us = 10.0**power
        scale.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y(us), y2=y(us), class_="grid"))
        scale.append(tag("text", text_of(us, "us"), x=LEFT - 8, y=y(us) + 4, text_anchor="end"))
    for second in range(int(span_ms // 1000) + 1):
        scale.append(tag("text", f"{second} s", x=x(1000 * second), y=TIME_BOTTOM + 20, text_anchor="middle"))
    return tag(
        "svg",
        tag("title", f"{timeline.peer}: requests a second, and latency, through a kill"),
        tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=RATE_BOTTOM, y2=RATE_BOTTOM, class_="grid"),
        *scale,
        *marks,
        tag("g", _path(rates), class_="curve curve-0"),
        tag("g", *curve(timeline.p99_us), class_="curve curve-1"),
        tag("g", *curve(timeline.p50_us), class_="curve curve-2"),
        viewBox=f"0 0 {WIDTH:.0f} {HEIGHT:.0f}",
        role="img",
        class_="curves",
    )


def _path(points: Sequence[Point]) -> Markup:
    """A bucket alone between two holes is a short stroke."""
    shown = points if len(points) > 1 else [(x + dx, y) for x, y in points for dx in (-1.0, 1.0)]
    return tag("path", d="M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in shown))


def summary(timeline: Timeline) -> str:
    """In words: how long nothing, or hardly anything, was answered."""
    after = [i for i in range(len(timeline.rates)) if i * timeline.bucket_ms >= timeline.killed_ms]
    before = [i for i in range(len(timeline.rates)) if (i + 1) * timeline.bucket_ms <= timeline.killed_ms]
    usual = sorted(timeline.rates[i] for i in before)[len(before) // 2] if before else 0.0
    silent = sum(timeline.rates[i] == 0 for i in after) * timeline.bucket_ms
    half = sum(timeline.rates[i] < usual / 2 for i in after) * timeline.bucket_ms
    return f"{short(usual)} a second before the kill; after it nothing for {silent} ms, less than half for {half} ms"
