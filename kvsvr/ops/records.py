"""One key with its value outside a store: as a line of JSON, and as a row of CSV. Pure: no store, no clock, no file.

Rows of tables, too, as lines of JSON; CSV has columns for keys alone, and its writer refuses them.

Both are lossless for any bytes. What is UTF-8 stands there as text, anything else as base64, and `encoding` says
which of the two that is: "text" (or nothing), "base64-key", "base64-value", or "base64" for both.

    {"key": "user:1", "value": "/w==", "encoding": "base64-value", "expires_at": 1767225600.25}
    {"table": "inbox:1", "row": "AAAAAAAAAP8=", "value": "hello", "encoding": "base64-row"}
    {"table": "inbox:1", "expires_at": 1767225600.25}

Of a row there are three, and several are joined: "base64-row-value". A table without a row is a table as a whole, which
expires then; that comes behind its rows.

`expires_at` is in seconds since 1970, absent or empty for "never". A line of JSON ends at its newline, which JSON
itself escapes. A row of CSV may go over several lines; in CSV, text with control characters other than tab and
newline counts as binary, because other programs drop or translate them.

A reader yields a BadInput in place of a record it cannot read and goes on behind it: whether to stop is the caller's
choice. What makes the whole input unreadable, a wrong header, it raises.
"""

from __future__ import annotations

import base64
import binascii
import csv
import io
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, BinaryIO, Final, Literal, TypeAlias

from kvsvr.errors import KvError, UsageError, shown_key
from kvsvr.store import KEY_SIZE_MAX

Format: TypeAlias = Literal["jsonl", "csv"]

ENCODINGS: Final = {
    (False, False): "text",
    (True, False): "base64-key",
    (False, True): "base64-value",
    (True, True): "base64",
}
"""Whether key and value are base64 -> what `encoding` says."""
_BINARY: Final = {name: binary for binary, name in ENCODINGS.items()}

COLUMNS: Final = ("key", "value", "encoding", "expires_at")
ROW_NAMES: Final = ("table", "row", "value")
ROW_FIELDS: Final = (*ROW_NAMES, "encoding", "expires_at")
# Twice what a ttl can be: any expiry a store can hold, and no number that would overflow on its way.
EXPIRES_AT_MAX: Final = 2e12

_CONTROL: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Record:
    """A key, its value, and when it expires: seconds since 1970, or None for never."""

    key: bytes
    value: bytes
    expires_at: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table, its value, and when it expires. `line`: where it was read, for whoever cannot write it."""

    table: bytes
    row: bytes
    value: bytes
    expires_at: float | None = None
    line: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Expiry:
    """When a table expires as a whole. `line` as in Row."""

    table: bytes
    expires_at: float
    line: int = field(default=0, compare=False)


Entry: TypeAlias = Record | Row | Expiry


class BadInput(KvError):
    """A record that cannot be read. `line` and `column` count from 1; in CSV `column` counts the fields."""

    def __init__(self, line: int, column: int, what: str) -> None:
        super().__init__(f"line {line}, column {column}: {what}")
        self.line = line
        self.column = column
        self.what = what


class _BadField(Exception):
    """What is wrong with one field; where it stands is known to whoever has the line."""

    def __init__(self, name: str, what: str) -> None:
        super().__init__(what)
        self.name = name


Reader: TypeAlias = Callable[[BinaryIO], Iterator[Entry | BadInput]]
Writer: TypeAlias = Callable[[Entry], bytes]


def reader(format_: Format) -> Reader:
    return read_csv if format_ == "csv" else read_jsonl


def writer(format_: Format) -> tuple[bytes, Writer]:
    """What such a file begins with, and what makes a record's bytes in it."""
    return (_csv_row(COLUMNS), csv_row) if format_ == "csv" else (b"", json_line)


# --- out ---


def fields(key: bytes, value: bytes | None = None, *, plain: bool = False) -> dict[str, str]:
    """Key and value as text, with the encoding. Without a value: the key alone. `plain`: no control characters."""
    key_text, key_binary = _text(key, plain)
    if value is None:
        return {"key": key_text, "encoding": ENCODINGS[key_binary, False]}
    value_text, value_binary = _text(value, plain)
    return {"key": key_text, "value": value_text, "encoding": ENCODINGS[key_binary, value_binary]}


