"""What messaging, sync and the queue cost: `python -m bench services`. One process, an embedded store, strict slots.

Each figure is the median of some repetitions, beside the bar of the issue, and each repetition looks at what it has
done: messages that were sent are counted in the inboxes they should be in, a sync is compared with what it should
bring. What might cost more with a longer history is there twice, with a short one and a long one.

It is a measurement, never a test.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Final

from rich.table import Table

import kvsvr
from kvsvr.messaging import Messaging
from kvsvr.queue import Queue
from kvsvr.services.words import Send

FORMAT: Final = 1
TEXT: Final = "x" * 100
BATCH: Final = 100
MEMBERS: Final = 500
PAGE: Final = 100


@dataclass(frozen=True, slots=True)
class Figure:
    name: str
    title: str
    value: float
    low: float
    high: float
    unit: str
    bar: float | None
    """At least, of rates; at most, of times."""

    @property
    def is_rate(self) -> bool:
        return self.unit.endswith("/s")

    @property
    def is_met(self) -> bool | None:
        if self.bar is None:
            return None
        return self.value >= self.bar if self.is_rate else self.value <= self.bar


class Wrong(Exception):
    """What was measured did not do what it should."""


def run(directory: Path, repeat: int, scale: int, show: Callable[[str], object]) -> list[Figure]:
    """`scale` is how many messages a repetition sends singly; histories are up to twenty times as long."""
    figures = []
    for number, (name, title, unit, bar, cell) in enumerate(CELLS):
        show(title)
        with kvsvr.open(directory / str(number), slots="strict") as db:
            chat = Messaging(db)
            for user in ("ann", "bob"):
                chat.register(user)
            values = sorted(cell(chat, db, repeat, scale))
        figures.append(Figure(name, title, statistics.median(values), values[0], values[-1], unit, bar))
    return figures


# --- cells: each gives a figure for each repetition ---


def sends(chat: Messaging, db: kvsvr.Engine, repeat: int, scale: int) -> Iterator[float]:
    """A transaction for each, and its delivery."""
    for number in range(repeat):
        started = perf_counter()
        for index in range(scale):
            chat.send("ann", "u/bob", TEXT, f"{number}.{index}")
        yield scale / (perf_counter() - started)
        expect(len(db.table(b"{u/bob}:t:inbox")), (number + 1) * scale)


def sends_in_batches(chat: Messaging, db: kvsvr.Engine, repeat: int, scale: int) -> Iterator[float]:
    """A hundred in one transaction, to one receiver; and their delivery."""
    for number in range(repeat):
        batches = [
            [Send("u/bob", TEXT, f"{number}.{first + index}") for index in range(BATCH)]
            for first in range(0, scale, BATCH)
        ]
        started = perf_counter()
        for batch in batches:
            chat.send_many("ann", batch)
        yield len(batches) * BATCH / (perf_counter() - started)
        expect(len(db.table(b"{u/bob}:t:inbox")), (number + 1) * len(batches) * BATCH)


def fan_out(chat: Messaging, db: kvsvr.Engine, repeat: int, scale: int) -> Iterator[float]:
    """From the call to the last of the inboxes, in ms."""
    chat.create("ann", "g", open=True)
    for index in range(MEMBERS - 1):
        chat.register(f"member{index}")
        chat.join(f"member{index}", "g")
    for number in range(max(repeat, scale // 200)):
        started = perf_counter()
        chat.send("ann", "g/g", TEXT)
        yield 1e3 * (perf_counter() - started)
        expect(len(db.table(b"{u/member0}:t:inbox")), number + 1)
        expect(len(db.table(b"{u/member498}:t:inbox")), number + 1)


def nothing_new(history: int) -> Callable[[Messaging, kvsvr.Engine, int, int], Iterator[float]]:
    """A pull with the newest key, in us, with so many times `scale` messages in the inbox."""

    def cell(chat: Messaging, db: kvsvr.Engine, repeat: int, scale: int) -> Iterator[float]:
        key = up_to_date(chat, history * scale // 20)
        for _ in range(repeat):
            started = perf_counter()
            for _ in range(scale):
                pulled = chat.pull("bob", "phone", key, PAGE)
            yield 1e6 * (perf_counter() - started) / scale
            expect((pulled.key, pulled.changes), (key, []))

    return cell


def hundred_new(history: int) -> Callable[[Messaging, kvsvr.Engine, int, int], Iterator[float]]:
    """A pull that brings a hundred messages with their bodies, in ms."""

    def cell(chat: Messaging, db: kvsvr.Engine, repeat: int, scale: int) -> Iterator[float]:
        key = up_to_date(chat, history * scale // 20)
        for _ in range(max(repeat, scale // 200)):
            chat.send_many("ann", [Send("u/bob", TEXT)] * PAGE)
            started = perf_counter()
            pulled = chat.pull("bob", "phone", key, 2 * PAGE)
            yield 1e3 * (perf_counter() - started)
            expect([len(changes.rows) for changes in pulled.changes], [PAGE])
            key = pulled.key

    return cell


def tasks(chat: Messaging, db: kvsvr.Engine, repeat: int, scale: int) -> Iterator[float]:
    """Put one by one, pulled sixteen at a time, acknowledged one by one."""
    queue = Queue(db)
    for _ in range(repeat):
        started = perf_counter()
        for _ in range(scale):
            queue.put("bench", b"task")
        done = 0
        while pulled := queue.pull("bench", "worker", 16):
            for task in pulled:
                done += queue.ack(task)
        yield scale / (perf_counter() - started)
        expect(done, scale)


def up_to_date(chat: Messaging, count: int) -> bytes:
    """The key of a device that has so many messages."""
    for first in range(0, count, 1000):
        chat.send_many("ann", [Send("u/bob", TEXT)] * min(1000, count - first))
    key, more = None, True
    while more:
        pulled = chat.pull("bob", "phone", key, 1000)
        key, more = pulled.key, pulled.more
    assert key is not None
    return chat.pull("bob", "phone", key, 1000).key


def expect(found: object, wanted: object) -> None:
    if found != wanted:
        raise Wrong(f"{found!r} instead of {wanted!r}")


CELLS: Final = (
    ("send-batches", f"one-to-one sends, {BATCH} at once", "/s", 50_000.0, sends_in_batches),
    ("send", "one-to-one sends, one by one", "/s", 5_000.0, sends),
    ("fan-out", f"a group message to {MEMBERS} members", "ms", 10.0, fan_out),
    ("nothing-short", "a sync with nothing new, short history", "us", 50.0, nothing_new(1)),
    ("nothing-long", "a sync with nothing new, 20 times that", "us", 50.0, nothing_new(20)),
    ("hundred-short", "a sync with 100 new messages, short history", "ms", 1.0, hundred_new(1)),
    ("hundred-long", "a sync with 100 new messages, 20 times that", "ms", 1.0, hundred_new(20)),
    ("tasks", "tasks put, pulled and acknowledged", "/s", None, tasks),
)


def table_of(figures: list[Figure]) -> Table:
    table = Table(title="services: one process, embedded, medians", title_justify="left")
    for heading in ("", "median", "lowest to highest", "bar", ""):
        table.add_column(heading, justify="left" if heading == "" else "right")
    for one in figures:
        digits = 0 if one.is_rate else 2
        bar = "" if one.bar is None else f"{'>=' if one.is_rate else '<='} {one.bar:,g}"
        met = {None: "", True: "met", False: "missed"}[one.is_met]
        figure = f"{one.value:,.{digits}f} {one.unit}"
        table.add_row(one.title, figure, f"{one.low:,.{digits}f} to {one.high:,.{digits}f}", bar, met)
    return table


def document_of(figures: list[Figure], run_facts: dict[str, Any], machine: dict[str, Any]) -> dict[str, Any]:
    return {"format": FORMAT, "run": run_facts, "machine": machine, "figures": [asdict(one) for one in figures]}
