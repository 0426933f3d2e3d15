"""YCSB A to F: its standard mixes, with 200,000 operations at most, in one thread.

    A  half reads, half updates           D  95 % reads of what came last, 5 % inserts
    B  95 % reads, 5 % updates            E  95 % scans of 1 to 100, 5 % inserts
    C  reads alone                        F  half reads, half read-modify-writes

Keys are zipfian with the constant 0.99: a few hot ones get most of it, and they are scattered over the order of keys
and that of insertion. D takes the newest keys with the same skew. All operations are laid out before the clock starts.
Reads must see the writes before them, so the peers use Adapter.mix. What a read answers is checked: the value that
this cell wrote, and for a key that it did not write one of those that cells before it did.
"""

import random
from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter
from typing import Any

from bench.adapters.base import SCAN, Adapter
from bench.cells.base import ANSWERS_SIZE_MAX, EXACT, FULL, SOME_MAX, Cell, Holds, Timing, Work
from bench.data import KEY_SIZE, WrongAnswer

GROUP = "YCSB"
UNIT = "operations/s"
ZIPF_CONSTANT = 0.99
SCAN_COUNT_MAX = 100

Step = tuple[bytes, bytes | None]  # with a value: a write
ScanStep = tuple[bytes, bytes | int]  # with a number: a scan


class Zipf:
    """Ranks from 0 to count - 1, by the method of Gray et al., "Quickly generating billion-record synthetic databases",
    1994, which YCSB uses."""

    def __init__(self, count: int, rng: random.Random) -> None:
        self._count, self._random = count, rng.random
        self._zeta = sum(1 / rank**ZIPF_CONSTANT for rank in range(1, count + 1))
        self._second = 1 + 0.5**ZIPF_CONSTANT
        self._alpha = 1 / (1 - ZIPF_CONSTANT)
        self._eta = (1 - (2 / count) ** (1 - ZIPF_CONSTANT)) / (1 - self._second / self._zeta)

    def draw(self) -> int:
        u = self._random()
        if u * self._zeta < 1:
            return 0
        if u * self._zeta < self._second:
            return 1
        return min(self._count - 1, int(self._count * (self._eta * u - self._eta + 1) ** self._alpha))


def own(key: bytes) -> bytes:
    """An object of its own, as in data.py: none is seen twice."""
    return bytes(bytearray(key))


def steps_of(work: Work, read_share: float, count: int) -> list[Step]:
    rng = random.Random(work.generation)
    zipf, keys = Zipf(work.data.key_count, rng), work.data.reads
    steps: list[Step] = []
    for _ in range(count):
        key = own(keys[zipf.draw()])
        steps.append((key, None if rng.random() < read_share else work.data.value(key, work.generation)))
    return steps


def latest_steps_of(work: Work, read_share: float, count: int) -> list[Step]:
    """Reads by age: rank 0 is the key that was inserted last."""
    rng = random.Random(work.generation)
    zipf, keys = Zipf(work.data.key_count, rng), list(work.data.inserts)
    steps: list[Step] = []
    for _ in range(count):
        if rng.random() < read_share:
            steps.append((own(keys[-1 - zipf.draw()]), None))
        else:
            key = rng.randbytes(KEY_SIZE)
            keys.append(key)
            steps.append((own(key), work.data.value(key, work.generation)))
    return steps


def scan_steps_of(work: Work, count: int) -> list[ScanStep]:
    rng = random.Random(work.generation)
    zipf, keys = Zipf(work.data.key_count, rng), work.data.reads
    steps: list[ScanStep] = []
    for _ in range(count):
        if rng.random() < 0.95:
            steps.append((own(keys[zipf.draw()]), rng.randint(1, SCAN_COUNT_MAX)))
        else:
            key = rng.randbytes(KEY_SIZE)
            steps.append((key, work.data.value(key, work.generation)))
    return steps


def time_steps(
    read: Callable[[bytes], Any], write: Callable[[bytes, bytes], Any], steps: Sequence[Step]
) -> tuple[float, list[Any]]:
    started = perf_counter()
    answers = [read(key) if value is None else write(key, value) for key, value in steps]
    return perf_counter() - started, answers


