"""Tables by example: one test a promise. Long histories are in test_state_machine.py, threads below."""

from __future__ import annotations

import copy
import pickle
import random
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import kvsvr
from kvsvr.store.engine import _writers

KEY = b"t"


@pytest.fixture
def db(tmp_path: Path) -> Iterator[kvsvr.Engine]:
    with kvsvr.open(tmp_path / "store", sync="none") as db:
        yield db


@pytest.fixture
def t(db: kvsvr.Engine) -> kvsvr.Table:
    return db.table(KEY)


def kill(db: kvsvr.Engine) -> None:
    """As kill -9: no seal, no sync, no checkpoint; the lock goes."""
    held = db._shut.detach()
    assert held is not None
    handle, keeper, place = held[2]
    keeper.stop()
    _writers.leave(place)
    handle.__del__()


class Consumer:
    """Knows a version and a copy, and how to go on."""

    def __init__(self, since: int = 0, content: dict[bytes, bytes] | None = None) -> None:
        self.since = since
        self.copy = dict(content or {})
        self.restart_count = 0

    def catch_up(self, t: kvsvr.store.TableReads, limit: int | None = None) -> dict[bytes, bytes]:
        while True:
            page = t.changes(self.since, limit)
            if not page.complete:
                self.since, self.copy = 0, {}
                self.restart_count += 1
                assert self.restart_count < 10, "it is told to begin again, and again"
                continue
            assert page.version >= self.since
            self.copy.update(page.rows)
            for row in page.deleted:
                self.copy.pop(row, None)
            self.since = page.version
            if not page.more:
                return self.copy


# --- rows ---


def test_rows_are_set_read_and_deleted(t: kvsvr.Table) -> None:
    first = t.put(b"b", b"1")
    assert t.version == first
    assert t.put(b"a", bytearray(b"2")) > first
    assert t.get(memoryview(b"a")) == t[b"a"] == b"2"
    assert t.get(b"c") is None
    assert t.get(b"c", 7) == 7
    assert (b"a" in t, b"c" in t, len(t), bool(t)) == (True, False, 2, True)
    assert list(t) == [b"a", b"b"]
    assert dict(t) == {b"a": b"2", b"b": b"1"}
    assert t.get_versioned(b"b") == kvsvr.Versioned(b"1", first, None)
    assert t.get_versioned(b"c") is None
    assert t.delete(b"b")
    assert not t.delete(b"b")
    del t[b"a"]
    with pytest.raises(KeyError):
        del t[b"a"]
    with pytest.raises(KeyError):
        t[b"a"]
    assert (len(t), list(t)) == (0, [])


def test_a_row_has_0_to_65535_bytes(t: kvsvr.Table) -> None:
    long = b"r" * 65_535
    t[b""], t[long] = b"", b"v"
    assert dict(t.rows()) == {b"": b"", long: b"v"}
    assert list(t.rows(limit=1)) == [(b"", b"")]
    assert list(t.rows(reverse=True)) == [(long, b"v"), (b"", b"")]
    calls: list[Callable[[bytes], object]] = [
        t.get,
        t.delete,
        t.incr,
        t.get_versioned,
        lambda row: t.put(row, b""),
        lambda row: t.cas(row, b"", 0),
        lambda row: t.put_many([(row, b"")]),
    ]
    for call in calls:
        with pytest.raises(kvsvr.UsageError, match="a row has 0 to 65535 bytes"):
            call(long + b"r")


def test_names_are_bytes(db: kvsvr.Engine, t: kvsvr.Table) -> None:
    wrong: Any = "text"
    for call in (db.table, t.get, t.delete, lambda row: t.put(row, b""), lambda value: t.put(b"r", value), t.append):
        with pytest.raises(TypeError, match=r"\.encode\(\)"):
            call(wrong)
    for key in (b"", b"k" * 65_536):
        with pytest.raises(kvsvr.UsageError, match="a table has a key of 1 to 65535 bytes"):
            db.table(key)


def test_values_may_be_large(db: kvsvr.Engine, t: kvsvr.Table) -> None:
    large = random.Random(1).randbytes(3 << 20)
    t.put(b"large", large)
    row = t.append(large)
    with db.batch() as batch:
        batch.table(KEY).put(b"batch", large)
    assert dict(t.rows()) == {b"large": large, row: large, b"batch": large}
    assert Consumer().catch_up(t) == dict(t.rows())
    with db.snapshot() as snapshot:
        t.delete(b"large")
        assert snapshot.table(KEY)[b"large"] == large


