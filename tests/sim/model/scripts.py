"""Orders of events that chance seldom finds. What is done is fixed; who does it, and when, is left to chance."""

from __future__ import annotations

from collections.abc import Callable

from tests.sim.model.client import Admin
from tests.sim.model.faults import Faults
from tests.sim.model.node import Node
from tests.sim.model.plan import ONCE
from tests.sim.model.records import Op
from tests.sim.model.world import Token


class Scripts(Faults):
    def __init__(self, seed: int, n: int, mutate: frozenset[str]) -> None:
        self.admins: list[Admin] = []
        self._at_barrier: dict[int, Callable[[], None]] = {}  # Node -> what to do when it logs a barrier of its own.
        super().__init__(seed, n, mutate)
        if self.plan.scripts:
            self.at(12, self._play)

    def replace(self, old: Node, new: Node) -> None:
        """Nobody takes the place of one that has been replaced before: it is no member any more."""
        if not any(admin.old is old for admin in self.admins):
            self.admins.append(Admin(self, len(self.admins), old, new))

    def exchanging(self) -> bool:
        return any(admin.left for admin in self.admins)

    def _play(self) -> None:
        if self.quiet():
            return
        self.cut.clear()
        self._at_barrier.clear()
        name = self.random.choice(self.plan.scripts)
        self.stats["script_" + name] += 1
        up = [node for node in self.present() if node.number < self.n]
        scripts: dict[str, Callable[[Node, Node, Node], None]] = {
            "same_round": self._script_same_round,
            "lost_promise": self._script_lost_promise,
            "old_records": self._script_old_records,
            "split": self._script_split,
            "removed": self._script_removed,
            "early": self._script_early,
            "backwards": self._script_backwards,
        }
        scripts[name](*self.random.sample(up, 3))
        if name not in ONCE:
            self.at(self.random.uniform(90, 140), self._play)

    def moment(self, node: Node, entry: object) -> None:
        if self.taken(node, entry) is not None and node.number in self._at_barrier and not self.quiet():
            self._at_barrier.pop(node.number)()
        else:
            super().moment(node, entry)

    # ------------------------------------------------------------ helpers
    def _isolate(self, a: Node, b: Node, on: bool = True) -> None:
        links = {(a.number, b.number), (b.number, a.number)}
        if on:
            self.cut |= links
        else:
            self.cut -= links

    def _divide(self, some: list[Node], on: bool = True) -> None:
        """Between these and all others nothing passes."""
        for a in some:
            for b in self.nodes:
                if b not in some:
                    self._isolate(a, b, on)

    def _stick(self, node: Node, until: float) -> None:
        node.stuck = until

    # ------------------------------------------------------------ ballots and tails
    def _script_same_round(self, p: Node, x: Node, y: Node) -> None:
        """P takes over with X alone, X gets records that P loses, P takes over with Y alone."""
        rnd, s, t = self.random, self.random.choice(self.plan.busy_shards), self.random.uniform(4, 10)
        self._isolate(p, y)
        until = self.now + 60
        self.at(1, lambda: self.take(p, s))
        self.at(1.2 + rnd.uniform(0, 3), lambda: self._stick(p, until))
        self.at(t, lambda: p.crash(whole_tail=True))
        self.at(t + 0.5, p.restart)
        self.at(t + 0.5, lambda: self._isolate(p, y, False))
        self.at(t + 0.5, lambda: self._isolate(p, x))
        self.at(t + 3, lambda: self.take(p, s))
        self.at(t + rnd.uniform(15, 40), self.cut.clear)

    def _script_lost_promise(self, p: Node, x: Node, old: Node) -> None:
        """X promises P, crashes at once, and meets the old owner before it meets P again."""
        rnd, s = self.random, self.random.choice(self.plan.busy_shards)
        self.take(old, s)
        t = rnd.uniform(12, 20)
        until = self.now + t + 60
        crash = t + rnd.uniform(1, 4)
        self.at(t, lambda: self._isolate(p, old))
        self.at(t, lambda: self._stick(x, until))
        self.at(t + 0.2, lambda: self.take(p, s))
        self.at(crash, lambda: x.crash(whole_tail=True))
        self.at(crash, lambda: self._isolate(p, x))
        self.at(crash + 0.5, x.restart)
        self.at(crash + rnd.uniform(10, 40), self.cut.clear)

    def _script_old_records(self, a: Node, b: Node, c: Node) -> None:
        """A has records that nobody else has, B a barrier that nobody else has; then A again, then B."""
        rnd, s = self.random, self.random.choice(self.plan.busy_shards)
        self.take(a, s)
        t = rnd.uniform(8, 15)
        self.at(t, lambda: self._isolate(a, b))
        self.at(t, lambda: self._isolate(a, c))
        self.at(t + rnd.uniform(3, 15), lambda: self.take(b, s))
        self._at_barrier[b.number] = lambda: self._old_records_again(a, b, c, s)

    def _old_records_again(self, a: Node, b: Node, c: Node, s: int) -> None:
        self._isolate(b, c)
        self.at(1, lambda: self._isolate(a, c, False))
        self.at(1.5, lambda: self.take(a, s))
        self.at(6, lambda: self.take(a, s))  # The first may have met a higher round.
        wait = self.random.uniform(2, 9)
        self._at_barrier[a.number] = lambda: self.at(wait, lambda: self._old_records_lost(a, b, c, s))

    def _old_records_lost(self, a: Node, b: Node, c: Node, s: int) -> None:
        self._isolate(a, c)
        self._isolate(b, c, False)
        self.at(0.5, a.crash)
        self.at(1, lambda: self.take(b, s))
        self.at(self.random.uniform(20, 40), self.cut.clear)
        self.at(30, a.restart)

    # ------------------------------------------------------------ members
    def _script_split(self, a: Node, b: Node, c: Node) -> None:
        """B exchanges C for D while it reaches nobody but D, and A takes over with all others."""
        rnd, s = self.random, 0
        d = self.add_node()
        self.at(rnd.uniform(5, 60), lambda: self.take(b, s))
        t = 90 + rnd.uniform(0, 40)
        self.at(t, lambda: self.take(b, s))
        self.at(t + 12, lambda: self._divide([b, d]))
        self.at(t + 12.5, lambda: self._exchange(c, d, b))
        self.at(t + rnd.uniform(16, 25), lambda: self.take(a, s))
        self.at(t + rnd.uniform(50, 90), self.cut.clear)

    def _script_removed(self, a: Node, b: Node, c: Node) -> None:
        """C is exchanged for D and does not hear of it; then it takes over with A, as B and D go on."""
        rnd, d = self.random, self.add_node()
        t = 60 + rnd.uniform(0, 60)
        for again in (0, 8):
            self.at(t - 20 + again, lambda: self.take(b, 0))
        self.at(t, lambda: self._divide([c]))
        self.at(t + 1, lambda: self._exchange(c, d, b))
        alone = t + rnd.uniform(30, 70)
        self.at(alone, lambda: self._divide([b, d]))
        self.at(alone, lambda: self._isolate(a, c, False))
        for again in (2, 10, 18):
            self.at(alone + again, lambda: self.take(c, 0))
        self.at(alone + rnd.uniform(40, 80), self.cut.clear)

    def _exchange(self, old: Node, new: Node, owner: Node) -> None:
        """Ask that very owner first, for both changes at once."""
        self.replace(old, new)
        admin = self.admins[-1]
        for stage in range(len(admin.stages)):
            admin.ask(0, stage, owner)

    def _script_early(self, a: Node, b: Node, c: Node) -> None:
        """Of five, E is removed. A adds F where only F hears of it; B, which has promises of all others but has
        committed nothing, adds G where C does not hear of it; and A takes over again, with F and C."""
        rnd, s = self.random, 0
        d, e = (node for node in self.nodes if node not in (a, b, c))
        f, g = self.add_node(), self.add_node()
        self.at(rnd.uniform(40, 60), lambda: self.take(a, s))
        for again in (80, 95, 110):
            self.at(again, lambda: self._change(a, "remove", e))
        self.at(130, lambda: self._divide([a, f]))
        self.at(130.2, lambda: self._change(a, "add", f))
        self._when_taken(136, b, lambda: self._early_second(a, b, c, d, g))
        self.at(230 + rnd.uniform(0, 30), self.cut.clear)

    def _when_taken(self, delay: float, node: Node, then: Callable[[], None]) -> None:
        def take() -> None:
            self._at_barrier[node.number] = then
            self.take(node, 0)

        self.at(delay, take)
        self.at(delay + 12, lambda: self.take(node, 0))  # The first may have met a higher round.

    def _early_second(self, a: Node, b: Node, c: Node, d: Node, g: Node) -> None:
        for node in (b, d, g):
            self._isolate(node, c)
        for delay in (0, 1, 2):
            self.at(delay, lambda: self._change(b, "add", g))
        self.at(3, lambda: self._isolate(a, c, False))
        for delay in (12, 20):
            self.at(delay, lambda: self.take(a, 0))

    def _change(self, owner: Node, what: str, node: Node) -> None:
        op = Op("config", 0, (), (what, node.number), attempt=3)
        if owner.core is not None and owner.core.shards[0].own is not None:
            self.ask(owner.number, Token("script", 0), op)

    # ------------------------------------------------------------ disks
    def _script_backwards(self, p: Node, x: Node, q: Node) -> None:
        """Q is cut off while P and X go on; then X loses what it held, and P is cut off instead."""
        rnd, s = self.random, 0
        start = rnd.uniform(30, 300)
        known: list[int] = []
        others = [node for node in self.nodes if node not in (p, x)]
        for again in (0, 8):
            self.at(start + again, lambda: self.take(p, s))
        self.at(start + 15, lambda: known.append(x.offset + len(x.disk)))
        self.at(start + 15, lambda: self._divide(others))
        end = start + 15 + rnd.uniform(30, 80)
        self.at(end, lambda: self._lose(x, known[0]))
        self.at(end, lambda: self._divide(others, False))
        self.at(end, lambda: self._divide([p]))
        self.at(end + 1, x.restart)
        for again in (6, 20, 35):
            self.at(end + again, lambda: self.take(q, s))
        self.at(end + rnd.uniform(50, 80), self.cut.clear)

    def _lose(self, x: Node, known: int) -> None:
        if not x.up:
            return
        keep = max(1, min(known - x.offset, len(x.disk)))
        x.crash(whole_tail=True)
        if self.plan.backwards == "rollback":
            x.roll_back(keep)
        elif self.plan.backwards == "wipe":
            x.wipe()
        else:
            x.rot(keep)
