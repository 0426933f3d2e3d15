/* test_replica.c -- three replicas, and the whole of what they say to each other: each promise of the protocol as a
 * transcript (transcript.h). Those that begin with a `scenario` are drawn in docs/protocol/scenarios.md. */
#include "transcript.h"

TEST(transcript_nothing_is_said_before_the_log_is_durable) {
    bench *b = &world;
    begin(b, 3);
    kv_replica_free(b->node[2]);
    boot(b, 2);
    takeover(b, 1);
    durable(b, 1);
    pass(b, 1, 2);
    takeover(b, 2); /* Nor does it take anything over. */
    CHECK_EQ(b->mail_count[2][1], 0);
    lose(b, 1, 3);
    SAID(b, "1 durable\n"
            "1>2 PREPARE 1.1 s0 commit 0 last 0 of 0\n"
            "1>3 PREPARE 1.1 s0 commit 0 last 0 of 0 LOST\n");
    durable(b, 2);
    nothing_more(b);
    SAID(b, "2 durable\n");
    end(b);
}

TEST(transcript_a_takeover_is_one_round_trip) {
    bench *b = &world;
    begin(b, 3);
    takeover(b, 1);
    nothing_more(b); /* Its own promise comes first. */
    durable(b, 1);
    pass(b, 1, 2);
    CHECK_EQ(b->mail_count[2][1], 0);
    durable(b, 2);
    pass(b, 2, 1);
    pass(b, 1, 3);
    pass(b, 1, 2);
    pass(b, 1, 3);
    durable(b, 3);
    durable(b, 1);
    pass(b, 3, 1);
    pass(b, 3, 1);
    CHECK(state_of(b, 1, 0).owned);
    CHECK_EQ(state_of(b, 1, 0).commit, 1);
    CHECK_EQ(state_of(b, 2, 0).owner, 1);
    SAID(b, "1 durable\n"
            "1>2 PREPARE 1.1 s0 commit 0 last 0 of 0\n"
            "2 durable\n"
            "2>1 PROMISE 1.1 s0 commit 0 last 0 of 0\n"
            "1>3 PREPARE 1.1 s0 commit 0 last 0 of 0\n"
            "1>2 FLOW c1#1 s0 1.1 after 0 of 0 commit 0: barrier\n"
            "1>3 FLOW c1#1 s0 1.1 after 0 of 0 commit 0: barrier\n"
            "3 durable\n"
            "1 durable\n"
            "3>1 PROMISE 1.1 s0 commit 0 last 1 of 1.1 after 0: barrier\n"
            "3>1 ACK c1#1\n");
    end(b);
}

TEST(transcript_a_write_is_one_round_trip) {
    bench *b = &world;
    begin(b, 3);
    own(b, 1);
    scenario(b, "A write",
             "One round trip. The record goes to both peers while it goes to the own disk, and is answered once two of three "
             "disks have it. Peers hear that it is committed with whatever comes next.");
    ask(b, 1, put("a", "x"));
    pass(b, 1, 2);
    durable(b, 2);
    pass(b, 2, 1);
    SAID(b, "1>2 FLOW c1#3 s0 1.1 after 1 of 1.1 commit 1: put a\n"
            "2 durable\n"
            "2>1 ACK c1#3\n");
    durable(b, 1); /* Two of three, itself included. */
    SAID(b, "1 durable\n"
            "1 answers ok version 2\n");
    note(b, "The third was not needed.");
    lose(b, 1, 3); /* The third was not needed. */
    nothing_more(b);
    CHECK_EQ(state_of(b, 2, 0).commit, 1); /* It hears of the commit with what comes next. */
    ask(b, 1, put("b", "y"));
    pass(b, 1, 2);
    CHECK_EQ(state_of(b, 2, 0).applied, 2);
    SAID(b, "1>3 FLOW c1#3 s0 1.1 after 1 of 1.1 commit 1: put a LOST\n"
            "1>2 FLOW c1#4 s0 1.1 after 2 of 1.1 commit 2: put b\n");
    end(b);
}

TEST(transcript_two_others_commit_what_the_owner_has_not_on_its_disk) {
    bench *b = &world;
    begin(b, 3);
    own(b, 1);
    ask(b, 1, put("a", "x"));
    pass(b, 1, 2);
    pass(b, 1, 3);
    durable(b, 2);
    durable(b, 3);
    pass(b, 2, 1);
    CHECK_EQ(state_of(b, 1, 0).commit, 1);
    pass(b, 3, 1);
    CHECK_EQ(state_of(b, 1, 0).commit, 2);
    SAID(b, "1>2 FLOW c1#3 s0 1.1 after 1 of 1.1 commit 1: put a\n"
            "1>3 FLOW c1#3 s0 1.1 after 1 of 1.1 commit 1: put a\n"
            "2 durable\n"
            "3 durable\n"
            "2>1 ACK c1#3\n"
            "3>1 ACK c1#3\n"
            "1 answers ok version 2\n");
    end(b);
}

