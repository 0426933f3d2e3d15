"""One call that keeps copies of a user's data on any number of devices: rows of any kind, by their versions.

    sync.put("ann", "contacts", b"bob", b"...")             pulled = sync.pull("ann", "phone", key, 100)
    with db.batch() as b:                                   pulled.changes, pulled.key, pulled.more
        sync.feed(b, "ann", "inbox").put(row, value)        sync.wait("ann", "phone", pulled.key, 30)

All of a user is in one slot, behind `{u/ann}:`

    t:KIND    row -> 1 and the value, or 0 for a row that was deleted, until every live device knows
    head      kind -> nothing, put with each change of that kind, so its version is that of all of them
    sync      a key: State, the devices and what they have been given; floors; tables shared with others

Versions are of the slot, so one number says what a device has: everything up to it. A sync key is that number, and
exceptions: kinds of which a device has less, because a page was full, or a snapshot of one is under way. It is signed
for user and device. Coming back with it is the acknowledgement, which goes into State before anything is read, so that
no floor passes a device that lives; an older key sets it back.

Why nothing is lost: a row goes only at or below what every device with a lease has acknowledged when it goes. A floor
is below what may have gone; it rises in a transaction over State, before anything goes, and never falls, so a device
that comes later may be below it: it is told to begin that kind anew, and is given it in the order of rows, page by
page, then what changed since the snapshot began. Until then it counts as having nothing, so nothing goes meanwhile.

A kind may also be a table in another slot that many users read (share()). What one of them may see of it is in a gate,
a row of spans, which is read *after* the rows: who was shut out before they were written is not shown them.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from typing import Final, TypeAlias

import msgspec

from kvsvr.errors import UsageError, VersionConflict, shown
from kvsvr.services.names import Clock, name_of
from kvsvr.services.refused import Refused
from kvsvr.types import BatchWriter, BytesLike, KeyTable, RowWriter, Store, TransactionWriter

MAC_SIZE: Final = 12
"""Of a forgery one try in 2^96 passes, and a key is sent with every call."""
SECRET_SIZE_MIN: Final = 16
SECRET_KEY: Final = b"{kvsvr/sync}:secret"
LIMIT_MAX: Final = 1000
DEVICE_COUNT_MAX: Final = 32
SWEEP_COUNT: Final = 1000
WATCH_S_MORE: Final = 5.0
PREFIX_COUNT: Final = 4096
PRESENT: Final = b"\x01"
GONE: Final = b"\x00"
AFTER_ALL: Final = b"\xff" * 32
POKE: Final = b""
"""The row of `head` that stands for no kind."""

Version: TypeAlias = int
Pair: TypeAlias = tuple[bytes, bytes]


class Position(msgspec.Struct, array_like=True, frozen=True):
    """How far a device is with one kind: everything up to `version`; with a cursor, in a snapshot begun at it."""

    version: Version
    cursor: bytes | None = None

    @property
    def acknowledged(self) -> Version:
        return self.version if self.cursor is None else 0


class SyncKey(msgspec.Struct, array_like=True, frozen=True):
    head: Version = 0
    behind: dict[str, Position] = {}
    shared: dict[str, Position] = {}


class Device(msgspec.Struct, array_like=True, frozen=True):
    until: float
    """When its lease ends."""
    head: Version
    behind: dict[str, Version]


class Shared(msgspec.Struct, array_like=True, frozen=True):
    table: bytes
    gate: bytes
    """A table with a row for each user: Spans."""


class State(msgspec.Struct, array_like=True):
    devices: dict[str, Device] = {}
    floors: dict[str, Version] = {}
    swept: dict[str, Version] = {}
    shared: dict[str, Shared] = {}
    purged: dict[str, bytes] = {}
    """Rows before these may have gone from here and be kept by devices."""


Spans: TypeAlias = list[tuple[bytes, bytes | None]]
"""Rows from the first on and below the second, of each; None: and all that follow."""


class Changes(msgspec.Struct, frozen=True):
    """Of one kind: one page, or part of one."""

    kind: str
    rows: list[Pair]
    deleted: list[bytes]
    resync: bool = False
    """What you have of this kind is void; these are the first rows of all."""


class Pulled(msgspec.Struct, frozen=True):
    changes: list[Changes]
    key: bytes
    more: bool
    """There is more by now: pull again, at once, with the new key."""


class Digest(msgspec.Struct, frozen=True):
    """A copy is right if its rows from `first` on have this count and sum; earlier ones may have been purged here."""

    count: int
    first: bytes
    sum: str


_state: Final = msgspec.msgpack.Decoder(State)
_key: Final = msgspec.msgpack.Decoder(SyncKey)
_spans: Final = msgspec.msgpack.Decoder(Spans)
_encode: Final = msgspec.msgpack.Encoder().encode


class Feed:
    """Writes rows of one kind as part of somebody's batch or transaction."""

    __slots__ = ("_head", "_kind", "_rows")

    def __init__(self, rows: RowWriter, head: RowWriter, kind: bytes) -> None:
        self._rows = rows
        self._head: RowWriter | None = head
        self._kind = kind

    def put(self, row: BytesLike, value: BytesLike) -> None:
        self._rows.put(row, PRESENT + value)
        self._note()

    def delete(self, row: BytesLike) -> None:
        self._rows.put(row, GONE)
        self._note()

    def _note(self) -> None:
        """Once is enough for a batch."""
        if self._head is not None:
            self._head.put(self._kind, b"")
            self._head = None


