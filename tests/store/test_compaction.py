"""Compaction: what is dead is given back, what is live or wanted stays, and nobody notices but the disk."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import kvsvr
from kvsvr.store import verify
from kvsvr.store.steps import Compaction

VALUE = b"v" * 1000
COUNT = 4000
SMALL = 1 << 20


def fill(db: kvsvr.Engine, *, ttl: float | None = None) -> None:
    db.put_many(((b"%d" % n, VALUE) for n in range(COUNT)), ttl=ttl)


def overwrite(db: kvsvr.Engine) -> None:
    for _ in range(4):
        fill(db)


def expire_all(db: kvsvr.Engine) -> None:
    fill(db, ttl=10)
    db._handle.shift_clock(100)


def drop(db: kvsvr.Engine) -> None:
    db.table(b"t").put_many((b"%d" % n, VALUE) for n in range(COUNT))
    db.table(b"t").drop()


def delete(db: kvsvr.Engine) -> None:
    fill(db)
    db.delete_many(b"%d" % n for n in range(COUNT))


@pytest.mark.parametrize(("waste", "live"), [(overwrite, COUNT), (delete, 0), (expire_all, 0), (drop, 0)])
@pytest.mark.parametrize("sync", ["none", "batch"])
def test_space_is_given_back(path: Path, sync: kvsvr.config.SyncMode, waste: Callable[..., None], live: int) -> None:
    with kvsvr.open(path, sync=sync, compaction=False) as db:
        waste(db)
        db.put(b"end", b"v")
        before = db.stats()["flow_size"]
        db.compact()
        after = db.stats()
        assert after["removed_count"] > 0
        # The newest segment stays, whatever is in it.
        assert after["flow_size"] < live * 1100 + 4 * SMALL < before + 4 * SMALL
        assert after["flow_size"] < before
        assert len(db) == live + 1
    assert sum(one.stat().st_size for one in (path / "flow").iterdir()) < live * 1100 + 4 * SMALL
    assert verify(path).ok


def test_without_compaction_nothing_goes_by_itself(path: Path) -> None:
    with kvsvr.open(path, sync="none", compaction=False, checkpoint_size=1 << 20) as db:
        overwrite(db)
        assert db.stats()["compacted_count"] == 0
        assert all(db[b"%d" % n] == VALUE for n in range(0, COUNT, 100))


def test_a_snapshot_keeps_what_it_reads(path: Path) -> None:
    with kvsvr.open(path, sync="none", compaction=False) as db:
        fill(db)
        with db.snapshot() as snapshot:
            db.delete_many(b"%d" % n for n in range(COUNT))
            db.compact()
            assert dict(snapshot.scan()) == {b"%d" % n: VALUE for n in range(COUNT)}
            kept = db.stats()["flow_size"]
        db.compact()
        assert db.stats()["flow_size"] < kept // 2


def test_threads_may_compact_and_close_at_a_time(path: Path) -> None:
    errors: list[Exception] = []

    def compact() -> None:
        try:
            db.compact()
        except kvsvr.ClosedError:
            pass
        except Exception as error:
            errors.append(error)

    for _ in range(3):
        db = kvsvr.open(path, sync="none", compaction=False)
        overwrite(db)
        threads = [threading.Thread(target=compact) for _ in range(2)]
        for thread in threads:
            thread.start()
        db.close()
        for thread in threads:
            thread.join()
    assert not errors
    assert verify(path).ok


def test_a_full_disk_is_no_damage(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A segment that could not be moved for want of room is moved when there is some."""

    def full(_: Compaction) -> bool:
        raise kvsvr.DiskError("no room", path=str(path), errno=28)

    with kvsvr.open(path, compaction=False) as db:
        fill(db)
        db.delete_many(b"%d" % n for n in range(0, COUNT, 2))
        with monkeypatch.context() as patch:
            patch.setattr(Compaction, "step", full)
            with pytest.raises(kvsvr.DiskError):
                db.compact()
        db.compact()
        assert db.stats()["compacted_count"] > 0


@pytest.mark.parametrize("catalog", ["older", "absent"])
def test_the_catalog_is_not_needed_after_compaction(path: Path, catalog: str) -> None:
    with kvsvr.open(path, sync="none", compaction=False) as db:
        fill(db)
    shutil.copy(path / "catalog.mdb", path.with_name("older"))
    with kvsvr.open(path, sync="none", compaction=False) as db:
        overwrite(db)
        db.delete_many(b"%d" % n for n in range(0, COUNT, 2))
        db.compact()
        expected = {key: db.get_versioned(key) for key in db}
    if catalog == "older":
        shutil.copy(path.with_name("older"), path / "catalog.mdb")
    else:
        (path / "catalog.mdb").unlink()
    with kvsvr.open(path) as db:
        assert {key: db.get_versioned(key) for key in db} == expected


def test_rows_that_a_snapshot_keeps_are_not_moved_over_and_over(path: Path) -> None:
    """A dropped table is swept when the snapshots before the drop have ended: until then its rows stay where they
    are, and compaction must not come back to them without end."""
    with kvsvr.open(path, sync="none", compaction=False) as db:
        for n in range(COUNT):
            db.table(b"t").put(b"%d" % n, VALUE)
            db.put(b"k%d" % (n % 100), VALUE)
        with db.snapshot() as snapshot:
            db.table(b"t").drop()
            db.compact()
            count = db.stats()["compacted_count"]
            assert count <= db.stats()["segment_count"] + 8
            assert len(list(snapshot.table(b"t").rows())) == COUNT
        db.compact()
        assert db.stats()["flow_size"] < 4 * SMALL
