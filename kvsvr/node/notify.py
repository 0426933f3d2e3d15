"""What a service manager wants to hear (sd_notify): datagrams to the socket that NOTIFY_SOCKET names, if any."""

from __future__ import annotations

import os
import socket
from contextlib import suppress


def notify(state: str) -> None:
    """ "READY=1", "STOPPING=1", "WATCHDOG=1". Nobody listening is no error."""
    where = os.environ.get("NOTIFY_SOCKET", "")
    if not where:
        return
    if where.startswith("@"):  # Linux' abstract names begin with a zero.
        where = "\0" + where[1:]
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.settimeout(1.0)
        sender.sendto(state.encode(), where)
