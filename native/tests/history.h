/* history.h -- a store on a simulated disk beside a naive twin that knows every state it was ever in.
 *
 * The twin is an array of keys. Each change that the engine may keep or lose by itself (one record; of a batch all of
 * them) appends one state to a list, so "what survived" is an index into that list:
 *
 *   begun      by event: states above it cannot be on the disk, because nobody had asked for them yet
 *   returned   by event: states up to it were acknowledged; kill -9 keeps them in every sync mode
 *   durable    by event: states up to it were acknowledged as durable; a power cut keeps them
 *
 * The event is that of the simulated disk at which a power cut happens. All states differ: a record brings a version, a
 * noted clock is part of the state.
 *
 * The store runs without threads of its own; what they would do (prepare a segment, settle headers, reap value files)
 * is an operation of the history, called where the seed says.
 *
 * Reading back happens with the clock of the disk at 1 ms, so a key counts as expired only by the time that the flow
 * itself remembers, and reading writes nothing. */
#ifndef KV_HISTORY_H
#define KV_HISTORY_H

#include <stdarg.h>

/* No test uses all of what is shared here. */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"

#include "../src/store_internal.h"
#include "check.h"
#include "kv/io_sim.h"

enum {
    KEY_COUNT = 20,
    COUNTER_COUNT = 3, /* keys 0 to 2 hold numbers, the others bytes */
    ITEM_COUNT_MAX = 8,
    VALUE_SIZE_MAX = 3000,
    INLINE_SIZE_MAX = 512,
    KEY_TEXT_SIZE = 24,
    SEGMENT_NAME_SIZE = 32,
};

enum { NEVER = 0, DELETED = 1, THERE = 2 };

typedef struct twin_key {
    int32_t what;
    uint32_t size;
    uint64_t version;
    int64_t expires_ms;
    uint64_t digest; /* of the value */
    uint64_t at;     /* the value, in the history's pool */
} twin_key;

typedef struct twin {
    twin_key keys[KEY_COUNT];
    int64_t clock_ms; /* the time that the flow remembers */
} twin;

typedef struct stamp {
    uint64_t event;
    uint64_t state;
} stamp;

typedef struct stamps {
    stamp *items;
    uint64_t count, capacity;
} stamps;

typedef struct catalog_entry {
    uint64_t event; /* committed before this one */
    uint64_t spoiled; /* from this one on its files may be gone: an opener used another entry */
    uint8_t *bytes;
    size_t size;
} catalog_entry;

typedef struct history {
    uint64_t random;
    kv_sim *sim;
    kv_options options;
    kv_store *store; /* NULL between openers */
    kv_caller *caller;
    int64_t now_ms;

    twin *states;
    uint64_t *begun;       /* of each state: the event count when it was asked for */
    uint64_t *version_max; /* of each state: the highest version returned until then */
    uint64_t state_count, state_capacity;
    uint64_t event_before; /* of the operation under way */
    stamps returned, durable;

    uint8_t *pool; /* values */
    uint64_t pool_used, pool_capacity;

    catalog_entry *catalog;
    uint64_t catalog_count, catalog_capacity;

    bool failed;
    char failure[256];
} history;

/* --- chance: splitmix64, so that a seed is a history --- */

static uint64_t chance(uint64_t *state) {
    uint64_t z = (*state += 0x9E3779B97F4A7C15ULL);
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ULL;
    z = (z ^ z >> 27) * 0x94D049BB133111EBULL;
    return z ^ z >> 31;
}
static uint64_t below(uint64_t *state, uint64_t bound) { return chance(state) % bound; }

__attribute__((format(printf, 2, 3))) static void history_fail(history *h, const char *format, ...) {
    va_list arguments;
    if (h->failed) return;
    h->failed = true;
    va_start(arguments, format);
    vsnprintf(h->failure, sizeof h->failure, format, arguments);
    va_end(arguments);
}

static void *room(void *items, uint64_t count, uint64_t *capacity, size_t item_size) {
    if (count < *capacity) return items;
    *capacity = *capacity == 0 ? 32 : 2 * *capacity;
    items = realloc(items, *capacity * item_size);
    KV_ASSERT(items != NULL);
    return items;
}

/* --- stamps --- */

static void stamp_add(stamps *s, uint64_t event, uint64_t state) {
    if (s->count != 0 && s->items[s->count - 1].state >= state) return;
    s->items = room(s->items, s->count, &s->capacity, sizeof *s->items);
    s->items[s->count++] = (stamp){event, state};
}

static uint64_t stamp_at(const stamps *s, uint64_t event) {
    uint64_t state = 0;
    for (uint64_t i = 0; i < s->count && s->items[i].event <= event; i++) state = s->items[i].state;
    return state;
}

static uint64_t begun_at(const history *h, uint64_t event) {
    uint64_t last = h->state_count - 1;
    while (last > 0 && h->begun[last] > event) last--;
    return last;
}

/* --- states --- */

static twin *newest(const history *h) { return &h->states[h->state_count - 1]; }

