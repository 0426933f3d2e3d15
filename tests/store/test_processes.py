"""Processes: writers that are killed, two openers, readers beside a writer, fork, files cut short, other directories.

What is killed here is a real process with a real kernel behind it: everything a store has handed to the kernel stays,
whatever its sync mode. What a power failure leaves is the simulated disk's business (native/tests).

Longer: KVSVR_KILLS=1000 python -m pytest tests/store/test_processes.py -k killed -s
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import pytest
import xxhash

import kvsvr

KILL_COUNT = int(os.environ.get("KVSVR_KILLS", "30"))
CHURN_COUNT = max(8, KILL_COUNT // 5)
SYNC_MODES = ("none", "batch", "always")

# flow_internal.h: the header page of a segment.
HEADER_SIZE = 4096
FORMAT_AT = 8
CHECKSUM_AT = 64


def run_python(code: str, *arguments: object, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@contextmanager
def process(code: str, *arguments: object) -> Iterator[tuple[subprocess.Popen[str], IO[str]]]:
    """A Python process and what it prints, line by line. Killed at the end if it still runs."""
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        try:
            yield child, child.stdout
        finally:
            child.kill()


# --- kill -9 ---

# Each line is one acknowledgement, written to the pipe before the next write begins. Values say all there is to check:
# the number of the write, and for a batch that both of its keys belong together.
WRITER = """
import os, random, sys, kvsvr
path, sync, seed, n = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
draw = random.Random(seed)
db = kvsvr.open(path, sync=sync, checkpoint_size=draw.choice([20_000, 1 << 20, None]))
os.write(1, b"open %d\\n" % db.stats()["sequence"])
while True:
    n += 1
    size = draw.choice([10, 10, 10, 10, 3000, 70_000, 70_000 if n % 50 else (1 << 20) + 5])
    key, value = b"key%d" % draw.randrange(200), b"%d " % n + b"v" * size
    kind = draw.randrange(6)
    if kind == 0:
        with db.batch() as batch:
            batch.put(b"left" + key, value)
            batch.put(b"right" + key, value)
        os.write(1, b"batch %d %s %d %d\\n" % (n, key, len(value), batch.version))
    elif kind == 1:
        if db.delete(key):
            os.write(1, b"delete %d %s 0 %d\\n" % (n, key, db.wait(key, 0, 0)))
    elif kind == 2:
        count = db.incr(b"counter")
        os.write(1, b"count %d counter %d %d\\n" % (n, count, db.wait(b"counter", 0, 0)))
    else:
        os.write(1, b"put %d %s %d %d\\n" % (n, key, len(value), db.put(key, value)))
"""


@dataclass
class Known:
    """What acknowledgements say, over all writers of one store. A value is its number and its size."""

    values: dict[str, tuple[int, int] | None] = field(default_factory=dict)
    counter: int = 0
    newest: int = 0
    number: int = 0
    acknowledged_count: int = 0

    def take(self, line: str) -> None:
        kind, *rest = line.split()
        if kind == "open":
            assert int(rest[0]) >= self.newest
            return
        number, key, size, version = int(rest[0]), rest[1], int(rest[2]), int(rest[3])
        assert version >= self.newest, "a version was given twice"
        self.newest, self.number = version, number
        self.acknowledged_count += 1
        match kind:
            case "put":
                self.values[key] = number, size
            case "delete":
                self.values[key] = None
            case "batch":
                self.values["left" + key] = self.values["right" + key] = number, size
            case "count":
                self.counter = size

    def check(self, db: kvsvr.Engine) -> None:
        """Every acknowledged write is there, and besides at most the one that was under way."""
        unknown = 0
        for key, known in self.values.items():
            if key.startswith("right"):
                continue
            found = self.read(db, key)
            if key.startswith("left"):
                assert self.read(db, "right" + key[4:]) == found, "half a batch"
            if found != known:
                unknown += 1
                assert found is None or found[0] > self.number, f"{key} is at {found}, acknowledged was {known}"
            self.values[key] = found
            if key.startswith("left"):
                self.values["right" + key[4:]] = found
        counter = int(db.get(b"counter", b"0"))
        assert counter in (self.counter, self.counter + 1)
        assert unknown + (counter != self.counter) <= 1, "more than one write that nobody acknowledged"
        self.counter = counter
        expected = sum(value is not None for value in self.values.values())
        extra = len(db) - expected - (b"counter" in db)
        assert extra in (0, 1, 2), "keys that nobody wrote"
        for n in range(200):
            for prefix in ("", "left", "right"):
                name = f"{prefix}key{n}"
                if name not in self.values and (found := self.read(db, name)) is not None:
                    assert found[0] > self.number
                    self.values[name] = found
        assert db.put(b"probe", b"") > self.newest
        self.newest = db.wait(b"probe", 0, 0)
        db.delete(b"probe")

    @staticmethod
    def read(db: kvsvr.Engine, key: str) -> tuple[int, int] | None:
        """The value's number and size, after a look at each of its bytes."""
        value = db.get(key.encode())
        if value is None:
            return None
        number, _, rest = value.partition(b" ")
        assert rest == b"v" * len(rest), "a torn value"
        return int(number), len(value)


