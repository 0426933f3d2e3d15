"""What a store takes on the disk, and how much is written for what is put.

All of it comes of one child, which loads a new store, closes it, overwrites every key three times, and closes it again
when its background work has ended. Sizes are what the disk gives (blocks, so that a sparse file counts as what is in
it), relative to the bytes of all keys and their values.

Written is counted twice, because no single figure is fair to all. The process's own (write_bytes of /proc/self/io) is
of pages made dirty: a store that appends through a mapping pays for each page once, one that changes 100 bytes of a
page pays for the page, and it pays again only if the kernel has written the page meanwhile. The device's
(/proc/diskstats, between two syncs) is what reached the disk, the file system's journal and everybody else's writes
included: on a busy machine it says nothing.
"""

from time import perf_counter

from bench.adapters.base import FILES, Adapter
from bench.cells.base import ANY, Cell, Timing, Work
from bench.cells.together import Together
from bench.child import OVERWRITES, Request, ask
from bench.data import Setting

LARGE = Setting(1, 1024).suffix


def measure(adapter: Adapter, work: Work) -> dict[str, Timing]:
    started = perf_counter()
    answer = ask(Request.of("space", adapter, work.directory, work.setting))
    seconds = perf_counter() - started
    return {name: Timing(work.setting.key_count, seconds, value=value) for name, value in answer.items()}


def _cell(name: str, title: str, part: str, bar: float | None = None, bar_large: float | None = None) -> Cell:
    return Cell(
        name=name,
        title=title,
        group="space",
        unit="ratio",
        better="less",
        bar_absolute=bar,
        bars_absolute={} if bar_large is None else {LARGE: bar_large},
        once=True,
        writes=False,
        needs=ANY,
        leaves=None,
        needs_feature=FILES,
        run=_together.part(part),
    )


_together = Together(measure, timed=False)
CELLS = (
    _cell("space-loaded", "files after loading, closed, to live data", "loaded", 1.6, 1.15),
    _cell("space-peak", f"files at most, overwriting {OVERWRITES} times, to live data", "peak"),
    _cell(
        "space-overwritten",
        f"files after {OVERWRITES} overwrites, closed, to live data",
        "overwritten",
        2.0,
        1.6,
    ),
    _cell("written", "pages made dirty, to bytes put", "written"),
    _cell("written-device", "written to the device, to bytes put", "device"),
)
