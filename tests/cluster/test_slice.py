"""Replica processes and redis-py: what was acknowledged is there, whoever is asked, and whoever was killed."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import redis

from tests.cluster.conftest import Replicas


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("protocol", [2, 3])
def test_what_one_replica_takes_every_replica_gives(
    replicas: Callable[[int], Replicas], count: int, protocol: int
) -> None:
    nodes = replicas(count)
    clients = [nodes.client(id_, protocol=protocol) for id_ in nodes.ids]
    for number, writer in enumerate(clients):
        assert writer.set("key", f"by {number}")
        assert [reader.get("key") for reader in clients] == [f"by {number}".encode()] * count
        assert writer.incr("counter") == number + 1
    assert clients[0].delete("key") == 1
    assert [reader.get("key") for reader in clients] == [None] * count
    assert clients[0].append("text", "ab") == 2
    assert clients[0].strlen("text") == 2
    with pytest.raises(redis.ResponseError, match="not an integer"):
        clients[0].incr("text")
    with pytest.raises(redis.ResponseError, match="unknown command 'NONE'"):
        clients[0].execute_command("NONE")  # type: ignore[no-untyped-call]
    for client in clients:
        client.close()
    assert [nodes.stop(id_) for id_ in nodes.ids] == [0] * count


def test_commands_of_one_connection_are_in_order(replicas: Callable[[int], Replicas]) -> None:
    """Sent without waiting, reads among writes: each read sees the writes before it and none behind."""
    client = replicas(3).client(2)
    pipeline = client.pipeline(transaction=False)
    for number in range(200):
        pipeline.set("key", number)
        pipeline.get("key")
    answers = pipeline.execute()
    assert answers == [answer for number in range(200) for answer in (True, str(number).encode())]
    client.close()


def test_nothing_acknowledged_is_lost_when_a_replica_is_killed(replicas: Callable[[int], Replicas]) -> None:
    """Two clients, at two replicas, count and write on while the third is killed and comes back: no error, each
    addition once, and every key is at each replica afterwards."""
    nodes = replicas(3)
    written: list[bytes] = []
    added = [0, 0]
    failed: list[Exception] = []
    stop = threading.Event()

    def work(which: int) -> None:
        client = nodes.client(which + 1)
        try:
            while not stop.is_set():
                client.incr("counter")
                added[which] += 1
                key = b"%d:%d" % (which, added[which])
                client.set(key, key)
                written.append(key)
        except redis.RedisError as error:
            failed.append(error)
        client.close()

    threads = [threading.Thread(target=work, args=(which,)) for which in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        before = sum(added)
        while sum(added) < before + 20 and not failed:
            threading.Event().wait(0.01)
        nodes.kill(3)
        before = sum(added)
        while sum(added) < before + 20 and not failed:
            threading.Event().wait(0.01)
        nodes.start(3)
    stop.set()
    for thread in threads:
        thread.join()
    assert failed == []
    for id_ in nodes.ids:
        client = nodes.client(id_)
        assert client.get("counter") == str(sum(added)).encode()
        assert [client.get(key) for key in written] == written
        client.close()


def test_a_minority_answers_nothing_and_goes_on_when_there_is_a_majority(replicas: Callable[[int], Replicas]) -> None:
    nodes = replicas(3)
    client = nodes.client(1)
    assert client.set("key", "1")
    for id_ in (2, 3):
        nodes.pause(id_)
    with pytest.raises(redis.ResponseError, match="Hash slot not served"):
        client.get("key")
    for id_ in (2, 3):
        nodes.wake(id_)
    assert client.get("key") == b"1"
    client.close()


def test_all_are_killed_and_come_back(replicas: Callable[[int], Replicas]) -> None:
    nodes = replicas(3)
    client = nodes.client(1)
    for number in range(100):
        assert client.set(b"%d" % number, number)
    client.close()
    for id_ in nodes.ids:
        nodes.kill(id_)
    for id_ in nodes.ids:
        nodes.start(id_)
    client = nodes.client(2)
    assert [client.get(b"%d" % number) for number in range(100)] == [b"%d" % number for number in range(100)]
    client.close()
