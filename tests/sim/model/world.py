"""Time, network, nodes, and what must hold at every moment: the ground of the simulator.

Everything that happens is an event in one queue; everything left to chance comes from one generator, so a seed replays
its run exactly.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from tests.sim.model.core import Settings
from tests.sim.model.messages import Fetch, Fetched, Message, RecordEntry, Replied
from tests.sim.model.node import Node
from tests.sim.model.plan import LAST_FAULT, SHARD_COUNT, Plan
from tests.sim.model.records import Ballot, Op, Record


@dataclass(eq=False)
class Entry:
    """One operation of the history: what was asked, when, and what came back. `ret` is INF where that is unknown."""

    number: int
    op: Op
    call: float
    ret: float | None = None
    result: tuple[str, object] | None = None


class Token(NamedTuple):
    """Whom an answer is for, and to which sending."""

    kind: str  # client, feed, admin, final
    number: int
    sends: int = 0
    req: int = 0


class World:
    def __init__(self, seed: int, n: int, mutate: frozenset[str]) -> None:
        self.random = random.Random(seed)
        self.seed, self.n, self.mutate = seed, n, mutate
        self.plan = Plan(self.random, seed, n)
        self.now, self._count = 0.0, 0
        self._queue: list[tuple[float, int, Callable[[], object]]] = []
        self.calm = False
        self.cut: set[tuple[int, int]] = set()  # Links that carry nothing, from and to.
        self.stats: Counter[str] = Counter()
        self.history: list[Entry] = []
        self.violations: list[str] = []
        self.chosen: dict[tuple[int, int], Record] = {}
        self.looked: dict[tuple[int, Ballot, int], float] = {}  # Expiry records, by the clock of who proposed them.
        self.disks_hurt = 0
        self.settings = Settings(
            SHARD_COUNT,
            self.plan.durability,
            session_max=self.plan.session_max,
            batch_max=self.plan.batch_max,
            member_count=n,
            await_hello=self.plan.await_hello,
            mutate=mutate,
        )
        self.nodes: list[Node] = []
        for number in range(n):
            self.nodes.append(Node(self, number))
        for node in self.nodes:
            node.boot()

    # ------------------------------------------------------------ events
    def at(self, delay: float, action: Callable[[], object]) -> None:
        self._count += 1
        heapq.heappush(self._queue, (self.now + delay, self._count, action))

    def run(self, until: float) -> None:
        while self._queue and self._queue[0][0] <= until:
            self.now, _, action = heapq.heappop(self._queue)
            action()
        self.now = until

    def number(self) -> int:
        self._count += 1
        return self._count

    # ------------------------------------------------------------ nodes
    def present(self) -> list[Node]:
        """Those that are there or will be back."""
        return [node for node in self.nodes if not node.gone]

    def add_node(self) -> Node:
        node = Node(self, len(self.nodes))
        self.nodes.append(node)
        node.boot()
        for other in self.nodes:
            if other.core is not None:
                other.core.meet(node.number)
        return node

    def lost(self, node: Node) -> None:
        """A node is never to be back under this id."""
        node.gone, node.up = True, False
        self.stats["node_gone"] += 1
        for other in self.present():
            if other.core is not None:
                other.core.declare_gone(node.number)
        self.replace(node, self.add_node())

    def replace(self, old: Node, new: Node) -> None:
        """The operator sees to it that `new` takes the place of `old` in every shard."""
        raise NotImplementedError

    def exchanging(self) -> bool:
        """Whether a shard may have one member less than it should: then another failure would be one too many."""
        raise NotImplementedError

    def take(self, node: Node, shard: int) -> None:
        node.call(node.life, lambda core: core.takeover([shard]))

    # ------------------------------------------------------------ network
    def delay(self) -> float:
        d = self.random.uniform(0.3, 1.5)
        if not self.calm and self.random.random() < self.plan.delay_tail:
            d += self.random.expovariate(1 / 25)
        return d

    def send(self, src: int, dst: int, message: Message) -> None:
        rnd, plan = self.random, self.plan
        if not self.calm:
            if (src, dst) in self.cut or rnd.random() < plan.drop:
                return
            bulk = isinstance(message, (Fetch, Fetched))
            if bulk and (self.now > plan.bulk_stop or rnd.random() < plan.bulk_drop):
                return
            if isinstance(message, plan.weak) and rnd.random() < 0.3:
                return
        self.at(self.delay(), lambda: self._deliver(src, dst, message))
        if not self.calm and rnd.random() < 0.03:
            self.at(rnd.expovariate(1 / 40), lambda: self._deliver(src, dst, message))
            self.stats["duplicate"] += 1

    def _deliver(self, src: int, dst: int, message: Message) -> None:
        node = self.nodes[dst]
        if (src, dst) not in self.cut:
            node.call(node.life, lambda core: core.receive(src, message))

    def ask(self, dst: int, token: Token, op: Op, late: float = 0) -> None:
        self.at(self.delay() + late, lambda: self._arrive(dst, token, op))

    def _arrive(self, dst: int, token: Token, op: Op) -> None:
        """A request reaches a replica, which may decide to take the shard over."""
        node = self.nodes[dst]
        if not node.up or node.core is None:
            return
        core, hint = node.core, node.core.owner_hint(op.shard)
        elsewhere = op.kind == "changes" or (op.follower and op.lane is None and op.attempt == 1)
        if core.shards[op.shard].own is None and not elsewhere:
            chance = 1.0 if hint is None else 0.3 if self.calm else self.plan.takeover if op.attempt < 3 else 0.25
            if self.random.random() < chance:
                shards = [op.shard] if self.random.random() < 0.7 else list(range(SHARD_COUNT))
                node.call(node.life, lambda core: core.takeover(shards))
        node.call(node.life, lambda core: core.client(token, op))

    def reply(self, src: int, reply: Replied) -> None:
        self.stats["reply_" + reply.status.lower()] += 1
        if self.calm or self.random.random() > 0.02:
            token = reply.token
            assert isinstance(token, Token)
            self.at(self.delay(), lambda: self.answer(src, token, reply))

    def answer(self, src: int, token: Token, reply: Replied) -> None:
        raise NotImplementedError

    # ------------------------------------------------------------ what must hold at every moment
    def logged(self, node: Node, entry: RecordEntry) -> None:
        record = entry.record
        if record.kind == "expiry" and record.ballot[1] == node.number:
            self.looked.setdefault((entry.shard, record.ballot, record.version), node.clock())

    def moment(self, node: Node, entry: object) -> None:
        """Something was logged; faults may happen now."""

    def quiet(self) -> bool:
        return self.calm or self.now > LAST_FAULT

    def agree(self, node: Node) -> None:
        """Every replica that applies version v of a shard applies the same record, and knows how many rows it has."""
        assert node.core is not None
        for s, sh in enumerate(node.core.shards):
            if sh.applied <= node.seen[s]:
                continue
            for record in sh.records[max(0, node.seen[s] - sh.base[0]) : sh.applied - sh.base[0]]:
                other = self.chosen.setdefault((s, record.version), record)
                if other is not record and other != record:
                    self.violate(f"two records at version {record.version} of shard {s}")
            for name, table in sh.state.tables.items():
                if table.row_count != len(table.content()):
                    self.violate(f"table {s}/{name} has {len(table.content())} rows and says {table.row_count}")
            node.seen[s] = sh.applied

    def violate(self, what: str) -> None:
        """Each kind once: what follows from it is no news."""
        if not any(known.split(" ")[0] == what.split(" ")[0] for known in self.violations):
            self.violations.append(what)
