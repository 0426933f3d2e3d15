/* content.c -- see content.h. */
#include <stdlib.h>

#include "late.h"

enum { CAPACITY_MIN = 64 };

/* --- lists --- */

static void list_in(contents *t, enum content_list list, content *c) {
    if (c->links[list].in) return;
    c->links[list].in = true;
    c->links[list].next = NULL;
    c->links[list].previous = t->lists[list].last;
    if (t->lists[list].last == NULL) t->lists[list].first = c;
    else t->lists[list].last->links[list].next = c;
    t->lists[list].last = c;
    t->lists[list].count++;
}

static void list_out(contents *t, enum content_list list, content *c) {
    if (!c->links[list].in) return;
    content *next = c->links[list].next, *previous = c->links[list].previous;
    c->links[list].in = false;
    if (next == NULL) t->lists[list].last = previous;
    else next->links[list].previous = previous;
    if (previous == NULL) t->lists[list].first = next;
    else previous->links[list].next = next;
    t->lists[list].count--;
}

void content_leave(contents *t, enum content_list list, content *c) { list_out(t, list, c); }

void content_requeue(contents *t, enum content_list list, content *c) {
    list_out(t, list, c);
    list_in(t, list, c);
}

/* --- the table --- */

static uint64_t home(const contents *t, const kv_meta *meta) {
    return kv_mix64(meta->number ^ (uint64_t)meta->origin << 48) & (t->capacity - 1);
}

static bool same_name(const kv_meta *left, const kv_meta *right) {
    return left->number == right->number && left->origin == right->origin;
}

/* The place with this name, or the empty one where it would be. */
static uint64_t place_of(const contents *t, const kv_meta *meta) {
    uint64_t at = home(t, meta);
    while (t->slots[at] != NULL && !same_name(&t->slots[at]->meta, meta)) at = (at + 1) & (t->capacity - 1);
    return at;
}

/* A disk that went back may have given a name twice: the digest says whose bytes they are. */
content *contents_find(const contents *t, const kv_meta *meta) {
    content *c = t->capacity == 0 ? NULL : t->slots[place_of(t, meta)];
    return c != NULL && c->meta.size == meta->size && c->meta.digest == meta->digest ? c : NULL;
}

static kv_status slots_grow(contents *t) {
    contents larger = {.capacity = t->capacity == 0 ? CAPACITY_MIN : 2 * t->capacity};
    larger.slots = calloc(larger.capacity, sizeof *larger.slots);
    if (larger.slots == NULL) return KV_ENOMEM;
    for (uint64_t i = 0; i < t->capacity; i++)
        if (t->slots[i] != NULL) larger.slots[place_of(&larger, &t->slots[i]->meta)] = t->slots[i];
    free(t->slots);
    t->slots = larger.slots;
    t->capacity = larger.capacity;
    return KV_OK;
}

/* Those that were pushed on past it close up. */
static void slot_remove(contents *t, const content *c) {
    uint64_t mask = t->capacity - 1, hole = place_of(t, &c->meta);
    for (uint64_t at = (hole + 1) & mask; t->slots[at] != NULL; at = (at + 1) & mask) {
        if (((at - home(t, &t->slots[at]->meta)) & mask) < ((at - hole) & mask)) continue;
        t->slots[hole] = t->slots[at];
        hole = at;
    }
    t->slots[hole] = NULL;
    t->count--;
}

content *contents_note(contents *t, const kv_meta *meta, uint16_t shard, uint64_t version) {
    content *c = t->capacity == 0 ? NULL : t->slots[place_of(t, meta)];
    if (c != NULL) return c;
    if (2 * (t->count + 1) > t->capacity && slots_grow(t) != KV_OK) return NULL;
    c = calloc(1, sizeof *c);
    if (c == NULL) return NULL;
    c->meta = *meta;
    c->shard = shard;
    c->version = version;
    c->since = t->now;
    t->slots[place_of(t, meta)] = c;
    t->count++;
    list_in(t, CONTENT_LOOSE, c);
    list_in(t, CONTENT_MISSING, c);
    return c;
}

void contents_free(contents *t) {
    for (uint64_t i = 0; i < t->capacity; i++) {
        if (t->slots[i] == NULL) continue;
        free(t->slots[i]->pull.bytes);
        free(t->slots[i]);
    }
    free(t->slots);
    *t = (contents){0};
}

