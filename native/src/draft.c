/* draft.c -- see draft.h. */
#include "draft.h"

#include <stdlib.h>
#include <string.h>

#include "kv/xxh64.h"

enum { BLOCK_SIZE = 4096, KEEP_SIZE = 4096, KEEP_COUNT = 64, SLOTS_MIN = 16, PAGE_COUNT = 512, NEARLY_EMPTY = 64 };

struct draft_block {
    draft_block *next;
    size_t used, capacity;
    uint8_t bytes[];
};

/* --- memory --- */

static void fail(draft *v, kv_status status) {
    if (v->failed == KV_OK) v->failed = status;
}

/* The first block is kept for the next draft. */
static void blocks_free(draft *v, bool keep) {
    draft_block *kept = NULL;
    for (draft_block *b = v->blocks, *next; b != NULL; b = next) {
        next = b->next;
        if (keep && kept == NULL && b->capacity <= KEEP_SIZE) {
            kept = b;
            b->used = 0;
            b->next = NULL;
        } else {
            free(b);
        }
    }
    v->blocks = kept;
}

uint8_t *draft_room(draft *v, size_t size) {
    size = (size + 15) & ~(size_t)15;
    draft_block *b = v->blocks;
    if (b == NULL || b->capacity - b->used < size) {
        size_t capacity = size < BLOCK_SIZE ? BLOCK_SIZE : size;
        b = malloc(sizeof *b + capacity);
        if (b == NULL) {
            fail(v, KV_ENOMEM);
            return NULL;
        }
        *b = (draft_block){.next = v->blocks, .capacity = capacity};
        v->blocks = b;
    }
    b->used += size;
    return b->bytes + b->used - size;
}

text draft_copy(draft *v, const void *bytes, size_t size) {
    uint8_t *to = draft_room(v, size);
    if (to == NULL) return (text){0};
    if (size != 0) memcpy(to, bytes, size);
    return (text){to, size};
}

static void list_empty(list *l) {
    if (l->capacity > KEEP_COUNT) list_free(l);
    else list_clear(l);
}

void draft_begin(draft *v, kv_caller *caller, int64_t now_ms) {
    blocks_free(v, true);
    list_empty(&v->entries);
    list_empty(&v->operations);
    list_empty(&v->expectations);
    list_empty(&v->messages);
    if (v->slot_count > SLOTS_MIN) {
        free(v->slots);
        v->slots = NULL;
        v->slot_count = 0;
    }
    if (v->slots != NULL) memset(v->slots, 0, v->slot_count * sizeof *v->slots);
    v->caller = caller;
    v->now_ms = now_ms;
    v->failed = KV_OK;
    v->refused = NULL;
}

void draft_free(draft *v) {
    blocks_free(v, false);
    free(v->slots);
    list_free(&v->entries);
    list_free(&v->operations);
    list_free(&v->expectations);
    list_free(&v->messages);
    *v = (draft){0};
}

/* --- entries --- */

static uint64_t hash_of(const entry *table, text name) {
    return kv_xxh64(name.at, name.size, table == NULL ? 0 : (uint64_t)(uintptr_t)table);
}

static bool same(text a, text b) { return a.size == b.size && (a.size == 0 || memcmp(a.at, b.at, a.size) == 0); }

static uint32_t *slot_of(draft *v, const entry *table, text name) {
    size_t mask = v->slot_count - 1, at = (size_t)hash_of(table, name) & mask;
    for (; v->slots[at] != 0; at = (at + 1) & mask) {
        const entry *e = LIST(entry *, &v->entries)[v->slots[at] - 1];
        if (e->table == table && same(e->name, name)) break;
    }
    return &v->slots[at];
}

static bool slots_grow(draft *v) {
    size_t count = v->slot_count == 0 ? SLOTS_MIN : 2 * v->slot_count;
    uint32_t *slots = calloc(count, sizeof *slots);
    if (slots == NULL) return false;
    free(v->slots);
    v->slots = slots;
    v->slot_count = count;
    for (size_t i = 0; i < v->entries.count; i++) {
        const entry *e = LIST(entry *, &v->entries)[i];
        *slot_of(v, e->table, e->name) = (uint32_t)i + 1;
    }
    return true;
}

