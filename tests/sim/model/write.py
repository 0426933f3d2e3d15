"""Client operations at the owner: sessions, evaluation, expiry, and members (PROTOCOL sections 4, 9 and 10)."""

from __future__ import annotations

from collections.abc import Iterable

from tests.sim.model.data import Unavailable
from tests.sim.model.evaluate import ConditionFailed, Outcome, evaluate
from tests.sim.model.messages import AskPosition, Position, RecordEntry
from tests.sim.model.reads import FollowerRead
from tests.sim.model.records import READS, Members, Op, Record, Write, draft
from tests.sim.model.send import Send
from tests.sim.model.shard import Ownership, Shard, Waiting


class Writes(Send):
    def client(self, token: object, op: Op) -> None:
        self._client(token, op)
        self._flush()

    def _client(self, token: object, op: Op) -> None:
        sh = self.shards[op.shard]
        if not self.ready or self.stopped:
            return self._reply(token, "RETRY")
        if op.kind == "changes":
            return self._answer_changes(token, op)
        if sh.own is not None:
            if op.kind in READS:
                return self._read(sh, sh.own, token, op)
            if op.kind == "config":
                return self._configure(sh, sh.own, token, op)
            return self._write(sh, sh.own, token, op)
        if op.kind in READS and op.follower and self.owner_hint(op.shard) not in (None, self.node):
            return self._follower_read(token, op)
        if sh.taking is not None:
            sh.taking.queue.append((token, op))
        else:
            self._reply(token, "RETRY")

    # ------------------------------------------------------------ writes
    def _write(self, sh: Shard, own: Ownership, token: object, op: Op) -> None:
        """Section 4 and 10: the session table first, then evaluate on the overlay, then propose."""
        if op.lane is not None and not self.lacks("no_sessions") and self._known(sh, own, token, op, op.lane):
            return
        self._look(sh, own, op.keys)
        try:
            outcome = evaluate(own.overlay, op, self.clock, self._bytes_of)
        except Unavailable as missing:
            self.stats["write_unavailable"] += 1
            self._fetch(missing.digest)
            return self._reply(token, "UNAVAILABLE")
        except ConditionFailed as failed:
            if op.attempt == 1 or self.lacks("fail_unrecorded"):
                return self._answer_failed(sh, token, failed.result)
            self.stats["fail_recorded"] += 1
            result = ("FAIL", failed.result)
            record = self._propose(sh, own, draft(op.kind, lane=op.lane, req=op.req, result=result))
        else:
            record = self._propose_outcome(sh, own, op, outcome)
        own.waiting.append(Waiting(record.version, token, record.result))

    def _known(self, sh: Shard, own: Ownership, token: object, op: Op, lane: int) -> bool:
        """Whether the session table answers it: a copy of what was executed, or of what may have been."""
        entry, forgotten = own.overlay.sessions.get(lane), own.overlay.forgotten
        if entry is not None and entry.req == op.req:
            self.stats["dedupe"] += 1
            self._answer_at(sh, own, Waiting(entry.version, token, entry.result))
        elif entry is not None and entry.req > op.req:
            self._reply(token, "UNKNOWN")
        elif entry is None and op.seen < forgotten and not self.lacks("evict_blind"):
            self.stats["evicted"] += 1
            if op.attempt > 1:
                self._reply(token, "UNKNOWN")
            else:  # The first copy: confirmed like a read, it may be sent again.
                at = sh.last_version()
                self._confirm(sh, at, lambda: self._reply(token, "SEEN", None, at), lambda: self._reply(token, "RETRY"))
        else:
            return False
        return True

    def _answer_failed(self, sh: Shard, token: object, result: object) -> None:
        """A failed condition is a read of the overlay: it waits for the position it was evaluated at, and for the
        ownership check."""
        if self.lacks("fail_no_wait"):
            return self._reply(token, "FAIL", result, sh.commit)
        at = sh.last_version()
        self._confirm(sh, at, lambda: self._reply(token, "FAIL", result, at), lambda: self._reply(token, "RETRY"))

    def _answer_at(self, sh: Shard, own: Ownership, waiting: Waiting) -> None:
        if waiting.version <= sh.commit:
            status, result = waiting.result
            self._reply(waiting.token, status, result, waiting.version)
        else:
            own.waiting.append(waiting)

    def _propose_outcome(self, sh: Shard, own: Ownership, op: Op, outcome: Outcome) -> Record:
        writes = outcome.writes
        if outcome.stamp is None:  # Rows are inline here.
            writes = tuple(write._replace(value=self._store(write.value)) for write in writes)
        record = draft(
            op.kind,
            writes,
            lane=op.lane,
            req=op.req,
            result=("OK", outcome.result),
            fallback=outcome.fallback,
            stamp=outcome.stamp,
        )
        return self._propose(sh, own, record)

    def _propose(self, sh: Shard, own: Ownership, draft: Record) -> Record:
        """Give the record its place behind the last one, and put it into the log and the overlay."""
        prev, version = sh.last()
        record = draft._replace(version=version + 1, ballot=own.ballot, prev=prev)
        sh.put(record)
        self._log(RecordEntry(sh.number, record))
        own.overlay.apply(record, self.settings.session_max)
        self._when_durable(lambda: self._own_durable(sh, own, record.version), at_once=self.lacks("self_before_fsync"))
        return record

    # ------------------------------------------------------------ expiry
    def _look(self, sh: Shard, own: Ownership, keys: Iterable[str]) -> bool:
        """Propose a delete of what has expired by this clock. It is a record like any other, and only it makes the
        key absent: to the overlay at once, to readers when it is committed and applied."""
        found = False
        for key in keys:
            newest = own.overlay.newest(key)
            if newest.value is not None and newest.deadline is not None and newest.deadline <= self.clock:
                self.stats["expiry"] += 1
                self._propose(sh, own, draft("expiry", (Write(key, None),)))
                found = True
        return found

    def _look_everywhere(self) -> None:
        for sh in self.shards:
            if sh.own is not None:
                self._look(sh, sh.own, sorted(sh.own.overlay.keys))

    # ------------------------------------------------------------ reads
    def _position(self, sh: Shard, own: Ownership, keys: Iterable[str]) -> int:
        """Where a read must have been applied to: what is committed, the barrier, and a delete it has caused."""
        if self._look(sh, own, keys):
            return sh.last_version()
        return sh.commit if self.lacks("read_before_barrier") else max(sh.commit, own.barrier)

    def _read(self, sh: Shard, own: Ownership, token: object, op: Op) -> None:
        """At the owner: note the position, confirm the ownership, answer from memory."""
        before = sh.commit
        position = self._position(sh, own, op.keys)
        if self.lacks("expire_unwaited") and position > max(before, own.barrier) and op.kind == "get":
            return self._confirm(sh, before, lambda: self._reply(token, "OK", None, before), lambda: None)
        self._confirm(sh, position, lambda: self._answer_read(token, op), lambda: self._reply(token, "RETRY"))

    def _follower_read(self, token: object, op: Op) -> None:
        """At another replica: the position from the owner, then wait until it is applied here."""
        if self.lacks("follower_local"):
            return self._answer_read(token, op)
        owner = self.owner_hint(op.shard)
        assert owner is not None
        nonce = self._nonce()

        def answer() -> None:
            self.stats["follower_read"] += 1
            self._answer_read(token, op)

        self._reading.append(FollowerRead(op.shard, nonce, answer, lambda: self._reply(token, "RETRY"), self.now))
        self._send(owner, AskPosition(nonce, op.shard, op.keys))

    def _on_askposition(self, src: int, m: AskPosition) -> None:
        sh = self.shards[m.shard]
        if sh.own is None:
            return self._send(src, Position(m.nonce, None))
        position = self._position(sh, sh.own, m.keys)
        self._confirm(
            sh,
            position,
            lambda: self._send(src, Position(m.nonce, position)),
            lambda: self._send(src, Position(m.nonce, None)),
        )

    # ------------------------------------------------------------ members
    def _configure(self, sh: Shard, own: Ownership, token: object, op: Op) -> None:
        """Section 9: remove first and add then, one change at a time, and only on committed ground of one's own.

        An owner never removes itself: another replica takes the shard over first.
        """
        wanted = self._wanted(sh.members(), op)
        if wanted == sh.members():
            return self._answer_members(sh, token)
        blocked = sh.changing() and not self.lacks("config_two")
        early = sh.commit < own.barrier and not self.lacks("config_early")
        if blocked or early or self.node not in wanted or not self._sized(wanted):
            return self._reply(token, "RETRY")
        self.stats["config"] += 1
        record = self._propose(sh, own, draft("config", result=("OK", "OK"), members=wanted))
        own.waiting.append(Waiting(record.version, token, record.result))

    def _wanted(self, members: Members, op: Op) -> Members:
        change, *nodes = op.args
        numbers = [node for node in nodes if isinstance(node, int)]
        if change == "remove":
            return members - {numbers[0]}
        if change == "add":
            return members | {numbers[0]}
        return members - {numbers[0]} | {numbers[1]}  # "swap": only of the mutation.

    def _sized(self, members: Members) -> bool:
        full = self.settings.member_count
        return full - 1 <= len(members) <= full

    def _answer_members(self, sh: Shard, token: object) -> None:
        """Nothing to do is an answer like that of a failed condition: it waits until what it stands on is committed."""
        at = sh.last_version()
        self._confirm(sh, at, lambda: self._reply(token, "OK", "OK", at), lambda: self._reply(token, "RETRY"))
