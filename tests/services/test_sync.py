"""Sync: what devices are given and acknowledge, what goes and when, who begins anew, and whom keys are of."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

import kvsvr
from kvsvr.services.sync import PRESENT, Spans, _encode
from kvsvr.sync import Refused, Sync, digest_of
from tests.services.conftest import Interposed, Turned
from tests.services.devices import Phone

SECRET = b"0123456789abcdef"
DAY = 86_400


@pytest.fixture
def sync(strict: kvsvr.Engine, clock: Turned) -> Sync:
    return Sync(strict, SECRET, clock=clock, lease=30 * DAY)


def phone(sync: Sync, user: str = "ann", name: str = "phone") -> Phone:
    return Phone(sync.pull, user, name)


def row(number: int) -> bytes:
    return number.to_bytes(8, "big")


def agree(sync: Sync, device: Phone, kind: str) -> bool:
    """The device's own rows, from the first that is still here, have the digest that it is told."""
    told = sync.digest(device.user, kind)
    return digest_of(device.kinds.get(kind, {}).items(), told.first) == told


def test_on_any_store(store: Any) -> None:
    """Rows of several kinds, deletions, pages, a second device, a purge and a resync: embedded, and on a set."""
    clock = Turned(time.time())
    sync = Sync(store, SECRET, clock=clock, lease=DAY)
    one, two = phone(sync, "any"), phone(sync, "any", "desk")
    for number in range(7):
        sync.put("any", "inbox", row(number), b"%d" % number)
    sync.put("any", "contacts", b"bob", b"Bob")
    assert one.sync(limit=3) == 8
    sync.delete("any", "contacts", b"bob")
    sync.put("any", "contacts", b"cat", b"Cat")
    one.sync(limit=1)
    two.sync()
    assert one.kinds == two.kinds == {"inbox": {row(n): b"%d" % n for n in range(7)}, "contacts": {b"cat": b"Cat"}}
    assert one.ask().key == one.key and not one.ask().changes
    two.ask()
    sync.sweep("any")
    assert sync.purge("any", "inbox", row(5)) == 5
    assert one.sync() == two.sync() == 0
    assert agree(sync, one, "inbox")
    clock.turn(2 * DAY)
    sync.put("any", "inbox", row(9), b"9")
    two.sync()
    two.ask()
    sync.sweep("any")
    assert sync.purge("any", "inbox", row(99)) == 3
    sync.put("any", "inbox", row(10), b"10")
    one.resyncs.clear()
    one.sync()
    assert one.resyncs == ["inbox"] and one.kinds["inbox"] == {row(10): b"10"}
    assert not sync.wait("any", "phone", one.key, 0.05)
    timer = threading.Timer(0.2, sync.put, ("any", "inbox", row(11), b"11"))
    timer.start()
    assert sync.wait("any", "phone", one.key, 20)
    timer.join()


def test_nothing_new_costs_no_write(sync: Sync, strict: kvsvr.Engine) -> None:
    """And gives the same key back."""
    one = phone(sync)
    sync.put("ann", "inbox", b"a", b"1")
    one.sync()
    one.ask()
    before = strict.stats()["sequence"]
    for _ in range(3):
        pulled = one.ask()
        assert (pulled.key, pulled.changes, pulled.more) == (one.key, [], False)
    assert strict.stats()["sequence"] == before


def test_a_lost_reply_is_asked_for_again(sync: Sync) -> None:
    """The same key gives the same again, also in the middle of a snapshot."""
    one = phone(sync)
    for number in range(5):
        sync.put("ann", "inbox", row(number), b"")
    assert one.ask(2).changes == one.ask(2).changes
    one.take(one.ask(2))
    lost = one.ask(2)
    assert one.ask(2).changes == lost.changes
    one.sync(2)
    assert len(one.kinds["inbox"]) == 5 and one.resyncs == ["inbox"]


def test_new_kinds_need_nothing(sync: Sync) -> None:
    """A kind that nobody heard of comes as the others do."""
    one = phone(sync)
    one.sync()
    sync.put("ann", "stickers", b"1", b"cat")
    one.sync()
    assert one.kinds == {"stickers": {b"1": b"cat"}}


