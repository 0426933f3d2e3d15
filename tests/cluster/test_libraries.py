"""Libraries that keep things in Redis keep them here as well, where they are installed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from tests.cluster.conftest import Replicas

SET = pytest.mark.parametrize("count", [1, 3])


@SET
def test_the_cache_of_django(replicas: Callable[[int], Replicas], count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It sets many keys in one transaction, of whatever slots they are: so the set has one shard."""
    backend = pytest.importorskip("django.core.cache.backends.redis")
    monkeypatch.setenv("KVSVR_SHARDS", "1")
    cache = backend.RedisCache(f"redis://127.0.0.1:{replicas(count).ports[count]}", {})
    cache.set("text", {"any": ["thing"]}, timeout=100)
    assert cache.get("text") == {"any": ["thing"]}
    assert cache.add("text", 1) is False and cache.add("number", 1) is True
    assert cache.incr("number", 5) == 6 and cache.decr("number") == 5
    cache.set_many({f"key:{number}": number for number in range(30)}, timeout=100)
    assert cache.get_many(f"key:{number}" for number in range(31)) == {f"key:{number}": number for number in range(30)}
    assert cache.touch("text", 200) and not cache.touch("absent", 200)
    assert cache.get_or_set("made", lambda: "value") == "value" and cache.has_key("made")
    cache.delete_many(["text", "made"])
    assert cache.get("text") is None and cache.delete("number")
    cache.clear()
    assert cache.get("key:1") is None


@SET
def test_the_sessions_of_flask(replicas: Callable[[int], Replicas], count: int) -> None:
    flask, sessions = pytest.importorskip("flask"), pytest.importorskip("flask_session")
    application = flask.Flask("test")
    application.config.update(SESSION_TYPE="redis", SESSION_REDIS=replicas(count).client(count))
    sessions.Session(application)

    def count_up() -> str:
        flask.session["count"] = flask.session.get("count", 0) + 1
        return str(flask.session["count"])

    application.add_url_rule("/", view_func=count_up)
    with application.test_client() as browser:
        assert [browser.get("/").text for _ in range(5)] == ["1", "2", "3", "4", "5"]
    with application.test_client() as other:
        assert other.get("/").text == "1"


@SET
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_aiocache(replicas: Callable[[int], Replicas], count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does the same."""
    aiocache = pytest.importorskip("aiocache")
    monkeypatch.setenv("KVSVR_SHARDS", "1")
    port = replicas(count).ports[count]

    async def use() -> None:
        from redis import asyncio as client

        cache = make(aiocache, client, port)
        await cache.set("key", "value", ttl=100)
        assert await cache.get("key") == "value"
        with pytest.raises(ValueError, match="exists"):
            await cache.add("key", "other")
        await cache.multi_set([("a", "1"), ("b", "2")], ttl=100)
        assert await cache.multi_get(["a", "b", "c"]) == ["1", "2", None]
        assert await cache.increment("n", 3) == 3
        assert await cache.expire("a", 50) and await cache.exists("a")
        assert await cache.delete("a") == 1
        assert await cache.clear()
        assert await cache.get("b") is None
        await cache.close()

    asyncio.run(use())


def make(aiocache: Any, client: Any, port: int) -> Any:
    """Its constructor took another form with version 1."""
    try:
        return aiocache.RedisCache(client=client.Redis(port=port, decode_responses=True))
    except TypeError:
        return aiocache.RedisCache(endpoint="127.0.0.1", port=port)
