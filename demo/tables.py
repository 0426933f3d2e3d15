"""A table for every package: its rows are the lines that define a function or a class, by file and line."""

from __future__ import annotations

import os
import re
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Final

import kvsvr
from demo.files import files_under
from demo.report import Section, rate
from demo.run import Run

DEFINES: Final = re.compile(rb"\s*(?:async\s+def|def|class)\s+\w+")
PREFIX: Final = b"code/"
LAST_COUNT: Final = 3

Rows = dict[bytes, bytes]


def tables(run: Run, section: Section) -> None:
    """Loads the tables, asks them what a table is asked, and compares every answer with the source."""
    expected = _source_tables(run)
    with kvsvr.open(run.store) as db:
        began = time.perf_counter()
        with run.screen.bar(f"write {len(expected):,} tables", len(expected)) as done:
            for count, (key, rows) in enumerate(expected.items(), 1):
                db.table(key).put_many(rows.items())
                done(count)
        seconds = time.perf_counter() - began
        row_count = sum(map(len, expected.values()))
        section.lines.append(
            f"{len(expected):,} tables, {row_count:,} rows in {seconds:.2f} s: {rate(row_count, seconds)} rows/s"
        )
        _compare(db, expected, section)
        _last(db, expected, section)
        _prefix(run, db, section)
        _changes(db, expected, section)


def _source_tables(run: Run) -> dict[bytes, Rows]:
    found: defaultdict[bytes, Rows] = defaultdict(dict)
    for key, path in files_under(run.source):
        if path.suffix != ".py":
            continue
        package = PREFIX + os.fsencode(PurePosixPath(os.fsdecode(key)).parent)
        found[package].update(_definitions(path.name.encode(), path.read_bytes()))
    return {key: rows for key, rows in sorted(found.items()) if rows}


def _definitions(name: bytes, content: bytes) -> Iterator[tuple[bytes, bytes]]:
    for number, line in enumerate(content.splitlines(), 1):
        if DEFINES.match(line):
            yield b"%s:%06d" % (name, number), line.strip()


def _compare(db: kvsvr.Engine, expected: dict[bytes, Rows], section: Section) -> None:
    if list(db.tables(prefix=PREFIX)) != list(expected):
        section.failures.append("tables() does not list the packages, each once, in order")
    for key, rows in expected.items():
        table = db.table(key)
        if len(table) != len(rows) or list(table.rows()) != sorted(rows.items()):
            section.failures.append(f"{key!r} does not hold the lines of its files, in order")


def _last(db: kvsvr.Engine, expected: dict[bytes, Rows], section: Section) -> None:
    key = max(expected, key=lambda one: len(expected[one]))
    last = db.table(key).last(LAST_COUNT)
    if last != sorted(expected[key].items())[-LAST_COUNT:]:
        section.failures.append(f"last({LAST_COUNT}) of {key!r} is not its end")
    section.lines.append(f"largest: {key.decode()}, {len(expected[key]):,} rows; its last {len(last)}:")
    section.lines += [f"  {row.decode(errors='replace')}  {line.decode(errors='replace')[:60]}" for row, line in last]


def _prefix(run: Run, db: kvsvr.Engine, section: Section) -> None:
    """Keys and tables have one namespace and two listings."""
    folders = [key.split(b"/", 1)[0] + b"/" for key in run.sizes if b"/" in key]
    prefix = max(sorted(set(folders)), key=folders.count)
    began = time.perf_counter()
    sizes = {key: len(value) for key, value in db.scan(prefix=prefix)}
    seconds = time.perf_counter() - began
    if list(sizes) != sorted(key for key in run.sizes if key.startswith(prefix)):
        section.failures.append(f"scan(prefix={prefix!r}) does not list the files of that folder, in order")
    section.lines.append(
        f"scan of {prefix.decode()}*: {len(sizes):,} files, {rate(sum(sizes.values()) / 1e6, seconds)} MB/s"
    )


def _changes(db: kvsvr.Engine, expected: dict[bytes, Rows], section: Section) -> None:
    """Somebody who has seen the table up to a version asks what is new since."""
    key = min(expected, key=lambda one: abs(len(expected[one]) - 100))
    table = db.table(key)
    seen = table.version
    first, second, *_ = expected[key] if len(expected[key]) > 1 else [*expected[key], b"?"]
    table.put(first, b"overwritten")
    table.put(first, b"and again")
    table.delete(second)
    row = table.append(b"a line that nobody wrote")
    changes = table.changes(seen)
    if changes.rows != [(first, b"and again"), (row, b"a line that nobody wrote")] or changes.deleted != [second]:
        section.failures.append(f"changes({seen}) of {key!r} are not what was changed: {changes}")
    section.lines.append(
        f"{key.decode()}: 4 writes later, changes({seen}) gives {len(changes.rows)} rows, "
        f"{len(changes.deleted)} deleted"
    )
