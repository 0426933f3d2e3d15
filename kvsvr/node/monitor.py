"""A thread that looks at the loop from outside, and tells what it sees: status file, log, service manager.

It looks PERIOD_S apart; the file is written at every whole second, and at once when the state, the connections or the
shards owned are others. Whole seconds, because then all replicas of a machine look at the same moment, and how far one
is behind another can be told without what was written in between.

The report is the thread's own, and `ended`'s once the thread has ended: there is no lock, because a signal handler
could not take one.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
from dataclasses import replace
from typing import Final

from kvsvr.errors import KvError
from kvsvr.native import ServerHandle
from kvsvr.node.config import ServerConfig, text_of
from kvsvr.node.log import tell
from kvsvr.node.notify import notify
from kvsvr.node.report import Report, State, pin_of

PERIOD_S: Final = 0.2
WAIT_MS: Final = 1000
"""A loop that does not come round in so long is stuck."""


class Monitor:
    """Of one server. Without a status file it still tells the log and the service manager."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._stopping = False
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None
        now = time.time()
        self._report = Report(
            node=config.node,
            pid=os.getpid(),
            address=text_of(config.client_address),
            peer_address="" if config.alone else text_of(config.peer_address),
            started=now,
            time=now,
            state=State.STARTING,
        )
        self._write()

    def start(self, handle: ServerHandle) -> None:
        self._thread = threading.Thread(target=self._run, args=(handle,), name="kvsvr-monitor", daemon=True)
        self._thread.start()

    def stopping(self) -> None:
        """For signal handlers, too."""
        self._stopping = True
        notify("STOPPING=1")

    def ended(self, error: BaseException | None) -> None:
        """The last that is said; the handle may be freed after it."""
        self._ending.set()
        if self._thread is not None:
            self._thread.join()
        if error is None:
            self._become(replace(self._report, state=State.STOPPED))
        else:
            text = str(error) if isinstance(error, KvError) else repr(error)
            self._become(replace(self._report, state=State.FAILED, error=text))

    def _run(self, handle: ServerHandle) -> None:
        while not self._ending.wait(PERIOD_S - time.time() % PERIOD_S):
            handle.pin(pinned=self._is_pinned())
            seen = handle.look(WAIT_MS)
            if seen is None:
                self._become(replace(self._report, state=State.STOPPING if self._stopping else State.STUCK))
                continue
            notify("WATCHDOG=1")
            figures, shards = seen
            commits, applied, owners = zip(*shards, strict=True)
            self._become(
                replace(
                    self._report,
                    state=self._state(figures),
                    figures=figures,
                    commits=commits,
                    applied=applied,
                    owners=owners,
                )
            )

    def _is_pinned(self) -> bool:
        """Somebody copies the log (kvsvr/ops/set_backup.py) as long as he holds the lock of this file, and lives."""
        if self._config.status_file is None:
            return False
        try:
            there = os.open(pin_of(self._config.status_file), os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(there, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(there)
        return False

    def _state(self, figures: dict[str, int]) -> State:
        if self._stopping:
            return State.STOPPING
        return State.SERVING if figures["shards_served"] == self._config.shard_count else State.WAITING

    def _become(self, report: Report) -> None:
        before, self._report = self._report, replace(report, time=time.time())
        if report.state is not before.state:
            bad = report.state in (State.STUCK, State.FAILED)
            error = {"error": report.error} if report.error else {}
            tell(str(report.state), logging.ERROR if bad else logging.INFO, **error)
            if report.state is State.SERVING:
                notify("READY=1")
        if _shown(self._report) != _shown(before) or int(self._report.time) != int(before.time):
            self._write()

    def _write(self) -> None:
        if self._config.status_file is None:
            return
        try:
            self._report.write(self._config.status_file)
        except OSError as error:
            tell("status_file", logging.WARNING, error=str(error))


def _shown(report: Report) -> tuple[object, ...]:
    """What is written at once when it is another."""
    figures = report.figures
    return report.state, figures.get("links"), figures.get("shards_owned"), figures.get("shards_served")
