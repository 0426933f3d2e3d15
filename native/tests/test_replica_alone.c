/* test_replica_alone.c -- a set of one: every kind of request, what a restart finds, and what no replica would take. */
#include "transcript.h"

TEST(alone_it_owns_everything) {
    bench *b = &world;
    begin_with(b, 1, (kv_replica_options){.shard_count = 4});
    TOLD(b, 1, put("k", "v"), KV_ANSWER_RETRY, 0, 0); /* Not before it took it over. */
    takeover(b, 1);
    for (uint32_t s = 0; s < 4; s++) CHECK(!state_of(b, 1, s).owned);
    settle(b);
    for (uint32_t s = 0; s < 4; s++) {
        CHECK(state_of(b, 1, s).owned);
        CHECK_EQ(state_of(b, 1, s).commit, 1); /* the barrier */
    }
    end(b);
}

TEST(alone_nothing_is_answered_before_it_is_durable) {
    bench *b = &world;
    begin(b, 1);
    own(b, 1);
    ask(b, 1, put("a", "x"));
    ask(b, 1, get("a"));
    tick(b, 1, 1);
    SAID(b, "1 answers ok\n"); /* As of the barrier; the put is later. */
    ask(b, 1, put("b", "y"));
    durable(b, 1);
    SAID(b, "1 durable\n1 answers ok version 2\n1 answers ok version 3\n");
    end(b);
}

TEST(alone_every_kind_of_write) {
    bench *b = &world;
    begin(b, 1);
    own(b, 1);
    TOLD(b, 1, put("k", "one"), KV_ANSWER_OK, 2, 0);
    VALUE(b, 1, get("k"), "one");
    TOLD(b, 1, with(about(KV_REQUEST_CAS, "k", "two"), 1), KV_ANSWER_FAILED, 2, 0);
    TOLD(b, 1, with(about(KV_REQUEST_CAS, "k", "two"), 2), KV_ANSWER_OK, 3, 0);
    TOLD(b, 1, with(about(KV_REQUEST_CAS, "new", "x"), 0), KV_ANSWER_OK, 4, 0);
    VALUE(b, 1, get("k"), "two");
    TOLD(b, 1, about(KV_REQUEST_APPEND, "k", "!!"), KV_ANSWER_OK, 5, 5);
    VALUE(b, 1, get("k"), "two!!");
    TOLD(b, 1, with(about(KV_REQUEST_INCR, "n", NULL), 40), KV_ANSWER_OK, 6, 40);
    TOLD(b, 1, with(about(KV_REQUEST_INCR, "n", NULL), -50), KV_ANSWER_OK, 7, -10);
    TOLD(b, 1, with(about(KV_REQUEST_INCR, "k", NULL), 1), KV_ANSWER_FAILED, 0, 0);
    TOLD(b, 1, with(about(KV_REQUEST_DELETE, "k", NULL), 4), KV_ANSWER_FAILED, 5, 0);
    TOLD(b, 1, with(about(KV_REQUEST_DELETE, "k", NULL), -1), KV_ANSWER_OK, 8, 0);
    TOLD(b, 1, with(about(KV_REQUEST_DELETE, "k", NULL), -1), KV_ANSWER_FAILED, 0, 0);
    VALUE(b, 1, get("k"), "-");
    VALUE(b, 1, get("n"), "-10");
    end(b);
}

