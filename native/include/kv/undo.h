/* undo.h -- what open snapshots need of the past: the records that stood in the index before they were replaced.
 *
 * The index holds the newest version only. While snapshots are open, whoever replaces or removes an index slot first
 * notes here what stood there, and as of when it does no longer. A record was to be seen by readers as of `sequence` if
 *
 *     version <= sequence < replaced
 *
 * so of one key at most one entry fits a sequence, and none does if the index still has what the reader is to see.
 *
 * Worth noting is only what somebody can see: version <= the sequence of the newest open snapshot. Callers ask that
 * first. A key that is written a million times under an open snapshot is then one entry, and there are never more with
 * its hash than snapshots; without it, looking for that hash walks over a million.
 *
 * An entry costs 40 bytes, and some 4 to 8 more for finding it. Nothing here is durable: a snapshot ends with the
 * process.
 *
 * Threads: any, all of it; a mutex is held for a moment at a time. Calls of add come in the order of `replaced`, which
 * the store's writer lock gives them. forget needs no such lock, and a long one (10 ns an entry) is better done
 * without: `sequence` is worked out under it, and snapshots that open later are newer. */
#ifndef KV_UNDO_H
#define KV_UNDO_H

#include "base.h"
#include "status.h"

typedef struct kv_undo kv_undo;

typedef struct kv_undo_entry {
    uint64_t hash;
    uint64_t location; /* index.h, flags and all */
    uint64_t version;  /* of the record at location */
    uint64_t replaced; /* sequence of what took its place */
    uint32_t size;     /* bytes of the record, kept on disk for it */
} kv_undo_entry;

kv_status kv_undo_new(kv_undo **out);
void kv_undo_free(kv_undo *undo); /* Nobody is inside. Accepts NULL. */

/* `replaced` never decreases from call to call. KV_ENOMEM: not noted. */
kv_status kv_undo_add(kv_undo *undo, const kv_undo_entry *entry);

/* Locations that a reader as of `sequence` is to see in place of what the index has: of the entries with this hash and
 * version <= sequence < replaced, newest first. More than one only where different keys share a hash: the caller
 * compares keys. Fills in up to `max`; returns how many there are. */
size_t kv_undo_find(kv_undo *undo, uint64_t hash, uint64_t sequence, uint64_t *locations, size_t max);
bool kv_undo_has(kv_undo *undo, uint64_t hash); /* any entry: who builds a run then keeps the name */

/* No reader is older than `sequence`: entries with replaced <= sequence go, in pieces, so that others get in between.
 * UINT64_MAX: all go, and the memory too; nobody may open a snapshot meanwhile, so this one wants the writer lock. It is
 * short if what could go went before. */
void kv_undo_forget(kv_undo *undo, uint64_t sequence);

uint32_t kv_undo_pins(kv_undo *undo, uint32_t segment); /* entries that point into a segment: it must stay */

typedef struct kv_undo_stats {
    uint64_t count;
    uint64_t memory_size;
    uint64_t record_size; /* bytes of the records that are pinned */
} kv_undo_stats;
void kv_undo_measure(kv_undo *undo, kv_undo_stats *out);

#endif
