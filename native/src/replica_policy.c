/* replica_policy.c -- who should own a shard, and when to do something about it. Liveness only: whatever is decided here,
 * what is committed stays committed.
 *
 * Every replica ranks the members of a shard by a hash of both (rendezvous hash): the first is its preferred owner, and
 * if that one is gone the second has it, with no other shard moving. A replica that has not been heard of for a while is
 * taken for gone. A shard without a living owner is taken over by the first in rank of those that live, and by each after
 * it only some ticks later, so that two of them seldom want the same shard at once; who was refused waits, longer the
 * lower its rank. An owner that is not the preferred one offers the shard to it once that one has been heard of for some
 * time, and once nothing of its own is on its way. */
#include "replica_internal.h"

enum { RANK_TICKS = 4 };

static uint64_t score(uint32_t number, uint16_t node) {
    return kv_mix64(((uint64_t)number << 16 | node) * 0x9E3779B97F4A7C15ULL + 0x632BE59BD9B4E019ULL);
}

uint32_t kv_owner_rank(const uint16_t *nodes, uint32_t count, uint32_t number, uint16_t node) {
    uint32_t rank = 0;
    for (uint32_t i = 0; i < count; i++) rank += score(number, nodes[i]) > score(number, node);
    return rank;
}

static bool lives(const kv_replica *r, uint32_t index) {
    const peer *p = &r->peers[index];
    return index == r->self || (p->heard != 0 && r->now - p->heard <= r->options.silence_ticks);
}

/* Among those that live. */
static uint32_t own_rank(const kv_replica *r, const shard *s) {
    const members *now = members_now(s);
    uint16_t living[KV_MEMBERS_MAX];
    uint32_t count = 0;
    for (uint32_t i = 0; i < now->count; i++) {
        int index = peer_of(r, now->nodes[i]);
        if (index >= 0 && lives(r, (uint32_t)index) && !r->peers[index].abstains) living[count++] = now->nodes[i];
    }
    return kv_owner_rank(living, count, s->number, r->options.node);
}

int policy_next(const kv_replica *r, const shard *s) {
    const members *now = members_now(s);
    int best = -1;
    for (uint32_t i = 0; i < now->count; i++) {
        int index = peer_of(r, now->nodes[i]);
        if (index < 0 || (uint32_t)index == r->self || r->peers[index].abstains) continue;
        bool gone = r->options.policy && !lives(r, (uint32_t)index);
        if (gone || s->own.match[index] < s->own.barrier) continue; /* It would have to give up. */
        if (best < 0 || score(s->number, now->nodes[i]) > score(s->number, r->peers[best].node)) best = index;
    }
    return best;
}

void policy_heard(kv_replica *r, peer *p) {
    bool was_gone = p->heard == 0 || r->now - p->heard > r->options.silence_ticks;
    p->heard = r->now == 0 ? 1 : r->now;
    if (was_gone) p->healthy_since = p->heard;
}

void policy_refused(kv_replica *r, shard *s) { s->wait_until = r->now + RANK_TICKS * (1 + own_rank(r, s)); }

/* --- taking what nobody has --- */

static bool wants(kv_replica *r, shard *s) {
    uint16_t owner = ballot_node(s->promised);
    int index = peer_of(r, owner);
    if (s->own.ballot != 0 || s->taking.ballot != 0 || s->told_out || !is_member(members_now(s), r->options.node)) return false;
    bool owned = index >= 0 && (uint32_t)index != r->self && lives(r, (uint32_t)index);
    if (owned) {
        s->missed_since = 0;
        return false;
    }
    if (s->missed_since == 0) s->missed_since = r->now;
    return r->now >= s->wait_until && r->now - s->missed_since >= (uint64_t)RANK_TICKS * own_rank(r, s);
}

/* It is taken for ours, and a record or the state of it is damaged here: to the others in turn, as one of them may not have heard
 * that it was ours, and then does not believe the offer. */
static void give_up(kv_replica *r, const shard *s) {
    uint32_t heirs[KV_MEMBERS_MAX], count = 0;
    const members *now = members_now(s);
    for (uint32_t i = 0; i < now->count; i++) {
        int index = peer_of(r, now->nodes[i]);
        if (index < 0 || (uint32_t)index == r->self || r->peers[index].abstains) continue;
        if (lives(r, (uint32_t)index)) heirs[count++] = (uint32_t)index;
    }
    if (count != 0 && ballot_node(s->promised) == r->options.node) offer_send(r, s, heirs[r->counts.offers % count]);
}

static void take_ownerless(kv_replica *r) {
    uint16_t numbers[KV_SHARDS_MAX];
    size_t count = 0;
    for (uint32_t i = 0; i < r->shard_count; i++) {
        shard *s = &r->shards[i];
        if (!wants(r, s)) continue;
        s->missed_since = 0;
        if (s->hole != 0 || s->installing.active) give_up(r, s);
        else numbers[count++] = s->number;
    }
    if (count != 0) take_over(r, numbers, count);
}

/* --- giving back --- */

/* The one that should have it, and has been there for some time; -1: nobody but us. */
static int heir(const kv_replica *r, const shard *s) {
    if (s->own.ballot == 0 || r->now - s->own.since < r->options.hold_ticks) return -1;
    if (s->commit < s->own.barrier || s->commit != log_last(&s->log)) return -1;
    const members *now = members_now(s);
    for (uint32_t i = 0; i < r->peer_count; i++) {
        const peer *p = &r->peers[i];
        if (!is_peer(r, i) || !is_member(now, p->node) || kv_owner_rank(now->nodes, now->count, s->number, p->node) != 0) continue;
        bool healthy = lives(r, i) && !p->abstains && r->now - p->healthy_since >= r->options.healthy_ticks;
        return healthy && s->own.match[i] == log_last(&s->log) ? (int)i : -1;
    }
    return -1;
}

void offer_send(kv_replica *r, const shard *s, uint32_t to) {
    wire_out *out = &r->peers[to].out;
    wire_begin(out, WIRE_OFFER);
    wire_put_varint(out, s->number);
    wire_end(out);
    r->counts.offers++;
}

static void offer(kv_replica *r) {
    for (uint32_t i = 0; i < r->shard_count; i++) {
        shard *s = &r->shards[i];
        int to = heir(r, s);
        if (to < 0 || r->now < s->wait_until) continue;
        s->wait_until = r->now + r->options.hold_ticks;
        offer_send(r, s, (uint32_t)to);
    }
}

void offer_receive(kv_replica *r, peer *p, wire_in *in) {
    uint64_t number = wire_take_varint(in);
    if (number >= r->shard_count) in->bad = true;
    if (in->bad || !r->votes) return;
    uint16_t one = (uint16_t)number;
    if (ballot_node(r->shards[number].promised) == p->node) take_over(r, &one, 1);
}

/* --- a tick --- */

static void ping(kv_replica *r) {
    for (uint32_t i = 0; i < r->peer_count; i++) {
        if (!is_peer(r, i)) continue;
        wire_begin(&r->peers[i].out, WIRE_PING);
        wire_end(&r->peers[i].out);
    }
}

void policy_tick(kv_replica *r) {
    if (r->now % r->options.heartbeat_ticks == 0) ping(r);
    if (!r->votes || r->now < r->options.silence_ticks) return; /* Time to hear who is there. */
    take_ownerless(r);
    offer(r);
}
