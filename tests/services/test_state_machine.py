"""Messaging, sync and queue against a reference model: who was a member when something was sent, and sets of messages.

Hypothesis plays rules in any order: users send and recall, come and go, in a small group and a large one, while the
queue is behind; devices ask, lose replies and hear them twice, are set back to older keys, forgotten, and away for
longer than their lease; purges; workers that die with tasks in hand; processes killed at any write, and the store.

The model knows no epoch, queue, version or row. What is demanded:

- A device never shows a message that its user was not to have: no rule says so, each reply is looked at.
- What retention takes away, every device that lives has acknowledged: it had it when it last asked.
- When all is delivered, what a user was to have is there, or was taken away by retention; and each device that has
  asked for everything has the digest that it is told, recalls and read marks included.

Long runs: KVSVR_HYPOTHESIS_EXAMPLES=2000 python -m pytest tests/services/test_state_machine.py -s
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

import kvsvr
from kvsvr.messaging import Message, Messaging, Sent
from kvsvr.services import groups, words
from kvsvr.sync import Changes, Sync, digest_of
from tests.services.conftest import Dying, Killed, Turned
from tests.services.devices import Phone
from tests.store.test_state_machine import abandon

EXAMPLE_COUNT = int(os.environ.get("KVSVR_HYPOTHESIS_EXAMPLES", "60"))
STEP_COUNT = 50
USERS = ["ann", "bob", "cat"]
SMALL, LARGE = "small", "large"
FAN_OUT_MAX = {SMALL: 500, LARGE: 1}
INBOX_COUNT_MAX = 1
LEASE_S = 30 * 86_400
NEVER = float("-inf")
SECRET = b"of the state machine"

Name: TypeAlias = tuple[str, int]
"""A message: its source, and its number there."""

users = st.sampled_from(USERS)
group_names = st.sampled_from([SMALL, LARGE])
limits = st.sampled_from([1, 2, 3, 100])
deaths = st.one_of(st.just(0), st.integers(1, 12))


class Device:
    """A client's own state, what the server may rely on, and backups."""

    def __init__(self, phone: Phone) -> None:
        self.phone = phone
        self.heard = NEVER
        self.acknowledged: set[Name] = set()
        self.backup: tuple[bytes | None, dict[str, dict[bytes, bytes]]] = (None, {})

    def messages(self) -> dict[Name, Message]:
        return messages_of(self.phone.kinds)


def messages_of(kinds: dict[str, dict[bytes, bytes]]) -> dict[Name, Message]:
    found = {}
    for kind, rows in kinds.items():
        if kind == "inbox" or kind.startswith("g/"):
            for value in rows.values():
                one = msgspec.json.decode(value, type=Message)
                found[one.source, one.seq] = one
    return found


