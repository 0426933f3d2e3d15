/* test_replica_odd.c -- asks that are at an edge, options that nobody sets, and logs that no replica writes. */
#include "transcript.h"

/* --- asks --- */

TEST(batches_and_rows_are_routed_by_what_comes_first) {
    bench *b = &world;
    begin_with(b, 1, (kv_replica_options){.shard_count = 4});
    own(b, 1);
    kv_operation rows[] = {op("{x}t", "r", "1"), op(NULL, "{x}a", "2")};
    uint32_t number = kv_shard_of(4, (const uint8_t *)"{x}", 3);
    TOLD(b, 1, batch(rows, 2), KV_ANSWER_OK, 2, 0);
    CHECK_EQ(state_of(b, 1, number).last, 2);
    kv_operation apart[] = {op("{x}t", "r", "1"), op("{y}t", "r", "2")};
    TOLD(b, 1, batch(apart, 2), KV_ANSWER_REFUSED, 0, 0);
    kv_ask careful = batch(rows, 2);
    kv_expectation expected = {.key = (const uint8_t *)"r", .key_size = 1, .table = (const uint8_t *)"{x}t", .table_size = 4,
                               .version = 2};
    careful.expectations = &expected;
    careful.expectation_count = 1;
    TOLD(b, 1, careful, KV_ANSWER_OK, 3, 0);
    TOLD(b, 1, in_table("{open", put("r", "x")), KV_ANSWER_OK, 2, 0); /* A { that nothing closes is like any other byte. */
    end(b);
}

/* More than are looked ahead at, and one among them that has no key. */
TEST(asks_that_come_together_are_answered_as_if_they_came_one_by_one) {
    enum { COUNT = 50, NO_KEY = 20 };
    bench *b = &world;
    kv_ask asks[COUNT];
    begin_with(b, 1, (kv_replica_options){.shard_count = 4});
    own(b, 1);
    for (uint64_t i = 0; i < COUNT; i++) {
        asks[i] = by(with(about(KV_REQUEST_INCR, "n", NULL), 1), 1 + i % 3, 1 + i / 3, 1, 0);
        if (i == NO_KEY) asks[i] = (kv_ask){.kind = KV_REQUEST_PUT, .attempt = 1};
        asks[i].token = ++b->token;
    }
    kv_replica_requests(b->node[1], asks, COUNT);
    kv_replica_requests(b->node[1], asks, 0);
    settle(b);
    forget_said(b);
    for (uint64_t i = 0; i < COUNT; i++) {
        const answer *is = &b->answers[asks[i].token];
        CHECK(is->there);
        CHECK_EQ(is->reply.status, i == NO_KEY ? KV_ANSWER_REFUSED : KV_ANSWER_OK);
        if (i != NO_KEY) CHECK_EQ(is->reply.number, (int64_t)(i < NO_KEY ? i + 1 : i));
    }
    end(b);
}

TEST(what_a_kind_does_not_know_is_refused) {
    static const uint8_t no_row[] = {KV_REQUEST_EXPIRE, KV_REQUEST_DROP, KV_REQUEST_APPEND};
    bench *b = &world;
    begin(b, 1);
    own(b, 1);
    for (size_t i = 0; i < sizeof no_row; i++) TOLD(b, 1, in_table("t", about(no_row[i], "r", "x")), KV_ANSWER_REFUSED, 0, 0);
    TOLD(b, 1, about(KV_REQUEST_ROW_APPEND, "k", "x"), KV_ANSWER_REFUSED, 0, 0);
    kv_ask never = put("k", "v"); /* Attempts begin at 1. */
    never.token = ++b->token;
    kv_replica_request(b->node[1], &never);
    flush(b, 1);
    CHECK_EQ(b->answers[never.token].reply.status, KV_ANSWER_REFUSED);
    CHECK_EQ(state_of(b, 1, 0).last, 1);
    end(b);
}

