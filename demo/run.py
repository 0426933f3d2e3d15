"""What the steps of the demo share."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from demo.proof import Held
from demo.report import Screen, Section


@dataclass(slots=True)
class Run:
    """What the steps share."""

    source: Path
    directory: Path
    screen: Screen
    ack_count: int
    """A writer is killed after so many acknowledgements, or up to twice as many."""
    forge: bool = False
    """Whether the records get an acknowledgement of a write that never happened."""
    random: random.Random = field(default_factory=random.Random)
    sizes: dict[bytes, int] = field(default_factory=dict)
    held: dict[bytes, Held] = field(default_factory=dict)
    """What the store is known to hold: as loaded, then as proven after each kill."""
    next_number: int = 1
    life_count: int = 0

    @property
    def store(self) -> Path:
        return self.directory / "store"


Step = Callable[[Run, Section], None]
