"""Writes the C source of kvsvr/_native: `python ffi_build.py ffi.cdef ffi_source.h _native.c`.

cffi's API mode: the C compiler, not a guess at run time, checks every declaration of ffi.cdef against the headers
and finds the offsets of fields. Run by CMakeLists.txt.
"""

import sys
from pathlib import Path

from cffi import FFI


def main(cdef: str, source: str, out: str) -> None:
    ffi = FFI()
    ffi.cdef(Path(cdef).read_text(encoding="utf-8"))
    ffi.set_source("kvsvr._native", Path(source).read_text(encoding="utf-8"))
    ffi.emit_c_code(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
