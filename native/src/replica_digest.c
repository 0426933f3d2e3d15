/* replica_digest.c -- values by digest: what leaves with a record and what follows it, what is fetched, what is kept.
 *
 *   `version`   the record leaves its origin once the bytes are durable there (may_leave); the bytes follow on the bulk
 *               lane, which everybody pulls from anybody: FETCH, BYTES
 *   `data`      the bytes stand in front of the record, in FLOW and in PROMISE (carried), and without them nobody takes in
 *               the record. Of what is committed they may be gone, and the sender says so: whoever has a record of this
 *               kind without its bytes was told so, and what was told is true for ever
 *
 * Which bytes are here, and what names them, is content.h's. A replica tells others of bytes only once they are durable
 * here. It asks who holds what (ASK_HELD, HELD) as long as it keeps something behind a value; when a majority does, that may
 * go. Lost messages are asked for again; nothing here is voted on, and nothing is promised.
 *
 * Spec: docs/protocol/specification.md, section 7. Why bytes have names: docs/decisions/0028. */
#include <stdlib.h>

#include "replica_internal.h"

enum { CHUNK_SIZE_MAX = 256 << 10, NAMES_MAX = 256, LOST_ROUNDS = 4, SILENT_MAX = 2 };

/* --- beginning, and replay --- */

/* Names of this life lie above those of every life before. */
static uint64_t first_number(uint64_t incarnation) { return incarnation << 40; }

void digest_begin(kv_replica *r) {
    const kv_replica_options *o = &r->options;
    r->contents.keeps_nothing = mutated(r, KV_MUTATE_DROP_PREVIOUS);
    r->late.contents = &r->contents;
    r->late.inline_max = o->inline_max < 0 ? 0 : (uint32_t)o->inline_max;
    r->late.node = o->node;
}

void digest_end(kv_replica *r) {
    for (size_t i = 0; i < r->lacking.count; i++) ask_free(&LIST(lack, &r->lacking)[i].asked);
    list_free(&r->lacking);
    list_free(&r->asking);
    contents_free(&r->contents);
}

void digest_live(kv_replica *r) { r->late.number = first_number(r->incarnation); }

static bool meta_of(const kv_record *record, kv_meta *out) {
    return is_meta(record) && kv_meta_decode(record->value, record->value_size, out);
}

static content *content_of(const kv_replica *r, const kv_record *record) {
    kv_meta meta;
    return meta_of(record, &meta) ? contents_find(&r->contents, &meta) : NULL;
}

kv_status digest_replay(kv_replica *r, const kv_record *record, kv_position position, uint32_t used) {
    kv_meta meta;
    if (!kv_meta_decode(record->key, record->key_size, &meta) || record->shard >= r->shard_count) return KV_ECORRUPT;
    content *c = contents_note(&r->contents, &meta, record->shard, record->version);
    return c == NULL ? KV_ENOMEM : content_arrived(r->store, c, position, used);
}

void digest_note(kv_replica *r, const kv_record *record) {
    kv_meta meta;
    if (!meta_of(record, &meta)) return;
    if (contents_note(&r->contents, &meta, record->shard, record->version) == NULL) replica_fail(r, KV_ENOMEM);
}

/* It is not under way any more; what has come of it stays. */
static void pull_end(kv_replica *r, content *c) {
    if (!c->pull.active) return;
    c->pull.active = false;
    r->pulling_size -= c->meta.size;
    r->pulling_count--;
    if (c->pull.have != 0) return;
    free(c->pull.bytes);
    c->pull.bytes = NULL;
}

/* --- what goes with a record --- */

static bool is_durable(const kv_replica *r, const content *c) { return c->location != 0 && c->end <= r->durable; }

bool may_leave(const kv_replica *r, const version_entry *entry) {
    uint32_t at = entry->position.offset, used;
    kv_record record;
    kv_meta meta;
    if (KV_LIKELY(!entry->meta) || mutated(r, KV_MUTATE_META_EARLY)) return true;
    while (version_next(r, entry, &at, &record, &used) == KV_OK) {
        if (!meta_of(&record, &meta) || meta.data || meta.origin != r->options.node) continue;
        const content *c = contents_find(&r->contents, &meta);
        if (c != NULL && c->location != 0 && !is_durable(r, c)) return false;
    }
    return true;
}

