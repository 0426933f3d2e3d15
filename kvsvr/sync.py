"""Copies of a user's data on any number of devices: docs/sync.md."""

from kvsvr.services.refused import Refused
from kvsvr.services.sync import Changes, Digest, Feed, Pulled, Sync, digest_of

__all__ = ["Changes", "Digest", "Feed", "Pulled", "Refused", "Sync", "digest_of"]
