"""The engine against a naive twin: dicts of values with versions and expiries, which have never heard of a disk.

Hypothesis plays rules in any order. Restarts, kills, lost catalogs, readers beside the writer, snapshots and jumps of
the clock are rules like any other, and none of them may be seen in what the engine answers.

Tables are dicts of rows. Consumers of their changes keep copies, which they bring up to date now and then, and remember
nothing else but a version; they are not told of restarts and drops. A snapshot is compared with a copy of the twin.

Time: the store's clock is shifted in steps of 1,000 s, and a time to live is 500 s off such a step. So the seconds
that a run itself takes never decide whether something has expired. The twin takes from the store how late it knows it
is (stats: clock_ms), because that depends on which expiries were judged, and demands that it never goes back.

Long runs: KVSVR_HYPOTHESIS_EXAMPLES=2000 python -m pytest tests/store/test_state_machine.py -s
"""

from __future__ import annotations

import copy
import math
import os
import random
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import kvsvr
from kvsvr.store.engine import _writers

EXAMPLE_COUNT = int(os.environ.get("KVSVR_HYPOTHESIS_EXAMPLES", "80"))
STEP_COUNT = 40

INLINE_SIZE_MAX = 1 << 20
VALUE_SIZE_LIMIT = 4 << 20  # Of this test: appends to appended values would grow without end.
INT64_MIN, INT64_MAX = -(1 << 63), (1 << 63) - 1
TICK_S = 1000
LEFT_BEHIND = "compacted away"
DRIFT_S = TICK_S / 4
# The twin's clock does not run, so it is set ahead: what was to expire within the seconds of the run has expired.
AHEAD_S = TICK_S / 10


class Long(bytes):
    """Bytes that a failure prints in one line. That they are not quite `bytes` is a case of its own for the engine."""

    def __repr__(self) -> str:
        return f"Long({bytes(self[:1])!r} * {len(self)})"


KEYS = [b"a", b"b", b"counter", b"\0", b"large", Long(b"k" * 65_535)]

TABLES = [b"table", b"t2", Long(b"t" * 65_535)]
ROWS = [b"", b"r", b"counter", b"\0", b"\xff\xff", Long(b"r" * 65_535)]

keys = st.sampled_from(KEYS)
tables = st.sampled_from([b"table", b"table", *TABLES])
rows = st.sampled_from(ROWS)
bytes_of_any_size = st.one_of(
    st.binary(max_size=40),
    st.integers(-99, 99).map(lambda n: b"%d" % n),
    st.sampled_from([b"%d" % INT64_MAX, b"%d" % INT64_MIN, b"-0", b"01", b""]),
    st.builds(
        lambda size, byte: Long(bytes([byte]) * size),
        st.sampled_from([65_535, 65_536, 65_537, INLINE_SIZE_MAX - 1, INLINE_SIZE_MAX, INLINE_SIZE_MAX + 1, 3 << 20]),
        st.integers(0, 255),
    ),
)
small_or_any = st.one_of(st.binary(max_size=40), bytes_of_any_size)
ttls = st.one_of(st.none(), st.integers(0, 4).map(lambda ticks: ticks * TICK_S + TICK_S / 2))
openings = st.fixed_dictionaries(
    {
        "sync": st.sampled_from(["none", "batch", "always"]),
        "checkpoint_size": st.sampled_from([1, 100_000, None]),
        "write_calls": st.booleans(),
        # By the rule below: what has expired is deleted under a version of its own, and the twin has to hear of it.
        "compaction": st.just(False),
    }
)
catalogs = st.sampled_from(["newest", "older", "absent", "garbage", "short"])


# --- the twin ---


@dataclass(frozen=True)
class Record:
    """What a key holds: a value, or None once it was deleted."""

    value: bytes | None
    version: int
    expires: float | None = None


@dataclass
class TwinTable:
    """Rows with their newest records. `born` is the version of the first one, `floor` what trim() has raised."""

    born: int
    version: int
    expires: float | None = None
    floor: int = 0
    rows: dict[bytes, Record] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return sum(record.value is not None for record in self.rows.values())


@dataclass
class Twin:
    """Keys and tables, their newest records, and what time it is. Times are seconds since the test began."""

    records: dict[bytes, Record] = field(default_factory=dict)
    tables: dict[bytes, TwinTable] = field(default_factory=dict)
    forgotten: dict[bytes, int] = field(default_factory=dict)
    """Deletes that compaction let go of, and the least version they had: 0 now, or that again, after a replay of
    everything that still finds the record."""
    newest: int = 0
    wall: float = 0.0
    seen: float = -math.inf

    @property
    def now(self) -> float:
        return max(self.wall, self.seen)

    def view(self, key: bytes, now: float) -> Record | None:
        record = self.records.get(key)
        if record is None or record.value is None or (record.expires is not None and record.expires <= now):
            return None
        return record

    def look(self, key: bytes) -> Record | None:
        """What the engine is about to say; once it has said "expired", it may never say anything else."""
        found = self.view(key, self.now)
        record = self.records.get(key)
        if found is None and record is not None and record.value is not None:
            self.records[key] = replace(record, expires=-math.inf)
        return found

    def view_table(self, key: bytes, now: float) -> TwinTable | None:
        table = self.tables.get(key)
        return None if table is None or (table.expires is not None and table.expires <= now) else table

    def look_table(self, key: bytes) -> TwinTable | None:
        """As look()."""
        found = self.view_table(key, self.now)
        if found is None and key in self.tables:
            self.tables[key].expires = -math.inf
        return found

    def view_rows(self, key: bytes, now: float) -> dict[bytes, Record]:
        table = self.view_table(key, now)
        there = {} if table is None else table.rows
        return {
            bytes(row): record
            for row, record in sorted(there.items())
            if record.value is not None and (record.expires is None or record.expires > now)
        }

    def look_row(self, key: bytes, row: bytes) -> Record | None:
        table = self.look_table(key)
        record = None if table is None else table.rows.get(row)
        if table is None or record is None or record.value is None:
            return None
        if record.expires is not None and record.expires <= self.now:
            table.rows[row] = replace(record, expires=-math.inf)
            return None
        return record

    def write_row(
        self, key: bytes, row: bytes, value: bytes | None, version: int, expires: float | None = None
    ) -> None:
        assert version >= self.newest, "versions grow"
        self.newest = version
        self.forgotten.pop(key, None)
        if self.view_table(key, self.now) is None:
            self.tables[key] = TwinTable(version, version)
            self.records.pop(key, None)
        table = self.tables[key]
        table.version = version
        table.rows[row] = Record(value, version, expires)

    def drop_table(self, key: bytes, version: int) -> None:
        assert version > self.newest
        self.newest = version
        self.forgotten.pop(key, None)
        self.tables.pop(key, None)
        self.records[key] = Record(None, version)

    def deadline(self, ttl: float | None) -> float | None:
        return None if ttl is None else self.now + ttl

    def write(self, key: bytes, value: bytes | None, version: int, expires: float | None = None) -> None:
        assert version > self.newest, "versions grow and never repeat"
        self.newest = version
        self.forgotten.pop(key, None)
        self.records[key] = Record(value, version, expires)

    @property
    def key_count(self) -> int:
        """As len() has it: expired ones count until they are reclaimed."""
        return sum(record.value is not None for record in self.records.values())


