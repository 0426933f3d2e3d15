"""What a seed decides before a run begins: how rough it gets, what clients do, which scripts are played."""

from __future__ import annotations

import random

from tests.sim.model import messages

SHARD_COUNT = 2
END = 880.0  # Clients and faults stop about here; then everything heals.
LAST_FAULT = 850.0
INF = float("inf")

BACKWARDS = ("rollback", "wipe", "rot")
ONCE = ("split", "removed", "early", "backwards")  # Scripts that change who is there, so once must do.


class Plan:
    """Half of the seeds are harsh, half are mild enough for progress."""

    def __init__(self, rnd: random.Random, seed: int, n: int) -> None:
        self.n = n
        self.durability = "data" if seed % 3 == 0 else "version"
        self.power_cut = seed % 4 == 1  # At the end every owner loses all that it has not synced.
        self.session_max = rnd.choice([2, 3, 3, 9])
        self.batch_max = rnd.choice([1, 1, 2, 8])
        self.large = rnd.choice([0.1, 0.5])
        self.drop, self.delay_tail = rnd.choice([0, 0.01, 0.05]), rnd.choice([0, 0.05, 0.15])
        self.slow_fsync = rnd.choice([0, 0.02, 0.1, 0.25])
        self.bulk_drop, self.bulk_stop = rnd.choice([0, 0.6, 0.98]), rnd.choice([1000, 1000, 400, 700])
        self.harsh = rnd.random() < 0.5
        self.pace = 40 if self.harsh else rnd.choice([60, 150])
        self.late_client = rnd.choice([0.02, 0.3])
        self.takeover, self.loyal = rnd.choice([0.01, 0.06]), rnd.choice([0.3, 0.8])
        weak: list[tuple[type, ...]] = [(), (), (messages.Prepare,), (messages.Flow,)]
        weak += [(messages.Flow, messages.Ack), (messages.Checked,)]
        self.weak = rnd.choice(weak)  # Kinds of messages that are lost more often than others.
        after = rnd.choice([(0.25, 0.0), (0.0, 0.5), (0.1, 0.3)])
        self.after_promise, self.after_takeover = after if self.harsh else (0.0, 0.0)
        self.busy_shards = rnd.choice([(0,), tuple(range(SHARD_COUNT))])
        self.busy_keys = rnd.choice(["rrttcccppTT", "rrttcccpp", "r", "t", "t", "c", "p", "T", "rT"])
        self.ttl = rnd.choice([0, 0, 0.3, 0.6])  # Share of puts that have a time to live.
        self.clock_jumps = rnd.choice([0, 0.02, 0.2])
        self._draw_disk(rnd)
        self._draw_scripts(rnd)

    def _draw_disk(self, rnd: random.Random) -> None:
        """One disk is hurt in a run at most: lost, damaged, or set back to what it was."""
        self.lose_at_crash = rnd.choice([0, 0, 0, 0.2])
        self.rot_at_crash = rnd.choice([0, 0, 0.3])
        self.lose_at_end = rnd.random() < 0.25
        self.replace_at = rnd.choice([INF, INF, rnd.uniform(100, 500)])  # A member that is well, by the operator.

    def _draw_scripts(self, rnd: random.Random) -> None:
        every = ["same_round", "lost_promise", "old_records"]
        alone = [[name] for name in (*every, "split", "removed", "backwards")]
        self.scripts = rnd.choice([[], [], [], [], [], [], every, *alone])
        self.backwards = rnd.choice(BACKWARDS)
        if self.n > 3 and self.scripts in (["split"], ["removed"]) and rnd.random() < 0.7:
            self.scripts = ["early"]  # Needs five members.
        self.await_hello = self.scripts == ["backwards"] and self.backwards == "rollback"
        if not self.scripts:
            return
        self.after_promise = self.after_takeover = self.drop = self.slow_fsync = 0
        self.weak, self.takeover, self.batch_max = (), 0, rnd.choice([1, 1, 8])
        if self.scripts[0] in ONCE:
            self.lose_at_crash = self.rot_at_crash = 0
            self.replace_at, self.lose_at_end, self.power_cut = INF, False, False
            self.busy_shards = (0,)
