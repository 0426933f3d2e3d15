/* replica_flow.c -- the flow from the owners of shards to their peers, and the acknowledgements back.
 *
 * A message is one for all shards that have something to say: FLOW carries connection, sequence number and, per shard,
 * an APPEND: (ballot, previous version and its ballot, commit, records), or a piece of a snapshot (replica_snapshot.c). The
 * receiver takes it in at once, and says so once its log is durable: one cursor for the connection, and beside it the
 * APPENDs that it refused. What is not acknowledged for a while makes the sender begin a new connection, from what is
 * known to be held; nothing that is said of the old one counts then. */
#include <stdlib.h>

#include "replica_internal.h"

enum { REFUSALS_MAX = 256 };

/* --- packing --- */

/* The ballot is said where it is not that of the message. Bytes that go with the version stand in front of its records. */
void wire_put_version(kv_replica *r, wire_out *out, const version_entry *entry, uint64_t ballot) {
    uint32_t at = entry->position.offset, used;
    kv_record record;
    kv_status status;
    uint64_t size;
    bool gone, other = entry->ballot != ballot;
    uint64_t with = carried(r, NULL, entry, &size, &gone);
    wire_put_varint(out, with + entry->record_count);
    wire_put8(out, (uint8_t)((other ? VERSION_BALLOT : 0) | (gone ? VERSION_GONE : 0)));
    if (other) wire_put64(out, entry->ballot);
    if (with != 0) carried(r, out, entry, &size, &gone);
    while ((status = version_next(r, entry, &at, &record, &used)) == KV_OK) wire_put_record(out, &record);
    if (status != KV_EOF) replica_fail(r, status);
}

static void connect(kv_replica *r, peer *p) {
    p->connection = (connection){.incarnation = r->incarnation, .number = replica_nonce(r)};
    p->seq = p->acked = 0;
    p->sent_size = 0;
    list_clear(&p->sent);
}

/* What it needs next is no longer held. */
static bool is_behind(const shard *s, uint32_t index) { return s->own.next[index] <= s->log.base; }

/* How many records of a shard go into this message: at least one, if there is one that may. */
static uint64_t records_fit(kv_replica *r, const shard *s, uint64_t start, size_t used) {
    uint64_t last = log_last(&s->log), count = 0, with;
    bool gone;
    for (; start + count <= last && count < r->options.batch_max; count++) {
        const version_entry *entry = log_at(&s->log, start + count);
        if (!may_leave(r, entry)) break;
        carried(r, NULL, entry, &with, &gone);
        used += entry->size + with;
        if (count != 0 && used > MESSAGE_SIZE_MAX) break;
    }
    return count;
}

/* The same APPEND was packed for another member a moment ago: it is copied. */
static bool append_copy(const kv_replica *r, wire_out *out, const ownership *own, uint64_t start, uint64_t count) {
    const packed *same = &own->packed;
    if (same->packing != r->packing || same->start != start || same->count != count) return false;
    const wire_out *from = &r->peers[same->member].out;
    if (from->failed) return false;
    wire_put_bytes(out, from->bytes + same->at, same->size);
    return true;
}

static uint64_t append_put(kv_replica *r, wire_out *out, uint32_t index, shard *s, uint64_t count) {
    ownership *own = &s->own;
    uint64_t start = own->next[index], prev_ballot = 0;
    size_t at = out->size;
    own->next[index] = start + count;
    own->told[index] = s->commit;
    own->asks &= ~(1u << index);
    if (append_copy(r, out, own, start, count)) return start - 1 + count;
    KV_ASSERT(log_ballot_at(&s->log, start - 1, &prev_ballot));
    wire_put_varint(out, start - 1);
    wire_put64(out, prev_ballot);
    wire_put_varint(out, s->commit);
    wire_put_varint(out, count);
    for (uint64_t i = 0; i < count; i++) wire_put_version(r, out, log_at(&s->log, start + i), own->ballot);
    own->packed = (packed){.packing = r->packing, .start = start, .count = count, .member = index, .at = at,
                           .size = out->size - at};
    return start - 1 + count;
}

