/* twin.h -- what a store should hold, and what it is seen to hold.
 *
 * The twin of a store is an array of keys and an array of tables with a few rows each, some under names of their own,
 * some under ids that the store gives them. What is read of a store is put beside it: single reads, scans in both
 * directions, the change feed of each table, and counters, all of which the twin adds up by itself. */
#ifndef KV_TWIN_H
#define KV_TWIN_H

/* No test uses all of what is shared here. */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"

#include "../src/store_internal.h"
#include "check.h"
#include "kv/io_sim.h"

enum {
    KEY_COUNT = 20,
    COUNTER_COUNT = 3, /* keys 0 to 2 hold numbers, the others bytes */
    ITEM_COUNT_MAX = 8,
    VALUE_SIZE_MAX = 3000,
    INLINE_SIZE_MAX = 512,
    KEY_TEXT_SIZE = 24,
    SEGMENT_NAME_SIZE = 32,
    TABLE_COUNT = 3,
    NAMED_COUNT = 3, /* rows that a table may have by name; the others get their ids */
    ROW_COUNT = 6,
    ROW_TEXT_SIZE = 24,
};

enum { TABLE_OPTION_SIZE = 24 }; /* KV_HAS_TABLE */
enum { NEVER = 0, DELETED = 1, THERE = 2 };

typedef struct twin_key {
    int32_t what;
    uint32_t size;
    uint64_t version;
    int64_t expires_ms;
    uint64_t digest; /* of the value */
    uint64_t at;     /* the value, in the history's pool */
} twin_key;

typedef struct twin_table {
    int32_t what;     /* of its key; DELETED: dropped */
    uint64_t version; /* of the newest write, or the drop */
    int64_t expires_ms;
    uint64_t id, next_row, floor; /* floor 0: never trimmed */
    twin_key rows[ROW_COUNT];     /* `at`: the id of a row that got one */
} twin_table;

/* What tables that are no more have left behind, until a sweep takes it. */
typedef struct twin_remains {
    uint64_t table_count, row_count, tombstone_count, live_size, big_count, big_size;
} twin_remains;

typedef struct twin {
    twin_key keys[KEY_COUNT];
    twin_table tables[TABLE_COUNT];
    twin_remains remains;
    int64_t clock_ms; /* the time that the flow remembers */
} twin;

static size_t key_text(int key, char text[KEY_TEXT_SIZE]) {
    return (size_t)snprintf(text, KEY_TEXT_SIZE, "key-%d%.*s", key, key % 7, "xxxxxxx");
}

static size_t table_text(int table, char text[ROW_TEXT_SIZE]) {
    return (size_t)snprintf(text, ROW_TEXT_SIZE, "table-%d", table);
}

/* By name: the first is empty. */
static size_t row_text(const twin_table *table, int row, char text[ROW_TEXT_SIZE]) {
    if (row < NAMED_COUNT) return row == 0 ? 0 : (size_t)snprintf(text, ROW_TEXT_SIZE, "row%.*s", row, "xxx");
    kv_store64((uint8_t *)text, __builtin_bswap64(table->rows[row].at));
    return KV_ROW_ID_SIZE;
}

static uint64_t record_live_size(const twin_key *k, size_t name_size, uint64_t options_size) {
    uint64_t value = k->what == DELETED ? 0 : k->size > INLINE_SIZE_MAX ? KV_BIG_SIZE : k->size;
    uint64_t expiry = k->what == THERE && k->expires_ms != 0 ? 8 : 0;
    return kv_align(KV_RECORD_HEAD_SIZE + options_size + expiry + name_size + value, KV_RECORD_ALIGN);
}

/* Rows and floor of a table, as counters have them; its key apart. */
static twin_remains rows_sum(const twin_table *table, int number) {
    char text[ROW_TEXT_SIZE];
    twin_remains sum = {0};
    if (table->floor != 0) sum.live_size = kv_align(KV_RECORD_HEAD_SIZE + TABLE_OPTION_SIZE + table_text(number, text) + 8, KV_RECORD_ALIGN);
    for (int i = 0; i < ROW_COUNT; i++) {
        const twin_key *row = &table->rows[i];
        if (row->what == NEVER) continue;
        bool there = row->what == THERE, big = there && row->size > INLINE_SIZE_MAX;
        sum.row_count += there;
        sum.tombstone_count += !there;
        sum.big_count += big;
        sum.big_size += big ? row->size : 0;
        sum.live_size += record_live_size(row, row_text(table, i, text), TABLE_OPTION_SIZE);
    }
    return sum;
}

