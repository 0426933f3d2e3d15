"""Coroutines: the same answers as the Engine's, durability that is awaited, and a loop that nothing holds up.

A group commit that nobody asks for is a minute away in most tests here, so what got durable was asked for.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import threading
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest

import kvsvr
from kvsvr.store import TableReads
from kvsvr.store.aio import LOOK_COUNT_MAX, AsyncEngine, AsyncTransaction, Bell
from kvsvr.store.aio_tables import AsyncListing, AsyncSnapshot, AsyncTable, AsyncTableReads
from kvsvr.store.aio_threads import LARGE_SIZE, MANY_COUNT, Stream
from kvsvr.store.reads import Reads

T = TypeVar("T")

LARGE = b"x" * (LARGE_SIZE + 1)
OWN_FILE = b"y" * ((1 << 20) + 1)
NEVER = 10**12


@pytest.fixture(params=["none", "batch", "always"])
def any_db(path: Path, request: pytest.FixtureRequest) -> Iterator[kvsvr.Engine]:
    with kvsvr.open(path, sync=request.param, sync_ms_max=60_000) as db:
        yield db


def run(body: Coroutine[Any, Any, T]) -> T:
    async def bounded() -> T:
        return await asyncio.wait_for(body, 30)

    return asyncio.run(bounded())


def bell_of(db: kvsvr.Engine) -> Bell:
    """The one of the running loop, which must have one."""
    assert db._bells is not None
    bell = db._bells._bells[asyncio.get_running_loop()]
    assert isinstance(bell, Bell)
    return bell


def no_one_waits(db: kvsvr.Engine) -> bool:
    bell = bell_of(db)
    return not bell._unsynced and not bell._watchers


def eventfd_count() -> int:
    gc.collect()  # Loops of other tests take theirs along when they are collected.
    count = 0
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            count += os.readlink(f"/proc/self/fd/{name}") == "anon_inode:[eventfd]"
    return count


# --- the same interface ---

# What a coroutine cannot be, or what has no use for one: at hand on the Engine itself.
NOT_AWAITED = {"aio"}
TWINS = (
    (AsyncEngine, kvsvr.Engine),
    (AsyncListing, Reads),
    (AsyncTableReads, TableReads),
    (AsyncTable, kvsvr.Table),
    (AsyncSnapshot, kvsvr.Snapshot),
)


def public(owner: type) -> set[str]:
    return {name for name in vars(owner) if not name.startswith("_")}


def test_every_method_of_the_engine_has_a_twin() -> None:
    assert public(kvsvr.Engine) - NOT_AWAITED <= public(AsyncEngine)
    assert public(kvsvr.Table) <= public(AsyncTable)
    assert public(TableReads) - {"size_of"} <= public(AsyncTableReads)


@pytest.mark.parametrize(
    ("ours_", "theirs_", "name"),
    [
        (ours, theirs, name)
        for ours, theirs in TWINS
        for name in sorted(public(ours))
        if not isinstance(getattr(ours, name), property)
    ],
)
def test_a_twin_takes_the_same_arguments(ours_: type, theirs_: type, name: str) -> None:
    ours = inspect.signature(getattr(ours_, name)).parameters
    theirs = inspect.signature(getattr(theirs_, name)).parameters
    assert [(p.name, p.kind, p.default) for p in ours.values()] == [
        (p.name, p.kind, p.default) for p in theirs.values()
    ]


CALLS: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("put", (b"k", b"v"), {}),
    ("put", (bytearray(b"k"), memoryview(b"v")), {}),
    ("put", (b"k", b"v"), {"ttl": 100.0, "durable": True}),
    ("put", (b"k", b"v"), {"ttl": 0}),
    ("put", ("k", b"v"), {}),
    ("put", (b"k", "v"), {}),
    ("put", (b"k", 7), {}),
    ("put", (b"", b"v"), {}),
    ("put", (b"large", LARGE), {}),
    ("put", (b"file", OWN_FILE), {"durable": True}),
    ("put", (b"", OWN_FILE), {}),
    ("get", (b"k",), {}),
    ("get", (b"none",), {}),
    ("get", (b"none", 7), {}),
    ("get", (b"large",), {}),
    ("get", (b"file",), {}),
    ("get", ("k",), {}),
    ("get", (b"",), {}),
    ("get_versioned", (b"large",), {}),
    ("get_versioned", (b"none",), {}),
    ("get_many", ([b"k", b"none", b"large"],), {}),
    ("get_many", ([b"k"] * (MANY_COUNT + 1),), {}),
    ("get_many", (b"k",), {}),
    ("get_many", (["k"],), {}),
    ("get_many", ([],), {}),
    ("cas", (b"k", b"w", NEVER), {}),
    ("cas", (b"new", b"w", 0), {"durable": True}),
    ("cas", (b"newer", LARGE, 0), {}),
    ("cas", (b"newer", LARGE, 0), {}),
    ("incr", (b"n",), {}),
    ("incr", (b"n", 41), {"durable": True}),
    ("incr", (b"large",), {}),
    ("incr", (b"n", 1 << 63), {}),
    ("append", (b"a", b"v"), {}),
    ("append", (b"a", LARGE), {"durable": True}),
    ("append", (b"a", OWN_FILE), {}),
    ("append", (b"a", b"end"), {}),
    ("expire", (b"k", 100.0), {"durable": True}),
    ("expire", (b"none", 100.0), {}),
    ("expire", (b"k", 0), {}),
    ("persist", (b"k",), {}),
    ("persist", (b"k",), {"durable": True}),
    ("ttl", (b"k",), {}),
    ("delete", (b"k",), {"version": NEVER}),
    ("delete", (b"k",), {"durable": True}),
    ("delete", (b"k",), {"durable": True}),
    ("put_many", ([(b"p%d" % i, b"v") for i in range(10)],), {"durable": True}),
    ("put_many", ([(b"p%d" % i, b"v") for i in range(MANY_COUNT + 10)],), {"ttl": 100.0, "durable": True}),
    ("put_many", ([(b"p", LARGE), (b"q", OWN_FILE)],), {}),
    ("put_many", ([],), {"durable": True}),
    ("put_many", ({b"k": b"v"},), {}),
    ("put_many", ([b"k"],), {}),
    ("put_many", ([(b"k", "v")],), {}),
    ("delete_many", ([b"p1", b"none"],), {"durable": True}),
    ("delete_many", ([b"p%d" % i for i in range(MANY_COUNT + 10)],), {}),
    ("delete_many", (b"p1",), {}),
    ("wait", (b"a", 0), {}),
    ("wait", (b"a", NEVER, 0), {}),
    ("wait", (b"a", NEVER, 0.001), {}),
    ("wait", (b"a", -1), {}),
    ("wait", (b"a", 0, -1), {}),
    ("wait", ("a", 0), {}),
    ("refresh", (), {}),
    ("sync", (), {}),
]


def outcome_of(call: Callable[[], object]) -> object:
    try:
        return call()
    except Exception as error:
        return type(error), str(error)


async def awaited_outcome_of(call: Callable[[], Awaitable[object]]) -> object:
    try:
        return await call()
    except Exception as error:
        return type(error), str(error)


def test_every_call_answers_as_the_engine(tmp_path: Path, any_db: kvsvr.Engine) -> None:
    """Call by call on two stores: the same values, versions and errors, word for word."""

    async def body(db: kvsvr.Engine) -> None:
        for name, arguments, named in CALLS:
            expected = outcome_of(partial(getattr(db, name), *arguments, **named))
            found = await awaited_outcome_of(partial(getattr(any_db.aio, name), *arguments, **named))
            assert found == expected, f"{name}{arguments!r:.100}{named}"
        assert [e async for e in any_db.aio.scan()] == list(db.scan())
        assert (await any_db.aio.stats()).keys() == db.stats().keys()

    with kvsvr.open(tmp_path / "twin", sync="batch") as db:
        run(body(db))


def test_work_on_the_whole_store_is_awaited(db: kvsvr.Engine, tmp_path: Path) -> None:
    """tables, compact, verify and backup: the Engine's own, in a thread."""

    async def body() -> None:
        db.table(b"t").put(b"r", b"v")
        assert [key async for key in db.aio.tables()] == [b"t"]
        await db.aio.compact()
        assert (await db.aio.verify()).ok
        assert (await db.aio.backup(tmp_path / "copy")).file_count >= 1

    run(body())


