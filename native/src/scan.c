/* scan.c -- keys in order, a page at a time.
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

#include "store_internal.h"

enum {
    PAGE_SIZE_MAX = 1 << 20,    /* a page is full when it has so many bytes; the entry that makes it so is in it */
    LOOK_COUNT_MAX = 1 << 14,   /* candidates looked at for one page */
    BOUND_SIZE_MAX = KV_KEY_SIZE_MAX + 1, /* of a longer bound the first bytes say as much: keys are shorter */
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
        used += size;
    }
    const uint8_t *name = block->bytes; /* Only now: it may have moved while it grew. */
    for (size_t i = 0; i < block->count; i++) {
        block->at[i].name = name;
        name += block->at[i].name_size;
    }
    return status;
}

kv_status candidates_take(kv_store *store, kv_order_cursor *cursor, size_t count, candidates *block) {
    KV_ASSERT(count <= CANDIDATE_COUNT_MAX);
    kv_probe probe;
    kv_status status = candidates_copy(cursor, block, count);
    if (status != KV_OK && status != KV_EOF) return status;
    for (size_t i = 0; i < block->count; i++) {
        candidate *one = &block->at[i];
        one->key = one->name + 1;
        one->key_size = one->name_size - 1;
        one->hash = store_hash(store, one->key, one->key_size);
        kv_index_prefetch(store->index, one->hash);
    }
    for (size_t i = 0; i < block->count; i++)
        store_prefetch(store, kv_index_first(store->index, block->at[i].hash, &probe));
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
        scratch->bound = malloc(1 + BOUND_SIZE_MAX);
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

static kv_status page_seek(paging *p) {
    const kv_range *range = p->range;
    uint8_t *bound = p->scratch->bound;
    const uint8_t *key = range->reverse ? range->stop : range->start;
    size_t size = range->reverse ? range->stop_size : range->start_size;
    if (size > BOUND_SIZE_MAX) size = BOUND_SIZE_MAX;
    bound[0] = KV_SPACE_KEYS;
    if (key != NULL && size != 0) memcpy(bound + 1, key, size);
    /* Backwards from the end: below everything that is no key. */
    if (range->reverse && key == NULL) bound[0] = KV_SPACE_KEYS + 1;
    if (key == NULL) size = 0;
    enum kv_seek how = range->reverse ? KV_SEEK_LT : KV_SEEK_GE;
    kv_store *store = p->caller->store;
    return kv_order_seek(store->order, store->flow, p->scratch->cursor, how, bound, 1 + size);
}

/* Behind the bound that the direction leads to. */
static bool candidate_outside(const kv_range *range, const candidate *one) {
    if (one->name[0] != KV_SPACE_KEYS) return true;
    if (range->reverse)
        return range->start != NULL && kv_name_compare(one->key, one->key_size, range->start, range->start_size) < 0;
    return range->stop != NULL && kv_name_compare(one->key, one->key_size, range->stop, range->stop_size) >= 0;
}

/* Whether the key is live; no byte of a value is read. */
static kv_status look_up(paging *p, const candidate *one, int64_t *size) {
    kv_store *store = p->caller->store;
    found f;
    *size = -1;
    kv_status status = store_find(store, one->key, one->key_size, one->hash, &f, &p->caller->answer.fault);
    if (status != KV_OK) return status == KV_ABSENT ? KV_OK : status;
    if (found_alive(store, &f)) *size = 0;
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

/* Key and value, if the key is live, behind what the page has. */
static kv_status page_add(paging *p, const candidate *one) {
    uint8_t *to;
    int64_t size;
    uint64_t before = p->gathered.used;
    kv_status status = sizes_room(p->scratch, p->page->count + 1);
    if (status == KV_OK) status = gather_room(p->caller, before, one->key_size, &to);
    if (status != KV_OK) return status;
    memcpy(to, one->key, one->key_size);
    p->gathered.used += one->key_size;
    status = p->range->with_values ? gather_value(p->caller, one->key, one->key_size, one->hash, &p->gathered, &size)
                                   : look_up(p, one, &size);
    if (status != KV_OK || size < 0) p->gathered.used = before;
    else page_count(p, one->key_size, (uint32_t)size);
    return status;
}

static kv_status page_resume(paging *p, const candidate *last) {
    uint8_t *to;
    kv_status status = gather_room(p->caller, p->gathered.used, last->key_size, &to);
    if (status != KV_OK) return status;
    memcpy(to, last->key, last->key_size);
    p->page->resume_size = last->key_size;
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
    for (size_t i = 0; i < block->count; i++) {
        const candidate *one = &block->at[i];
        if (candidate_outside(p->range, one)) return KV_EOF;
        kv_status status = page_add(p, one);
        if (status != KV_OK) return status;
        p->looked_count++;
        bool full = p->gathered.used >= PAGE_SIZE_MAX || p->page->count == p->range->count_max;
        if (!full && p->looked_count < LOOK_COUNT_MAX) continue;
        status = page_resume(p, one);
        return status == KV_OK ? KV_MORE : status;
    }
    return taken;
}

static kv_status page_fill(paging *p) {
    kv_store *store = p->caller->store;
    kv_status status = page_seek(p);
    if (status == KV_ECORRUPT) return order_fault(store, p->scratch->cursor, &p->caller->answer.fault);
    while (status == KV_OK) status = page_block(p);
    p->page->size = p->gathered.used;
    return status == KV_EOF ? KV_OK : status;
}

static kv_status page_guarded(paging *p) {
    kv_guard guard;
    kv_status status;
    if (KV_GUARD_CAUGHT(&guard)) status = KV_EMAPPING;
    else status = page_fill(p);
    kv_guard_leave(&guard);
    return status;
}

/* *gone: the file of a value is, see store_look_again(). */
static kv_status page_inside(kv_caller *c, const kv_range *range, kv_page *page, int64_t *expired_ms, bool *gone) {
    paging p = {.caller = c, .range = range, .page = page};
    *page = (kv_page){.equal = 1};
    kv_epoch_enter(c->store->epoch, c->slot);
    kv_status status = store_usable(c->store);
    if (status == KV_OK) status = scratch_get(c, &p.scratch);
    if (status == KV_OK) status = page_guarded(&p);
    kv_epoch_leave(c->slot);
    /* A full page ends with KV_MORE as a missing file does: `more` tells them apart. */
    *gone = status == KV_MORE && !page->more;
    if (status == KV_MORE && page->more) status = KV_OK;
    *expired_ms = p.gathered.expired_ms;
    if (p.scratch == NULL) return status;
    page->sizes = p.scratch->sizes;
    if (p.scratch->block.capacity > KEPT_SIZE_MAX) {
        free(p.scratch->block.bytes);
        p.scratch->block = (candidates){0};
    }
    return status;
}

kv_result kv_scan(kv_caller *c, const kv_range *range, kv_page *page) {
    int64_t expired_ms;
    bool gone;
    if (range->count_max == 0) return caller_fail(c, KV_EUSAGE, "a page has at least one entry");
    c->answer.fault.status = KV_OK;
    kv_status status = page_inside(c, range, page, &expired_ms, &gone);
    for (int look = 0; gone && store_look_again(c, look); look++)
        status = page_inside(c, range, page, &expired_ms, &gone);
    if (gone) return caller_fail(c, KV_ECORRUPT, "the value's file is missing");
    if (status != KV_OK) return caller_fail(c, status, "the scan failed");
    if (expired_ms != 0) answer_expired(c, expired_ms);
    return (kv_result)(page->size + page->resume_size);
}
