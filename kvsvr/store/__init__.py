"""The store inside this process: `open`, and what it gives."""

from kvsvr.store.batch import Batch
from kvsvr.store.engine import Engine, open

__all__ = ["Batch", "Engine", "open"]