static void content_put(kv_replica *r, wire_out *out, const content *c) {
    found there = {.location = c->location};
    kv_status status = store_peek(r->store, &there);
    if (status == KV_OK && !found_intact_once(r->store, &there)) status = KV_ECORRUPT;
    if (status != KV_OK) replica_fail(r, status == KV_ABSENT ? KV_ECORRUPT : status);
    else wire_put_record(out, &there.record);
}

uint64_t carried(kv_replica *r, wire_out *out, const version_entry *entry, uint64_t *size, bool *gone) {
    uint32_t at = entry->position.offset, used;
    uint64_t count = 0;
    kv_record record;
    kv_meta meta;
    *size = 0;
    *gone = false;
    if (KV_LIKELY(!entry->meta) || mutated(r, KV_MUTATE_META_AS_DATA)) return 0;
    while (version_next(r, entry, &at, &record, &used) == KV_OK) {
        if (!meta_of(&record, &meta) || !meta.data) continue;
        const content *c = contents_find(&r->contents, &meta);
        /* What is committed is pulled like everything else; a majority has it. */
        bool here = c != NULL && c->location != 0 && record.version > r->shards[record.shard].commit;
        *gone |= !here;
        if (!here) continue;
        count++;
        *size += c->used;
        if (out != NULL) content_put(r, out, c);
    }
    return count;
}

static uint64_t carried_count(const kv_record *records, uint64_t count) {
    uint64_t lead = 0;
    while (lead < count && records[lead].kind == KV_KIND_DATA) lead++;
    return lead;
}

/* A DATA record whose bytes are what its name says. */
static bool is_sound(const kv_replica *r, const kv_record *record, kv_meta *out) {
    if (!kv_meta_decode(record->key, record->key_size, out) || out->size != record->value_size) return false;
    return kv_xxh64(record->value, record->value_size, 0) == out->digest || mutated(r, KV_MUTATE_DIGEST_UNCHECKED);
}

/* Everything that has to be there is, or comes along. */
bool carried_sound(kv_replica *r, const kv_record *records, uint64_t count, uint8_t how) {
    uint64_t lead = carried_count(records, count);
    kv_meta meta, there;
    if ((how & VERSION_GONE) != 0 || mutated(r, KV_MUTATE_META_AS_DATA)) return true;
    for (uint64_t i = lead; i < count; i++) {
        if (!meta_of(&records[i], &meta) || !meta.data) continue;
        const content *c = contents_find(&r->contents, &meta);
        bool good = c != NULL && c->location != 0;
        for (uint64_t j = 0; j < lead && !good; j++)
            good = is_sound(r, &records[j], &there) && there.number == meta.number && there.origin == meta.origin &&
                   there.digest == meta.digest;
        if (!good) return false;
    }
    return true;
}

int64_t carried_take(kv_replica *r, const shard *s, kv_record *records, uint64_t count, uint64_t version, uint8_t how,
                     bool trusting) {
    uint64_t lead = carried_count(records, count);
    if (!trusting && !carried_sound(r, records, count, how)) return -1;
    for (uint64_t i = 0; i < lead && r->failed == KV_OK; i++) {
        kv_meta meta;
        if (!is_sound(r, &records[i], &meta)) continue;
        content *c = contents_find(&r->contents, &meta);
        if (c != NULL && c->location != 0) continue;
        if (c != NULL) pull_end(r, c);
        kv_status status = r->full ? KV_ENOSPC : late_write_content(r->store, &meta, s->number, version, records[i].value);
        if (status == KV_OK) continue;
        append_failed(r, status);
        r->dropped = true;
        break;
    }
    return (int64_t)lead;
}

/* --- the bulk lane: asking --- */

/* Members or not: who was removed may have the only bytes of something, and who learns has them as everybody has. But for those
 * of which the operator says that they will never be back. */
static uint32_t others(const kv_replica *r) {
    uint32_t bits = 0;
    for (uint32_t i = 0; i < r->peer_count; i++) bits |= (uint32_t)(is_peer(r, i) && !r->peers[i].gone) << i;
    return bits;
}

