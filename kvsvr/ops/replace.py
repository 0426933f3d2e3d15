"""One member takes another's place, while the set serves: what `kvsvr replace` does.

    1  the new one runs, as a learner, and every other one has met it
    2  every shard removes the old one and adds the new one, each by its own owner (docs/decisions/0029)
    3  if the old one still runs: the others have the bytes of all values that were written until then
    4  the old one ends, and the others part from it

Whoever is asked forgets it after two seconds (native/src/exchange.c), so all of them are asked again and again. Nothing
is kept here: if this ends half-way, the same command goes on where it was. Shards that are done stay done, whoever owns
them next.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from kvsvr.errors import KvError, UsageError
from kvsvr.node.config import Address, address
from kvsvr.node.report import Report, State
from kvsvr.ops import launcher
from kvsvr.ops.ask import Answer, Asker, NotAnswered, Refused
from kvsvr.ops.place import Place, Replica, find, make_one
from kvsvr.ops.status import launcher_pid, running
from kvsvr.ops.status import look as look_at

PAUSE_S: Final = 0.1
Tell = Callable[[str], None]
"""Hears how far it is, in words for people."""


@dataclass(frozen=True, slots=True)
class Known:
    """One node, as another one sees it."""

    node: int
    address: str
    linked: bool
    member_of: int
    owns: int


class Exchange:
    """`new` for `old`, in a set whose replicas listen for clients at `where`, by id, the old one's too if it runs."""

    def __init__(
        self, where: Mapping[int, Address], old: int, new: int, *, password: bytes, wait_s: float, tell: Tell
    ) -> None:
        self._where = dict(where)
        self._old = old
        self._new = new
        self._password = password
        self._deadline = time.monotonic() + wait_s
        self._tell = tell

    def run(self, *, old_runs: bool) -> None:
        """Steps 1 to 3. KvError: it took too long, and may be gone on with."""
        self._wait(self._is_met, f"replica {self._new} has not been met by all the others")
        shard_count = self._shard_count()
        done: set[int] = set()
        told = -1
        while len(done) < shard_count:
            for answer in self._ask_all("KV.MEMBER", "REPLACE", self._old, self._new):
                assert isinstance(answer, list)
                done |= {number for number in answer if isinstance(number, int)}
            if len(done) != told:
                told = len(done)
                self._tell(f"{told} of {shard_count} shards have replica {self._new} in place of {self._old}")
            if len(done) < shard_count:
                self._pause(f"{len(done)} of {shard_count} shards are done")
        if old_runs:
            finished = time.monotonic()
            self._wait(lambda: self._has_bytes(finished), f"bytes that may be on replica {self._old} alone are missing")

    def part(self) -> None:
        """Step 4, once the old one has ended. Who cannot be asked now hears it from the others."""
        left = self._others()
        while left:
            for one in list(left):
                # Refused: it has not heard yet that the old one is no member any more.
                with suppress(NotAnswered, Refused), Asker(one, self._password) as asker:
                    asker.ask("KV.MEMBER", "PART", self._old)
                    left.remove(one)
            if left:
                self._pause(f"{len(left)} replicas have not parted from {self._old}")

    def _others(self) -> list[Address]:
        """Without the old one."""
        return [where for node, where in self._where.items() if node != self._old]

    def _is_met(self) -> bool:
        """By who may own a shard."""
        for node, where in self._where.items():
            known = look(where, self._password)
            if node != self._new and not any(one.node == self._new and one.linked for one in known):
                return False
        return True

    def _has_bytes(self, since: float) -> bool:
        """All that was written before; what is younger comes from who is a member now."""
        for where in self._others():
            with Asker(where, self._password) as asker:
                answer = asker.ask("KV.MEMBER", "MISSING")
                assert isinstance(answer, list) and isinstance(answer[0], int) and isinstance(answer[1], int)
                if answer[0] != 0 and answer[1] / 1000 >= time.monotonic() - since:
                    return False
        return True

    def _shard_count(self) -> int:
        for answer in self._ask_all("INFO", "replication"):
            assert isinstance(answer, bytes)
            for line in answer.splitlines():
                if line.startswith(b"shards:"):
                    return int(line[7:])
        raise KvError("none of the replicas can be asked: kvsvr status says how they are")

    def _ask_all(self, *words: str | int) -> Iterable[Answer]:
        """Those that answer: who is away now owns nothing for long."""
        for where in self._where.values():
            with suppress(NotAnswered), Asker(where, self._password) as asker:
                yield asker.ask(*words)

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        while True:
            with suppress(NotAnswered):
                if condition():
                    return
            self._pause(what)

    def _pause(self, what: str) -> None:
        if time.monotonic() > self._deadline:
            raise KvError(f"{what}, and the time is up: the set serves as it is, and the same command goes on")
        time.sleep(PAUSE_S)