# --- durability ---


DURABLE_WRITES: dict[str, Callable[[AsyncEngine], Awaitable[object]]] = {
    "put": lambda aio: aio.put(b"k", b"v", durable=True),
    "put, large": lambda aio: aio.put(b"k", LARGE, durable=True),
    "put, in a file": lambda aio: aio.put(b"k", OWN_FILE, durable=True),
    "delete": lambda aio: aio.delete(b"there", durable=True),
    "cas": lambda aio: aio.cas(b"k", b"v", 0, durable=True),
    "incr": lambda aio: aio.incr(b"k", durable=True),
    "append": lambda aio: aio.append(b"k", b"v", durable=True),
    "expire": lambda aio: aio.expire(b"there", 100, durable=True),
    "put_many": lambda aio: aio.put_many([(b"k", b"v")], durable=True),
    "put_many, many": lambda aio: aio.put_many([(b"k%d" % i, b"v") for i in range(1000)], durable=True),
    "delete_many": lambda aio: aio.delete_many([b"there"], durable=True),
    "batch": lambda aio: batched(aio, b"v", durable=True),
    "batch, large": lambda aio: batched(aio, LARGE, durable=True),
    "transaction": lambda aio: aio.run(put_in, durable=True),
    "sync": lambda aio: put_and_sync(aio),
}


