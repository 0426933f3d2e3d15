/* test_table.c -- tables and snapshots, call by call: what each promises in kv/store.h, on a simulated disk.
 *
 * What was read is compared as text: "a=1 b=2 " are entries of a scan in their order, "b- " is a change that says the
 * row is gone. Every test ends with end(), which opens the store once more, from its newest checkpoint and without:
 * after the replay of everything each counter has to be what it was while the store was written.
 *
 * Threads are at the end, on a real directory. */
#include <ftw.h>
#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include "../src/store_internal.h"
#include "check.h"
#include "kv/io_sim.h"
#include "kv/record.h"

enum { TEXT_SIZE = 1 << 14, BIG_SIZE = 700, INLINE_SIZE = 512 };
static const int64_t START_MS = 1700000000000;

typedef struct bench {
    kv_sim *sim;
    kv_store *store;
    kv_caller *c;
    kv_options options;
    uint8_t *checkpoint; /* the newest one published; NULL: none */
    size_t checkpoint_size;
    char text[TEXT_SIZE]; /* of the last scan */
} bench;

static void open_it(bench *b, bool with_checkpoint) {
    kv_fault fault;
    kv_status status = kv_store_open(kv_sim_io(b->sim), &b->options, with_checkpoint ? b->checkpoint : NULL,
                                     with_checkpoint ? b->checkpoint_size : 0, &fault, &b->store);
    if (status != KV_OK) printf("open: %s\n", fault.what);
    KV_ASSERT(status == KV_OK && kv_caller_new(b->store, &b->c) == KV_OK);
}

static void close_it(bench *b) {
    kv_fault fault;
    kv_caller_free(b->c);
    CHECK_EQ(kv_store_close(b->store, &fault), KV_OK);
    kv_store_free(b->store);
}

static void begin_with(bench *b, kv_options options) {
    memset(b, 0, sizeof *b);
    b->sim = kv_sim_new();
    b->options = options;
    kv_sim_set_recording(b->sim, 0);
    kv_sim_set_clock(b->sim, START_MS);
    open_it(b, false);
}

static void begin(bench *b) {
    begin_with(b, (kv_options){.sync = KV_SYNC_BATCH, .segment_size_min = 1 << 18, .segment_size_max = 1 << 18,
                               .inline_size_max = INLINE_SIZE});
}

static kv_stats stats_of(bench *b) {
    kv_stats stats = {0};
    CHECK_EQ(kv_store_measure(b->store, &stats), KV_OK);
    return stats;
}

static void check_same_counters(const kv_stats *was, const kv_stats *is) {
    CHECK_EQ(is->key_count, was->key_count);
    CHECK_EQ(is->table_count, was->table_count);
    CHECK_EQ(is->row_count, was->row_count);
    CHECK_EQ(is->tombstone_count, was->tombstone_count);
    CHECK_EQ(is->row_tombstone_count, was->row_tombstone_count);
    CHECK_EQ(is->retired_table_count, was->retired_table_count);
    CHECK_EQ(is->live_size, was->live_size);
    CHECK_EQ(is->big_count, was->big_count);
    CHECK_EQ(is->big_size, was->big_size);
}

static void check_reopened(bench *b, bool with_checkpoint) {
    kv_stats was = stats_of(b), is;
    close_it(b);
    open_it(b, with_checkpoint);
    if (!with_checkpoint) { /* whose files the open has just removed */
        free(b->checkpoint);
        b->checkpoint = NULL;
    }
    is = stats_of(b);
    check_same_counters(&was, &is);
    CHECK_EQ(is.used_checkpoint, with_checkpoint);
}

static void end(bench *b) {
    if (b->checkpoint != NULL) check_reopened(b, true);
    check_reopened(b, false);
    close_it(b);
    free(b->checkpoint);
    kv_sim_free(b->sim);
}

static void checkpoint(bench *b) {
    kv_checkpoint *k;
    const uint8_t *bytes;
    kv_status status = kv_checkpoint_begin(b->store, &k);
    if (status == KV_EOF) return;
    KV_ASSERT(status == KV_OK);
    do status = kv_checkpoint_step(k);
    while (status == KV_MORE);
    CHECK_EQ(status, KV_EOF);
    KV_ASSERT(kv_checkpoint_describe(k, &bytes, &b->checkpoint_size) == KV_OK);
    free(b->checkpoint);
    b->checkpoint = malloc(b->checkpoint_size);
    KV_ASSERT(b->checkpoint != NULL);
    memcpy(b->checkpoint, bytes, b->checkpoint_size);
    CHECK_EQ(kv_checkpoint_published(k), KV_OK);
    kv_checkpoint_free(k);
}

/* --- calls with text --- */

#define BYTES(text) (const uint8_t *)(text), strlen(text)

static kv_result put(bench *b, const char *key, const char *value) { return kv_put(b->c, BYTES(key), BYTES(value), 0, 0); }
static kv_result del(bench *b, const char *key) { return kv_delete(b->c, BYTES(key), -1, 0); }
static kv_result row_put(bench *b, const char *table, const char *row, const char *value) {
    return kv_row_put(b->c, BYTES(table), BYTES(row), BYTES(value), 0, 0);
}
static kv_result row_put_ttl(bench *b, const char *table, const char *row, const char *value, int64_t ttl_ms) {
    return kv_row_put(b->c, BYTES(table), BYTES(row), BYTES(value), ttl_ms, 0);
}
static kv_result row_del(bench *b, const char *table, const char *row) {
    return kv_row_delete(b->c, BYTES(table), BYTES(row), -1, 0);
}
static kv_result drop(bench *b, const char *table) { return kv_table_drop(b->c, BYTES(table), 0); }
static kv_result look(bench *b, const char *table) { return kv_table_look(b->c, BYTES(table)); }
static uint64_t version_of(bench *b) { return kv_caller_answer(b->c)->version; }

static const uint8_t *answer_bytes(kv_caller *c, kv_result size) {
    const kv_answer *answer = kv_caller_answer(c);
    return size <= KV_SMALL_SIZE ? answer->small : answer->large;
}

static void text_add(char *text, const void *bytes, size_t size) {
    size_t used = strlen(text);
    KV_ASSERT(used + size + 1 < TEXT_SIZE);
    if (size != 0) memcpy(text + used, bytes, size);
    text[used + size] = 0;
}

/* A value that was read, or how the read ended: "-" absent, "!" anything else. */
static const char *value_text(bench *b, kv_result size) {
    b->text[0] = 0;
    if (size < 0) return size == kv_ending(KV_ABSENT) ? "-" : kv_status_name((kv_status)size);
    text_add(b->text, answer_bytes(b->c, size), (size_t)size);
    return b->text;
}
static const char *get(bench *b, const char *key) { return value_text(b, kv_get(b->c, BYTES(key))); }
static const char *row_get(bench *b, const char *table, const char *row) {
    return value_text(b, kv_row_get(b->c, BYTES(table), BYTES(row)));
}