TEST(transcript_no_acknowledgement_before_the_disk) {
    bench *b = &world;
    begin(b, 3);
    own(b, 1);
    ask(b, 1, put("a", "x"));
    pass(b, 1, 2);
    tick(b, 2, 3);
    CHECK_EQ(b->mail_count[2][1], 0);
    durable(b, 2);
    CHECK_EQ(b->mail_count[2][1], 1);
    end(b);
}

TEST(transcript_an_acknowledgement_goes_as_far_as_the_disk_and_no_further) {
    bench *b = &world;
    begin(b, 3);
    own(b, 1);
    ask(b, 1, put("a", "x"));
    pass(b, 1, 2);
    uint64_t first = kv_replica_tail(b->node[2]);
    ask(b, 1, put("b", "y"));
    pass(b, 1, 2);
    kv_replica_durable(b->node[2], first); /* The disk was asked before the second came. */
    flush(b, 2);
    pass(b, 2, 1);
    nothing_more_from(b, 2);
    durable(b, 2);
    pass(b, 2, 1);
    SAID(b, "1>2 FLOW c1#3 s0 1.1 after 1 of 1.1 commit 1: put a\n"
            "1>2 FLOW c1#4 s0 1.1 after 2 of 1.1 commit 1: put b\n"
            "2>1 ACK c1#3\n"
            "2 durable\n"
            "2>1 ACK c1#4\n");
    end(b);
}

TEST(transcript_a_record_of_an_older_ballot_is_not_counted_by_itself) {
    bench *b = &world;
    begin_with(b, 3, (kv_replica_options){.shard_count = 1, .batch_max = 1});
    own(b, 1);
    ask(b, 1, put("a", "x"));
    pass(b, 1, 2);
    lose(b, 1, 3);
    durable(b, 2);
    lose(b, 2, 1);
    takeover(b, 2); /* It has what 3 has not. */
    durable(b, 2);
    lose(b, 2, 1);
    pass(b, 2, 3);
    durable(b, 3);
    pass(b, 3, 2);
    lose(b, 2, 1);
    forget_said(b);
    pass(b, 2, 3);
    durable(b, 2);
    pass(b, 3, 2);
    pass(b, 2, 3);
    durable(b, 3);
    pass(b, 3, 2);
    CHECK_EQ(state_of(b, 2, 0).commit, 1); /* Two of three hold version 2, and it may still be cut. */
    pass(b, 2, 3);
    durable(b, 3);
    pass(b, 3, 2);
    CHECK_EQ(state_of(b, 2, 0).commit, 3);
    SAID(b, "2>3 FLOW c1#1 s0 2.2 after 2 of 1.1 commit 1: barrier\n"
            "2 durable\n"
            "3>2 ACK c1#1 refused #1 s0 2.2: promised 2.2 last 1 commit 1\n"
            "2>3 FLOW c1#2 s0 2.2 after 1 of 1.1 commit 1: 1.1 put a\n"
            "3 durable\n"
            "3>2 ACK c1#2\n"
            "2>3 FLOW c1#3 s0 2.2 after 2 of 1.1 commit 1: barrier\n"
            "3 durable\n"
            "3>2 ACK c1#3\n");
    end(b);
}

TEST(transcript_a_hot_key_is_pipelined) {
    bench *b = &world;
    begin(b, 3);
    own(b, 1);
    scenario(b, "A hot key",
             "Each increment is evaluated on those before it, committed or not, so none waits for the round trip of another; "
             "and one fdatasync is enough for all that came before it.");
    for (int i = 0; i < 3; i++) ask(b, 1, with(about(KV_REQUEST_INCR, "n", NULL), 2));
    for (int i = 0; i < 3; i++) pass(b, 1, 2);
    durable(b, 1);
    durable(b, 2);
    pass(b, 2, 1);
    SAID(b, "1>2 FLOW c1#3 s0 1.1 after 1 of 1.1 commit 1: put n\n"
            "1>2 FLOW c1#4 s0 1.1 after 2 of 1.1 commit 1: put n\n"
            "1>2 FLOW c1#5 s0 1.1 after 3 of 1.1 commit 1: put n\n"
            "1 durable\n"
            "2 durable\n"
            "2>1 ACK c1#5\n"
            "1 answers ok version 2 number 2\n"
            "1 answers ok version 3 number 4\n"
            "1 answers ok version 4 number 6\n");
    end(b);
}

TEST(transcript_what_came_together_goes_in_one_message) {
    bench *b = &world;
    begin(b, 3);
    own(b, 1);
    scenario(b, "Writes that come together",
             "One message for each peer and one fdatasync for each replica, however many there are. A batch is one version.");
    for (int i = 0; i < 3; i++) ask_beside(b, 1, put(&"abc"[i], "x"));
    kv_operation all[] = {op(NULL, "{x}a", "1"), op("{x}t", "r", "2")};
    ask(b, 1, batch(all, 2));
    pass(b, 1, 2);
    durable(b, 1);
    durable(b, 2);
    pass(b, 2, 1);
    SAID(b, "1>2 FLOW c1#3 s0 1.1 after 1 of 1.1 commit 1: put abc, put bc, put c, put {x}a + row put r + table {x}t\n"
            "1 durable\n"
            "2 durable\n"
            "2>1 ACK c1#3\n"
            "1 answers ok version 2\n"
            "1 answers ok version 3\n"
            "1 answers ok version 4\n"
            "1 answers ok version 5\n");
    end(b);
}

