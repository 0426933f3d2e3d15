"""docs/protocol/scenarios.md, drawn from what the transcript tests go through: `make scenarios` writes it.

The tests (PROGRAMS) compare every message of a scenario with what they expect; with --tell they print the same lines,
and between them what was asked, whose log grew and who waited. A drawing has a lane for the client and one for
each replica, and a row for each line: nothing is left out, and the words are those of the tests, titles included.
Text, because that is shown by whatever shows Markdown, and a change of it can be read as a diff (decision 0032).
"""

import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.sim.seeds import ROOT

PROGRAMS = ("build/plain/test_replica", "build/plain/test_replica_members", "build/plain/test_replica_repair")
PAGE = ROOT / "docs" / "protocol" / "scenarios.md"
REPLICA_COUNT = 3  # at least; one that joins has a lane where it does
CLIENT = 0
TEXT_WIDTH = 78
PROSE_WIDTH = 120

HEAD = """\
# What they say to each other

Scenarios of the protocol, as tests of the C core go through them: a set of three, one shard, every message carried by
hand. The drawings are made of the transcripts that `test_replica.c`, `test_replica_members.c` and
`test_replica_repair.c` in `native/tests/` compare line by line, by `make scenarios`, and a test fails when this page
shows anything else
([decision 0032](../decisions/0032-drawings-are-text.md)). The rules are [specification.md](specification.md).

    --->|   arrives; a message is drawn when it does       >+   and makes the log of that replica grow
    ---x|   is lost                                         *   the log is on the disk, up to here
      X     is gone                                         :   ticks pass

`s0` is shard 0. A ballot is round.node: `2.3` is round 2 of replica 3. `FLOW c1#3 s0 1.1 after 1 of 1.1 commit 1:
put a` is the third message of the first connection; under ballot 1.1, behind version 1, which is of ballot 1.1, while
version 1 is committed, it brings the record of a put. `ACK c1#3`: that message, and all before it, are on the disk.
"""


@dataclass(slots=True)
class Row:
    """One line of a drawing: an arrow, or something at one replica, or a remark."""

    text: str
    start: int = -1  # lanes; -1: none
    end: int = -1
    mark: str = "|"
    lost: bool = False


@dataclass(frozen=True, slots=True)
class Scenario:
    title: str
    about: str
    rows: list[Row] = field(default_factory=list)

    def lane_count(self) -> int:
        """The client's, and those of the replicas."""
        return 1 + max([REPLICA_COUNT, *(max(row.start, row.end) for row in self.rows)])


def column(lane: int) -> int:
    """The client's, then those of replica 1 and so on."""
    return 2 + 9 * lane


def row_of(line: str) -> Row:
    """What one line of a transcript comes to. Raises ValueError for one that nobody writes."""
    if found := re.fullmatch(r"note (.*)", line):
        return Row(found[1])
    if found := re.fullmatch(r"client>(\d) (.*)", line):
        return Row(found[2], CLIENT, int(found[1]))
    if found := re.fullmatch(r"(\d)>(\d) (.*?)( LOST)?", line):
        return Row(found[3], int(found[1]), int(found[2]), lost=found[4] is not None)
    if found := re.fullmatch(r"(\d) answers (.*)", line):
        return Row(found[2], int(found[1]), CLIENT)
    if found := re.fullmatch(r"(\d) waits (\d+)", line):
        return Row(f"{found[2]} tick{'s' * (found[2] != '1')}", end=int(found[1]), mark=":")
    marks = {"durable": "*", "crashes": "X", "restarts": "|", "takes over": "|", "logs": "+"}
    if (found := re.fullmatch(r"(\d) (.*)", line)) and found[2] in marks:
        return Row("" if found[2] == "logs" else found[2], end=int(found[1]), mark=marks[found[2]])
    raise ValueError(line)


def read(output: str) -> Iterator[Scenario]:
    """The scenarios in what the test program printed; what else it prints is not looked at."""
    for block in re.findall(r"^scenario .*?^end$", output, re.MULTILINE | re.DOTALL):
        title, about, *lines = block.splitlines()[:-1]
        scenario = Scenario(title.removeprefix("scenario "), about.removeprefix("about "))
        for line in lines:
            row, rows = row_of(line), scenario.rows
            if row.mark == "+" and rows and rows[-1].end == row.end and rows[-1].mark in "|:":
                rows[-1].mark = "+"  # The log grew because of what came there, or of the time.
            else:
                rows.append(row)
        yield scenario


def lanes(there: set[int], count: int) -> list[str]:
    line = [" "] * (column(count - 1) + 1)
    for lane in there:
        line[column(lane)] = "|"
    return line


def drawn(row: Row, there: set[int], count: int) -> Iterator[str]:
    """`there`: lanes that are drawn; a replica that is gone has none."""
    line = lanes(there, count)
    if row.start >= 0:
        first, last = sorted((column(row.start), column(row.end)))
        line[first + 1 : last] = "-" * (last - first - 1)
        right = row.end > row.start
        line[last - 1 if right else first + 1] = "x" if row.lost else ">" if right else "<"
    if row.end >= 0 and (row.mark != "|" or row.end in there):
        line[column(row.end)] = row.mark
    for part in textwrap.wrap(row.text, TEXT_WIDTH, break_on_hyphens=False) or [""]:
        yield f"    {''.join(line):<{column(count - 1) + 5}}{part}".rstrip()
        line = lanes(there, count)


def drawing(scenario: Scenario) -> Iterator[str]:
    """The lanes' names, and row for row what happened."""
    count = scenario.lane_count()
    names = [" "] * (column(count - 1) + 5)
    for lane, name in enumerate(["client", *map(str, range(1, count))]):
        at = max(0, column(lane) - len(name) // 2)
        names[at : at + len(name)] = name
    yield "    " + "".join(names).rstrip()
    there = set(range(count))
    for row in scenario.rows:
        if row.text in ("crashes", "restarts"):
            (there.discard if row.text == "crashes" else there.add)(row.end)
        yield from drawn(row, there, count)


def page(scenarios: list[Scenario]) -> str:
    parts = [HEAD]
    for scenario in scenarios:
        about = textwrap.fill(scenario.about, PROSE_WIDTH, break_on_hyphens=False)
        parts.append(f"## {scenario.title}\n\n{about}\n\n" + "\n".join(drawing(scenario)) + "\n")
    return "\n".join(parts)


def told() -> str:
    """What the test programs say of their scenarios; they have to pass."""
    return "".join(
        subprocess.run([program, "--tell"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout
        for program in PROGRAMS
    )


def main() -> int:
    PAGE.write_text(page(list(read(told()))), encoding="utf-8")
    print(PAGE.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
