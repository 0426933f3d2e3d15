"""`kvsvr replace`: a member's place is taken by another one, under load from several client processes, and nothing
acknowledged is lost, done twice, or read when it is old (work.py)."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from kvsvr.ops.place import free_base
from tests.cluster.clients import Clients, at_work
from tests.cluster.conftest import Replicas, until
from tests.cluster.test_launch import LONG_S, Set

BUSY_S = 1.0


class Replaced(Set):
    """A set whose ids are not 1, 2, 3 any more."""

    def ports(self) -> dict[int, int]:
        return {one["id"]: int(one["address"].rpartition(":")[2]) for one in self.status()["replicas"]}

    def one(self, node: int) -> dict[str, Any]:
        return next(one for one in self.status()["replicas"] if one["id"] == node)

    def data(self, node: int) -> Path:
        return self.directory / str(node) / "data"

    def is_healthy(self) -> bool:
        return bool(self.status()["state"] == "healthy")

    def replace(self, node: int, *arguments: object, code: int = 0) -> int:
        """The id of the new one."""
        said = self.run("replace", node, "--json", *arguments, code=code)
        return int(json.loads(said)["new"]) if code == 0 else 0

    def wrong(self, clients: Clients) -> list[str]:
        found = []
        for node in self.ports():
            with self.client_of(node) as client:
                found += [f"replica {node}: {text}" for text in clients.judge(client)]
        return found

    def client_of(self, node: int) -> redis.Redis:
        return redis.Redis(port=self.ports()[node], socket_timeout=10)


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Replaced]:
    one = Replaced(tmp_path / "set", free_base(3))
    yield one
    if one.directory.exists():
        one.run("stop")


def lose(nodes: Replaced, node: int) -> None:
    """Its process and all its data, as with a machine. It is started, the others refuse it, and it is given up. Bytes
    that were written with durability `version` a moment ago may be there alone, so they are waited for."""
    for other in (1, 3):
        with nodes.client_of(other) as client:
            until(lambda client=client: client.execute_command("KV.MEMBER", "MISSING")[0] == 0)  # type: ignore[misc]
    shutil.rmtree(nodes.data(node))
    os.kill(nodes.pid(node), signal.SIGKILL)
    until(lambda: bool(nodes.one(node)["given_up"]), LONG_S)
    assert "wiped or set back" in nodes.one(node)["error"]


def nothing(nodes: Replaced, node: int) -> None:
    """It is well, and to go."""


def fill(nodes: Replaced) -> dict[bytes, bytes]:
    """More than fits into one message, and values that go by digest, some of them written at the one that is to go."""
    held = {b"large:%d" % number: b"%d" % number * (2_000 if number % 2 else 30_000) for number in range(600)}
    for node in (1, 2):
        with nodes.client(node) as client:
            pipeline = client.pipeline(transaction=False)
            for key, value in list(held.items())[node - 1 :: 2]:
                pipeline.set(key, value)
            assert all(pipeline.execute())
    return held


def lost(nodes: Replaced, node: int, held: dict[bytes, bytes]) -> list[str]:
    with nodes.client_of(node) as client:
        return [f"{key!r} is not there" for key, value in held.items() if client.get(key) != value]


@pytest.mark.parametrize("before", [lose, nothing])
def test_a_member_is_replaced_while_clients_work(
    nodes: Replaced, before: Callable[[Replaced, int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Afterwards the new one counts: with another one stopped the two that are left have everything, and so have all
    after a restart. Then the next one is replaced."""
    nodes.launch("--port", nodes.base)
    began = time.monotonic()
    large = fill(nodes)
    with at_work(list(nodes.ports().values())) as clients:
        time.sleep(BUSY_S)
        before(nodes, 2)
        assert nodes.replace(2) == 4
        took = time.monotonic() - began
        assert (nodes.ports()[4] == nodes.base + 1) == (before is lose)  # Where nobody listens clients find it again.
        time.sleep(BUSY_S)
    until(nodes.is_healthy, LONG_S)
    assert set(nodes.ports()) == {1, 3, 4}
    wrong = nodes.wrong(clients) + lost(nodes, 4, large)
    with capsys.disabled():
        print(f"\n{before.__name__}: {clients.told()}; replaced within {took:.1f} s: {len(wrong)} wrong")
    assert wrong == []
    os.kill(nodes.pid(1), signal.SIGSTOP)
    with nodes.client_of(4) as client:
        assert clients.judge(client) == []
        assert client.set("with", "two")
    os.kill(nodes.pid(1), signal.SIGCONT)
    nodes.run("stop")
    assert nodes.launch()["state"] == "healthy"
    assert nodes.wrong(clients) == []
    assert nodes.replace(1) == 5
    until(nodes.is_healthy, LONG_S)
    assert set(nodes.ports()) == {3, 4, 5}
    assert nodes.wrong(clients) + lost(nodes, 5, large) == []
    nodes.run("kill", 3)
    with nodes.client_of(5) as client:
        assert client.get("with") == b"two"


