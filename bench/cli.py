"""The command line: what to run, where, and what happens when it cannot.

Exit codes: 0 every cell ran, 1 a peer failed or answered wrongly, or kvsvr itself cannot be measured, 2 usage,
130 interrupted (what was found is written).
"""

import argparse
import gc
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench import compare, page, plots, workloads
from bench.adapters import ADAPTERS, Adapter, NotInstalled
from bench.cells import CELLS
from bench.data import VALUE_SIZE, Data, Setting, WrongAnswer
from bench.document import SUBJECT, document_of
from bench.limits import Limits, limit_names
from bench.machine import file_system_of, machine_facts
from bench.report import print_report
from bench.runner import Outcome, Plan, run, suits
from bench.workloads import KEYS, KEYS_QUICK, Stage

SYNCS, REPEAT = 3_000, 3
QUICK = (KEYS_QUICK, 100, 1)  # keys, syncs, repetitions
ALONE_QUICK = (100_000, 1_000, 3)  # Where kvsvr alone is measured there is time for more.
RETRIES, RETRIES_QUICK = 2, 0
BYTES_PER_KEY = 4096  # Free space asked for: the largest store measured, with room for its log.
LAG_SPACE = 2 << 30


# What is done with runs that were written.
ON_FILES = {"compare": compare.main, "page": page.main, "plot": plots.main}


class Usage(Exception):
    """Something the caller can put right; the text says what."""


class Failed(Exception):
    """Without this there is nothing to measure; the text says why."""


def parser() -> argparse.ArgumentParser:
    others = "boundary | lag | overwrite | servers | services | compare | page | plot"
    about = f"kvsvr beside its peers. See also: python -m bench {others} --help"
    result = _parser("python -m bench", about, "bench", QUICK)
    result.add_argument("--retries", type=int, metavar="N", help=f"of a disturbed repetition (default {RETRIES})")
    result.add_argument("--workload", choices=workloads.NAMES, default=workloads.DEFAULT, help="default: %(default)s")
    cells = "of the workload's, as put@1KiB where values are of another size: " + ", ".join(CELLS)
    result.add_argument("--cells", metavar="A,B", help=cells)
    result.add_argument("--page", action="store_true", help="also an HTML page, beside the JSON")
    result.add_argument("--peers", metavar="A,B", help="of " + ", ".join(ADAPTERS))
    return result


def boundary_parser() -> argparse.ArgumentParser:
    result = _parser(
        "python -m bench boundary", "How much of an operation is C, cffi and Python.", "boundary", ALONE_QUICK
    )
    result.add_argument("--keep", action="store_true", help="keep the keys and values, for kv_harness by hand")
    return result


def lag_parser() -> argparse.ArgumentParser:
    description = "How late an event loop is while kvsvr works in it, and while nothing does."
    result = argparse.ArgumentParser(prog="python -m bench lag", description=description)
    result.add_argument("--quick", action="store_true", help="2 seconds of each load")
    result.add_argument("--seconds", type=int, metavar="N", help="of each load (default 20)")
    _add_places(result, "lag")
    return result


def overwrite_parser() -> argparse.ArgumentParser:
    description = "Whether compaction keeps up with random overwriting at full speed, and what it costs the writer."
    result = argparse.ArgumentParser(prog="python -m bench overwrite", description=description)
    result.add_argument("--quick", action="store_true", help=f"{ALONE_QUICK[0]:,} keys, 10 seconds")
    result.add_argument("--keys", type=int, metavar="N", help=f"default {KEYS:,}")
    result.add_argument("--value-size", type=int, default=100, metavar="N", help="bytes (default 100)")
    result.add_argument("--seconds", type=int, metavar="N", help="default 600")
    _add_places(result, "overwrite")
    return result


def services_parser() -> argparse.ArgumentParser:
    description = "What messaging, sync and the queue cost in one process, beside their bars."
    result = argparse.ArgumentParser(prog="python -m bench services", description=description)
    result.add_argument("--quick", action="store_true", help="a fiftieth of it, once")
    result.add_argument("--repeat", type=int, metavar="N", help="repetitions of every cell (default 5)")
    result.add_argument("--scale", type=int, metavar="N", help="messages sent singly in each (default 5000)")
    _add_places(result, "services")
    return result


