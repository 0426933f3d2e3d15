/* replica_take.c -- taking shards over: one round trip, no election.
 *
 *   taker   a round above every round it knows; its own PROMISE on the disk; PREPARE to all, with what it has
 *   others  refuse, or: stop owning, PROMISE on the disk; show their last record, and what they have above the taker's
 *           commit where that is higher
 *   taker   with the promises of a majority: adopts the tail of the highest (ballot, version), and opens its ballot with
 *           a BARRIER behind it */
#include <stdlib.h>

#include "replica_internal.h"

/* What a PROMISE says of the tail behind the taker's commit. */
enum { TAIL_NOT_HIGHER = 0, TAIL_SHOWN = 1, TAIL_LOST = 2 };

/* And first of all. */
enum { PROMISE_REFUSED = 0, PROMISE_GRANTED = 1, PROMISE_OUTSIDE = 2 };

/* One shard of a PREPARE. */
typedef struct prepare_ask {
    uint64_t commit, last_ballot, last;
    uint64_t before; /* what was promised, if it is granted */
    uint16_t shard;
    bool granted, outside;
} prepare_ask;

static void taking_free(taking *t) {
    free(t->best.records);
    t->best = (shown_tail){0};
    t->ballot = 0;
    t->answered = 0;
    t->commit = 0;
}

void taking_clear(kv_replica *r, shard *s, bool answer) {
    if (s->taking.ballot == 0) return;
    taking_free(&s->taking);
    queued_ask *queue = LIST(queued_ask, &s->taking.queue);
    for (size_t i = 0; i < s->taking.queue.count; i++) {
        if (answer) reply_simple(r, queue[i].ask.token, KV_ANSWER_RETRY);
        ask_free(&queue[i]);
    }
    list_clear(&s->taking.queue);
}

/* --- the taker's first step --- */

/* KV_ENOSPC: then nothing is promised. */
static kv_status log_promise(kv_replica *r, uint64_t ballot, const uint16_t *shards, size_t count) {
    uint8_t value[2 * KV_SHARDS_MAX];
    kv_position position;
    for (size_t i = 0; i < count; i++) kv_store16(value + 2 * i, shards[i]);
    kv_status status = log_try(r, KV_KIND_PROMISE, 0, ballot, value, 2 * count, &position);
    r->counts.promises += status == KV_OK;
    return status;
}

void take_over(kv_replica *r, const uint16_t *asked, size_t asked_count) {
    uint16_t shards[KV_SHARDS_MAX];
    size_t count = 0;
    if (r->round >= ROUND_MAX) return; /* Somebody lied: the next ballot would be below what was promised. */
    for (size_t i = 0; i < asked_count && count < KV_SHARDS_MAX; i++) {
        if (asked[i] >= r->shard_count) continue;
        shard *s = &r->shards[asked[i]];
        if (s->own.ballot != 0 || s->taking.ballot != 0 || s->hole != 0) continue;
        if (!is_member(members_now(s), r->options.node) && !mutated(r, KV_MUTATE_REMOVED_VOTES)) continue;
        if (!installing_leave(r, s)) continue;
        note_round(r, s->promised);
        shards[count++] = asked[i];
        s->taking.ballot = 1; /* Named twice, it is taken once. */
    }
    if (count == 0) return;
    uint64_t ballot = ballot_make(++r->round, r->options.node);
    kv_status status = mutated(r, KV_MUTATE_ROUND_REUSED) ? KV_OK : log_promise(r, ballot, shards, count);
    for (size_t i = 0; i < count; i++) {
        shard *s = &r->shards[shards[i]];
        s->taking.ballot = status == KV_OK ? ballot : 0;
        s->taking.members = *members_now(s);
        s->taking.since = r->now;
        if (status == KV_OK) s->promised = ballot;
    }
    if (status != KV_OK) return;
    r->counts.takeovers++;
    after *a = after_add(r, AFTER_PREPARE);
    if (a == NULL) return;
    a->ballot = ballot;
    a->size = count * sizeof *shards;
    a->asks = malloc(a->size);
    if (a->asks == NULL) replica_fail(r, KV_ENOMEM);
    else memcpy(a->asks, shards, a->size);
}

