"""One body, three kinds of store: whoever has a store need not know which kind it is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

import kvsvr


def test_one_key(store: Any) -> None:
    """put, get and delete mean the same everywhere, and versions grow."""
    assert store.get(b"k") is None
    assert store.get(b"k", b"none") == b"none"
    first = store.put(b"k", b"v")
    second = store.put(b"k", b"")
    assert 0 < first < second
    assert store.get(b"k") == b""
    assert store.get_versioned(b"k") == kvsvr.Versioned(b"", second, None)
    assert store.get_versioned(b"none") is None
    assert b"k" in store
    assert store.delete(b"k") is True
    assert store.delete(b"k") is False
    assert b"k" not in store


def test_a_condition_that_fails(store: Any) -> None:
    """cas and delete at a version say what it is now."""
    version = store.cas(b"k", b"1", 0)
    with pytest.raises(kvsvr.VersionConflict) as found:
        store.cas(b"k", b"2", 0)
    assert (found.value.key, found.value.current, found.value.table) == (b"k", version, None)
    with pytest.raises(kvsvr.VersionConflict):
        store.delete(b"k", version=version + 1000)
    assert store.cas(b"k", b"2", version) > version
    with pytest.raises(kvsvr.VersionConflict) as found:
        store.delete(b"none", version=1)
    assert found.value.current == 0


def test_counters(store: Any) -> None:
    """incr counts from 0, both ways, and refuses what is no number."""
    assert [store.incr(b"n"), store.incr(b"n", 41), store.incr(b"n", -2)] == [1, 42, 40]
    store.put(b"text", b"abc")
    with pytest.raises(kvsvr.WrongType) as found:
        store.incr(b"text")
    assert found.value.key == b"text"
    store.put(b"big", b"9223372036854775807")
    with pytest.raises(kvsvr.UsageError, match="64 bits"):
        store.incr(b"big")
    assert store.get(b"big") == b"9223372036854775807"


def test_append(store: Any) -> None:
    """The length is answered."""
    assert [store.append(b"k", b"ab"), store.append(b"k", b"cde")] == [2, 5]
    assert store.get(b"k") == b"abcde"


def test_expiry(store: Any) -> None:
    """ttl, expire and persist; what is over is absent."""
    store.put(b"k", b"v", ttl=100)
    assert 90 < store.ttl(b"k") <= 100
    assert store.persist(b"k") is True
    assert store.persist(b"k") is False
    assert store.ttl(b"k") is None
    assert store.expire(b"none", 1) is False
    assert store.expire(b"k", 0.02) is True
    found = store.get_versioned(b"k")
    assert found is None or abs(found.expires_at - time.time()) < 5
    time.sleep(0.05)
    assert store.get(b"k") is None
    assert store.ttl(b"k") is None


def test_many(store: Any) -> None:
    """Of many slots, with values that come back in the order they are asked for."""
    pairs = [(b"key:%d" % i, b"value %d" % i) for i in range(150)]
    assert store.put_many(pairs) == 150
    assert store.get_many([key for key, _ in pairs] + [b"none"]) == [value for _, value in pairs] + [None]
    assert len(store) == 150
    assert store.delete_many([b"key:0", b"none", b"key:1"]) == 2
    assert len(store) == 148
    assert store.put_many([]) == 0
    assert store.get_many([]) == []


def test_order(store: Any) -> None:
    """Scans are in order over all shards, either way, bounded, and in pages."""
    names = sorted(b"%04d" % i for i in range(700))
    store.put_many((name, name[::-1]) for name in names)
    store.table(b"a table").put(b"r", b"v")
    assert list(store.keys()) == list(store) == names
    assert list(store.scan(prefix=b"01")) == [(name, name[::-1]) for name in names if name.startswith(b"01")]
    assert list(store.keys(b"0010", b"0013")) == [b"0010", b"0011", b"0012"]
    assert list(store.keys(b"0010", b"0013", reverse=True)) == [b"0012", b"0011", b"0010"]
    assert list(store.keys(reverse=True)) == names[::-1]
    assert list(store.keys(limit=600, start=b"0005")) == names[5:605]
    assert list(store.keys(limit=0)) == []
    assert list(store.tables()) == [b"a table"]
    assert list(store.tables(b"b")) == []


def test_tables(store: Any) -> None:
    """Rows in order, with versions of their own."""
    table = store.table(b"t")
    assert (len(table), table.version, table.get(b"r"), table.last(3)) == (0, 0, None, [])
    version = table.put(b"b", b"2")
    assert table.version == version
    table[b"a"] = b"1"
    table.put(b"", b"0")
    assert list(table.rows()) == [(b"", b"0"), (b"a", b"1"), (b"b", b"2")]
    assert list(table.keys(b"a")) == [b"a", b"b"]
    assert list(table.keys(prefix=b"a", reverse=True)) == [b"a"]
    assert table.last(2) == [(b"a", b"1"), (b"b", b"2")]
    assert table.get_versioned(b"b") == kvsvr.Versioned(b"2", version, None)
    assert b"b" in table and b"c" not in table
    with pytest.raises(kvsvr.VersionConflict) as found:
        table.cas(b"b", b"3", 0)
    assert (found.value.key, found.value.table, found.value.current) == (b"b", b"t", version)
    assert table.cas(b"b", b"3", version) > version
    assert table.delete(b"a") and not table.delete(b"a")
    assert [table.incr(b"n"), table.incr(b"n", 4)] == [1, 5]
    assert len(table) == 3
    assert table.drop() and not table.drop()
    assert len(table) == 0


def test_rows_that_are_appended(store: Any) -> None:
    """They get names that grow, and stand in the order they came."""
    table = store.table(b"t")
    rows = [table.append(b"%d" % i) for i in range(5)]
    assert rows == sorted(rows)
    assert all(len(row) == 8 for row in rows)
    assert [value for _, value in table.rows()] == [b"0", b"1", b"2", b"3", b"4"]


def test_many_rows(store: Any) -> None:
    """put_many and delete_range; of a row that comes twice the last value counts."""
    table = store.table(b"t")
    assert table.put_many([(b"%04d" % i, b"v") for i in range(1200)] + [(b"0001", b"last")]) == 1201
    assert len(table) == 1200
    assert table.get(b"0001") == b"last"
    assert table.delete_range(b"0100", b"1100") == 1000
    assert len(list(table)) == 200


def test_changes(store: Any) -> None:
    """Whoever follows them has the table; a floor that has risen sends it back to the beginning."""
    table = store.table(b"t")
    assert table.changes(0) == kvsvr.Changes([], [], 0, False, True)
    assert table.trim(1) == 0
    table.put_many((b"%03d" % i, b"v") for i in range(30))
    begun = table.changes(0)
    assert dict(begun.rows) == {b"%03d" % i: b"v" for i in range(30)}
    assert (begun.deleted, begun.version, begun.more, begun.complete) == ([], table.version, False, True)
    table.delete(b"007")
    table.put(b"030", b"new")
    table.put(b"000", b"other")
    seen = table.changes(begun.version, 1)
    assert (seen.rows, seen.deleted, seen.more, seen.complete) == ([], [b"007"], True, True)
    rest = table.changes(seen.version)
    assert (dict(rest.rows), rest.more, rest.version) == ({b"030": b"new", b"000": b"other"}, False, table.version)
    assert table.trim(table.version + 1000) == table.version
    assert table.trim(1) == table.version
    assert table.changes(begun.version).complete is False
    again = table.changes(0, 3)
    assert (len(again.rows), again.more, again.complete) == (30, False, True)
    for call in (partial(table.changes, -1), partial(table.changes, 0, 0), partial(table.trim, -1)):
        with pytest.raises(kvsvr.UsageError):
            call()


def test_waiting(store: Any) -> None:
    """It ends with the next write, or when its time is over."""
    version = store.put(b"k", b"v")
    assert store.wait(b"k", version - 1, 5) == version
    began = time.monotonic()
    assert store.wait(b"k", version, 0.2) == version
    assert 0.15 < time.monotonic() - began < 2
    assert store.wait(b"none", 0, 0) == 0
    table = store.table(b"t")
    for name, write in ((b"k", partial(store.put, b"k", b"w")), (table, partial(table.put, b"r", b"v"))):
        known = store.wait(name, version if name == b"k" else 0, 0)
        writer = threading.Timer(0.1, write)
        writer.start()
        assert store.wait(name, known, 30) > known
        writer.join()
    with pytest.raises(kvsvr.UsageError):
        store.wait(b"k", 1, -1)


def test_the_wrong_kind(store: Any) -> None:
    """A table is no value, and the other way round; put replaces either."""
    store.table(b"t").put(b"r", b"v")
    store.put(b"k", b"v")
    for call in (store.get, store.get_versioned, store.incr):
        with pytest.raises(kvsvr.WrongType) as found:
            call(b"t")
        assert found.value.key == b"t"
    with pytest.raises(kvsvr.WrongType):
        store.get_many([b"k", b"t"])
    table = store.table(b"k")
    for call in (lambda: table.put(b"r", b"v"), lambda: table.get(b"r"), lambda: table.version, lambda: len(table)):
        with pytest.raises(kvsvr.WrongType):
            call()
    assert b"t" not in store
    store.put(b"t", b"now a value")
    assert store.get(b"t") == b"now a value"


def test_a_batch(store: Any) -> None:
    """All of it under one version, or nothing."""
    store.put(b"{a}old", b"v")
    with store.batch() as batch:
        batch.put(b"{a}1", b"one", ttl=100)
        batch.put(b"{a}2", b"two")
        batch.delete(b"{a}old")
        batch.table(b"{a}t").put(b"r", b"row")
        assert store.get(b"{a}1") is None
    assert batch.version > 0
    assert store.get_many([b"{a}1", b"{a}2", b"{a}old"]) == [b"one", b"two", None]
    assert store.ttl(b"{a}1") > 90
    assert store.table(b"{a}t").get(b"r") == b"row"
    assert store.get_versioned(b"{a}2").version == batch.version
    with store.batch() as nothing:
        pass
    assert nothing.version == 0
    with pytest.raises(RuntimeError), store.batch() as batch:
        batch.put(b"{a}3", b"three")
        raise RuntimeError
    assert b"{a}3" not in store


def test_a_transaction(store: Any) -> None:
    """It is written if what it has read stands, and names what does not."""
    store.put(b"{a}from", b"100")
    with store.transaction() as t:
        t[b"{a}from"] = b"%d" % (int(t[b"{a}from"]) - 10)
        t[b"{a}to"] = b"%d" % (int(t.get(b"{a}to", b"0")) + 10)
        assert t[b"{a}to"] == b"10"
    assert store.get_many([b"{a}from", b"{a}to"]) == [b"90", b"10"]
    with pytest.raises(kvsvr.VersionConflict) as found, store.transaction() as t:
        assert t[b"{a}from"] == b"90"
        assert t.table(b"{a}t").get(b"r") is None
        t[b"{a}to"] = b"0"
        store.table(b"{a}t").put(b"r", b"meanwhile")
    assert (found.value.key, found.value.table) == (b"r", b"{a}t")
    assert store.get(b"{a}to") == b"10"


def test_run(store: Any) -> None:
    """It is tried again after a conflict."""
    tries: list[int] = []

    def add(t: Any) -> int:
        value = int(t.get(b"n", b"0"))
        if not tries:
            store.put(b"n", b"10")
        tries.append(value)
        t.put(b"n", b"%d" % (value + 1))
        return value

    assert store.run(add) == 10
    assert (tries, store.get(b"n")) == ([0, 10], b"11")


def test_as_a_dict(store: Any) -> None:
    """Item access, and KeyError."""
    store[b"k"] = b"v"
    assert store[b"k"] == b"v"
    del store[b"k"]
    with pytest.raises(KeyError):
        store[b"k"]
    with pytest.raises(KeyError):
        del store[b"k"]
    assert bool(store) and bool(store.table(b"t"))


@pytest.mark.parametrize(
    ("error", "call"),
    [
        (TypeError, lambda s: s.put("text", b"v")),
        (TypeError, lambda s: s.put(b"k", "text")),
        (TypeError, lambda s: s.get_many(b"abc")),
        (TypeError, lambda s: s.put_many({b"k": b"v"})),
        (kvsvr.UsageError, lambda s: s.put(b"", b"v")),
        (kvsvr.UsageError, lambda s: s.put(b"k" * 65_536, b"v")),
        (kvsvr.UsageError, lambda s: s.get(b"")),
        (kvsvr.UsageError, lambda s: s.put(b"k", b"v", ttl=0)),
        (kvsvr.UsageError, lambda s: s.put(b"k", b"v", ttl=-1)),
        (kvsvr.UsageError, lambda s: s.expire(b"k", 0)),
        (kvsvr.UsageError, lambda s: s.incr(b"k", 1 << 63)),
        (kvsvr.UsageError, lambda s: s.incr(b"k", 1.5)),
        (kvsvr.UsageError, lambda s: s.cas(b"k", b"v", -1)),
        (kvsvr.UsageError, lambda s: s.delete(b"k", version=0)),
        (kvsvr.UsageError, lambda s: s.keys(limit=-1)),
        (kvsvr.UsageError, lambda s: s.scan(b"a", prefix=b"a")),
        (kvsvr.UsageError, lambda s: s.table(b"")),
        (kvsvr.UsageError, lambda s: s.table(b"t").put(b"r" * 65_536, b"v")),
        (kvsvr.UsageError, lambda s: s.table(b"t").last(None)),
        (kvsvr.UsageError, lambda s: s.run(lambda t: None, attempts=0)),
    ],
)
def test_arguments(store: Any, error: type[Exception], call: Callable[[Any], Any]) -> None:
    """What cannot be right is refused alike, before anything is sent."""
    with pytest.raises(error):
        call(store)


def test_closed(store: Any) -> None:
    """Every call of a closed store says so."""
    store.close()
    store.close()
    for call in (store.get, store.delete, store.incr):
        with pytest.raises(kvsvr.ClosedError):
            call(b"k")
