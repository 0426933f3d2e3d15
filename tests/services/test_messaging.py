"""Messaging: sending once, delivery by whoever comes, groups and their epochs, recall, marks, blocks, retention."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec
import pytest

import kvsvr
from kvsvr.messaging import Message, Messaging, Refused
from kvsvr.services import groups, words
from kvsvr.services.names import micros
from kvsvr.sync import digest_of
from tests.services.conftest import Dying, Interposed, Killed, Turned
from tests.services.devices import Phone

DAY = 86_400
USERS = ("ann", "bob", "cat", "dan")


def users(chat: Messaging, *names: str) -> None:
    for name in names or USERS:
        chat.register(name)


@pytest.fixture
def chat(strict: kvsvr.Engine, clock: Turned) -> Messaging:
    """Everything is done at once."""
    made = Messaging(strict, clock=clock)
    users(made)
    return made


@pytest.fixture
def late(strict: kvsvr.Engine, clock: Turned) -> Messaging:
    """The queue delivers later."""
    made = Messaging(strict, clock=clock, local=False)
    users(made)
    return made


def phone(chat: Messaging, user: str, name: str = "phone") -> Phone:
    return Phone(chat.pull, user, name)


def messages(device: Phone) -> list[Message]:
    """All that the device has, by number."""
    found = [
        msgspec.json.decode(value, type=Message | None)
        for kind, rows in device.kinds.items()
        if kind == "inbox" or kind.startswith("g/")
        for value in rows.values()
    ]
    return sorted((one for one in found if one is not None), key=lambda one: one.seq)


def texts(device: Phone) -> list[str]:
    device.sync()
    return [one.text for one in messages(device)]


def test_on_any_store(store: Any) -> None:
    """One to one, a group of each size, join, leave, recall, by a worker and at once: embedded, and on a set."""
    chat = Messaging(store, fan_out_max=2, local=False)
    users(chat, "any-ann", "any-bob", "any-cat")
    ann, bob, cat = (phone(chat, f"any-{name}") for name in ("ann", "bob", "cat"))
    sent = chat.send("any-ann", "u/any-bob", "hello", "id-1")
    assert chat.send("any-ann", "u/any-bob", "hello", "id-1") == sent
    assert (texts(ann), texts(bob)) == (["hello"], [])
    assert chat.deliver() == 1
    chat.create("any-ann", "any", "A group")
    chat.invite("any-ann", "any", "any-bob")
    chat.send("any-bob", "g/any", "small")
    chat.invite("any-bob", "any", "any-cat")
    last = chat.send("any-cat", "g/any", "large")
    chat.deliver()
    assert (texts(ann), texts(bob), texts(cat)) == (["hello", "small", "large"],) * 2 + (["large"],)
    chat.leave("any-bob", "any")
    chat.send("any-ann", "g/any", "without bob")
    chat.recall("any-cat", "g/any", last.seq)
    chat.deliver()
    assert texts(ann) == ["hello", "small", "", "without bob"]
    assert texts(bob) == ["hello", "small", ""], "he has left; what was his is recalled with the rest"
    assert texts(cat) == ["", "without bob"]
    for device in (ann, cat):
        for kind in device.kinds:
            told = chat.digest(device.user, kind)
            assert digest_of(device.kinds[kind].items(), told.first) == told


def test_one_to_one(chat: Messaging) -> None:
    """The receiver's devices have it, the sender's other ones, and the one it was sent from, too."""
    devices = [phone(chat, "ann"), phone(chat, "ann", "desk"), phone(chat, "bob")]
    sent = chat.send("ann", "u/bob", "hello")
    for device in devices:
        device.sync()
        (one,) = messages(device)
        assert (one.sender, one.to, one.text, one.seq, one.source) == ("ann", "u/bob", "hello", sent.seq, "u/ann")
    assert texts(phone(chat, "cat")) == []


def test_to_oneself(chat: Messaging) -> None:
    chat.send("ann", "u/ann", "note")
    assert texts(phone(chat, "ann")) == ["note"]


def test_a_client_id_is_one_message(chat: Messaging, strict: kvsvr.Engine) -> None:
    """For users and for groups; another user's same id is another message; without one each is new."""
    chat.create("ann", "g")
    chat.invite("ann", "g", "bob")
    for to in ("u/bob", "g/g"):
        assert chat.send("ann", to, "x", f"1{to}") == chat.send("ann", to, "other", f"1{to}")
    chat.send("bob", "g/g", "bob's", "1g/g")
    chat.send("bob", "u/ann", "twice")
    chat.send("bob", "u/ann", "twice")
    assert sorted(texts(phone(chat, "ann"))) == ["bob's", "twice", "twice", "x", "x"]


