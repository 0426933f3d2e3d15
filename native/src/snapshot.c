/* snapshot.c -- the store as it was at one moment.
 *
 * A snapshot is a number: the sequence when it was opened, under the writer lock, so that no batch is half shown. What
 * it is to see of a name is the newest record whose version is not above that. The index has it, unless it was replaced
 * since: then it is in the undo table, where whoever replaced it put it first. A reader looks into the index, then into
 * the table: so it misses nothing, whatever a writer does between the two.
 *
 * Old records stay in their segments (nothing is overwritten), and segments that the table points into stay on the disk.
 * Both are bounded: beyond that the oldest snapshot ends. It is marked before anything it needs is given up, and readers
 * look at the mark last: what they return was all there. */
#include <stdlib.h>

#include "store_internal.h"

struct kv_snapshot {
    kv_store *store;
    uint64_t sequence;
    int64_t now_ms; /* what expiries are judged by */
    uint64_t file_id; /* the newest of a value when it was opened: it shows none above */
    _Atomic bool ended;
    bool listed;
    kv_snapshot *next, *previous; /* in the store's list, oldest first */
};

enum { LOCATIONS_MAX = 16 }; /* keys that share a 64-bit hash: two would be a marvel */

int64_t snapshot_now(const kv_snapshot *snapshot) { return snapshot->now_ms; }

uint64_t snapshot_oldest(const kv_store *store) {
    return store->snapshots == NULL ? UINT64_MAX : store->snapshots->sequence;
}

bool snapshot_ended(const kv_snapshot *snapshot) { return snapshot != NULL && atomic_load(&snapshot->ended); }

/* --- opening, closing: writer lock --- */

static kv_status list_add(kv_store *store, kv_snapshot *one) {
    kv_status status = store_usable(store);
    if (status != KV_OK) return status;
    one->sequence = kv_flow_sequence(store->flow);
    one->now_ms = store_now(store);
    one->file_id = store->generation << 32 | atomic_load(&store->big_next);
    one->previous = store->newest_snapshot;
    if (one->previous != NULL) one->previous->next = one;
    else store->snapshots = one;
    store->newest_snapshot = one;
    one->listed = true;
    store->snapshot_count++;
    return KV_OK;
}

static void list_remove(kv_store *store, kv_snapshot *one) {
    if (!one->listed) return;
    if (one->previous != NULL) one->previous->next = one->next;
    else store->snapshots = one->next;
    if (one->next != NULL) one->next->previous = one->previous;
    else store->newest_snapshot = one->previous;
    one->listed = false;
    store->snapshot_count--;
    kv_undo_forget(store->undo, snapshot_oldest(store));
}

kv_status kv_snapshot_open(kv_store *store, kv_snapshot **out) {
    if (*store->alive == 0) return KV_EFORKED;
    kv_snapshot *one = calloc(1, sizeof *one);
    if (one == NULL) return KV_ENOMEM;
    one->store = store;
    pthread_mutex_lock(&store->write_lock);
    kv_status status = list_add(store, one);
    pthread_mutex_unlock(&store->write_lock);
    if (status == KV_OK) *out = one;
    else free(one);
    return status;
}

void kv_snapshot_close(kv_snapshot *snapshot) {
    kv_store *store = snapshot->store;
    if (*store->alive == 0) return;
    pthread_mutex_lock(&store->write_lock);
    list_remove(store, snapshot);
    pthread_mutex_unlock(&store->write_lock);
    free(snapshot);
}

uint64_t kv_snapshot_version(const kv_snapshot *snapshot) { return snapshot->sequence; }

void kv_caller_bind(kv_caller *c, kv_snapshot *snapshot) { c->snapshot = snapshot; }

/* --- keeping --- */

bool snapshot_wants(kv_store *store, uint64_t hash) { return kv_undo_has(store->undo, hash); }

uint64_t snapshot_size(const kv_store *store) {
    kv_undo_stats undo;
    kv_undo_measure(store->undo, &undo);
    return undo.memory_size + undo.record_size;
}

bool snapshot_shows_file(const kv_store *store, uint64_t file_id) {
    return store->newest_snapshot != NULL && file_id <= store->newest_snapshot->file_id;
}

/* Bytes that stay for an old record: its own, and those of the file that goes with it. */
static uint32_t kept_size(const found *old, const kv_record *by) {
    kv_big was, is = {0};
    if (!(old->record.flags & KV_FLAG_BIG) || kv_big_decode(&old->record, &was) != KV_OK) return old->used;
    if ((by->flags & KV_FLAG_BIG) && kv_big_decode(by, &is) == KV_OK && is.file_id == was.file_id) return old->used;
    return (uint32_t)was.size + old->used; /* A value has at most 1 GiB. */
}

static void end_oldest(kv_store *store) {
    kv_snapshot *oldest = store->snapshots;
    atomic_store(&oldest->ended, true);
    list_remove(store, oldest);
}

kv_status snapshot_keep(kv_store *store, uint64_t hash, const found *old, const kv_record *by) {
    /* A reader that hears of a compaction: the same record, somewhere else. */
    if (by->flags & KV_FLAG_MOVED) return KV_OK;
    bool intact = found_intact(old);
    kv_undo_entry entry = {.hash = hash, .location = old->location, .version = old->record.version,
                           .replaced = by->version, .size = old->used};
    if (!intact) entry.version = 0; /* Whoever looks is to meet the damage, not another answer. */
    if (entry.version > store->newest_snapshot->sequence) return KV_OK;
    if (intact) entry.size = kept_size(old, by);
    /* A write does not fail for a reader's sake. */
    if (kv_undo_add(store->undo, &entry) != KV_OK)
        while (store->snapshots != NULL) end_oldest(store);
    while (store->snapshots != NULL && snapshot_size(store) > store->options.snapshot_size_max) end_oldest(store);
    return KV_OK;
}

/* --- reading --- */

static kv_status find_kept(kv_caller *c, const target *t, found *out) {
    uint64_t locations[LOCATIONS_MAX];
    kv_store *store = c->store;
    size_t count = kv_undo_find(store->undo, t->hash, c->snapshot->sequence, locations, LOCATIONS_MAX);
    for (size_t i = 0; i < count && i < LOCATIONS_MAX; i++) {
        out->location = locations[i];
        if ((kv_loc_flags(out->location) & SLOT_CLASSES) != t->class) continue;
        kv_status status = store_look_at(store, t, out, &c->answer.fault);
        if (status != KV_ABSENT) return status;
    }
    out->location = 0;
    return KV_ABSENT;
}

kv_status snapshot_find(kv_caller *c, const target *t, kv_status status, found *out) {
    const kv_snapshot *snapshot = c->snapshot;
    if (status != KV_OK && status != KV_ABSENT) return status;
    if (status == KV_OK && !found_intact_once(c->store, out))
        return fault_corrupt(&c->answer.fault, out->location, "the record's checksum is wrong");
    if (status == KV_ABSENT || out->record.version > snapshot->sequence) status = find_kept(c, t, out);
    return snapshot_ended(snapshot) ? KV_ESNAPSHOT : status;
}
