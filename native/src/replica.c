/* replica.c -- opening and replay, what comes in and what goes out. See kv/replica.h and replica_internal.h. */
#include <stdio.h>
#include <stdlib.h>

#include "replica_internal.h"

enum { SHARDS_DEFAULT = 64, SESSIONS_DEFAULT = 1024, BATCH_DEFAULT = 256, COMMIT_SIZE = 10, INLINE_DEFAULT = 4096 };
enum { SESSIONS_MAX = 1 << 18 }; /* All of them go into one message (replica_snapshot.c). */
static const uint64_t WINDOW_DEFAULT = 16 << 20, KEEP_SIZE_DEFAULT = 64 << 20;

const char *kv_mutation_name(int32_t mutation) {
    static const char *const names[KV_MUTATION_COUNT] = {
        "ack_before_fsync", "promise_not_durable", "round_reused",    "count_older",       "no_prev_check",
        "cut_below_commit", "longest_tail",        "read_before_barrier", "read_no_check", "no_sessions",
        "damaged_votes",    "cut_always",          "commit_unverified", "old_acks",        "self_before_fsync",
        "check_joined",     "fail_unrecorded",     "fail_no_wait",    "evict_blind",       "promise_late_tail",
        "restart_owns",     "follower_local",      "snapshot_drops_tail", "snapshot_read_early",
        "snapshot_no_sessions", "expire_locally",
        "removed_votes", "first_members", "taker_members", "config_swap", "config_two", "config_early",
        "cut_keeps_members", "snapshot_no_members", "outsider_heard",
        "expire_unwaited", "names_unsaid", "wait_unlooked", "wait_early", "page_splits", "floor_ignored", "behind_restarts",
        "hearsay_ignored",
        "meta_as_data", "meta_early", "drop_previous", "snapshot_no_history", "digest_unchecked", "collect_early",
        "state_not_durable", "checkpoint_ahead", "undecided_goes", "state_no_sessions", "state_no_members",
        "hole_acked", "repair_cuts", "promise_untold", "wiped_returns", "rollback_unseen", "mended_goes", "hello_unawaited"};
    return mutation >= 0 && mutation < KV_MUTATION_COUNT ? names[mutation] : NULL;
}

/* --- small things --- */

/* What cannot be written to the log cannot be promised either: it is silent from here on, and whoever drives it asks for
 * kv_replica_failure(), and ends it. */
void replica_fail(kv_replica *r, kv_status status) {
    if (r->failed == KV_OK) r->failed = status;
}

void append_failed(kv_replica *r, kv_status status) {
    if (status == KV_ENOSPC) r->full = true;
    else replica_fail(r, status);
}

uint64_t replica_nonce(kv_replica *r) { return ++r->nonce; }

uint64_t log_end(const kv_replica *r) { return kv_position_order(kv_flow_tail(r->store->flow)); }

kv_status log_try(kv_replica *r, uint8_t kind, uint16_t shard_number, uint64_t ballot, const uint8_t *value, size_t size,
                  kv_position *position) {
    uint32_t used;
    kv_record record = {.kind = kind, .shard = shard_number, .version = kv_flow_sequence(r->store->flow) + 1, .ballot = ballot,
                        .options = (uint16_t)(KV_HAS_SEQUENCE | (ballot != 0 ? KV_HAS_BALLOT : 0)),
                        .value = value, .value_size = (uint32_t)size};
    kv_status status = r->full ? KV_ENOSPC : late_append(r->store, &record, 1, position, &used);
    if (status != KV_OK) append_failed(r, status);
    return status;
}

void log_state(kv_replica *r, uint8_t kind, uint16_t shard_number, uint64_t ballot, const uint8_t *value, size_t size) {
    kv_position position;
    kv_status status = log_try(r, kind, shard_number, ballot, value, size, &position);
    if (status != KV_OK) replica_fail(r, status);
}

after *after_add(kv_replica *r, enum after_kind kind) {
    after *one = list_add(&r->after, sizeof *one);
    if (one == NULL) {
        replica_fail(r, KV_ENOMEM);
        return NULL;
    }
    one->kind = kind;
    one->end = log_end(r);
    return one;
}

kv_status version_next(const kv_replica *r, const version_entry *entry, uint32_t *at, kv_record *out, uint32_t *used) {
    if (*at - entry->position.offset >= entry->size) return KV_EOF;
    const kv_flow *flow = r->store->flow;
    uint64_t size;
    const uint8_t *bytes = kv_flow_at(flow, entry->position.segment, *at, &size);
    if (bytes == NULL) return KV_ECORRUPT;
    kv_status status = kv_record_decode(bytes, size, kv_place(kv_flow_salt(flow), entry->position.segment, *at), out, used);
    if (status == KV_OK) *at += *used;
    return status == KV_EOF ? KV_ECORRUPT : status;
}