TEST(transcript_a_takeover_adopts_what_one_other_holds) {
    bench *b = &world;
    begin(b, 3);
    own(b, 1);
    scenario(b, "A takeover after a crash, and a retry",
             "1 dies when its last write has come to 2 and to nobody else. 3 takes the shard over: 2 shows what 3 lacks, 3 adopts "
             "it, and opens its ballot with a barrier. The write of the older ballot commits with the barrier, not by itself.");
    ask(b, 1, by(put("a", "x"), 7, 1, 1, 0)); /* It reaches 2, and 1 dies before it hears so. */
    pass(b, 1, 2);
    lose(b, 1, 3);
    crash(b, 1);
    durable(b, 2);
    lose(b, 2, 1);
    forget_said(b);
    takeover(b, 3);
    durable(b, 3);
    lose(b, 3, 1);
    pass(b, 3, 2);
    durable(b, 2);
    pass(b, 2, 3);
    CHECK_EQ(kv_replica_count(b->node[3])->adoptions, 1);
    note(b, "The client has no answer from 1, and asks 3: it was executed, and is not again.");
    ask(b, 3, by(put("a", "x"), 7, 1, 2, 0)); /* The client comes again, here: it was executed. */
    lose(b, 3, 1);
    pass(b, 3, 2);
    durable(b, 3);
    CHECK_EQ(state_of(b, 3, 0).commit, 1); /* Nothing of an older ballot is counted by itself. */
    durable(b, 2);
    pass(b, 2, 3);
    SAID(b, "3 durable\n"
            "3>1 PREPARE 2.3 s0 commit 1 last 1 of 1.1 LOST\n"
            "3>2 PREPARE 2.3 s0 commit 1 last 1 of 1.1\n"
            "2 durable\n"
            "2>3 PROMISE 2.3 s0 commit 1 last 2 of 1.1 after 1: put a\n"
            "3>1 FLOW c1#1 s0 2.3 after 2 of 1.1 commit 1: barrier LOST\n"
            "3>2 FLOW c1#1 s0 2.3 after 2 of 1.1 commit 1: barrier\n"
            "3 durable\n"
            "2 durable\n"
            "2>3 ACK c1#1\n"
            "3 answers ok version 2\n");
    nothing_more(b);
    CHECK_EQ(kv_replica_count(b->node[3])->deduplicated, 1);
    scenario_end(b);
    restart(b, 1);
    VALUE(b, 3, get("a"), "x");
    end(b);
}

TEST(transcript_a_prepare_is_refused_and_comes_again_with_a_higher_round) {
    bench *b = &world;
    begin(b, 3);
    scenario(b, "Two replicas want the same shard",
             "Both use round 1. 3 gets the promise of 1 first, and 2 is refused; it comes again with a higher round. 3, which does "
             "not hear of that at once, believes that it owns the shard, and can commit nothing.");
    takeover(b, 3);
    durable(b, 3);
    lose(b, 3, 2); /* Who does not hear of it, and uses the same round. */
    pass(b, 3, 1);
    durable(b, 1);
    pass(b, 1, 3);
    forget_said(b);
    takeover(b, 2);
    durable(b, 2);
    lose(b, 2, 3);
    pass(b, 2, 1);
    pass(b, 1, 2);
    CHECK(!state_of(b, 2, 0).taking);
    takeover(b, 2);
    durable(b, 2);
    lose(b, 2, 3);
    pass(b, 2, 1);
    pass(b, 3, 1); /* The barrier of the one that was the owner comes too late. */
    durable(b, 1);
    pass(b, 1, 2);
    CHECK(state_of(b, 2, 0).owned);
    CHECK(state_of(b, 3, 0).owned); /* It does not know better, and can commit nothing. */
    pass(b, 1, 3);
    CHECK(!state_of(b, 3, 0).owned);
    SAID(b, "2 durable\n"
            "2>3 PREPARE 1.2 s0 commit 0 last 0 of 0 LOST\n"
            "2>1 PREPARE 1.2 s0 commit 0 last 0 of 0\n"
            "1>2 PROMISE 1.2 s0 refused, promised 1.3\n"
            "2 durable\n"
            "2>3 PREPARE 2.2 s0 commit 0 last 0 of 0 LOST\n"
            "2>1 PREPARE 2.2 s0 commit 0 last 0 of 0\n"
            "3>1 FLOW c1#1 s0 1.3 after 0 of 0 commit 0: barrier\n"
            "1 durable\n"
            "1>2 PROMISE 2.2 s0 commit 0 last 0 of 0\n"
            "1>3 ACK c1#1 refused #1 s0 1.3: promised 2.2 last 0 commit 0\n");
    end(b);
}

