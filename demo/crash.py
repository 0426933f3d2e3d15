"""One life of the writer: started with the witness at its ear, and killed in the middle.

    writer --acknowledgements--> witness --counts--> here --SIGKILL--> writer

Everything ends if any of the three does: a writer without a witness cannot speak, a witness without a writer hears the
end, and both handles are killed here, whatever happens. Only these two processes are ever signalled.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Timer
from typing import Final

from demo.acks import Ack, quoted
from demo.writer import Group

ROOT: Final = Path(__file__).resolve().parents[1]

# A slow machine is killed on time rather than on count: the proof is as good with fewer acknowledgements.
SECONDS_MAX: Final = 15.0
# Room for all acknowledgements of a usual run. With the 64 KiB of a usual pipe the writer would mostly wait for the
# witness, and the kill would find it there instead of in the store.
PIPE_SIZE: Final = 1 << 20


class CrashFailed(Exception):
    """The writer ended before it was killed or said nothing, or the witness failed: nothing can be concluded."""


@dataclass(frozen=True, slots=True)
class Life:
    """What one writer was to do, and what the witness heard of it."""

    groups: Sequence[Group]
    first_number: int
    acks: Sequence[Ack]
    kill_count: int
    """Acknowledgements in the record when the kill was sent; those on their way were heard after it."""
    rate: float
    """Acknowledgements recorded a second, from the first that were to the kill: starting up is not in it."""


def run_until_killed(
    store: Path,
    record: Path,
    groups: Sequence[Group],
    first_number: int,
    *,
    kill_at: int,
    heard: Callable[[int], None] = lambda _: None,
) -> Life:
    """Lets a writer overwrite the groups until the record has `kill_at` acknowledgements. `heard` gets each count."""
    read_end, write_end = os.pipe()
    with suppress(OSError):  # A machine may allow less; then the writer waits more often.
        fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
    writer = witness = None
    try:
        witness = _start("demo.witness", str(record), stdin=read_end, stdout=subprocess.PIPE)
        writer = _start("demo.writer", str(store), str(first_number), stdin=subprocess.PIPE, stdout=write_end)
        # Ours too must go, or the witness would wait for an end of the pipe that is held here.
        read_end, write_end = _closed(read_end), _closed(write_end)
        _tell(writer, groups)
        kill_count, rate = _kill_at(kill_at, writer, witness, heard)
    finally:
        for descriptor in (read_end, write_end):
            _closed(descriptor)
        for process in (writer, witness):
            if process is not None:
                process.kill()
                process.communicate()
    if witness.returncode != 0:
        raise CrashFailed(f"the witness ended with {witness.returncode} after {kill_count} acknowledgements")
    if writer.returncode != -signal.SIGKILL:
        raise CrashFailed(f"the writer ended by itself with {writer.returncode} after {kill_count} acknowledgements")
    acks = [Ack.parse(line) for line in record.read_text("ascii").splitlines()]
    if not acks:
        raise CrashFailed(f"the writer was killed after {SECONDS_MAX:.0f} s without an acknowledgement")
    return Life(groups, first_number, acks, kill_count, rate)


def _start(module: str, *arguments: str, stdin: int, stdout: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.Popen(command, stdin=stdin, stdout=stdout, cwd=ROOT, text=True)


def _closed(descriptor: int) -> int:
    """-1, so that closing again does nothing."""
    if descriptor >= 0:
        os.close(descriptor)
    return -1


def _tell(writer: subprocess.Popen[str], groups: Sequence[Group]) -> None:
    assert writer.stdin is not None
    with suppress(BrokenPipeError):  # A writer that is gone already says why in its return code.
        writer.stdin.writelines(" ".join(map(quoted, group)) + "\n" for group in groups)
        writer.stdin.close()


def _kill_at(
    kill_at: int, writer: subprocess.Popen[str], witness: subprocess.Popen[str], heard: Callable[[int], None]
) -> tuple[int, float]:
    """Kills the writer, hears the witness out, and returns the count at the kill and the rate up to it."""
    assert witness.stdout is not None
    timer = Timer(SECONDS_MAX, writer.kill)
    timer.start()
    counts = [(0, time.perf_counter())]
    try:
        for line in witness.stdout:
            if counts[-1][0] < kill_at:
                counts.append((int(line), time.perf_counter()))
                if counts[-1][0] >= kill_at:
                    writer.kill()
            heard(int(line))
    finally:
        timer.cancel()
        timer.join()
    # The record is whole once the witness is gone, and the store's lock is free once the writer is.
    witness.wait()
    writer.wait()
    (first_count, began), (kill_count, ended) = counts[min(1, len(counts) - 1)], counts[-1]
    return kill_count, (kill_count - first_count) / max(ended - began, 1e-6)
