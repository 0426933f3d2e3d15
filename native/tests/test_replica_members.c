/* test_replica_members.c -- the members of a shard change: transcripts, as transcript.h has them, and what is refused. */
#include "transcript.h"


static uint64_t change(bench *b, uint32_t n, uint16_t add, uint16_t remove) {
    kv_member_change c = {.token = ++b->token, .add = add, .remove = remove};
    if (add != 0) tell(b, "client>%u add %u\n", n, add);
    else tell(b, "client>%u remove %u\n", n, remove);
    kv_replica_member_change(b->node[n], &c);
    flush(b, n);
    return c.token;
}

static void check_changed(bench *b, uint32_t n, uint16_t add, uint16_t remove, int32_t status, int line) {
    uint64_t token = change(b, n, add, remove);
    settle(b);
    heartbeat(b);
    forget_said(b);
    if (b->answers[token].there && b->answers[token].reply.status == status) return;
    check_failed_here = 1;
    printf("%s:%d: answered %d, status %d (%s)\n", __FILE__, line, b->answers[token].there, b->answers[token].reply.status,
           kv_status_name(b->answers[token].reply.error));
}
#define CHANGED(b, n, add, remove, status) check_changed(b, n, add, remove, status, __LINE__)

static void check_members(const bench *b, uint32_t n, const char *expected, int line) {
    kv_shard_state state = state_of(b, n, 0);
    char text[64] = "";
    for (uint32_t i = 0, at = 0; i < state.member_count; i++) at += (uint32_t)snprintf(text + at, sizeof text - at, "%u", state.members[i]);
    if (strcmp(text, expected) == 0) return;
    check_failed_here = 1;
    printf("%s:%d: replica %u has members %s, not %s\n", __FILE__, line, n, text, expected);
}
#define MEMBERS(b, n, expected) check_members(b, n, expected, __LINE__)

/* All that lies ready for it, and from it, is lost. */
static void cut_off(bench *b, uint32_t n) {
    for (uint32_t i = 1; i <= b->count; i++) {
        while (b->mail_count[i][n] != 0) free(mail_take(b, i, n).bytes);
        while (b->mail_count[n][i] != 0) free(mail_take(b, n, i).bytes);
    }
}

static void lose_between(bench *b, uint32_t from, uint32_t to) {
    while (b->mail_count[from][to] != 0) free(mail_take(b, from, to).bytes);
    while (b->mail_count[to][from] != 0) free(mail_take(b, to, from).bytes);
}

/* All messages arrive but those of one, and its. */
static void settle_without(bench *b, uint32_t n) {
    for (bool moved = true; moved;) {
        moved = false;
        cut_off(b, n);
        for (uint32_t i = 1; i <= b->count; i++) {
            bool behind = i != n && kv_replica_tail(b->node[i]) > kv_position_order(kv_flow_durable(kv_replica_flow(b->node[i])));
            if (behind) sync_node(b, i);
            for (uint32_t j = 1; j <= b->count; j++)
                for (; b->mail_count[i][j] != 0 && i != n && j != n; moved = true) pass(b, i, j);
        }
    }
}

/* 1 owns a key, and 4 follows. */
static void begin_with_learner(bench *b) {
    begin(b, 3);
    own(b, 1);
    TOLD(b, 1, put("a", "x"), KV_ANSWER_OK, 2, 0);
    CHECK_EQ(join(b), 4);
    for (int i = 0; i < 2; i++) heartbeat(b); /* What it lacks is told by a refusal. */
    forget_said(b);
    CHECK_EQ(state_of(b, 4, 0).applied, 2);
}

/* 4 for 3, which hears nothing of it. */
static void exchange_without_3(bench *b) {
    change(b, 1, 0, 3);
    settle_without(b, 3);
    change(b, 1, 4, 0);
    settle_without(b, 3);
    for (uint32_t n = 1; n <= b->count; n++)
        if (n != 3) tick(b, n, b->options.heartbeat_ticks);
    settle_without(b, 3);
    forget_said(b);
    MEMBERS(b, 1, "124");
    MEMBERS(b, 2, "124");
    MEMBERS(b, 3, "123");
    MEMBERS(b, 4, "124");
}