/* --- with the promises of a majority --- */

static bool is_higher(const kv_replica *r, const shown_tail *left, uint64_t ballot, uint64_t version) {
    if (mutated(r, KV_MUTATE_LONGEST_TAIL))
        return left->last != version ? left->last > version : left->last_ballot > ballot;
    return left->last_ballot != ballot ? left->last_ballot > ballot : left->last > version;
}

static void adopt(kv_replica *r, shard *s, const shown_tail *tail) {
    wire_in in = {.at = tail->records, .end = tail->records + tail->records_size};
    uint64_t prev_ballot = wire_take64(&in), count = wire_take_varint(&in);
    r->counts.adoptions++;
    for (uint64_t i = 0; i < count && r->failed == KV_OK; i++)
        if (!version_take(r, s, &in, tail->prev_version + 1 + i, tail->last_ballot, &prev_ballot, true)) break;
    /* They were looked at when they came: bytes that are bad now are our own fault. */
    KV_ASSERT(!in.bad || r->failed != KV_OK);
}

static void majority_promised(kv_replica *r, shard *s) {
    taking *t = &s->taking;
    uint64_t ballot = t->ballot, commit = t->commit;
    r->dropped = false;
    if (t->best.records != NULL) adopt(r, s, &t->best);
    if (r->dropped) { /* A part of it has no room here: who is asked next may have more. */
        shard_step_down(r, s);
        return;
    }
    uint64_t last = log_last(&s->log);
    if (commit > last) commit = last;
    if (commit > s->commit) s->commit = commit;
    list queue = t->queue;
    t->queue = (list){0};
    taking_free(t);
    shard_own(r, s, ballot);
    if (!shard_barrier(r, s)) shard_step_down(r, s); /* Whoever is queued is told to retry, as nobody owns it. */
    shard_apply(r, s);
    queued_ask *asked = LIST(queued_ask, &queue);
    for (size_t i = 0; i < queue.count; i++) {
        kv_replica_request(r, &asked[i].ask);
        ask_free(&asked[i]);
    }
    list_free(&queue);
}

/* It was removed, and hears of that now. Whoever shows such a tail refuses (is_outside), but nothing is to rest on that. */
static void outside(kv_replica *r, shard *s) {
    r->counts.outsiders++;
    shard_step_down(r, s);
    policy_refused(r, s);
    s->told_out = true;
}

/* Who has to have promised is known only with the tail that is to be adopted: the members at its end. `tail` gives its
 * records away. */
static void promised_by(kv_replica *r, shard *s, uint32_t index, shown_tail *tail) {
    taking *t = &s->taking;
    bool better = t->best.records == NULL ? is_higher(r, tail, log_last_ballot(&s->log), log_last(&s->log))
                                          : is_higher(r, tail, t->best.last_ballot, t->best.last);
    if (tail->lost && !is_member(&tail->members, r->peers[index].node)) return; /* As if it had not answered. */
    if (tail->lost) { /* We are too far behind to be the owner. That one is not, and will send us a snapshot. */
        shard_step_down(r, s);
        policy_refused(r, s);
        offer_send(r, s, index);
        return;
    }
    t->answered |= 1u << index;
    if (tail->commit > t->commit) t->commit = tail->commit;
    if (better && tail->records != NULL) {
        free(t->best.records);
        t->best = *tail;
        tail->records = NULL;
        if (!mutated(r, KV_MUTATE_TAKER_MEMBERS)) t->members = tail->members;
    }
    voters v = voters_of(r, &t->members);
    if (!is_majority(&v, t->answered)) return;
    if (is_member(&t->members, r->options.node) || mutated(r, KV_MUTATE_REMOVED_VOTES)) majority_promised(r, s);
    else outside(r, s);
}