TEST(alone_rows_and_tables) {
    bench *b = &world;
    begin(b, 1);
    own(b, 1);
    TOLD(b, 1, in_table("t", put("r", "one")), KV_ANSWER_OK, 2, 0);
    VALUE(b, 1, in_table("t", get("r")), "one");
    VALUE(b, 1, in_table("t", get("other")), "-");
    VALUE(b, 1, get("t"), "wrong type");
    TOLD(b, 1, in_table("t", with(about(KV_REQUEST_CAS, "r", "two"), 2)), KV_ANSWER_OK, 3, 0);
    TOLD(b, 1, in_table("t", with(about(KV_REQUEST_INCR, "n", NULL), 5)), KV_ANSWER_OK, 4, 5);
    answer given = told(b, 1, in_table("t", about(KV_REQUEST_ROW_APPEND, "", "three"))), next;
    next = told(b, 1, in_table("t", about(KV_REQUEST_ROW_APPEND, "", "four")));
    CHECK(given.reply.number > 0 && next.reply.number > given.reply.number);
    TOLD(b, 1, in_table("t", with(about(KV_REQUEST_DELETE, "r", NULL), -1)), KV_ANSWER_OK, 7, 0);
    VALUE(b, 1, in_table("t", get("r")), "-");
    CHECK_EQ(kv_table_look(kv_replica_caller(b->node[1]), (const uint8_t *)"t", 1), 3);
    TOLD(b, 1, put("t", "value"), KV_ANSWER_OK, 8, 0); /* Replaces it. */
    VALUE(b, 1, get("t"), "value");
    TOLD(b, 1, in_table("t", put("r", "x")), KV_ANSWER_FAILED, 0, 0);
    TOLD(b, 1, in_table("u", put("r", "x")), KV_ANSWER_OK, 9, 0);
    TOLD(b, 1, about(KV_REQUEST_DROP, "u", NULL), KV_ANSWER_OK, 10, 0);
    TOLD(b, 1, about(KV_REQUEST_DROP, "u", NULL), KV_ANSWER_FAILED, 0, 0);
    end(b);
}

TEST(alone_a_batch_is_one_version) {
    bench *b = &world;
    begin(b, 1);
    own(b, 1);
    kv_operation all[] = {op(NULL, "{x}a", "1"), op(NULL, "{x}b", "2"), op("{x}t", "r", "3")};
    TOLD(b, 1, batch(all, 3), KV_ANSWER_OK, 2, 0);
    VALUE(b, 1, get("{x}a"), "1");
    VALUE(b, 1, get("{x}b"), "2");
    VALUE(b, 1, in_table("{x}t", get("r")), "3");
    kv_operation apart[] = {op(NULL, "{x}a", "1"), op(NULL, "{y}b", "2")};
    TOLD(b, 1, batch(apart, 2), KV_ANSWER_OK, 3, 0); /* Of two slots: one shard has all of them. */
    kv_expectation stands = {.key = (const uint8_t *)"{x}a", .key_size = 4, .version = 3};
    kv_ask careful = batch(all, 2);
    careful.expectations = &stands;
    careful.expectation_count = 1;
    TOLD(b, 1, careful, KV_ANSWER_OK, 4, 0);
    TOLD(b, 1, careful, KV_ANSWER_FAILED, 4, 0); /* It stands at 4 now. */
    end(b);
}

TEST(alone_time_ends_things_by_a_delete) {
    bench *b = &world;
    begin(b, 1);
    own(b, 1);
    TOLD(b, 1, expiring(put("k", "v"), 1000), KV_ANSWER_OK, 2, 0);
    TOLD(b, 1, put("stays", "v"), KV_ANSWER_OK, 3, 0);
    TOLD(b, 1, expiring(about(KV_REQUEST_EXPIRE, "stays", NULL), 500), KV_ANSWER_OK, 4, 0);
    TOLD(b, 1, about(KV_REQUEST_EXPIRE, "stays", NULL), KV_ANSWER_OK, 5, 0); /* Never, after all. */
    TOLD(b, 1, expiring(in_table("t", put("r", "v")), 1000), KV_ANSWER_OK, 6, 0);
    kv_sim_set_clock(b->disk[1], START_MS + 999);
    VALUE(b, 1, get("k"), "v");
    CHECK_EQ(state_of(b, 1, 0).last, 6);
    kv_sim_set_clock(b->disk[1], START_MS + 1000);
    VALUE(b, 1, get("k"), "-");
    CHECK_EQ(state_of(b, 1, 0).last, 7);
    VALUE(b, 1, get("k"), "-");
    CHECK_EQ(state_of(b, 1, 0).last, 7); /* Once. */
    VALUE(b, 1, in_table("t", get("r")), "-");
    VALUE(b, 1, get("stays"), "v");
    CHECK_EQ(kv_replica_count(b->node[1])->expired, 2);
    TOLD(b, 1, expiring(put("k", "again"), 1000), KV_ANSWER_OK, 9, 0);
    kv_sim_set_clock(b->disk[1], START_MS + 9000);
    TOLD(b, 1, with(about(KV_REQUEST_CAS, "k", "new"), 0), KV_ANSWER_OK, 11, 0); /* Its delete is 10. */
    VALUE(b, 1, get("k"), "new");
    end(b);
}

