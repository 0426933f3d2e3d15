/* replica_members.c -- who has a vote in a shard, and how that changes; and whom this replica knows at all.
 *
 * A shard has the members that the set began with until a CONFIG record says otherwise. It is a version record like any
 * other, but that it is in force as soon as it is in the log, committed or not: `shard.members` are those of what is
 * applied, `shard.configs` those of the log behind it, and the last of these counts. So a tail carries the members at its
 * end, and a cut takes them back. Whatever is counted (promises, copies, confirmations of reads) is counted by
 * is_majority() among them.
 *
 * A change is one node more or one less. Two configurations that follow one another have majorities that meet; two that do
 * not may have none. So a change waits until the one before is committed, and until the owner has committed a record of its
 * own ballot: before that, an earlier owner's change, which nobody here has heard of, may still come to be chosen. There are as
 * many members as the set began with, or one less: first one is removed, then another is added.
 *
 * Nodes that are known and no members get the flow and say what they hold, as everybody does, and are counted nowhere. */
#include "replica_internal.h"

/* --- whom it knows --- */

int peer_of(const kv_replica *r, uint16_t node) {
    for (uint32_t i = 0; i < r->peer_count; i++)
        if (r->peers[i].node == node && node != 0) return (int)i;
    return -1;
}

/* The ownerships under way begin with it as with everybody: behind the barrier. */
static kv_status peer_add(kv_replica *r, uint16_t node) {
    uint32_t at = 0;
    while (at < r->peer_count && r->peers[at].node != 0) at++;
    if (at == KV_NODES_MAX) return KV_ELIMIT;
    if (at == r->peer_count) r->peer_count++;
    r->peers[at].node = node;
    hello_peer(r, &r->peers[at]);
    for (uint32_t i = 0; i < r->shard_count; i++) {
        shard *s = &r->shards[i];
        s->own.match[at] = 0;
        s->own.next[at] = s->own.barrier;
        sending_clear(&s->own.sending[at]);
        s->voters = voters_of(r, members_now(s));
        stir(r, s);
    }
    return KV_OK;
}

kv_status kv_replica_meet(kv_replica *r, uint16_t node) {
    if (node == 0 || node == r->options.node) return KV_EUSAGE;
    return peer_of(r, node) >= 0 ? KV_OK : peer_add(r, node);
}

static bool is_member_anywhere(const kv_replica *r, uint16_t node) {
    bool is = false;
    for (uint32_t i = 0; i < r->shard_count; i++) {
        const shard *s = &r->shards[i];
        is |= is_member(&s->members, node);
        for (size_t j = 0; j < s->configs.count; j++) is |= is_member(&LIST(config, &s->configs)[j].members, node);
    }
    return is;
}

/* Its place may be another one's soon: nothing that it said counts then. */
kv_status kv_replica_part(kv_replica *r, uint16_t node) {
    int index = peer_of(r, node);
    if (index < 0 || (uint32_t)index == r->self || is_member_anywhere(r, node)) return KV_EUSAGE;
    uint32_t rest = ~(1u << index);
    peer *p = &r->peers[index];
    wire_free(&p->out);
    list_free(&p->sent);
    list_free(&p->refusals);
    *p = (peer){0};
    policy_parted(r, (uint32_t)index);
    digest_parted(r, (uint32_t)index);
    for (size_t i = 0; i < r->reads.count; i++) {
        read *one = &LIST(read, &r->reads)[i];
        one->votes &= rest;
        if (one->kind == READ_POSITION && one->node == node) one->node = 0; /* Should it come back, it has asked for nothing. */
    }
    for (uint32_t i = 0; i < r->shard_count; i++) {
        r->shards[i].taking.answered &= rest;
        sending_clear(&r->shards[i].own.sending[index]);
    }
    if (r->self_start.disk != 0) hello_parted(r);
    return KV_OK;
}

/* --- members --- */

bool is_member(const members *m, uint16_t node) {
    for (uint32_t i = 0; i < m->count; i++)
        if (m->nodes[i] == node) return true;
    return false;
}

const members *members_now(const shard *s) {
    return s->configs.count == 0 ? &s->members : &LIST(config, &s->configs)[s->configs.count - 1].members;
}

static members first_members(const kv_replica *r) {
    members m = {.count = r->options.member_count};
    memcpy(m.nodes, r->options.members, sizeof m.nodes);
    return m;
}

