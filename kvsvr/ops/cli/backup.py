"""kvsvr backup and kvsvr restore: a store's files as of one moment, and a store made of them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from kvsvr.ops.cli.common import directory_argument, json_option, print_json, progress, say, writing
from kvsvr.store import BackupReport, restore


@click.command("backup")
@directory_argument
@click.argument("destination", metavar="DEST", type=click.Path(path_type=Path))
@json_option
def backup_command(directory: Path, destination: Path, as_json: bool) -> None:
    """Copy the store to DEST, a new or empty directory, with a digest of every file.

    Its records are checked, its value files are copied as they are: `kvsvr verify DIR` checks them, too.
    The store must not be open for writing elsewhere: a program that has it open calls db.backup(DEST).
    """
    with writing(directory, create=False) as db, progress("backup", 100) as advance:
        report = db.backup(destination, progress=lambda done, total: advance(100 * done // max(1, total)))
    _tell(report, as_json, "backed up to")


@click.command("restore")
@click.argument("source", metavar="BACKUP", type=click.Path(path_type=Path))
@click.argument("destination", metavar="DIR", type=click.Path(path_type=Path))
@json_option
def restore_command(source: Path, destination: Path, as_json: bool) -> None:
    """Make a store at DIR, a new or empty directory, of a backup, after checking every file.

    Its versions go on far above those of the backup, so that none is given out twice.
    """
    with progress("restore", 100) as advance:
        report = restore(source, destination, progress=lambda done, total: advance(100 * done // max(1, total)))
    _tell(report, as_json, "restored to")


def _tell(report: BackupReport, as_json: bool, what: str) -> None:
    if as_json:
        print_json(asdict(report))
    else:
        say(f"{report.file_count} files, {report.size} bytes, up to version {report.version}, {what} {report.path}")
