"""One replica of the set as a pure state machine: restart, messages and ticks in (PROTOCOL sections 3 and 8).

A replica is made from the entries that are in its log, so a restart is simply a new `Replica`. See core.py for the
files it is made of, and for the order in which they build on each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tests.sim.model.core import Identity, Settings
from tests.sim.model.messages import (
    Ack,
    AskPosition,
    Check,
    Checked,
    CheckpointEntry,
    CommitEntry,
    DamagedEntry,
    DataEntry,
    Entry,
    Fetch,
    Fetched,
    Flow,
    Found,
    Held,
    Hello,
    Lost,
    Message,
    NodeEntry,
    Position,
    Prepare,
    Promise,
    PromiseEntry,
    RecordEntry,
    RepairEntry,
    ShardImage,
    SnapEntry,
    Welcome,
)
from tests.sim.model.records import Record
from tests.sim.model.takeover import Takeover

TAKEOVER_TICKS_MAX = 8
SLOW_TICKS = 4  # Heartbeats, COMMIT entries, the bulk lane, the look for what has expired.


class Replica(Takeover):
    def __init__(self, identity: Identity, settings: Settings, peers: Iterable[int], log: Sequence[Entry] = ()) -> None:
        super().__init__(identity, settings, peers)
        for entry in log:
            self.log_end += 1
            self._replay(entry)
        self.durable = self.log_end
        for sh in self.shards:
            self.round = max(self.round, sh.promised[0])
            if self.lacks("restart_owns") and sh.promised[1] == self.node and sh.promised[0]:
                self._own(sh, sh.promised, sh.last_version())
        self.incarnation += 1
        self._first_boot = self.boot()
        self._log(NodeEntry(self.incarnation))
        self._when_durable(self._begin)

    def _begin(self) -> None:
        self.ready = True
        self._hello()

    # ------------------------------------------------------------ log
    def _replay(self, entry: Entry) -> None:
        match entry:
            case NodeEntry():
                self.incarnation = entry.incarnation
            case PromiseEntry():
                for s in entry.shards:
                    self.shards[s].promised = max(self.shards[s].promised, entry.ballot)
            case RecordEntry():
                self._replay_record(entry.shard, entry.record)
            case RepairEntry():
                self.shards[entry.shard].fill(entry.record)
            case DamagedEntry():
                self._replay_damaged(entry)
            case DataEntry():
                self._bytes[entry.digest], self._bytes_at[entry.digest] = entry.data, self.log_end
            case CommitEntry():
                for s, commit in entry.commits:
                    sh = self.shards[s]
                    sh.commit = max(sh.commit, min(commit, sh.last_version()))
                    self._apply(sh)
            case SnapEntry():
                sh = self.shards[entry.shard]
                sh.install(entry.snap, drop_tail=self.lacks("snapshot_drops_tail"))
                self._apply(sh)
            case CheckpointEntry():
                self._load(entry)

    def _replay_record(self, s: int, record: Record) -> None:
        sh = self.shards[s]
        if record.version > sh.last_version() + 1 and self.lacks("damaged_votes"):
            return
        sh.put(record)
        sh.promised = max(sh.promised, record.ballot)

    def _replay_damaged(self, entry: DamagedEntry) -> None:
        assert entry.known is not None, "a disk of which it cannot be told what it lost must not be used"
        if not self.lacks("damaged_votes"):
            self._place_hole(*entry.known)

    def checkpoint(self) -> None:
        """Write the state as one log entry and forget the records before it. As it is an entry of the log, it can
        never be ahead of what the log holds durably. Not while a record is missing: its place would be lost."""
        if any(sh.hole() is not None for sh in self.shards):
            return
        self._collect_bytes()
        images = []
        for sh in self.shards:
            sh.trim()
            images.append(ShardImage(sh.promised, sh.base, tuple(sh.records), sh.state.copy()))
        position = self._before + self.log_end + 1
        self._log(CheckpointEntry(self.incarnation, position, tuple(images), tuple(self._bytes.items())))

    def _load(self, entry: CheckpointEntry) -> None:
        self.incarnation = entry.incarnation
        self._before = entry.position - self.log_end
        self._bytes = dict(entry.data)
        self._bytes_at = dict.fromkeys(self._bytes, self.log_end)
        for sh, image in zip(self.shards, entry.shards, strict=True):
            sh.promised, sh.base, sh.records = image.promised, image.base, list(image.records)
            sh.state = image.state.copy()
            sh.commit = sh.applied = image.base[0]

    def durable_upto(self, position: int) -> None:
        self._became_durable(position)
        self._flush()

    # ------------------------------------------------------------ time
    def tick(self) -> None:
        """Time passes: retransmit, start the ownership checks, fetch what is missing, look what has expired."""
        self.now += 1
        if not self.ready or self.stopped:
            return
        self._start_check()
        self._reconnect_silent()
        for sh in self.shards:
            if sh.taking is not None and self.now - sh.taking.since > TAKEOVER_TICKS_MAX:
                self._step_down(sh)
        self._expire_reads()
        slow = self.now % SLOW_TICKS == 0
        if slow:
            self._log_commit()
            self._bulk_lane()
            self._ask_lost()
            self._look_everywhere()
            self._hello()
        self._flush(heartbeat=slow)

    # ------------------------------------------------------------ messages
    def receive(self, src: int, m: Message) -> None:
        if not self.ready or self.stopped or src not in self.peers:
            return
        if isinstance(m, Hello):
            self._on_hello(src, m)
        elif isinstance(m, Welcome):
            self._on_welcome(src, m)
        elif self._admits(m):
            self._receive(src, m)
            self._flush()

    def _admits(self, m: Message) -> bool:
        """An ack is a vote, too: what would be acknowledged has to wait until HELLO is answered."""
        return self.admitted or not isinstance(m, Flow)

    def _receive(self, src: int, m: Message) -> None:
        match m:
            case Flow():
                self._on_flow(src, m)
            case Ack():
                self._on_ack(src, m)
            case Prepare():
                self._on_prepare(src, m)
            case Promise():
                self._on_promise(src, m)
            case Check():
                self._on_check(src, m)
            case Checked():
                self._on_checked(src, m)
            case AskPosition():
                self._on_askposition(src, m)
            case Position():
                self._on_position(m)
            case Fetch():
                self._on_fetch(src, m)
            case Fetched():
                self._on_fetched(m)
            case Held():
                self._on_held(src, m)
            case Lost():
                self._on_lost(src, m)
            case Found():
                for s, record in m.records:
                    if self._fill(self.shards[s], record):
                        self._apply(self.shards[s])
            case Hello() | Welcome():
                raise AssertionError("answered before")
