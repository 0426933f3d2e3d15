/* command_scan.c -- commands that look at all keys, or at a hash a page at a time.
 *
 * They read what is applied here, in order: first keys with values, then hashes. What looks at all keys made sure of every
 * shard before (perform.c), so it misses nothing that was answered before it began. The later pages of a SCAN need not:
 * what was there throughout is found where it was. */
#include <stdlib.h>

#include "command.h"

enum { PAGE_KEYS = 512, COUNT_DEFAULT = 10, COUNT_MAX = 1 << 16 };

/* A place in the order of all keys. */
typedef struct scan_place {
    uint8_t space;    /* KV_SCAN_KEYS, KV_SCAN_TABLES, KV_SCAN_ROWS */
    text after, stop; /* from the first that is not before `after` */
    bool end;
} scan_place;

static void fail(call *c, kv_result status) {
    if (c->draft->failed == KV_OK) c->draft->failed = (kv_status)status;
}

typedef struct scan_page {
    kv_page page;
    text bytes;
} scan_page;

static bool page_read(call *c, const scan_place *at, text table, uint64_t count, bool values, scan_page *out) {
    kv_caller *caller = c->draft->caller;
    const kv_answer *answer = kv_caller_answer(caller);
    kv_range range = {.what = at->space, .start = at->after.at, .start_size = at->after.size, .stop = at->stop.at,
                      .stop_size = at->stop.size, .count_max = count, .with_values = values};
    if (at->space == KV_SCAN_ROWS) {
        range.table = table.at;
        range.table_size = table.size;
    }
    kv_result size = kv_scan(caller, &range, &out->page);
    if (size < 0) {
        out->page = (kv_page){0};
        if (size != kv_ending(KV_ABSENT) && size != KV_EWRONGTYPE) fail(c, size);
        return false;
    }
    out->bytes = draft_copy(c->draft, size <= KV_SMALL_SIZE ? answer->small : answer->large, (size_t)size);
    if (out->bytes.at == NULL) out->page = (kv_page){0};
    return out->bytes.at != NULL;
}

/* Behind the last that was looked at; behind the keys come the tables. */
static void place_next(call *c, scan_place *at, const scan_page *p) {
    if (p->page.more) {
        uint8_t *next = draft_room(c->draft, p->page.resume_size + 1);
        if (next == NULL) return;
        memcpy(next, p->bytes.at + p->page.size, p->page.resume_size);
        next[p->page.resume_size] = 0;
        at->after = (text){next, (size_t)p->page.resume_size + 1};
    } else if (at->space == KV_SCAN_KEYS) {
        *at = (scan_place){.space = KV_SCAN_TABLES};
    } else {
        at->end = true;
    }
}

/* Names that begin with what the pattern begins with lie together. */
static void narrow(call *c, scan_place *at, text pattern) {
    size_t size = glob_literal(pattern);
    if (size == 0) return;
    if (at->after.size == 0) at->after = (text){pattern.at, size};
    text stop = draft_copy(c->draft, pattern.at, size);
    while (stop.at != NULL && stop.size != 0 && stop.at[stop.size - 1] == 255) stop.size--;
    if (stop.at == NULL || stop.size == 0) return;
    ((uint8_t *)(uintptr_t)stop.at)[stop.size - 1]++;
    at->stop = stop;
}

/* A table without rows is no hash. */
static bool is_there(call *c, const scan_place *at, text name) {
    return at->space != KV_SCAN_TABLES || kv_table_look(c->draft->caller, name.at, name.size) > 0;
}

/* The names of a page that fit, behind what is there already. */
static size_t say_names(const scan_place *at, const scan_page *p, text pattern, bool all, wire_out *out) {
    const uint8_t *name = p->bytes.at;
    size_t said = 0;
    for (uint64_t i = 0; i < p->page.count; i++) {
        text one = {name, p->page.sizes[2 * i]}, value = {name + one.size, p->page.sizes[2 * i + 1]};
        name += one.size + value.size;
        if (!all && !glob_match(pattern, one)) continue;
        resp_put_bulk(out, one.at, one.size);
        if (at->space == KV_SCAN_ROWS) resp_put_bulk(out, value.at, value.size);
        said++;
    }
    return said;
}

