"""Values whose bytes travel beside the vote: read at once, anywhere, by every kind of read."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import redis

from tests.cluster.conftest import Replicas, until


def test_large_values_at_once_and_elsewhere(replicas: Callable[..., Replicas]) -> None:
    """A replica that has the version and not yet the bytes sends for them, and answers then."""
    nodes = replicas(3)
    until(nodes.served)
    clients = [nodes.client(id_) for id_ in nodes.ids]
    for number in range(6):
        key, row, value = f"key:{number}", f"row:{number}", bytes([number]) * 1_000_000
        clients[0].set(key, value)
        clients[0].hset("{table}", row, value)
        for client in clients[::-1]:
            assert client.execute_command("KV.LOOK", key)[3] == value  # type: ignore[no-untyped-call]
            assert client.hget("{table}", row) == value
            assert client.getrange(key, 0, 2) == value[:3]
    for client in clients:
        client.close()


COUNT, SIZE = 60, 500_000


def written_at_once(client: redis.Redis) -> dict[str, bytes]:
    """More than the bulk lane moves before somebody asks."""
    values = {f"key:{number}": bytes([number]) * SIZE for number in range(COUNT)}
    client.mset(values)
    return values


def last_page(client: redis.Redis) -> tuple[bytes, bytes]:
    _, name, value = client.execute_command("KV.PAGE", "KEYS", "", "[key:99", 1, 1, 1)  # type: ignore[no-untyped-call]
    return name, value


def test_a_read_waits_for_bytes_that_are_on_their_way(replicas: Callable[..., Replicas]) -> None:
    """Whatever reads: a part of a value, rows one by one, all of them, a page of keys."""
    nodes = replicas(3)
    until(nodes.served)
    for _ in range(4):
        values = written_at_once(nodes.client(1))
        other = nodes.client(3)
        last = "key:9"
        assert other.getrange(last, 0, 2) == values[last][:3]
        assert last_page(other) == (last.encode(), values[last])
        assert all(value == values[key] for key, value in zip(values, other.mget(list(values)), strict=True))
        rows = dict(list(values.items())[:50])
        nodes.client(1).hset("{table}", mapping=rows)  # type: ignore[arg-type]
        assert other.hgetall("{table}") == {row.encode(): value for row, value in rows.items()}
        assert other.delete("{table}", *values) == COUNT + 1


def test_with_data_a_majority_has_the_bytes(replicas: Callable[..., Replicas]) -> None:
    """Whoever wrote them may be gone the moment they were acknowledged."""
    nodes = replicas(3, "--durability=data", "--shards=1")
    until(nodes.served)
    owner = next(id_ for id_ in nodes.ids if (report := nodes.report(id_)) and report.figures["shards_owned"])
    client, other = nodes.client(owner), nodes.client(owner % 3 + 1)
    values = written_at_once(client)
    nodes.kill(owner)
    assert all(other.get(key) == value for key, value in values.items())


@pytest.mark.parametrize("inline_max", ["0", "10", "1MiB"])
def test_values_above_the_inline_size_travel_beside_the_vote(
    replicas: Callable[..., Replicas], inline_max: str
) -> None:
    """All of them, some, none: what is read is the same, also after a kill."""
    nodes = replicas(3, f"--inline-max={inline_max}")
    until(nodes.served)
    client = nodes.client(1)
    values = {f"key:{number}": b"x" * number for number in (0, 1, 10, 11, 5000)}
    for key, value in values.items():
        client.set(key, value)
        client.hset("hash", key, value)
    client.incr("count", 5)
    client.append("key:11", "y")
    values["key:11"] += b"y"
    nodes.kill(2)
    nodes.start(2)
    until(nodes.served)
    for id_ in nodes.ids:
        other = nodes.client(id_)
        assert [other.get(key) for key in values] == list(values.values())
        assert other.incrbyfloat("count", 0.5) == 5 + 0.5 * id_
        assert other.hget("hash", "key:10") == b"x" * 10
