/* late.c -- see late.h. */
#include "late.h"

#include <stdlib.h>

enum { CAPACITY_MIN = 64, NTH_BITS = 8 };

void late_free(kv_late *late) {
    free(late->slots);
    late->slots = NULL;
    late->capacity = late->count = 0;
}

/* --- records --- */

/* What whoever asked is told, as far as the record says it. */
static int64_t result_of(const kv_late *late, const kv_record *record) {
    switch (late->tells) {
    case LATE_NUMBER: {
        char digits[24] = {0};
        memcpy(digits, record->value, record->value_size < sizeof digits - 1 ? record->value_size : sizeof digits - 1);
        return strtoll(digits, NULL, 10);
    }
    case LATE_SIZE:
        return record->value_size;
    case LATE_ROW:
        return (int64_t)__builtin_bswap64(kv_load64(record->key));
    default:
        return 0;
    }
}

void late_stamp(kv_late *late, kv_record *record, bool first) {
    record->shard = late->shard;
    record->ballot = late->ballot;
    record->prev_ballot = late->prev_ballot;
    record->options |= LATE_OPTIONS;
    if (record->options & KV_HAS_EXPIRY) late->expiring = true;
    late->metas |= is_meta(record);
    if (!first) return;
    late->result = result_of(late, record);
    if (late->request == NULL) return;
    record->request = *late->request;
    record->request.result = late->result;
    record->options |= KV_HAS_REQUEST;
}

kv_status late_append(kv_store *store, kv_record *records, size_t count, kv_position *position, uint32_t *size) {
    uint64_t salt = kv_flow_salt(store->flow), sequence = kv_flow_sequence(store->flow), inside = 0;
    kv_record head = {.kind = KV_KIND_ENVELOPE, .version = sequence + 1};
    uint8_t *bytes;
    for (size_t i = 0; i < count; i++) inside += kv_record_size(&records[i]);
    uint64_t at = count > 1 ? kv_record_size(&head) : 0;
    KV_ASSERT(inside + at <= UINT32_MAX); /* A version came in a frame, or fits into one (ask_fits). */
    head.value_size = (uint32_t)inside;
    kv_status status = kv_flow_reserve(store->flow, inside + at, count, &bytes, position);
    if (status != KV_OK) return status;
    if (at != 0) kv_record_encode(&head, kv_place(salt, position->segment, position->offset), bytes);
    uint64_t from = at;
    for (size_t i = 0; i < count; i++) {
        records[i].sequence = ++sequence;
        kv_record_encode(&records[i], kv_place(salt, position->segment, position->offset + (uint32_t)at), bytes + at);
        at += kv_record_size(&records[i]);
    }
    status = kv_flow_commit(store->flow, *position, at);
    if (status != KV_OK) return status;
    kv_flow_set_sequence(store->flow, sequence);
    position->offset += (uint32_t)from;
    *size = (uint32_t)inside;
    return KV_OK;
}

kv_status late_keep(kv_store *store, kv_record *record, uint8_t meta[KV_META_SIZE]) {
    kv_late *late = store->late;
    bool value = record->kind == KV_KIND_PUT || record->kind == KV_KIND_ROW_PUT;
    if (late->contents == NULL || !late->evaluating || !value || is_meta(record)) return KV_OK;
    if (KV_LIKELY(record->value_size <= late->inline_max)) return KV_OK;
    kv_meta named = {.size = record->value_size, .digest = kv_xxh64(record->value, record->value_size, 0),
                     .number = ++late->number, .origin = late->node, .data = late->data};
    kv_status status = late_write_content(store, &named, late->shard, late->version, record->value);
    if (status != KV_OK) return status;
    kv_meta_encode(&named, meta);
    record->value = meta;
    record->value_size = KV_META_SIZE;
    record->flags |= KV_FLAG_META;
    late->metas = true;
    return KV_OK;
}

kv_status late_write_content(kv_store *store, const kv_meta *meta, uint16_t shard, uint64_t version, const uint8_t *bytes) {
    uint8_t key[KV_META_SIZE];
    kv_position position;
    uint32_t used;
    kv_record record = {.kind = KV_KIND_DATA, .shard = shard, .version = version, .options = KV_HAS_SEQUENCE, .key = key,
                        .key_size = sizeof key, .value = bytes, .value_size = (uint32_t)meta->size};
    kv_meta_encode(meta, key);
    content *c = contents_note(store->late->contents, meta, shard, version);
    if (c == NULL) return KV_ENOMEM;
    kv_status status = late_append(store, &record, 1, &position, &used);
    return status == KV_OK ? content_arrived(store, c, position, used) : status;
}

