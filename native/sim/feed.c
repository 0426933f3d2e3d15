/* feed.c -- who follows instead of asking: consumers of a table's changes, and those who wait for something newer. See world.h.
 *
 * A consumer has a copy of a table, and how far it has come. It takes pages from any replica that is up, and whenever its
 * copy is exact by its own rule, it is compared with the table that the chosen records make at its version. In the end it
 * has come as far as the table. There are two tables a shard: the clients', and one that is written here, with several rows
 * in one version, deletes, trims and drops, which no history holds.
 *
 * Who waits is at one replica as long as that lives. An answer is held against what is applied there; and after every call
 * nobody is left waiting for what has come.
 *
 * Chance is a stream of its own here, so that who only looks changes nothing else. */
#include <stdio.h>
#include <stdlib.h>

#include "kv/xxh64.h"
#include "world.h"

enum { ROW_NAMES = 6, TABLES = 2, POLLS_MAX = 400 };
enum { NAME_KEY, NAME_TABLE, NAME_ROWS, NAME_SHARD, NAMES };

/* --- chance --- */

static uint64_t draw(world *w) { return kv_mix64(w->feed_random += 0x9E3779B97F4A7C15ULL); }
static uint32_t pick_own(world *w, uint32_t count) { return (uint32_t)(draw(w) >> 16) % count; }
static bool one_in(world *w, uint32_t count) { return pick_own(w, count) == 0; }
static uint64_t soon(world *w, uint32_t units) { return (1 + draw(w) % units) * UNIT; }

static size_t table_key(const world *w, uint32_t shard, uint32_t table, char key[16]) {
    return (size_t)snprintf(key, 16, "{%s}%c", w->tags[shard], table == 0 ? 't' : 'u');
}

/* --- what the chosen records make of a table --- */

static void effect_add(world *w, uint32_t shard, const effect *one) {
    effects *all = &w->effects[shard];
    if (all->count == all->capacity) {
        all->capacity = all->capacity == 0 ? 256 : 2 * all->capacity;
        all->at = realloc(all->at, all->capacity * sizeof *all->at);
        KV_ASSERT(all->at != NULL);
    }
    all->at[all->count++] = *one;
}

/* A value is told by the digest of its bytes, wherever these are. */
static uint64_t token_of(const kv_record *record) {
    kv_meta meta;
    bool named = (record->flags & KV_FLAG_META) && kv_meta_decode(record->value, record->value_size, &meta);
    return named ? meta.digest : kv_xxh64(record->value, record->value_size, 0);
}

/* A version that is applied for the first time, at replica i. */
void feed_note(world *w, uint32_t i, uint32_t shard, uint64_t version) {
    kv_record record;
    for (uint32_t nth = 0; kv_replica_record(w->nodes[i].core, shard, version, nth, &record) == KV_OK; nth++) {
        bool row = record.kind == KV_KIND_ROW_PUT || record.kind == KV_KIND_ROW_DELETE;
        bool table = record.kind == KV_KIND_TABLE_NEW || record.kind == KV_KIND_TABLE_DROP;
        if (!row && !table) continue;
        effect one = {.version = version, .table_id = record.table_id, .kind = record.kind, .key_size = record.key_size};
        KV_ASSERT(record.key_size <= sizeof one.key);
        memcpy(one.key, record.key, record.key_size);
        if (record.kind == KV_KIND_ROW_PUT) one.token = token_of(&record);
        effect_add(w, shard, &one);
    }
}

/* Under which id the name stands at a version; 0: it does not. */
static uint64_t id_at(const effects *all, const char *key, size_t size, uint64_t version) {
    uint64_t id = 0;
    for (size_t i = 0; i < all->count && all->at[i].version <= version; i++) {
        const effect *one = &all->at[i];
        if (one->key_size != size || memcmp(one->key, key, size) != 0) continue;
        if (one->kind == KV_KIND_TABLE_NEW) id = one->table_id;
        if (one->kind == KV_KIND_TABLE_DROP) id = 0;
    }
    return id;
}

static void row_set(feed *f, const uint8_t *key, uint32_t size, bool there, uint64_t token) {
    size_t at = 0;
    while (at < f->count && (f->rows[at].size != size || memcmp(f->rows[at].key, key, size) != 0)) at++;
    if (!there) {
        if (at < f->count) f->rows[at] = f->rows[--f->count];
        return;
    }
    if (at == f->count) {
        KV_ASSERT(f->count < FEED_ROWS_MAX && size <= sizeof f->rows[at].key);
        memcpy(f->rows[at].key, key, size);
        f->rows[at].size = size;
        f->count++;
    }
    f->rows[at].token = token;
}

