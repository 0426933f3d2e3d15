/* write.c -- one key or one row: what users ask of it, as steps under the writer lock.
 *
 * A step finds what is there, decides, and appends one record - two where a table comes into being with its first row.
 * A row's step is the key's step with a table in its write_op: where it begins it finds the table first, where it ends
 * it says in its record what the table is after it. */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>

#include "late.h"

/* A row by hand that is above this is a name that happens to have eight bytes: numbers are not to run out for it. */
static const uint64_t ROW_ID_LIMIT = (uint64_t)1 << 62;

/* --- what every write begins and ends with --- */

/* The row, in the table as it is now. No such table, no such row. */
static kv_status row_begin(kv_caller *c, write_op *w, bool *alive) {
    *alive = false;
    w->old.location = 0;
    kv_status status = store_find_table(c, w->table, w->table_size, &w->state);
    if (status != KV_OK || w->state.id == 0) return status;
    w->at = target_row(c->store, w->state.id, w->key, w->key_size);
    return store_find_trusted(c, &w->at, &w->old, alive);
}

/* Where a decision rests on what is there. */
static kv_status write_begin_trusting(kv_caller *c, write_op *w, bool *alive) {
    if (w->table != NULL) return row_begin(c, w, alive);
    w->at = target_key(c->store, w->key, w->key_size);
    return store_find_trusted(c, &w->at, &w->old, alive);
}

/* The same for values: a table has none. */
static kv_status value_begin(kv_caller *c, write_op *w, bool *alive) {
    kv_status status = write_begin_trusting(c, w, alive);
    return status == KV_OK && *alive && found_table(&w->old) ? KV_EWRONGTYPE : status;
}

/* Where it only has to be replaced. */
static kv_status write_begin(kv_caller *c, write_op *w) {
    bool alive;
    if (KV_UNLIKELY(w->table != NULL)) return row_begin(c, w, &alive);
    w->at = target_key(c->store, w->key, w->key_size);
    kv_status status = store_find(c->store, &w->at, &w->old, &c->answer.fault);
    return status == KV_ABSENT ? KV_OK : status;
}

/* A table comes into being with its first row: two records, all or nothing. */
static kv_status append_with_table(kv_caller *c, write_op *w, kv_record *row) {
    kv_store *store = c->store;
    kv_position at[2];
    uint32_t used[2];
    const found *before = &w->state.at;
    kv_record table = {.kind = KV_KIND_TABLE_NEW, .options = KV_HAS_TABLE, .key = w->table,
                       .key_size = (uint32_t)w->table_size, .table_id = row->table_id, .row_count = row->row_count,
                       .next_row = row->next_row};
    if (before->location == 0 || found_tombstone(before)) table.flags = KV_FLAG_CREATED;
    kv_status status = store_append_pair(store, &table, row, at, used);
    if (status != KV_OK) return status;
    w->at = target_row(store, row->table_id, w->key, w->key_size);
    status = store_index_put(store, w->state.key.hash, before, &table, at[0], used[0]);
    if (status == KV_OK) status = store_index_put(store, w->at.hash, &w->old, row, at[1], used[1]);
    return status == KV_OK ? store_put_head(store, row, at[1], &c->answer.fault) : status;
}

/* A row that looks like one that append gave: the next of those come behind it. So in a copy of a table, made row by row,
 * append goes on where the original was. */
void row_moves_next(table_state *table, const uint8_t *row, size_t size) {
    if (size != KV_ROW_ID_SIZE) return;
    uint64_t id = __builtin_bswap64(kv_load64(row));
    if (id < ROW_ID_LIMIT && id >= table->next_row) table->next_row = id + 1;
}

static kv_status append_row(kv_caller *c, write_op *w, kv_record *record, bool there) {
    kv_store *store = c->store;
    kv_position position;
    uint32_t used;
    bool put = record->kind == KV_KIND_PUT, is_new = w->state.id == 0;
    record->kind = put ? KV_KIND_ROW_PUT : KV_KIND_ROW_DELETE;
    record->options |= KV_HAS_TABLE;
    record->table_id = is_new ? store_table_id(store, 0) : w->state.id;
    record->row_count = w->state.row_count + (put && !there) - (!put && there);
    if (put) row_moves_next(&w->state, w->key, w->key_size);
    record->next_row = w->state.next_row;
    if (is_new) return append_with_table(c, w, record);
    kv_status status = store_append(store, record, &position, &used);
    if (status == KV_OK) status = store_index_put(store, w->at.hash, &w->old, record, position, used);
    return status == KV_OK ? store_put_head(store, record, position, &c->answer.fault) : status;
}