/* --- asks that have to wait --- */

static size_t names_size(const kv_ask *ask) {
    size_t size = ask->key_size + ask->table_size + ask->value_size;
    for (size_t i = 0; i < ask->operation_count; i++) {
        const kv_operation *one = &ask->operations[i];
        size += sizeof *one + one->key_size + one->table_size + one->value_size;
    }
    for (size_t i = 0; i < ask->expectation_count; i++) {
        const kv_expectation *one = &ask->expectations[i];
        size += sizeof *one + one->key_size + one->table_size;
    }
    return size;
}

static const uint8_t *bytes_keep(uint8_t **to, const uint8_t *bytes, size_t size) {
    if (bytes == NULL) return NULL;
    uint8_t *kept = *to;
    if (size != 0) memcpy(kept, bytes, size);
    *to += size;
    return kept;
}

kv_status ask_copy(const kv_ask *ask, queued_ask *out) {
    *out = (queued_ask){.ask = *ask};
    out->bytes = malloc(names_size(ask) + 1);
    if (out->bytes == NULL) return KV_ENOMEM;
    kv_ask *copy = &out->ask;
    copy->operations = (kv_operation *)(void *)out->bytes;
    kv_expectation *expectations = (kv_expectation *)(void *)(copy->operations + ask->operation_count);
    uint8_t *to = (uint8_t *)(expectations + ask->expectation_count);
    for (size_t i = 0; i < ask->operation_count; i++) {
        kv_operation *one = &copy->operations[i];
        *one = ask->operations[i];
        one->key = bytes_keep(&to, one->key, one->key_size);
        one->table = bytes_keep(&to, one->table, one->table_size);
        one->value = bytes_keep(&to, one->value, one->value_size);
    }
    copy->expectations = expectations;
    for (size_t i = 0; i < ask->expectation_count; i++) {
        expectations[i] = ask->expectations[i];
        expectations[i].key = bytes_keep(&to, expectations[i].key, expectations[i].key_size);
        expectations[i].table = bytes_keep(&to, expectations[i].table, expectations[i].table_size);
    }
    copy->key = bytes_keep(&to, ask->key, ask->key_size);
    copy->table = bytes_keep(&to, ask->table, ask->table_size);
    copy->value = bytes_keep(&to, ask->value, ask->value_size);
    return KV_OK;
}

void ask_free(queued_ask *asked) {
    free(asked->bytes);
    asked->bytes = NULL;
}

/* --- replay --- */

static kv_status replay_promise(kv_replica *r, const kv_record *record) {
    for (uint32_t at = 0; at + 2 <= record->value_size; at += 2) {
        uint16_t number = kv_load16(record->value + at);
        if (number >= r->shard_count) return KV_ECORRUPT;
        if (record->ballot > r->shards[number].promised) r->shards[number].promised = record->ballot;
    }
    return KV_OK;
}

static kv_status replay_commit(kv_replica *r, const kv_record *record) {
    for (uint32_t at = 0; at + COMMIT_SIZE <= record->value_size; at += COMMIT_SIZE) {
        uint16_t number = kv_load16(record->value + at);
        if (number >= r->shard_count) return KV_ECORRUPT;
        shard *s = &r->shards[number];
        uint64_t commit = kv_load64(record->value + at + 2), last = log_last(&s->log);
        if (commit > last) commit = last;
        if (commit > s->commit) s->commit = commit;
        s->commit_logged = s->commit;
        shard_apply(r, s);
    }
    return r->failed;
}

static kv_status replay_snapshot(kv_replica *r, shard *s, const kv_record *record) {
    if (record->ballot > s->promised) s->promised = record->ballot;
    bool needed = s->installing.lost || s->installing.needed, begins = record->kind == KV_KIND_SNAPSHOT_BEGIN;
    if (!begins && record->value_size != 0) return installing_end(r, s, record->value, record->value_size);
    if (!begins) {
        installing_left(s);
        return KV_OK;
    }
    if (record->value_size == 8) {
        installing_ends(s, kv_load64(record->value));
        return KV_OK;
    }
    installing_clear(s);
    s->installing.active = true;
    s->installing.needed = needed;
    return KV_OK;
}

/* The highest counts. What stands there is this node's, and not of a disk that was found to have gone backwards. */
static kv_status replay_node(kv_replica *r, const kv_record *record) {
    if (record->value_size < 11) return KV_ECORRUPT;
    uint64_t incarnation = kv_load64(record->value);
    if (incarnation > r->incarnation) r->incarnation = incarnation;
    if (kv_load16(record->value + 8) != r->options.node) return KV_EUSAGE;
    return record->value[10] == 0 ? KV_OK : KV_EBACKWARDS;
}

/* What was moved was applied: where it is not yet, as the COMMIT that said so is lost or a hole is in the way, what is shown is of no
 * one moment before it is again. */