class Machine(RuleBasedStateMachine):
    counts: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="kvsvr-services-"))
        self.clock = Turned()
        self.db = self.open()
        self.number = 0
        self.devices: dict[tuple[str, str], Device] = {}
        self.members: dict[str, set[str]] = {SMALL: set(), LARGE: set()}
        self.entitled: dict[str, set[Name]] = {user: set() for user in USERS}
        self.sent: dict[Name, str] = {}
        self.recalled: set[Name] = set()
        self.purged: dict[str, set[Name]] = {user: set() for user in USERS}
        self.marks: dict[str, dict[str, int]] = {user: {} for user in USERS}

    def open(self) -> kvsvr.Engine:
        return kvsvr.open(self.root / "store", sync="none", slots="strict", compaction=False)

    def chat(self, group: str = SMALL, *, db: Any = None, local: bool = False) -> Messaging:
        """A process that has just started."""
        store = db or self.db
        sync = Sync(store, SECRET, clock=self.clock, lease=LEASE_S)
        return Messaging(
            store,
            sync,
            fan_out_max=FAN_OUT_MAX[group],
            inbox_count_max=INBOX_COUNT_MAX,
            local=local,
            clock=self.clock,
        )

    def teardown(self) -> None:
        if hasattr(self, "db"):
            self.everything_is_delivered()
            self.db.close()
        shutil.rmtree(self.root)

    @initialize()
    def begin(self) -> None:
        for user in USERS:
            self.chat().register(user)
            self.device(user, "phone")
        for group in (SMALL, LARGE):
            self.chat(group).create("ann", group, open=True)
            self.members[group].add("ann")

    def attempt(self, death: int, before: bool, group: str, local: bool, call: Callable[[Messaging], object]) -> bool:
        """A call in a process that is killed at its `death`-th write, if it comes so far; whether it was not."""
        dying = Dying(self.db, death, before=before)
        with suppress(Killed):
            call(self.chat(group, db=dying, local=local))
            return True
        self.counts["killed"] += 1
        return False

    # --- sending ---

    @rule(user=users, to=users, death=deaths, before=st.booleans(), local=st.booleans(), again=st.booleans())
    def send(self, user: str, to: str, death: int, before: bool, local: bool, again: bool) -> None:
        client_id = self.next_id()

        def call(chat: Messaging) -> Sent:
            return chat.send(user, f"u/{to}", client_id, client_id)

        if not self.attempt(death, before, SMALL, local, call) and not again:
            content = self.db.table(f"{{u/{user}}}:sent".encode()).get(client_id.encode())
            if content is not None:
                self.sent_to({user, to}, user, (f"u/{user}", int.from_bytes(content)))
            return
        sent = call(self.chat())  # A client that heard nothing, or whose reply was lost.
        assert call(self.chat()) == sent
        self.sent_to({user, to}, user, (sent.source, sent.seq))

    @rule(user=users, group=group_names, death=deaths, before=st.booleans(), local=st.booleans(), again=st.booleans())
    def send_to_group(self, user: str, group: str, death: int, before: bool, local: bool, again: bool) -> None:
        client_id = self.next_id()
        if user not in self.members[group]:
            with pytest.raises(kvsvr.KvError, match="no member"):
                self.chat(group).send(user, f"g/{group}", "never", client_id)
            return

        def call(chat: Messaging) -> Sent:
            return chat.send(user, f"g/{group}", client_id, client_id)

        if not self.attempt(death, before, group, local, call) and not again:
            found = self.db.run(lambda t: groups.sent_before(t, group, user, client_id))
            if found is not None:
                self.sent_to(self.members[group], user, (f"g/{group}", int.from_bytes(found[0])))
            return
        sent = call(self.chat(group))
        assert call(self.chat(group)) == sent
        self.sent_to(self.members[group], user, (sent.source, sent.seq))

    def next_id(self) -> str:
        self.number += 1
        return str(self.number)

    def sent_to(self, receivers: set[str], by: str, name: Name) -> None:
        assert name not in self.sent, "a number came twice"
        self.sent[name] = by
        for user in receivers:
            self.entitled[user].add(name)

    @rule(data=st.data(), death=deaths, before=st.booleans(), local=st.booleans())
    def recall(self, data: st.DataObject, death: int, before: bool, local: bool) -> None:
        names = sorted(name for name in self.sent if name[1] / 1e6 > self.clock.now - 100)
        if not names:
            return
        name = data.draw(st.sampled_from(names), "message")
        source, seq = name

        def call(chat: Messaging) -> None:
            chat.recall(self.sent[name], source, seq)

        group = LARGE if source == f"g/{LARGE}" else SMALL
        if not self.attempt(death, before, group, local, call):
            call(self.chat(group))
        self.recalled.add(name)

    @rule(user=users, conversation=st.sampled_from(["u/ann", "g/small"]), seq=st.integers(1, 9))
    def mark(self, user: str, conversation: str, seq: int) -> None:
        moved = self.chat().mark(user, conversation, seq)
        assert moved == (seq > self.marks[user].get(conversation, 0))
        self.marks[user][conversation] = max(seq, self.marks[user].get(conversation, 0))

    # --- coming and going ---

    @rule(user=users, group=group_names, death=deaths, before=st.booleans(), local=st.booleans())
    def join(self, user: str, group: str, death: int, before: bool, local: bool) -> None:
        if self.attempt(death, before, group, local, lambda chat: chat.join(user, group)) or self.is_there(user, group):
            self.members[group].add(user)

    @rule(user=users, group=group_names, death=deaths, before=st.booleans(), local=st.booleans())
    def leave(self, user: str, group: str, death: int, before: bool, local: bool) -> None:
        if self.attempt(death, before, group, local, lambda chat: chat.leave(user, group)) or not self.is_there(
            user, group
        ):
            self.members[group].discard(user)

    def is_there(self, user: str, group: str) -> bool:
        return user in groups.members_now(self.db, group)

    # --- workers ---

    @rule(limit=st.integers(1, 5))
    def a_worker_comes(self, limit: int) -> None:
        self.chat().deliver(limit=limit)

    @rule(death=st.integers(1, 40), before=st.booleans())
    def a_worker_dies(self, death: int, before: bool) -> None:
        """With tasks in hand, and others that it has done and not acknowledged."""
        self.attempt(death, before, SMALL, False, lambda chat: chat.deliver())

    @rule(step=st.sampled_from([1, 31, 61]))
    def time_goes_on(self, step: int) -> None:
        self.clock.turn(step)

    @rule()
    def a_long_time_goes_by(self) -> None:
        """Longer than the lease of a device, and than a week, in which a client id is the same message."""
        self.clock.turn(LEASE_S + 1)

    @rule()
    def the_store_is_killed(self) -> None:
        abandon(self.db)
        self.db = self.open()

    # --- devices ---

    def device(self, user: str, name: str) -> Device:
        if (user, name) not in self.devices:
            phone = Phone(lambda *arguments: self.chat().pull(*arguments), user, name)
            self.devices[user, name] = Device(phone)
        return self.devices[user, name]

    @rule(
        user=users,
        name=st.sampled_from(["phone", "desk"]),
        limit=limits,
        pages=st.integers(1, 4),
        fate=st.sampled_from(["heard", "heard", "lost", "twice"]),
    )
    def a_device_asks(self, user: str, name: str, limit: int, pages: int, fate: str) -> None:
        """Some pages; the last reply may be lost, or heard twice."""
        device = self.device(user, name)
        for page in range(pages):
            pulled = self.ask(device, limit)
            if fate == "lost" and page == pages - 1:
                self.counts["lost"] += 1
                return
            for _ in range(2 if fate == "twice" else 1):
                device.phone.take(pulled)
            self.counts["resyncs"] += sum(changes.resync for changes in pulled.changes)
            self.check_withheld(device)
            if not pulled.more:
                return

    @rule(limit=limits)
    def all_devices_ask(self, limit: int) -> None:
        """Until there is no more, and then once, which says that it has arrived."""
        for device in self.devices.values():
            pulled = self.ask(device, limit)
            while pulled.more:
                device.phone.take(pulled)
                pulled = self.ask(device, limit)
            device.phone.take(pulled)
            self.check_withheld(device)
            self.ask(device, limit)

    def ask(self, device: Device, limit: int) -> Any:
        """Asking with a key is the acknowledgement of what the device has."""
        device.acknowledged = set(device.messages())
        device.heard = self.clock.now
        self.counts["pages"] += 1
        return device.phone.ask(limit)

    def check_withheld(self, device: Device) -> None:
        found = device.messages()
        assert found.keys() <= self.entitled[device.phone.user], "somebody sees what he is not to have"
        for name, one in found.items():
            assert one.sender == self.sent[name]

    @rule(user=users, name=st.sampled_from(["phone", "desk"]))
    def a_device_is_backed_up(self, user: str, name: str) -> None:
        device = self.device(user, name)
        kinds = {kind: dict(rows) for kind, rows in device.phone.kinds.items()}
        device.backup = device.phone.key, kinds

    @rule(user=users, name=st.sampled_from(["phone", "desk"]))
    def a_device_is_set_back(self, user: str, name: str) -> None:
        device = self.device(user, name)
        key, kinds = device.backup
        device.phone.key, device.phone.kinds = key, {kind: dict(rows) for kind, rows in kinds.items()}
        self.counts["set back"] += 1

    @rule(user=users, name=st.sampled_from(["phone", "desk"]))
    def a_device_is_forgotten(self, user: str, name: str) -> None:
        self.chat().sync.forget(user, name)
        self.device(user, name).heard = NEVER

    # --- letting go ---

    @rule(death=deaths, before=st.booleans())
    def tidy(self, death: int, before: bool) -> None:
        """What goes has been acknowledged by each device that lives."""
        for user in USERS:
            had = self.stored(user)
            self.attempt(death, before, SMALL, False, lambda chat, user=user: chat.tidy(user))  # type: ignore[misc]
            gone = set(had) - set(self.stored(user))
            self.purged[user] |= gone
            self.counts["purged"] += len(gone)
            for (owner, _), device in self.devices.items():
                if owner == user and device.heard + LEASE_S > self.clock.now:
                    assert gone <= device.acknowledged, "something went that a live device had not acknowledged"

    @rule(group=group_names)
    def tidy_group(self, group: str) -> None:
        self.chat(group).tidy_group(group)

    def stored(self, user: str) -> dict[Name, Message]:
        """What somebody who has everything would have now."""
        chat, kinds = self.chat(), ["inbox", *self.chat().sync._read_state(user).shared]
        stored = [chat._filled(Changes(kind, list(chat.sync.contents(user, kind)), [])) for kind in kinds]
        return messages_of({one.kind: dict(one.rows) for one in stored})

    # --- when all is done ---

    @rule()
    def everything_is_delivered(self) -> None:
        """And every device asks until there is no more."""
        for _ in range(4):
            self.clock.turn(31)
            for group in (SMALL, LARGE):
                self.chat(group).deliver()
        for user in USERS:
            there = self.stored(user)
            assert there.keys() <= self.entitled[user]
            assert there.keys() | self.purged[user] == self.entitled[user], "something was lost"
            assert {name for name, one in there.items() if one.recalled} == self.recalled & there.keys()
        for device in self.devices.values():
            self.converge(device)

    def converge(self, device: Device) -> None:
        chat, phone, more = self.chat(), device.phone, True
        while more:
            pulled = self.ask(device, 7)
            phone.take(pulled)
            more = pulled.more
        self.check_withheld(device)
        device.acknowledged = set(device.messages())
        self.ask(device, 7)
        for kind in {"inbox", "groups", "marks", *phone.kinds}:
            told = chat.digest(phone.user, kind)
            assert digest_of(phone.kinds.get(kind, {}).items(), told.first) == told, kind
        marks = {row.decode(): int(value) for row, value in phone.kinds.get("marks", {}).items()}
        assert marks == self.marks[phone.user]
        for group in (SMALL, LARGE):
            value = phone.kinds.get("groups", {}).get(group.encode())
            told_so = value is not None and msgspec.json.decode(value, type=words.Membership).member
            assert told_so == (phone.user in self.members[group])


@pytest.mark.timeout(max(300, EXAMPLE_COUNT * 10))
def test_messaging_answers_as_sets_would() -> None:
    """Whoever dies, whatever is lost, and in whichever order: see above."""
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
        f"\nstate machine: {EXAMPLE_COUNT} runs of up to {STEP_COUNT} steps in {seconds:.1f} s: {dict(Machine.counts)}"
    )
