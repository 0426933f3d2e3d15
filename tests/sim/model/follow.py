"""The peer's side of steady state (PROTOCOL section 4): accepting APPEND, acknowledging, applying in order."""

from __future__ import annotations

from tests.sim.model.messages import Ack, Append, CommitEntry, Flow, RecordEntry, Refusal, SnapEntry
from tests.sim.model.reads import Reads
from tests.sim.model.records import Record
from tests.sim.model.shard import Inbound, Shard


class Follow(Reads):
    # ------------------------------------------------------------ applying
    def _apply(self, sh: Shard) -> None:
        """Apply in order, up to a hole; then answer the clients whose record is committed."""
        while sh.applied < sh.commit:
            record = sh.record_at(sh.applied + 1)
            if record is None or record.kind == "hole":
                break
            sh.applied += 1
            sh.state.apply(record, self.settings.session_max)
            if record.stamp is None:
                for write in record.writes:
                    self._drop_old_versions(sh, write.key)
        if sh.own is not None:
            done = [w for w in sh.own.waiting if w.version <= sh.applied]
            sh.own.waiting = [w for w in sh.own.waiting if w.version > sh.applied]
            for waiting in done:
                status, result = waiting.result
                self._reply(waiting.token, status, result, waiting.version)
        self._answer_reads()

    def _log_commit(self) -> None:
        """COMMIT(watermarks), lazily."""
        fresh = tuple((sh.number, sh.commit) for sh in self.shards if sh.commit > self._commit_logged.get(sh.number, 0))
        if fresh:
            self._commit_logged.update(fresh)
            self._log(CommitEntry(fresh))

    # ------------------------------------------------------------ accepting
    def _on_flow(self, src: int, m: Flow) -> None:
        self._remember(src, m.boot)
        inbound = self.inbound.get(src)
        if inbound is None or m.conn > inbound.conn:
            inbound = self.inbound[src] = Inbound(m.conn)
        late = m.conn < inbound.conn  # An old connection: harmless, but never acknowledged.
        for item in m.items:
            refusal = self._accept(item, m.seq)
            if refusal is not None and not late:
                inbound.refusals.append(refusal)
        if late:
            self.stats["late_flow"] += 1
            return
        inbound.got.add(m.seq)
        while inbound.cursor + 1 in inbound.got:
            inbound.cursor += 1
        self._acknowledge(src, m, inbound)

    def _acknowledge(self, src: int, m: Flow, inbound: Inbound) -> None:
        conn, cursor, refusals = m.conn, inbound.cursor, tuple(inbound.refusals)
        lasts: tuple[tuple[int, int], ...] = ()
        if self.lacks("ack_own_last"):
            lasts = tuple((i.shard, self.shards[i.shard].last_version()) for i in m.items)
        # The boot is taken when the ack leaves: it says how far the log is durable then.
        self._when_durable(
            lambda: self._send(src, Ack(conn, cursor, refusals, self.boot(), lasts)),
            at_once=self.lacks("ack_before_fsync"),
        )

    def _accept(self, a: Append, seq: int) -> Refusal | None:
        """None when the prefix up to its last record is here."""
        sh = self.shards[a.shard]
        self.round = max(self.round, a.ballot[0])
        if a.ballot < sh.promised:
            return self._refusal(sh, a, seq)
        if a.ballot > sh.promised:  # No PROMISE record: the records of this ballot restore it.
            self._step_down(sh)
            sh.promised = a.ballot
        for digest, data in a.data:
            self._keep_bytes(digest, data)
        if a.snap is not None and sh.install(a.snap, drop_tail=self.lacks("snapshot_drops_tail")):
            self._log(SnapEntry(a.shard, a.snap))
            self._apply(sh)
        if not self._follows(sh, a):
            return self._refusal(sh, a, seq)
        for record in a.records:
            self._accept_record(sh, record)
        through = a.prev_version + len(a.records)
        hole = sh.hole()
        if (
            hole is not None and hole <= through and not self.lacks("hole_acked")
        ):  # An ack would vouch for a record that is not here.
            self._apply(sh)
            return self._refusal(sh, a, seq, hole)
        self._verified(sh, a, through)
        return None

    def _refusal(self, sh: Shard, a: Append, seq: int, hole: int | None = None) -> Refusal:
        last = sh.last_version() if hole is None else hole - 1
        commit = sh.commit if hole is None else min(sh.commit, hole - 1)
        return Refusal(seq, a.shard, a.ballot, sh.promised, a.prev_version, last, commit, hole is not None)

    def _verified(self, sh: Shard, a: Append, through: int) -> None:
        """The own log equals the sender's up to here, so its commit position may be taken up to here."""
        known = sh.verified[1] if sh.verified[0] == a.ballot else 0
        sh.verified = (a.ballot, max(known, through))
        limit = sh.last_version() if self.lacks("commit_unverified") else sh.verified[1]
        sh.commit = max(sh.commit, min(a.commit, limit))
        self._apply(sh)

    def _follows(self, sh: Shard, a: Append) -> bool:
        if a.prev_version <= sh.commit:  # A committed prefix is the same everywhere.
            return True
        mine = sh.ballot_at(a.prev_version)
        return mine is not None and (mine == a.prev_ballot or self.lacks("no_prev_check"))

    def _accept_record(self, sh: Shard, record: Record) -> None:
        if self._fill(sh, record):
            return
        if record.version <= sh.commit and not self.lacks("cut_below_commit"):
            return
        if sh.ballot_at(record.version) == record.ballot and not self.lacks("cut_always"):
            return
        if record.version <= sh.last_version():
            self.stats["cut"] += 1
        sh.put(record)
        self._log(RecordEntry(sh.number, record))
