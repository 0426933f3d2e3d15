/* scan.c -- keys, tables and rows in order, and the changes of a table, a page at a time.
 *
 * The order lists candidates; the index says which of them are live, and where their values are. A page holds the epoch
 * and a cursor; between pages nothing is held, so a scan may stop, for ever, without costing anybody anything. The next
 * page begins behind the last key looked at: what is present throughout appears exactly once, whatever was sorted,
 * merged or published meanwhile.
 *
 * As in many.c candidates are handled in blocks, and what the next step needs is prefetched for a whole block. A page
 * ends after so many entries or bytes, or after so many candidates that were dead: no reader stays inside for long. */
#include <stdio.h>
#include <stdlib.h>

#include "late.h"

enum {
    PAGE_SIZE_MAX = 1 << 16,    /* a page is full when it has so many bytes; the entry that makes it so is in it. Small
                                 * enough to be in the cache still when it is cut up */
    CHANGES_SIZE_MAX = 1 << 20, /* the same of changes, whose pages end with a version only */
    LOOK_COUNT_MAX = 1 << 14,   /* candidates looked at for one page */
    BOUND_SIZE_MAX = KV_KEY_SIZE_MAX + 1, /* of a longer bound the first bytes say as much: keys are shorter */
    CHANGE_HEAD_SIZE = TABLE_NAME_SIZE + 8,
    KEPT_SIZE_MAX = 1 << 18,
};

/* --- candidates --- */

static kv_status candidates_room(candidates *block, size_t size) {
    if (size <= block->capacity) return KV_OK;
    size_t capacity = size * 2 > KV_PAGE_SIZE ? size * 2 : KV_PAGE_SIZE;
    uint8_t *larger = realloc(block->bytes, capacity);
    if (larger == NULL) return KV_ENOMEM;
    block->bytes = larger;
    block->capacity = capacity;
    return KV_OK;
}

/* The next `count` names of a cursor, copied, because the cursor moves on. KV_EOF: they are the last. */
static kv_status candidates_copy(kv_order_cursor *cursor, candidates *block, size_t count) {
    size_t used = 0;
    kv_status status = KV_OK;
    for (block->count = 0; block->count < count; block->count++) {
        const uint8_t *name;
        size_t size;
        status = kv_order_next(cursor, &name, &size);
        if (status == KV_OK) status = candidates_room(block, used + size);
        if (status != KV_OK) break;
        memcpy(block->bytes + used, name, size);
        block->at[block->count].name_size = (uint32_t)size;
        block->at[block->count].seen = kv_order_seen(cursor);
        used += size;
    }
    const uint8_t *name = block->bytes; /* Only now: it may have moved while it grew. */
    for (size_t i = 0; i < block->count; i++) {
        block->at[i].name = name;
        name += block->at[i].name_size;
    }
    return status;
}

void table_name(unsigned space, uint64_t table_id, uint8_t name[TABLE_NAME_SIZE]) {
    name[0] = (uint8_t)space;
    kv_store64(name + 1, __builtin_bswap64(table_id));
}

static uint64_t name_number(const uint8_t *name) { return __builtin_bswap64(kv_load64(name)); }

/* What a name is about; false: no name of ours. In place, because a target is looked at again at once. */
static bool candidate_parse(const kv_store *store, candidate *one) {
    const uint8_t *name = one->name, *end = name + one->name_size;
    target *t = &one->at;
    one->space = name[0];
    one->version = 0;
    if (KV_LIKELY(one->space == KV_SPACE_KEYS)) {
        t->key = name + 1;
        t->key_size = one->name_size - 1;
        t->table_id = 0;
        t->hash = store_hash(store, t->key, t->key_size);
        t->class = 0;
        return true;
    }
    size_t head = one->space == KV_SPACE_ROWS ? TABLE_NAME_SIZE : CHANGE_HEAD_SIZE;
    if (one->space > KV_SPACE_CHANGES || one->name_size < head) return false;
    if (one->space == KV_SPACE_CHANGES) one->version = name_number(name + TABLE_NAME_SIZE);
    *t = target_row(store, name_number(name + 1), name + head, (size_t)(end - name) - head);
    return true;
}

