/* replica_state.c -- what a replica keeps about a shard besides records, so that the log may go up to there; and how what is
 * left of the log is replayed.
 *
 * The oldest segments of the log go, one behind the other, once nothing in them counts: no slot of the index points there,
 * no record there is undecided or kept for peers, and what else they said of a shard is said again by a STATE behind them:
 *
 *   offset size field
 *        0    8 incarnation     the highest that was used
 *        8    2 node            whose disk it is
 *       10    8 promised
 *       18    8 applied
 *       26    8 its ballot      of the record at that version
 *       34    8 whole from      see replica_snapshot.c
 *       42    8 lanes until     records up to there have told their lanes already; see replica_snapshot.c
 *       50    8 newest shown    the highest version that a snapshot has brought, or ended
 *       58    1 installing      a snapshot is on its way: what is here of the shard is not a state
 *       59    . members, lanes as in SNAPSHOT_END: who had a vote, and what the lanes were told, as of `applied`
 *
 * A STATE is true at its place. So it is written again only when its segment is to go, or one with a record that comes behind
 * what it says is applied: `shard_needs`.
 *
 * Because what goes is the front of the log, what is left is a true end of it: of a record that is there, everything that
 * came later is there too, whatever cut it included. A replay therefore puts records at their versions as it always did, and
 * needs no list of ballots to tell which ones counted. It differs in this alone: the first records of a shard that it meets
 * may follow others that are gone. Then the version log begins there, and is marked with a `gap`, until a STATE says that
 * everything before was applied. A gap that stays to the end is damage.
 *
 * With a checkpoint the replay begins at the oldest segment that `shard_needs`, and shows nothing of what lies before the
 * checkpoint's position. */
#include <stdio.h>
#include <stdlib.h>

#include "replica_internal.h"

/* --- writing --- */

static uint64_t applied_ballot(const shard *s) {
    uint64_t ballot = 0;
    log_ballot_at(&s->log, s->applied, &ballot);
    return ballot;
}

kv_status state_log(kv_replica *r, shard *s) {
    static const sessions nobody;
    wire_out out = {0};
    wire_put64(&out, r->incarnation);
    wire_put8(&out, (uint8_t)r->options.node);
    wire_put8(&out, (uint8_t)(r->options.node >> 8));
    wire_put64(&out, s->promised);
    wire_put64(&out, s->applied);
    wire_put64(&out, applied_ballot(s));
    wire_put64(&out, s->whole_from);
    wire_put64(&out, s->lanes_until);
    wire_put64(&out, s->newest_shown);
    wire_put8(&out, s->installing.active);
    wire_put_members(&out, &s->members);
    lanes_put(&out, mutated(r, KV_MUTATE_STATE_NO_SESSIONS) ? &nobody : &s->sessions);
    kv_position position;
    kv_status status = KV_ENOMEM;
    if (out.failed) replica_fail(r, status);
    else status = log_try(r, KV_KIND_STATE, s->number, 0, out.bytes, out.size, &position);
    wire_free(&out);
    if (status != KV_OK) return status;
    s->state_at = position;
    s->state_applied = s->applied;
    s->state_needs = UINT32_MAX;
    r->counts.states++;
    return KV_OK;
}

/* --- what has to stay --- */

uint32_t version_segment(const shard *s, uint64_t version) {
    uint32_t segment = log_at(&s->log, version)->position.segment;
    return version <= s->mended && s->mended_segment < segment ? s->mended_segment : segment;
}

/* Records up to `base` are let go of: the first of those that come behind the newest STATE is still wanted by a replay. */
static void needs_note(shard *s, uint64_t base) {
    uint64_t first = (s->state_applied > s->log.base ? s->state_applied : s->log.base) + 1;
    if (first > base || first > log_last(&s->log)) return;
    uint32_t segment = version_segment(s, first);
    if (segment < s->state_needs) s->state_needs = segment;
}

void shard_let_go(shard *s, uint64_t base) {
    if (base <= s->log.base) return;
    needs_note(s, base);
    log_let_go(&s->log, base);
}

void shard_restart(shard *s, uint64_t base, uint64_t ballot) {
    needs_note(s, log_last(&s->log));
    log_restart(&s->log, base, ballot);
}

uint32_t shard_needs(const shard *s) {
    uint32_t oldest = s->state_at.segment; /* 0 without one: everything. */
    if (s->state_needs < oldest) oldest = s->state_needs;
    uint32_t first = s->log.count == 0 ? UINT32_MAX : version_segment(s, s->log.base + 1);
    return first < oldest ? first : oldest;
}

/* --- replaying --- */