def test_numbers_grow(chat: Messaging, clock: Turned) -> None:
    """Of each sender, and of a group whoever sends; also while the clock stands, or goes back."""
    chat.create("ann", "g", open=True)
    chat.join("bob", "g")
    for to in ("u/bob", "g/g"):
        numbers = []
        for step in (0, 1, -5, 0):
            clock.turn(step)
            numbers.append(chat.send("ann", to, "").seq)
        assert numbers == sorted(set(numbers))


def test_many_at_once(chat: Messaging) -> None:
    """In order, to several, with ids that were used before among them."""
    chat.create("ann", "g")
    before = chat.send("ann", "u/cat", "old", "7")
    sent = chat.send_many(
        "ann",
        [
            words.Send("u/bob", "1"),
            words.Send("g/g", "2"),
            words.Send("u/cat", "again", "7"),
            words.Send("u/cat", "3", "8"),
            words.Send("u/cat", "twice", "8"),
            words.Send("u/bob", "4"),
        ],
    )
    assert sent[2] == before and sent[3] == sent[4]
    assert texts(phone(chat, "bob")) == ["1", "4"]
    assert texts(phone(chat, "cat")) == ["old", "3"]
    assert sorted(texts(phone(chat, "ann"))) == ["1", "2", "3", "4", "old"]


def test_a_body_is_stored_once(chat: Messaging, strict: kvsvr.Engine) -> None:
    chat.create("ann", "g")
    for user in ("bob", "cat", "dan"):
        chat.invite("ann", "g", user)
    chat.send("ann", "g/g", "x" * 1000)
    keys = [key for key, value in strict.scan() if b"xxxx" in value]
    rows = [row for name in strict.tables() for row, value in strict.table(name).rows() if b"xxxx" in value]
    assert len(keys) == 1 and rows == []


# --- the question left open in the original: a sends, b adds c, and then the queue delivers ---


# Written to each inbox, and read from the log.
both_sizes = pytest.mark.parametrize("fan_out_max", [500, 1])


def a_group(strict: kvsvr.Engine, clock: Turned, fan_out_max: int) -> Messaging:
    """Of ann and bob, in which the queue delivers when it is told to. A first message makes a large one large."""
    chat = Messaging(strict, clock=clock, local=False, fan_out_max=fan_out_max)
    users(chat)
    chat.create("ann", "g")
    chat.invite("ann", "g", "bob")
    chat.send("ann", "g/g", "first")
    chat.deliver()
    return chat


@both_sizes
def test_who_joins_before_delivery_does_not_get_what_was_sent_before(
    strict: kvsvr.Engine, clock: Turned, fan_out_max: int
) -> None:
    """ann sends, bob adds cat, the queue delivers: cat has what was sent behind her joining, and nothing else."""
    chat = a_group(strict, clock, fan_out_max)
    chat.send("ann", "g/g", "before")
    chat.invite("bob", "g", "cat")
    chat.send("ann", "g/g", "behind")
    assert chat.deliver() > 0
    assert texts(phone(chat, "cat")) == ["behind"]
    assert texts(phone(chat, "bob")) == texts(phone(chat, "ann")) == ["first", "before", "behind"]


@both_sizes
def test_who_leaves_before_delivery_gets_what_was_sent_before(
    strict: kvsvr.Engine, clock: Turned, fan_out_max: int
) -> None:
    """ann sends, bob leaves, the queue delivers: bob has what was sent before he left, and nothing else."""
    chat = a_group(strict, clock, fan_out_max)
    chat.send("ann", "g/g", "before")
    chat.leave("bob", "g")
    chat.send("ann", "g/g", "behind")
    assert chat.deliver() > 0
    assert texts(phone(chat, "bob")) == ["first", "before"]
    assert texts(phone(chat, "ann")) == ["first", "before", "behind"]


@both_sizes
def test_who_leaves_and_comes_back_before_delivery(strict: kvsvr.Engine, clock: Turned, fan_out_max: int) -> None:
    """What was sent in between is withheld for ever; also from a device that synced in each of the three times."""
    chat = a_group(strict, clock, fan_out_max)
    early = phone(chat, "bob", "early")
    for step, text in (("", "in"), ("leave", "out"), ("back", "in again"), ("leave", "out again")):
        if step:
            chat.leave("bob", "g") if step == "leave" else chat.invite("ann", "g", "bob")
        early.sync()
        chat.send("ann", "g/g", text)
        early.sync()
    assert chat.deliver() > 0
    assert texts(phone(chat, "bob")) == texts(early) == ["first", "in", "in again"]


