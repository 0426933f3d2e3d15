"""Writes the seeds of the fuzz targets to corpus/<target>/: `python native/fuzz/seeds.py`, when a target reads its
input in another way, or a format changed.

Records come from the golden store and a run from the worked example of docs/formats/run.md, so they are what the engine
wrote; the others are programs in the little languages that the targets describe at their heads. What lies beside the
seeds in the corpus was found by fuzzing, and stays (its names begin with "found-").
"""

from __future__ import annotations

import re
import struct
import tarfile
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
GOLDEN = HERE.parents[1] / "tests/formats/golden/format-1.tar.xz"
EXAMPLE_RUN = HERE.parent / "tests/example_run.inc"

HEADER_SIZE = 4096
HEAD_SIZE = 32
ENVELOPE = 16
OPTION_SIZES = (8, 8, 8, 8, 40, 24)
RECORD_SIZE_MAX = 160
CHAIN_SIZE = 400


def record_seeds() -> Iterator[tuple[str, bytes]]:
    """One record of each kind, flags and options that the golden store has, and a row of them."""
    known: set[tuple[int, int, int]] = set()
    with tarfile.open(GOLDEN) as archive:
        for member in sorted(archive.getmembers(), key=lambda one: one.name):
            file = archive.extractfile(member) if member.name.endswith(".seg") else None
            if file is None:
                continue
            content = file.read()
            salt, segment = content[32:40], content[12:16]
            if not known:
                place = salt + segment + struct.pack("<IBH", HEADER_SIZE, 0, 0)
                yield "row", place + content[HEADER_SIZE : HEADER_SIZE + CHAIN_SIZE]
            for offset, record in records(content):
                what = (record[14], record[15], record[30])
                if what in known or len(record) > RECORD_SIZE_MAX:
                    continue
                known.add(what)
                name = "kind{}-flags{}-options{}".format(*what)
                yield name, salt + segment + struct.pack("<IBH", offset, 3, 77) + record


def records(content: bytes) -> Iterator[tuple[int, bytes]]:
    at = HEADER_SIZE
    while at + HEAD_SIZE <= len(content) and any(content[at : at + HEAD_SIZE]):
        value_size, key_size, kind = struct.unpack_from("<IHB", content, at + 8)
        (options,) = struct.unpack_from("<H", content, at + 30)
        size = HEAD_SIZE + sum(one for bit, one in enumerate(OPTION_SIZES) if options >> bit & 1) + key_size
        size += 0 if kind == ENVELOPE else value_size
        size += -size % 4
        yield at, content[at : at + size]
        at += size


def run_seeds() -> Iterator[tuple[str, bytes]]:
    example = bytes(int(byte, 16) for byte in re.findall(r"0x([0-9a-f]{2})", EXAMPLE_RUN.read_text(encoding="ascii")))
    yield "example", b"\1" + example
    yield "example-repaired", b"\3" + example
    for name, recipe in (("one", 0), ("some", 0x1010), ("rows", 0x9020), ("long", 0x0F3F)):
        yield name, struct.pack("<BH", 0, recipe)
        yield name + "-edited", struct.pack("<BHIB", 0, recipe, 70, 1)
        yield name + "-forged", struct.pack("<BHIBIB", 2, recipe, 70, 1, 60, 3)
        yield name + "-cut", struct.pack("<BHI", 4, recipe, 100)


STOP, PUT, DELETE, CLOCK, BATCH, SEAL, BYTES, ANYTHING, BIG, EXPIRING, GAP, STRAY, LOOSE_BATCH = range(13)
OWN_NUMBER, OWN_CEILING, OWN_WATERMARK, DURABLE, SEALED, OWN_SEAL, SHORT, OWN_SIZE = (1 << bit for bit in range(8))
TWO = bytes((PUT, 1, 9, PUT, 2, 200))
SEAL_0, SEAL_2 = bytes((SEAL, 0, STOP)), bytes((SEAL, 2, STOP))


