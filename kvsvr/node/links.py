"""Connections between replicas: who dials whom, and how both sides know whom they talk to.

Of two replicas the one with the higher id dials, so there is one connection for both directions. What goes over it is
C's affair (native/src/link.c); here is what comes before: both prove that they know the secret of the set, without
saying it.

    acceptor -> dialer      MAGIC, nonce (32)
    dialer   -> acceptor    node (2), nonce (32), HMAC-SHA256(secret, "dial", set, both nonces, both nodes)
    acceptor -> dialer      HMAC-SHA256(secret, "take", set, both nonces, both nodes)

A connection of somebody who says nothing, or something else, is closed after HANDSHAKE_S.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import random
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from kvsvr.node.config import Address, text_of
from kvsvr.node.log import tell

MAGIC: Final = b"kvsvr/1\n"
NONCE_SIZE: Final = 32
PROOF_SIZE: Final = 32
HANDSHAKE_S: Final = 2.0
DIAL_S: Final = (0.02, 1.0)
"""The first pause between two attempts, and the longest."""


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


def accept(connection: socket.socket, identity: Identity, peers: Mapping[int, Address]) -> int:
    """The node at the other end of a connection that was accepted."""
    ours = os.urandom(NONCE_SIZE)
    connection.sendall(MAGIC + ours)
    said = _receive(connection, 2 + NONCE_SIZE + PROOF_SIZE)
    node = int(struct.unpack_from("<H", said)[0])
    nonces = ours + said[2 : 2 + NONCE_SIZE]
    if not hmac.compare_digest(said[-PROOF_SIZE:], identity.proof(b"dial", nonces, node, identity.node)):
        raise Refused("it does not know the secret of this set, or is of another")
    if node not in peers:
        raise Refused(f"it says that it is node {node}, which is no member")
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


class Links:
    """Keeps a connection to every peer: dials those with a lower id, takes in those with a higher one."""

    def __init__(
        self,
        identity: Identity,
        peers: Mapping[int, Address],
        listener: socket.socket,
        hand_over: Callable[[int, int], None],
    ) -> None:
        """`hand_over(node, descriptor)` takes a connection that is proven; the descriptor is its own from then on."""
        self._identity = identity
        self._peers = dict(peers)
        self._listener = listener
        self._hand_over = hand_over
        self._stopping = threading.Event()
        self._down = {node: threading.Event() for node in peers if node < identity.node}
        self._threads = [threading.Thread(target=self._accept_all, name="kvsvr-accept", daemon=True)]
        for node, event in self._down.items():
            event.set()
            self._threads.append(
                threading.Thread(target=self._dial_on, args=(node,), name=f"kvsvr-dial-{node}", daemon=True)
            )

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def lost(self, node: int) -> None:
        """The connection to it is gone: whoever dials it dials again."""
        if node in self._down:
            self._down[node].set()

    def stop(self) -> None:
        self._stopping.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for event in self._down.values():
            event.set()
        for thread in self._threads:
            thread.join(timeout=HANDSHAKE_S * 2)

    def _accept_all(self) -> None:
        while not self._stopping.is_set():
            try:
                connection, address = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._take_in, args=(connection, address), daemon=True).start()

    def _take_in(self, connection: socket.socket, address: Address) -> None:
        try:
            connection.settimeout(HANDSHAKE_S)
            self._give(accept(connection, self._identity, self._peers), connection)
        except (OSError, Refused) as error:
            connection.close()
            if not self._stopping.is_set():
                tell("refused", logging.WARNING, address=text_of((address[0], address[1])), why=str(error))

    def _dial_on(self, node: int) -> None:
        pause = DIAL_S[0]
        while True:
            self._down[node].wait()
            if self._stopping.is_set():
                return
            if self._dial(node):
                pause = DIAL_S[0]
                continue
            self._stopping.wait(pause * random.uniform(0.5, 1.0))
            pause = min(pause * 2, DIAL_S[1])

    def _dial(self, node: int) -> bool:
        connection = None
        try:
            connection = socket.create_connection(self._peers[node], timeout=HANDSHAKE_S)
            greet(connection, self._identity, node)
            self._down[node].clear()
            self._give(node, connection)
        except (OSError, Refused) as error:
            if connection is not None:
                connection.close()
            if isinstance(error, Refused):
                where = text_of(self._peers[node])
                tell("refuses", logging.WARNING, peer=node, address=where, why=str(error))
            return False
        return True

    def _give(self, node: int, connection: socket.socket) -> None:
        connection.settimeout(None)
        connection.setblocking(False)
        self._hand_over(node, connection.detach())
