"""The command: what goes in and comes out, exit codes, and the entry point as a process of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

import kvsvr
from kvsvr.ops.cli.group import commands
from kvsvr.ops.records import Record

Run = Callable[..., Result]

KVSVR = Path(sys.executable).with_name("kvsvr")
DOCUMENT = Path(__file__).parents[3] / "docs" / "command-line.md"

CONTENT = st.binary(max_size=30) | st.text(max_size=10).map(lambda text: text.encode())


def process(*arguments: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([str(KVSVR), *map(str, arguments)], capture_output=True, timeout=60, check=False)


# --- get and put ---


def test_a_value_goes_in_and_out(path: Path, run: Run) -> None:
    """As an argument, from stdin, from a file, in hexadecimal; out byte for byte, and nothing else on stdout."""
    file = path.with_name("value")
    file.write_bytes(b"\xff\x00")
    assert run("put", path, "argument", "grün").stdout == ""
    assert run("put", path, "stdin", "-", input=b"a\r\n\xff").exit_code == 0
    assert run("put", path, "file", "--file", file).exit_code == 0
    assert run("put", path, "--hex", "00ff", "0a").exit_code == 0
    assert run("get", path, "argument").stdout_bytes == "grün".encode()
    assert run("get", path, "stdin").stdout_bytes == b"a\r\n\xff"
    assert run("get", path, "file").stdout_bytes == b"\xff\x00"
    assert run("get", path, "--hex", "00ff").stdout == "0a\n"


def test_ttl_and_version_are_told(path: Path, run: Run) -> None:
    """put says the version, get the version and the expiry."""
    version = json.loads(run("put", path, "a", "1", "--ttl", "60", "--durable", "--json").stdout)["version"]
    answer = json.loads(run("get", path, "a", "--json").stdout)
    assert (answer["value"], answer["encoding"], answer["version"]) == ("1", "text", version)
    assert 30 < answer["expires_at"] - time.time() <= 61


def test_an_absent_key_fails(path: Path, run: Run) -> None:
    """Exit code 1 and an empty stdout; null in JSON."""
    run("put", path, "a", "1")
    missing = run("get", path, "b")
    assert (missing.exit_code, missing.stdout) == (1, "")
    assert "b is absent" in missing.stderr
    assert json.loads(run("get", path, "b", "--json").stdout) is None


# --- tables ---


def test_a_table_is_written_read_and_dropped(path: Path, run: Run) -> None:
    """Row by row, from the end, by its changes; the list of tables; exit code 1 for what is absent."""
    assert run("table", path, "inbox", "put", "b", "2").exit_code == 0
    row = run("table", path, "inbox", "append", "1", "--ttl", "60").stdout.strip()
    assert run("table", path, "--", "-x", "put", "--durable", "--json", "--", "-a", "1").exit_code == 0
    assert run("table", path).stdout == "-x\ninbox\n"
    assert run("table", path, "inbox").stdout == run("table", path, "inbox", "rows").stdout
    assert run("table", path, "inbox", "rows", "--prefix", "b").stdout == "b\t2\n"
    assert run("table", path, "696e626f78", "rows", "--hex", "--limit", "1").stdout == f"{row}\t31\n"
    assert json.loads(run("table", path, "inbox", "last", "1", "--json").stdout)["value"] == "2"
    assert run("table", path, "inbox", "get", "b").stdout == "2"
    missing = run("table", path, "inbox", "get", "c")
    assert (missing.exit_code, missing.stdout) == (1, "")
    told = json.loads(run("table", path, "inbox", "len", "--json").stdout)
    assert told["row_count"] == 2
    changes = run("table", path, "inbox", "changes", "--limit", "1")
    assert (changes.stdout, changes.exit_code) == ("put\tb\t2\n", 0)
    assert ", more" in changes.stderr
    assert run("table", path, "inbox", "delete", "b").exit_code == 0
    assert run("table", path, "inbox", "delete", "b").exit_code == 1
    page = json.loads(run("table", path, "inbox", "changes", told["version"], "--json").stdout)
    assert ([one["row"] for one in page["deleted"]], page["complete"]) == (["b"], True)
    assert json.loads(run("table", path, "inbox", "trim", 99, "--json").stdout)["floor"] == page["version"]
    assert run("table", path, "inbox", "changes", 1).exit_code == 1
    assert run("table", path, "inbox", "drop").exit_code == 0
    assert run("table", path, "inbox", "drop").exit_code == 1
    assert run("table", path, "inbox", "len").stdout == "0\n"
    run("put", path, "inbox", "a value")
    assert run("table", path, "inbox").exit_code == 1
    nowhere = path.with_name("nowhere")
    for arguments in (["rows"], ["drop"], ["delete", "a"], ["trim", "1"]):
        assert run("table", nowhere, "inbox", *arguments).exit_code == 2
        assert not nowhere.exists()


def test_what_stands_behind_the_directory_is_no_riddle(path: Path, run: Run) -> None:
    """Options without KEY are those of the list of tables, behind KEY those of its rows; a riddle is usage, not
    silence."""
    with kvsvr.open(path) as db:
        for key in (b"orders", b"\xff", b"-x", b"put"):
            db.table(key).put(b"o1", b"1")
            db.table(key).put(b"p1", b"2")
    listed = [json.loads(line) for line in run("table", path, "--json").stdout.splitlines()]
    assert listed[1:] == [
        {"table": "orders", "encoding": "text"},
        {"table": "put", "encoding": "text"},
        {"table": "/w==", "encoding": "base64-table"},
    ]
    assert run("table", path, "--hex").stdout == "2d78\n6f7264657273\n707574\nff\n"
    assert run("table", path, "--prefix", "o").stdout == "orders\n"
    assert run("table", path, "--hex", "--prefix", "ff", "--json").stdout == json.dumps(listed[3]) + "\n"
    assert run("table", path, "orders", "--prefix", "o").stdout == "o1\t1\n"
    assert json.loads(run("table", path, "orders", "--reverse", "--limit", "1", "--json").stdout)["row"] == "p1"
    assert run("table", path, "--", "-x", "--prefix", "o").stdout == "o1\t1\n"
    assert run("table", path, "--", "put", "--prefix", "o").stdout == "o1\t1\n"
    assert run("table", path, "put", "get", "o1").stdout == "1"
    for arguments in (
        [],
        [path, "--json", "orders"],
        [path, "-x"],
        [path, "--frob"],
        [path, "--reverse"],
        [path, "--"],
        [path, ""],
        [path, "put"],
        [path, "rows", "--json"],
        [path, "get", "o1"],
        [path, "orders", ""],
        [path, "orders", "tables"],
        [path, "orders", "--json", "len"],
        [path, "orders", "o1"],
    ):
        result = run("table", *arguments)
        assert (result.exit_code, result.stdout) == (2, ""), arguments
        assert "Error" in result.stderr
    for behind in ([path], [], [path, "orders"]):
        assert "changes" in run("table", *behind, "--help").stdout


def test_rows_are_set_as_keys_are(path: Path, run: Run) -> None:
    """From stdin or a file, byte for byte, and from one of them only; a put of the key replaces the table."""
    content = bytes(range(256))
    file = path.with_name("file")
    file.write_bytes(content)
    assert run("table", path, "t", "put", "r", "-", input=content).exit_code == 0
    assert run("table", path, "t", "put", "s", "--file", file).exit_code == 0
    assert run("table", path, "t", "append", "-", input=content).exit_code == 0
    assert run("table", path, "t", "append", "--file", file).exit_code == 0
    with kvsvr.open(path, readonly=True) as db:
        assert [value for _, value in db.table(b"t").rows()] == [content] * 4
    for arguments in (["put", "r"], ["put", "r", "v", "--file", file], ["append"], ["append", "v", "--file", file]):
        assert run("table", path, "t", *arguments).exit_code == 2
    absent = run("table", path, "t", "get", "absent", "--json")
    assert (absent.exit_code, absent.stdout) == (1, "null\n")
    assert run("put", path, "t", "v").exit_code == 0
    assert run("table", path).stdout == ""


def test_a_store_with_tables_is_carried_over(path: Path, run: Run) -> None:
    """All rows, their expiries and those of tables, beside keys; a table that has expired is absent afterwards."""
    with kvsvr.open(path) as db:
        db.put(b"key", b"v")
        rows = db.table(b"t")
        rows.put_many((b"%d" % n, b"v%d" % n) for n in range(3000))
        rows.put(b"\xff", b"\xff", ttl=1000)
        rows.append(b"")
        db.table(b"expires").put(b"", b"")
        db.expire(b"expires", 1000)
        db.table(b"\xff").put(b"r", b"1")
        db.table(b"empty").put(b"r", b"")
        db.table(b"empty").delete(b"r")
        before = {key: dict(db.table(key)) for key in db.tables() if key != b"empty"}
    file, copy = path.with_name("file.jsonl"), path.with_name("copy")
    told = json.loads(run("export", path, file, "--json").stdout)
    assert told["exported_count"] == 1 + sum(map(len, before.values()))
    assert json.loads(run("import", copy, file, "--json").stdout)["imported_count"] == told["exported_count"]
    with kvsvr.open(copy) as db:
        assert {key: dict(db.table(key)) for key in db.tables()} == before
        assert dict(db.scan()) == {b"key": b"v"}
        assert 900 < (db.ttl(b"expires") or 0) <= 1000
        found = db.table(b"t").get_versioned(b"\xff")
        assert found is not None
        assert found.expires_at is not None
        assert 900 < found.expires_at - time.time() <= 1000
    file.write_text('{"table": "t", "row": "r", "value": ""}\n{"table": "t", "expires_at": 1}\n')
    assert json.loads(run("import", copy, file, "--json").stdout)["expired_count"] == 1
    with kvsvr.open(copy) as db:
        assert b"t" not in list(db.tables())
    csv = path.with_name("file.csv")
    refused = run("export", path, csv)
    assert (refused.exit_code, csv.exists()) == (2, False)
    assert "JSON lines" in refused.stderr
    to_stdout = run("export", path, "-", "--format", "csv")
    assert (to_stdout.exit_code, to_stdout.stdout_bytes) == (2, b"")
    csv.write_text("as it was")
    assert run("export", path, csv).exit_code == 2
    assert csv.read_text() == "as it was"


@pytest.mark.parametrize(
    "arguments",
    [
        ("get", "STORE", ""),
        ("get", "STORE", "--hex", "xyz"),
        ("get", "NOWHERE", "a"),
        ("put", "STORE", "a"),
        ("put", "STORE", "a", "b", "--ttl", "-1"),
        ("put", "STORE", "a", "b", "--file", __file__),
        ("put", "STORE", "a", "--file", "no such file"),
        ("scan", "STORE", "--prefix", "a", "--start", "b"),
        ("scan", "STORE", "--limit", "-1"),
        ("export", "STORE", "-", "--format", "xml"),
        ("import", "STORE", "no such file"),
        ("frobnicate", "STORE"),
    ],
)
def test_a_wrong_call_is_usage(arguments: tuple[str, ...], path: Path, run: Run) -> None:
    """Exit code 2, a reason on stderr, nothing on stdout."""
    kvsvr.open(path).close()
    places = {"STORE": str(path), "NOWHERE": str(path) + "-not"}
    result = run(*(places.get(argument, argument) for argument in arguments))
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr


# --- scan ---


def test_a_scan_is_a_range_in_order(path: Path, run: Run) -> None:
    """The options are those of db.scan."""
    with kvsvr.open(path) as db:
        db.put_many((b"%03d" % n, b"%d" % n) for n in range(300))
    assert run("scan", path, "--start", "298").stdout == "298\t298\n299\t299\n"
    assert run("scan", path, "--stop", "002", "--keys").stdout == "000\n001\n"
    assert run("scan", path, "--prefix", "29", "--reverse", "--limit", "1").stdout == "299\t299\n"
    assert len(run("scan", path).stdout.splitlines()) == 300


@given(st.dictionaries(CONTENT.filter(bool), CONTENT, max_size=8))
@settings(max_examples=20, deadline=None)
def test_a_scan_loses_nothing(content: dict[bytes, bytes]) -> None:
    """One line an entry, whatever its bytes, and from the line the bytes can be had again."""
    with tempfile.TemporaryDirectory() as place:
        with kvsvr.open(place, sync="none") as db:
            db.put_many(content.items())
        runner = CliRunner()
        lines = runner.invoke(commands, ["scan", place]).stdout_bytes.decode().split("\n")[:-1]
        hexes = runner.invoke(commands, ["scan", place, "--hex"]).stdout.split("\n")[:-1]
    assert len(lines) == len(content)
    assert len(set(lines)) == len(content)
    assert all(line.count("\t") == 1 for line in lines)
    assert [tuple(map(bytes.fromhex, line.split("\t"))) for line in hexes] == sorted(content.items())


# --- export and import ---


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv"])
@given(
    content=st.dictionaries(CONTENT.filter(bool), st.tuples(CONTENT, st.none() | st.integers(100, 10**9)), max_size=8)
)
@settings(max_examples=15, deadline=None)
def test_a_store_comes_back(name: str, content: dict[bytes, tuple[bytes, int | None]]) -> None:
    """Random bytes with and without expiry: out, in, and the same."""
    runner = CliRunner()
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        with kvsvr.open(place / "a", sync="none") as db:
            for key, (value, ttl) in content.items():
                db.put(key, value, ttl=ttl)
        for command, store in (("export", "a"), ("import", "b")):
            assert runner.invoke(commands, [command, str(place / store), str(place / name)]).exit_code == 0
        with kvsvr.open(place / "a", readonly=True) as old, kvsvr.open(place / "b", readonly=True) as new:
            assert list(new.scan()) == list(old.scan())
            for key in content:
                before, after = old.get_versioned(key), new.get_versioned(key)
                assert before is not None
                assert after is not None
                assert (after.expires_at is None) == (before.expires_at is None)
                assert abs((after.expires_at or 0) - (before.expires_at or 0)) < 0.5


def test_many_groups_come_back(path: Path, run: Run) -> None:
    """More than one group by count and by size, and a value beyond any buffer's default."""
    content = {b"%06d" % n: b"x" * (n % 50) for n in range(20_000)} | {b"large": os.urandom(3 << 20)}
    with kvsvr.open(path, sync="none") as db:
        db.put_many(content.items())
    for file in (path.with_name("x.csv"), path.with_name("x.jsonl")):
        copy = path.with_name(file.suffix[1:])
        assert json.loads(run("export", path, file, "--json").stdout)["exported_count"] == len(content)
        assert json.loads(run("import", copy, file, "--json").stdout)["imported_count"] == len(content)
        with kvsvr.open(copy, readonly=True) as db:
            assert dict(db.scan()) == content