static void push(history *h, const twin *state, uint64_t version) {
    twin copy = *state; /* it may lie in the array that moves */
    uint64_t capacity = h->state_capacity;
    h->states = room(h->states, h->state_count, &h->state_capacity, sizeof *h->states);
    if (capacity != h->state_capacity) {
        h->begun = realloc(h->begun, h->state_capacity * sizeof *h->begun);
        h->version_max = realloc(h->version_max, h->state_capacity * sizeof *h->version_max);
        KV_ASSERT(h->begun != NULL && h->version_max != NULL);
    }
    uint64_t before = h->state_count == 0 ? 0 : h->version_max[h->state_count - 1];
    h->states[h->state_count] = copy;
    h->begun[h->state_count] = h->event_before;
    h->version_max[h->state_count] = version > before ? version : before;
    h->state_count++;
}

static size_t key_text(int key, char text[KEY_TEXT_SIZE]) {
    return (size_t)snprintf(text, KEY_TEXT_SIZE, "key-%d%.*s", key, key % 7, "xxxxxxx");
}

static twin_key value_keep(history *h, const uint8_t *bytes, size_t size, uint64_t version, int64_t expires_ms) {
    while (h->pool_used + size > h->pool_capacity) {
        h->pool_capacity = h->pool_capacity == 0 ? 1 << 16 : h->pool_capacity * 2;
        h->pool = realloc(h->pool, h->pool_capacity);
        KV_ASSERT(h->pool != NULL);
    }
    if (size != 0) memcpy(h->pool + h->pool_used, bytes, size);
    twin_key made = {.what = THERE, .size = (uint32_t)size, .version = version, .expires_ms = expires_ms,
                     .digest = kv_xxh64(bytes, size, 0), .at = h->pool_used};
    h->pool_used += size;
    return made;
}

static int64_t twin_now(const history *h, const twin *t) { return h->now_ms > t->clock_ms ? h->now_ms : t->clock_ms; }

static int64_t twin_deadline(const history *h, const twin *t, int64_t ttl_ms) {
    return ttl_ms == 0 ? 0 : twin_now(h, t) + ttl_ms;
}

static bool twin_alive(const history *h, const twin *t, int key) {
    const twin_key *k = &t->keys[key];
    return k->what == THERE && (k->expires_ms == 0 || k->expires_ms > twin_now(h, t));
}

/* Whoever rests a decision on an expiry has the time written down first: a state of its own. */
static bool twin_look(history *h, twin *t, int key) {
    const twin_key *k = &t->keys[key];
    bool alive = twin_alive(h, t, key);
    if (alive || k->what != THERE || t->clock_ms >= k->expires_ms) return alive;
    t->clock_ms = twin_now(h, t);
    push(h, t, 0);
    return false;
}

static uint64_t twin_live_size(const twin *t) {
    uint64_t sum = t->clock_ms != 0 ? KV_RECORD_HEAD_SIZE + 8 : 0; /* the newest CLOCK */
    char text[KEY_TEXT_SIZE];
    for (int i = 0; i < KEY_COUNT; i++) {
        const twin_key *k = &t->keys[i];
        if (k->what == NEVER) continue;
        uint64_t value = k->what == DELETED ? 0 : k->size > INLINE_SIZE_MAX ? KV_BIG_SIZE : k->size;
        uint64_t expiry = k->what == THERE && k->expires_ms != 0 ? 8 : 0;
        sum += kv_align(KV_RECORD_HEAD_SIZE + expiry + key_text(i, text) + value, KV_RECORD_ALIGN);
    }
    return sum;
}

/* --- reading back --- */

typedef struct observed {
    kv_result version[KEY_COUNT];
    kv_result size[KEY_COUNT]; /* or how the read ended */
    int64_t expires_ms[KEY_COUNT];
    uint64_t digest[KEY_COUNT];
    uint64_t at[KEY_COUNT];
    kv_stats stats;
    uint64_t value_file_count, index_file_count, run_file_count;
    const char *scan; /* how scans differ from the reads; NULL: not at all */
} observed;

static const uint8_t *answer_bytes(kv_caller *c, kv_result size) {
    const kv_answer *answer = kv_caller_answer(c);
    return size <= KV_SMALL_SIZE ? answer->small : answer->large;
}

static uint64_t count_files(kv_sim *sim, const char *path) {
    kv_io *io = kv_sim_io(sim);
    char **names = NULL;
    size_t count = 0;
    if (io->list(io, path, &names, &count) != KV_OK) count = 0;
    else free(names);
    io->free(io);
    return count;
}

typedef struct listed_key {
    char text[KEY_TEXT_SIZE];
    size_t size;
    int key;
} listed_key;

static int by_text(const void *left, const void *right) {
    const listed_key *a = left, *b = right;
    return kv_name_compare((const uint8_t *)a->text, a->size, (const uint8_t *)b->text, b->size);
}

/* The keys that reads found, in order. */
static int listed_keys(const observed *o, listed_key list[KEY_COUNT]) {
    int count = 0;
    for (int i = 0; i < KEY_COUNT; i++) {
        if (o->size[i] < 0) continue;
        list[count].size = key_text(i, list[count].text);
        list[count++].key = i;
    }
    qsort(list, (size_t)count, sizeof *list, by_text);
    return count;
}

