"""A durable queue of tasks: put by anybody, pulled by workers, given back when a worker dies.

    task_id = queue.put("mail", b"to ann")            task = queue.pull("mail", "worker-1", wait=10)[0]
                                                      queue.ack(task, then=[Put("log", b"sent")])

A topic is one slot: its name's hash tag, or the whole name in one. Its tables, behind `q:{topic}:`

    ready   id -> task        may be pulled, in the order of put
    held    due, id -> task   leased until then, or delayed; `worker` is empty where it is delayed
    dead    id -> task        tried too often
    keys    key -> id         once only: until the task has ended, and key_ttl longer
    away    id, n -> put      puts into other slots that ended with the task, on their way
    next    a key             the last id; its version is what a pull waits for

Each call is one transaction or several that each leave a whole queue, so a kill between any two loses nothing. A task
is given at least once; `tries` tells one giving from the next, so who lost the lease can neither ack nor extend. An
effect once is by `key`, and by what the task does being idempotent.

No state but the store's, so any number of threads and processes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Final

import msgspec

from kvsvr.errors import Unavailable, Unknown, UsageError, shown
from kvsvr.services.names import ID_SIZE, Clock, id_after, micros, seconds_of
from kvsvr.types import BytesLike, KeyTable, Store, TransactionWriter

RETURN_COUNT: Final = 128
"""So many tasks come back in one transaction."""
TRIM_EVERY: Final = 64
WAIT_S_MAX: Final = 3600.0


class _Stored(msgspec.Struct, array_like=True, frozen=True):
    body: bytes
    key: bytes | None
    tries: int = 0
    worker: str = ""


class Put(msgspec.Struct, array_like=True, frozen=True):
    """A task to be: what ack() queues in the same step."""

    topic: str
    body: bytes
    key: bytes | None = None
    delay: float = 0


class Task(msgspec.Struct, frozen=True):
    """A task as a worker is given it, to be handed back to ack(), nak() or extend()."""

    topic: str
    id: bytes
    body: bytes
    key: bytes | None
    tries: int
    """This giving counted."""
    worker: str
    due: int
    """When the lease ends, in microseconds since 1970."""

    @property
    def put_at(self) -> float:
        return seconds_of(self.id)


class Backlog(msgspec.Struct, frozen=True):
    """How a topic is."""

    ready: int
    held: int
    """Leased or delayed."""
    dead: int
    age: float
    """Seconds since the oldest ready task was put; 0 if there is none."""


_stored: Final = msgspec.msgpack.Decoder(_Stored)
_put: Final = msgspec.msgpack.Decoder(Put)
_encode: Final = msgspec.msgpack.Encoder().encode


class Queue:
    """All topics of a store.

    A task that was given `tries_max` times and neither acknowledged nor given back whole is dead. A key is remembered
    for `key_ttl` seconds behind its task's end.
    """

    def __init__(self, db: Store, *, tries_max: int = 10, key_ttl: float = 86_400, clock: Clock = time.time) -> None:
        if tries_max < 1 or key_ttl <= 0:
            raise UsageError(f"tries_max is at least 1 and key_ttl positive, not {tries_max} and {key_ttl}")
        self._db = db
        self._tries_max = tries_max
        self._key_ttl = key_ttl
        self._clock = clock

    # --- putting ---

    def put(self, topic: str, body: BytesLike, *, key: BytesLike | None = None, delay: float = 0) -> bytes:
        """The task's id. With a `key` that was put before, nothing is, and it is the id of that one."""
        return self._db.run(lambda t: self.put_into(t, topic, body, key=key, delay=delay))

    def put_into(
        self, t: TransactionWriter, topic: str, body: BytesLike, *, key: BytesLike | None = None, delay: float = 0
    ) -> bytes:
        """The same as part of a transaction in the topic's slot: the task is there if and only if the rest is."""
        prefix, now = _check(topic, delay), self._clock()
        if key is not None:
            keys = t.table(prefix + b"keys")
            before = keys.get(key)
            if before is not None:
                return before
        id_ = id_after(t.get(prefix + b"next"), now)
        t.put(prefix + b"next", id_)
        content = _encode(_Stored(bytes(body), None if key is None else bytes(key)))
        if delay > 0:
            t.table(prefix + b"held").put(_due(now + delay) + id_, content)
        else:
            t.table(prefix + b"ready").put(id_, content)
        if key is not None:
            keys.put(key, id_)
        return id_

    # --- working ---

    def pull(
        self, topic: str, worker: str, max: int = 1, lease: float = 30.0, *, ordered: bool = False, wait: float = 0
    ) -> list[Task]:
        """Up to `max` tasks in the order of put, this worker's for `lease` seconds.

        With `ordered` nothing is given past a task that was given before and has not ended: one at a time, or one
        group of `max`. With `wait` it waits as long for the first.
        """
        if not worker or max < 1 or lease <= 0:
            raise UsageError(f"a pull wants a worker, a max and a lease, not {worker!r}, {max!r} and {lease!r}")
        prefix, end = prefix_of(topic), time.monotonic() + min(wait, WAIT_S_MAX)
        bell = prefix + b"next"
        while True:
            heard = self._db.wait(bell, 0, 0)
            self._send_away(topic)
            self._return_due(prefix)
            tasks = self._take(topic, worker, max, lease, ordered)
            left = end - time.monotonic()
            if tasks or left <= 0:
                return tasks
            self._db.wait(bell, heard, min(left, self._until_due(prefix)))

    def _take(self, topic: str, worker: str, most: int, lease: float, ordered: bool) -> list[Task]:
        prefix = prefix_of(topic)
        ready = self._db.table(prefix + b"ready")
        while True:
            stop = self._first_held(prefix) if ordered else None
            found = list(ready.rows(stop=stop, limit=most))
            if not found:
                return []
            due = _due(self._clock() + lease)
            tasks = self._db.run(partial(_lease, topic=topic, worker=worker, found=found, due=due))
            if tasks:  # Else others were faster with all of them.
                return tasks

    def _first_held(self, prefix: bytes) -> bytes | None:
        """The smallest id among those that were given, or put off by who had them."""
        return min((row[ID_SIZE:] for row in self._db.table(prefix + b"held")), default=None)

    def _return_due(self, prefix: bytes) -> None:
        """Leases that ended and delays that are over: to where they were in the order, or to the dead."""
        held = self._db.table(prefix + b"held")
        while True:
            over = list(held.rows(stop=_due(self._clock()), limit=RETURN_COUNT))
            if not over:
                return
            self._db.run(partial(self._return, prefix=prefix, over=over))

    def _return(self, t: TransactionWriter, prefix: bytes, over: list[tuple[bytes, bytes]]) -> None:
        held = t.table(prefix + b"held")
        for row, content in over:
            if held.get(row) != content:
                continue  # Somebody was faster.
            held.delete(row)
            stored = _stored.decode(content)
            where = b"dead" if stored.tries >= self._tries_max else b"ready"
            t.table(prefix + where).put(row[ID_SIZE:], _encode(msgspec.structs.replace(stored, worker="")))

    def _until_due(self, prefix: bytes) -> float:
        """Seconds until the next lease or delay ends. A new one rings, or was made by who was woken by the same put."""
        first = next(iter(self._db.table(prefix + b"held").keys(limit=1)), None)
        return WAIT_S_MAX if first is None else max(0.001, seconds_of(first) - self._clock())

    # --- ending ---

    def ack(self, task: Task, then: Sequence[Put] = ()) -> bool:
        """The task has ended, and what follows it is queued, in one step. False: the lease was lost, and nothing
        happened, neither of it; or it was acknowledged before."""
        for put in then:
            _check(put.topic, put.delay)  # Nothing may be on its way that cannot arrive.
        ended = self._db.run(lambda t: self._end(t, task, then))
        if ended:
            with suppress(Unavailable, Unknown):  # It has ended; the next pull sends what is left.
                self._send_away(task.topic)
                self._trim(task.topic, task.id)
        return ended

    def _end(self, t: TransactionWriter, task: Task, then: Sequence[Put]) -> bool:
        prefix = prefix_of(task.topic)
        if not _holds(t, task):
            return False
        t.table(prefix + b"held").delete(_row(task))
        if task.key is not None:
            t.table(prefix + b"keys").put(task.key, task.id, self._key_ttl)
        for number, put in enumerate(then):
            if tag_of(put.topic) == tag_of(task.topic):
                self.put_into(t, put.topic, put.body, key=put.key, delay=put.delay)
            else:
                t.table(prefix + b"away").put(task.id + number.to_bytes(4, "big"), _encode(put))
        return True

    def _send_away(self, topic: str) -> None:
        """Puts into other slots that ended with a task here. A second time the key they are put under is known there:
        their own, or one made of where they come from."""
        away = self._db.table(prefix_of(topic) + b"away")
        if len(away) == 0:
            return
        for row, content in away.rows():
            put = _put.decode(content)
            key = put.key if put.key is not None else b"\0" + topic.encode() + b"\0" + row
            self.put(put.topic, put.body, key=key, delay=put.delay)
            away.delete(row)

    def finish(self, topic: str, id_: bytes) -> bool:
        """Ends a task that nobody has pulled, as whoever put it and did it himself may. False: it is not there, or
        somebody has it, who will do it again."""
        ready = self._db.table(prefix_of(topic) + b"ready")
        content = ready.get(id_)
        if content is None:
            return False
        key = _stored.decode(content).key
        if key is not None:  # First, so that a kill behind this leaves a task too many, and none too few.
            self._db.table(prefix_of(topic) + b"keys").put(key, id_, ttl=self._key_ttl)
        done = ready.delete(id_)
        self._trim(topic, id_)
        return done

    def nak(self, task: Task, delay: float = 0) -> bool:
        """Gives the task back, to be given again after `delay` seconds, in its place. It counts as a try."""
        _check(task.topic, delay)
        return self._db.run(lambda t: self._give_back(t, task, delay))

    def _give_back(self, t: TransactionWriter, task: Task, delay: float) -> bool:
        prefix = prefix_of(task.topic)
        if not _holds(t, task):
            return False
        t.table(prefix + b"held").delete(_row(task))
        stored = _encode(_Stored(task.body, task.key, task.tries))
        if task.tries >= self._tries_max:
            t.table(prefix + b"dead").put(task.id, stored)
        elif delay > 0:
            t.table(prefix + b"held").put(_due(self._clock() + delay) + task.id, stored)
        else:
            t.table(prefix + b"ready").put(task.id, stored)
        t.put(prefix + b"next", t.get(prefix + b"next", task.id))  # Who waits shall look again.
        return True

    def extend(self, task: Task, lease: float = 30.0) -> Task | None:
        """The task with a lease that ends so many seconds from now; None: it was lost."""
        longer = msgspec.structs.replace(task, due=micros(self._clock() + lease))
        return self._db.run(lambda t: _move(t, task, longer))

    # --- looking ---

    def stats(self, topic: str) -> Backlog:
        prefix = prefix_of(topic)
        ready = self._db.table(prefix + b"ready")
        first = next(iter(ready.keys(limit=1)), None)
        age = 0.0 if first is None else max(0.0, self._clock() - seconds_of(first))
        return Backlog(
            len(ready), len(self._db.table(prefix + b"held")), len(self._db.table(prefix + b"dead")), round(age, 6)
        )

    def bodies(self, topic: str) -> list[bytes]:
        """Of all tasks that have not ended, dead ones apart."""
        prefix = prefix_of(topic)
        contents = [content for name in (b"ready", b"held") for _, content in self._db.table(prefix + name).rows()]
        return [_stored.decode(content).body for content in contents]

    def dead(self, topic: str, limit: int = 100) -> list[Task]:
        """Those that were given up, oldest first."""
        rows = self._db.table(prefix_of(topic) + b"dead").rows(limit=limit)
        return [_task(topic, id_, _stored.decode(content), 0) for id_, content in rows]

    def revive(self, task: Task) -> bool:
        """A dead task, with all its tries before it again."""
        return self._db.run(lambda t: self._revive(t, task))

    def _revive(self, t: TransactionWriter, task: Task) -> bool:
        prefix = prefix_of(task.topic)
        if task.id not in t.table(prefix + b"dead"):
            return False
        t.table(prefix + b"dead").delete(task.id)
        t.table(prefix + b"ready").put(task.id, _encode(_Stored(task.body, task.key)))
        t.put(prefix + b"next", t.get(prefix + b"next", task.id))
        return True

    def bury(self, task: Task) -> bool:
        """Forgets a dead task. Its key, if it has one, is remembered for key_ttl from now."""
        return self._db.run(lambda t: self._bury(t, task))

    def _bury(self, t: TransactionWriter, task: Task) -> bool:
        prefix = prefix_of(task.topic)
        if task.id not in t.table(prefix + b"dead"):
            return False
        t.table(prefix + b"dead").delete(task.id)
        if task.key is not None:
            t.table(prefix + b"keys").put(task.key, task.id, self._key_ttl)
        return True

    def _trim(self, topic: str, id_: bytes) -> None:
        """Nobody follows the changes of these tables, so what was deleted may be forgotten, now and then."""
        if int.from_bytes(id_) % TRIM_EVERY == 0:
            for name in (b"ready", b"held", b"away"):
                table: KeyTable = self._db.table(prefix_of(topic) + name)
                table.trim(table.version)