static kv_status append_key(kv_caller *c, write_op *w, kv_record *record) {
    kv_position position;
    uint32_t used;
    kv_status status = store_append(c->store, record, &position, &used);
    if (KV_UNLIKELY(status != KV_OK)) return status;
    status = store_index_put(c->store, w->at.hash, &w->old, record, position, used);
    if (KV_UNLIKELY(record->kind == KV_KIND_TABLE_NEW) && status == KV_OK)
        status = store_put_head(c->store, record, position, &c->answer.fault);
    return status;
}

/* Appends `record` for the name of `w` and shows it. */
static kv_status write_end(kv_caller *c, write_op *w, kv_record *record) {
    record->key = w->key;
    record->key_size = (uint32_t)w->key_size;
    if (record->expires_ms != 0) record->options |= KV_HAS_EXPIRY;
    bool there = w->old.location != 0 && !found_tombstone(&w->old);
    if (record->kind == KV_KIND_PUT && !there) record->flags |= KV_FLAG_CREATED;
    kv_status status = KV_UNLIKELY(w->table != NULL) ? append_row(c, w, record, there) : append_key(c, w, record);
    if (KV_UNLIKELY(record->version == 0)) return status; /* Nothing was written. */
    c->answer.version = record->version;
    c->answer.expires_ms = (int64_t)record->expires_ms;
    w->result = (kv_result)record->version;
    return status;
}

static uint64_t expiry_after(const kv_store *store, const write_op *w, bool alive) {
    if (w->ttl_ms == 0 && w->keep_expiry) return alive ? w->old.record.expires_ms : 0;
    return (uint64_t)store_deadline(store, w->ttl_ms);
}

static kv_status step_put(kv_caller *c, write_op *w) {
    kv_status status = write_begin(c, w);
    if (KV_UNLIKELY(status != KV_OK)) return status;
    kv_record record = {.kind = KV_KIND_PUT, .flags = w->flags, .value = w->value, .value_size = (uint32_t)w->value_size};
    if (w->ttl_ms != 0) record.expires_ms = (uint64_t)store_deadline(c->store, w->ttl_ms);
    return write_end(c, w, &record);
}

static kv_status step_cas(kv_caller *c, write_op *w) {
    bool alive;
    kv_status status = value_begin(c, w, &alive);
    if (status != KV_OK) return status;
    uint64_t current = alive ? w->old.record.version : 0;
    c->answer.version = current;
    if (current != (uint64_t)w->number) return KV_ECONFLICT;
    kv_record record = {.kind = KV_KIND_PUT,
                        .flags = w->flags,
                        .expires_ms = expiry_after(c->store, w, alive),
                        .value = w->value,
                        .value_size = (uint32_t)w->value_size};
    return write_end(c, w, &record);
}

/* The key of a table: what to write over it, by the table as it stands. */
static kv_status table_begin(kv_caller *c, write_op *w, uint8_t kind, kv_record *record) {
    kv_status status = store_find_table(c, w->key, w->key_size, &w->state);
    w->at = w->state.key;
    w->old = w->state.at;
    *record = (kv_record){.kind = kind, .options = KV_HAS_TABLE, .table_id = w->state.id,
                          .row_count = w->state.row_count, .next_row = w->state.next_row};
    return status;
}

static kv_status step_delete(kv_caller *c, write_op *w) {
    bool alive;
    kv_record record = {.kind = KV_KIND_DELETE};
    kv_status status = write_begin_trusting(c, w, &alive);
    bool table = status == KV_OK && alive && found_table(&w->old);
    if (table) status = table_begin(c, w, KV_KIND_TABLE_DROP, &record);
    if (status != KV_OK) return status;
    uint64_t current = !alive ? 0 : table ? w->state.version : w->old.record.version;
    c->answer.version = current;
    if (w->number >= 0 && current != (uint64_t)w->number) return KV_ECONFLICT;
    w->result = kv_ending(KV_ABSENT);
    return alive ? write_end(c, w, &record) : KV_OK;
}