/* `count` records, or a piece of a snapshot. */
static void item_put(kv_replica *r, peer *p, uint32_t index, shard *s, uint64_t count) {
    ownership *own = &s->own;
    wire_out *out = &p->out;
    size_t before = out->size;
    bool behind = is_behind(s, index);
    wire_put_varint(out, s->number);
    wire_put64(out, own->ballot);
    wire_put8(out, behind);
    uint64_t version = behind ? piece_put(r, out, s, index) : append_put(r, out, index, s, count);

    sent_item *sent = list_add(&p->sent, sizeof *sent);
    if (sent == NULL) {
        replica_fail(r, KV_ENOMEM);
        return;
    }
    uint32_t size = (uint32_t)(out->size - before);
    *sent = (sent_item){.seq = p->seq, .ballot = own->ballot, .version = version, .size = size, .shard = s->number};
    p->sent_size += size;
}

/* The next shard from `number` on, of all or of those that are stirred; shard_count: there is none. */
static uint32_t shard_next(const kv_replica *r, uint32_t number, bool all) {
    if (all) return number;
    while (number < r->shard_count) {
        uint64_t bits = r->stirred[number / 64] >> number % 64;
        if (bits != 0) return number + (uint32_t)__builtin_ctzll(bits);
        number = (number / 64 + 1) * 64;
    }
    return r->shard_count;
}

static void peer_pack(kv_replica *r, peer *p, uint32_t index, bool heartbeat) {
    bool begun = false;
    for (uint32_t i = 0; (i = shard_next(r, i, heartbeat)) < r->shard_count; i++) {
        shard *s = &r->shards[i];
        if (s->own.ballot == 0) continue;
        bool room = p->sent_size < r->options.window_size_max;
        size_t used = begun ? p->out.size - p->out.frame : 0;
        bool behind = is_behind(s, index);
        if (behind && (!room || used >= MESSAGE_SIZE_MAX)) continue;
        uint64_t count = room && used < MESSAGE_SIZE_MAX && !behind ? records_fit(r, s, s->own.next[index], used) : 0;
        bool asks = (s->own.asks >> index & 1) != 0;
        if (count == 0 && !heartbeat && !behind && !asks) continue;
        if (!begun) {
            if (p->connection.incarnation == 0) connect(r, p);
            if (p->sent.count == 0) p->progress = r->now;
            wire_begin(&p->out, WIRE_FLOW);
            wire_put_varint(&p->out, p->connection.incarnation);
            wire_put_varint(&p->out, p->connection.number);
            wire_put_varint(&p->out, ++p->seq);
            wire_put_varint(&p->out, p->acked); /* What was refused up to there we know of. */
            begun = true;
        }
        item_put(r, p, index, s, count);
    }
    if (begun) wire_end(&p->out);
}

/* Every peer was sent all there is. */
static bool is_settled(const kv_replica *r, const shard *s) {
    if (s->own.ballot == 0) return true;
    for (uint32_t i = 0; i < r->peer_count; i++)
        if (is_peer(r, i) && s->own.next[i] <= log_last(&s->log)) return false;
    return true;
}

void flow_pack(kv_replica *r, bool heartbeat) {
    r->packing++;
    for (uint32_t i = 0; i < r->peer_count; i++)
        if (is_peer(r, i)) peer_pack(r, &r->peers[i], i, heartbeat);
    for (uint32_t i = 0; (i = shard_next(r, i, false)) < r->shard_count; i++)
        if (is_settled(r, &r->shards[i])) r->stirred[i / 64] &= ~((uint64_t)1 << i % 64);
}

/* Nothing of the old connection counts; what is known to be held is the start of the new one. */
void peer_reconnect(kv_replica *r, peer *p) {
    uint32_t index = (uint32_t)(p - r->peers);
    r->counts.reconnects++;
    p->connection = (connection){0};
    list_clear(&p->sent);
    p->sent_size = 0;
    for (uint32_t i = 0; i < r->shard_count; i++) {
        ownership *own = &r->shards[i].own;
        if (own->ballot == 0) continue;
        if (own->match[index] != 0) own->next[index] = own->match[index] + 1;
        sending_clear(&own->sending[index]);
        stir(r, &r->shards[i]);
    }
}

