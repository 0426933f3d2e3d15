"""Names and numbers that the services share.

Every key of a service begins with a hash tag, `{...}`, so that what belongs together is in one slot. An id is eight
bytes, big-endian, so that rows named by it stand in its order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from kvsvr.errors import UsageError, shown

Clock: TypeAlias = Callable[[], float]
"""Seconds since 1970. The services are given one, so that tests can turn it."""

NAME_SIZE_MAX: Final = 200
ID_SIZE: Final = 8


def name_of(name: str, what: str) -> str:
    """A name that people chose. No braces: they would end the hash tag that it stands in."""
    if not isinstance(name, str) or not 0 < len(name.encode("utf-8", "surrogatepass")) <= NAME_SIZE_MAX:
        raise UsageError(f"{what} is text of 1 to {NAME_SIZE_MAX} bytes, not {shown(name)}")
    if not name.isprintable() or "{" in name or "}" in name:
        raise UsageError(f"{what} has no braces and nothing unprintable: {shown(name)} is another's name for it")
    return name


def micros(seconds: float) -> int:
    return int(seconds * 1_000_000)


def seconds_of(id_: bytes) -> float:
    """When an id was given."""
    return int.from_bytes(id_[:ID_SIZE]) / 1_000_000


def id_after(last: bytes | None, now: float) -> bytes:
    """An id above `last`, and above what a power cut may have made of it: time went on meanwhile."""
    before = int.from_bytes(last) if last else 0
    return max(before + 1, micros(now)).to_bytes(ID_SIZE, "big")
