"""Snapshots: what they show, that it never changes, what they cost, and how they end."""

from __future__ import annotations

import gc
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import kvsvr
from kvsvr.store.engine import _writers


def content(reads: kvsvr.Engine | kvsvr.Snapshot) -> tuple[object, ...]:
    """Everything that can be read, by every way of reading it."""
    keys, tables = list(reads.keys()), list(reads.tables())
    return (
        list(reads.scan()),
        list(reads.scan(reverse=True)),
        reads.get_many(keys),
        [reads.get_versioned(key) for key in keys],
        {key: (list(reads.table(key).rows()), reads.table(key).last(3), len(reads.table(key))) for key in tables},
        {key: (reads.table(key).version, reads.table(key).changes(0)) for key in tables},
    )


def scramble(db: kvsvr.Engine, chance: random.Random, ttl: float | None) -> None:
    """Some of everything that changes something."""
    for _ in range(30):
        key, row = b"%d" % chance.randrange(20), b"%d" % chance.randrange(9)
        t = db.table(b"t%d" % chance.randrange(4))
        match chance.randrange(10):
            case 0:
                db.delete(key)
            case 1:
                db.put_many((b"%d" % n, row) for n in range(5, 15))
            case 2:
                t.delete(row)
            case 3:
                t.append(row)
            case 4 if chance.random() < 0.3:
                t.drop()
            case 5:
                with db.batch() as batch:
                    batch.put(key, b"batch")
                    batch.table(t.key).put(row, b"batch")
                    batch.table(t.key).append(b"batch")
            case 6:
                db.put(key, b"large" * (1 << 18))
            case 7:
                t.put(row, b"v", ttl=ttl)
            case _:
                t.put(row, chance.randbytes(9))
                db.put(key, chance.randbytes(9))


@pytest.mark.parametrize(("ttl", "compaction"), [(100.0, False), (None, True), (100.0, True)])
def test_a_snapshot_never_changes(tmp_path: Path, ttl: float | None, compaction: bool) -> None:
    """Whatever is written, dropped or expires behind it, through checkpoints, merges of runs and compactions.

    With both, it is not compared with the store: compaction deletes what has expired, between the two looks.
    """
    chance = random.Random(1)
    with kvsvr.open(tmp_path / "store", sync="none", checkpoint_size=1, compaction=compaction) as db:
        held: list[tuple[kvsvr.Snapshot, tuple[object, ...]]] = []
        for step in range(30):
            scramble(db, chance, ttl)
            if step % 10 == 0:
                db._handle.shift_clock(200 * step)
                db._keeper.checkpoint()
            snapshot = db.snapshot()
            held.append((snapshot, content(snapshot)))
            assert held[-1][1] == content(db) or (ttl is not None and compaction)
            for one, before in held:
                assert content(one) == before
            if len(held) > 5:
                held.pop(chance.randrange(len(held)))[0].close()
        assert db.stats()["snapshot_count"] == len(held)
        for one, _ in held:
            one.close()
        assert db.stats()["snapshot_count"] == 0


def test_a_reader_has_snapshots_too(tmp_path: Path) -> None:
    """Also one that opens a store that was closed, and replays nothing."""
    with kvsvr.open(tmp_path / "store") as db:
        version = db.put(b"k", b"1")
        db.table(b"t").put(b"r", b"row")
    with kvsvr.open(tmp_path / "store", readonly=True) as reader, reader.snapshot() as s:
        assert s.version > version
        assert (s.get(b"k"), list(s), s.table(b"t").get(b"r")) == (b"1", [b"k"], b"row")
        assert reader.stats()["sequence"] == s.version
        with kvsvr.open(tmp_path / "store") as db:
            db.put(b"k", b"2")
            db.sync()
            assert reader.refresh() == 1
        assert (reader.get(b"k"), s.get(b"k")) == (b"2", b"1")


