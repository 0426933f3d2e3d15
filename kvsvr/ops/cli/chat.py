"""kvsvr chat: a chat to try, in browsers; `import` replays chat logs and checks who was given what."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

import kvsvr
from kvsvr.ops.chat_check import expected
from kvsvr.ops.chat_log import Devices, Replay, user_of
from kvsvr.ops.cli.common import FAILED, json_option, print_json, progress, say
from kvsvr.ops.cli.gateway import listen_option, run
from kvsvr.services.messaging import Messaging


@click.group("chat", invoke_without_command=True)
@click.option(
    "--dir", "directory", type=click.Path(path_type=Path), help="Keep the store here; else it is thrown away."
)
@click.option("--connect", "addresses", metavar="HOST:PORT,...", help="Keep all in a replica set instead.")
@listen_option
@click.pass_context
def commands(ctx: click.Context, directory: Path | None, addresses: str | None, listen: str) -> None:
    """Serve a chat for this machine's browsers, until Ctrl-C: a gateway with its page, where anybody may log in.

    Open it in several tabs: each is a device.
    """
    if ctx.invoked_subcommand is not None:
        if directory is not None or addresses is not None:
            raise kvsvr.UsageError(f"--dir and --connect stand behind {ctx.invoked_subcommand}, whose they are")
    else:
        with _store(directory, addresses) as db:
            run(db, listen, secret_file=None, login=True, page=True, limits={}, greet=_greet)


def _greet(address: str) -> None:
    say(f"open http://{address}/ in a browser, in two tabs or more; Ctrl-C ends it")


@commands.command("import")
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--dir", "directory", type=click.Path(path_type=Path), help="Keep the store here; else it is thrown away."
)
@click.option("--connect", "addresses", metavar="HOST:PORT,...", help="Into a replica set instead.")
@click.option("--fan-out-max", default=500, show_default=True, help="Members up to which each inbox is written to.")
@click.option("--seed", default=0, show_default=True, help="Of who syncs when, and how far the queue lags.")
@json_option
@click.pass_context
def import_command(
    ctx: click.Context,
    files: tuple[Path, ...],
    directory: Path | None,
    addresses: str | None,
    fan_out_max: int,
    seed: int,
    as_json: bool,
) -> None:
    """Replay logs of chat channels: nicks become users, each FILE a group.

    Then all devices sync, and what each of them has is compared with what the membership rule says, computed again
    from the file. Exit code 1 if it differs.
    """
    total: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    wrong: list[str] = []
    with _store(directory, addresses) as db:
        chat, devices = Messaging(db, fan_out_max=fan_out_max, local=False), Devices()
        for file in files:
            replay = Replay(chat, file, seed, devices)
            with progress(file.name, len(replay.events), visible=not as_json) as bar:
                replay.run(bar)
            wrong += differences(replay, total)
            total.update({name: count for name, count in replay.counts.items() if name != "largest"})
            total["largest"] = max(total["largest"], replay.counts["largest"])
            seconds.update(replay.seconds)
    total.update(devices=len(devices.early) + len(devices.late), late=len(devices.late))
    report = _report(len(files), total, seconds, wrong)
    if as_json:
        print_json(report)
    else:
        _print(report)
    if wrong:
        ctx.exit(FAILED)


@contextmanager
def _store(directory: Path | None, addresses: str | None) -> Iterator[Any]:
    if directory is not None and addresses is not None:
        raise kvsvr.UsageError("a store is either in --dir or reached by --connect")
    if addresses is not None:
        with kvsvr.connect(addresses) as remote:
            yield remote
    elif directory is not None:
        with kvsvr.open(directory, slots="strict") as db:
            yield db
    else:
        with tempfile.TemporaryDirectory() as path, kvsvr.open(Path(path, "chat"), sync="none", slots="strict") as db:
            yield db


def differences(replay: Replay, counts: Counter[str]) -> list[str]:
    """Devices that do not have exactly what they should, and users who should have one; those looked at are counted."""
    said = expected(replay.file).items()
    should = {user_of(nick): [(user_of(by), text) for by, text in messages] for nick, messages in said}
    counts["fan_out"] += sum(len(messages) for messages in should.values())
    wrong = [f"{user}: not there" for user in should.keys() - {device.user for device in replay.devices()}]
    for device in replay.devices():
        has, wants = device.messages(replay.group), should.get(device.user)
        counts["checked"] += 1
        counts["given"] += len(has)
        if has != wants:
            wrong.append(f"{device.user}, {device.name}: has {len(has)} messages, not the {len(wants or [])} expected")
    return wrong


def _report(files: int, total: Counter[str], seconds: Counter[str], wrong: list[str]) -> dict[str, Any]:
    both = seconds["replay"] + seconds["sync"]
    return {
        "files": files,
        **{name: total[name] for name in ("messages", "fan_out", "joins", "leaves", "largest")},
        **{name: total[name] for name in ("devices", "late", "given", "rows", "pages", "bytes")},
        "seconds": round(both, 3),
        "messages_s": round(total["messages"] / max(seconds["replay"], 1e-9)),
        "rows_s": round(total["rows"] / max(both, 1e-9)),
        "checked": total["checked"],
        "wrong": wrong,
    }


def _print(report: dict[str, Any]) -> None:
    one = {name: f"{value:,}" if isinstance(value, int) else value for name, value in report.items()}
    click.echo(
        f"{one['messages']} messages, {one['joins']} joins, {one['leaves']} leaves, up to {one['largest']} members: "
        f"{one['fan_out']} for members to have\n"
        f"{one['devices']} devices, {one['late']} of them late: given {one['given']} messages, {one['rows']} rows "
        f"in {one['pages']} pages, {one['bytes']} bytes\n"
        f"{one['seconds']} s: {one['messages_s']} messages a second, {one['rows_s']} rows a second"
    )
    for line in report["wrong"]:
        say(f"wrong: {line}")
    verdict = "differ from the file" if report["wrong"] else "each has exactly what the file says"
    click.echo(f"{one['checked']} devices checked: {len(report['wrong']) or ''} {verdict}".replace(":  ", ": "))
