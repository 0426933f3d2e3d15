"""Those who ask: clients with one operation at a time, consumers of a table's changes, and the operator's admin."""

from __future__ import annotations

from tests.sim.model.messages import Replied
from tests.sim.model.node import Node
from tests.sim.model.plan import INF, SHARD_COUNT
from tests.sim.model.records import READS, Changes, Op, Plain
from tests.sim.model.world import Entry, Token, World

TRIES_MAX = 14
TABLE = "T"
ROWS = "abcd"


class Client:
    """Sends an operation, again and elsewhere if need be, and writes down when it was called and what came back."""

    def __init__(self, world: World, number: int, op_count: int) -> None:
        self.world, self.number, self.left = world, number, op_count
        self.req = self.sends = self.tries = 0
        self.known = [0] * SHARD_COUNT  # Highest version of each shard that this client has seen.
        self.last: dict[tuple[int, str], Plain] = {}  # Value seen last, for cas.
        self.hint: dict[int, int | None] = {}
        self.op: Op | None = None
        self.entry: Entry | None = None
        world.at(world.random.uniform(5, 25), self._next)

    # ------------------------------------------------------------ what to ask
    def _next(self) -> None:
        if not self.left or self.world.calm:
            return
        self.left -= 1
        self.req += 1
        rnd = self.world.random
        shard, group = rnd.choice(self.world.plan.busy_shards), rnd.choice(self.world.plan.busy_keys)
        if group in "rt":
            op = self._register(shard, group)
        elif group == "c":
            op = self._counter(shard)
        elif group == "p":
            op = self._pair(shard)
        else:
            op = self._table(shard)
        lane = None if op.kind in READS else self.number
        follower = rnd.random() < 0.5
        self._submit(op._replace(lane=lane, req=self.req, seen=self.known[shard], follower=follower))

    def _name(self) -> str:
        return f"{self.number}.{self.req}"

    def _register(self, shard: int, key: str) -> Op:
        rnd, plan = self.world.random, self.world.plan
        kinds, weights = ["put", "append", "cas", "del", "get"], [4, 1.5, 2.5, 0.7, 5]
        if plan.ttl:
            kinds, weights = [*kinds, "expire", "persist"], [*weights, 0.6, 0.3]
        kind = rnd.choices(kinds, weights)[0]
        new = self._name() + "L" * (14 if rnd.random() < plan.large else 0)
        old = self.last.get((shard, key))
        if key == "t" and rnd.random() < 0.7:  # Few values, so that a condition turns true again.
            new, old = rnd.choice("xy") if kind == "put" else new, rnd.choice("xy")
        args: dict[str, tuple[Plain, ...]] = {"put": (new,), "append": ("+" + self._name(),), "cas": (old, new)}
        ttl = None
        if kind == "expire" or (kind == "put" and rnd.random() < plan.ttl):
            ttl = rnd.choice([5.0, 20.0, 60.0])
        return Op(kind, shard, (key,), args.get(kind, ()), ttl=ttl)

    def _counter(self, shard: int) -> Op:
        rnd = self.world.random
        kinds = ["incr", "del", "get"] + ["expire"] * bool(self.world.plan.ttl)
        kind = rnd.choices(kinds, [4, 0.5, 4, 0.7][: len(kinds)])[0]
        ttl = rnd.choice([5.0, 20.0, 60.0]) if kind == "expire" else None
        return Op(kind, shard, ("c",), (1,) if kind == "incr" else (), ttl=ttl)

    def _pair(self, shard: int) -> Op:
        rnd = self.world.random
        kind = rnd.choice(["transfer", "get2"])
        return Op(kind, shard, ("p", "q"), (rnd.randint(1, 9),) if kind == "transfer" else ())

    def _table(self, shard: int) -> Op:
        rnd = self.world.random
        kind = rnd.choices(["rput", "rapp", "rdel", "trim", "rows"], [3, 1.5, 1.5, 0.4, 3])[0]
        if kind == "rput":
            rows = rnd.sample(ROWS, rnd.choice([1, 1, 2, 3]))
            return Op(kind, shard, (TABLE,), (tuple((row, self._name()) for row in rows),))
        if kind == "rdel":
            return Op(kind, shard, (TABLE,), (rnd.choice(ROWS),))
        if kind == "trim":
            return Op(kind, shard, (TABLE,), (max(0, self.known[shard] - rnd.choice([0, 2, 10])),))
        return Op(kind, shard, (TABLE,), (self._name(),) if kind == "rapp" else ())

    # ------------------------------------------------------------ asking
    def _submit(self, op: Op) -> None:
        self.op, self.tries = op, 0
        self.entry = Entry(self.world.number(), op, self.world.now)
        self.world.history.append(self.entry)
        self._go(op)

    def _go(self, op: Op) -> None:
        world = self.world
        self.tries += 1
        self.sends += 1
        hint = self.hint.get(op.shard)
        to = world.random.choice(world.present()).number
        if hint is not None and world.random.random() < world.plan.loyal:
            to = hint
        late = 0.0
        if not world.calm and world.random.random() < world.plan.late_client:
            late = world.random.expovariate(1 / 50)
        world.ask(to, Token("client", self.number, self.sends, op.req), op, late)
        sends = self.sends
        world.at(world.random.uniform(12, 30), lambda: self._timeout(sends, None))

    def _timeout(self, sends: int, hint: int | None) -> None:
        if sends != self.sends or self.entry is None or self.op is None or self.entry.ret is not None:
            return
        if self.tries >= TRIES_MAX:
            return self._finish(self.op, self.entry, INF, None)
        self.hint[self.op.shard] = hint
        self.op = self.op._replace(attempt=self.op.attempt + 1)
        self._go(self.op)

    def answer(self, src: int, token: Token, reply: Replied) -> None:
        world, op, entry = self.world, self.op, self.entry
        if op is None or entry is None or token.req != op.req or entry.ret is not None:
            return
        if reply.version:
            self.known[op.shard] = max(self.known[op.shard], reply.version)
        if reply.status == "OK":
            self.hint[op.shard] = src
            return self._finish(op, entry, world.now, ("OK", reply.result))
        if reply.status == "UNKNOWN":
            return self._finish(op, entry, INF, None)
        believed = reply.status == "FAIL" and "late_fail" in world.mutate
        if token.sends != self.sends and not believed:
            return  # About an attempt that was repeated since.
        if reply.status == "FAIL":
            return self._finish(op, entry, world.now, ("FAIL", reply.result))
        if reply.status == "SEEN":  # Not executed, and no copy of it ever will be.
            world.stats["seen_again"] += 1
            self.op = op._replace(seen=reply.version)
            self.hint[op.shard] = src
            return self._go(self.op)
        core = world.nodes[src].core
        hint = None if core is None else core.owner_hint(op.shard)
        elsewhere = hint if hint != src else None
        world.at(world.random.uniform(1, 4), lambda: self._timeout(token.sends, elsewhere))

    def _finish(self, op: Op, entry: Entry, ret: float, result: tuple[str, object] | None) -> None:
        rnd = self.world.random
        entry.ret, entry.result = ret, result
        if result is not None and op.keys[0] in "rt":
            self._note_last(op, result)
        self.world.stats["unknown"] += ret == INF
        self.world.at(rnd.expovariate(1 / (8 if rnd.random() < 0.9 else 80)), self._next)

    def _note_last(self, op: Op, result: tuple[str, object]) -> None:
        seen = result[1]
        if op.kind in ("put", "cas") and result == ("OK", "OK"):
            seen = op.args[-1]
        elif op.kind not in ("get", "append", "cas"):
            return
        assert seen is None or isinstance(seen, str)
        self.last[(op.shard, op.keys[0])] = seen