/* Everything of tables, those that are no more included. */
static twin_remains tables_sum(const twin *t) {
    char text[ROW_TEXT_SIZE];
    twin_remains sum = t->remains;
    for (int i = 0; i < TABLE_COUNT; i++) {
        const twin_table *table = &t->tables[i];
        if (table->what == NEVER) continue;
        twin_remains rows = table->what == THERE ? rows_sum(table, i) : (twin_remains){0};
        uint64_t expiry = table->what == THERE && table->expires_ms != 0 ? 8 : 0;
        sum.live_size += kv_align(KV_RECORD_HEAD_SIZE + TABLE_OPTION_SIZE + expiry + table_text(i, text), KV_RECORD_ALIGN);
        sum.row_count += rows.row_count;
        sum.tombstone_count += rows.tombstone_count;
        sum.live_size += rows.live_size;
        sum.big_count += rows.big_count;
        sum.big_size += rows.big_size;
    }
    return sum;
}

/* The table's key names something else from now on: `table` is empty, its rows are remains. */
static void twin_retire(twin *t, int number) {
    twin_remains rows = rows_sum(&t->tables[number], number), *sum = &t->remains;
    sum->table_count++;
    sum->row_count += rows.row_count;
    sum->tombstone_count += rows.tombstone_count;
    sum->live_size += rows.live_size;
    sum->big_count += rows.big_count;
    sum->big_size += rows.big_size;
    t->tables[number] = (twin_table){.what = DELETED};
}

static uint64_t twin_live_size(const twin *t) {
    uint64_t sum = t->clock_ms != 0 ? KV_RECORD_HEAD_SIZE + 8 : 0; /* the newest CLOCK */
    char text[KEY_TEXT_SIZE];
    for (int i = 0; i < KEY_COUNT; i++)
        if (t->keys[i].what != NEVER) sum += record_live_size(&t->keys[i], key_text(i, text), 0);
    return sum + tables_sum(t).live_size;
}

/* --- keys, read back --- */

/* A table as it was read; a fold is a digest over names and values in their order. */
typedef struct observed_table {
    kv_result row_count, version; /* or how the read ended */
    int64_t expires_ms;
    uint64_t id, floor;
    kv_result size[NAMED_COUNT];
    uint64_t row_version[NAMED_COUNT];
    int64_t row_expires_ms[NAMED_COUNT];
    uint64_t digest[NAMED_COUNT];
    kv_result rows_end, changes_end; /* how the scan and the feed ended */
    uint64_t rows_fold, changes_fold;
} observed_table;

typedef struct observed {
    kv_result version[KEY_COUNT];
    kv_result size[KEY_COUNT]; /* or how the read ended */
    int64_t expires_ms[KEY_COUNT];
    uint64_t digest[KEY_COUNT];
    uint64_t at[KEY_COUNT];
    observed_table tables[TABLE_COUNT];
    uint64_t names_fold; /* of all tables */
    kv_stats stats;
    uint64_t value_file_count, index_file_count, run_file_count;
    const char *scan; /* how scans differ from the reads; NULL: not at all */
} observed;

static const uint8_t *answer_bytes(kv_caller *c, kv_result size) {
    const kv_answer *answer = kv_caller_answer(c);
    return size <= KV_SMALL_SIZE ? answer->small : answer->large;
}

static uint64_t count_files(kv_sim *sim, const char *path) {
    kv_io *io = kv_sim_io(sim);
    char **names = NULL;
    size_t count = 0;
    if (io->list(io, path, &names, &count) != KV_OK) count = 0;
    else free(names);
    io->free(io);
    return count;
}

typedef struct listed_key {
    char text[KEY_TEXT_SIZE];
    size_t size;
    int key;
} listed_key;

