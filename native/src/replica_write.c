/* replica_write.c -- the owner of a shard: evaluate, propose, count, commit; and, at every replica, apply.
 *
 * A write is evaluated on what is committed and, over it, all that is proposed and not committed yet (late.h), so that
 * one does not wait for the one before. Its record goes into the log as the next version; it is answered once it is
 * applied. A condition that fails is a read of what was evaluated: it is answered like one, or, on a later attempt,
 * recorded, because an older copy of the same request may still be on its way. */
#include <stdlib.h>

#include "replica_internal.h"

/* --- ownership --- */

static bool is_data(const kv_record *record) { return record->kind < KV_KIND_ENVELOPE; }

/* The record's names are undecided no more. */
static void decided(kv_replica *r, const kv_record *record, kv_position position) {
    kv_store *store = r->store;
    late_remove(&r->late, target_of(store, record).hash, store_location(record, position));
    if (!makes_head(record)) return;
    target head = target_table(store, record->table_id, KV_LOC_HEAD);
    late_remove(&r->late, head.hash, kv_loc_make(position.segment, position.offset, KV_LOC_HEAD));
}

typedef kv_status (*record_step)(kv_replica *r, shard *s, const kv_record *record, kv_position position, uint32_t used);

static void each_record(kv_replica *r, shard *s, uint64_t version, record_step step) {
    const version_entry *entry = log_at(&s->log, version);
    uint32_t at = entry->position.offset, used;
    kv_record record;
    for (;;) {
        kv_position position = {.segment = entry->position.segment, .offset = at};
        kv_status status = version_next(r, entry, &at, &record, &used);
        if (status == KV_EOF) return;
        if (status == KV_OK) status = step(r, s, &record, position, used);
        if (status == KV_OK) continue;
        replica_fail(r, status);
        return;
    }
}

static kv_status step_decided(kv_replica *r, shard *s, const kv_record *record, kv_position position, uint32_t used) {
    (void)used;
    if (record->options & KV_HAS_REQUEST) lanes_forget(&r->undecided, s->number, &record->request, record->version);
    if (is_data(record)) decided(r, record, position);
    return KV_OK;
}

/* What the lanes were told came with a snapshot, as of its last version. */
static bool tells_lane(const shard *s, const kv_record *record) {
    return (record->options & KV_HAS_REQUEST) != 0 && record->version > s->lanes_until;
}

/* What an owner that takes over finds above its applied position is undecided, too. */
static kv_status step_undecided(kv_replica *r, shard *s, const kv_record *record, kv_position position, uint32_t used) {
    kv_fault fault;
    if (tells_lane(s, record)) {
        kv_status noted = lanes_note(&r->undecided, s->number, &record->request, record->version);
        if (noted != KV_OK) return noted;
    }
    if (!is_data(record)) return KV_OK;
    if (record->options & KV_HAS_EXPIRY) s->own.expiring = record->version;
    r->late.evaluating = true;
    kv_status status = store_show(r->store, record, position, used, &fault);
    r->late.evaluating = false;
    return status;
}

void shard_own(kv_replica *r, shard *s, uint64_t ballot) {
    ownership *own = &s->own;
    own->ballot = ballot;
    own->barrier = log_last(&s->log) + 1;
    own->since = r->now;
    own->expiring = 0;
    own->asks = 0;
    for (uint32_t i = 0; i < r->peer_count; i++) {
        own->match[i] = 0;
        own->next[i] = own->barrier;
        own->told[i] = 0;
        sending_clear(&own->sending[i]);
    }
    stir(r, s);
    for (uint64_t version = s->applied + 1; version < own->barrier; version++) each_record(r, s, version, step_undecided);
}

void shard_step_down(kv_replica *r, shard *s) {
    ownership *own = &s->own;
    if (own->ballot != 0) {
        r->counts.step_downs++;
        for (uint64_t version = s->applied + 1; version <= log_last(&s->log); version++) each_record(r, s, version, step_decided);
        for (size_t i = 0; i < own->waiting.count; i++)
            reply_simple(r, LIST(waiting, &own->waiting)[i].reply.token, KV_ANSWER_RETRY);
        list_clear(&own->waiting);
        own->ballot = 0;
    }
    taking_clear(r, s, true);
}