async def batched(aio: AsyncEngine, value: bytes, *, durable: bool = False) -> None:
    async with aio.batch(durable=durable) as batch:
        batch.put(b"k", value)
        batch.put(b"l", value)
    assert batch.version


async def put_in(transaction: AsyncTransaction) -> None:
    transaction.put(b"k", await transaction.get(b"there", b"") + b"!")


async def put_and_sync(aio: AsyncEngine) -> None:
    await aio.put(b"k", b"v")
    await aio.sync()


@pytest.mark.parametrize("name", DURABLE_WRITES)
def test_a_durable_write_is_on_disk_when_it_returns(name: str, any_db: kvsvr.Engine) -> None:
    async def body() -> None:
        before = any_db.stats()["sync_count"]
        await DURABLE_WRITES[name](any_db.aio)
        stats = any_db.stats()
        assert stats["unsynced_size"] == 0
        assert stats["sync_count"] > before

    any_db.put(b"there", b"v")
    run(body())


def test_with_sync_always_every_write_is_awaited(path: Path) -> None:
    async def body(db: kvsvr.Engine) -> None:
        writes: list[Callable[[], Awaitable[object]]] = [
            lambda: db.aio.put(b"k", b"v"),
            lambda: db.aio.put_many([(b"k", b"v"), (b"l", b"v")]),
            lambda: batched(db.aio, b"v"),
            lambda: db.aio.incr(b"n"),
        ]
        for count, write in enumerate(writes, 1):
            await write()
            assert db.stats()["unsynced_size"] == 0
            assert db.stats()["sync_count"] >= count

    with kvsvr.open(path, sync="always") as db:
        run(body(db))


@pytest.mark.parametrize("sync", ["none", "batch"])
def test_a_write_that_need_not_be_durable_is_not_waited_for(path: Path, sync: Any) -> None:
    async def body(db: kvsvr.Engine) -> None:
        await db.aio.put(b"k", b"v")
        await batched(db.aio, b"v")
        assert db.stats()["sync_count"] == 0
        assert db.stats()["unsynced_size"] > 0

    with kvsvr.open(path, sync=sync, sync_ms_max=60_000) as db:
        run(body(db))


