"""A WebSocket: requests and push, and that it can break at any moment and be gone on with anywhere."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from functools import partial
from typing import Any

import pytest
from starlette.websockets import WebSocket
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

import kvsvr
from kvsvr.gateway.desk import WATCH_S, Desk
from kvsvr.gateway.failures import Refusal
from kvsvr.gateway.limits import Limits
from kvsvr.gateway.session import Session
from kvsvr.gateway.tickets import Ticket, Tickets
from kvsvr.services.messaging import Messaging
from tests.gateway.conftest import SECRET, WAIT_S, Gateway, Socket, Start


def closed(socket: Socket) -> tuple[int, str]:
    """Hears until the gateway closes; how it did, and what it said before."""
    try:
        while True:
            socket.hear()
    except ConnectionClosed as error:
        assert error.rcvd is not None
        return error.rcvd.code, socket.error["code"] if socket.error else ""


def test_request_and_push_on_one_socket(gateway: Gateway) -> None:
    with gateway.socket("ann") as ann, gateway.socket("bob") as bob:
        assert ann.welcome["user"] == "ann"
        sent = ann.ask("send", to="u/bob", text="hello", client_id="1")
        assert (sent["is"], sent["source"]) == ("sent", "u/ann")
        bob.until(lambda: bob.texts() == ["hello"])
        bob.ask("send", to="u/ann", text="hi")
        ann.until(lambda: ann.texts() == ["hello", "hi"])
        ann.ask("create", group="7", name="Tea")
        ann.ask("invite", group="7", user="bob")
        ann.ask("send", to="g/7", text="at four")
        bob.until(lambda: bob.texts()[-1] == "at four" and bob.rows.get("groups"))


def test_two_devices_of_one_user(gateway: Gateway) -> None:
    with gateway.socket("ann", "phone") as phone, gateway.socket("ann", "laptop") as laptop:
        phone.ask("send", to="u/bob", text="hello")
        laptop.until(lambda: laptop.texts() == ["hello"])
        laptop.ask("mark", conversation="u/bob", seq=5)
        phone.until(lambda: phone.rows.get("marks"))


@pytest.mark.parametrize("fan_out_max", [500, 1])
def test_large_groups_are_pushed_alike(start: Start, fan_out_max: int) -> None:
    """Those that are read from their log, too, for which a device waits in another slot."""
    gateway = start()
    gateway.chat._fan_out_max = fan_out_max
    for user in ("ann", "bob", "cat"):
        gateway.chat.register(user)
    gateway.chat.create("ann", "7", open=True)
    for user in ("bob", "cat"):
        gateway.chat.join(user, "7")
    kind = "inbox" if fan_out_max == 500 else "g/7"

    def has(one: Socket, number: int) -> bool:
        return one.texts(kind) == [str(before) for before in range(number + 1)]

    begun = time.monotonic()
    with gateway.socket("bob") as bob, gateway.socket("cat") as cat:
        for number in range(5):
            gateway.chat.send("ann", "g/7", str(number))
            for one in (bob, cat):
                one.until(partial(has, one, number))
    assert time.monotonic() - begun < WATCH_S / 2  # They were rung for: by then each would have looked by himself.


def test_one_page_is_on_its_way(gateway: Gateway) -> None:
    """Nothing follows until the client says that it has the page; and then nothing is missing."""
    gateway.chat.send("ann", "u/bob", "0")
    with gateway.socket("bob", limit=1) as bob:
        bob.until(lambda: bob.page_count == 1, ack=False)
        for number in range(1, 5):
            gateway.chat.send("ann", "u/bob", str(number))
        with pytest.raises(TimeoutError):
            bob.connection.recv(0.3)
        assert bob.ask("ack", key="aGVsbG8=")["code"] == "usage"
        bob.say(do="ack", key=bob.key)
        bob.until(lambda: bob.texts() == list("01234"))
        assert bob.page_count >= 5


def test_what_was_not_acknowledged_comes_again(gateway: Gateway) -> None:
    """Pushed to a socket that breaks before the ack: the device has been given nothing, and retention keeps it."""
    with gateway.socket("bob") as bob:
        gateway.chat.send("ann", "u/bob", "one")
        bob.until(lambda: bob.texts() == ["one"])
        key = bob.key
        bob.ask("beat")  # The ack before it has been read.
        gateway.chat.send("ann", "u/bob", "two")
        bob.until(lambda: bob.page_count == 2, ack=False)
    assert gateway.chat.sync.purge("bob", "inbox", b"\xff" * 8) == 1
    with gateway.socket("bob", key=key) as again:
        again.until(lambda: again.texts() == ["two"])


def test_no_push_unless_wanted(gateway: Gateway) -> None:
    gateway.chat.send("ann", "u/bob", "one")
    with gateway.socket("bob", push=False) as bob:
        with pytest.raises(TimeoutError):
            bob.connection.recv(0.3)
        page = bob.ask("pull")
        assert page["changes"][0]["rows"][0][1]["text"] == "one"


def test_what_others_have_left_is_delivered(start: Start, store: kvsvr.Engine) -> None:
    """Sent by a process that died before it delivered: a gateway's worker does."""
    dead = Messaging(store, local=False)
    for user in ("ann", "bob"):
        dead.register(user)
    gateway = start(local=False)
    with gateway.socket("bob") as bob:
        dead.send("ann", "u/bob", "from the dead")
        bob.until(lambda: bob.texts() == ["from the dead"])


