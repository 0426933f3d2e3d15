"""A snapshot is held while everything is overwritten; then compaction gives back what nobody needs any more."""

from __future__ import annotations

import time
from pathlib import Path

import kvsvr
from demo.acks import digest_of
from demo.report import Section, megabytes
from demo.run import Run


def snapshot(run: Run, section: Section) -> None:
    with kvsvr.open(run.store) as db:
        tables = {key: list(db.table(key).rows()) for key in db.tables()}
        with db.snapshot() as frozen:
            _overwrite(run, db)
            _look_back(run, frozen, tables, section)
            held = db.stats()["snapshot_size"]
        section.lines.append(f"held on to {megabytes(held)} for it")
        before, held_before = size_of(run.store), db.stats()["flow_size"]
        began = time.perf_counter()
        db.compact()
        seconds = time.perf_counter() - began
        after, live = size_of(run.store), db.stats()["live_size"]
        section.lines.append(
            f"compacted in {seconds:.2f} s: {megabytes(before)} on disk before, {megabytes(after)} after; "
            f"{megabytes(live)} of it are live records"
        )
        # Not what the disk gives: of a small store that is mostly the segment that is made ahead, at any moment.
        if db.stats()["flow_size"] >= held_before:
            section.failures.append("compaction gave nothing back")
        _look(run, db, section)


def _overwrite(run: Run, db: kvsvr.Engine) -> None:
    """Every key gets a short value, every table is dropped."""
    with run.screen.bar(f"overwrite {len(run.held):,} values under a snapshot", len(run.held)) as done:
        for count, key in enumerate(run.held, 1):
            db.put(key, b"overwritten: " + key)
            done(count)
        for key in db.tables():
            db.table(key).drop()


def _look_back(
    run: Run, frozen: kvsvr.Snapshot, tables: dict[bytes, list[tuple[bytes, bytes]]], section: Section
) -> None:
    wrong = [key for key, held in run.held.items() if digest_of(frozen.get(key, b"")) != held.digest]
    section.failures += [f"the snapshot shows another {key!r} than before" for key in wrong]
    if list(frozen.keys()) != sorted(run.held):
        section.failures.append("the snapshot lists other keys than before")
    if {key: list(frozen.table(key).rows()) for key in frozen.tables()} != tables:
        section.failures.append("the snapshot shows other tables than before")
    section.lines.append(
        f"everything overwritten, {len(tables):,} tables dropped: the snapshot still shows all "
        f"{len(run.held):,} values and {sum(map(len, tables.values())):,} rows as they were"
    )


def _look(run: Run, db: kvsvr.Engine, section: Section) -> None:
    wrong = [key for key in run.held if db.get(key) != b"overwritten: " + key]
    section.failures += [f"{key!r} is not what was written last" for key in wrong]
    if list(db.tables()) or len(db) != len(run.held):
        section.failures.append("after compaction there are other keys or tables than before")


def size_of(directory: Path) -> int:
    """Bytes that the disk gives for it."""
    return sum(path.stat().st_blocks * 512 for path in directory.rglob("*") if path.is_file())