static void moved_met(shard *s, uint64_t version) {
    if (!s->installing.active && version > s->applied && version > s->whole_from) s->whole_from = version;
}

kv_status replica_resolve(void *context, kv_store *store, const kv_record *record, kv_position position, uint32_t used,
                          kv_fault *fault) {
    kv_replica *r = context;
    kv_status status = KV_ECORRUPT;
    r->store = store;
    replay_at(r, position);
    if (record->options & KV_HAS_PREV_BALLOT) {
        if (record->shard < r->shard_count) status = version_replay(r, &r->shards[record->shard], record, position, used);
        digest_note(r, record);
    } else if (record->kind < KV_KIND_ENVELOPE && (record->flags & KV_FLAG_MOVED)) {
        if (record->shard < r->shard_count) moved_met(&r->shards[record->shard], record->version);
        if (r->replaying.hidden) return KV_OK;
        status = store_replay_part(store, record, fault);
        return status == KV_OK ? state_show(r, record, position, used, fault) : status;
    } else if (record->kind == KV_KIND_STATE) {
        if (record->shard < r->shard_count) status = state_replay(r, record, position);
    } else if (record->kind == KV_KIND_SNAPSHOT_BEGIN || record->kind == KV_KIND_SNAPSHOT_END) {
        if (record->shard < r->shard_count) status = replay_snapshot(r, &r->shards[record->shard], record);
    } else if (record->kind == KV_KIND_DATA) {
        status = digest_replay(r, record, position, used);
    } else if (record->kind == KV_KIND_PROMISE) {
        status = replay_promise(r, record);
    } else if (record->kind == KV_KIND_COMMIT) {
        status = replay_commit(r, record);
    } else if (record->kind == KV_KIND_NODE) {
        status = replay_node(r, record);
    } else if (record->kind == KV_KIND_REPAIR) {
        if (record->shard < r->shard_count) status = replay_repair(&r->shards[record->shard], record);
    } else if (record->kind == KV_KIND_LEDGER) {
        r->ledger.from = position;
        status = KV_OK;
    }
    return status == KV_ECORRUPT ? fault_corrupt(fault, kv_loc_make(position.segment, position.offset, 0),
                                                 "a record that no replica writes there") : status;
}

/* --- opening --- */

static void options_default(kv_replica_options *o) {
    if (o->shard_count == 0) o->shard_count = SHARDS_DEFAULT;
    if (o->session_max == 0) o->session_max = SESSIONS_DEFAULT;
    if (o->keep_max == 0) o->keep_max = 1 << 16;
    if (o->keep_size_max == 0) o->keep_size_max = KEEP_SIZE_DEFAULT;
    if (o->piece_tables == 0) o->piece_tables = 4;
    if (o->batch_max == 0) o->batch_max = BATCH_DEFAULT;
    if (o->window_size_max == 0) o->window_size_max = WINDOW_DEFAULT;
    if (o->retransmit_ticks == 0) o->retransmit_ticks = 6;
    if (o->takeover_ticks == 0) o->takeover_ticks = 8;
    if (o->read_ticks == 0) o->read_ticks = 10;
    if (o->heartbeat_ticks == 0) o->heartbeat_ticks = 4;
    if (o->silence_ticks == 0) o->silence_ticks = 16;
    if (o->hold_ticks == 0) o->hold_ticks = 12;
    if (o->healthy_ticks == 0) o->healthy_ticks = 40;
    if (o->pending_max == 0) o->pending_max = 1 << 16;
    if (o->wait_max == 0) o->wait_max = 1 << 14;
    if (o->fetch_size_max == 0) o->fetch_size_max = 4 << 20;
    if (o->inline_max == 0) o->inline_max = INLINE_DEFAULT;
    if (o->inline_max > KV_INLINE_SIZE_MAX) o->inline_max = KV_INLINE_SIZE_MAX;
    o->store.sync = KV_SYNC_NONE; /* Whoever drives the replica syncs. */
    o->store.background = 0;
    if (o->store.inline_size_max == 0) o->store.inline_size_max = KV_INLINE_SIZE_MAX;
}

static kv_status members_check(const kv_replica_options *o) {
    bool self = false;
    bool odd = o->member_count == 1 || o->member_count == 3 || o->member_count == 5;
    if (!odd || o->shard_count > KV_SHARDS_MAX || o->session_max > SESSIONS_MAX) return KV_EUSAGE;
    for (uint32_t i = 0; i < o->member_count; i++) {
        self |= o->members[i] == o->node;
        if (o->members[i] == 0) return KV_EUSAGE;
        for (uint32_t j = 0; j < i; j++)
            if (o->members[i] == o->members[j]) return KV_EUSAGE;
    }
    return o->node != 0 && self != (o->joins != 0) ? KV_OK : KV_EUSAGE;
}