def test_kinds_in_one_batch_come_together(sync: Sync, strict: kvsvr.Engine) -> None:
    one = phone(sync)
    one.sync()
    with strict.batch() as batch:
        sync.feed(batch, "ann", "a").put(b"x", b"1")
        sync.feed(batch, "ann", "b").put(b"x", b"2")
        sync.feed(batch, "ann", "b").delete(b"y")
    pulled = one.ask()
    assert sorted(changes.kind for changes in pulled.changes) == ["a", "b"]


def test_a_change_is_given_once_in_pages(sync: Sync) -> None:
    """Pages of any size give each change once, whatever is written between them, and end."""
    for limit in (1, 2, 3, 7):
        one = phone(sync, f"user{limit}")
        one.sync()
        for number in range(20):
            sync.put(one.user, "inbox" if number % 3 else "other", row(number), b"%d" % number)
        one.sync(limit)
        count = 0
        for number in range(20, 40):
            sync.put(one.user, "inbox", row(number), b"")
            pulled = one.ask(limit)
            one.take(pulled)
            count += sum(len(changes.rows) for changes in pulled.changes)
        count += one.sync(limit)
        assert count == 20
        assert agree(sync, one, "inbox") and agree(sync, one, "other")


def test_writes_during_a_snapshot(sync: Sync) -> None:
    """Before the cursor and behind it, put and deleted: the copy is right in the end."""
    for number in range(0, 40, 2):
        sync.put("ann", "inbox", row(number), b"old")
    one, number = phone(sync), 0
    while True:
        pulled = one.ask(3)
        one.take(pulled)
        if not pulled.more:
            break
        if number < 20:
            sync.put("ann", "inbox", row(2 * number + 1), b"new")
            sync.delete("ann", "inbox", row(38 - 2 * number))
            sync.put("ann", "inbox", row(number), b"newer")
        number += 1
    assert agree(sync, one, "inbox") and one.resyncs == ["inbox"]


def test_an_older_key_is_a_legal_retry(sync: Sync) -> None:
    """A device that was restored from a backup is given what came since; it holds the floor back from then on."""
    one = phone(sync)
    sync.put("ann", "inbox", row(1), b"1")
    one.sync()
    old = one.key, {kind: dict(rows) for kind, rows in one.kinds.items()}
    sync.put("ann", "inbox", row(2), b"2")
    one.sync()
    one.ask()
    one.key, one.kinds = old
    one.ask()
    sync.sweep("ann")
    assert sync.purge("ann", "inbox", row(9)) == 1, "row 2 has not been given to this device, as it is now"
    one.sync()
    assert set(one.kinds["inbox"]) == {row(1), row(2)} and one.resyncs == ["inbox"]


def test_an_older_key_below_the_floor(sync: Sync) -> None:
    """What it acknowledged and has lost may be gone: it begins anew, with an answer and no error."""
    one = phone(sync)
    sync.put("ann", "inbox", row(1), b"1")
    one.sync()
    old = one.key
    sync.put("ann", "inbox", row(2), b"2")
    one.sync()
    one.ask()
    assert sync.purge("ann", "inbox", row(9)) == 2
    sync.put("ann", "inbox", row(3), b"3")
    one.key = old
    one.sync()
    assert one.resyncs == ["inbox"] * 2 and set(one.kinds["inbox"]) == {row(3)}


def test_what_a_live_device_has_not_acknowledged_stays(sync: Sync, clock: Turned) -> None:
    """Neither sweep nor purge passes it, however long it is away, until its lease ends."""
    one, two = phone(sync), phone(sync, name="desk")
    for device in (one, two):
        device.sync()
    for number in range(5):
        sync.put("ann", "inbox", row(number), b"")
    sync.delete("ann", "inbox", row(2))
    one.sync()
    one.ask()
    sync.sweep("ann")
    assert sync.purge("ann", "inbox", row(99)) == 0
    clock.turn(29 * DAY)
    two.sync()
    assert set(two.kinds["inbox"]) == {row(0), row(1), row(3), row(4)} == set(one.kinds["inbox"])
    assert two.resyncs == one.resyncs == ["inbox"]


def test_a_reply_that_was_lost_is_no_acknowledgement(sync: Sync) -> None:
    """What was sent and not come back for stays."""
    one = phone(sync)
    one.sync()
    sync.put("ann", "inbox", row(1), b"1")
    one.ask()
    sync.sweep("ann")
    assert sync.purge("ann", "inbox", row(9)) == 0
    one.sync()
    assert sync.purge("ann", "inbox", row(9)) == 0
    one.ask()
    assert sync.purge("ann", "inbox", row(9)) == 1


