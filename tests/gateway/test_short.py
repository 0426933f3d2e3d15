"""Requests over HTTP, one each: who may ask, for how much, and what is said to who may not."""

from __future__ import annotations

import threading
import time
from typing import Any, get_args

import pytest

import kvsvr
from kvsvr.errors import DiskError, Unavailable, Unknown
from kvsvr.gateway.failures import CODES, Failure, failure, judged
from kvsvr.gateway.limits import Limits, Rates, Seats
from kvsvr.services.refused import Reason
from tests.gateway.conftest import WAIT_S, Gateway, Start


def failed(answer: dict[str, Any]) -> tuple[int, str]:
    """Each has all that a person needs, too."""
    assert answer["is"] == "error" and answer["message"] and answer["cure"]
    return answer["status"], answer["code"]


def test_send_and_sync(gateway: Gateway) -> None:
    sent = gateway.ask("ann", "send", to="u/bob", text="hello", client_id="1")
    assert sent == {"status": 200, "is": "sent", "source": "u/ann", "seq": sent["seq"], "epoch": 0}
    assert gateway.ask("ann", "send", to="u/bob", text="hello", client_id="1") == sent
    page = gateway.ask("bob", "pull")
    assert [row["text"] for _, row in page["changes"][0]["rows"]] == ["hello"]
    assert gateway.ask("bob", "pull", key=page["key"])["changes"] == []
    found = gateway.ask("bob", "check", kind="inbox")
    assert (found["is"], found["count"]) == ("sum", 1)


def test_groups(gateway: Gateway) -> None:
    assert gateway.ask("ann", "create", group="7", name="Tea")["is"] == "epoch"
    assert failed(gateway.ask("bob", "send", to="g/7", text="x")) == (403, "not_a_member")
    assert gateway.ask("ann", "invite", group="7", user="bob")["epoch"] == 2
    assert gateway.ask("bob", "send", to="g/7", text="at four")["is"] == "sent"
    assert gateway.ask("bob", "members", group="7")["users"] == ["ann", "bob"]
    assert failed(gateway.ask("bob", "remove", group="7", user="ann")) == (403, "not_the_owner")


