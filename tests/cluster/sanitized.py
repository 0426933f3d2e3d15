"""Replicas whose core was built with a sanitizer, for any test of this folder: `make sanitized` runs those that fit.

KVSVR_SANITIZED names a build of the extension (cmake -S native -B build/ext-asan -DKV_SANITIZE=address,undefined, or
build/ext-tsan with thread). Processes that a test starts then load that one, and a test fails whose replicas have
reports in their logs. The Python around it is not instrumented, and answers for itself.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUILD = os.environ.get("KVSVR_SANITIZED")
REPORTS = ("ERROR: AddressSanitizer", "runtime error:", "WARNING: ThreadSanitizer", "ERROR: LeakSanitizer")
OPTIONS = {
    # What Python still holds as it ends is no leak of ours, and hides those that would be.
    "ASAN_OPTIONS": "detect_leaks=0",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "report_signal_unsafe=0",
}


def command() -> list[str]:
    """What runs `kvsvr`, but for its arguments."""
    if BUILD is None:
        return [sys.executable, "-m", "kvsvr.ops.cli"]
    paths = [str(_site(ROOT / BUILD)), sysconfig.get_path("purelib")]
    # Without `site`, whose hooks would find the module that everybody uses.
    return [sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {paths}; from kvsvr.ops.cli import main; main()"]


def environment() -> dict[str, str] | None:
    """None: as it is."""
    if BUILD is None:
        return None
    library = "libtsan.so" if BUILD.endswith("tsan") else "libasan.so"
    path = subprocess.run(["cc", f"-print-file-name={library}"], capture_output=True, text=True, check=True).stdout
    return {**os.environ, **OPTIONS, "LD_PRELOAD": path.strip()}


def reports(log: Path) -> list[str]:
    """Lines that a sanitizer wrote, from the first on."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    first = next((at for at, line in enumerate(lines) if any(word in line for word in REPORTS)), None)
    return [] if first is None else lines[first : first + 40]


def _site(build: Path) -> Path:
    """The package as it is here, and the module as it was built there."""
    site = build / "site"
    (site / "kvsvr").mkdir(parents=True, exist_ok=True)
    for one in [*(ROOT / "kvsvr").iterdir(), *build.glob("_native*.so")]:
        link = site / "kvsvr" / one.name
        if not link.is_symlink():
            link.symlink_to(one)
    return site