/* Some entries of a scan against what is expected next; false: they differ. */
static bool page_fits(kv_caller *c, kv_result size, const kv_page *page, const observed *o, const listed_key *list, int count,
                      int *at, int step) {
    const uint8_t *bytes = answer_bytes(c, size);
    for (uint64_t i = 0; i < page->count; i++, *at += step) {
        uint32_t key_size = page->sizes[2 * i], value_size = page->sizes[2 * i + 1];
        if (*at < 0 || *at >= count || key_size != list[*at].size || memcmp(bytes, list[*at].text, key_size) != 0) return false;
        bytes += key_size;
        if (value_size != o->size[list[*at].key] || kv_xxh64(bytes, value_size, 0) != o->digest[list[*at].key]) return false;
        bytes += value_size;
    }
    return true;
}

static const char scan_refused[] = "a scan is refused: damage";

/* Scans of a few entries a page: exactly the keys that reads found, in order, with what they read. */
static const char *scan_differs(kv_caller *c, const observed *o, bool reverse) {
    listed_key list[KEY_COUNT];
    kv_range range = {.count_max = 3, .with_values = 1, .reverse = reverse};
    kv_page page;
    uint8_t bound[KEY_TEXT_SIZE + 1];
    int count = listed_keys(o, list), at = reverse ? count - 1 : 0;
    do {
        kv_result size = kv_scan(c, &range, &page);
        if (size == KV_ECORRUPT) return scan_refused;
        if (size < 0) return "a scan fails";
        if (!page_fits(c, size, &page, o, list, count, &at, reverse ? -1 : 1)) return "a scan lists something else";
        if (!page.more) continue;
        memcpy(bound, answer_bytes(c, size) + page.size, page.resume_size);
        bound[page.resume_size] = 0;
        if (reverse) range.stop = bound;
        else range.start = bound;
        if (reverse) range.stop_size = page.resume_size;
        else range.start_size = page.resume_size + 1;
    } while (page.more);
    return at == (reverse ? -1 : count) ? NULL : "a scan misses keys";
}

/* Values go to the pool of `keep`, unless that is NULL. */
static void observe(kv_sim *sim, kv_store *store, kv_caller *c, history *keep, observed *out) {
    kv_sim_set_clock(sim, 1);
    memset(out, 0, sizeof *out);
    for (int i = 0; i < KEY_COUNT; i++) {
        char text[KEY_TEXT_SIZE];
        size_t text_size = key_text(i, text);
        out->version[i] = kv_version(c, (const uint8_t *)text, text_size);
        out->size[i] = kv_get(c, (const uint8_t *)text, text_size);
        if (out->size[i] < 0) continue;
        const uint8_t *bytes = answer_bytes(c, out->size[i]);
        out->expires_ms[i] = kv_caller_answer(c)->expires_ms;
        out->digest[i] = kv_xxh64(bytes, (size_t)out->size[i], 0);
        if (keep != NULL) out->at[i] = value_keep(keep, bytes, (size_t)out->size[i], 1, 0).at;
    }
    kv_store_measure(store, &out->stats);
    out->value_file_count = count_files(sim, "values");
    out->index_file_count = count_files(sim, "index");
    out->run_file_count = count_files(sim, "runs");
    out->scan = scan_differs(c, out, false);
    if (out->scan == NULL) out->scan = scan_differs(c, out, true);
}

/* Whether a key reads as the twin has it, as of the time the flow remembers. */
static bool key_fits(const observed *o, const twin *t, int key) {
    const twin_key *k = &t->keys[key];
    if (o->version[key] != (kv_result)k->version) return false;
    bool alive = k->what == THERE && (k->expires_ms == 0 || k->expires_ms > (t->clock_ms > 1 ? t->clock_ms : 1));
    if (!alive) return o->size[key] == kv_ending(KV_ABSENT);
    return o->size[key] == (kv_result)k->size && o->expires_ms[key] == k->expires_ms && o->digest[key] == k->digest;
}

static bool keys_fit(const observed *o, const twin *t) {
    for (int i = 0; i < KEY_COUNT; i++)
        if (!key_fits(o, t, i)) return false;
    return o->stats.clock_ms == t->clock_ms;
}

/* What the counters say against what the state is; NULL: they agree. */
static const char *counters_differ(const observed *o, const twin *t) {
    uint64_t there = 0, deleted = 0, big = 0, big_size = 0;
    for (int i = 0; i < KEY_COUNT; i++) {
        const twin_key *k = &t->keys[i];
        bool is_big = k->what == THERE && k->size > INLINE_SIZE_MAX;
        there += k->what == THERE;
        deleted += k->what == DELETED;
        big += is_big;
        big_size += is_big ? k->size : 0;
    }
    if (o->stats.key_count != there) return "key_count";
    if (o->stats.tombstone_count != deleted) return "tombstone_count";
    if (o->stats.big_count != big) return "big_count";
    if (o->stats.big_size != big_size) return "big_size";
    if (o->stats.live_size != twin_live_size(t)) return "live_size";
    return NULL;
}

/* --- beginning and ending --- */

static void history_begin(history *h, kv_sim *sim, uint64_t seed, const kv_options *options) {
    memset(h, 0, sizeof *h);
    h->random = seed;
    h->sim = sim;
    h->options = *options;
    h->now_ms = 1700000000000;
    twin empty = {0};
    push(h, &empty, 0);
}

static void history_end(history *h) {
    kv_caller_free(h->caller);
    kv_store_free(h->store);
    for (uint64_t i = 0; i < h->catalog_count; i++) free(h->catalog[i].bytes);
    free(h->catalog);
    free(h->states);
    free(h->begun);
    free(h->version_max);
    free(h->returned.items);
    free(h->durable.items);
    free(h->pool);
}