def test_cas_and_delete_compare_the_rows_version(t: kvsvr.Table) -> None:
    version = t.cas(b"r", b"1", 0)
    t.put(b"other", b"")
    calls: list[Callable[[], object]] = [lambda: t.cas(b"r", b"2", 0), lambda: t.delete(b"r", version=version + 1)]
    for call in calls:
        with pytest.raises(kvsvr.VersionConflict, match=r"row b'r' of b't' is at version") as caught:
            call()
        assert (caught.value.key, caught.value.table, caught.value.current) == (b"r", KEY, version)
        again = pickle.loads(pickle.dumps(caught.value))
        assert (again.key, again.table, again.current) == (b"r", KEY, version)
    assert t.delete(b"r", version=t.cas(b"r", b"2", version))


def test_incr_counts_in_a_row_and_keeps_its_expiry(t: kvsvr.Table) -> None:
    assert t.incr(b"n", 5, ttl=100) == 5
    assert t.incr(b"n", -7) == -2
    found = t.get_versioned(b"n")
    assert found is not None
    assert found.expires_at is not None
    t[b"text"] = b"x"
    with pytest.raises(kvsvr.WrongType) as caught:
        t.incr(b"text")
    assert (caught.value.key, caught.value.table) == (b"text", KEY)


def test_a_row_expires(db: kvsvr.Engine, t: kvsvr.Table) -> None:
    t.put(b"short", b"1", ttl=50)
    t.put(b"long", b"2", ttl=5000)
    row = t.append(b"3", ttl=50)
    db._handle.shift_clock(1000)
    assert list(t.rows()) == [(b"long", b"2")]
    assert (b"short" in t, row in t) == (False, False)
    assert t.cas(b"short", b"again", 0) > 0


# --- in order ---


def test_rows_come_in_order_in_ranges_and_from_the_end(t: kvsvr.Table) -> None:
    names = [b"", b"a", b"a\0", b"ab", b"b", b"\xff", b"\xff\xff"]
    for name in random.Random(2).sample(names, len(names)):
        t.put(name, b"v" + name)
    assert list(t) == names
    assert list(t.rows(b"a", b"b")) == [(name, b"v" + name) for name in names[1:4]]
    assert list(t.keys(prefix=b"a")) == names[1:4]
    assert list(t.keys(prefix=b"\xff")) == names[5:]
    assert list(t.keys(b"ab", reverse=True, limit=2)) == [b"\xff\xff", b"\xff"]
    assert [row for row, _ in t.last(2)] == names[-2:]
    assert [row for row, _ in t.last(99)] == names
    assert t.last(0) == []
    with pytest.raises(kvsvr.UsageError):
        t.rows(b"a", prefix=b"a")
    with pytest.raises(kvsvr.UsageError):
        t.last(-1)


def test_rows_of_neighbouring_tables_do_not_mix(db: kvsvr.Engine) -> None:
    """Names of one are no prefix, suffix or neighbour of another's."""
    keys = [b"a", b"a\0", b"ab", b"b"]
    for key in keys:
        db.table(key).put_many((b"%d" % n, key) for n in range(100))
    for key in keys:
        assert [value for _, value in db.table(key).rows()] == [key] * 100
        assert [value for _, value in db.table(key).rows(reverse=True)] == [key] * 100
    assert list(db.tables()) == keys
    assert list(db.tables(b"a")) == keys[:3]


def test_a_scan_of_rows_may_be_dropped_and_outlives_the_table(t: kvsvr.Table) -> None:
    t.put_many((b"%04d" % n, b"") for n in range(3000))
    rows = t.rows()
    assert next(rows) == (b"0000", b"")
    t.drop()
    assert len(list(rows)) < 3000
    assert list(rows) == []


# --- append ---


def test_appended_rows_are_in_the_order_they_came(t: kvsvr.Table) -> None:
    rows = [t.append(b"%d" % n) for n in range(300)]
    assert all(len(row) == 8 for row in rows)
    assert rows == sorted(set(rows))
    assert [value for _, value in t.last(3)] == [b"297", b"298", b"299"]


