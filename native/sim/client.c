/* client.c -- what clients ask, how they try again, and what they saw. See world.h.
 *
 * A client has one operation under way. It sends it to whom it takes for the owner, or to anybody, and again, as another
 * attempt, when no answer comes; after many it gives up and never learns what came of it. Late copies of a request are on
 * their way all the time. What it saw goes into the history, for the judge.
 *
 * Keys of a shard share its tag: k, f (few values), c (a counter), p and q (balances that add up to zero, always written
 * together), t (a table), m (what time may end). */
#include <stdio.h>
#include <stdlib.h>

#include "world.h"

enum { FINAL = 255, TRIES_MAX = 14, FINAL_TRIES_MAX = 200, PAD_WORDS = 8, BALANCE_BIAS = 1 << 20 };

static uint32_t object_index(uint32_t shard, enum object object) { return shard * OBJECT_KINDS + object; }

size_t object_key(const world *w, uint32_t shard, enum object object, char key[16]) {
    static const char names[OBJECT_KINDS] = {'k', 'f', 'c', 'p', 't', 'm'};
    return (size_t)snprintf(key, 16, "{%s}%c", w->tags[shard], names[object]);
}

/* --- values --- */

static uint64_t balances_word(int64_t first, int64_t second) {
    return (uint64_t)(uint32_t)(first + BALANCE_BIAS) << 32 | (uint32_t)(second + BALANCE_BIAS);
}

/* A token, and zeros behind it where the value is to be large. */
static size_t value_put(uint8_t *to, uint64_t token, bool large) {
    size_t size = large ? 8 * PAD_WORDS : 8;
    memset(to, 0, size);
    kv_store64(to, token);
    return size;
}

static kv_history_value value_take(enum object object, const uint8_t *bytes, int64_t size) {
    uint64_t word = 0;
    if (size < 0) return kv_history_absent();
    if (object == OBJECT_COUNTER) {
        char text[24] = {0};
        memcpy(text, bytes, (size_t)size < sizeof text ? (size_t)size : sizeof text - 1);
        return kv_history_present((uint64_t)strtoll(text, NULL, 10));
    }
    for (int64_t at = 0; at + 8 <= size; at += 8)
        if (kv_load64(bytes + at) != 0) word = kv_history_fold(word, kv_load64(bytes + at));
    return kv_history_present(word);
}

/* --- asking --- */

/* Everything that an ask points to. */
typedef struct asked {
    kv_ask ask;
    kv_operation operations[2];
    kv_expectation expectations[2];
    char keys[2][16];
    uint8_t values[2][8 * PAD_WORDS];
} asked;

static void ask_pair(asked *a, const operation *op, size_t key_size) {
    kv_ask *ask = &a->ask;
    memcpy(a->keys[1], a->keys[0], sizeof a->keys[0]);
    a->keys[1][key_size - 1] = 'q';
    kv_store64(a->values[0], (uint64_t)op->first);
    kv_store64(a->values[1], (uint64_t)op->second);
    for (int i = 0; i < 2; i++) {
        const uint8_t *key = (const uint8_t *)a->keys[i];
        a->operations[i] = (kv_operation){.key = key, .key_size = (uint32_t)key_size, .value = a->values[i], .value_size = 8};
        a->expectations[i] = (kv_expectation){.key = key, .key_size = (uint32_t)key_size, .version = op->version};
    }
    ask->operations = a->operations;
    ask->operation_count = 2;
    ask->expectations = a->expectations;
    ask->expectation_count = 2;
}

static void ask_build(const world *w, const operation *op, asked *a) {
    kv_ask *ask = &a->ask;
    *a = (asked){0};
    size_t key_size = object_key(w, op->shard, op->object, a->keys[0]);
    const uint8_t *key = (const uint8_t *)a->keys[0];
    *ask = (kv_ask){.kind = op->kind, .follower = op->follower, .attempt = op->attempt, .lane = op->lane,
                    .client = op->lane, .number = op->number, .seen = op->seen, .key = key, .key_size = key_size};
    ask->ttl_ms = op->ttl;
    ask->durability = op->data;
    ask->value = a->values[0];
    ask->value_size = value_put(a->values[0], op->token, op->large && op->kind == KV_REQUEST_PUT);
    if (op->kind == KV_REQUEST_CAS) ask->argument = (int64_t)op->version;
    if (op->kind == KV_REQUEST_DELETE) ask->argument = -1;
    if (op->kind == KV_REQUEST_INCR) ask->argument = (int64_t)op->token;
    if (op->kind == KV_REQUEST_BATCH) ask_pair(a, op, key_size);
    if (op->kind == KV_REQUEST_ROW_APPEND) {
        ask->table = key;
        ask->table_size = key_size;
    }
}