/* The next one to ask: somebody who is known to hold it, else who wrote it, else whoever comes next. */
static uint32_t peer_choose(const kv_replica *r, const content *c) {
    uint32_t may = others(r) & ~c->pull.refused;
    int origin = peer_of(r, c->meta.origin);
    if (may == 0) may = others(r);
    if ((may & c->holders) != 0) may &= c->holders;
    else if (!c->pull.active && origin >= 0 && (may >> origin & 1)) return (uint32_t)origin;
    uint32_t from = c->pull.active ? c->pull.peer + 1 : 0;
    for (uint32_t i = 0; i < r->peer_count; i++) {
        uint32_t index = (from + i) % r->peer_count;
        if (may >> index & 1) return index;
    }
    return r->self;
}

static void pull_ask(kv_replica *r, content *c) {
    content **one = list_add(&r->asking, sizeof *one);
    if (one == NULL) replica_fail(r, KV_ENOMEM);
    else *one = c;
    c->pull.asked = r->now;
}

static void pull_begin(kv_replica *r, content *c) {
    if (c->pull.active || c->location != 0 || others(r) == 0) return;
    if (c->pull.bytes == NULL) c->pull.bytes = malloc(c->meta.size + 1);
    if (c->pull.bytes == NULL) {
        replica_fail(r, KV_ENOMEM);
        return;
    }
    c->pull.refused = c->pull.silent = 0;
    c->pull.peer = peer_choose(r, c);
    c->pull.active = true;
    r->pulling_size += c->meta.size;
    r->pulling_count++;
    pull_ask(r, c);
}

/* From whoever is next. When there is nobody left, it is the turn of other contents first. */
static void pull_again(kv_replica *r, content *c) {
    if ((others(r) & ~c->pull.refused) != 0) {
        c->pull.peer = peer_choose(r, c);
        pull_ask(r, c);
        return;
    }
    pull_end(r, c);
    content_requeue(&r->contents, CONTENT_MISSING, c);
}

static void pull_refused(kv_replica *r, content *c) {
    c->pull.refused |= 1u << c->pull.peer;
    pull_again(r, c);
}

/* Nothing has come. Who has said nothing each time is as good as one who has not got it. */
static void pull_silent(kv_replica *r, content *c) {
    if (++c->pull.silent > SILENT_MAX * (uint32_t)__builtin_popcount(others(r))) c->pull.refused = others(r);
    pull_again(r, c);
}

static bool has_room(const kv_replica *r, const content *c) {
    if (r->pulling_count == 0) return true;
    return r->pulling_count < NAMES_MAX && r->pulling_size + c->meta.size <= r->options.fetch_size_max;
}

/* As much as there is room for. Those that nobody has are behind the others; they wait for a while. */
static void pulls_begin(kv_replica *r) {
    content *c = r->contents.lists[CONTENT_MISSING].first;
    for (int looks = 0; c != NULL && looks < 2 * NAMES_MAX && r->failed == KV_OK; looks++) {
        content *next = c->links[CONTENT_MISSING].next;
        bool waits = c->pull.refused != 0 && r->now - c->pull.asked <= LOST_ROUNDS * r->options.retransmit_ticks;
        if (!c->pull.active && !waits) {
            if (!has_room(r, c)) return;
            pull_begin(r, c);
        }
        c = next;
    }
}

static void pulls_repeat(kv_replica *r) {
    uint32_t left = r->pulling_count;
    content *c = r->contents.lists[CONTENT_MISSING].first;
    while (c != NULL && left != 0) {
        content *next = c->links[CONTENT_MISSING].next;
        left -= c->pull.active;
        if (c->pull.active && r->now - c->pull.asked > r->options.retransmit_ticks) pull_silent(r, c);
        c = next;
    }
}

void content_want(kv_replica *r, const kv_meta *meta) {
    content *c = contents_find(&r->contents, meta);
    if (c != NULL) pull_begin(r, c);
}

void kv_replica_fetch(kv_replica *r) { content_want(r, &r->late.lacking); }

static void name_put(wire_out *out, const content *c) {
    uint8_t bytes[KV_META_SIZE];
    kv_meta_encode(&c->meta, bytes);
    wire_put_bytes(out, bytes, sizeof bytes);
}