bool ballot_heed(kv_replica *r, shard *s, uint64_t ballot) {
    note_round(r, ballot);
    if (ballot <= s->promised) return ballot == s->promised;
    s->told_out = false;
    shard_step_down(r, s);
    s->promised = ballot; /* No PROMISE: the records of this ballot restore it. */
    return true;
}

/* --- proposing --- */

void wait_for(kv_replica *r, shard *s, uint64_t version, const kv_reply *reply) {
    waiting *w = list_add(&s->own.waiting, sizeof *w);
    if (w == NULL) {
        replica_fail(r, KV_ENOMEM);
        return;
    }
    w->version = version;
    w->reply = *reply;
}

/* The record at `position` is in the log, as the next version. */
static void proposed(kv_replica *r, shard *s, kv_position position, uint32_t size, uint32_t record_count) {
    version_entry entry = {.ballot = s->own.ballot, .position = position, .size = size, .record_count = record_count & INT32_MAX,
                           .meta = r->late.metas};
    own_end *end = list_add(&r->own_ends, sizeof *end);
    if (end == NULL || log_push(&s->log, &entry) != KV_OK) {
        replica_fail(r, KV_ENOMEM);
        return;
    }
    stir(r, s);
    if (r->late.expiring) s->own.expiring = log_last(&s->log);
    r->late.expiring = false;
    *end = (own_end){.end = log_end(r), .ballot = s->own.ballot, .version = log_last(&s->log), .shard = s->number};
    if (!mutated(r, KV_MUTATE_SELF_BEFORE_FSYNC)) return;
    s->own.match[r->self] = end->version;
    shard_advance(r, s);
}

bool propose_mark(kv_replica *r, shard *s, uint8_t kind, const kv_request *request, const uint8_t *value, size_t value_size) {
    kv_position position;
    uint32_t size;
    kv_record record = {.kind = kind, .shard = s->number, .version = log_last(&s->log) + 1, .ballot = s->own.ballot,
                        .prev_ballot = log_last_ballot(&s->log),
                        .options = LATE_OPTIONS, .value = value, .value_size = (uint32_t)value_size};
    if (request != NULL) {
        record.request = *request;
        record.options |= KV_HAS_REQUEST;
    }
    r->late.metas = false;
    kv_status status = r->full ? KV_ENOSPC : late_append(r->store, &record, 1, &position, &size);
    if (status != KV_OK) {
        append_failed(r, status);
        return false;
    }
    config_note(r, s, &record);
    proposed(r, s, position, size, 1);
    return true;
}

bool shard_barrier(kv_replica *r, shard *s) { return propose_mark(r, s, KV_KIND_BARRIER, NULL, NULL, 0); }

/* --- evaluating --- */

static kv_result evaluate_row(kv_caller *c, const kv_ask *a) {
    switch (a->kind) {
    case KV_REQUEST_PUT:
        return kv_row_put(c, a->table, a->table_size, a->key, a->key_size, a->value, a->value_size, a->ttl_ms, 0);
    case KV_REQUEST_DELETE: return kv_row_delete(c, a->table, a->table_size, a->key, a->key_size, a->argument, 0);
    case KV_REQUEST_CAS:
        return kv_row_cas(c, a->table, a->table_size, a->key, a->key_size, a->value, a->value_size, (uint64_t)a->argument,
                          a->ttl_ms, 0);
    case KV_REQUEST_INCR: return kv_row_incr(c, a->table, a->table_size, a->key, a->key_size, a->argument, a->ttl_ms, 0);
    case KV_REQUEST_ROW_APPEND: return kv_row_append(c, a->table, a->table_size, a->value, a->value_size, a->ttl_ms, 0);
    default: return KV_EUSAGE;
    }
}

