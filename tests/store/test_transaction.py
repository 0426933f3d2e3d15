"""Transactions: what they see, when they are refused, and what is then left behind."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

import kvsvr
from kvsvr.store.slots import slot_of
from kvsvr.store.transaction import Transaction
from kvsvr.types import Store, TransactionWriter

LARGE = b"x" * 100_000
FILE = b"y" * ((1 << 20) + 1)


def state(db: kvsvr.Engine) -> list[tuple[bytes, bytes]]:
    return list(db.scan())


# --- what a transaction sees and writes ---


def test_all_is_written_under_one_version_at_the_end(db: kvsvr.Engine) -> None:
    db.put(b"gone", b"1")
    with db.transaction() as t:
        t.put(b"a", b"1")
        t[b"b"] = b"2"
        t.delete(b"gone")
        assert t.version is None
        assert state(db) == [(b"gone", b"1")]
    assert state(db) == [(b"a", b"1"), (b"b", b"2")]
    assert [db.wait(key, 0, 0) for key in (b"a", b"b", b"gone")] == [t.version] * 3


def test_own_writes_are_visible_to_own_reads(db: kvsvr.Engine) -> None:
    db.put(b"k", b"before")
    with db.transaction() as t:
        t.put(b"k", b"own")
        t.put(b"new", b"", ttl=60)
        assert t.get(b"k") == t[b"k"] == b"own"
        assert t[b"new"] == b""
        assert b"new" in t
        t.delete(b"k")
        assert t.get(b"k") is None
        assert t.get(b"k", b"default") == b"default"
        assert b"k" not in t
        with pytest.raises(KeyError):
            t[b"k"]
        with pytest.raises(KeyError):
            del t[b"k"]


def test_a_key_written_but_not_read_is_no_conflict(db: kvsvr.Engine) -> None:
    """Own writes answer own reads, so the store was never asked, and the last one to write wins, as with put."""
    with db.transaction() as t:
        t.put(b"k", b"own")
        assert t[b"k"] == b"own"
        db.put(b"k", b"other")
    assert db[b"k"] == b"own"


@pytest.mark.parametrize("value", [b"", b"small", LARGE, FILE], ids=["empty", "small", "large", "file"])
def test_a_second_read_gives_what_the_first_gave(db: kvsvr.Engine, value: bytes) -> None:
    """Also when the key has been overwritten since, which is a conflict only where something else is read."""
    db.put(b"k", value)
    with pytest.raises(kvsvr.VersionConflict) as caught, db.transaction() as t:
        assert t[b"k"] == value
        version = db.put(b"k", b"other")
        assert t[b"k"] == value
        assert b"k" in t
    assert (caught.value.key, caught.value.current) == (b"k", version)


def test_what_is_read_is_of_one_moment(db: kvsvr.Engine) -> None:
    """The second key is not read once the first has changed: together they may never have been there."""
    db.put_many([(b"a", b"1"), (b"b", b"1")])
    with pytest.raises(kvsvr.VersionConflict) as caught, db.transaction() as t:
        t.get(b"a")
        with db.batch() as batch:
            batch.put(b"a", b"2")
            batch.put(b"b", b"2")
        t.get(b"b")
        pytest.fail("read part of a batch")
    assert (caught.value.key, caught.value.current) == (b"a", batch.version)


def test_who_goes_on_after_a_conflict_meets_it_again(db: kvsvr.Engine) -> None:
    with pytest.raises(kvsvr.VersionConflict), db.transaction() as t:
        t.get(b"a")
        db.put(b"a", b"1")
        for key in (b"b", b"b", b"c"):
            with pytest.raises(kvsvr.VersionConflict):
                t.get(key)
        assert t.get(b"a") is None
        t.put(b"d", b"never")
    assert state(db) == [(b"a", b"1")]


def test_a_write_to_what_was_not_read_is_no_conflict(db: kvsvr.Engine) -> None:
    db.put(b"a", b"1")
    with db.transaction() as t:
        assert t[b"a"] == b"1"
        db.put(b"other", b"1")
        assert t.get(b"b") is None
        db.put(b"other", b"2")
        t.put(b"c", b"3")
    assert db[b"c"] == b"3"


@pytest.mark.parametrize("key", [b"k", bytearray(b"k"), memoryview(b"-k-")[1:2]])
def test_keys_and_values_are_bytes_like_and_copied(db: kvsvr.Engine, key: kvsvr.BytesLike) -> None:
    value = bytearray(b"v")
    with db.transaction() as t:
        t.put(key, value)
        value[:] = b"w"
        assert t.get(key) == t.get(b"k") == b"v"
    assert db[b"k"] == b"v"
    with db.transaction() as t:
        assert t[key] == b"v"
        assert key in t


def test_wrong_arguments_are_told_where_they_are_given(db: kvsvr.Engine) -> None:
    with db.transaction() as t:
        for wrong in ("k", 1, None):
            with pytest.raises(TypeError):
                t.get(wrong)  # type: ignore[call-overload]
        for size in (0, 65_536):
            with pytest.raises(kvsvr.UsageError):
                t.get(b"k" * size)
        with pytest.raises(kvsvr.UsageError):
            t.put(b"k", b"v", ttl=-1)
        with pytest.raises(TypeError):
            iter(t)  # type: ignore[call-overload]
        t.put(b"k" * 65_535, b"v")
    assert db[b"k" * 65_535] == b"v"


# --- when it is refused ---


def test_a_conflict_writes_nothing(db: kvsvr.Engine) -> None:
    """Neither records nor, for a value in a file of its own, the file."""
    db.put(b"k", b"1")
    before = db.stats()
    with pytest.raises(kvsvr.VersionConflict), db.transaction() as t:
        t.get(b"k")
        version = db.put(b"k", b"2")
        t.put(b"k", b"never")
        t.put(b"file", FILE)
        t.delete(b"k")
    assert t.version is None
    assert state(db) == [(b"k", b"2")]
    after = db.stats()
    assert after["sequence"] == version
    assert after["big_count"] == before["big_count"]
    assert list(Path(db._handle.path).glob("values/*.val")) == []


def test_an_absent_key_that_came_is_a_conflict(db: kvsvr.Engine) -> None:
    with pytest.raises(kvsvr.VersionConflict) as caught, db.transaction() as t:
        assert b"k" not in t
        version = db.put(b"k", b"other")
        t.put(b"k", b"own")
    assert (caught.value.key, caught.value.current) == (b"k", version)
    assert db[b"k"] == b"other"


def test_an_absent_key_that_came_and_went_is_none(db: kvsvr.Engine) -> None:
    with db.transaction() as t:
        assert t.get(b"k") is None
        db.put(b"k", b"other")
        db.delete(b"k")
        assert t.get(b"other") is None
        t.put(b"k", b"own")
    assert db[b"k"] == b"own"


def test_a_key_that_was_deleted_is_a_conflict(db: kvsvr.Engine) -> None:
    db.put(b"k", b"1")
    with pytest.raises(kvsvr.VersionConflict) as caught, db.transaction() as t:
        t.get(b"k")
        db.delete(b"k")
        t.put(b"other", b"never")
    assert caught.value.current == 0
    assert state(db) == []


def test_a_key_that_was_created_anew_is_a_conflict(db: kvsvr.Engine) -> None:
    """With the same value, even: it is another record."""
    db.put(b"k", b"1")
    with pytest.raises(kvsvr.VersionConflict) as caught, db.transaction() as t:
        t.get(b"k")
        db.delete(b"k")
        version = db.put(b"k", b"1")
        t.put(b"other", b"never")
    assert caught.value.current == version


def test_the_first_of_many_that_changed_is_named(db: kvsvr.Engine) -> None:
    names = [b"%03d" % n for n in range(300)]
    with pytest.raises(kvsvr.VersionConflict) as caught, db.transaction() as t:
        assert not any(name in t for name in names)
        db.put(b"200", b"")
        db.put(b"100", b"")
    assert caught.value.key == b"100"


def test_a_transaction_that_only_read_is_checked_too(db: kvsvr.Engine) -> None:
    db.put(b"k", b"1")
    with db.transaction() as t:
        assert t[b"k"] == b"1"
    assert t.version == 0
    with pytest.raises(kvsvr.VersionConflict), db.transaction() as t:
        t.get(b"k")
        db.put(b"k", b"2")
    with db.transaction() as t:
        pass
    assert t.version == 0


def test_what_expires_between_read_and_end_is_a_conflict(db: kvsvr.Engine) -> None:
    db.put(b"k", b"1", ttl=100)
    with pytest.raises(kvsvr.VersionConflict) as caught, db.transaction() as t:
        assert t[b"k"] == b"1"
        db._handle.shift_clock(101)
        t.put(b"other", b"never")
    assert caught.value.current == 0
    assert b"other" not in db
    # That it has expired was said, so it stays so.
    db._handle.shift_clock(0)
    assert b"k" not in db


def test_expired_together_is_seen_together(db: kvsvr.Engine) -> None:
    """Time, too, is of one moment: nobody sees one half of a batch alive and the other expired."""
    with db.batch() as batch:
        batch.put(b"a", b"1", ttl=100)
        batch.put(b"b", b"1", ttl=100)
    with pytest.raises(kvsvr.VersionConflict) as caught, db.transaction() as t:
        assert t[b"a"] == b"1"
        db._handle.shift_clock(101)
        t.get(b"b")
        pytest.fail("saw a alive and b expired")
    assert (caught.value.key, caught.value.current) == (b"a", 0)


def test_what_had_expired_before_counts_as_absent(db: kvsvr.Engine) -> None:
    db.put(b"k", b"1", ttl=100)
    db._handle.shift_clock(101)
    with db.transaction() as t:
        assert t.get(b"k") is None
        t.put(b"k", b"own", ttl=50)
    left = db.ttl(b"k")
    assert left is not None
    assert 40 < left <= 50


def test_an_exception_writes_nothing(db: kvsvr.Engine) -> None:
    with pytest.raises(LookupError), db.transaction() as t:
        t.put(b"k", b"never")
        raise LookupError
    assert t.version is None
    assert state(db) == []


def test_after_its_end_it_is_of_no_use(db: kvsvr.Engine) -> None:
    with db.transaction() as t:
        t.put(b"k", b"1")
    for use in (lambda: t.get(b"k"), lambda: t.put(b"k", b"2"), lambda: t.delete(b"k"), t.__enter__):
        with pytest.raises(kvsvr.UsageError, match="transaction has ended"):
            use()


def test_a_closed_store_says_so(path: Path) -> None:
    db = kvsvr.open(path)
    t = db.transaction()
    t.put(b"k", b"1")
    db.close()
    with pytest.raises(kvsvr.ClosedError):
        t.get(b"other")
    with pytest.raises(kvsvr.ClosedError), t:
        pass


def test_a_reader_has_no_transactions(path: Path) -> None:
    with kvsvr.open(path) as db:
        db.put(b"k", b"1")
    with kvsvr.open(path, readonly=True) as reader:
        with pytest.raises(kvsvr.UsageError, match="readonly"):
            reader.transaction()
        with pytest.raises(kvsvr.UsageError, match="readonly"):
            reader.run(lambda t: t.get(b"k"))


@pytest.mark.parametrize("sync", ["none", "batch", "always"])
def test_durable_is_on_disk_at_the_end(path: Path, sync: kvsvr.config.SyncMode) -> None:
    with kvsvr.open(path, sync=sync) as db:
        with db.transaction(durable=True) as t:
            assert t.get(b"k") is None
            t.put(b"k", b"1")
        assert db.stats()["unsynced_size"] == 0


# --- run ---


def test_run_returns_what_the_function_returned(db: kvsvr.Engine) -> None:
    def move(t: Transaction) -> int:
        t[b"k"] = b"1"
        return 42

    assert db.run(move, durable=True) == 42
    assert db[b"k"] == b"1"


def test_run_tries_again_until_nobody_came_between(db: kvsvr.Engine) -> None:
    db.put(b"n", b"0")
    tries = itertools.count(1)

    def add(t: Transaction) -> int:
        number = int(t[b"n"])
        count = next(tries)
        if count < 4:
            db.incr(b"n", 10)
        t[b"n"] = b"%d" % (number + 1)
        return count

    assert db.run(add) == 4
    assert db[b"n"] == b"31"


@pytest.mark.parametrize("attempts", [1, 3])
def test_run_gives_up_with_the_last_conflict(db: kvsvr.Engine, attempts: int) -> None:
    versions: list[int] = []

    def never(t: Transaction) -> None:
        t.get(b"k")
        versions.append(db.put(b"k", b"other"))

    with pytest.raises(kvsvr.VersionConflict) as caught:
        db.run(never, attempts=attempts)
    assert len(versions) == attempts
    assert caught.value.current == versions[-1]


def test_run_passes_other_exceptions_on(db: kvsvr.Engine) -> None:
    with pytest.raises(KeyError):
        db.run(lambda t: t[b"absent"])
    for wrong in (0, -1, True, 1.5):
        with pytest.raises(kvsvr.UsageError, match="attempts"):
            db.run(lambda t: None, attempts=wrong)  # type: ignore[arg-type]


def test_a_service_needs_the_protocol_only(db: kvsvr.Engine) -> None:
    def take(t: TransactionWriter) -> bytes | None:
        found = t.get(b"k")
        t.delete(b"k")
        return found

    store: Store = db
    store.put(b"k", b"1")
    assert store.run(take) == b"1"
    with store.transaction() as t:
        assert b"k" not in t


# --- threads ---


ACCOUNTS = [b"account:%d" % n for n in range(10)]
START = 1000


def test_money_is_neither_made_nor_lost(db: kvsvr.Engine) -> None:
    """Eight threads move amounts between accounts; who reads all accounts in a transaction always finds the same sum,
    also while he still reads: each value fits those before."""
    db.put_many((account, b"%d" % START) for account in ACCOUNTS)
    total = START * len(ACCOUNTS)
    done = threading.Event()
    errors: list[BaseException] = []
    sums: list[int] = []

    def move(t: Transaction, source: bytes, target: bytes, amount: int) -> None:
        t[source] = b"%d" % (int(t[source]) - amount)
        t[target] = b"%d" % (int(t[target]) + amount)

    def mover(seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(150):
            source, target = draw.sample(ACCOUNTS, 2)
            db.run(partial(move, source=source, target=target, amount=draw.randrange(50)), attempts=1000)

    def reader() -> None:
        while not done.is_set():
            time.sleep(0.001)
            found = db.run(lambda t: [int(t[account]) for account in ACCOUNTS], attempts=1000)
            sums.append(sum(found))

    def watched(target: partial[None]) -> None:
        try:
            target()
        except BaseException as error:
            errors.append(error)

    movers = [threading.Thread(target=watched, args=(partial(mover, n),)) for n in range(8)]
    readers = [threading.Thread(target=watched, args=(partial(reader),)) for _ in range(2)]
    for thread in movers + readers:
        thread.start()
    for thread in movers:
        thread.join()
    done.set()
    for thread in readers:
        thread.join()
    if errors:
        raise errors[0]
    assert sum(int(db[account]) for account in ACCOUNTS) == total
    assert len(sums) > 0
    assert set(sums) == {total}


@pytest.mark.parametrize("padding", [0, 1 << 20], ids=["small", "file"])
def test_no_batch_is_seen_in_part(db: kvsvr.Engine, padding: int) -> None:
    """Batches put one number into every key; no transaction sees two numbers, also if it is refused in the end. The
    values in files go while they are read, and the reader then finds the newer ones, or is told of a conflict."""
    names = [b"k%d" % n for n in range(4 if padding else 20)]
    done = threading.Event()

    def write() -> None:
        try:
            for number in range(40 if padding else 1500):
                with db.batch() as batch:
                    for name in names:
                        batch.put(name, b"%08d" % number + b"x" * padding)
        finally:
            done.set()

    writer = threading.Thread(target=write)
    writer.start()
    whole = conflicts = 0
    while not done.is_set():
        seen: set[bytes | None] = set()
        try:
            with db.transaction() as t:
                for name in names:
                    value = t.get(name)
                    seen.add(value and value[:8])
            whole += 1
        except kvsvr.VersionConflict:
            conflicts += 1
        assert len(seen) <= 1
    writer.join()
    assert whole + conflicts > 0


# --- slots ---


def test_slots_are_those_of_redis() -> None:
    assert slot_of(b"123456789") == 0x31C3 % 16384 == 0x31C3
    assert slot_of(b"foo") == 12182
    assert slot_of(b"") == 0
    assert slot_of(b"{user1000}.following") == slot_of(b"{user1000}.followers") == slot_of(b"user1000")
    assert slot_of(b"foo{bar}{zap}") == slot_of(b"bar")
    assert slot_of(b"foo{{bar}}zap") == slot_of(b"{bar")
    # An empty tag, and one that does not end, are none.
    assert slot_of(b"foo{}{bar}") != slot_of(b"bar")
    assert slot_of(b"{}") != slot_of(b"")
    assert slot_of(b"foo{bar") != slot_of(b"bar")
    assert slot_of(b"foo}{bar}") == slot_of(b"bar")


def test_strict_slots_refuse_what_a_replica_set_would(path: Path) -> None:
    with kvsvr.open(path, slots="strict") as db:
        with pytest.raises(kvsvr.UsageError) as caught, db.batch() as batch:
            batch.put(b"foo", b"1")
            batch.delete(b"bar")
        text = str(caught.value)
        assert all(part in text for part in ("b'foo'", "12182", "b'bar'", "5061", "hash tag"))
        with pytest.raises(kvsvr.UsageError, match="hash tag"), db.transaction() as t:
            t.put(b"foo", b"1")
            t.get(b"bar")
        assert state(db) == []
        with db.transaction() as t:
            assert t.get(b"{user1000}.following") is None
            t.put(b"{user1000}.followers", b"1")
            t.delete(b"user1000")
        with db.batch() as batch:
            batch.put(b"{user1000}.following", b"2")
            batch.delete(b"{user1000}.followers")
        # One key at a time has no such bounds, and neither has what is not atomic.
        db.put_many([(b"foo", b"1"), (b"bar", b"2")])
        assert db.get_many([b"foo", b"bar", b"{user1000}.following"]) == [b"1", b"2", b"2"]


def test_any_slots_is_what_one_gets_unasked(db: kvsvr.Engine) -> None:
    with db.transaction() as t:
        assert t.get(b"foo") is None
        t.put(b"bar", b"1")
    assert db[b"bar"] == b"1"


def test_slots_are_any_or_strict(path: Path) -> None:
    with pytest.raises(kvsvr.UsageError, match="slots"):
        kvsvr.open(path, slots="some")  # type: ignore[arg-type]


# --- rows of tables ---


def test_rows_are_read_and_written_with_keys(db: kvsvr.Engine) -> None:
    """Of several tables, under one version, own writes visible to own reads."""
    db.table(b"from").put(b"r", b"90")
    with db.transaction() as t:
        source, target = t.table(b"from"), t.table(b"to")
        assert (source[b"r"], target.get(b"r"), target.get(b"r", 1)) == (b"90", None, 1)
        target[b"r"] = source[b"r"]
        del source[b"r"]
        assert (b"r" in source, b"r" in target, target[b"r"]) == (False, True, b"90")
        with pytest.raises(KeyError):
            source[b"r"]
        with pytest.raises(KeyError):
            del source[b"r"]
        line = target.append(b"moved")
        t[b"count"] = b"1"
        target.put(b"short", b"", ttl=60)
        target.delete(b"absent")
    assert dict(db.table(b"from")) == {}
    assert dict(db.table(b"to")) == {b"r": b"90", b"short": b"", line.row: b"moved"}
    assert t.version == db.table(b"to").version == db.table(b"from").version == db.wait(b"count", 0, 0)


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("how", ["put", "delete", "append", "drop", "value"])
def test_a_row_that_was_read_and_has_changed_is_a_conflict(db: kvsvr.Engine, there: bool, how: str) -> None:
    """One that is as it was is none, whatever else happened to its table."""
    table = db.table(b"t")
    table.put(b"other", b"")
    if there:
        table.put(b"r", b"1")
    changes: dict[str, Callable[[], object]] = {
        "put": lambda: table.put(b"r", b"2"),
        "delete": lambda: table.delete(b"r"),
        "append": lambda: table.append(b""),
        "drop": lambda: table.drop(),
        "value": lambda: db.put(b"t", b""),
    }
    is_conflict = how == "put" or (there and how != "append")
    try:
        with db.transaction() as t:
            t.table(b"t").get(b"r")
            changes[how]()
            t.put(b"mine", b"")
    except kvsvr.VersionConflict as error:
        assert is_conflict
        assert (error.key, error.table) == (b"r", b"t")
        assert "row b'r' of b't'" in str(error)
        assert b"mine" not in db
    else:
        assert not is_conflict


def test_a_later_read_finds_a_row_overtaken(db: kvsvr.Engine) -> None:
    table = db.table(b"t")
    table.put(b"a", b"1")
    with pytest.raises(kvsvr.VersionConflict) as caught, db.transaction() as t:
        assert t.table(b"t")[b"a"] == b"1"
        version = table.put(b"a", b"2")
        assert t.table(b"t")[b"a"] == b"1", "what was read once stays"
        t.table(b"t").get(b"b")
    assert (caught.value.key, caught.value.table, caught.value.current) == (b"a", b"t", version)


def test_a_transaction_keeps_keys_and_tables_apart(db: kvsvr.Engine) -> None:
    db.table(b"t").put(b"r", b"1")
    db.put(b"k", b"v")
    with db.transaction() as t:
        with pytest.raises(kvsvr.WrongType):
            t.get(b"t")
        with pytest.raises(kvsvr.WrongType):
            t.table(b"k").get(b"r")
        t.table(b"new").put(b"r", b"1")
        with pytest.raises(kvsvr.WrongType):
            t.get(b"new")
        t.delete(b"t")
        assert t.table(b"t").get(b"r") is None
        t.put(b"value", b"")
        with pytest.raises(kvsvr.WrongType):
            t.table(b"value").get(b"r")
        with pytest.raises(kvsvr.UsageError):
            t.table(b"value").put(b"r", b"")
    assert list(db.tables()) == [b"new"]
    with pytest.raises(kvsvr.UsageError, match="has ended"):
        t.table(b"new")


def test_counters_in_rows_lose_nothing_between_threads(db: kvsvr.Engine) -> None:
    """run() over rows: every sum is there, and the journal has a line of each."""

    def add(t: TransactionWriter) -> None:
        rows = t.table(b"counters")
        rows[b"n"] = b"%d" % (int(rows.get(b"n", b"0")) + 1)
        t.table(b"journal").append(rows[b"n"])

    threads = [threading.Thread(target=lambda: [db.run(add, attempts=1000) for _ in range(50)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert db.table(b"counters")[b"n"] == b"200"
    assert [value for _, value in db.table(b"journal").rows()] == [b"%d" % n for n in range(1, 201)]
