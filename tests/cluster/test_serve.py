"""One replica as a process: how it stops, what it does when its disk fails, what it logs, whom it lets in."""

from __future__ import annotations

import re
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from kvsvr.node.report import State
from tests.cluster import sanitized
from tests.cluster.conftest import READY_S, Replicas, free_ports, until

Start = Callable[..., Replicas]


def serve(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kvsvr.ops.cli", "serve", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=READY_S, check=False)


# --- the stop ---


def test_a_stop_hands_shards_over_and_loses_no_answer(replicas: Start) -> None:
    """While clients of another replica write. Whoever is stopped owns nothing when it ends, and the log says so."""
    nodes = replicas(3)
    until(nodes.served)
    added, failed, stop = [0], list[Exception](), threading.Event()

    def work() -> None:
        with nodes.client(1) as client:
            while not stop.is_set() and not failed:
                try:
                    client.incr(f"counter:{added[0] % 50}")
                    added[0] += 1
                except redis.RedisError as error:
                    failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    for id_ in (3, 2):
        before = added[0]
        until(lambda before=before: bool(failed) or added[0] > before + 20)  # type: ignore[misc]
        assert nodes.stop(id_) == 0
        left = [event for event in nodes.events(id_) if event["event"] == "left"]
        assert [event["shards_kept"] for event in left] == [0]
        report = nodes.report(id_)
        assert report is not None and report.state is State.STOPPED
        nodes.start(id_)
        until(nodes.served)
    stop.set()
    thread.join()
    assert failed == []
    with nodes.client(2) as client:
        assert sum(int(client.get(f"counter:{n}") or 0) for n in range(50)) == added[0]


def test_commands_that_are_under_way_are_answered_by_a_stop(replicas: Start) -> None:
    """They were sent before SIGTERM and read; a pipeline comes back whole, or with what was read of it."""
    nodes = replicas(1)
    with socket.create_connection(("127.0.0.1", nodes.ports[1])) as client:
        client.sendall(b"INCR n\r\n" * 500)
        assert client.recv(4) == b":1\r\n"
        assert nodes.stop(1) == 0
        answers = b":1\r\n"
        while part := client.recv(65536):
            answers += part
    count = answers.count(b"\r\n")
    assert answers == b"".join(b":%d\r\n" % n for n in range(1, count + 1))
    nodes.start(1)
    with nodes.client(1) as again:
        assert int(again.get("n") or 0) >= count


def test_a_stop_waits_for_nobody_for_ever(replicas: Start) -> None:
    """Neither for a majority that is not there, nor for a client that does not read."""
    nodes = replicas(3, "--stop-ms=500")
    until(nodes.served)
    with socket.create_connection(("127.0.0.1", nodes.ports[1])) as client, nodes.client(1) as writer:
        assert writer.set("key", b"x" * 1_000_000)
        client.sendall(b"GET key\r\n" * 50)
        for id_ in (2, 3):
            nodes.pause(id_)
        began = time.monotonic()
        assert nodes.stop(1) == 0
    assert time.monotonic() - began < READY_S / 2
    for id_ in (2, 3):
        nodes.wake(id_)
    assert [nodes.stop(id_) for id_ in (2, 3)] == [0, 0]


# --- the disk ---


def test_the_first_failed_write_ends_it_and_nothing_acknowledged_is_lost(replicas: Start) -> None:
    """A limit on the size of files stands for a disk that fails. The two others go on, and have everything."""
    nodes = replicas(3)
    until(nodes.served)
    resource.prlimit(nodes.pid(2), resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    written = 0
    with nodes.client(1) as client:
        while nodes.running(2) and written < 2_000:
            assert client.set(b"key:%d" % written, b"%d" % written + b"x" * 100_000)
            written += 1
        assert nodes.wait(2) == 4
        text = (nodes.directory / "2.log").read_text()
        assert re.search(r"^kvsvr: .*File too large .*look at the disk", text, re.MULTILINE), text
        report = nodes.report(2)
        assert report is not None and report.state is State.FAILED and "look at the disk" in report.error
        assert client.set("behind", "it")
    with nodes.client(3) as client:
        assert client.get("behind") == b"it"
        for number in range(written):
            assert (client.get(b"key:%d" % number) or b"").startswith(b"%dx" % number)


def test_alone_every_answer_comes_after_a_sync(replicas: Start) -> None:
    """The loop syncs by itself there, as long as the disk is quick."""
    nodes = replicas(1)
    with nodes.client(1) as client:
        assert client.set("key", "x")
        before = nodes.figure(1, "syncs")
        for number in range(300):
            assert client.incr("counter") == number + 1
    until(lambda: nodes.figure(1, "syncs") >= before + 300)


FAILING_SYNC = """
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

int fdatasync(int fd) {
    (void)fd;
    if (access(getenv("FAILS_WHEN_THERE"), F_OK) != 0) return 0;
    errno = EIO;
    return -1;
}
"""


@pytest.mark.skipif(sanitized.BUILD is not None, reason="a sanitizer has to be the first library that is loaded")
def test_alone_a_failed_sync_ends_it_and_nothing_is_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replicas: Start
) -> None:
    source, library, fails = tmp_path / "sync.c", tmp_path / "sync.so", tmp_path / "fails"
    source.write_text(FAILING_SYNC)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    monkeypatch.setenv("LD_PRELOAD", str(library))
    monkeypatch.setenv("FAILS_WHEN_THERE", str(fails))
    nodes = replicas(1)
    with nodes.client(1, retry=Retry(NoBackoff(), 0)) as client:
        for number in range(100):
            assert client.incr("counter") == number + 1
        fails.touch()
        with pytest.raises(redis.ConnectionError):
            client.incr("counter")
    assert nodes.wait(1) == 4
    assert "Input/output error" in (nodes.directory / "1.log").read_text()


# --- what it says ---


def test_every_event_is_a_line_of_json(replicas: Start) -> None:
    nodes = replicas(3)
    until(nodes.served)
    assert nodes.stop(1) == 0
    log = (nodes.directory / "1.log").read_text()
    assert all(line.startswith("{") for line in log.splitlines())
    events = nodes.events(1)
    for event in events:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event["time"])
        assert event["level"] in ("info", "warning", "error") and event["node"] == 1
    names = [event["event"] for event in events]
    assert {"link_up", "serving", "stopping", "left", "stopped"} <= set(names)
    assert sorted(event["peer"] for event in events if event["event"] == "link_up") == [2, 3]


