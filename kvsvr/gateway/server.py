"""A gateway that runs: uvicorn around the app, workers for what is left in outboxes, and a stop that loses nothing.

`serve` comes back when the gateway has stopped: it takes no more connections, tells those that wait, lets requests that
are being done end, for `stop_s` at most, and gives the store back, which is its caller's to close.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import uvicorn

from kvsvr.errors import KvError
from kvsvr.gateway.app import app_of
from kvsvr.gateway.desk import Desk, Wait
from kvsvr.gateway.limits import Limits
from kvsvr.gateway.tickets import Tickets
from kvsvr.services.messaging import Messaging
from kvsvr.services.queue import Task

LOG: Final = logging.getLogger("kvsvr.gateway")
PAUSE_S: Final = 1.0
"""Of a worker whose store could not answer."""


class _Server(uvicorn.Server):
    """Tells the desk first: sockets and streams end by themselves, and uvicorn waits for them."""

    def __init__(self, config: uvicorn.Config, desk: Desk) -> None:
        super().__init__(config)
        self._desk = desk

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # Signals are for whoever calls serve().

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._desk.stopping.set()
        await super().shutdown(sockets)


async def serve(
    chat: Messaging,
    wait: Wait,
    tickets: Tickets,
    listener: socket.socket,
    *,
    limits: Limits,
    login: bool = False,
    page: bool = False,
    ready: Callable[[Callable[[], None]], None] = lambda stop: None,
) -> None:
    """Until the stop that `ready` is given, as soon as connections are taken, is called, in the loop's thread.

    `wait` is that of the store's `aio`, if it is to take no threads.
    """
    desk = Desk(chat, wait, tickets, limits, login=login)
    server = _Server(_config(desk, limits, page=page), desk)

    def stop() -> None:
        server.force_exit = server.should_exit  # The second time.
        server.should_exit = True

    stopping = threading.Event()
    worker = threading.Thread(target=_work, args=(chat, stopping), name="kvsvr-worker")
    worker.start()
    try:
        ready(stop)
        await server.serve([listener])
    finally:
        stopping.set()
        desk.stopping.set()
        await asyncio.to_thread(worker.join)
        await asyncio.to_thread(desk.close)


def _config(desk: Desk, limits: Limits, *, page: bool) -> uvicorn.Config:
    return uvicorn.Config(
        app_of(desk, page=page),
        ws="websockets-sansio",
        ws_max_size=limits.body_size_max,
        ws_ping_interval=None,  # Browsers cannot see those; `beat` is for all.
        lifespan="off",
        log_config=None,
        access_log=False,  # Event streams have tickets in their addresses.
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=max(1, round(limits.stop_s)),
    )


def _work(chat: Messaging, stopping: threading.Event) -> None:
    """Does what others have left in outboxes; a store that cannot answer now is asked again."""
    name = f"gateway-{secrets.token_hex(4)}"
    while not stopping.is_set():
        try:
            chat.work(name, stopping.is_set, _report)
        except KvError as error:
            LOG.warning("the worker has trouble, and goes on: %s", error)
            stopping.wait(PAUSE_S)


def _report(task: Task, error: Exception) -> None:
    LOG.warning("a task of %s cannot be done now, and will be tried again: %s", task.topic, error)


def on_signals(stop: Callable[[], None]) -> None:
    """SIGTERM and Ctrl-C stop; the second one waits for nobody."""
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop)


def listening(host: str, port: int) -> socket.socket:
    """A port that is taken is said before anything else is done. 0: any that is free."""
    return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=1024)
