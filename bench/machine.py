"""The facts without which a figure means nothing: processor, memory, kernel, file system, versions."""

import os
import platform
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

MEMORY_FILE_SYSTEMS = frozenset({"tmpfs", "ramfs", "hugetlbfs"})


@dataclass(frozen=True, slots=True)
class FileSystem:
    type: str
    device: str
    options: str

    @property
    def in_memory(self) -> bool:
        return self.type in MEMORY_FILE_SYSTEMS


def file_system_of(directory: Path) -> FileSystem:
    """The mount with the longest path above `directory`; among equals the last one, which hides the others."""
    resolved = directory.resolve()
    best_length, best = -1, FileSystem("unknown", "unknown", "")
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        mount_point = Path(before.split()[4].encode().decode("unicode_escape"))
        if not resolved.is_relative_to(mount_point) or len(str(mount_point)) < best_length:
            continue
        kind, device, super_options = after.split(maxsplit=2)
        best_length = len(str(mount_point))
        best = FileSystem(kind, device, before.split()[5] + "," + super_options)
    return best


def machine_facts(directory: Path, distributions: Iterable[str]) -> dict[str, Any]:
    file_system = file_system_of(directory)
    return {
        "cpu_model": _field("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "core_count": os.cpu_count(),
        "usable_core_count": len(os.sched_getaffinity(0)),
        "memory_bytes": int((_field("/proc/meminfo", "MemTotal") or "0 kB").split()[0]) * 1024,
        "kernel": platform.release(),
        "python": sys.version.split()[0],
        "python_implementation": platform.python_implementation(),
        "file_system": {"type": file_system.type, "device": file_system.device, "options": file_system.options},
        "load_average": os.getloadavg(),
        "packages": {name: package_version(name) for name in sorted({*distributions, "rich", "cffi"})},
    }


def package_version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _field(path: str, name: str) -> str | None:
    for line in Path(path).read_text().splitlines():
        label, _, value = line.partition(":")
        if label.strip() == name:
            return value.strip()
    return None
