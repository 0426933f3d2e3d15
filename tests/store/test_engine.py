"""The engine's methods, one by one, at their edges."""

from __future__ import annotations

import copy
import errno
import gc
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import kvsvr
from kvsvr.native import Checkpoint
from kvsvr.store.catalog import Catalog

KEY_SIZE_MAX = 65_535
INT64_MAX = (1 << 63) - 1
INT64_MIN = -(1 << 63)


def run_python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# --- put and get ---


def test_get_returns_what_put_stored(db: kvsvr.Engine) -> None:
    db.put(b"k", b"v")
    assert db.get(b"k") == b"v"


def test_get_of_an_absent_key_is_the_default(db: kvsvr.Engine) -> None:
    assert db.get(b"k") is None
    assert db.get(b"k", b"other") == b"other"
    assert db.get(b"k", 7) == 7


@pytest.mark.parametrize("size", [1, 2, KEY_SIZE_MAX])
def test_keys_of_every_allowed_size(db: kvsvr.Engine, size: int) -> None:
    db.put(b"k" * size, b"v")
    assert db.get(b"k" * size) == b"v"


@pytest.mark.parametrize("key", [b"", b"k" * (KEY_SIZE_MAX + 1)])
def test_keys_of_any_other_size_are_refused_everywhere(db: kvsvr.Engine, key: bytes) -> None:
    calls: list[Callable[[], object]] = [
        lambda: db.get(key),
        lambda: db.put(key, b""),
        lambda: db.delete(key),
        lambda: db.get_versioned(key),
        lambda: db.cas(key, b"", 0),
        lambda: db.incr(key),
        lambda: db.append(key, b""),
        lambda: db.expire(key, 1),
        lambda: db.persist(key),
        lambda: db.ttl(key),
        lambda: db.get_many([key]),
        lambda: db.put_many([(key, b"")]),
        lambda: db.delete_many([key]),
        lambda: db.wait(key, 0, 0),
        lambda: key in db,
        lambda: db.batch().put(key, b""),
        lambda: db.batch().delete(key),
    ]
    for call in calls:
        with pytest.raises(kvsvr.UsageError, match="65535 bytes"):
            call()
    assert len(db) == 0


@pytest.mark.parametrize("size", [0, 1, 100, 65_535, 65_536, 65_537, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 5 << 20])
def test_values_of_every_kind_of_size(db: kvsvr.Engine, size: int) -> None:
    """Around each border: the kept buffer of an answer, and the size above which a value has a file of its own."""
    value = os.urandom(size)
    db.put(b"k", value)
    assert db.get(b"k") == value
    found = db.get_versioned(b"k")
    assert found is not None
    assert found.value == value
    assert db.get_many([b"k", b"absent", b"k"]) == [value, None, value]


def test_a_small_answer_after_a_large_one(db: kvsvr.Engine) -> None:
    db.put(b"large", b"l" * (8 << 20))
    db.put(b"small", b"s")
    for _ in range(3):
        assert db.get(b"large") == b"l" * (8 << 20)
        assert db.get(b"small") == b"s"


@pytest.mark.parametrize("wrap", [bytearray, memoryview], ids=lambda wrap: str(wrap.__name__))
def test_other_buffers_are_taken_as_their_bytes(db: kvsvr.Engine, wrap: Callable[[bytes], Any]) -> None:
    key, value = wrap(b"key"), wrap(b"value")
    version = db.put(key, value)
    assert db.get(key) == db[key] == db[b"key"] == b"value"
    assert key in db
    assert db.cas(key, wrap(b"1"), version)
    assert db.incr(key) == 2
    assert db.append(key, wrap(b"0")) == 2
    assert db.get_many([key]) == [b"20"]
    assert db.put_many([(key, value)]) == 1
    with db.batch() as batch:
        batch.put(key, value)
    assert db.expire(key, 100)
    assert db.ttl(key) is not None
    assert db.persist(key)
    assert db.delete_many([key]) == 1
    assert not db.delete(key)


def test_a_view_of_wide_items_counts_in_bytes(db: kvsvr.Engine) -> None:
    wide = memoryview(b"12345678").cast("I")
    assert len(wide) == 2
    db.put(wide, wide)
    assert db.get(b"12345678") == b"12345678"
    db.put_many([(wide, wide)])
    assert list(db.get_many([wide])) == [b"12345678"]


def test_a_view_with_gaps_is_refused(db: kvsvr.Engine) -> None:
    with pytest.raises(kvsvr.UsageError, match=r"bytes\(\)"):
        db.put(b"k", memoryview(b"abcdef")[::2])


def test_str_is_refused_and_told_the_cure(db: kvsvr.Engine) -> None:
    text: Any = "text"
    calls: list[Callable[[], object]] = [
        lambda: db.get(text),
        lambda: db.put(text, b""),
        lambda: db.put(b"k", text),
        lambda: db.delete(text),
        lambda: db.get_many([text]),
        lambda: db.put_many([(b"k", text)]),
        lambda: db.append(b"k", text),
        lambda: db.batch().put(b"k", text),
        lambda: text in db,
    ]
    for call in calls:
        with pytest.raises(TypeError, match=r"\.encode\(\)"):
            call()
    assert len(db) == 0


