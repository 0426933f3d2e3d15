"""One replica with its process, its disk and its clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from tests.sim.model.core import Identity
from tests.sim.model.messages import (
    CheckpointEntry,
    DamagedEntry,
    Entry,
    Logged,
    RecordEntry,
    Replied,
    Sent,
    Stopped,
)
from tests.sim.model.plan import SHARD_COUNT
from tests.sim.model.repair import readable
from tests.sim.model.replica import Replica

if TYPE_CHECKING:
    from tests.sim.model.world import World


class Stretch(NamedTuple):
    """A clock that runs evenly from `start` of the simulation's time on."""

    start: float
    shown: float
    rate: float

    def at(self, now: float) -> float:
        return self.shown + (now - self.start) * self.rate


class Node:
    """Its disk is a list of entries, of which the first `synced` survive a crash; `offset` entries before them were
    made superfluous by a checkpoint since this process began."""

    def __init__(self, world: World, number: int) -> None:
        self.world, self.number = world, number
        self.disk: list[Entry] = []
        self.disk_id = world.number()
        self.synced = self.offset = 0
        self.up, self.gone, self.life, self.syncing = False, False, 0, False
        self.core: Replica | None = None
        self.seen = [0] * SHARD_COUNT
        self.stuck = 0.0  # Its fdatasync does not return before this time.
        rnd = world.random
        self.stretches = [Stretch(world.now, world.now + rnd.uniform(0, 30), rnd.uniform(0.9, 1.1))]

    # ------------------------------------------------------------ clock
    def clock(self) -> float:
        return self.stretches[-1].at(self.world.now)

    def jump(self, by: float) -> None:
        old = self.stretches[-1]
        self.stretches.append(Stretch(self.world.now, self.clock() + by, old.rate))

    def lives(self) -> list[tuple[Stretch, float]]:
        """How its clock ran, and until when."""
        ends = [stretch.start for stretch in self.stretches[1:]]
        return list(zip(self.stretches, [*ends, float("inf")], strict=True))

    # ------------------------------------------------------------ process
    def boot(self) -> None:
        world = self.world
        if not readable(self.disk):
            world.stats["unreadable"] += 1
            return world.lost(self)
        self.up, self.offset, self.syncing, self.stuck = True, 0, False, 0.0
        self.life += 1
        identity = Identity(
            self.number,
            self.disk_id,
            world.number(),
            frozenset(range(world.n)),
            frozenset(node.number for node in world.nodes if node.gone),
        )
        self.core = Replica(identity, world.settings, [node.number for node in world.nodes], self.disk)
        self.seen = [sh.applied for sh in self.core.shards]
        self._drain(self.core)
        life = self.life
        world.at(world.random.uniform(1, 4), lambda: self._tick(life))
        if world.random.random() < 0.7:
            mine = [s for s in range(SHARD_COUNT) if s % world.n == self.number]
            world.at(world.random.uniform(1, 5), lambda: self.call(life, lambda core: core.takeover(mine)))

    def call(self, life: int, action: Callable[[Replica], None]) -> None:
        """Do something with the replica, if it is still the same process."""
        if self.up and life == self.life and self.core is not None:
            self.core.clock = self.clock()
            action(self.core)
            self._drain(self.core)

    def _drain(self, core: Replica) -> None:
        while core.out:
            out, core.out = core.out, []
            for item in out:
                match item:
                    case Logged():
                        self._write(item.entry)
                    case Sent():
                        self.world.send(self.number, item.peer, item.message)
                    case Replied():
                        self.world.reply(self.number, item)
                    case Stopped():
                        self.world.stats["found_out"] += 1
                        self.world.at(0, self._found_out)
        self.world.agree(self)

    def _tick(self, life: int) -> None:
        if self.up and life == self.life:
            self.call(life, lambda core: core.tick())
            self.world.at(4, lambda: self._tick(life))

    # ------------------------------------------------------------ disk
    def _write(self, entry: Entry) -> None:
        self.disk.append(entry)
        if isinstance(entry, RecordEntry):
            self.world.logged(self, entry)
        self.world.moment(self, entry)
        if not self.syncing:
            self.syncing = True
            life = self.life
            self.world.at(self.world.random.uniform(0.05, 0.6), lambda: self._fsync(life))

    def _fsync(self, life: int) -> None:
        if self.up and life == self.life:
            rnd = self.world.random
            took = rnd.uniform(0.2, 1.5)
            if rnd.random() < self.world.plan.slow_fsync:
                took += rnd.uniform(10, 60)
            took = max(took, self.stuck - self.world.now)
            upto = self.offset + len(self.disk)
            self.world.at(took, lambda: self._fsynced(life, upto))

    def _fsynced(self, life: int, upto: int) -> None:
        if not self.up or life != self.life:
            return
        self.synced = upto - self.offset
        self._compact()
        self.syncing = False
        if len(self.disk) > self.synced:
            self.syncing = True
            self.world.at(0.1, lambda: self._fsync(life))
        self.call(life, lambda core: core.durable_upto(upto))

    def _compact(self) -> None:
        """Drop what a durable checkpoint covers."""
        for i in range(self.synced - 1, 0, -1):
            if isinstance(self.disk[i], CheckpointEntry):
                del self.disk[:i]
                self.offset += i
                self.synced -= i
                self.world.stats["trim"] += 1
                return

    # ------------------------------------------------------------ faults
    def crash(self, *, whole_tail: bool = False) -> None:
        """What is not synced is lost from some place on; with `whole_tail` all of it."""
        if not self.up or self.core is None:
            return
        world = self.world
        self.up = False
        world.stats["crash"] += 1
        world.stats["crash_owner"] += sum(sh.own is not None for sh in self.core.shards)
        some = world.random.randint(self.synced, len(self.disk))
        keep = self.synced if whole_tail else world.random.choice([self.synced, some])
        if keep < len(self.disk):
            world.stats["lost_tail"] += 1
        del self.disk[keep:]
        self.synced = keep

    def _found_out(self) -> None:
        if not self.gone:
            self.world.lost(self)

    def restart(self) -> None:
        if not self.up and not self.gone:
            self.boot()

    def wipe(self, keep: int = 0) -> None:
        """The disk is another one now, whatever is on it. Only the mutation starts the old node on it."""
        assert not self.up
        self.world.disks_hurt += 1
        self.world.stats["wiped"] += 1
        del self.disk[keep:]
        self.synced = keep
        self.disk_id = self.world.number()
        if "wiped_returns" not in self.world.mutate:
            self.world.lost(self)

    def roll_back(self, keep: int) -> None:
        """The disk is what it once was, and cannot know it."""
        assert not self.up
        assert self.core is not None
        self.world.disks_hurt += 1
        self.world.stats["rolled_back"] += 1
        position = self.core.boot().position - (self.synced - keep)
        others = [node.core for node in self.world.nodes if node is not self and node.core is not None]
        if any(core.remembered(self.number) > position for core in others):
            self.world.stats["to_find_out"] += 1
        del self.disk[keep:]
        self.synced = keep

    def rot(self, start: int = 0) -> None:
        """Some records behind `start` do not check any more. Mostly it can be told which they were."""
        assert not self.up
        rnd = self.world.random
        places = [i for i in range(start, len(self.disk)) if isinstance(self.disk[i], RecordEntry)]
        if not places:
            return
        self.world.disks_hurt += 1
        self.world.stats["rotten"] += 1
        for i in rnd.sample(places, min(len(places), rnd.choice([1, 1, 2, 4]))):
            entry = self.disk[i]
            assert isinstance(entry, RecordEntry)
            known = (entry.shard, entry.record.ballot, entry.record.version)
            self.disk[i] = DamagedEntry(known if rnd.random() < 0.9 else None)