static kv_status step_drop(kv_caller *c, write_op *w) {
    kv_record record;
    kv_status status = table_begin(c, w, KV_KIND_TABLE_DROP, &record);
    w->result = kv_ending(KV_ABSENT);
    return status == KV_OK && w->state.id != 0 ? write_end(c, w, &record) : status;
}

/* --- what time has ended --- */

/* What a delete of this says of its table: as the head has it, less the row. KV_ABSENT: there is no table, or it is
 * dropped, and the sweep takes care of what is left of it. */
static kv_status expire_in_table(kv_caller *c, uint64_t table_id, kv_record *record) {
    kv_store *store = c->store;
    found head;
    target t = target_table(store, table_id, KV_LOC_HEAD);
    if (big_set_has(&store->retired_tables, table_id)) return KV_ABSENT;
    kv_status status = store_find(store, &t, &head, &c->answer.fault);
    if (status != KV_OK) return status;
    bool row = record->kind == KV_KIND_ROW_DELETE;
    record->options = KV_HAS_TABLE;
    record->table_id = table_id;
    record->row_count = head.record.row_count - row;
    record->next_row = head.record.next_row;
    return KV_OK;
}

kv_status store_expire(kv_caller *c, const target *t, bool *deleted) {
    kv_store *store = c->store;
    kv_position position;
    uint32_t used;
    found old;
    bool alive, row = t->class == KV_LOC_ROW;
    *deleted = false;
    kv_status status = store_find_trusted(c, t, &old, &alive);
    if (status != KV_OK || alive || old.location == 0 || found_tombstone(&old)) return status;
    kv_record record = {.kind = KV_KIND_DELETE, .flags = KV_FLAG_EXPIRED, .key = t->key, .key_size = (uint32_t)t->key_size};
    if (row) record.kind = KV_KIND_ROW_DELETE;
    else if (found_table(&old)) record.kind = KV_KIND_TABLE_DROP;
    if (record.kind != KV_KIND_DELETE) status = expire_in_table(c, old.record.table_id, &record);
    if (status != KV_OK) return status == KV_ABSENT ? KV_OK : status;
    status = store_append(store, &record, &position, &used);
    if (status != KV_OK) return status;
    *deleted = true;
    status = store_index_put(store, t->hash, &old, &record, position, used);
    return status == KV_OK && row ? store_put_head(store, &record, position, &c->answer.fault) : status;
}

/* Values above the inline size are written, and made durable, before the lock is taken. Runs the step with what then
 * stands for the value; gives the file up if no record came to name it. */
static kv_result write_value(kv_caller *c, write_step step, write_op *w, int durable) {
    uint8_t bytes[KV_BIG_SIZE];
    kv_big big;
    if (KV_UNLIKELY(name_check(w->table, w->table_size, w->key_size) != KV_OK)) return refuse_name(c);
    if (KV_UNLIKELY(w->value_size > KV_VALUE_SIZE_MAX)) return caller_fail(c, KV_EVALUESIZE, "values have up to 1 GiB");
    bool by_digest = c->store->late != NULL && c->store->late->contents != NULL;
    if (KV_LIKELY(w->value_size <= c->store->options.inline_size_max) || by_digest) return store_write(c, step, w, durable);

    if (c->hasty) return kv_ending(KV_EWAIT);
    kv_status status = big_write(c, w->value, w->value_size, &big);
    if (status != KV_OK) return caller_fail(c, status, "the value could not be written");
    kv_big_encode(&big, bytes);
    w->value = bytes;
    w->value_size = sizeof bytes;
    w->flags = KV_FLAG_BIG;
    w->result = 0;
    kv_result result = store_write(c, step, w, durable);
    if (result < 0 && w->result <= 0) big_give_up(c->store, &big);
    return result;
}

kv_result kv_put(kv_caller *c, const uint8_t *key, size_t key_size, const uint8_t *value, size_t value_size, int64_t ttl_ms,
                 int durable) {
    write_op w;
    w.table = NULL;
    w.key = key;
    w.key_size = key_size;
    w.value = value;
    w.value_size = value_size;
    w.ttl_ms = ttl_ms;
    w.flags = 0;
    w.result = 0;
    return write_value(c, step_put, &w, durable);
}