static kv_status shards_new(kv_replica *r) {
    r->shard_count = r->options.shard_count;
    r->shards = calloc(r->shard_count, sizeof *r->shards);
    if (r->shards == NULL) return KV_ENOMEM;
    for (uint32_t i = 0; i < r->shard_count; i++) {
        r->shards[i].number = (uint16_t)i;
        kv_status status = sessions_new(r->options.session_max, &r->shards[i].sessions);
        if (status != KV_OK) return status;
    }
    return KV_OK;
}

/* What this life is to be. It begins when others have answered HELLO, and nothing is said before its incarnation is on the
 * disk: and then all that was found in the log is, too. */
static kv_status begin_life(kv_replica *r) {
    r->durable = kv_position_order(kv_flow_durable(r->store->flow));
    members_replayed(r);
    holes_lacking(r);
    for (uint32_t i = 0; i < r->shard_count; i++) {
        shard *s = &r->shards[i];
        note_round(r, s->promised);
        shard_apply(r, s); /* What was committed behind a hole, and the hole was filled later. */
        if (mutated(r, KV_MUTATE_RESTART_OWNS) && s->promised != 0 && ballot_node(s->promised) == r->options.node)
            shard_own(r, s, s->promised);
    }
    if (++r->incarnation < r->options.incarnation_min) r->incarnation = r->options.incarnation_min;
    digest_live(r);
    r->nonce = r->incarnation << 32; /* Numbers of this life, which no message of an earlier one has. */
    if (r->ledger.from.segment == 0) r->ledger.from = kv_flow_tail(r->store->flow);
    return hello_begin(r);
}

/* For who reads the fault: what is to become of the disk. */
static void fault_explain(const kv_replica *r, kv_status status, kv_fault *fault) {
    size_t size = strlen(fault->what);
    if (status == KV_ECORRUPT && r->options.member_count > 1)
        snprintf(fault->what + size, sizeof fault->what - size, "; nothing tells what it was, so this disk counts as wiped");
    else if (status == KV_EBACKWARDS)
        snprintf(fault->what, sizeof fault->what, "this disk was found to be wiped or set back: it may come back only as a learner "
                 "under a new node id");
    else if (status == KV_EUSAGE)
        snprintf(fault->what, sizeof fault->what, "the disk is another node's");
}

static void opening_restart(void *context) { replay_restart(context); }

/* With the checkpoint's part of the options, which are the caller's and are not kept. */
static kv_status open_log(kv_replica *r, kv_io *io, kv_fault *fault) {
    const uint8_t *checkpoint;
    size_t size;
    if (!trim_open(r, &checkpoint, &size)) checkpoint = NULL;
    r->replaying.on = true;
    kv_status status = store_open_late(io, &r->options.store, &r->late, checkpoint, size, fault, &r->store);
    r->options.checkpoint = NULL;
    if (status != KV_OK) r->store = NULL; /* It went as it failed. */
    if (status == KV_OK) status = replay_end(r, fault);
    r->replaying = (replaying){0};
    return status;
}

kv_status replica_replay(kv_io *io, const kv_replica_options *options, kv_fault *fault, kv_replica **out) {
    kv_replica *r = calloc(1, sizeof *r);
    *fault = (kv_fault){0};
    kv_status status = r == NULL ? KV_ENOMEM : KV_OK;
    if (status == KV_OK) {
        r->options = *options;
        options_default(&r->options);
        r->late.resolve = replica_resolve;
        r->late.restart = opening_restart;
        r->late.told = r->options.member_count > 1 ? replica_told : NULL;
        r->late.context = r;
        digest_begin(r);
        status = members_check(&r->options);
    }
    if (status == KV_OK) status = shards_new(r);
    if (status == KV_OK) members_begin(r);
    if (status != KV_OK) {
        io->free(io);
        fault->status = status;
        snprintf(fault->what, sizeof fault->what, "these members make no set, or there is no memory");
        kv_replica_free(r);
        return status;
    }
    r->votes = !options->damaged || mutated(r, KV_MUTATE_DAMAGED_VOTES);
    status = open_log(r, io, fault);
    if (status != KV_OK) fault_explain(r, status, fault);
    if (status == KV_OK) status = kv_caller_new(r->store, &r->caller);
    if (status == KV_OK) status = r->failed;
    if (status != KV_OK) {
        kv_replica_free(r);
        return status;
    }
    *out = r;
    return KV_OK;
}

kv_status kv_replica_open(kv_io *io, const kv_replica_options *options, kv_fault *fault, kv_replica **out) {
    kv_replica *r = NULL;
    kv_status status = replica_replay(io, options, fault, &r);
    if (status == KV_OK) status = begin_life(r);
    if (status == KV_OK) status = r->failed;
    if (status != KV_OK && fault->status == KV_OK) {
        fault->status = status;
        snprintf(fault->what, sizeof fault->what, "the log cannot be written: %s", kv_status_name(status));
    }
    if (status == KV_OK) *out = r;
    else if (r != NULL) kv_replica_free(r);
    return status;
}

