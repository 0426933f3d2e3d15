"""What is measured, who stands beside whom, and what is asked of kvsvr.

A work is what clients do with one set of processes; a cell is a row of the table, made of works of several. The same
work of kvsvr stands in two rows: beside those who have it on disk at a majority when they acknowledge, and beside
those who have it in memory. So no ratio is between a sync and no sync without its row saying so. Bars are the
issue's, each against the peers it names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from bench.document import SYNCED
from bench.servers.systems import Etcd, Kvsvr, KvsvrData, KvsvrDigests, KvsvrOne, Nats, Redis, RedisWait

RATE, CPU, MEMORY, TIME, COUNT = "requests/s", "us", "bytes", "ms", "keys"
UNSYNCED_PEERS = "peers: no fsync"
CONFIRMED = "a quorum says it is the newest"
UNCONFIRMED = "peers: the primary's word"
STALE = "may be stale"
LARGE = 65_536

Kind = Literal["put", "get", "stale"]


@dataclass(frozen=True, slots=True)
class Work:
    """One run of the generator."""

    name: str
    kind: Kind
    clients: int
    value_size: int = 100
    pipeline: int = 1

    @property
    def title(self) -> str:
        verb = {"put": "SET", "get": "GET", "stale": "GET, stale"}[self.kind]
        size = " of 64 KiB" if self.value_size == LARGE else ""
        pipeline = f", {self.pipeline} at once" if self.pipeline > 1 else ""
        return f"{verb}{size}, {self.clients} client{'s' if self.clients > 1 else ''}{pipeline}"


WORKS: Mapping[str, Work] = {
    work.name: work
    for work in (
        Work("set-1", "put", 1),
        Work("set-16", "put", 16),
        Work("set-64", "put", 64),
        Work("set-pipelined", "put", 16, pipeline=16),
        Work("get-1", "get", 1),
        Work("get-64", "get", 64),
        Work("get-stale-64", "stale", 64),
        Work("set-64KiB-16", "put", 16, value_size=LARGE),
    )
}
Sample = Literal["rate", "cpu", "memory", "gap-p50", "gap-p99", "lost"]
KILLED: frozenset[Sample] = frozenset({"gap-p50", "gap-p99", "lost"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    name: str
    title: str
    group: str
    systems: Sequence[str]
    """By name of the set-up: at most one of each peer."""
    durability: str
    work: str | None = None
    """None: after all works, or while processes are killed."""
    sample: Sample = "rate"
    unit: str = RATE
    better: Literal["more", "less"] = "more"
    bar: float | None = None
    bar_absolute: float | None = None
    limit: str | None = None
    again: bool = False
    """kvsvr's figure stands in another row, too: this one is there for the peers."""

    @property
    def by_killing(self) -> bool:
        return self.sample in KILLED


DISK, MEMORY_ONLY, ONE = (Kvsvr.name, Etcd.name), (Kvsvr.name, RedisWait.name, Nats.name), (KvsvrOne.name, Redis.name)
DISK_GROUP = "three replicas, on disk at a majority"
MEMORY_GROUP = "three replicas, beside peers that do not fsync"
ONE_GROUP = "one replica"
STALE_GROUP = "stale reads"
BYTES_GROUP = "what the quorum decides: versions, or bytes, too"
KILL_GROUP = "kill -9 of a replica"


def _three() -> list[Cell]:
    bars = {"set-1": 5, "set-16": 10, "set-64": 10, "set-64KiB-16": 5, "get-1": 5, "get-64": 10}
    found = []
    for name, bar in bars.items():
        work = WORKS[name]
        limit = "fdatasync" if name == "set-1" else None
        durability = SYNCED if work.kind == "put" else CONFIRMED
        found.append(
            Cell(
                name=name,
                title=work.title,
                group=DISK_GROUP,
                systems=DISK,
                durability=durability,
                work=name,
                bar=bar,
                limit=limit,
            )
        )
    found += [_cpu("cpu-set-64", DISK_GROUP, DISK, SYNCED, 25.0)]
    found.append(
        Cell(
            name="memory",
            title="anonymous memory of the set, after all of these",
            group=DISK_GROUP,
            systems=DISK,
            durability=SYNCED,
            sample="memory",
            unit=MEMORY,
            better="less",
            bar=10,
        )
    )
    return found