static kv_result evaluate_key(kv_caller *c, const kv_ask *a) {
    switch (a->kind) {
    case KV_REQUEST_PUT: return kv_put(c, a->key, a->key_size, a->value, a->value_size, a->ttl_ms, 0);
    case KV_REQUEST_DELETE: return kv_delete(c, a->key, a->key_size, a->argument, 0);
    case KV_REQUEST_CAS:
        return kv_cas(c, a->key, a->key_size, a->value, a->value_size, (uint64_t)a->argument, a->ttl_ms, 0);
    case KV_REQUEST_INCR: return kv_incr(c, a->key, a->key_size, a->argument, a->ttl_ms, 0);
    case KV_REQUEST_APPEND: return kv_append(c, a->key, a->key_size, a->value, a->value_size, a->ttl_ms, 0);
    case KV_REQUEST_EXPIRE: return kv_expire(c, a->key, a->key_size, a->ttl_ms, 0);
    case KV_REQUEST_DROP: return kv_table_drop(c, a->key, a->key_size, 0);
    case KV_REQUEST_TRIM: return kv_table_trim(c, a->key, a->key_size, (uint64_t)a->argument, 0);
    default: return KV_EUSAGE;
    }
}

static kv_result evaluate_batch(kv_caller *c, const kv_ask *a) {
    return kv_batch(c, a->operations, a->operation_count, a->expectations, a->expectation_count, 0);
}

static enum late_tells what_is_told(uint8_t kind) {
    switch (kind) {
    case KV_REQUEST_INCR: return LATE_NUMBER;
    case KV_REQUEST_APPEND: return LATE_SIZE;
    case KV_REQUEST_ROW_APPEND: return LATE_ROW;
    default: return LATE_NOTHING;
    }
}

/* What is appended next, if anything, is the next version of this shard. */
static void next_is(kv_late *late, const shard *s, const kv_request *request, enum late_tells tells) {
    late->shard = s->number;
    late->version = log_last(&s->log) + 1;
    late->ballot = s->own.ballot;
    late->prev_ballot = log_last_ballot(&s->log);
    late->request = request;
    late->tells = tells;
    late->record_count = 0;
    late->expiring = false;
    late->metas = false;
}

/* The result as an ending would be; what was appended, if anything, is in r->late. */
static kv_result evaluate(kv_replica *r, shard *s, const kv_ask *a, const kv_request *request) {
    next_is(&r->late, s, request, what_is_told(a->kind));
    r->late.data = a->durability == KV_DURABILITY_DATA;
    r->late.evaluating = true;
    kv_result result = a->kind == KV_REQUEST_BATCH ? evaluate_batch(r->caller, a)
                     : a->kind == KV_REQUEST_FORGET ? evaluate_forget(r, a)
                     : a->table != NULL            ? evaluate_row(r->caller, a)
                                                   : evaluate_key(r->caller, a);
    r->late.evaluating = false;
    return result;
}

/* What depends on the state, and would be otherwise in another. */
static bool is_condition(const kv_ask *a, kv_result result) {
    if (a->kind == KV_REQUEST_FORGET && result == KV_ELACKING) return true; /* Nothing is kept. */
    return result >= 0 || result == kv_ending(KV_ABSENT) || result == KV_ECONFLICT || result == KV_ENOTINT ||
           result == KV_EOVERFLOW || result == KV_EWRONGTYPE;
}

void answer_full(kv_replica *r, uint64_t token) {
    r->full = true;
    r->counts.full++;
    reply_add(r, &(kv_reply){.token = token, .status = KV_ANSWER_UNAVAILABLE, .error = KV_ENOSPC, .value_size = -1});
}

static void will_tell(kv_replica *r, const shard *s, const kv_request *request, uint64_t version) {
    if (lanes_note(&r->undecided, s->number, request, version) != KV_OK) replica_fail(r, KV_ENOMEM);
}

static void answer_failed(kv_replica *r, shard *s, const kv_ask *a, kv_result result, kv_request *request) {
    uint64_t last = log_last(&s->log), current = kv_caller_answer(r->caller)->version;
    int32_t error = result >= 0 || result == kv_ending(KV_ABSENT) ? KV_ABSENT : (int32_t)result;
    kv_reply reply = {.token = a->token, .status = KV_ANSWER_FAILED, .error = error, .value_size = -1};
    if (error == KV_ECONFLICT) reply.version = current;
    if (mutated(r, KV_MUTATE_FAIL_NO_WAIT)) {
        reply_add(r, &reply);
        return;
    }
    if (a->attempt == 1 || a->client == 0 || mutated(r, KV_MUTATE_FAIL_UNRECORDED)) {
        reply_confirmed(r, s, last, &reply);
        return;
    }
    request->outcome = (int16_t)error;
    request->result = (int64_t)reply.version;
    if (!propose_mark(r, s, KV_KIND_SESSION, request, NULL, 0)) {
        answer_full(r, a->token);
        return;
    }
    r->counts.failures_recorded++;
    will_tell(r, s, request, last + 1);
    wait_for(r, s, last + 1, &reply);
}

