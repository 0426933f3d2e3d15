"""Scans: everything in the order of keys, and fifty from a key on."""

from collections.abc import Sequence
from itertools import islice
from time import perf_counter

from bench.adapters.base import FULL_SCAN, SCAN, Adapter, Pair
from bench.cells.base import LOADED, SOME_MAX, Cell, Timing, Work, at_once, chunks
from bench.data import WrongAnswer

GROUP = "scans"
SCAN_COUNT = 50


def run_full_scan(adapter: Adapter, work: Work) -> Timing:
    """Pairs are taken from one iterator and kept until a chunk of them is checked, between two stretches of time."""
    ordered, seconds, done = work.data.ordered, 0.0, 0
    with adapter.reads() as reads:
        iterator = None
        while True:
            started = perf_counter()
            iterator = iterator or reads.scan_all()
            pairs = list(islice(iterator, at_once(work.setting)))
            seconds += perf_counter() - started
            if not pairs:
                break
            check_pairs(work, ordered[done : done + len(pairs)], pairs)
            done += len(pairs)
    if done != len(ordered):
        raise WrongAnswer(f"a full scan found {done} of {len(ordered)} keys")
    return Timing(done, seconds)


def run_scan_50(adapter: Adapter, work: Work) -> Timing:
    """From keys that are there, in random order, the next fifty: near the end there are fewer."""
    ordered, seconds, done = work.data.ordered, 0.0, 0
    starts = work.data.reads[: max(1, SOME_MAX // 2 // SCAN_COUNT)]
    places = {key: i for i, key in enumerate(ordered)}
    with adapter.reads() as reads:
        scan = reads.scan
        for chunk in chunks(starts, at_once(work.setting, SCAN_COUNT)):
            started = perf_counter()
            answers = [scan(start, SCAN_COUNT) for start in chunk]
            seconds += perf_counter() - started
            for start, pairs in zip(chunk, answers, strict=True):
                check_pairs(work, ordered[places[start] : places[start] + SCAN_COUNT], pairs)
                done += len(pairs)
    return Timing(done, seconds)


def check_pairs(work: Work, keys: list[bytes], pairs: Sequence[Pair]) -> None:
    if [key for key, _ in pairs] != keys:
        raise WrongAnswer(f"a scan gave {len(pairs)} pairs with other keys than the {len(keys)} that are there")
    work.data.check(keys, [value for _, value in pairs], 0)


CELLS = (
    Cell(
        name="full-scan",
        title="full scan",
        group=GROUP,
        bar=1.1,
        bars={"@varying": 0.8},
        writes=False,
        needs=LOADED,
        leaves=None,
        needs_feature=FULL_SCAN,
        limit="pairs of bytes",
        run=run_full_scan,
    ),
    Cell(
        name="scan-50",
        title="scans of 50",
        group=GROUP,
        bar=1.1,
        writes=False,
        needs=LOADED,
        leaves=None,
        needs_feature=SCAN,
        limit="pairs of bytes",
        run=run_scan_50,
    ),
)
