"""What every peer offers to the cells, and nothing more.

An adapter is one store in one directory, opened either to survive kill -9 (`durable=False`) or power loss
(`durable=True`). It hands out bundles of callables, so that a timed loop calls the peer's own bound method where one
call does it, and otherwise a closure that holds everything it needs: no attribute is looked up per operation.

Threads: `writes()` is entered once per writing thread, in that thread; `reads()` by one thread. Everything else is
called by the thread that opened.
"""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

Pair = tuple[bytes, bytes]

FILES = "files"  # A feature: what was closed is there for the next process.
INDEX_SIZE = "index size"  # A feature: index_size() answers.
TENFOLD = "ten times the keys"  # A feature: loads them fast enough to be measured with so many.


class NotInstalled(Exception):
    """The peer's package is missing or cannot be imported; the text says why."""


@dataclass(frozen=True, slots=True)
class Writes:
    """When a call returns, what it wrote has the durability that the store was opened with."""

    put: Callable[[bytes, bytes], object]
    delete: Callable[[bytes], object]
    write_batch: Callable[[Sequence[Pair]], object]  # atomic


@dataclass(frozen=True, slots=True)
class Reads:
    """`get_many` answers in whatever shape the peer likes best; `values` brings it into the keys' order, untimed."""

    get: Callable[[bytes], bytes | None]
    get_many: Callable[[list[bytes]], Any]
    values: Callable[[list[bytes], Any], Sequence[bytes | None]]


class Adapter(ABC):
    name: ClassVar[str]
    distribution: ClassVar[str | None] = None  # whose version the JSON names; None: part of Python
    is_peer: ClassVar[bool] = True  # takes part in "the best of the peers"
    is_durable: ClassVar[bool] = True  # has cells with fsync at all
    features: ClassVar[frozenset[str]] = frozenset()  # what not every peer has; cells name what they need
    settings: ClassVar[str]  # what is configured, for the JSON
    durability: ClassVar[tuple[str, str]]  # what a returned write survives: durable=False, durable=True

    def can(self, feature: str | None) -> bool:
        """A cell that needs a feature is not run for a peer without it."""
        return feature is None or feature in self.features or (feature == FILES and self.is_durable)

    @abstractmethod
    def open(self, directory: Path, *, durable: bool, key_count: int) -> None:
        """Opens or creates; `key_count` sizes what must be sized in advance."""

    @abstractmethod
    def writes(self) -> AbstractContextManager[Writes]: ...

    @abstractmethod
    def reads(self) -> AbstractContextManager[Reads]: ...

    @abstractmethod
    def close(self) -> None:
        """Also after a failed open, and twice."""

    def index_size(self) -> int:
        """Bytes of memory that the index takes, by the peer's own account."""
        raise NotImplementedError(f"{self.name} does not have the feature {INDEX_SIZE!r}")

    def library_version(self) -> str:
        """Of the native library inside the package, where it tells."""
        return ""


def load_module(name: str) -> ModuleType:
    """Imported by name, so that a missing peer is a fact to report and type checking needs none of them."""
    try:
        return importlib.import_module(name)
    except Exception as error:  # A broken package may throw anything; the other peers can still be measured.
        raise NotInstalled(f"{type(error).__name__}: {error}") from error


def in_order(keys: list[bytes], answer: Sequence[bytes | None]) -> Sequence[bytes | None]:
    """For peers whose get_many answers in the order it was asked."""
    return answer


def from_pairs(keys: list[bytes], answer: Sequence[Pair]) -> Sequence[bytes | None]:
    """For peers whose get_many answers with (key, value), in any order, without those that are absent."""
    found = dict(answer)
    return [found.get(key) for key in keys]
