/* show.c -- what a record does to index, order and counters: for writers, for replay and for compaction alike.
 *
 *   the slot of its name   points at it; a row's record is also the head of its table
 *   order                  a name that came into being is noted, and every row record as a change
 *   counters               live bytes by segment, keys, tables, rows and tombstones
 *   a table                whose key now names something else is retired: a sweep takes its rows out, later
 *
 * Live bytes are those of records that a slot of a name points at (a head's record is some row's or the table's own),
 * and of the newest CLOCK. Writer lock, or nobody else is there yet. */
#include "late.h"

static unsigned location_flags(const kv_record *record) {
    unsigned flags = 0;
    switch (record->kind) {
    case KV_KIND_DELETE:
    case KV_KIND_TABLE_DROP:
        flags = KV_LOC_TOMBSTONE;
        break;
    case KV_KIND_TABLE_NEW:
        flags = KV_LOC_TABLE;
        break;
    case KV_KIND_ROW_PUT:
        flags = KV_LOC_ROW;
        break;
    case KV_KIND_ROW_DELETE:
        flags = KV_LOC_ROW | KV_LOC_TOMBSTONE;
        break;
    case KV_KIND_TABLE_FLOOR:
        flags = KV_LOC_FLOOR;
        break;
    default:
        break;
    }
    if (record->flags & KV_FLAG_BIG) flags |= KV_LOC_BIG;
    if (record->options & KV_HAS_EXPIRY) flags |= KV_LOC_EXPIRY;
    return flags;
}

uint64_t store_location(const kv_record *record, kv_position position) {
    return kv_loc_make(position.segment, position.offset, location_flags(record));
}

/* --- counting --- */

/* Which counter a slot with these flags is counted by; NULL: none. */
static _Atomic uint64_t *counter_of(counters *n, unsigned flags) {
    if (flags & KV_LOC_FLOOR) return NULL;
    if (flags & KV_LOC_TOMBSTONE) return flags & KV_LOC_ROW ? &n->row_tombstone_count : &n->tombstone_count;
    if (flags & KV_LOC_TABLE) return &n->table_count;
    return flags & KV_LOC_ROW ? &n->row_count : &n->key_count;
}

static void count_by(_Atomic uint64_t *counter, uint64_t by) {
    if (counter == NULL) return;
    /* One writer at a time: no need for a locked addition. */
    atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + by, memory_order_relaxed);
}

void count_live(counters *n, uint32_t segment, int64_t size) {
    /* A checkpoint that lies can bring an index that is ahead of every segment there is. */
    if (segment < n->segment_capacity) n->segment_live[segment] += (uint64_t)size;
    n->live_size += (uint64_t)size;
}

/* `by`: the record that took its place; NULL: none did. */
static kv_status count_out(kv_store *store, const found *old, const kv_record *by, kv_position since) {
    counters *n = &store->counters;
    count_live(n, kv_loc_segment(old->location), -(int64_t)old->used);
    count_by(counter_of(n, kv_loc_flags(old->location)), UINT64_MAX);
    if (!(old->record.flags & KV_FLAG_BIG)) return KV_OK;
    kv_big was, is = {0};
    kv_status status = kv_big_decode(&old->record, &was);
    if (status != KV_OK) return status;
    n->big_count--;
    n->big_size -= was.size;
    if (by != NULL && (by->flags & KV_FLAG_BIG)) status = kv_big_decode(by, &is);
    if (is.file_id != was.file_id) { /* A new expiry of the same value keeps its file. */
        big_set_remove(&store->bigs, was.file_id);
        /* A value that came after the newest snapshot is nobody's, whatever is still open. */
        uint64_t replaced = snapshot_shows_file(store, was.file_id) ? kv_flow_sequence(store->flow) : 0;
        big_retire(store, &was, since, replaced);
    }
    return status;
}

static kv_status count_in(kv_store *store, const kv_record *record, unsigned flags, uint32_t segment, uint32_t used) {
    counters *n = &store->counters;
    count_live(n, segment, used);
    count_by(counter_of(n, flags), 1);
    if (!(record->flags & KV_FLAG_BIG)) return KV_OK;
    kv_big big;
    kv_status status = kv_big_decode(record, &big);
    if (status != KV_OK) return status;
    n->big_count++;
    n->big_size += big.size;
    return big_set_has(&store->bigs, big.file_id) ? KV_OK : big_set_add(&store->bigs, big.file_id);
}

/* --- slots --- */

/* A table whose key names it no more. Its rows are found by their change names when the sweep comes to it. */
static kv_status retire_table(kv_store *store, uint64_t table_id) {
    store->retired_sequence = kv_flow_sequence(store->flow);
    return big_set_add(&store->retired_tables, table_id);
}

/* Another expiry of the same table. */
static bool same_table(const found *old, const kv_record *record) {
    return record->kind == KV_KIND_TABLE_NEW && record->table_id == old->record.table_id;
}

/* The record's names, as far as order has not heard of them. */
static kv_status note_names(kv_store *store, const kv_record *record, uint64_t location) {
    bool row = (kv_loc_flags(location) & KV_LOC_ROW) != 0;
    kv_status status = KV_OK;
    if (record->flags & KV_FLAG_CREATED)
        status = kv_order_created(store->order, location, row ? KV_SPACE_ROWS : KV_SPACE_KEYS);
    if (row && status == KV_OK) status = kv_order_created(store->order, location, KV_SPACE_CHANGES);
    return status;
}

