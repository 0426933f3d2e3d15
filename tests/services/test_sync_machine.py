"""Sync of one user against dicts, in small steps: pages of one row, replies that are lost, keys of long ago, purges and
sweeps between any two of them, and leases that end.

The model: rows of each kind as they are; which of them were purged; and for each device what it had when it last asked
for something, which is what it has acknowledged. test_state_machine.py has the same with messages on top.

Long runs: KVSVR_HYPOTHESIS_EXAMPLES=2000 python -m pytest tests/services/test_sync_machine.py -s
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

import kvsvr
from kvsvr.sync import Sync, digest_of
from tests.services.conftest import Turned
from tests.services.devices import Phone

EXAMPLE_COUNT = int(os.environ.get("KVSVR_HYPOTHESIS_EXAMPLES", "100"))
STEP_COUNT = 60
KINDS = ["inbox", "contacts"]
LEASE_S = 1000.0
NEVER = float("-inf")

Copy = dict[str, dict[bytes, bytes]]


def copied(kinds: Copy) -> Copy:
    return {kind: dict(rows) for kind, rows in kinds.items()}


class Device:
    def __init__(self, phone: Phone) -> None:
        self.phone = phone
        self.heard = NEVER
        self.acknowledged: Copy = {}
        self.backups: list[tuple[bytes | None, Copy]] = [(None, {})]


kinds = st.sampled_from(KINDS)
names = st.sampled_from(["phone", "phone", "desk"])
limits = st.sampled_from([1, 1, 2, 3, 100])


class Machine(RuleBasedStateMachine):
    counts: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="kvsvr-sync-"))
        self.clock = Turned()
        self.db = kvsvr.open(self.root / "store", sync="none", slots="strict", compaction=False)
        self.rows: Copy = {kind: {} for kind in KINDS}
        self.devices: dict[str, Device] = {}
        self.last = 0

    def sync(self) -> Sync:
        return Sync(self.db, b"of this machine!", lease=LEASE_S, clock=self.clock)

    def device(self, name: str) -> Device:
        if name not in self.devices:
            self.devices[name] = Device(Phone(lambda *asked: self.sync().pull(*asked), "ann", name))
        return self.devices[name]

    def is_live(self, device: Device) -> bool:
        return device.heard + LEASE_S > self.clock.now

    def teardown(self) -> None:
        for device in self.devices.values():
            self.converge(device)
        self.db.close()
        shutil.rmtree(self.root)

    # --- writing ---

    @rule(kind=kinds, count=st.integers(1, 4))
    def rows_are_added(self, kind: str, count: int) -> None:
        with self.db.batch() as batch:
            for _ in range(count):
                self.last += 1
                self.put(batch, kind, self.last.to_bytes(4, "big"), b"%d" % self.last)

    @rule(kind=kinds, data=st.data())
    def a_row_is_changed(self, kind: str, data: st.DataObject) -> None:
        if self.rows[kind]:
            self.last += 1
            with self.db.batch() as batch:
                self.put(batch, kind, data.draw(st.sampled_from(sorted(self.rows[kind]))), b"%d" % self.last)

    @rule(kind=kinds, data=st.data())
    def a_row_is_deleted(self, kind: str, data: st.DataObject) -> None:
        if self.rows[kind]:
            row = data.draw(st.sampled_from(sorted(self.rows[kind])))
            self.sync().delete("ann", kind, row)
            del self.rows[kind][row]

    def put(self, batch: Any, kind: str, row: bytes, value: bytes) -> None:
        self.sync().feed(batch, "ann", kind).put(row, value)
        self.rows[kind][row] = value

    # --- devices ---

    @rule(name=names, limit=limits, is_heard=st.booleans())
    def a_page(self, name: str, limit: int, is_heard: bool) -> None:
        device = self.device(name)
        pulled = self.ask(device, limit)
        if is_heard:
            device.phone.take(pulled)
            self.counts["resyncs"] += sum(changes.resync for changes in pulled.changes)

    @rule(name=names, limit=limits)
    def all_pages(self, name: str, limit: int) -> None:
        """And once more, which says that the last of them has arrived."""
        device, more = self.device(name), True
        while more:
            pulled = self.ask(device, limit)
            device.phone.take(pulled)
            more = pulled.more
        self.ask(device, limit)

    def ask(self, device: Device, limit: int) -> Any:
        device.acknowledged, device.heard = copied(device.phone.kinds), self.clock.now
        device.backups.append((device.phone.key, copied(device.phone.kinds)))
        self.counts["pages"] += 1
        return device.phone.ask(limit)

    @precondition(lambda self: self.devices)
    @rule(name=names, data=st.data())
    def a_device_is_set_back(self, name: str, data: st.DataObject) -> None:
        device = self.device(name)
        key, had = device.backups[data.draw(st.integers(0, len(device.backups) - 1))]
        device.phone.key, device.phone.kinds = key, copied(had)

    @rule(seconds=st.sampled_from([1.0, 400.0, 1001.0]))
    def time_goes_on(self, seconds: float) -> None:
        self.clock.turn(seconds)

    @rule(name=names)
    def a_device_is_forgotten(self, name: str) -> None:
        self.sync().forget("ann", name)
        self.device(name).heard = NEVER

    # --- letting go ---

    @rule()
    def sweep(self) -> None:
        """No row goes, but for tombstones."""
        self.sync().sweep("ann")

    @rule(kind=kinds, keep=st.integers(0, 3))
    def purge(self, kind: str, keep: int) -> None:
        """What goes, every live device has acknowledged, with the value it has now."""
        rows = sorted(self.rows[kind])
        until = rows[-keep] if keep and len(rows) >= keep else b"\xff"
        count = self.sync().purge("ann", kind, until)
        there = dict(self.sync().contents("ann", kind))
        gone = self.rows[kind].items() - there.items()
        assert there.items() <= self.rows[kind].items() and count >= len(gone)
        assert all(row < until for row, _ in gone)
        for device in self.devices.values():
            if self.is_live(device):
                assert gone <= device.acknowledged.get(kind, {}).items(), "a live device had not acknowledged it"
        self.rows[kind] = there
        self.counts["purged"] += len(gone)

    # --- in the end ---

    @rule(name=names)
    def a_device_has_all(self, name: str) -> None:
        self.converge(self.device(name))

    def converge(self, device: Device) -> None:
        """Its rows are those that are here, and before the first of them others that were purged, at most."""
        for _ in range(500):
            pulled = self.ask(device, 3)
            device.phone.take(pulled)
            if not pulled.more:
                break
        else:
            raise AssertionError("no end")
        for kind in KINDS:
            told, has = self.sync().digest("ann", kind), device.phone.kinds.get(kind, {})
            assert {row: value for row, value in has.items() if row >= told.first} == self.rows[kind]
            assert digest_of(has.items(), told.first) == told
        assert not self.ask(device, 3).changes


@pytest.mark.timeout(max(300, EXAMPLE_COUNT * 5))
def test_sync_answers_as_dicts_would() -> None:
    began = time.monotonic()
    Machine.counts.clear()
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=EXAMPLE_COUNT,
            stateful_step_count=STEP_COUNT,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
    seconds = time.monotonic() - began
    print(
        f"\nsync machine: {EXAMPLE_COUNT} runs of up to {STEP_COUNT} steps in {seconds:.1f} s: {dict(Machine.counts)}"
    )
