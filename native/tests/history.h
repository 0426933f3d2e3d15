/* history.h -- a store on a simulated disk beside a naive twin that knows every state it was ever in.
 *
 * The twin (twin.h) holds keys and tables. Each change that the engine may keep or lose by itself (one record; of a batch all of
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

#include "twin.h"

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

/* What happened in a history, for whoever asks whether it was worth anything. */
typedef struct figures {
    uint64_t seal_count, merge_count, checkpoint_count, drop_count, snapshot_count, row_count, compaction_count;
} figures;

typedef struct history {
    uint64_t random;
    kv_sim *sim;
    kv_options options;
    kv_store *store; /* NULL between openers */
    kv_caller *caller;
    int64_t now_ms;

    kv_snapshot *snapshot; /* NULL: none is open */
    twin frozen;           /* what it shows */
    int64_t frozen_ms;     /* as of then */
    figures seen;

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

static uint64_t chance(uint64_t *state) { return kv_mix64(*state += 0x9E3779B97F4A7C15ULL); }
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

/* --- reading back --- */

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
    observe_tables(c, out);
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

static void snapshot_close(history *h) {
    if (h->snapshot != NULL) kv_snapshot_close(h->snapshot);
    h->snapshot = NULL;
}

static void history_end(history *h) {
    snapshot_close(h);
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

/* Everything that a returned open shows is durable: what it found unsynced, it synced. Not so with KV_SYNC_NONE, where an
 * opener that finds the log not closed leaves that to the first sync. */
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
    if (!state_fits(&o, newest(h))) history_fail(h, "reopened to another state (catalog %" PRId64 ")", entry);
    const char *differs = counters_differ(&o, newest(h));
    if (differs != NULL) history_fail(h, "reopened with another %s (catalog %" PRId64 ")", differs, entry);
    if (o.stats.sequence < h->version_max[last_state(h)])
        history_fail(h, "reopened behind a version that was returned");
    acknowledge(h, o.stats.was_clean || h->options.sync != KV_SYNC_NONE);
}

/* The snapshot still shows what it was opened on. */
static void snapshot_check(history *h) {
    observed o;
    if (h->snapshot == NULL || h->failed) return;
    kv_caller_bind(h->caller, h->snapshot);
    observe(h->sim, h->store, h->caller, NULL, &o);
    kv_caller_bind(h->caller, NULL);
    kv_sim_set_clock(h->sim, h->now_ms);
    if (!names_fit(&o, &h->frozen, h->frozen_ms)) history_fail(h, "a snapshot has thawed");
    if (o.scan != NULL) history_fail(h, "a snapshot: %s", o.scan);
}

static void history_close(history *h) {
    kv_fault fault;
    snapshot_check(h);
    snapshot_close(h);
    kv_caller_free(h->caller);
    kv_status status = kv_store_close(h->store, &fault);
    if (status != KV_OK) history_fail(h, "close: %s: %s", kv_status_name(status), fault.what);
    kv_store_free(h->store);
    h->store = NULL;
    h->caller = NULL;
    acknowledge(h, true);
}

static void history_kill(history *h) {
    snapshot_check(h);
    snapshot_close(h);
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

/* --- tables --- */

static int draw_table(history *h) { return (int)below(&h->random, TABLE_COUNT); }

static bool table_alive(const history *h, const twin *t, int table) {
    return alive_then(t->tables[table].what, t->tables[table].expires_ms, twin_now(h, t));
}

/* As twin_look(). */
static bool look_at_expiry(history *h, twin *t, int32_t what, int64_t expires_ms) {
    bool alive = alive_then(what, expires_ms, twin_now(h, t));
    if (alive || what != THERE || t->clock_ms >= expires_ms) return alive;
    t->clock_ms = twin_now(h, t);
    push(h, t, 0);
    return false;
}

static bool table_look(history *h, twin *t, int table) {
    return look_at_expiry(h, t, t->tables[table].what, t->tables[table].expires_ms);
}

static bool row_alive(const history *h, const twin *t, int table, int row) {
    const twin_key *k = &t->tables[table].rows[row];
    return table_alive(h, t, table) && alive_then(k->what, k->expires_ms, twin_now(h, t));
}

static bool row_look(history *h, twin *t, int table, int row) {
    if (!table_look(h, t, table)) return false;
    return look_at_expiry(h, t, t->tables[table].rows[row].what, t->tables[table].rows[row].expires_ms);
}

static twin_key row_made(const uint8_t *value, size_t size, uint64_t version, int64_t expires_ms) {
    return (twin_key){.what = THERE, .size = (uint32_t)size, .version = version, .expires_ms = expires_ms,
                      .digest = kv_xxh64(value, size, 0)};
}

/* The table, made if it is not there. Its id is the store's to give: above what was, not above the version. */
static twin_table *table_made(history *h, twin *t, int table, uint64_t version) {
    char text[ROW_TEXT_SIZE];
    twin_table *made = &t->tables[table];
    if (!table_alive(h, t, table)) {
        uint64_t before = made->version > made->id ? made->version : made->id;
        if (made->what == THERE) twin_retire(t, table);
        kv_table_look(h->caller, (const uint8_t *)text, table_text(table, text));
        uint64_t id = (uint64_t)kv_caller_answer(h->caller)->number;
        expect(h, "the id of a new table", (kv_result)id, id > before && id <= version);
        *made = (twin_table){.what = THERE, .id = id};
    }
    made->version = version;
    h->seen.row_count++;
    return made;
}

/* A row by name: any of those; or one that got its id, if there is one. */
static int draw_row(history *h, const twin *t, int table) {
    int row = (int)below(&h->random, ROW_COUNT);
    return row >= NAMED_COUNT && t->tables[table].rows[row].what == NEVER ? row - NAMED_COUNT : row;
}

static int free_row(const twin *t, int table) {
    int row = NAMED_COUNT;
    while (row < ROW_COUNT && t->tables[table].rows[row].what != NEVER) row++;
    return row;
}

typedef struct row_call {
    char table_bytes[ROW_TEXT_SIZE], row_bytes[ROW_TEXT_SIZE];
    size_t table_size, row_size;
    int table, row;
} row_call;

#define TABLE_OF(call) (const uint8_t *)(call).table_bytes, (call).table_size
#define ROW_OF(call) TABLE_OF(call), (const uint8_t *)(call).row_bytes, (call).row_size

static row_call draw_call(history *h) {
    const twin *t = newest(h);
    row_call call = {.table = draw_table(h)};
    call.row = draw_row(h, t, call.table);
    call.table_size = table_text(call.table, call.table_bytes);
    call.row_size = row_text(&t->tables[call.table], call.row, call.row_bytes);
    return call;
}

/* A row that got its id from a table that has expired: in the next table it would be one by hand, which the twin has no
 * place for. */
static bool names_old_row(const history *h, const twin *t, const row_call *call) {
    return call->row >= NAMED_COUNT && !table_alive(h, t, call->table);
}

static void do_row_put(history *h) {
    uint8_t value[VALUE_SIZE_MAX];
    row_call call = draw_call(h);
    size_t size = draw_value(h, value, true);
    int durable = draw_durable(h);
    int64_t ttl_ms = draw_ttl(h);
    twin t = *newest(h);
    if (names_old_row(h, &t, &call)) return;
    bool alive = row_look(h, &t, call.table, call.row), cas = below(&h->random, 3) == 0;
    uint64_t current = alive ? t.tables[call.table].rows[call.row].version : 0, asked = current;
    if (cas && below(&h->random, 4) == 0) asked = current + 7;
    kv_result version = cas ? kv_row_cas(h->caller, ROW_OF(call), value, size, asked, ttl_ms, durable)
                            : kv_row_put(h->caller, ROW_OF(call), value, size, ttl_ms, durable);
    if (asked != current) {
        expect(h, "cas of a row against another version", version, version == KV_ECONFLICT);
    } else {
        expect(h, "put of a row", version, newer(h, version));
        twin_table *table = table_made(h, &t, call.table, (uint64_t)version);
        uint64_t id = table->rows[call.row].at;
        table->rows[call.row] = row_made(value, size, (uint64_t)version, twin_deadline(h, &t, ttl_ms));
        table->rows[call.row].at = id;
        push(h, &t, (uint64_t)version);
    }
    acknowledge(h, waited(h, durable, version));
}

static void do_row_delete(history *h) {
    row_call call = draw_call(h);
    int durable = draw_durable(h);
    twin t = *newest(h);
    if (names_old_row(h, &t, &call)) return;
    bool alive = row_look(h, &t, call.table, call.row);
    kv_result version = kv_row_delete(h->caller, ROW_OF(call), -1, durable);
    if (!alive) {
        expect(h, "delete of no row", version, version == kv_ending(KV_ABSENT));
    } else {
        expect(h, "delete of a row", version, newer(h, version));
        twin_table *table = table_made(h, &t, call.table, (uint64_t)version);
        table->rows[call.row] = (twin_key){.what = DELETED, .version = (uint64_t)version, .at = table->rows[call.row].at};
        push(h, &t, (uint64_t)version);
    }
    acknowledge(h, waited(h, durable, version));
}

static void drop_table(history *h, int table) {
    char text[ROW_TEXT_SIZE];
    int durable = draw_durable(h);
    size_t size = table_text(table, text);
    twin t = *newest(h);
    bool alive = table_look(h, &t, table);
    kv_result version = below(&h->random, 2) ? kv_table_drop(h->caller, (const uint8_t *)text, size, durable)
                                             : kv_delete(h->caller, (const uint8_t *)text, size, -1, durable);
    if (!alive) {
        expect(h, "drop of nothing", version, version == kv_ending(KV_ABSENT));
    } else {
        expect(h, "drop", version, newer(h, version));
        twin_retire(&t, table);
        t.tables[table].version = (uint64_t)version;
        push(h, &t, (uint64_t)version);
        h->seen.drop_count++;
    }
    acknowledge(h, waited(h, durable, version));
}

static void do_drop(history *h) { drop_table(h, draw_table(h)); }

static void do_row_append(history *h) {
    uint8_t value[VALUE_SIZE_MAX];
    char text[ROW_TEXT_SIZE];
    int number = draw_table(h), durable = draw_durable(h);
    size_t size = draw_value(h, value, true), text_size = table_text(number, text);
    int64_t ttl_ms = draw_ttl(h);
    twin t = *newest(h);
    if (free_row(&t, number) == ROW_COUNT && table_alive(h, &t, number)) {
        drop_table(h, number);
        return;
    }
    table_look(h, &t, number);
    kv_result version = kv_row_append(h->caller, (const uint8_t *)text, text_size, value, size, ttl_ms, durable);
    uint64_t id = (uint64_t)kv_caller_answer(h->caller)->number;
    expect(h, "append of a row", version, newer(h, version));
    twin_table *table = table_made(h, &t, number, (uint64_t)version);
    expect(h, "the id of a row", (kv_result)id, id >= table->next_row && id >= (uint64_t)version);
    int row = free_row(&t, number);
    table->rows[row] = row_made(value, size, (uint64_t)version, twin_deadline(h, &t, ttl_ms));
    table->rows[row].at = id;
    table->next_row = id + 1;
    push(h, &t, (uint64_t)version);
    acknowledge(h, waited(h, durable, version));
}

static void do_row_get(history *h) {
    row_call call = draw_call(h);
    twin t = *newest(h);
    if (names_old_row(h, &t, &call)) return;
    const twin_key *row = &t.tables[call.table].rows[call.row];
    bool alive = row_look(h, &t, call.table, call.row);
    kv_result size = kv_row_get(h->caller, ROW_OF(call));
    bool same = alive && size == (kv_result)row->size && kv_caller_answer(h->caller)->version == row->version &&
                kv_xxh64(answer_bytes(h->caller, size), (size_t)size, 0) == row->digest;
    expect(h, "get of a row", size, alive ? same : size == kv_ending(KV_ABSENT));
    acknowledge(h, false);
}

static void do_table_expire(history *h) {
    char text[ROW_TEXT_SIZE];
    int number = draw_table(h), durable = draw_durable(h);
    int64_t ttl_ms = below(&h->random, 3) == 0 ? 0 : 500 + (int64_t)below(&h->random, 6000);
    size_t text_size = table_text(number, text);
    twin t = *newest(h);
    bool alive = table_look(h, &t, number);
    kv_result version = kv_expire(h->caller, (const uint8_t *)text, text_size, ttl_ms, durable);
    if (!alive || (ttl_ms == 0 && t.tables[number].expires_ms == 0)) {
        expect(h, "expire of no table", version, version == kv_ending(KV_ABSENT));
    } else {
        expect(h, "expire of a table", version, newer(h, version));
        t.tables[number].version = (uint64_t)version;
        t.tables[number].expires_ms = twin_deadline(h, &t, ttl_ms);
        push(h, &t, (uint64_t)version);
    }
    acknowledge(h, waited(h, durable, version));
}

/* Above the table's id: a floor below says nothing that the id does not say. */
static void do_trim(history *h) {
    char text[ROW_TEXT_SIZE];
    int number = draw_table(h), durable = draw_durable(h);
    size_t text_size = table_text(number, text);
    twin t = *newest(h);
    twin_table *table = &t.tables[number];
    bool alive = table_look(h, &t, number);
    uint64_t version = alive && table->version > table->id ? table->id + 1 + below(&h->random, table->version - table->id + 3) : 0;
    kv_result floor = kv_table_trim(h->caller, (const uint8_t *)text, text_size, version, durable);
    if (version > table->version) version = table->version;
    if (!alive) {
        expect(h, "trim of nothing", floor, floor == kv_ending(KV_ABSENT));
    } else {
        if (version < table->floor) version = table->floor;
        expect(h, "trim", floor, floor == (kv_result)version);
        bool raised = version > table->floor;
        table->floor = version;
        if (raised) push(h, &t, sequence_now(h));
    }
    acknowledge(h, waited(h, durable, floor));
}

/* One moment that stays. Whatever has expired is looked at first, so that what the snapshot shows is never news. */
static void do_snapshot(history *h) {
    char text[ROW_TEXT_SIZE], row[ROW_TEXT_SIZE];
    snapshot_check(h);
    snapshot_close(h);
    twin t = *newest(h);
    for (int i = 0; i < KEY_COUNT; i++) {
        twin_look(h, &t, i);
        kv_get(h->caller, (const uint8_t *)row, key_text(i, row));
    }
    for (int i = 0; i < TABLE_COUNT; i++)
        for (int r = 0; r < ROW_COUNT; r++) {
            if (r >= NAMED_COUNT && t.tables[i].rows[r].what == NEVER) continue;
            row_look(h, &t, i, r);
            kv_row_get(h->caller, (const uint8_t *)text, table_text(i, text), (const uint8_t *)row, row_text(&t.tables[i], r, row));
        }
    kv_status status = kv_snapshot_open(h->store, &h->snapshot);
    if (status != KV_OK) history_fail(h, "snapshot_open: %s", kv_status_name(status));
    h->frozen = t;
    h->frozen_ms = twin_now(h, &t);
    h->seen.snapshot_count++;
    acknowledge(h, false);
}

/* --- many --- */

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

enum { BATCH_ROW_COUNT_MAX = 4 };

/* Rows of a batch: names that differ, in any tables, and appends. */
typedef struct batch_rows {
    row_call calls[BATCH_ROW_COUNT_MAX];
    uint8_t values[BATCH_ROW_COUNT_MAX][VALUE_SIZE_MAX];
    size_t count;
} batch_rows;

/* Behind the `count` operations that there are. */
static void gather_rows(history *h, const twin *t, batch_rows *rows, kv_operation *operations) {
    uint64_t seen = 0;
    size_t wanted = below(&h->random, 2) * below(&h->random, BATCH_ROW_COUNT_MAX + 1);
    rows->count = 0;
    for (size_t i = 0; i < wanted; i++) {
        row_call *call = &rows->calls[rows->count];
        uint8_t *value = rows->values[rows->count];
        *call = draw_call(h);
        bool appends = below(&h->random, 3) == 0;
        if (appends) call->row = ROW_COUNT;
        /* As many appends as there is room for, if nothing else was written. */
        int slot = appends ? ROW_COUNT + free_row(t, call->table) : call->row;
        if (appends && table_alive(h, t, call->table) && free_row(t, call->table) == ROW_COUNT) continue;
        uint64_t bit = (uint64_t)1 << (call->table * 2 * (ROW_COUNT + 1) + slot);
        if ((seen & bit) || (!appends && names_old_row(h, t, call))) continue;
        seen |= bit;
        size_t size = draw_value(h, value, true);
        bool deletes = !appends && below(&h->random, 4) == 0;
        operations[rows->count++] = (kv_operation){
            .table = (const uint8_t *)call->table_bytes, .table_size = (uint32_t)call->table_size,
            .key = appends ? NULL : (const uint8_t *)call->row_bytes, .key_size = appends ? 0 : (uint32_t)call->row_size,
            .value = deletes ? NULL : value, .value_size = deletes ? 0 : size, .ttl_ms = deletes ? 0 : draw_ttl(h)};
    }
}

/* What the batch looks at, where it looks. */
static void look_at_rows(history *h, twin *look, const batch_rows *rows, const kv_operation *operations) {
    for (size_t i = 0; i < rows->count; i++) table_look(h, look, rows->calls[i].table);
    for (size_t i = 0; i < rows->count; i++)
        if (operations[i].value == NULL) row_look(h, look, rows->calls[i].table, rows->calls[i].row);
}

/* What became of them; the number written. `t`: when the batch was handed over. */
static int show_rows(history *h, const twin *t, const twin *look, twin *after, const batch_rows *rows,
                     const kv_operation *operations, uint64_t version) {
    int changes = 0;
    for (size_t i = 0; i < rows->count; i++) {
        const row_call *call = &rows->calls[i];
        const kv_operation *one = &operations[i];
        bool deletes = one->value == NULL, appends = one->key == NULL;
        if (deletes && !row_alive(h, look, call->table, call->row)) continue;
        twin_table *table = table_made(h, after, call->table, version);
        int row = appends ? free_row(after, call->table) : call->row;
        uint64_t id = appends ? one->row_id : table->rows[row].at;
        if (appends) expect(h, "the id of a row in a batch", (kv_result)id, id >= table->next_row && id + ROW_COUNT > version);
        if (appends) table->next_row = id + 1;
        table->rows[row] = deletes ? (twin_key){.what = DELETED, .version = version}
                                   : row_made(one->value, one->value_size, version, twin_deadline(h, t, one->ttl_ms));
        table->rows[row].at = id;
        changes++;
    }
    return changes;
}

static void do_batch(history *h) {
    static _Thread_local gathered g;
    static _Thread_local batch_rows rows;
    kv_operation operations[ITEM_COUNT_MAX + BATCH_ROW_COUNT_MAX];
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
    gather_rows(h, &t, &rows, operations + g.count);
    if (holds) look_at_rows(h, &look, &rows, operations + g.count);
    /* Deadlines are fixed when the batch is handed over; that something has expired is found afterwards. */
    kv_result version = kv_batch(h->caller, operations, g.count + rows.count, expectations, expectation_count, durable);
    twin after = look;
    for (size_t i = 0; holds && i < g.count; i++) {
        bool deletes = operations[i].value == NULL;
        if (deletes && !twin_alive(h, &look, g.keys[i])) continue;
        changes++;
        if (deletes) after.keys[g.keys[i]] = (twin_key){.what = DELETED, .version = (uint64_t)version};
        else after.keys[g.keys[i]] = value_keep(h, operations[i].value, operations[i].value_size, (uint64_t)version,
                                                twin_deadline(h, &t, operations[i].ttl_ms));
    }
    if (holds) changes += show_rows(h, &t, &look, &after, &rows, operations + g.count, (uint64_t)version);
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

static uint64_t run_count(history *h) {
    kv_stats stats = {0};
    kv_store_measure(h->store, &stats);
    return stats.run_count;
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
        uint64_t runs = run_count(h);
        status = kv_checkpoint_published(checkpoint);
        if (status != KV_OK) history_fail(h, "checkpoint_published: %s", kv_status_name(status));
        h->seen.checkpoint_count++;
        h->seen.merge_count += runs != 0 && run_count(h) <= runs;
    }
    kv_checkpoint_free(checkpoint);
    kv_sim_mark(h->sim, -5);
}

/* Whether time has ended something that is still there: compaction deletes it, under a version of its own. */
static bool any_expired(const history *h, const twin *t) {
    bool any = false;
    for (int i = 0; i < KEY_COUNT; i++) any |= t->keys[i].what == THERE && !twin_alive(h, t, i);
    for (int i = 0; i < TABLE_COUNT; i++) {
        if (t->tables[i].what != THERE) continue;
        any |= !table_alive(h, t, i);
        for (int r = 0; r < ROW_COUNT; r++) any |= t->tables[i].rows[r].what == THERE && !row_alive(h, t, i, r);
    }
    return any;
}

/* The oldest segments are emptied, and go with the next checkpoint; nothing of it can be seen. */
static void do_compact(history *h) {
    kv_segment_stats *segments;
    size_t count;
    kv_compaction *one;
    if (any_expired(h, newest(h))) return;
    KV_ASSERT(kv_store_segments(h->store, &segments, &count) == KV_OK);
    for (size_t i = 0; i < count && i < 3; i++) {
        if (!segments[i].sealed || kv_compaction_begin(h->store, segments[i].id, &one) != KV_OK) continue;
        kv_status status;
        do status = kv_compaction_step(one);
        while (status == KV_MORE);
        if (status != KV_EOF) history_fail(h, "compaction: %s", kv_status_name(status));
        h->seen.compaction_count++;
        kv_compaction_free(one);
    }
    free(segments);
    kv_sim_mark(h->sim, -6);
    if (below(&h->random, 2)) do_checkpoint(h);
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
                                      do_delete_many, do_batch, do_batch, do_batch, do_clock, do_sync,
                                      do_row_put, do_row_put, do_row_put, do_row_put, do_row_delete, do_row_append,
                                      do_row_append, do_row_get, do_table_expire, do_trim, do_drop};
    static const operation rare[] = {do_checkpoint, do_checkpoint, do_reopen, do_reopen, do_prepare, do_settle, do_roll,
                                     do_roll, do_snapshot, do_snapshot, do_snapshot, do_compact};
    h->event_before = kv_sim_event_count(h->sim);
    uint32_t segment = kv_flow_tail(h->store->flow).segment;
    if (below(&h->random, 7) == 0) rare[below(&h->random, sizeof rare / sizeof rare[0])](h);
    else usual[below(&h->random, sizeof usual / sizeof usual[0])](h);
    if (!h->failed) h->seen.seal_count += kv_flow_tail(h->store->flow).segment - segment;
}

#pragma GCC diagnostic pop

#endif
