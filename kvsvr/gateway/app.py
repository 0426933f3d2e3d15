"""The routes: /v1 for clients, and the page of `kvsvr chat` where it is wanted."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket

from kvsvr.gateway.desk import Desk
from kvsvr.gateway.session import Session
from kvsvr.gateway.short import Short

PAGE: Final = Path(__file__).parent / "page"
PAGE_FILES: Final = {"/": "chat.html", "/chat.js": "chat.js", "/chat.css": "chat.css"}
PAGE_HEADERS: Final = {
    # Nothing but our own files, whatever a message says.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cache-control": "no-cache",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


def app_of(desk: Desk, *, page: bool = False) -> Starlette:
    short = Short(desk)

    async def socket(connection: WebSocket) -> None:
        await Session(desk, connection).run()

    routes: list[BaseRoute] = [
        Route("/v1/events", short.events),
        Route("/v1/ready", short.ready),
        WebSocketRoute("/v1/socket", socket),
        Route("/v1/{name}", short.call, methods=["POST"]),
    ]
    if page:
        routes += [Route(path, _show) for path in PAGE_FILES]
    return Starlette(routes=routes)


async def _show(request: Request) -> Response:
    return FileResponse(PAGE / PAGE_FILES[request.url.path], headers=PAGE_HEADERS)
