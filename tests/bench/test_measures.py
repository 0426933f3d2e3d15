"""Figures of space, memory and opening are those that a computation by hand gives, a child that was killed gives none,
and nobody stays behind. The adapters below are stores whose cost is known; a child finds them as it finds peers."""

import atexit
import json
import mmap
import os
import signal
import subprocess
import sys
import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import pytest

from bench import child
from bench.adapters import ADAPTERS, Adapter, NotInstalled, Reads, Writes
from bench.adapters.base import FILES, INDEX_SIZE, Pair, in_order
from bench.adapters.dict import DictAdapter
from bench.cells import CELLS, Timing, Work, memory, opening, space, stalls
from bench.cells.base import ANY
from bench.cells.together import NotMeasured, Together
from bench.child import Child, ChildFailed, Keys, Request, ask
from bench.curve import curve_of
from bench.data import KEY_SIZE, Data, Setting, WrongAnswer, value_of
from bench.load import Load, Snapshot
from bench.machine import file_system_of

SIZE = 100
BLOAT = 10
PAGE = mmap.PAGESIZE


class Bloated(Adapter):
    """Appends every pair ten times to a file, without a buffer; a new process reads it anew."""

    name = "bloated"
    settings = ""
    durability = ("", "")

    def __init__(self) -> None:
        self._file = -1
        self._items: dict[bytes, bytes] = {}

    def open(self, directory: Path, *, durable: bool, key_count: int, value_size: int = 100) -> None:
        path = directory / "file"
        pair_size = KEY_SIZE + SIZE
        content = path.read_bytes() if path.exists() else b""
        for at in range(0, len(content), BLOAT * pair_size):
            self._items[content[at : at + KEY_SIZE]] = content[at + KEY_SIZE : at + pair_size]
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def put(self, key: bytes, value: bytes) -> None:
        self._items[key] = value
        os.write(self._file, BLOAT * (key + value))

    @contextmanager
    def writes(self) -> Iterator[Writes]:
        def write_batch(pairs: Sequence[Pair]) -> None:
            for key, value in pairs:
                self.put(key, value)

        yield Writes(put=self.put, delete=self._items.__delitem__, write_batch=write_batch, put_many=write_batch)

    @contextmanager
    def reads(self) -> Iterator[Reads]:
        yield Reads(get=self._items.get, get_many=lambda keys: list(map(self._items.get, keys)), values=in_order)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        self._file = -1


