/* find.c -- from a name to its record: what the index says, checked against the flow.
 *
 * A slot of the index is for one of four things, and its class, in the location's flags, says which:
 *
 *   key     a key, or the key of a table      PUT, DELETE, TABLE_NEW, TABLE_DROP
 *   row     a row of a table, by table id     ROW_PUT, ROW_DELETE
 *   head    a table's newest record           any of TABLE_NEW, ROW_PUT, ROW_DELETE: it has version, count, next row
 *   floor   a table's floor                   TABLE_FLOOR
 *
 * So a table is found in two steps, key -> id -> head, and a row write is one record: it is the new head as well.
 *
 * What a flipped bit can do is caught here: a slot whose whole 64-bit hash and class fit while the name does not is a
 * collision only if that record is intact. */
#include <stdio.h>

#include "late.h"

static const uint64_t ROW_SEED_STEP = 0x9FB21C651E98DF25ULL; /* odd: no id but 0 leaves the seed of keys as it is */

uint64_t store_hash(const kv_store *store, const uint8_t *key, size_t size) {
    return kv_xxh64(key, size, store->hash_seed);
}

target target_key(const kv_store *store, const uint8_t *key, size_t size) {
    return (target){.key = key, .key_size = size, .hash = store_hash(store, key, size)};
}

target target_row(const kv_store *store, uint64_t table_id, const uint8_t *row, size_t size) {
    uint64_t seed = store->hash_seed + table_id * ROW_SEED_STEP;
    return (target){.key = row, .key_size = size, .table_id = table_id, .hash = kv_xxh64(row, size, seed),
                    .class = KV_LOC_ROW};
}

/* Of a table as a whole: its head or its floor. */
target target_table(const kv_store *store, uint64_t table_id, unsigned class) {
    uint8_t bytes[8];
    kv_store64(bytes, table_id);
    return (target){.table_id = table_id, .hash = kv_xxh64(bytes, sizeof bytes, store->hash_seed ^ class), .class = class};
}

target target_of(const kv_store *store, const kv_record *record) {
    switch (record->kind) {
    case KV_KIND_ROW_PUT:
    case KV_KIND_ROW_DELETE:
        return target_row(store, record->table_id, record->key, record->key_size);
    case KV_KIND_TABLE_FLOOR:
        return target_table(store, record->table_id, KV_LOC_FLOOR);
    default:
        return target_key(store, record->key, record->key_size);
    }
}

static bool is_row(const kv_record *record) {
    return record->kind == KV_KIND_ROW_PUT || record->kind == KV_KIND_ROW_DELETE;
}

static bool same_name(const target *t, const kv_record *record) {
    if (t->class & (KV_LOC_HEAD | KV_LOC_FLOOR)) return record->table_id == t->table_id;
    if (is_row(record) != (t->class == KV_LOC_ROW)) return false;
    if (t->class == KV_LOC_ROW && record->table_id != t->table_id) return false;
    if (record->key_size != t->key_size) return false;
    return t->key_size == 0 || memcmp(record->key, t->key, t->key_size) == 0;
}

/* The record at out->location, by its head alone. KV_ABSENT: there is no such place. */
kv_status store_peek(const kv_store *store, found *out) {
    uint64_t size;
    uint32_t segment = kv_loc_segment(out->location), offset = kv_loc_offset(out->location);
    out->intact = false;
    out->bytes = kv_flow_at(store->flow, segment, offset, &size);
    if (KV_UNLIKELY(out->bytes == NULL)) return KV_ABSENT;
    /* A record is where nobody has looked for long. Its head is waited for; what lies behind comes meanwhile. */
    __builtin_prefetch(out->bytes + 64);
    __builtin_prefetch(out->bytes + 128);
    out->place = kv_place(kv_flow_salt(store->flow), segment, offset);
    return kv_record_peek(out->bytes, size, out->place, &out->record, &out->used);
}

