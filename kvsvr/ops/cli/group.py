"""All commands under one name, and what their errors become: a line on stderr and an exit code."""

from __future__ import annotations

import errno
import json
from typing import Any

import click

from kvsvr.errors import CorruptionError, KvError, UsageError
from kvsvr.ops.cli import backup, doctor, export, get, import_, put, scan, serve, stats, table, verify
from kvsvr.ops.cli.common import DAMAGE, FAILED, USAGE, wants_json


class Commands(click.Group):
    """A group whose commands may raise what the store raises."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (KvError, MemoryError) as error:
            _tell(ctx, error, str(error) or "out of memory")
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise  # Whoever read has enough; click ends quietly.
            place = f"{error.filename}: " if error.filename else ""
            _tell(ctx, error, f"{place}{error.strerror}")


def exit_code(error: BaseException) -> int:
    if isinstance(error, UsageError):
        return USAGE
    return DAMAGE if isinstance(error, CorruptionError) else FAILED


def _tell(ctx: click.Context, error: BaseException, message: str) -> None:
    code = exit_code(error)
    if wants_json(ctx):
        message = json.dumps({"error": type(error).__name__, "message": message, "exit_code": code})
        click.echo(message, err=True)
    else:
        click.echo(f"kvsvr: {message}", err=True)
    ctx.exit(code)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="kvsvr")
def commands() -> None:
    """Look into a kvsvr store, write to it, move it, examine it.

    DIR is the store's directory. Keys and values are UTF-8 text unless --hex says otherwise. Data goes to stdout,
    everything for people to stderr. Exit codes: 0 fine, 1 failed or absent, 2 usage, 3 degraded, 4 damage.
    """


for _module in (get, put, scan, table, import_, export, verify, doctor, stats, serve):
    commands.add_command(_module.command)
commands.add_command(backup.backup_command)
commands.add_command(backup.restore_command)
