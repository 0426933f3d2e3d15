"""A store written once and kept: what it holds today it holds in every version to come.

golden/format-1.tar.xz is the directory of a closed store, format-1.json what it held. It has seen openers that closed
and one that was killed; so there are seals of either kind, a cut, values in files of their own, batches, tombstones,
expiries, the note of the clock, an image of the index, and sorted runs. There are tables: with rows of every sort,
empty, trimmed, under an expiry, and dropped but not swept. And it was compacted twice: records were moved, some twice,
segments went from before and behind one that stayed, and with them the drop of a table of which it has a row.

The decoder below was written from the pages of docs/formats alone. It shares no line with the engine, and so catches a
mistake that encoder and decoder there have in common.

Made anew, when a format changes, which no format does without a number and a golden file of its own, by
    python tests/formats/test_golden.py
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import struct
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import lmdb
import pytest
import xxhash

import kvsvr

GOLDEN = Path(__file__).parent / "golden"
ARCHIVE = GOLDEN / "format-1.tar.xz"
STATE = GOLDEN / "format-1.json"
ARCHIVE_SIZE_MAX = 20_000

MASK = (1 << 64) - 1
PRIMES = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F

PUT, DELETE, ROW_PUT, ROW_DELETE, TABLE_NEW, TABLE_DROP, TABLE_FLOOR, ENVELOPE, SEAL = *range(1, 8), 16, 17
CLOCK = 32
DATA = {PUT, DELETE, ROW_PUT, ROW_DELETE, TABLE_NEW, TABLE_DROP, TABLE_FLOOR}
TABLE_KINDS = DATA - {PUT, DELETE}
CREATES = {PUT, ROW_PUT, TABLE_NEW}
ENDS = {DELETE, ROW_DELETE, TABLE_DROP}
CREATED, BIG, MOVED, EXPIRED = 1, 2, 8, 16
OPTION_SIZES = {1: 8, 2: 8, 4: 8, 8: 8, 16: 40, 32: 24}
HAS_SEQUENCE, HAS_EXPIRY, HAS_TABLE = 1, 8, 32
TOMBSTONE_BIT, EXPIRY_BIT, TABLE_BIT, ROW_BIT, BIG_BIT, HEAD_BIT, FLOOR_BIT = (1 << bit for bit in range(7))
ROW_SEED_STEP = 0x9FB21C651E98DF25

# Of a key or row: size (-1: it is gone), digest of the value, version (of a row that is gone: 0), expiry in ms or 0.
Held = tuple[int, str, int, int]


@dataclass
class TableState:
    version: int
    row_count: int  # with rows that have expired
    expires_ms: int
    floor: int
    rows: dict[bytes, Held]
    deleted: list[bytes]  # what changes() tells of, from the floor on


@dataclass
class State:
    keys: dict[bytes, Held]
    tables: dict[bytes, TableState]


# --- the decoder: records ---


@dataclass(frozen=True)
class Record:
    segment: int
    offset: int
    size: int
    kind: int
    flags: int
    version: int
    sequence: int
    expires_ms: int
    table_id: int
    row_count: int
    next_row: int
    key: bytes
    value: bytes
    value_size: int

    @property
    def place(self) -> tuple[int, int]:
        return self.segment, self.offset


def head_check(head: bytes, place: int) -> int:
    sizes_and_kind = int.from_bytes(head[8:16], "little")
    shard_and_options = int.from_bytes(head[28:32], "little")
    h = (sizes_and_kind ^ place) * PRIMES[0] & MASK
    h ^= h >> 32
    return ((h ^ shard_and_options) * PRIMES[1] & MASK) >> 32


def decode_record(content: bytes, segment: int, offset: int, salt: int) -> Record:
    place = salt ^ (segment << 32 | offset)
    head = content[offset : offset + 32]
    checksum, value_size, key_size, kind, flags, version, check, shard, options = struct.unpack("<QIHBBQIHH", head)
    assert check == head_check(head, place)
    assert shard == 0
    assert options & ~63 == 0
    at = offset + 32
    sequence, expires_ms, table = version, 0, (0, 0, 0)
    for bit, size in OPTION_SIZES.items():
        if options & bit:
            if bit == HAS_SEQUENCE:
                (sequence,) = struct.unpack_from("<Q", content, at)
            if bit == HAS_EXPIRY:
                (expires_ms,) = struct.unpack_from("<Q", content, at)
            if bit == HAS_TABLE:
                table = struct.unpack_from("<QQQ", content, at)
            at += size
    key = content[at : at + key_size]
    at += key_size
    value = b"" if kind == ENVELOPE else content[at : at + value_size]
    at += len(value)
    assert checksum == xxhash.xxh64_intdigest(content[offset + 8 : at], place)
    end = (at + 3) // 4 * 4
    assert content[at:end] == bytes(end - at)
    assert bool(options & HAS_TABLE) == (kind in TABLE_KINDS) == (table[0] > 0)
    assert sequence == version, "an embedded store has no other arrival numbers"
    return Record(
        segment, offset, end - offset, kind, flags, version, sequence, expires_ms, *table, key, value, value_size
    )


# --- the decoder: segments ---


@dataclass
class Segment:
    number: int
    store_id: bytes
    salt: int
    ceiling: int
    next: int = 0
    chain_first: bool = False
    chain_next: int = 0
    required: int = 0
    records: list[Record] = field(default_factory=list)
    envelopes: list[list[Record]] = field(default_factory=list)


def decode_segment(content: bytes, number: int) -> Segment:
    magic, version, own_number, store_id, salt, ceiling, size, reserved, created, checksum = struct.unpack_from(
        "<8sII16sQQIIQQ", content
    )
    assert (magic, version, own_number, reserved) == (b"kvsvrseg", 1, number, 0)
    assert checksum == xxhash.xxh64_intdigest(content[:64])
    assert size >= len(content)
    assert created > 0

    def place_in_header(offset: int) -> int:
        return int(salt) ^ (number << 32 | offset)

    watermark, watermark_check = struct.unpack_from("<II", content, 512)
    assert watermark_check == xxhash.xxh64_intdigest(content[512:516], place_in_header(512)) & 0xFFFFFFFF
    end, following, last_sequence, seal_checksum = struct.unpack_from("<IIQQ", content, 1024)
    assert seal_checksum == xxhash.xxh64_intdigest(content[1024:1040], place_in_header(1024))
    assert end == watermark == len(content), "a closed store is cut to its end"
    for start, stop in ((72, 512), (520, 1024), (1048, 1536), (1560, 4096)):
        assert content[start:stop] == bytes(stop - start)

    one = Segment(number, store_id, salt, ceiling, following)
    chain_next, chain_first, required, link_checksum = struct.unpack_from("<IIQQ", content, 1536)
    if content[1536:1560] != bytes(24):
        assert link_checksum == xxhash.xxh64_intdigest(content[1536:1552], place_in_header(1536))
        assert chain_first in (0, 1)
        assert chain_next == 0 or chain_next > following > number
        one.chain_next, one.chain_first, one.required = chain_next, chain_first == 1, required
    at = 4096
    while at < end:
        record = decode_record(content, number, at, salt)
        at += record.size
        if record.kind == ENVELOPE:
            inside = list(decode_envelope(content, one, at, at + record.value_size))
            check_envelope(record, inside)
            one.envelopes.append(inside)
            one.records += inside
            at += record.value_size
        else:
            one.records.append(record)
    assert at == end
    seal = one.records.pop()
    assert seal.kind == SEAL
    # A segment that a clean close ended says 0; its header was told of the next one when there was one.
    assert seal.value in (struct.pack("<I", following), bytes(4))
    assert all(record.kind in DATA | {CLOCK} for record in one.records)
    assert seal.sequence == last_sequence <= ceiling
    return one


def decode_envelope(content: bytes, one: Segment, at: int, end: int) -> Iterator[Record]:
    while at < end:
        record = decode_record(content, one.number, at, one.salt)
        yield record
        at += record.size
    assert at == end


def check_envelope(head: Record, inside: list[Record]) -> None:
    """It carries the first number that it takes; a batch has one version, not below the number of its newest table."""
    versions = [record.version for record in inside]
    ids = {record.table_id for record in inside if record.kind == TABLE_NEW}
    assert not any(record.flags & MOVED for record in inside)
    if len(set(versions)) > 1:
        assert versions == list(range(head.version, head.version + len(inside)))
        return
    assert versions[0] >= head.version + max(0, len(ids) - 1)
    assert ids == set(range(head.version, head.version + len(ids)))


def decode_flow(store: Path) -> list[Segment]:
    """The segments of the chain, in its order. A store at rest has no leftovers, so they are all that there are."""
    found = {}
    for file in (store / "flow").iterdir():
        one = decode_segment(file.read_bytes(), int(file.stem, 16))
        assert file.name == f"{one.number:08x}.seg"
        found[one.number] = one
    firsts = [number for number, one in found.items() if one.chain_first]
    number = max(firsts, default=1)
    segments = []
    while number:
        segments.append(found.pop(number))
        number = segments[-1].chain_next or segments[-1].next
    assert not found
    for one, following in pairwise(segments):
        assert (following.store_id, following.salt) == (one.store_id, one.salt)
        assert following.ceiling > one.ceiling
    sequences = [record.sequence for one in segments for record in one.records if not record.flags & MOVED]
    assert sequences == sorted(sequences)
    return segments


# --- the decoder: what a replay makes of the records ---

# What a slot of the index is for: a class of slots, the table's id or 0, the key or row.
Name = tuple[int, int, bytes]


def name_of(record: Record) -> Name:
    if record.kind in (ROW_PUT, ROW_DELETE):
        return ROW_BIT, record.table_id, record.key
    if record.kind == TABLE_FLOOR:
        return FLOOR_BIT, record.table_id, b""
    return 0, 0, record.key


@dataclass
class Replay:
    """What a reader knows behind the last record. The rules are those of flow.md, "What a replay makes of them"."""

    segments: list[Segment]
    newest: dict[Name, Record] = field(default_factory=dict)
    heads: dict[int, Record] = field(default_factory=dict)
    clock: Record | None = None
    shadowed: set[Name] = field(default_factory=set)  # with a put in the log, whatever came after it

    def __post_init__(self) -> None:
        first = self.segments[0]
        gap_end = max([first.number if first.chain_first else 0, *(one.chain_next for one in self.segments)])
        for one in self.segments:
            for record in one.records:
                self._take(record, whole=one.number > gap_end)
        for table_id in self.named:
            held = [r for name, r in self.newest.items() if name[:2] == (ROW_BIT, table_id)]
            assert self.heads[table_id].row_count == sum(r.kind == ROW_PUT for r in held)

    def _take(self, record: Record, *, whole: bool) -> None:
        if record.kind == CLOCK:
            if self.clock is None or clock_ms(record) >= clock_ms(self.clock):
                self.clock = record
            return
        name = name_of(record)
        before = self.newest.get(name)
        is_new = (before is None or before.kind in ENDS) and record.kind in CREATES
        created, moved = bool(record.flags & CREATED), bool(record.flags & MOVED)
        assert not (created and moved)
        assert is_new or not created
        # Behind the last gap of the chain whatever stood before the gap, and counts, is here.
        assert not whole or moved or created == is_new
        assert not record.flags & EXPIRED or record.kind in ENDS
        assert before is None or before.version <= record.version, "only what is newest of its name moves"
        self.newest[name] = record
        if record.kind in CREATES:
            self.shadowed.add(name)
        if record.kind in (ROW_PUT, ROW_DELETE, TABLE_NEW):
            self._take_head(record)

    def _take_head(self, record: Record) -> None:
        head = self.heads.get(record.table_id)
        if head is None or record.version >= head.version:
            assert head is None or record.next_row >= head.next_row
            if head is not None and record.version == head.version:
                assert (record.row_count, record.next_row) == (head.row_count, head.next_row)
            self.heads[record.table_id] = record

    @property
    def named(self) -> dict[int, Record]:
        """The tables that a key names."""
        return {record.table_id: record for record in self.newest.values() if record.kind == TABLE_NEW}

    @property
    def ended(self) -> set[int]:
        """Those that none does, any more or at all, and that have rows or floors in the log."""
        ids = set(self.heads) | {name[1] for name in self.newest if name[0] == FLOOR_BIT}
        return ids - set(self.named)

    def rows_of(self, table_id: int) -> dict[bytes, Record]:
        return {name[2]: record for name, record in self.newest.items() if name[:2] == (ROW_BIT, table_id)}

    def floor_of(self, table_id: int) -> int:
        record = self.newest.get((FLOOR_BIT, table_id, b""))
        return int.from_bytes(record.value, "little") if record else 0


def clock_ms(record: Record) -> int:
    assert len(record.value) == 8
    return int.from_bytes(record.value, "little")


def digest(value: bytes) -> str:
    return hashlib.blake2b(value, digest_size=8).hexdigest()


def value_of(store: Path, record: Record) -> bytes:
    if not record.flags & BIG:
        return record.value
    size, checksum, file_id = struct.unpack("<QQQ", record.value)
    content = (store / "values" / f"{file_id:016x}.val").read_bytes()
    assert len(content) == size
    assert xxhash.xxh64_intdigest(content) == checksum
    return content


def held(store: Path, record: Record, now_ms: float) -> Held:
    if record.kind in ENDS or is_past(record, now_ms):
        return -1, "", record.version if record.table_id == 0 or record.kind == TABLE_DROP else 0, 0
    value = value_of(store, record)
    return len(value), digest(value), record.version, record.expires_ms


def is_past(record: Record, now_ms: float) -> bool:
    return 0 < record.expires_ms <= now_ms


def decoded_state(store: Path) -> State:
    replay, now_ms = Replay(decode_flow(store)), time.time() * 1000
    state = State({}, {})
    for (kind, _, key), record in replay.newest.items():
        if kind == 0 and record.kind == TABLE_NEW:
            state.tables[key] = decoded_table(store, replay, record, now_ms)
        elif kind == 0:
            state.keys[key] = held(store, record, now_ms)
    return state


def decoded_table(store: Path, replay: Replay, table: Record, now_ms: float) -> TableState:
    head, rows, floor = replay.heads[table.table_id], replay.rows_of(table.table_id), replay.floor_of(table.table_id)
    gone = [row for row, one in rows.items() if one.kind == ROW_DELETE or is_past(one, now_ms)]
    return TableState(
        head.version,
        head.row_count,
        table.expires_ms,
        floor,
        {row: held(store, one, now_ms) for row, one in rows.items()},
        sorted(row for row in gone if rows[row].version > floor),
    )


# --- the decoder: catalog and index ---


def decode_catalog(store: Path, scratch: Path) -> bytes:
    """The description of the newest checkpoint. The pages are LMDB's business; their trailer is ours."""
    content = (store / "catalog.mdb").read_bytes()
    magic, version, zero, size = struct.unpack_from("<8sIIQ", content, len(content) - 56)
    assert (magic, version, zero, size) == (b"kvsvrcat", 1, 0, len(content) - 56)
    assert content[-32:] == hashlib.blake2b(content[:-32], digest_size=32).digest()
    pages = scratch / "pages.mdb"
    pages.write_bytes(content[:-56])
    with (
        lmdb.open(str(pages), subdir=False, lock=False, readonly=True) as environment,
        environment.begin() as transaction,
    ):
        value = transaction.get(b"checkpoint.1")
        assert value is not None
        return bytes(value)


