"""`python -m demo`: exit code 0 if everything held, 1 if anything did not, 2 for wrong usage.

The store goes to a folder of its own under build/demo, which is removed at the end; --keep and --dir leave it, and so
does a failure, because then somebody will want to look.
"""

from __future__ import annotations

import argparse
import platform
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from demo.crash import ROOT, CrashFailed
from demo.files import files_under, standard_library
from demo.report import Screen, Section
from demo.run import Run
from demo.steps import PART, STEPS
from kvsvr import KvError


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="python -m demo", description="kvsvr on real input, killed and proven whole.")
    result.add_argument(
        "--dir", type=Path, metavar="DIR", help="put the store into this new or empty folder, and leave it"
    )
    result.add_argument("--keep", action="store_true", help="leave the store where it is")
    result.add_argument("--source", type=Path, metavar="DIR", help="load this folder, not Python's standard library")
    result.add_argument(
        "--acks", type=int, default=3000, metavar="N", help="kill after N to 2 N acknowledgements (%(default)s)"
    )
    result.add_argument("--forge", action="store_true", help="slip a false acknowledgement into the records: must fail")
    return result


def main(arguments: Sequence[str]) -> int:
    options = parser()
    chosen = options.parse_args(arguments)
    source: Path = (chosen.source or standard_library()).resolve()
    if len(files_under(source)) < PART:
        options.error(f"--source: {source} has fewer than {PART} files")
    if chosen.acks < 1:
        options.error("--acks must be at least 1")
    try:
        directory = _directory(chosen.dir)
    except OSError as error:
        options.error(f"--dir: {error}")
    screen = Screen(Console(highlight=False))
    screen.say(f"kvsvr demo: {source}, Python {platform.python_version()}, into {directory}")
    whole = False
    try:
        whole = run_steps(Run(source, directory, screen, chosen.acks, forge=chosen.forge))
    except KeyboardInterrupt:
        screen.say("stopped", "red")
        return 130
    finally:
        if whole and not chosen.keep and chosen.dir is None:
            shutil.rmtree(directory)
        else:
            screen.say(f"the store is left in {directory}; to look at it:\n  {_look_command(directory)}")
    return 0 if whole else 1


def run_steps(run: Run) -> bool:
    """Runs them all up to the first that fails, prints the report, and says whether everything held."""
    began = time.perf_counter()
    sections: list[Section] = []
    for title, step in STEPS:
        section = Section(title)
        sections.append(section)
        try:
            step(run, section)
        except (KvError, CrashFailed) as error:
            section.failures.append(f"{type(error).__name__}: {error}")
        if section.failures:
            break  # What comes after stands on it.
    run.screen.report(sections)
    whole = not any(section.failures for section in sections)
    seconds = time.perf_counter() - began
    if whole:
        run.screen.say(f"PROVEN in {seconds:.1f} s: nothing acknowledged is missing, nothing is torn", "bold green")
    else:
        run.screen.say(f"FAILED after {seconds:.1f} s: see above", "bold red")
    return whole


def _directory(wanted: Path | None) -> Path:
    if wanted is None:
        parent = ROOT / "build" / "demo"
        parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix="run-", dir=parent))
    wanted.mkdir(parents=True, exist_ok=True)
    if any(wanted.iterdir()):
        raise FileExistsError(f"{wanted} is not empty: give a new folder")
    return wanted.resolve()


def _look_command(directory: Path) -> str:
    code = "import sys, kvsvr; db = kvsvr.open(sys.argv[1], readonly=True); print(db, len(db))"
    return shlex.join([sys.executable, "-i", "-c", code, str(directory / "store")])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