@pytest.mark.parametrize("wrong", [[1, 2], (1,), 1, None, 1.5, {}, object()], ids=repr)
def test_what_is_no_buffer_is_refused(db: kvsvr.Engine, wrong: Any) -> None:
    """Lists above all: cffi by itself would take one as an array of bytes."""
    with pytest.raises(TypeError, match="bytes"):
        db.put(wrong, b"v")
    with pytest.raises(TypeError, match="bytes"):
        db.put(b"k", wrong)
    with pytest.raises(TypeError, match="bytes"):
        db.get(wrong)


def test_a_key_is_copied_before_anything_is_done_with_it(db: kvsvr.Engine) -> None:
    """Another thread may write to its buffer at any time; it is not even exported while the call runs."""
    key = bytearray(b"k" * 64)
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            key[:] = b"x" * 64
            key[:] = b"k" * 64

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(3000):
            db.put(key, b"v")
            db.incr(b"n" + key)
    finally:
        stop.set()
        thread.join()
    for found in db:
        assert found in db


def test_versions_grow_with_every_write(db: kvsvr.Engine) -> None:
    versions = [db.put(b"a", b""), db.put(b"b", b""), db.put(b"a", b"1"), db.cas(b"c", b"", 0)]
    assert versions == sorted(set(versions))
    assert versions[0] > 0


def test_an_empty_value_is_there(db: kvsvr.Engine) -> None:
    db.put(b"k", b"")
    assert db.get(b"k") == b""
    assert b"k" in db
    assert len(db) == 1


# --- delete, versions, cas ---


def test_delete_tells_whether_the_key_was_there(db: kvsvr.Engine) -> None:
    db.put(b"k", b"v")
    assert db.delete(b"k") is True
    assert db.delete(b"k") is False
    assert db.get(b"k") is None


def test_delete_at_a_version(db: kvsvr.Engine) -> None:
    first = db.put(b"k", b"1")
    second = db.put(b"k", b"2")
    with pytest.raises(kvsvr.VersionConflict) as caught:
        db.delete(b"k", version=first)
    assert (caught.value.key, caught.value.current) == (b"k", second)
    assert db.delete(b"k", version=second)
    with pytest.raises(kvsvr.VersionConflict) as caught:
        db.delete(b"k", version=second)
    assert caught.value.current == 0


def test_get_versioned(db: kvsvr.Engine) -> None:
    assert db.get_versioned(b"k") is None
    version = db.put(b"k", b"v")
    assert db.get_versioned(b"k") == kvsvr.Versioned(b"v", version, None)
    before = time.time()
    db.put(b"k", b"v", ttl=100)
    found = db.get_versioned(b"k")
    assert found is not None
    assert found.expires_at is not None
    assert before + 99 < found.expires_at < time.time() + 101


def test_cas_of_an_absent_key(db: kvsvr.Engine) -> None:
    version = db.cas(b"k", b"1", 0)
    with pytest.raises(kvsvr.VersionConflict) as caught:
        db.cas(b"k", b"2", 0)
    assert caught.value.current == version
    assert db.get(b"k") == b"1"


def test_cas_after_delete_takes_the_key_for_absent(db: kvsvr.Engine) -> None:
    old = db.put(b"k", b"1")
    db.delete(b"k")
    with pytest.raises(kvsvr.VersionConflict):
        db.cas(b"k", b"2", old)
    assert db.cas(b"k", b"2", 0) > old


@pytest.mark.parametrize("version", [-1, 1 << 63, 1.5, None, True, b"1"], ids=repr)
def test_a_version_is_a_whole_number(db: kvsvr.Engine, version: Any) -> None:
    with pytest.raises(kvsvr.UsageError, match="version"):
        db.cas(b"k", b"", version)


# --- incr, append ---


def test_incr_counts_from_zero(db: kvsvr.Engine) -> None:
    assert db.incr(b"n") == 1
    assert db.incr(b"n", 41) == 42
    assert db.incr(b"n", -50) == -8
    assert db.get(b"n") == b"-8"


@pytest.mark.parametrize("number", [INT64_MAX, INT64_MIN, 0, -1])
def test_incr_takes_what_it_wrote(db: kvsvr.Engine, number: int) -> None:
    assert db.incr(b"n", number) == number
    assert db.incr(b"n", 0) == number


@pytest.mark.parametrize(("number", "by"), [(INT64_MAX, 1), (INT64_MIN, -1), (1, INT64_MAX), (-1, INT64_MIN)])
def test_incr_past_the_limits_changes_nothing(db: kvsvr.Engine, number: int, by: int) -> None:
    db.put(b"n", b"%d" % number)
    with pytest.raises(kvsvr.UsageError, match="64 bits"):
        db.incr(b"n", by)
    assert db.get(b"n") == b"%d" % number


@pytest.mark.parametrize("by", [1 << 63, INT64_MIN - 1, 1.5, "1"], ids=repr)
def test_incr_by_what_is_no_int64_is_refused(db: kvsvr.Engine, by: Any) -> None:
    with pytest.raises(kvsvr.UsageError, match="64-bit"):
        db.incr(b"n", by)


@pytest.mark.parametrize("value", [b"", b"x", b" 1", b"1 ", b"+1", b"01", b"-0", b"1.0", b"9223372036854775808"])
def test_incr_of_other_values_is_wrong_type(db: kvsvr.Engine, value: bytes) -> None:
    db.put(b"n", value)
    with pytest.raises(kvsvr.WrongType) as caught:
        db.incr(b"n")
    assert caught.value.key == b"n"
    assert not isinstance(caught.value, TypeError)
    assert db.get(b"n") == value


