/* test_faults.c -- calls that fail: every kind of call, at every place of a short history, and a disk that is full.
 *
 * The history is run again and again; the nth call of a kind fails in the nth run, until there are fewer calls than n.
 * What has to hold:
 *
 *   - a write that answered with an error has changed nothing, or (a failed sync, say) everything, never a part;
 *   - after EIO nothing more is written: every write is refused, every read is right;
 *   - after ENOSPC reads are right, nothing has changed, and the next write is accepted;
 *   - once the fault is gone the store opens again, after kill -9 as after a power cut that keeps nothing unsynced, and
 *     holds what was acknowledged (as durable, after the power cut) and nothing that was never asked for.
 *
 * Then what is no store, is a newer one, or is somebody else's: refused, and nothing written. */
#include <errno.h>

#include "history.h"

enum { SHOWN_MAX = 4, NTH_MAX = 4000 };
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { NTH_STEP = 7 };
#else
enum { NTH_STEP = 1 };
#endif

/* --- one history with a fault in it --- */

typedef struct fault_plan {
    int32_t kind;
    int32_t errno_value;
    int32_t flags;
    int32_t sync;
    int32_t write_calls;
    uint64_t nth;
} fault_plan;

typedef struct faulty {
    history h;
    const fault_plan *plan;
    bool poisoned; /* an operation has failed for good: nothing may be accepted until the store is opened again */
} faulty;

static uint64_t shown;

static void complain(const faulty *f, const char *what) {
    const fault_plan *p = f->plan;
    check_failed_here = 1;
    if (shown++ >= SHOWN_MAX) return;
    printf("%s %" PRIu64 " fails with %s%s, sync %d, %s: %s\n", kv_sim_kind_name(p->kind), p->nth,
           p->errno_value == ENOSPC ? "ENOSPC" : "EIO", p->flags & KV_SIM_FAIL_HALF ? " half way" : "", p->sync,
           p->write_calls ? "write calls" : "mapped", what);
}

static bool is_poisoned(const history *h) {
    kv_stats stats = {0};
    kv_store_measure(h->store, &stats);
    return stats.poisoned != KV_OK;
}

/* Versions of keys that an operation has changed are as read back: `after` has the rest. */
static void take_versions(const observed *o, const twin *before, twin *after) {
    for (int i = 0; i < KEY_COUNT; i++)
        if (memcmp(&before->keys[i], &after->keys[i], sizeof after->keys[i]) != 0)
            after->keys[i].version = (uint64_t)o->version[i];
}

/* The store as it reads now is the newest state of the twin, or, after a call that failed, `after`. */
static void settle_outcome(faulty *f, kv_result result, twin *after, bool durable) {
    history *h = &f->h;
    observed o;
    observe(h->sim, h->store, h->caller, NULL, &o);
    kv_sim_set_clock(h->sim, h->now_ms);
    twin before = *newest(h);
    take_versions(&o, &before, after);
    bool unchanged = state_fits(&o, &before), changed = state_fits(&o, after);
    bool poisoned = is_poisoned(h);
    if (result >= 0) {
        if (f->poisoned) complain(f, "a write was accepted after a failure");
        if (!changed) complain(f, "an accepted write is not there");
        push(h, after, o.stats.sequence);
        acknowledge(h, waited(h, durable, result));
        return;
    }
    bool expected = result == KV_EDISK || result == KV_ENOSPC || result == KV_EPOISONED;
    if (!expected) complain(f, kv_status_name((int)result));
    if (result == KV_ENOSPC && f->plan->errno_value != ENOSPC) complain(f, "KV_ENOSPC without ENOSPC");
    if (result == KV_EDISK && !poisoned) complain(f, "a write failed and the store goes on");
    if (result == KV_ENOSPC && !unchanged) complain(f, "a write refused for want of space was applied");
    if (f->poisoned && !unchanged) complain(f, "a write was applied after a failure");
    if (!unchanged && !changed) complain(f, "a failed write has changed something else");
    if (!unchanged) push(h, after, o.stats.sequence);
    kv_sim_mark(h->sim, -9);
    h->event_before = kv_sim_event_count(h->sim);
    f->poisoned |= poisoned;
}