def test_row_ids_never_repeat(tmp_path: Path) -> None:
    """Not after deletes, drops, replacement, expiry, a close or a kill; alone and in batches."""
    given: list[int] = []
    chance = random.Random(3)
    db = kvsvr.open(tmp_path / "store", sync="none")
    for step in range(300):
        t = db.table(KEY)
        if chance.random() < 0.5:
            given.append(int.from_bytes(t.append(b"")))
        else:
            with db.batch() as batch:
                rows = [batch.table(KEY).append(b"") for _ in range(chance.randint(1, 9))]
            given += [int.from_bytes(row.row) for row in rows]
        match chance.randrange(12):
            case 0:
                t.drop()
            case 1:
                db.delete(KEY)
            case 2:
                t.delete(given[-1].to_bytes(8, "big"))
                t.delete_range()
            case 3:
                db.put(KEY, b"value")
                db.delete_many([KEY])
            case 4:
                db.expire(KEY, 10)
                db._handle.shift_clock(1000 * (step + 1))
            case 5:
                with db.batch() as batch:
                    batch.put(KEY, b"value")
                db.delete(KEY)
            case 6:
                kill(db)
                db = kvsvr.open(tmp_path / "store", sync="none")
            case 7:
                db.close()
                db = kvsvr.open(tmp_path / "store", sync="none")
    db.close()
    assert all(before < after for before, after in pairwise(given))


def test_a_row_put_by_hand_is_passed_over(t: kvsvr.Table) -> None:
    first = int.from_bytes(t.append(b"first"))
    by_hand = [(first + n).to_bytes(8, "big") for n in range(1, 6)]
    t.put_many((row, b"by hand") for row in by_hand)
    row = t.append(b"second")
    assert row > by_hand[-1]
    assert [t[one] for one in by_hand] == [b"by hand"] * 5


# --- many ---


def test_put_many_counts_pairs_and_the_last_of_a_row_wins(t: kvsvr.Table) -> None:
    assert t.put_many([]) == 0
    assert t.version == 0
    assert t.put_many(iter([(b"a", b"1"), (b"b", b"2"), (b"a", b"3")])) == 3
    assert dict(t) == {b"a": b"3", b"b": b"2"}
    assert t.put_many(((b"%05d" % n, b"v" * 100) for n in range(20_000)), ttl=60, durable=True) == 20_000
    assert len(t) == 20_002
    with pytest.raises(TypeError, match="items"):
        t.put_many({b"a": b"1"})  # type: ignore[dict-item]


def test_delete_range_takes_start_and_leaves_stop(t: kvsvr.Table) -> None:
    t.put_many((b"%05d" % n, b"") for n in range(20_000))
    assert t.delete_range(b"00010", b"19990") == 19_980
    assert list(t) == [b"%05d" % n for n in (*range(10), *range(19_990, 20_000))]
    assert t.delete_range(b"5", b"6") == 0
    assert t.delete_range() == 20
    assert (len(t), list(t)) == (0, [])
    assert t.version > 0, "an empty table is a table"


# --- the table as a whole ---


def test_an_absent_table_is_empty(db: kvsvr.Engine, t: kvsvr.Table) -> None:
    assert (len(t), t.version, t.expires_at, list(t), t.last(5)) == (0, 0, None, [], [])
    assert (t.drop(), t.delete(b"r"), t.delete_range(), t.trim(5)) == (False, False, 0, 0)
    assert t.changes(0) == kvsvr.Changes([], [], 0, False, True)
    assert not t.changes(7).complete
    assert list(db.tables()) == []
    assert t.version == 0, "reading and deleting do not make a table"


def test_a_dropped_table_is_gone_and_another_may_come(db: kvsvr.Engine, t: kvsvr.Table) -> None:
    t.put_many((b"%d" % n, b"") for n in range(1000))
    before = t.version
    assert t.drop(durable=True)
    assert (len(t), list(t), t.version, list(db.tables())) == (0, [], 0, [])
    assert db.wait(t, 0, 0) == db.wait(KEY, 0, 0) > before
    t[b"new"] = b"1"
    assert dict(t) == {b"new": b"1"}


