"""The command `python -m bench servers`. Exit codes are those of `python -m bench`."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from bench import page
from bench.cli import Failed, Usage, at_least, bar, check_places, chosen, print_place
from bench.document import SUBJECT, Document
from bench.machine import machine_facts
from bench.report import print_report
from bench.servers import generator
from bench.servers.cells import CELLS
from bench.servers.processes import ServerFailed
from bench.servers.run import SYNC_COUNT, Found, Plan, document_of, run
from bench.servers.systems import PEERS, SYSTEMS
from bench.timeline import summary

KEYS, SECONDS, REPEAT, KILLS = 100_000, 5.0, 3, 30
QUICK_KEYS, QUICK_SECONDS, QUICK_REPEAT, QUICK_KILLS = 5_000, 0.8, 1, 3
QUICK_TIMELINE = 0.5
SPACE_KEYS_PER_SECOND = 200_000  # For room on the disk: logs, which are overwritten with 64 KiB values, too.


def parser() -> argparse.ArgumentParser:
    description = "kvsvr's replicas beside Redis, etcd and NATS: processes on loopback, started here and ended here."
    result = argparse.ArgumentParser(prog="python -m bench servers", description=description)
    quick = f"{QUICK_KEYS:,} keys, {QUICK_SECONDS:g} s of each work, once, {QUICK_KILLS} kills"
    result.add_argument("--quick", action="store_true", help=quick)
    result.add_argument("--cells", metavar="A,B", help="of " + ", ".join(CELLS))
    result.add_argument("--peers", metavar="A,B", help="of " + ", ".join(PEERS))
    result.add_argument("--seconds", type=float, metavar="S", help=f"of each work (default {SECONDS:.0f})")
    result.add_argument("--kills", type=int, metavar="N", help=f"of each set (default {KILLS}); 0: none, no timeline")
    result.add_argument("--keys", type=int, metavar="N", help=f"default {KEYS:,}")
    result.add_argument("--repeat", type=int, metavar="N", help=f"repetitions of every work (default {REPEAT})")
    result.add_argument("--dir", type=Path, default=Path(), help="where data go (default: the current directory)")
    result.add_argument("--json", type=Path, metavar="FILE", help="default: servers-<date>-<time>.json")
    result.add_argument("--page", action="store_true", help="also an HTML page, beside the JSON")
    return result


def main(argv: Sequence[str]) -> int:
    """Usage and Failed are the caller's to show. SIGTERM is as Ctrl-C: nothing that was started is to outlive us."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _main(argv)
    finally:
        signal.signal(signal.SIGTERM, before)


def _main(argv: Sequence[str]) -> int:
    options = parser().parse_args(argv[1:])
    _defaults(options)
    started_at = datetime.now(UTC)
    json_path: Path = options.json or Path(started_at.strftime("servers-%Y%m%d-%H%M%S.json"))
    check_places(options.dir, json_path, int(options.seconds * SPACE_KEYS_PER_SECOND), durable=True)
    names = chosen("--cells", options.cells, CELLS)
    versions, skipped = _installed(chosen("--peers", options.peers, PEERS))
    try:
        generator.build()
    except ServerFailed as error:
        raise Failed(str(error)) from error
    console = Console(width=None if sys.stdout.isatty() else 200)
    machine = machine_facts(options.dir, ["kvsvr"])
    console.print(f"{options.keys:,} keys of 16 B, {options.seconds:g} s of each work, {options.repeat} repetitions")
    print_place(console, machine, options)
    for name, reason in skipped.items():
        console.print(f"skipped {name}: {reason}", markup=False)
    with tempfile.TemporaryDirectory(prefix="servers-data-", dir=options.dir) as directory:
        plan = _plan(options, names, versions, Path(directory).resolve())
        found, interrupted = _measured(plan, console)
    run_facts = {
        "started_at": started_at.isoformat(),
        "arguments": list(argv),
        "workload": "servers",
        "key_count": options.keys,
        "sync_count": SYNC_COUNT,
        "repeat": options.repeat,
        "seconds": options.seconds,
        "kill_count": options.kills,
        "interrupted": interrupted,
    }
    document = document_of(plan, found, versions, skipped, run_facts, machine)
    print_report(console, document)
    print_costs(console, document)
    document.write(json_path)
    console.print(f"written to {json_path}", markup=False)
    if options.page:
        page.write(document, json_path.with_suffix(".html"))
        console.print(f"written to {json_path.with_suffix('.html')}", markup=False)
    if interrupted:
        return 130
    return 1 if document.failures else 0


def _measured(plan: Plan, console: Console) -> tuple[Found, bool]:
    """What was found, and whether it is not all because somebody was in a hurry."""
    found = Found()
    try:
        with bar(console, plan.step_count) as progress:
            task = progress.task_ids[0]

            def show(text: str) -> None:
                progress.update(task, description=text)
                progress.refresh()
                progress.advance(task)

            run(plan, found, show)
    except KeyboardInterrupt:
        return found, True
    return found, False


def print_costs(console: Console, document: Document) -> None:
    """What was not the servers' in the figures, and what a kill looked like."""
    costs: dict[str, list[float]] = {}
    for name, us in document.run["generator_cpu_us"].items():
        costs.setdefault(name.partition(" ")[0], []).append(us)
    said = ", ".join(f"{name} {min(us):g} to {max(us):g}" for name, us in costs.items())
    console.print(f"CPU of the generator, us a request: {said}", markup=False)
    for timeline in document.timelines:
        console.print(f"{timeline.peer}, 16 clients: {summary(timeline)}", markup=False)


def _defaults(options: argparse.Namespace) -> None:
    quick = options.quick
    for name, usual, short in (
        ("keys", KEYS, QUICK_KEYS),
        ("seconds", SECONDS, QUICK_SECONDS),
        ("repeat", REPEAT, QUICK_REPEAT),
        ("kills", KILLS, QUICK_KILLS),
    ):
        if getattr(options, name) is None:
            setattr(options, name, short if quick else usual)
    at_least("--keys", options.keys, 100)
    at_least("--repeat", options.repeat, 1)
    at_least("--kills", options.kills, 0)
    if options.seconds < 0.1:
        raise Usage(f"--seconds must be at least 0.1, not {options.seconds:g}")


def _installed(peers: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Versions by peer, and why the others are missing."""
    versions: dict[str, str] = {}
    skipped: dict[str, str] = {}
    for peer in peers:
        system = next(one for one in SYSTEMS.values() if one.peer == peer)
        version = system.version()
        if version is not None:
            versions[peer] = version
        elif peer == SUBJECT:
            raise Failed(f"{SUBJECT} is not installed")
        else:
            skipped[peer] = f"{system.program} is not installed: apt-get install {system.package}"
    if not versions:
        raise Usage("; ".join(skipped.values()))
    return versions, skipped


def _plan(options: argparse.Namespace, names: Sequence[str], versions: dict[str, str], directory: Path) -> Plan:
    cells = [CELLS[name] for name in names if options.kills or not CELLS[name].by_killing]
    wanted = {system for cell in cells for system in cell.systems}
    return Plan(
        systems={name: one for name, one in SYSTEMS.items() if one.peer in versions and name in wanted},
        cells=cells,
        directory=directory,
        key_count=options.keys,
        seconds=options.seconds,
        repeat=options.repeat,
        kill_count=options.kills,
        timeline_part=QUICK_TIMELINE if options.quick else 1.0,
    )