def kill_a_writer(path: Path, sync: str, draw: random.Random, known: Known) -> None:
    # Numbers of its own, above all of the writers before it.
    first = known.number + 1000
    with process(WRITER, path, sync, draw.randrange(1 << 30), first) as (child, lines):
        known.take(lines.readline())
        # Sometimes at once, in the middle of preparing a segment; sometimes after some were filled.
        time.sleep(draw.choice([0.0, 0.005, 0.02, 0.1, 0.3]))
        child.kill()
        for line in lines:
            known.take(line)


@pytest.mark.timeout(60 + KILL_COUNT * 10)
def test_killed_writers_lose_nothing_acknowledged(tmp_path: Path) -> None:
    """In every sync mode: what a process was told is written is there after kill -9; batches are whole, nothing
    appears that nobody wrote, and no version is given twice."""
    draw = random.Random(20)
    known = {sync: Known() for sync in SYNC_MODES}
    reopened_ms: list[float] = []
    for n in range(KILL_COUNT):
        sync = SYNC_MODES[n % len(SYNC_MODES)]
        path = tmp_path / sync
        kill_a_writer(path, sync, draw, known[sync])
        if draw.random() < 0.2:
            (path / "catalog.mdb").unlink(missing_ok=True)
        before = time.perf_counter()
        with kvsvr.open(path, sync="none") as db:
            reopened_ms.append((time.perf_counter() - before) * 1000)
            known[sync].check(db)
            if draw.random() < 0.5:
                db._shut.detach()  # This one does not close either; freed, it leaves what a kill leaves.
                kvsvr.store.engine._writers.leave((path.stat().st_dev, path.stat().st_ino))
                db._keeper.stop()
                db._handle.__del__()
    print(
        f"\nkill -9: {KILL_COUNT} kills, {sum(one.acknowledged_count for one in known.values())} acknowledged writes, "
        f"reopened in {statistics.median(reopened_ms):.1f} ms (median), {max(reopened_ms):.1f} ms (max)"
    )
    assert all(one.acknowledged_count for one in known.values())


# Overwrites a few hundred keys, fills tables and drops them, holds snapshots: compaction never rests. A line says up to
# which number everything is done, and what compaction and checkpoints have done in this life.
CHURNER = """
import sys, kvsvr
KEYS, ROUND, ACK = 300, 2000, 25
number = int(sys.argv[2])
with kvsvr.open(sys.argv[1], sync="none", checkpoint_size=1 << 20) as db:
    held = None
    while True:
        number += 1
        db.put(b"k%d" % (number % KEYS), b"%d " % number * 600)
        if number % 10 == 0:
            db.table(b"t%d" % (number // ROUND)).append(b"%d" % number)
        if number % ROUND == 0:
            db.table(b"t%d" % (number // ROUND - 1)).drop()
        if number % (3 * ROUND) == 0:
            if held is not None:
                held.close()
            held = db.snapshot()
        if number % ACK == 0:
            s = db.stats()
            print(number, s["removed_count"], s["checkpoint_count"], s["run_count"], flush=True)
"""
CHURN_KEYS, CHURN_ROUND = 300, 2000