#define CHECK_TEXT(is, expected)                                                        \
    do {                                                                                \
        const char *check_is = (is);                                                    \
        if (strcmp(check_is, expected) != 0) {                                          \
            check_failed_here = 1;                                                      \
            printf("%s:%d: %s is \"%s\", not \"%s\"\n", __FILE__, __LINE__, #is, check_is, expected); \
        }                                                                               \
    } while (0)

static const uint8_t *entry_text(char *text, const uint8_t *bytes, uint32_t key_size, uint32_t value_size, bool values) {
    bool gone = value_size == (uint32_t)KV_DELETED;
    text_add(text, bytes, key_size);
    bytes += key_size;
    if (gone) text_add(text, "-", 1);
    if (!gone && values) text_add(text, "=", 1);
    if (!gone) text_add(text, bytes, value_size);
    text_add(text, " ", 1);
    return gone ? bytes : bytes + value_size;
}

/* All entries of a range, in pages of `count_max`. */
static const char *scan(bench *b, kv_range range) {
    static uint8_t bound[KV_KEY_SIZE_MAX + 1];
    kv_page page;
    b->text[0] = 0;
    do {
        kv_result size = kv_scan(b->c, &range, &page);
        if (size < 0) return size == kv_ending(KV_ABSENT) ? "-" : kv_status_name((kv_status)size);
        const uint8_t *bytes = answer_bytes(b->c, size);
        for (uint64_t i = 0; i < page.count; i++)
            bytes = entry_text(b->text, bytes, page.sizes[2 * i], page.sizes[2 * i + 1], range.with_values);
        if (!page.more) break;
        memcpy(bound, answer_bytes(b->c, size) + page.size, page.resume_size);
        bound[page.resume_size] = 0;
        if (range.reverse) range.stop = bound;
        else range.start = bound;
        if (range.reverse) range.stop_size = page.resume_size;
        else range.start_size = page.resume_size + 1;
    } while (true);
    return b->text;
}

static kv_range rows_of(const char *table, uint64_t count_max) {
    return (kv_range){.what = KV_SCAN_ROWS, .table = (const uint8_t *)table, .table_size = strlen(table),
                      .count_max = count_max, .with_values = 1};
}
static const char *rows(bench *b, const char *table) { return scan(b, rows_of(table, 2)); }
static const char *keys(bench *b) { return scan(b, (kv_range){.count_max = 2, .with_values = 1}); }
static const char *tables(bench *b) { return scan(b, (kv_range){.what = KV_SCAN_TABLES, .count_max = 2}); }

/* Changes above `since`, in pages of at least `count_max`; what the last page said is left in *out. */
static const char *changes(bench *b, const char *table, uint64_t since, uint64_t count_max, kv_change_page *out) {
    b->text[0] = 0;
    for (;;) {
        kv_result size = kv_changes(b->c, BYTES(table), since, count_max, out);
        if (size < 0) return kv_status_name((kv_status)size);
        const uint8_t *bytes = answer_bytes(b->c, size);
        for (uint64_t i = 0; i < out->page.count; i++)
            bytes = entry_text(b->text, bytes, out->page.sizes[2 * i], out->page.sizes[2 * i + 1], true);
        if (!out->more) return b->text;
        CHECK(out->version > since);
        since = out->version;
        text_add(b->text, "| ", 2);
    }
}

static void wait_ms(bench *b, int64_t ms) {
    static int64_t now;
    if (now < START_MS) now = START_MS;
    now += ms;
    kv_sim_set_clock(b->sim, now);
}

/* --- one row --- */

TEST(a_row_is_what_was_put_and_a_table_is_there_with_its_first_row) {
    bench b;
    begin(&b);
    CHECK_TEXT(row_get(&b, "t", "a"), "-");
    CHECK_EQ(look(&b, "t"), kv_ending(KV_ABSENT));
    kv_result first = row_put(&b, "t", "a", "1");
    CHECK(first > 0);
    CHECK_TEXT(row_get(&b, "t", "a"), "1");
    CHECK_EQ(version_of(&b), first);
    CHECK_EQ(look(&b, "t"), 1);
    CHECK_EQ(version_of(&b), first);
    kv_result second = row_put(&b, "t", "a", "2");
    CHECK(second > first);
    CHECK(row_put(&b, "t", "", "empty name") > second);
    CHECK_EQ(look(&b, "t"), 2);
    CHECK_TEXT(row_get(&b, "t", ""), "empty name");
    CHECK_TEXT(row_get(&b, "t", "a"), "2");
    CHECK_EQ(version_of(&b), second);
    CHECK_TEXT(row_get(&b, "u", "a"), "-");
    CHECK_EQ(row_put(&b, "u", "a", "other") > 0, 1);
    CHECK_TEXT(row_get(&b, "t", "a"), "2");
    CHECK_TEXT(row_get(&b, "u", "a"), "other");
    end(&b);
}

TEST(a_deleted_row_is_gone_and_comes_back_by_a_put) {
    bench b;
    begin(&b);
    CHECK_EQ(row_del(&b, "t", "a"), kv_ending(KV_ABSENT));
    CHECK_EQ(stats_of(&b).table_count, 0);
    kv_result put_at = row_put(&b, "t", "a", "1");
    row_put(&b, "t", "b", "2");
    CHECK_EQ(kv_row_delete(b.c, BYTES("t"), BYTES("a"), put_at + 1, 0), KV_ECONFLICT);
    CHECK_EQ(version_of(&b), put_at);
    kv_result gone = kv_row_delete(b.c, BYTES("t"), BYTES("a"), put_at, 0);
    CHECK(gone > put_at);
    CHECK_TEXT(row_get(&b, "t", "a"), "-");
    CHECK_EQ(row_del(&b, "t", "a"), kv_ending(KV_ABSENT));
    CHECK_EQ(look(&b, "t"), 1);
    CHECK_EQ(version_of(&b), gone);
    CHECK_EQ(stats_of(&b).row_tombstone_count, 1);
    CHECK(row_put(&b, "t", "a", "again") > gone);
    CHECK_EQ(look(&b, "t"), 2);
    CHECK_EQ(stats_of(&b).row_tombstone_count, 0);
    CHECK(row_del(&b, "t", "a") > 0 && row_del(&b, "t", "b") > 0);
    CHECK_EQ(look(&b, "t"), 0); /* A table without rows is a table. */
    CHECK_TEXT(rows(&b, "t"), "");
    CHECK_TEXT(tables(&b), "t ");
    end(&b);
}

TEST(cas_and_incr_of_rows_are_those_of_keys) {
    bench b;
    begin(&b);
    CHECK_EQ(kv_row_cas(b.c, BYTES("t"), BYTES("a"), BYTES("1"), 5, 0, 0), KV_ECONFLICT);
    CHECK_EQ(stats_of(&b).table_count, 0);
    kv_result first = kv_row_cas(b.c, BYTES("t"), BYTES("a"), BYTES("1"), 0, 0, 0);
    CHECK(first > 0);
    CHECK_EQ(kv_row_cas(b.c, BYTES("t"), BYTES("a"), BYTES("2"), 0, 0, 0), KV_ECONFLICT);
    CHECK_EQ(version_of(&b), first);
    CHECK(kv_row_cas(b.c, BYTES("t"), BYTES("a"), BYTES("2"), (uint64_t)first, 0, 0) > first);
    CHECK_TEXT(row_get(&b, "t", "a"), "2");
    CHECK(kv_row_incr(b.c, BYTES("t"), BYTES("a"), 40, 0, 0) > 0);
    CHECK_EQ(kv_caller_answer(b.c)->number, 42);
    CHECK(kv_row_incr(b.c, BYTES("u"), BYTES("n"), -7, 0, 0) > 0);
    CHECK_TEXT(row_get(&b, "u", "n"), "-7");
    row_put(&b, "t", "x", "no number");
    CHECK_EQ(kv_row_incr(b.c, BYTES("t"), BYTES("x"), 1, 0, 0), KV_ENOTINT);
    CHECK_EQ(look(&b, "t"), 2);
    end(&b);
}

static uint64_t append(bench *b, const char *table, const char *value) {
    CHECK(kv_row_append(b->c, BYTES(table), BYTES(value), 0, 0) > 0);
    return (uint64_t)kv_caller_answer(b->c)->number;
}

static void row_name(uint64_t id, uint8_t name[8]) { kv_store64(name, __builtin_bswap64(id)); }

static const char *get_id(bench *b, const char *table, uint64_t id) {
    uint8_t name[8];
    row_name(id, name);
    return value_text(b, kv_row_get(b->c, BYTES(table), name, 8));
}

static kv_result put_id(bench *b, const char *table, uint64_t id, const char *value) {
    uint8_t name[8];
    row_name(id, name);
    return kv_row_put(b->c, BYTES(table), name, 8, BYTES(value), 0, 0);
}

/* What the newest record of a table says: all that is left of an id once its row is gone and forgotten. */
static uint64_t next_row_of(bench *b, const char *table) {
    table_state state;
    CHECK_EQ(reader_find_table(b->c, BYTES(table), &state), KV_OK);
    return state.next_row;
}

TEST(row_ids_ascend_and_never_come_again) {
    bench b;
    uint8_t name[8];
    begin(&b);
    uint64_t first = append(&b, "t", "1"), second = append(&b, "t", "2");
    CHECK(second > first);
    row_name(second, name);
    CHECK(kv_row_delete(b.c, BYTES("t"), name, 8, -1, 0) > 0);
    uint64_t third = append(&b, "t", "3");
    CHECK(third > second);
    /* By hand, where the next ones would come. */
    uint64_t sequence = stats_of(&b).sequence;
    CHECK(put_id(&b, "t", sequence + 3, "by hand") > 0);
    CHECK(put_id(&b, "t", sequence + 4, "by hand") > 0);
    uint64_t fourth = append(&b, "t", "4"), fifth = append(&b, "t", "5");
    CHECK(fourth > third && fifth > fourth);
    CHECK_TEXT(get_id(&b, "t", sequence + 3), "by hand");
    CHECK_TEXT(get_id(&b, "t", sequence + 4), "by hand");
    CHECK_TEXT(get_id(&b, "t", fourth), "4");
    CHECK_TEXT(get_id(&b, "t", fifth), "5");
    CHECK_EQ(next_row_of(&b, "t"), fifth + 1);
    row_put(&b, "t", "x", "1");
    row_del(&b, "t", "x");
    kv_expire(b.c, BYTES("t"), 1000000, 0);
    CHECK_EQ(next_row_of(&b, "t"), fifth + 1); /* every record of the table carries it on */
    CHECK_EQ(look(&b, "t"), 6);
    checkpoint(&b);
    check_reopened(&b, true);
    CHECK_EQ(next_row_of(&b, "t"), fifth + 1);
    CHECK(append(&b, "t", "6") > fifth);
    end(&b);
}

TEST(row_ids_of_a_batch_are_never_given_again) {
    bench b;
    kv_operation ops[4] = {0};
    begin(&b);
    for (int i = 0; i < 4; i++)
        ops[i] = (kv_operation){.table = (const uint8_t *)"t", .table_size = 1, .value = (const uint8_t *)"v", .value_size = 1};
    CHECK(kv_batch(b.c, ops, 4, NULL, 0, 0) > 0);
    for (int i = 1; i < 4; i++) CHECK(ops[i].row_id > ops[i - 1].row_id);
    uint64_t last = ops[3].row_id;
    CHECK_EQ(next_row_of(&b, "t"), last + 1);
    uint64_t next = append(&b, "t", "x");
    CHECK(next > last);
    CHECK_EQ(look(&b, "t"), 5);
    for (int i = 0; i < 4; i++) CHECK_TEXT(get_id(&b, "t", ops[i].row_id), "v");
    end(&b);
}

/* A batch gives several ids under one version. With the table goes what it knew of them, so the version has to know. */
TEST(row_ids_of_a_batch_are_not_given_again_by_the_next_table) {
    enum { COUNT = 6 };
    kv_operation ops[COUNT];
    bench b;
    begin(&b);
    for (int way = 0; way < 3; way++) {
        for (int i = 0; i < COUNT; i++)
            ops[i] = (kv_operation){.table = (const uint8_t *)"t", .table_size = 1, .value = (const uint8_t *)"v", .value_size = 1};
        CHECK(kv_batch(b.c, ops, COUNT, NULL, 0, 0) >= (kv_result)ops[COUNT - 1].row_id);
        if (way == 0) drop(&b, "t");
        if (way == 1) CHECK(kv_delete(b.c, BYTES("t"), -1, 0) > 0);
        if (way == 2) CHECK(kv_put(b.c, BYTES("t"), BYTES("v"), 0, 0) > 0 && kv_delete(b.c, BYTES("t"), -1, 0) > 0);
        CHECK(append(&b, "t", "x") > ops[COUNT - 1].row_id);
        drop(&b, "t");
    }
    end(&b);
}

/* A row that the same batch puts by hand is passed over, too. */
TEST(an_append_never_meets_a_row_of_its_own_batch) {
    bench b;
    uint8_t names[3][8];
    kv_operation ops[5] = {0};
    begin(&b);
    row_put(&b, "t", "a", "1");
    uint64_t sequence = stats_of(&b).sequence;
    for (uint64_t i = 0; i < 3; i++) {
        row_name(sequence + 1 + i, names[i]);
        ops[i == 0 ? 0 : i + 1] = (kv_operation){.table = (const uint8_t *)"t", .table_size = 1, .key = names[i], .key_size = 8,
                                                 .value = (const uint8_t *)"h", .value_size = 1};
    }
    for (int i = 1; i < 5; i += 3)
        ops[i] = (kv_operation){.table = (const uint8_t *)"t", .table_size = 1, .value = (const uint8_t *)"v", .value_size = 1};
    CHECK(kv_batch(b.c, ops, 5, NULL, 0, 0) > 0);
    CHECK_EQ(look(&b, "t"), 6);
    CHECK_EQ(stats_of(&b).row_count, 6);
    for (uint64_t i = 0; i < 3; i++) CHECK_TEXT(get_id(&b, "t", sequence + 1 + i), "h");
    CHECK_TEXT(get_id(&b, "t", ops[1].row_id), "v");
    CHECK_TEXT(get_id(&b, "t", ops[4].row_id), "v");
    end(&b);
}

TEST(big_values_in_rows_are_files_that_go_with_their_row) {
    bench b;
    static char big[BIG_SIZE + 1];
    memset(big, 'x', BIG_SIZE);
    begin(&b);
    CHECK(row_put(&b, "t", "a", big) > 0);
    CHECK_TEXT(row_get(&b, "t", "a"), big);
    CHECK_EQ(stats_of(&b).big_count, 1);
    CHECK_EQ(append(&b, "t", big) > 0, 1);
    CHECK_EQ(stats_of(&b).big_size, 2 * BIG_SIZE);
    CHECK_EQ(kv_row_cas(b.c, BYTES("t"), BYTES("a"), BYTES(big), 1 << 20, 0, 0), KV_ECONFLICT);
    CHECK(row_put(&b, "t", "a", "small") > 0);
    CHECK_EQ(stats_of(&b).big_count, 1);
    kv_operation op = {.table = (const uint8_t *)"t", .table_size = 1, .key = (const uint8_t *)"c", .key_size = 1,
                       .value = (const uint8_t *)big, .value_size = BIG_SIZE};
    CHECK(kv_batch(b.c, &op, 1, NULL, 0, 0) > 0);
    CHECK_TEXT(row_get(&b, "t", "c"), big);
    CHECK(row_del(&b, "t", "c") > 0);
    CHECK_EQ(stats_of(&b).big_count, 1);
    end(&b);
}

/* --- tables as a whole --- */

TEST(keys_and_tables_share_one_namespace) {
    bench b;
    begin(&b);
    put(&b, "k", "v");
    row_put(&b, "t", "a", "1");
    CHECK_EQ(row_put(&b, "k", "a", "1"), KV_EWRONGTYPE);
    CHECK_EQ(kv_row_get(b.c, BYTES("k"), BYTES("a")), KV_EWRONGTYPE);
    CHECK_EQ(row_del(&b, "k", "a"), KV_EWRONGTYPE);
    CHECK_EQ(kv_row_cas(b.c, BYTES("k"), BYTES("a"), BYTES("1"), 0, 0, 0), KV_EWRONGTYPE);
    CHECK_EQ(kv_row_incr(b.c, BYTES("k"), BYTES("a"), 1, 0, 0), KV_EWRONGTYPE);
    CHECK_EQ(kv_row_append(b.c, BYTES("k"), BYTES("1"), 0, 0), KV_EWRONGTYPE);
    CHECK_EQ(look(&b, "k"), KV_EWRONGTYPE);
    CHECK_EQ(drop(&b, "k"), KV_EWRONGTYPE);
    CHECK_EQ(kv_table_trim(b.c, BYTES("k"), 1, 0), KV_EWRONGTYPE);
    CHECK_TEXT(rows(&b, "k"), kv_status_name(KV_EWRONGTYPE));
    kv_change_page page;
    CHECK_TEXT(changes(&b, "k", 0, 1, &page), kv_status_name(KV_EWRONGTYPE));
    CHECK_EQ(kv_get(b.c, BYTES("t")), KV_EWRONGTYPE);
    CHECK_EQ(kv_cas(b.c, BYTES("t"), BYTES("1"), 0, 0, 0), KV_EWRONGTYPE);
    CHECK_EQ(kv_incr(b.c, BYTES("t"), 1, 0, 0), KV_EWRONGTYPE);
    CHECK_EQ(kv_append(b.c, BYTES("t"), BYTES("1"), 0, 0), KV_EWRONGTYPE);
    CHECK_TEXT(keys(&b), "k=v ");
    CHECK_TEXT(tables(&b), "t ");
    CHECK_TEXT(get(&b, "k"), "v");
    CHECK_TEXT(row_get(&b, "t", "a"), "1");
    CHECK_EQ(kv_row_put(b.c, BYTES("t"), BYTES("a"), BYTES("1"), 0, 0) > 0, 1);
    CHECK_EQ(kv_row_put(b.c, BYTES(""), BYTES("a"), BYTES("1"), 0, 0), KV_EKEYSIZE);
    end(&b);
}

TEST(a_dropped_table_is_gone_and_the_next_of_its_name_is_another) {
    bench b;
    begin(&b);
    row_put(&b, "t", "a", "1");
    row_put(&b, "t", "b", "2");
    look(&b, "t");
    int64_t id = kv_caller_answer(b.c)->number;
    kv_result dropped = drop(&b, "t");
    CHECK(dropped > 0);
    CHECK_EQ(kv_version(b.c, BYTES("t")), dropped);
    CHECK_EQ(drop(&b, "t"), kv_ending(KV_ABSENT));
    CHECK_EQ(look(&b, "t"), kv_ending(KV_ABSENT));
    CHECK_TEXT(row_get(&b, "t", "a"), "-");
    CHECK_TEXT(rows(&b, "t"), "-");
    CHECK_TEXT(tables(&b), "");
    kv_stats s = stats_of(&b);
    CHECK_EQ(s.table_count, 0);
    CHECK_EQ(s.tombstone_count, 1);
    CHECK_EQ(s.row_count, 2); /* until they are swept */
    CHECK_EQ(s.retired_table_count, 1);
    CHECK(row_put(&b, "t", "c", "3") > dropped);
    CHECK_EQ(look(&b, "t"), 1);
    CHECK(kv_caller_answer(b.c)->number != id);
    CHECK_TEXT(rows(&b, "t"), "c=3 ");
    CHECK_TEXT(row_get(&b, "t", "a"), "-");
    CHECK_TEXT(tables(&b), "t ");
    CHECK_EQ(stats_of(&b).tombstone_count, 0);
    checkpoint(&b);
    CHECK_TEXT(rows(&b, "t"), "c=3 ");
    CHECK_TEXT(tables(&b), "t ");
    end(&b);
}

TEST(put_replaces_a_table_and_delete_drops_it) {
    bench b;
    begin(&b);
    row_put(&b, "t", "a", "1");
    row_put(&b, "u", "a", "1");
    kv_result newest = row_put(&b, "u", "b", "2");
    row_put(&b, "w", "a", "1");
    CHECK(put(&b, "t", "value") > 0);
    CHECK_TEXT(get(&b, "t"), "value");
    CHECK_EQ(look(&b, "t"), KV_EWRONGTYPE);
    CHECK_EQ(kv_delete(b.c, BYTES("u"), newest - 1, 0), KV_ECONFLICT);
    CHECK_EQ(version_of(&b), newest);
    CHECK(kv_delete(b.c, BYTES("u"), newest, 0) > 0);
    CHECK_EQ(look(&b, "u"), kv_ending(KV_ABSENT));
    kv_many many = {.count = 1, .keys = (const uint8_t *)"w", .keys_size = 1, .key_sizes = (const uint32_t[]){1}};
    CHECK_EQ(kv_delete_many(b.c, &many, 0), 1);
    CHECK_EQ(look(&b, "w"), kv_ending(KV_ABSENT));
    CHECK_TEXT(tables(&b), "");
    CHECK_TEXT(keys(&b), "t=value ");
    CHECK_EQ(stats_of(&b).retired_table_count, 3);
    CHECK(del(&b, "t") > 0);
    CHECK(row_put(&b, "t", "n", "new") > 0);
    CHECK_TEXT(rows(&b, "t"), "n=new ");
    end(&b);
}

TEST(rows_and_tables_expire) {
    bench b;
    begin(&b);
    wait_ms(&b, 1);
    CHECK(row_put_ttl(&b, "t", "a", "1", 1000) > 0);
    row_put(&b, "t", "b", "2");
    row_put(&b, "u", "a", "1");
    CHECK(kv_expire(b.c, BYTES("u"), 2000, 0) > 0);
    kv_result newest = row_put(&b, "u", "b", "2"); /* and keeps what the table has */
    wait_ms(&b, 999);
    CHECK_TEXT(row_get(&b, "t", "a"), "1");
    wait_ms(&b, 1);
    CHECK_TEXT(row_get(&b, "t", "a"), "-");
    CHECK_TEXT(rows(&b, "t"), "b=2 ");
    CHECK_EQ(look(&b, "t"), 2); /* expired ones are counted until they are reclaimed */
    CHECK_EQ(row_del(&b, "t", "a"), kv_ending(KV_ABSENT));
    CHECK(kv_row_cas(b.c, BYTES("t"), BYTES("a"), BYTES("new"), 0, 0, 0) > 0);
    CHECK_EQ(look(&b, "t"), 2);
    CHECK_TEXT(rows(&b, "t"), "a=new b=2 ");
    CHECK_TEXT(rows(&b, "u"), "a=1 b=2 ");
    wait_ms(&b, 1000);
    CHECK_TEXT(row_get(&b, "u", "a"), "-");
    CHECK_TEXT(rows(&b, "u"), "-");
    CHECK_EQ(look(&b, "u"), kv_ending(KV_ABSENT));
    CHECK_EQ(drop(&b, "u"), kv_ending(KV_ABSENT));
    CHECK_TEXT(tables(&b), "t ");
    CHECK_EQ(kv_version(b.c, BYTES("u")), newest); /* never goes back, also where time took the table */
    CHECK_EQ(stats_of(&b).table_count, 2);
    CHECK(row_put(&b, "u", "c", "3") > 0);
    CHECK_TEXT(rows(&b, "u"), "c=3 ");
    CHECK_EQ(look(&b, "u"), 1);
    CHECK_EQ(stats_of(&b).retired_table_count, 1);
    CHECK(kv_expire(b.c, BYTES("u"), 0, 0) == kv_ending(KV_ABSENT));
    CHECK(kv_expire(b.c, BYTES("u"), 500, 0) > 0);
    CHECK(kv_expire(b.c, BYTES("u"), 0, 0) > 0);
    wait_ms(&b, 5000);
    CHECK_TEXT(rows(&b, "u"), "c=3 ");
    put(&b, "k", "v");
    kv_expire(b.c, BYTES("k"), 10, 0);
    wait_ms(&b, 10);
    CHECK(row_put(&b, "k", "a", "a table now") > 0);
    CHECK_TEXT(tables(&b), "k t u ");
    CHECK_EQ(stats_of(&b).key_count, 0);
    end(&b);
}

TEST(a_tables_version_is_that_of_its_newest_write) {
    bench b;
    begin(&b);
    row_put(&b, "t", "a", "1");
    kv_result second = row_put(&b, "t", "b", "2");
    put(&b, "k", "v");
    CHECK_EQ(kv_version(b.c, BYTES("t")), second);
    look(&b, "t");
    CHECK_EQ(version_of(&b), second);
    CHECK_EQ(kv_look(b.c, BYTES("t")), 0);
    CHECK_EQ(version_of(&b), second);
    kv_result gone = row_del(&b, "t", "a");
    CHECK_EQ(kv_version(b.c, BYTES("t")), gone);
    kv_result expiry = kv_expire(b.c, BYTES("t"), 100000, 0);
    CHECK_EQ(kv_version(b.c, BYTES("t")), expiry);
    CHECK_EQ(kv_wait(b.c, BYTES("t"), (uint64_t)gone, 1000), expiry);
    checkpoint(&b);
    check_reopened(&b, true);
    CHECK_EQ(kv_version(b.c, BYTES("t")), expiry);
    check_reopened(&b, false);
    CHECK_EQ(kv_version(b.c, BYTES("t")), expiry);
    end(&b);
}

/* --- counters: what the test adds up by itself --- */

static uint64_t record_size(size_t key, size_t value, int options) {
    return (KV_RECORD_HEAD_SIZE + (options & KV_HAS_TABLE ? 24 : 0) + (options & KV_HAS_EXPIRY ? 8 : 0) + key + value + 3) / 4 * 4;
}

TEST(counters_are_sums_over_what_names_point_at) {
    bench b;
    begin(&b);
    uint64_t live = 0;
    row_put(&b, "table", "a", "12345");
    live += record_size(5, 0, KV_HAS_TABLE) + record_size(1, 5, KV_HAS_TABLE);
    CHECK_EQ(stats_of(&b).live_size, live);
    row_put_ttl(&b, "table", "b", "1", 100000);
    live += record_size(1, 1, KV_HAS_TABLE | KV_HAS_EXPIRY);
    CHECK_EQ(stats_of(&b).live_size, live);
    row_del(&b, "table", "a");
    live += record_size(1, 0, KV_HAS_TABLE) - record_size(1, 5, KV_HAS_TABLE);
    CHECK_EQ(stats_of(&b).live_size, live);
    kv_table_trim(b.c, BYTES("table"), 3, 0);
    kv_table_trim(b.c, BYTES("table"), 4, 0);
    live += record_size(5, 8, KV_HAS_TABLE);
    CHECK_EQ(stats_of(&b).live_size, live);
    kv_expire(b.c, BYTES("table"), 1000, 0);
    live += 8;
    CHECK_EQ(stats_of(&b).live_size, live);
    drop(&b, "table"); /* one record for another; rows and floor stay until they are swept */
    live -= 8;
    CHECK_EQ(stats_of(&b).live_size, live);
    end(&b);
}

/* --- batches --- */

static kv_operation op_of(const char *table, const char *key, const char *value) {
    return (kv_operation){.table = (const uint8_t *)table, .table_size = table == NULL ? 0 : (uint32_t)strlen(table),
                          .key = (const uint8_t *)key, .key_size = key == NULL ? 0 : (uint32_t)strlen(key),
                          .value = (const uint8_t *)value, .value_size = value == NULL ? 0 : strlen(value)};
}

TEST(a_batch_writes_keys_and_rows_of_old_and_new_tables_under_one_version) {
    bench b;
    begin(&b);
    row_put(&b, "old", "a", "1");
    row_put(&b, "old", "b", "2");
    row_put(&b, "dead", "x", "1");
    kv_operation ops[] = {op_of("new1", "r", "n1"), op_of(NULL, "k", "v"), op_of("old", "a", NULL), op_of("new2", NULL, "n2"),
                          op_of("old", "c", "3"), op_of("none", "r", NULL), op_of("new1", "", "e"), op_of(NULL, "dead", NULL),
                          op_of("old", "b", "two")};
    uint64_t before = stats_of(&b).sequence;
    kv_result version = kv_batch(b.c, ops, sizeof ops / sizeof *ops, NULL, 0, 0);
    CHECK((uint64_t)version > before);
    CHECK_TEXT(rows(&b, "new1"), "=e r=n1 ");
    CHECK_TEXT(get_id(&b, "new2", ops[3].row_id), "n2");
    CHECK_TEXT(rows(&b, "old"), "b=two c=3 ");
    CHECK_TEXT(keys(&b), "k=v ");
    CHECK_TEXT(tables(&b), "new1 new2 old ");
    CHECK_EQ(look(&b, "new1"), 2);
    CHECK_EQ(version_of(&b), version);
    int64_t id = kv_caller_answer(b.c)->number;
    CHECK_EQ(look(&b, "new2"), 1);
    CHECK_EQ(version_of(&b), version);
    CHECK(kv_caller_answer(b.c)->number != id);
    CHECK_EQ(look(&b, "old"), 2);
    CHECK_EQ(version_of(&b), version);
    row_get(&b, "old", "c");
    CHECK_EQ(version_of(&b), version);
    CHECK_EQ(look(&b, "dead"), kv_ending(KV_ABSENT));
    CHECK_EQ(stats_of(&b).sequence, version);
    CHECK(row_put(&b, "new3", "r", "1") > version);
    look(&b, "new3");
    CHECK(kv_caller_answer(b.c)->number > version);
    kv_change_page page;
    CHECK_TEXT(changes(&b, "new1", 0, 1, &page), "=e r=n1 ");
    CHECK_TEXT(changes(&b, "old", (uint64_t)version - 1, 1, &page), "a- b=two c=3 ");
    check_reopened(&b, false);
    CHECK_EQ(look(&b, "new1"), 2);
    CHECK_EQ(version_of(&b), version);
    CHECK_EQ(look(&b, "old"), 2);
    end(&b);
}

TEST(a_batch_refuses_a_name_twice_and_a_key_with_rows_under_it) {
    bench b;
    begin(&b);
    row_put(&b, "t", "a", "1");
    kv_operation twice[] = {op_of("t", "a", "2"), op_of("t", "a", NULL)};
    CHECK_EQ(kv_batch(b.c, twice, 2, NULL, 0, 0), KV_EUSAGE);
    kv_operation under[] = {op_of(NULL, "t", "2"), op_of("t", "b", "1")};
    CHECK_EQ(kv_batch(b.c, under, 2, NULL, 0, 0), KV_EUSAGE);
    kv_operation over[] = {op_of("t", "b", "1"), op_of("u", "a", "1"), op_of(NULL, "t", NULL)};
    CHECK_EQ(kv_batch(b.c, over, 3, NULL, 0, 0), KV_EUSAGE);
    kv_operation nothing[] = {op_of("t", NULL, NULL)}; /* deletes a row that it would name itself */
    CHECK_EQ(kv_batch(b.c, nothing, 1, NULL, 0, 0), KV_EUSAGE);
    kv_operation same[] = {op_of("t", "b", "1"), op_of("u", "b", "2"), op_of(NULL, "b", "3")};
    CHECK(kv_batch(b.c, same, 3, NULL, 0, 0) > 0);
    put(&b, "k", "v");
    kv_operation wrong[] = {op_of("t", "z", "1"), op_of("k", "a", "1")};
    CHECK_EQ(kv_batch(b.c, wrong, 2, NULL, 0, 0), KV_EWRONGTYPE);
    CHECK_TEXT(rows(&b, "t"), "a=1 b=1 ");
    end(&b);
}

/* The clock is written down while a batch is planned, which takes a number of the sequence: ids stay unlike. */
TEST(a_batch_that_meets_what_expired_still_parts_its_new_tables) {
    bench b;
    begin(&b);
    wait_ms(&b, 1);
    kv_put(b.c, BYTES("k"), BYTES("v"), 10, 0);
    row_put_ttl(&b, "t", "r", "v", 20);
    wait_ms(&b, 15);
    kv_operation ops[] = {op_of("n1", "a", "1"), op_of(NULL, "k", NULL), op_of("n2", "a", "2"), op_of("t", "r", NULL),
                          op_of("n3", "a", "3")};
    CHECK(kv_batch(b.c, ops, 5, NULL, 0, 0) > 0);
    CHECK_TEXT(rows(&b, "n1"), "a=1 ");
    CHECK_TEXT(rows(&b, "n2"), "a=2 ");
    CHECK_TEXT(rows(&b, "n3"), "a=3 ");
    CHECK_TEXT(rows(&b, "t"), "");
    CHECK_EQ(look(&b, "n1") + look(&b, "n2") + look(&b, "n3"), 3);
    end(&b);
}

TEST(expectations_over_rows_hold_or_nothing_is_written) {
    bench b;
    begin(&b);
    kv_result a = row_put(&b, "t", "a", "1");
    kv_expectation holds[] = {{.table = (const uint8_t *)"t", .table_size = 1, .key = (const uint8_t *)"a", .key_size = 1, .version = (uint64_t)a},
                              {.table = (const uint8_t *)"t", .table_size = 1, .key = (const uint8_t *)"b", .key_size = 1},
                              {.table = (const uint8_t *)"none", .table_size = 4, .key = (const uint8_t *)"b", .key_size = 1}};
    kv_operation op = op_of("t", "c", "3");
    CHECK(kv_batch(b.c, &op, 1, holds, 3, 0) > 0);
    row_put(&b, "none", "other", "1");
    CHECK(kv_batch(b.c, &op, 1, holds, 3, 0) > 0);
    row_put(&b, "none", "b", "1");
    op = op_of("t", "d", "4");
    CHECK_EQ(kv_batch(b.c, &op, 1, holds, 3, 0), KV_ECONFLICT);
    CHECK_EQ(kv_caller_answer(b.c)->number, 2);
    kv_result moved = row_put(&b, "t", "a", "2");
    CHECK_EQ(kv_batch(b.c, &op, 1, holds, 1, 0), KV_ECONFLICT);
    CHECK_EQ(version_of(&b), moved);
    CHECK_TEXT(row_get(&b, "t", "d"), "-");
    uint64_t sequence = 0;
    holds[0].version = (uint64_t)moved;
    CHECK_EQ(kv_row_get_with(b.c, BYTES("t"), BYTES("c"), holds, 1, &sequence), 1);
    drop(&b, "t");
    CHECK_EQ(kv_row_get_with(b.c, BYTES("t"), BYTES("c"), holds, 1, &sequence), KV_ECONFLICT);
    row_put(&b, "t", "a", "2"); /* the same row of another table is another version */
    CHECK_EQ(kv_row_get_with(b.c, BYTES("t"), BYTES("c"), holds, 1, &sequence), KV_ECONFLICT);
    CHECK_EQ(kv_row_get_with(b.c, BYTES("t"), BYTES("c"), NULL, 0, &sequence), kv_ending(KV_ABSENT));
    CHECK_EQ(version_of(&b), 0);
    end(&b);
}

static kv_operation expiry_of(const char *table, int64_t ttl_ms) {
    return (kv_operation){.key = (const uint8_t *)table, .key_size = (uint32_t)strlen(table), .value_size = KV_EXPIRY_ONLY,
                          .ttl_ms = ttl_ms};
}

static int64_t expiry(bench *b, const char *key) {
    return kv_look(b->c, BYTES(key)) < 0 ? -1 : kv_caller_answer(b->c)->expires_ms;
}

TEST(a_batch_gives_tables_an_expiry_with_rows_and_without) {
    bench b;
    begin(&b);
    kv_result before = row_put(&b, "t", "a", "1");
    kv_operation alone[] = {expiry_of("t", -(START_MS + 5000))};
    kv_result version = kv_batch(b.c, alone, 1, NULL, 0, 0);
    CHECK(version > before);
    CHECK_EQ(expiry(&b, "t"), START_MS + 5000);
    CHECK_EQ(look(&b, "t"), 1);
    CHECK_EQ(version_of(&b), version);
    kv_operation with_rows[] = {op_of("t", "b", "2"), expiry_of("t", 0), op_of("t", "a", NULL), op_of("new", "r", "1"),
                                expiry_of("new", -(START_MS + 100)), expiry_of("none", 5)};
    version = kv_batch(b.c, with_rows, 6, NULL, 0, 0);
    CHECK(version > 0);
    CHECK_TEXT(rows(&b, "t"), "b=2 ");
    CHECK_EQ(expiry(&b, "t"), 0);
    CHECK_EQ(look(&b, "t"), 1);
    CHECK_EQ(version_of(&b), version);
    CHECK_EQ(expiry(&b, "new"), START_MS + 100);
    CHECK_EQ(expiry(&b, "none"), -1);
    CHECK_EQ(kv_batch(b.c, &(kv_operation){.key = (const uint8_t *)"none", .key_size = 4, .value_size = KV_EXPIRY_ONLY}, 1, NULL, 0, 0), 0);
    put(&b, "text", "v");
    kv_operation wrong[] = {expiry_of("text", 5)}, twice[] = {expiry_of("t", 5), op_of(NULL, "t", NULL)};
    CHECK_EQ(kv_batch(b.c, wrong, 1, NULL, 0, 0), KV_EWRONGTYPE);
    CHECK_EQ(kv_batch(b.c, twice, 2, NULL, 0, 0), KV_EUSAGE);
    checkpoint(&b);
    end(&b);
}

TEST(a_table_is_expected_as_a_whole) {
    bench b;
    begin(&b);
    kv_expectation whole[] = {{.table = (const uint8_t *)"t", .table_size = 1}};
    kv_operation op = op_of(NULL, "k", "1");
    CHECK(kv_batch(b.c, &op, 1, whole, 1, 0) > 0);
    kv_result version = row_put(&b, "t", "a", "1");
    CHECK_EQ(kv_batch(b.c, &op, 1, whole, 1, 0), KV_ECONFLICT);
    CHECK_EQ(version_of(&b), version);
    whole[0].version = (uint64_t)version;
    CHECK(kv_batch(b.c, &op, 1, whole, 1, 0) > 0);
    row_put(&b, "t", "b", "1");
    CHECK_EQ(kv_batch(b.c, &op, 1, whole, 1, 0), KV_ECONFLICT);
    put(&b, "t", "a value");
    CHECK_EQ(kv_batch(b.c, &op, 1, whole, 1, 0), KV_ECONFLICT);
    whole[0].version = 0;
    CHECK(kv_batch(b.c, &op, 1, whole, 1, 0) > 0);
    end(&b);
}

TEST(an_expiry_may_be_a_moment) {
    bench b;
    begin(&b);
    wait_ms(&b, 7);
    CHECK(kv_put(b.c, BYTES("k"), BYTES("v"), -(START_MS + 500000), 0) > 0);
    CHECK_EQ(expiry(&b, "k"), START_MS + 500000);
    CHECK(kv_expire(b.c, BYTES("k"), -(START_MS + 600000), 0) > 0);
    CHECK_EQ(expiry(&b, "k"), START_MS + 600000);
    CHECK(kv_put(b.c, BYTES("past"), BYTES("v"), -1, 0) > 0);
    CHECK_EQ(expiry(&b, "past"), -1);
    end(&b);
}

/* --- scans --- */

TEST(rows_are_listed_in_order_both_ways_within_bounds) {
    bench b;
    begin(&b);
    put(&b, "b", "a key");
    for (int round = 0; round < 3; round++) {
        if (round == 0) {
            static const char *const names[] = {"d", "a", "", "c", "b", "a\x01", "dead"};
            for (int i = 0; i < 7; i++) row_put(&b, "t", names[i], "v");
            for (int i = 0; i < 7; i++) row_put(&b, "s", names[i], "below");
            for (int i = 0; i < 7; i++) row_put(&b, "u", names[i], "above");
            row_del(&b, "t", "dead");
        }
        if (round == 1) checkpoint(&b);
        if (round == 2) check_reopened(&b, true);
        for (uint64_t limit = 1; limit < 9; limit++) {
            kv_range range = rows_of("t", limit);
            CHECK_TEXT(scan(&b, range), "=v a=v a\x01=v b=v c=v d=v ");
            range.reverse = 1;
            CHECK_TEXT(scan(&b, range), "d=v c=v b=v a\x01=v a=v =v ");
            range.start = (const uint8_t *)"a\x01";
            range.start_size = 2;
            CHECK_TEXT(scan(&b, range), "d=v c=v b=v a\x01=v ");
            range.stop = (const uint8_t *)"c";
            range.stop_size = 1;
            CHECK_TEXT(scan(&b, range), "b=v a\x01=v ");
            range.reverse = 0;
            CHECK_TEXT(scan(&b, range), "a\x01=v b=v ");
            range.start_size = 0;
            CHECK_TEXT(scan(&b, range), "=v a=v a\x01=v b=v ");
            range.stop_size = 0;
            CHECK_TEXT(scan(&b, range), "");
            range = rows_of("t", limit);
            range.with_values = 0;
            CHECK_TEXT(scan(&b, range), " a a\x01 b c d ");
        }
        CHECK_TEXT(tables(&b), "s t u ");
        CHECK_TEXT(scan(&b, (kv_range){.what = KV_SCAN_TABLES, .count_max = 2, .reverse = 1}), "u t s ");
        CHECK_TEXT(scan(&b, (kv_range){.what = KV_SCAN_TABLES, .count_max = 2, .with_values = 1}), "s= t= u= ");
        CHECK_TEXT(keys(&b), "b=a key ");
    }
    CHECK_TEXT(rows(&b, "none"), "-");
    end(&b);
}

TEST(the_longest_rows_and_keys_are_rows_and_keys) {
    bench b;
    static uint8_t name[KV_KEY_SIZE_MAX], other[KV_KEY_SIZE_MAX];
    memset(name, 'r', sizeof name);
    memset(other, 'r', sizeof other);
    other[sizeof other - 1] = 's';
    begin_with(&b, (kv_options){.sync = KV_SYNC_BATCH, .segment_size_min = 1 << 20, .segment_size_max = 1 << 20});
    CHECK(kv_row_put(b.c, name, sizeof name, name, sizeof name, BYTES("1"), 0, 0) > 0);
    CHECK(kv_row_put(b.c, name, sizeof name, other, sizeof other, BYTES("2"), 0, 0) > 0);
    for (int round = 0; round < 3; round++) {
        kv_range range = {.what = KV_SCAN_ROWS, .table = name, .table_size = sizeof name, .count_max = 1};
        kv_page page;
        CHECK_EQ(kv_scan(b.c, &range, &page), 2 * sizeof name);
        static uint8_t bound[KV_KEY_SIZE_MAX + 1];
        memcpy(bound, answer_bytes(b.c, 2 * sizeof name) + page.size, sizeof name);
        range.start = bound;
        range.start_size = sizeof bound;
        CHECK(kv_scan(b.c, &range, &page) > 0);
        CHECK_EQ(page.count, 1);
        kv_change_page changed;
        CHECK_EQ(kv_changes(b.c, name, sizeof name, 0, 5, &changed), 2 * sizeof name + 2);
        CHECK_EQ(kv_row_get(b.c, name, sizeof name, name, sizeof name), 1);
        if (round == 0) checkpoint(&b);
        if (round == 1) check_reopened(&b, true);
    }
    end(&b);
}

/* --- the change feed --- */

TEST(changes_tell_each_row_once_as_it_is) {
    bench b;
    kv_change_page page;
    begin(&b);
    CHECK_TEXT(changes(&b, "t", 0, 10, &page), "");
    CHECK(page.complete && page.version == 0 && !page.more);
    changes(&b, "t", 5, 10, &page);
    CHECK(!page.complete);
    uint64_t v1 = (uint64_t)row_put(&b, "t", "a", "1"), v2 = (uint64_t)row_put(&b, "t", "b", "2");
    uint64_t v3 = (uint64_t)row_put(&b, "t", "a", "one");
    put(&b, "k", "v");
    for (int round = 0; round < 4; round++) {
        for (uint64_t limit = 1; limit < 4; limit++) {
            bool pages = limit == 1;
            CHECK_TEXT(changes(&b, "t", 0, limit, &page), pages ? "b=2 | a=one " : "b=2 a=one ");
            CHECK(page.complete);
            CHECK_EQ(page.version, v3);
            CHECK_TEXT(changes(&b, "t", v1, limit, &page), pages ? "b=2 | a=one " : "b=2 a=one ");
            CHECK(page.complete);
            CHECK_TEXT(changes(&b, "t", v2, limit, &page), "a=one ");
            CHECK_TEXT(changes(&b, "t", v3, limit, &page), "");
            CHECK(page.version == v3 && page.complete && !page.more);
        }
        if (round == 0) checkpoint(&b);
        if (round == 1) check_reopened(&b, true);
        if (round == 2) check_reopened(&b, false);
    }
    uint64_t v4 = (uint64_t)row_del(&b, "t", "b");
    CHECK_TEXT(changes(&b, "t", v3, 5, &page), "b- ");
    CHECK_EQ(page.version, v4);
    CHECK_TEXT(changes(&b, "t", 0, 5, &page), "a=one b- ");
    wait_ms(&b, 1);
    row_put_ttl(&b, "t", "c", "3", 10);
    wait_ms(&b, 10);
    CHECK_TEXT(changes(&b, "t", v4, 5, &page), "c- ");
    CHECK_EQ(kv_changes(b.c, BYTES("t"), UINT64_MAX, 5, &page), KV_EUSAGE);
    end(&b);
}

/* What a reader of the feed would pass over does not wait in the runs. */
TEST(a_run_lists_the_newest_change_of_a_row_alone) {
    bench b;
    begin(&b);
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 20; i++) row_put(&b, "t", "a", "1");
        for (int i = 0; i < 20; i++) row_put(&b, "t", "b", "1");
        row_del(&b, "t", "b");
        checkpoint(&b);
        CHECK(stats_of(&b).run_name_count <= 4 + 2 * stats_of(&b).run_count); /* t, a, two changes; and what is in two runs */
    }
    end(&b);
}

