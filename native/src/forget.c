/* forget.c -- what goes without anybody asking: keys and rows that time has ended, and the memory of deletes.
 *
 * A tombstone says that what older records of its name say is no longer so. It may leave the index when there are no
 * older records: then a replay, of everything even, comes to the same answer without it. So a pass
 *
 *   collects   tombstones, from the index, up to a bound: of each the hash of its name and where it lies
 *   reads      every segment that can hold an older record, and marks those of which it finds one
 *   forgets    the others, under the lock, where the slot is as it was
 *
 * The segments are listed after the collecting. A record that is older than a tombstone cannot come to be in another
 * segment later: only what is live moves. One that went meanwhile is gone for good, because a removal is durable before
 * it can be seen. What is written later for the name is newer, and then the slot is not as it was. An older tombstone of
 * the name does no harm: whoever brings it back brings back the same answer. Two names with one hash and class at worst
 * keep a tombstone.
 *
 * Nothing is logged: as long as the tombstone's own record is there, a replay shows it again.
 *
 * Of rows the change feed asks as well, until the table's floor is above them; and a table's newest record stays, whatever
 * it is. A snapshot from before the floor was raised promises what the floor was then. */
#include <stdlib.h>

#include "store_internal.h"

enum {
    COLLECT_COUNT_MAX = 1 << 20, /* tombstones of one pass: 16 MiB, at a load of at most one half */
    COLLECT_TABLES = 16,         /* tables of the index in one step */
    READ_SIZE = 1 << 18,         /* bytes of segments in one step */
    HOLD_COUNT = 32,             /* slots changed in one hold of the writer lock */
    HOLDS_A_STEP = 64,
};

/* --- expiring --- */

typedef struct expiring {
    write_op base; /* first: store_hold() hands it to the step */
    kv_store *store;
    uint64_t cursor;      /* how far the index was looked through */
    kv_index_slot *slots; /* of the table it is at: what may have expired */
    size_t capacity, count;
    size_t next;          /* the first that was not tried yet */
    uint64_t looked_count, deleted_count;
} expiring;

/* What stands there, if the slot is as it was when it was seen. */
static bool look_at_slot(kv_store *store, const kv_index_slot *slot, found *out) {
    out->location = slot->location;
    return store_probe(store, slot->hash, slot->location, &out->probe) && store_peek(store, out) == KV_OK;
}

/* A damaged one is left to whoever reads it. */
static kv_status step_expire_slots(kv_caller *c, write_op *w) {
    expiring *e = (expiring *)w;
    kv_store *store = c->store;
    size_t until = e->count - e->next < HOLD_COUNT ? e->count : e->next + HOLD_COUNT;
    for (; e->next < until; e->next++) {
        found f;
        bool deleted;
        if (!look_at_slot(store, &e->slots[e->next], &f) || (int64_t)f.record.expires_ms > store_now(store)) continue;
        if (!found_intact(&f)) continue;
        target t = target_of(store, &f.record);
        kv_status status = store_expire(c, &t, &deleted);
        if (status != KV_OK) return status;
        e->deleted_count += deleted;
    }
    return KV_OK;
}

/* Only what has an expiry is kept; which of it has expired, the record says. */
static kv_status expiring_slots(void *context) {
    expiring *e = context;
    size_t all, kept = 0;
    e->count = e->next = 0;
    kv_status status = kv_index_walk(e->store->index, &e->cursor, &e->slots, &e->capacity, &all);
    if (status != KV_OK) return status;
    e->looked_count += all;
    for (size_t i = 0; i < all; i++) {
        unsigned flags = kv_loc_flags(e->slots[i].location);
        if (!(flags & KV_LOC_EXPIRY) || (flags & (KV_LOC_TOMBSTONE | KV_LOC_HEAD | KV_LOC_FLOOR))) continue;
        e->slots[e->count++] = e->slots[i];
    }
    /* Once without the lock, so that nobody waits for the pages of those that are still good. */
    for (size_t i = 0; i < e->count; i++) {
        found f;
        if (!look_at_slot(e->store, &e->slots[i], &f) || (int64_t)f.record.expires_ms > store_now(e->store)) continue;
        e->slots[kept++] = e->slots[i];
    }
    e->count = kept;
    return KV_OK;
}

