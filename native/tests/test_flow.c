/* test_flow.c -- what the flow promises, on the simulated disk: nothing synced is lost, nothing cut comes back, no
 * number is used twice, damage is told from a torn tail, and a reader finds whatever a writer beside it appends. */
#include <errno.h>

#include "check.h"
#include "kv/flow.h"
#include "kv/io_sim.h"

enum { SEGMENT_MIN = 16384, SEGMENT_MAX = 65536, SEEN_MAX = 4096 };

typedef struct rig {
    kv_sim *sim;
    kv_io *io;
    kv_epoch *epoch;
    kv_flow *flow;
    kv_fault fault;
    uint64_t seen[SEEN_MAX]; /* versions in the order of replay */
    size_t seen_count;
} rig;

static kv_status remember(void *context, const kv_record *record, kv_position position, uint32_t used) {
    rig *r = context;
    (void)position;
    (void)used;
    if (r->seen_count < SEEN_MAX) r->seen[r->seen_count++] = record->version;
    return KV_OK;
}

static kv_status rig_open_at(rig *r, bool readonly, kv_position start) {
    kv_flow_options options = {.readonly = readonly,
                               .segment_size_min = SEGMENT_MIN,
                               .segment_size_max = SEGMENT_MAX,
                               .write_watermark_always = true};
    r->io = kv_sim_io(r->sim);
    CHECK_EQ(kv_epoch_new(&r->epoch), KV_OK);
    r->fault = (kv_fault){0};
    r->seen_count = 0;
    return kv_flow_open(r->io, r->epoch, &options, start, remember, r, &r->fault, &r->flow);
}

static kv_status rig_open(rig *r, bool readonly) { return rig_open_at(r, readonly, (kv_position){0}); }

/* As a process that ends: nothing is sealed or synced. */
static void rig_drop(rig *r) {
    kv_flow_free(r->flow);
    r->flow = NULL;
    kv_epoch_free(r->epoch);
    r->io->free(r->io);
}

static void rig_close(rig *r) {
    CHECK_EQ(kv_flow_close(r->flow, &r->fault), KV_OK);
    rig_drop(r);
}

/* Appends one record of `size` value bytes; its version is the answer, 0 if it was refused. */
static uint64_t put(rig *r, uint32_t size) {
    static uint8_t value[SEGMENT_MAX];
    uint64_t version = kv_flow_sequence(r->flow) + 1;
    kv_record record = {.kind = KV_KIND_PUT,
                        .version = version,
                        .key = (const uint8_t *)"k",
                        .key_size = 1,
                        .value = value,
                        .value_size = size};
    uint64_t whole = kv_record_size(&record);
    uint8_t *bytes;
    kv_position position;
    if (kv_flow_reserve(r->flow, whole, 1, &bytes, &position) != KV_OK) return 0;
    kv_record_encode(&record, kv_place(kv_flow_salt(r->flow), position.segment, position.offset), bytes);
    if (kv_flow_commit(r->flow, position, whole) != KV_OK) return 0;
    kv_flow_set_sequence(r->flow, version);
    return version;
}

static kv_status sync_all(rig *r) { return kv_flow_sync(r->flow, kv_flow_tail(r->flow)); }
static kv_status refresh(rig *r) { return kv_flow_refresh(r->flow, remember, r, &r->fault); }

static rig rig_new(void) { return (rig){.sim = kv_sim_new()}; }

/* The disk after a power cut that keeps nothing unsynced, or all. */
static void power_cut(rig *r, int32_t policy, uint64_t seed) {
    kv_sim *after;
    rig_drop(r);
    CHECK_EQ(kv_sim_image(r->sim, kv_sim_event_count(r->sim), policy, 0, seed, &after), KV_OK);
    kv_sim_free(r->sim);
    r->sim = after;
    kv_sim_set_recording(r->sim, 1);
}

TEST(what_was_appended_is_replayed_in_order) {
    rig r = rig_new();
    CHECK_EQ(rig_open(&r, false), KV_OK);
    for (uint64_t i = 1; i <= 1000; i++) CHECK_EQ(put(&r, (uint32_t)(i % 300)), i);
    rig_close(&r);
    CHECK_EQ(rig_open(&r, false), KV_OK);
    CHECK(kv_flow_was_clean(r.flow));
    CHECK_EQ(r.seen_count, 1000);
    for (size_t i = 0; i < r.seen_count; i++) CHECK_EQ(r.seen[i], i + 1);
    CHECK_EQ(put(&r, 1), 1001);
    rig_close(&r);
    kv_sim_free(r.sim);
}