static void peer_ask(kv_replica *r, uint32_t index) {
    content **all = LIST(content *, &r->asking);
    wire_out *out = &r->peers[index].out;
    uint64_t count = 0;
    for (size_t i = 0; i < r->asking.count; i++) count += all[i]->pull.active && all[i]->pull.peer == index;
    if (count == 0) return;
    wire_begin(out, WIRE_FETCH);
    wire_put_varint(out, count);
    for (size_t i = 0; i < r->asking.count; i++) {
        const content *c = all[i];
        if (!c->pull.active || c->pull.peer != index) continue;
        uint64_t left = c->meta.size - c->pull.have, max = r->options.fetch_size_max;
        if (max > CHUNK_SIZE_MAX) max = CHUNK_SIZE_MAX;
        name_put(out, c);
        wire_put_varint(out, c->pull.have);
        wire_put_varint(out, left < max ? left : max);
    }
    wire_end(out);
}

/* --- the bulk lane: answering, and taking in --- */

static content *name_take(kv_replica *r, wire_in *in, const uint8_t **bytes) {
    kv_meta meta;
    *bytes = wire_take_bytes(in, KV_META_SIZE);
    if (*bytes == NULL || !kv_meta_decode(*bytes, KV_META_SIZE, &meta)) {
        in->bad = true;
        return NULL;
    }
    return contents_find(&r->contents, &meta);
}

static void held_put(wire_out *out, const uint8_t *name, bool held) {
    wire_begin(out, WIRE_HELD);
    wire_put_varint(out, 1);
    wire_put_bytes(out, name, KV_META_SIZE);
    wire_put8(out, held);
    wire_end(out);
}

static void bytes_put(kv_replica *r, wire_out *out, const content *c, uint64_t offset, uint64_t size) {
    found there = {.location = c->location};
    kv_status status = store_peek(r->store, &there);
    if (status == KV_OK && !found_intact_once(r->store, &there)) status = KV_ECORRUPT;
    if (status != KV_OK) {
        replica_fail(r, status == KV_ABSENT ? KV_ECORRUPT : status);
        return;
    }
    wire_begin(out, WIRE_BYTES);
    name_put(out, c);
    wire_put_varint(out, offset);
    wire_put_varint(out, size);
    wire_put_bytes(out, there.record.value + offset, size);
    wire_end(out);
}

/* Bytes are shown to others only once they are durable. */
void fetch_receive(kv_replica *r, peer *p, wire_in *in) {
    uint64_t count = wire_take_varint(in), told = 0;
    for (uint64_t i = 0; i < count && !in->bad; i++) {
        const uint8_t *name;
        content *c = name_take(r, in, &name);
        uint64_t offset = wire_take_varint(in), size = wire_take_varint(in);
        if (in->bad) return;
        if (c == NULL || !is_durable(r, c)) {
            held_put(&p->out, name, false);
            continue;
        }
        if (offset > c->meta.size) continue;
        if (size > c->meta.size - offset) size = c->meta.size - offset;
        if (size > CHUNK_SIZE_MAX) size = CHUNK_SIZE_MAX;
        if ((told += size) <= r->options.window_size_max || told == size) bytes_put(r, &p->out, c, offset, size);
    }
}

static void pull_done(kv_replica *r, content *c) {
    bool sound = kv_xxh64(c->pull.bytes, c->meta.size, 0) == c->meta.digest || mutated(r, KV_MUTATE_DIGEST_UNCHECKED);
    if (!sound) { /* Somebody on the way changed them. */
        r->counts.spoilt++;
        c->pull.have = 0;
        pull_refused(r, c);
        return;
    }
    pull_end(r, c);
    kv_status status = r->full ? KV_ENOSPC : late_write_content(r->store, &c->meta, c->shard, c->version, c->pull.bytes);
    if (status == KV_OK) {
        r->counts.fetched++;
        return;
    }
    append_failed(r, status);
    c->pull.have = 0; /* Later, when there is room. */
    content_requeue(&r->contents, CONTENT_MISSING, c);
}

