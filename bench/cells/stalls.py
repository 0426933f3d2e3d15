"""How long single puts and gets take while background work goes on: the tails, where stalls are.

A writer overwrites random keys one by one at full speed, so that whatever the peer does behind a writer's back
(compaction, checkpoints, merges) has to be done meanwhile, and a second thread gets random keys beside it. Both look at
the clock around every call, of one child, which has loaded the store. The threads take turns by the GIL, so a call
that does not let go of it is felt by the other side: that is what a program of threads would feel, too.

The reader begins a new read (a transaction, a connection) twenty times a second, between calls: one that stays would
keep every page that LMDB replaces.
"""

from bench.adapters.base import FILES, Adapter
from bench.cells.base import ANY, Cell, Timing, Work
from bench.cells.together import Together
from bench.child import Request, ask

SECONDS, SECONDS_QUICK = 10.0, 1.0
MANY_KEYS = 1_000_000
QUANTILE = "p99.9"  # The figure; the curve has the others.


def measure(adapter: Adapter, work: Work) -> dict[str, Timing]:
    seconds = SECONDS if work.setting.key_count >= MANY_KEYS else SECONDS_QUICK
    answer = ask(Request.of("stalls", adapter, work.directory, work.setting, seconds=seconds))
    return {
        side: Timing(answer[f"{side}_count"], seconds, value=answer[side][QUANTILE], curve=answer[side])
        for side in ("put", "get")
    }


def _cell(name: str, title: str, part: str) -> Cell:
    return Cell(
        name=name,
        title=title,
        group="stalls",
        unit="us",
        better="less",
        quick=False,  # A second per repetition and peer shows no stalls worth the time.
        writes=False,
        needs=ANY,
        leaves=None,
        needs_feature=FILES,
        threads=2,
        run=_together.part(part),
    )


_together = Together(measure, timed=True)
CELLS = (
    _cell("put-stalls", f"put, {QUANTILE}, overwriting at full speed beside a reader", "put"),
    _cell("get-stalls", f"get, {QUANTILE}, beside a writer at full speed", "get"),
)
