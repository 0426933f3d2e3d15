/* fuzz_run.c -- any bytes as a sorted run: nothing is read outside, every walk ends, and what was written is read or
 * refused.
 *
 *   input   how (1), names (2), then edits of five bytes each: offset (4), what is xored there (1); or the file itself
 *   how     1: the bytes are the file, and no edits follow; 2: checksums are made right after the edits; 4: the file is
 *           cut where the first edit would be
 *
 * A file with edits and wrong checksums must answer as the one without them, or KV_ECORRUPT. One whose checksums are
 * right says what it likes: then it is held to being walked to an end, and back the same way. */
#include "fuzz.h"

enum { RAW = 1, REPAIR = 2, CUT = 4, SEEK_COUNT = 4, LIST_NAMES_MAX = 200000, EDIT_SIZE = 5 };
static const uint64_t RUN_ID = 0x0300000007;

typedef struct names {
    uint64_t count;
    uint64_t forward, backward; /* digests of the names in order, and in reverse; sums of digests with their number */
} names;

static void note(const kv_run_cursor *c, uint64_t number, uint64_t *sum) {
    KV_ASSERT(number < LIST_NAMES_MAX);
    *sum += kv_xxh64(c->name, c->name_size, number);
}

/* From the first to the last, and back. KV_OK: both ways had an end. */
static kv_status walk(const kv_run *run, kv_run_cursor *c, names *out) {
    *out = (names){0};
    kv_status status = kv_run_seek(c, run, KV_SEEK_GE, (const uint8_t *)"", 0);
    for (; status == KV_OK; status = kv_run_next(c)) {
        note(c, out->count, &out->forward);
        out->count++;
    }
    if (status != KV_EOF || out->count == 0) return status == KV_EOF ? KV_OK : status;
    /* A forward walk to the last again: where a walk back from there leads is then no question of inner blocks. */
    status = kv_run_seek(c, run, KV_SEEK_GE, (const uint8_t *)"", 0);
    for (uint64_t i = 1; status == KV_OK && i < out->count; i++) status = kv_run_next(c);
    KV_ASSERT(status == KV_OK);
    uint64_t at = out->count;
    for (; status == KV_OK && at > 0; status = kv_run_previous(c)) note(c, --at, &out->backward);
    KV_ASSERT(at != 0 || out->forward == out->backward);
    return status == KV_EOF ? KV_OK : status;
}

static void seek_around(const kv_run *run, kv_run_cursor *c, const uint8_t *bytes, size_t size) {
    for (int how = KV_SEEK_GE; how <= KV_SEEK_LT; how++) {
        for (size_t length = 0; length <= size && length < 32; length += 1 + length / 2) {
            kv_status status = kv_run_seek(c, run, (enum kv_seek)how, bytes, length);
            KV_ASSERT(status == KV_OK || status == KV_EOF || status == KV_ECORRUPT);
            for (int step = 0; status == KV_OK && step < 3; step++)
                status = how == KV_SEEK_GE || how == KV_SEEK_GT ? kv_run_next(c) : kv_run_previous(c);
            KV_ASSERT(status == KV_OK || status == KV_EOF || status == KV_ECORRUPT);
        }
    }
}

static kv_status read_all(const uint8_t *bytes, size_t size, names *out) {
    kv_run run;
    kv_run_cursor cursor;
    kv_status status = kv_run_open(RUN_ID, bytes, size, &run);
    if (status != KV_OK) {
        KV_ASSERT(status == KV_ECORRUPT);
        return status;
    }
    kv_run_cursor_init(&cursor);
    status = walk(&run, &cursor, out);
    KV_ASSERT(status == KV_OK || status == KV_ECORRUPT);
    seek_around(&run, &cursor, bytes + (size > 200 ? 100 : 0), 40);
    kv_run_cursor_free(&cursor);
    return status;
}

/* Names of many sizes, with much in common; long ones make a file of several levels. */
static uint8_t *build(uint64_t recipe, size_t *size, uint64_t *count) {
    static uint8_t name[KV_NAME_SIZE_MAX];
    kv_sim *sim = kv_sim_new();
    kv_io *io = kv_sim_io(sim);
    kv_run_writer *writer;
    kv_run_info info;
    char path[KV_RUN_PATH_SIZE];
    uint64_t length = 4 + (recipe >> 8 & 15) * (recipe >> 8 & 15) * (recipe >> 12 & 3 ? 1 : 10);
    *count = 1 + (recipe & 63);
    kv_sim_set_recording(sim, 0);
    KV_ASSERT(io->mkdir(io, "runs") == KV_OK && kv_run_writer_new(io, RUN_ID, &writer) == KV_OK);
    memset(name, (int)(recipe >> 14), sizeof name);
    for (uint64_t i = 0; i < *count; i++) {
        name[0] = recipe >> 15 != 0;
        name[length + 8] = (uint8_t)i;
        KV_ASSERT(kv_run_write(writer, name, length + 9 + i % 3) == KV_OK);
    }
    KV_ASSERT(kv_run_finish(writer, &info) == KV_OK);
    kv_run_writer_free(writer);
    io->free(io);
    kv_run_path(RUN_ID, path);
    uint8_t *bytes = file_get(sim, path, size);
    kv_sim_free(sim);
    return bytes;
}

static void check_raw(input *in, bool repaired) {
    names answered;
    uint8_t *bytes = copy_of(in->at, in->left);
    if (repaired) run_repair(RUN_ID, bytes, in->left);
    read_all(bytes, in->left, &answered);
    free(bytes);
}

static void check_edited(input *in, uint64_t how) {
    size_t size, kept;
    uint64_t count;
    names written, answered;
    uint8_t *built = build(take(in, 2), &size, &count);
    uint8_t *bytes = copy_of(built, kept = size);
    KV_ASSERT(read_all(bytes, size, &written) == KV_OK && written.count == count);
    free(bytes);

    if (how & CUT) kept = take(in, 4) % (size + 1);
    bytes = copy_of(built, kept);
    for (; in->left >= EDIT_SIZE && kept != 0;) {
        uint64_t at = take(in, 4) % kept;
        bytes[at] ^= (uint8_t)take(in, 1);
    }
    bool same = kept == size && memcmp(bytes, built, size) == 0;
    if (how & REPAIR) run_repair(RUN_ID, bytes, kept);
    kv_status status = read_all(bytes, kept, &answered);
    KV_ASSERT(!same || status == KV_OK);
    bool forged = (how & REPAIR) && !same;
    KV_ASSERT(status != KV_OK || forged || (answered.count == count && answered.forward == written.forward));
    free(bytes);
    free(built);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    input in = {data, size};
    uint64_t how = take(&in, 1);
    if (how & RAW) check_raw(&in, how & REPAIR);
    else check_edited(&in, how);
    return 0;
}