def as_int64(value: bytes) -> int | None:
    if not re.fullmatch(rb"0|-?[1-9][0-9]{0,18}", value):
        return None
    return int(value) if INT64_MIN <= int(value) <= INT64_MAX else None


# --- what a kill leaves ---


def abandon(db: kvsvr.Engine) -> None:
    """Drops a store as kill -9 does: no seal, no sync, no cut; threads end, the lock goes."""
    held = db._shut.detach()
    assert held is not None
    handle, keeper, place = held[2]
    keeper.stop()
    _writers.leave(place)
    handle.__del__()


def snapshot_of(path: Path) -> list[tuple[str, int, int]]:
    found = []
    for folder, _, names in os.walk(path):
        for name in names:
            facts = os.stat(os.path.join(folder, name))
            found.append((os.path.join(folder, name), facts.st_size, facts.st_mtime_ns))
    return sorted(found)


def copy_of_one_moment(source: Path, target: Path) -> None:
    """The directory as a kill at one moment would leave it, although the store's own threads go on meanwhile.

    LOCK stays out: the lock belongs to the process, and closing any descriptor of the file would drop it.
    """
    while True:
        try:
            before = snapshot_of(source)
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("LOCK"))
            if snapshot_of(source) == before:
                return
        except (FileNotFoundError, shutil.Error):
            pass  # A segment under its temporary name, a retired value: it went while we looked.
        shutil.rmtree(target, ignore_errors=True)
        time.sleep(0.01)


@dataclass
class Consumer:
    """Keeps a copy of a table by its changes, and knows nothing else of it."""

    key: bytes
    since: int = 0
    copy: dict[bytes, bytes] = field(default_factory=dict)


@dataclass
class Frozen:
    snapshot: kvsvr.Snapshot
    twin: Twin
    now: float
    """What expiries are judged by."""


@dataclass
class Reader:
    db: kvsvr.Engine
    twin: Twin
    """As it was when the reader last looked."""


# --- the machine ---


