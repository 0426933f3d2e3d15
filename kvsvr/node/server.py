"""One replica as a process: what C serves (native/src/server.c), wired to its peers, its log and its end."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
from collections.abc import Callable
from typing import Any

from kvsvr.errors import UsageError
from kvsvr.native import ServerHandle
from kvsvr.node.config import Address, ServerConfig
from kvsvr.node.links import Identity, Links

log = logging.getLogger("kvsvr")


def listen(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(1024)
    except OSError as error:
        listener.close()
        raise UsageError(f"{address[0]}:{address[1]} cannot be listened on: {error.strerror}") from None
    return listener


class Server:
    """A replica that serves until stop(). `run` returns then, or raises what ended it."""

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        listener = listen(config.client_address)
        listener.setblocking(False)
        self._events, writer = os.pipe()
        os.set_blocking(writer, False)
        self._writer = writer
        self._handle = ServerHandle(
            str(config.directory),
            node=config.node,
            members=sorted([config.node, *config.peers]),
            shard_count=config.shard_count,
            client_socket=listener.detach(),
            log_pipe=writer,
        )
        self._links: Links | None = None
        if config.peers:
            identity = Identity(config.node, config.set_name, config.secret)
            self._links = Links(identity, config.peers, listen(config.peer_address), self._handle.link)
        self._reader = threading.Thread(target=self._read_events, name="kvsvr-events", daemon=True)

    def run(self, ready: Callable[[], None]) -> None:
        """`ready` is called when clients are let in; what they ask waits until there is a set."""
        self._reader.start()
        ready()
        if self._links is not None:
            self._links.start()
        try:
            self._handle.run()
        finally:
            if self._links is not None:
                self._links.stop()
            os.close(self._writer)
            self._reader.join()
            self._handle.free()

    def stop(self) -> None:
        """Any thread, and signal handlers."""
        self._handle.stop()

    def _read_events(self) -> None:
        with os.fdopen(self._events, "rb") as lines:
            for line in lines:
                self._event(json.loads(line))

    def _event(self, event: dict[str, Any]) -> None:
        log.info("%s", json.dumps(event))
        if event["event"] == "link_down" and self._links is not None:
            self._links.lost(event["node"])
