/* test_run.c -- sorted runs against a sorted array: every seek and step, blocks of every shape, and every bit flipped. */
#include <stdlib.h>

#include "check.h"
#include "kv/io_sim.h"
#include "kv/run.h"
#include "kv/xxh64.h"

enum { NAMES_MAX = 20000 };
static const uint64_t RUN_ID = 0x0300000007;

typedef struct name {
    uint8_t *bytes;
    size_t size;
} name;

static name names[NAMES_MAX];
static size_t name_count;
static uint64_t random_state = 1;

static uint64_t random_next(void) {
    random_state = random_state * 6364136223846793005ULL + 1442695040888963407ULL;
    return random_state >> 33;
}

static void names_clear(void) {
    for (size_t i = 0; i < name_count; i++) free(names[i].bytes);
    name_count = 0;
}

static void name_add(const uint8_t *bytes, size_t size) {
    names[name_count].bytes = malloc(size);
    memcpy(names[name_count].bytes, bytes, size);
    names[name_count++].size = size;
}

static int by_name(const void *left, const void *right) {
    const name *a = left, *b = right;
    return kv_name_compare(a->bytes, a->size, b->bytes, b->size);
}

static void names_sort(void) {
    size_t kept = 0;
    qsort(names, name_count, sizeof *names, by_name);
    for (size_t i = 0; i < name_count; i++) {
        if (kept != 0 && by_name(&names[kept - 1], &names[i]) == 0) free(names[i].bytes);
        else names[kept++] = names[i];
    }
    name_count = kept;
}

/* Few different bytes, so that much is shared; sometimes long; all spaces. */
static void names_random(size_t count, size_t size_max) {
    static uint8_t bytes[KV_NAME_SIZE_MAX];
    names_clear();
    for (size_t i = 0; i < count; i++) {
        static const size_t heads[] = {1, KV_NAME_ROW_HEAD_SIZE, KV_NAME_HEAD_MAX};
        unsigned space = (unsigned)(random_next() % 4) % 3;
        size_t head = heads[space], most = random_next() % 50 == 0 ? size_max : 12;
        size_t size = head + (space == KV_SPACE_KEYS) + random_next() % most;
        memset(bytes, 0, head);
        bytes[0] = (uint8_t)space;
        if (space != KV_SPACE_KEYS) bytes[8] = (uint8_t)(random_next() % 3);
        if (space == KV_SPACE_CHANGES) kv_store64(bytes + 9, __builtin_bswap64(random_next() % 1000));
        for (size_t at = head; at < size; at++) bytes[at] = (uint8_t)(random_next() % 4 == 0 ? random_next() : 255);
        if (size > KV_NAME_SIZE_MAX - 8) size = KV_NAME_SIZE_MAX - 8;
        name_add(bytes, size);
    }
    names_sort();
}

typedef struct rig {
    kv_sim *sim;
    kv_io *io;
    uint8_t *bytes; /* a copy: damage is done to it */
    uint64_t size;
    kv_run_info info;
    kv_run run;
    kv_run_cursor cursor;
} rig;

static void rig_make(rig *r) {
    kv_run_writer *writer;
    char path[KV_RUN_PATH_SIZE];
    size_t got;
    *r = (rig){.sim = kv_sim_new()};
    r->io = kv_sim_io(r->sim);
    CHECK_EQ(r->io->mkdir(r->io, "runs"), KV_OK);
    CHECK_EQ(kv_run_writer_new(r->io, RUN_ID, &writer), KV_OK);
    for (size_t i = 0; i < name_count; i++) CHECK_EQ(kv_run_write(writer, names[i].bytes, names[i].size), KV_OK);
    CHECK_EQ(kv_run_finish(writer, &r->info), KV_OK);
    kv_run_writer_free(writer);
    kv_run_path(RUN_ID, path);
    CHECK_EQ(kv_sim_file_size(r->sim, path, &r->size), KV_OK);
    CHECK_EQ(r->size, r->info.size);
    r->bytes = malloc(r->size);
    CHECK_EQ(kv_sim_read(r->sim, path, 0, r->bytes, r->size, &got), KV_OK);
    CHECK_EQ(kv_run_open(RUN_ID, r->bytes, r->size, &r->run), KV_OK);
    CHECK_EQ(r->run.info.name_count, name_count);
    CHECK_EQ(r->run.info.checksum, r->info.checksum);
    kv_run_cursor_init(&r->cursor);
}

