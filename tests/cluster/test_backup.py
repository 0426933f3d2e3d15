"""A backup of a set that is written to meanwhile, and sets of another size that are made of it; verify of a replica."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from kvsvr.client import connect
from kvsvr.errors import CorruptionError, KvError
from kvsvr.node.report import Report
from kvsvr.ops import set_backup
from kvsvr.ops.cli.group import commands
from kvsvr.ops.place import Place, find, free_base, make
from kvsvr.ops.status import look
from kvsvr.ops.status import running as is_running
from kvsvr.store import backup
from tests.cluster.conftest import until

LARGE = b"large" * 20_000


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(commands, [str(one) for one in arguments])


def running(place: Place) -> AbstractContextManager[str]:
    """All of it: where clients go."""
    return set_backup.served(place, [one.node for one in place.replicas])


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return make(tmp_path / "set", 3, free_base(3), {"shards": "16"})


def fill(addresses: str) -> None:
    with connect(addresses) as db:
        db.put_many((f"key:{number}".encode(), f"value:{number}".encode()) for number in range(300))
        db.put(b"large", LARGE)
        db.put(b"empty", b"")
        db.put(b"ends", b"soon", ttl=1000.0)
        db.put(b"over", b"at once", ttl=0.05)
        db.table(b"rows").put_many((f"row:{number}".encode(), b"x" * number) for number in range(100))
        db.table(b"ending").put(b"row", LARGE)
        db.expire(b"ending", 2000.0)
        for number in range(100, 300, 7):
            db.delete(f"key:{number}".encode())


def check(addresses: str) -> None:
    with connect(addresses) as db:
        for number in range(300):
            gone = number >= 100 and (number - 100) % 7 == 0
            assert db.get(f"key:{number}".encode()) == (None if gone else f"value:{number}".encode())
        assert (db.get(b"large"), db.get(b"empty"), db.get(b"over")) == (LARGE, b"", None)
        ends = db.get_versioned(b"ends")
        assert ends is not None
        assert ends.expires_at is not None
        assert len(db.table(b"rows")) == 100
        assert all(db.table(b"rows").get(f"row:{number}".encode()) == b"x" * number for number in range(100))
        assert db.table(b"ending").get(b"row") == LARGE
        assert db.table(b"ending").expires_at is not None


@contextmanager
def busy(addresses: str) -> Iterator[dict[str, int]]:
    """One that counts, in pairs of one slot that are written together. What was acknowledged last, by pair."""
    acknowledged: dict[str, int] = {}
    over = threading.Event()

    def count() -> None:
        with connect(addresses) as db:
            number = 0
            while not over.is_set():
                number += 1
                for name in ("a", "b", "c", "d", "e"):
                    with db.batch() as batch:
                        batch.put(f"{{{name}}}:left".encode(), b"%d" % number)
                        batch.put(f"{{{name}}}:right".encode(), b"%d" % number)
                    acknowledged[name] = number

    thread = threading.Thread(target=count)
    thread.start()
    try:
        yield acknowledged
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("count", [1, 3])
def test_a_set_is_backed_up_while_it_runs_and_restored_to_another(place: Place, tmp_path: Path, count: int) -> None:
    """What was acknowledged before is in it, batches are whole, and what came later is no later than what is there."""
    with running(place) as addresses, busy(addresses) as acknowledged:
        fill(addresses)
        until(lambda: len(acknowledged) == 5)
        before = dict(acknowledged)
        found = set_backup.backup(place, tmp_path / "copy")
        after = dict(acknowledged)
    assert (list(found.copied), list(found.left_out)) == ([1, 2, 3], [])
    result = run(
        "restore", tmp_path / "copy", tmp_path / "new", "--replicas", str(count), "--port", str(free_base(count))
    )
    assert result.exit_code == 0, result.output
    assert not (tmp_path / "new.restoring").exists()
    new = find(tmp_path / "new")
    assert (len(new.replicas), new.replicas[0].config.set_name != place.replicas[0].config.set_name) == (count, True)
    with running(new) as addresses:
        check(addresses)
        with connect(addresses) as db:
            for name, number in before.items():
                left, right = db.get(f"{{{name}}}:left".encode()), db.get(f"{{{name}}}:right".encode())
                assert left == right
                assert number <= int(left or 0) <= after[name] + 1


def test_what_one_replica_lacks_the_others_have(place: Place, tmp_path: Path) -> None:
    """One is silent and is left out; a second one is more than a backup can do without."""
    with running(place) as addresses:
        fill(addresses)
        pids = [one.pid for one in look(place).replicas]
        assert pids[2] is not None
        assert pids[1] is not None
        os.kill(pids[2], signal.SIGSTOP)
        try:
            found = set_backup.backup(place, tmp_path / "copy")
            assert (list(found.copied), list(found.left_out)) == ([1, 2], [3])
            os.kill(pids[1], signal.SIGSTOP)
            with pytest.raises(KvError, match="only 1 of 3 replicas"):
                set_backup.backup(place, tmp_path / "other")
            assert not (tmp_path / "other").exists()
        finally:
            os.kill(pids[1], signal.SIGCONT)
            os.kill(pids[2], signal.SIGCONT)
    set_backup.restore(tmp_path / "copy", tmp_path / "new", None, free_base(3))
    with running(find(tmp_path / "new")) as addresses:
        check(addresses)


def test_a_replica_that_ends_while_it_is_copied_spoils_the_backup(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its next start may let go of segments, and nobody would see what is missing."""
    copy_log = backup.copy_log

    def copy_and_kill(path: str, destination: Path, end: tuple[int, int]) -> int:
        size = copy_log(path, destination, end)
        report = Report.read(place.replicas[0].status_file)
        assert report is not None
        os.kill(report.pid, signal.SIGKILL)
        until(lambda: is_running(place.replicas[0]) is None)
        return size

    monkeypatch.setattr(set_backup, "copy_log", copy_and_kill)
    with running(place) as addresses:
        fill(addresses)
        with pytest.raises(KvError, match="begin again"):
            set_backup.backup(place, tmp_path / "copy")
    assert not set_backup.is_backup(tmp_path / "copy")


