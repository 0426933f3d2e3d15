"""Values whose bytes travel beside the vote: read at once, anywhere, by every kind of read."""

from __future__ import annotations

from collections.abc import Callable

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