void late_note(kv_late *late, kv_position position, uint32_t size, uint64_t record_count) {
    KV_ASSERT(late->record_count == 0); /* One call, one version. */
    late->position = position;
    late->size = size;
    late->record_count = (uint32_t)record_count;
}

uint64_t late_table_id(const kv_late *late, uint64_t nth) {
    KV_ASSERT(late->version < (uint64_t)1 << LATE_VERSION_BITS);
    if (nth >= 1 << NTH_BITS) return 0;
    return (uint64_t)late->shard << (LATE_VERSION_BITS + NTH_BITS) | late->version << NTH_BITS | nth;
}

uint64_t late_table_version(uint64_t table_id) {
    return table_id >> NTH_BITS & (((uint64_t)1 << LATE_VERSION_BITS) - 1);
}

/* --- undecided names --- */

static uint64_t home(const kv_late *late, uint64_t hash) { return hash & (late->capacity - 1); }

/* The slot with this hash and location, or the empty one where it would be. */
static late_slot *slot_of(kv_late *late, uint64_t hash, uint64_t location) {
    uint64_t at = home(late, hash);
    while (late->slots[at].location != 0 && (late->slots[at].hash != hash || late->slots[at].location != location))
        at = (at + 1) & (late->capacity - 1);
    return &late->slots[at];
}

static kv_status slots_grow(kv_late *late) {
    late_slot *old = late->slots;
    uint64_t old_capacity = late->capacity, capacity = old_capacity == 0 ? CAPACITY_MIN : 2 * old_capacity;
    late_slot *larger = calloc(capacity, sizeof *larger);
    if (larger == NULL) return KV_ENOMEM;
    late->slots = larger;
    late->capacity = capacity;
    for (uint64_t i = 0; i < old_capacity; i++)
        if (old[i].location != 0) *slot_of(late, old[i].hash, old[i].location) = old[i];
    free(old);
    return KV_OK;
}

kv_status late_put(kv_late *late, uint64_t hash, uint64_t old, uint64_t location) {
    if (2 * (late->count + 1) > late->capacity) {
        kv_status status = slots_grow(late);
        if (status != KV_OK) return status;
    }
    late_slot *slot = old == 0 ? NULL : slot_of(late, hash, old);
    if (slot == NULL || slot->location == 0) {
        slot = slot_of(late, hash, location);
        late->count++;
    }
    *slot = (late_slot){.hash = hash, .location = location};
    return KV_OK;
}

/* Those that were pushed on past it close up, so that an empty slot goes on meaning "there is no more". */
void late_remove(kv_late *late, uint64_t hash, uint64_t location) {
    if (late->capacity == 0) return;
    uint64_t mask = late->capacity - 1, hole = (uint64_t)(slot_of(late, hash, location) - late->slots);
    if (late->slots[hole].location == 0) return;
    late->count--;
    for (uint64_t at = (hole + 1) & mask; late->slots[at].location != 0; at = (at + 1) & mask) {
        bool stays = ((at - home(late, late->slots[at].hash)) & mask) < ((at - hole) & mask);
        if (stays) continue;
        late->slots[hole] = late->slots[at];
        hole = at;
    }
    late->slots[hole] = (late_slot){0};
}

kv_status late_find(kv_store *store, const target *t, found *out, kv_fault *fault) {
    kv_late *late = store->late;
    if (!late->evaluating || late->count == 0) return KV_ABSENT;
    uint64_t mask = late->capacity - 1;
    for (uint64_t at = home(late, t->hash); late->slots[at].location != 0; at = (at + 1) & mask) {
        if (late->slots[at].hash != t->hash) continue;
        out->location = late->slots[at].location;
        if ((kv_loc_flags(out->location) & SLOT_CLASSES) != t->class) continue;
        kv_status status = store_look_at(store, t, out, fault);
        if (status != KV_ABSENT) return status;
    }
    out->location = 0;
    return KV_ABSENT;
}