static uint64_t last_state(const history *h) { return h->state_count - 1; }

static void acknowledge(history *h, bool durable) {
    uint64_t event = kv_sim_event_count(h->sim);
    stamp_add(&h->returned, event, last_state(h));
    if (durable) stamp_add(&h->durable, event, last_state(h));
    kv_sim_mark(h->sim, (int64_t)h->state_count);
    h->event_before = kv_sim_event_count(h->sim);
}

static void catalog_add(history *h, const uint8_t *bytes, size_t size) {
    h->catalog = room(h->catalog, h->catalog_count, &h->catalog_capacity, sizeof *h->catalog);
    catalog_entry *entry = &h->catalog[h->catalog_count++];
    entry->bytes = malloc(size);
    KV_ASSERT(entry->bytes != NULL);
    memcpy(entry->bytes, bytes, size);
    entry->size = size;
    entry->spoiled = UINT64_MAX;
    entry->event = kv_sim_event_count(h->sim);
    kv_sim_mark(h->sim, -1);
}

/* The newest entry that was in the catalog at an event; -1: none. */
static int64_t catalog_at(const history *h, uint64_t event) {
    int64_t last = (int64_t)h->catalog_count - 1;
    while (last >= 0 && h->catalog[last].event > event) last--;
    return last;
}

/* An opener removes index files that the entry it was given does not name. */
static void catalog_spoil(history *h, int64_t used) {
    uint64_t now = kv_sim_event_count(h->sim);
    for (int64_t i = 0; i < (int64_t)h->catalog_count; i++)
        if (i != used && h->catalog[i].spoiled > now) h->catalog[i].spoiled = now;
}

static kv_status open_with(kv_sim *sim, const kv_options *options, const catalog_entry *entry, kv_store **store,
                           kv_caller **caller, kv_fault *fault) {
    kv_status status = kv_store_open(kv_sim_io(sim), options, entry == NULL ? NULL : entry->bytes,
                                     entry == NULL ? 0 : entry->size, fault, store);
    if (status != KV_OK) {
        *store = NULL;
        *caller = NULL;
        return status;
    }
    KV_ASSERT(kv_caller_new(*store, caller) == KV_OK);
    return KV_OK;
}

/* Everything that a returned open shows is durable: what it found unsynced, it synced. */
static void history_open(history *h, int64_t entry) {
    kv_fault fault;
    observed o;
    catalog_spoil(h, entry);
    const catalog_entry *used = entry < 0 ? NULL : &h->catalog[entry];
    kv_status status = open_with(h->sim, &h->options, used, &h->store, &h->caller, &fault);
    if (status != KV_OK) {
        history_fail(h, "open: %s: %s", kv_status_name(status), fault.what);
        return;
    }
    observe(h->sim, h->store, h->caller, NULL, &o);
    kv_sim_set_clock(h->sim, h->now_ms);
    if (!keys_fit(&o, newest(h))) history_fail(h, "reopened to another state (catalog %" PRId64 ")", entry);
    const char *differs = counters_differ(&o, newest(h));
    if (differs != NULL) history_fail(h, "reopened with another %s (catalog %" PRId64 ")", differs, entry);
    if (o.stats.sequence < h->version_max[last_state(h)])
        history_fail(h, "reopened behind a version that was returned");
    acknowledge(h, true);
}

static void history_close(history *h) {
    kv_fault fault;
    kv_caller_free(h->caller);
    kv_status status = kv_store_close(h->store, &fault);
    if (status != KV_OK) history_fail(h, "close: %s: %s", kv_status_name(status), fault.what);
    kv_store_free(h->store);
    h->store = NULL;
    h->caller = NULL;
    acknowledge(h, true);
}

static void history_kill(history *h) {
    kv_caller_free(h->caller);
    kv_store_free(h->store);
    h->store = NULL;
    h->caller = NULL;
    kv_sim_mark(h->sim, -2);
    h->event_before = kv_sim_event_count(h->sim);
}

/* A record of which only some bytes arrived, behind the last one: what a mapping leaves when its writer dies in it. */
static void history_kill_in_write(history *h) {
    kv_position tail = kv_flow_tail(h->store->flow);
    char path[SEGMENT_NAME_SIZE];
    uint8_t garbage[200];
    uint64_t size = 0;
    kv_file *file;
    history_kill(h);
    snprintf(path, sizeof path, "flow/%08x.seg", tail.segment);
    for (size_t i = 0; i < sizeof garbage; i++) garbage[i] = (uint8_t)chance(&h->random);
    size_t length = 4 + (size_t)below(&h->random, sizeof garbage - 4);
    kv_io *io = kv_sim_io(h->sim);
    if (io->open(io, path, KV_IO_WRITE, &file) == KV_OK) {
        io->size(io, file, &size);
        /* A sealed segment takes no writes any more: only the open one has room behind its tail. */
        if (tail.offset + length <= size) io->write_at(io, file, garbage, length, tail.offset);
        io->close(io, file);
    }
    io->free(io);
}

/* --- operations --- */

