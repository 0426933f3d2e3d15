"""Keys in order: scan(), keys(), iteration. Each range at its edges, against a sorted dict, in every state a store can
be in: just written, opened again, opened after a kill, without its catalog, after many checkpoints."""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

import kvsvr
from kvsvr.errors import ClosedError, CorruptionError, UsageError

LONG = b"\xff" * 65535


def fill(db: kvsvr.Engine, model: dict[bytes, bytes]) -> None:
    db.put_many(model.items())


def check(db: kvsvr.Engine, model: dict[bytes, bytes]) -> None:
    """Everything, both ways, with and without values."""
    expected = sorted(model.items())
    assert list(db.scan()) == expected
    assert list(db.scan(reverse=True)) == expected[::-1]
    assert list(db.keys()) == list(db) == [key for key, _ in expected]
    assert list(db.keys(reverse=True)) == [key for key, _ in expected][::-1]


# --- ranges ---


def test_an_empty_store_has_no_keys(db: kvsvr.Engine) -> None:
    check(db, {})
    assert list(db.scan(b"a", b"b", reverse=True, limit=3)) == []


def test_start_is_in_the_range_and_stop_is_not(db: kvsvr.Engine) -> None:
    fill(db, {key: key for key in (b"a", b"b", b"ba", b"c")})
    assert list(db.keys(b"b")) == [b"b", b"ba", b"c"]
    assert list(db.keys(None, b"c")) == [b"a", b"b", b"ba"]
    assert list(db.keys(b"b", b"c")) == [b"b", b"ba"]
    assert list(db.keys(b"aa", b"bb")) == [b"b", b"ba"]
    assert list(db.keys(b"c", b"b")) == list(db.keys(b"b", b"b")) == []
    assert list(db.keys(b"")) == list(db.keys()) == [b"a", b"b", b"ba", b"c"]
    assert list(db.keys(stop=b"")) == []


def test_reverse_is_the_same_range_from_its_end(db: kvsvr.Engine) -> None:
    fill(db, {key: key * 2 for key in (b"a", b"b", b"ba", b"c")})
    for bounds in ((None, None), (b"b", None), (None, b"c"), (b"b", b"c"), (b"c", b"b"), (b"", b""), (b"bb", b"zz")):
        assert list(db.scan(*bounds, reverse=True)) == list(db.scan(*bounds))[::-1]


def test_a_prefix_picks_what_begins_with_it(db: kvsvr.Engine) -> None:
    keys = [
        b"\xfe",
        b"\xfe\xff",
        b"\xff",
        b"\xff\xfe",
        b"\xff\xff",
        b"\xff\xff\x00",
        b"\xff\xff\xff",
        b"a",
        b"ab",
        b"b",
    ]
    fill(db, dict.fromkeys(keys, b""))
    for prefix in (b"", b"a", b"ab", b"abc", b"\xfe", b"\xfe\xff", b"\xff", b"\xff\xff", b"\xff\xff\xff", LONG):
        expected = sorted(key for key in keys if key.startswith(prefix))
        assert list(db.keys(prefix=prefix)) == expected
        assert list(db.keys(prefix=prefix, reverse=True)) == expected[::-1]


def test_a_limit_is_a_bound_and_nothing_is_also_a_number(db: kvsvr.Engine) -> None:
    model = {b"%05d" % number: b"" for number in range(3000)}
    fill(db, model)
    for limit in (0, 1, 31, 32, 33, 160, 161, 672, 1696, 2999, 3000, 3001, 10**9):
        assert list(db.keys(limit=limit)) == sorted(model)[:limit]
        assert list(db.keys(limit=limit, reverse=True)) == sorted(model)[::-1][:limit]


def test_the_longest_keys_are_listed(db: kvsvr.Engine) -> None:
    keys = [LONG, LONG[:-1], LONG[:-1] + b"\xfe", b"\0" * 65535, b"\0", b"\0\0", LONG[:100]]
    fill(db, {key: key[:3] for key in keys})
    check(db, {key: key[:3] for key in keys})
    assert list(db.keys(LONG)) == [LONG]
    assert list(db.keys(LONG + b"\0")) == list(db.keys(LONG * 2)) == []
    assert list(db.keys(stop=LONG * 2)) == sorted(keys)
    assert list(db.keys(stop=LONG, reverse=True)) == sorted(keys)[-2::-1]


