/* replica_snapshot.c -- a shard as a whole, for a peer that needs records which are no longer held.
 *
 * The owner walks over its index and sends what it meets of the shard, piece by piece, while it goes on writing. So what
 * arrives is of many moments: `from`, the applied version as the walk began, and later ones. The receiver throws its own
 * state of the shard away, takes the pieces in, and goes on with the records behind `from`, of which it shows those that
 * are newer than what stands there. Once it has applied `until`, the applied version as the walk ended, the state is that
 * of one moment, and may be read. The owner lets go of no record behind `from` meanwhile.
 *
 * In the receiver's log: SNAPSHOT_BEGIN, then the pieces as moved records, in any order, then SNAPSHOT_END. A log that has
 * the first without the last leaves the shard without a state: it votes with its version log as ever, but applies nothing,
 * answers nothing and takes nothing over, and asks the next owner for a snapshot. */
#include <stdlib.h>

#include "replica_internal.h"

enum { SESSION_SIZE = 38 };

/* --- the owner's side --- */

void sending_clear(sending *one) { *one = (sending){0}; }

static void sending_begin(kv_replica *r, const shard *s, sending *one) {
    *one = (sending){.active = true, .from = s->applied, .walk = replica_nonce(r), .members = s->members};
    KV_ASSERT(log_ballot_at(&s->log, s->applied, &one->from_ballot));
}

/* Of a name that is there, or of a row that was deleted: change feeds tell of those. */
static bool is_state(const kv_replica *r, const shard *s, uint64_t location, const kv_record *record) {
    bool row = (kv_loc_flags(location) & KV_LOC_ROW) != 0, head = (kv_loc_flags(location) & KV_LOC_HEAD) != 0;
    if (record->shard != s->number || head) return false;
    if ((kv_loc_flags(location) & KV_LOC_TOMBSTONE) && !row) return false;
    bool part = row || (kv_loc_flags(location) & KV_LOC_FLOOR) != 0;
    return !part || !big_set_has(&r->store->retired_tables, record->table_id);
}

static void record_of(kv_replica *r, uint64_t location, found *out) {
    out->location = location;
    kv_status status = store_peek(r->store, out);
    if (status == KV_OK && !found_intact(out)) status = KV_ECORRUPT;
    if (status != KV_OK) replica_fail(r, status == KV_ABSENT ? KV_ECORRUPT : status);
}

static void state_put(wire_out *out, const kv_record *record) {
    wire_put_varint(out, record->version);
    wire_put64(out, record->ballot);
    wire_put_record(out, record);
}

static int by_hash(const void *left, const void *right) {
    uint64_t a = ((const kv_index_slot *)left)->hash, b = ((const kv_index_slot *)right)->hash;
    return (a > b) - (a < b);
}

/* What is kept behind a value, the oldest first: so each comes to stand behind the next one. The newest of it, if it is more
 * than a message is to have. */
static void history_put(kv_replica *r, wire_out *out, const kv_record *record) {
    kv_meta meta;
    if (KV_LIKELY(!is_meta(record)) || mutated(r, KV_MUTATE_SNAPSHOT_NO_HISTORY)) return;
    list kept = {0};
    size_t size = 0;
    const content *c = kv_meta_decode(record->value, record->value_size, &meta) ? contents_find(&r->contents, &meta) : NULL;
    for (; c != NULL && c->behind != 0 && size < MESSAGE_SIZE_MAX; c = c->behind_content) {
        size += c->behind_used;
        uint64_t *location = list_add(&kept, sizeof *location);
        if (location == NULL) replica_fail(r, KV_ENOMEM);
        else *location = c->behind;
    }
    for (size_t i = kept.count; i-- > 0 && r->failed == KV_OK;) {
        found f;
        record_of(r, LIST(uint64_t, &kept)[i], &f);
        if (r->failed != KV_OK) break;
        wire_put8(out, 1);
        state_put(out, &f.record);
    }
    list_free(&kept);
}

/* Of one table of the index, from the hash on where the walk is; to the table's end, or until the message is full: then the
 * walk goes on from there, and names of one hash stay together. */