/* Of what was asked for, the part that comes next: from anybody. */
void bytes_receive(kv_replica *r, peer *p, wire_in *in) {
    const uint8_t *name;
    content *c = name_take(r, in, &name);
    uint64_t offset = wire_take_varint(in), size = wire_take_varint(in);
    const uint8_t *bytes = wire_take_bytes(in, size);
    (void)p;
    if (in->bad || c == NULL || !c->pull.active || offset != c->pull.have || size > c->meta.size - offset) return;
    if (size == 0 && c->meta.size != 0) return;
    memcpy(c->pull.bytes + offset, bytes, size);
    c->pull.have += size;
    c->pull.silent = 0;
    if (c->pull.have == c->meta.size) pull_done(r, c);
    else pull_ask(r, c);
}

/* Its place may be another one's soon. What was asked of it is asked of somebody else. */
void digest_parted(kv_replica *r, uint32_t index) {
    contents *t = &r->contents;
    for (uint64_t i = 0; i < t->capacity; i++) {
        content *c = t->slots[i];
        if (c == NULL) continue;
        c->holders &= ~(1u << index);
        c->pull.refused &= ~(1u << index);
        if (c->pull.active && c->pull.peer == index) pull_again(r, c);
    }
}

/* --- who holds what --- */

void ask_held_receive(kv_replica *r, peer *p, wire_in *in) {
    uint64_t count = wire_take_varint(in);
    wire_out *out = &p->out;
    if (count > NAMES_MAX) in->bad = true;
    if (in->bad || !r->votes) return;
    wire_begin(out, WIRE_HELD);
    wire_put_varint(out, count);
    for (uint64_t i = 0; i < count && !in->bad; i++) {
        const uint8_t *name;
        const content *c = name_take(r, in, &name);
        if (in->bad) break;
        wire_put_bytes(out, name, KV_META_SIZE);
        wire_put8(out, c != NULL && is_durable(r, c));
    }
    if (in->bad) wire_give_up(out);
    else wire_end(out);
}

static void settle_if_held(kv_replica *r, content *c) {
    uint32_t holders = c->holders | (is_durable(r, c) && r->votes ? 1u << r->self : 0);
    if (c->held || !is_majority(&r->shards[c->shard].voters, holders)) return;
    r->counts.settled++;
    content_settle(r->store, c);
}

void held_receive(kv_replica *r, peer *p, wire_in *in) {
    uint64_t count = wire_take_varint(in);
    uint32_t index = (uint32_t)(p - r->peers);
    if (count > NAMES_MAX) in->bad = true;
    for (uint64_t i = 0; i < count && !in->bad; i++) {
        const uint8_t *name;
        content *c = name_take(r, in, &name);
        bool held = wire_take8(in) != 0;
        if (in->bad || c == NULL) continue;
        if (held) {
            c->holders |= 1u << index;
            settle_if_held(r, c);
        } else if (c->pull.active && c->pull.peer == index) {
            pull_refused(r, c);
        }
    }
}

static void held_ask(kv_replica *r, uint32_t index) {
    wire_out *out = &r->peers[index].out;
    uint64_t count = 0;
    const content *first = r->contents.lists[CONTENT_UNSETTLED].first;
    int looks = 0;
    for (const content *c = first; c != NULL && looks < NAMES_MAX; c = c->links[CONTENT_UNSETTLED].next, looks++)
        count += (c->holders >> index & 1) == 0;
    if (count == 0) return;
    wire_begin(out, WIRE_ASK_HELD);
    wire_put_varint(out, count);
    looks = 0;
    for (const content *c = first; c != NULL && looks < NAMES_MAX; c = c->links[CONTENT_UNSETTLED].next, looks++)
        if ((c->holders >> index & 1) == 0) name_put(out, c);
    wire_end(out);
}

/* Some of those behind which something is kept; the next time it is the others' turn. */
static void holders_ask(kv_replica *r) {
    contents *t = &r->contents;
    for (uint32_t i = 0; i < r->peer_count; i++)
        if (is_peer(r, i)) held_ask(r, i);
    uint64_t count = t->lists[CONTENT_UNSETTLED].count;
    for (uint64_t i = 0; i < NAMES_MAX && i < count; i++) {
        content *c = t->lists[CONTENT_UNSETTLED].first;
        content_requeue(t, CONTENT_UNSETTLED, c);
        settle_if_held(r, c);
    }
}

/* --- what nobody needs --- */