/* What no frame holds, or a batch with too many records: a row may bring its table. */
static kv_status ask_fits(const kv_ask *a) {
    uint64_t size_max = LATE_CONTENT_SIZE_MAX, size = a->value_size;
    if (2 * a->operation_count > BATCH_RECORDS_MAX) return KV_EBATCHSIZE;
    for (size_t i = 0; i < a->operation_count; i++) {
        const kv_operation *one = &a->operations[i];
        if (one->value_size > size_max) return KV_EVALUESIZE;
        size += one->key_size + one->table_size + one->value_size;
    }
    if (a->operation_count != 0) return size <= WIRE_FRAME_SIZE_MAX / 2 ? KV_OK : KV_EBATCHSIZE;
    return size <= size_max ? KV_OK : KV_EVALUESIZE;
}

/* It needs a value whose bytes are elsewhere. They are sent for. */
static void answer_lacking(kv_replica *r, const kv_ask *a) {
    content_want(r, &r->late.lacking);
    reply_add(r, &(kv_reply){.token = a->token, .status = KV_ANSWER_UNAVAILABLE, .error = KV_ELACKING, .value_size = -1,
                             .holder = r->late.lacking.origin});
}

static void shard_evaluate(kv_replica *r, shard *s, const kv_ask *a) {
    kv_status fits = ask_fits(a);
    if (fits != KV_OK) {
        reply_add(r, &(kv_reply){.token = a->token, .status = KV_ANSWER_REFUSED, .error = fits});
        return;
    }
    kv_request request = {.client = a->client, .number = a->number, .seen = a->seen, .lane = a->lane, .attempt = a->attempt};
    kv_result result = evaluate(r, s, a, a->client != 0 ? &request : NULL);
    if (r->late.record_count == 0) {
        if (is_condition(a, result)) answer_failed(r, s, a, result, &request);
        else if (result == KV_ELACKING) answer_lacking(r, a);
        else if (result == kv_ending(KV_EWAIT)) reply_simple(r, a->token, KV_ANSWER_RETRY);
        else if (result == KV_ENOSPC) answer_full(r, a->token);
        else if (result == KV_ENOMEM || result == KV_ECORRUPT)
            reply_add(r, &(kv_reply){.token = a->token, .status = KV_ANSWER_UNAVAILABLE, .error = (int32_t)result, .value_size = -1});
        else if (result == KV_EPOISONED || result == KV_EDISK) reply_simple(r, a->token, KV_ANSWER_RETRY);
        else reply_add(r, &(kv_reply){.token = a->token, .status = KV_ANSWER_REFUSED, .error = (int32_t)result});
        return;
    }
    if (result < 0) { /* In the log and not among the undecided: no memory. */
        replica_fail(r, KV_ENOMEM);
        return;
    }
    request.result = r->late.result;
    kv_reply reply = {.token = a->token, .version = r->late.version, .number = request.result, .value_size = -1};
    if (a->client != 0) will_tell(r, s, &request, r->late.version);
    proposed(r, s, r->late.position, r->late.size, r->late.record_count);
    wait_for(r, s, reply.version, &reply);
}

/* --- expiry: only the owner's, and only by a record --- */

/* What readers see of a name has an expiry, or may come to have one by what is undecided: it may be over, or be over soon,
 * while the newest record of the name, which is undecided, is not. */
static bool may_show_over(kv_replica *r, const shard *s, const target *t) {
    found f;
    if (s->own.expiring > s->applied) return true;
    kv_status status = store_find(r->store, t, &f, &kv_caller_answer(r->caller)->fault);
    return status == KV_OK && (f.record.options & KV_HAS_EXPIRY) != 0;
}