void prepare_send(kv_replica *r, const after *a) {
    size_t count = 0;
    uint16_t live[KV_SHARDS_MAX];
    for (size_t i = 0; i < a->size / sizeof *live; i++) {
        uint16_t number = kv_load16(a->asks + 2 * i);
        if (r->shards[number].taking.ballot == a->ballot) live[count++] = number;
    }
    if (count == 0) return;
    for (uint32_t i = 0; i < r->peer_count; i++) {
        if (!is_peer(r, i)) continue;
        wire_out *out = &r->peers[i].out;
        wire_begin(out, WIRE_PREPARE);
        wire_put64(out, a->ballot);
        wire_put_varint(out, count);
        for (size_t j = 0; j < count; j++) {
            const shard *s = &r->shards[live[j]];
            wire_put_varint(out, s->number);
            wire_put_varint(out, s->commit);
            wire_put64(out, log_last_ballot(&s->log));
            wire_put_varint(out, log_last(&s->log));
        }
        wire_end(out);
    }
    for (size_t j = 0; j < count; j++) {
        shard *s = &r->shards[live[j]];
        shown_tail own = {.commit = s->commit, .last_ballot = log_last_ballot(&s->log), .last = log_last(&s->log)};
        promised_by(r, s, r->self, &own);
    }
}

/* --- the others --- */

/* Nobody who keeps to the rules has so many under way. */
static bool asks_too_often(const kv_replica *r, uint16_t node) {
    enum { PROMISES_MAX = 64 };
    size_t count = 0;
    const after *all = LIST(after, &r->after);
    for (size_t i = 0; i < r->after.count; i++) count += all[i].kind == AFTER_PROMISE && all[i].node == node;
    return count >= PROMISES_MAX;
}

static bool is_above(const shard *s, const prepare_ask *ask) {
    uint64_t mine = log_last_ballot(&s->log);
    return mine != ask->last_ballot ? mine > ask->last_ballot : log_last(&s->log) > ask->last;
}

/* A member no more, that has not heard of it: with our answer, which shows that, it would have to give up. Without one it
 * goes on as if we were not there, and we keep what we own. */
static bool is_outside(const kv_replica *r, const shard *s, uint16_t node, const prepare_ask *ask) {
    if (mutated(r, KV_MUTATE_REMOVED_VOTES) || mutated(r, KV_MUTATE_OUTSIDER_HEARD)) return false;
    return is_above(s, ask) && !is_member(members_now(s), node);
}

