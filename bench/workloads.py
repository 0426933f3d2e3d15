"""Which cells, with how many keys and values of which sizes: what `--workload` takes.

A workload is stages; a stage is cells on stores of one setting. Nothing is listed here that a cell says itself: the
table of the issue is the cells with a bar, sizes are the same cells again, the others are groups.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from bench.cells import CELLS, Cell
from bench.data import VALUE_SIZE, Setting

KEYS, KEYS_QUICK = 1_000_000, 5_000
BYTES_PER_KEY_MAX = 512  # Of values, on average over the keys of the usual setting: of larger values there are fewer.
KEYS_MIN = 100
DEFAULT = "all"

# Value size and whether it varies. A full run takes the cells with a bar to all of them, a quick one these to those.
SIZES = ((16, False), (1024, False), (65536, False), (VALUE_SIZE, True), (1024, True), (65536, True))
SIZES_QUICK = ((1024, False), (65536, False))
SIZE_CELLS_QUICK = frozenset({"put", "get-hit", "full-scan"})
GROUPS: Mapping[str, Sequence[str]] = {
    "single": ("single keys", "many keys"),
    "durable": ("durable",),
    "ycsb": ("YCSB",),
    "scans": ("scans",),
    "tables": ("tables",),
    "latency": ("latency", "stalls"),
    "threads": ("threads",),
    "snapshots": ("snapshots and expiry",),
    "space": ("space",),
    "memory": ("memory",),
    "opening": ("opening",),
}
NAMES = ("table", *GROUPS, "sizes", "all")


@dataclass(frozen=True, slots=True)
class Stage:
    setting: Setting
    cells: Sequence[Cell]


def stages(workload: str, key_count: int, *, quick: bool) -> list[Stage]:
    """Cells in a stage stand in the order of CELLS, in which one store serves as many of them as can be."""
    placed = [cell.at(setting) for setting, cell in _chosen(workload, key_count, quick=quick)]
    return regrouped(placed)


def regrouped(cells: Iterable[Cell]) -> list[Stage]:
    """Cells that were placed, in stages again."""
    found: list[Stage] = []
    for setting, group in groupby(cells, key=lambda cell: cell.setting):
        assert setting is not None
        found.append(Stage(setting, tuple(group)))
    return found


def _chosen(workload: str, key_count: int, *, quick: bool) -> Iterator[tuple[Setting, Cell]]:
    usual = Setting(key_count)
    cells = [cell for cell in CELLS.values() if cell.quick or not (quick and workload == "all")]
    if workload in ("table", "all"):
        yield from ((usual, cell) for cell in cells if workload == "all" or has_bar(cell))
    if workload in GROUPS:
        yield from ((usual, cell) for cell in cells if cell.group in GROUPS[workload])
    for size, varying in SIZES:
        setting = sized(key_count, size, varying=varying)
        for cell in cells:
            if (
                (workload in ("table", "all", cell.group) and setting.suffix in cell.bars_absolute)
                or (workload in ("table", "all") and setting.suffix in cell.bars)
                or (workload in ("sizes", "all") and _shows_size(cell, size, varying=varying, quick=quick))
            ):
                yield setting, cell


def has_bar(cell: Cell) -> bool:
    return cell.bar is not None or cell.bar_absolute is not None


def sized(key_count: int, size: int, *, varying: bool) -> Setting:
    count = min(key_count, max(KEYS_MIN, key_count * BYTES_PER_KEY_MAX // size))
    return Setting(count, size, varying)


def _shows_size(cell: Cell, size: int, *, varying: bool, quick: bool) -> bool:
    if quick:
        return (size, varying) in SIZES_QUICK and cell.name in SIZE_CELLS_QUICK
    return cell.bar is not None