class Sync:
    """Of all users of a store.

    `secret` signs keys; the first of several, while those signed with another are still taken. None: one is made, and
    kept in the store. A device that was not heard of for `lease` seconds holds nothing up any more.
    """

    def __init__(
        self,
        db: Store,
        secret: bytes | Sequence[bytes] | None = None,
        *,
        lease: float = 30 * 86_400,
        clock: Clock = time.time,
    ) -> None:
        given = [secret] if isinstance(secret, bytes) else secret
        self._db = db
        self._secrets = list(given) if given is not None else [kept_secret(db, SECRET_KEY)]
        if not self._secrets or any(len(one) < SECRET_SIZE_MIN for one in self._secrets):
            raise UsageError(f"a secret has at least {SECRET_SIZE_MIN} bytes")
        self.lease = lease
        self._clock = clock

    # --- writing ---

    def feed(self, batch: BatchWriter, user: str, kind: str) -> Feed:
        """Where to put and delete rows of the user's `kind`, in a batch or transaction of the user's slot."""
        prefix, name = prefix_of(user), kind.encode()
        return Feed(batch.table(prefix + b"t:" + name), batch.table(prefix + b"head"), name)

    def put(self, user: str, kind: str, row: BytesLike, value: BytesLike) -> None:
        with self._db.batch() as batch:
            self.feed(batch, user, kind).put(row, value)

    def delete(self, user: str, kind: str, row: BytesLike) -> None:
        with self._db.batch() as batch:
            self.feed(batch, user, kind).delete(row)

    def get(self, user: str, kind: str, row: BytesLike) -> bytes | None:
        return value_of(self._table(user, kind).get(row))

    def get_in(self, t: TransactionWriter, user: str, kind: str, row: BytesLike) -> bytes | None:
        return value_of(t.table(prefix_of(user) + b"t:" + kind.encode()).get(row))

    def contents(self, user: str, kind: str) -> Iterator[Pair]:
        """What a device that has everything has, in the order of rows, but for what was purged here since."""
        shared = self._read_state(user).shared.get(kind)
        table = self._table(user, kind) if shared is None else self._db.table(shared.table)
        for row, content in table.rows():
            value = value_of(content)
            if value is not None and (shared is None or seen(row, self._spans_of(shared, user))):
                yield row, value

    def share(self, user: str, kind: str, table: bytes, gate: bytes) -> None:
        """Lets the user's devices follow a table of another slot, as far as the gate shows it. Again: no change."""
        entry = Shared(table, gate)

        def change(t: TransactionWriter) -> None:
            state = _load(t.get(prefix_of(user) + b"sync"))
            if state.shared.get(kind) != entry:
                t.put(prefix_of(user) + b"sync", _encode(_with(state, shared=state.shared | {kind: entry})))
                t.table(prefix_of(user) + b"head").put(POKE, b"")

        self._db.run(change)

    def unshare(self, user: str, kind: str) -> None:
        def change(t: TransactionWriter) -> None:
            state = _load(t.get(prefix_of(user) + b"sync"))
            left = {name: entry for name, entry in state.shared.items() if name != kind}
            if left != state.shared:
                t.put(prefix_of(user) + b"sync", _encode(_with(state, shared=left)))

        self._db.run(change)

    def poke(self, user: str) -> None:
        """Wakes who waits for the user. It says nothing."""
        self._db.table(prefix_of(user) + b"head").put(POKE, b"")

    def poke_watchers(self, table: bytes) -> int:
        """The same for all who wait for a shared table now; how many those were."""
        users = list(self._db.table(table + b":watch"))
        for user in users:
            self.poke(user.decode())
        return len(users)

    # --- reading ---

    def pull(self, user: str, device: str, sync_key: bytes | None, limit: int = 100) -> Pulled:
        """What the device has not been given, up to about `limit` rows: a version is not split, nor are kinds mixed.

        No key: from the beginning. A key that is not this device's is Refused.
        """
        if not 1 <= limit <= LIMIT_MAX:
            raise UsageError(f"limit is a number of rows from 1 to {LIMIT_MAX}, not {shown(limit)}")
        had = self._opened(user, device, sync_key)
        state = self._acknowledge(user, device, had)
        head = self._db.table(prefix_of(user) + b"head")
        now = head.version  # Before anything is read: what comes later is listed again next time.
        page = _Page(limit)
        behind = {} if now == had.head and not had.behind else self._own(user, state, had, head, page)
        shared = self._others(user, state, had, page) if state.shared else {}
        has = SyncKey(now, behind, shared)
        if sync_key is not None and has == had:
            return Pulled([], sync_key, False)
        return Pulled(page.changes, self._sealed(user, device, has), page.more)

    def wait(self, user: str, device: str, sync_key: bytes | None, timeout: float) -> bool:
        """Until there is something that the key does not cover; False at the timeout. True may be for nothing."""
        version = self.watch(user, timeout)
        if not self.covers(user, device, sync_key):
            return True
        return self._db.wait(bell_of(user), version, timeout) > version

    def watch(self, user: str, timeout: float) -> Version:
        """For who waits in a way of his own, such as an event loop: then covers(), then a wait for bell_of(user) above
        this version, for so long at most. In this order: who writes to a shared table looks behind that for who waits.
        """
        for entry in self._read_state(user).shared.values():
            self._db.table(entry.table + b":watch").put(user.encode(), b"", ttl=timeout + WATCH_S_MORE)
        return self._db.table(bell_of(user)).version

    def covers(self, user: str, device: str, sync_key: bytes | None) -> bool:
        """Whether there is nothing new for who has this key. False may be for nothing."""
        had = self._opened(user, device, sync_key)
        if had.behind or self._db.table(bell_of(user)).version > had.head:
            return False
        positions = (
            (entry, had.shared.get(kind, Position(0))) for kind, entry in self._read_state(user).shared.items()
        )
        return all(
            one.cursor is None and self._db.table(entry.table).version == one.version for entry, one in positions
        )

    def digest(self, user: str, kind: str) -> Digest:
        return digest_of(self.contents(user, kind), self.first_row(user, kind))

    def first_row(self, user: str, kind: str) -> bytes:
        """From which row on devices have what is here."""
        state = self._read_state(user)
        if kind not in state.shared:
            return state.purged.get(kind, b"")
        return next((row for row, _ in self.contents(user, kind)), AFTER_ALL)

    def _own(self, user: str, state: State, had: SyncKey, head: KeyTable, page: _Page) -> dict[str, Position]:
        """Reads the kinds that changed; of which the device still lacks something, and how far it is there."""
        todo = dict(had.behind)
        changed = _changed_kinds(head, had.head)
        for name in head if changed is None else changed:
            if name != POKE and changed is None:
                # This head knows nothing of that version: a new device, or a store that was set back.
                todo[name.decode()] = Position(0)
            elif name != POKE:
                todo.setdefault(name.decode(), Position(had.head))
        behind = {}
        for kind, position in todo.items():
            left = page.read(kind, self._table(user, kind), position, state.floors.get(kind, 0))
            if left is not None:
                behind[kind] = left
        return behind

    def _others(self, user: str, state: State, had: SyncKey, page: _Page) -> dict[str, Position]:
        positions = {}
        for kind, entry in state.shared.items():
            table = self._db.table(entry.table)
            position, version = had.shared.get(kind, Position(0)), table.version
            if version == 0 or (position.cursor is None and position.version == version):
                positions[kind] = position
                continue
            before = self._spans_of(entry, user)
            if not before:  # Nothing was ever to be seen; what will be is written after this.
                positions[kind] = Position(version)
                continue
            start = min(first for first, _ in before)  # The history before somebody came is not gone through.
            left = page.read(kind, table, position, 0, start=start)
            positions[kind] = page.end if left is None else left
            page.filter(kind, self._spans_of(entry, user))
        return positions

    def _table(self, user: str, kind: str) -> KeyTable:
        return self._db.table(prefix_of(user) + b"t:" + kind.encode())

    def _spans_of(self, entry: Shared, user: str) -> Spans:
        content = self._db.table(entry.gate).get(user.encode())
        return [] if content is None else _spans.decode(content)

    # --- devices ---

    def _acknowledge(self, user: str, device: str, had: SyncKey) -> State:
        """Writes down what the device has, if that is not known yet, or its lease is half over."""
        now = self._clock()
        behind = {kind: position.acknowledged for kind, position in had.behind.items()}
        state = self._read_state(user)
        known = state.devices.get(device)
        same = known is not None and (known.head, known.behind) == (had.head, behind)
        if known is not None and same and known.until - now > self.lease / 2:
            return state
        entry = Device(now + self.lease, had.head, behind)
        return self._db.run(partial(_enter_device, user=user, device=name_of(device, "a device"), entry=entry, now=now))

    def devices(self, user: str) -> Mapping[str, Device]:
        return self._read_state(user).devices

    def forget(self, user: str, device: str) -> None:
        """The device holds nothing up any more. If it comes back, it is as one whose lease has ended."""

        def change(t: TransactionWriter) -> None:
            state = _load(t.get(prefix_of(user) + b"sync"))
            if state.devices.pop(device, None) is not None:
                t.put(prefix_of(user) + b"sync", _encode(state))

        self._db.run(change)

    def _read_state(self, user: str) -> State:
        return _load(self._db.get(prefix_of(user) + b"sync"))

    # --- letting go ---

    def sweep(self, user: str) -> None:
        """Raises the floors to what every live device has, forgets devices that are none, and tombstones below."""
        prefix = prefix_of(user)
        kinds = [kind.decode() for kind in self._db.table(prefix + b"head") if kind != POKE]
        state = self._db.run(partial(_raise_floors, user=user, kinds=kinds, now=self._clock(), versions={}))
        for kind in kinds:
            floor, swept = state.floors.get(kind, 0), state.swept.get(kind, 0)
            table = self._table(user, kind)
            if floor > swept and table.version > swept:
                self._sweep_kind(table, swept, floor)
        self._db.run(partial(_note_swept, user=user, swept={k: v for k, v in state.floors.items() if k in kinds}))

    def _sweep_kind(self, table: KeyTable, swept: Version, floor: Version) -> None:
        since, more = swept, True
        while more and since < floor:
            page = table.changes(since, SWEEP_COUNT)
            if not page.complete:
                break  # Another sweep is ahead of this one.
            _delete_below(table, (row for row, content in page.rows if content == GONE), floor)
            since, more = page.version, page.more
        table.trim(floor)

    def purge(self, user: str, kind: str, until: bytes) -> int:
        """Takes away the first rows, those below `until`, as far as every live device has been given them; how many.

        For the devices it is no change: they keep theirs. Where no device lives, nobody is waited for, and all of
        them will begin anew.
        """
        table = self._table(user, kind)
        if next(iter(table.keys(stop=until, limit=1)), None) is None:
            return 0
        version = table.version
        versions = {kind: version}
        state = self._db.run(partial(_raise_floors, user=user, kinds=[kind], now=self._clock(), versions=versions))
        # Not the floor: it may have risen before a device came that is alive now, and has not been given these rows.
        limit = _acknowledged(state, kind, version)
        going = list(_first_below(table, until, limit))
        if going:
            self._db.run(partial(_note_purged, user=user, kind=kind, first=going[-1] + b"\0"))
        return _delete_below(table, going, limit)

    # --- keys ---

    def _sealed(self, user: str, device: str, key: SyncKey) -> bytes:
        payload = _encode(key)
        return _mac(self._secrets[0], user, device, payload) + payload

    def _opened(self, user: str, device: str, sync_key: bytes | None) -> SyncKey:
        if sync_key is None:
            return SyncKey()
        mac, payload = sync_key[:MAC_SIZE], sync_key[MAC_SIZE:]
        if not any(hmac.compare_digest(mac, _mac(secret, user, device, payload)) for secret in self._secrets):
            raise Refused("sync_key", f"this is no sync key of {shown(user)} on {shown(device)}: begin without one")
        return _key.decode(payload)


