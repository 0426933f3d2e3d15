"""A process of its own for what cannot be measured in this one: memory, which must hold nothing but the store; opening,
which must find nothing open before; and a writer that is killed.

    python -m bench.child '{"task": "load", ...}'     # one Request, as JSON; the answer is the last line, JSON, too

Above is what a cell calls, below what the child does. A figure comes only from a child that answered and then ended
well: one that was killed, hangs, or dies while it closes its store is a ChildFailed. Nobody outlives the `with` of a
Child, and no child outlives its parent, not even one that is killed.

Keys are one string of bytes and orders are arrays, made before the store is opened: what they take is in the baseline
that memory is counted from, and it does not change. Answers are checked here, as in the cells.
"""

import ctypes
import gc
import hashlib
import json
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import threading
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from importlib import import_module
from itertools import islice
from pathlib import Path
from time import perf_counter, perf_counter_ns
from types import TracebackType
from typing import Any, TypeVar

from bench.adapters.base import INDEX_SIZE, Adapter, Reads, Writes
from bench.curve import curve_of
from bench.data import KEY_SIZE, NOISE, Setting, WrongAnswer, value_of
from bench.load import settle

Calls = TypeVar("Calls", Reads, Writes)

START_SECONDS_MAX = 60.0
OPERATION_SECONDS_MAX = 5e-4  # Several times what the slowest peer takes: a limit for hanging, not for being slow.
LOAD_COUNT, LOAD_SIZE = 1000, 1 << 20  # A batch, for loading, at most: so many keys, and bytes of values.
LOOK_COUNT = 2000  # Puts between two looks at the clock.
LOOK_SECONDS = 0.05
QUIET_COUNT = 8  # Of 30 ms: housekeeping that looks ten times a second has looked twice, and found nothing to do.
OVERWRITES = 3
PASSES = {"space": 1 + OVERWRITES, "open": 0, "write": 0}  # Over all keys; every other task makes one.
READ_SECONDS = 0.05  # A reader that never let go would keep every page that LMDB replaces.
CHECK_COUNT = 200
WRITING = b"writing\n"
PR_SET_PDEATHSIG = 1  # include/uapi/linux/prctl.h


class ChildFailed(Exception):
    """It did not answer, or not to the end; the text says how it ended and what it said."""


@dataclass(frozen=True, slots=True)
class Request:
    task: str
    adapter: str  # module:class, wherever the parent has it from
    directory: str
    key_count: int
    value_size: int
    varying: bool
    seconds: float = 0.0
    seed: int = 0

    @staticmethod
    def of(
        task: str, adapter: Adapter, directory: Path, setting: Setting, *, seconds: float = 0.0, seed: int = 0
    ) -> "Request":
        kind = type(adapter)
        name = f"{kind.__module__}:{kind.__qualname__}"
        return Request(
            task, name, str(directory), setting.key_count, setting.value_size, setting.varying, seconds, seed
        )

    @property
    def setting(self) -> Setting:
        return Setting(self.key_count, self.value_size, self.varying)

    @property
    def seconds_max(self) -> float:
        """When to give up. 5 MB a second is a tenth of what a slow disk does."""
        pass_seconds = self.key_count * (OPERATION_SECONDS_MAX + (KEY_SIZE + self.value_size) / 5e6)
        return START_SECONDS_MAX + self.seconds + PASSES.get(self.task, 1) * pass_seconds


def ask(request: Request) -> dict[str, Any]:
    """What the child answers."""
    with Child(request) as child:
        return child.answer()