@both_sizes
@pytest.mark.parametrize("step", [1, -1])
def test_tasks_in_any_order(strict: kvsvr.Engine, clock: Turned, fan_out_max: int, step: int) -> None:
    """As several workers with leases that end would do them: forwards and backwards, and each of them twice."""
    chat = a_group(strict, clock, fan_out_max)
    chat.send("ann", "g/g", "before")
    chat.invite("bob", "g", "cat")
    chat.send("cat", "g/g", "between")
    chat.leave("cat", "g")
    chat.send("bob", "g/g", "behind")
    tasks = chat.queue.pull(groups.outbox_of("g"), "w", 99)
    for task in [*tasks[::step], *tasks[::-step]]:
        chat._do(task)
    assert texts(phone(chat, "cat")) == ["between"]
    cat = phone(chat, "cat")
    cat.sync()
    assert msgspec.json.decode(cat.kinds["groups"][b"g"], type=words.Membership).member is False


def test_a_group_that_grows(strict: kvsvr.Engine, clock: Turned) -> None:
    """From inboxes to a log, for those who were there, who have left, who come, and who come back; a client sees no
    difference but the name of a kind."""
    chat = Messaging(strict, clock=clock, fan_out_max=2)
    users(chat)
    chat.create("ann", "g", open=True)
    chat.join("bob", "g")
    devices = [phone(chat, user) for user in USERS]
    for step, text in enumerate("abcdef"):
        if step == 2:
            chat.leave("bob", "g")
        if step == 3:
            chat.join("cat", "g")
            chat.join("dan", "g")
        if step == 5:
            chat.join("bob", "g")
        chat.send("ann", "g/g", text)
        if step % 2:
            for device in devices:
                device.sync()
    assert [texts(device) for device in devices] == [list("abcdef"), list("abf"), list("def"), list("def")]
    assert set(devices[0].kinds) == {"groups", "inbox", "g/g"}


def test_who_is_no_member(chat: Messaging) -> None:
    """Does not send, invite, or read the list of members; only the owner removes; only open groups are joined."""
    chat.create("ann", "g")
    chat.create("ann", "open", open=True)
    chat.invite("ann", "g", "bob")
    assert chat.create("ann", "g") == 2
    refused: list[tuple[str, Callable[[], object]]] = [
        ("not_a_member", lambda: chat.send("cat", "g/g", "x")),
        ("not_a_member", lambda: chat.invite("cat", "g", "dan")),
        ("not_a_member", lambda: chat.join("cat", "g")),
        ("not_a_member", lambda: chat.members("cat", "g")),
        ("not_the_owner", lambda: chat.remove("bob", "g", "ann")),
        ("exists", lambda: chat.create("bob", "g")),
        ("unknown", lambda: chat.join("bob", "none")),
        ("unknown", lambda: chat.send("bob", "g/none", "x")),
        ("unknown", lambda: chat.send("bob", "u/none", "x")),
        ("unknown", lambda: chat.send("none", "u/bob", "x")),
        ("unknown", lambda: chat.invite("ann", "g", "none")),
    ]
    for reason, call in refused:
        with pytest.raises(Refused) as found:
            call()
        assert found.value.reason == reason
    assert chat.join("cat", "open") == 2 == chat.join("cat", "open")
    assert chat.members("cat", "open") == ["ann", "cat"]
    assert chat.remove("ann", "g", "bob") == 3 == chat.leave("bob", "g")


@pytest.mark.parametrize("to", ["u/bob", "g/small", "g/large"])
def test_recall(strict: kvsvr.Engine, clock: Turned, to: str) -> None:
    """By who sent it, for two minutes, everywhere, also from devices that had it; a second time changes nothing."""
    chat = Messaging(strict, clock=clock)
    users(chat)
    for name in ("small", "large"):
        chat.create("ann", name)
        chat.invite("ann", name, "bob")
    chat._fan_out_max = 1 if to == "g/large" else 500
    devices = [phone(chat, "ann"), phone(chat, "bob"), phone(chat, "bob", "desk")]
    sent = chat.send("ann", to, "oops")
    assert [texts(device) for device in devices[:2]] == [["oops"]] * 2
    with pytest.raises(Refused) as found:
        chat.recall("bob", sent.source, sent.seq)
    assert found.value.reason == ("not_the_owner" if to.startswith("g/") else "unknown")
    clock.turn(100)
    chat.recall("ann", sent.source, sent.seq)
    chat.recall("ann", sent.source, sent.seq)
    for device in devices:
        assert texts(device) == [""]
        assert messages(device)[0].recalled
    other = chat.send("ann", to, "too late")
    clock.turn(121)
    with pytest.raises(Refused, match="120 s"):
        chat.recall("ann", other.source, other.seq)
    with pytest.raises(Refused):
        chat.recall("ann", sent.source, 7)