TEST(transcript_one_prepare_takes_any_number_of_shards) {
    bench *b = &world;
    begin_with(b, 3, (kv_replica_options){.shard_count = 2});
    takeover(b, 1);
    durable(b, 1);
    pass(b, 1, 2);
    durable(b, 2);
    pass(b, 2, 1);
    lose(b, 1, 3);
    pass(b, 1, 2);
    durable(b, 1);
    durable(b, 2);
    pass(b, 2, 1);
    CHECK_EQ(state_of(b, 1, 0).commit, 1);
    CHECK_EQ(state_of(b, 1, 1).commit, 1);
    SAID(b, "1 durable\n"
            "1>2 PREPARE 1.1 s0 commit 0 last 0 of 0 s1 commit 0 last 0 of 0\n"
            "2 durable\n"
            "2>1 PROMISE 1.1 s0 commit 0 last 0 of 0 s1 commit 0 last 0 of 0\n"
            "1>3 PREPARE 1.1 s0 commit 0 last 0 of 0 s1 commit 0 last 0 of 0 LOST\n"
            "1>2 FLOW c1#1 s0 1.1 after 0 of 0 commit 0: barrier s1 1.1 after 0 of 0 commit 0: barrier\n"
            "1 durable\n"
            "2 durable\n"
            "2>1 ACK c1#1\n");
    end(b);
}

TEST(transcript_a_gap_is_told_and_the_flow_goes_on_behind_what_is_there) {
    bench *b = &world;
    begin(b, 3);
    own_without_3(b);
    ask(b, 1, put("a", "x"));
    for (int i = 0; i < 2; i++) {
        pass(b, 1, 2);
        lose(b, 1, 3);
    }
    durable(b, 1);
    durable(b, 2);
    pass(b, 2, 1);
    scenario(b, "Catch-up by records",
             "3 was cut off from the beginning. What was sent to it counts as lost after a while; on a new connection it says "
             "where its log ends, and is sent what lies behind.");
    tick(b, 1, 8); /* No word of 3 for so long: another connection. */
    for (int i = 0; i < 2; i++) pass(b, 1, 2);
    lose(b, 1, 3);
    forget_said(b);
    pass(b, 1, 3);
    pass(b, 3, 1);
    pass(b, 1, 3);
    durable(b, 3);
    pass(b, 3, 1);
    SAID(b, "1>3 FLOW c2#1 s0 1.1 after 2 of 1.1 commit 2\n"
            "3>1 ACK c2#1 refused #1 s0 1.1: promised 1.1 last 0 commit 0\n"
            "1>3 FLOW c2#2 s0 1.1 after 0 of 0 commit 2: barrier, put a\n"
            "3 durable\n"
            "3>1 ACK c2#2\n");
    CHECK_EQ(state_of(b, 3, 0).applied, 2);
    end(b);
}

static void swap_mail(bench *b, uint32_t from, uint32_t to) {
    KV_ASSERT(b->mail_count[from][to] >= 2);
    frame first = b->mail[from][to][0];
    b->mail[from][to][0] = b->mail[from][to][1];
    b->mail[from][to][1] = first;
}

TEST(transcript_a_message_that_is_overtaken_is_sent_again) {
    bench *b = &world;
    begin(b, 3);
    own(b, 1);
    ask(b, 1, put("a", "x"));
    ask(b, 1, put("b", "y"));
    swap_mail(b, 1, 3);
    pass(b, 1, 3);
    pass(b, 3, 1); /* The cursor has not passed the refusal: it counts for nothing yet. */
    pass(b, 1, 3);
    durable(b, 3);
    pass(b, 3, 1);
    pass(b, 1, 3);
    SAID(b, "1>3 FLOW c1#4 s0 1.1 after 2 of 1.1 commit 1: put b\n"
            "3>1 ACK c1#2 refused #4 s0 1.1: promised 1.1 last 1 commit 1\n"
            "1>3 FLOW c1#3 s0 1.1 after 1 of 1.1 commit 1: put a\n"
            "3 durable\n"
            "3>1 ACK c1#4 refused #4 s0 1.1: promised 1.1 last 1 commit 1\n"
            "1>3 FLOW c1#5 s0 1.1 after 2 of 1.1 commit 1: put b\n");
    CHECK_EQ(state_of(b, 3, 0).last, 3);
    end(b);
}