def _cpu(name: str, group: str, systems: Sequence[str], durability: str, bar: float | None) -> Cell:
    return Cell(
        name=name,
        title="CPU of the set for a SET, 64 clients",
        group=group,
        systems=systems,
        durability=durability,
        work="set-64",
        sample="cpu",
        unit=CPU,
        better="less",
        bar_absolute=bar,
        again=durability != SYNCED,
    )


def _beside_memory() -> list[Cell]:
    bars = {"set-1": None, "set-16": None, "set-64": 0.5, "set-64KiB-16": 1.5, "get-1": None, "get-64": None}
    found = [
        Cell(
            name=f"{name}-unsynced",
            title=WORKS[name].title,
            group=MEMORY_GROUP,
            systems=MEMORY_ONLY,
            durability=UNSYNCED_PEERS if WORKS[name].kind == "put" else UNCONFIRMED,
            work=name,
            bar=bar,
            again=True,
        )
        for name, bar in bars.items()
    ]
    return [*found, _cpu("cpu-set-64-unsynced", MEMORY_GROUP, MEMORY_ONLY, UNSYNCED_PEERS, None)]


def _one() -> list[Cell]:
    return [
        Cell(
            name=f"one-{name}",
            title=WORKS[name].title,
            group=ONE_GROUP,
            systems=ONE,
            durability=SYNCED,
            work=name,
            bar=1,
            limit="fdatasync" if name == "set-1" else None,
        )
        for name in ("set-1", "set-16", "set-64", "set-pipelined", "get-1", "get-64")
    ]


def _stale() -> list[Cell]:
    return [
        Cell(
            name="get-stale-64",
            title=WORKS["get-stale-64"].title,
            group=STALE_GROUP,
            systems=(Kvsvr.name, RedisWait.name, Etcd.name, Nats.name),
            durability=STALE,
            work="get-stale-64",
            bar=0.9,
        )
    ]


def _bytes() -> list[Cell]:
    """The design's own claim: a quorum that decides versions alone has less to wait for."""
    rows: list[tuple[type[Kvsvr], str, str]] = [(KvsvrData, "set-64KiB-16", ', "version" beside "data"')]
    rows += [(KvsvrDigests, name, ", the default beside inline_max=0") for name in ("set-16", "set-64", "get-64")]
    return [
        Cell(
            name=f"{work}-{other.name.removeprefix('kvsvr-')}",
            title=WORKS[work].title + title,
            group=BYTES_GROUP,
            systems=(Kvsvr.name, other.name),
            durability=SYNCED if WORKS[work].kind == "put" else CONFIRMED,
            work=work,
            again=True,
        )
        for other, work, title in rows
    ]


def _killing() -> list[Cell]:
    found = []
    for suffix, systems, durability in (("", DISK, SYNCED), ("-unsynced", (Kvsvr.name, Nats.name), UNSYNCED_PEERS)):
        absolute = suffix == ""
        for sample, title, unit, bar in (
            ("gap-p50", "the longest that a SET waited, median of the kills", TIME, 20.0),
            ("gap-p99", "the longest that a SET waited, p99 of the kills", TIME, 150.0),
            ("lost", "acknowledged and not there afterwards", COUNT, 0.0),
        ):
            found.append(
                Cell(
                    name=sample + suffix,
                    title=title,
                    group=KILL_GROUP,
                    systems=systems,
                    durability=durability,
                    sample=sample,  # type: ignore[arg-type]
                    unit=unit,
                    better="less",
                    bar_absolute=bar if absolute else None,
                    again=not absolute,
                )
            )
    return found


CELLS: Mapping[str, Cell] = {
    cell.name: cell for cell in (*_three(), *_bytes(), *_beside_memory(), *_stale(), *_one(), *_killing())
}