static void shard_free(shard *s) {
    log_free(&s->log);
    sessions_free(&s->sessions);
    list_free(&s->own.waiting);
    for (size_t i = 0; i < s->taking.queue.count; i++) ask_free(&LIST(queued_ask, &s->taking.queue)[i]);
    list_free(&s->taking.queue);
    list_free(&s->configs);
    free(s->taking.best.records);
    installing_clear(s);
}

void kv_replica_free(kv_replica *r) {
    if (r == NULL) return;
    trim_free(r);
    for (size_t i = 0; i < r->after.count; i++) free(LIST(after, &r->after)[i].asks);
    for (size_t i = 0; i < r->reads.count; i++) ask_free(&LIST(read, &r->reads)[i].asked);
    for (uint32_t i = 0; i < KV_NODES_MAX; i++) {
        wire_free(&r->peers[i].out);
        list_free(&r->peers[i].sent);
        list_free(&r->peers[i].refusals);
    }
    for (uint32_t i = 0; r->shards != NULL && i < r->shard_count; i++) shard_free(&r->shards[i]);
    free(r->shards);
    list_free(&r->after);
    list_free(&r->own_ends);
    list_free(&r->reads);
    list_free(&r->replies);
    list_free(&r->records);
    list_free(&r->positions);
    waits_free(&r->waits);
    free(r->expire_slots);
    lanes_free(&r->undecided);
    wire_free(&r->reply_bytes);
    ledger_free(&r->ledger);
    if (r->store != NULL) kv_store_free(r->store);
    digest_end(r);
    late_free(&r->late);
    free(r);
}

/* --- in --- */

static bool stopped(const kv_replica *r) { return r->failed != KV_OK; }

kv_status kv_replica_receive(kv_replica *r, uint16_t node, const uint8_t *bytes, size_t size) {
    wire_in from = {.at = bytes, .end = bytes + size}, body;
    enum wire_type type;
    int index = peer_of(r, node);
    if (index < 0 || (uint32_t)index == r->self) return KV_EUSAGE;
    peer *p = &r->peers[index];
    while (!stopped(r) && wire_next(&from, &type, &body)) {
        bool greets = type == WIRE_HELLO || type == WIRE_WELCOME;
        if (!greets && (!r->ready || !p->welcomed)) continue;
        if (!greets) policy_heard(r, p);
        switch (type) {
        case WIRE_HELLO: hello_receive(r, p, &body); break;
        case WIRE_WELCOME: welcome_receive(r, p, &body); break;
        case WIRE_LOST: lost_receive(r, p, &body); break;
        case WIRE_FOUND: found_receive(r, &body); break;
        case WIRE_VOUCH: vouch_take(p, &body); break;
        case WIRE_FLOW: flow_receive(r, p, &body); break;
        case WIRE_ACK: ack_receive(r, p, &body); break;
        case WIRE_PREPARE: prepare_receive(r, p, &body); break;
        case WIRE_PROMISE: promise_receive(r, p, &body); break;
        case WIRE_CHECK: check_receive(r, p, &body); break;
        case WIRE_CHECKED: checked_receive(r, p, &body); break;
        case WIRE_ASK_POSITION: ask_position_receive(r, p, &body); break;
        case WIRE_POSITION: position_receive(r, p, &body); break;
        case WIRE_OFFER: offer_receive(r, p, &body); break;
        case WIRE_PING: ping_receive(r, p, &body); break;
        case WIRE_FETCH: fetch_receive(r, p, &body); break;
        case WIRE_BYTES: bytes_receive(r, p, &body); break;
        case WIRE_ASK_HELD: ask_held_receive(r, p, &body); break;
        case WIRE_HELD: held_receive(r, p, &body); break;
        case WIRE_TYPE_END: break;
        }
        if (body.bad) return KV_EUSAGE;
    }
    return from.bad || (from.at != from.end && !stopped(r)) ? KV_EUSAGE : KV_OK;
}

/* COMMIT(watermarks), lazily: a replica that comes back need not learn again what it knew. */
kv_status log_commits(kv_replica *r) {
    uint8_t value[KV_SHARDS_MAX * COMMIT_SIZE];
    kv_position position;
    size_t size = 0;
    for (uint32_t i = 0; i < r->shard_count; i++) {
        shard *s = &r->shards[i];
        if (s->commit <= s->commit_logged) continue;
        kv_store16(value + size, s->number);
        kv_store64(value + size + 2, s->commit);
        size += COMMIT_SIZE;
    }
    if (size == 0) return KV_OK;
    kv_status status = log_try(r, KV_KIND_COMMIT, 0, 0, value, size, &position);
    for (uint32_t i = 0; status == KV_OK && i < r->shard_count; i++) r->shards[i].commit_logged = r->shards[i].commit;
    return status;
}

