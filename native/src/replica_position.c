/* replica_position.c -- reads at a replica that is not the owner: it asks the owner how far it must have applied.
 *
 *   follower   ASK_POSITION   for all reads that wait for one, of all shards of that owner: shard by shard the names that
 *                             will be read. While one is under way, who comes waits for its answer, or for the next tick
 *   owner                     looks at the names, and deletes by a record what is over; notes, per shard, a position as for
 *                             a read of its own, that record included; has it confirmed, and applies up to it
 *   owner      POSITION       of all that are ready
 *   follower                  applies up to it, and answers from its own index
 *
 * So a follower never answers what was over as the owner looked, and never asks a clock. The names are those of the ask: of
 * a range only its table. Rows that are over and in a range go when the owner comes by, as for a range at the owner.
 *
 * Bounds: a question has QUESTION_SIZE of names, and the one that does not fit any more; beyond that there is another. An
 * owner has QUESTIONS_MAX reads for each shard on behalf of one peer, and refuses what is more. */
#include "replica_internal.h"

enum { QUESTION_SIZE = 1 << 16, NAMES_SIZE_MAX = 1 << 20, QUESTIONS_MAX = 32 };
enum { NAME_TABLE = 1, NAME_KEY = 2 };

/* --- the follower asks --- */

static size_t ask_names_size(const kv_ask *a) {
    size_t size = a->key_size + a->table_size;
    for (size_t i = 0; i < a->operation_count; i++) size += a->operations[i].key_size + a->operations[i].table_size;
    return size;
}

/* What a read says that it will read is to fit into a message. */
kv_status names_check(const kv_ask *a) {
    bool good = a->operation_count <= KV_READ_NAMES_MAX && ask_names_size(a) <= NAMES_SIZE_MAX;
    return good ? KV_OK : KV_EBATCHSIZE;
}

void read_followed(kv_replica *r, shard *s, const kv_ask *a) {
    if (mutated(r, KV_MUTATE_FOLLOWER_LOCAL)) {
        answer_ask(r, a, s, true);
        return;
    }
    read *one = read_add(r, s, READ_ASK);
    if (one == NULL || ask_copy(a, &one->asked) != KV_OK) {
        replica_fail(r, KV_ENOMEM);
        return;
    }
    one->follower = true;
}

static void name_put(wire_out *out, const uint8_t *table, size_t table_size, const uint8_t *key, size_t key_size) {
    wire_put8(out, (uint8_t)((table != NULL ? NAME_TABLE : 0) | (key != NULL ? NAME_KEY : 0)));
    if (table != NULL) {
        wire_put_varint(out, table_size);
        wire_put_bytes(out, table, table_size);
    }
    if (key != NULL) {
        wire_put_varint(out, key_size);
        wire_put_bytes(out, key, key_size);
    }
}

static void names_put(const kv_replica *r, wire_out *out, const kv_ask *a) {
    bool unsaid = mutated(r, KV_MUTATE_NAMES_UNSAID);
    size_t count = a->operation_count;
    wire_put_varint(out, unsaid ? 0 : count == 0 ? 1 : count);
    if (count == 0 && !unsaid) name_put(out, a->table, a->table_size, a->key, a->key_size);
    for (size_t i = 0; i < count && !unsaid; i++) {
        const kv_operation *one = &a->operations[i];
        name_put(out, one->table, one->table_size, one->key, one->key_size);
    }
}

/* Who is to be asked: the owner, as far as known by now. */
static int owner_of(const kv_replica *r, const read *one) {
    int index = peer_of(r, ballot_node(r->shards[one->shard].promised));
    return index == (int)r->self ? -1 : index;
}