def test_keys_and_tables_share_one_namespace(db: kvsvr.Engine, t: kvsvr.Table) -> None:
    """A key has a value or rows. Reads of the wrong kind raise, put replaces, delete drops."""
    t[b"r"] = b"1"
    calls: list[Callable[[], object]] = [
        lambda: db.get(KEY),
        lambda: db[KEY],
        lambda: db.get_versioned(KEY),
        lambda: db.get_many([b"x", KEY]),
        lambda: db.incr(KEY),
        lambda: db.append(KEY, b""),
        lambda: db.cas(KEY, b"", 0),
    ]
    for call in calls:
        with pytest.raises(kvsvr.WrongType, match=r"is a table and has no value: table\(\)"):
            call()
    assert (KEY in db, list(db), list(db.scan()), len(db)) == (False, [], [], 0)
    db[KEY] = b""
    assert (KEY in db, db[KEY], list(db.tables())) == (True, b"", [])
    calls = [
        lambda: t.get(b"r"),
        lambda: t.put(b"r", b""),
        lambda: t.put_many([(b"r", b"")]),
        lambda: t.append(b""),
        lambda: t.incr(b"r"),
        lambda: t.cas(b"r", b"", 0),
        lambda: t.delete(b"r"),
        lambda: t.delete_range(),
        lambda: t.drop(),
        lambda: t.trim(1),
        lambda: t.version,
        lambda: len(t),
        lambda: list(t),
        lambda: t.changes(0),
    ]
    for call in calls:
        with pytest.raises(kvsvr.WrongType, match="b't' has a value and is no table") as caught:
            call()
        assert caught.value.key == KEY
    del db[KEY]
    t[b"r"] = b"2"
    assert db.delete(KEY)
    assert t.get(b"r") is None


def test_a_table_expires_as_a_whole(db: kvsvr.Engine, t: kvsvr.Table) -> None:
    assert not db.expire(KEY, 5)
    t[b"r"] = b"1"
    assert (db.ttl(KEY), t.expires_at) == (None, None)
    assert db.expire(KEY, 5000)
    t[b"s"] = b"2"
    assert 0 < (db.ttl(KEY) or 0) <= 5000
    assert t.expires_at is not None
    assert db.persist(KEY)
    assert (db.ttl(KEY), db.table(KEY).expires_at) == (None, None)
    assert db.expire(KEY, 5000)
    db._handle.shift_clock(6000)
    assert (len(t), t.version, list(t), list(db.tables())) == (0, 0, [], [])
    t[b"new"] = b"3"
    assert dict(t) == {b"new": b"3"}
    assert t.expires_at is None


def test_a_waiter_hears_of_every_change_of_a_table(db: kvsvr.Engine, t: kvsvr.Table) -> None:
    t[b"r"] = b"1"
    changes: list[Callable[[], object]] = [
        lambda: t.append(b""),
        lambda: t.delete(b"r"),
        lambda: db.expire(KEY, 100),
        lambda: t.drop(),
    ]
    for change in changes:
        version = t.version
        heard: list[int] = []
        waiter = threading.Thread(target=lambda known=version, heard=heard: heard.append(db.wait(t, known, 30)))
        waiter.start()
        change()
        waiter.join(30)
        assert heard and heard[0] > version


# --- changes ---


def test_a_consumer_reaches_the_table_from_any_version(tmp_path: Path) -> None:
    """Across restarts and kills, with pages of any size; one who was left behind is told to begin again."""
    chance = random.Random(4)
    path = tmp_path / "store"
    db = kvsvr.open(path, sync="none")
    past: list[tuple[int, dict[bytes, bytes]]] = [(0, {})]
    for _ in range(60):
        t = db.table(KEY)
        for _ in range(chance.randint(1, 20)):
            row = b"%d" % chance.randint(0, 30)
            match chance.randrange(6):
                case 0:
                    t.delete(row)
                case 1:
                    t.append(row)
                case 2:
                    with db.batch() as batch:
                        for n in range(chance.randint(1, 12)):
                            batch.table(KEY).put(b"batch%d" % n, row)
                        batch.table(KEY).delete(row)
                case _:
                    t.put(row, b"%d" % chance.randint(0, 99))
        if chance.random() < 0.1:
            t.delete_range(b"1", b"2")
        past.append((t.version, dict(t)))
        event = chance.random()
        if event < 0.2:
            kill(db)
            db = kvsvr.open(path, sync="none")
        elif event < 0.4:
            db.close()
            db = kvsvr.open(path, sync="none")
        for since, content in chance.sample(past, min(len(past), 8)):
            one = Consumer(since, content)
            assert one.catch_up(db.table(KEY), chance.choice([None, 1, 5])) == dict(db.table(KEY))
            assert one.restart_count == 0
    db.table(KEY).drop()
    db.table(KEY)[b"another"] = b"table"
    for since, content in past[1:]:
        one = Consumer(since, content)
        assert one.catch_up(db.table(KEY)) == {b"another": b"table"}
        assert one.restart_count == 1
    db.close()


