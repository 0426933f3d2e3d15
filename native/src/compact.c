/* compact.c -- what is live in an old segment is written anew, in order of names; what is empty goes.
 *
 *   walk     without the lock: the victim's records, and of those that the index points at from here, the checksum
 *   sort     by name, so that neighbours lie side by side afterwards
 *   move     some at a time: copied without the lock, then, under it, written again where the index still points here
 *   remove   by a later checkpoint that found the segment empty (store_remove_segments)
 *
 * A record that moves stays what it was: kind, version, value. It uses no number, makes no undo entry (snapshots find it
 * at its new place by its version) and creates no name (order has that already; a replay asks the index). One that has
 * expired is deleted instead, by an ordinary delete, so that the change feed and waiters hear of it.
 *
 * Arrival order stays right for a replay: a record moves only while it is the newest of its name, under the lock that
 * every newer one needs. Of a table's rows an old one may come behind newer ones: store_put_head() compares versions.
 *
 * Nothing is lost whatever ends a compaction: what was moved is in the log twice, and the segment goes only when nothing
 * points into it, the copies are durable, and no checkpoint is used any more that points there. */
#include <errno.h>
#include <stdlib.h>

#include "kv/large.h"
#include "late.h"

enum {
    WALK_SIZE = 1 << 18,   /* bytes of a segment that one step walks over */
    BLOCK_COUNT = 32,      /* records looked up together */
    MOVE_COUNT = 32,       /* records moved in one hold of the writer lock, */
    MOVE_SIZE = 1 << 16,   /* unless these many bytes come first: some 20 us */
    MOVES_A_STEP = 64,     /* holds */
    WORD_COUNT = 3,
    AHEAD = 8,
};

/* A record that was live when the walk came by. */
typedef struct survivor {
    uint64_t hash;
    uint64_t location;
    uint64_t words[WORD_COUNT]; /* the beginning of its name, as in runs, the first byte the highest */
} survivor;

/* One that is to be moved now: its bytes are a copy. */
typedef struct moving {
    uint64_t hash;
    uint64_t location;
    kv_record record;
    uint32_t used;
    size_t at; /* in the copies */
} moving;

enum stage { WALKING, SORTING, MOVING, DONE };

struct kv_compaction {
    write_op base; /* first: store_hold() hands it to the step */
    kv_store *store;
    kv_caller *c;
    uint32_t segment;
    uint32_t end;    /* behind its last record */
    enum stage stage;
    uint32_t offset; /* the walk's */
    survivor *survivors;
    size_t count, capacity;
    size_t next;     /* the first that was not moved yet */
    moving moves[MOVE_COUNT];
    size_t move_count;
    uint8_t *copies;
    size_t copies_size, copies_capacity;
    uint64_t suspect; /* a record whose checksum is wrong and that no slot was found for; 0: none */
    kv_compacted done;
};

/* --- beginning and ending --- */

/* Writer lock. */
static kv_status find_victim(kv_compaction *k) {
    kv_store *store = k->store;
    kv_segment_info *segments;
    size_t count;
    kv_status status = store_writable(store);
    if (status == KV_OK && kv_flow_poison(store->flow, NULL) != KV_OK) status = KV_EPOISONED;
    if (status == KV_OK) status = kv_flow_segments(store->flow, &segments, &count);
    if (status != KV_OK) return status;
    status = KV_EUSAGE;
    for (size_t i = 0; i + 1 < count; i++) { /* The newest is never compacted: it would be removed by nobody. */
        if (segments[i].id != k->segment || !segments[i].sealed) continue;
        k->end = segments[i].end;
        status = KV_OK;
    }
    free(segments);
    return status;
}

kv_status kv_compaction_begin(kv_store *store, uint32_t segment, kv_compaction **out) {
    kv_status status = store_usable(store);
    if (status != KV_OK) return status;
    kv_compaction *k = calloc(1, sizeof *k);
    if (k == NULL) return KV_ENOMEM;
    k->store = store;
    k->segment = segment;
    k->offset = KV_SEGMENT_HEADER_SIZE;
    status = kv_caller_new(store, &k->c);
    if (status == KV_OK) {
        pthread_mutex_lock(&store->write_lock);
        status = find_victim(k);
        pthread_mutex_unlock(&store->write_lock);
    }
    if (status == KV_OK) *out = k;
    else kv_compaction_free(k);
    return status;
}

