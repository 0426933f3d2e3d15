/* digest.c -- values by digest: what is inline, a bulk lane that starves, bytes that change on their way, a disk that is
 * lost, and the operator who has to forget what was on it alone. See world.h.
 *
 * A disk that is lost does not come back, nor does its replica. Under `version` it may have had the only bytes of some
 * values. In the end those are UNAVAILABLE, which is right; the operator forgets them, one version after another, until what
 * was kept can be read. It may not be that a value of durability `data` is gone, nor one of a seed that has lost no disk, nor
 * that nothing is kept behind a value that is. What a key comes back to is a write of the operator's in its history.
 *
 * Of a member that is exchanged (exchange.c) nothing is lost: who is well goes when the others have all bytes, and where one
 * is gone at once everything was written under `data`. */
#include <stdio.h>

#include "world.h"

enum { PATIENCE = 12, FORGETS_MAX = 30, BULK_FETCH = 16, BULK_BYTES = 17 };

/* --- what a seed has of it --- */

/* What was on one disk alone may be gone, and nobody is there to forget it: a member that is exchanged is dead, or a disk goes bad,
 * or is set back. */
static bool bytes_go(const world *w) {
    return exchange_kills(w) || w->disk_fault != DISK_FAULT_NONE || scripts_hurt_disks(w);
}

void digest_choose(world *w) {
    static const int64_t inline_max[] = {KV_INLINE_NOTHING, KV_INLINE_NOTHING, 16, 16, 0};
    static const uint64_t fetch[] = {24, 200, 0};
    w->inline_max = inline_max[pick(w, 5)];
    w->fetch_size_max = fetch[w->bulk != 0 ? 2 : pick(w, 3)];
    w->data = (const double[]){0, 0.5, 0.5, 1}[pick(w, 4)];
    w->spoils = likely(w, 0.3);
    /* With `policy` the others would wait for whoever owned something and cannot now. */
    w->loses = w->inline_max != 0 && w->scripts == 0 && !w->policy && w->exchange_plan == 0 && likely(w, 0.9);
    if (w->loses) w->disk_fault = DISK_FAULT_NONE; /* One disk is enough. */
    w->lost = NODES_MAX;
    bool starves = w->inline_max != 0 && likely(w, w->loses ? 0.8 : 0.2);
    uint64_t when = between(w, 50, 600), until = when + between(w, 10, 80);
    if (starves) world_at(w, when, EVENT_STARVE)->argument = true;
    if (w->loses) world_at(w, until + 90 * UNIT, EVENT_LOSE)->argument = starves;
    else if (starves) world_at(w, until, EVENT_STARVE)->argument = false;
    if (w->loses && likely(w, 0.5)) w->data /= 4;
    if (bytes_go(w)) w->data = 1;
    w->absent = starves && w->loses && likely(w, 0.4);
    if (w->absent) w->keep_max = 2;
}

/* Somebody who is no owner may be away for the time, so that what he gets is a snapshot; and later be the owner. */
void digest_starve(world *w, bool on) {
    w->starved = on;
    if (!on || !w->absent) return;
    uint32_t i = pick(w, w->n);
    for (uint32_t j = 0; j < w->n && (node_owns(w, i, 0) || node_owns(w, i, 1)); j++) i = j;
    at_node(w, 0.1, EVENT_CRASH, i, true);
    at_node(w, 50, EVENT_RESTART, i, 0);
    w->away = i;
}

/* Whether a frame goes lost because it is the bulk lane's. */
bool digest_starves(const world *w, uint32_t type) { return w->starved && (type == BULK_FETCH || type == BULK_BYTES); }

/* No wire does that, but a holder might have other bytes under that name. */
void digest_spoil(world *w, uint8_t *frame, size_t size) {
    if (!w->calm && w->spoils && frame[4] == BULK_BYTES && likely(w, 0.1)) frame[size - 1] ^= 0x41;
}

uint8_t digest_durability(const world *w, bool data) {
    return data || w->loses || bytes_go(w) ? KV_DURABILITY_DATA : KV_DURABILITY_VERSION;
}

bool digest_settled(const world *w, uint32_t nodes) {
    bool all = true;
    for (uint32_t i = 0; w->inline_max != 0 && i < w->n && all; i++) {
        kv_replica_lag lag;
        if (!(nodes >> i & 1) || w->nodes[i].gone) continue;
        if (!node_synced(w, i)) return false;
        kv_replica_lag_of(w->nodes[i].core, &lag);
        all = lag.missing_count == 0 && lag.kept_count == 0;
    }
    return all;
}

