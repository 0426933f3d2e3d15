/* flow_internal.h -- what flow.c (append, sync) and recover.c (find the end, cut) share, and nobody else sees. */
#ifndef KV_FLOW_INTERNAL_H
#define KV_FLOW_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "kv/flow.h"

/* The header page of a segment. Four sectors, because each is written at another time and a sector is what a disk
 * does not tear:
 *
 *   offset size field
 *        0    8 magic         "kvsvrseg"
 *        8    4 format        1
 *       12    4 segment id
 *       16   16 store id
 *       32    8 salt
 *       40    8 ceiling       no sequence number in this or an earlier segment is above it
 *       48    4 size          of the file as planned
 *       52    4 reserved      0
 *       56    8 created       wall clock, ms
 *       64    8 checksum      XXH64 of bytes 0..63, seed = 0; this block keeps its shape in every format to come
 *
 *      512    4 watermark     durable up to this offset; 0 if it was never written
 *      516    4 check         of the watermark, seeded with the place
 *
 *     1024    4 end           behind the SEAL record; 0 while the segment is not sealed
 *     1028    4 next          id of the segment that follows; 0 while none does
 *     1032    8 last sequence in this or an earlier segment
 *     1040    8 checksum      XXH64 of bytes 1024..1039, seeded with the place
 *
 *     1536    4 chain next    id of the segment that follows since those between were removed; 0: as the seal says
 *     1540    4 chain first   1: every segment with a lower id was removed
 *     1544    8 required      kv_position_order() of the oldest position a checkpoint may have
 *     1552    8 checksum      XXH64 of bytes 1536..1551, seeded with the place
 *
 * A watermark or a seal whose check fails counts as not written: the records tell the same, only later. So does a
 * chain sector, and then a segment is missing: nothing else tells which were removed. */
enum {
    HEADER_FORMAT = 8,
    HEADER_ID = 12,
    HEADER_STORE_ID = 16,
    HEADER_SALT = 32,
    HEADER_CEILING = 40,
    HEADER_SIZE = 48,
    HEADER_CREATED = 56,
    HEADER_CHECKSUM = 64,
    HEADER_WATERMARK = 512,
    HEADER_SEAL = 1024,
    HEADER_SEAL_BYTES = 24,
    HEADER_CHAIN = 1536,
    HEADER_CHAIN_BYTES = 24,
    FLOW_FORMAT = 1,
};
#define SEGMENT_MAGIC "kvsvrseg"
#define SEGMENT_TEMPORARY "flow/next.tmp"
enum { SEGMENT_PATH_SIZE = 32 };

/* Versions are int64. What writing never comes to, a forged header may claim: an opener has to find more numbers left than
 * it will ever use, and whoever uses them up all the same is stopped before they wrap. */
#define SEQUENCE_MAX ((uint64_t)INT64_MAX)
#define SEQUENCE_SPARE ((uint64_t)1 << 48)

/* The chain sector. All zeros: none was written. */
typedef struct chain_link {
    uint32_t next;
    uint32_t first;
    uint64_t required;
} chain_link;

typedef struct segment {
    uint32_t id;
    uint32_t size;      /* bytes mapped */
    uint8_t *bytes;
    kv_file *file;      /* NULL once nothing will be written or synced any more */
    uint64_t ceiling;
    _Atomic uint32_t end;
    uint32_t watermark; /* as read from the header, or last written there */
    uint32_t next;      /* what its SEAL names */
    uint64_t last_sequence;
    bool writable;      /* the mapping may be stored to */
    _Atomic bool ended; /* a SEAL record closes it: next and last_sequence are set */
    _Atomic bool sealed; /* the header says so, durably */
    chain_link link;    /* as in the header */
    _Atomic(_Atomic uint64_t *) intact; /* a bit per page: the large record that begins in it was verified. NULL: none was */
    struct segment *kept; /* the next of those that could not be handed to the epoch */
} segment;

/* Segment id -> segment, for readers. When it is full a larger one replaces it; the small ones before it stay until
 * the flow ends, because a reader may hold one and all of them together are smaller than the newest. */
typedef struct segment_map {
    struct segment_map *previous;
    uint32_t base;
    uint32_t capacity;
    _Atomic(segment *) at[];
} segment_map;

