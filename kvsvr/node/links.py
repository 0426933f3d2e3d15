"""Connections between replicas: who dials whom, and how both sides know whom they talk to.

Of two replicas the one with the higher id dials, so there is one connection for both directions. What goes over it is
C's affair (native/src/link.c); here is what comes before: both prove that they know the secret of the set, without
saying it, and tell each other which replicas there are.

    acceptor -> dialer      MAGIC, nonce (32)
    dialer   -> acceptor    node (2), nonce (32), HMAC-SHA256(secret, "dial", set, both nonces, both nodes)
    acceptor -> dialer      HMAC-SHA256(secret, "take", set, both nonces, both nodes)
    dialer   -> acceptor    size (4), JSON: {"at": where it listens for others, "addresses": {...}, "gone": [...]}
    acceptor -> dialer      the same

Who came later than the set was made is known to nobody: it dials those that its settings name, being the one with the
highest id, and whoever knows the secret is one of ours, unless it was told to be gone. So nobody else's settings have
to change. A connection of somebody who says nothing, or something else, is closed after HANDSHAKE_S.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import json
import logging
import os
import random
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from kvsvr.node.config import Address, address, text_of
from kvsvr.node.log import tell
from kvsvr.node.nodes import Nodes

MAGIC: Final = b"kvsvr/2\n"
NONCE_SIZE: Final = 32
PROOF_SIZE: Final = 32
HANDSHAKE_S: Final = 2.0
TOLD_SIZE_MAX: Final = 1 << 16
DIAL_S: Final = (0.02, 0.25)
"""The first pause between two attempts, and the longest: who comes back is of no use to those that have not dialled."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Of one replica, in one set."""

    node: int
    set_name: str
    secret: bytes

    def proof(self, role: bytes, nonces: bytes, dialer: int, acceptor: int) -> bytes:
        text = b"\0".join([role, self.set_name.encode(), nonces, struct.pack("<HH", dialer, acceptor)])
        return hmac.new(self.secret, text, hashlib.sha256).digest()


class Refused(Exception):
    """The other side is none of ours."""


