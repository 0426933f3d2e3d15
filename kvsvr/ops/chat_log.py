"""Replays the log of a chat channel: every nick a user, the channel a group, every line a message, comings and goings
as changes of members; then all devices sync, and what each has is compared with chat_check, which reads the file by
itself.

    [12:18] <nick> text                         a message
    [12:18]  * nick text, === nick text         an action: a message, too
    === nick [...] has joined #channel          comes;  ... has left #channel  goes
    === nick is now known as other              one goes, and the other comes

A log begins in the middle, and misses things. Who is not seen to come before anything else he does was there from the
start; who says something while he is not there comes with it; who comes twice, or goes while not there, changes
nothing.

The queue lags behind on purpose, by chance and a seed, so that joins and leaves race with deliveries. A third of the
users sync as it goes, a third at the end only, a third with one device of each kind.
"""

from __future__ import annotations

import random
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, NamedTuple

import msgspec

from kvsvr.errors import UsageError
from kvsvr.services.messaging import Messaging
from kvsvr.services.words import Message

LINE: Final = re.compile(r"\[\d\d:\d\d\] (?:<(?P<nick>[^>\s]+)> ?| {0,2}\* (?P<actor>\S+) ?)(?P<text>.*)")
NOTICE: Final = re.compile(r"=== (?P<nick>\S+) ?(?P<text>.*)")
CHANGE: Final = re.compile(r"\[.*\] +has (?P<what>joined|left) (?P<channel>[#&]\S+)")
RENAME: Final = re.compile(r"is now known as (?P<other>\S+)")
DELIVERY_ODDS: Final = 0.1
SYNC_ODDS: Final = 0.05
PAGE_COUNT: Final = 100


class Event(NamedTuple):
    what: Literal["said", "came", "went", "renamed"]
    nick: str
    text: str = ""
    """Of a renaming the new nick, of a coming or going the channel."""


def read(file: Path) -> list[Event]:
    with file.open(encoding="utf-8", errors="replace", newline="\n") as stream:
        return [event for line in stream if (event := event_of(line.rstrip("\r\n"))) is not None]


def event_of(line: str) -> Event | None:
    said = LINE.match(line)
    if said:
        return Event("said", said["nick"] or said["actor"], said["text"])
    notice = NOTICE.match(line)
    if notice is None:
        return None
    change, rename = CHANGE.match(notice["text"]), RENAME.fullmatch(notice["text"])
    if change:
        return Event("came" if change["what"] == "joined" else "went", notice["nick"], change["channel"])
    return Event("renamed", notice["nick"], rename["other"]) if rename else Event("said", *notice.groups())


def channel_of(events: Iterable[Event], file: Path) -> str:
    """The group: channel and file, since a log is one stretch of a channel's life."""
    channel = next((event.text for event in events if event.what in ("came", "went")), "#channel")
    return user_of(f"{channel}@{file.name.partition('.')[0]}")


def user_of(nick: str) -> str:
    """Names of the module have no braces, and nicks do."""
    text = nick.replace("%", "%25").replace("{", "%7B").replace("}", "%7D")
    return "".join(char if char.isprintable() else f"%{ord(char):02X}" for char in text)[:190]


def present_at_start(events: Iterable[Event]) -> list[str]:
    seen: dict[str, bool] = {}
    for event in events:
        seen.setdefault(event.nick, event.what != "came")
        if event.what == "renamed":
            seen.setdefault(event.text, False)
    return [nick for nick, was_there in seen.items() if was_there]


