"""Verify finds what is not what was written, names it and changes nothing; salvage brings over what can be read."""

from __future__ import annotations

import hashlib
import struct
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import xxhash

import kvsvr
from kvsvr.store import restore, salvage, verify
from kvsvr.store.catalog import Catalog

OWN_FILE = b"y" * ((1 << 20) + 1)
COUNT = 16_000

# checkpoint.c: 64-bit words of a description.
KEY_COUNT, LIVE_SIZE_OF_FIRST, SEGMENTS = 8, 25, 23


def fill(db: kvsvr.Engine) -> None:
    db.put_many((b"%05d" % n, b"v%d" % n + b" " * 300) for n in range(COUNT))
    db.put(b"expires", b"v", ttl=1000)
    db.put(b"large", OWN_FILE)
    db.delete(b"00007")
    db.table(b"t").put_many((b"%d" % n, b"row%d" % n) for n in range(100))
    db.table(b"t").put(b"expires", b"v", ttl=1000)
    db.table(b"passing").put(b"r", b"v")
    db.expire(b"passing", 500)
    db.table(b"dropped").put(b"r", b"v")
    db.table(b"dropped").drop()


@pytest.fixture
def filled(path: Path) -> Path:
    with kvsvr.open(path, compaction=False) as db:
        fill(db)
    return path


def digest(directory: Path) -> dict[str, str]:
    """Of all that is a store: the lock's content names its holder."""
    return {
        str(one): hashlib.sha256(one.read_bytes()).hexdigest()
        for one in sorted(directory.rglob("*"))
        if one.is_file() and one.name != "LOCK"
    }


def flip(file: Path, offset: int) -> None:
    content = bytearray(file.read_bytes())
    content[offset] ^= 4
    file.write_bytes(content)


def first(directory: Path, name: str) -> Path:
    return min((directory / name).iterdir())


# --- sound stores ---


def test_a_sound_store_is_found_sound_and_left_as_it_is(filled: Path) -> None:
    before = digest(filled)
    report = verify(filled)
    assert report.ok, report
    assert (report.key_count, report.table_count, report.row_count) == (COUNT + 1, 2, 102)
    assert not report.notes
    assert digest(filled) == before


def test_stores_of_every_history_are_sound(filled: Path, tmp_path: Path) -> None:
    """After compaction with a snapshot open, after a kill, after backup and restore, after salvage, and empty."""
    with kvsvr.open(filled) as db:
        with db.snapshot():
            fill(db)
            db.compact()
            assert db.verify().ok
        db.compact()
        assert db.stats()["removed_count"] > 0
        assert db.verify().ok
        db.backup(tmp_path / "backup")
    restore(tmp_path / "backup", tmp_path / "restored")
    salvage(filled, tmp_path / "salvaged")
    kvsvr.open(tmp_path / "empty").close()
    for name in ("store", "restored", "salvaged", "empty"):
        report = verify(tmp_path / name)
        assert report.ok, report


