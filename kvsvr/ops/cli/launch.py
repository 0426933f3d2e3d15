"""kvsvr launch: a set of replicas on this machine, kept running."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click

from kvsvr.errors import KvError, LockedError
from kvsvr.ops import launcher
from kvsvr.ops.cli.common import DEGRADED, json_option, print_json, say, wants_json
from kvsvr.ops.cli.replicas import directory_option, print_status, to_json
from kvsvr.ops.place import Place, make_or_find
from kvsvr.ops.status import SetStatus, launcher_pid, look

QUIET: Final = ("starting", "serving", "waiting", "stopping", "left", "stopped", "link_up", "link_down", "takes_over")
"""Events of replicas that are said at once by others, or belong to a start or an end."""


@click.command("launch")
@directory_option
@click.option("--replicas", "count", type=int, help="How many: 1, 3 or 5; 3 where a set is made.")
@click.option(
    "--port",
    type=click.IntRange(1, 65_535),
    help="Clients' port of the first, 7101 where a set is made; the others follow.",
)
@click.option("--durability", metavar="version|data", help="Where a set is made: as of kvsvr serve.")
@click.option("--inline-max", metavar="SIZE", help="Where a set is made: as of kvsvr serve.")
@click.option("--detach", is_flag=True, help="Leave it running, and come back when it is a set.")
@click.option(
    "--wait",
    "wait_s",
    metavar="SECONDS",
    type=float,
    default=60.0,
    show_default=True,
    help="With --detach: at most so long.",
)
@click.option("--verbose", is_flag=True, help="Show all that the replicas log.")
@click.option("--with-stdin", is_flag=True, help="Stop when stdin ends: for programs that start it and may be killed.")
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    directory: Path,
    count: int | None,
    port: int | None,
    detach: bool,
    wait_s: float,
    verbose: bool,
    with_stdin: bool,
    as_json: bool,
    durability: str | None,
    inline_max: str | None,
) -> None:
    """Run a set of replicas on this machine: make it where there is none, start it, restart what dies, until Ctrl-C.

    Any Redis client may talk to any of them. They listen on 127.0.0.1 only. DIR holds settings, data and logs, and
    is run again by the same command. Exit code 3: a replica died too often, or in a way that no restart mends, and was
    given up.
    """
    settings = {"durability": durability, "inline_max": inline_max}
    wanted = {name: value for name, value in settings.items() if value is not None}
    place, made = make_or_find(directory, count, port, wanted)
    say(f"{'made' if made else 'found'} a set of {len(place.replicas)} in {place.directory}")
    if detach:
        status = _detach(place, wait_s)
        _greet(status)
        return
    one = launcher.Launcher(place, lambda event, fields: _told(event, fields, verbose=verbose))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: one.stop())
    if with_stdin:
        threading.Thread(target=_wait_for_stdin, args=(one,), daemon=True).start()
    whole = one.run()
    say("stopped; the same command starts it again")
    ctx.exit(0 if whole else DEGRADED)


def _wait_for_stdin(one: launcher.Launcher) -> None:
    while os.read(0, 4096):
        pass
    one.stop()


def _detach(place: Place, wait_s: float) -> SetStatus:
    pid = launcher_pid(place)
    if pid is not None:
        raise LockedError(str(place.directory), pid)
    place.launcher_file.unlink(missing_ok=True)
    with open(place.launcher_log, "ab") as log:
        process = subprocess.Popen(
            launcher.command("launch", "--dir", str(place.directory)),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            start_new_session=True,
        )
    deadline = time.monotonic() + wait_s
    while not _is_ready(place):
        if process.poll() is not None:
            raise KvError(f"the launcher ended with {process.returncode}: {place.launcher_log} says why")
        if time.monotonic() >= deadline:
            raise KvError(
                f"it is no set after {wait_s:g} s, and goes on trying: kvsvr status --dir {place.directory} says how "
                f"far it is, {place.launcher_log} what happened"
            )
        time.sleep(launcher.PAUSE_S)
    process.returncode = 0  # It goes on; nobody here waits for it.
    return look(place)


def _is_ready(place: Place) -> bool:
    try:
        return bool(json.loads(place.launcher_file.read_text(encoding="utf-8"))["ready"])
    except (OSError, ValueError, KeyError):
        return False


def _told(event: str, fields: Mapping[str, Any], *, verbose: bool) -> None:
    node = fields.get("node")
    if event == "ready":
        _greet(fields["status"])
    elif event == "log":
        _log(fields["node"], fields["line"], verbose=verbose)
    elif event == "died":
        say(f"replica {node} {fields['error']}; it is started again in {fields['pause_s']:g} s")
    elif event == "given_up":
        click.secho(
            f"replica {node} {fields['error']}: GIVEN UP. Its log: {fields['log']}", err=True, fg="red", bold=True
        )
        say("  when that is mended: stop, and launch again")
    elif event == "health":
        click.secho(f"the set is {fields['state']}", err=True, fg="green" if fields["state"] == "healthy" else "red")
    elif event == "orphan":
        say(f"replica {node} ran without a launcher (process {fields['pid']}): it is ended first")
    elif event == "trouble":
        click.secho(f"the launcher has trouble, and goes on: {fields['error']}", err=True, fg="red")
    elif verbose:
        say(f"replica {node} is process {fields['pid']}")


def _log(node: int, line: str, *, verbose: bool) -> None:
    try:
        found = json.loads(line)
        event, level = found["event"], found["level"]
    except (ValueError, KeyError, TypeError):
        say(f"{node} | {line}")  # Not one of ours: a traceback, perhaps.
        return
    if not verbose and event in QUIET:
        return
    more = " ".join(
        f"{name}={value}" for name, value in found.items() if name not in ("time", "level", "node", "event")
    )
    colour = {"warning": "yellow", "error": "red"}.get(level)
    click.secho(f"{node} | {found['time'][11:23]} {event} {more}".rstrip(), err=True, fg=colour)


def _greet(status: SetStatus) -> None:
    if wants_json(click.get_current_context()):
        print_json(to_json(status))
        return
    print_status(status)
    host, _, port = status.replicas[0].address.rpartition(":")
    where = f"--dir {os.path.relpath(status.directory)}"
    click.echo("try:")
    click.echo(f"  redis-cli -h {host} -p {port} set greeting hello")
    click.echo(f"  python -c 'import redis; print(redis.Redis(port={port}).incr(\"visits\"))'")
    click.echo(f"  kvsvr status {where}")
    if len(status.replicas) > 1:
        click.echo(f"  kvsvr kill {status.replicas[-1].id} {where}    # nothing is lost, and it comes back")
    click.echo(f"  kvsvr stop {where}")