TEST(pages_of_changes_never_part_a_version) {
    bench b;
    kv_change_page page;
    kv_operation ops[50];
    static char names[50][8];
    begin(&b);
    row_put(&b, "t", "first", "1");
    for (int i = 0; i < 50; i++) {
        snprintf(names[i], sizeof names[i], "%02d", i);
        ops[i] = op_of("t", names[i], "v");
    }
    kv_result version = kv_batch(b.c, ops, 50, NULL, 0, 0);
    row_put(&b, "t", "last", "1");
    for (uint64_t limit = 1; limit < 60; limit += 7) {
        CHECK(kv_changes(b.c, BYTES("t"), 1, limit, &page) > 0);
        CHECK_EQ(page.page.count, limit <= 50 ? 50 : 51);
        CHECK_EQ(page.more, limit <= 50);
        if (limit <= 50) CHECK_EQ(page.version, version);
    }
    CHECK(kv_changes(b.c, BYTES("t"), 0, 1, &page) > 0);
    CHECK_EQ(page.page.count, 1);
    end(&b);
}

TEST(a_trim_raises_the_floor_and_who_is_below_has_missed_something) {
    bench b;
    kv_change_page page;
    begin(&b);
    CHECK_EQ(kv_table_trim(b.c, BYTES("t"), 5, 0), kv_ending(KV_ABSENT));
    put(&b, "k", "v");
    uint64_t v1 = (uint64_t)row_put(&b, "t", "a", "1"), v2 = (uint64_t)row_put(&b, "t", "b", "2");
    uint64_t v3 = (uint64_t)row_del(&b, "t", "a");
    CHECK_EQ(kv_table_trim(b.c, BYTES("t"), v2, 0), v2);
    CHECK_EQ(kv_table_trim(b.c, BYTES("t"), v1, 0), v2);
    for (int round = 0; round < 3; round++) {
        changes(&b, "t", v1, 5, &page);
        CHECK(!page.complete);
        CHECK_EQ(page.floor, v2);
        CHECK_TEXT(changes(&b, "t", v2, 5, &page), "a- ");
        CHECK(page.complete);
        changes(&b, "t", 0, 5, &page);
        CHECK(page.complete);
        if (round == 0) checkpoint(&b);
        if (round < 2) check_reopened(&b, round == 0);
    }
    CHECK_EQ(kv_version(b.c, BYTES("t")), v3);
    CHECK_EQ(kv_table_trim(b.c, BYTES("t"), v3 + 100, 0), v3);
    changes(&b, "t", v2, 5, &page);
    CHECK(!page.complete);
    drop(&b, "t");
    uint64_t v5 = (uint64_t)row_put(&b, "t", "z", "1");
    CHECK_TEXT(changes(&b, "t", v3, 5, &page), "z=1 "); /* what was seen of an earlier table is to be unlearned */
    CHECK(!page.complete && page.version == v5);
    changes(&b, "t", 0, 5, &page);
    CHECK(page.complete);
    end(&b);
}

