/* test_sweep.c -- what a dropped table leaves behind, and how it goes: at once for readers, in steps for the counters,
 * whatever opens come between. */
#include "check.h"
#include "kv/io_sim.h"
#include "kv/store.h"

static const kv_options PLAIN = {.sync = KV_SYNC_BATCH, .segment_size_min = 1 << 16, .segment_size_max = 1 << 16};

typedef struct fixture {
    kv_sim *sim;
    kv_store *store;
    kv_caller *c;
    uint8_t checkpoint[4096];
    size_t checkpoint_size;
} fixture;

static const uint8_t *bytes(const char *text) { return (const uint8_t *)text; }

static void open_it(fixture *f, bool with_checkpoint) {
    kv_fault fault;
    kv_status status = kv_store_open(kv_sim_io(f->sim), &PLAIN, with_checkpoint ? f->checkpoint : NULL,
                                     with_checkpoint ? f->checkpoint_size : 0, &fault, &f->store);
    CHECK_EQ(status, KV_OK);
    if (status != KV_OK) printf("%s\n", fault.what);
    CHECK_EQ(kv_caller_new(f->store, &f->c), KV_OK);
}

static void begin(fixture *f) {
    *f = (fixture){.sim = kv_sim_new()};
    kv_sim_set_recording(f->sim, 0);
    open_it(f, false);
}

static void close_it(fixture *f) {
    kv_fault fault;
    CHECK_EQ(kv_store_close(f->store, &fault), KV_OK);
    kv_store_free(f->store);
}

static void end(fixture *f) {
    close_it(f);
    kv_sim_free(f->sim);
}

static void checkpoint(fixture *f) {
    kv_checkpoint *k;
    const uint8_t *description;
    size_t size;
    kv_status status;
    CHECK_EQ(kv_checkpoint_begin(f->store, &k), KV_OK);
    while ((status = kv_checkpoint_step(k)) == KV_MORE) continue;
    CHECK_EQ(status, KV_EOF);
    CHECK_EQ(kv_checkpoint_describe(k, &description, &size), KV_OK);
    CHECK(size <= sizeof f->checkpoint);
    memcpy(f->checkpoint, description, size);
    f->checkpoint_size = size;
    CHECK_EQ(kv_checkpoint_published(k), KV_OK);
    kv_checkpoint_free(k);
}

static void put_rows(fixture *f, const char *table, int count) {
    char row[16];
    for (int i = 0; i < count; i++) {
        int size = snprintf(row, sizeof row, "row %d", i);
        CHECK(kv_row_put(f->c, bytes(table), strlen(table), bytes(row), (size_t)size, bytes("value"), 5, 0, 0) > 0);
    }
}

static kv_stats measure(const fixture *f) {
    kv_stats stats = {0};
    CHECK_EQ(kv_store_measure(f->store, &stats), KV_OK);
    return stats;
}

static int sweep(fixture *f) {
    kv_sweep *s;
    kv_status status;
    int steps = 0;
    CHECK_EQ(kv_sweep_begin(f->store, &s), KV_OK);
    while ((status = kv_sweep_step(s)) == KV_MORE) steps++;
    CHECK_EQ(status, KV_EOF);
    kv_sweep_free(s);
    return steps;
}

static void drop(fixture *f, const char *table) {
    CHECK(kv_table_drop(f->c, bytes(table), strlen(table), 1) > 0);
    CHECK_EQ(kv_table_look(f->c, bytes(table), strlen(table)), kv_ending(KV_ABSENT));
}

static void check_swept(const fixture *f, uint64_t other_rows, uint64_t other_live) {
    kv_stats s = measure(f);
    CHECK_EQ(s.row_count, other_rows);
    CHECK_EQ(s.row_tombstone_count, 0);
    CHECK_EQ(s.retired_table_count, 0);
    CHECK_EQ(s.tombstone_count, 1);
    CHECK_EQ(s.live_size, other_live + 64); /* the drop's own record: 32 + 24 + "table", to a multiple of 4 */
}