def test_no_write_syncs_in_the_thread_of_the_loop(any_db: kvsvr.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written is not durable before the loop has had its turn."""
    seen: list[int] = []
    settle = Bell._settle

    def looked(bell: Bell) -> None:
        seen.append(any_db.stats()["unsynced_size"])
        settle(bell)

    monkeypatch.setattr(Bell, "_settle", looked)
    run(any_db.aio.put(b"k", b"v", durable=True))
    assert seen[0] > 0
    assert any_db.stats()["unsynced_size"] == 0


def test_durable_writes_of_many_coroutines_share_commits(any_db: kvsvr.Engine) -> None:
    async def body() -> None:
        aio = any_db.aio
        before = any_db.stats()["sync_count"]
        await asyncio.gather(*(aio.put(b"k%d" % i, b"v", durable=True) for i in range(3000)))
        assert 1 <= any_db.stats()["sync_count"] - before <= 300
        assert any_db.stats()["unsynced_size"] == 0
        assert no_one_waits(any_db)

    run(body())


def test_others_that_sync_leave_nobody_waiting(any_db: kvsvr.Engine) -> None:
    """Threads make everything durable, over and over, in between: no coroutine misses that its write is."""
    going = True

    def sync_on() -> None:
        while going:
            any_db.put(b"other", b"v", durable=True)

    async def body() -> None:
        for i in range(200):
            await any_db.aio.put(b"k%d" % (i % 10), b"v", durable=True)
        assert no_one_waits(any_db)

    thread = threading.Thread(target=sync_on)
    thread.start()
    try:
        run(body())
    finally:
        going = False
        thread.join()
    assert all(any_db[b"k%d" % i] == b"v" for i in range(10))


def fail_syncs_of(path: Path) -> None:
    """What has the first segment open is a pipe from now on, and that cannot be synced. The next one is left alone: it
    may just be in the making, and what fails there is no sync."""
    reader, writer = os.pipe()
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            if os.readlink(f"/proc/self/fd/{name}") == f"{path}/flow/00000001.seg":
                os.dup2(reader, int(name), inheritable=False)
    os.close(reader)
    os.close(writer)


def test_a_sync_that_fails_is_heard_by_all_who_wait(path: Path) -> None:
    async def body(db: kvsvr.Engine) -> None:
        aio = db.aio
        await aio.put(b"k", b"v", durable=True)
        fail_syncs_of(path)
        results = await asyncio.gather(
            *(aio.put(b"k%d" % i, b"v", durable=True) for i in range(50)), return_exceptions=True
        )
        assert {type(result) for result in results} == {kvsvr.DiskError}
        assert len(set(map(id, results))) == 50  # Each its own: tracebacks must not mix.
        with pytest.raises(kvsvr.DiskError):
            await aio.put(b"k", b"w")
        with pytest.raises(kvsvr.DiskError):
            await aio.sync()
        assert await aio.get(b"k") == b"v"
        assert no_one_waits(db)

    db = kvsvr.open(path, sync="none")
    run(body(db))
    with pytest.raises(kvsvr.DiskError):
        db.close()


# --- cancelling ---


def test_a_write_whose_awaiting_is_cancelled_stays(any_db: kvsvr.Engine) -> None:
    async def body() -> None:
        aio = any_db.aio
        tasks = [asyncio.ensure_future(aio.put(b"k%d" % i, b"v", durable=True)) for i in range(10)]
        await asyncio.sleep(0)  # All have written, none has asked yet.
        for task in tasks[::2]:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(result, asyncio.CancelledError) for result in results] == [True, False] * 5
        assert await aio.get_many(b"k%d" % i for i in range(10)) == [b"v"] * 10
        assert any_db.stats()["unsynced_size"] == 0
        assert no_one_waits(any_db)

    run(body())


def test_a_write_in_a_thread_that_is_cancelled_is_written(path: Path) -> None:
    """Also one that no thread had begun yet: whoever called put() had his write taken."""

    async def body(db: kvsvr.Engine) -> None:
        loop, gate = asyncio.get_running_loop(), threading.Event()
        with ThreadPoolExecutor(1) as executor:
            loop.set_default_executor(executor)
            loop.run_in_executor(None, gate.wait, 20)
            task = asyncio.ensure_future(db.aio.put(b"k", LARGE, durable=True))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert db.get(b"k") is None
            gate.set()
        assert db.get(b"k") == LARGE

    with kvsvr.open(path) as db:
        run(body(db))


def test_a_wait_that_is_cancelled_leaves_nothing(db: kvsvr.Engine) -> None:
    async def body() -> None:
        tasks = [asyncio.ensure_future(db.aio.wait(b"k", 0, timeout)) for timeout in (None, 50)]
        await asyncio.sleep(0)
        assert len(bell_of(db)._watchers) == 2
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert no_one_waits(db)

    run(body())


# --- who runs where ---


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For every call that reached the Engine: whether the main thread made it."""
    seen: list[bool] = []

    def watch(owner: type, name: str) -> None:
        real = getattr(owner, name)

        def watched(*arguments: Any, **named: Any) -> Any:
            seen.append(threading.current_thread() is threading.main_thread())
            return real(*arguments, **named)

        monkeypatch.setattr(owner, name, watched)

    for name in ("get", "get_versioned", "put", "cas", "append", "get_many", "put_many", "delete_many", "close"):
        watch(kvsvr.Engine, name)
    watch(kvsvr.Batch, "__exit__")
    return seen


INLINE: dict[str, Callable[[AsyncEngine], Awaitable[object]]] = {
    "put": lambda aio: aio.put(b"k", b"v", durable=True),
    "get": lambda aio: aio.get(b"small"),
    "get_many": lambda aio: aio.get_many([b"small"]),
    "put_many": lambda aio: aio.put_many([(b"k", b"v")], durable=True),
    "batch": lambda aio: batched(aio, b"v", durable=True),
}
IN_THREAD: dict[str, Callable[[AsyncEngine], Awaitable[object]]] = {
    "put": lambda aio: aio.put(b"k", LARGE),
    "put of a view": lambda aio: aio.put(b"k", memoryview(LARGE + b"xyz").cast("I")),
    "cas": lambda aio: aio.cas(b"k", LARGE, 0),
    "append to much": lambda aio: aio.append(b"large", b""),
    "append of much": lambda aio: aio.append(b"k", LARGE),
    "get": lambda aio: aio.get(b"large"),
    "get_versioned": lambda aio: aio.get_versioned(b"large"),
    "get_many": lambda aio: aio.get_many([b"small"] * (MANY_COUNT + 1)),
    "get_many of much": lambda aio: aio.get_many([b"small", b"large"]),
    "put_many": lambda aio: aio.put_many([(b"k", b"v")] * (MANY_COUNT + 1)),
    "put_many of much": lambda aio: aio.put_many([(b"k", LARGE)]),
    "delete_many": lambda aio: aio.delete_many([b"k"] * (MANY_COUNT + 1)),
    "batch": lambda aio: batched(aio, LARGE),
    "close": lambda aio: aio.close(),
}


async def awaited(call: Awaitable[T]) -> T:
    return await call


@pytest.mark.parametrize("name", INLINE)
def test_what_is_small_runs_inline(name: str, db: kvsvr.Engine, threads: list[bool]) -> None:
    db.put(b"small", b"v")
    threads.clear()
    run(awaited(INLINE[name](db.aio)))
    assert threads == [True]


@pytest.mark.parametrize("name", IN_THREAD)
def test_what_is_large_runs_in_a_thread(name: str, db: kvsvr.Engine, threads: list[bool]) -> None:
    db.put(b"small", b"v")
    db.put(b"large", LARGE)
    threads.clear()
    run(awaited(IN_THREAD[name](db.aio)))
    assert threads == [False]


# --- batches and transactions ---


def test_a_block_that_fails_writes_nothing(db: kvsvr.Engine) -> None:
    async def body() -> None:
        for block in (db.aio.batch, db.aio.transaction):
            with pytest.raises(ZeroDivisionError):
                async with block() as writes:
                    writes.put(b"k", b"v")
                    raise ZeroDivisionError
            assert await db.aio.get(b"k") is None
            with pytest.raises(kvsvr.UsageError, match="begin another"):
                writes.put(b"k", b"v")

    run(body())


@pytest.mark.parametrize("value", [b"v", LARGE])
def test_a_transaction_is_refused_if_what_it_read_has_changed(db: kvsvr.Engine, value: bytes) -> None:
    async def body() -> None:
        await db.aio.put(b"k", value)
        with pytest.raises(kvsvr.VersionConflict) as caught:
            async with db.aio.transaction() as transaction:
                assert await transaction.get(b"k") == value
                transaction.put(b"l", value)
                await db.aio.put(b"k", b"other")
        assert caught.value.key == b"k"
        assert await db.aio.get(b"l") is None

    run(body())


def test_transactions_of_many_coroutines_lose_no_update(db: kvsvr.Engine) -> None:
    async def add(transaction: AsyncTransaction) -> None:
        count = int(await transaction.get(b"n", b"0"))
        await asyncio.sleep(0)
        transaction.put(b"n", b"%d" % (count + 1))

    async def body() -> None:
        await asyncio.gather(*(db.aio.run(add, attempts=1000) for _ in range(50)))
        assert await db.aio.get(b"n") == b"50"
        with pytest.raises(kvsvr.UsageError, match="attempts"):
            await db.aio.run(add, attempts=0)

    run(body())


def test_the_last_conflict_of_run_is_raised(db: kvsvr.Engine) -> None:
    calls = 0

    async def spoil(transaction: AsyncTransaction) -> None:
        nonlocal calls
        calls += 1
        await transaction.get(b"k")
        db.put(b"k", b"v")

    with pytest.raises(kvsvr.VersionConflict):
        run(db.aio.run(spoil, attempts=3))
    assert calls == 3


# --- scans ---


def test_a_scan_gives_what_the_engine_gives(db: kvsvr.Engine) -> None:
    async def body() -> None:
        for options in ({}, {"reverse": True}, {"limit": 70}, {"prefix": b"k1"}, {"start": b"k3", "stop": b"k4"}):
            assert [e async for e in db.aio.scan(**options)] == list(db.scan(**options))
            assert [k async for k in db.aio.keys(**options)] == list(db.keys(**options))
        with pytest.raises(kvsvr.UsageError):
            db.aio.scan(prefix=b"k", start=b"k")

    db.put_many((b"k%d" % i, b"v%d" % i) for i in range(3000))
    run(body())


def test_pages_are_fetched_in_a_thread_and_not_ahead() -> None:
    taken: list[bool] = []

    def source() -> Iterator[int]:
        for i in range(1000):
            taken.append(threading.current_thread() is threading.main_thread())
            yield i

    async def body() -> None:
        stream = Stream(source())
        assert await anext(stream) == 0
        await asyncio.sleep(0.01)
        assert len(taken) < 100
        assert [i async for i in stream] == list(range(1, 1000))
        assert not any(taken)
        assert [i async for i in stream] == []

    run(body())


def test_a_page_whose_awaiting_is_cancelled_is_not_lost() -> None:
    gate = threading.Event()

    def source() -> Iterator[int]:
        yield from range(100)
        gate.wait(20)
        yield from range(100, 200)

    async def body() -> None:
        stream = Stream(source())
        found: list[int] = []
        while len(found) < 200:
            task = asyncio.ensure_future(anext(stream))
            done, _ = await asyncio.wait([task], timeout=None if gate.is_set() else 0.1)
            if done:
                found.append(await task)
                continue
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            gate.set()
        assert found == list(range(200))
        assert gate.is_set()

    run(body())


def test_a_scan_that_fails_says_so(db: kvsvr.Engine) -> None:
    async def body() -> None:
        stream = db.aio.keys()
        assert await anext(stream) == b"k0000"
        await db.aio.close()
        with pytest.raises(kvsvr.ClosedError):
            async for _ in stream:
                pass

    db.put_many((b"k%04d" % i, b"") for i in range(3000))
    run(body())


# --- waiting for a version ---


def test_waiters_hear_of_every_kind_of_write(db: kvsvr.Engine) -> None:
    writes: list[Callable[[], object]] = [
        lambda: db.put(b"k", b"1"),
        lambda: db.incr(b"k"),
        lambda: db.append(b"k", b"0"),
        lambda: db.expire(b"k", 100),
        lambda: db.put_many([(b"k", b"v"), (b"l", b"w")]),
        lambda: db.delete(b"k"),
        lambda: db.put(b"k", OWN_FILE),
    ]

    async def body() -> None:
        version = 0
        for write in writes:
            task = asyncio.ensure_future(db.aio.wait(b"k", version, 30))
            await asyncio.sleep(0)
            assert not task.done()
            await asyncio.get_running_loop().run_in_executor(None, write)
            newer = await task
            assert newer == db.wait(b"k", version, 0) > version
            version = newer
        assert no_one_waits(db)

    run(body())


def test_a_wait_ends_at_its_timeout(db: kvsvr.Engine) -> None:
    async def body() -> None:
        version = db.put(b"k", b"v")
        assert await db.aio.wait(b"k", version, 0.02) == version
        assert await db.aio.wait(b"none", 0, 0.02) == 0
        assert no_one_waits(db)

    run(body())


def test_thousands_wait_without_a_thread(db: kvsvr.Engine) -> None:
    """More than are looked after in one turn; half of their keys are written, one by one."""
    count = 4 * LOOK_COUNT_MAX

    async def body() -> None:
        before = threading.active_count()
        tasks = [asyncio.ensure_future(db.aio.wait(b"k%d" % i, 0, 30)) for i in range(2 * count)]
        await asyncio.sleep(0)
        assert threading.active_count() == before
        for i in range(count):
            db.put(b"k%d" % i, b"v")
        assert all(await asyncio.gather(*tasks[:count]))
        assert not any(task.done() for task in tasks[count:])
        db.put_many((b"k%d" % i, b"v") for i in range(count, 2 * count))
        assert all(await asyncio.gather(*tasks))
        assert no_one_waits(db)

    run(body())


def test_no_write_is_missed_by_who_waits_for_the_next(db: kvsvr.Engine) -> None:
    count = 3000

    def write() -> None:
        for _ in range(count):
            db.incr(b"n")

    async def follow() -> None:
        version = 0
        while await db.aio.get(b"n") != b"%d" % count:
            version = await db.aio.wait(b"n", version)

    async def body() -> None:
        writing = asyncio.get_running_loop().run_in_executor(None, write)
        await asyncio.gather(follow(), follow(), follow(), writing)
        assert no_one_waits(db)

    run(body())
    assert db[b"n"] == b"%d" % count


def test_a_write_between_the_look_and_the_sleep_is_heard(db: kvsvr.Engine) -> None:
    def look() -> int:
        current = db.wait(b"k", 0, 0)
        if current == 0:
            db.put(b"k", b"v")
        return current

    async def body() -> None:
        assert db.aio
        assert db._bells is not None
        assert await db._bells.here().newer(look, 0, None) > 0

    run(body())


def test_a_write_in_the_middle_of_a_pass_is_heard(db: kvsvr.Engine) -> None:
    """The first of many has been looked after, and the pass still goes on, when its key is written."""
    going = False

    def write_the_first() -> int:
        if going and db.get(b"first") is None:
            db.put(b"first", b"v")
        return 0

    async def body() -> None:
        nonlocal going
        looks: list[Callable[[], int]] = [partial(db.wait, b"first", 0, 0), write_the_first]
        looks += [lambda: 0] * 4 * LOOK_COUNT_MAX
        assert db.aio
        assert db._bells is not None
        bell = db._bells.here()
        first, *others = [asyncio.ensure_future(bell.newer(look, 0, None)) for look in looks]
        await asyncio.sleep(0)
        going = True
        db.put(b"other", b"v")
        assert await first > 0
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        assert no_one_waits(db)

    run(body())


def test_a_reader_beside_the_writer_sees_news(path: Path) -> None:
    async def body(writer: kvsvr.Engine, reader: kvsvr.Engine) -> None:
        assert await reader.aio.wait(b"k", 0, 0.02) == 0
        task = asyncio.ensure_future(reader.aio.wait(b"k", 0))
        await asyncio.sleep(0.01)
        version = await writer.aio.put(b"k", b"v")
        assert await task == version
        assert await reader.aio.get(b"k") == b"v"
        writer.put(b"l", b"w")
        assert await reader.aio.refresh() == 1
        for refused in (reader.aio.sync(), reader.aio.put(b"k", b"")):
            with pytest.raises(kvsvr.UsageError, match="readonly"):
                await refused
        with pytest.raises(kvsvr.UsageError, match="readonly"):
            reader.aio.transaction()

    with kvsvr.open(path) as writer, kvsvr.open(path, readonly=True) as reader:
        run(body(writer, reader))


# --- loops ---


def test_one_loop_after_another(any_db: kvsvr.Engine) -> None:
    before = eventfd_count()
    for i in range(20):
        run(awaited(any_db.aio.put(b"k", b"%d" % i, durable=True)))
        assert any_db.stats()["unsynced_size"] == 0
    assert eventfd_count() == before


def test_loops_in_two_threads_answer_each_other(any_db: kvsvr.Engine) -> None:
    async def play(mine: bytes, other: bytes, count: int) -> None:
        seen = 0
        for number in range(1, count + 1):
            await any_db.aio.incr(mine, durable=True)
            while int(await any_db.aio.get(other, b"0")) < number:
                seen = await any_db.aio.wait(other, seen)

    with ThreadPoolExecutor(2) as executor:
        for game in [executor.submit(run, play(a, b, 100)) for a, b in ((b"a", b"b"), (b"b", b"a"))]:
            game.result()
    assert (any_db[b"a"], any_db[b"b"]) == (b"100", b"100")


def test_a_loop_that_is_closed_under_its_tasks_goes(db: kvsvr.Engine) -> None:
    """Nobody cancels what waits there, so it holds the loop; the next loop's first wait lets go of it."""
    before = eventfd_count()
    loop = asyncio.new_event_loop()
    # A handle of ours on a task that will never end; without one it might be collected in the middle, and say so.
    task = loop.create_task(db.aio.wait(b"k", 0))
    loop.run_until_complete(asyncio.sleep(0.01))
    loop.close()
    assert eventfd_count() == before + 1
    run(awaited(db.aio.put(b"k", b"v", durable=True)))
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    gone = weakref.ref(loop)
    del loop, task
    gc.collect()
    assert gone() is None
    assert eventfd_count() == before


def test_a_loop_that_has_waited_keeps_no_forgotten_store_open(path: Path) -> None:
    async def body() -> None:
        db = kvsvr.open(path)
        await db.aio.put(b"k", b"v", durable=True)
        with pytest.warns(ResourceWarning, match="not closed"):
            del db
        before = eventfd_count()
        await asyncio.sleep(0.01)
        assert eventfd_count() == before - 1  # The bell heard of it, and left the loop.
        async with kvsvr.open(path).aio as again:
            assert await again.get(b"k") == b"v"

    run(body())


# --- the end ---


async def closed_by_aio(db: kvsvr.Engine) -> None:
    await db.aio.close()


async def closed_inline(db: kvsvr.Engine) -> None:
    db.close()


async def closed_by_a_thread(db: kvsvr.Engine) -> None:
    await asyncio.get_running_loop().run_in_executor(None, db.close)


@pytest.mark.parametrize("close", [closed_by_aio, closed_inline, closed_by_a_thread])
def test_who_waits_when_the_store_is_closed_is_told(
    any_db: kvsvr.Engine, close: Callable[[kvsvr.Engine], Awaitable[None]]
) -> None:
    async def body() -> None:
        before = eventfd_count()
        waits = [asyncio.ensure_future(any_db.aio.wait(b"k", 0, t)) for t in (None, 50) for _ in range(100)]
        await asyncio.sleep(0)
        await close(any_db)
        results = await asyncio.gather(*waits, return_exceptions=True)
        assert {type(result) for result in results} == {kvsvr.ClosedError}
        for call in (any_db.aio.put(b"k", b"v", durable=True), any_db.aio.get(b"k"), any_db.aio.sync()):
            with pytest.raises(kvsvr.ClosedError):
                await call
        await any_db.aio.close()
        assert eventfd_count() == before

    run(body())


def test_a_durable_write_that_close_comes_before_is_told(any_db: kvsvr.Engine) -> None:
    """It is written, and close() made it durable, but nobody could promise that when the store was closing."""

    async def body() -> None:
        put = asyncio.ensure_future(any_db.aio.put(b"k", b"v", durable=True))
        await asyncio.sleep(0)
        any_db.close()
        with pytest.raises(kvsvr.ClosedError):
            await put

    path = any_db._handle.path
    run(body())
    with kvsvr.open(path) as again:
        assert again[b"k"] == b"v"


async def in_child(db: kvsvr.Engine) -> int:
    """0: every call says ClosedError. Else the number of the first that does not."""
    aio = db.aio
    calls: list[Awaitable[object]] = [
        aio.get(b"k"),
        aio.put(b"k", b"child"),
        aio.put(b"k", b"child", durable=True),
        aio.put(b"k", OWN_FILE),
        batched(aio, b"child"),
        aio.run(put_in),
        aio.wait(b"k", NEVER),
        aio.sync(),
        aio.stats(),
    ]
    for number, call in enumerate(calls, 1):
        try:
            await call
        except kvsvr.ClosedError as error:
            if "fork" in str(error):
                continue
        return number
    return 0


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_child_is_refused(any_db: kvsvr.Engine) -> None:
    run(awaited(any_db.aio.put(b"k", b"parent", durable=True)))
    child = os.fork()
    if child == 0:
        code = 99
        try:
            code = asyncio.run(in_child(any_db))
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    run(awaited(any_db.aio.put(b"l", b"parent", durable=True)))
    assert any_db[b"k"] == b"parent"


# --- tables and snapshots ---


def test_a_table_answers_as_its_twin(tmp_path: Path) -> None:
    """Rows, large ones too, their order and changes; a durable write is on disk; one waits for the table."""

    async def body(aio: AsyncEngine, db: kvsvr.Engine) -> None:
        t, twin = aio.table(b"t"), db.table(b"t")
        assert (len(t), t.version, t.expires_at, bool(t), t.key) == (0, 0, None, True, b"t")
        version = await t.put(b"a", b"1", durable=True)
        assert db.stats()["unsynced_size"] == 0
        assert (await t.get(b"a"), await t.get(b"none", 7)) == (b"1", 7)
        row = await t.append(b"appended", durable=True)
        assert db.stats()["unsynced_size"] == 0
        assert await t.incr(b"n", 41) == 41
        assert await t.cas(b"a", b"2", version) > version
        with pytest.raises(kvsvr.VersionConflict):
            await t.cas(b"a", LARGE, version)
        await t.put(b"large", LARGE)
        await t.put(b"file", OWN_FILE, durable=True)
        assert await t.get(b"large") == LARGE
        assert await t.get_versioned(b"file") == twin.get_versioned(b"file")
        assert await t.put_many([(b"m%d" % n, b"x") for n in range(200)], durable=True) == 200
        assert [entry async for entry in t.rows()] == list(twin.rows())
        assert [entry async for entry in t.keys(prefix=b"m", reverse=True)] == list(
            twin.keys(prefix=b"m", reverse=True)
        )
        assert await t.last(2) == twin.last(2)
        assert await t.changes(version, 10) == twin.changes(version, 10)
        assert await t.delete(row)
        assert not await t.delete(row)
        assert await t.delete_range(b"m", b"n") == 200
        assert await t.trim(t.version) == t.version
        waiting = asyncio.create_task(aio.wait(t, t.version))
        await asyncio.sleep(0)
        newer = await t.put(b"a", b"3")
        assert await waiting == newer
        assert await t.drop(durable=True)
        assert (len(t), twin.version) == (0, 0)

    async def main() -> None:
        with kvsvr.open(tmp_path / "store") as db:
            await body(db.aio, db)

    run(main())


def test_a_snapshot_answers_as_its_twin(tmp_path: Path) -> None:
    async def main() -> None:
        with kvsvr.open(tmp_path / "store") as db:
            db.put(b"a", b"1")
            db.table(b"t").put(b"r", b"row")
            async with db.aio.snapshot() as s:
                db.put(b"a", b"2")
                db.table(b"t").drop()
                assert s.version < db.stats()["sequence"]
                assert (await s.get(b"a"), await s.get(b"b", 7)) == (b"1", 7)
                assert await s.get_many([b"a", b"b"]) == [b"1", None]
                found = await s.get_versioned(b"a")
                assert found is not None
                assert found.value == b"1"
                assert [key async for key in s.keys(limit=2)] == [b"a"]
                assert [pair async for pair in s.scan()] == [(b"a", b"1")]
                assert [key async for key in s.tables()] == [b"t"]
                assert await s.table(b"t").get(b"r") == b"row"
                assert [pair async for pair in s.table(b"t").rows()] == [(b"r", b"row")]
            assert db.stats()["snapshot_count"] == 0
            with pytest.raises(kvsvr.ClosedError):
                await s.get(b"a")

    run(main())
