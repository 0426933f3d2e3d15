/* audit.c -- counts anew what the counters say: every slot of the index, and the record it points at.
 *
 * A slot is right if its record is intact and is one of its name: hash and class follow from the record. Heads are not
 * counted (their records are some other slot's), but their table has to be the one they are of; that of a dropped table may
 * point into a segment that is gone, until the sweep comes to it. Under the writer lock
 * all the while: it is meant for openers that nobody writes through. */
#include <stdlib.h>

#include "store_internal.h"

typedef struct auditing {
    kv_store *store;
    kv_audit *out;
    uint64_t *segment_live;
} auditing;

static bool is_right(const kv_store *store, const kv_index_slot *slot, const kv_record *record) {
    unsigned class = kv_loc_flags(slot->location) & SLOT_CLASSES;
    if (class == KV_LOC_HEAD)
        return makes_head(record) && target_table(store, record->table_id, KV_LOC_HEAD).hash == slot->hash;
    target t = target_of(store, record);
    return t.hash == slot->hash && t.class == class;
}

static void count_slot(auditing *a, unsigned flags, const kv_record *record, uint32_t segment, uint32_t used) {
    kv_audit *n = a->out;
    kv_big big;
    if (flags & KV_LOC_HEAD) return;
    n->live_size += used;
    if (segment < a->store->counters.segment_capacity) a->segment_live[segment] += used;
    if (flags & KV_LOC_FLOOR) return;
    bool row = (flags & KV_LOC_ROW) != 0;
    if (flags & KV_LOC_TOMBSTONE) {
        n->row_tombstone_count += row;
        n->tombstone_count += !row;
        return;
    }
    n->row_count += row;
    n->table_count += (flags & KV_LOC_TABLE) != 0;
    n->key_count += !row && !(flags & KV_LOC_TABLE);
    if (!(record->flags & KV_FLAG_BIG) || kv_big_decode(record, &big) != KV_OK) return;
    n->big_count++;
    n->big_size += big.size;
}

static bool is_left_behind(const kv_store *store, const kv_index_slot *slot) {
    const big_set *retired = &store->retired_tables;
    for (uint64_t i = 0; i < retired->capacity; i++)
        if (retired->ids[i] != 0 && target_table(store, retired->ids[i], KV_LOC_HEAD).hash == slot->hash) return true;
    return false;
}

static void look_at(auditing *a, const kv_index_slot *slot) {
    kv_store *store = a->store;
    uint64_t size;
    uint32_t segment = kv_loc_segment(slot->location), offset = kv_loc_offset(slot->location), used;
    kv_record record;
    const uint8_t *bytes = kv_flow_at(store->flow, segment, offset, &size);
    uint64_t place = kv_place(kv_flow_salt(store->flow), segment, offset);
    a->out->slot_count++;
    if (bytes == NULL && (kv_loc_flags(slot->location) & KV_LOC_HEAD) && is_left_behind(store, slot)) return;
    bool right = bytes != NULL && kv_record_decode(bytes, size, place, &record, &used) == KV_OK &&
                 is_right(store, slot, &record);
    if (right) count_slot(a, kv_loc_flags(slot->location), &record, segment, used);
    else a->out->wrong_slot_count++;
}

static kv_status audit_slots(auditing *a) {
    kv_index_slot *slots = NULL;
    size_t capacity = 0, count;
    uint64_t hash = 0;
    kv_status status;
    do {
        status = kv_index_walk(a->store->index, &hash, &slots, &capacity, &count);
        for (size_t i = 0; status == KV_OK && i < count; i++) look_at(a, &slots[i]);
    } while (status == KV_OK && hash != 0);
    free(slots);
    return status;
}

static kv_status audit_locked(auditing *a) {
    const counters *n = &a->store->counters;
    kv_guard guard;
    kv_status status = store_usable(a->store);
    if (status != KV_OK) return status;
    a->segment_live = calloc(n->segment_capacity + 1, sizeof *a->segment_live);
    if (a->segment_live == NULL) return KV_ENOMEM;
    if (KV_GUARD_CAUGHT(&guard)) status = KV_EMAPPING;
    else status = audit_slots(a);
    kv_guard_leave(&guard);
    if (n->clock_location != 0) {
        a->out->live_size += n->clock_used;
        a->segment_live[kv_loc_segment(n->clock_location)] += n->clock_used;
    }
    for (uint32_t i = 0; i < n->segment_capacity; i++)
        a->out->wrong_segment_count += a->segment_live[i] != n->segment_live[i];
    free(a->segment_live);
    return status;
}

kv_status kv_store_audit(kv_store *store, kv_audit *out) {
    auditing a = {.store = store, .out = out};
    *out = (kv_audit){0};
    if (*store->alive == 0) return KV_EFORKED;
    pthread_mutex_lock(&store->write_lock);
    kv_status status = audit_locked(&a);
    pthread_mutex_unlock(&store->write_lock);
    return status;
}
