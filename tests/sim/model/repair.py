"""Damage, and disks that went backwards (PROTOCOL section 8).

A damaged record of which shard, ballot and version are known is a hole in its version log. Nothing behind it is
applied, and the replica has no vote in that shard, until the same record is here again. Where it cannot be told which
record it was, the disk counts as wiped, which the caller decides before it makes a replica (see `readable`).

Peers remember the last start of a disk they heard of and how far its log was durable when it acknowledged or promised
something. A start that is not behind that is welcome. Comparing positions in the log, rather than the last (ballot,
version) of a shard: that may go down without any harm, when a tail is cut and the cut is all that was synced.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tests.sim.model.core import Core, Identity, Settings
from tests.sim.model.messages import (
    Boot,
    DamagedEntry,
    Entry,
    Found,
    Hello,
    Lost,
    RecordEntry,
    RepairEntry,
    Stopped,
    Welcome,
)
from tests.sim.model.records import Ballot, Record
from tests.sim.model.shard import Shard


def readable(log: Sequence[Entry]) -> bool:
    """Whether every damaged entry can be told; else the disk counts as wiped."""
    return all(entry.known is not None for entry in log if isinstance(entry, DamagedEntry))


class Repair(Core):
    def __init__(self, identity: Identity, settings: Settings, peers: Iterable[int]) -> None:
        super().__init__(identity, settings, peers)
        self._memory: dict[int, Boot] = {}  # Peer -> its last start, and how far its disk was when it last vouched.
        self._welcomed: set[int] = set()
        self._first_boot = self.boot()  # As it was before anything was logged by this process.

    def _may_vote(self, sh: Shard) -> bool:
        return self.admitted and not self.stopped and sh.hole() is None

    def _place_hole(self, s: int, ballot: Ballot, version: int) -> None:
        """Replay met a damaged record. That it was accepted counts as a promise of its ballot, as always."""
        sh = self.shards[s]
        sh.promised = max(sh.promised, ballot)
        if version <= sh.base[0] or version > sh.last_version() + 1:
            return  # Covered by a snapshot that came later, or cut: its place is not in this log any more.
        prev = sh.ballot_at(version - 1)
        assert prev is not None
        sh.put(Record(version, ballot, prev, "hole"))
        self.stats["hole"] += 1

    # ------------------------------------------------------------ fetching back
    def _ask_lost(self) -> None:
        lost = [
            (sh.number, record.ballot, record.version)
            for sh in self.shards
            for record in sh.after(sh.applied)
            if record.kind == "hole"
        ]
        if lost:
            self._broadcast(Lost(tuple(lost)))

    def _on_lost(self, src: int, m: Lost) -> None:
        """Whoever has that very record may give it: (shard, ballot, version) names one record in all logs."""
        found = []
        for s, ballot, version in m.records:
            record = self.shards[s].record_at(version)
            if record is not None and record.ballot == ballot and record.kind != "hole":
                found.append((s, record))
        if found:
            self._send(src, Found(tuple(found)))

    def _fill(self, sh: Shard, record: Record) -> bool:
        if not sh.fill(record):
            return False
        self.stats["repaired"] += 1
        entry = RecordEntry if self.lacks("repair_cuts") else RepairEntry
        self._log(entry(sh.number, record))
        return True

    # ------------------------------------------------------------ HELLO
    def _hello(self) -> None:
        """Say how far this disk is. Until the answers are there that this replica has to wait for, it has no vote."""
        for peer in self.peers:
            if peer not in self._welcomed:
                self._send(peer, Hello(self._first_boot))
        self._admit()

    def _awaited(self) -> set[int]:
        """All others there are: any of them may be the only one that knows what this disk has lost. Also those that
        are no members by its own log, because who was made a member may be what it has lost."""
        waits = self.settings.await_hello and not self.lacks("hello_unawaited")
        return set(self.peers) - self.gone if waits else set()

    def declare_gone(self, node: int) -> None:
        """The operator says that a node will never be back: its answer is not waited for."""
        self.gone.add(node)
        if self.ready:
            self._admit()

    def _admit(self) -> None:
        if not self.stopped and self._awaited() <= self._welcomed:
            self.admitted = True

    def remembered(self, node: int) -> int:
        """How far the disk of a peer is known to have been; for the simulator, which knows how far it is."""
        return self._memory[node].position if node in self._memory else 0

    def _on_hello(self, src: int, m: Hello) -> None:
        known = self._memory.get(src)
        if known is None or self.lacks("rollback_unseen") or self.lacks("wiped_returns"):
            fits = True
        elif m.boot.number == known.number:
            fits = True  # A copy of what was compared before.
        else:
            further = m.boot.incarnation > known.incarnation and m.boot.position >= known.position
            fits = m.boot.disk == known.disk and further
        if fits:
            self._remember(src, m.boot)
        self._send(src, Welcome(m.boot.number, fits))

    def _remember(self, src: int, boot: Boot) -> None:
        """The furthest that is known of a disk; copies of older messages change nothing."""
        known = self._memory.get(src)
        if known is None or (boot.incarnation, boot.position) > (known.incarnation, known.position):
            self._memory[src] = boot

    def _on_welcome(self, src: int, m: Welcome) -> None:
        if m.number != self.identity.boot:
            return
        if not m.known:
            self.stopped = True
            self.admitted = False
            self.out.append(Stopped(src))
            return
        self._welcomed.add(src)
        self._admit()
