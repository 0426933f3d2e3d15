/* command_hash.c -- hashes, which are tables: a field is a row, and TBL.* sees the same.
 *
 * A command of some fields rests on these fields, so that two who write different ones do not disturb each other. A hash
 * without fields is none: who deletes the last one deletes the table. */
#include <math.h>

#include "command.h"

/* HSET and HMSET. */
void hset_run(call *c) {
    int64_t added = 0;
    if (c->count % 2 != 0) {
        say_count(c);
        return;
    }
    entry *e = hash_of_key(c, 1);
    if (e == NULL) return;
    for (size_t i = 2; i < c->count; i += 2) {
        entry *row = draft_row(c->draft, e, arg(c, i));
        added += row->is == KIND_NONE;
        draft_row_set(c->draft, row, arg(c, i + 1));
    }
    if (c->command->name[1] == 'm') say_ok(c);
    else resp_put_number(c->out, added);
}

void hsetnx_run(call *c) {
    entry *e = hash_of_key(c, 1);
    if (e == NULL) return;
    entry *row = draft_row(c->draft, e, arg(c, 2));
    bool absent = row->is == KIND_NONE;
    if (absent) draft_row_set(c->draft, row, arg(c, 3));
    resp_put_number(c->out, absent);
}

static void say_row(call *c, entry *e, size_t n) {
    const entry *row = draft_row(c->draft, e, arg(c, n));
    if (row->is == KIND_NONE) resp_put_null(c->out, c->protocol);
    else say_value(c, row->value);
}

void hget_run(call *c) {
    entry *e = hash_of_key(c, 1);
    if (e != NULL) say_row(c, e, 2);
}

void hmget_run(call *c) {
    entry *e = hash_of_key(c, 1);
    if (e == NULL) return;
    resp_put_array(c->out, c->count - 2);
    for (size_t i = 2; i < c->count; i++) say_row(c, e, i);
}

void hexists_run(call *c) {
    entry *e = hash_of_key(c, 1);
    if (e != NULL) resp_put_number(c->out, draft_row(c->draft, e, arg(c, 2))->is != KIND_NONE);
}

void hstrlen_run(call *c) {
    entry *e = hash_of_key(c, 1);
    if (e == NULL) return;
    const entry *row = draft_row(c->draft, e, arg(c, 2));
    resp_put_number(c->out, row->is == KIND_NONE ? 0 : (int64_t)row->value.size);
}

void hdel_run(call *c) {
    int64_t count = 0;
    entry *e = hash_of_key(c, 1);
    if (e == NULL) return;
    for (size_t i = 2; i < c->count; i++) {
        entry *row = draft_row(c->draft, e, arg(c, i));
        count += row->is != KIND_NONE;
        draft_row_delete(c->draft, row);
    }
    resp_put_number(c->out, count);
}

void hlen_run(call *c) {
    entry *e = hash_of_key(c, 1);
    if (e == NULL) return;
    e->expected = true;
    resp_put_number(c->out, (int64_t)e->rows);
}

/* --- all of it --- */

static bool all_of(call *c, const draft_pair **pairs, size_t *count) {
    entry *e = hash_of_key(c, 1);
    if (e != NULL) *count = draft_rows(c->draft, e, pairs);
    return e != NULL;
}

void hgetall_run(call *c) {
    const draft_pair *pairs;
    size_t count;
    if (!all_of(c, &pairs, &count)) return;
    resp_put_map(c->out, count, c->protocol);
    for (size_t i = 0; i < count; i++) {
        say_value(c, pairs[i].row);
        say_value(c, pairs[i].value);
    }
}

void hkeys_run(call *c) {
    const draft_pair *pairs;
    size_t count;
    if (!all_of(c, &pairs, &count)) return;
    resp_put_array(c->out, count);
    for (size_t i = 0; i < count; i++) say_value(c, pairs[i].row);
}

