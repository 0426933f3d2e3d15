/* command_session.c -- what a client of ours asks, which names its requests itself: writes that are executed once whoever
 * passes them on and however often; reads that say all there is about a key; and what changes.
 *
 *     KV.ONCE client lane number seen flags KIND table key value argument ttl
 *     KV.ONCE client lane number seen flags BATCH, then for each step: WHAT table key value number
 *
 * `client` is a random number above 0, `lane` one of those in which it has one request at a time, `number` ascends within a
 * lane. `seen` is the highest version of the shard it had heard of when it asked first. Flags: 1, it was sent before; 2, a
 * majority is to hold the bytes, too. Words that say nothing are empty, or 0. Asked again, of any replica, under the same
 * number, it gets the answer of the first time: [version, number, version of the shard], the version 0 where there was nothing
 * to do. An error that begins with SEEN says that nothing was done, and that a new number with that version as `seen` is
 * welcome. Why it is so: docs/decisions/0037. */
#include "command.h"

enum { FLAG_AGAIN = 1, FLAG_DATA = 2, FLAGS_END = 4 };
enum { W_CLIENT = 1, W_LANE, W_NUMBER, W_SEEN, W_FLAGS, W_KIND, W_TABLE, W_KEY, W_VALUE, W_ARGUMENT, W_TTL, W_END };
enum { STEP_WHAT = 0, STEP_TABLE, STEP_KEY, STEP_VALUE, STEP_NUMBER, STEP_WORDS };

typedef struct write_kind {
    const char *name;
    uint8_t kind;
} write_kind;

static const write_kind KINDS[] = {
    {"PUT", KV_REQUEST_PUT},       {"DELETE", KV_REQUEST_DELETE}, {"CAS", KV_REQUEST_CAS},
    {"INCR", KV_REQUEST_INCR},     {"APPEND", KV_REQUEST_APPEND}, {"ROW.APPEND", KV_REQUEST_ROW_APPEND},
    {"EXPIRE", KV_REQUEST_EXPIRE}, {"DROP", KV_REQUEST_DROP},     {"TRIM", KV_REQUEST_TRIM},
};

static uint8_t kind_of(text word) {
    for (size_t i = 0; i < sizeof KINDS / sizeof KINDS[0]; i++)
        if (text_is(word, KINDS[i].name)) return KINDS[i].kind;
    return 0;
}

/* --- writes --- */

/* Who asks, and as which of its requests. */
static bool session_read(const op *o, kv_ask *ask) {
    int64_t numbers[W_FLAGS + 1];
    for (size_t i = W_CLIENT; i <= W_FLAGS; i++)
        if (!word_number(o, i, &numbers[i]) || numbers[i] < 0) return false;
    if (numbers[W_CLIENT] == 0 || numbers[W_LANE] > UINT32_MAX || numbers[W_NUMBER] == 0 || numbers[W_FLAGS] >= FLAGS_END)
        return false;
    ask->client = (uint64_t)numbers[W_CLIENT];
    ask->lane = (uint32_t)numbers[W_LANE];
    ask->number = (uint64_t)numbers[W_NUMBER];
    ask->seen = (uint64_t)numbers[W_SEEN];
    ask->durability = (numbers[W_FLAGS] & FLAG_DATA) != 0 ? KV_DURABILITY_DATA : KV_DURABILITY_VERSION;
    /* Any number above the first will do: what counts is whether an older copy may be on its way. */
    ask->attempt = (numbers[W_FLAGS] & FLAG_AGAIN) != 0;
    return true;
}

static const uint8_t *table_at(const op *o, size_t n, size_t *size) {
    *size = o->words[n].size;
    return *size == 0 ? NULL : word_at(o, n);
}