kv_result kv_row_put(kv_caller *c, const uint8_t *table, size_t table_size, const uint8_t *row, size_t row_size,
                     const uint8_t *value, size_t value_size, int64_t ttl_ms, int durable) {
    write_op w = {.table = table, .table_size = table_size, .key = row, .key_size = row_size, .value = value,
                  .value_size = value_size, .ttl_ms = ttl_ms};
    return write_value(c, step_put, &w, durable);
}

kv_result kv_cas(kv_caller *c, const uint8_t *key, size_t key_size, const uint8_t *value, size_t value_size,
                 uint64_t version, int64_t ttl_ms, int durable) {
    write_op w = {.key = key, .key_size = key_size, .value = value, .value_size = value_size, .ttl_ms = ttl_ms,
               .number = (int64_t)version};
    return write_value(c, step_cas, &w, durable);
}

kv_result kv_row_cas(kv_caller *c, const uint8_t *table, size_t table_size, const uint8_t *row, size_t row_size,
                     const uint8_t *value, size_t value_size, uint64_t version, int64_t ttl_ms, int durable) {
    write_op w = {.table = table, .table_size = table_size, .key = row, .key_size = row_size, .value = value,
                  .value_size = value_size, .ttl_ms = ttl_ms, .number = (int64_t)version};
    return write_value(c, step_cas, &w, durable);
}

kv_result kv_delete(kv_caller *c, const uint8_t *key, size_t key_size, int64_t version, int durable) {
    write_op w = {.key = key, .key_size = key_size, .number = version};
    if (name_check(NULL, 0, key_size) != KV_OK) return refuse_name(c);
    return store_write(c, step_delete, &w, durable);
}

kv_result kv_row_delete(kv_caller *c, const uint8_t *table, size_t table_size, const uint8_t *row, size_t row_size,
                        int64_t version, int durable) {
    write_op w = {.table = table, .table_size = table_size, .key = row, .key_size = row_size, .number = version};
    if (name_check(table, table_size, row_size) != KV_OK) return refuse_name(c);
    return store_write(c, step_delete, &w, durable);
}

kv_result kv_table_drop(kv_caller *c, const uint8_t *table, size_t table_size, int durable) {
    write_op w = {.key = table, .key_size = table_size};
    if (key_check(table_size) != KV_OK) return refuse_name(c);
    return store_write(c, step_drop, &w, durable);
}

/* --- incr --- */

/* Exactly what incr itself writes: no sign but a minus, no leading zeros, no spaces. As Redis has it. */
static bool parse_int64(const uint8_t *bytes, size_t size, int64_t *out) {
    bool negative = size > 0 && bytes[0] == '-';
    size_t at = negative ? 1 : 0;
    if (at == size || size > 20) return false;
    if (bytes[at] == '0' && (size > 1)) return false;
    uint64_t limit = negative ? (uint64_t)INT64_MAX + 1 : INT64_MAX, sum = 0;
    for (; at < size; at++) {
        if (bytes[at] < '0' || bytes[at] > '9') return false;
        uint64_t digit = (uint64_t)(bytes[at] - '0');
        if (sum > (limit - digit) / 10) return false;
        sum = sum * 10 + digit;
    }
    *out = negative ? (int64_t)(0 - sum) : (int64_t)sum;
    return true;
}

static kv_status step_incr(kv_caller *c, write_op *w) {
    bool alive;
    kv_status status = value_begin(c, w, &alive);
    if (status != KV_OK) return status;
    int64_t number = 0;
    if (alive && (w->old.record.flags & KV_FLAG_BIG)) return KV_ENOTINT;
    const uint8_t *old = NULL;
    uint64_t old_size = 0;
    if (alive) status = found_bytes(c->store, &w->old, &old, &old_size, &c->answer.fault);
    if (status != KV_OK) return status;
    if (alive && !parse_int64(old, old_size, &number)) return KV_ENOTINT;
    if (__builtin_add_overflow(number, w->number, &number)) return KV_EOVERFLOW;
    char digits[24];
    int size = snprintf(digits, sizeof digits, "%lld", (long long)number);
    kv_record record = {.kind = KV_KIND_PUT,
                        .expires_ms = expiry_after(c->store, w, alive),
                        .value = (const uint8_t *)digits,
                        .value_size = (uint32_t)size};
    status = write_end(c, w, &record);
    c->answer.number = number;
    return status;
}