def test_a_snapshot_reads_as_the_store_does(tmp_path: Path) -> None:
    with kvsvr.open(tmp_path / "store") as db:
        version = db.put(b"a", b"1", ttl=1000)
        db.put(b"b", b"x" * 100_000)
        row = db.table(b"t").append(b"row")
        with db.snapshot() as s:
            for key in (b"a", b"b"):
                db.delete(key)
            db.table(b"t").drop()
            assert s.version >= version
            assert (s[b"a"], s.get(b"b"), s.get(b"c"), s.get(b"c", 1)) == (b"1", b"x" * 100_000, None, 1)
            found = s.get_versioned(b"a")
            assert found is not None
            assert (found.version, found.expires_at is None) == (version, False)
            assert s.get_many([b"b", b"c", b"a"]) == [b"x" * 100_000, None, b"1"]
            assert (b"a" in s, b"c" in s, b"t" in s) == (True, False, False)
            assert list(s) == list(s.keys(b"a", b"z", limit=9)) == [b"a", b"b"]
            assert [key for key, _ in s.scan(prefix=b"b", reverse=True)] == [b"b"]
            assert list(s.tables()) == list(s.tables(b"t")) == [b"t"]
            t = s.table(b"t")
            assert (t[row], row in t, b"c" in t, list(t), len(t)) == (b"row", True, False, [row], 1)
            assert (t.version, t.changes(0).rows) == (t.changes(0).version, [(row, b"row")])
            with pytest.raises(KeyError):
                s[b"c"]
            with pytest.raises(kvsvr.WrongType):
                s.get(b"t")
            with pytest.raises(kvsvr.WrongType):
                s.table(b"a").get(b"r")
            assert not hasattr(t, "put")
        assert (len(db), list(db), list(db.tables())) == (0, [], [])


def test_a_snapshot_shows_no_part_of_a_batch(tmp_path: Path) -> None:
    with kvsvr.open(tmp_path / "store", sync="none") as db:
        stop = threading.Event()

        def write() -> None:
            n = 0
            while not stop.is_set():
                n += 1
                with db.batch() as batch:
                    for key in range(20):
                        batch.put(b"%d" % key, b"%d" % n)
                        batch.table(b"t").put(b"%d" % key, b"%d" % n)

        writer = threading.Thread(target=write)
        writer.start()
        try:
            for _ in range(200):
                with db.snapshot() as s:
                    values = {value for _, value in s.scan()} | {value for _, value in s.table(b"t").rows()}
                    values |= {value for value in s.get_many([b"%d" % key for key in range(20)]) if value is not None}
                    assert len(values) <= 1
        finally:
            stop.set()
            writer.join()


def test_a_snapshot_that_holds_on_to_too_much_ends(tmp_path: Path) -> None:
    """The oldest one, with an error that says what to do; younger ones and the store go on."""
    with kvsvr.open(tmp_path / "store", sync="none", snapshot_size_max=500_000) as db:
        db.put_many((b"%03d" % n, b"v" * 5000) for n in range(200))
        old = db.snapshot()
        db.put_many((b"%03d" % n, b"w" * 5000) for n in range(80))
        young = db.snapshot()
        before = content(young)
        rows = old.scan()
        next(rows)
        db.put_many((b"%03d" % n, b"x" * 5000) for n in range(90, 130))
        calls: list[Callable[[], object]] = [
            lambda: old.get(b"000"),
            lambda: old.get_many([b"000"]),
            lambda: list(rows),
            lambda: list(old.scan()),
            lambda: list(old.tables()),
            lambda: old.table(b"t").get(b"r"),
            lambda: len(old.table(b"t")),
        ]
        for call in calls:
            with pytest.raises(kvsvr.SnapshotExpired, match="larger snapshot_size_max"):
                call()
        assert content(young) == before
        assert db.stats()["snapshot_size"] <= 500_000
        assert db[b"100"] == b"x" * 5000
        old.close()
        young.close()
    for wrong in (0, -1, 1.5, None, True):
        with pytest.raises(kvsvr.UsageError, match="snapshot_size_max"):
            kvsvr.open(tmp_path / "store", snapshot_size_max=wrong)  # type: ignore[arg-type]


def test_a_closed_snapshot_says_so_and_costs_nothing(tmp_path: Path) -> None:
    with kvsvr.open(tmp_path / "store") as db:
        db[b"a"] = b"1"
        s = db.snapshot()
        t, scan = s.table(b"t"), s.scan()
        assert s[b"a"] == b"1"
        db[b"a"] = b"2"
        s.close()
        s.close()
        calls: list[Callable[[], object]] = [
            lambda: s[b"a"],
            lambda: list(scan),
            lambda: t.get(b"r"),
            lambda: t.version,
            lambda: s.__enter__(),
        ]
        for call in calls:
            with pytest.raises(kvsvr.ClosedError, match=r"db\.snapshot\(\)"):
                call()
        assert "closed" in repr(s)
        assert db.stats()["snapshot_count"] == 0
        assert db[b"a"] == b"2", "its callers went back, and read the present"


