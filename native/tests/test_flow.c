/* test_flow.c -- what the flow promises, on the simulated disk: nothing synced is lost, nothing cut comes back, no
 * number is used twice, damage is told from a torn tail, a reader finds whatever a writer beside it appends, and a
 * segment that was taken out stays out, or is wholly there. */
#include <errno.h>
#include <unistd.h>

#include "check.h"
#include "kv/flow.h"
#include "kv/io_sim.h"

enum { SEGMENT_MIN = 16384, SEGMENT_MAX = 65536, SEEN_MAX = 4096, VERSION_MAX = 32768 };

typedef struct rig {
    kv_sim *sim;
    kv_io *io;
    kv_epoch *epoch;
    kv_flow *flow;
    kv_fault fault;
    uint64_t seen[SEEN_MAX]; /* versions in the order of replay */
    size_t seen_count;
    uint32_t where[VERSION_MAX]; /* by version: the segment it went to */
    void (*before_open)(const char *path); /* the next open's files */
    bool warm;
    uint32_t size_max; /* of a segment; 0: SEGMENT_MAX */
} rig;

static kv_status remember(void *context, const kv_record *record, kv_position position, uint32_t used) {
    rig *r = context;
    (void)position;
    (void)used;
    if (r->seen_count < SEEN_MAX) r->seen[r->seen_count++] = record->version;
    return KV_OK;
}

/* Lets a test do something between a reader's look at the directory and at a file in it. */
static kv_status (*sim_open)(kv_io *io, const char *path, enum kv_io_mode mode, kv_file **out);
static void (*watcher)(const char *path);

static kv_status watched_open(kv_io *io, const char *path, enum kv_io_mode mode, kv_file **out) {
    watcher(path);
    return sim_open(io, path, mode, out);
}

static void watch_opens(rig *r) {
    if (r->before_open == NULL) return;
    watcher = r->before_open;
    sim_open = r->io->open;
    r->io->open = watched_open;
}

