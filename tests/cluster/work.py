"""Clients that count and collect while replicas fail, and the verdict on what the set holds afterwards.

Each worker has a counter of its own and adds elements to sets that all share, and reads its counter through another
replica in between. A command whose connection broke, or that was given up, is in doubt: it may have been executed. Then
the worker looks, and goes on from what it finds, so in the end every count is exact.

Looking is enough because nothing of it is on its way any more: a process that was killed sends nothing, what it had
sent before is taken in within moments (SETTLE_S), and a process that is only stopped is waited for (REPLY_S): what lies
in its sockets is executed when it goes on.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

REPLY_S = 30
SETTLE_S = 0.1
DOUBT_S = 60
SET_SIZE = 40
"""Elements that a worker adds to one set before it goes on to the next."""


class Nodes(Protocol):
    """A set, as far as a client needs to know."""

    @property
    def ids(self) -> Sequence[int]: ...

    def client(self, id_: int, **options: Any) -> redis.Redis: ...


class Doubt(Exception):
    """It may have been executed, or not."""


@dataclass(slots=True)
class Record:
    """What one worker knows to be so."""

    count: int = 0
    elements: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    operation_count: int = 0
    doubt_count: int = 0
    happened_count: int = 0
    gap_s: float = 0.0
    wrong: list[str] = field(default_factory=list)


class Worker(threading.Thread):
    """One client. It goes on to the next replica when one fails."""

    def __init__(self, nodes: Nodes, number: int, stop: threading.Event) -> None:
        super().__init__(name=f"worker-{number}")
        self.record = Record()
        self.failure: Exception | None = None
        self._nodes = nodes
        self._number = number
        self._stopping = stop
        self._at = number % len(nodes.ids) + 1
        self._clients = {
            id_: nodes.client(id_, socket_timeout=REPLY_S, retry=Retry(NoBackoff(), 0)) for id_ in nodes.ids
        }

    @property
    def counter(self) -> str:
        return f"counter:{self._number}"

    def run(self) -> None:
        last = time.monotonic()
        try:
            while not self._stopping.is_set():
                self._add_one()
                self._add_element()
                self._read()
                now = time.monotonic()
                self.record.gap_s = max(self.record.gap_s, now - last)
                last = now
        except Exception as error:
            self.failure = error
        for client in self._clients.values():
            client.close()

    def _add_one(self) -> None:
        wanted = self.record.count + 1
        if self._sent("INCR", self.counter, expected=wanted):
            self.record.count = wanted
        else:
            found = int(self._surely("GET", self.counter) or 0)
            if found not in (wanted - 1, wanted):
                self.record.wrong.append(f"{self.counter} is {found}, not {wanted - 1} or {wanted}")
            self.record.happened_count += found == wanted
            self.record.count = found

    def _add_element(self) -> None:
        number = self.record.operation_count
        key, element = f"set:{number // SET_SIZE}", f"{self._number}.{number}"
        if not self._sent("APPEND", key, f" {element}"):
            happened = element.encode() in (self._surely("GET", key) or b"").split()
            self.record.happened_count += happened
            if not happened:
                return
        self.record.elements[key].append(element)

    def _read(self) -> None:
        """At another replica than it writes to: what was acknowledged is seen there at once."""
        self._go_on()
        found = int(self._surely("GET", self.counter) or 0)
        if found != self.record.count:
            self.record.wrong.append(f"{self.counter} was read as {found} when it was {self.record.count}")
            self.record.count = found

    def _sent(self, *words: str, expected: int | None = None) -> bool:
        """False: it is in doubt."""
        self.record.operation_count += 1
        try:
            answer = self._ask(*words)
        except Doubt:
            self.record.doubt_count += 1
            time.sleep(SETTLE_S)
            return False
        if expected is not None and answer != expected:
            self.record.wrong.append(f"{' '.join(words)} was answered {answer!r}, not {expected}")
        return True

    def _surely(self, *words: str) -> bytes | None:
        """A read, asked until there is an answer."""
        deadline = time.monotonic() + DOUBT_S
        while True:
            try:
                answer = self._ask(*words)
            except Doubt:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
            else:
                assert answer is None or isinstance(answer, bytes)
                return answer

    def _ask(self, *words: str) -> object:
        try:
            answer: object = self._clients[self._at].execute_command(*words)  # type: ignore[no-untyped-call]
        except (redis.ConnectionError, redis.TimeoutError) as error:
            self._go_on()
            raise Doubt(str(error)) from None
        except redis.ResponseError as error:
            if not str(error).startswith(("CLUSTERDOWN", "UNKNOWN", "Hash slot not served")):
                raise
            self._go_on()
            raise Doubt(str(error)) from None
        return answer

    def _go_on(self) -> None:
        self._at = self._at % len(self._nodes.ids) + 1


def judge(records: Sequence[Record], counters: Sequence[int], sets: Mapping[str, Sequence[str]]) -> list[str]:
    """What is wrong with what a replica holds. `counters` are those of the workers, in their order."""
    found = [text for record in records for text in record.wrong]
    for number, (record, value) in enumerate(zip(records, counters, strict=True)):
        if value != record.count:
            found.append(f"counter {number} is {value}, and {record.count} additions were made")
    for key in {*sets, *(key for record in records for key in record.elements)}:
        found += _judge_set(key, [record.elements.get(key, []) for record in records], sets.get(key, []))
    return found


def _judge_set(key: str, added: Iterable[Sequence[str]], held: Sequence[str]) -> Iterable[str]:
    times = Counter(held)
    for elements in added:
        yield from (f"{key}: {element} is lost" for element in elements if times[element] == 0)
        mine = set(elements)
        if [element for element in held if element in mine] != list(elements) and mine <= set(held):
            yield f"{key}: the elements of one worker are not in the order they were added in"
        times.subtract(elements)
    yield from (f"{key}: {element} is there {count} times too often" for element, count in times.items() if count > 0)