def test_read_marks(chat: Messaging) -> None:
    """On all devices of a user, and forwards only."""
    one, two = phone(chat, "ann"), phone(chat, "ann", "desk")
    assert chat.mark("ann", "u/bob", 5) and chat.mark("ann", "g/g", 9)
    assert not chat.mark("ann", "u/bob", 4) and not chat.mark("ann", "u/bob", 5)
    for device in (one, two):
        device.sync()
        assert device.kinds["marks"] == {b"u/bob": b"5", b"g/g": b"9"}


def test_blocks_and_contacts(chat: Messaging) -> None:
    """Who is blocked sends as before, and it does not arrive; groups are not concerned."""
    one = phone(chat, "bob")
    chat.keep("bob", "ann", "work")
    chat.block("bob", "ann")
    chat.send("ann", "u/bob", "unheard")
    chat.create("ann", "g")
    chat.invite("ann", "g", "bob")
    chat.send("ann", "g/g", "heard")
    assert texts(one) == ["heard"]
    chat.block("bob", "ann", on=False)
    chat.keep("bob", "ann", on=False)
    chat.send("ann", "u/bob", "heard again")
    assert texts(one) == ["heard", "heard again"]
    assert one.kinds["contacts"] == {} == one.kinds["blocks"]


def test_retention_by_age(strict: kvsvr.Engine, clock: Turned) -> None:
    """What all live devices have goes when it is old, bodies some time after; who has it keeps it."""
    chat = Messaging(strict, clock=clock, history=10 * DAY)
    users(chat)
    one, two = phone(chat, "bob"), phone(chat, "bob", "desk")
    for text in "abc":
        chat.send("ann", "u/bob", text)
        clock.turn(5 * DAY)
    one.sync()
    two.sync()
    assert chat.tidy("bob") == 0, "nobody has come back with a key"
    one.sync()
    assert chat.tidy("bob") == 0, "one of two has"
    two.sync()
    clock.turn(1)
    assert chat.tidy("bob") == 2
    assert texts(one) == texts(two) == ["a", "b", "c"]
    assert texts(phone(chat, "bob", "new")) == ["c"]
    told = chat.digest("bob", "inbox")
    assert told.count == 1 and digest_of(one.kinds["inbox"].items(), told.first) == told
    ttl = strict.ttl(words.body_key("u/ann", micros(1_000_000_000.0).to_bytes(8, "big")))
    assert ttl is not None and 39 * DAY < ttl <= 40 * DAY


def test_what_arrives_late_among_what_was_purged(strict: kvsvr.Engine, clock: Turned) -> None:
    """An old message that a worker delivers behind a purge comes to all devices, and alarms nobody."""
    chat = Messaging(strict, clock=clock, inbox_count_max=1, local=False)
    users(chat)
    chat.create("cat", "g", open=True)
    chat.join("bob", "g")
    one = phone(chat, "bob")
    for text in "abc":
        chat.send("ann", "u/bob", text)
        clock.turn(1)
        if text == "a":
            chat.send("cat", "g/g", "late")
            chat.send("ann", "u/bob", "next")
        chat.roster._visit(b"{u/ann}out", chat._do, "w", None, None)
    one.sync()
    one.sync()
    assert chat.tidy("bob") > 0
    chat.deliver()
    one.sync()
    told = chat.digest("bob", "inbox")
    assert "late" in texts(one) and digest_of(one.kinds["inbox"].items(), told.first) == told


def test_retention_by_count(strict: kvsvr.Engine, clock: Turned) -> None:
    chat = Messaging(strict, clock=clock, inbox_count_max=3)
    users(chat)
    one = phone(chat, "bob")
    for number in range(10):
        chat.send("ann", "u/bob", str(number))
    one.sync()
    one.sync()
    assert chat.tidy("bob") == 7 and chat.tidy("bob") == 0
    assert texts(phone(chat, "bob", "new")) == ["7", "8", "9"]


