/* replica_repair.c -- records of the own log that are damaged.
 *
 * Where a replay meets a record that does not check below the durable watermark, a ledger behind it says what it was
 * (ledger.h, replica_told). What was about votes and lives is in the ledger itself. A record of a snapshot leaves the shard
 * without a state, and the next snapshot brings one. A version record leaves a hole: its place in the version log, with its
 * ballot and without its records. (shard, ballot, version) names one record in all logs, so whoever has it may give it.
 *
 * While there is a hole the replica has no vote in the shard: it promises nothing there, confirms nothing, takes nothing
 * over, refuses every APPEND that ends at or behind the hole without bringing it, and applies nothing behind it. It takes in
 * records all the same. Other shards go on.
 *
 * What is fetched back is logged behind a REPAIR record, in one envelope: a replay puts it where the hole is, where an
 * ordinary record would cut all that follows. What no ledger tells of, the replica cannot answer for: the disk counts as
 * wiped. */
#include <stdio.h>

#include "replica_internal.h"

enum { LOST_MAX = 64, FOUND_SIZE_MAX = 1 << 20 };

bool shard_votes(const kv_replica *r, const shard *s) { return r->votes && s->hole == 0; }

bool hole_at(const shard *s, uint64_t version, uint64_t ballot) {
    if (s->hole == 0 || version < s->hole || version > log_last(&s->log)) return false;
    const version_entry *entry = log_at(&s->log, version);
    return entry->record_count == 0 && entry->ballot == ballot;
}

/* What stands at the end of a log is in order again when what was fetched back is cut. */
void hole_look(shard *s) {
    if (s->mended > log_last(&s->log)) s->mended = log_last(&s->log);
    if (s->hole == 0) return;
    uint64_t version = s->hole > s->log.base ? s->hole : s->log.base + 1;
    while (version <= log_last(&s->log) && log_at(&s->log, version)->record_count != 0) version++;
    s->hole = version <= log_last(&s->log) ? version : 0;
}

/* The hole is filled by records that lie elsewhere. A replay will need the damaged one as well, to know of the hole. */
static void hole_mend(shard *s, uint64_t version, const version_entry *entry) {
    version_entry *at = log_at(&s->log, version);
    if (s->mended <= s->log.base || at->position.segment < s->mended_segment) s->mended_segment = at->position.segment;
    if (version > s->mended) s->mended = version;
    *at = *entry;
    hole_look(s);
}

/* --- replay: what was damaged --- */

/* That the record was taken in counts as a promise of its ballot, as ever. */
static kv_status hole_place(kv_replica *r, shard *s, const told_item *told, kv_position at) {
    if (told->ballot > s->promised) s->promised = told->ballot;
    if (mutated(r, KV_MUTATE_DAMAGED_VOTES)) return KV_OK;
    if (told->version <= s->log.base && !s->gap) return KV_OK;
    r->counts.holes++;
    return hole_replay(r, s, told->version, told->ballot, at);
}

void state_lose(shard *s) { s->installing.active = s->installing.lost = true; }

static kv_status told_take(kv_replica *r, kv_store *store, const told_item *told, kv_position at) {
    kv_fault fault;
    shard *s = told->shard < r->shard_count ? &r->shards[told->shard] : NULL;
    switch (told->what) {
    case TOLD_IDLE:
    case TOLD_REPAIR: return KV_OK;
    case TOLD_VERSION: return s == NULL ? KV_ECORRUPT : hole_place(r, s, told, at);
    case TOLD_RECORD:
        r->counts.restored++;
        if (told->record.kind == KV_KIND_PROMISE && mutated(r, KV_MUTATE_PROMISE_UNTOLD)) return KV_OK;
        return replica_resolve(r, store, &told->record, at, told->size, &fault);
    case TOLD_STATE:
        if (s == NULL) return KV_ECORRUPT;
        state_lose(s);
        return KV_OK;
    case TOLD_BYTES:
        if (s == NULL) return KV_ECORRUPT;
        s->lacking = true;
        return KV_OK;
    default: return KV_ABSENT;
    }
}

/* An index that was made from what cannot be told in all parts is not used (KV_EUSAGE): the replay begins anew without its
 * checkpoint. */
kv_status replica_told(void *context, kv_store *store, const kv_record *told_by, kv_position at, uint32_t *size) {
    kv_replica *r = context;
    told_item told;
    if (!ledger_find(told_by, at, &told)) return KV_ABSENT;
    *size = told.size;
    r->counts.told++;
    r->store = store;
    replay_at(r, at);
    if (r->replaying.hidden && told.what != TOLD_IDLE) return KV_EUSAGE;
    return told_take(r, store, &told, at);
}

/* Whether an undecided record lacks bytes that whoever accepts it has to have. */
static bool is_lacking(kv_replica *r, const version_entry *entry) {
    uint32_t at = entry->position.offset, used;
    kv_record record;
    kv_meta meta;
    while (entry->meta && version_next(r, entry, &at, &record, &used) == KV_OK) {
        if (!is_meta(&record) || !kv_meta_decode(record.value, record.value_size, &meta) || !meta.data) continue;
        const content *c = contents_find(&r->contents, &meta);
        if (c == NULL || c->location == 0) return true;
    }
    return false;
}

