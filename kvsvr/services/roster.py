"""Which topics have something in them, for those that live in the slot of a user or a group: there are too many of them
for a worker to look at each (docs/decisions/0040).

    roster.enter("{u/ann}out")       before the transaction that puts a task there, and never behind it: whoever dies
                                     after that transaction can tell nobody any more
    roster.ring("{u/ann}out")        behind it, to have a worker look now
    roster.round(handle, "w-1")      a worker: each topic in the roster, until it is empty

A topic leaves when it was found empty GRACE_S or more behind its last entry, and nobody has entered it since (delete at
a version). Who enters one that has just been entered writes nothing, so a writer has at least half of that between
enter() and its transaction; one that stops for longer, and then dies between the transaction and ring(), leaves a task
until somebody enters the topic again.

One table, in a slot of its own: entering is a single write, and who waits is woken by it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final, TypeAlias

from kvsvr.errors import VersionConflict
from kvsvr.services.names import Clock, id_after, seconds_of
from kvsvr.services.queue import Queue, Task
from kvsvr.types import Store, Versioned

GRACE_S: Final = 60.0
PULL_COUNT: Final = 16
PAUSE_S: Final = 1.0

Handle: TypeAlias = Callable[[Task], None]
Report: TypeAlias = Callable[[Task, Exception], None]


class Roster:
    def __init__(self, db: Store, queue: Queue, name: str, *, clock: Clock = time.time, lease: float = 30.0) -> None:
        self._db = db
        self._queue = queue
        self._table = db.table(f"{{roster/{name}}}".encode())
        self._clock = clock
        self._lease = lease

    def enter(self, topic: str) -> None:
        found = self._table.get(topic.encode())
        if found is None or abs(self._clock() - seconds_of(found)) > GRACE_S / 2:
            self.ring(topic)

    def ring(self, topic: str) -> None:
        self._table.put(topic.encode(), id_after(None, self._clock()))

    def round(self, handle: Handle, worker: str, *, limit: int | None = None, report: Report | None = None) -> int:
        """Does what there is, up to `limit` tasks; how many were done.

        A handler that raises has its task given back, for later, and in the end to the dead. `report` is told, and the
        round goes on with other topics; without it the round ends with what was raised.
        """
        done = 0
        for row in list(self._table.keys()):
            done += self._visit(row, handle, worker, None if limit is None else limit - done, report)
            if limit is not None and done >= limit:
                break
        return done

    def wait(self, version: int, timeout: float) -> int:
        """Until something was entered behind `version`, or the timeout; the roster's version."""
        return self._db.wait(self._table.key, version, timeout)

    def work(self, handle: Handle, worker: str, stopping: Callable[[], bool], report: Report) -> None:
        """Rounds without end, until `stopping` says so, which is asked once a second at least."""
        while not stopping():
            version = self._table.version
            if self.round(handle, worker, report=report) == 0:
                self.wait(version, 1.0)

    def _visit(self, row: bytes, handle: Handle, worker: str, limit: int | None, report: Report | None) -> int:
        topic, done = row.decode(), 0
        entered = self._table.get_versioned(row)
        while limit is None or done < limit:
            most = PULL_COUNT if limit is None else min(PULL_COUNT, limit - done)
            tasks = self._queue.pull(topic, worker, most, self._lease)
            if not tasks:
                self._take_out(row, topic, entered)
                return done
            for index, task in enumerate(tasks):
                try:
                    handle(task)
                except Exception as error:
                    for given in tasks[index:]:
                        self._queue.nak(given, PAUSE_S)
                    if report is None:
                        raise
                    report(task, error)
                    return done
                done += self._queue.ack(task)
        return done

    def _take_out(self, row: bytes, topic: str, entered: Versioned | None) -> None:
        """If nothing can be there, nor come."""
        if entered is None or self._clock() - seconds_of(entered.value) < GRACE_S:
            return
        backlog = self._queue.stats(topic)
        if backlog.ready + backlog.held == 0:
            with suppress(VersionConflict):  # Entered again meanwhile.
                self._table.delete(row, version=entered.version)
