"""Keys, values and orders of one run.

A value is derived from its key and a generation, so any answer can be checked without a second copy of what was
written. Keys are random 16 bytes and values do not compress. Each order (insert, read, delete) is a list of its own,
with its own bytes objects laid out as they will be walked: no peer pays for cache misses on keys, and none that keeps
keys gains from seeing the same object again.
"""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

KEY_SIZE = 16
VALUE_SIZE = 100
HASHED_SIZE = 256  # Of a longer value only the beginning is a hash: hashing 64 KiB would take longer than storing it.
NOISE = random.Random(0).randbytes(1 << 20)


class WrongAnswer(Exception):
    """A peer answered something else than what was written; its figure is worth nothing."""


@dataclass(frozen=True, slots=True)
class Setting:
    """How many keys and how large values. With `varying` a size is anything from 1 to twice `value_size`, less one."""

    key_count: int
    value_size: int = VALUE_SIZE
    varying: bool = False

    @property
    def suffix(self) -> str:
        """Behind the names of cells; nothing for the usual sizes."""
        if self.varying:
            return "@varying" if self.value_size == VALUE_SIZE else f"@{self.size_text}-varying"
        return "" if self.value_size == VALUE_SIZE else f"@{self.size_text}"

    @property
    def size_text(self) -> str:
        return f"{self.value_size >> 10}KiB" if self.value_size % 1024 == 0 else f"{self.value_size}B"

    @property
    def values_text(self) -> str:
        return f"values of {'1 to ' if self.varying else ''}{self._largest}"

    @property
    def _largest(self) -> str:
        size = 2 * self.value_size if self.varying else self.value_size
        return f"{size >> 10} KiB" if size % 1024 == 0 else f"{size} B"

    def size_of(self, key: bytes, generation: int) -> int:
        if not self.varying:
            return self.value_size
        return 1 + (int.from_bytes(key[:4], "little") + generation * 7919) % (2 * self.value_size - 1)


def value_of(key: bytes, generation: int, size: int = VALUE_SIZE) -> bytes:
    state = hashlib.shake_128(key + generation.to_bytes(4, "little"))
    if size <= HASHED_SIZE:
        return state.digest(size)
    head = state.digest(HASHED_SIZE)
    at, rest = int.from_bytes(head[:4], "little") % len(NOISE), size - HASHED_SIZE
    while len(head) < size:
        head += NOISE[at : at + rest]
        at, rest = 0, size - len(head)
    return head


class Data:
    """Generation 0 is what a store is loaded with; every later overwrite takes a new one."""

    def __init__(self, setting: Setting, seed: int = 1) -> None:
        rng = random.Random(seed)
        count = setting.key_count
        blob = rng.randbytes(KEY_SIZE * count)
        self.setting = setting
        self.key_count = count
        self.inserts = _cut(blob, range(count))
        self.values = [self.value(key, 0) for key in self.inserts]
        self.reads = _cut(blob, rng.sample(range(count), count))
        self.deletes = _cut(blob, rng.sample(range(count), count))
        self.absent = _cut(rng.randbytes(KEY_SIZE * count), range(count))

    @cached_property
    def ordered(self) -> list[bytes]:
        """The keys as a scan finds them."""
        return _cut(b"".join(sorted(self.inserts)), range(self.key_count))

    def value(self, key: bytes, generation: int) -> bytes:
        return value_of(key, generation, self.setting.size_of(key, generation))

    def some(self, count: int, generation: int) -> list[bytes]:
        """`count` distinct keys, others for every generation, in no order; all of them where `count` is too many."""
        return random.Random(generation).sample(self.inserts, min(count, self.key_count))

    def check(self, keys: Sequence[bytes], answers: Sequence[bytes | None], generation: int) -> None:
        check_count(len(answers), len(keys))
        for key, answer in zip(keys, answers, strict=True):
            if answer != self.value(key, generation):
                got = "nothing" if answer is None else f"{len(answer)} bytes that were never its value"
                raise WrongAnswer(f"key {key.hex()}, generation {generation}: {got}")

    def check_known(self, key: bytes, answer: bytes | None, generation: int) -> None:
        """For keys of which no more is known than that they have a value, of this generation or an earlier one."""
        if not any(answer == self.value(key, g) for g in (0, *range(generation, 0, -1))):
            raise WrongAnswer(f"key {key.hex()}: neither of the generations up to {generation}")


def _cut(blob: bytes, order: Sequence[int]) -> list[bytes]:
    return [blob[KEY_SIZE * i : KEY_SIZE * (i + 1)] for i in order]


def check_count(answered: int, asked: int) -> None:
    if answered != asked:
        raise WrongAnswer(f"{answered} answers to {asked} questions")


def check_absent(keys: Sequence[bytes], answers: Sequence[bytes | None]) -> None:
    check_count(len(answers), len(keys))
    for key, answer in zip(keys, answers, strict=True):
        if answer is not None:
            raise WrongAnswer(f"key {key.hex()} should be absent: {len(answer)} bytes")
