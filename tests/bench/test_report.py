"""A run is shown as it was: in the file and back, as a table, as a page, as plots, and beside another run.

`example` makes up a run with everything that can be in one: cells won and lost, bars of both kinds, both directions,
curves, several settings, a peer that cannot, one that failed, one that is not installed.
"""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from html.parser import HTMLParser
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bench import compare, page, plots
from bench.adapters.dict import DictAdapter
from bench.cells import CELLS
from bench.charts import _apart, scale_of, wanted
from bench.cli import main
from bench.compare import Verdict
from bench.document import (
    FIGURE_FIELDS,
    SYNCED,
    UNSYNCED,
    Cell,
    Document,
    LimitBeside,
    Peer,
    Setting,
    Tally,
    Unreadable,
    document_of,
    read,
)
from bench.markup import Markup, tag
from bench.report import print_report, share_text
from bench.results import Figure, Limit, Repetition
from bench.units import short, span, text_of

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
        cell_of("put@1KiB", "single put, values of 1 KiB", "single keys", 4.4e5, bar=0.8, setting=kib, limit=no_op),
        cell_of("get-hit", "random get, hit", "single keys", 9e5, bar=1.5, medians={"lmdb": 1.1e6, "plyvel": 3e5}),
        cell_of("get-miss", "random get, miss", "single keys", 2.1e6, bar=2.0, limit=no_op),
        cell_of("get-many", "get_many of 100", "many keys", 2.4e6, bar=3.0, limit=LimitBeside("dict get", 3.1e6)),
        cell_of("put-fsync", "put + fsync, 1 thread", "durable", 8460, bar=1.3, **durable),
        cell_of(
            "full-scan@varying",
            "full scan, varying sizes",
            "scans",
            7e6,
            bar=0.8,
            setting=Setting(1_000_000, 16, 100, True, 1),
        ),
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


def changed(document: Document, name: str, **other: Any) -> Document:
    """With other facts in one cell."""
    return replace(document, cells=[replace(c, **other) if c.name == name else c for c in document.cells])


def scaled(figure: Figure, factor: float, **other: Any) -> Figure:
    facts = {name: getattr(figure, name) * factor for name in ("median", "low", "high")}
    return replace(figure, **{**facts, **other})


def with_figure(document: Document, name: str, peer: str, change: Callable[[Figure], Figure]) -> Document:
    (cell,) = (cell for cell in document.cells if cell.name == name)
    return changed(document, name, figures={**cell.figures, peer: change(cell.figures[peer])})


def cell_named(document: Document, name: str) -> Cell:
    (cell,) = (cell for cell in document.cells if cell.name == name)
    return cell


# --- the file ---


def test_a_document_is_what_was_written(tmp_path: Path) -> None:
    example().write(tmp_path / "run.json")
    assert read(tmp_path / "run.json") == example()


def test_the_file_has_the_fields_of_format_2(tmp_path: Path) -> None:
    example().write(tmp_path / "run.json")
    found = json.loads((tmp_path / "run.json").read_text())
    parts = ["format", "run", "machine", "peers", "skipped", "cells", "limits", "repetitions", "timelines"]
    assert list(found) == parts
    assert found["format"] == 2
    cell = found["cells"][0]
    assert set(cell) == {
        *("name", "title", "group", "unit", "better", "durability", "setting", "bar", "bar_absolute"),
        *("best_peer", "ratio", "limit", "figures"),
    }
    assert set(cell["setting"]) == {"key_count", "key_size", "value_size", "varying", "threads"}
    assert set(cell["figures"]["kvsvr"]) == set(FIGURE_FIELDS)
    assert cell["limit"] == {"name": "cffi no-op", "value": 21e6}


def test_fields_that_are_not_known_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    example().write(path)
    found = json.loads(path.read_text())
    found["later"] = found["cells"][0]["later"] = found["cells"][0]["figures"]["kvsvr"]["later"] = [1]
    path.write_text(json.dumps(found))
    assert read(path) == example()


DELETED = object()


