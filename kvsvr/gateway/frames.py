"""Requests and replies as bytes: JSON, an object each. A request over HTTP is called by its path, a frame of a socket
by `do`, and has an `id` that its reply repeats."""

from __future__ import annotations

from typing import Any, Final, TypeAlias, get_args

import msgspec

from kvsvr.gateway.failures import Failure, Refusal
from kvsvr.services import words
from kvsvr.services.words import AnyReply, AnyRequest, Reply, Request

# --- what the gateway answers itself ---


class Login(Request, frozen=True):
    """For development: a ticket for whoever asks."""

    user: str


class Register(Request, frozen=True):
    """An account for the user of the ticket. Again: no change."""


class Hello(Request, frozen=True):
    """The first frame of a socket; again, with a new ticket of the same user, it only replaces that."""

    ticket: str
    device: str = ""
    key: bytes | None = None
    push: bool = True
    limit: int = 100
    """Rows of a page that is pushed."""


class Ack(Request, frozen=True):
    """The page with this key is stored: the next one may come."""

    key: bytes


class Beat(Request, frozen=True):
    """I am still here."""


class Issued(Reply, frozen=True):
    user: str
    ticket: str
    seconds: float


class Registered(Reply, frozen=True):
    new: bool


class Welcome(Reply, frozen=True):
    user: str
    seconds: float
    """That the ticket is good for."""
    beat: float
    """How often to say something."""


AnyFrame: TypeAlias = AnyRequest | Register | Hello | Ack | Beat
AnyAnswer: TypeAlias = AnyReply | Issued | Registered | Welcome | Failure


class _Numbered(msgspec.Struct, frozen=True):
    id: int | str | None = None


CALLS: Final[dict[str, msgspec.json.Decoder[Any]]] = {
    str(one.__struct_config__.tag): msgspec.json.Decoder(one) for one in (*get_args(AnyRequest), Register, Login)
}
_frame: Final[msgspec.json.Decoder[AnyFrame]] = msgspec.json.Decoder(AnyFrame)
_number: Final = msgspec.json.Decoder(_Numbered)
json_of: Final = msgspec.json.Encoder().encode


def call_of(name: str, body: bytes) -> AnyRequest | Register | Login:
    decoder = CALLS.get(name)
    if decoder is None:
        raise Refusal("no_call", f"there is no call {name[:50]!r}")
    found: AnyRequest | Register | Login = decoder.decode(body or b"{}")
    return found


def number_of(text: str) -> int | str | None:
    """A frame's `id`; of one that is no JSON, none."""
    try:
        return _number.decode(text).id
    except msgspec.MsgspecError:
        return None


def frame_of(text: str) -> AnyFrame:
    return _frame.decode(text)


def frame(answer: AnyAnswer, number: int | str | None = None) -> str:
    """Every answer is an object that is not empty, so an id goes in front."""
    text = json_of(answer).decode()
    return text if number is None else f'{{"id":{json_of(number).decode()},{text[1:]}'


def size_of(page: words.Page) -> int:
    """About what its rows take as JSON."""
    return sum(len(row) + len(value) for one in page.changes for row, value in one.rows)
