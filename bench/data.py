"""Keys, values and orders of one run.

A value is derived from its key and a generation, so any answer can be checked without a second copy of what was
written. Keys are random 16 bytes and values do not compress. Each order (insert, read, delete) is a list of its own,
with its own bytes objects laid out as they will be walked: no peer pays for cache misses on keys, and none that keeps
keys gains from seeing the same object again.
"""

import hashlib
import random
from collections.abc import Sequence

KEY_SIZE = 16
VALUE_SIZE = 100


class WrongAnswer(Exception):
    """A peer answered something else than what was written; its figure is worth nothing."""


def value_of(key: bytes, generation: int) -> bytes:
    return hashlib.shake_128(key + generation.to_bytes(4, "little")).digest(VALUE_SIZE)


class Data:
    """Generation 0 is what a store is loaded with; every later overwrite takes a new one."""

    def __init__(self, key_count: int, seed: int = 1) -> None:
        rng = random.Random(seed)
        blob = rng.randbytes(KEY_SIZE * key_count)
        self.key_count = key_count
        self.inserts = _cut(blob, range(key_count))
        self.values = [value_of(key, 0) for key in self.inserts]
        self.reads = _cut(blob, rng.sample(range(key_count), key_count))
        self.deletes = _cut(blob, rng.sample(range(key_count), key_count))
        self.absent = _cut(rng.randbytes(KEY_SIZE * key_count), range(key_count))

    def some(self, count: int, generation: int) -> list[bytes]:
        """`count` distinct keys, others for every generation, in no order; all of them where `count` is too many."""
        return random.Random(generation).sample(self.inserts, min(count, self.key_count))


def _cut(blob: bytes, order: Sequence[int]) -> list[bytes]:
    return [blob[KEY_SIZE * i : KEY_SIZE * (i + 1)] for i in order]


def check_values(keys: Sequence[bytes], answers: Sequence[bytes | None], generation: int) -> None:
    if len(answers) != len(keys):
        raise WrongAnswer(f"{len(answers)} answers to {len(keys)} questions")
    for key, answer in zip(keys, answers, strict=True):
        if answer != value_of(key, generation):
            got = "nothing" if answer is None else f"{len(answer)} bytes that were never its value"
            raise WrongAnswer(f"key {key.hex()}, generation {generation}: {got}")


def check_absent(keys: Sequence[bytes], answers: Sequence[bytes | None]) -> None:
    if len(answers) != len(keys):
        raise WrongAnswer(f"{len(answers)} answers to {len(keys)} questions")
    for key, answer in zip(keys, answers, strict=True):
        if answer is not None:
            raise WrongAnswer(f"key {key.hex()} should be absent: {len(answer)} bytes")