static size_t draw_value(history *h, uint8_t bytes[VALUE_SIZE_MAX], bool may_be_big) {
    size_t size = (size_t)below(&h->random, 60);
    uint64_t kind = below(&h->random, 10);
    if (kind == 0) size = 200 + (size_t)below(&h->random, 300);
    if (kind == 1 && may_be_big)
        size = INLINE_SIZE_MAX + 1 + (size_t)below(&h->random, VALUE_SIZE_MAX - INLINE_SIZE_MAX - 1);
    if (kind == 2) size = 0;
    for (size_t i = 0; i < size; i++) bytes[i] = (uint8_t)chance(&h->random);
    return size;
}

static int draw_key(history *h) { return COUNTER_COUNT + (int)below(&h->random, KEY_COUNT - COUNTER_COUNT); }
static int64_t draw_ttl(history *h) { return below(&h->random, 4) == 0 ? 1 + (int64_t)below(&h->random, 3000) : 0; }
static int draw_durable(history *h) { return below(&h->random, 8) == 0; }

static void expect(history *h, const char *what, kv_result result, bool fits) {
    if (!fits) history_fail(h, "%s answered %" PRId64 " (%s)", what, result, kv_caller_answer(h->caller)->fault.what);
}

/* Whether a call that ended like this has waited for the disk. A refused one has not, though it may have had the time
 * written down. */
static bool waited(const history *h, int durable, kv_result result) {
    return result != KV_ECONFLICT && (durable || h->options.sync == KV_SYNC_ALWAYS);
}

static uint64_t sequence_now(history *h) {
    kv_stats stats = {0};
    kv_store_measure(h->store, &stats);
    return stats.sequence;
}

static bool newer(const history *h, kv_result version) {
    return version > 0 && (uint64_t)version > h->version_max[last_state(h)];
}

static void do_put(history *h, int key, const uint8_t *value, size_t size, int64_t ttl_ms, int durable) {
    char text[KEY_TEXT_SIZE];
    size_t text_size = key_text(key, text);
    twin t = *newest(h);
    kv_result version = kv_put(h->caller, (const uint8_t *)text, text_size, value, size, ttl_ms, durable);
    expect(h, "put", version, newer(h, version));
    t.keys[key] = value_keep(h, value, size, (uint64_t)version, twin_deadline(h, &t, ttl_ms));
    push(h, &t, (uint64_t)version);
    acknowledge(h, waited(h, durable, version));
}

static void do_any_put(history *h) {
    uint8_t value[VALUE_SIZE_MAX];
    size_t size = draw_value(h, value, true);
    int key = draw_key(h);
    do_put(h, key, value, size, draw_ttl(h), draw_durable(h));
}

static void do_delete(history *h) {
    char text[KEY_TEXT_SIZE];
    int key = (int)below(&h->random, KEY_COUNT), durable = draw_durable(h);
    size_t text_size = key_text(key, text);
    twin t = *newest(h);
    bool alive = twin_look(h, &t, key);
    bool wrong = below(&h->random, 4) == 0;
    int64_t asked = wrong ? (int64_t)t.keys[key].version + 1000 : -1;
    kv_result version = kv_delete(h->caller, (const uint8_t *)text, text_size, asked, durable);
    if (wrong) {
        expect(h, "delete of another version", version, version == KV_ECONFLICT);
    } else if (!alive) {
        expect(h, "delete of nothing", version, version == kv_ending(KV_ABSENT));
    } else {
        expect(h, "delete", version, newer(h, version));
        t.keys[key] = (twin_key){.what = DELETED, .version = (uint64_t)version};
        push(h, &t, (uint64_t)version);
    }
    acknowledge(h, waited(h, durable, version));
}

static void do_cas(history *h) {
    char text[KEY_TEXT_SIZE];
    uint8_t value[VALUE_SIZE_MAX];
    size_t size = draw_value(h, value, true);
    int key = draw_key(h), durable = draw_durable(h);
    int64_t ttl_ms = draw_ttl(h);
    size_t text_size = key_text(key, text);
    twin t = *newest(h);
    bool alive = twin_look(h, &t, key);
    uint64_t current = alive ? t.keys[key].version : 0;
    uint64_t asked = below(&h->random, 4) == 0 ? current + 7 : current;
    kv_result version = kv_cas(h->caller, (const uint8_t *)text, text_size, value, size, asked, ttl_ms, durable);
    if (asked != current) {
        expect(h, "cas against another version", version, version == KV_ECONFLICT);
    } else {
        expect(h, "cas", version, newer(h, version));
        t.keys[key] = value_keep(h, value, size, (uint64_t)version, twin_deadline(h, &t, ttl_ms));
        push(h, &t, (uint64_t)version);
    }
    acknowledge(h, waited(h, durable, version));
}

static void do_incr(history *h) {
    char text[KEY_TEXT_SIZE], digits[24] = "0";
    int key = (int)below(&h->random, COUNTER_COUNT), durable = draw_durable(h);
    int64_t by = (int64_t)below(&h->random, 2000) - 1000, ttl_ms = draw_ttl(h);
    size_t text_size = key_text(key, text);
    twin t = *newest(h);
    bool alive = twin_look(h, &t, key);
    if (alive) {
        memcpy(digits, h->pool + t.keys[key].at, t.keys[key].size);
        digits[t.keys[key].size] = 0;
    }
    int64_t number = strtoll(digits, NULL, 10) + by;
    int64_t expires_ms = ttl_ms != 0 ? twin_deadline(h, &t, ttl_ms) : alive ? t.keys[key].expires_ms : 0;
    kv_result version = kv_incr(h->caller, (const uint8_t *)text, text_size, by, ttl_ms, durable);
    expect(h, "incr", version, newer(h, version) && kv_caller_answer(h->caller)->number == number);
    int size = snprintf(digits, sizeof digits, "%" PRId64, number);
    t.keys[key] = value_keep(h, (const uint8_t *)digits, (size_t)size, (uint64_t)version, expires_ms);
    push(h, &t, (uint64_t)version);
    acknowledge(h, waited(h, durable, version));
}

