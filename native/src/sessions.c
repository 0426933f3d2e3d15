/* sessions.c -- see sessions.h. */
#include "sessions.h"

#include <stdlib.h>
#include <string.h>

kv_status sessions_new(uint32_t count_max, sessions *out) {
    KV_ASSERT(count_max >= 1 && count_max < 1u << 24);
    *out = (sessions){.count_max = count_max, .bucket_count = 1};
    while (out->bucket_count < count_max) out->bucket_count *= 2;
    out->entries = calloc(count_max, sizeof *out->entries);
    out->buckets = calloc(out->bucket_count, sizeof *out->buckets);
    if (out->entries != NULL && out->buckets != NULL) return KV_OK;
    sessions_free(out);
    return KV_ENOMEM;
}

void sessions_free(sessions *s) {
    free(s->entries);
    free(s->buckets);
    *s = (sessions){0};
}

void sessions_clear(sessions *s) {
    memset(s->buckets, 0, s->bucket_count * sizeof *s->buckets);
    s->count = s->oldest = s->newest = 0;
    s->forgotten = 0;
}

kv_status sessions_copy(const sessions *from, sessions *to) {
    if (to->entries == NULL) {
        kv_status status = sessions_new(from->count_max, to);
        if (status != KV_OK) return status;
    }
    session *entries = to->entries;
    uint32_t *buckets = to->buckets;
    memcpy(entries, from->entries, from->count_max * sizeof *entries);
    memcpy(buckets, from->buckets, from->bucket_count * sizeof *buckets);
    *to = *from;
    to->entries = entries;
    to->buckets = buckets;
    return KV_OK;
}

static uint32_t *bucket_of(const sessions *s, uint64_t client, uint32_t lane) {
    uint64_t hash = (client ^ lane * 0x9E3779B97F4A7C15ULL) * 0xC2B2AE3D27D4EB4FULL;
    return &s->buckets[(hash >> 32) & (s->bucket_count - 1)];
}

const session *sessions_find(const sessions *s, uint64_t client, uint32_t lane) {
    for (uint32_t at = *bucket_of(s, client, lane); at != 0; at = s->entries[at - 1].next) {
        const session *one = &s->entries[at - 1];
        if (one->client == client && one->lane == lane) return one;
    }
    return NULL;
}

static void list_take_out(sessions *s, const session *one) {
    if (one->older != 0) s->entries[one->older - 1].newer = one->newer;
    else s->oldest = one->newer;
    if (one->newer != 0) s->entries[one->newer - 1].older = one->older;
    else s->newest = one->older;
}

/* The oldest goes; its place is the next one's. */
static session *evict(sessions *s) {
    session *one = &s->entries[s->oldest - 1];
    uint32_t *from = bucket_of(s, one->client, one->lane);
    while (*from != s->oldest) from = &s->entries[*from - 1].next;
    *from = one->next;
    if (one->version > s->forgotten) s->forgotten = one->version;
    list_take_out(s, one);
    return one;
}

static session *entry_new(sessions *s, uint64_t client, uint32_t lane) {
    session *one = s->count < s->count_max ? &s->entries[s->count++] : evict(s);
    uint32_t *bucket = bucket_of(s, client, lane);
    *one = (session){.client = client, .lane = lane, .next = *bucket};
    *bucket = (uint32_t)(one - s->entries) + 1;
    return one;
}

void sessions_note(sessions *s, const kv_request *request, uint64_t version) {
    session *one = (session *)sessions_find(s, request->client, request->lane);
    if (one != NULL) list_take_out(s, one);
    else one = entry_new(s, request->client, request->lane);
    one->number = request->number;
    one->outcome = request->outcome;
    one->result = request->result;
    one->version = version;
    one->older = s->newest;
    one->newer = 0;
    uint32_t at = (uint32_t)(one - s->entries) + 1;
    if (s->newest != 0) s->entries[s->newest - 1].newer = at;
    else s->oldest = at;
    s->newest = at;
}