static kv_status rig_open_at(rig *r, bool readonly, kv_position start) {
    kv_flow_options options = {.readonly = readonly,
                               .segment_size_min = SEGMENT_MIN,
                               .segment_size_max = r->size_max != 0 ? r->size_max : SEGMENT_MAX,
                               .warm = r->warm,
                               .write_watermark_always = true};
    if (r->sim != NULL) r->io = kv_sim_io(r->sim);
    watch_opens(r);
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
    if (version < VERSION_MAX) r->where[version] = position.segment;
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

/* Each event of a recovery, from the open to the header that says where the log ended, is a moment at which the recovering
 * writer is gone, a reader opens and another writer takes over. */
TEST(a_reader_that_opens_at_any_moment_of_a_recovery_sees_what_follows) {
    rig crashed = rig_new();
    CHECK_EQ(rig_open(&crashed, false), KV_OK);
    for (int i = 0; i < 20; i++) put(&crashed, 100);
    CHECK_EQ(kv_flow_prepare(crashed.flow, 0), KV_OK);
    power_cut(&crashed, KV_CUT_ALL_KEPT, 0);
    CHECK_EQ(rig_open(&crashed, false), KV_OK);
    CHECK(!kv_flow_was_clean(crashed.flow));
    CHECK(put(&crashed, 100) != 0);
    CHECK_EQ(sync_all(&crashed), KV_OK);
    CHECK_EQ(kv_flow_settle(crashed.flow), KV_OK);

    bool was_cut = false;
    for (uint64_t at = 0; at <= kv_sim_event_count(crashed.sim); at++) {
        rig w = {0};
        uint64_t size;
        CHECK_EQ(kv_sim_image(crashed.sim, at, KV_CUT_ALL_KEPT, 0, 0, &w.sim), KV_OK);
        CHECK_EQ(kv_sim_file_size(w.sim, "flow/00000001.seg", &size), KV_OK);
        was_cut |= size == 4096 + 20 * 136 + KV_SEAL_SIZE;
        rig r = {.sim = w.sim};
        CHECK_EQ(rig_open(&r, true), KV_OK);
        CHECK(r.seen_count == 20 || r.seen_count == 21);
        CHECK_EQ(rig_open(&w, false), KV_OK);
        CHECK_EQ(refresh(&r), KV_OK);
        CHECK_EQ(r.seen_count, w.seen_count);
        check_reader_follows(&r, &w);
        rig_drop(&r);
        rig_close(&w);
        kv_sim_free(w.sim);
    }
    CHECK(was_cut);
    rig_close(&crashed);
    kv_sim_free(crashed.sim);
}

/* --- a log that was not closed --- */

/* With a segment behind its end, which an opener prepared and did not come to use. */
static rig rig_killed(int record_count) {
    rig r = rig_new();
    CHECK_EQ(rig_open(&r, false), KV_OK);
    for (int i = 0; i < record_count; i++) put(&r, 100);
    CHECK_EQ(kv_flow_prepare(r.flow, 0), KV_OK);
    rig_drop(&r);
    return r;
}

TEST(opening_a_log_that_was_not_closed_writes_nothing) {
    rig r = rig_killed(300);
    uint64_t before = kv_sim_hash(r.sim);
    for (int i = 0; i < 3; i++) {
        CHECK_EQ(rig_open(&r, false), KV_OK);
        CHECK(!kv_flow_was_clean(r.flow));
        CHECK_EQ(r.seen_count, 300);
        rig_drop(&r);
    }
    CHECK(kv_sim_hash(r.sim) == before);
    CHECK_EQ(rig_open(&r, false), KV_OK);
    rig_close(&r);
    CHECK_EQ(rig_open(&r, false), KV_OK);
    CHECK(kv_flow_was_clean(r.flow));
    CHECK_EQ(r.seen_count, 300);
    rig_close(&r);
    kv_sim_free(r.sim);
}

/* Also if nothing of it was when the opener before was killed. */
TEST(a_sync_makes_durable_what_an_opener_found) {
    for (int written = 0; written < 2; written++) {
        rig r = rig_killed(300);
        CHECK_EQ(rig_open(&r, false), KV_OK);
        for (int i = 0; i < written; i++) put(&r, 100);
        CHECK_EQ(sync_all(&r), KV_OK);
        power_cut(&r, KV_CUT_ALL_LOST, 0);
        CHECK_EQ(rig_open(&r, false), KV_OK);
        CHECK_EQ(r.seen_count, 300 + written);
        rig_close(&r);
        kv_sim_free(r.sim);
    }
}

TEST(a_log_that_was_not_closed_opens_on_a_full_disk) {
    rig r = rig_killed(100);
    kv_sim_limit(r.sim, kv_sim_used(r.sim));
    for (int i = 0; i < 2; i++) {
        CHECK_EQ(rig_open(&r, false), KV_OK);
        CHECK_EQ(r.seen_count, 100);
        CHECK_EQ(put(&r, 100), 0);
        CHECK_EQ(kv_flow_poison(r.flow, NULL), KV_OK);
        CHECK_EQ(sync_all(&r), KV_OK);
        rig_close(&r);
    }
    CHECK_EQ(rig_open(&r, false), KV_OK);
    kv_sim_limit(r.sim, UINT64_MAX);
    CHECK(put(&r, 100) != 0);
    rig_close(&r);
    CHECK_EQ(rig_open(&r, true), KV_OK);
    CHECK_EQ(r.seen_count, 101);
    rig_drop(&r);
    kv_sim_free(r.sim);
}

static kv_status refuse_third(void *context, const kv_record *record, kv_position position, uint32_t used) {
    rig *r = context;
    return r->seen_count == 2 ? KV_ENOMEM : remember(r, record, position, used);
}

/* Part of it was applied already, which is not to be told from the rest. */
TEST(a_replay_that_ended_within_an_envelope_goes_on_at_its_head) {
    enum { COUNT = 5 };
    uint8_t bytes[COUNT * 40 + 64];
    rig w = rig_new(), r = {.sim = w.sim};
    CHECK_EQ(rig_open(&w, false), KV_OK);
    CHECK_EQ(rig_open(&r, true), KV_OK);
    kv_record one = {.kind = KV_KIND_PUT, .key = (const uint8_t *)"k", .key_size = 1, .value = bytes, .value_size = 3};
    uint32_t size = (uint32_t)kv_record_size(&one);
    kv_record head = {.kind = KV_KIND_ENVELOPE, .version = 1, .value_size = COUNT * size};
    uint64_t whole = kv_record_size(&head) + COUNT * size, offset = kv_record_size(&head);
    kv_position at;
    uint8_t *to;
    CHECK_EQ(kv_flow_reserve(w.flow, whole, COUNT, &to, &at), KV_OK);
    kv_record_encode(&head, kv_place(kv_flow_salt(w.flow), at.segment, at.offset), to);
    for (one.version = 1; one.version <= COUNT; one.version++, offset += size)
        kv_record_encode(&one, kv_place(kv_flow_salt(w.flow), at.segment, at.offset + (uint32_t)offset), to + offset);
    CHECK_EQ(kv_flow_commit(w.flow, at, whole), KV_OK);
    kv_flow_set_sequence(w.flow, COUNT);

    CHECK_EQ(kv_flow_refresh(r.flow, refuse_third, &r, &r.fault), KV_ENOMEM);
    CHECK_EQ(r.seen_count, 2);
    CHECK_EQ(refresh(&r), KV_OK);
    CHECK_EQ(r.seen_count, 2 + COUNT);
    CHECK_EQ(refresh(&r), KV_OK);
    CHECK_EQ(r.seen_count, 2 + COUNT);
    rig_drop(&r);
    rig_close(&w);
    kv_sim_free(w.sim);
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

/* --- removal --- */

enum { RECORD_VALUE = 300, SEGMENTS = 8, STEPS_MAX = 4 };

static pthread_mutex_t writer_lock = PTHREAD_MUTEX_INITIALIZER;

static kv_status take_out_from(rig *r, const uint32_t *ids, size_t count, kv_position required) {
    return kv_flow_remove(r->flow, &writer_lock, ids, count, required);
}

static kv_status take_out(rig *r, const uint32_t *ids, size_t count) {
    return take_out_from(r, ids, count, (kv_position){0});
}

static kv_status take_out_one(rig *r, uint32_t id) { return take_out(r, &id, 1); }

/* Fills segments until the tail is in the `segment`-th; those before are durable and sealed. */
static void grow_to(rig *r, uint32_t segment) {
    while (kv_flow_tail(r->flow).segment < segment) CHECK(put(r, RECORD_VALUE) != 0);
    CHECK_EQ(sync_all(r), KV_OK);
    CHECK_EQ(kv_flow_settle(r->flow), KV_OK);
}

static bool file_exists(rig *r, uint32_t id) {
    char path[32];
    uint64_t size;
    snprintf(path, sizeof path, "flow/%08x.seg", (unsigned)id);
    return kv_sim_file_size(r->sim, path, &size) == KV_OK;
}

static bool in_log(rig *r, uint32_t id) {
    kv_segment_info *segments;
    size_t count;
    bool found = false;
    CHECK_EQ(kv_flow_segments(r->flow, &segments, &count), KV_OK);
    for (size_t i = 0; i < count; i++) found |= segments[i].id == id;
    free(segments);
    return found;
}

/* What was just replayed is what `writer` put into segments outside of `removed` (a bit each), in its order. */
static bool replayed_is(const rig *r, const rig *writer, uint64_t removed) {
    size_t at = 0;
    for (uint64_t version = 1; version < VERSION_MAX; version++) {
        uint32_t segment = writer->where[version];
        if (segment == 0 || (removed >> segment & 1)) continue;
        if (at == r->seen_count || r->seen[at++] != version) return false;
    }
    return at == r->seen_count;
}

typedef struct step {
    uint32_t ids[STEPS_MAX];
    size_t count;
} step;

/* Neighbours or not, the first, in either order, and around links that were written before. */
static const step HISTORIES[][STEPS_MAX] = {
    {{{2}, 1}},
    {{{1}, 1}},
    {{{1, 2, 3}, 3}},
    {{{4, 2, 3}, 3}},
    {{{2, 4, 5}, 3}},
    {{{1, 3}, 2}},
    {{{2}, 1}, {{3}, 1}},
    {{{3}, 1}, {{2}, 1}},
    {{{1}, 1}, {{2}, 1}},
    {{{2}, 1}, {{1}, 1}},
    {{{4}, 1}, {{2, 3}, 2}, {{1}, 1}, {{5, 6}, 2}},
    {{{6}, 1}, {{5}, 1}, {{1, 2}, 2}, {{3, 4, 7}, 3}},
};
enum { HISTORY_COUNT = sizeof HISTORIES / sizeof HISTORIES[0] };

static uint64_t bits_of(const step *one) {
    uint64_t bits = 0;
    for (size_t i = 0; i < one->count; i++) bits |= 1ull << one->ids[i];
    return bits;
}

static void check_gone(rig *r, uint64_t removed) {
    for (uint32_t id = 1; id <= SEGMENTS; id++) {
        CHECK_EQ(file_exists(r, id), !(removed >> id & 1));
        CHECK_EQ(in_log(r, id), !(removed >> id & 1));
    }
}

enum ending { CLOSED, KILLED, CUT };

static void check_removal(const step *history, enum ending ending) {
    rig r = rig_new();
    uint64_t removed = 0;
    CHECK_EQ(rig_open(&r, false), KV_OK);
    grow_to(&r, SEGMENTS);
    for (int i = 0; i < STEPS_MAX && history[i].count != 0; i++) {
        CHECK_EQ(take_out(&r, history[i].ids, history[i].count), KV_OK);
        removed |= bits_of(&history[i]);
        check_gone(&r, removed);
    }
    if (ending == CUT) power_cut(&r, KV_CUT_ALL_LOST, 0);
    if (ending == KILLED) rig_drop(&r);
    if (ending == CLOSED) rig_close(&r);
    if (ending == CUT) CHECK(file_exists(&r, history[0].ids[0])); /* Nobody synced the directory: a leftover. */

    rig reader = {.sim = r.sim};
    CHECK_EQ(rig_open(&reader, true), KV_OK);
    CHECK(replayed_is(&reader, &r, removed));
    rig_drop(&reader);
    for (int round = 0; round < 2; round++) {
        CHECK_EQ(rig_open(&r, false), KV_OK);
        CHECK(replayed_is(&r, &r, removed));
        check_gone(&r, removed);
        CHECK(put(&r, RECORD_VALUE) != 0);
        CHECK(kv_flow_tail(r.flow).segment > SEGMENTS);
        rig_close(&r);
    }
    kv_sim_free(r.sim);
}

TEST(removed_segments_are_not_replayed_and_their_files_go) {
    for (int i = 0; i < HISTORY_COUNT; i++)
        for (int ending = CLOSED; ending <= CUT; ending++) check_removal(HISTORIES[i], (enum ending)ending);
}

TEST(neighbours_are_taken_out_with_one_write) {
    rig r = rig_new();
    CHECK_EQ(rig_open(&r, false), KV_OK);
    grow_to(&r, 6);
    uint64_t writes = kv_sim_call_count(r.sim, KV_SIM_WRITE), syncs = kv_sim_call_count(r.sim, KV_SIM_SYNC);
    CHECK_EQ(take_out_one(&r, 3), KV_OK);
    CHECK_EQ(take_out(&r, (uint32_t[]){5, 2, 4}, 3), KV_OK); /* neighbours, now that 3 is gone */
    CHECK_EQ(kv_sim_call_count(r.sim, KV_SIM_WRITE) - writes, 2);
    CHECK_EQ(kv_sim_call_count(r.sim, KV_SIM_SYNC) - syncs, 2);
    rig_close(&r);
    kv_sim_free(r.sim);
}

static void check_refused_removal(rig *r, uint32_t id, kv_status status) {
    uint64_t writes = kv_sim_call_count(r->sim, KV_SIM_WRITE);
    CHECK_EQ(take_out(r, (uint32_t[]){2, id}, 2), status);
    CHECK(in_log(r, 2) && file_exists(r, 2));
    CHECK_EQ(kv_sim_call_count(r->sim, KV_SIM_WRITE), writes);
}

TEST(only_sealed_segments_go_and_the_newest_never) {
    rig r = rig_new();
    CHECK_EQ(rig_open(&r, false), KV_OK);
    grow_to(&r, 4);
    while (kv_flow_tail(r.flow).segment < 5) put(&r, RECORD_VALUE);
    check_refused_removal(&r, 4, KV_EUSAGE); /* ended, and not known to be durable */
    check_refused_removal(&r, 5, KV_EUSAGE);
    check_refused_removal(&r, 6, KV_EUSAGE);
    check_refused_removal(&r, 0, KV_EUSAGE);
    rig_close(&r);
    CHECK_EQ(rig_open(&r, true), KV_OK);
    check_refused_removal(&r, 3, KV_EREADONLY);
    rig_drop(&r);
    CHECK_EQ(rig_open(&r, false), KV_OK);
    check_refused_removal(&r, 5, KV_EUSAGE); /* sealed, and the next is named in it */
    CHECK_EQ(take_out(&r, (uint32_t[]){1, 2, 3, 4}, 4), KV_OK);
    CHECK_EQ(take_out_one(&r, 4), KV_EUSAGE);
    put(&r, RECORD_VALUE);
    rig_close(&r);
    CHECK_EQ(rig_open(&r, false), KV_OK);
    CHECK(replayed_is(&r, &r, 0x1e));
    rig_close(&r);
    kv_sim_free(r.sim);
}

/* The link is in the header of a segment that goes on being written, sealed, and taken out in its turn. */
TEST(the_new_first_segment_may_be_the_active_one) {
    rig r = rig_new();
    CHECK_EQ(rig_open(&r, false), KV_OK);
    grow_to(&r, 3);
    CHECK_EQ(take_out(&r, (uint32_t[]){1, 2}, 2), KV_OK);
    put(&r, RECORD_VALUE);
    CHECK_EQ(sync_all(&r), KV_OK);
    power_cut(&r, KV_CUT_ALL_LOST, 0);
    CHECK_EQ(rig_open(&r, false), KV_OK);
    CHECK(replayed_is(&r, &r, 0x6));
    grow_to(&r, 6);
    CHECK_EQ(take_out(&r, (uint32_t[]){3, 4}, 2), KV_OK);
    power_cut(&r, KV_CUT_ALL_LOST, 0);
    CHECK_EQ(rig_open(&r, false), KV_OK);
    CHECK(replayed_is(&r, &r, 0x1e));
    rig_close(&r);
    kv_sim_free(r.sim);
}

/* `steps_min` removals had returned when the power went, `steps_max` had begun. */
static void check_image(const rig *writer, const step *history, int steps_min, int steps_max, uint64_t event,
                        int32_t policy, uint64_t seed) {
    rig r = {0}, reader = {0};
    uint64_t removed = 0;
    int matches = 0;
    CHECK_EQ(kv_sim_image(writer->sim, event, policy, 0, seed, &r.sim), KV_OK);
    reader.sim = r.sim;
    CHECK_EQ(rig_open(&reader, true), KV_OK);
    CHECK_EQ(rig_open(&r, false), KV_OK);
    for (int i = 0; i <= steps_max; i++) {
        if (i > 0) removed |= bits_of(&history[i - 1]);
        if (i < steps_min || !replayed_is(&r, writer, removed)) continue;
        matches++;
        CHECK(replayed_is(&reader, writer, removed));
        for (uint32_t id = 1; id < SEGMENTS; id++) CHECK_EQ(file_exists(&r, id), !(removed >> id & 1));
    }
    CHECK_EQ(matches, 1);
    rig_drop(&reader);
    rig_close(&r);
    kv_sim_free(r.sim);
}

TEST(a_power_cut_in_a_removal_leaves_the_old_chain_or_the_new) {
    /* Steps of one link each: a removal in several places may be done in some. */
    static const step steps[STEPS_MAX] = {{{4}, 1}, {{2, 3}, 2}, {{1}, 1}, {{5, 6}, 2}};
    rig r = rig_new();
    uint64_t began[STEPS_MAX + 1];
    CHECK_EQ(rig_open(&r, false), KV_OK);
    grow_to(&r, SEGMENTS);
    for (int i = 0; i < STEPS_MAX; i++) {
        began[i] = kv_sim_event_count(r.sim);
        CHECK_EQ(take_out(&r, steps[i].ids, steps[i].count), KV_OK);
    }
    began[STEPS_MAX] = kv_sim_event_count(r.sim);
    for (uint64_t event = began[0]; event <= began[STEPS_MAX]; event++) {
        int returned = 0;
        while (returned < STEPS_MAX && began[returned + 1] <= event) returned++;
        int begun = returned < STEPS_MAX ? returned + 1 : returned;
        check_image(&r, steps, returned, begun, event, KV_CUT_ALL_KEPT, 0);
        check_image(&r, steps, returned, begun, event, KV_CUT_ALL_LOST, 0);
        for (uint64_t seed = 0; seed < 12; seed++) check_image(&r, steps, returned, begun, event, KV_CUT_RANDOM, seed);
    }
    rig_close(&r);
    kv_sim_free(r.sim);
}

TEST(a_damaged_link_is_a_missing_segment_and_changes_nothing) {
    for (int which = 0; which < 2; which++) {
        rig r = rig_new();
        CHECK_EQ(rig_open(&r, false), KV_OK);
        grow_to(&r, 6);
        CHECK_EQ(take_out_one(&r, which == 0 ? 1 : 4), KV_OK);
        rig_close(&r);
        kv_sim_set_recording(r.sim, 0);
        const char *path = which == 0 ? "flow/00000002.seg" : "flow/00000003.seg";
        for (uint64_t offset = 1536; offset < 1560; offset++) {
            flip(&r, path, offset);
            uint64_t before = kv_sim_hash(r.sim);
            for (int readonly = 0; readonly <= 1; readonly++) {
                CHECK_EQ(rig_open(&r, readonly), KV_ECORRUPT);
                CHECK_EQ(r.fault.position.segment, which == 0 ? 1 : 4);
                CHECK(strstr(r.fault.what, "missing") != NULL);
                CHECK_EQ(r.seen_count, 0);
                rig_drop(&r);
            }
            CHECK(kv_sim_hash(r.sim) == before);
            flip(&r, path, offset);
        }
        CHECK_EQ(rig_open(&r, false), KV_OK);
        rig_close(&r);
        kv_sim_free(r.sim);
    }
}

/* The seal of a header that lost it is read from the records, and they name what is gone: the link still counts. */
TEST(a_link_counts_where_the_seal_is_damaged) {
    for (int left_over = 0; left_over <= 1; left_over++) {
        rig r = rig_new();
        CHECK_EQ(rig_open(&r, false), KV_OK);
        grow_to(&r, 6);
        if (left_over) kv_sim_fail(r.sim, KV_SIM_UNLINK, 1, EIO, 0);
        CHECK_EQ(take_out_one(&r, 4), KV_OK);
        CHECK_EQ(file_exists(&r, 4), left_over);
        rig_close(&r);
        kv_sim_set_recording(r.sim, 0);
        flip(&r, "flow/00000003.seg", 1024);
        for (int i = 0; i < 2; i++) {
            CHECK_EQ(rig_open(&r, false), KV_OK);
            CHECK(replayed_is(&r, &r, 0x10) && !file_exists(&r, 4));
            rig_close(&r);
        }
        kv_sim_free(r.sim);
    }
}

static void check_required(rig *r, kv_position required) {
    kv_position below = required;
    below.offset -= 4;
    uint64_t before = kv_sim_hash(r->sim);
    CHECK_EQ(rig_open_at(r, false, below), KV_EUSAGE);
    CHECK_EQ(r->seen_count, 0);
    rig_drop(r);
    CHECK(kv_sim_hash(r->sim) == before);
    CHECK_EQ(rig_open_at(r, false, required), KV_OK);
    CHECK(r->seen_count > 0);
    rig_drop(r);
    CHECK_EQ(rig_open(r, false), KV_OK);
}

TEST(a_checkpoint_older_than_a_removal_requires_is_not_used) {
    rig r = rig_new();
    CHECK_EQ(rig_open(&r, false), KV_OK);
    grow_to(&r, 8);
    for (int i = 0; i < 10; i++) put(&r, RECORD_VALUE);
    CHECK_EQ(sync_all(&r), KV_OK);
    CHECK_EQ(kv_flow_settle(r.flow), KV_OK);
    kv_position required = kv_flow_tail(r.flow);
    for (int i = 0; i < 10; i++) put(&r, RECORD_VALUE);
    CHECK_EQ(take_out_from(&r, (uint32_t[]){4}, 1, required), KV_OK);
    rig_drop(&r);
    check_required(&r, required);
    /* By the segment that carries it, as it goes; by the first; and where a lower one is asked for. */
    CHECK_EQ(take_out_one(&r, 3), KV_OK);
    rig_drop(&r);
    check_required(&r, required);
    CHECK_EQ(take_out(&r, (uint32_t[]){1, 2}, 2), KV_OK);
    rig_drop(&r);
    check_required(&r, required);
    /* The link of 5 holds it now, and is written anew. */
    CHECK_EQ(take_out_from(&r, (uint32_t[]){6}, 1, (kv_position){.segment = 2, .offset = 4096}), KV_OK);
    rig_drop(&r);
    check_required(&r, required);
    rig_close(&r);
    kv_sim_free(r.sim);
}

TEST(who_is_inside_the_epoch_goes_on_reading_what_was_removed) {
    rig r = rig_new();
    kv_epoch_slot *slot;
    uint64_t size;
    CHECK_EQ(rig_open(&r, false), KV_OK);
    grow_to(&r, 4);
    CHECK_EQ(kv_epoch_join(r.epoch, &slot), KV_OK);
    kv_epoch_enter(r.epoch, slot);
    const uint8_t *bytes = kv_flow_at(r.flow, 2, KV_SEGMENT_HEADER_SIZE, &size);
    CHECK(bytes != NULL);
    CHECK_EQ(take_out_one(&r, 2), KV_OK);
    CHECK(kv_flow_at(r.flow, 2, KV_SEGMENT_HEADER_SIZE, &size) == NULL);
    kv_epoch_reclaim(r.epoch);
    kv_record record;
    uint32_t used;
    uint64_t place = kv_place(kv_flow_salt(r.flow), 2, KV_SEGMENT_HEADER_SIZE);
    CHECK_EQ(kv_record_decode(bytes, RECORD_VALUE + 64, place, &record, &used), KV_OK);
    kv_epoch_leave(slot);
    kv_epoch_part(r.epoch, slot);
    rig_close(&r);
    kv_sim_free(r.sim);
}

TEST(a_failed_link_ends_writing_and_leaves_the_log_as_it_was) {
    for (int kind = KV_SIM_WRITE; kind <= KV_SIM_SYNC; kind++) {
        if (kind != KV_SIM_WRITE && kind != KV_SIM_SYNC) continue;
        rig r = rig_new();
        CHECK_EQ(rig_open(&r, false), KV_OK);
        grow_to(&r, 4);
        kv_sim_fail(r.sim, kind, 1, EIO, 0);
        CHECK_EQ(take_out_one(&r, 2), KV_EDISK);
        CHECK_EQ(kv_flow_poison(r.flow, NULL), KV_EDISK);
        CHECK(in_log(&r, 2) && file_exists(&r, 2));
        CHECK_EQ(take_out_one(&r, 2), KV_EPOISONED);
        power_cut(&r, KV_CUT_ALL_LOST, 0);
        CHECK_EQ(rig_open(&r, false), KV_OK);
        CHECK(replayed_is(&r, &r, 0));
        rig_close(&r);
        kv_sim_free(r.sim);
    }
}

TEST(a_file_that_could_not_be_unlinked_is_swept_by_the_next_writer) {
    rig r = rig_new();
    CHECK_EQ(rig_open(&r, false), KV_OK);
    grow_to(&r, 5);
    kv_sim_fail(r.sim, KV_SIM_UNLINK, 1, EIO, 0);
    CHECK_EQ(take_out(&r, (uint32_t[]){2, 3}, 2), KV_OK);
    CHECK(file_exists(&r, 2) && !in_log(&r, 2));
    rig_close(&r);
    CHECK_EQ(rig_open(&r, true), KV_OK);
    CHECK(replayed_is(&r, &r, 0xc) && !in_log(&r, 2) && file_exists(&r, 2));
    rig_drop(&r);
    CHECK_EQ(rig_open(&r, false), KV_OK);
    CHECK(replayed_is(&r, &r, 0xc) && !file_exists(&r, 2));
    rig_close(&r);
    kv_sim_free(r.sim);
}

/* --- removal, and readers beside it --- */

/* The reader stands in segment 2, of which it has seen a part, and the writer is in segment 6. */
static void removal_rigs(rig *w, rig *r) {
    *w = rig_new();
    CHECK_EQ(rig_open(w, false), KV_OK);
    grow_to(w, 2);
    put(w, RECORD_VALUE);
    *r = (rig){.sim = w->sim};
    CHECK_EQ(rig_open(r, true), KV_OK);
    grow_to(w, 6);
}

static void check_behind(rig *w, rig *r, uint64_t removed) {
    CHECK_EQ(refresh(r), KV_EBEHIND);
    CHECK_EQ(r->fault.status, KV_EBEHIND);
    CHECK_EQ(refresh(r), KV_EBEHIND);
    rig_drop(r);
    CHECK_EQ(rig_open(r, true), KV_OK);
    CHECK(replayed_is(r, w, removed));
    CHECK_EQ(refresh(r), KV_OK);
    rig_drop(r);
    rig_close(w);
    kv_sim_free(w->sim);
}

TEST(a_reader_is_told_that_segments_went_which_it_had_not_read) {
    static const step steps[] = {{{3}, 1}, {{3, 4, 5}, 3}, {{2, 3}, 2}, {{1, 2, 3}, 3}, {{4}, 1}, {{5}, 1}};
    for (size_t i = 0; i < sizeof steps / sizeof steps[0]; i++) {
        rig w, r;
        removal_rigs(&w, &r);
        CHECK_EQ(take_out(&w, steps[i].ids, steps[i].count), KV_OK);
        check_behind(&w, &r, bits_of(&steps[i]));
    }
}

TEST(a_reader_goes_on_when_nothing_went_that_it_had_not_read) {
    static const step steps[] = {{{1}, 1}, {{2}, 1}, {{1, 2}, 2}};
    for (size_t i = 0; i < sizeof steps / sizeof steps[0]; i++) {
        rig w, r;
        removal_rigs(&w, &r);
        CHECK_EQ(take_out(&w, steps[i].ids, steps[i].count), KV_OK);
        CHECK_EQ(refresh(&r), KV_OK);
        CHECK(replayed_is(&r, &w, 0));
        rig_drop(&r);
        rig_close(&w);
        kv_sim_free(w.sim);
    }
}

/* A clean close names no successor: whether there is none yet, or was one that went, only the disk can tell. */
TEST(a_reader_behind_a_clean_close_tells_nothing_yet_from_gone) {
    for (uint32_t with_closed = 0; with_closed <= 1; with_closed++) {
        rig w = rig_new();
        CHECK_EQ(rig_open(&w, false), KV_OK);
        grow_to(&w, 2);
        rig_close(&w);
        rig r = {.sim = w.sim};
        CHECK_EQ(rig_open(&r, true), KV_OK);
        CHECK_EQ(refresh(&r), KV_OK);
        CHECK_EQ(rig_open(&w, false), KV_OK);
        CHECK_EQ(refresh(&r), KV_OK);
        grow_to(&w, 5);
        CHECK_EQ(with_closed ? take_out(&w, (uint32_t[]){2, 3}, 2) : take_out_one(&w, 3), KV_OK);
        check_behind(&w, &r, with_closed ? 0xc : 0x8);
    }
}

/* Under its name there was another file by then, which it never saw. */
TEST(a_reader_in_a_segment_that_was_given_up_is_told_when_its_successor_went) {
    rig w = rig_new();
    CHECK_EQ(rig_open(&w, false), KV_OK);
    grow_to(&w, 2);
    rig_close(&w);
    CHECK_EQ(rig_open(&w, false), KV_OK);
    CHECK_EQ(kv_flow_prepare(w.flow, 0), KV_OK);
    rig r = {.sim = w.sim};
    CHECK_EQ(rig_open(&r, true), KV_OK);
    rig_close(&w);
    CHECK(!file_exists(&w, 3));
    CHECK_EQ(refresh(&r), KV_OK);
    CHECK_EQ(rig_open(&w, false), KV_OK);
    grow_to(&w, 5);
    CHECK_EQ(take_out_one(&w, 3), KV_OK);
    check_behind(&w, &r, 0x8);
}

static rig *removing;        /* the writer that comes between */
static uint32_t remove_next; /* what it takes out when a reader is about to open that one: one in each of its looks */
static uint32_t remove_last;
static bool remove_now;

static void remove_before_open(const char *path) {
    char name[32];
    snprintf(name, sizeof name, "flow/%08x.seg", (unsigned)remove_next);
    remove_now |= strcmp(path, "flow/00000001.seg") == 0;
    if (!remove_now || remove_next > remove_last || strcmp(path, name) != 0) return;
    remove_now = false;
    CHECK_EQ(take_out_one(removing, remove_next++), KV_OK);
}

static void check_open_beside(uint32_t first, uint32_t last, kv_status status) {
    rig w = rig_new();
    CHECK_EQ(rig_open(&w, false), KV_OK);
    kv_flow_set_content(w.flow, 0, 1 << 20); /* small ones */
    grow_to(&w, 20);
    removing = &w;
    remove_next = first;
    remove_last = last;
    rig r = {.sim = w.sim, .before_open = remove_before_open};
    CHECK_EQ(rig_open(&r, true), status);
    if (status == KV_OK) CHECK(replayed_is(&r, &w, (2ull << last) - (1ull << first)));
    CHECK_EQ(r.fault.status, status);
    rig_drop(&r);
    rig_close(&w);
    kv_sim_free(w.sim);
}

TEST(a_reader_that_opens_while_segments_go_is_not_told_of_damage) {
    check_open_beside(3, 3, KV_OK);
    check_open_beside(1, 1, KV_OK);
    check_open_beside(3, 8, KV_OK);
    check_open_beside(3, 18, KV_EBEHIND);
}

/* The tombstones of a later segment go when the earlier ones they were for have gone: who has the earlier ones and not
 * the later one finds the dead alive. */
static void remove_both_before_open(const char *path) {
    if (remove_next == 0 || strcmp(path, "flow/00000005.seg") != 0) return;
    CHECK_EQ(take_out_one(removing, remove_next), KV_OK);
    remove_next = 0;
    CHECK_EQ(take_out_one(removing, 6), KV_OK);
}

TEST(a_reader_that_opens_while_segments_go_has_the_log_of_one_moment) {
    for (uint32_t early = 1; early <= 3; early++) {
        rig w = rig_new();
        CHECK_EQ(rig_open(&w, false), KV_OK);
        grow_to(&w, SEGMENTS);
        removing = &w;
        remove_next = early;
        rig r = {.sim = w.sim, .before_open = remove_both_before_open};
        CHECK_EQ(rig_open(&r, true), KV_OK);
        CHECK_EQ(remove_next, 0);
        CHECK(replayed_is(&r, &w, 1ull << early | 1ull << 6));
        rig_drop(&r);
        rig_close(&w);
        kv_sim_free(w.sim);
    }
}

/* --- removal, and threads beside it --- */

typedef struct crowd {
    rig r;
    _Atomic bool stop;
    _Atomic int read_count;
} crowd;

static void *appending(void *argument) {
    crowd *c = argument;
    while (!atomic_load(&c->stop)) {
        pthread_mutex_lock(&writer_lock);
        CHECK(put(&c->r, RECORD_VALUE) != 0);
        kv_epoch_reclaim(c->r.epoch);
        pthread_mutex_unlock(&writer_lock);
    }
    return NULL;
}

static void *settling(void *argument) {
    crowd *c = argument;
    while (!atomic_load(&c->stop)) {
        CHECK_EQ(sync_all(&c->r), KV_OK);
        CHECK_EQ(kv_flow_settle(c->r.flow), KV_OK);
    }
    return NULL;
}

static void *reading(void *argument) {
    crowd *c = argument;
    kv_epoch_slot *slot;
    CHECK_EQ(kv_epoch_join(c->r.epoch, &slot), KV_OK);
    for (uint32_t id = 1; !atomic_load(&c->stop); id++) {
        uint64_t size;
        kv_record record;
        uint32_t used, tail = kv_flow_tail(c->r.flow).segment;
        if (id >= tail) id = tail > 8 ? tail - 8 : 1; /* among those that are about to go */
        kv_epoch_enter(c->r.epoch, slot);
        const uint8_t *bytes = kv_flow_at(c->r.flow, id, KV_SEGMENT_HEADER_SIZE, &size);
        if (bytes != NULL && id < tail) {
            uint64_t place = kv_place(kv_flow_salt(c->r.flow), id, KV_SEGMENT_HEADER_SIZE);
            CHECK_EQ(kv_record_decode(bytes, size, place, &record, &used), KV_OK);
            atomic_fetch_add(&c->read_count, 1);
        }
        kv_epoch_leave(slot);
    }
    kv_epoch_part(c->r.epoch, slot);
    return NULL;
}

/* Every second one of those that may go, the first included. */
static size_t choose(rig *r, uint32_t ids[SEGMENTS]) {
    kv_segment_info *segments;
    size_t count, chosen = 0;
    pthread_mutex_lock(&writer_lock);
    CHECK_EQ(kv_flow_segments(r->flow, &segments, &count), KV_OK);
    uint32_t newest = kv_flow_tail(r->flow).segment;
    for (size_t i = 0; i < count && chosen < SEGMENTS; i += 2)
        if (segments[i].sealed && segments[i].id != newest) ids[chosen++] = segments[i].id;
    pthread_mutex_unlock(&writer_lock);
    free(segments);
    return chosen;
}

TEST(segments_go_while_others_append_sync_and_read) {
    enum { REMOVED_MIN = 40 };
    void *(*const work[])(void *) = {appending, settling, reading, reading};
    pthread_t threads[4];
    char directory[] = "/tmp/kv_flow_XXXXXX", path[64];
    static crowd c;
    size_t removed = 0;
    CHECK(mkdtemp(directory) != NULL);
    CHECK_EQ(kv_io_posix_new(directory, false, &c.r.io), KV_OK);
    CHECK_EQ(rig_open(&c.r, false), KV_OK);
    kv_flow_set_content(c.r.flow, 0, 1 << 20);
    for (int i = 0; i < 4; i++) CHECK_EQ(pthread_create(&threads[i], NULL, work[i], &c), 0);
    while (removed < REMOVED_MIN && !check_failed_here) {
        uint32_t ids[SEGMENTS];
        size_t count = choose(&c.r, ids);
        CHECK_EQ(take_out(&c.r, ids, count), KV_OK);
        removed += count;
        usleep(1000);
    }
    atomic_store(&c.stop, true);
    for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
    CHECK(atomic_load(&c.read_count) > 0);
    rig_close(&c.r);

    CHECK_EQ(kv_io_posix_new(directory, false, &c.r.io), KV_OK);
    CHECK_EQ(rig_open(&c.r, false), KV_OK);
    for (size_t i = 1; i < c.r.seen_count; i++) CHECK(c.r.seen[i] > c.r.seen[i - 1]);
    uint32_t newest = kv_flow_tail(c.r.flow).segment;
    rig_close(&c.r);
    for (uint32_t id = 1; id <= newest; id++) {
        snprintf(path, sizeof path, "%s/flow/%08x.seg", directory, (unsigned)id);
        unlink(path);
    }
    snprintf(path, sizeof path, "%s/flow", directory);
    CHECK_EQ(rmdir(path), 0);
    CHECK_EQ(rmdir(directory), 0);
}

/* --- waiting for the disk together --- */

enum { SYNCERS = 8, SYNCS_EACH = 100, SYNCS_GOOD = 50 };

static kv_status (*disk_sync)(kv_io *io, kv_file *file);
static _Atomic uint64_t syncs_left; /* before one fails */

/* Long enough for others to come while it lasts. */
static kv_status slow_sync(kv_io *io, kv_file *file) {
    usleep(200);
    if (atomic_load(&syncs_left) == 0) return KV_EDISK;
    atomic_fetch_sub(&syncs_left, 1);
    return disk_sync(io, file);
}

/* Its last status. */
static void *put_and_sync(void *argument) {
    crowd *c = argument;
    kv_status status = KV_OK;
    for (int i = 0; i < SYNCS_EACH && status == KV_OK; i++) {
        pthread_mutex_lock(&writer_lock);
        bool written = put(&c->r, 100) != 0;
        kv_position upto = kv_flow_tail(c->r.flow);
        pthread_mutex_unlock(&writer_lock);
        status = kv_flow_sync(c->r.flow, upto);
        if (!written) status = KV_EPOISONED;
        if (status == KV_OK) CHECK(kv_position_order(kv_flow_durable(c->r.flow)) >= kv_position_order(upto));
    }
    return (void *)(intptr_t)status;
}

/* Whoever settles leads as well, and makes nothing durable that anybody waits for. */
static void *settling_until_told(void *argument) {
    crowd *c = argument;
    while (!atomic_load(&c->stop)) {
        kv_status status = kv_flow_settle(c->r.flow);
        CHECK(status == KV_OK || status == KV_EPOISONED || status == KV_EDISK);
    }
    return NULL;
}

/* A waiter that nobody wakes is a test that does not end. */
static size_t sync_together(crowd *c, uint64_t good_count, bool settle) {
    pthread_t threads[SYNCERS], settler;
    size_t good = 0;
    atomic_store(&syncs_left, good_count);
    atomic_store(&c->stop, false);
    if (settle) CHECK_EQ(pthread_create(&settler, NULL, settling_until_told, c), 0);
    for (int i = 0; i < SYNCERS; i++) CHECK_EQ(pthread_create(&threads[i], NULL, put_and_sync, c), 0);
    for (int i = 0; i < SYNCERS; i++) {
        void *status;
        pthread_join(threads[i], &status);
        good += (intptr_t)status == KV_OK;
    }
    atomic_store(&c->stop, true);
    if (settle) pthread_join(settler, NULL);
    return good;
}

TEST(everybody_who_waits_for_a_sync_is_woken_by_it_or_by_its_failure) {
    static crowd c;
    char directory[] = "/tmp/kv_flow_XXXXXX", path[64];
    CHECK(mkdtemp(directory) != NULL);
    CHECK_EQ(kv_io_posix_new(directory, false, &c.r.io), KV_OK);
    CHECK_EQ(rig_open(&c.r, false), KV_OK);
    disk_sync = c.r.io->sync;
    c.r.io->sync = slow_sync;
    CHECK_EQ(sync_together(&c, UINT64_MAX, false), SYNCERS);
    CHECK_EQ(sync_together(&c, UINT64_MAX, true), SYNCERS);
    CHECK_EQ(sync_together(&c, SYNCS_GOOD, false), 0);
    uint32_t newest = kv_flow_tail(c.r.flow).segment + 1; /* and the one that was prepared */
    rig_drop(&c.r);
    for (uint32_t id = 1; id <= newest; id++) {
        snprintf(path, sizeof path, "%s/flow/%08x.seg", directory, (unsigned)id);
        unlink(path);
    }
    snprintf(path, sizeof path, "%s/flow/next.tmp", directory);
    unlink(path);
    snprintf(path, sizeof path, "%s/flow", directory);
    CHECK_EQ(rmdir(path), 0);
    CHECK_EQ(rmdir(directory), 0);
}

/* --- sizes --- */

static uint32_t size_of(rig *r, uint32_t id) {
    kv_segment_info *segments;
    size_t count;
    uint32_t size = 0;
    CHECK_EQ(kv_flow_segments(r->flow, &segments, &count), KV_OK);
    for (size_t i = 0; i < count; i++)
        if (segments[i].id == id) size = segments[i].size;
    free(segments);
    return size;
}

TEST(segments_follow_the_size_of_what_is_live) {
    rig r = rig_new();
    CHECK_EQ(rig_open(&r, false), KV_OK);
    kv_flow_set_content(r.flow, 0, 1 << 20);
    grow_to(&r, 3);
    CHECK_EQ(size_of(&r, 3), SEGMENT_MIN);
    kv_flow_set_content(r.flow, 16 * SEGMENT_MIN - 1, 1 << 20);
    grow_to(&r, 4);
    CHECK_EQ(size_of(&r, 4), SEGMENT_MIN);
    kv_flow_set_content(r.flow, UINT64_MAX - 1, 1 << 20);
    grow_to(&r, 7);
    CHECK_EQ(size_of(&r, 5), 2 * SEGMENT_MIN); /* never more than twice the one before */
    CHECK_EQ(size_of(&r, 6), SEGMENT_MAX);
    CHECK_EQ(size_of(&r, 7), SEGMENT_MAX);
    kv_flow_set_content(r.flow, 16 * SEGMENT_MIN, 1 << 20);
    grow_to(&r, 8);
    CHECK_EQ(size_of(&r, 8), 2 * SEGMENT_MIN);
    kv_flow_set_content(r.flow, 0, 1 << 20);
    CHECK(put(&r, 50000) != 0);
    CHECK_EQ(size_of(&r, 9), SEGMENT_MAX);
    grow_to(&r, 10);
    CHECK_EQ(size_of(&r, 10), SEGMENT_MIN);
    rig_close(&r);
    kv_sim_free(r.sim);
}

TEST(segments_for_large_records_are_not_filled_and_written_by_calls) {
    rig r = rig_new();
    CHECK_EQ(rig_open(&r, false), KV_OK);
    grow_to(&r, 2);
    for (int large = 0; large < 2; large++) {
        kv_flow_set_content(r.flow, 100 << 20, large ? 12000 : 13000);
        CHECK_EQ(kv_flow_prepare(r.flow, 0), KV_OK); /* one that may have been begun before */
        grow_to(&r, 4 + 2 * (uint32_t)large);
        uint64_t writes = kv_sim_call_count(r.sim, KV_SIM_WRITE);
        CHECK_EQ(kv_flow_prepare(r.flow, 0), KV_OK);
        writes = kv_sim_call_count(r.sim, KV_SIM_WRITE) - writes;
        if (large) CHECK_EQ(writes, 1); /* its header */
        else CHECK(writes > 10);
        /* And records go there by calls, which make no page at a time; small ones through the mapping. */
        grow_to(&r, kv_flow_tail(r.flow).segment + 1);
        writes = kv_sim_call_count(r.sim, KV_SIM_WRITE);
        CHECK(put(&r, RECORD_VALUE) != 0);
        CHECK_EQ(kv_sim_call_count(r.sim, KV_SIM_WRITE) - writes, large);
    }
    rig_close(&r);
    kv_sim_free(r.sim);
}

TEST(a_note_is_of_one_record_and_goes_with_its_mapping) {
    rig r = rig_new();
    CHECK_EQ(rig_open(&r, false), KV_OK);
    grow_to(&r, 2);
    enum { AT = KV_SEGMENT_HEADER_SIZE };
    CHECK(!kv_flow_was_intact(r.flow, 2, AT));
    kv_flow_note_intact(r.flow, 2, AT);
    CHECK(kv_flow_was_intact(r.flow, 2, AT));
    for (uint32_t page = 0; page < SEGMENT_MIN / KV_PAGE_SIZE; page++)
        CHECK_EQ(kv_flow_was_intact(r.flow, 2, page * KV_PAGE_SIZE), page == 1);
    CHECK(!kv_flow_was_intact(r.flow, 1, AT));
    CHECK(!kv_flow_was_intact(r.flow, 99, AT)); /* no such segment */
    kv_flow_note_intact(r.flow, 99, AT);
    rig_close(&r);
    CHECK_EQ(rig_open(&r, false), KV_OK);
    CHECK(!kv_flow_was_intact(r.flow, 2, AT));
    rig_close(&r);
    kv_sim_free(r.sim);
}

/* --- pages made ready ahead of time --- */

static uint64_t warmed_size;

static void count_warm(kv_io *io, uint8_t *pages, uint64_t size) {
    (void)io;
    (void)pages;
    warmed_size += size;
}

/* What a round of the preparer warms. */
static uint64_t prepare_and_warm(rig *r) {
    warmed_size = 0;
    CHECK_EQ(kv_flow_prepare(r->flow, 0), KV_OK);
    kv_flow_warm(r->flow);
    return warmed_size;
}

static void roll(rig *r) {
    uint32_t segment = kv_flow_tail(r->flow).segment;
    while (kv_flow_tail(r->flow).segment == segment) CHECK(put(r, 1000) != 0);
}

TEST(a_prepared_segment_is_warmed_whole_unless_somebody_syncs) {
    rig r = {.sim = kv_sim_new(), .warm = true};
    CHECK_EQ(rig_open(&r, false), KV_OK);
    r.io->warm = count_warm;
    CHECK_EQ(prepare_and_warm(&r), 2 * SEGMENT_MIN); /* The first there is since the store was opened. */
    roll(&r);
    roll(&r); /* Finds none, and makes it itself: nobody warms under the writer's lock. */
    CHECK_EQ(warmed_size, 2 * SEGMENT_MIN);
    CHECK_EQ(prepare_and_warm(&r), SEGMENT_MAX);
    CHECK_EQ(sync_all(&r), KV_OK);
    roll(&r);
    uint64_t writes = kv_sim_call_count(r.sim, KV_SIM_WRITE);
    CHECK_EQ(prepare_and_warm(&r), 0); /* The next sync would have to write all of it. */
    CHECK(kv_sim_call_count(r.sim, KV_SIM_WRITE) - writes > 10); /* So it has zeros. */
    roll(&r);
    writes = kv_sim_call_count(r.sim, KV_SIM_WRITE);
    CHECK_EQ(prepare_and_warm(&r), SEGMENT_MAX); /* Nobody has synced since: */
    CHECK_EQ(kv_sim_call_count(r.sim, KV_SIM_WRITE) - writes, 1); /* only its header is written. */
    rig_close(&r);
    kv_sim_free(r.sim);
}

TEST(a_segment_is_not_warmed_where_writes_are_synced_as_a_rule) {
    rig r = rig_new();
    CHECK_EQ(rig_open(&r, false), KV_OK);
    r.io->warm = count_warm;
    CHECK_EQ(prepare_and_warm(&r), 0);
    rig_close(&r);
    kv_sim_free(r.sim);
}

static const uint8_t *cooled;
static uint64_t cooled_size;

static void note_cool(kv_io *io, uint8_t *pages, uint64_t size) {
    (void)io;
    cooled = pages;
    cooled_size += size;
}

TEST(whole_pages_are_cooled_before_a_sync_of_many) {
    rig r = {.sim = kv_sim_new(), .size_max = 1 << 20};
    CHECK_EQ(rig_open(&r, false), KV_OK);
    r.io->cool = note_cool;
    cooled_size = 0;
    while (kv_flow_tail(r.flow).segment < 7) CHECK(put(&r, 1000) != 0);
    CHECK_EQ(sync_all(&r), KV_OK);
    CHECK_EQ(cooled_size, (256 << 10) + (512 << 10)); /* Of 16 KiB, 32 .. 512 KiB and the start of the next. */

    while (kv_flow_tail(r.flow).offset < 5000) CHECK(put(&r, 1000) != 0);
    CHECK_EQ(sync_all(&r), KV_OK);
    uint32_t from = kv_flow_tail(r.flow).offset;
    while (kv_flow_tail(r.flow).offset < from + (300 << 10)) CHECK(put(&r, 1000) != 0);
    cooled_size = 0;
    CHECK_EQ(sync_all(&r), KV_OK);
    CHECK(cooled_size >= 256 << 10 && cooled_size <= 300 << 10 && cooled_size % 4096 == 0);
    uint64_t room;
    uintptr_t start = (uintptr_t)kv_flow_at(r.flow, 7, from, &room); /* Neither the page that was durable nor the tail's. */
    CHECK((uintptr_t)cooled >= start && (uintptr_t)cooled < start + 4096);
    put(&r, 1000);
    cooled_size = 0;
    CHECK_EQ(sync_all(&r), KV_OK);
    CHECK_EQ(cooled_size, 0);
    rig_close(&r);
    kv_sim_free(r.sim);
}

typedef struct warmer {
    rig *r;
    atomic_bool stop;
} warmer;

static void *warming(void *argument) {
    warmer *w = argument;
    while (!atomic_load(&w->stop)) {
        CHECK_EQ(kv_flow_prepare(w->r->flow, 0), KV_OK);
        kv_flow_warm(w->r->flow);
    }
    return NULL;
}

TEST(segments_are_taken_while_they_are_warmed) {
    rig r = {.sim = kv_sim_new(), .warm = true};
    pthread_t thread;
    kv_sim_set_recording(r.sim, 0);
    CHECK_EQ(rig_open(&r, false), KV_OK);
    warmer w = {.r = &r};
    CHECK_EQ(pthread_create(&thread, NULL, warming, &w), 0);
    for (uint64_t i = 1; i <= 2000; i++) CHECK_EQ(put(&r, 1000), i);
    atomic_store(&w.stop, true);
    pthread_join(thread, NULL);
    rig_close(&r);
    CHECK_EQ(rig_open(&r, false), KV_OK);
    CHECK_EQ(r.seen_count, 2000);
    rig_close(&r);
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
    RUN(opening_a_log_that_was_not_closed_writes_nothing);
    RUN(a_sync_makes_durable_what_an_opener_found);
    RUN(a_log_that_was_not_closed_opens_on_a_full_disk);
    RUN(a_replay_that_ended_within_an_envelope_goes_on_at_its_head);
    RUN(a_reader_takes_nothing_from_behind_the_end_of_the_file);
    RUN(a_reader_leaves_a_prepared_segment_that_was_given_up_and_made_again);
    RUN(a_reader_leaves_a_prepared_segment_that_was_too_small_for_a_record);
    RUN(a_full_disk_refuses_and_recovers);
    RUN(a_failed_sync_ends_writing_for_good);
    RUN(removed_segments_are_not_replayed_and_their_files_go);
    RUN(neighbours_are_taken_out_with_one_write);
    RUN(only_sealed_segments_go_and_the_newest_never);
    RUN(the_new_first_segment_may_be_the_active_one);
    RUN(a_power_cut_in_a_removal_leaves_the_old_chain_or_the_new);
    RUN(a_damaged_link_is_a_missing_segment_and_changes_nothing);
    RUN(a_link_counts_where_the_seal_is_damaged);
    RUN(a_checkpoint_older_than_a_removal_requires_is_not_used);
    RUN(who_is_inside_the_epoch_goes_on_reading_what_was_removed);
    RUN(a_failed_link_ends_writing_and_leaves_the_log_as_it_was);
    RUN(a_file_that_could_not_be_unlinked_is_swept_by_the_next_writer);
    RUN(a_reader_is_told_that_segments_went_which_it_had_not_read);
    RUN(a_reader_goes_on_when_nothing_went_that_it_had_not_read);
    RUN(a_reader_behind_a_clean_close_tells_nothing_yet_from_gone);
    RUN(a_reader_in_a_segment_that_was_given_up_is_told_when_its_successor_went);
    RUN(a_reader_that_opens_while_segments_go_is_not_told_of_damage);
    RUN(a_reader_that_opens_while_segments_go_has_the_log_of_one_moment);
    RUN(segments_go_while_others_append_sync_and_read);
    RUN(everybody_who_waits_for_a_sync_is_woken_by_it_or_by_its_failure);
    RUN(segments_follow_the_size_of_what_is_live);
    RUN(segments_for_large_records_are_not_filled_and_written_by_calls);
    RUN(a_note_is_of_one_record_and_goes_with_its_mapping);
    RUN(a_prepared_segment_is_warmed_whole_unless_somebody_syncs);
    RUN(a_segment_is_not_warmed_where_writes_are_synced_as_a_rule);
    RUN(whole_pages_are_cooled_before_a_sync_of_many);
    RUN(segments_are_taken_while_they_are_warmed);
    return check_report();
}
