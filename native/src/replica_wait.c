/* replica_wait.c -- who waits for something newer: of a key, of a table, or of a shard as a whole.
 *
 * A wait is answered when its name has, in what is applied here, a version above the one that it came with: at once, if it
 * has that already. What is applied is committed and stays, at an owner as at any other replica; so waits know nothing of
 * ownership, and a takeover does not touch them. None is missed: a wait looks when it comes, and from then on hangs under
 * every hash that a record of its name can have, until a record with such a hash is shown.
 *
 *   key        its own, whatever stands there
 *   table      besides, that of the table's head, which every row's record becomes
 *   shard      one made of its number
 *
 * Records only mark; who is marked is looked at when a call is through (waits_answer), so a hundred versions that came
 * together are one look, and an answer never comes from the middle of one.
 *
 * Where a snapshot took the place of a shard's state nobody knows of the deletes that it has left out. Waits of the shard
 * end then; and one that comes later, for a name that is not there, with a version from before, is answered at once. */
#include <stdlib.h>

#include "replica_internal.h"

enum { CAPACITY_MIN = 64, LINKS = 2 };

/* --- chains --- */

static uint32_t *chain_of(const wait_set *w, uint64_t hash) { return &w->chains[kv_mix64(hash) & (w->capacity - 1)]; }

static uint64_t hash_of_shard(uint32_t number) { return kv_mix64(number + 0x9E3779B97F4A7C15ULL); }

static void hang(wait_set *w, uint32_t at, uint32_t which, uint64_t hash) {
    wait *one = &w->all[at];
    one->hashes[which] = hash;
    one->next[which] = 0;
    if (hash == 0) return;
    uint32_t *chain = chain_of(w, hash);
    one->next[which] = *chain;
    *chain = 1 + LINKS * at + which;
}

static uint32_t *next_of(const wait_set *w, uint32_t link) { return &w->all[(link - 1) / LINKS].next[(link - 1) % LINKS]; }

static void unhang(wait_set *w, uint32_t at, uint32_t which) {
    uint64_t hash = w->all[at].hashes[which];
    if (hash == 0) return;
    uint32_t *from = chain_of(w, hash);
    while (*from != 1 + LINKS * at + which) from = next_of(w, *from);
    *from = w->all[at].next[which];
    w->all[at].hashes[which] = 0;
}

/* Twice as many; who hangs, hangs anew. */
static bool waits_grow(wait_set *w) {
    uint32_t capacity = w->capacity == 0 ? CAPACITY_MIN : 2 * w->capacity;
    wait *larger = realloc(w->all, capacity * sizeof *larger);
    if (larger == NULL) return false;
    w->all = larger;
    uint32_t *chains = calloc(capacity, sizeof *chains);
    if (chains == NULL) return false;
    free(w->chains);
    w->chains = chains;
    uint32_t before = w->capacity;
    w->capacity = capacity;
    for (uint32_t i = 0; i < before; i++)
        for (uint32_t which = 0; which < LINKS && w->all[i].used; which++) hang(w, i, which, w->all[i].hashes[which]);
    for (uint32_t i = capacity; i-- > before;) {
        w->all[i] = (wait){.next = {w->free}};
        w->free = i + 1;
    }
    return true;
}

static void wait_free(wait_set *w, uint32_t at) {
    wait *one = &w->all[at];
    for (uint32_t which = 0; which < LINKS; which++) unhang(w, at, which);
    free(one->key);
    *one = (wait){.next = {w->free}};
    w->free = at + 1;
    w->count--;
}

void waits_free(wait_set *w) {
    for (uint32_t i = 0; i < w->capacity; i++) free(w->all[i].key);
    free(w->all);
    free(w->chains);
    list_free(&w->due);
}

/* --- looking --- */

/* What is known of a name now. */
typedef struct sight {
    uint64_t version;
    bool there;        /* it is no delete */
    uint64_t hashes[LINKS];
} sight;

static kv_status find_intact(kv_replica *r, const target *t, found *out) {
    kv_fault fault;
    kv_status status = store_find(r->store, t, out, &fault);
    return status == KV_OK && !found_intact(out) ? KV_ECORRUPT : status;
}

static kv_status look_key(kv_replica *r, const wait *one, sight *out) {
    found f, head;
    target t = target_key(r->store, one->key, one->key_size);
    *out = (sight){.hashes = {t.hash == 0 ? 1 : t.hash}};
    kv_status status = find_intact(r, &t, &f);
    if (status != KV_OK) return status == KV_ABSENT ? KV_OK : status;
    out->version = f.record.version;
    out->there = !found_tombstone(&f);
    if (!found_table(&f)) return KV_OK;
    t = target_table(r->store, f.record.table_id, KV_LOC_HEAD);
    out->hashes[1] = t.hash;
    status = find_intact(r, &t, &head);
    if (status == KV_OK && head.record.version > out->version) out->version = head.record.version;
    return status == KV_ABSENT ? KV_OK : status;
}

static kv_status look(kv_replica *r, const wait *one, sight *out) {
    const shard *s = &r->shards[one->shard];
    if (one->key == NULL) {
        *out = (sight){.version = s->applied, .there = true, .hashes = {hash_of_shard(one->shard)}};
        return KV_OK;
    }
    r->late.evaluating = mutated(r, KV_MUTATE_WAIT_EARLY);
    kv_status status = look_key(r, one, out);
    r->late.evaluating = false;
    return status;
}

static void answer(kv_replica *r, const wait *one, kv_status status, uint64_t version) {
    kv_reply reply = {.token = one->token, .version = version, .shard_version = r->shards[one->shard].applied, .value_size = -1};
    if (status != KV_OK) {
        reply.status = KV_ANSWER_UNAVAILABLE;
        reply.error = status;
    }
    r->counts.waited++;
    reply_add(r, &reply);
}

