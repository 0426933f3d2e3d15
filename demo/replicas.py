"""The same files into a set of three replicas, through redis-py: one is killed in the middle, and nothing is missing.

One client at each replica. A client whose replica is killed goes to the next one and sends its file again; a file
counts as acknowledged when its SET was answered, and is then held against what every replica gives, the killed one too
once it is back. The launcher is told to end with its stdin, so a demo that is killed leaves no process behind.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from demo.acks import digest_of
from demo.crash import ROOT, CrashFailed
from demo.files import files_under
from demo.report import Section, megabytes, rate
from demo.run import Run

COUNT: Final = 3
SECONDS_MAX: Final = 60.0
TRIES: Final = 20
INVENTED: Final = b"a file that nobody wrote"

Found = dict[bytes, str]
"""Digests by key."""


@dataclass(slots=True)
class Load:
    """What all clients share. Each adds to it, one thing at a time, which Python makes whole."""

    files: list[tuple[bytes, Path]]
    acked: Found = field(default_factory=dict)
    refused: list[bytes] = field(default_factory=list)
    size: int = 0
    waits: list[tuple[float, float]] = field(default_factory=list)
    """Of each file: when its answer came, and how long after it was first sent."""
    repeated: int = 0
    failures: list[str] = field(default_factory=list)


def replicas(run: Run, section: Section) -> None:
    with _set(run.directory / "set") as status:
        ports = [int(one["address"].rpartition(":")[2]) for one in status["replicas"]]
        section.lines.append(f"three replicas on 127.0.0.1, ports {ports[0]} to {ports[-1]}")
        load, kill_at = _load(run, section, status, ports)
        if not section.failures:
            _back(run.directory / "set")
            _compare(run, section, load, ports)
    section.lines.append(f"killed at {kill_at:,} files; the set is stopped, nothing runs any more")


@contextmanager
def _set(directory: Path) -> Iterator[dict[str, Any]]:
    """A set that serves, as `kvsvr launch` says when it does; ended whatever happens."""
    for _ in range(TRIES):
        port = random.randrange(10_000, 30_000)
        process = _kvsvr("launch", directory, "--replicas", COUNT, "--port", port, "--json", "--with-stdin")
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        if line:
            break
        told = process.communicate()[1]
        if "--port" not in told:  # Else it was only the ports, and others may be free.
            raise CrashFailed(f"kvsvr launch ended with {process.returncode}: {told.strip()}")
    else:
        raise CrashFailed("no ports are free")
    try:
        yield json.loads(line)
    finally:
        process.send_signal(signal.SIGINT)
        told = process.communicate()[1]
    if process.returncode != 0:
        raise CrashFailed(f"kvsvr launch ended with {process.returncode}: {told.strip()}")


def _kvsvr(name: str, directory: Path, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "kvsvr.ops.cli", name, "--dir", str(directory), *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, cwd=ROOT, text=True)


# --- load and kill ---


def _load(run: Run, section: Section, status: dict[str, Any], ports: list[int]) -> tuple[Load, int]:
    load = Load(files_under(run.source))
    victim = run.random.randrange(COUNT)
    threads = [
        threading.Thread(target=_client, args=(load, ports[which:] + ports[:which], load.files[which::COUNT]))
        for which in range(COUNT)
    ]
    kill_at, killed, began = len(load.files) // 2, 0.0, time.perf_counter()
    with run.screen.bar(f"load {len(load.files):,} files, kill one of three", len(load.files)) as done:
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            count = len(load.waits)
            if count >= kill_at and not killed:
                kill_at, killed = count, time.perf_counter()
                os.kill(status["replicas"][victim]["pid"], signal.SIGKILL)
            done(count)
            time.sleep(0.002)
    seconds = time.perf_counter() - began
    section.failures += load.failures
    section.lines += [
        f"{len(load.acked):,} files, {megabytes(load.size)} in {seconds:.2f} s: {rate(len(load.acked), seconds)} "
        "files/s, three clients, every answer after a majority's fdatasync",
        *([f"{len(load.refused)} files above the largest value, left out"] if load.refused else []),
        _gap(load, status["replicas"][victim], killed),
    ]
    return load, kill_at


def _gap(load: Load, victim: dict[str, Any], killed: float) -> str:
    after = [wait for when, wait in load.waits if when >= killed]
    before = [wait for when, wait in load.waits if when < killed]
    return (
        f"killed replica {victim['id']} (process {victim['pid']}, {victim['shards']} shards): the longest wait of a "
        f"client was {max(after, default=0.0) * 1000:.0f} ms then, {max(before, default=0.0) * 1000:.0f} ms before; "
        f"{load.repeated} sent again"
    )


def _client(load: Load, ports: Sequence[int], files: Sequence[tuple[bytes, Path]]) -> None:
    """Its own replica first, the next when that one is gone."""
    clients = [_connect(port) for port in ports]
    try:
        for key, path in files:
            value = path.read_bytes()
            began = time.perf_counter()
            if _put(load, clients, key, value):
                load.acked[key] = digest_of(value)
                load.size += len(value)
            else:
                load.refused.append(key)
            now = time.perf_counter()
            load.waits.append((now, now - began))
    except (redis.RedisError, OSError, CrashFailed) as error:
        load.failures.append(f"a client failed: {error}")
    for client in clients:
        client.close()


def _connect(port: int) -> redis.Redis:
    return redis.Redis(port=port, socket_timeout=SECONDS_MAX, retry=Retry(NoBackoff(), 0))


def _put(load: Load, clients: list[redis.Redis], key: bytes, value: bytes) -> bool:
    """False: no set takes a value of that size."""
    deadline = time.monotonic() + SECONDS_MAX
    while time.monotonic() < deadline:
        try:
            clients[0].set(key, value)
            return True
        except redis.ConnectionError:
            load.repeated += 1
            clients.append(clients.pop(0))
        except redis.ResponseError as error:
            if "maximum allowed size" not in str(error):
                raise
            return False
    raise CrashFailed(f"{key!r} was not taken within {SECONDS_MAX:.0f} s")


# --- what is there ---


def _back(directory: Path) -> None:
    """The launcher starts the killed one again."""
    deadline = time.monotonic() + SECONDS_MAX
    while time.monotonic() < deadline:
        with suppress(ValueError):
            if json.loads(_kvsvr("status", directory, "--json").communicate()[0])["state"] == "healthy":
                return
        time.sleep(0.1)
    raise CrashFailed(f"the killed replica did not come back within {SECONDS_MAX:.0f} s")


def _compare(run: Run, section: Section, load: Load, ports: Sequence[int]) -> None:
    total = len(load.acked) * len(ports)
    with run.screen.bar(f"read {total:,} values back", total) as done:
        held = [_read(load, port, done, at * len(load.acked)) for at, port in enumerate(ports)]
    lost = sum(len(missing(load.acked, found)) for found in held)
    control = len(missing({**load.acked, INVENTED: digest_of(b"")}, held[0]))
    section.lines += [
        f"{len(load.acked):,} values read from each of the three, the killed one too: {lost} lost or torn",
        f"control: the same with an invented acknowledgement: {control} lost",
    ]
    for port, found in zip(ports, held, strict=True):
        section.failures += [f"port {port}: {key!r} is not what was acknowledged" for key in missing(load.acked, found)]
    if control != 1:
        section.failures.append("the check accepts a write that never happened, so it proves nothing")


def _read(load: Load, port: int, done: Callable[[int], None], before: int) -> Found:
    found: Found = {}
    with _connect(port) as client:
        for count, key in enumerate([*load.acked, INVENTED]):
            value = client.get(key)
            if value is not None:
                found[key] = digest_of(value)
            done(before + count)
    return found


def missing(wanted: Found, found: Found) -> list[bytes]:
    return [key for key, digest in wanted.items() if found.get(key) != digest]
