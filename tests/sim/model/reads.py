"""Reads (PROTOCOL section 6): a position, a majority that confirms the ballot after it was noted, and an answer.

Changes of a table are answered anywhere at once, from what is applied here: a consumer asks again anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from tests.sim.model.core import Identity, Settings
from tests.sim.model.data import Data, Unavailable
from tests.sim.model.messages import Check, Checked, Nonce, Position
from tests.sim.model.records import Ballot, Op, Plain, State, changes
from tests.sim.model.shard import Shard, majority

CHECK_TICKS_MAX = 10


@dataclass(eq=False)
class OwnerRead:
    """Waits until its ballot is confirmed and `position` is applied."""

    shard: int
    ballot: Ballot
    position: int
    then: Callable[[], None]
    otherwise: Callable[[], None]
    since: int
    votes: set[int] = field(default_factory=set)


@dataclass(eq=False)
class FollowerRead:
    """Waits for its position from the owner, and until that is applied here."""

    shard: int
    nonce: Nonce
    then: Callable[[], None]
    otherwise: Callable[[], None]
    since: int
    answered: bool = False
    position: int | None = None


class Reads(Data):
    def __init__(self, identity: Identity, settings: Settings, peers: Iterable[int]) -> None:
        super().__init__(identity, settings, peers)
        self._asked: list[OwnerRead] = []  # Not yet part of a check.
        self._checks: dict[Nonce, list[OwnerRead]] = {}
        self._reading: list[OwnerRead | FollowerRead] = []

    def _confirm(self, sh: Shard, position: int, then: Callable[[], None], otherwise: Callable[[], None]) -> None:
        """Call `then` when a majority has confirmed our ballot after now and `position` is applied."""
        assert sh.own is not None
        read = OwnerRead(sh.number, sh.own.ballot, position, then, otherwise, self.now, {self.node})
        if self.lacks("check_joined") and self._checks:
            newest = self._checks[max(self._checks)]
            for other in newest:
                if other.shard == sh.number and other.ballot == sh.own.ballot:
                    read.votes = other.votes
                    newest.append(read)
                    self._reading.append(read)
                    return
        self._asked.append(read)

    def _start_check(self) -> None:
        """One CHECK per tick for all reads of all shards that came before it; none joins it later."""
        if not self._asked:
            return
        nonce = self._nonce()
        self._checks[nonce] = self._asked
        self._reading += self._asked
        asks = sorted({read.shard for read in self._asked})
        self._asked = []
        self._broadcast(Check(nonce, tuple(asks)))
        self._answer_reads()

    def _on_check(self, src: int, m: Check) -> None:
        votes = tuple((s, self.shards[s].promised) for s in m.asks if self._may_vote(self.shards[s]))
        if votes:
            self._send(src, Checked(m.nonce, votes))

    def _on_checked(self, src: int, m: Checked) -> None:
        promised = dict(m.promised)
        for read in self._checks.get(m.nonce, ()):
            if read.shard in promised and promised[read.shard] <= read.ballot:
                read.votes.add(src)
        self._answer_reads()

    def _confirmed(self, read: OwnerRead) -> bool:
        members = self.shards[read.shard].members()
        votes = read.votes if self.lacks("removed_votes") else read.votes & members
        return self.lacks("read_no_check") or len(votes) >= majority(members)

    def _state_of(self, read: OwnerRead | FollowerRead) -> tuple[bool, bool]:
        """Whether a read can still be answered, and whether it can be answered now."""
        sh = self.shards[read.shard]
        if isinstance(read, FollowerRead):
            valid = not read.answered or read.position is not None
            return valid, read.position is not None and sh.applied >= read.position
        valid = sh.own is not None and sh.own.ballot == read.ballot
        return valid, valid and sh.applied >= read.position and self._confirmed(read)

    def _answer_reads(self) -> None:
        rest: list[OwnerRead | FollowerRead] = []
        for read in self._reading:
            valid, ready = self._state_of(read)
            if not valid:
                read.otherwise()
            elif ready:
                read.then()
            else:
                rest.append(read)
        self._reading = rest

    def _expire_reads(self) -> None:
        old = [read for read in self._reading if self.now - read.since > CHECK_TICKS_MAX]
        for read in old:
            read.otherwise()
        self._reading = [read for read in self._reading if read not in old]
        for nonce in [n for n, reads in self._checks.items() if self.now - reads[0].since > CHECK_TICKS_MAX + 2]:
            del self._checks[nonce]

    def _on_position(self, m: Position) -> None:
        for read in self._reading:
            if isinstance(read, FollowerRead) and read.nonce == m.nonce and not read.answered:
                read.answered, read.position = True, m.version
        self._answer_reads()

    # ------------------------------------------------------------ answers
    def _answer_read(self, token: object, op: Op) -> None:
        sh = self.shards[op.shard]
        try:
            result = self._read_result(sh.state, op)
        except Unavailable as missing:
            self.stats["read_unavailable"] += 1
            self._fetch(missing.digest)
            return self._reply(token, "UNAVAILABLE", None, sh.applied)
        self._reply(token, "OK", result, sh.applied)

    def _read_result(self, state: State, op: Op) -> object:
        if op.kind == "rows":
            table = state.table(op.keys[0])
            return (table.content(), table.row_count)
        values = tuple(self._read_key(state, key) for key in op.keys)
        return values[0] if op.kind == "get" else values

    def _read_key(self, state: State, key: str) -> Plain:
        newest = state.newest(key)
        late = newest.deadline is not None and newest.deadline <= self.clock
        if late and self.lacks("expire_by_reader"):
            return None
        return self._bytes_of(newest.value, readable=True)

    def _answer_changes(self, token: object, op: Op) -> None:
        """At any replica, at once: what is applied here, and nothing beyond it."""
        sh = self.shards[op.shard]
        since, limit = op.args
        assert isinstance(since, int)
        assert isinstance(limit, int)
        state = sh.state
        if self.lacks("changes_ahead"):
            state = state.copy()
            for record in sh.after(sh.applied):
                state.apply(record, self.settings.session_max)
        table = state.table(op.keys[0])
        split, blind = self.lacks("page_splits"), self.lacks("floor_ignored")
        page = changes(table, since, limit, split=split, blind=blind)
        self._reply(token, "OK", page, sh.applied)
