/* command_string.c -- commands about values of keys, over a draft. */
#include <math.h>
#include <stdlib.h>

#include "command.h"

/* Redis' own, 512 MiB; a replica refuses less by itself. */
static const uint64_t STRING_SIZE_MAX = (uint64_t)512 << 20;

/* --- expiries --- */

/* What EX, PX, EXAT and PXAT come to, as a moment; it is answered if there is no such. */
static bool moment_of(call *c, text word, bool seconds, bool from_now, int64_t *out) {
    int64_t number;
    if (!text_number(word, &number)) {
        say(c, NOT_INTEGER);
        return false;
    }
    bool good = number > 0 && number <= (seconds ? INT64_MAX / 1000 : INT64_MAX);
    if (good && seconds) number *= 1000;
    if (good && from_now) good = number <= INT64_MAX - c->draft->now_ms;
    if (good && from_now) number += c->draft->now_ms;
    *out = number;
    if (!good) {
        c->server->figures.errors++;
        resp_put_error(c->out, "ERR invalid expire time in '%s' command", c->command->name);
    }
    return good;
}

typedef struct expiry_option {
    const char *name;
    bool seconds, from_now;
} expiry_option;

static const expiry_option *expiry_option_of(text word) {
    static const expiry_option ALL[] = {{"EX", true, true}, {"PX", false, true}, {"EXAT", true, false}, {"PXAT", false, false}};
    for (size_t i = 0; i < sizeof ALL / sizeof ALL[0]; i++)
        if (text_is(word, ALL[i].name)) return &ALL[i];
    return NULL;
}

/* --- SET and its kin --- */

/* Of SET, and of GETEX, which has PERSIST and no others but expiries. The same expiry may come again, and counts. */
typedef struct set_options {
    bool only_absent, only_there, get, keep, persist;
    const expiry_option *expiry;
    text moment;
} set_options;

static bool option_read(call *c, size_t *i, bool of_set, set_options *o) {
    const expiry_option *expiry = expiry_option_of(arg(c, *i));
    if (expiry != NULL) {
        bool good = (o->expiry == NULL || o->expiry == expiry) && !o->keep && !o->persist && *i + 1 < c->count;
        o->expiry = expiry;
        if (good) o->moment = arg(c, ++*i);
        return good;
    }
    if (!of_set) {
        o->persist = true;
        return arg_is(c, *i, "PERSIST") && o->expiry == NULL;
    }
    if (arg_is(c, *i, "NX") && !o->only_there) return o->only_absent = true;
    if (arg_is(c, *i, "XX") && !o->only_absent) return o->only_there = true;
    if (arg_is(c, *i, "GET")) return o->get = true;
    return arg_is(c, *i, "KEEPTTL") && o->expiry == NULL && (o->keep = true);
}

static bool set_options_read(call *c, size_t from, set_options *o) {
    bool good = true;
    *o = (set_options){0};
    for (size_t i = from; good && i < c->count; i++) good = option_read(c, &i, from == 3, o);
    if (!good) say(c, SYNTAX);
    return good;
}

void set_run(call *c) {
    set_options o;
    int64_t expires_ms = 0;
    if (!set_options_read(c, 3, &o)) return;
    if (o.expiry != NULL && !moment_of(c, o.moment, o.expiry->seconds, o.expiry->from_now, &expires_ms)) return;
    bool rests = o.only_absent || o.only_there || o.get || o.keep;
    entry *e = rests ? draft_key(c->draft, arg(c, 1)) : draft_find(c->draft, arg(c, 1));
    if (o.get && !is_string(c, e)) return;
    bool there = e->is != KIND_NONE, done = !(o.only_absent && there) && !(o.only_there && !there);
    text old = o.get ? draft_value(c->draft, e) : (text){0};
    if (done) draft_set(c->draft, e, arg(c, 2), o.keep ? e->expires_ms : expires_ms);
    if (o.get && there) say_value(c, old);
    else if (o.get || !done) resp_put_null(c->out, c->protocol);
    else say_ok(c);
}

