"""The benchmark of the services does what it times: each cell looks at what it has done."""

from __future__ import annotations

import json
from pathlib import Path

from bench import services
from bench.cli import main


def test_a_quick_run(tmp_path: Path) -> None:
    """Every cell once; figures with their bars in the document."""
    file = tmp_path / "services.json"
    assert main(["services", "--quick", "--dir", str(tmp_path), "--json", str(file)]) == 0
    figures = json.loads(file.read_text())["figures"]
    assert [figure["name"] for figure in figures] == [cell[0] for cell in services.CELLS]
    assert all(figure["low"] <= figure["value"] <= figure["high"] for figure in figures)
    assert [path.name for path in tmp_path.iterdir()] == ["services.json"]


def test_a_bar_is_met_from_above_or_below() -> None:
    """Rates are to be high, times low."""
    rate = services.Figure("a", "a", 10.0, 10.0, 10.0, "/s", 9.0)
    time = services.Figure("b", "b", 10.0, 10.0, 10.0, "ms", 9.0)
    assert (rate.is_met, time.is_met) == (True, False)
