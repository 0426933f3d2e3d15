/* test_order.c -- names in order against a sorted array: created in any order, walked both ways, built into runs, and all
 * of it while somebody else goes on creating. */
#include <ftw.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#include "check.h"
#include "kv/guard.h"
#include "kv/index.h"
#include "kv/order.h"
#include "kv/record.h"

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
enum { THREAD_NAMES = 6000 };
#else
enum { THREAD_NAMES = 60000 };
#endif
enum { NAMES_MAX = 40000 };

/* --- a naive twin --- */

typedef struct name {
    uint8_t *bytes;
    size_t size;
    bool dead;
} name;

static name names[NAMES_MAX]; /* sorted, each once */
static size_t name_count;
static uint64_t random_state = 7;

static uint64_t random_next(void) {
    random_state = random_state * 6364136223846793005ULL + 1442695040888963407ULL;
    return random_state >> 33;
}

static void names_clear(void) {
    for (size_t i = 0; i < name_count; i++) free(names[i].bytes);
    name_count = 0;
}

static size_t names_before(const uint8_t *bytes, size_t size, bool or_equal) {
    size_t low = 0, high = name_count;
    while (low < high) {
        size_t at = low + (high - low) / 2;
        int order = kv_name_compare(names[at].bytes, names[at].size, bytes, size);
        if (order < 0 || (order == 0 && or_equal)) low = at + 1;
        else high = at;
    }
    return low;
}

static name *names_add(const uint8_t *bytes, size_t size) {
    size_t at = names_before(bytes, size, false);
    if (at == name_count || kv_name_compare(names[at].bytes, names[at].size, bytes, size) != 0) {
        memmove(&names[at + 1], &names[at], (name_count - at) * sizeof *names);
        names[at] = (name){.bytes = malloc(size), .size = size};
        memcpy(names[at].bytes, bytes, size);
        name_count++;
    }
    names[at].dead = false;
    return &names[at];
}

/* --- a flow and an order over it, in a directory --- */

typedef struct rig {
    char directory[64];
    kv_io *io;
    kv_epoch *epoch;
    kv_epoch_slot *slot;
    kv_flow *flow;
    kv_order *order;
    kv_order_cursor *cursor;
    pthread_mutex_t writer_lock;
    uint64_t next_run;
} rig;

static int remove_one(const char *path, const struct stat *info, int type, struct FTW *where) {
    (void)info;
    (void)type;
    (void)where;
    return remove(path);
}

static void rig_make(rig *r) {
    kv_fault fault;
    kv_flow_options options = {.segment_size_min = 1 << 20, .segment_size_max = 1 << 22};
    *r = (rig){.next_run = 1};
    snprintf(r->directory, sizeof r->directory, "kvtest-XXXXXX");
    CHECK(mkdtemp(r->directory) != NULL);
    CHECK_EQ(pthread_mutex_init(&r->writer_lock, NULL), 0);
    CHECK_EQ(kv_io_posix_new(r->directory, true, &r->io), KV_OK);
    CHECK_EQ(r->io->mkdir(r->io, "runs"), KV_OK);
    CHECK_EQ(kv_epoch_new(&r->epoch), KV_OK);
    CHECK_EQ(kv_epoch_join(r->epoch, &r->slot), KV_OK);
    CHECK_EQ(kv_flow_open(r->io, r->epoch, &options, (kv_position){0}, NULL, NULL, &fault, &r->flow), KV_OK);
    CHECK_EQ(kv_order_new(r->epoch, &r->writer_lock, &r->order), KV_OK);
    CHECK_EQ(kv_order_cursor_new(&r->cursor), KV_OK);
    names_clear();
}