TEST(segments_double_and_a_large_record_gets_a_segment_that_holds_it) {
    rig r = rig_new();
    CHECK_EQ(rig_open(&r, false), KV_OK);
    CHECK(put(&r, 50000) > 0);
    CHECK_EQ(put(&r, SEGMENT_MAX), 0);
    CHECK(put(&r, 10) > 0);
    kv_segment_info *segments;
    size_t count;
    CHECK_EQ(kv_flow_segments(r.flow, &segments, &count), KV_OK);
    CHECK_EQ(count, 2);
    CHECK_EQ(segments[0].size, SEGMENT_MIN);
    CHECK_EQ(segments[1].size, SEGMENT_MAX);
    free(segments);
    rig_close(&r);
    CHECK_EQ(rig_open(&r, true), KV_OK);
    CHECK_EQ(r.seen_count, 2);
    rig_drop(&r);
    kv_sim_free(r.sim);
}

TEST(synced_records_survive_a_power_cut_and_unsynced_ones_may_go) {
    rig r = rig_new();
    CHECK_EQ(rig_open(&r, false), KV_OK);
    for (int i = 0; i < 300; i++) put(&r, 100);
    CHECK_EQ(sync_all(&r), KV_OK);
    for (int i = 0; i < 300; i++) put(&r, 100);
    power_cut(&r, KV_CUT_ALL_LOST, 0);
    CHECK_EQ(rig_open(&r, false), KV_OK);
    CHECK(!kv_flow_was_clean(r.flow));
    CHECK_EQ(r.seen_count, 300);
    rig_close(&r);
    kv_sim_free(r.sim);
}

TEST(numbers_given_out_before_a_crash_are_not_given_out_again) {
    rig r = rig_new();
    uint64_t highest = 0;
    for (int round = 0; round < 6; round++) {
        CHECK_EQ(rig_open(&r, false), KV_OK);
        for (int i = 0; i < 400; i++) {
            uint64_t version = put(&r, 60);
            CHECK(version > highest);
            highest = version;
        }
        power_cut(&r, KV_CUT_ALL_LOST, 0);
    }
    kv_sim_free(r.sim);
}

TEST(records_behind_a_cut_never_come_back) {
    for (uint64_t seed = 0; seed < 200; seed++) {
        rig r = rig_new();
        CHECK_EQ(rig_open(&r, false), KV_OK);
        for (int i = 0; i < 10; i++) put(&r, 100);
        CHECK_EQ(sync_all(&r), KV_OK);
        for (int i = 0; i < 100; i++) put(&r, 400);
        power_cut(&r, KV_CUT_RANDOM, seed);
        CHECK_EQ(rig_open(&r, false), KV_OK);
        size_t first = r.seen_count;
        CHECK(first >= 10);
        for (size_t i = 0; i < first; i++) CHECK_EQ(r.seen[i], i + 1);
        /* The same sizes again: what was cut would fit exactly behind them. */
        for (int i = 0; i < 50; i++) put(&r, 400);
        power_cut(&r, KV_CUT_RANDOM, seed + 1000);
        CHECK_EQ(rig_open(&r, false), KV_OK);
        CHECK(r.seen_count >= first);
        for (size_t i = first; i < r.seen_count; i++) CHECK(r.seen[i] > 110);
        rig_close(&r);
        kv_sim_free(r.sim);
    }
}

static void flip(rig *r, const char *path, uint64_t offset) {
    uint8_t byte;
    size_t got;
    CHECK_EQ(kv_sim_read(r->sim, path, offset, &byte, 1, &got), KV_OK);
    byte ^= 1;
    CHECK_EQ(kv_sim_write(r->sim, path, offset, &byte, 1), KV_OK);
}

TEST(a_bad_record_below_the_watermark_is_damage_and_changes_nothing) {
    rig r = rig_new();
    CHECK_EQ(rig_open(&r, false), KV_OK);
    for (int i = 0; i < 20; i++) put(&r, 100);
    CHECK_EQ(sync_all(&r), KV_OK);
    put(&r, 100);
    CHECK_EQ(sync_all(&r), KV_OK); /* makes the watermark of the sync before durable */
    power_cut(&r, KV_CUT_ALL_LOST, 0);
    kv_sim_set_recording(r.sim, 0);
    flip(&r, "flow/00000001.seg", 4096 + 5 * 136 + 40);
    uint64_t before = kv_sim_hash(r.sim);
    CHECK_EQ(rig_open(&r, false), KV_ECORRUPT);
    CHECK_EQ(r.fault.position.segment, 1);
    CHECK_EQ(r.fault.position.offset, 4096 + 5 * 136);
    CHECK(strstr(r.fault.what, "watermark") != NULL);
    rig_drop(&r);
    CHECK(kv_sim_hash(r.sim) == before);
    kv_sim_free(r.sim);
}

