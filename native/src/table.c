/* table.c -- a table as a whole: trim, and the sweep that settles what a drop left.
 *
 * A drop is one record: the table's key names nothing from then on, so nobody finds its rows any more. They are still
 * in the index, and counted. The sweep takes them out, some at a time: it finds them by their change names, because
 * every row, deleted ones included, has exactly one. What a reopen finds to sweep is in the checkpoint, or follows from
 * the replay: rows of a table whose key names it no more, or never did. */
#include <stdlib.h>

#include "store_internal.h"

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

/* --- the sweep --- */

struct kv_sweep {
    write_op base; /* first: store_hold() hands it to the step */
    kv_store *store;
    kv_caller *c;
    kv_order_cursor *cursor;
    candidates block;
    bool block_is_last; /* there are no names behind it */
    uint64_t table_id;  /* the table it is at; 0: none */
    uint64_t at;        /* where in the set of retired tables it found it */
    uint8_t *last;      /* the change name it came to */
    size_t last_size;
};

kv_status kv_sweep_begin(kv_store *store, kv_sweep **out) {
    kv_status status = store_usable(store);
    if (status == KV_OK && store->options.readonly) status = KV_EREADONLY;
    if (status != KV_OK) return status;
    kv_sweep *s = calloc(1, sizeof *s);
    if (s == NULL) return KV_ENOMEM;
    s->store = store;
    s->last = malloc(KV_NAME_SIZE_MAX);
    status = s->last == NULL ? KV_ENOMEM : kv_caller_new(store, &s->c);
    if (status == KV_OK) status = kv_order_cursor_new(&s->cursor);
    if (status == KV_OK) *out = s;
    else kv_sweep_free(s);
    return status;
}

void kv_sweep_free(kv_sweep *s) {
    if (s == NULL) return;
    kv_caller_free(s->c);
    kv_order_cursor_free(s->cursor);
    free(s->block.bytes);
    free(s->last);
    free(s);
}

/* A snapshot from before a drop still reads the rows: all wait for it. No table: nothing is to be done now. */
static kv_status step_pick(kv_caller *c, write_op *w) {
    kv_sweep *s = (kv_sweep *)w;
    const kv_store *store = c->store;
    const big_set *retired = &store->retired_tables;
    if (retired->count == 0 || snapshot_oldest(store) < store->retired_sequence) return KV_OK;
    for (; retired->ids[s->at % retired->capacity] == 0; s->at++) continue;
    s->table_id = retired->ids[s->at % retired->capacity];
    table_name(KV_SPACE_CHANGES, s->table_id, s->last);
    s->last_size = TABLE_NAME_SIZE;
    return KV_OK;
}

/* The next names of the table. */
static kv_status take_names(void *context) {
    kv_sweep *s = context;
    kv_store *store = s->store;
    kv_status status = kv_order_seek(store->order, store->flow, s->cursor, KV_SEEK_GT, s->last, s->last_size);
    if (status == KV_OK) status = candidates_take(store, s->cursor, CANDIDATE_COUNT_MAX, &s->block);
    s->block_is_last = status == KV_EOF;
    if (status == KV_ECORRUPT) return order_fault(store, s->cursor, &s->c->answer.fault);
    return status == KV_EOF ? KV_OK : status;
}

static bool is_of_table(const kv_sweep *s, const candidate *one) {
    return one->space == KV_SPACE_CHANGES && one->at.table_id == s->table_id;
}

static kv_status hide(kv_store *store, const target *t) {
    found old;
    kv_fault fault;
    kv_status status = store_find(store, t, &old, &fault);
    if (status == KV_ABSENT) return KV_OK;
    return status == KV_OK ? store_hide(store, &old) : status;
}

/* A head keeps no record: what kept it was the slot of its own name, the table's key maybe, or a row hidden before. So its
 * segment may be gone, and then there is nothing to compare but the hash. */
static kv_status hide_head(kv_store *store, uint64_t table_id) {
    found head;
    kv_fault fault;
    uint64_t size;
    target t = target_table(store, table_id, KV_LOC_HEAD);
    head.location = kv_index_first(store->index, t.hash, &head.probe);
    for (; head.location != 0; head.location = kv_index_next(&head.probe)) {
        if ((kv_loc_flags(head.location) & SLOT_CLASSES) != t.class) continue;
        uint32_t segment = kv_loc_segment(head.location), offset = kv_loc_offset(head.location);
        bool there = kv_flow_at(store->flow, segment, offset, &size) != NULL;
        kv_status status = there ? store_look_at(store, &t, &head, &fault) : KV_OK;
        if (status == KV_OK) return kv_index_remove(store->index, &head.probe);
        if (status != KV_ABSENT) return status;
    }
    return head.probe.status;
}

/* The last that is left of a table: its floor, which is counted, and its head, which is not. */
static kv_status hide_table(kv_sweep *s) {
    kv_store *store = s->store;
    target floor = target_table(store, s->table_id, KV_LOC_FLOOR);
    kv_status status = hide(store, &floor);
    if (status == KV_OK) status = hide_head(store, s->table_id);
    if (status != KV_OK) return status;
    big_set_remove(&store->retired_tables, s->table_id);
    s->table_id = 0;
    return KV_OK;
}

static kv_status step_hide(kv_caller *c, write_op *w) {
    kv_sweep *s = (kv_sweep *)w;
    bool last = s->block_is_last;
    kv_status status = KV_OK;
    for (size_t i = 0; status == KV_OK && i < s->block.count; i++) {
        const candidate *one = &s->block.at[i];
        if (!is_of_table(s, one)) {
            last = true;
            break;
        }
        status = hide(c->store, &one->at);
        memcpy(s->last, one->name, one->name_size);
        s->last_size = one->name_size;
    }
    return status == KV_OK && last ? hide_table(s) : status;
}

static kv_status hold(kv_sweep *s, write_step step) {
    s->base.result = 0;
    kv_result result = store_hold(s->c, step, &s->base, 0);
    return result >= 0 ? KV_OK : (kv_status)result;
}

kv_status kv_sweep_step(kv_sweep *s) {
    kv_status status = s->table_id == 0 ? hold(s, step_pick) : KV_OK;
    if (status == KV_OK && s->table_id == 0) return KV_EOF;
    if (status == KV_OK) status = store_look(s->c, take_names, s);
    if (status == KV_OK) status = hold(s, step_hide);
    return status == KV_OK ? KV_MORE : status;
}