/* Reaches a replica, which may decide to take the shard over. */
void request_arrive(world *w, const event *e) {
    node *x = &w->nodes[e->node];
    operation op;
    kv_shard_state state;
    asked a;
    if (!x->up) return;
    memcpy(&op, e->bytes, sizeof op);
    node_clock(w, e->node);
    kv_replica_shard(x->core, op.shard, &state);
    bool follows = op.follower && op.attempt == 1;
    if (!state.owned && !follows && !w->policy) {
        double probability = state.owner == 0 ? 1 : w->calm ? 0.3 : op.attempt < 3 ? w->takeover : 0.25;
        if (likely(w, probability)) node_takeover(w, e->node, likely(w, 0.7) ? 1u << op.shard : (1u << SHARDS) - 1);
    }
    ask_build(w, &op, &a);
    a.ask.token = e->argument;
    trace(w, "client %llu asks %u: %u", (unsigned long long)(e->argument & 255), e->node + 1, op.kind);
    kv_replica_request(x->core, &a.ask);
    node_drain(w, e->node);
}

void request_send(world *w, uint32_t to, const operation *op, uint64_t token, uint64_t late) {
    event *e = world_at(w, between(w, 0.3, 1.5) + late, EVENT_ARRIVE);
    e->node = to;
    e->argument = token;
    e->size = sizeof *op;
    e->bytes = malloc(sizeof *op);
    KV_ASSERT(e->bytes != NULL);
    memcpy(e->bytes, op, sizeof *op);
}

/* --- keys that nobody looks at --- */

/* Without a name of its own, so whatever comes of it is fine. */
void bulk_next(world *w) {
    enum { BULK_COUNT = 100 };
    kv_operation operations[BULK_COUNT];
    char keys[BULK_COUNT][16];
    uint32_t shard = w->bulk % SHARDS, owner = w->n;
    for (uint32_t i = 0; i < w->n; i++)
        if (node_owns(w, i, shard)) owner = i;
    if (w->bulk == 0 || w->calm) return;
    world_at(w, between(w, 1, 8), EVENT_BULK);
    if (owner == w->n) return;
    w->bulk--;
    for (uint32_t i = 0; i < BULK_COUNT; i++) {
        int size = snprintf(keys[i], sizeof keys[i], "{%s}%u", w->tags[shard], w->bulk * BULK_COUNT + i);
        operations[i] = (kv_operation){.key = (const uint8_t *)keys[i], .key_size = (uint32_t)size,
                                       .value = (const uint8_t *)keys[i], .value_size = (uint32_t)size};
    }
    kv_ask ask = {.kind = KV_REQUEST_BATCH, .attempt = 1, .operations = operations, .operation_count = BULK_COUNT,
                  .token = TOKEN_NOBODY, .durability = digest_durability(w, false)};
    node_clock(w, owner);
    kv_replica_request(w->nodes[owner].core, &ask);
    node_drain(w, owner);
}

/* --- a client's life --- */

void clients_begin(world *w) {
    if (w->bulk != 0) world_at(w, between(w, 5, 25), EVENT_BULK);
    for (uint32_t i = 0; i < CLIENTS; i++) {
        w->clients[i].left = OPS_PER_CLIENT;
        for (uint32_t s = 0; s < SHARDS; s++) w->clients[i].hint[s] = -1;
        world_at(w, between(w, 5, 25), EVENT_CLIENT_NEXT)->node = i;
    }
}

static uint32_t pick_bit(world *w, uint32_t bits) {
    for (;;) {
        uint32_t bit = pick(w, 32);
        if (bits >> bit & 1) return bit;
    }
}

static uint8_t weighted(world *w, const uint8_t kinds[], const double weights[], size_t count) {
    double sum = 0;
    for (size_t i = 0; i < count; i++) sum += weights[i];
    double at = chance(w) * sum;
    for (size_t i = 0; i + 1 < count; i++) {
        if (at < weights[i]) return kinds[i];
        at -= weights[i];
    }
    return kinds[count - 1];
}

