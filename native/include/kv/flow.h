/* flow.h -- the flow: records appended to segment files, made durable by group fdatasync, read at a position.
 *
 * A segment is "flow/%08x.seg", from 1 MiB doubling to 64 MiB:
 *   page 0   header: who and what (written once, durable before the name exists), the durable watermark, the seal
 *   then     records, aligned to 4, to the first place that was never written (zeros)
 *
 * The next segment is prepared ahead: made under a temporary name, filled with zeros, header written, synced,
 * renamed, directory synced, mapped. Its header reserves every sequence number it could hold (the ceiling), so an
 * unclean open continues above all of them and no number a reader may have seen is used twice.
 *
 * A full segment ends with a SEAL record that names the next one; a clean close writes SEAL 0. A sealed segment
 * that is durable says so in its header.
 *
 * Durable watermark: after an fdatasync the position it covered goes into the header page, at most every
 * KV_WATERMARK_MS_MIN, and at seal, idle and close with a sync of its own. Below it every record was durable once:
 * a bad one is damage. Above it the first bad record ends the log, whatever follows.
 *
 * Compaction takes sealed segments out: the header of the one before then names the one behind. The headers say what
 * the log is; a file that none of them leads to is a leftover, which readers ignore and the next writer unlinks.
 *
 * Threads: append, commit and roll by the holder of the store's writer lock; at() by anyone inside the epoch;
 * sync() and settle() by anyone who does not hold the writer lock, several share one fdatasync; prepare() by one thread
 * at a time, remove() likewise.
 * Specification: docs/formats/flow.md. */
#ifndef KV_FLOW_H
#define KV_FLOW_H

#include <pthread.h>

#include "base.h"
#include "epoch.h"
#include "io.h"
#include "record.h"
#include "status.h"

enum {
    KV_SEGMENT_SIZE_MIN = 1 << 20,
    KV_SEGMENT_SIZE_MAX = 1 << 26,
    KV_SEGMENT_HEADER_SIZE = KV_PAGE_SIZE,
    KV_SEAL_SIZE = 36, /* a SEAL record: always kept free at the end */
    KV_WATERMARK_MS_MIN = 10,
};

typedef struct kv_position {
    uint32_t segment; /* 0: before everything */
    uint32_t offset;
} kv_position;

static inline uint64_t kv_position_order(kv_position p) { return (uint64_t)p.segment << 32 | p.offset; }

typedef struct kv_flow kv_flow;

/* Called, by those who ask for it, with up to KV_REPLAY_BLOCK records that kv_replay will be called for next, unless one
 * before them ends the replay: to have fetched what they will need. Changes nothing that counts. */
enum { KV_REPLAY_BLOCK = 32 };
typedef void (*kv_replay_ahead)(void *context, const kv_record *records, size_t count);

/* Asked, where the record at `at` is damaged below the durable watermark, with each ledger that is found behind it:
 * KV_OK: it says what stood there, of how many bytes, and that is accounted for: the replay goes on behind it. KV_ABSENT:
 * this one does not say. Anything else ends the replay. */
typedef kv_status (*kv_replay_told)(void *context, const kv_record *ledger, kv_position at, uint32_t *size);

typedef struct kv_flow_options {
    bool readonly;
    bool write_calls;          /* use write_at() instead of stores through the mapping */
    uint32_t segment_size_min; /* a power of two, 64 KiB to 64 MiB; the first segment of this opener */
    uint32_t segment_size_max;
    const uint8_t *store_id;   /* 16 bytes: the store `start` was noted in; another one is KV_EUSAGE. NULL: any */
    kv_position noted;         /* what `start` was noted beside, if not itself: this has to be in the log, durable */
    uint64_t sequence_min;     /* of a flow that was not closed: numbers go on above it */
    bool salvage;              /* a reader that goes on behind damage, and notes it (kv_flow_damages) */
    kv_replay_ahead ahead;     /* or NULL */
    kv_replay_told told;       /* or NULL: whatever is damaged ends the open */
    bool warm;                 /* nobody syncs on their own account: kv_flow_warm() is worth its while */
    bool write_watermark_always; /* after every sync, whatever the clock says: for recorded histories */
} kv_flow_options;

/* What went wrong and where, for the error the user reads. */
typedef struct kv_fault {
    int status;
    int os_error; /* errno, or 0 */
    kv_position position;
    char what[160];
} kv_fault;

/* Called for every valid record of the log, in arrival order, from `start` on; records of an envelope one by one,
 * after the whole envelope was found valid. Another answer than KV_OK ends the replay with it. */
typedef kv_status (*kv_replay)(void *context, const kv_record *record, kv_position position, uint32_t size);

/* One segment as the header has it, for whoever counts live and dead bytes. */
typedef struct kv_segment_info {
    uint32_t id;
    uint32_t size; /* bytes of the file as planned */
    uint32_t end;  /* behind its last record */
    bool sealed;
} kv_segment_info;

/* Opens the flow, finds its end and replays from `start` (segment 0: everything). What follows the end is nobody's: the
 * first write seals the segment there, over it, and goes to a new one; until then nothing on the disk says where the log
 * ended but its records. Nor are they durable before the next sync that reaches them.
 * An empty directory: a new store (a writer creates it; a reader gets KV_ENOTFOUND). KV_ECORRUPT: `fault` tells
 * where, and nothing on the disk was changed. `start` that is not in the log, or older than the `required` of a
 * removal: KV_EUSAGE, nothing was replayed or changed. *out is set before the first record is replayed, so that the
 * resolver can look at earlier ones. KV_EBEHIND: segments went faster than a reader could list them. */
kv_status kv_flow_open(kv_io *io, kv_epoch *epoch, const kv_flow_options *options, kv_position start,
                       kv_replay replay, void *context, kv_fault *fault, kv_flow **out);

