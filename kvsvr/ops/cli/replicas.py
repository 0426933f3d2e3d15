"""kvsvr status, stop, kill and replace: of a set that `kvsvr launch` runs. And what all of them say of one."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import click

from kvsvr.errors import UsageError
from kvsvr.node.config import Address, address
from kvsvr.node.report import State
from kvsvr.ops import launcher
from kvsvr.ops.cli.common import DEGRADED, FAILED, json_option, print_json, say
from kvsvr.ops.place import find
from kvsvr.ops.replace import replace_elsewhere, replace_here
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
    if one.leaving:
        note = "is being replaced"
    elif one.state is State.SERVING and one.voting == 0:
        note = "learns"
    if one.state is State.STUCK and one.age is not None:
        note = f"silent for {one.age:.0f} s"
    last = f"last: {one.error}" if one.error and one.state is State.SERVING else one.error
    return ": ".join(text for text in (note, last) if text)


def words(status: SetStatus) -> str:
    staying = [one for one in status.replicas if not one.leaving]
    count = len(staying)
    serving = sum(one.state is State.SERVING for one in staying)
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


@click.command("replace")
@click.argument("node", metavar="ID", type=int)
@directory_option
@click.option("--by", type=int, help="On several machines: the id of the one that was started in its place.")
@click.option("--at", metavar="HOST:PORT", help="On several machines: where clients of some replica go.")
@click.option("--wait", "wait_s", metavar="SECONDS", type=float, default=600, show_default=True, help="At most.")
@json_option
def replace_command(node: int, directory: Path, by: int | None, at: str | None, wait_s: float, as_json: bool) -> None:
    """Put another replica in the place of one whose disk is lost, or that is to go, while the set serves.

    The new one has a new id and an empty directory, learns everything from the others, and gets the other one's vote.
    If that one still runs, it ends when nothing is on it alone any more. If this command ends early, the same one goes
    on. With --by and --at it does so for replicas that were started by hand, on whatever machines; the password is
    taken from KVSVR_PASSWORD.
    """
    tell = (lambda _: None) if as_json else say
    if (by is None) != (at is None):
        raise UsageError("--by and --at go together: the new one's id, and where some replica listens for clients")
    if by is not None and at is not None:
        password = os.environ.get("KVSVR_PASSWORD", "").encode()
        replace_elsewhere(_address(at), node, by, password=password, wait_s=wait_s, tell=tell)
    else:
        by = replace_here(find(directory), node, wait_s=wait_s, tell=tell).node
    if as_json:
        print_json({"old": node, "new": by})
    else:
        say(f"replica {by} has taken the place of {node}, whose directory is of no use any more")


def _address(text: str) -> Address:
    try:
        return address(text)
    except ValueError as error:
        raise UsageError(f"--at: {error}") from None