def test_bad_input_leaves_what_was_before(path: Path, run: Run) -> None:
    """And says where it is; with --skip-errors what is behind it comes, too, and the exit code is 3."""
    lines = b'{"key": "a", "value": "1"}\nnonsense\n{"key": "b", "value": "2"}\n'
    stopped = run("import", path, "-", input=lines)
    assert stopped.exit_code == 1
    assert "line 2, column 1" in stopped.stderr
    assert run("scan", path).stdout == "a\t1\n"
    skipped = run("import", path, "-", "--skip-errors", "--json", input=lines)
    assert skipped.exit_code == 3
    answer = json.loads(skipped.stdout)
    assert (answer["imported_count"], answer["skipped_count"]) == (2, 1)
    assert answer["errors"][0]["line"] == 2
    assert run("scan", path, "--keys").stdout == "a\nb\n"


def test_a_row_of_what_is_no_table_has_a_line(path: Path, run: Run) -> None:
    """Whether the value was there or came with the input; the value stays. A value over a table replaces it."""
    with kvsvr.open(path) as db:
        db.put(b"old", b"v")
        db.table(b"t").put(b"r", b"1")
    lines = [
        {"table": "u", "row": "r", "value": "2"},
        {"table": "old", "row": "r", "value": "2"},
        {"key": "new", "value": "v"},
        {"table": "new", "row": "r", "value": "2"},
        {"table": "new", "expires_at": 1},
        {"key": "t", "value": "v"},
        {"table": "u", "row": "s", "value": "2"},
    ]
    content = "\n".join(map(json.dumps, lines)).encode()
    result = run("import", path, "-", input=content)
    assert result.exit_code == 1
    assert "line 2, column 1: b'old' holds a value" in result.stderr
    assert run("table", path).stdout == "t\nu\n"
    result = run("import", path, "-", "--skip-errors", "--json", input=content)
    told = json.loads(result.stdout)
    assert (result.exit_code, told["imported_count"], told["skipped_count"]) == (3, 4, 3)
    assert [error["line"] for error in told["errors"]] == [2, 4, 5]
    with kvsvr.open(path, readonly=True) as db:
        assert dict(db.scan()) == {b"old": b"v", b"new": b"v", b"t": b"v"}
        assert {key: dict(db.table(key)) for key in db.tables()} == {b"u": {b"r": b"2", b"s": b"2"}}


