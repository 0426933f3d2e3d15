"""docs/commands.md says what the server's table says."""

from __future__ import annotations

from kvsvr.native import commands
from tests.node.commands_page import GROUPS, PAGE, missing, page


def test_the_page_is_what_the_table_comes_to() -> None:
    """`make commands` writes it."""
    assert PAGE.read_text(encoding="utf-8") == page()


def test_the_table_is_in_order_and_says_everything() -> None:
    """In order, because commands are looked up by halves."""
    found = commands()
    names = [one["name"] for one in found]
    assert names == sorted(names) and len(set(names)) == len(names)
    assert {one["group"] for one in found} == set(GROUPS)
    assert all(one["summary"] for one in found)
    assert not missing() & set(names)
