"""Many threads on one store: nothing is lost, nothing is torn, and close() may come at any moment.

Every thread here runs until a time or a count is over and hands its exception to the test: a thread that dies in
silence would pass for one that found nothing.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

import kvsvr

THREAD_COUNT = 8
SECONDS = float(os.environ.get("KVSVR_THREAD_SECONDS", "1.5"))


@contextmanager
def running(targets: list[Callable[[], None]]) -> Iterator[list[BaseException]]:
    """Runs each in a thread of its own; joins them all; the first exception of any is the test's."""
    errors: list[BaseException] = []

    def run(target: Callable[[], None]) -> None:
        try:
            target()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(target,), daemon=True) for target in targets]
    for thread in threads:
        thread.start()
    try:
        yield errors
    finally:
        for thread in threads:
            thread.join(60)
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    if errors:
        raise errors[0]


@pytest.fixture(params=["none", "batch", "always"])
def any_db(path: Path, request: pytest.FixtureRequest) -> Iterator[kvsvr.Engine]:
    with kvsvr.open(path, sync=request.param, checkpoint_size=200_000) as db:
        yield db


# --- lost updates ---


def test_no_incr_is_lost(any_db: kvsvr.Engine) -> None:
    """Eight threads count on two counters; the numbers handed out are all different, and add up."""
    handed: list[list[int]] = [[] for _ in range(THREAD_COUNT)]

    def count(n: int) -> None:
        handed[n] = [any_db.incr(b"n") for _ in range(400)]
        for _ in range(100):
            any_db.incr(b"other", n)

    with running([partial(count, n) for n in range(THREAD_COUNT)]):
        pass
    assert sorted(itertools.chain(*handed)) == list(range(1, THREAD_COUNT * 400 + 1))
    assert any_db[b"other"] == b"%d" % (100 * sum(range(THREAD_COUNT)))


@pytest.mark.parametrize("padding", [0, 70_000, (1 << 20) + 1], ids=["small", "large", "file"])
def test_no_cas_is_lost(db: kvsvr.Engine, padding: int) -> None:
    """The same by hand: read with the version, write at the version, again if somebody was faster. Also with values
    that are written to files before the lock is taken, where the loser's file must go and the winner's stay."""
    rounds = 200 if padding < 1 << 20 else 15
    conflicts: list[int] = []

    def count() -> None:
        lost = 0
        for _ in range(rounds):
            while True:
                found = db.get_versioned(b"n")
                number, version = (int(found.value.split()[0]), found.version) if found else (0, 0)
                try:
                    db.cas(b"n", b"%d " % (number + 1) + b"x" * padding, version)
                    break
                except kvsvr.VersionConflict as error:
                    assert error.current != version
                    lost += 1
        conflicts.append(lost)

    with running([count] * THREAD_COUNT):
        pass
    assert int(db[b"n"].split()[0]) == THREAD_COUNT * rounds
    print(f"\ncas: {THREAD_COUNT * rounds} wins, {sum(conflicts)} conflicts, values of {padding} bytes")


@pytest.mark.parametrize("piece", [8, 20_000], ids=["small", "grows into a file"])
def test_no_append_is_lost(db: kvsvr.Engine, piece: int) -> None:
    """Every piece is there once and whole, in the order of its thread."""
    count = 20

    def work(n: int) -> None:
        for i in range(count):
            db.append(b"k", b"%d:%03d;" % (n, i) + b"." * (piece - 6))

    with running([partial(work, n) for n in range(THREAD_COUNT)]):
        pass
    value = db[b"k"]
    assert len(value) == THREAD_COUNT * count * piece
    heads = [value[at : at + 5].split(b":") for at in range(0, len(value), piece)]
    for n in range(THREAD_COUNT):
        assert [int(i) for who, i in heads if int(who) == n] == list(range(count))


def test_delete_is_told_to_one(db: kvsvr.Engine) -> None:
    """Of eight threads that delete the same keys each key's deletion is reported once."""
    names = [b"%d" % n for n in range(2000)]
    db.put_many((name, b"") for name in names)
    told: list[int] = []

    def work(one_by_one: bool) -> None:
        told.append(sum(map(db.delete, names)) if one_by_one else db.delete_many(names))

    with running([partial(work, n % 2 == 0) for n in range(THREAD_COUNT)]):
        pass
    assert sum(told) == 2000
    assert len(db) == 0