static connection take_connection(wire_in *in) {
    connection one = {.incarnation = wire_take_varint(in)};
    one.number = wire_take_varint(in);
    return one;
}

/* --- acknowledgements, at the owner --- */

static const refusal *refusal_of(const list *refusals, uint64_t seq, uint16_t number) {
    const refusal *all = LIST(refusal, refusals);
    for (size_t i = 0; i < refusals->count; i++)
        if (all[i].seq == seq && all[i].shard == number) return &all[i];
    return NULL;
}

/* A higher promise ends the ownership. After a gap the flow goes on behind the peer's last version, for a tail that is not
 * ours behind its commit; not from our own `next`, which is ahead by now. */
static void refused(kv_replica *r, peer *p, const refusal *no) {
    shard *s = &r->shards[no->shard];
    uint32_t index = (uint32_t)(p - r->peers);
    note_round(r, no->promised);
    if (s->own.ballot == 0 || s->own.ballot != no->ballot) return;
    r->counts.refusals++;
    if (no->promised > no->ballot) {
        shard_step_down(r, s);
        return;
    }
    if (s->own.sending[index].active || no->no_state) {
        /* A snapshot that is on its way brings what is missing; to go on elsewhere now would leave it half sent for ever. */
        if (!s->own.sending[index].active) s->own.next[index] = 0;
        stir(r, s);
        return;
    }
    uint64_t back = no->last < no->prev_version ? no->last : no->commit, match = s->own.match[index];
    if (back > log_last(&s->log)) back = log_last(&s->log); /* No peer of an owner has more; one that lies may say so. */
    s->own.next[index] = (back > match ? back : match) + 1;
    stir(r, s);
}

static bool take_refusals(kv_replica *r, wire_in *in, list *out) {
    uint64_t count = wire_take_varint(in);
    for (uint64_t i = 0; i < count && !in->bad; i++) {
        refusal *no = list_add(out, sizeof *no);
        if (no == NULL) return false;
        no->seq = wire_take_varint(in);
        uint64_t number = wire_take_varint(in);
        no->shard = (uint16_t)number;
        no->ballot = wire_take64(in);
        no->promised = wire_take64(in);
        no->prev_version = wire_take_varint(in);
        no->last = wire_take_varint(in);
        no->commit = wire_take_varint(in);
        no->no_state = wire_take8(in) != 0;
        if (number >= r->shard_count) in->bad = true;
    }
    return true;
}

static void acked(kv_replica *r, peer *p, uint64_t cursor, const list *refusals) {
    uint32_t index = (uint32_t)(p - r->peers);
    const sent_item *sent = LIST(sent_item, &p->sent);
    size_t done = 0;
    for (; done < p->sent.count && sent[done].seq <= cursor; done++) {
        shard *s = &r->shards[sent[done].shard];
        ownership *own = &s->own;
        p->sent_size -= sent[done].size;
        if (own->ballot != sent[done].ballot || refusal_of(refusals, sent[done].seq, sent[done].shard) != NULL) continue;
        if (sent[done].version <= own->match[index]) continue;
        own->match[index] = sent[done].version;
        shard_advance(r, s);
    }
    list_drop_front(&p->sent, done);
}

void ack_receive(kv_replica *r, peer *p, wire_in *in) {
    connection of = take_connection(in);
    uint64_t cursor = wire_take_varint(in), before = p->acked;
    bool voter = wire_take8(in) != 0;
    list refusals = {0};
    if (!take_refusals(r, in, &refusals)) replica_fail(r, KV_ENOMEM);
    bool counts = connection_order(of, p->connection) == 0 || mutated(r, KV_MUTATE_OLD_ACKS);
    if (!in->bad && counts) {
        bool voted = !p->learner;
        p->learner = !voter;
        if (cursor > p->seq) cursor = p->seq;
        if (cursor > p->acked) {
            p->acked = cursor;
            p->progress = r->now;
            acked(r, p, cursor, &refusals);
        }
        const refusal *all = LIST(refusal, &refusals);
        for (size_t i = 0; i < refusals.count; i++)
            if (all[i].seq > before && all[i].seq <= p->acked) refused(r, p, &all[i]);
        for (uint32_t i = 0; voted != voter && i < r->shard_count; i++)
            if (r->shards[i].own.ballot != 0) shard_advance(r, &r->shards[i]);
    }
    list_free(&refusals);
}

