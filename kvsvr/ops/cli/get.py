"""kvsvr get: one value."""

from __future__ import annotations

from pathlib import Path

import click

from kvsvr.ops.cli.common import (
    FAILED,
    directory_argument,
    hex_option,
    json_option,
    output,
    print_json,
    reading,
    say,
    shown,
    to_bytes,
)
from kvsvr.ops.records import fields


@click.command("get")
@directory_argument
@click.argument("key")
@hex_option
@json_option
@click.pass_context
def command(ctx: click.Context, directory: Path, key: str, as_hex: bool, as_json: bool) -> None:
    """Write the value of KEY to stdout, byte for byte. Exit code 1 if it is absent; null with --json."""
    name = to_bytes(key, as_hex=as_hex)
    with reading(directory) as db:
        found = db.get_versioned(name)
    if found is None:
        print_json(None) if as_json else say(f"kvsvr: {shown(name, as_hex=as_hex)} is absent")
        ctx.exit(FAILED)
    if as_json:
        print_json({**fields(name, found.value), "version": found.version, "expires_at": found.expires_at})
        return
    with output() as stream:
        stream.write(found.value.hex().encode() + b"\n" if as_hex else found.value)
