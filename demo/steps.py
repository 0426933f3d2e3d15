"""The demo, step by step. A step does one thing with the store, checks it, and fills a section of the report.

What a later step needs of an earlier one is in `Run`, and nowhere else; the store is closed between steps. Tables,
snapshots and replicas have files of their own.
An exception of the store itself is a failure too, and is left to whoever runs the steps.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Final

import kvsvr
from demo.acks import digest_of, invented
from demo.crash import Life, run_until_killed
from demo.files import files_under
from demo.proof import Contents, Fault, Verdict, look, prove
from demo.replicas import replicas
from demo.report import Section, megabytes, rate
from demo.run import Run, Step
from demo.snapshot import snapshot
from demo.tables import tables
from demo.writer import Group

SAMPLE_COUNT: Final = 500
READ_COUNT: Final = 256  # Values of one get_many: bounds the memory they take.
PART: Final = 4  # One key of so many is overwritten ...
PART_SIZE_MAX: Final = 4 << 20  # ... unless its value is larger: rounds would take too long.
BATCH_COUNT: Final = 8


# --- load ---


def load(run: Run, section: Section) -> None:
    """Every file into the store, one key per file; then every value is compared with its file, by SHA-256."""
    files = files_under(run.source)
    total = sum(path.stat().st_size for _, path in files)
    digests: dict[bytes, str] = {}

    def pairs(done: Callable[[int], None]) -> Iterator[tuple[bytes, bytes]]:
        size = 0
        for key, path in files:
            value = path.read_bytes()
            run.sizes[key], digests[key] = len(value), digest_of(value)
            size += len(value)
            done(size)
            yield key, value

    with kvsvr.open(run.store) as db:
        with run.screen.bar(f"load {len(files):,} files", total) as done:
            began = time.perf_counter()
            db.put_many(pairs(done), durable=True)
            seconds = time.perf_counter() - began
        held = {key: look(db, key) for key in digests}
        stats, count = db.stats(), len(db)
    run.held = {key: found for key, found in held.items() if found is not None}
    size = sum(run.sizes.values())
    section.lines += [
        f"{len(files):,} files, {megabytes(size)}, without site-packages and __pycache__",
        f"read, hashed, written, synced in {seconds:.2f} s: {rate(len(files), seconds)} files/s, "
        f"{rate(size / 1e6, seconds)} MB/s",
        f"{stats['segment_count']} segments, {stats['big_count']} large values in files of their own",
    ]
    if count != len(files):
        section.failures.append(f"the store counts {count:,} keys, not {len(files):,}")
    section.failures += [
        f"{key!r} does not hold the bytes of its file"
        for key, digest in digests.items()
        if key not in run.held or run.held[key].digest != digest
    ]


# --- query ---


def query(run: Run, section: Section) -> None:
    """Single gets beside the files, a miss, and one pass over everything by get_many."""
    began = time.perf_counter()
    with kvsvr.open(run.store, readonly=True) as db:
        opened = time.perf_counter() - began
        section.lines.append(f"opened read-only in {opened * 1000:.1f} ms: {len(db):,} keys")
        _gets(run, db, section)
        _get_many(run, db, section)


def _gets(run: Run, db: kvsvr.Engine, section: Section) -> None:
    keys = run.random.sample(sorted(run.sizes), min(SAMPLE_COUNT, len(run.sizes)))
    began = time.perf_counter()
    values = [db.get(key) for key in keys]
    seconds = time.perf_counter() - began
    wrong = [
        key for key, value in zip(keys, values, strict=True) if value != (run.source / os.fsdecode(key)).read_bytes()
    ]
    section.failures += [f"get({key!r}) is not what the file holds" for key in wrong]
    absent = b"no/such/module.py"
    if db.get(absent, b"nothing") != b"nothing" or absent in db:
        section.failures.append(f"{absent!r} was never written, and is there")
    equal_count = len(keys) - len(wrong)
    section.lines.append(
        f"{len(keys):,} gets, {rate(len(keys), seconds)}/s, {equal_count:,} equal to their files; a miss is a miss"
    )


def _get_many(run: Run, db: kvsvr.Engine, section: Section) -> None:
    keys = sorted(run.sizes)
    sizes: dict[bytes, int] = {}
    line_count = 0
    with run.screen.bar(f"get_many of {len(keys):,} values", len(keys)) as done:
        began = time.perf_counter()
        for start in range(0, len(keys), READ_COUNT):
            chunk = keys[start : start + READ_COUNT]
            for key, value in zip(chunk, db.get_many(chunk), strict=True):
                if value is not None:
                    sizes[key] = len(value)
                    line_count += value.count(b"\n") if key.endswith(b".py") else 0
            done(start + len(chunk))
        seconds = time.perf_counter() - began
    if sizes != run.sizes:
        section.failures.append("get_many gives other sizes than the files have")
    largest = max(sizes, key=lambda key: sizes[key])
    section.lines += [
        f"get_many of all: {rate(sum(sizes.values()) / 1e6, seconds)} MB/s; {line_count:,} lines of Python",
        f"largest: {os.fsdecode(largest)}, {megabytes(sizes[largest])}",
    ]


# --- kill ---


def kill(run: Run, section: Section, *, batch_count: int) -> None:
    """A writer overwrites a part and is killed; the store is reopened, and the witness' record is held against it."""
    kill_at = run.ack_count + run.random.randrange(run.ack_count)
    run.life_count += 1
    record = run.directory / f"witness-{run.life_count}.txt"
    with run.screen.bar(f"overwrite by {'put' if batch_count == 1 else 'batch'} until killed", kill_at) as heard:
        groups = _part(run, batch_count)
        life = run_until_killed(run.store, record, groups, run.next_number, kill_at=kill_at, heard=heard)
    if run.forge:
        life = replace(life, acks=[*life.acks, invented(life.acks)])
    after = _reopen(run, section, life)
    verdict = prove(life, run.held, after)
    control = prove(replace(life, acks=[*life.acks, invented(life.acks)]), run.held, after)
    _conclude(section, life, verdict, control)
    run.held |= {key: found for key, found in after.items() if found is not None}
    run.next_number = life.acks[-1].number + 2  # One more may have been in flight.


