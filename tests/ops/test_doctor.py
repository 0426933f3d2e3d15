"""The doctor: what it sees in stores that are well, abandoned, held and damaged, and in places that are poor."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

import kvsvr
from kvsvr.ops import doctor
from kvsvr.ops.doctor import Finding, Verdict, examine

WRITER = """
import os, sys, kvsvr
db = kvsvr.open(sys.argv[1])
db.put(b"a", b"1" * 5000)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def good_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the machine of the test is like must not decide it."""
    monkeypatch.setattr(doctor, "sync_times_ms", lambda _: [0.5] * 100)
    monkeypatch.setattr(doctor, "file_system_kind", lambda _: "ext4")
    monkeypatch.setattr(doctor, "FREE_WARN_SIZE", 0)
    monkeypatch.setattr(doctor, "FREE_FAIL_SIZE", 0)
    monkeypatch.setattr(doctor, "FILES_SPARE", 0)


@pytest.fixture
def closed(path: Path) -> Path:
    with kvsvr.open(path) as db:
        db.put(b"a", b"1" * 5000)
    return path


def killed(path: Path) -> None:
    with writer(path) as process:
        process.send_signal(signal.SIGKILL)


def writer(path: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def findings(path: Path) -> dict[str, Finding]:
    return {finding.check: finding for finding in examine(path)}


def test_a_closed_store_passes(closed: Path, run: Callable[..., Result]) -> None:
    """Everything passes, the exit code is 0, and nothing is left behind."""
    before = sorted(closed.rglob("*"))
    result = run("doctor", closed)
    assert result.exit_code == 0
    assert {line[:4] for line in result.stdout.splitlines()} == {"PASS"}
    assert sorted(closed.rglob("*")) == before


def test_the_sync_is_measured(closed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For real, on a file that is gone afterwards."""
    monkeypatch.undo()
    monkeypatch.setattr(doctor, "SYNC_ROUND_COUNT", 5)
    before = sorted(closed.iterdir())
    times = doctor.sync_times_ms(closed)
    assert 1 <= len(times) <= 5
    assert min(times) > 0
    assert sorted(closed.iterdir()) == before


def test_the_holder_is_named(path: Path) -> None:
    """Beside a writer the doctor passes, says who it is, and takes nothing from it."""
    with writer(path) as process:
        found = findings(path)
        assert found["lock"].figures == {"holder": process.pid}
        assert found["checkpoint"].verdict is Verdict.PASS
        with pytest.raises(kvsvr.LockedError):
            kvsvr.open(path)


def test_an_abandoned_store_is_a_warning(path: Path, run: Callable[..., Result]) -> None:
    """A writer that was killed left something to replay: exit code 3, until somebody opens and closes it."""
    killed(path)
    assert findings(path)["checkpoint"].verdict is Verdict.WARN
    assert run("doctor", path).exit_code == 3
    kvsvr.open(path).close()
    assert run("doctor", path).exit_code == 0


def test_a_restored_store_is_not_called_abandoned(closed: Path, run: Callable[..., Result]) -> None:
    """Nobody has made a checkpoint of it yet, and the doctor says just that; one that was closed once and then left is
    called what it is."""
    backup, restored = closed.with_name("backup"), closed.with_name("restored")
    assert run("backup", closed, backup).exit_code == 0
    assert run("restore", backup, restored).exit_code == 0
    assert "just restored" in findings(restored)["checkpoint"].what
    kvsvr.open(restored).close()
    assert findings(restored)["checkpoint"].verdict is Verdict.PASS
    killed(restored)
    assert findings(restored)["checkpoint"].what.startswith("the last writer did not close it")


def test_a_damaged_catalog_is_a_warning(closed: Path) -> None:
    """It is a shortcut, not the data; the cure is as told."""
    (closed / "catalog.mdb").write_bytes(b"x" * 5000)
    assert findings(closed)["catalog"].verdict is Verdict.WARN
    with kvsvr.open(closed) as db:
        db.put(b"b", b"2")
    assert findings(closed)["catalog"].verdict is Verdict.PASS


def test_damage_is_damage(closed: Path, run: Callable[..., Result]) -> None:
    """Exit code 4, from the doctor and from every command that opens the store; as JSON, too."""
    segment = min((closed / "flow").iterdir())
    segment.write_bytes(b"\xff" * 64 + segment.read_bytes()[64:])
    assert run("get", closed, "a").exit_code == 4
    result = run("doctor", closed, "--json")
    assert result.exit_code == 4
    answer = json.loads(result.stdout)
    assert answer["verdict"] == "DAMAGE"
    assert [one["cure"] != "" for one in answer["findings"] if one["verdict"] != "PASS"] == [True]


def test_a_poor_place_is_told(closed: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[..., Result]) -> None:
    """Every finding that is no PASS has a cure, and a FAIL outweighs any WARN: exit code 1."""
    monkeypatch.setattr(doctor, "sync_times_ms", lambda _: [1.0] * 98 + [900.0] * 2)
    monkeypatch.setattr(doctor, "file_system_kind", lambda _: "tmpfs")
    monkeypatch.setattr(doctor, "_map_count_max", lambda: 10)
    monkeypatch.setattr(doctor, "FILES_SPARE", 1 << 40)
    monkeypatch.setattr(doctor, "FREE_FAIL_SIZE", 1 << 62)
    found = findings(closed)
    poor = {check: one.verdict for check, one in found.items() if one.verdict is not Verdict.PASS}
    unlimited = resource.getrlimit(resource.RLIMIT_NOFILE)[0] == resource.RLIM_INFINITY
    assert poor == {
        "disk sync": Verdict.WARN,
        "file system": Verdict.WARN,
        "free space": Verdict.FAIL,
        "memory maps": Verdict.WARN,
    } | ({} if unlimited else {"open files": Verdict.WARN})
    assert all(found[check].cure for check in poor)
    assert run("doctor", closed).exit_code == 1


def test_a_disk_that_cannot_be_measured_is_a_warning(closed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader may look at a store it cannot write to."""

    def refuse(_: Path) -> list[float]:
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr(doctor, "sync_times_ms", refuse)
    assert findings(closed)["disk sync"].verdict is Verdict.WARN


def test_no_store_is_usage(tmp_path: Path, run: Callable[..., Result]) -> None:
    """Nothing there, or something else."""
    assert run("doctor", tmp_path / "nothing").exit_code == 2
    (tmp_path / "file").write_text("not a store")
    assert run("doctor", tmp_path).exit_code == 2


def test_the_file_system_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the longest mount on the way."""
    monkeypatch.undo()
    assert doctor.file_system_kind(Path("/proc/self")) == "proc"
