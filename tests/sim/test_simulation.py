"""The replica core in simulation (native/sim): what a thousand seeds find, and that they would find something.

Seeds run on all cores. The whole file is to stay below five minutes on two: 1,000 seeds at N = 3 and 150 at N = 5 take
some 40 seconds, the mutations most of the rest, each until enough seeds have noticed. `make simulate` runs more of
them. The ranges of MUTATIONS were chosen so that several times as many seeds notice as are asked for: a change of the
simulator deals all seeds anew, and is not to fail here for bad luck.
"""

import re
import subprocess

import pytest

from tests.sim import seeds
from tests.sim.seeds import ROOT, Found, command, noticed, program, simulate

# Rule left out, first seed, count, and how many of them notice at least; at N = 3.
MUTATIONS = [
    ("ack_before_fsync", 0, 300, 5),
    ("promise_not_durable", 0, 400, 3),
    ("round_reused", 0, 600, 3),
    ("count_older", 0, 2000, 3),
    ("no_prev_check", 0, 30, 5),
    ("longest_tail", 0, 150, 3),
    ("read_before_barrier", 0, 50, 4),
    ("read_no_check", 0, 400, 3),
    ("no_sessions", 0, 20, 5),
    ("cut_always", 0, 100, 3),
    ("commit_unverified", 0, 100, 3),
    ("old_acks", 0, 250, 3),
    ("self_before_fsync", 0, 150, 3),
    ("fail_unrecorded", 0, 3000, 2),
    ("fail_no_wait", 0, 50, 3),
    ("evict_blind", 0, 50, 5),
    ("restart_owns", 0, 30, 5),
    ("follower_local", 0, 20, 5),
    ("expire_locally", 0, 1200, 3),
    ("late_fail", 1020, 20, 1),  # The first that does.
    ("snapshot_no_sessions", 0, 2000, 3),
    ("state_not_durable", 0, 200, 4),
    ("checkpoint_ahead", 0, 400, 4),
    ("undecided_goes", 0, 200, 4),
    ("state_no_sessions", 0, 50, 5),
    ("state_no_members", 0, 800, 3),
    ("cut_below_commit", 0, 150, 3),
    ("check_joined", 0, 400, 3),
    ("snapshot_drops_tail", 0, 600, 3),
    ("snapshot_read_early", 0, 1000, 3),
    ("damaged_votes", 0, 600, 2),
    ("meta_as_data", 0, 400, 3),
    ("meta_early", 0, 600, 3),
    ("drop_previous", 0, 1000, 3),
    ("digest_unchecked", 0, 200, 3),
    ("expire_unwaited", 0, 400, 3),
    ("names_unsaid", 0, 1000, 3),
    ("wait_unlooked", 0, 20, 5),
    ("wait_early", 0, 40, 5),
    ("page_splits", 0, 60, 5),
    ("floor_ignored", 0, 60, 5),
    ("behind_restarts", 0, 40, 5),
    ("through_ignored", 0, 80, 4),
    ("hearsay_ignored", 0, 80, 4),
    ("removed_votes", 0, 60, 4),
    ("first_members", 0, 500, 3),
    ("config_swap", 0, 200, 4),
    ("config_two", 0, 200, 4),
    ("cut_keeps_members", 0, 200, 3),
    ("snapshot_no_members", 0, 100, 4),
    ("outsider_heard", 680, 20, 1),  # The first that does.
    ("hole_acked", 0, 2000, 2),  # Not by what clients see: what is acknowledged is not sent again, so the hole stays.
    ("repair_cuts", 0, 300, 2),
    ("promise_untold", 0, 1000, 3),
    ("wiped_returns", 0, 800, 3),
    ("rollback_unseen", 0, 150, 4),
    ("hello_unawaited", 0, 200, 3),
    ("mended_goes", 480, 20, 1),  # The first that does.
]

# The same at N = 5: what it takes is more members than three.
MUTATIONS_OF_FIVE = [
    ("taker_members", 0, 250, 2),
    ("config_early", 0, 200, 3),
]

# Without it, a PROMISE of b' shows a tail that was taken after a ballot above b' had been promised. A record of a
# ballot above b' exists only after a majority promised that ballot, so b' can no longer commit or confirm anything.
HARMLESS = ["promise_late_tail"]

# What the simulator does not bring about. docs/next.md says why.
UNSEEN_YET = ["snapshot_no_history", "collect_early"]

# What has to happen at all for "nothing was found" to mean anything.
HAPPENS = [
    "operations",
    "answered",
    "unknown",
    "duplicates",
    "owner_crashes",
    "whole_set",
    "partitions",
    "steals",
    "scripts",
    "restarts",
    "committed",
    "takeovers",
    "adoptions",
    "step_downs",
    "refusals",
    "cuts",
    "reconnects",
    "deduplicated",
    "evicted",
    "failures_recorded",
    "follower_reads",
    "expired",
    "offers",
    "snapshots",
    "installed",
    "exchanges",
    "configs",
    "questions",
    "pages",
    "compared",
    "resyncs",
    "waits",
    "waited",
    "fetched",
    "spoilt",
    "lacking",
    "collected",
    "settled",
    "states",
    "segments_moved",
    "segments_removed",
    "torn_removals",
    "checkpoints",
    "checkpoints_used",
    "checkpoints_refused",
    "opened_twice",
    "full_disks",
    "refused_full",
    "holes",
    "repaired",
    "restored",
    "rotten",
]

# The same for what only some seeds have.
HAPPENS_SELDOM = ["unreadable", "set_back", "to_find_out", "found_out"]