void kv_compaction_free(kv_compaction *k) {
    if (k == NULL) return;
    kv_caller_free(k->c);
    kv_large_free(k->survivors);
    kv_large_free(k->copies);
    free(k);
}

const kv_compacted *kv_compaction_look(kv_compaction *k) {
    k->done.fault = k->c->answer.fault;
    return &k->done;
}

/* --- walking --- */

/* What stands before the key in the name that order has for a record. A floor stands before the rows of its table. */
static size_t name_head(const kv_record *record, uint8_t head[TABLE_NAME_SIZE]) {
    bool key = record->kind == KV_KIND_PUT || record->kind == KV_KIND_DELETE || record->kind == KV_KIND_TABLE_NEW ||
               record->kind == KV_KIND_TABLE_DROP;
    head[0] = KV_SPACE_KEYS;
    if (key) return 1;
    table_name(KV_SPACE_ROWS, record->table_id, head);
    return TABLE_NAME_SIZE;
}

static void name_words(const kv_record *record, uint64_t words[WORD_COUNT]) {
    uint8_t bytes[TABLE_NAME_SIZE + WORD_COUNT * 8] = {0};
    size_t head = name_head(record, bytes), size = sizeof bytes - head;
    if (record->kind == KV_KIND_TABLE_FLOOR) size = 0;
    if (record->key_size < size) size = record->key_size;
    if (size != 0) memcpy(bytes + head, record->key, size);
    for (size_t i = 0; i < WORD_COUNT; i++) words[i] = __builtin_bswap64(kv_load64(bytes + 8 * i));
}

static kv_status survivor_add(kv_compaction *k, const survivor *one) {
    if (k->count == k->capacity) {
        size_t capacity = k->capacity == 0 ? 1024 : 2 * k->capacity;
        survivor *larger = kv_large_resize(k->survivors, capacity * sizeof *larger);
        if (larger == NULL) return KV_ENOMEM;
        k->survivors = larger;
        k->capacity = capacity;
    }
    k->survivors[k->count++] = *one;
    return KV_OK;
}

/* A record of the victim, and the slot that would point at it. */
typedef struct walked {
    kv_record record;
    const uint8_t *bytes;
    uint64_t place;
    uint64_t hash;
    uint64_t location;
} walked;

static bool has_slot(const kv_record *record) {
    return record->kind >= KV_KIND_PUT && record->kind <= KV_KIND_TABLE_FLOOR;
}

/* The next records that may have a slot. KV_EOF: they were the last. */
static kv_status walk_block(kv_compaction *k, walked block[BLOCK_COUNT], size_t *count) {
    kv_store *store = k->store;
    *count = 0;
    while (*count < BLOCK_COUNT) {
        uint64_t size;
        uint32_t used;
        walked *one = &block[*count];
        if (k->offset >= k->end) return KV_EOF;
        one->bytes = kv_flow_at(store->flow, k->segment, k->offset, &size);
        if (one->bytes == NULL) return KV_EOF; /* Emptied by others, and removed. */
        one->place = kv_place(kv_flow_salt(store->flow), k->segment, k->offset);
        kv_position position = {.segment = k->segment, .offset = k->offset};
        if (size > k->end - k->offset) size = k->end - k->offset;
        if (kv_record_peek(one->bytes, size, one->place, &one->record, &used) != KV_OK) {
            if (store->late != NULL) { /* An open that met it went on: if nothing lives there, so does this. */
                k->suspect = store_location(&(kv_record){.kind = KV_KIND_PUT}, position);
                k->offset += KV_RECORD_ALIGN;
                continue;
            }
            return fault_corrupt(&k->c->answer.fault, kv_loc_make(k->segment, k->offset, 0), "the head of the record is damaged");
        }
        k->offset += used; /* Of an envelope: into it. */
        if (!has_slot(&one->record)) continue;
        one->location = store_location(&one->record, position);
        one->hash = target_of(store, &one->record).hash;
        kv_index_prefetch(store->index, one->hash);
        ++*count;
    }
    return KV_OK;
}