/* --- snapshots --- */

static uint64_t idle_size; /* what the table of old records takes when it is empty */

static kv_snapshot *snapshot(bench *b) {
    if (stats_of(b).snapshot_count == 0) idle_size = stats_of(b).snapshot_size;
    kv_snapshot *one = NULL;
    KV_ASSERT(kv_snapshot_open(b->store, &one) == KV_OK);
    return one;
}

/* What a snapshot of fill() shows, whatever came afterwards. */
static void check_frozen(bench *b, kv_snapshot *s, uint64_t newest) {
    kv_change_page page;
    kv_caller_bind(b->c, s);
    CHECK_TEXT(keys(b), "gone=1 k=v ");
    CHECK_TEXT(scan(b, (kv_range){.count_max = 1, .with_values = 1, .reverse = 1}), "k=v gone=1 ");
    CHECK_TEXT(tables(b), "t u ");
    CHECK_TEXT(rows(b, "t"), "a=1 b=2 c=3 ");
    kv_range backwards = rows_of("t", 2);
    backwards.reverse = 1;
    CHECK_TEXT(scan(b, backwards), "c=3 b=2 a=1 ");
    CHECK_TEXT(rows(b, "u"), "x=1 ");
    CHECK_TEXT(get(b, "k"), "v");
    CHECK_TEXT(get(b, "gone"), "1");
    CHECK_TEXT(get(b, "later"), "-");
    CHECK_TEXT(row_get(b, "t", "a"), "1");
    CHECK_TEXT(row_get(b, "t", "new"), "-");
    CHECK_TEXT(row_get(b, "w", "a"), "-");
    CHECK_EQ(look(b, "t"), 3);
    CHECK_EQ(version_of(b), newest);
    CHECK_EQ(kv_version(b->c, BYTES("t")), newest);
    CHECK_TEXT(changes(b, "t", 0, 2, &page), "a=1 b=2 | d- c=3 ");
    CHECK(page.complete);
    CHECK_EQ(page.version, newest);
    kv_caller_bind(b->c, NULL);
}