@pytest.fixture(autouse=True, scope="module")
def built() -> None:
    for flavour in ("plain", "asan", "tsan"):
        assert (ROOT / program(flavour)).exists(), f"{program(flavour)} is not built: run `make c-tests` first"


@pytest.mark.parametrize(("n", "count"), [(3, 1000), (5, 150)])
def test_seeds_find_nothing(n: int, count: int) -> None:
    """Whatever crashes, is lost or is late: replicas agree, and histories are linearizable."""
    found = simulate(n, 0, count)
    assert found.seed_count == count
    assert found.violation_count == 0, found.complaint()
    assert [name for name in HAPPENS if found.figures[name] < count // 10] == []
    assert [name for name in HAPPENS_SELDOM if found.figures[name] < count // 100] == []
    assert found.figures["found_out"] >= found.figures["to_find_out"]
    assert found.figures["undecided"] <= count // 10


@pytest.mark.parametrize(("mutation", "first", "count", "least"), MUTATIONS, ids=[row[0] for row in MUTATIONS])
def test_a_missing_rule_is_noticed(mutation: str, first: int, count: int, least: int) -> None:
    """The simulation itself: without the rule, seeds fail."""
    assert noticed(3, first, count, mutation, least) >= least


@pytest.mark.parametrize(
    ("mutation", "first", "count", "least"), MUTATIONS_OF_FIVE, ids=[row[0] for row in MUTATIONS_OF_FIVE]
)
def test_a_rule_that_takes_five_members_is_noticed_missing(mutation: str, first: int, count: int, least: int) -> None:
    """The same, with sets of five."""
    assert noticed(5, first, count, mutation, least) >= least


@pytest.mark.parametrize("mutation", HARMLESS + UNSEEN_YET)
def test_what_is_said_to_go_unseen_goes_unseen(mutation: str) -> None:
    """One that is noticed belongs into MUTATIONS."""
    assert simulate(3, 0, 200, mutation).violation_count == 0


def test_every_rule_that_can_be_left_out_is_looked_at() -> None:
    """By name, as the headers have them; and what goes unseen is written down."""
    headers = [ROOT / "native" / "include" / "kv" / "replica.h", ROOT / "native" / "sim" / "world.h"]
    text = "".join(header.read_text(encoding="utf-8") for header in headers)
    names = {name.lower() for name in re.findall(r"\b(?:KV|SIM)_MUTATE_([A-Z][A-Z_]*)\b", text)}
    listed = [row[0] for row in MUTATIONS + MUTATIONS_OF_FIVE] + HARMLESS + UNSEEN_YET
    assert sorted(names) == sorted(listed)
    half_done = (ROOT / "docs" / "next.md").read_text(encoding="utf-8")
    assert [name for name in UNSEEN_YET if f"`{name}`" not in half_done] == []


def test_a_seed_replays_exactly() -> None:
    """Byte for byte, with everything that happened."""
    first, second = (seeds.run([*command(5, 5, 1), "-v"]) for _ in range(2))
    assert first.count("\n") > 100
    assert first == second


def test_a_seed_does_not_depend_on_those_before_it() -> None:
    """So one that failed among many fails alone."""
    row = seeds.read(seeds.run(command(3, 0, 16)))
    alone = seeds.added(seeds.read(seeds.run(command(3, seed, 1))) for seed in range(16))
    assert row == alone


def test_a_violation_comes_with_the_command_that_replays_it() -> None:
    """Given as it stands, it finds the same again."""
    output = seeds.run([*command(3, 0, 500, "no_sessions"), "--stop"])
    found = seeds.read(output)
    [(seed, what)] = found.violations.items()
    assert f"replay: build/plain/simulate --n 3 --seeds {seed}:{seed + 1} -v" in found.complaint()
    again = seeds.run([*command(3, seed, 1, "no_sessions"), "--stop", "-v"])
    assert f"VIOLATION: {what}\n" in again
    assert seeds.read(again).violations == {seed: what}


@pytest.mark.parametrize(("flavour", "count"), [("asan", 24), ("tsan", 8)])
def test_sanitizers_see_the_same_and_have_nothing_to_say(flavour: str, count: int) -> None:
    """No bad access and no undefined step; and a verdict is none of the compiler's."""
    for n in (3, 5):
        watched = seeds.read(seeds.run(command(n, 0, count, flavour=flavour)))
        assert watched == seeds.read(seeds.run(command(n, 0, count)))


@pytest.mark.parametrize(
    "arguments",
    ["--n 4", "--n", "--seeds", "--seeds 5:5", "--seeds 9:3", "--mutate", "--mutate nonsense", "--seed 3", "3"],
)
def test_wrong_arguments_are_refused(arguments: str) -> None:
    """With exit code 2 and what is allowed; nothing runs."""
    result = subprocess.run(
        [program(), *arguments.split()], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 2
    assert result.stdout == ""
    for allowed in ("--n 3|5", "--seeds A:B", "--mutate NAME", "--stop", "-v"):
        assert allowed in result.stderr


def test_what_is_no_summary_is_an_error() -> None:
    """A simulator that dies is not taken for one that found nothing."""
    with pytest.raises(seeds.Broken):
        seeds.read("seed 3: something\n")
    with pytest.raises(seeds.Broken):
        seeds.run([program(), "--n", "4"])


def test_ranges_cover_every_seed_once() -> None:
    """However the seeds are cut to pieces."""
    for count in (1, 2, 7, 100):
        pieces = seeds.ranges(3, count, 4)
        assert [seed for first, size in pieces for seed in range(first, first + size)] == list(range(3, 3 + count))
        assert Found(3, count, 0, {}, {}) == seeds.added(Found(3, size, 0, {}, {}) for _, size in pieces)