/* Of the reads from *at on that were not asked for, as many as a message takes. */
static void question_put(kv_replica *r, uint32_t index, size_t *at) {
    read *all = LIST(read, &r->reads);
    wire_out *out = &r->peers[index].out;
    uint64_t question = replica_nonce(r);
    r->counts.questions++;
    wire_begin(out, WIRE_ASK_POSITION);
    wire_put_varint(out, question);
    for (; *at < r->reads.count && out->size - out->frame < QUESTION_SIZE; ++*at) {
        read *one = &all[*at];
        if (!one->follower || one->nonce != 0 || owner_of(r, one) != (int)index) continue;
        one->nonce = question;
        one->node = r->peers[index].node;
        wire_put8(out, 1);
        wire_put_varint(out, one->shard);
        names_put(r, out, &one->asked.ask);
    }
    wire_put8(out, 0);
    wire_end(out);
}

static bool is_unasked(const read *one) { return one->follower && one->nonce == 0 && !one->refused; }

void questions_send(kv_replica *r, bool again) {
    read *all = LIST(read, &r->reads);
    size_t first[KV_NODES_MAX]; /* of the reads that want to know something of it */
    uint32_t wanted = 0, under_way = 0;
    for (size_t i = 0; i < r->reads.count; i++) {
        int asked = all[i].follower && all[i].nonce != 0 && !all[i].told ? peer_of(r, all[i].node) : -1;
        if (asked >= 0) under_way |= 1u << asked;
        if (!is_unasked(&all[i])) continue;
        int index = owner_of(r, &all[i]);
        if (index < 0) all[i].told = all[i].refused = true; /* There is nobody to ask any more. */
        if (index < 0 || (wanted >> index & 1)) continue;
        wanted |= 1u << index;
        first[index] = i;
    }
    for (uint32_t index = 0; index < r->peer_count; index++) {
        if ((wanted >> index & 1) == 0 || (!again && (under_way >> index & 1))) continue;
        for (size_t at = first[index]; at < r->reads.count;) {
            question_put(r, index, &at);
            while (at < r->reads.count && (!is_unasked(&all[at]) || owner_of(r, &all[at]) != (int)index)) at++;
        }
    }
}

/* --- the owner looks --- */

static bool name_take(wire_in *in, kv_ask *out) {
    uint8_t what = wire_take8(in);
    *out = (kv_ask){0};
    if (what == 0 || what > (NAME_TABLE | NAME_KEY)) in->bad = true;
    if (what & NAME_TABLE) {
        out->table_size = wire_take_varint(in);
        out->table = wire_take_bytes(in, out->table_size);
    }
    if (what & NAME_KEY) {
        out->key_size = wire_take_varint(in);
        out->key = wire_take_bytes(in, out->key_size);
    }
    return !in->bad;
}

/* A name of another shard would be deleted by a record of this one. */
static bool is_of_shard(const kv_replica *r, const shard *s, const kv_ask *a) {
    const uint8_t *key = a->table != NULL ? a->table : a->key;
    return kv_shard_of(r->shard_count, key, a->table != NULL ? a->table_size : a->key_size) == s->number;
}

/* One shard's part of a question. true: something was over, so its end is part of the position. */
static bool names_look(kv_replica *r, shard *s, wire_in *in) {
    uint64_t count = wire_take_varint(in);
    bool over = false;
    if (count > KV_READ_NAMES_MAX) in->bad = true;
    for (uint64_t i = 0; i < count && !in->bad && r->failed == KV_OK; i++) {
        kv_ask a;
        if (!name_take(in, &a)) break;
        if (!is_of_shard(r, s, &a)) in->bad = true;
        else if (s->own.ballot != 0) over |= shard_expire(r, s, &a);
    }
    return over;
}

static void told_add(kv_replica *r, uint16_t node, uint64_t question, uint16_t number, bool good, uint64_t position) {
    told_position *one = list_add(&r->positions, sizeof *one);
    if (one == NULL) replica_fail(r, KV_ENOMEM);
    else *one = (told_position){.question = question, .position = position, .node = node, .shard = number, .good = good};
}

/* What one question says of a shard, and what came of it. */
enum { ASKED = 1, OVER = 2, BLOCKED = 4 };

