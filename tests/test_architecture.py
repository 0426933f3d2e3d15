"""Who may import whom (docs: the floors of the design), read from the source: a wrong import fails, used or not."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "kvsvr"

BASE = {"kvsvr.types", "kvsvr.errors", "kvsvr.config"}

# A floor, and what it may import of kvsvr besides itself.
FLOORS: dict[str, set[str]] = {
    "kvsvr.types": set(),
    "kvsvr.errors": set(),
    "kvsvr.config": {"kvsvr.errors"},
    "kvsvr._quick": {"kvsvr._native"},
    "kvsvr.native": {"kvsvr._native", "kvsvr._quick", *BASE},
    "kvsvr.store": {"kvsvr.native", *BASE},
    "kvsvr.node": {"kvsvr.store", "kvsvr.native", *BASE},
    "kvsvr.client": {"kvsvr.store", "kvsvr.native", *BASE},
    "kvsvr.services": {"kvsvr.types", "kvsvr.errors"},
    # The names that users import, and nothing else.
    "kvsvr.queue": {"kvsvr.services"},
    "kvsvr.sync": {"kvsvr.services"},
    "kvsvr.messaging": {"kvsvr.services"},
    "kvsvr.gateway": {"kvsvr.services", *BASE},
    "kvsvr.ops": {"kvsvr.gateway", "kvsvr.services", "kvsvr.node", "kvsvr.client", "kvsvr.store", *BASE},
    "kvsvr.testing": {"kvsvr.ops", "kvsvr.client", *BASE},
    "kvsvr": {"kvsvr.store", "kvsvr.node", "kvsvr.client", *BASE},
}

SOLE_IMPORTERS: dict[str, set[str]] = {
    "kvsvr._native": {"kvsvr.native", "kvsvr._quick"},
    "kvsvr._quick": {"kvsvr.native"},
    "cffi": set(),
    "lmdb": {"kvsvr.store.catalog"},
    "pickle": set(),
    "redis": {"kvsvr.client.wire"},
    "starlette": {"kvsvr.gateway.app", "kvsvr.gateway.session", "kvsvr.gateway.short"},
    "uvicorn": {"kvsvr.gateway.server"},
}
SOCKETS = {"socket", "socketserver", "asyncio", "http", "ssl"}
SOCKET_FLOORS = {"kvsvr.node", "kvsvr.client", "kvsvr.gateway", "kvsvr.ops", "kvsvr.testing"}
# An event loop to wait in, and nothing on the network.
WAITING = {"asyncio": {"kvsvr.store.aio", "kvsvr.store.aio_threads"}}

# What the extra `cli` brings: a program that embeds a store shall not need it.
TERMINAL = {"click", "rich"}

FILES = sorted(ROOT.rglob("*.py"))


def module_of(file: Path) -> str:
    parts = ["kvsvr", *file.relative_to(ROOT).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def floor_of(module: str) -> str:
    """The longest floor that the module is in."""
    return max((floor for floor in FLOORS if within(module, floor)), key=len)


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def imports_of(source: str) -> Iterator[str]:
    """Every module a source names in an import, wherever in the file; `from p import m` may be p.m, so both."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute, so that they can be read here"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def complaints(module: str, source: str) -> list[str]:
    floor = floor_of(module)
    found = []
    for name in imports_of(source):
        if within(name, "kvsvr") and name != "kvsvr":
            target = floor_of(name)
            if target not in (floor, "kvsvr") and target not in FLOORS[floor] and name not in FLOORS[floor]:
                found.append(f"{module} ({floor}) imports {name}")
        for guarded, importers in SOLE_IMPORTERS.items():
            if within(name, guarded) and module not in importers:
                found.append(f"{module} imports {name}, which only {sorted(importers) or 'nobody'} may")
        may_wait = module in WAITING.get(name, ())
        if name.partition(".")[0] in SOCKETS and floor not in SOCKET_FLOORS and not may_wait:
            found.append(f"{module} imports {name}: no sockets on this floor")
        if name.partition(".")[0] in TERMINAL and not within(module, "kvsvr.ops.cli"):
            found.append(f"{module} imports {name}: only the command does")
    return found


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_imports_go_down(file: Path) -> None:
    """No module imports from a floor above its own, and guarded modules have one importer each."""
    assert complaints(module_of(file), file.read_text(encoding="utf-8")) == []


def test_every_floor_in_use_was_looked_at() -> None:
    """The files are found: a check over nothing would pass."""
    assert {"kvsvr", "kvsvr.ops", "kvsvr.store", "kvsvr.native", "kvsvr.types"} <= {
        floor_of(module_of(file)) for file in FILES
    }


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("kvsvr.types", "from kvsvr.errors import KvError"),
        ("kvsvr.store.engine", "import lmdb"),
        ("kvsvr.store.engine", "from kvsvr import _native"),
        ("kvsvr.store.engine", "def f():\n    from kvsvr._native import lib"),
        ("kvsvr.store.engine", "import socket"),
        ("kvsvr.store.engine", "import asyncio"),
        ("kvsvr.store.aio", "import socket"),
        ("kvsvr.store.aio", "from asyncio import streams"),
        ("kvsvr.services.queue", "from kvsvr.store import Engine"),
        ("kvsvr.services.queue", "import kvsvr.native"),
        ("kvsvr.services.sync", "from kvsvr.client import connect"),
        ("kvsvr.queue", "from kvsvr.store import Engine"),
        ("kvsvr.node.node", "from kvsvr.ops import launcher"),
        ("kvsvr.store.batch", "import pickle"),
        ("kvsvr.store.engine", "from kvsvr.ops.records import Record"),
        ("kvsvr.ops.cli.get", "from kvsvr.native import KEY_SIZE_MAX"),
        ("kvsvr.ops.doctor", "import click"),
        ("kvsvr.client.calls", "import redis"),
        ("kvsvr.store.engine", "from kvsvr.client import connect"),
        ("kvsvr.gateway.desk", "from kvsvr.store import Engine"),
        ("kvsvr.gateway.desk", "from starlette.requests import Request"),
    ],
)
def test_a_wrong_import_is_seen(module: str, source: str) -> None:
    """The check itself: each of these breaks a rule."""
    assert complaints(module, source) != []
