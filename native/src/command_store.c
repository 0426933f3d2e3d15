/* command_store.c -- KV.* and TBL.*: what Redis has no word for: versions, batches with expectations, ordered rows.
 *
 * What answers a version is one request, because the version is known when it is answered. Rows are read over a draft, as of
 * a linearizable read. Bounds of a range are said as Redis' ZRANGEBYLEX has them: - and + for the ends, [row and (row. */
#include <stdlib.h>

#include "command.h"

enum { PAGE_COUNT = 512 };

/* --- versions --- */

static void say_versioned(call *c, const entry *e, text value) {
    resp_put_array(c->out, 2);
    say_value(c, value);
    resp_put_number(c->out, (int64_t)e->version);
}

void kv_get_run(call *c) {
    entry *e = draft_key(c->draft, arg(c, 1));
    if (!is_string(c, e)) return;
    if (e->is == KIND_NONE) resp_put_null_array(c->out, c->protocol);
    else say_versioned(c, e, draft_value(c->draft, e));
}

void tbl_get_run(call *c) {
    entry *e = hash_of_key(c, 1);
    if (e == NULL) return;
    const entry *row = draft_row(c->draft, e, arg(c, 2));
    if (row->is == KIND_NONE) resp_put_null_array(c->out, c->protocol);
    else say_versioned(c, row, row->value);
}

void tbl_version_run(call *c) {
    const entry *e = hash_of_key(c, 1);
    if (e != NULL) resp_put_number(c->out, (int64_t)e->version);
}

static bool conflicts(kv_server *server, op *o, const kv_reply *reply) {
    if (reply->status != KV_ANSWER_FAILED || reply->error != KV_ECONFLICT) return false;
    server->figures.errors++;
    resp_put_error(op_reply(o), "CONFLICT it is at version %llu", (unsigned long long)reply->version);
    op_done(server, o);
    return true;
}

void version_answered(kv_server *server, op *o, const kv_reply *reply, const uint8_t *bytes) {
    bool nothing = reply->status == KV_ANSWER_FAILED && reply->error == KV_ABSENT; /* All of it stood already. */
    (void)bytes;
    if (conflicts(server, o, reply) || (!nothing && refused(server, o, reply))) return;
    resp_put_number(op_reply(o), nothing ? 0 : (int64_t)reply->version);
    op_done(server, o);
}

/* PX and a number at the end, or nothing. */
static bool ttl_of(kv_server *server, op *o, size_t from) {
    if (o->word_count == from) return true;
    bool good = o->word_count == from + 2 && word_is(o, from, "PX");
    if (!good || !word_number(o, from + 1, &o->ask.ttl_ms)) reply_error(server, o, good ? NOT_INTEGER : SYNTAX);
    else if (o->ask.ttl_ms <= 0) reply_error(server, o, "ERR invalid expire time");
    else return true;
    return false;
}

/* KV.CAS key version value [PX ms]. */
bool kv_cas_begin(kv_server *server, op *o) {
    int64_t version;
    ask_key(o, KV_REQUEST_CAS);
    if (!word_number(o, 2, &version) || version < 0) {
        reply_error(server, o, NOT_INTEGER);
        return true;
    }
    o->ask.value = word_at(o, 3);
    o->ask.value_size = o->words[3].size;
    o->ask.argument = version;
    if (ttl_of(server, o, 4)) request_ask(server, o);
    return true;
}

/* --- batches --- */

typedef struct batch_word {
    const char *name;
    size_t words;              /* behind it */
    bool expects, table, value;
} batch_word;

static const batch_word BATCH_WORDS[] = {
    {"PUT", 2, false, false, true},     {"DEL", 1, false, false, false},   {"EXPECT", 2, true, false, false},
    {"ROW.PUT", 3, false, true, true},  {"ROW.DEL", 2, false, true, false}, {"ROW.EXPECT", 3, true, true, false},
};

static const batch_word *batch_word_of(text word) {
    for (size_t i = 0; i < sizeof BATCH_WORDS / sizeof BATCH_WORDS[0]; i++)
        if (text_is(word, BATCH_WORDS[i].name)) return &BATCH_WORDS[i];
    return NULL;
}