/* true: the last record of the name is undecided, and something before it is, or may be, over. Who reads waits for that:
 * else it would be shown what was over when the owner looked. */
static bool expire_one(kv_replica *r, shard *s, const target *t) {
    kv_late *late = &r->late;
    kv_fault *fault = &kv_caller_answer(r->caller)->fault;
    found f;
    bool deleted;
    late->evaluating = true;
    kv_status status = store_find(r->store, t, &f, fault);
    int64_t now = r->store->io->now_ms(r->store->io);
    bool due = status == KV_OK && f.record.expires_ms != 0 && (int64_t)f.record.expires_ms <= now && !found_tombstone(&f);
    if (due && !r->full) {
        next_is(late, s, NULL, LATE_NOTHING);
        late->judge_ms = now;
        status = store_expire(r->caller, t, &deleted);
        late->judge_ms = 0;
    }
    late->evaluating = false;
    bool heard = status == KV_ECORRUPT; /* by whoever asked, as of whatever else stands there */
    if (status != KV_OK && status != KV_ABSENT && !heard) append_failed(r, status);
    bool blocked = due && r->full;
    r->blocked |= blocked;
    if (status != KV_OK || blocked) return false;
    if (!due) return f.record.version > s->applied && may_show_over(r, s, t);
    if (late->record_count == 0) return false;
    r->counts.expired++;
    proposed(r, s, late->position, late->size, late->record_count);
    return true;
}

/* The table first: with it go its rows. */
static bool expire_name(kv_replica *r, shard *s, const uint8_t *table, size_t table_size, const uint8_t *key, size_t size) {
    table_state state;
    if (table == NULL) {
        if (key_check(size) != KV_OK) return false;
        target t = target_key(r->store, key, size);
        return expire_one(r, s, &t);
    }
    if (key_check(table_size) != KV_OK) return false;
    target t = target_key(r->store, table, table_size);
    bool over = expire_one(r, s, &t);
    if (key == NULL || r->failed != KV_OK) return over;
    r->late.evaluating = true;
    kv_status status = store_find_table(r->caller, table, table_size, &state);
    r->late.evaluating = false;
    if (status != KV_OK || state.id == 0) return over;
    t = target_row(r->store, state.id, key, size);
    return expire_one(r, s, &t) || over;
}

bool shard_expire(kv_replica *r, shard *s, const kv_ask *a) {
    bool over = false;
    for (size_t i = 0; i < a->operation_count && r->failed == KV_OK; i++) {
        const kv_operation *one = &a->operations[i];
        over |= expire_name(r, s, one->table, one->table_size, one->key, one->key_size);
    }
    if (a->operation_count == 0) over = expire_name(r, s, a->table, a->table_size, a->key, a->key_size);
    return over;
}

/* What is due among some slots of the index, of shards that are owned here: for what nobody asks for. */
static void expire_slots(kv_replica *r, const kv_index_slot *slots, size_t count) {
    int64_t now = r->store->io->now_ms(r->store->io);
    for (size_t i = 0; i < count && r->failed == KV_OK; i++) {
        unsigned flags = kv_loc_flags(slots[i].location);
        found f = {.location = slots[i].location};
        if (!(flags & KV_LOC_EXPIRY) || (flags & (KV_LOC_TOMBSTONE | KV_LOC_HEAD | KV_LOC_FLOOR))) continue;
        if (store_peek(r->store, &f) != KV_OK || !found_intact(&f)) continue; /* Whoever reads it hears of that. */
        if (f.record.shard >= r->shard_count || (int64_t)f.record.expires_ms > now) continue;
        shard *s = &r->shards[f.record.shard];
        target t = target_of(r->store, &f.record);
        if (s->own.ballot != 0 && s->applied >= s->own.barrier) expire_one(r, s, &t);
    }
}

void expire_some(kv_replica *r) {
    size_t count;
    bool owns = false;
    for (uint32_t i = 0; i < r->shard_count && !owns; i++) owns = r->shards[i].own.ballot != 0;
    if (!owns) return;
    kv_status status = kv_index_walk(r->store->index, &r->expire_hash, &r->expire_slots, &r->expire_capacity, &count);
    if (status == KV_OK) expire_slots(r, r->expire_slots, count);
    else replica_fail(r, status);
}