static uint64_t fill(bench *b) {
    put(b, "k", "v");
    put(b, "gone", "1");
    row_put(b, "t", "d", "4");
    row_put(b, "t", "a", "1");
    row_put(b, "t", "b", "2");
    row_del(b, "t", "d");
    kv_result newest = row_put(b, "t", "c", "3");
    row_put(b, "u", "x", "1");
    kv_expire(b->c, BYTES("u"), 5000, 0);
    return (uint64_t)newest;
}

TEST(a_snapshot_is_frozen) {
    bench b;
    begin(&b);
    wait_ms(&b, 1);
    uint64_t newest = fill(&b);
    checkpoint(&b);
    kv_snapshot *s = snapshot(&b);
    CHECK_EQ(kv_snapshot_version(s), stats_of(&b).sequence);
    check_frozen(&b, s, newest);
    put(&b, "k", "w");
    put(&b, "later", "1");
    row_put(&b, "t", "a", "one");
    row_put(&b, "t", "new", "1");
    row_put(&b, "w", "a", "1");
    check_frozen(&b, s, newest);
    del(&b, "gone");
    row_del(&b, "t", "b");
    kv_table_trim(b.c, BYTES("t"), newest + 100, 0);
    check_frozen(&b, s, newest);
    wait_ms(&b, 10000);
    CHECK_TEXT(rows(&b, "u"), "-");
    check_frozen(&b, s, newest);
    kv_snapshot *second = snapshot(&b);
    drop(&b, "t");
    drop(&b, "u");
    check_frozen(&b, s, newest);
    for (int i = 0; i < 5; i++) { /* until the runs are built of nothing that is alive */
        char name[8];
        snprintf(name, sizeof name, "f%d", i);
        put(&b, name, "fill");
        row_put(&b, "w", name, "fill");
        checkpoint(&b);
        del(&b, name);
        del(&b, "k");
        row_del(&b, "w", name);
        checkpoint(&b);
        check_frozen(&b, s, newest);
    }
    put(&b, "t", "a value");
    check_frozen(&b, s, newest);
    put(&b, "gone", "again");
    row_put(&b, "u", "x", "again");
    check_frozen(&b, s, newest);
    kv_caller_bind(b.c, second);
    CHECK_TEXT(rows(&b, "t"), "a=one c=3 new=1 ");
    CHECK_TEXT(keys(&b), "k=w later=1 ");
    CHECK_TEXT(tables(&b), "t w ");
    kv_caller_bind(b.c, NULL);
    CHECK_EQ(stats_of(&b).snapshot_count, 2);
    kv_snapshot_close(s);
    kv_caller_bind(b.c, second);
    CHECK_TEXT(rows(&b, "t"), "a=one c=3 new=1 ");
    kv_caller_bind(b.c, NULL);
    kv_snapshot_close(second);
    CHECK_EQ(stats_of(&b).snapshot_count, 0);
    CHECK_EQ(stats_of(&b).snapshot_size, idle_size);
    CHECK_TEXT(get(&b, "t"), "a value");
    end(&b);
}