/* Tables one by one, because the caller's page goes with the next question. */
static size_t say_tables(call *c, const scan_place *at, const scan_page *p, text pattern, bool all, wire_out *out) {
    const uint8_t *name = p->bytes.at;
    uint32_t *sizes = (uint32_t *)(void *)draft_room(c->draft, p->page.count * sizeof *sizes);
    size_t said = 0, count = p->page.count;
    if (sizes == NULL) return 0;
    for (size_t i = 0; i < count; i++) sizes[i] = p->page.sizes[2 * i];
    for (size_t i = 0; i < count; i++) {
        text one = {name, sizes[i]};
        name += one.size;
        if ((!all && !glob_match(pattern, one)) || !is_there(c, at, one)) continue;
        resp_put_bulk(out, one.at, one.size);
        said++;
    }
    return said;
}

static size_t say_page(call *c, const scan_place *at, const scan_page *p, text pattern, bool all, wire_out *out) {
    return at->space == KV_SCAN_TABLES ? say_tables(c, at, p, pattern, all, out) : say_names(at, p, pattern, all, out);
}

void keys_run(call *c) {
    text pattern = arg(c, 1);
    bool all = pattern.size == 1 && pattern.at[0] == '*';
    wire_out found = {0};
    scan_page p;
    size_t count = 0;
    for (scan_place at = {.space = KV_SCAN_KEYS}; !at.end && c->draft->failed == KV_OK; place_next(c, &at, &p)) {
        narrow(c, &at, pattern);
        if (page_read(c, &at, (text){0}, PAGE_KEYS, false, &p)) count += say_page(c, &at, &p, pattern, all, &found);
    }
    resp_put_array(c->out, count);
    wire_put_bytes(c->out, found.bytes, found.size);
    if (found.failed) fail(c, KV_ENOMEM);
    wire_free(&found);
}

/* --- SCAN and HSCAN --- */

typedef struct scan_options {
    text pattern;
    bool all;
    int64_t count;
    enum kind kind; /* KIND_NONE: any */
    bool none;      /* a type that nothing has */
} scan_options;

static bool scan_options_read(call *c, size_t from, scan_options *o) {
    *o = (scan_options){.all = true, .count = COUNT_DEFAULT};
    for (size_t i = from; i < c->count; i += 2) {
        bool more = i + 1 < c->count;
        if (more && arg_is(c, i, "COUNT")) {
            if (!arg_number(c, i + 1, &o->count)) return false;
            if (o->count < 1) more = false;
        } else if (more && arg_is(c, i, "MATCH")) {
            o->pattern = arg(c, i + 1);
            o->all = o->pattern.size == 1 && o->pattern.at[0] == '*';
        } else if (more && from == 2 && arg_is(c, i, "TYPE")) {
            o->kind = arg_is(c, i + 1, "string") ? KIND_STRING : arg_is(c, i + 1, "hash") ? KIND_HASH : KIND_NONE;
            o->none = o->kind == KIND_NONE;
        } else {
            more = false;
        }
        if (more) continue;
        say(c, SYNTAX);
        return false;
    }
    if (o->count > COUNT_MAX) o->count = COUNT_MAX;
    return true;
}

/* False: answered. */
static bool cursor_read(call *c, size_t n, uint8_t space, scan_place *at) {
    int64_t number;
    if (!text_number(arg(c, n), &number) || number < 0) {
        say(c, "ERR invalid cursor");
        return false;
    }
    *at = (scan_place){.space = space};
    if (number == 0) return true;
    if (cursor_find(c->server->cursors, (uint64_t)number, &at->space, &at->after)) return true;
    say(c, "ERR invalid cursor: it is of another replica, or of long ago; begin again with 0");
    return false;
}

static void say_scan(call *c, const scan_place *at, size_t count, wire_out *found) {
    char digits[24];
    uint64_t cursor = at->end || c->draft->failed != KV_OK ? 0 : cursor_make(c->server->cursors, at->space, at->after);
    resp_put_array(c->out, 2);
    snprintf(digits, sizeof digits, "%llu", (unsigned long long)cursor);
    resp_put_text(c->out, digits);
    resp_put_array(c->out, count);
    wire_put_bytes(c->out, found->bytes, found->size);
    if (found->failed || (cursor == 0 && !at->end)) fail(c, KV_ENOMEM);
    wire_free(found);
}

bool needs_all(const op *o) {
    return o->command->run != scan_run || (o->words[1].size == 1 && word_at(o, 1)[0] == '0');
}