static uint8_t kind_choose(world *w, enum object object) {
    static const uint8_t key_kinds[] = {KV_REQUEST_PUT, KV_REQUEST_APPEND, KV_REQUEST_CAS, KV_REQUEST_DELETE, KV_REQUEST_GET};
    static const uint8_t counter_kinds[] = {KV_REQUEST_INCR, KV_REQUEST_DELETE, KV_REQUEST_GET};
    static const uint8_t pair_kinds[] = {KV_REQUEST_BATCH, KV_REQUEST_READ};
    static const uint8_t mortal_kinds[] = {KV_REQUEST_PUT, KV_REQUEST_DELETE, KV_REQUEST_GET};
    static const uint8_t table_kinds[] = {KV_REQUEST_ROW_APPEND, KV_REQUEST_DROP, KV_REQUEST_READ};
    switch (object) {
    case OBJECT_COUNTER: return weighted(w, counter_kinds, (const double[]){4, 0.5, 4}, 3);
    case OBJECT_PAIR: return weighted(w, pair_kinds, (const double[]){3, 3}, 2);
    case OBJECT_TABLE: return weighted(w, table_kinds, (const double[]){4, 0.3, 3}, 3);
    case OBJECT_MORTAL: return weighted(w, mortal_kinds, (const double[]){3, 0.5, 5}, 3);
    default: return weighted(w, key_kinds, (const double[]){4, 1.5, 2.5, 0.7, 5}, 5);
    }
}

static bool is_read(const operation *op) { return op->kind == KV_REQUEST_GET || op->kind == KV_REQUEST_READ; }

/* The history's word for it. */
static void entry_describe(kv_history_op *h, const operation *op) {
    h->argument = kv_history_present(op->token);
    switch (op->kind) {
    case KV_REQUEST_PUT: h->kind = KV_HISTORY_PUT; break;
    case KV_REQUEST_APPEND: h->kind = KV_HISTORY_APPEND; break;
    case KV_REQUEST_INCR: h->kind = KV_HISTORY_INCR; break;
    case KV_REQUEST_ROW_APPEND: h->kind = KV_HISTORY_ROW_APPEND; break;
    case KV_REQUEST_DROP: h->kind = KV_HISTORY_DROP; break;
    case KV_REQUEST_DELETE: h->kind = KV_HISTORY_DELETE; break;
    case KV_REQUEST_CAS:
    case KV_REQUEST_BATCH:
        h->kind = KV_HISTORY_CAS_VERSION;
        h->expected_version = op->version;
        if (op->kind == KV_REQUEST_BATCH) h->argument = kv_history_present(balances_word(op->first, op->second));
        break;
    default:
        h->kind = op->object == OBJECT_TABLE ? KV_HISTORY_ROWS : KV_HISTORY_GET;
        h->argument = kv_history_present(1);
        h->limit = UINT32_MAX;
        break;
    }
}

uint32_t entry_new(world *w, const operation *op, uint64_t who, uint64_t number) {
    KV_ASSERT(w->entry_count < ENTRIES_MAX);
    entry *one = &w->entries[w->entry_count];
    *one = (entry){.object = object_index(op->shard, op->object), .asked = w->now};
    one->op = (kv_history_op){.call = w->order++, .ret = KV_HISTORY_NEVER, .client = who, .request = number};
    entry_describe(&one->op, op);
    w->counts.operations++;
    return (uint32_t)w->entry_count++;
}

/* What expires is deleted once, some time after it was written: by whoever owns it then, by that one's clock. */
static void entry_mortal(world *w, const operation *op) {
    uint32_t at = entry_new(w, op, FINAL, op->token);
    kv_history_op *h = &w->entries[at].op;
    h->kind = KV_HISTORY_CAS;
    h->expected = kv_history_present(op->token);
    h->argument = kv_history_absent();
    w->counts.operations--;
}

static void client_go(world *w, uint32_t i) {
    client *c = &w->clients[i];
    c->tries++;
    c->sends++;
    int hint = c->hint[c->op.shard];
    uint32_t to = hint >= 0 && likely(w, w->loyal) ? (uint32_t)hint : pick(w, w->n);
    if (w->readers >= 0 && !w->calm && is_read(&c->op) && i % 2 == 0) to = (uint32_t)w->readers;
    uint64_t late = !w->calm && likely(w, w->late_client) ? rarely(w, 50) : 0;
    request_send(w, to, &c->op, i | (uint64_t)c->sends << 8 | c->op.number << 32, late);
    event *e = world_at(w, between(w, 12, 30), EVENT_CLIENT_TIMEOUT);
    e->node = i;
    e->other = c->sends;
    e->argument = (uint64_t)-1;
}

