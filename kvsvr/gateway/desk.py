"""What all connections share: who somebody is, how requests are done, and how something new is waited for.

A store's calls block, so they run in threads, so many at once; beyond `pending_count_max` requests are refused rather
than queued. Waiting takes no thread: `wait` is that of the store's `aio`. All else runs in the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any, Final, TypeVar

from kvsvr.errors import UsageError
from kvsvr.gateway.failures import Failure, Refusal, failure, judged
from kvsvr.gateway.frames import AnyAnswer, Issued, Login, Register, Registered, size_of
from kvsvr.gateway.limits import Limits, Rates, Seats
from kvsvr.gateway.tickets import Ticket, Tickets
from kvsvr.services import words
from kvsvr.services.messaging import Messaging
from kvsvr.services.names import name_of
from kvsvr.services.sync import bell_of
from kvsvr.services.words import AnyRequest

T = TypeVar("T")
Wait = Callable[[bytes, int, float], Awaitable[int]]
"""Until a key, or table, is above a version, or for so many seconds; the version it has then."""

LOG: Final = logging.getLogger("kvsvr.gateway")
WATCH_S: Final = 20.0
"""Of one wait for something new. Who waits is listed with each shared table, and has to be listed again so often."""


class Desk:
    def __init__(self, chat: Messaging, wait: Wait, tickets: Tickets, limits: Limits, *, login: bool = False) -> None:
        self.chat = chat
        self.limits = limits
        self.login = login
        self.stopping = asyncio.Event()
        self._wait = wait
        self._tickets = tickets
        self._rates = Rates(limits.rate, limits.burst)
        self._seats = Seats(limits.socket_count_max)
        self._threads = ThreadPoolExecutor(limits.thread_count, "kvsvr-gateway")
        self._pending_count = 0

    def close(self) -> None:
        """Comes back when no thread is in the store any more."""
        self._threads.shutdown()

    # --- who is there ---

    def ticket_of(self, text: str) -> Ticket:
        return self._tickets.check(text)

    def left(self, ticket: Ticket) -> float:
        return self._tickets.left(ticket)

    def admit(self, ticket: Ticket) -> str:
        """For every request: the user, if the ticket is still good and the rate allows it."""
        if self.left(ticket) <= 0:
            raise Refusal("expired", f"the ticket of {ticket.user!r} has ended")
        self._rates.spend(ticket.user)
        return ticket.user

    def seat(self, user: str) -> AbstractContextManager[None]:
        return self._seats.taken(user)

    # --- requests ---

    async def answer(self, user: str, device: str, request: AnyRequest | Register) -> AnyAnswer:
        """The reply, or a Failure: nothing is raised but what ends the connection."""
        try:
            return await self._answer(user, device, request)
        except Exception as error:
            return self.told(error)

    def told(self, error: Exception) -> Failure:
        """What whoever asked is told. What is our own fault is logged."""
        found = judged(error)
        if found.code == "internal":
            LOG.error("a request failed", exc_info=error)
        return found

    async def _answer(self, user: str, device: str, request: AnyRequest | Register) -> AnyAnswer:
        match request:
            case Register():
                return Registered(await self._in_thread(self.chat.register, user))
            case words.Pull(key, limit):
                return await self.pull(user, device, key, limit)
            case words.Wait(key, timeout):
                with self.seat(user):
                    return words.Woken(await self.news(user, device, key, timeout))
        reply = await self._in_thread(self.chat.handle, user, device, request)
        return failure(reply.reason, reply.message) if isinstance(reply, words.Failed) else reply

    async def logged_in(self, request: Login) -> AnyAnswer:
        if not self.login:
            raise Refusal("login_off", "there is no login here")
        name_of(request.user, "a user")
        await self._in_thread(self.chat.register, request.user)
        return Issued(request.user, self._tickets.issue(request.user, self.limits.ticket_s), self.limits.ticket_s)

    async def pull(self, user: str, device: str, key: bytes | None, limit: int) -> words.Page:
        """A page that is not too large: an older key is as good as before, so the same can be asked for with less."""
        name_of(device, "a device")
        self.check_limit(limit)
        while True:
            page = await self._in_thread(self.chat.handle, user, device, words.Pull(key, limit))
            if isinstance(page, words.Failed):
                raise Refusal(page.reason, page.message)
            assert isinstance(page, words.Page)
            if limit == 1 or size_of(page) <= self.limits.page_size_max:
                return page
            limit = max(1, limit // 4)

    def check_limit(self, limit: int) -> None:
        if not 1 <= limit <= self.limits.page_count_max:
            raise UsageError(f"limit is a number of rows from 1 to {self.limits.page_count_max}, not {limit}")

    async def ready(self) -> None:
        """Raises what a request would, if the store does not answer."""
        await self._in_thread(self.chat.sync.digest, "kvsvr/ready", "none")

    async def _in_thread(self, call: Callable[..., T], *arguments: Any) -> T:
        if self._pending_count >= self.limits.pending_count_max:
            raise Refusal("busy", "too much is being asked for here now")
        self._pending_count += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, call, *arguments)
        finally:
            self._pending_count -= 1

    # --- waiting ---

    async def news(self, user: str, device: str, key: bytes | None, timeout: float) -> bool:
        """Until there is something that the key does not cover; False at the timeout, or if this gateway stops."""
        name_of(device, "a device")
        if not 0 <= timeout <= self.limits.wait_s_max:
            raise UsageError(f"timeout is a number of seconds up to {self.limits.wait_s_max:g}, not {timeout:g}")
        deadline = time.monotonic() + timeout
        while not self.stopping.is_set():
            version = await self._in_thread(self.chat.sync.watch, user, WATCH_S)
            if not await self._in_thread(self.chat.sync.covers, user, device, key):
                return True
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            await self.rung(user, version, min(left, WATCH_S))
        return False

    async def watched(self, user: str) -> int:
        """What rung() wants to know, for the next WATCH_S seconds."""
        return await self._in_thread(self.chat.sync.watch, user, WATCH_S)

    async def rung(self, user: str, version: int, timeout: float) -> None:
        """Until the user's bell is above the version, or the timeout, or the stop."""
        await self.unless_stopping(self._asked(bell_of(user), version, timeout))

    async def _asked(self, key: bytes, version: int, timeout: float) -> None:
        await self._wait(key, version, timeout)

    async def unless_stopping(self, call: Coroutine[Any, Any, None]) -> None:
        """Awaits it, or the stop, if that comes first."""
        tasks = {asyncio.create_task(call), asyncio.create_task(_until(self.stopping))}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in done:
            task.result()


async def _until(event: asyncio.Event) -> None:
    await event.wait()
