"""Replicas know whom they talk to before a byte of the protocol is exchanged, and who cannot prove it is sent away."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from kvsvr.node.config import Address, load
from kvsvr.node.links import HANDSHAKE_S, MAGIC, NONCE_SIZE, Identity, Links, Refused, accept, greet, hear, say
from kvsvr.node.nodes import Nodes

SECRET = b"0123456789abcdef"
PEERS: dict[int, Address] = {2: ("h", 1), 3: ("h", 1)}


def nodes_of(directory: Path, node: int, peers: dict[int, Address]) -> Nodes:
    said = ",".join(f"{other}={host}:{port}" for other, (host, port) in peers.items())
    flags = {"id": node, "dir": str(directory), "peers": said, "members": "1,2,3"}
    directory.mkdir(exist_ok=True)
    return Nodes(load(None, {}, flags))


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair()
    for one in (left, right):
        one.settimeout(5)
    with closing(left), closing(right):
        yield left, right


def meet(
    pair: tuple[socket.socket, socket.socket], nodes: Nodes, dialer: Identity, acceptor: Identity, node: int
) -> list[object]:
    """What came of it at the dialer, who wants `node`, and at the acceptor, who knows `nodes`."""
    found: list[object] = [None, None]

    def take() -> None:
        try:
            found[1] = accept(pair[1], acceptor, nodes)
        except (OSError, Refused) as error:
            found[1] = error
            pair[1].close()

    thread = threading.Thread(target=take)
    thread.start()
    try:
        greet(pair[0], dialer, node)
    except (OSError, Refused) as error:
        found[0] = error
        pair[0].close()
    thread.join()
    return found


def test_both_prove_that_they_know_the_secret(pair: tuple[socket.socket, socket.socket], tmp_path: Path) -> None:
    """Also one of whom nobody has told: who knows the secret may come."""
    nodes = nodes_of(tmp_path, 1, PEERS)
    assert meet(pair, nodes, Identity(3, "s", SECRET), Identity(1, "s", SECRET), 1) == [None, 3]
    assert meet(pair, nodes, Identity(9, "s", SECRET), Identity(1, "s", SECRET), 1) == [None, 9]


@pytest.mark.parametrize(
    ("dialer", "node", "words"),
    [
        (Identity(3, "s", b"another secret!!"), 1, "secret"),
        (Identity(3, "t", SECRET), 1, "of another"),
        (Identity(4, "s", SECRET), 1, "node 4, which is gone"),
        (Identity(1, "s", SECRET), 1, "node 1, which is this one"),
        (Identity(3, "s", SECRET), 2, "secret"),  # It was to be 2 that is there.
    ],
)
def test_who_is_none_of_ours_is_refused(
    pair: tuple[socket.socket, socket.socket], dialer: Identity, node: int, words: str, tmp_path: Path
) -> None:
    nodes = nodes_of(tmp_path, 1, PEERS)
    nodes.part(4)
    at_dialer, at_acceptor = meet(pair, nodes, dialer, Identity(1, "s", SECRET), node)
    assert isinstance(at_dialer, Refused | OSError)
    assert isinstance(at_acceptor, Refused)
    assert words in str(at_acceptor)


def test_an_acceptor_that_does_not_know_the_secret_is_refused(pair: tuple[socket.socket, socket.socket]) -> None:
    """It says yes to everybody, without a proof of its own."""

    def take() -> None:
        pair[1].sendall(MAGIC + os.urandom(NONCE_SIZE))
        pair[1].recv(1000)
        pair[1].sendall(bytes(32))

    thread = threading.Thread(target=take)
    thread.start()
    with pytest.raises(Refused, match="secret"):
        greet(pair[0], Identity(3, "s", SECRET), 1)
    thread.join()


def test_what_is_no_replica_is_refused(pair: tuple[socket.socket, socket.socket]) -> None:
    pair[1].sendall(b"+OK\r\n" * 20)
    with pytest.raises(Refused, match="no replica"):
        greet(pair[0], Identity(3, "s", SECRET), 1)


def test_who_says_nothing_is_let_go_and_others_get_through_meanwhile(tmp_path: Path) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    where = listener.getsockname()
    handed: list[tuple[int, int]] = []
    came = threading.Event()

    def hand_over(node: int, descriptor: int) -> None:
        handed.append((node, descriptor))
        came.set()

    nodes = nodes_of(tmp_path, 1, PEERS)
    links = Links(Identity(1, "s", SECRET), ("h", 7), nodes, listener, hand_over, lambda _: None)
    links.start()
    with socket.create_connection(where) as silent, socket.create_connection(where) as dialer:
        silent.settimeout(HANDSHAKE_S * 5)
        dialer.settimeout(5)
        greet(dialer, Identity(2, "s", SECRET), 1)
        say(dialer, ("h", 2), nodes)
        assert hear(dialer)[0] == ("h", 7)
        assert came.wait(5)
        assert silent.recv(1000).startswith(MAGIC)
        assert silent.recv(1000) == b""
    assert [node for node, _ in handed] == [2]
    os.close(handed[0][1])
    links.stop()


def test_a_lost_connection_is_dialled_again(tmp_path: Path) -> None:
    below, above = socket.create_server(("127.0.0.1", 0)), socket.create_server(("127.0.0.1", 0))
    handed: list[tuple[int, int]] = []
    one, two = (
        Links(
            Identity(node, "s", SECRET),
            listener.getsockname(),
            nodes_of(tmp_path / str(node), node, {3 - node: other.getsockname()}),
            listener,
            lambda node, fd: handed.append((node, fd)),
            lambda _: None,
        )
        for node, listener, other in ((1, below, above), (2, above, below))
    )
    one.start()
    two.start()
    for rounds in (1, 2):
        end = time.monotonic() + 20
        while len(handed) < 2 * rounds and time.monotonic() < end:
            time.sleep(0.01)
        assert sorted(node for node, _ in handed) == sorted([1, 2] * rounds)
        if rounds == 1:
            two.lost(1)
    two.stop()
    one.stop()
    for _, descriptor in handed:
        os.close(descriptor)


def test_who_came_later_is_told_of_whoever_came_meanwhile(tmp_path: Path) -> None:
    """4 knows 1 alone, and learns of 3 by it; that 2 is gone everybody hears from who knows it."""
    listeners = {node: socket.create_server(("127.0.0.1", 0)) for node in (1, 3, 4)}
    at: dict[int, Address] = {node: listener.getsockname() for node, listener in listeners.items()}
    peers: dict[int, dict[int, Address]] = {1: {2: ("h", 1), 3: at[3]}, 3: {1: at[1], 2: ("h", 1)}, 4: {1: at[1]}}
    nodes = {node: nodes_of(tmp_path / str(node), node, peers[node]) for node in (1, 3, 4)}
    nodes[1].part(2)
    handed: set[tuple[int, int]] = set()
    parted: set[tuple[int, int]] = set()
    descriptors: list[int] = []

    def links(node: int) -> Links:
        def hand_over(other: int, descriptor: int) -> None:
            descriptors.append(descriptor)
            handed.add((node, other))

        identity = Identity(node, "s", SECRET)
        return Links(identity, at[node], nodes[node], listeners[node], hand_over, lambda gone: parted.add((node, gone)))

    all_links = [links(node) for node in (1, 3, 4)]
    for one in all_links:
        one.start()
    pairs = {(node, other) for node in (1, 3, 4) for other in (1, 3, 4) if node != other}
    end = time.monotonic() + 20
    while (handed != pairs or len(parted) < 3) and time.monotonic() < end:
        time.sleep(0.01)
    assert handed == pairs
    assert parted == {(1, 2), (3, 2), (4, 2)}
    for one in all_links:
        one.stop()
    for descriptor in descriptors:
        os.close(descriptor)
