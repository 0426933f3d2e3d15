/* test_replica_reads.c -- who waits for something newer, follows a table's changes, or reads where the owner is not; what a
 * peer can make a replica remember; and who takes over when one link is cut. */
#include "transcript.h"

static kv_ask awaited(const char *key, uint64_t since) {
    kv_ask a = about(KV_REQUEST_WAIT, key, NULL);
    a.since = since;
    return a;
}

static kv_ask for_ticks(kv_ask a, uint64_t ticks) {
    a.ticks = ticks;
    return a;
}

static kv_ask row_put(const char *table, const char *row, const char *value) {
    return in_table(table, put(row, value));
}

static bool is_answered(const bench *b, uint64_t token) { return b->answers[token].there; }

/* --- waiting --- */

TEST(transcript_a_wait_at_another_replica_ends_with_the_commit) {
    bench *b = &world;
    begin(b, 3);
    own(b, 1);
    ask(b, 2, awaited("a", 0));
    ask(b, 1, awaited("a", 0));
    ask(b, 1, put("a", "x"));
    pass(b, 1, 2);
    durable(b, 2);
    pass(b, 2, 1); /* Two hold it durably? 1 does not yet. */
    durable(b, 1);
    tick(b, 1, 4);
    pass(b, 1, 2);
    SAID(b, "1>2 FLOW c1#3 s0 1.1 after 1 of 1.1 commit 1: put a\n"
            "2 durable\n"
            "2>1 ACK c1#3\n"
            "1 durable\n"
            "1 answers ok version 2\n"
            "1 answers ok version 2\n"
            "1>2 FLOW c1#4 s0 1.1 after 2 of 1.1 commit 2\n"
            "2 answers ok version 2\n");
    end(b);
}

TEST(what_is_newer_already_is_told_at_once) {
    bench *b = &world;
    begin(b, 1);
    own(b, 1);
    TOLD(b, 1, put("a", "x"), KV_ANSWER_OK, 2, 0);
    ask(b, 1, awaited("a", 1));
    SAID(b, "1 answers ok version 2\n");
    ask(b, 1, awaited("a", 2));
    SAID(b, "");
    TOLD(b, 1, about(KV_REQUEST_DELETE, "b", NULL), KV_ANSWER_FAILED, 0, 0);
    TOLD(b, 1, with(about(KV_REQUEST_DELETE, "a", NULL), -1), KV_ANSWER_OK, 3, 0);
    CHECK(is_answered(b, 3)); /* A delete is a change. */
    end(b);
}

TEST(who_waits_for_one_name_does_not_hear_of_another) {
    bench *b = &world;
    begin(b, 1);
    own(b, 1);
    uint64_t key = ask(b, 1, awaited("{x}a", 0)), table = ask(b, 1, awaited("{x}t", 0));
    kv_ask whole = awaited("{x}anything", 1);
    whole.whole = 1;
    uint64_t all = ask(b, 1, whole);
    TOLD(b, 1, put("{x}b", "1"), KV_ANSWER_OK, 2, 0);
    CHECK(is_answered(b, all) && !is_answered(b, key) && !is_answered(b, table));
    TOLD(b, 1, row_put("{x}t", "r", "1"), KV_ANSWER_OK, 3, 0);
    CHECK(is_answered(b, table) && !is_answered(b, key));
    CHECK_EQ(b->answers[table].reply.version, 3);
    TOLD(b, 1, put("{x}a", "1"), KV_ANSWER_OK, 4, 0);
    CHECK(is_answered(b, key));
    end(b);
}

/* The name goes, and comes back as something else: who waits for it hangs where that is. */
TEST(who_waits_for_a_table_hears_of_every_row_and_of_its_end) {
    bench *b = &world;
    begin(b, 1);
    own(b, 1);
    TOLD(b, 1, row_put("t", "r", "1"), KV_ANSWER_OK, 2, 0);
    uint64_t one = ask(b, 1, awaited("t", 2));
    TOLD(b, 1, row_put("t", "q", "1"), KV_ANSWER_OK, 3, 0);
    CHECK(is_answered(b, one));
    one = ask(b, 1, awaited("t", 3));
    TOLD(b, 1, about(KV_REQUEST_DROP, "t", NULL), KV_ANSWER_OK, 4, 0);
    CHECK_EQ(b->answers[one].reply.version, 4);
    one = ask(b, 1, awaited("t", 5)); /* Of which it was not told yet. */
    TOLD(b, 1, row_put("t", "r", "1"), KV_ANSWER_OK, 5, 0);
    CHECK(!is_answered(b, one));
    TOLD(b, 1, row_put("t", "r", "2"), KV_ANSWER_OK, 6, 0);
    CHECK_EQ(b->answers[one].reply.version, 6);
    end(b);
}

TEST(a_wait_ends_when_its_time_is_up_or_when_it_is_cancelled) {
    bench *b = &world;
    begin(b, 1);
    own(b, 1);
    TOLD(b, 1, put("a", "x"), KV_ANSWER_OK, 2, 0);
    forget_said(b);
    ask(b, 1, for_ticks(awaited("a", 2), 3));
    uint64_t second = ask(b, 1, awaited("a", 2));
    tick(b, 1, 2);
    SAID(b, "");
    tick(b, 1, 1);
    SAID(b, "1 answers ok version 2\n"); /* Which is not newer. */
    kv_replica_cancel(b->node[1], second);
    TOLD(b, 1, put("a", "y"), KV_ANSWER_OK, 3, 0);
    CHECK(!is_answered(b, second));
    end(b);
}