/* What is applied is kept for peers for a while; a quarter more, so that it is let go of in pieces. */
static void let_go(kv_replica *r, shard *s) {
    uint64_t keep = r->options.keep_max, pin = snapshot_pin(r, s);
    if (s->applied - s->log.base <= keep + keep / 4 || s->installing.active) return;
    uint64_t base = s->applied - keep;
    if (pin < base) base = pin;
    if (mended_move(r, s, base)) shard_let_go(s, base);
}

void kv_replica_tick(kv_replica *r) {
    r->now++;
    if (stopped(r)) return;
    r->full = false; /* There may be room again. */
    if (r->now % r->options.heartbeat_ticks == 0) hello_tick(r);
    if (!r->ready) return;
    reads_check(r);
    questions_send(r, true);
    for (uint32_t i = 0; i < r->peer_count; i++) {
        peer *p = &r->peers[i];
        if (p->sent.count != 0 && r->now - p->progress > r->options.retransmit_ticks) peer_reconnect(r, p);
    }
    for (uint32_t i = 0; i < r->shard_count; i++) {
        shard *s = &r->shards[i];
        if (s->taking.ballot != 0 && r->now - s->taking.since > r->options.takeover_ticks) taking_clear(r, s, true);
    }
    reads_expire(r);
    waits_expire(r);
    for (uint32_t i = 0; i < r->shard_count; i++) let_go(r, &r->shards[i]);
    if (r->options.policy) policy_tick(r);
    digest_tick(r, r->now % r->options.heartbeat_ticks == 0);
    if (r->now % r->options.heartbeat_ticks != 0) return;
    expire_some(r);
    log_commits(r);
    lost_ask(r);
    vouch_tick(r);
    flow_pack(r, true);
}

/* What it was told to take over meanwhile. */
static void speak(kv_replica *r) {
    uint16_t shards[KV_SHARDS_MAX];
    size_t count = 0;
    r->ready = true;
    for (uint32_t i = 0; i < r->shard_count; i++)
        if (r->wanted[i / 64] >> i % 64 & 1) shards[count++] = (uint16_t)i;
    if (count != 0) take_over(r, shards, count);
}

static void after_run(kv_replica *r, const after *a) {
    if (a->kind == AFTER_READY) speak(r);
    else if (a->kind == AFTER_PREPARE) prepare_send(r, a);
    else promise_send(r, a);
}

static void after_due(kv_replica *r) {
    size_t done = 0;
    while (!stopped(r) && done < r->after.count) {
        after one = LIST(after, &r->after)[done];
        if (one.end > r->durable) break;
        done++;
        after_run(r, &one);
        free(one.asks);
    }
    list_drop_front(&r->after, done);
}

void kv_replica_durable(kv_replica *r, uint64_t upto) {
    if (upto > r->durable) r->durable = upto;
    after_due(r);
    if (!stopped(r)) owned_durable(r);
}

void kv_replica_takeover(kv_replica *r, const uint16_t *shards, size_t count) {
    if (!r->votes || stopped(r)) return;
    if (r->ready) take_over(r, shards, count);
    for (size_t i = 0; !r->ready && i < count; i++)
        if (shards[i] < r->shard_count) r->wanted[shards[i] / 64] |= (uint64_t)1 << shards[i] % 64;
}

static bool is_read(const kv_ask *ask) { return ask->kind == KV_REQUEST_GET || ask->kind == KV_REQUEST_READ; }

/* A table and its rows share the slot of the table's key. */
static const uint8_t *routing_key(const kv_ask *ask, size_t *size) {
    const kv_operation *first = ask->operation_count != 0 ? &ask->operations[0] : NULL;
    if (first != NULL) {
        *size = first->table != NULL ? first->table_size : first->key_size;
        return first->table != NULL ? first->table : first->key;
    }
    *size = ask->table != NULL ? ask->table_size : ask->key_size;
    return ask->table != NULL ? ask->table : ask->key;
}

static bool in_slot(uint16_t slot, const uint8_t *table, size_t table_size, const uint8_t *key, size_t key_size) {
    return kv_slot_of(table != NULL ? table : key, table != NULL ? table_size : key_size) == slot;
}

/* All that a batch writes, and all that it expects, lies in one slot: elsewhere what is here may be old. */
static bool one_slot(const kv_ask *ask, uint16_t slot) {
    bool good = true;
    for (size_t i = 0; i < ask->operation_count; i++) {
        const kv_operation *one = &ask->operations[i];
        good &= in_slot(slot, one->table, one->table_size, one->key, one->key_size);
    }
    for (size_t i = 0; i < ask->expectation_count; i++) {
        const kv_expectation *one = &ask->expectations[i];
        good &= in_slot(slot, one->table, one->table_size, one->key, one->key_size);
    }
    return good;
}