class Machine(RuleBasedStateMachine):
    """Rules are the engine's methods and what happens to a store; each compares with the twin."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="kvsvr-"))
        self.path = self.root / "0"
        self.copy_count = 0
        self.twin = Twin()
        self.shift = 0
        self.start = time.time()
        self.readers: list[Reader] = []
        self.consumers: list[Consumer] = []
        self.frozen: list[Frozen] = []
        self.last_id: dict[bytes, int] = {}
        self.exact: set[float] = set()
        self.old_catalog: bytes | None = None

    @initialize(opening=openings)
    def begin(self, opening: dict[str, Any]) -> None:
        self.db = kvsvr.open(self.path, **opening)

    def teardown(self) -> None:
        for reader in self.readers:
            reader.db.close()
        if hasattr(self, "db"):
            self.db.close()
            self.forget_snapshots()
        shutil.rmtree(self.root)

    # --- time ---

    def seen_by(self, db: kvsvr.Engine) -> float:
        clock_ms: int = db.stats()["clock_ms"]
        return clock_ms / 1000 - self.start if clock_ms else -math.inf

    def note_time(self) -> None:
        seen = self.seen_by(self.db)
        assert seen >= self.twin.seen, "what the store knows of the time goes back"
        self.twin.seen = seen

    @invariant()
    def expiries_are_known_to_the_millisecond(self) -> None:
        """Of two things that got the same time to live, one expires some milliseconds before the other. When the clock
        has been set back to just that time, the twin must not take them for the same."""
        for key, record in self.twin.records.items():
            if self.is_unknown(record):
                found = self.db.get_versioned(key)
                self.twin.records[key] = self.known(record, found.expires_at if found else None)
        for key, table in self.twin.tables.items():
            if self.twin.view_table(key, self.twin.now) is None:
                continue
            if table.expires is not None and self.is_unknown(Record(b"", table.version, table.expires)):
                expires_at = self.db.table(key).expires_at
                table.expires = self.known(Record(b"", table.version, table.expires), expires_at).expires
            for row, record in table.rows.items():
                if self.is_unknown(record):
                    found = self.db.table(key).get_versioned(row)
                    table.rows[row] = self.known(record, found.expires_at if found else None)

    def is_unknown(self, record: Record) -> bool:
        expires = record.expires
        return (
            record.value is not None and expires is not None and expires > self.twin.now and expires not in self.exact
        )

    def known(self, record: Record, expires_at: float | None) -> Record:
        assert expires_at is not None
        expires = expires_at - self.start
        assert record.expires is not None
        assert abs(expires - record.expires) < DRIFT_S
        self.exact.add(expires)
        return replace(record, expires=expires)

    @rule(ticks=st.sampled_from([-3, -1, 1, 1, 2, 5]))
    def the_clock_jumps(self, ticks: int) -> None:
        self.shift += ticks * TICK_S
        self.twin.wall = self.shift + AHEAD_S
        for db in [self.db, *(reader.db for reader in self.readers)]:
            db._handle.shift_clock(self.shift)

    # --- reading ---

    def check_version(self, key: bytes) -> None:
        record, version = self.twin.records.get(key), self.db.wait(key, 0, 0)
        if key in self.twin.forgotten:
            assert version == 0 or version >= self.twin.forgotten[key]
        else:
            assert version == (record.version if record else 0)

    def check_record(self, key: bytes) -> None:
        expected, found = self.twin.look(key), self.db.get_versioned(key)
        self.note_time()
        self.check_version(key)
        if expected is None:
            assert found is None
            return
        assert found is not None
        assert found.value == expected.value
        assert found.version == expected.version
        if expected.expires is None:
            assert found.expires_at is None
        else:
            assert found.expires_at is not None
            assert abs(found.expires_at - self.start - expected.expires) < DRIFT_S

    def check_all(self) -> None:
        for key in KEYS:
            self.check_record(key)
        for key in TABLES:
            self.check_table(key)
        self.check_order()
        assert list(self.db.tables()) == sorted(
            bytes(key) for key in self.twin.tables if self.twin.view_table(key, self.twin.now)
        )
        assert len(self.db) == self.twin.key_count

    @rule(key=keys)
    def get(self, key: bytes) -> None:
        expected = self.twin.look(key)
        value = expected.value if expected else None
        assert self.db.get(key) == value
        assert self.db.get(key, b"default") == (b"default" if expected is None else value)
        assert (key in self.db) == (expected is not None)
        if expected is None:
            with pytest.raises(KeyError):
                self.db[key]
        else:
            assert self.db[key] == value
        self.note_time()

    @rule(key=keys)
    def ttl(self, key: bytes) -> None:
        expected, left = self.twin.look(key), self.db.ttl(key)
        self.note_time()
        if expected is None or expected.expires is None:
            assert left is None
        else:
            assert left is not None
            assert abs(left - (expected.expires - self.twin.now)) < DRIFT_S

    def check_order(
        self, start: bytes | None = None, stop: bytes | None = None, limit: int | None = None, reverse: bool = False
    ) -> None:
        # Which keys a page looks at is its own affair, and so is what it then knows of the time: the twin comes second.
        found = list(self.db.scan(start, stop, limit=limit, reverse=reverse))
        self.note_time()
        in_range = [key for key in sorted(self.twin.records) if (start or b"") <= key and (stop is None or key < stop)]
        there = [(bytes(key), record.value) for key in in_range if (record := self.twin.view(key, self.twin.now))]
        assert found == (there[::-1] if reverse else there)[:limit]
        assert list(self.db.keys(start, stop, limit=limit, reverse=reverse)) == [key for key, _ in found]

    @rule(
        start=st.one_of(st.none(), keys, st.binary(max_size=2)),
        stop=st.one_of(st.none(), keys, st.binary(max_size=2)),
        limit=st.one_of(st.none(), st.integers(0, 4)),
        reverse=st.booleans(),
    )
    def scan(self, start: bytes | None, stop: bytes | None, limit: int | None, reverse: bool) -> None:
        self.check_order(start, stop, limit, reverse)

    @rule(wanted=st.lists(keys, max_size=8))
    def get_many(self, wanted: list[bytes]) -> None:
        expected = [self.twin.look(key) for key in wanted]
        assert self.db.get_many(wanted) == [record.value if record else None for record in expected]
        self.note_time()

    @rule()
    def everything_is_the_same(self) -> None:
        self.check_all()

    # --- writing ---

    @rule(key=keys, value=small_or_any, ttl=ttls, durable=st.booleans(), as_item=st.booleans())
    def put(self, key: bytes, value: bytes, ttl: float | None, durable: bool, as_item: bool) -> None:
        if as_item and ttl is None:
            self.db[key] = value
            self.twin.write(key, value, self.db.wait(key, 0, 0))
            return
        expires = self.twin.deadline(ttl)
        self.twin.write(key, value, self.db.put(key, value, ttl=ttl, durable=durable), expires)

    @rule(key=keys, as_item=st.booleans())
    def delete(self, key: bytes, as_item: bool) -> None:
        expected = self.twin.look(key)
        if not as_item:
            assert self.db.delete(key) == (expected is not None)
        elif expected is not None:
            del self.db[key]
        else:
            with pytest.raises(KeyError):
                del self.db[key]
        self.note_time()
        if expected is not None:
            self.twin.write(key, None, self.db.wait(key, 0, 0))

    @rule(key=keys, right=st.booleans())
    def delete_at_a_version(self, key: bytes, right: bool) -> None:
        expected = self.twin.look(key)
        current = expected.version if expected else 0
        if right and current:
            assert self.db.delete(key, version=current)
            self.twin.write(key, None, self.db.wait(key, 0, 0))
        else:
            with pytest.raises(kvsvr.VersionConflict) as caught:
                self.db.delete(key, version=current + 1)
            assert caught.value.current == current
        self.note_time()

    @rule(key=keys, value=small_or_any, ttl=ttls, right=st.booleans())
    def cas(self, key: bytes, value: bytes, ttl: float | None, right: bool) -> None:
        expected = self.twin.look(key)
        current = expected.version if expected else 0
        if right:
            version = self.db.cas(key, value, current, ttl=ttl)
            self.note_time()
            self.twin.write(key, value, version, self.twin.deadline(ttl))
        else:
            with pytest.raises(kvsvr.VersionConflict) as caught:
                self.db.cas(key, value, current + 1, ttl=ttl)
            assert caught.value.current == current
            self.note_time()

    def kept_or(self, expected: Record | None, ttl: float | None) -> float | None:
        """incr and append keep the expiry unless they are given one."""
        return self.twin.deadline(ttl) if ttl is not None else expected.expires if expected else None

    @rule(key=st.sampled_from([b"counter", b"counter", *KEYS]), by=st.sampled_from([1, -1, 7, 0, INT64_MAX, INT64_MIN]))
    def incr(self, key: bytes, by: int) -> None:
        self.add(key, by, None)

    @rule(key=st.sampled_from([b"counter", *KEYS]), ttl=ttls)
    def incr_with_ttl(self, key: bytes, ttl: float | None) -> None:
        self.add(key, 1, ttl)

    def add(self, key: bytes, by: int, ttl: float | None) -> None:
        expected = self.twin.look(key)
        number = as_int64(expected.value) if expected and expected.value is not None else 0
        if number is None:
            with pytest.raises(kvsvr.WrongType):
                self.db.incr(key, by, ttl=ttl)
        elif not INT64_MIN <= number + by <= INT64_MAX:
            with pytest.raises(kvsvr.UsageError):
                self.db.incr(key, by, ttl=ttl)
        else:
            assert self.db.incr(key, by, ttl=ttl) == number + by
            self.note_time()
            self.twin.write(key, b"%d" % (number + by), self.db.wait(key, 0, 0), self.kept_or(expected, ttl))
        self.note_time()

    @rule(key=keys, data=small_or_any, ttl=ttls)
    def append(self, key: bytes, data: bytes, ttl: float | None) -> None:
        expected = self.twin.look(key)
        value = (expected.value or b"" if expected else b"") + data
        if len(value) > VALUE_SIZE_LIMIT:
            return
        assert self.db.append(key, data, ttl=ttl) == len(value)
        self.note_time()
        self.twin.write(key, value, self.db.wait(key, 0, 0), self.kept_or(expected, ttl))

    @rule(key=keys, ttl=ttls.filter(bool))
    def expire(self, key: bytes, ttl: float) -> None:
        expected = self.twin.look(key)
        assert self.db.expire(key, ttl) == (expected is not None)
        self.note_time()
        if expected is not None:
            self.twin.write(key, expected.value, self.db.wait(key, 0, 0), self.twin.deadline(ttl))

    @rule(key=keys)
    def persist(self, key: bytes) -> None:
        expected = self.twin.look(key)
        does = expected is not None and expected.expires is not None
        assert self.db.persist(key) == does
        self.note_time()
        if expected is not None and does:
            self.twin.write(key, expected.value, self.db.wait(key, 0, 0))

    @rule(pairs=st.lists(st.tuples(keys, small_or_any), max_size=8), ttl=ttls)
    def put_many(self, pairs: list[tuple[bytes, bytes]], ttl: float | None) -> None:
        expires = self.twin.deadline(ttl)
        assert self.db.put_many(pairs, ttl=ttl) == len(pairs)
        last = dict(pairs)
        versions = {key: self.db.wait(key, 0, 0) for key in last}
        # In the order in which the last pair of each key came.
        order = sorted(last, key=lambda key: max(n for n, pair in enumerate(pairs) if pair[0] == key))
        for key in order:
            self.twin.write(key, last[key], versions[key], expires)

    @rule(wanted=st.lists(keys, max_size=8))
    def delete_many(self, wanted: list[bytes]) -> None:
        there = [key for key in dict.fromkeys(wanted) if self.twin.look(key) is not None]
        assert self.db.delete_many(wanted) == len(there)
        self.note_time()
        for key in there:
            self.twin.write(key, None, self.db.wait(key, 0, 0))

    @rule(steps=st.lists(st.tuples(keys, st.one_of(st.none(), small_or_any), ttls), max_size=8), durable=st.booleans())
    def batch(self, steps: list[tuple[bytes, bytes | None, float | None]], durable: bool) -> None:
        last = {key: (value, ttl) for key, value, ttl in steps}
        now = self.twin.now
        gone = [key for key, (value, _) in last.items() if value is None and self.twin.look(key) is None]
        with self.db.batch(durable=durable) as batch:
            for key, value, ttl in steps:
                if value is None:
                    batch.delete(key)
                else:
                    batch.put(key, value, ttl)
        self.note_time()
        done = {key: step for key, step in last.items() if key not in gone}
        assert batch.version is not None
        assert (batch.version > self.twin.newest) if done else (batch.version == 0)
        for key, (value, ttl) in done.items():
            expires = None if ttl is None or value is None else now + ttl
            self.twin.records[key] = Record(value, batch.version, expires)
        self.twin.newest = max(self.twin.newest, batch.version)

    @rule(key=keys)
    def a_batch_given_up(self, key: bytes) -> None:
        with pytest.raises(LookupError), self.db.batch() as batch:
            batch.put(key, b"never")
            raise LookupError
        self.check_record(key)

    @rule(
        reads=st.lists(keys, min_size=1, max_size=6),
        steps=st.lists(st.tuples(keys, st.one_of(st.none(), small_or_any), ttls), max_size=6),
        between=st.sampled_from([None, "put", "put", "delete", "expire", "time"]),
        to_what_was_read=st.booleans(),
        again=st.lists(keys, max_size=3),
        durable=st.booleans(),
    )
    def transaction(
        self,
        reads: list[bytes],
        steps: list[tuple[bytes, bytes | None, float | None]],
        between: str | None,
        to_what_was_read: bool,
        again: list[bytes],
        durable: bool,
    ) -> None:
        """Reads, perhaps somebody else's write or a while, more reads, then its own writes: whole, or a conflict."""
        seen: dict[bytes, Record | None] = {}
        conflict = False
        try:
            with self.db.transaction(durable=durable) as t:
                for key in reads:
                    self.read_in(t, key, seen)
                if between is not None:
                    self.interfere(reads[-1] if to_what_was_read else KEYS[0], between)
                for key in again:
                    conflict = key not in seen and self.overtaken(seen)
                    self.read_in(t, key, seen)
                for key, value, ttl in steps:
                    if value is None:
                        t.delete(key)
                    else:
                        t.put(key, value, ttl)
                for key, value, _ in steps[-1:]:
                    assert t.get(key) == value
                deadlines = {key: self.twin.deadline(ttl) for key, _, ttl in steps}
                conflict = self.overtaken(seen)
        except kvsvr.VersionConflict as error:
            assert conflict
            now = self.twin.look(error.key)
            assert error.current == (now.version if now else 0)
            assert now != seen[error.key]
            self.note_time()
            assert t.version is None
            for key, _, _ in steps:
                self.check_record(key)
            return
        assert not conflict
        self.note_time()
        self.wrote(t.version, {key: value for key, value, _ in steps}, deadlines)

    def read_in(self, t: kvsvr.Transaction, key: bytes, seen: dict[bytes, Record | None]) -> None:
        value = t.get(key)
        if key not in seen:
            seen[key] = self.twin.look(key)
        record = seen[key]
        assert value == (record.value if record else None)
        assert (key in t) == (record is not None)
        self.note_time()

    def overtaken(self, seen: dict[bytes, Record | None]) -> bool:
        """Whether something is not as it was seen. Looks no further than the first: that is what the engine does."""
        return any(self.twin.look(key) != record for key, record in seen.items())

    def interfere(self, key: bytes, how: str) -> None:
        match how:
            case "put":
                self.twin.write(key, b"between", self.db.put(key, b"between"))
            case "delete":
                self.delete(key, as_item=False)
            case "expire":
                self.expire(key, TICK_S / 2)
            case "time":
                self.the_clock_jumps(1)

    def wrote(self, version: int | None, last: dict[bytes, bytes | None], deadlines: dict[bytes, float | None]) -> None:
        done = {key: value for key, value in last.items() if value is not None or self.twin.look(key) is not None}
        assert version is not None
        assert (version > self.twin.newest) if done else (version == 0)
        for key, value in done.items():
            self.twin.records[key] = Record(value, version, None if value is None else deadlines[key])
        self.twin.newest = max(self.twin.newest, version)

    @rule(pairs=st.integers(1, 3))
    def much_is_written(self, pairs: int) -> None:
        """So that segments end, and the index grows, within few steps."""
        self.db.put_many((b"bulk%d" % n, b"b" * 1000) for n in range(pairs * 1000))
        for n in range(pairs * 1000):
            self.twin.records[b"bulk%d" % n] = Record(b"b" * 1000, self.db.wait(b"bulk%d" % n, 0, 0))
        self.twin.newest = self.db.wait(b"bulk%d" % (pairs * 1000 - 1), 0, 0)

    # --- tables ---

    def check_table(self, key: bytes) -> None:
        t = self.db.table(key)
        if self.refused(key, t.get, b"r"):
            return
        found = list(t.rows())
        self.note_time()
        there = self.twin.view_rows(key, self.twin.now)
        table = self.twin.look_table(key)
        assert found == [(row, record.value) for row, record in there.items()]
        assert list(t.rows(reverse=True)) == found[::-1]
        assert list(t) == [row for row, _ in found]
        assert (len(t), t.version) == ((table.count, table.version) if table else (0, 0))
        assert key not in self.db
        for row, record in there.items():
            versioned = t.get_versioned(row)
            assert versioned is not None
            assert (versioned.value, versioned.version) == (record.value, record.version)
            assert (versioned.expires_at is None) == (record.expires is None)
        if table is not None:
            assert self.db.wait(t, 0, 0) == table.version
            with pytest.raises(kvsvr.WrongType):
                self.db.get(key)

    def refused(self, key: bytes, call: Callable[..., object], *arguments: Any) -> bool:
        """Whether the key holds a value; then no call on a table under it goes through."""
        if self.twin.look(key) is None:
            self.note_time()
            return False
        with pytest.raises(kvsvr.WrongType):
            call(*arguments)
        self.note_time()
        return True

    @rule(key=tables, value=small_or_any)
    def a_value_replaces_a_table(self, key: bytes, value: bytes) -> None:
        version = self.db.put(key, value)
        self.twin.tables.pop(key, None)
        self.twin.write(key, value, version)

    @rule(key=tables, how=st.sampled_from(["drop", "delete", "delete_many", "batch"]))
    def drop(self, key: bytes, how: str) -> None:
        there = self.twin.look_table(key) is not None
        if how == "drop":
            if self.refused(key, self.db.table(key).drop):
                return
            assert self.db.table(key).drop() == there
        elif how == "delete_many":
            assert self.db.delete_many([key]) == (there or self.twin.look(key) is not None)
        elif how == "batch":
            with self.db.batch() as batch:
                batch.delete(key)
        else:
            assert self.db.delete(key) == (there or self.twin.look(key) is not None)
        self.note_time()
        if there or self.twin.look(key) is not None:
            self.twin.drop_table(key, self.db.wait(key, 0, 0))

    @rule(key=tables, row=rows, value=small_or_any, ttl=ttls, durable=st.booleans())
    def row_put(self, key: bytes, row: bytes, value: bytes, ttl: float | None, durable: bool) -> None:
        t = self.db.table(key)
        self.twin.look_table(key)
        if not self.refused(key, t.put, row, value):
            expires = self.twin.deadline(ttl)
            self.twin.write_row(key, row, value, t.put(row, value, ttl=ttl, durable=durable), expires)
            self.note_time()

    @rule(key=tables, row=rows)
    def row_delete(self, key: bytes, row: bytes) -> None:
        t = self.db.table(key)
        if not self.refused(key, t.delete, row):
            there = self.twin.look_row(key, row) is not None
            assert t.delete(row) == there
            self.note_time()
            if there:
                self.twin.write_row(key, row, None, t.version)

    @rule(key=tables, row=rows, value=small_or_any, right=st.booleans(), delete=st.booleans())
    def row_cas(self, key: bytes, row: bytes, value: bytes, right: bool, delete: bool) -> None:
        t = self.db.table(key)
        if self.refused(key, t.cas, row, value, 0):
            return
        expected = self.twin.look_row(key, row)
        current = expected.version if expected else 0
        if not right:
            with pytest.raises(kvsvr.VersionConflict) as caught:
                t.delete(row, version=current + 1) if delete else t.cas(row, value, current + 1)
            assert (caught.value.current, caught.value.table) == (current, key)
        elif not delete:
            self.twin.write_row(key, row, value, t.cas(row, value, current))
        elif current:
            assert t.delete(row, version=current)
            self.twin.write_row(key, row, None, t.version)
        self.note_time()

    @rule(key=tables, row=st.sampled_from([b"counter", *ROWS]), ttl=ttls)
    def row_incr(self, key: bytes, row: bytes, ttl: float | None) -> None:
        t = self.db.table(key)
        if self.refused(key, t.incr, row):
            return
        expected = self.twin.look_row(key, row)
        number = as_int64(expected.value) if expected and expected.value is not None else 0
        if number is None:
            with pytest.raises(kvsvr.WrongType):
                t.incr(row)
        elif number < INT64_MAX:
            assert t.incr(row, ttl=ttl) == number + 1
            self.twin.write_row(key, row, b"%d" % (number + 1), t.version, self.kept_or(expected, ttl))
        self.note_time()

    @rule(key=tables, values=st.lists(small_or_any, min_size=1, max_size=4), ttl=ttls, together=st.booleans())
    def row_append(self, key: bytes, values: list[bytes], ttl: float | None, together: bool) -> None:
        t = self.db.table(key)
        self.twin.look_table(key)
        if self.refused(key, t.append, b""):
            return
        expires = self.twin.deadline(ttl)
        if together:
            with self.db.batch() as batch:
                appended = [batch.table(key).append(value, ttl) for value in values]
            assert batch.version == t.version > self.twin.newest
            names = [one.row for one in appended]
        else:
            names = [t.append(values[0], ttl=ttl)]
        for name, value in zip(names, values, strict=False):
            assert int.from_bytes(name) > self.last_id.get(key, 0), "ids grow and never repeat"
            self.last_id[key] = int.from_bytes(name)
            self.twin.write_row(key, name, value, t.version, expires)
        self.note_time()

    @rule(key=tables, pairs=st.lists(st.tuples(rows, small_or_any), max_size=6), ttl=ttls)
    def row_put_many(self, key: bytes, pairs: list[tuple[bytes, bytes]], ttl: float | None) -> None:
        t = self.db.table(key)
        self.twin.look_table(key)
        if self.refused(key, t.put, b"", b""):
            return
        expires = self.twin.deadline(ttl)
        assert t.put_many(pairs, ttl=ttl) == len(pairs)
        # Large ones are written in several batches; a row is of the last that it is in.
        found = {row: t.get_versioned(row) for row, _ in pairs}
        versions = {row: one.version for row, one in found.items() if one is not None}
        for row, value in sorted(dict(pairs).items(), key=lambda pair: versions[pair[0]]):
            self.twin.write_row(key, row, value, versions[row], expires)
        self.note_time()

    @rule(key=tables, start=st.one_of(st.none(), rows), stop=st.one_of(st.none(), rows))
    def row_delete_range(self, key: bytes, start: bytes | None, stop: bytes | None) -> None:
        t = self.db.table(key)
        if self.refused(key, t.delete_range):
            return
        count = t.delete_range(start, stop)
        self.note_time()
        there = self.twin.view_rows(key, self.twin.now)
        gone = [row for row in there if (start or b"") <= row and (stop is None or row < stop)]
        assert count == len(gone)
        for row in gone:
            self.twin.write_row(key, row, None, t.version)

    @rule(key=tables, ttl=ttls)
    def a_table_expires_or_persists(self, key: bytes, ttl: float | None) -> None:
        if self.twin.look(key) is not None:
            return
        table = self.twin.look_table(key)
        if ttl is None:
            assert self.db.persist(key) == (table is not None and table.expires is not None)
        else:
            assert self.db.expire(key, ttl) == (table is not None)
        self.note_time()
        if table is not None and (ttl is not None or table.expires is not None):
            table.expires = self.twin.deadline(ttl)
            table.version = self.twin.newest = self.db.table(key).version
            left = self.db.ttl(key)
            assert (left is None) == (table.expires is None) == (self.db.table(key).expires_at is None)

    @rule(
        key=tables,
        start=st.one_of(st.none(), rows, st.binary(max_size=2)),
        stop=st.one_of(st.none(), rows, st.binary(max_size=2)),
        limit=st.one_of(st.none(), st.integers(0, 4)),
        reverse=st.booleans(),
    )
    def row_scan(self, key: bytes, start: bytes | None, stop: bytes | None, limit: int | None, reverse: bool) -> None:
        t = self.db.table(key)
        if self.refused(key, lambda: list(t.rows())):
            return
        found = list(t.rows(start, stop, limit=limit, reverse=reverse))
        self.note_time()
        there = self.twin.view_rows(key, self.twin.now)
        in_range = [
            (row, record.value)
            for row, record in there.items()
            if (start or b"") <= row and (stop is None or row < stop)
        ]
        assert found == (in_range[::-1] if reverse else in_range)[:limit]
        assert list(t.keys(start, stop, limit=limit, reverse=reverse)) == [row for row, _ in found]
        assert t.last(2) == [(row, record.value) for row, record in there.items()][-2:]

    @rule(
        steps=st.lists(
            st.tuples(st.sampled_from([*KEYS[:2], *TABLES]), rows, st.one_of(st.none(), small_or_any)), max_size=6
        ),
        reads=st.lists(st.tuples(tables, rows), max_size=3),
        between=st.booleans(),
    )
    def a_transaction_with_rows(
        self, steps: list[tuple[bytes, bytes, bytes | None]], reads: list[tuple[bytes, bytes]], between: bool
    ) -> None:
        """Keys and rows of several tables, under one version; a row that was read and is overtaken is a conflict."""
        if any(self.twin.look(key) is not None for key in TABLES):
            return
        last: dict[tuple[bytes, bytes], bytes | None] = {}
        overtaken = False
        try:
            with self.db.transaction() as t:
                for key, row in reads:
                    expected = self.twin.look_row(key, row)
                    assert t.table(key).get(row) == (expected.value if expected else None)
                    self.note_time()
                if between and reads:
                    self.row_put(*reads[0], b"between", None, False)
                    overtaken = True
                for key, row, value in steps:
                    if key in TABLES:
                        rows_ = t.table(key)
                        rows_.delete(row) if value is None else rows_.put(row, value)
                        assert rows_.get(row) == value
                    else:
                        t.delete(key) if value is None else t.put(key, value)
                    last[key, row if key in TABLES else b""] = value
        except kvsvr.VersionConflict as error:
            assert overtaken
            assert (error.table, error.key) == reads[0]
            self.note_time()
            return
        assert not overtaken
        self.note_time()
        wrote = False
        for (key, row), value in last.items():
            before = self.twin.look_row(key, row) if key in TABLES else self.twin.look(key)
            if value is None and before is None:
                continue
            wrote = True
            assert t.version is not None
            if key in TABLES:
                self.twin.write_row(key, row, value, t.version)
            else:
                self.twin.records[key] = Record(value, t.version)
                self.twin.newest = t.version
        assert bool(t.version) == wrote
        for key in KEYS[:2]:
            self.check_record(key)

    # --- changes ---

    @precondition(lambda self: len(self.consumers) < 3)
    @rule(key=tables)
    def a_consumer_comes(self, key: bytes) -> None:
        self.consumers.append(Consumer(key))

    @precondition(lambda self: self.consumers)
    @rule(limit=st.sampled_from([None, 1, 2]), page_count=st.integers(1, 5), data=st.data())
    def a_consumer_looks(self, limit: int | None, page_count: int, data: st.DataObject) -> None:
        """Some pages, perhaps not all; whoever has seen all has the table."""
        consumer = data.draw(st.sampled_from(self.consumers), "consumer")
        t = self.db.table(consumer.key)
        if self.refused(consumer.key, t.changes, consumer.since):
            return
        for _ in range(page_count):
            page = t.changes(consumer.since, limit)
            self.note_time()
            table = self.twin.look_table(consumer.key)
            floor = max(table.born, table.floor) if table else 1
            assert page.complete == (consumer.since == 0 or (table is not None and consumer.since >= floor))
            if not page.complete:
                consumer.since, consumer.copy = 0, {}
                continue
            self.check_page(consumer, table, page)
            consumer.copy.update(page.rows)
            for row in page.deleted:
                consumer.copy.pop(row, None)
            consumer.since = page.version
            if not page.more:
                assert consumer.since == (table.version if table else 0)
                self.check_copy(consumer)
                break

    def check_page(self, consumer: Consumer, table: TwinTable | None, page: kvsvr.Changes) -> None:
        """Everything in (since, version], and nothing else: no version is split."""
        expected = {
            bytes(row): record
            for row, record in (table.rows if table else {}).items()
            if consumer.since < record.version <= page.version
        }
        floor = table.floor if table else 0
        listed = {*page.deleted, *(row for row, _ in page.rows)}
        assert len(listed) == len(page.rows) + len(page.deleted)
        # Deletes below the floor may be forgotten.
        missing = expected.keys() - listed
        assert listed <= expected.keys()
        assert all(expected[row].value is None and expected[row].version <= floor for row in missing)
        now = self.twin.now
        for row, value in page.rows:
            assert value == expected[row].value
        for row in page.deleted:
            record = expected[row]
            assert record.value is None or (record.expires is not None and record.expires <= now)

    def check_copy(self, consumer: Consumer) -> None:
        """Rows that expire are no changes: who knows of it drops them by himself."""
        there = {row: record.value for row, record in self.twin.view_rows(consumer.key, self.twin.now).items()}
        table = self.twin.view_table(consumer.key, self.twin.now)
        expired = {bytes(row) for row, record in (table.rows if table else {}).items() if record.value is not None}
        assert {row: value for row, value in consumer.copy.items() if row in there or row not in expired} == there

    @rule(key=tables, back=st.integers(0, 3))
    def trim(self, key: bytes, back: int) -> None:
        t = self.db.table(key)
        if self.refused(key, t.trim, 1):
            return
        table = self.twin.look_table(key)
        wanted = max(0, self.twin.newest - back)
        floor = t.trim(wanted)
        self.note_time()
        if table is None:
            assert floor == 0
            return
        table.floor = max(table.floor, min(wanted, table.version))
        assert floor == table.floor
        assert t.version == table.version, "a trim is no change"

    # --- snapshots ---

    @precondition(lambda self: len(self.frozen) < 3)
    @rule()
    def a_snapshot_is_taken(self) -> None:
        snapshot = self.db.snapshot()
        twin = copy.deepcopy(self.twin)
        assert snapshot.version >= twin.newest
        self.frozen.append(Frozen(snapshot, twin, twin.now))
        self.check_snapshot(self.frozen[-1])

    @precondition(lambda self: self.frozen)
    @rule()
    def snapshots_are_read(self) -> None:
        for one in self.frozen:
            self.check_snapshot(one)

    @precondition(lambda self: self.frozen)
    @rule(data=st.data())
    def a_snapshot_is_closed(self, data: st.DataObject) -> None:
        one = self.frozen.pop(data.draw(st.integers(0, len(self.frozen) - 1), "snapshot"))
        one.snapshot.close()
        with pytest.raises(kvsvr.ClosedError):
            one.snapshot.get(b"a")

    def check_snapshot(self, one: Frozen) -> None:
        s, twin = one.snapshot, one.twin
        there = {bytes(key): record for key in sorted(twin.records) if (record := twin.view(key, one.now))}
        assert list(s.scan()) == [(key, record.value) for key, record in there.items()]
        assert list(s.keys(reverse=True)) == list(there)[::-1]
        values = [there[key].value if key in there else None for key in map(bytes, KEYS)]
        assert s.get_many(KEYS) == values
        assert [s.get(key) for key in KEYS] == values
        assert [key in s for key in KEYS] == [bytes(key) in there for key in KEYS]
        shown = {bytes(key): table for key in twin.tables if (table := twin.view_table(key, one.now))}
        assert list(s.tables()) == sorted(shown)
        for key in TABLES:
            if bytes(key) not in there:
                self.check_table_of_snapshot(s.table(key), shown.get(bytes(key)), twin.view_rows(key, one.now))
        self.note_time()

    def check_table_of_snapshot(
        self, t: kvsvr.store.TableReads, table: TwinTable | None, rows: dict[bytes, Record]
    ) -> None:
        expected = [(row, record.value) for row, record in rows.items()]
        assert list(t.rows()) == expected
        assert t.last(3) == expected[-3:]
        assert (len(t), t.version) == ((table.count, table.version) if table else (0, 0))
        for row, record in rows.items():
            found = t.get_versioned(row)
            assert found is not None
            assert (found.value, found.version) == (record.value, record.version)
        page = t.changes(0)
        assert page.complete
        assert sorted(page.rows) == expected or page.more

    def forget_snapshots(self) -> None:
        """The store they were of is closed, or killed."""
        for one in self.frozen:
            with pytest.raises(kvsvr.ClosedError):
                one.snapshot.get(b"a")
            one.snapshot.close()
        self.frozen.clear()

    @rule()
    def sync(self) -> None:
        self.db.sync()
        assert self.db.stats()["unsynced_size"] == 0

    # --- what happens to a store ---

    def reopen(self, opening: dict[str, Any], catalog: str) -> dict[str, Any]:
        """What the store says of itself before anybody has asked it for a key."""
        file = self.path / "catalog.mdb"
        newest = file.read_bytes() if file.exists() else None
        match catalog:
            case "absent":
                file.unlink(missing_ok=True)
            case "garbage":
                file.write_bytes(random.Random(0).randbytes(9000))
            case "short" if newest is not None:
                file.write_bytes(newest[: len(newest) // 2])
            case "older" if self.old_catalog is not None:
                file.write_bytes(self.old_catalog)
        self.old_catalog = newest or self.old_catalog
        self.db = kvsvr.open(self.path, **opening)
        self.db._handle.shift_clock(self.shift)
        stats = self.db.stats()
        assert stats["sequence"] >= self.twin.newest
        self.note_time()
        self.check_all()
        for n in (0, 999, 1000, 2999):
            self.check_record(b"bulk%d" % n)
        return stats

    @rule(opening=openings, catalog=catalogs)
    def close_and_open(self, opening: dict[str, Any], catalog: str) -> None:
        sequence = self.db.stats()["sequence"]
        self.db.close()
        self.forget_snapshots()
        stats = self.reopen(opening, catalog)
        assert stats["was_clean"] == 1
        assert stats["sequence"] == sequence

    @rule(opening=openings, catalog=catalogs)
    def kill_and_open(self, opening: dict[str, Any], catalog: str) -> None:
        abandon(self.db)
        self.forget_snapshots()
        self.reopen(opening, catalog)

    @rule(opening=openings, catalog=catalogs)
    def a_copy_of_the_open_directory_is_opened(self, opening: dict[str, Any], catalog: str) -> None:
        """And goes on in place of the first one, whose readers are left behind."""
        self.copy_count += 1
        target = self.root / str(self.copy_count)
        copy_of_one_moment(self.path, target)
        for reader in self.readers:
            reader.db.close()
        self.readers.clear()
        self.db.close()
        self.forget_snapshots()
        shutil.rmtree(self.path)
        self.path = target
        self.reopen(opening, catalog)

    @rule()
    def compact(self) -> None:
        """Everything that can be given back is; what has expired is deleted, and deletes may be forgotten."""
        before = {key: table.version for key, table in self.twin.tables.items()}
        self.db.compact()
        self.note_time()
        for key, record in list(self.twin.records.items()):
            self.compacted_key(key, record)
        for key, table in list(self.twin.tables.items()):
            if table.expires is not None and table.expires <= self.twin.now:
                del self.twin.tables[key]
                self.deleted(key, table.version + 1)
            else:
                self.compacted_table(key, table, before[key])
        self.check_all()

    def compacted_key(self, key: bytes, record: Record) -> None:
        gone = record.value is not None and record.expires is not None and record.expires <= self.twin.now
        if not gone and record.value is not None:
            return
        self.deleted(key, record.version + gone)

    def deleted(self, key: bytes, least: int) -> None:
        version = self.db.wait(key, 0, 0)
        self.twin.records[key] = Record(None, version)
        self.twin.newest = max(self.twin.newest, version)
        if version == 0:
            self.twin.forgotten.setdefault(key, least)
        else:
            assert version >= least

    def compacted_table(self, key: bytes, table: TwinTable, since: int) -> None:
        """Rows that have expired are deletes now, each of a version of its own, as a consumer hears of them."""
        gone = {
            bytes(row)
            for row, record in table.rows.items()
            if record.value is not None and record.expires is not None and record.expires <= self.twin.now
        }
        more = True
        while more:
            page = self.db.table(key).changes(since, 1)
            assert not page.rows
            for row in page.deleted:
                gone.remove(row)
                table.rows[row] = Record(None, page.version)
            since, more = page.version, page.more
        assert not gone
        table.version = since
        self.twin.newest = max(self.twin.newest, since)

    # --- readers ---

    @precondition(lambda self: len(self.readers) < 2)
    @rule()
    def a_reader_comes(self) -> None:
        db = kvsvr.open(self.path, readonly=True)
        db._handle.shift_clock(self.shift)
        self.readers.append(Reader(db, copy.deepcopy(self.twin)))
        self.check_reader(self.readers[-1])

    @precondition(lambda self: self.readers)
    @rule()
    def readers_read(self) -> None:
        for reader in self.readers:
            try:
                self.check_reader(reader)
            except kvsvr.KvError as error:
                assert LEFT_BEHIND in str(error)
                self.refresh(reader)
                reader.twin = copy.deepcopy(self.twin)
                self.check_reader(reader)

    def refresh(self, reader: Reader) -> None:
        """What compaction took away before a reader had read it makes it begin anew."""
        try:
            reader.db.refresh()
        except kvsvr.KvError as error:
            assert LEFT_BEHIND in str(error)
            reader.db.close()
            reader.db = kvsvr.open(self.path, readonly=True)
            reader.db._handle.shift_clock(self.shift)

    @precondition(lambda self: self.readers)
    @rule()
    def readers_refresh(self) -> None:
        for reader in self.readers:
            self.refresh(reader)
            reader.twin = copy.deepcopy(self.twin)
            self.check_reader(reader)
            assert reader.db.refresh() == 0
            assert len(reader.db) == self.twin.key_count

    @precondition(lambda self: self.readers)
    @rule()
    def a_reader_goes(self) -> None:
        self.readers.pop().db.close()

    def check_reader(self, reader: Reader) -> None:
        """It shows what it last took in; a value whose file has gone since then lets it look again by itself."""
        now = max(self.twin.wall, self.seen_by(reader.db))
        many = reader.db.get_many(KEYS)
        for key, value in zip(KEYS, many, strict=True):
            expected = [twin.view(key, now) for twin in (reader.twin, self.twin)]
            allowed = [record.value if record else None for record in expected]
            if all(len(record.value or b"") <= INLINE_SIZE_MAX for record in reader.twin.records.values()):
                del allowed[1]
            assert value in allowed
            assert reader.db.get(key) in allowed
        with pytest.raises(kvsvr.UsageError):
            reader.db.put(b"a", b"never")


@pytest.mark.timeout(max(300, EXAMPLE_COUNT * 10))
def test_the_engine_answers_as_a_dict_with_versions_would() -> None:
    """Through restarts, kills, lost catalogs and jumps of the clock; versions and row ids grow and never repeat;
    readers beside it see what it has written as soon as they refresh; who applies changes from any version has the
    table; a snapshot never changes."""
    before = time.monotonic()
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=EXAMPLE_COUNT,
            stateful_step_count=STEP_COUNT,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
    print(f"\nstate machine: {EXAMPLE_COUNT} runs of up to {STEP_COUNT} steps in {time.monotonic() - before:.1f} s")
