"""The store inside this process: `open`, and what it gives."""

from kvsvr.native import KEY_SIZE_MAX
from kvsvr.store.backup import BackupReport, restore
from kvsvr.store.batch import Batch
from kvsvr.store.engine import Engine, open
from kvsvr.store.snapshot import Snapshot
from kvsvr.store.table import Table, TableReads
from kvsvr.store.transaction import Transaction
from kvsvr.store.verify import Damage, Report, Salvage, salvage, verify

__all__ = [
    "KEY_SIZE_MAX",
    "BackupReport",
    "Batch",
    "Damage",
    "Engine",
    "Report",
    "Salvage",
    "Snapshot",
    "Table",
    "TableReads",
    "Transaction",
    "open",
    "restore",
    "salvage",
    "verify",
]
