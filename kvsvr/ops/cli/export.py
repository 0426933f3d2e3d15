"""kvsvr export: every key as a line of JSON or a row of CSV, and every row of a table as a line of JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import click

from kvsvr.ops.cli.common import (
    directory_argument,
    format_of,
    format_option,
    json_option,
    output,
    print_json,
    progress,
    reading,
    say,
)
from kvsvr.ops.records import Expiry, Format, no_csv, writer
from kvsvr.ops.transfer import dump
from kvsvr.store import Engine

PROGRESS_EVERY = 1000


@click.command("export")
@directory_argument
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True, path_type=Path))
@format_option
@json_option
def command(directory: Path, file: Path, format_: str | None, as_json: bool) -> None:
    """Write every key and every row of a table, with value and expiry, to FILE, or to stdout (-).

    CSV has no columns for tables: a store with tables is refused before anything is written.

    FILE appears whole or not at all. A writer may go on meanwhile; what it writes meanwhile may or may not be in it.
    """
    to_stdout = str(file) == "-"
    chosen = format_of(file, format_)
    with reading(directory) as db, _stream(db, file, chosen) as stream:
        # On a terminal that the data goes to, a bar would be drawn over it.
        visible = not (to_stdout and sys.stdout.isatty())
        with progress("export", _count(db), visible=visible) as advance:
            count = _write(db, stream, chosen, advance)
    summary = {"exported_count": count, "file": str(file)}
    if as_json and not to_stdout:
        print_json(summary)
    else:
        say(json.dumps(summary) if as_json else f"{count} keys and rows exported")


@contextmanager
def _stream(db: Engine, file: Path, format_: Format) -> Iterator[BinaryIO]:
    """Where it goes. What cannot be told in this format is refused before stdout has seen a byte."""
    table = next(db.tables(), None) if format_ == "csv" else None
    if table is not None:
        raise no_csv(table)
    with output() if str(file) == "-" else _whole(file) as stream:
        yield stream


def _write(db: Engine, stream: BinaryIO, format_: Format, advance: Callable[[int], None]) -> int:
    head, encode = writer(format_)
    stream.write(head)
    count = 0
    for record in dump(db):
        stream.write(encode(record))
        count += not isinstance(record, Expiry)
        if count % PROGRESS_EVERY == 0:
            advance(count)
    return count


def _count(db: Engine) -> int:
    return len(db) + int(db.stats()["row_count"])


@contextmanager
def _whole(file: Path) -> Iterator[BinaryIO]:
    """A file that takes its name when it is complete and on disk. A pipe or device is written as it is."""
    if file.exists() and not file.is_file():
        with open(file, "wb") as stream:
            yield stream
        return
    new = file.with_name(file.name + ".new")
    try:
        with open(new, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(new, file)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
