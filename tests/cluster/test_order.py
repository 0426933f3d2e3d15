"""What a client sends without waiting takes effect in the order in which it was sent, whoever owns the keys by then."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import redis

from tests.cluster.conftest import Replicas, until

KEYS = [f"key:{number}" for number in range(12)]
DEEP, KILLS = 40, 6


@contextmanager
def owners_die(nodes: Replicas) -> Iterator[list[int]]:
    """All but the first, in turn, until the block ends. How often, so far."""
    kills: list[int] = []
    over = threading.Event()

    def run() -> None:
        while not over.is_set():
            victim = 2 + len(kills) % 2
            nodes.kill(victim)
            kills.append(victim)
            over.wait(0.15)
            nodes.start(victim)
            over.wait(0.6)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield kills
    finally:
        over.set()
        thread.join()


def test_appends_of_a_pipeline_are_in_order_through_kills(replicas: Callable[..., Replicas]) -> None:
    """Each was answered, so each is there, once, behind those before it."""
    nodes = replicas(3)
    until(nodes.served)
    client = nodes.client(1, socket_timeout=30)
    number = 0
    with owners_die(nodes) as kills:
        while len(kills) < KILLS:
            pipe = client.pipeline(transaction=False)
            for _ in range(DEEP):
                number += 1
                for key in KEYS:
                    pipe.append(key, f"{number},")
            pipe.execute()
    expected = "".join(f"{one}," for one in range(1, number + 1)).encode()
    for key in KEYS:
        assert client.get(key) == expected, key


def test_writes_of_all_kinds_are_in_order_through_kills(replicas: Callable[..., Replicas]) -> None:
    """Requests of one step and those over a draft, to one slot: each sees what those before it have done."""
    nodes = replicas(3)
    until(nodes.served)
    client = nodes.client(1, socket_timeout=30)
    answers: list[Any] = []
    with owners_die(nodes) as kills:
        while len(kills) < KILLS:
            pipe = client.pipeline(transaction=False)
            for key in KEYS:
                for number in range(DEEP // 4):
                    pipe.set(key, number)
                    pipe.incr(key)
                    pipe.set(key, "after", nx=True)
                    pipe.hset(f"{{{key}}}", "field", number)
                    pipe.getset(key, "gone")
                    pipe.delete(key)
                    pipe.setnx(key, 1)
            answers = pipe.execute()
            for at in range(0, len(answers), 7):
                number = at // 7 % (DEEP // 4)
                assert answers[at : at + 3] == [True, number + 1, None]
                assert answers[at + 4 : at + 7] == [b"%d" % (number + 1), 1, True]
    assert client.mget(KEYS) == [b"1"] * len(KEYS)


def test_a_deep_pipeline_to_one_key(replicas: Callable[..., Replicas]) -> None:
    """More than go together, wrong ones among them: each is answered for itself."""
    nodes = replicas(1)
    client = nodes.client(1)
    pipe = client.pipeline(transaction=False)
    for number in range(700):
        pipe.incr("count")
        pipe.set("word", number)
        if number % 100 == 7:
            pipe.execute_command("INCRBY", "count", "x")  # type: ignore[no-untyped-call]
        else:
            pipe.hset("hash", str(number), number)
        if number % 200 == 50:
            pipe.hset("count", "field", 1)
    answers = pipe.execute(raise_on_error=False)
    assert [answer for answer in answers if type(answer) is int and answer > 1] == list(range(2, 701))
    assert sum(isinstance(answer, redis.ResponseError) for answer in answers) == 7 + 4
    assert (client.get("word"), client.hlen("hash")) == (b"699", 693)
