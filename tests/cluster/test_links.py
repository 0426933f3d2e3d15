"""Connections between replicas end: with their process, or alone."""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.cluster.conftest import Replicas, until

Start = Callable[..., Replicas]
HEARD_S = 0.1
"""In which those that are connected have told each other."""
REPORT_S = 1.5
"""In which a replica has said how it is."""


def takeovers(nodes: Replicas) -> int:
    return sum(nodes.figure(id_, "takeovers") for id_ in nodes.ids)


def linked(nodes: Replicas) -> bool:
    return all(nodes.figure(id_, "links") == len(nodes.ids) - 1 for id_ in nodes.ids)


def settled(nodes: Replicas) -> bool:
    """Each shard is with the one that should have it, which takes a moment after a start."""
    owned = [nodes.figure(id_, "shards_owned") for id_ in nodes.ids]
    return nodes.served() and linked(nodes) and min(owned) > 0


def round_of_cuts(nodes: Replicas) -> int:
    """How many takeovers it costs that each connection is cut once."""
    until(lambda: settled(nodes))
    time.sleep(REPORT_S)
    before = takeovers(nodes)
    for wire in nodes.wires.values():
        down, up = count(nodes, "link_down"), count(nodes, "link_up")
        wire.cut()
        until(lambda down=down: count(nodes, "link_down") == down + 2)  # type: ignore[misc]
        until(lambda up=up: count(nodes, "link_up") == up + 2)  # type: ignore[misc]
        time.sleep(HEARD_S)
    with nodes.client(1) as client:
        assert all(client.set(f"key:{number}", number) for number in range(100))
    time.sleep(REPORT_S)
    return takeovers(nodes) - before


def count(nodes: Replicas, name: str) -> int:
    """Of these events in all logs."""
    return sum(event["event"] == name for id_ in nodes.ids for event in nodes.events(id_))


def test_a_connection_that_breaks_costs_no_ownership(replicas: Start) -> None:
    """The third one still hears both. A busy machine may cost some by itself, so one round of several is enough."""
    nodes = replicas(3, wired=True)
    assert any(round_of_cuts(nodes) == 0 for _ in range(5))


def test_a_process_that_ends_is_noticed_before_it_has_been_silent(replicas: Start) -> None:
    """Its connections end with it. Whoever only waited for silence would wait for longer than a command may take."""
    nodes = replicas(3, "--silence-ms=8000")
    until(lambda: nodes.served() and linked(nodes))
    victim = max(nodes.ids, key=lambda id_: nodes.figure(id_, "shards_owned"))
    nodes.kill(victim)
    with nodes.client(victim % 3 + 1) as client:
        assert all(client.set(f"key:{number}", number) for number in range(200))