static void do_append(history *h) {
    char text[KEY_TEXT_SIZE];
    uint8_t value[VALUE_SIZE_MAX], joined[2 * VALUE_SIZE_MAX];
    int key = draw_key(h), durable = draw_durable(h);
    size_t size = draw_value(h, value, false), text_size = key_text(key, text);
    if (newest(h)->keys[key].size + size > VALUE_SIZE_MAX) {
        do_put(h, key, value, size, 0, durable);
        return;
    }
    twin t = *newest(h);
    bool alive = twin_look(h, &t, key);
    size_t old_size = alive ? t.keys[key].size : 0;
    if (old_size != 0) memcpy(joined, h->pool + t.keys[key].at, old_size);
    memcpy(joined + old_size, value, size);
    kv_result length = kv_append(h->caller, (const uint8_t *)text, text_size, value, size, 0, durable);
    uint64_t version = kv_caller_answer(h->caller)->version;
    expect(h, "append", length, length == (kv_result)(old_size + size) && newer(h, (kv_result)version));
    t.keys[key] = value_keep(h, joined, old_size + size, version, alive ? t.keys[key].expires_ms : 0);
    push(h, &t, version);
    acknowledge(h, waited(h, durable, length));
}

static void do_expire(history *h) {
    char text[KEY_TEXT_SIZE];
    int key = (int)below(&h->random, KEY_COUNT), durable = draw_durable(h);
    int64_t ttl_ms = below(&h->random, 3) == 0 ? 0 : 1 + (int64_t)below(&h->random, 3000);
    size_t text_size = key_text(key, text);
    twin t = *newest(h);
    bool alive = twin_look(h, &t, key);
    kv_result version = kv_expire(h->caller, (const uint8_t *)text, text_size, ttl_ms, durable);
    if (!alive || (ttl_ms == 0 && t.keys[key].expires_ms == 0)) {
        expect(h, "expire of nothing", version, version == kv_ending(KV_ABSENT));
    } else {
        expect(h, "expire", version, newer(h, version));
        t.keys[key].version = (uint64_t)version;
        t.keys[key].expires_ms = twin_deadline(h, &t, ttl_ms);
        push(h, &t, (uint64_t)version);
    }
    acknowledge(h, waited(h, durable, version));
}

static void do_get(history *h) {
    char text[KEY_TEXT_SIZE];
    int key = (int)below(&h->random, KEY_COUNT);
    size_t text_size = key_text(key, text);
    twin t = *newest(h);
    bool alive = twin_look(h, &t, key);
    kv_result size = kv_get(h->caller, (const uint8_t *)text, text_size);
    if (!alive) {
        expect(h, "get of nothing", size, size == kv_ending(KV_ABSENT));
    } else {
        bool same = size == (kv_result)t.keys[key].size;
        const uint8_t *value = h->pool + t.keys[key].at;
        expect(h, "get", size, same && memcmp(answer_bytes(h->caller, size), value, (size_t)size) == 0);
    }
    acknowledge(h, false); /* A read waits for no disk, though it may have had the time written down. */
}

/* Keys and values one behind the other, as the calls for many want them. */
typedef struct gathered {
    int keys[ITEM_COUNT_MAX];
    uint32_t key_sizes[ITEM_COUNT_MAX], value_sizes[ITEM_COUNT_MAX];
    uint8_t key_bytes[ITEM_COUNT_MAX * KEY_TEXT_SIZE], value_bytes[ITEM_COUNT_MAX * VALUE_SIZE_MAX];
    uint64_t keys_size, values_size;
    size_t count;
} gathered;

static void gather_items(history *h, gathered *g, bool distinct) {
    uint32_t seen = 0;
    size_t count = 1 + (size_t)below(&h->random, ITEM_COUNT_MAX);
    g->keys_size = g->values_size = g->count = 0;
    for (size_t i = 0; i < count; i++) {
        int key = draw_key(h);
        if (distinct && (seen >> key & 1)) continue;
        seen |= (uint32_t)1 << key;
        g->keys[g->count] = key;
        g->key_sizes[g->count] = (uint32_t)key_text(key, (char *)g->key_bytes + g->keys_size);
        g->value_sizes[g->count] = (uint32_t)draw_value(h, g->value_bytes + g->values_size, true);
        g->keys_size += g->key_sizes[g->count];
        g->values_size += g->value_sizes[g->count++];
    }
}

static kv_many many_of(const gathered *g, bool deletes) {
    return (kv_many){.count = g->count, .keys = g->key_bytes, .keys_size = g->keys_size, .key_sizes = g->key_sizes,
                     .values = deletes ? NULL : g->value_bytes, .values_size = deletes ? 0 : g->values_size,
                     .value_sizes = g->value_sizes};
}