static void table_put(kv_replica *r, wire_out *out, const shard *s, sending *one, kv_index_slot *slots, size_t count,
                      uint64_t behind) {
    uint64_t from = one->hash;
    size_t begin = out->size;
    one->hash = behind;
    qsort(slots, count, sizeof *slots, by_hash);
    for (size_t i = 0; i < count && r->failed == KV_OK; i++) {
        found f;
        if (slots[i].hash < from) continue;
        if (out->size - begin >= MESSAGE_SIZE_MAX && slots[i].hash != slots[i - 1].hash) {
            one->hash = slots[i].hash;
            return;
        }
        record_of(r, slots[i].location, &f);
        if (r->failed != KV_OK || !is_state(r, s, slots[i].location, &f.record)) continue;
        history_put(r, out, &f.record);
        wire_put8(out, 1);
        state_put(out, &f.record);
    }
    one->walked = behind == 0;
}

/* What some tables of the index have of the shard; each record behind a 1, a 0 behind the last. */
static void tables_put(kv_replica *r, wire_out *out, const shard *s, sending *one) {
    kv_index_slot *slots = NULL;
    size_t capacity = 0, count, begin = out->size;
    for (uint32_t i = 0; i < r->options.piece_tables && !one->walked && r->failed == KV_OK; i++) {
        uint64_t behind = one->hash;
        if (out->size - begin >= MESSAGE_SIZE_MAX) break;
        kv_status status = kv_index_walk(r->store->index, &behind, &slots, &capacity, &count);
        if (status != KV_OK) {
            replica_fail(r, status);
            break;
        }
        table_put(r, out, s, one, slots, count, behind);
    }
    wire_put8(out, 0);
    free(slots);
}

void lanes_put(wire_out *out, const sessions *s) {
    wire_put_varint(out, s->forgotten);
    wire_put_varint(out, s->count);
    const session *one;
    for (uint32_t at = 0; (one = sessions_next(s, &at)) != NULL;) {
        uint8_t bytes[SESSION_SIZE];
        kv_store64(bytes, one->client);
        kv_store64(bytes + 8, one->number);
        kv_store64(bytes + 16, one->version);
        kv_store64(bytes + 24, (uint64_t)one->result);
        kv_store32(bytes + 32, one->lane);
        kv_store16(bytes + 36, (uint16_t)one->outcome);
        wire_put_bytes(out, bytes, sizeof bytes);
    }
}

/* The next piece, behind what the item says of shard and ballot. The last one says how many there were, up to which version
 * the state may have been taken, who had a vote as it began, and what the lanes were told. */
uint64_t piece_put(kv_replica *r, wire_out *out, shard *s, uint32_t index) {
    sending *one = &s->own.sending[index];
    if (!one->active) sending_begin(r, s, one);
    wire_put_varint(out, one->from);
    wire_put64(out, one->from_ballot);
    wire_put_varint(out, one->walk);
    wire_put_varint(out, one->piece++);
    tables_put(r, out, s, one);
    wire_put8(out, one->walked);
    if (!one->walked) return 0;
    wire_put_varint(out, one->piece);
    wire_put_varint(out, s->applied);
    wire_put_members(out, &one->members);
    if (mutated(r, KV_MUTATE_SNAPSHOT_NO_SESSIONS)) {
        wire_put_varint(out, 0);
        wire_put_varint(out, 0);
    } else {
        lanes_put(out, &s->sessions);
    }
    s->own.next[index] = one->from + 1;
    one->active = false;
    one->until = s->applied;
    r->counts.snapshots++;
    return one->from;
}

/* Records behind this one are promised to somebody: who gets a snapshot, or got one and has not caught up with the time when it
 * was made. Else a busy owner would have let go of them by then, and send one snapshot after another. */
uint64_t snapshot_pin(const kv_replica *r, const shard *s) {
    uint64_t pin = hold_pin(r, s);
    for (uint32_t i = 0; s->own.ballot != 0 && i < r->peer_count; i++) {
        const sending *one = &s->own.sending[i];
        uint64_t held = s->own.match[i] > one->from ? s->own.match[i] : one->from;
        if ((one->active || held < one->until) && held < pin) pin = held;
    }
    return pin;
}

/* --- the receiver's side --- */

