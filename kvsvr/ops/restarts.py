"""Whether, and when, a replica that died is started again. Pure: times come in, a verdict goes out.

    it ended with 2 or 4          never: a setting is wrong, or the disk failed; a restart would find it as it is
    it ended with 0               at once: somebody asked it to, as in a rolling restart
    anything else                 after 0.1 s, and twice as long each time, up to 10 s; not after the seventh in a row

A replica that served for SETTLED_S before it died begins the row anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

FIRST_S: Final = 0.1
LONGEST_S: Final = 10.0
SETTLED_S: Final = 2.0
DEATHS_MAX: Final = 7
HOPELESS: Final = {2: "a setting is wrong", 4: "its disk failed, or its data are damaged"}


@dataclass(slots=True)
class Restarts:
    """Of one replica."""

    in_a_row: int = 0
    count: int = 0
    """Restarts in all."""

    def died(self, code: int, served_s: float) -> float | None:
        """After how many seconds it is started again; None: it is given up."""
        if code in HOPELESS:
            return None
        if served_s >= SETTLED_S:
            self.in_a_row = 0
        if code != 0:
            self.in_a_row += 1
        if self.in_a_row >= DEATHS_MAX:
            return None
        self.count += 1
        return 0.0 if code == 0 else min(FIRST_S * 2 ** (self.in_a_row - 1), LONGEST_S)


def ending(code: int) -> str:
    """How a process ended, in words."""
    if code < 0:
        return f"killed by signal {-code}"
    return f"ended with {code}" + (f" ({HOPELESS[code]})" if code in HOPELESS else "")
