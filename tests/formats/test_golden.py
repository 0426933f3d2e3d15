"""A store written once and kept: what it holds today it holds in every version to come.

golden/format-1.tar.xz is the directory of a closed store, format-1.json what it held. It has seen three openers: one
that closed, one that was killed, one that recovered and closed; so there are seals of either kind, a cut, values in
files of their own, batches, tombstones, expiries, the note of the clock, an image of the index, and sorted runs.

The decoder below was written from the byte tables alone (record.h, flow_internal.h, checkpoint.c, index_image.c,
catalog.py). It shares no line with the engine, and so catches a mistake that encoder and decoder there have in common.

Made anew, when a format changes, which no format does without a number and a golden file of its own, by
    python tests/formats/test_golden.py
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import struct
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

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

PUT, DELETE, ENVELOPE, SEAL, CLOCK = 1, 2, 16, 17, 32
CREATED, BIG = 1, 2
OPTION_SIZES = {1: 8, 2: 8, 4: 8, 8: 8, 16: 32, 32: 24}
HAS_SEQUENCE, HAS_EXPIRY = 1, 8
TOMBSTONE_BIT, EXPIRY_BIT, BIG_BIT = 1, 2, 16

# Key -> (size or -1 if deleted, digest of the value, version, expiry in ms or 0).
State = dict[bytes, tuple[int, str, int, int]]


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
    key: bytes
    value: bytes
    value_size: int


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
    sequence, expires_ms = version, 0
    for bit, size in OPTION_SIZES.items():
        if options & bit:
            if bit == HAS_SEQUENCE:
                (sequence,) = struct.unpack_from("<Q", content, at)
            if bit == HAS_EXPIRY:
                (expires_ms,) = struct.unpack_from("<Q", content, at)
            at += size
    key = content[at : at + key_size]
    at += key_size
    value = b"" if kind == ENVELOPE else content[at : at + value_size]
    at += len(value)
    assert checksum == xxhash.xxh64_intdigest(content[offset + 8 : at], place)
    end = (at + 3) // 4 * 4
    assert content[at:end] == bytes(end - at)
    return Record(segment, offset, end - offset, kind, flags, version, sequence, expires_ms, key, value, value_size)


# --- the decoder: segments ---


@dataclass
class Segment:
    number: int
    store_id: bytes
    salt: int
    ceiling: int
    next: int = 0
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
    for start, stop in ((72, 512), (520, 1024), (1048, 4096)):
        assert content[start:stop] == bytes(stop - start)

    one = Segment(number, store_id, salt, ceiling, following)
    at = 4096
    while at < end:
        record = decode_record(content, number, at, salt)
        at += record.size
        if record.kind == ENVELOPE:
            inside = list(decode_envelope(content, one, at, at + record.value_size))
            assert record.sequence == inside[0].sequence
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
    assert all(record.kind in (PUT, DELETE, CLOCK) for record in one.records)
    assert seal.sequence == last_sequence <= ceiling
    return one


def decode_envelope(content: bytes, one: Segment, at: int, end: int) -> Iterator[Record]:
    while at < end:
        record = decode_record(content, one.number, at, one.salt)
        yield record
        at += record.size
    assert at == end


def decode_flow(store: Path) -> list[Segment]:
    segments = []
    for file in sorted((store / "flow").iterdir()):
        segments.append(decode_segment(file.read_bytes(), int(file.stem, 16)))
        assert file.name == f"{segments[-1].number:08x}.seg"
    for one, following in pairwise(segments):
        assert following.number == (one.next or one.number + 1)
        assert (following.store_id, following.salt) == (one.store_id, one.salt)
        assert following.ceiling > one.ceiling
    assert segments[0].number == 1
    assert segments[-1].next == 0
    sequences = [record.sequence for one in segments for record in one.records]
    assert sequences == sorted(sequences)
    return segments


def newest_records(segments: list[Segment]) -> dict[bytes, Record]:
    newest: dict[bytes, Record] = {}
    for one in segments:
        for record in one.records:
            if record.kind == CLOCK:
                continue
            before = newest.get(record.key)
            is_new = before is None or before.kind == DELETE
            assert bool(record.flags & CREATED) == (is_new and record.kind == PUT)
            newest[record.key] = record
    return newest


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


def decoded_state(store: Path) -> State:
    state: State = {}
    for key, record in newest_records(decode_flow(store)).items():
        if record.kind == DELETE:
            state[key] = -1, "", record.version, 0
        else:
            value = value_of(store, record)
            state[key] = len(value), digest(value), record.version, record.expires_ms
    return state


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
    live_sizes: dict[int, int]
    file_ids: list[int]
    big_ids: set[int]
    slots: set[tuple[int, int]]
    runs: list[list[bytes]]


def decode_checkpoint(store: Path, description: bytes) -> Checkpoint:
    assert description[:16] == b"kvsvrckp" + struct.pack("<II", 1, 0)
    words = struct.unpack(f"<{len(description) // 8}Q", description)
    assert words[-1] == xxhash.xxh64_intdigest(description[:-8])
    map_file, map_at, map_size, map_checksum, big_id_count, segment_count = words[12:18]
    after = 18 + 2 * segment_count
    live = dict(zip(words[18:after:2], words[19:after:2], strict=True))
    runs_at = after + 1 + words[after]
    file_ids = list(words[after + 1 : runs_at])
    runs = [tuple(words[at : at + 4]) for at in range(runs_at + 1, len(words) - 1, 4)]
    assert words[runs_at] == len(runs)

    files = {one: (store / "index" / f"{one:016x}.idx").read_bytes() for one in file_ids}
    assert len(files) == len(os.listdir(store / "index")), "a file that no map needs was left"
    for content in files.values():
        assert content[:16] == b"kvsvridx" + struct.pack("<II", 1, 0)
    map_bytes = files[map_file][map_at : map_at + map_size]
    big_bytes = files[map_file][map_at + map_size :][: 8 * big_id_count]
    assert map_checksum == xxhash.xxh64_intdigest(map_bytes + big_bytes, map_file)
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
        live,
        file_ids,
        set(struct.unpack(f"<{big_id_count}Q", big_bytes)),
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


def location_of(record: Record) -> int:
    flags = TOMBSTONE_BIT if record.kind == DELETE else 0
    flags |= (BIG_BIT if record.flags & BIG else 0) | (EXPIRY_BIT if record.expires_ms else 0)
    return flags << 56 | record.segment << 24 | record.offset >> 2


# --- the tests ---


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    """A copy of the golden store."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path / "golden", filter="data")
    return tmp_path / "golden"


