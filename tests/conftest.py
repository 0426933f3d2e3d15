"""What every test may ask for: a place for a store, and an open one."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import kvsvr


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a store may be made; nothing is there yet."""
    return tmp_path / "store"


@pytest.fixture
def db(path: Path) -> Iterator[kvsvr.Engine]:
    with kvsvr.open(path, sync="none") as engine:
        yield engine
