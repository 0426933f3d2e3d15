"""Single calls of kvsvr, one a benchmark: `make bench-micro`. For whoever changes one of them and wants to see it in a
minute; `python -m bench` compares with others, checks every answer and has the figures to quote.

Nothing here is asserted about time. Every benchmark looks once at what its call answers, so that a broken call is no
fast one. A call takes another key each time, from a round of KEY_COUNT; a store is made for each module of benchmarks
that only read, and for each benchmark that writes. The store is on the disk that pytest's temporary directory is on,
and with sync="none": what is timed is the way into the flow, not the disk.
"""

from collections.abc import Callable, Iterator
from itertools import count, cycle
from pathlib import Path
from random import Random
from typing import Any

import pytest

import kvsvr

# The fixture `benchmark` is pytest-benchmark's and Any here: half of its methods have no types.
# A round takes a millisecond, so that what starting and reading the clock cost is lost in it.
pytestmark = pytest.mark.benchmark(min_time=0.001)

KEY_COUNT = 100_000
ROW_COUNT = 10_000
MANY = 100
SCAN_COUNT = 50
VALUE = bytes(range(100))
OTHER_VALUE = VALUE[::-1]
TABLE = b"table"

rng = Random(1)
KEYS = [rng.randbytes(16) for _ in range(KEY_COUNT)]
ABSENT = [rng.randbytes(16) for _ in range(KEY_COUNT)]
GROUPS = [KEYS[i : i + MANY] for i in range(0, KEY_COUNT, MANY)]


def fill(db: kvsvr.Engine) -> None:
    for group in GROUPS:
        db.put_many((key, VALUE) for key in group)
    table = db.table(TABLE)
    with db.batch() as batch:
        rows = batch.table(TABLE)
        for number in range(ROW_COUNT):
            rows.put(number.to_bytes(8, "big"), VALUE)
    assert (len(db), len(table)) == (KEY_COUNT, ROW_COUNT)


@pytest.fixture(scope="module")
def read_only(tmp_path_factory: pytest.TempPathFactory) -> Iterator[kvsvr.Engine]:
    """A full store for all benchmarks that change nothing."""
    with kvsvr.open(tmp_path_factory.mktemp("read") / "store", sync="none") as db:
        fill(db)
        yield db


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[kvsvr.Engine]:
    with kvsvr.open(tmp_path / "store", sync="none") as db:
        yield db


@pytest.fixture
def full(empty: kvsvr.Engine) -> kvsvr.Engine:
    fill(empty)
    return empty


def each(call: Callable[[Any], Any], arguments: Iterator[Any]) -> Callable[[], Any]:
    """The call with the next argument each time; costs some 60 ns, which are in every figure that is made with it."""

    def once() -> Any:
        return call(next(arguments))

    return once


def new_keys() -> Iterator[bytes]:
    """Without an end, in no order: an odd factor permutes the numbers of 64 bits."""
    return ((number * 0x9E3779B97F4A7C15 % (1 << 64)).to_bytes(16, "little") for number in count(1))


# --- writes ---


def test_put(empty: kvsvr.Engine, benchmark: Any) -> None:
    """A key that is not there; the store grows while it is measured."""
    put = empty.put
    benchmark(each(lambda key: put(key, VALUE), new_keys()))
    assert empty.get(next(new_keys())) == VALUE


def test_overwrite(full: kvsvr.Engine, benchmark: Any) -> None:
    put = full.put
    benchmark(each(lambda key: put(key, OTHER_VALUE), cycle(KEYS)))
    assert full.get(KEYS[0]) == OTHER_VALUE
    assert len(full) == KEY_COUNT


def test_delete(full: kvsvr.Engine, benchmark: Any) -> None:
    """Of keys that are there, so as many rounds of one call as there are keys, at most."""
    delete, keys = full.delete, iter(KEYS)
    answers = []
    benchmark.pedantic(each(lambda key: answers.append(delete(key)), keys), rounds=KEY_COUNT // 2)
    assert answers and all(answers)
    assert KEYS[0] not in full


def test_batch_of_100(full: kvsvr.Engine, benchmark: Any) -> None:
    """Overwrites, atomic."""

    def write(keys: list[bytes]) -> None:
        with full.batch() as batch:
            put = batch.put
            for key in keys:
                put(key, OTHER_VALUE)

    benchmark(each(write, cycle(GROUPS)))
    assert full.get_many(GROUPS[0]) == [OTHER_VALUE] * MANY


def test_incr(full: kvsvr.Engine, benchmark: Any) -> None:
    before = full.incr(b"counter", 0)
    benchmark(full.incr, b"counter", 1)
    assert full.incr(b"counter", 0) > before


def test_transaction(full: kvsvr.Engine, benchmark: Any) -> None:
    """One key read and written; nobody else writes, so it never has to try again."""

    def change(key: bytes) -> None:
        with full.transaction() as transaction:
            transaction.put(key, (transaction.get(key) or b"")[::-1])

    benchmark(each(change, cycle(KEYS)))
    assert full.get(KEYS[0]) in (VALUE, OTHER_VALUE)
    assert len(full) == KEY_COUNT


def test_table_append(full: kvsvr.Engine, benchmark: Any) -> None:
    table = full.table(TABLE)
    benchmark(table.append, VALUE)
    assert len(table) > ROW_COUNT


# --- reads ---


def test_get_hit(read_only: kvsvr.Engine, benchmark: Any) -> None:
    assert benchmark(each(read_only.get, cycle(KEYS))) == VALUE


def test_get_miss(read_only: kvsvr.Engine, benchmark: Any) -> None:
    assert benchmark(each(read_only.get, cycle(ABSENT))) is None


def test_get_many_of_100(read_only: kvsvr.Engine, benchmark: Any) -> None:
    assert benchmark(each(read_only.get_many, cycle(GROUPS))) == [VALUE] * MANY


def test_scan_of_50(read_only: kvsvr.Engine, benchmark: Any) -> None:
    """From somewhere in the lower half of the keys, so that fifty follow."""
    scan = read_only.scan
    starts = cycle([key for key in KEYS if key[0] < 0x80])
    found = benchmark(each(lambda start: list(scan(start, limit=SCAN_COUNT)), starts))
    assert len(found) == SCAN_COUNT


def test_last_20_rows(read_only: kvsvr.Engine, benchmark: Any) -> None:
    last = read_only.table(TABLE).last
    assert len(benchmark(lambda: list(last(20)))) == 20