def expected_state(file: Path = STATE) -> State:
    rows = json.loads(file.read_text(encoding="utf-8"))
    return {bytes.fromhex(key): (size, value, version, expires_ms) for key, size, value, version, expires_ms in rows}


def state_by_engine(db: kvsvr.Engine, keys: list[bytes]) -> State:
    state: State = {}
    for key in keys:
        found = db.get_versioned(key)
        version = db.wait(key, 0, 0)
        if found is None:
            state[key] = -1, "", version, 0
        else:
            assert found.version == version
            expires_ms = round(found.expires_at * 1000) if found.expires_at is not None else 0
            state[key] = len(found.value), digest(found.value), version, expires_ms
    return state


def test_the_golden_store_is_small_and_shows_everything(golden: Path) -> None:
    """A golden file without a kind of record in it would promise less than it seems to."""
    assert ARCHIVE.stat().st_size + STATE.stat().st_size <= ARCHIVE_SIZE_MAX
    segments = decode_flow(golden)
    records = [record for one in segments for record in one.records]
    assert {record.kind for record in records} == {PUT, DELETE, CLOCK}
    assert {record.flags for record in records} == {0, CREATED, BIG, CREATED | BIG}
    assert {bool(one.next) for one in segments} == {True, False}
    assert any(record.expires_ms for record in records)
    envelopes = [inside for one in segments for inside in one.envelopes]
    assert {len({record.version for record in inside}) == 1 for inside in envelopes} == {True, False}


def test_the_decoder_reads_what_the_json_says(golden: Path) -> None:
    expected = expected_state()
    decoded = decoded_state(golden)
    expired = {key for key, (_, _, _, expires_ms) in decoded.items() if 0 < expires_ms < time.time() * 1000}
    assert expired == {b"expired"}
    assert {key: row for key, row in decoded.items() if key not in expired} == {
        key: row for key, row in expected.items() if key not in expired
    }


@pytest.mark.parametrize("readonly", [True, False])
@pytest.mark.parametrize("catalog", [True, False], ids=["checkpoint", "replay"])
def test_the_store_opens_it_to_exactly_that_state(golden: Path, catalog: bool, readonly: bool) -> None:
    if not catalog:
        (golden / "catalog.mdb").unlink()
    expected = expected_state()
    with kvsvr.open(golden, readonly=readonly) as db:
        assert db.stats()["used_checkpoint"] == catalog
        assert state_by_engine(db, list(expected)) == expected
        assert db[b"text"] == "grüße".encode()
        assert db[b"counter"] == b"-41"
        assert list(db) == sorted(key for key, (size, *_) in expected.items() if size >= 0)
        if not readonly:
            assert db.stats()["was_clean"] == 1
            assert db.put(b"text", b"new") > max(version for _, _, version, _ in expected.values())


