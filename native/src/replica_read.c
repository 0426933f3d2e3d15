/* replica_read.c -- reads, and the checks that they rest on.
 *
 * The owner answers a read from memory once it knows two things: a majority has confirmed, after the read came, that no
 * higher ballot was promised; and everything up to the position noted as the read came is applied. One CHECK covers all
 * reads that came before it was sent; who comes while one is under way waits for the next. Reads at another replica:
 * replica_position.c. */
#include "replica_internal.h"

/* --- answering --- */

static void answer_value(kv_replica *r, const kv_ask *a, const shard *s, bool patient) {
    kv_caller *c = r->caller;
    kv_reply reply = {.token = a->token, .shard_version = s->applied, .value_size = -1};
    if (s->commit_heard > s->applied) reply.lag = s->commit_heard - s->applied;
    if (mutated(r, KV_MUTATE_EXPIRE_LOCALLY)) r->late.judge_ms = r->store->io->now_ms(r->store->io);
    kv_result size = a->table != NULL ? kv_row_get(c, a->table, a->table_size, a->key, a->key_size)
                                      : kv_get(c, a->key, a->key_size);
    r->late.judge_ms = 0;
    const kv_answer *answer = kv_caller_answer(c);
    if (size == KV_ELACKING && patient) {
        lack_add(r, s, a);
        return;
    }
    if (size >= 0) {
        reply.version = answer->version;
        reply.value_size = size;
        reply.value_at = r->reply_bytes.size;
        wire_put_bytes(&r->reply_bytes, size <= KV_SMALL_SIZE ? answer->small : answer->large, (size_t)size);
        if (r->reply_bytes.failed) {
            replica_fail(r, KV_ENOMEM);
            reply_simple(r, a->token, KV_ANSWER_UNAVAILABLE);
            return;
        }
    } else if (size == KV_EWRONGTYPE) {
        reply.status = KV_ANSWER_FAILED;
        reply.error = KV_EWRONGTYPE;
    } else if (size != kv_ending(KV_ABSENT)) {
        reply.status = size == KV_EKEYSIZE ? KV_ANSWER_REFUSED : KV_ANSWER_UNAVAILABLE;
        reply.error = (int32_t)size;
        if (size == KV_ELACKING) {
            reply.version = answer->version;
            reply.holder = r->late.lacking.origin;
        }
    }
    reply_add(r, &reply);
}

void answer_ask(kv_replica *r, const kv_ask *a, const shard *s, bool patient) {
    if (a->kind == KV_REQUEST_GET) {
        answer_value(r, a, s, patient);
        return;
    }
    kv_reply reply = {.token = a->token, .version = s->applied, .shard_version = s->applied, .value_size = -1};
    reply_add(r, &reply);
}

static void read_end(kv_replica *r, read *one, bool good) {
    const shard *s = &r->shards[one->shard];
    switch (one->kind) {
    case READ_ASK:
        if (!good) reply_simple(r, one->asked.ask.token, KV_ANSWER_RETRY);
        else answer_ask(r, &one->asked.ask, s, true);
        if (good && one->follower) r->counts.follower_reads++;
        ask_free(&one->asked);
        break;
    case READ_POSITION:
        position_tell(r, one, good);
        break;
    case READ_REPLY:
        if (good) {
            one->reply.shard_version = s->applied;
            reply_add(r, &one->reply);
        } else {
            reply_simple(r, one->reply.token, KV_ANSWER_RETRY);
        }
        break;
    }
}

enum read_state { READ_WAITS, READ_GOOD, READ_BAD };

/* What came in pieces is of one moment only from some version on. */
bool shard_is_whole(const kv_replica *r, const shard *s) {
    if (mutated(r, KV_MUTATE_SNAPSHOT_READ_EARLY)) return true;
    return !s->installing.active && s->applied >= s->whole_from;
}

static enum read_state read_look(const kv_replica *r, const read *one) {
    const shard *s = &r->shards[one->shard];
    bool confirmed = one->confirmed || is_majority(&s->voters, one->votes);
    if (one->follower) confirmed = one->told;
    else if (s->own.ballot != one->ballot) return READ_BAD;
    if (one->refused) return READ_BAD;
    return confirmed && s->applied >= one->position && shard_is_whole(r, s) ? READ_GOOD : READ_WAITS;
}

void reads_answer(kv_replica *r) {
    read *all = LIST(read, &r->reads);
    size_t left = 0, count = r->reads.count;
    for (size_t i = 0; i < count; i++) {
        enum read_state state = read_look(r, &all[i]);
        if (state == READ_WAITS) all[left++] = all[i];
        else read_end(r, &all[i], state == READ_GOOD);
    }
    r->reads.count = left;
}

void reads_expire(kv_replica *r) {
    read *all = LIST(read, &r->reads);
    size_t left = 0, count = r->reads.count;
    for (size_t i = 0; i < count; i++) {
        if (r->now - all[i].since > r->options.read_ticks) read_end(r, &all[i], false);
        else all[left++] = all[i];
    }
    r->reads.count = left;
}

/* --- coming in --- */

read *read_add(kv_replica *r, const shard *s, enum read_kind kind) {
    read *one = list_add(&r->reads, sizeof *one);
    if (one == NULL) {
        replica_fail(r, KV_ENOMEM);
        return NULL;
    }
    one->kind = kind;
    one->shard = s->number;
    one->since = r->now;
    return one;
}

