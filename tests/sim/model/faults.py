"""What goes wrong by chance: crashes, partitions, stolen shards, clocks that jump, disks, and members replaced.

Faults come at random times, and at the moments that matter: just after a promise, just after a takeover.
"""

from __future__ import annotations

from tests.sim.model.messages import PromiseEntry, RecordEntry
from tests.sim.model.node import Node
from tests.sim.model.plan import INF, SHARD_COUNT
from tests.sim.model.world import World


class Faults(World):
    def __init__(self, seed: int, n: int, mutate: frozenset[str]) -> None:
        super().__init__(seed, n, mutate)
        if not self.plan.scripts:
            self.at(12, self._nemesis)
        self.at(15, self._housekeeping)
        if self.plan.ttl:
            self.at(20, self._jump)
        if self.plan.replace_at < INF:
            self.at(self.plan.replace_at, self._replace_any)

    def _nemesis(self) -> None:
        rnd = self.random
        if self.quiet():
            return
        kind = rnd.random()
        if kind < 0.4:
            self._crash_some()
        elif kind < 0.75:
            self._partition()
        elif kind < 0.9:
            self._steal()
        elif kind < 0.95:
            node = rnd.choice(self.present())
            shards = rnd.sample(range(SHARD_COUNT), rnd.randint(1, SHARD_COUNT))
            node.call(node.life, lambda core: core.takeover(shards))
        self.at(rnd.expovariate(1 / self.plan.pace), self._nemesis)

    def _crash_some(self) -> None:
        rnd = self.random
        node = rnd.choice(self.present())
        owners = [x for x in self.present() if x.up and x.core and any(sh.own for sh in x.core.shards)]
        if owners and rnd.random() < 0.5:
            node = rnd.choice(owners)
        self.crash(node, rnd.choice([3, 40]))
        if rnd.random() < 0.2:
            self.stats["whole_set"] += 1
            for node in self.present():
                self.crash(node, 40)

    def _partition(self) -> None:
        """One from all others or some, in both directions or one."""
        rnd = self.random
        numbers = [node.number for node in self.present()]
        i = rnd.choice(numbers)
        others = [j for j in numbers if j != i]
        if rnd.random() < 0.4:
            others = rnd.sample(others, rnd.randint(1, len(others) - 1))
        ways = rnd.choice(["both", "both", "in", "out"])
        self.stats["partition_" + ways] += 1
        self.cut_for(self._links(i, others, ways), rnd.uniform(10, 80))

    def _links(self, i: int, others: list[int], ways: str) -> set[tuple[int, int]]:
        links = {(i, j) for j in others if ways != "in"}
        return links | {(j, i) for j in others if ways != "out"}

    def cut_for(self, links: set[tuple[int, int]], time: float) -> None:
        self.cut |= links
        self.at(time, lambda: self.cut.difference_update(links))

    def _steal(self) -> None:
        """An owner is cut off from the other replicas, not from its clients, and one of them takes over."""
        rnd = self.random
        owned = [(x, sh.number) for x in self.present() if x.up and x.core for sh in x.core.shards if sh.own]
        if not owned:
            return
        self.stats["steal"] += 1
        old, shard = rnd.choice(owned)
        others = [x for x in self.present() if x is not old]
        new = rnd.choice(others)
        links = self._links(old.number, [x.number for x in others], rnd.choice(["both", "both", "in", "out"]))
        self.at(rnd.uniform(0, 3), lambda: self.cut.update(links))
        self.at(rnd.uniform(3, 10), lambda: self.take(new, shard))
        self.at(rnd.uniform(20, 120), lambda: self.cut.difference_update(links))

    # ------------------------------------------------------------ moments
    def moment(self, node: Node, entry: object) -> None:
        rnd, plan = self.random, self.plan
        if self.quiet():
            return
        if isinstance(entry, PromiseEntry) and rnd.random() < plan.after_promise:
            self.stats["crash_after_promise"] += 1
            self.at(rnd.uniform(0.1, 3), lambda: self.crash(node, 3))
            return
        shard = self.taken(node, entry)
        if shard is not None and rnd.random() < plan.after_takeover:
            self._after_takeover(node, shard)

    @staticmethod
    def taken(node: Node, entry: object) -> int | None:
        """The shard that the node has taken over, if this entry is a barrier of its own."""
        if not isinstance(entry, RecordEntry) or entry.record.kind != "barrier":
            return None
        return entry.shard if entry.record.ballot[1] == node.number else None

    def _after_takeover(self, node: Node, shard: int) -> None:
        rnd = self.random
        if rnd.random() < 0.5:
            self.stats["crash_after_takeover"] += 1
            pause = rnd.choice([3, 30])
            self.at(rnd.uniform(0.1, 5), lambda: self.crash(node, pause, shard))
            return
        self.stats["cut_after_takeover"] += 1
        numbers = [x.number for x in self.present()]
        links = {(node.number, j) for j in rnd.sample(numbers, rnd.randint(1, len(numbers) - 1))}
        self.at(rnd.choice([0, 0, 2]), lambda: self.cut.update(links))
        self.at(rnd.uniform(10, 80), lambda: self.cut.difference_update(links))

    def crash(self, node: Node, pause: float, again: int | None = None) -> None:
        """`again`: a shard that the node takes over at once when it is back."""
        if again is not None and self.random.random() < 0.6:
            self.at(pause + 1.5, lambda: self.take(node, again))
        was_up = node.up
        node.crash()
        if was_up:
            self._hurt_disk(node)
        self.at(self.random.uniform(1, pause), node.restart)

    def _hurt_disk(self, node: Node) -> None:
        rnd = self.random
        if self.disks_hurt or self.exchanging():
            return
        if rnd.random() < self.plan.lose_at_crash:
            keep = 0 if rnd.random() < 0.6 else rnd.randint(0, len(node.disk))
            node.wipe(keep)
        elif rnd.random() < self.plan.rot_at_crash:
            node.rot()

    def _jump(self) -> None:
        """A clock is set forward or back, by more than most deadlines are away."""
        rnd = self.random
        if self.quiet():
            return
        if rnd.random() < self.plan.clock_jumps * 5:
            self.stats["clock_jump"] += 1
            rnd.choice(self.nodes).jump(rnd.choice([-40, -10, 10, 40]))
        self.at(rnd.expovariate(1 / 20), self._jump)

    def _replace_any(self) -> None:
        """The operator exchanges a member that is well. It stays up: bytes may be nowhere else yet."""
        if self.disks_hurt:
            return
        self.stats["exchange"] += 1
        self.replace(self.random.choice(self.present()), self.add_node())

    def _housekeeping(self) -> None:
        node = self.random.choice(self.nodes)
        node.call(node.life, lambda core: core.checkpoint())
        self.at(self.random.expovariate(1 / 40), self._housekeeping)
