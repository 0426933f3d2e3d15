"""What a writable store does by itself: a checkpoint whenever a reopen would have too much to replay.

Policy is here, mechanism in C: a checkpoint is a row of short steps without the GIL, beside the writers. One daemon
thread per store asks a few times a second how much has been written since the last one. A checkpoint that fails
costs nothing but time at the next open; it is logged, counted in stats(), and tried again after a pause that
doubles.

The thread holds the handle and the catalog, never the Engine: an Engine that nobody holds can go, and its finalizer
stops the thread.
"""

from __future__ import annotations

import logging
import threading
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
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._made_count = 0
        self._failed_count = 0
        self._failure: str | None = None

    def start(self) -> None:
        if self._threshold is not None:
            self._thread = threading.Thread(target=self._run, name="kvsvr-housekeeping", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Returns when the thread is done; a checkpoint under way is given up after the step it is in."""
        self._stopping.set()
        # The collector may run the finalizer of a dropped Engine in any thread, this one included.
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

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
        while not self._stopping.wait(pause):
            fine = not self._is_due() or self.checkpoint(give_up=True)
            pause = INTERVAL_S if fine else min(PAUSE_S_MAX, max(1.0, pause * 2))

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
                if give_up and self._stopping.is_set():
                    return False
            self._catalog.put_checkpoint(checkpoint.describe())
            checkpoint.published()
            return True
        finally:
            checkpoint.free()
