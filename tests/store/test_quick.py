"""Quick methods: whichever way a call goes, through C alone or through the method in Python, it answers the same."""

from __future__ import annotations

import gc
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kvsvr
from kvsvr import native
from kvsvr._quick import Door, Pairs, Quick
from kvsvr.native import as_bytes


@pytest.fixture
def db(tmp_path: Path) -> Iterator[kvsvr.Engine]:
    with kvsvr.open(tmp_path / "store", sync="none") as engine:
        yield engine


def outcome_of(call: Callable[[], object]) -> object:
    try:
        return call()
    except Exception as error:
        return type(error), str(error)


def wrapped(owner: object, name: str) -> Callable[..., object]:
    """The method in Python, without the quick way."""
    method = getattr(type(owner), name)
    assert isinstance(method, Quick), f"{name} is not quick"
    return lambda *arguments: method.__wrapped__(owner, *arguments)  # type: ignore[attr-defined]


class Subclass(bytes):
    pass


names = st.sampled_from([b"", b"a", b"b", b"c", b"table", b"k" * 65535, b"k" * 65536, "text", bytearray(b"a"), None, 7])
values = st.sampled_from([b"", b"1", b"v" * 65536, b"v" * 65537, memoryview(b"mv"), Subclass(b"sub"), "text", None])
counts = st.sampled_from([0, 1, 3, 2000, -1, None, True, "x", 2**70])
calls = st.one_of(
    st.tuples(st.just("get"), st.tuples(names) | st.tuples(names, values) | st.just(())),
    st.tuples(st.just("put"), st.tuples(names, values) | st.tuples(names) | st.tuples(names, values, values)),
    st.tuples(st.just("delete"), st.tuples(names) | st.just(())),
    st.tuples(st.just("get_many"), st.tuples(st.lists(names) | st.just((b"a", b"b")) | st.just({b"a": 1}) | names)),
)
row_calls = st.one_of(
    st.tuples(st.just("get"), st.tuples(names) | st.tuples(names, values)),
    st.tuples(st.just("put"), st.tuples(names, values)),
    st.tuples(st.just("append"), st.tuples(values) | st.just(())),
    st.tuples(st.just("last"), st.tuples(counts) | st.just(())),
)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.one_of(calls, row_calls)), max_size=30), st.booleans())
def test_both_ways_answer_alike(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[bool, Any]], fits: bool
) -> None:
    directory = tmp_path_factory.mktemp("quick")
    memory_size, native.MEMORY_SIZE = native.MEMORY_SIZE, native.MEMORY_SIZE if fits else 0  # type: ignore[misc]
    try:
        with kvsvr.open(directory / "a", sync="none") as a, kvsvr.open(directory / "b", sync="none") as b:
            for of_table, (name, arguments) in steps:
                if of_table or name in ("append", "last"):
                    quick, plain = a.table(b"table"), b.table(b"table")
                    if not hasattr(quick, name) or name in ("get_many", "delete"):
                        continue
                else:
                    quick, plain = a, b  # type: ignore[assignment]
                found = outcome_of(lambda q=quick, n=name, c=arguments: getattr(q, n)(*c))  # type: ignore[misc]
                assert found == outcome_of(lambda p=plain, n=name, c=arguments: wrapped(p, n)(*c))  # type: ignore[misc]
            assert list(a.scan()) == list(b.scan())
            rows = [outcome_of(lambda s=store: list(s.table(b"table").rows())) for store in (a, b)]  # type: ignore[misc]
            assert rows[0] == rows[1]
    finally:
        native.MEMORY_SIZE = memory_size  # type: ignore[misc]