/* Without its bytes such a record would be sent on as one that was committed. What is committed is fetched on the bulk lane. */
void holes_lacking(kv_replica *r) {
    for (uint32_t i = 0; i < r->shard_count; i++) {
        shard *s = &r->shards[i];
        uint64_t version = s->commit > s->log.base ? s->commit : s->log.base;
        while (s->lacking && ++version <= log_last(&s->log)) {
            version_entry *entry = log_at(&s->log, version);
            if (entry->record_count == 0 || !is_lacking(r, entry)) continue;
            *entry = (version_entry){.ballot = entry->ballot, .position = entry->position};
            if (s->hole == 0 || version < s->hole) s->hole = version;
            r->counts.holes++;
        }
        s->lacking = false;
    }
}

/* --- replay: what was fetched back --- */

kv_status replay_repair(shard *s, const kv_record *record) {
    s->filling = record->version;
    s->filling_ballot = record->ballot;
    return KV_OK;
}

kv_status replay_fills(kv_replica *r, shard *s, const kv_record *record, kv_position position, uint32_t used) {
    if (s->filling != record->version || s->filling_ballot != record->ballot) {
        s->filling = 0;
        return KV_ABSENT;
    }
    bool gone = record->version <= s->log.base || record->version > log_last(&s->log);
    if (gone) return KV_OK; /* With the place where it belongs; what of it is live was moved (mended_move). */
    version_entry *entry = log_at(&s->log, record->version);
    if (hole_at(s, record->version, record->ballot)) {
        version_entry filled = {.ballot = record->ballot, .position = position, .size = used, .record_count = 1,
                                .meta = is_meta(record)};
        hole_mend(s, record->version, &filled);
        config_note(r, s, record);
    } else if (entry->position.segment == position.segment && entry->position.offset + entry->size == position.offset) {
        entry->size += used;
        entry->record_count++;
        entry->meta |= is_meta(record);
    }
    return r->failed;
}

/* --- fetching back --- */

/* Behind a REPAIR, in one envelope: the replay takes both or none. */
static kv_status repair_append(kv_replica *r, const kv_record *mark, size_t count, version_entry *entry) {
    kv_record *records = list_add(&r->records, sizeof *records);
    if (records == NULL) return KV_ENOMEM;
    records = LIST(kv_record, &r->records);
    bool cuts = mutated(r, KV_MUTATE_REPAIR_CUTS);
    if (!cuts) {
        memmove(records + 1, records, count * sizeof *records);
        records[0] = *mark;
    }
    kv_status status = r->full ? KV_ENOSPC
                               : late_append(r->store, records, cuts ? count : count + 1, &entry->position, &entry->size);
    uint32_t skipped = cuts ? 0 : (uint32_t)kv_record_size(mark);
    entry->position.offset += skipped;
    entry->size -= skipped;
    return status;
}

void hole_fill(kv_replica *r, shard *s, uint64_t version, uint64_t ballot, size_t with) {
    list_drop_front(&r->records, with);
    kv_record *records = LIST(kv_record, &r->records);
    size_t count = r->records.count;
    uint64_t prev_ballot = 0;
    bool meta = false;
    KV_ASSERT(log_ballot_at(&s->log, version - 1, &prev_ballot));
    for (size_t i = 0; i < count; i++) {
        records[i].shard = s->number;
        records[i].version = version;
        records[i].ballot = ballot;
        records[i].prev_ballot = prev_ballot;
        records[i].options |= LATE_OPTIONS;
        meta |= is_meta(&records[i]);
    }
    kv_record first = records[0];
    kv_record mark = {.kind = KV_KIND_REPAIR, .shard = s->number, .version = version, .ballot = ballot,
                      .options = KV_HAS_SEQUENCE | KV_HAS_BALLOT};
    version_entry entry = {.ballot = ballot, .record_count = (uint32_t)count & INT32_MAX, .meta = meta};
    kv_status status = repair_append(r, &mark, count, &entry);
    if (status != KV_OK) { /* What finds no room now is asked for again, or sent. */
        append_failed(r, status);
        r->dropped = true;
        return;
    }
    hole_mend(s, version, &entry);
    config_note(r, s, &first);
    for (size_t i = 0; i < r->records.count; i++) digest_note(r, LIST(kv_record, &r->records) + i);
    r->counts.repaired++;
    shard_apply(r, s);
}

static kv_status move_if_live(kv_replica *r, kv_record *record, kv_position position) {
    found f;
    target t = target_of(r->store, record);
    kv_fault fault;
    if (record->kind >= KV_KIND_ENVELOPE) return KV_OK;
    kv_status status = store_find(r->store, &t, &f, &fault);
    if (status != KV_OK) return status == KV_ABSENT ? KV_OK : status;
    if (kv_loc_segment(f.location) != position.segment || kv_loc_offset(f.location) != position.offset) return KV_OK;
    record->options &= (uint16_t)~(KV_HAS_PREV_BALLOT | KV_HAS_REQUEST);
    return state_append(r, record);
}

