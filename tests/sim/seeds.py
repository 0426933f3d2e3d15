"""Runs native/sim over seeds, on all cores, and reads what it says. For the tests and for the long run.

The command prints a line for each seed that violates (unless a rule was left out), one line with the numbers of seeds
and violations, and sums of what happened. Everything here is what those lines say; a command that ends in any other way
than "found something" or "found nothing" is an error, whatever it has printed.
"""

import os
import platform
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parents[2]
CORES = len(os.sched_getaffinity(0))
TIMEOUT_S = 280


@dataclass(frozen=True, slots=True)
class Found:
    """What seeds led to. `figures` are sums over them, and empty where a rule was left out."""

    n: int
    seed_count: int
    violation_count: int
    violations: Mapping[int, str]
    figures: Mapping[str, int]

    def complaint(self) -> str:
        """Each violation with the command that shows how it came about."""
        return "\n".join(
            f"seed {seed}: {what}\n    replay: {' '.join(command(self.n, seed, 1))} -v"
            for seed, what in sorted(self.violations.items())
        )


class Broken(Exception):
    """The simulator ended as it should not: a failed assertion, a finding of a sanitizer, a wrong argument."""


def program(flavour: str = "plain") -> str:
    """Beside the root, as everybody calls it from there."""
    return f"build/{flavour}/simulate"


def command(n: int, first: int, count: int, mutation: str = "", flavour: str = "plain") -> list[str]:
    mutate = ["--mutate", mutation] if mutation else []
    # ThreadSanitizer wants its shadow where a kernel that scatters mappings far may have put something else.
    still = ["setarch", platform.machine(), "-R"] if flavour == "tsan" and shutil.which("setarch") else []
    return [*still, program(flavour), "--n", str(n), "--seeds", f"{first}:{first + count}", *mutate]


def read(output: str) -> Found:
    """What the command printed."""
    head = re.search(r"^n (\d), seeds (\d+):(\d+), violations (\d+)$", output, re.MULTILINE)
    if head is None:
        raise Broken(f"no summary in what the simulator printed:\n{output[-2000:]}")
    n, first, stop, violation_count = (int(number) for number in head.groups())
    violations = {int(seed): what for seed, what in re.findall(r"^seed (\d+): (.*)$", output, re.MULTILINE)}
    figures = {name: int(sum_) for name, sum_ in re.findall(r"^(\w+) (\d+) \(", output[head.end() :], re.MULTILINE)}
    return Found(n, stop - first, violation_count, violations, figures)


def run(arguments: Sequence[str]) -> str:
    """The output of one run of the command, in full."""
    result = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    if result.returncode not in (0, 1):
        raise Broken(
            f"{' '.join(arguments)} ended with {result.returncode}\n{result.stdout[-2000:]}{result.stderr[-8000:]}"
        )
    return result.stdout


def added(parts: Iterable[Found]) -> Found:
    """Of one set size: runs of several ranges as if they were one."""
    parts = list(parts)
    figures: Counter[str] = Counter()
    violations: dict[int, str] = {}
    for part in parts:
        figures.update(part.figures)
        violations.update(part.violations)
    seed_count = sum(part.seed_count for part in parts)
    return Found(parts[0].n, seed_count, sum(part.violation_count for part in parts), violations, figures)


def ranges(first: int, count: int, pieces: int) -> list[tuple[int, int]]:
    """The seeds in pieces of about the same size: first seed and count of each."""
    pieces = min(pieces, count)
    edges = [first + count * piece // pieces for piece in range(pieces + 1)]
    return [(low, high - low) for low, high in pairwise(edges)]


def simulate(n: int, first: int, count: int, mutation: str = "") -> Found:
    """These seeds, split over the cores."""
    commands = [command(n, low, size, mutation) for low, size in ranges(first, count, CORES)]
    with ThreadPoolExecutor(CORES) as pool:
        return added(read(output) for output in pool.map(run, commands))


def noticed(n: int, first: int, count: int, mutation: str, least: int) -> int:
    """How many of these seeds notice that a rule is left out, up to `least` or a few more: then it leaves off."""
    found = 0
    for low, size in ranges(first, count, max(1, count // (25 * CORES))):
        found += simulate(n, low, size, mutation).violation_count
        if found >= least:
            break
    return found