TEST(transcript_a_message_that_comes_twice_changes_nothing) {
    bench *b = &world;
    begin(b, 3);
    own(b, 1);
    ask(b, 1, put("a", "x"));
    frame *first = &b->mail[1][2][0];
    KV_ASSERT(b->mail_count[1][2] == 1);
    b->mail[1][2][1] = (frame){.bytes = malloc(first->size), .size = first->size};
    memcpy(b->mail[1][2][1].bytes, first->bytes, first->size);
    b->mail_count[1][2]++;
    pass(b, 1, 2);
    uint64_t tail = kv_replica_tail(b->node[2]);
    pass(b, 1, 2);
    CHECK_EQ(kv_replica_tail(b->node[2]), tail);
    durable(b, 2);
    pass(b, 2, 1);
    durable(b, 1);
    lose(b, 1, 3);
    nothing_more(b);
    SAID(b, "1>2 FLOW c1#3 s0 1.1 after 1 of 1.1 commit 1: put a\n"
            "1>2 FLOW c1#3 s0 1.1 after 1 of 1.1 commit 1: put a\n"
            "2 durable\n"
            "2>1 ACK c1#3\n"
            "1 durable\n"
            "1 answers ok version 2\n"
            "1>3 FLOW c1#3 s0 1.1 after 1 of 1.1 commit 1: put a LOST\n");
    end(b);
}

TEST(transcript_a_tail_that_nobody_else_holds_is_cut) {
    bench *b = &world;
    begin(b, 3);
    own(b, 1);
    scenario(b, "A tail that is cut",
             "1 has a write that nobody else has, when 3 takes the shard over with 2. Committed it never was, and never will be: as "
             "1 comes back, the flow goes back to what 1 knows to be committed, and takes the place of its tail.");
    ask(b, 1, put("a", "lost"));
    lose(b, 1, 2);
    lose(b, 1, 3);
    durable(b, 1);
    takeover(b, 3);
    durable(b, 3);
    lose(b, 3, 1);
    pass(b, 3, 2);
    durable(b, 2);
    pass(b, 2, 3);
    ask(b, 3, put("b", "y"));
    for (int i = 0; i < 2; i++) {
        pass(b, 3, 2);
        lose(b, 3, 1);
    }
    durable(b, 3);
    durable(b, 2);
    pass(b, 2, 3);
    tick(b, 3, 8);
    lose(b, 3, 1);
    for (int i = 0; i < 2; i++) lose(b, 3, 2);
    forget_said(b);
    pass(b, 3, 1);
    pass(b, 1, 3);
    pass(b, 3, 1); /* Where its log seems to go on another one lies: so from what is committed on. */
    pass(b, 1, 3);
    pass(b, 3, 1);
    durable(b, 1);
    pass(b, 1, 3);
    SAID(b, "3>1 FLOW c2#1 s0 2.3 after 3 of 2.3 commit 3\n"
            "1 answers retry\n"
            "1>3 ACK c2#1 refused #1 s0 2.3: promised 2.3 last 2 commit 1\n"
            "3>1 FLOW c2#2 s0 2.3 after 2 of 2.3 commit 3: put b\n"
            "1>3 ACK c2#2 refused #2 s0 2.3: promised 2.3 last 2 commit 1\n" /* 3 knows of the first. */
            "3>1 FLOW c2#3 s0 2.3 after 1 of 1.1 commit 3: barrier, put b\n"
            "1 durable\n"
            "1>3 ACK c2#3\n");
    CHECK_EQ(kv_replica_count(b->node[1])->cuts, 1);
    CHECK_EQ(state_of(b, 1, 0).applied, 3);
    CHECK_EQ(kv_replica_digest(b->node[1], 0, 2), kv_replica_digest(b->node[3], 0, 2));
    scenario_end(b);
    own(b, 1);
    VALUE(b, 1, get("a"), "-");
    VALUE(b, 1, get("b"), "y");
    end(b);
}

TEST(transcript_a_read_waits_for_its_check) {
    bench *b = &world;
    begin(b, 3);
    own(b, 1);
    scenario(b, "Reads at the owner",
             "A read is answered when a majority, the owner among them, has said after the read came that it promised nothing "
             "higher. One check serves all reads that came before it was sent.");
    ask(b, 1, get("a"));
    pass(b, 1, 2);
    ask(b, 1, get("a")); /* Too late for this check: the next begins when it has its answer. */
    pass(b, 2, 1);
    pass(b, 1, 3);
    pass(b, 3, 1); /* Of the first one, for which nobody waits any more. */
    pass(b, 1, 3);
    pass(b, 3, 1);
    SAID(b, "1>2 CHECK s0 1.1\n"
            "2>1 CHECKED s0 1.1\n"
            "1 answers ok\n"
            "1>3 CHECK s0 1.1\n"
            "3>1 CHECKED s0 1.1\n"
            "1>3 CHECK s0 1.1\n"
            "3>1 CHECKED s0 1.1\n"
            "1 answers ok\n");
    end(b);
}

TEST(transcript_an_owner_that_was_replaced_answers_no_read) {
    bench *b = &world;
    begin(b, 3);
    own(b, 1);
    scenario(b, "A read at an owner that was replaced",
             "3 has taken the shard over with the promise of 2, and 1 has not heard so. Its check does.");
    takeover(b, 3);
    durable(b, 3);
    lose(b, 3, 1);
    pass(b, 3, 2);
    durable(b, 2);
    pass(b, 2, 3);
    lose(b, 3, 1);
    forget_said(b);
    ask(b, 1, get("a"));
    pass(b, 1, 2);
    pass(b, 2, 1);
    pass(b, 1, 3);
    pass(b, 3, 1);
    SAID(b, "1>2 CHECK s0 1.1\n"
            "2>1 CHECKED s0 2.3\n"
            "1>3 CHECK s0 1.1\n"
            "3>1 CHECKED s0 2.3\n");
    tick(b, 1, 10);
    SAID(b, "");
    tick(b, 1, 1);
    SAID(b, "1 answers retry\n");
    end(b);
}