static void rig_free(rig *r) {
    kv_run_cursor_free(&r->cursor);
    free(r->bytes);
    r->io->free(r->io);
    kv_sim_free(r->sim);
}

static bool stands_on(const rig *r, size_t at) {
    return r->cursor.name_size == names[at].size && memcmp(r->cursor.name, names[at].bytes, names[at].size) == 0;
}

static void check_walks(rig *r) {
    const uint8_t last[1] = {255};
    kv_status status = kv_run_seek(&r->cursor, &r->run, KV_SEEK_GE, last, 0);
    size_t at = 0;
    for (; status == KV_OK && at < name_count; status = kv_run_next(&r->cursor), at++) CHECK(stands_on(r, at));
    CHECK_EQ(status, KV_EOF);
    CHECK_EQ(at, name_count);
    status = kv_run_seek(&r->cursor, &r->run, KV_SEEK_LE, last, 1);
    for (; status == KV_OK && at > 0; status = kv_run_previous(&r->cursor)) CHECK(stands_on(r, --at));
    CHECK_EQ(status, KV_EOF);
    CHECK_EQ(at, 0);
}

/* Where a naive search ends: an index, or -1. */
static int64_t naive(enum kv_seek how, const name *wanted) {
    int64_t found = -1;
    for (size_t i = 0; i < name_count; i++) {
        int order = by_name(&names[i], wanted);
        if (how == KV_SEEK_GE && order >= 0) return (int64_t)i;
        if (how == KV_SEEK_GT && order > 0) return (int64_t)i;
        if ((how == KV_SEEK_LE && order <= 0) || (how == KV_SEEK_LT && order < 0)) found = (int64_t)i;
    }
    return found;
}

static void check_seeks(rig *r, size_t count) {
    static uint8_t bytes[KV_NAME_SIZE_MAX + 1];
    for (size_t i = 0; i < count; i++) {
        const name *near = &names[random_next() % name_count];
        name wanted = {.bytes = bytes, .size = near->size};
        memcpy(bytes, near->bytes, near->size);
        uint64_t how_near = random_next() % 4;
        if (how_near == 1) bytes[wanted.size++] = 0;
        if (how_near == 2) bytes[random_next() % wanted.size] ^= (uint8_t)(1 << random_next() % 8);
        if (how_near == 3) wanted.size = random_next() % (wanted.size + 1);
        enum kv_seek how = (enum kv_seek)(random_next() % 4);
        int64_t expected = naive(how, &wanted);
        kv_status status = kv_run_seek(&r->cursor, &r->run, how, wanted.bytes, wanted.size);
        CHECK_EQ(status, expected < 0 ? KV_EOF : KV_OK);
        if (status != KV_OK || expected < 0) continue;
        CHECK(stands_on(r, (size_t)expected));
        /* And on from there, a few steps in both directions. */
        for (int step = 0; step < 5; step++) {
            bool forward = random_next() % 2 != 0;
            int64_t next = expected + (forward ? 1 : -1);
            status = forward ? kv_run_next(&r->cursor) : kv_run_previous(&r->cursor);
            bool there = next >= 0 && next < (int64_t)name_count;
            CHECK_EQ(status, there ? KV_OK : KV_EOF);
            if (status != KV_OK || !there) break;
            CHECK(stands_on(r, (size_t)next));
            expected = next;
        }
    }
}

TEST(what_was_written_is_read_from_everywhere_in_both_directions) {
    static const size_t counts[] = {1, 2, 3, 100, 1000, 5000};
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
        rig r;
        names_random(counts[i], 200);
        rig_make(&r);
        check_walks(&r);
        check_seeks(&r, 300);
        rig_free(&r);
    }
}