static void operation_choose(world *w, client *c, operation *op) {
    uint32_t object = object_index(op->shard, op->object);
    op->kind = kind_choose(w, op->object);
    op->version = c->version[object];
    op->token = op->object == OBJECT_COUNTER ? 1 : op->object == OBJECT_FEW ? 1 + pick(w, 2) : 0;
    if (op->kind == KV_REQUEST_BATCH) {
        int64_t amount = 1 + pick(w, 9);
        op->first = c->balance[object][0] - amount;
        op->second = c->balance[object][1] + amount;
    }
}

void client_next(world *w, uint32_t i) {
    client *c = &w->clients[i];
    if (c->left == 0 || w->calm) return;
    c->left--;
    operation *op = &c->op;
    *op = (operation){.shard = pick_bit(w, w->shards_busy), .object = (enum object)pick_bit(w, w->objects_busy),
                      .number = ++c->number, .attempt = 1};
    operation_choose(w, c, op);
    if (op->token == 0) op->token = (uint64_t)(i + 1) << 32 | c->number;
    op->large = likely(w, w->large);
    if (op->object == OBJECT_MORTAL && op->kind == KV_REQUEST_PUT && likely(w, 0.8)) op->ttl = 1 + pick(w, 40);
    op->follower = likely(w, 0.5);
    bool one_key = op->object != OBJECT_PAIR && op->object != OBJECT_TABLE; /* An operator forgets keys. */
    op->data = likely(w, w->data) || (w->loses && !one_key);
    op->seen = c->known[op->shard];
    op->lane = is_read(op) ? 0 : i + 1;
    c->entry = entry_new(w, op, i, c->number);
    if (op->ttl != 0) entry_mortal(w, op);
    c->busy = true;
    c->tries = 0;
    client_go(w, i);
}

static void client_finish(world *w, uint32_t i) {
    client *c = &w->clients[i];
    c->busy = false;
    if (w->entries[c->entry].op.ret == KV_HISTORY_NEVER) w->counts.unknown++;
    else w->counts.answered++;
    world_at(w, rarely(w, likely(w, 0.9) ? 8 : 80), EVENT_CLIENT_NEXT)->node = i;
}

/* Also for an answer that says to try again. */
void client_timeout(world *w, uint32_t i, uint32_t sends, int hint) {
    client *c = &w->clients[i];
    if (!c->busy || sends != c->sends) return;
    if (c->tries >= TRIES_MAX) {
        client_finish(w, i);
        return;
    }
    c->hint[c->op.shard] = hint;
    c->op.attempt++;
    client_go(w, i);
}

/* --- answers --- */

/* What is on its way to a client. */
typedef struct answer {
    kv_reply reply;
    kv_history_value value, second;
    int64_t balances[2];
} answer;

static void read_pair(world *w, uint32_t from, const operation *op, answer *a) {
    kv_caller *c = kv_replica_caller(w->nodes[from].core);
    uint64_t versions[2] = {0, 0};
    char key[16];
    size_t size = object_key(w, op->shard, op->object, key);
    for (int i = 0; i < 2; i++) {
        key[size - 1] = i == 0 ? 'p' : 'q';
        a->balances[i] = 0;
        kv_result found = kv_get(c, (const uint8_t *)key, size);
        if (found == KV_ELACKING) {
            kv_replica_fetch(w->nodes[from].core);
            a->reply.status = KV_ANSWER_UNAVAILABLE;
            return;
        }
        if (found < 0) continue;
        a->balances[i] = (int64_t)kv_load64(kv_caller_answer(c)->small);
        versions[i] = kv_caller_answer(c)->version;
    }
    if (versions[0] != versions[1] || a->balances[0] + a->balances[1] != 0)
        violate(w, "half a batch is seen: %lld and %lld", (long long)a->balances[0], (long long)a->balances[1]);
    a->reply.version = versions[0];
    a->value = versions[0] == 0 ? kv_history_absent() : kv_history_present(balances_word(a->balances[0], a->balances[1]));
}

