"""kvsvr verify: is the store what was written; and what is left of one that is not, into a new one."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from kvsvr.errors import UsageError
from kvsvr.node.config import load
from kvsvr.node.examine import examine
from kvsvr.ops.cli.common import DAMAGE, directory_argument, json_option, print_json, progress, say
from kvsvr.store import Report, Salvage, salvage, verify

SHOWN_MAX = 20


@click.command("verify")
@directory_argument
@click.option(
    "--salvage", "target", metavar="NEW", type=click.Path(path_type=Path), help="Copy what can be read to NEW."
)
@json_option
@click.pass_context
def command(ctx: click.Context, directory: Path, target: Path | None, as_json: bool) -> None:
    """Read everything in the store, twice, and compare; change nothing.

    Every record, value file, index file and run is checked; index, order and counters are made anew from the flow and
    compared with those that are kept. Exit code 4: something is not what was written. A damaged record has lost its
    name: file and offset are told, and what it was of is absent, or has an older value. The store must not be open for
    writing elsewhere: a program that has it open calls db.verify().

    DIR may be the folder of a replica, with its replica.toml, that does not run: its log is then read as it reads it.
    """
    if not directory.is_dir():
        raise UsageError(f"there is no store at {directory}: check the path")
    if (directory / "replica.toml").is_file():
        if target is not None:
            raise UsageError("--salvage is for embedded stores: the other replicas have what this one lost")
        ctx.exit(_replica(directory, as_json=as_json))
    with progress("verify", 100) as advance:
        report = verify(directory, progress=lambda done, total: advance(100 * done // max(1, total)))
    saved = None if target is None else salvage(directory, target)
    if as_json:
        print_json({"ok": report.ok, **asdict(report), **({} if saved is None else {"salvage": asdict(saved)})})
    else:
        _tell(report, saved)
    if not report.ok:
        ctx.exit(DAMAGE)


def _replica(folder: Path, *, as_json: bool) -> int:
    found = examine(load(folder / "replica.toml", {}, {}))
    places = found.wrong_count + found.damaged_count
    if as_json:
        print_json({"ok": found.ok, **asdict(found)})
    else:
        say(
            f"{found.record_count} records, {found.key_count} keys, {found.table_count} tables, {found.row_count} rows "
            f"after {found.applied_count} versions: "
            + ("all as it was written" if found.ok else f"NOT as it was written, in {places} places")
        )
        if found.damaged_count:
            say(f"  {found.damaged_count} records of the log are damaged: the next start fetches them from the others")
        say(f"  {found.undecided_count} versions are not known to be decided, which the others know or will decide")
        say(
            f"  {found.content_count} values are kept beside the versions; of {found.missing_count} the bytes are with "
            f"others only, {found.missing_size} bytes"
        )
    return 0 if found.ok else DAMAGE


def _tell(report: Report, saved: Salvage | None) -> None:
    say(
        f"{report.record_count} records, {report.key_count} keys, {report.table_count} tables, {report.row_count} rows "
        f"in {report.seconds:.1f} s: {'all as it was written' if report.ok else 'NOT as it was written'}"
    )
    damages = [f"{one.file or 'store'} at {one.offset}, {one.size} bytes: {one.what}" for one in report.damages]
    for line in (damages + report.differences)[:SHOWN_MAX]:
        say(f"  {line}")
    for line in report.notes:
        say(f"  note: {line}")
    more = len(report.damages) + len(report.differences) - SHOWN_MAX
    if more > 0:
        say(f"  and {more} more")
    nameless = sum(one.size > 0 for one in report.damages)
    if nameless:
        say(
            f"  {nameless} of these are records that lost their names: whose they were is absent, or has an older value"
        )
    if saved is not None:
        say(
            f"salvaged to {saved.path}: {saved.key_count} keys, {saved.table_count} tables, {saved.row_count} rows; "
            f"{len(saved.lost)} that are known and cannot be read"
        )