def test_append_answers_the_length(db: kvsvr.Engine) -> None:
    assert db.append(b"k", b"") == 0
    assert b"k" in db
    assert db.append(b"k", b"abc") == 3
    assert db.append(b"k", b"de") == 5
    assert db.get(b"k") == b"abcde"


def test_append_grows_into_a_file_of_its_own(db: kvsvr.Engine) -> None:
    half = b"x" * 700_000
    assert db.append(b"k", half) == 700_000
    assert db.append(b"k", half) == 1_400_000
    assert db.append(b"k", b"end") == 1_400_003
    assert db.get(b"k") == half + half + b"end"


# --- expiry ---


@pytest.mark.parametrize(
    "ttl",
    [0, -1, float("nan"), float("inf"), -float("inf"), "1", b"1", True, 1e18, 10**400, 10**5000, -(10**5000)],
    ids=lambda _: "",
)
def test_a_ttl_is_a_positive_finite_number(db: kvsvr.Engine, ttl: Any) -> None:
    calls: list[Callable[[], object]] = [
        lambda: db.put(b"k", b"", ttl=ttl),
        lambda: db.cas(b"k", b"", 0, ttl=ttl),
        lambda: db.incr(b"k", ttl=ttl),
        lambda: db.append(b"k", b"", ttl=ttl),
        lambda: db.put_many([(b"k", b"")], ttl=ttl),
        lambda: db.expire(b"k", ttl),
        lambda: db.batch().put(b"k", b"", ttl=ttl),
    ]
    for call in calls:
        with pytest.raises(kvsvr.UsageError, match="ttl"):
            call()
    assert len(db) == 0


def test_what_has_expired_is_absent_to_every_call(db: kvsvr.Engine) -> None:
    db.put(b"k", b"5", ttl=0.001)
    time.sleep(0.01)
    assert db.get(b"k") is None
    assert db.get_versioned(b"k") is None
    assert b"k" not in db
    assert db.get_many([b"k"]) == [None]
    assert db.ttl(b"k") is None
    assert not db.expire(b"k", 10)
    assert not db.persist(b"k")
    assert not db.delete(b"k")
    assert db.delete_many([b"k"]) == 0
    assert db.incr(b"k") == 1


def test_the_shortest_ttl_is_not_no_ttl(db: kvsvr.Engine) -> None:
    db.put(b"k", b"v", ttl=1e-9)
    time.sleep(0.01)
    assert db.get(b"k") is None


@pytest.mark.parametrize("ttl", [0, 0.0, None])
def test_expire_without_a_time_names_persist(db: kvsvr.Engine, ttl: Any) -> None:
    with pytest.raises(kvsvr.UsageError, match=r"persist\(\)"):
        db.expire(b"k", ttl)


def test_ttl_expire_persist(db: kvsvr.Engine) -> None:
    assert db.ttl(b"k") is None
    assert not db.expire(b"k", 10)
    assert not db.persist(b"k")
    db.put(b"k", b"v")
    assert db.ttl(b"k") is None
    assert not db.persist(b"k")
    assert db.expire(b"k", 10)
    left = db.ttl(b"k")
    assert left is not None
    assert 9 < left <= 10
    assert db.persist(b"k")
    assert db.ttl(b"k") is None
    assert db.get(b"k") == b"v"


def test_put_clears_the_ttl_and_incr_and_append_keep_it(db: kvsvr.Engine) -> None:
    db.put(b"n", b"1", ttl=100)
    db.incr(b"n")
    db.append(b"n", b"0")
    assert db.ttl(b"n") is not None
    db.incr(b"n", ttl=1000)
    left = db.ttl(b"n")
    assert left is not None
    assert left > 900
    db.put(b"n", b"1")
    assert db.ttl(b"n") is None


def test_ttl_outlives_a_restart(path: Path) -> None:
    with kvsvr.open(path) as db:
        db.put(b"short", b"", ttl=0.05)
        db.put(b"long", b"", ttl=100)
    time.sleep(0.06)
    with kvsvr.open(path) as db:
        assert b"short" not in db
        left = db.ttl(b"long")
        assert left is not None
        assert 90 < left < 100


def test_a_clock_set_back_revives_nothing(path: Path) -> None:
    with kvsvr.open(path) as db:
        db.put(b"k", b"v", ttl=50)
        db._handle.shift_clock(60)
        assert db.get(b"k") is None
        db._handle.shift_clock(-3600)
        assert db.get(b"k") is None
    with kvsvr.open(path) as db:
        assert db.get(b"k") is None


# --- many ---


def test_many_of_nothing(db: kvsvr.Engine) -> None:
    assert db.put_many([]) == 0
    assert db.get_many([]) == []
    assert db.delete_many([]) == 0


def test_put_many_get_many_delete_many(db: kvsvr.Engine) -> None:
    pairs = {b"%d" % n: b"v" * (n % 7) for n in range(5000)}
    assert db.put_many(pairs.items()) == 5000
    assert len(db) == 5000
    keys = [*pairs, b"absent"]
    assert db.get_many(iter(keys)) == [*pairs.values(), None]
    assert db.delete_many(key for key in [*keys[:10], b"absent", keys[0]]) == 10
    assert len(db) == 4990


