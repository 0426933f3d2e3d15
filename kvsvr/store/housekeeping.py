"""What a writable store does by itself: a checkpoint whenever a reopen would have too much to replay.

Policy is here, mechanism in C: a checkpoint is a row of short steps without the GIL, beside the writers. One daemon
thread per store asks a few times a second how much has been written since the last one. A checkpoint that fails
costs nothing but time at the next open; it is logged, counted in stats(), and tried again after a pause that
doubles.

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
from kvsvr.errors import CorruptionError
from kvsvr.native import Handle
from kvsvr.store.catalog import Catalog

log = logging.getLogger("kvsvr")

INTERVAL_S: Final = 0.25
PAUSE_S_MAX: Final = 60.0


class Housekeeper:
    """Makes checkpoints of one store, by itself once started, and when told to.

    `stop` comes before the last checkpoint of close(), so two never run at a time.
    """

    def __init__(self, handle: Handle, catalog: Catalog, config: Config) -> None:
        self._handle = handle
        self._catalog = catalog
        self._threshold = config.checkpoint_size
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
        if self._threshold is not None:
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
        }

    def _run(self) -> None:
        pause = INTERVAL_S
        try:
            while not self._told(pause):
                fine = not self._is_due() or self.checkpoint(give_up=True)
                pause = INTERVAL_S if fine else min(PAUSE_S_MAX, max(1.0, pause * 2))
        finally:
            self._ended.set()
            if self._closing is not None:
                self._closing()

    def _told(self, pause: float) -> bool:
        """Waits for so long, or until it is told to stop; whether it is."""
        with suppress(Empty):
            self._wake.get(timeout=pause)
        return self._stopping

    def _forget(self) -> None:
        """The index on disk is damaged, the flow need not be: without the checkpoint the next open makes it anew."""
        try:
            self._catalog.forget_checkpoint()
        except OSError as error:
            log.warning("%s: the damaged checkpoint could not be taken away: %s", self._handle.path, error)

    def _is_due(self) -> bool:
        return self._threshold is not None and self._handle.measure_one("since_checkpoint_size") >= self._threshold

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
