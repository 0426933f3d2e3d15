/* sessions.h -- what each client lane was last told in a shard, so that a request that comes again is not executed again.
 *
 * An entry is a lane's last request, with the version of its record. There are at most `count_max`; when one more comes,
 * the entry of the lowest version goes, so all replicas, who apply the same records, agree on who is remembered, and
 * `forgotten` is the highest version that went. Lookups by hash; order by version is a list. */
#ifndef KV_SESSIONS_H
#define KV_SESSIONS_H

#include "kv/record.h"

typedef struct session {
    uint64_t client;
    uint32_t lane;
    int16_t outcome;
    uint64_t number;
    uint64_t version;
    int64_t result;
    uint32_t older, newer; /* in the list, 1 + index; 0: none */
    uint32_t next;         /* in its bucket */
} session;

typedef struct sessions {
    session *entries;   /* count_max of them */
    uint32_t *buckets;  /* bucket_count, a power of two: 1 + index of the first */
    uint32_t bucket_count;
    uint32_t count_max;
    uint32_t count;
    uint32_t oldest, newest;
    uint64_t forgotten;
} sessions;

kv_status sessions_new(uint32_t count_max, sessions *out);
void sessions_free(sessions *s);
void sessions_clear(sessions *s); /* nobody was told anything, and nothing is forgotten */
kv_status sessions_copy(const sessions *from, sessions *to); /* of the same count_max */
/* NULL: the lane is not remembered. Until the next note. */
const session *sessions_find(const sessions *s, uint64_t client, uint32_t lane);
void sessions_note(sessions *s, const kv_request *request, uint64_t version);

#endif
