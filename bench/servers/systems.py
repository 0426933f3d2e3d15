"""kvsvr and what people would run instead, each as a set of processes on loopback in a directory of its own.

Every one is set up as its documentation has it for keeping data on several machines, with defaults where they matter:
etcd's heartbeat (100 ms) and election timeout (1 s), NATS' store that is synced every two minutes.
"""

from __future__ import annotations

import base64
import http.client
import json
import shutil
import socket
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import redis

from bench.servers.processes import Process, free_ports, until

ASK_SECONDS = 5.0
SLOT_COUNT = 16384  # Of Redis Cluster.
PROBE_COUNT = 64  # Keys that are tried where a key may have an owner that is gone.


class System(ABC):
    """A set of processes. `ports` are where its clients go, one for each process; `dialects` say how they put, get and
    read what may be stale (native/bench/dialect.h)."""

    name: ClassVar[str]
    """Of this set-up."""
    peer: ClassVar[str]
    """Under which its figures stand."""
    program: ClassVar[str]
    package: ClassVar[str]
    settings: ClassVar[str]
    survives: ClassVar[str]
    dialects: ClassVar[Mapping[str, str]]

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.processes: list[Process] = []
        self.ports: list[int] = []
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> System:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for process in self.processes:
            if not process.ended:
                process.kill()  # What is left of it is removed: nothing has to be put in order.

    @classmethod
    def version(cls) -> str | None:
        """None: not installed."""
        program = shutil.which(cls.program)
        if program is None:
            return None
        said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
        return said.partition("\n")[0].strip()

    @abstractmethod
    def _start(self) -> None:
        """Until it takes writes."""

    def ports_of(self, kind: str) -> Sequence[int]:
        """Where requests of this kind ("put", "get", "stale") do best."""
        return self.ports

    def slot_owners(self) -> bytes | None:
        """For clients that send a request to who owns its key: for each slot of Redis Cluster the place of a port in
        `ports`. None: they go anywhere."""
        return None

    def victim(self, number: int) -> int:
        """Which process has the most to lose: of the n-th kill."""
        return number % len(self.processes)

    def wait_writable(self, but: int) -> None:
        """Until all but one take every write."""
        some = next(port for index, port in enumerate(self.ports) if index != but)
        until(lambda: self.probe(some), f"{self.name}: writes after a kill")

    def wait_whole(self) -> None:
        """Until each takes every write."""
        for port in self.ports:
            until(lambda port=port: self.probe(port), f"{self.name}: all of it", self.processes)  # type: ignore[misc]

    @abstractmethod
    def probe(self, port: int) -> bool:
        """Whether writes that are sent there are acknowledged."""

    def cpu_seconds(self) -> float:
        return sum(process.cpu_seconds() for process in self.processes)

    def anonymous_size(self) -> int:
        return sum(process.anonymous_size() for process in self.processes)

    def _place(self, number: int) -> Path:
        place = self.directory / f"{self.name}-{number}"
        place.mkdir()
        return place

    def _run(self, arguments: Sequence[str], number: int) -> None:
        self.processes.append(Process(arguments, self.directory / f"{self.name}-{number}.log"))


# --- who speaks RESP ---


def resp(port: int, *words: str) -> str:
    """The first line of the answer, and what else has come with it."""
    with socket.create_connection(("127.0.0.1", port), ASK_SECONDS) as connection:
        connection.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w.encode()) for w in words))
        said = b""
        while b"\r\n" not in said:
            more = connection.recv(1 << 16)
            if not more:
                raise ConnectionError("closed")
            said += more
        return said.decode(errors="replace")


class Kvsvr(System):
    name = peer = "kvsvr"
    program, package = "kvsvr", "kvsvr"
    settings = (
        "kvsvr serve, three replicas (or one, in the group of one), 64 shards; a client asks CLUSTER SLOTS once and "
        "sends each request to who owns its key, but for stale reads"
    )
    survives = "acknowledged after fdatasync at a majority: power loss of all machines, loss of one"
    dialects: ClassVar = {"put": "resp", "get": "resp", "stale": "resp-readonly"}
    count = 3
    flags: ClassVar[Sequence[str]] = ()

    @classmethod
    def version(cls) -> str | None:
        from importlib.metadata import PackageNotFoundError, version

        try:
            return f"kvsvr {version('kvsvr')}"
        except PackageNotFoundError:
            return None

    def _start(self) -> None:
        ports = free_ports(2 * self.count)
        self.ports, peer_ports = ports[: self.count], ports[self.count :]
        for number, (port, peer_port) in enumerate(zip(self.ports, peer_ports, strict=True)):
            peers = [f"--peer={other + 1}=127.0.0.1:{of}" for other, of in enumerate(peer_ports) if of != peer_port]
            arguments = [sys.executable, "-c", "from kvsvr.ops.cli import main; main()", "serve", f"--id={number + 1}"]
            arguments += [f"--dir={self._place(number)}", *peers, *self.flags]
            arguments += [f"--listen=127.0.0.1:{port}", f"--peer-listen=127.0.0.1:{peer_port}"]
            self._run(arguments, number)
        self.wait_whole()

    def slot_owners(self) -> bytes | None:
        if self.count == 1:
            return None
        owners = bytearray(SLOT_COUNT)
        with redis.Redis(port=self.ports[0]) as client:
            for first, last, owner, *_ in client.execute_command("CLUSTER", "SLOTS"):
                owners[first : last + 1] = bytes([self.ports.index(owner[1])]) * (last + 1 - first)
        return bytes(owners)

    def probe(self, port: int) -> bool:
        return all(resp(port, "SET", f"probe-{key}", "x").startswith("+OK") for key in range(PROBE_COUNT))


