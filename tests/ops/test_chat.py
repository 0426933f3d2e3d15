"""kvsvr chat import: generated logs, and real ones where they are; and that a rule which is broken is noticed."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest

from kvsvr.ops import chat_check, chat_log
from kvsvr.services import groups
from kvsvr.services.sync import Spans
from tests.ops.conftest import Run

ROOT = Path(__file__).parents[2]
REAL = sorted(Path(os.environ.get("KVSVR_IRC", ROOT.parent / "shared" / "data" / "irc")).glob("*.raw.txt"))
NICKS = ["ann", "[bob]", "c{a}t", "d|an", "eve^", "f_f", "%7B", "gus"]


def generated(seed: int, count: int) -> str:
    """A log as channels write them: who comes twice, goes without having come, and talks while away, too."""
    rng, lines = random.Random(seed), []
    for number in range(count):
        nick, other, time = rng.choice(NICKS), rng.choice(NICKS), f"[{number // 60 % 24:02}:{number % 60:02}]"
        kind = rng.randrange(12)
        if kind == 0:
            lines.append(f"=== {nick} [~x@example.org]  has joined #test")
        elif kind == 1:
            lines.append(f'=== {nick} [n=y@example.org] has left #test ["so long [x]"]')
        elif kind == 2:
            lines.append(f"=== {nick} is now known as {other}")
        elif kind == 3:
            lines.append(rng.choice([f"{time}  * {nick} waves {number}", f"=== {nick} waves {number}"]))
        else:
            lines.append(f"{time} <{nick}> {rng.choice(['', '<x> ', '=== '])}line {number}")
    return "\n".join([*lines, "no line of a log", "[12:00]", ""])


@pytest.fixture
def log(tmp_path: Path) -> Path:
    file = tmp_path / "test.txt"
    file.write_text(generated(1, 300))
    return file


@pytest.mark.parametrize("fan_out_max", [500, 3, 1])
@pytest.mark.parametrize("seed", range(4))
def test_each_has_what_the_rule_says(run: Run, tmp_path: Path, seed: int, fan_out_max: int) -> None:
    """Whatever the size of groups, however far the queue lags behind joins and leaves."""
    file = tmp_path / "test.txt"
    file.write_text(generated(seed, 300))
    done = run("chat", "import", "--json", "--seed", seed, "--fan-out-max", fan_out_max, file)
    report = json.loads(done.stdout)
    assert (done.exit_code, report["wrong"]) == (0, [])
    assert report["messages"] > 200 and report["checked"] == report["devices"] > 5 and report["late"] > 0
    assert report["given"] >= report["fan_out"] > 0 and report["leaves"] > 10


@pytest.mark.skipif(not REAL, reason="no chat logs here")
@pytest.mark.parametrize("file", REAL[1:20:6], ids=lambda file: file.name)
def test_real_logs(run: Run, file: Path) -> None:
    done = run("chat", "import", "--json", "--fan-out-max", 60, file)
    report = json.loads(done.stdout)
    assert (done.exit_code, report["wrong"]) == (0, [])
    assert report["messages"] > 500


def test_logs_one_after_the_other(run: Run, tmp_path: Path) -> None:
    """Into one store, with the same users and devices in several groups."""
    files = [tmp_path / f"{number}.txt" for number in range(3)]
    for number, file in enumerate(files):
        file.write_text(generated(number, 150))
    report = json.loads(run("chat", "import", "--json", "--fan-out-max", 3, *files).stdout)
    assert report["wrong"] == [] and report["files"] == 3 and report["checked"] > report["devices"]


@pytest.mark.skipif(not REAL, reason="no chat logs here")
def test_both_readers_read_alike() -> None:
    """Two ways of reading a line, one result, for each line of all the logs there are."""
    names = {"said": "say", "came": "come", "went": "go", "renamed": "name"}
    for file in REAL:
        read = [(names[e.what], e.nick, "" if e.what in ("came", "went") else e.text) for e in chat_log.read(file)]
        assert read == chat_check.lines_of(file)
        assert len(read) > 1000


def test_a_broken_rule_is_noticed(run: Run, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Members of the moment of delivery get what is delivered: the mistake that the epochs are there for."""

    def seen(row: bytes, spans: Spans) -> bool:
        return groups.is_open(spans)

    monkeypatch.setattr(groups, "seen", seen)
    done = run("chat", "import", log)
    assert done.exit_code == 1
    assert "wrong: " in done.stderr and "differ" in done.stdout


def test_into_a_directory(run: Run, log: Path, tmp_path: Path) -> None:
    """Which is kept; the same file a second time is refused, and so is one that is no log."""
    assert run("chat", "import", "--dir", tmp_path / "chat", log).exit_code == 0
    listed = run("table", tmp_path / "chat")
    assert "{g/#test@test}:members" in listed.stdout
    again = run("chat", "import", "--dir", tmp_path / "chat", log)
    assert again.exit_code == 2 and "imported here before" in again.stderr
    other = tmp_path / "other.txt"
    other.write_text("nothing\n")
    assert run("chat", "import", other).exit_code == 2
    assert run("chat", "import", "--dir", tmp_path / "x", "--connect", "localhost:1", log).exit_code == 2