# --- who may ---


@pytest.mark.parametrize(
    ("first", "code", "why"),
    [
        ({"do": "hello", "ticket": "forged", "device": "d"}, 4401, "ticket"),
        ({"do": "hello", "ticket": "OLD", "device": "d"}, 4401, "expired"),
        ({"do": "hello", "ticket": "ANN"}, 4400, "usage"),
        ({"do": "hello", "ticket": "ANN", "device": "d", "key": "aGVsbG8="}, 4403, "sync_key"),
        ({"do": "hello", "ticket": "ANN", "device": "d", "limit": 0}, 4400, "usage"),
        ({"do": "send", "to": "u/bob", "text": "x"}, 4400, "usage"),
        ({"do": "nothing"}, 4400, "malformed"),
        ({}, 4400, "malformed"),
    ],
)
def test_a_socket_begins_with_a_good_hello(shared: Gateway, first: dict[str, Any], code: int, why: str) -> None:
    tickets = {"ANN": shared.ticket("ann"), "OLD": shared.ticket("ann", -1)}
    first = {name: tickets.get(str(value), value) for name, value in first.items()}
    with connect(f"ws://{shared.address}/v1/socket") as connection:
        connection.send(json.dumps(first))
        assert json.loads(connection.recv())["code"] == why
        with pytest.raises(ConnectionClosed):
            connection.recv()
        assert connection.close_code == code


def test_another_ones_key(gateway: Gateway) -> None:
    gateway.chat.send("ann", "u/bob", "one")
    key = gateway.ask("ann", "pull")["key"]
    with gateway.socket("bob", key=key) as bob:
        assert closed(bob) == (4403, "sync_key")


def test_a_socket_ends_with_its_ticket(gateway: Gateway) -> None:
    hello = {"ticket": gateway.ticket("ann", 1.5), "device": "phone", "key": None}
    with Socket(gateway.address, hello) as ann:
        assert closed(ann) == (4401, "expired")


def test_each_request_looks_at_the_ticket(store: kvsvr.Engine) -> None:
    """Also while nobody has come to close the socket yet."""

    async def admit(until: float) -> str:
        desk = Desk(Messaging(store), store.aio.wait, Tickets([SECRET]), Limits())
        try:
            return desk.admit(Ticket("ann", int(until)))
        finally:
            desk.close()

    assert asyncio.run(admit(time.time() + 10)) == "ann"
    with pytest.raises(Refusal, match="has ended"):
        asyncio.run(admit(time.time() - 1))


def test_a_ticket_is_renewed(gateway: Gateway) -> None:
    """By one of the same user, and of no other."""
    with Socket(gateway.address, {"ticket": gateway.ticket("ann", 2.0), "device": "phone", "key": None}) as ann:
        assert ann.ask("hello", ticket=gateway.ticket("ann"))["seconds"] > 50
        time.sleep(2.2)
        assert ann.ask("send", to="u/bob", text="x")["is"] == "sent"
        ann.say(do="hello", ticket=gateway.ticket("bob"))
        assert closed(ann) == (4401, "ticket")


def test_requests_that_are_wrong_leave_the_socket_open(gateway: Gateway) -> None:
    with gateway.socket("ann") as ann:
        wrong: list[tuple[str, dict[str, Any], str]] = [
            ("send", {"to": "u/bob"}, "malformed"),
            ("send", {"to": "u/nobody", "text": "x"}, "unknown"),
            ("login", {"user": "bob"}, "malformed"),
            ("wait", {}, "usage"),
            ("pull", {"limit": 10_000}, "usage"),
        ]
        for call, fields, code in wrong:
            found = ann.ask(call, **fields)
            assert (found["is"], found["code"]) == ("error", code) and found["cure"]
        ann.connection.send("{")
        ann.until(lambda: ann.error)
        assert ann.ask("register")["is"] == "registered"
        ann.connection.send(b"{}")
        assert closed(ann) == (4400, "malformed")


