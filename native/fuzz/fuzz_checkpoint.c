/* fuzz_checkpoint.c -- any bytes as the description of a checkpoint, and as the files it names: used or not, and the
 * flow is none the worse for it.
 *
 * A store is made once, with two openers, a value file, and two checkpoints; each input damages a copy of it:
 *
 *   how (1), then edits of eleven bytes each: what (1), offset (2), kind (1) and number (7)
 *
 * and the store is opened with the newer description, or with the input's own bytes for one. What must come of it:
 *
 *   a description whose checksum is wrong     the state of the flow, as if there were none
 *   files that are not what was written       the state of the flow, or KV_ECORRUPT from a key or a scan
 *   all of it with its checksums made right   whatever it says, but no crash; and without it, afterwards, the flow's
 *                                             own state again (values in files of their own excepted: an opener removes
 *                                             those that its state does not name) */
#include "fuzz.h"

enum {
    SIZE = 4 * KV_PAGE_SIZE,
    INLINE_SIZE = 300,
    FILES_MAX = 8,
    PATH_SIZE = 48,
    EDIT_SIZE = 11,
    DESCRIPTION_MAX = 1 << 16,
    ENTRY_SIZE = 32,
    WORD_MAP = 12, /* file id, offset, size, checksum, count of value file ids */
    WORD_SEGMENTS = 23,
    WORD_POSITION = 5,
    SEGMENT_MAX = 200, /* a position further out is refused like any other, after memory for so many counters */
};
enum how { REPAIR_DESCRIPTION = 1, REPAIR_FILES = 2, OWN_BYTES = 4, KILL = 8, READONLY = 16 };

typedef struct one_file {
    char path[PATH_SIZE];
    uint64_t id;
    uint8_t *bytes;
    size_t size;
    bool is_run;
} one_file;

typedef struct fixture {
    kv_sim *sim;
    uint8_t *description;
    size_t description_size;
    one_file files[FILES_MAX];
    size_t file_count;
    seen truth;
    bool is_big[KEY_COUNT];
} fixture;

/* --- the store as it should be --- */

static kv_status open_store(kv_sim *sim, uint64_t how, const uint8_t *description, size_t size, kv_store **store,
                            kv_caller **caller) {
    kv_options options = {.segment_size_min = SIZE, .segment_size_max = SIZE, .inline_size_max = INLINE_SIZE};
    kv_fault fault;
    options.readonly = (how & READONLY) != 0;
    kv_status status = kv_store_open(kv_sim_io(sim), &options, description, size, &fault, store);
    KV_ASSERT(status == KV_OK || (status == KV_ECORRUPT && fault.what[0] != 0));
    if (status == KV_OK) KV_ASSERT(kv_caller_new(*store, caller) == KV_OK);
    return status;
}

static void end_store(kv_store *store, bool kill) {
    kv_fault fault;
    if (!kill) KV_ASSERT(kv_store_close(store, &fault) == KV_OK);
    kv_store_free(store);
}

static void put(fixture *f, kv_caller *c, int number, size_t size) {
    uint8_t key[8], value[2 * INLINE_SIZE];
    size_t key_size = key_of(number, key);
    memset(value, number, sizeof value);
    KV_ASSERT(kv_put(c, key, key_size, value, size, number % 5 == 4 ? 1000 : 0, 0) > 0);
    f->is_big[number] = size > INLINE_SIZE;
}

static void checkpoint(fixture *f, kv_store *store) {
    kv_checkpoint *k;
    const uint8_t *bytes;
    kv_status status = kv_checkpoint_begin(store, &k);
    KV_ASSERT(status == KV_OK);
    while (status == KV_OK || status == KV_MORE) status = kv_checkpoint_step(k);
    KV_ASSERT(status == KV_EOF && kv_checkpoint_describe(k, &bytes, &f->description_size) == KV_OK);
    free(f->description);
    f->description = copy_of(bytes, f->description_size);
    KV_ASSERT(kv_checkpoint_published(k) == KV_OK);
    kv_checkpoint_free(k);
}

static void write_store(fixture *f) {
    kv_store *store;
    kv_caller *c;
    KV_ASSERT(open_store(f->sim, 0, NULL, 0, &store, &c) == KV_OK);
    for (int i = 0; i < 16; i++) put(f, c, i, (size_t)i * 3);
    put(f, c, 16, INLINE_SIZE + 20);
    checkpoint(f, store);
    end_store(store, false);

    KV_ASSERT(open_store(f->sim, 0, f->description, f->description_size, &store, &c) == KV_OK);
    for (int i = 0; i < 60; i++) put(f, c, 2, INLINE_SIZE); /* on to another segment */
    put(f, c, 17, 10);
    KV_ASSERT(kv_delete(c, (const uint8_t *)"k3", 2, -1, 0) > 0);
    checkpoint(f, store);
    for (int i = 18; i < KEY_COUNT - 2; i++) put(f, c, i, 20);
    put(f, c, 5, INLINE_SIZE + 1);
    KV_ASSERT(kv_delete(c, (const uint8_t *)"k6", 2, -1, 0) > 0);
    kv_sim_set_clock(f->sim, 3000);
    KV_ASSERT(kv_get(c, (const uint8_t *)"k9", 2) == kv_ending(KV_ABSENT)); /* It expired, which is written down. */
    end_store(store, false);
}