static uint64_t missing_at(const world *w, uint32_t i) {
    kv_replica_lag lag = {0};
    if (w->nodes[i].up) kv_replica_lag_of(w->nodes[i].core, &lag);
    return lag.missing_count;
}

/* An owner's, mostly, and at a time when others lack bytes. */
void digest_lose(world *w, bool waits) {
    uint32_t i = pick(w, w->n), lacking = 0;
    for (uint32_t j = 0; j < w->n; j++) {
        lacking += missing_at(w, j) != 0;
        if (likely(w, 0.8) && missing_at(w, j) == 0 && (node_owns(w, j, 0) || node_owns(w, j, 1))) i = j;
    }
    if (waits && lacking < w->n / 2 + 1 && w->now < 850 * UNIT) {
        world_at(w, UNIT, EVENT_LOSE)->argument = true;
        return;
    }
    w->starved = false;
    node_lost(w, i);
    w->lost = i;
    w->counts.disks_lost++;
    bool last = w->absent || likely(w, 0.6); /* Else most of it is written anew before the end. */
    for (uint32_t j = 0; last && j < CLIENTS; j++) w->clients[j].left = 0;
    if (w->absent && w->away != i) at_node(w, 5, EVENT_TAKEOVER, w->away, (1u << SHARDS) - 1);
}

/* --- the end --- */

static uint32_t owner_of(const world *w, uint32_t shard) {
    for (uint32_t i = 0; i < w->n; i++)
        if (node_owns(w, i, shard)) return i;
    return w->n;
}

static operation operation_of(uint32_t object, uint8_t kind) {
    return (operation){.shard = object / OBJECT_KINDS, .object = (enum object)(object % OBJECT_KINDS), .kind = kind, .attempt = 1};
}

static bool is_key(const kv_record *record, const char *key, size_t size) {
    return (record->kind == KV_KIND_PUT || record->kind == KV_KIND_DELETE) && record->key_size == size &&
           memcmp(record->key, key, size) == 0;
}

/* The newest record of a key below a version, as far as it is held; false: there is none that can be looked at. */
static bool record_before(const world *w, uint32_t owner, uint32_t shard, const char *key, size_t size, uint64_t below,
                          kv_record *out) {
    kv_replica *core = w->nodes[owner].core;
    kv_shard_state state;
    kv_replica_shard(core, shard, &state);
    for (uint64_t version = below - 1; version > state.base; version--)
        for (uint32_t nth = 0; kv_replica_record(core, shard, version, nth, out) == KV_OK; nth++)
            if (is_key(out, key, size)) return true;
    return false;
}

/* What the version that is gone was: never one of durability `data`. */
static void gone_judge(world *w, uint32_t object, uint64_t version) {
    char key[16];
    kv_record record;
    kv_meta meta;
    uint32_t shard = object / OBJECT_KINDS, owner = owner_of(w, shard);
    size_t size = object_key(w, shard, (enum object)(object % OBJECT_KINDS), key);
    if (w->lost == NODES_MAX) violate(w, "%s: bytes are gone, and no disk is", key);
    if (owner == w->n || !record_before(w, owner, shard, key, size, version + 1, &record)) return;
    bool named = (record.flags & KV_FLAG_META) && kv_meta_decode(record.value, record.value_size, &meta);
    if (record.version == version && named && meta.data) violate(w, "%s: bytes that a majority voted with are gone", key);
    if (named && record.version == version && meta.origin != w->lost + 1)
        violate(w, "%s: bytes of replica %u are gone, and it has its disk", key, meta.origin);
}

/* A version that is applied for the first time anywhere: which of the keys does it write? */
void version_noted(world *w, uint32_t i, uint32_t shard, uint64_t version) {
    kv_record record;
    char key[16];
    for (uint32_t nth = 0; w->loses && kv_replica_record(w->nodes[i].core, shard, version, nth, &record) == KV_OK; nth++)
        for (uint32_t kind = 0; kind < OBJECT_KINDS; kind++) {
            uint32_t object = shard * OBJECT_KINDS + kind;
            if (!is_key(&record, key, object_key(w, shard, (enum object)kind, key))) continue;
            if (w->write_counts[object] == WRITES_MAX) continue;
            w->writes[object][w->write_counts[object]++] = version << 1 | (record.kind == KV_KIND_PUT);
        }
}