static int by_text(const void *left, const void *right) {
    const listed_key *a = left, *b = right;
    return kv_name_compare((const uint8_t *)a->text, a->size, (const uint8_t *)b->text, b->size);
}

/* The keys that reads found, in order. */
static int listed_keys(const observed *o, listed_key list[KEY_COUNT]) {
    int count = 0;
    for (int i = 0; i < KEY_COUNT; i++) {
        if (o->size[i] < 0) continue;
        list[count].size = key_text(i, list[count].text);
        list[count++].key = i;
    }
    qsort(list, (size_t)count, sizeof *list, by_text);
    return count;
}

/* Some entries of a scan against what is expected next; false: they differ. */
static bool page_fits(kv_caller *c, kv_result size, const kv_page *page, const observed *o, const listed_key *list, int count,
                      int *at, int step) {
    const uint8_t *bytes = answer_bytes(c, size);
    for (uint64_t i = 0; i < page->count; i++, *at += step) {
        uint32_t key_size = page->sizes[2 * i], value_size = page->sizes[2 * i + 1];
        if (*at < 0 || *at >= count || key_size != list[*at].size || memcmp(bytes, list[*at].text, key_size) != 0) return false;
        bytes += key_size;
        if (value_size != o->size[list[*at].key] || kv_xxh64(bytes, value_size, 0) != o->digest[list[*at].key]) return false;
        bytes += value_size;
    }
    return true;
}

static const char scan_refused[] = "a scan is refused: damage";

/* Scans of a few entries a page: exactly the keys that reads found, in order, with what they read. */
static const char *scan_differs(kv_caller *c, const observed *o, bool reverse) {
    listed_key list[KEY_COUNT];
    kv_range range = {.count_max = 3, .with_values = 1, .reverse = reverse};
    kv_page page;
    uint8_t bound[KEY_TEXT_SIZE + 1];
    int count = listed_keys(o, list), at = reverse ? count - 1 : 0;
    do {
        kv_result size = kv_scan(c, &range, &page);
        if (size == KV_ECORRUPT) return scan_refused;
        if (size < 0) return "a scan fails";
        if (!page_fits(c, size, &page, o, list, count, &at, reverse ? -1 : 1)) return "a scan lists something else";
        if (!page.more) continue;
        memcpy(bound, answer_bytes(c, size) + page.size, page.resume_size);
        bound[page.resume_size] = 0;
        if (reverse) range.stop = bound;
        else range.start = bound;
        if (reverse) range.stop_size = page.resume_size;
        else range.start_size = page.resume_size + 1;
    } while (page.more);
    return at == (reverse ? -1 : count) ? NULL : "a scan misses keys";
}

/* --- tables, read back --- */

static uint64_t fold(uint64_t before, const void *name, size_t size, uint64_t digest) {
    return (kv_xxh64(name, size, before) ^ digest) * 0x9E3779B185EBCA87ULL;
}

/* Entries of a scan of rows; how it ended. The single read of each has to agree. */
static kv_result observe_rows(kv_caller *c, const char *table, size_t table_size, bool reverse, uint64_t *entries, int *count,
                              observed *out) {
    kv_range range = {.what = KV_SCAN_ROWS, .table = (const uint8_t *)table, .table_size = table_size, .count_max = 4,
                      .with_values = 1, .reverse = reverse};
    static _Thread_local uint8_t copy[ROW_COUNT * (VALUE_SIZE_MAX + ROW_TEXT_SIZE)], bound[ROW_TEXT_SIZE + 1];
    kv_page page;
    *count = 0;
    do {
        kv_result size = kv_scan(c, &range, &page);
        if (size < 0) return size;
        KV_ASSERT((size_t)size <= sizeof copy);
        memcpy(copy, answer_bytes(c, size), (size_t)size);
        const uint8_t *bytes = copy;
        for (uint64_t i = 0; i < page.count; i++) {
            uint32_t name_size = page.sizes[2 * i], value_size = page.sizes[2 * i + 1];
            uint64_t digest = kv_xxh64(bytes + name_size, value_size, 0);
            if (*count == ROW_COUNT) return KV_EUSAGE;
            entries[(*count)++] = fold(0, bytes, name_size, digest);
            kv_result read = reverse ? (kv_result)value_size
                                     : kv_row_get(c, (const uint8_t *)table, table_size, bytes, name_size);
            if (!reverse && read == (kv_result)value_size && kv_xxh64(answer_bytes(c, read), (size_t)read, 0) != digest) read = -1;
            if (read != (kv_result)value_size && out->scan == NULL)
                out->scan = read == KV_ECORRUPT ? scan_refused : "a scan of rows has what a read has not";
            bytes += name_size + value_size;
        }
        if (!page.more) continue;
        memcpy(bound, copy + page.size, page.resume_size);
        bound[page.resume_size] = 0;
        if (reverse) range.stop = bound;
        else range.start = bound;
        if (reverse) range.stop_size = page.resume_size;
        else range.start_size = page.resume_size + 1;
    } while (page.more);
    return 0;
}

