/* command_hot.c -- what is asked most: one request to the replica, without a read before the write.
 *
 * A `begin` that finds more in its words than one request can say leaves the command to its `run`, which can. */
#include "command.h"

bool refused(kv_server *server, op *o, const kv_reply *reply) {
    if (reply->status == KV_ANSWER_OK) return false;
    reply_error(server, o, words_of(reply->error));
    return true;
}

void ask_key(op *o, uint8_t kind) {
    o->phase = PHASE_REQUEST;
    o->ask = (kv_ask){.kind = kind, .key = word_at(o, 1), .key_size = o->words[1].size};
}

/* --- reads --- */

bool get_begin(kv_server *server, op *o) {
    ask_key(o, KV_REQUEST_GET);
    request_ask(server, o);
    return true;
}

static void put_value(op *o, const kv_reply *reply, const uint8_t *bytes) {
    if (reply->value_size < 0) resp_put_null(op_reply(o), op_protocol(o));
    else resp_put_bulk(op_reply(o), bytes, (size_t)reply->value_size);
}

void value_answered(kv_server *server, op *o, const kv_reply *reply, const uint8_t *bytes) {
    if (refused(server, o, reply)) return;
    put_value(o, reply, bytes);
    op_done(server, o);
}

void length_answered(kv_server *server, op *o, const kv_reply *reply, const uint8_t *bytes) {
    (void)bytes;
    if (refused(server, o, reply)) return;
    resp_put_number(op_reply(o), reply->value_size < 0 ? 0 : reply->value_size);
    op_done(server, o);
}

/* MGET of one key, as a part of a larger one is in most cases. */
bool mget_begin(kv_server *server, op *o) { return o->word_count == 2 && get_begin(server, o); }

void element_answered(kv_server *server, op *o, const kv_reply *reply, const uint8_t *bytes) {
    bool wrong_type = reply->status == KV_ANSWER_FAILED && reply->error == KV_EWRONGTYPE;
    if (!wrong_type && refused(server, o, reply)) return;
    resp_put_array(op_reply(o), 1);
    if (wrong_type) resp_put_null(op_reply(o), op_protocol(o));
    else put_value(o, reply, bytes);
    op_done(server, o);
}

/* --- writes --- */

static bool put_begin(kv_server *server, op *o, int64_t ttl_ms) {
    ask_key(o, KV_REQUEST_PUT);
    o->ask.value = word_at(o, 2);
    o->ask.value_size = o->words[2].size;
    o->ask.ttl_ms = ttl_ms;
    request_ask(server, o);
    return true;
}

/* SET key value, with EX or PX, maybe. What is wrong is for set_run() to say. */
bool set_begin(kv_server *server, op *o) {
    int64_t ttl = 0;
    if (o->word_count == 3) return put_begin(server, o, 0);
    bool seconds = word_is(o, 3, "EX");
    if (o->word_count != 5 || !(seconds || word_is(o, 3, "PX"))) return false;
    if (!word_number(o, 4, &ttl) || ttl <= 0 || ttl > INT64_MAX / 2000) return false;
    return put_begin(server, o, seconds ? ttl * 1000 : ttl);
}

bool mset_begin(kv_server *server, op *o) { return o->word_count == 3 && put_begin(server, o, 0); }

void ok_answered(kv_server *server, op *o, const kv_reply *reply, const uint8_t *bytes) {
    (void)bytes;
    if (refused(server, o, reply)) return;
    resp_put_simple(op_reply(o), "OK");
    op_done(server, o);
}

bool del_begin(kv_server *server, op *o) {
    if (o->word_count != 2) return false;
    ask_key(o, KV_REQUEST_DELETE);
    o->ask.argument = -1;
    request_ask(server, o);
    return true;
}

void deleted_answered(kv_server *server, op *o, const kv_reply *reply, const uint8_t *bytes) {
    (void)bytes;
    bool absent = reply->status == KV_ANSWER_FAILED && reply->error == KV_ABSENT;
    if (!absent && refused(server, o, reply)) return;
    resp_put_number(op_reply(o), !absent);
    op_done(server, o);
}

bool incr_begin(kv_server *server, op *o) {
    int64_t by = 1;
    bool down = word_at(o, 0)[0] == 'd' || word_at(o, 0)[0] == 'D';
    if (o->word_count == 3 && !word_number(o, 2, &by)) return false;
    if (down && by == INT64_MIN) return false;
    ask_key(o, KV_REQUEST_INCR);
    o->ask.argument = down ? -by : by;
    request_ask(server, o);
    return true;
}

void number_answered(kv_server *server, op *o, const kv_reply *reply, const uint8_t *bytes) {
    (void)bytes;
    if (refused(server, o, reply)) return;
    resp_put_number(op_reply(o), reply->number);
    op_done(server, o);
}

bool append_begin(kv_server *server, op *o) {
    ask_key(o, KV_REQUEST_APPEND);
    o->ask.value = word_at(o, 2);
    o->ask.value_size = o->words[2].size;
    request_ask(server, o);
    return true;
}
