"""Messages between users, one to one and in groups, over sync and the queue.

A user's slot, `{u/ann}`, has beside what kvsvr.sync keeps there:

    account, chat   keys: that there is such a user; the last number that a message of hers got
    sent            client id -> number, for a week
    m:N             keys: bodies of what she sent
    kinds           inbox (number and source -> nothing: the body is at its source), contacts, groups, marks, blocks

A group's is in groups.py. A message is stored once, where it was sent from, and its place in an inbox is a row that
names it; so a message is recalled by writing its body anew and delivering it again. What is to be done in other slots
is a task that is stored with the message (docs/decisions/0040, 0042). `local=True` does it at once, too; what fails
then, or is cut off by a kill, is done by whoever calls deliver() or work().

Any number of threads and processes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final, NamedTuple, TypeVar

import msgspec

from kvsvr.errors import KvError, UsageError, shown
from kvsvr.services import groups, words
from kvsvr.services.groups import Group, json_of, message_of
from kvsvr.services.names import ID_SIZE, Clock, id_after, micros, name_of, seconds_of
from kvsvr.services.queue import Queue, Task
from kvsvr.services.refused import Refused
from kvsvr.services.roster import Report, Roster
from kvsvr.services.sync import PRESENT, Changes, Digest, Pulled, Sync, digest_of, prefix_of
from kvsvr.services.words import AnyReply, AnyRequest, AnyTask, Message, Sent
from kvsvr.types import Store, TransactionWriter

T = TypeVar("T")

TEXT_SIZE_MAX: Final = 65_536
CLIENT_ID_SIZE_MAX: Final = 200
CLIENT_ID_TTL: Final = 7 * 86_400.0
SEND_COUNT_MAX: Final = 1000
GONE: Final = b"null"
"""What stands for a message whose body is no more."""

_task: Final = msgspec.msgpack.Decoder(AnyTask)
_encode: Final = msgspec.msgpack.Encoder().encode


class Step(NamedTuple):
    """What a transaction leaves to be done elsewhere."""

    topic: str
    id: bytes
    task: AnyTask


class Messaging:
    """`fan_out_max`: members of a group up to which a message is written to every inbox. `history`: seconds that
    messages are kept; `inbox_count_max`: and how many of an inbox; None: all. `recall_s`: how long a message can be
    recalled."""

    def __init__(
        self,
        db: Store,
        sync: Sync | None = None,
        *,
        fan_out_max: int = 500,
        history: float | None = None,
        inbox_count_max: int | None = None,
        recall_s: float = 120.0,
        local: bool = True,
        clock: Clock = time.time,
    ) -> None:
        self._db = db
        self.sync = sync or Sync(db, clock=clock)
        self.queue = Queue(db, clock=clock)
        self.roster = Roster(db, self.queue, "messaging", clock=clock)
        self._fan_out_max = fan_out_max
        self._history = history
        # A live device may be as late as its lease, and is to find the bodies of what it has not been given yet.
        self._body_ttl = None if history is None else history + self.sync.lease
        self._inbox_count_max = inbox_count_max
        self._recall_s = recall_s
        self._local = local
        self._clock = clock

    # --- users ---

    def register(self, user: str) -> bool:
        """False: there is one of that name."""
        key, account = prefix_of(user) + b"account", id_after(None, self._clock())

        def change(t: TransactionWriter) -> bool:
            if key in t:
                return False
            t.put(key, account)
            return True

        return self._db.run(change)

    def keep(self, user: str, other: str, note: str = "", *, on: bool = True) -> None:
        """A contact, or none any more."""
        self._known(other)
        with self._db.batch() as batch:
            feed = self.sync.feed(batch, user, "contacts")
            feed.put(other.encode(), json_of(words.Contact(note))) if on else feed.delete(other.encode())

    def block(self, user: str, other: str, *, on: bool = True) -> None:
        """What the other one sends from now on does not arrive. He is not told."""
        with self._db.batch() as batch:
            feed = self.sync.feed(batch, user, "blocks")
            feed.put(other.encode(), b"true") if on else feed.delete(other.encode())

    def mark(self, user: str, conversation: str, seq: int) -> bool:
        """Read up to this message, on all devices of the user. A mark never goes back."""
        row = conversation.encode()

        def change(t: TransactionWriter) -> bool:
            before = self.sync.get_in(t, user, "marks", row)
            if before is not None and int(before) >= seq:
                return False
            self.sync.feed(t, user, "marks").put(row, b"%d" % seq)
            return True

        return self._db.run(change)

    def _known(self, user: str) -> None:
        if self._db.get(prefix_of(user) + b"account") is None:
            raise Refused("unknown", f"there is no user {user!r}")

    # --- sending ---

    def send(self, user: str, to: str, text: str, client_id: str = "") -> Sent:
        """To `u/bob` or `g/7`. With a client id that was used before: what was sent then, and nothing else happens."""
        return self.send_many(user, [words.Send(to, text, client_id)])[0]

    def send_many(self, user: str, messages: Sequence[words.Send]) -> list[Sent]:
        """Several at once, in this order: those to users in one transaction, those to a group one by one behind it."""
        if len(messages) > SEND_COUNT_MAX:
            raise UsageError(f"at most {SEND_COUNT_MAX} messages at once, not {len(messages)}")
        for one in messages:
            _check(one)
        for to in {one.to for one in messages}:
            _check_receiver(to)
            if to.startswith("u/"):
                self._known(to[2:])
        direct = [one for one in messages if one.to.startswith("u/")]
        sent = iter(self._step(f"{{u/{user}}}out", partial(self._send, user=user, messages=direct)) if direct else [])
        return [next(sent) if one.to.startswith("u/") else self._send_to_group(user, one) for one in messages]

    def _send(
        self, t: TransactionWriter, *, user: str, messages: Sequence[words.Send]
    ) -> tuple[list[Sent], list[AnyTask]]:
        prefix, source = prefix_of(user), f"u/{user}"
        if prefix + b"account" not in t:
            raise Refused("unknown", f"there is no user {user!r}")
        ids, inbox = t.table(prefix + b"sent"), self.sync.feed(t, user, "inbox")
        last, now = t.get(prefix + b"chat"), self._clock()
        sent, items = [], []
        for one in messages:
            before = ids.get(one.client_id.encode()) if one.client_id else None
            if before is not None:
                sent.append(Sent(source, int.from_bytes(before)))
                continue
            last = id_after(last, now)
            number = int.from_bytes(last)
            body = Message(user, one.to, number, one.text, client_id=one.client_id)
            t.put(words.body_key(source, last), json_of(body), self._body_ttl)
            inbox.put(words.inbox_row(source, last), b"")
            if one.client_id:
                ids.put(one.client_id.encode(), last, CLIENT_ID_TTL)
            if one.to != source:
                items.append((one.to[2:], last))
            sent.append(Sent(source, number))
        if last is not None:
            t.put(prefix + b"chat", last)
        return sent, [words.Deliver(user, items)] if items else []

    def _send_to_group(self, user: str, one: words.Send) -> Sent:
        group = one.to[2:]
        return self._step(groups.outbox_of(group), partial(self._sequence, user=user, group=group, one=one))

    def _sequence(self, t: TransactionWriter, *, user: str, group: str, one: words.Send) -> tuple[Sent, list[AnyTask]]:
        state = groups.load(t, group)
        before = groups.sent_before(t, group, user, one.client_id)
        if before is not None:
            return Sent(one.to, int.from_bytes(before[0]), before[1]), []
        _want_member(t, group, user)
        tasks: list[AnyTask] = []
        if state.count > self._fan_out_max and not state.large:
            state.large = True
            tasks.append(words.Enlarge(group))
        message = Message(user, one.to, 0, one.text, client_id=one.client_id)
        row = groups.sequence(t, group, state, message, self._clock(), ttl=self._body_ttl, id_ttl=CLIENT_ID_TTL)
        tasks.append(words.Ring(group) if state.large else words.Fan(group, row))
        return Sent(one.to, int.from_bytes(row[words.EPOCH_SIZE :]), state.epoch), tasks

    def recall(self, user: str, source: str, seq: int) -> None:
        """Takes the text out of one's own message, wherever it has been delivered to."""
        name_of(source[2:], "a source")
        topic = groups.outbox_of(source[2:]) if source.startswith("g/") else f"{{u/{user}}}out"
        self._step(topic, partial(self._recall, user=user, source=source, number=seq.to_bytes(ID_SIZE, "big")))

    def _recall(self, t: TransactionWriter, *, user: str, source: str, number: bytes) -> tuple[None, list[AnyTask]]:
        name = words.body_key(source, number)
        content = t.get(name) if source == f"u/{user}" or source.startswith("g/") else None
        if content is None:
            raise Refused("unknown", f"there is no such message of {source}")
        body = message_of(content)
        if body.sender != user:
            raise Refused("not_the_owner", "a message is recalled by who sent it")
        if body.recalled:
            return None, []
        age = self._clock() - seconds_of(number)
        if age > self._recall_s:
            raise Refused("too_late", f"a message can be recalled for {self._recall_s:g} s")
        blank = msgspec.structs.replace(body, text="", recalled=True)
        t.put(name, json_of(blank), None if self._body_ttl is None else max(1.0, self._body_ttl - age))
        if not source.startswith("g/"):
            self.sync.feed(t, user, "inbox").put(words.inbox_row(source, number), b"")
            return None, [words.Deliver(user, [(body.to[2:], number)])] if body.to != source else []
        row, log = words.log_row(body.epoch, number), t.table(groups.prefix_of(source[2:]) + b"log")
        if row in log:
            log.put(row, PRESENT)
            return None, [words.Ring(source[2:])]
        return None, [words.Fan(source[2:], row)]

    # --- groups ---

    def create(self, user: str, group: str, name: str = "", *, open: bool = False) -> int:
        """The epoch, in which the user is a member. Anybody may join an open group."""
        self._known(user)

        def change(t: TransactionWriter) -> tuple[int, list[AnyTask]]:
            epoch, made = groups.create(t, group, Group(user, name, open))
            return epoch, [words.Tell(group, user, name, epoch, True)] if made else []

        return self._step(groups.outbox_of(name_of(group, "a group")), change)

    def join(self, user: str, group: str) -> int:
        self._known(user)
        return self._change(user, group, user, came=True)

    def invite(self, user: str, group: str, other: str) -> int:
        self._known(other)
        return self._change(user, group, other, came=True)

    def leave(self, user: str, group: str) -> int:
        return self._change(user, group, user, came=False)

    def remove(self, user: str, group: str, other: str) -> int:
        """By the owner."""
        return self._change(user, group, other, came=False)

    def _change(self, by: str, group: str, user: str, *, came: bool) -> int:
        def change(t: TransactionWriter) -> tuple[int, list[AnyTask]]:
            state = groups.load(t, group)
            if came and not (by == user and state.open):
                _want_member(t, group, by)
            if not came and by not in (user, state.owner):
                raise Refused("not_the_owner", f"{by!r} does not own {group!r}")
            before = state.epoch
            epoch = (groups.enter if came else groups.leave)(t, group, state, user)
            return epoch, [words.Tell(group, user, state.name, epoch, came)] if epoch != before else []

        return self._step(groups.outbox_of(group), change)

    def members(self, user: str, group: str) -> list[str]:
        """For members."""
        found = groups.members_now(self._db, group)
        if user not in found:
            raise Refused("not_a_member", f"{user!r} is no member of {group!r}")
        return found

    # --- what follows elsewhere ---

    def _step(self, topic: str, change: Callable[[TransactionWriter], tuple[T, list[AnyTask]]]) -> T:
        """A transaction, with its tasks in the outbox of its slot; and those at once, if nothing is in the way."""
        self.roster.enter(topic)

        def whole(t: TransactionWriter) -> tuple[T, list[Step]]:
            found, tasks = change(t)
            return found, [Step(topic, self.queue.put_into(t, topic, _encode(task)), task) for task in tasks]

        found, steps = self._db.run(whole)
        if steps and not self._local:
            self.roster.ring(topic)
        for step in steps if self._local else ():
            with suppress(KvError):  # It is stored: a worker will do it.
                self._apply(step.task)
                self.queue.finish(step.topic, step.id)
        return found

    def deliver(self, worker: str = "here", limit: int | None = None) -> int:
        """Does what others have left undone, up to so many tasks; how many."""
        return self.roster.round(self._do, worker, limit=limit)

    def work(self, worker: str, stopping: Callable[[], bool], report: Report) -> None:
        """The same until `stopping` says so, as it comes. `report` is told of what cannot be done now."""
        self.roster.work(self._do, worker, stopping, report)

    def _do(self, task: Task) -> None:
        self._apply(_task.decode(task.body))

    def _apply(self, task: AnyTask) -> None:
        """Any number of times, and in any order."""
        match task:
            case words.Deliver():
                self._deliver(task)
            case words.Fan():
                row, number = task.row, task.row[words.EPOCH_SIZE :]
                for user in groups.members_of(self._db, task.group, row):
                    self.sync.put(user, "inbox", words.inbox_row(f"g/{task.group}", number), b"")
            case words.Enlarge():
                for user in groups.members_now(self._db, task.group):
                    self._follow(user, task.group)
            case words.Ring():
                self.sync.poke_watchers(groups.prefix_of(task.group) + b"log")
            case words.Tell():
                self._db.run(partial(self._tell, task=task))
                if groups.load(self._db, task.group).large:
                    self._follow(task.user, task.group)

    def _deliver(self, task: words.Deliver) -> None:
        rows: dict[str, list[bytes]] = {}
        for user, number in task.items:
            rows.setdefault(user, []).append(words.inbox_row(f"u/{task.sender}", number))
        for user, named in rows.items():
            if self.sync.get(user, "blocks", task.sender.encode()) is None:
                with self._db.batch() as batch:
                    feed = self.sync.feed(batch, user, "inbox")
                    for row in named:
                        feed.put(row, b"")

    def _tell(self, t: TransactionWriter, *, task: words.Tell) -> None:
        row = task.group.encode()
        before = self.sync.get_in(t, task.user, "groups", row)
        if before is None or msgspec.json.decode(before, type=words.Membership).epoch < task.epoch:
            value = json_of(words.Membership(task.name, task.epoch, task.member))
            self.sync.feed(t, task.user, "groups").put(row, value)

    def _follow(self, user: str, group: str) -> None:
        prefix = groups.prefix_of(group)
        self.sync.share(user, f"g/{group}", prefix + b"log", prefix + b"members")

    # --- receiving ---

    def pull(self, user: str, device: str, key: bytes | None, limit: int = 100) -> Pulled:
        """As Sync.pull, with messages where it has rows that name them. Values are JSON."""
        pulled = self.sync.pull(user, device, key, limit)
        return Pulled([self._filled(changes) for changes in pulled.changes], pulled.key, pulled.more)

    def wait(self, user: str, device: str, key: bytes | None, timeout: float) -> bool:
        return self.sync.wait(user, device, key, timeout)

    def digest(self, user: str, kind: str) -> Digest:
        """Of what pull() gives."""
        contents = list(self.sync.contents(user, kind))
        return digest_of(self._filled(Changes(kind, contents, [])).rows, self.sync.first_row(user, kind))

    def _filled(self, changes: Changes) -> Changes:
        if changes.kind == "inbox":
            keys = [words.body_of_inbox(row) for row, _ in changes.rows]
        elif changes.kind.startswith("g/"):
            keys = [words.body_of_log(changes.kind, row) for row, _ in changes.rows]
        else:
            return changes
        bodies = self._db.get_many(keys)
        rows = [(row, GONE if body is None else body) for (row, _), body in zip(changes.rows, bodies, strict=True)]
        return Changes(changes.kind, rows, changes.deleted, changes.resync)

    # --- letting go ---

    def tidy(self, user: str) -> int:
        """Lets go of what every live device has and retention does not keep; how many rows of the inbox that was."""
        self.sync.sweep(user)
        prefix, until = prefix_of(user), b""
        inbox, sent = self._db.table(prefix + b"t:inbox"), self._db.table(prefix + b"sent")
        if self._history is not None:
            until = micros(self._clock() - self._history).to_bytes(ID_SIZE, "big")
        if self._inbox_count_max is not None and len(inbox) > self._inbox_count_max:
            *_, oldest = inbox.keys(reverse=True, limit=self._inbox_count_max)
            until = max(until, oldest)
        sent.trim(sent.version)
        return self.sync.purge(user, "inbox", until) if until else 0

    def tidy_group(self, group: str) -> int:
        """Lets go of the log of a large group by age, and of members who left before all that is left; how many rows of
        the log that was. Who has not read them is told to begin anew."""
        prefix, count = groups.prefix_of(group), 0
        log, gone = self._db.table(prefix + b"log"), []
        if self._history is not None:
            limit = micros(self._clock() - self._history).to_bytes(ID_SIZE, "big")
            for row in log:
                if row[words.EPOCH_SIZE :] >= limit:
                    break
                gone.append(row)
        if gone:
            newest = max(found.version for row in gone if (found := log.get_versioned(row)) is not None)
            log.trim(newest)  # First, so that who reads between the two is told.
            for row in gone:
                count += log.delete(row)
        self._prune(group, self._oldest(group))
        return count

    def _oldest(self, group: str) -> bytes:
        """The first row, epoch in front, that somebody may still have to be given."""
        topic, state = groups.outbox_of(group), groups.load(self._db, group)
        rows = [state.epoch.to_bytes(words.EPOCH_SIZE, "big")]
        rows += self._db.table(groups.prefix_of(group) + b"log").keys(limit=1)
        rows += [task.row for task in map(_task.decode, self.queue.bodies(topic)) if isinstance(task, words.Fan)]
        return min(rows)

    def _prune(self, group: str, oldest: bytes) -> None:
        for user in list(self._db.table(groups.prefix_of(group) + b"members")):
            name = user.decode()
            if not self._db.run(partial(groups.prune, group=group, user=name, oldest=oldest)):
                self.sync.unshare(name, f"g/{group}")

    # --- requests ---

    def handle(self, user: str, device: str, request: AnyRequest) -> AnyReply:
        """What a gateway calls, when it knows who is there. Refused and UsageError become a Failed; other errors are
        the store's, and the caller's to judge."""
        try:
            return self._handle(user, device, request)
        except Refused as error:
            return words.Failed(error.reason, str(error))
        except UsageError as error:
            return words.Failed("usage", str(error))

    def _handle(self, user: str, device: str, request: AnyRequest) -> AnyReply:
        match request:
            case words.Send(to, text, client_id):
                return self.send(user, to, text, client_id)
            case words.Recall(source, seq):
                self.recall(user, source, seq)
            case words.Mark(conversation, seq):
                self.mark(user, conversation, seq)
            case words.Block(other, on):
                self.block(user, other, on=on)
            case words.Keep(other, note, on):
                self.keep(user, other, note, on=on)
            case words.Create(group, name, is_open):
                return words.Epoch(self.create(user, group, name, open=is_open))
            case words.Join(group):
                return words.Epoch(self.join(user, group))
            case words.Leave(group):
                return words.Epoch(self.leave(user, group))
            case words.Invite(group, other):
                return words.Epoch(self.invite(user, group, other))
            case words.Remove(group, other):
                return words.Epoch(self.remove(user, group, other))
            case words.Members(group):
                return words.MemberList(self.members(user, group))
            case words.Pull(key, limit):
                return _page(self.pull(user, device, key, limit))
            case words.Wait(key, timeout):
                return words.Woken(self.wait(user, device, key, timeout))
            case words.Check(kind):
                found = self.digest(user, kind)
                return words.Sum(found.count, found.first, found.sum)
        return words.Done()