TEST(no_more_wait_than_may) {
    bench *b = &world;
    begin_with(b, 1, (kv_replica_options){.shard_count = 1, .wait_max = 2});
    own(b, 1);
    for (int i = 0; i < 3; i++) ask(b, 1, awaited("a", 9));
    SAID(b, "1 answers retry\n");
    kv_replica_cancel(b->node[1], 1);
    ask(b, 1, awaited("a", 9));
    SAID(b, "");
    end(b);
}

TEST(many_wait_and_each_is_told_once) {
    enum { WAITS = 200, NAMES = 7 };
    bench *b = &world;
    char names[NAMES][8];
    begin(b, 1);
    own(b, 1);
    for (int i = 0; i < NAMES; i++) snprintf(names[i], sizeof names[i], "k%d", i);
    for (int i = 0; i < WAITS; i++) ask(b, 1, awaited(names[i % NAMES], 0));
    for (int i = 0; i < NAMES; i++) {
        kv_ask a = put(names[i], "x");
        a.token = ANSWERS_MAX - 1;
        a.attempt = 1;
        kv_replica_request(b->node[1], &a);
        sync_node(b, 1);
        b->answers[ANSWERS_MAX - 1].there = false;
        forget_said(b);
    }
    for (uint64_t token = 1; token <= WAITS; token++) CHECK(is_answered(b, token));
    CHECK_EQ(b->node[1]->waits.count, 0);
    end(b);
}

TEST(a_takeover_leaves_those_who_wait_alone) {
    bench *b = &world;
    begin(b, 3);
    own(b, 1);
    uint64_t one = ask(b, 1, awaited("a", 0));
    own(b, 3);
    CHECK(!state_of(b, 1, 0).owned && !is_answered(b, one));
    TOLD(b, 3, put("a", "x"), KV_ANSWER_OK, 3, 0);
    heartbeat(b);
    CHECK_EQ(b->answers[one].reply.version, 3);
    end(b);
}

TEST(a_snapshot_ends_all_waits_and_forgotten_deletes_are_not_waited_for) {
    bench *b = &world;
    begin_with(b, 3, (kv_replica_options){.shard_count = 1, .keep_max = 2});
    own(b, 1);
    TOLD(b, 1, put("a", "x"), KV_ANSWER_OK, 2, 0);
    heartbeat(b);
    uint64_t before = ask(b, 3, awaited("a", 2));
    for (int i = 0; i < 8; i++) { /* 3 hears nothing of it. */
        ask(b, 1, i == 0 ? with(about(KV_REQUEST_DELETE, "a", NULL), -1) : put("b", "y"));
        sync_node(b, 1);
        while (b->mail_count[1][2] != 0) pass(b, 1, 2);
        sync_node(b, 2);
        while (b->mail_count[2][1] != 0) pass(b, 2, 1);
        while (b->mail_count[1][3] != 0) lose(b, 1, 3);
    }
    for (int i = 0; i < 10; i++) {
        heartbeat(b);
        heartbeat(b);
    }
    CHECK_EQ(kv_replica_count(b->node[3])->installed, 1);
    CHECK_EQ(b->answers[before].reply.status, KV_ANSWER_RETRY);
    uint64_t since = state_of(b, 3, 0).applied;
    forget_said(b);
    uint64_t late = ask(b, 3, awaited("a", 2)); /* It was deleted at 3, and nothing here says so. */
    CHECK(is_answered(b, late));
    CHECK_EQ(b->answers[late].reply.version, 2); /* Not above it: whoever reads finds nothing. */
    CHECK_EQ(b->answers[late].reply.shard_version, since);
    CHECK(!is_answered(b, ask(b, 3, awaited("a", since)))); /* So this is how to go on. */
    CHECK(!is_answered(b, ask(b, 3, awaited("b", since)))); /* What is there says itself when it is newer. */
    end(b);
}

/* --- positions --- */

TEST(transcript_reads_at_another_replica_share_a_question) {
    bench *b = &world;
    begin_with(b, 3, (kv_replica_options){.shard_count = 2});
    own(b, 1);
    ask_beside(b, 2, at_follower(get("a")));
    ask_beside(b, 2, at_follower(get("b")));
    ask(b, 2, at_follower(in_table("t", get("r"))));
    ask(b, 2, at_follower(get("c"))); /* One is under way. */
    pass(b, 2, 1);
    pass(b, 1, 2);
    pass(b, 2, 1);
    pass(b, 1, 2);
    pass(b, 2, 1);
    pass(b, 1, 2);
    pass(b, 2, 1);
    pass(b, 1, 2);
    SAID(b, "2>1 ASK_POSITION s1 a s0 b s1 t/r\n"
            "1>2 CHECK s0 1.1 s1 1.1\n"
            "2>1 CHECKED s0 1.1 s1 1.1\n"
            "1>2 POSITION s0 1 s1 1\n"
            "2 answers ok\n2 answers ok\n2 answers ok\n"
            "2>1 ASK_POSITION s0 c\n"
            "1>2 CHECK s0 1.1\n"
            "2>1 CHECKED s0 1.1\n"
            "1>2 POSITION s0 1\n"
            "2 answers ok\n");
    end(b);
}

