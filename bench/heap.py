"""Where answers lie, so that reading large values measures the stores and not the kernel.

An answer of 64 KiB is new memory to this process, or memory that the allocator had from before: with new one a read
takes 45 us, because sixteen pages are made for it, and with the other 8. Which one it is hangs on what ran before, in
this process that all peers share. So the allocator keeps what it once had, and has as much as a stage's cells ask for.
"""

import ctypes

from bench.cells.base import ANSWERS_SIZE_MAX
from bench.data import Setting

LARGE_SIZE = 4096  # Below, objects share pages.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
MMAP_SIZE_MIN = 32 << 20  # The largest that glibc takes.


def prepare(setting: Setting) -> None:
    """Nothing happens where the C library has no mallopt()."""
    if setting.value_size < LARGE_SIZE:
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    mallopt(M_TRIM_THRESHOLD, ctypes.c_int(2**31 - 1))
    mallopt(M_MMAP_THRESHOLD, ctypes.c_int(MMAP_SIZE_MIN))
    taken = [bytearray(setting.value_size) for _ in range(ANSWERS_SIZE_MAX // setting.value_size)]
    for one in taken:
        one[::LARGE_SIZE] = b"x" * len(one[::LARGE_SIZE])  # A page is there when something was written to it.