static void tail_mark(kv_replica *r, const shard *s, bool mark) {
    for (uint64_t version = s->applied + 1; version <= log_last(&s->log); version++) {
        const version_entry *entry = log_at(&s->log, version);
        uint32_t at = entry->position.offset, used;
        kv_record record;
        while (entry->meta && version_next(r, entry, &at, &record, &used) == KV_OK) {
            content *c = content_of(r, &record);
            if (c != NULL) c->marked = mark;
        }
    }
}

/* Before its version is behind us, the record may come back: it stands in somebody's tail, and the bytes nowhere else. */
static bool is_waste(const kv_replica *r, const content *c) {
    const shard *s = &r->shards[c->shard];
    bool decided = s->applied >= c->version || mutated(r, KV_MUTATE_COLLECT_EARLY);
    return !c->marked && decided && !s->installing.active;
}

static void drop(kv_replica *r, content *c) {
    content **asking = LIST(content *, &r->asking);
    size_t left = 0, count = r->asking.count;
    for (size_t i = 0; i < count; i++)
        if (asking[i] != c) asking[left++] = asking[i];
    r->asking.count = left;
    pull_end(r, c);
    content_drop(r->store, c);
    r->counts.collected++;
}

static void collect(kv_replica *r) {
    contents *t = &r->contents;
    if (t->lists[CONTENT_LOOSE].count == 0) return;
    for (uint32_t i = 0; i < r->shard_count; i++) tail_mark(r, &r->shards[i], true);
    content *c = t->lists[CONTENT_LOOSE].first;
    while (c != NULL) {
        content *next = c->links[CONTENT_LOOSE].next;
        if (is_waste(r, c)) drop(r, c);
        c = next;
    }
    for (uint32_t i = 0; i < r->shard_count; i++) tail_mark(r, &r->shards[i], false);
}

static bool is_retired(const kv_replica *r, const content *c) {
    return c->table_id != 0 && big_set_has(&r->store->retired_tables, c->table_id);
}

/* Rows of a table that was dropped stay in the index until a sweep; nobody wants their bytes, nor what is kept behind them,
 * of which whoever got a snapshot since has never heard. */
static void retired_leave(kv_replica *r) {
    contents *t = &r->contents;
    content *next;
    if (r->store->retired_tables.count == 0) return;
    for (content *c = t->lists[CONTENT_MISSING].first; c != NULL; c = next) {
        next = c->links[CONTENT_MISSING].next;
        if (!is_retired(r, c)) continue;
        pull_end(r, c);
        content_leave(t, CONTENT_MISSING, c);
    }
    for (content *c = t->lists[CONTENT_UNSETTLED].first; c != NULL; c = next) {
        next = c->links[CONTENT_UNSETTLED].next;
        if (c->links[CONTENT_UNSETTLED].in && is_retired(r, c)) content_settle(r->store, c);
    }
}

/* A part of the log, or a snapshot, may bring the end of a table before the table: what it took out of the list belongs there. */
void table_back(kv_replica *r, uint64_t table_id) {
    contents *t = &r->contents;
    if (!big_set_has(&r->store->retired_tables, table_id)) return;
    big_set_remove(&r->store->retired_tables, table_id);
    for (uint64_t i = 0; i < t->capacity; i++) {
        content *c = t->slots[i];
        if (c != NULL && c->table_id == table_id && c->location == 0) content_requeue(t, CONTENT_MISSING, c);
    }
}

/* --- the front of the log --- */

static kv_status content_move(kv_replica *r, content *c) {
    found there = {.location = c->location};
    kv_position position;
    uint32_t used;
    kv_status status = store_peek(r->store, &there);
    if (status == KV_OK && !found_intact_once(r->store, &there)) status = KV_ECORRUPT;
    if (status == KV_OK) status = r->full ? KV_ENOSPC : late_append(r->store, &there.record, 1, &position, &used);
    if (status == KV_OK) status = content_moved(r->store, c, position, used);
    if (status != KV_OK) append_failed(r, status == KV_ABSENT ? KV_ECORRUPT : status);
    return status;
}

