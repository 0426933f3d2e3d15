"""What messaging is asked and what it answers, as structs: JSON for clients and for what is synced, msgpack inside.

A conversation, and the place that a message comes from, is `u/ann` or `g/7`. A message is named by its source and its
number there: of a group's message the group, of any other its sender.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import msgspec

from kvsvr.services.names import ID_SIZE

EPOCH_SIZE: Final = 8


# --- what is synced: values of kinds, in JSON ---


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    sender: str
    to: str
    seq: int
    text: str
    epoch: int = 0
    """Of the group, when it was sent."""
    client_id: str = ""
    recalled: bool = False

    @property
    def source(self) -> str:
        return self.to if self.to.startswith("g/") else f"u/{self.sender}"


class Membership(msgspec.Struct, frozen=True):
    """A row of `groups`: of two, the higher epoch is right."""

    name: str
    epoch: int
    member: bool


class Contact(msgspec.Struct, frozen=True):
    note: str = ""


# --- requests ---


class Request(msgspec.Struct, frozen=True, tag_field="do", tag=str.lower):
    """What a user asks for; which user, and on which device, is said beside it, by whoever checked that."""


class Send(Request, frozen=True):
    to: str
    text: str
    client_id: str = ""
    """The same again is the same message. Empty: never the same."""


class Recall(Request, frozen=True):
    source: str
    seq: int


class Mark(Request, frozen=True):
    conversation: str
    seq: int


class Block(Request, frozen=True):
    user: str
    on: bool = True


class Keep(Request, frozen=True):
    """A contact; `on=False` takes it out."""

    user: str
    note: str = ""
    on: bool = True


class Create(Request, frozen=True):
    group: str
    name: str = ""
    open: bool = False


class Join(Request, frozen=True):
    group: str


class Leave(Request, frozen=True):
    group: str


class Invite(Request, frozen=True):
    group: str
    user: str


class Remove(Request, frozen=True):
    group: str
    user: str


class Members(Request, frozen=True):
    group: str


class Pull(Request, frozen=True):
    key: bytes | None = None
    limit: int = 100


class Wait(Request, frozen=True):
    key: bytes | None = None
    timeout: float = 30.0


class Check(Request, frozen=True):
    kind: str


AnyRequest: TypeAlias = (
    Send | Recall | Mark | Block | Keep | Create | Join | Leave | Invite | Remove | Members | Pull | Wait | Check
)


# --- replies ---


class Reply(msgspec.Struct, frozen=True, tag_field="is", tag=str.lower):
    pass


class Sent(Reply, frozen=True):
    source: str
    seq: int
    epoch: int = 0


class Done(Reply, frozen=True):
    pass


class Epoch(Reply, frozen=True):
    """Of the group, behind the change; or as it is, if there was nothing to change."""

    epoch: int


class MemberList(Reply, frozen=True):
    users: list[str]


class Rows(msgspec.Struct, frozen=True):
    kind: str
    rows: list[tuple[bytes, msgspec.Raw]]
    """In JSON: the row in base64, by which a client tells it from others, and the value as it is."""
    deleted: list[bytes]
    resync: bool


class Page(Reply, frozen=True):
    changes: list[Rows]
    key: bytes
    more: bool


class Woken(Reply, frozen=True):
    """`new` may be true for nothing."""

    new: bool


class Sum(Reply, frozen=True):
    count: int
    first: bytes
    sum: str


class Failed(Reply, frozen=True):
    reason: str
    message: str


AnyReply: TypeAlias = Sent | Done | Epoch | MemberList | Page | Woken | Sum | Failed


# --- tasks: what a slot's outbox holds for the others ---


class Deliver(msgspec.Struct, array_like=True, frozen=True, tag=True):
    """Messages of one user, each to another one."""

    sender: str
    items: list[tuple[str, bytes]]


class Fan(msgspec.Struct, array_like=True, frozen=True, tag=True):
    """A group's message, into the inbox of each member of its epoch."""

    group: str
    row: bytes


class Enlarge(msgspec.Struct, array_like=True, frozen=True, tag=True):
    """The group is read from its log from now on: all members are to follow it."""

    group: str


class Ring(msgspec.Struct, array_like=True, frozen=True, tag=True):
    """There is something in a group's log."""

    group: str


class Tell(msgspec.Struct, array_like=True, frozen=True, tag=True):
    """A user, of his membership."""

    group: str
    user: str
    name: str
    epoch: int
    member: bool


AnyTask: TypeAlias = Deliver | Fan | Enlarge | Ring | Tell


# --- rows ---


def inbox_row(source: str, seq: bytes) -> bytes:
    """By time, as numbers of messages are; the source makes it one of its kind."""
    return seq + source.encode()


def log_row(epoch: int, seq: bytes) -> bytes:
    return epoch.to_bytes(EPOCH_SIZE, "big") + seq


def body_key(source: str, seq: bytes) -> bytes:
    return f"{{{source}}}:m:".encode() + seq


def body_of_inbox(row: bytes) -> bytes:
    """The key of the body that a row of an inbox stands for."""
    return body_key(row[ID_SIZE:].decode(), row[:ID_SIZE])


def body_of_log(source: str, row: bytes) -> bytes:
    return body_key(source, row[EPOCH_SIZE:])
