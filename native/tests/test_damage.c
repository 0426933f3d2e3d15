/* test_damage.c -- a small store, a cut at every length and a flipped bit at every position of every file: the right
 * answer or KV_ECORRUPT, never a wrong value, a crash or a hang.
 *
 * The store has four segments: one closed cleanly (with a batch and a value file), one that recovery cut, one that is
 * full, and the open one; a checkpoint was taken in the full one. Where the store crashed, the full one has no seal in
 * its header, and most of it lies above its own watermark: only that of the open segment vouches for it. The store is
 * damaged in two forms, each opened with the checkpoint and without:
 *
 *   closed    Nothing may be missing: the right answer or KV_ECORRUPT, whatever was hit.
 *   crashed   The last four records were never synced. What lies above the durable watermark of the open segment is not
 *             promised: damage there ends the log at the record that was hit, so exactly the states from that one on
 *             are missing, and no others. Everything else as above.
 *
 * KV_ECORRUPT comes from the open, or, where the checkpoint spared the open a look at the record, from the read of a
 * key or row; then every other one still has its right value, but for the rows of a table whose newest record was hit.
 * Or from a scan or a change feed; one that is not refused lists exactly what is there.
 *
 * What the rules do not promise: a bit in padding or behind the end is not noticed, and need not be; a segment that was
 * begun after a clean close is named by nothing before it, so without a checkpoint its loss as a whole file looks like
 * the close before it. The last test holds exactly that. */
#include "history.h"

enum { ZERO_RUN_SAMPLE = 61, ZERO_RUN_MIN = 16, SHOWN_MAX = 5, FILE_COUNT_MAX = 32, PATH_TEXT_SIZE = 64 };
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { STRIDE = 23 };
#else
enum { STRIDE = 1 };
#endif

typedef struct fixture {
    history h;
    kv_sim *sim;      /* as written */
    kv_sim *disk;     /* the form under test: not recording */
    uint64_t end[16]; /* of the unsynced states: where their record ends, in the open segment */
    uint64_t first_unsynced;
    uint32_t open_segment, watermark;
    char paths[FILE_COUNT_MAX][PATH_TEXT_SIZE];
    size_t path_count;
} fixture;

enum outcome { RIGHT, SHORTER, CORRUPT_OPEN, CORRUPT_KEY, WRONG, OUTCOME_COUNT };
static const char *const outcome_names[OUTCOME_COUNT] = {"right", "suffix lost", "refused at open",
                                                          "refused at a key", "WRONG"};

typedef struct tally {
    uint64_t tried[OUTCOME_COUNT];
    uint64_t shown;
} tally;

/* --- the store --- */

static void put_text(history *h, int key, const char *text) {
    do_put(h, key, (const uint8_t *)text, strlen(text), 0, 0);
}

static void checkpoint_now(history *h) {
    kv_checkpoint *checkpoint;
    const uint8_t *bytes;
    size_t size;
    kv_status status = kv_checkpoint_begin(h->store, &checkpoint);
    KV_ASSERT(status == KV_OK);
    do status = kv_checkpoint_step(checkpoint);
    while (status == KV_MORE);
    KV_ASSERT(status == KV_EOF && kv_checkpoint_describe(checkpoint, &bytes, &size) == KV_OK);
    catalog_add(h, bytes, size);
    KV_ASSERT(kv_checkpoint_published(checkpoint) == KV_OK);
    kv_checkpoint_free(checkpoint);
}

static void put_row(history *h, int table, int row, const char *value, size_t size) {
    row_call call = {.table = table, .row = row};
    call.table_size = table_text(table, call.table_bytes);
    call.row_size = row_text(&newest(h)->tables[table], row, call.row_bytes);
    twin t = *newest(h);
    kv_result version = kv_row_put(h->caller, ROW_OF(call), (const uint8_t *)value, size, 0, 0);
    expect(h, "put of a row", version, newer(h, version));
    table_made(h, &t, table, (uint64_t)version)->rows[row] = row_made((const uint8_t *)value, size, (uint64_t)version, 0);
    push(h, &t, (uint64_t)version);
    acknowledge(h, false);
}

