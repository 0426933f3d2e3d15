/* epoch.h -- when memory that readers may still look at can be given back.
 *
 * A reader enters before it follows a pointer that a writer may retire and leaves when it holds nothing any more.
 * It never waits. A writer unlinks, then retires: what was retired is freed once every reader that was inside at
 * that time has left (Fraser, "Practical lock-freedom", 2004, section 5.2.3).
 *
 * Threads: a slot belongs to one thread at a time; retire, reclaim and drain want the caller's writer lock;
 * join and part have a lock of their own. */
#ifndef KV_EPOCH_H
#define KV_EPOCH_H

#include <stdatomic.h>

#include "base.h"
#include "status.h"

typedef struct kv_epoch kv_epoch;

typedef struct kv_epoch_slot {
    _Atomic uint64_t entered; /* the global epoch at entry; 0: outside */
    struct kv_epoch_slot *next;
    struct kv_epoch_slot *previous;
} kv_epoch_slot;

kv_status kv_epoch_new(kv_epoch **out);
void kv_epoch_free(kv_epoch *epoch); /* Frees what is still retired. No reader is inside. */

kv_status kv_epoch_join(kv_epoch *epoch, kv_epoch_slot **out); /* a slot of its own cache line */
void kv_epoch_part(kv_epoch *epoch, kv_epoch_slot *slot);      /* accepts NULL; the slot is outside */

void kv_epoch_enter(kv_epoch *epoch, kv_epoch_slot *slot); /* does not nest */
void kv_epoch_leave(kv_epoch_slot *slot);

/* Calls free_it(context, memory) once no reader can hold it. KV_ENOMEM: not noted, the caller must keep it. */
kv_status kv_epoch_retire(kv_epoch *epoch, void (*free_it)(void *context, void *memory), void *context, void *memory);
void kv_epoch_reclaim(kv_epoch *epoch); /* Frees what can be freed now; does not wait. Cheap if nothing is retired. */
void kv_epoch_wait(kv_epoch *epoch);    /* Waits until every reader that is inside now has left; wants no lock. */
void kv_epoch_drain(kv_epoch *epoch);   /* Waits until every reader that is inside now has left, then reclaims. */

#endif