def test_get_many_of_equal_sizes(db: kvsvr.Engine) -> None:
    """The short cut for equal sizes, and what must not take it: an absent key, an empty value."""
    db.put_many([(b"%d" % n, b"%03d" % n) for n in range(100)])
    assert db.get_many([b"%d" % n for n in range(100)]) == [b"%03d" % n for n in range(100)]
    db.put_many([(b"e1", b""), (b"e2", b"")])
    assert db.get_many([b"e1", b"e2"]) == [b"", b""]
    assert db.get_many([b"no", b"nor"]) == [None, None]


def test_the_last_of_equal_keys_wins(db: kvsvr.Engine) -> None:
    assert db.put_many([(b"k", b"1"), (b"k", b"2")]) == 2
    assert db.get(b"k") == b"2"


def test_put_many_takes_large_values_one_group_at_a_time(db: kvsvr.Engine) -> None:
    alive = 0

    def pairs() -> Iterator[tuple[bytes, bytes]]:
        nonlocal alive
        for n in range(12):
            alive = n - len(db)
            assert alive <= 1
            yield b"%d" % n, b"x" * (2 << 20)

    assert db.put_many(pairs()) == 12
    assert db.get(b"11") == b"x" * (2 << 20)


def test_put_many_with_ttl(db: kvsvr.Engine) -> None:
    db.put_many([(b"a", b""), (b"b", b"")], ttl=100)
    assert db.ttl(b"a") is not None


def test_an_exception_from_the_pairs_comes_out(db: kvsvr.Engine) -> None:
    def pairs() -> Iterator[tuple[bytes, bytes]]:
        yield b"k", b"v"
        raise LookupError

    with pytest.raises(LookupError):
        db.put_many(pairs())


def test_what_is_no_list_of_keys_or_pairs_is_refused_and_told_the_cure(db: kvsvr.Engine) -> None:
    wrong: Any
    for wrong in (b"abc", bytearray(b"abc"), memoryview(b"abc"), "abc"):
        with pytest.raises(TypeError, match="list of keys"):
            db.get_many(wrong)
        with pytest.raises(TypeError, match="list of keys"):
            db.delete_many(wrong)
    wrong = {b"k": b"v"}
    with pytest.raises(TypeError, match=r"d\.items\(\)"):
        db.put_many(wrong)
    for wrong in ([(b"k", None)], [(b"k", 1)], [(None, b"v")]):
        with pytest.raises(TypeError, match="is bytes"):
            db.put_many(wrong)
    assert len(db) == 0


# --- batch ---


def test_a_batch_has_one_version(db: kvsvr.Engine) -> None:
    db.put(b"old", b"")
    with db.batch() as batch:
        batch.put(b"a", b"1")
        batch.put(b"b", b"")
        batch.put(b"t", b"3", ttl=100)
        batch.delete(b"old")
        before = batch.version
        assert before is None
        assert db.get(b"a") is None
    assert batch.version is not None
    for key, value in ((b"a", b"1"), (b"b", b""), (b"t", b"3")):
        found = db.get_versioned(key)
        assert found is not None
        assert (found.value, found.version) == (value, batch.version)
    assert db.ttl(b"t") is not None
    assert b"old" not in db


def test_the_last_operation_of_a_key_wins(db: kvsvr.Engine) -> None:
    with db.batch(durable=True) as batch:
        batch.put(b"a", b"1")
        batch.delete(b"a")
        batch.delete(b"b")
        batch.put(b"b", b"2")
        assert len(batch) == 2
    assert db.get_many([b"a", b"b"]) == [None, b"2"]


def test_an_exception_writes_nothing(db: kvsvr.Engine) -> None:
    with pytest.raises(LookupError), db.batch() as batch:
        batch.put(b"a", b"1")
        raise LookupError
    assert batch.version is None
    assert len(db) == 0


def test_an_empty_batch_is_version_zero(db: kvsvr.Engine) -> None:
    with db.batch() as batch:
        pass
    assert batch.version == 0
    with db.batch() as batch:
        batch.delete(b"absent")
    assert batch.version == 0


def test_a_batch_is_used_once(db: kvsvr.Engine) -> None:
    with db.batch() as batch:
        batch.put(b"a", b"1")
    with pytest.raises(kvsvr.UsageError, match="another"):
        batch.put(b"a", b"2")
    with pytest.raises(kvsvr.UsageError, match="another"):
        batch.delete(b"a")
    with pytest.raises(kvsvr.UsageError, match="another"), batch:
        pass
    assert db.get(b"a") == b"1"


def test_a_batch_copies_buffers_as_they_come(db: kvsvr.Engine) -> None:
    buffer = bytearray(b"one")
    with db.batch() as batch:
        batch.put(buffer, buffer)
        buffer[:] = b"two"
    assert db.get(b"one") == b"one"


def test_a_batch_with_values_of_every_kind(db: kvsvr.Engine) -> None:
    values = {b"%d" % size: os.urandom(size) for size in (0, 1, 1000, 1 << 20, (1 << 20) + 1, 3 << 20)}
    with db.batch() as batch:
        for key, value in values.items():
            batch.put(key, value)
    assert dict(zip(values, db.get_many(values), strict=True)) == values


# --- as a dict ---


def test_dict_like(db: kvsvr.Engine) -> None:
    assert bool(db)
    db[b"k"] = b"v"
    assert db[b"k"] == b"v"
    assert b"k" in db
    assert len(db) == 1
    del db[b"k"]
    assert b"k" not in db
    assert len(db) == 0
    with pytest.raises(KeyError):
        db[b"k"]
    with pytest.raises(KeyError):
        del db[b"k"]


