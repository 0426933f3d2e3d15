"""The demo may be trusted: it finds what is wrong with a store, and its own processes do what they say."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

import kvsvr
from demo.acks import Ack, compose, digest_of, dissect, invented, quoted, unquoted
from demo.crash import ROOT, CrashFailed, Life, run_until_killed
from demo.files import files_under, standard_library
from demo.proof import Contents, Fault, Held, look, prove
from demo.replicas import missing
from demo.report import FAILURES_SHOWN_MAX, Screen, Section
from kvsvr.ops.place import find
from kvsvr.ops.status import look as look_at_set

FILES = {f"pkg{number % 3}/module {number}.py": b"%d\n" % number * (400 * number) for number in range(24)}
KEYS = sorted(map(os.fsencode, FILES))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small folder to load, with things in it that are left out."""
    folder = tmp_path / "source"
    left_out = ["site-packages/a.py", "pkg1/__pycache__/b.pyc", "dist-packages/c.py"]
    for name, content in {**FILES, **dict.fromkeys(left_out, b"no")}.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    (folder / "dangling").symlink_to("nowhere")
    return folder


@pytest.fixture
def loaded(path: Path) -> dict[bytes, Held]:
    """What the store at `path` holds: the files."""
    with kvsvr.open(path) as db:
        db.put_many((os.fsencode(name), content) for name, content in FILES.items())
        return contents(db)


def contents(db: kvsvr.Engine) -> dict[bytes, Held]:
    held = {key: look(db, key) for key in KEYS}
    return {key: found for key, found in held.items() if found is not None}


def groups_of(count: int) -> list[tuple[bytes, ...]]:
    return [tuple(KEYS[start : start + count]) for start in range(0, len(KEYS), count)]


# --- words ---


@pytest.mark.parametrize("key", [b"os.py", b"a b/c\nd.py", b"%20", "é/ü.py".encode(), b"\xff\xfe", b"=+&?#"])
def test_any_file_name_survives_the_way_through_a_line(key: bytes) -> None:
    ack = Ack(17, 2467, digest_of(b"x"), key)
    line = ack.line()
    assert line.endswith(b"\n") and line.count(b"\n") == 1 and line.count(b" ") == 3
    assert Ack.parse(line.decode("ascii")) == ack
    assert unquoted(quoted(key)) == key
    assert dissect(key, compose(17, key, b"body\nof it")) == (17, b"body\nof it")


def test_a_value_of_another_key_is_not_taken_for_a_composed_one() -> None:
    stray = compose(17, b"a.py", b"body")
    assert dissect(b"b.py", stray) == (0, stray)
    assert dissect(b"b.py", b"kvsvr demo: write") == (0, b"kvsvr demo: write")


# --- files ---


def test_what_is_not_the_standard_librarys_is_left_out(source: Path) -> None:
    assert [key for key, _ in files_under(source)] == KEYS


def test_the_standard_library_is_there() -> None:
    keys = {key for key, _ in files_under(standard_library())}
    assert {b"os.py", b"json/decoder.py"} <= keys
    assert not any(b"-packages/" in key or b"__pycache__" in key for key in keys)


# --- the processes ---


def test_the_witness_records_whole_lines_only(tmp_path: Path) -> None:
    """Half an acknowledgement, cut by the kill, is none."""
    record = tmp_path / "record"
    command = [sys.executable, "-m", "demo.witness", str(record)]
    done = subprocess.run(command, input=b"one\ntwo\nthr", stdout=subprocess.PIPE, cwd=ROOT, timeout=60, check=True)
    assert record.read_bytes() == b"one\ntwo\n"
    assert done.stdout.split()[-1] == b"2"


