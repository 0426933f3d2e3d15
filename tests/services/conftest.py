"""A store that refuses batches over several slots, a set of three replicas, and a clock that tests turn."""

from __future__ import annotations

from collections.abc import Iterator
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