static uint64_t fold_all(const uint64_t *entries, int count) {
    uint64_t sum = (uint64_t)count;
    for (int i = 0; i < count; i++) sum = fold(sum, &entries[i], sizeof *entries, 0);
    return sum;
}

static void observe_scans(kv_caller *c, const char *table, size_t table_size, observed_table *t, observed *out) {
    uint64_t ahead[ROW_COUNT] = {0}, back[ROW_COUNT] = {0};
    int count, back_count;
    t->rows_end = observe_rows(c, table, table_size, false, ahead, &count, out);
    kv_result back_end = observe_rows(c, table, table_size, true, back, &back_count, out);
    t->rows_fold = fold_all(ahead, count);
    if (t->rows_end == KV_ECORRUPT || back_end == KV_ECORRUPT) {
        t->rows_end = KV_ECORRUPT;
        return;
    }
    bool same = t->rows_end == back_end && count == back_count;
    for (int i = 0; same && i < count; i++) same = ahead[i] == back[count - 1 - i];
    if (!same && out->scan == NULL) out->scan = "rows backwards are not those forwards";
}

static void observe_changes(kv_caller *c, const char *table, size_t table_size, observed_table *t, observed *out) {
    kv_change_page page;
    uint64_t since = 0;
    t->changes_fold = 0;
    do {
        kv_result size = t->changes_end = kv_changes(c, (const uint8_t *)table, table_size, since, 2, &page);
        if (size < 0) return;
        const uint8_t *bytes = answer_bytes(c, size);
        for (uint64_t i = 0; i < page.page.count; i++) {
            uint32_t name_size = page.page.sizes[2 * i], value_size = page.page.sizes[2 * i + 1];
            bool gone = value_size == (uint32_t)KV_DELETED;
            uint64_t digest = gone ? 1 : kv_xxh64(bytes + name_size, value_size, 0);
            t->changes_fold = fold(t->changes_fold, bytes, name_size, digest);
            bytes += name_size + (gone ? 0 : value_size);
        }
        bool moves = !page.more || page.version > since;
        if (out->scan == NULL && (!moves || (since == 0 && !page.complete))) out->scan = "a change feed of everything is none";
        if (!moves) return;
        since = page.version;
    } while (page.more);
    t->floor = page.floor;
    t->changes_end = (kv_result)page.version;
}

static void observe_table(kv_caller *c, int number, observed *out) {
    char text[ROW_TEXT_SIZE], row[ROW_TEXT_SIZE];
    observed_table *t = &out->tables[number];
    size_t size = table_text(number, text);
    kv_answer *answer = kv_caller_answer(c);
    t->row_count = kv_table_look(c, (const uint8_t *)text, size);
    t->expires_ms = answer->expires_ms;
    t->id = (uint64_t)answer->number;
    t->version = kv_version(c, (const uint8_t *)text, size);
    for (int i = 0; i < NAMED_COUNT; i++) {
        size_t row_size = row_text(NULL, i, row);
        t->size[i] = kv_row_get(c, (const uint8_t *)text, size, (const uint8_t *)row, row_size);
        if (t->size[i] < 0) continue;
        t->row_version[i] = answer->version;
        t->row_expires_ms[i] = answer->expires_ms;
        t->digest[i] = kv_xxh64(answer_bytes(c, t->size[i]), (size_t)t->size[i], 0);
    }
    observe_scans(c, text, size, t, out);
    observe_changes(c, text, size, t, out);
}

