/* replica_policy.c -- who should own a shard, and when to do something about it. Liveness only: whatever is decided here,
 * what is committed stays committed.
 *
 * Every replica ranks the members of a shard by a hash of both (rendezvous hash): the first is its preferred owner, and
 * if that one is gone the second has it, with no other shard moving. A replica that has not been heard of for a while is
 * taken for gone, unless others say that they hear it. Every PING says whom its sender is linked with, which is to hear and
 * be heard, and whom each of those said to be linked with. Of a shard's owner that is linked with a majority of the shard's
 * members it is known that it can commit, so it is let be, heard or not; one that is not cannot, and who is takes the shard
 * over. So with one link cut nothing changes hands, and who could not get a majority does not disturb the one who has it.
 * Links are said of nodes, and held against the members of each shard: during an exchange a node may be able to commit in
 * one and not in another.
 *
 * A shard without such an owner is taken over by the first in rank of those that live, and by each after it only some ticks
 * later, so that two of them seldom want the same shard at once; who was refused waits, longer the lower its rank. An owner
 * that is not the preferred one offers the shard to it once that one has been heard of for some time, and once nothing of
 * its own is on its way. */
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

/* We hear it, and it hears us. */
static bool is_linked(const kv_replica *r, uint32_t index) { return is_peer(r, index) && lives(r, index) && r->peers[index].hears_us; }

/* As bits, ourselves among them. Who is known not to vote helps nobody to a majority. */
static uint32_t own_links(const kv_replica *r) {
    uint32_t bits = 1u << r->self;
    for (uint32_t i = 0; i < r->peer_count; i++) bits |= (uint32_t)(is_linked(r, i) && !r->peers[i].abstains) << i;
    return bits;
}

static bool is_connected(const kv_replica *r, const shard *s, uint32_t links) {
    return is_majority(&s->voters, links) || mutated(r, KV_MUTATE_HEARSAY_IGNORED);
}