class Feed:
    """A consumer of a table's changes: a copy of the rows, and how far it has come. It asks anybody, in turn or not.

    Its copy is exact when there is no more and it has come as far as any page was made. Then it is compared with what
    the chosen records say the table was at that version.
    """

    def __init__(self, world: World, number: int, shard: int) -> None:
        self.world, self.number, self.shard = world, number, shard
        self.rows: dict[str, str] = {}
        self.since = self.through = self.asked = 0
        self.exact = False
        world.at(world.random.uniform(5, 40), self._poll)

    def _poll(self) -> None:
        self.ask()
        self.world.at(self.world.random.expovariate(1 / (4 if self.world.calm else 25)), self._poll)

    def ask(self) -> None:
        """Any replica will do; a page asked for before and not yet answered is forgotten."""
        rnd = self.world.random
        self.asked += 1
        op = Op("changes", self.shard, (TABLE,), (self.since, rnd.choice([1, 2, 3, 8])), follower=True)
        node = rnd.choice(self.world.present())
        self.world.ask(node.number, Token("feed", self.number, self.asked), op)

    def answer(self, token: Token, reply: Replied) -> None:
        page = reply.result
        if token.sends != self.asked or not isinstance(page, Changes):
            return
        self.asked += 1  # A copy of this answer changes nothing.
        self.world.stats["page"] += 1
        if not page.complete:
            self.world.stats["resync"] += 1
            self.rows, self.since, self.through = {}, 0, 0
            self.exact = False
            return
        self._take(page)

    def _take(self, page: Changes) -> None:
        names = [name for _, name, _ in page.rows]
        versions = [version for version, _, _ in page.rows]
        if len(set(names)) < len(names) or versions != sorted(versions) or any(v <= self.since for v in versions):
            self.world.violate(f"page out of order or with a row twice: {page}")
        for _, name, value in page.rows:
            if value is None:
                self.rows.pop(name, None)
            else:
                self.rows[name] = value
        self.since, self.through = max(self.since, page.version), max(self.through, page.through)
        caught_up = self.since >= self.through or "through_ignored" in self.world.mutate
        self.exact = not page.more and caught_up
        if self.exact:
            self._compare()

    def _compare(self) -> None:
        """The table at version `since`, from the records that were chosen. Replaying them is cheap at this size."""
        self.world.stats["feed_compared"] += 1
        truth: dict[str, str] = {}
        for version in range(1, self.since + 1):
            record = self.world.chosen.get((self.shard, version))
            if record is None:
                return self.world.violate(f"changes up to {self.since}, but nobody applied {version}")
            for write in record.writes if record.stamp is not None else ():
                assert write.row is not None
                if isinstance(write.value, str):
                    truth[write.row] = write.value
                else:
                    truth.pop(write.row, None)
        if truth != self.rows:
            self.world.violate(f"feed at {self.since} has {self.rows}, the table {truth}")