static void observe_tables(kv_caller *c, observed *out) {
    kv_range range = {.what = KV_SCAN_TABLES, .count_max = TABLE_COUNT + 1};
    kv_page page;
    for (int i = 0; i < TABLE_COUNT; i++) observe_table(c, i, out);
    kv_result size = kv_scan(c, &range, &page);
    if (size < 0 && out->scan == NULL) out->scan = size == KV_ECORRUPT ? scan_refused : "a scan of tables fails";
    if (size >= 0) out->names_fold = kv_xxh64(answer_bytes(c, size), page.size, page.count);
}

/* --- and against the twin, as of a time --- */

static bool alive_then(int32_t what, int64_t expires_ms, int64_t now_ms) {
    return what == THERE && (expires_ms == 0 || expires_ms > now_ms);
}

typedef struct named_row {
    char text[ROW_TEXT_SIZE];
    size_t size;
    const twin_key *row;
} named_row;

static int by_row_name(const void *left, const void *right) {
    const named_row *a = left, *b = right;
    return kv_name_compare((const uint8_t *)a->text, a->size, (const uint8_t *)b->text, b->size);
}

static int by_row_version(const void *left, const void *right) {
    const named_row *a = left, *b = right;
    if (a->row->version != b->row->version) return a->row->version > b->row->version ? 1 : -1;
    return by_row_name(left, right);
}

static int list_rows(const twin_table *t, named_row *list) {
    int count = 0;
    for (int i = 0; i < ROW_COUNT; i++) {
        if (t->rows[i].what == NEVER) continue;
        list[count].size = row_text(t, i, list[count].text);
        list[count++].row = &t->rows[i];
    }
    return count;
}

static bool folds_fit(const observed_table *o, const twin_table *t, int64_t now_ms) {
    named_row list[ROW_COUNT];
    uint64_t entries[ROW_COUNT], changes = 0;
    int count = list_rows(t, list), there = 0;
    qsort(list, (size_t)count, sizeof *list, by_row_version);
    for (int i = 0; i < count; i++) {
        bool alive = alive_then(list[i].row->what, list[i].row->expires_ms, now_ms);
        changes = fold(changes, list[i].text, list[i].size, alive ? list[i].row->digest : 1);
    }
    qsort(list, (size_t)count, sizeof *list, by_row_name);
    for (int i = 0; i < count; i++)
        if (alive_then(list[i].row->what, list[i].row->expires_ms, now_ms))
            entries[there++] = fold(0, list[i].text, list[i].size, list[i].row->digest);
    bool rows = o->rows_end == KV_ECORRUPT || (o->rows_end == 0 && o->rows_fold == fold_all(entries, there));
    return rows && (o->changes_end == KV_ECORRUPT || o->changes_fold == changes);
}

static bool named_fits(const observed_table *o, const twin_table *t, int row, bool table_alive, int64_t now_ms) {
    const twin_key *k = &t->rows[row];
    if (o->size[row] == KV_ECORRUPT) return true;
    if (!table_alive || !alive_then(k->what, k->expires_ms, now_ms)) return o->size[row] == kv_ending(KV_ABSENT);
    return o->size[row] == (kv_result)k->size && o->row_version[row] == k->version && o->digest[row] == k->digest &&
           o->row_expires_ms[row] == k->expires_ms;
}

static bool table_refused(const observed_table *o) {
    bool refused = o->row_count == KV_ECORRUPT || o->version == KV_ECORRUPT || o->rows_end == KV_ECORRUPT ||
                   o->changes_end == KV_ECORRUPT;
    for (int i = 0; i < NAMED_COUNT; i++) refused = refused || o->size[i] == KV_ECORRUPT;
    return refused;
}

