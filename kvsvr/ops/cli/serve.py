"""kvsvr serve: one replica, in the foreground."""

from __future__ import annotations

import logging
import os
import signal
import threading
from pathlib import Path
from typing import Any

import click

from kvsvr.errors import CorruptionError, DiskError, KvError
from kvsvr.node.config import load
from kvsvr.node.server import Server
from kvsvr.ops.cli.common import DAMAGE


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
def command(config: Path | None, peers: tuple[str, ...], **flags: Any) -> None:
    """Serve one replica until SIGTERM or Ctrl-C.

    Clients speak RESP to it, as to Redis. Settings come from a file, from KVSVR_ID, KVSVR_DIR and so on, and from
    flags; what is said last counts. Exit codes: 0 stopped, 2 a setting is wrong, 4 the disk failed or is damaged.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    settings = load(config, os.environ, {**flags, "peers": ",".join(peers) or None})
    server = Server(settings)
    failure: list[KvError] = []

    def run() -> None:
        try:
            server.run(lambda: click.echo(f"ready {settings.client_address[0]}:{settings.client_address[1]}"))
        except KvError as error:
            failure.append(error)

    # Signals are for the main thread, and the loop is in C all the time.
    thread = threading.Thread(target=run, name="kvsvr-loop")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.stop())
    thread.start()
    thread.join()
    if not failure:
        return
    if isinstance(failure[0], DiskError | CorruptionError):
        click.echo(f"kvsvr: {failure[0]}", err=True)
        raise SystemExit(DAMAGE)
    raise failure[0]