def test_a_snapshot_under_way_holds_the_floor(sync: Sync) -> None:
    """A device that has some pages has acknowledged nothing of the kind."""
    one = phone(sync)
    for number in range(6):
        sync.put("ann", "inbox", row(number), b"")
    one.take(one.ask(2))
    one.ask(2)
    assert sync.purge("ann", "inbox", row(9)) == 0
    one.sync(2)
    assert len(one.kinds["inbox"]) == 6


def test_a_device_that_came_behind_a_floor_holds_purges_back(sync: Sync) -> None:
    """The floor rose before it came; what it is being given stays all the same."""
    one, two = phone(sync), phone(sync, name="desk")
    for number in range(3):
        sync.put("ann", "inbox", row(number), b"")
    one.sync()
    one.ask()
    sync.sweep("ann")
    two.take(two.ask(1))
    assert sync.purge("ann", "inbox", row(9)) == 0
    two.sync(1)
    two.ask()
    assert len(two.kinds["inbox"]) == 3 and sync.purge("ann", "inbox", row(9)) == 3


def test_a_lease_that_ended(sync: Sync, clock: Turned) -> None:
    """Holds nothing up; the device begins those kinds anew of which something went, and no others."""
    one, two = phone(sync), phone(sync, name="desk")
    sync.put("ann", "contacts", b"bob", b"")
    sync.put("ann", "inbox", row(0), b"0")
    for device in (one, two):
        device.sync()
    sync.put("ann", "inbox", row(1), b"1")
    clock.turn(31 * DAY)
    two.sync()
    two.ask()
    sync.sweep("ann")
    assert list(sync.devices("ann")) == ["desk"]
    assert sync.purge("ann", "inbox", row(9)) == 2
    sync.put("ann", "inbox", row(2), b"2")
    one.resyncs.clear()
    one.sync()
    two.sync()
    assert one.resyncs == ["inbox"]
    assert one.kinds == {"contacts": {b"bob": b""}, "inbox": {row(2): b"2"}}
    assert agree(sync, one, "inbox") and agree(sync, two, "inbox")


def test_no_device_lives(sync: Sync, clock: Turned) -> None:
    """sweep lets nothing go, since nobody has confirmed anything; purge waits for nobody."""
    one = phone(sync)
    one.sync()
    sync.put("ann", "inbox", row(1), b"1")
    sync.delete("ann", "contacts", b"x")
    clock.turn(31 * DAY)
    sync.sweep("ann")
    assert sync._read_state("ann").floors == {"inbox": 0, "contacts": 0}
    assert sync.purge("ann", "inbox", row(9)) == 1
    one.sync()
    assert sorted(one.resyncs) == ["contacts", "inbox"] and one.kinds["inbox"] == {}


def test_tombstones_go(sync: Sync, strict: kvsvr.Engine) -> None:
    """When every live device knows; and the table's own memory of them with the next sweep."""
    one = phone(sync)
    for number in range(50):
        sync.put("ann", "inbox", row(number), b"")
        sync.delete("ann", "inbox", row(number))
    table = strict.table(b"{u/ann}:t:inbox")
    one.sync()
    sync.sweep("ann")
    assert len(table) == 50
    one.ask()
    sync.sweep("ann")
    assert len(table) == 0
    sync.put("ann", "inbox", row(99), b"")
    one.sync()
    one.ask()
    sync.sweep("ann")
    assert one.kinds["inbox"] == {row(99): b""} and one.resyncs == ["inbox"]
    assert not table.changes(1).complete, "deletes below the floor are forgotten"


def test_a_row_written_again_while_it_is_purged(sync: Sync, strict: kvsvr.Engine) -> None:
    """Is above the floor, and stays."""
    one = phone(sync)
    sync.put("ann", "inbox", row(1), b"1")
    sync.put("ann", "inbox", row(2), b"2")
    one.sync()
    one.ask()
    sync.put("ann", "inbox", row(1), b"again")
    assert sync.purge("ann", "inbox", row(9)) == 0, "and nothing behind it, so that what stays is a tail"
    one.sync()
    assert one.kinds["inbox"][row(1)] == b"again"


