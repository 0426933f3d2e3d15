/* sessions.h -- what each client lane was last told in a shard, so that a request that comes again is not executed again.
 *
 * An entry is a lane's last request, with the version of its record. There are at most `count_max`; when one more comes,
 * the entry of the lowest version goes, so all replicas, who apply the same records, agree on who is remembered, and
 * `forgotten` is the highest version that went.
 *
 * Entries are found by hash. Their order is a ring of (version, entry), one for every note, in order of versions, which is
 * that of the notes: an entry's last place in it counts, the others are stale, and what is to go is the first that is not
 * stale. So a note touches one entry and the end of the ring, and not its neighbours in a list, which lie anywhere. */
#ifndef KV_SESSIONS_H
#define KV_SESSIONS_H

#include "kv/record.h"

typedef struct session {
    uint64_t client;
    uint64_t number;
    uint64_t version;
    int64_t result;
    uint32_t lane;
    uint32_t next; /* in its bucket, 1 + index; 0: none */
    int16_t outcome;
} session;

typedef struct session_place {
    uint64_t version;
    uint32_t entry;
} session_place;

typedef struct sessions {
    session *entries;   /* count_max of them */
    uint32_t *buckets;  /* bucket_count, a power of two: 1 + index of the first */
    session_place *ring; /* ring_capacity, a power of two; as much of it is used as there are lanes to order */
    uint32_t bucket_count;
    uint32_t ring_capacity;
    uint32_t ring_used;  /* a power of two; all places lie below it */
    uint32_t ring_first, ring_count;
    uint32_t count_max;
    uint32_t count;
    uint64_t forgotten;
} sessions;

kv_status sessions_new(uint32_t count_max, sessions *out);
void sessions_free(sessions *s);
void sessions_clear(sessions *s); /* nobody was told anything, and nothing is forgotten */
/* NULL: the lane is not remembered. Until the next note. */
const session *sessions_find(const sessions *s, uint64_t client, uint32_t lane);
/* What a find will look at: for many lanes, first one for all of them, and then the other. */
void sessions_prefetch_bucket(const sessions *s, uint64_t client, uint32_t lane);
void sessions_prefetch(const sessions *s, uint64_t client, uint32_t lane);
/* Versions ascend from note to note. */
void sessions_note(sessions *s, const kv_request *request, uint64_t version);
/* The entry of the next higher version, from *at on, which begins at 0; NULL: that was the last. */
const session *sessions_next(const sessions *s, uint32_t *at);

#endif