void hvals_run(call *c) {
    const draft_pair *pairs;
    size_t count;
    if (!all_of(c, &pairs, &count)) return;
    resp_put_array(c->out, count);
    for (size_t i = 0; i < count; i++) say_value(c, pairs[i].value);
}

/* --- by lot --- */

enum { LOTS_MAX = 1 << 20 };

static void say_drawn(call *c, const draft_pair *one, bool values) {
    if (values && c->protocol == RESP_3) resp_put_array(c->out, 2);
    say_value(c, one->row);
    if (values) say_value(c, one->value);
}

/* Each once, in an order drawn by lot; or, of a count below 0, with repetition. */
static void say_lots(call *c, const draft_pair *pairs, size_t count, int64_t wanted, bool values) {
    bool again = wanted < 0;
    size_t said = again ? (size_t)-wanted : (size_t)wanted < count ? (size_t)wanted : count;
    draft_pair *left = (draft_pair *)(void *)draft_room(c->draft, (count + 1) * sizeof *left);
    if (left == NULL) return;
    if (count == 0) said = 0;
    else memcpy(left, pairs, count * sizeof *left);
    resp_put_array(c->out, values && c->protocol != RESP_3 ? 2 * said : said);
    for (size_t i = 0; i < said; i++) {
        size_t at = server_lot(c->server) % count;
        say_drawn(c, &left[at], values);
        if (!again) left[at] = left[--count];
    }
}

/* HRANDFIELD key [count [WITHVALUES]]. */
void hrandfield_run(call *c) {
    const draft_pair *pairs;
    size_t count;
    int64_t wanted = 0;
    bool values = c->count == 4;
    if (c->count >= 3 && !arg_number(c, 2, &wanted)) return;
    if (c->count > 4 || (values && !arg_is(c, 3, "WITHVALUES"))) say(c, SYNTAX);
    else if (wanted < -LOTS_MAX) say(c, "ERR value is out of range");
    else if (!all_of(c, &pairs, &count)) return;
    else if (c->count > 2) say_lots(c, pairs, count, wanted, values);
    else if (count == 0) resp_put_null(c->out, c->protocol);
    else say_value(c, pairs[server_lot(c->server) % count].row);
}

/* --- numbers --- */

void hincrby_run(call *c) {
    int64_t by, now = 0;
    char digits[24];
    if (!arg_number(c, 3, &by)) return;
    entry *e = hash_of_key(c, 1);
    if (e == NULL) return;
    entry *row = draft_row(c->draft, e, arg(c, 2));
    if (row->is != KIND_NONE && !text_number(row->value, &now)) {
        say(c, "ERR hash value is not an integer");
    } else if (__builtin_add_overflow(now, by, &now)) {
        say(c, "ERR increment or decrement would overflow");
    } else {
        int size = snprintf(digits, sizeof digits, "%lld", (long long)now);
        draft_row_set(c->draft, row, draft_copy(c->draft, digits, (size_t)size));
        resp_put_number(c->out, now);
    }
}

void hincrbyfloat_run(call *c) {
    long double by, now = 0;
    char digits[64];
    if (!text_float(arg(c, 3), &by)) {
        say(c, NOT_FLOAT);
        return;
    }
    if (isinf((double)by)) {
        say(c, "ERR value is NaN or Infinity");
        return;
    }
    entry *e = hash_of_key(c, 1);
    if (e == NULL) return;
    entry *row = draft_row(c->draft, e, arg(c, 2));
    if (row->is != KIND_NONE && !text_float(row->value, &now)) {
        say(c, "ERR hash value is not a float");
    } else if (isinf((double)(now + by)) || isnan((double)(now + by))) {
        say(c, "ERR increment would produce NaN or Infinity");
    } else {
        text sum = draft_copy(c->draft, digits, float_text(now + by, digits));
        draft_row_set(c->draft, row, sum);
        say_value(c, sum);
    }
}