static kv_status keep_if_live(kv_compaction *k, const walked *one) {
    kv_store *store = k->store;
    kv_probe probe;
    bool live = store_probe(store, one->hash, one->location, &probe);
    if (!live && probe.status != KV_OK) return probe.status;
    if (!kv_record_intact(one->bytes, one->place, &one->record)) {
        /* Dead, or a live one under a name that it no longer has: what is left at the end tells. */
        if (!live) k->suspect = one->location;
        return live ? fault_corrupt(&k->c->answer.fault, one->location, "the record's checksum is wrong") : KV_OK;
    }
    if (!live) return KV_OK;
    survivor kept = {.hash = one->hash, .location = one->location};
    name_words(&one->record, kept.words);
    return survivor_add(k, &kept);
}

static kv_status walk(kv_compaction *k) {
    uint32_t until = k->end - k->offset > WALK_SIZE ? k->offset + WALK_SIZE : k->end;
    while (k->offset < until) {
        walked block[BLOCK_COUNT];
        size_t count;
        kv_status walked_to = walk_block(k, block, &count);
        if (walked_to != KV_OK && walked_to != KV_EOF) return walked_to;
        for (size_t i = 0; i < count; i++) {
            kv_status status = keep_if_live(k, &block[i]);
            if (status != KV_OK) return status;
        }
        if (walked_to == KV_EOF) break;
    }
    if (k->offset >= until && until < k->end) return KV_OK;
    k->stage = SORTING;
    return KV_OK;
}

/* --- sorting --- */

/* What could not be read now is met again by whoever moves it. */
static int by_whole_name(const kv_compaction *k, const survivor *left, const survivor *right) {
    const survivor *both[2] = {left, right};
    kv_record records[2];
    uint32_t used;
    for (int i = 0; i < 2; i++) {
        uint64_t size;
        uint32_t offset = kv_loc_offset(both[i]->location);
        const uint8_t *bytes = kv_flow_at(k->store->flow, k->segment, offset, &size);
        uint64_t place = kv_place(kv_flow_salt(k->store->flow), k->segment, offset);
        if (bytes == NULL || kv_record_peek(bytes, size, place, &records[i], &used) != KV_OK) return 0;
    }
    return kv_name_compare(records[0].key, records[0].key_size, records[1].key, records[1].key_size);
}

static int by_name(const kv_compaction *k, const survivor *a, const survivor *b) {
    for (int i = 0; i < WORD_COUNT; i++)
        if (a->words[i] != b->words[i]) return a->words[i] < b->words[i] ? -1 : 1;
    return by_whole_name(k, a, b);
}

/* `scratch`: room for half of them. qsort_r would take as much from malloc, and leave it there. */
static void merge_sort(const kv_compaction *k, survivor *items, size_t count, survivor *scratch) {
    size_t half = count / 2;
    if (count < 2) return;
    merge_sort(k, items, half, scratch);
    merge_sort(k, items + half, count - half, scratch);
    if (by_name(k, &items[half - 1], &items[half]) <= 0) return;
    memcpy(scratch, items, half * sizeof *items);
    for (size_t left = 0, right = half, at = 0; left < half; at++) {
        bool first = right == count || by_name(k, &scratch[left], &items[right]) <= 0;
        items[at] = first ? scratch[left++] : items[right++];
    }
}

static kv_status sort(kv_compaction *k) {
    survivor *scratch = kv_large_new(k->count / 2 * sizeof *scratch);
    if (scratch == NULL) return KV_ENOMEM;
    merge_sort(k, k->survivors, k->count, scratch);
    kv_large_free(scratch);
    k->stage = MOVING;
    return KV_OK;
}

/* --- copying --- */

static kv_status copies_room(kv_compaction *k, size_t size) {
    if (size <= k->copies_capacity) return KV_OK;
    size_t capacity = size > 2 * MOVE_SIZE ? size : 2 * MOVE_SIZE;
    uint8_t *larger = kv_large_resize(k->copies, capacity);
    if (larger == NULL) return KV_ENOMEM;
    k->copies = larger;
    k->copies_capacity = capacity;
    return KV_OK;
}

