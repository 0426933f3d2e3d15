"""Which files are loaded: those under a folder, by default this machine's Python standard library.

Left out: site-packages and dist-packages, which are other people's; __pycache__, which any running Python may rewrite
while it is read here; and what is no file. Everything else counts, compiled modules and static libraries too.
"""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Final

LEFT_OUT: Final = ("site-packages", "dist-packages", "__pycache__")


def standard_library() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def files_under(source: Path) -> list[tuple[bytes, Path]]:
    """Key and path of each file, in order; the key is the path below `source`, as the file system spells it."""
    return sorted((os.fsencode(path.relative_to(source)), path) for path in _walk(source))


def _walk(source: Path) -> Iterator[Path]:
    for directory, names, files in os.walk(source):
        names[:] = (name for name in names if name not in LEFT_OUT)
        yield from (path for path in map(Path(directory).joinpath, files) if path.is_file())