TEST(names_that_are_none_are_refused_by_reads_and_writes_alike) {
    static char name[KV_KEY_SIZE_MAX + 2];
    bench *b = &world;
    begin(b, 1);
    own(b, 1);
    memset(name, 'x', sizeof name - 1);
    TOLD(b, 1, get(name), KV_ANSWER_REFUSED, 0, 0);
    TOLD(b, 1, put(name, "v"), KV_ANSWER_REFUSED, 0, 0);
    TOLD(b, 1, in_table(name, put("r", "v")), KV_ANSWER_REFUSED, 0, 0);
    TOLD(b, 1, in_table("", put("r", "v")), KV_ANSWER_REFUSED, 0, 0);
    end(b);
}

TEST(a_sum_that_does_not_fit_is_a_condition_that_failed) {
    bench *b = &world;
    begin(b, 1);
    own(b, 1);
    TOLD(b, 1, with(about(KV_REQUEST_INCR, "n", NULL), INT64_MAX), KV_ANSWER_OK, 2, INT64_MAX);
    answer is = told(b, 1, with(about(KV_REQUEST_INCR, "n", NULL), 1));
    CHECK_EQ(is.reply.status, KV_ANSWER_FAILED);
    CHECK_EQ(is.reply.error, KV_EOVERFLOW);
    TOLD(b, 1, in_table("t", put("r", "v")), KV_ANSWER_OK, 3, 0);
    is = told(b, 1, about(KV_REQUEST_APPEND, "t", "v"));
    CHECK_EQ(is.reply.error, KV_EWRONGTYPE);
    end(b);
}

TEST(a_batch_that_no_frame_holds_is_refused) {
    enum { LARGE = 900 << 10, MANY = 40, OPERATIONS = BATCH_RECORDS_MAX / 2 + 1 };
    bench *b = &world;
    kv_operation *all = calloc(OPERATIONS, sizeof *all);
    char *large = malloc(LARGE + 1);
    KV_ASSERT(all != NULL && large != NULL);
    memset(large, 'x', LARGE);
    large[LARGE] = 0;
    for (size_t i = 0; i < OPERATIONS; i++) all[i] = op(NULL, "k", i < MANY ? large : NULL);
    begin(b, 1);
    own(b, 1);
    TOLD(b, 1, batch(all, MANY), KV_ANSWER_REFUSED, 0, 0);
    TOLD(b, 1, batch(all, OPERATIONS), KV_ANSWER_REFUSED, 0, 0);
    end(b);
    free(large);
    free(all);
}

TEST(a_large_value_is_read_as_it_was_written) {
    enum { LARGE = 300000 };
    bench *b = &world;
    char *large = malloc(LARGE + 1);
    KV_ASSERT(large != NULL);
    memset(large, 'y', LARGE);
    large[LARGE] = 0;
    kv_options store = {.segment_size_min = 1 << 20, .segment_size_max = 1 << 20};
    begin_with(b, 1, (kv_replica_options){.shard_count = 1, .store = store});
    own(b, 1);
    TOLD(b, 1, put("k", large), KV_ANSWER_OK, 2, 0);
    answer is = told(b, 1, get("k"));
    CHECK_EQ(is.reply.value_size, LARGE);
    CHECK_EQ(strspn(is.value, "y"), VALUE_MAX - 1);
    end(b);
    free(large);
}

/* One message carries a megabyte or a little more; what else there is comes in the next. */
TEST(large_records_go_in_messages_of_their_own) {
    enum { LARGE = 700 << 10 };
    bench *b = &world;
    char *large = malloc(LARGE + 1);
    KV_ASSERT(large != NULL);
    memset(large, 'z', LARGE);
    large[LARGE] = 0;
    kv_options store = {.segment_size_min = 8 << 20, .segment_size_max = 8 << 20};
    begin_with(b, 3, (kv_replica_options){.shard_count = 2, .inline_max = KV_INLINE_SIZE_MAX, .store = store});
    own(b, 1);
    for (int i = 0; i < 6; i++) ask_beside(b, 1, put((const char *[]){"a", "b", "c", "d", "e", "f"}[i], large));
    flush(b, 1);
    CHECK(b->mail[1][2][0].size > LARGE && b->mail[1][2][0].size < 3 * LARGE);
    settle(b);
    forget_said(b);
    for (uint32_t s = 0; s < 2; s++) {
        CHECK(state_of(b, 1, s).last > 1);
        CHECK_EQ(state_of(b, 1, s).commit, state_of(b, 1, s).last);
    }
    end(b);
    free(large);
}