def recovery_seeds() -> Iterator[tuple[str, bytes]]:
    """How, segments - 1, and for each its shape and records."""
    yield "crashed", bytes((0, 0, 0)) + TWO
    yield "durable", bytes((0, 0, DURABLE)) + TWO
    yield "closed", bytes((0, 0, DURABLE | SEALED | SHORT)) + TWO + SEAL_0
    yield "closed-by-call", bytes((5, 0, DURABLE | SEALED | SHORT)) + TWO + SEAL_0
    yield "header-late", bytes((1, 0, 0)) + TWO + SEAL_0
    yield "two", bytes((0, 1, DURABLE | SEALED)) + TWO + SEAL_2 + bytes((0, PUT, 1, 3, DELETE, 2))
    yield "two-open", bytes((9, 1, 0)) + TWO + SEAL_2 + bytes((DURABLE, PUT, 1, 3, DELETE, 2))
    yield "batches", bytes((0, 0, DURABLE, BATCH, 3)) + TWO + bytes((DELETE, 1, LOOSE_BATCH, 2)) + TWO + bytes((129,))
    yield "kinds", bytes((0, 0, 0, BIG, 0, BIG, 3, EXPIRING, 4, 0, 1, 8, CLOCK)) + struct.pack("<Q", 2000)
    yield "stray", bytes((0, 0, 0)) + TWO + bytes((GAP, 9, STRAY, 3, 9)) + TWO
    yield "from-the-middle", bytes((2, 1, 0, 16, 0, DURABLE)) + TWO
    yield "numbers", bytes((0, 0, OWN_CEILING | OWN_SIZE)) + TWO + b"\0" + struct.pack("<QI", 1 << 20, 1 << 14)
    yield "edited", bytes((0, 0, DURABLE | SHORT)) + TWO + bytes((STOP, 0, 0x20, 0x10, 1))


def edit(what: int, offset: int, kind: int, number: int) -> bytes:
    return struct.pack("<BHB", what, offset, kind) + struct.pack("<Q", number)[:7]


def checkpoint_seeds() -> Iterator[tuple[str, bytes]]:
    """How, then edits of files 0 to 3 (two of the index, two runs) and, the last, of the description."""
    description = 63
    yield "untouched", bytes(1)
    yield "killed", bytes((8,))
    yield "readonly", bytes((16,))
    yield "own-bytes", bytes((4,)) + b"kvsvrckp\1" + bytes(199)
    yield "own-bytes-believed", bytes((5,)) + b"kvsvrckp\1" + bytes(199)
    yield "cut", bytes((0,)) + edit(description, 80, 3, 0)
    for word in (5, 6, 7, 8, 12, 13, 14, 16, 20, 21, 22, 23, 24):
        yield f"word-{word}", bytes((1,)) + edit(description, word, 1, 3)
    for file in range(4):
        yield f"file-{file}", bytes((0,)) + edit(file, 40, 0, 1)
        yield f"file-{file}-forged", bytes((3,)) + edit(file, 40, 0, 1)
        yield f"file-{file}-cut", bytes((0,)) + edit(file, 40, 3, 0)


(
    TICK,
    DURABLE,
    FLUSH,
    REQUEST,
    TAKEOVER,
    RESTART,
    FLOW,
    ACK,
    PREPARE,
    PROMISE,
    CHECK,
    CHECKED,
    ASK,
    POSITION,
    RAW,
    STREAM,
) = range(16)
OTHER_PEER, LONG, MANY = 16, 32, 128
BALLOT_PROMISED, BALLOT_OWN, BALLOT_TAKING, BALLOT_NEXT = range(4)
ROUND_ENDS = b"\7" + b"\xff" * 8
KEEP, HUGE = b"\x40", b"\xff" + b"\xff" * 7 + b"\x7f"  # A number as it is; one far out.
CONNECTION = KEEP * 2
NEW_CONNECTION = b"\x41" + KEEP
ROW_PUT, TABLE_NEW, ENVELOPE, SEAL = 2, 4, 9, 10
SYNC = bytes((DURABLE, FLUSH))


def fuzz_put(kind: int = 0, what: int = 0, name: int = 0) -> bytes:
    return bytes((0, 0, kind, what, name))


def fuzz_append(
    shard: int, ballot: bytes, versions: bytes, *, before: bytes = KEEP, commit: bytes = KEEP, count: int = 1
) -> bytes:
    return bytes((shard,)) + ballot + b"\0" + before + b"\0" + commit + bytes((count,)) + versions


def fuzz_flow(items: bytes, count: int = 1, how: int = OTHER_PEER, connection: bytes = CONNECTION) -> bytes:
    return bytes((FLOW | how,)) + bytes((count - 1,)) + connection + KEEP + items


def fuzz_snapshot(shard: int, records: bytes, count: int, how: int = OTHER_PEER, start: bytes = KEEP) -> bytes:
    """The one piece of a snapshot."""
    head = bytes((shard, BALLOT_PROMISED, 192, count)) + start + bytes((BALLOT_PROMISED, 0)) + records
    return fuzz_flow(head + bytes((0, 1)) + KEEP + bytes((128, 2)), how=how)


