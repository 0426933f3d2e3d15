"""Backups: a copy is the store at one version, whatever went on meanwhile; and what is no whole backup is refused.

Writers here give each key of a round the round's number, in one batch: a copy of any other than one moment would show
two numbers.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import kvsvr
from kvsvr.store import restore, verify
from kvsvr.store.backup import MANIFEST, VERSION_JUMP

KEYS = 50
OWN_FILE = b"y" * ((1 << 20) + 1)


def fill(path: Path) -> None:
    with kvsvr.open(path) as db:
        db.put_many((b"%d" % n, b"v%d" % n) for n in range(3000))
        db.put(b"expires", b"v", ttl=1000)
        db.put(b"large", OWN_FILE)
        db.delete(b"7")
        db.table(b"t").put_many((b"%d" % n, b"row") for n in range(100))
        db.table(b"dropped").put(b"r", b"v")
        db.table(b"dropped").drop()


def content(path: Path) -> dict[Any, Any]:
    """Everything that one can ask for, but changes."""
    found: dict[Any, Any] = {}
    with kvsvr.open(path, readonly=True) as db:
        for key in db:
            found[key] = db.get_versioned(key)
        for key in db.tables():
            t = db.table(key)
            found[key, None] = t.version, t.expires_at, len(t)
            for row in t:
                found[key, row] = t.get_versioned(row)
    return found


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A backup of a store with some of everything."""
    fill(tmp_path / "original")
    with kvsvr.open(tmp_path / "original") as db:
        db.backup(tmp_path / "backup")
    return tmp_path / "backup"


# --- what comes back ---


def test_all_comes_back_with_versions_and_expiries(copied: Path, tmp_path: Path) -> None:
    report = restore(copied, tmp_path / "restored")
    assert content(tmp_path / "restored") == content(tmp_path / "original")
    assert verify(tmp_path / "restored").ok
    assert report.size == sum(one.stat().st_size for one in copied.rglob("*.[sv]*") if one.is_file())


def test_versions_go_on_above_all_that_the_original_gave(copied: Path, tmp_path: Path) -> None:
    """Also behind a restore that nobody wrote to, and again for a restore of a backup of a restored store."""
    with kvsvr.open(tmp_path / "original") as db:
        newest = [db.put(b"later", b"") for _ in range(100)][-1]
    for name in ("restored", "twice"):
        restore(copied, tmp_path / name)
        with kvsvr.open(tmp_path / name) as db:
            assert b"later" not in db
        with kvsvr.open(tmp_path / name) as db:
            version = db.put(b"new", b"")
            assert version >= newest + VERSION_JUMP - 1000
            assert db.table(b"t").append(b"v") > newest.to_bytes(8, "big")
            newest = version
            copied = tmp_path / f"{name} copied"
            db.backup(copied)


@pytest.mark.parametrize("sync", ["none", "batch", "always"])
def test_an_empty_store_comes_back(tmp_path: Path, sync: Any) -> None:
    with kvsvr.open(tmp_path / "a", sync=sync) as db:
        db.backup(tmp_path / "b")
    restore(tmp_path / "b", tmp_path / "c")
    assert content(tmp_path / "c") == {}
    with kvsvr.open(tmp_path / "c") as db:
        assert db.put(b"k", b"v") > VERSION_JUMP


def test_a_store_whose_first_segments_are_gone_comes_back(tmp_path: Path) -> None:
    """The last segment's header may be the one that says so: a copy without that would take them for lost."""
    with kvsvr.open(tmp_path / "a", sync="none") as db:
        for _ in range(3):
            db.put_many((b"%d" % n, b"v" * 1000) for n in range(4000))
        db.delete_many(b"%d" % n for n in range(4000))
        db.put(b"k", b"v")
        db.compact()
        assert not (tmp_path / "a/flow/00000001.seg").exists()
        db.backup(tmp_path / "b")
    restore(tmp_path / "b", tmp_path / "c")
    assert content(tmp_path / "c") == content(tmp_path / "a")


def test_what_is_written_behind_the_moment_is_not_in_it(tmp_path: Path) -> None:
    """Neither in the segment that the copy ends in, nor in those that follow."""

    def write(done: int, _: int) -> None:
        db.put(b"k", b"after")
        db.put_many((b"%d" % n, b"v" * 1000) for n in range(3000))
        db.put(b"large", OWN_FILE)

    with kvsvr.open(tmp_path / "a") as db:
        db.put(b"k", b"before")
        report = db.backup(tmp_path / "b", progress=write)
    restore(tmp_path / "b", tmp_path / "c")
    with kvsvr.open(tmp_path / "c") as db:
        assert list(db.scan()) == [(b"k", b"before")]
        assert report.version == db.wait(b"k", 0, 0)


# --- while others are at work ---


@contextmanager
def at_work(*calls: Callable[[], object]) -> Iterator[None]:
    """Each call over and over in a thread of its own. What one raises is raised here."""
    stop, errors = threading.Event(), []

    def repeat(call: Callable[[], object]) -> None:
        try:
            while not stop.is_set():
                call()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=repeat, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not errors


