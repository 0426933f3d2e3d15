"""kvsvr: a log-structured key-value store. `open` gives a store inside this process; the rest are names it uses."""

from kvsvr.config import Config
from kvsvr.errors import (
    ClosedError,
    CorruptionError,
    DiskError,
    KvError,
    LockedError,
    SnapshotExpired,
    Unavailable,
    Unknown,
    UsageError,
    VersionConflict,
    WrongType,
)
from kvsvr.store import Batch, Engine, Snapshot, Table, Transaction, open, restore, salvage
from kvsvr.types import BytesLike, Changes, Store, Versioned

__all__ = [
    "Batch",
    "BytesLike",
    "Changes",
    "ClosedError",
    "Config",
    "CorruptionError",
    "DiskError",
    "Engine",
    "KvError",
    "LockedError",
    "Snapshot",
    "SnapshotExpired",
    "Store",
    "Table",
    "Transaction",
    "Unavailable",
    "Unknown",
    "UsageError",
    "VersionConflict",
    "Versioned",
    "WrongType",
    "open",
    "restore",
    "salvage",
]