static void table_at(const effects *all, uint64_t id, uint64_t version, feed *out) {
    out->count = 0;
    for (size_t i = 0; i < all->count && all->at[i].version <= version && id != 0; i++) {
        const effect *one = &all->at[i];
        if (one->table_id != id || (one->kind != KV_KIND_ROW_PUT && one->kind != KV_KIND_ROW_DELETE)) continue;
        row_set(out, one->key, one->key_size, one->kind == KV_KIND_ROW_PUT, one->token);
    }
}

static bool same_rows(const feed *left, const feed *right) {
    if (left->count != right->count) return false;
    for (size_t i = 0; i < left->count; i++) {
        bool found = false;
        for (size_t j = 0; j < right->count && !found; j++)
            found = left->rows[i].size == right->rows[j].size && left->rows[i].token == right->rows[j].token &&
                    memcmp(left->rows[i].key, right->rows[j].key, left->rows[i].size) == 0;
        if (!found) return false;
    }
    return true;
}

static void feed_compare(world *w, uint32_t number) {
    static feed truth;
    const feed *f = &w->feeds[number];
    char key[16];
    size_t size = table_key(w, f->shard, f->table, key);
    const effects *all = &w->effects[f->shard];
    w->counts.compared++;
    table_at(all, id_at(all, key, size, f->since), f->since, &truth);
    if (!same_rows(f, &truth))
        violate(w, "a copy of %s at version %llu has %zu rows, and not the table's %zu", key, (unsigned long long)f->since,
                f->count, truth.count);
}

/* A table at a replica is what the records make it that are applied there. Now and then: it takes time. */
void tables_look(world *w, uint32_t i) {
    static feed truth;
    kv_shard_state state;
    char key[16];
    uint32_t shard = pick_own(w, 4 * SHARDS), table = pick_own(w, TABLES);
    if (shard >= SHARDS) return;
    kv_replica_shard(w->nodes[i].core, shard, &state);
    if (!state.whole) return;
    size_t size = table_key(w, shard, table, key);
    const effects *all = &w->effects[shard];
    uint64_t id = id_at(all, key, size, state.applied);
    table_at(all, id, state.applied, &truth);
    kv_result count = kv_table_look(kv_replica_caller(w->nodes[i].core), (const uint8_t *)key, size);
    if (count < 0 ? id != 0 : (uint64_t)count != truth.count)
        violate(w, "%s at replica %u has %lld rows at version %llu, and not %zu", key, i + 1, (long long)count,
                (unsigned long long)state.applied, truth.count);
}

/* --- a consumer --- */

static void page_take(world *w, feed *f, const kv_replica_page *p, const uint8_t *bytes) {
    const kv_page *page = &p->changes.page;
    for (uint64_t i = 0; i < page->count; i++) {
        uint32_t size = page->sizes[2 * i], value_size = page->sizes[2 * i + 1];
        bool there = value_size != (uint32_t)KV_DELETED;
        row_set(f, bytes, size, there, there ? kv_xxh64(bytes + size, value_size, 0) : 0);
        bytes += size + (there ? value_size : 0);
    }
    if (f->since == 0) f->began = p->through;
    if (p->changes.version < f->since) violate(w, "a consumer is sent back to version %llu", (unsigned long long)p->changes.version);
    f->since = p->changes.version;
    if (p->through > f->through) f->through = p->through;
    bool ignored = w->mutations >> SIM_MUTATE_THROUGH_IGNORED & 1;
    f->exact = !p->changes.more && (f->since >= f->through || ignored);
}