@dataclass(frozen=True)
class Checkpoint:
    store_id: bytes
    salt: int
    position: tuple[int, int]
    sequence: int
    clock_ms: int
    key_count: int
    tombstone_count: int
    big_count: int
    big_size: int
    table_count: int
    row_count: int
    row_tombstone_count: int
    clock_location: int
    clock_size: int
    live_sizes: dict[int, int]
    file_ids: list[int]
    big_ids: set[int]
    retired_ids: set[int]
    slots: set[tuple[int, int]]
    runs: list[list[bytes]]


def decode_checkpoint(store: Path, description: bytes) -> Checkpoint:
    assert description[:16] == b"kvsvrckp" + struct.pack("<II", 1, 0)
    words = struct.unpack(f"<{len(description) // 8}Q", description)
    assert words[-1] == xxhash.xxh64_intdigest(description[:-8])
    map_file, map_at, map_size, map_checksum, big_id_count = words[12:17]
    table_id_count, segment_count = words[22:24]
    after = 24 + 2 * segment_count
    live = dict(zip(words[24:after:2], words[25:after:2], strict=True))
    runs_at = after + 1 + words[after]
    file_ids = list(words[after + 1 : runs_at])
    runs = [tuple(words[at : at + 4]) for at in range(runs_at + 1, len(words) - 1, 4)]
    assert words[runs_at] == len(runs)

    files = {one: (store / "index" / f"{one:016x}.idx").read_bytes() for one in file_ids}
    assert len(files) == len(os.listdir(store / "index")), "a file that no map needs was left"
    for content in files.values():
        assert content[:16] == b"kvsvridx" + struct.pack("<II", 1, 0)
    map_bytes = files[map_file][map_at : map_at + map_size]
    id_bytes = files[map_file][map_at + map_size :][: 8 * (big_id_count + table_id_count)]
    assert map_checksum == xxhash.xxh64_intdigest(map_bytes + id_bytes, map_file)
    ids = struct.unpack(f"<{big_id_count + table_id_count}Q", id_bytes)
    return Checkpoint(
        description[16:32],
        words[4],
        (words[5] >> 32, words[5] & 0xFFFFFFFF),
        words[6],
        words[7],
        words[8],
        words[9],
        words[10],
        words[11],
        words[17],
        words[18],
        words[19],
        words[20],
        words[21],
        live,
        file_ids,
        set(ids[:big_id_count]),
        set(ids[big_id_count:]),
        set(decode_slots(files, map_bytes)),
        [decode_run(store, *facts) for facts in runs],
    )