voters voters_of(const kv_replica *r, const members *m) {
    members first = first_members(r);
    if (mutated(r, KV_MUTATE_FIRST_MEMBERS)) m = &first;
    voters v = {.majority = m->count / 2 + 1};
    for (uint32_t i = 0; i < m->count; i++) {
        int index = peer_of(r, m->nodes[i]);
        if (index >= 0) v.peers |= 1u << index;
    }
    if (mutated(r, KV_MUTATE_REMOVED_VOTES)) v.peers = ~0u;
    return v;
}

/* Who is named as a member is somebody to talk to. One that finds no place is a vote that never comes. A replay names all that
 * ever were. */
static void members_changed(kv_replica *r, shard *s) {
    const members *now = members_now(s);
    for (uint32_t i = 0; r->replayed && i < now->count; i++)
        if (peer_of(r, now->nodes[i]) < 0) peer_add(r, now->nodes[i]);
    s->voters = voters_of(r, now);
    s->told_out = false;
}

void members_first(kv_replica *r, shard *s) {
    s->members = first_members(r);
    list_clear(&s->configs);
    members_changed(r, s);
}

void members_begin(kv_replica *r) {
    for (uint32_t i = 0; i < r->options.member_count; i++) r->peers[r->peer_count++].node = r->options.members[i];
    if (r->options.joins) r->peers[r->peer_count++].node = r->options.node;
    r->self = (uint32_t)peer_of(r, r->options.node);
    for (uint32_t i = 0; i < r->shard_count; i++) members_first(r, &r->shards[i]);
}

void members_replayed(kv_replica *r) {
    r->replayed = true;
    for (uint32_t i = 0; i < r->options.member_count; i++) kv_replica_part(r, r->options.members[i]);
    for (uint32_t i = 0; i < r->shard_count; i++) members_changed(r, &r->shards[i]);
}

bool members_parse(const uint8_t *value, size_t size, members *out) {
    *out = (members){.count = (uint32_t)(size / 2)};
    if (size == 0 || size % 2 != 0 || out->count > KV_MEMBERS_MAX) return false;
    for (uint32_t i = 0; i < out->count; i++) {
        uint16_t node = kv_load16(value + 2 * i);
        members before = {.count = i};
        memcpy(before.nodes, out->nodes, sizeof before.nodes);
        if (node == 0 || is_member(&before, node)) return false;
        out->nodes[i] = node;
    }
    return true;
}

static size_t members_encode(const members *m, uint8_t value[2 * KV_MEMBERS_MAX]) {
    for (uint32_t i = 0; i < m->count; i++) kv_store16(value + 2 * i, m->nodes[i]);
    return 2 * (size_t)m->count;
}

void wire_put_members(wire_out *out, const members *m) {
    uint8_t value[2 * KV_MEMBERS_MAX];
    wire_put8(out, (uint8_t)m->count);
    wire_put_bytes(out, value, members_encode(m, value));
}

void wire_take_members(wire_in *in, members *out) {
    size_t size = 2 * (size_t)wire_take8(in);
    const uint8_t *value = wire_take_bytes(in, size);
    if (value == NULL || !members_parse(value, size, out)) in->bad = true;
}

/* --- in the log --- */

void config_note(kv_replica *r, shard *s, const kv_record *record) {
    config one = {.version = record->version};
    if (record->kind != KV_KIND_CONFIG) return;
    config *to = list_add(&s->configs, sizeof *to);
    if (to == NULL) {
        replica_fail(r, KV_ENOMEM);
    } else if (!members_parse(record->value, record->value_size, &one.members)) {
        replica_fail(r, KV_ECORRUPT);
    } else {
        size_t at = s->configs.count - 1; /* Of what is fetched back later ones may be here. */
        for (config *all = LIST(config, &s->configs); at > 0 && all[at - 1].version > one.version; at--) all[at] = all[at - 1];
        LIST(config, &s->configs)[at] = one;
        members_changed(r, s);
    }
}

void configs_cut(kv_replica *r, shard *s, uint64_t last) {
    size_t count = s->configs.count;
    if (mutated(r, KV_MUTATE_CUT_KEEPS_MEMBERS)) return;
    while (count != 0 && LIST(config, &s->configs)[count - 1].version > last) count--;
    if (count == s->configs.count) return;
    s->configs.count = count;
    members_changed(r, s);
}

static void configs_drop(shard *s, uint64_t upto) {
    size_t done = 0;
    while (done < s->configs.count && LIST(config, &s->configs)[done].version <= upto) done++;
    list_drop_front(&s->configs, done);
}

