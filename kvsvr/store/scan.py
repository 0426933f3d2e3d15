"""Keys, tables and rows in order: what a range is, and how its pages become Python objects.

A scan holds nothing between its pages, neither in C nor here but the place where it goes on. So it may be dropped at
any entry, and a store may be closed under it: the next page then raises ClosedError.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from struct import iter_unpack
from typing import Any, Final

from kvsvr.errors import UsageError
from kvsvr.native import ABSENT, Pool, borrow, ffi, lib, own
from kvsvr.types import BytesLike

# Whoever wants one entry should not pay for a thousand, and whoever wants all of them should not come a thousand times.
PAGE_COUNTS: Final = (32, 128, 512, 1024)

Entry = tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Listing:
    """What is listed: KV_SCAN_KEYS, _TABLES or _ROWS, of which table; and whether values come with it."""

    what: int
    values: bool = True
    table: bytes | None = None
    reverse: bool = False


@dataclass(frozen=True, slots=True)
class Span:
    """Names from `start` on and below `stop`; None: no bound."""

    start: bytes | None
    stop: bytes | None

    def behind(self, key: bytes, *, reverse: bool) -> Span:
        """What is left of it when everything up to this key has been seen."""
        return replace(self, stop=key) if reverse else replace(self, start=key + b"\0")


def span_of(start: BytesLike | None, stop: BytesLike | None, prefix: BytesLike | None) -> Span:
    if prefix is None:
        return Span(_bound(start), _bound(stop))
    if start is not None or stop is not None:
        raise UsageError("prefix says where to start and to stop: give either it or them")
    first = bytes(borrow(prefix, "prefix"))
    return Span(first, _successor(first))


def _bound(bound: BytesLike | None) -> bytes | None:
    # A copy, because the caller may change its buffer before the last page.
    return None if bound is None else own(bound)


def _successor(prefix: bytes) -> bytes | None:
    """The lowest string above all that begin with the prefix; None: there is none."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else None


def pages(pool: Pool, listing: Listing, span: Span, limit: int | None) -> Iterator[list[Entry]]:
    """The entries of the span, some at a time; without `values` every value is empty."""
    index = 0
    while limit is None or limit > 0:
        count = PAGE_COUNTS[min(index, len(PAGE_COUNTS) - 1)]
        entries, resume = _page(pool, listing, span, count if limit is None else min(count, limit))
        yield entries
        if resume is None:
            return
        span = span.behind(resume, reverse=listing.reverse)
        limit = None if limit is None else limit - len(entries)
        index += 1


def _page(pool: Pool, listing: Listing, span: Span, count_max: int) -> tuple[list[Entry], bytes | None]:
    """Some entries, and the name behind which the span goes on; None: it does not."""
    wanted, page, held = ffi.new("kv_range *"), ffi.new("kv_page *"), []
    for side, name in (("start", span.start), ("stop", span.stop), ("table", listing.table)):
        if name is not None:
            held.append(ffi.from_buffer("uint8_t[]", name))
            setattr(wanted, side, held[-1])
            setattr(wanted, side + "_size", len(name))
    wanted.what, wanted.count_max = listing.what, count_max
    wanted.reverse, wanted.with_values = listing.reverse, listing.values
    caller = pool.take()
    total = lib.kv_scan(caller.pointer, wanted, page)
    if total == ABSENT:  # The table is not there, or not any more.
        pool.release(caller)
        return [], None
    if total < 0:
        raise pool.failed(total, caller, listing.table, listing.table)
    content = caller.content(total)
    sizes = [] if page.equal else ffi.unpack(page.sizes, 2 * page.count)
    pool.release(caller)
    entries = _equal_entries(content, page) if page.equal else _entries(content, sizes)
    return entries, content[page.size :] if page.more else None


def _equal_entries(content: bytes, page: Any) -> list[Entry]:
    """The usual case, cut by C."""
    if page.size == 0:  # Nothing, or the one row of no bytes with a value of none.
        return [(b"", b"")] * page.count
    return list(iter_unpack(f"{page.key_size}s{page.value_size}s", memoryview(content)[: page.size]))


def _entries(content: bytes, sizes: list[int]) -> list[Entry]:
    entries: list[Entry] = []
    start = 0
    numbers = iter(sizes)
    for key_size, value_size in zip(numbers, numbers, strict=True):
        middle = start + key_size
        end = middle + value_size
        entries.append((content[start:middle], content[middle:end]))
        start = end
    return entries
