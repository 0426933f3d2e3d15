"""kvsvr import: keys from what export wrote, or something else that looks like it."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeAlias

import click

from kvsvr.ops.cli.common import (
    DEGRADED,
    directory_argument,
    format_of,
    format_option,
    json_option,
    print_json,
    progress,
    say,
)
from kvsvr.ops.records import BadInput, Format, reader
from kvsvr.ops.transfer import Loaded, load
from kvsvr.store import open as open_store

# An input of another make is wrong on every line: nobody reads a million complaints.
TOLD_MAX: Final = 20

Skip: TypeAlias = Callable[[BadInput], None]


@click.command("import")
@directory_argument
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path))
@format_option
@click.option("--skip-errors", is_flag=True, help="Go on behind records that are bad; exit code 3 if any.")
@json_option
@click.pass_context
def command(
    ctx: click.Context, directory: Path, file: Path, format_: str | None, skip_errors: bool, as_json: bool
) -> None:
    """Set the keys and rows that FILE, or stdin (-), holds. Makes the store if there is none; others stay.

    A key that was a table is one no more: its rows are dropped. A row of a key that holds a value is bad input. That
    ends it with line and column; what was before that is written.
    """
    told: list[BadInput] = []

    def skip(error: BadInput) -> None:
        if len(told) < TOLD_MAX:
            told.append(error)
            if not as_json:
                say(f"skipped: {error}")

    with nullcontext(sys.stdin.buffer) if str(file) == "-" else file.open("rb") as stream:
        done = _load(directory, stream, format_of(file, format_), skip if skip_errors else None)
    if as_json:
        print_json(_summary(done, told))
    else:
        counts = f"{done.expired_count} had expired, {done.skipped_count} skipped"
        say(f"{done.written_count} keys and rows imported, {counts}")
    if done.skipped_count:
        ctx.exit(DEGRADED)


def _load(directory: Path, stream: BinaryIO, format_: Format, skip: Skip | None) -> Loaded:
    size = _size(stream)
    done = Loaded()
    with (
        open_store(directory) as db,
        progress("import", size) as advance,
    ):
        try:
            for done in load(db, reader(format_)(stream), skip=skip):
                advance(stream.tell() if size is not None else done.written_count)
        except BadInput as error:
            before = f"Records before it were imported: {done.written_count}"
            error.args = (f"{error}. {before}. --skip-errors goes on behind it",)
            raise
    return done


def _size(stream: BinaryIO) -> int | None:
    """Of a file; None for a pipe, or for what only looks like a stream."""
    try:
        status = os.fstat(stream.fileno())
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _summary(done: Loaded, told: list[BadInput]) -> dict[str, Any]:
    return {
        "imported_count": done.written_count,
        "expired_count": done.expired_count,
        "skipped_count": done.skipped_count,
        "errors": [{"line": error.line, "column": error.column, "what": error.what} for error in told],
    }