void prepare_receive(kv_replica *r, peer *p, wire_in *in) {
    uint16_t granted[KV_SHARDS_MAX];
    uint64_t ballot = wire_take64(in), count = wire_take_varint(in);
    size_t granted_count = 0;
    if (count == 0 || count > r->shard_count || ballot_node(ballot) != p->node) in->bad = true;
    note_round(r, ballot);
    prepare_ask *asks = in->bad ? NULL : calloc(count, sizeof *asks);
    for (uint64_t i = 0; asks != NULL && i < count && !in->bad; i++) {
        prepare_ask *one = &asks[i];
        uint64_t number = wire_take_varint(in);
        one->commit = wire_take_varint(in);
        one->last_ballot = wire_take64(in);
        one->last = wire_take_varint(in);
        one->shard = (uint16_t)number;
        if (number >= r->shard_count) in->bad = true;
    }
    uint64_t asked = count;
    count = 0;
    for (uint64_t i = 0; asks != NULL && i < asked && !in->bad; i++)
        if (shard_votes(r, &r->shards[asks[i].shard])) asks[count++] = asks[i];
    if (in->bad || asks == NULL || count == 0 || asks_too_often(r, p->node)) {
        free(asks);
        return;
    }
    for (uint64_t i = 0; i < count; i++) {
        shard *s = &r->shards[asks[i].shard];
        asks[i].outside = is_outside(r, s, p->node, &asks[i]);
        asks[i].granted = s->promised < ballot && !asks[i].outside;
        if (!asks[i].granted) continue;
        asks[i].before = s->promised;
        s->promised = ballot;
        granted[granted_count++] = s->number;
    }
    if (granted_count != 0 && log_promise(r, ballot, granted, granted_count) != KV_OK) {
        /* What cannot be kept is not promised: silence, as of one who is not there. */
        for (uint64_t i = 0; i < count; i++)
            if (asks[i].granted) r->shards[asks[i].shard].promised = asks[i].before;
        free(asks);
        return;
    }
    for (size_t i = 0; i < granted_count; i++) shard_step_down(r, &r->shards[granted[i]]);
    after answer = {.node = p->node, .ballot = ballot, .asks = (uint8_t *)asks, .size = count * sizeof *asks};
    after *waits = mutated(r, KV_MUTATE_PROMISE_NOT_DURABLE) ? NULL : after_add(r, AFTER_PROMISE);
    if (waits != NULL) {
        answer.end = waits->end;
        answer.kind = AFTER_PROMISE;
        *waits = answer;
        return;
    }
    promise_send(r, &answer);
    free(asks);
}

/* In the log, where records are no smaller than on the wire. */
static uint64_t tail_size(kv_replica *r, const shard *s, uint64_t commit) {
    uint64_t size = 0, with;
    bool gone;
    for (uint64_t version = commit + 1; version <= log_last(&s->log); version++) {
        carried(r, NULL, log_at(&s->log, version), &with, &gone);
        size += log_at(&s->log, version)->size + with;
    }
    return size;
}

/* What lies above the taker's commit, as bytes with their length in front; what would not fit into a frame is as good as
 * lost: we are the better owner then. */
static void tail_put(kv_replica *r, wire_out *out, shard *s, const prepare_ask *ask) {
    uint64_t mine = log_last_ballot(&s->log), last = log_last(&s->log), prev_ballot = 0;
    bool wanted = (is_above(s, ask) || mutated(r, KV_MUTATE_LONGEST_TAIL)) && last > ask->commit;
    bool shown = wanted && log_ballot_at(&s->log, ask->commit, &prev_ballot) &&
                 out->size - out->frame + tail_size(r, s, ask->commit) <= WIRE_FRAME_SIZE_MAX / 2;
    wire_put_varint(out, s->number);
    wire_put_varint(out, s->commit);
    wire_put64(out, mine);
    wire_put_varint(out, last);
    wire_put_members(out, members_now(s));
    wire_put8(out, shown ? TAIL_SHOWN : wanted ? TAIL_LOST : TAIL_NOT_HIGHER);
    if (!shown) return;
    wire_put_varint(out, ask->commit);
    size_t at = out->size;
    wire_put64(out, 0);
    wire_put64(out, prev_ballot);
    wire_put_varint(out, last - ask->commit);
    for (uint64_t version = ask->commit + 1; version <= last; version++)
        wire_put_version(r, out, log_at(&s->log, version), mine);
    if (!out->failed) kv_store64(out->bytes + at, out->size - at - 8);
}

void promise_send(kv_replica *r, const after *a) {
    const prepare_ask *asks = (const prepare_ask *)(const void *)a->asks;
    size_t count = a->size / sizeof *asks;
    int index = peer_of(r, a->node);
    if (index < 0) return; /* It has gone. */
    wire_out *out = &r->peers[index].out;
    wire_begin(out, WIRE_PROMISE);
    vouch_put(r, &r->peers[index]);
    wire_put64(out, a->ballot);
    wire_put_varint(out, count);
    for (size_t i = 0; i < count; i++) {
        shard *s = &r->shards[asks[i].shard];
        /* Since it was asked for, a still higher ballot may have come. */
        bool stands = asks[i].granted && (s->promised == a->ballot || mutated(r, KV_MUTATE_PROMISE_LATE_TAIL));
        wire_put8(out, asks[i].outside ? PROMISE_OUTSIDE : stands ? PROMISE_GRANTED : PROMISE_REFUSED);
        if (stands) {
            tail_put(r, out, s, &asks[i]);
            continue;
        }
        wire_put_varint(out, s->number);
        if (!asks[i].outside) wire_put64(out, s->promised);
    }
    wire_end(out);
}

