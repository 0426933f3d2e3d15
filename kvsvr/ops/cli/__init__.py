"""The `kvsvr` command. `main` is its entry point: it needs what only the extra `cli` brings, and says so without it."""

import sys


def main() -> None:
    try:
        from kvsvr.ops.cli.group import commands
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in ("click", "rich"):
            raise
        sys.exit(f"kvsvr: the command needs {error.name}, which is not installed: pip install 'kvsvr[cli]'")
    commands(prog_name="kvsvr")