static bool single_read(const op *o, kv_ask *ask) {
    ask->kind = kind_of(word_text(o, W_KIND));
    if (o->word_count != W_END || ask->kind == 0) return false;
    ask->table = table_at(o, W_TABLE, &ask->table_size);
    ask->key = ask->kind == KV_REQUEST_ROW_APPEND ? NULL : word_at(o, W_KEY);
    ask->key_size = ask->key == NULL ? 0 : o->words[W_KEY].size;
    ask->value = word_at(o, W_VALUE);
    ask->value_size = o->words[W_VALUE].size;
    bool named = ask->table != NULL || (ask->key != NULL && ask->key_size != 0);
    return named && word_number(o, W_ARGUMENT, &ask->argument) && word_number(o, W_TTL, &ask->ttl_ms);
}

/* PUT (number: ttl), DELETE, EXPECT (number: version). False: it is none of them. */
static bool step_read(op *o, size_t at) {
    size_t table_size;
    int64_t number;
    const uint8_t *table = table_at(o, at + STEP_TABLE, &table_size), *key = word_at(o, at + STEP_KEY);
    uint32_t key_size = (uint32_t)o->words[at + STEP_KEY].size;
    bool puts = word_is(o, at, "PUT"), expects = word_is(o, at, "EXPECT");
    if (!word_number(o, at + STEP_NUMBER, &number) || (!puts && !expects && !word_is(o, at, "DELETE"))) return false;
    if (expects) {
        kv_expectation *one = number < 0 ? NULL : list_add(&o->draft->expectations, sizeof *one);
        if (one == NULL) return false;
        *one = (kv_expectation){.key = key, .key_size = key_size, .version = (uint64_t)number, .table = table,
                                .table_size = (uint32_t)table_size};
        return true;
    }
    kv_operation *one = list_add(&o->draft->operations, sizeof *one);
    if (one == NULL) return false;
    *one = (kv_operation){.key = key, .key_size = key_size, .table = table, .table_size = (uint32_t)table_size};
    if (!puts) return true;
    one->value = word_at(o, at + STEP_VALUE);
    one->value_size = o->words[at + STEP_VALUE].size;
    one->ttl_ms = number;
    return true;
}

static bool batch_read(op *o, kv_ask *ask) {
    size_t at = W_KIND + 1;
    if (op_draft(o) == NULL || o->word_count == at || (o->word_count - at) % STEP_WORDS != 0) return false;
    for (; at < o->word_count; at += STEP_WORDS)
        if (!step_read(o, at)) return false;
    ask->kind = KV_REQUEST_BATCH;
    ask->operations = LIST(kv_operation, &o->draft->operations);
    ask->operation_count = o->draft->operations.count;
    ask->expectations = LIST(kv_expectation, &o->draft->expectations);
    ask->expectation_count = o->draft->expectations.count;
    if (ask->operation_count != 0) return true;
    /* Where it goes is then said by what it expects. */
    const kv_expectation *first = ask->expectations;
    ask->key = first->table != NULL ? first->table : first->key;
    ask->key_size = first->table != NULL ? first->table_size : first->key_size;
    return ask->key_size != 0;
}

bool kv_once_begin(kv_server *server, op *o) {
    kv_ask ask = {0};
    o->phase = PHASE_REQUEST;
    bool good = session_read(o, &ask) && (word_is(o, W_KIND, "BATCH") ? batch_read(o, &ask) : single_read(o, &ask));
    o->ask = ask;
    if (good) request_ask(server, o);
    else reply_error(server, o, SYNTAX);
    return true;
}

void once_answered(kv_server *server, op *o, const kv_reply *reply, const uint8_t *bytes) {
    bool failed = reply->status == KV_ANSWER_FAILED, nothing = failed && reply->error == KV_ABSENT;
    (void)bytes;
    if (failed && reply->error == KV_ECONFLICT) {
        server->figures.errors++;
        resp_put_error(op_reply(o), "CONFLICT it is at version %llu", (unsigned long long)reply->version);
        op_done(server, o);
        return;
    }
    if (!nothing && refused(server, o, reply)) return;
    resp_put_array(op_reply(o), 3);
    resp_put_number(op_reply(o), nothing ? 0 : (int64_t)reply->version);
    resp_put_number(op_reply(o), nothing ? 0 : reply->number);
    resp_put_number(op_reply(o), (int64_t)reply->shard_version);
    op_done(server, o);
}