TEST(transcript_a_read_at_another_replica) {
    bench *b = &world;
    begin(b, 3);
    own(b, 1);
    ask(b, 1, put("a", "x"));
    settle(b);
    forget_said(b);
    CHECK_EQ(state_of(b, 2, 0).applied, 1);
    scenario(b, "A read at a follower",
             "2 asks the owner up to where it has to have applied. The owner confirms that position like a read of its own. 2 "
             "answers once it has applied that much.");
    ask(b, 2, at_follower(get("a")));
    pass(b, 2, 1);
    pass(b, 1, 2);
    pass(b, 2, 1);
    pass(b, 1, 2);
    SAID(b, "2>1 ASK_POSITION s0 a\n"
            "1>2 CHECK s0 1.1\n"
            "2>1 CHECKED s0 1.1\n"
            "1>2 POSITION s0 2\n");
    tick(b, 1, 4); /* It waits until it has heard of the commit. */
    pass(b, 1, 2);
    SAID(b, "1>2 FLOW c1#4 s0 1.1 after 2 of 1.1 commit 2\n"
            "2 answers ok \"x\" version 2\n");
    CHECK_EQ(kv_replica_count(b->node[2])->follower_reads, 1);
    end(b);
}

TEST(transcript_a_position_is_refused_by_who_does_not_own) {
    bench *b = &world;
    begin(b, 3);
    own(b, 1);
    restart(b, 1);
    ask(b, 2, at_follower(get("a")));
    pass(b, 2, 1);
    pass(b, 1, 2);
    SAID(b, "2>1 ASK_POSITION s0 a\n"
            "1>2 POSITION s0 refused\n"
            "2 answers retry\n");
    end(b);
}

TEST(a_stale_read_says_how_far_behind_it_is) {
    bench *b = &world;
    begin(b, 3);
    own(b, 1);
    TOLD(b, 1, put("a", "x"), KV_ANSWER_OK, 2, 0);
    ask(b, 2, stale(get("a")));
    SAID(b, "2 answers ok\n"); /* Of the commit it has not heard. */
    heartbeat(b);
    forget_said(b);
    ask(b, 2, stale(get("a")));
    SAID(b, "2 answers ok \"x\" version 2\n");
    end(b);
}

TEST(transcript_who_was_away_for_too_long_gets_a_snapshot) {
    bench *b = &world;
    begin_with(b, 3, (kv_replica_options){.shard_count = 1, .keep_max = 2});
    own_without_3(b);
    for (int i = 0; i < 4; i++) {
        ask(b, 1, by(put("a", "x"), 7, (uint64_t)i + 1, 1, 0));
        durable(b, 1);
    }
    for (int i = 0; i < 5; i++) {
        pass(b, 1, 2);
        lose(b, 1, 3);
    }
    durable(b, 2);
    pass(b, 2, 1);
    scenario(b, "Catch-up by a snapshot",
             "As before, but what 3 lacks is no longer held as records. It is sent the shard, in pieces (here one), and goes on from "
             "there.");
    tick(b, 1, 8);
    CHECK_EQ(state_of(b, 1, 0).base, 3);
    lose(b, 1, 3);
    forget_said(b);
    pass(b, 1, 3);
    pass(b, 3, 1);
    pass(b, 1, 3);
    CHECK_EQ(state_of(b, 3, 0).applied, 5);
    CHECK_EQ(state_of(b, 3, 0).base, 5);
    durable(b, 3);
    pass(b, 3, 1);
    SAID(b, "1>3 FLOW c2#1 s0 1.1 after 5 of 1.1 commit 5\n"
            "3>1 ACK c2#1 refused #1 s0 1.1: promised 1.1 last 0 commit 0\n"
            "1>3 FLOW c2#2 s0 1.1 snapshot of 5 piece 0 v5 put a of 1 until 5 forgotten 0 lanes 1\n"
            "3 durable\n"
            "3>1 ACK c2#2\n");
    end(b);
}

TEST(a_restarted_owner_owns_nothing_and_its_last_write_is_kept) {
    bench *b = &world;
    begin(b, 3);
    own(b, 1);
    TOLD(b, 1, put("a", "x"), KV_ANSWER_OK, 2, 0);
    restart(b, 1);
    CHECK(!state_of(b, 1, 0).owned);
    own(b, 2);
    CHECK_EQ(state_of(b, 2, 0).owner, 2);
    VALUE(b, 2, get("a"), "x");
    VALUE(b, 1, at_follower(get("a")), "x");
    VALUE(b, 3, at_follower(get("a")), "x");
    for (uint64_t version = 1; version <= 3; version++)
        for (uint32_t n = 1; n <= 2; n++)
            CHECK(kv_replica_digest(b->node[n], 0, version) == kv_replica_digest(b->node[3], 0, version));
    end(b);
}