TEST(a_torn_tail_above_the_watermark_is_cut) {
    rig r = rig_new();
    CHECK_EQ(rig_open(&r, false), KV_OK);
    for (int i = 0; i < 20; i++) put(&r, 100);
    CHECK_EQ(sync_all(&r), KV_OK);
    for (int i = 0; i < 20; i++) put(&r, 100);
    power_cut(&r, KV_CUT_ALL_KEPT, 0);
    kv_sim_set_recording(r.sim, 0);
    flip(&r, "flow/00000001.seg", 4096 + 25 * 136 + 40);
    CHECK_EQ(rig_open(&r, false), KV_OK);
    CHECK_EQ(r.seen_count, 25);
    rig_close(&r);
    CHECK_EQ(rig_open(&r, false), KV_OK);
    CHECK_EQ(r.seen_count, 25);
    rig_close(&r);
    kv_sim_free(r.sim);
}

TEST(a_missing_segment_is_damage) {
    for (int which = 1; which <= 3; which++) {
        rig r = rig_new();
        char path[32];
        CHECK_EQ(rig_open(&r, false), KV_OK);
        for (int i = 0; i < 600; i++) put(&r, 100);
        rig_close(&r);
        kv_sim_set_recording(r.sim, 0);
        kv_io *io = kv_sim_io(r.sim);
        snprintf(path, sizeof path, "flow/%08x.seg", (unsigned)which);
        CHECK_EQ(io->unlink(io, path), KV_OK);
        io->free(io);
        CHECK_EQ(rig_open(&r, false), KV_ECORRUPT);
        CHECK(strstr(r.fault.what, "missing") != NULL);
        rig_drop(&r);
        kv_sim_free(r.sim);
    }
}

TEST(a_start_behind_the_last_segment_is_damage) {
    rig r = rig_new();
    CHECK_EQ(rig_open(&r, false), KV_OK);
    put(&r, 100);
    rig_close(&r);
    CHECK_EQ(rig_open_at(&r, false, (kv_position){.segment = 2, .offset = 4096}), KV_ECORRUPT);
    rig_drop(&r);
    CHECK_EQ(rig_open_at(&r, false, (kv_position){.segment = 1, .offset = 1u << 30}), KV_EUSAGE);
    rig_drop(&r);
    kv_sim_free(r.sim);
}

TEST(a_replay_from_a_position_gives_what_came_after) {
    rig r = rig_new();
    CHECK_EQ(rig_open(&r, false), KV_OK);
    for (int i = 0; i < 300; i++) put(&r, 100);
    kv_position half = kv_flow_tail(r.flow);
    CHECK_EQ(sync_all(&r), KV_OK);
    CHECK_EQ(kv_flow_settle(r.flow), KV_OK);
    for (int i = 0; i < 300; i++) put(&r, 100);
    rig_drop(&r);
    CHECK_EQ(rig_open_at(&r, false, half), KV_OK);
    CHECK_EQ(r.seen_count, 300);
    CHECK_EQ(r.seen[0], 301);
    rig_close(&r);
    kv_sim_free(r.sim);
}

TEST(a_reader_follows_a_writer_over_segments) {
    rig w = rig_new();
    CHECK_EQ(rig_open(&w, false), KV_OK);
    rig r = {.sim = w.sim};
    CHECK_EQ(rig_open(&r, true), KV_OK);
    CHECK_EQ(r.seen_count, 0);
    for (uint64_t i = 1; i <= 1000; i++) {
        put(&w, 90);
        if (i % 7 == 0) CHECK_EQ(refresh(&r), KV_OK);
        if (i % 7 == 0) CHECK_EQ(r.seen_count, i);
    }
    rig_close(&w);
    CHECK_EQ(refresh(&r), KV_OK);
    CHECK_EQ(r.seen_count, 1000);
    CHECK_EQ(rig_open(&w, false), KV_OK);
    put(&w, 90);
    CHECK_EQ(refresh(&r), KV_OK);
    CHECK_EQ(r.seen_count, 1001);
    rig_drop(&r);
    rig_close(&w);
    kv_sim_free(w.sim);
}

