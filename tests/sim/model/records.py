"""What is voted on, and what comes of applying it: version records, operations, and the state of one shard.

Everything here is a value, but for State, which a shard owns and changes only by `apply` and snapshots copy. Applying
is deterministic and reads no clock: replicas that apply the same records have the same state, deadlines, row counts
and members included.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

Ballot: TypeAlias = tuple[int, int]  # round, node
Members: TypeAlias = frozenset[int]

NO_BALLOT: Ballot = (0, 0)


class Meta(NamedTuple):
    """A value named by its digest; the bytes are content, not part of the vote."""

    length: int
    digest: str
    origin: int


Plain: TypeAlias = str | int | None  # None: deleted, or never there.
Value: TypeAlias = Plain | Meta


class Write(NamedTuple):
    key: str
    value: Value
    deadline: float | None = None  # By the clock of the owner that proposed it.
    row: str | None = None  # Of the table `key`, if it is one.


class Stamp(NamedTuple):
    """What a table is after a record. The table's version needs no field: it is the record's."""

    table: str
    row_count: int
    next_row: int
    floor: int


class Record(NamedTuple):
    """A version record. `version` is its place in the shard's dense log."""

    version: int
    ballot: Ballot
    prev: Ballot  # Ballot of the record at version - 1.
    kind: str  # An operation's, or "barrier", "expiry", "config"; "hole": known to have been here, its content lost.
    writes: tuple[Write, ...] = ()
    lane: int | None = None  # Client lane, request number and result: the session entry.
    req: int = 0
    result: tuple[str, object] = ("OK", None)
    fallback: int = 0  # forget: the version that becomes the newest again.
    stamp: Stamp | None = None
    members: Members | None = None  # config: who votes from here on.


def draft(
    kind: str,
    writes: tuple[Write, ...] = (),
    *,
    lane: int | None = None,
    req: int = 0,
    result: tuple[str, object] = ("OK", None),
    fallback: int = 0,
    stamp: Stamp | None = None,
    members: Members | None = None,
) -> Record:
    """A record that has no place in a version log yet; the owner gives it one."""
    return Record(0, NO_BALLOT, NO_BALLOT, kind, writes, lane, req, result, fallback, stamp, members)


class Op(NamedTuple):
    """What a client asks.

    `seen` is the highest version of the shard that it knew when it sent attempt 1; every sending, by the client or on
    its behalf, is a new attempt.
    """

    kind: str  # READS below, or a write
    shard: int
    keys: tuple[str, ...]
    args: tuple[Plain | tuple[tuple[str, str], ...], ...] = ()
    lane: int | None = None
    req: int = 0
    attempt: int = 1
    seen: int = 0
    follower: bool = False  # A read that a replica other than the owner may answer.
    ttl: float | None = None


READS = frozenset({"get", "get2", "rows", "changes"})


class Kept(NamedTuple):
    version: int
    value: Value
    deadline: float | None = None


class Session(NamedTuple):
    req: int
    result: tuple[str, object]
    version: int


class Row(NamedTuple):
    version: int
    value: str | None  # None: a tombstone, which the floor may pass.


class Table(NamedTuple):
    version: int
    row_count: int
    next_row: int
    floor: int
    rows: Mapping[str, Row]

    def content(self) -> tuple[tuple[str, str], ...]:
        return tuple(sorted((name, row.value) for name, row in self.rows.items() if row.value is not None))


NO_TABLE = Table(0, 0, 1, 0, {})
ABSENT = Kept(0, None)


class Snapshot(NamedTuple):
    version: int
    ballot: Ballot
    state: State


class State:
    """Index, tables, session table and members of one shard at one applied position."""

    __slots__ = ("forgotten", "keys", "members", "sessions", "tables")

    def __init__(self, members: Members) -> None:
        self.keys: dict[str, tuple[Kept, ...]] = {}  # Newest first.
        self.tables: dict[str, Table] = {}
        self.sessions: dict[int, Session] = {}
        self.forgotten = 0  # The highest version of an evicted session entry.
        self.members = members

    def copy(self) -> State:
        new = State(self.members)
        new.keys, new.tables, new.sessions = dict(self.keys), dict(self.tables), dict(self.sessions)
        new.forgotten = self.forgotten
        return new

    def newest(self, key: str) -> Kept:
        kept = self.keys.get(key)
        return kept[0] if kept else ABSENT

    def table(self, key: str) -> Table:
        return self.tables.get(key, NO_TABLE)

    def apply(self, record: Record, session_max: int) -> None:
        assert record.kind != "hole", "a record whose content is lost was applied"
        if record.stamp is not None:
            self._apply_rows(record, record.stamp)
        else:
            for write in record.writes:
                self._apply_key(record, write)
        if record.members is not None:
            self.members = record.members
        if record.lane is not None:
            self._apply_session(record, record.lane, session_max)

    def _apply_key(self, record: Record, write: Write) -> None:
        kept = self.keys.get(write.key, (ABSENT,))
        if record.kind == "forget":
            kept = tuple(x for x in kept if x.version < record.fallback)
        if not isinstance(write.value, Meta):  # Inline or a delete: nothing is kept behind it.
            kept = ()
        self.keys[write.key] = (Kept(record.version, write.value, write.deadline), *kept)

    def _apply_rows(self, record: Record, stamp: Stamp) -> None:
        old = self.table(stamp.table)
        rows = dict(old.rows)
        for write in record.writes:
            assert write.row is not None
            assert write.value is None or isinstance(write.value, str)
            rows[write.row] = Row(record.version, write.value)
        rows = {name: row for name, row in rows.items() if row.value is not None or row.version > stamp.floor}
        version = record.version if record.writes else old.version  # A trim changes no row.
        self.tables[stamp.table] = Table(version, stamp.row_count, stamp.next_row, stamp.floor, rows)

    def _apply_session(self, record: Record, lane: int, session_max: int) -> None:
        self.sessions[lane] = Session(record.req, record.result, record.version)
        if len(self.sessions) > session_max:
            old = min(self.sessions, key=lambda lane: self.sessions[lane].version)
            self.forgotten = max(self.forgotten, self.sessions.pop(old).version)


class Changes(NamedTuple):
    """A page of a table's change feed.

    `through` is the table's version where the page was made. A consumer that goes on at a replica behind that one has
    an exact copy again only when its version has come as far as the highest `through` it was shown: a page leaves out
    rows that were written again later, and the other replica does not know of that writing yet.
    """

    rows: tuple[tuple[int, str, str | None], ...]  # Version, row and value, None for a deletion; in version order.
    version: int  # What to ask for next.
    more: bool
    complete: bool  # False: below the floor, deletions may be missing; begin again from 0.
    through: int


def changes(table: Table, since: int, limit: int, *, split: bool = False, blind: bool = False) -> Changes:
    """Each row that changed above `since` once, in its newest state; `split` and `blind` are the mutations.

    A page ends between versions. The first one of a consumer that knows nothing (0) reaches at least to the floor,
    however many rows that takes: its next question would be below the floor otherwise, and so would all its others.
    """
    found = sorted((row.version, name, row.value) for name, row in table.rows.items() if row.version > since)
    end = min(limit, len(found))
    if not split:
        while 0 < end < len(found) and found[end][0] == found[end - 1][0]:
            end += 1
    if since == 0:
        while end < len(found) and found[end][0] <= table.floor:
            end += 1
    more = end < len(found)
    version = found[end - 1][0] if more else max(since, table.version)
    if since == 0:
        version = max(version, table.floor)
    complete = blind or since == 0 or since >= table.floor
    return Changes(tuple(found[:end]), version, more, complete, table.version)