@pytest.mark.parametrize(
    ("where", "value", "complaint"),
    [
        (("format",), 1, "format: format 1, where 2 is read; it was written by an earlier version"),
        (("format",), 3, "needs a later version"),
        (("format",), DELETED, "format: missing"),
        (("run", "interrupted"), "no", 'run.interrupted: true or false is needed, not "no"'),
        (("machine", "cpu_model"), None, "machine.cpu_model: a text is needed, not null"),
        (("machine", "file_system", "type"), DELETED, "machine.file_system.type: missing"),
        (("cells",), {}, "cells: a list is needed, not {}"),
        (("cells", 1, "title"), 5, "cells[1] (put@1KiB).title: a text is needed, not 5"),
        (("cells", 0, "name"), DELETED, "cells[0].name: missing"),
        (("cells", 0, "name"), "get-hit", "two cells are named get-hit"),
        (("cells", 0, "better"), "faster", 'cells[0] (put).better: "more" or "less" is needed, not "faster"'),
        (("cells", 0, "bar"), "2.5", "cells[0] (put).bar: a number is needed"),
        (("cells", 0, "bar"), True, "cells[0] (put).bar: a number is needed, not true"),
        (("cells", 0, "best_peer"), "nobody", "cells[0] (put).best_peer: nobody has no figure"),
        (("cells", 0, "setting", "key_count"), 1.5, "setting.key_count: a whole number is needed, not 1.5"),
        (("cells", 0, "figures", "lmdb", "low"), 1e9, "figures.lmdb: low, median and high are not in this order"),
        (("cells", 0, "figures", "lmdb", "median"), -1, "figures.lmdb.median: a number from 0 on is needed, not -1"),
        (("cells", 0, "figures", "lmdb", "median"), 10**400, "figures.lmdb.median: a number from 0 on is needed"),
        (("cells", 0, "figures", "lmdb", "curve"), [1], "figures.lmdb.curve: an object is needed, not [1]"),
        (("cells", 0, "limit"), {"name": "memcpy"}, "cells[0] (put).limit.value: missing"),
        (("peers", "lmdb"), DELETED, "figures: lmdb is not among the peers"),
        (("limits", 0, "rates"), [], "limits[0].rates: a limit without a rate"),
        (("skipped",), ["diskcache"], "skipped: an object is needed"),
        (("repetitions", 0, "error"), DELETED, "repetitions[0].error: missing"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(where: tuple[Any, ...], value: Any, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    example().write(path)
    found = json.loads(path.read_text())
    place = found
    for step in where[:-1]:
        place = place[step]
    if value is DELETED:
        del place[where[-1]]
    else:
        place[where[-1]] = value
    path.write_text(json.dumps(found))
    with pytest.raises(Unreadable) as raised:
        read(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert complaint in str(raised.value)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "not JSON"),
        (b'{"format": 2, ', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"format": NaN}', "NaN is no number"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[]", "an object is needed"),
        (b"2", "an object is needed"),
        (None, "No such file"),
    ],
)
def test_a_file_that_is_no_run_is_refused(content: bytes | None, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(Unreadable, match=complaint):
        read(path)


def test_a_document_of_a_run_has_ratios_and_limits_beside() -> None:
    class Peer(DictAdapter):
        name = "lmdb"
        is_peer = True

    class Subject(DictAdapter):
        name = "kvsvr"

    rates = {"kvsvr": 1.0, "lmdb": 2.0}
    timed = [Repetition(peer, "put", 0, 0, 100, seconds, 0.0, None, kept=True) for peer, seconds in rates.items()]
    document = document_of(
        run=example().run,
        machine={},
        cells=[replace(CELLS["put"], limit="memcpy"), replace(CELLS["get-hit"], limit="nowhere")],
        adapters={"kvsvr": Subject(), "lmdb": Peer()},
        skipped={},
        repetitions=timed,
        limits=[Limit("memcpy", "bytes/s", (116e6,))],
    )
    put, get = document.cells
    assert (put.best_peer, put.ratio, put.limit) == ("lmdb", 2.0, LimitBeside("memcpy", 1e6))
    assert put.setting == Setting(1_000_000, 16, 100, False, 1)
    assert (get.best_peer, get.ratio, get.limit, get.figures) == (None, None, None, {})


# --- won, met, lost ---


@pytest.mark.parametrize(
    ("better", "ratio", "ours", "bar", "bar_absolute", "met"),
    [
        ("more", 2.5, 1e6, 2.5, None, True),
        ("more", 2.49, 1e6, 2.5, None, False),
        ("more", None, 1e6, 2.5, None, None),
        ("less", None, 32.0, None, 32.0, True),
        ("less", None, 32.1, None, 32.0, False),
        ("more", None, 32.1, None, 32.0, True),
        ("less", 0.5, 31.0, 0.8, 32.0, False),
        ("less", None, 31.0, 0.8, 32.0, None),
        ("more", 9.0, 1e6, None, None, None),
    ],
)
def test_a_bar_is_met_or_missed_or_unknown(
    better: Any, ratio: float | None, ours: float, bar: float | None, bar_absolute: float | None, met: bool | None
) -> None:
    cell = replace(cells()[0], better=better, ratio=ratio, bar=bar, bar_absolute=bar_absolute)
    assert replace(cell, figures={"kvsvr": figure_of(ours)}).bar_met is met


def test_the_tally_counts_what_was_compared_and_held() -> None:
    assert example().tally == Tally(cells=13, ahead=9, behind=3, bars=12, met=6, missed=6)
    assert replace(example(), cells=[]).tally == Tally(0, 0, 0, 0, 0, 0)


def test_less_is_nearer_to_the_limit_when_less_is_better() -> None:
    cell = replace(cells()[0], figures={"kvsvr": figure_of(50.0)}, limit=LimitBeside("fdatasync", 40.0))
    assert cell.of_limit == 1.25
    assert replace(cell, better="less").of_limit == 0.8


def test_groups_keep_the_order_of_the_run() -> None:
    assert list(example().groups)[:3] == ["single keys", "many keys", "durable"]
    assert [cell.name for cell in example().groups["single keys"]] == ["put", "put@1KiB", "get-hit", "get-miss"]


# --- units ---


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0004, "0.04% of it"), (0.062, "6.2% of it"), (0.94, "94% of it"), (1.9, "190% of it"), (27.14, "27.1 x of it")],
)
def test_a_share_is_never_rounded_to_nothing(share: float, text: str) -> None:
    assert share_text(share) == text


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (846_123, "keys/s", "846 k"),
        (999.7, "keys/s", "1 k"),
        (0, "keys/s", "0"),
        (0.44, "us", "440 ns"),
        (1299, "us", "1.3 ms"),
        (0, "us", "0 us"),
        (31.84, "bytes/key", "31.8 B"),
        (9e9, "bytes/s", "9 G"),
        (1.444, "ratio", "1.44 x"),
        (5, "segments", "5 segments"),
        (5e12, "keys/s", "5,000 G"),
    ],
)
def test_figures_are_short_and_have_units(value: float, unit: str, text: str) -> None:
    assert text_of(value, unit) == text