/* Segments have gone, or the replay begins behind some. */
static kv_status is_trimmed(const kv_replica *r, bool *out) {
    kv_segment_info *segments;
    size_t count;
    kv_status status = kv_flow_segments(r->store->flow, &segments, &count);
    if (status != KV_OK) return status;
    *out = segments[0].id != 1 || (r->late.image != 0 && r->late.start.segment != 1);
    free(segments);
    return KV_OK;
}

void replay_at(kv_replica *r, kv_position position) {
    if (!r->replaying.begun) {
        kv_status status = is_trimmed(r, &r->replaying.trimmed);
        if (status != KV_OK) replica_fail(r, status);
        for (uint32_t i = 0; i < r->shard_count; i++) r->shards[i].gap = r->replaying.trimmed;
    }
    r->replaying.begun = true;
    r->replaying.hidden = kv_position_order(position) < r->late.image;
}

static void entry_extend(shard *s, kv_position position, uint32_t used, bool meta) {
    version_entry *last = log_at(&s->log, log_last(&s->log));
    last->size = position.offset + used - last->position.offset;
    last->record_count++;
    last->meta |= meta;
}

/* The records of a batch come one by one, and follow one another. */
static bool goes_on(const shard *s, const kv_record *record, kv_position position) {
    if (s->log.count == 0 || log_last(&s->log) != record->version) return false;
    const version_entry *last = log_at(&s->log, record->version);
    return last->ballot == record->ballot && last->position.segment == position.segment &&
           last->position.offset + last->size == position.offset;
}

/* Behind records that are gone, or in the place of one of them. A log that is not empty is the end of the true one, so nothing
 * can follow it after a gap. */
static kv_status log_begin(kv_replica *r, shard *s, bool jumps, uint64_t base, uint64_t ballot) {
    if (!r->replaying.trimmed || (jumps && s->log.count != 0)) return KV_ECORRUPT;
    log_restart(&s->log, base, ballot);
    configs_cut(r, s, base);
    hole_look(s);
    if (!s->gap) s->gap_from = s->applied;
    s->gap = s->log.base > s->gap_from; /* A tail that is gone may have been cut: then nothing is missing. */
    return KV_OK;
}

static kv_status version_put(kv_replica *r, shard *s, uint64_t version, const version_entry *entry) {
    log_cut(&s->log, version - 1);
    configs_cut(r, s, version - 1);
    kv_status status = log_push(&s->log, entry);
    hole_look(s);
    return status;
}

static bool fits(const shard *s, uint64_t version) { return version > s->log.base && version <= log_last(&s->log) + 1; }

kv_status version_replay(kv_replica *r, shard *s, const kv_record *record, kv_position position, uint32_t used) {
    if (record->ballot > s->promised) s->promised = record->ballot;
    kv_status status = replay_fills(r, s, record, position, used);
    if (status != KV_ABSENT) return status;
    if (goes_on(s, record, position)) {
        entry_extend(s, position, used, is_meta(record));
        return KV_OK;
    }
    bool jumps = record->version > log_last(&s->log) + 1;
    if (jumps && mutated(r, KV_MUTATE_DAMAGED_VOTES)) return KV_OK;
    if (record->version <= s->applied) return KV_ECORRUPT;
    status = fits(s, record->version) ? KV_OK : log_begin(r, s, jumps, record->version - 1, record->prev_ballot);
    if (status != KV_OK) return status;
    version_entry entry = {.ballot = record->ballot, .position = position, .size = used, .record_count = 1,
                           .meta = is_meta(record)};
    status = version_put(r, s, record->version, &entry);
    if (status == KV_OK) config_note(r, s, record);
    return status == KV_OK ? r->failed : status;
}

/* Where the log begins with it, nobody knows what it followed: so it counts as gone with what was before it, and what it said of
 * the state is lost. */
kv_status hole_replay(kv_replica *r, shard *s, uint64_t version, uint64_t ballot, kv_position position) {
    if (version <= s->applied) return KV_ECORRUPT;
    if (!fits(s, version)) {
        state_lose(s);
        return log_begin(r, s, version > log_last(&s->log) + 1, version, ballot);
    }
    if (s->hole == 0 || version < s->hole) s->hole = version;
    return version_put(r, s, version, &(version_entry){.ballot = ballot, .position = position});
}

/* The version log as replayed so far, beside the STATE: it goes that far, or begins behind it, where records are gone. */
static kv_status state_fits(shard *s, uint64_t applied, uint64_t ballot, bool trimmed) {
    uint64_t mine;
    if (s->log.count == 0 && trimmed) log_restart(&s->log, applied, ballot);
    bool behind = s->log.base > applied;
    s->gap_from = applied;
    if (behind) return s->gap ? KV_OK : KV_ECORRUPT;
    if (!log_ballot_at(&s->log, applied, &mine) || mine != ballot) return KV_ECORRUPT;
    s->gap = false;
    return KV_OK;
}