/* Every write of a name by every kind of call, with a snapshot before each: each shows what came before it. */
TEST(snapshots_of_every_moment_show_that_moment) {
    enum { COUNT = 60 };
    bench b;
    kv_snapshot *all[COUNT];
    static char shown[COUNT][TEXT_SIZE];
    uint64_t random = 7;
    begin(&b);
    for (int i = 0; i < COUNT; i++) {
        char row[4] = {(char)('a' + (random >> 33) % 5), 0}, value[8], table[4] = {(char)('t' + (random >> 40) % 2), 0};
        random = random * 6364136223846793005ULL + 1442695040888963407ULL;
        snprintf(value, sizeof value, "%d", i);
        kv_operation ops[] = {op_of(table, row, value), op_of(NULL, row, value), op_of("t", "z", NULL)};
        switch ((random >> 45) % 8) {
        case 0: row_del(&b, table, row); break;
        case 1: drop(&b, table); break;
        case 2: kv_batch(b.c, ops, 3, NULL, 0, 0); break;
        case 3: kv_row_append(b.c, BYTES(table), BYTES(value), 0, 0); break;
        case 4: del(&b, row); break;
        case 5: checkpoint(&b); break;
        default: row_put(&b, table, row, value); break;
        }
        all[i] = snapshot(&b);
        strcat(strcpy(shown[i], keys(&b)), rows(&b, "t"));
        strcat(shown[i], rows(&b, "u"));
    }
    for (int i = 0; i < COUNT; i++) {
        static char now[TEXT_SIZE];
        int at = i * 37 % COUNT;
        kv_caller_bind(b.c, all[at]);
        strcat(strcpy(now, keys(&b)), rows(&b, "t"));
        strcat(now, rows(&b, "u"));
        CHECK_TEXT(now, shown[at]);
        kv_caller_bind(b.c, NULL);
        kv_snapshot_close(all[at]);
    }
    CHECK_EQ(stats_of(&b).snapshot_size, idle_size);
    end(&b);
}

