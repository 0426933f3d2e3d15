"""The directory of a set: made once, found again, and refused where it is not what was asked for."""

from __future__ import annotations

import shutil
import socket
import stat
from pathlib import Path

import pytest

from kvsvr.errors import UsageError
from kvsvr.ops.place import find, free_base, make, make_one, make_or_find


@pytest.mark.parametrize("count", [1, 3, 5])
def test_a_set_is_made_and_found(tmp_path: Path, count: int) -> None:
    """Each replica has settings of its own, which agree; clients' ports follow each other; the secret is nobody's."""
    base = free_base(count)
    place = make(tmp_path / "set", count, base)
    assert place == find(tmp_path / "set")
    configs = [one.config for one in place.replicas]
    assert [config.node for config in configs] == list(range(1, count + 1))
    assert [config.client_address for config in configs] == [("127.0.0.1", base + one) for one in range(count)]
    assert len({config.secret for config in configs} | {config.set_name for config in configs}) == 2
    assert len(configs[0].secret) == 64
    assert stat.S_IMODE((tmp_path / "set" / "secret").stat().st_mode) == 0o600
    for config in configs:
        others = {other.node: other.peer_address for other in configs if other is not config}
        assert config.peers == others


def test_a_set_may_be_moved(tmp_path: Path) -> None:
    make(tmp_path / "set", 3, free_base(3))
    shutil.move(tmp_path / "set", tmp_path / "elsewhere")
    place = find(tmp_path / "elsewhere")
    assert [one.config.directory for one in place.replicas] == [
        tmp_path / "elsewhere" / str(node) / "data" for node in (1, 2, 3)
    ]


def test_two_sets_have_nothing_in_common(tmp_path: Path) -> None:
    one, other = (make(tmp_path / name, 1, free_base(1)).replicas[0].config for name in ("a", "b"))
    assert one.secret != other.secret
    assert one.set_name != other.set_name


def test_what_is_asked_of_a_set_that_is_there_has_to_be_what_it_is(tmp_path: Path) -> None:
    base = free_base(3)
    assert make_or_find(tmp_path / "set", 3, base)[1]
    assert not make_or_find(tmp_path / "set", None, None)[1]
    assert not make_or_find(tmp_path / "set", 3, base)[1]
    with pytest.raises(UsageError, match="a set of 3: leave --replicas out"):
        make_or_find(tmp_path / "set", 5, None)
    with pytest.raises(UsageError, match=f"at port {base}: leave --port out"):
        make_or_find(tmp_path / "set", None, base + 1)


def test_a_directory_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not empty, and holds no set"):
        make_or_find(tmp_path, 3, free_base(3))
    with pytest.raises(UsageError, match="there is no set"):
        find(tmp_path)
    assert [one.name for one in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_set_that_lacks_a_folder_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "set", 3, free_base(3))
    shutil.rmtree(tmp_path / "set" / "2")
    with pytest.raises(UsageError, match="other replicas than there are folders"):
        find(tmp_path / "set")


def test_one_that_comes_later_takes_its_settings_from_the_one_before(tmp_path: Path) -> None:
    """Whoever finds the set sees both, and who is to go; when that folder is no replica any more, the set is whole."""
    place = make(tmp_path / "set", 3, free_base(3))
    file = place.replica(2).config_file
    file.write_text('password = "word"\n' + file.read_text())
    new = make_one(find(tmp_path / "set"), place.replica(2), keep_ports=True)
    assert (new.node, new.config.members, new.config.replaces) == (4, [1, 2, 3], (2,))
    assert new.address == place.replica(2).address and new.config.password == b"word"
    assert set(new.config.peers) == {1, 3}
    found = find(tmp_path / "set")
    assert [one.node for one in found.replicas] == [1, 2, 3, 4] and found.leaving == {2}
    file.rename(file.with_suffix(".toml.replaced"))
    found = find(tmp_path / "set")
    assert [one.node for one in found.replicas] == [1, 3, 4] and found.leaving == set()
    newer = make_one(found, found.replica(4), keep_ports=False)
    assert (newer.node, newer.config.replaces) == (5, (2, 4))
    assert newer.address not in {one.address for one in found.replicas} and set(newer.config.peers) == {1, 3, 4}


def test_replicas_that_do_not_agree_are_refused(tmp_path: Path) -> None:
    place = make(tmp_path / "set", 3, free_base(3))
    file = place.replica(3).config_file
    file.write_text("shards = 8\n" + file.read_text())
    with pytest.raises(UsageError, match="another set or shards than"):
        find(tmp_path / "set")


def test_ports_that_are_taken_are_refused_or_passed_over(tmp_path: Path) -> None:
    """Clients' ports are what was asked for, or an error; those of peers are looked for."""
    base = free_base(3)
    with socket.socket() as other:
        other.bind(("127.0.0.1", base + 1))
        other.listen()
        with pytest.raises(UsageError, match=f"--port: somebody else listens on 127.0.0.1:{base + 1}"):
            make(tmp_path / "set", 3, base)
    with socket.socket() as other:
        other.bind(("127.0.0.1", base + 100))
        other.listen()
        place = make(tmp_path / "set", 3, base)
    assert base + 100 not in [one.config.peer_address[1] for one in place.replicas]


@pytest.mark.parametrize(("count", "port"), [(2, 7101), (0, 7101), (3, 65_534)])
def test_what_is_no_set_is_not_made(tmp_path: Path, count: int, port: int) -> None:
    with pytest.raises(UsageError):
        make(tmp_path / "set", count, port)
    assert not (tmp_path / "set" / "1").exists()