static kv_status copy_one(kv_compaction *k, const survivor *one, const uint8_t *bytes, uint64_t size) {
    moving *m = &k->moves[k->move_count];
    *m = (moving){.hash = one->hash, .location = one->location, .at = k->copies_size};
    uint64_t place = kv_place(kv_flow_salt(k->store->flow), k->segment, kv_loc_offset(one->location));
    if (kv_record_decode(bytes, size, place, &m->record, &m->used) != KV_OK)
        return fault_corrupt(&k->c->answer.fault, one->location, "the record's checksum is wrong");
    kv_status status = copies_room(k, k->copies_size + m->used);
    if (status != KV_OK) return status;
    memcpy(k->copies + k->copies_size, bytes, m->used);
    k->copies_size += m->used;
    k->move_count++;
    return KV_OK;
}

/* The next survivors, copied: under the lock no page of an old segment is waited for. */
static kv_status copy_block(kv_compaction *k) {
    kv_store *store = k->store;
    k->move_count = k->copies_size = 0;
    for (; k->next < k->count && k->move_count < MOVE_COUNT && k->copies_size < MOVE_SIZE; k->next++) {
        const survivor *one = &k->survivors[k->next];
        uint64_t size;
        if (k->next + AHEAD < k->count) store_prefetch(store, one[AHEAD].location);
        kv_index_prefetch(store->index, one->hash);
        const uint8_t *bytes = kv_flow_at(store->flow, k->segment, kv_loc_offset(one->location), &size);
        if (bytes == NULL) break; /* Removed: nothing points here any more. */
        kv_status status = copy_one(k, one, bytes, size);
        if (status != KV_OK) return status;
    }
    kv_status status = KV_OK;
    for (size_t i = 0; status == KV_OK && i < k->move_count; i++) {
        /* Once more from the copy, which is not to be where it was before it grew. */
        moving *m = &k->moves[i];
        uint64_t place = kv_place(kv_flow_salt(store->flow), k->segment, kv_loc_offset(m->location));
        status = kv_record_peek(k->copies + m->at, m->used, place, &m->record, &m->used);
    }
    return status;
}

/* --- moving: writer lock --- */

/* The same record, at the end of the log. Of a version record without what made it one: a replay is to show it, and not to
 * put it at its version. */
static kv_status append_again(kv_store *store, kv_record *record, kv_position *position, uint32_t *used) {
    uint8_t *bytes;
    record->flags = (uint8_t)((record->flags & ~KV_FLAG_CREATED) | KV_FLAG_MOVED);
    record->options &= (uint16_t)~(KV_HAS_PREV_BALLOT | KV_HAS_REQUEST);
    *used = (uint32_t)kv_record_size(record);
    kv_status status = kv_flow_reserve(store->flow, *used, 0, &bytes, position);
    if (status == KV_OK) status = counters_room(&store->counters, position->segment);
    if (status != KV_OK) return status;
    kv_record_encode(record, kv_place(kv_flow_salt(store->flow), position->segment, position->offset), bytes);
    return kv_flow_commit(store->flow, *position, *used);
}

/* KV_OK, *out true: the table's head is this record. What a look at it may load is loaded then. */
static kv_status is_head(kv_store *store, const moving *m, kv_probe *probe, bool *out) {
    *out = false;
    if (!makes_head(&m->record)) return KV_OK;
    target t = target_table(store, m->record.table_id, KV_LOC_HEAD);
    uint64_t at = kv_loc_make(kv_loc_segment(m->location), kv_loc_offset(m->location), KV_LOC_HEAD);
    *out = store_probe(store, t.hash, at, probe);
    return *out ? KV_OK : probe->status;
}

static kv_status move_one(kv_compaction *k, moving *m, const kv_probe *slot) {
    kv_store *store = k->store;
    kv_position position;
    kv_probe head;
    bool head_too;
    uint32_t used;
    kv_status status = is_head(store, m, &head, &head_too);
    if (status == KV_OK) status = append_again(store, &m->record, &position, &used);
    if (status == KV_OK) status = kv_index_replace(store->index, slot, store_location(&m->record, position));
    if (status == KV_OK && head_too) {
        status = is_head(store, m, &head, &head_too); /* The probe before is spent. */
        uint64_t at = kv_loc_make(position.segment, position.offset, KV_LOC_HEAD);
        if (status == KV_OK) status = kv_index_replace(store->index, &head, at);
    }
    if (status != KV_OK) return status;
    count_live(&store->counters, k->segment, -(int64_t)m->used);
    count_live(&store->counters, position.segment, used);
    k->done.moved_count++;
    k->done.moved_size += used;
    return KV_OK;
}

