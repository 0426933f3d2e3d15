"""The witness: a process that hears acknowledgements on stdin and puts them on disk, in its own file.

    python -m demo.witness RECORD < acknowledgements > counts

It knows nothing of the store, and outlives the writer: what the writer managed to say is in the pipe and is still
heard. After each fsync it prints how many acknowledgements are in the record; from that its starter knows when to kill.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Final

_CHUNK_SIZE: Final = 1 << 16


def main(record: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the starter decides what it means.
    count = 0
    rest = b""
    with record.open("xb") as file:
        while chunk := os.read(sys.stdin.fileno(), _CHUNK_SIZE):
            # A line without an end may be half of one: it acknowledges nothing yet, and nothing ever if this was all.
            lines, end, rest = (rest + chunk).rpartition(b"\n")
            if not end:
                continue
            file.write(lines + end)
            file.flush()
            os.fsync(file.fileno())
            count += lines.count(b"\n") + 1
            print(count, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
