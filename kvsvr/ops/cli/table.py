"""kvsvr table: a table's rows and changes, and the list of tables.

A group of commands behind DIR and KEY. What KEY means is known only to the command behind it, which has --hex.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import click

from kvsvr.ops.cli.common import (
    FAILED,
    content_of,
    directory_argument,
    file_option,
    hex_option,
    json_option,
    output,
    print_json,
    reading,
    say,
    shown,
    to_bytes,
    writing,
)
from kvsvr.ops.records import row_fields, table_fields
from kvsvr.store import Engine, Table

ttl_option: Final = click.option("--ttl", type=float, metavar="SECONDS", help="Let the row expire.")
durable_option: Final = click.option("--durable", is_flag=True, help="Return when it is on disk.")


class _Behind(click.Group):
    """A group whose DIR and KEY come before what is done: rows unless told, and the list of tables without KEY.

    Click would take the first thing behind DIR for KEY, an option too. Here a KEY that looks like an option stands
    behind --, and one that is a command's name without a command behind it is refused: the KEY was forgotten, perhaps.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args[:1] == ["--"]:
            args = args[1:]
        elif not args or args[0].startswith("-"):
            return super().parse_args(ctx, args)
        return super().parse_args(ctx, ["--", *args[:1], *self._completed(ctx, args[1:])])

    def _completed(self, ctx: click.Context, args: list[str]) -> list[str]:
        """What came behind DIR, as KEY, command and arguments."""
        marked = args[:1] == ["--"]
        key, *rest = args[marked:] or [_NO_KEY]
        if not marked and key.startswith("-"):
            key, rest = _NO_KEY, args
        elif key == _NO_KEY and args:
            ctx.fail("KEY is missing, or empty: leave it out to list the tables.")
        elif not marked and key in self.commands and (not rest or rest[0].startswith("-")):
            ctx.fail(f"{key} is a command, and KEY is missing before it. The table of that name: DIR -- {key}")
        if rest and rest[0] in ctx.help_option_names:
            click.echo(ctx.get_help())
            ctx.exit()
        if key == _NO_KEY:
            return [key, _LIST, *rest]
        return [key, *rest] if rest and not rest[0].startswith("-") else [key, "rows", *rest]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name == _LIST:
            return _tables if ctx.params.get("key") == _NO_KEY else None
        return super().get_command(ctx, cmd_name)


# No table is called so, and no command.
_NO_KEY: Final = ""
_LIST: Final = ""


@click.group("table", cls=_Behind, no_args_is_help=False, subcommand_metavar="[COMMAND] [ARGS]...")
@directory_argument
@click.argument("key", required=False)
@click.pass_context
def command(ctx: click.Context, directory: Path, key: str) -> None:
    """Work on the table under KEY; without COMMAND, list its rows, with the options of `rows`.

    Without KEY, list the tables: --prefix, --hex and --json. A KEY that begins with a dash, or has the name of a
    command, stands behind --. `kvsvr table DIR KEY COMMAND --help` has the options of a command.
    """
    ctx.obj = directory, key


@contextmanager
def _opened(ctx: click.Context, opening: Callable[[Path], Engine] = reading, *, as_hex: bool) -> Iterator[Table]:
    directory, key = ctx.obj
    name = to_bytes(key, as_hex=as_hex)
    with opening(directory) as db:
        yield db.table(name)


_writing: Final = partial(writing, create=False)
_making: Final = partial(writing, create=True)


def _write_lines(lines: Iterable[bytes]) -> None:
    with output() as stream:
        for line in lines:
            stream.write(line + b"\n")


def _line(row: bytes, value: bytes | None, as_hex: bool, as_json: bool) -> bytes:
    if as_json:
        return json.dumps(row_fields(row, value), ensure_ascii=False).encode()
    return "\t".join(shown(part, as_hex=as_hex) for part in (row, value) if part is not None).encode()