static kv_status delete_one(kv_compaction *k, const moving *m) {
    bool deleted;
    target t = target_of(k->store, &m->record);
    kv_status status = store_expire(k->c, &t, &deleted);
    k->done.expired_count += deleted;
    return status;
}

/* Rows and floors of tables that were dropped are left to the sweep. */
static kv_status move_if_live(kv_compaction *k, moving *m) {
    kv_store *store = k->store;
    kv_probe probe;
    if (!store_probe(store, m->hash, m->location, &probe)) return probe.status;
    bool part = (kv_loc_flags(m->location) & (KV_LOC_ROW | KV_LOC_FLOOR)) != 0;
    if (part && big_set_has(&store->retired_tables, m->record.table_id)) return KV_OK;
    bool ends = m->record.expires_ms != 0 && !(kv_loc_flags(m->location) & KV_LOC_TOMBSTONE);
    if (ends && (int64_t)m->record.expires_ms <= store_judge_ms(store)) return delete_one(k, m);
    return move_one(k, m, &probe);
}

static kv_status step_move(kv_caller *c, write_op *w) {
    (void)c;
    kv_compaction *k = (kv_compaction *)w;
    kv_status status = KV_OK;
    for (size_t i = 0; status == KV_OK && i < k->move_count; i++) status = move_if_live(k, &k->moves[i]);
    store_note_content(k->store);
    return status;
}

/* The time that expiries are judged by, and how what is left is to be understood. */
static kv_status step_end(kv_caller *c, write_op *w) {
    kv_compaction *k = (kv_compaction *)w;
    kv_store *store = k->store;
    const counters *n = &store->counters;
    if (n->clock_location != 0 && kv_loc_segment(n->clock_location) == k->segment) {
        uint8_t value[8];
        kv_position position;
        kv_store64(value, (uint64_t)atomic_load(&store->clock_ms));
        kv_record clock = {.kind = KV_KIND_CLOCK, .version = kv_flow_sequence(store->flow), .value = value,
                           .value_size = sizeof value};
        uint32_t used;
        kv_status status = append_again(store, &clock, &position, &used);
        if (status == KV_OK) status = store_show_clock(store, &clock, position, used);
        if (status != KV_OK) return status;
    }
    bool left = k->segment < n->segment_capacity && n->segment_live[k->segment] != 0;
    if (left && k->suspect != 0 && c->store->late == NULL) return fault_corrupt(&c->answer.fault, k->suspect, "the record's checksum is wrong");
    return KV_OK;
}

static kv_status hold(kv_compaction *k, write_step step) {
    kv_store *store = k->store;
    /* Not while writers wait: the next segment is made before it is needed. */
    if (kv_flow_wants_prepare(store->flow)) {
        kv_status status = kv_flow_prepare(store->flow, 0);
        if (status != KV_OK) return status;
    }
    k->base.result = 0;
    kv_result result = store_hold(k->c, step, &k->base, 0);
    return result >= 0 ? KV_OK : (kv_status)result;
}

/* --- steps --- */

static kv_status look(void *context) {
    kv_compaction *k = context;
    return k->stage == WALKING ? walk(k) : k->stage == SORTING ? sort(k) : copy_block(k);
}

static kv_status move(kv_compaction *k) {
    for (int i = 0; i < MOVES_A_STEP; i++) {
        kv_status status = store_look(k->c, look, k);
        if (status != KV_OK) return status;
        if (k->move_count == 0) {
            k->stage = DONE;
            return hold(k, step_end);
        }
        status = hold(k, step_move);
        if (status != KV_OK) return status;
    }
    return KV_OK;
}

kv_status kv_compaction_step(kv_compaction *k) {
    if (*k->store->alive == 0) return KV_EFORKED;
    if (k->stage == DONE) return KV_EOF;
    k->c->answer.fault.status = KV_OK;
    kv_status status = k->stage == MOVING ? move(k) : store_look(k->c, look, k);
    if (status != KV_OK) {
        k->stage = DONE;
        if (k->c->answer.fault.status == KV_OK) caller_fail(k->c, status, "the segment could not be compacted");
        return status;
    }
    return k->stage == DONE ? KV_EOF : KV_MORE;
}

