"""One replica as a process: what C serves (native/src/server.c), wired to its peers, its log and its end."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Final

from kvsvr.errors import UsageError
from kvsvr.native import ServerHandle
from kvsvr.node.config import Address, ServerConfig, text_of
from kvsvr.node.links import Identity, Links
from kvsvr.node.log import tell
from kvsvr.node.monitor import Monitor
from kvsvr.node.nodes import Nodes

WARNINGS: Final = ("link_down", "keeps_all", "too_many")


def listen(name: str, address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(1024)
    except OSError as error:
        listener.close()
        raise UsageError(
            f"{name}: {text_of(address)} cannot be listened on: {error.strerror}: end who does, or name another"
        ) from None
    return listener


class Server:
    """A replica that serves until stop(). `run` returns then, or raises what ended it."""

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self._nodes = Nodes(config)
        clients = listen("listen", config.client_address)
        clients.setblocking(False)
        peers = listen("peer_listen", config.peer_address) if not config.alone else None
        self._monitor = Monitor(config)
        self._events, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        try:
            self._handle = ServerHandle(
                str(config.directory),
                node=config.node,
                members=config.members,
                gone=sorted({*self._nodes.gone, *config.replaces}),
                shard_count=config.shard_count,
                client_socket=clients.detach(),
                log_pipe=self._writer,
                limits=asdict(config.limits),
                rules=asdict(config.rules),
                password=config.password,
                announce=text_of(config.client_address),
                data=config.durability == "data",
                inline_max=config.inline_max,
            )
        except BaseException as error:
            self._monitor.ended(error)
            raise
        if self._handle.replays_all:
            tell("replayed_all", logging.WARNING, why="a record or the checkpoint is damaged")
        self._nodes.keep()
        self._links: Links | None = None
        if peers is not None:
            identity = Identity(config.node, config.set_name, config.secret)
            self._links = Links(identity, config.peer_address, self._nodes, peers, self._handle.link, self._handle.part)
        self._reader = threading.Thread(target=self._read_events, name="kvsvr-events", daemon=True)

    def run(self, ready: Callable[[], None]) -> None:
        """`ready` is called when clients are let in; what they ask waits until there is a set."""
        self._reader.start()
        self._monitor.start(self._handle)
        ready()
        if self._links is not None:
            self._links.start()
        failure: BaseException | None = None
        try:
            self._handle.run()
        except BaseException as error:
            failure = error
            raise
        finally:
            if self._links is not None:
                self._links.stop()
            self._monitor.ended(failure)
            os.close(self._writer)
            self._reader.join()
            self._handle.free()

    def stop(self) -> None:
        """Shards are handed over, what is under way is answered; the second time: at once. For signal handlers, too."""
        self._monitor.stopping()
        self._handle.stop()

    def _read_events(self) -> None:
        with os.fdopen(self._events, "rb") as lines:
            for line in lines:
                self._event(json.loads(line))

    def _event(self, event: dict[str, Any]) -> None:
        name, peer = event.pop("event"), event.pop("node", None)
        fields = event if peer is None else {"peer": peer, **event}
        tell(name, logging.WARNING if name in WARNINGS else logging.INFO, **fields)
        if name == "parted":
            self._nodes.part(peer)
        if name in ("link_down", "parted") and self._links is not None:
            self._links.lost(peer)
