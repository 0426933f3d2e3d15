"""`kvsvr launch` and what goes with it, as processes: a set is made, watched, killed, left alone, stopped, resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from kvsvr.ops.launcher import STOP_S, command
from kvsvr.ops.place import free_base
from tests.cluster.conftest import until

LONG_S = 90


class Set:
    """One set of a directory, through the command alone."""

    def __init__(self, directory: Path, base: int) -> None:
        self.directory = directory
        self.base = base

    def run(self, *arguments: object, code: int = 0) -> str:
        """What it says on stdout."""
        done = subprocess.run(
            command(*map(str, arguments), "--dir", str(self.directory)),
            capture_output=True,
            text=True,
            timeout=LONG_S,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    def launch(self, *arguments: object) -> dict[str, Any]:
        answer = json.loads(self.run("launch", "--detach", "--json", *arguments))
        assert isinstance(answer, dict)
        return answer

    def foreground(self, *arguments: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command("launch", "--dir", str(self.directory), "--json", *map(str, arguments)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def status(self) -> dict[str, Any]:
        done = subprocess.run(
            command("status", "--json", "--dir", str(self.directory)), capture_output=True, timeout=LONG_S, check=False
        )
        answer = json.loads(done.stdout)
        assert done.returncode == (0 if answer["state"] == "healthy" else 3)
        assert isinstance(answer, dict)
        return answer

    def states(self) -> list[str]:
        return [str(one["state"]) for one in self.status()["replicas"]]

    def pid(self, node: int) -> int:
        return next(int(one["pid"]) for one in self.status()["replicas"] if one["id"] == node)

    def client(self, node: int) -> redis.Redis:
        return redis.Redis(port=self.base + node - 1, socket_timeout=10)


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Set]:
    """A directory for a set, stopped at the end whatever came of it."""
    one = Set(tmp_path / "set", free_base(5))
    yield one
    if one.directory.exists():
        one.run("stop")


def gone(pid: int) -> bool:
    """Without having been waited for it may still be there as a name."""
    try:
        return " Z " in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True


@pytest.mark.parametrize("count", [1, 3, 5])
def test_a_set_is_launched_stopped_and_resumed(nodes: Set, count: int) -> None:
    """When launch comes back every replica serves and answers; what was written is there after a stop."""
    answer = nodes.launch("--replicas", count, "--port", nodes.base)
    assert answer["state"] == "healthy"
    assert [one["address"] for one in answer["replicas"]] == [f"127.0.0.1:{nodes.base + one}" for one in range(count)]
    assert sum(one["shards"] for one in answer["replicas"]) == answer["shard_count"] > 0
    for node in range(1, count + 1):
        with nodes.client(node) as client:
            assert client.set(f"key:{node}", node)
    pids = [one["pid"] for one in nodes.status()["replicas"]]
    nodes.run("launch", "--detach", code=1)  # It runs already.
    nodes.run("stop")
    assert all(gone(pid) for pid in pids)
    assert nodes.states() == ["stopped"] * count
    nodes.run("stop")
    assert nodes.launch()["state"] == "healthy"
    with nodes.client(count) as client:
        assert [client.get(f"key:{node}") for node in range(1, count + 1)] == [b"%d" % n for n in range(1, count + 1)]


def test_what_dies_is_started_again_and_what_hangs_is_seen(nodes: Set) -> None:
    nodes.launch("--port", nodes.base)
    pid = nodes.pid(2)
    nodes.run("kill", 2)
    until(lambda: nodes.status()["state"] == "healthy" and nodes.pid(2) != pid, LONG_S)
    told = nodes.status()["replicas"][1]
    assert (told["restarts"], told["error"]) == (1, "killed by signal 9")
    pid = nodes.pid(3)
    os.kill(pid, signal.SIGSTOP)
    until(lambda: nodes.states() == ["serving", "serving", "stuck"], LONG_S)
    status = nodes.status()
    assert status["state"] == "degraded"
    assert [one["shards"] for one in status["replicas"]][2] == 0
    with nodes.client(1) as client:
        assert client.set("key", "in the meantime")
    os.kill(pid, signal.SIGCONT)
    until(lambda: nodes.states() == ["serving"] * 3, LONG_S)
    os.kill(nodes.pid(1), signal.SIGSTOP)
    nodes.run("stop")  # Nor does it keep a stop waiting.


def test_a_set_without_a_majority_says_so(nodes: Set) -> None:
    nodes.launch("--port", nodes.base)
    for node in (1, 2):
        os.kill(nodes.pid(node), signal.SIGSTOP)
    until(lambda: nodes.status()["state"] == "unavailable", LONG_S)
    began = time.monotonic()
    nodes.run("stop")  # The two are woken, and end by themselves.
    assert time.monotonic() - began < STOP_S


def test_ctrl_c_ends_all_and_logs_are_followed(nodes: Set) -> None:
    """In the foreground it says what replicas log; Ctrl-C of a terminal reaches the launcher alone, as does SIGTERM."""
    for number in (signal.SIGINT, signal.SIGTERM):
        process = nodes.foreground(*(["--port", nodes.base] if number == signal.SIGINT else []), "--verbose")
        assert process.stdout is not None
        status = json.loads(process.stdout.readline())
        assert status["state"] == "healthy"
        os.killpg(process.pid, number)
        _, told = process.communicate(timeout=LONG_S)
        assert process.returncode == 0, told
        assert "1 | " in told and "link_up peer=2" in told and "left shards_kept=" in told
        assert all(gone(one["pid"]) for one in status["replicas"])
        assert nodes.states() == ["stopped"] * 3


def test_what_no_restart_mends_is_given_up_loudly(nodes: Set) -> None:
    """A replica whose data are damaged: the others go on without it, and say so."""
    nodes.launch("--port", nodes.base)
    nodes.run("stop")
    for file in (nodes.directory / "2" / "data" / "flow").iterdir():
        file.write_bytes(b"something else" * 1000)
    process = nodes.foreground()
    assert process.stdout is not None
    status = json.loads(process.stdout.readline())
    assert status["state"] == "degraded"
    assert status["replicas"][1]["given_up"]
    told_of = nodes.status()["replicas"][1]
    assert told_of["state"] == "failed" and "data is damaged: flow/" in told_of["error"]
    with nodes.client(1) as client:
        assert client.set("key", "value")
    process.terminate()
    _, told = process.communicate(timeout=LONG_S)
    assert "replica 2 ended with 4 (its disk failed, or its data are damaged)" in told and "GIVEN UP" in told
    assert process.returncode == 3


def test_replicas_outlive_a_launcher_that_was_killed_and_the_next_one_takes_care(nodes: Set) -> None:
    launcher = nodes.launch("--port", nodes.base)["launcher"]
    with nodes.client(1) as client:
        assert client.set("key", "value")
        os.kill(launcher, signal.SIGKILL)
        until(lambda: nodes.status()["launcher"] is None, LONG_S)
        assert nodes.states() == ["serving"] * 3
        assert client.get("key") == b"value"
    before = [nodes.pid(node) for node in (1, 2, 3)]
    assert nodes.launch()["state"] == "healthy"
    assert not set(before) & {nodes.pid(node) for node in (1, 2, 3)}
    os.kill(nodes.status()["launcher"], signal.SIGKILL)
    nodes.run("stop")
    assert nodes.states() == ["stopped"] * 3


def test_a_wrong_call_is_usage(nodes: Set, tmp_path: Path) -> None:
    nodes.run("status", code=2)
    nodes.run("kill", 1, code=2)
    nodes.run("launch", "--replicas", 4, code=2)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "something").touch()
    nodes.run("launch", code=2)
    (tmp_path / "set" / "something").unlink()
    (tmp_path / "set").rmdir()


def test_the_tables_are_for_people(nodes: Set) -> None:
    greeting = nodes.run("launch", "--detach", "--replicas", 1, "--port", nodes.base)
    assert f"127.0.0.1:{nodes.base}" in greeting and "try:" in greeting and "kvsvr stop" in greeting
    assert "the set is healthy: 1 of 1 serve, " in nodes.run("status")
