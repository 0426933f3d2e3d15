"""What every peer offers to the cells, and nothing more.

An adapter is one store in one directory, opened either to survive kill -9 (`durable=False`) or power loss
(`durable=True`). It hands out bundles of callables, so that a timed loop calls the peer's own bound method where one
call does it, and otherwise a closure that holds everything it needs: no attribute is looked up per operation.

Threads: `writes()` and `reads()` are entered once per thread that writes or reads, in that thread. Everything else is
called by the thread that opened.
"""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

Pair = tuple[bytes, bytes]

# What not every peer has; a cell that needs one is not run for those without it.
SCAN, FULL_SCAN, TABLES, SNAPSHOTS, EXPIRY = "scan", "full-scan", "tables", "snapshots", "expiry"
EXPIRY_SECONDS = 7 * 86_400  # Longer than any run: nothing expires under the cells that follow.
FILES = "files"  # what was closed is there for the next process.
INDEX_SIZE = "index size"  # index_size() answers.
TENFOLD = "ten times the keys"  # loads them fast enough to be measured with so many.


class NotInstalled(Exception):
    """The peer's package is missing or cannot be imported; the text says why."""


def unsupported(*_: Any) -> Any:
    """Stands where a peer has nothing to offer: the cells that would call it ask `Adapter.can` first."""
    raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Writes:
    """When a call returns, what it wrote has the durability that the store was opened with."""

    put: Callable[[bytes, bytes], object]
    delete: Callable[[bytes], object]
    write_batch: Callable[[Sequence[Pair]], object]  # atomic
    put_many: Callable[[Sequence[Pair]], object]  # any number of pairs, as fast as can be; need not be atomic
    put_expiring: Callable[[bytes, bytes], object] = unsupported  # in EXPIRY_SECONDS
    append: Callable[[bytes, bytes], object] = unsupported  # a row behind the last of the table, the first argument


@dataclass(frozen=True, slots=True)
class Reads:
    """`get_many` answers in whatever shape the peer likes best; `values` brings it into the keys' order, untimed.

    Scans answer with pairs in the order of keys, as `bytes`: `scan` with at most so many from a key on, `scan_all` with
    an iterator over everything. `last` answers with the last rows of a table; `rows` brings that into ascending order.
    """

    get: Callable[[bytes], bytes | None]
    get_many: Callable[[list[bytes]], Any]
    values: Callable[[list[bytes], Any], Sequence[bytes | None]]
    scan: Callable[[bytes, int], Sequence[Pair]] = unsupported
    scan_all: Callable[[], Iterator[Pair]] = unsupported
    last: Callable[[bytes, int], Any] = unsupported
    rows: Callable[[bytes, Any], Sequence[bytes]] = unsupported


@dataclass(frozen=True, slots=True)
class Mix:
    """Reads and writes in turn, in one thread: a read sees every write before it."""

    read: Callable[[bytes], bytes | None]
    put: Callable[[bytes, bytes], object]
    read_modify_write: Callable[[bytes, bytes], bytes | None]  # returns what was there before
    scan: Callable[[bytes, int], Sequence[Pair]] = unsupported


SnapshotRead = Callable[[list[bytes]], Sequence[bytes | None]]


class Adapter(ABC):
    name: ClassVar[str]
    distribution: ClassVar[str | None] = None  # whose version the JSON names; None: part of Python
    is_peer: ClassVar[bool] = True  # takes part in "the best of the peers"
    is_durable: ClassVar[bool] = True  # has cells with fsync at all
    features: ClassVar[frozenset[str]] = frozenset()  # of those above
    settings: ClassVar[str]  # what is configured, for the JSON
    durability: ClassVar[tuple[str, str]]  # what a returned write survives: durable=False, durable=True

    def can(self, feature: str | None) -> bool:
        """A cell that needs a feature is not run for a peer without it."""
        return feature is None or feature in self.features or (feature == FILES and self.is_durable)

    @abstractmethod
    def open(self, directory: Path, *, durable: bool, key_count: int, value_size: int = 100) -> None:
        """Opens or creates; the numbers size what must be sized in advance."""

    @abstractmethod
    def writes(self) -> AbstractContextManager[Writes]: ...

    @abstractmethod
    def reads(self) -> AbstractContextManager[Reads]: ...

    @contextmanager
    def mix(self) -> Iterator[Mix]:
        """For peers whose reads are always fresh."""
        with self.writes() as writes, self.reads() as reads:
            get, put = reads.get, writes.put

            def read_modify_write(key: bytes, value: bytes) -> bytes | None:
                before = get(key)
                put(key, value)
                return before

            yield Mix(get, put, read_modify_write, reads.scan)

    def snapshots(self) -> AbstractContextManager[SnapshotRead]:
        """Feature SNAPSHOTS. Each call takes a snapshot, reads the keys from it, and lets go of it."""
        raise NotImplementedError

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