def decode_run(store: Path, run_id: int, name_count: int, size: int, checksum: int) -> list[bytes]:
    """The names of a run, read leaf by leaf, and every child of an inner block where it should be."""
    content = (store / "runs" / f"{run_id:016x}.run").read_bytes()
    assert len(content) == size
    assert content[:24] == b"kvsvrrun" + struct.pack("<IIQ", 1, 0, run_id)
    assert content[24:32] == struct.pack("<Q", xxhash.xxh64_intdigest(content[:24], run_id))
    end = len(content) - 64
    leaf_count, root, level = struct.unpack_from("<QQI", content, end + 16)
    footer = b"kvsvrend" + struct.pack("<QQQIIQQ", name_count, leaf_count, root, level, 0, size, run_id)
    assert content[end:] == footer + struct.pack("<Q", checksum)
    assert checksum == xxhash.xxh64_intdigest(footer, run_id)

    names: list[bytes] = []
    previous: dict[int, int] = {}
    offset = 32
    while offset < end:
        digest, place, before, block_size, count, block_level = struct.unpack_from("<QQQIHH", content, offset)
        assert digest == xxhash.xxh64_intdigest(content[offset + 8 : offset + block_size], run_id)
        assert (place, before) == (offset, previous.get(block_level, 0))
        assert block_level or block_size <= 4096
        previous[block_level] = offset
        at, entry = offset + 32, b""
        for _ in range(count):
            shared, at = decode_varint(content, at)
            rest, at = decode_varint(content, at)
            entry = entry[:shared] + content[at : at + rest]
            at += rest + (8 if block_level else 0)
            if not block_level:
                names.append(entry)
        offset += block_size
        assert at == offset
    assert previous[level] == root == max(previous.values())
    assert len(names) == name_count
    assert names == sorted(set(names))
    return names


