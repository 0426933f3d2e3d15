"""What `kvsvr top` shows: rates from reports as replicas write them, and one picture of them."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from kvsvr.node.report import State
from kvsvr.ops.cli import top
from kvsvr.ops.cli.group import commands
from kvsvr.ops.place import Place
from kvsvr.ops.rates import Rater
from tests.ops.test_status import place, report, write

__all__ = ["place"]


def figures(commands: int) -> dict[str, int]:
    return {"shards_owned": 21, "clients": 1, "commands": commands, "received_size": 100 * commands}


def test_rates_are_what_came_between_two_reports(place: Place) -> None:
    first = report(place, 1)
    rater = Rater(place)
    write(place, replace(first, figures=figures(1000)))
    assert not rater.look().rates[1].each_second
    assert not rater.look().rates[1].each_second
    write(place, replace(first, figures=figures(4000), time=first.time + 2))
    frame = rater.look()
    assert frame.rates[1].each_second["commands"] == 1500
    assert frame.rates[1].each_second["received_size"] == 150_000
    assert rater.look().rates[1].each_second["commands"] == 1500
    assert list(frame.commands) == [1500]
    assert frame.rates[2].each_second.keys() == set()
    assert frame.rates[2].cpu is None
    assert (frame.rates[1].memory_size or 0) > 0


def test_who_was_started_again_counts_from_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    first = report(place, 1)
    rater = Rater(place)
    write(place, replace(first, figures=figures(1000)))
    rater.look()
    monkeypatch.setattr("kvsvr.ops.status._serves", lambda pid, replica: True)
    write(place, replace(first, pid=os.getppid(), figures=figures(5), time=first.time + 1))
    assert rater.look().rates[1].each_second.keys() == set()
    write(place, replace(first, pid=os.getppid(), figures=figures(8), time=first.time + 2))
    assert rater.look().rates[1].each_second["commands"] == 3


def test_one_look_is_printed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def later(seconds: float) -> None:
        write(place, *(replace(report(place, node), figures=figures(2000), time=2e9) for node in (1, 2)))

    write(place, *(replace(report(place, node), figures=figures(500), time=2e9 - 1) for node in (1, 2)))
    monkeypatch.setattr("kvsvr.ops.cli.top.time.sleep", later)
    monkeypatch.setenv("COLUMNS", "200")
    result = CliRunner().invoke(top.command, ["--dir", str(place.directory), "--once"])
    assert result.exit_code == 3
    assert "degraded: 2 of 3 serve" in result.output
    assert result.output.count("1,500") == 2
    assert "3,000 commands/s  █" in result.output
    assert str(State.DOWN) in result.output


def test_a_line_is_as_high_as_its_highest() -> None:
    assert top.line([0, 1, 2, 4]) == "▁▃▅█"
    assert top.line([0, 0]) == "▁▁"
    assert top.line([]) == ""


def test_no_set_is_usage(tmp_path: Path) -> None:
    result = CliRunner().invoke(commands, ["top", "--dir", str(tmp_path)])
    assert result.exit_code == 2
    assert "there is no set at" in result.output