def test_a_span_names_its_unit_once() -> None:
    assert (short(132_000), span(132_000, 168_000)) == ("132 k", "132 to 168 k")
    assert span(900, 1100) == "900 to 1.1 k"
    assert span(0.9, 1.1, "us") == "900 ns to 1.1 us"


# --- the table ---


def printed(document: Document) -> str:
    file = StringIO()
    print_report(Console(width=300, file=file), document)
    return file.getvalue()


def test_the_table_names_groups_units_bars_and_limits() -> None:
    said = printed(example())
    for group in example().groups:
        assert group in said
    for text in ("values of 1 KiB", "less is better", "bytes/key", "bar 2.5 x missed", "bar 1.3 x met", "no bar"):
        assert text in said
    for text in ("bar at most 32 B missed", "bar at most 5 ms met", "cffi no-op", "5.7% of it", "40% of it", "17.6 k*"):
        assert text in said
    assert "kvsvr is ahead of the best peer in 9 of 12 cells; of 12 bars 6 are met, 6 missed" in said
    assert "rocksdict, get-hit: WrongAnswer: key 00: nothing" in said


def test_markup_in_names_is_text() -> None:
    said = printed(changed(example(), "put", title="[red]put[/red]", group="[bold]"))
    assert "[red]put[/red]" in said and "[bold]" in said


# --- the page ---


