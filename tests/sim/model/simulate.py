"""One run from a seed: clients, faults, the end at which everything heals, and the verdict.

World, Faults, Scripts and Simulation build on each other; this one knows how a run ends and what is judged.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from tests.sim.model.client import TABLE, Client, Feed
from tests.sim.model.judge import PAIR, linearizable
from tests.sim.model.messages import Replied
from tests.sim.model.node import Node
from tests.sim.model.plan import END, INF, SHARD_COUNT
from tests.sim.model.records import Meta, Op, Value
from tests.sim.model.scripts import Scripts
from tests.sim.model.world import Entry, Token

CLIENT_COUNT = 5
OP_COUNT = 40  # Of a client, at most.
FORGET_AFTER = 8  # Times a key was UNAVAILABLE at the end before the operator gives its newest version up.


@dataclass(eq=False)
class Final:
    """A key that is read when everything has healed, until there is an answer."""

    op: Op
    entry: Entry
    unavailable_count: int = 0
    forgotten: bool = False
    answered: bool = False
    token: int = 0


class Simulation(Scripts):
    def __init__(self, seed: int, n: int, mutate: frozenset[str] = frozenset()) -> None:
        super().__init__(seed, n, mutate)
        self.clients = [Client(self, i, OP_COUNT) for i in range(CLIENT_COUNT)]
        self.feeds: list[Feed] = []
        if TABLE in self.plan.busy_keys:
            self.feeds = [Feed(self, i, s) for i, s in enumerate(self.plan.busy_shards * 2)]
        self._finals: list[Final] = []
        self._given_up: dict[tuple[int, tuple[str, ...]], float] = {}

    def answer(self, src: int, token: Token, reply: Replied) -> None:
        if token.kind == "client":
            self.clients[token.number].answer(src, token, reply)
        elif token.kind == "feed":
            self.feeds[token.number].answer(token, reply)
        elif token.kind == "admin":
            self.admins[token.number].answer(token, reply)
        elif token.kind == "final":
            self._final_answer(self._finals[token.number], token, reply)

    # ------------------------------------------------------------ the end
    def finish(self) -> None:
        """One more blow for some; then all is well, and every key is read until it has an answer."""
        if self.plan.lose_at_end and not self.disks_hurt and not self.exchanging():
            self._lose_an_origin()
        elif self.plan.power_cut:
            for node in self.present():
                if node.up and node.core and any(sh.own for sh in node.core.shards):
                    node.crash(whole_tail=True)
        self.calm, self.cut, self.plan.slow_fsync = True, set(), 0
        for node in self.present():
            node.restart()
        self.run(self.now + 250)
        for s in range(SHARD_COUNT):
            for key in "rtc":
                self._final(Op("get", s, (key,), attempt=2))
            self._final(Op("get2", s, ("p", "q"), attempt=2))
            self._final(Op("rows", s, (TABLE,), attempt=2))
        for _ in range(30):
            if not self._settled():
                self.run(self.now + 100)
        self.run(self.now + 100)  # For the feeds: whatever was written last has reached all replicas by now.
        self._final_checks()

    def _lose_an_origin(self) -> None:
        """One disk is lost: of a replica that is the origin of a newest version, if any."""
        origins = set()
        for node in self.present():
            for sh in node.core.shards if node.core else []:
                newest: list[Value] = [kept[0].value for kept in sh.state.keys.values()]
                origins |= {value.origin for value in newest if isinstance(value, Meta)}
        alive = [number for number in sorted(origins or {0}) if not self.nodes[number].gone]
        if alive:
            node = self.nodes[self.random.choice(alive)]
            node.restart()
            node.crash()
            node.wipe(0 if self.random.random() < 0.6 else self.random.randint(0, len(node.disk)))

    def _settled(self) -> bool:
        return (
            not self.exchanging()
            and all(final.answered for final in self._finals)
            and all(feed.exact for feed in self.feeds)
        )

    def _final(self, op: Op) -> None:
        self._finals.append(Final(op, Entry(self.number(), op, self.now)))
        self._final_ask(self._finals[-1])

    def _final_ask(self, final: Final, kind: str | None = None) -> None:
        if final.answered:
            return
        op = final.op if kind is None else Op(kind, final.op.shard, final.op.keys, attempt=2)
        final.entry = Entry(self.number(), op, self.now)
        final.token = self.number()
        owners = [x for x in self.present() if x.up and x.core and x.core.shards[op.shard].own]
        node = owners[0] if len(owners) == 1 else self.random.choice(self.present())
        token = final.token
        self.ask(node.number, Token("final", self._finals.index(final), token), op)
        self.at(60, lambda: self._final_ask(final) if final.token == token else None)

    def _final_answer(self, final: Final, token: Token, reply: Replied) -> None:
        if final.answered or token.sends != final.token:
            return
        final.token = self.number()  # No other answer to this question counts, and no timeout.
        if final.entry.op.kind == "forget":
            return self._forget_answer(final, reply)
        if reply.status == "OK":
            final.answered = True
            if not final.forgotten:
                final.entry.ret, final.entry.result = self.now, ("OK", reply.result)
                self.history.append(final.entry)
            return
        final.unavailable_count += reply.status == "UNAVAILABLE"
        if reply.status == "UNAVAILABLE" and final.unavailable_count > FORGET_AFTER:
            return self._give_up(final)
        self.at(8, lambda: self._final_ask(final))

    def _give_up(self, final: Final) -> None:
        op = final.op
        if final.unavailable_count > 60 or self.plan.durability == "data" or not self.disks_hurt:
            final.answered = True
            return self.violate(
                f"UNAVAILABLE {op.shard}/{op.keys} under {self.plan.durability}, {self.disks_hurt} hurt"
            )
        self.stats["forget"] += 1
        self._given_up.setdefault((op.shard, op.keys), self.now)
        self.at(5, lambda: self._final_ask(final, "forget"))

    def _forget_answer(self, final: Final, reply: Replied) -> None:
        if reply.status == "OK":
            final.forgotten = True
        elif reply.status == "FAIL" and reply.result == "nothing kept":
            self.violate(f"forget found nothing kept for {final.op.shard}/{final.op.keys}")
        self._final_ask(final)

    def _final_checks(self) -> None:
        for final in self._finals:
            if not final.answered:
                self.violate(f"unanswered {final.op.shard}/{final.op.keys} after everything healed")
        for admin in self.admins:
            if admin.left:
                self.violate(f"members were not exchanged: {admin.old.number}, {sorted(admin.left)}")
        for feed in self.feeds:
            self._check_feed(feed)
        for node in self.present():
            self._check_late(node)

    def _check_feed(self, feed: Feed) -> None:
        """Its copy was compared when it came this far; so what is left is that it came as far as the table."""
        written = [v for (s, v), record in self.chosen.items() if s == feed.shard and record.stamp and record.writes]
        if not feed.exact or feed.since < max(written, default=0):
            self.violate(f"feed of {feed.shard} ended at {feed.since}, exact: {feed.exact}")

    def _check_late(self, node: Node) -> None:
        """Owners look by themselves, too, so nothing long expired is left where they are."""
        for sh in node.core.shards if node.up and node.core else []:
            if sh.own is None or sh.commit < sh.own.barrier:
                continue
            for key in sh.state.keys:
                newest = sh.state.newest(key)
                if newest.value is not None and newest.deadline is not None and newest.deadline < node.clock() - 100:
                    self.violate(f"expired {sh.number}/{key} is still there")

    # ------------------------------------------------------------ the verdict
    def judge(self) -> None:
        self._judge_expiries()
        self._judge_disks()
        objects: dict[tuple[int, tuple[str, ...]], list[Entry]] = defaultdict(list)
        for entry in self.history:
            op = entry.op
            given_up = self._given_up.get((op.shard, op.keys), INF)  # What follows is no longer that history.
            if op.kind == "trim" or entry.call >= given_up:
                continue
            if entry.ret is None or entry.ret >= given_up:
                entry.ret, entry.result = INF, None
            objects[(op.shard, op.keys)].append(entry)
            if op.kind in PAIR and op.kind == "get2" and entry.result is not None:
                self._check_sum(entry.result[1])
        for key, entries in objects.items():
            answer = linearizable(entries + self._expiries(entries))
            if answer is None:
                self.stats["undecided"] += 1
            elif not answer:
                self.violate(f"not linearizable: {key}")

    def _judge_disks(self) -> None:
        if self.stats["found_out"] > self.stats["to_find_out"]:
            self.violate("refused a disk that had lost nothing it vouched for")
        if self.stats["found_out"] < self.stats["to_find_out"]:
            self.violate("undetected: a disk was set back")

    def _check_sum(self, pair: object) -> None:
        assert isinstance(pair, tuple)
        if sum(x or 0 for x in pair) != 0:
            self.violate(f"half a batch was visible: {pair}")

    def _judge_expiries(self) -> None:
        """A delete of what expired stands behind a write with a deadline that its owner's clock had reached."""
        deadlines: dict[tuple[int, str], float | None] = {}
        for (s, _), record in sorted(self.chosen.items(), key=lambda item: item[0]):
            for write in record.writes if record.stamp is None else ():
                deadline = deadlines.get((s, write.key))
                if record.kind == "expiry":
                    clock = self.looked.get((s, record.ballot, record.version), -INF)
                    if deadline is None or clock < deadline:
                        self.violate(f"expired early: {s}/{write.key} at {clock}, due {deadline}")
                deadlines[(s, write.key)] = write.deadline

    def _expiries(self, entries: list[Entry]) -> list[Entry]:
        """For each operation that set a deadline, the delete that the system may do from then on."""
        found = []
        for entry in entries:
            if entry.op.ttl is None:
                continue
            ret = self.now if entry.ret is None else min(entry.ret, self.now)
            start = self._earliest(entry.call, ret, entry.op.ttl)
            if start < INF:
                op = Op("expiry", entry.op.shard, entry.op.keys, (entry.number,))
                found.append(Entry(self.number(), op, start, INF))
        return found

    def _earliest(self, call: float, ret: float, ttl: float) -> float:
        """When any clock may first show a deadline that any clock may have given between `call` and `ret`."""
        deadline = ttl + min(
            stretch.at(max(call, stretch.start))
            for node in self.nodes
            for stretch, end in node.lives()
            if stretch.start <= ret and end > call
        )
        first = INF
        for node in self.nodes:
            for stretch, end in node.lives():
                start = max(call, stretch.start)
                reached = max(start, stretch.start + (deadline - stretch.shown) / stretch.rate)
                if reached < end:
                    first = min(first, reached)
        return first


def run(seed: int, n: int, mutate: frozenset[str] = frozenset()) -> Simulation:
    """Everything that happens for one seed, judged."""
    sim = Simulation(seed, n, mutate)
    try:
        sim.run(END)
        if sim.plan.power_cut:
            for node in sim.nodes:
                node.stuck = END + 120
        sim.run(END + 20)
        sim.finish()
    except AssertionError as error:
        sim.violate(f"assertion: {error}")
    sim.judge()
    for node in sim.nodes:
        if node.core is not None:
            sim.stats.update(node.core.stats)
    sim.stats["ops"] += len(sim.history)
    sim.stats["answered"] += sum(entry.result is not None for entry in sim.history)
    return sim
