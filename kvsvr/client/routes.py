"""Which replica owns what, who is down, and the numbers that make a write happen once. No sockets.

Any replica takes any command, so whatever stands in here may be old or wrong: that costs a hop between replicas.

Numbers: this process is one client of the set, under a random number. A call that writes takes a lane, in which nobody
else writes meanwhile, and the lane's next number. The set remembers by shard what each lane was told last, so the same
write sent again, through whichever replica, is answered and not executed (docs/protocol/specification.md, section 10).

Threads: any. Of two that change the same thing either may win; lanes are handed out by a deque, which is one step.
"""

from __future__ import annotations

import itertools
import random
import secrets
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from kvsvr.client.words import Words
from kvsvr.errors import UsageError
from kvsvr.store.slots import SLOT_COUNT

Address = tuple[str, int]

DOWN_S: Final = 1.0
"""A replica that could not be reached is not asked first for so long."""
REFRESH_S: Final = 10.0
"""Owners change without anybody being down, so they are asked for so often."""


def addresses_of(said: str | Iterable[str]) -> list[Address]:
    parts = said.split(",") if isinstance(said, str) else list(said)
    found = [_address(part.strip()) for part in parts]
    if not found:
        raise UsageError('there is no address: give "host:port", or several')
    return found


def _address(text: str) -> Address:
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise UsageError(f'an address is "host:port", as in "127.0.0.1:7101", not {text!r}')
    return host.strip("[]"), int(port)


@dataclass(slots=True)
class Lane:
    """One request at a time. `number` is that of the last one."""

    id: int
    number: int = 0

    def next(self) -> int:
        self.number += 1
        return self.number


@dataclass(slots=True)
class Write:
    """One write, from its first sending until it is answered. `words` says what it is, `key` and `table` are for
    errors."""

    slot: int
    words: Words
    number: int
    seen: int
    data: bool
    key: bytes | None = None
    table: bytes | None = None
    again: bool = False
    """It was sent before, or may have been."""
    answer: list[int] | None = field(default=None)

    def command(self, client: int, lane: Lane) -> Words:
        flags = int(self.again) | int(self.data) << 1
        return ("KV.ONCE", client, lane.id, self.number, self.seen, flags, *self.words)


class Routes:
    """What is known of the set."""

    def __init__(self, addresses: list[Address]) -> None:
        self.known = addresses
        self.client: Final = secrets.randbelow((1 << 63) - 1) + 1
        self.shard_count = 1
        self._learnt = False
        self._by_shard: dict[int, Address] = {}
        self._down: dict[Address, float] = {}
        self._seen: dict[int, int] = {}
        self._lanes: deque[Lane] = deque()
        self._lane_ids = itertools.count()
        self._turn = random.randrange(len(addresses))
        self._fresh_until = 0.0

    # --- lanes ---

    def take_lane(self) -> Lane:
        try:
            return self._lanes.pop()
        except IndexError:
            return Lane(next(self._lane_ids))

    def give_lane(self, lane: Lane) -> None:
        self._lanes.append(lane)

    def shard_of(self, slot: int) -> int:
        return slot * self.shard_count // SLOT_COUNT

    def seen(self, slot: int) -> int:
        return self._seen.get(self.shard_of(slot), 0)

    def saw(self, slot: int, version: int) -> None:
        if not self._learnt:
            return  # Of which shard it is, is not known. Having seen less is always true, and having seen more is not.
        shard = self.shard_of(slot)
        if version > self._seen.get(shard, 0):
            self._seen[shard] = version

    # --- owners ---

    @property
    def fresh(self) -> bool:
        return time.monotonic() < self._fresh_until

    def learn(self, slots: list[Any] | None, shard_count: int, asked: Address) -> None:
        """What CLUSTER SLOTS says; None: there is no cluster, and one replica has it all."""
        if shard_count != self.shard_count:
            self._seen.clear()
        self.shard_count, self._learnt = shard_count, True
        owners: dict[int, Address] = {}
        known = list(self.known)
        for first, last, *nodes in slots or []:
            for node in nodes:
                address = (node[0].decode() or asked[0], int(node[1]))
                if address not in known:
                    known.append(address)
            owner = (nodes[0][0].decode() or asked[0], int(nodes[0][1]))
            owners.update(dict.fromkeys(range(self.shard_of(int(first)), self.shard_of(int(last)) + 1), owner))
        self._by_shard, self.known = owners, known
        self._fresh_until = time.monotonic() + REFRESH_S

    def is_down(self, address: Address) -> None:
        self._down[address] = time.monotonic() + DOWN_S
        self._fresh_until = 0.0

    def doubt(self) -> None:
        """Somebody says that a slot is not served: owners are changing."""
        self._fresh_until = 0.0

    def pick(self, slot: int | None) -> Address:
        """Whom to ask: the owner, if it is known and not down; else one after the other of those that are not."""
        owner = None if slot is None else self._by_shard.get(self.shard_of(slot))
        now = time.monotonic()
        if owner is not None and self._down.get(owner, 0.0) <= now:
            return owner
        up = [address for address in self.known if self._down.get(address, 0.0) <= now] or self.known
        self._turn += 1
        return up[self._turn % len(up)]