static void fault_put(faulty *f, int key, const void *value, size_t size, int durable) {
    char text[KEY_TEXT_SIZE];
    if (f->h.store == NULL) return;
    twin after = *newest(&f->h);
    size_t text_size = key_text(key, text);
    kv_result result = kv_put(f->h.caller, (const uint8_t *)text, text_size, value, size, 0, durable);
    after.keys[key] = value_keep(&f->h, value, size, 1, 0);
    settle_outcome(f, result, &after, durable);
}

static void fault_delete(faulty *f, int key) {
    char text[KEY_TEXT_SIZE];
    if (f->h.store == NULL || !twin_alive(&f->h, newest(&f->h), key)) return;
    twin after = *newest(&f->h);
    size_t text_size = key_text(key, text);
    kv_result result = kv_delete(f->h.caller, (const uint8_t *)text, text_size, -1, 0);
    after.keys[key] = (twin_key){.what = DELETED, .version = 1};
    settle_outcome(f, result, &after, false);
}

/* Three keys: one inline, one in a file, one put where something was. */
static void fault_batch(faulty *f, int durable) {
    static uint8_t big[INLINE_SIZE_MAX + 200];
    static const int keys[] = {5, 12, 13};
    char texts[3][KEY_TEXT_SIZE];
    kv_operation operations[3];
    if (f->h.store == NULL) return;
    twin after = *newest(&f->h);
    memset(big, 'b', sizeof big);
    for (int i = 0; i < 3; i++) {
        size_t size = i == 1 ? sizeof big : 30;
        uint32_t key_size = (uint32_t)key_text(keys[i], texts[i]);
        operations[i] = (kv_operation){.key = (const uint8_t *)texts[i], .key_size = key_size,
                                       .value = big, .value_size = size};
        after.keys[keys[i]] = value_keep(&f->h, big, size, 1, 0);
    }
    settle_outcome(f, kv_batch(f->h.caller, operations, 3, NULL, 0, durable), &after, durable);
}

static void fault_sync(faulty *f) {
    if (f->h.store == NULL) return;
    twin same = *newest(&f->h);
    kv_result result = kv_sync(f->h.caller);
    if (result == 0) {
        acknowledge(&f->h, true);
        big_reap(f->h.store);
        return;
    }
    settle_outcome(f, result, &same, false);
}

/* A checkpoint that fails is given up; the store may go on without. */
static void fault_checkpoint(faulty *f) {
    kv_checkpoint *checkpoint;
    const uint8_t *bytes;
    size_t size;
    if (f->h.store == NULL) return;
    kv_status status = kv_checkpoint_begin(f->h.store, &checkpoint);
    if (status == KV_OK) {
        do status = kv_checkpoint_step(checkpoint);
        while (status == KV_MORE);
        if (status == KV_EOF) {
            kv_checkpoint_describe(checkpoint, &bytes, &size);
            catalog_add(&f->h, bytes, size);
            kv_checkpoint_published(checkpoint);
        }
        kv_checkpoint_free(checkpoint);
    }
    f->poisoned |= is_poisoned(&f->h);
    if (status < 0 && status != KV_EDISK && status != KV_ENOSPC && status != KV_EPOISONED)
        complain(f, kv_status_name(status));
}

static void fault_end(faulty *f, bool clean) {
    history *h = &f->h;
    kv_fault fault;
    if (h->store == NULL) return;
    kv_caller_free(h->caller);
    bool closed = clean && kv_store_close(h->store, &fault) == KV_OK;
    kv_store_free(h->store);
    h->store = NULL;
    h->caller = NULL;
    if (closed && !f->poisoned) acknowledge(h, true);
    else kv_sim_mark(h->sim, -2);
    h->event_before = kv_sim_event_count(h->sim);
    f->poisoned = false;
}

