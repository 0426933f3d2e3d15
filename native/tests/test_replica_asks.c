/* test_replica_asks.c -- what a replica logs of a request, and which requests it does not take. A set of one. */
#include "check.h"
#include "kv/io_sim.h"
#include "kv/replica.h"

enum { TABLE_SHARD_COUNT = 64 };

typedef struct fixture {
    kv_sim *disk;
    kv_replica *core;
} fixture;

static const uint8_t *bytes(const char *text) { return (const uint8_t *)text; }

static void durable(fixture *f) {
    kv_replica_durable(f->core, kv_replica_tail(f->core));
    kv_replica_flush(f->core);
}

static void begin(fixture *f) {
    kv_fault fault;
    uint16_t all[TABLE_SHARD_COUNT];
    kv_replica_options options = {.node = 1, .members = {1}, .member_count = 1};
    options.store.segment_size_min = options.store.segment_size_max = 4 << 20;
    *f = (fixture){.disk = kv_sim_new()};
    kv_sim_set_recording(f->disk, 0);
    CHECK_EQ(kv_replica_open(kv_sim_io(f->disk), &options, &fault, &f->core), KV_OK);
    durable(f);
    for (uint16_t i = 0; i < TABLE_SHARD_COUNT; i++) all[i] = i;
    kv_replica_takeover(f->core, all, TABLE_SHARD_COUNT);
    durable(f);
    durable(f);
}

static void end(fixture *f) {
    kv_replica_free(f->core);
    kv_sim_free(f->disk);
}

static kv_reply ask(fixture *f, kv_ask *a) {
    const kv_reply *replies;
    const uint8_t *values;
    size_t count;
    kv_reply reply = {.status = -1};
    a->attempt = 1;
    a->client = 7;
    a->lane = 1;
    a->number++;
    kv_replica_request(f->core, a);
    durable(f);
    kv_replica_answers(f->core, &replies, &count, &values);
    CHECK_EQ(count, 1);
    if (count == 1) reply = replies[0];
    kv_replica_clear(f->core);
    return reply;
}

/* What is logged of it is what another replica will say to the same request. */
TEST(a_row_that_brings_its_table_is_logged_with_what_was_answered) {
    static const uint8_t kinds[] = {KV_REQUEST_ROW_APPEND, KV_REQUEST_INCR};
    for (int i = 0; i < 2; i++) {
        fixture f;
        begin(&f);
        kv_ask a = {.kind = kinds[i], .table = bytes("t"), .table_size = 1, .key = bytes("r"), .key_size = 1, .value = bytes("v"),
                    .value_size = 1, .argument = 5};
        kv_reply reply = ask(&f, &a);
        CHECK_EQ(reply.status, KV_ANSWER_OK);
        CHECK(reply.number != 0);
        kv_record record;
        int carried = 0;
        for (uint32_t nth = 0; kv_replica_record(f.core, kv_shard_of(64, bytes("t"), 1), reply.version, nth, &record) == KV_OK; nth++) {
            if ((record.options & KV_HAS_REQUEST) == 0) continue;
            carried++;
            CHECK_EQ(record.request.result, reply.number);
        }
        CHECK_EQ(carried, 1);
        end(&f);
    }
}

TEST(a_batch_with_a_value_that_no_frame_holds_is_refused) {
    fixture f;
    begin(&f);
    uint8_t *large = calloc(1, (16 << 20) + 1);
    kv_operation operation = {.key = bytes("k"), .key_size = 1, .value = large, .value_size = (16 << 20) + 1};
    kv_ask a = {.kind = KV_REQUEST_BATCH, .operations = &operation, .operation_count = 1};
    kv_reply reply = ask(&f, &a);
    CHECK_EQ(reply.status, KV_ANSWER_REFUSED);
    CHECK_EQ(reply.error, KV_EVALUESIZE);
    free(large);
    end(&f);
}

TEST(a_batch_that_expects_something_in_another_slot_is_refused) {
    fixture f;
    begin(&f);
    kv_operation operation = {.key = bytes("k"), .key_size = 1, .value = bytes("v"), .value_size = 1};
    kv_expectation same = {.key = bytes("{k}2"), .key_size = 4}, other = {.key = bytes("other"), .key_size = 5};
    kv_ask a = {.kind = KV_REQUEST_BATCH, .operations = &operation, .operation_count = 1, .expectations = &other, .expectation_count = 1};
    CHECK_EQ(ask(&f, &a).status, KV_ANSWER_REFUSED);
    a.expectations = &same;
    CHECK_EQ(ask(&f, &a).status, KV_ANSWER_OK);
    end(&f);
}

int main(void) {
    RUN(a_row_that_brings_its_table_is_logged_with_what_was_answered);
    RUN(a_batch_with_a_value_that_no_frame_holds_is_refused);
    RUN(a_batch_that_expects_something_in_another_slot_is_refused);
    return check_report();
}