def test_a_live_store_is_verified_beside_its_writers(path: Path) -> None:
    """Many times, while threads write, drop tables, compact and hold snapshots."""
    stop = threading.Event()

    def write() -> None:
        n = 0
        while not stop.is_set():
            n += 1
            time.sleep(0.0005)  # Else there is ever more to verify.
            with db.batch() as batch:
                batch.put(b"%d" % (n % 500), b"v" * 2000)
                batch.table(b"t").put(b"%d" % (n % 50), b"%d" % n)
            if n % 100 == 0:
                db.table(b"t").drop()
                db.delete(b"%d" % (n % 400))

    def tidy() -> None:
        while not stop.is_set():
            with db.snapshot():
                db.compact()
            time.sleep(0.05)

    with kvsvr.open(path, sync="none", checkpoint_size=1 << 20) as db:
        threads = [threading.Thread(target=one) for one in (write, tidy)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(4):
                report = db.verify()
                assert report.ok, report
        finally:
            stop.set()
            for thread in threads:
                thread.join()


def test_a_store_that_is_open_for_writing_is_left_to_its_writer(path: Path) -> None:
    with kvsvr.open(path) as db:
        with pytest.raises(kvsvr.LockedError):
            verify(path)
        with kvsvr.open(path, readonly=True) as reader, pytest.raises(kvsvr.UsageError, match="readonly"):
            reader.verify()
        assert db.verify().ok


# --- damage ---


@pytest.mark.parametrize("place", ["header", "first record", "middle", "end"])
def test_a_flipped_bit_in_a_segment_is_found_and_named(filled: Path, place: str) -> None:
    file = first(filled, "flow")
    size = file.stat().st_size
    flip(file, {"header": 20, "first record": 4096 + 40, "middle": size // 2, "end": size - 40}[place])
    before = digest(filled)
    report = verify(filled)
    assert not report.ok
    assert f"flow/{file.name}" in [one.file for one in report.damages]
    assert digest(filled) == before


def test_every_damage_is_found_not_only_the_first(filled: Path) -> None:
    segments = sorted((filled / "flow").iterdir())
    for file in segments[:2]:
        flip(file, file.stat().st_size // 2)
    flip(first(filled, "values"), 5)
    text = str(verify(filled).damages)
    assert all(file.name in text for file in segments[:2])
    assert "value's file" in text


@pytest.mark.parametrize("where", ["flow", "values"])
def test_a_missing_file_is_damage(filled: Path, where: str) -> None:
    file = first(filled, where)
    file.unlink()
    assert not verify(filled).ok


@pytest.mark.parametrize("name", ["index", "runs"])
def test_a_flipped_bit_in_a_shortcut_is_damage_or_a_note(filled: Path, name: str) -> None:
    """Where an opener does without it the report says so; nowhere is it passed over."""
    file = first(filled, name)
    good, size = file.read_bytes(), file.stat().st_size
    damage_count = 0
    for offset in (size // 50, size // 3, size // 2, size - 100, size - 1):
        flip(file, offset)
        report = verify(filled)
        assert report.damages or report.notes, f"at {offset} of {size}"
        damage_count += not report.ok
        file.write_bytes(good)
    assert damage_count


@pytest.mark.parametrize("place", [0.0, 0.3, 0.999])
def test_a_damaged_catalog_is_a_note(filled: Path, place: float) -> None:
    flip(filled / "catalog.mdb", int((filled / "catalog.mdb").stat().st_size * place))
    report = verify(filled)
    assert report.ok
    assert "catalog" in report.notes[0]


def change_checkpoint(directory: Path, word: int, by: int) -> None:
    """With good checksums: what a faulty program would have written."""
    catalog = Catalog(str(directory))
    description = catalog.checkpoint()
    assert description is not None
    words = list(struct.unpack(f"<{len(description) // 8}Q", description))
    words[word] += by
    body = struct.pack(f"<{len(words) - 1}Q", *words[:-1])
    catalog.put_checkpoint(body + struct.pack("<Q", xxhash.xxh64_intdigest(body)))


@pytest.mark.parametrize("word", [KEY_COUNT, LIVE_SIZE_OF_FIRST, 9, 10, 11, 17, 18])
def test_counters_that_are_wrong_are_found(filled: Path, word: int) -> None:
    """A checkpoint that passes every check, and whose figures are one too high."""
    change_checkpoint(filled, word, 1)
    with kvsvr.open(filled, readonly=True) as db:
        assert db.stats()["used_checkpoint"] == 1, "the change was noticed before anybody counted"
    report = verify(filled)
    assert report.differences, report
    assert not report.damages


# --- salvage ---


def salvaged(origin: Path, target: Path) -> tuple[Any, dict[bytes, Any]]:
    result = salvage(origin, target)
    assert verify(target).ok
    with kvsvr.open(target, readonly=True) as db:
        return result, {key: db.get_versioned(key) for key in db}


def test_all_of_a_sound_store_comes_over(filled: Path, tmp_path: Path) -> None:
    """Expiries of keys, rows and tables stay, give or take the time it took."""
    before = digest(filled)
    result, found = salvaged(filled, tmp_path / "new")
    assert digest(filled) == before
    assert (result.damages, result.lost) == ([], [])
    with kvsvr.open(filled, readonly=True) as old, kvsvr.open(tmp_path / "new", readonly=True) as new:
        assert list(new.scan()) == list(old.scan())
        assert list(new.tables()) == list(old.tables())
        for key in old.tables():
            assert list(new.table(key).rows()) == list(old.table(key).rows())
        pairs = [
            (found[b"expires"].expires_at, old.get_versioned(b"expires").expires_at),  # type: ignore[union-attr]
            (new.table(b"passing").expires_at, old.table(b"passing").expires_at),
            (
                new.table(b"t").get_versioned(b"expires").expires_at,  # type: ignore[union-attr]
                old.table(b"t").get_versioned(b"expires").expires_at,  # type: ignore[union-attr]
            ),
        ]
        assert all(abs(now - then) < 1 for now, then in pairs)


def test_every_record_but_the_damaged_comes_over(filled: Path, tmp_path: Path) -> None:
    file = first(filled, "flow")
    with kvsvr.open(filled, readonly=True) as db:
        expected = dict(db.scan())
    flip(file, file.stat().st_size // 2)
    result, found = salvaged(filled, tmp_path / "new")
    (damage,) = result.damages
    assert damage.file == f"flow/{file.name}"
    assert len(expected) - len(found) == 1
    assert all(found[key].value == expected[key] for key in found)


def test_a_value_whose_file_is_damaged_is_named_as_lost(filled: Path, tmp_path: Path) -> None:
    flip(first(filled, "values"), 77)
    result, found = salvaged(filled, tmp_path / "new")
    assert len(result.lost) == 1
    assert "large" in result.lost[0]
    assert len(found) == COUNT


@pytest.mark.parametrize("damage", ["header", "missing"])
def test_a_segment_less_leaves_the_others(filled: Path, tmp_path: Path, damage: str) -> None:
    segments = sorted((filled / "flow").iterdir())
    assert len(segments) >= 3
    if damage == "header":
        flip(segments[1], 3)
    else:
        segments[1].unlink()
    result, found = salvaged(filled, tmp_path / "new")
    assert f"flow/{segments[1].name}" in [one.file for one in result.damages]
    assert len(found) == COUNT + 1 if damage == "header" else 0 < len(found) < COUNT


def test_without_any_header_nothing_can_be_told(filled: Path, tmp_path: Path) -> None:
    for file in (filled / "flow").iterdir():
        flip(file, 3)
    for call in (lambda: verify(filled), lambda: salvage(filled, tmp_path / "new")):
        with pytest.raises(kvsvr.CorruptionError, match="header"):
            call()
    assert not (tmp_path / "new").exists()


def test_salvage_overwrites_nothing(filled: Path, tmp_path: Path) -> None:
    with pytest.raises(kvsvr.UsageError, match="not empty"):
        salvage(filled, filled)
    with pytest.raises(kvsvr.UsageError, match="no store"):
        salvage(tmp_path / "nowhere", tmp_path / "new")
