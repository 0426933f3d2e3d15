"""Does compaction keep up? `python -m bench overwrite`: keys in random order, overwritten at full speed, for minutes.

What the directory takes on the disk is looked at every so often, and every put is timed. Two ratios come of it: the
flow's bytes to the bytes of live records, which is what compaction answers for, and all of the directory to keys and
values, which is what a user pays: index, runs and the segments prepared ahead are in it.

It is a measurement, never a test.
"""

from __future__ import annotations

import os
import random
from array import array
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from rich.table import Table

import kvsvr
from bench.child import size_of

FORMAT = 1
KEY_SIZE = 16
CHUNK = 2000
LOOK_SECONDS = 0.25
QUANTILES = (0.5, 0.99, 0.999)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one run."""

    key_count: int
    value_size: int
    seconds: float
    put_count: int
    payload: int
    """Bytes of keys and values."""
    flow_ratio_max: float
    """The most that the flow was, to live records at that time."""
    disk_ratio_max: float
    """The most that the directory took on the disk, to the payload."""
    disk_ratio_settled: float
    disk_ratio_closed: float
    moved_ratio: float
    """Bytes that compaction wrote, to the bytes of the puts."""
    put_us: dict[str, float]
    """Of one put: p50, p99, p99.9, and the longest, which is the longest stall of the writer."""


def run(directory: Path, key_count: int, value_size: int, seconds: float, show: Callable[[str], object]) -> Outcome:
    store = directory / "store"
    value = os.urandom(value_size)
    keys = [b"%016d" % number for number in range(key_count)]
    payload = key_count * (KEY_SIZE + value_size)
    times = array("d")
    flow_max = disk_max = 0.0
    with kvsvr.open(store, sync="batch") as db:
        db.put_many((key, value) for key in keys)
        show(f"loaded {key_count:,} keys; overwriting for {seconds:.0f} s")
        begun = looked = perf_counter()
        while perf_counter() - begun < seconds:
            for key in random.choices(keys, k=CHUNK):
                before = perf_counter()
                db.put(key, value)
                times.append(perf_counter() - before)
            if perf_counter() - looked > LOOK_SECONDS:
                looked = perf_counter()
                stats = db.stats()
                flow_max = max(flow_max, stats["flow_size"] / stats["live_size"])
                disk_max = max(disk_max, size_of(store) / payload)
        elapsed = perf_counter() - begun
        db.compact()
        stats = db.stats()
        settled = size_of(store) / payload
    ordered = sorted(times)
    marks = {f"p{100 * q:g}": 1e6 * ordered[min(len(ordered) - 1, int(len(ordered) * q))] for q in QUANTILES}
    return Outcome(
        key_count=key_count,
        value_size=value_size,
        seconds=elapsed,
        put_count=len(times),
        payload=payload,
        flow_ratio_max=flow_max,
        disk_ratio_max=disk_max,
        disk_ratio_settled=settled,
        disk_ratio_closed=size_of(store) / payload,
        moved_ratio=stats["moved_size"] / (len(times) * stats["live_size"] / key_count),
        put_us={**marks, "max": 1e6 * ordered[-1]},
    )


def table_of(outcome: Outcome) -> Table:
    table = Table(title="overwritten at full speed, in random order", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("puts", f"{outcome.put_count:,}, {outcome.put_count / outcome.seconds:,.0f} a second")
    table.add_row("flow, to live records, at most", f"{outcome.flow_ratio_max:.2f}")
    table.add_row("disk, to keys and values, at most", f"{outcome.disk_ratio_max:.2f}")
    table.add_row(
        "disk after compact(), and closed", f"{outcome.disk_ratio_settled:.2f}, {outcome.disk_ratio_closed:.2f}"
    )
    table.add_row("moved, to written", f"{outcome.moved_ratio:.2f}")
    for name, microseconds in outcome.put_us.items():
        table.add_row(f"put {name}", f"{microseconds:,.1f} us")
    return table


def document_of(outcome: Outcome, run_facts: dict[str, Any], machine: dict[str, Any]) -> dict[str, Any]:
    return {"format": FORMAT, "run": run_facts, "machine": machine, "outcome": asdict(outcome)}