TEST(transcript_a_failed_condition_of_a_later_attempt_is_a_record) {
    bench *b = &world;
    begin(b, 3);
    own(b, 1);
    ask(b, 1, by(with(about(KV_REQUEST_CAS, "a", "x"), 9), 7, 1, 1, 0)); /* A first one is answered like a read. */
    pass(b, 1, 2);
    pass(b, 2, 1);
    lose(b, 1, 3);
    ask(b, 1, by(with(about(KV_REQUEST_CAS, "a", "x"), 9), 7, 1, 2, 0));
    pass(b, 1, 2);
    durable(b, 1);
    durable(b, 2);
    pass(b, 2, 1);
    SAID(b, "1>2 CHECK s0 1.1\n"
            "2>1 CHECKED s0 1.1\n"
            "1 answers failed (version conflict)\n"
            "1>3 CHECK s0 1.1 LOST\n"
            "1>2 FLOW c1#3 s0 1.1 after 1 of 1.1 commit 1: failed\n"
            "1 durable\n"
            "2 durable\n"
            "2>1 ACK c1#3\n"
            "1 answers failed (version conflict)\n");
    settle(b);
    own(b, 3);
    TOLD(b, 3, by(with(about(KV_REQUEST_CAS, "a", "x"), 0), 7, 1, 3, 0), KV_ANSWER_FAILED, 0, 0); /* As it was told before. */
    end(b);
}

TEST(who_was_forgotten_is_told_so) {
    bench *b = &world;
    begin_with(b, 3, (kv_replica_options){.shard_count = 1, .session_max = 1});
    own(b, 1);
    TOLD(b, 1, by(put("a", "1"), 71, 1, 1, 0), KV_ANSWER_OK, 2, 0);
    TOLD(b, 1, by(put("a", "2"), 72, 1, 1, 0), KV_ANSWER_OK, 3, 0); /* There is room for one. */
    TOLD(b, 1, by(put("a", "1"), 71, 1, 2, 0), KV_ANSWER_UNKNOWN, 0, 0);
    TOLD(b, 1, by(put("a", "3"), 73, 1, 1, 0), KV_ANSWER_SEEN, 3, 0);
    TOLD(b, 1, by(put("a", "3"), 73, 1, 2, 3), KV_ANSWER_OK, 4, 0);
    heartbeat(b);
    own(b, 2); /* Who agrees on who is remembered. */
    TOLD(b, 2, by(put("a", "2"), 72, 1, 3, 0), KV_ANSWER_UNKNOWN, 0, 0);
    TOLD(b, 2, by(put("a", "3"), 73, 1, 3, 3), KV_ANSWER_OK, 4, 0);
    TOLD(b, 2, by(put("a", "4"), 74, 1, 1, 2), KV_ANSWER_SEEN, 5, 0);
    VALUE(b, 2, get("a"), "3");
    end(b);
}

TEST(transcript_only_the_owner_ends_what_has_expired) {
    bench *b = &world;
    begin(b, 3);
    own(b, 1);
    TOLD(b, 1, expiring(put("k", "v"), 1000), KV_ANSWER_OK, 2, 0);
    heartbeat(b);
    for (uint32_t n = 1; n <= 3; n++) kv_sim_set_clock(b->disk[n], START_MS + 5000);
    forget_said(b);
    scenario(b, "Expiry",
             "The time of k is over on every clock. Only the owner does something about it, and that is a delete like any other, "
             "committed before it answers that k is gone.");
    ask(b, 2, stale(get("k")));
    SAID(b, "2 answers ok \"v\" version 2\n");
    ask(b, 1, get("k"));
    pass(b, 1, 2);
    pass(b, 2, 1); /* It is the owner; what it is to answer is not committed yet. */
    pass(b, 1, 2);
    durable(b, 1);
    durable(b, 2);
    pass(b, 2, 1);
    CHECK_EQ(kv_replica_count(b->node[1])->expired, 1);
    CHECK_EQ(kv_replica_count(b->node[2])->expired, 0);
    SAID(b, "1>2 CHECK s0 1.1\n"
            "2>1 CHECKED s0 1.1\n"
            "1>2 FLOW c1#5 s0 1.1 after 2 of 1.1 commit 2: delete k (expired)\n"
            "1 durable\n"
            "2 durable\n"
            "2>1 ACK c1#5\n"
            "1 answers ok\n");
    end(b);
}

