/* order.h -- every name there is, in order: the names created of late, and sorted runs of those before.
 *
 *   created, not sorted      8 bytes each: the location of the record that brought the name into being, and one bit
 *   chunks, sorted           16 bytes each: a word that sorts as the name does, the location; the rest is read in the flow
 *   runs, on disk            see run.h
 *
 * Overwrites and deletes cost nothing here, so a name that is listed is a candidate only: whether it is live is the
 * caller's question to the index. What is live is listed, from the moment its write returns.
 *
 * A record stands for up to two names: the key or row that it brought into being, and, if it writes a row, the change
 * that it is. Which of the two is meant is the one bit; the name itself is read in the record.
 *
 * A creation is noted by appending 8 bytes. Sorting waits for the first who wants order: a reader, or whoever builds a
 * run. Chunks are merged when their sizes are comparable, so there are few, and none is ever changed. Chunks and runs
 * in use are one view, replaced as a whole; what falls out of it goes through the epoch.
 *
 * A run is built of everything created up to one moment (build_begin fixes it under the writer lock) and of the newest
 * runs of comparable size, by walking a cursor over those and leaving out what is dead. The rule for that: before such a
 * run may be counted on after a crash, the flow must be durable up to where it stood at the last such decision. Else a
 * name could be left out for a delete that is then lost: alive, and listed nowhere.
 *
 * Threads: created, add_run, build_begin and build_end under the writer lock; seek and next by anyone inside the epoch
 * with a cursor of its own, not under the writer lock; one build at a time. Sorting has a lock of its own, taken before
 * the writer lock, which it takes for a moment to hand to the epoch what is replaced. */
#ifndef KV_ORDER_H
#define KV_ORDER_H

#include <pthread.h>

#include "base.h"
#include "epoch.h"
#include "flow.h"
#include "run.h"
#include "status.h"

typedef struct kv_order kv_order;
typedef struct kv_order_cursor kv_order_cursor;

kv_status kv_order_new(kv_epoch *epoch, pthread_mutex_t *writer_lock, kv_order **out);
void kv_order_free(kv_order *order); /* Unmaps its runs. No reader is inside. Accepts NULL. */

/* The record at `location` (index.h) brought a name of `space` (KV_SPACE_*) into being. A row's record may be noted
 * twice: with KV_FLAG_CREATED in KV_SPACE_ROWS, and, deletes too, in KV_SPACE_CHANGES. Keys and rows are told apart
 * by the record's kind, whatever `space` says of them; a change that is no row's record is damage. KV_ENOMEM: not
 * noted. */
kv_status kv_order_created(kv_order *order, uint64_t location, unsigned space);
/* A run that a checkpoint lists, oldest first. KV_ECORRUPT: the file is not the one that is meant. */
kv_status kv_order_add_run(kv_order *order, kv_io *io, const kv_run_info *info);

/* --- walking --- */

kv_status kv_order_cursor_new(kv_order_cursor **out);
void kv_order_cursor_free(kv_order_cursor *cursor); /* accepts NULL */

/* Before the first name from `name` on (KV_SEEK_GE, GT) or the last up to it (LE, LT), in the order as it is now. What
 * the cursor stands on is good until the caller leaves the epoch. */
kv_status kv_order_seek(kv_order *order, const kv_flow *flow, kv_order_cursor *cursor, enum kv_seek how,
                        const uint8_t *name, size_t size);
/* The next name in the direction of the seek, each once; valid until the next call. KV_EOF: no more. */
kv_status kv_order_next(kv_order_cursor *cursor, const uint8_t **name, size_t *size);
/* Where the last name was read: the location, without flags, of a record that is intact; 0: in a run. */
uint64_t kv_order_seen(const kv_order_cursor *cursor);
/* After KV_ECORRUPT: the location of the damaged record, or 0 and *run_id is the damaged run. */
uint64_t kv_order_damage(const kv_order_cursor *cursor, uint64_t *run_id);

/* --- building a run --- */

typedef struct kv_order_build {
    uint64_t cut;     /* creations before it go into the run */
    size_t run_count; /* and the newest so many runs */
} kv_order_build;

/* `live_count`: live names of all spaces together; where far more are listed, all runs become one. KV_EOF: there is
 * nothing to build, and no build_end is due. */
kv_status kv_order_build_begin(kv_order *order, uint64_t live_count, kv_order_build *out);
/* Inside the epoch: sorts a piece of what is not sorted yet. KV_MORE; KV_OK: all that goes into the run is. */
kv_status kv_order_build_sort(kv_order *order, const kv_flow *flow, const kv_order_build *build);
/* As kv_order_seek, over what goes into the run. */
kv_status kv_order_build_seek(kv_order *order, const kv_flow *flow, const kv_order_build *build,
                              kv_order_cursor *cursor, enum kv_seek how, const uint8_t *name, size_t size);
/* The runs as they will be, oldest first, with `run` (NULL: all names were dead) in the place of what went into it.
 * For free(). */
kv_status kv_order_build_list(kv_order *order, const kv_order_build *build, const kv_run_info *run, kv_run_info **out,
                              size_t *count);
/* The run takes the place of what went into it. Not under the writer lock. */
kv_status kv_order_build_publish(kv_order *order, const kv_order_build *build, kv_io *io, const kv_run_info *run);
void kv_order_build_end(kv_order *order); /* published or given up */

/* The runs in use, oldest first. For free(). Not beside a publish. */
kv_status kv_order_runs(kv_order *order, kv_run_info **out, size_t *count);

typedef struct kv_order_stats {
    uint64_t created_count; /* names that are in no run yet, some perhaps twice */
    uint64_t run_count;
    uint64_t run_name_count;
    uint64_t run_size;
} kv_order_stats;
void kv_order_measure(kv_order *order, kv_order_stats *out); /* writer lock */

#endif
