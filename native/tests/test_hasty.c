/* test_hasty.c -- a hasty caller: where another one would wait for a lock or call the file system, it answers KV_EWAIT,
 * and has done nothing. The simulated disk counts its calls. */
#include "../src/store_internal.h"
#include "check.h"
#include "kv/io_sim.h"

enum { START_MS = 1000000 };

typedef struct fixture {
    kv_sim *sim;
    kv_store *store;
    kv_caller *plain;
    kv_caller *hasty;
} fixture;

static const uint8_t *bytes(const char *text) { return (const uint8_t *)text; }

static kv_result put(kv_caller *c, const char *key, size_t size, int64_t ttl_ms, int durable) {
    static const uint8_t value[KV_SMALL_SIZE + 1];
    return kv_put(c, bytes(key), strlen(key), value, size, ttl_ms, durable);
}

static kv_result get(kv_caller *c, const char *key) { return kv_get(c, bytes(key), strlen(key)); }
static kv_result drop(kv_caller *c, const char *key) { return kv_delete(c, bytes(key), strlen(key), -1, 0); }

static void begin(fixture *f, int sync) {
    kv_fault fault;
    kv_options options = {.sync = sync, .segment_size_min = 1 << 18, .segment_size_max = 1 << 18, .inline_size_max = 70000};
    *f = (fixture){.sim = kv_sim_new()};
    kv_sim_set_recording(f->sim, 0);
    kv_sim_set_clock(f->sim, START_MS);
    CHECK_EQ(kv_store_open(kv_sim_io(f->sim), &options, NULL, 0, &fault, &f->store), KV_OK);
    CHECK_EQ(kv_caller_new(f->store, &f->plain), KV_OK);
    CHECK_EQ(kv_caller_new(f->store, &f->hasty), KV_OK);
    kv_caller_hasten(f->hasty, 1);
    CHECK(put(f->plain, "there", 10, 0, 0) > 0); /* The first write of an opener makes the segment. */
}

static void end(fixture *f) {
    kv_fault fault;
    CHECK_EQ(kv_store_close(f->store, &fault), KV_OK);
    CHECK_EQ(put(f->hasty, "there", 10, 0, KV_LATER), KV_ECLOSED);
    CHECK_EQ(get(f->hasty, "there"), KV_ECLOSED);
    kv_store_free(f->store);
    kv_sim_free(f->sim);
}

static uint64_t call_count(const fixture *f) {
    uint64_t count = 0;
    for (int32_t kind = 0; kind < KV_SIM_KIND_COUNT; kind++) count += kv_sim_call_count(f->sim, kind);
    return count;
}

static uint64_t tail(const fixture *f) { return kv_position_order(kv_flow_tail(f->store->flow)); }

TEST(what_does_not_wait_is_done) {
    fixture f;
    begin(&f, KV_SYNC_BATCH);
    uint64_t calls = call_count(&f);
    CHECK(put(f.hasty, "new", 10, 0, 0) > 0);
    CHECK(put(f.hasty, "new", 20, 5000, 0) > 0);
    CHECK_EQ(get(f.hasty, "new"), 20);
    CHECK_EQ(get(f.hasty, "absent"), kv_ending(KV_ABSENT));
    CHECK(kv_row_put(f.hasty, bytes("t"), 1, bytes("r"), 1, bytes("v"), 1, 0, 0) > 0);
    CHECK(kv_row_append(f.hasty, bytes("t"), 1, bytes("v"), 1, 0, 0) > 0);
    CHECK_EQ(kv_row_get(f.hasty, bytes("t"), 1, bytes("r"), 1), 1);
    CHECK(drop(f.hasty, "new") > 0);
    CHECK_EQ(drop(f.hasty, "new"), kv_ending(KV_ABSENT));
    CHECK_EQ(call_count(&f), calls);
    end(&f);
}

TEST(no_write_waits_for_the_lock) {
    fixture f;
    begin(&f, KV_SYNC_BATCH);
    CHECK(put(f.plain, "expired", 10, 1, 0) > 0);
    kv_sim_set_clock(f.sim, START_MS + 10);
    uint64_t before = tail(&f);
    pthread_mutex_lock(&f.store->write_lock);
    CHECK_EQ(put(f.hasty, "there", 20, 0, 0), KV_EWAIT);
    CHECK_EQ(drop(f.hasty, "there"), KV_EWAIT);
    CHECK_EQ(kv_row_append(f.hasty, bytes("t"), 1, bytes("v"), 1, 0, 0), KV_EWAIT);
    CHECK_EQ(get(f.hasty, "there"), 10);
    /* That it has expired must be noted before anyone hears of it, and the note is a write. */
    CHECK_EQ(get(f.hasty, "expired"), KV_EWAIT);
    pthread_mutex_unlock(&f.store->write_lock);
    CHECK_EQ(tail(&f), before);
    CHECK_EQ(get(f.hasty, "expired"), kv_ending(KV_ABSENT));
    CHECK(tail(&f) > before);
    end(&f);
}

