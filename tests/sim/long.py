"""The long run of the simulation: `make simulate`, or `python -m tests.sim.long`.

Seeds 0 to SEEDS at N = 3 and a fifth of them at N = 5, in blocks, on all cores. What a block printed is kept in
build/simulate/<digest of the program>/, so a run that was interrupted goes on where it was, and a program that changed
starts anew. The summary is of all blocks that are there, also after Ctrl-C. Exit code 1: a violation was found.
"""

import argparse
import hashlib
import statistics
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path

from tests.sim.seeds import CORES, ROOT, Found, added, command, program, ranges, read, run

BLOCK = 250
SHARE_OF_FIVE = 5
PROGRESS_EVERY = 40

Block = tuple[int, int, int]  # n, first seed, count


def blocks(seed_count: int) -> Iterator[Block]:
    """Both set sizes in turn, so that a short run has seen both."""
    for number, (first, count) in enumerate(ranges(0, seed_count, -(-seed_count // BLOCK))):
        yield 3, first, count
        if number % SHARE_OF_FIVE == 0:
            yield 5, first // SHARE_OF_FIVE, count


def kept(folder: Path, block: Block) -> Path:
    n, first, count = block
    return folder / f"n{n}-{first:08}-{count}.txt"


def do(folder: Path, block: Block) -> None:
    """Runs a block unless it was run; its file appears when it is whole."""
    file = kept(folder, block)
    if file.exists():
        return
    partial = file.with_suffix(".part")
    partial.write_text(run(command(*block)), encoding="utf-8")
    partial.replace(file)


def lines_of(n: int, found: Sequence[Found]) -> Iterator[str]:
    whole = added(found)
    yield f"n {n}: {whole.seed_count} seeds, {whole.violation_count} violations"
    for name, total in whole.figures.items():
        of_blocks = [block.figures[name] / block.seed_count for block in found]
        yield (
            f"    {name:<18} {total:>12}   a seed: {total / whole.seed_count:9.2f}"
            f"   blocks: {min(of_blocks):9.2f} {statistics.median(of_blocks):9.2f} {max(of_blocks):9.2f}"
        )
    if whole.violations:
        yield whole.complaint()


def summary(folder: Path) -> tuple[str, int]:
    """Everything that is there, and how many violations; of blocks the least, median and greatest mean a seed."""
    found = [read(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("n*.txt"))]
    lines: list[str] = []
    for n in (3, 5):
        of_size = [block for block in found if block.n == n]
        if of_size:
            lines += lines_of(n, of_size)
    return "\n".join(lines), sum(block.violation_count for block in found)


def work(folder: Path, todo: Sequence[Block], jobs: int) -> None:
    with ThreadPoolExecutor(jobs) as pool:
        futures: list[Future[None]] = [pool.submit(do, folder, block) for block in todo]
        try:
            for number, future in enumerate(as_completed(futures), 1):
                future.result()
                if number % PROGRESS_EVERY == 0:
                    print(f"{number} of {len(todo)} blocks, {summary(folder)[1]} violations", flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim.long", description="the simulation over many seeds")
    parser.add_argument("--seeds", type=int, default=100_000, help="at N = 3, and a fifth as many at N = 5")
    parser.add_argument("--jobs", type=int, default=CORES, help="processes at a time")
    chosen = parser.parse_args()
    if chosen.seeds < 1 or chosen.jobs < 1:
        parser.error("--seeds and --jobs are at least 1")
    digest = hashlib.sha256((ROOT / program()).read_bytes()).hexdigest()[:12]
    folder = ROOT / "build" / "simulate" / digest
    folder.mkdir(parents=True, exist_ok=True)
    todo = list(blocks(chosen.seeds))
    done_count = sum(kept(folder, block).exists() for block in todo)
    print(f"{len(todo)} blocks, {done_count} of them done: {folder.relative_to(ROOT)}", flush=True)
    try:
        work(folder, todo, chosen.jobs)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here")
    text, violation_count = summary(folder)
    (folder / "summary").write_text(text + "\n", encoding="utf-8")
    print(text)
    return int(violation_count != 0)


if __name__ == "__main__":
    sys.exit(main())
