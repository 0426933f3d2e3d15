"""The directory of a set whose replicas are processes of one machine: what is where, and how it is made.

    DIR/secret              what only replicas of the set know; mode 0600
    DIR/launcher.json       what the launcher does; DIR/launcher.lock is held while it runs
    DIR/launcher.log        what it says, where it was started with --detach
    DIR/1/replica.toml      what `kvsvr serve --config` is given; paths in it begin at its folder, so DIR may be moved
    DIR/1/data/             the replica's store
    DIR/1/status.json       what it says of itself (kvsvr/node/report.py)
    DIR/1/log.jsonl         its events

A folder with a replica.toml is a replica of the set; there is no list of them elsewhere. All of them name those that
the set began with, and who came later says in whose place, so a set that was made in part, or lacks a folder, is
refused. One that is to be replaced has its folder until it is done; then its replica.toml is called
replica.toml.replaced, and its data are nobody's any more.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import socket
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kvsvr.errors import UsageError
from kvsvr.node.config import SIZES, ServerConfig, load, text_of

HOST: Final = "127.0.0.1"
PORT: Final = 7101
COUNT: Final = 3
PORT_MAX: Final = 65_535
PEER_PORTS: Final = 100
"""Peers are listened for this far above clients, or at the next port that is free."""


@dataclass(frozen=True, slots=True)
class Replica:
    """One of the set, and where its files are."""

    folder: Path
    config: ServerConfig

    @property
    def node(self) -> int:
        return self.config.node

    @property
    def address(self) -> str:
        return text_of(self.config.client_address)

    @property
    def config_file(self) -> Path:
        return self.folder / "replica.toml"

    @property
    def status_file(self) -> Path:
        return self.folder / "status.json"

    @property
    def log_file(self) -> Path:
        return self.folder / "log.jsonl"


@dataclass(frozen=True, slots=True)
class Place:
    """A set that is there."""

    directory: Path
    replicas: Sequence[Replica]
    leaving: frozenset[int] = frozenset()
    """Those whose place somebody takes: they may run, and are not started again."""

    @property
    def lock_file(self) -> Path:
        return self.directory / "launcher.lock"

    @property
    def launcher_file(self) -> Path:
        return self.directory / "launcher.json"

    @property
    def launcher_log(self) -> Path:
        return self.directory / "launcher.log"

    def replica(self, node: int) -> Replica:
        for one in self.replicas:
            if one.node == node:
                return one
        raise UsageError(
            f"{self.directory} has no replica {node}; it has {', '.join(str(r.node) for r in self.replicas)}"
        )


def find(directory: Path) -> Place:
    """UsageError: no set is there."""
    if not any(directory.glob("*/replica.toml")):
        raise UsageError(f"there is no set at {directory}: check the path; kvsvr launch makes one")
    files = sorted(directory.resolve().glob("*/replica.toml"))
    replicas = sorted((Replica(file.parent, load(file, {}, {})) for file in files), key=lambda one: one.node)
    nodes = {one.node for one in replicas}
    replaced = {node for one in replicas for node in one.config.replaces}
    for one in replicas:
        if not set(one.config.members) - replaced <= nodes or one.config.members != replicas[0].config.members:
            raise UsageError(
                f"{one.config_file} names other replicas than there are folders in {directory}: bring the folder back "
                "that is missing; if the set was only just being made, remove the directory"
            )
        first = replicas[0].config
        if (one.config.set_name, one.config.shard_count) != (first.set_name, first.shard_count):
            raise UsageError(f"{one.config_file} has another set or shards than {replicas[0].config_file}: correct it")
    return Place(directory.resolve(), replicas, frozenset(nodes & replaced))


def make_or_find(directory: Path, count: int | None, port: int | None) -> tuple[Place, bool]:
    """The set, and whether it was made now. Of one that is there, what is wanted has to be what it is."""
    if not any(directory.glob("*/replica.toml")):
        return make(directory, COUNT if count is None else count, PORT if port is None else port), True
    place = find(directory)
    there = len(place.replicas[0].config.members)
    if count is not None and count != there:
        raise UsageError(f"{directory} has a set of {there}: leave --replicas out, or give another directory")
    first = min(one.config.client_address[1] for one in place.replicas)
    if port is not None and port != first:
        raise UsageError(f"{directory} has a set at port {first}: leave --port out, or correct its replica.toml files")
    return place, False


def make(directory: Path, count: int, port: int) -> Place:
    if count not in SIZES:
        raise UsageError(f"--replicas: a set has 1, 3 or 5 replicas, not {count}")
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()):
        raise UsageError(
            f"{directory} is not empty, and holds no set: give a new directory, or one that kvsvr launch made"
        )
    clients = list(range(port, port + count))
    peers = _ports(clients)
    secret = directory / "secret"
    descriptor = os.open(secret, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32) + "\n")
    name = f"kvsvr-{secrets.token_hex(4)}"
    for node in range(1, count + 1):
        folder = directory / str(node)
        folder.mkdir()
        (folder / "replica.toml").write_text("\n".join(_settings(node, name, clients, peers)) + "\n", encoding="utf-8")
    return find(directory)


def make_one(place: Place, old: Replica, *, keep_ports: bool) -> Replica:
    """A replica that is to take another's place, with its settings but for its id: ids are not used twice.

    Its settings are there as a whole or not at all, and a folder without is no replica.
    """
    replaced = (*old.config.replaces, old.node)
    node = 1 + max(number for one in place.replicas for number in (one.node, *one.config.members, *one.config.replaces))
    client, peer = old.config.client_address[1], old.config.peer_address[1]
    if not keep_ports:
        client, peer = _free_ports(place)
    found = tomllib.loads(old.config_file.read_text(encoding="utf-8"))
    others = {one.node: one.config.peer_address for one in place.replicas if one.node != old.node or not keep_ports}
    found |= {
        "id": node,
        "listen": text_of((old.config.client_address[0], client)),
        "peer_listen": text_of((old.config.peer_address[0], peer)),
        "shards": old.config.shard_count,
        "members": list(old.config.members),
        "replaces": list(replaced),
        "peers": {str(other): text_of(where) for other, where in others.items()},
    }
    folder = place.directory / str(node)
    folder.mkdir(exist_ok=True)
    draft = folder / "replica.toml.new"
    draft.write_text("\n".join(_toml(found)) + "\n", encoding="utf-8")
    os.replace(draft, folder / "replica.toml")
    return find(place.directory).replica(node)


def _toml(settings: dict[str, Any]) -> Iterator[str]:
    """Texts, numbers and lists of them are said as in JSON, which is TOML, too; the one table comes last."""
    yield from (f"{name} = {json.dumps(value)}" for name, value in settings.items() if name != "peers")
    yield "[peers]"
    yield from (f"{node} = {json.dumps(where)}" for node, where in settings["peers"].items())


def _free_ports(place: Place) -> tuple[int, int]:
    """Behind those of the others. UsageError: there are none."""
    found = []
    with ExitStack() as held:
        for taken in ("client_address", "peer_address"):
            port = 1 + max(getattr(one.config, taken)[1] for one in place.replicas)
            while port <= PORT_MAX and not _bind(held, port):
                port += 1
            if port > PORT_MAX:
                raise UsageError(f"no port above {port} is free for another replica")
            found.append(port)
    return found[0], found[1]


def _settings(node: int, name: str, clients: Sequence[int], peers: Sequence[int]) -> Iterator[str]:
    yield f"id = {node}"
    yield 'dir = "data"'
    yield f'listen = "{HOST}:{clients[node - 1]}"'
    yield f'peer_listen = "{HOST}:{peers[node - 1]}"'
    yield f"set = {json.dumps(name)}"
    yield 'secret_file = "../secret"'
    yield 'status_file = "status.json"'
    yield "[peers]"
    yield from (f'{other} = "{HOST}:{port}"' for other, port in enumerate(peers, 1) if other != node)


def _ports(clients: Sequence[int]) -> list[int]:
    """Where replicas listen for each other. UsageError: somebody listens where clients are to be listened for.

    All are held until all are found, so that none is found twice.
    """
    found: list[int] = []
    with ExitStack() as held:
        for port in clients:
            if not _bind(held, port):
                raise UsageError(f"--port: somebody else listens on {HOST}:{port}: end it, or give another port")
        port = clients[0] + PEER_PORTS
        while len(found) < len(clients):
            if port > PORT_MAX:
                raise UsageError("--port: no port above it is free for the replicas' own connections: give a lower one")
            if _bind(held, port):
                found.append(port)
            port += 1
    return found


def free_base(count: int) -> int:
    """The first of so many ports in a row that nobody listens on now, nor PEER_PORTS above. They are below those that
    connections are given, so that none of these takes one before it is listened on. Errors: UsageError."""
    for _ in range(100):
        base = random.randrange(10_000, 30_000)
        with ExitStack() as held:
            if all(_bind(held, port + above) for port in range(base, base + count) for above in (0, PEER_PORTS)):
                return base
    raise UsageError(f"no {count} ports in a row are free: end who listens on some")


def _bind(held: ExitStack, port: int) -> bool:
    one = held.enter_context(socket.socket())
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        one.bind((HOST, port))
    except (OSError, OverflowError):
        return False
    return True