bool mended_move(kv_replica *r, shard *s, uint64_t base) {
    kv_status status = KV_EOF;
    if (mutated(r, KV_MUTATE_MENDED_GOES)) return true;
    for (uint64_t version = s->log.base + 1; status == KV_EOF && version <= base && version <= s->mended; version++) {
        const version_entry *entry = log_at(&s->log, version);
        kv_position position = entry->position;
        kv_record record;
        uint32_t used;
        if (position.segment <= s->mended_segment) continue;
        while ((status = version_next(r, entry, &position.offset, &record, &used)) == KV_OK) {
            status = move_if_live(r, &record, (kv_position){.segment = position.segment, .offset = position.offset - used});
            if (status != KV_OK) break;
        }
    }
    if (status != KV_EOF && status != KV_ENOSPC) replica_fail(r, status);
    return status == KV_EOF;
}

/* Everybody is asked: who has let go of it, or never had it, says nothing. */
void lost_ask(kv_replica *r) {
    wire_out asked = {0};
    uint64_t count = 0;
    for (uint32_t i = 0; i < r->shard_count; i++) {
        const shard *s = &r->shards[i];
        for (uint64_t version = s->hole; version != 0 && version <= log_last(&s->log) && count < LOST_MAX; version++) {
            const version_entry *entry = log_at(&s->log, version);
            if (entry->record_count != 0) continue;
            wire_put_varint(&asked, s->number);
            wire_put_varint(&asked, version);
            wire_put64(&asked, entry->ballot);
            count++;
        }
    }
    for (uint32_t i = 0; count != 0 && i < r->peer_count; i++) {
        wire_out *out = &r->peers[i].out;
        if (!is_peer(r, i)) continue;
        wire_begin(out, WIRE_LOST);
        wire_put_varint(out, count);
        wire_put_bytes(out, asked.bytes, asked.size);
        wire_end(out);
    }
    if (asked.failed) replica_fail(r, KV_ENOMEM);
    wire_free(&asked);
}

void lost_receive(kv_replica *r, peer *p, wire_in *in) {
    uint64_t count = wire_take_varint(in), given = 0;
    wire_out *out = &p->out, records = {0};
    if (count > LOST_MAX) in->bad = true;
    for (uint64_t i = 0; i < count && !in->bad; i++) {
        uint64_t number = wire_take_varint(in), version = wire_take_varint(in), ballot = wire_take64(in);
        if (number >= r->shard_count) in->bad = true;
        if (in->bad) break;
        const shard *s = &r->shards[number];
        if (version <= s->log.base || version > log_last(&s->log) || records.size > FOUND_SIZE_MAX) continue;
        const version_entry *entry = log_at(&s->log, version);
        if (entry->ballot != ballot || entry->record_count == 0) continue;
        wire_put_varint(&records, number);
        wire_put_varint(&records, version);
        wire_put_version(r, &records, entry, 0);
        given++;
    }
    if (!in->bad && given != 0) {
        wire_begin(out, WIRE_FOUND);
        wire_put_varint(out, given);
        wire_put_bytes(out, records.bytes, records.size);
        wire_end(out);
    }
    if (records.failed) replica_fail(r, KV_ENOMEM);
    wire_free(&records);
}

void found_receive(kv_replica *r, wire_in *in) {
    uint64_t found_count = wire_take_varint(in);
    r->dropped = false;
    for (uint64_t i = 0; i < found_count && !in->bad && r->failed == KV_OK; i++) {
        uint64_t number = wire_take_varint(in), version = wire_take_varint(in), count = wire_take_varint(in), ballot = 0;
        uint8_t how = wire_take8(in);
        if (how & VERSION_BALLOT) ballot = wire_take64(in);
        if (number >= r->shard_count) in->bad = true;
        kv_record *records = version_parse(r, in, count);
        if (records == NULL || in->bad) return;
        shard *s = &r->shards[number];
        if (!hole_at(s, version, ballot)) continue;
        int64_t with = carried_take(r, s, records, count, version, how, false);
        if (with >= 0 && r->failed == KV_OK && !r->dropped) hole_fill(r, s, version, ballot, (size_t)with);
    }
}

/* --- the ledger --- */

/* A disk that is full now has room for it later. */
void ledger_write(kv_replica *r) {
    if (r->options.member_count == 1 || !r->begun) return; /* Nobody could give a record back; or no start is to move the end on. */
    while (r->failed == KV_OK && !r->full) {
        kv_status status = ledger_extend(&r->ledger, r->store->flow);
        if (status == KV_EOF) return;
        if (status == KV_OK) {
            kv_position position;
            uint32_t used;
            kv_record record = {.kind = KV_KIND_LEDGER, .version = kv_flow_sequence(r->store->flow) + 1, .options = KV_HAS_SEQUENCE,
                                .value = r->ledger.bytes.bytes, .value_size = (uint32_t)r->ledger.bytes.size};
            status = late_append(r->store, &record, 1, &position, &used);
            if (status == KV_ENOSPC) return;
        }
        if (status != KV_OK) {
            replica_fail(r, status);
            return;
        }
        ledger_wrote(&r->ledger);
    }
}
