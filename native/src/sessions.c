/* sessions.c -- see sessions.h. */
#include "sessions.h"

#include <stdlib.h>
#include <string.h>

enum { PLACES_PER_ENTRY = 4, RING_MIN = 4 };

kv_status sessions_new(uint32_t count_max, sessions *out) {
    KV_ASSERT(count_max >= 1 && count_max < 1u << 24);
    *out = (sessions){.count_max = count_max, .bucket_count = 1};
    while (out->bucket_count < count_max) out->bucket_count *= 2;
    out->ring_capacity = PLACES_PER_ENTRY * out->bucket_count;
    out->ring_used = RING_MIN;
    out->entries = calloc(count_max, sizeof *out->entries);
    out->buckets = calloc(out->bucket_count, sizeof *out->buckets);
    out->ring = malloc(out->ring_capacity * sizeof *out->ring);
    if (out->entries != NULL && out->buckets != NULL && out->ring != NULL) return KV_OK;
    sessions_free(out);
    return KV_ENOMEM;
}

void sessions_free(sessions *s) {
    free(s->entries);
    free(s->buckets);
    free(s->ring);
    *s = (sessions){0};
}

void sessions_clear(sessions *s) {
    memset(s->buckets, 0, s->bucket_count * sizeof *s->buckets);
    s->count = s->ring_first = s->ring_count = 0;
    s->forgotten = 0;
}

/* --- by hash --- */

static uint32_t *bucket_of(const sessions *s, uint64_t client, uint32_t lane) {
    uint64_t hash = (client ^ lane * 0x9E3779B97F4A7C15ULL) * 0xC2B2AE3D27D4EB4FULL;
    return &s->buckets[(hash >> 32) & (s->bucket_count - 1)];
}

void sessions_prefetch_bucket(const sessions *s, uint64_t client, uint32_t lane) {
    __builtin_prefetch(bucket_of(s, client, lane));
}

void sessions_prefetch(const sessions *s, uint64_t client, uint32_t lane) {
    uint32_t at = *bucket_of(s, client, lane);
    if (at != 0) __builtin_prefetch(&s->entries[at - 1]);
}

const session *sessions_find(const sessions *s, uint64_t client, uint32_t lane) {
    for (uint32_t at = *bucket_of(s, client, lane); at != 0; at = s->entries[at - 1].next) {
        const session *one = &s->entries[at - 1];
        if (one->client == client && one->lane == lane) return one;
    }
    return NULL;
}

/* --- by version --- */

static const session_place *place_at(const sessions *s, uint32_t nth) {
    return &s->ring[(s->ring_first + nth) & (s->ring_used - 1)];
}

static bool is_stale(const sessions *s, const session_place *place) {
    return s->entries[place->entry].version != place->version;
}

static void ring_drop_stale(sessions *s) {
    uint32_t left = 0;
    for (uint32_t i = 0; i < s->ring_count; i++) {
        session_place place = *place_at(s, i);
        if (!is_stale(s, &place)) s->ring[(s->ring_first + left++) & (s->ring_used - 1)] = place;
    }
    s->ring_count = left;
}

/* What lies at the front, because the ring was at its end, goes to behind it. */
static void ring_widen(sessions *s) {
    uint32_t first = s->ring_first & (s->ring_used - 1), end = first + s->ring_count;
    if (end > s->ring_used) memcpy(&s->ring[s->ring_used], s->ring, (end - s->ring_used) * sizeof *s->ring);
    s->ring_first = first;
    s->ring_used *= 2;
}

/* Every entry has one place that counts: with four for each, dropping the others leaves three quarters empty. No more is
 * used, so that few lanes are ordered in few cache lines. */
static void ring_make_room(sessions *s) {
    if (s->ring_used < PLACES_PER_ENTRY * s->count) ring_widen(s);
    else ring_drop_stale(s);
}

static void ring_add(sessions *s, uint32_t entry, uint64_t version) {
    if (s->ring_count == s->ring_used) ring_make_room(s);
    s->ring[(s->ring_first + s->ring_count++) & (s->ring_used - 1)] = (session_place){.version = version, .entry = entry};
}

/* The one of the lowest version goes; its place is the next one's. */
static session *evict(sessions *s) {
    while (is_stale(s, place_at(s, 0))) {
        s->ring_first++;
        s->ring_count--;
    }
    uint32_t at = place_at(s, 0)->entry;
    session *one = &s->entries[at];
    uint32_t *from = bucket_of(s, one->client, one->lane);
    while (*from != at + 1) from = &s->entries[*from - 1].next;
    *from = one->next;
    if (one->version > s->forgotten) s->forgotten = one->version;
    return one;
}

const session *sessions_next(const sessions *s, uint32_t *at) {
    while (*at < s->ring_count) {
        const session_place *place = place_at(s, (*at)++);
        if (!is_stale(s, place)) return &s->entries[place->entry];
    }
    return NULL;
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
    if (one == NULL) one = entry_new(s, request->client, request->lane);
    one->number = request->number;
    one->outcome = request->outcome;
    one->result = request->result;
    one->version = version;
    ring_add(s, (uint32_t)(one - s->entries), version);
}
