"""kvsvr put: set one value."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from kvsvr.errors import UsageError
from kvsvr.ops.cli.common import directory_argument, hex_option, json_option, print_json, say, to_bytes
from kvsvr.ops.records import fields
from kvsvr.store import open as open_store


@click.command("put")
@directory_argument
@click.argument("key")
@click.argument("value", required=False)
@click.option(
    "--file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Take the value from a file."
)
@click.option("--ttl", type=float, metavar="SECONDS", help="Let it expire.")
@click.option("--durable", is_flag=True, help="Return when it is on disk.")
@hex_option
@json_option
def command(
    directory: Path,
    key: str,
    value: str | None,
    file: Path | None,
    ttl: float | None,
    durable: bool,
    as_hex: bool,
    as_json: bool,
) -> None:
    """Set KEY to VALUE, or to what stdin (-) or --file holds, as it is. Makes the store if there is none."""
    if (value is None) == (file is None):
        raise UsageError("give one value: VALUE, - for stdin, or --file")
    name = to_bytes(key, as_hex=as_hex)
    content = _content(value, file, as_hex)
    with open_store(directory) as db:
        version = db.put(name, content, ttl=ttl, durable=durable)
    if as_json:
        print_json({**fields(name), "version": version})
    else:
        say(f"version {version}")


def _content(value: str | None, file: Path | None, as_hex: bool) -> bytes:
    if file is not None:
        return file.read_bytes()
    if value == "-":
        return sys.stdin.buffer.read()
    assert value is not None
    return to_bytes(value, as_hex=as_hex)
