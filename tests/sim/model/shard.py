"""What a replica keeps per shard, per peer and per connection. Data and its invariants; the rules are elsewhere."""

from __future__ import annotations

from typing import NamedTuple

from tests.sim.model.messages import Nonce, Refusal, Tail
from tests.sim.model.records import NO_BALLOT, Ballot, Members, Op, Record, Snapshot, State


def majority(members: Members) -> int:
    return len(members) // 2 + 1


class Waiting(NamedTuple):
    """A write that is proposed and not yet committed."""

    version: int
    token: object
    result: tuple[str, object]


class Ownership:
    """What only the owner keeps, all of it volatile."""

    def __init__(self, ballot: Ballot, barrier: int, overlay: State) -> None:
        self.ballot = ballot
        self.barrier = barrier  # Version of the BARRIER of this ballot.
        self.overlay = overlay  # State with the whole tail applied: what writes see.
        self.match: dict[int, int] = {}  # Node -> version accepted durably under this ballot.
        self.next: dict[int, int] = {}  # Peer -> version to send next.
        self.waiting: list[Waiting] = []


class Taking:
    """A takeover under way."""

    def __init__(self, ballot: Ballot, now: int) -> None:
        self.ballot, self.since = ballot, now
        self.answers: dict[int, Tail] = {}
        self.queue: list[tuple[object, Op]] = []  # Client operations that wait for the outcome.


class Shard:
    """The version log of one shard and the state applied from it.

    base.version <= applied <= commit (which may be ahead of `applied` behind a hole only) <= last_version().
    """

    def __init__(self, number: int, members: Members) -> None:
        self.number = number
        self.promised = NO_BALLOT
        self.base: tuple[int, Ballot] = (0, NO_BALLOT)  # Where the held records begin.
        self.records: list[Record] = []  # base + 1, base + 2, ...
        self.commit = 0
        self.applied = 0
        self.state = State(members)
        self.verified: tuple[Ballot, int] = (NO_BALLOT, 0)  # Prefix known to equal that of the owner of a ballot.
        self.own: Ownership | None = None
        self.taking: Taking | None = None

    def last_version(self) -> int:
        return self.base[0] + len(self.records)

    def ballot_at(self, version: int) -> Ballot | None:
        """Ballot of the record at `version`; None where it is not known (a gap, or trimmed)."""
        if version == self.base[0]:
            return self.base[1]
        at = version - self.base[0] - 1
        return self.records[at].ballot if 0 <= at < len(self.records) else None

    def record_at(self, version: int) -> Record | None:
        at = version - self.base[0] - 1
        return self.records[at] if 0 <= at < len(self.records) else None

    def last(self) -> tuple[Ballot, int]:
        ballot = self.records[-1].ballot if self.records else self.base[1]
        return (ballot, self.last_version())

    def after(self, version: int) -> tuple[Record, ...]:
        return tuple(self.records[version - self.base[0] :])

    def members(self) -> Members:
        """Who votes: a configuration is in force once it is appended, so the tail decides before the state does."""
        for record in reversed(self.records[self.applied - self.base[0] :]):
            if record.members is not None:
                return record.members
        return self.state.members

    def changing(self) -> bool:
        """Whether a configuration is appended and not yet committed."""
        return any(record.members is not None for record in self.after(self.commit))

    def hole(self) -> int | None:
        """The first version whose record is damaged. It is never below `applied`."""
        for record in self.records[self.applied - self.base[0] :]:
            if record.kind == "hole":
                return record.version
        return None

    def put(self, record: Record) -> None:
        """Place a record, cutting the tail from its version on."""
        at = record.version - self.base[0] - 1
        assert at <= len(self.records), "a gap in a version log"
        if at < 0:  # Reached only by mutations: below what is trimmed.
            self.base, at = (record.version - 1, record.prev), 0
            self.records = []
            self.commit = self.applied = min(self.commit, record.version - 1)
        del self.records[at:]
        self.records.append(record)

    def fill(self, record: Record) -> bool:
        """Put a record that was fetched back where its hole is; what follows it stays."""
        hole = self.record_at(record.version)
        if hole is None or hole.kind != "hole" or hole.ballot != record.ballot:
            return False
        self.records[record.version - self.base[0] - 1] = record
        return True

    def install(self, snap: Snapshot, *, drop_tail: bool = False) -> bool:
        """Replace the state by a snapshot; the tail behind it stays if it continues it.

        A snapshot at or below what is applied is ignored. Behind a hole `commit` is further than `applied`, and there
        the snapshot is what mends it: then commit stays where it was, unless the tail goes.
        """
        if snap.version <= self.applied and not drop_tail:
            return False
        if self.ballot_at(snap.version) == snap.ballot and not drop_tail:
            self.records = list(self.after(snap.version))
        else:
            self.records = []
        self.base = (snap.version, snap.ballot)
        self.applied = snap.version
        known = 0 if drop_tail else min(self.commit, self.last_version())
        self.commit = max(snap.version, known)
        self.state = snap.state.copy()
        return True

    def trim(self) -> None:
        """Forget the records that are applied (they are in the state)."""
        ballot = self.ballot_at(self.applied)
        assert ballot is not None
        self.records = list(self.after(self.applied))
        self.base = (self.applied, ballot)


class Peer:
    """The flow to one peer: a connection, a cursor, and what was sent on it."""

    def __init__(self) -> None:
        self.conn: Nonce | None = None
        self.seq = self.acked = 0
        self.sent: dict[int, tuple[tuple[int, Ballot, int], ...]] = {}  # seq -> (shard, ballot, version) ...
        self.progress = 0  # Tick of the last progress.


class Inbound:
    """The flow from one peer, as far as it came."""

    def __init__(self, conn: Nonce) -> None:
        self.conn, self.cursor = conn, 0
        self.got: set[int] = set()
        self.refusals: list[Refusal] = []
