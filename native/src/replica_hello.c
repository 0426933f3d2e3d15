/* replica_hello.c -- whether the disk is what it was: nothing is said to a peer before it has compared.
 *
 * A disk that was wiped, or set back to an earlier image of itself, does not know it, and what it has forgotten may have
 * been a vote. Its peers know: whatever vouches for something (ACK, PROMISE, an owner's FLOW) says how far the log was
 * durable then, and they remember the furthest, with the id of the disk and the incarnation. That position only grows, in
 * all lives of a disk; the last (ballot, version) of a shard does not, where a tail was cut.
 *
 * A replica that starts says HELLO: its disk, a number that no other start has, the incarnation it is going to have, and
 * where its log ends. Who remembers more than that answers that it does not fit, and the replica ends, for good. Before the
 * first answer nothing is logged, so that starts do not move the end of the log on; then NODE is, and when that is durable
 * it speaks, to those who have answered. With `await_hello` it waits for all others, but for those that are declared gone:
 * any of them may be the only one that knows.
 *
 * What peers remember is in memory. One that starts learns it from the WELCOMEs of those that are there. */
#include <stdio.h>

#include "replica_internal.h"

enum { NODE_SIZE = 11 };

kv_status node_log(kv_replica *r, bool ended) {
    uint8_t value[NODE_SIZE];
    kv_position position;
    kv_store64(value, r->incarnation);
    kv_store16(value + 8, r->options.node);
    value[10] = ended;
    return log_try(r, KV_KIND_NODE, 0, 0, value, sizeof value, &position);
}

/* As many as are a majority of those that the set began with, whoever they are: who is a member now may stand in records that
 * this disk has not heard of. */
static bool enough_answered(const kv_replica *r) {
    bool all = r->options.await_hello && !mutated(r, KV_MUTATE_HELLO_UNAWAITED);
    uint32_t answered = 1, missing = 0;
    for (uint32_t i = 0; i < r->peer_count; i++) {
        if (!is_peer(r, i)) continue;
        answered += r->peers[i].welcomed;
        missing += !r->peers[i].welcomed && !r->peers[i].gone;
    }
    return all ? missing == 0 : answered >= r->options.member_count / 2 + 1;
}

/* A disk that has no room for the record is asked again after a while. */
static void begin_if_enough(kv_replica *r) {
    if (r->begun || r->failed != KV_OK || !enough_answered(r) || node_log(r, false) != KV_OK) return;
    r->begun = true;
    after_add(r, AFTER_READY);
}

kv_status hello_begin(kv_replica *r) {
    kv_io *io = r->store->io;
    disk_start *self = &r->self_start;
    self->number = r->options.boot;
    self->disk = kv_load64(kv_flow_store_id(r->store->flow)) | 1; /* Never 0. */
    self->incarnation = r->incarnation;
    self->position = log_end(r);
    while (self->number == 0) {
        kv_status status = io->random(io, (uint8_t *)&self->number, sizeof self->number);
        if (status != KV_OK) return status;
    }
    for (uint32_t i = 0; i < r->peer_count; i++)
        if (is_peer(r, i)) hello_peer(r, &r->peers[i]);
    begin_if_enough(r);
    return KV_OK;
}

void hello_peer(kv_replica *r, peer *p) {
    p->hello_due = true;
    for (uint32_t i = 0; i < r->options.gone_count; i++) p->gone |= r->options.gone[i] == p->node;
}

void hello_parted(kv_replica *r) { begin_if_enough(r); }

void kv_replica_declare_gone(kv_replica *r, uint16_t node) {
    int index = peer_of(r, node);
    if (index < 0) return;
    r->peers[index].gone = true;
    begin_if_enough(r);
}

/* --- out --- */

void hello_tick(kv_replica *r) {
    for (uint32_t i = 0; i < r->peer_count; i++) {
        peer *p = &r->peers[i];
        if (is_peer(r, i) && !p->welcomed && !p->gone) p->hello_due = true;
    }
    begin_if_enough(r);
}

static void start_put(wire_out *out, const disk_start *s) {
    wire_put64(out, s->disk);
    wire_put64(out, s->number);
    wire_put_varint(out, s->incarnation);
    wire_put_varint(out, s->position);
}

static void hello_put(const kv_replica *r, peer *p) {
    wire_begin(&p->out, WIRE_HELLO);
    start_put(&p->out, &r->self_start);
    wire_end(&p->out);
    p->hello_out = true;
    p->hello_due = false;
}

/* With it comes what the one that asks should remember of us, once we speak. */
static void welcome_put(const kv_replica *r, peer *p) {
    disk_start now = r->self_start;
    now.position = r->durable;
    wire_begin(&p->out, WIRE_WELCOME);
    wire_put64(&p->out, p->welcome_number);
    wire_put8(&p->out, p->welcome_fits);
    wire_put8(&p->out, r->ready);
    if (r->ready) start_put(&p->out, &now);
    wire_end(&p->out);
    p->welcome_out = true;
}

