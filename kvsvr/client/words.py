"""What is said to a replica, and what its answers and errors mean. No sockets, no state."""

from __future__ import annotations

import errno
import re
from typing import Any, Final, Literal, TypeAlias

from kvsvr.errors import DiskError, KvError, Unknown, UsageError, VersionConflict, shown
from kvsvr.native import KEY_SIZE_MAX, borrow, failure, lib, own
from kvsvr.types import BytesLike

Consistency: TypeAlias = Literal["linearizable", "stale"]
Durability: TypeAlias = Literal["version", "data"]
Word: TypeAlias = bytes | str | int
Words: TypeAlias = tuple[Word, ...]


class Failed(Exception):
    """An error that a replica answered, in its words."""


def key_of(key: BytesLike) -> bytes:
    name = own(key)
    if not 0 < len(name) <= KEY_SIZE_MAX:
        raise UsageError(f"a key has 1 to {KEY_SIZE_MAX} bytes; this one has {len(name)}")
    return name


def value_of(value: BytesLike) -> bytes:
    return bytes(borrow(value, "value"))


def is_stale(consistency: str) -> bool:
    if consistency not in ("linearizable", "stale"):
        raise UsageError(f'consistency is "linearizable" or "stale", not {shown(consistency)}')
    return consistency == "stale"


def is_data(durability: str) -> bool:
    if durability not in ("version", "data"):
        raise UsageError(f'durability is "version" or "data", not {shown(durability)}')
    return durability == "data"


def single(
    kind: str, key: bytes = b"", *, table: bytes = b"", value: bytes = b"", argument: int = 0, ttl_ms: int = 0
) -> Words:
    """The end of a KV.ONCE that is one write."""
    return kind, table, key, value, argument, ttl_ms


def page(name: bytes, start: bytes | None, stop: bytes | None, count: int, *, values: bool, reverse: bool) -> Words:
    """The end of a KV.PAGE or TBL.PAGE. `name`: KEYS, TABLES, or a table."""
    return name, _bound(start), _bound(stop), count, int(values), int(reverse)


def _bound(name: bytes | None) -> bytes:
    return b"" if name is None else b"[" + name


# --- errors ---

COME_AGAIN: Final = ("CLUSTERDOWN", "UNAVAILABLE", "LOADING", "TRYAGAIN", "OOM", "ERR max number of clients")
"""Not here, or not now: says nothing about whether an earlier sending was executed."""

SEEN: Final = re.compile(r"SEEN (\d+)")
_CONFLICT: Final = re.compile(r"CONFLICT it is at version (\d+)")

_STATUSES: Final = {
    "WRONGTYPE": lib.KV_EWRONGTYPE,
    "ERR value is not an integer": lib.KV_ENOTINT,
    "ERR increment or decrement would overflow": lib.KV_EOVERFLOW,
    "ERR it writes more than one batch": lib.KV_EBATCHSIZE,
    "ERR a key has": lib.KV_EKEYSIZE,
}

_USAGE: Final = {
    "ERR string exceeds": "a value in a replica set has at most 16 MiB: split it over several keys",
    "ERR Protocol error": "the value is larger than the replicas' word_size_max: split it over several keys",
    "ERR it is larger": "all of it is larger than a request between replicas may be: split it",
    "ERR the replica refused it": "the set refused it: are all keys of one hash slot?",
    "NOAUTH": "the set wants a password: connect(..., password=...)",
    "WRONGPASS": "the password is not the set's: connect(..., password=...)",
    "ERR AUTH": "the set has no password: connect without one",
    "ERR unknown command": "the set runs an older kvsvr than this client, which lacks a command: upgrade its replicas",
}


def error_of(text: str, path: str, key: bytes | None = None, table: bytes | None = None) -> Exception:
    """What a replica's error is in this process: what the embedded store raises, wherever it has the like."""
    conflict = _CONFLICT.match(text)
    if conflict is not None:
        return VersionConflict(key or b"", int(conflict[1]), table=table)
    for beginning, status in _STATUSES.items():
        if text.startswith(beginning):
            return failure(status, None, path, key, table)
    for beginning, advice in _USAGE.items():
        if text.startswith(beginning):
            return UsageError(advice)
    if text.startswith("MISCONF"):
        return DiskError(f"{path}: a replica's disk is full: make room there", path=path, errno=errno.ENOSPC)
    if text.startswith("UNKNOWN"):
        return Unknown(f"{path}: {text.partition(' ')[2]}: read before writing again")
    return KvError(f"{path}: {text}")


def figures_of(info: bytes) -> dict[str, Any]:
    """INFO as a dict; numbers as numbers."""
    pairs = (line.split(":", 1) for line in info.decode(errors="replace").splitlines() if ":" in line)
    return {name: int(value) if value.lstrip("-").isdigit() else value for name, value in pairs}