/* So that nobody has to ask whether there was memory, but once, at the end. */
static entry *nothing(draft *v) {
    v->spare = (entry){.loaded = true};
    fail(v, KV_ENOMEM);
    return &v->spare;
}

static entry *entry_find(draft *v, const entry *table, text name) {
    if (v->slot_count == 0) return NULL;
    uint32_t found = *slot_of(v, table, name);
    return found == 0 ? NULL : LIST(entry *, &v->entries)[found - 1];
}

/* The name's bytes stay where they are: they are words of the command, or copied. */
static entry *entry_add(draft *v, entry *table, text name) {
    if (2 * (v->entries.count + 1) > v->slot_count && !slots_grow(v)) return nothing(v);
    entry *e = (entry *)(void *)draft_room(v, sizeof *e), **place = e == NULL ? NULL : list_add(&v->entries, sizeof *place);
    if (place == NULL) return nothing(v);
    *e = (entry){.name = name, .table = table};
    *place = e;
    *slot_of(v, table, name) = (uint32_t)v->entries.count;
    return e;
}

/* --- keys --- */

/* A table has no value of its own: only what is empty has to be asked which it is. */
static void key_look(draft *v, entry *e) {
    const kv_answer *answer = kv_caller_answer(v->caller);
    kv_result size = kv_look(v->caller, e->name.at, e->name.size);
    e->loaded = false;
    if (size == kv_ending(KV_ABSENT)) return;
    if (size < 0) {
        fail(v, (kv_status)size);
        return;
    }
    e->version = answer->version;
    e->expires_ms = answer->expires_ms;
    e->size = (uint64_t)size;
    e->was = e->is = KIND_STRING;
    if (size != 0) return;
    kv_result rows = kv_table_look(v->caller, e->name.at, e->name.size);
    if (rows == KV_EWRONGTYPE) return;
    if (rows < 0) {
        fail(v, (kv_status)rows);
        return;
    }
    e->version = answer->version;
    e->rows = (uint64_t)rows;
    e->was = KIND_HASH;
    e->is = rows == 0 ? KIND_NONE : KIND_HASH; /* A hash without fields is none. */
    e->emptied = rows == 0;
}

entry *draft_find(draft *v, text key) {
    entry *e = entry_find(v, NULL, key);
    if (e != NULL) return e;
    e = entry_add(v, NULL, key);
    if (v->failed == KV_OK) key_look(v, e);
    return e;
}

entry *draft_key(draft *v, text key) {
    entry *e = draft_find(v, key);
    e->expected = true;
    return e;
}

static text answer_text(draft *v, kv_result size) {
    const kv_answer *answer = kv_caller_answer(v->caller);
    return draft_copy(v, size <= KV_SMALL_SIZE ? answer->small : answer->large, (size_t)size);
}

text draft_value(draft *v, entry *e) {
    if (e->is != KIND_STRING) return (text){0};
    e->expected = true;
    if (e->loaded || v->failed != KV_OK) return e->value;
    kv_result size = kv_get(v->caller, e->name.at, e->name.size);
    if (size < 0) fail(v, (kv_status)size);
    else e->value = answer_text(v, size);
    e->loaded = true;
    return e->value;
}

void draft_set(draft *v, entry *e, text value, int64_t expires_ms) {
    if (e->is == KIND_HASH) draft_delete(v, e);
    e->is = KIND_STRING;
    e->value = value;
    e->size = value.size;
    e->loaded = e->written = true;
    e->expires_ms = expires_ms;
    if (expires_ms != 0 && expires_ms <= v->now_ms) draft_delete(v, e);
}

static void rows_forget(draft *v, const entry *table) {
    for (size_t i = 0; i < v->entries.count; i++) {
        entry *e = LIST(entry *, &v->entries)[i];
        if (e->table == table) e->is = KIND_NONE;
    }
}

void draft_delete(draft *v, entry *e) {
    if (e->is == KIND_HASH) {
        rows_forget(v, e);
        e->emptied = true;
    }
    e->is = KIND_NONE;
    e->rows = 0;
    e->expires_ms = 0;
    e->written = true;
}