TEST(no_write_waits_for_the_next_segment) {
    fixture f;
    begin(&f, KV_SYNC_BATCH);
    int refused = 0;
    for (int i = 0; i < 2000; i++) {
        uint64_t before = tail(&f), calls = call_count(&f);
        kv_result result = i % 2 == 0 ? put(f.hasty, "key", 1000, 0, 0)
                                      : kv_row_put(f.hasty, bytes("a table"), 7, bytes("row"), 3, bytes("v"), 1, 0, 0);
        CHECK_EQ(call_count(&f), calls);
        if (result > 0) continue;
        CHECK_EQ(result, KV_EWAIT);
        CHECK_EQ(tail(&f), before);
        refused++;
        /* Somewhat before the end, because what a write needs at most is asked for. */
        while (tail(&f) >> 32 == before >> 32) CHECK(put(f.plain, "key", 100, 0, 0) > 0);
    }
    CHECK(refused >= 3);
    end(&f);
}

TEST(no_write_waits_for_the_disk) {
    fixture f;
    begin(&f, KV_SYNC_BATCH);
    uint64_t before = tail(&f), calls = call_count(&f);
    CHECK_EQ(put(f.hasty, "there", 20, 0, 1), KV_EWAIT);
    CHECK_EQ(call_count(&f), calls);
    end(&f);
    begin(&f, KV_SYNC_ALWAYS);
    before = tail(&f);
    CHECK_EQ(put(f.hasty, "there", 20, 0, 0), KV_EWAIT);
    CHECK_EQ(tail(&f), before);
    CHECK(put(f.hasty, "there", 20, 0, KV_LATER) > 0);
    end(&f);
}

TEST(values_in_files_are_left_to_others) {
    fixture f;
    static const uint8_t large[70001];
    begin(&f, KV_SYNC_BATCH);
    uint64_t before = tail(&f), calls = call_count(&f);
    CHECK_EQ(kv_put(f.hasty, bytes("large"), 5, large, sizeof large, 0, 0), KV_EWAIT);
    CHECK_EQ(tail(&f), before);
    CHECK_EQ(call_count(&f), calls);
    CHECK(kv_put(f.plain, bytes("large"), 5, large, sizeof large, 0, 0) > 0);
    CHECK_EQ(get(f.hasty, "large"), KV_EWAIT);
    kv_caller_hasten(f.hasty, 0);
    CHECK_EQ(get(f.hasty, "large"), sizeof large);
    end(&f);
}

TEST(an_answer_needs_room) {
    fixture f;
    static uint8_t buffer[KV_HASTY_SIZE + 100];
    begin(&f, KV_SYNC_BATCH);
    uint64_t calls = call_count(&f);
    CHECK(put(f.hasty, "fits", KV_HASTY_SIZE, 0, 0) > 0);
    CHECK(put(f.hasty, "larger", KV_HASTY_SIZE + 100, 0, 0) > 0);
    CHECK_EQ(get(f.hasty, "fits"), KV_HASTY_SIZE);
    CHECK_EQ(get(f.hasty, "larger"), KV_EWAIT);
    CHECK_EQ(kv_caller_answer(f.hasty)->number, KV_HASTY_SIZE + 100);
    memset(buffer, 1, sizeof buffer);
    kv_caller_lend(f.hasty, buffer, sizeof buffer - 1);
    CHECK_EQ(get(f.hasty, "larger"), KV_EWAIT);
    CHECK_EQ(buffer[0], 1);
    kv_caller_lend(f.hasty, buffer, sizeof buffer);
    CHECK_EQ(get(f.hasty, "larger"), sizeof buffer);
    for (size_t i = 0; i < sizeof buffer; i++) CHECK_EQ(buffer[i], 0);
    kv_caller_lend(f.hasty, NULL, 0);
    CHECK_EQ(get(f.hasty, "larger"), KV_EWAIT);
    CHECK_EQ(call_count(&f), calls);
    end(&f);
}

int main(void) {
    RUN(an_answer_needs_room);
    RUN(what_does_not_wait_is_done);
    RUN(no_write_waits_for_the_lock);
    RUN(no_write_waits_for_the_next_segment);
    RUN(no_write_waits_for_the_disk);
    RUN(values_in_files_are_left_to_others);
    return check_report();
}
