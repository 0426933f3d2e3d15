/* command_key.c -- commands about keys, whatever they hold: deleting, asking, and when they end. */
#include "command.h"

/* DEL and UNLINK. */
void del_run(call *c) {
    int64_t count = 0;
    for (size_t i = 1; i < c->count; i++) {
        entry *e = draft_key(c->draft, arg(c, i));
        if (e->is == KIND_NONE) continue;
        draft_delete(c->draft, e);
        count++;
    }
    resp_put_number(c->out, count);
}

/* EXISTS and TOUCH. */
void exists_run(call *c) {
    int64_t count = 0;
    for (size_t i = 1; i < c->count; i++) count += draft_key(c->draft, arg(c, i))->is != KIND_NONE;
    resp_put_number(c->out, count);
}

void type_run(call *c) {
    static const char *const NAMES[] = {"none", "string", "hash"};
    resp_put_simple(c->out, NAMES[draft_key(c->draft, arg(c, 1))->is]);
}

/* --- under another name --- */

/* What is at `from` is at `to`, too, and nothing else is. */
static void copy_to(call *c, entry *from, entry *to) {
    const draft_pair *pairs;
    int64_t expires_ms = from->expires_ms;
    if (from->is == KIND_STRING) {
        draft_set(c->draft, to, draft_value(c->draft, from), expires_ms);
        return;
    }
    size_t count = draft_rows(c->draft, from, &pairs);
    if (to->is != KIND_NONE) draft_delete(c->draft, to);
    for (size_t i = 0; i < count; i++) draft_row_set(c->draft, draft_row(c->draft, to, pairs[i].row), pairs[i].value);
    if (expires_ms != 0) draft_expire(c->draft, to, expires_ms);
}

/* RENAME and RENAMENX. */
void rename_run(call *c) {
    bool careful = c->command->name[6] == 'n';
    entry *from = draft_key(c->draft, arg(c, 1)), *to = draft_key(c->draft, arg(c, 2));
    if (from->is == KIND_NONE) {
        say(c, "ERR no such key");
        return;
    }
    bool done = from != to && !(careful && to->is != KIND_NONE);
    if (done) copy_to(c, from, to);
    if (done) draft_delete(c->draft, from);
    if (careful) resp_put_number(c->out, done);
    else say_ok(c);
}

static bool copy_options(call *c, bool *replace) {
    int64_t number;
    for (size_t i = 3; i < c->count; i++) {
        if (arg_is(c, i, "REPLACE")) {
            *replace = true;
        } else if (arg_is(c, i, "DB") && i + 1 < c->count) {
            if (!arg_number(c, ++i, &number)) return false;
            if (number == 0) continue;
            say(c, "ERR DB index is out of range");
            return false;
        } else {
            say(c, SYNTAX);
            return false;
        }
    }
    return true;
}

/* COPY source destination [DB 0] [REPLACE]. */
void copy_run(call *c) {
    bool replace = false;
    if (!copy_options(c, &replace)) return;
    entry *from = draft_key(c->draft, arg(c, 1)), *to = draft_key(c->draft, arg(c, 2));
    if (from == to) {
        say(c, "ERR source and destination objects are the same");
        return;
    }
    bool done = from->is != KIND_NONE && (replace || to->is == KIND_NONE);
    if (done) copy_to(c, from, to);
    resp_put_number(c->out, done);
}

/* --- when they end --- */

typedef struct expire_when {
    bool absent, there, later, sooner;
} expire_when;

static bool when_read(call *c, expire_when *w) {
    *w = (expire_when){0};
    for (size_t i = 3; i < c->count; i++) {
        if (arg_is(c, i, "NX")) w->absent = true;
        else if (arg_is(c, i, "XX")) w->there = true;
        else if (arg_is(c, i, "GT")) w->later = true;
        else if (arg_is(c, i, "LT")) w->sooner = true;
        else {
            text word = arg(c, i);
            c->server->figures.errors++;
            resp_put_error(c->out, "ERR Unsupported option %.*s", (int)(word.size < 128 ? word.size : 128), (const char *)word.at);
            return false;
        }
    }
    if (w->absent && (w->there || w->later || w->sooner)) {
        say(c, "ERR NX and XX, GT or LT options at the same time are not compatible");
        return false;
    }
    if (w->later && w->sooner) say(c, "ERR GT and LT options at the same time are not compatible");
    return !(w->later && w->sooner);
}

/* Never is later than any moment. */
static bool when_holds(const expire_when *w, int64_t now, int64_t wanted) {
    if (w->absent && now != 0) return false;
    if (w->there && now == 0) return false;
    if (w->later && (now == 0 || wanted <= now)) return false;
    return !(w->sooner && now != 0 && wanted >= now);
}

static bool is_moment(const kv_command *command) { return strstr(command->name, "at") != NULL; }
static bool is_seconds(const kv_command *command) { return command->name[0] != 'p'; }

/* From now, or since 1970; in ms. False: there is no such moment. */
static bool moment(const kv_command *command, int64_t number, int64_t now_ms, int64_t *out) {
    if (is_seconds(command) && __builtin_mul_overflow(number, 1000, &number)) return false;
    if (!is_moment(command) && __builtin_add_overflow(number, now_ms, &number)) return false;
    *out = number > 0 ? number : 1; /* All before now are the same; 0 would be never. */
    return true;
}

/* EXPIRE, PEXPIRE, EXPIREAT, PEXPIREAT. */
void expire_run(call *c) {
    expire_when w;
    int64_t number, expires_ms;
    if (!when_read(c, &w) || !arg_number(c, 2, &number)) return;
    if (!moment(c->command, number, c->draft->now_ms, &expires_ms)) {
        c->server->figures.errors++;
        resp_put_error(c->out, "ERR invalid expire time in '%s' command", c->command->name);
        return;
    }
    entry *e = draft_key(c->draft, arg(c, 1));
    bool done = e->is != KIND_NONE && when_holds(&w, e->expires_ms, expires_ms);
    if (done) draft_expire(c->draft, e, expires_ms);
    resp_put_number(c->out, done);
}

/* Without conditions, and for later: one request. A hash without fields would say 1; there is none but for a moment. */
bool expire_begin(kv_server *server, op *o) {
    int64_t number;
    if (o->word_count != 3 || is_moment(o->command) || !word_number(o, 2, &number)) return false;
    if (number <= 0 || number > INT64_MAX / 2000) return false;
    ask_key(o, KV_REQUEST_EXPIRE);
    o->ask.ttl_ms = is_seconds(o->command) ? number * 1000 : number;
    request_ask(server, o);
    return true;
}

void persist_run(call *c) {
    entry *e = draft_key(c->draft, arg(c, 1));
    bool done = e->is != KIND_NONE && e->expires_ms != 0;
    if (done) draft_expire(c->draft, e, 0);
    resp_put_number(c->out, done);
}

/* The owner deletes what is over: whatever is still here is not, and has some time left. */
void ttl_run(call *c) {
    const kv_command *command = c->command;
    bool moments = strstr(command->name, "expiretime") != NULL;
    const entry *e = draft_key(c->draft, arg(c, 1));
    if (e->is == KIND_NONE || e->expires_ms == 0) {
        resp_put_number(c->out, e->is == KIND_NONE ? -2 : -1);
        return;
    }
    int64_t ms = moments ? e->expires_ms : e->expires_ms - c->draft->now_ms;
    if (ms < 0) ms = 0;
    resp_put_number(c->out, is_seconds(command) ? (ms + 500) / 1000 : ms);
}