/* The writer fills some segments and seals those that are full; the reader finds every record of it, once. */
static void check_reader_follows(rig *reader, rig *writer) {
    for (int round = 0; round < 4; round++) {
        size_t first = reader->seen_count;
        uint64_t versions[70];
        for (int i = 0; i < 70; i++) versions[i] = put(writer, 300);
        CHECK_EQ(sync_all(writer), KV_OK);
        CHECK_EQ(kv_flow_settle(writer->flow), KV_OK);
        CHECK_EQ(refresh(reader), KV_OK);
        CHECK_EQ(reader->seen_count - first, 70);
        for (size_t i = 0; i < 70; i++) CHECK(versions[i] != 0 && reader->seen[first + i] == versions[i]);
    }
}

/* Between the cut and the SEAL the file is shorter than it will be: a reader that maps only what is there then never
 * gets past that place. Each event of a recovery is a moment at which the recovering writer is gone, a reader opens and
 * another writer takes over. */
TEST(a_reader_that_opens_at_any_moment_of_a_recovery_sees_what_follows) {
    rig crashed = rig_new();
    CHECK_EQ(rig_open(&crashed, false), KV_OK);
    for (int i = 0; i < 20; i++) put(&crashed, 100);
    CHECK_EQ(kv_flow_prepare(crashed.flow, 0), KV_OK);
    power_cut(&crashed, KV_CUT_ALL_KEPT, 0);
    CHECK_EQ(rig_open(&crashed, false), KV_OK);
    CHECK(!kv_flow_was_clean(crashed.flow));

    bool was_cut = false;
    for (uint64_t at = 0; at <= kv_sim_event_count(crashed.sim); at++) {
        rig w = {0};
        uint64_t size;
        CHECK_EQ(kv_sim_image(crashed.sim, at, KV_CUT_ALL_KEPT, 0, 0, &w.sim), KV_OK);
        CHECK_EQ(kv_sim_file_size(w.sim, "flow/00000001.seg", &size), KV_OK);
        was_cut |= size == 4096 + 20 * 136;
        rig r = {.sim = w.sim};
        CHECK_EQ(rig_open(&r, true), KV_OK);
        CHECK_EQ(r.seen_count, 20);
        CHECK_EQ(rig_open(&w, false), KV_OK);
        CHECK_EQ(refresh(&r), KV_OK);
        CHECK_EQ(r.seen_count, 20);
        check_reader_follows(&r, &w);
        rig_drop(&r);
        rig_close(&w);
        kv_sim_free(w.sim);
    }
    CHECK(was_cut);
    rig_close(&crashed);
    kv_sim_free(crashed.sim);
}

/* A store through an older mapping may still show there, and on a real disk whole pages behind the end raise SIGBUS. */
TEST(a_reader_takes_nothing_from_behind_the_end_of_the_file) {
    enum { RECORD_SIZE = 136, CUT = KV_SEGMENT_HEADER_SIZE + 19 * RECORD_SIZE };
    rig w = rig_new();
    CHECK_EQ(rig_open(&w, false), KV_OK);
    for (int i = 0; i < 20; i++) put(&w, 100);
    rig_drop(&w);

    kv_io *io = kv_sim_io(w.sim);
    kv_file *file;
    uint8_t *bytes, last[RECORD_SIZE];
    CHECK_EQ(io->open(io, "flow/00000001.seg", KV_IO_WRITE, &file), KV_OK);
    CHECK_EQ(io->map(io, file, SEGMENT_MIN, true, &bytes), KV_OK);
    memcpy(last, bytes + CUT, sizeof last);
    CHECK_EQ(io->truncate(io, file, CUT), KV_OK);
    memcpy(bytes + CUT, last, sizeof last);

    rig r = {.sim = w.sim};
    CHECK_EQ(rig_open(&r, true), KV_OK);
    CHECK_EQ(r.seen_count, 19);
    CHECK_EQ(refresh(&r), KV_OK);
    CHECK_EQ(r.seen_count, 19);
    rig_drop(&r);
    io->free(io);
    kv_sim_free(w.sim);
}

/* The name is the same, the file is not: a reader that stays with the one it has waits for records in a file without a
 * name. */
