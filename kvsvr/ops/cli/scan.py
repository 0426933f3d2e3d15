"""kvsvr scan: keys in order, with their values."""

from __future__ import annotations

import json
from pathlib import Path

import click

from kvsvr.ops.cli.common import directory_argument, hex_option, json_option, output, reading, shown, to_bytes
from kvsvr.ops.records import fields


@click.command("scan")
@directory_argument
@click.option("--prefix", help="Only keys that begin with it.")
@click.option("--start", help="From this key on.")
@click.option("--stop", help="Only below this key.")
@click.option("--reverse", is_flag=True, help="From the end.")
@click.option("--limit", type=click.IntRange(min=0), help="At most so many.")
@click.option("--keys", "keys_only", is_flag=True, help="No values.")
@hex_option
@json_option
def command(
    directory: Path,
    prefix: str | None,
    start: str | None,
    stop: str | None,
    reverse: bool,
    limit: int | None,
    keys_only: bool,
    as_hex: bool,
    as_json: bool,
) -> None:
    r"""List keys in order, one a line: key, tab, value.

    What would break a line is escaped as in Python (\n, \t, \\, \xff), so nothing is lost. With --json, one object
    a line.
    """
    bounds = [None if text is None else to_bytes(text, as_hex=as_hex) for text in (start, stop, prefix)]
    with reading(directory) as db, output() as stream:
        if keys_only:
            for key in db.keys(bounds[0], bounds[1], prefix=bounds[2], reverse=reverse, limit=limit):
                stream.write(_line(key, None, as_hex, as_json))
        else:
            for key, value in db.scan(bounds[0], bounds[1], prefix=bounds[2], reverse=reverse, limit=limit):
                stream.write(_line(key, value, as_hex, as_json))


def _line(key: bytes, value: bytes | None, as_hex: bool, as_json: bool) -> bytes:
    if as_json:
        text = json.dumps(fields(key, value), ensure_ascii=False)
    else:
        text = "\t".join(shown(part, as_hex=as_hex) for part in (key, value) if part is not None)
    return text.encode() + b"\n"