def test_pages_never_split_a_version(db: kvsvr.Engine, t: kvsvr.Table) -> None:
    whole: dict[int, set[bytes]] = {}
    for n in range(50):
        with db.batch() as batch:
            rows = [batch.table(KEY).append(b"%d" % n) for _ in range(1 + n % 7)]
        assert batch.version is not None
        whole[batch.version] = {row.row for row in rows}
    for limit in (1, 3, 10, None):
        since, seen = 0, set[int]()
        while True:
            page = t.changes(since, limit)
            here = {version for version in whole if since < version <= page.version}
            assert {row for row, _ in page.rows} == set[bytes]().union(*(whole[version] for version in here))
            seen |= here
            since = page.version
            if not page.more:
                break
        assert seen == set(whole)


def test_a_page_is_not_much_larger_than_its_limit(t: kvsvr.Table) -> None:
    for n in range(100):
        t[b"%d" % n] = b""
    page = t.changes(0, 10)
    assert (len(page.rows), page.more) == (10, True)
    assert not t.changes(page.version, 90).more
    assert t.changes(t.version) == kvsvr.Changes([], [], t.version, False, True)


def test_a_row_is_in_the_changes_once_as_it_is(t: kvsvr.Table) -> None:
    start = t.put(b"often", b"0")
    for n in range(100):
        t[b"often"] = b"%d" % n
    t[b"gone"] = b""
    del t[b"gone"]
    page = t.changes(start)
    assert (page.rows, page.deleted) == ([(b"often", b"99")], [b"gone"])


def test_trim_raises_the_floor_and_who_is_below_begins_again(t: kvsvr.Table) -> None:
    early = t.put(b"a", b"1")
    t[b"b"] = b"2"
    late = t.version
    assert t.trim(late) == late
    assert t.trim(early) == late, "the floor never falls"
    assert t.trim(1 << 60) == t.version
    assert not t.changes(early).complete
    assert t.changes(late).complete
    assert t.changes(0).complete
    assert t.version == late
    for wrong in (-1, 1.5, True, None):
        with pytest.raises(kvsvr.UsageError):
            t.trim(wrong)  # type: ignore[arg-type]
        with pytest.raises(kvsvr.UsageError):
            t.changes(wrong)  # type: ignore[arg-type]


def test_a_first_sync_of_a_trimmed_table_comes_to_its_end(t: kvsvr.Table) -> None:
    """However small its pages are: were it told on the second one that it is below the floor, it would never end."""
    for n in range(300):
        t[b"%d" % n] = b"v"
    for n in range(0, 300, 3):
        del t[b"%d" % n]
    t.trim(t.version)
    for n in range(20):
        t[b"new%d" % n] = b"v"
    one = Consumer()
    assert one.catch_up(t, 7) == dict(t)
    assert one.restart_count == 0


