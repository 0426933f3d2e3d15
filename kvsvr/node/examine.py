"""Is what lies in a replica's directory what was written? Of a replica that does not run; nothing is changed."""

from __future__ import annotations

from dataclasses import dataclass

from kvsvr.native import examine_replica
from kvsvr.node.config import ServerConfig
from kvsvr.store.verify import alone


@dataclass(frozen=True, slots=True)
class Examination:
    """What was found. CorruptionError in its place: the log is damaged."""

    record_count: int
    key_count: int
    table_count: int
    row_count: int
    applied_count: int
    """Versions that the replica knows to be committed, of all shards."""
    undecided_count: int
    """Behind these: the others know, or have to decide."""
    content_count: int
    """Values that travelled beside the vote."""
    missing_count: int
    """Of which the bytes are with others only."""
    missing_size: int
    damaged_count: int
    """Records of the log that are not what was written: the next start fetches them from the others."""
    wrong_count: int
    """Values, and places of the index, that are not what they should be."""

    @property
    def ok(self) -> bool:
        return self.wrong_count + self.damaged_count == 0


def examine(config: ServerConfig) -> Examination:
    """LockedError: it runs."""
    directory = str(config.directory)
    with alone(directory):
        members = sorted([config.node, *config.peers])
        return Examination(
            **examine_replica(directory, node=config.node, members=members, shard_count=config.shard_count)
        )
