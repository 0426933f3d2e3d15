"""What is written through a client of ours happens once, whatever dies meanwhile."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import redis

import kvsvr
from kvsvr.client.words import single
from kvsvr.testing import ReplicaSet
from tests.cluster.conftest import Replicas, until

SECONDS = float(os.environ.get("KVSVR_ONCE_SECONDS", "8"))
WORKERS = 4


class Counting(threading.Thread):
    """One of a kind writes to each of its names, so it knows what it must be told: the sums of a counter are 1, 2, 3
    and on, a cas at the version that the last one gave never meets another, the rows of a table are as many as were
    appended, and a batch finds what the one before has left."""

    def __init__(self, remote: Any, name: bytes, stop: threading.Event) -> None:
        super().__init__()
        self.name_of = name
        self.count = 0
        self.longest = 0.0
        self._register = 0
        self.failure: Exception | None = None
        self._remote = remote
        self._stopping = stop

    def run(self) -> None:
        try:
            while not self._stopping.is_set():
                self.count += 1
                for step in (self._add, self._compare, self._append, self._batch):
                    began = time.monotonic()
                    step()
                    self.longest = max(self.longest, time.monotonic() - began)
        except Exception as error:
            self.failure = error

    def _add(self) -> None:
        found = self._remote.incr(self.name_of)
        assert found == self.count, f"{self.name_of!r} is {found}, not {self.count}"

    def _compare(self) -> None:
        self._register = self._remote.cas(b"register of " + self.name_of, b"%d" % self.count, self._register)

    def _append(self) -> None:
        self._remote.table(b"rows of " + self.name_of).append(b"%d" % self.count)

    def _batch(self) -> None:
        tag = b"{batch of " + self.name_of + b"}"
        with self._remote.transaction() as t:
            before = int(t.get(tag, b"0"))
            t.put(tag, b"%d" % self.count)
            t.table(tag + b"rows").put(b"%d" % self.count, b"")
        assert before == self.count - 1, f"{tag!r} was {before}, not {self.count - 1}"

    def judge(self) -> None:
        """What is there now."""
        name, numbers = self.name_of, [b"%d" % number for number in range(1, self.count + 1)]
        assert self.failure is None
        assert self.count > 0
        assert self._remote.get_many([name, b"register of " + name]) == [numbers[-1]] * 2
        assert [value for _, value in self._remote.table(b"rows of " + name).rows()] == numbers
        assert sorted(self._remote.table(b"{batch of " + name + b"}rows")) == sorted(numbers)


def test_counters_while_owners_are_killed(replicas: Callable[..., Replicas]) -> None:
    """kill -9, one replica after the other: no addition is lost, none made twice, and no caller hears of it."""
    nodes = replicas(3)
    until(nodes.served)
    stop = threading.Event()
    addresses = [f"127.0.0.1:{port}" for port in nodes.ports.values()]
    with kvsvr.connect(addresses, timeout=20) as remote:
        workers = [Counting(remote, b"counter:%d" % number, stop) for number in range(WORKERS)]
        for worker in workers:
            worker.start()
        kill_count, end = 0, time.monotonic() + SECONDS
        while time.monotonic() < end:
            id_ = kill_count % 3 + 1
            time.sleep(0.4)
            nodes.kill(id_)
            kill_count += 1
            time.sleep(0.4)
            nodes.start(id_)
            until(nodes.served)
        stop.set()
        for worker in workers:
            worker.join()
        for worker in workers:
            worker.judge()
        longest = max(worker.longest for worker in workers)
        print(f"{4 * sum(w.count for w in workers)} writes, {kill_count} kills, longest {longest * 1000:.0f} ms")


def test_one_replica_that_is_killed(kvsvr_set: Callable[[int], ReplicaSet]) -> None:
    """It comes back with what its lanes were told."""
    nodes, stop = kvsvr_set(1), threading.Event()
    with nodes.connect(timeout=30) as remote:
        worker = Counting(remote, b"counter", stop)
        worker.start()
        for _ in range(2):
            time.sleep(0.5)
            nodes.kill(1)
            time.sleep(1)
        stop.set()
        worker.join()
        worker.judge()


def once(connection: Any, number: int, *words: Any, lane: int = 1, seen: int = 0, flags: int = 0) -> Any:
    return connection.execute_command("KV.ONCE", 77, lane, number, seen, flags, *words)


def test_the_same_request_again(replicas: Callable[..., Replicas]) -> None:
    """Through any replica it gets the first answer; an older number gets UNKNOWN."""
    nodes = replicas(3)
    until(nodes.served)
    clients = [nodes.client(id_) for id_ in nodes.ids]
    words = single("INCR", b"n", argument=5)
    first = once(clients[0], 1, *words)
    assert first[1] == 5
    assert [once(client, 1, *words, flags=1)[:2] for client in clients] == [first[:2]] * 3
    assert once(clients[1], 2, *words)[1] == 10
    with pytest.raises(redis.ResponseError, match=r"^UNKNOWN"):
        once(clients[2], 1, *words, flags=1)
    assert clients[2].get("n") == b"10"
    failed = single("CAS", b"n", value=b"0")
    for client in clients:
        with pytest.raises(redis.ResponseError, match=r"^CONFLICT it is at version"):
            once(client, 3, *failed, flags=1)
    clients[0].delete("n")
    with pytest.raises(redis.ResponseError, match=r"^CONFLICT"):  # It was answered, and stays so.
        once(clients[0], 3, *failed, flags=1)
    for client in clients:
        client.close()


def test_lanes_that_were_forgotten(replicas: Callable[..., Replicas]) -> None:
    """More lanes than a shard remembers: who is new is told what to have seen, and who asks again UNKNOWN."""
    nodes = replicas(1)
    until(nodes.served)
    with nodes.client(1) as client:
        answers: list[Any] = []
        for first in (0, 600, 1200):
            pipe = client.pipeline(transaction=False)
            for lane in range(first, first + 600):
                pipe.execute_command("KV.ONCE", 78, lane, 1, 0, 0, *single("INCR", b"n", argument=1))
            answers += pipe.execute(raise_on_error=False)
        refused = [one for one in answers if isinstance(one, Exception)]
        assert refused and all(str(one).startswith("SEEN ") for one in refused)
        assert int(client.get("n") or 0) == len(answers) - len(refused)
        with pytest.raises(redis.ResponseError, match=r"^UNKNOWN"):
            client.execute_command("KV.ONCE", 78, 0, 1, 0, 1, *single("INCR", b"n", argument=1))
        with kvsvr.connect(f"127.0.0.1:{nodes.ports[1]}") as remote:
            before = int(remote[b"n"])
            assert [remote.incr(b"n"), remote.incr(b"n")] == [before + 1, before + 2]


@pytest.mark.parametrize(
    "words",
    [
        ("x", 1, 1, 0, 0, *single("INCR", b"n")),
        (0, 1, 1, 0, 0, *single("INCR", b"n")),
        (1, 1, 0, 0, 0, *single("INCR", b"n")),
        (1, 1 << 32, 1, 0, 0, *single("INCR", b"n")),
        (1, 1, 1, 0, 4, *single("INCR", b"n")),
        (1, 1, 1, -1, 0, *single("INCR", b"n")),
        (1, 1, 1, 0, 0, *single("NONSENSE", b"n")),
        (1, 1, 1, 0, 0, *single("INCR", b"")),
        (1, 1, 1, 0, 0, *single("INCR", b"n")[:-1]),
        (1, 1, 1, 0, 0, "BATCH", "PUT"),
        (1, 1, 1, 0, 0, "BATCH", "NONSENSE", b"", b"k", b"", 0),
        (1, 1, 1, 0, 0, "BATCH", "EXPECT", b"", b"k", b"", -1),
        (1, 1, 1, 0, 0, "BATCH", "EXPECT", b"", b"", b"", 1),
    ],
)
def test_words_that_make_no_request(set_of: Callable[[int], ReplicaSet], words: tuple[Any, ...]) -> None:
    """They are refused, and nothing is done."""
    host, port = set_of(1).addresses[0].split(":")
    with redis.Redis(host, int(port)) as client, pytest.raises(redis.ResponseError):
        client.execute_command("KV.ONCE", *words)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("KV.LOOK", "k", "r", "x"), "wrong number"),
        (("KV.LOOK", "k", "r"), "wrong kind"),
        (("KV.PAGE", "KEYS", "k", "", 1, 1, 0), "syntax"),
        (("KV.PAGE", "KEYS", "", "", "x", 1, 0), "not an integer"),
        (("TBL.PAGE", "k", "", "", 1, 1, 0), "wrong kind"),
        (("TBL.CHANGES", "k", 0, 0, 1), "wrong kind"),
        (("TBL.CHANGES", "t", 0, "x", 1), "not an integer"),
        (("KV.WAIT", "k", -1, 0), "not an integer"),
        (("KV.WAIT", "k", 0, "x"), "not an integer"),
    ],
)
def test_reads_that_are_none(set_of: Callable[[int], ReplicaSet], words: tuple[Any, ...], error: str) -> None:
    """Each is answered once, so the next command gets its own answer."""
    host, port = set_of(1).addresses[0].split(":")
    with redis.Redis(host, int(port)) as client:
        client.set("k", "v")
        pipe = client.pipeline(transaction=False)
        pipe.execute_command(*words)
        pipe.echo("next")
        answers = pipe.execute(raise_on_error=False)
    assert error in str(answers[0])
    assert answers[1] == b"next"