kv_result kv_expire_step(kv_caller *c, uint64_t *cursor, uint64_t slot_count) {
    expiring e = {.store = c->store, .cursor = *cursor};
    kv_result result = 0;
    if (*c->store->alive == 0) return caller_fail(c, KV_EFORKED, "opened before fork");
    c->answer.fault.status = KV_OK;
    do {
        kv_status status = store_look(c, expiring_slots, &e);
        if (status != KV_OK) result = caller_fail(c, status, "the index could not be looked through");
        while (result >= 0 && e.next < e.count) result = store_hold(c, step_expire_slots, &e.base, 0);
        *cursor = e.cursor;
    } while (result >= 0 && *cursor != 0 && e.looked_count < slot_count);
    free(e.slots);
    return result < 0 ? result : (kv_result)e.deleted_count;
}

/* --- forgetting --- */

enum stage { COLLECTING, READING, FORGETTING, DONE };

static const uint64_t NEEDED = (uint64_t)1 << 63; /* in a location, beside its flags */

struct kv_forget {
    write_op base; /* first: store_hold() hands it to the step */
    kv_store *store;
    kv_caller *c;
    enum stage stage;
    uint64_t hash;          /* how far the index was looked through; */
    bool collected;         /* to its end */
    kv_index_slot *slots;   /* of the table it is at */
    size_t slot_capacity;
    kv_index_slot *set;     /* the tombstones, by hash; location 0: free */
    size_t set_capacity, set_count;
    kv_segment_info *segments; /* to be read */
    size_t segment_count;
    size_t segment;            /* the one it is at, */
    uint32_t offset;           /* and where in it */
    size_t next;               /* in the set: the first that was not decided yet */
    size_t hold_until;         /* and where the hold under way ends */
    uint64_t forgotten_count;
};

kv_status kv_forget_begin(kv_store *store, kv_forget **out) {
    kv_status status = store_usable(store);
    if (status == KV_OK) status = store_writable(store);
    if (status != KV_OK) return status;
    kv_forget *k = calloc(1, sizeof *k);
    if (k == NULL) return KV_ENOMEM;
    k->store = store;
    status = kv_caller_new(store, &k->c);
    if (status == KV_OK) *out = k;
    else kv_forget_free(k);
    return status;
}

void kv_forget_free(kv_forget *k) {
    if (k == NULL) return;
    kv_caller_free(k->c);
    free(k->slots);
    free(k->set);
    free(k->segments);
    free(k);
}

uint64_t kv_forget_count(const kv_forget *k) { return k->forgotten_count; }
const kv_fault *kv_forget_fault(const kv_forget *k) { return &k->c->answer.fault; }

/* --- collecting --- */

static void set_put(kv_index_slot *set, size_t capacity, kv_index_slot one) {
    size_t at = (size_t)one.hash & (capacity - 1);
    while (set[at].location != 0) at = (at + 1) & (capacity - 1);
    set[at] = one;
}

static kv_status set_add(kv_forget *k, kv_index_slot one) {
    if (2 * (k->set_count + 1) > k->set_capacity) {
        size_t capacity = k->set_capacity == 0 ? 1024 : 2 * k->set_capacity;
        kv_index_slot *larger = calloc(capacity, sizeof *larger);
        if (larger == NULL) return KV_ENOMEM;
        for (size_t i = 0; i < k->set_capacity; i++)
            if (k->set[i].location != 0) set_put(larger, capacity, k->set[i]);
        free(k->set);
        k->set = larger;
        k->set_capacity = capacity;
    }
    set_put(k->set, k->set_capacity, one);
    k->set_count++;
    return KV_OK;
}