static void feed_ask(world *w, uint32_t number, uint32_t i, uint64_t count_max) {
    feed *f = &w->feeds[number];
    node *x = &w->nodes[i];
    kv_replica_page page;
    kv_shard_state state;
    char key[16];
    size_t size = table_key(w, f->shard, f->table, key);
    if (!x->up) return;
    kv_replica_shard(x->core, f->shard, &state);
    kv_result got = kv_replica_changes(x->core, (const uint8_t *)key, size, f->since, f->began, count_max, &page);
    if (got == KV_ELACKING) kv_replica_fetch(x->core);
    if (got == kv_ending(KV_EOF) || got == KV_ELACKING) return;
    if (got < 0) {
        violate(w, "replica %u cannot tell the changes of %s: %lld", i + 1, key, (long long)got);
        return;
    }
    w->counts.pages++;
    if (!page.changes.complete) {
        if (f->since > state.applied) violate(w, "replica %u, which is behind a consumer, tells it to begin again", i + 1);
        w->counts.resyncs++;
        *f = (feed){.shard = f->shard, .table = f->table};
        return;
    }
    const kv_answer *answer = kv_caller_answer(kv_replica_caller(x->core));
    page_take(w, f, &page, got <= KV_SMALL_SIZE ? answer->small : answer->large);
    if (f->exact) feed_compare(w, number);
}

/* --- writing to the second table --- */

/* Without a name of its own, so whatever comes of it is fine. */
static void rows_write(world *w, uint32_t shard, uint32_t owner) {
    char table[16], rows[3][8];
    uint8_t values[3][8];
    kv_operation operations[3];
    size_t size = table_key(w, shard, 1, table);
    uint32_t count = 1 + pick_own(w, 3), first = pick_own(w, ROW_NAMES);
    for (uint32_t i = 0; i < count; i++) {
        bool there = !one_in(w, 4);
        kv_store64(values[i], ++w->feed_token);
        operations[i] = (kv_operation){.table = (const uint8_t *)table, .table_size = (uint32_t)size, .key = (const uint8_t *)rows[i]};
        operations[i].key_size = (uint32_t)snprintf(rows[i], sizeof rows[i], "r%u", (first + i) % ROW_NAMES);
        operations[i].value = there ? values[i] : NULL;
        operations[i].value_size = there ? 8 : 0;
    }
    kv_ask ask = {.kind = KV_REQUEST_BATCH, .attempt = 1, .token = TOKEN_NOBODY, .operations = operations, .operation_count = count};
    kv_ask other = {.attempt = 1, .token = TOKEN_NOBODY, .key = (const uint8_t *)table, .key_size = size};
    other.kind = one_in(w, 2) ? KV_REQUEST_TRIM : KV_REQUEST_DROP;
    other.argument = other.kind == KV_REQUEST_TRIM ? INT64_MAX : 0;
    ask.durability = digest_durability(w, one_in(w, 2));
    node_clock(w, owner);
    kv_replica_request(w->nodes[owner].core, one_in(w, 8) ? &other : &ask);
    node_drain(w, owner);
}

void rows_next(world *w) {
    uint32_t shard = pick_own(w, SHARDS);
    if (w->calm) return;
    world_at(w, soon(w, 12), EVENT_ROWS);
    for (uint32_t i = 0; i < w->n; i++)
        if (node_owns(w, i, shard)) {
            rows_write(w, shard, i);
            return;
        }
}

/* --- who waits --- */

static size_t waiter_key(const world *w, const waiter *one, char key[16]) {
    if (one->name == NAME_TABLE || one->name == NAME_ROWS) return table_key(w, one->shard, one->name == NAME_ROWS, key);
    return object_key(w, one->shard, OBJECT_KEY, key);
}

/* Of what it waits for, at a replica. */
static uint64_t version_at(const world *w, const waiter *one, uint32_t i) {
    kv_shard_state state;
    char key[16];
    size_t size = waiter_key(w, one, key);
    kv_replica_shard(w->nodes[i].core, one->shard, &state);
    if (one->name == NAME_SHARD) return state.applied;
    kv_result version = kv_version(kv_replica_caller(w->nodes[i].core), (const uint8_t *)key, size);
    return version < 0 ? 0 : (uint64_t)version;
}

static void waiter_ask(world *w, uint32_t number) {
    waiter *one = &w->waiters[number];
    uint32_t other = pick_own(w, w->n);
    char key[16];
    *one = (waiter){.generation = one->generation + 1, .node = pick_own(w, w->n), .shard = pick_own(w, SHARDS), .name = pick_own(w, NAMES)};
    one->ticks = one_in(w, 3) ? 0 : 1 + pick_own(w, 20);
    node *x = &w->nodes[one->node];
    if (!x->up) return;
    one->life = x->life;
    one->since = w->nodes[other].up ? version_at(w, one, other) + pick_own(w, 2) : 0;
    one->active = true;
    kv_ask ask = {.kind = KV_REQUEST_WAIT, .attempt = 1, .since = one->since, .ticks = one->ticks, .whole = one->name == NAME_SHARD,
                  .token = TOKEN_WAITER | (uint64_t)number << 8 | one->generation << 16, .key = (const uint8_t *)key};
    ask.key_size = waiter_key(w, one, key);
    w->counts.waits++;
    node_clock(w, one->node);
    kv_replica_request(x->core, &ask);
    node_drain(w, one->node);
}