class _Page:
    """What one pull gathers."""

    def __init__(self, limit: int) -> None:
        self.changes: list[Changes] = []
        self.more = False
        self.end = Position(0)
        """Where the last read ended."""
        self._left = limit

    def read(
        self, kind: str, table: KeyTable, position: Position, floor: Version, *, start: bytes = b""
    ) -> Position | None:
        """Takes what there is room for; where the device is then, or None if it has everything of this kind."""
        if self._left <= 0:
            self.more, self.end = True, position
            return position
        if position.cursor is None and position.version > 0 and position.version >= floor:
            found = table.changes(position.version, self._left)
            if found.complete:
                return self._take(Changes(kind, *_split(found.rows)), Position(found.version), found.more)
        resync = position.cursor is None
        cursor = start if position.cursor is None else position.cursor
        begun = Position(table.version if resync else position.version)
        rows = list(table.rows(start=cursor, limit=self._left))
        present = Changes(kind, _split(rows)[0], [], resync)
        if len(rows) == self._left:
            return self._take(present, Position(begun.version, rows[-1][0] + b"\0"), True)
        return self._take(present, begun, table.version != begun.version)

    def filter(self, kind: str, spans: Spans) -> None:
        """Takes out what the spans do not show of what was read last."""
        if self.changes and self.changes[-1].kind == kind:
            last = self.changes.pop()
            rows = [pair for pair in last.rows if seen(pair[0], spans)]
            deleted = [row for row in last.deleted if seen(row, spans)]
            if rows or deleted or last.resync:
                self.changes.append(Changes(kind, rows, deleted, last.resync))

    def _take(self, changes: Changes, end: Position, more: bool) -> Position | None:
        if changes.rows or changes.deleted or changes.resync:
            self.changes.append(changes)
        self._left -= len(changes.rows) + len(changes.deleted)
        self.end, self.more = end, self.more or more
        return end if more else None