def test_a_dropped_snapshot_is_closed_by_its_finalizer(tmp_path: Path) -> None:
    with kvsvr.open(tmp_path / "store") as db:
        db.snapshot()
        assert db.stats()["snapshot_count"] == 0
        rows = db.snapshot().scan()
        assert db.stats()["snapshot_count"] == 1, "who reads from it holds it"
        del rows
        assert db.stats()["snapshot_count"] == 0


def test_the_store_may_close_before_its_snapshots(tmp_path: Path) -> None:
    db = kvsvr.open(tmp_path / "store")
    db[b"a"] = b"1"
    s = db.snapshot()
    db[b"a"] = b"2"
    db.close()
    for call in (lambda: s[b"a"], lambda: list(s.scan()), lambda: len(s.table(b"t"))):
        with pytest.raises(kvsvr.ClosedError):
            call()
    s.close()
    with pytest.raises(kvsvr.ClosedError):
        db.snapshot()
    with kvsvr.open(tmp_path / "store") as db:
        assert db[b"a"] == b"2"


@pytest.mark.parametrize("closed", [True, False])
def test_a_store_and_a_snapshot_may_go_in_one_cycle_of_garbage(tmp_path: Path, closed: bool) -> None:
    """In either order of finalizers; C must not be asked about a store that was given back."""
    for order in range(2):
        db = kvsvr.open(tmp_path / f"store{order}")
        s = db.snapshot()
        s.get(b"a")
        cycle: list[object] = [db, s] if order else [s, db]
        cycle.append(cycle)
        if closed:
            db.close()
        else:
            # As the collector would end it, without the warning that the test run would take for an error.
            held = db._shut.detach()
            assert held is not None
            held[2][1].stop()
            _writers.leave(held[2][2])
        del db, s, cycle
        gc.collect()


def test_a_caller_of_a_snapshot_is_not_freed_with_the_store(tmp_path: Path) -> None:
    """The collector may finalize the Handle first; the snapshot then knows that its callers went with it."""
    db = kvsvr.open(tmp_path / "store")
    s = db.snapshot()
    s.get(b"a")
    held = db._shut.detach()
    assert held is not None
    held[2][1].stop()
    _writers.leave(held[2][2])
    held[2][0].free()
    with pytest.raises(kvsvr.ClosedError):
        s.get(b"a")
    s.close()


def test_a_forked_child_is_told_and_leaves_the_parents_snapshot_alone(tmp_path: Path) -> None:
    with kvsvr.open(tmp_path / "store") as db:
        db[b"a"] = b"1"
        with db.snapshot() as s:
            s.get(b"a")
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    s.get(b"a")
                except kvsvr.ClosedError:
                    s.close()
                    code = 0
                finally:
                    os._exit(code)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            db[b"a"] = b"2"
            assert s[b"a"] == b"1"


def test_threads_read_a_snapshot_while_it_is_closed(tmp_path: Path) -> None:
    """Each read is answered as of the snapshot, or refused; never by the present, never from freed memory."""
    with kvsvr.open(tmp_path / "store", sync="none") as db:
        for n in range(30):
            db[b"a"] = b"%d" % n
            s, wrong = db.snapshot(), list[bytes]()

            def read(s: kvsvr.Snapshot = s, n: int = n, wrong: list[bytes] = wrong) -> None:
                while True:
                    try:
                        value = s[b"a"]
                    except kvsvr.ClosedError:
                        return
                    if value != b"%d" % n:
                        wrong.append(value)

            threads = [threading.Thread(target=read) for _ in range(3)]
            for thread in threads:
                thread.start()
            for later in range(50):
                db[b"a"] = b"later%d" % later
            s.close()
            for thread in threads:
                thread.join()
            assert wrong == []
            assert db[b"a"] == b"later49"
        del s, read
        gc.collect()
        assert db.stats()["snapshot_count"] == 0


def test_a_reader_process_may_take_snapshots(tmp_path: Path) -> None:
    """They stay what they were when it refreshes."""
    with kvsvr.open(tmp_path / "store") as db, kvsvr.open(tmp_path / "store", readonly=True) as reader:
        db[b"a"] = b"1"
        db.table(b"t")[b"r"] = b"1"
        reader.refresh()
        with reader.snapshot() as s:
            before = content(s)
            db[b"a"] = b"2"
            db.table(b"t")[b"r"] = b"2"
            db.delete(b"a")
            reader.refresh()
            assert content(s) == before
            assert b"a" not in reader