/* --- a write, by what the lane was told before --- */

static void answer_again(kv_replica *r, shard *s, const kv_ask *a, const session *known) {
    bool failed = known->outcome != 0;
    kv_reply reply = {.token = a->token,
                      .status = failed ? KV_ANSWER_FAILED : KV_ANSWER_OK,
                      .error = known->outcome,
                      .version = failed ? (uint64_t)known->result : known->version,
                      .number = failed ? 0 : known->result,
                      .value_size = -1,
                      .shard_version = s->applied};
    r->counts.deduplicated++;
    if (known->version <= s->applied) reply_add(r, &reply);
    else wait_for(r, s, known->version, &reply);
}

/* Nothing is known of the lane, and something was forgotten since the request was made: it may have been executed. */
static void answer_forgotten(kv_replica *r, shard *s, const kv_ask *a) {
    uint64_t last = log_last(&s->log);
    r->counts.evicted++;
    if (a->attempt > 1) {
        reply_simple(r, a->token, KV_ANSWER_UNKNOWN);
        return;
    }
    kv_reply reply = {.token = a->token, .status = KV_ANSWER_SEEN, .version = last, .value_size = -1};
    reply_confirmed(r, s, last, &reply);
}

/* What the lane was told last, or will be once that is committed. */
static const session *lane_known(const kv_replica *r, const shard *s, const kv_ask *a) {
    const session *undecided = lanes_find(&r->undecided, s->number, a->client, a->lane);
    return undecided != NULL ? undecided : sessions_find(&s->sessions, a->client, a->lane);
}

void shard_write(kv_replica *r, shard *s, const kv_ask *a) {
    bool remembered = a->client != 0 && !mutated(r, KV_MUTATE_NO_SESSIONS);
    const session *known = remembered ? lane_known(r, s, a) : NULL;
    bool forgotten = remembered && known == NULL && a->seen < s->sessions.forgotten && !mutated(r, KV_MUTATE_EVICT_BLIND);
    if (known != NULL && known->number == a->number) {
        answer_again(r, s, a, known);
    } else if (known != NULL && known->number > a->number) {
        reply_simple(r, a->token, KV_ANSWER_UNKNOWN);
    } else if (forgotten) {
        answer_forgotten(r, s, a);
    } else {
        if (!r->full) shard_expire(r, s, a);
        if (r->full) answer_full(r, a->token);
        else if (r->failed == KV_OK && s->own.ballot != 0) shard_evaluate(r, s, a);
    }
}

/* --- committing and applying --- */

/* Who holds a version, as bits. One that says that its disk lost something holds nothing for sure. */
static uint32_t holders(const kv_replica *r, const shard *s, uint64_t version) {
    uint32_t bits = 0;
    for (uint32_t i = 0; i < r->peer_count; i++) bits |= (uint32_t)(s->own.match[i] >= version && !r->peers[i].abstains) << i;
    return bits;
}

/* The version that a majority of the members holds at least: the highest of those that some of them hold. */
static uint64_t majority_holds(const kv_replica *r, const shard *s) {
    uint64_t best = s->commit;
    for (uint32_t i = 0; i < r->peer_count; i++) {
        uint64_t version = s->own.match[i];
        if (version > best && is_majority(&s->voters, holders(r, s, version))) best = version;
    }
    return best;
}

/* Only records of the present ballot are counted; those before commit with them. */
void shard_advance(kv_replica *r, shard *s) {
    uint64_t version = majority_holds(r, s), last = log_last(&s->log), ballot;
    if (version > last) version = last;
    if (!r->votes || version <= s->commit || !log_ballot_at(&s->log, version, &ballot)) return;
    if (ballot != s->own.ballot && !mutated(r, KV_MUTATE_COUNT_OLDER)) return;
    s->commit = version;
    shard_apply(r, s);
}