# --- state ---


def purge_floor(acknowledged: Mapping[str, Version], *, live: Collection[str]) -> Version:
    """The newest version that every live device has acknowledged: rows at or below it may go.

    A device outside `live` has let its lease lapse and is told to resync; it never holds the floor back. No live
    device: 0, because nobody has confirmed anything.
    """
    return min((acknowledged.get(device, 0) for device in live), default=0)


def _load(content: bytes | None) -> State:
    return State() if content is None else _state.decode(content)


def _with(state: State, *, shared: dict[str, Shared]) -> State:
    return msgspec.structs.replace(state, shared=shared)


def _enter_device(t: TransactionWriter, *, user: str, device: str, entry: Device, now: float) -> State:
    name = prefix_of(user) + b"sync"
    state = _load(t.get(name))
    if device not in state.devices and len(state.devices) >= DEVICE_COUNT_MAX:
        state.devices = {one: known for one, known in state.devices.items() if known.until > now}
        if len(state.devices) >= DEVICE_COUNT_MAX:
            raise Refused("devices", f"{shown(user)} has {DEVICE_COUNT_MAX} devices already: forget one")
    state.devices[device] = entry
    t.put(name, _encode(state))
    return state


def _raise_floors(
    t: TransactionWriter, *, user: str, kinds: Iterable[str], now: float, versions: Mapping[str, Version]
) -> State:
    """`versions`: what floors rise to where no device lives."""
    name = prefix_of(user) + b"sync"
    state = _load(t.get(name))
    state.devices = {device: known for device, known in state.devices.items() if known.until > now}
    for kind in kinds:
        state.floors[kind] = max(state.floors.get(kind, 0), _acknowledged(state, kind, versions.get(kind, 0)))
    t.put(name, _encode(state))
    return state


