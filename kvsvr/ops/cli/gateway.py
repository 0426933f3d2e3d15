"""kvsvr gateway: the access layer before a store or a set, in the foreground; and tickets for it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import click

import kvsvr
from kvsvr.errors import KvError, LockedError, UsageError
from kvsvr.ops.cli.common import say
from kvsvr.services.messaging import Messaging
from kvsvr.services.sync import kept_secret

PORT: Final = 7180
LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")

dir_option = click.option(
    "--dir", "directory", type=click.Path(path_type=Path), help="A store, which this process alone has open."
)
connect_option = click.option("--connect", "addresses", metavar="HOST:PORT,...", help="A replica set instead.")
secret_option = click.option(
    "--secret-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="What signs tickets, instead of what the store keeps; a line each, the first signs, all are taken.",
)
listen_option = click.option(
    "--listen", default=f"127.0.0.1:{PORT}", show_default=True, metavar="HOST:PORT", help="For clients."
)


@click.group("gateway", invoke_without_command=True)
@dir_option
@connect_option
@secret_option
@listen_option
@click.option("--login", is_flag=True, help="For development: a ticket for whoever asks, on this machine.")
@click.option("--page", is_flag=True, help="Serve the page of kvsvr chat, too.")
@click.option("--rate", type=float, help="Requests a second of one user.")
@click.option("--burst", type=int, help="And so many at once.")
@click.option("--sockets-max", "socket_count_max", type=int, help="Connections of one user that wait.")
@click.option("--body-size-max", type=int, help="Bytes of a request.")
@click.pass_context
def commands(
    ctx: click.Context,
    /,
    directory: Path | None,
    addresses: str | None,
    secret_file: Path | None,
    listen: str,
    login: bool,
    page: bool,
    **limits: Any,
) -> None:
    """Serve messaging over HTTP, WebSocket and event streams until SIGTERM or Ctrl-C; a second one waits for nobody.

    Any number of gateways may serve the same set, and any may die. It listens on this machine only unless told
    otherwise, and speaks plain HTTP: put what ends TLS in front of it. Who is who, tickets say: kvsvr gateway ticket.
    """
    if ctx.invoked_subcommand is None:
        with ExitStack() as stack:
            db = stack.enter_context(_store(directory, addresses))
            run(db, listen, secret_file=secret_file, login=login, page=page, limits=limits)


@commands.command("ticket")
@click.argument("user")
@dir_option
@connect_option
@secret_option
@click.option("--hours", default=12.0, show_default=True, help="That it is good for.")
def ticket_command(
    user: str, directory: Path | None, addresses: str | None, secret_file: Path | None, hours: float
) -> None:
    """Issue a ticket for USER, by the secret in a store, in a set, or in a file."""
    tickets = parts().tickets
    if not 0 < hours < 1_000_000:
        raise UsageError(f"--hours is a positive number, not {hours:g}")
    if secret_file is not None:
        secrets = secrets_in(secret_file)
    else:
        with _store(directory, addresses, beside=True) as db:
            secrets = [kept_secret(db, tickets.SECRET_KEY)]
    click.echo(tickets.Tickets(secrets).issue(user, hours * 3600))


def parts() -> SimpleNamespace:
    """Modules of the gateway, which want the extra `gateway`: imported when a command is run, to say so without it."""
    try:
        import websockets  # noqa: F401 (uvicorn looks for it when a gateway has begun already)

        from kvsvr.gateway import limits, server, tickets
    except ModuleNotFoundError as error:
        raise KvError(f"a gateway needs {error.name}: pip install 'kvsvr[gateway]'") from None
    return SimpleNamespace(limits=limits, server=server, tickets=tickets)


def run(
    db: Any,
    listen: str,
    *,
    secret_file: Path | None,
    login: bool,
    page: bool,
    limits: dict[str, Any],
    greet: Callable[[str], None] = lambda address: None,
) -> None:
    """Until it is stopped. What is ready, and where, is one line on stdout, as of kvsvr serve."""
    gateway, (host, port) = parts(), _address(listen)
    if login and host not in LOOPBACK:
        raise UsageError(
            f"--login is a ticket for whoever asks, and {host} is not this machine alone: drop one of them"
        )
    logging.basicConfig(level=logging.WARNING, format="kvsvr: %(message)s")
    secrets = secrets_in(secret_file) if secret_file else [kept_secret(db, gateway.tickets.SECRET_KEY)]
    with gateway.server.listening(host, port) as listener:
        address = f"{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"

        def ready(stop: Callable[[], None]) -> None:
            gateway.server.on_signals(stop)
            click.echo(f"ready {address}")
            greet(address)

        given = {name: value for name, value in limits.items() if value is not None}
        asyncio.run(
            gateway.server.serve(
                Messaging(db),
                db.aio.wait,
                gateway.tickets.Tickets(secrets),
                listener,
                limits=gateway.limits.Limits(**given),
                login=login,
                page=page,
                ready=ready,
            )
        )
    say("stopped")


def secrets_in(file: Path) -> list[bytes]:
    return [line.strip() for line in file.read_bytes().splitlines() if line.strip()]


def _store(directory: Path | None, addresses: str | None, *, beside: bool = False) -> Any:
    """`beside`: to look into one that a gateway has open, if there is one."""
    if (directory is None) == (addresses is None):
        raise UsageError("say one of --dir, for a store, and --connect, for a set")
    if addresses is not None:
        return kvsvr.connect(addresses)
    assert directory is not None
    if beside and not directory.is_dir():
        raise UsageError(f"there is no store at {directory}: check the path; the gateway makes one")
    try:
        return kvsvr.open(directory, slots="strict")
    except LockedError:
        if not beside:
            raise
        return kvsvr.open(directory, readonly=True)


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65_535:
        raise UsageError(f"--listen is HOST:PORT, not {text!r}")
    return host.strip("[]"), int(port)
