"""Rules that can be left out by name. Each guards something, so the simulator must notice when it is gone.

A rule whose mutation no seed notices is either needless or not tested. Two are known not to be noticed,
`promise_late_tail` and `hole_acked`; docs/protocol/ says why.
"""

from __future__ import annotations

MUTATIONS: dict[str, str] = {
    # Voting, and what is durable when
    "ack_before_fsync": "a peer acknowledges before its fdatasync",
    "promise_not_durable": "PROMISE is answered before its fdatasync",
    "round_reused": "the own PROMISE is not logged, so a restart may use the round again",
    "self_before_fsync": "the owner counts itself before its own fdatasync",
    "restart_owns": "a restarted replica still owns what it had promised itself",
    "count_older": "records of older ballots are counted for commit",
    # The version log
    "no_prev_check": "prev_ballot is not compared",
    "cut_below_commit": "an APPEND at or below commit may cut",
    "cut_always": "an APPEND cuts what follows it even when it is the same record",
    "commit_unverified": "a follower takes the commit position without the matching prefix",
    "ack_own_last": "an ack vouches for the peer's last version, not for what was accepted",
    "old_acks": "cursors of an earlier connection are counted for the present one",
    "longest_tail": "takeover adopts the longest tail instead of the highest last ballot",
    "promise_late_tail": "PROMISE shows a tail taken after a still higher ballot came in",
    "snapshot_drops_tail": "a snapshot is installed whatever commit and tail are here",
    # Reads
    "read_before_barrier": "reads are answered before the barrier is committed",
    "read_no_check": "owner reads skip the majority ownership check",
    "check_joined": "a read joins an ownership check that is already under way",
    "follower_local": "a follower answers at its own applied position",
    # Retries
    "no_sessions": "no session table",
    "fail_unrecorded": "a failed condition of a later attempt leaves no record",
    "late_fail": "the client believes the failure of an attempt that it has repeated",
    "fail_no_wait": "a failed condition is answered from the overlay at once",
    "evict_blind": "a request without session entry is executed whatever it has seen",
    # Data
    "meta_as_data": "under `data` a record is accepted without its bytes",
    "meta_early": "a META record leaves its origin before its bytes are durable there",
    "drop_previous": "bytes of the version before are dropped at once",
    "snapshot_no_history": "a snapshot leaves out the versions kept behind the newest",
    # Expiry
    "expire_by_reader": "whoever answers a read takes what has expired by its own clock for absent",
    "expire_unwaited": "the owner answers absent before its delete is committed",
    # Tables
    "changes_ahead": "changes are answered with rows that are not applied yet",
    "page_splits": "a page of changes may end within a version",
    "floor_ignored": "changes below the floor are called complete",
    "through_ignored": "a consumer that is told there is no more takes its copy for exact",
    # Members
    "config_swap": "one CONFIG record removes a member and adds another",
    "config_two": "the next CONFIG record does not wait until the one before is committed",
    "config_early": "a CONFIG record is appended before a record of the own ballot is committed",
    "removed_votes": "promises, acks and checks of replicas that are no members are counted",
    # Damage and disks that went backwards
    "damaged_votes": "a replica takes a damaged record for the end of its log and keeps voting",
    "hole_acked": "an ack vouches for what is behind a damaged record",
    "repair_cuts": "a record fetched back is logged like any other, which cuts what follows it at replay",
    "wiped_returns": "a wiped disk returns under its old node id",
    "hello_unawaited": "a restarted replica votes before all others have answered HELLO",
    "rollback_unseen": "HELLO compares nothing",
}