def _parser(program: str, description: str, json_prefix: str, quick: tuple[int, int, int]) -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog=program, description=description)
    text = f"{quick[0]:,} keys, {quick[1]:,} syncs, repetitions: {quick[2]}"
    result.add_argument("--quick", action="store_true", help=text)
    result.add_argument("--keys", type=int, metavar="N", help=f"keys in the store (default {KEYS:,})")
    result.add_argument("--syncs", type=int, metavar="N", help=f"fsyncs per repetition (default {SYNCS:,})")
    result.add_argument("--repeat", type=int, metavar="N", help=f"repetitions of every cell (default {REPEAT})")
    _add_places(result, json_prefix)
    return result


def _add_places(parser: argparse.ArgumentParser, json_prefix: str) -> None:
    parser.add_argument("--dir", type=Path, default=Path(), help="where data go (default: the current directory)")
    parser.add_argument("--json", type=Path, metavar="FILE", help=f"default: {json_prefix}-<date>-<time>.json")


def main(argv: Sequence[str]) -> int:
    if argv[:1] and argv[0] in ON_FILES:
        return ON_FILES[argv[0]](argv[1:])
    try:
        if argv[:1] == ["boundary"]:
            return boundary(boundary_parser().parse_args(argv[1:]), list(argv))
        if argv[:1] == ["lag"]:
            return lag(lag_parser().parse_args(argv[1:]), list(argv))
        if argv[:1] == ["overwrite"]:
            return overwrite(overwrite_parser().parse_args(argv[1:]), list(argv))
        if argv[:1] == ["services"]:
            return services(services_parser().parse_args(argv[1:]), list(argv))
        if argv[:1] == ["servers"]:
            from bench.servers import cli as servers  # Not above: it needs this file.

            return servers.main(argv)
        return bench(parser().parse_args(argv), list(argv))
    except (Usage, Failed) as error:
        print(f"python -m bench: {error}", file=sys.stderr)
        return 2 if isinstance(error, Usage) else 1


def sizes(options: argparse.Namespace, quick_keys: int, quick_syncs: int, quick_repeat: int) -> tuple[int, int]:
    """How many keys and syncs; sees to --repeat on the way."""
    key_count = options.keys if options.keys is not None else quick_keys if options.quick else KEYS
    sync_count = options.syncs if options.syncs is not None else quick_syncs if options.quick else SYNCS
    at_least("--keys", key_count, 100)
    at_least("--syncs", sync_count, 8)
    if options.repeat is None:
        options.repeat = quick_repeat if options.quick else REPEAT
    at_least("--repeat", options.repeat, 1)
    return key_count, sync_count


def at_least(option: str, number: int, least: int) -> None:
    if number < least:
        raise Usage(f"{option} must be at least {least}, not {number}")