static void list_files(fixture *f, const char *directory, bool is_run) {
    kv_io *io = kv_sim_io(f->sim);
    char **names;
    size_t count;
    KV_ASSERT(io->list(io, directory, &names, &count) == KV_OK);
    for (size_t i = 0; i < count; i++) {
        one_file *file = &f->files[f->file_count++];
        KV_ASSERT(f->file_count <= FILES_MAX && file_name_id(names[i], is_run ? ".run" : ".idx", &file->id));
        snprintf(file->path, sizeof file->path, "%s/%.24s", directory, names[i]);
        file->bytes = file_get(f->sim, file->path, &file->size);
        file->is_run = is_run;
    }
    free(names);
    io->free(io);
}

static const fixture *fixture_get(void) {
    static fixture made;
    kv_store *store;
    kv_caller *c;
    if (made.sim != NULL) return &made;
    made.sim = kv_sim_new();
    kv_sim_set_recording(made.sim, 0);
    kv_sim_set_clock(made.sim, 1000);
    write_store(&made);
    list_files(&made, "index", false);
    list_files(&made, "runs", true);
    kv_sim *copy = kv_sim_clone(made.sim);
    KV_ASSERT(open_store(copy, READONLY, NULL, 0, &store, &c) == KV_OK);
    look(c, &made.truth);
    end_store(store, false);
    kv_sim_free(copy);
    return &made;
}

/* --- damage --- */

typedef struct damaged {
    uint8_t *description;
    size_t description_size;
    one_file files[FILES_MAX];
    size_t file_count;
} damaged;

static void change(uint8_t *bytes, size_t *size, uint64_t offset, uint64_t kind, uint64_t number) {
    if (kind % 4 == 3) *size = offset % (*size + 1);
    if (*size < 8) return;
    if (kind % 4 == 0) bytes[offset % *size] ^= (uint8_t)number;
    if (kind % 4 == 1) kv_store64(bytes + offset % (*size / 8) * 8, number);
    if (kind % 4 == 2) kv_store32(bytes + offset % (*size / 4) * 4, (uint32_t)number);
}

static void damage(damaged *d, input *in) {
    while (in->left >= EDIT_SIZE) {
        uint64_t what = take(in, 1) % (d->file_count + 3), offset = take(in, 2), kind = take(in, 1), number = take(in, 7);
        if (kind & 128) number |= (uint64_t)255 << 56;
        if (what < d->file_count) change(d->files[what].bytes, &d->files[what].size, offset, kind, number);
        else change(d->description, &d->description_size, offset, kind, number);
    }
}

static uint64_t word(const damaged *d, size_t at) { return kv_load64(d->description + 8 * at); }
static void set_word(damaged *d, size_t at, uint64_t value) { kv_store64(d->description + 8 * at, value); }

static one_file *file_of(damaged *d, uint64_t id, bool is_run) {
    for (size_t i = 0; i < d->file_count; i++)
        if (d->files[i].id == id && d->files[i].is_run == is_run) return &d->files[i];
    return NULL;
}

static bool inside(const one_file *file, uint64_t offset, uint64_t size) {
    return file != NULL && offset <= file->size && size <= file->size - offset;
}

/* The checksums of the tables, in the map; that of the map, in the description. */
static void repair_map(damaged *d) {
    uint64_t offset = word(d, WORD_MAP + 1), size = word(d, WORD_MAP + 2), bigs = word(d, WORD_MAP + 4);
    one_file *holder = file_of(d, word(d, WORD_MAP), false);
    if (bigs > DESCRIPTION_MAX || !inside(holder, offset, size) || !inside(holder, offset + size, bigs * 8)) return;
    for (uint64_t at = offset; at + ENTRY_SIZE <= offset + size; at += ENTRY_SIZE) {
        uint8_t *entry = holder->bytes + at;
        uint64_t id = kv_load64(entry), slots = (uint64_t)kv_load32(entry + 24) * 16;
        const one_file *file = file_of(d, id, false);
        if (inside(file, kv_load64(entry + 8), slots))
            kv_store64(entry + 16, kv_xxh64(file->bytes + kv_load64(entry + 8), slots, id));
    }
    set_word(d, WORD_MAP + 3, kv_xxh64(holder->bytes + offset, size + bigs * 8, holder->id));
}

/* The runs, and what the description says of each. */
static void repair_runs(damaged *d) {
    for (size_t i = 0; i < d->file_count; i++) {
        one_file *file = &d->files[i];
        if (!file->is_run || file->size < RUN_HEADER + RUN_FOOTER) continue;
        const uint8_t *footer = file->bytes + file->size - RUN_FOOTER;
        kv_store64(file->bytes + file->size - RUN_FOOTER + 40, file->size);
        run_repair(file->id, file->bytes, file->size);
        for (size_t at = WORD_SEGMENTS; at + 3 < d->description_size / 8; at++) {
            if (word(d, at) != file->id) continue;
            set_word(d, at + 1, kv_load64(footer + 8));
            set_word(d, at + 2, file->size);
            set_word(d, at + 3, kv_load64(footer + 56));
        }
    }
}