kv_result kv_incr(kv_caller *c, const uint8_t *key, size_t key_size, int64_t by, int64_t ttl_ms, int durable) {
    write_op w = {.key = key, .key_size = key_size, .number = by, .ttl_ms = ttl_ms, .keep_expiry = true};
    if (name_check(NULL, 0, key_size) != KV_OK) return refuse_name(c);
    return store_write(c, step_incr, &w, durable);
}

kv_result kv_row_incr(kv_caller *c, const uint8_t *table, size_t table_size, const uint8_t *row, size_t row_size, int64_t by,
                      int64_t ttl_ms, int durable) {
    write_op w = {.table = table, .table_size = table_size, .key = row, .key_size = row_size, .number = by,
                  .ttl_ms = ttl_ms, .keep_expiry = true};
    if (name_check(table, table_size, row_size) != KV_OK) return refuse_name(c);
    return store_write(c, step_incr, &w, durable);
}

/* --- append --- */

/* The usual case, under the lock. KV_MORE: the result is, or was, too large to be inline. */
static kv_status step_append(kv_caller *c, write_op *w) {
    bool alive;
    kv_status status = value_begin(c, w, &alive);
    if (status != KV_OK) return status;
    if (alive && (w->old.record.flags & KV_FLAG_BIG)) return KV_MORE;
    const uint8_t *old = NULL;
    uint64_t old_size = 0;
    if (alive) status = found_value(c, &w->old);
    if (status == KV_OK && alive) status = found_bytes(c->store, &w->old, &old, &old_size, &c->answer.fault);
    if (status != KV_OK) return status;
    size_t size = old_size + w->value_size;
    bool by_digest = c->store->late != NULL && c->store->late->contents != NULL;
    if (size > (by_digest ? (uint64_t)LATE_CONTENT_SIZE_MAX : c->store->options.inline_size_max)) return KV_MORE;
    uint8_t *joined;
    status = answer_room(c, size, &joined);
    if (status != KV_OK) return status;
    if (old_size != 0) memcpy(joined, old, old_size);
    if (w->value_size != 0) memcpy(joined + old_size, w->value, w->value_size);
    kv_record record = {.kind = KV_KIND_PUT,
                        .expires_ms = expiry_after(c->store, w, alive),
                        .value = joined,
                        .value_size = (uint32_t)size};
    status = write_end(c, w, &record);
    w->result = (kv_result)size;
    return status;
}

/* Large values: read, join, and swap in if nobody was faster. */
static kv_result append_large(kv_caller *c, const write_op *asked, int durable) {
    for (;;) {
        kv_result old_size = kv_get(c, asked->key, asked->key_size);
        bool alive = old_size >= 0;
        if (!alive && old_size != kv_ending(KV_ABSENT)) return old_size;
        if (!alive) old_size = 0;
        size_t size = (size_t)old_size + asked->value_size;
        if (size > KV_VALUE_SIZE_MAX) return caller_fail(c, KV_EVALUESIZE, "values have up to 1 GiB");
        uint8_t *joined = malloc(size + 1);
        if (joined == NULL) return caller_fail(c, KV_ENOMEM, "no memory to join the values");
        memcpy(joined, old_size <= KV_SMALL_SIZE ? c->answer.small : c->answer.large, (size_t)old_size);
        if (asked->value_size != 0) memcpy(joined + old_size, asked->value, asked->value_size);
        write_op w = *asked;
        w.number = alive ? (int64_t)c->answer.version : 0;
        w.value = joined;
        w.value_size = size;
        kv_result result = write_value(c, step_cas, &w, durable);
        free(joined);
        if (result >= 0) return (kv_result)size;
        if (result != KV_ECONFLICT) return result;
    }
}