/* --- coming and going --- */

/* It has come to something newer, or cannot tell. */
static bool is_over(const kv_replica *r, const wait *one, const sight *seen) {
    if (seen->version > one->since) return true;
    return !seen->there && one->since < r->shards[one->shard].whole_from;
}

static bool wait_keep(kv_replica *r, const wait *one, const sight *seen) {
    wait_set *w = &r->waits;
    if (w->count >= r->options.wait_max || (w->free == 0 && !waits_grow(w))) return false;
    uint8_t *key = one->key == NULL ? NULL : malloc(one->key_size + 1);
    if (one->key != NULL && key == NULL) return false;
    if (key != NULL) memcpy(key, one->key, one->key_size);
    uint32_t at = w->free - 1;
    w->free = w->all[at].next[0];
    w->count++;
    w->all[at] = *one;
    w->all[at].used = true;
    w->all[at].key = key;
    for (uint32_t which = 0; which < LINKS; which++) hang(w, at, which, seen->hashes[which]);
    if (w->count == 1 || one->until < w->soonest) w->soonest = one->until;
    return true;
}

void wait_add(kv_replica *r, shard *s, const kv_ask *a) {
    wait one = {.token = a->token, .since = a->since, .shard = s->number, .key_size = (uint32_t)a->key_size};
    one.until = a->ticks == 0 || a->ticks > UINT64_MAX - r->now ? UINT64_MAX : r->now + a->ticks;
    one.key = a->whole ? NULL : (uint8_t *)a->key; /* Borrowed: who is kept gets a copy. */
    sight seen;
    if (a->table != NULL || (!a->whole && key_check(a->key_size) != KV_OK)) {
        kv_status why = a->table != NULL ? KV_EUSAGE : KV_EKEYSIZE;
        reply_add(r, &(kv_reply){.token = a->token, .status = KV_ANSWER_REFUSED, .error = why, .value_size = -1});
        return;
    }
    if (!shard_is_whole(r, s)) {
        reply_simple(r, a->token, KV_ANSWER_UNAVAILABLE);
        return;
    }
    kv_status status = look(r, &one, &seen);
    bool over = status != KV_OK || is_over(r, &one, &seen);
    if (over && !mutated(r, KV_MUTATE_WAIT_UNLOOKED)) answer(r, &one, status, seen.version);
    else if (!wait_keep(r, &one, &seen)) reply_simple(r, a->token, KV_ANSWER_RETRY);
}

void kv_replica_cancel(kv_replica *r, uint64_t token) {
    wait_set *w = &r->waits;
    for (uint32_t i = 0; i < w->capacity; i++)
        if (w->all[i].used && w->all[i].token == token) wait_free(w, i);
}

void waits_end(kv_replica *r, const shard *s) {
    wait_set *w = &r->waits;
    for (uint32_t i = 0; i < w->capacity; i++) {
        if (!w->all[i].used || w->all[i].shard != s->number) continue;
        reply_simple(r, w->all[i].token, KV_ANSWER_RETRY);
        wait_free(w, i);
    }
}

void waits_expire(kv_replica *r) {
    wait_set *w = &r->waits;
    if (w->count == 0 || r->now < w->soonest) return;
    w->soonest = UINT64_MAX;
    for (uint32_t i = 0; i < w->capacity; i++) {
        wait *one = &w->all[i];
        sight seen;
        if (!one->used) continue;
        if (one->until > r->now) {
            if (one->until < w->soonest) w->soonest = one->until;
            continue;
        }
        kv_status status = look(r, one, &seen);
        answer(r, one, status, seen.version);
        wait_free(w, i);
    }
}

/* --- changes --- */

static void touch(kv_replica *r, uint64_t hash) {
    wait_set *w = &r->waits;
    for (uint32_t link = *chain_of(w, hash); link != 0; link = *next_of(w, link)) {
        uint32_t at = (link - 1) / LINKS;
        wait *one = &w->all[at];
        if (one->due || one->hashes[(link - 1) % LINKS] != hash) continue;
        uint32_t *due = list_add(&w->due, sizeof *due);
        if (due == NULL) {
            replica_fail(r, KV_ENOMEM);
            return;
        }
        *due = at;
        one->due = true;
    }
}

/* Also that of a table's end: its waits hang under the head as well, and under the key what comes in its place. */
void waits_touch(kv_replica *r, const kv_record *record) {
    target t = target_of(r->store, record);
    touch(r, t.hash == 0 ? 1 : t.hash);
    if (makes_head(record)) touch(r, target_table(r->store, record->table_id, KV_LOC_HEAD).hash);
}

void waits_touch_shard(kv_replica *r, const shard *s) { touch(r, hash_of_shard(s->number)); }

void waits_answer(kv_replica *r) {
    wait_set *w = &r->waits;
    for (size_t i = 0; i < w->due.count; i++) {
        uint32_t at = LIST(uint32_t, &w->due)[i];
        wait *one = &w->all[at];
        sight seen;
        if (!one->used || !one->due) continue; /* It went meanwhile. */
        one->due = false;
        kv_status status = look(r, one, &seen);
        if (status != KV_OK || is_over(r, one, &seen)) {
            answer(r, one, status, seen.version);
            wait_free(w, at);
            continue;
        }
        for (uint32_t which = 0; which < LINKS; which++) { /* Its key may have come to be a table, or another one. */
            unhang(w, at, which);
            hang(w, at, which, seen.hashes[which]);
        }
    }
    list_clear(&w->due);
}
