"""Settings of a replica process: where they come from, which one counts, and what is refused with which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kvsvr.errors import UsageError
from kvsvr.node.config import Limits, address, load

FILE = """
id = 1
dir = "data"
shards = 16
[peers]
2 = "127.0.0.1:7202"
3 = "127.0.0.1:7203"
"""


def test_a_file_says_all(tmp_path: Path) -> None:
    file = tmp_path / "kvsvr.toml"
    file.write_text(FILE)
    config = load(file, {}, {})
    assert (config.node, config.directory, config.shard_count, config.set_name) == (1, tmp_path / "data", 16, "kvsvr")
    assert config.client_address == ("127.0.0.1", 7101)
    assert config.peers == {2: ("127.0.0.1", 7202), 3: ("127.0.0.1", 7203)}
    assert config.secret == b""
    assert config.status_file is None
    assert config.limits == Limits(10_000, 5_000, 3_000, 512 << 20, 256 << 20)
    assert (config.durability, config.inline_max) == ("version", 4096)


def test_paths_in_a_file_begin_where_it_is(tmp_path: Path) -> None:
    """Those of the environment and of flags begin where the process was started."""
    (tmp_path / "secret").write_text("0123456789abcdef")
    file = tmp_path / "kvsvr.toml"
    file.write_text('id = 1\ndir = "data"\nsecret_file = "secret"\nstatus_file = "/run/status"\n')
    config = load(file, {}, {})
    assert (config.directory, config.secret) == (tmp_path / "data", b"0123456789abcdef")
    assert config.status_file == Path("/run/status")
    assert load(file, {"KVSVR_DIR": "here"}, {}).directory == Path("here")


@pytest.mark.parametrize(("text", "size"), [("1", 1), ("64 KiB", 65536), ("2mib", 2 << 20), (512 << 20, 512 << 20)])
def test_a_size_is_bytes_or_has_a_unit(text: str | int, size: int) -> None:
    config = load(None, {}, {"id": 1, "dir": "d", "word_size_max": text, "clients_max": "7", "stop_ms": 8})
    assert (config.limits.word_size_max, config.limits.client_count_max, config.limits.stop_ms) == (size, 7, 8)


def test_the_environment_goes_over_the_file_and_flags_over_both(tmp_path: Path) -> None:
    file = tmp_path / "kvsvr.toml"
    file.write_text(FILE)
    environment = {"KVSVR_DIR": "elsewhere", "KVSVR_SHARDS": "32", "KVSVR_PEERS": "4=[::1]:1,5=h:2", "OTHER": "1"}
    config = load(file, environment, {"shards": "64", "id": None})
    assert (config.node, config.directory, config.shard_count) == (1, Path("elsewhere"), 64)
    assert config.peers == {4: ("::1", 1), 5: ("h", 2)}


def test_how_values_travel_is_said_like_all_else(tmp_path: Path) -> None:
    file = tmp_path / "kvsvr.toml"
    file.write_text('durability = "data"\ninline_max = "64 KiB"\n' + FILE)
    config = load(file, {}, {})
    assert (config.durability, config.inline_max) == ("data", 65536)
    config = load(file, {"KVSVR_INLINE_MAX": "0", "KVSVR_DURABILITY": "version"}, {"inline_max": "1 MiB"})
    assert (config.durability, config.inline_max) == ("version", 1 << 20)
    assert load(file, {"KVSVR_INLINE_MAX": "0"}, {}).inline_max == 0


def test_a_password_lets_a_replica_be_reached_from_elsewhere() -> None:
    config = load(None, {"KVSVR_PASSWORD": "word"}, {"id": 1, "dir": "d", "listen": "0.0.0.0:7101"})
    assert (config.password, config.client_address) == (b"word", ("0.0.0.0", 7101))


def test_who_comes_later_says_what_the_set_began_with() -> None:
    """Of one of the first it is its id and its peers; corrected peers do not change it."""
    first = load(None, {}, {"id": 1, "dir": "d", "peers": "2=h:2,3=h:3"})
    assert (first.members, first.joins, first.replaces) == ([1, 2, 3], False, ())
    later = load(None, {}, {"id": 5, "dir": "d", "peers": "1=h:1,4=h:4", "members": "3,1,2", "replaces": "2,3"})
    assert (later.members, later.joins, later.replaces) == ([1, 2, 3], True, (2, 3))
    assert load(None, {}, {"id": 1, "dir": "d", "peers": "4=h:4,5=h:5", "members": "1,2,3"}).members == [1, 2, 3]


def test_alone_there_is_one_shard() -> None:
    assert load(None, {}, {"id": 1, "dir": "d"}).shard_count == 1
    assert load(None, {}, {"id": 1, "dir": "d", "peers": "2=h:2,3=h:3"}).shard_count == 64
    assert load(None, {}, {"id": 1, "dir": "d", "shards": 8}).shard_count == 8


def test_a_secret_is_what_a_file_holds(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("0123456789abcdef\n")
    flags = {
        "id": 1,
        "dir": "d",
        "secret_file": tmp_path / "secret",
        "peers": "2=h:2,3=h:3",
        "peer_listen": "0.0.0.0:1",
    }
    assert load(None, {}, flags).secret == b"0123456789abcdef"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({}, "id is not said"),
        ({"id": 1}, "dir is not said"),
        ({"id": 0, "dir": "d"}, "id is a number from 1 to 65535, not 0"),
        ({"id": "x", "dir": "d"}, "id is a number"),
        ({"id": True, "dir": "d"}, "id is a number"),
        ({"id": 1, "dir": ""}, "dir is a text"),
        ({"id": 1, "dir": "d", "shards": 1025}, "shards is a number from 1 to 1024"),
        ({"id": 1, "dir": "d", "listen": "7101"}, "listen is HOST:PORT"),
        ({"id": 1, "dir": "d", "listen": "127.0.0.1:0"}, "listen is HOST:PORT"),
        ({"id": 1, "dir": "d", "listen": "127.0.0.1:65536"}, "listen is HOST:PORT"),
        ({"id": 1, "dir": "d", "listen": "0.0.0.0:7101"}, "clients are not asked who they are"),
        ({"id": 1, "dir": "d", "listen": "example.org:7101"}, "can be reached from elsewhere"),
        ({"id": 1, "dir": "d", "peers": "2=h:1"}, "a set has 1, 3 or 5 replicas, not 2"),
        ({"id": 1, "dir": "d", "peers": "1=h:1,2=h:2"}, "1 is this replica's own id"),
        ({"id": 1, "dir": "d", "peers": "2,3"}, "ids from 1 to 65535 and HOST:PORT, not '2' = ''"),
        ({"id": 1, "dir": "d", "peers": "x=h:1,3=h:1"}, "not 'x' = 'h:1'"),
        ({"id": 1, "dir": "d", "peers": 5}, "peers is a table"),
        ({"id": 1, "dir": "d", "peers": "2=h:1,3=h:1", "members": "1,2"}, "members are those that the set began"),
        (
            {"id": 1, "dir": "d", "peers": "2=h:1,3=h:1", "members": "1,1,2"},
            "members are different ids from 1 to 65535",
        ),
        ({"id": 4, "dir": "d", "members": "1,2,3"}, "nobody can join that with these peers"),
        ({"id": 4, "dir": "d", "peers": "1=h:1", "members": "1"}, "nobody can join that with these peers"),
        ({"id": 1, "dir": "d", "peers": "2=h:1,3=h:1", "replaces": "2"}, "replaces is for who came later"),
        ({"id": 1, "dir": "d", "await_hello": "perhaps"}, "await_hello is true or false, not 'perhaps'"),
        ({"id": 1, "dir": "d", "peers": "2=h:1,3=h:1", "peer_listen": "0.0.0.0:1"}, "replicas need a secret_file"),
        ({"id": 1, "dir": "d", "password": "x" * 128}, "password is a text of up to 127 bytes"),
        ({"id": 1, "dir": "d", "password": 5}, "password is a text"),
        ({"id": 1, "dir": "d", "secret_file": "/nowhere/at/all"}, "cannot be read"),
        ({"id": 1, "dir": "d", "word_size_max": "1 TiB"}, "size like 65536"),
        ({"id": 1, "dir": "d", "word_size_max": "513 MiB"}, "at most 536870912, not '513 MiB'"),
        ({"id": 1, "dir": "d", "owed_size_max": True}, "size like 65536"),
        ({"id": 1, "dir": "d", "owed_size_max": 0}, "size like 65536"),
        ({"id": 1, "dir": "d", "inline_max": "2 MiB"}, "at most 1048576, not '2 MiB'"),
        ({"id": 1, "dir": "d", "inline_max": -1}, "size like 65536"),
        ({"id": 1, "dir": "d", "durability": "both"}, "durability is version or data, not 'both'"),
        ({"id": 1, "dir": "d", "durability": ["data"]}, "durability is version or data"),
        ({"id": 1, "dir": "d", "clients_max": 0}, "clients_max is a number from 1 to 1000000, not 0"),
    ],
)
def test_a_wrong_setting_is_named_with_what_it_may_be(flags: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        load(None, {}, flags)


def test_it_is_said_where_a_wrong_setting_is_to_be_corrected(tmp_path: Path) -> None:
    file = tmp_path / "kvsvr.toml"
    file.write_text(FILE.replace("16", "0"))
    with pytest.raises(UsageError, match=rf"shards is a number from 1 to 1024, not 0: correct it in {file}$"):
        load(file, {}, {})
    with pytest.raises(UsageError, match=r"not 'x': correct KVSVR_SHARDS$"):
        load(file, {"KVSVR_SHARDS": "x"}, {})
    with pytest.raises(UsageError, match=r"not '-1': correct --shards$"):
        load(file, {"KVSVR_SHARDS": "x"}, {"shards": "-1"})
    with pytest.raises(UsageError, match=r"correct --peer$"):
        load(None, {}, {"id": 1, "dir": "d", "peers": "2=h:1"})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("id = ", "no TOML"),
        ("colour = 1", "there is no setting 'colour'"),
        (None, "cannot be read"),
        (b"\xff", "no TOML"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str | bytes | None, words: str) -> None:
    file = tmp_path / "kvsvr.toml"
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError, match=words):
        load(file, {}, {})


def test_a_short_secret_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("short")
    with pytest.raises(UsageError, match="with 5 bytes; a secret has at least 16"):
        load(None, {}, {"id": 1, "dir": "d", "secret_file": tmp_path / "secret"})


def test_addresses() -> None:
    assert address("localhost:1") == ("localhost", 1)
    assert address("[::1]:65535") == ("::1", 65535)