kv_status state_append(kv_replica *r, kv_record *record) {
    kv_position position;
    uint32_t used;
    kv_fault fault;
    record->flags = (uint8_t)((record->flags & ~KV_FLAG_CREATED) | KV_FLAG_MOVED);
    kv_status status = r->full ? KV_ENOSPC : late_append(r->store, record, 1, &position, &used);
    if (status != KV_OK) {
        append_failed(r, status);
        return status;
    }
    status = state_show(r, record, position, used, &fault);
    if (status != KV_OK) replica_fail(r, status);
    return status;
}

/* Newer than what stands there, or of the same version and come later. */
kv_status state_show(kv_replica *r, const kv_record *record, kv_position position, uint32_t used, kv_fault *fault) {
    found old;
    if (record->shard >= r->shard_count) return KV_ECORRUPT;
    shard *s = &r->shards[record->shard];
    if (record->version > s->newest_shown) s->newest_shown = record->version;
    target t = target_of(r->store, record);
    kv_status status = store_find(r->store, &t, &old, fault);
    if (status != KV_OK && status != KV_ABSENT) return status;
    if (status == KV_ABSENT || old.record.version <= record->version) {
        if (record->kind == KV_KIND_TABLE_NEW) table_back(r, record->table_id);
        status = store_show(r->store, record, position, used, fault);
    }
    if (status != KV_OK && status != KV_ABSENT) return status;
    /* It came to an end, and what stands there does not say so, or never was that table: rows of it may have come before. */
    return record->kind == KV_KIND_TABLE_DROP ? big_set_add(&r->store->retired_tables, record->table_id) : KV_OK;
}

/* Rows may be here, or a floor, whose table never came: a snapshot that was given up had brought no more. */
static void table_ends(kv_replica *r, uint64_t table_id) {
    if (big_set_add(&r->store->retired_tables, table_id) != KV_OK) replica_fail(r, KV_ENOMEM);
}

/* What is here of the shard ends, each name by a record of its own: so a replay comes to the same. */
static void state_wipe(kv_replica *r, const shard *s) {
    kv_index_slot *slots = NULL;
    size_t capacity = 0, count;
    uint64_t hash = 0;
    do {
        kv_status status = kv_index_walk(r->store->index, &hash, &slots, &capacity, &count);
        if (status != KV_OK) replica_fail(r, status);
        for (size_t i = 0; i < count && r->failed == KV_OK && !r->dropped; i++) {
            unsigned flags = kv_loc_flags(slots[i].location);
            found f;
            if (flags & KV_LOC_HEAD || (flags & (KV_LOC_TOMBSTONE | KV_LOC_ROW)) == KV_LOC_TOMBSTONE) continue;
            record_of(r, slots[i].location, &f);
            if (r->failed != KV_OK || f.record.shard != s->number) continue;
            if (flags & (KV_LOC_ROW | KV_LOC_FLOOR)) table_ends(r, f.record.table_id);
            if (flags & (KV_LOC_TOMBSTONE | KV_LOC_FLOOR)) continue;
            kv_record end = f.record;
            end.kind = end.kind == KV_KIND_TABLE_NEW ? KV_KIND_TABLE_DROP
                     : end.kind == KV_KIND_ROW_PUT   ? KV_KIND_ROW_DELETE : KV_KIND_DELETE;
            end.options &= KV_HAS_TABLE;
            end.options |= KV_HAS_SEQUENCE | KV_HAS_BALLOT;
            end.value_size = 0;
            end.flags &= (uint8_t)~KV_FLAG_META;
            r->dropped |= state_append(r, &end) != KV_OK;
        }
    } while (hash != 0 && r->failed == KV_OK && !r->dropped);
    free(slots);
}

void installing_clear(shard *s) {
    free(s->installing.pieces);
    free(s->installing.lanes);
    s->installing = (installing){0};
}

static void installing_begin(kv_replica *r, shard *s, uint64_t from, uint64_t ballot, uint64_t walk) {
    kv_position position;
    sweep_stop(r); /* A table that it is about may come back. */
    kv_status status = log_commits(r); /* A replay is to meet what is ended below as it stands now: what is gone is not ended. */
    if (status == KV_OK) status = log_try(r, KV_KIND_SNAPSHOT_BEGIN, s->number, ballot, NULL, 0, &position);
    if (status != KV_OK) {
        r->dropped = true;
        return;
    }
    waits_end(r, s);
    installing_clear(s);
    s->installing.active = true; /* Of no walk yet: one that finds no room to wipe what is here begins anew. */
    state_wipe(r, s);
    if (!r->dropped) s->installing = (installing){.active = true, .from = from, .ballot = ballot, .walk = walk};
}