class Child:
    """A running child. The `with` block ends it, however it ends itself."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  Closed by __exit__.
        # It shall find the modules that are found here, wherever the program was started.
        path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.child", json.dumps(asdict(request))],
            bufsize=0,
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )

    def __enter__(self) -> "Child":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        self._errors.close()

    def kill_writing(self) -> None:
        """kill(), of a child that was still at work: one that has failed before must not pass for killed."""
        if self._process.poll() is not None:
            raise self._failed(f"ended with {_ending(self._process.returncode)} before it was killed")
        self.kill()

    def kill(self) -> None:
        """With SIGKILL, and waits until it is gone."""
        assert self._process.stdout is not None
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()

    def wait_until_writing(self) -> None:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], self._request.seconds_max)
        if not ready or self._process.stdout.readline() != WRITING:
            raise self._failed("did not begin to write")

    def answer(self) -> dict[str, Any]:
        try:
            out, _ = self._process.communicate(timeout=self._request.seconds_max)
        except subprocess.TimeoutExpired:
            raise self._failed(f"took longer than {self._request.seconds_max:.0f} seconds") from None
        if self._process.returncode:
            raise self._failed(f"ended with {_ending(self._process.returncode)}")
        try:
            answer: dict[str, Any] = json.loads(out.splitlines()[-1])
        except (IndexError, ValueError):
            raise self._failed("did not answer") from None
        return answer

    def _failed(self, how: str) -> ChildFailed:
        self.kill()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()[-1:]
        return ChildFailed(f"{self._request.task} {': '.join([how, *said])}")


def _ending(returncode: int) -> str:
    return signal.Signals(-returncode).name if returncode < 0 else f"exit code {returncode}"


# --- in the child: what is written, and in which order ---


class Keys:
    """By number. Those of a larger setting begin with those of a smaller one."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.count = setting.key_count
        self._blob = hashlib.shake_128(b"kvsvr bench").digest(KEY_SIZE * self.count)
        self._order = array("I", range(self.count))

    def key(self, number: int) -> bytes:
        return self._blob[KEY_SIZE * number : KEY_SIZE * (number + 1)]

    def value(self, key: bytes, generation: int) -> bytes:
        return value_of(key, generation, self.setting.size_of(key, generation))

    def shuffled(self, seed: int) -> Iterator[bytes]:
        """Every key once, in no order. In place: the walk before must have ended."""
        random.Random(seed).shuffle(self._order)
        return map(self.key, self._order)

    def live_size(self, generation: int) -> int:
        """Bytes of all keys and their values."""
        if not self.setting.varying:
            return self.count * (KEY_SIZE + self.setting.value_size)
        sizes = (self.setting.size_of(self.key(number), generation) for number in range(self.count))
        return KEY_SIZE * self.count + sum(sizes)

    def random_keys(self, seed: int) -> Iterator[bytes]:
        """Without end."""
        draw, count = random.Random(seed).random, self.count
        while True:
            yield self.key(int(draw() * count))

    def random_pairs(self, seed: int) -> Iterator[tuple[bytes, bytes]]:
        """To overwrite with at full speed, without end: such a value begins as its key does and goes on as something in
        NOISE, which costs a fifth of hashing it and can still be told from what was never written."""
        draw, size_of = random.Random(~seed).random, self.setting.size_of
        for key in self.random_keys(seed):
            size = size_of(key, int(draw() * 1000))
            head = _head_size(size)
            at = int(draw() * (len(NOISE) - size))  # So values are below a MiB.
            yield key, key[:head] + NOISE[at : at + size - head]

    def check(self, key: bytes, answer: bytes | None) -> None:
        """Loaded, or overwritten by random_pairs."""
        if answer is None:
            raise WrongAnswer(f"key {key.hex()} is gone")
        head = _head_size(len(answer))
        if answer != self.value(key, 0) and not (answer[:head] == key[:head] and answer[head:] in NOISE):
            raise WrongAnswer(f"key {key.hex()}: {len(answer)} bytes that were never its value")

    def check_some(self, adapter: Adapter, seed: int) -> None:
        with adapter.reads() as reads:
            for key in islice(self.random_keys(seed), CHECK_COUNT):
                self.check(key, reads.get(key))