@dataclass
class Device:
    user: str
    name: str
    key: bytes | None = None
    rows: dict[tuple[str, bytes], bytes] = field(default_factory=dict)

    def sync(self, chat: Messaging, counts: Counter[str]) -> None:
        more = True
        while more:
            pulled = chat.pull(self.user, self.name, self.key, PAGE_COUNT)
            counts["pages"] += 1
            counts["bytes"] += len(pulled.key)
            for changes in pulled.changes:
                if changes.resync:
                    self.rows = {name: value for name, value in self.rows.items() if name[0] != changes.kind}
                self.rows.update({(changes.kind, row): value for row, value in changes.rows})
                counts["rows"] += len(changes.rows)
                counts["bytes"] += sum(len(row) + len(value) for row, value in changes.rows)
            self.key, more = pulled.key, pulled.more

    def messages(self, group: str) -> list[tuple[str, str]]:
        """Of a group, in its order: sender and text."""
        values = [value for (kind, _), value in self.rows.items() if kind == "inbox" or kind.startswith("g/")]
        found = [msgspec.json.decode(value, type=Message) for value in values]
        own = sorted((one.seq, one.sender, one.text) for one in found if one.to == f"g/{group}")
        return [(sender, text) for _, sender, text in own]


@dataclass
class Devices:
    """Of all users, over all logs of a run: those that sync as it goes, and those that come at the end of a log."""

    early: dict[str, Device] = field(default_factory=dict)
    late: dict[str, Device] = field(default_factory=dict)

    def of(self, users: Collection[str]) -> list[Device]:
        return [kind[user] for user in users for kind in (self.early, self.late) if user in kind]


class Replay:
    """One log into one store."""

    def __init__(self, chat: Messaging, file: Path, seed: int, devices: Devices) -> None:
        self.file = file
        self.events = read(file)
        self.group = channel_of(self.events, file)
        self.counts: Counter[str] = Counter()
        self.seconds: Counter[str] = Counter()
        self.users: set[str] = set()
        self._devices = devices
        self._chat = chat
        self._random = random.Random(f"{seed} {file.name}")
        self._present: set[str] = set()

    def run(self, progress: Callable[[int], None]) -> None:
        if not self.events:
            raise UsageError(f"{self.file} has no line of a chat log: see docs/command-line.md")
        began = time.monotonic()
        for nick in present_at_start(self.events):
            self._come(nick)
        for number, event in enumerate(self.events):
            self._play(number, event)
            if self._random.random() < DELIVERY_ODDS:
                self._chat.deliver(limit=self._random.randint(1, 20))
            if self._random.random() < SYNC_ODDS and self._devices.early:
                self._random.choice(list(self._devices.early.values())).sync(self._chat, self.counts)
            progress(number + 1)
        while self._chat.deliver():
            pass
        replayed = time.monotonic()
        for device in self.devices():
            device.sync(self._chat, self.counts)
        self.seconds.update({"replay": replayed - began, "sync": time.monotonic() - replayed})

    def devices(self) -> list[Device]:
        """Of those who are in this log."""
        return self._devices.of(self.users)

    def _play(self, number: int, event: Event) -> None:
        match event.what:
            case "said":
                self._come(event.nick)
                self._chat.send(user_of(event.nick), f"g/{self.group}", event.text, f"{self.group} {number}"[-200:])
                self.counts["messages"] += 1
            case "came":
                self._come(event.nick)
            case "went":
                self._go(event.nick)
            case "renamed" if event.nick in self._present and event.text != event.nick:
                self._go(event.nick)
                self._come(event.text)

    def _come(self, nick: str) -> None:
        if nick in self._present:
            return
        user = user_of(nick)
        self.users.add(user)
        if not self._devices.of([user]):
            self._meet(user)
        if self.counts["joins"] == 0:
            if self._chat.create(user, self.group, open=True) != 1:
                raise UsageError(f"{self.group} has been imported here before: take another directory")
        else:
            self._chat.join(user, self.group)
        self._present.add(nick)
        self.counts["joins"] += 1
        self.counts["largest"] = max(self.counts["largest"], len(self._present))

    def _go(self, nick: str) -> None:
        if nick in self._present:
            self._chat.leave(user_of(nick), self.group)
            self._present.remove(nick)
            self.counts["leaves"] += 1

    def _meet(self, user: str) -> None:
        self._chat.register(user)
        which = self._random.randrange(3)
        if which != 1:
            self._devices.early[user] = Device(user, "early")
        if which != 0:
            self._devices.late[user] = Device(user, "late")