def test_a_copy_is_of_one_moment_whatever_goes_on(tmp_path: Path) -> None:
    """Writers overwrite, drop tables and hold snapshots, and the store is compacted all the while."""
    number = 0

    def write() -> None:
        nonlocal number
        number += 1
        time.sleep(0.001)  # Else each copy is far larger than the one before.
        with db.batch() as batch:
            for n in range(KEYS):
                batch.put(b"%d" % n, b"%d" % number + b" " * 1000)
            batch.put(b"large", b"%d" % number + (OWN_FILE if number % 20 == 0 else b" "))
            batch.table(b"t").put(b"row", b"%d" % number)
            batch.table(b"log").append(b"%d" % number)

    def drop() -> None:
        with db.snapshot() as s:
            before = s.get(b"0")
            db.table(b"log").drop()
            db.compact()
            assert s.get(b"0") == before
        time.sleep(0.05)  # Whoever compacts without a pause keeps others from their turn.

    moments = []
    with kvsvr.open(tmp_path / "a", sync="none", checkpoint_size=1 << 20) as db, at_work(write, drop):
        for n in range(4):
            time.sleep(0.3)
            moments.append(db.backup(tmp_path / f"b{n}").version)
        removed_count = db.stats()["removed_count"]
    assert removed_count > 0, "nothing was compacted, so nothing was shown"
    assert moments == sorted(moments)
    for n, version in enumerate(moments):
        restore(tmp_path / f"b{n}", tmp_path / f"c{n}")
        with kvsvr.open(tmp_path / f"c{n}", compaction=False) as db:
            numbers = {db[key].split(b"y")[0].strip() for key in db} | {bytes(row) for _, row in db.table(b"t").rows()}
            assert len(numbers) == (1 if version else 0), f"moments {numbers}"
            log = [int(row) for _, row in db.table(b"log").rows()]
            assert log == list(range(log[0], log[0] + len(log))) if log else True
            assert all(db.wait(key, 0, 0) <= version for key in db)
            assert db.verify().ok


def test_a_backup_of_a_store_that_is_closed_meanwhile_is_none(tmp_path: Path) -> None:
    """Whoever opens it next may remove what is not copied yet."""
    fill(tmp_path / "a")
    db = kvsvr.open(tmp_path / "a")
    with pytest.raises(kvsvr.ClosedError):
        db.backup(tmp_path / "b", progress=lambda done, total: db.close())
    assert not (tmp_path / "b" / MANIFEST).exists()
    with kvsvr.open(tmp_path / "a") as again:  # And nothing of it is left that would keep segments.
        again.backup(tmp_path / "c")


def test_backups_at_a_time_do_not_disturb_each_other(tmp_path: Path) -> None:
    fill(tmp_path / "a")

    def another(done: int, total: int) -> None:
        if not (tmp_path / "c").exists():
            db.backup(tmp_path / "c")

    with kvsvr.open(tmp_path / "a") as db:
        db.backup(tmp_path / "b", progress=another)
    for name in ("b", "c"):
        restore(tmp_path / name, tmp_path / f"{name} restored")
        assert content(tmp_path / f"{name} restored") == content(tmp_path / "a")


# --- what is refused ---


def test_a_file_that_changed_is_named_and_refused(copied: Path, tmp_path: Path) -> None:
    """One bit of any file, at its begin, in the middle, at its end."""
    for count, file in enumerate(sorted(one for one in copied.rglob("*/*") if one.is_file())):
        good = file.read_bytes()
        for place in (0, len(good) // 2, len(good) - 1):
            file.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
            with pytest.raises(kvsvr.CorruptionError, match=file.name):
                restore(copied, tmp_path / f"restored{count} {place}")
        file.write_bytes(good)
    restore(copied, tmp_path / "good")


@pytest.mark.parametrize("damage", ["cut", "longer", "gone"])
def test_a_file_of_another_size_or_none_is_refused(copied: Path, tmp_path: Path, damage: str) -> None:
    (file,) = (copied / "values").iterdir()
    match damage:
        case "cut":
            file.write_bytes(file.read_bytes()[:-1])
        case "longer":
            file.write_bytes(file.read_bytes() + b"\0")
        case "gone":
            file.unlink()
    with pytest.raises(kvsvr.CorruptionError, match=file.name):
        restore(copied, tmp_path / "restored")


def test_a_directory_without_a_manifest_is_no_backup(copied: Path, tmp_path: Path) -> None:
    for place in (tmp_path / "original", tmp_path / "nowhere"):
        with pytest.raises(kvsvr.UsageError, match="no backup"):
            restore(place, tmp_path / "restored")
    assert not (tmp_path / "restored").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["files"].update({"../outside": {"size": 0, "blake2b": ""}}),
        lambda m: m["files"].update({"/etc/passwd": {"size": 0, "blake2b": ""}}),
        lambda m: m["files"].update({"flow/../../00000001.seg": {"size": 0, "blake2b": ""}}),
        lambda m: m["files"].update({"flow/00000001.seg\n": {"size": 0, "blake2b": ""}}),
        lambda m: m["files"].update({"catalog.mdb": {"size": 0, "blake2b": ""}}),
        lambda m: m["files"].update({"flow/00000001.seg": 7}),
        lambda m: m.update(files=[]),
        lambda m: m.update(version="many"),
        lambda m: m.pop("version"),
    ],
)
def test_an_odd_manifest_is_refused(copied: Path, tmp_path: Path, change: Callable[[Any], object]) -> None:
    manifest = json.loads((copied / MANIFEST).read_text())
    change(manifest)
    (copied / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(kvsvr.CorruptionError, match=MANIFEST):
        restore(copied, tmp_path / "restored")
    assert not (tmp_path / "restored").exists()


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"7", b"\xff", b'{"format": 1}', b"[" * 100_000])
def test_a_manifest_that_is_none_is_refused(copied: Path, tmp_path: Path, text: bytes) -> None:
    (copied / MANIFEST).write_bytes(text)
    with pytest.raises(kvsvr.CorruptionError, match=MANIFEST):
        restore(copied, tmp_path / "restored")