TEST(beyond_the_budget_the_oldest_snapshot_ends_and_the_others_go_on) {
    enum { COUNT = 100, BETWEEN = 80, SIZE = 1000, BUDGET = 140000 }; /* the table of old records takes 45,000 */
    bench b;
    char name[8];
    static uint8_t value[SIZE];
    begin_with(&b, (kv_options){.sync = KV_SYNC_BATCH, .segment_size_min = 1 << 18, .segment_size_max = 1 << 18,
                                .snapshot_size_max = BUDGET});
    for (int i = 0; i < COUNT; i++) {
        snprintf(name, sizeof name, "%02d", i);
        CHECK(kv_put(b.c, BYTES(name), value, SIZE, 0, 0) > 0);
    }
    kv_snapshot *first = snapshot(&b), *second = NULL;
    for (int i = 0; i < COUNT; i++) { /* most of it the first alone can see */
        if (i == BETWEEN) second = snapshot(&b);
        if (i == BETWEEN) CHECK_EQ(stats_of(&b).snapshot_count, 2);
        snprintf(name, sizeof name, "%02d", i);
        put(&b, name, "small");
    }
    CHECK_EQ(stats_of(&b).snapshot_count, 1);
    CHECK(stats_of(&b).snapshot_size <= BUDGET);
    kv_caller_bind(b.c, second);
    CHECK_EQ(kv_get(b.c, BYTES("99")), SIZE);
    CHECK_TEXT(get(&b, "00"), "small");
    kv_caller_bind(b.c, first);
    CHECK_EQ(kv_get(b.c, BYTES("00")), KV_ESNAPSHOT);
    CHECK_EQ(kv_get(b.c, BYTES("never was")), KV_ESNAPSHOT);
    CHECK_EQ(kv_version(b.c, BYTES("00")), KV_ESNAPSHOT);
    CHECK_EQ(kv_row_get(b.c, BYTES("t"), BYTES("r")), KV_ESNAPSHOT);
    CHECK_TEXT(keys(&b), kv_status_name(KV_ESNAPSHOT));
    kv_caller_bind(b.c, NULL);
    CHECK_TEXT(get(&b, "99"), "small");
    kv_snapshot_close(first);
    kv_snapshot_close(second);
    CHECK_EQ(stats_of(&b).snapshot_size, idle_size);
    end(&b);
}

/* A snapshot that was ended is asked by no run any more whether it wants a name: then a page that meets none of those
 * that are left must not pass for an empty one. */
TEST(an_ended_snapshot_lists_nothing_not_even_nothing) {
    bench b;
    kv_change_page page;
    begin_with(&b, (kv_options){.sync = KV_SYNC_BATCH, .segment_size_min = 1 << 18, .segment_size_max = 1 << 18,
                                .snapshot_size_max = 1});
    put(&b, "a", "1");
    put(&b, "z", "1");
    row_put(&b, "t", "r", "1");
    kv_snapshot *s = snapshot(&b);
    del(&b, "a");
    row_del(&b, "t", "r");
    checkpoint(&b);
    CHECK_EQ(stats_of(&b).snapshot_count, 0);
    kv_caller_bind(b.c, s);
    kv_range range = {.count_max = 5, .stop = (const uint8_t *)"b", .stop_size = 1};
    CHECK_TEXT(scan(&b, range), kv_status_name(KV_ESNAPSHOT));
    CHECK_TEXT(scan(&b, (kv_range){.what = KV_SCAN_KEYS, .count_max = 5, .start = (const uint8_t *)"zz", .start_size = 2}),
               kv_status_name(KV_ESNAPSHOT));
    CHECK_TEXT(rows(&b, "t"), kv_status_name(KV_ESNAPSHOT));
    CHECK_TEXT(changes(&b, "t", 0, 1, &page), kv_status_name(KV_ESNAPSHOT));
    kv_caller_bind(b.c, NULL);
    kv_snapshot_close(s);
    end(&b);
}

static uint64_t file_count(bench *b, const char *directory) {
    kv_io *io = kv_sim_io(b->sim);
    char **names = NULL;
    size_t count = 0;
    if (io->list(io, directory, &names, &count) == KV_OK) free(names);
    io->free(io);
    return count;
}

static void settle(bench *b) { /* what is retired and durable goes with a checkpoint */
    put(b, "settle", "1");
    CHECK_EQ(kv_sync(b->c), 0);
    checkpoint(b);
}

TEST(a_snapshot_keeps_the_value_files_it_shows_and_no_others) {
    bench b;
    static char big[BIG_SIZE + 1], other[BIG_SIZE + 1];
    memset(big, 'x', BIG_SIZE);
    memset(other, 'y', BIG_SIZE);
    begin(&b);
    row_put(&b, "t", "a", big);
    put(&b, "k", big);
    kv_snapshot *s = snapshot(&b);
    kv_expire(b.c, BYTES("k"), 100000, 0);
    uint64_t held = stats_of(&b).snapshot_size;
    row_put(&b, "t", "a", other);
    CHECK(stats_of(&b).snapshot_size >= held + BIG_SIZE); /* files count as what they hold on to */
    put(&b, "k", "small");
    for (int i = 0; i < 10; i++) row_put(&b, "t", "a", other); /* nobody sees those in between */
    settle(&b);
    CHECK_EQ(file_count(&b, "values"), 3);
    kv_caller_bind(b.c, s);
    CHECK_TEXT(row_get(&b, "t", "a"), big);
    CHECK_TEXT(get(&b, "k"), big);
    kv_caller_bind(b.c, NULL);
    kv_snapshot_close(s);
    settle(&b);
    CHECK_EQ(file_count(&b, "values"), 1);
    end(&b);
}

/* --- threads --- */

enum { THREAD_COUNT = 4, ROW_COUNT = 16 };
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
enum { ROUNDS = 300 };
#else
enum { ROUNDS = 4000 };
#endif

static char directory[64];

static int remove_one(const char *path, const struct stat *info, int type, struct FTW *where) {
    (void)info;
    (void)type;
    (void)where;
    return remove(path);
}

typedef struct worker {
    kv_store *store;
    pthread_t thread;
    int number;
    uint64_t failures;
    _Atomic bool *stop;
} worker;

static kv_store *open_directory(void) {
    kv_io *io;
    kv_fault fault;
    kv_store *store = NULL;
    kv_options options = {.sync = KV_SYNC_BATCH, .background = 1};
    snprintf(directory, sizeof directory, "kvtest-XXXXXX");
    KV_ASSERT(mkdtemp(directory) != NULL && kv_io_posix_new(directory, true, &io) == KV_OK);
    KV_ASSERT(kv_store_open(io, &options, NULL, 0, &fault, &store) == KV_OK);
    return store;
}

