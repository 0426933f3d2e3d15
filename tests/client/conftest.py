"""The stores that a test's body is run against: embedded, one replica, three replicas."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import kvsvr
from kvsvr.testing import ReplicaSet, kvsvr_set, kvsvr_store
from tests.cluster.conftest import replicas

__all__ = ["kvsvr_set", "kvsvr_store", "replicas"]

SetOf = Callable[[int], ReplicaSet]


@pytest.fixture(scope="session")
def set_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SetOf]:
    """set_of(3): one for all tests, since starting takes a second."""
    with ExitStack() as started:
        sets: dict[int, ReplicaSet] = {}

        def find(count: int) -> ReplicaSet:
            if count not in sets:
                sets[count] = started.enter_context(ReplicaSet(tmp_path_factory.mktemp("set") / str(count), count))
            return sets[count]

        yield find


@pytest.fixture(params=["embedded", "one", "three"])
def store(request: pytest.FixtureRequest, tmp_path: Path, set_of: SetOf) -> Iterator[Any]:
    """Any of them, empty."""
    if request.param == "embedded":
        with kvsvr.open(tmp_path / "store", sync="none") as db:
            yield db
        return
    with set_of(1 if request.param == "one" else 3).connect() as remote:
        empty(remote)
        yield remote


@pytest.fixture(params=["one", "three"])
def remote(request: pytest.FixtureRequest, set_of: SetOf) -> Iterator[Any]:
    """A set, empty."""
    with set_of(1 if request.param == "one" else 3).connect() as remote:
        empty(remote)
        yield remote


def empty(remote: Any) -> None:
    remote.delete_many(list(remote.keys()))
    for name in list(remote.tables()):
        remote.delete(name)