static void fault_open(faulty *f) {
    history *h = &f->h;
    kv_fault fault;
    int64_t entry = (int64_t)h->catalog_count - 1;
    const catalog_entry *used = entry < 0 ? NULL : &h->catalog[entry];
    kv_status status = open_with(h->sim, &h->options, used, &h->store, &h->caller, &fault);
    if (status == KV_OK) {
        observed o;
        observe(h->sim, h->store, h->caller, NULL, &o);
        kv_sim_set_clock(h->sim, h->now_ms);
        if (!state_fits(&o, newest(h))) {
            /* A write that failed may be gone now, or, in the flow and never shown, appear. */
            uint64_t at = h->state_count;
            while (at-- > 0 && !state_fits(&o, &h->states[at])) {}
            bool right = at != UINT64_MAX && at >= stamp_at(&h->returned, kv_sim_event_count(h->sim));
            if (!right) complain(f, "reopened to another state");
            else push(h, &h->states[at], o.stats.sequence);
        }
        acknowledge(h, true);
        return;
    }
    if (status != KV_EDISK && status != KV_ENOSPC)
        complain(f, fault.what[0] != 0 ? fault.what : kv_status_name(status));
    kv_sim_mark(h->sim, -2);
}

static void run_script(faulty *f) {
    static uint8_t big[INLINE_SIZE_MAX + 100];
    memset(big, 'B', sizeof big); /* Not zeros: half a record of zeros would be a whole one. */
    fault_open(f);
    fault_put(f, 3, "one", 3, 0);
    fault_put(f, 4, "two", 3, 1);
    fault_put(f, 5, big, sizeof big, 0);
    fault_batch(f, 1);
    fault_delete(f, 3);
    fault_sync(f);
    fault_end(f, true);
    fault_open(f);
    fault_put(f, 6, "three", 5, 0);
    fault_put(f, 5, big, sizeof big - 1, 1);
    fault_checkpoint(f);
    for (int i = 0; i < 26; i++) fault_put(f, 7 + i % 3, big, INLINE_SIZE_MAX, 0); /* rolls */
    fault_checkpoint(f);
    fault_put(f, 4, "two again", 9, 1);
    fault_end(f, false);
    fault_open(f);
    fault_put(f, 10, "four", 4, 0);
    fault_batch(f, 0);
    fault_end(f, true);
}

/* --- afterwards --- */

static void judge_disk(const faulty *f, kv_sim *disk, uint64_t lowest, const char *how) {
    const history *h = &f->h;
    int64_t count = (int64_t)h->catalog_count, stride = count == 0 ? 1 : count; /* none, and the newest */
    for (int64_t entry = -1; entry < count; entry += stride) {
        kv_sim *copy = kv_sim_clone(disk);
        kv_store *store;
        kv_caller *caller;
        kv_fault fault;
        observed o;
        char what[256];
        kv_sim_limit(copy, UINT64_MAX);
        kv_sim_set_clock(copy, 1);
        kv_status status = open_with(copy, &h->options, entry < 0 ? NULL : &h->catalog[entry], &store, &caller, &fault);
        if (status != KV_OK) {
            snprintf(what, sizeof what, "%s: %s: %s", how, kv_status_name(status), fault.what);
            complain(f, what);
        } else {
            observe(copy, store, caller, NULL, &o);
            uint64_t at = h->state_count;
            while (at-- > lowest && !state_fits(&o, &h->states[at])) {}
            snprintf(what, sizeof what, "%s: holds no state from %" PRIu64 " to %" PRIu64, how, lowest, last_state(h));
            if (at == UINT64_MAX || at < lowest) complain(f, what);
            else if (counters_differ(&o, &h->states[at]) != NULL) complain(f, counters_differ(&o, &h->states[at]));
            kv_caller_free(caller);
            kv_store_free(store);
        }
        kv_sim_free(copy);
    }
}

