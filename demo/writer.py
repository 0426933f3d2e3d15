"""The writer: a process that overwrites keys of a store, round after round, until it is killed.

    python -m demo.writer STORE FIRST_NUMBER < groups > acknowledgements

Each line of stdin is a group of keys: one key is written by put, several by one batch. It ends by itself only if
nobody listens any more. Numbers count up from FIRST_NUMBER, one a write.
"""

from __future__ import annotations

import signal
import sys
from itertools import count, cycle
from typing import TypeAlias

import kvsvr
from demo.acks import Ack, compose, digest_of, dissect, unquoted

Group: TypeAlias = tuple[bytes, ...]


def write(db: kvsvr.Engine, values: dict[bytes, bytes]) -> int:
    if len(values) == 1:
        ((key, value),) = values.items()
        return db.put(key, value)
    with db.batch() as batch:
        for key, value in values.items():
            batch.put(key, value)
    assert batch.version is not None
    return batch.version


def overwrite(db: kvsvr.Engine, groups: list[Group], first_number: int) -> None:
    bodies = {key: dissect(key, db[key])[1] for group in groups for key in group}
    out = sys.stdout.buffer
    for number, group in zip(count(first_number), cycle(groups), strict=False):
        values = {key: compose(number, key, bodies[key]) for key in group}
        digests = {key: digest_of(value) for key, value in values.items()}
        version = write(db, values)
        # Said only now: an acknowledgement is worth something because the store has already answered.
        out.writelines(Ack(number, version, digest, key).line() for key, digest in digests.items())
        out.flush()


def main(store: str, first_number: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # As in the witness.
    groups = [tuple(unquoted(word) for word in line.split()) for line in sys.stdin]
    with kvsvr.open(store) as db:
        overwrite(db, groups, first_number)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
