"""docs/protocol/scenarios.md shows what the transcript tests go through now, and the drawing leaves nothing out."""

import pytest

from tests.sim.scenarios import PAGE, PROGRAMS, Row, drawing, page, read, row_of, told
from tests.sim.seeds import ROOT


@pytest.fixture(scope="module")
def output() -> str:
    for program in PROGRAMS:
        assert (ROOT / program).exists(), f"{program} is not built: run `make c-tests` first"
    return told()


def test_the_page_is_what_the_transcripts_come_to(output: str) -> None:
    """`make scenarios` writes it."""
    assert PAGE.read_text(encoding="utf-8") == page(list(read(output)))


def test_what_a_reader_wants_to_see_is_there(output: str) -> None:
    """By what is drawn, not by titles."""
    drawn = {scenario.title: "\n".join(drawing(scenario)) for scenario in read(output)}
    for sign in ("barrier", "PREPARE", "refused, promised", "CHECKED", "POSITION", "snapshot of", "OFFER", "(expired)",
                 "attempt 2", "crashes", "retry", "members 1 2 4", "you are no member",
                 "FOUND", "damaged", "it does not fit"):  # fmt: skip
        assert [title for title, text in drawn.items() if sign in text] != [], sign
    assert len(drawn) == output.count("scenario ") >= 12


def test_every_line_of_a_transcript_is_a_row(output: str) -> None:
    """But for those that say whose log grew: that is a mark on the row before, where there is one."""
    for scenario, block in zip(read(output), output.split("scenario ")[1:], strict=True):
        lines = block.split("\nend\n")[0].splitlines()[2:]
        assert len([row for row in scenario.rows if row.text]) == len([line for line in lines if " logs" not in line])


@pytest.mark.parametrize(
    ("line", "row"),
    [
        ("1>2 ACK c1#3", Row("ACK c1#3", 1, 2)),
        ("1>3 CHECK s0 1.1 LOST", Row("CHECK s0 1.1", 1, 3, lost=True)),
        ("client>2 get a", Row("get a", 0, 2)),
        ("2 answers ok version 7", Row("ok version 7", 2, 0)),
        ("3 durable", Row("durable", end=3, mark="*")),
        ("1 logs", Row("", end=1, mark="+")),
        ("1 waits 1", Row("1 tick", end=1, mark=":")),
        ("note Nobody hears of it.", Row("Nobody hears of it.")),
    ],
)
def test_a_line_is_a_row(line: str, row: Row) -> None:
    assert row_of(line) == row


@pytest.mark.parametrize("line", ["", "1", "1>2", "4 does nothing", "client asks"])
def test_a_line_that_nobody_writes_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match=line or "^$"):
        row_of(line)


def test_arrows_end_where_the_message_does() -> None:
    """To the right, to the left, across somebody else, and lost."""
    block = "scenario A\nabout B.\n1>2 x\n3>1 y\n1>3 z LOST\n2 crashes\n1 answers ok\nend\n"
    [scenario] = read(block)
    assert [line[4:].rstrip() for line in drawing(scenario)] == [
        "client     1        2        3",
        "  |        |------->|        |    x",
        "  |        |<----------------|    y",
        "  |        |----------------x|    z",
        "  |        |        X        |    crashes",
        "  |<-------|                 |    ok",
    ]
