"""Requests over HTTP, one each, and event streams.

    POST /v1/CALL?device=D      Authorization: Bearer TICKET     the body is the request, the answer the reply
    GET  /v1/events?device=D&key=K&ticket=T                      an event for whatever is new; it has no data

A stream acknowledges nothing and carries nothing, so it cannot lose anything: who hears of something new pulls.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Final

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse

from kvsvr.gateway.desk import WATCH_S, Desk
from kvsvr.gateway.failures import Failure, Refusal
from kvsvr.gateway.frames import AnyAnswer, Login, call_of, json_of
from kvsvr.gateway.tickets import Ticket

HEADERS: Final = {"cache-control": "no-store", "x-content-type-options": "nosniff"}
NEW: Final = b"event: new\ndata:\n\n"
BEAT: Final = b": still here\n\n"
HERE: Final = ("localhost", "127.0.0.1", "[::1]")


class Short:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def call(self, request: Request) -> Response:
        try:
            return _response(await self._call(request))
        except ClientDisconnect:
            return Response(status_code=400)  # Nobody reads it.
        except Exception as error:
            return _response(self._desk.told(error))

    async def _call(self, request: Request) -> AnyAnswer:
        name = request.path_params["name"]
        if name == "login":
            _want_no_other_page(request)
            wanted = call_of(name, await self._body(request))
            assert isinstance(wanted, Login)
            return await self._desk.logged_in(wanted)
        user = self._desk.admit(self._desk.ticket_of(_bearer(request)))
        wanted = call_of(name, await self._body(request))
        assert not isinstance(wanted, Login)
        return await self._desk.answer(user, request.query_params.get("device", ""), wanted)

    async def _body(self, request: Request) -> bytes:
        """As much as is allowed, and no more is read."""
        most, body = self._desk.limits.body_size_max, bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > most:
                raise Refusal("too_large", f"a request has up to {most} bytes")
        return bytes(body)

    async def ready(self, _: Request) -> Response:
        """For whoever spreads clients over gateways: 200 while requests would be done here."""
        try:
            if self._desk.stopping.is_set():
                raise Refusal("stopping", "this gateway is about to end")
            await self._desk.ready()
        except Exception as error:
            return _response(self._desk.told(error))
        return Response(b'{"is":"ready"}', media_type="application/json", headers=HEADERS)

    # --- events ---

    async def events(self, request: Request) -> Response:
        try:
            query = request.query_params
            # An EventSource sends no headers of its own. A ticket in an address is not logged here.
            ticket = self._desk.ticket_of(query.get("ticket") or _bearer(request))
            user, device = self._desk.admit(ticket), query.get("device", "")
            is_new = await self._desk.news(user, device, _key_of(query.get("key")), 0)
            with ExitStack() as seat:
                seat.enter_context(self._desk.seat(user))
                return _Stream(self._stream(ticket, is_new=is_new), seat.pop_all())
        except Exception as error:
            return _response(self._desk.told(error))

    async def _stream(self, ticket: Ticket, *, is_new: bool) -> AsyncIterator[bytes]:
        """Until the ticket ends, or this gateway: the client comes again by itself, and is refused or served."""
        desk, most = self._desk, min(self._desk.limits.beat_s, WATCH_S)
        version = await desk.watched(ticket.user)
        yield NEW if is_new else BEAT
        while not desk.stopping.is_set() and (left := desk.left(ticket)) > 0:
            await desk.rung(ticket.user, version, min(most, left))
            now = await desk.watched(ticket.user)
            yield NEW if now > version else BEAT
            version = now


class _Stream(StreamingResponse):
    """Gives its seat back however it ends: a generator that nobody began would not."""

    def __init__(self, events: AsyncIterator[bytes], seat: ExitStack) -> None:
        super().__init__(events, media_type="text/event-stream", headers={**HEADERS, "x-accel-buffering": "no"})
        self._seat = seat

    async def __call__(self, *connection: object) -> None:
        with self._seat:
            await super().__call__(*connection)  # type: ignore[arg-type]


def _response(answer: AnyAnswer) -> Response:
    headers, status = dict(HEADERS), 200
    if isinstance(answer, Failure):
        status = answer.status
        if status == 401:
            headers["www-authenticate"] = "Bearer"
        if status in (429, 503):
            headers["retry-after"] = "1"
    return Response(json_of(answer), status, headers, "application/json")


def _bearer(request: Request) -> str:
    kind, _, ticket = request.headers.get("authorization", "").partition(" ")
    if kind.lower() != "bearer" or not ticket:
        raise Refusal("ticket", "a ticket is wanted: Authorization: Bearer TICKET")
    return ticket.strip()


def _key_of(text: str | None) -> bytes | None:
    try:
        return base64.b64decode(text.replace(" ", "+"), validate=True) if text else None
    except (ValueError, binascii.Error):
        raise Refusal("malformed", "a key is base64, as it was given") from None


def _want_no_other_page(request: Request) -> None:
    """A login for whoever asks is for this machine's pages alone: no page of another host may ask for it, under its own
    name or under one that it has let point here."""
    host = request.headers.get("host", "")
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    origin = request.headers.get("origin")
    if name not in HERE or (origin is not None and origin.partition("://")[2] != host):
        raise Refusal("login_off", "there is a login on this machine only")
