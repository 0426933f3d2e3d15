"""Cells that come of one measurement.

Loading a store and overwriting it three times takes as long for one figure as for all that can be seen on the way. So
the first cell that asks has everything measured, and those that come after it find theirs. No figure is handed out
twice: a repetition, and an attempt that follows a disturbed one, is a measurement of its own. Times that were found
while other programs were busy are for the cell that asked, and are marked there; the others measure again.
"""

from collections.abc import Callable, Mapping
from functools import partial

from bench.adapters.base import Adapter
from bench.cells.base import Timing, Work
from bench.data import Setting
from bench.load import Snapshot

Measure = Callable[[Adapter, Work], Mapping[str, Timing]]


class NotMeasured(Exception):
    """The measurement was made, but this part cannot be had here."""


class Together:
    def __init__(self, measure: Measure, *, timed: bool) -> None:
        """`timed`: the figures are times, so other programs disturb them; bytes they leave as they are."""
        self._measure = measure
        self._timed = timed
        self._of: tuple[type[Adapter], Setting] | None = None
        self._left: dict[str, Timing] = {}

    def part(self, name: str) -> Callable[[Adapter, Work], Timing]:
        """What a cell runs for the figure of that name."""
        return partial(self._take, name)

    def _take(self, name: str, adapter: Adapter, work: Work) -> Timing:
        of = type(adapter), work.setting
        if self._of != of or name not in self._left:
            self._of, self._left = None, {}
            started = Snapshot.take()
            found = dict(self._measure(adapter, work))
            if name not in found:
                raise NotMeasured(f"this machine does not tell: {name}")
            if self._timed and started.until(Snapshot.take()).disturbed:
                return found[name]
            self._of, self._left = of, found
        return self._left.pop(name)
