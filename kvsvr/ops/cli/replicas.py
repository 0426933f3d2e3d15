"""kvsvr status, stop and kill: of a set that `kvsvr launch` runs. And what all of them say of one."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import click

from kvsvr.node.report import State
from kvsvr.ops import launcher
from kvsvr.ops.cli.common import DEGRADED, FAILED, json_option, print_json, say
from kvsvr.ops.place import find
from kvsvr.ops.status import Health, ReplicaStatus, SetStatus, look

directory_option = click.option(
    "--dir",
    "directory",
    metavar="DIR",
    type=click.Path(path_type=Path),
    default="kvsvr-set",
    show_default=True,
    help="Of the set.",
)

COLOURS: Final = {
    State.SERVING: "green",
    State.STARTING: "yellow",
    State.WAITING: "yellow",
    State.STOPPING: "yellow",
    State.STOPPED: "dim",
}


def to_json(status: SetStatus) -> dict[str, Any]:
    return asdict(status)


def print_status(status: SetStatus) -> None:
    """For people: a table on stdout, in colours if that is a terminal."""
    from rich.console import Console  # Here, because it takes longer to import than a get takes.
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("id", "state", "address", "pid", "shards", "lag", "clients", "links", "restarts", ""):
        right = name in ("id", "pid", "shards", "lag", "clients", "links", "restarts")
        table.add_column(name, justify="right" if right else "left", no_wrap=bool(name))
    for one in status.replicas:
        numbers = (one.shards, one.lag, one.clients, one.links, one.restarts)
        table.add_row(
            str(one.id),
            Text(one.state, COLOURS.get(one.state, "bold red")),
            one.address,
            "-" if one.pid is None else str(one.pid),
            *("-" if number is None else f"{number:,}" for number in numbers),
            Text(note(one)),
        )
    console = Console(highlight=False)
    console.print(table)
    colour = "green" if status.state is Health.HEALTHY else "bold red"
    console.print(Text.assemble("the set is ", (status.state, colour), f": {words(status)}"), soft_wrap=True)


def note(one: ReplicaStatus) -> str:
    note = "given up" if one.given_up else ""
    if one.state is State.STUCK and one.age is not None:
        note = f"silent for {one.age:.0f} s"
    last = f"last: {one.error}" if one.error and one.state is State.SERVING else one.error
    return ": ".join(text for text in (note, last) if text)


def words(status: SetStatus) -> str:
    count = len(status.replicas)
    serving = sum(one.state is State.SERVING for one in status.replicas)
    who = f"{serving} of {count} serve, {status.owned} of {status.shard_count} shards have an owner"
    return who + ("" if status.launcher else "; no launcher runs, so nobody restarts what dies")


@click.command("status")
@directory_option
@json_option
@click.pass_context
def status_command(ctx: click.Context, directory: Path, as_json: bool) -> None:
    """Say how a set is: its replicas, the shards they own, how far behind they are, what went wrong last.

    It reads what the replicas write of themselves each second, so it works whatever hangs. Exit code 3 if not all of
    them serve.
    """
    status = look(find(directory))
    if as_json:
        print_json(to_json(status))
    else:
        print_status(status)
    ctx.exit(0 if status.state is Health.HEALTHY else DEGRADED)


@click.command("stop")
@directory_option
@json_option
def stop_command(directory: Path, as_json: bool) -> None:
    """Stop a set: the launcher, if one runs, and the replicas. Nothing that runs is fine, too."""
    place = find(directory)
    pid = launcher.end_launcher(place)
    left = [one.node for one in place.replicas if launcher.end(one)]
    if as_json:
        print_json({"launcher": pid, "replicas_without_launcher": left})
    elif pid is None and not left:
        say(f"nothing of {directory} was running")
    else:
        say(f"{directory} is stopped; kvsvr launch --dir {directory} starts it again")


@click.command("kill")
@click.argument("node", metavar="ID", type=int)
@directory_option
@json_option
@click.pass_context
def kill_command(ctx: click.Context, node: int, directory: Path, as_json: bool) -> None:
    """Kill a replica with SIGKILL, to see that nothing is lost. The launcher starts it again."""
    pid = launcher.kill(find(directory).replica(node))
    if as_json:
        print_json({"id": node, "pid": pid})
    else:
        say(f"replica {node} was not running" if pid is None else f"replica {node} (process {pid}) is killed")
    ctx.exit(FAILED if pid is None else 0)