/* The record that the name was read in is the one the index has: it is near, and intact. */
static bool seen_there(const candidate *one) {
    return one->seen != 0 && kv_loc_segment(one->seen) == kv_loc_segment(one->location) &&
           kv_loc_offset(one->seen) == kv_loc_offset(one->location);
}

kv_status candidates_take(kv_store *store, kv_order_cursor *cursor, size_t count, candidates *block) {
    KV_ASSERT(count <= CANDIDATE_COUNT_MAX);
    kv_probe probe;
    kv_status status = candidates_copy(cursor, block, count);
    if (status != KV_OK && status != KV_EOF) return status;
    for (size_t i = 0; i < block->count; i++) {
        if (!candidate_parse(store, &block->at[i])) return KV_ECORRUPT;
        kv_index_prefetch(store->index, block->at[i].at.hash);
    }
    for (size_t i = 0; i < block->count; i++) {
        candidate *one = &block->at[i];
        one->location = kv_index_first(store->index, one->at.hash, &probe);
        if (!seen_there(one)) store_prefetch(store, one->location);
    }
    return status;
}

kv_status order_fault(kv_store *store, const kv_order_cursor *cursor, kv_fault *fault) {
    uint64_t run, location = kv_order_damage(cursor, &run);
    if (location != 0) return fault_corrupt(fault, location, "the record's checksum is wrong");
    atomic_store(&store->index_damaged, true);
    fault->status = KV_ECORRUPT;
    fault->position = (kv_position){0};
    snprintf(fault->what, sizeof fault->what, "runs/%016llx.run is damaged; the runs are rebuilt at the next open",
             (unsigned long long)run);
    return KV_ECORRUPT;
}

/* --- one page --- */

struct scan_scratch {
    kv_order_cursor *cursor;
    candidates block;
    uint8_t *bound;
    uint32_t *sizes;
    size_t size_capacity;
};

typedef struct paging {
    kv_caller *caller;
    const kv_range *range;
    scan_scratch *scratch;
    kv_page *page;
    gathering gathered;
    uint64_t looked_count;
    unsigned space;
    uint64_t table_id;  /* of the rows */
    size_t head_size;   /* of the names: what comes before key or row */
} paging;

void scan_free(scan_scratch *scratch) {
    if (scratch == NULL) return;
    kv_order_cursor_free(scratch->cursor);
    free(scratch->block.bytes);
    free(scratch->bound);
    free(scratch->sizes);
    free(scratch);
}

static kv_status scratch_get(kv_caller *c, scan_scratch **out) {
    if (c->scan == NULL) {
        scan_scratch *scratch = calloc(1, sizeof *scratch);
        if (scratch == NULL) return KV_ENOMEM;
        scratch->bound = malloc(CHANGE_HEAD_SIZE + BOUND_SIZE_MAX);
        kv_status status = kv_order_cursor_new(&scratch->cursor);
        if (status != KV_OK || scratch->bound == NULL) {
            scan_free(scratch);
            return KV_ENOMEM;
        }
        c->scan = scratch;
    }
    *out = c->scan;
    return KV_OK;
}

static kv_status sizes_room(scan_scratch *scratch, size_t count) {
    if (2 * count <= scratch->size_capacity) return KV_OK;
    size_t capacity = 4 * count + 64;
    uint32_t *larger = realloc(scratch->sizes, capacity * sizeof *larger);
    if (larger == NULL) return KV_ENOMEM;
    scratch->sizes = larger;
    scratch->size_capacity = capacity;
    return KV_OK;
}

/* Which names the range is of. */
static kv_status page_space(paging *p) {
    const kv_range *range = p->range;
    table_state table;
    p->space = KV_SPACE_KEYS;
    p->head_size = 1;
    p->gathered.skip_tables = true;
    if (range->what != KV_SCAN_ROWS) return KV_OK;
    kv_status status = reader_find_table(p->caller, range->table, range->table_size, &table);
    p->space = KV_SPACE_ROWS;
    p->head_size = TABLE_NAME_SIZE;
    p->table_id = table.id;
    return status;
}