void owned_durable(kv_replica *r) {
    size_t done = 0;
    for (; done < r->own_ends.count; done++) {
        own_end one = LIST(own_end, &r->own_ends)[done];
        if (one.end > r->durable) break;
        shard *s = &r->shards[one.shard];
        if (s->own.ballot == one.ballot && one.version > s->own.match[r->self]) s->own.match[r->self] = one.version;
    }
    for (size_t i = 0; i < done; i++) {
        shard *s = &r->shards[LIST(own_end, &r->own_ends)[i].shard];
        if (s->own.ballot != 0) shard_advance(r, s);
    }
    list_drop_front(&r->own_ends, done);
}

static kv_status step_apply(kv_replica *r, shard *s, const kv_record *record, kv_position position, uint32_t used) {
    kv_fault fault;
    if (tells_lane(s, record)) {
        sessions_note(&s->sessions, &record->request, record->version);
        lanes_forget(&r->undecided, s->number, &record->request, record->version);
    }
    config_apply(r, s, record);
    if (!is_data(record)) return KV_OK;
    if (r->replaying.hidden) return KV_OK;
    /* Behind a snapshot there may be newer things than this record: they came with it. So there may be where a part of the
     * log is gone: what was live in it was moved. */
    kv_status status = r->replaying.on ? store_replay_part(r->store, record, &fault) : KV_OK;
    if (status != KV_OK) return status;
    bool newest = record->version > s->whole_from && !s->gap;
    if (newest && record->kind == KV_KIND_TABLE_NEW) table_back(r, record->table_id); /* Rows came before. */
    status = newest ? store_show(r->store, record, position, used, &fault) : state_show(r, record, position, used, &fault);
    if (status == KV_OK && s->own.ballot != 0) decided(r, record, position);
    if (r->waits.count != 0) waits_touch(r, record);
    return status;
}

enum { AHEAD = 16 };

/* What the next records will touch, waited for side by side and not one after the other. */
static void apply_ahead(const kv_replica *r, const shard *s, uint64_t limit) {
    kv_request asked[AHEAD];
    size_t count = 0;
    if (limit > s->applied + AHEAD) limit = s->applied + AHEAD;
    for (uint64_t version = s->applied + 1; version <= limit; version++) {
        const kv_position at = log_at(&s->log, version)->position;
        kv_record record;
        uint32_t used;
        uint64_t size;
        const uint8_t *bytes = kv_flow_at(r->store->flow, at.segment, at.offset, &size);
        uint64_t place = kv_place(kv_flow_salt(r->store->flow), at.segment, at.offset);
        if (bytes == NULL || kv_record_peek(bytes, size, place, &record, &used) != KV_OK) return;
        if (is_data(&record)) kv_index_prefetch(r->store->index, target_of(r->store, &record).hash);
        if ((record.options & KV_HAS_REQUEST) == 0) continue;
        sessions_prefetch_bucket(&s->sessions, record.request.client, record.request.lane);
        asked[count++] = record.request;
    }
    for (size_t i = 0; i < count; i++) sessions_prefetch(&s->sessions, asked[i].client, asked[i].lane);
}

void shard_apply(kv_replica *r, shard *s) {
    uint64_t limit = s->commit < log_last(&s->log) ? s->commit : log_last(&s->log);
    if (s->hole != 0 && limit >= s->hole) limit = s->hole - 1;
    if (s->installing.active) return;
    if (s->gap && s->applied < s->log.base) s->applied = limit < s->log.base ? limit : s->log.base;
    if (r->waits.count != 0 && s->applied < limit) waits_touch_shard(r, s);
    uint64_t ahead = s->applied;
    while (s->applied < limit && r->failed == KV_OK) {
        if (s->applied == ahead && limit - ahead > 1) {
            apply_ahead(r, s, limit);
            ahead += AHEAD;
        }
        each_record(r, s, s->applied + 1, step_apply);
        s->applied++;
        r->counts.committed++;
    }
    kv_epoch_reclaim(r->store->epoch);
    size_t done = 0;
    const waiting *first = LIST(waiting, &s->own.waiting);
    for (; done < s->own.waiting.count && first[done].version <= s->applied; done++) {
        kv_reply reply = first[done].reply;
        reply.shard_version = s->applied;
        reply_add(r, &reply);
    }
    list_drop_front(&s->own.waiting, done);
}