/* Where something is over and cannot be ended there is no position at which it is neither there nor gone. */
static void position_find(kv_replica *r, peer *p, shard *s, uint64_t question, uint8_t how) {
    bool waits = (how & OVER) != 0 && !mutated(r, KV_MUTATE_EXPIRE_UNWAITED);
    if (s->own.ballot == 0 || (how & BLOCKED) != 0 || p->asked >= QUESTIONS_MAX * r->shard_count) {
        told_add(r, p->node, question, s->number, false, 0);
        return;
    }
    read *one = read_add_owned(r, s, READ_POSITION, waits ? log_last(&s->log) : read_position(r, s));
    if (one == NULL) return;
    one->node = p->node;
    one->question = question;
    p->asked++;
}

void ask_position_receive(kv_replica *r, peer *p, wire_in *in) {
    uint8_t shards[KV_SHARDS_MAX] = {0}, more = 0;
    uint64_t question = wire_take_varint(in);
    while (!in->bad && r->failed == KV_OK && (more = wire_take8(in)) == 1) {
        uint64_t number = wire_take_varint(in);
        if (number >= r->shard_count) in->bad = true;
        if (in->bad) break;
        r->blocked = false;
        bool over = names_look(r, &r->shards[number], in);
        shards[number] |= (uint8_t)(ASKED | (over ? OVER : 0) | (r->blocked ? BLOCKED : 0));
    }
    if (more > 1) in->bad = true;
    for (uint32_t i = 0; i < r->shard_count && !in->bad && r->failed == KV_OK; i++)
        if (shards[i] != 0) position_find(r, p, &r->shards[i], question, shards[i]);
}

/* Who is told a position waits until it has applied it: the commit goes with it, and not with the next heartbeat. */
static void commit_tell(kv_replica *r, uint16_t number, uint16_t node) {
    shard *s = &r->shards[number];
    int index = peer_of(r, node);
    if (index < 0 || s->own.ballot == 0 || s->own.told[index] >= s->commit) return;
    s->own.asks |= 1u << index;
    stir(r, s);
}

void position_tell(kv_replica *r, const read *one, bool good) {
    if (good) commit_tell(r, one->shard, one->node);
    int index = peer_of(r, one->node);
    if (index >= 0) r->peers[index].asked--;
    told_add(r, one->node, one->question, one->shard, good, one->position);
}

void positions_pack(kv_replica *r) {
    const told_position *all = LIST(told_position, &r->positions);
    for (uint32_t index = 0; index < r->peer_count && r->positions.count != 0; index++) {
        uint16_t node = r->peers[index].node;
        wire_out *out = &r->peers[index].out;
        size_t count = 0;
        for (size_t i = 0; i < r->positions.count; i++) count += all[i].node == node;
        if (count == 0 || !is_peer(r, index)) continue;
        wire_begin(out, WIRE_POSITION);
        wire_put_varint(out, count);
        for (size_t i = 0; i < r->positions.count; i++) {
            if (all[i].node != node) continue;
            wire_put_varint(out, all[i].question);
            wire_put_varint(out, all[i].shard);
            wire_put8(out, all[i].good);
            wire_put_varint(out, all[i].position);
        }
        wire_end(out);
    }
    list_clear(&r->positions);
}

/* --- the follower is told --- */

void position_receive(kv_replica *r, peer *p, wire_in *in) {
    uint64_t count = wire_take_varint(in);
    read *all = LIST(read, &r->reads);
    for (uint64_t item = 0; item < count && !in->bad; item++) {
        uint64_t question = wire_take_varint(in), number = wire_take_varint(in);
        bool good = wire_take8(in) != 0;
        uint64_t position = wire_take_varint(in);
        if (in->bad) return;
        for (size_t i = 0; i < r->reads.count; i++) {
            read *one = &all[i];
            if (!one->follower || one->nonce != question || one->shard != number || one->told || one->node != p->node) continue;
            one->told = true;
            one->refused = !good;
            one->position = position;
        }
    }
}
