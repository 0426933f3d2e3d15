"""Connections to replicas, by redis-py: for threads, and for an event loop. The only importer of redis.

Either kind carries commands as coroutines. Those that block never suspend, so that `finished` may run them to their end
without a loop. A connection carries one caller's commands at a time; whatever goes wrong with it, it is closed: an
answer that comes late is never taken for another's.
"""

# Half of redis-py has types.
# mypy: allow-untyped-calls

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Coroutine
from typing import Any, Protocol, TypeVar

from kvsvr.client.routes import Address
from kvsvr.client.words import Failed, Words
from kvsvr.errors import UsageError

try:
    import redis
    from redis.asyncio.connection import Connection as AsyncConnection
    from redis.asyncio.retry import Retry as AsyncRetry
    from redis.backoff import NoBackoff
    from redis.connection import Connection
    from redis.retry import Retry
except ImportError as error:
    raise UsageError("kvsvr.connect needs redis-py: pip install 'kvsvr[client]'") from error

T = TypeVar("T")

BROKEN = (redis.ConnectionError, redis.TimeoutError, OSError, EOFError)


class NotReached(Exception):
    """There is no connection, so nothing was sent."""


class Lost(Exception):
    """Something was sent, and not all answers came."""


class Carrier(Protocol):
    """What calls are carried by."""

    async def carry(self, to: Address, commands: list[Words], seconds: float, *, stale: bool) -> list[Any]:
        """The answers; one that is an error is a Failed among them."""
        ...

    async def pause(self, seconds: float) -> None: ...
    async def close(self) -> None: ...


def finished(call: Coroutine[Any, Any, T]) -> T:
    """What a coroutine gives that never suspends."""
    try:
        call.send(None)
    except StopIteration as end:
        value: T = end.value
        return value
    raise AssertionError("a blocking call was suspended")


CODES = {
    redis.exceptions.BusyLoadingError: "LOADING",
    redis.exceptions.OutOfMemoryError: "OOM",
    redis.exceptions.ClusterDownError: "CLUSTERDOWN",
    redis.exceptions.TryAgainError: "TRYAGAIN",
}


def _refusal(error: Exception) -> Failed:
    """redis-py takes codes that it knows off the words, ERR among them."""
    text = str(error)
    if isinstance(error, redis.AuthenticationError):
        wanted, unwanted = "equired" in text, "without any password" in text
        return Failed(f"{'NOAUTH' if wanted else 'ERR AUTH' if unwanted else 'WRONGPASS'} {text}")
    code = CODES.get(type(error), "" if text.partition(" ")[0].isupper() else "ERR")
    return Failed(f"{code} {text}" if code else text)


class Blocking:
    """For threads."""

    def __init__(self, password: str | None) -> None:
        self._password = password
        self._free: dict[tuple[Address, bool], deque[Connection]] = {}

    async def carry(self, to: Address, commands: list[Words], seconds: float, *, stale: bool) -> list[Any]:
        pool = self._free.setdefault((to, stale), deque())
        try:
            connection = pool.pop()
        except IndexError:
            connection = self._made(to, seconds, stale)
        try:
            connection.send_packed_command(connection.pack_commands(commands))
            answers = [self._answer(connection, seconds) for _ in commands]
        except BROKEN as error:
            connection.disconnect()
            while pool:  # Whatever ended this one has ended the others.
                pool.pop().disconnect()
            raise Lost(str(error)) from None
        except BaseException:  # Ctrl-C: the answers will come, and be nobody's.
            connection.disconnect()
            raise
        pool.append(connection)
        return answers

    def _made(self, to: Address, seconds: float, stale: bool) -> Connection:
        connection = Connection(
            host=to[0],
            port=to[1],
            password=self._password,
            socket_timeout=seconds,
            socket_connect_timeout=seconds,
            protocol=2,
            retry=Retry(NoBackoff(), 0),
        )
        try:
            connection.connect()
            if stale:
                connection.send_command("READONLY")
                connection.read_response()
        except redis.AuthenticationError as error:
            connection.disconnect()
            raise _refusal(error) from None
        except (*BROKEN, redis.ResponseError) as error:
            connection.disconnect()
            raise NotReached(str(error)) from None
        except BaseException:
            connection.disconnect()
            raise
        return connection

    @staticmethod
    def _answer(connection: Connection, seconds: float) -> Any:
        try:
            return connection.read_response(timeout=seconds, disconnect_on_error=False)
        except redis.ResponseError as error:
            return _refusal(error)

    async def pause(self, seconds: float) -> None:
        time.sleep(seconds)

    async def close(self) -> None:
        for pool in list(self._free.values()):
            while pool:
                pool.pop().disconnect()


class Looping:
    """For an event loop: the one that it is first used in."""

    def __init__(self, password: str | None) -> None:
        self._password = password
        self._free: dict[tuple[Address, bool], deque[AsyncConnection]] = {}

    async def carry(self, to: Address, commands: list[Words], seconds: float, *, stale: bool) -> list[Any]:
        pool = self._free.setdefault((to, stale), deque())
        connection = pool.pop() if pool else await self._made(to, seconds, stale)
        try:
            async with asyncio.timeout(seconds):
                await connection.send_packed_command(connection.pack_commands(commands))
                answers = [await self._answer(connection) for _ in commands]
        except BROKEN as error:
            await connection.disconnect(nowait=True)
            while pool:  # Whatever ended this one has ended the others.
                await pool.pop().disconnect(nowait=True)
            raise Lost(str(error)) from None
        except BaseException:  # Cancelled: the answers will come, and be nobody's.
            await connection.disconnect(nowait=True)
            raise
        pool.append(connection)
        return answers

    async def _made(self, to: Address, seconds: float, stale: bool) -> AsyncConnection:
        connection = AsyncConnection(
            host=to[0],
            port=to[1],
            password=self._password,
            socket_timeout=None,  # asyncio.timeout() around all of it does that.
            socket_connect_timeout=seconds,
            protocol=2,
            retry=AsyncRetry(NoBackoff(), 0),
        )
        try:
            async with asyncio.timeout(seconds):
                await connection.connect()
                if stale:
                    await connection.send_command("READONLY")
                    await connection.read_response()
        except redis.AuthenticationError as error:
            await connection.disconnect(nowait=True)
            raise _refusal(error) from None
        except (*BROKEN, redis.ResponseError) as error:
            await connection.disconnect(nowait=True)
            raise NotReached(str(error)) from None
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return connection

    @staticmethod
    async def _answer(connection: AsyncConnection) -> Any:
        try:
            return await connection.read_response(disconnect_on_error=False)
        except redis.ResponseError as error:
            return _refusal(error)

    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def close(self) -> None:
        for pool in list(self._free.values()):
            while pool:
                await pool.pop().disconnect()
