"""kvsvr serve: one replica, in the foreground."""

from __future__ import annotations

import os
import resource
import signal
import socket
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from kvsvr.errors import CorruptionError, DiskError
from kvsvr.node.config import load, text_of
from kvsvr.node.log import log_to_stderr, tell
from kvsvr.node.server import Server
from kvsvr.ops.cli.common import DAMAGE, FAILED


@click.command("serve")
@click.option("--config", type=click.Path(path_type=Path), help="A TOML file; the environment and flags go over it.")
@click.option("--id", help="Of this replica in its set.")
@click.option("--dir", help="Where its data are.")
@click.option("--listen", metavar="HOST:PORT", help="For clients.")
@click.option("--peer-listen", metavar="HOST:PORT", help="For the other replicas.")
@click.option("--peer", "peers", metavar="ID=HOST:PORT", multiple=True, help="Another replica; one flag for each.")
@click.option("--set", metavar="NAME", help="The set it belongs to.")
@click.option("--shards", help="Of the set, when it is made.")
@click.option("--secret-file", help="What only replicas of the set know.")
@click.option("--status-file", help="Where it writes how it is, for kvsvr status.")
@click.option("--clients-max", help="Who comes then is sent away.")
@click.option("--request-ms", help="After which a command is answered with an error.")
@click.option("--stop-ms", help="After which a stop waits for nobody any more.")
@click.option("--word-size-max", metavar="SIZE", help="Of one argument of a command.")
@click.option("--owed-size-max", metavar="SIZE", help="To a client that does not read.")
@click.option("--keep-size-max", metavar="SIZE", help="Of the log's end, in which records are kept for the others.")
@click.option("--silence-ms", help="Who is not heard for so long is taken for gone.")
@click.option("--await-hello", help="true: a start waits for all the others.")
@click.option("--members", metavar="ID,ID,ID", help="That the set began with, for one that comes later.")
@click.option("--replaces", metavar="ID,ID", help="In whose place it comes.")
@click.option("--durability", metavar="version|data", help="Of what is written: data, a majority has the bytes, too.")
@click.option("--inline-max", metavar="SIZE", help="Larger values travel beside the vote.")
def command(config: Path | None, peers: tuple[str, ...], **flags: Any) -> None:
    """Serve one replica until SIGTERM or Ctrl-C; a second one ends it at once.

    Clients speak RESP to it, as to Redis. Settings come from a file, from KVSVR_ID, KVSVR_DIR and so on, and from
    flags; what is said last counts. Events go to stderr, a line of JSON each. Exit codes: 0 stopped, 1 a restart mends
    it, 2 a setting is wrong, 4 the disk failed or is damaged.
    """
    settings = load(config, os.environ, {**flags, "peers": ",".join(peers) or None})
    log_to_stderr(settings.node)
    _allow_files(settings.limits.client_count_max)
    opened = False
    try:
        server = Server(settings)
        opened = True
        _run(server, f"ready {text_of(settings.client_address)}")
    except (DiskError, CorruptionError) as error:
        click.echo(f"kvsvr: {error}", err=True)
        # A record that goes bad while it runs is fetched back from the others at the next start.
        mends = opened and isinstance(error, CorruptionError) and not settings.alone
        raise SystemExit(FAILED if mends else DAMAGE) from None


def _run(server: Server, ready: str) -> None:
    """Python's handlers run in the main thread and the loop is in C all the time, so the loop is another one's.

    The main thread reads from a socket: a signal may be delivered to any thread, as after SIGSTOP and SIGCONT, and then
    interrupts no wait of this one, but a byte always comes.
    """
    failure: list[BaseException] = []
    hearing, ringing = socket.socketpair()
    ringing.setblocking(False)

    def run() -> None:
        try:
            server.run(lambda: click.echo(ready))
        except BaseException as error:
            failure.append(error)
        ended.set()
        ringing.send(b"\0")

    ended = threading.Event()
    thread = threading.Thread(target=run, name="kvsvr-loop")
    signal.set_wakeup_fd(ringing.fileno(), warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.stop())
    thread.start()
    while not ended.is_set():
        hearing.recv(64)
    thread.join()
    signal.set_wakeup_fd(-1)
    if failure:
        raise failure[0]


def _allow_files(client_count: int) -> None:
    """A client is a descriptor, and the usual limit is 1,024 of them. What the system does not give is told."""
    spare = 256  # Segments, peers, logs.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = client_count + spare
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    given = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (given, hard))
    if given < wanted:
        tell("few_files", wanted=wanted, given=given, cure="raise the limit (ulimit -n), or lower clients_max")