/* It found no room, and has to come again. */
static void piece_forget(installing *i, uint64_t piece) {
    i->pieces[piece / 8] &= (uint8_t)~(1 << piece % 8);
    i->piece_count--;
}

/* Which of them have come is kept as bits: so far ahead of those that came in a row nobody sends. */
static bool is_far_ahead(uint64_t come, uint64_t piece) {
    enum { PIECES_AHEAD = 1 << 18, PIECES_MAX = 1 << 28 };
    return piece > come + PIECES_AHEAD || piece > PIECES_MAX;
}

/* false: it came before. */
static bool piece_note(kv_replica *r, installing *i, uint64_t piece) {
    if (piece / 8 >= i->pieces_size) {
        size_t size = (size_t)(piece / 8 + 1) * 2;
        uint8_t *larger = realloc(i->pieces, size);
        if (larger == NULL) {
            replica_fail(r, KV_ENOMEM);
            return false;
        }
        memset(larger + i->pieces_size, 0, size - i->pieces_size);
        i->pieces = larger;
        i->pieces_size = size;
    }
    uint8_t bit = (uint8_t)(1 << piece % 8);
    bool fresh = (i->pieces[piece / 8] & bit) == 0;
    i->pieces[piece / 8] |= bit;
    i->piece_count += fresh;
    return fresh;
}

static void states_take(kv_replica *r, const shard *s, wire_in *in, bool keep) {
    while (!in->bad && wire_take8(in) == 1) {
        kv_record record;
        uint64_t version = wire_take_varint(in), ballot = wire_take64(in);
        wire_take_record(in, &record);
        bool data = record.kind < KV_KIND_ENVELOPE && version != 0;
        if (in->bad || !data) {
            in->bad = true;
            return;
        }
        record.version = version;
        record.ballot = ballot;
        record.shard = s->number;
        record.options |= KV_HAS_SEQUENCE | KV_HAS_BALLOT;
        record.options &= (uint16_t)~KV_HAS_REQUEST;
        if (keep && r->failed == KV_OK) r->dropped |= state_append(r, &record) != KV_OK;
    }
}

/* The lanes, as they come on the wire and lie in SNAPSHOT_END. */
bool lanes_take(wire_in *in, sessions *to) {
    uint64_t forgotten = wire_take_varint(in), count = wire_take_varint(in);
    if (count > to->count_max) in->bad = true;
    sessions_clear(to);
    for (uint64_t i = 0; i < count && !in->bad; i++) {
        const uint8_t *bytes = wire_take_bytes(in, SESSION_SIZE);
        if (bytes == NULL) break;
        kv_request request = {.client = kv_load64(bytes),
                              .number = kv_load64(bytes + 8),
                              .result = (int64_t)kv_load64(bytes + 24),
                              .lane = kv_load32(bytes + 32),
                              .outcome = (int16_t)kv_load16(bytes + 36)};
        sessions_note(to, &request, kv_load64(bytes + 16));
    }
    to->forgotten = forgotten;
    return !in->bad;
}

/* From SNAPSHOT_END, live or replayed: the state is the snapshot, and the version log begins behind it. The tail behind
 * it stays if it goes on from the same record; the record says so, because a replay may have no more than the end of
 * that tail (replica_state.c), or nothing. Behind a hole that the snapshot covers more may be committed than was applied,
 * and stays so. Where a ledger tells of it (ledger.h), the lanes are lost, and with them the state. */