/* --- removing --- */

/* Writer lock. What a backup copies, or a snapshot reads, stays. */
static bool is_wanted(kv_store *store, uint32_t id) { return store->pin_count != 0 || kv_undo_pins(store->undo, id) != 0; }

/* Writer lock. Which segments below the position were empty as of it and are wanted by nobody. For free(). Of a replica's
 * store only the oldest ones, without a gap: what its log says is told by what comes later, and so all of that has to be
 * there (docs/decisions/0027). */
static kv_status list_empty(kv_store *store, const counters *as_of, kv_position position, uint32_t **out, size_t *count) {
    kv_segment_info *segments;
    size_t all;
    *count = 0;
    *out = NULL;
    kv_status status = kv_flow_segments(store->flow, &segments, &all);
    if (status != KV_OK) return status;
    *out = malloc((all + 1) * sizeof **out);
    for (size_t i = 0; *out != NULL && i + 1 < all; i++) {
        uint32_t id = segments[i].id;
        bool live = id < as_of->segment_capacity && as_of->segment_live[id] != 0;
        bool goes = id < position.segment && segments[i].sealed && !live && !is_wanted(store, id);
        if (store->late != NULL && (!goes || id >= store->late->kept_from)) break;
        if (goes) (*out)[(*count)++] = id;
    }
    free(segments);
    return *out == NULL ? KV_ENOMEM : KV_OK;
}

bool store_has_empty(kv_store *store, const counters *as_of, kv_position position) {
    uint32_t *ids;
    size_t count;
    kv_status status = list_empty(store, as_of, position, &ids, &count);
    free(ids);
    return status == KV_OK && count != 0;
}

/* Nothing comes to point into a segment that is empty: a slot gets a new record's place, the undo table what a slot
 * held. Who found a place there before is inside the epoch, and is waited for: a slot's, a created name's in a view
 * before the run, or an undo entry's of a snapshot that has ended. */
kv_status store_remove_segments(kv_store *store, const counters *as_of, kv_position position) {
    uint32_t *ids;
    size_t count;
    pthread_mutex_lock(&store->removal_lock);
    pthread_mutex_lock(&store->write_lock);
    kv_status status = list_empty(store, as_of, position, &ids, &count);
    pthread_mutex_unlock(&store->write_lock);
    if (status == KV_OK && count != 0) {
        kv_epoch_wait(store->epoch);
        status = kv_flow_remove(store->flow, &store->write_lock, ids, count, position);
    }
    pthread_mutex_unlock(&store->removal_lock);
    pthread_mutex_lock(&store->write_lock);
    if (status == KV_OK) store->removed_count += count;
    kv_epoch_reclaim(store->epoch);
    pthread_mutex_unlock(&store->write_lock);
    free(ids);
    return status;
}

/* --- looking --- */

static kv_status segments_locked(kv_store *store, kv_segment_stats **out, size_t *count) {
    kv_segment_info *segments;
    const counters *n = &store->counters;
    kv_status status = store_usable(store);
    if (status == KV_OK) status = kv_flow_segments(store->flow, &segments, count);
    if (status != KV_OK) return status;
    *out = calloc(*count + 1, sizeof **out);
    for (size_t i = 0; *out != NULL && i < *count; i++) {
        const kv_segment_info *one = &segments[i];
        uint64_t live = one->id < n->segment_capacity ? n->segment_live[one->id] : 0;
        bool sealed = one->sealed && i + 1 < *count;
        (*out)[i] = (kv_segment_stats){.id = one->id,
                                       .sealed = sealed,
                                       .removable = sealed && live == 0 && !is_wanted(store, one->id),
                                       .size = one->end - KV_SEGMENT_HEADER_SIZE,
                                       .live_size = live};
    }
    free(segments);
    return *out == NULL ? KV_ENOMEM : KV_OK;
}

kv_status kv_store_segments(kv_store *store, kv_segment_stats **out, size_t *count) {
    if (*store->alive == 0) return KV_EFORKED;
    pthread_mutex_lock(&store->write_lock);
    kv_status status = segments_locked(store, out, count);
    pthread_mutex_unlock(&store->write_lock);
    return status;
}

void kv_segments_free(kv_segment_stats *segments) { free(segments); }
