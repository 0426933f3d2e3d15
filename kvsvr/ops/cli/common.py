"""What several commands share: exit codes, arguments and options, bytes as people write and read them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

import click

from kvsvr.errors import UsageError
from kvsvr.ops.records import Format
from kvsvr.store import Engine
from kvsvr.store import open as open_store

FAILED: Final = 1
USAGE: Final = 2
DEGRADED: Final = 3
DAMAGE: Final = 4

_JSON: Final = "kvsvr.json"
# Control characters would end a line, or drive the terminal.
_ESCAPES: Final = {
    **{code: f"\\x{code:02x}" for code in (*range(0x20), 0x7F)},
    **{code: f"\\u{code:04x}" for code in range(0x80, 0xA0)},
    0x09: "\\t",
    0x0A: "\\n",
    0x0D: "\\r",
}


def _remember(ctx: click.Context, _: click.Parameter, value: bool) -> bool:
    ctx.find_root().meta[_JSON] = value
    return value


def wants_json(ctx: click.Context) -> bool:
    return bool(ctx.find_root().meta.get(_JSON))


directory_argument = click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
json_option = click.option("--json", "as_json", is_flag=True, callback=_remember, help="Answer in JSON.")
hex_option = click.option("--hex", "as_hex", is_flag=True, help="Keys and values are hexadecimal digits.")
file_option = click.option(
    "--file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Take the value from a file."
)
format_option = click.option(
    "--format",
    "format_",
    type=click.Choice(["jsonl", "csv"]),
    help="By default what the file's name ends in, or jsonl.",
)


def to_bytes(text: str, *, as_hex: bool) -> bytes:
    """What somebody typed, as the bytes meant by it."""
    if not as_hex:
        return text.encode("utf-8", "surrogateescape")  # Arguments that are no UTF-8 come back as they were.
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise UsageError(f"{text!r} is no even number of hexadecimal digits: correct it, or drop --hex") from None


def content_of(value: str | None, file: Path | None, *, as_hex: bool) -> bytes:
    """A value to be written: typed, or what stdin (-) or a file holds, byte for byte."""
    if (value is None) == (file is None):
        raise UsageError("give one value: VALUE, - for stdin, or --file")
    if file is not None:
        return file.read_bytes()
    if value == "-":
        return sys.stdin.buffer.read()
    assert value is not None
    return to_bytes(value, as_hex=as_hex)


def shown(data: bytes, *, as_hex: bool) -> str:
    """Bytes on one line; as text, what is not printable is escaped as in Python, so nothing is lost."""
    if as_hex:
        return data.hex()
    return data.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace").translate(_ESCAPES)


def format_of(file: Path, chosen: str | None) -> Format:
    name = chosen or file.suffix.lower().lstrip(".")
    return "csv" if name == "csv" else "jsonl"


def reading(directory: Path) -> Engine:
    """The store, beside whoever writes to it."""
    if not directory.is_dir():
        raise UsageError(f"there is no store at {directory}: check the path; put, append and import make one")
    return open_store(directory, readonly=True)


def writing(directory: Path, *, create: bool) -> Engine:
    """The store, for this process alone."""
    if not create and not directory.is_dir():
        raise UsageError(f"there is no store at {directory}: check the path; put, append and import make one")
    return open_store(directory)


@contextmanager
def output() -> Iterator[BinaryIO]:
    """stdout for bytes. Flushed here: at exit, a reader that has gone would be noise rather than an exception."""
    yield sys.stdout.buffer
    sys.stdout.buffer.flush()


def print_json(content: Any) -> None:
    click.echo(json.dumps(content, ensure_ascii=False))


def say(message: str) -> None:
    """Something for people."""
    click.echo(message, err=True)


@contextmanager
def progress(what: str, total: int | None, *, visible: bool = True) -> Iterator[Callable[[int], None]]:
    """A bar on stderr, to be called with how far it is; nothing where stderr is no terminal, or not `visible`."""
    if not visible or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console  # Here, because it takes longer to import than a get takes.
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)