def test_plain_calls_do_not_come_to_python(db: kvsvr.Engine) -> None:
    """That there is a quick way at all: no line of the wrapped methods runs."""
    table, lines = db.table(b"t"), []
    table.append(b"first")
    db.put(b"k", b"v")

    def trace(frame: Any, event: str, argument: object) -> Any:
        lines.append((frame.f_code.co_qualname, event))
        return trace

    sys.settrace(trace)
    try:
        db.put(b"k", b"w")
        db.get(b"k")
        db.get(b"absent", None)
        db.get_many([b"k", b"absent"])
        db.delete(b"k")
        table.put(b"row", b"v")
        table.append(b"v")
        table.get(b"row")
        table.last(20)
    finally:
        sys.settrace(None)
    assert lines == []


def test_options_come_to_python(db: kvsvr.Engine) -> None:
    db.put(b"k", b"v", ttl=100)
    assert db.ttl(b"k") == pytest.approx(100, abs=5)
    version = db.put(key=b"k", value=b"w")
    assert db.get(key=b"k") == b"w"
    with pytest.raises(kvsvr.VersionConflict):
        db.delete(b"k", version=version + 1)
    assert db.delete(b"k", version=version) is True
    with db.batch() as batch:
        batch.put(b"k", b"v", 100)
        batch.put(b"l", b"v", ttl=50)
    assert db.ttl(b"l") == pytest.approx(50, abs=5)
    assert db.ttl(b"k") == pytest.approx(100, abs=5)


def test_who_outlives_the_store_is_told(tmp_path: Path) -> None:
    """Also once C has given it back, with all its callers."""
    db = kvsvr.open(tmp_path / "store")
    table, listing = db.table(b"t"), db.scan()
    table.append(b"row")
    db.put(b"k", b"v")
    handle = db._handle
    db.close()
    handle.free()
    with pytest.raises(kvsvr.ClosedError):
        table.append(b"row")
    with pytest.raises(kvsvr.ClosedError):
        db.get(b"k")
    with pytest.raises(kvsvr.ClosedError):
        next(listing)


def test_in_a_cycle_of_garbage_nothing_freed_is_touched(tmp_path: Path) -> None:
    told: list[Any] = []

    class Late:
        def __init__(self, db: kvsvr.Engine) -> None:
            self.db, self.table, self.me = db, db.table(b"t"), self

        def __del__(self) -> None:
            told.append(outcome_of(lambda: self.db.get(b"k")))
            told.append(outcome_of(lambda: self.table.append(b"v")))

    db = kvsvr.open(tmp_path / "store")
    db.put(b"k", b"v")
    late: Late | None = Late(db)
    db.close()
    del db, late
    gc.collect()
    assert [outcome[0] for outcome in told] == [kvsvr.ClosedError] * 2