def _part(run: Run, batch_count: int) -> list[Group]:
    """The keys to overwrite, in another order each time, in groups of so many."""
    keys = [key for key in sorted(run.sizes) if run.sizes[key] <= PART_SIZE_MAX][::PART]
    run.random.shuffle(keys)
    return [tuple(keys[start : start + batch_count]) for start in range(0, len(keys), batch_count)]


def _reopen(run: Run, section: Section, life: Life) -> Contents:
    began = time.perf_counter()
    with kvsvr.open(run.store) as db:
        seconds = time.perf_counter() - began
        stats, count = db.stats(), len(db)
        after = {key: look(db, key) for key in run.held}
    size = sum(run.sizes[ack.key] for ack in life.acks)
    section.lines += [
        f"killed at {life.kill_count:,} acknowledgements, {len(life.acks):,} heard in all, {megabytes(size)}",
        f"{life.rate:,.0f} overwrites/s, each acknowledgement synced by the witness",
        f"recovered in {seconds * 1000:.1f} ms: {stats['replayed_count']:,} records replayed",
    ]
    if count != len(run.held):
        section.failures.append(f"the store counts {count:,} keys, not {len(run.held):,}")
    if stats["was_clean"]:
        section.failures.append("the store says it was closed: the kill came too late to prove anything")
    return after


def _conclude(section: Section, life: Life, verdict: Verdict, control: Verdict) -> None:
    faults = [Fault.LOST, Fault.TORN, *([Fault.HALVED] if len(life.groups[0]) > 1 else [])]
    counts = ", ".join(f"{verdict.count(fault)} {fault.value}" for fault in faults)
    section.lines += [
        f"{verdict.key_count:,} values checked: {counts}; {verdict.beyond_count} in flight",
        f"control: the same with an invented acknowledgement: {control.count(Fault.LOST)} lost",
    ]
    section.failures += [f"{finding.fault.value}: {finding.text}" for finding in verdict.findings]
    if control.count(Fault.LOST) == 0:
        section.failures.append("the check accepts a write that never happened, so it proves nothing")


STEPS: Final[tuple[tuple[str, Step], ...]] = (
    ("load", load),
    ("query", query),
    ("kill: puts", partial(kill, batch_count=1)),
    ("kill: batches", partial(kill, batch_count=BATCH_COUNT)),
    ("tables", tables),
    ("snapshot", snapshot),
    ("replicas", replicas),
)