/* One step of it, from word `at` on. NULL: it is added; else what is wrong. */
static const char *batch_add(op *o, const batch_word *step, size_t at) {
    text table = step->table ? word_text(o, at) : (text){0}, key = word_text(o, at + step->table);
    if (step->expects) {
        int64_t version;
        if (!word_number(o, at + step->table + 1, &version) || version < 0) return NOT_INTEGER;
        kv_expectation *one = list_add(&o->draft->expectations, sizeof *one);
        if (one == NULL) return NO_MEMORY;
        *one = (kv_expectation){.key = key.at, .key_size = (uint32_t)key.size, .version = (uint64_t)version,
                                .table = table.at, .table_size = (uint32_t)table.size};
        return NULL;
    }
    kv_operation *one = list_add(&o->draft->operations, sizeof *one);
    if (one == NULL) return NO_MEMORY;
    *one = (kv_operation){.key = key.at, .key_size = (uint32_t)key.size, .table = table.at, .table_size = (uint32_t)table.size};
    if (!step->value) return NULL;
    one->value = word_at(o, at + step->table + 1);
    one->value_size = o->words[at + step->table + 1].size;
    return NULL;
}

static const char *batch_read(op *o) {
    for (size_t at = 1; at < o->word_count;) {
        const batch_word *step = batch_word_of(word_text(o, at));
        if (step == NULL || at + step->words >= o->word_count) return SYNTAX;
        const char *wrong = batch_add(o, step, at + 1);
        if (wrong != NULL) return wrong;
        at += 1 + step->words;
    }
    return NULL;
}

static void ask_batch(kv_server *server, op *o) {
    const kv_expectation *first = LIST(kv_expectation, &o->draft->expectations);
    o->ask = (kv_ask){.kind = KV_REQUEST_BATCH, .operations = LIST(kv_operation, &o->draft->operations),
                      .operation_count = o->draft->operations.count, .expectations = first,
                      .expectation_count = o->draft->expectations.count};
    if (o->ask.operation_count == 0) { /* Where it goes is then said by what it expects. */
        o->ask.key = first->table != NULL ? first->table : first->key;
        o->ask.key_size = first->table != NULL ? first->table_size : first->key_size;
    }
    request_ask(server, o);
}

/* KV.BATCH, then any of: PUT key value, DEL key, EXPECT key version, ROW.PUT table row value, ROW.DEL table row,
 * ROW.EXPECT table row version. */
bool kv_batch_begin(kv_server *server, op *o) {
    const char *wrong = op_draft(o) == NULL ? NO_MEMORY : batch_read(o);
    o->phase = PHASE_REQUEST;
    if (wrong != NULL) reply_error(server, o, wrong);
    else ask_batch(server, o);
    return true;
}

/* --- rows --- */

/* TBL.PUT table row value [row value ...]. */
bool tbl_put_begin(kv_server *server, op *o) {
    const char *wrong = op_draft(o) == NULL ? NO_MEMORY : NULL;
    static const batch_word PUT = {"ROW.PUT", 3, false, true, true};
    o->phase = PHASE_REQUEST;
    if (o->word_count % 2 != 0) wrong = "ERR wrong number of arguments for 'tbl.put' command";
    for (size_t i = 2; wrong == NULL && i + 1 < o->word_count; i += 2) {
        wrong = batch_add(o, &PUT, i - 1);
        kv_operation *one = wrong == NULL ? &LIST(kv_operation, &o->draft->operations)[o->draft->operations.count - 1] : NULL;
        if (one == NULL) break;
        one->table = word_at(o, 1);
        one->table_size = (uint32_t)o->words[1].size;
    }
    if (wrong != NULL) reply_error(server, o, wrong);
    else ask_batch(server, o);
    return true;
}

bool tbl_append_begin(kv_server *server, op *o) {
    o->phase = PHASE_REQUEST;
    o->ask = (kv_ask){.kind = KV_REQUEST_ROW_APPEND, .table = word_at(o, 1), .table_size = o->words[1].size,
                      .value = word_at(o, 2), .value_size = o->words[2].size};
    if (ttl_of(server, o, 3)) request_ask(server, o);
    return true;
}