def test_retention_of_a_large_group(strict: kvsvr.Engine, clock: Turned) -> None:
    """The log by age; who had not read it begins anew; members who left before all that is left are forgotten."""
    chat = Messaging(strict, clock=clock, fan_out_max=1, history=10 * DAY)
    users(chat)
    chat.create("ann", "g", open=True)
    for user in ("bob", "cat"):
        chat.join(user, "g")
    chat.send("ann", "g/g", "old")
    one = phone(chat, "bob")
    one.sync()
    chat.send("ann", "g/g", "old, unread")
    chat.leave("cat", "g")
    chat.send("ann", "g/g", "old, too")
    clock.turn(11 * DAY)
    chat.send("ann", "g/g", "new")
    assert chat.tidy_group("g") == 3
    assert texts(one) == ["new"] and one.resyncs.count("g/g") == 2
    assert list(strict.table(b"{g/g}:members")) == [b"ann", b"bob"]
    assert "g/g" not in chat.sync._read_state("cat").shared


def test_members_who_left_stay_while_something_is_to_be_delivered(late: Messaging, strict: kvsvr.Engine) -> None:
    late.create("ann", "g")
    late.invite("ann", "g", "bob")
    late.send("ann", "g/g", "x")
    late.leave("bob", "g")
    late.tidy_group("g")
    late.deliver()
    assert texts(phone(late, "bob")) == ["x"]
    late.tidy_group("g")
    assert list(strict.table(b"{g/g}:members")) == [b"ann"]


# --- kills and races ---


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("at", range(1, 7))
def test_a_kill_at_each_write_of_a_send(strict: kvsvr.Engine, clock: Turned, at: int, before: bool) -> None:
    """The client did not hear, and sends again; a worker comes by: both have the message once, as a row and as a
    text."""
    users(Messaging(strict, clock=clock))
    killed: Any = Dying(strict, at, before=before)
    dying = Messaging(killed, clock=clock)
    with suppress(Killed):
        dying.send("ann", "u/bob", "hello", "1")
    chat = Messaging(strict, clock=clock)
    clock.turn(61)
    chat.deliver()
    stored = texts(phone(chat, "ann"))
    assert texts(phone(chat, "bob")) == stored, "it was stored with its task, or not at all"
    chat.send("ann", "u/bob", "hello", "1")
    assert texts(phone(chat, "ann")) == texts(phone(chat, "bob")) == ["hello"]


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("at", range(1, 12))
def test_a_kill_at_each_write_of_a_group_that_becomes_large(
    strict: kvsvr.Engine, clock: Turned, at: int, before: bool
) -> None:
    chat = Messaging(strict, clock=clock, fan_out_max=2)
    users(chat)
    chat.create("ann", "g", open=True)
    chat.join("bob", "g")
    chat.send("ann", "g/g", "small")
    killed: Any = Dying(strict, at, before=before)
    dying = Messaging(killed, clock=clock, fan_out_max=2)
    try:
        dying.join("cat", "g")
        dying.send("ann", "g/g", "large", "1")
    except Killed:
        clock.turn(61)
    chat.deliver()
    chat.join("cat", "g")
    chat.send("ann", "g/g", "large", "1")
    chat.deliver()
    assert texts(phone(chat, "ann")) == texts(phone(chat, "bob")) == ["small", "large"]
    assert texts(phone(chat, "cat")) == ["large"]


def test_a_worker_between_task_and_roster(strict: kvsvr.Engine, clock: Turned) -> None:
    """It comes before the transaction, finds nothing, and does not take the outbox off the list."""
    chat = Messaging(strict, clock=clock, local=False)
    users(chat)

    def look() -> None:
        assert Messaging(strict, clock=clock).deliver() == 0

    clock.turn(29)
    db: Any = Interposed(strict, "get", b"{roster/messaging}", look, behind=True)
    Messaging(db, clock=clock, local=False).send("ann", "u/bob", "x")
    clock.turn(10_000)
    assert chat.deliver() == 1
    assert texts(phone(chat, "bob")) == ["x"]