TEST(transcript_a_member_is_exchanged) {
    bench *b = &world;
    begin_with_learner(b);
    scenario(b, "One member for another", "Replica 4 has joined and follows. 3 is removed, and then 4 is added.");
    change(b, 1, 0, 3);
    change(b, 1, 4, 0);
    note(b, "The second change waits for the first; whoever wants it asks again.");
    for (uint32_t n = 2; n <= 4; n++) pass(b, 1, n);
    durable(b, 1);
    durable(b, 3);
    pass(b, 3, 1);
    note(b, "3 does not count any more; both of the others have to.");
    durable(b, 2);
    pass(b, 2, 1);
    change(b, 1, 4, 0);
    for (uint32_t n = 2; n <= 4; n++) pass(b, 1, n);
    durable(b, 1);
    durable(b, 4);
    pass(b, 4, 1);
    SAID(b, "1 answers retry\n"
            "1>2 FLOW c1#6 s0 1.1 after 2 of 1.1 commit 2: members 1 2\n"
            "1>3 FLOW c1#6 s0 1.1 after 2 of 1.1 commit 2: members 1 2\n"
            "1>4 FLOW c1#4 s0 1.1 after 2 of 1.1 commit 2: members 1 2\n"
            "1 durable\n"
            "3 durable\n"
            "3>1 ACK c1#6\n"
            "2 durable\n"
            "2>1 ACK c1#6\n"
            "1 answers ok version 3\n"
            "1>2 FLOW c1#7 s0 1.1 after 3 of 1.1 commit 3: members 1 2 4\n"
            "1>3 FLOW c1#7 s0 1.1 after 3 of 1.1 commit 3: members 1 2 4\n"
            "1>4 FLOW c1#5 s0 1.1 after 3 of 1.1 commit 3: members 1 2 4\n"
            "1 durable\n"
            "4 durable\n"
            "4>1 ACK c1#5\n"
            "1 answers ok version 4\n");
    scenario_end(b);
    settle(b);
    heartbeat(b);
    for (uint32_t n = 1; n <= 4; n++) MEMBERS(b, n, "124");
    CHECK(!state_of(b, 3, 0).member);
    CHECK_EQ(state_of(b, 3, 0).applied, 4); /* It goes on to learn. */
    end(b);
}

TEST(transcript_a_removed_member_asks_for_votes) {
    bench *b = &world;
    begin_with_learner(b);
    exchange_without_3(b);
    scenario(b, "A removed member asks for votes", "3 was removed and has not heard of it. Who knows so gives it nothing, and goes on.");
    takeover(b, 3);
    durable(b, 3);
    for (uint32_t n = 1; n <= 4; n++)
        if (n != 3) pass(b, 3, n);
    for (uint32_t n = 1; n <= 4; n++)
        if (n != 3) pass(b, n, 3);
    CHECK(state_of(b, 1, 0).owned);
    CHECK_EQ(kv_replica_count(b->node[3])->outsiders, 1);
    ask(b, 1, put("a", "y"));
    settle_without(b, 3);
    SAID(b, "3 durable\n"
            "3>1 PREPARE 2.3 s0 commit 2 last 2 of 1.1\n"
            "3>2 PREPARE 2.3 s0 commit 2 last 2 of 1.1\n"
            "3>4 PREPARE 2.3 s0 commit 2 last 2 of 1.1\n"
            "1>3 PROMISE 2.3 s0 you are no member\n"
            "2>3 PROMISE 2.3 s0 you are no member\n"
            "4>3 PROMISE 2.3 s0 you are no member\n"
            "1>2 FLOW c1#9 s0 1.1 after 4 of 1.1 commit 4: put a\n"
            "1>4 FLOW c1#7 s0 1.1 after 4 of 1.1 commit 4: put a\n"
            "2>1 ACK c1#9\n"
            "1 answers ok version 5\n"
            "4>1 ACK c1#7\n");
    scenario_end(b);
    end(b);
}