def replica_seeds() -> Iterator[tuple[str, bytes]]:
    """Steps of one byte each, with what each asks for behind it."""
    promised, own = bytes((BALLOT_PROMISED,)), bytes((BALLOT_OWN,))
    higher = bytes((BALLOT_NEXT,))
    asked = bytes((REQUEST, 3, 0, 9, 7, 0, FLUSH))
    yield "quiet", bytes((TICK, TICK)) + SYNC + bytes((TICK,)) * 30 + SYNC
    yield "restarted", SYNC + bytes((RESTART,)) + SYNC + bytes((TAKEOVER | 32,)) + SYNC
    for kind in range(1, 12):
        yield f"request-{kind}", b"".join(bytes((REQUEST, kind, name, 9, 7, 5)) for name in (0, 1, 130, 19, 36)) + SYNC
    yield "followed", fuzz_flow(fuzz_append(1, promised, fuzz_put())) + SYNC
    for kind in range(11):
        records = b"".join(fuzz_put(kind, what) + bytes((0,) * 8) for what in (0, 8, 4, 16, 66))
        yield (
            f"kind-{kind}",
            fuzz_flow(fuzz_append(1, promised, records, commit=b"\x43", count=3)) + SYNC + bytes((RESTART,)),
        )
    yield "taken-from", fuzz_flow(fuzz_append(0, higher, fuzz_put())) + SYNC + bytes((REQUEST, 1, 0, 0, 0, 0)) + SYNC
    other = bytes((0, 255)) + b"\6" + fuzz_put()[2:]
    yield "own-ballot", asked * 2 + fuzz_flow(fuzz_append(0, own, other, before=b"\x3d")) + bytes((TICK, TICK)) + SYNC
    yield "last-round", fuzz_flow(fuzz_append(1, ROUND_ENDS, fuzz_put())) + SYNC + bytes((TAKEOVER | 64 | 32,)) + SYNC
    refusal = b"\x40\0" + own + own + KEEP + KEEP + HUGE + b"\0"
    yield "refused-far-out", bytes((FLUSH, ACK)) + CONNECTION + KEEP + b"\0\1" + refusal + bytes((TICK,)) * 4 + SYNC
    prepare = b"\0" + higher + b"\1" + b"\0" + KEEP + promised + KEEP + b"\1" + KEEP + promised + KEEP
    yield "prepared", bytes((PREPARE,)) + prepare + SYNC
    taken = (
        bytes((TAKEOVER | 64,))
        + SYNC
        + bytes((PROMISE, 0, 1, BALLOT_TAKING, 0, 200, 1))
        + KEEP
        + promised
        + KEEP
        + SYNC
    )
    row = bytes((REQUEST, 3, 136, 9, 7, 0)) + SYNC
    yield "promised", taken + row
    yield "checked", bytes((REQUEST, 1, 0, 0, 0, 0, FLUSH, CHECKED, 0)) + KEEP + b"\0" + own + SYNC
    yield (
        "asked",
        bytes((CHECK, 0))
        + KEEP
        + b"\0"
        + own
        + bytes((ASK,))
        + KEEP
        + b"\0"
        + bytes((POSITION,))
        + KEEP
        + b"\0\0"
        + KEEP,
    )
    yield "snapshot", fuzz_snapshot(1, KEEP + promised + fuzz_put(), 1) + SYNC + bytes((RESTART,)) + SYNC
    yield "snapshot-far-out", fuzz_snapshot(1, b"", 0, start=HUGE) + SYNC + taken + row
    for number in range(1, 11):
        yield f"raw-{number}", bytes((RAW, number - 1, 8)) + bytes((1, 1, 1, 0, 1, 0, 0, 0)) + SYNC
    yield "stream", bytes((STREAM, 12, 3, 0, 0, 0, 5, 9, 0, 1, 0, 0, 0, 9)) + SYNC


def main() -> None:
    targets = {
        "record": record_seeds,
        "run": run_seeds,
        "recovery": recovery_seeds,
        "checkpoint": checkpoint_seeds,
        "replica": replica_seeds,
    }
    for target, seeds in targets.items():
        folder = HERE / "corpus" / target
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("seed-*"):
            old.unlink()
        for name, content in seeds():
            (folder / f"seed-{name}").write_bytes(content)


if __name__ == "__main__":
    main()