void kv_replica_request(kv_replica *r, const kv_ask *ask) {
    size_t size;
    const uint8_t *key = routing_key(ask, &size);
    bool usable = key != NULL && ask->kind != 0 && ask->kind < KV_REQUEST_KIND_END && ask->attempt != 0;
    uint16_t slot = usable ? kv_slot_of(key, size) : 0;
    if (!usable || (r->shard_count > 1 && !one_slot(ask, slot))) { /* One shard has all slots. */
        reply_add(r, &(kv_reply){.token = ask->token, .status = KV_ANSWER_REFUSED, .error = KV_EUSAGE});
        return;
    }
    shard *s = &r->shards[(uint32_t)slot * r->shard_count / KV_SLOT_COUNT];
    bool owned = s->own.ballot != 0;
    uint16_t owner = ballot_node(s->promised);
    size_t owed = s->own.waiting.count + s->taking.queue.count + r->reads.count + r->lacking.count;
    bool full = owed >= r->options.pending_max;
    kv_status names = is_read(ask) ? names_check(ask) : KV_OK;
    if (names != KV_OK) reply_add(r, &(kv_reply){.token = ask->token, .status = KV_ANSWER_REFUSED, .error = names, .value_size = -1});
    else if (r->ready && !stopped(r) && ask->kind == KV_REQUEST_WAIT) wait_add(r, s, ask);
    else if (!r->ready || stopped(r) || full) reply_simple(r, ask->token, KV_ANSWER_RETRY);
    else if (is_read(ask) && ask->stale) read_stale(r, s, ask);
    else if (is_read(ask) && owned) read_owned(r, s, ask);
    else if (is_read(ask) && ask->follower && owner != 0 && owner != r->options.node) read_followed(r, s, ask);
    else if (owned) shard_write(r, s, ask);
    else if (s->taking.ballot != 0) {
        queued_ask *queued = list_add(&s->taking.queue, sizeof *queued);
        if (queued == NULL || ask_copy(ask, queued) != KV_OK) replica_fail(r, KV_ENOMEM);
    } else {
        reply_simple(r, ask->token, KV_ANSWER_RETRY);
    }
}

enum { AHEAD = 16 };

/* A write looks for its lane and for what stands under its name: two places that nobody has looked at for long. */
static void requests_ahead(const kv_replica *r, const kv_ask *asks, size_t count) {
    const shard *of[AHEAD];
    for (size_t i = 0; i < count; i++) {
        size_t size;
        const uint8_t *key = routing_key(&asks[i], &size);
        of[i] = key == NULL ? NULL : &r->shards[kv_shard_of(r->shard_count, key, size)];
        if (key == NULL) continue;
        sessions_prefetch_bucket(&of[i]->sessions, asks[i].client, asks[i].lane);
        kv_index_prefetch(r->store->index, target_key(r->store, key, size).hash);
    }
    for (size_t i = 0; i < count; i++)
        if (of[i] != NULL) sessions_prefetch(&of[i]->sessions, asks[i].client, asks[i].lane);
}

void kv_replica_requests(kv_replica *r, const kv_ask *asks, size_t count) {
    for (size_t done = 0; done < count; done += AHEAD) {
        size_t some = count - done < AHEAD ? count - done : AHEAD;
        if (some > 1) requests_ahead(r, asks + done, some);
        for (size_t i = 0; i < some; i++) kv_replica_request(r, &asks[done + i]);
    }
}

/* --- out --- */

void reply_add(kv_replica *r, const kv_reply *reply) {
    kv_reply *to = list_add(&r->replies, sizeof *to);
    if (to == NULL) replica_fail(r, KV_ENOMEM);
    else *to = *reply;
}

void reply_simple(kv_replica *r, uint64_t token, int32_t status) {
    reply_add(r, &(kv_reply){.token = token, .status = status, .value_size = -1});
}

void kv_replica_flush(kv_replica *r) {
    if (stopped(r)) return;
    after_due(r); /* What was durable already when it was asked for. */
    reads_answer(r);
    lacks_answer(r);
    waits_answer(r);
    if (r->ready) {
        policy_flush(r);
        digest_pack(r);
        if (r->reads.count != 0 && !reads_wait(r)) reads_check(r); /* Else at the next tick, or when that has its answer. */
        if (r->reads.count != 0) questions_send(r, false);
        positions_pack(r);
        flow_pack(r, false);
        acks_pack(r);
    }
    hello_pack(r);
    ledger_write(r);
}

void kv_replica_answers(kv_replica *r, const kv_reply **replies, size_t *count, const uint8_t **bytes) {
    *replies = LIST(kv_reply, &r->replies);
    *count = r->replies.count;
    *bytes = r->reply_bytes.bytes;
}