kv_status contents_move(kv_replica *r, uint32_t segment) {
    enum { MOVE_SIZE_MAX = 1 << 20 };
    const contents *t = &r->contents;
    uint64_t moved = 0;
    bool waits = false;
    for (uint64_t i = 0; i < t->capacity; i++) {
        content *c = t->slots[i];
        if (c == NULL) continue;
        waits |= c->behind != 0 && kv_loc_segment(c->behind) <= segment;
        if (c->location == 0 || kv_loc_segment(c->location) > segment) continue;
        if (moved >= MOVE_SIZE_MAX) return KV_MORE;
        kv_status status = content_move(r, c);
        if (status != KV_OK) return status;
        moved += c->used;
    }
    return waits ? KV_EWAIT : KV_OK;
}

/* --- time, and each flush --- */

void digest_tick(kv_replica *r, bool heartbeat) {
    r->contents.now = r->now;
    if (r->contents.count == 0) return;
    pulls_repeat(r);
    if (!heartbeat) return;
    collect(r);
    retired_leave(r);
    holders_ask(r);
}

void digest_pack(kv_replica *r) {
    pulls_begin(r);
    for (uint32_t i = 0; r->asking.count != 0 && i < r->peer_count; i++)
        if (is_peer(r, i)) peer_ask(r, i);
    list_clear(&r->asking);
}

/* --- reads that wait for bytes --- */

void lack_add(kv_replica *r, const shard *s, const kv_ask *ask) {
    r->counts.lacking++;
    content_want(r, &r->late.lacking);
    lack *one = list_add(&r->lacking, sizeof *one);
    if (one == NULL || ask_copy(ask, &one->asked) != KV_OK) {
        replica_fail(r, KV_ENOMEM);
        return;
    }
    one->shard = s->number;
    one->since = r->now;
    one->meta = r->late.lacking;
}

/* Nobody who can be reached has it, or it takes too long. */
static bool is_hopeless(const kv_replica *r, const lack *one) {
    const content *c = contents_find(&r->contents, &one->meta);
    bool refused = c != NULL && !c->pull.active && (others(r) & ~c->pull.refused) == 0;
    return refused || r->now - one->since > r->options.read_ticks;
}

/* What it is answered from may be newer than its position by now, and is committed all the same. */
void lacks_answer(kv_replica *r) {
    list all = r->lacking;
    if (all.count == 0) return;
    r->lacking = (list){0};
    for (size_t i = 0; i < all.count; i++) {
        lack *one = &LIST(lack, &all)[i];
        const shard *s = &r->shards[one->shard];
        const content *c = contents_find(&r->contents, &one->meta);
        bool there = (c == NULL || c->location != 0) && shard_is_whole(r, s), hopeless = is_hopeless(r, one);
        lack *kept = there || hopeless ? NULL : list_add(&r->lacking, sizeof *kept);
        if (kept != NULL) {
            *kept = *one;
            continue;
        }
        if (!there && !hopeless) replica_fail(r, KV_ENOMEM);
        else if (!shard_is_whole(r, s)) reply_simple(r, one->asked.ask.token, KV_ANSWER_RETRY);
        else answer_ask(r, &one->asked.ask, s, !hopeless);
        ask_free(&one->asked);
    }
    list_free(&all);
}

/* --- forget --- */

/* What stands in the name's slot, if it is by digest, and decided. KV_EWAIT: it is not decided yet. */
static kv_status forget_find(kv_replica *r, const target *t, found *out, content **of) {
    kv_store *store = r->store;
    kv_fault *fault = &kv_caller_answer(r->caller)->fault;
    found shown;
    kv_status status = store_find(store, t, out, fault);
    if (status != KV_OK) return status;
    r->late.evaluating = false;
    status = store_find(store, t, &shown, fault);
    r->late.evaluating = true;
    if (status == KV_ABSENT || (status == KV_OK && shown.location != out->location)) return KV_EWAIT;
    if (status != KV_OK) return status;
    if (!found_intact(out)) return KV_ECORRUPT;
    *of = found_tombstone(out) ? NULL : content_of(r, &out->record);
    return *of == NULL ? KV_ABSENT : KV_OK;
}