static void read_table(world *w, uint32_t from, const operation *op, answer *a) {
    kv_caller *c = kv_replica_caller(w->nodes[from].core);
    char key[16];
    kv_page page = {0};
    kv_range range = {.what = KV_SCAN_ROWS, .count_max = 10000, .with_values = true, .table = (const uint8_t *)key};
    range.table_size = object_key(w, op->shard, op->object, key);
    kv_result size = kv_scan(c, &range, &page);
    uint64_t fold = 0;
    a->reply.version = 0;
    a->value = a->second = kv_history_absent();
    if (size == kv_ending(KV_ABSENT)) return;
    if (size == KV_ELACKING) {
        kv_replica_fetch(w->nodes[from].core);
        a->reply.status = KV_ANSWER_UNAVAILABLE;
        return;
    }
    if (size < 0) {
        violate(w, "replica %u cannot read a table: %lld", from + 1, (long long)size);
        return;
    }
    const kv_answer *bytes = kv_caller_answer(c);
    const uint8_t *at = size <= KV_SMALL_SIZE ? bytes->small : bytes->large;
    for (uint64_t i = 0; i < page.count; i++) {
        fold = kv_history_fold(fold, kv_load64(at + page.sizes[2 * i]));
        at += page.sizes[2 * i] + page.sizes[2 * i + 1];
    }
    a->value = kv_history_present(fold);
    a->second = kv_history_present(page.count);
}

static const operation *operation_of(const world *w, uint64_t token, operation *final) {
    uint32_t who = token & 255, sends = (uint32_t)(token >> 8 & 0xFFFFFF);
    if (who == FINAL) {
        *final = (operation){.shard = sends / OBJECT_KINDS, .object = (enum object)(sends % OBJECT_KINDS)};
        bool whole = final->object == OBJECT_PAIR || final->object == OBJECT_TABLE;
        final->kind = whole ? KV_REQUEST_READ : KV_REQUEST_GET;
        return final;
    }
    const client *c = &w->clients[who];
    return c->busy && c->op.number == token >> 32 ? &c->op : NULL;
}

void reply_send(world *w, uint32_t from, const kv_reply *reply, const uint8_t *bytes) {
    operation final;
    if ((reply->token & 255) == TOKEN_NOBODY || digest_answer(w, reply)) return;
    if ((reply->token & 255) == TOKEN_WAITER) {
        waiter_told(w, from, reply);
        return;
    }
    if ((reply->token & 255) == TOKEN_OPERATOR) {
        operator_answer(w, reply);
        return;
    }
    const operation *op = operation_of(w, reply->token, &final);
    if (reply->status == KV_ANSWER_REFUSED) violate(w, "replica %u refused: %d", from + 1, reply->error);
    if (op == NULL || (!w->calm && likely(w, 0.02))) return;
    answer a = {.reply = *reply};
    if (reply->status == KV_ANSWER_OK && op->kind == KV_REQUEST_GET)
        a.value = value_take(op->object, bytes + reply->value_at, reply->value_size);
    else if (reply->status == KV_ANSWER_OK && op->kind == KV_REQUEST_READ)
        (op->object == OBJECT_PAIR ? read_pair : read_table)(w, from, op, &a);
    event *e = world_at(w, between(w, 0.3, 1.5), EVENT_ANSWER);
    e->node = from;
    e->size = sizeof a;
    e->bytes = malloc(sizeof a);
    KV_ASSERT(e->bytes != NULL);
    memcpy(e->bytes, &a, sizeof a);
}

/* Clocks are within 30 units of the time, where they are not steady. */
static void look_if_over(world *w, entry *one, const operation *op, const answer *a) {
    int64_t apart = w->steady ? 2 : 64;
    if (a->reply.status != KV_ANSWER_OK) return;
    if (op->kind == KV_REQUEST_PUT && op->ttl != 0) one->over = w->now + (uint64_t)(op->ttl + apart) * UNIT;
    if (op->kind != KV_REQUEST_GET || !a->value.present) return;
    for (size_t i = 0; i < w->entry_count; i++) {
        const entry *from = &w->entries[i];
        if (from->object != one->object || from->over == 0 || from->op.argument.word != a->value.word) continue;
        if (from->over < one->asked) violate(w, "what was over is answered");
    }
}

static void entry_answered(world *w, entry *one, const operation *op, const answer *a) {
    kv_history_op *h = &one->op;
    if (op->object == OBJECT_MORTAL) look_if_over(w, one, op, a);
    h->ret = w->order++;
    h->version = a->reply.version;
    h->failed = a->reply.status == KV_ANSWER_FAILED;
    if (h->failed && op->kind == KV_REQUEST_INCR) violate(w, "a counter is no number any more: %d", a->reply.error);
    if (h->failed && h->kind != KV_HISTORY_CAS_VERSION) h->version = 0;
    if (is_read(op)) {
        h->answer = a->value;
        h->second = a->second;
    } else if (op->kind == KV_REQUEST_INCR) {
        h->answer = kv_history_present((uint64_t)a->reply.number);
    }
}

