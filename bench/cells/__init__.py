"""The cells by name, a family a file, in the order in which one store serves them: first what fills it, last what
empties it. Titles and bars are those of the issue. base.py has the loops."""

from collections.abc import Mapping

from bench.cells import durable, memory, opening, single, space, stalls
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

CELLS: Mapping[str, Cell] = {
    cell.name: cell
    for cell in (
        *single.CELLS,
        *durable.CELLS,
        single.DELETE,
        *stalls.CELLS,
        *space.CELLS,
        *memory.CELLS,
        *opening.CELLS,
    )
}

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