static void write_store(fixture *f) {
    history *h = &f->h;
    uint8_t bytes[INLINE_SIZE_MAX + 40];
    for (size_t i = 0; i < sizeof bytes; i++) bytes[i] = (uint8_t)(i * 7 + 1);
    history_open(h, -1);
    put_text(h, 3, "one");
    put_text(h, 4, "two");
    do_put(h, 5, bytes, sizeof bytes, 0, 0);
    do_put(h, 6, bytes, 20, 60000, 0);
    do_batch(h);
    do_incr(h);
    put_row(h, 0, 1, "row", 3);
    put_row(h, 0, 2, (const char *)bytes, INLINE_SIZE_MAX + 5);
    put_row(h, 1, 1, "gone soon", 9);
    drop_table(h, 1);
    history_close(h);

    history_open(h, -1);
    put_text(h, 4, "two again");
    do_delete(h);
    put_text(h, 7, "three");
    history_kill_in_write(h);

    history_open(h, -1);
    put_text(h, 9, "four");
    put_row(h, 0, 0, "again", 5);
    put_row(h, 2, 1, "below the checkpoint", 20);
    checkpoint_now(h);
    put_row(h, 0, 1, "above it", 8);
    put_row(h, 1, 0, "a table again", 13);
    memset(bytes, 0, sizeof bytes); /* a full segment of zeros: little to flip */
    uint32_t segment = kv_flow_tail(h->store->flow).segment;
    while (kv_flow_tail(h->store->flow).segment == segment) do_put(h, 8, bytes, INLINE_SIZE_MAX, 0, 0);
    put_text(h, 10, "five");
    put_text(h, 3, "one again");
    do_sync(h);
}

static void write_unsynced(fixture *f) {
    static const char *const texts[] = {"unsynced", "a second one", "", "the last"};
    f->first_unsynced = f->h.state_count;
    f->open_segment = kv_flow_tail(f->h.store->flow).segment;
    f->watermark = kv_flow_durable(f->h.store->flow).offset;
    for (int i = 0; i < 4; i++) {
        put_text(&f->h, 11 + i, texts[i]);
        f->end[i] = kv_flow_tail(f->h.store->flow).offset;
    }
}

static void list_files(fixture *f) {
    static const char *const directories[] = {"flow", "values", "index", "runs"};
    kv_io *io = kv_sim_io(f->disk);
    f->path_count = 0;
    for (int d = 0; d < 4; d++) {
        char **names;
        size_t count;
        if (io->list(io, directories[d], &names, &count) != KV_OK) continue;
        for (size_t i = 0; i < count; i++)
            snprintf(f->paths[f->path_count++], PATH_TEXT_SIZE, "%s/%s", directories[d], names[i]);
        free(names);
    }
    io->free(io);
}

static void fixture_begin(fixture *f, bool crashed) {
    kv_options options = {.sync = KV_SYNC_BATCH, .segment_size_min = 1 << 14, .segment_size_max = 1 << 14,
                          .inline_size_max = INLINE_SIZE_MAX};
    memset(f, 0, sizeof *f);
    f->sim = kv_sim_new();
    history_begin(&f->h, f->sim, 6, &options);
    kv_sim_set_clock(f->sim, f->h.now_ms);
    write_store(f);
    if (crashed) write_unsynced(f);
    else history_close(&f->h);
    KV_ASSERT(!f->h.failed);
    f->disk = kv_sim_clone(f->sim);
    list_files(f);
}

static void fixture_end(fixture *f) {
    kv_sim_free(f->disk);
    history_end(&f->h);
    kv_sim_free(f->sim);
}

/* --- one trial --- */

/* Every key that can be read is that of the state. */
static bool readable_names_fit(const observed *o, const twin *t) {
    for (int i = 0; i < KEY_COUNT; i++) {
        bool refused = o->size[i] == KV_ECORRUPT || o->version[i] == KV_ECORRUPT;
        if (!refused && !key_fits(o, t, i, remembered(t))) return false;
    }
    for (int i = 0; i < TABLE_COUNT; i++)
        if (!table_fits(&o->tables[i], &t->tables[i], remembered(t))) return false;
    return true;
}