void draft_expire(draft *v, entry *e, int64_t expires_ms) {
    if (expires_ms != 0 && expires_ms <= v->now_ms) {
        draft_delete(v, e);
        return;
    }
    if (e->is == KIND_HASH) {
        e->expires_ms = expires_ms;
        e->expiry_written = true;
    } else {
        draft_set(v, e, draft_value(v, e), expires_ms);
    }
}

/* --- rows --- */

entry *draft_row(draft *v, entry *table, text row) {
    entry *e = entry_find(v, table, row);
    if (e != NULL) return e;
    e = entry_add(v, table, row);
    e->expected = true;
    if (table->was != KIND_HASH || v->failed != KV_OK) return e;
    kv_result size = kv_row_get(v->caller, table->name.at, table->name.size, row.at, row.size);
    if (size == kv_ending(KV_ABSENT)) return e;
    if (size < 0) {
        fail(v, (kv_status)size);
        return e;
    }
    e->version = kv_caller_answer(v->caller)->version;
    e->was = KIND_STRING;
    e->value = answer_text(v, size);
    e->is = table->emptied ? KIND_NONE : KIND_STRING;
    e->written = table->emptied;
    return e;
}

/* One page; the names and values of it, copied. */
static kv_result rows_page(draft *v, const entry *table, text after, bool first, kv_page *page, text *bytes) {
    kv_range range = {.what = KV_SCAN_ROWS, .table = table->name.at, .table_size = table->name.size, .with_values = 1,
                      .count_max = PAGE_COUNT, .start = first ? NULL : after.at, .start_size = first ? 0 : after.size};
    kv_result size = kv_scan(v->caller, &range, page);
    if (size >= 0) *bytes = answer_text(v, size);
    return size;
}

/* What the store has of it. */
static void rows_read(draft *v, const entry *table, list *out) {
    text after = {0}, bytes;
    kv_page page = {.more = 1};
    for (bool first = true; page.more && v->failed == KV_OK; first = false) {
        kv_result size = rows_page(v, table, after, first, &page, &bytes);
        if (size == kv_ending(KV_ABSENT)) return;
        if (size < 0) fail(v, (kv_status)size);
        if (v->failed != KV_OK) return;
        const uint8_t *at = bytes.at;
        for (uint64_t i = 0; i < page.count; i++) {
            draft_pair *one = list_add(out, sizeof *one);
            if (one == NULL) {
                fail(v, KV_ENOMEM);
                return;
            }
            one->row = (text){at, page.sizes[2 * i]};
            one->value = (text){at + one->row.size, page.sizes[2 * i + 1]};
            at += one->row.size + one->value.size;
        }
        if (!page.more) return;
        uint8_t *next = draft_room(v, page.resume_size + 1); /* The name after it is it and a zero. */
        if (next == NULL) return;
        memcpy(next, bytes.at + page.size, page.resume_size);
        next[page.resume_size] = 0;
        after = (text){next, (size_t)page.resume_size + 1};
    }
}

size_t draft_rows(draft *v, entry *table, const draft_pair **out) {
    list found = {0};
    table->expected = true;
    *out = NULL;
    if (table->is != KIND_HASH) return 0;
    if (table->was == KIND_HASH && !table->emptied) rows_read(v, table, &found);
    size_t stored = found.count, count = 0;
    draft_pair *all = (draft_pair *)(void *)draft_room(v, (stored + v->entries.count + 1) * sizeof *all);
    for (size_t i = 0; all != NULL && i < stored; i++) {
        draft_pair one = LIST(draft_pair, &found)[i];
        const entry *e = entry_find(v, table, one.row);
        if (e == NULL) all[count++] = one;
        else if (e->is != KIND_NONE) all[count++] = (draft_pair){e->name, e->value};
    }
    for (size_t i = 0; all != NULL && i < v->entries.count; i++) {
        const entry *e = LIST(entry *, &v->entries)[i];
        bool seen = e->was != KIND_NONE && !table->emptied;
        if (e->table == table && e->is != KIND_NONE && !seen) all[count++] = (draft_pair){e->name, e->value};
    }
    list_free(&found);
    *out = all;
    return v->failed == KV_OK ? count : 0;
}