/* The rule left out: a read counts what a check that was sent before it came brings. */
static void join_check(kv_replica *r, read *one) {
    const read *all = LIST(read, &r->reads);
    for (size_t i = 0; i + 1 < r->reads.count; i++) {
        if (all[i].nonce == 0 || all[i].shard != one->shard || all[i].ballot != one->ballot || all[i].follower) continue;
        one->nonce = all[i].nonce;
        one->votes = all[i].votes;
    }
}

read *read_add_owned(kv_replica *r, shard *s, enum read_kind kind, uint64_t position) {
    read *one = read_add(r, s, kind);
    if (one == NULL) return NULL;
    one->ballot = s->own.ballot;
    one->position = position;
    one->votes = 1u << r->self;
    one->confirmed = mutated(r, KV_MUTATE_READ_NO_CHECK);
    if (mutated(r, KV_MUTATE_CHECK_JOINED)) join_check(r, one);
    return one;
}

/* Never before the barrier: what an earlier owner committed is applied only then. */
uint64_t read_position(const kv_replica *r, const shard *s) {
    bool early = mutated(r, KV_MUTATE_READ_BEFORE_BARRIER);
    return s->commit > s->own.barrier || early ? s->commit : s->own.barrier;
}

void read_owned(kv_replica *r, shard *s, const kv_ask *a) {
    bool over = shard_expire(r, s, a);
    uint64_t position = over ? log_last(&s->log) : read_position(r, s);
    if (r->failed != KV_OK || s->own.ballot == 0) return;
    if (over && mutated(r, KV_MUTATE_EXPIRE_UNWAITED)) {
        r->late.evaluating = true;
        answer_ask(r, a, s, false);
        r->late.evaluating = false;
        return;
    }
    read *one = read_add_owned(r, s, READ_ASK, position);
    if (one != NULL && ask_copy(a, &one->asked) != KV_OK) replica_fail(r, KV_ENOMEM);
}

void reply_confirmed(kv_replica *r, shard *s, uint64_t position, const kv_reply *reply) {
    read *one = read_add_owned(r, s, READ_REPLY, position);
    if (one != NULL) one->reply = *reply;
}

/* Of some moment, but of one. */
void read_stale(kv_replica *r, shard *s, const kv_ask *a) {
    if (!shard_is_whole(r, s)) reply_simple(r, a->token, KV_ANSWER_UNAVAILABLE);
    else answer_ask(r, a, s, true);
}

/* --- the check --- */

bool reads_wait(const kv_replica *r) {
    const read *all = LIST(read, &r->reads);
    for (size_t i = 0; i < r->reads.count; i++)
        if (all[i].nonce != 0 && !all[i].follower && !is_majority(&r->shards[all[i].shard].voters, all[i].votes)) return true;
    return false;
}

void reads_check(kv_replica *r) {
    read *all = LIST(read, &r->reads);
    uint64_t ballots[KV_SHARDS_MAX] = {0}, nonce = 0;
    size_t count = 0;
    for (size_t i = 0; i < r->reads.count; i++) {
        if (all[i].nonce != 0 || all[i].follower) continue;
        if (nonce == 0) nonce = replica_nonce(r);
        all[i].nonce = nonce;
        if (ballots[all[i].shard] == 0) count++;
        ballots[all[i].shard] = all[i].ballot;
    }
    for (uint32_t i = 0; count != 0 && i < r->peer_count; i++) {
        if (!is_peer(r, i)) continue;
        wire_out *out = &r->peers[i].out;
        wire_begin(out, WIRE_CHECK);
        wire_put_varint(out, nonce);
        wire_put_varint(out, count);
        for (uint32_t number = 0; number < r->shard_count; number++) {
            if (ballots[number] == 0) continue;
            wire_put_varint(out, number);
            wire_put64(out, ballots[number]);
        }
        wire_end(out);
    }
}

/* What was promised may not be durable yet; told too early, it makes an owner stop that need not have. */
void check_receive(kv_replica *r, peer *p, wire_in *in) {
    uint64_t nonce = wire_take_varint(in), count = wire_take_varint(in);
    wire_out *out = &p->out;
    if (!r->votes) return;
    wire_begin(out, WIRE_CHECKED);
    wire_put_varint(out, nonce);
    wire_put_varint(out, count);
    for (uint64_t i = 0; i < count && !in->bad; i++) {
        uint64_t number = wire_take_varint(in);
        wire_take64(in);
        if (number >= r->shard_count) in->bad = true;
        if (in->bad) break;
        wire_put_varint(out, number);
        wire_put64(out, r->shards[number].promised);
    }
    if (in->bad) wire_give_up(out);
    else wire_end(out);
}

void checked_receive(kv_replica *r, peer *p, wire_in *in) {
    uint64_t nonce = wire_take_varint(in), count = wire_take_varint(in);
    uint32_t bit = 1u << (uint32_t)(p - r->peers);
    read *all = LIST(read, &r->reads);
    for (uint64_t i = 0; i < count && !in->bad; i++) {
        uint64_t number = wire_take_varint(in), promised = wire_take64(in);
        if (in->bad) return;
        for (size_t j = 0; j < r->reads.count; j++)
            if (all[j].nonce == nonce && !all[j].follower && all[j].shard == number && promised <= all[j].ballot)
                all[j].votes |= bit;
    }
}