class Admin:
    """Puts one member in the place of another in every shard: remove, then add, asked again until it is done.

    Both are asked for at once every time: that the second waits for the first is the owner's business.
    """

    def __init__(self, world: World, number: int, old: Node, new: Node) -> None:
        self.world, self.number, self.old, self.new = world, number, old, new
        self.stages: list[tuple[Plain, ...]] = [("remove", old.number), ("add", new.number)]
        if "config_swap" in world.mutate:
            self.stages = [("swap", old.number, new.number)]
        self.left = {(s, stage) for s in range(SHARD_COUNT) for stage in range(len(self.stages))}
        world.at(world.random.uniform(5, 30), self.go)

    def go(self) -> None:
        for s, stage in sorted(self.left):
            self.ask(s, stage)
        if self.left:
            self.world.at(self.world.random.uniform(10, 25), self.go)

    def ask(self, s: int, stage: int, to: Node | None = None) -> None:
        """Mostly the owner is asked, unless it is the one to go: then another may take the shard over."""
        world = self.world
        others = [node for node in world.present() if node is not self.old]
        owners = [node for node in others if node.up and node.core is not None and node.core.shards[s].own is not None]
        if to is None:
            to = world.random.choice(owners if owners and world.random.random() < 0.8 else others)
        op = Op("config", s, (), self.stages[stage], attempt=3)
        world.ask(to.number, Token("admin", self.number, stage, s), op)

    def answer(self, token: Token, reply: Replied) -> None:
        if reply.status == "OK" and (token.req, token.sends) in self.left:
            self.left.discard((token.req, token.sends))
            self.world.stats["member_" + str(self.stages[token.sends][0])] += 1
