"""What the writer writes, and what it says of it: the only code that knows either form.

    value            b"kvsvr demo: write 17 of json/decoder.py\\n", then the bytes of the file
    acknowledgement  b"17 2467 9f86d0... json/decoder.py\\n": number, version, SHA-256 of the value, key percent-encoded

A number belongs to one call of the store, so a batch has one for all its keys. It is in the value because the last
write before a kill is acknowledged to nobody: what of it is in the store must say by itself which write it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final
from urllib.parse import quote, unquote_to_bytes

_HEAD: Final = re.compile(rb"kvsvr demo: write (\d+) of ([^\n]*)\n")


def digest_of(content: bytes) -> str:
    return sha256(content).hexdigest()


def quoted(key: bytes) -> str:
    """A key as one word of a line: files may have blanks and newlines in their names, and need not be UTF-8."""
    return quote(key)


def unquoted(word: str) -> bytes:
    return unquote_to_bytes(word)


def compose(number: int, key: bytes, body: bytes) -> bytes:
    """The value that write `number` gives to a key whose file holds `body`."""
    return f"kvsvr demo: write {number} of {quoted(key)}\n".encode() + body


def dissect(key: bytes, value: bytes) -> tuple[int, bytes]:
    """The number and the body; number 0 and all of it for a value that no writer composed for this key."""
    head = _HEAD.match(value)
    if head is None or head[2] != quoted(key).encode():
        return 0, value
    return int(head[1]), value[head.end() :]


@dataclass(frozen=True, slots=True)
class Ack:
    """The writer's word that the store answered: this value is in, under this version."""

    number: int
    version: int
    digest: str
    key: bytes

    def line(self) -> bytes:
        return f"{self.number} {self.version} {self.digest} {quoted(self.key)}\n".encode()

    @staticmethod
    def parse(line: str) -> Ack:
        number, version, digest, key = line.split()
        return Ack(int(number), int(version), digest, unquoted(key))


def invented(acks: Sequence[Ack]) -> Ack:
    """An acknowledgement of a write that never happened. A proof that accepts it proves nothing."""
    last = acks[-1]
    return Ack(last.number + 1, last.version + 1_000_000, digest_of(b"never written"), last.key)