TEST(transcript_a_question_makes_the_owner_end_what_is_over) {
    bench *b = &world;
    begin(b, 3);
    own(b, 1);
    TOLD(b, 1, expiring(put("k", "x"), 10), KV_ANSWER_OK, 2, 0);
    heartbeat(b);
    VALUE(b, 2, at_follower(get("k")), "x");
    kv_sim_set_clock(b->disk[1], START_MS + 11);
    forget_said(b);
    ask(b, 2, at_follower(get("k")));
    pass(b, 2, 1);
    pass(b, 1, 2);
    pass(b, 1, 2);
    durable(b, 2);
    pass(b, 2, 1);
    pass(b, 2, 1);
    durable(b, 1);
    pass(b, 1, 2);
    tick(b, 1, 4);
    pass(b, 1, 2);
    SAID(b, "2>1 ASK_POSITION s0 k\n"
            "1>2 CHECK s0 1.1\n"
            "1>2 FLOW c1#5 s0 1.1 after 2 of 1.1 commit 2: delete k (expired)\n"
            "2 durable\n"
            "2>1 CHECKED s0 1.1\n"
            "2>1 ACK c1#5\n"
            "1 durable\n"
            "1>2 POSITION s0 3\n"
            "1>2 FLOW c1#6 s0 1.1 after 3 of 1.1 commit 3\n"
            "2 answers ok\n");
    end(b);
}

/* The delete was proposed for somebody else, and is not committed: the position has it all the same. */
TEST(a_position_includes_an_end_that_is_under_way) {
    bench *b = &world;
    begin(b, 3);
    own(b, 1);
    TOLD(b, 1, expiring(put("k", "x"), 10), KV_ANSWER_OK, 2, 0);
    TOLD(b, 1, expiring(put("l", "x"), 10), KV_ANSWER_OK, 3, 0);
    kv_sim_set_clock(b->disk[1], START_MS + 11);
    ask(b, 1, get("k"));
    ask(b, 1, put("l", "y")); /* With something newer behind the end. */
    CHECK_EQ(state_of(b, 1, 0).last, 6);
    CHECK_EQ(state_of(b, 1, 0).commit, 3);
    VALUE(b, 2, at_follower(get("k")), "-");
    ask(b, 1, put("l", "z"));
    VALUE(b, 2, at_follower(get("l")), "y"); /* Nothing is over here: as of the commit. */
    end(b);
}

static void question_begin(wire_out *out, uint64_t question) {
    wire_begin(out, WIRE_ASK_POSITION);
    wire_put_varint(out, question);
}

/* Until replica 1 has no room for another record. */
static void fill(bench *b) {
    static char large[1 << 15];
    memset(large, 'x', sizeof large - 1);
    kv_sim_limit(b->disk[1], kv_sim_used(b->disk[1]));
    int32_t status = KV_ANSWER_OK;
    for (int i = 0; i < 40 && status != KV_ANSWER_UNAVAILABLE; i++) {
        uint64_t token = ask(b, 1, put("l", large));
        if (is_answered(b, token)) status = b->answers[token].reply.status;
    }
    CHECK_EQ(status, KV_ANSWER_UNAVAILABLE);
}

TEST(a_full_owner_says_of_what_is_over_neither_that_it_is_there_nor_where) {
    bench *b = &world;
    begin(b, 3);
    own(b, 1);
    TOLD(b, 1, expiring(put("k", "x"), 10), KV_ANSWER_OK, 2, 0);
    heartbeat(b);
    fill(b);
    kv_sim_set_clock(b->disk[1], START_MS + 11);
    CHECK_EQ(told(b, 1, get("k")).reply.status, KV_ANSWER_UNAVAILABLE);
    CHECK_EQ(told(b, 2, at_follower(get("k"))).reply.status, KV_ANSWER_RETRY);
    kv_sim_limit(b->disk[1], UINT64_MAX);
    heartbeat(b);
    VALUE(b, 2, at_follower(get("k")), "-");
    end(b);
}
TEST(a_full_owner_waits_for_what_stands_before_something_that_is_over) {
    bench *b = &world;
    begin(b, 3);
    own(b, 1);
    TOLD(b, 1, expiring(put("k", "x"), 10), KV_ANSWER_OK, 2, 0);
    ask(b, 1, put("k", "y"));
    fill(b);
    kv_sim_set_clock(b->disk[1], START_MS + 11);
    VALUE(b, 1, get("k"), "y");
    end(b);
}
TEST(a_question_about_names_of_another_shard_is_refused) {
    bench *b = &world;
    wire_out out = {0};
    begin_with(b, 3, (kv_replica_options){.shard_count = 2});
    own(b, 1);
    question_begin(&out, 1);
    wire_put8(&out, 1);
    wire_put_varint(&out, 1 - kv_shard_of(2, (const uint8_t *)"a", 1));
    wire_put_varint(&out, 1);
    wire_put_bytes(&out, (const uint8_t[]){2, 1, 'a'}, 3);
    wire_put8(&out, 0);
    wire_end(&out);
    CHECK_EQ(kv_replica_receive(b->node[1], 2, out.bytes, out.size), KV_EUSAGE);
    wire_free(&out);
    end(b);
}

TEST(a_read_that_names_too_much_is_refused) {
    bench *b = &world;
    static kv_operation names[KV_READ_NAMES_MAX + 1];
    begin(b, 1);
    own(b, 1);
    for (size_t i = 0; i <= KV_READ_NAMES_MAX; i++) names[i] = op(NULL, "{x}a", NULL);
    kv_ask a = batch(names, KV_READ_NAMES_MAX);
    a.kind = KV_REQUEST_READ;
    CHECK_EQ(told(b, 1, a).reply.status, KV_ANSWER_OK);
    a.operation_count++;
    CHECK_EQ(told(b, 1, a).reply.error, KV_EBATCHSIZE);
    end(b);
}