class Seen(HTMLParser):
    """What a browser would meet; complains where elements are not closed in the order they were opened."""

    VOID = frozenset({"meta"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data + " "

    def values(self, attribute: str) -> list[str]:
        return [value for _, attributes in self.elements if (value := attributes.get(attribute)) is not None]


def test_the_page_is_well_formed_and_needs_nothing_else() -> None:
    text = page.page(example())
    seen = Seen(text)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base"} & {tag for tag, _ in seen.elements}
    assert not {name for _, attributes in seen.elements for name in attributes if name.startswith("on")}
    assert not seen.values("src")
    assert all(href.startswith("#") for href in seen.values("href"))
    assert not any(word in text for word in ("http:", "https:", "url(", "@import"))
    assert "default-src 'none'" in seen.values("content")[0]


def test_every_link_of_the_page_leads_somewhere() -> None:
    seen = Seen(page.page(changed(example(), "put", group="put")))
    anchors = seen.values("id")
    assert len(set(anchors)) == len(anchors)
    assert {href[1:] for href in seen.values("href")} <= set(anchors)
    assert len(seen.values("href")) >= len(example().cells)


def test_the_page_shows_every_cell_with_every_store() -> None:
    document = example()
    articles = page.page(document).split("<article")[1:]
    assert len(articles) == len(document.cells)
    for cell, article in zip(document.cells, articles, strict=True):
        bars = article.partition("<tbody>")[2].partition("</tbody>")[0]
        assert bars.count("<tr") == len(document.peers)
        for peer, figure in cell.figures.items():
            assert f">{peer}</th>" in bars
            assert text_of(figure.median, cell.unit) in bars


def test_a_lost_cell_is_drawn_like_a_won_one() -> None:
    """The same elements, only other numbers: here of one cell, with the subject as it is and at a fifth."""

    def drawn(document: Document) -> list[str]:
        article = page.page(document).split("<article")[1]
        return [name for name, _ in Seen(tag("p", Markup("<b" + article.partition("</article>")[0] + "</b>"))).elements]

    won = changed(example(), "put", ratio=2.0, bar=1.5)
    assert drawn(won) == drawn(changed(won, "put", ratio=0.4))


def test_the_page_says_first_what_was_won_met_and_lost() -> None:
    text = Seen(page.page(example())).text
    first = text.index("9 of 12")
    assert first < text.index("3 of 12") < text.index("6 of 12") < text.index("Every cell")
    for said in (
        "2.5 x",
        "at most 32 B",
        "at most 5 ms",
        "\u2713 met",
        "\u2717 missed",
        "rocksdict failed: WrongAnswer",
    ):
        assert said in text


def test_the_page_has_machine_settings_durability_and_method() -> None:
    text = Seen(page.page(example())).text
    for said in (
        "Example 9000",
        "8 GiB",
        "6.1.0",
        "ext4",
        "3.11.7",
        "settings of plyvel",
        "diskcache",
        "cffi not installed",
    ):
        assert said in text
    for said in (UNSYNCED, SYNCED, "after power loss a prefix", "fdatasync"):
        assert said in text
    for paragraph in page.METHOD:
        assert paragraph in text


def test_latency_is_a_curve_and_numbers() -> None:
    article = next(
        part for part in page.page(example()).split("<article")[1:] if "get, p99.9" in part.partition("</h3>")[0]
    )
    assert article.count("<path") == 4
    assert article.count("<svg") == 1
    for quantile in QUANTILES:
        assert f">{quantile}</text>" in article and f">{quantile}</th>" in article


def test_names_and_errors_cannot_become_markup() -> None:
    evil = "</style><script>alert(1)</script>"
    document = changed(example(), "put", title=evil, group=evil)
    document = replace(document, skipped={evil: evil}, machine={**document.machine, "cpu_model": evil, "evil": [evil]})
    document = replace(document, repetitions=[{"peer": evil, "cell": "put", "error": evil}])
    seen = Seen(page.page(document))
    assert "script" not in {tag for tag, _ in seen.elements}
    assert seen.text.count(evil) >= 6


def test_an_empty_or_interrupted_run_has_a_page() -> None:
    document = replace(example(), cells=[], limits=[], run={**example().run, "interrupted": True})
    assert "interrupted: what is missing" in Seen(page.page(document)).text


def test_attributes_are_escaped() -> None:
    assert tag("p", "<", class_='"', x=1.0) == '<p class="&quot;" x="1">&lt;</p>'


def test_a_bar_far_beyond_does_not_flatten_the_others() -> None:
    """The dict is five times faster, and a limit further still: the scale is that of those who count."""
    cell, counting = cell_named(example(), "put"), example().counting
    assert "dict" not in counting
    assert wanted(cell) == pytest.approx(2.5 * 720_000)
    assert 1.8e6 <= scale_of(cell, counting) < 2e6
    assert scale_of(replace(cell, limit=LimitBeside("dict get", 2.5e6)), counting) > 2.5e6


def test_a_peer_that_takes_far_longer_does_not_flatten_the_others() -> None:
    """And kvsvr, if it is the one, is drawn in full."""
    document = example()
    cell = cell_named(document, "get-p999")
    slow = {**cell.figures, "sqlite3": figure_of(26_400.0, "us", "less")}
    assert scale_of(replace(cell, figures=slow), document.counting) < 300
    lost = {**cell.figures, "kvsvr": figure_of(26_400.0, "us", "less")}
    assert scale_of(replace(cell, figures=lost), document.counting) >= 26_400


def test_what_is_wanted_is_the_stricter_bar() -> None:
    cell = cell_named(example(), "open-clean")
    assert wanted(cell) == 5.0
    assert wanted(replace(cell, bar=2.0)) == pytest.approx(cell.figures["lmdb-writemap"].median / 2)


def test_labels_do_not_cover_each_other() -> None:
    placed = sorted(_apart({"a": 290.0, "b": 291.0, "c": 10.0, "d": 292.0}).values())
    assert all(later - earlier >= 15 for earlier, later in pairwise(placed))
    assert placed[-1] <= 294


def test_the_page_command_writes_beside_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example().write(tmp_path / "run.json")
    assert main(["page", str(tmp_path / "run.json")]) == 0
    assert main(["page", str(tmp_path / "run.json"), "--out", str(tmp_path / "other.html")]) == 0
    assert (tmp_path / "run.html").read_text() == (tmp_path / "other.html").read_text() == page.page(example())
    capsys.readouterr()
    assert main(["page", str(tmp_path / "missing.json")]) == 2
    assert "missing.json: No such file" in capsys.readouterr().err


def test_a_run_writes_its_page(tmp_path: Path) -> None:
    options = f"--peers dict,sqlite3 --cells put,put-fsync --keys 100 --syncs 8 --repeat 1 --page --dir {tmp_path}"
    assert main([*options.split(), "--json", str(tmp_path / "out.json")]) == 0
    assert (tmp_path / "out.html").read_text() == page.page(read(tmp_path / "out.json"))


# --- plots ---


def test_plots_are_files_of_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    changed(example(), "put", title=r"$\put$", group="a/b").write(tmp_path / "run.json")
    assert main(["plot", str(tmp_path / "run.json")]) == 0
    found = {path.name for path in (tmp_path / "run-plots").iterdir()}
    assert found >= {"ratios.png", "group-a-b.png", "group-durable.png", "curve-get-p999.png"}
    assert len(found) == 2 + len(example().groups) + 1
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (tmp_path / "run-plots").iterdir())


def test_without_matplotlib_the_way_out_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    example().write(tmp_path / "run.json")
    assert plots.main([str(tmp_path / "run.json")]) == 1
    assert "plots need matplotlib: pip install 'kvsvr[bench]'" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


# --- two runs ---


def compared(before: Document, after: Document, tmp_path: Path, *options: str) -> int:
    before.write(tmp_path / "a.json")
    after.write(tmp_path / "b.json")
    return main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json"), *options])


def change_of(before: Document, after: Document, name: str, peer: str = "kvsvr") -> compare.Change:
    (change,) = (c for c in compare.changes(before, after) if (c.cell.name, c.peer) == (name, peer))
    return change


@pytest.mark.parametrize(
    ("name", "factor", "ratio", "verdict"),
    [
        ("put", 1.05, 1.05, Verdict.SAME),
        ("put", 1.2, 1.2, Verdict.BETTER),
        ("put", 0.8, 0.8, Verdict.WORSE),
        ("get-p999", 0.5, 2.0, Verdict.BETTER),
        ("get-p999", 2.0, 0.5, Verdict.WORSE),
    ],
)
def test_only_ranges_apart_are_a_difference(name: str, factor: float, ratio: float, verdict: Verdict) -> None:
    """Ranges here reach from 0.95 to 1.04 of the median."""
    after = with_figure(example(), name, "kvsvr", lambda figure: scaled(figure, factor))
    change = change_of(example(), after, name)
    assert change.ratio == pytest.approx(ratio)
    assert change.verdict is verdict
    assert change_of(example(), after, name, "lmdb").verdict is Verdict.SAME


def test_one_repetition_proves_nothing() -> None:
    after = with_figure(example(), "put", "kvsvr", lambda figure: scaled(figure, 0.2, repetition_count=1))
    assert change_of(example(), after, "put").verdict is Verdict.UNSURE


def test_a_run_beside_itself_differs_in_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compared(example(), example(), tmp_path, "--fail-below", "1") == 0
    said = capsys.readouterr().out
    assert "kvsvr, 13 cells: 13 no difference" in said
    assert " in A, " not in said


def test_facts_that_differ_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = example()
    machine = {**document.machine, "kernel": "7.0", "load_average": [9.0, 9.0, 9.0]}
    machine["packages"] = {"lmdb": "1.5", "plyvel": "1.5.1"}
    machine["file_system"] = {**document.machine["file_system"], "type": "xfs"}
    peers = {**document.peers, "sqlite3": replace(document.peers["sqlite3"], settings="synchronous=OFF")}
    after = replace(document, machine=machine, peers=peers, run={**document.run, "repeat": 5})
    assert compared(document, after, tmp_path) == 0
    said = capsys.readouterr().out
    for line in (
        "kernel: 6.1.0 in A, 7.0 in B",
        "packages.lmdb: 1.4.1 in A, 1.5 in B",
        "file_system.type: ext4 in A, xfs in B",
        "sqlite3, settings: settings of sqlite3 in A, synchronous=OFF in B",
        "repeat: 3 in A, 5 in B",
    ):
        assert line in said
    assert said.count(" in A, ") == 5


def test_cells_that_are_not_in_both_or_not_the_same_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fewer = replace(example(), cells=example().cells[1:])
    other = changed(fewer, "get-hit", setting=Setting(100_000, 16, 100, False, 1))
    assert compared(example(), other, tmp_path) == 0
    said = capsys.readouterr().out
    assert "put: only in A" in said
    assert "get-hit: measured differently" in said
    assert {change.cell.name for change in compare.changes(example(), other)}.isdisjoint({"put", "get-hit"})


@pytest.mark.parametrize(
    ("peer", "factor", "threshold", "code"),
    [("kvsvr", 0.8, "0.9", 1), ("kvsvr", 0.8, "0.7", 0), ("lmdb", 0.1, "0.9", 0), ("kvsvr", 0.97, "0.98", 1)],
)
def test_fail_below_looks_at_kvsvr_alone(peer: str, factor: float, threshold: str, code: int, tmp_path: Path) -> None:
    after = with_figure(example(), "put", peer, lambda figure: scaled(figure, factor))
    assert compared(example(), after, tmp_path, "--fail-below", threshold) == code
    assert compared(example(), after, tmp_path) == 0


def test_a_cell_that_fails_in_b_fell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A gate that a crash slips through would be none."""
    others = {peer: figure for peer, figure in cells()[0].figures.items() if peer != "kvsvr"}
    after = changed(example(), "put", figures=others, ratio=None)
    after = replace(after, repetitions=[{"peer": "kvsvr", "cell": "put", "error": "OSError: no space"}])
    assert compared(example(), after, tmp_path, "--fail-below", "0.1") == 1
    assert "below 0.1: put, failed" in capsys.readouterr().out


@pytest.mark.parametrize("ratio", ["0", "-1", "nan", "inf", "much"])
def test_a_ratio_that_is_none_is_wrong_usage(ratio: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as raised:
        compared(example(), example(), tmp_path, "--fail-below", ratio)
    assert raised.value.code == 2


def test_files_that_cannot_be_compared_are_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 2
    assert "a.json: No such file" in capsys.readouterr().err
    assert compared(example(), replace(example(), cells=[]), tmp_path) == 2
    assert "no cell in common" in capsys.readouterr().err
    alone = {"lmdb": cells()[0].figures["lmdb"]}
    without = replace(example(), cells=[replace(cells()[0], figures=alone, ratio=None, best_peer="lmdb")])
    assert compared(without, without, tmp_path, "--fail-below", "0.9") == 2
    assert "no cell of kvsvr" in capsys.readouterr().err
