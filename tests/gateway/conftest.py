"""Gateways in threads of this process, each with an event loop and a port of its own, and clients of either kind."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx
import pytest
from websockets.sync.client import ClientConnection, connect

import kvsvr
from kvsvr.gateway.limits import Limits
from kvsvr.gateway.server import listening, serve
from kvsvr.gateway.tickets import Tickets
from kvsvr.services.messaging import Messaging

SECRET: Final = b"a secret of the tests"
WAIT_S: Final = 20.0


class Gateway:
    """`db` is whatever has get, put and `aio.wait`; closing the gateway leaves it open."""

    def __init__(self, db: Any, *, limits: Limits, login: bool, page: bool, local: bool, port: int) -> None:
        self.tickets = Tickets([SECRET])
        self.chat = Messaging(db, local=local)
        if local:
            # A worker would have nothing to do, and a stop waits for it for up to a second.
            self.chat.work = _no_work  # type: ignore[method-assign]
        # Much of a call of httpx.post() is certificates, which nobody looks at here.
        self.http = httpx.Client(verify=False, trust_env=False, timeout=WAIT_S)
        self._listener = listening("127.0.0.1", port)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.http.base_url = httpx.URL(f"http://{self.address}")
        self._stop: Callable[[], None] = lambda: None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(db, limits, login, page), daemon=True)
        self._thread.start()
        assert self._ready.wait(WAIT_S)

    def _run(self, db: Any, limits: Limits, login: bool, page: bool) -> None:
        def ready(stop: Callable[[], None]) -> None:
            self._stop, self._loop = stop, asyncio.get_running_loop()
            self._ready.set()

        asyncio.run(
            serve(
                self.chat, db.aio.wait, self.tickets, self._listener, limits=limits, login=login, page=page, ready=ready
            )
        )

    def close(self) -> None:
        assert self._loop is not None
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop)
            self._thread.join(WAIT_S)
        assert not self._thread.is_alive()
        self.http.close()

    def ticket(self, user: str, seconds: float = 60) -> str:
        return self.tickets.issue(user, seconds)

    def ask(
        self, user: str, call: str, /, *, device: str = "phone", ticket: str | None = None, **fields: Any
    ) -> dict[str, Any]:
        """Over HTTP; the answer, with its status."""
        answer = self.http.post(
            f"/v1/{call}",
            params={"device": device},
            headers={"authorization": f"Bearer {ticket or self.ticket(user)}"},
            json=fields,
        )
        return {"status": answer.status_code, **answer.json()}

    def socket(self, user: str, device: str = "phone", key: str | None = None, **more: Any) -> Socket:
        return Socket(self.address, {"ticket": self.ticket(user), "device": device, "key": key, **more})


class Socket:
    """A device on a socket: stores what it is given and acknowledges it, as a client would be written."""

    def __init__(self, address: str, hello: dict[str, Any]) -> None:
        self.rows: dict[str, dict[str, Any]] = {}
        self.key: str | None = hello["key"]
        self.replies: dict[Any, dict[str, Any]] = {}
        self.error: dict[str, Any] | None = None
        self.page_count = 0
        self._number = 0
        self._open = ExitStack()
        self.connection: ClientConnection = self._open.enter_context(connect(f"ws://{address}/v1/socket"))
        self.say(do="hello", id=0, **hello)
        self.welcome = self.until(lambda: self.replies.get(0) or self.error)

    def say(self, **frame: Any) -> None:
        self.connection.send(json.dumps(frame))

    def ask(self, call: str, **fields: Any) -> dict[str, Any]:
        """The reply, whatever is pushed before it."""
        self._number += 1
        number = self._number
        self.say(do=call, id=number, **fields)
        found: dict[str, Any] = self.until(lambda: self.replies.get(number))
        return found

    def hear(self, *, ack: bool = True) -> dict[str, Any]:
        frame: dict[str, Any] = json.loads(self.connection.recv(WAIT_S))
        if frame.get("id") == "push":
            self._take(frame)
            if ack:
                self.say(do="ack", key=self.key)
        elif "id" in frame:
            self.replies[frame["id"]] = frame
        else:
            self.error = frame
        return frame

    def until(self, found: Callable[[], Any], *, ack: bool = True) -> Any:
        while not (one := found()):
            self.hear(ack=ack)
        return one

    def texts(self, kind: str = "inbox") -> list[str]:
        return [row["text"] for _, row in sorted(self.rows.get(kind, {}).items(), key=lambda one: one[1]["seq"])]

    def _take(self, page: dict[str, Any]) -> None:
        for changes in page["changes"]:
            if changes["resync"]:
                self.rows[changes["kind"]] = {}
            rows = self.rows.setdefault(changes["kind"], {})
            rows.update(changes["rows"])
            for row in changes["deleted"]:
                rows.pop(row, None)
        self.key = page["key"]
        self.page_count += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()


def _no_work(worker: str, stopping: Callable[[], bool], report: object) -> None:
    while not stopping():
        time.sleep(0.05)


Start = Callable[..., Gateway]


@pytest.fixture
def store(path: Path) -> Iterator[kvsvr.Engine]:
    with kvsvr.open(path, sync="none", slots="strict") as db:
        yield db


@contextmanager
def gateways(db: Any) -> Iterator[Start]:
    """start(...): another gateway before this store; all are stopped at the end."""
    with ExitStack() as started:

        def start(
            *, login: bool = False, page: bool = False, local: bool = True, port: int = 0, **limits: Any
        ) -> Gateway:
            one = Gateway(db, limits=Limits(**limits), login=login, page=page, local=local, port=port)
            started.callback(one.close)
            return one

        yield start


@pytest.fixture
def start(store: kvsvr.Engine) -> Iterator[Start]:
    with gateways(store) as start:
        yield start


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One for tests that write nothing, or do not mind what others wrote. With ann and bob."""
    with (
        kvsvr.open(tmp_path_factory.mktemp("shared"), sync="none", slots="strict") as db,
        gateways(db) as start,
    ):
        one = start()
        for user in ("ann", "bob"):
            one.chat.register(user)
        yield one


@pytest.fixture
def gateway(start: Start) -> Gateway:
    """With ann and bob."""
    one = start()
    for user in ("ann", "bob"):
        one.chat.register(user)
    return one