static void judge_afterwards(const faulty *f) {
    const history *h = &f->h;
    uint64_t now = kv_sim_event_count(h->sim);
    kv_sim *kept = kv_sim_clone(h->sim), *lost;
    KV_ASSERT(kv_sim_image(h->sim, now, KV_CUT_ALL_LOST, 0, 0, &lost) == KV_OK);
    judge_disk(f, kept, stamp_at(&h->returned, now), "after kill -9");
    judge_disk(f, lost, stamp_at(&h->durable, now), "after a power cut");
    kv_sim_free(kept);
    kv_sim_free(lost);
}

/* Whether the fault was met. */
static bool run_plan(const fault_plan *plan) {
    kv_options options = {.sync = plan->sync, .write_calls = plan->write_calls, .segment_size_min = 1 << 14,
                          .segment_size_max = 1 << 14, .inline_size_max = INLINE_SIZE_MAX};
    faulty f = {.plan = plan};
    kv_sim *sim = kv_sim_new();
    history_begin(&f.h, sim, 1, &options);
    kv_sim_set_clock(sim, f.h.now_ms);
    kv_sim_fail(sim, plan->kind, plan->nth, plan->errno_value, plan->flags);
    run_script(&f);
    bool met = kv_sim_call_count(sim, plan->kind) >= plan->nth;
    kv_sim_fail(sim, plan->kind, 0, 0, 0);
    judge_afterwards(&f);
    history_end(&f.h);
    kv_sim_free(sim);
    return met;
}

static void fail_everywhere(int32_t kind, int32_t errno_value, int32_t flags) {
    uint64_t runs = 0;
    shown = 0;
    for (int variant = 0; variant < 4; variant++) {
        fault_plan plan = {.kind = kind, .errno_value = errno_value, .flags = flags, .nth = 1,
                           .sync = variant & 1 ? KV_SYNC_ALWAYS : KV_SYNC_BATCH, .write_calls = variant >> 1};
        for (; plan.nth < NTH_MAX && run_plan(&plan); plan.nth += NTH_STEP) runs++;
        CHECK(plan.nth < NTH_MAX);
    }
    printf("%s fails with %s%s: %" PRIu64 " places\n", kv_sim_kind_name(kind), errno_value == ENOSPC ? "ENOSPC" : "EIO",
           flags & KV_SIM_FAIL_HALF ? " half way" : "", runs);
}

TEST(a_failed_write_ends_writing_and_loses_nothing) {
    fail_everywhere(KV_SIM_WRITE, EIO, 0);
    fail_everywhere(KV_SIM_WRITE, EIO, KV_SIM_FAIL_HALF);
}
TEST(a_failed_sync_ends_writing_and_loses_nothing) {
    fail_everywhere(KV_SIM_SYNC, EIO, 0);
    fail_everywhere(KV_SIM_SYNC_DIR, EIO, 0);
}
TEST(any_other_failed_call_loses_nothing) {
    static const int32_t kinds[] = {KV_SIM_TRUNCATE, KV_SIM_RENAME, KV_SIM_CREATE, KV_SIM_ALLOCATE, KV_SIM_UNLINK,
                                    KV_SIM_MKDIR, KV_SIM_MAP, KV_SIM_LIST, KV_SIM_LOCK, KV_SIM_RANDOM};
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) fail_everywhere(kinds[i], EIO, 0);
}
TEST(a_full_disk_refuses_and_recovers) {
    fail_everywhere(KV_SIM_WRITE, ENOSPC, 0);
    fail_everywhere(KV_SIM_WRITE, ENOSPC, KV_SIM_FAIL_HALF);
    fail_everywhere(KV_SIM_ALLOCATE, ENOSPC, 0);
    fail_everywhere(KV_SIM_CREATE, ENOSPC, 0);
    fail_everywhere(KV_SIM_MKDIR, ENOSPC, 0);
}

