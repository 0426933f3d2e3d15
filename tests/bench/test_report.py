"""A run is shown as it was: in the file and back, as a table, as a page, as plots, and beside another run.

`example` makes up a run with everything that can be in one: cells won and lost, bars of both kinds, both directions,
curves, several settings, a peer that cannot, one that failed, one that is not installed.
"""

from collections.abc import Mapping
from typing import Any

from bench.document import SYNCED, UNSYNCED, Cell, Document, LimitBeside, Peer, Setting
from bench.results import Figure, Limit

PEERS = {
    "kvsvr": 1.0,
    "lmdb": 0.45,
    "lmdb-writemap": 0.6,
    "plyvel": 0.3,
    "rocksdict": 0.2,
    "sqlite3": 0.04,
    "dict": 5.0,
}
COUNTING = [name for name in PEERS if name not in ("kvsvr", "dict")]
QUANTILES = {"p50": 1.0, "p90": 1.6, "p99": 4.0, "p99.9": 22.0, "p99.99": 130.0, "max": 2100.0}


def figure_of(median: float, unit: str = "keys/s", better: Any = "more", **other: Any) -> Figure:
    facts: dict[str, Any] = {
        "operations": 100_000,
        "seconds": 0.5,
        "repetition_count": 3,
        "disturbed_count": 0,
        **other,
    }
    return Figure(median=median, low=median * 0.95, high=median * 1.04, unit=unit, better=better, **facts)


def cell_of(name: str, title: str, group: str, ours: float, **other: Any) -> Cell:
    """Peers in the proportions of PEERS, unless `medians` says what they reached."""
    unit, better = other.pop("unit", "keys/s"), other.pop("better", "more")
    curves: Mapping[str, Any] = other.pop("curves", {})
    shares = {peer: ours * share if better == "more" else ours / share for peer, share in PEERS.items()}
    medians = other.pop("medians", shares)
    figures = {
        peer: figure_of(median, unit, better, curve=curves.get(peer), disturbed_count=int(peer == "sqlite3"))
        for peer, median in {**medians, "kvsvr": ours}.items()
    }
    best: str | None = None
    for peer in [peer for peer in COUNTING if peer in figures]:
        if best is None or figures[peer].ahead_of(figures[best]) > 1:
            best = peer
    facts: dict[str, Any] = {
        "durability": UNSYNCED,
        "setting": Setting(1_000_000, 16, 100, False, 1),
        "bar": None,
        "bar_absolute": None,
        "limit": None,
        "best_peer": best,
        "ratio": figures["kvsvr"].ahead_of(figures[best]) if best is not None else None,
        **other,
    }
    return Cell(name=name, title=title, group=group, unit=unit, better=better, figures=figures, **facts)


def curve_of(scale: float) -> dict[str, float]:
    return {name: factor * scale for name, factor in QUANTILES.items()}


def cells() -> list[Cell]:
    no_op, sync = LimitBeside("cffi no-op", 21_000_000.0), LimitBeside("fdatasync", 21_000.0)
    kib = Setting(1_000_000, 16, 1024, False, 1)
    durable: dict[str, Any] = {"durability": SYNCED, "limit": sync}
    curves = {"kvsvr": curve_of(1.2), "lmdb": curve_of(3.0), "plyvel": curve_of(2.4), "sqlite3": curve_of(21.0)}
    late = {"kvsvr": 26.4, "lmdb": 66.0, "plyvel": 52.8, "sqlite3": 462.0}
    return [
        cell_of("put", "single put", "single keys", 1.2e6, bar=2.5, limit=no_op),
        cell_of("put@1KiB", "single put", "single keys", 4.4e5, bar=0.8, setting=kib, limit=no_op),
        cell_of("get-hit", "random get, hit", "single keys", 9e5, bar=1.5, medians={"lmdb": 1.1e6, "plyvel": 3e5}),
        cell_of("get-miss", "random get, miss", "single keys", 2.1e6, bar=2.0, limit=no_op),
        cell_of("get-many", "get_many of 100", "many keys", 2.4e6, bar=3.0, limit=LimitBeside("dict get", 3.1e6)),
        cell_of("put-fsync", "put + fsync, 1 thread", "durable", 8460, bar=1.3, **durable),
        cell_of("full-scan@varying", "full scan", "scans", 7e6, bar=0.8, setting=Setting(1_000_000, 16, 100, True, 1)),
        cell_of("last-20", "last(20)", "tables", 2e5, bar=0.7, medians={"lmdb": 4e5}),
        cell_of(
            "get-p999", "get, p99.9", "latency", 26.4, unit="us", better="less", bar=0.67, medians=late, curves=curves
        ),
        cell_of("space", "files after close", "space", 1.31, unit="ratio", better="less", bar_absolute=1.6),
        cell_of(
            "memory", "RAM per key", "memory", 38.5, unit="bytes/key", better="less", bar_absolute=32.0, medians={}
        ),
        cell_of("open-clean", "open after close", "opening", 3.2, unit="ms", better="less", bar_absolute=5.0),
        cell_of("snapshot-get", "get in a snapshot", "snapshots and expiry", 7e5, bar=None, medians={"lmdb": 9e5}),
    ]


def example(**other: Any) -> Document:
    failure = {"peer": "rocksdict", "cell": "get-hit", "error": "WrongAnswer: key 00: nothing", "kept": True}
    survives = ("kill -9; after power loss a prefix of the writes", "power loss")
    facts: dict[str, Any] = {
        "run": {
            "started_at": "2026-01-02T03:04:05+00:00",
            "arguments": ["--workload", "full"],
            "workload": "full",
            "key_count": 1_000_000,
            "value_size": 100,
            "varying": False,
            "sync_count": 3000,
            "repeat": 3,
            "retry_max": 2,
            "interrupted": False,
        },
        "machine": {
            "cpu_model": "Example 9000",
            "core_count": 2,
            "usable_core_count": 2,
            "memory_bytes": 8 << 30,
            "kernel": "6.1.0",
            "python": "3.11.7",
            "python_implementation": "CPython",
            "file_system": {"type": "ext4", "device": "/dev/vda", "options": "rw,relatime"},
            "load_average": [0.1, 0.2, 0.3],
            "packages": {"lmdb": "1.4.1", "plyvel": "1.5.1", "cffi": None},
        },
        "peers": {
            name: Peer(f"{name} 1.0", f"settings of {name}", *survives, is_peer=name in COUNTING) for name in PEERS
        },
        "skipped": {"diskcache": "ModuleNotFoundError: No module named 'diskcache'"},
        "cells": cells(),
        "limits": [
            Limit("fdatasync", "syncs/s", (20_000.0, 21_000.0, 22_000.0)),
            Limit("memcpy", "bytes/s", (8e9, 9e9, 10e9)),
            Limit("cffi no-op", "calls/s", (21e6, 21e6, 21e6)),
            Limit("dict get", "calls/s", (3.1e6, 3.1e6, 3.1e6)),
        ],
        "repetitions": [failure],
        **other,
    }
    return Document(**facts)