# --- limits ---


def test_frames_have_a_size(start: Start) -> None:
    gateway = start(body_size_max=1000)
    with gateway.socket("ann") as ann:
        ann.say(do="send", to="u/ann", text="x" * 1000)
        assert closed(ann)[0] == 1009


def test_a_user_has_so_many_sockets(start: Start) -> None:
    gateway = start(socket_count_max=2)
    with gateway.socket("ann", "1"), gateway.socket("ann", "2"):
        with gateway.socket("ann", "3") as third:
            assert closed(third) == (4429, "sockets")
        with gateway.socket("bob") as bob:
            assert bob.ask("register")["is"] == "registered"


def test_a_rate_on_sockets(start: Start) -> None:
    gateway = start(rate=0.01, burst=3)
    with gateway.socket("ann") as ann:
        assert [ann.ask("beat").get("code") for _ in range(4)] == [None, None, "too_many", "too_many"]


def test_a_silent_socket_is_closed(start: Start) -> None:
    gateway = start(beat_s=0.3, hello_s=0.3)
    with gateway.socket("ann") as ann:
        for _ in range(8):
            time.sleep(0.2)
            assert ann.ask("beat")["is"] == "done"
        assert closed(ann) == (4400, "usage")
    with connect(f"ws://{gateway.address}/v1/socket") as connection, pytest.raises(ConnectionClosed):
        connection.recv(5)
        connection.recv(5)


# --- gateways come and go ---


def test_a_stop_is_told(start: Start) -> None:
    """In a moment, though sockets, waits and streams are open; and what was begun is answered."""
    gateway = start()
    gateway.chat.register("ann")
    answers: list[dict[str, Any]] = []
    waiting = threading.Thread(target=lambda: answers.append(gateway.ask("ann", "wait", timeout=30)))
    with gateway.socket("ann") as ann:
        waiting.start()
        time.sleep(0.3)
        begun = time.monotonic()
        gateway.close()
        assert time.monotonic() - begun < 4
        assert closed(ann)[0] == 1012
    waiting.join()
    assert answers[0]["new"] is False


def test_push_ends_with_the_gateway(store: kvsvr.Engine) -> None:
    """Where it would ask again without waiting for anything, no other coroutine ran any more, and no stop ended."""
    ended: list[str] = []

    async def push() -> None:
        desk = Desk(Messaging(store), store.aio.wait, Tickets([SECRET]), Limits())
        desk.stopping.set()
        try:
            await Session(desk, WebSocket({"type": "websocket"}, None, None))._push()  # type: ignore[arg-type]
        except Refusal as error:
            ended.append(error.code)
        desk.close()

    thread = threading.Thread(target=lambda: asyncio.run(push()), daemon=True)
    thread.start()
    thread.join(WAIT_S)
    assert ended == ["stopping"]


def test_any_gateway_goes_on_with_any_device(start: Start) -> None:
    """Two before one store; a device hops between them while others send, its sockets broken off wherever it is: with
    or without an ack, in the middle of a page. It has every message in the end, each once."""
    gateways, rng, count = [start(), start()], random.Random(7), 120
    for user in ("ann", "bob"):
        gateways[0].chat.register(user)

    def send() -> None:
        for number in range(count):
            one = gateways[number % 2]
            assert one.ask("ann", "send", to="u/bob", text=f"{number:03}", client_id=str(number))["is"] == "sent"

    sender = threading.Thread(target=send)
    sender.start()
    rows: dict[str, dict[str, Any]] = {}
    key: str | None = None
    hops, texts = 0, list[str]()
    while len(texts) < count:
        with rng.choice(gateways).socket("bob", key=key, limit=7) as bob:
            bob.rows = rows
            for _ in range(rng.randrange(6)):
                bob.hear(ack=(acked := rng.random() < 0.8))
                if len(texts := bob.texts()) == count or not acked:
                    break
            key = rng.choice([key, bob.key]) if len(texts) < count else bob.key  # What it had written down, or not.
        hops += 1
    sender.join()
    assert texts == [f"{number:03}" for number in range(count)] and hops > 3