def _check_receiver(to: str) -> None:
    if not to.startswith(("u/", "g/")):
        raise UsageError(f"a message goes to u/SOMEBODY or g/SOMEWHERE, not to {shown(to)}")
    name_of(to[2:], "a receiver")


def _check(one: words.Send) -> None:
    # A character has up to four bytes; only long texts need to be encoded to know.
    if len(one.text) * 4 > TEXT_SIZE_MAX and len(one.text.encode()) > TEXT_SIZE_MAX:
        raise UsageError(f"a text has up to {TEXT_SIZE_MAX} bytes, this one {len(one.text.encode())}")
    if len(one.client_id) > CLIENT_ID_SIZE_MAX:
        raise UsageError(f"a client id has up to {CLIENT_ID_SIZE_MAX} characters, not {len(one.client_id)}")


def _want_member(t: TransactionWriter, group: str, user: str) -> None:
    if not groups.is_member(t, group, user):
        raise Refused("not_a_member", f"{user!r} is no member of {group!r}")


def _page(pulled: Pulled) -> words.Page:
    changes = [
        words.Rows(one.kind, [(row, msgspec.Raw(value)) for row, value in one.rows], one.deleted, one.resync)
        for one in pulled.changes
    ]
    return words.Page(changes, pulled.key, pulled.more)
