"""The queue: order, leases, once by key, sub-tasks, dead letters; and workers that are killed anywhere."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import kvsvr
from kvsvr.queue import Put, Queue, Roster, Task
from tests.services.conftest import Dying, Interposed, Killed, Turned

TOPIC = "mail"


@pytest.fixture
def queue(strict: kvsvr.Engine, clock: Turned) -> Queue:
    return Queue(strict, clock=clock, tries_max=3)


def bodies(tasks: list[Task]) -> list[bytes]:
    return [task.body for task in tasks]


def test_on_any_store(store: Any) -> None:
    """The whole life of tasks, on an embedded store and on a replica set."""
    queue = Queue(store, tries_max=2)
    ids = [queue.put("life", b"%d" % number) for number in range(3)]
    assert ids == sorted(ids)
    assert queue.put("life", b"once", key=b"k") == queue.put("life", b"again", key=b"k")
    first, second = queue.pull("life", "w", 2)
    assert bodies([first, second]) == [b"0", b"1"]
    assert queue.ack(first, then=[Put("life", b"near"), Put("far", b"far")])
    assert not queue.ack(first)
    assert queue.nak(second)
    assert bodies(queue.pull("life", "w", 9)) == [b"1", b"2", b"once", b"near"]
    far = queue.pull("far", "w")
    assert bodies(far) == [b"far"]
    assert queue.nak(far[0]) and queue.nak(queue.pull("far", "w")[0])
    assert bodies(queue.dead("far")) == [b"far"]
    assert queue.pull("far", "w") == []
    assert queue.revive(queue.dead("far")[0])
    again = queue.extend(queue.pull("far", "w", lease=1)[0], 60)
    assert again is not None and queue.ack(again)
    found = queue.stats("life")
    assert (found.ready, found.held, found.dead, found.age) == (0, 4, 0, 0)


def test_a_topic_is_ordered(queue: Queue, clock: Turned) -> None:
    """Also when the clock stands, or goes back; a task that comes back has its old place."""
    for number in range(5):
        queue.put(TOPIC, b"%d" % number)
        clock.turn(-1 if number == 2 else 0)
    first = queue.pull(TOPIC, "w")[0]
    queue.nak(first)
    assert bodies(queue.pull(TOPIC, "w", 9)) == [b"0", b"1", b"2", b"3", b"4"]


def test_ordered_gives_nothing_past_what_is_out(queue: Queue, clock: Turned) -> None:
    for number in range(4):
        queue.put(TOPIC, b"%d" % number)
    one, two = queue.pull(TOPIC, "a", 2, ordered=True)
    assert queue.pull(TOPIC, "b", 2, ordered=True) == []
    queue.ack(one)
    assert queue.pull(TOPIC, "b", 2, ordered=True) == []
    queue.nak(two, delay=5)
    assert queue.pull(TOPIC, "b", 2, ordered=True) == []
    clock.turn(6)
    assert bodies(queue.pull(TOPIC, "b", 9, ordered=True)) == [b"1", b"2", b"3"]


def test_a_lease_ends(queue: Queue, clock: Turned) -> None:
    """The task is given to another, and who had it can do nothing to it any more."""
    queue.put(TOPIC, b"x")
    old = queue.pull(TOPIC, "a", lease=10)[0]
    assert queue.pull(TOPIC, "b") == []
    clock.turn(10.1)
    new = queue.pull(TOPIC, "b", lease=10)[0]
    assert (new.id, new.tries) == (old.id, 2)
    assert not queue.ack(old)
    assert not queue.nak(old)
    assert queue.extend(old) is None
    assert queue.ack(new)
    assert queue.stats(TOPIC) == queue.stats("nothing")


def test_the_same_worker_again_is_another_giving(queue: Queue, clock: Turned) -> None:
    """Under one name and to the same microsecond: tries tell them apart."""
    queue.put(TOPIC, b"x")
    old = queue.pull(TOPIC, "a", lease=10)[0]
    clock.turn(11)
    new = queue.pull(TOPIC, "a", lease=10)[0]
    clock.turn(-11)
    moved = queue.extend(new, 10)
    assert moved is not None and moved.due == old.due
    assert not queue.ack(old)
    assert queue.ack(moved)


def test_extend(queue: Queue, clock: Turned) -> None:
    queue.put(TOPIC, b"x")
    task: Task | None = queue.pull(TOPIC, "a", lease=10)[0]
    for _ in range(5):
        clock.turn(8)
        assert task is not None
        task = queue.extend(task, 10)
        assert queue.pull(TOPIC, "b") == []
    assert task is not None and queue.ack(task)


def test_delay(queue: Queue, clock: Turned) -> None:
    queue.put(TOPIC, b"late", delay=5)
    queue.put(TOPIC, b"now")
    assert bodies(queue.pull(TOPIC, "w", 9)) == [b"now"]
    clock.turn(5.1)
    assert bodies(queue.pull(TOPIC, "w", 9)) == [b"late"]


def test_once_by_key(queue: Queue, clock: Turned, strict: kvsvr.Engine) -> None:
    """While it waits, while it is out, and for a day behind its end; a key is of one topic."""
    first = queue.put(TOPIC, b"x", key=b"k")
    assert queue.put(TOPIC, b"y", key=b"k") == first
    task = queue.pull(TOPIC, "w")[0]
    assert queue.put(TOPIC, b"y", key=b"k") == first
    assert queue.ack(task)
    assert queue.put(TOPIC, b"y", key=b"k") == first
    assert queue.pull(TOPIC, "w", 9) == []
    queue.put("other", b"y", key=b"k")
    assert bodies(queue.pull("other", "w", 9)) == [b"y"]
    left = strict.table(b"q:{mail}:keys").get_versioned(b"k")
    assert left is not None and left.expires_at is not None


def test_tried_too_often(queue: Queue, clock: Turned) -> None:
    """By nak or by leases that end: three times, then it is dead, and nothing is behind it that waits."""
    queue.put(TOPIC, b"bad")
    queue.put(TOPIC, b"good")
    for _ in range(2):
        queue.nak(queue.pull(TOPIC, "w")[0])
    queue.pull(TOPIC, "w", lease=1)
    clock.turn(2)
    assert bodies(queue.pull(TOPIC, "w", 9)) == [b"good"]
    dead = queue.dead(TOPIC)
    assert [(task.body, task.tries) for task in dead] == [(b"bad", 3)]
    assert queue.bury(dead[0]) and not queue.bury(dead[0]) and not queue.revive(dead[0])


def test_stats(queue: Queue, clock: Turned) -> None:
    for _ in range(3):
        queue.put(TOPIC, b"")
        clock.turn(2)
    queue.pull(TOPIC, "w")
    found = queue.stats(TOPIC)
    assert (found.ready, found.held, found.dead, found.age) == (2, 1, 0, 4.0)


def test_finish_of_what_nobody_has(queue: Queue) -> None:
    id_ = queue.put(TOPIC, b"x", key=b"k")
    assert queue.finish(TOPIC, id_) and not queue.finish(TOPIC, id_)
    assert queue.put(TOPIC, b"x", key=b"k") == id_
    id_ = queue.put(TOPIC, b"y")
    queue.pull(TOPIC, "w")
    assert not queue.finish(TOPIC, id_)


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("at", range(1, 9))
def test_a_kill_at_each_write(strict: kvsvr.Engine, clock: Turned, at: int, before: bool) -> None:
    """A task that ends with others here and elsewhere: after a kill at any write, when a worker goes on, each of them
    was queued exactly once."""
    Queue(strict, clock=clock).put(TOPIC, b"first", key=b"k")
    killed: Any = Dying(strict, at, before=before)
    dying = Queue(killed, clock=clock)
    try:
        for task in dying.pull(TOPIC, "w"):
            dying.ack(task, then=[Put(TOPIC, b"near"), Put("far", b"far"), Put("far", b"keyed", b"own")])
    except Killed:
        clock.turn(60)
    queue = Queue(strict, clock=clock)
    seen: Counter[bytes] = Counter()
    for _ in range(3):
        for topic in (TOPIC, "far"):
            for task in queue.pull(topic, "v", 9):
                seen[task.body] += 1
                follow = [Put(TOPIC, b"near"), Put("far", b"far"), Put("far", b"keyed", b"own")]
                assert queue.ack(task, then=follow if task.body == b"first" else [])
    seen.pop(b"first", None)
    assert seen == {b"near": 1, b"far": 1, b"keyed": 1}


def test_a_pull_waits(strict: kvsvr.Engine) -> None:
    """For a put, and for the end of another's lease, and no longer."""
    queue = Queue(strict)
    threading.Timer(0.2, lambda: queue.put(TOPIC, b"x")).start()
    began = time.monotonic()
    task = queue.pull(TOPIC, "w", lease=0.3, wait=10)[0]
    assert 0.1 < time.monotonic() - began < 5
    again = queue.pull(TOPIC, "v", wait=10)[0]
    assert (again.id, again.tries) == (task.id, 2)
    assert time.monotonic() - began < 5
    assert queue.pull(TOPIC, "w", wait=0.05) == []


