"""What is said of a set, from reports as replicas write them: ages, processes, and how far one is behind another."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from kvsvr.node.report import Report, State
from kvsvr.ops import status
from kvsvr.ops.place import Place, find, free_base, make, make_one
from kvsvr.ops.status import Health, look

NOW = time.time()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A set of three; a process serves whenever there is one of that number."""
    monkeypatch.setattr(status, "_serves", lambda pid, replica: pid == os.getpid())
    return make(tmp_path / "set", 3, free_base(3))


def report(place: Place, node: int) -> Report:
    return Report(
        node=node,
        pid=os.getpid(),
        address="a",
        peer_address="b",
        started=NOW - 60,
        time=NOW,
        state=State.SERVING,
        figures={"shards_owned": 20 + node, "clients": 1, "links": 2, "commands": 5, "shards_voting": 64},
        commits=[10] * 64,
        applied=[10] * 64,
        owners=[1] * 64,
    )


def write(place: Place, *reports: Report) -> None:
    for one in reports:
        one.write(place.replica(one.node).status_file)


def test_a_set_that_serves_is_healthy(place: Place) -> None:
    write(place, *(report(place, node) for node in (1, 2, 3)))
    found = look(place, NOW + 0.5)
    assert found.state is Health.HEALTHY
    assert [(one.id, one.pid, one.state, one.shards, one.lag) for one in found.replicas] == [
        (node, os.getpid(), State.SERVING, 20 + node, 0) for node in (1, 2, 3)
    ]
    assert found.launcher is None


def test_what_one_has_not_applied_is_its_lag(place: Place) -> None:
    """Against the highest commit that anybody knows, shard by shard; who is ahead in one makes up for no other."""
    late = replace(report(place, 3), commits=[4] * 63 + [12], applied=[4] * 63 + [11])
    write(place, report(place, 1), report(place, 2), late)
    assert [one.lag for one in look(place, NOW).replicas] == [2, 2, 6 * 63 + 1]


def test_silence_of_a_living_process_is_told(place: Place) -> None:
    write(place, report(place, 1), report(place, 2), replace(report(place, 3), time=NOW - 60))
    found = look(place, NOW)
    assert (found.state, found.replicas[2].state, found.replicas[2].shards) == (Health.DEGRADED, State.STUCK, 0)
    assert found.replicas[2].age == pytest.approx(60, abs=1)


def test_a_long_replay_is_no_silence(place: Place) -> None:
    write(place, replace(report(place, 1), time=NOW - 60, state=State.STARTING))
    assert look(place, NOW).replicas[0].state is State.STARTING


def test_a_process_that_is_gone_is_down_unless_it_said_that_it_ends(place: Place) -> None:
    gone = [replace(report(place, node), pid=0) for node in (1, 2, 3)]
    failed = replace(gone[2], state=State.FAILED, error="no disk")
    write(place, gone[0], replace(gone[1], state=State.STOPPED), failed)
    found = look(place, NOW)
    assert [one.state for one in found.replicas] == [State.DOWN, State.STOPPED, State.FAILED]
    assert [one.error for one in found.replicas] == ["", "", "no disk"]
    assert {one.pid for one in found.replicas} == {None}
    assert found.state is Health.STOPPED


def test_a_minority_that_serves_is_no_set(place: Place) -> None:
    write(place, report(place, 1), replace(report(place, 2), state=State.WAITING))
    assert look(place, NOW).state is Health.UNAVAILABLE


def test_a_report_that_cannot_be_read_is_none(place: Place) -> None:
    for text in ("", "{", "[]", '{"node": 1}', '{"state": "happy"}'):
        place.replica(1).status_file.write_text(text)
        assert Report.read(place.replica(1).status_file) is None
        assert look(place, NOW).replicas[0].state is State.DOWN
    one = report(place, 1)
    write(place, one)
    assert Report.read(place.replica(1).status_file) == one


def test_a_set_is_not_whole_before_the_new_one_votes(place: Place) -> None:
    """Who is to go does not count, and who takes its place only learns at first."""
    make_one(place, place.replica(2), keep_ports=True)
    now = find(place.directory)
    learning = replace(report(now, 4), figures={**report(now, 4).figures, "shards_owned": 0, "shards_voting": 63})
    write(now, report(now, 1), report(now, 3), learning)
    found = look(now, NOW)
    assert found.state is Health.DEGRADED
    assert [(one.id, one.leaving, one.voting) for one in found.replicas] == [
        (1, False, 64),
        (2, True, 0),
        (3, False, 64),
        (4, False, 63),
    ]
    write(now, report(now, 4))
    assert look(now, NOW).state is Health.HEALTHY
