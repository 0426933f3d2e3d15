"""A device as a client would be written: it stores what it is given, and the key, and understands neither."""

from __future__ import annotations

from collections.abc import Callable

from kvsvr.sync import Changes, Pulled

Pull = Callable[[str, str, bytes | None, int], Pulled]


class Phone:
    def __init__(self, pull: Pull, user: str, name: str) -> None:
        self._pull = pull
        self.user = user
        self.name = name
        self.key: bytes | None = None
        self.kinds: dict[str, dict[bytes, bytes]] = {}
        self.resyncs: list[str] = []
        self.page_count = 0

    def ask(self, limit: int = 100) -> Pulled:
        return self._pull(self.user, self.name, self.key, limit)

    def take(self, pulled: Pulled) -> None:
        """The reply arrived. A second time changes nothing."""
        for changes in pulled.changes:
            self._apply(changes)
        self.key = pulled.key
        self.page_count += 1

    def _apply(self, changes: Changes) -> None:
        if changes.resync:
            self.resyncs.append(changes.kind)
            self.kinds[changes.kind] = {}
        rows = self.kinds.setdefault(changes.kind, {})
        rows.update(changes.rows)
        for row in changes.deleted:
            rows.pop(row, None)

    def sync(self, limit: int = 100, pages_max: int = 10_000) -> int:
        """Until there is no more; how many rows came."""
        count = 0
        for _ in range(pages_max):
            pulled = self.ask(limit)
            self.take(pulled)
            count += sum(len(changes.rows) + len(changes.deleted) for changes in pulled.changes)
            if not pulled.more:
                return count
        raise AssertionError(f"no end after {pages_max} pages")
