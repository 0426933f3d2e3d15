"""How anything is asked of a set: routes, retries, numbers, time. Coroutines over whatever carries them (wire.py).

A call is tried until its time is over: at the owner as far as it is known, then at one replica after the other. A read
may be asked as often as one likes. A write keeps its number through all of it, so it happens once; whether it did is
known with the first answer. A call that ends without one raises Unavailable if nothing was ever sent, else Unknown.

Cancelling a write, or Ctrl-C in one, leaves it open whether it happened, as with any store that is elsewhere.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from kvsvr.client.routes import Address, Lane, Routes, Write
from kvsvr.client.wire import Carrier, Lost, NotReached
from kvsvr.client.words import COME_AGAIN, SEEN, Failed, Words, error_of, figures_of
from kvsvr.errors import ClosedError, Unavailable, Unknown
from kvsvr.store.slots import slot_of

PATIENCE_S: Final = 1.5
"""So long one replica has for an answer, before another one is asked."""
PAUSE_S: Final = 0.01
PAUSE_LONGEST_S: Final = 0.2


class Caller:
    """How anything is asked: routes, retries, numbers."""

    def __init__(self, routes: Routes, carrier: Carrier, timeout: float, path: str) -> None:
        self.routes: Final = routes
        self.path: Final = path
        self._carrier = carrier
        self._timeout = timeout
        self._closed = False

    async def close(self) -> None:
        self._closed = True
        await self._carrier.close()

    # --- reads ---

    async def read(self, *words: Any, key: bytes | None = None, table: bytes | None = None, stale: bool = False) -> Any:
        """The answer of one command that changes nothing. `key` and `table` say where it goes, and are for errors."""
        name = table if table is not None else key
        slot = None if name is None or stale else slot_of(name)
        (answer,) = await self._until_answered(slot, [words], stale=stale)
        if isinstance(answer, Failed):
            raise error_of(str(answer), self.path, key, table)
        return answer

    async def read_many(self, names: Sequence[bytes], words: Callable[[bytes], Words], *, stale: bool) -> list[Any]:
        """One command for each name, those of one replica sent together."""
        await self._refresh(self._deadline())
        groups: dict[Address | None, list[int]] = {}
        for index, name in enumerate(names):
            groups.setdefault(None if stale else self.routes.pick(slot_of(name)), []).append(index)
        answers: list[Any] = [None] * len(names)
        for indexes in groups.values():
            slot = None if stale else slot_of(names[indexes[0]])
            told = await self._until_answered(slot, [words(names[index]) for index in indexes], stale=stale)
            for index, answer in zip(indexes, told, strict=True):
                if isinstance(answer, Failed):
                    raise error_of(str(answer), self.path, names[index])
                answers[index] = answer
        return answers

    async def _until_answered(self, slot: int | None, commands: list[Words], *, stale: bool) -> list[Any]:
        deadline, pause, why = self._deadline(), PAUSE_S, "no replica could be reached"
        while True:
            await self._refresh(deadline)
            address = self.routes.pick(slot)
            try:
                answers = await self._carrier.carry(address, commands, self._patience(deadline), stale=stale)
            except (NotReached, Lost) as error:
                self.routes.is_down(address)
                why = str(error)
            except Failed as error:
                raise error_of(str(error), self.path) from None
            else:
                refused = next((str(one) for one in answers if _comes_again(one)), None)
                if refused is None:
                    return answers
                self.routes.doubt()
                why = refused
            pause = await self._pause(pause, deadline, Unavailable(f"{self.path}: {why}"))

    # --- writes ---

    def write_of(
        self, words: Words, *, data: bool, key: bytes | None = None, table: bytes | None = None, at: bytes | None = None
    ) -> Write:
        """`key` and `table` are for errors, and say where it goes unless `at` does."""
        name = at if at is not None else table if table is not None else key
        assert name is not None
        return Write(slot_of(name), words, 0, 0, data, key, table)

    async def once(self, write: Write) -> list[int]:
        """[version, number, version of the shard], and the version 0 where there was nothing to do."""
        (answer,) = await self.once_each([write])
        return answer

    async def once_each(self, writes: Sequence[Write]) -> list[list[int]]:
        """All of them, once each. Of one shard one is under way at a time, in the order given; of several, side
        by side. The first that fails is raised when those beside it have been answered."""
        await self._refresh(self._deadline())
        lane = self.routes.take_lane()
        try:
            for row in self._rows(writes):
                await self._row(row, lane)
        finally:
            self.routes.give_lane(lane)
        return [write.answer or [0, 0, 0] for write in writes]

    def _rows(self, writes: Sequence[Write]) -> list[list[Write]]:
        """The nth of each shard make a row."""
        rows: list[list[Write]] = []
        counts: dict[int, int] = {}
        for write in writes:
            shard = self.routes.shard_of(write.slot)
            nth = counts[shard] = counts.get(shard, -1) + 1
            if nth == len(rows):
                rows.append([])
            rows[nth].append(write)
        return rows

    async def _row(self, row: list[Write], lane: Lane) -> None:
        deadline = self._deadline()
        groups: dict[Address, list[Write]] = {}
        for write in row:
            write.number, write.seen = lane.next(), self.routes.seen(write.slot)
            groups.setdefault(self.routes.pick(write.slot), []).append(write)
        failures: list[Exception] = []
        for address, group in groups.items():
            why = await self._send(address, group, lane, deadline, failures)
            for write in group:
                if write.answer is None:
                    await self._insist(write, lane, deadline, why, failures)
        if failures:
            raise failures[0]

    async def _insist(self, write: Write, lane: Lane, deadline: float, why: str, failures: list[Exception]) -> None:
        """It was sent, maybe, or is to be sent otherwise, and goes on alone."""
        pause = PAUSE_S
        while write.answer is None:
            lost = Unknown(f"{self.path}: no answer came to a write ({why}): read before writing again")
            over = lost if write.again else Unavailable(f"{self.path}: {why}")
            try:
                pause = await self._pause(pause, deadline, over)
            except (Unavailable, Unknown) as error:
                failures.append(error)
                write.answer = [0, 0, 0]
                return
            await self._refresh(deadline)
            why = await self._send(self.routes.pick(write.slot), [write], lane, deadline, failures)

    async def _send(
        self, address: Address, group: list[Write], lane: Lane, deadline: float, failures: list[Exception]
    ) -> str:
        """Those that are answered have an answer then; for the others, why not."""
        commands = [write.command(self.routes.client, lane) for write in group]
        try:
            answers = await self._carrier.carry(address, commands, self._patience(deadline), stale=False)
        except (NotReached, Lost) as error:
            self.routes.is_down(address)
            for write in group:
                write.again |= isinstance(error, Lost)
            return str(error)
        except Failed as error:
            raise error_of(str(error), self.path) from None
        why = ""
        for write, answer in zip(group, answers, strict=True):
            why = self._settle(write, lane, answer, failures) or why
        return why

    def _settle(self, write: Write, lane: Lane, answer: Any, failures: list[Exception]) -> str:
        if not isinstance(answer, Failed):
            self.routes.saw(write.slot, int(answer[2]))
            write.answer = [int(number) for number in answer]
            return ""
        text = str(answer)
        seen = SEEN.match(text)
        if seen is not None:  # Nothing was done, and no copy will be: so it is a new write.
            self.routes.saw(write.slot, int(seen[1]))
            write.number, write.seen, write.again = lane.next(), int(seen[1]), False
            return text
        if _comes_again(answer):
            self.routes.doubt()
            write.again = True
            return text
        failures.append(error_of(text, self.path, write.key, write.table))
        write.answer = [0, 0, 0]
        return ""

    # --- time, and who is who ---

    def _deadline(self) -> float:
        if self._closed:
            raise ClosedError(f"{self.path} was closed: connect again")
        return time.monotonic() + self._timeout

    @staticmethod
    def _patience(deadline: float) -> float:
        return max(0.01, min(PATIENCE_S, deadline - time.monotonic()))

    async def _pause(self, pause: float, deadline: float, over: Exception) -> float:
        """The next one; `over` is raised if there is no time for one."""
        if time.monotonic() + pause >= deadline:
            raise over
        await self._carrier.pause(random.uniform(0.5, 1) * pause)
        return min(2 * pause, PAUSE_LONGEST_S)

    async def is_spread(self) -> bool:
        """Whether there are several shards, so that what is written together has to be of one slot."""
        await self._refresh(self._deadline())
        return self.routes.shard_count > 1

    async def _refresh(self, deadline: float) -> None:
        """Asks who owns what, unless that is known. If nobody says, what was known has to do."""
        for _ in self.routes.known if not self.routes.fresh else ():
            address = self.routes.pick(None)
            commands: list[Words] = [("CLUSTER", "SLOTS"), ("INFO",)]
            try:
                slots, info = await self._carrier.carry(address, commands, self._patience(deadline), stale=False)
            except (NotReached, Lost):
                self.routes.is_down(address)
                continue
            except Failed as error:
                raise error_of(str(error), self.path) from None
            if isinstance(info, Failed):
                raise error_of(str(info), self.path)
            shards = int(figures_of(info).get("shards", 1))
            self.routes.learn(None if isinstance(slots, Failed) else slots, shards, address)
            return


def _comes_again(answer: Any) -> bool:
    return isinstance(answer, Failed) and str(answer).startswith(COME_AGAIN)
