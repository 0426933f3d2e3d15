"""The ground of a replica: its log, its outputs, and what it knows. No rule of the protocol is here.

`Core` is the first of a chain of classes, one file for each part of the specification, each calling only what is
below it; `Replica` in replica.py is the last and the only one to be used:

    Core      the log, durability, outputs           core.py
    Repair    damaged records, HELLO                 repair.py     PROTOCOL section 8
    Data      bytes that records name                data.py       section 7
    Reads     ownership checks, reads anywhere       reads.py      section 6
    Follow    accepting APPEND, applying             follow.py     section 4, the peer
    Send      the flow to the peers, commit          send.py       section 4, the owner
    Writes    client operations, expiry, members     write.py      sections 4, 9 and 10
    Takeover  PREPARE, PROMISE, adoption             takeover.py   section 5
    Replica   restart, messages and ticks in         replica.py

What comes out is put into `out`, in order, and is taken by the caller after every input. `clock` is set by the caller
before an input; only an owner that looks whether something has expired, and computes deadlines, reads it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tests.sim.model.messages import Boot, Entry, Logged, Message, Nonce, Output, Replied, Sent
from tests.sim.model.records import Members
from tests.sim.model.shard import Inbound, Peer, Shard


@dataclass(frozen=True, slots=True)
class Settings:
    shard_count: int
    durability: str = "version"  # or "data"
    inline_max: int = 12
    session_max: int = 3
    batch_max: int = 4  # Records in one APPEND.
    member_count: int = 3  # What a shard should have; one less while a member is replaced.
    await_hello: bool = False  # Vote only when all other members have compared: the set survives rolled-back disks.
    mutate: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this is, as the caller knows it at a start."""

    node: int
    disk: int
    boot: int
    members: Members  # Of every shard at version 0.
    gone: Members = frozenset()  # Nodes that the operator has said will never be back.


class Core:
    def __init__(self, identity: Identity, settings: Settings, peers: Iterable[int]) -> None:
        self.identity, self.settings = identity, settings
        self.node = identity.node
        self.peers = {j: Peer() for j in peers if j != identity.node}
        self.shards = [Shard(s, identity.members) for s in range(settings.shard_count)]
        self.round = 0  # The highest round seen or used.
        self.incarnation = 0
        self.clock = 0.0
        self.now = 0  # Ticks.
        self.out: list[Output] = []
        self.stats: Counter[str] = Counter()
        self.ready = False  # Nothing is sent before the incarnation is durable.
        self.admitted = False  # No vote before HELLO has been answered.
        self.stopped = False
        self.gone = set(identity.gone)
        self.inbound: dict[int, Inbound] = {}
        self.log_end = self.durable = 0
        self._before = 0  # Entries that a checkpoint made superfluous, ahead of those in the log.
        self._on_durable: list[tuple[int, Callable[[], None]]] = []
        self._counter = 0
        self._commit_logged: dict[int, int] = {}

    def lacks(self, rule: str) -> bool:
        """Whether a mutation leaves this rule out."""
        return rule in self.settings.mutate

    # ------------------------------------------------------------ log
    def _log(self, entry: Entry) -> None:
        self.log_end += 1
        self.out.append(Logged(entry))

    def _when_durable(self, action: Callable[[], None], *, at_once: bool = False) -> None:
        """Run `action` once everything logged so far is durable."""
        if at_once or self.log_end <= self.durable:
            action()
        else:
            self._on_durable.append((self.log_end, action))

    def _became_durable(self, position: int) -> None:
        self.durable = max(self.durable, position)
        while self._on_durable and self._on_durable[0][0] <= self.durable:
            self._on_durable.pop(0)[1]()

    def boot(self) -> Boot:
        return Boot(self.identity.disk, self.identity.boot, self.incarnation, self._before + self.durable)

    # ------------------------------------------------------------ outputs
    def _send(self, peer: int, message: Message) -> None:
        if self.ready and not self.stopped and peer not in self.gone:
            self.out.append(Sent(peer, message))

    def _broadcast(self, message: Message) -> None:
        for peer in self.peers:
            self._send(peer, message)

    def _reply(self, token: object, status: str, result: object = None, version: int = 0) -> None:
        self.out.append(Replied(token, status, result, version))

    def _nonce(self) -> Nonce:
        self._counter += 1
        return (self.incarnation, self._counter)

    # ------------------------------------------------------------ what it knows
    def owner_hint(self, s: int) -> int | None:
        promised = self.shards[s].promised
        return promised[1] if promised[0] else None

    def _step_down(self, sh: Shard) -> None:
        """Ownership or a takeover ends: what is waiting must be asked for again."""
        if sh.own is not None:
            self.stats["step_down"] += 1
            for waiting in sh.own.waiting:
                self._reply(waiting.token, "RETRY")
            sh.own = None
        if sh.taking is not None:
            taking, sh.taking = sh.taking, None
            for token, _ in taking.queue:
                self._reply(token, "RETRY")