def test_many_workers(strict: kvsvr.Engine) -> None:
    """Each task is acknowledged once, whoever pulls; and what two workers do meanwhile loses nothing."""
    queue, done, lock = Queue(strict), Counter[bytes](), threading.Lock()
    for number in range(200):
        queue.put(TOPIC, b"%d" % number)

    def work(name: str) -> None:
        while tasks := queue.pull(TOPIC, name, 7):
            for task in tasks:
                assert queue.ack(task)
                with lock:
                    done[task.body] += 1

    workers = [threading.Thread(target=work, args=(f"w{number}",)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert done == {b"%d" % number: 1 for number in range(200)}
    assert queue.stats(TOPIC) == queue.stats("nothing")


def _work_until_killed(path: Path, pipe: Any) -> None:
    with kvsvr.open(path, sync="none", slots="strict") as db:
        queue = Queue(db)
        number = 0
        while True:
            number += 1
            queue.put(TOPIC, b"%d" % number, key=b"%d" % number)
            for task in queue.pull(TOPIC, "w", 3, lease=0.001):
                if queue.ack(task, then=[Put("done", task.body)]):
                    pipe.send(int(task.body))


def test_processes_that_are_killed(path: Path) -> None:
    """kill -9 in the middle: what was acknowledged has its sub-task, once, and what was put is there or was done."""
    method = multiprocessing.get_context("spawn")
    here, there = method.Pipe(duplex=False)
    process = method.Process(target=_work_until_killed, args=(path, there))
    process.start()
    told = [here.recv() for _ in range(50)]
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    there.close()
    with kvsvr.open(path, sync="none", slots="strict") as db:
        queue = Queue(db)
        time.sleep(0.01)
        for task in queue.pull(TOPIC, "v", 9999):
            queue.ack(task, then=[Put("done", task.body)])
        seen = Counter(int(task.body) for task in queue.pull("done", "v", 99_999))
    assert set(told) <= set(seen)
    assert set(seen.values()) == {1}
    assert set(seen) == set(range(1, max(seen) + 1))


@pytest.mark.parametrize("topic", ["", "a}b", "a{b", "{}", None])
def test_topics_that_are_none(queue: Queue, topic: Any) -> None:
    with pytest.raises(kvsvr.UsageError):
        queue.put(topic, b"x")


def test_a_topic_in_a_slot_of_others(strict: kvsvr.Engine) -> None:
    """A task is there if and only if what it was put with is."""
    queue = Queue(strict)
    with strict.transaction() as t:
        t.put(b"{u/ann}:account", b"x")
        queue.put_into(t, "{u/ann}out", b"task")
    with pytest.raises(ZeroDivisionError), strict.transaction() as t:
        queue.put_into(t, "{u/ann}out", b"never")
        _ = 1 // 0
    with pytest.raises(kvsvr.UsageError, match="slot"), strict.transaction() as t:
        t.put(b"{u/bob}:account", b"x")
        queue.put_into(t, "{u/ann}out", b"never")
    assert bodies(queue.pull("{u/ann}out", "w", 9)) == [b"task"]


def test_the_roster(strict: kvsvr.Engine, clock: Turned) -> None:
    """A topic stays for a minute behind its last entry, whoever looks; then it leaves, if it is empty."""
    queue = Queue(strict, clock=clock)
    roster = Roster(strict, queue, "test", clock=clock)
    done: list[bytes] = []
    roster.enter("{u/ann}out")
    assert roster.round(lambda task: done.append(task.body), "w") == 0
    queue.put("{u/ann}out", b"1")
    queue.put("{u/ann}out", b"2")
    assert roster.round(lambda task: done.append(task.body), "w", limit=1) == 1
    clock.turn(61)
    assert roster.round(lambda task: done.append(task.body), "w") == 1
    assert done == [b"1", b"2"]
    assert roster.round(lambda task: None, "w") == 0
    queue.put("{u/ann}out", b"3")
    assert roster.round(lambda task: None, "w") == 0, "it has left, and nobody entered it again"
    roster.ring("{u/ann}out")
    assert roster.round(lambda task: None, "w") == 1


def test_entered_again_while_it_is_taken_out(strict: kvsvr.Engine, clock: Turned) -> None:
    """Between the last look and the delete: it stays."""
    queue = Queue(strict, clock=clock)
    roster = Roster(strict, queue, "test", clock=clock)
    roster.enter("{u/ann}out")
    clock.turn(61)
    db: Any = Interposed(strict, "delete", b"{roster/test}", lambda: roster.ring("{u/ann}out"), behind=False)
    assert Roster(db, queue, "test", clock=clock).round(lambda task: None, "w") == 0
    queue.put("{u/ann}out", b"x")
    assert roster.round(lambda task: None, "w") == 1


def test_who_has_just_entered_writes_nothing(strict: kvsvr.Engine, clock: Turned) -> None:
    """And has half a minute left at least, whoever entered before."""
    queue = Queue(strict, clock=clock)
    roster = Roster(strict, queue, "test", clock=clock)
    roster.enter("{u/ann}out")
    version = roster.wait(0, 0)
    clock.turn(29)
    roster.enter("{u/ann}out")
    assert roster.wait(0, 0) == version
    clock.turn(2)
    roster.enter("{u/ann}out")
    clock.turn(30)
    assert roster.round(lambda task: None, "w") == 0
    queue.put("{u/ann}out", b"x")
    assert roster.round(lambda task: None, "w") == 1


def test_a_handler_that_raises(strict: kvsvr.Engine, clock: Turned) -> None:
    """What it was given comes again, and the topic stays in the roster."""
    queue = Queue(strict, clock=clock)
    roster = Roster(strict, queue, "test", clock=clock)
    roster.enter("{u/ann}out")
    clock.turn(61)
    for body in (b"good", b"bad", b"after"):
        queue.put("{u/ann}out", body)
    done: list[bytes] = []

    def handle(task: Task) -> None:
        if task.body == b"bad" and task.tries == 1:
            raise OSError("no")
        done.append(task.body)

    with pytest.raises(OSError, match="no"):
        roster.round(handle, "w")
    assert roster.round(handle, "w") == 0
    clock.turn(2)
    assert roster.round(handle, "w") == 2
    assert done == [b"good", b"bad", b"after"]


def test_a_task_that_cannot_be_done(strict: kvsvr.Engine, clock: Turned) -> None:
    """Is reported each time, is in nobody's way, and is dead in the end."""
    queue = Queue(strict, clock=clock, tries_max=3)
    roster = Roster(strict, queue, "test", clock=clock)
    told: list[tuple[bytes, str]] = []
    for topic, body in (("{u/ann}out", b"bad"), ("{u/bob}out", b"good")):
        roster.enter(topic)
        queue.put(topic, body)

    def handle(task: Task) -> None:
        if task.body == b"bad":
            raise OSError("no")

    for count in (1, 0, 0):
        assert roster.round(handle, "w", report=lambda task, error: told.append((task.body, str(error)))) == count
        clock.turn(2)
    assert told == [(b"bad", "no")] * 3
    assert [task.body for task in queue.dead("{u/ann}out")] == [b"bad"]


def test_a_worker_in_a_thread(strict: kvsvr.Engine) -> None:
    """It wakes when something is entered, and ends when it is told to."""
    queue = Queue(strict)
    roster = Roster(strict, queue, "test")
    done, stop = threading.Event(), threading.Event()
    worker = threading.Thread(target=roster.work, args=(lambda task: done.set(), "w", stop.is_set, print))
    worker.start()
    queue.put("{u/ann}out", b"x")
    roster.ring("{u/ann}out")
    assert done.wait(10)
    stop.set()
    worker.join(10)
    assert not worker.is_alive()


def test_what_cannot_arrive_is_refused_before_the_end(queue: Queue) -> None:
    """A sub-task that is none leaves the task as it was."""
    queue.put(TOPIC, b"x")
    task = queue.pull(TOPIC, "w")[0]
    for bad in (Put("a{b", b""), Put("far", b"", delay=-1)):
        with pytest.raises(kvsvr.UsageError):
            queue.ack(task, then=[bad])
    assert queue.ack(task)
