"""What a replica learns of others outlives it, and what it must not forget it refuses to forget."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kvsvr.errors import CorruptionError, UsageError
from kvsvr.node.config import load
from kvsvr.node.nodes import COUNT_MAX, NAME, Nodes


def nodes(directory: Path, **flags: Any) -> Nodes:
    return Nodes(load(None, {}, {"id": 1, "dir": str(directory), "peers": "2=h:2,3=h:3", **flags}))


def told(addresses: dict[str, str], *gone: int) -> bytes:
    return json.dumps({"addresses": addresses, "gone": gone}).encode()


def test_what_was_learned_is_there_at_the_next_start(tmp_path: Path) -> None:
    one = nodes(tmp_path)
    one.met(4, ("h", 4))
    assert one.hear(told({"5": "h:5"}, 2)) == [2]
    one.part(3)
    for again in (one, nodes(tmp_path)):
        assert again.addresses() == {4: ("h", 4), 5: ("h", 5)}
        assert again.gone == [2, 3]
    assert one.hear(one.tell()) == []


def test_what_settings_say_counts_more_than_what_is_told(tmp_path: Path) -> None:
    one = nodes(tmp_path)
    assert one.hear(told({"2": "elsewhere:1", "1": "elsewhere:2"}, 1)) == []
    assert one.addresses() == {2: ("h", 2), 3: ("h", 3)}
    assert not one.is_gone(1)


def test_who_is_gone_stays_gone(tmp_path: Path) -> None:
    one = nodes(tmp_path)
    one.part(2)
    one.hear(told({"2": "h:9"}))
    one.met(2, ("h", 9))
    assert 2 not in nodes(tmp_path).addresses()


def test_the_members_that_the_set_began_with_do_not_change(tmp_path: Path) -> None:
    """As they would where somebody corrects the peers of a set in which one was replaced."""
    nodes(tmp_path).keep()
    with pytest.raises(UsageError, match=r"members are \[1, 3, 4\], and \[1, 2, 3\] in"):
        nodes(tmp_path, peers="3=h:3,4=h:4")
    assert nodes(tmp_path, peers="3=h:3,4=h:4", members="1,2,3").addresses() == {3: ("h", 3), 4: ("h", 4)}


@pytest.mark.parametrize(
    "said", [b"[]", b"{", b'{"addresses": {"x": "h:1"}, "gone": []}', b'{"addresses": {"9": "h"}, "gone": []}', b"\xff"]
)
def test_what_no_replica_tells_is_refused(tmp_path: Path, said: bytes) -> None:
    with pytest.raises(ValueError):
        nodes(tmp_path).hear(said)


def test_one_that_tells_of_very_many_is_not_believed(tmp_path: Path) -> None:
    one = nodes(tmp_path)
    assert one.hear(told({str(node): "h:1" for node in range(4, 5 + COUNT_MAX)})) == []
    assert len(one.addresses()) == 2


def test_a_damaged_file_is_said(tmp_path: Path) -> None:
    for text in ("{", "[]"):
        (tmp_path / NAME).write_text(text)
        with pytest.raises(CorruptionError, match="without the file it is learned again"):
            nodes(tmp_path)
