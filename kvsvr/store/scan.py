"""Keys, tables and rows in order: what a range is, and the iterator over it.

It holds nothing between its pages but the place where it goes on (native/python/listing.c). So it may be dropped at any
entry, and a store may be closed under it: the next page then raises ClosedError.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kvsvr.errors import UsageError
from kvsvr.native import Listing, Pool, borrow, own
from kvsvr.store.arguments import limit_of
from kvsvr.types import BytesLike


def listing(
    pool: Pool,
    what: int,
    *,
    start: BytesLike | None = None,
    stop: BytesLike | None = None,
    prefix: BytesLike | None = None,
    reverse: bool = False,
    limit: int | None = None,
    table: bytes | None = None,
    values: bool = True,
) -> Iterator[Any]:
    """Pairs of name and value, or names: of KV_SCAN_KEYS, _TABLES, or _ROWS of a table."""
    if prefix is None:
        first, behind = _bound(start), _bound(stop)
    elif start is not None or stop is not None:
        raise UsageError("prefix says where to start and to stop: give either it or them")
    else:
        first = bytes(borrow(prefix, "prefix"))
        behind = _successor(first)
    return Listing(pool, what, values, bool(reverse), first, behind, limit_of(limit), table)


def _bound(bound: BytesLike | None) -> bytes | None:
    # A copy, because the caller may change its buffer before the last page.
    return None if bound is None else own(bound)


def _successor(prefix: bytes) -> bytes | None:
    """The lowest string above all that begin with the prefix; None: there is none."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else None