def test_repr_names_path_and_state(path: Path) -> None:
    with kvsvr.open(path, sync="none") as db:
        assert repr(db) == f"<kvsvr.Engine {os.path.realpath(path)!r} none>"
    assert repr(db).endswith("closed>")


# --- wait ---


def test_wait_answers_at_once_what_is_newer(db: kvsvr.Engine) -> None:
    version = db.put(b"k", b"v")
    assert db.wait(b"k", 0, 5) == version
    assert db.wait(b"k", version, 0) == version
    assert db.wait(b"unseen", 0, 0) == 0


def test_wait_wakes_at_a_write(db: kvsvr.Engine) -> None:
    version = db.put(b"k", b"v")
    written: list[int] = []
    timer = threading.Timer(0.15, lambda: written.append(db.put(b"k", b"w")))
    timer.start()
    assert db.wait(b"k", version) > version
    timer.join()
    assert db.wait(b"k", version, 0) == written[0]


def test_wait_wakes_at_a_delete(db: kvsvr.Engine) -> None:
    version = db.put(b"k", b"v")
    db.delete(b"k")
    assert db.wait(b"k", version, 5) > version


def test_wait_ends_at_the_timeout(db: kvsvr.Engine) -> None:
    version = db.put(b"k", b"v")
    before = time.monotonic()
    assert db.wait(b"k", version, 0.25) == version
    assert 0.24 < time.monotonic() - before < 5


@pytest.mark.parametrize("timeout", [-1, float("nan"), "1", 1e300, 10**400, 10**5000], ids=lambda _: "")
def test_wait_refuses_other_timeouts(db: kvsvr.Engine, timeout: Any) -> None:
    with pytest.raises(kvsvr.UsageError, match="timeout"):
        db.wait(b"k", 0, timeout)


def test_a_wait_for_ever_may_say_so_as_infinity(db: kvsvr.Engine) -> None:
    timer = threading.Timer(0.15, lambda: db.put(b"k", b"v"))
    timer.start()
    assert db.wait(b"k", 0, float("inf")) > 0
    timer.join()


def test_ctrl_c_ends_a_wait(db: kvsvr.Engine) -> None:
    # Under nohup, or behind & in a script, SIGINT is ignored from the start.
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(0.1, lambda: signal.raise_signal(signal.SIGINT))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            db.wait(b"k", 0, 30)
    finally:
        timer.join()
        signal.signal(signal.SIGINT, old)


def test_a_call_from_a_signal_handler_leaves_the_one_below_alone(db: kvsvr.Engine) -> None:
    """A handler may run between the C call of a get and the copy of its answer, in the same thread."""
    db.put(b"a", b"A" * 100)
    db.put(b"b", b"B" * 100)
    calls = 0

    def handler(*_: object) -> None:
        nonlocal calls
        calls += 1
        assert db.get(b"b") == b"B" * 100

    old = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)
    try:
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            assert db.get(b"a") == b"A" * 100
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert calls > 10


# --- opening ---


def test_reopened_it_holds_the_same(path: Path) -> None:
    with kvsvr.open(path) as db:
        version = db.put(b"k", b"v")
        db.put(b"gone", b"")
        db.delete(b"gone")
    with kvsvr.open(path) as db:
        assert db.get_versioned(b"k") == kvsvr.Versioned(b"v", version, None)
        assert len(db) == 1
        assert db.put(b"k", b"w") > version


@pytest.mark.parametrize("sync", ["none", "batch", "always"])
def test_every_sync_mode_stores(path: Path, sync: Any) -> None:
    with kvsvr.open(path, sync=sync) as db:
        db.put(b"k", b"v")
        db.put(b"l", b"v", durable=True)
        assert db.stats()["unsynced_size"] == 0 or sync != "always"
        db.sync()
        assert db.stats()["unsynced_size"] == 0