/* Writer lock. What was not written to the end, or has nothing dead in it, holds no older record. */
static kv_status list_segments(kv_forget *k) {
    const counters *n = &k->store->counters;
    kv_segment_info *all;
    size_t count;
    kv_status status = kv_flow_segments(k->store->flow, &all, &count);
    if (status != KV_OK) return status;
    free(k->segments);
    k->segments = all;
    k->segment_count = 0;
    for (size_t i = 0; i < count; i++) {
        uint64_t live = all[i].id < n->segment_capacity ? n->segment_live[all[i].id] : 0;
        bool dead = (uint64_t)all[i].end - KV_SEGMENT_HEADER_SIZE > live + (all[i].sealed ? KV_SEAL_SIZE : 0);
        if (dead) k->segments[k->segment_count++] = all[i];
    }
    k->segment = 0;
    k->offset = KV_SEGMENT_HEADER_SIZE;
    return KV_OK;
}

static kv_status collect(kv_forget *k) {
    for (int i = 0; i < COLLECT_TABLES && !k->collected && k->set_count < COLLECT_COUNT_MAX; i++) {
        size_t count;
        kv_status status = kv_index_walk(k->store->index, &k->hash, &k->slots, &k->slot_capacity, &count);
        for (size_t j = 0; status == KV_OK && j < count; j++)
            if (kv_loc_flags(k->slots[j].location) & KV_LOC_TOMBSTONE) status = set_add(k, k->slots[j]);
        if (status != KV_OK) return status;
        k->collected = k->hash == 0;
    }
    if (k->collected || k->set_count >= COLLECT_COUNT_MAX) k->stage = READING;
    return KV_OK;
}

/* --- reading --- */

static void mark(kv_forget *k, const target *t) {
    for (size_t at = (size_t)t->hash & (k->set_capacity - 1); k->set[at].location != 0; at = (at + 1) & (k->set_capacity - 1)) {
        kv_index_slot *one = &k->set[at];
        if (one->hash == t->hash && (kv_loc_flags(one->location) & SLOT_CLASSES) == t->class) one->location |= NEEDED;
    }
}

/* Records that a tombstone may stand against. */
static bool is_shadowed(const kv_record *record) {
    return record->kind == KV_KIND_PUT || record->kind == KV_KIND_ROW_PUT || record->kind == KV_KIND_TABLE_NEW;
}

static kv_status read_segments(kv_forget *k) {
    kv_store *store = k->store;
    for (uint32_t left = READ_SIZE; k->segment < k->segment_count;) {
        const kv_segment_info *one = &k->segments[k->segment];
        uint64_t size;
        uint32_t used;
        kv_record record;
        const uint8_t *bytes = kv_flow_at(store->flow, one->id, k->offset, &size);
        if (bytes == NULL || k->offset >= one->end) { /* Removed, or read. */
            k->segment++;
            k->offset = KV_SEGMENT_HEADER_SIZE;
            continue;
        }
        if (size > one->end - k->offset) size = one->end - k->offset;
        uint64_t place = kv_place(kv_flow_salt(store->flow), one->id, k->offset);
        if (kv_record_peek(bytes, size, place, &record, &used) != KV_OK)
            return fault_corrupt(&k->c->answer.fault, kv_loc_make(one->id, k->offset, 0), "the head of the record is damaged");
        k->offset += used; /* Of an envelope: into it. */
        if (is_shadowed(&record)) {
            target t = target_of(store, &record);
            mark(k, &t);
        }
        if (used >= left) return KV_OK;
        left -= used;
    }
    k->stage = FORGETTING;
    k->next = 0;
    return KV_OK;
}

/* --- deciding: writer lock --- */

/* A row's tombstone is asked for by the change feed, until the floor is above it, and while it is what says how many rows
 * the table has. The sweep takes care of tables that were dropped. */