static kv_status page_seek(paging *p) {
    const kv_range *range = p->range;
    kv_store *store = p->caller->store;
    uint8_t *bound = p->scratch->bound;
    const uint8_t *key = range->reverse ? range->stop : range->start;
    size_t size = range->reverse ? range->stop_size : range->start_size;
    if (size > BOUND_SIZE_MAX) size = BOUND_SIZE_MAX;
    if (key == NULL) size = 0;
    /* Backwards from the end: below everything that comes behind the space, or the table. */
    bool behind = range->reverse && key == NULL;
    if (p->space == KV_SPACE_KEYS) bound[0] = behind ? KV_SPACE_KEYS + 1 : KV_SPACE_KEYS;
    else table_name(p->space, p->table_id + behind, bound);
    if (size != 0) memcpy(bound + p->head_size, key, size);
    enum kv_seek how = range->reverse ? KV_SEEK_LT : KV_SEEK_GE;
    return kv_order_seek(store->order, store->flow, p->scratch->cursor, how, bound, p->head_size + size);
}

/* Behind the bound that the direction leads to. */
static bool candidate_outside(const paging *p, const candidate *one) {
    const kv_range *range = p->range;
    if (one->space != p->space || one->at.table_id != p->table_id) return true;
    if (range->reverse)
        return range->start != NULL &&
               kv_name_compare(one->at.key, one->at.key_size, range->start, range->start_size) < 0;
    return range->stop != NULL && kv_name_compare(one->at.key, one->at.key_size, range->stop, range->stop_size) >= 0;
}

/* Whether the name is live and of the kind that is asked for; no byte of a value is read. */
static kv_status look_up(paging *p, const target *t, int64_t *size) {
    found f;
    *size = -1;
    kv_status status = reader_find(p->caller, t, &f);
    if (status != KV_OK) return status == KV_ABSENT ? KV_OK : status;
    if (found_table(&f) != (p->range->what == KV_SCAN_TABLES)) return KV_OK;
    if (reader_alive(p->caller, &f)) *size = 0;
    else if (!found_tombstone(&f) && (int64_t)f.record.expires_ms > p->gathered.expired_ms)
        p->gathered.expired_ms = (int64_t)f.record.expires_ms;
    return KV_OK;
}

static void page_count(paging *p, uint32_t key_size, uint32_t value_size) {
    kv_page *page = p->page;
    if (page->count == 0) {
        page->key_size = key_size;
        page->value_size = value_size;
    }
    if (page->key_size != key_size || page->value_size != value_size) page->equal = 0;
    p->scratch->sizes[2 * page->count] = key_size;
    p->scratch->sizes[2 * page->count + 1] = value_size;
    page->count++;
}

/* The usual case, with one look at the index and one at the record: a value that is there and has no expiry. What lies
 * behind the key in the record is its value, so both are copied at once. *added false: whoever looks closer will know,
 * or say what is wrong. */
static kv_status page_add_plain(paging *p, const candidate *one, bool *added) {
    kv_caller *c = p->caller;
    const target *t = &one->at;
    kv_fault unsaid;
    uint8_t *to;
    *added = false;
    unsigned flags = kv_loc_flags(one->location);
    if (one->location == 0 || c->snapshot != NULL || flags != t->class || p->range->what == KV_SCAN_TABLES) return KV_OK;
    found f = {.location = one->location};
    if (store_look_at(c->store, t, &f, &unsaid) != KV_OK) return KV_OK;
    bool values = p->range->with_values;
    if (values && !seen_there(one) && !found_intact_once(c->store, &f)) return KV_OK;
    if (KV_UNLIKELY(values && (f.record.flags & KV_FLAG_META))) return KV_OK;
    uint32_t value_size = values ? f.record.value_size : 0;
    uint64_t size = t->key_size + value_size;
    kv_status status = gather_room(c, p->gathered.used, size, &to);
    if (status != KV_OK) return status;
    if (size != 0) memcpy(to, f.record.key, size);
    p->gathered.used += size;
    page_count(p, (uint32_t)t->key_size, value_size);
    *added = true;
    return KV_OK;
}

