"""A run as one HTML page that needs nothing else: no script, no font, no picture from elsewhere, and a policy in its
head that would refuse them. `python -m bench page RUN.json`.

What is won, met and lost comes first, then every cell, the lost ones drawn like the won ones, then where and how it was
measured. Made from a Document alone, so an old file gives the page it would have given then.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from bench.charts import bars, curve_numbers, curves, ratio_bar, ratio_scale, scale_of, wanted
from bench.document import SUBJECT, SYNCED, UNSYNCED, Cell, Document, Setting, Unreadable, read
from bench.markup import Markup, join, tag
from bench.report import bar_lines, each_text, share_text, survives_text
from bench.timeline import picture, summary
from bench.units import short, span, text_of

STYLE = Path(__file__).with_name("page.css")
TIMELINE_LEGEND = "Above, SETs acknowledged a second; below, their latency: p50 (lower line) and p99;"
POLICY = "default-src 'none'; style-src 'unsafe-inline'"

DURABILITY = {
    UNSYNCED: "When the call returns, the write survives the end of the process, kill -9 too, because the kernel has "
    "it. A power cut or a kernel panic may take it back; what is left of the store then differs, and is said below.",
    SYNCED: "When the call returns, the write is on the disk: fdatasync, or what the store uses instead, has returned. "
    "It survives a power cut, as far as the disk keeps its word.",
}

METHOD: Sequence[str] = (
    "Every store does the same work on the same keys in the same order, through the same loop, which does nothing but "
    'call it. Each is set up as well as its documentation allows; the settings are under "stores".',
    "Keys are random and shuffled, read in another order than written. Values do not compress. Every answer that is "
    "timed is checked outside the timer, writes are read back, and a wrong answer is a failure, not a figure.",
    "A figure is the median of the repetitions, with the least and the most beside it. A repetition takes all stores, "
    "one at a time, and each next one starts with another. Background work is waited for before and after.",
    "Other load on the machine is measured; a repetition that it disturbed is done again, and the least disturbed "
    "attempt is kept. If it still was disturbed, the figure carries a *, and should not be quoted.",
    f"A ratio is {SUBJECT} against the best peer of the cell, above 1 where {SUBJECT} is ahead, whether more or less "
    "is better. A bar is the ratio, or the figure, that was asked of it beforehand. What is no store, "
    "such as a dict, stands beside for orientation and never is the best peer.",
    "A limit is what the machine allows in one sync, one call or one copy, measured in the same run. It is for "
    "orientation: a cell that takes a hundred keys in a call, or eight threads in a sync, may be beyond it.",
)

SERVERS = "servers"  # The workload of `python -m bench servers`, whose method is another.
SERVERS_METHOD: Sequence[str] = (
    "Each set of processes is started afresh on loopback, in a directory of its own, and its keys are written once. "
    "Then one generator (native/bench/load.c), a thread with so many connections, keeps a request under way on each. "
    "All of them share the machine's cores: it is a comparison of sets on one small machine, not of clusters.",
    "Keys are scrambled numbers, so in no order and in all shards. Values do not compress. Every answer to a get is "
    "compared with what was written, and a wrong answer is a failure, not a figure.",
    "A row says what an acknowledged write survives. kvsvr has it on disk at a majority in all of them. Peers that do "
    "not sync stand in rows of their own, which say so.",
    "The CPU of a SET is user and system time of all processes of the set, without the generator, over all SETs of the "
    "run. What the generator costs for a request is in the facts of the run.",
    "A gap is the longest that any of sixteen clients waited for a SET, from the kill on. They go to the next process "
    "when a connection breaks, after an error, and after 100 ms without an answer. What was acknowledged is read back.",
    "A figure is the median of the repetitions, with the least and the most beside it; of gaps it is of the kills. "
    "Other load on the machine is measured: a figure that it disturbed carries a *, and should not be quoted.",
    METHOD[4],
)


def page(document: Document) -> str:
    name = f"{SUBJECT} beside its peers"
    body = join(
        tag("header", tag("h1", name), *_opening(document)),
        tag(
            "main",
            *_summary(document),
            *(_group(document, group, cells) for group, cells in document.groups.items()),
            *_timelines(document),
            *_machine(document),
            *_stores(document),
            *_method(document),
        ),
    )
    head = (
        '<meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
    )
    title = tag("title", f"{name}, {_day(document)}")
    style = tag("style", Markup(STYLE.read_text(encoding="utf-8")))
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>{head}{title}{style}</head>\n<body>{body}</body>\n</html>\n'


def _day(document: Document) -> str:
    return str(document.run["started_at"]).partition("T")[0]


def _opening(document: Document) -> list[Markup]:
    machine, run = document.machine, document.run
    common = _common(document)
    sizes = f"{common.key_count:,} keys of {common.key_size} B, {common.values_text}"
    system = machine["file_system"]["type"]
    found = [
        tag("p", f"{_day(document)}. {sizes}, unless a cell says otherwise; {run['repeat']} repetitions."),
        tag(
            "p",
            f"{machine['cpu_model']}, {machine['core_count']} cores, {size_of_memory(machine['memory_bytes'])}, "
            f"Linux {machine['kernel']}, {system}, Python {machine['python']}.",
            class_="faint",
        ),
    ]
    if run["interrupted"]:
        found.append(tag("p", "This run was interrupted: what is missing was not measured.", class_="warning"))
    return found


def size_of_memory(size: int) -> str:
    return f"{size / (1 << 30):.3g} GiB"


def _common(document: Document) -> Setting:
    """What most cells are measured with, so that the others alone need to say it."""
    settings = Counter(cell.setting for cell in document.cells)
    return settings.most_common(1)[0][0] if settings else Setting(int(document.run["key_count"]), 16, 100, False, 1)


# --- what is won, met and lost ---


def _summary(document: Document) -> list[Markup]:
    tally = document.tally
    compared, held = tally.ahead + tally.behind, tally.met + tally.missed
    tallies = [
        (f"{tally.ahead} of {compared}", "cells where kvsvr is ahead of the best peer", ""),
        (f"{tally.behind} of {compared}", "cells where the best peer is ahead", ""),
        (f"{tally.met} of {held}", "bars met", "met"),
        (f"{tally.missed} of {held}", "bars missed", "missed" if tally.missed else ""),
    ]
    boxes = [tag("li", tag("b", count, class_=kind or None), text) for count, text, kind in tallies]
    links = [tag("li", tag("a", group, href=f"#{_anchor('group', group)}")) for group in document.groups]
    links += [tag("li", tag("a", text, href=f"#{_anchor('about', text)}")) for text in ("machine", "stores", "method")]
    left = []
    if len(document.cells) > compared:
        left.append(tag("p", f"Cells with nothing to compare: {len(document.cells) - compared}.", class_="note"))
    if tally.bars > held:
        left.append(tag("p", f"Bars without a figure to hold against: {tally.bars - held}.", class_="note"))
    return [
        tag("ul", *boxes, class_="tallies"),
        *left,
        tag("nav", tag("ul", *links), aria_label="Sections"),
        tag("h2", "Every cell", id="summary"),
        tag(
            "p",
            tag("i", class_="key subject"),
            "the ratio, from 1 x to the right where kvsvr is ahead; ",
            tag("i", class_="key wanted"),
            "its bar. The scale is logarithmic.",
            class_="note",
        ),
        tag("div", _summary_table(document), class_="wide"),
    ]


def _summary_table(document: Document) -> Markup:
    scale = ratio_scale(document.cells)
    # What matters first: a narrow screen shows only the beginning, and scrolls.
    heads = {
        "cell": "",
        "ratio": "number",
        "": "",
        "bar": "",
        "met": "",
        SUBJECT: "number",
        "best peer": "",
        "survives": "",
    }
    rows: list[Markup] = []
    for group, cells in document.groups.items():
        rows.append(tag("tr", tag("th", group, colspan=str(len(heads)), scope="rowgroup")))
        rows += [_summary_row(cell, scale) for cell in cells]
    head = tag("tr", *(tag("th", text, scope="col", class_=kind or None) for text, kind in heads.items()))
    return tag("table", tag("thead", head), tag("tbody", *rows), class_="summary")


def _summary_row(cell: Cell, scale: tuple[float, float]) -> Markup:
    best = cell.figures[cell.best_peer] if cell.best_peer is not None else None
    return tag(
        "tr",
        tag("th", tag("a", cell.title, href=f"#{_anchor('cell', cell.name)}"), scope="row"),
        tag("td", ratio_text(cell), class_="number"),
        tag("td", ratio_bar(cell, scale), class_="drawn"),
        tag("td", ", ".join(text.removeprefix("bar ") for text in bar_lines(cell)) or "-", class_="word"),
        tag("td", verdict(cell)),
        tag("td", "-" if cell.subject is None else text_of(cell.subject.median, cell.unit), class_="number"),
        tag("td", "-" if best is None else f"{text_of(best.median, cell.unit)} {cell.best_peer}", class_="word"),
        tag("td", survives_text(cell), class_="faint word"),
    )


def ratio_text(cell: Cell) -> str:
    return "-" if cell.ratio is None else f"{cell.ratio:.2f} x"


def verdict(cell: Cell) -> Markup:
    """In words, too: the colour may not be seen."""
    if not cell.has_bar:
        return Markup("")
    text, kind = {True: ("\u2713 met", "met"), False: ("\u2717 missed", "missed"), None: ("not measured", "faint")}[
        cell.bar_met
    ]
    return tag("span", text, class_=f"{kind} word")


# --- the cells ---


def _group(document: Document, group: str, cells: Sequence[Cell]) -> Markup:
    drawn = tag("div", *(_cell(document, cell) for cell in cells), class_="cells")
    return tag("section", tag("h2", group, id=_anchor("group", group)), _legend(), drawn)


def _legend() -> Markup:
    entries = (
        ("subject", SUBJECT),
        ("best", "best peer"),
        ("other", "others"),
        ("wanted", "the bar"),
        ("limit", "limit of the machine"),
    )
    keys = (tag("span", tag("i", class_=f"key {kind}"), text) for kind, text in entries)
    return tag("div", *keys, "thin line: least to most; faded end: beyond the scale", class_="legend faint")


def _cell(document: Document, cell: Cell) -> Markup:
    failed = [failure.peer for failure in document.failures if failure.cell == cell.name]
    lines = [tag("p", *_against(cell), class_="note"), tag("p", _circumstances(document, cell), class_="note")]
    if cell.limit is not None:
        share = f": {SUBJECT} reaches {share_text(cell.of_limit)}" if cell.of_limit is not None else ""
        beyond = " (beyond the scale)" if cell.limit.value > scale_of(cell, document.counting) else ""
        text = f"{cell.limit.name} {text_of(cell.limit.value, cell.unit)}{beyond}"
        lines.append(tag("p", tag("i", class_="key limit"), text + share, class_="note"))
    lines += [
        tag("p", f"{failure.peer} failed: {failure.text}", class_="note failed")
        for failure in document.failures
        if failure.cell == cell.name
    ]
    picture = curves(cell, list(document.peers))
    head = tag("div", tag("h3", cell.title), tag("span", ratio_text(cell), class_="figure"), class_="head")
    return tag(
        "article",
        head,
        *lines[:2],
        bars(cell, document, failed),
        *lines[2:],
        picture,
        curve_numbers(cell) if picture else "",
        class_="cell tall" if picture else "cell",
        id=_anchor("cell", cell.name),
    )


def _against(cell: Cell) -> list[str]:
    if cell.ratio is None:
        found: list[str] = ["nothing to compare with"]
    else:
        found = [f"{'ahead of' if cell.ahead else 'behind'} {cell.best_peer}"]
    if not cell.has_bar:
        return [*found, "; no bar"]
    target = wanted(cell)
    figure = f" = {text_of(target, cell.unit)}" if target is not None and cell.bar is not None else ""
    return [*found, "; " + ", ".join(bar_lines(cell)) + figure + ": ", verdict(cell)]


def _circumstances(document: Document, cell: Cell) -> str:
    """The unit, and what of the setting is not as in most cells."""
    common, setting = _common(document), cell.setting
    found = [f"{cell.unit}, {cell.better} is better", f"survives {survives_text(cell)}"]
    if setting.key_count != common.key_count:
        found.append(f"{setting.key_count:,} keys")
    if setting.values_text != common.values_text and setting.values_text not in cell.title:
        found.append(setting.values_text)
    if setting.threads != 1:
        found.append(f"{setting.threads} threads")
    return "; ".join(found)


def _timelines(document: Document) -> list[Markup]:
    """Of sets that were killed from: none in a run of stores."""
    if not document.timelines:
        return []
    drawn = [
        tag(
            "article",
            tag("div", tag("h3", f"{one.peer} through a kill"), class_="head"),
            tag("p", summary(one), class_="note"),
            tag("p", f"{TIMELINE_LEGEND} by {one.bucket_ms} ms", class_="note"),
            picture(one),
            class_="cell tall",
        )
        for one in document.timelines
    ]
    return [tag("section", tag("h2", "through a kill"), tag("div", *drawn, class_="cells"))]


# --- where and how ---


def _machine(document: Document) -> list[Markup]:
    limits = [
        (limit.name, f"{short(limit.figure[0])} {limit.unit}", span(*limit.figure[1:]), each_text(limit))
        for limit in document.limits
    ]
    rows = [(name.replace("_", " "), _fact(name, fact)) for name, fact in document.machine.items()]
    runs = [(name.replace("_", " "), _fact(name, fact)) for name, fact in document.run.items()]
    return [
        tag("h2", "machine", id=_anchor("about", "machine")),
        _table(("limit", "median", "least to most", "each"), limits),
        tag("h3", "Facts"),
        _table(("", ""), rows),
        tag("h3", "The run"),
        _table(("", ""), runs),
    ]


def _fact(name: str, fact: object) -> str:
    if name == "memory_bytes" and isinstance(fact, int):
        return size_of_memory(fact)
    if isinstance(fact, dict):
        return ", ".join(f"{key} {'not installed' if value is None else value}" for key, value in fact.items())
    if isinstance(fact, list | tuple):
        return " ".join(f"{item:.2f}" if isinstance(item, float) else str(item) for item in fact)
    if isinstance(fact, bool) or fact is None:
        return {True: "yes", False: "no", None: "-"}[fact]
    return f"{fact:,}" if isinstance(fact, int) else str(fact)


def _stores(document: Document) -> list[Markup]:
    rows = [(name, peer.library, peer.settings) for name, peer in document.peers.items()]
    found = [
        tag("h2", "stores", id=_anchor("about", "stores")),
        _table(("store", "library", "settings"), rows),
        tag("h3", "What survives what"),
    ]
    if _is_servers(document):
        survives = [(name, peer.survives_fsync) for name, peer in document.peers.items()]
        found.append(_table(("set", "what it has acknowledged"), survives))
    else:
        found += [tag("p", tag("b", text), ". ", meaning) for text, meaning in DURABILITY.items()]
        survives_both = [(name, peer.survives_unsynced, peer.survives_fsync) for name, peer in document.peers.items()]
        found.append(_table(("store", "cells that do not sync", "cells that do"), survives_both))
    if document.skipped:
        found += [tag("h3", "Not measured"), _table(("what", "why"), list(document.skipped.items()))]
    if document.failures:
        rows = [(failure.peer, failure.cell, failure.text) for failure in document.failures]
        found += [tag("h3", "Failed"), _table(("store", "cell", "why"), rows)]
    return found


def _method(document: Document) -> list[Markup]:
    texts = SERVERS_METHOD if _is_servers(document) else METHOD
    return [tag("h2", "method", id=_anchor("about", "method")), *(tag("p", text) for text in texts)]


def _is_servers(document: Document) -> bool:
    return document.run.get("workload") == SERVERS


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    """The first column names the row."""
    head = tag("thead", tag("tr", *(tag("th", text, scope="col") for text in heads))) if any(heads) else Markup("")
    body = [
        tag("tr", tag("th", row[0], scope="row", class_="word"), *(tag("td", text) for text in row[1:])) for row in rows
    ]
    return tag("div", tag("table", head, tag("tbody", *body), class_="facts"), class_="wide")


def _anchor(kind: str, name: str) -> str:
    """By kind, because a group and a cell may have the same name."""
    return kind + "-" + "".join(letter if letter.isalnum() else "-" for letter in name)


# --- the command ---


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="python -m bench page", description="A run as one HTML page.")
    result.add_argument("run", type=Path, metavar="RUN.json")
    result.add_argument("--out", type=Path, metavar="FILE", help="default: RUN.html")
    return result


def main(argv: Sequence[str]) -> int:
    options = parser().parse_args(argv)
    out: Path = options.out or options.run.with_suffix(".html")
    try:
        write(read(options.run), out)
    except (Unreadable, OSError) as error:
        print(f"python -m bench page: {error}", file=sys.stderr)
        return 2
    print(f"written to {out}")
    return 0


def write(document: Document, path: Path) -> None:
    path.write_text(page(document), encoding="utf-8")
