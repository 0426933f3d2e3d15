"""How much one user may ask for: requests a second, sockets at once. Each instance counts by itself, in memory."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from kvsvr.errors import UsageError, shown
from kvsvr.gateway.failures import Refusal

SPENDER_COUNT_MAX: Final = 100_000


@dataclass(frozen=True, slots=True)
class Limits:
    body_size_max: int = 256 * 1024
    """Of a request, also of a frame."""
    page_size_max: int = 1024 * 1024
    """Of a page's rows in bytes, unless one row has more."""
    page_count_max: int = 500
    """Rows that may be asked for at once."""
    rate: float = 50.0
    """Requests a second of one user, and as many more at once as `burst`."""
    burst: int = 200
    socket_count_max: int = 16
    """Of one user: WebSockets, event streams and waits together."""
    pending_count_max: int = 1024
    """Requests of all users that are being done or wait for a thread."""
    thread_count: int = 16
    wait_s_max: float = 60.0
    """Of one wait."""
    beat_s: float = 25.0
    """A silent event stream is sent something so often, and a client should say something as often."""
    hello_s: float = 10.0
    """How long a new socket may be silent; one that said hello, three times `beat_s`."""
    ticket_s: float = 12 * 3600.0
    """What a login gives."""
    stop_s: float = 5.0
    """After which a stop waits for nobody any more."""

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 10**9:
                raise UsageError(f"{name} is a positive number, not {shown(value)}")


class Rates:
    """A bucket for each user: `burst` requests fit, `rate` run in a second."""

    def __init__(self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def spend(self, user: str) -> None:
        now = self._clock()
        left, at = self._left.pop(user, (float(self._burst), now))
        left = min(float(self._burst), left + (now - at) * self._rate)
        self._left[user] = (max(0.0, left - 1), now)
        if len(self._left) > SPENDER_COUNT_MAX:
            self._left.popitem(last=False)  # Who was here longest ago; by then the bucket is full again.
        if left < 1:
            raise Refusal("too_many", f"{user!r} may send {self._rate:g} requests a second")


class Seats:
    """Sockets and streams that are open, by user."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken: Counter[str] = Counter()

    @contextmanager
    def taken(self, user: str) -> Iterator[None]:
        if self._taken[user] >= self._most:
            raise Refusal("sockets", f"{user!r} has {self._most} connections that wait already")
        self._taken[user] += 1
        try:
            yield
        finally:
            self._taken[user] -= 1
            if self._taken[user] == 0:
                del self._taken[user]