/* KV_OK: the record at out->location is the one; KV_ABSENT: a collision. */
kv_status store_look_at(kv_store *store, const target *t, found *out, kv_fault *fault) {
    kv_status status = store_peek(store, out);
    if (KV_UNLIKELY(status != KV_OK))
        return fault_corrupt(fault, out->location,
                             status == KV_ABSENT ? "there is no such place" : "the head of the record is damaged");
    bool same = same_name(t, &out->record);
    /* The head check covers neither the table nor the expiry, and what has expired is gone. */
    bool trust = same && out->record.expires_ms == 0 && t->class == 0;
    if (KV_LIKELY(trust)) return KV_OK;
    if (found_whole(store, out)) return same ? KV_OK : KV_ABSENT;
    return fault_corrupt(fault, out->location, "the record's checksum is wrong");
}

static kv_status index_damage(kv_store *store, kv_fault *fault) {
    atomic_store(&store->index_damaged, true);
    fault->status = KV_ECORRUPT;
    fault->position = (kv_position){0};
    snprintf(fault->what, sizeof fault->what, "an index file is damaged; the index is rebuilt at the next open");
    return KV_ECORRUPT;
}

kv_status store_find(kv_store *store, const target *t, found *out, kv_fault *fault) {
    if (KV_UNLIKELY(store->late != NULL)) {
        kv_status status = late_find(store, t, out, fault);
        if (status != KV_ABSENT) return status;
    }
    out->location = kv_index_first(store->index, t->hash, &out->probe);
    for (; out->location != 0; out->location = kv_index_next(&out->probe)) {
        if ((kv_loc_flags(out->location) & SLOT_CLASSES) != t->class) continue;
        kv_status status = store_look_at(store, t, out, fault);
        if (KV_LIKELY(status == KV_OK)) return KV_OK;
        if (status != KV_ABSENT) return status;
    }
    if (KV_LIKELY(out->probe.status == KV_OK)) return KV_ABSENT;
    return out->probe.status == KV_ECORRUPT ? index_damage(store, fault) : out->probe.status;
}

bool store_probe(kv_store *store, uint64_t hash, uint64_t location, kv_probe *probe) {
    uint64_t at = kv_index_first(store->index, hash, probe);
    while (at != 0 && at != location) at = kv_index_next(probe);
    return at != 0;
}

bool found_intact(const found *f) { return f->intact || kv_record_intact(f->bytes, f->place, &f->record); }

bool found_intact_once(const kv_store *store, const found *f) {
    uint32_t segment = kv_loc_segment(f->location), offset = kv_loc_offset(f->location);
    bool noted = f->record.value_size >= KV_NOTED_SIZE_MIN;
    if (f->intact || (noted && kv_flow_was_intact(store->flow, segment, offset))) return true;
    if (!kv_record_intact(f->bytes, f->place, &f->record)) return false;
    if (noted) kv_flow_note_intact(store->flow, segment, offset);
    return true;
}

kv_status found_bytes(kv_store *store, const found *f, const uint8_t **bytes, uint64_t *size, kv_fault *fault) {
    *bytes = f->record.value;
    *size = f->record.value_size;
    if (KV_LIKELY(!is_meta(&f->record))) return KV_OK;
    kv_late *late = store->late;
    kv_meta meta;
    if (late == NULL || late->contents == NULL || !kv_meta_decode(*bytes, *size, &meta))
        return fault_corrupt(fault, f->location, "no description of a value's bytes");
    const content *c = contents_find(late->contents, &meta);
    if (c == NULL || c->location == 0) {
        late->lacking = meta;
        return KV_ELACKING;
    }
    found there = {.location = c->location};
    kv_status status = store_peek(store, &there);
    if (status != KV_OK || !found_intact_once(store, &there))
        return fault_corrupt(fault, c->location, "the bytes of a value are damaged");
    *bytes = there.record.value;
    *size = there.record.value_size;
    return KV_OK;
}

bool found_whole(const kv_store *store, found *f) {
    bool large = f->record.value_size >= KV_NOTED_SIZE_MIN;
    if (large && kv_flow_made(store->flow, kv_loc_segment(f->location))) return true;
    f->intact = found_intact_once(store, f);
    return f->intact;
}

bool found_tombstone(const found *f) { return (kv_loc_flags(f->location) & KV_LOC_TOMBSTONE) != 0; }
bool found_table(const found *f) { return (kv_loc_flags(f->location) & KV_LOC_TABLE) != 0; }