class Hoarder(Bloated):
    """Takes a page of memory for every put, keeps nothing else, and answers from what it knows of the bench."""

    features = frozenset({INDEX_SIZE})

    def __init__(self) -> None:
        super().__init__()
        self._pages: list[mmap.mmap] = []

    def put(self, key: bytes, value: bytes) -> None:
        if not self._pages or self._pages[-1].tell() == len(self._pages[-1]):
            self._pages.append(mmap.mmap(-1, 64 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        self._pages[-1].write(bytes(PAGE))

    @contextmanager
    def reads(self) -> Iterator[Reads]:
        yield Reads(get=lambda key: value_of(key, 0), get_many=lambda keys: [], values=in_order)

    def index_size(self) -> int:
        return 1000 + 7 * sum(mapping.tell() // PAGE for mapping in self._pages)


class KilledInClose(Bloated):
    def close(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class KilledAtTheEnd(Bloated):
    """After the answer was given."""

    def open(self, directory: Path, *, durable: bool, key_count: int, value_size: int = 100) -> None:
        super().open(directory, durable=durable, key_count=key_count, value_size=value_size)
        atexit.register(os.kill, os.getpid(), signal.SIGKILL)  # Not when it is made: that is done in this process, too.


class Hanging(Bloated):
    def open(self, directory: Path, *, durable: bool, key_count: int, value_size: int = 100) -> None:
        (directory / "pid").write_text(str(os.getpid()))
        time.sleep(600)


class Unopenable(Bloated):
    def open(self, directory: Path, *, durable: bool, key_count: int, value_size: int = 100) -> None:
        raise OSError("no such luck")


class Breaking(Bloated):
    """Writes a little, then fails."""

    def put(self, key: bytes, value: bytes) -> None:
        raise OSError("it broke")


class Forgetful(Bloated):
    """Overwrites nothing, and loses what it was loaded with."""

    def put(self, key: bytes, value: bytes) -> None:
        os.write(self._file, BLOAT * (key + bytes(SIZE)))


class Slow(Bloated):
    """Every twenty-fifth put takes 20 ms."""

    def __init__(self) -> None:
        super().__init__()
        self._put_count = 0

    def put(self, key: bytes, value: bytes) -> None:
        super().put(key, value)
        self._put_count += 1
        if self._put_count % 25 == 0:
            time.sleep(0.02)


def work_in(directory: Path, setting: Setting, generation: int = 1) -> Work:
    return Work(Data(Setting(100)) if setting.key_count > 10_000 else Data(setting), generation, 16, directory)


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("nothing happened in 10 seconds")


# --- figures by hand ---


def test_space_is_what_was_written_to_what_is_live(tmp_path: Path) -> None:
    figures = space.measure(Bloated(), work_in(tmp_path, Setting(2000, SIZE)))
    assert figures["loaded"].value == pytest.approx(BLOAT, rel=0.01)
    assert figures["overwritten"].value == pytest.approx(BLOAT * (1 + child.OVERWRITES), rel=0.01)
    assert figures["peak"].value == figures["overwritten"].value


def test_written_bytes_are_counted_by_the_process(tmp_path: Path) -> None:
    """At least what it writes; more where a page was on the disk before it was full."""
    if file_system_of(tmp_path).in_memory:
        pytest.skip("a file system in memory counts nothing")
    figures = space.measure(Bloated(), work_in(tmp_path, Setting(2000, SIZE)))
    assert figures["written"].value == pytest.approx(BLOAT, rel=0.25)
    if "device" in figures:
        assert figures["device"].value is not None and figures["device"].value >= 0.99 * BLOAT


def test_live_bytes_are_those_of_the_setting() -> None:
    assert Keys(Setting(50, 64)).live_size(3) == 50 * (KEY_SIZE + 64)
    keys = Keys(Setting(50, 64, varying=True))
    all_keys = list(keys.shuffled(1))
    assert keys.live_size(2) == sum(KEY_SIZE + len(keys.value(key, 2)) for key in all_keys)


def test_memory_is_the_slope_between_n_and_2n_keys(tmp_path: Path) -> None:
    figures = memory.measure(Hoarder(), work_in(tmp_path, Setting(4000, SIZE)))
    assert figures["load"].value == pytest.approx(PAGE, rel=0.05)
    assert figures["overwrite"].value == pytest.approx(PAGE, rel=0.05)
    assert figures["held"].value == pytest.approx(PAGE, rel=0.05)
    assert figures["touch"].value == pytest.approx(0, abs=0.05 * PAGE)
    assert figures["index"].value == 7
    assert figures["total"].value == pytest.approx(4000 * PAGE / (1 << 20), rel=0.1)


def test_opening_takes_as_long_as_the_open_and_the_get(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([5.0, 1.0, 3.0, 2.0, 4.0, 30.0, 10.0, 20.0])
    killed: list[int] = []

    def answer(request: Request) -> dict[str, float]:
        return {} if request.task == "load" else {"ms": next(times)}

    class Writer:
        def __init__(self, request: Request) -> None:
            assert request.task == "write"
            killed.append(request.seed)

        def __enter__(self) -> "Writer":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def wait_until_writing(self) -> None:
            pass

        def kill_writing(self) -> None:
            pass

    monkeypatch.setattr(opening, "ask", answer)
    monkeypatch.setattr(opening, "Child", Writer)
    figures = opening.measure(Bloated(), work_in(tmp_path, Setting(200, SIZE)))
    assert {name: timing.value for name, timing in figures.items()} == {"clean": 3.0, "killed": 20.0, "longest": 30.0}
    assert (figures["clean"].operations, figures["killed"].operations) == (5, 3)
    assert killed == [0, 1, 2]


def test_a_writer_is_killed_while_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "KILLS_QUICK", 2)
    monkeypatch.setattr(opening, "OPEN_COUNT", 1)
    seen: list[int] = []
    kill_writing = Child.kill_writing

    def noted(self: Child) -> None:
        time.sleep(0.05)
        kill_writing(self)
        seen.append((tmp_path / "file").stat().st_size)

    monkeypatch.setattr(Child, "kill_writing", noted)
    figures = opening.measure(Bloated(), work_in(tmp_path, Setting(200, SIZE)))
    loaded = 200 * BLOAT * (KEY_SIZE + SIZE)
    assert loaded < seen[0] < seen[1]
    assert (figures["killed"].value or 0) > 0


def test_stalls_are_seen_on_the_side_that_stalls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stalls, "SECONDS_QUICK", 0.3)
    figures = stalls.measure(Slow(), work_in(tmp_path, Setting(200, SIZE)))
    puts, gets = figures["put"].curve, figures["get"].curve
    assert puts is not None and gets is not None
    assert list(puts) == ["p50", "p90", "p99", "p99.9", "p99.99", "max"]
    assert puts["p50"] < 20_000 <= puts["p99"]
    assert gets["p50"] < 20_000
    assert figures["put"].value == puts["p99.9"]


def test_a_curve_is_of_the_slowest() -> None:
    curve = curve_of(array("q", [1000] * 998 + [2_000_000, 5_000_000]))
    assert curve == pytest.approx({"p50": 1, "p90": 1, "p99": 1, "p99.9": 5000, "p99.99": 5000, "max": 5000})


# --- no figure without an answer ---


@pytest.mark.parametrize(
    ("adapter", "said"),
    [
        (KilledInClose, "load: ended with SIGKILL|load ended with SIGKILL"),
        (KilledAtTheEnd, "load ended with SIGKILL"),
        (Unopenable, "load ended with exit code 1: OSError: no such luck"),
    ],
)
def test_a_child_that_did_not_end_well_is_an_error(adapter: type[Adapter], said: str, tmp_path: Path) -> None:
    with pytest.raises(ChildFailed, match=said):
        ask(Request.of("load", adapter(), tmp_path, Setting(100, SIZE)))


def test_a_child_that_hangs_is_given_up_and_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "START_SECONDS_MAX", 1.5)
    with pytest.raises(ChildFailed, match="load took longer than 2 seconds"):
        ask(Request.of("load", Hanging(), tmp_path, Setting(1, 1)))
    assert gone(int((tmp_path / "pid").read_text()))


def test_a_writer_that_fails_is_not_taken_for_killed(tmp_path: Path) -> None:
    setting = Setting(100, SIZE)
    with Child(Request.of("write", Unopenable(), tmp_path, setting)) as writer, pytest.raises(ChildFailed) as failure:
        writer.wait_until_writing()
    assert str(failure.value) == "write did not begin to write: OSError: no such luck"
    with Child(Request.of("write", Breaking(), tmp_path, setting)) as writer:
        writer.wait_until_writing()
        writer._process.wait(10)
        with pytest.raises(ChildFailed, match="write ended with exit code 1 before it was killed: OSError: it broke"):
            writer.kill_writing()


@pytest.mark.parametrize("task", ["touch", "open", "space"])
def test_wrong_bytes_are_no_figure(task: str, tmp_path: Path) -> None:
    setting = Setting(100, SIZE)
    ask(Request.of("load", Forgetful(), tmp_path, setting))
    with pytest.raises(ChildFailed, match="WrongAnswer"):
        ask(Request.of(task, Forgetful(), tmp_path, setting))


def test_what_was_never_written_is_noticed_after_a_kill() -> None:
    keys = Keys(Setting(100, SIZE, varying=True))
    pairs = list(islice(keys.random_pairs(7), 50))
    for key, value in pairs:
        keys.check(key, value)
        keys.check(key, keys.value(key, 0))
    (key, value), (other, other_value) = [pair for pair in dict(pairs).items() if len(pair[1]) > 2 * KEY_SIZE][:2]
    for wrong in (None, keys.value(other, 0), other_value, value[:-9] + bytes(9), keys.value(key, 1)):
        with pytest.raises(WrongAnswer):
            keys.check(key, wrong)


def test_no_child_outlives_a_parent_that_is_killed(tmp_path: Path) -> None:
    request = asdict(Request.of("load", Hanging(), tmp_path, Setting(1, 1)))
    program = f"import bench.child as c; c.ask(c.Request(**{request!r}))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(os.path.abspath(entry) for entry in sys.path)}
    with subprocess.Popen([sys.executable, "-c", program], env=environment) as parent:
        wait_for((tmp_path / "pid").exists)
        wait_for(lambda: (tmp_path / "pid").read_text() != "")
        parent.kill()
    pid = int((tmp_path / "pid").read_text())
    wait_for(lambda: gone(pid))
    assert gone(pid)


# --- one measurement, several cells ---


QUIET, BUSY = Load(1.0, 0.9, 0.0, 0.0), Load(1.0, 0.9, 0.0, 0.9)


class Counted:
    def __init__(self) -> None:
        self.count = 0

    def measure(self, adapter: Adapter, work: Work) -> Mapping[str, Timing]:
        self.count += 1
        return {name: Timing(1, 0.0, value=float(self.count)) for name in ("a", "b")}


@pytest.fixture
def counted() -> Counted:
    return Counted()


def values_of(together: Together, parts: str, directory: Path) -> list[float | None]:
    work = work_in(directory, Setting(100, SIZE))
    return [together.part(part)(Bloated(), work).value for part in parts]


def test_no_figure_is_handed_out_twice(counted: Counted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Snapshot, "until", lambda *_: QUIET)
    assert values_of(Together(counted.measure, timed=True), "abaabb", tmp_path) == [1, 1, 2, 3, 3, 4]


@pytest.mark.parametrize(("timed", "found"), [(True, [1, 2, 3, 4]), (False, [1, 1, 2, 2])])
def test_times_of_a_busy_machine_are_not_passed_on(
    timed: bool, found: list[float], counted: Counted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Snapshot, "until", lambda *_: BUSY)
    assert values_of(Together(counted.measure, timed=timed), "abab", tmp_path) == found


def test_what_the_machine_does_not_tell_is_no_figure(counted: Counted, tmp_path: Path) -> None:
    together = Together(counted.measure, timed=False)
    with pytest.raises(NotMeasured, match="c"):
        values_of(together, "c", tmp_path)


# --- every peer ---


MEASURES = {"space": space.measure, "memory": memory.measure, "opening": opening.measure, "stalls": stalls.measure}


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("name", ADAPTERS)
def test_every_peer_passes_every_measure(
    name: str, measure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        adapter = ADAPTERS[name]()
    except NotInstalled as reason:
        pytest.skip(f"{name}: {reason}")
    if not adapter.can(FILES):
        pytest.skip("memory only")
    if measure == "memory" and name not in ("kvsvr", "sqlite3"):
        pytest.skip("the others do nothing there that they do not do for space")
    monkeypatch.setattr(opening, "KILLS_QUICK", 1)
    monkeypatch.setattr(opening, "OPEN_COUNT", 1)
    monkeypatch.setattr(stalls, "SECONDS_QUICK", 0.1)
    figures = MEASURES[measure](adapter, work_in(tmp_path, Setting(500, SIZE)))
    json.dumps({name: asdict(timing) for name, timing in figures.items()})
    assert all(timing.value is not None for timing in figures.values())
    if measure in ("opening", "stalls"):
        assert all((timing.value or 0) > 0 and timing.curve for timing in figures.values())


def test_a_dict_has_no_files_to_measure() -> None:
    mine = [cell for cell in CELLS.values() if cell.needs == ANY]
    assert len(mine) >= 16
    assert not any(DictAdapter().can(cell.needs_feature) for cell in mine)