static kv_status row_may_go(kv_forget *k, const found *f, bool *out) {
    kv_store *store = k->store;
    kv_fault *fault = &k->c->answer.fault;
    uint64_t id = f->record.table_id;
    found head, floor;
    *out = false;
    if (big_set_has(&store->retired_tables, id)) return KV_OK;
    target t = target_table(store, id, KV_LOC_HEAD);
    kv_status status = store_find(store, &t, &head, fault);
    *out = status == KV_ABSENT; /* There is no such table any more. */
    if (status != KV_OK || head.record.version <= f->record.version) return status == KV_ABSENT ? KV_OK : status;
    t = target_table(store, id, KV_LOC_FLOOR);
    status = store_find(store, &t, &floor, fault);
    if (status != KV_OK) return status == KV_ABSENT ? KV_OK : status;
    bool below = floor.record.value_size == 8 && f->record.version <= kv_load64(floor.record.value);
    *out = below && floor.record.version <= snapshot_oldest(store);
    return KV_OK;
}

static kv_status forget_one(kv_forget *k, const kv_index_slot *slot) {
    found f;
    bool may = true;
    if (!look_at_slot(k->store, slot, &f)) return f.probe.status;
    if (!found_intact(&f)) return KV_OK; /* Nobody knows which table it is of. */
    kv_status status = kv_loc_flags(slot->location) & KV_LOC_ROW ? row_may_go(k, &f, &may) : KV_OK;
    if (status != KV_OK || !may) return status;
    k->forgotten_count++;
    return store_hide(k->store, &f);
}

static kv_status step_forget(kv_caller *c, write_op *w) {
    (void)c;
    kv_forget *k = (kv_forget *)w;
    kv_status status = KV_OK;
    for (; status == KV_OK && k->next < k->hold_until; k->next++) {
        const kv_index_slot *one = &k->set[k->next];
        if (one->location != 0 && !(one->location & NEEDED)) status = forget_one(k, one);
    }
    return status;
}

static kv_status forget(kv_forget *k) {
    for (int i = 0; i < HOLDS_A_STEP && k->next < k->set_capacity; i++) {
        k->hold_until = k->set_capacity - k->next > HOLD_COUNT ? k->next + HOLD_COUNT : k->set_capacity;
        k->base.result = 0;
        kv_result result = store_hold(k->c, step_forget, &k->base, 0);
        if (result < 0) return (kv_status)result;
    }
    if (k->next < k->set_capacity) return KV_OK;
    k->stage = k->collected ? DONE : COLLECTING;
    k->set_count = 0;
    if (k->set_capacity != 0) memset(k->set, 0, k->set_capacity * sizeof *k->set);
    return KV_OK;
}

/* --- steps --- */

static kv_status look(void *context) {
    kv_forget *k = context;
    return k->stage == COLLECTING ? collect(k) : read_segments(k);
}

static kv_status look_on(kv_forget *k) {
    bool collecting = k->stage == COLLECTING;
    kv_status status = store_look(k->c, look, k);
    if (status != KV_OK || !collecting || k->stage != READING) return status;
    if (k->set_count == 0) {
        k->stage = DONE;
        return KV_OK;
    }
    pthread_mutex_lock(&k->store->write_lock);
    status = store_usable(k->store);
    if (status == KV_OK) status = list_segments(k);
    pthread_mutex_unlock(&k->store->write_lock);
    return status;
}

kv_status kv_forget_step(kv_forget *k) {
    if (*k->store->alive == 0) return KV_EFORKED;
    if (k->stage == DONE) return KV_EOF;
    k->c->answer.fault.status = KV_OK;
    kv_status status = k->stage == FORGETTING ? forget(k) : look_on(k);
    if (status != KV_OK) {
        k->stage = DONE;
        if (k->c->answer.fault.status == KV_OK) caller_fail(k->c, status, "the deletes could not be looked through");
        return status;
    }
    return k->stage == DONE ? KV_EOF : KV_MORE;
}