/* The row's name: eight bytes, big-endian, so that names are in the order of their numbers. */
void row_answered(kv_server *server, op *o, const kv_reply *reply, const uint8_t *bytes) {
    uint8_t name[8];
    (void)bytes;
    if (refused(server, o, reply)) return;
    kv_store64(name, __builtin_bswap64((uint64_t)reply->number));
    resp_put_bulk(op_reply(o), name, sizeof name);
    op_done(server, o);
}

typedef struct row_range {
    text start, stop; /* from the first that is not before; ends before; NULL: open */
    int64_t limit;
    bool reverse;
} row_range;

/* What follows a name in order is it and a zero: so [ and ( become one kind of bound. */
static bool bound_of(call *c, text word, char open, bool past, text *out) {
    *out = (text){0};
    if (word.size == 1 && word.at[0] == (uint8_t)open) return true;
    if (word.size == 0 || (word.at[0] != '[' && word.at[0] != '(')) {
        say(c, "ERR min or max not valid string range item");
        return false;
    }
    bool next = (word.at[0] == '[') == past;
    uint8_t *to = draft_room(c->draft, word.size);
    if (to == NULL) return true;
    memcpy(to, word.at + 1, word.size - 1);
    to[word.size - 1] = 0;
    *out = (text){to, word.size - 1 + next};
    return true;
}

static bool rows_page(call *c, row_range *r, wire_out *out, size_t *said) {
    text table = arg(c, 1);
    kv_page page;
    kv_range range = {.what = KV_SCAN_ROWS, .table = table.at, .table_size = table.size, .with_values = 1, .reverse = r->reverse,
                      .start = r->start.at, .start_size = r->start.size, .stop = r->stop.at, .stop_size = r->stop.size};
    range.count_max = r->limit < PAGE_COUNT ? (uint64_t)r->limit : PAGE_COUNT;
    kv_result size = kv_scan(c->draft->caller, &range, &page);
    if (size < 0 && size != kv_ending(KV_ABSENT)) c->draft->failed = (kv_status)size;
    if (size < 0) return false;
    const kv_answer *answer = kv_caller_answer(c->draft->caller);
    const uint8_t *at = size <= KV_SMALL_SIZE ? answer->small : answer->large;
    for (uint64_t i = 0; i < 2 * page.count; i++) {
        resp_put_bulk(out, at, page.sizes[i]);
        at += page.sizes[i];
    }
    *said += page.count;
    r->limit -= (int64_t)page.count;
    text next = draft_copy(c->draft, at, page.resume_size + (size_t)!r->reverse); /* With room for the zero. */
    if (next.at == NULL || !page.more) return false;
    if (!r->reverse) ((uint8_t *)(uintptr_t)next.at)[page.resume_size] = 0;
    *(r->reverse ? &r->stop : &r->start) = next;
    return r->limit > 0;
}

static void say_range(call *c, row_range *r) {
    wire_out found = {0};
    size_t count = 0;
    const entry *e = hash_of_key(c, 1);
    if (e == NULL) return;
    while (e->is == KIND_HASH && r->limit > 0 && rows_page(c, r, &found, &count)) continue;
    resp_put_array(c->out, 2 * count);
    wire_put_bytes(c->out, found.bytes, found.size);
    if (found.failed) c->draft->failed = KV_ENOMEM;
    wire_free(&found);
}

/* TBL.RANGE table start stop [LIMIT n] [REV]: row, value, row, value. */
void tbl_range_run(call *c) {
    row_range r = {.limit = INT64_MAX};
    for (size_t i = 4; i < c->count; i++) {
        if (arg_is(c, i, "REV")) {
            r.reverse = true;
        } else if (arg_is(c, i, "LIMIT") && i + 1 < c->count) {
            if (!arg_number(c, ++i, &r.limit)) return;
        } else {
            say(c, SYNTAX);
            return;
        }
    }
    if (!bound_of(c, arg(c, 2), '-', false, &r.start) || !bound_of(c, arg(c, 3), '+', true, &r.stop)) return;
    say_range(c, &r);
}

/* TBL.LAST table [count]: the newest first. */
void tbl_last_run(call *c) {
    row_range r = {.limit = 1, .reverse = true};
    if (c->count == 3 && !arg_number(c, 2, &r.limit)) return;
    if (c->count > 3) say_count(c);
    else say_range(c, &r);
}
