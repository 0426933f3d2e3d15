"""Memory that a key costs: the slope between a store of N keys and one of 2 N, so that what does not depend on keys
falls out. Counted is RssAnon, pages that no file stands behind; see bench/child.py.

What malloc keeps of memory that was freed counts, and after loading it is as much as chance and the last checkpoint
left: "memory-held" is without it, and the difference of the two is what a store asked for and did not need any more.

Every figure is of processes of its own, one for N and one for 2 N, which do nothing else: load a new store; open a
store that another process loaded, and get everything once; open it, and overwrite everything once.

A peer with a cache of its own (sqlite3, plyvel, rocksdict) shows the cache as it fills up, values and all: that is
what it is given, up to 512 MB. LMDB shows nothing, because its data are in the page cache, and so are those of kvsvr.
"""

import shutil
from time import perf_counter

from bench.adapters.base import FILES, INDEX_SIZE, Adapter
from bench.cells.base import ANY, Cell, Timing, Work
from bench.cells.together import Together
from bench.child import Request, ask
from bench.data import Setting

TASKS = ("load", "touch", "overwrite")
BYTES_PER_KEY = 32.0


def measure(adapter: Adapter, work: Work) -> dict[str, Timing]:
    started = perf_counter()
    one = work.setting
    two = Setting(2 * one.key_count, one.value_size, one.varying)
    smaller, larger = (_measure_size(adapter, work, setting) for setting in (one, two))
    # Below nothing is noise: pages that malloc had given back in one process and not in the other.
    slopes = {name: max(0.0, larger[name] - smaller[name]) / one.key_count for name in smaller}
    figures = {**slopes, "total": smaller["load"] / (1 << 20)}
    seconds = perf_counter() - started
    return {name: Timing(one.key_count, seconds, value=value) for name, value in figures.items()}


def _measure_size(adapter: Adapter, work: Work, setting: Setting) -> dict[str, float]:
    """Bytes, by task; "index" is what the peer itself says its index takes, after loading."""
    directory = work.directory / str(setting.key_count)
    directory.mkdir()
    try:
        answers = {task: ask(Request.of(task, adapter, directory, setting, seed=1)) for task in TASKS}
    finally:
        shutil.rmtree(directory)
    sizes = {task: answer["anonymous"] for task, answer in answers.items()}
    sizes["held"] = answers["load"]["held"]
    if adapter.can(INDEX_SIZE):
        sizes["index"] = answers["load"]["index"]
    return sizes


def _cell(
    name: str, title: str, part: str, unit: str = "bytes/key", needs_feature: str = FILES, bar: float | None = None
) -> Cell:
    return Cell(
        name=name,
        title=title,
        group="memory",
        unit=unit,
        better="less",
        bar_absolute=bar,
        once=True,
        quick=False,  # With so few keys a slope is noise.
        writes=False,
        needs=ANY,
        leaves=None,
        needs_feature=needs_feature,
        run=_together.part(part),
    )


_together = Together(measure, timed=False)
CELLS = (
    _cell("memory-loaded", "RssAnon a key, after loading", "load", bar=BYTES_PER_KEY),
    _cell("memory-held", "the same, when malloc has given back what is free", "held"),
    _cell("memory-reopened", "RssAnon a key, reopened and all read", "touch", bar=BYTES_PER_KEY),
    _cell("memory-overwritten", "RssAnon a key, reopened and all overwritten", "overwrite", bar=BYTES_PER_KEY),
    _cell("memory-index", "the index by the store's own account, after loading", "index", needs_feature=INDEX_SIZE),
    _cell("memory-total", "RssAnon of the store, after loading", "total", unit="MiB"),
)