def _acknowledged(state: State, kind: str, by_nobody: Version) -> Version:
    """By each of the devices in it, which are alive."""
    acknowledged = {device: known.behind.get(kind, known.head) for device, known in state.devices.items()}
    return purge_floor(acknowledged, live=state.devices) if state.devices else by_nobody


def _note_swept(t: TransactionWriter, *, user: str, swept: Mapping[str, Version]) -> None:
    name = prefix_of(user) + b"sync"
    state = _load(t.get(name))
    state.swept = {**state.swept, **{kind: max(state.swept.get(kind, 0), to) for kind, to in swept.items()}}
    t.put(name, _encode(state))


def _note_purged(t: TransactionWriter, *, user: str, kind: str, first: bytes) -> None:
    name = prefix_of(user) + b"sync"
    state = _load(t.get(name))
    state.purged[kind] = max(state.purged.get(kind, b""), first)
    t.put(name, _encode(state))


def _first_below(table: KeyTable, until: bytes, limit: Version) -> Iterator[bytes]:
    """The first rows, up to one that is above the limit: what stays is a tail."""
    for row in table.keys(stop=until):
        found = table.get_versioned(row)
        if found is not None and found.version > limit:
            return
        yield row


def _delete_below(table: KeyTable, rows: Iterable[bytes], limit: Version) -> int:
    """Deletes those whose newest version is at or below the limit; how many."""
    count = 0
    for row in rows:
        found = table.get_versioned(row)
        if found is not None and found.version <= limit:
            with suppress(VersionConflict):  # Written again meanwhile.
                count += table.delete(row, version=found.version)
    return count


