"""All that a client of ours asks, and Redis' commands beside it, while replicas are stopped and started in turn: short,
and meant to be run with sanitizers, too (`make sanitized`, see tests/cluster/sanitized.py)."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis

import kvsvr
from kvsvr.errors import KvError
from tests.cluster import sanitized
from tests.cluster.conftest import Replicas, until

ROUNDS = 2


def session(db: Any, name: bytes, round_: int) -> None:
    """What KV.ONCE, KV.LOOK, KV.PAGE, KV.WAIT, TBL.CHANGES and their like are for, once each."""
    key, table = b"{%s}key" % name, db.table(b"{%s}table" % name)
    version = db.put(key, b"value", ttl=1000.0)
    assert db.cas(key, b"other" * 3000, version=version) > version
    assert db.incr(b"{%s}count" % name) == round_ + 1
    db.append(b"{%s}long" % name, b"x" * 300)
    with db.batch() as batch:
        batch.put(b"{%s}left" % name, b"1")
        batch.put(b"{%s}right" % name, b"2" * 5000)
        batch.delete(key)
    db.put_many((b"%s:%d" % (name, number), b"v" * number) for number in range(40))
    assert len(list(db.keys(prefix=b"%s:" % name))) == 40
    table.put_many((b"row:%d" % number, b"r" * number) for number in range(40))
    table.append(b"appended")
    assert table.get(b"row:3") == b"rrr"
    assert len(list(table.rows(limit=10))) == 10
    changes = table.changes(0)
    table.delete(b"row:3")
    table.trim(changes.version)
    db.wait(key, 0, timeout=0.01)
    db.expire(b"{%s}count" % name, 5000.0)
    db.delete_many(b"%s:%d" % (name, number) for number in range(40))
    table.drop()


def commands(client: Any, name: str) -> None:
    client.hset(f"{name}h", mapping={f"f{number}": "v" * number for number in range(50)})
    client.rename(f"{name}h", f"{{{name}h}}2")
    client.copy(f"{{{name}h}}2", f"{name}h")
    pipe = client.pipeline(transaction=False)
    for number in range(100):
        pipe.incr(f"{name}n").set(f"{name}{number}", "x" * number).getset(f"{name}n", 0)
    pipe.execute()
    client.pipeline().set(name, 1).incr(name).publish("news", name).execute()
    client.mset({f"{name}{number}": number for number in range(60)})
    client.delete(*(f"{name}{number}" for number in range(60)))
    assert client.randomkey() is not None
    assert client.hrandfield(f"{name}h", -5)
    assert len(list(client.scan_iter(match=f"{name}*"))) > 0
    client.execute_command("CLUSTER", "NODES")


def test_all_of_it_while_replicas_leave_and_come_back(replicas: Callable[..., Replicas]) -> None:
    nodes = replicas(3, "--inline-max=1KiB")
    until(nodes.served)
    if sanitized.BUILD is not None:
        library = sanitized.environment()["LD_PRELOAD"]  # type: ignore[index]
        assert Path(library).resolve().name in Path(f"/proc/{nodes.pid(1)}/maps").read_text()
    addresses = ",".join(f"127.0.0.1:{port}" for port in nodes.ports.values())
    over, failed = threading.Event(), list[BaseException]()

    def work(which: int) -> None:
        try:
            with kvsvr.connect(addresses, timeout=60.0) as db:
                for round_ in itertools.count():
                    session(db, b"s%d" % which, round_)
                    if over.is_set():
                        return
        except (KvError, AssertionError) as error:
            failed.append(error)

    def talk(id_: int) -> None:
        """At one that stays; what it passes on goes to those that leave."""
        try:
            with nodes.client(id_, socket_timeout=60) as client:
                while not over.is_set():
                    commands(client, f"c{id_}")
        except (redis.RedisError, AssertionError) as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(which,)) for which in range(2)]
    threads.append(threading.Thread(target=talk, args=(1,)))
    listener = nodes.client(1).pubsub()  # type: ignore[no-untyped-call]
    listener.psubscribe("n*")
    for thread in threads:
        thread.start()
    for _ in range(ROUNDS):
        for id_ in (2, 3):
            assert nodes.stop(id_) == 0
            nodes.start(id_)
            until(nodes.served)
    over.set()
    for thread in threads:
        thread.join()
    listener.close()
    assert not failed, failed
    assert [nodes.stop(id_) for id_ in nodes.ids] == [0, 0, 0]