TEST(who_comes_when_too_many_wait_is_told_to_come_again) {
    bench *b = &world;
    begin_with(b, 3, (kv_replica_options){.shard_count = 1, .pending_max = 2});
    own(b, 1);
    ask(b, 1, put("a", "x"));
    ask(b, 1, put("b", "x"));
    forget_said(b);
    ask(b, 1, put("c", "x"));
    SAID(b, "1 answers retry\n");
    settle(b);
    forget_said(b);
    TOLD(b, 1, put("c", "x"), KV_ANSWER_OK, 4, 0);
    end(b);
}

TEST(what_was_asked_during_a_takeover_is_answered_also_if_that_fails) {
    bench *b = &world;
    begin(b, 3);
    takeover(b, 1);
    ask(b, 1, put("a", "x"));
    kv_operation all[] = {op("{x}t", "", "1")};
    kv_ask careful = batch(all, 1);
    kv_expectation absent = {.key = (const uint8_t *)"{x}", .key_size = 3};
    careful.expectations = &absent;
    careful.expectation_count = 1;
    ask(b, 1, careful);
    SAID(b, "");
    tick(b, 1, 9); /* Nobody answers. */
    SAID(b, "1 answers retry\n1 answers retry\n");
    end(b);
}

/* The reads of a replica that is one no more; and one that is killed with reads and queued asks. */
TEST(what_waits_when_a_replica_goes_is_freed) {
    bench *b = &world;
    begin(b, 3);
    own(b, 1);
    ask(b, 1, get("a"));
    ask(b, 2, at_follower(get("a")));
    ask(b, 1, put("a", "x"));
    takeover(b, 3);
    ask(b, 3, put("a", "x"));
    end(b);
}

TEST(an_expired_table_ends_with_its_rows) {
    bench *b = &world;
    begin(b, 1);
    own(b, 1);
    TOLD(b, 1, in_table("t", put("r", "v")), KV_ANSWER_OK, 2, 0);
    TOLD(b, 1, expiring(about(KV_REQUEST_EXPIRE, "t", NULL), 1000), KV_ANSWER_OK, 3, 0);
    TOLD(b, 1, expiring(in_table("u", put("r", "v")), 1000), KV_ANSWER_OK, 4, 0);
    kv_sim_set_clock(b->disk[1], START_MS + 1000);
    VALUE(b, 1, in_table("t", get("r")), "-");
    kv_ask next = {.kind = KV_REQUEST_ROW_APPEND, .value = (const uint8_t *)"w", .value_size = 1};
    answer is = told(b, 1, in_table("t", next)); /* In a table of the same name, and another life. */
    CHECK_EQ(is.reply.status, KV_ANSWER_OK);
    CHECK_EQ(kv_table_look(kv_replica_caller(b->node[1]), (const uint8_t *)"t", 1), 1);
    end(b);
}

/* --- looking --- */

