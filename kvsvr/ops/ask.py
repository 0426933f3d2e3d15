"""Asks one replica, over its clients' port, what redis-py need not be there for."""

from __future__ import annotations

import socket
from types import TracebackType
from typing import BinaryIO, Final, Self

from kvsvr.errors import KvError
from kvsvr.node.config import Address, text_of

Answer = int | bytes | list["Answer"] | None

SECONDS: Final = 5.0


class NotAnswered(KvError):
    """Nobody is there, or not now."""


class Refused(KvError):
    """It answered with an error."""


class Asker:
    """One connection. What the network does is NotAnswered, an error that is said Refused."""

    def __init__(self, where: Address, password: bytes = b"", seconds: float = SECONDS) -> None:
        self._where = text_of(where)
        try:
            self._socket = socket.create_connection(where, seconds)
        except OSError as error:
            raise NotAnswered(f"{self._where} cannot be reached: {error}") from None
        self._file: BinaryIO = self._socket.makefile("rb")
        if password:
            self.ask("AUTH", password)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()
        self._socket.close()

    def ask(self, *words: str | bytes | int) -> Answer:
        parts = [word if isinstance(word, bytes) else str(word).encode() for word in words]
        text = b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)
        try:
            self._socket.sendall(text)
            return self._answer()
        except (OSError, ValueError) as error:
            raise NotAnswered(f"{self._where} does not answer: {error}") from None

    def _answer(self) -> Answer:
        """RESP2."""
        line = self._file.readline()
        kind, rest = line[:1], line[1:-2]
        if not line.endswith(b"\r\n"):
            raise ValueError("the connection was closed")
        if kind == b"-":
            raise Refused(f"{self._where} says: {rest.decode(errors='replace')}")
        if kind == b"+":
            return rest
        if kind == b":":
            return int(rest)
        size = int(rest)
        if size < 0:
            return None
        if kind == b"*":
            return [self._answer() for _ in range(size)]
        bytes_ = self._file.read(size + 2)
        if kind != b"$" or len(bytes_) != size + 2:
            raise ValueError("it says what no replica says")
        return bytes_[:-2]
