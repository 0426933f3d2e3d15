"""Stores and replica sets for tests, thrown away at their end: `pytest_plugins = ["kvsvr.testing"]` in a conftest.py.

    kvsvr_store      an embedded store in the test's own directory
    kvsvr_set        kvsvr_set(3) starts three replicas as processes of this machine; .connect() gives a client

Both keep the Store protocol of kvsvr.types. A set takes a second or so to start: a test that needs no second process
wants the store, which takes milliseconds.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import pytest

import kvsvr
from kvsvr.client.store import Remote
from kvsvr.ops.launcher import Launcher, kill
from kvsvr.ops.place import free_base, make_or_find

READY_S: Final = 60


class ReplicaSet:
    """Replicas that a launcher keeps running, in a thread of this process. Replicas count from 1."""

    def __init__(self, directory: Path, replicas: int = 3) -> None:
        self._place, _ = make_or_find(directory, replicas, free_base(replicas))
        self._ready = threading.Event()
        self._said: list[str] = []
        self._launcher = Launcher(self._place, self._hear)
        self._thread = threading.Thread(target=self._launcher.run, name="kvsvr-replicas", daemon=True)
        self._thread.start()
        if not self._ready.wait(READY_S):
            self.close()
            raise AssertionError("the replicas did not become a set:\n" + "\n".join(self._said[-40:]))

    def _hear(self, event: str, fields: Mapping[str, Any]) -> None:
        self._said.append(f"{event} {fields.get('line') or fields.get('error') or ''}")
        if event == "ready":
            self._ready.set()

    @property
    def addresses(self) -> list[str]:
        return [replica.address for replica in self._place.replicas]

    def connect(self, **settings: Any) -> Remote:
        """As kvsvr.connect() to all of them."""
        return kvsvr.connect(self.addresses, **settings)

    def kill(self, replica: int) -> None:
        """kill -9. The launcher starts it again."""
        kill(self._place.replica(replica))

    def close(self) -> None:
        self._launcher.stop()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@pytest.fixture
def kvsvr_store(tmp_path: Path) -> Iterator[kvsvr.Engine]:
    """A store that is gone after the test."""
    with kvsvr.open(tmp_path / "kvsvr-store", sync="none") as db:
        yield db


@pytest.fixture
def kvsvr_set(tmp_path: Path) -> Iterator[Callable[[int], ReplicaSet]]:
    """kvsvr_set(3): a set that ends with the test."""
    with ExitStack() as started:

        def start(replicas: int) -> ReplicaSet:
            return started.enter_context(ReplicaSet(tmp_path / f"kvsvr-set-{replicas}", replicas))

        yield start
