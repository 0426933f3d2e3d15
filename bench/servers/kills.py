"""What clients feel when a replica is killed with SIGKILL, and whether what they were told is still there.

Sixteen clients write new keys all the time, spread over the processes. A client whose connection breaks, who is told
no, or who hears nothing for TIMEOUT_MS goes to the next process with the same SET. The gap of a kill is the longest
that any SET waited which was under way or begun from then on, counted from the kill: every client tries keys of all
shards, so it lasts until the last shard has an owner again. It is measured with the clients pausing between requests,
because on few cores a full load would measure the scheduler; the timeline is under full load.

After the last kill, when all processes are there, every key whose SET was acknowledged is read back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.document import Timeline
from bench.servers.generator import Answered, Background, Outcome, run
from bench.servers.systems import System

CLIENTS = 16
CHECK_CLIENTS = 64
CHECK_RATE_MIN = 200  # Keys read back a second, by a set on a busy machine: how long to be patient.
PAUSE_US = 5000
TIMEOUT_MS = 100
KEY_BASE = 1 << 32  # Of keys that nothing else uses.
REST_SECONDS = 1.0  # Between a set that is whole and the next kill, for shards to go back to who should own them.
AFTER_SECONDS = 0.3  # Between the first writes after a kill and the return of who was killed.
BUCKET_MS = 50
BEFORE_SECONDS, DOWN_SECONDS, BACK_SECONDS = 2.0, 4.0, 3.0  # Of a timeline.


@dataclass(frozen=True, slots=True)
class Kills:
    """Of one system, as it was."""

    gaps_ms: Sequence[float]
    acknowledged: int
    lost: int
    retries: int
    seconds: float


@dataclass(slots=True)
class _Kill:
    at_ns: int
    until_ns: int = 0


def measure(system: System, directory: Path, kill_count: int, show: Callable[[int], None]) -> Kills:
    records = directory / "acknowledged"
    kills: list[_Kill] = []
    clients = _clients(system, records, i=PAUSE_US)
    try:
        for number in range(kill_count):
            show(number)
            time.sleep(REST_SECONDS)
            kills.append(_kill(system, number))
    finally:
        outcome, answered = _ended(clients)
    gaps = [gap_ms(answered, kill.at_ns, kill.until_ns) for kill in kills]
    checked = check(system, records, len(answered))
    return Kills(gaps, len(answered), checked.lost, outcome.retries, outcome.seconds)


def _kill(system: System, number: int) -> _Kill:
    victim = system.victim(number)
    kill = _Kill(time.monotonic_ns())
    system.processes[victim].kill()
    system.wait_writable(victim)
    time.sleep(AFTER_SECONDS)
    kill.until_ns = time.monotonic_ns()
    system.processes[victim].start()
    system.wait_whole()
    return kill


def _clients(system: System, records: Path, **options: object) -> Background:
    return Background(system.dialects["put"], system.ports, records, c=CLIENTS, x=TIMEOUT_MS, b=KEY_BASE, **options)


def _ended(clients: Background) -> tuple[Outcome, list[Answered]]:
    try:
        return clients.stop()
    finally:
        clients.kill()


def check(system: System, records: Path, key_count: int) -> Outcome:
    """Reads back every key that is in the file."""
    expected = key_count / CHECK_RATE_MIN
    return run(system.dialects["get"], system.ports_of("get"), "check", expected=expected, c=CHECK_CLIENTS, r=records)


def gap_ms(answered: Sequence[Answered], killed_ns: int, until_ns: int) -> float:
    """The longest wait from `killed_ns` on, of SETs that were under way then or begun before `until_ns`."""
    waits = (
        one.answered_ns - max(one.sent_ns, killed_ns)
        for one in answered
        if one.answered_ns > killed_ns and one.sent_ns < until_ns
    )
    return max(waits, default=0) / 1e6


def quantile(values: Sequence[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


# --- a timeline ---


def timeline(system: System, directory: Path, seconds: float = 1.0) -> Timeline:
    """One kill under full load. `seconds`: how long all of it is, against the usual."""
    records = directory / "timeline"
    clients = _clients(system, records)
    begun = time.monotonic_ns()
    try:
        time.sleep(BEFORE_SECONDS * seconds)
        victim = system.victim(0)
        killed = time.monotonic_ns()
        system.processes[victim].kill()
        time.sleep(DOWN_SECONDS * seconds)
        returned = time.monotonic_ns()
        system.processes[victim].start()
        time.sleep(BACK_SECONDS * seconds)
        ended = time.monotonic_ns()
    finally:
        _, answered = _ended(clients)
    return buckets(system.peer, answered, begun, killed, returned, ended)


def buckets(peer: str, answered: Sequence[Answered], begun: int, killed: int, returned: int, ended: int) -> Timeline:
    width = BUCKET_MS * 10**6
    waits: list[list[float]] = [[] for _ in range((ended - begun) // width)]
    for one in answered:
        place = (one.answered_ns - begun) // width
        if 0 <= place < len(waits):
            waits[place].append((one.answered_ns - one.sent_ns) / 1e3)
    return Timeline(
        peer=peer,
        bucket_ms=BUCKET_MS,
        killed_ms=(killed - begun) / 1e6,
        returned_ms=(returned - begun) / 1e6,
        rates=[len(one) * 1000 / BUCKET_MS for one in waits],
        p50_us=[quantile(one, 0.5) if one else None for one in waits],
        p99_us=[quantile(one, 0.99) if one else None for one in waits],
    )