@pytest.mark.parametrize(
    "options",
    [
        {"sync": "sometimes"},
        {"sync_ms_max": 0},
        {"sync_ms_max": 1.5},
        {"checkpoint_size": 0},
        {"checkpoint_size": True},
    ],
    ids=repr,
)
def test_wrong_options_are_refused_before_anything_is_made(path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(kvsvr.UsageError, match=next(iter(options))):
        kvsvr.open(path, **options)
    assert not path.exists()


def test_a_missing_parent_is_named(tmp_path: Path) -> None:
    with pytest.raises(kvsvr.UsageError, match="make it first"):
        kvsvr.open(tmp_path / "no" / "store")


def test_a_file_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(kvsvr.UsageError, match="is a file"):
        kvsvr.open(tmp_path / "file")
    with pytest.raises(kvsvr.DiskError) as caught:
        kvsvr.open(tmp_path / "file" / "store")
    assert caught.value.errno == errno.ENOTDIR
    assert not caught.value.full


def test_a_path_may_be_str_and_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with kvsvr.open("store") as db:
        monkeypatch.chdir("/")
        db.put(b"k", b"v")
    with kvsvr.open(tmp_path / "store") as db:
        assert db.get(b"k") == b"v"


def test_a_second_writer_in_this_process_is_refused(db: kvsvr.Engine, path: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(path)
    for spelling in (path, tmp_path / "link", str(path) + "/../store"):
        with pytest.raises(kvsvr.LockedError, match="this process") as caught:
            kvsvr.open(spelling)
        assert caught.value.holder == os.getpid()


def test_a_second_process_is_told_the_first(db: kvsvr.Engine, path: Path) -> None:
    code = """
import sys, kvsvr
try:
    kvsvr.open(sys.argv[1])
except kvsvr.LockedError as error:
    print(error.holder)
"""
    # Twice: had the refused opener, or one in this process, dropped the lock, the second would come in.
    for _ in range(2):
        with pytest.raises(kvsvr.LockedError):
            kvsvr.open(path)
        result = run_python(code, path)
        assert result.stdout.strip() == str(os.getpid()), result.stderr


def test_closed_it_can_be_opened_by_another(path: Path) -> None:
    """The lock goes with close(), not with the last reference."""
    db = kvsvr.open(path)
    db.put(b"k", b"v")
    db.close()
    result = run_python("import sys, kvsvr\nwith kvsvr.open(sys.argv[1]) as db: print(db[b'k'])", path)
    assert result.stdout.strip() == "b'v'", result.stderr
    # And dropping what is left of the first handle does not take a lock that is now somebody else's.
    with kvsvr.open(path) as second:
        del db
        gc.collect()
        second.put(b"k", b"w")
        result = run_python("import sys, kvsvr\nkvsvr.open(sys.argv[1])", path)
        assert "LockedError" in result.stderr


def test_readonly(path: Path) -> None:
    with pytest.raises(kvsvr.UsageError, match="no store"):
        kvsvr.open(path, readonly=True)
    assert not path.exists()
    with kvsvr.open(path) as writer:
        writer.put(b"k", b"v")
        with kvsvr.open(path, readonly=True) as reader:
            assert reader.get(b"k") == b"v"
            writer.put(b"k", b"w")
            writer.put(b"l", b"")
            assert reader.refresh() >= 2
            assert reader.get(b"k") == b"w"
            assert len(reader) == 2
            with pytest.raises(kvsvr.UsageError, match="readonly"):
                reader.put(b"k", b"")
            with pytest.raises(kvsvr.UsageError, match="readonly"):
                reader.delete(b"k")
        with pytest.raises(kvsvr.UsageError, match="readonly"):
            writer.refresh()


def test_a_readonly_opener_changes_no_file(path: Path) -> None:
    with kvsvr.open(path) as db:
        db.put_many((b"%d" % n, b"v" * 100) for n in range(1000))
    before = files_of(path)
    with kvsvr.open(path, readonly=True) as reader:
        assert len(reader) == 1000
        reader.get(b"1")
    assert files_of(path) == before


def files_of(path: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(file.relative_to(path)): (file.read_bytes(), file.stat().st_mtime_ns)
        for file in path.rglob("*")
        if file.is_file()
    }


@pytest.mark.parametrize("readonly", [1, 0, "no", None], ids=repr)
def test_readonly_is_a_bool(path: Path, readonly: Any) -> None:
    with pytest.raises(kvsvr.UsageError, match="readonly"):
        kvsvr.open(path, readonly=readonly)
    assert not path.exists()


def test_an_empty_path_is_refused() -> None:
    with pytest.raises(kvsvr.UsageError, match="empty"):
        kvsvr.open("")


def test_a_store_is_neither_pickled_nor_copied(db: kvsvr.Engine) -> None:
    for call in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="pass its path"):
            call(db)


@pytest.mark.timeout(240)
def test_the_largest_value_is_stored_and_found_again(path: Path) -> None:
    """1 GiB is the limit; one byte more is refused."""
    size = 1 << 30
    value = b"first" + bytes(size - 9) + b"last"
    try:
        with kvsvr.open(path, sync="none") as db:
            db.put(b"k", value)
            assert db.get(b"k") == value
        with kvsvr.open(path, sync="none") as db:
            assert db.get(b"k") == value
            with pytest.raises(kvsvr.UsageError, match="1 GiB"):
                db.put(b"k", bytes(size + 1))
            db.delete(b"k")
    finally:
        shutil.rmtree(path)


# --- closing ---


def test_a_closed_store_is_no_context(path: Path) -> None:
    db = kvsvr.open(path)
    db.close()
    with pytest.raises(kvsvr.ClosedError, match="open it again"), db:
        pass


def test_closed_it_refuses_every_call(path: Path) -> None:
    db = kvsvr.open(path)
    db.put(b"k", b"v")
    batch = db.batch()
    db.close()
    db.close()
    calls: list[Callable[[], object]] = [
        lambda: db.get(b"k"),
        lambda: db.put(b"k", b""),
        lambda: db.delete(b"k"),
        lambda: db.get_versioned(b"k"),
        lambda: db.cas(b"k", b"", 0),
        lambda: db.incr(b"k"),
        lambda: db.append(b"k", b""),
        lambda: db.expire(b"k", 1),
        lambda: db.persist(b"k"),
        lambda: db.ttl(b"k"),
        lambda: db.get_many([b"k"]),
        lambda: db.put_many([(b"k", b"")]),
        lambda: db.delete_many([b"k"]),
        lambda: db.wait(b"k", 0, 1),
        lambda: db.sync(),
        lambda: b"k" in db,
    ]
    for call in calls:
        with pytest.raises(kvsvr.ClosedError, match="closed"):
            call()
    with pytest.raises(kvsvr.ClosedError), batch:
        batch.put(b"k", b"")


def test_close_ends_waits_in_other_threads(path: Path) -> None:
    db = kvsvr.open(path)
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            db.wait(b"k", 0)
        except kvsvr.ClosedError as error:
            errors.append(error)

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    db.close()
    for thread in threads:
        thread.join(timeout=10)
    assert len(errors) == 3


def test_dropped_without_close_it_is_closed_with_a_warning(path: Path) -> None:
    db = kvsvr.open(path)
    db.put(b"k", b"v")
    with pytest.warns(ResourceWarning, match="not closed"):
        del db
        gc.collect()
    with kvsvr.open(path) as db:
        assert db.stats()["was_clean"] == 1
        assert db[b"k"] == b"v"


class Late:
    """Still wants its store when the collector comes for both."""

    def __init__(self, db: kvsvr.Engine, outcomes: list[object]) -> None:
        self.me = self
        self.db = db
        self.outcomes = outcomes

    def __del__(self) -> None:
        for call in (lambda: self.db.get(b"k"), lambda: self.db.put(b"k", b""), lambda: len(self.db)):
            try:
                self.outcomes.append(call())
            except kvsvr.ClosedError as error:
                self.outcomes.append(type(error))


def test_a_finalizer_may_still_call_a_store_that_is_garbage_with_it(path: Path) -> None:
    """In a cycle of garbage finalizers run in any order: the store may be gone, and then says so."""
    outcomes: list[object] = []
    for _ in range(5):
        db = kvsvr.open(path)
        db.put(b"k", b"v")
        Late(db, outcomes)
        db.close()
        del db
        gc.collect()
    assert outcomes == [kvsvr.ClosedError] * len(outcomes)
    assert len(outcomes) == 15


def test_the_interpreter_ends_with_open_stores(path: Path) -> None:
    """Neither a global, nor a daemon thread inside a call, nor a reference cycle may hang or crash its end."""
    code = """
import sys, threading, kvsvr
db = kvsvr.open(sys.argv[1])
db.put(b"k", b"v")
class Cycle: pass
cycle = Cycle(); cycle.me = cycle; cycle.db = db
def spin():
    while True:
        db.get(b"k"); db.wait(b"other", 0, 0.01)
for _ in range(3):
    threading.Thread(target=spin, daemon=True).start()
print(db[b"k"])
"""
    result = run_python(code, path)
    assert result.stdout.strip() == "b'v'"
    assert result.returncode == 0, result.stderr
    with kvsvr.open(path) as db:
        assert db.stats()["was_clean"] == 1


def test_after_fork_the_child_is_told_to_open_again(path: Path) -> None:
    db = kvsvr.open(path)
    db.put(b"k", b"v")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            for call in (lambda: db.get(b"k"), lambda: db.put(b"k", b"w"), lambda: db.wait(b"k", 0, 1)):
                with pytest.raises(kvsvr.ClosedError, match="fork"):
                    call()
            with pytest.raises(kvsvr.LockedError) as caught:
                kvsvr.open(path)
            assert caught.value.holder == os.getppid()
            db.close()
            del db
            gc.collect()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert db.get(b"k") == b"v"
    db.put(b"k", b"w")
    db.close()


# --- threads ---


def test_eight_threads_lose_no_update(db: kvsvr.Engine) -> None:
    def count() -> None:
        for _ in range(500):
            db.incr(b"n")

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert db.get(b"n") == b"4000"
    assert len(db._handle.callers) <= 9


# --- figures, checkpoints, catalog ---


def test_stats_tell(db: kvsvr.Engine) -> None:
    db.put(b"k", b"v")
    db.table(b"t").put_many([(b"a", b""), (b"b", b"")])
    db.table(b"t").delete(b"a")
    db.table(b"dropped").append(b"")
    db.table(b"dropped").drop()
    with db.snapshot():
        stats = db.stats()
    assert stats["key_count"] == 1
    assert (stats["table_count"], stats["snapshot_count"]) == (1, 1)
    assert stats["row_tombstone_count"] >= 1
    assert stats["row_count"] - stats["retired_table_count"] == 1, "a dropped row counts until it is swept"
    assert len(stats["store_id"]) == 32
    assert stats["checkpoint_count"] == 0
    assert stats["catalog"] is None


def test_housekeeping_makes_checkpoints(path: Path) -> None:
    with kvsvr.open(path, sync="none", checkpoint_size=100_000) as db:
        end = time.monotonic() + 20
        while db.stats()["checkpoint_count"] < 2 and time.monotonic() < end:
            db.put_many((os.urandom(8), b"v" * 100) for _ in range(1000))
        assert db.stats()["checkpoint_count"] >= 2
        assert db.stats()["checkpoint_failed_count"] == 0
        count = len(db)
    with kvsvr.open(path) as db:
        assert db.stats()["used_checkpoint"] == 1
        assert db.stats()["replayed_count"] < count
        assert len(db) == count


def test_a_checkpoint_takes_few_calls(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each costs the housekeeping thread a wait for the GIL, 5 ms beside a thread that computes, and a checkpoint that
    takes longer than it takes to fill the next tail leaves too much to replay."""
    calls = 0
    step = Checkpoint.step

    def counted(checkpoint: Checkpoint) -> bool:
        nonlocal calls
        calls += 1
        return step(checkpoint)

    monkeypatch.setattr(Checkpoint, "step", counted)
    with kvsvr.open(path, sync="none", checkpoint_size=None) as db:
        db.put_many((random.Random(i).randbytes(16), b"") for i in range(100_000))
    assert 1 < calls < 20


def test_a_small_store_makes_checkpoints_long_before_a_large_one_would(path: Path) -> None:
    """16 MiB of flow, or what an image of the index takes: so an opener after kill -9 has little to replay."""
    with kvsvr.open(path, sync="none") as db:
        for number in range(20):
            db.put(b"%d" % (number % 3), bytes(1 << 20))
        end = time.monotonic() + 20
        while db.stats()["checkpoint_count"] == 0 and time.monotonic() < end:
            time.sleep(0.02)
        assert db.stats()["checkpoint_count"] == 1
        assert db.stats()["since_checkpoint_size"] < 16 << 20


def test_a_failing_checkpoint_is_told_and_costs_nothing_else(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "broken")

    with kvsvr.open(path, sync="none", checkpoint_size=1000) as db:
        monkeypatch.setattr(Catalog, "put_checkpoint", refuse)
        db.put(b"k", b"v" * 2000)
        end = time.monotonic() + 10
        while db.stats()["checkpoint_failed_count"] == 0 and time.monotonic() < end:
            time.sleep(0.02)
        assert "broken" in db.stats()["checkpoint_failure"]
    assert "no checkpoint" in caplog.text
    with kvsvr.open(path) as db:
        assert db[b"k"] == b"v" * 2000


@pytest.mark.parametrize("damage", ["absent", "empty", "short", "flipped", "other"])
def test_without_its_catalog_a_store_opens_to_the_same_state(path: Path, damage: str) -> None:
    with kvsvr.open(path, sync="none") as db:
        db.put_many((b"%d" % n, b"v%d" % n) for n in range(3000))
        db.delete(b"7")
    file = path / "catalog.mdb"
    content = file.read_bytes()
    match damage:
        case "absent":
            file.unlink()
        case "empty":
            file.write_bytes(b"")
        case "short":
            file.write_bytes(content[:-1])
        case "flipped":
            file.write_bytes(content[:5000] + bytes([content[5000] ^ 1]) + content[5001:])
        case "other":
            file.write_bytes(os.urandom(9000))
    for readonly in (True, False):
        with kvsvr.open(path, readonly=readonly) as db:
            assert db.stats()["used_checkpoint"] == 0
            assert (db.stats()["catalog"] is None) == (damage == "absent")
            assert len(db) == 2999
            assert db[b"8"] == b"v8"
            if not readonly:
                db.put(b"new", b"")
    with kvsvr.open(path) as db:
        assert db.stats()["catalog"] is None
        assert db.stats()["used_checkpoint"] == 1
        assert len(db) == 3000


def test_a_damaged_index_file_is_noticed_and_made_anew(path: Path) -> None:
    """The flow is whole, so the store is: what the damage costs is a close and a full replay."""
    with kvsvr.open(path) as db:
        db.put_many((b"%d" % n, b"v") for n in range(20))
    (file,) = (path / "index").iterdir()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with kvsvr.open(path) as db, pytest.raises(kvsvr.CorruptionError, match="rebuilt at the next open") as caught:
        db.get_many([b"%d" % n for n in range(20)])
    assert caught.value.position is None
    with kvsvr.open(path) as db:
        assert db.stats()["used_checkpoint"] == 0
        assert db.get_many([b"%d" % n for n in range(20)]) == [b"v"] * 20


def test_every_flipped_bit_and_cut_of_the_catalog_is_noticed(path: Path) -> None:
    """LMDB must never see pages that are not what it wrote: it would follow them into a crash."""
    path.mkdir()
    catalog = Catalog(str(path))
    assert catalog.checkpoint() is None
    catalog.put_checkpoint(b"first")
    catalog.put_checkpoint(b"description")
    assert catalog.checkpoint() == b"description"
    file = path / "catalog.mdb"
    content = file.read_bytes()
    damaged = [content[:size] for size in range(0, len(content), 61)]
    damaged += [content + b"\0"]
    for at in [*range(0, len(content), 37), *range(len(content) - 60, len(content))]:
        damaged.append(content[:at] + bytes([content[at] ^ (1 << at % 8)]) + content[at + 1 :])
    for image in damaged:
        file.write_bytes(image)
        assert catalog.checkpoint() is None
        assert catalog.note
    catalog.put_checkpoint(b"again")
    assert catalog.checkpoint() == b"again"
    assert os.listdir(path) == ["catalog.mdb"]


# --- errors ---


@pytest.mark.parametrize(
    "error",
    [
        kvsvr.VersionConflict(b"k", 7),
        kvsvr.LockedError("/data", 12, here=True),
        kvsvr.CorruptionError("/data", "why", (1, 4096)),
        kvsvr.DiskError("full", path="/data", errno=errno.ENOSPC),
        kvsvr.WrongType("no", key=b"k"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_cross_process_borders(error: kvsvr.KvError) -> None:
    """A worker's exception reaches the parent of a process pool with its fields."""
    other = pickle.loads(pickle.dumps(error))
    assert type(other) is type(error)
    assert (str(other), vars(other)) == (str(error), vars(error))


def test_a_long_key_is_cut_in_messages() -> None:
    assert len(str(kvsvr.VersionConflict(b"k" * KEY_SIZE_MAX, 1))) < 300


def test_the_tree_of_errors() -> None:
    for name in kvsvr.__all__:
        value = getattr(kvsvr, name)
        if isinstance(value, type) and issubclass(value, Exception):
            assert issubclass(value, kvsvr.KvError)
    assert issubclass(kvsvr.UsageError, ValueError)
    assert kvsvr.DiskError("", path="", errno=errno.ENOSPC).full