TEST(a_reader_leaves_a_prepared_segment_that_was_given_up_and_made_again) {
    for (int refreshed = 0; refreshed <= 1; refreshed++) {
        rig w = rig_new();
        CHECK_EQ(rig_open(&w, false), KV_OK);
        for (int i = 0; i < 20; i++) put(&w, 100);
        CHECK_EQ(kv_flow_prepare(w.flow, 0), KV_OK);
        rig r = {.sim = w.sim};
        CHECK_EQ(rig_open(&r, true), KV_OK);
        CHECK(kv_flow_at(r.flow, 2, KV_SEGMENT_HEADER_SIZE, &(uint64_t){0}) != NULL);
        rig_close(&w);
        /* While there is none of that name it may stand in the one that is gone, or still before it. */
        if (refreshed) CHECK_EQ(refresh(&r), KV_OK);
        CHECK_EQ(rig_open(&w, false), KV_OK);
        CHECK(kv_flow_was_clean(w.flow));
        check_reader_follows(&r, &w);
        CHECK_EQ(r.seen_count, 20 + 4 * 70);
        rig_drop(&r);
        rig_close(&w);
        kv_sim_free(w.sim);
    }
}

TEST(a_reader_leaves_a_prepared_segment_that_was_too_small_for_a_record) {
    rig w = rig_new();
    CHECK_EQ(rig_open(&w, false), KV_OK);
    CHECK_EQ(kv_flow_prepare(w.flow, 0), KV_OK);
    rig r = {.sim = w.sim};
    CHECK_EQ(rig_open(&r, true), KV_OK);
    CHECK(kv_flow_at(r.flow, 2, KV_SEGMENT_HEADER_SIZE, &(uint64_t){0}) != NULL);
    CHECK(put(&w, 50000) != 0);
    CHECK_EQ(refresh(&r), KV_OK);
    CHECK_EQ(r.seen_count, 1);
    check_reader_follows(&r, &w);
    rig_drop(&r);
    rig_close(&w);
    kv_sim_free(w.sim);
}

TEST(a_full_disk_refuses_and_recovers) {
    rig r = rig_new();
    CHECK_EQ(rig_open(&r, false), KV_OK);
    kv_sim_limit(r.sim, kv_sim_used(r.sim));
    int taken = 0;
    while (put(&r, 100) != 0) taken++;
    CHECK(taken > 50);
    CHECK_EQ(kv_flow_poison(r.flow, NULL), KV_OK);
    CHECK_EQ(sync_all(&r), KV_OK);
    kv_sim_limit(r.sim, UINT64_MAX);
    CHECK(put(&r, 100) != 0);
    rig_close(&r);
    CHECK_EQ(rig_open(&r, true), KV_OK);
    CHECK_EQ(r.seen_count, taken + 1);
    rig_drop(&r);
    kv_sim_free(r.sim);
}

TEST(a_failed_sync_ends_writing_for_good) {
    rig r = rig_new();
    int os_error = 0;
    CHECK_EQ(rig_open(&r, false), KV_OK);
    put(&r, 100);
    kv_sim_fail(r.sim, KV_SIM_SYNC, 1, EIO, 0);
    CHECK_EQ(sync_all(&r), KV_EDISK);
    CHECK_EQ(kv_flow_poison(r.flow, &os_error), KV_EDISK);
    CHECK_EQ(os_error, EIO);
    CHECK_EQ(put(&r, 100), 0);
    CHECK_EQ(sync_all(&r), KV_EPOISONED); /* although the disk would say "fine" now */
    rig_drop(&r);
    kv_sim_free(r.sim);
}

int main(void) {
    RUN(what_was_appended_is_replayed_in_order);
    RUN(segments_double_and_a_large_record_gets_a_segment_that_holds_it);
    RUN(synced_records_survive_a_power_cut_and_unsynced_ones_may_go);
    RUN(numbers_given_out_before_a_crash_are_not_given_out_again);
    RUN(records_behind_a_cut_never_come_back);
    RUN(a_bad_record_below_the_watermark_is_damage_and_changes_nothing);
    RUN(a_torn_tail_above_the_watermark_is_cut);
    RUN(a_missing_segment_is_damage);
    RUN(a_start_behind_the_last_segment_is_damage);
    RUN(a_replay_from_a_position_gives_what_came_after);
    RUN(a_reader_follows_a_writer_over_segments);
    RUN(a_reader_that_opens_at_any_moment_of_a_recovery_sees_what_follows);
    RUN(a_reader_takes_nothing_from_behind_the_end_of_the_file);
    RUN(a_reader_leaves_a_prepared_segment_that_was_given_up_and_made_again);
    RUN(a_reader_leaves_a_prepared_segment_that_was_too_small_for_a_record);
    RUN(a_full_disk_refuses_and_recovers);
    RUN(a_failed_sync_ends_writing_for_good);
    return check_report();
}