bool session_is_foreign(const kv_server *server, const op *o) { return o->ask.client != server->identity; }

/* It is for the client to say it again, because it would have to say the same if this answer is lost. */
void session_seen(kv_server *server, op *o, const kv_reply *reply) {
    server->figures.retried++;
    resp_put_error(op_reply(o), "SEEN %llu", (unsigned long long)reply->version);
    op_done(server, o);
}

/* --- reads --- */

static void say_look(call *c, const entry *e, text value) {
    resp_put_array(c->out, 4);
    resp_put_text(c->out, e->is == KIND_HASH ? "table" : "value");
    resp_put_number(c->out, (int64_t)e->version);
    resp_put_number(c->out, e->expires_ms);
    if (e->is == KIND_HASH) resp_put_number(c->out, (int64_t)e->rows);
    else say_value(c, value);
}

/* KV.LOOK key [row]: [what it is, version, when it ends in ms since 1970 or 0, value or rows], or nothing. */
void kv_look_run(call *c) {
    if (c->count > 3) {
        say_count(c);
        return;
    }
    bool row = c->count == 3;
    entry *e = row ? hash_of_key(c, 1) : draft_find(c->draft, arg(c, 1));
    if (e == NULL) return;
    if (row) e = draft_row(c->draft, e, arg(c, 2));
    if (e->is == KIND_NONE) resp_put_null_array(c->out, c->protocol);
    else say_look(c, e, row ? e->value : e->is == KIND_HASH ? (text){0} : draft_value(c->draft, e));
}

enum { PAGE_MAX = 4096 };

/* A bound is empty, for none, or [ and a name: from it on, or below it. */
static bool bound_read(call *c, size_t n, const uint8_t **at, size_t *size) {
    text word = arg(c, n);
    if (word.size == 0) return true;
    *at = word.at + 1;
    *size = word.size - 1;
    if (word.at[0] == '[') return true;
    say(c, SYNTAX);
    return false;
}

/* From word `at` on: start stop count values reverse. */
static bool range_read(call *c, size_t at, kv_range *range) {
    int64_t count, values, reverse;
    if (!bound_read(c, at, &range->start, &range->start_size) || !bound_read(c, at + 1, &range->stop, &range->stop_size))
        return false;
    if (!arg_number(c, at + 2, &count) || !arg_number(c, at + 3, &values) || !arg_number(c, at + 4, &reverse)) return false;
    range->count_max = count < 1 ? 1 : count > PAGE_MAX ? PAGE_MAX : (uint64_t)count;
    range->with_values = values != 0;
    range->reverse = reverse != 0;
    return true;
}

static void say_entries(call *c, const kv_page *page, const uint8_t *at, bool values) {
    const uint8_t *resume = at + page->size;
    resp_put_array(c->out, 1 + page->count * (values ? 2 : 1));
    if (page->more) resp_put_bulk(c->out, resume, page->resume_size);
    else resp_put_null(c->out, c->protocol);
    for (uint64_t i = 0; i < page->count; i++) {
        resp_put_bulk(c->out, at, page->sizes[2 * i]);
        at += page->sizes[2 * i];
        if (values) resp_put_bulk(c->out, at, page->sizes[2 * i + 1]);
        at += page->sizes[2 * i + 1];
    }
}

static void say_page(call *c, const kv_range *range) {
    kv_page page;
    kv_result size = kv_scan(c->draft->caller, range, &page);
    bool absent = size == kv_ending(KV_ABSENT);
    if (size < 0 && !absent) {
        c->draft->failed = (kv_status)size;
        return;
    }
    if (absent) page = (kv_page){0};
    const kv_answer *answer = kv_caller_answer(c->draft->caller);
    say_entries(c, &page, size <= KV_SMALL_SIZE ? answer->small : answer->large, range->with_values != 0);
}

/* KV.PAGE KEYS|TABLES start stop count values reverse: [what the next page resumes from, or nothing, name, value, ...]. */
void kv_page_run(call *c) {
    kv_range range = {.what = arg_is(c, 1, "TABLES") ? KV_SCAN_TABLES : KV_SCAN_KEYS};
    if (range_read(c, 2, &range)) say_page(c, &range);
}

