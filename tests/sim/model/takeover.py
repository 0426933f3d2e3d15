"""Takeover (PROTOCOL section 5): one round trip, no election.

With members that change, who has to promise is known only when the tails are: a majority of the members in force at
the end of the tail that will be adopted. A member removed meanwhile finds that out here, and gives up.
"""

from __future__ import annotations

from collections.abc import Iterable

from tests.sim.model.messages import Ask, Prepare, Promise, PromiseEntry, SnapEntry, Tail
from tests.sim.model.records import Ballot, draft
from tests.sim.model.shard import Ownership, Shard, Taking, majority
from tests.sim.model.write import Writes


class Takeover(Writes):
    def takeover(self, shards: Iterable[int]) -> None:
        """Step 1: an own durable promise for a new round, then PREPARE."""
        wanted = [s for s in shards if self._may_take(self.shards[s])]
        if not wanted or not self.ready:
            return
        self.round = max([self.round] + [self.shards[s].promised[0] for s in wanted]) + 1
        ballot = (self.round, self.node)
        for s in wanted:
            self.shards[s].promised = ballot
            self.shards[s].taking = Taking(ballot, self.now)
        if not self.lacks("round_reused"):
            self._log(PromiseEntry(tuple(wanted), ballot))
        self.stats["takeover"] += 1
        self._when_durable(lambda: self._send_prepare(wanted, ballot))

    def _may_take(self, sh: Shard) -> bool:
        free = sh.own is None and sh.taking is None
        return free and self._may_vote(sh) and self.node in sh.members()

    def _send_prepare(self, shards: list[int], ballot: Ballot) -> None:
        live = [sh for sh in map(self.shards.__getitem__, shards) if sh.taking and sh.taking.ballot == ballot]
        self._broadcast(Prepare(ballot, tuple(Ask(sh.number, sh.commit, sh.last()) for sh in live)))
        for sh in live:
            assert sh.taking is not None
            self._promised(self.node, sh, sh.taking, Tail(sh.commit, sh.last(), sh.members()))

    # ------------------------------------------------------------ step 2, at the others
    def _on_prepare(self, src: int, m: Prepare) -> None:
        """The answer is given only if the promise still stands when it is durable. Before HELLO is answered there is
        none, not even an empty one: it would tell a peer of this start before the peer has compared it."""
        self.round = max(self.round, m.ballot[0])
        if not self.admitted:
            return
        granted: list[Ask] = []
        refused: list[tuple[int, Ballot]] = []
        for ask in m.asks:
            sh = self.shards[ask.shard]
            if not self._may_vote(sh):
                continue
            if sh.promised >= m.ballot:
                refused.append((ask.shard, sh.promised))
                continue
            self._step_down(sh)
            sh.promised = m.ballot
            granted.append(ask)
        if granted:
            self._log(PromiseEntry(tuple(ask.shard for ask in granted), m.ballot))
        self._when_durable(
            lambda: self._answer_prepare(src, m.ballot, granted, refused), at_once=self.lacks("promise_not_durable")
        )

    def _answer_prepare(self, src: int, ballot: Ballot, granted: list[Ask], refused: list[tuple[int, Ballot]]) -> None:
        tails = []
        for ask in granted:
            sh = self.shards[ask.shard]
            if sh.promised == ballot or self.lacks("promise_late_tail"):
                tails.append((ask.shard, self._tail(sh, ask)))
            else:
                refused.append((ask.shard, sh.promised))
        self._send(src, Promise(ballot, tuple(tails), tuple(refused), self.boot()))

    def _tail(self, sh: Shard, ask: Ask) -> Tail:
        if sh.last() <= ask.last and not self.lacks("longest_tail"):
            return Tail(sh.commit, sh.last(), sh.members())
        snap, commit = None, ask.commit
        if commit < sh.base[0]:  # The records above the asker's commit are trimmed.
            self.stats["promise_snapshot"] += 1
            snap = self._snapshot(sh)
            commit = snap.version
        records = sh.after(commit)
        return Tail(sh.commit, sh.last(), sh.members(), records, self._data_of(records), snap)

    # ------------------------------------------------------------ step 3
    def _on_promise(self, src: int, m: Promise) -> None:
        self._remember(src, m.boot)
        for s, promised in m.refused:
            sh = self.shards[s]
            self.round = max(self.round, promised[0])
            if sh.taking is not None and sh.taking.ballot == m.ballot and promised > m.ballot:
                self._step_down(sh)
        for s, tail in m.tails:
            sh = self.shards[s]
            if sh.taking is not None and sh.taking.ballot == m.ballot:
                self._promised(src, sh, sh.taking, tail)

    def _order(self, tail: Tail) -> tuple[int, int, int]:
        (number, node), version = tail.last
        return (version, number, node) if self.lacks("longest_tail") else (number, node, version)

    def _promised(self, node: int, sh: Shard, taking: Taking, tail: Tail) -> None:
        """With enough promises adopt the tail with the highest (last ballot, version)."""
        taking.answers[node] = tail
        best = max(taking.answers.values(), key=self._order)
        members = best.members
        count = len([j for j in taking.answers if j in members or self.lacks("removed_votes")])
        if count < majority(members):
            return
        if self.node not in members and not self.lacks("removed_votes"):
            return self._step_down(sh)
        if self._order(best) > self._order(Tail(0, sh.last(), members)):
            self._adopt(sh, best)
        for answer in taking.answers.values():
            sh.commit = max(sh.commit, min(answer.commit, sh.last_version()))
        sh.taking = None
        own = self._own(sh, taking.ballot, sh.last_version() + 1)
        self._propose(sh, own, draft("barrier"))
        self._apply(sh)
        for token, op in taking.queue:
            self._client(token, op)

    def _adopt(self, sh: Shard, tail: Tail) -> None:
        self.stats["adopt"] += 1
        for digest, data in tail.data:
            self._keep_bytes(digest, data)
        if tail.snap is not None and sh.install(tail.snap):
            self._log(SnapEntry(sh.number, tail.snap))
        for record in tail.records:
            self._accept_record(sh, record)

    def _own(self, sh: Shard, ballot: Ballot, barrier: int) -> Ownership:
        overlay = sh.state.copy()
        for record in sh.after(sh.applied):
            overlay.apply(record, self.settings.session_max)
        sh.own = Ownership(ballot, barrier, overlay)
        return sh.own