/* A table beside it, to be left alone; the bytes it takes. */
static uint64_t other_table(fixture *f) {
    put_rows(f, "other", 7);
    CHECK(kv_table_trim(f->c, bytes("other"), 5, 3, 0) > 0);
    return measure(f).live_size;
}

static void make_and_drop(fixture *f, int rows) {
    put_rows(f, "table", rows);
    put_rows(f, "table", rows / 2); /* again */
    CHECK(kv_row_delete(f->c, bytes("table"), 5, bytes("row 1"), 5, -1, 0) > 0);
    CHECK(kv_table_trim(f->c, bytes("table"), 5, 20, 0) > 0);
    drop(f, "table");
    CHECK_EQ(measure(f).row_count, (uint64_t)rows - 1 + 7);
    CHECK_EQ(measure(f).retired_table_count, 1);
}

TEST(a_sweep_leaves_of_a_table_only_its_drop) {
    fixture f;
    begin(&f);
    uint64_t other = other_table(&f);
    make_and_drop(&f, 100);
    CHECK(sweep(&f) >= 4);
    check_swept(&f, 7, other);
    CHECK_EQ(kv_table_look(f.c, bytes("other"), 5), 7);
    put_rows(&f, "table", 3); /* another one */
    CHECK_EQ(sweep(&f), 0);
    CHECK_EQ(kv_table_look(f.c, bytes("table"), 5), 3);
    end(&f);
}

TEST(what_an_opener_left_the_next_one_sweeps) {
    for (int how = 0; how < 3; how++) { /* the drop behind the checkpoint, before it, and no checkpoint */
        fixture f;
        begin(&f);
        uint64_t other = other_table(&f);
        if (how == 0) {
            put_rows(&f, "table", 50);
            checkpoint(&f);
            make_and_drop(&f, 100);
        } else {
            make_and_drop(&f, 100);
            if (how == 1) checkpoint(&f);
        }
        close_it(&f);
        open_it(&f, how != 2);
        CHECK_EQ(measure(&f).used_checkpoint, how != 2);
        CHECK_EQ(measure(&f).retired_table_count, 1);
        CHECK(sweep(&f) >= 4);
        check_swept(&f, 7, other);
        checkpoint(&f);
        close_it(&f);
        open_it(&f, true);
        check_swept(&f, 7, other);
        end(&f);
    }
}

TEST(a_sweep_waits_for_older_snapshots) {
    fixture f;
    kv_snapshot *snapshot;
    begin(&f);
    uint64_t other = other_table(&f);
    put_rows(&f, "table", 100);
    CHECK_EQ(kv_snapshot_open(f.store, &snapshot), KV_OK);
    make_and_drop(&f, 100);
    CHECK_EQ(sweep(&f), 0);
    kv_caller_bind(f.c, snapshot);
    CHECK_EQ(kv_table_look(f.c, bytes("table"), 5), 100);
    CHECK_EQ(kv_row_get(f.c, bytes("table"), 5, bytes("row 1"), 5), 5);
    kv_caller_bind(f.c, NULL);
    kv_snapshot_close(snapshot);
    CHECK(sweep(&f) >= 4);
    check_swept(&f, 7, other);
    end(&f);
}

TEST(a_thousand_dropped_tables) {
    fixture f;
    char name[16];
    begin(&f);
    for (int i = 0; i < 1000; i++) {
        snprintf(name, sizeof name, "t%d", i);
        put_rows(&f, name, 3);
    }
    for (int i = 0; i < 1000; i++) {
        snprintf(name, sizeof name, "t%d", i);
        drop(&f, name);
    }
    CHECK_EQ(measure(&f).retired_table_count, 1000);
    sweep(&f);
    CHECK_EQ(measure(&f).retired_table_count, 0);
    CHECK_EQ(measure(&f).row_count, 0);
    CHECK_EQ(measure(&f).index_slot_count, 1000); /* the drops */
    end(&f);
}

int main(void) {
    RUN(a_sweep_leaves_of_a_table_only_its_drop);
    RUN(what_an_opener_left_the_next_one_sweeps);
    RUN(a_sweep_waits_for_older_snapshots);
    RUN(a_thousand_dropped_tables);
    return check_report();
}