/* Space runs out for good, then comes back: in between everything can be read and nothing is half there. */
TEST(a_disk_that_stays_full_is_read_and_takes_writes_again_later) {
    static const uint8_t value[INLINE_SIZE_MAX];
    for (uint64_t space = 0; space < 40000; space += 1111) {
        fault_plan plan = {.errno_value = ENOSPC, .kind = KV_SIM_WRITE, .nth = space, .sync = KV_SYNC_BATCH};
        kv_options options = {.sync = KV_SYNC_BATCH, .segment_size_min = 1 << 14, .segment_size_max = 1 << 14,
                              .inline_size_max = INLINE_SIZE_MAX};
        faulty f = {.plan = &plan};
        kv_sim *sim = kv_sim_new();
        history_begin(&f.h, sim, 1, &options);
        kv_sim_set_clock(sim, f.h.now_ms);
        fault_open(&f);
        fault_put(&f, 3, "first", 5, 1);
        kv_sim_limit(sim, kv_sim_used(sim) + space);
        uint64_t before = f.h.state_count;
        for (int i = 0; i < 80; i++) fault_put(&f, 4 + i % 8, value, sizeof value, 0);
        CHECK(f.h.state_count < before + 80); /* it did fill up */
        fault_batch(&f, 0);
        fault_sync(&f);
        CHECK(!f.poisoned);
        kv_sim_limit(sim, UINT64_MAX);
        before = f.h.state_count;
        fault_put(&f, 5, "space again", 11, 1);
        for (int i = 0; i < 30; i++) fault_put(&f, 4 + i % 8, value, sizeof value, 0);
        fault_batch(&f, 1);
        CHECK_EQ(f.h.state_count, before + 32);
        judge_afterwards(&f);
        fault_end(&f, true);
        judge_afterwards(&f);
        history_end(&f.h);
        kv_sim_free(sim);
    }
}

/* --- refused --- */

static const kv_options PLAIN = {.sync = KV_SYNC_BATCH, .segment_size_min = 1 << 14, .segment_size_max = 1 << 14};

static void check_refused(kv_sim *sim, const kv_options *options, int status) {
    kv_store *store = NULL;
    kv_fault fault;
    uint64_t before = kv_sim_hash(sim);
    CHECK_EQ(kv_store_open(kv_sim_io(sim), options, NULL, 0, &fault, &store), status);
    CHECK_EQ(fault.status, status);
    CHECK(fault.what[0] != 0);
    CHECK(kv_sim_hash(sim) == before);
}

/* A store with one key, killed; *tail is where its next record would go. Not recording. */
static kv_sim *small_store(kv_position *tail, uint64_t *salt) {
    kv_sim *sim = kv_sim_new();
    kv_store *store;
    kv_caller *caller;
    kv_fault fault;
    kv_sim_set_recording(sim, 0);
    KV_ASSERT(open_with(sim, &PLAIN, NULL, &store, &caller, &fault) == KV_OK);
    CHECK(kv_put(caller, (const uint8_t *)"key", 3, (const uint8_t *)"value", 5, 0, 1) > 0);
    *tail = kv_flow_tail(store->flow);
    *salt = kv_flow_salt(store->flow);
    kv_caller_free(caller);
    kv_store_free(store);
    return sim;
}

TEST(a_record_of_an_unknown_kind_is_a_newer_store) {
    for (int kind = KV_KIND_TABLE_FLOOR + 1; kind < 256; kind += 3) {
        if (kind == KV_KIND_ENVELOPE || kind == KV_KIND_SEAL || kind == KV_KIND_CLOCK) continue;
        kv_position tail;
        uint64_t salt;
        uint8_t bytes[64];
        kv_sim *sim = small_store(&tail, &salt);
        kv_record record = {.kind = (uint8_t)kind, .version = 9, .key = (const uint8_t *)"k", .key_size = 1};
        kv_record_encode(&record, kv_place(salt, tail.segment, tail.offset), bytes);
        KV_ASSERT(kv_sim_write(sim, "flow/00000001.seg", tail.offset, bytes, kv_record_size(&record)) == KV_OK);
        check_refused(sim, &PLAIN, KV_EFORMAT);
        kv_sim_free(sim);
    }
}