static void forgotten_judge(world *w, uint32_t object, uint64_t given_up, uint64_t kept) {
    char key[16];
    uint64_t before = 0;
    if (w->forgets[object].count != 0) return; /* Behind another forget there is more. */
    object_key(w, object / OBJECT_KINDS, (enum object)(object % OBJECT_KINDS), key);
    for (uint32_t i = 0; i < w->write_counts[object]; i++) {
        uint64_t one = w->writes[object][i];
        if (one >> 1 < given_up) before = (one & 1) != 0 ? one >> 1 : 0;
    }
    if (before != kept)
        violate(w, "%s: forgetting version %llu leads to %llu, and before it was %llu", key, (unsigned long long)given_up,
                (unsigned long long)kept, (unsigned long long)before);
}

static void forget_send(world *w, uint32_t object, uint8_t kind) {
    operation op = operation_of(object, kind);
    uint32_t owner = owner_of(w, op.shard);
    if (owner == w->n) return;
    if (w->forgets[object].sends++ == FORGETS_MAX) {
        violate(w, "object %u cannot be brought back", object);
        return;
    }
    trace(w, "the operator has object %u %s", object, kind == KV_REQUEST_FORGET ? "forget" : "deleted");
    request_send(w, owner, &op, TOKEN_FORGETTER | (uint64_t)object << 8 | (uint64_t)kind << 32, 0);
}

void digest_lacking(world *w, uint32_t object, uint64_t version) {
    if (!w->calm || ++w->forgets[object].patience < PATIENCE) return;
    w->forgets[object].patience = 0;
    w->forgets[object].version = version;
    gone_judge(w, object, version);
    forget_send(w, object, KV_REQUEST_FORGET);
}

static void entry_written(world *w, uint32_t object, const kv_reply *reply, uint8_t kind) {
    operation op = operation_of(object, kind == KV_REQUEST_FORGET ? KV_REQUEST_PUT : kind);
    uint32_t at = entry_new(w, &op, TOKEN_FORGETTER, object);
    w->entries[at].op.ret = w->order++;
    w->entries[at].op.version = reply->version;
    w->entries[at].op.argument = kv_history_present(~(uint64_t)at); /* Unless it is the last one: nobody has read it. */
    w->forgets[object].entry = at + 1;
    w->forgets[object].count++;
}

/* true: the answer was the operator's. */
bool digest_answer(world *w, const kv_reply *reply) {
    uint32_t object = (uint32_t)(reply->token >> 8 & 0xFFFFFF);
    uint8_t kind = (uint8_t)(reply->token >> 32);
    if ((reply->token & 255) != TOKEN_FORGETTER) return false;
    if (reply->status == KV_ANSWER_OK) {
        if (kind == KV_REQUEST_FORGET) {
            forgotten_judge(w, object, w->forgets[object].version, (uint64_t)reply->number);
            w->counts.forgets++;
        }
        entry_written(w, object, reply, kind);
    } else if (reply->status == KV_ANSWER_FAILED && reply->error == KV_ELACKING) {
        forgotten_judge(w, object, w->forgets[object].version, 0);
        forget_send(w, object, KV_REQUEST_DELETE);
    }
    return true;
}

/* --- the verdict --- */

static bool is_behind(world *w) {
    for (uint32_t i = 0; i < w->n; i++) {
        kv_replica_lag lag;
        if (!(members_wanted(w) >> i & 1) || w->nodes[i].gone) continue;
        kv_replica_lag_of(w->nodes[i].core, &lag);
        if (lag.missing_count == 0 && lag.kept_count == 0) continue;
        trace(w, "replica %u lacks the bytes of %llu values, and keeps something behind %llu", i + 1,
              (unsigned long long)lag.missing_count, (unsigned long long)lag.kept_count);
        return true;
    }
    return false;
}

/* Everything is everywhere, and nothing is kept for nothing; what keys came back to is known now. */
void digest_judge(world *w) {
    for (int i = 0; w->lost == NODES_MAX && i < 20 && is_behind(w) && w->violation[0] == 0; i++) world_run(w, w->now + 100 * UNIT);
    if (w->lost == NODES_MAX && is_behind(w)) violate(w, "long after everything healed bytes are missing somewhere");
    for (uint32_t object = 0; object < OBJECTS; object++) {
        if (w->forgets[object].entry == 0) continue;
        kv_history_op *op = &w->entries[w->forgets[object].entry - 1].op;
        const kv_history_op *last = &w->entries[w->final_entry[object]].op;
        if (op->kind != KV_HISTORY_PUT) continue;
        op->argument = last->answer;
        if (!last->answer.present) op->kind = KV_HISTORY_DELETE;
    }
}