/* The same, and nobody refuses: with the answers it has to give up. */
TEST(with_promises_a_removed_member_gives_up) {
    bench *b = &world;
    begin_with_learner(b);
    exchange_without_3(b);
    b->options.mutations = (uint64_t)1 << KV_MUTATE_OUTSIDER_HEARD;
    restart(b, 2);
    restart(b, 4);
    takeover(b, 3);
    settle_without(b, 1);
    heartbeat(b);
    CHECK(!state_of(b, 3, 0).owned && !state_of(b, 3, 0).taking);
    CHECK_EQ(kv_replica_count(b->node[3])->outsiders, 1);
    end(b);
}

TEST(transcript_a_taker_with_an_old_configuration) {
    bench *b = &world;
    begin_with_learner(b);
    change(b, 1, 0, 3);
    settle(b);
    heartbeat(b);
    change(b, 1, 4, 0);
    settle_without(b, 2);
    MEMBERS(b, 2, "12");
    MEMBERS(b, 4, "124");
    forget_said(b);
    scenario(b, "A taker with old members", "2 knows of members 1 and 2, and 1 is gone. 4 shows a tail in which it is a member: 2 and 4 are a majority.");
    crash(b, 1);
    takeover(b, 2);
    durable(b, 2);
    lose(b, 2, 1);
    pass(b, 2, 3);
    durable(b, 3);
    pass(b, 3, 2);
    CHECK(!state_of(b, 2, 0).owned); /* Among those it knows of there is no majority, and 3 is none of them. */
    pass(b, 2, 4);
    durable(b, 4);
    pass(b, 4, 2);
    CHECK(state_of(b, 2, 0).owned);
    MEMBERS(b, 2, "124");
    SAID(b, "2 durable\n"
            "2>1 PREPARE 2.2 s0 commit 3 last 3 of 1.1 LOST\n"
            "2>3 PREPARE 2.2 s0 commit 3 last 3 of 1.1\n"
            "3 durable\n"
            "3>2 PROMISE 2.2 s0 commit 3 last 4 of 1.1 members 1 2 4 after 3: members 1 2 4\n"
            "2>4 PREPARE 2.2 s0 commit 3 last 3 of 1.1\n"
            "4 durable\n"
            "4>2 PROMISE 2.2 s0 commit 3 last 4 of 1.1 members 1 2 4 after 3: members 1 2 4\n");
    scenario_end(b);
    restart(b, 1);
    settle(b);
    heartbeat(b);
    VALUE(b, 2, get("a"), "x");
    end(b);
}

TEST(a_cut_takes_the_members_back) {
    bench *b = &world;
    begin_with_learner(b);
    change(b, 1, 0, 3);
    sync_node(b, 1);
    MEMBERS(b, 1, "12");
    cut_off(b, 1);
    takeover(b, 2);
    settle_without(b, 1);
    CHECK(state_of(b, 2, 0).owned);
    heartbeat(b);
    heartbeat(b);
    MEMBERS(b, 1, "123");
    CHECK_EQ(state_of(b, 1, 0).applied, state_of(b, 2, 0).applied);
    restart(b, 1);
    MEMBERS(b, 1, "123");
    end(b);
}

TEST(a_learner_is_not_counted) {
    bench *b = &world;
    begin_with_learner(b);
    uint64_t write = ask(b, 1, put("a", "y")), reading = ask(b, 1, get("a"));
    for (int i = 0; i < 20; i++) {
        sync_node(b, 1);
        while (b->mail_count[1][4] != 0) pass(b, 1, 4);
        sync_node(b, 4);
        while (b->mail_count[4][1] != 0) pass(b, 4, 1);
        for (uint32_t n = 2; n <= 3; n++) cut_off(b, n);
    }
    CHECK_EQ(state_of(b, 4, 0).last, 3);
    CHECK_EQ(state_of(b, 1, 0).commit, 2);
    CHECK(!b->answers[write].there && !b->answers[reading].there);
    tick(b, 1, 11);
    CHECK_EQ(b->answers[reading].reply.status, KV_ANSWER_RETRY);
    takeover(b, 4);
    CHECK(!state_of(b, 4, 0).taking);
    VALUE(b, 4, stale(get("a")), "x");
    end(b);
}

