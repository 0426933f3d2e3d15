"""What a replica process tells of itself: one line of JSON for an event, on stderr.

{"time": "2026-11-23T12:00:00.123Z", "level": "warning", "node": 1, "event": "link_down", "peer": 2, "why": "..."}

`time`, `level`, `node` and `event` are always there; what else there is hangs on the event.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any, Final

LOG: Final = logging.getLogger("kvsvr")


def tell(event: str, level: int = logging.INFO, **fields: Any) -> None:
    LOG.log(level, event, extra={"fields": fields})


class JsonLines(logging.Formatter):
    """Whatever is logged, as such a line; what other libraries say is the event "message"."""

    def __init__(self, node: int) -> None:
        super().__init__()
        self._node = node

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", None)
        event, more = record.getMessage(), fields
        if more is None:
            event, more = "message", {"text": event}
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = {"time": when, "level": record.levelname.lower(), "node": self._node, "event": event, **more}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log_to_stderr(node: int) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines(node))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
