"""What a writable store does by itself: checkpoints, and whatever kvsvr.store.compaction finds worth doing.

Policy is here, mechanism in C: everything is a row of short steps without the GIL, beside the writers. One daemon
thread per store looks a few times a second, and goes on without a pause as long as there is something to do. A
checkpoint is made when a reopen would have too much to replay (docs/decisions/0022), or when emptied segments wait
for one. What fails costs nothing but time and room; it is logged, counted in stats(), and tried again after a pause
that doubles.

Whoever wants the same by hand (compact, backup) does it in a thread of its own, one at a time: `alone` is the lock.

The thread holds the handle and the catalog, never the Engine: an Engine that nobody holds can go, and its finalizer
stops the thread. The collector may run that finalizer in the thread itself, in the middle of a checkpoint; the closing
is then left to the thread, for when it has let go of the checkpoint.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, Final

from kvsvr.config import Config
from kvsvr.errors import CorruptionError, KvError
from kvsvr.native import Handle
from kvsvr.store.catalog import Catalog
from kvsvr.store.compaction import Compactor

log = logging.getLogger("kvsvr")

INTERVAL_S: Final = 0.1
CHECKPOINT_SIZE_MIN: Final = 16 << 20
SLOT_SIZE: Final = 16
PAUSE_S_MAX: Final = 60.0
COMPACT_ROUNDS: Final = 8
"""A checkpoint empties segments, which lets tombstones go, which leaves more to compact: soon nothing is left."""


class Housekeeper:
    """Makes checkpoints of one store, by itself once started, and when told to.

    `stop` comes before the last checkpoint of close(), so two never run at a time.
    """

    def __init__(self, handle: Handle, catalog: Catalog, config: Config) -> None:
        self._handle = handle
        self._catalog = catalog
        self._threshold = config.checkpoint_size
        self._compactor = Compactor(handle)
        self._compacts = config.compaction
        self.alone = threading.Lock()
        self._stopping = False
        # Not an Event: the finalizer may come while this very thread waits, and Event.set() would wait for its lock.
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        # Not Thread.join() for this: interrupted by Ctrl-C, it takes the thread for ended, while it may be inside C.
        self._ended = threading.Event()
        self._closing: Callable[[], None] | None = None
        self._made_count = 0
        self._failed_count = 0
        self._failure: str | None = None

    def start(self) -> None:
        if self._threshold is not None or self._compacts:
            self._thread = threading.Thread(target=self._run, name="kvsvr-housekeeping", daemon=True)
            try:
                self._thread.start()
            except RuntimeError:
                self._thread = None  # The system gives no more threads: there is none to wait for.
                raise

    @property
    def is_here(self) -> bool:
        """This is the housekeeping thread that asks."""
        return self._thread is threading.current_thread()

    def stop(self) -> None:
        """Returns when the thread is done; a checkpoint under way is given up after the step it is in.

        Also when interrupted, and raises then: nobody may close C while the thread is inside. A step is short.
        """
        self._tell()
        if self._thread is None or self.is_here:
            return
        interrupt: BaseException | None = None
        while not self._ended.is_set():
            try:
                self._ended.wait()
            except BaseException as error:
                interrupt = error
        if interrupt is not None:
            raise interrupt

    def leave_closing(self, closing: Callable[[], None]) -> None:
        """In the housekeeping thread: calls it as soon as no checkpoint is under way any more."""
        self._closing = closing
        self._tell()

    def _tell(self) -> None:
        self._stopping = True
        self._wake.put(None)

    def checkpoint(self, *, give_up: bool = False) -> bool:
        """Makes one if anything changed since the last. False: it failed, which is noted, not raised.

        `give_up`: leave it half made, at no loss, as soon as somebody wants the thread to stop.
        """
        try:
            if self._make(give_up):
                self._made_count += 1
            self._failure = None
        except Exception as error:  # Whatever it is: no data depends on a checkpoint, and the next one may succeed.
            self._failed_count += 1
            self._failure = f"{type(error).__name__}: {error}"
            log.warning("%s: no checkpoint, so the next open replays more: %s", self._handle.path, error)
            if isinstance(error, CorruptionError):
                self._forget()
            return False
        return True

    def stats(self) -> dict[str, Any]:
        return {
            "checkpoint_count": self._made_count,
            "checkpoint_failed_count": self._failed_count,
            "checkpoint_failure": self._failure,
            "compacted_count": self._compactor.compacted_count,
            "moved_size": self._compactor.moved_size,
        }

    def compact(self) -> None:
        """All that can be had, now. What a snapshot or backup holds on to stays."""
        with self.alone:
            newest = self._compactor.newest()
            for _ in range(COMPACT_ROUNDS):
                # First: it also seals what is full, which with sync="none" nobody may have done yet.
                if self._stopping or not self.checkpoint(give_up=True):
                    break
                worked = self._compactor.work_through(self._is_stopping, newest)
                if not worked and not self._compactor.has_empty():
                    break
        if self._failure is not None:
            raise KvError(
                f"{self._handle.path}: not all could be given back, because no checkpoint was made: {self._failure}"
            )

    def _is_stopping(self) -> bool:
        return self._stopping

    def _run(self) -> None:
        pause = INTERVAL_S
        try:
            while not self._told(pause):
                with self.alone:
                    worked, fine = self._tidy()
                    if fine and (self._is_due() or (self._compacts and self._compactor.wants_checkpoint())):
                        fine = self.checkpoint(give_up=True)
                usual = 0.0 if worked else INTERVAL_S
                pause = usual if fine else min(PAUSE_S_MAX, max(1.0, pause * 2))
        finally:
            self._ended.set()
            if self._closing is not None:
                self._closing()

    def _tidy(self) -> tuple[bool, bool]:
        """Whether there was something to do, and whether it went well."""
        if not self._compacts:
            return False, True
        try:
            return self._compactor.work(self._is_stopping), True
        except Exception as error:  # As with checkpoints: no data depends on it.
            log.warning("%s: tidying up failed, to be tried again: %s", self._handle.path, error)
            return False, False

    def _told(self, pause: float) -> bool:
        """Waits for so long, or until it is told to stop; whether it is."""
        with suppress(Empty):
            self._wake.get(block=pause > 0, timeout=pause or None)
        return self._stopping

    def _forget(self) -> None:
        """The index on disk is damaged, the flow need not be: without the checkpoint the next open makes it anew."""
        try:
            self._catalog.forget_checkpoint()
        except OSError as error:
            log.warning("%s: the damaged checkpoint could not be taken away: %s", self._handle.path, error)

    def _is_due(self) -> bool:
        """What a reopen would replay is as much as the image of the index that spares it; within bounds."""
        if self._threshold is None:
            return False
        image_size = SLOT_SIZE * self._handle.measure_one("index_slot_count")
        size = self._handle.measure_one("since_checkpoint_size")
        return size >= min(self._threshold, max(CHECKPOINT_SIZE_MIN, image_size))

    def _make(self, give_up: bool) -> bool:
        """Begin, step, describe, store that durably, say so: only then may C drop what older ones used."""
        checkpoint = self._handle.checkpoint()
        if checkpoint is None:
            return False
        try:
            while checkpoint.step():
                if give_up and self._stopping:
                    return False
            self._catalog.put_checkpoint(checkpoint.describe())
            checkpoint.published()
            return True
        finally:
            checkpoint.free()