TEST(long_names_that_share_nearly_everything_are_found) {
    static uint8_t bytes[KV_NAME_SIZE_MAX];
    rig r;
    names_clear();
    memset(bytes, 'x', sizeof bytes);
    bytes[0] = KV_SPACE_KEYS;
    for (int i = 0; i < 60; i++) {
        kv_store64(bytes + 65000, __builtin_bswap64((uint64_t)i));
        name_add(bytes, 1 + KV_KEY_SIZE_MAX);
    }
    bytes[0] = KV_SPACE_ROWS;
    for (int i = 0; i < 60; i++) {
        bytes[9] = (uint8_t)i;
        name_add(bytes, KV_NAME_ROW_HEAD_SIZE + KV_KEY_SIZE_MAX);
    }
    bytes[0] = KV_SPACE_CHANGES;
    for (int i = 0; i < 60; i++) {
        bytes[16] = (uint8_t)i;
        name_add(bytes, KV_NAME_SIZE_MAX);
    }
    names_sort();
    CHECK_EQ(name_count, 180);
    rig_make(&r);
    CHECK(r.run.level > 0);
    check_walks(&r);
    check_seeks(&r, 100);
    rig_free(&r);
}

TEST(many_levels_are_searched) {
    static uint8_t bytes[4096];
    rig r;
    names_clear();
    for (int i = 0; i < 800; i++) { /* Every separator takes most of a block. */
        for (size_t at = 1; at < sizeof bytes; at++) bytes[at] = (uint8_t)random_next();
        memset(bytes, 0, 3000);
        bytes[3000] = (uint8_t)(i >> 8);
        bytes[3001] = (uint8_t)i;
        name_add(bytes, sizeof bytes);
    }
    rig_make(&r);
    CHECK(r.run.level >= 3);
    check_walks(&r);
    check_seeks(&r, 300);
    rig_free(&r);
}

TEST(names_out_of_order_and_no_names_are_refused) {
    kv_sim *sim = kv_sim_new();
    kv_io *io = kv_sim_io(sim);
    kv_run_writer *writer;
    kv_run_info info;
    static uint8_t big[KV_NAME_SIZE_MAX + 1];
    static const size_t heads[] = {1, KV_NAME_ROW_HEAD_SIZE, KV_NAME_HEAD_MAX};
    CHECK_EQ(io->mkdir(io, "runs"), KV_OK);
    CHECK_EQ(kv_run_writer_new(io, RUN_ID, &writer), KV_OK);
    CHECK_EQ(kv_run_finish(writer, &info), KV_EUSAGE);
    CHECK_EQ(kv_run_write(writer, (const uint8_t *)"\0b", 2), KV_OK);
    CHECK_EQ(kv_run_write(writer, (const uint8_t *)"\0b", 2), KV_EUSAGE);
    CHECK_EQ(kv_run_write(writer, (const uint8_t *)"\0a", 2), KV_EUSAGE);
    CHECK_EQ(kv_run_write(writer, (const uint8_t *)"\0", 1), KV_EUSAGE);
    CHECK_EQ(kv_run_write(writer, (const uint8_t *)"\1short", 6), KV_EUSAGE);
    CHECK_EQ(kv_run_write(writer, (const uint8_t *)"\2as short as a row", 16), KV_EUSAGE);
    CHECK_EQ(kv_run_write(writer, (const uint8_t *)"\3a space that there is not", 24), KV_EUSAGE);
    memset(big, 'x', sizeof big);
    for (unsigned space = KV_SPACE_KEYS; space <= KV_SPACE_CHANGES; space++) {
        big[0] = (uint8_t)space;
        if (space != KV_SPACE_KEYS) CHECK_EQ(kv_run_write(writer, big, heads[space]), KV_OK); /* an empty row */
        CHECK_EQ(kv_run_write(writer, big, heads[space] + KV_KEY_SIZE_MAX + 1), KV_EUSAGE);
        CHECK_EQ(kv_run_write(writer, big, heads[space] + KV_KEY_SIZE_MAX), KV_OK);
    }
    CHECK_EQ(kv_run_finish(writer, &info), KV_OK);
    CHECK_EQ(info.name_count, 6);
    kv_run_writer_free(writer);
    io->free(io);
    kv_sim_free(sim);
}