def test_counters_and_index_say_what_the_records_say(golden: Path, tmp_path: Path) -> None:
    """The image: one slot per key, at its newest record, under the hash of the key; counters as counted here."""
    segments = decode_flow(golden)
    newest = newest_records(segments)
    checkpoint = decode_checkpoint(golden, decode_catalog(golden, tmp_path))
    seed = (checkpoint.salt * PRIMES[0] + 1) & MASK
    assert checkpoint.slots == {(xxhash.xxh64_intdigest(key, seed), location_of(one)) for key, one in newest.items()}
    assert (checkpoint.store_id, checkpoint.salt) == (segments[0].store_id, segments[0].salt)

    live: dict[int, int] = {}
    for one in newest.values():
        live[one.segment] = live.get(one.segment, 0) + one.size
    big = [struct.unpack("<QQQ", one.value) for one in newest.values() if one.flags & BIG]
    assert checkpoint.live_sizes == live
    assert checkpoint.key_count == sum(one.kind == PUT for one in newest.values())
    assert checkpoint.tombstone_count == sum(one.kind == DELETE for one in newest.values())
    assert (checkpoint.big_count, checkpoint.big_size) == (len(big), sum(size for size, _, _ in big))
    assert checkpoint.big_ids == {file_id for _, _, file_id in big}
    assert sorted(os.listdir(golden / "values")) == sorted(f"{file_id:016x}.val" for _, _, file_id in big)
    clocks = [record.value for one in segments for record in one.records if record.kind == CLOCK]
    assert struct.pack("<Q", checkpoint.clock_ms) == max(clocks, key=lambda value: int.from_bytes(value, "little"))
    listed = {name for names in checkpoint.runs for name in names}
    assert listed >= {b"\0" + key for key, one in newest.items() if one.kind == PUT}
    assert listed <= {b"\0" + key for key in newest}
    assert len(os.listdir(golden / "runs")) == len(checkpoint.runs)
    assert checkpoint.sequence == max(record.sequence for one in segments for record in one.records)
    segment, offset = checkpoint.position
    assert segment == segments[-1].number
    last = segments[-1].records[-1]
    assert offset == last.offset + last.size

    with kvsvr.open(golden, readonly=True) as db:
        stats = db.stats()
    assert stats["key_count"] == checkpoint.key_count
    assert stats["tombstone_count"] == checkpoint.tombstone_count
    assert stats["live_size"] == sum(live.values())
    assert stats["big_size"] == checkpoint.big_size
    assert stats["clock_ms"] == checkpoint.clock_ms
    assert stats["store_id"] == checkpoint.store_id.hex()


def test_a_store_of_today_decodes_as_well(tmp_path: Path) -> None:
    """What this version writes is what the tables say, not only what it wrote once."""
    expected = make_store(tmp_path / "store")
    decoded = decoded_state(tmp_path / "store")
    decoded[b"expired"] = -1, "", decoded[b"expired"][2], 0
    assert decoded == expected


# --- making it ---


def first_opener(path: Path) -> None:
    with kvsvr.open(path, sync="always") as db:
        db.put(b"text", "grüße".encode())
        db.put(b"empty", b"")
        db.put(b"k" * 1000, b"a long key")
        db.put(b"odd", b"123")
        db.put(b"gone", b"soon")
        db.delete(b"gone")
        db.put(b"again", b"1")
        db.delete(b"again")
        db.put(b"again", b"2")
        db.put(b"expired", b"", ttl=0.001)
        time.sleep(0.01)
        assert db.get(b"expired") is None
        db.put(b"large", b"l" * ((1 << 20) + 1))
        db.put(b"large", b"L" * ((1 << 20) + 3))
        db.put(b"large gone", b"g" * (2 << 20))
        db.delete(b"large gone")
        db.put_many((b"many%d" % n, b"value %d" % n) for n in range(20))


def killed_opener(path: Path) -> None:
    """In a process of its own, which ends without closing."""
    child = os.fork()
    if child == 0:
        db = kvsvr.open(path, sync="always")
        db.incr(b"counter", -42)
        db.incr(b"counter")
        db.append(b"log", b"one,")
        db.append(b"log", b"two")
        db.put(b"session", b"s", ttl=3_000_000_000)
        with db.batch() as batch:
            batch.put(b"left", b"both")
            batch.put(b"right", b"both", ttl=3_000_000_000)
            batch.put(b"large in a batch", b"b" * ((1 << 20) + 1))
            batch.delete(b"many0")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def last_opener(path: Path) -> State:
    with kvsvr.open(path, sync="always") as db:
        db.delete_many([b"many1", b"many2", b"absent"])
        db.cas(b"odd", b"1234", db.wait(b"odd", 0, 0))
        db.expire(b"large", 3_000_000_000)
        names = [b"text", b"empty", b"k" * 1000, b"odd", b"gone", b"again", b"expired", b"large", b"large gone"]
        names += [b"counter", b"log", b"session", b"left", b"right", b"large in a batch"]
        names += [b"many%d" % n for n in range(20)]
        return state_by_engine(db, names)


def make_store(path: Path) -> State:
    first_opener(path)
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
        rows = [[key.hex(), *row] for key, row in make_store(folder / "store").items()]
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:xz", preset=9) as archive:
            archive.add(folder / "store", arcname=".", filter=plain)
    finally:
        shutil.rmtree(folder)
    ARCHIVE.write_bytes(packed.getvalue())
    STATE.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n", encoding="utf-8")
    print(f"{ARCHIVE.stat().st_size + STATE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
