"""What replicas say to each other, what goes into the log, and what comes out of a replica. Values only.

A replica says `Sent` and `Logged` in an order that matters: whatever is said after an entry was logged, and waits for
durability, waits for that entry, too.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from tests.sim.model.records import Ballot, Members, Record, Snapshot, State

Nonce: TypeAlias = tuple[int, int]  # Incarnation of the sender, counter.
Bytes: TypeAlias = tuple[tuple[str, str], ...]  # Digest and bytes.


# ---------------------------------------------------------------- between replicas
class Append(NamedTuple):
    """Owner to peer. `records` follow (prev_version, prev_ballot); `snap`, if any, comes first; `data` are the bytes
    that must be there before the records are accepted."""

    shard: int
    ballot: Ballot
    prev_version: int
    prev_ballot: Ballot | None
    records: tuple[Record, ...]
    commit: int
    data: Bytes = ()
    snap: Snapshot | None = None


class Boot(NamedTuple):
    """One start of one disk, and how far its log was durable: what peers remember, and what HELLO compares."""

    disk: int
    number: int  # Another one each time a process starts: two starts from the same image have the same incarnation.
    incarnation: int
    position: int  # Entries that this disk ever took, not counting those that were never durable.


class Flow(NamedTuple):
    conn: Nonce
    seq: int
    items: tuple[Append, ...]
    boot: Boot  # An owner acknowledges nothing to anybody, and counts itself all the same.


class Refusal(NamedTuple):
    seq: int
    shard: int
    ballot: Ballot
    promised: Ballot
    prev_version: int  # What was refused.
    last: int
    commit: int
    lost: bool = False  # The record behind `last` was accepted once and is damaged now.


class Ack(NamedTuple):
    """All messages of `conn` up to `cursor` are processed and durable, and accepted except for the refusals, which are
    repeated for the life of the connection."""

    conn: Nonce
    cursor: int
    refusals: tuple[Refusal, ...]
    boot: Boot
    lasts: tuple[tuple[int, int], ...] = ()  # Only for the mutation ack_own_last.


class Ask(NamedTuple):
    shard: int
    commit: int
    last: tuple[Ballot, int]


class Prepare(NamedTuple):
    ballot: Ballot
    asks: tuple[Ask, ...]


class Tail(NamedTuple):
    commit: int
    last: tuple[Ballot, int]
    members: Members  # In force at its end.
    records: tuple[Record, ...] = ()
    data: Bytes = ()
    snap: Snapshot | None = None


class Promise(NamedTuple):
    ballot: Ballot
    tails: tuple[tuple[int, Tail], ...]
    refused: tuple[tuple[int, Ballot], ...]
    boot: Boot


class Check(NamedTuple):
    nonce: Nonce
    asks: tuple[int, ...]


class Checked(NamedTuple):
    nonce: Nonce
    promised: tuple[tuple[int, Ballot], ...]


class AskPosition(NamedTuple):
    nonce: Nonce
    shard: int
    keys: tuple[str, ...]  # What will be read: the owner looks whether it has expired.


class Position(NamedTuple):
    nonce: Nonce
    version: int | None  # None: not the owner, or not confirmed.


class Fetch(NamedTuple):
    digests: tuple[str, ...]


class Fetched(NamedTuple):
    data: Bytes


class Held(NamedTuple):
    digests: tuple[str, ...]


class Hello(NamedTuple):
    boot: Boot


class Welcome(NamedTuple):
    number: int  # Of the boot that is answered.
    known: bool  # False: this disk once was further than it is now, or it is another disk.


class Lost(NamedTuple):
    """Records that were damaged here: shard, ballot and version say which, wherever they are."""

    records: tuple[tuple[int, Ballot, int], ...]


class Found(NamedTuple):
    records: tuple[tuple[int, Record], ...]


Message: TypeAlias = (
    Flow
    | Ack
    | Prepare
    | Promise
    | Check
    | Checked
    | AskPosition
    | Position
    | Fetch
    | Fetched
    | Held
    | Hello
    | Welcome
    | Lost
    | Found
)


# ---------------------------------------------------------------- in the log
class NodeEntry(NamedTuple):
    incarnation: int


class PromiseEntry(NamedTuple):
    shards: tuple[int, ...]
    ballot: Ballot


class RecordEntry(NamedTuple):
    shard: int
    record: Record


class RepairEntry(NamedTuple):
    """A record fetched back. It takes the place of the damaged one and, unlike a RecordEntry, cuts nothing."""

    shard: int
    record: Record


class DataEntry(NamedTuple):
    digest: str
    data: str


class CommitEntry(NamedTuple):
    commits: tuple[tuple[int, int], ...]


class SnapEntry(NamedTuple):
    shard: int
    snap: Snapshot


class ShardImage(NamedTuple):
    promised: Ballot
    base: tuple[int, Ballot]
    records: tuple[Record, ...]
    state: State


class CheckpointEntry(NamedTuple):
    incarnation: int
    position: int
    shards: tuple[ShardImage, ...]
    data: Bytes


class DamagedEntry(NamedTuple):
    """An entry below the durable watermark that does not check any more; which record it was, if that can be told."""

    known: tuple[int, Ballot, int] | None


Entry: TypeAlias = (
    NodeEntry
    | PromiseEntry
    | RecordEntry
    | RepairEntry
    | DataEntry
    | CommitEntry
    | SnapEntry
    | CheckpointEntry
    | DamagedEntry
)


# ---------------------------------------------------------------- out of a replica
class Logged(NamedTuple):
    entry: Entry


class Sent(NamedTuple):
    peer: int
    message: Message


class Replied(NamedTuple):
    token: object  # The caller's; a replica hands it back and never looks at it.
    status: str
    result: object
    version: int


class Stopped(NamedTuple):
    """A peer remembers more of this disk than is on it: this node id is not to vote again."""

    by: int


Output: TypeAlias = Logged | Sent | Replied | Stopped