def test_a_floor_raised_while_the_first_page_is_made_starts_it_anew(
    t: kvsvr.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pages below a floor are of one piece only as long as it stays where it is."""
    for n in range(50):
        t[b"%d" % n] = b"v"
    t.trim(t.version)
    page_of, pages = kvsvr.store.TableReads._change_page, [0]

    def between(self: kvsvr.store.TableReads, since: int, most: int) -> tuple[kvsvr.Changes, int]:
        pages[0] += 1
        if pages[0] == 3:
            del t[b"0"]
            t.trim(t.version)
        return page_of(self, since, most)

    monkeypatch.setattr(kvsvr.store.TableReads, "_change_page", between)
    one = Consumer()
    assert one.catch_up(t, 10) == {b"%d" % n: b"v" for n in range(1, 50)}
    assert one.restart_count == 0


# --- together with others ---


def test_rows_of_several_tables_and_keys_share_a_batch_and_its_version(db: kvsvr.Engine) -> None:
    with db.batch() as batch:
        batch.put(b"key", b"v")
        first = batch.table(b"one").append(b"1", ttl=60)
        batch.table(b"two").put(b"r", b"2")
        batch.table(b"two").put(b"r", b"3")
        batch.table(b"two").delete(b"absent")
        second = batch.table(b"one").append(b"4")
        with pytest.raises(kvsvr.UsageError, match="once the batch has been written"):
            first.row  # noqa: B018
    one, two = db.table(b"one"), db.table(b"two")
    assert batch.version == one.version == two.version == db.wait(b"key", 0, 0)
    assert one.last(2) == [(first.row, b"1"), (second.row, b"4")]
    assert dict(two) == {b"r": b"3"}
    with pytest.raises(LookupError), db.batch() as batch:
        batch.table(b"one").append(b"never")
        raise LookupError
    assert len(one) == 2


def test_a_batch_writes_a_key_or_its_rows(db: kvsvr.Engine) -> None:
    batch = db.batch()
    batch.table(KEY).put(b"r", b"")
    with pytest.raises(kvsvr.UsageError, match="as a key and as a table"):
        batch.delete(KEY)
    batch = db.batch()
    batch.put(KEY, b"")
    for call in (lambda: batch.table(KEY).put(b"r", b""), lambda: batch.table(KEY).append(b"")):
        with pytest.raises(kvsvr.UsageError, match="as a key and as a table"):
            call()


def test_a_batch_with_rows_under_a_value_writes_nothing(db: kvsvr.Engine) -> None:
    db[KEY] = b"value"
    with pytest.raises(kvsvr.WrongType), db.batch() as batch:
        batch.put(b"other", b"")
        batch.table(KEY).put(b"r", b"")
    assert dict(db.scan()) == {KEY: b"value"}


def test_strict_slots_count_a_row_as_its_table(tmp_path: Path) -> None:
    with kvsvr.open(tmp_path / "store", slots="strict") as db:
        with db.batch() as batch:
            batch.put(b"{u}:name", b"")
            for n in range(10):
                batch.table(b"{u}:inbox").put(b"%d" % n, b"")
            with pytest.raises(kvsvr.UsageError, match="hash slot"):
                batch.table(b"{v}:inbox")
        with db.transaction() as t:
            t.table(b"{u}:inbox").get(b"1")
            with pytest.raises(kvsvr.UsageError, match="hash slot"):
                t.get(b"x")


def test_a_batch_after_its_end_says_so(db: kvsvr.Engine) -> None:
    with db.batch() as batch:
        rows = batch.table(KEY)
    for call in (lambda: rows.put(b"r", b""), lambda: rows.append(b""), lambda: rows.delete(b"r")):
        with pytest.raises(kvsvr.UsageError, match="begin another"):
            call()


# --- the rest ---


def test_tables_come_back(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with kvsvr.open(path) as db:
        for n in range(50):
            db.table(b"%02d" % n).put_many((b"%d" % row, b"v%d" % row) for row in range(n))
        db.table(b"07").drop()
        before = {key: (dict(db.table(key)), db.table(key).version) for key in db.tables()}
    for ending in ("close", "kill", "close"):
        db = kvsvr.open(path)
        assert {key: (dict(db.table(key)), db.table(key).version) for key in db.tables()} == before
        assert db.stats()["table_count"] == len(before) == 48
        kill(db) if ending == "kill" else db.close()


def test_a_reader_sees_tables_as_it_refreshes(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with kvsvr.open(path) as db, kvsvr.open(path, readonly=True) as reader:
        t, seen = db.table(KEY), reader.table(KEY)
        row = t.append(b"1")
        assert len(seen) == 0
        reader.refresh()
        assert list(seen.rows()) == [(row, b"1")]
        assert seen.changes(0).rows == [(row, b"1")]
        with pytest.raises(kvsvr.UsageError, match="readonly"):
            seen.append(b"2")
        t.drop()
        reader.refresh()
        assert (len(seen), list(seen)) == (0, [])


def test_a_table_of_a_closed_store_says_so(tmp_path: Path) -> None:
    db = kvsvr.open(tmp_path / "store")
    t = db.table(KEY)
    t.put_many((b"%04d" % n, b"") for n in range(3000))
    rows = t.rows()
    next(rows)
    db.close()
    for call in (lambda: t.get(b"r"), lambda: t.append(b""), lambda: len(t), lambda: t.changes(0), lambda: list(rows)):
        with pytest.raises(kvsvr.ClosedError):
            call()


def test_writers_of_one_table_do_not_lose_each_others_rows(db: kvsvr.Engine, t: kvsvr.Table) -> None:
    """Appends from threads, a consumer beside them that never sees a version in part."""
    rows: list[list[bytes]] = [[] for _ in range(4)]

    def write(mine: list[bytes]) -> None:
        for n in range(300):
            if n % 3:
                mine.append(t.append(b"%d" % n))
            else:
                with db.batch() as batch:
                    pair = [batch.table(KEY).append(b"pair"), batch.table(KEY).append(b"pair")]
                mine += [one.row for one in pair]

    threads = [threading.Thread(target=write, args=(mine,)) for mine in rows]
    for thread in threads:
        thread.start()
    one = Consumer()
    while any(thread.is_alive() for thread in threads):
        pairs = [value for value in one.catch_up(t, 5).values() if value == b"pair"]
        assert len(pairs) % 2 == 0
        with db.snapshot() as snapshot:
            frozen = snapshot.table(KEY)
            assert len(list(frozen)) == len(frozen)
    for thread in threads:
        thread.join()
    everything = sorted(row for mine in rows for row in mine)
    assert len(set(everything)) == len(everything)
    assert list(t) == everything
    assert one.catch_up(t) == dict(t)


def test_neither_a_table_nor_a_snapshot_is_copied_or_pickled_by_mistake(db: kvsvr.Engine) -> None:
    with db.snapshot() as snapshot:
        for thing in (snapshot, snapshot.table(KEY), db.table(KEY)):
            for call in (pickle.dumps, copy.copy):
                with pytest.raises(TypeError, match="of this process"):
                    call(thing)


@pytest.mark.timeout(600)
def test_a_large_table_and_many_small_ones(tmp_path: Path) -> None:
    """A million rows in one, and 200,000 of three, found again after a close."""
    path, count, table_count = tmp_path / "store", 1_000_000, 200_000
    with kvsvr.open(path, sync="none") as db:
        large = db.table(b"large")
        assert large.put_many((b"%07d" % n, b"v%d" % n) for n in range(count)) == count
        for first in range(0, table_count, 1000):
            with db.batch() as batch:
                for n in range(first, first + 1000):
                    rows = batch.table(b"small%06d" % n)
                    for row in (b"a", b"b", b"c"):
                        rows.put(row, b"%d" % n)
    with kvsvr.open(path, sync="none") as db:
        large = db.table(b"large")
        assert len(large) == count
        assert large.last(1) == [(b"0999999", b"v999999")]
        assert sum(1 for _ in large.rows()) == count
        assert sum(1 for _ in db.tables(b"small")) == table_count
        for n in random.Random(5).sample(range(table_count), 200):
            assert list(db.table(b"small%06d" % n).rows()) == [(row, b"%d" % n) for row in (b"a", b"b", b"c")]
        stats = db.stats()
        assert (stats["table_count"], stats["row_count"]) == (table_count + 1, count + 3 * table_count)
        assert large.drop()
        assert (len(large), list(large.rows(limit=1))) == (0, [])


def test_a_copy_of_a_table_goes_on_where_the_original_was(tmp_path: Path) -> None:
    """Rows of append, put one by one into another store: what is appended there comes behind them."""
    with kvsvr.open(tmp_path / "a") as a, kvsvr.open(tmp_path / "b") as b:
        for n in range(1000):
            a.table(b"t").append(b"%d" % n)
        kept = a.table(b"t").last(2)
        b.table(b"one by one").put(*kept[0])
        b.table(b"one by one").put(*kept[1])
        b.table(b"many").put_many(kept)
        with b.batch() as batch:
            for row, value in kept:
                batch.table(b"batch").put(row, value)
        for key in (b"one by one", b"many", b"batch"):
            t = b.table(key)
            t.put(b"\xff" * 8, b"a name of eight bytes")
            assert t.append(b"new") > kept[1][0]
            assert [value for _, value in t.rows()] == [kept[0][1], kept[1][1], b"new", b"a name of eight bytes"]