/* As far as it was not refused. */
static bool table_fits(const observed_table *o, const twin_table *t, int64_t now_ms) {
    const kv_result absent = kv_ending(KV_ABSENT);
    bool alive = alive_then(t->what, t->expires_ms, now_ms);
    if (o->version != KV_ECORRUPT && o->version != (kv_result)t->version) return false;
    for (int i = 0; i < NAMED_COUNT; i++)
        if (!named_fits(o, t, i, alive, now_ms)) return false;
    if (!alive)
        return (o->row_count == absent || o->row_count == KV_ECORRUPT) && (o->rows_end == absent || o->rows_end == KV_ECORRUPT) &&
               (o->changes_end == 0 || o->changes_end == KV_ECORRUPT);
    bool look = o->row_count == (kv_result)rows_sum(t, 0).row_count && o->id == t->id && o->expires_ms == t->expires_ms;
    uint64_t floor = t->floor > t->id ? t->floor : t->id;
    bool feed = o->changes_end == (kv_result)t->version && o->floor == floor;
    return (look || o->row_count == KV_ECORRUPT) && (feed || o->changes_end == KV_ECORRUPT) && folds_fit(o, t, now_ms);
}

static bool tables_fit(const observed *o, const twin *t, int64_t now_ms) {
    char names[TABLE_COUNT * ROW_TEXT_SIZE];
    size_t size = 0;
    uint64_t count = 0;
    for (int i = 0; i < TABLE_COUNT; i++) {
        if (table_refused(&o->tables[i]) || !table_fits(&o->tables[i], &t->tables[i], now_ms)) return false;
        if (!alive_then(t->tables[i].what, t->tables[i].expires_ms, now_ms)) continue;
        size += table_text(i, names + size);
        count++;
    }
    return o->scan == scan_refused || o->names_fold == kv_xxh64((const uint8_t *)names, size, count);
}

/* The time that the flow remembers. */
static int64_t remembered(const twin *t) { return t->clock_ms > 1 ? t->clock_ms : 1; }

/* Whether a key reads as the twin has it. */
static bool key_fits(const observed *o, const twin *t, int key, int64_t now_ms) {
    const twin_key *k = &t->keys[key];
    if (o->version[key] != (kv_result)k->version) return false;
    bool alive = k->what == THERE && (k->expires_ms == 0 || k->expires_ms > now_ms);
    if (!alive) return o->size[key] == kv_ending(KV_ABSENT);
    return o->size[key] == (kv_result)k->size && o->expires_ms[key] == k->expires_ms && o->digest[key] == k->digest;
}

static bool names_fit(const observed *o, const twin *t, int64_t now_ms) {
    for (int i = 0; i < KEY_COUNT; i++)
        if (!key_fits(o, t, i, now_ms)) return false;
    return tables_fit(o, t, now_ms);
}

static bool state_fits(const observed *o, const twin *t) {
    return o->stats.clock_ms == t->clock_ms && names_fit(o, t, remembered(t));
}

/* What the counters say against what the state is; NULL: they agree. */
static const char *counters_differ(const observed *o, const twin *t) {
    uint64_t there = 0, deleted = 0, big = 0, big_size = 0;
    for (int i = 0; i < KEY_COUNT; i++) {
        const twin_key *k = &t->keys[i];
        bool is_big = k->what == THERE && k->size > INLINE_SIZE_MAX;
        there += k->what == THERE;
        deleted += k->what == DELETED;
        big += is_big;
        big_size += is_big ? k->size : 0;
    }
    const twin_remains sum = tables_sum(t);
    uint64_t tables = 0;
    for (int i = 0; i < TABLE_COUNT; i++) {
        tables += t->tables[i].what == THERE;
        deleted += t->tables[i].what == DELETED;
    }
    big += sum.big_count;
    big_size += sum.big_size;
    if (o->stats.table_count != tables) return "table_count";
    if (o->stats.row_count != sum.row_count) return "row_count";
    if (o->stats.row_tombstone_count != sum.tombstone_count) return "row_tombstone_count";
    if (o->stats.retired_table_count != sum.table_count) return "retired_table_count";
    if (o->stats.key_count != there) return "key_count";
    if (o->stats.tombstone_count != deleted) return "tombstone_count";
    if (o->stats.big_count != big) return "big_count";
    if (o->stats.big_size != big_size) return "big_size";
    if (o->stats.live_size != twin_live_size(t)) return "live_size";
    return NULL;
}

#pragma GCC diagnostic pop

#endif
