"""The owner's side of steady state (PROTOCOL section 4): the flow to the peers, and when a record is committed.

All replicas get the flow, members or not: a learner is one whose acks are not counted.
"""

from __future__ import annotations

from collections.abc import Sequence

from tests.sim.model.follow import Follow
from tests.sim.model.messages import Ack, Append, Bytes, Flow, Refusal
from tests.sim.model.records import Meta, Record, Snapshot
from tests.sim.model.shard import Ownership, Peer, Shard, majority

SILENT_TICKS_MAX = 6


class Send(Follow):
    def meet(self, node: int) -> None:
        """A replica that was not there before; it learns, until a CONFIG record makes it a member."""
        if node != self.node:
            self.peers.setdefault(node, Peer())

    # ------------------------------------------------------------ the flow out
    def _flush(self, *, heartbeat: bool = False) -> None:
        """Send every peer what it lacks, all shards in one message."""
        if not self.ready:
            return
        for j, peer in self.peers.items():
            items = [item for sh in self.shards if (item := self._item(sh, j, heartbeat)) is not None]
            if items and j not in self.gone:
                self._send_flow(j, peer, tuple(items))

    def _item(self, sh: Shard, j: int, heartbeat: bool) -> Append | None:
        own, snap = sh.own, None
        if own is None:
            return None
        start = own.next.get(j, own.barrier)
        if start <= sh.base[0]:
            self.stats["snapshot"] += 1
            snap = self._snapshot(sh)
            start = snap.version + 1
        at = start - 1 - sh.base[0]
        records = self._may_leave(sh.records[at : at + self.settings.batch_max])
        if not records and snap is None and not heartbeat:
            return None
        own.next[j] = start + len(records)
        prev, data = sh.ballot_at(start - 1), self._data_of(records)
        return Append(sh.number, own.ballot, start - 1, prev, tuple(records), sh.commit, data, snap)

    def _may_leave(self, records: Sequence[Record]) -> Sequence[Record]:
        """Under `version`, a META record leaves its origin only when its bytes are durable there."""
        if self.settings.durability != "version" or self.lacks("meta_early"):
            return records
        for i, record in enumerate(records):
            metas = [write.value for write in record.writes if isinstance(write.value, Meta)]
            if any(meta.origin == self.node and self._bytes_at.get(meta.digest, 0) > self.durable for meta in metas):
                return records[:i]
        return records

    def _data_of(self, records: Sequence[Record]) -> Bytes:
        """Under `data` the bytes travel with the records that name them."""
        if self.settings.durability != "data" or self.lacks("meta_as_data"):
            return ()
        digests = {w.value.digest for record in records for w in record.writes if isinstance(w.value, Meta)}
        return tuple((d, self._bytes[d]) for d in sorted(digests) if d in self._bytes)

    def _snapshot(self, sh: Shard) -> Snapshot:
        state = sh.state.copy()
        if self.lacks("snapshot_no_history"):
            state.keys = {key: kept[:1] for key, kept in state.keys.items()}
        ballot = sh.ballot_at(sh.applied)
        assert ballot is not None
        return Snapshot(sh.applied, ballot, state)

    def _send_flow(self, j: int, peer: Peer, items: tuple[Append, ...]) -> None:
        if peer.conn is None:
            peer.conn, peer.seq, peer.acked, peer.sent = self._nonce(), 0, 0, {}
        if not peer.sent:
            peer.progress = self.now
        peer.seq += 1
        peer.sent[peer.seq] = tuple((a.shard, a.ballot, a.prev_version + len(a.records)) for a in items)
        self._send(j, Flow(peer.conn, peer.seq, items, self.boot()))

    def _reconnect_silent(self) -> None:
        """Nothing of an old connection counts; send again from what is known to be held."""
        for j, peer in self.peers.items():
            if not peer.sent or self.now - peer.progress <= SILENT_TICKS_MAX:
                continue
            self.stats["reconnect"] += 1
            peer.conn, peer.sent = None, {}
            for sh in self.shards:
                if sh.own is not None and j in sh.own.match:
                    sh.own.next[j] = sh.own.match[j] + 1

    # ------------------------------------------------------------ acks in
    def _on_ack(self, src: int, m: Ack) -> None:
        peer = self.peers[src]
        self._remember(src, m.boot)
        if m.conn != peer.conn and not self.lacks("old_acks"):
            return
        fresh = [r for r in m.refusals if r.seq > peer.acked]
        self._count_accepted(src, peer, m)
        for r in fresh:
            if r.seq <= peer.acked:
                self._on_refusal(src, r)
        for sh in self.shards:
            if sh.own is not None:
                self._advance(sh, sh.own)

    def _count_accepted(self, src: int, peer: Peer, m: Ack) -> None:
        refused = {(r.seq, r.shard) for r in m.refusals}
        lasts = dict(m.lasts)
        while peer.acked < min(m.cursor, peer.seq):
            peer.acked += 1
            peer.progress = self.now
            for s, ballot, version in peer.sent.pop(peer.acked, ()):
                own = self.shards[s].own
                if own is not None and own.ballot == ballot and (peer.acked, s) not in refused:
                    own.match[src] = max(own.match.get(src, 0), version, lasts.get(s, 0))

    def _on_refusal(self, src: int, r: Refusal) -> None:
        """A higher promise ends the ownership. After a gap go on behind the peer's last version, for a divergent tail
        behind its commit (not from the own `next`, which is ahead by now)."""
        sh = self.shards[r.shard]
        self.round = max(self.round, r.promised[0])
        own = sh.own
        if own is None or own.ballot != r.ballot:
            return
        self.stats["refusal"] += 1
        if r.promised > r.ballot:
            return self._step_down(sh)
        if r.lost:  # It held more once. Its vote for that counted then, and does not now.
            own.match[src] = min(own.match.get(src, 0), r.last)
        back = r.last if r.last < r.prev_version else r.commit
        own.next[src] = max(back, own.match.get(src, 0)) + 1

    # ------------------------------------------------------------ commit
    def _advance(self, sh: Shard, own: Ownership) -> None:
        """A majority of the members holds it durably, and the record is of the current ballot."""
        members = sh.members()
        held = [v for j, v in own.match.items() if j in members or self.lacks("removed_votes")]
        held.sort(reverse=True)
        if len(held) < majority(members):
            return
        version = min(held[majority(members) - 1], sh.last_version())
        if version > sh.commit and (sh.ballot_at(version) == own.ballot or self.lacks("count_older")):
            sh.commit = version
            self._apply(sh)

    def _own_durable(self, sh: Shard, own: Ownership, version: int) -> None:
        if sh.own is own:
            own.match[self.node] = max(own.match.get(self.node, 0), version)
            self._advance(sh, own)