/* --- what a peer can make a replica remember --- */

TEST(an_owner_remembers_so_many_questions_of_one_peer) {
    enum { BOUND = 32, SENT = 50 };
    bench *b = &world;
    wire_out out = {0};
    begin(b, 3);
    own(b, 1);
    for (uint64_t i = 0; i < SENT; i++) {
        question_begin(&out, i);
        wire_put_bytes(&out, (const uint8_t[]){1, 0, 0, 0}, 4); /* shard 0, no names; no more shards */
        wire_end(&out);
    }
    CHECK_EQ(kv_replica_receive(b->node[1], 2, out.bytes, out.size), KV_OK);
    CHECK_EQ(b->node[1]->reads.count, BOUND);
    CHECK_EQ(b->node[1]->peers[1].asked, BOUND);
    tick(b, 1, 11); /* They end like any read, and there is room again. */
    CHECK_EQ(b->node[1]->peers[1].asked, 0);
    wire_free(&out);
    end(b);
}

static void flow_begin(wire_out *out, uint64_t seq, uint64_t ballot, uint64_t before, uint64_t count) {
    wire_begin(out, WIRE_FLOW);
    wire_put_varint(out, 1);
    wire_put_varint(out, 1);
    wire_put_varint(out, seq);
    wire_put_varint(out, 0); /* It says that it knows of no answer. */
    wire_put_varint(out, 1); /* position */
    wire_put_varint(out, 0);
    wire_put64(out, ballot);
    wire_put8(out, 0);
    wire_put_varint(out, before);
    wire_put64(out, ballot);
    wire_put_varint(out, 0);
    wire_put_varint(out, count);
}

TEST(a_peer_that_hears_of_no_refusal_is_answered_no_more) {
    enum { SENT = 600 };
    bench *b = &world;
    wire_out out = {0};
    begin(b, 3);
    for (uint64_t i = 1; i <= SENT; i++) {
        flow_begin(&out, i, ballot_make(1, 2), 7, 0);
        wire_end(&out);
    }
    CHECK_EQ(kv_replica_receive(b->node[1], 2, out.bytes, out.size), KV_OK);
    CHECK_EQ(b->node[1]->peers[1].refusals.count, 257);
    sync_node(b, 1);
    while (b->mail_count[1][2] != 0) free(mail_take(b, 1, 2).bytes);
    out.size = 0;
    flow_begin(&out, SENT + 1, ballot_make(1, 2), 7, 0);
    wire_end(&out);
    CHECK_EQ(kv_replica_receive(b->node[1], 2, out.bytes, out.size), KV_OK);
    sync_node(b, 1);
    CHECK_EQ(b->mail_count[1][2], 0);
    wire_free(&out);
    end(b);
}

TEST(a_version_that_no_message_would_hold_is_refused) {
    bench *b = &world;
    wire_out out = {0};
    kv_record record = {.kind = KV_KIND_PUT, .key = (const uint8_t *)"k", .key_size = 1, .value_size = 41 << 20};
    record.value = calloc(1, record.value_size);
    begin(b, 3);
    flow_begin(&out, 1, ballot_make(1, 2), 0, 1);
    wire_put_varint(&out, 1);
    wire_put8(&out, 0);
    wire_put_record(&out, &record);
    wire_end(&out);
    CHECK_EQ(kv_replica_receive(b->node[1], 2, out.bytes, out.size), KV_EUSAGE);
    CHECK_EQ(state_of(b, 1, 0).last, 0);
    free((void *)record.value);
    wire_free(&out);
    end(b);
}

TEST(a_peer_that_prepares_too_often_is_not_remembered) {
    bench *b = &world;
    wire_out out = {0};
    begin(b, 3);
    for (uint64_t round = 1; round <= 200; round++) {
        wire_begin(&out, WIRE_PREPARE);
        wire_put64(&out, ballot_make(round, 2));
        wire_put_varint(&out, 1);
        wire_put_varint(&out, 0);
        wire_put_varint(&out, 0);
        wire_put64(&out, 0);
        wire_put_varint(&out, 0);
        wire_end(&out);
    }
    CHECK_EQ(kv_replica_receive(b->node[1], 2, out.bytes, out.size), KV_OK);
    CHECK_EQ(b->node[1]->after.count, 64);
    wire_free(&out);
    end(b);
}

/* --- changes --- */

static kv_replica_page page;

/* The rows of a page, as "row=value row" where a row without a value is gone; and what it says of itself. */
static const char *changes(bench *b, uint32_t n, const char *table, uint64_t since, uint64_t began, uint64_t count_max) {
    static char text[512];
    kv_result size = kv_replica_changes(b->node[n], (const uint8_t *)table, strlen(table), since, began, count_max, &page);
    size_t used = (size_t)snprintf(text, sizeof text, "%s", size < 0 ? "not now" : "");
    const kv_answer *told_in = kv_caller_answer(kv_replica_caller(b->node[n]));
    const uint8_t *at = size <= KV_SMALL_SIZE ? told_in->small : told_in->large;
    for (uint64_t i = 0; size >= 0 && i < page.changes.page.count; i++) {
        uint32_t row = page.changes.page.sizes[2 * i], value = page.changes.page.sizes[2 * i + 1];
        bool gone = value == (uint32_t)KV_DELETED;
        used += (size_t)snprintf(text + used, sizeof text - used, "%.*s%s%.*s ", (int)row, (const char *)at, gone ? "" : "=",
                                 gone ? 0 : (int)value, (const char *)at + row);
        at += row + (gone ? 0 : value);
    }
    snprintf(text + used, sizeof text - used, "to %llu of %llu%s%s", (unsigned long long)page.changes.version,
             (unsigned long long)page.through, page.changes.more ? " more" : "", page.changes.complete ? "" : " begin again");
    return text;
}
#define CHANGES(b, n, table, since, began, count, expected) CHECK(strcmp(said = changes(b, n, table, since, began, count), expected) == 0 || (puts(said), false))