def test_a_set_that_does_not_run_is_backed_up_too_and_damage_is_seen(place: Place, tmp_path: Path) -> None:
    with running(place) as addresses:
        fill(addresses)
        assert run("verify", place.replicas[0].folder).exit_code == 1  # It runs.
    for one in place.replicas:
        result = run("verify", one.folder, "--json")
        assert result.exit_code == 0, result.output
        assert '"wrong_count": 0' in result.output
    assert run("backup", place.directory, tmp_path / "copy").exit_code == 0
    assert run("backup", place.directory, tmp_path / "copy").exit_code == 2
    segment = sorted((tmp_path / "copy" / "2" / "flow").glob("*.seg"))[0]
    flip(segment, 5000)
    with pytest.raises(CorruptionError, match="is not what was backed up"):
        set_backup.restore(tmp_path / "copy", tmp_path / "new", None, free_base(3))
    assert not (tmp_path / "new.restoring").exists()
    assert not (tmp_path / "new").exists()
    damaged = place.replicas[1]
    first = sorted((damaged.config.directory / "flow").glob("*.seg"))[0]
    flip(first, 5000)
    result = run("verify", damaged.folder)
    assert result.exit_code == 4, result.output


def flip(file: Path, offset: int) -> None:
    with open(file, "r+b") as stream:
        stream.seek(offset)
        byte = stream.read(1)
        stream.seek(offset)
        stream.write(bytes([byte[0] ^ 16]))


def test_what_is_no_backup_of_a_set_is_refused(tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / set_backup.MANIFEST).write_text(
        '{"format": 1, "nodes": [1, 2, 3], "copied": [1], "shards": 4}'
    )
    result = run("restore", tmp_path / "copy", tmp_path / "new")
    assert result.exit_code == 4
    assert "set.json cannot be read" in result.output
    assert not (tmp_path / "new").exists()