TEST(a_segment_of_a_newer_format_is_a_newer_store) {
    kv_position tail;
    uint64_t salt;
    uint8_t header[64], checksum[8];
    size_t got;
    kv_sim *sim = small_store(&tail, &salt);
    KV_ASSERT(kv_sim_read(sim, "flow/00000001.seg", 0, header, sizeof header, &got) == KV_OK && got == sizeof header);
    kv_store32(header + 8, 2);
    kv_store64(checksum, kv_xxh64(header, sizeof header, 0));
    KV_ASSERT(kv_sim_write(sim, "flow/00000001.seg", 0, header, sizeof header) == KV_OK);
    KV_ASSERT(kv_sim_write(sim, "flow/00000001.seg", sizeof header, checksum, sizeof checksum) == KV_OK);
    check_refused(sim, &PLAIN, KV_EFORMAT);
    kv_sim_free(sim);
}

TEST(a_directory_that_is_no_store_stays_as_it_is) {
    kv_file *file;
    kv_options readonly = PLAIN;
    readonly.readonly = 1;
    kv_sim *sim = kv_sim_new();
    kv_sim_set_recording(sim, 0);
    check_refused(sim, &readonly, KV_ENOTFOUND);
    kv_io *io = kv_sim_io(sim);
    KV_ASSERT(io->open(io, "notes.txt", KV_IO_CREATE, &file) == KV_OK);
    io->close(io, file);
    io->free(io);
    check_refused(sim, &PLAIN, KV_ENOTSTORE);
    check_refused(sim, &readonly, KV_ENOTSTORE);
    kv_sim_free(sim);
}

TEST(a_second_writer_is_refused_and_the_first_goes_on) {
    kv_sim *sim = kv_sim_new();
    kv_store *first;
    kv_caller *caller;
    kv_fault fault;
    kv_sim_set_recording(sim, 0);
    KV_ASSERT(open_with(sim, &PLAIN, NULL, &first, &caller, &fault) == KV_OK);
    CHECK(kv_put(caller, (const uint8_t *)"key", 3, (const uint8_t *)"one", 3, 0, 1) > 0);
    check_refused(sim, &PLAIN, KV_ELOCKED);
    CHECK(kv_put(caller, (const uint8_t *)"key", 3, (const uint8_t *)"two", 3, 0, 1) > 0);
    kv_caller_free(caller);
    CHECK_EQ(kv_store_close(first, &fault), KV_OK);
    kv_store_free(first);
    KV_ASSERT(open_with(sim, &PLAIN, NULL, &first, &caller, &fault) == KV_OK);
    CHECK_EQ(kv_get(caller, (const uint8_t *)"key", 3), 3);
    CHECK(memcmp(kv_caller_answer(caller)->small, "two", 3) == 0);
    kv_caller_free(caller);
    kv_store_free(first);
    kv_sim_free(sim);
}

int main(void) {
    RUN(a_failed_write_ends_writing_and_loses_nothing);
    RUN(a_failed_sync_ends_writing_and_loses_nothing);
    RUN(any_other_failed_call_loses_nothing);
    RUN(a_full_disk_refuses_and_recovers);
    RUN(a_disk_that_stays_full_is_read_and_takes_writes_again_later);
    RUN(a_record_of_an_unknown_kind_is_a_newer_store);
    RUN(a_segment_of_a_newer_format_is_a_newer_store);
    RUN(a_directory_that_is_no_store_stays_as_it_is);
    RUN(a_second_writer_is_refused_and_the_first_goes_on);
    return check_report();
}
