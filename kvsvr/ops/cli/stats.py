"""kvsvr stats: the figures of a store."""

from __future__ import annotations

from pathlib import Path

import click

from kvsvr.ops.cli.common import directory_argument, json_option, print_json, reading


@click.command("stats")
@directory_argument
@json_option
def command(directory: Path, as_json: bool) -> None:
    """Print the store's figures, a name and a number a line, as db.stats() gives them to a read-only opener."""
    with reading(directory) as db:
        figures = db.stats()
    if as_json:
        print_json(figures)
        return
    for name, figure in figures.items():
        click.echo(f"{name}\t{'-' if figure is None else figure}")