/* By its own word, or by that of somebody who is linked with it. */
static bool serves(const kv_replica *r, const shard *s, uint32_t index) {
    if (mutated(r, KV_MUTATE_HEARSAY_IGNORED)) return lives(r, index);
    bool said = lives(r, index) && is_connected(r, s, r->peers[index].links);
    for (uint32_t i = 0; i < r->peer_count && !said; i++)
        said = is_peer(r, i) && lives(r, i) && is_connected(r, s, r->peers[i].relays[index]);
    return said;
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
        bool of_use = lives(r, (uint32_t)index) && is_connected(r, s, r->peers[index].links);
        if ((r->options.policy && !of_use) || s->own.match[index] < s->own.barrier) continue; /* It would have to give up. */
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
    if (!is_connected(r, s, own_links(r))) return false;
    bool owned = index >= 0 && (uint32_t)index != r->self && serves(r, s, (uint32_t)index);
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
        if (s->hole != 0 || !installing_leave(r, s)) give_up(r, s);
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
        return healthy && is_connected(r, s, p->links) && s->own.match[i] == log_last(&s->log) ? (int)i : -1;
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

enum { PING_HEARD = 1, PING_HEARS_US = 2, PING_LINKED = 3 };

static uint8_t flags_of(const kv_replica *r, uint32_t index) {
    bool linked = is_linked(r, index);
    return (uint8_t)(linked ? PING_LINKED : lives(r, index) ? PING_HEARD : 0);
}

/* A hash of what a PING says now. */
static uint64_t view(const kv_replica *r) {
    uint64_t hash = own_links(r);
    for (uint32_t i = 0; i < r->peer_count; i++) {
        const peer *p = &r->peers[i];
        if (is_peer(r, i)) hash = kv_mix64(hash ^ (uint64_t)p->links << 32 ^ (uint64_t)p->node << 8 ^ flags_of(r, i));
    }
    return hash;
}

/* Bits by index, as bits by place in the message: our own first, then those of the peers. */
static uint64_t by_place(const kv_replica *r, uint32_t links) {
    uint64_t bits = links >> r->self & 1;
    uint32_t place = 1;
    for (uint32_t i = 0; i < r->peer_count; i++)
        if (is_peer(r, i)) bits |= (uint64_t)(links >> i & 1) << place++;
    return bits;
}

static void link_put(const kv_replica *r, wire_out *out, uint32_t index, uint8_t flags, uint32_t links) {
    wire_put_varint(out, r->peers[index].node);
    wire_put8(out, flags);
    wire_put_varint(out, by_place(r, links));
}

static void ping_put(const kv_replica *r, wire_out *out) {
    uint64_t count = 1;
    for (uint32_t i = 0; i < r->peer_count; i++) count += is_peer(r, i);
    wire_begin(out, WIRE_PING);
    wire_put_varint(out, count);
    link_put(r, out, r->self, 0, own_links(r));
    for (uint32_t i = 0; i < r->peer_count; i++)
        if (is_peer(r, i)) link_put(r, out, i, flags_of(r, i), is_linked(r, i) ? r->peers[i].links : 0);
    wire_end(out);
}

static void ping(kv_replica *r) {
    r->pinged = view(r);
    for (uint32_t i = 0; i < r->peer_count; i++)
        if (is_peer(r, i)) ping_put(r, &r->peers[i].out);
}

/* One node in a PING. */
typedef struct link_said {
    int index; /* here; -1: it is not known */
    uint8_t flags;
    uint64_t links; /* by place */
} link_said;

static uint32_t by_index(const link_said *all, uint64_t count, uint64_t links) {
    uint32_t bits = 0;
    for (uint64_t i = 0; i < count; i++)
        if ((links >> i & 1) && all[i].index >= 0) bits |= 1u << all[i].index;
    return bits;
}

/* What is heard of others' connections may be all that a takeover waits for. */
static bool has_changed(const peer *p, const uint32_t relays[KV_NODES_MAX], uint32_t links) {
    return p->links != links || memcmp(p->relays, relays, sizeof p->relays) != 0;
}

void ping_receive(kv_replica *r, peer *p, wire_in *in) {
    link_said all[KV_NODES_MAX];
    uint64_t count = wire_take_varint(in);
    if (count == 0 || count > KV_NODES_MAX) in->bad = true;
    for (uint64_t i = 0; i < count && !in->bad; i++) {
        uint64_t node = wire_take_varint(in);
        all[i] = (link_said){.index = node > UINT16_MAX ? -1 : peer_of(r, (uint16_t)node)};
        all[i].flags = wire_take8(in);
        all[i].links = wire_take_varint(in);
        if (i == 0 && node != p->node) in->bad = true;
    }
    if (in->bad) return;
    uint32_t links = p->links, relays[KV_NODES_MAX];
    memcpy(relays, p->relays, sizeof relays);
    p->hears_us = false;
    p->links = by_index(all, count, all[0].links);
    memset(p->relays, 0, sizeof p->relays);
    for (uint64_t i = 1; i < count; i++) {
        if (all[i].index == (int)r->self) p->hears_us |= (all[i].flags & PING_HEARD) != 0;
        else if (all[i].index >= 0 && all[i].flags == PING_LINKED) p->relays[all[i].index] = by_index(all, count, all[i].links);
    }
    r->look |= has_changed(p, relays, links);
}

static void unsay(peer *p) {
    p->heard = 0;
    p->hears_us = false;
    p->links = 0;
    memset(p->relays, 0, sizeof p->relays);
}

void kv_replica_lost(kv_replica *r, uint16_t node) {
    int index = peer_of(r, node);
    if (index < 0 || (uint32_t)index == r->self) return;
    unsay(&r->peers[index]);
    r->look = true;
}

void policy_parted(kv_replica *r, uint32_t index) {
    unsay(&r->peers[index]);
    for (uint32_t i = 0; i < r->peer_count; i++) {
        peer *p = &r->peers[i];
        p->links &= ~(1u << index);
        p->relays[index] = 0;
        for (uint32_t j = 0; j < KV_NODES_MAX; j++) p->relays[j] &= ~(1u << index);
    }
}

/* What has changed is told at once: others may wait for no more than that to take over. */
static void look(kv_replica *r, bool due) {
    r->look = false;
    if (due || view(r) != r->pinged) ping(r);
    if (r->votes && r->now >= r->options.silence_ticks) take_ownerless(r); /* Time to hear who is there. */
}

void policy_tick(kv_replica *r) {
    look(r, r->now % r->options.heartbeat_ticks == 0);
    if (r->votes && r->now >= r->options.silence_ticks) offer(r);
}

void policy_flush(kv_replica *r) {
    if (r->look && r->options.policy) look(r, false);
}
