"""What people see: a bar for what is under way, and one table at the end.

Without a terminal, as in CI, a bar is one plain line when it begins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text


@dataclass(slots=True)
class Section:
    """What one step has to say. Any failure makes the whole run fail, and ends it."""

    title: str
    lines: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


FAILURES_SHOWN_MAX = 5


class Screen:
    """Where it goes. All text comes from outside, file names too, so none of it is read as markup."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def say(self, text: str, style: str = "") -> None:
        self._console.print(Text(text, style), soft_wrap=True)

    @contextmanager
    def bar(self, title: str, total: int) -> Iterator[Callable[[int], None]]:
        """Gives a function that takes how far it is by now, up to `total`."""
        if not self._console.is_terminal:
            self.say(f"{title} ...")
            yield lambda _: None
            return
        columns = TextColumn("{task.description:<36}", markup=False), BarColumn(), TaskProgressColumn()
        with Progress(*columns, TimeElapsedColumn(), console=self._console) as progress:
            task = progress.add_task(title, total=total)
            yield lambda done: progress.update(task, completed=min(done, total))

    def report(self, sections: Sequence[Section]) -> None:
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for section in sections:
            shown = section.failures[:FAILURES_SHOWN_MAX]
            more = len(section.failures) - len(shown)
            text = Text("\n").join(
                [
                    *map(Text, section.lines),
                    *(Text(f"FAILED: {failure}", "red") for failure in shown),
                    *([Text(f"FAILED: {more:,} more", "red")] if more else []),
                ]
            )
            table.add_row(Text(section.title, "bold red" if section.failures else "bold green"), text)
        self._console.print(table)


def rate(count: float, seconds: float) -> str:
    """A count per second; a clock that did not move counts as one tick of a microsecond."""
    return f"{count / max(seconds, 1e-6):,.0f}"


def megabytes(size: float) -> str:
    return f"{size / 1e6:,.1f} MB"
