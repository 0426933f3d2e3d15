"""The client of a replica set: `connect` gives the methods of an embedded store, over the network.

    words.py   what is said to a replica, and what its answers and errors mean; no sockets
    routes.py  which replica owns what, who is down, and the numbers that make a write happen once; no sockets
    wire.py    connections, by redis-py, for threads and for event loops; the only importer of redis
    caller.py  how anything is asked: routes, retries, numbers, time
    calls.py   every call, once, as a coroutine: with asyncio's connections it is `aio`
    tables.py  the same for tables; blocks.py: batches and transactions
    store.py   the same calls for threads: it drives those coroutines with connections that block

Importing this brings none of them: redis-py is an extra, and an embedded store does without.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from kvsvr.client.words import Consistency, Durability

if TYPE_CHECKING:
    from kvsvr.client.store import Remote

__all__ = ["Consistency", "Durability", "connect"]


def connect(
    addresses: str | Iterable[str],
    *,
    password: str | None = None,
    timeout: float = 10.0,
    consistency: Consistency = "linearizable",
    durability: Durability = "version",
) -> Remote:
    """The replica set that some of these replicas are of: "host:port", several with commas between, or a list.

    Nothing is sent yet. `timeout`, in seconds, is how long a call tries, over all replicas, before it raises
    Unavailable, or Unknown where a write may have happened. `consistency` and `durability` are what calls mean that do
    not say. Needs the extra kvsvr[client].
    """
    from kvsvr.client.store import Remote  # Not above: it brings redis-py, which an embedded store does not need.

    return Remote(addresses, password=password, timeout=timeout, consistency=consistency, durability=durability)