kv_result kv_append(kv_caller *c, const uint8_t *key, size_t key_size, const uint8_t *bytes, size_t size, int64_t ttl_ms,
                    int durable) {
    write_op w = {.key = key, .key_size = key_size, .value = bytes, .value_size = size, .ttl_ms = ttl_ms, .keep_expiry = true};
    if (name_check(NULL, 0, key_size) != KV_OK) return refuse_name(c);
    if (size > KV_VALUE_SIZE_MAX) return caller_fail(c, KV_EVALUESIZE, "values have up to 1 GiB");
    kv_result result = store_write(c, step_append, &w, durable);
    if (KV_LIKELY(result != kv_ending(KV_MORE))) return result;
    if (c->store->late != NULL) return caller_fail(c, KV_EVALUESIZE, "a replica does not append to values this large");
    return append_large(c, &w, durable);
}

/* --- a row under an id of its own --- */

/* Above every id that was ever given: versions never come twice, also after a crash, and a table's next id says how far
 * a batch went beyond them. A row that somebody put there by hand is passed over. */
kv_status store_next_row(kv_caller *c, const table_state *table, uint64_t version, uint8_t row[KV_ROW_ID_SIZE], uint64_t *id) {
    *id = version > table->next_row ? version : table->next_row;
    for (;; ++*id) {
        found there;
        kv_store64(row, __builtin_bswap64(*id));
        if (table->id == 0) return KV_OK;
        target t = target_row(c->store, table->id, row, KV_ROW_ID_SIZE);
        kv_status status = store_find(c->store, &t, &there, &c->answer.fault);
        if (status == KV_ABSENT) return KV_OK;
        if (status != KV_OK) return status;
    }
}

static kv_status step_row_append(kv_caller *c, write_op *w) {
    uint64_t id;
    bool alive;
    kv_status status = store_find_table(c, w->table, w->table_size, &w->state);
    if (status == KV_OK) status = store_next_row(c, &w->state, store_next_version(c->store), w->row_id, &id);
    w->key = w->row_id;
    w->key_size = KV_ROW_ID_SIZE;
    if (status == KV_OK) status = row_begin(c, w, &alive);
    if (status != KV_OK) return status;
    kv_record record = {.kind = KV_KIND_PUT, .flags = w->flags, .value = w->value, .value_size = (uint32_t)w->value_size};
    record.expires_ms = (uint64_t)store_deadline(c->store, w->ttl_ms);
    c->answer.number = (int64_t)id;
    return write_end(c, w, &record);
}

kv_result kv_row_append(kv_caller *c, const uint8_t *table, size_t table_size, const uint8_t *value, size_t value_size,
                        int64_t ttl_ms, int durable) {
    write_op w = {.table = table, .table_size = table_size, .key_size = KV_ROW_ID_SIZE, .value = value,
                  .value_size = value_size, .ttl_ms = ttl_ms};
    return write_value(c, step_row_append, &w, durable);
}

/* --- expiry --- */

/* The same value under a new version and another expiry; a value in a file keeps its file, a table its rows. */
static kv_status step_expire(kv_caller *c, write_op *w) {
    bool alive;
    kv_status status = write_begin_trusting(c, w, &alive);
    if (status != KV_OK) return status;
    w->result = kv_ending(KV_ABSENT);
    bool nothing_to_clear = alive && w->ttl_ms == 0 && w->old.record.expires_ms == 0;
    if (!alive || nothing_to_clear) return KV_OK;
    status = found_value(c, &w->old);
    if (status != KV_OK) return status;
    kv_record record = {.kind = KV_KIND_PUT,
                        .flags = w->old.record.flags & (KV_FLAG_BIG | KV_FLAG_META),
                        .value = w->old.record.value,
                        .value_size = w->old.record.value_size};
    if (found_table(&w->old)) status = table_begin(c, w, KV_KIND_TABLE_NEW, &record);
    record.expires_ms = (uint64_t)store_deadline(c->store, w->ttl_ms);
    return status == KV_OK ? write_end(c, w, &record) : status;
}

kv_result kv_expire(kv_caller *c, const uint8_t *key, size_t key_size, int64_t ttl_ms, int durable) {
    write_op w = {.key = key, .key_size = key_size, .ttl_ms = ttl_ms};
    if (name_check(NULL, 0, key_size) != KV_OK) return refuse_name(c);
    return store_write(c, step_expire, &w, durable);
}
