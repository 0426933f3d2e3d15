"""kvsvr put: set one value."""

from __future__ import annotations

from pathlib import Path

import click

from kvsvr.ops.cli.common import (
    content_of,
    directory_argument,
    file_option,
    hex_option,
    json_option,
    print_json,
    say,
    to_bytes,
)
from kvsvr.ops.records import fields
from kvsvr.store import open as open_store


@click.command("put")
@directory_argument
@click.argument("key")
@click.argument("value", required=False)
@file_option
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
    """Set KEY to VALUE, or to what stdin (-) or --file holds, as it is.

    Makes the store if there is none. A table under KEY is replaced, with all its rows.
    """
    name = to_bytes(key, as_hex=as_hex)
    content = content_of(value, file, as_hex=as_hex)
    with open_store(directory) as db:
        version = db.put(name, content, ttl=ttl, durable=durable)
    if as_json:
        print_json({**fields(name), "version": version})
    else:
        say(f"version {version}")