TEST(alone_what_was_answered_is_there_after_a_restart) {
    bench *b = &world;
    begin(b, 1);
    own(b, 1);
    TOLD(b, 1, put("k", "one"), KV_ANSWER_OK, 2, 0);
    TOLD(b, 1, in_table("t", put("r", "two")), KV_ANSWER_OK, 3, 0);
    heartbeat(b); /* A watermark. */
    TOLD(b, 1, put("k", "three"), KV_ANSWER_OK, 4, 0);
    restart(b, 1);
    CHECK(!state_of(b, 1, 0).owned);
    CHECK_EQ(state_of(b, 1, 0).last, 4);
    TOLD(b, 1, get("k"), KV_ANSWER_RETRY, 0, 0);
    own(b, 1);
    VALUE(b, 1, get("k"), "three");
    VALUE(b, 1, in_table("t", get("r")), "two");
    TOLD(b, 1, put("k", "five"), KV_ANSWER_OK, 6, 0); /* Behind a barrier of its own. */
    CHECK_EQ(ballot_round(state_of(b, 1, 0).promised), 2);
    end(b);
}

TEST(alone_a_lane_is_told_the_same_again_also_after_a_restart) {
    bench *b = &world;
    begin(b, 1);
    own(b, 1);
    TOLD(b, 1, by(with(about(KV_REQUEST_INCR, "n", NULL), 5), 77, 1, 1, 0), KV_ANSWER_OK, 2, 5);
    TOLD(b, 1, by(with(about(KV_REQUEST_INCR, "n", NULL), 5), 77, 1, 2, 0), KV_ANSWER_OK, 2, 5);
    TOLD(b, 1, by(with(about(KV_REQUEST_CAS, "n", "x"), 9), 77, 2, 2, 0), KV_ANSWER_FAILED, 2, 0); /* Recorded. */
    CHECK_EQ(state_of(b, 1, 0).last, 3);
    TOLD(b, 1, by(with(about(KV_REQUEST_INCR, "n", NULL), 5), 77, 1, 3, 0), KV_ANSWER_UNKNOWN, 0, 0); /* Long ago. */
    restart(b, 1);
    own(b, 1);
    TOLD(b, 1, by(with(about(KV_REQUEST_CAS, "n", "x"), 9), 77, 2, 3, 0), KV_ANSWER_FAILED, 2, 0);
    TOLD(b, 1, by(with(about(KV_REQUEST_INCR, "n", NULL), 1), 77, 3, 1, 0), KV_ANSWER_OK, 5, 6);
    CHECK_EQ(kv_replica_count(b->node[1])->deduplicated, 1);
    end(b);
}

/* The record that says what came of it is the one that a restart reads. */
TEST(alone_a_first_row_is_told_the_same_again_after_a_restart) {
    bench *b = &world;
    begin(b, 1);
    own(b, 1);
    answer row = told(b, 1, by(in_table("t", about(KV_REQUEST_ROW_APPEND, "", "v")), 7, 1, 1, 0));
    TOLD(b, 1, by(in_table("u", with(about(KV_REQUEST_INCR, "r", NULL), 5)), 8, 1, 1, 0), KV_ANSWER_OK, 3, 5);
    restart(b, 1);
    own(b, 1);
    TOLD(b, 1, by(in_table("t", about(KV_REQUEST_ROW_APPEND, "", "v")), 7, 1, 2, 0), KV_ANSWER_OK, 2, row.reply.number);
    TOLD(b, 1, by(in_table("u", with(about(KV_REQUEST_INCR, "r", NULL), 5)), 8, 1, 2, 0), KV_ANSWER_OK, 3, 5);
    end(b);
}