def test_values_of_any_size_come_along(db: kvsvr.Engine) -> None:
    sizes = [0, 1, 100, 65_000, 70_000, 1 << 20, (1 << 20) + 1, 3 << 20, 5]
    model = {b"key%d" % index: os.urandom(size) for index, size in enumerate(sizes)}
    for key, value in model.items():
        db.put(key, value)
    check(db, model)


def test_equal_sizes_and_unequal_ones_are_split_alike(db: kvsvr.Engine) -> None:
    model = {b"%04d" % number: b"" for number in range(100)} | {b"x%d" % number: b"v" * number for number in range(100)}
    fill(db, model)
    check(db, model)
    assert list(db.scan(prefix=b"00", limit=1)) == [(b"0000", b"")]


def test_bytes_like_bounds_are_copied(db: kvsvr.Engine) -> None:
    fill(db, {b"%04d" % number: b"" for number in range(1000)})
    start, stop = bytearray(b"0100"), memoryview(bytearray(b"0900"))
    keys = db.keys(start, stop)
    assert next(keys) == b"0100"
    start[:] = b"9999"
    stop[:] = b"0000"
    assert list(keys) == [b"%04d" % number for number in range(101, 900)]
    assert list(db.keys(prefix=memoryview(b"000"))) == [b"%04d" % number for number in range(10)]


def test_wrong_arguments_are_refused_at_once(db: kvsvr.Engine) -> None:
    usage: list[dict[str, Any]] = [{"prefix": b"a", "start": b""}, {"prefix": b"a", "stop": b""}, {"limit": -1}]
    for arguments in [*usage, {"limit": 1.5}, {"limit": True}]:
        with pytest.raises(UsageError):
            db.scan(**arguments)
    types: list[dict[str, Any]] = [{"prefix": "a"}, {"start": "a"}, {"stop": 5}]
    for arguments in types:
        with pytest.raises(TypeError):
            db.keys(**arguments)


def test_a_closed_store_ends_a_scan_with_an_error(path: Path) -> None:
    with kvsvr.open(path, sync="none") as db:
        fill(db, {b"%04d" % number: b"" for number in range(1000)})
        keys = db.keys()
        assert next(keys) == b"0000"
    with pytest.raises(ClosedError):
        list(keys)


# --- changes ---


def test_deleted_keys_go_and_come_back(db: kvsvr.Engine) -> None:
    model: dict[bytes, bytes] = {}
    source = random.Random(1)
    for step in range(3000):
        key = b"%d" % source.randrange(200)
        if source.random() < 0.5:
            db.put(key, b"%d" % step)
            model[key] = b"%d" % step
        else:
            assert db.delete(key) == (model.pop(key, None) is not None)
        if step % 300 == 0:
            check(db, model)
    check(db, model)


def test_a_long_stretch_of_deleted_keys_is_passed(db: kvsvr.Engine) -> None:
    model = {b"%06d" % number: b"v" for number in range(50_000)}
    fill(db, model)
    gone = [key for key in model if key not in (b"000000", b"049999")]
    db.delete_many(gone)
    assert list(db.keys()) == [b"000000", b"049999"]
    assert list(db.scan(reverse=True, limit=1)) == [(b"049999", b"v")]
    assert list(db.keys(b"000001", limit=1)) == [b"049999"]


def test_expired_keys_do_not_appear(db: kvsvr.Engine) -> None:
    db.put(b"a", b"1")
    db.put(b"b", b"2", ttl=5.0)
    db.put(b"c", b"3", ttl=50.0)
    assert list(db) == [b"a", b"b", b"c"]
    db._handle.shift_clock(10.0)
    check(db, {b"a": b"1", b"c": b"3"})
    db._handle.shift_clock(0.0)
    check(db, {b"a": b"1", b"c": b"3"})  # What was said to have expired stays so.
    db.put(b"b", b"4")
    check(db, {b"a": b"1", b"b": b"4", b"c": b"3"})


