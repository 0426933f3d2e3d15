"""Rows for peers without tables, as one would write them: the key of a row is that of its table and the row's number,
big-endian, so that rows are in order. The next numbers are kept in memory, which is the cheapest a program can do; to
look for the last row before every append would cost the peers more."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import count

from bench.adapters.base import Pair

BEHIND_ROWS = b"\xff" * 8  # No row comes so far.


def numbered(put: Callable[[bytes, bytes], object]) -> Callable[[bytes, bytes], object]:
    """An append made of a put. For tables that are empty."""
    numbers: defaultdict[bytes, count[int]] = defaultdict(count)

    def append(table: bytes, value: bytes) -> None:
        put(table + next(numbers[table]).to_bytes(8, "big"), value)

    return append


def ascending(table: bytes, answer: Sequence[Pair]) -> list[bytes]:
    """Of pairs that came in descending order, those that are rows of the table."""
    return [value for key, value in reversed(answer) if key.startswith(table)]
