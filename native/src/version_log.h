/* version_log.h -- the records of a shard above what it has let go of: which ballot each is of, and where it lies.
 *
 * Dense: the entry of version v is the (v - base)th. What lies at or below the base is known by its outcome alone.
 * A ring, so that letting go at the front costs nothing. No threads, no bytes of records. */
#ifndef KV_VERSION_LOG_H
#define KV_VERSION_LOG_H

#include "kv/flow.h"

typedef struct version_entry {
    uint64_t ballot;
    kv_position position;  /* of its first record; its others follow */
    uint32_t size;
    uint32_t record_count : 31;
    uint32_t meta : 1;     /* one of its values is a META */
} version_entry;

typedef struct version_log {
    uint64_t base;        /* the last version let go of */
    uint64_t base_ballot;
    version_entry *ring;
    uint64_t capacity;    /* a power of two, or 0 */
    uint64_t first;       /* where in the ring version base + 1 is */
    uint64_t count;
} version_log;

static inline uint64_t log_last(const version_log *log) { return log->base + log->count; }
/* base < version <= last */
static inline version_entry *log_at(const version_log *log, uint64_t version) {
    KV_ASSERT(version > log->base && version <= log_last(log));
    return &log->ring[(log->first + version - log->base - 1) & (log->capacity - 1)];
}
/* The ballot of the record at `version`; false: not known, it was let go of or is not here yet. */
bool log_ballot_at(const version_log *log, uint64_t version, uint64_t *ballot);
uint64_t log_last_ballot(const version_log *log);

kv_status log_push(version_log *log, const version_entry *entry); /* as last + 1; KV_ENOMEM */
void log_cut(version_log *log, uint64_t last);                    /* what lies behind it goes; not below the base */
void log_let_go(version_log *log, uint64_t base);                 /* up to it; at most to the last */
void log_restart(version_log *log, uint64_t base, uint64_t ballot); /* empty, from there on */
void log_free(version_log *log);

#endif
