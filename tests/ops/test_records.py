"""Records as JSON lines and CSV: lossless for any bytes, and exact about what cannot be read."""

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsvr.errors import UsageError
from kvsvr.ops.records import EXPIRES_AT_MAX, BadInput, Entry, Expiry, Format, Record, Row, reader, writer

FORMATS: list[Format] = ["jsonl", "csv"]

# Random bytes alone are hardly ever text.
CONTENT = (
    st.binary(max_size=40)
    | st.text(max_size=20).map(lambda text: text.encode())
    | st.sampled_from([b"\n", b'"', b"\r\n", b"\0"])
)
EXPIRIES = st.none() | st.integers(0, 10**15).map(lambda ms: ms / 1000)
RECORDS = st.lists(st.builds(Record, CONTENT.filter(bool), CONTENT, EXPIRIES), max_size=20)


def read(format_: Format, content: bytes) -> list[Entry | BadInput]:
    return list(reader(format_)(io.BytesIO(content)))


@pytest.mark.parametrize("format_", FORMATS)
@given(records=RECORDS)
def test_what_is_written_is_read(format_: Format, records: list[Record]) -> None:
    """Any bytes and any expiry come back as they were."""
    head, encode = writer(format_)
    assert read(format_, head + b"".join(map(encode, records))) == records


@given(
    records=st.lists(
        st.builds(Row, CONTENT.filter(bool), CONTENT, CONTENT, EXPIRIES)
        | st.builds(Expiry, CONTENT.filter(bool), EXPIRIES.filter(lambda expiry: expiry is not None)),
        max_size=20,
    )
)
def test_rows_of_tables_are_lines_of_json(records: list[Entry]) -> None:
    """Any bytes in table, row and value, and any expiry, of rows and of tables; CSV refuses them."""
    head, encode = writer("jsonl")
    assert read("jsonl", head + b"".join(map(encode, records))) == records
    _, encode = writer("csv")
    for record in records:
        with pytest.raises(UsageError, match="JSON lines"):
            encode(record)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('{"table": "t"}', "row is missing"),
        ('{"table": "t", "row": "r"}', "value is missing"),
        ('{"table": "", "row": "r", "value": ""}', "a table has a key of 1 to 65535"),
        ('{"table": "t", "row": "r", "value": "", "key": "k"}', "unknown field 'key'"),
        ('{"table": "t", "row": "r", "value": "", "encoding": "base64-key"}', "encoding is one of"),
        ('{"table": "t", "row": "!", "value": "", "encoding": "base64-row"}', "no base64"),
    ],
)
def test_a_bad_row_is_refused_with_its_reason(line: str, what: str) -> None:
    (found,) = read("jsonl", line.encode())
    assert isinstance(found, BadInput)
    assert what in found.what


@pytest.mark.parametrize("format_", FORMATS)
@given(
    content=st.binary(max_size=200) | st.text('{}[]",:0e.keyvalutbrow\n', max_size=60).map(lambda text: text.encode())
)
def test_any_input_is_read_or_refused(format_: Format, content: bytes) -> None:
    """Nothing but a record or a BadInput with a place comes of any bytes."""
    head = b"key,value\n" if format_ == "csv" else b""
    for one in read(format_, head + content):
        assert not isinstance(one, BadInput) or (one.line >= 1 and one.column >= 1)


@pytest.mark.parametrize("format_", FORMATS)
def test_text_stays_readable(format_: Format) -> None:
    """UTF-8 is not turned into base64, beside a binary value neither."""
    _, encode = writer(format_)
    assert "grüße" in encode(Record("grüße".encode(), b"\xff")).decode()


@pytest.mark.parametrize(
    ("line", "column", "word"),
    [
        (b'{"key": "a", "value": 1}', 14, "value"),
        (b'{"key": "a"}', 1, "value"),
        (b'{"key": "", "value": "b"}', 2, "65535"),
        (b'{"key": "a" "value": "b"}', 13, "JSON"),
        (b'["a", "b"]', 1, "object"),
        (b'{"key": "a", "value": "\xff"}', 24, "UTF-8"),
        (b'{"key": "a", "value": "?", "encoding": "base64-value"}', 14, "base64"),
        (b'{"key": "a", "value": "b", "encoding": "utf-16"}', 28, "encoding"),
        (b'{"key": "a", "value": "b", "expires_at": "soon"}', 28, "1970"),
        (b'{"key": "a", "value": "b", "expires_at": NaN}', 28, "1970"),
        (b'{"key": "a", "value": "b", "ttl": 5}', 28, "unknown"),
        (b'{"key": "\\ud800", "value": "b"}', 2, "UTF-8"),
        (b"[" * 100_000, 1, "flat"),
    ],
)
def test_a_bad_line_is_named(line: bytes, column: int, word: str) -> None:
    """The place, and what is wrong there; the records around it are read."""
    good = json.dumps({"key": "a", "value": "b"}).encode()
    before, bad, after = read("jsonl", b"\n".join([good, line, good]))
    assert before == after == Record(b"a", b"b")
    assert isinstance(bad, BadInput)
    assert (bad.line, bad.column) == (2, column)
    assert word in bad.what


@pytest.mark.parametrize(
    ("row", "column", "word"),
    [
        (b"a", 2, "fields"),
        (b"a,b,c,d,e", 5, "fields"),
        (b"a,b,base64-value,", 2, "base64"),
        (b"a,b,text,soon", 4, "1970"),
        (b"a,\xff,text,", 2, "UTF-8"),
        (b'a,"b"c,text,', 1, "CSV"),
    ],
)
def test_a_bad_row_is_named(row: bytes, column: int, word: str) -> None:
    """As in JSON, with the column as the number of the field; a field over two lines before it counts as two."""
    found = read("csv", b'key,value,encoding,expires_at\na,"b\nc",,\n' + row + b"\na,d,,\n")
    assert found[0] == Record(b"a", b"b\nc")
    assert isinstance(found[1], BadInput)
    assert (found[1].line, found[1].column) == (4, column)
    assert word in found[1].what
    assert found[2] == Record(b"a", b"d")


@pytest.mark.parametrize("header", [b"", b"a,b\n", b"key\n", b"key,value,size\n", b"key,key,value\n", b'"key'])
def test_a_wrong_header_is_no_input(header: bytes) -> None:
    """Without the names nothing below means anything, so nothing is skipped."""
    with pytest.raises(BadInput, match="line 1"):
        read("csv", header + b"a,b\n")


def test_a_spreadsheet_is_read() -> None:
    """A byte order mark, carriage returns, columns in another order."""
    assert read("csv", b"\xef\xbb\xbfvalue,key\r\nb,a\r\n") == [Record(b"a", b"b")]


def test_the_latest_expiry_is_read() -> None:
    """And what no store can hold is not."""
    assert read("csv", b"key,value,expires_at\na,b,%d\n" % EXPIRES_AT_MAX) == [Record(b"a", b"b", EXPIRES_AT_MAX)]
    assert isinstance(read("csv", b"key,value,expires_at\na,b,1e300\n")[0], BadInput)
