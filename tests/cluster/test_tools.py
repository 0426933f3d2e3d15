"""Redis' own programs, where they are installed, find what they look for."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable

import pytest

from tests.cluster.conftest import Replicas

TIME_S = 100


def run(name: str, nodes: Replicas, *arguments: str, given: str | None = None) -> str:
    program = shutil.which(name)
    if program is None:
        pytest.skip(f"there is no {name}")
    words = [program, "-p", str(nodes.ports[1]), *arguments]
    done = subprocess.run(words, input=given, capture_output=True, text=True, timeout=TIME_S, check=True)
    return done.stdout


@pytest.mark.parametrize("count", [1, 3])
def test_redis_cli_sets_loads_and_looks_through(replicas: Callable[[int], Replicas], count: int) -> None:
    nodes = replicas(count)
    assert run("redis-cli", nodes, "-3", "hset", "hash", "f", "1", "g", "2") == "2\n"
    loaded = run("redis-cli", nodes, "--pipe", given="".join(f"SET key:{number} value\r\n" for number in range(500)))
    assert "errors: 0, replies: 500" in loaded
    assert "Sampled 501 keys" in run("redis-cli", nodes, "--bigkeys")
    said = run("redis-cli", nodes, given="MULTI\nSET {t}a 1\nINCR {t}a\nEXEC\nDBSIZE\n")
    assert said.split() == ["OK", "QUEUED", "QUEUED", "OK", "2", "502"]
    assert "summary" in run("redis-cli", nodes, given="help hset\n")


@pytest.mark.parametrize("count", [1, 3])
def test_redis_benchmark_runs_to_its_end(replicas: Callable[[int], Replicas], count: int) -> None:
    said = run(
        "redis-benchmark", replicas(count), "-q", "-n", "500", "-t", "ping_mbulk,set,get,incr,hset,mset", "--csv"
    )
    assert [line.split(",")[0] for line in said.splitlines()[1:]] == [
        '"PING_MBULK"',
        '"SET"',
        '"GET"',
        '"INCR"',
        '"HSET"',
        '"MSET (10 keys)"',
    ]