TEST(a_version_that_is_not_held_is_not_shown) {
    bench *b = &world;
    kv_record record;
    begin_with(b, 1, (kv_replica_options){.shard_count = 1, .keep_max = 1});
    own(b, 1);
    for (int i = 0; i < 8; i++) told(b, 1, put("a", "x"));
    tick(b, 1, 1);
    uint64_t base = state_of(b, 1, 0).base, last = state_of(b, 1, 0).last;
    CHECK(base > 0);
    CHECK_EQ(kv_replica_record(b->node[1], 0, base, 0, &record), KV_ABSENT);
    CHECK_EQ(kv_replica_record(b->node[1], 0, last + 1, 0, &record), KV_ABSENT);
    CHECK_EQ(kv_replica_record(b->node[1], 0, last, 0, &record), KV_OK);
    CHECK_EQ(kv_replica_record(b->node[1], 0, last, 1, &record), KV_EOF);
    CHECK_EQ(kv_replica_record(b->node[1], 0, last, 2, &record), KV_EOF);
    CHECK_EQ(kv_replica_digest(b->node[1], 0, base), 0);
    CHECK_EQ(kv_replica_digest(b->node[1], 0, last + 1), 0);
    size_t size;
    CHECK(kv_replica_outbox(b->node[1], 9, &size) == NULL);
    end(b);
}

TEST(every_option_may_be_set) {
    bench *b = &world;
    begin_with(b, 1, (kv_replica_options){.shard_count = 1, .session_max = 1, .keep_max = 1, .piece_tables = 1, .batch_max = 1,
                                          .window_size_max = 1, .retransmit_ticks = 1, .takeover_ticks = 1, .read_ticks = 1,
                                          .heartbeat_ticks = 1, .silence_ticks = 1, .hold_ticks = 1, .healthy_ticks = 1,
                                          .pending_max = 9, .policy = 1, .incarnation_min = 77,
                                          .inline_max = 100, .fetch_size_max = 1});
    CHECK_EQ(b->node[1]->incarnation, 77);
    tick(b, 1, 3);
    settle(b);
    CHECK(state_of(b, 1, 0).owned); /* By the policy. */
    forget_said(b);
    char large[102] = {0};
    memset(large, 'x', 101);
    kv_record record;
    TOLD(b, 1, put("k", large), KV_ANSWER_OK, 2, 0);
    CHECK_EQ(kv_replica_record(b->node[1], 0, 2, 0, &record), KV_OK);
    CHECK_EQ(record.value_size, KV_META_SIZE);
    TOLD(b, 1, put("k", large + 1), KV_ANSWER_OK, 3, 0);
    CHECK_EQ(kv_replica_record(b->node[1], 0, 3, 0, &record), KV_OK);
    CHECK_EQ(record.value_size, 100);
    end(b);
}

/* --- policy, with one whose disk lost something --- */

TEST(who_does_not_vote_is_offered_nothing_and_takes_nothing) {
    bench *b = &world;
    kv_replica_options options = {.shard_count = 1, .policy = 1, .hold_ticks = 5, .healthy_ticks = 4, .silence_ticks = 5};
    begin_with(b, 3, options);
    CHECK_EQ(kv_owner_rank(b->options.members, 3, 0, 3), 0);
    kv_replica_free(b->node[3]);
    b->options.damaged = 1;
    boot(b, 3);
    b->options.damaged = 0;
    sync_node(b, 3);
    own(b, 1);
    for (int i = 0; i < 20; i++) {
        for (uint32_t n = 1; n <= 3; n++) tick(b, n, 1);
        settle(b);
    }
    forget_said(b);
    CHECK(state_of(b, 1, 0).owned);
    CHECK_EQ(kv_replica_count(b->node[1])->offers, 0);
    CHECK_EQ(kv_replica_count(b->node[3])->takeovers, 0);
    wire_out out = {0};
    wire_begin(&out, WIRE_OFFER);
    wire_put_varint(&out, 0);
    wire_end(&out);
    CHECK_EQ(kv_replica_receive(b->node[3], 1, out.bytes, out.size), KV_OK);
    CHECK(!state_of(b, 3, 0).taking);
    wire_free(&out);
    b->mail_count[1][3] = 0;
    VALUE(b, 1, get("a"), "-"); /* Two of three are enough, and it is none of them. */
    end(b);
}

/* --- logs --- */

