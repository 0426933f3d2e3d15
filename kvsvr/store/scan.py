"""Keys in order: what a range is, and how its pages become Python objects.

A scan holds nothing between its pages, neither in C nor here but the place where it goes on. So it may be dropped at
any entry, and a store may be closed under it: the next page then raises ClosedError.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from struct import iter_unpack
from typing import Any, Final

from kvsvr.errors import UsageError, shown
from kvsvr.native import Handle, borrow, ffi, lib, own
from kvsvr.types import BytesLike

# Whoever wants one entry should not pay for a thousand, and whoever wants all of them should not come a thousand times.
PAGE_COUNTS: Final = (32, 128, 512, 1024)

Entry = tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Span:
    """Keys from `start` on and below `stop`; None: no bound."""

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


def limit_of(limit: int | None) -> int | None:
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 0):
        raise UsageError(f"limit is a number of entries from 0 up, or None for all, not {shown(limit)}")
    return limit


def pages(handle: Handle, span: Span, *, reverse: bool, limit: int | None, values: bool) -> Iterator[list[Entry]]:
    """The entries of the span, some at a time; without `values` every value is empty."""
    index = 0
    while limit is None or limit > 0:
        count = PAGE_COUNTS[min(index, len(PAGE_COUNTS) - 1)]
        entries, resume = _page(handle, span, count if limit is None else min(count, limit), reverse, values)
        yield entries
        if resume is None:
            return
        span = span.behind(resume, reverse=reverse)
        limit = None if limit is None else limit - len(entries)
        index += 1


def _page(handle: Handle, span: Span, count_max: int, reverse: bool, values: bool) -> tuple[list[Entry], bytes | None]:
    """Some entries, and the key behind which the span goes on; None: it does not."""
    wanted, page, held = ffi.new("kv_range *"), ffi.new("kv_page *"), []
    for side in ("start", "stop"):
        bound = getattr(span, side)
        if bound is not None:
            held.append(ffi.from_buffer("uint8_t[]", bound))
            setattr(wanted, side, held[-1])
            setattr(wanted, side + "_size", len(bound))
    wanted.count_max, wanted.reverse, wanted.with_values = count_max, reverse, values
    caller = handle.take()
    total = lib.kv_scan(caller.pointer, wanted, page)
    if total < 0:
        raise handle.failed(total, caller)
    content = caller.content(total)
    sizes = [] if page.equal else ffi.unpack(page.sizes, 2 * page.count)
    handle.release(caller)
    entries = _equal_entries(content, page) if page.equal else _entries(content, sizes)
    return entries, content[page.size :] if page.more else None


def _equal_entries(content: bytes, page: Any) -> list[Entry]:
    """The usual case, cut by C."""
    if page.count == 0:
        return []
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
