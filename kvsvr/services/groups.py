"""A group's slot: who is a member, and in which order things are sent and members change.

    {g/7}:group     a key: Group, with the epoch and the last number
    {g/7}:members   user -> spans of epochs in which the user is a member, the last one open if he is one now
    {g/7}:log       epoch, number -> present: messages of a large group
    {g/7}:sent      user, client id -> number and epoch
    {g/7}:m:N       a key: the body of message N

All that is sent and every change of members is a transaction over Group, so they have one order. A change of members
makes a new epoch, and a message carries the epoch in which it was sent. Whoever came with epoch a and left with epoch b
is to have exactly the messages of a to b - 1, whenever they are delivered: a span says so, and a row of the log begins
with its epoch, so spans are a gate for kvsvr.sync as they are.

Functions here take a transaction of the group's slot and neither write elsewhere nor wait.
"""

from __future__ import annotations

from typing import Final

import msgspec

from kvsvr.services.names import ID_SIZE, id_after, name_of
from kvsvr.services.refused import Refused
from kvsvr.services.sync import PRESENT, Spans, seen
from kvsvr.services.words import EPOCH_SIZE, Message, body_key, log_row
from kvsvr.types import Store, TransactionWriter


class Group(msgspec.Struct, array_like=True):
    owner: str
    name: str
    open: bool
    epoch: int = 0
    last: bytes | None = None
    """The number of the newest message."""
    count: int = 0
    large: bool = False
    """Read from the log; stays so when members leave, since a copy would be told to begin anew each time."""


_group: Final = msgspec.msgpack.Decoder(Group)
_spans: Final = msgspec.msgpack.Decoder(Spans)
_encode: Final = msgspec.msgpack.Encoder().encode
json_of: Final = msgspec.json.Encoder().encode
message_of: Final = msgspec.json.Decoder(Message).decode


def prefix_of(group: str) -> bytes:
    return f"{{g/{name_of(group, 'a group')}}}:".encode()


def outbox_of(group: str) -> str:
    return f"{{g/{group}}}out"


def load(t: TransactionWriter | Store, group: str) -> Group:
    content = t.get(prefix_of(group) + b"group")
    if content is None:
        raise Refused("unknown", f"there is no group {group!r}")
    return _group.decode(content)


def create(t: TransactionWriter, group: str, state: Group) -> tuple[int, bool]:
    """The epoch, and whether it is new. Again by the same owner: no change."""
    before = t.get(prefix_of(group) + b"group")
    if before is None:
        return enter(t, group, state, state.owner), True
    known = _group.decode(before)
    if known.owner != state.owner:
        raise Refused("exists", f"there is a group {group!r} already")
    return known.epoch, False


def spans_of(content: bytes | None) -> Spans:
    return [] if content is None else _spans.decode(content)


def is_open(spans: Spans) -> bool:
    return bool(spans) and spans[-1][1] is None


def is_member(t: TransactionWriter, group: str, user: str) -> bool:
    return is_open(spans_of(t.table(prefix_of(group) + b"members").get(user.encode())))


def enter(t: TransactionWriter, group: str, state: Group, user: str) -> int:
    """The epoch that the user came with; of who is a member already, the group's."""
    members = t.table(prefix_of(group) + b"members")
    spans = spans_of(members.get(user.encode()))
    if is_open(spans):
        return state.epoch
    state.epoch += 1
    state.count += 1
    members.put(user.encode(), _encode([*spans, (_epoch(state.epoch), None)]))
    t.put(prefix_of(group) + b"group", _encode(state))
    return state.epoch


def leave(t: TransactionWriter, group: str, state: Group, user: str) -> int:
    """The epoch that the user left with; of who is no member, the group's."""
    members = t.table(prefix_of(group) + b"members")
    spans = spans_of(members.get(user.encode()))
    if not is_open(spans):
        return state.epoch
    state.epoch += 1
    state.count -= 1
    members.put(user.encode(), _encode([*spans[:-1], (spans[-1][0], _epoch(state.epoch))]))
    t.put(prefix_of(group) + b"group", _encode(state))
    return state.epoch


def sent_before(t: TransactionWriter, group: str, user: str, client_id: str) -> tuple[bytes, int] | None:
    """Number and epoch of what was sent under this client id."""
    found = t.table(prefix_of(group) + b"sent").get(_sent_row(user, client_id)) if client_id else None
    return None if found is None else (found[:ID_SIZE], int.from_bytes(found[ID_SIZE:]))


def sequence(
    t: TransactionWriter, group: str, state: Group, message: Message, now: float, *, ttl: float | None, id_ttl: float
) -> bytes:
    """Gives the message its number, and stores it; the row that it has, or would have, in the log."""
    prefix = prefix_of(group)
    state.last = id_after(state.last, now)
    numbered = msgspec.structs.replace(message, seq=int.from_bytes(state.last), epoch=state.epoch)
    t.put(prefix + b"group", _encode(state))
    t.put(body_key(f"g/{group}", state.last), json_of(numbered), ttl)
    if message.client_id:
        content = state.last + _epoch(state.epoch)
        t.table(prefix + b"sent").put(_sent_row(message.sender, message.client_id), content, id_ttl)
    row = log_row(state.epoch, state.last)
    if state.large:
        t.table(prefix + b"log").put(row, PRESENT)
    return row


def members_now(db: Store, group: str) -> list[str]:
    return [user.decode() for user, spans in db.table(prefix_of(group) + b"members").rows() if is_open(spans_of(spans))]


def members_of(db: Store, group: str, row: bytes) -> list[str]:
    """Who is to have the message of this row: members of its epoch, whoever is one now."""
    rows = db.table(prefix_of(group) + b"members").rows()
    return [user.decode() for user, spans in rows if seen(row, spans_of(spans))]


def prune(t: TransactionWriter, group: str, user: str, oldest: bytes) -> bool:
    """Forgets spans that ended before the oldest message that is still to be read or delivered; whether any are
    left."""
    members = t.table(prefix_of(group) + b"members")
    spans = spans_of(members.get(user.encode()))
    left = [(first, stop) for first, stop in spans if stop is None or stop > oldest[:EPOCH_SIZE]]
    if left != spans:
        if left:
            members.put(user.encode(), _encode(left))
        else:
            members.delete(user.encode())
    return bool(left)


def _epoch(epoch: int) -> bytes:
    return epoch.to_bytes(EPOCH_SIZE, "big")


def _sent_row(user: str, client_id: str) -> bytes:
    return f"{user}\0{client_id}".encode()
