"""The clients: native/bench/load.c, built when it is needed, and what it says.

It is in C, because a client in Python does some ten thousand requests a second with a core to itself, and every server
here does more. What it costs is measured with every figure: it runs on the same cores as the servers.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.servers.processes import ServerFailed

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "bench"
PROGRAM = BUILD / "kv_load"
GRACE_SECONDS = 60.0  # For what is under way at the end, and for slow servers to be filled.


@dataclass(frozen=True, slots=True)
class Outcome:
    """`operations` are those that counted, in `seconds`; `all_operations` those before and after as well."""

    operations: int
    all_operations: int
    seconds: float
    cpu_seconds: float
    """Of the generator, for all operations."""
    retries: int
    lost: int
    curve: dict[str, float]

    @property
    def rate(self) -> float:
        return self.operations / self.seconds if self.seconds else 0.0

    @property
    def cpu_us(self) -> float:
        return 1e6 * self.cpu_seconds / self.all_operations if self.all_operations else 0.0


@dataclass(frozen=True, slots=True)
class Answered:
    """A request of `new` that was acknowledged; times of the monotonic clock."""

    sent_ns: int
    answered_ns: int


def build() -> None:
    """Up to date with the sources, if there is cmake; else what is there is used."""
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    cmake = shutil.which("cmake", path=places)
    if cmake is None:
        if PROGRAM.exists():
            return
        raise ServerFailed("the load generator is not built and cmake is not installed: pip install cmake ninja")
    commands = [[cmake, "--build", str(BUILD), "--target", "kv_load"]]
    if not (BUILD / "CMakeCache.txt").exists():
        generator = ["-G", "Ninja"] if shutil.which("ninja", path=places) else []
        options = ["-DKV_EXTENSION=OFF", "-DKV_BENCH=ON", *generator]
        commands.insert(0, [cmake, "-S", str(ROOT / "native"), "-B", str(BUILD), *options])
    for command in commands:
        environment = {**os.environ, "PATH": places}
        result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if result.returncode != 0:
            said = "\n".join([*result.stdout.splitlines()[-10:], *result.stderr.splitlines()[-10:]])
            raise ServerFailed(f"the load generator cannot be built: {' '.join(command)}\n{said}")


def arguments(dialect: str, ports: Sequence[int], mode: str, **options: object) -> list[str]:
    """`options` by the letters of load.c."""
    said = [word for letter, value in options.items() for word in (f"-{letter}", str(value))]
    return [str(PROGRAM), "-p", dialect, "-a", ",".join(map(str, ports)), "-m", mode, *said]


def run(dialect: str, ports: Sequence[int], mode: str, *, expected: float = 0, **options: object) -> Outcome:
    """`expected`: seconds that it takes if all is well."""
    command = arguments(dialect, ports, mode, **options)
    try:
        result = subprocess.run(command, capture_output=True, check=False, timeout=expected + GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        raise ServerFailed(f"kv_load {dialect} {mode}: no end within {expected + GRACE_SECONDS:.0f} s") from None
    return _outcome(result.returncode, result.stdout, result.stderr)


class Background:
    """One that runs until it is told to stop, and notes what was acknowledged when."""

    def __init__(self, dialect: str, ports: Sequence[int], records: Path, **options: object) -> None:
        command = arguments(dialect, ports, "new", t=10**6, r=records, **options)
        self._records = records
        # In a session of its own, so that Ctrl-C is ours: it is told to stop as always, and what it noted is read.
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )

    def stop(self) -> tuple[Outcome, list[Answered]]:
        self._process.send_signal(signal.SIGTERM)
        try:
            out, error = self._process.communicate(timeout=GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise ServerFailed("kv_load: what was under way was not answered any more") from None
        outcome = _outcome(self._process.returncode, out, error)
        numbers = array("Q", self._records.read_bytes())
        return outcome, [Answered(*pair) for pair in zip(numbers[::3], numbers[1::3], strict=True)]

    def kill(self) -> None:
        """Accepts one that has ended."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()


def _outcome(code: int, out: bytes, error: bytes) -> Outcome:
    if code != 0:
        raise ServerFailed(f"{error.decode(errors='replace').strip() or 'kv_load failed'} ({code})")
    found = json.loads(out)
    return Outcome(
        operations=found["operations"],
        all_operations=found["all"],
        seconds=found["seconds"],
        cpu_seconds=found["cpu_seconds"],
        retries=found["retries"],
        lost=found["lost"],
        curve=found["curve"],
    )