static bool any_refused(const observed *o) {
    for (int i = 0; i < KEY_COUNT; i++)
        if (o->size[i] == KV_ECORRUPT || o->version[i] == KV_ECORRUPT) return true;
    for (int i = 0; i < TABLE_COUNT; i++)
        if (table_refused(&o->tables[i])) return true;
    return false;
}

static enum outcome judge(const fixture *f, const observed *o, uint64_t *state) {
    const twin *last = newest(&f->h);
    *state = last_state(&f->h);
    if (o->scan != NULL && o->scan != scan_refused) return WRONG;
    if (any_refused(o)) return readable_names_fit(o, last) ? CORRUPT_KEY : WRONG;
    if (state_fits(o, last) && counters_differ(o, last) == NULL) return o->scan == NULL ? RIGHT : CORRUPT_KEY;
    if (state_fits(o, last) || o->scan != NULL) return WRONG;
    for (uint64_t at = last_state(&f->h); at-- > 0;) {
        if (!state_fits(o, &f->h.states[at])) continue;
        *state = at;
        return counters_differ(o, &f->h.states[at]) == NULL ? SHORTER : WRONG;
    }
    return WRONG;
}

static enum outcome try_open(const fixture *f, kv_sim *disk, const catalog_entry *entry, uint64_t *state) {
    kv_store *store;
    kv_caller *caller;
    kv_fault fault;
    kv_sim_set_clock(disk, 1);
    kv_status status = open_with(disk, &f->h.options, entry, &store, &caller, &fault);
    if (status != KV_OK) return status == KV_ECORRUPT && fault.what[0] != 0 ? CORRUPT_OPEN : WRONG;
    observed o;
    observe(disk, store, caller, NULL, &o);
    enum outcome outcome = judge(f, &o, state);
    kv_caller_free(caller);
    kv_store_free(store);
    return outcome;
}

/* The state that is left if the open segment is good up to `offset` only. */
static uint64_t state_before(const fixture *f, uint64_t offset) {
    uint64_t state = f->first_unsynced - 1;
    for (int i = 0; i < 4 && f->end[i] <= offset; i++) state++;
    return state;
}

/* `unpromised`: the damage is above the watermark of the open segment, from `offset` on. */
static void count_trial(const fixture *f, tally *t, enum outcome outcome, uint64_t state, bool unpromised,
                        uint64_t offset, const char *what) {
    if (outcome == SHORTER && !(unpromised && state == state_before(f, offset))) outcome = WRONG;
    t->tried[outcome]++;
    if (outcome == WRONG && t->shown++ < SHOWN_MAX)
        printf("wrong: %s (state %" PRIu64 " of %" PRIu64 ")\n", what, state, last_state(&f->h));
}

static bool is_unpromised(const fixture *f, const char *path, uint64_t offset) {
    char open_path[SEGMENT_NAME_SIZE];
    snprintf(open_path, sizeof open_path, "flow/%08x.seg", f->open_segment);
    return f->open_segment != 0 && strcmp(path, open_path) == 0 && offset >= f->watermark;
}

enum damage { CUT, FLIP, DELETE };

static void try_damage(const fixture *f, tally *t, const char *path, enum damage damage, uint64_t offset, int bit) {
    static const char *const names[] = {"cut", "flip", "delete"};
    for (int with = 0; with < 2; with++) {
        char what[160];
        uint64_t state = 0;
        kv_sim *disk = kv_sim_clone(f->disk);
        uint8_t byte = 0;
        size_t got;
        if (damage == CUT) KV_ASSERT(kv_sim_truncate_file(disk, path, offset) == KV_OK);
        if (damage == FLIP) {
            KV_ASSERT(kv_sim_read(disk, path, offset, &byte, 1, &got) == KV_OK && got == 1);
            byte ^= (uint8_t)(1 << bit);
            KV_ASSERT(kv_sim_write(disk, path, offset, &byte, 1) == KV_OK);
        }
        if (damage == DELETE) {
            kv_io *io = kv_sim_io(disk);
            KV_ASSERT(io->unlink(io, path) == KV_OK);
            io->free(io);
        }
        enum outcome outcome = try_open(f, disk, with ? &f->h.catalog[0] : NULL, &state);
        snprintf(what, sizeof what, "%s %s at %" PRIu64 " bit %d, %s checkpoint", names[damage], path, offset, bit,
                 with ? "with" : "without");
        count_trial(f, t, outcome, state, damage != DELETE && is_unpromised(f, path, offset), offset, what);
        kv_sim_free(disk);
    }
}