/* Opens the log again, with as many shards; what comes of it. */
static kv_status open_again(bench *b, uint32_t shard_count) {
    kv_fault fault;
    kv_replica_options options = b->options;
    options.node = 1;
    options.shard_count = shard_count;
    kv_replica_free(b->node[1]);
    b->node[1] = NULL;
    return kv_replica_open(kv_sim_io(b->disk[1]), &options, &fault, &b->node[1]);
}

TEST(a_log_of_more_shards_is_not_opened) {
    for (int commits = 0; commits < 2; commits++) {
        bench *b = &world;
        begin_with(b, 1, (kv_replica_options){.shard_count = 4});
        if (commits) own(b, 1);
        else takeover(b, 1);
        forget_said(b);
        CHECK_EQ(open_again(b, 2), KV_ECORRUPT);
        CHECK_EQ(open_again(b, 4), KV_OK);
        end(b);
    }
}

typedef struct odd_record {
    uint8_t kind;
    uint16_t shard;
    uint64_t version;
    const char *value;
    uint32_t size;
    bool of_a_version, moved;
    kv_status expected;
} odd_record;

static void append_odd(bench *b, const odd_record *o) {
    kv_position position;
    uint32_t used;
    uint64_t version = o->version != 0 ? o->version : kv_flow_sequence(kv_replica_flow(b->node[1])) + 1;
    kv_record record = {.kind = o->kind, .shard = o->shard, .version = version, .ballot = ballot_make(1, 1),
                        .prev_ballot = ballot_make(1, 1), .options = KV_HAS_SEQUENCE | KV_HAS_BALLOT,
                        .value = (const uint8_t *)o->value, .value_size = o->size};
    if (o->of_a_version) record.options = LATE_OPTIONS;
    if (o->moved) record.flags = KV_FLAG_MOVED;
    if (o->moved) record.key = (const uint8_t *)"k";
    if (o->moved) record.key_size = 1;
    CHECK_EQ(late_append(kv_replica_store(b->node[1]), &record, 1, &position, &used), KV_OK);
}