# --- rows ---


def tag_of(topic: str) -> str:
    """What the slot of a topic hangs on: its hash tag, as Redis has it, or the whole name."""
    start = topic.find("{") + 1
    stop = topic.find("}", start) if start else -1
    return topic[start:stop] if stop > start else topic


def prefix_of(topic: str) -> bytes:
    """What the keys of a topic begin with. A name without a tag is put in one; braces that are no tag are refused."""
    if not isinstance(topic, str) or not topic:
        raise UsageError(f"a topic is text, and not empty: not {shown(topic)}")
    tagged = tag_of(topic) != topic
    if not tagged and ("{" in topic or "}" in topic):
        raise UsageError(f"{shown(topic)} has braces that make no hash tag: leave them out")
    return f"q:{topic}:".encode() if tagged else f"q:{{{topic}}}:".encode()


def _check(topic: str, delay: float) -> bytes:
    if not isinstance(delay, int | float) or not delay >= 0:
        raise UsageError(f"delay is a number of seconds from 0 up, not {shown(delay)}")
    return prefix_of(topic)


def _due(moment: float) -> bytes:
    return micros(moment).to_bytes(ID_SIZE, "big")


def _row(task: Task) -> bytes:
    return task.due.to_bytes(ID_SIZE, "big") + task.id