/* SETEX and PSETEX. */
void setex_run(call *c) {
    int64_t expires_ms;
    bool seconds = c->command->name[0] == 's';
    if (!moment_of(c, arg(c, 2), seconds, true, &expires_ms)) return;
    draft_set(c->draft, draft_find(c->draft, arg(c, 1)), arg(c, 3), expires_ms);
    say_ok(c);
}

void setnx_run(call *c) {
    entry *e = draft_key(c->draft, arg(c, 1));
    bool absent = e->is == KIND_NONE;
    if (absent) draft_set(c->draft, e, arg(c, 2), 0);
    resp_put_number(c->out, absent);
}

static bool say_old(call *c, entry *e) {
    if (!is_string(c, e)) return false;
    if (e->is == KIND_NONE) resp_put_null(c->out, c->protocol);
    else say_value(c, draft_value(c->draft, e));
    return true;
}

void getset_run(call *c) {
    entry *e = draft_key(c->draft, arg(c, 1));
    if (say_old(c, e)) draft_set(c->draft, e, arg(c, 2), 0);
}

void getdel_run(call *c) {
    entry *e = draft_key(c->draft, arg(c, 1));
    if (say_old(c, e) && e->is != KIND_NONE) draft_delete(c->draft, e);
}

void getex_run(call *c) {
    set_options o;
    int64_t expires_ms = 0;
    if (!set_options_read(c, 2, &o)) return;
    entry *e = draft_key(c->draft, arg(c, 1));
    bool there = e->is == KIND_STRING;
    if (there && o.expiry != NULL && !moment_of(c, o.moment, o.expiry->seconds, o.expiry->from_now, &expires_ms)) return;
    if (!say_old(c, e) || !there) return;
    if (o.expiry != NULL || (o.persist && e->expires_ms != 0)) draft_expire(c->draft, e, expires_ms);
}

/* --- reads --- */

void get_run(call *c) { say_old(c, draft_key(c->draft, arg(c, 1))); }

void strlen_run(call *c) {
    entry *e = draft_key(c->draft, arg(c, 1));
    if (is_string(c, e)) resp_put_number(c->out, e->is == KIND_NONE ? 0 : (int64_t)e->size);
}

void mget_run(call *c) {
    resp_put_array(c->out, c->count - 1);
    for (size_t i = 1; i < c->count; i++) {
        entry *e = draft_key(c->draft, arg(c, i));
        if (e->is == KIND_STRING) say_value(c, draft_value(c->draft, e));
        else resp_put_null(c->out, c->protocol);
    }
}

/* The part of `size` bytes that two ends say, counted from behind if they are negative. False: there is none. */
static bool range_of(int64_t size, int64_t *start, int64_t *end) {
    if (*start < 0 && *end < 0 && *start > *end) return false;
    if (*start < 0) *start = *start + size < 0 ? 0 : *start + size;
    if (*end < 0) *end = *end + size < 0 ? 0 : *end + size;
    if (*end >= size) *end = size - 1;
    return size != 0 && *start <= *end;
}

void getrange_run(call *c) {
    int64_t start, end;
    if (!arg_number(c, 2, &start) || !arg_number(c, 3, &end)) return;
    entry *e = draft_key(c->draft, arg(c, 1));
    if (!is_string(c, e)) return;
    text value = draft_value(c->draft, e);
    bool some = range_of((int64_t)value.size, &start, &end);
    say_value(c, some ? (text){value.at + start, (size_t)(end - start) + 1} : (text){0});
}

/* --- several keys --- */

static bool is_even(call *c) {
    bool even = c->count % 2 == 1;
    if (!even) say_count(c);
    return even;
}

static void set_pairs(call *c) {
    for (size_t i = 1; i < c->count; i += 2) draft_set(c->draft, draft_find(c->draft, arg(c, i)), arg(c, i + 1), 0);
}

void mset_run(call *c) {
    if (!is_even(c)) return;
    set_pairs(c);
    say_ok(c);
}

void msetnx_run(call *c) {
    bool absent = true;
    if (!is_even(c)) return;
    for (size_t i = 1; i < c->count; i += 2) absent &= draft_key(c->draft, arg(c, i))->is == KIND_NONE;
    if (absent) set_pairs(c);
    resp_put_number(c->out, absent);
}