def bench(options: argparse.Namespace, argv: list[str]) -> int:
    key_count, sync_count = sizes(options, *QUICK)
    if options.retries is None:
        options.retries = RETRIES_QUICK if options.quick else RETRIES
    at_least("--retries", options.retries, 0)
    stages = chosen_stages(options, key_count)
    cells = [cell for stage in stages for cell in stage.cells]
    adapters, skipped = installed(chosen("--peers", options.peers, ADAPTERS))
    started_at = datetime.now(UTC)
    json_path: Path = options.json or Path(started_at.strftime("bench-%Y%m%d-%H%M%S.json"))
    stored_max = max(stage.setting.key_count * max(1, stage.setting.value_size // 512) for stage in stages)
    check_places(options.dir, json_path, stored_max, durable=any(cell.durable for cell in cells))

    console = Console(width=None if sys.stdout.isatty() else 200)
    machine = machine_facts(options.dir, [a.distribution for a in adapters.values() if a.distribution])
    print_machine(console, machine, options, key_count)
    for name, reason in skipped.items():
        console.print(f"skipped {name}: {reason}", markup=False)

    outcome, interrupted = Outcome(), False
    with tempfile.TemporaryDirectory(prefix="bench-data-", dir=options.dir) as directory:
        data = Data(Setting(key_count))
        limits = Limits(Path(directory), data, sync_count)
        gc.freeze()  # Millions of keys need not be walked by the collection before every cell.
        peers = {name: ADAPTERS[name] for name in adapters}
        plan = Plan(peers, stages, data_source(data), Path(directory), options.repeat, sync_count, options.retries)
        try:
            with bar(console, step_count(plan, adapters)) as progress:
                task = progress.task_ids[0]

                def show(text: str) -> None:
                    progress.update(task, description=text)
                    progress.refresh()
                    progress.advance(task)

                run(plan, outcome, measure_limits=limits.measure, progress=show)
        except KeyboardInterrupt:
            interrupted = True
    document = document_of(
        run={
            "started_at": started_at.isoformat(),
            "arguments": argv,
            "workload": options.workload,
            "key_count": key_count,
            "value_size": VALUE_SIZE,
            "varying": False,
            "sync_count": sync_count,
            "repeat": options.repeat,
            "retry_max": options.retries,
            "interrupted": interrupted,
        },
        machine=machine,
        cells=cells,
        adapters=adapters,
        skipped={**skipped, **limits.skipped},
        repetitions=outcome.repetitions,
        limits=outcome.limits(limit_names()),
    )
    print_report(console, document)
    document.write(json_path)
    console.print(f"written to {json_path}", markup=False)
    if options.page:
        page.write(document, json_path.with_suffix(".html"))
        console.print(f"written to {json_path.with_suffix('.html')}", markup=False)
    if interrupted:
        return 130
    return 1 if any(repetition.error for repetition in outcome.repetitions) else 0


def chosen_stages(options: argparse.Namespace, key_count: int) -> list[Stage]:
    stages = workloads.stages(options.workload, key_count, quick=options.quick)
    cells = {cell.name: cell for stage in stages for cell in stage.cells}
    return workloads.regrouped(cells[name] for name in chosen("--cells", options.cells, cells))


def data_source(usual: Data) -> Callable[[Setting], Data]:
    """The usual data are kept for the whole run; of other settings those that were asked for last."""
    other = lru_cache(maxsize=1)(Data)
    return lambda setting: usual if setting == usual.setting else other(setting)


def boundary(options: argparse.Namespace, argv: list[str]) -> int:
    key_count, sync_count = sizes(options, *ALONE_QUICK)
    started_at = datetime.now(UTC)
    json_path: Path = options.json or Path(started_at.strftime("boundary-%Y%m%d-%H%M%S.json"))
    check_places(options.dir, json_path, key_count, durable=True)
    try:
        from bench import boundary as sides  # Not above: it imports kvsvr, which may be broken.
    except Exception as error:
        raise Failed(f"kvsvr cannot be imported: {type(error).__name__}: {error}") from error
    console = Console(width=None if sys.stdout.isatty() else 200)
    machine = machine_facts(options.dir, ["kvsvr"])
    print_machine(console, machine, options, key_count)
    directory = Path(tempfile.mkdtemp(prefix="boundary-data-", dir=options.dir))
    try:
        harness = sides.build_harness()
        sides.write_workload(directory, Data(Setting(key_count)), sync_count)
        outcome = sides.run(harness, directory, options.repeat, console.print)
    except (sides.HarnessFailed, WrongAnswer) as error:
        raise Failed(str(error)) from error
    except KeyboardInterrupt:
        return 130
    finally:
        if not options.keep:
            shutil.rmtree(directory, ignore_errors=True)
    console.print(sides.boundary_table(outcome))
    if outcome.disturbed_count:
        console.print(f"{outcome.disturbed_count} of {len(outcome.loads)} runs were disturbed by other load")
    facts = {
        "started_at": started_at.isoformat(),
        "arguments": argv,
        "key_count": key_count,
        "sync_count": sync_count,
        "repeat": options.repeat,
    }
    json_path.write_text(json.dumps(sides.document_of(outcome, facts, machine), indent=1) + "\n")
    console.print(f"written to {json_path}", markup=False)
    if options.keep:
        console.print(f"by hand: {harness} {directory} 3", markup=False)
    return 0


def lag(options: argparse.Namespace, argv: list[str]) -> int:
    seconds = options.seconds if options.seconds is not None else 2 if options.quick else 20
    at_least("--seconds", seconds, 1)
    started_at = datetime.now(UTC)
    json_path: Path = options.json or Path(started_at.strftime("lag-%Y%m%d-%H%M%S.json"))
    check_places(options.dir, json_path, LAG_SPACE // BYTES_PER_KEY, durable=True)
    try:
        from bench import lag as loops  # As above.
    except Exception as error:
        raise Failed(f"kvsvr cannot be imported: {type(error).__name__}: {error}") from error
    console = Console(width=None if sys.stdout.isatty() else 200)
    machine = machine_facts(options.dir, ["kvsvr"])
    console.print(f"{seconds} seconds of each load, one process")
    print_place(console, machine, options)
    with tempfile.TemporaryDirectory(prefix="lag-data-", dir=options.dir) as directory:
        try:
            lags = loops.run(Path(directory), seconds, loops.LARGE_SIZE, console.print)
        except KeyboardInterrupt:
            return 130
    console.print(loops.table_of(lags))
    facts = {"started_at": started_at.isoformat(), "arguments": argv, "seconds": seconds}
    json_path.write_text(json.dumps(loops.document_of(lags, facts, machine), indent=1) + "\n")
    console.print(f"written to {json_path}", markup=False)
    return 0


def overwrite(options: argparse.Namespace, argv: list[str]) -> int:
    seconds = options.seconds if options.seconds is not None else 10 if options.quick else 600
    key_count = options.keys if options.keys is not None else ALONE_QUICK[0] if options.quick else KEYS
    at_least("--seconds", seconds, 1)
    at_least("--keys", key_count, 100)
    at_least("--value-size", options.value_size, 1)
    started_at = datetime.now(UTC)
    json_path: Path = options.json or Path(started_at.strftime("overwrite-%Y%m%d-%H%M%S.json"))
    check_places(options.dir, json_path, key_count * max(1, options.value_size // 100), durable=True)
    try:
        from bench import overwrite as overwriting  # As above.
    except Exception as error:
        raise Failed(f"kvsvr cannot be imported: {type(error).__name__}: {error}") from error
    console = Console(width=None if sys.stdout.isatty() else 200)
    machine = machine_facts(options.dir, ["kvsvr"])
    print_place(console, machine, options)
    with tempfile.TemporaryDirectory(prefix="overwrite-data-", dir=options.dir) as directory:
        try:
            outcome = overwriting.run(Path(directory), key_count, options.value_size, seconds, console.print)
        except KeyboardInterrupt:
            return 130
    console.print(overwriting.table_of(outcome))
    facts = {"started_at": started_at.isoformat(), "arguments": argv, "seconds": seconds}
    json_path.write_text(json.dumps(overwriting.document_of(outcome, facts, machine), indent=1) + "\n")
    console.print(f"written to {json_path}", markup=False)
    return 0


def services(options: argparse.Namespace, argv: list[str]) -> int:
    repeat = options.repeat if options.repeat is not None else 1 if options.quick else 5
    scale = options.scale if options.scale is not None else 100 if options.quick else 5000
    at_least("--repeat", repeat, 1)
    at_least("--scale", scale, 100)
    started_at = datetime.now(UTC)
    json_path: Path = options.json or Path(started_at.strftime("services-%Y%m%d-%H%M%S.json"))
    check_places(options.dir, json_path, scale * repeat * 20, durable=False)
    try:
        from bench import services as measured  # As above.
    except Exception as error:
        raise Failed(f"kvsvr.messaging cannot be imported: {type(error).__name__}: {error}") from error
    console = Console(width=None if sys.stdout.isatty() else 200)
    machine = machine_facts(options.dir, ["kvsvr", "msgspec"])
    print_place(console, machine, options)
    with tempfile.TemporaryDirectory(prefix="services-data-", dir=options.dir) as directory:
        try:
            figures = measured.run(Path(directory), repeat, scale, console.print)
        except measured.Wrong as error:
            raise Failed(str(error)) from error
        except KeyboardInterrupt:
            return 130
    console.print(measured.table_of(figures))
    facts = {"started_at": started_at.isoformat(), "arguments": argv, "repeat": repeat, "scale": scale}
    json_path.write_text(json.dumps(measured.document_of(figures, facts, machine), indent=1) + "\n")
    console.print(f"written to {json_path}", markup=False)
    return 0


def print_machine(console: Console, machine: Mapping[str, Any], options: argparse.Namespace, key_count: int) -> None:
    console.print(f"{key_count:,} keys of 16 B, values of 100 B, {options.repeat} repetitions, one process")
    print_place(console, machine, options)


def print_place(console: Console, machine: Mapping[str, Any], options: argparse.Namespace) -> None:
    file_system = machine["file_system"]
    console.print(f"{machine['cpu_model']}, {machine['core_count']} cores, Linux {machine['kernel']}")
    console.print(f"data in {options.dir.resolve()}: {file_system['type']} on {file_system['device']}", markup=False)


def chosen(option: str, text: str | None, known: Iterable[str]) -> list[str]:
    """In the known order, whatever order they were given in."""
    names = list(known)
    if text is None:
        return names
    asked = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in asked if name not in names]
    if unknown or not asked:
        raise Usage(f"{option}: {', '.join(unknown) or 'nothing'} is none of {', '.join(names)}")
    return [name for name in names if name in asked]


def installed(names: Iterable[str]) -> tuple[dict[str, Adapter], dict[str, str]]:
    """One adapter of each, to ask for facts, and why the others are missing. A run that was to measure kvsvr and could
    not is no success, however many peers there are."""
    adapters: dict[str, Adapter] = {}
    skipped: dict[str, str] = {}
    for name in names:
        try:
            adapters[name] = ADAPTERS[name]()
        except NotInstalled as reason:
            if name == SUBJECT:
                raise Failed(f"{SUBJECT} cannot be imported: {reason}") from reason
            skipped[name] = str(reason)
    if not adapters:
        raise Usage("none of the chosen peers is installed: " + ", ".join(skipped))
    return adapters, skipped


def check_places(directory: Path, json_path: Path, key_count: int, *, durable: bool) -> None:
    """Before a quarter of an hour is spent, not after."""
    if not directory.is_dir() or not os.access(directory, os.W_OK):
        raise Usage(f"--dir: {directory} is not a directory that can be written")
    file_system = file_system_of(directory)
    if file_system.in_memory and durable:
        raise Usage(f"--dir: {directory} is {file_system.type}, where fsync costs nothing; choose a disk")
    if not os.access(json_path.parent, os.W_OK):
        raise Usage(f"--json: {json_path.parent} is not a directory that can be written")
    free, needed = shutil.disk_usage(directory).free, key_count * BYTES_PER_KEY
    if free < needed:
        raise Usage(f"--dir: {needed >> 20:,} MiB are needed, {free >> 20:,} MiB are free")


def step_count(plan: Plan, adapters: Mapping[str, Adapter]) -> int:
    cells = [cell for stage in plan.stages for cell in stage.cells]
    suiting = [cell for a in adapters.values() for cell in cells if suits(a, cell)]
    return sum(1 if cell.once else plan.repeat for cell in suiting) + plan.repeat + 1


def bar(console: Console, total: int) -> Progress:
    """Never refreshed by itself: its thread would take turns with what is timed."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    progress = Progress(*columns, console=console, auto_refresh=False)
    progress.add_task("", total=total)
    return progress