/* TBL.PAGE table start stop count values reverse: the same of its rows. */
void tbl_page_run(call *c) {
    const entry *e = hash_of_key(c, 1);
    kv_range range = {.what = KV_SCAN_ROWS, .table = arg(c, 1).at, .table_size = arg(c, 1).size};
    if (e != NULL && range_read(c, 2, &range)) say_page(c, &range);
}

/* --- what changes --- */

static void say_change(call *c, const uint8_t **at, const uint32_t sizes[2]) {
    bool gone = sizes[1] == (uint32_t)KV_DELETED;
    resp_put_bulk(c->out, *at, sizes[0]);
    *at += sizes[0];
    if (gone) resp_put_null(c->out, c->protocol);
    else resp_put_bulk(c->out, *at, sizes[1]);
    if (!gone) *at += sizes[1];
}

/* TBL.CHANGES table since began count: [version, more, complete, floor, through, row, value or nothing, ...], as
 * kv_replica_changes() has it. */
void tbl_changes_run(call *c) {
    int64_t since, began, count;
    kv_replica_page page;
    if (hash_of_key(c, 1) == NULL) return;
    if (!arg_number(c, 2, &since) || !arg_number(c, 3, &began) || !arg_number(c, 4, &count)) return;
    text table = arg(c, 1);
    kv_result size = kv_replica_changes(c->server->replica, table.at, table.size, (uint64_t)since, (uint64_t)began,
                                        count < 1 ? 1 : count > PAGE_MAX ? PAGE_MAX : (uint64_t)count, &page);
    if (size < 0) {
        c->draft->failed = (kv_status)size;
        return;
    }
    const kv_answer *answer = kv_caller_answer(c->draft->caller);
    const uint8_t *at = size <= KV_SMALL_SIZE ? answer->small : answer->large;
    const kv_change_page *changes = &page.changes;
    resp_put_array(c->out, 5 + 2 * changes->page.count);
    resp_put_number(c->out, (int64_t)changes->version);
    resp_put_number(c->out, changes->more);
    resp_put_number(c->out, changes->complete);
    resp_put_number(c->out, (int64_t)changes->floor);
    resp_put_number(c->out, (int64_t)page.through);
    for (uint64_t i = 0; i < changes->page.count; i++) say_change(c, &at, &changes->page.sizes[2 * i]);
}

enum { WAIT_MS_MAX = 1000 };

/* KV.WAIT key version ms: the version it has when it is newer than that, or when the time is over. A second at most: who waits
 * for longer asks again, and who has gone is waited for no longer than that. */
bool kv_wait_begin(kv_server *server, op *o) {
    int64_t since, ms;
    if (!word_number(o, 2, &since) || !word_number(o, 3, &ms) || since < 0 || ms < 0) {
        reply_error(server, o, NOT_INTEGER);
        return true;
    }
    uint64_t tick_ms = server->options.tick_ms;
    ask_key(o, KV_REQUEST_WAIT);
    o->ask.since = (uint64_t)since;
    o->ask.ticks = ((uint64_t)(ms < WAIT_MS_MAX ? ms : WAIT_MS_MAX) + tick_ms) / tick_ms; /* 0 would be for ever. */
    request_ask(server, o);
    return true;
}

void wait_answered(kv_server *server, op *o, const kv_reply *reply, const uint8_t *bytes) {
    (void)bytes;
    if (refused(server, o, reply)) return;
    resp_put_number(op_reply(o), (int64_t)reply->version);
    op_done(server, o);
}

/* KV.COUNT: keys that have a value, those that are over and not deleted yet among them. Every shard was made sure of. */
void kv_count_run(call *c) {
    kv_stats stats;
    kv_status status = kv_store_measure(kv_replica_store(c->server->replica), &stats);
    if (status != KV_OK) c->draft->failed = status;
    else resp_put_number(c->out, (int64_t)stats.key_count);
}