/* Key and value, if the key is live, behind what the page has. */
static kv_status page_add(paging *p, const target *t) {
    uint8_t *to;
    int64_t size;
    uint64_t before = p->gathered.used;
    kv_status status = sizes_room(p->scratch, p->page->count + 1);
    if (status == KV_OK) status = gather_room(p->caller, before, t->key_size, &to);
    if (status != KV_OK) return status;
    if (t->key_size != 0) memcpy(to, t->key, t->key_size);
    p->gathered.used += t->key_size;
    bool values = p->range->with_values && p->range->what != KV_SCAN_TABLES;
    status = values ? gather_value(p->caller, t, &p->gathered, &size) : look_up(p, t, &size);
    if (status != KV_OK || size < 0) p->gathered.used = before;
    else page_count(p, (uint32_t)t->key_size, (uint32_t)size);
    return status;
}

static kv_status page_resume(paging *p, const target *last) {
    uint8_t *to;
    kv_status status = gather_room(p->caller, p->gathered.used, last->key_size, &to);
    if (status != KV_OK) return status;
    if (last->key_size != 0) memcpy(to, last->key, last->key_size);
    p->page->resume_size = (uint32_t)last->key_size;
    p->page->more = 1;
    return KV_OK;
}

/* A block of candidates. KV_EOF: the range ends here; KV_MORE: the page does. */
static kv_status page_block(paging *p) {
    kv_store *store = p->caller->store;
    candidates *block = &p->scratch->block;
    uint64_t left = p->range->count_max - p->page->count;
    size_t count = left < CANDIDATE_COUNT_MAX ? left : CANDIDATE_COUNT_MAX;
    kv_status taken = candidates_take(store, p->scratch->cursor, count, block);
    if (taken == KV_ECORRUPT) return order_fault(store, p->scratch->cursor, &p->caller->answer.fault);
    if (taken != KV_OK && taken != KV_EOF) return taken;
    kv_status room = sizes_room(p->scratch, p->page->count + block->count);
    if (room != KV_OK) return room;
    for (size_t i = 0; i < block->count; i++) {
        const candidate *one = &block->at[i];
        if (candidate_outside(p, one)) return KV_EOF;
        bool added;
        kv_status status = page_add_plain(p, one, &added);
        if (status == KV_OK && !added) status = page_add(p, &one->at);
        if (status != KV_OK) return status;
        p->looked_count++;
        bool full = p->gathered.used >= PAGE_SIZE_MAX || p->page->count == p->range->count_max;
        if (!full && p->looked_count < LOOK_COUNT_MAX) continue;
        status = page_resume(p, &one->at);
        return status == KV_OK ? KV_MORE : status;
    }
    return taken;
}

static kv_status page_fill(void *context) {
    paging *p = context;
    kv_store *store = p->caller->store;
    kv_status status = page_space(p);
    if (status != KV_OK) return status;
    status = page_seek(p);
    if (status == KV_ECORRUPT) return order_fault(store, p->scratch->cursor, &p->caller->answer.fault);
    while (status == KV_OK) status = page_block(p);
    p->page->size = p->gathered.used;
    return status == KV_EOF ? KV_OK : status;
}

/* *gone: the file of a value is, see store_look_again(). */
static kv_status page_inside(paging *p, look_step fill, bool *gone) {
    kv_caller *c = p->caller;
    *p->page = (kv_page){.equal = 1};
    p->gathered = (gathering){0};
    p->looked_count = 0;
    c->answer.expires_ms = 0;
    kv_status status = scratch_get(c, &p->scratch);
    if (status == KV_OK) status = store_look(c, fill, p);
    /* No run asks an ended one what it wants to list: names may have been missing. */
    if (status >= KV_OK && snapshot_ended(c->snapshot)) status = KV_ESNAPSHOT;
    /* A full page ends with KV_MORE as a missing file does: `more` tells them apart. */
    *gone = status == KV_MORE && !p->page->more;
    if (status == KV_MORE && p->page->more) status = KV_OK;
    if (status == KV_ABSENT && c->answer.expires_ms > p->gathered.expired_ms) /* the table has expired */
        p->gathered.expired_ms = c->answer.expires_ms;
    if (p->scratch == NULL) return status;
    p->page->sizes = p->scratch->sizes;
    if (p->scratch->block.capacity > KEPT_SIZE_MAX) {
        free(p->scratch->block.bytes);
        p->scratch->block = (candidates){0};
    }
    return status;
}