TEST(members_survive_a_restart_and_a_snapshot) {
    bench *b = &world;
    begin_with(b, 3, (kv_replica_options){.shard_count = 1, .keep_max = 2});
    own(b, 1);
    CHECK_EQ(join(b), 4);
    for (int i = 0; i < 2; i++) heartbeat(b);
    exchange_without_3(b);
    for (uint64_t i = 0; i < 8; i++) {
        ask(b, 1, put("a", "y"));
        settle_without(b, 3);
        tick(b, 1, 1); /* What is old is let go of. */
    }
    for (uint32_t n = 2; n <= 4; n++) restart(b, n);
    MEMBERS(b, 2, "124");
    MEMBERS(b, 3, "123");
    MEMBERS(b, 4, "124");
    for (int i = 0; i < 4; i++) heartbeat(b);
    CHECK_EQ(state_of(b, 3, 0).last, state_of(b, 1, 0).last);
    CHECK(kv_replica_count(b->node[3])->installed > 0);
    MEMBERS(b, 3, "124");
    for (uint32_t n = 1; n <= 4; n++) restart(b, n);
    for (uint32_t n = 1; n <= 4; n++) MEMBERS(b, n, "124");
    end(b);
}

/* Ticks for all, and all messages but those of one. */
static void live_on(bench *b, uint32_t without, int ticks) {
    for (int i = 0; i < ticks; i++) {
        for (uint32_t n = 1; n <= b->count; n++) tick(b, n, 1);
        if (without != 0) settle_without(b, without);
        else settle(b);
        forget_said(b);
    }
}

static uint32_t owner(const bench *b) {
    for (uint32_t n = 1; n <= b->count; n++)
        if (state_of(b, n, 0).owned) return n;
    return 0;
}

/* By the policy alone; `old` is cut off, exchanged for 4, and, unless it minds that it hears no majority, tries to take over
 * all the time. */
static uint32_t exchange_by_policy(bench *b, bool minds) {
    uint64_t mutations = minds ? 0 : (uint64_t)1 << KV_MUTATE_HEARSAY_IGNORED;
    begin_with(b, 3, (kv_replica_options){.shard_count = 1, .policy = true, .mutations = mutations});
    live_on(b, 0, 60);
    uint32_t first = owner(b), old = first % 3 + 1;
    CHECK(first != 0);
    CHECK_EQ(join(b), 4);
    live_on(b, 0, 8);
    uint64_t tried = kv_replica_count(b->node[old])->takeovers;
    change(b, first, 0, (uint16_t)old);
    live_on(b, old, 1);
    change(b, first, 4, 0);
    live_on(b, old, 200);
    CHECK(!state_of(b, old, 0).owned && state_of(b, old, 0).member);
    if (minds) CHECK_EQ(kv_replica_count(b->node[old])->takeovers, tried);
    else CHECK(kv_replica_count(b->node[old])->takeovers > tried + 3);
    CHECK_EQ(kv_owner_rank(state_of(b, 4, 0).members, 3, 0, (uint16_t)owner(b)), 0);
    return old;
}

/* Those it can speak to tell it that it is out: it asks no more, and the owner, which it does not reach, goes on. */
TEST(a_removed_member_that_is_told_so_asks_no_more) {
    bench *b = &world;
    uint32_t old = exchange_by_policy(b, false), now = owner(b);
    uint64_t ballot = state_of(b, 4, 0).promised, asked = 0;
    for (int i = 0; i < 200; i++) {
        for (uint32_t n = 1; n <= b->count; n++) {
            tick(b, n, 1);
            lose_between(b, old, now);
        }
        settle(b);
        forget_said(b);
        if (i == 20) asked = kv_replica_count(b->node[old])->takeovers;
    }
    CHECK_EQ(kv_replica_count(b->node[old])->takeovers, asked);
    CHECK_EQ(kv_replica_count(b->node[old])->outsiders, 1);
    CHECK(state_of(b, now, 0).owned);
    CHECK_EQ(state_of(b, 4, 0).promised, ballot);
    end(b);
}

/* The owner's flow meets what it has promised itself, which is higher: that ends one ownership. In the next one it learns. */
TEST(a_removed_member_that_comes_back_gives_peace) {
    bench *b = &world;
    uint32_t old = exchange_by_policy(b, false);
    live_on(b, 0, 60);
    CHECK(!state_of(b, old, 0).member);
    uint64_t ballot = state_of(b, 4, 0).promised;
    live_on(b, 0, 300);
    CHECK_EQ(state_of(b, 4, 0).promised, ballot);
    CHECK_EQ(kv_owner_rank(state_of(b, 4, 0).members, 3, 0, (uint16_t)owner(b)), 0);
    end(b);
}