def test_batches_counters_and_appends_create_keys(db: kvsvr.Engine) -> None:
    with db.batch() as batch:
        batch.put(b"b1", b"x")
        batch.put(b"b2", b"y")
    db.incr(b"counter")
    db.append(b"appended", b"z")
    db.cas(b"cas", b"c", 0)
    check(db, {b"b1": b"x", b"b2": b"y", b"counter": b"1", b"appended": b"z", b"cas": b"c"})


def test_writing_while_scanning_disturbs_nothing(db: kvsvr.Engine) -> None:
    model = {b"%05d" % number: b"" for number in range(2000)}
    fill(db, model)
    seen = []
    for key in db:
        seen.append(key)
        db.put(key + b"x", b"new")
        db.delete(key)
    assert [key for key in seen if len(key) == 5] == sorted(model)
    assert seen == sorted(set(seen))


# --- reopening ---


def checkpoint(db: kvsvr.Engine) -> None:
    assert db._keeper.checkpoint()
    assert db.stats()["checkpoint_failure"] is None


def test_runs_carry_the_order_over_a_clean_close(path: Path) -> None:
    model = {b"%d" % number: b"%d" % (number * 3) for number in range(5000)}
    with kvsvr.open(path, sync="none") as db:
        fill(db, model)
        check(db, model)
    with kvsvr.open(path, sync="none") as db:
        stats = db.stats()
        assert stats["used_checkpoint"] and stats["replayed_count"] == 0 and stats["created_count"] == 0
        assert stats["run_count"] == 1 and stats["run_name_count"] == len(model)
        check(db, model)
        for key in list(model)[::7]:
            del db[key]
            del model[key]
        db[b"zzz"] = model[b"zzz"] = b"late"
        check(db, model)
    with kvsvr.open(path, readonly=True) as db:
        check(db, model)


def test_many_checkpoints_leave_few_runs(path: Path) -> None:
    model: dict[bytes, bytes] = {}
    source = random.Random(2)
    for _ in range(12):
        with kvsvr.open(path, sync="none", checkpoint_size=None) as db:
            for _ in range(4):
                for _ in range(source.randrange(1, 400)):
                    key = b"%d" % source.randrange(3000)
                    if key in model and source.random() < 0.6:
                        del db[key]
                        del model[key]
                    else:
                        db[key] = model[key] = b"%d" % source.randrange(10**6)
                checkpoint(db)
                assert db.stats()["created_count"] == 0
                assert len(os.listdir(path / "runs")) == db.stats()["run_count"] <= 12
            check(db, model)
    with kvsvr.open(path, sync="none") as db:
        check(db, model)
        db.delete_many(model)
    with kvsvr.open(path, sync="none") as db:
        check(db, {})
        assert db.stats()["run_name_count"] <= 1 << 14


def test_runs_of_deleted_keys_go(path: Path) -> None:
    with kvsvr.open(path, sync="none", checkpoint_size=None) as db:
        fill(db, {b"%06d" % number: b"" for number in range(40_000)})
        checkpoint(db)
        assert db.stats()["run_name_count"] == 40_000
        db.delete_many(list(db))
        checkpoint(db)
        assert db.stats()["run_count"] == 0
        assert os.listdir(path / "runs") == []
        db[b"one"] = b"1"
        check(db, {b"one": b"1"})
    with kvsvr.open(path, sync="none") as db:
        check(db, {b"one": b"1"})


def test_without_its_catalog_or_runs_the_order_is_the_same(path: Path) -> None:
    model = {os.urandom(random.randrange(1, 30)): b"v" for _ in range(3000)}
    with kvsvr.open(path, sync="none") as db:
        fill(db, model)
    for loss in ("catalog.mdb", "runs", "index"):
        victim = path / loss
        if victim.is_dir():
            shutil.rmtree(victim)
        else:
            victim.unlink()
        with kvsvr.open(path, sync="none") as db:
            assert not db.stats()["used_checkpoint"]
            check(db, model)


def test_a_run_that_is_another_or_cut_short_is_not_used(path: Path) -> None:
    model = {b"%d" % number: b"v" for number in range(3000)}
    with kvsvr.open(path, sync="none") as db:
        fill(db, model)
    (run,) = (path / "runs").iterdir()
    whole = run.read_bytes()
    for damaged in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1]), b"", bytes(len(whole))):
        shutil.rmtree(path.parent / "copy", ignore_errors=True)
        copy = Path(shutil.copytree(path, path.parent / "copy"))
        (copy / "runs" / run.name).write_bytes(damaged)
        with kvsvr.open(copy, sync="none") as db:
            assert not db.stats()["used_checkpoint"]
            check(db, model)