def test_a_replacement_that_was_broken_off_is_gone_on_with(nodes: Replaced) -> None:
    nodes.launch("--port", nodes.base)
    with nodes.client(1) as client:
        assert all(client.set(f"key:{number}", number) for number in range(100))
    nodes.replace(3, "--wait", 0, code=1)
    assert nodes.one(3)["leaving"] and set(nodes.ports()) == {1, 2, 3, 4}
    nodes.run("stop")
    nodes.run("launch", "--detach")
    assert nodes.one(3)["state"] == "stopped"
    assert nodes.replace(3) == 4
    until(nodes.is_healthy, LONG_S)
    assert set(nodes.ports()) == {1, 2, 4}
    with nodes.client_of(4) as client:
        assert [client.get(f"key:{number}") for number in range(100)] == [b"%d" % number for number in range(100)]


def test_what_cannot_be_replaced_is_said(nodes: Replaced) -> None:
    nodes.replace(1, code=2)  # There is no set.
    nodes.launch("--port", nodes.base, "--replicas", 1)
    nodes.replace(2, code=2)
    nodes.replace(1, code=2)
    nodes.run("stop")
    nodes.replace(1, code=2)


def test_on_several_machines_the_new_one_is_started_by_hand(replicas: Callable[..., Replicas]) -> None:
    """Settings of the others are as they were; whoever was away hears of it when it comes back."""
    nodes = replicas(3)
    until(nodes.served)
    with nodes.client(1) as client:
        assert all(client.set(f"key:{number}", number) for number in range(100))
    nodes.kill(3)
    nodes.join(4, "--members=1,2,3", "--replaces=3", but=3)
    at = f"127.0.0.1:{nodes.ports[1]}"
    assert nodes.command("replace", 3, "--by", 4, "--at", at) == 0
    assert nodes.command("replace", 3, "--by", 9, "--at", at) == 2
    assert nodes.command("replace", 1, "--by", 2, "--at", at) == 1  # It would leave two members.
    assert nodes.command("replace", 7, "--by", 3, "--at", at) == 2
    until(lambda: nodes.figure(4, "shards_voting") == 64)
    for id_ in (1, 2):
        nodes.kill(id_)
        nodes.start(id_)
        until(nodes.served)
    with nodes.client(4) as client:
        assert [client.get(f"key:{number}") for number in range(100)] == [b"%d" % number for number in range(100)]
    nodes.start(3)  # With its disk: it is well, and nobody speaks with it any more.
    until(lambda: any(event["event"] == "refused" and "gone" in event["why"] for event in nodes.events(1)))


@pytest.mark.parametrize("how", ["wiped", "set back"])
def test_a_disk_that_went_backwards_is_refused(replicas: Callable[..., Replicas], how: str) -> None:
    nodes = replicas(3)
    until(nodes.served)
    data, image = nodes.directory / "2", nodes.directory / "image"
    with nodes.client(1) as client:
        assert client.set("key", "before")
        assert nodes.stop(2) == 0
        shutil.copytree(data, image)
        nodes.start(2)
        until(nodes.served)
        assert all(client.set(f"key:{number}", number) for number in range(100))
        until(lambda: nodes.figure(2, "shards_owned") > 0)
        nodes.kill(2)
        shutil.rmtree(data)
        if how == "set back":
            image.rename(data)
        nodes.start(2)
        assert nodes.wait(2) == 4
        assert "wiped or set back" in (nodes.directory / "2.log").read_text()
        assert client.get("key:99") == b"99"