def row_fields(row: bytes, value: bytes | None = None, *, table: bytes | None = None) -> dict[str, str]:
    """A row as text, with its value and its table if they are given, and the encoding."""
    parts = {"table": table, "row": row, "value": value}
    texts = {name: _text(data, False) for name, data in parts.items() if data is not None}
    binary = tuple(name for name, (_, is_binary) in texts.items() if is_binary)
    return {name: text for name, (text, _) in texts.items()} | {"encoding": _row_encoding(binary)}


def table_fields(key: bytes) -> dict[str, str]:
    """The key of a table as text, with the encoding."""
    text, is_binary = _text(key, False)
    return {"table": text, "encoding": _row_encoding(("table",) if is_binary else ())}


def _row_encoding(binary: tuple[str, ...]) -> str:
    return "-".join(("base64", *binary)) if 0 < len(binary) < len(ROW_NAMES) else "base64" if binary else "text"


def json_line(record: Entry) -> bytes:
    content: dict[str, Any]
    match record:
        case Record():
            content = dict(fields(record.key, record.value))
        case Row():
            content = dict(row_fields(record.row, record.value, table=record.table))
        case Expiry():
            content = dict(table_fields(record.table))
    if record.expires_at is not None:
        content["expires_at"] = record.expires_at
    return json.dumps(content, ensure_ascii=False).encode() + b"\n"


def csv_row(record: Entry) -> bytes:
    if not isinstance(record, Record):
        raise no_csv(record.table)
    content = fields(record.key, record.value, plain=True)
    expiry = "" if record.expires_at is None else repr(record.expires_at)
    return _csv_row((content["key"], content["value"], content["encoding"], expiry))


def no_csv(table: bytes) -> UsageError:
    return UsageError(f"CSV has no columns for tables, and {shown_key(table)} is one: use JSON lines (jsonl)")


def _csv_row(cells: tuple[str, ...]) -> bytes:
    row = io.StringIO(newline="")
    csv.writer(row, lineterminator="\n").writerow(cells)
    return row.getvalue().encode()