def test_a_row_written_again_between_look_and_delete(strict: kvsvr.Engine, sync: Sync) -> None:
    """The delete is of the version that was looked at."""
    one = phone(sync)
    sync.put("ann", "inbox", row(1), b"1")
    one.sync()
    one.ask()
    db: Any = Interposed(
        strict,
        "get_versioned",
        b"{u/ann}:t:inbox",
        lambda: sync.put("ann", "inbox", row(1), b"again"),
        behind=True,
    )
    assert Sync(db, SECRET, clock=sync._clock).purge("ann", "inbox", row(9)) == 0
    one.sync()
    assert sync.get("ann", "inbox", row(1)) == one.kinds["inbox"][row(1)] == b"again"


def test_keys_are_of_one_device(sync: Sync, strict: kvsvr.Engine) -> None:
    """Another user's, another device's, one that was changed in any bit, or cut: refused, and nothing is done."""
    one = phone(sync)
    sync.put("ann", "inbox", b"a", b"1")
    one.sync()
    key = one.key
    assert key is not None and len(key) < 40
    before = strict.stats()["sequence"]
    changed = [bytes([*key[:i], key[i] ^ 1 << bit, *key[i + 1 :]]) for i in range(len(key)) for bit in range(8)]
    for bad in [*changed, b"", key[:-1], key[:12], key + b"\0"]:
        with pytest.raises(Refused) as found:
            sync.pull("ann", "phone", bad)
        assert found.value.reason == "sync_key"
    for user, device in (("bob", "phone"), ("ann", "desk"), ("an", "nphone")):
        with pytest.raises(Refused):
            sync.pull(user, device, key)
        with pytest.raises(Refused):
            sync.wait(user, device, key, 0)
    assert strict.stats()["sequence"] == before


def test_secrets_are_exchanged(strict: kvsvr.Engine, sync: Sync) -> None:
    """Keys of the old one are taken while it is named; one that is kept in the store is the same for all."""
    key = sync.pull("ann", "phone", None).key
    assert Sync(strict, [b"another secret !!", SECRET]).pull("ann", "phone", key)
    with pytest.raises(Refused):
        Sync(strict, b"another secret !!").pull("ann", "phone", key)
    with pytest.raises(kvsvr.UsageError):
        Sync(strict, b"short")
    assert Sync(strict).pull("ann", "phone", Sync(strict).pull("ann", "phone", None).key)


def test_more_devices_than_there_may_be(sync: Sync, clock: Turned) -> None:
    """One too many is refused, until one is forgotten or its lease has ended."""
    for number in range(32):
        phone(sync, name=f"d{number}").sync()
    with pytest.raises(Refused, match="32"):
        phone(sync, name="more").sync()
    sync.forget("ann", "d3")
    phone(sync, name="more").sync()
    clock.turn(31 * DAY)
    phone(sync, name="late").sync()
    assert list(sync.devices("ann")) == ["late"]


def test_a_version_of_the_future(sync: Sync, strict: kvsvr.Engine) -> None:
    """A store that was set back, as by a backup, does not know the key's version: all begins anew."""
    one = phone(sync)
    sync.put("ann", "inbox", b"a", b"1")
    one.sync()
    strict.delete(b"{u/ann}:head")
    strict.delete(b"{u/ann}:t:inbox")
    one.key = sync._sealed("ann", "phone", type(sync._opened("ann", "phone", one.key))(1 << 40))
    sync.put("ann", "inbox", b"b", b"2")
    one.sync()
    assert one.kinds["inbox"] == {b"b": b"2"}


def test_waiting(sync: Sync) -> None:
    """Until something comes, and not before; a poke says nothing and costs a look."""
    one = phone(sync)
    one.sync()
    began = time.monotonic()
    assert not sync.wait("ann", "phone", one.key, 0.1)
    assert time.monotonic() - began >= 0.09
    for wake in (lambda: sync.put("ann", "inbox", b"a", b""), lambda: sync.poke("ann")):
        timer = threading.Timer(0.1, wake)
        timer.start()
        assert sync.wait("ann", "phone", one.key, 20)
        timer.join()
        one.sync()
    assert time.monotonic() - began < 10
    sync.put("ann", "inbox", b"b", b"")
    sync.put("ann", "inbox", b"c", b"")
    one.take(one.ask(1))
    assert sync.wait("ann", "phone", one.key, 20), "there is more of what was begun"


