"""Hash slots, as Redis Cluster has them: which keys may be written together on a replica set.

The slot of a key is CRC-16/XMODEM modulo 16384 of the key, or of its tag: what stands between the first `{` and the
first `}` behind it, unless that is nothing. So `{user1000}.name` and `{user1000}.mail` share a slot.
"""

from __future__ import annotations

from binascii import crc_hqx
from typing import Final

from kvsvr.errors import UsageError, shown_key

SLOT_COUNT: Final = 16384


def slot_of(key: bytes) -> int:
    start = key.find(b"{") + 1
    stop = key.find(b"}", start) if start else -1
    return crc_hqx(key[start:stop] if stop > start else key, 0) % SLOT_COUNT


class OneSlot:
    """Refuses the first key that is not in the slot of the one that came first."""

    __slots__ = ("_first", "_slot")

    def __init__(self) -> None:
        self._first: bytes | None = None
        self._slot = 0

    def enter(self, key: bytes) -> None:
        slot = slot_of(key)
        if self._first is None:
            self._first, self._slot = key, slot
        elif slot != self._slot:
            raise UsageError(
                f"{shown_key(self._first)} is in hash slot {self._slot}, {shown_key(key)} in {slot}; with "
                'slots="strict" the keys of a batch or transaction share one: give them a hash tag in common, as in '
                'b"{user:42}:name"'
            )
