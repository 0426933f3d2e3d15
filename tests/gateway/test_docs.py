"""The example of docs/gateway.md runs as it stands; its tables have what the code has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kvsvr.gateway.failures import CODES

PAGE = (Path(__file__).parents[2] / "docs" / "gateway.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("source", EXAMPLES)
def test_examples_run(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(source, "example", "exec"), {})
    assert capsys.readouterr().out == "['a note']\n"


def test_all_codes_are_listed() -> None:
    for code, (status, _) in CODES.items():
        assert re.search(rf"^\| {status} \|.*`{code}`", PAGE, re.MULTILINE), code
