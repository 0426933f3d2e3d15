/* replica_changes.c -- for who reads a replica's store himself: a table's changes, and the records of a shard.
 *
 * **Changes** are answered by any replica, from what is applied there. A page leaves out what was written again later, so a
 * consumer that goes on at a replica which does not know of that yet lacks a row for a while: a copy is exact where there is
 * no more and it has come to the highest `through` it was shown. Deletes are forgotten below the floor, which a record
 * raises (KV_REQUEST_TRIM), so it is the same everywhere. A page is complete if
 *
 *   since = 0         who knows nothing has nothing to unlearn
 *   since >= floor    everything above it is told
 *   began >= floor    the copy was begun when nothing below the floor was there any more: its rows were there at `began`,
 *                     and what ended them later is told. So the pages of one beginning need not reach the floor in one
 *
 * and, where the replica is behind the consumer, empty: it is never sent back for that.
 *
 * **A shard at a version.** Nothing changes from one call of the replica to the next, so what is read between two is of
 * one version, the applied one. Who reads for longer notes that version first and holds it (kv_replica_hold): what he then
 * finds is of many moments, and with the records behind that version, up to the applied one as he ends, it comes to the
 * state of that one. The store's own snapshots go by the arrival of records, which is another order: a replica has none. */
#include "replica_internal.h"

enum { HOLD_FACTOR = 4 };

kv_result kv_replica_changes(kv_replica *r, const uint8_t *table, size_t table_size, uint64_t since, uint64_t began,
                             uint64_t count_max, kv_replica_page *out) {
    const shard *s = &r->shards[kv_shard_of(r->shard_count, table, table_size)];
    *out = (kv_replica_page){0};
    if (!shard_is_whole(r, s)) return kv_ending(KV_EOF);
    if (s->applied < since && !mutated(r, KV_MUTATE_BEHIND_RESTARTS)) {
        out->changes.version = since;
        out->changes.complete = 1;
        return 0;
    }
    change_rules rules = {.began = began, .splits = mutated(r, KV_MUTATE_PAGE_SPLITS), .blind = mutated(r, KV_MUTATE_FLOOR_IGNORED),
                          .ahead = s->applied < since};
    kv_result size = store_changes(r->caller, table, table_size, since, count_max, &rules, &out->changes);
    out->through = rules.through;
    return size;
}

kv_status kv_replica_hold(kv_replica *r, uint32_t number, uint64_t version) {
    shard *s = &r->shards[number];
    if (version < s->log.base || version > s->applied) return KV_ABSENT;
    s->hold = version + 1;
    return KV_OK;
}

void kv_replica_unhold(kv_replica *r, uint32_t number) { r->shards[number].hold = 0; }

/* Behind this version records stay for a driver. UINT64_MAX: for none, or for one that took too long. */
uint64_t hold_pin(const kv_replica *r, const shard *s) {
    if (s->hold == 0 || s->applied - (s->hold - 1) > HOLD_FACTOR * (uint64_t)r->options.keep_max) return UINT64_MAX;
    return s->hold - 1;
}
