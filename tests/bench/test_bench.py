"""The benchmark may be trusted: peers do what a dict does, figures are right, lies and noise are noticed."""

import json
import random
import re
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from bench.adapters import ADAPTERS, Adapter, NotInstalled, Reads, Writes
from bench.adapters.base import EXPIRY, FULL_SCAN, SCAN, SNAPSHOTS, TABLES, Pair, SnapshotRead
from bench.adapters.dict import DictAdapter
from bench.adapters.rows import ascending, numbered
from bench.cells import CELLS, Cell, Work
from bench.cells.base import ANY
from bench.cells.latency import timing_of
from bench.cells.ycsb import Zipf
from bench.cli import main
from bench.data import Data, Setting, WrongAnswer, check_absent, value_of
from bench.load import Load, Snapshot
from bench.machine import FileSystem
from bench.results import Repetition, best_peer, figure_of, figures_of, rotated
from bench.runner import Outcome, Plan, run, suits
from bench.workloads import GROUPS, Stage, has_bar, stages

QUIET = Load(wall_seconds=1.0, own_seconds=0.9, kernel_seconds=0.0, other_seconds=0.0)
NOISY = replace(QUIET, other_seconds=0.9)


@pytest.fixture(autouse=True)
def no_settling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here is about time, and other tests keep the disk busy."""
    monkeypatch.setattr("bench.runner.settle", lambda: 0.0)


@pytest.fixture(scope="module")
def data() -> Data:
    return Data(Setting(500))


def installed(name: str) -> Adapter:
    try:
        return ADAPTERS[name]()
    except NotInstalled as reason:
        if name == "kvsvr":
            raise
        pytest.skip(f"{name}: {reason}")


def plan_of(
    data: Data, directory: Path, cells: str, adapter: Callable[[], Adapter] = DictAdapter, **other: int
) -> Plan:
    numbers = {"repeat": 1, "sync_count": 16, "retry_max": 0, **other}
    stage = Stage(data.setting, [CELLS[name].at(data.setting) for name in cells.split()])
    return Plan({"dict": adapter}, [stage], lambda _: data, directory, **numbers)


def run_plan(plan: Plan, measure: Callable[[Snapshot], Load] = lambda _: QUIET) -> list[Repetition]:
    outcome = Outcome()
    run(plan, outcome, measure_limits=dict, progress=lambda _: None, measure=measure)
    return outcome.repetitions


# --- peers ---


@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("name", ADAPTERS)
def test_every_peer_agrees_with_a_dict(name: str, durable: bool, data: Data, tmp_path: Path) -> None:
    adapter = installed(name)
    twin: dict[bytes, bytes] = {}
    keys = data.inserts[:60]
    adapter.open(tmp_path, durable=durable, key_count=data.key_count)
    with adapter.writes() as writes:
        for key in keys:
            writes.put(key, value_of(key, 0))
            twin[key] = value_of(key, 0)
        pairs = [(key, value_of(key, 1)) for key in keys[::3]]
        writes.write_batch(pairs)
        twin.update(pairs)
        for key in keys[::4]:
            writes.delete(key)
            del twin[key]
    for reopened in (False, True):
        if reopened:
            adapter.close()
            adapter.open(tmp_path, durable=not durable, key_count=data.key_count)
        asked = [*keys[::-1], *data.absent[:5]]
        expected = [twin.get(key) for key in asked]
        with adapter.reads() as reads:
            assert [reads.get(key) for key in asked] == expected
            assert list(reads.values(asked, reads.get_many(asked))) == expected
    adapter.close()
    adapter.close()


@pytest.mark.parametrize("name", ADAPTERS)
def test_every_peer_passes_every_cell(name: str, data: Data, tmp_path: Path) -> None:
    adapter = installed(name)
    cells = [cell for cell in CELLS.values() if suits(adapter, cell) and cell.needs != ANY]  # Those: test_measures.py.
    repetitions = run_plan(plan_of(data, tmp_path, " ".join(cell.name for cell in cells), ADAPTERS[name]))
    assert [(r.cell, r.error) for r in repetitions] == [(cell.name, None) for cell in cells]
    assert all(r.operations > 0 and r.seconds > 0 and r.value > 0 for r in repetitions)


@pytest.mark.parametrize("setting", [Setting(50, 64 << 10), Setting(200, 16), Setting(200, varying=True)], ids=str)
@pytest.mark.parametrize("name", ADAPTERS)
def test_every_peer_passes_at_every_size(name: str, setting: Setting, tmp_path: Path) -> None:
    adapter = installed(name)
    chosen = "put get-hit full-scan scan-50 batch-fsync overwrite-3 put-many table-append table-last"
    cells = [cell for cell in CELLS.values() if cell.name in chosen.split() and suits(adapter, cell)]
    plan = plan_of(Data(setting), tmp_path, " ".join(cell.name for cell in cells), ADAPTERS[name])
    assert [(r.cell, r.error) for r in run_plan(plan)] == [(cell.name + setting.suffix, None) for cell in cells]


def test_a_peer_that_cannot_do_a_cell_is_left_out(data: Data, tmp_path: Path) -> None:
    assert [r.cell for r in run_plan(plan_of(data, tmp_path, "put table-append scan-50 put-fsync"))] == ["put"]


# --- lies are noticed ---


class Complete(DictAdapter):
    """A dict that can do everything, slowly."""

    features = frozenset({SCAN, FULL_SCAN, TABLES, SNAPSHOTS, EXPIRY})
    is_durable = True

    @contextmanager
    def writes(self) -> Iterator[Writes]:
        with super().writes() as plain:
            put = plain.put
            yield replace(plain, put_expiring=put, append=numbered(put))

    @contextmanager
    def reads(self) -> Iterator[Reads]:
        items = self._items

        def scan(start: bytes, count: int) -> list[Pair]:
            return sorted(pair for pair in items.items() if pair[0] >= start)[:count]

        def last(table: bytes, count: int) -> list[Pair]:
            return sorted((pair for pair in items.items() if pair[0].startswith(table)), reverse=True)[:count]

        with super().reads() as plain:
            yield replace(plain, scan=scan, scan_all=lambda: iter(sorted(items.items())), last=last, rows=ascending)

    @contextmanager
    def snapshots(self) -> Iterator[SnapshotRead]:
        with self.reads() as reads:
            yield reads.get_many


def another(value: bytes | None) -> bytes | None:
    return b"?" if value is None else value[::-1]


def others(pairs: Iterable[Pair]) -> list[Pair]:
    return [(key, value[::-1]) for key, value in pairs]


class Lying(Complete):
    """Reads that answer with another value than was written."""

    @contextmanager
    def reads(self) -> Iterator[Reads]:
        with super().reads() as honest:
            yield replace(
                honest,
                get=lambda key: another(honest.get(key)),
                get_many=lambda keys: [another(value) for value in honest.get_many(keys)],
                scan=lambda start, count: others(honest.scan(start, count)),
                scan_all=lambda: iter(others(honest.scan_all())),
                last=lambda table, count: others(honest.last(table, count)),
            )


class LeavingOut(Complete):
    """Scans that leave out what comes last."""

    @contextmanager
    def reads(self) -> Iterator[Reads]:
        with super().reads() as honest:
            yield replace(
                honest,
                scan=lambda start, count: honest.scan(start, count - 1),
                scan_all=lambda: iter(list(honest.scan_all())[:-1]),
                last=lambda table, count: honest.last(table, count - 1),
            )


class Forgetful(Complete):
    """Says it wrote, and did not, unless it is empty: so that cells find what they need."""

    @contextmanager
    def writes(self) -> Iterator[Writes]:
        with super().writes() as honest:
            if not self._items:
                loading = replace(honest, put=forget, append=forget)
                yield replace(loading, put_many=self._forget_one(honest.put_many))
            else:
                yield Writes(forget, forget, forget, forget, forget, forget)

    @staticmethod
    def _forget_one(put_many: Callable[[Sequence[Pair]], object]) -> Callable[[Sequence[Pair]], object]:
        return lambda pairs: put_many(pairs[1:])


def forget(*_: object) -> None:
    pass


OWN_GROUPS = ("single keys", "many keys", "durable", "scans", "YCSB", "tables", "latency", "threads")
OWN_CELLS = [cell for cell in CELLS.values() if cell.group in (*OWN_GROUPS, "snapshots and expiry")]


@pytest.mark.parametrize("cell", OWN_CELLS, ids=lambda cell: str(cell.name))
def test_a_wrong_answer_is_a_failure_not_a_figure(cell: Cell, data: Data, tmp_path: Path) -> None:
    assert run_plan(plan_of(data, tmp_path, cell.name, Complete))[0].error is None
    (repetition,) = run_plan(plan_of(data, tmp_path, cell.name, Lying))
    assert repetition.error is not None and repetition.error.startswith("WrongAnswer")
    assert figures_of([repetition]) == {}


@pytest.mark.parametrize("name", [cell.name for cell in OWN_CELLS if cell.writes])
def test_a_write_that_was_not_made_is_a_failure(name: str, data: Data, tmp_path: Path) -> None:
    (repetition,) = run_plan(plan_of(data, tmp_path, name, Forgetful))
    assert repetition.error is not None and repetition.error.startswith("WrongAnswer")


@pytest.mark.parametrize("name", ["full-scan", "scan-50", "ycsb-e", "table-last"])
def test_a_scan_that_leaves_something_out_is_a_failure(name: str, data: Data, tmp_path: Path) -> None:
    (repetition,) = run_plan(plan_of(data, tmp_path, name, LeavingOut))
    assert repetition.error is not None and repetition.error.startswith("WrongAnswer")


def no_space() -> Iterator[Writes]:
    raise OSError("no space")


def test_a_failing_peer_does_not_stop_the_next_cell(data: Data, tmp_path: Path) -> None:
    class Full(DictAdapter):
        @contextmanager
        def writes(self) -> Iterator[Writes]:
            with super().writes() as plain:
                yield replace(plain, put=lambda key, value: next(no_space()))

    first, second = run_plan(plan_of(data, tmp_path, "put get-hit", Full))
    assert first.error is not None
    assert second.error is None and second.operations == data.key_count


def test_a_failing_thread_fails_the_cell(data: Data, tmp_path: Path) -> None:
    class Failing(DictAdapter):
        @contextmanager
        def writes(self) -> Iterator[Writes]:
            yield from no_space()

    with pytest.raises(OSError, match="no space"):
        CELLS["put-fsync-8"].run(Failing(), Work(data, 1, 16, tmp_path))


def test_answers_are_checked_by_key_and_generation(data: Data) -> None:
    keys = data.inserts[:3]
    data.check(keys, [value_of(key, 2) for key in keys], 2)
    check_absent(keys, [None, None, None])
    for wrong in ([value_of(key, 1) for key in keys], [None] * 3, []):
        with pytest.raises(WrongAnswer):
            data.check(keys, wrong, 2)
    with pytest.raises(WrongAnswer):
        check_absent(keys, [None, b"", None])


# --- noise is noticed ---


def test_a_disturbed_repetition_is_repeated_and_the_quietest_kept(data: Data, tmp_path: Path) -> None:
    loads = iter([NOISY, replace(NOISY, other_seconds=0.5), QUIET, QUIET])
    repetitions = run_plan(plan_of(data, tmp_path, "put get-hit", retry_max=3), lambda _: next(loads))
    assert [(r.cell, r.attempt, r.kept) for r in repetitions] == [
        ("put", 0, False),
        ("put", 1, False),
        ("put", 2, True),
        ("get-hit", 0, True),
    ]


def test_retries_are_bounded_and_what_stays_disturbed_is_marked(data: Data, tmp_path: Path) -> None:
    loads = iter([NOISY, replace(NOISY, other_seconds=0.5), NOISY])
    repetitions = run_plan(plan_of(data, tmp_path, "delete", retry_max=2), lambda _: next(loads))
    assert [r.kept for r in repetitions] == [False, True, False]
    figure = figure_of(repetitions)
    assert figure is not None and figure.disturbed_count == 1


def test_other_load_is_what_neither_we_nor_the_kernel_used() -> None:
    before = Snapshot(wall=10.0, own=1.0, kernel=5.0, busy=100.0)
    after = Snapshot(wall=12.0, own=2.5, kernel=5.25, busy=102.75)
    assert before.until(after) == Load(2.0, 1.5, 0.25, 1.0)
    assert before.until(after).disturbed
    assert not before.until(replace(after, busy=101.9)).disturbed
    assert before.until(replace(after, busy=101.0)).other_seconds == 0.0


# --- statistics ---


def repetition_of(peer: str, seconds: float, *, kept: bool = True) -> Repetition:
    return Repetition(peer, "put", 0, 0, 100, seconds, 0.0, QUIET, kept=kept)


def test_a_figure_is_median_min_and_max_of_what_was_kept() -> None:
    timed = [repetition_of("lmdb", seconds) for seconds in (1.0, 4.0, 2.0)]
    figure = figure_of([*timed, repetition_of("lmdb", 0.001, kept=False)])
    assert figure is not None
    assert (figure.median, figure.low, figure.high) == (50.0, 25.0, 100.0)
    assert (figure.operations, figure.seconds, figure.repetition_count) == (100, 2.0, 3)


def test_the_best_peer_is_the_fastest_of_those_that_count() -> None:
    figures = figures_of([repetition_of("lmdb", 2.0), repetition_of("plyvel", 1.0), repetition_of("dict", 0.1)])
    assert best_peer("put", ["lmdb", "plyvel", "sqlite3"], figures) == "plyvel"
    assert best_peer("delete", ["lmdb"], figures) is None


@pytest.mark.parametrize("repeat", [1, 3, 7])
def test_rotation_keeps_everyone_and_starts_elsewhere(repeat: int) -> None:
    orders = [rotated("abcdefg", repetition, repeat) for repetition in range(repeat)]
    assert all(sorted(order) == list("abcdefg") for order in orders)
    assert len({order[0] for order in orders}) == repeat


# --- the command ---


def test_the_json_has_facts_and_raw_repetitions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "out.json"
    arguments = f"--keys 200 --syncs 8 --retries 0 --peers dict,sqlite3 --cells put,get-hit,put-fsync --dir {tmp_path}"
    assert main([*arguments.split(), "--json", str(path)]) == 0
    document = json.loads(path.read_text())
    machine = document["machine"]
    assert all(machine[name] for name in ("cpu_model", "core_count", "memory_bytes", "kernel", "python", "packages"))
    assert machine["file_system"]["type"] not in ("", "unknown")
    assert re.fullmatch(r"SQLite [\d.]+", document["peers"]["sqlite3"]["library"])
    kept = [(r["cell"], r["peer"]) for r in document["repetitions"] if r["kept"]]
    assert sorted(kept) == sorted(
        3 * [("put", "dict"), ("put", "sqlite3"), ("get-hit", "dict"), ("get-hit", "sqlite3"), ("put-fsync", "sqlite3")]
    )
    assert all(r["seconds"] > 0 and r["load"]["wall_seconds"] > 0 for r in document["repetitions"])
    assert {limit["name"] for limit in document["limits"]} >= {"fdatasync", "memcpy", "empty put call"}
    assert "single put" in capsys.readouterr().out
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.json"]


@pytest.mark.parametrize(
    ("chosen", "cells"),
    [
        ("--workload tables", ["table-append", "table-last"]),
        ("--cells put@1KiB,put,put-fsync@64KiB", ["put", "put@1KiB", "put-fsync@64KiB"]),
    ],
)
def test_a_workload_or_cells_of_it_are_run(chosen: str, cells: list[str], tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    options = f"{chosen} --peers sqlite3 --keys 200 --syncs 8 --repeat 1 --retries 0 --dir {tmp_path} --json {path}"
    assert main(options.split()) == 0
    assert [cell["name"] for cell in json.loads(path.read_text())["cells"]] == cells


@pytest.mark.parametrize("command", ["--peers kvsvr,dict", "boundary"])
def test_a_kvsvr_that_cannot_be_imported_is_an_error(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is what the benchmark is for: a run of its peers alone would look like a success."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "kvsvr"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "bench.boundary", raising=False)
    monkeypatch.delattr("bench.boundary", raising=False)
    monkeypatch.setitem(sys.modules, "kvsvr", None)
    assert main([*command.split(), "--keys", "100", "--dir", str(tmp_path)]) == 1
    assert "kvsvr cannot be imported: " in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_peers_alone_need_no_kvsvr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kvsvr", None)
    options = (
        f"--peers dict --cells put --keys 100 --syncs 8 --repeat 1 --dir {tmp_path} --json {tmp_path / 'out.json'}"
    )
    assert main(options.split()) == 0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("--cells put,fly", "--cells: fly is none of put,"),
        ("--peers ,", "--peers: nothing is none of kvsvr,"),
        ("--keys 5", "--keys must be at least 100"),
        ("--repeat 0", "--repeat must be at least 1"),
        ("--dir /nowhere/at/all", "--dir: /nowhere/at/all is not a directory"),
        ("--json /nowhere/out.json", "--json: /nowhere is not a directory"),
    ],
)
def test_wrong_usage_is_named(arguments: str, complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments.split(), "--peers", "dict"] if "--peers" not in arguments else arguments.split()) == 2
    assert complaint in capsys.readouterr().err


def test_fsync_on_a_memory_file_system_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bench.cli.file_system_of", lambda _: FileSystem("tmpfs", "tmpfs", "rw"))
    assert main(["--peers", "sqlite3", "--dir", str(tmp_path)]) == 2
    assert "fsync costs nothing" in capsys.readouterr().err


# --- workloads ---


def test_the_table_is_every_cell_with_a_bar_and_the_sizes_that_have_one() -> None:
    usual, large, varying = stages("table", 1000, quick=False)
    assert [cell.name for cell in usual.cells] == [name for name, cell in CELLS.items() if has_bar(cell)]
    assert (usual.setting, varying.setting) == (Setting(1000), Setting(1000, varying=True))
    assert [(cell.name, cell.bar) for cell in varying.cells] == [("full-scan@varying", 0.8)]
    bars = [("space-loaded@1KiB", 1.15), ("space-overwritten@1KiB", 1.6)]
    assert [(cell.name, cell.bar_absolute) for cell in large.cells] == bars


def test_a_quick_run_of_everything_leaves_out_what_says_so() -> None:
    quick, full = ({cell.name for stage in stages("all", 1000, quick=q) for cell in stage.cells} for q in (True, False))
    assert {name for name in CELLS if name not in quick} == {name for name, cell in CELLS.items() if not cell.quick}
    assert full >= set(CELLS)


def test_every_cell_is_in_a_named_workload() -> None:
    named = {cell.name for name in GROUPS for stage in stages(name, 1000, quick=False) for cell in stage.cells}
    assert named >= set(CELLS)


def test_at_large_values_every_bar_is_that_of_the_issue_and_bytes_are_bounded() -> None:
    found = {stage.setting.suffix: stage for stage in stages("sizes", 1_000_000, quick=False)}
    assert set(found) == {"@16B", "@1KiB", "@64KiB", "@varying", "@1KiB-varying", "@64KiB-varying"}
    assert all(cell.bar == 0.8 for size in ("@1KiB", "@64KiB") for cell in found[size].cells)
    assert all(cell.bar is None for cell in found["@16B"].cells)
    assert all(s.setting.key_count * s.setting.value_size <= 1_000_000 * 512 for s in found.values())


def test_a_varying_size_is_known_by_key_and_generation() -> None:
    setting = Setting(500, 1024, varying=True)
    data = Data(setting)
    sizes = [len(value) for value in data.values]
    assert min(sizes) >= 1 and max(sizes) <= 2047 and len(set(sizes)) > 200
    assert abs(sum(sizes) / len(sizes) - 1024) < 100
    data.check(data.inserts, data.values, 0)


@pytest.mark.parametrize("size", [1, 100, 256, 257, 1 << 16, 3 << 20])
def test_a_value_has_its_size_and_belongs_to_one_key_and_generation(size: int) -> None:
    value = value_of(b"k" * 16, 3, size)
    assert len(value) == size and value == value_of(b"k" * 16, 3, size)
    assert size == 1 or value not in (value_of(b"l" * 16, 3, size), value_of(b"k" * 16, 4, size))


def test_zipfian_keys_are_skewed_as_they_should_be() -> None:
    """The hottest of n takes 1 / zeta(n) of all draws: 13 % of a thousand keys at 0.99."""
    zipf = Zipf(1000, random.Random(1))
    draws = [zipf.draw() for _ in range(20_000)]
    assert min(draws) == 0 and max(draws) <= 999
    share = sum(1 / rank**0.99 for rank in range(1, 1001))
    assert draws.count(0) / len(draws) == pytest.approx(1 / share, rel=0.1)
    assert draws.count(1) / len(draws) == pytest.approx(1 / share / 2**0.99, rel=0.15)


def test_a_curve_is_of_the_slowest() -> None:
    timing = timing_of(array("q", [1000] * 990 + [5000] * 9 + [9000]))
    assert timing.curve == {"p50": 1.0, "p90": 1.0, "p99": 5.0, "p99.9": 9.0, "p99.99": 9.0, "max": 9.0}
    assert timing.value == 9.0


def test_less_may_be_better() -> None:
    def latency(peer: str, measured: float) -> Repetition:
        return replace(repetition_of(peer, 1.0), unit="us", better="less", measured=measured)

    figures = figures_of([latency("kvsvr", 2.0), latency("lmdb", 4.0), latency("plyvel", 3.0)])
    assert best_peer("put", ["lmdb", "plyvel"], figures) == "plyvel"
    assert figures["put", "kvsvr"].ahead_of(figures["put", "plyvel"]) == 1.5
    assert figures["put", "plyvel"].unit == "us"