/* FORGET, which says what was given up for what, and what is fallen back to, under one version. */
static kv_status forget_append(kv_replica *r, const found *given_up, const kv_record *kept, const found *head) {
    kv_late *late = &r->late;
    kv_store *store = r->store;
    uint8_t versions[16];
    kv_position position;
    uint32_t size;
    kv_fault *fault = &kv_caller_answer(r->caller)->fault;
    kv_store64(versions, given_up->record.version);
    kv_store64(versions + 8, kept->version);
    kv_record records[2] = {{.kind = KV_KIND_FORGET, .options = kept->options & KV_HAS_TABLE, .key = kept->key,
                             .key_size = kept->key_size, .value = versions, .value_size = sizeof versions},
                            {.kind = kept->kind, .flags = kept->flags & KV_FLAG_META,
                             .options = kept->options & (KV_HAS_TABLE | KV_HAS_EXPIRY), .expires_ms = kept->expires_ms,
                             .key = kept->key, .key_size = kept->key_size, .value = kept->value,
                             .value_size = kept->value_size}};
    for (int i = 0; i < 2; i++) {
        late_stamp(late, &records[i], i == 0);
        records[i].version = late->version;
        if (head == NULL) continue;
        records[i].table_id = head->record.table_id;
        records[i].row_count = head->record.row_count;
        records[i].next_row = head->record.next_row;
    }
    late->result = (int64_t)kept->version;
    records[0].request.result = late->result;
    late->metas = is_meta(kept);
    kv_status status = late_append(store, records, 2, &position, &size);
    if (status != KV_OK) return status;
    late_note(late, position, size, 2);
    uint32_t first = (uint32_t)kv_record_size(&records[0]);
    kv_position second = {.segment = position.segment, .offset = position.offset + first};
    return store_show(store, &records[1], second, size - first, fault);
}

/* r->late is evaluating. FAILED: KV_ABSENT, it has no value by digest; KV_ECONFLICT, its bytes are here; KV_ELACKING, nothing is
 * kept behind it. */
kv_result evaluate_forget(kv_replica *r, const kv_ask *a) {
    kv_fault *fault = &kv_caller_answer(r->caller)->fault;
    target t;
    table_state table = {0};
    found given_up, kept;
    content *c = NULL;
    kv_status status = name_check(a->table, a->table_size, a->key_size);
    if (status != KV_OK) return status;
    if (a->table == NULL) {
        t = target_key(r->store, a->key, a->key_size);
    } else {
        status = store_find_table(r->caller, a->table, a->table_size, &table);
        if (status == KV_OK && table.id == 0) status = KV_ABSENT;
        if (status != KV_OK) return kv_ending(status);
        t = target_row(r->store, table.id, a->key, a->key_size);
    }
    status = forget_find(r, &t, &given_up, &c);
    if (status != KV_OK) return kv_ending(status);
    kv_caller_answer(r->caller)->version = given_up.record.version;
    if (c->location != 0) return KV_ECONFLICT;
    content_want(r, &c->meta);
    if (c->behind == 0) return KV_ELACKING;
    kept.location = c->behind;
    status = store_peek(r->store, &kept);
    if (status != KV_OK || !found_intact(&kept)) return fault_corrupt(fault, c->behind, "what is kept is damaged");
    r->counts.forgets++;
    return forget_append(r, &given_up, &kept.record, a->table == NULL ? NULL : &table.head);
}

/* --- looking --- */

void kv_replica_lag_of(const kv_replica *r, kv_replica_lag *out) {
    const contents *t = &r->contents;
    *out = (kv_replica_lag){.missing_count = t->lists[CONTENT_MISSING].count,
                            .content_count = t->count, .kept_count = t->lists[CONTENT_UNSETTLED].count};
    for (const content *c = t->lists[CONTENT_MISSING].first; c != NULL; c = c->links[CONTENT_MISSING].next) {
        out->missing_size += c->meta.size;
        if (r->now - c->since > out->missing_ticks) out->missing_ticks = r->now - c->since;
    }
}

kv_status kv_replica_content(const kv_replica *r, uint32_t number, uint64_t version, uint32_t nth, int32_t *here) {
    kv_record record;
    kv_status status = kv_replica_record((kv_replica *)r, number, version, nth, &record);
    if (status != KV_OK) return status;
    if (!is_meta(&record)) return KV_ABSENT;
    const content *c = content_of(r, &record);
    *here = c != NULL && c->location != 0;
    return KV_OK;
}
