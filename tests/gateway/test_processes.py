"""kvsvr gateway as a process: tickets beside it, SIGTERM, kill -9 in the middle of everything."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed

from kvsvr.gateway.tickets import SECRET_KEY, Tickets
from kvsvr.ops.cli import gateway as command
from kvsvr.services.sync import kept_secret
from kvsvr.testing import ReplicaSet
from tests.gateway.conftest import WAIT_S, Socket
from tests.ops.conftest import Run, run

__all__ = ["run"]


class Process:
    def __init__(self, *arguments: object) -> None:
        words = [sys.executable, "-m", "kvsvr.ops.cli", *map(str, arguments), "--listen", "127.0.0.1:0"]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        ready, _, self.address = self.process.stdout.readline().strip().partition(" ")
        assert ready == "ready", self.process.communicate()

    def end(self, number: int) -> tuple[int, str]:
        if self.process.returncode is None:
            self.process.send_signal(number)
        _, said = self.process.communicate(timeout=WAIT_S)
        return self.process.returncode, said


@contextmanager
def process(*arguments: object) -> Iterator[Process]:
    one = Process(*arguments)
    try:
        yield one
    finally:
        one.end(signal.SIGKILL)


def ask(address: str, ticket: str, call: str, **fields: Any) -> dict[str, Any]:
    headers = {"authorization": f"Bearer {ticket}"}
    answer = httpx.post(f"http://{address}/v1/{call}?device=phone", json=fields, headers=headers, timeout=WAIT_S)
    found: dict[str, Any] = answer.json()
    return found


def test_a_gateway_before_a_store(run: Run, path: Path) -> None:
    """Tickets are issued beside it, and SIGTERM ends it well; beside nobody, too, and another one goes on."""
    assert run("gateway", "ticket", "ann", "--dir", path).exit_code == 2
    with process("gateway", "--dir", path) as one:
        beside = run("gateway", "ticket", "ann", "--dir", path).stdout.strip()
        assert ask(one.address, beside, "register") == {"is": "registered", "new": True}
        assert ask(one.address, beside, "send", to="u/ann", text="one")["is"] == "sent"
        with Socket(one.address, {"ticket": beside, "device": "phone", "key": None}) as ann:
            ann.until(lambda: ann.texts() == ["one"])
            assert one.end(signal.SIGTERM) == (0, "stopped\n")
    later = run("gateway", "ticket", "ann", "--dir", path).stdout.strip()
    with (
        process("gateway", "--dir", path) as two,
        Socket(two.address, {"ticket": later, "device": "phone", "key": ann.key}) as again,
    ):
        assert ask(two.address, beside, "send", to="u/ann", text="two")["is"] == "sent"
        again.until(lambda: again.texts() == ["two"])


def test_a_gateway_is_killed(tmp_path: Path) -> None:
    """Two before a set of three. One is killed while ann sends and bob's socket is on it: both go on at the other one,
    and bob has each message once, in the order that ann sent them in."""
    with ExitStack() as started:
        replicas = started.enter_context(ReplicaSet(tmp_path / "set", 3))
        addresses = ",".join(replicas.addresses)
        one, two = (started.enter_context(process("gateway", "--connect", addresses)) for _ in range(2))
        with replicas.connect() as db:
            tickets = Tickets([kept_secret(db, SECRET_KEY)])
        ann, bob = tickets.issue("ann", 600), tickets.issue("bob", 600)
        for ticket in (ann, bob):
            assert ask(one.address, ticket, "register")["new"]
        count, half = 30, threading.Event()

        def send() -> None:
            at = one
            for number in range(count):
                if number == count // 2:
                    half.set()
                while True:
                    try:
                        reply = ask(at.address, ann, "send", to="u/bob", text=str(number), client_id=str(number))
                    except httpx.TransportError:
                        at = two  # What came of it is not known: the same again is the same message.
                        continue
                    if reply["is"] == "sent":
                        break

        sender = threading.Thread(target=send)
        with Socket(one.address, {"ticket": bob, "device": "phone", "key": None, "limit": 3}) as first:
            sender.start()
            assert half.wait(WAIT_S)
            one.end(signal.SIGKILL)
            with pytest.raises(ConnectionClosed):
                first.until(lambda: False)
        with Socket(two.address, {"ticket": bob, "device": "phone", "key": first.key}) as second:
            second.rows = first.rows
            second.until(lambda: len(second.texts()) == count)
            assert second.texts() == [str(number) for number in range(count)]
        sender.join()


def test_what_kvsvr_chat_says(tmp_path: Path) -> None:
    """Where it is; with the page and the login, and a store that is thrown away."""
    with process("chat") as one:
        assert "kvsvr chat" in httpx.get(f"http://{one.address}/").text
        assert httpx.post(f"http://{one.address}/v1/login", json={"user": "ann"}).json()["is"] == "issued"
        code, said = one.end(signal.SIGINT)
        assert code == 0 and f"open http://{one.address}/" in said


def test_options_of_chat_are_not_those_of_import(run: Run, tmp_path: Path) -> None:
    """A log that somebody meant to keep is not thrown away in silence."""
    done = run("chat", "--dir", tmp_path / "store", "import", __file__)
    assert done.exit_code == 2 and "behind import" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ((), "--dir"),
        (("--dir", "x", "--connect", "localhost:1"), "--dir"),
        (("--dir", "STORE", "--login", "--listen", "0.0.0.0:0"), "not this machine alone"),
        (("--dir", "STORE", "--listen", "7180"), "HOST:PORT"),
        (("--dir", "STORE", "--rate", "0"), "rate"),
        (("ticket", "ann"), "--dir"),
        (("ticket", "ann", "--dir", "STORE"), "no store"),
        (("ticket", "ann", "--dir", "STORE", "--hours", "0"), "--hours"),
    ],
)
def test_wrong_settings_are_said(run: Run, path: Path, arguments: tuple[str, ...], why: str) -> None:
    done = run("gateway", *(path if one == "STORE" else one for one in arguments))
    assert done.exit_code == 2 and why in done.stderr


def test_a_secret_of_ones_own(run: Run, tmp_path: Path) -> None:
    """Tickets without a look at any store."""
    file = tmp_path / "secrets"
    file.write_text("the new one, long enough\nthe old one, long enough\n")
    ticket = run("gateway", "ticket", "ann", "--secret-file", file).stdout.strip()
    assert Tickets(command.secrets_in(file)).check(ticket).user == "ann"
    assert Tickets([b"the new one, long enough"]).check(ticket).user == "ann"
    assert run("gateway", "ticket", "{ann}", "--secret-file", file).exit_code == 2
