"""What can be refused: a code for programs, an HTTP status, a message, and what whoever asked can do about it."""

from __future__ import annotations

from typing import Final

import msgspec

from kvsvr.errors import ClosedError, DiskError, KvError, Unavailable, Unknown, UsageError, VersionConflict
from kvsvr.services.refused import Refused

# Status and cure of each code. Those of kvsvr.messaging keep their names.
CODES: Final[dict[str, tuple[int, str]]] = {
    "malformed": (400, "send JSON as docs/gateway.md has it"),
    "usage": (400, "change the request: it will be refused again as it is"),
    "ticket": (401, "log in, and come with the ticket that gives"),
    "expired": (401, "log in again; a sync key is as good as before"),
    "sync_key": (403, "pull without a key: the device begins anew"),
    "not_a_member": (403, "ask a member for an invitation"),
    "not_the_owner": (403, "ask whoever owns it"),
    "too_late": (403, "nothing helps: it stands"),
    "login_off": (403, "get a ticket from whoever runs this; kvsvr gateway ticket USER makes one"),
    "no_call": (404, "docs/gateway.md lists the calls"),
    "unknown": (404, "check the name; of users, that they are registered"),
    "exists": (409, "take another name"),
    "devices": (409, "forget a device, or use the name of one"),
    "too_large": (413, "send less at once"),
    "too_many": (429, "wait a second, and send less often"),
    "sockets": (429, "close one that is open"),
    "internal": (500, "tell whoever runs this; what was asked may have happened"),
    "busy": (503, "wait a moment, and send it again"),
    "full": (503, "try later"),
    "stopping": (503, "connect again, with the same sync key"),
    "unavailable": (503, "nothing has happened: try again"),
    "uncertain": (504, "it may have happened: send it again with the same client_id"),
    "no_space": (507, "whoever runs this has to make room"),
}


class Failure(msgspec.Struct, frozen=True, tag_field="is", tag="error"):
    code: str
    message: str
    cure: str

    @property
    def status(self) -> int:
        return CODES[self.code][0]


class Refusal(Exception):
    """The gateway's own no."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def failure(code: str, message: str) -> Failure:
    return Failure(code, message, CODES[code][1])


def judged(error: Exception) -> Failure:
    """What whoever asked is told. Of what is our own fault, that it is; the log has the rest."""
    if isinstance(error, Refusal):
        return failure(error.code, str(error))
    if isinstance(error, Refused):
        return failure(error.reason, str(error))
    if isinstance(error, msgspec.MsgspecError | UnicodeDecodeError):
        return failure("malformed", str(error))
    if isinstance(error, KvError):
        return _of_store(error)
    return failure("internal", "something is wrong here")


def _of_store(error: KvError) -> Failure:
    match error:
        case UsageError():
            return failure("usage", str(error))
        case Unavailable():
            return failure("unavailable", "the store cannot answer now")
        case Unknown():
            return failure("uncertain", "the store's answer was lost")
        case VersionConflict():
            return failure("busy", "too many change the same now")
        case ClosedError():
            return failure("stopping", "this gateway is about to end")
        case DiskError() if error.full:
            return failure("no_space", "the store has no space left")
    return failure("internal", "something is wrong here")