class KvsvrOne(Kvsvr):
    name = "kvsvr-one"
    count = 1


class KvsvrData(Kvsvr):
    """A peer of itself, as it would be if the quorum had to have the bytes."""

    name = peer = "kvsvr-data"
    settings = 'kvsvr serve with durability = "data": a majority has the bytes when a SET is acknowledged'
    flags = ("--durability=data",)


class KvsvrDigests(Kvsvr):
    """Another: no byte of a value is ever in a record that is voted on."""

    name = peer = "kvsvr-digests"
    settings = "kvsvr serve with inline_max = 0: every value travels beside the vote, named by its digest"
    flags = ("--inline-max=0",)


class Redis(System):
    name = peer = "redis"
    program, package = "redis-server", "redis-server"
    settings = "one server, appendonly yes, appendfsync always, save ''"
    survives = "power loss; nothing of the loss of its machine"
    dialects: ClassVar = {"put": "resp", "get": "resp"}

    def _start(self) -> None:
        self.ports = free_ports(1)
        self._redis(0, "--appendonly", "yes", "--appendfsync", "always")
        self.wait_whole()

    def _redis(self, number: int, *more: str) -> None:
        base = [self.program, "--port", str(self.ports[number]), "--bind", "127.0.0.1", "--save", ""]
        self._run([*base, "--dir", str(self._place(number)), *more], number)

    def probe(self, port: int) -> bool:
        return resp(port, "SET", "probe", "x").startswith("+OK")


class RedisWait(Redis):
    name = peer = "redis-wait"
    settings = "a primary and two replicas, appendonly no, save ''; every SET followed by WAIT 1 in the same write"
    survives = "kill -9 of one of the three, if somebody makes the right replica the primary; no power loss"
    dialects: ClassVar = {"put": "resp-wait", "get": "resp", "stale": "resp"}

    def _start(self) -> None:
        self.ports = free_ports(3)
        self._redis(0, "--appendonly", "no", "--repl-diskless-sync-delay", "0")
        until(lambda: self.probe(self.ports[0]), self.name, self.processes)
        for number in (1, 2):
            self._redis(number, "--appendonly", "no", "--replicaof", "127.0.0.1", str(self.ports[0]))
        both = "state=online"
        until(lambda: resp(self.ports[0], "INFO", "replication").count(both) == 2, self.name, self.processes)

    def ports_of(self, kind: str) -> Sequence[int]:
        return self.ports[1:] if kind == "stale" else self.ports[:1]


# --- etcd ---


def post(port: int, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ASK_SECONDS)
    try:
        connection.request("POST", path, json.dumps(body))
        found: dict[str, Any] = json.loads(connection.getresponse().read())
        return found
    except http.client.HTTPException as error:
        raise ConnectionError(str(error)) from error
    finally:
        connection.close()