def test_what_cannot_be_delivered_now_is_delivered_later(strict: kvsvr.Engine, clock: Turned) -> None:
    """A slot that does not answer does not make a send fail that is stored."""
    users(Messaging(strict, clock=clock))

    def fail() -> None:
        raise kvsvr.Unavailable("no quorum")

    db: Any = Interposed(strict, "get", b"{u/bob}:t:blocks", fail, behind=False)
    Messaging(db, clock=clock).send("ann", "u/bob", "x")
    chat = Messaging(strict, clock=clock)
    assert texts(phone(chat, "bob")) == []
    assert chat.deliver() == 1
    assert texts(phone(chat, "bob")) == ["x"]


def test_waiting_is_for_messages(chat: Messaging) -> None:
    one = phone(chat, "bob")
    one.sync()
    assert not chat.wait("bob", "phone", one.key, 0.01)
    chat.send("ann", "u/bob", "x")
    began = time.monotonic()
    assert chat.wait("bob", "phone", one.key, 10) and time.monotonic() - began < 5


# --- requests ---


def ask(chat: Messaging, user: str, request: bytes) -> Any:
    """As a gateway would: JSON in, JSON out."""
    decoded = msgspec.json.decode(request, type=words.AnyRequest)
    return msgspec.json.decode(msgspec.json.encode(chat.handle(user, "phone", decoded)))


def test_requests_in_json(chat: Messaging) -> None:
    """Each of them, from the bytes of a client to the bytes of an answer."""
    sent = ask(chat, "ann", b'{"do":"send","to":"u/bob","text":"hi","client_id":"1"}')
    assert sent == {"is": "sent", "source": "u/ann", "seq": sent["seq"], "epoch": 0}
    assert ask(chat, "ann", b'{"do":"create","group":"g","name":"G","open":true}') == {"is": "epoch", "epoch": 1}
    assert ask(chat, "bob", b'{"do":"join","group":"g"}') == {"is": "epoch", "epoch": 2}
    assert ask(chat, "bob", b'{"do":"invite","group":"g","user":"cat"}') == {"is": "epoch", "epoch": 3}
    assert ask(chat, "ann", b'{"do":"remove","group":"g","user":"cat"}') == {"is": "epoch", "epoch": 4}
    assert ask(chat, "bob", b'{"do":"members","group":"g"}') == {"is": "memberlist", "users": ["ann", "bob"]}
    assert ask(chat, "bob", b'{"do":"leave","group":"g"}') == {"is": "epoch", "epoch": 5}
    for request in (
        b'{"do":"recall","source":"u/ann","seq":%d}' % sent["seq"],
        b'{"do":"mark","conversation":"u/bob","seq":3}',
        b'{"do":"block","user":"dan"}',
        b'{"do":"keep","user":"bob","note":"b"}',
    ):
        assert ask(chat, "ann", request) == {"is": "done"}
    page = ask(chat, "ann", b'{"do":"pull"}')
    kinds = {one["kind"]: [value for _, value in one["rows"]] for one in page["changes"]}
    assert kinds["contacts"] == [{"note": "b"}] and kinds["marks"] == [3] and kinds["blocks"] == [True]
    assert kinds["inbox"][0]["recalled"] is True
    again = msgspec.json.encode({"do": "pull", "key": page["key"]})
    assert ask(chat, "ann", again) == {"is": "page", "changes": [], "key": page["key"], "more": False}
    wait = msgspec.json.encode({"do": "wait", "key": page["key"], "timeout": 0})
    assert ask(chat, "ann", wait) == {"is": "woken", "new": False}
    assert ask(chat, "ann", b'{"do":"check","kind":"marks"}')["count"] == 1
    assert ask(chat, "bob", again)["reason"] == "sync_key"
    assert ask(chat, "bob", b'{"do":"send","to":"bob","text":""}')["reason"] == "usage"
    assert ask(chat, "bob", b'{"do":"send","to":"g/g","text":""}')["reason"] == "not_a_member"


@pytest.mark.parametrize("to", ["", "bob", "u/", "g/", "u/a}b", "u/a{b", "x/bob", "u/" + "x" * 201])
def test_receivers_that_are_none(chat: Messaging, to: str) -> None:
    with pytest.raises((kvsvr.UsageError, Refused)):
        chat.send("ann", to, "x")


def test_texts_that_are_too_long(chat: Messaging) -> None:
    with pytest.raises(kvsvr.UsageError):
        chat.send("ann", "u/bob", "x" * 65_537)
    with pytest.raises(kvsvr.UsageError):
        chat.send("ann", "u/bob", "x", "i" * 201)
    with pytest.raises(kvsvr.UsageError):
        chat.send_many("ann", [words.Send("u/bob", "x")] * 1001)