# --- torn reads ---

SIZES = (16, 1000, 65_529, 65_536, 65_544, 300_000, (1 << 20) - 8, 1 << 20, (1 << 20) + 8)


def made(key: bytes, number: int, size: int) -> bytes:
    """A value that carries its own check: the key's number and a counter, over and over."""
    cell = key[:1] + number.to_bytes(7, "little")
    return cell * (size // 8)


def checked(key: bytes, value: bytes | None) -> int:
    if value is None:
        return 0
    cell = value[:8]
    assert cell[:1] == key[:1], "another key's value"
    assert len(value) in {size // 8 * 8 for size in SIZES}
    assert value == cell * (len(value) // 8), "a torn value"
    return int.from_bytes(cell[1:], "little")


@pytest.mark.parametrize("write_calls", [False, True], ids=["mapped", "written"])
def test_no_read_is_torn(path: Path, write_calls: bool) -> None:
    """Four threads write values of every kind of size to four keys, four read them in every way there is: each value
    is one that was written to that key, and for one reader they never go back."""
    names = [b"a", b"b", b"c", b"d"]
    end = time.monotonic() + SECONDS
    read_count = itertools.count()
    written_count = itertools.count()

    with kvsvr.open(path, sync="batch", checkpoint_size=500_000, write_calls=write_calls) as db:

        def write(key: bytes) -> None:
            for number in itertools.count(1):
                if time.monotonic() > end:
                    return
                db.put(key, made(key, number, SIZES[number % len(SIZES)]))
                next(written_count)

        def read(n: int) -> None:
            newest = dict.fromkeys(names, 0)
            while time.monotonic() < end:
                if n % 2:
                    values = dict(zip(names, db.get_many(names), strict=True))
                else:
                    values = {key: db.get(key) for key in names}
                for key, value in values.items():
                    number = checked(key, value)
                    assert number >= newest[key], "an older value came back"
                    newest[key] = number
                    next(read_count)
                for key in names:
                    found = db.get_versioned(key)
                    assert found is None or checked(key, found.value) >= newest[key]

        with running([*(partial(write, key) for key in names), *(partial(read, n) for n in range(4))]):
            pass
    print(f"\ntorn reads: {next(written_count)} writes, {next(read_count)} reads, none torn")
    with kvsvr.open(path) as db:
        for key in names:
            assert checked(key, db.get(key)) > 0


def test_readers_beside_the_writer_see_no_torn_value(path: Path) -> None:
    """The same from read-only openers that refresh all the time, also while values in files are replaced."""
    end = time.monotonic() + SECONDS
    names = [b"a", b"b"]
    with kvsvr.open(path, sync="batch") as db:

        def write() -> None:
            for number in itertools.count(1):
                if time.monotonic() > end:
                    return
                for key in names:
                    db.put(key, made(key, number, SIZES[number % len(SIZES)]))

        def read() -> None:
            with kvsvr.open(path, readonly=True) as reader:
                newest = 0
                while time.monotonic() < end:
                    reader.refresh()
                    number = checked(b"a", reader.get(b"a"))
                    assert number >= newest
                    newest = number
                    many = reader.get_many(names)
                    assert checked(b"b", many[1]) >= checked(b"a", many[0]) - 1
                assert newest > 0

        db.put(b"a", made(b"a", 1, 16))
        with running([write, read, read]):
            pass


def test_no_key_goes_missing_while_the_index_grows(path: Path) -> None:
    """A reader never looks into a table that is being split, and a checkpoint takes nothing away."""
    end = time.monotonic() + SECONDS
    written = [0] * 4
    with kvsvr.open(path, sync="none", checkpoint_size=300_000) as db:

        def write(n: int) -> None:
            while time.monotonic() < end:
                start = written[n]
                db.put_many((b"%d/%d" % (n, i), b"%d" % i) for i in range(start, start + 500))
                written[n] = start + 500

        def read(n: int) -> None:
            step = 0
            while time.monotonic() < end:
                step += 7919
                if written[n]:
                    i = step % written[n]
                    assert db.get(b"%d/%d" % (n, i)) == b"%d" % i
                assert db.get(b"absent%d" % step) is None

        with running([partial(f, n) for f in (write, read) for n in range(4)]):
            pass
        assert len(db) == sum(written)
        assert db.stats()["checkpoint_failed_count"] == 0
    with kvsvr.open(path) as db:
        assert len(db) == sum(written)
        for n in range(4):
            assert None not in db.get_many(b"%d/%d" % (n, i) for i in range(written[n]))


# --- batches ---


def test_batches_are_never_seen_in_halves_afterwards(any_db: kvsvr.Engine) -> None:
    """Threads write the same two keys, in one batch, in either order, one of them sometimes large: whoever came
    last, the two agree in value and version; and so they do when they are read one after the other and the version
    of the first has not changed meanwhile."""
    end = time.monotonic() + SECONDS / 2

    def write(n: int) -> None:
        for i in itertools.count():
            if time.monotonic() > end:
                return
            value = b"%d:%d" % (n, i) + b"." * ((1 << 20) if i % 40 == 39 else i % 100)
            with any_db.batch() as batch:
                for key in (b"left", b"right")[:: 1 if n % 2 else -1]:
                    batch.put(key, value)
                batch.put(b"both%d" % n, value)

    def read() -> None:
        while time.monotonic() < end:
            left, right, again = (any_db.get_versioned(key) for key in (b"left", b"right", b"left"))
            if left and right and again and left.version == again.version == right.version:
                assert left.value == right.value

    with running([*(partial(write, n) for n in range(6)), read, read]):
        pass
    left, right = any_db.get_versioned(b"left"), any_db.get_versioned(b"right")
    assert left is not None
    assert left == right
    assert left.value in any_db.get_many(b"both%d" % n for n in range(6))


# --- close ---


def calls_of_every_kind(db: kvsvr.Engine) -> list[Callable[[], object]]:
    def batch() -> None:
        with db.batch() as b:
            b.put(b"x", b"1")
            b.put(b"y", b"2" * (2 << 20))
            b.delete(b"z")

    return [
        lambda: db.get(b"k"),
        lambda: db.get(b"large"),
        lambda: db.get_versioned(b"k"),
        lambda: db.get_many([b"k", b"large", b"absent"] * 50),
        lambda: db.put(b"k", b"v"),
        lambda: db.put(b"k", b"v", durable=True),
        lambda: db.put(b"large", b"v" * (3 << 20)),
        lambda: db.delete(b"k"),
        lambda: db.incr(b"n"),
        lambda: db.append(b"growing", b"." * 100_000) < (4 << 20) or db.delete(b"growing"),
        lambda: db.put_many((b"%d" % n, b"v" * 100) for n in range(2000)),
        lambda: db.delete_many(b"%d" % n for n in range(2000)),
        batch,
        lambda: db.wait(b"never", 0, 0.2),
        lambda: db.wait(b"never", 0),
        lambda: db.sync(),
        lambda: db.stats(),
        lambda: len(db),
        lambda: db.expire(b"n", 100) and db.persist(b"n"),
    ]


@pytest.mark.parametrize("round_", range(6))
def test_close_may_come_while_threads_are_in_every_kind_of_call(path: Path, round_: int) -> None:
    """They finish, or get ClosedError; none hangs, none crashes; what came back as written is there afterwards."""
    db = kvsvr.open(path, sync=("none", "batch", "always")[round_ % 3], checkpoint_size=50_000)
    db.put(b"large", b"v" * (2 << 20))
    counts = [0] * 20
    noted: list[int] = []

    def repeat(n: int, call: Callable[[], object]) -> None:
        try:
            while True:
                call()
                counts[n] += 1
        except kvsvr.ClosedError:
            pass

    def note() -> None:
        try:
            for n in itertools.count():
                db.put(b"noted", b"%d" % n)
                noted.append(n)
        except kvsvr.ClosedError:
            pass

    before = 0.0
    calls = calls_of_every_kind(db)
    with running([note, *(partial(repeat, n, call) for n, call in enumerate(calls))]) as errors:
        time.sleep(0.02 + 0.08 * round_)
        before = time.monotonic()
        # Several at a time, too: all but the first return at once.
        closers = [threading.Thread(target=db.close) for _ in range(3)]
        for closer in closers:
            closer.start()
        for closer in closers:
            closer.join(30)
        assert not any(closer.is_alive() for closer in closers), f"close() hangs; errors so far: {errors}"
    assert time.monotonic() - before < 30
    with kvsvr.open(path) as db:
        assert db.stats()["was_clean"] == 1
        if noted:
            assert int(db[b"noted"]) in (noted[-1], noted[-1] + 1)


def test_stores_open_and_close_in_parallel(tmp_path: Path) -> None:
    """Each thread its own directory, and all of them one: of those who find it open each is told so."""
    told: list[int] = []

    def work(n: int) -> None:
        for i in range(15):
            with kvsvr.open(tmp_path / str(n)) as db:
                assert db.incr(b"n") == i + 1
            try:
                with kvsvr.open(tmp_path / "shared") as db:
                    db.incr(b"n")
            except kvsvr.LockedError as error:
                assert error.holder == os.getpid()
                told.append(n)

    with running([partial(work, n) for n in range(THREAD_COUNT)]):
        pass
    with kvsvr.open(tmp_path / "shared") as db:
        assert int(db[b"n"]) == THREAD_COUNT * 15 - len(told)


# --- wait ---


def test_wait_wakes_soon_and_every_waiter(db: kvsvr.Engine) -> None:
    """Eight waiters, each on a key of its own and on one in common, hear of each write."""
    delays: list[float] = []
    version = db.put(b"common", b"")
    started = threading.Barrier(THREAD_COUNT + 1)
    written_at: list[float] = []

    def wait() -> None:
        started.wait()
        assert db.wait(b"common", version, 30) > version
        delays.append(time.monotonic() - written_at[0])

    with running([wait] * THREAD_COUNT):
        started.wait()
        time.sleep(0.05)
        written_at.append(time.monotonic())
        db.put(b"common", b"now")
    assert len(delays) == THREAD_COUNT
    assert max(delays) < 5
    median = sorted(delays)[len(delays) // 2]
    print(f"\nwait: woken after {median * 1000:.2f} ms (median), {max(delays) * 1000:.2f} ms (max)")


def test_two_threads_play_ping_pong_through_wait(db: kvsvr.Engine) -> None:
    """A wake-up that got lost would show as a timeout."""
    rounds = 300

    def play(mine: bytes, other: bytes, serves: bool) -> None:
        version = 0
        for _ in range(rounds):
            if serves:
                db.put(mine, b"")
            before, version = version, db.wait(other, version, 20)
            assert version > before, "a wake-up was lost"
            if not serves:
                db.put(mine, b"")

    with running([lambda: play(b"ping", b"pong", True), lambda: play(b"pong", b"ping", False)]):
        pass


@pytest.mark.parametrize("timeout", [0, 0.01, 0.12, 0.3])
def test_wait_times_out_on_time(db: kvsvr.Engine, timeout: float) -> None:
    before = time.monotonic()
    assert db.wait(b"never", 0, timeout) == 0
    assert timeout - 0.005 <= time.monotonic() - before < timeout + 5


WAITER = """
import signal, sys, kvsvr
signal.signal(signal.SIGINT, signal.default_int_handler)  # Ignored, and inherited so, under nohup and behind &.
with kvsvr.open(sys.argv[1]) as writer:
    db = kvsvr.open(sys.argv[1], readonly=True) if sys.argv[2] == "True" else writer
    print("waits", flush=True)
    try:
        db.wait(b"never", 0)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    writer.put(b"k", b"v")
    print(db is writer or db.refresh(), db.get(b"k"), flush=True)
    db.close()
"""


@pytest.mark.parametrize("readonly", [False, True])
def test_ctrl_c_ends_a_wait_and_nothing_else(path: Path, readonly: bool) -> None:
    """SIGINT from outside, as the terminal sends it: KeyboardInterrupt soon, and the store goes on."""
    with subprocess.Popen(
        [sys.executable, "-c", WAITER, str(path), str(readonly)], stdout=subprocess.PIPE, text=True
    ) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "waits\n"
            time.sleep(0.2)
            before = time.monotonic()
            child.send_signal(signal.SIGINT)
            assert child.stdout.readline() == "interrupted\n"
            assert time.monotonic() - before < 5
            assert "b'v'" in child.stdout.readline()
            assert child.wait(20) == 0
        finally:
            child.kill()  # One that hangs would keep this block from ending.