/* --- changing what is there --- */

static bool fits(call *c, uint64_t size) {
    if (size <= STRING_SIZE_MAX) return true;
    say(c, "ERR string exceeds maximum allowed size (proto-max-bulk-len)");
    return false;
}

/* `part` over the value from `at` on, with zeros before it if need be. */
static bool overwrite(call *c, entry *e, uint64_t at, text part) {
    if (!fits(c, at + part.size)) return false;
    text old = draft_value(c->draft, e);
    size_t size = old.size > at + part.size ? old.size : (size_t)at + part.size;
    uint8_t *to = draft_room(c->draft, size);
    if (to == NULL) return false;
    memset(to, 0, size);
    if (old.size != 0) memcpy(to, old.at, old.size);
    if (part.size != 0) memcpy(to + at, part.at, part.size);
    draft_set(c->draft, e, (text){to, size}, e->expires_ms);
    return true;
}

void append_run(call *c) {
    entry *e = draft_key(c->draft, arg(c, 1));
    if (is_string(c, e) && overwrite(c, e, e->is == KIND_NONE ? 0 : e->size, arg(c, 2)))
        resp_put_number(c->out, (int64_t)e->size);
}

void setrange_run(call *c) {
    int64_t at;
    if (!arg_number(c, 2, &at)) return;
    if (at < 0) {
        say(c, "ERR offset is out of range");
        return;
    }
    entry *e = draft_key(c->draft, arg(c, 1));
    if (!is_string(c, e)) return;
    bool nothing = arg(c, 3).size == 0;
    if (nothing) resp_put_number(c->out, e->is == KIND_NONE ? 0 : (int64_t)e->size);
    else if (overwrite(c, e, (uint64_t)at, arg(c, 3))) resp_put_number(c->out, (int64_t)e->size);
}

/* INCR, DECR, INCRBY, DECRBY. */
void incr_run(call *c) {
    int64_t by = 1, now = 0;
    char digits[24];
    bool down = c->command->name[0] == 'd';
    if (c->count == 3 && !arg_number(c, 2, &by)) return;
    if (down && by == INT64_MIN) {
        say(c, "ERR decrement would overflow");
        return;
    }
    entry *e = draft_key(c->draft, arg(c, 1));
    if (!is_string(c, e)) return;
    if (e->is != KIND_NONE && !text_number(draft_value(c->draft, e), &now)) {
        say(c, NOT_INTEGER);
    } else if (__builtin_add_overflow(now, down ? -by : by, &now)) {
        say(c, "ERR increment or decrement would overflow");
    } else {
        int size = snprintf(digits, sizeof digits, "%lld", (long long)now);
        draft_set(c->draft, e, draft_copy(c->draft, digits, (size_t)size), e->expires_ms);
        resp_put_number(c->out, now);
    }
}

size_t float_text(long double number, char out[64]) {
    int size = snprintf(out, 64, "%.17Lf", number);
    if (size < 0 || size >= 64) size = snprintf(out, 64, "%.17Lg", number);
    if (memchr(out, '.', (size_t)size) == NULL || memchr(out, 'e', (size_t)size) != NULL) return (size_t)size;
    while (out[size - 1] == '0') size--;
    if (out[size - 1] == '.') size--;
    if (size == 2 && memcmp(out, "-0", 2) == 0) out[0] = '0', size = 1;
    return (size_t)size;
}

void incrbyfloat_run(call *c) {
    long double by, now = 0;
    char digits[64];
    entry *e = draft_key(c->draft, arg(c, 1));
    if (!is_string(c, e)) return;
    bool good = e->is == KIND_NONE || text_float(draft_value(c->draft, e), &now);
    if (!good || !text_float(arg(c, 2), &by)) {
        say(c, NOT_FLOAT);
    } else if (isinf((double)(now + by)) || isnan((double)(now + by))) {
        say(c, "ERR increment would produce NaN or Infinity");
    } else {
        text sum = draft_copy(c->draft, digits, float_text(now + by, digits));
        draft_set(c->draft, e, sum, e->expires_ms);
        say_value(c, sum);
    }
}