@pytest.mark.parametrize("ticket", ["", "x", "Bearer", "gqNhbm7OZ3Y", "é"])
def test_no_call_without_a_ticket(shared: Gateway, ticket: str) -> None:
    headers = [(b"authorization", f"Bearer {ticket}".encode())] if ticket else []
    for call in ("send", "pull", "members", "register", "nothing"):
        answer = shared.http.post(f"/v1/{call}", json={}, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (401, "ticket")
        assert answer.headers["www-authenticate"] == "Bearer"
    answer = shared.http.get("/v1/events", params={"device": "phone", "ticket": ticket})
    assert answer.status_code == 401


def test_a_ticket_that_has_ended(shared: Gateway) -> None:
    old = shared.ticket("ann", -1)
    assert failed(shared.ask("ann", "pull", ticket=old)) == (401, "expired")


def test_a_ticket_is_for_its_user(gateway: Gateway) -> None:
    """What bob asks for is his, whatever he writes beside it."""
    gateway.ask("ann", "send", to="u/ann", text="a note")
    assert gateway.ask("bob", "pull", user="ann", sender="ann")["changes"] == []
    gateway.ask("bob", "send", to="u/ann", text="x", user="cat", sender="cat")
    rows = gateway.ask("ann", "pull")["changes"][0]["rows"]
    assert [row["sender"] for _, row in rows] == ["ann", "bob"]


def test_a_key_is_for_its_device(gateway: Gateway) -> None:
    gateway.ask("ann", "send", to="u/bob", text="hello")
    key = gateway.ask("ann", "pull")["key"]
    assert failed(gateway.ask("bob", "pull", key=key)) == (403, "sync_key")
    assert failed(gateway.ask("ann", "pull", key=key, device="laptop")) == (403, "sync_key")
    assert failed(gateway.ask("ann", "wait", key=key, device="laptop")) == (403, "sync_key")
    assert gateway.ask("ann", "pull", key=key)["is"] == "page"


@pytest.mark.parametrize(
    ("call", "body", "status", "code"),
    [
        ("send", b"{", 400, "malformed"),
        ("send", b"[]", 400, "malformed"),
        ("send", b'{"to":"u/bob"}', 400, "malformed"),
        ("send", b'{"to":"u/bob","text":"\xff"}', 400, "malformed"),
        ("send", b'{"to":"bob","text":""}', 400, "usage"),
        ("send", b'{"do":"recall","to":"u/bob","text":""}', 400, "malformed"),
        ("send", b'{"to":"u/nobody","text":""}', 404, "unknown"),
        ("pull", b'{"limit":0}', 400, "usage"),
        ("pull", b'{"limit":501}', 400, "usage"),
        ("pull", b'{"key":"####"}', 400, "malformed"),
        ("pull", b'{"key":"aGVsbG8="}', 403, "sync_key"),
        ("wait", b'{"timeout":61}', 400, "usage"),
        ("wait", b'{"timeout":-1}', 400, "usage"),
        ("hello", b"{}", 404, "no_call"),
        ("nothing", b"{}", 404, "no_call"),
        ("join", b'{"group":"none"}', 404, "unknown"),
        ("login", b'{"user":"ann"}', 403, "login_off"),
    ],
)
def test_what_is_wrong_is_said(shared: Gateway, call: str, body: bytes, status: int, code: str) -> None:
    answer = shared.http.post(
        f"/v1/{call}?device=phone",
        content=body,
        headers={"authorization": f"Bearer {shared.ticket('ann')}"},
    )
    assert failed({"status": answer.status_code, **answer.json()}) == (status, code)


def test_a_device_has_a_name(shared: Gateway) -> None:
    assert failed(shared.ask("ann", "pull", device="")) == (400, "usage")


# --- limits ---


def test_bodies_have_a_size(start: Start) -> None:
    """One that says its size, and one that does not; and no more of it is read."""
    gateway, headers = start(body_size_max=1000), {}
    headers["authorization"] = f"Bearer {gateway.ticket('ann')}"
    for content in (b" " * 1001, iter([b" " * 500] * 3)):
        answer = gateway.http.post("/v1/pull?device=phone", content=content, headers=headers)
        assert failed({"status": answer.status_code, **answer.json()}) == (413, "too_large")


def test_pages_have_a_size(start: Start) -> None:
    """Asked for many large rows, it gives few, and then the rest."""
    gateway = start(page_size_max=10_000)
    gateway.chat.register("ann")
    for number in range(40):
        gateway.chat.send("ann", "u/ann", f"{number}" + "x" * 1000)
    key, texts, sizes = None, [], []
    while True:
        page = gateway.ask("ann", "pull", key=key, limit=500)
        rows = [row["text"] for changes in page["changes"] for _, row in changes["rows"]]
        texts += rows
        sizes.append(sum(map(len, rows)))
        key = page["key"]
        if not page["more"]:
            break
    assert len(texts) == 40 and len(set(texts)) == 40 and max(sizes) < 10_000


def test_a_user_has_a_rate_and_others_theirs(start: Start) -> None:
    gateway = start(rate=0.01, burst=3)
    answers = [gateway.ask("ann", "pull")["status"] for _ in range(4)]
    assert answers == [200, 200, 200, 429]
    assert gateway.ask("bob", "pull")["status"] == 200


def test_a_rate_comes_back() -> None:
    now = [0.0]
    rates = Rates(2.0, 3, clock=lambda: now[0])
    for _ in range(3):
        rates.spend("ann")
    with pytest.raises(Exception, match="requests a second"):
        rates.spend("ann")
    now[0] = 0.5
    rates.spend("ann")
    with pytest.raises(Exception, match="requests a second"):
        rates.spend("ann")


def test_seats_are_given_back() -> None:
    seats = Seats(1)
    for _ in range(3):
        with seats.taken("ann"), seats.taken("bob"), pytest.raises(Exception, match="connections"):
            seats.taken("ann").__enter__()


@pytest.mark.parametrize("name", Limits.__slots__)
@pytest.mark.parametrize("value", [0, -1, "7", None, True, float("nan")])
def test_limits_are_positive_numbers(name: str, value: Any) -> None:
    with pytest.raises(kvsvr.UsageError):
        Limits(**{name: value})


def test_too_much_at_once_is_refused(start: Start) -> None:
    """Rather than queued without end."""
    gateway, go = start(thread_count=1, pending_count_max=2), threading.Event()
    gateway.chat.register = lambda user: go.wait(WAIT_S)  # type: ignore[method-assign]
    answers: list[dict[str, Any]] = []
    callers = [threading.Thread(target=lambda: answers.append(gateway.ask("ann", "register"))) for _ in range(4)]
    for one in callers:
        one.start()
    deadline = time.monotonic() + WAIT_S
    while len(answers) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [failed(one) for one in answers] == [(503, "busy")] * 2
    go.set()
    for one in callers:
        one.join()
    assert [one["status"] for one in answers[2:]] == [200, 200]


# --- waiting ---


def test_a_wait_ends_with_something_new(gateway: Gateway) -> None:
    gateway.ask("ann", "send", to="u/bob", text="one")
    key = gateway.ask("bob", "pull")["key"]
    assert gateway.ask("bob", "wait", key=key, timeout=0.1)["new"] is False
    timer = threading.Timer(0.3, gateway.chat.send, ("ann", "u/bob", "two"))
    timer.start()
    begun = time.monotonic()
    assert gateway.ask("bob", "wait", key=key, timeout=20)["new"] is True
    assert time.monotonic() - begun < 10
    timer.join()


def test_who_waits_takes_no_thread(start: Start) -> None:
    """More wait than there are threads, and requests are done meanwhile."""
    gateway = start(thread_count=1)
    gateway.chat.register("ann")
    keys = [gateway.ask("ann", "pull", device=f"d{number}")["key"] for number in range(5)]
    answers: list[bool] = []

    def wait(number: int) -> None:
        answers.append(gateway.ask("ann", "wait", device=f"d{number}", key=keys[number], timeout=20)["new"])

    callers = [threading.Thread(target=wait, args=(number,)) for number in range(5)]
    for one in callers:
        one.start()
    time.sleep(0.3)
    assert gateway.ask("ann", "send", to="u/ann", text="a note")["is"] == "sent"
    for one in callers:
        one.join(WAIT_S)
    assert answers == [True] * 5


def test_a_stream_tells_of_what_is_new(gateway: Gateway) -> None:
    gateway.chat.send("ann", "u/bob", "one")
    key = gateway.ask("bob", "pull")["key"]
    query = {"device": "phone", "ticket": gateway.ticket("bob"), "key": key}
    with gateway.http.stream("GET", "/v1/events", params=query) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = answer.iter_lines()
        assert next(lines) == ": still here"
        for _ in range(3):
            gateway.chat.send("ann", "u/bob", "more")
            assert next(line for line in lines if line not in ("", "data:")) == "event: new"
    with gateway.http.stream("GET", "/v1/events", params=query) as answer:
        assert next(answer.iter_lines()) == "event: new"


def test_a_stream_is_one_of_so_many(start: Start) -> None:
    """And ends with its ticket; then there is room again."""
    gateway = start(socket_count_max=1)
    query = {"device": "phone", "ticket": gateway.ticket("bob", 1.5)}
    with gateway.http.stream("GET", "/v1/events", params=query) as answer:
        lines = answer.iter_lines()
        next(lines)
        second = gateway.http.get("/v1/events", params=query)
        assert failed({"status": second.status_code, **second.json()}) == (429, "sockets")
        assert list(lines)
    assert gateway.ask("bob", "wait", timeout=0.01)["status"] == 200


# --- what the store says ---


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (Unavailable("no quorum"), 503, "unavailable"),
        (Unknown("lost"), 504, "uncertain"),
        (kvsvr.VersionConflict(b"key", 1), 503, "busy"),
        (kvsvr.ClosedError("closed"), 503, "stopping"),
        (DiskError("full", path="/secret/place", errno=28), 507, "no_space"),
        (DiskError("broken", path="/secret/place", errno=5), 500, "internal"),
        (ZeroDivisionError("/secret/place"), 500, "internal"),
    ],
)
def test_errors_of_the_store(
    shared: Gateway, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int, code: str
) -> None:
    """Each says what can be done, and nothing of how things look inside."""

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(shared.chat, "handle", fail)
    answer = shared.ask("ann", "send", to="u/bob", text="x")
    assert failed(answer) == (status, code)
    assert "secret" not in str(answer)


