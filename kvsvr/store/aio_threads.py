"""What coroutines leave to a thread, and how they hear of it: see kvsvr.store.aio."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any, Final, Generic, TypeVar

T = TypeVar("T")
E = TypeVar("E")

# Up to here the copy takes less than handing it to a thread and hearing of its end does.
LARGE_SIZE: Final = 256 << 10
# The same for calls with many keys, which cost Python a microsecond a key.
MANY_COUNT: Final = 128
# How many entries of a scan are fetched at a time, the first time and later: `async for` takes what was fetched without
# giving the loop its turn.
FETCH_COUNTS: Final = (32, 128, 256)


async def in_thread(call: Callable[..., T], *arguments: Any, **named: Any) -> T:
    """Calls it in a thread of the loop's executor. Shielded: a call that waits for its thread is not dropped with who
    waits for it."""
    loop = asyncio.get_running_loop()
    return await asyncio.shield(loop.run_in_executor(None, partial(call, *arguments, **named)))


def size_of(value: object) -> int:
    """Bytes of a value; 0 for what is none, which whoever takes it refuses."""
    if isinstance(value, bytes | bytearray):
        return len(value)
    try:
        return memoryview(value).nbytes  # type: ignore[arg-type]
    except TypeError:
        return 0


class Stream(Generic[E]):
    """A plain iterator for `async for`: its entries are fetched in a thread, some at a time.

    Nothing is fetched ahead, so it may be dropped at any entry. For one task at a time.
    """

    __slots__ = ("_count", "_ended", "_fetch", "_page", "_source")

    def __init__(self, source: Iterator[E]) -> None:
        self._source = source
        self._page: Iterator[E] = iter(())
        self._count = 0
        self._fetch: asyncio.Future[list[E]] | None = None
        self._ended = False

    def __aiter__(self) -> Stream[E]:
        return self

    async def __anext__(self) -> E:
        for entry in self._page:
            return entry
        if not self._ended:
            self._page = iter(await self._next_page())
            for entry in self._page:
                return entry
        raise StopAsyncIteration

    async def _next_page(self) -> list[E]:
        if self._fetch is None:
            self._count = next((count for count in FETCH_COUNTS if count > self._count), FETCH_COUNTS[-1])
            self._fetch = asyncio.get_running_loop().run_in_executor(None, self._take)
        try:
            page = await asyncio.shield(self._fetch)
        except asyncio.CancelledError:
            raise  # The page that is under way is kept for whoever goes on: it is gone from the iterator.
        except BaseException:
            self._fetch = None
            raise
        self._fetch = None
        self._ended = len(page) < self._count
        return page

    def _take(self) -> list[E]:
        return list(islice(self._source, self._count))