TEST(changes_come_in_pages_that_end_between_versions) {
    bench *b = &world;
    const char *said;
    begin(b, 1);
    own(b, 1);
    kv_operation three[] = {op("{x}t", "a", "1"), op("{x}t", "b", "1"), op("{x}t", "c", "1")};
    TOLD(b, 1, batch(three, 3), KV_ANSWER_OK, 2, 0);
    TOLD(b, 1, row_put("{x}t", "d", "1"), KV_ANSWER_OK, 3, 0);
    TOLD(b, 1, with(in_table("{x}t", about(KV_REQUEST_DELETE, "b", NULL)), -1), KV_ANSWER_OK, 4, 0);
    CHANGES(b, 1, "{x}t", 0, 0, 1, "a=1 c=1 to 2 of 4 more");
    CHANGES(b, 1, "{x}t", 2, 4, 1, "d=1 to 3 of 4 more");
    CHANGES(b, 1, "{x}t", 3, 4, 1, "b to 4 of 4");
    CHANGES(b, 1, "{x}t", 4, 4, 1, "to 4 of 4");
    CHANGES(b, 1, "{x}no", 0, 0, 1, "to 0 of 0");
    CHANGES(b, 1, "{x}no", 3, 0, 1, "to 0 of 0 begin again");
    end(b);
}

TEST(a_replica_that_is_behind_does_not_send_a_consumer_back) {
    bench *b = &world;
    const char *said;
    begin(b, 3);
    own(b, 1);
    TOLD(b, 1, row_put("t", "a", "1"), KV_ANSWER_OK, 2, 0);
    heartbeat(b);
    ask(b, 1, row_put("t", "a", "2"));
    ask(b, 1, row_put("t", "b", "1"));
    settle(b); /* 2 and 3 have it, and do not know that it is committed. */
    CHANGES(b, 1, "t", 0, 0, 8, "a=2 b=1 to 4 of 4");
    CHANGES(b, 2, "t", 4, 4, 8, "to 4 of 0");
    CHANGES(b, 2, "t", 0, 0, 8, "a=1 to 2 of 2");
    CHANGES(b, 2, "u", 4, 4, 8, "to 4 of 0"); /* It may be there where that is known. */
    heartbeat(b);
    CHANGES(b, 2, "t", 2, 2, 8, "a=2 b=1 to 4 of 4");
    end(b);
}

TEST(a_trim_is_a_record_and_a_copy_begun_behind_it_goes_on_below_it) {
    bench *b = &world;
    const char *said;
    char row[2] = "a";
    begin(b, 3);
    own(b, 1);
    for (; row[0] < 'e'; row[0]++) TOLD(b, 1, row_put("t", row, "1"), KV_ANSWER_OK, (uint64_t)(row[0] - 'a' + 2), 0);
    TOLD(b, 1, with(about(KV_REQUEST_TRIM, "t", NULL), 4), KV_ANSWER_OK, 6, 0);
    TOLD(b, 1, with(about(KV_REQUEST_TRIM, "t", NULL), 3), KV_ANSWER_FAILED, 0, 0); /* It is there. */
    heartbeat(b);
    for (uint32_t n = 1; n <= 3; n++) {
        CHANGES(b, n, "t", 0, 0, 1, "a=1 to 2 of 5 more");
        CHECK_EQ(page.changes.floor, 4);
        CHANGES(b, n, "t", 2, 5, 1, "b=1 to 3 of 5 more");             /* begun at 5 */
        CHANGES(b, n, "t", 2, 2, 1, "b=1 to 3 of 5 more begin again"); /* begun at 2: something may be forgotten since */
        CHANGES(b, n, "t", 4, 2, 1, "d=1 to 5 of 5");
    }
    TOLD(b, 1, with(about(KV_REQUEST_TRIM, "t", NULL), INT64_MAX), KV_ANSWER_OK, 7, 0);
    CHANGES(b, 1, "t", 3, 5, 1, "c=1 to 4 of 5 more"); /* The floor is at most the table's version, and 5 was the first page's. */
    end(b);
}

TEST(another_table_of_the_name_is_begun_anew) {
    bench *b = &world;
    const char *said;
    begin_with(b, 1, (kv_replica_options){.shard_count = 2}); /* A table's id is not its version here. */
    own(b, 1);
    const char *table = kv_shard_of(2, (const uint8_t *)"t", 1) == 1 ? "t" : "u";
    TOLD(b, 1, row_put(table, "a", "1"), KV_ANSWER_OK, 2, 0);
    TOLD(b, 1, row_put(table, "b", "1"), KV_ANSWER_OK, 3, 0);
    CHANGES(b, 1, table, 2, 3, 8, "b=1 to 3 of 3");
    TOLD(b, 1, about(KV_REQUEST_DROP, table, NULL), KV_ANSWER_OK, 4, 0);
    CHANGES(b, 1, table, 3, 3, 8, "to 0 of 0 begin again");
    TOLD(b, 1, row_put(table, "c", "1"), KV_ANSWER_OK, 5, 0);
    CHANGES(b, 1, table, 3, 3, 8, "c=1 to 5 of 5 begin again");
    CHANGES(b, 1, table, 5, 5, 8, "to 5 of 5");
    end(b);
}

