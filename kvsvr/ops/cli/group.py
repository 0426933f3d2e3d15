"""All commands under one name, and what their errors become: a line on stderr and an exit code.

A command's module is imported when it is called: a replica shall not carry what others need, nor a `get` wait for it.
"""

from __future__ import annotations

import errno
import importlib
import json
from typing import Any, Final

import click

from kvsvr.errors import CorruptionError, KvError, UsageError
from kvsvr.ops.cli.common import DAMAGE, FAILED, USAGE, wants_json

MODULES: Final = {
    "backup": "backup:backup_command",
    "chat": "chat:commands",
    "doctor": "doctor:command",
    "export": "export:command",
    "gateway": "gateway:commands",
    "get": "get:command",
    "import": "import_:command",
    "kill": "replicas:kill_command",
    "launch": "launch:command",
    "put": "put:command",
    "replace": "replicas:replace_command",
    "restore": "backup:restore_command",
    "scan": "scan:command",
    "serve": "serve:command",
    "stats": "stats:command",
    "status": "replicas:status_command",
    "stop": "replicas:stop_command",
    "table": "table:command",
    "top": "top:command",
    "verify": "verify:command",
}


class Commands(click.Group):
    """A group whose commands may raise what the store raises."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in MODULES:
            return None
        module, _, name = MODULES[cmd_name].partition(":")
        found = getattr(importlib.import_module(f"kvsvr.ops.cli.{module}"), name)
        assert isinstance(found, click.Command)
        return found

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
    """Look into a kvsvr store, write to it, move it, examine it; and run sets of replicas that Redis clients talk to.

    DIR is the store's directory, of launch and its like the set's. Keys and values are UTF-8 text unless --hex says
    otherwise. Data goes to stdout, everything for people to stderr. Exit codes: 0 fine, 1 failed or absent, 2 usage,
    3 degraded, 4 damage.
    """