def _head_size(size: int) -> int:
    return min(KEY_SIZE, (size + 1) // 2)


def load(writes: Writes, keys: Keys) -> None:
    """Every key at generation 0, in the order of their numbers, which is none of their bytes."""
    step = max(1, min(LOAD_COUNT, LOAD_SIZE // keys.setting.value_size))
    for first in range(0, keys.count, step):
        some = map(keys.key, range(first, min(first + step, keys.count)))
        writes.write_batch([(key, keys.value(key, 0)) for key in some])


def overwrite(writes: Writes, keys: Keys, generation: int, look: Callable[[], object]) -> None:
    """Every key once, one put each, in no order; `look` is called every so often."""
    looked = perf_counter()
    for count, key in enumerate(keys.shuffled(generation)):
        writes.put(key, keys.value(key, generation))
        if count % LOOK_COUNT == 0 and perf_counter() - looked > LOOK_SECONDS:
            look()
            looked = perf_counter()


def touch(reads: Reads, keys: Keys, seed: int) -> None:
    """A get of every key that was loaded, in no order."""
    for key in keys.shuffled(seed):
        if reads.get(key) != keys.value(key, 0):
            raise WrongAnswer(f"key {key.hex()} has not the value that was loaded")


# --- in the child: what is asked ---


def task_load(request: Request, adapter: Adapter, keys: Keys) -> dict[str, Any]:
    """Memory after loading into a new store, which stays."""
    return _anonymous(request, adapter, adapter.writes, lambda writes: load(writes, keys))


def task_touch(request: Request, adapter: Adapter, keys: Keys) -> dict[str, Any]:
    """Memory after opening and a get of everything."""
    return _anonymous(request, adapter, adapter.reads, lambda reads: touch(reads, keys, request.seed))


def task_overwrite(request: Request, adapter: Adapter, keys: Keys) -> dict[str, Any]:
    """Memory after opening and an overwrite of everything."""
    return _anonymous(
        request, adapter, adapter.writes, lambda writes: overwrite(writes, keys, request.seed, lambda: None)
    )


def _anonymous(
    request: Request,
    adapter: Adapter,
    begin: Callable[[], AbstractContextManager[Calls]],
    work: Callable[[Calls], object],
) -> dict[str, Any]:
    """What of RssAnon came by opening and the work. Anonymous pages are those that no file stands behind: the page
    cache, which holds what stores map, belongs to the kernel, and it takes it back when it likes. Held is what is left
    when malloc has been told to give back what was freed: the rest a program pays for, too, but it is no state."""
    before = anonymous_size()
    _open(request, adapter)
    with begin() as calls:  # What a connection caches is given back at its end, so this looks before.
        work(calls)
        rest()
        answer = {"anonymous": anonymous_size() - before}
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:  # Not every C library has it.
            trim(0)
        answer["held"] = anonymous_size() - before
    if adapter.can(INDEX_SIZE):
        answer["index"] = adapter.index_size()
    adapter.close()
    return answer


def task_space(request: Request, adapter: Adapter, keys: Keys) -> dict[str, Any]:
    """What a new store takes on the disk, and what was written to overwrite it."""
    directory = Path(request.directory)
    _open(request, adapter)
    with adapter.writes() as writes:
        load(writes, keys)
    loaded = _closed_size(adapter, directory)
    written, device = written_size(), device_written_size(directory)
    peak = 0

    def look() -> None:
        nonlocal peak
        peak = max(peak, size_of(directory))

    _open(request, adapter)
    with adapter.writes() as writes:
        for generation in range(1, OVERWRITES + 1):
            overwrite(writes, keys, generation, look)
            look()
    overwritten = _closed_size(adapter, directory)
    answer = {
        "loaded": loaded / keys.live_size(0),
        "peak": peak / keys.live_size(OVERWRITES),
        "overwritten": overwritten / keys.live_size(OVERWRITES),
    }
    put_size = sum(keys.live_size(generation) for generation in range(1, OVERWRITES + 1))
    answer["written"] = (written_size() - written) / put_size
    if device is not None:
        answer["device"] = ((device_written_size(directory) or 0) - device) / put_size
    _open(request, adapter)
    with adapter.reads() as reads:
        for key in (keys.key(number) for number in range(0, keys.count, 1 + keys.count // 10_000)):
            if reads.get(key) != keys.value(key, OVERWRITES):
                raise WrongAnswer(f"key {key.hex()} has not the value that was written last")
    adapter.close()
    return answer


def _closed_size(adapter: Adapter, directory: Path) -> int:
    """When background work has ended, the store is closed and all of it is on the disk."""
    rest()
    adapter.close()
    os.sync()
    return size_of(directory)


def task_open(request: Request, adapter: Adapter, keys: Keys) -> dict[str, Any]:
    """Milliseconds from open() to the first answer. The peer's modules are imported already."""
    key = keys.key(random.Random(request.seed).randrange(keys.count))
    started = perf_counter()
    _open(request, adapter)
    with adapter.reads() as reads:
        answer = reads.get(key)
        milliseconds = 1000 * (perf_counter() - started)
    keys.check(key, answer)
    keys.check_some(adapter, request.seed)
    adapter.close()
    return {"ms": milliseconds}


def task_write(request: Request, adapter: Adapter, keys: Keys) -> dict[str, Any]:
    """Overwrites at full speed until it is killed."""
    _open(request, adapter)
    with adapter.writes() as writes:
        put = writes.put
        sys.stdout.buffer.write(WRITING)
        sys.stdout.buffer.flush()
        for key, value in keys.random_pairs(request.seed):
            put(key, value)
    raise AssertionError("random_pairs has no end")


def task_stalls(request: Request, adapter: Adapter, keys: Keys) -> dict[str, Any]:
    """How long single puts and gets take, side by side in two threads, the one overwriting at full speed."""
    _open(request, adapter)
    with adapter.writes() as writes:
        load(writes, keys)
    rest()
    ended = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(_timed_gets, adapter, keys, ended)
        try:
            puts = _timed_puts(adapter, keys, request.seconds, reading.done)
        finally:
            ended.set()
        gets = reading.result()
    keys.check_some(adapter, request.seed)
    adapter.close()
    return {"put": curve_of(puts), "get": curve_of(gets), "put_count": len(puts), "get_count": len(gets)}


def _timed_puts(adapter: Adapter, keys: Keys, seconds: float, give_up: Callable[[], bool]) -> "array[int]":
    """Nothing is prepared ahead: whoever holds the GIL for that would be seen in the other thread's times."""
    times = array("q")
    after = 0
    end = perf_counter_ns() + int(seconds * 1e9)
    with adapter.writes() as writes:
        put = writes.put
        for key, value in keys.random_pairs(1):
            before = perf_counter_ns()
            put(key, value)
            after = perf_counter_ns()
            times.append(after - before)
            if after > end or give_up():
                return times
    raise AssertionError("random_pairs has no end")


def _timed_gets(adapter: Adapter, keys: Keys, ended: threading.Event) -> "array[int]":
    """The bytes are checked at the end, for the same reason."""
    times = array("q")
    asked = keys.random_keys(2)
    while not ended.is_set():
        after, until = 0, perf_counter_ns() + int(READ_SECONDS * 1e9)
        with adapter.reads() as reads:
            get = reads.get
            while after < until:
                key = next(asked)
                before = perf_counter_ns()
                answer = get(key)
                after = perf_counter_ns()
                times.append(after - before)
                if answer is None:
                    raise WrongAnswer(f"key {key.hex()} is gone")
    return times


def rest() -> None:
    """Twice, because what waits for a busy disk looks as if it had ended: behind the sync it goes on."""
    settle(quiet_count_min=QUIET_COUNT)
    settle(quiet_count_min=QUIET_COUNT)


def _open(request: Request, adapter: Adapter) -> None:
    adapter.open(Path(request.directory), durable=False, key_count=request.key_count, value_size=request.value_size)


# --- in the child: what the kernel counts ---


def size_of(directory: Path) -> int:
    """Bytes that the disk gives for it; files may go while this looks."""
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            try:
                total += os.stat(os.path.join(folder, name)).st_blocks * 512
            except FileNotFoundError:
                continue
    return total


def anonymous_size() -> int:
    return 1024 * _number("/proc/self/status", "RssAnon:")


def written_size() -> int:
    """Bytes of pages that this process made dirty, by write() or by storing into a mapping: a page counts whole, each
    time that it was clean before."""
    return _number("/proc/self/io", "write_bytes:")


def device_written_size(directory: Path) -> int | None:
    """What the disk under the directory was given to write, by anybody; None where the kernel names none."""
    device = os.stat(directory).st_dev
    for line in Path("/proc/diskstats").read_text().splitlines():
        fields = line.split()
        if (int(fields[0]), int(fields[1])) == (os.major(device), os.minor(device)):
            return 512 * int(fields[9])
    return None


def _number(path: str, name: str) -> int:
    for line in Path(path).read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    raise OSError(f"{path} has no {name}")


TASKS: Mapping[str, Callable[[Request, Adapter, Keys], dict[str, Any]]] = {
    "load": task_load,
    "touch": task_touch,
    "overwrite": task_overwrite,
    "space": task_space,
    "open": task_open,
    "write": task_write,
    "stalls": task_stalls,
}


def main(argv: Sequence[str]) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
    gc.disable()
    request = Request(**json.loads(argv[0]))
    module, _, name = request.adapter.partition(":")
    adapter: Adapter = getattr(import_module(module), name)()
    keys = Keys(request.setting)
    print("\n" + json.dumps(TASKS[request.task](request, adapter, keys)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
