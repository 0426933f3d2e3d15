"""kvsvr: a log-structured key-value store. `open` gives a store inside this process, `connect` one that a replica set
keeps; the rest are names they use."""

from kvsvr.client import connect
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
from kvsvr.store import (
    BackupReport,
    Batch,
    Damage,
    Engine,
    Report,
    Salvage,
    Snapshot,
    Table,
    TableReads,
    Transaction,
    open,
    restore,
    salvage,
    verify,
)
from kvsvr.types import BytesLike, Changes, Store, Versioned

__all__ = [
    "BackupReport",
    "Batch",
    "BytesLike",
    "Changes",
    "ClosedError",
    "Config",
    "CorruptionError",
    "Damage",
    "DiskError",
    "Engine",
    "KvError",
    "LockedError",
    "Report",
    "Salvage",
    "Snapshot",
    "SnapshotExpired",
    "Store",
    "Table",
    "TableReads",
    "Transaction",
    "Unavailable",
    "Unknown",
    "UsageError",
    "VersionConflict",
    "Versioned",
    "WrongType",
    "connect",
    "open",
    "restore",
    "salvage",
    "verify",
]