/* An answer, as it leaves replica i. */
void waiter_told(world *w, uint32_t i, const kv_reply *reply) {
    waiter *one = &w->waiters[reply->token >> 8 & 255];
    if (!one->active || one->generation != reply->token >> 16 || one->node != i) {
        violate(w, "replica %u answers a wait that is over", i + 1);
        return;
    }
    one->active = false;
    if (reply->status != KV_ANSWER_OK) return;
    if (reply->version != version_at(w, one, i)) violate(w, "replica %u tells who waits of a version that is not there", i + 1);
    w->counts.waited += reply->version > one->since;
}

/* Nothing that has come is waited for. */
void waiters_look(world *w, uint32_t i) {
    for (uint32_t number = 0; number < WAITERS; number++) {
        waiter *one = &w->waiters[number];
        kv_shard_state state;
        if (!one->active || one->node != i || one->life != w->nodes[i].life) continue;
        kv_replica_shard(w->nodes[i].core, one->shard, &state);
        if (state.whole && version_at(w, one, i) > one->since) violate(w, "replica %u lets somebody wait for what has come", i + 1);
    }
}

static void waiter_next(world *w, uint32_t number) {
    waiter *one = &w->waiters[number];
    bool lives = one->active && w->nodes[one->node].up && w->nodes[one->node].life == one->life;
    if (!lives) {
        waiter_ask(w, number);
    } else if (one_in(w, 20)) {
        kv_replica_cancel(w->nodes[one->node].core, TOKEN_WAITER | (uint64_t)number << 8 | one->generation << 16);
        one->active = false;
    }
}

/* --- what happens when --- */

void feeds_begin(world *w) {
    w->feed_random = w->seed * 0x2545F4914F6CDD1DULL + 7;
    for (uint32_t i = 0; i < FEEDS; i++) {
        w->feeds[i] = (feed){.shard = i % SHARDS, .table = i / SHARDS % TABLES};
        world_at(w, soon(w, 40), EVENT_FEED)->node = i;
    }
    for (uint32_t i = 0; i < WAITERS; i++) world_at(w, soon(w, 40), EVENT_WAITER)->node = i;
    w->steady = one_in(w, 3);
    if (one_in(w, 3)) world_at(w, soon(w, 40), EVENT_ROWS);
}

void feed_next(world *w, uint32_t number) {
    static const uint64_t sizes[] = {1, 2, 3, 8};
    if (w->calm) return;
    feed_ask(w, number, pick_own(w, w->n), sizes[pick_own(w, 4)]);
    world_at(w, soon(w, 50), EVENT_FEED)->node = number;
}

void waiters_next(world *w, uint32_t number) {
    if (w->calm) return;
    waiter_next(w, number);
    world_at(w, soon(w, 30), EVENT_WAITER)->node = number;
}

/* When all has healed: everybody is asked in turn, until the copy is exact and as new as the owner's table. */
void feeds_finish(world *w) {
    for (uint32_t number = 0; number < FEEDS; number++) {
        feed *f = &w->feeds[number];
        waiter table = {.shard = f->shard, .name = f->table == 0 ? NAME_TABLE : NAME_ROWS};
        bool done = false;
        for (uint32_t poll = 0; poll < POLLS_MAX && !done && w->violation[0] == 0; poll++) {
            feed_ask(w, number, poll % w->n, 1 + poll % 3);
            if (poll % 50 == 49) world_run(w, w->now + 50 * UNIT); /* Bytes may be on their way. */
            uint64_t newest = 0;
            for (uint32_t i = 0; i < w->n; i++)
                if (node_owns(w, i, f->shard)) newest = version_at(w, &table, i);
            char key[16];
            size_t size = table_key(w, f->shard, f->table, key);
            bool there = id_at(&w->effects[f->shard], key, size, UINT64_MAX) != 0;
            done = f->exact && (there ? f->since == newest : f->count == 0);
        }
        if (!done && w->violation[0] == 0) violate(w, "consumer %u never gets an exact copy", number);
    }
}