/* A page, by `fill`; what all of them end with. */
static kv_result page_make(paging *p, look_step fill) {
    kv_caller *c = p->caller;
    bool gone;
    if (p->range->count_max == 0) return caller_fail(c, KV_EUSAGE, "a page has at least one entry");
    if (p->range->table != NULL && key_check(p->range->table_size) != KV_OK) return refuse_name(c);
    c->answer.fault.status = KV_OK;
    kv_status status = page_inside(p, fill, &gone);
    for (int look = 0; gone && store_look_again(c, look); look++) status = page_inside(p, fill, &gone);
    if (gone) return answer_gone(c);
    if (status != KV_OK && status != KV_ABSENT) return caller_fail(c, status, "the scan failed");
    if (p->gathered.expired_ms != 0) answer_expired(c, p->gathered.expired_ms);
    return status == KV_ABSENT ? kv_ending(status) : (kv_result)(p->page->size + p->page->resume_size);
}

kv_result kv_scan(kv_caller *c, const kv_range *range, kv_page *page) {
    paging p = {.caller = c, .range = range, .page = page};
    return page_make(&p, page_fill);
}

/* --- the change feed --- */

typedef struct change_paging {
    paging base; /* first: page_make() hands it to the fill */
    uint64_t since;
    change_rules *rules; /* of a replica; NULL: of a store of its own */
    uint64_t newest; /* the table's version when the page began: what is above it may be half shown */
    kv_change_page *out;
} change_paging;

static kv_status change_seek(change_paging *p) {
    kv_store *store = p->base.caller->store;
    uint8_t *bound = p->base.scratch->bound;
    table_name(KV_SPACE_CHANGES, p->base.table_id, bound);
    kv_store64(bound + TABLE_NAME_SIZE, __builtin_bswap64(p->since + 1));
    return kv_order_seek(store->order, store->flow, p->base.scratch->cursor, KV_SEEK_GE, bound, CHANGE_HEAD_SIZE);
}

/* The row, if this is still its newest record; else it comes again, under the version it has now. */
static kv_status change_add(change_paging *p, const candidate *one) {
    found f;
    kv_caller *c = p->base.caller;
    kv_status status = reader_find(c, &one->at, &f);
    if (status == KV_ABSENT || (status == KV_OK && f.record.version != one->version)) return KV_OK;
    if (status != KV_OK) return status;
    if (reader_alive(c, &f)) return page_add(&p->base, &one->at);
    uint8_t *to;
    status = sizes_room(p->base.scratch, p->base.page->count + 1);
    if (status == KV_OK) status = gather_room(c, p->base.gathered.used, one->at.key_size, &to);
    if (status != KV_OK) return status;
    if (one->at.key_size != 0) memcpy(to, one->at.key, one->at.key_size);
    p->base.gathered.used += one->at.key_size;
    page_count(&p->base, (uint32_t)one->at.key_size, (uint32_t)KV_DELETED);
    if (!found_tombstone(&f) && (int64_t)f.record.expires_ms > p->base.gathered.expired_ms)
        p->base.gathered.expired_ms = (int64_t)f.record.expires_ms;
    return KV_OK;
}

