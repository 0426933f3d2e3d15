"""How a store begins and ends when something comes between: Ctrl-C, the collector, another opener, a bad catalog.

Whatever it is, C is closed before its place is free for another writer of this process, and the place does get free.
"""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import pytest

import kvsvr
from kvsvr.native import Checkpoint, Handle, lib
from kvsvr.store import catalog, engine
from kvsvr.store.housekeeping import Housekeeper

Patch = pytest.MonkeyPatch


def interrupted(*_: object, **__: object) -> Any:
    raise KeyboardInterrupt


def reopened(path: Path) -> None:
    """Another writer is let in, finds all of it, and no lock."""
    with kvsvr.open(path) as db:
        assert db[b"k"] == b"v"
        db.put(b"l", b"w")


# --- closing ---


@pytest.mark.parametrize(
    ("owner", "name"),
    [(Housekeeper, "stop"), (Handle, "quiesce"), (Housekeeper, "checkpoint"), (Checkpoint, "step")],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_an_interrupted_close_closes(path: Path, monkeypatch: Patch, owner: type, name: str) -> None:
    db = kvsvr.open(path, checkpoint_size=None)
    db.put(b"k", b"v")
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            db.close()
    with pytest.raises(kvsvr.ClosedError):
        db.put(b"k", b"")
    reopened(path)


def test_a_place_is_kept_while_c_has_it_open(path: Path, monkeypatch: Patch) -> None:
    db = kvsvr.open(path)
    db.put(b"k", b"v")
    with monkeypatch.context() as patch:
        patch.setattr(Handle, "close", interrupted)
        with pytest.raises(KeyboardInterrupt):
            db.close()
    with pytest.raises(kvsvr.LockedError):
        kvsvr.open(path)
    db._handle.close()
    engine._writers.leave(place_of(path))
    reopened(path)


def test_an_interrupt_behind_the_closing_in_c_gives_the_place_up(path: Path, monkeypatch: Patch) -> None:
    close = Handle.close

    def closed_then_interrupted(handle: Handle) -> None:
        close(handle)
        raise KeyboardInterrupt

    db = kvsvr.open(path)
    db.put(b"k", b"v")
    with monkeypatch.context() as patch:
        patch.setattr(Handle, "close", closed_then_interrupted)
        with pytest.raises(KeyboardInterrupt):
            db.close()
    reopened(path)


def place_of(path: Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def test_ctrl_c_does_not_close_c_below_a_checkpoint(path: Path, monkeypatch: Patch) -> None:
    """stop() waits for the step that housekeeping is in, also when the wait is interrupted."""
    step, events = Checkpoint.step, []
    inside, waited = threading.Event(), threading.Event()

    def slow_step(checkpoint: Checkpoint) -> bool:
        if threading.current_thread().name == "kvsvr-housekeeping":
            inside.set()
            assert waited.wait(20)
            time.sleep(0.05)
            events.append("step ends")
        return step(checkpoint)

    class InterruptedOnce(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            if not waited.is_set():
                waited.set()
                raise KeyboardInterrupt
            return super().wait(timeout)

    close = Handle.close

    def noted_close(handle: Handle) -> None:
        events.append("close")
        close(handle)

    monkeypatch.setattr(Checkpoint, "step", slow_step)
    monkeypatch.setattr(Handle, "close", noted_close)
    db = kvsvr.open(path, checkpoint_size=100)
    db._keeper._ended = InterruptedOnce()
    db.put(b"k", b"v")
    db.put(b"large", b"v" * 1000)
    assert inside.wait(20)
    with pytest.raises(KeyboardInterrupt):
        db.close()
    assert events == ["step ends", "close"]
    reopened(path)


@pytest.mark.parametrize("failing", ["checkpoint", "forget"])
def test_a_catalog_that_lmdb_refuses_does_not_keep_a_store_open(path: Path, monkeypatch: Patch, failing: str) -> None:
    def refuse(*_: object) -> Any:
        raise lmdb.MapFullError("no room")

    def damaged(_: Handle) -> Any:
        raise kvsvr.CorruptionError(str(path), "an index file is damaged")

    db = kvsvr.open(path)
    db.put(b"k", b"v")
    with monkeypatch.context() as patch:
        patch.setattr(catalog, "_changed", refuse)
        if failing == "forget":
            patch.setattr(Handle, "checkpoint", damaged)
        db.close()
    assert db._keeper.stats()["checkpoint_failed_count"] == 1
    reopened(path)


# --- the collector ---


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_collected_in_the_midst_of_its_own_checkpoint(path: Path, monkeypatch: Patch) -> None:
    """The finalizer runs in the housekeeping thread, between two steps: the checkpoint is given up, then comes the
    close with the last one, and at no time are there two."""
    begin, step, free, close = Handle.checkpoint, Checkpoint.step, Checkpoint.free, Handle.close
    events: list[str] = []
    inside, dropped, closed = threading.Event(), threading.Event(), threading.Event()

    def noted_begin(handle: Handle) -> Checkpoint | None:
        events.append("begin")
        return begin(handle)

    def collecting_step(checkpoint: Checkpoint) -> bool:
        if not inside.is_set():
            inside.set()
            assert dropped.wait(20)
            gc.collect()
            events.append("collected")
            step(checkpoint)
            return True
        return step(checkpoint)

    def noted_free(checkpoint: Checkpoint) -> None:
        events.append("free")
        free(checkpoint)

    def noted_close(handle: Handle) -> None:
        assert threading.current_thread().name == "kvsvr-housekeeping"
        close(handle)
        events.append("close")
        closed.set()

    gc.disable()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(Handle, "checkpoint", noted_begin)
            patch.setattr(Checkpoint, "step", collecting_step)
            patch.setattr(Checkpoint, "free", noted_free)
            patch.setattr(Handle, "close", noted_close)
            db = kvsvr.open(path, sync="none", checkpoint_size=100)
            thread = db._keeper._thread
            cycle: list[object] = [db]
            cycle.append(cycle)
            db.put(b"k", b"v")
            db.put(b"large", b"v" * 1000)
            assert inside.wait(20)
            del db, cycle
            dropped.set()
            assert closed.wait(20)
            assert thread is not None
            thread.join(20)
    finally:
        gc.enable()
    assert events == ["begin", "collected", "free", "begin", "free", "close"]
    with kvsvr.open(path) as again:
        assert again.stats()["was_clean"] == 1
    reopened(path)


def test_a_batch_does_not_keep_its_store_open(path: Path) -> None:
    db = kvsvr.open(path)
    db.put(b"k", b"v")
    batch = db.batch()
    with pytest.warns(ResourceWarning, match="not closed"):
        del db
        gc.collect()
    with pytest.raises(kvsvr.ClosedError), batch:
        batch.put(b"k", b"")
    reopened(path)


# --- opening ---


class InterruptedOpen:
    """The lib, whose kv_store_open is followed by Ctrl-C."""

    def __getattr__(self, name: str) -> Any:
        return getattr(lib, name)

    def kv_store_open(self, *arguments: Any) -> int:
        assert lib.kv_store_open(*arguments) == lib.KV_OK
        raise KeyboardInterrupt


def interrupted_behind(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        function(*arguments, **named)
        raise KeyboardInterrupt

    return call


@pytest.mark.parametrize("where", ["open", "handle", "keeper", "start"])
def test_an_interrupted_open_leaves_no_writer_behind(path: Path, monkeypatch: Patch, where: str) -> None:
    with kvsvr.open(path) as db:
        db.put(b"k", b"v")
    with monkeypatch.context() as patch:
        match where:
            case "open":
                patch.setattr("kvsvr.native.lib", InterruptedOpen())
            case "handle":
                patch.setattr(Handle, "__init__", interrupted_behind(Handle.__init__))
            case "keeper":
                patch.setattr(Housekeeper, "__init__", interrupted_behind(Housekeeper.__init__))
            case "start":
                patch.setattr(Housekeeper, "start", interrupted_behind(Housekeeper.start))
        # The exception, and so every frame it went through, is alive while the store is opened again.
        with pytest.raises(KeyboardInterrupt) as caught:
            kvsvr.open(path)
    if where == "handle":
        del caught  # It holds the caller of Handle(), which holds the handle.
    reopened(path)


def test_without_another_thread_a_store_does_not_open(path: Path, monkeypatch: Patch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="thread"):
            kvsvr.open(path)
    with kvsvr.open(path):
        pass


def test_who_comes_second_in_making_the_directory_finds_it_made(path: Path, monkeypatch: Patch) -> None:
    path.mkdir()
    monkeypatch.setattr(os.path, "lexists", lambda _: False)
    with kvsvr.open(path) as db:
        assert len(db) == 0