static void show_tally(const char *what, const tally *t) {
    printf("%s:", what);
    for (int i = 0; i < OUTCOME_COUNT; i++)
        printf(" %s %" PRIu64 "%s", outcome_names[i], t->tried[i], i + 1 < OUTCOME_COUNT ? "," : "\n");
    CHECK_EQ(t->tried[WRONG], 0);
}

/* --- all of them --- */

/* Zeros around this byte: never written, or padding; trying every bit there teaches nothing. */
static bool in_zero_run(const uint8_t *bytes, uint64_t size, uint64_t at) {
    uint64_t from = at, to = at;
    while (from > 0 && bytes[from - 1] == 0 && to - from < ZERO_RUN_MIN) from--;
    while (to < size && bytes[to] == 0 && to - from < ZERO_RUN_MIN) to++;
    return to - from >= ZERO_RUN_MIN && bytes[at] == 0;
}

static uint8_t *read_file(kv_sim *sim, const char *path, uint64_t *size) {
    size_t got = 0;
    KV_ASSERT(kv_sim_file_size(sim, path, size) == KV_OK);
    uint8_t *bytes = malloc(*size + 1);
    KV_ASSERT(bytes != NULL && kv_sim_read(sim, path, 0, bytes, *size, &got) == KV_OK && got == *size);
    return bytes;
}

static void flip_everywhere(const fixture *f, tally *t, const char *path) {
    uint64_t size, tried = 0;
    uint8_t *bytes = read_file(f->disk, path, &size);
    for (uint64_t at = 0; at < size; at++) {
        bool zeros = in_zero_run(bytes, size, at);
        if (zeros && at % ZERO_RUN_SAMPLE != 0) continue;
        for (int bit = zeros ? (int)(at % 8) : 0; bit < 8; bit++) {
            if (tried++ % STRIDE == 0) try_damage(f, t, path, FLIP, at, bit);
            if (zeros) break;
        }
    }
    free(bytes);
}

static void cut_everywhere(const fixture *f, tally *t, const char *path) {
    uint64_t size = 0;
    KV_ASSERT(kv_sim_file_size(f->disk, path, &size) == KV_OK);
    for (uint64_t at = 0; at < size; at += STRIDE) try_damage(f, t, path, CUT, at, 0);
}

static void damage_everything(const char *name, bool crashed) {
    fixture f;
    tally flips = {0}, cuts = {0}, deletions = {0};
    char what[80];
    fixture_begin(&f, crashed);
    for (size_t i = 0; i < f.path_count; i++) {
        flip_everywhere(&f, &flips, f.paths[i]);
        cut_everywhere(&f, &cuts, f.paths[i]);
        try_damage(&f, &deletions, f.paths[i], DELETE, 0, 0);
    }
    CHECK(f.path_count >= 6);
    snprintf(what, sizeof what, "%s store, %zu files, bits flipped", name, f.path_count);
    show_tally(what, &flips);
    snprintf(what, sizeof what, "%s store, cut", name);
    show_tally(what, &cuts);
    snprintf(what, sizeof what, "%s store, a file deleted", name);
    show_tally(what, &deletions);
    CHECK_EQ(deletions.tried[SHORTER], 0);
    CHECK_EQ(crashed ? 0 : flips.tried[SHORTER] + cuts.tried[SHORTER], 0);
    CHECK(!crashed || STRIDE > 1 || cuts.tried[SHORTER] > 0);
    fixture_end(&f);
}