/* As page_block(), but that a page ends between two versions only. */
static kv_status change_block(change_paging *p) {
    paging *base = &p->base;
    kv_store *store = base->caller->store;
    candidates *block = &base->scratch->block;
    kv_status taken = candidates_take(store, base->scratch->cursor, CANDIDATE_COUNT_MAX, block);
    if (taken == KV_ECORRUPT) return order_fault(store, base->scratch->cursor, &base->caller->answer.fault);
    if (taken != KV_OK && taken != KV_EOF) return taken;
    for (size_t i = 0; i < block->count; i++) {
        const candidate *one = &block->at[i];
        bool outside = one->space != KV_SPACE_CHANGES || one->at.table_id != base->table_id;
        if (outside || one->version > p->newest) return KV_EOF;
        bool full = base->gathered.used >= CHANGES_SIZE_MAX || base->page->count >= base->range->count_max ||
                    base->looked_count >= LOOK_COUNT_MAX;
        if (full && (one->version != p->out->version || (p->rules != NULL && p->rules->splits))) {
            base->page->more = p->out->more = 1;
            return KV_MORE;
        }
        kv_status status = change_add(p, one);
        if (status != KV_OK) return status;
        p->out->version = one->version;
        base->looked_count++;
    }
    return taken;
}

static kv_status find_floor(kv_caller *c, uint64_t table_id, uint64_t *floor) {
    found f;
    target t = target_table(c->store, table_id, KV_LOC_FLOOR);
    kv_status status = reader_find(c, &t, &f);
    *floor = status == KV_OK && f.record.value_size == 8 ? kv_load64(f.record.value) : 0;
    return status == KV_ABSENT ? KV_OK : status;
}

/* As the consumer of a replica's pages is told; see replica_changes.c. */
static bool replica_complete(const change_paging *p, uint64_t floor) {
    const change_rules *rules = p->rules;
    if (rules->ahead) return false;
    return p->since == 0 || p->since >= floor || rules->began >= floor || rules->blind;
}

/* A table's id is the number it was made under: who has seen something below that saw another table. */
static kv_status change_begin(change_paging *p) {
    kv_caller *c = p->base.caller;
    kv_change_page *out = p->out;
    table_state table;
    *out = (kv_change_page){.complete = p->since == 0};
    kv_status status = reader_find_table(c, p->base.range->table, p->base.range->table_size, &table);
    if (status == KV_OK) status = find_floor(c, table.id, &out->floor);
    if (status != KV_OK) return status;
    uint64_t made = p->rules == NULL ? table.id : late_table_version(table.id);
    if (out->floor < made) out->floor = made;
    /* Who has seen more than there is saw what a power cut took back. */
    out->complete = p->since == 0 || (p->since >= out->floor && p->since <= table.version);
    if (p->rules != NULL) {
        out->complete = replica_complete(p, out->floor);
        p->rules->through = table.version;
    }
    out->version = p->since;
    p->newest = table.version;
    p->base.table_id = table.id;
    return KV_OK;
}

static kv_status change_fill(void *context) {
    change_paging *p = context;
    paging *base = &p->base;
    kv_status status = change_begin(p);
    if (status != KV_OK) return status;
    *base->page = (kv_page){.equal = 1};
    status = change_seek(p);
    if (status == KV_ECORRUPT) return order_fault(base->caller->store, base->scratch->cursor, &base->caller->answer.fault);
    while (status == KV_OK) status = change_block(p);
    base->page->size = base->gathered.used;
    /* A replica may be asked by who has heard of later versions of the shard. */
    bool ahead = p->rules != NULL && p->since > p->newest;
    if (status == KV_EOF && !ahead) p->out->version = p->newest;
    return status == KV_EOF ? KV_OK : status;
}

kv_result kv_changes(kv_caller *c, const uint8_t *table, size_t table_size, uint64_t since, uint64_t count_max,
                     kv_change_page *out) {
    return store_changes(c, table, table_size, since, count_max, NULL, out);
}

kv_result store_changes(kv_caller *c, const uint8_t *table, size_t table_size, uint64_t since, uint64_t count_max,
                        change_rules *rules, kv_change_page *out) {
    kv_range range = {.what = KV_SCAN_ROWS, .count_max = count_max, .with_values = 1, .table = table, .table_size = table_size};
    change_paging p = {.base = {.caller = c, .range = &range, .page = &out->page}, .since = since, .rules = rules, .out = out};
    if (since > INT64_MAX) return caller_fail(c, KV_EUSAGE, "versions are below 2 to the 63");
    kv_result size = page_make(&p.base, change_fill);
    return size == kv_ending(KV_ABSENT) ? 0 : size;
}
