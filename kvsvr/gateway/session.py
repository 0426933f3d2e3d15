"""A WebSocket: requests in their order, and push beside them.

    client                                      gateway
    hello: ticket, device, key            ->
                                          <-    welcome
                                          <-    page, with push: what the key does not cover
    ack: the key of that page             ->                                          (the next page may come)
    send, mark, pull ..., each with an id ->
                                          <-    the reply, with the id
    beat                                  ->    (and back)

One page is on its way at a time, and the gateway goes on from a key only when the client has said that it has it: what
was sent to a socket that broke was not given to anybody. So a session is its key, and any gateway can go on with it.

Three coroutines: one reads and answers, one pushes, one ends the session when the ticket ends, the client says nothing,
or the gateway stops. The first that ends ends all.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Final

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from kvsvr.gateway.desk import WATCH_S, Desk
from kvsvr.gateway.failures import Failure, Refusal, failure, judged
from kvsvr.gateway.frames import Ack, AnyAnswer, Beat, Hello, Welcome, frame, frame_of, number_of
from kvsvr.gateway.tickets import Ticket
from kvsvr.services import words

REFUSED: Final = 4400
"""A status of 400 or more, and 4000 with it, is why the gateway closed a socket: 4401 for a ticket."""
GOING_AWAY: Final = 1012
PAUSE_S: Final = 1.0
"""Until the next look, when the store could not answer."""


class Session:
    def __init__(self, desk: Desk, socket: WebSocket) -> None:
        self._desk = desk
        self._socket = socket
        self._sending = asyncio.Lock()
        self._heard_at = time.monotonic()
        self._acked = asyncio.Event()
        self._pushed: bytes | None = None
        """The key of the page that is on its way."""
        self._ticket = Ticket("", 0)
        self._hello = Hello("")

    async def run(self) -> None:
        await self._socket.accept()
        try:
            async with asyncio.timeout(self._desk.limits.hello_s):
                await self._enter()
            with self._desk.seat(self._ticket.user):
                await self._serve()
        except WebSocketDisconnect:
            pass
        except TimeoutError:
            await self._end(failure("usage", "a socket begins with hello"))
        except Exception as error:
            await self._end(self._desk.told(error))

    async def _enter(self) -> None:
        text = await self._hear()
        hello = frame_of(text)
        if not isinstance(hello, Hello):
            raise Refusal("usage", "a socket begins with hello")
        self._ticket = self._desk.ticket_of(hello.ticket)
        self._hello = hello
        self._desk.check_limit(hello.limit)
        # Refused here if the key is not this device's.
        await self._desk.news(self._desk.admit(self._ticket), hello.device, hello.key, 0)
        await self._welcome(text)

    async def _serve(self) -> None:
        tasks = [asyncio.create_task(one) for one in (self._read(), self._watch())]
        if self._hello.push:
            tasks.append(asyncio.create_task(self._push()))
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in done:
            task.result()

    # --- requests ---

    async def _hear(self) -> str:
        message = await self._socket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message["code"])
        text: str | None = message.get("text")
        if text is None:
            raise Refusal("malformed", "frames are text")
        self._heard_at = time.monotonic()
        return text

    async def _read(self) -> None:
        while True:
            text = await self._hear()
            number = number_of(text)
            try:
                await self._take(text, number)
            except Refusal as error:
                if error.code in ("ticket", "expired"):
                    raise
                await self._send(judged(error), number)
            except WebSocketDisconnect:
                raise
            except Exception as error:
                await self._send(self._desk.told(error), number)

    async def _take(self, text: str, number: int | str | None) -> None:
        user = self._desk.admit(self._ticket)
        match frame_of(text):
            case Hello(ticket):
                self._renew(ticket)
                await self._welcome(text)
            case Ack(key):
                if key != self._pushed:
                    raise Refusal("usage", "this is not the key of the page that was pushed last")
                self._acked.set()
            case Beat():
                await self._send(words.Done(), number)
            case words.Wait():
                raise Refusal("usage", "a socket does not wait: it is pushed to")
            case request:
                await self._send(await self._desk.answer(user, self._hello.device, request), number)

    def _renew(self, text: str) -> None:
        ticket = self._desk.ticket_of(text)
        if ticket.user != self._ticket.user:
            raise Refusal("ticket", f"this socket is {self._ticket.user!r}'s")
        self._ticket = ticket

    async def _welcome(self, text: str) -> None:
        limits = self._desk.limits
        reply = Welcome(self._ticket.user, round(self._desk.left(self._ticket), 1), limits.beat_s)
        await self._send(reply, number_of(text))

    # --- push ---

    async def _push(self) -> None:
        user, device, key = self._ticket.user, self._hello.device, self._hello.key
        while True:
            page = await self._page(user, device, key)
            if page is None or page.key == key:
                continue
            self._acked.clear()
            self._pushed = page.key
            await self._send(page, "push")
            await self._acked.wait()
            key = page.key

    async def _page(self, user: str, device: str, key: bytes | None) -> words.Page | None:
        """None: not yet."""
        if self._desk.stopping.is_set():  # Nothing is waited for any more: who asked again would never let others run.
            raise _stopping()
        try:
            if await self._desk.news(user, device, key, WATCH_S):
                return await self._desk.pull(user, device, key, self._hello.limit)
        except Exception as error:
            if judged(error).status not in (503, 504):
                raise
            await asyncio.sleep(PAUSE_S)
        return None

    # --- the end ---

    async def _watch(self) -> None:
        silence = 3 * self._desk.limits.beat_s
        while True:
            left = min(self._desk.left(self._ticket), self._heard_at + silence - time.monotonic())
            if left <= 0:
                break
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._desk.stopping.wait()
                    raise _stopping()
        if self._desk.left(self._ticket) <= 0:
            raise Refusal("expired", f"the ticket of {self._ticket.user!r} has ended")
        raise Refusal("usage", f"nothing was heard here for {silence:g} s")

    async def _send(self, answer: AnyAnswer, number: int | str | None = None) -> None:
        async with self._sending:
            await self._socket.send_text(frame(answer, number))

    async def _end(self, why: Failure) -> None:
        """Says why, if anybody still listens, and closes."""
        with suppress(WebSocketDisconnect, RuntimeError):
            if self._socket.application_state is WebSocketState.CONNECTED:
                await self._send(why)
                code = GOING_AWAY if why.code == "stopping" else 4000 + why.status
                await self._socket.close(code, why.code)


def _stopping() -> Refusal:
    return Refusal("stopping", "this gateway is about to end")