TEST(a_closed_store_never_answers_wrong_and_loses_nothing_silently) { damage_everything("closed", false); }
TEST(a_crashed_store_loses_at_most_what_was_not_synced) { damage_everything("crashed", true); }

/* A damaged description is no description: everything is replayed, nothing is refused. */
static void damage_description(bool crashed) {
    fixture f;
    tally t = {0};
    fixture_begin(&f, crashed);
    const catalog_entry *good = &f.h.catalog[0];
    uint8_t *bytes = malloc(good->size);
    KV_ASSERT(bytes != NULL);
    for (uint64_t i = 0; i < good->size * 9; i++) {
        uint64_t state;
        char what[80];
        bool cut = i >= good->size * 8;
        memcpy(bytes, good->bytes, good->size);
        if (!cut) bytes[i / 8] ^= (uint8_t)(1 << i % 8);
        catalog_entry bad = {.bytes = bytes, .size = cut ? i - good->size * 8 : good->size};
        kv_sim *disk = kv_sim_clone(f.disk);
        enum outcome outcome = try_open(&f, disk, &bad, &state);
        snprintf(what, sizeof what, "description, damage %" PRIu64, i);
        count_trial(&f, &t, outcome, state, false, 0, what);
        kv_sim_free(disk);
    }
    show_tally("the description of a checkpoint, flipped and cut", &t);
    CHECK_EQ(t.tried[CORRUPT_OPEN] + t.tried[CORRUPT_KEY], 0);
    free(bytes);
    fixture_end(&f);
}

TEST(a_damaged_checkpoint_description_changes_nothing) {
    damage_description(false);
    damage_description(true);
}

/* What is below the watermark is refused even where the crash left the segment without a seal. */
TEST(refusing_changes_nothing_on_the_disk) {
    fixture f;
    kv_fault fault;
    kv_store *store;
    fixture_begin(&f, true);
    char path[SEGMENT_NAME_SIZE];
    uint8_t byte;
    size_t got;
    snprintf(path, sizeof path, "flow/%08x.seg", f.open_segment);
    KV_ASSERT(kv_sim_read(f.disk, path, f.watermark - 5, &byte, 1, &got) == KV_OK);
    byte ^= 0x10;
    KV_ASSERT(kv_sim_write(f.disk, path, f.watermark - 5, &byte, 1) == KV_OK);
    uint64_t before = kv_sim_hash(f.disk);
    CHECK_EQ(kv_store_open(kv_sim_io(f.disk), &f.h.options, NULL, 0, &fault, &store), KV_ECORRUPT);
    CHECK_EQ(fault.position.segment, f.open_segment);
    CHECK(kv_sim_hash(f.disk) == before);
    fixture_end(&f);
}

TEST(the_last_segment_behind_a_clean_close_is_missed) {
    fixture f;
    fixture_begin(&f, false);
    uint64_t state = 0;
    char path[SEGMENT_NAME_SIZE];
    history_open(&f.h, -1);
    put_text(&f.h, 15, "behind the close");
    uint32_t segment = kv_flow_tail(f.h.store->flow).segment;
    checkpoint_now(&f.h);
    history_close(&f.h);
    snprintf(path, sizeof path, "flow/%08x.seg", segment);
    for (int with = 0; with < 2; with++) {
        kv_sim *disk = kv_sim_clone(f.sim);
        kv_io *io = kv_sim_io(disk);
        KV_ASSERT(io->unlink(io, path) == KV_OK);
        io->free(io);
        enum outcome outcome = try_open(&f, disk, with ? &f.h.catalog[1] : NULL, &state);
        CHECK_EQ(outcome, CORRUPT_OPEN);
        kv_sim_free(disk);
    }
    fixture_end(&f);
}

int main(void) {
    RUN(a_closed_store_never_answers_wrong_and_loses_nothing_silently);
    RUN(a_crashed_store_loses_at_most_what_was_not_synced);
    RUN(a_damaged_checkpoint_description_changes_nothing);
    RUN(refusing_changes_nothing_on_the_disk);
    RUN(the_last_segment_behind_a_clean_close_is_missed);
    return check_report();
}