/* A number each, in order: nothing else writes. */
static void do_put_many(history *h) {
    static _Thread_local gathered g;
    gather_items(h, &g, false);
    int durable = draw_durable(h);
    int64_t ttl_ms = draw_ttl(h);
    uint64_t version = sequence_now(h);
    twin t = *newest(h);
    kv_many many = many_of(&g, false);
    kv_result written = kv_put_many(h->caller, &many, ttl_ms, durable);
    expect(h, "put_many", written, written == (kv_result)g.count);
    const uint8_t *value = g.value_bytes;
    for (size_t i = 0; i < g.count; i++) {
        version++;
        t.keys[g.keys[i]] = value_keep(h, value, g.value_sizes[i], version, twin_deadline(h, &t, ttl_ms));
        push(h, &t, version);
        value += g.value_sizes[i];
    }
    acknowledge(h, waited(h, durable, written));
}

static void do_delete_many(history *h) {
    static _Thread_local gathered g;
    gather_items(h, &g, true);
    int durable = draw_durable(h);
    kv_result expected = 0;
    twin t = *newest(h);
    uint64_t version = sequence_now(h), states = h->state_count;
    for (size_t i = 0; i < g.count; i++) twin_look(h, &t, g.keys[i]);
    version += h->state_count - states;
    for (size_t i = 0; i < g.count; i++) {
        if (!twin_alive(h, &t, g.keys[i])) continue;
        t.keys[g.keys[i]] = (twin_key){.what = DELETED, .version = ++version};
        push(h, &t, version);
        expected++;
    }
    kv_many many = many_of(&g, true);
    kv_result written = kv_delete_many(h->caller, &many, durable);
    expect(h, "delete_many", written, written == expected);
    acknowledge(h, waited(h, durable, written));
}

enum { EXPECTATION_COUNT_MAX = 3 };

/* What a batch stands on, now and then: keys at the versions they have, the last perhaps at another. Looks at them as
 * the engine will. Whether all of it holds. */
static bool draw_expectations(history *h, twin *t, char (*texts)[KEY_TEXT_SIZE], kv_expectation *out, size_t *count) {
    *count = below(&h->random, 3) == 0 ? 1 + (size_t)below(&h->random, EXPECTATION_COUNT_MAX) : 0;
    for (size_t i = 0; i < *count; i++) {
        int key = draw_key(h);
        uint64_t current = twin_look(h, t, key) ? t->keys[key].version : 0;
        bool wrong = i + 1 == *count && below(&h->random, 3) == 0;
        out[i] = (kv_expectation){.key = (const uint8_t *)texts[i], .key_size = (uint32_t)key_text(key, texts[i]),
                                  .version = current + (wrong ? 7 : 0)};
        if (wrong) return false;
    }
    return true;
}

static void do_batch(history *h) {
    static _Thread_local gathered g;
    kv_operation operations[ITEM_COUNT_MAX];
    kv_expectation expectations[EXPECTATION_COUNT_MAX];
    char texts[EXPECTATION_COUNT_MAX][KEY_TEXT_SIZE];
    size_t expectation_count;
    gather_items(h, &g, true);
    int durable = draw_durable(h), changes = 0;
    twin t = *newest(h), look = t;
    bool holds = draw_expectations(h, &look, texts, expectations, &expectation_count);
    const uint8_t *key = g.key_bytes, *value = g.value_bytes;
    for (size_t i = 0; i < g.count; i++) {
        bool deletes = below(&h->random, 4) == 0;
        operations[i] = (kv_operation){.key = key, .key_size = g.key_sizes[i], .value = deletes ? NULL : value,
                                       .value_size = deletes ? 0 : g.value_sizes[i],
                                       .ttl_ms = deletes ? 0 : draw_ttl(h)};
        if (deletes && holds) twin_look(h, &look, g.keys[i]);
        key += g.key_sizes[i];
        value += g.value_sizes[i];
    }
    /* Deadlines are fixed when the batch is handed over; that something has expired is found afterwards. */
    kv_result version = kv_batch(h->caller, operations, g.count, expectations, expectation_count, durable);
    twin after = look;
    for (size_t i = 0; holds && i < g.count; i++) {
        bool deletes = operations[i].value == NULL;
        if (deletes && !twin_alive(h, &look, g.keys[i])) continue;
        changes++;
        if (deletes) after.keys[g.keys[i]] = (twin_key){.what = DELETED, .version = (uint64_t)version};
        else after.keys[g.keys[i]] = value_keep(h, operations[i].value, operations[i].value_size, (uint64_t)version,
                                                twin_deadline(h, &t, operations[i].ttl_ms));
    }
    if (!holds) expect(h, "batch against another version", version, version == KV_ECONFLICT);
    else expect(h, "batch", version, changes == 0 ? version == 0 : newer(h, version));
    if (changes != 0) push(h, &after, (uint64_t)version);
    acknowledge(h, waited(h, durable, version));
}

static void do_sync(history *h) {
    kv_result result = kv_sync(h->caller);
    expect(h, "sync", result, result == 0);
    acknowledge(h, true);
    big_reap(h->store);
}

static void do_clock(history *h) {
    h->now_ms += below(&h->random, 5) == 0 ? -(int64_t)below(&h->random, 5000) : (int64_t)below(&h->random, 1500);
    kv_sim_set_clock(h->sim, h->now_ms);
}