/* --- a shard at one version --- */

enum { KEYS = 60 };

/* What the records behind `from` did to it, up to the applied one. */
static void catch_up(bench *b, uint64_t from, char copy[KEYS][8]) {
    for (uint64_t version = from + 1; version <= state_of(b, 1, 0).applied; version++) {
        kv_record record;
        CHECK_EQ(kv_replica_record(b->node[1], 0, version, 0, &record), KV_OK);
        if (record.kind != KV_KIND_PUT && record.kind != KV_KIND_DELETE) continue;
        int key = atoi((const char *)record.key + 1);
        snprintf(copy[key], 8, "%.*s", (int)record.value_size, (const char *)record.value);
    }
}

TEST(a_scan_of_many_moments_and_the_records_behind_its_first_make_one_version) {
    bench *b = &world;
    char keys[KEYS][8], copy[KEYS][8] = {{0}}, start[8] = "k";
    begin_with(b, 1, (kv_replica_options){.shard_count = 1, .keep_max = 8});
    own(b, 1);
    for (int i = 0; i < KEYS; i++) snprintf(keys[i], sizeof keys[i], "k%02d", i);
    for (int i = 0; i < KEYS; i += 2) told(b, 1, put(keys[i], "old"));
    uint64_t from = state_of(b, 1, 0).applied;
    CHECK_EQ(kv_replica_hold(b->node[1], 0, from), KV_OK);
    kv_page part = {.more = 1};
    for (int step = 0; part.more; step++) {
        kv_range range = {.count_max = 4, .with_values = 1, .start = (const uint8_t *)start, .start_size = 4};
        kv_result size = kv_scan(kv_replica_caller(b->node[1]), &range, &part);
        CHECK(size >= 0);
        const kv_answer *told_in = kv_caller_answer(kv_replica_caller(b->node[1]));
        const uint8_t *at = size <= KV_SMALL_SIZE ? told_in->small : told_in->large;
        for (uint64_t i = 0; i < part.count; at += part.sizes[2 * i] + part.sizes[2 * i + 1], i++)
            snprintf(copy[atoi((const char *)at + 1)], 8, "%.*s", (int)part.sizes[2 * i + 1], (const char *)at + part.sizes[2 * i]);
        if (part.more) memcpy(start, at, part.resume_size);
        start[3] = 1;
        told(b, 1, put(keys[step * 7 % KEYS], "new")); /* Before and behind the scan. */
        told(b, 1, with(about(KV_REQUEST_DELETE, keys[step * 14 % KEYS], NULL), -1));
    }
    for (int i = 0; i < 6; i++) tick(b, 1, 1); /* So that it lets go of what is not held. */
    catch_up(b, from, copy);
    for (int i = 0; i < KEYS; i++) {
        kv_result size = kv_get(kv_replica_caller(b->node[1]), (const uint8_t *)keys[i], 3);
        CHECK(size < 0 ? copy[i][0] == 0 : memcmp(copy[i], kv_caller_answer(kv_replica_caller(b->node[1]))->small, (size_t)size) == 0);
    }
    kv_replica_unhold(b->node[1], 0);
    for (int i = 0; i < 4; i++) tick(b, 1, 1);
    CHECK(state_of(b, 1, 0).base > from);
    CHECK_EQ(kv_replica_hold(b->node[1], 0, from), KV_ABSENT);
    end(b);
}

TEST(a_hold_does_not_last_for_ever) {
    bench *b = &world;
    begin_with(b, 1, (kv_replica_options){.shard_count = 1, .keep_max = 4});
    own(b, 1);
    CHECK_EQ(kv_replica_hold(b->node[1], 0, 1), KV_OK);
    for (int i = 0; i < 16; i++) told(b, 1, put("k", "x"));
    tick(b, 1, 1);
    CHECK_EQ(state_of(b, 1, 0).base, 1);
    for (int i = 0; i < 4; i++) told(b, 1, put("k", "x"));
    tick(b, 1, 1);
    CHECK(state_of(b, 1, 0).base > 1);
    end(b);
}

/* --- one link --- */

typedef struct links {
    bool cut[NODES + 1][NODES + 1];
} links;

/* One after the other, so that a message takes no time, and what is cut loses it. */
static void turns(bench *b, const links *l, int count) {
    for (int turn = 0; turn < count; turn++) {
        for (uint32_t n = 1; n <= b->count; n++)
            if (b->node[n] != NULL) tick(b, n, 1);
        for (bool moved = true; moved;) {
            moved = false;
            for (uint32_t i = 1; i <= b->count; i++) {
                if (b->node[i] == NULL) continue;
                if (kv_replica_tail(b->node[i]) > b->node[i]->durable) sync_node(b, i);
                for (uint32_t j = 1; j <= b->count; j++)
                    for (; b->mail_count[i][j] != 0; moved = true) {
                        if (l->cut[i][j] || b->node[j] == NULL) free(mail_take(b, i, j).bytes);
                        else pass(b, i, j);
                    }
                forget_said(b);
            }
        }
    }
}