static bool names_content(const kv_store *store) { return store->late != NULL && store->late->contents != NULL; }

kv_status store_index_put(kv_store *store, uint64_t hash, const found *old, const kv_record *record,
                          kv_position position, uint32_t used) {
    uint64_t location = store_location(record, position);
    if (KV_UNLIKELY(store->late != NULL && store->late->evaluating)) return late_put(store->late, hash, old->location, location);
    kv_position behind = {.segment = position.segment, .offset = position.offset + used};
    bool there = old->location != 0;
    kv_status status = counters_room(&store->counters, position.segment);
    if (KV_UNLIKELY(status == KV_OK && there && store->snapshots != NULL)) status = snapshot_keep(store, hash, old, record);
    if (status == KV_OK && !there) status = kv_index_insert(store->index, hash, location);
    else if (status == KV_OK) status = kv_index_replace(store->index, &old->probe, location);
    if (status == KV_OK && ((record->flags & KV_FLAG_CREATED) || (kv_loc_flags(location) & KV_LOC_ROW)))
        status = note_names(store, record, location);
    if (status == KV_OK) status = count_in(store, record, kv_loc_flags(location), position.segment, used);
    if (status == KV_OK && there) status = count_out(store, old, record, behind);
    if (KV_UNLIKELY(status == KV_OK && there && found_table(old)) && !same_table(old, record))
        status = retire_table(store, old->record.table_id);
    bool metas = is_meta(record) || (there && is_meta(&old->record));
    if (KV_UNLIKELY(metas && status == KV_OK && names_content(store))) status = content_shown(store, old, record);
    return status;
}

/* The newest record of a table is its head. Records of one version agree on what the table is after it. */
kv_status store_put_head(kv_store *store, const kv_record *record, kv_position position, kv_fault *fault) {
    target t = target_table(store, record->table_id, KV_LOC_HEAD);
    uint64_t location = kv_loc_make(position.segment, position.offset, KV_LOC_HEAD);
    found head;
    kv_status status = store_find(store, &t, &head, fault);
    if (KV_UNLIKELY(store->late != NULL && store->late->evaluating)) {
        if (status != KV_OK && status != KV_ABSENT) return status;
        return late_put(store->late, t.hash, status == KV_OK ? head.location : 0, location);
    }
    if (status == KV_ABSENT) return kv_index_insert(store->index, t.hash, location);
    if (status != KV_OK || head.record.version > record->version) return status;
    if (store->snapshots != NULL) status = snapshot_keep(store, t.hash, &head, record);
    return status == KV_OK ? kv_index_replace(store->index, &head.probe, location) : status;
}

bool makes_head(const kv_record *record) {
    return record->kind == KV_KIND_TABLE_NEW || record->kind == KV_KIND_ROW_PUT || record->kind == KV_KIND_ROW_DELETE;
}

static bool brings_name(const kv_record *record) {
    return record->kind == KV_KIND_PUT || record->kind == KV_KIND_TABLE_NEW || record->kind == KV_KIND_ROW_PUT;
}

/* Whether the record brings its name into being is asked of the index, not of its flag: the record that had the flag
 * may be in a segment that is gone, while the one that stands there was never moved. */
kv_status store_show(kv_store *store, const kv_record *record, kv_position position, uint32_t used, kv_fault *fault) {
    found old;
    kv_record shown = *record;
    target t = target_of(store, record);
    kv_status status = store_find(store, &t, &old, fault);
    if (status != KV_OK && status != KV_ABSENT) return status;
    if (brings_name(record) && (old.location == 0 || found_tombstone(&old))) shown.flags |= KV_FLAG_CREATED;
    status = store_index_put(store, t.hash, &old, &shown, position, used);
    if (status == KV_OK && makes_head(record)) status = store_put_head(store, record, position, fault);
    return status;
}

kv_status store_hide(kv_store *store, const found *old) {
    store->hidden = true;
    kv_status status = kv_index_remove(store->index, &old->probe);
    if (status == KV_OK) status = count_out(store, old, NULL, kv_flow_tail(store->flow));
    bool metas = is_meta(&old->record) && names_content(store);
    return status == KV_OK && metas ? content_shown(store, old, NULL) : status;
}

/* --- the newest CLOCK, which no slot points at --- */

kv_status store_show_clock(kv_store *store, const kv_record *record, kv_position position, uint32_t used) {
    if (record->value_size != 8) return KV_OK;
    int64_t clock_ms = (int64_t)kv_load64(record->value);
    if (clock_ms < atomic_load(&store->clock_ms)) return KV_OK;
    kv_status status = counters_room(&store->counters, position.segment);
    if (status != KV_OK) return status;
    counters *n = &store->counters;
    if (n->clock_location != 0) count_live(n, kv_loc_segment(n->clock_location), -(int64_t)n->clock_used);
    n->clock_location = kv_loc_make(position.segment, position.offset, 0);
    n->clock_used = used;
    count_live(n, position.segment, used);
    store_set_clock(store, clock_ms);
    return KV_OK;
}
