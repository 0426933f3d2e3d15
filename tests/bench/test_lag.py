"""The ticker may be trusted: it sees a loop that is held up, and what goes on beside it is what it says."""

import asyncio
import json
import time
from array import array
from pathlib import Path

import pytest

import kvsvr
from bench import lag
from bench.cli import main
from kvsvr.store.aio import AsyncEngine


def test_a_loop_that_is_held_up_is_seen(tmp_path: Path) -> None:
    async def hold_up(aio: AsyncEngine, number: int) -> None:
        time.sleep(0.05)
        await asyncio.sleep(0)

    async def body() -> lag.Lag:
        async with kvsvr.open(tmp_path / "store").aio as aio:
            return await lag.measure_cell(aio, lag.Cell("held up", ((hold_up, 1),)), 0.3)

    found = asyncio.run(body())
    assert found.p50_ms >= 40
    assert found.done["hold_up"] >= 1


def test_quantiles_are_of_the_worst_ticks() -> None:
    found = lag.lag_of("", array("d", [0.001] * 999 + [0.5]), {})
    assert (found.p50_ms, found.p99_ms, found.p999_ms, found.max_ms) == (1, 1, 500, 500)


def test_the_command_measures_every_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lag, "KEY_COUNT", 1000)
    monkeypatch.setattr(lag, "LARGE_SIZE", 2 << 20)
    out = tmp_path / "lag.json"
    assert main(["lag", "--seconds", "1", "--dir", str(tmp_path), "--json", str(out)]) == 0
    lags = json.loads(out.read_text())["lags"]
    assert [one["name"] for one in lags] == [cell.name for cell in lag.cells(2 << 20)]
    for one, cell in zip(lags, lag.cells(2 << 20), strict=True):
        assert one["tick_count"] > 0
        assert set(one["done"]) == {step.__name__ for step, _ in cell.steps}
    assert list(tmp_path.iterdir()) == [out]