static uint64_t takeovers(const bench *b) {
    uint64_t sum = 0;
    for (uint32_t n = 1; n <= b->count; n++) sum += b->node[n] == NULL ? 0 : kv_replica_count(b->node[n])->takeovers;
    return sum;
}

static uint32_t owned_by(const bench *b, uint32_t n) {
    uint32_t count = 0;
    for (uint32_t s = 0; s < b->options.shard_count; s++) count += state_of(b, n, s).owned != 0;
    return count;
}

/* Everybody owns what it should. */
static void begin_policy(bench *b, const links *none, uint64_t mutations) {
    begin_with(b, 3, (kv_replica_options){.shard_count = 16, .policy = 1, .mutations = mutations});
    turns(b, none, 200);
    for (uint32_t n = 1; n <= 3; n++) CHECK(owned_by(b, n) != 0);
    CHECK_EQ(owned_by(b, 1) + owned_by(b, 2) + owned_by(b, 3), 16);
}

TEST(with_one_link_cut_no_shard_changes_hands) {
    bench *b = &world;
    links none = {0}, one = {0};
    one.cut[1][2] = one.cut[2][1] = true;
    begin_policy(b, &none, 0);
    uint64_t before = takeovers(b);
    turns(b, &one, 1000);
    CHECK_EQ(takeovers(b), before);
    char key[8] = "a";
    while (!state_of(b, 1, kv_shard_of(16, (const uint8_t *)key, 1)).owned) key[0]++;
    uint64_t one_put = ask(b, 1, put(key, "1"));
    turns(b, &one, 8);
    CHECK(is_answered(b, one_put) && b->answers[one_put].reply.status == KV_ANSWER_OK);
    turns(b, &none, 100);
    CHECK_EQ(takeovers(b), before);
    end(b);
}

/* What the rule is for. */
TEST(without_hearsay_one_link_sends_shards_back_and_forth) {
    bench *b = &world;
    links none = {0}, one = {0};
    one.cut[1][2] = one.cut[2][1] = true;
    begin_policy(b, &none, (uint64_t)1 << KV_MUTATE_HEARSAY_IGNORED);
    uint64_t before = takeovers(b);
    turns(b, &one, 1000);
    CHECK(takeovers(b) - before > 50);
    end(b);
}

TEST(with_one_way_of_a_link_cut_no_shard_changes_hands) {
    bench *b = &world;
    links none = {0}, one = {0};
    one.cut[1][2] = true;
    begin_policy(b, &none, 0);
    uint64_t before = takeovers(b);
    turns(b, &one, 300);
    CHECK_EQ(takeovers(b), before);
    end(b);
}

TEST(who_is_cut_off_from_all_loses_its_shards_and_gets_them_back) {
    bench *b = &world;
    links none = {0}, off = {0};
    for (uint32_t n = 2; n <= 3; n++) off.cut[1][n] = off.cut[n][1] = true;
    begin_policy(b, &none, 0);
    uint32_t had = owned_by(b, 1);
    turns(b, &off, 100);
    CHECK_EQ(owned_by(b, 2) + owned_by(b, 3), 16);
    turns(b, &none, 200);
    CHECK_EQ(owned_by(b, 1), had);
    end(b);
}

/* It is heard, and hears nobody: it cannot commit, and says so. */
TEST(who_is_heard_and_hears_nobody_loses_its_shards) {
    bench *b = &world;
    links none = {0}, deaf = {0};
    for (uint32_t n = 2; n <= 3; n++) deaf.cut[n][1] = true;
    begin_policy(b, &none, 0);
    turns(b, &deaf, 100);
    CHECK_EQ(owned_by(b, 2) + owned_by(b, 3), 16);
    end(b);
}

/* Two see the connection break: they need not wait for silence. One alone is told by the other that it lives. */
TEST(a_broken_connection_counts_when_nobody_else_hears_the_owner) {
    bench *b = &world;
    links none = {0}, one = {0};
    one.cut[1][2] = one.cut[2][1] = true;
    begin_policy(b, &none, 0);
    uint64_t before = takeovers(b);
    kv_replica_lost(b->node[2], 1);
    turns(b, &one, 8);
    CHECK_EQ(takeovers(b), before);
    uint64_t kept = kv_replica_count(b->node[1])->takeovers;
    crash(b, 1);
    kv_replica_lost(b->node[2], 1);
    kv_replica_lost(b->node[3], 1);
    turns(b, &none, 10);
    CHECK(takeovers(b) > before - kept);
    CHECK_EQ(owned_by(b, 2) + owned_by(b, 3), 16);
    end(b);
}

/* --- links, where members differ from shard to shard --- */

static uint32_t owner_of(const bench *b, uint32_t shard_number) {
    for (uint32_t n = 1; n <= b->count; n++)
        if (b->node[n] != NULL && state_of(b, n, shard_number).owned) return n;
    return 0;
}

static void change_until_done(bench *b, const links *none, uint16_t add, uint16_t remove) {
    for (int tries = 0; tries < 40; tries++) {
        kv_member_change c = {.token = ++b->token, .add = add, .remove = remove};
        kv_replica_member_change(b->node[owner_of(b, 0)], &c);
        turns(b, none, 8);
        if (b->answers[c.token].there && b->answers[c.token].reply.status == KV_ANSWER_OK) return;
    }
    CHECK(false);
}

