"""How a store is opened: one frozen value, checked once, so that nothing behind it has to ask again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from kvsvr.errors import UsageError, shown

SyncMode: TypeAlias = Literal["none", "batch", "always"]
SlotMode: TypeAlias = Literal["any", "strict"]

SYNC_MS_LIMIT = 60_000


@dataclass(frozen=True, slots=True)
class Config:
    """Settings of one opener. None of them is stored: the next opener may choose others."""

    sync: SyncMode = "batch"
    """"none": the OS writes when it likes; "batch": a group commit at least every `sync_ms_max`; "always": every
    write waits for its group commit."""
    sync_ms_max: int = 10
    """With sync="batch": what a power failure can cost at most, in milliseconds."""
    readonly: bool = False
    checkpoint_size: int | None = 64 << 20
    """Bytes written since the last checkpoint after which housekeeping makes the next one at the latest: what an opener
    has to replay after a crash. Small stores make theirs from 16 MiB on. None: only close() makes one."""
    write_calls: bool = False
    """Write with write() rather than through mappings. File systems that need it get it unasked."""
    snapshot_size_max: int = 1 << 30
    """Bytes that open snapshots may hold on to: records that were replaced since, and what it takes to find them.
    Beyond that the oldest ends, and its reads raise SnapshotExpired."""
    compaction: bool = True
    """Whether what is dead is tidied up unasked: space given back, dropped tables swept, the expired deleted."""
    slots: SlotMode = "any"
    """"strict": the keys of a batch or transaction share one hash slot, as a replica set will demand of them."""

    def __post_init__(self) -> None:
        if self.sync not in get_args(SyncMode):
            raise UsageError(f'sync is "none", "batch" or "always", not {shown(self.sync)}')
        if not isinstance(self.readonly, bool):
            raise UsageError(f"readonly is True or False, not {shown(self.readonly)}")
        if not isinstance(self.compaction, bool):
            raise UsageError(f"compaction is True or False, not {shown(self.compaction)}")
        if self.slots not in get_args(SlotMode):
            raise UsageError(f'slots is "any" or "strict", not {shown(self.slots)}')
        if not _is_count(self.sync_ms_max, SYNC_MS_LIMIT):
            raise UsageError(f"sync_ms_max is 1 to {SYNC_MS_LIMIT} milliseconds, not {shown(self.sync_ms_max)}")
        if not _is_count(self.snapshot_size_max, 1 << 62):
            raise UsageError(f"snapshot_size_max is a positive number of bytes, not {shown(self.snapshot_size_max)}")
        if self.checkpoint_size is not None and not _is_count(self.checkpoint_size, 1 << 62):
            raise UsageError(
                "checkpoint_size is a positive number of bytes, or None for close() only, "
                f"not {shown(self.checkpoint_size)}"
            )


def _is_count(value: object, limit: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= limit