def spans(strict: kvsvr.Engine, user: str, *shown: tuple[int, int | None]) -> None:
    content: Spans = [(row(first), None if stop is None else row(stop)) for first, stop in shown]
    strict.table(b"{g/1}:gate").put(user.encode(), _encode(content))


def write(strict: kvsvr.Engine, *numbers: int) -> None:
    for number in numbers:
        strict.table(b"{g/1}:log").put(row(number), PRESENT + b"%d" % number)


def test_a_table_that_many_read(sync: Sync, strict: kvsvr.Engine) -> None:
    """Each sees what the gate shows, as it is when the rows are read; pages may be empty, and end."""
    one, two = phone(sync), phone(sync, "bob")
    for device in (one, two):
        device.sync()
        sync.share(device.user, "g/1", b"{g/1}:log", b"{g/1}:gate")
        sync.share(device.user, "g/1", b"{g/1}:log", b"{g/1}:gate")
    two.sync()
    write(strict, *range(10))
    spans(strict, "ann", (2, 5), (7, None))
    one.sync(1)
    two.sync(1)
    assert set(one.kinds["g/1"]) == {row(n) for n in (2, 3, 4, 7, 8, 9)}
    assert "g/1" not in two.kinds
    spans(strict, "bob", (10, None))
    spans(strict, "ann", (2, 5), (7, 11))
    write(strict, 10, 11, 3)
    one.sync(1)
    two.sync()
    assert set(two.kinds["g/1"]) == {row(10), row(11)}
    assert set(one.kinds["g/1"]) == {row(n) for n in (2, 3, 4, 7, 8, 9, 10)}
    assert agree(sync, one, "g/1") and agree(sync, two, "g/1")
    sync.unshare("ann", "g/1")
    write(strict, 8)
    assert one.sync() == 0


@pytest.mark.parametrize("call", ["rows", "changes"])
def test_shut_out_while_it_is_read(sync: Sync, strict: kvsvr.Engine, call: str) -> None:
    """The gate is closed and a row written between the first look at the gate and the rows: it is not shown."""
    spans(strict, "ann", (0, None))
    write(strict, 1)
    one = phone(sync)
    sync.share("ann", "g/1", b"{g/1}:log", b"{g/1}:gate")
    if call == "changes":
        one.sync()
        write(strict, 2)

    def shut_out() -> None:
        spans(strict, "ann", (0, 5))
        write(strict, 5)

    db: Any = Interposed(strict, call, b"{g/1}:log", shut_out, behind=False)
    racing = Phone(Sync(db, SECRET, clock=sync._clock).pull, "ann", "phone")
    racing.key, racing.kinds = one.key, one.kinds
    racing.sync()
    assert set(racing.kinds["g/1"]) == {row(1), row(2)} - ({row(2)} if call == "rows" else set())


def test_the_history_of_a_shared_table_is_not_gone_through(sync: Sync, strict: kvsvr.Engine) -> None:
    """Who joins late begins where he may see."""
    write(strict, *range(500))
    spans(strict, "ann", (495, None))
    one = phone(sync)
    sync.share("ann", "g/1", b"{g/1}:log", b"{g/1}:gate")
    one.sync(10)
    assert len(one.kinds["g/1"]) == 5 and one.page_count <= 2


def test_waiting_for_a_shared_table(sync: Sync, strict: kvsvr.Engine) -> None:
    """Who waits is on the list of the table, and is poked by who writes."""
    spans(strict, "ann", (0, None))
    one = phone(sync)
    sync.share("ann", "g/1", b"{g/1}:log", b"{g/1}:gate")
    one.sync()

    def send() -> None:
        write(strict, 1)
        assert sync.poke_watchers(b"{g/1}:log") == 1

    timer = threading.Timer(0.2, send)
    timer.start()
    assert sync.wait("ann", "phone", one.key, 20)
    timer.join()
    one.sync()
    assert one.kinds["g/1"] == {row(1): b"1"}


@pytest.mark.parametrize(
    ("name", "limit"), [("", 1), ("a{b", 1), ("a\0", 1), ("x" * 201, 1), ("ann", 0), ("ann", 1001)]
)
def test_calls_that_are_none(sync: Sync, name: str, limit: int) -> None:
    with pytest.raises(kvsvr.UsageError):
        sync.pull(name, "phone", None, limit)