def test_each_reason_has_a_cure() -> None:
    assert {*get_args(Reason), "usage"} <= CODES.keys()
    for code, (status, cure) in CODES.items():
        assert failure(code, "x") == Failure(code, "x", cure) and 400 <= status < 600 and cure
    assert judged(Unavailable("x")).status == 503


# --- the login ---


def test_a_login_for_development(start: Start) -> None:
    gateway = start(login=True)
    issued = gateway.http.post("/v1/login", json={"user": "ann"}).json()
    assert gateway.ask("ann", "send", ticket=issued["ticket"], to="u/ann", text="a note")["is"] == "sent"


def test_other_pages_cannot_log_in(start: Start) -> None:
    gateway = start(login=True)
    for name, value in [
        ("origin", "http://elsewhere.example"),
        ("origin", "null"),
        ("host", "elsewhere.example"),
        ("host", "localhost.elsewhere.example:80"),
    ]:
        answer = gateway.http.post("/v1/login", json={"user": "ann"}, headers={name: value})
        assert failed({"status": answer.status_code, **answer.json()}) == (403, "login_off")


def test_a_page_is_there_only_if_wanted(start: Start) -> None:
    assert start().http.get("/").status_code == 404
    shown = start(page=True).http.get("/")
    assert shown.status_code == 200 and "default-src 'none'" in shown.headers["content-security-policy"]


def test_ready_says_whether_the_store_answers(gateway: Gateway) -> None:
    assert gateway.http.get("/v1/ready").json() == {"is": "ready"}

    def fail(*_: Any) -> None:
        raise Unavailable("no quorum")

    gateway.chat.sync.digest = fail  # type: ignore[assignment,method-assign]
    assert gateway.http.get("/v1/ready").status_code == 503