@click.command("tables")
@click.option("--prefix", help="Only tables whose key begins with it.")
@hex_option
@json_option
@click.pass_context
def _tables(ctx: click.Context, prefix: str | None, as_hex: bool, as_json: bool) -> None:
    directory, _ = ctx.obj
    begin = None if prefix is None else to_bytes(prefix, as_hex=as_hex)
    with reading(directory) as db:
        _write_lines(_table_line(key, as_hex, as_json) for key in db.tables(begin))


def _table_line(key: bytes, as_hex: bool, as_json: bool) -> bytes:
    text = json.dumps(table_fields(key), ensure_ascii=False) if as_json else shown(key, as_hex=as_hex)
    return text.encode()


@command.command("rows")
@click.option("--prefix", help="Only rows that begin with it.")
@click.option("--start", help="From this row on.")
@click.option("--stop", help="Only below this row.")
@click.option("--reverse", is_flag=True, help="From the end.")
@click.option("--limit", type=click.IntRange(min=0), help="At most so many.")
@hex_option
@json_option
@click.pass_context
def _rows(
    ctx: click.Context,
    prefix: str | None,
    start: str | None,
    stop: str | None,
    reverse: bool,
    limit: int | None,
    as_hex: bool,
    as_json: bool,
) -> None:
    """List rows in order, one a line: row, tab, value; escaped as scan does."""
    low, high, begin = (None if text is None else to_bytes(text, as_hex=as_hex) for text in (start, stop, prefix))
    with _opened(ctx, as_hex=as_hex) as table:
        found = table.rows(low, high, prefix=begin, reverse=reverse, limit=limit)
        _write_lines(_line(row, value, as_hex, as_json) for row, value in found)


@command.command("last")
@click.argument("count", type=click.IntRange(min=0), default=10)
@hex_option
@json_option
@click.pass_context
def _last(ctx: click.Context, count: int, as_hex: bool, as_json: bool) -> None:
    """List the last COUNT rows, ten unless told, in ascending order."""
    with _opened(ctx, as_hex=as_hex) as table:
        _write_lines(_line(row, value, as_hex, as_json) for row, value in table.last(count))


@command.command("get")
@click.argument("row")
@hex_option
@json_option
@click.pass_context
def _get(ctx: click.Context, row: str, as_hex: bool, as_json: bool) -> None:
    """Write the value of ROW to stdout, byte for byte. Exit code 1 if it is absent; null with --json."""
    name = to_bytes(row, as_hex=as_hex)
    with _opened(ctx, as_hex=as_hex) as table:
        found = table.get_versioned(name)
    if found is None:
        print_json(None) if as_json else say(f"kvsvr: row {shown(name, as_hex=as_hex)} is absent")
        ctx.exit(FAILED)
    if as_json:
        print_json({**row_fields(name, found.value), "version": found.version, "expires_at": found.expires_at})
        return
    with output() as stream:
        stream.write(found.value.hex().encode() + b"\n" if as_hex else found.value)


@command.command("put")
@click.argument("row")
@click.argument("value", required=False)
@file_option
@ttl_option
@durable_option
@hex_option
@json_option
@click.pass_context
def _put(
    ctx: click.Context,
    row: str,
    value: str | None,
    file: Path | None,
    ttl: float | None,
    durable: bool,
    as_hex: bool,
    as_json: bool,
) -> None:
    """Set ROW to VALUE, or to what stdin (-) or --file holds, as it is. Makes table and store if there are none."""
    name, content = to_bytes(row, as_hex=as_hex), content_of(value, file, as_hex=as_hex)
    with _opened(ctx, _making, as_hex=as_hex) as table:
        _tell(name, table.put(name, content, ttl=ttl, durable=durable), as_json)


@command.command("append")
@click.argument("value", required=False)
@file_option
@ttl_option
@durable_option
@hex_option
@json_option
@click.pass_context
def _append(
    ctx: click.Context,
    value: str | None,
    file: Path | None,
    ttl: float | None,
    durable: bool,
    as_hex: bool,
    as_json: bool,
) -> None:
    """Put VALUE, or what stdin (-) or --file holds, under a new row; that, in hexadecimal digits, goes to stdout.

    The row is a number of 8 bytes above all that append gave in this table. Rows that were named by put may sort
    behind it. Makes table and store if there are none.
    """
    content = content_of(value, file, as_hex=as_hex)
    with _opened(ctx, _making, as_hex=as_hex) as table:
        row = table.append(content, ttl=ttl, durable=durable)
    print_json(row_fields(row)) if as_json else click.echo(row.hex())


