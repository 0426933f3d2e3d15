/* examine.c -- is what lies in a replica's directory what was written: see kv/replica.h.
 *
 * The replay compares every record with its checksum and the version logs with themselves; what is looked at here is what came of
 * it. Who calls sees to it that no replica has the directory open. */
#include "replica_internal.h"

static void shards_look(const kv_replica *r, kv_examination *out) {
    for (uint32_t i = 0; i < r->shard_count; i++) {
        const shard *s = &r->shards[i];
        out->applied_count += s->applied;
        out->undecided_count += log_last(&s->log) - s->applied;
    }
}

static bool is_whole(const kv_replica *r, const content *c) {
    found there = {.location = c->location};
    if (store_peek(r->store, &there) != KV_OK || !found_intact(&there)) return false;
    return there.record.value_size == c->meta.size && kv_xxh64(there.record.value, c->meta.size, 0) == c->meta.digest;
}

static void contents_look(const kv_replica *r, kv_examination *out) {
    const contents *t = &r->contents;
    for (uint64_t i = 0; i < t->capacity; i++) {
        const content *c = t->slots[i];
        if (c == NULL) continue;
        out->content_count++;
        out->wrong_count += c->location != 0 && !is_whole(r, c);
    }
    out->missing_count = t->lists[CONTENT_MISSING].count;
    for (const content *c = t->lists[CONTENT_MISSING].first; c != NULL; c = c->links[CONTENT_MISSING].next)
        out->missing_size += c->meta.size;
}

static kv_status store_examine(const kv_replica *r, kv_examination *out) {
    kv_audit audit;
    kv_stats stats;
    kv_status status = kv_store_audit(r->store, &audit);
    if (status == KV_OK) status = kv_store_measure(r->store, &stats);
    if (status != KV_OK) return status;
    out->record_count = stats.replayed_count;
    out->key_count = audit.key_count;
    out->table_count = audit.table_count;
    out->row_count = audit.row_count;
    out->wrong_count += audit.wrong_slot_count;
    return KV_OK;
}

kv_status kv_replica_examine(kv_io *io, const kv_replica_options *options, kv_fault *fault, kv_examination *out) {
    kv_replica_options reading = *options;
    kv_replica *r = NULL;
    *out = (kv_examination){0};
    reading.store.readonly = 1;
    kv_status status = replica_replay(io, &reading, fault, &r);
    if (status != KV_OK) return status;
    out->damaged_count = r->counts.told;
    shards_look(r, out);
    contents_look(r, out);
    status = store_examine(r, out);
    kv_replica_free(r);
    return status;
}