static bool alive_at(const found *f, int64_t now) {
    return f->record.expires_ms == 0 || (int64_t)f->record.expires_ms > now;
}

bool found_alive(kv_store *store, const found *f) {
    if (f->location == 0 || found_tombstone(f)) return false;
    return f->record.expires_ms == 0 || alive_at(f, store_judge_ms(store));
}

/* --- for writers --- */

kv_status store_find_trusted(kv_caller *c, const target *t, found *out, bool *alive) {
    kv_store *store = c->store;
    kv_status status = store_find(store, t, out, &c->answer.fault);
    *alive = false;
    if (status == KV_ABSENT) return KV_OK;
    if (status != KV_OK) return status;
    if (!found_whole(store, out))
        return fault_corrupt(&c->answer.fault, out->location, "the record's checksum is wrong");
    *alive = found_alive(store, out);
    bool gone = !*alive && !found_tombstone(out);
    return gone ? store_note_clock(store, (int64_t)out->record.expires_ms) : KV_OK;
}

static void table_fill(table_state *table, const found *head) {
    table->id = head->record.table_id;
    table->head = *head;
    table->version = head->record.version;
    table->row_count = head->record.row_count;
    table->next_row = head->record.next_row;
}

/* A table without a head is what only damage could make. */
static kv_status head_missing(const table_state *table, kv_status status, kv_fault *fault) {
    if (status != KV_ABSENT) return status;
    return fault_corrupt(fault, table->at.location, "the table's newest record is not in the index");
}

kv_status found_value(kv_caller *c, const found *f) {
    if (found_intact_once(c->store, f)) return KV_OK;
    return fault_corrupt(&c->answer.fault, f->location, "the record's checksum is wrong");
}

kv_status store_find_table(kv_caller *c, const uint8_t *key, size_t size, table_state *out) {
    bool alive;
    out->id = out->version = out->row_count = out->next_row = 0;
    out->key = target_key(c->store, key, size);
    kv_status status = store_find_trusted(c, &out->key, &out->at, &alive);
    if (status != KV_OK || !alive) return status;
    if (!found_table(&out->at)) return KV_EWRONGTYPE;
    found head;
    target t = target_table(c->store, out->at.record.table_id, KV_LOC_HEAD);
    status = store_find(c->store, &t, &head, &c->answer.fault);
    if (status != KV_OK) return head_missing(out, status, &c->answer.fault);
    table_fill(out, &head);
    return KV_OK;
}

/* --- for readers: now, or as of the caller's snapshot --- */

kv_status reader_find(kv_caller *c, const target *t, found *out) {
    kv_status status = store_find(c->store, t, out, &c->answer.fault);
    return KV_LIKELY(c->snapshot == NULL) ? status : snapshot_find(c, t, status, out);
}

bool reader_alive(kv_caller *c, const found *f) {
    if (f->location == 0 || found_tombstone(f)) return false;
    if (f->record.expires_ms == 0) return true;
    return alive_at(f, c->snapshot == NULL ? store_judge_ms(c->store) : snapshot_now(c->snapshot));
}

kv_status reader_find_table(kv_caller *c, const uint8_t *key, size_t size, table_state *out) {
    out->id = out->version = out->row_count = out->next_row = 0;
    out->key = target_key(c->store, key, size);
    kv_status status = reader_find(c, &out->key, &out->at);
    if (status != KV_OK) return status;
    if (!found_whole(c->store, &out->at))
        return fault_corrupt(&c->answer.fault, out->at.location, "the record's checksum is wrong");
    c->answer.version = out->at.record.version;
    if (found_tombstone(&out->at)) return KV_ABSENT;
    c->answer.expires_ms = (int64_t)out->at.record.expires_ms;
    if (!reader_alive(c, &out->at)) return KV_ABSENT;
    if (!found_table(&out->at)) return KV_EWRONGTYPE;
    /* Between the two looks the table may have been dropped: then its head may be gone, and it is absent. */
    found head;
    target t = target_table(c->store, out->at.record.table_id, KV_LOC_HEAD);
    status = reader_find(c, &t, &head);
    if (status != KV_OK) return status;
    table_fill(out, &head);
    return KV_OK;
}