void hello_pack(kv_replica *r) {
    for (uint32_t i = 0; i < r->peer_count; i++) {
        peer *p = &r->peers[i];
        if (!is_peer(r, i)) continue;
        if (!p->welcomed) { /* What was put together for it, whatever it is, is a word too early. */
            p->out.size = 0;
            if (p->hello_due || p->hello_out) hello_put(r, p);
            p->welcome_out = false;
        }
        if (p->welcome_number != 0 && !p->welcome_out) welcome_put(r, p);
    }
}

void hello_taken(kv_replica *r) {
    for (uint32_t i = 0; i < r->peer_count; i++) {
        peer *p = &r->peers[i];
        if (p->welcome_out) p->welcome_number = 0;
        p->hello_out = p->welcome_out = false;
    }
}

void vouch_put(kv_replica *r, peer *p) {
    wire_put_varint(&p->out, r->incarnation);
    wire_put_varint(&p->out, r->durable);
    p->told = r->durable;
}

/* Everybody, and not only who was acknowledged something: the more know, the better. */
void vouch_tick(kv_replica *r) {
    for (uint32_t i = 0; i < r->peer_count; i++) {
        peer *p = &r->peers[i];
        if (!is_peer(r, i) || !p->welcomed || p->told == r->durable) continue;
        wire_begin(&p->out, WIRE_VOUCH);
        vouch_put(r, p);
        wire_end(&p->out);
    }
}

/* --- in --- */

static disk_start start_take(wire_in *in) {
    disk_start one = {.disk = wire_take64(in)};
    one.number = wire_take64(in);
    one.incarnation = wire_take_varint(in);
    one.position = wire_take_varint(in);
    return one;
}

void vouched(peer *p, uint64_t incarnation, uint64_t position) {
    if (p->memory.disk == 0) return;
    if (incarnation > p->memory.incarnation) p->memory.incarnation = incarnation;
    if (position > p->memory.position) p->memory.position = position;
}

bool vouch_take(peer *p, wire_in *in) {
    uint64_t incarnation = wire_take_varint(in), position = wire_take_varint(in);
    if (in->bad) return false;
    vouched(p, incarnation, position);
    return incarnation >= p->welcomed_life;
}

/* An image from before a start has the same next incarnation as that start had: the number tells them apart. */
static bool fits(const kv_replica *r, const peer *p, const disk_start *said) {
    const disk_start *known = &p->memory;
    if (known->disk == 0 || mutated(r, KV_MUTATE_ROLLBACK_UNSEEN)) return true;
    if (known->disk != said->disk) return mutated(r, KV_MUTATE_WIPED_RETURNS);
    if (p->ended) return false;
    if (known->number == said->number) return true; /* A copy of what was compared before. */
    return said->incarnation > known->incarnation && said->position >= known->position;
}

/* What HELLO says is not vouched for yet: the end that was found may not be on the disk. */
void hello_receive(kv_replica *r, peer *p, wire_in *in) {
    disk_start said = start_take(in);
    if (said.disk == 0 || said.number == 0) in->bad = true;
    if (in->bad) return;
    bool older = p->memory.disk == said.disk && said.incarnation <= p->memory.incarnation;
    p->welcome_number = said.number;
    p->welcome_fits = fits(r, p, &said);
    p->welcome_out = false;
    if (p->welcome_fits && p->memory.disk != said.disk) p->memory = (disk_start){.disk = said.disk};
    if (p->welcome_fits && !older) p->memory.number = said.number;
    if (p->welcome_fits && !older && said.incarnation > p->welcomed_life) p->welcomed_life = said.incarnation;
    if (!p->welcomed) p->hello_due = true; /* It is there. */
}

/* A disk that has no room to note it is found out again at its next start. */
static void end_for_good(kv_replica *r, const peer *p) {
    node_log(r, true);
    if (r->failed != KV_OK) return;
    r->ended_by = p->node;
    replica_fail(r, KV_EBACKWARDS);
}

void welcome_receive(kv_replica *r, peer *p, wire_in *in) {
    uint64_t number = wire_take64(in);
    bool good = wire_take8(in) != 0, speaks = wire_take8(in) != 0;
    disk_start its = {0};
    if (speaks) its = start_take(in);
    if (in->bad || number != r->self_start.number || p->welcomed) return;
    if (!good) {
        end_for_good(r, p);
        return;
    }
    p->welcomed = true;
    p->hello_due = false;
    if (speaks && p->memory.disk == 0) p->memory = its;
    begin_if_enough(r);
}

/* --- looking --- */

kv_status kv_replica_failure(const kv_replica *r, kv_fault *why) {
    *why = (kv_fault){.status = r->failed};
    if (r->failed == KV_OK) return KV_OK;
    if (r->failed == KV_EBACKWARDS)
        snprintf(why->what, sizeof why->what,
                 "replica %u remembers more of this disk than is on it: it was wiped or set back, and may come back only as a "
                 "learner under a new node id", r->ended_by);
    else snprintf(why->what, sizeof why->what, "the replica cannot go on: %s", kv_status_name(r->failed));
    return r->failed;
}

bool kv_replica_remembers(const kv_replica *r, uint16_t node, kv_replica_memory *out) {
    int index = peer_of(r, node);
    if (index < 0 || r->peers[index].memory.disk == 0) return false;
    const disk_start *known = &r->peers[index].memory;
    *out = (kv_replica_memory){.boot = known->number, .incarnation = known->incarnation, .position = known->position};
    return true;
}