def _receive(connection: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = connection.recv(size - len(parts))
        if not part:
            raise Refused("it closed the connection")
        parts += part
    return bytes(parts)


def accept(connection: socket.socket, identity: Identity, nodes: Nodes) -> int:
    """The node at the other end of a connection that was accepted."""
    ours = os.urandom(NONCE_SIZE)
    connection.sendall(MAGIC + ours)
    said = _receive(connection, 2 + NONCE_SIZE + PROOF_SIZE)
    node = int(struct.unpack_from("<H", said)[0])
    nonces = ours + said[2 : 2 + NONCE_SIZE]
    if not hmac.compare_digest(said[-PROOF_SIZE:], identity.proof(b"dial", nonces, node, identity.node)):
        raise Refused("it does not know the secret of this set, or is of another")
    if node == identity.node or nodes.is_gone(node):
        raise Refused(f"it says that it is node {node}, which is {'this one' if node == identity.node else 'gone'}")
    connection.sendall(identity.proof(b"take", nonces, node, identity.node))
    return node


def greet(connection: socket.socket, identity: Identity, node: int) -> None:
    """The other side of it, for who dialled `node`."""
    said = _receive(connection, len(MAGIC) + NONCE_SIZE)
    if not said.startswith(MAGIC):
        raise Refused("it is no replica, or one of another version")
    ours = os.urandom(NONCE_SIZE)
    nonces = said[len(MAGIC) :] + ours
    connection.sendall(struct.pack("<H", identity.node) + ours + identity.proof(b"dial", nonces, identity.node, node))
    if not hmac.compare_digest(_receive(connection, PROOF_SIZE), identity.proof(b"take", nonces, identity.node, node)):
        raise Refused("it does not know the secret of this set")


def say(connection: socket.socket, at: Address, nodes: Nodes) -> None:
    told = json.dumps({"at": text_of(at), **json.loads(nodes.tell())}).encode()
    connection.sendall(struct.pack("<I", len(told)) + told)


def hear(connection: socket.socket) -> tuple[Address, bytes]:
    """Where the other one listens, and what it tells of others. One that listens everywhere is where it came from."""
    size = struct.unpack("<I", _receive(connection, 4))[0]
    if size > TOLD_SIZE_MAX:
        raise Refused(f"it tells {size} bytes of nodes")
    told = _receive(connection, size)
    try:
        at = address(json.loads(told)["at"])
    except (ValueError, TypeError, KeyError):
        raise Refused("it does not say where it listens") from None
    if at[0] in ("0.0.0.0", "::"):
        at = (str(connection.getpeername()[0]), at[1])
    return at, told


class Links:
    """Keeps a connection to every replica it knows: dials those with a lower id, takes in those with a higher one."""

    def __init__(
        self,
        identity: Identity,
        at: Address,
        nodes: Nodes,
        listener: socket.socket,
        hand_over: Callable[[int, int], None],
        part: Callable[[int], None],
    ) -> None:
        """`hand_over(node, descriptor)` takes a connection that is proven; the descriptor is its own from then on.
        `part` hears of nodes that are gone."""
        self._identity = identity
        self._at = at
        self._nodes = nodes
        self._listener = listener
        self._hand_over = hand_over
        self._part = part
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._down: dict[int, threading.Event] = {}
        """By node that is dialled."""
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        self._run(self._accept_all, "kvsvr-accept")
        for node in self._nodes.gone:
            self._part(node)
        self._dial_all()

    def lost(self, node: int) -> None:
        """The connection to it is gone: whoever dials it dials again."""
        with self._lock:
            event = self._down.get(node)
        if event is not None:
            event.set()

    def stop(self) -> None:
        self._stopping.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            events, threads = list(self._down.values()), list(self._threads)
        for event in events:
            event.set()
        for thread in threads:
            thread.join(timeout=HANDSHAKE_S * 2)

    def _run(self, work: Callable[[], None], name: str) -> None:
        thread = threading.Thread(target=work, name=name, daemon=True)
        with self._lock:
            self._threads.append(thread)
        thread.start()

    def _dial_all(self) -> None:
        """Those of a lower id that nobody dials yet."""
        with self._lock:
            fresh = [node for node in self._nodes.addresses() if node < self._identity.node and node not in self._down]
            for node in fresh:
                self._down[node] = threading.Event()
                self._down[node].set()
        for node in fresh:
            self._run(functools.partial(self._dial_on, node), f"kvsvr-dial-{node}")

    def _learn(self, node: int, at: Address, told: bytes) -> None:
        try:
            gone = self._nodes.hear(told)
        except ValueError as error:
            raise Refused(str(error)) from None
        self._nodes.met(node, at)
        for other in gone:
            self._part(other)
        self._dial_all()

    def _accept_all(self) -> None:
        while not self._stopping.is_set():
            try:
                connection, where = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._take_in, args=(connection, where), daemon=True).start()

    def _take_in(self, connection: socket.socket, where: Address) -> None:
        try:
            connection.settimeout(HANDSHAKE_S)
            node = accept(connection, self._identity, self._nodes)
            at, told = hear(connection)
            say(connection, self._at, self._nodes)
            self._learn(node, at, told)
            self._give(node, connection)
        except (OSError, Refused) as error:
            connection.close()
            if not self._stopping.is_set():
                tell("refused", logging.WARNING, address=text_of((where[0], where[1])), why=str(error))

    def _dial_on(self, node: int) -> None:
        pause = DIAL_S[0]
        while True:
            self._down[node].wait()
            if self._stopping.is_set() or self._nodes.is_gone(node):
                return
            if self._dial(node, self._nodes.addresses().get(node)):
                pause = DIAL_S[0]
                continue
            self._stopping.wait(pause * random.uniform(0.5, 1.0))
            pause = min(pause * 2, DIAL_S[1])

    def _dial(self, node: int, where: Address | None) -> bool:
        connection = None
        if where is None:
            return False
        try:
            connection = socket.create_connection(where, timeout=HANDSHAKE_S)
            greet(connection, self._identity, node)
            say(connection, self._at, self._nodes)
            at, told = hear(connection)
            self._learn(node, at, told)
            self._down[node].clear()
            self._give(node, connection)
        except (OSError, Refused) as error:
            if connection is not None:
                connection.close()
            if isinstance(error, Refused):
                tell("refuses", logging.WARNING, peer=node, address=text_of(where), why=str(error))
            return False
        return True

    def _give(self, node: int, connection: socket.socket) -> None:
        connection.settimeout(None)
        connection.setblocking(False)
        self._hand_over(node, connection.detach())