TEST(transcript_an_offer_gives_a_shard_back) {
    bench *b = &world;
    begin_with(b, 3, (kv_replica_options){.shard_count = 1, .policy = 1, .hold_ticks = 17, .healthy_ticks = 4, .silence_ticks = 9});
    CHECK_EQ(kv_owner_rank(b->options.members, 3, 0, 3), 0); /* 3 should have it. */
    own(b, 1);
    for (int i = 0; i < 3; i++) heartbeat(b); /* They hear of each other that they are heard, and by whom. */
    forget_said(b);
    scenario(b, "An offer",
             "3 is the preferred owner of the shard and has been there for a while. 1 offers it: from there on it is a takeover "
             "like any other, and 1 goes on as owner until it promises.");
    tick(b, 1, 1);
    pass(b, 1, 3);
    durable(b, 3);
    pass(b, 3, 1);
    CHECK(!state_of(b, 1, 0).owned);
    durable(b, 1);
    pass(b, 1, 3);
    lose(b, 3, 2);
    pass(b, 3, 1);
    durable(b, 3);
    durable(b, 1);
    pass(b, 1, 3);
    lose(b, 3, 2);
    nothing_more(b);
    CHECK_EQ(state_of(b, 3, 0).commit, 2);
    SAID(b, "1>3 OFFER s0\n"
            "3 durable\n"
            "3>1 PREPARE 2.3 s0 commit 1 last 1 of 1.1\n"
            "1 durable\n"
            "1>3 PROMISE 2.3 s0 commit 1 last 1 of 1.1\n"
            "3>2 PREPARE 2.3 s0 commit 1 last 1 of 1.1 LOST\n"
            "3>1 FLOW c1#1 s0 2.3 after 1 of 1.1 commit 1: barrier\n"
            "3 durable\n"
            "1 durable\n"
            "1>3 ACK c1#1\n"
            "3>2 FLOW c1#1 s0 2.3 after 1 of 1.1 commit 1: barrier LOST\n");
    end(b);
}

TEST(a_damaged_replica_follows_and_does_not_vote) {
    bench *b = &world;
    begin(b, 3);
    kv_replica_free(b->node[3]);
    b->options.damaged = 1;
    boot(b, 3);
    b->options.damaged = 0;
    sync_node(b, 3);
    takeover(b, 3);
    nothing_more(b);
    takeover(b, 1);
    durable(b, 1);
    pass(b, 1, 3);
    durable(b, 3);
    CHECK_EQ(b->mail_count[3][1], 0); /* No promise. */
    own(b, 1);
    ask(b, 1, put("a", "x"));
    lose(b, 1, 2);
    pass(b, 1, 3);
    durable(b, 1);
    durable(b, 3);
    pass(b, 3, 1);
    SAID(b, "1>2 FLOW c1#3 s0 1.1 after 1 of 1.1 commit 1: put a LOST\n"
            "1>3 FLOW c1#3 s0 1.1 after 1 of 1.1 commit 1: put a\n"
            "1 durable\n"
            "3 durable\n"
            "3>1 ACK c1#3 no vote\n");
    CHECK_EQ(state_of(b, 1, 0).commit, 1);
    CHECK_EQ(state_of(b, 3, 0).last, 2);
    end(b);
}

int main(int count, char **words) {
    telling = count == 2 && strcmp(words[1], "--tell") == 0;
    RUN(transcript_nothing_is_said_before_the_log_is_durable);
    RUN(transcript_a_takeover_is_one_round_trip);
    RUN(transcript_a_write_is_one_round_trip);
    RUN(transcript_two_others_commit_what_the_owner_has_not_on_its_disk);
    RUN(transcript_no_acknowledgement_before_the_disk);
    RUN(transcript_an_acknowledgement_goes_as_far_as_the_disk_and_no_further);
    RUN(transcript_a_record_of_an_older_ballot_is_not_counted_by_itself);
    RUN(transcript_a_hot_key_is_pipelined);
    RUN(transcript_what_came_together_goes_in_one_message);
    RUN(transcript_a_takeover_adopts_what_one_other_holds);
    RUN(transcript_a_prepare_is_refused_and_comes_again_with_a_higher_round);
    RUN(transcript_one_prepare_takes_any_number_of_shards);
    RUN(transcript_a_gap_is_told_and_the_flow_goes_on_behind_what_is_there);
    RUN(transcript_a_message_that_is_overtaken_is_sent_again);
    RUN(transcript_a_message_that_comes_twice_changes_nothing);
    RUN(transcript_a_tail_that_nobody_else_holds_is_cut);
    RUN(transcript_a_read_waits_for_its_check);
    RUN(transcript_an_owner_that_was_replaced_answers_no_read);
    RUN(transcript_a_read_at_another_replica);
    RUN(transcript_a_position_is_refused_by_who_does_not_own);
    RUN(a_stale_read_says_how_far_behind_it_is);
    RUN(transcript_who_was_away_for_too_long_gets_a_snapshot);
    RUN(a_restarted_owner_owns_nothing_and_its_last_write_is_kept);
    RUN(transcript_a_failed_condition_of_a_later_attempt_is_a_record);
    RUN(who_was_forgotten_is_told_so);
    RUN(transcript_only_the_owner_ends_what_has_expired);
    RUN(transcript_an_offer_gives_a_shard_back);
    RUN(a_damaged_replica_follows_and_does_not_vote);
    return check_report();
}
