"""The rules of the replica set hold in the model, and every rule left out is noticed.

Bounded: some hundred seeds, and for each mutation seeds at which it was seen to be noticed. They are fixed, so a change
of the model or of the simulator may well need other ones: `python -m tests.sim.model --seeds 0:1000 --mutate NAME`
prints them. Long runs: `python -m tests.sim.model --n 5 --seeds 0:3000`.
"""

from __future__ import annotations

from collections import Counter

import pytest

from tests.sim.model.judge import linearizable
from tests.sim.model.mutations import MUTATIONS
from tests.sim.model.plan import INF
from tests.sim.model.records import NO_TABLE, Changes, Op, Row, Table, changes
from tests.sim.model.simulate import run
from tests.sim.model.world import Entry

# Rules that guard nothing else as long as one disk is hurt at a time; docs/protocol/ says why.
HARMLESS = {"promise_late_tail", "hole_acked"}

# Mutation -> replicas, and seeds each of which notices it.
NOTICED: dict[str, tuple[int, tuple[int, ...]]] = {
    "ack_before_fsync": (3, (22, 49)),
    "promise_not_durable": (3, (12, 22)),
    "round_reused": (3, (42, 94)),
    "self_before_fsync": (3, (0, 2)),
    "restart_owns": (3, (0, 10)),
    "count_older": (3, (5, 78)),
    "no_prev_check": (3, (0, 1)),
    "cut_below_commit": (3, (0, 23)),
    "cut_always": (3, (49, 75)),
    "commit_unverified": (3, (0, 2)),
    "ack_own_last": (3, (423,)),
    "old_acks": (3, (11, 20)),
    "longest_tail": (3, (5, 13)),
    "snapshot_drops_tail": (3, (18, 121)),
    "read_before_barrier": (3, (12, 16)),
    "read_no_check": (3, (11, 57)),
    "check_joined": (3, (424,)),
    "follower_local": (3, (2, 3)),
    "no_sessions": (3, (0, 2)),
    "fail_unrecorded": (3, (40,)),
    "late_fail": (3, (24,)),
    "fail_no_wait": (3, (1, 13)),
    "evict_blind": (3, (2, 4)),
    "meta_as_data": (3, (33,)),
    "meta_early": (3, (100,)),
    "drop_previous": (3, (209,)),
    "snapshot_no_history": (3, (386,)),
    "expire_by_reader": (3, (14, 27)),
    "expire_unwaited": (3, (248, 249)),
    "changes_ahead": (3, (0, 1)),
    "page_splits": (3, (0, 1)),
    "floor_ignored": (3, (40, 110)),
    "through_ignored": (3, (12, 72)),
    "config_swap": (3, (7, 14)),
    "config_two": (3, (7, 14)),
    "config_early": (5, (8, 41)),
    "removed_votes": (3, (7, 8)),
    "damaged_votes": (3, (65, 79)),
    "repair_cuts": (3, (96, 137)),
    "wiped_returns": (3, (9, 15)),
    "hello_unawaited": (3, (114, 136)),
    "rollback_unseen": (3, (136, 338)),
}


@pytest.mark.parametrize(("n", "low", "high"), [(3, 0, 120), (3, 120, 240), (5, 0, 40)])
def test_rules_as_they_are_are_never_violated(n: int, low: int, high: int) -> None:
    """Whatever the seeds do to the replicas, clients see what one store could have answered."""
    total: Counter[str] = Counter()
    for seed in range(low, high):
        sim = run(seed, n)
        assert sim.violations == [], f"python -m tests.sim.model --n {n} --seeds {seed}:{seed + 1} -v"
        total.update(sim.stats)
    assert total["undecided"] <= total["ops"] / 1000
    faults = [
        "crash_owner",
        "adopt",
        "cut",
        "snapshot",
        "dedupe",
        "follower_read",
        "expiry",
        "page",
        "resync",
        "config",
    ]
    assert [name for name in faults if not total[name]] == []  # A run in which nothing happens shows nothing.


def test_every_mutation_has_seeds_that_notice_it() -> None:
    assert set(NOTICED) == set(MUTATIONS) - HARMLESS


@pytest.mark.parametrize("name", sorted(NOTICED))
def test_rule_left_out_is_noticed(name: str) -> None:
    n, seeds = NOTICED[name]
    unnoticed = [seed for seed in seeds if not run(seed, n, frozenset([name])).violations]
    assert unnoticed == [], MUTATIONS[name]


def test_seed_replays_its_run() -> None:
    """A failure is worth its seed only if the seed is the whole of it."""
    first, second = run(11, 3), run(11, 3)
    assert first.stats == second.stats
    assert [(e.op, e.call, e.ret, e.result) for e in first.history] == [
        (e.op, e.call, e.ret, e.result) for e in second.history
    ]