/* It hears no majority meanwhile, so it has promised itself nothing, and no ownership ends. */
TEST(a_removed_member_that_was_cut_off_has_tried_nothing) {
    bench *b = &world;
    uint32_t old = exchange_by_policy(b, true);
    uint64_t ballot = state_of(b, 4, 0).promised;
    live_on(b, 0, 100);
    CHECK(!state_of(b, old, 0).member);
    CHECK_EQ(state_of(b, 4, 0).promised, ballot);
    end(b);
}

static void pass_if(bench *b, uint32_t from, uint32_t to) {
    if (b->mail_count[from][to] != 0) pass(b, from, to);
}

/* A word at a time: pieces of a snapshot name all that they bring. */
static void settle_two(bench *b, uint32_t one, uint32_t other) {
    for (int i = 0; i < 20 && (b->mail_count[one][other] != 0 || b->mail_count[other][one] != 0); i++) {
        pass_if(b, one, other);
        forget_said(b);
        sync_node(b, other);
        pass_if(b, other, one);
        forget_said(b);
        sync_node(b, one);
    }
}

/* The next owner has committed no more than that one had, and needs its vote: an exchange would wait for ever. */
TEST(who_lost_its_state_to_half_a_snapshot_gets_one_of_what_it_had_committed) {
    enum { BATCHES = 10, BATCH = 100 }; /* More than a table of the index has, so that there are two pieces. */
    char keys[BATCH][8];
    kv_operation operations[BATCH];
    bench *b = &world;
    begin_with(b, 3, (kv_replica_options){.shard_count = 1, .keep_max = 2, .piece_tables = 1});
    own(b, 1);
    for (int i = 0; i < BATCHES * BATCH; i++) {
        snprintf(keys[i % BATCH], sizeof keys[0], "{x}%d", i);
        operations[i % BATCH] = op(NULL, keys[i % BATCH], "x");
        if (i % BATCH == BATCH - 1) TOLD(b, 1, batch(operations, BATCH), KV_ANSWER_OK, 2 + (uint64_t)i / BATCH, 0);
        if (i % BATCH == BATCH - 1) forget_said(b);
    }
    heartbeat(b);
    uint64_t commit = state_of(b, 3, 0).commit;
    for (int i = 0; i < 6; i++) ask_beside(b, 1, put("{x}0", "y"));
    flush(b, 1);
    pass(b, 1, 2);
    sync_node(b, 2);
    pass(b, 2, 1);
    sync_node(b, 1);
    CHECK_EQ(state_of(b, 1, 0).commit, commit + 6);
    for (int i = 0; i < 20 && state_of(b, 3, 0).whole; i++) { /* 3 hears of none of it, and 2 not that it is committed. */
        lose_between(b, 1, 2);
        if (i == 0) lose_between(b, 1, 3);
        tick(b, 1, 4);
        pass_if(b, 1, 3);
        sync_node(b, 3);
        if (state_of(b, 3, 0).whole) pass_if(b, 3, 1);
        forget_said(b);
    }
    CHECK(!state_of(b, 3, 0).whole);
    CHECK_EQ(state_of(b, 2, 0).commit, commit);
    CHECK_EQ(state_of(b, 3, 0).commit, commit);
    cut_off(b, 1);
    takeover(b, 2);
    for (int i = 0; i < 20; i++) {
        sync_node(b, 2);
        settle_two(b, 2, 3);
        tick(b, 2, 4);
        cut_off(b, 1);
    }
    CHECK(state_of(b, 3, 0).whole);
    CHECK_EQ(state_of(b, 2, 0).commit, commit + 7); /* With the barrier. */
    CHECK_EQ(state_of(b, 3, 0).commit, commit + 7);
    end(b);
}