def _task(topic: str, id_: bytes, stored: _Stored, due: int) -> Task:
    return Task(topic, id_, stored.body, stored.key, stored.tries, stored.worker, due)


def _holds(t: TransactionWriter, task: Task) -> bool:
    """Whether the task is still under this very lease: the same worker, the same giving."""
    content = t.table(prefix_of(task.topic) + b"held").get(_row(task))
    if content is None:
        return False
    stored = _stored.decode(content)
    return (stored.worker, stored.tries) == (task.worker, task.tries)


def _lease(t: TransactionWriter, topic: str, worker: str, found: list[tuple[bytes, bytes]], due: bytes) -> list[Task]:
    prefix = prefix_of(topic)
    ready, held = t.table(prefix + b"ready"), t.table(prefix + b"held")
    tasks = []
    for id_, content in found:
        if ready.get(id_) != content:
            continue
        before = _stored.decode(content)
        stored = _Stored(before.body, before.key, before.tries + 1, worker)
        ready.delete(id_)
        held.put(due + id_, _encode(stored))
        tasks.append(_task(topic, id_, stored, int.from_bytes(due)))
    return tasks


def _move(t: TransactionWriter, task: Task, longer: Task) -> Task | None:
    if not _holds(t, task):
        return None
    held = t.table(prefix_of(task.topic) + b"held")
    content = held[_row(task)]
    held.delete(_row(task))
    held.put(_row(longer), content)
    return longer