def test_a_service_manager_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replicas: Start) -> None:
    """READY only when shards have owners: of three the first alone is not ready."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(READY_S)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        nodes = replicas(1)
        heard = {manager.recv(100)}
        while b"READY=1" not in heard:
            heard.add(manager.recv(100))
        assert nodes.stop(1) == 0
        while b"STOPPING=1" not in heard:
            heard.add(manager.recv(100))
    assert heard == {b"READY=1", b"STOPPING=1", b"WATCHDOG=1"}


# --- what it is told ---


def test_limits_are_kept(replicas: Start) -> None:
    nodes = replicas(1, "--clients-max=2", "--word-size-max=64 KiB")
    first, second = nodes.client(1), nodes.client(1)
    assert first.set("key", b"x" * 65536)
    with pytest.raises(redis.RedisError):
        first.set("key", b"x" * 65537)
    assert first.strlen("key") == second.strlen("key") == 65536
    third = nodes.client(1, retry=Retry(NoBackoff(), 0))
    with pytest.raises(redis.RedisError, match="max number of clients"):
        third.ping()
    for client in (first, second, third):
        client.close()


def test_what_can_be_reached_from_elsewhere_is_refused(tmp_path: Path) -> None:
    port = free_ports(1)[0]
    ended = serve("--id=1", f"--dir={tmp_path / 'd'}", f"--listen=0.0.0.0:{port}")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "can be reached from elsewhere" in ended.stderr and "correct --listen" in ended.stderr
    assert not (tmp_path / "d").exists()


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        ended = serve("--id=1", f"--dir={tmp_path / 'd'}", f"--listen=127.0.0.1:{port}")
    assert ended.returncode == 2
    assert f"listen: 127.0.0.1:{port} cannot be listened on: Address already in use" in ended.stderr