/* More than there are places for: a log names them all. */
TEST(who_was_a_member_once_is_not_known_after_a_restart) {
    static const uint8_t check[] = {3, 0, 0, 0, WIRE_CHECK, 1, 0};
    bench *b = &world;
    begin_with_learner(b);
    for (int i = 0; i < 20; i++) {
        CHANGED(b, 1, 0, i % 2 == 0 ? 3 : 4, KV_ANSWER_OK);
        CHANGED(b, 1, i % 2 == 0 ? 4 : 3, 0, KV_ANSWER_OK);
    }
    MEMBERS(b, 1, "123");
    CHANGED(b, 1, 0, 3, KV_ANSWER_OK);
    crash(b, 1);
    uint32_t count = b->count;
    b->count = 1; /* Nobody introduces them. */
    restart(b, 1);
    CHECK_EQ(kv_replica_receive(b->node[1], 2, check, sizeof check), KV_OK);
    CHECK_EQ(kv_replica_receive(b->node[1], 3, check, sizeof check), KV_EUSAGE);
    CHECK_EQ(kv_replica_receive(b->node[1], 4, check, sizeof check), KV_EUSAGE);
    b->count = count;
    end(b);
}

TEST(one_change_at_a_time_on_committed_ground) {
    bench *b = &world;
    begin_with_learner(b);
    CHANGED(b, 1, 4, 0, KV_ANSWER_FAILED); /* Three there are. */
    CHANGED(b, 2, 0, 3, KV_ANSWER_RETRY);  /* Not the owner. */
    CHANGED(b, 1, 4, 3, KV_ANSWER_REFUSED);
    CHANGED(b, 1, 0, 0, KV_ANSWER_REFUSED);
    CHANGED(b, 1, 0, 4, KV_ANSWER_OK); /* It is none. */
    CHANGED(b, 1, 3, 0, KV_ANSWER_OK); /* It is one. */
    MEMBERS(b, 1, "123");
    CHANGED(b, 1, 0, 3, KV_ANSWER_OK);
    CHANGED(b, 1, 0, 3, KV_ANSWER_OK);
    CHANGED(b, 1, 0, 2, KV_ANSWER_FAILED); /* Two there have to be. */
    CHANGED(b, 1, 9, 0, KV_ANSWER_RETRY);  /* Nobody knows it. */
    CHECK_EQ(join(b), 5);
    change(b, 1, 5, 0);
    CHECK_EQ(b->answers[b->token].reply.status, KV_ANSWER_RETRY); /* It follows not yet. */
    for (int i = 0; i < 2; i++) heartbeat(b);
    change(b, 1, 5, 0);
    CHECK(!b->answers[b->token].there);
    change(b, 1, 0, 5);
    CHECK_EQ(b->answers[b->token].reply.status, KV_ANSWER_RETRY); /* Not before that is committed. */
    settle(b);
    MEMBERS(b, 1, "125");
    end(b);
}

TEST(a_new_owner_changes_nothing_before_it_has_committed_something) {
    bench *b = &world;
    begin_with_learner(b);
    takeover(b, 2);
    sync_node(b, 2);
    pass(b, 2, 3);
    sync_node(b, 3);
    pass(b, 3, 2);
    CHECK(state_of(b, 2, 0).owned);
    CHECK(state_of(b, 2, 0).commit < state_of(b, 2, 0).barrier);
    change(b, 2, 0, 1);
    CHECK_EQ(b->answers[b->token].reply.status, KV_ANSWER_RETRY);
    settle(b);
    CHANGED(b, 2, 0, 1, KV_ANSWER_OK);
    MEMBERS(b, 2, "23");
    end(b);
}

TEST(an_owner_that_is_to_go_gives_the_shard_away) {
    bench *b = &world;
    begin_with_learner(b);
    CHANGED(b, 1, 0, 1, KV_ANSWER_RETRY);
    CHECK(!state_of(b, 1, 0).owned);
    uint32_t next = state_of(b, 2, 0).owned ? 2 : 3;
    CHECK(state_of(b, next, 0).owned);
    CHANGED(b, next, 0, 1, KV_ANSWER_OK);
    MEMBERS(b, 1, "23");
    CHANGED(b, next, 4, 0, KV_ANSWER_OK);
    MEMBERS(b, 1, "234");
    end(b);
}