class Etcd(System):
    name = peer = "etcd"
    program, package = "etcd", "etcd-server"
    settings = "three members, defaults, a quota of 8 GiB; clients at the leader; JSON over HTTP/1.1, kept alive"
    survives = "acknowledged after fdatasync at a majority: power loss of all machines, loss of one"
    dialects: ClassVar = {"put": "etcd", "get": "etcd", "stale": "etcd-stale"}

    def _start(self) -> None:
        ports = free_ports(6)
        self.ports, peer_ports = ports[:3], ports[3:]
        members = ",".join(f"m{number}=http://127.0.0.1:{port}" for number, port in enumerate(peer_ports))
        for number in range(3):
            client, peer = (f"http://127.0.0.1:{of[number]}" for of in (self.ports, peer_ports))
            arguments = [self.program, "--name", f"m{number}", "--data-dir", str(self._place(number))]
            arguments += ["--listen-client-urls", client, "--advertise-client-urls", client]
            arguments += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
            arguments += ["--initial-cluster", members, "--initial-cluster-state", "new"]
            arguments += ["--logger", "zap", "--log-level", "error", "--quota-backend-bytes", str(8 << 30)]
            self._run(arguments, number)
        self.wait_whole()

    def probe(self, port: int) -> bool:
        text = base64.b64encode(b"probe").decode()
        return "header" in post(port, "/v3/kv/put", {"key": text, "value": text})

    def _leader(self) -> int:
        for index, port in enumerate(self.ports):
            status = post(port, "/v3/maintenance/status", {})
            if status["leader"] == status["header"]["member_id"]:
                return index
        return 0

    def ports_of(self, kind: str) -> Sequence[int]:
        return self.ports if kind == "stale" else [self.ports[self._leader()]]

    def victim(self, number: int) -> int:
        """The leader."""
        return self._leader()


# --- NATS ---


def nats(port: int, subject: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
    """A request, and its answer; ConnectionError if nobody answers."""
    text = b"" if body is None else json.dumps(body).encode()
    hello = b'CONNECT {"verbose":false,"headers":true,"no_responders":true}\r\nSUB _INBOX.a 1\r\n'
    with socket.create_connection(("127.0.0.1", port), ASK_SECONDS) as connection:
        connection.sendall(hello + b"PUB %s _INBOX.a %d\r\n%s\r\n" % (subject.encode(), len(text), text))
        with connection.makefile("rb") as lines:
            for line in lines:
                if line.startswith(b"MSG "):
                    found: dict[str, Any] = json.loads(lines.read(int(line.split()[-1])))
                    return found
                if line.startswith(b"PING"):
                    connection.sendall(b"PONG\r\n")
                if line.startswith((b"HMSG", b"-ERR")):
                    break
    raise ConnectionError("nobody answers")


class Nats(System):
    name = peer = "nats"
    program, package = "nats-server", "nats-server"
    settings = (
        "three servers, a key-value bucket (JetStream, three replicas, files); clients at the stream's leader. "
        "A get is answered by the leader, which asks nobody whether it still is one"
    )
    survives = "kill -9 of one of the three; files are synced every two minutes, so no power loss of all"
    dialects: ClassVar = {"put": "nats", "get": "nats", "stale": "nats-direct"}
    STREAM: ClassVar[Mapping[str, Any]] = {
        "name": "KV_bench",
        "subjects": ["$KV.bench.>"],
        "max_msgs_per_subject": 1,
        "storage": "file",
        "num_replicas": 3,
        "discard": "new",
        "allow_direct": True,
        "allow_rollup_hdrs": True,
        "deny_delete": True,
    }

    def _start(self) -> None:
        ports = free_ports(6)
        self.ports, routes = ports[:3], ports[3:]
        others = ", ".join(f'"nats-route://127.0.0.1:{port}"' for port in routes)
        for number in range(3):
            place = self._place(number)
            (place / "conf").write_text(
                f'server_name: "n{number}"\nlisten: "127.0.0.1:{self.ports[number]}"\n'
                f'jetstream {{ store_dir: "{place}", max_file_store: 16GB }}\n'
                f'cluster {{ name: "bench", listen: "127.0.0.1:{routes[number]}", routes: [{others}] }}\n'
            )
            self._run([self.program, "-c", str(place / "conf")], number)
        until(self._create, f"{self.name}: a stream", self.processes)
        self.wait_whole()

    def _create(self) -> bool:
        return "config" in nats(self.ports[0], "$JS.API.STREAM.CREATE.KV_bench", self.STREAM)

    def _leader(self) -> int:
        for port in self.ports:
            try:
                found = nats(port, "$JS.API.STREAM.INFO.KV_bench", None)
                return int(found["cluster"]["leader"].removeprefix("n"))
            except (OSError, KeyError, ValueError):
                continue
        return 0

    def ports_of(self, kind: str) -> Sequence[int]:
        return self.ports if kind == "stale" else [self.ports[self._leader()]]

    def victim(self, number: int) -> int:
        """The stream's leader."""
        return self._leader()

    def probe(self, port: int) -> bool:
        return "seq" in nats(port, "$KV.bench.probe", {})


SYSTEMS: Mapping[str, type[System]] = {
    one.name: one for one in (Kvsvr, KvsvrOne, KvsvrData, KvsvrDigests, Etcd, Nats, RedisWait, Redis)
}
PEERS: Sequence[str] = tuple(dict.fromkeys(one.peer for one in SYSTEMS.values()))
