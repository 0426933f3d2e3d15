"""kvsvr top: what a set does, second by second, on a terminal."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from kvsvr.ops.cli.common import DEGRADED
from kvsvr.ops.cli.replicas import COLOURS, directory_option, note, words
from kvsvr.ops.place import find
from kvsvr.ops.rates import Frame, Rater
from kvsvr.ops.status import Health

PERIOD_S: Final = 1.0
BARS: Final = "▁▂▃▄▅▆▇█"
COLUMNS: Final = (
    "id",
    "state",
    "shards",
    "lag",
    "clients",
    "commands/s",
    "passed on/s",
    "errors/s",
    "syncs/s",
    "in/s",
    "out/s",
    "cpu",
    "memory",
    "",
)


@click.command("top")
@directory_option
@click.option("--once", is_flag=True, help="Print one look, of a second, and end: exit code 3 if not all serve.")
@click.pass_context
def command(ctx: click.Context, directory: Path, once: bool) -> None:
    """Show what a set does, each second, until Ctrl-C.

    Of each replica: the shards it owns, versions it is behind, clients, commands it was asked and those it passed on,
    syncs of its log, bytes from and to clients, CPU and memory. As kvsvr status it asks nobody, so it shows what
    hangs, too. What is no terminal gets one look.
    """
    rater = Rater(find(directory))
    console = Console(highlight=False)
    rater.look()
    time.sleep(PERIOD_S)
    frame = rater.look()
    if once or not console.is_terminal:
        console.print(picture(frame))
        ctx.exit(0 if frame.status.state is Health.HEALTHY else DEGRADED)
    with suppress(KeyboardInterrupt), Live(picture(frame), console=console, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(PERIOD_S)
            live.update(picture(rater.look()), refresh=True)


def picture(frame: Frame) -> Group:
    status = frame.status
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in COLUMNS:
        table.add_column(name, justify="left" if name in ("state", "") else "right", no_wrap=bool(name))
    for one in status.replicas:
        rates = frame.rates[one.id]
        counted = rates.each_second
        table.add_row(
            str(one.id),
            Text(one.state, COLOURS.get(one.state, "bold red")),
            f"{one.shards:,}",
            "-" if one.lag is None else f"{one.lag:,}",
            f"{one.clients:,}",
            *(_number(counted.get(name)) for name in ("commands", "forwarded", "errors", "syncs")),
            *(_size(counted.get(name)) for name in ("received_size", "sent_size")),
            "-" if rates.cpu is None else f"{100 * rates.cpu:.0f} %",
            _size(rates.memory_size),
            Text(note(one)),
        )
    colour = "green" if status.state is Health.HEALTHY else "bold red"
    head = Text.assemble(status.directory, " is ", (status.state, colour), f": {words(status)}")
    rate = frame.commands[-1] if frame.commands else None
    return Group(head, Text(), table, Text(), Text(f"{_number(rate)} commands/s  {line(frame.commands)}"))


def line(values: Sequence[float]) -> str:
    """A bar for each, as high as it is beside the highest."""
    top = max(values, default=0.0) or 1.0
    return "".join(BARS[min(len(BARS) - 1, int(len(BARS) * value / top))] for value in values)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _size(value: Any) -> str:
    if value is None:
        return "-"
    size = float(value)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