def test_a_backup_of_a_newer_format_is_refused_by_name(copied: Path, tmp_path: Path) -> None:
    manifest = json.loads((copied / MANIFEST).read_text())
    (copied / MANIFEST).write_text(json.dumps(manifest | {"format": 2}))
    with pytest.raises(kvsvr.UsageError, match="newer kvsvr"):
        restore(copied, tmp_path / "restored")


def test_nothing_is_overwritten(copied: Path, tmp_path: Path) -> None:
    """A directory that is not empty, a file, a parent that is not there; an empty directory is fine."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    with kvsvr.open(tmp_path / "original") as db:
        for copy in (db.backup, lambda place: restore(copied, place)):
            for wrong in (tmp_path / "full", tmp_path / "file", tmp_path / "not" / "there"):
                with pytest.raises(kvsvr.UsageError):
                    copy(wrong)
        db.backup(tmp_path / "empty")
    assert [one.name for one in (tmp_path / "full").iterdir()] == ["letter"]
    assert (tmp_path / "file").read_text() == "mine"
    restore(tmp_path / "empty", tmp_path / "restored")


@pytest.mark.parametrize("at", range(6))
def test_a_disk_that_fails_leaves_no_backup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Whichever sync it is that fails: DiskError, and a directory that restore refuses."""
    fill(tmp_path / "a")
    count = 0

    def fsync(descriptor: int) -> None:
        nonlocal count
        count += 1
        if count > at:
            raise OSError(28, "No space left on device")

    with kvsvr.open(tmp_path / "a") as db:
        monkeypatch.setattr(os, "fsync", fsync)
        with pytest.raises(kvsvr.DiskError) as caught:
            db.backup(tmp_path / "b")
        monkeypatch.undo()
        assert caught.value.full
        if not (tmp_path / "b" / MANIFEST).exists():  # Else it was the last: that of the manifest's own name.
            with pytest.raises(kvsvr.UsageError, match="no backup"):
                restore(tmp_path / "b", tmp_path / "c")
        assert db.put(b"k", b"v")
        db.backup(tmp_path / "d")


def test_a_reader_makes_no_backup(copied: Path, tmp_path: Path) -> None:
    with kvsvr.open(tmp_path / "original", readonly=True) as db, pytest.raises(kvsvr.UsageError, match="readonly"):
        db.backup(tmp_path / "b")


def test_damage_in_the_newest_segment_is_no_end_of_the_backup(tmp_path: Path) -> None:
    """The copy of that segment knows of no watermark: damage would look like a torn end, and take what follows."""
    with kvsvr.open(tmp_path / "store") as db:
        db.put(b"first", b"1" * 100, durable=True)
        db.put(b"second", b"2", durable=True)
        segment = min((tmp_path / "store" / "flow").glob("*.seg"))  # Behind it, maybe, the one that is prepared.
        at = segment.read_bytes().index(b"1" * 100)
        with open(segment, "r+b") as file:
            file.seek(at)
            file.write(b"x")
        with pytest.raises(kvsvr.CorruptionError, match="newest segment"):
            db.backup(tmp_path / "backup")
        with pytest.raises(kvsvr.UsageError, match="holds no"):
            kvsvr.restore(tmp_path / "backup", tmp_path / "restored")
        with open(segment, "r+b") as file:
            file.seek(at)
            file.write(b"1")
        db.backup(tmp_path / "sound")
    kvsvr.restore(tmp_path / "sound", tmp_path / "whole")
    with kvsvr.open(tmp_path / "whole") as db:
        assert (db[b"first"], db[b"second"]) == (b"1" * 100, b"2")