/* --- the taker's third step --- */

static bool tail_take(wire_in *in, shown_tail *out) {
    *out = (shown_tail){.commit = wire_take_varint(in)};
    out->last_ballot = wire_take64(in);
    out->last = wire_take_varint(in);
    wire_take_members(in, &out->members);
    uint8_t what = wire_take8(in);
    out->lost = what == TAIL_LOST;
    if (what != TAIL_SHOWN) return true;
    out->prev_version = wire_take_varint(in);
    uint64_t size = wire_take64(in);
    const uint8_t *bytes = wire_take_bytes(in, size);
    if (bytes == NULL) return true;
    out->records = malloc(size + 1);
    if (out->records == NULL) return false;
    memcpy(out->records, bytes, size);
    out->records_size = size;
    return true;
}

/* What it shows lies above the commit that it was told: ours then, which has not moved as long as the takeover stands. */
static bool tail_is_sound(kv_replica *r, const shown_tail *tail) {
    wire_in in = {.at = tail->records, .end = tail->records + tail->records_size};
    wire_take64(&in);
    uint64_t count = wire_take_varint(&in);
    for (uint64_t i = 0; i < count && !in.bad; i++) {
        uint64_t record_count = wire_take_varint(&in);
        uint8_t how = wire_take8(&in);
        if (how & VERSION_BALLOT) wire_take64(&in);
        const kv_record *records = version_parse(r, &in, record_count);
        if (records == NULL || !carried_sound(r, records, record_count, how)) return false;
    }
    return !in.bad && in.at == in.end && tail->prev_version + count == tail->last;
}

static void promise_refused(kv_replica *r, shard *s, uint64_t ballot, uint64_t promised) {
    note_round(r, promised);
    if (s->taking.ballot != ballot || promised <= ballot) return;
    shard_step_down(r, s);
    policy_refused(r, s);
}

void promise_receive(kv_replica *r, peer *p, wire_in *in) {
    bool current = vouch_take(p, in);
    uint64_t ballot = wire_take64(in), count = wire_take_varint(in);
    uint32_t index = (uint32_t)(p - r->peers);
    for (uint64_t i = 0; i < count && !in->bad && r->failed == KV_OK; i++) {
        uint8_t what = wire_take8(in);
        uint64_t number = wire_take_varint(in);
        if (number >= r->shard_count) in->bad = true;
        if (in->bad) return;
        shard *s = &r->shards[number];
        if (what == PROMISE_OUTSIDE) {
            if (s->taking.ballot == ballot && !s->told_out) r->counts.outsiders++;
            s->told_out |= s->taking.ballot == ballot;
            continue;
        }
        if (what != PROMISE_GRANTED) {
            uint64_t promised = wire_take64(in);
            if (!in->bad) promise_refused(r, s, ballot, promised);
            continue;
        }
        shown_tail tail;
        if (!tail_take(in, &tail)) replica_fail(r, KV_ENOMEM);
        if (tail.records != NULL && !tail_is_sound(r, &tail)) in->bad = true;
        bool waited_for = current && s->taking.ballot == ballot && (s->taking.answered >> index & 1) == 0;
        if (waited_for && tail.prev_version > s->commit) in->bad = true;
        if (!in->bad && waited_for) promised_by(r, s, index, &tail);
        free(tail.records);
    }
}