def time_scan_steps(
    scan: Callable[[bytes, int], Any], put: Callable[[bytes, bytes], Any], steps: Sequence[ScanStep]
) -> tuple[float, list[Any]]:
    started = perf_counter()
    answers = [scan(key, what) if isinstance(what, int) else put(key, what) for key, what in steps]
    return perf_counter() - started, answers


def run_mix(adapter: Adapter, work: Work, *, read_share: float, latest: bool = False, modify: bool = False) -> Timing:
    count = min(work.data.key_count, SOME_MAX)
    steps = (latest_steps_of if latest else steps_of)(work, read_share, count)
    with adapter.mix() as mix:
        seconds, answers = time_steps(mix.read, mix.read_modify_write if modify else mix.put, steps)
    check_mix(work, steps, answers, modify)
    return Timing(count, seconds)


def check_mix(work: Work, steps: Sequence[Step], answers: Sequence[Any], modify: bool) -> None:
    written: set[bytes] = set()
    for (key, value), answer in zip(steps, answers, strict=True):
        if value is None or modify:
            check_value(work, key, answer, written)
        if value is not None:
            written.add(key)


def check_value(work: Work, key: bytes, answer: bytes | None, written: set[bytes]) -> None:
    if key not in written:
        work.data.check_known(key, answer, work.generation)
    elif answer != work.data.value(key, work.generation):
        raise WrongAnswer(f"key {key.hex()}: not what was written last")


def run_scans(adapter: Adapter, work: Work) -> Timing:
    # A scan is worth fifty reads, and its answer is checked: they are held until then.
    held_max = ANSWERS_SIZE_MAX // (SCAN_COUNT_MAX // 2 * work.setting.value_size)
    count = min(work.data.key_count // 4, SOME_MAX // 20, held_max)
    steps = scan_steps_of(work, count)
    with adapter.mix() as mix:
        seconds, answers = time_scan_steps(mix.scan, mix.put, steps)
    check_scans(work, steps, answers)
    return Timing(count, seconds)


def check_scans(work: Work, steps: Sequence[ScanStep], answers: Sequence[Any]) -> None:
    ordered, written = list(work.data.ordered), set[bytes]()
    for (key, what), answer in zip(steps, answers, strict=True):
        if not isinstance(what, int):
            insort(ordered, key)
            written.add(key)
            continue
        first, pairs = bisect_left(ordered, key), answer
        if [found for found, _ in pairs] != ordered[first : first + what]:
            raise WrongAnswer(f"a scan of {what} gave {len(pairs)} pairs with other keys than those that are there")
        for found, value in pairs:
            check_value(work, found, value, written)


def _cell(letter: str, title: str, bar: float, run: Callable[[Adapter, Work], Timing], **other: Any) -> Cell:
    return Cell(
        name=f"ycsb-{letter.lower()}",
        title=f"YCSB {letter}: {title}",
        group=GROUP,
        unit=UNIT,
        bar=bar,
        limit="cffi no-op",
        run=run,
        **{"writes": True, "needs": FULL, "leaves": Holds.CHANGED, **other},
    )


# E comes before D, because it must know every key that is there.
CELLS = (
    _cell("A", "half updates", 3.0, partial(run_mix, read_share=0.5), needs=EXACT),
    _cell("B", "5 % updates", 1.3, partial(run_mix, read_share=0.95), needs=EXACT),
    _cell("C", "reads", 1.3, partial(run_mix, read_share=1.0), writes=False, leaves=None),
    _cell("F", "half read-modify-writes", 3.0, partial(run_mix, read_share=0.5, modify=True), needs=EXACT),
    _cell("E", "scans, 5 % inserts", 1.0, run_scans, needs=EXACT, leaves=Holds.GROWN, needs_feature=SCAN),
    _cell("D", "the latest, 5 % inserts", 1.3, partial(run_mix, read_share=0.95, latest=True), leaves=Holds.GROWN),
)