/* A hash that was deleted comes again: the table stays the same, so its old rows are deleted one by one. */
static void table_revive(draft *v, entry *table) {
    list found = {0};
    if (table->was == KIND_HASH) rows_read(v, table, &found);
    for (size_t i = 0; i < found.count && v->failed == KV_OK; i++) draft_row(v, table, LIST(draft_pair, &found)[i].row);
    list_free(&found);
    table->expected = true;
    table->expiry_written = table->was == KIND_HASH;
    table->expires_ms = 0;
    table->is = KIND_HASH;
    table->written = false;
}

void draft_row_set(draft *v, entry *row, text value) {
    entry *table = row->table;
    if (table == NULL) return;
    if (table->is == KIND_NONE && table->was == KIND_HASH) table_revive(v, table);
    table->is = KIND_HASH;
    if (row->is == KIND_NONE) table->rows++;
    row->is = KIND_STRING;
    row->value = value;
    row->written = true;
}

/* Two that delete one of the last two fields each would leave a hash without any: near its end, who comes second looks again. */
void draft_row_delete(draft *v, entry *row) {
    entry *table = row->table;
    (void)v;
    if (table == NULL || row->is == KIND_NONE) return;
    row->is = KIND_NONE;
    row->written = true;
    table->rows--;
    if (table->rows < NEARLY_EMPTY) table->expected = true;
    if (table->rows != 0) return;
    table->is = KIND_NONE;
    table->emptied = table->written = true;
}

/* --- as a batch --- */

static void expect(draft *v, const entry *e) {
    kv_expectation *one = list_add(&v->expectations, sizeof *one);
    if (one == NULL) {
        fail(v, KV_ENOMEM);
        return;
    }
    *one = (kv_expectation){.key = e->name.at, .key_size = (uint32_t)e->name.size, .version = e->version};
    if (e->table != NULL) {
        one->table = e->table->name.at;
        one->table_size = (uint32_t)e->table->name.size;
    } else if (e->was == KIND_HASH) {
        *one = (kv_expectation){.table = e->name.at, .table_size = (uint32_t)e->name.size, .version = e->version};
    }
}

static kv_operation *operate(draft *v, const entry *e) {
    kv_operation *one = list_add(&v->operations, sizeof *one);
    if (one == NULL) {
        fail(v, KV_ENOMEM);
        one = &v->spare_operation;
    }
    *one = (kv_operation){.key = e->name.at, .key_size = (uint32_t)e->name.size};
    if (e->table == NULL) return one;
    one->table = e->table->name.at;
    one->table_size = (uint32_t)e->table->name.size;
    return one;
}

/* Of a value with no bytes the address counts, which says that it is one. */
static void operate_put(draft *v, const entry *e) {
    kv_operation *one = operate(v, e);
    one->value = e->value.at != NULL ? e->value.at : (const uint8_t *)"";
    one->value_size = e->value.size;
    one->ttl_ms = e->table == NULL ? -e->expires_ms : 0;
}

static void key_finish(draft *v, const entry *e) {
    if (e->is == KIND_STRING) {
        if (e->written) operate_put(v, e);
    } else if (e->is == KIND_NONE) {
        if (e->written && e->was != KIND_NONE) operate(v, e);
    } else if (e->was == KIND_STRING) {
        v->refused = "ERR a transaction cannot make a hash of a string: delete the key before it";
    } else if (e->expiry_written) {
        kv_operation *one = operate(v, e);
        one->value_size = KV_EXPIRY_ONLY;
        one->ttl_ms = -e->expires_ms;
    }
}

static void row_finish(draft *v, const entry *e) {
    if (e->table->is != KIND_HASH || !e->written) return;
    if (e->is == KIND_STRING) operate_put(v, e);
    else if (e->was == KIND_STRING) operate(v, e);
}

bool draft_finish(draft *v) {
    for (size_t i = 0; i < v->entries.count && v->failed == KV_OK; i++) {
        const entry *e = LIST(entry *, &v->entries)[i];
        if (e->expected) expect(v, e);
        if (e->table == NULL) key_finish(v, e);
        else row_finish(v, e);
    }
    return v->failed == KV_OK && v->refused == NULL;
}