def decode_varint(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while content[at] & 128:
        value |= (content[at] & 127) << shift
        at, shift = at + 1, shift + 7
    return value | content[at] << shift, at + 1


def decode_slots(files: dict[int, bytes], map_bytes: bytes) -> Iterator[tuple[int, int]]:
    """(hash, location) of every slot; the tables cover every hash once, in order."""
    covered = 0
    for file_id, at, checksum, slot_count, depth in struct.iter_unpack("<QQQII", map_bytes):
        first, part = covered, (1 << 64) >> depth
        covered += part
        if slot_count == 0:
            assert file_id == 0
            continue
        content = files[file_id][at : at + 16 * slot_count]
        assert checksum == xxhash.xxh64_intdigest(content, file_id)
        slots = list(struct.iter_unpack("<QQ", content))
        assert len(slots) == slot_count
        assert all(first <= slot[0] < covered for slot in slots)
        yield from slots
    assert covered == 1 << 64


def location_of(record: Record, flags: int) -> int:
    return flags << 56 | record.segment << 24 | record.offset >> 2


def slot_of(record: Record, salt: int) -> tuple[int, int]:
    """The slot of a record's own name."""
    kind, table_id, key = name_of(record)
    flags = kind | (TOMBSTONE_BIT if record.kind in ENDS else 0) | (TABLE_BIT if record.kind == TABLE_NEW else 0)
    flags |= (BIG_BIT if record.flags & BIG else 0) | (EXPIRY_BIT if record.expires_ms else 0)
    seed = salt * PRIMES[0] + 1
    if kind == ROW_BIT:
        seed += table_id * ROW_SEED_STEP
    if kind == FLOOR_BIT:
        return table_slot(table_id, salt, record, flags)
    return xxhash.xxh64_intdigest(key, seed & MASK), location_of(record, flags)


def table_slot(table_id: int, salt: int, record: Record, flags: int) -> tuple[int, int]:
    seed = (salt * PRIMES[0] + 1 & MASK) ^ (flags & (HEAD_BIT | FLOOR_BIT))
    return xxhash.xxh64_intdigest(struct.pack("<Q", table_id), seed), location_of(record, flags)


def names_of(record: Record) -> set[bytes]:
    """The names that runs have of a record that is the newest of its name."""
    if record.kind == TABLE_FLOOR:
        return set()
    if name_of(record)[0] == 0:
        return {b"\0" + record.key} if record.kind in CREATES else set()
    table = struct.pack(">Q", record.table_id)
    change = b"\2" + table + struct.pack(">Q", record.version) + record.key
    return {change, b"\1" + table + record.key} if record.kind == ROW_PUT else {change}


# --- the tests ---


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    """A copy of the golden store."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path / "golden", filter="data")
    return tmp_path / "golden"


def to_json(state: State) -> str:
    keys = [json.dumps([key.hex(), *one]) for key, one in state.keys.items()]
    tables = []
    for key, one in state.tables.items():
        rows = [[row.hex(), *what] for row, what in one.rows.items()]
        deleted = [row.hex() for row in one.deleted]
        tables.append(json.dumps([key.hex(), one.version, one.row_count, one.expires_ms, one.floor, rows, deleted]))
    lines = ",\n".join
    return f'{{"keys": [\n{lines(keys)}\n],\n"tables": [\n{lines(tables)}\n]}}\n'


def from_json(text: str) -> State:
    found = json.loads(text)
    state = State({bytes.fromhex(key): held_of(what) for key, *what in found["keys"]}, {})
    for key, version, row_count, expires_ms, floor, rows, deleted in found["tables"]:
        state.tables[bytes.fromhex(key)] = TableState(
            version,
            row_count,
            expires_ms,
            floor,
            {bytes.fromhex(row): held_of(what) for row, *what in rows},
            [bytes.fromhex(row) for row in deleted],
        )
    return state


def held_of(what: list[Any]) -> Held:
    size, value, version, expires_ms = what
    return size, value, version, expires_ms


def expected_state() -> State:
    return from_json(STATE.read_text(encoding="utf-8"))


def held_by_engine(found: kvsvr.Versioned | None, version: int) -> Held:
    if found is None:
        return -1, "", version, 0
    expires_ms = round(found.expires_at * 1000) if found.expires_at is not None else 0
    return len(found.value), digest(found.value), found.version, expires_ms


def state_by_engine(
    db: kvsvr.Engine, keys: Iterable[bytes], tables: Mapping[bytes, tuple[int, Iterable[bytes]]]
) -> State:
    """`tables`: of each what its floor should be, which changes() shows, and the rows to ask for."""
    state = State({}, {})
    for key in keys:
        state.keys[key] = held_by_engine(db.get_versioned(key), db.wait(key, 0, 0))
    for key, (floor, rows) in tables.items():
        table = db.table(key)
        page = table.changes(floor)
        assert page.complete
        assert floor < 2 or not table.changes(floor - 1).complete
        assert not page.more
        assert page.version == table.version == db.wait(table, 0, 0)
        expires_ms = round(table.expires_at * 1000) if table.expires_at is not None else 0
        asked = {row: held_by_engine(table.get_versioned(row), 0) for row in rows}
        state.tables[key] = TableState(table.version, len(table), expires_ms, floor, asked, sorted(page.deleted))
        assert list(table) == sorted(row for row, one in asked.items() if one[0] >= 0)
    return state


def same_questions(db: kvsvr.Engine, state: State) -> State:
    return state_by_engine(db, state.keys, {key: (one.floor, one.rows) for key, one in state.tables.items()})


def only_forgotten(state: State, expected: State) -> None:
    """The log has more to tell than the store that was asked: of keys whose deletes were forgotten."""
    for key in set(state.keys) - set(expected.keys):
        assert state.keys.pop(key)[0] == -1


def test_the_golden_store_is_small_and_shows_everything(golden: Path, tmp_path: Path) -> None:
    """A golden file without a kind of record in it would promise less than it seems to."""
    assert ARCHIVE.stat().st_size + STATE.stat().st_size <= ARCHIVE_SIZE_MAX
    shows_everything(golden, decode_checkpoint(golden, decode_catalog(golden, tmp_path)))


def shows_everything(store: Path, checkpoint: Checkpoint) -> None:
    segments = decode_flow(store)
    replay = Replay(segments)
    records = [record for one in segments for record in one.records]
    assert {record.kind for record in records} == DATA | {CLOCK}
    moved = {record.kind for record in records if record.flags & MOVED}
    assert moved == DATA | {CLOCK}
    flags = {record.flags for record in records}
    assert flags == {0, CREATED, BIG, CREATED | BIG, MOVED, MOVED | BIG, MOVED | EXPIRED}
    assert {record.kind for record in records if record.expires_ms} == {PUT, ROW_PUT, TABLE_NEW}
    assert {record.kind for record in records if record.flags & BIG} == {PUT, ROW_PUT}
    assert any(is_past(record, time.time() * 1000) for record in replay.newest.values() if record.kind == PUT)
    assert any(is_past(record, time.time() * 1000) for record in replay.newest.values() if record.kind == ROW_PUT)

    assert {bool(one.next) for one in segments} == {True, False}
    assert segments[0].number > 1, "the first one went"
    assert any(one.chain_next for one in segments), "and one between others"
    envelopes = [inside for one in segments for inside in one.envelopes]
    assert {len({record.version for record in inside}) == 1 for inside in envelopes} == {True, False}
    assert {0, 1, 2} <= {sum(record.kind == TABLE_NEW for record in inside) for inside in envelopes}

    assert checkpoint.retired_ids, "dropped, and not swept"
    dropped = {record.table_id for record in records if record.kind == TABLE_DROP}
    swept = replay.ended - checkpoint.retired_ids
    assert dropped & swept, "swept, and there again in a replay"
    assert swept - dropped - {r.table_id for r in records if r.kind == TABLE_NEW}, "an orphan"
    assert any(name[0] == FLOOR_BIT and name[1] in checkpoint.retired_ids for name in replay.newest)
    assert {replay.heads[table_id].kind for table_id in replay.named} == {ROW_PUT, ROW_DELETE, TABLE_NEW}
    rows = [(one, replay.heads[one.table_id]) for one in replay.newest.values() if one.kind == ROW_PUT]
    assert any(row.place > head.place for row, head in rows), "moved behind a newer one"
    assert any(head.row_count == 0 for head in replay.heads.values())
    assert any(head.next_row > head.version for head in replay.heads.values())
    assert {one[0] for names in checkpoint.runs for one in names} == {0, 1, 2}


def test_the_decoder_reads_what_the_json_says(golden: Path) -> None:
    expected, decoded = expected_state(), decoded_state(golden)
    only_forgotten(decoded, expected)
    assert decoded == expected
    assert to_json(from_json(to_json(expected))) == to_json(expected)


@pytest.mark.parametrize("readonly", [True, False])
@pytest.mark.parametrize("catalog", [True, False], ids=["checkpoint", "replay"])
def test_the_store_opens_it_to_exactly_that_state(golden: Path, catalog: bool, readonly: bool) -> None:
    if not catalog:
        (golden / "catalog.mdb").unlink()
    expected = expected_state()
    with kvsvr.open(golden, readonly=readonly, compaction=False) as db:
        assert db.stats()["used_checkpoint"] == catalog
        assert same_questions(db, expected) == expected
        assert db[b"text"] == "grüße".encode()
        assert db[b"counter"] == b"-41"
        assert db.table(b"table")[b"words"] == "Wörter".encode()
        alive = {key for key, one in expected.keys.items() if one[0] >= 0}
        assert list(db) == sorted(alive)
        assert list(db.tables()) == sorted(expected.tables)
        if not readonly:
            assert db.stats()["was_clean"] == 1
            newest = max(one[2] for one in expected.keys.values())
            assert db.put(b"text", b"new") > max(newest, *(one.version for one in expected.tables.values()))


@pytest.mark.parametrize("catalog", [True, False], ids=["checkpoint", "replay"])
def test_what_was_dropped_is_swept_and_nothing_else(golden: Path, tmp_path: Path, catalog: bool) -> None:
    """Compacting what an old version left half done: after it the store says the same, and what is left agrees with
    the pages, too. A replay finds tables to sweep that the checkpoint is done with."""
    retired = decode_checkpoint(golden, decode_catalog(golden, tmp_path)).retired_ids
    if not catalog:
        retired = Replay(decode_flow(golden)).ended
        (golden / "catalog.mdb").unlink()
    expected = expected_state()
    gone = {key for key, one in expected.keys.items() if one[0] < 0}
    with kvsvr.open(golden, compaction=False) as db:
        assert db.stats()["retired_table_count"] == len(retired)
        db.compact()
        assert db.stats()["retired_table_count"] == 0
        assert list(db) == sorted(set(expected.keys) - gone)
        assert list(db.tables()) == sorted(expected.tables)
    checkpoint_agrees(golden, tmp_path)
    decoded = decoded_state(golden)
    for key in gone:
        decoded.keys.pop(key, None)
    assert decoded.keys == {key: one for key, one in expected.keys.items() if key not in gone}
    for key, table in expected.tables.items():
        alive = {row: one for row, one in table.rows.items() if one[0] >= 0}
        assert {row: one for row, one in decoded.tables[key].rows.items() if one[0] >= 0} == alive
        assert decoded.tables[key].row_count == len(alive)


def test_counters_and_index_say_what_the_records_say(golden: Path, tmp_path: Path) -> None:
    checkpoint_agrees(golden, tmp_path)


def checkpoint_agrees(store: Path, scratch: Path) -> None:
    """One slot per name, at its newest record, under its hash and with its class; counters as counted here."""
    replay = Replay(decode_flow(store))
    segments = replay.segments
    checkpoint = decode_checkpoint(store, decode_catalog(store, scratch))
    assert (checkpoint.store_id, checkpoint.salt) == (segments[0].store_id, segments[0].salt)
    assert checkpoint.retired_ids <= replay.ended
    newest = indexed(replay, checkpoint)
    slots_agree(replay, checkpoint, newest)
    counters_agree(store, replay, checkpoint, newest)
    names_agree(store, replay, checkpoint, newest)

    assert checkpoint.sequence == max(record.sequence for one in segments for record in one.records)
    last = segments[-1].records[-1]
    assert checkpoint.position == (last.segment, last.offset + last.size)
    assert all(divmod(one.required, 1 << 32) <= checkpoint.position for one in segments)


def indexed(replay: Replay, checkpoint: Checkpoint) -> list[Record]:
    """The newest records, without what the sweep took out, and tombstones that shadow nothing in the log any more."""
    swept = replay.ended - checkpoint.retired_ids
    newest = []
    for name, record in replay.newest.items():
        forgotten = (
            record.kind in ENDS
            and name not in replay.shadowed
            and slot_of(record, checkpoint.salt) not in checkpoint.slots
        )
        if not forgotten and name[1] not in swept:
            newest.append(record)
    return newest


def slots_agree(replay: Replay, checkpoint: Checkpoint, newest: list[Record]) -> None:
    salt = checkpoint.salt
    heads = {slot for slot in checkpoint.slots if slot[1] >> 56 & HEAD_BIT}
    assert checkpoint.slots - heads == {slot_of(record, salt) for record in newest}
    by_place = {record.place: record for one in replay.segments for record in one.records}
    of_tables = set()
    for slot in heads:
        record = by_place[slot[1] >> 24 & 0xFFFFFFFF, (slot[1] & 0xFFFFFF) << 2]
        assert slot == table_slot(record.table_id, salt, record, HEAD_BIT)
        # Records of one version agree, and any of them will do.
        assert record.version == replay.heads[record.table_id].version
        of_tables.add(record.table_id)
    assert of_tables == set(replay.named) | checkpoint.retired_ids
    assert len(of_tables) == len(heads)


def counters_agree(store: Path, replay: Replay, checkpoint: Checkpoint, newest: list[Record]) -> None:
    assert replay.clock is not None
    live: dict[int, int] = {}
    for one in [*newest, replay.clock]:
        live[one.segment] = live.get(one.segment, 0) + one.size
    counts = Counter(one.kind for one in newest)
    big = [struct.unpack("<QQQ", one.value) for one in newest if one.flags & BIG]
    assert checkpoint.live_sizes == live
    assert checkpoint.key_count == counts[PUT]
    assert checkpoint.tombstone_count == counts[DELETE] + counts[TABLE_DROP]
    assert checkpoint.table_count == counts[TABLE_NEW]
    assert checkpoint.row_count == counts[ROW_PUT]
    assert checkpoint.row_tombstone_count == counts[ROW_DELETE]
    assert (checkpoint.big_count, checkpoint.big_size) == (len(big), sum(size for size, _, _ in big))
    assert checkpoint.big_ids == {file_id for _, _, file_id in big}
    assert sorted(os.listdir(store / "values")) == sorted(f"{file_id:016x}.val" for _, _, file_id in big)
    assert checkpoint.clock_ms == clock_ms(replay.clock)
    assert checkpoint.clock_location == location_of(replay.clock, 0)
    assert checkpoint.clock_size == replay.clock.size

    with kvsvr.open(store, readonly=True) as db:
        stats = db.stats()
    assert stats["used_checkpoint"] == 1
    for name in (
        "key_count",
        "tombstone_count",
        "table_count",
        "row_count",
        "row_tombstone_count",
        "big_size",
        "clock_ms",
    ):
        assert stats[name] == getattr(checkpoint, name), name
    assert stats["retired_table_count"] == len(checkpoint.retired_ids)
    assert stats["live_size"] == sum(live.values())
    assert stats["store_id"] == checkpoint.store_id.hex()


def names_agree(store: Path, replay: Replay, checkpoint: Checkpoint, newest: list[Record]) -> None:
    """Every name is listed, and what else is listed is of names that are dead, or of changes that were overtaken."""
    listed = {name for names in checkpoint.runs for name in names}
    assert len(os.listdir(store / "runs")) == len(checkpoint.runs)
    alive = {name for record in newest for name in names_of(record)}
    assert listed >= alive
    for name in listed - alive:
        assert name[0] == 0 or len(name) >= 9 + 8 * (name[0] == 2)
        assert name[0] != 2 or struct.unpack_from(">Q", name, 9)[0] <= checkpoint.sequence
        assert name[0] == 0 or 0 < struct.unpack_from(">Q", name, 1)[0] <= checkpoint.sequence


def test_the_decoder_reads_the_examples_of_the_page() -> None:
    """Then the C tests, which hold the same bytes against the code, and the pages say the same."""
    page = (Path(__file__).parents[2] / "docs/formats/flow.md").read_text(encoding="utf-8")
    lines = re.findall(r"^    ((?:[0-9a-f]{2} {1,2}){12,16}) ", page, re.MULTILINE)
    content = bytes(4096) + bytes.fromhex("".join(lines))
    put = decode_record(content, 1, 4096, 0x0123456789ABCDEF)
    assert (put.kind, put.flags, put.version, put.key, put.value) == (PUT, CREATED, 7, b"hello", b"world!")
    row = decode_record(content, 1, 4096 + put.size, 0x0123456789ABCDEF)
    assert (row.kind, row.flags, row.version, row.key, row.value) == (ROW_PUT, CREATED, 8, b"7", b"seven")
    assert (row.table_id, row.row_count, row.next_row) == (5, 2, 9)
    assert row.offset + row.size == len(content)


def test_the_smallest_description_is_as_long_as_its_page_says(tmp_path: Path) -> None:
    with kvsvr.open(tmp_path / "store"):
        pass
    description = decode_catalog(tmp_path / "store", tmp_path)
    checkpoint = decode_checkpoint(tmp_path / "store", description)
    assert len(description) == 224
    assert (checkpoint.live_sizes, len(checkpoint.file_ids), checkpoint.runs) == ({}, 1, [])
    assert checkpoint.slots == set()


def test_a_store_of_today_decodes_as_well(tmp_path: Path) -> None:
    """What this version writes is what the pages say, not only what it wrote once."""
    expected = make_store(tmp_path / "store")
    decoded = decoded_state(tmp_path / "store")
    only_forgotten(decoded, expected)
    assert decoded == expected
    checkpoint_agrees(tmp_path / "store", tmp_path)
    shows_everything(
        tmp_path / "store", decode_checkpoint(tmp_path / "store", decode_catalog(tmp_path / "store", tmp_path))
    )


# --- making it ---


FAR = 3_000_000_000  # seconds


def opened(path: Path) -> kvsvr.Engine:
    """Nothing is swept, moved or forgotten but where it is asked for."""
    return kvsvr.open(path, sync="always", compaction=False)


def compacted_openers(path: Path) -> None:
    """Segments 1 and 3 have much that is dead, 2 has hardly anything. The first compact() moves the rest of 1 and 3 to
    4, and takes them out: so the chain begins with 2, and leads on to 4. The second moves it on to 5: so 5 follows."""
    with opened(path) as db:
        db.put(b"moved", b"1")
        db.put(b"moved", b"2")
        db.put(b"moved large", b"m" * ((1 << 20) + 5))
        expire(db.put(b"early", b"", ttl=0.001), lambda: db.get(b"early"))
        db.table(b"orphans").put(b"first", b"")
        old = db.table(b"old")
        old.put(b"a", b"1")
        old.append(b"appended")
        old.append(b"appended")
    with opened(path) as db:
        db.put(b"deleted", b"")
        db.table(b"orphans").put(b"second", b"")
        db.table(b"swept").put(b"row", b"")
        old = db.table(b"old")
        old.put_many((b"b%d" % n, b"") for n in range(4))
        expire(db.put(b"timed out", b"", ttl=0.001), lambda: db.get(b"timed out"))
        expire(old.put(b"timed out", b"", ttl=0.001), lambda: old.get(b"timed out"))
        db.put(b"stays", b"s" * 40_000)
    with opened(path) as db:
        old = db.table(b"old")
        db.table(b"orphans").drop()
        db.table(b"swept").drop()
        db.delete(b"deleted")
        old.delete(b"b0")
        old.trim(old.version)
        old.delete(b"b1")
        for n in range(3):
            db.put(b"moved", b"anew %d" % n)
        db.table(b"outrun").put(b"old", b"")
    with opened(path) as db:
        db.compact()
    with opened(path) as db:
        db.put(b"before the second", b"")
        db.table(b"outrun").put(b"new", b"")  # The old row will stand behind it, and the head stays here.
        db.compact()


def expire(version: int, look: Callable[[], object]) -> None:
    time.sleep(0.01)
    assert look() is None, version


def closing_opener(path: Path) -> None:
    with opened(path) as db:
        db.put(b"text", "grüße".encode())
        db.put(b"empty", b"")
        db.put(b"k" * 1000, b"a long key")
        db.put(b"odd", b"123")
        db.put(b"gone", b"soon")
        db.delete(b"gone")
        db.put(b"again", b"1")
        db.delete(b"again")
        db.put(b"again", b"2")
        expire(db.put(b"expired", b"", ttl=0.001), lambda: db.get(b"expired"))
        db.put(b"large", b"l" * ((1 << 20) + 1))
        db.put(b"large", b"L" * ((1 << 20) + 3))
        db.put(b"large gone", b"g" * (2 << 20))
        db.delete(b"large gone")
        db.put_many((b"many%d" % n, b"value %d" % n) for n in range(20))
        write_tables(db)


def write_tables(db: kvsvr.Engine) -> None:
    table = db.table(b"table")
    table.put(b"words", "Wörter".encode())
    table.put(b"", b"no name")
    table.put(b"large", b"r" * ((1 << 20) + 7))
    table.put(b"gone before", b"")
    table.delete(b"gone before")
    table.trim(table.version)
    table.put(b"gone", b"")
    table.delete(b"gone")
    table.put(b"back", b"1")
    table.delete(b"back")
    table.put(b"back", b"2")
    expire(table.put(b"expired", b"", ttl=0.001), lambda: table.get(b"expired"))
    table.put(b"later", b"", ttl=FAR)
    table.append(b"one")
    table.append(b"two")
    empty = db.table(b"emptied")
    empty.put(b"row", b"")
    empty.delete(b"row")
    db.table(b"expiring").put(b"row", b"")
    db.expire(b"expiring", FAR)
    for key in (b"dropped", b"replaced", b"anew"):
        db.table(key).put_many([(b"1", b""), (b"2", key)])
        db.table(key).delete(b"1")
    db.table(b"dropped").trim(db.table(b"dropped").version)
    db.table(b"dropped").drop()
    db.put(b"replaced", b"by a value")
    db.delete(b"anew")
    db.table(b"anew").put(b"2", b"of another table")


def killed_opener(path: Path) -> None:
    """In a process of its own, which ends without closing."""
    child = os.fork()
    if child == 0:
        db = opened(path)
        db.incr(b"counter", -42)
        db.incr(b"counter")
        db.append(b"log", b"one,")
        db.append(b"log", b"two")
        db.put(b"session", b"s", ttl=FAR)
        with db.batch() as batch:
            batch.put(b"left", b"both")
            batch.put(b"right", b"both", ttl=FAR)
            batch.put(b"large in a batch", b"b" * ((1 << 20) + 1))
            batch.delete(b"many0")
            batch.delete(b"emptied")
            for key in (b"twin", b"twin's"):
                batch.table(key).put(b"row", key)
                for n in range(3):
                    batch.table(key).append(b"%d" % n)
            batch.table(b"table").append(b"three")
            batch.table(b"table").delete(b"later")
        db.table(b"emptied").put(b"row", b"")
        db.table(b"emptied").delete(b"row")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def last_opener(path: Path) -> State:
    with opened(path) as db:
        db.delete_many([b"many1", b"many2", b"absent"])
        db.cas(b"odd", b"1234", db.wait(b"odd", 0, 0))
        db.expire(b"large", FAR)
        db.table(b"old").incr(b"a")
        keys = [b"moved", b"moved large", b"stays", b"deleted", b"timed out", b"swept", b"before the second"]
        keys += [b"text", b"empty", b"k" * 1000, b"odd", b"gone", b"again", b"expired", b"large", b"large gone"]
        keys += [b"counter", b"log", b"session", b"left", b"right", b"large in a batch", b"dropped", b"replaced"]
        keys += [b"many%d" % n for n in range(20)]
        gone = {
            b"table": [b"gone before", b"gone", b"expired", b"later"],
            b"old": [b"b0", b"b1", b"timed out"],
            b"emptied": [b"row"],
        }
        tables = {}
        for key in (b"old", b"outrun", b"table", b"emptied", b"expiring", b"anew", b"twin", b"twin's"):
            table = db.table(key)
            tables[key] = (table.trim(0), [*table, *gone.get(key, [])])
        return state_by_engine(db, keys, tables)


def make_store(path: Path) -> State:
    compacted_openers(path)
    closing_opener(path)
    killed_opener(path)
    return last_opener(path)


def plain(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Nothing of the machine it was made on; and no LOCK, which is no part of a store at rest."""
    if member.name.endswith("LOCK"):
        return None
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member


def main() -> None:
    GOLDEN.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp())
    try:
        state = make_store(folder / "store")
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:xz", preset=9) as archive:
            archive.add(folder / "store", arcname=".", filter=plain)
    finally:
        shutil.rmtree(folder)
    ARCHIVE.write_bytes(packed.getvalue())
    STATE.write_text(to_json(state), encoding="utf-8")
    print(f"{ARCHIVE.stat().st_size + STATE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