static void repair_description(damaged *d) {
    if (word(d, WORD_POSITION) >> 32 > SEGMENT_MAX) set_word(d, WORD_POSITION, (uint64_t)SEGMENT_MAX << 32);
    kv_store64(d->description + d->description_size - 8, kv_xxh64(d->description, d->description_size - 8, 0));
}

static void damage_all(const fixture *f, damaged *d, uint64_t how, input *in) {
    *d = (damaged){.file_count = f->file_count, .description_size = f->description_size};
    for (size_t i = 0; i < f->file_count; i++) {
        d->files[i] = f->files[i];
        d->files[i].bytes = copy_of(f->files[i].bytes, f->files[i].size);
    }
    if (how & OWN_BYTES) {
        d->description = copy_of(in->at, d->description_size = in->left);
    } else {
        d->description = copy_of(f->description, f->description_size);
        damage(d, in);
    }
    bool repairable = d->description_size % 8 == 0 && d->description_size >= 8 * (WORD_SEGMENTS + 4);
    if (repairable && (how & REPAIR_FILES)) repair_map(d);
    if (repairable && (how & REPAIR_FILES)) repair_runs(d);
    if (repairable && (how & REPAIR_DESCRIPTION)) repair_description(d);
}

static void damaged_free(damaged *d) {
    for (size_t i = 0; i < d->file_count; i++) free(d->files[i].bytes);
    free(d->description);
}

/* --- promises --- */

static void check_keys(const fixture *f, const seen *s, bool corrupt_may_be, bool big_may_be_gone) {
    for (int i = 0; i < KEY_COUNT; i++) {
        bool refused = s->size[i] == KV_ECORRUPT || s->version[i] == KV_ECORRUPT;
        if (refused && (corrupt_may_be || (big_may_be_gone && f->is_big[i]))) continue;
        KV_ASSERT(key_same(s, &f->truth, i));
    }
}

/* Without a checkpoint: what the flow has. */
static void check_flow(const fixture *f, kv_sim *sim, bool big_may_be_gone) {
    kv_store *store;
    kv_caller *c;
    seen s;
    KV_ASSERT(open_store(sim, 0, NULL, 0, &store, &c) == KV_OK);
    look(c, &s);
    check_keys(f, &s, false, big_may_be_gone);
    end_store(store, false);
}

static void write_and_end(kv_store *store, kv_caller *c, uint64_t how) {
    kv_result result = kv_put(c, (const uint8_t *)"new", 3, (const uint8_t *)"value", 5, 0, 0);
    KV_ASSERT(result > 0 || result == KV_ECORRUPT || result == KV_EREADONLY);
    KV_ASSERT((result == KV_EREADONLY) == ((how & READONLY) != 0));
    end_store(store, how & (KILL | READONLY));
}

static void open_and_check(const fixture *f, kv_sim *sim, const damaged *d, uint64_t how, bool believed, bool files_same) {
    kv_store *store;
    kv_caller *c;
    kv_stats stats;
    seen s;
    kv_status status = open_store(sim, how, d->description, d->description_size, &store, &c);
    bool same = d->description_size == f->description_size && memcmp(d->description, f->description, d->description_size) == 0;
    KV_ASSERT(status == KV_OK || (believed && !same));
    if (status != KV_OK) return;
    KV_ASSERT(kv_store_measure(store, &stats) == KV_OK);
    KV_ASSERT(believed || same || !stats.used_checkpoint);
    KV_ASSERT(!(same && files_same) || stats.used_checkpoint);
    look(c, &s);
    bool lied_to = believed && !(same && files_same);
    bool damage_possible = stats.used_checkpoint && !files_same;
    KV_ASSERT(s.ascending || lied_to);
    if (!lied_to) check_keys(f, &s, damage_possible, false);
    if (!lied_to && s.scan_status != KV_ECORRUPT) KV_ASSERT(s.scan == f->truth.scan || damage_possible);
    write_and_end(store, c, how);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const fixture *f = fixture_get();
    input in = {data, size};
    damaged d;
    uint64_t how = take(&in, 1);
    damage_all(f, &d, how, &in);
    kv_sim *sim = kv_sim_clone(f->sim);
    bool files_same = true;
    for (size_t i = 0; i < d.file_count; i++) {
        const one_file *file = &d.files[i];
        if (file->size == f->files[i].size && memcmp(file->bytes, f->files[i].bytes, file->size) == 0) continue;
        files_same = false;
        file_put(sim, file->path, file->bytes, file->size);
    }
    bool believed = (how & (REPAIR_DESCRIPTION | REPAIR_FILES)) != 0;
    open_and_check(f, sim, &d, how, believed, files_same);
    check_flow(f, sim, believed);
    kv_sim_free(sim);
    damaged_free(&d);
    return 0;
}