TEST(a_record_that_no_replica_writes_is_damage) {
    static const odd_record all[] = {
        {.kind = KV_KIND_BARRIER, .shard = 0, .version = 3, .of_a_version = true, .expected = KV_OK}, /* the next version */
        {.kind = KV_KIND_BARRIER, .shard = 0, .version = 4, .of_a_version = true, .expected = KV_ECORRUPT}, /* a gap */
        {.kind = KV_KIND_BARRIER, .shard = 0, .version = 1, .of_a_version = true, .expected = KV_ECORRUPT}, /* applied */
        {.kind = KV_KIND_BARRIER, .shard = 1, .version = 1, .of_a_version = true, .expected = KV_ECORRUPT}, /* no such shard */
        {.kind = KV_KIND_PROMISE, .value = "\0\0", .size = 2, .expected = KV_OK},
        {.kind = KV_KIND_PROMISE, .value = "\1\0", .size = 2, .expected = KV_ECORRUPT},
        {.kind = KV_KIND_COMMIT, .value = "\0\0\2\0\0\0\0\0\0\0", .size = 10, .expected = KV_OK},
        {.kind = KV_KIND_COMMIT, .value = "\0\0\1\0\0\0\0\0\0\0", .size = 10, .expected = KV_OK}, /* it was known already */
        {.kind = KV_KIND_COMMIT, .value = "\0\0\x63\0\0\0\0\0\0\0", .size = 10, .expected = KV_OK}, /* more than there is */
        {.kind = KV_KIND_COMMIT, .value = "\1\0\0\0\0\0\0\0\0\0", .size = 10, .expected = KV_ECORRUPT},
        {.kind = KV_KIND_NODE, .value = "\1\0\0\0\0\0\0\0", .size = 8, .expected = KV_OK},
        {.kind = KV_KIND_NODE, .value = "\1", .size = 1, .expected = KV_ECORRUPT},
        {.kind = KV_KIND_PUT, .value = "v", .size = 1, .expected = KV_ECORRUPT}, /* of no version, and not moved */
        {.kind = KV_KIND_PUT, .value = "v", .size = 1, .moved = true, .expected = KV_OK},
        {.kind = KV_KIND_SNAPSHOT_BEGIN, .shard = 0, .expected = KV_OK},
        {.kind = KV_KIND_SNAPSHOT_BEGIN, .shard = 1, .expected = KV_ECORRUPT},
        {.kind = KV_KIND_SNAPSHOT_END, .shard = 0, .value = "x", .size = 1, .expected = KV_ECORRUPT},
        {.kind = KV_KIND_SNAPSHOT_END, .shard = 0, .value = "\7\0\0\0\0\0\0\0" "\0\0\0\0\0\0\0\0" "\7\0\0\0\0\0\0\0" "\1\1\0\0\0",
         .size = 29, .expected = KV_OK},
        {.kind = KV_KIND_SNAPSHOT_END, .shard = 0, .value = "\7\0\0\0\0\0\0\0" "\0\0\0\0\0\0\0\0" "\7\0\0\0\0\0\0\0" "\0\0\0",
         .size = 27, .expected = KV_ECORRUPT}, /* of no members */
        {.kind = KV_KIND_CONFIG, .version = 3, .value = "\1\0", .size = 2, .of_a_version = true, .expected = KV_OK},
        {.kind = KV_KIND_CONFIG, .version = 3, .value = "\0\0", .size = 2, .of_a_version = true, .expected = KV_ECORRUPT},
        {.kind = KV_KIND_SNAPSHOT_END, .shard = 0, .value = "\7\0\0\0\0\0\0\0" "\0\0\0\0\0\0\0\0" "\7\0\0\0\0\0\0\0" "\1\1\0\0\1",
         .size = 29, .expected = KV_ECORRUPT}, /* a lane is missing */
        {.kind = KV_KIND_SNAPSHOT_END, .shard = 0, .value = "\7\0\0\0\0\0\0\0" "\0\0\0\0\0\0\0\0" "\7\0\0\0\0\0\0\0" "\1\1\0\0\x7f",
         .size = 29, .expected = KV_ECORRUPT}, /* more lanes than a shard remembers */
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        bench *b = &world;
        begin_with(b, 1, (kv_replica_options){.shard_count = 1, .session_max = 8});
        own(b, 1);
        TOLD(b, 1, put("a", "x"), KV_ANSWER_OK, 2, 0);
        heartbeat(b);
        append_odd(b, &all[i]);
        kv_status status = open_again(b, 1);
        if (status != all[i].expected) printf("record %zu: %s\n", i, kv_status_name(status));
        CHECK_EQ(status, all[i].expected);
        end(b);
    }
}

int main(void) {
    RUN(batches_and_rows_are_routed_by_what_comes_first);
    RUN(asks_that_come_together_are_answered_as_if_they_came_one_by_one);
    RUN(what_a_kind_does_not_know_is_refused);
    RUN(names_that_are_none_are_refused_by_reads_and_writes_alike);
    RUN(a_sum_that_does_not_fit_is_a_condition_that_failed);
    RUN(a_batch_that_no_frame_holds_is_refused);
    RUN(a_large_value_is_read_as_it_was_written);
    RUN(large_records_go_in_messages_of_their_own);
    RUN(who_comes_when_too_many_wait_is_told_to_come_again);
    RUN(what_was_asked_during_a_takeover_is_answered_also_if_that_fails);
    RUN(what_waits_when_a_replica_goes_is_freed);
    RUN(an_expired_table_ends_with_its_rows);
    RUN(a_version_that_is_not_held_is_not_shown);
    RUN(every_option_may_be_set);
    RUN(who_does_not_vote_is_offered_nothing_and_takes_nothing);
    RUN(a_log_of_more_shards_is_not_opened);
    RUN(a_record_that_no_replica_writes_is_damage);
    return check_report();
}