def test_the_last_line_of_a_key_counts(path: Path, run: Run) -> None:
    """With an expiry or without, and one that has passed leaves the key absent."""
    run("put", path, "gone", "1")
    lines = [
        {"key": "a", "value": "1", "expires_at": time.time() + 100},
        {"key": "a", "value": "2"},
        {"key": "gone", "value": "3", "expires_at": 1},
    ]
    text = "\n".join(map(json.dumps, lines)).encode()
    answer = json.loads(run("import", path, "-", "--json", input=text).stdout)
    assert (answer["imported_count"], answer["expired_count"]) == (1, 1)
    with kvsvr.open(path, readonly=True) as db:
        assert dict(db.scan()) == {b"a": b"2"}
        assert db.ttl(b"a") is None


def test_an_export_that_fails_leaves_what_was_there(path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither half a file, nor a new one in place of the old."""
    run("put", path, "a", "1")
    file = path.with_name("x.jsonl")
    file.write_text("old")

    def fail(_: kvsvr.Engine) -> Iterator[Record]:
        yield Record(b"a", b"1")
        raise kvsvr.CorruptionError(str(path), "a bad record", (1, 4096))

    monkeypatch.setattr("kvsvr.ops.cli.export.dump", fail)
    assert run("export", path, file).exit_code == 4
    assert sorted(one.name for one in path.parent.iterdir()) == ["store", "x.jsonl"]
    assert file.read_text() == "old"


def test_an_export_to_nowhere_fails(path: Path, run: Run) -> None:
    """What the system says, told as any other error."""
    kvsvr.open(path).close()
    target = path.with_name("not there") / "x"
    result = run("export", path, target, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stderr)["error"] == "FileNotFoundError"


def test_stats_are_those_of_the_store(path: Path, run: Run) -> None:
    """A name and a figure a line, or an object."""
    run("put", path, "a", "1")
    assert "key_count\t1\n" in run("stats", path).stdout
    assert json.loads(run("stats", path, "--json").stdout)["key_count"] == 1


# --- as a process ---


def test_readers_work_beside_a_writer(path: Path) -> None:
    """get, scan and export do; put is told who is there, with exit code 1 and no traceback."""
    with kvsvr.open(path) as db:
        db.put(b"a", b"1")
        assert process("get", path, "a").stdout == b"1"
        assert process("scan", path).stdout == b"a\t1\n"
        assert b'"key": "a"' in process("export", path, "-").stdout
        refused = process("put", path, "a", "2", "--json")
        assert refused.returncode == 1
        answer = json.loads(refused.stderr)
        assert answer["error"] == "LockedError"
        assert str(os.getpid()) in answer["message"]


def test_a_reader_that_goes_is_no_error(path: Path) -> None:
    """`kvsvr scan | head`: no traceback, no complaint at exit."""
    with kvsvr.open(path, sync="none") as db:
        db.put_many((b"%06d" % n, b"x" * 100) for n in range(20_000))
    with subprocess.Popen([KVSVR, "scan", path], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as scan:
        assert scan.stdout is not None
        assert scan.stderr is not None
        scan.stdout.readline()
        scan.stdout.close()
        assert scan.stderr.read() == b""


def test_keys_that_are_no_text_pass_the_shell(path: Path) -> None:
    """An argument is bytes on this system."""
    assert process("put", path, os.fsdecode(b"\xff"), "1").returncode == 0
    with kvsvr.open(path, readonly=True) as db:
        assert db.get(b"\xff") == b"1"


def test_without_the_extra_the_command_says_so() -> None:
    """As with a missing click: what to install, not a traceback."""
    code = "import sys; sys.modules['click'] = None; from kvsvr.ops.cli import main; main()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "pip install 'kvsvr[cli]'" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_document_tells_the_truth(tmp_path: Path) -> None:
    """Every example of docs/command-line.md, in its order: exactly that output, but for `...`."""
    environment = os.environ | {"PATH": f"{KVSVR.parent}:{os.environ['PATH']}"}
    examples = re.findall(r"^    \$ (.*)\n((?:    (?!\$ ).*\n)*)", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(examples) >= 10
    for command, expected in examples:
        result = subprocess.run(command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
        told = result.stdout if result.returncode == 0 else f"[{result.returncode}] {result.stderr}"
        wanted = re.sub("^    ", "", expected, flags=re.MULTILINE)
        pattern = re.escape(wanted.strip("\n")).replace(re.escape("..."), "(.|\n)*")
        assert re.fullmatch(pattern, told.strip("\n")), (command, told, wanted)


# --- verify, backup and restore ---


def test_verify_tells_sound_from_damaged(path: Path, run: Run) -> None:
    """Exit code 0 or 4; the file is named; what can be read is salvaged."""
    with kvsvr.open(path) as db:
        db.put_many((b"%d" % n, b"v" * 100) for n in range(100))
    assert run("verify", path).exit_code == 0
    assert json.loads(run("verify", path, "--json").stdout)["ok"] is True
    segment = next((path / "flow").iterdir())
    content = bytearray(segment.read_bytes())
    content[4096 + 150] ^= 1
    segment.write_bytes(content)
    result = run("verify", path, "--salvage", path.with_name("saved"))
    assert (result.exit_code, result.stdout) == (4, "")
    assert segment.name in result.stderr
    assert json.loads(run("verify", path, "--json").stdout)["damages"][0]["file"] == f"flow/{segment.name}"
    with kvsvr.open(path.with_name("saved"), readonly=True) as db:
        assert len(db) == 99


def test_names_that_are_lost_are_said_to_be(path: Path, run: Run) -> None:
    """A damaged record cannot say what it was of. A backup of it is refused, as its help says."""
    with kvsvr.open(path) as db:
        db.put(b"a", b"2" * 80, durable=True)
        db.put(b"b", b"3" * 80, durable=True)
    segment = min((path / "flow").iterdir())
    content = segment.read_bytes()
    segment.write_bytes(content.replace(b"22", b"23", 1))
    result = run("verify", path)
    assert result.exit_code == 4
    assert "1 of these are records that lost their names" in result.stderr
    assert "verify" in run("backup", "--help").stdout
    assert run("put", path, "c", "4").exit_code == 0
    assert run("backup", path, path.with_name("backup")).exit_code == 4


def test_verify_notes_a_catalog_that_is_of_no_use(path: Path, run: Run) -> None:
    kvsvr.open(path).close()
    (path / "catalog.mdb").write_bytes(b"nonsense")
    result = run("verify", path)
    assert result.exit_code == 0
    assert "catalog" in result.stderr


def test_a_backup_is_restored(path: Path, run: Run) -> None:
    """And is refused where something is already (2), is missing (2), or was damaged (4)."""
    run("put", path, "a", "1")
    copy, restored = path.with_name("copy"), path.with_name("restored")
    assert json.loads(run("backup", path, copy, "--json").stdout)["file_count"] >= 1
    assert run("backup", path, copy).exit_code == 2
    assert run("restore", copy, restored).exit_code == 0
    assert run("get", restored, "a").stdout == "1"
    assert run("restore", path, path.with_name("other")).exit_code == 2
    (copy / "backup.json").write_text("{")
    assert run("restore", copy, path.with_name("other")).exit_code == 4
