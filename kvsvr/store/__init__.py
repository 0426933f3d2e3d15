"""The store inside this process: `open`, and what it gives."""

from kvsvr.store.batch import Batch
from kvsvr.store.engine import Engine, open
from kvsvr.store.transaction import Transaction

__all__ = ["Batch", "Engine", "Transaction", "open"]
