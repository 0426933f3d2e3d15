"""What to tidy up, and when: policy. How it is done is in C, a short step at a call, without the GIL.

Four things, all of which an unattended store needs now and then:

  sweep     rows of dropped tables leave index and counters
  compact   what is live in a segment with much that is dead is written anew; the segment goes at the next checkpoint
  expire    what has expired where nobody looks is deleted
  forget    tombstones that shadow nothing any more leave the index

Which segment: the one with the best return, dead bytes over what reading and writing it costs, old ones first among
equals (Rosenblum and Ousterhout, "The design and implementation of a log-structured file system", 1992, section 3.6:
what is old and half empty will hardly become emptier). How many: while the store is written to, only as many as keep
the flow below a bound, because what is left alone dies by itself; when it rests, until there is little to gain.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from kvsvr.errors import CorruptionError, DiskError
from kvsvr.native import Handle
from kvsvr.store.steps import Compaction, Forget, Segment, Sweep, expire, segments

log = logging.getLogger("kvsvr")

BUSY: Final = (1.5, 0.25)
"""While it is written to: so many times the live bytes are fine, and a segment is worth it from this dead share."""
IDLE: Final = (1.1, 0.10)
EAGER: Final = (1.0, 0.02)
"""For compact(): all that can be had."""
SLACK: Final = 1 << 20
"""Bytes of dead records that no store is worked on for."""
EMPTY_SHARE: Final = 0.25
"""Emptied segments wait for a checkpoint, which costs a write of the index: until they are so much of what is live."""
SMALL_COUNT: Final = 32
"""More segments than this, and those that are small beside the others are joined."""
FORGET_COUNT: Final = 4096
FORGET_SHARE: Final = 0.1
"""Tombstones are looked through when there are so many, and so large a part of the index."""
SEGMENT_MAX: Final = 0xFFFFFFFF
PIECES_MORE: Final = 4
"""Besides its segments, what a store has for compact(): tables to sweep, tombstones to forget."""


@dataclass(slots=True)
class _Figures:
    size: int
    live: int
    empty: int
    """Bytes of segments that only wait for a checkpoint."""


class Compactor:
    """Does what is most worth doing, a piece at a time. One thread at a time."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self._damaged: set[int] = set()
        # Live bytes that stayed behind, by segment: rows of a dropped table, which wait for a snapshot to end. Tried
        # again as soon as it is another number.
        self._left: dict[int, int] = {}
        self._sequence = -1
        self._forgotten_at = 0
        self._expire_cursor = 0
        self.compacted_count = 0
        self.moved_size = 0

    def work(self, stop: Callable[[], bool], *, eager: bool = False, newest: int = SEGMENT_MAX) -> bool:
        """One piece of work, on segments up to `newest`; whether there was one. `stop` is asked between steps."""
        if self._sweep(stop):
            return True
        idle = self._is_idle()
        target, share = EAGER if eager else IDLE if idle else BUSY
        found = segments(self._handle)
        victim = _victim(found, [one for one in found[:-1] if self._may(one, newest)], target, share, eager=eager)
        if victim is not None:
            self._compact(victim.id, stop)
            left = {one.id: one.live_size for one in segments(self._handle)}
            self._left = {id_: size for id_, size in self._left.items() if id_ in left}
            self._left[victim.id] = left.get(victim.id, 0)
            return True
        self._expire(stop, whole=eager)
        return (idle or eager) and self._forget(stop, eager=eager)

    def work_through(self, stop: Callable[[], bool], newest: int) -> bool:
        """All that can be had of segments up to `newest`; whether there was any. Bounded, because a writer that
        overwrites at full speed makes more meanwhile."""
        pieces = len(segments(self._handle)) + PIECES_MORE
        count = 0
        while count < pieces and self.work(stop, eager=True, newest=newest):
            count += 1
        return count > 0

    def newest(self) -> int:
        """The newest segment there is."""
        return max((one.id for one in segments(self._handle)), default=0)

    def _may(self, one: Segment, newest: int) -> bool:
        if not one.sealed or one.live_size == 0 or one.id > newest:
            return False
        return one.id not in self._damaged and self._left.get(one.id) != one.live_size

    def wants_checkpoint(self) -> bool:
        """Emptied segments have become so many that the disk should have them back."""
        figures = _figures(segments(self._handle))
        return figures.empty > max(SLACK, int(figures.live * EMPTY_SHARE))

    def has_empty(self) -> bool:
        return _figures(segments(self._handle)).empty > 0

    def _is_idle(self) -> bool:
        """Nobody has written since the last look, but for what is done here."""
        before, self._sequence = self._sequence, self._handle.measure_one("sequence")
        return before == self._sequence

    def _sweep(self, stop: Callable[[], bool]) -> bool:
        if self._handle.measure_one("retired_table_count") == 0:
            return False
        with Sweep(self._handle) as sweep:
            worked = False
            while not stop() and sweep.step():
                worked = True
        return worked

    def _compact(self, segment: int, stop: Callable[[], bool]) -> None:
        try:
            with Compaction(self._handle, segment) as compaction:
                while not stop() and compaction.step():
                    pass
                self.moved_size += compaction.moved_size
            self.compacted_count += 1
        except (CorruptionError, DiskError) as error:
            if isinstance(error, DiskError) and error.full:
                raise  # There may be room later: the segment is as good as it was.
            # Reads that meet the damage say so; here it only means that this segment stays.
            self._damaged.add(segment)
            log.warning("%s: segment %d is left as it is: %s", self._handle.path, segment, error)
            if isinstance(error, DiskError):
                raise

    def _expire(self, stop: Callable[[], bool], *, whole: bool) -> None:
        """A stretch of the index; the cursor comes round. `whole`: once round, from the start."""
        if whole:
            self._expire_cursor = 0
        while not stop():
            self._expire_cursor = expire(self._handle, self._expire_cursor)
            if not whole or self._expire_cursor == 0:
                return

    def _forget(self, stop: Callable[[], bool], *, eager: bool) -> bool:
        stats = self._handle.measure()
        count = stats["tombstone_count"] + stats["row_tombstone_count"]
        many = count >= FORGET_COUNT and count >= stats["index_slot_count"] * FORGET_SHARE
        # What was kept the last time is kept again, unless segments have gone since.
        state = stats["removed_count"] + 1
        if count == 0 or state == self._forgotten_at or not (many or eager):
            return False
        with Forget(self._handle) as forget:
            while not stop() and forget.step():
                pass
            self._forgotten_at = state
            return forget.count > 0


def _figures(found: list[Segment]) -> _Figures:
    return _Figures(
        size=sum(one.size for one in found),
        live=sum(one.live_size for one in found),
        empty=sum(one.size for one in found if one.removable),
    )


def _victim(
    found: list[Segment], candidates: list[Segment], target: float, share: float, *, eager: bool
) -> Segment | None:
    """The segment to compact next; None: none is worth it."""
    figures = _figures(found)
    if not candidates:
        return None
    small = figures.size // (4 * len(found)) if len(found) > SMALL_COUNT else 0
    for one in candidates:
        if one.size < small:
            return one
    slack = 0 if eager else SLACK
    if figures.size - figures.empty <= figures.live * target + slack:
        return None
    newest = found[-1].id
    best = max(candidates, key=lambda one: _return(one, newest))
    return best if 1 - best.live_size / _size(best) >= share else None


def _size(segment: Segment) -> int:
    return max(1, segment.size)


def _return(segment: Segment, newest: int) -> float:
    live = segment.live_size / _size(segment)
    age = (newest - segment.id) / max(1, newest)
    return (1 - live) / (1 + live) * (0.5 + age)
