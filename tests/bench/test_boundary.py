"""The parts of a figure may be trusted: all sides do the same, equally often, and a side that lies is found out."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench import boundary
from bench.boundary import CELLS, Cell, Direct, Do, Empty, HarnessFailed, Loop, Outcome, Side, Through, Work
from bench.cells import CELLS as COMPARED
from bench.cells import MANY
from bench.cli import main
from bench.data import Data, Setting, WrongAnswer
from bench.load import Load

KEY_COUNT, SYNC_COUNT = 250, 2  # Not a multiple of MANY: the last group is short.
QUIET = Load(wall_seconds=1.0, own_seconds=0.9, kernel_seconds=0.0, other_seconds=0.0)


@pytest.fixture(autouse=True)
def no_settling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.boundary.settle", lambda: 0.0)


@pytest.fixture(scope="module")
def workload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("workload")
    boundary.write_workload(directory, Data(Setting(KEY_COUNT)), SYNC_COUNT)
    return directory


@pytest.fixture(scope="module")
def harness() -> Path:
    """Fails, with what cmake said, where it cannot be built: `make test` has cmake and a compiler."""
    return boundary.build_harness()


def test_c_and_python_do_the_same_cells_in_the_same_number(harness: Path, workload: Path, tmp_path: Path) -> None:
    """run_harness compares names, order and counts with the workload, which every Python side reads, too."""
    names = [cell.name for cell in CELLS]
    assert list(boundary.run_harness(harness, workload)) == names
    for side in (Empty(), Direct(), Through()):
        figures = boundary.time_side(side, workload, tmp_path / side.name)
        assert list(figures) == names
        assert all(ns > 0 for ns in figures.values())
    assert list(tmp_path.iterdir()) == []


def test_counts_are_those_of_the_comparison(workload: Path) -> None:
    """As in test_bench: every key once, but for the cells that sync."""
    synced = {"put-fsync": SYNC_COUNT, "put-fsync-8": SYNC_COUNT, "batch-fsync": SYNC_COUNT * MANY}
    assert boundary.key_counts(workload) == {cell.name: synced.get(cell.name, KEY_COUNT) for cell in CELLS}
    assert {cell.name for cell in CELLS} - {"overwrite", "batch"} <= set(COMPARED)
    assert all(COMPARED[cell.name].durable == cell.durable for cell in CELLS if cell.name in COMPARED)


def test_orders_are_those_of_the_comparison(workload: Path) -> None:
    data = Data(Setting(KEY_COUNT))
    read = {cell.name: boundary.read_work(workload, cell) for cell in CELLS}
    assert (read["put"].keys, read["put"].values) == (data.inserts, data.values)
    assert read["get-hit"].keys == read["get-many"].keys == data.reads
    assert (read["get-miss"].keys, read["delete"].keys) == (data.absent, data.deletes)
    assert sorted(read["overwrite"].keys) == sorted(read["batch"].keys) == sorted(data.inserts)
    assert read["overwrite"].keys != read["batch"].keys


def test_every_repetition_of_the_harness_is_a_figure(harness: Path, workload: Path) -> None:
    said = subprocess.run([harness, workload, "2"], capture_output=True, text=True, check=True).stdout
    lines = [json.loads(line) for line in said.splitlines()]
    assert [len(line["ns"]) for line in lines] == [2] * len(CELLS)
    assert all(ns > 0 for line in lines for ns in line["ns"])
    assert not (workload / "store-c").exists()


# --- what is wrong is noticed ---


@pytest.mark.parametrize("name", ["get-hit.values", "get-many.values", "get-miss.keys"])
def test_the_harness_notices_a_wrong_answer(name: str, harness: Path, tmp_path: Path) -> None:
    """Other values than were written; keys that should be absent and are not."""
    boundary.write_workload(tmp_path, Data(Setting(KEY_COUNT)), SYNC_COUNT)
    source = "overwrite.values" if name.endswith(".values") else "put.keys"
    (tmp_path / name).write_bytes((tmp_path / source).read_bytes())
    with pytest.raises(HarnessFailed, match=name.partition(".")[0]):
        boundary.run_harness(harness, tmp_path)
    assert not (tmp_path / "store-c").exists()


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"short")])
def test_the_harness_refuses_half_a_workload(damage: Callable[[Path], Any], harness: Path, tmp_path: Path) -> None:
    boundary.write_workload(tmp_path, Data(Setting(KEY_COUNT)), SYNC_COUNT)
    damage(tmp_path / "overwrite.values")
    with pytest.raises(HarnessFailed, match="files of overwrite are missing or of a wrong size"):
        boundary.run_harness(harness, tmp_path)


def test_the_harness_removes_no_store_that_it_did_not_make(harness: Path, tmp_path: Path) -> None:
    boundary.write_workload(tmp_path, Data(Setting(KEY_COUNT)), SYNC_COUNT)
    (tmp_path / "store-c").mkdir()
    (tmp_path / "store-c" / "precious").touch()
    with pytest.raises(HarnessFailed, match="store-c: File exists"):
        boundary.run_harness(harness, tmp_path)
    assert (tmp_path / "store-c" / "precious").exists()


def forgetful(side: Side, do: Do) -> Side:
    """The side, with one kind of operation that does nothing and answers nothing."""

    def nothing(work: Work, durable: bool = False) -> Loop:
        return list

    name = {Do.PUT: "puts", Do.GET: "gets", Do.GET_MANY: "get_manys", Do.BATCH: "batches", Do.DELETE: "deletes"}[do]
    setattr(side, name, nothing)
    return side


@pytest.mark.parametrize("do", Do)
@pytest.mark.parametrize("make", [Direct, Through])
def test_a_python_side_that_does_nothing_is_no_figure(
    make: Callable[[], Side], do: Do, workload: Path, tmp_path: Path
) -> None:
    with pytest.raises(WrongAnswer):
        boundary.time_side(forgetful(make(), do), workload, tmp_path / "store")
    assert list(tmp_path.iterdir()) == []


def test_a_harness_with_other_cells_is_refused(harness: Path, workload: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fewer: list[Cell] = list(CELLS[:-1])
    monkeypatch.setattr("bench.boundary.CELLS", fewer)
    with pytest.raises(HarnessFailed, match="the C harness did"):
        boundary.run_harness(harness, workload)


def test_without_cmake_and_harness_the_way_out_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.boundary.HARNESS", tmp_path / "kv_harness")
    monkeypatch.setattr("bench.boundary.shutil.which", lambda *_, **__: None)
    with pytest.raises(HarnessFailed, match="make bench-harness"):
        boundary.build_harness()
    (tmp_path / "kv_harness").touch()
    assert boundary.build_harness() == tmp_path / "kv_harness"


# --- figures ---


def test_parts_add_up_to_the_total_within_a_repetition() -> None:
    outcome = Outcome({"put": 10})
    for side, ns in (
        ("C", [100.0, 110.0]),
        ("loop", [10.0, 11.0]),
        ("cffi", [200.0, 190.0]),
        ("Engine", [300.0, 350.0]),
    ):
        for figure in ns:
            outcome.add(side, {"put": figure}, QUIET)
    parts = outcome.parts("put")
    assert parts["cffi would add"] == [90.0, 69.0]
    assert parts["Engine adds"] == [190.0, 229.0]
    del parts["cffi would add"]
    total = parts.pop("total")
    assert [sum(one) for one in zip(*parts.values(), strict=True)] == total == [300.0, 350.0]


def test_the_command_prints_a_table_and_writes_what_it_measured(
    harness: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out.json"
    options = f"--keys {KEY_COUNT} --syncs 8 --repeat 1 --keep --dir {tmp_path} --json {path}"
    assert main(["boundary", *options.split()]) == 0
    document = json.loads(path.read_text())
    assert [cell["name"] for cell in document["cells"]] == [cell.name for cell in CELLS]
    for cell in document["cells"]:
        assert set(cell["ns"]) == {"C", "loop", "cffi", "Engine"}
        assert all(len(ns) == 1 for ns in cell["ns"].values())
        assert cell["parts"]["total"]["median"] == cell["ns"]["Engine"][0]
    said = capsys.readouterr().out
    assert "Engine adds" in said
    (kept,) = [entry for entry in tmp_path.iterdir() if entry != path]
    assert f"by hand: {harness} {kept} 3" in said.replace("\n", "")
    assert sorted(entry.suffix for entry in kept.iterdir()) == 10 * [".keys"] + 8 * [".values"]