struct kv_flow {
    kv_io *io;
    kv_epoch *epoch;
    kv_flow_options options;
    uint8_t store_id[16];
    uint64_t salt;
    bool was_clean;
    bool closed;

    _Atomic(segment_map *) map;

    /* The holder of the writer lock. */
    segment *active;    /* NULL until the first write, but in a new store */
    segment *recovered; /* where the log ended that was not closed, until the first write seals it there; else NULL */
    uint64_t sequence;
    uint8_t *scratch; /* write calls: where a record is put together */
    size_t scratch_size;
    _Atomic uint64_t tail; /* kv_position_order() */

    /* prepare(): one at a time; `next` is handed over under the lock. */
    pthread_mutex_t prepare_lock;
    _Atomic(segment *) next;
    uint32_t next_id;
    uint32_t next_size;     /* by the schedule */
    uint64_t ceiling;       /* the highest reserved so far */
    uint32_t first_made;    /* the first segment that this opener made; 0: none yet */
    uint32_t *behind;       /* files behind the end of a log that was not closed: they go when the next is there */
    size_t behind_count;
    uint64_t warm_syncs;    /* sync_count when kv_flow_warm() last looked */

    /* sync(): one leader at a time. Turns are numbered by one bit: sync_done[turn] is for those whom this turn's leader
     * makes durable, the other one for those who came too late for it. */
    pthread_mutex_t sync_lock;
    pthread_cond_t sync_done[2];
    unsigned turn;
    bool syncing;
    uint64_t sync_target;   /* how far this turn's leader goes, as kv_position_order(); 0: it syncs nothing */
    _Atomic uint64_t durable;
    int64_t watermark_ms;   /* when the header was last written, monotonic */
    bool watermark_dirty;   /* written and not synced since */
    uint32_t unsealed;      /* no segment with a lower id waits for its seal */
    _Atomic uint64_t sync_count;

    _Atomic int poison; /* a kv_status */
    _Atomic int poison_errno;

    /* remove(): one at a time. */
    _Atomic uint64_t content; /* as set_content() was told; UINT64_MAX: it was not */
    _Atomic uint64_t content_count;
    uint64_t required;        /* the highest of the chain; as read, not kept up to date */
    segment *kept;            /* out of the map, mapped until the end: there was no memory to note them in the epoch */
    size_t retired_count;     /* segments the epoch has and has not freed; writer lock */

    /* refresh(): where a read-only opener stands. */
    kv_position replayed;

    /* salvage.c */
    kv_damage *damages;
    size_t damage_count, damage_capacity;
};

static inline kv_position position_of(uint64_t order) {
    return (kv_position){.segment = (uint32_t)(order >> 32), .offset = (uint32_t)order};
}

/* flow.c */
void segment_path(uint32_t id, char path[SEGMENT_PATH_SIZE]);
segment *segment_find(const kv_flow *flow, uint32_t id);
kv_status segment_register(kv_flow *flow, segment *one);
void segment_forget(kv_flow *flow, uint32_t id);
void segment_release(kv_flow *flow, segment *one);
void segments_release(kv_flow *flow); /* all, and the map; nobody looks any more */
kv_status segment_write_watermark(kv_flow *flow, segment *one, uint32_t offset);
kv_status segment_write_seal_record(kv_flow *flow, segment *one, uint32_t offset, uint32_t next, uint64_t sequence);
kv_status segment_finish(kv_flow *flow, segment *one);
uint32_t watermark_check(const kv_flow *flow, uint32_t id, uint32_t offset);
kv_status flow_fail(kv_flow *flow, kv_status status);

bool segment_parse_name(const char *name, uint32_t *id); /* recover.c, as the next four */
uint32_t segment_successor(const segment *one);
void segment_decode_header(kv_flow *flow, const uint8_t *page, segment *one);
/* Unlinks what was found behind the end of the log, durably. The segment that follows it is there. */
kv_status segments_unlink_behind(kv_flow *flow);
/* The only code that truncates. */
kv_status segment_cut(kv_flow *flow, segment *one, uint32_t offset);

/* Looks behind the damaged record at `offset` for ledgers, until one tells what it was (options.told). KV_ABSENT: none does. */
kv_status flow_told(kv_flow *flow, void *context, const segment *one, uint32_t offset, uint32_t *size);

/* salvage.c */
kv_status flow_salvage(kv_flow *flow, kv_replay replay, void *context, kv_fault *fault);

#endif
