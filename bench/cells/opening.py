"""How long it takes to open a store, from open() to the first answer: closed well, and after its writer was killed.

The writer overwrites random keys at full speed in a process of its own, until SIGKILL ends it at a random moment; then
another process opens the store, times that, looks at some answers, and closes it. So every kill meets a store that was
closed well before, and as much of an unfinished log as a writer leaves that ran so long. The peer's modules are
imported before the clock starts, and the page cache is warm: what is measured is the store's own work, not a disk's.

Twenty kills, each after up to two seconds, on a million keys or more; three of up to half a second on fewer. The cells
of ten times the keys are run for kvsvr alone, because loading so many takes others minutes, with five kills.
"""

import random
from collections.abc import Iterator
from statistics import median
from time import sleep

from bench.adapters.base import FILES, TENFOLD, Adapter
from bench.cells.base import ANY, Cell, Timing, Work
from bench.cells.together import Together
from bench.child import Child, Request, ask
from bench.curve import curve_of
from bench.data import Setting

MANY_KEYS = 1_000_000
KILLS, KILLS_QUICK, KILLS_TENFOLD = 20, 3, 5
KILL_SECONDS, KILL_SECONDS_QUICK = 2.0, 0.5
OPEN_COUNT = 5  # Of a store that was closed well.


def measure(adapter: Adapter, work: Work) -> dict[str, Timing]:
    full = work.setting.key_count >= MANY_KEYS
    return _measure(adapter, work, work.setting, KILLS if full else KILLS_QUICK)


def measure_tenfold(adapter: Adapter, work: Work) -> dict[str, Timing]:
    one = work.setting
    setting = Setting(10 * one.key_count, one.value_size, one.varying)
    full = one.key_count >= MANY_KEYS
    return _measure(adapter, work, setting, KILLS_TENFOLD if full else KILLS_QUICK)


def _measure(adapter: Adapter, work: Work, setting: Setting, kill_count: int) -> dict[str, Timing]:
    ask(Request.of("load", adapter, work.directory, setting))
    clean = [_open(adapter, work, setting, seed) for seed in range(OPEN_COUNT)]
    killed = list(_open_killed(adapter, work, setting, kill_count))
    return {
        "clean": _timing(clean, median(clean)),
        "killed": _timing(killed, median(killed)),
        "longest": _timing(killed, max(killed)),
    }


def _open_killed(adapter: Adapter, work: Work, setting: Setting, kill_count: int) -> Iterator[float]:
    """All peers are killed after the same times."""
    rng = random.Random(setting.key_count)
    seconds_max = KILL_SECONDS if setting.key_count >= MANY_KEYS else KILL_SECONDS_QUICK
    for seed in range(kill_count):
        with Child(Request.of("write", adapter, work.directory, setting, seconds=seconds_max, seed=seed)) as writer:
            writer.wait_until_writing()
            sleep(rng.uniform(0, seconds_max))
            writer.kill_writing()
        yield _open(adapter, work, setting, seed)


def _open(adapter: Adapter, work: Work, setting: Setting, seed: int) -> float:
    milliseconds: float = ask(Request.of("open", adapter, work.directory, setting, seed=seed))["ms"]
    return milliseconds


def _timing(milliseconds: list[float], value: float) -> Timing:
    curve = curve_of(int(1e6 * each) for each in milliseconds)
    return Timing(len(milliseconds), sum(milliseconds) / 1000, value=value, curve=curve)


def _cell(
    name: str, title: str, together: Together, part: str, bar: float | None = None, *, tenfold: bool = False
) -> Cell:
    return Cell(
        name=name,
        title=title,
        group="opening",
        unit="ms",
        better="less",
        bar_absolute=bar,
        once=True,
        quick=not tenfold,
        writes=False,
        needs=ANY,
        leaves=None,
        needs_feature=TENFOLD if tenfold else FILES,
        run=together.part(part),
    )


_once, _tenfold = Together(measure, timed=True), Together(measure_tenfold, timed=True)
CELLS = (
    _cell("open-clean", "open to first get, closed well", _once, "clean", 5.0),
    _cell("open-killed", "open to first get after kill -9, median", _once, "killed", 50.0),
    _cell("open-killed-max", "open to first get after kill -9, longest", _once, "longest"),
    _cell("open-clean-10x", "ten times the keys: closed well", _tenfold, "clean", tenfold=True),
    _cell("open-killed-10x", "ten times the keys: after kill -9, median", _tenfold, "killed", tenfold=True),
    _cell("open-killed-max-10x", "ten times the keys: after kill -9, longest", _tenfold, "longest", tenfold=True),
)