/* --- accepting, at the peer --- */

/* Bytes stand in front, and what names bytes is a value, of a size that an owner makes. */
static bool carried_in_order(const kv_record *records, size_t last) {
    const kv_record *one = &records[last];
    kv_meta meta;
    if (one->kind == KV_KIND_DATA) return last == 0 || records[last - 1].kind == KV_KIND_DATA;
    if (!is_meta(one)) return true;
    bool value = one->kind == KV_KIND_PUT || one->kind == KV_KIND_ROW_PUT;
    return value && kv_meta_decode(one->value, one->value_size, &meta) && meta.size <= LATE_CONTENT_SIZE_MAX;
}

/* Members stand alone in their version. */
static bool members_alone(const kv_record *record, uint64_t count) {
    members named;
    return record->kind != KV_KIND_CONFIG || (count == 1 && members_parse(record->value, record->value_size, &named));
}

kv_record *version_parse(kv_replica *r, wire_in *in, uint64_t count) {
    const uint8_t *begin = in->at;
    if (count == 0 || count > BATCH_RECORDS_MAX) in->bad = true;
    list_clear(&r->records);
    for (uint64_t i = 0; i < count && !in->bad; i++) {
        kv_record *record = list_add(&r->records, sizeof *record);
        if (record == NULL) {
            replica_fail(r, KV_ENOMEM);
            return NULL;
        }
        wire_take_record(in, record);
        if (!carried_in_order(LIST(kv_record, &r->records), (size_t)i) || !members_alone(record, count)) in->bad = true;
    }
    kv_record *all = LIST(kv_record, &r->records);
    if (!in->bad && all[count - 1].kind == KV_KIND_DATA) in->bad = true; /* Bytes, and nothing that names them. */
    if (in->at - begin > VERSION_SIZE_MAX) in->bad = true; /* No owner makes one; sent on, it might not fit. */
    return in->bad ? NULL : all;
}

static bool is_here(kv_replica *r, const shard *s, uint64_t version, uint64_t ballot) {
    uint64_t mine;
    if (version <= s->commit && !mutated(r, KV_MUTATE_CUT_BELOW_COMMIT)) return true;
    if (!log_ballot_at(&s->log, version, &mine)) return false;
    return mine == ballot && !mutated(r, KV_MUTATE_CUT_ALWAYS);
}

/* Reached by a rule left out alone: what was applied is taken back without being undone, what was let go of is not known. */
static void unapply(shard *s, uint64_t last, uint64_t ballot) {
    if (last < s->log.base) log_restart(&s->log, last, ballot);
    s->applied = s->commit = last;
}

/* In the place of whatever tail is here from its version on. */
static void version_append(kv_replica *r, shard *s, kv_record *records, size_t count, uint64_t version, uint64_t ballot,
                           uint64_t prev_ballot) {
    version_entry entry = {.ballot = ballot, .record_count = (uint32_t)count & INT32_MAX};
    if (version <= log_last(&s->log)) r->counts.cuts++;
    for (size_t i = 0; i < count; i++) {
        records[i].shard = s->number;
        records[i].version = version;
        records[i].ballot = ballot;
        records[i].prev_ballot = prev_ballot;
        records[i].options |= LATE_OPTIONS;
        entry.meta |= is_meta(&records[i]);
        digest_note(r, &records[i]);
    }
    kv_status status = late_append(r->store, records, count, &entry.position, &entry.size);
    if (status == KV_OK) {
        if (s->applied >= version) unapply(s, version - 1, prev_ballot);
        log_cut(&s->log, version - 1);
        configs_cut(r, s, version - 1);
        status = log_push(&s->log, &entry);
    }
    if (status == KV_OK) config_note(r, s, &records[0]);
    if (status != KV_OK) replica_fail(r, status);
}

