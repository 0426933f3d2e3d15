"""kvsvr backup and kvsvr restore: a store's files as of one moment, and a store made of them; the same of a set."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from kvsvr.ops import set_backup
from kvsvr.ops.cli.common import directory_argument, json_option, print_json, progress, say, writing
from kvsvr.ops.place import PORT, find
from kvsvr.store import BackupReport, restore


@click.command("backup")
@directory_argument
@click.argument("destination", metavar="DEST", type=click.Path(path_type=Path))
@json_option
def backup_command(directory: Path, destination: Path, as_json: bool) -> None:
    """Copy the store to DEST, a new or empty directory, with a digest of every file.

    Its records are checked, its value files are copied as they are: `kvsvr verify DIR` checks them, too.
    The store must not be open for writing elsewhere: a program that has it open calls db.backup(DEST).

    DIR may be a set of replicas that kvsvr launch made, running or not: DEST then has everything that was acknowledged
    before, each shard as of one of its versions. It takes a majority of its replicas.
    """
    if any(directory.glob("*/replica.toml")):
        _backup_set(directory, destination, as_json=as_json)
        return
    with writing(directory, create=False) as db, progress("backup", 100) as advance:
        report = db.backup(destination, progress=lambda done, total: advance(100 * done // max(1, total)))
    _tell(report, as_json, "backed up to")


@click.command("restore")
@click.argument("source", metavar="BACKUP", type=click.Path(path_type=Path))
@click.argument("destination", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--replicas", "count", type=int, help="Of a set: 1, 3 or 5; as many as there were.")
@click.option("--port", type=click.IntRange(1, 65_535), default=PORT, show_default=True, help="Of a set: of the first.")
@json_option
def restore_command(source: Path, destination: Path, count: int | None, port: int, as_json: bool) -> None:
    """Make a store at DIR, a new or empty directory, of a backup, after checking every file.

    Its versions go on far above those of the backup, so that none is given out twice.

    Of a set's backup it makes a set, with versions of its own, which kvsvr launch --dir DIR starts. The backed-up
    replicas run for that, in a directory beside DIR.
    """
    if set_backup.is_backup(source):
        _restore_set(source, destination, count, port, as_json=as_json)
        return
    with progress("restore", 100) as advance:
        report = restore(source, destination, progress=lambda done, total: advance(100 * done // max(1, total)))
    _tell(report, as_json, "restored to")


def _backup_set(directory: Path, destination: Path, *, as_json: bool) -> None:
    found = set_backup.backup(find(directory), destination)
    if as_json:
        print_json(asdict(found))
        return
    say(f"replicas {', '.join(map(str, found.copied))} of the set, {found.size} bytes, backed up to {found.path}")
    for node in found.left_out:
        say(f"  replica {node} did not say how it is, and is not in it; the others have all that was acknowledged")


def _restore_set(source: Path, destination: Path, count: int | None, port: int, *, as_json: bool) -> None:
    found = set_backup.restore(source, destination, count, port)
    if as_json:
        print_json(asdict(found))
    else:
        say(
            f"{found.written_count} keys and rows, {found.expired_count} had expired, restored to a set of "
            f"{found.replicas} in {found.path}: kvsvr launch --dir {found.path} starts it"
        )


def _tell(report: BackupReport, as_json: bool, what: str) -> None:
    if as_json:
        print_json(asdict(report))
    else:
        say(f"{report.file_count} files, {report.size} bytes, up to version {report.version}, {what} {report.path}")