void config_apply(kv_replica *r, shard *s, const kv_record *record) {
    if (record->kind != KV_KIND_CONFIG) return;
    if (!members_parse(record->value, record->value_size, &s->members)) replica_fail(r, KV_ECORRUPT);
    configs_drop(s, record->version);
}

void members_set(kv_replica *r, shard *s, const members *m, uint64_t from, bool goes_on) {
    s->members = *m;
    if (goes_on) configs_drop(s, from);
    else list_clear(&s->configs);
    members_changed(r, s);
}

/* --- a change --- */

static void node_remove(members *m, uint16_t node) {
    members rest = {0};
    for (uint32_t i = 0; i < m->count; i++)
        if (m->nodes[i] != node) rest.nodes[rest.count++] = m->nodes[i];
    *m = rest;
}

static members wanted(const shard *s, const kv_member_change *c) {
    members m = *members_now(s);
    if (c->remove != 0) node_remove(&m, c->remove);
    if (c->add != 0 && m.count < KV_MEMBERS_MAX) m.nodes[m.count++] = c->add;
    return m;
}

/* It has what the ballot began with, and goes on from there: as a member it will be of use. */
static bool follows_flow(const kv_replica *r, const shard *s, uint16_t node) {
    int index = peer_of(r, node);
    return index >= 0 && s->own.match[index] >= s->own.barrier;
}

bool kv_replica_follows(const kv_replica *r, uint32_t number, uint16_t node) {
    const shard *s = &r->shards[number];
    return s->own.ballot != 0 && follows_flow(r, s, node);
}

/* Whether nothing but time is missing. */
static bool may_change(const kv_replica *r, const shard *s, const kv_member_change *c) {
    const config *last = s->configs.count == 0 ? NULL : &LIST(config, &s->configs)[s->configs.count - 1];
    bool changing = last != NULL && last->version > s->commit && !mutated(r, KV_MUTATE_CONFIG_TWO);
    bool early = s->commit < s->own.barrier && !mutated(r, KV_MUTATE_CONFIG_EARLY);
    return !changing && !early && (c->add == 0 || follows_flow(r, s, c->add));
}

/* It would have to count a majority that it is not part of. */
static void give_away(kv_replica *r, const shard *s) {
    int to = policy_next(r, s);
    if (to >= 0) offer_send(r, s, (uint32_t)to);
}

static bool is_so(const shard *s, const kv_member_change *c) {
    const members *now = members_now(s);
    return (c->add == 0 || is_member(now, c->add)) && (c->remove == 0 || !is_member(now, c->remove));
}

static void change(kv_replica *r, shard *s, const kv_member_change *c) {
    members m = wanted(s, c);
    uint32_t full = r->options.member_count;
    bool so = is_so(s, c), sized = m.count != 0 && (m.count == full || m.count + 1 == full);
    kv_reply reply = {.token = c->token, .status = KV_ANSWER_OK, .value_size = -1};
    if (so || !sized) {
        if (!so) reply.status = KV_ANSWER_FAILED;
        if (!so) reply.error = KV_ECONFLICT;
        reply_confirmed(r, s, log_last(&s->log), &reply); /* When what that rests on is committed. */
        return;
    }
    bool itself = c->remove == r->options.node;
    if (itself) give_away(r, s);
    if (itself || !may_change(r, s, c)) {
        reply_simple(r, c->token, KV_ANSWER_RETRY);
        return;
    }
    uint8_t value[2 * KV_MEMBERS_MAX];
    if (!propose_mark(r, s, KV_KIND_CONFIG, NULL, value, members_encode(&m, value))) {
        answer_full(r, c->token);
        return;
    }
    r->counts.configs++;
    reply.version = log_last(&s->log);
    wait_for(r, s, reply.version, &reply);
}

void kv_replica_member_change(kv_replica *r, const kv_member_change *c) {
    bool both = c->add != 0 && c->remove != 0 && !mutated(r, KV_MUTATE_CONFIG_SWAP);
    if (c->shard >= r->shard_count || both || c->add == c->remove)
        reply_add(r, &(kv_reply){.token = c->token, .status = KV_ANSWER_REFUSED, .error = KV_EUSAGE, .value_size = -1});
    else if (!r->ready || r->failed != KV_OK || r->shards[c->shard].own.ballot == 0)
        reply_simple(r, c->token, KV_ANSWER_RETRY);
    else
        change(r, &r->shards[c->shard], c);
}