@pytest.mark.parametrize("count", [1, 5])
def test_a_killed_writer_loses_nothing(count: int, path: Path, tmp_path: Path, loaded: dict[bytes, Held]) -> None:
    """Three lives, each continuing on what the one before left; puts, and batches that do not divide the keys."""
    number = 1
    for turn in range(3):
        counts: list[int] = []
        life = run_until_killed(
            path, tmp_path / f"record-{turn}", groups_of(count), number, kill_at=60, heard=counts.append
        )
        assert counts == sorted(counts) and 60 <= life.kill_count <= counts[-1] == len(life.acks)
        with kvsvr.open(path) as db:
            after = contents(db)
            assert not db.stats()["was_clean"]
        verdict = prove(life, loaded, after)
        assert verdict.findings == () and verdict.key_count == len(FILES)
        assert verdict.beyond_count <= count
        # A lie behind a batch that was heard in part says that the rest of it was never written: that shows, too.
        last = life.acks[-1]
        group = next(group for group in life.groups if last.key in group)
        in_part = sum(ack.number == last.number for ack in life.acks) < len(group)
        expected = {Fault.LOST, Fault.TORN} if in_part else {Fault.LOST}
        assert {finding.fault for finding in prove(with_lie(life), loaded, after).findings} == expected
        loaded, number = after, life.acks[-1].number + 2


def test_a_store_that_forgot_everything_is_found_out(path: Path, tmp_path: Path, loaded: dict[bytes, Held]) -> None:
    """The disk as it was before the writer began: every acknowledged key is lost."""
    old = tmp_path / "old"
    shutil.copytree(path, old)
    life = run_until_killed(path, tmp_path / "record", groups_of(1), 1, kill_at=60)
    with kvsvr.open(old) as db:
        verdict = prove(life, loaded, contents(db))
    assert verdict.count(Fault.LOST) == len({ack.key for ack in life.acks}) > 0