TEST(what_no_replica_would_take_is_refused) {
    static char large[KV_INLINE_SIZE_MAX + 2];
    bench *b = &world;
    begin(b, 1);
    own(b, 1);
    memset(large, 'x', sizeof large - 1);
    TOLD(b, 1, put("", "v"), KV_ANSWER_REFUSED, 0, 0);
    TOLD(b, 1, put("k", large), KV_ANSWER_REFUSED, 0, 0);
    TOLD(b, 1, about(KV_REQUEST_KIND_END, "k", NULL), KV_ANSWER_REFUSED, 0, 0);
    TOLD(b, 1, about(0, "k", NULL), KV_ANSWER_REFUSED, 0, 0);
    TOLD(b, 1, (kv_ask){.kind = KV_REQUEST_PUT}, KV_ANSWER_REFUSED, 0, 0);
    CHECK_EQ(state_of(b, 1, 0).last, 1);
    end(b);
}

static kv_status open_with(kv_replica_options options) {
    kv_fault fault;
    kv_replica *r;
    kv_sim *disk = kv_sim_new();
    kv_status status = kv_replica_open(kv_sim_io(disk), &options, &fault, &r);
    if (status == KV_OK) kv_replica_free(r);
    kv_sim_free(disk);
    return status;
}

TEST(members_that_make_no_set_are_refused) {
    CHECK_EQ(open_with((kv_replica_options){.node = 1, .member_count = 3, .members = {1, 2, 3}}), KV_OK);
    CHECK_EQ(open_with((kv_replica_options){.node = 4, .member_count = 3, .members = {1, 2, 3}}), KV_EUSAGE);
    CHECK_EQ(open_with((kv_replica_options){.node = 1, .member_count = 3, .members = {1, 2, 2}}), KV_EUSAGE);
    CHECK_EQ(open_with((kv_replica_options){.node = 1, .member_count = 3, .members = {1, 2, 0}}), KV_EUSAGE);
    CHECK_EQ(open_with((kv_replica_options){.node = 1, .member_count = 0, .members = {1}}), KV_EUSAGE);
    CHECK_EQ(open_with((kv_replica_options){.node = 1, .member_count = KV_MEMBERS_MAX + 1, .members = {1}}), KV_EUSAGE);
    CHECK_EQ(open_with((kv_replica_options){.node = 1, .member_count = 1, .members = {1}, .shard_count = KV_SHARDS_MAX + 1}), KV_EUSAGE);
}

TEST(slots_are_those_of_redis_cluster) {
    CHECK_EQ(kv_slot_of((const uint8_t *)"123456789", 9), 0x31C3); /* The check value of CRC-16/XMODEM; below 16384. */
    CHECK_EQ(kv_slot_of((const uint8_t *)"foo", 3), 12182);
    CHECK_EQ(kv_slot_of((const uint8_t *)"{foo}bar", 8), 12182);
    CHECK_EQ(kv_slot_of((const uint8_t *)"x{foo}{bar}", 11), 12182); /* The first { and the } behind it. */
    CHECK(kv_slot_of((const uint8_t *)"{}foo", 5) != 12182);
    CHECK_EQ(kv_shard_of(64, (const uint8_t *)"foo", 3), 12182 * 64 / 16384);
    CHECK_EQ(kv_shard_of(1, (const uint8_t *)"foo", 3), 0);
}

int main(void) {
    RUN(alone_it_owns_everything);
    RUN(alone_nothing_is_answered_before_it_is_durable);
    RUN(alone_every_kind_of_write);
    RUN(alone_rows_and_tables);
    RUN(alone_a_batch_is_one_version);
    RUN(alone_time_ends_things_by_a_delete);
    RUN(alone_what_was_answered_is_there_after_a_restart);
    RUN(alone_a_lane_is_told_the_same_again_also_after_a_restart);
    RUN(alone_a_first_row_is_told_the_same_again_after_a_restart);
    RUN(what_no_replica_would_take_is_refused);
    RUN(members_that_make_no_set_are_refused);
    RUN(slots_are_those_of_redis_cluster);
    return check_report();
}