TEST(who_is_met_is_heard_and_who_has_gone_is_not) {
    static const uint8_t check[] = {3, 0, 0, 0, WIRE_CHECK, 1, 0};
    bench *b = &world;
    size_t size;
    begin(b, 3);
    CHECK_EQ(kv_replica_meet(b->node[1], 0), KV_EUSAGE);
    CHECK_EQ(kv_replica_meet(b->node[1], 1), KV_EUSAGE);
    CHECK_EQ(kv_replica_meet(b->node[1], 2), KV_OK);
    CHECK_EQ(kv_replica_receive(b->node[1], 9, check, sizeof check), KV_EUSAGE);
    for (uint16_t node = 4; node <= KV_NODES_MAX; node++) CHECK_EQ(kv_replica_meet(b->node[1], node), KV_OK);
    CHECK_EQ(kv_replica_meet(b->node[1], KV_NODES_MAX + 1), KV_ELIMIT);
    CHECK_EQ(kv_replica_receive(b->node[1], 9, check, sizeof check), KV_OK);
    kv_replica_flush(b->node[1]);
    CHECK(kv_replica_outbox(b->node[1], 9, &size) != NULL);
    CHECK_EQ(kv_replica_part(b->node[1], 9), KV_OK);
    CHECK(kv_replica_outbox(b->node[1], 9, &size) == NULL);
    CHECK_EQ(kv_replica_receive(b->node[1], 9, check, sizeof check), KV_EUSAGE);
    CHECK_EQ(kv_replica_part(b->node[1], 9), KV_EUSAGE);
    CHECK_EQ(kv_replica_part(b->node[1], 1), KV_EUSAGE);
    CHECK_EQ(kv_replica_part(b->node[1], 2), KV_EUSAGE); /* A member. */
    CHECK_EQ(kv_replica_meet(b->node[1], KV_NODES_MAX + 1), KV_OK);
    kv_replica_clear(b->node[1]);
    own(b, 1);
    end(b);
}

TEST(a_configuration_that_nobody_writes_is_refused) {
    members m;
    CHECK(members_parse((const uint8_t[]){1, 0, 2, 0}, 4, &m));
    CHECK_EQ(m.count, 2);
    CHECK(!members_parse((const uint8_t[]){1, 0, 2, 0}, 3, &m));
    CHECK(!members_parse((const uint8_t[]){1, 0, 1, 0}, 4, &m));
    CHECK(!members_parse((const uint8_t[]){1, 0, 0, 0}, 4, &m));
    CHECK(!members_parse(NULL, 0, &m));
    uint8_t many[2 * KV_MEMBERS_MAX + 2];
    for (uint16_t i = 0; i <= KV_MEMBERS_MAX; i++) kv_store16(many + 2 * i, (uint16_t)(i + 1));
    CHECK(members_parse(many, 2 * KV_MEMBERS_MAX, &m));
    CHECK(!members_parse(many, sizeof many, &m));
}

int main(int count, char **words) {
    telling = count == 2 && strcmp(words[1], "--tell") == 0;
    RUN(transcript_a_member_is_exchanged);
    RUN(transcript_a_removed_member_asks_for_votes);
    RUN(with_promises_a_removed_member_gives_up);
    RUN(transcript_a_taker_with_an_old_configuration);
    RUN(a_cut_takes_the_members_back);
    RUN(a_learner_is_not_counted);
    RUN(members_survive_a_restart_and_a_snapshot);
    RUN(a_removed_member_that_is_told_so_asks_no_more);
    RUN(a_removed_member_that_comes_back_gives_peace);
    RUN(a_removed_member_that_was_cut_off_has_tried_nothing);
    RUN(who_lost_its_state_to_half_a_snapshot_gets_one_of_what_it_had_committed);
    RUN(who_was_a_member_once_is_not_known_after_a_restart);
    RUN(one_change_at_a_time_on_committed_ground);
    RUN(a_new_owner_changes_nothing_before_it_has_committed_something);
    RUN(an_owner_that_is_to_go_gives_the_shard_away);
    RUN(who_is_met_is_heard_and_who_has_gone_is_not);
    RUN(a_configuration_that_nobody_writes_is_refused);
    return check_report();
}