def test_a_slow_machine_is_killed_on_time(
    path: Path, tmp_path: Path, loaded: dict[bytes, Held], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The count is never reached; what was acknowledged until then is proven all the same."""
    monkeypatch.setattr("demo.crash.SECONDS_MAX", 1.5)
    life = run_until_killed(path, tmp_path / "record", groups_of(1), 1, kill_at=1_000_000_000)
    with kvsvr.open(path) as db:
        assert life.acks and prove(life, loaded, contents(db)).holds


def test_a_writer_that_ends_by_itself_is_no_crash(path: Path, tmp_path: Path, loaded: dict[bytes, Held]) -> None:
    with kvsvr.open(path), pytest.raises(CrashFailed, match="ended by itself with 1 after 0"):
        run_until_killed(path, tmp_path / "record", groups_of(1), 1, kill_at=1)


def test_a_witness_that_fails_is_no_witness(path: Path, tmp_path: Path, loaded: dict[bytes, Held]) -> None:
    record = tmp_path / "record"
    record.touch()  # It writes to new files only.
    with pytest.raises(CrashFailed, match="witness ended with 1"):
        run_until_killed(path, record, groups_of(1), 1, kill_at=1)
    assert record.read_bytes() == b""


# --- the proof ---

BEFORE = {key: Held(number + 1, digest_of(key), 0, digest_of(key)) for number, key in enumerate(KEYS)}


def history(count: int, group_count: int) -> tuple[Life, dict[bytes, Held]]:
    """A life of so many writes without flaw, nothing in flight, and what the store holds after it."""
    groups = groups_of(group_count)
    acks: list[Ack] = []
    after = dict(BEFORE)
    for number in range(1, count + 1):
        for key in groups[(number - 1) % len(groups)]:
            held = written(number, key)
            acks.append(Ack(number, held.version, held.digest, key))
            after[key] = held
    return Life(groups, 1, acks, len(acks), 1.0), after


def written(number: int, key: bytes) -> Held:
    return Held(100 + number, digest_of(compose(number, key, key)), number, digest_of(key))


def with_lie(life: Life) -> Life:
    return replace(life, acks=[*life.acks, invented(life.acks)])


def faults(life: Life, after: Contents) -> list[Fault]:
    return [finding.fault for finding in prove(life, BEFORE, after).findings]


@pytest.mark.parametrize(("count", "group_count"), [(1, 1), (10, 1), (60, 1), (1, 4), (20, 5)])
def test_a_store_without_flaw_passes(count: int, group_count: int) -> None:
    life, after = history(count, group_count)
    verdict = prove(life, BEFORE, after)
    assert verdict.holds and verdict.beyond_count == 0


@pytest.mark.parametrize("group_count", [1, 4])
def test_the_write_in_flight_may_be_there_whole(group_count: int) -> None:
    life, after = history(3, group_count)
    for key in life.groups[3]:
        after[key] = written(4, key)
    verdict = prove(life, BEFORE, after)
    assert verdict.holds and verdict.beyond_count == group_count


def test_of_the_last_batch_some_acknowledgements_may_be_unheard() -> None:
    life, after = history(3, 4)
    assert faults(replace(life, acks=life.acks[:-2]), after) == []


@pytest.mark.parametrize(
    ("expected", "spoil"),
    [
        (Fault.LOST, lambda key, held: None),
        (Fault.LOST, lambda key, held: BEFORE[key]),
        (Fault.TORN, lambda key, held: replace(held, digest=digest_of(b"half of it"))),
        (Fault.TORN, lambda key, held: replace(written(12, key), body_digest=digest_of(b"half of it"))),
        (Fault.TORN, lambda key, held: written(13, key)),
        (Fault.TORN, lambda key, held: replace(held, version=held.version + 100)),
    ],
    ids=["absent", "older", "other bytes", "in flight and torn", "two in flight", "unknown version"],
)
def test_each_flaw_of_a_written_key_is_found(expected: Fault, spoil: Callable[[bytes, Held], Held | None]) -> None:
    life, after = history(11, 1)
    key = life.acks[-4].key
    assert faults(life, after | {key: spoil(key, after[key])}) == [expected]


def test_a_key_that_nobody_wrote_must_be_as_before() -> None:
    life, after = history(11, 1)
    key = life.groups[-1][0]
    assert faults(life, {**after, key: None}) == [Fault.LOST]
    assert faults(life, {**after, key: replace(BEFORE[key], digest=digest_of(b"other"))}) == [Fault.TORN]


def test_half_a_batch_is_found() -> None:
    life, after = history(3, 4)
    after[life.groups[3][1]] = written(4, life.groups[3][1])
    assert faults(life, after) == [Fault.HALVED]


def test_a_write_that_never_happened_is_missed() -> None:
    life, after = history(11, 1)
    assert faults(with_lie(life), after) == [Fault.LOST]


def test_a_record_with_holes_or_with_versions_that_fall_is_none() -> None:
    life, after = history(11, 1)
    assert faults(replace(life, acks=[*life.acks[:4], *life.acks[5:]]), after)[0] == Fault.RECORD
    backwards = [replace(ack, version=1) if ack.number == 1 else ack for ack in life.acks]
    assert Fault.RECORD in faults(replace(life, acks=backwards), after)
    split = replace(life.acks[-1], key=KEYS[0], version=life.acks[-1].version + 1)
    assert Fault.RECORD in faults(replace(life, acks=[*life.acks, split]), after)


# --- the screen ---


def test_without_a_terminal_there_are_plain_lines_and_file_names_are_no_markup() -> None:
    out = StringIO()
    screen = Screen(Console(file=out, width=80))
    with screen.bar("load [red]", 10) as done:
        done(5)
    failures = [f"[bold]{number}" for number in range(FAILURES_SHOWN_MAX + 2)]
    screen.report([Section("query", ["[red]fine.py"], failures)])
    text = out.getvalue()
    assert (
        "load [red] ..." in text and "[red]fine.py" in text and "FAILED: [bold]0" in text and "FAILED: 2 more" in text
    )
    assert "\x1b" not in text


def test_on_a_terminal_there_is_a_bar() -> None:
    out = StringIO()
    with Screen(Console(file=out, width=80, force_terminal=True)).bar("load [red]", 10) as done:
        done(20)
    assert "load [red]" in out.getvalue() and "100%" in out.getvalue()


# --- the whole ---


def demo(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "demo", "--acks", "60", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)


def test_the_demo_proves_it_and_leaves_the_store_where_it_was_told_to(source: Path, tmp_path: Path) -> None:
    place = tmp_path / "new" / "place"
    done = demo("--source", source, "--dir", place)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PROVEN" in done.stdout and f"{len(FILES)} files" in done.stdout and "\x1b" not in done.stdout
    assert "killed replica" in done.stdout and "the killed one too: 0 lost or torn" in " ".join(done.stdout.split())
    assert max(map(len, done.stdout.splitlines())) < 1000 and len(done.stdout.splitlines()) <= 50
    with kvsvr.open(place / "store", readonly=True) as db:
        assert len(db) == len(FILES)


def test_a_false_acknowledgement_makes_the_demo_fail(source: Path, tmp_path: Path) -> None:
    """And the store is left, for whoever wants to know why."""
    done = demo("--source", source, "--forge", "--dir", tmp_path / "place")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FAILED: lost:" in done.stdout and "PROVEN" not in done.stdout
    assert "left in" in done.stdout and (tmp_path / "place" / "store").is_dir()


def test_nothing_is_left_behind_unless_asked_for(source: Path) -> None:
    done = demo("--source", source)
    place = Path(done.stdout.splitlines()[0].rpartition(" into ")[2])
    assert done.returncode == 0, done.stdout + done.stderr
    assert place.parent == ROOT / "build" / "demo" and not place.exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("--source {0}/nowhere", "--source:"),
        ("--source {0}/source --dir {0}/source", "is not empty"),
        ("--source {0}/source --acks 0", "--acks must be"),
    ],
)
def test_wrong_usage_is_named(arguments: str, complaint: str, source: Path, tmp_path: Path) -> None:
    done = demo(*arguments.format(tmp_path).split())
    assert done.returncode == 2 and complaint in done.stderr


def test_the_writer_does_not_outlive_the_demo(source: Path, tmp_path: Path) -> None:
    """Killed itself, the demo can end nobody: the witness then has no listener and goes, and the writer follows."""
    place = tmp_path / "place"
    command = [sys.executable, "-m", "demo", "--acks", "1000000000", "--source", str(source), "--dir", str(place)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        record = place / "witness-1.txt"
        assert eventually(lambda: record.exists() and record.stat().st_size > 0)
        with pytest.raises(kvsvr.LockedError):
            kvsvr.open(place / "store")
        process.kill()
    assert eventually(lambda: not is_locked(place / "store"))


def is_locked(store: Path) -> bool:
    try:
        kvsvr.open(store).close()
    except kvsvr.LockedError:
        return True
    return False


def eventually(holds: Callable[[], bool], seconds_max: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds_max
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_the_set_does_not_outlive_the_demo(source: Path, tmp_path: Path) -> None:
    """Its launcher ends with the pipe that the demo held, and ends the replicas."""
    place = tmp_path / "place"
    arguments = [sys.executable, "-m", "demo", "--acks", "60", "--source", str(source), "--dir", str(place)]
    with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        assert eventually(lambda: (place / "set" / "3" / "status.json").exists(), 60)
        process.kill()
    assert eventually(lambda: not is_running(place / "set"))


def is_running(directory: Path) -> bool:
    status = look_at_set(find(directory))
    return status.launcher is not None or any(one.pid is not None for one in status.replicas)


# --- the set ---


def test_what_a_set_lost_is_found_out() -> None:
    wanted = {b"a": "1", b"b": "2", b"c": "3"}
    assert missing(wanted, wanted | {b"d": "4"}) == []
    assert missing(wanted, {b"a": "1", b"b": "other"}) == [b"b", b"c"]