/* Read-only openers: replays what has been appended since. KV_EBEHIND: segments that this reader had not read are gone;
 * what it has stays as it is, and only a new open brings it up to date. */
kv_status kv_flow_refresh(kv_flow *flow, kv_replay replay, void *context, kv_fault *fault);

/* Ends appending: seal, cut the tail, sync, header. After a failure before: KV_EPOISONED, nothing is synced or sealed. */
kv_status kv_flow_close(kv_flow *flow, kv_fault *fault);
void kv_flow_free(kv_flow *flow); /* Writer lock, or alone. Nobody who was inside the epoch at a removal still is. */

uint64_t kv_flow_salt(const kv_flow *flow);      /* seeds places and, through the store, the hash of keys */
const uint8_t *kv_flow_store_id(const kv_flow *flow); /* 16 bytes */
uint64_t kv_flow_sync_count(const kv_flow *flow); /* fdatasyncs since open */
bool kv_flow_was_clean(const kv_flow *flow);     /* the opener before closed it */
uint64_t kv_flow_sequence(const kv_flow *flow);  /* the last one used; the next is above */
uint64_t kv_flow_ceiling(const kv_flow *flow);   /* no record has a sequence above it */
uint32_t kv_flow_first(const kv_flow *flow);     /* right after open: the segment this opener will write first */
void kv_flow_set_sequence(kv_flow *flow, uint64_t sequence); /* writer lock */

/* Room for `size` bytes that no segment boundary splits: *bytes is where to put them, *position their place. May
 * seal the segment and move on to the next; waits for it to be prepared. KV_ENOSPC: refused, may work later. */
kv_status kv_flow_reserve(kv_flow *flow, uint64_t size, uint64_t sequence_count, uint8_t **bytes, kv_position *position);
/* Whether a reserve of so much would neither wait nor call the file system. Writer lock. */
bool kv_flow_has_room(const kv_flow *flow, uint64_t size);
/* The reserved bytes are written: they belong to the log. KV_EDISK (write calls): poisoned. */
kv_status kv_flow_commit(kv_flow *flow, kv_position position, uint64_t size);

kv_position kv_flow_tail(const kv_flow *flow);    /* behind the last committed record; any thread */
kv_position kv_flow_durable(const kv_flow *flow); /* known durable up to here; any thread */

/* Returns when everything before `upto` is durable. A lone caller syncs itself; several share. */
kv_status kv_flow_sync(kv_flow *flow, kv_position upto);
/* What a background thread does when time is left: seals into headers, watermark with a sync of its own. */
kv_status kv_flow_settle(kv_flow *flow);
/* Prepares the next segment if there is none. `size` 0: as the schedule has it. */
kv_status kv_flow_prepare(kv_flow *flow, uint32_t size);
bool kv_flow_wants_prepare(const kv_flow *flow);
/* Has the prepared segment's pages made ready for stores, if options.warm, and nothing was synced since the last time: a
 * sync would write all of them. By whoever prepares ahead of time; writers do not wait for it. */
void kv_flow_warm(kv_flow *flow);
/* How many bytes are live, and how many records: no segment prepared from now on is larger than an eighth of the bytes, or
 * segment_size_min, unless a record needs it; and where records are large it is not filled with zeros. Until the first call
 * every segment is twice the one before. Any thread. */
void kv_flow_set_content(kv_flow *flow, uint64_t live_size, uint64_t live_count);

/* Takes sealed segments out of the log, in any order given, neighbours with one write. All of them, the newest one
 * excepted, must be in the log and sealed: else KV_EUSAGE, and nothing was done. What of them counts must stand
 * elsewhere, durably. No checkpoint whose position is below `required` is used from then on: an older one may point
 * into them. Readers inside the epoch go on reading them. Waits for the disk; not under the writer lock, which it takes
 * for a moment at a time, and not beside close(). KV_EDISK: poisoned; each of the segments is out, or in the log as
 * before. A file that could not be unlinked is unlinked by the next writer. */
kv_status kv_flow_remove(kv_flow *flow, pthread_mutex_t *writer_lock, const uint32_t *ids, size_t count,
                         kv_position required);

/* The bytes at a position and how many may be read from there; NULL if no such place. Inside the epoch, or under
 * the writer lock. */
const uint8_t *kv_flow_at(const kv_flow *flow, uint32_t segment, uint32_t offset, uint64_t *size);

/* A note about the record there, of KV_NOTED_SIZE_MIN bytes or more, which lasts as long as its segment is mapped: its
 * checksum was right. Any thread inside the epoch. */
enum { KV_NOTED_SIZE_MIN = KV_PAGE_SIZE };
bool kv_flow_made(const kv_flow *flow, uint32_t segment); /* by this opener, so all that is in it was written by it */
bool kv_flow_was_intact(const kv_flow *flow, uint32_t segment, uint32_t offset);
void kv_flow_note_intact(const kv_flow *flow, uint32_t segment, uint32_t offset);

/* All segments, oldest first; for free(). Writer lock. */
kv_status kv_flow_segments(const kv_flow *flow, kv_segment_info **out, size_t *count);

/* What a salvaging reader met, in order; the flow's, until it is freed. */
typedef struct kv_damage {
    uint32_t segment;
    uint32_t offset;
    uint64_t size; /* bytes that hold no valid record; 0: a file that is missing */
    char what[80];
} kv_damage;
const kv_damage *kv_flow_damages(const kv_flow *flow, size_t *count);

/* KV_OK, or why writes are refused since: KV_EDISK with its errno. */
kv_status kv_flow_poison(const kv_flow *flow, int *os_error);
void kv_flow_set_poison(kv_flow *flow, kv_status status, int os_error);

#endif