def churn_until_killed(path: Path, number: int, seconds: float) -> list[int]:
    """The last line of a churner that goes on from `number` and is killed after a while."""
    last = [number, 0, 0, 0]
    with process(CHURNER, path, number) as (child, lines):
        killer = threading.Timer(seconds, child.kill)
        killer.start()
        for line in lines:
            if line.endswith("\n") and line.count(" ") == 3:
                last = [int(word) for word in line.split()]
        killer.join()
        child.wait()
    return last


def check_churned(db: kvsvr.Engine, number: int) -> int:
    """Everything up to `number` is there; what was written last."""
    newest = number
    for key in range(min(CHURN_KEYS, number)):
        word, _, rest = db[b"k%d" % key].partition(b" ")
        written = int(word)
        assert rest == (word + b" ") * 599
        assert written % CHURN_KEYS == key
        assert written > number - CHURN_KEYS, "an acknowledged value is lost"
        newest = max(newest, written)
    current = number // CHURN_ROUND
    rows = [int(value) for _, value in db.table(b"t%d" % current).rows()]
    first = max(10, -(-current * CHURN_ROUND // 10) * 10)
    expected = list(range(first, number + 1, 10))
    assert rows[: len(expected)] == expected, "an acknowledged row is lost, or one appears that nobody wrote"
    assert len(rows) <= len(expected) + (newest - number) // 10 + 1
    assert all(int(key[1:]) >= current - 1 for key in db.tables()), "a dropped table came back"
    return newest


def test_killed_amid_compaction_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    """kill -9 while segments are compacted and removed, dropped tables swept, runs merged and checkpoints made."""
    draw = random.Random(21)
    path, number = tmp_path / "store", 0
    removed = checkpoints = 0
    for _ in range(CHURN_COUNT):
        number, gone, made, _runs = churn_until_killed(path, number, 0.5 + draw.random())
        removed, checkpoints = removed + gone, checkpoints + made
        if draw.random() < 0.2:
            (path / "catalog.mdb").unlink(missing_ok=True)
        with kvsvr.open(path, readonly=draw.random() < 0.3) as db:
            number = check_churned(db, number)
    print(
        f"\nkill -9 amid compaction: {CHURN_COUNT} kills at {number} writes, {removed} segments removed, "
        f"{checkpoints} checkpoints"
    )
    assert removed > CHURN_COUNT


# --- two openers ---


HOLDER = """
import sys, kvsvr
with kvsvr.open(sys.argv[1]) as db:
    print(db.put(b"k", b"v"), flush=True)
    for line in sys.stdin:
        key, size = line.split()
        print(db.put(key.encode(), b"v" * int(size), durable=True), flush=True)
"""


def test_a_second_writer_is_told_who_is_the_first(path: Path) -> None:
    """Another process that writes, and this one: LockedError with its pid, and the first goes on undisturbed."""
    with process(HOLDER, path) as (child, lines):
        lines.readline()
        for _ in range(2):
            with pytest.raises(kvsvr.LockedError, match="another process") as caught:
                kvsvr.open(path)
            assert caught.value.holder == child.pid
        with kvsvr.open(path, readonly=True) as reader:
            assert reader[b"k"] == b"v"
        child.kill()
        child.wait()
    with kvsvr.open(path) as db:
        assert db[b"k"] == b"v"
        with pytest.raises(kvsvr.LockedError, match="this process") as caught:
            kvsvr.open(path)
        assert caught.value.holder == os.getpid()
        db.put(b"k", b"w")


def test_a_reader_follows_a_writer_in_another_process(path: Path) -> None:
    """refresh() takes in what was written since: small values, values in files of their own, segments filled and
    sealed meanwhile; wait() does so by itself; a crash and a new writer change nothing about it."""
    with process(HOLDER, path) as (child, lines):
        first = int(lines.readline())

        def write(key: str, size: int) -> int:
            assert child.stdin is not None
            child.stdin.write(f"{key} {size}\n")
            child.stdin.flush()
            return int(lines.readline())

        with kvsvr.open(path, readonly=True) as reader:
            assert reader.wait(b"k", 0, 0) == first
            for size in (1, 70_000, (1 << 20) + 1, 3, *[900_000] * 20, 2 << 20, 5):
                version = write("k", size)
                assert reader.wait(b"k", version - 1, 10) == version
                assert reader.get(b"k") == b"v" * size
                assert reader.get_many([b"k"]) == [b"v" * size]
            for n in range(20):
                write(f"other{n}", 900_000)
            assert reader.refresh() == 20
            assert len(reader) == 21
            child.kill()
            child.wait()
            assert reader.refresh() == 0
            with kvsvr.open(path) as writer:
                version = writer.put(b"k", b"after")
                reader.refresh()
                assert reader.get_versioned(b"k") == kvsvr.Versioned(b"after", version, None)


def test_a_reader_stays_with_writers_that_come_and_go(path: Path) -> None:
    """Each makes the next segment ahead, and gives it up at close if it was not used: a reader must not wait for
    records in a file that has lost its name."""
    with kvsvr.open(path) as writer:
        writer.put(b"k", b"0")
    with kvsvr.open(path) as writer:
        until(lambda: len(list((path / "flow").glob("*.seg"))) == 2)
        reader = kvsvr.open(path, readonly=True)
    with reader:
        for n in range(1, 4):
            with kvsvr.open(path) as writer:
                assert reader.refresh() == 0
                writer.put(b"k", b"%d" % n)
                assert reader.refresh() == 1
                assert reader[b"k"] == b"%d" % n


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_first_write_larger_than_the_segment_made_ahead(path: Path) -> None:
    """The segment prepared behind a clean close is given up for a larger one, and must not leave a gap: no SEAL
    names what follows a clean close, so a missing number there is taken for a missing file."""
    with kvsvr.open(path) as db:
        db.put(b"a", b"1")
    with kvsvr.open(path) as db:
        until(lambda: len(list((path / "flow").glob("*.seg"))) == 2)
        db.put(b"b", b"x" * (1 << 20))
    with kvsvr.open(path) as db:
        assert db[b"a"] == b"1"
        assert db[b"b"] == b"x" * (1 << 20)


# --- fork ---


def every_call(db: kvsvr.Engine) -> list[Callable[[], object]]:
    return [
        lambda: db.get(b"k"),
        lambda: db.get_versioned(b"k"),
        lambda: db.get_many([b"k"]),
        lambda: db[b"k"],
        lambda: b"k" in db,
        lambda: len(db),
        lambda: db.ttl(b"k"),
        lambda: db.put(b"k", b"child"),
        lambda: db.put(b"k", b"c" * (2 << 20)),
        lambda: db.delete(b"k"),
        lambda: db.cas(b"k", b"child", 0),
        lambda: db.incr(b"k"),
        lambda: db.append(b"k", b"child"),
        lambda: db.expire(b"k", 1),
        lambda: db.persist(b"k"),
        lambda: db.put_many([(b"k", b"child")]),
        lambda: db.delete_many([b"k"]),
        lambda: written_by_batch(db),
        lambda: db.wait(b"k", 0, 1),
        lambda: db.sync(),
        lambda: db.stats(),
    ]


def written_by_batch(db: kvsvr.Engine) -> None:
    with db.batch() as batch:
        batch.put(b"k", b"child")
        batch.put(b"l", b"child")


def in_child(db: kvsvr.Engine) -> int:
    """0: every method says ClosedError. Else the number of the first that does not."""
    for number, call in enumerate(every_call(db), 1):
        try:
            call()
        except kvsvr.ClosedError as error:
            if "fork" in str(error):
                continue
        except BaseException:
            pass
        return number
    db.close()
    return 0


def exit_with(code: int) -> None:
    sys.exit(code)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
@pytest.mark.parametrize("readonly", [False, True])
def test_a_forked_child_is_refused_by_every_method(path: Path, readonly: bool) -> None:
    """And neither what it tries nor its end reaches the parent's store, which has threads, locks and buffers that
    the child shares by address only."""
    kvsvr.open(path).close()
    with kvsvr.open(path, readonly=readonly) as db, writer_threads(db, readonly):
        for _ in range(10):
            child = os.fork()
            if child == 0:
                code = 99
                try:
                    code = in_child(db)
                finally:
                    os._exit(code)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        if not readonly:
            db.put(b"k", b"parent")
            assert db[b"k"] == b"parent"
            # The lock is still the parent's.
            assert "LockedError" in run_python("import sys, kvsvr; kvsvr.open(sys.argv[1])", path).stderr


@contextmanager
def writer_threads(db: kvsvr.Engine, readonly: bool) -> Iterator[None]:
    """Threads that are inside calls, and hold locks, whenever somebody forks."""
    stop = threading.Event()

    def work(name: bytes) -> None:
        while not stop.is_set():
            if not readonly:
                db.put(name, name * 10)
            db.get(name)

    threads = [threading.Thread(target=work, args=(b"t%d" % n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_child_of_multiprocessing_ends_in_peace(path: Path) -> None:
    """It ends as Python ends, with finalizers and atexit: the parent's store must not be closed by that."""
    context = multiprocessing.get_context("fork")
    with kvsvr.open(path) as db:
        db.put(b"k", b"parent")
        child = context.Process(target=lambda: exit_with(in_child(db)))
        child.start()
        child.join(30)
        assert child.exitcode == 0
        db.put(b"k", b"still")
        assert db[b"k"] == b"still"
    with kvsvr.open(path) as db:
        assert db[b"k"] == b"still"


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_child_may_open_other_stores_and_its_parents_once_that_is_closed(path: Path, tmp_path: Path) -> None:
    db = kvsvr.open(path)
    db.put(b"k", b"parent")
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with kvsvr.open(tmp_path / "other") as other:
                other.put(b"k", b"child")
            os.read(reading, 1)
            with kvsvr.open(path) as again:
                assert again[b"k"] == b"parent"
                again.put(b"k", b"child")
            code = 0
        finally:
            os._exit(code)
    db.close()
    os.write(writing, b".")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    os.close(reading)
    os.close(writing)
    with kvsvr.open(path) as db:
        assert db[b"k"] == b"child"


# --- files that are cut behind a store's back ---


TRUNCATED = """
import faulthandler, os, sys, kvsvr
faulthandler.enable()
size = int(sys.argv[2])
db = kvsvr.open(sys.argv[1], sync=sys.argv[3])
values = {b"%d" % n: b"%d " % n * 500 for n in range(300)}
db.put_many(values.items())
segment = sys.argv[1] + "/flow/00000001.seg"
os.truncate(segment, size)
outcomes = set()
for key, value in values.items():
    for read in (lambda: db.get(key), lambda: db.get_many([key])[0], lambda: db.get_versioned(key).value):
        try:
            assert read() == value
            outcomes.add("right")
        except (kvsvr.DiskError, kvsvr.CorruptionError) as error:
            outcomes.add(type(error).__name__)
print(sorted(outcomes))
for attempt in range(3):
    for write in (lambda: db.put(b"new", b"v"), lambda: db.incr(b"n"), lambda: db.put_many([(b"a", b"")] * 3)):
        try:
            write()
            print("written")
        except kvsvr.DiskError:
            pass
try:
    db.close()
except kvsvr.KvError as error:
    print(type(error).__name__)
print("alive", flush=True)
if sys.argv[4] == "crash":  # Not ours: faulthandler must still get it.
    import ctypes, mmap
    with open(segment, "r+b") as file:
        file.truncate(4096)
        view = mmap.mmap(file.fileno(), 4096)
        file.truncate(0)
        view[0]
"""


@pytest.mark.parametrize("sync", SYNC_MODES)
@pytest.mark.parametrize("size", [0, HEADER_SIZE])
def test_a_live_file_cut_short_is_a_disk_error(path: Path, size: int, sync: str) -> None:
    """Reads say so or give the right answer, writes are refused from then on, and the process lives."""
    result = run_python(TRUNCATED, path, size, sync, "stay")
    assert result.stdout.splitlines()[-1] == "alive", result.stdout + result.stderr
    assert "written" not in result.stdout
    assert "DiskError" in result.stdout.splitlines()[0]
    assert result.returncode == 0, result.stderr


def test_other_peoples_bus_errors_reach_their_handler(path: Path) -> None:
    """faulthandler, installed before the first store was opened, still reports a SIGBUS that is not ours."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    result = run_python(TRUNCATED, path, HEADER_SIZE, "none", "crash")
    assert "alive" in result.stdout
    assert result.returncode == -signal.SIGBUS
    assert "Fatal Python error: Bus error" in result.stderr


# --- what is no store, or not ours to open ---


def contents(directory: Path) -> dict[str, bytes]:
    return {str(one.relative_to(directory)): one.read_bytes() for one in directory.rglob("*") if one.is_file()}


@pytest.mark.parametrize("readonly", [False, True])
def test_a_directory_of_something_else_is_left_alone(tmp_path: Path, readonly: bool) -> None:
    (tmp_path / "letter.txt").write_text("mine")
    (tmp_path / "folder").mkdir()
    with pytest.raises(kvsvr.UsageError, match="something else"):
        kvsvr.open(tmp_path, readonly=readonly)
    assert contents(tmp_path) == {"letter.txt": b"mine"}


@pytest.mark.parametrize("readonly", [False, True])
def test_a_file_where_the_store_should_be(tmp_path: Path, readonly: bool) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(kvsvr.UsageError, match="is a file"):
        kvsvr.open(tmp_path / "file", readonly=readonly)
    assert (tmp_path / "file").read_bytes() == b"mine"


@pytest.mark.parametrize("readonly", [False, True])
@pytest.mark.parametrize("keep_catalog", [False, True])
def test_a_store_of_a_newer_format_is_refused_by_name(path: Path, keep_catalog: bool, readonly: bool) -> None:
    """The header block keeps its shape in every format to come, so an old program can tell; and changes nothing."""
    with kvsvr.open(path) as db:
        db.put(b"k", b"v")
    (segment,) = (path / "flow").glob("*.seg")
    page = bytearray(segment.read_bytes())
    page[FORMAT_AT : FORMAT_AT + 4] = (2).to_bytes(4, "little")
    page[CHECKSUM_AT : CHECKSUM_AT + 8] = xxhash.xxh64_intdigest(bytes(page[:CHECKSUM_AT])).to_bytes(8, "little")
    segment.write_bytes(page)
    if not keep_catalog:
        (path / "catalog.mdb").unlink()
    before = contents(path)
    with pytest.raises(kvsvr.UsageError, match=r"newer kvsvr.*format 2"):
        kvsvr.open(path, readonly=readonly)
    after = contents(path)
    before.pop("LOCK", None)  # It names its last holder.
    after.pop("LOCK", None)
    assert after == before


@pytest.mark.parametrize("missing", ["first", "middle", "last"])
def test_a_missing_segment_is_corruption(path: Path, missing: str) -> None:
    """Never a store that has silently forgotten a part."""
    with kvsvr.open(path, sync="none") as db:
        db.put_many((b"%d" % n, b"v" * 1000) for n in range(20_000))
    segments = sorted((path / "flow").glob("*.seg"))
    assert len(segments) >= 4
    segments[{"first": 0, "middle": 2, "last": -1}[missing]].unlink()
    for keep_catalog in (True, False):
        if not keep_catalog:
            (path / "catalog.mdb").unlink()
        for readonly in (False, True):
            if readonly and missing == "last" and not keep_catalog:
                continue  # A reader takes it for one that its writer is about to make.
            with pytest.raises(kvsvr.CorruptionError, match="missing"):
                kvsvr.open(path, readonly=readonly)


# --- the catalog ---


@pytest.mark.parametrize("clean", [True, False], ids=["closed", "killed"])
@pytest.mark.parametrize("catalog", ["newest", "older", "absent", "random", "short", "empty", "a directory"])
def test_whatever_becomes_of_the_catalog_the_state_is_the_same(
    path: Path, tmp_path: Path, catalog: str, clean: bool
) -> None:
    with kvsvr.open(path, sync="none") as db:
        db.put_many((b"%d" % n, b"old%d" % n) for n in range(3000))
        db.put(b"large", b"1" * (2 << 20))
    older = (path / "catalog.mdb").read_bytes()
    with kvsvr.open(path, sync="none") as db:
        db.put_many((b"%d" % n, b"new%d" % n) for n in range(0, 3000, 3))
        db.delete_many(b"%d" % n for n in range(1, 3000, 3))
        db.put(b"large", b"2" * (2 << 20))
        db.put(b"later", b"", ttl=1000)
        expected = {key: db.get_versioned(key) for key in [*(b"%d" % n for n in range(3000)), b"large", b"later"]}
        count = len(db)
        if not clean:
            shutil.copytree(path, tmp_path / "copy", ignore=shutil.ignore_patterns("LOCK", "*.tmp"))
            path = tmp_path / "copy"
    file = path / "catalog.mdb"
    newest = file.read_bytes()
    match catalog:
        case "older":
            file.write_bytes(older)
        case "absent":
            file.unlink()
        case "random":
            file.write_bytes(random.Random(1).randbytes(len(newest)))
        case "short":
            file.write_bytes(newest[: len(newest) // 3])
        case "empty":
            file.write_bytes(b"")
        case "a directory":
            file.unlink()
            file.mkdir()
    for readonly in (True, False):
        with kvsvr.open(path, readonly=readonly) as db:
            assert len(db) == count
            assert {key: db.get_versioned(key) for key in expected} == expected


def killed_store(path: Path, count: int) -> None:
    """A store whose writer ended without closing."""
    code = """
        import os, sys, kvsvr
        db = kvsvr.open(sys.argv[1], sync="none", checkpoint_size=None)
        for n in range(int(sys.argv[2])):
            db.put(b"%d" % n, b"v" * 100)
        os.kill(os.getpid(), 9)
    """
    assert run_python(code, path, count).returncode == -signal.SIGKILL


@pytest.mark.parametrize("readonly", [False, True])
def test_the_catalog_of_another_store_does_no_harm(path: Path, tmp_path: Path, readonly: bool) -> None:
    """Its position lies in the middle of a record here: an end found there, and cut, would be everything behind it."""
    with kvsvr.open(tmp_path / "other", sync="none") as db:
        db.put_many((b"other%d" % n, b"v" * 77) for n in range(1000))
    killed_store(path, 3000)
    shutil.copy(tmp_path / "other" / "catalog.mdb", path / "catalog.mdb")
    shutil.copytree(tmp_path / "other" / "index", path / "index", dirs_exist_ok=True)
    for _ in range(2):
        with kvsvr.open(path, readonly=readonly) as db:
            assert db.get_many(b"%d" % n for n in range(3000)) == [b"v" * 100] * 3000
            assert len(db) == 3000


def test_a_catalog_of_a_later_time_than_the_flow_does_no_harm(path: Path, tmp_path: Path) -> None:
    """A flow put back from a copy beside a catalog that was not: nothing was written here at its position, and an end
    found there would leave a hole of zeros before it."""
    earlier = tmp_path / "earlier"
    with kvsvr.open(path, sync="none", checkpoint_size=50_000) as db:
        db.put_many((b"%d" % n, b"v") for n in range(500))
        until(lambda: len(list((path / "flow").glob("*.seg"))) == 2)
        shutil.copytree(path, earlier, ignore=shutil.ignore_patterns("LOCK"))
        db.put_many((b"later%d" % n, b"v" * 100) for n in range(2000))
        until(lambda: bool(db.stats()["checkpoint_count"]))
        shutil.copy(path / "catalog.mdb", earlier)
        shutil.copytree(path / "index", earlier / "index", dirs_exist_ok=True)
    for _ in range(2):
        with kvsvr.open(earlier) as db:
            assert len(db) == 500
            assert db.get_many(b"%d" % n for n in range(500)) == [b"v"] * 500


def test_an_index_file_cut_under_an_open_store_is_an_error_and_no_crash(path: Path) -> None:
    """Its tables are read when they are first needed. What was written is in the flow, where the next open finds it."""
    with kvsvr.open(path, sync="none") as db:
        db.put_many((b"%d" % n, b"v") for n in range(20_000))
    db = kvsvr.open(path, sync="none", checkpoint_size=1)
    for file in (path / "index").iterdir():
        os.truncate(file, 16)
    calls: list[Callable[[], object]] = [
        lambda: db.get(b"1"),
        lambda: db.get_many([b"2", b"3"]),
        lambda: db.put(b"4", b""),
        lambda: db.put_many([(b"5", b""), (b"6", b"")]),
        lambda: db.delete(b"7"),
    ]
    for call in calls:
        with pytest.raises((kvsvr.DiskError, kvsvr.CorruptionError)):
            call()
    with contextlib.suppress(kvsvr.DiskError):
        db.close()
    with kvsvr.open(path) as db:
        assert len(db) == 20_000
        assert db[b"4"] == b"v"


def test_openers_that_write_nothing_share_no_index_file(path: Path) -> None:
    """Two openers in a row without a segment between them must not give two checkpoints' files one name: the second
    would empty the file that its own index still reads from."""
    with kvsvr.open(path, sync="none") as db:
        db.put_many((b"%d" % n, b"v") for n in range(50_000))
    (path / "catalog.mdb").unlink()
    kvsvr.open(path).close()  # Makes a checkpoint, and no segment.
    with kvsvr.open(path, sync="none", checkpoint_size=1) as db:
        db.put(b"new", b"v")
        until(lambda: bool(db.stats()["checkpoint_count"]))
        assert db.get_many(b"%d" % n for n in range(50_000)) == [b"v"] * 50_000
        assert db.stats()["checkpoint_failed_count"] == 0
    with kvsvr.open(path) as db:
        assert db.stats()["used_checkpoint"] == 1
        assert db.get_many(b"%d" % n for n in range(50_000)) == [b"v"] * 50_000


# --- the interpreter's end ---


ENDINGS = {
    "nothing": "",
    "sys.exit": "sys.exit(0)",
    "a cycle": "class Cycle: pass\ncycle = Cycle(); cycle.me = cycle; cycle.db = db; del db",
    "no references": "del db, reader",
    "a batch under way": "batch = db.batch().__enter__(); batch.put(b'half', b'')",
    "an iterator that writes": "threading.Thread(target=lambda: db.put_many((b'%d' % n, b'v') for n in "
    "itertools.count()), daemon=True).start(); time.sleep(0.05)",
}


@pytest.mark.parametrize("threads", [False, True], ids=["alone", "with threads"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_the_interpreter_ends_whatever_is_open(path: Path, ending: str, threads: bool) -> None:
    """A writer and a reader, never closed; threads blocked in wait(), reading and writing: no hang, no crash, and
    the store is closed cleanly."""
    code = f"""
import itertools, sys, threading, time, kvsvr
path, threads = sys.argv[1], sys.argv[2] == "True"
db = kvsvr.open(path)
db.put(b"k", b"v")
reader = kvsvr.open(path, readonly=True)
def wait(one): one.wait(b"never", 0)
def work(one):
    while True: one.put(b"k", b"v"); one.get(b"k")
for target, one in ((wait, db), (wait, reader), (work, db), (wait, db)) if threads else ():
    threading.Thread(target=target, args=(one,), daemon=True).start()
time.sleep(0.05)
print("ends", flush=True)
{ENDINGS[ending]}
"""
    result = subprocess.run(
        [sys.executable, "-c", code, str(path), str(threads)], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "ends\n"
    assert "Fatal" not in result.stderr
    with kvsvr.open(path) as db:
        assert db[b"k"] == b"v"
        assert b"half" not in db
        assert db.stats()["was_clean"] == 1


def test_a_worker_process_hands_errors_back(path: Path) -> None:
    """LockedError crosses the border of a process pool with its fields, and the pool does not hang on it."""
    with kvsvr.open(path) as db:
        code = """
import multiprocessing, sys, kvsvr
if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        try:
            pool.apply_async(kvsvr.open, (sys.argv[1],)).get(30)
        except kvsvr.LockedError as error:
            print(error.holder)
"""
        script = path.parent / "script.py"
        script.write_text(code)
        result = subprocess.run(
            [sys.executable, str(script), str(path)], capture_output=True, text=True, timeout=60, check=False
        )
        assert result.stdout.strip() == str(os.getpid()), result.stderr
        db.put(b"k", b"v")
