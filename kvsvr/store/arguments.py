"""What callers hand over, checked, and cut into pieces that C takes at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Final

from kvsvr.errors import UsageError, shown
from kvsvr.native import Pairs, as_bytes, borrow, ttl_ms
from kvsvr.types import BytesLike

# What goes to C at a time, by count and by bytes: it bounds the copy made of it, and is what C puts into one envelope.
WRITE_COUNT_MAX: Final = 8192
WRITE_SIZE_MAX: Final = 1 << 20
# Fewer for reads: nobody knows how large their answers are.
READ_COUNT_MAX: Final = 512

INT64_MIN: Final = -(1 << 63)
INT64_MAX: Final = (1 << 63) - 1


def expiry_of(ttl: float | None) -> int:
    return 0 if ttl is None else ttl_ms(ttl)


def version_of(version: int, *, least: int) -> int:
    if not isinstance(version, int) or isinstance(version, bool) or not least <= version <= INT64_MAX:
        raise UsageError(f"a version is a whole number from {least} up, as put() returns it, not {shown(version)}")
    return version


def addend(by: int) -> int:
    if not isinstance(by, int) or not INT64_MIN <= by <= INT64_MAX:
        raise UsageError(f"incr adds a 64-bit integer, not {shown(by)}")
    return by


def limit_of(limit: int | None, *, least: int = 0) -> int | None:
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < least):
        raise UsageError(f"limit is a number of entries from {least} up, or None for all, not {shown(limit)}")
    return limit


def chunks(keys: Iterable[BytesLike], count_max: int) -> Iterator[list[BytesLike]]:
    if isinstance(keys, bytes | bytearray | memoryview | str):
        raise TypeError(f"a list of keys is wanted, not one key: [{shown(keys)}]")
    source = iter(keys)
    while chunk := list(islice(source, count_max)):
        yield chunk


def pair_chunks(
    pairs: Iterable[tuple[BytesLike, BytesLike]],
) -> Iterator[tuple[list[BytesLike], list[BytesLike]]]:
    """The pairs in groups that are closed by count or by size. Taken one at a time: a generator of large values has
    one group in memory, whatever it yields next."""
    keys: list[BytesLike] = []
    values: list[BytesLike] = []
    size = 0
    for key, value in pair_source(pairs):
        keys.append(key)
        values.append(value)
        size += len(value if value.__class__ is bytes else borrow(value, "value"))
        if size >= WRITE_SIZE_MAX or len(keys) == WRITE_COUNT_MAX:
            yield keys, values
            keys, values, size = [], [], 0
    if keys:
        yield keys, values


def pair_source(pairs: Iterable[tuple[BytesLike, BytesLike]]) -> Iterator[tuple[BytesLike, BytesLike]]:
    if isinstance(pairs, Mapping):
        raise TypeError("pairs of key and value are wanted, not a dict: pass d.items()")
    return iter(pairs)


def pairs_of(source: Iterator[tuple[BytesLike, BytesLike]]) -> Pairs:
    """The next group, as above, copied for C; an empty one is false."""
    try:
        return Pairs(source, as_bytes)
    except OverflowError:
        raise UsageError("a key or a value is larger than 4 GiB; values have at most 1 GiB") from None