/* Everything a damaged run may answer: what was written, or that it is damaged. */
static int wrong_answers(rig *r) {
    kv_run run;
    const uint8_t last[1] = {255};
    if (kv_run_open(RUN_ID, r->bytes, r->size, &run) != KV_OK) return 0;
    int wrong = 0;
    size_t at = 0;
    kv_status status = kv_run_seek(&r->cursor, &run, KV_SEEK_GE, last, 0);
    for (; status == KV_OK && at < name_count; status = kv_run_next(&r->cursor)) wrong += !stands_on(r, at++);
    wrong += status != KV_ECORRUPT && (status != KV_EOF || at != name_count);
    at = name_count;
    status = kv_run_seek(&r->cursor, &run, KV_SEEK_LE, last, 1);
    for (; status == KV_OK && at > 0; status = kv_run_previous(&r->cursor)) wrong += !stands_on(r, --at);
    wrong += status != KV_ECORRUPT && (status != KV_EOF || at != 0);
    name wanted = names[random_next() % name_count];
    status = kv_run_seek(&r->cursor, &run, KV_SEEK_GE, wanted.bytes, wanted.size);
    bool stands = status == KV_OK && kv_name_compare(r->cursor.name, r->cursor.name_size, wanted.bytes, wanted.size) == 0;
    wrong += status != KV_ECORRUPT && !stands;
    return wrong;
}

TEST(a_flipped_bit_anywhere_is_damage_or_the_right_answer) {
    rig r;
    names_random(1200, 40);
    rig_make(&r);
    CHECK(r.run.level == 1);
    CHECK_EQ(wrong_answers(&r), 0);
    int wrong = 0;
    for (uint64_t bit = 0; bit < r.size * 8; bit += random_next() % 8 + 1) {
        r.bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
        wrong += wrong_answers(&r);
        r.bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    CHECK_EQ(wrong, 0);
    rig_free(&r);
    /* A small one: every single bit. */
    names_random(60, 40);
    rig_make(&r);
    for (uint64_t bit = 0; bit < r.size * 8; bit++) {
        r.bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
        wrong += wrong_answers(&r);
        r.bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    CHECK_EQ(wrong, 0);
    rig_free(&r);
}

/* Whatever the bytes of a block say, with a checksum that fits: nothing is read or written past an end. */
TEST(a_block_that_lies_is_refused) {
    rig r;
    const uint8_t last[1] = {255};
    names_random(60, 40);
    rig_make(&r);
    CHECK_EQ(r.run.level, 0);
    uint8_t *block = r.bytes + r.run.root;
    uint32_t size = kv_load32(block + 24);
    for (int i = 0; i < 20000; i++) {
        uint8_t *at = block + 8 + random_next() % (size - 8), before = *at;
        *at = (uint8_t)random_next();
        kv_store64(block, kv_xxh64(block + 8, size - 8, RUN_ID));
        kv_status status = kv_run_seek(&r.cursor, &r.run, KV_SEEK_GE, last, 0);
        while (status == KV_OK) status = kv_run_next(&r.cursor);
        CHECK(status == KV_EOF || status == KV_ECORRUPT);
        *at = before;
    }
    rig_free(&r);
}

TEST(another_file_or_part_of_one_is_no_run) {
    rig r;
    kv_run run;
    names_random(100, 40);
    rig_make(&r);
    CHECK_EQ(kv_run_open(RUN_ID + 1, r.bytes, r.size, &run), KV_ECORRUPT);
    for (uint64_t size = 0; size < r.size; size++) CHECK_EQ(kv_run_open(RUN_ID, r.bytes, size, &run), KV_ECORRUPT);
    rig_free(&r);
}

/* docs/formats/run.md has these bytes. */
TEST(the_worked_example_is_what_is_written) {
    static const uint8_t expected[] = {
#include "example_run.inc"
    };
    rig r;
    names_clear();
    name_add((const uint8_t *)"\0apple", 6);
    name_add((const uint8_t *)"\0apricot", 8);
    name_add((const uint8_t *)"\0pear", 5);
    rig_make(&r);
    CHECK_EQ(r.size, sizeof expected);
    CHECK(r.size == sizeof expected && memcmp(r.bytes, expected, sizeof expected) == 0);
    rig_free(&r);
}

int main(void) {
    RUN(what_was_written_is_read_from_everywhere_in_both_directions);
    RUN(long_names_that_share_nearly_everything_are_found);
    RUN(many_levels_are_searched);
    RUN(names_out_of_order_and_no_names_are_refused);
    RUN(a_flipped_bit_anywhere_is_damage_or_the_right_answer);
    RUN(a_block_that_lies_is_refused);
    RUN(another_file_or_part_of_one_is_no_run);
    RUN(the_worked_example_is_what_is_written);
    names_clear();
    return check_report();
}