def look(where: Address, password: bytes) -> list[Known]:
    """Whom a replica knows, itself first. NotAnswered."""
    with Asker(where, password) as asker:
        answer = asker.ask("KV.MEMBER", "LIST")
    assert isinstance(answer, list)
    found = []
    for one in answer:
        assert isinstance(one, list)
        node, at, linked, member_of, owns = one
        assert isinstance(node, int) and isinstance(at, bytes) and isinstance(member_of, int) and isinstance(owns, int)
        found.append(Known(node, at.decode(), bool(linked), member_of, owns))
    return found


def replace_elsewhere(at: Address, old: int, new: int, *, password: bytes, wait_s: float, tell: Tell) -> None:
    """In a set of several machines, where the new one was started by hand. Any replica knows the others.

    The old one, if it runs, is left for its own machine to end.
    """
    known = look(at, password)
    if all(one.node != new for one in known):
        raise UsageError(f"replica {new} is not known at {at[0]}:{at[1]}: start it first, with these as its peers")
    where = {one.node: address(one.address) for one in known if one.linked and one.address}
    exchange = Exchange(where, old, new, password=password, wait_s=wait_s, tell=tell)
    exchange.run(old_runs=old in where)
    exchange.part()


def replace_here(place: Place, node: int, *, wait_s: float, tell: Tell) -> Replica:
    """In a set that a launcher runs: makes the new one, and ends the old one. What it is called now."""
    if launcher_pid(place) is None:
        raise UsageError(
            f"no launcher runs for {place.directory}, and only who serves can tell a new one: launch it first"
        )
    if len(place.replicas) == 1:
        raise UsageError("a set of one has nobody who could tell another one what it knows: back it up instead")
    old = place.replica(node)
    new = next((one for one in place.replicas if one.config.replaces[-1:] == (node,)), None)
    if new is None:
        new = _make(place, old, tell)
    else:
        tell(f"replica {new.node} goes on taking the place of {node}")
    place = find(place.directory)
    old_runs = _serves(old)
    if not old_runs:
        launcher.end(old)
    where = {one.node: one.config.client_address for one in place.replicas if one.node != node or old_runs}
    exchange = Exchange(where, node, new.node, password=new.config.password, wait_s=wait_s, tell=tell)
    exchange.run(old_runs=old_runs)
    os.replace(old.config_file, old.config_file.with_suffix(".toml.replaced"))
    launcher.end(old)
    exchange.part()
    return new


def _make(place: Place, old: Replica, tell: Tell) -> Replica:
    """Where the old one is given up its ports are free, and clients need not learn another."""
    found = next(one for one in look_at(place).replicas if one.id == old.node)
    new = make_one(place, old, keep_ports=found.given_up and running(old) is None)
    tell(f"replica {new.node} comes in place of {old.node}, at {new.address}")
    return new


def _serves(replica: Replica) -> bool:
    report = Report.read(replica.status_file)
    good = report is not None and report.state in (State.SERVING, State.WAITING)
    return good and running(replica) is not None