const uint8_t *kv_replica_outbox(kv_replica *r, uint16_t to, size_t *size) {
    int index = peer_of(r, to);
    const wire_out *out = index < 0 ? NULL : &r->peers[index].out;
    *size = out == NULL || out->failed ? 0 : out->size;
    return *size == 0 ? NULL : out->bytes;
}

void kv_replica_clear(kv_replica *r) {
    list_clear(&r->replies);
    r->reply_bytes.size = 0;
    hello_taken(r);
    for (uint32_t i = 0; i < r->peer_count; i++) {
        if (r->peers[i].out.failed) replica_fail(r, KV_ENOMEM);
        r->peers[i].out.size = 0;
    }
}

uint64_t kv_replica_tail(const kv_replica *r) { return log_end(r); }
kv_store *kv_replica_store(kv_replica *r) { return r->store; }
kv_caller *kv_replica_caller(kv_replica *r) { return r->caller; }
kv_flow *kv_replica_flow(kv_replica *r) { return r->store->flow; }
const kv_replica_counts *kv_replica_count(const kv_replica *r) { return &r->counts; }

/* --- looking --- */

/* CRC-16/XMODEM of one byte, by halves: what the eight steps of the polynomial x^16 + x^12 + x^5 + 1 come to. */
static uint16_t crc_step(uint8_t byte) {
    uint16_t x = (uint16_t)(byte ^ byte >> 4);
    return (uint16_t)(x << 12 ^ x << 5 ^ x);
}

/* CRC-16/XMODEM of the key, or of what stands between its first { and the } behind it, if that is not empty: where
 * Redis Cluster has the key. */
uint16_t kv_slot_of(const uint8_t *key, size_t size) {
    const uint8_t *open = memchr(key, '{', size);
    if (open != NULL) {
        const uint8_t *tag = open + 1, *close = memchr(tag, '}', size - (size_t)(tag - key));
        if (close != NULL && close != tag) {
            key = tag;
            size = (size_t)(close - tag);
        }
    }
    uint16_t crc = 0;
    for (size_t i = 0; i < size; i++) crc = (uint16_t)(crc << 8 ^ crc_step((uint8_t)(crc >> 8 ^ key[i])));
    return crc % KV_SLOT_COUNT;
}

uint32_t kv_shard_of(uint32_t shard_count, const uint8_t *key, size_t size) {
    return (uint32_t)kv_slot_of(key, size) * shard_count / KV_SLOT_COUNT;
}

void kv_replica_shard(const kv_replica *r, uint32_t number, kv_shard_state *out) {
    const shard *s = &r->shards[number];
    const members *now = members_now(s);
    *out = (kv_shard_state){.promised = s->promised,
                            .commit = s->commit,
                            .applied = s->applied,
                            .last = log_last(&s->log),
                            .last_ballot = log_last_ballot(&s->log),
                            .base = s->log.base,
                            .hole = s->hole,
                            .owned = s->own.ballot != 0,
                            .taking = s->taking.ballot != 0,
                            .whole = !s->installing.active && s->applied >= s->whole_from,
                            .owner = ballot_node(s->promised),
                            .member = is_member(now, r->options.node),
                            .member_count = now->count,
                            .barrier = s->own.ballot != 0 ? s->own.barrier : 0};
    memcpy(out->members, now->nodes, sizeof out->members);
    for (size_t i = 0; i < s->configs.count; i++) out->changing += LIST(config, &s->configs)[i].version > s->commit;
}

kv_status kv_replica_record(kv_replica *r, uint32_t number, uint64_t version, uint32_t nth, kv_record *out) {
    const shard *s = &r->shards[number];
    if (version <= s->log.base || version > log_last(&s->log)) return KV_ABSENT;
    const version_entry *entry = log_at(&s->log, version);
    if (entry->record_count == 0) return KV_ABSENT;
    uint32_t at = entry->position.offset, used;
    kv_status status = KV_OK;
    for (uint32_t i = 0; i <= nth && status == KV_OK; i++) status = version_next(r, entry, &at, out, &used);
    return status;
}

uint64_t kv_replica_digest(kv_replica *r, uint32_t number, uint64_t version) {
    const shard *s = &r->shards[number];
    if (version <= s->log.base || version > log_last(&s->log)) return 0;
    const version_entry *entry = log_at(&s->log, version);
    if (entry->record_count == 0) return 0;
    uint64_t digest = entry->ballot;
    uint32_t at = entry->position.offset, used;
    kv_record record;
    while (version_next(r, entry, &at, &record, &used) == KV_OK) {
        wire_out out = {0};
        wire_put_record(&out, &record);
        digest = kv_xxh64(out.bytes, out.size, digest);
        wire_free(&out);
    }
    return digest == 0 ? 1 : digest;
}