def _changed_kinds(head: KeyTable, since: Version) -> list[bytes] | None:
    """None: all of them, since nobody can tell."""
    kinds: list[bytes] = []
    more = since > 0
    while more:
        page = head.changes(since)
        if not page.complete:
            return None
        kinds += [kind for kind, _ in page.rows]
        since, more = page.version, page.more
    return kinds if since > 0 else None


# --- rows ---


@lru_cache(PREFIX_COUNT)  # Of a name it is always the same, and a send asks for it eight times.
def prefix_of(user: str) -> bytes:
    return f"{{u/{name_of(user, 'a user')}}}:".encode()


def bell_of(user: str) -> bytes:
    """The table whose version grows with whatever is new for the user: `head`."""
    return prefix_of(user) + b"head"


def value_of(content: bytes | None) -> bytes | None:
    return None if content is None or content == GONE else content[1:]


def _split(rows: list[Pair]) -> tuple[list[Pair], list[bytes]]:
    """Rows with values, and those that are tombstones. What was purged is neither."""
    present = [(row, content[1:]) for row, content in rows if content != GONE]
    return present, [row for row, content in rows if content == GONE]


def seen(row: bytes, spans: Spans) -> bool:
    return any(first <= row and (stop is None or row < stop) for first, stop in spans)


def digest_of(pairs: Iterable[Pair], first: bytes = b"") -> Digest:
    """Of rows from `first` on, in any order. A sum, so that a client may keep it as rows come and go."""
    count, total = 0, 0
    for row, value in pairs:
        if row >= first:
            word = hashlib.blake2b(len(row).to_bytes(4, "big") + row + value, digest_size=16).digest()
            count, total = count + 1, (total + int.from_bytes(word)) % (1 << 128)
    return Digest(count, first, f"{total:032x}")


# --- secrets ---


def _mac(secret: bytes, user: str, device: str, payload: bytes) -> bytes:
    owner = f"{user}\0{device}\0".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(owner + payload, key=secret[:64], digest_size=MAC_SIZE).digest()


def kept_secret(db: Store, key: bytes) -> bytes:
    """What the store keeps there; made, where there is none."""
    found = db.get(key)
    if found is None:
        with suppress(VersionConflict):  # Somebody else has just made one.
            db.cas(key, secrets.token_bytes(32), 0)
        found = db[key]
    return found
