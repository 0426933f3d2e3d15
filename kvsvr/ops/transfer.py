"""A whole store out of and into records (see kvsvr.ops.records), a page or a group at a time in memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from kvsvr.ops.records import BadInput, Record
from kvsvr.store import Engine

GROUP_COUNT_MAX: Final = 8192
GROUP_SIZE_MAX: Final = 1 << 20
TTL_MAX: Final = 10**12  # seconds; what the store takes


def dump(db: Engine) -> Iterator[Record]:
    """Every key in order, its value and expiry of one moment; a key that comes or goes meanwhile may be missing."""
    for key in db:
        found = db.get_versioned(key)
        if found is not None:
            yield Record(key, found.value, found.expires_at)


@dataclass(slots=True)
class Loaded:
    """What an import did so far."""

    written_count: int = 0
    expired_count: int = 0
    skipped_count: int = 0


def load(
    db: Engine,
    records: Iterable[Record | BadInput],
    *,
    skip: Callable[[BadInput], None] | None = None,
) -> Iterator[Loaded]:
    """Sets every key to what its record says; yields what has been done, once per group written.

    A record whose expiry has passed leaves its key absent. What cannot be read is given to `skip` and counted;
    without `skip` it is raised, after everything before it has been written.
    """
    done, group, size = Loaded(), dict[bytes, Record](), 0
    for record in records:
        if isinstance(record, BadInput):
            if skip is None:
                _write(db, group, done)
                yield done
                raise record
            done.skipped_count += 1
            skip(record)
            continue
        group[record.key] = record  # The last one of a key counts, as it would one by one.
        size += len(record.key) + len(record.value)
        if size >= GROUP_SIZE_MAX or len(group) >= GROUP_COUNT_MAX:
            _write(db, group, done)
            yield done
            size = 0
    _write(db, group, done)
    yield done


def _write(db: Engine, group: dict[bytes, Record], done: Loaded) -> None:
    # The store may judge expiries by a later time than the wall clock's, which may have been set back.
    ahead = max(0.0, db.stats()["clock_ms"] / 1000 - time.time())
    done.written_count += db.put_many((r.key, r.value) for r in group.values() if r.expires_at is None)
    for record in group.values():
        if record.expires_at is None:
            continue
        ttl = record.expires_at - time.time() - ahead
        if ttl > 0:
            db.put(record.key, record.value, ttl=min(ttl, TTL_MAX))
            done.written_count += 1
        else:
            db.delete(record.key)
            done.expired_count += 1
    group.clear()