bool version_take(kv_replica *r, shard *s, wire_in *in, uint64_t version, uint64_t ballot, uint64_t *prev_ballot,
                  bool trusting) {
    uint64_t count = wire_take_varint(in), own_ballot = ballot;
    uint8_t how = wire_take8(in);
    if (how & VERSION_BALLOT) own_ballot = wire_take64(in);
    kv_record *records = version_parse(r, in, count);
    if (records == NULL) return false;
    if (!is_here(r, s, version, own_ballot)) {
        int64_t with = carried_take(r, s, records, count, version, how, trusting);
        if (with < 0 || r->failed != KV_OK) return false;
        version_append(r, s, records + with, count - (uint64_t)with, version, own_ballot, *prev_ballot);
    }
    *prev_ballot = own_ballot;
    return r->failed == KV_OK;
}

typedef struct append {
    uint64_t ballot, prev_version, prev_ballot, commit, count;
} append;

/* A committed prefix is the same everywhere. */
static bool follows(const kv_replica *r, const shard *s, const append *a) {
    uint64_t mine;
    if (a->prev_version <= s->commit) return true;
    if (!log_ballot_at(&s->log, a->prev_version, &mine)) return false;
    return mine == a->prev_ballot || mutated(r, KV_MUTATE_NO_PREV_CHECK);
}

/* The commit position is taken only as far as the log is known to be the owner's. */
static void commit_take(kv_replica *r, shard *s, const append *a) {
    uint64_t through = a->prev_version + a->count;
    if (s->verified_ballot != a->ballot) s->verified = 0;
    s->verified_ballot = a->ballot;
    if (through > s->verified) s->verified = through;
    uint64_t limit = mutated(r, KV_MUTATE_COMMIT_UNVERIFIED) ? log_last(&s->log) : s->verified;
    uint64_t commit = a->commit < limit ? a->commit : limit;
    if (a->commit > s->commit_heard) s->commit_heard = a->commit;
    if (commit <= s->commit) return;
    s->commit = commit;
    shard_apply(r, s);
}

/* true: everything up to its last record is here, or the bytes are bad. false: it does not follow, or it came without bytes
 * that have to come with it; the rest of it was passed over. */
static bool append_take(kv_replica *r, shard *s, const append *a, wire_in *in) {
    uint64_t prev_ballot = a->prev_ballot, count = 0;
    bool good = ballot_heed(r, s, a->ballot) && !s->installing.active && follows(r, s, a);
    if (!good) {
        versions_skip(r, in, a->count);
        return false;
    }
    while (count < a->count && good) good = version_take(r, s, in, a->prev_version + ++count, a->ballot, &prev_ballot, false);
    if (in->bad || r->failed != KV_OK) return true;
    if (good) commit_take(r, s, a);
    else versions_skip(r, in, a->count - count);
    return good;
}

void versions_skip(kv_replica *r, wire_in *in, uint64_t count) {
    for (uint64_t i = 0; i < count && !in->bad; i++) {
        uint64_t records = wire_take_varint(in);
        if (wire_take8(in) & VERSION_BALLOT) wire_take64(in);
        if (version_parse(r, in, records) == NULL) return;
    }
}

/* Beyond the bound the connection is as good as dead: it gets no more answers, and its sender begins anew. */
static void refuse(kv_replica *r, peer *p, const shard *s, const append *a, uint64_t seq) {
    if (p->refusals.count > REFUSALS_MAX) return;
    refusal *no = list_add(&p->refusals, sizeof *no);
    if (no == NULL) {
        replica_fail(r, KV_ENOMEM);
        return;
    }
    *no = (refusal){.seq = seq, .ballot = a->ballot, .promised = s->promised, .prev_version = a->prev_version,
                    .last = log_last(&s->log), .commit = s->commit, .shard = s->number, .no_state = s->installing.active};
}