typedef struct state {
    uint64_t incarnation, promised, applied, ballot, whole_from, lanes_until, newest_shown;
    uint16_t node;
    bool in_pieces;
    members members;
    wire_in lanes; /* empty: they are lost */
} state;

static bool state_parse(const kv_record *record, state *out) {
    wire_in in = {.at = record->value, .end = record->value + record->value_size};
    *out = (state){.incarnation = wire_take64(&in)};
    out->node = wire_take8(&in);
    out->node |= (uint16_t)(wire_take8(&in) << 8);
    out->promised = wire_take64(&in);
    out->applied = wire_take64(&in);
    out->ballot = wire_take64(&in);
    out->whole_from = wire_take64(&in);
    out->lanes_until = wire_take64(&in);
    out->newest_shown = wire_take64(&in);
    out->in_pieces = wire_take8(&in) != 0;
    wire_take_members(&in, &out->members);
    out->lanes = in;
    return !in.bad;
}

/* Behind a hole nothing was applied again, but what is here of the state, lanes and members is as of the STATE: as between the
 * end of a snapshot and what it is whole from. */
static void state_set(kv_replica *r, shard *s, const state *said) {
    members_set(r, s, mutated(r, KV_MUTATE_STATE_NO_MEMBERS) ? &s->members : &said->members, said->applied, true);
    bool hole = s->hole != 0 && s->hole <= said->applied;
    s->applied = hole ? s->hole - 1 : said->applied;
    s->whole_from = hole && said->applied > said->whole_from ? said->applied : said->whole_from;
    s->lanes_until = hole && said->applied > said->lanes_until ? said->applied : said->lanes_until;
    if (said->newest_shown > s->newest_shown) s->newest_shown = said->newest_shown;
    s->commit_logged = s->commit;
    s->state_applied = said->applied;
    s->state_needs = UINT32_MAX;
}

kv_status state_replay(kv_replica *r, const kv_record *record, kv_position position) {
    shard *s = &r->shards[record->shard];
    state said;
    if (!state_parse(record, &said)) return KV_ECORRUPT;
    if (said.node != r->options.node) return KV_EUSAGE;
    if (said.incarnation > r->incarnation) r->incarnation = said.incarnation;
    if (said.promised > s->promised) s->promised = said.promised;
    if (said.applied < s->applied) return KV_OK; /* Written beside a hole that is none any more. */
    if (said.applied > s->commit) s->commit = said.applied;
    if (s->gap) s->installing.active = said.in_pieces || s->installing.lost || s->installing.needed;
    if (!s->installing.active) shard_apply(r, s);
    if (r->failed != KV_OK) return r->failed;
    bool lanes_lost = said.lanes.at == said.lanes.end, known = !s->gap && s->applied == said.applied;
    kv_status status = state_fits(s, said.applied, said.ballot, r->replaying.trimmed);
    if (status != KV_OK) return KV_ECORRUPT;
    if (lanes_lost && known) return KV_OK;
    if (lanes_lost) state_lose(s);
    else if (!lanes_take(&said.lanes, &s->sessions)) return KV_ECORRUPT;
    state_set(r, s, &said);
    s->state_at = position;
    return KV_OK;
}

/* What was found so far came from a checkpoint that is of no use. */
void replay_restart(kv_replica *r) {
    for (uint32_t i = 0; i < r->shard_count; i++) {
        shard *s = &r->shards[i];
        sessions kept = s->sessions;
        list configs = s->configs;
        log_free(&s->log);
        installing_clear(s);
        sessions_clear(&kept);
        *s = (shard){.number = (uint16_t)i, .sessions = kept, .configs = configs, .state_needs = UINT32_MAX};
        members_first(r, s);
    }
    late_free(&r->late);
    contents_free(&r->contents);
    digest_begin(r);
    r->incarnation = 0;
    r->ledger.from = (kv_position){0};
    r->failed = KV_OK;
    r->replaying = (replaying){.on = true};
}

kv_status replay_end(const kv_replica *r, kv_fault *fault) {
    for (uint32_t i = 0; i < r->shard_count; i++) {
        const shard *s = &r->shards[i];
        if (!s->gap && !(r->replaying.trimmed && s->state_at.segment == 0)) continue;
        fault->status = KV_ECORRUPT;
        snprintf(fault->what, sizeof fault->what, "the log is shorter than what it says of shard %u", i);
        return KV_ECORRUPT;
    }
    return KV_OK;
}
