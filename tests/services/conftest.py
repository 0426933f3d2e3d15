"""A store that refuses batches over several slots, a set of three replicas, and a clock that tests turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import kvsvr
from kvsvr.testing import ReplicaSet


class Turned:
    """A clock that stands until it is turned."""

    def __init__(self, now: float = 1_000_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def turn(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Turned:
    return Turned()


@pytest.fixture
def strict(path: Path) -> Iterator[kvsvr.Engine]:
    """As a replica set has it: what is written together is of one slot."""
    with kvsvr.open(path, sync="none", slots="strict") as db:
        yield db


@pytest.fixture(scope="session")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReplicaSet]:
    with ReplicaSet(tmp_path_factory.mktemp("set") / "three", 3) as replicas:
        yield replicas


@pytest.fixture(params=["embedded", "three"])
def store(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Either of them; the set keeps what other tests have left, so names are to be of the test."""
    if request.param == "embedded":
        yield request.getfixturevalue("strict")
        return
    with request.getfixturevalue("three").connect() as remote:
        yield remote


class Interposed:
    """A store in which something happens once, right before or behind a call of a table: a race, made to happen."""

    def __init__(self, db: Any, call: str, key: bytes, what: Callable[[], None], *, behind: bool) -> None:
        self._db, self._call, self._key, self._what, self._behind = db, call, key, what, behind

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._db, name)
        return self._table if name == "table" else found

    def _table(self, key: bytes) -> Any:
        table = self._db.table(key)
        return _Between(table, self) if key == self._key else table

    def between(self, name: str, call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        if name != self._call:
            return call(*arguments, **named)
        what, self._what = self._what, lambda: None
        if not self._behind:
            what()
        found = call(*arguments, **named)
        if self._behind:
            what()
        return found


class _Between:
    def __init__(self, table: Any, interposed: Interposed) -> None:
        self._inner, self._interposed = table, interposed

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        return partial(self._interposed.between, name, found) if callable(found) else found

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._inner)


class Killed(BaseException):
    """What stands for kill -9 between two calls of the store."""


class Dying:
    """A store whose process dies at its n-th write: the write is made, or it is not, and no more follows. 0: never."""

    def __init__(self, db: Any, left: int, *, before: bool) -> None:
        self._db, self._left, self._before = db, left, before
        self.dead = False

    def count(self, call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        self._left -= 1
        if self.dead or (self._left == 0 and self._before):
            self.dead = True
            raise Killed
        found = call(*arguments, **named)
        if self._left == 0:
            self.dead = True
            raise Killed
        return found

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._db, name)
        return partial(self.count, found) if name in ("run", "put", "delete", "cas") else found

    def table(self, key: bytes) -> Any:
        return _DyingTable(self._db.table(key), self)

    @contextmanager
    def batch(self) -> Iterator[Any]:
        batch = self._db.batch()
        yield batch.__enter__()
        self.count(batch.__exit__, None, None, None)


class _DyingTable:
    def __init__(self, table: Any, dying: Dying) -> None:
        self._inner, self._dying = table, dying

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        return partial(self._dying.count, found) if name in ("put", "delete", "cas") else found

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._inner)

    def __len__(self) -> int:
        return len(self._inner)