static void items_take(kv_replica *r, peer *p, wire_in *in, uint64_t seq, bool late) {
    while (in->at != in->end && !in->bad && r->failed == KV_OK) {
        uint64_t number = wire_take_varint(in);
        append a = {.ballot = wire_take64(in)};
        bool piece = wire_take8(in) != 0;
        /* A ballot that is not the sender's own would cut a tail under the feet of whoever owns it. */
        if (in->bad || number >= r->shard_count || ballot_node(a.ballot) != p->node) {
            in->bad = true;
            return;
        }
        shard *s = &r->shards[number];
        if (piece) {
            if (!piece_take(r, s, a.ballot, in) && !late) refuse(r, p, s, &a, seq);
            continue;
        }
        a.prev_version = wire_take_varint(in);
        a.prev_ballot = wire_take64(in);
        a.commit = wire_take_varint(in);
        a.count = wire_take_varint(in);
        if (in->bad || append_take(r, s, &a, in)) continue;
        if (!late) refuse(r, p, s, &a, seq);
    }
}

/* Everything up to the cursor has come, in whatever order; what is far ahead of it counts when it comes again. */
static void cursor_move(peer *p, uint64_t seq) {
    if (seq <= p->cursor || seq > p->cursor + SEQ_WINDOW) return;
    p->beyond |= (uint64_t)1 << (seq - p->cursor - 1);
    while (p->beyond & 1) {
        p->beyond >>= 1;
        p->cursor++;
    }
}

/* Its sender has heard of those: they need not be said again. */
static void refusals_known(peer *p, uint64_t acked) {
    refusal *all = LIST(refusal, &p->refusals);
    size_t left = 0, count = p->refusals.count;
    if (count > REFUSALS_MAX) return; /* Some were never noted: there is no way back. */
    for (size_t i = 0; i < count; i++)
        if (all[i].seq > acked) all[left++] = all[i];
    p->refusals.count = left;
}

void flow_receive(kv_replica *r, peer *p, wire_in *in) {
    connection of = take_connection(in);
    uint64_t seq = wire_take_varint(in), acked = wire_take_varint(in);
    int order = connection_order(of, p->inbound);
    if (in->bad) return;
    if (order > 0) {
        p->inbound = of;
        p->cursor = p->beyond = 0;
        p->ack_wanted = false;
        list_clear(&p->refusals);
    }
    if (order == 0) refusals_known(p, acked);
    bool late = order < 0; /* Of a connection that was given up: harmless, and never acknowledged. */
    items_take(r, p, in, seq, late);
    if (late) r->counts.late_flows++;
    if (late || in->bad || r->failed != KV_OK) return;
    cursor_move(p, seq);
    if (p->refusals.count > REFUSALS_MAX) return; /* Silence: the sender begins anew. */
    p->cursor_end = log_end(r);
    if (p->ack_wanted) return;
    p->ack_wanted = true;
    p->due = p->cursor;
    p->due_end = p->cursor_end;
}

static void ack_put(kv_replica *r, peer *p, uint64_t cursor) {
    wire_out *out = &p->out;
    wire_begin(out, WIRE_ACK);
    wire_put_varint(out, p->inbound.incarnation);
    wire_put_varint(out, p->inbound.number);
    wire_put_varint(out, cursor);
    wire_put8(out, r->votes);
    wire_put_varint(out, p->refusals.count);
    const refusal *all = LIST(refusal, &p->refusals);
    for (size_t i = 0; i < p->refusals.count; i++) {
        wire_put_varint(out, all[i].seq);
        wire_put_varint(out, all[i].shard);
        wire_put64(out, all[i].ballot);
        wire_put64(out, all[i].promised);
        wire_put_varint(out, all[i].prev_version);
        wire_put_varint(out, all[i].last);
        wire_put_varint(out, all[i].commit);
        wire_put8(out, all[i].no_state);
    }
    wire_end(out);
}

/* Two positions are kept, the one waited for and the newest: were it the newest alone, a busy log would never be durable
 * that far, and nothing would be acknowledged as long as more comes. */
void acks_pack(kv_replica *r) {
    for (uint32_t i = 0; i < r->peer_count; i++) {
        peer *p = &r->peers[i];
        bool early = mutated(r, KV_MUTATE_ACK_BEFORE_FSYNC);
        if (!p->ack_wanted || (p->due_end > r->durable && !early)) continue;
        bool all = p->cursor_end <= r->durable || early;
        ack_put(r, p, all ? p->cursor : p->due);
        p->ack_wanted = !all;
        p->due = p->cursor;
        p->due_end = p->cursor_end;
    }
}