# ---------------------------------------------------------------- the judge: histories known to be good or bad
def history(*ops: tuple[Op, float, float, tuple[str, object] | None]) -> list[Entry]:
    return [Entry(number, op, call, ret, result) for number, (op, call, ret, result) in enumerate(ops)]


def put(value: str, ttl: float | None = None) -> Op:
    return Op("put", 0, ("r",), (value,), ttl=ttl)


def get() -> Op:
    return Op("get", 0, ("r",))


def row_op(kind: str, *args: str) -> Op:
    return Op(kind, 0, ("T",), args)


OK = ("OK", "OK")


def test_judge_accepts_overlapping_writes_in_either_order() -> None:
    for value in "ab":
        entries = history((put("a"), 0, 10, OK), (put("b"), 1, 9, OK), (get(), 11, 12, ("OK", value)))
        assert linearizable(entries) is True


def test_judge_refuses_a_stale_read() -> None:
    entries = history((put("a"), 0, 1, OK), (put("b"), 2, 3, OK), (get(), 4, 5, ("OK", "a")))
    assert linearizable(entries) is False


def test_judge_refuses_a_lost_write() -> None:
    assert linearizable(history((put("a"), 0, 1, OK), (get(), 2, 3, ("OK", None)))) is False


def test_judge_lets_an_unanswered_write_happen_late_or_never() -> None:
    asked = (put("a"), 0.0, INF, None)
    assert linearizable(history(asked, (get(), 1, 2, ("OK", None)), (get(), 3, 4, ("OK", "a")))) is True
    assert linearizable(history(asked, (get(), 1, 2, ("OK", None)), (get(), 3, 4, ("OK", None)))) is True
    assert linearizable(history(asked, (get(), 1, 2, ("OK", "a")), (get(), 3, 4, ("OK", None)))) is False


def test_judge_refuses_a_value_that_comes_back_after_it_expired() -> None:
    """The delete of what expired may happen from its earliest moment on, and only once."""
    written = (put("a", ttl=5.0), 0.0, 1.0, OK)
    expiry = (Op("expiry", 0, ("r",), (0,)), 5.0, INF, None)
    gone, there = ("OK", None), ("OK", "a")
    assert linearizable(history(written, expiry, (get(), 6, 7, gone))) is True
    assert linearizable(history(written, expiry, (get(), 6, 7, there), (get(), 8, 9, gone))) is True
    assert linearizable(history(written, expiry, (get(), 6, 7, gone), (get(), 8, 9, there))) is False
    assert linearizable(history(written, expiry, (get(), 2, 3, gone))) is False


def test_judge_refuses_a_row_id_that_is_given_twice() -> None:
    first, second = (row_op("rapp", "x"), 0.0, 1.0, ("OK", "0001")), row_op("rapp", "y")
    assert linearizable(history(first, (second, 2, 3, ("OK", "0002")))) is True
    assert linearizable(history(first, (second, 2, 3, ("OK", "0001")))) is False


def test_judge_refuses_a_count_that_is_not_the_rows() -> None:
    appended = (row_op("rapp", "x"), 0.0, 1.0, ("OK", "0001"))
    rows = (("0001", "x"),)
    assert linearizable(history(appended, (row_op("rows"), 2, 3, ("OK", (rows, 1))))) is True
    assert linearizable(history(appended, (row_op("rows"), 2, 3, ("OK", (rows, 2))))) is False


# ---------------------------------------------------------------- pages of changes
def test_page_never_splits_a_version() -> None:
    table = Table(7, 3, 1, 0, {"a": Row(5, "1"), "b": Row(5, "2"), "c": Row(7, "3")})
    page = changes(table, 0, 1)
    assert page == Changes(((5, "a", "1"), (5, "b", "2")), 5, True, True, 7)
    assert changes(table, page.version, 1) == Changes(((7, "c", "3"),), 7, False, True, 7)


def test_first_page_reaches_the_floor() -> None:
    """A consumer that begins again must not find itself below the floor after its first page."""
    table = Table(9, 3, 1, 8, {"a": Row(2, "1"), "b": Row(5, "2"), "c": Row(9, "3")})
    page = changes(table, 0, 1)
    assert [name for _, name, _ in page.rows] == ["a", "b"]
    assert (page.version, page.more, page.complete) == (8, True, True)
    assert changes(table, page.version, 1).complete
    assert not changes(table, 7, 1).complete


def test_replica_that_is_behind_never_sends_a_consumer_back() -> None:
    assert changes(NO_TABLE, 4, 10) == Changes((), 4, False, True, 0)
