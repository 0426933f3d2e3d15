/* table.c -- a table as a whole: drop, trim, and the sweep that settles what a drop left.
 *
 * A drop is one record: the table's key names nothing from then on, so nobody finds its rows any more. They are still
 * in the index, and counted. The sweep takes them out, some at a time: it finds them by their change names, because
 * every row, deleted ones included, has exactly one. What a reopen finds to sweep is in the checkpoint, or follows from
 * the replay: rows of a table whose key names it no more, or never did. */
#include <stdlib.h>

#include "store_internal.h"

/* --- drop --- */

static kv_status step_drop(kv_caller *c, write_op *w) {
    kv_position position;
    uint32_t used;
    kv_status status = store_find_table(c, w->key, w->key_size, &w->state);
    w->result = kv_ending(KV_ABSENT);
    if (status != KV_OK || w->state.id == 0) return status;
    kv_record record = {.kind = KV_KIND_TABLE_DROP, .options = KV_HAS_TABLE, .table_id = w->state.id, .key = w->key,
                        .key_size = (uint32_t)w->key_size, .row_count = w->state.row_count, .next_row = w->state.next_row};
    status = store_append(c->store, &record, &position, &used);
    if (status != KV_OK) return status;
    w->result = (kv_result)record.version;
    return store_index_put(c->store, w->state.key.hash, &w->state.at, &record, position, used);
}

kv_result kv_table_drop(kv_caller *c, const uint8_t *table, size_t table_size, int durable) {
    write_op w = {.key = table, .key_size = table_size};
    if (key_check(table_size) != KV_OK) return refuse_name(c);
    return store_write(c, step_drop, &w, durable);
}

/* --- trim --- */

static kv_status step_trim(kv_caller *c, write_op *w) {
    kv_store *store = c->store;
    kv_position position;
    uint32_t used;
    uint8_t value[8];
    found old;
    w->result = kv_ending(KV_ABSENT);
    kv_status status = store_find_table(c, w->key, w->key_size, &w->state);
    if (status != KV_OK || w->state.id == 0) return status;
    target t = target_table(store, w->state.id, KV_LOC_FLOOR);
    status = store_find(store, &t, &old, &c->answer.fault);
    if (status != KV_OK && status != KV_ABSENT) return status;
    uint64_t before = status == KV_OK && old.record.value_size == 8 ? kv_load64(old.record.value) : 0;
    uint64_t floor = (uint64_t)w->number < w->state.version ? (uint64_t)w->number : w->state.version;
    w->result = (kv_result)(floor > before ? floor : before);
    if (floor <= before) return KV_OK;
    kv_store64(value, floor);
    kv_record record = {.kind = KV_KIND_TABLE_FLOOR, .options = KV_HAS_TABLE, .table_id = w->state.id, .key = w->key,
                        .key_size = (uint32_t)w->key_size, .row_count = w->state.row_count,
                        .next_row = w->state.next_row, .value = value, .value_size = sizeof value};
    status = store_append(store, &record, &position, &used);
    return status == KV_OK ? store_index_put(store, t.hash, &old, &record, position, used) : status;
}

kv_result kv_table_trim(kv_caller *c, const uint8_t *table, size_t table_size, uint64_t version, int durable) {
    write_op w = {.key = table, .key_size = table_size, .number = (int64_t)version};
    if (key_check(table_size) != KV_OK) return refuse_name(c);
    if (version > INT64_MAX) return caller_fail(c, KV_EUSAGE, "versions are below 2 to the 63");
    return store_write(c, step_trim, &w, durable);
}