static void client_learn(client *c, const operation *op, const answer *a) {
    uint32_t object = object_index(op->shard, op->object);
    c->version[object] = a->reply.version;
    if (op->object != OBJECT_PAIR) return;
    if (a->reply.status == KV_ANSWER_FAILED) return; /* It has to read before its next transfer can succeed. */
    c->balance[object][0] = is_read(op) ? a->balances[0] : op->first;
    c->balance[object][1] = is_read(op) ? a->balances[1] : op->second;
}

static void final_answer(world *w, uint32_t object, uint32_t number, const answer *a) {
    operation op;
    operation_of(w, FINAL | (uint64_t)object << 8, &op);
    if (w->final_done[object] || number != w->final_sends[object]) return;
    if (a->reply.status == KV_ANSWER_OK) {
        entry_answered(w, &w->entries[w->final_entry[object]], &op, a);
        w->final_done[object] = true;
        return;
    }
    if (a->reply.status == KV_ANSWER_UNAVAILABLE && a->reply.error == KV_ELACKING) digest_lacking(w, object, a->reply.version);
    event *e = world_at(w, 8 * UNIT, EVENT_FINAL_TIMEOUT);
    e->node = object;
    e->argument = number;
}

void reply_arrive(world *w, const event *e) {
    answer a;
    memcpy(&a, e->bytes, sizeof a);
    uint64_t token = a.reply.token;
    uint32_t who = token & 255, sends = (uint32_t)(token >> 8 & 0xFFFFFF);
    if (who == FINAL) {
        final_answer(w, sends, (uint32_t)(token >> 32), &a);
        return;
    }
    client *c = &w->clients[who];
    operation *op = &c->op;
    if (!c->busy || op->number != token >> 32) return;
    int32_t status = a.reply.status;
    if (a.reply.shard_version > c->known[op->shard]) c->known[op->shard] = a.reply.shard_version;
    if (status == KV_ANSWER_UNKNOWN) {
        client_finish(w, who);
        return;
    }
    /* About an attempt that was repeated since. */
    bool late_fail = status == KV_ANSWER_FAILED && (w->mutations >> SIM_MUTATE_LATE_FAIL & 1);
    if (status != KV_ANSWER_OK && sends != c->sends && !late_fail) return;
    if (status == KV_ANSWER_OK || status == KV_ANSWER_FAILED) {
        if (status == KV_ANSWER_OK) c->hint[op->shard] = (int)e->node;
        entry_answered(w, &w->entries[c->entry], op, &a);
        client_learn(c, op, &a);
        client_finish(w, who);
    } else if (status == KV_ANSWER_SEEN) { /* Not executed, and no copy of it ever will be. */
        op->seen = a.reply.version;
        c->hint[op->shard] = (int)e->node;
        client_go(w, who);
    } else {
        kv_shard_state state = {0};
        if (w->nodes[e->node].up) kv_replica_shard(w->nodes[e->node].core, op->shard, &state);
        event *again = world_at(w, between(w, 1, 4), EVENT_CLIENT_TIMEOUT);
        again->node = who;
        again->other = sends;
        again->argument = (uint64_t)(state.owner != 0 && state.owner != e->node + 1 ? (int64_t)state.owner - 1 : -1);
    }
}

/* --- the end: everything is read once more --- */

void final_ask(world *w, uint32_t object) {
    operation op;
    operation_of(w, FINAL | (uint64_t)object << 8, &op);
    op.attempt = 2;
    if (w->final_sends[object]++ == 0) w->final_entry[object] = entry_new(w, &op, FINAL, object);
    uint32_t to = pick(w, w->n);
    for (uint32_t i = 0; i < w->n; i++)
        if (node_owns(w, i, op.shard)) to = i;
    request_send(w, to, &op, FINAL | (uint64_t)object << 8 | (uint64_t)w->final_sends[object] << 32, 0);
    event *e = world_at(w, 60 * UNIT, EVENT_FINAL_TIMEOUT);
    e->node = object;
    e->argument = w->final_sends[object];
}

void final_timeout(world *w, uint32_t object, uint32_t sends) {
    if (w->final_done[object] || sends != w->final_sends[object]) return;
    if (sends < FINAL_TRIES_MAX) final_ask(w, object);
    else violate(w, "object %u has no answer after everything healed", object);
}
