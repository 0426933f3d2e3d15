"""When a replica that died is started again, and when it is given up."""

from __future__ import annotations

import pytest

from kvsvr.ops.restarts import DEATHS_MAX, LONGEST_S, SETTLED_S, Restarts, ending


def test_each_death_in_a_row_waits_longer_and_the_last_gives_up() -> None:
    restarts = Restarts()
    pauses = [restarts.died(-9, 0.0) for _ in range(DEATHS_MAX)]
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, None]
    assert restarts.count == DEATHS_MAX - 1
    assert max(pause for pause in pauses if pause is not None) <= LONGEST_S


def test_who_served_for_a_while_begins_anew() -> None:
    restarts = Restarts()
    for _ in range(100):
        assert restarts.died(1, SETTLED_S) == 0.1
        assert restarts.died(1, SETTLED_S / 2) == 0.2
    assert restarts.count == 200


@pytest.mark.parametrize("code", [2, 4])
def test_what_no_restart_mends_is_given_up_at_once(code: int) -> None:
    restarts = Restarts()
    assert restarts.died(code, 100.0) is None
    assert restarts.count == 0


def test_who_was_asked_to_end_comes_back_at_once_and_is_not_held_against() -> None:
    restarts = Restarts()
    assert [restarts.died(0, 0.0) for _ in range(100)] == [0.0] * 100


def test_an_ending_is_told_in_words() -> None:
    assert ending(-9) == "killed by signal 9"
    assert ending(1) == "ended with 1"
    assert ending(4) == "ended with 4 (its disk failed, or its data are damaged)"