static void close_directory(kv_store *store) {
    kv_fault fault;
    CHECK_EQ(kv_store_close(store, &fault), KV_OK);
    kv_store_free(store);
    nftw(directory, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

/* All rows of a table and a key get one number, in a batch; now and then the table goes. */
static void *write_batches(void *argument) {
    worker *w = argument;
    kv_caller *c;
    kv_operation ops[ROW_COUNT + 1];
    uint8_t names[ROW_COUNT];
    uint32_t number;
    KV_ASSERT(kv_caller_new(w->store, &c) == KV_OK);
    for (uint32_t i = 0; i < ROUNDS; i++) {
        number = (uint32_t)w->number << 24 | i;
        for (uint8_t r = 0; r < ROW_COUNT; r++) {
            names[r] = r;
            ops[r] = (kv_operation){.table = (const uint8_t *)"t", .table_size = 1, .key = &names[r], .key_size = 1,
                                    .value = (const uint8_t *)&number, .value_size = 4};
        }
        ops[ROW_COUNT] = (kv_operation){.key = (const uint8_t *)"k", .key_size = 1, .value = (const uint8_t *)&number, .value_size = 4};
        w->failures += kv_batch(c, ops, ROW_COUNT + 1, NULL, 0, 0) <= 0;
        if (i % 64 == 63) kv_table_drop(c, (const uint8_t *)"t", 1, 0);
    }
    kv_caller_free(c);
    return NULL;
}

/* All rows and the key show one number. */
static uint64_t uneven(kv_caller *c) {
    uint32_t number, value;
    kv_range range = {.what = KV_SCAN_ROWS, .table = (const uint8_t *)"t", .table_size = 1, .count_max = 7, .with_values = 1};
    kv_page page = {.more = 1};
    uint8_t bound[2] = {0};
    uint64_t count = 0, wrong = 0;
    kv_result had = kv_get(c, (const uint8_t *)"k", 1);
    if (had != 4) return had != kv_ending(KV_ABSENT);
    memcpy(&number, kv_caller_answer(c)->small, 4);
    kv_result row_count = kv_table_look(c, (const uint8_t *)"t", 1);
    while (page.more) {
        kv_result size = kv_scan(c, &range, &page);
        if (size < 0) return size != kv_ending(KV_ABSENT) || row_count != kv_ending(KV_ABSENT);
        const uint8_t *bytes = answer_bytes(c, size);
        for (uint64_t i = 0; i < page.count; i++, count++) {
            memcpy(&value, bytes + i * 5 + 1, 4);
            wrong += value != number || bytes[i * 5] != count;
        }
        bound[0] = bytes[page.size];
        range.start = bound;
        range.start_size = 2;
    }
    return wrong + (count != ROW_COUNT) + (row_count != ROW_COUNT);
}

static void *read_snapshots(void *argument) {
    worker *w = argument;
    kv_caller *c;
    KV_ASSERT(kv_caller_new(w->store, &c) == KV_OK);
    while (!atomic_load(w->stop)) {
        kv_snapshot *s;
        if (kv_snapshot_open(w->store, &s) != KV_OK) abort();
        kv_caller_bind(c, s);
        w->failures += uneven(c);
        sched_yield();
        w->failures += uneven(c);
        kv_caller_bind(c, NULL);
        kv_snapshot_close(s);
    }
    kv_caller_free(c);
    return NULL;
}

/* Follows the feed: never less than a version, and in the end all of the newest. */
static void *follow_changes(void *argument) {
    worker *w = argument;
    kv_caller *c;
    uint64_t since = 0;
    KV_ASSERT(kv_caller_new(w->store, &c) == KV_OK);
    while (!atomic_load(w->stop)) {
        kv_change_page page;
        kv_result size = kv_changes(c, (const uint8_t *)"t", 1, since, 3, &page);
        w->failures += size < 0 || page.version < (page.page.count != 0 ? since : 0);
        /* Whoever overtakes a row takes it out of the page; what is not overtaken is whole. */
        if (page.page.count != 0 && page.page.count > ROW_COUNT) w->failures++;
        since = page.version;
    }
    kv_caller_free(c);
    return NULL;
}

static void *make_checkpoints(void *argument) {
    worker *w = argument;
    while (!atomic_load(w->stop)) {
        kv_checkpoint *k;
        if (kv_checkpoint_begin(w->store, &k) != KV_OK) continue;
        kv_status status;
        do status = kv_checkpoint_step(k);
        while (status == KV_MORE);
        w->failures += status != KV_EOF || kv_checkpoint_published(k) != KV_OK;
        kv_checkpoint_free(k);
    }
    return NULL;
}

TEST(snapshots_never_show_part_of_a_batch) {
    static void *(*const bodies[])(void *) = {write_batches, write_batches, read_snapshots, read_snapshots, follow_changes,
                                              make_checkpoints};
    enum { COUNT = sizeof bodies / sizeof *bodies, WRITERS = 2 };
    worker workers[COUNT];
    _Atomic bool stop = false;
    kv_store *store = open_directory();
    for (int i = 0; i < COUNT; i++) {
        workers[i] = (worker){.store = store, .number = i, .stop = &stop};
        KV_ASSERT(pthread_create(&workers[i].thread, NULL, bodies[i], &workers[i]) == 0);
    }
    for (int i = 0; i < COUNT; i++) {
        if (i == WRITERS) atomic_store(&stop, true);
        pthread_join(workers[i].thread, NULL);
        CHECK_EQ(workers[i].failures, 0);
    }
    kv_stats stats;
    CHECK_EQ(kv_store_measure(store, &stats), KV_OK);
    CHECK_EQ(stats.snapshot_size, idle_size);
    close_directory(store);
}

/* One row, written without end by one thread; the others look at it through a snapshot as it is replaced. */
static void *write_one(void *argument) {
    worker *w = argument;
    kv_caller *c;
    uint64_t number = 0;
    KV_ASSERT(kv_caller_new(w->store, &c) == KV_OK);
    while (!atomic_load(w->stop)) {
        number++;
        w->failures += kv_row_put(c, (const uint8_t *)"t", 1, (const uint8_t *)"r", 1, (const uint8_t *)&number, 8, 0, 0) <= 0;
    }
    kv_caller_free(c);
    return NULL;
}

enum { NEWS_COUNT = 5 * ROUNDS };

/* Rows that nobody touches again: each is news exactly once. */
static void *write_news(void *argument) {
    worker *w = argument;
    kv_caller *c;
    kv_operation ops[ROW_COUNT];
    KV_ASSERT(kv_caller_new(w->store, &c) == KV_OK);
    for (int i = 0; i < NEWS_COUNT; i++) {
        for (int r = 0; r < ROW_COUNT; r++)
            ops[r] = (kv_operation){.table = (const uint8_t *)"news", .table_size = 4, .value = (const uint8_t *)"n", .value_size = 1};
        w->failures += kv_batch(c, ops, ROW_COUNT, NULL, 0, 0) <= 0;
    }
    kv_caller_free(c);
    return NULL;
}

static void *read_news(void *argument) {
    worker *w = argument;
    kv_caller *c;
    kv_change_page page;
    uint64_t since = 0, count = 0, last = 0;
    KV_ASSERT(kv_caller_new(w->store, &c) == KV_OK);
    do {
        last = atomic_load(w->stop);
        do {
            w->failures += kv_changes(c, (const uint8_t *)"news", 4, since, 100, &page) < 0 || page.page.count % ROW_COUNT != 0;
            count += page.page.count;
            since = page.version;
        } while (page.more);
    } while (!last);
    w->failures += count != (uint64_t)NEWS_COUNT * ROW_COUNT;
    kv_caller_free(c);
    return NULL;
}

TEST(who_follows_the_changes_misses_nothing) {
    worker workers[3];
    _Atomic bool stop = false;
    kv_store *store = open_directory();
    for (int i = 0; i < 3; i++) {
        workers[i] = (worker){.store = store, .number = i, .stop = &stop};
        KV_ASSERT(pthread_create(&workers[i].thread, NULL, i == 2 ? write_news : read_news, &workers[i]) == 0);
    }
    for (int i = 2; i >= 0; i--) { /* the writer, which started when the others were there */
        pthread_join(workers[i].thread, NULL);
        atomic_store(&stop, true);
        CHECK_EQ(workers[i].failures, 0);
    }
    close_directory(store);
}

static void *append_rows(void *argument) {
    worker *w = argument;
    kv_caller *c;
    uint64_t last = 0;
    KV_ASSERT(kv_caller_new(w->store, &c) == KV_OK);
    for (int i = 0; i < ROUNDS; i++) {
        w->failures += kv_row_append(c, (const uint8_t *)"log", 3, (const uint8_t *)"line", 4, 0, 0) <= 0;
        w->failures += (uint64_t)kv_caller_answer(c)->number <= last;
        last = (uint64_t)kv_caller_answer(c)->number;
    }
    kv_caller_free(c);
    return NULL;
}

static void *read_one(void *argument) {
    worker *w = argument;
    kv_caller *c;
    KV_ASSERT(kv_caller_new(w->store, &c) == KV_OK);
    for (int i = 0; i < 5 * ROUNDS; i++) {
        kv_snapshot *s;
        uint64_t first = 0;
        KV_ASSERT(kv_snapshot_open(w->store, &s) == KV_OK);
        kv_caller_bind(c, s);
        for (int look = 0; look < 20; look++) {
            kv_result size = kv_row_get(c, (const uint8_t *)"t", 1, (const uint8_t *)"r", 1);
            uint64_t number = size == 8 ? kv_load64(kv_caller_answer(c)->small) : 0;
            if (look == 0) first = number;
            w->failures += number == 0 || number != first;
        }
        kv_caller_bind(c, NULL);
        kv_snapshot_close(s);
    }
    kv_caller_free(c);
    return NULL;
}

TEST(a_snapshot_never_misses_what_is_just_being_replaced) {
    worker workers[3];
    _Atomic bool stop = false;
    kv_store *store = open_directory();
    kv_caller *c;
    KV_ASSERT(kv_caller_new(store, &c) == KV_OK);
    CHECK(kv_row_put(c, (const uint8_t *)"t", 1, (const uint8_t *)"r", 1, (const uint8_t *)"12345678", 8, 0, 0) > 0);
    kv_caller_free(c);
    for (int i = 0; i < 3; i++) {
        workers[i] = (worker){.store = store, .number = i, .stop = &stop};
        KV_ASSERT(pthread_create(&workers[i].thread, NULL, i == 0 ? write_one : read_one, &workers[i]) == 0);
    }
    for (int i = 2; i >= 0; i--) {
        if (i == 0) atomic_store(&stop, true);
        pthread_join(workers[i].thread, NULL);
        CHECK_EQ(workers[i].failures, 0);
    }
    close_directory(store);
}

TEST(appends_of_all_threads_are_rows_of_their_own) {
    worker workers[THREAD_COUNT];
    kv_store *store = open_directory();
    kv_caller *c;
    for (int i = 0; i < THREAD_COUNT; i++) {
        workers[i] = (worker){.store = store, .number = i};
        KV_ASSERT(pthread_create(&workers[i].thread, NULL, append_rows, &workers[i]) == 0);
    }
    for (int i = 0; i < THREAD_COUNT; i++) {
        pthread_join(workers[i].thread, NULL);
        CHECK_EQ(workers[i].failures, 0);
    }
    KV_ASSERT(kv_caller_new(store, &c) == KV_OK);
    CHECK_EQ(kv_table_look(c, (const uint8_t *)"log", 3), THREAD_COUNT * ROUNDS);
    kv_caller_free(c);
    close_directory(store);
}

int main(void) {
    RUN(a_row_is_what_was_put_and_a_table_is_there_with_its_first_row);
    RUN(a_deleted_row_is_gone_and_comes_back_by_a_put);
    RUN(cas_and_incr_of_rows_are_those_of_keys);
    RUN(row_ids_ascend_and_never_come_again);
    RUN(row_ids_of_a_batch_are_never_given_again);
    RUN(row_ids_of_a_batch_are_not_given_again_by_the_next_table);
    RUN(an_append_never_meets_a_row_of_its_own_batch);
    RUN(big_values_in_rows_are_files_that_go_with_their_row);
    RUN(keys_and_tables_share_one_namespace);
    RUN(a_dropped_table_is_gone_and_the_next_of_its_name_is_another);
    RUN(put_replaces_a_table_and_delete_drops_it);
    RUN(rows_and_tables_expire);
    RUN(a_tables_version_is_that_of_its_newest_write);
    RUN(counters_are_sums_over_what_names_point_at);
    RUN(a_batch_writes_keys_and_rows_of_old_and_new_tables_under_one_version);
    RUN(a_batch_refuses_a_name_twice_and_a_key_with_rows_under_it);
    RUN(a_batch_that_meets_what_expired_still_parts_its_new_tables);
    RUN(expectations_over_rows_hold_or_nothing_is_written);
    RUN(a_batch_gives_tables_an_expiry_with_rows_and_without);
    RUN(a_table_is_expected_as_a_whole);
    RUN(an_expiry_may_be_a_moment);
    RUN(rows_are_listed_in_order_both_ways_within_bounds);
    RUN(the_longest_rows_and_keys_are_rows_and_keys);
    RUN(changes_tell_each_row_once_as_it_is);
    RUN(a_run_lists_the_newest_change_of_a_row_alone);
    RUN(pages_of_changes_never_part_a_version);
    RUN(a_trim_raises_the_floor_and_who_is_below_has_missed_something);
    RUN(a_snapshot_is_frozen);
    RUN(snapshots_of_every_moment_show_that_moment);
    RUN(beyond_the_budget_the_oldest_snapshot_ends_and_the_others_go_on);
    RUN(an_ended_snapshot_lists_nothing_not_even_nothing);
    RUN(a_snapshot_keeps_the_value_files_it_shows_and_no_others);
    RUN(snapshots_never_show_part_of_a_batch);
    RUN(a_snapshot_never_misses_what_is_just_being_replaced);
    RUN(who_follows_the_changes_misses_nothing);
    RUN(appends_of_all_threads_are_rows_of_their_own);
    return check_report();
}