def test_a_forked_child_is_refused(db: kvsvr.Engine) -> None:
    db.put(b"k", b"v")
    table = db.table(b"t")
    table.append(b"v")
    child = os.fork()
    if child == 0:
        refused = 0
        for call in (
            lambda: db.get(b"k"),
            lambda: db.put(b"k", b"w"),
            lambda: db.get_many([b"k"]),
            lambda: table.append(b"w"),
            lambda: table.last(1),
            lambda: next(db.scan()),
        ):
            refused += isinstance(outcome_of(call), tuple) and outcome_of(call)[0] is kvsvr.ClosedError  # type: ignore[index]
        os._exit(0 if refused == 6 else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert db.get(b"k") == b"v"


def test_subclasses_of_bytes_are_bytes(db: kvsvr.Engine) -> None:
    key, row, value = Subclass(b"key"), Subclass(b"row"), Subclass(b"value")
    with db.batch() as batch:
        batch.put(key, value)
        batch.table(Subclass(b"t")).put(row, value)
    db.put_many([(Subclass(b"other"), value)])
    db.table(b"t").put_many([(Subclass(b"r2"), value)])
    assert list(db.scan()) == [(b"key", b"value"), (b"other", b"value")]
    assert db.table(Subclass(b"t")).last(2) == [(b"r2", b"value"), (b"row", b"value")]
    assert db.get_many([key, Subclass(b"other")]) == [b"value", b"value"]
    assert (db.get(key), db.delete(key), db.get(key)) == (b"value", True, None)


def test_a_list_that_changes_meanwhile(db: kvsvr.Engine) -> None:
    """get_many reads a list of another thread's, which may shrink while C is away: an answer or none, no crash."""
    db.put_many((b"%05d" % i, b"v") for i in range(5000))
    keys = [b"%05d" % i for i in range(5000)]
    going = True

    def change() -> None:
        while going:
            del keys[2500:]
            keys.extend(b"%05d" % i for i in range(2500, 5000))

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(200):
            assert set(db.get_many(keys)) <= {b"v"}
    finally:
        going = False
        thread.join()


def test_one_iterator_for_two_threads(db: kvsvr.Engine) -> None:
    """Every entry comes once, or who comes in between is told so; nothing is lost and nothing crashes."""
    db.put_many((b"%05d" % i, b"v") for i in range(20000))
    source, found = db.keys(), []
    refused = []

    def take() -> None:
        mine = []
        while True:
            try:
                mine.append(next(source))
            except StopIteration:
                break
            except ValueError as error:
                refused.append(str(error))
        found.extend(mine)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [b"%05d" % i for i in range(20000)]
    assert all("another thread" in text for text in refused)


def test_threads_that_want_the_lock_at_once(db: kvsvr.Engine) -> None:
    """Writers through C alone and writers that wait in C without the GIL, together: no write is lost."""
    durable_count, quick_count = 200, 20000

    def write_durably(name: bytes) -> None:
        for i in range(durable_count):
            db.put(name + b"%d" % i, b"v", durable=True)

    def write(name: bytes) -> None:
        for i in range(quick_count):
            db.put(name + b"%d" % i, b"v")

    threads = [threading.Thread(target=write_durably, args=(b"d%d:" % i,)) for i in range(2)]
    threads += [threading.Thread(target=write, args=(b"q%d:" % i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(db) == 2 * durable_count + 2 * quick_count


@pytest.mark.parametrize("size", [1023, 1024, 4096, 4097, 65536, 65537, 1 << 20, (1 << 20) + 1])
def test_large_values_come_whole_and_checked(tmp_path: Path, size: int) -> None:
    """From where a value is copied into its object at once, and verified on the way; and one flipped bit in another,
    which nobody has read before."""
    value = random.Random(size).randbytes(size)
    with kvsvr.open(tmp_path / "store") as db:
        db.put(b"other", value[::-1])
        assert db.get(b"other") == db.get(b"other") == value[::-1]
        db.put(b"k", value)
        db.sync()
        files = [file for file in (tmp_path / "store").rglob("*") if file.is_file() and value in file.read_bytes()]
        assert len(files) == 1
        at = files[0].read_bytes().index(value) + size // 2
        with open(files[0], "r+b") as file:
            file.seek(at)
            file.write(bytes([value[size // 2] ^ 1]))
        with pytest.raises(kvsvr.CorruptionError):
            db.get(b"k")


@pytest.mark.parametrize("work", ["append", "expire", "transaction"])
def test_a_damaged_value_is_not_written_anew(tmp_path: Path, work: str) -> None:
    """A write that takes the old value along verifies it, also where this process wrote it and nobody has read it
    since; one that does not may go on."""
    value = random.Random(5).randbytes(20000)
    with kvsvr.open(tmp_path / "store") as db:
        db.put(b"k", value)
        db.sync()
        (file,) = [file for file in (tmp_path / "store").rglob("*") if file.is_file() and value in file.read_bytes()]
        at = file.read_bytes().index(value) + 10000
        with open(file, "r+b") as damaged:
            damaged.seek(at)
            damaged.write(bytes([value[10000] ^ 1]))
        with pytest.raises(kvsvr.CorruptionError):
            if work == "append":
                db.append(b"k", b"more")
            elif work == "expire":
                db.expire(b"k", 60)
            else:
                with db.transaction() as transaction:
                    transaction.get(b"k")
        assert db.delete(b"k")


def test_many_large_values_at_once(db: kvsvr.Engine) -> None:
    """Small ones come in one piece, large ones each into its object; absent keys, files and tables between them."""
    rng = random.Random(2)
    sizes = (0, 7, 4095, 4096, 4097, 65536, 1 << 20, (1 << 20) + 1)
    values = {b"%03d" % i: rng.randbytes(rng.choice(sizes)) for i in range(80)}
    for key, value in values.items():
        db.put(key, value)
    wanted = [*values, b"absent", *reversed(values)]
    assert db.get_many(wanted) == [values.get(key) for key in wanted]
    with db.snapshot() as snapshot:
        assert snapshot.get_many(wanted) == [values.get(key) for key in wanted]
    db.table(b"t").append(b"row")
    with pytest.raises(kvsvr.WrongType):
        db.get_many([b"000", b"t", b"001"])


SIZES = (0, 1, 16000, 16384, 65535, 65536, 65537, 1 << 20, (1 << 20) + 1, 3 << 20)


def test_large_values_in_order(db: kvsvr.Engine) -> None:
    """Got one at a time once they turn out to be large; whatever comes, goes or changes meanwhile."""
    rng = random.Random(1)
    values = {b"%03d" % i: rng.randbytes(rng.choice(SIZES)) for i in range(60)}
    table = db.table(b"t")
    for key, value in values.items():
        db.put(key, value)
        table.put(key, value)
    ordered = sorted(values.items())
    with db.snapshot() as snapshot:
        for reads, rows in ((db, table), (snapshot, snapshot.table(b"t"))):
            assert list(reads.scan()) == ordered
            assert list(reads.scan(reverse=True)) == ordered[::-1]
            assert list(reads.scan(b"010", b"050", limit=20)) == ordered[10:30]
            assert list(reads.keys()) == [key for key, _ in ordered]
            assert list(rows.rows()) == ordered
            assert rows.last(30) == ordered[30:]
        scan = snapshot.scan()
        for key, value in values.items():
            db.put(key, value[::-1])
        assert list(scan) == ordered


def test_large_values_that_go_meanwhile(db: kvsvr.Engine) -> None:
    large = bytes(20000)
    db.put_many((b"%d" % i, large) for i in range(10))
    scan = db.scan()
    assert [next(scan)[0] for _ in range(5)] == [b"0", b"1", b"2", b"3", b"4"]
    db.delete(b"5")
    db.put(b"6", b"short")
    db.put(b"7", large * 100)
    db.delete(b"8")
    db.table(b"8").append(b"row")
    db.put(b"9", large, ttl=0.001)
    time.sleep(0.01)
    assert [(key, len(value)) for key, value in scan] == [(b"6", 5), (b"7", 2000000)]


def test_what_pairs_refuse() -> None:
    with pytest.raises(TypeError, match="iterator"):
        Pairs([(b"k", b"v")], as_bytes)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not 3 things"):
        Pairs(iter([(b"k", b"v", b"w")]), as_bytes)
    with pytest.raises(TypeError, match="key is bytes"):
        Pairs(iter([("k", b"v")]), as_bytes)
    with pytest.raises(TypeError, match="make bytes"):
        Pairs(iter([("k", b"v")]), lambda part, what: part)  # type: ignore[arg-type, return-value]
    assert len(Pairs(iter([]), as_bytes)) == 0
    assert len(Pairs(iter([(b"k", b"v")] * 10000), as_bytes)) == 8192
    assert len(Pairs(iter([(b"k", bytes(1 << 19))] * 10), as_bytes)) == 2


def test_a_door_that_is_shut_lets_nobody_in() -> None:
    door = Door(0, 0)
    door.shut()
    door.shut()
    with pytest.raises(AttributeError):
        Quick(7)
    with pytest.raises(ValueError, match="no quick"):
        Quick(test_a_door_that_is_shut_lets_nobody_in)
