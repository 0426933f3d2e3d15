"""The cells by name, a family a file, in the order in which one store serves them: first what fills it, last what
empties it. Titles and bars are those of the issue. base.py has the loops."""

from collections.abc import Mapping, Sequence

from bench.cells import (
    durable,
    latency,
    many,
    memory,
    opening,
    scans,
    single,
    snapshots,
    space,
    stalls,
    tables,
    threads,
    ycsb,
)
from bench.cells.base import (
    CHUNK_COUNT,
    MANY,
    WARM_COUNT,
    Cell,
    Holds,
    Timing,
    Work,
    chunks,
    load,
    spread,
    time_answers,
    time_each,
    time_pairs,
    time_threads,
)

IN_ORDER: Sequence[Cell] = (
    *single.CELLS,
    many.GET_MANY,
    *scans.CELLS,
    snapshots.SNAPSHOT,
    latency.GET,
    *threads.GETS,
    # From here on the keys have other values than those they were loaded with.
    latency.PUT,
    *threads.PUTS,
    snapshots.PUT_EXPIRING,
    *ycsb.CELLS,
    *durable.CELLS,
    many.OVERWRITE,
    single.DELETE,
    # Each into an empty store.
    *many.PUT_MANY,
    *tables.CELLS,
    # Each with stores of its own, in processes of its own.
    *stalls.CELLS,
    *space.CELLS,
    *memory.CELLS,
    *opening.CELLS,
)

CELLS: Mapping[str, Cell] = {cell.name: cell for cell in IN_ORDER}

__all__ = [
    "CELLS",
    "CHUNK_COUNT",
    "MANY",
    "WARM_COUNT",
    "Cell",
    "Holds",
    "Timing",
    "Work",
    "chunks",
    "load",
    "spread",
    "time_answers",
    "time_each",
    "time_pairs",
    "time_threads",
]