TEST(who_is_linked_with_a_removed_member_alone_loses_the_shard_and_no_other) {
    bench *b = &world;
    links none = {0}, off = {0};
    begin_policy(b, &none, 0);
    CHECK_EQ(join(b), 4);
    turns(b, &none, 100);
    uint32_t old = owner_of(b, 0) % 3 + 1;
    change_until_done(b, &none, 0, (uint16_t)old);
    change_until_done(b, &none, 4, 0);
    turns(b, &none, 200);
    uint32_t owner = owner_of(b, 0), had = owned_by(b, owner);
    for (uint32_t n = 1; n <= 4; n++)
        if (n != owner && n != old) off.cut[owner][n] = off.cut[n][owner] = true;
    turns(b, &off, 200);
    CHECK(owner_of(b, 0) != 0 && owner_of(b, 0) != owner);
    CHECK_EQ(owned_by(b, owner), had - 1); /* Elsewhere the removed one has its vote. */
    turns(b, &none, 200);
    CHECK_EQ(owner_of(b, 0), owner);
    end(b);
}

/* The shard has two members then, and neither of them could get anywhere; in the others they have the third. */
TEST(with_the_one_link_cut_that_a_shard_needs_nobody_tries) {
    bench *b = &world;
    links none = {0}, one = {0};
    begin_policy(b, &none, 0);
    uint32_t owner = owner_of(b, 0), old = owner % 3 + 1, other = 6 - owner - old;
    change_until_done(b, &none, 0, (uint16_t)old);
    turns(b, &none, 100);
    one.cut[owner][other] = one.cut[other][owner] = true;
    uint64_t before = takeovers(b);
    turns(b, &one, 300);
    CHECK_EQ(takeovers(b), before);
    end(b);
}

TEST(who_has_gone_and_comes_back_has_asked_for_nothing) {
    bench *b = &world;
    wire_out out = {0};
    begin(b, 3);
    own(b, 1);
    CHECK_EQ(join(b), 4);
    heartbeat(b);
    wire_begin(&out, WIRE_ASK_POSITION);
    wire_put_varint(&out, 1);
    wire_put_bytes(&out, (const uint8_t[]){1, 0, 0, 0}, 4); /* shard 0, no names; no more shards */
    wire_end(&out);
    CHECK_EQ(kv_replica_receive(b->node[1], 4, out.bytes, out.size), KV_OK);
    CHECK_EQ(kv_replica_part(b->node[1], 4), KV_OK);
    CHECK_EQ(kv_replica_meet(b->node[1], 4), KV_OK);
    tick(b, 1, 11);
    CHECK_EQ(b->node[1]->reads.count, 0);
    CHECK_EQ(b->node[1]->peers[peer_of(b->node[1], 4)].asked, 0);
    wire_free(&out);
    end(b);
}

int main(void) {
    RUN(transcript_a_wait_at_another_replica_ends_with_the_commit);
    RUN(what_is_newer_already_is_told_at_once);
    RUN(who_waits_for_one_name_does_not_hear_of_another);
    RUN(who_waits_for_a_table_hears_of_every_row_and_of_its_end);
    RUN(a_wait_ends_when_its_time_is_up_or_when_it_is_cancelled);
    RUN(no_more_wait_than_may);
    RUN(many_wait_and_each_is_told_once);
    RUN(a_takeover_leaves_those_who_wait_alone);
    RUN(a_snapshot_ends_all_waits_and_forgotten_deletes_are_not_waited_for);
    RUN(transcript_reads_at_another_replica_share_a_question);
    RUN(transcript_a_question_makes_the_owner_end_what_is_over);
    RUN(a_position_includes_an_end_that_is_under_way);
    RUN(a_full_owner_says_of_what_is_over_neither_that_it_is_there_nor_where);
    RUN(a_full_owner_waits_for_what_stands_before_something_that_is_over);
    RUN(a_question_about_names_of_another_shard_is_refused);
    RUN(a_read_that_names_too_much_is_refused);
    RUN(an_owner_remembers_so_many_questions_of_one_peer);
    RUN(a_peer_that_hears_of_no_refusal_is_answered_no_more);
    RUN(a_version_that_no_message_would_hold_is_refused);
    RUN(a_peer_that_prepares_too_often_is_not_remembered);
    RUN(changes_come_in_pages_that_end_between_versions);
    RUN(a_replica_that_is_behind_does_not_send_a_consumer_back);
    RUN(a_trim_is_a_record_and_a_copy_begun_behind_it_goes_on_below_it);
    RUN(another_table_of_the_name_is_begun_anew);
    RUN(a_scan_of_many_moments_and_the_records_behind_its_first_make_one_version);
    RUN(a_hold_does_not_last_for_ever);
    RUN(with_one_link_cut_no_shard_changes_hands);
    RUN(without_hearsay_one_link_sends_shards_back_and_forth);
    RUN(with_one_way_of_a_link_cut_no_shard_changes_hands);
    RUN(who_is_cut_off_from_all_loses_its_shards_and_gets_them_back);
    RUN(who_is_heard_and_hears_nobody_loses_its_shards);
    RUN(a_broken_connection_counts_when_nobody_else_hears_the_owner);
    RUN(who_is_linked_with_a_removed_member_alone_loses_the_shard_and_no_other);
    RUN(with_the_one_link_cut_that_a_shard_needs_nobody_tries);
    RUN(who_has_gone_and_comes_back_has_asked_for_nothing);
    return check_report();
}
