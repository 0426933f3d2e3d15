"""The benchmark may be trusted: peers do what a dict does, figures are right, lies and noise are noticed."""

import itertools
import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from bench.adapters import ADAPTERS, Adapter, NotInstalled, Reads, Writes
from bench.adapters.dict import DictAdapter
from bench.cells import CELLS, Cell, Work, load
from bench.cli import main
from bench.data import Data, Setting, WrongAnswer, check_absent, value_of
from bench.load import Load, Snapshot
from bench.machine import FileSystem
from bench.results import Repetition, best_peer, figure_of, figures_of, rotated
from bench.runner import Outcome, Plan, run

QUIET = Load(wall_seconds=1.0, own_seconds=0.9, kernel_seconds=0.0, other_seconds=0.0)
NOISY = replace(QUIET, other_seconds=0.9)


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
    return Plan({"dict": adapter}, [CELLS[name] for name in cells.split()], data, directory, **numbers)


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


@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS.keys())
@pytest.mark.parametrize("name", ADAPTERS)
def test_every_peer_passes_every_cell(name: str, cell: Cell, data: Data, tmp_path: Path) -> None:
    adapter = installed(name)
    if cell.durable and not adapter.is_durable:
        pytest.skip("memory only")
    adapter.open(tmp_path, durable=cell.durable, key_count=data.key_count)
    if cell.name != "put":
        load(adapter, data)
    timing = cell.run(adapter, Work(data, generation=1, sync_count=16, directory=tmp_path))
    adapter.close()
    assert timing.operations == (16 if cell.name.startswith("put-fsync") else data.key_count)
    assert timing.seconds > 0


# --- lies are noticed ---


class Lying(DictAdapter):
    """Gets that answer with the value of another key, from the hundred-first on."""

    @contextmanager
    def reads(self) -> Iterator[Reads]:
        with super().reads() as honest:
            another = next(iter(self._items.values()))
            calls = itertools.count(1)

            def get(key: bytes) -> bytes | None:
                return another if next(calls) > 100 else honest.get(key)

            yield replace(honest, get=get, get_many=lambda keys: [get(key) for key in keys])


class Forgetful(DictAdapter):
    """Says it wrote, and did not."""

    @contextmanager
    def writes(self) -> Iterator[Writes]:
        with super().writes() as honest:
            yield replace(honest, put=lambda key, value: None, delete=lambda key: None)


@pytest.mark.parametrize(
    ("adapter", "cell"),
    [(Lying, "get-hit"), (Lying, "get-miss"), (Lying, "get-many"), (Forgetful, "put"), (Forgetful, "delete")],
)
def test_a_wrong_answer_is_a_failure_not_a_figure(
    adapter: Callable[[], Adapter], cell: str, data: Data, tmp_path: Path
) -> None:
    (repetition,) = run_plan(plan_of(data, tmp_path, cell, adapter))
    assert repetition.error is not None and repetition.error.startswith("WrongAnswer")
    assert figures_of([repetition]) == {}


def test_a_failing_peer_does_not_stop_the_next_cell(data: Data, tmp_path: Path) -> None:
    first, second = run_plan(plan_of(data, tmp_path, "put get-hit", Forgetful))
    assert first.error is not None
    assert second.error is None and second.operations == data.key_count


def no_space() -> Iterator[Writes]:
    raise OSError("no space")


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
    options = f"--peers dict --cells put --keys 100 --dir {tmp_path} --json {tmp_path / 'out.json'}"
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