/* --- bytes --- */

kv_status content_arrived(kv_store *store, content *c, kv_position position, uint32_t used) {
    contents *t = store->late->contents;
    if (c->location != 0) return KV_OK;
    kv_status status = counters_room(&store->counters, position.segment);
    if (status != KV_OK) return status;
    count_live(&store->counters, position.segment, used);
    c->location = kv_loc_make(position.segment, position.offset, 0);
    c->used = used;
    c->end = kv_position_order((kv_position){.segment = position.segment, .offset = position.offset + used});
    free(c->pull.bytes);
    memset(&c->pull, 0, sizeof c->pull);
    list_out(t, CONTENT_MISSING, c);
    return KV_OK;
}

void content_drop(kv_store *store, content *c) {
    contents *t = store->late->contents;
    KV_ASSERT(c->named == 0);
    if (c->location != 0) count_live(&store->counters, kv_loc_segment(c->location), -(int64_t)c->used);
    for (int list = 0; list < CONTENT_LISTS; list++) list_out(t, (enum content_list)list, c);
    slot_remove(t, c);
    free(c->pull.bytes);
    free(c);
}

/* --- what names it --- */

/* Nothing is kept behind it any more; what was, if it is a content. */
static content *behind_take(kv_store *store, content *c) {
    content *behind = c->behind_content;
    if (c->behind != 0) count_live(&store->counters, kv_loc_segment(c->behind), -(int64_t)c->behind_used);
    c->behind = 0;
    c->behind_content = NULL;
    list_out(store->late->contents, CONTENT_UNSETTLED, c);
    return behind;
}

/* Named by one less; and what it keeps is kept for nobody then. */
static void release(kv_store *store, content *c) {
    while (c != NULL && --c->named == 0) {
        list_in(store->late->contents, CONTENT_LOOSE, c);
        c = behind_take(store, c);
    }
}

static void keep_behind(kv_store *store, content *c, const found *old, content *was) {
    c->behind = old->location;
    c->behind_used = old->used;
    c->behind_content = was;
    list_in(store->late->contents, CONTENT_UNSETTLED, c);
    count_live(&store->counters, kv_loc_segment(old->location), old->used);
}

static bool is_behind(const content *c, const content *front) {
    while (front != NULL && front != c) front = front->behind_content;
    return front == c;
}

/* What stood in front of it was given up. */
static void fall_back(kv_store *store, content *front, content *to) {
    while (front != to) {
        content *next = front->behind_content;
        KV_ASSERT(front->named > 0);
        behind_take(store, front);
        if (--front->named == 0) list_in(store->late->contents, CONTENT_LOOSE, front);
        front = next;
    }
}

kv_status content_shown(kv_store *store, const found *old, const kv_record *record) {
    contents *t = store->late->contents;
    bool there = old != NULL && old->location != 0;
    content *was = NULL, *is;
    kv_meta meta;
    if (there && is_meta(&old->record)) {
        if (!kv_meta_decode(old->record.value, old->record.value_size, &meta)) return KV_ECORRUPT;
        was = contents_find(t, &meta);
    }
    if (record == NULL || !is_meta(record)) { /* Inline, a delete, nothing: what was before is not needed. */
        release(store, was);
        return KV_OK;
    }
    if (!kv_meta_decode(record->value, record->value_size, &meta)) return KV_ECORRUPT;
    is = contents_note(t, &meta, record->shard, record->version);
    if (is == NULL) return KV_ENOMEM;
    if (is_behind(is, was)) { /* The same bytes with another expiry, or `forget`. */
        fall_back(store, was, is);
        return KV_OK;
    }
    is->named++;
    is->table_id = record->kind == KV_KIND_ROW_PUT ? record->table_id : 0;
    list_out(t, CONTENT_LOOSE, is);
    if (is->location == 0) list_in(t, CONTENT_MISSING, is);
    is->held |= meta.data; /* Who voted for it has them, and it is committed. */
    bool keeps = there && !found_tombstone(old) && !found_table(old) && !is->held && !t->keeps_nothing;
    if (keeps && is->behind == 0) keep_behind(store, is, old, was);
    else release(store, was);
    return KV_OK;
}

void content_settle(kv_store *store, content *c) {
    c->held = true;
    release(store, behind_take(store, c));
}