static void rig_free(rig *r) {
    kv_epoch_drain(r->epoch);
    kv_order_cursor_free(r->cursor);
    kv_order_free(r->order);
    kv_flow_free(r->flow);
    kv_epoch_part(r->epoch, r->slot);
    kv_epoch_free(r->epoch);
    r->io->free(r->io);
    pthread_mutex_destroy(&r->writer_lock);
    nftw(r->directory, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

/* All flags of the index are set: none of them may find its way into the order. */
static uint64_t append(rig *r, kv_record *record) {
    uint64_t sequence = kv_flow_sequence(r->flow) + 1, whole;
    uint8_t *to;
    kv_position position;
    record->options |= KV_HAS_SEQUENCE;
    record->sequence = sequence;
    record->value = (const uint8_t *)"v";
    record->value_size = 1;
    whole = kv_record_size(record);
    CHECK_EQ(kv_flow_reserve(r->flow, whole, 1, &to, &position), KV_OK);
    kv_record_encode(record, kv_place(kv_flow_salt(r->flow), position.segment, position.offset), to);
    CHECK_EQ(kv_flow_commit(r->flow, position, whole), KV_OK);
    kv_flow_set_sequence(r->flow, sequence);
    return kv_loc_make(position.segment, position.offset, 255);
}

static size_t head_size(unsigned space) {
    static const size_t sizes[] = {1, KV_NAME_ROW_HEAD_SIZE, KV_NAME_HEAD_MAX};
    return sizes[space];
}

/* Writes the record that brings a name into being; its location. */
static uint64_t create(rig *r, const uint8_t *bytes, size_t size) {
    static const uint8_t kinds[] = {KV_KIND_PUT, KV_KIND_ROW_PUT, KV_KIND_ROW_DELETE};
    unsigned space = bytes[0];
    size_t head = head_size(space);
    kv_record record = {.kind = kinds[space], .flags = space == KV_SPACE_CHANGES ? 0 : KV_FLAG_CREATED,
                        .version = kv_flow_sequence(r->flow) + 1, .key = bytes + head,
                        .key_size = (uint32_t)(size - head)};
    if (space != KV_SPACE_KEYS) {
        record.options = KV_HAS_TABLE;
        record.table_id = __builtin_bswap64(kv_load64(bytes + 1));
    }
    if (space == KV_SPACE_CHANGES) record.version = __builtin_bswap64(kv_load64(bytes + KV_NAME_ROW_HEAD_SIZE));
    uint64_t location = append(r, &record);
    CHECK_EQ(kv_order_created(r->order, location, space), KV_OK);
    return location;
}

static size_t name_make(uint8_t *bytes, unsigned space, uint64_t table_id, uint64_t version, const void *row,
                        size_t row_size) {
    bytes[0] = (uint8_t)space;
    if (space != KV_SPACE_KEYS) kv_store64(bytes + 1, __builtin_bswap64(table_id));
    if (space == KV_SPACE_CHANGES) kv_store64(bytes + KV_NAME_ROW_HEAD_SIZE, __builtin_bswap64(version));
    memcpy(bytes + head_size(space), row, row_size);
    return head_size(space) + row_size;
}

static size_t name_random(uint8_t *bytes, size_t size_max) {
    unsigned space = (unsigned)(random_next() % 5) % 3;
    size_t head = head_size(space), size = head + (space == KV_SPACE_KEYS) + random_next() % size_max;
    name_make(bytes, space, random_next() % 2, 1 + random_next() % 3 * 200, "", 0);
    for (size_t at = head; at < size; at++) bytes[at] = (uint8_t)(random_next() % 3 * 127);
    return size;
}

static void create_random(rig *r, size_t count, size_t size_max) {
    static uint8_t bytes[KV_NAME_SIZE_MAX];
    for (size_t i = 0; i < count; i++) {
        size_t size = name_random(bytes, size_max);
        create(r, bytes, size);
        names_add(bytes, size);
    }
}

/* --- what a walk must give --- */

static void check_walk(rig *r, enum kv_seek how, const uint8_t *from, size_t from_size, size_t steps) {
    const uint8_t *bytes;
    size_t size;
    bool reverse = how == KV_SEEK_LE || how == KV_SEEK_LT;
    size_t at = names_before(from, from_size, how == KV_SEEK_GT || how == KV_SEEK_LE);
    kv_epoch_enter(r->epoch, r->slot);
    kv_status status = kv_order_seek(r->order, r->flow, r->cursor, how, from, from_size);
    while (status == KV_OK && steps-- > 0) {
        status = kv_order_next(r->cursor, &bytes, &size);
        /* A name that was left out of a run as dead may be listed or not. */
        for (;;) {
            bool end = reverse ? at == 0 : at == name_count;
            const name *expected = end ? NULL : &names[reverse ? at - 1 : at];
            if (expected == NULL) {
                CHECK_EQ(status, KV_EOF);
                break;
            }
            bool same = status == KV_OK && kv_name_compare(bytes, size, expected->bytes, expected->size) == 0;
            at = reverse ? at - 1 : at + 1;
            if (same) break;
            CHECK(expected->dead);
            if (!expected->dead) break;
        }
    }
    CHECK(status == KV_OK || status == KV_EOF);
    kv_epoch_leave(r->slot);
}

static void check_all(rig *r) {
    const uint8_t last[1] = {255};
    check_walk(r, KV_SEEK_GE, last, 0, SIZE_MAX);
    check_walk(r, KV_SEEK_LE, last, 1, SIZE_MAX);
}

static void check_some(rig *r, size_t size_max) {
    static uint8_t bytes[KV_NAME_SIZE_MAX];
    for (int i = 0; i < 20; i++) {
        size_t size = name_random(bytes, size_max);
        if (name_count != 0 && random_next() % 2) {
            const name *one = &names[random_next() % name_count];
            memcpy(bytes, one->bytes, size = one->size);
        }
        check_walk(r, (enum kv_seek)(random_next() % 4), bytes, size, 1 + random_next() % 20);
    }
}

/* --- building a run as a checkpoint does --- */

static void check_counts(rig *r, size_t run_count_max) {
    kv_order_stats stats;
    pthread_mutex_lock(&r->writer_lock);
    kv_order_measure(r->order, &stats);
    pthread_mutex_unlock(&r->writer_lock);
    CHECK_EQ(stats.created_count, 0);
    CHECK(stats.run_count <= run_count_max);
}

static bool is_dead(const uint8_t *bytes, size_t size) {
    size_t at = names_before(bytes, size, false);
    return at < name_count && names[at].dead && kv_name_compare(names[at].bytes, names[at].size, bytes, size) == 0;
}

typedef bool (*dead_test)(const uint8_t *bytes, size_t size);

static bool never_dead(const uint8_t *bytes, size_t size) {
    (void)bytes;
    (void)size;
    return false;
}

/* In steps of a few names, out of the epoch between them. */
static kv_status build_step(rig *r, kv_epoch_slot *slot, const kv_order_build *build, kv_order_cursor *cursor,
                            kv_run_writer *writer, uint8_t *last, size_t *last_size, dead_test dead) {
    const uint8_t *bytes;
    size_t size;
    kv_epoch_enter(r->epoch, slot);
    kv_status status = kv_order_build_seek(r->order, r->flow, build, cursor, KV_SEEK_GT, last, *last_size);
    for (int i = 0; i < 100 && status == KV_OK; i++) {
        status = kv_order_next(cursor, &bytes, &size);
        if (status != KV_OK) break;
        memcpy(last, bytes, size);
        *last_size = size;
        if (!dead(bytes, size)) status = kv_run_write(writer, bytes, size);
    }
    kv_epoch_leave(slot);
    return status;
}

static void build(rig *r, kv_epoch_slot *slot, uint64_t live_count, dead_test dead) {
    static uint8_t last[KV_NAME_SIZE_MAX];
    kv_order_build b;
    kv_order_cursor *cursor;
    kv_run_writer *writer;
    kv_run_info info, *list;
    size_t last_size = 0, count;
    pthread_mutex_lock(&r->writer_lock);
    kv_status status = kv_order_build_begin(r->order, live_count, &b);
    pthread_mutex_unlock(&r->writer_lock);
    if (status == KV_EOF) return;
    do {
        kv_epoch_enter(r->epoch, slot);
        status = kv_order_build_sort(r->order, r->flow, &b);
        kv_epoch_leave(slot);
    } while (status == KV_MORE);
    CHECK_EQ(kv_order_cursor_new(&cursor), KV_OK);
    CHECK_EQ(kv_run_writer_new(r->io, r->next_run++, &writer), KV_OK);
    while ((status = build_step(r, slot, &b, cursor, writer, last, &last_size, dead)) == KV_OK) {}
    CHECK_EQ(status, KV_EOF);
    status = kv_run_finish(writer, &info);
    CHECK(status == KV_OK || status == KV_EUSAGE); /* nothing was alive */
    const kv_run_info *run = status == KV_OK ? &info : NULL;
    CHECK_EQ(kv_order_build_list(r->order, &b, run, &list, &count), KV_OK);
    CHECK_EQ(kv_order_build_publish(r->order, &b, r->io, run), KV_OK);
    pthread_mutex_lock(&r->writer_lock);
    kv_order_build_end(r->order);
    kv_epoch_reclaim(r->epoch);
    pthread_mutex_unlock(&r->writer_lock);
    kv_run_info *now;
    size_t now_count;
    CHECK_EQ(kv_order_runs(r->order, &now, &now_count), KV_OK);
    CHECK_EQ(now_count, count);
    CHECK(count == 0 || memcmp(now, list, count * sizeof *now) == 0);
    free(now);
    free(list);
    kv_run_writer_free(writer);
    kv_order_cursor_free(cursor);
}

/* --- promises --- */

TEST(an_empty_order_lists_nothing) {
    rig r;
    kv_order_build b;
    rig_make(&r);
    check_all(&r);
    CHECK_EQ(kv_order_build_begin(r.order, 0, &b), KV_EOF);
    rig_free(&r);
}

TEST(what_was_created_is_listed_in_order_both_ways) {
    rig r;
    rig_make(&r);
    for (int i = 0; i < 60; i++) {
        create_random(&r, random_next() % 100, i % 20 == 0 ? 3000 : 24);
        check_some(&r, 24);
        if (i % 10 == 0) check_all(&r);
    }
    check_all(&r);
    rig_free(&r);
}

TEST(long_names_that_share_nearly_everything_are_sorted) {
    static uint8_t bytes[1 + KV_KEY_SIZE_MAX];
    rig r;
    rig_make(&r);
    memset(bytes, 'x', sizeof bytes);
    bytes[0] = KV_SPACE_KEYS;
    for (int i = 0; i < 30; i++) {
        bytes[65530] = (uint8_t)(random_next() % 20);
        size_t size = sizeof bytes - random_next() % 3;
        create(&r, bytes, size);
        names_add(bytes, size);
    }
    check_all(&r);
    build(&r, r.slot, name_count, never_dead);
    check_all(&r);
    rig_free(&r);
}

/* A number of any length, and its neighbours. */
static uint64_t number_random(void) {
    uint64_t most = ((uint64_t)1 << random_next() % 64) - random_next() % 2;
    return random_next() % 2 ? most : most & random_next();
}

/* Sorted by words that leave out leading zeros, and sought by bounds that end anywhere. */
TEST(numbers_of_any_length_are_in_order) {
    static uint8_t bytes[KV_NAME_SIZE_MAX];
    rig r;
    rig_make(&r);
    for (int i = 0; i < 4000; i++) {
        uint8_t row[12] = {0};
        kv_store64(row, __builtin_bswap64(number_random()));
        size_t row_size = random_next() % 2 ? 8 : random_next() % sizeof row;
        row[8] = (uint8_t)(random_next() % 3);
        if (random_next() % 8 == 0) memset(row, 0, sizeof row);
        unsigned space = 1 + (unsigned)random_next() % 2;
        size_t size = name_make(bytes, space, number_random(), number_random(), row, row_size);
        create(&r, bytes, size);
        names_add(bytes, size);
        const name *one = &names[random_next() % name_count];
        size_t bound_size = random_next() % (one->size + 1);
        if (i % 3 == 0) check_walk(&r, (enum kv_seek)(random_next() % 4), one->bytes, bound_size, 1 + random_next() % 4);
        if (i % 1000 == 999) check_all(&r);
        if (i == 2500) build(&r, r.slot, UINT64_MAX / 4, never_dead);
    }
    rig_free(&r);
}

/* Many at once take another way than few. */
TEST(many_names_created_before_a_scan_are_sorted) {
    rig r;
    rig_make(&r);
    for (size_t i = 0; i < 6; i++) {
        create_random(&r, (size_t)1 << 2 * i, 9);
        check_all(&r);
    }
    create_random(&r, 5000, 9);
    check_all(&r);
    rig_free(&r);
}

TEST(a_cursor_says_where_it_read_a_name) {
    rig r;
    const uint8_t key[] = {KV_SPACE_KEYS, 'k'}, *bytes;
    size_t size;
    rig_make(&r);
    uint64_t location = create(&r, key, sizeof key);
    names_add(key, sizeof key);
    for (int built = 0; built < 2; built++) {
        kv_epoch_enter(r.epoch, r.slot);
        CHECK_EQ(kv_order_seek(r.order, r.flow, r.cursor, KV_SEEK_GE, key, sizeof key), KV_OK);
        CHECK_EQ(kv_order_next(r.cursor, &bytes, &size), KV_OK);
        CHECK_EQ(kv_order_seen(r.cursor), built ? 0 : kv_loc_make(kv_loc_segment(location), kv_loc_offset(location), 0));
        kv_epoch_leave(r.slot);
        build(&r, r.slot, 1, never_dead);
    }
    rig_free(&r);
}

TEST(a_name_created_again_is_listed_once) {
    rig r;
    rig_make(&r);
    for (int i = 0; i < 500; i++) {
        uint8_t bytes[2] = {KV_SPACE_KEYS, (uint8_t)(i % 7)};
        create(&r, bytes, 2);
        names_add(bytes, 2);
        if (i % 50 == 0) check_all(&r);
        if (i % 120 == 0) build(&r, r.slot, name_count, never_dead);
    }
    CHECK_EQ(name_count, 7);
    check_all(&r);
    rig_free(&r);
}

TEST(runs_are_merged_and_list_the_same) {
    rig r;
    rig_make(&r);
    for (int i = 0; i < 60; i++) {
        create_random(&r, 1 + random_next() % 300, 24);
        if (i % 3 == 0) check_some(&r, 24);
        build(&r, r.slot, name_count, is_dead);
        check_counts(&r, 10);
        check_some(&r, 24);
        for (int kill = 0; kill < 30; kill++) names[random_next() % name_count].dead = true;
    }
    check_all(&r);
    rig_free(&r);
}

TEST(runs_of_dead_names_go) {
    rig r;
    kv_order_stats stats;
    rig_make(&r);
    for (int i = 0; i < 20000; i++) {
        uint8_t bytes[9] = {KV_SPACE_KEYS};
        kv_store64(bytes + 1, (uint64_t)i * 0x9E3779B185EBCA87ULL);
        create(&r, bytes, sizeof bytes);
        names_add(bytes, sizeof bytes);
    }
    build(&r, r.slot, name_count, is_dead);
    kv_order_measure(r.order, &stats);
    CHECK_EQ(stats.run_name_count, 20000);
    for (size_t i = 0; i < name_count; i++) names[i].dead = i != 4711;
    build(&r, r.slot, 1, is_dead);
    kv_order_measure(r.order, &stats);
    CHECK_EQ(stats.run_name_count, 1);
    for (size_t i = 0; i < name_count; i++) names[i].dead = true;
    const uint8_t again[2] = {KV_SPACE_KEYS, 1};
    create(&r, again, 2);
    names_add(again, 2)->dead = true;
    build(&r, r.slot, 0, is_dead);
    kv_order_measure(r.order, &stats);
    CHECK_EQ(stats.run_count, 0);
    check_all(&r);
    rig_free(&r);
}

TEST(a_build_given_up_changes_nothing) {
    rig r;
    kv_order_build b;
    rig_make(&r);
    create_random(&r, 500, 24);
    CHECK_EQ(kv_order_build_begin(r.order, name_count, &b), KV_OK);
    create_random(&r, 500, 24);
    check_all(&r);
    kv_order_build_end(r.order);
    create_random(&r, 500, 24);
    check_all(&r);
    build(&r, r.slot, name_count, never_dead);
    check_all(&r);
    check_counts(&r, 1);
    rig_free(&r);
}

/* --- names of three spaces --- */

/* One row record: always a change, and a row if it is its first. */
static void write_row(rig *r, uint64_t table_id, uint64_t version, const void *row, size_t row_size, uint8_t kind,
                      bool created) {
    uint8_t bytes[64];
    kv_record record = {.kind = kind, .flags = created ? KV_FLAG_CREATED : 0, .version = version,
                        .options = KV_HAS_TABLE, .table_id = table_id, .key = row, .key_size = (uint32_t)row_size};
    uint64_t location = append(r, &record);
    if (created) {
        CHECK_EQ(kv_order_created(r->order, location, KV_SPACE_ROWS), KV_OK);
        names_add(bytes, name_make(bytes, KV_SPACE_ROWS, table_id, 0, row, row_size));
    }
    CHECK_EQ(kv_order_created(r->order, location, KV_SPACE_CHANGES), KV_OK);
    names_add(bytes, name_make(bytes, KV_SPACE_CHANGES, table_id, version, row, row_size));
}

/* What a seek to the start of a table finds, and what stands right before it. */
static void check_table_starts(rig *r) {
    uint8_t bytes[KV_NAME_HEAD_MAX];
    for (unsigned space = KV_SPACE_ROWS; space <= KV_SPACE_CHANGES; space++) {
        for (uint64_t table_id = 0; table_id < 5; table_id++) {
            name_make(bytes, space, table_id, 0, "", 0);
            check_walk(r, KV_SEEK_GE, bytes, KV_NAME_ROW_HEAD_SIZE, 3);
            check_walk(r, KV_SEEK_LT, bytes, KV_NAME_ROW_HEAD_SIZE, 3);
        }
    }
}

TEST(one_record_is_listed_as_a_row_and_as_a_change) {
    rig r;
    bool there[4][50] = {{false}};
    rig_make(&r);
    for (uint64_t version = 1; version <= 3000; version++) {
        uint64_t table_id = 1 + random_next() % 3, which = random_next() % 50;
        uint8_t row[3] = {'r', (uint8_t)(which / 10), (uint8_t)(which % 10)};
        bool created = !there[table_id][which], put = created || random_next() % 3 != 0;
        write_row(&r, table_id, version, row, which == 0 ? 0 : 3, put ? KV_KIND_ROW_PUT : KV_KIND_ROW_DELETE, created);
        there[table_id][which] = put;
        if (version % 7 == 0) {
            uint8_t key[3] = {KV_SPACE_KEYS, (uint8_t)(version >> 8), (uint8_t)version};
            create(&r, key, sizeof key);
            names_add(key, sizeof key);
        }
        if (version % 250 == 0) check_table_starts(&r);
        if (version % 900 == 0) build(&r, r.slot, name_count, never_dead);
    }
    check_all(&r);
    build(&r, r.slot, name_count, never_dead);
    check_all(&r);
    check_table_starts(&r);
    check_counts(&r, 10);
    rig_free(&r);
}

TEST(changes_are_in_the_order_of_their_versions) {
    static const uint64_t versions[] = {256, 1, UINT64_MAX, 255, 65536, (uint64_t)1 << 32, 2, 65535, (uint64_t)1 << 63};
    static const uint64_t sorted[] = {1, 2, 255, 256, 65535, 65536, (uint64_t)1 << 32, (uint64_t)1 << 63, UINT64_MAX};
    rig r;
    rig_make(&r);
    for (size_t i = 0; i < 9; i++) write_row(&r, 7, versions[i], "zyxwvutsr" + i, 1, KV_KIND_ROW_PUT, false);
    for (int built = 0; built < 2; built++) {
        const uint8_t *bytes, first[1] = {KV_SPACE_CHANGES};
        size_t size;
        kv_epoch_enter(r.epoch, r.slot);
        CHECK_EQ(kv_order_seek(r.order, r.flow, r.cursor, KV_SEEK_GE, first, 1), KV_OK);
        for (size_t i = 0; i < 9; i++) {
            CHECK_EQ(kv_order_next(r.cursor, &bytes, &size), KV_OK);
            CHECK_EQ(size, KV_NAME_HEAD_MAX + 1);
            CHECK_EQ(__builtin_bswap64(kv_load64(bytes + 1)), 7);
            CHECK_EQ(__builtin_bswap64(kv_load64(bytes + KV_NAME_ROW_HEAD_SIZE)), sorted[i]);
        }
        CHECK_EQ(kv_order_next(r.cursor, &bytes, &size), KV_EOF);
        kv_epoch_leave(r.slot);
        build(&r, r.slot, name_count, never_dead);
    }
    rig_free(&r);
}

TEST(the_key_of_a_table_is_a_key) {
    rig r;
    uint8_t bytes[64];
    static const uint8_t kinds[] = {KV_KIND_PUT, KV_KIND_DELETE, KV_KIND_TABLE_NEW, KV_KIND_TABLE_DROP};
    rig_make(&r);
    for (size_t i = 0; i < sizeof kinds; i++) {
        const uint8_t key[2] = {'k', (uint8_t)i};
        bool table = kinds[i] >= KV_KIND_TABLE_NEW;
        kv_record record = {.kind = kinds[i], .flags = KV_FLAG_CREATED, .version = 1 + i, .key = key, .key_size = 2,
                            .options = table ? KV_HAS_TABLE : 0, .table_id = table ? 9 : 0};
        CHECK_EQ(kv_order_created(r.order, append(&r, &record), KV_SPACE_KEYS), KV_OK);
        names_add(bytes, name_make(bytes, KV_SPACE_KEYS, 0, 0, key, 2));
    }
    check_all(&r);
    rig_free(&r);
}

TEST(a_change_that_is_no_row_is_damage) {
    rig r;
    uint64_t run;
    kv_record record = {.kind = KV_KIND_PUT, .version = 1, .key = (const uint8_t *)"k", .key_size = 1};
    rig_make(&r);
    uint64_t location = append(&r, &record);
    CHECK_EQ(kv_order_created(r.order, location, KV_SPACE_CHANGES), KV_OK);
    kv_epoch_enter(r.epoch, r.slot);
    CHECK_EQ(kv_order_seek(r.order, r.flow, r.cursor, KV_SEEK_GE, (const uint8_t *)"", 0), KV_ECORRUPT);
    kv_epoch_leave(r.slot);
    CHECK_EQ(kv_order_damage(r.cursor, &run), location & (((uint64_t)1 << 56) - 1));
    rig_free(&r);
}

/* Before it is sorted, and after; a key, and a change. */
TEST(a_flipped_bit_in_a_record_is_damage_and_never_a_wrong_name) {
    for (int round = 0; round < 4; round++) {
        bool sorted = round % 2 != 0, change = round >= 2;
        rig r;
        const uint8_t last[1] = {255};
        rig_make(&r);
        create_random(&r, 40, 24);
        uint8_t bytes[32];
        size_t name_size = name_make(bytes, change ? KV_SPACE_CHANGES : KV_SPACE_KEYS, 3, 77, "\177\177key", 5);
        uint64_t location = create(&r, bytes, name_size);
        names_add(bytes, name_size);
        if (sorted) check_all(&r);
        uint64_t record_size = KV_RECORD_HEAD_SIZE + 8 + (change ? 24 : 0) + 6; /* up to the value */
        for (uint64_t bit = 0; bit < record_size * 8; bit++) {
            uint64_t size;
            kv_order *fresh = r.order;
            uint8_t *record = (uint8_t *)(uintptr_t)kv_flow_at(r.flow, kv_loc_segment(location), kv_loc_offset(location), &size);
            record[bit / 8] ^= (uint8_t)(1 << bit % 8);
            size_t count = 0;
            const uint8_t *listed;
            size_t listed_size;
            uint64_t run;
            kv_epoch_enter(r.epoch, r.slot);
            kv_status status = kv_order_seek(fresh, r.flow, r.cursor, KV_SEEK_GE, last, 0);
            while (status == KV_OK) {
                status = kv_order_next(r.cursor, &listed, &listed_size);
                if (status != KV_OK) break;
                CHECK(kv_name_compare(listed, listed_size, names[count].bytes, names[count].size) == 0);
                count++;
            }
            kv_epoch_leave(r.slot);
            CHECK_EQ(status, KV_ECORRUPT);
            CHECK_EQ(kv_order_damage(r.cursor, &run), location & (((uint64_t)1 << 56) - 1));
            record[bit / 8] ^= (uint8_t)(1 << bit % 8);
        }
        check_all(&r);
        rig_free(&r);
    }
}

/* --- threads --- */

static rig shared;
static _Atomic int writing;
static uint8_t present[1000][6];

static void *create_many(void *argument) {
    (void)argument;
    for (int i = 0; i < THREAD_NAMES; i++) {
        uint8_t bytes[10] = {KV_SPACE_KEYS, 'n'};
        kv_store64(bytes + 2, (uint64_t)i * 0x9E3779B185EBCA87ULL);
        pthread_mutex_lock(&shared.writer_lock);
        create(&shared, bytes, sizeof bytes);
        kv_epoch_reclaim(shared.epoch);
        pthread_mutex_unlock(&shared.writer_lock);
    }
    writing = 0;
    return NULL;
}

static void *build_again(void *argument) {
    kv_epoch_slot *slot;
    (void)argument;
    CHECK_EQ(kv_epoch_join(shared.epoch, &slot), KV_OK);
    while (writing) build(&shared, slot, UINT64_MAX / 4, never_dead);
    kv_epoch_part(shared.epoch, slot);
    return NULL;
}

/* What is present throughout appears exactly once and in order, page by page. */
static int scan_once(kv_epoch_slot *slot, kv_order_cursor *cursor, bool reverse) {
    uint8_t last[16] = {255};
    const uint8_t *bytes;
    size_t last_size = reverse ? 1 : 0, size, seen = 0;
    kv_status status = KV_OK;
    while (status == KV_OK) {
        kv_epoch_enter(shared.epoch, slot);
        status = kv_order_seek(shared.order, shared.flow, cursor, reverse ? KV_SEEK_LT : KV_SEEK_GT, last, last_size);
        for (int i = 0; i < 64 && status == KV_OK; i++) {
            status = kv_order_next(cursor, &bytes, &size);
            if (status != KV_OK) break;
            int order = kv_name_compare(bytes, size, last, last_size);
            if (reverse ? order >= 0 : order <= 0) return 1;
            memcpy(last, bytes, size);
            last_size = size;
            if (size == 6 && bytes[1] == 'p') {
                size_t which = reverse ? 999 - seen : seen;
                if (which > 999 || memcmp(bytes, present[which], 6) != 0) return 1;
                seen++;
            }
        }
        kv_epoch_leave(slot);
    }
    return status != KV_EOF || seen != 1000;
}

static void *scan_again(void *argument) {
    kv_epoch_slot *slot;
    kv_order_cursor *cursor;
    int *failures = argument;
    CHECK_EQ(kv_epoch_join(shared.epoch, &slot), KV_OK);
    CHECK_EQ(kv_order_cursor_new(&cursor), KV_OK);
    for (int i = 0; writing && *failures == 0; i++) *failures += scan_once(slot, cursor, i % 2 != 0);
    kv_order_cursor_free(cursor);
    if (*failures == 0) kv_epoch_part(shared.epoch, slot);
    return NULL;
}

TEST(scans_are_whole_beside_a_writer_and_merges) {
    pthread_t threads[4];
    int failures[2] = {0, 0};
    rig_make(&shared);
    for (int i = 0; i < 1000; i++) {
        uint8_t bytes[6] = {KV_SPACE_KEYS, 'p', 0, 0, (uint8_t)(i >> 8), (uint8_t)i};
        memcpy(present[i], bytes, sizeof bytes);
        create(&shared, bytes, sizeof bytes);
    }
    writing = 1;
    CHECK_EQ(pthread_create(&threads[0], NULL, create_many, NULL), 0);
    CHECK_EQ(pthread_create(&threads[1], NULL, build_again, NULL), 0);
    CHECK_EQ(pthread_create(&threads[2], NULL, scan_again, &failures[0]), 0);
    CHECK_EQ(pthread_create(&threads[3], NULL, scan_again, &failures[1]), 0);
    for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
    CHECK_EQ(failures[0] + failures[1], 0);
    CHECK_EQ(scan_once(shared.slot, shared.cursor, false), 0);
    rig_free(&shared);
}

int main(void) {
    kv_guard_install();
    RUN(an_empty_order_lists_nothing);
    RUN(what_was_created_is_listed_in_order_both_ways);
    RUN(long_names_that_share_nearly_everything_are_sorted);
    RUN(numbers_of_any_length_are_in_order);
    RUN(many_names_created_before_a_scan_are_sorted);
    RUN(a_cursor_says_where_it_read_a_name);
    RUN(a_name_created_again_is_listed_once);
    RUN(runs_are_merged_and_list_the_same);
    RUN(runs_of_dead_names_go);
    RUN(a_build_given_up_changes_nothing);
    RUN(one_record_is_listed_as_a_row_and_as_a_change);
    RUN(changes_are_in_the_order_of_their_versions);
    RUN(the_key_of_a_table_is_a_key);
    RUN(a_change_that_is_no_row_is_damage);
    RUN(a_flipped_bit_in_a_record_is_damage_and_never_a_wrong_name);
    RUN(scans_are_whole_beside_a_writer_and_merges);
    names_clear();
    return check_report();
}
