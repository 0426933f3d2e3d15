"""Physical limits, measured in the same run: no store can beat them, and a figure is read against them."""

import importlib
import importlib.util
import mmap
import operator
import os
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

from bench.cells.base import time_answers, time_each, time_pairs
from bench.cells.latency import time_each_put
from bench.data import KEY_SIZE, Data

FILE_SIZE = 8 << 20
PAGE_SIZE = 4096
COPY_SIZE = 64 << 20
CALL_COUNT = 200_000


def limit_names() -> dict[str, str]:
    """Name to unit. Cells name the one that stands beside them."""
    return {
        "fdatasync": "syncs/s",
        "memcpy": "bytes/s",
        "empty put call": "calls/s",
        "empty get call": "calls/s",
        "empty timed call": "calls/s",
        "cffi no-op": "calls/s",
        "dict put": "keys/s",
        "dict get": "keys/s",
        "pairs of bytes": "keys/s",
    }


class Limits:
    """Measures every limit once per call of `measure`; what cannot be measured is in `skipped`, with the reason."""

    def __init__(self, directory: Path, data: Data, sync_count: int) -> None:
        self._directory, self._data, self._sync_count = directory, data, sync_count
        self.skipped: dict[str, str] = {}
        self._no_op = self._build_no_op()

    def measure(self) -> dict[str, float]:
        keys, values = self._data.inserts[:CALL_COUNT], self._data.values[:CALL_COUNT]
        rates = {
            "fdatasync": fdatasync_rate(self._directory, self._sync_count),
            "memcpy": _memcpy(),
            # Built-in calls that do next to nothing: what is left is the loop around every put and get.
            "empty put call": len(keys) / time_pairs(operator.is_, keys, values),
            "empty get call": len(keys) / time_answers(operator.truth, keys)[0],
            "empty timed call": len(keys) / (sum(time_each_put(operator.is_, keys, values)) / 1e9),
        }
        rates |= self._in_memory()
        if self._no_op is not None:
            rates["cffi no-op"] = CALL_COUNT / time_each(self._no_op, range(CALL_COUNT))
        return rates

    def _in_memory(self) -> dict[str, float]:
        """All keys of the run in a dict, and pairs cut out of one buffer: what a scan can do at best."""
        data, items = self._data, dict[bytes, bytes]()
        buffer = b"".join(key + value for key, value in zip(data.inserts, data.values, strict=True))
        started = perf_counter()
        for _ in struct.iter_unpack(f"{KEY_SIZE}s{data.setting.value_size}s", buffer):
            pass
        pairs_seconds = perf_counter() - started
        return {
            "dict put": data.key_count / time_pairs(items.__setitem__, data.inserts, data.values),
            "dict get": data.key_count / time_answers(items.get, data.reads)[0],
            "pairs of bytes": data.key_count / pairs_seconds,
        }

    def _build_no_op(self) -> Callable[[int], Any] | None:
        """A C function that returns its argument, bound as kvsvr binds its core (API mode, so it is compiled)."""
        try:
            cffi = importlib.import_module("cffi")
            ffi = cffi.FFI()
            ffi.cdef("int bench_no_op(int x);")
            ffi.set_source("_bench_no_op", "static int bench_no_op(int x) { return x; }")
            with tempfile.TemporaryDirectory(dir=self._directory) as build:
                path = ffi.compile(tmpdir=build)
                spec = importlib.util.spec_from_file_location("_bench_no_op", path)
                assert spec is not None and spec.loader is not None
                module = importlib.util.module_from_spec(spec)
                spec.loader.exec_module(module)
            call: Callable[[int], Any] = module.lib.bench_no_op
            return call
        except Exception as error:  # No cffi, no compiler, no setuptools: one line in the report whichever it is.
            self.skipped["cffi no-op"] = f"{type(error).__name__}: {error}".splitlines()[0]
            return None


def fdatasync_rate(directory: Path, sync_count: int) -> float:
    """Overwrites of one 4 KiB page after another in a file that is there already, each followed by fdatasync."""
    page = os.urandom(PAGE_SIZE)
    path = directory / "fdatasync"
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        for offset in range(0, FILE_SIZE, PAGE_SIZE):
            os.pwrite(fd, bytes(PAGE_SIZE), offset)
        os.fsync(fd)
        started = perf_counter()
        for i in range(sync_count):
            os.pwrite(fd, page, i * PAGE_SIZE % FILE_SIZE)
            os.fdatasync(fd)
        return sync_count / (perf_counter() - started)
    finally:
        os.close(fd)
        path.unlink()


def _memcpy() -> float:
    """Between two mappings that are in memory already."""
    with mmap.mmap(-1, COPY_SIZE) as source, mmap.mmap(-1, COPY_SIZE) as target:
        source[:] = b"\x01" * COPY_SIZE
        with memoryview(source) as source_view, memoryview(target) as target_view:
            target_view[:] = source_view
            started = perf_counter()
            target_view[:] = source_view
            return COPY_SIZE / (perf_counter() - started)