def _text(data: bytes, plain: bool) -> tuple[str, bool]:
    """The bytes as text, and whether that is base64."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return base64.b64encode(data).decode(), True
    return (base64.b64encode(data).decode(), True) if plain and _CONTROL.search(text) else (text, False)


# --- in ---


def read_jsonl(source: BinaryIO) -> Iterator[Entry | BadInput]:
    for number, line in enumerate(source, 1):
        if not line.isspace():
            yield _read_line(number, line)


def _read_line(number: int, line: bytes) -> Entry | BadInput:
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        return BadInput(number, error.start + 1, "not UTF-8: write bytes as base64, and say so in `encoding`")
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        return BadInput(number, error.colno, f"no JSON ({error.msg}): one object a line is expected")
    except (ValueError, RecursionError):
        return BadInput(number, 1, "no record: one flat JSON object a line is expected")
    if not isinstance(content, dict):
        return BadInput(number, 1, 'no object: a record looks like {"key": "a", "value": "b"}')
    try:
        return _entry(content, number) if "table" in content else _record(content)
    except _BadField as error:
        return BadInput(number, max(0, text.find(json.dumps(error.name))) + 1, str(error))


def read_csv(source: BinaryIO) -> Iterator[Entry | BadInput]:
    # Bytes that are no UTF-8 pass as surrogates, so that their field can be named. -sig: spreadsheets write a BOM.
    text = io.TextIOWrapper(source, encoding="utf-8-sig", errors="surrogateescape", newline="")
    try:
        yield from _read_rows(text)
    finally:
        text.detach()  # The source is the caller's to close.


def _read_rows(text: io.TextIOWrapper) -> Iterator[Entry | BadInput]:
    csv.field_size_limit(sys.maxsize)  # The default is 128 KiB, and values have up to 1 GiB.
    rows = csv.reader(text, strict=True)
    header = _header(rows)
    while True:
        line = rows.line_num + 1
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield BadInput(line, 1, f"no CSV ({error}): put quotes around the field and double those in it")
            continue
        if row:
            yield _read_row(line, header, row)


def _header(rows: Any) -> list[str]:
    try:
        header: list[str] = next(rows, [])
    except csv.Error as error:
        raise BadInput(1, 1, f"no CSV ({error})") from None
    if not {"key", "value"} <= set(header) <= set(COLUMNS) or len(set(header)) < len(header):
        raise BadInput(
            1, 1, f"the first line names the columns: {','.join(COLUMNS)}, of which the last two may be left out"
        )
    return header


def _read_row(line: int, header: list[str], row: list[str]) -> Entry | BadInput:
    if len(row) != len(header):
        return BadInput(line, min(len(row), len(header)) + 1, f"{len(row)} fields where the header has {len(header)}")
    content: dict[str, Any] = dict(zip(header, row, strict=True))
    expiry = content.get("expires_at", "")
    try:
        try:
            content["expires_at"] = float(expiry) if expiry else None
        except ValueError:
            raise _BadField("expires_at", _EXPIRY) from None
        return _record(content)
    except _BadField as error:
        return BadInput(line, header.index(error.name) + 1 if error.name in header else 1, str(error))


_EXPIRY: Final = "expires_at is a number of seconds since 1970; leave it out for a key that does not expire"


_ROW_BINARY: Final = {
    _row_encoding(names): names for count in range(len(ROW_NAMES) + 1) for names in combinations(ROW_NAMES, count)
}
"""What `encoding` says of a row -> which of its parts are base64."""


def _entry(content: Mapping[str, Any], line: int) -> Row | Expiry:
    for name in content:
        if name not in ROW_FIELDS:
            raise _BadField(name, f"unknown field {name!r}: a row of a table has {', '.join(ROW_FIELDS)}")
    encoding = content.get("encoding") or "text"
    if not isinstance(encoding, str) or encoding not in _ROW_BINARY:
        raise _BadField("encoding", f"encoding is one of {', '.join(_ROW_BINARY)}")
    binary = _ROW_BINARY[encoding]
    table = _bytes(content, "table", "table" in binary)
    if not 0 < len(table) <= KEY_SIZE_MAX:
        raise _BadField("table", f"a table has a key of 1 to {KEY_SIZE_MAX} bytes; this one has {len(table)}")
    expires_at = _expires_at(content.get("expires_at"))
    if "row" not in content and "value" not in content and expires_at is not None:
        return Expiry(table, expires_at, line)
    row = _bytes(content, "row", "row" in binary)
    if len(row) > KEY_SIZE_MAX:
        raise _BadField("row", f"a row has 0 to {KEY_SIZE_MAX} bytes; this one has {len(row)}")
    return Row(table, row, _bytes(content, "value", "value" in binary), expires_at, line)


def _record(content: Mapping[str, Any]) -> Record:
    for name in content:
        if name not in COLUMNS:
            raise _BadField(name, f"unknown field {name!r}: a record has {', '.join(COLUMNS)}")
    encoding = content.get("encoding") or "text"
    if not isinstance(encoding, str) or encoding not in _BINARY:
        raise _BadField("encoding", f"encoding is one of {', '.join(_BINARY)}")
    key_binary, value_binary = _BINARY[encoding]
    key = _bytes(content, "key", key_binary)
    if not 0 < len(key) <= KEY_SIZE_MAX:
        raise _BadField("key", f"a key has 1 to {KEY_SIZE_MAX} bytes; this one has {len(key)}")
    return Record(key, _bytes(content, "value", value_binary), _expires_at(content.get("expires_at")))


def _bytes(content: Mapping[str, Any], name: str, binary: bool) -> bytes:
    text = content.get(name)
    if not isinstance(text, str):
        raise _BadField(name, f"{name} is missing, or no string")
    try:
        return base64.b64decode(text, validate=True) if binary else text.encode()
    except (binascii.Error, UnicodeEncodeError):
        raise _BadField(name, _NO_BASE64 if binary else _NO_TEXT) from None
    except ValueError:
        raise _BadField(name, _NO_BASE64) from None  # Letters beyond ASCII.


_NO_BASE64: Final = "no base64, though `encoding` says so: correct the one or the other"
_NO_TEXT: Final = "no UTF-8: write it as base64, and say so in `encoding`"


def _expires_at(number: object) -> float | None:
    if number is None:
        return None
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise _BadField("expires_at", _EXPIRY)
    if not (0 <= number <= EXPIRES_AT_MAX):
        raise _BadField("expires_at", _EXPIRY)
    return float(number)