kv_status installing_end(kv_replica *r, shard *s, const uint8_t *bytes, size_t size) {
    wire_in in = {.at = bytes, .end = bytes + size};
    members named;
    uint64_t from = wire_take64(&in), from_ballot = wire_take64(&in), until = wire_take64(&in);
    bool goes_on = wire_take8(&in) != 0;
    wire_take_members(&in, &named);
    bool lost = s->installing.lost || in.at == in.end;
    if (in.bad || (in.at != in.end && !lanes_take(&in, &s->sessions))) return KV_ECORRUPT;
    bool behind = s->log.count != 0 && s->log.base > from;
    if (goes_on && behind && !s->gap) return KV_ECORRUPT;
    if (goes_on && from >= s->log.base && from <= log_last(&s->log)) shard_let_go(s, from);
    else if (!goes_on || !behind) shard_restart(s, from, from_ballot);
    if (s->log.base <= from) s->gap = false;
    s->gap_from = from;
    if (mutated(r, KV_MUTATE_SNAPSHOT_NO_MEMBERS)) named = s->members;
    members_set(r, s, &named, from, goes_on);
    s->commit = goes_on && s->commit > from ? s->commit : from;
    s->applied = from;
    s->commit_logged = s->commit;
    s->lanes_until = until;
    /* What an earlier snapshot brought, and was given up, may be newer than this one, and ended under its own versions. */
    s->whole_from = until > s->newest_shown ? until : s->newest_shown;
    hole_look(s);
    installing_clear(s);
    s->installing.active = s->installing.lost = lost;
    return KV_OK;
}

/* All pieces are here. */
static void install(kv_replica *r, shard *s, uint64_t from_ballot) {
    const installing *i = &s->installing;
    wire_out out = {0};
    uint64_t mine;
    wire_put64(&out, i->from);
    wire_put64(&out, from_ballot);
    wire_put64(&out, i->until);
    wire_put8(&out, log_ballot_at(&s->log, i->from, &mine) && mine == from_ballot);
    wire_put_bytes(&out, i->lanes, i->lanes_size);
    kv_position position;
    kv_status status = KV_ENOMEM;
    if (out.failed) replica_fail(r, status);
    else status = log_try(r, KV_KIND_SNAPSHOT_END, s->number, i->ballot, out.bytes, out.size, &position);
    if (status == KV_OK && installing_end(r, s, out.bytes, out.size) != KV_OK) replica_fail(r, KV_ECORRUPT);
    wire_free(&out);
    r->dropped |= status != KV_OK;
    r->counts.installed += status == KV_OK;
}

/* What only the last piece has. */
static void last_piece_take(kv_replica *r, installing *i, wire_in *in, bool wanted) {
    uint64_t count = wire_take_varint(in), until = wire_take_varint(in);
    const uint8_t *lanes = in->at;
    members named;
    wire_take_members(in, &named);
    wire_take_varint(in);
    uint64_t lane_count = wire_take_varint(in);
    if (lane_count > r->options.session_max) in->bad = true;
    wire_take_bytes(in, lane_count * SESSION_SIZE);
    if (in->bad || !wanted) return;
    free(i->lanes);
    i->lanes_size = (size_t)(in->at - lanes);
    i->lanes = malloc(i->lanes_size);
    if (i->lanes == NULL) replica_fail(r, KV_ENOMEM);
    else memcpy(i->lanes, lanes, i->lanes_size);
    i->count = count;
    i->until = until;
}

/* true: taken in, or of no use any more, or the bytes are bad. */
bool piece_take(kv_replica *r, shard *s, uint64_t ballot, wire_in *in) {
    uint64_t from = wire_take_varint(in), from_ballot = wire_take64(in);
    uint64_t walk = wire_take_varint(in), piece = wire_take_varint(in);
    installing *i = &s->installing;
    if (from >> LATE_VERSION_BITS != 0) in->bad = true; /* Nobody could write behind it. */
    if (in->bad) return true;
    bool accepted = ballot_heed(r, s, ballot), mine = i->active && ballot == i->ballot;
    bool same = mine && walk == i->walk, older = mine && walk < i->walk;
    /* Behind what is applied; where a part of the state is damaged, one that is as new will do. */
    bool newer = from > s->applied || (i->active && from == s->applied) || mutated(r, KV_MUTATE_SNAPSHOT_DROPS_TAIL);
    bool wanted = accepted && !older && (newer || same);
    if (wanted && is_far_ahead(same ? i->piece_count : 0, piece)) accepted = wanted = false; /* Refused: another one begins. */
    if (wanted && !same) installing_begin(r, s, from, ballot, walk);
    wanted = wanted && !r->dropped;
    bool fresh = wanted && piece_note(r, i, piece);
    states_take(r, s, in, fresh);
    if (fresh && r->dropped) piece_forget(i, piece);
    if (wire_take8(in) != 0) last_piece_take(r, i, in, wanted);
    if (wanted && !r->dropped && !in->bad && r->failed == KV_OK && i->count != 0 && i->piece_count == i->count) install(r, s, from_ballot);
    return accepted;
}