def test_a_damaged_block_of_a_run_is_an_error_and_the_next_open_repairs_it(path: Path) -> None:
    model = {b"%d" % number: b"v" for number in range(3000)}
    with kvsvr.open(path, sync="none") as db:
        fill(db, model)
    (run,) = (path / "runs").iterdir()
    damaged = bytearray(run.read_bytes())
    damaged[len(damaged) // 2] ^= 4
    run.write_bytes(damaged)
    with kvsvr.open(path, sync="none") as db:
        with pytest.raises(CorruptionError, match="runs"):
            list(db.keys())
        assert db[b"77"] == b"v"
        db[b"new"] = model[b"new"] = b"n"
    with kvsvr.open(path, sync="none") as db:
        assert not db.stats()["used_checkpoint"]
        check(db, model)
    with kvsvr.open(path, sync="none") as db:
        assert db.stats()["used_checkpoint"]
        check(db, model)


WRITER = """
import sys, kvsvr
db = kvsvr.open(sys.argv[1], sync="none", checkpoint_size=1 << 16)
number = 0
while True:
    db.put(b"%d" % (number * 7919 % 100003), b"%d" % number)
    if number % 3 == 0:
        db.delete(b"%d" % (number // 2 * 7919 % 100003))
    number += 1
    if number % 1000 == 0:
        print(number, flush=True)
"""


def test_after_a_kill_the_order_is_that_of_the_keys(path: Path) -> None:
    """Killed beside checkpoints and merges, several times over: scan, single gets and the count agree."""
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for _ in range(12):
                process.stdout.readline()
            process.send_signal(signal.SIGKILL)
        with kvsvr.open(path, sync="none") as db:
            keys = list(db.keys())
            assert keys == sorted(set(keys))
            assert len(keys) == len(db)
            candidates = [b"%d" % number for number in range(100003)]
            values = db.get_many(candidates)
            live = {key: value for key, value in zip(candidates, values, strict=True) if value is not None}
            assert list(db.scan()) == sorted(live.items())


# --- others, at the same time ---


def run_beside(work: Callable[[threading.Event], Any], count: int, until: Callable[[], None]) -> None:
    """Runs `work` in threads until `until` is done; what they raise is raised."""
    stop, errors = threading.Event(), []

    def body() -> None:
        try:
            work(stop)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=body) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        until()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert errors == []


def test_what_is_present_throughout_appears_once_and_in_order(path: Path) -> None:
    stable = {b"stable%04d" % number: b"%d" % number for number in range(800)}
    with kvsvr.open(path, sync="none", checkpoint_size=1 << 18) as db:
        fill(db, stable)

        def churn(stop: threading.Event) -> None:
            source = random.Random()
            while not stop.is_set():
                key = b"s%d" % source.randrange(5000) if source.random() < 0.5 else b"t%d" % source.randrange(5000)
                if source.random() < 0.6:
                    db.put(key, os.urandom(source.randrange(40)))
                else:
                    db.delete(key)

        def scans() -> None:
            until = time.monotonic() + 3
            rounds = 0
            while time.monotonic() < until:
                reverse = rounds % 2 == 1
                seen = list(db.scan(reverse=reverse))
                keys = [key for key, _ in seen]
                assert keys == sorted(set(keys), reverse=reverse)
                assert {key: value for key, value in seen if key in stable} == stable
                rounds += 1

        run_beside(churn, 2, scans)
        assert db.stats()["checkpoint_failed_count"] == 0
        assert list(islice(db.keys(prefix=b"stable"), 3)) == sorted(stable)[:3]


def test_a_reader_in_step_with_the_writer_lists_what_it_refreshed(path: Path) -> None:
    model: dict[bytes, bytes] = {}
    with kvsvr.open(path, sync="none", checkpoint_size=None) as db, kvsvr.open(path, readonly=True) as reader:
        for step in range(5):
            new = {b"%d-%d" % (step, number): b"v" for number in range(300)}
            fill(db, new)
            model |= new
            if step == 2:
                checkpoint(db)
            reader.refresh()
            check(reader, model)