@command.command("delete")
@click.argument("row")
@durable_option
@hex_option
@json_option
@click.pass_context
def _delete(ctx: click.Context, row: str, durable: bool, as_hex: bool, as_json: bool) -> None:
    """Delete ROW. Exit code 1 if it is absent."""
    name = to_bytes(row, as_hex=as_hex)
    _done(ctx, as_hex, as_json, "deleted", "the row", lambda table: table.delete(name, durable=durable))


@command.command("drop")
@durable_option
@hex_option
@json_option
@click.pass_context
def _drop(ctx: click.Context, durable: bool, as_hex: bool, as_json: bool) -> None:
    """Delete the table with all its rows. Exit code 1 if it is absent."""
    _done(ctx, as_hex, as_json, "dropped", "the table", lambda table: table.drop(durable=durable))


@command.command("len")
@hex_option
@json_option
@click.pass_context
def _len(ctx: click.Context, as_hex: bool, as_json: bool) -> None:
    """Print how many rows the table has; 0 if it is absent."""
    with _opened(ctx, as_hex=as_hex) as table:
        count, version, expires_at = len(table), table.version, table.expires_at
    if as_json:
        print_json({"row_count": count, "version": version, "expires_at": expires_at})
    else:
        click.echo(str(count))


@command.command("changes")
@click.argument("since", type=click.IntRange(min=0), default=0)
@click.option("--limit", type=click.IntRange(min=1), help="End behind so many rows, or some more.")
@hex_option
@json_option
@click.pass_context
def _changes(ctx: click.Context, since: int, limit: int | None, as_hex: bool, as_json: bool) -> None:
    """List what changed above the version SINCE: put, tab, row, tab, value; or delete, tab, row.

    One page of it; stderr says up to which version it goes, and whether there is more. Exit code 1 if changes from
    SINCE on are no longer known: begin again from 0.
    """
    with _opened(ctx, as_hex=as_hex) as table:
        page = table.changes(since, limit)
    told = {"version": page.version, "more": page.more, "complete": page.complete}
    if as_json:
        rows = [row_fields(row, value) for row, value in page.rows]
        print_json({"rows": rows, "deleted": [row_fields(row) for row in page.deleted], **told})
    else:
        _write_lines(b"put\t" + _line(row, value, as_hex, False) for row, value in page.rows)
        _write_lines(b"delete\t" + _line(row, None, as_hex, False) for row in page.deleted)
        say(f"version {page.version}{', more' if page.more else ''}{'' if page.complete else ', incomplete'}")
    if not page.complete:
        ctx.exit(FAILED)


@command.command("trim")
@click.argument("version", type=click.IntRange(min=0))
@hex_option
@json_option
@click.pass_context
def _trim(ctx: click.Context, version: int, as_hex: bool, as_json: bool) -> None:
    """Let deletes up to VERSION be forgotten: every consumer of changes has come that far."""
    with _opened(ctx, _writing, as_hex=as_hex) as table:
        floor = table.trim(version)
    print_json({"floor": floor}) if as_json else say(f"floor {floor}")


def _tell(row: bytes, version: int, as_json: bool) -> None:
    print_json({**row_fields(row), "version": version}) if as_json else say(f"version {version}")


def _done(ctx: click.Context, as_hex: bool, as_json: bool, verb: str, what: str, act: Callable[[Table], bool]) -> None:
    with _opened(ctx, _writing, as_hex=as_hex) as table:
        done = act(table)
    answer: dict[str, Any] = {verb: done}
    if as_json:
        print_json(answer)
    elif not done:
        say(f"kvsvr: {what} is absent")
    if not done:
        ctx.exit(FAILED)