void scan_run(call *c) {
    scan_place at;
    scan_options o;
    scan_page p;
    wire_out found = {0};
    size_t count = 0;
    if (!cursor_read(c, 1, KV_SCAN_KEYS, &at) || !scan_options_read(c, 2, &o)) return;
    if (o.kind == KIND_HASH && at.space == KV_SCAN_KEYS) at = (scan_place){.space = KV_SCAN_TABLES};
    at.end = o.none || (o.kind == KIND_STRING && at.space == KV_SCAN_TABLES);
    if (!at.end) {
        if (!o.all) narrow(c, &at, o.pattern);
        if (page_read(c, &at, (text){0}, (uint64_t)o.count, false, &p)) count = say_page(c, &at, &p, o.pattern, o.all, &found);
        place_next(c, &at, &p);
    }
    say_scan(c, &at, count, &found);
}

void hscan_run(call *c) {
    scan_place at;
    scan_options o;
    scan_page p;
    wire_out found = {0};
    size_t count = 0;
    if (!cursor_read(c, 2, KV_SCAN_ROWS, &at) || !scan_options_read(c, 3, &o)) return;
    entry *e = hash_of_key(c, 1);
    if (e == NULL) return;
    at.end = e->is == KIND_NONE;
    if (!at.end) {
        if (page_read(c, &at, arg(c, 1), (uint64_t)o.count, true, &p)) count = say_page(c, &at, &p, o.pattern, o.all, &found);
        place_next(c, &at, &p);
    }
    say_scan(c, &at, 2 * count, &found);
}

/* --- how many, and away with them --- */

void dbsize_run(call *c) {
    kv_stats stats;
    kv_status status = kv_store_measure(kv_replica_store(c->server->replica), &stats);
    if (status != KV_OK) fail(c, status);
    else resp_put_number(c->out, (int64_t)(stats.key_count + stats.table_count));
}

/* By lot among what the index has: a hash without fields is none, and then it is somebody else's turn. */
void randomkey_run(call *c) {
    enum { TRIES = 16 };
    kv_caller *caller = c->draft->caller;
    const kv_answer *answer = kv_caller_answer(caller);
    for (int i = 0; i < TRIES; i++) {
        uint64_t place = server_lot(c->server), lot = server_lot(c->server);
        kv_result size = kv_pick(caller, place, lot);
        if (size < 0 && size != kv_ending(KV_ABSENT)) fail(c, size);
        if (size < 0) break;
        text name = draft_copy(c->draft, size <= KV_SMALL_SIZE ? answer->small : answer->large, (size_t)size);
        if (draft_find(c->draft, name)->is == KIND_NONE) continue;
        say_value(c, name);
        return;
    }
    resp_put_null(c->out, c->protocol);
}

static bool flush_part(call *c, text name) {
    static const char DEL[] = "DEL";
    op *part = op_part(c->server, c->op);
    if (part == NULL) return false;
    part->command = command_find((const uint8_t *)"del", 3);
    return op_add_word(part, (text){(const uint8_t *)DEL, 3}) && op_add_word(part, name);
}

/* A page at a time, from where it was: so it ends also while others write. It runs again when what it wants deleted is. */
void flushall_run(call *c) {
    op *o = c->op;
    scan_place at = {.space = KV_SCAN_KEYS};
    scan_page p;
    if (c->count > 2 || (c->count == 2 && !arg_is(c, 1, "ASYNC") && !arg_is(c, 1, "SYNC"))) {
        say(c, SYNTAX);
        return;
    }
    if (o->cursor.at != NULL) at = (scan_place){.space = o->cursor.at[0], .after = {o->cursor.at + 1, o->cursor.size - 1}};
    while (o->parts == NULL && at.space <= KV_SCAN_TABLES && !at.end && c->draft->failed == KV_OK) {
        const uint8_t *name = page_read(c, &at, (text){0}, PAGE_KEYS, false, &p) ? p.bytes.at : NULL;
        for (uint64_t i = 0; i < p.page.count; name += p.page.sizes[2 * i++])
            if (!flush_part(c, (text){name, p.page.sizes[2 * i]})) fail(c, KV_ENOMEM);
        place_next(c, &at, &p);
    }
    free((void *)(uintptr_t)o->cursor.at);
    uint8_t *kept = malloc(at.after.size + 1);
    o->cursor = (text){kept, kept == NULL ? 0 : at.after.size + 1};
    if (kept == NULL) fail(c, KV_ENOMEM);
    if (kept == NULL) return;
    kept[0] = at.end ? KV_SCAN_ROWS : at.space;
    if (at.after.size != 0) memcpy(kept + 1, at.after.at, at.after.size);
    say_ok(c);
}
