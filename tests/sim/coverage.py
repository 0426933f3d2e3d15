"""How much of the replica core the simulation reaches: `make simulate-coverage`, with gcov alone.

Branches are counted as gcov does, a condition with two outcomes as two, but for lines that nobody wants taken:
assertions, and the rules that only tests leave out. What was never taken is listed in build/coverage/missed.txt.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.sim.seeds import CORES, ROOT, command, ranges, run

BUILD = ROOT / "build" / "coverage"
OBJECTS = BUILD / "CMakeFiles" / "kv_tested.dir" / "src"
SOURCES = ROOT / "native" / "src"
COVERED = ("replica*.c", "lanes.c", "late.c", "list.c", "sessions.c", "version_log.c", "wire.c")
SEEDS = ((3, 3000), (5, 600))
# What only a rule left out leads to is walked with that rule left out.
LEFT_OUT = ("check_joined", "cut_below_commit", "longest_tail", "restart_owns")
LEFT_OUT_SEEDS = 60
NOT_COUNTED = ("KV_ASSERT(", "mutated(")


@dataclass(frozen=True, slots=True)
class Line:
    number: int
    text: str
    count: int
    branches: tuple[int, ...]  # how often each was taken


def sources() -> list[Path]:
    return sorted(source for pattern in COVERED for source in SOURCES.glob(pattern))


def c_tests() -> list[Path]:
    """Those of the covered sources that were built: test_wire, test_replica and so on."""
    return sorted({test for source in sources() for test in BUILD.glob(f"test_{source.stem}*") if test.is_file()})


def exercise() -> None:
    simulations = [
        command(n, first, size, flavour="coverage") for n, count in SEEDS for first, size in ranges(0, count, 2 * CORES)
    ]
    simulations += [command(3, 0, LEFT_OUT_SEEDS, rule, flavour="coverage") for rule in LEFT_OUT]
    with ThreadPoolExecutor(CORES) as pool:
        list(pool.map(run, simulations + [[str(test)] for test in c_tests()]))


def lines_of(source: Path) -> Iterator[Line]:
    """By gcov, which finds the notes of the compiler beside the counts."""
    arguments = ["gcov", "--json-format", "--branch-probabilities", "--stdout", f"{source.name}.gcda"]
    output = subprocess.run(arguments, cwd=OBJECTS, capture_output=True, text=True, check=True).stdout
    texts = source.read_text(encoding="utf-8").splitlines()
    for file in json.loads(output)["files"]:
        if Path(file["file"]).name != source.name:
            continue
        for line in file["lines"]:
            taken = tuple(branch["count"] for branch in line["branches"])
            yield Line(line["line_number"], texts[line["line_number"] - 1].strip(), line["count"], taken)


def share(part: int, whole: int) -> str:
    return f"{100 * part / whole:6.1f} %" if whole else "     - %"


def main() -> int:
    for counts in OBJECTS.glob("*.gcda"):
        counts.unlink()
    exercise()
    print(f"{'':<20} {'lines':>6} {'reached':>8}   {'branches':>8} {'taken':>8}")
    missed: list[str] = []
    sums = [0, 0, 0, 0]
    for source in sources():
        lines = list(lines_of(source))
        counted = [line for line in lines if not any(mark in line.text for mark in NOT_COUNTED)]
        branches = [count for line in counted for count in line.branches]
        row = [len(lines), sum(line.count != 0 for line in lines), len(branches), sum(count != 0 for count in branches)]
        sums = [old + new for old, new in zip(sums, row, strict=True)]
        print(f"{source.name:<20} {row[0]:>6} {share(row[1], row[0])}   {row[2]:>8} {share(row[3], row[2])}")
        for line in counted:
            if 0 in line.branches:
                never = f"{line.branches.count(0)} of {len(line.branches)} branches"
                missed.append(f"{source.name}:{line.number}: {never}: {line.text}")
    print(f"{'all':<20} {sums[0]:>6} {share(sums[1], sums[0])}   {sums[2]:>8} {share(sums[3], sums[2])}")
    file = BUILD / "missed.txt"
    file.write_text("\n".join(missed) + "\n", encoding="utf-8")
    print(f"never taken: {file.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