/* What the preparing and the syncing thread do when time is left. */
static void do_prepare(history *h) {
    kv_status status = kv_flow_prepare(h->store->flow, 0);
    if (status != KV_OK) history_fail(h, "prepare: %s", kv_status_name(status));
    kv_sim_mark(h->sim, -3);
}

static void do_settle(history *h) {
    big_reap(h->store); /* before anything is synced: what is retired and not durable has to stay */
    kv_status status = kv_flow_settle(h->store->flow);
    if (status != KV_OK) history_fail(h, "settle: %s", kv_status_name(status));
    kv_sim_mark(h->sim, -4);
}

static void do_checkpoint(history *h) {
    kv_checkpoint *checkpoint;
    const uint8_t *bytes;
    size_t size;
    uint64_t moment = last_state(h);
    kv_status status = kv_checkpoint_begin(h->store, &checkpoint);
    if (status == KV_EOF) return;
    if (status != KV_OK) {
        history_fail(h, "checkpoint_begin: %s", kv_status_name(status));
        return;
    }
    if (below(&h->random, 2)) do_any_put(h);
    status = kv_checkpoint_step(checkpoint);
    if (status == KV_MORE && below(&h->random, 2)) do_any_put(h);
    while (status == KV_MORE) {
        /* What is deleted while the run is built may be left out of it, and the delete lost in the power cut. */
        if (below(&h->random, 3) == 0) do_delete(h);
        status = kv_checkpoint_step(checkpoint);
    }
    if (status != KV_EOF) history_fail(h, "checkpoint_step: %s", kv_status_name(status));
    stamp_add(&h->durable, kv_sim_event_count(h->sim), moment);
    if (below(&h->random, 6) != 0 && status == KV_EOF) {
        kv_checkpoint_describe(checkpoint, &bytes, &size);
        catalog_add(h, bytes, size);
        status = kv_checkpoint_published(checkpoint);
        if (status != KV_OK) history_fail(h, "checkpoint_published: %s", kv_status_name(status));
    }
    kv_checkpoint_free(checkpoint);
    kv_sim_mark(h->sim, -5);
}

/* 0, 1: closed; 2: killed; 3: killed in a write. */
static void reopen(history *h, uint64_t how) {
    if (how < 2) history_close(h);
    else if (how == 2) history_kill(h);
    else history_kill_in_write(h);
    if (h->failed) return;
    int64_t last = (int64_t)h->catalog_count - 1, entry = last;
    if (last >= 0 && below(&h->random, 3) == 0) entry = (int64_t)below(&h->random, h->catalog_count + 1) - 1;
    history_open(h, entry);
}

static void do_reopen(history *h) { reopen(h, below(&h->random, 4)); }

/* Fills what is left of the segment, in few calls. */
static void do_roll(history *h) {
    enum { COUNT = KEY_COUNT - COUNTER_COUNT };
    uint8_t keys[COUNT * KEY_TEXT_SIZE], values[COUNT * INLINE_SIZE_MAX];
    uint32_t key_sizes[COUNT], value_sizes[COUNT];
    kv_many many = {.count = COUNT, .keys = keys, .key_sizes = key_sizes, .values = values,
                    .values_size = sizeof values, .value_sizes = value_sizes};
    for (int i = 0; i < COUNT; i++) {
        value_sizes[i] = INLINE_SIZE_MAX;
        key_sizes[i] = (uint32_t)key_text(COUNTER_COUNT + i, (char *)keys + many.keys_size);
        many.keys_size += key_sizes[i];
    }
    memset(values, 1 + (int)below(&h->random, 255), sizeof values);
    uint32_t segment = kv_flow_tail(h->store->flow).segment;
    while (!h->failed && kv_flow_tail(h->store->flow).segment == segment) {
        uint64_t version = sequence_now(h);
        twin t = *newest(h);
        kv_result written = kv_put_many(h->caller, &many, 0, 0);
        expect(h, "put_many", written, written == COUNT);
        for (int i = 0; i < COUNT; i++) {
            t.keys[COUNTER_COUNT + i] = value_keep(h, values, INLINE_SIZE_MAX, ++version, 0);
            push(h, &t, version);
        }
        acknowledge(h, waited(h, 0, written));
    }
    /* Recovery over more than one segment that nobody synced. */
    if (!h->failed && below(&h->random, 3) == 0) reopen(h, 2 + below(&h->random, 2));
}

static void history_step(history *h) {
    typedef void (*operation)(history *);
    static const operation usual[] = {do_any_put, do_any_put, do_any_put, do_any_put, do_delete, do_delete, do_cas,
                                      do_incr, do_append, do_append, do_expire, do_get, do_put_many, do_put_many,
                                      do_delete_many, do_batch, do_batch, do_batch, do_clock, do_sync};
    static const operation rare[] = {do_checkpoint, do_checkpoint, do_reopen, do_reopen, do_prepare, do_settle, do_roll,
                                     do_roll};
    h->event_before = kv_sim_event_count(h->sim);
    if (below(&h->random, 7) == 0) rare[below(&h->random, sizeof rare / sizeof rare[0])](h);
    else usual[below(&h->random, sizeof usual / sizeof usual[0])](h);
}

#pragma GCC diagnostic pop

#endif
