/* command_key.c -- commands about keys that have a value. */
#include "command.h"

/* What a replica refuses, in the words of Redis. */
static const char *words_of(int32_t error) {
    switch (error) {
    case KV_EWRONGTYPE: return "WRONGTYPE Operation against a key holding the wrong kind of value";
    case KV_ENOTINT: return "ERR value is not an integer or out of range";
    case KV_EOVERFLOW: return "ERR increment or decrement would overflow";
    case KV_EVALUESIZE: return "ERR string exceeds maximum allowed size (proto-max-bulk-len)";
    case KV_EKEYSIZE: return "ERR a key has 1 to 65,535 bytes";
    case KV_ENOSPC: return "MISCONF the disk is full: what would grow the log is refused";
    default: return "ERR the replica refused it";
    }
}

static bool refused(kv_server *server, op *o, const kv_reply *reply) {
    if (reply->status == KV_ANSWER_OK) return false;
    reply_error(server, o, words_of(reply->error));
    return true;
}

static void ask_key(op *o, uint8_t kind) {
    o->ask = (kv_ask){.kind = kind, .key = word_at(o, 1), .key_size = o->words[1].size};
}

void get_begin(kv_server *server, op *o) {
    ask_key(o, KV_REQUEST_GET);
    request_ask(server, o);
}

void value_answered(kv_server *server, op *o, const kv_reply *reply, const uint8_t *bytes) {
    if (refused(server, o, reply)) return;
    int protocol = o->client == NULL ? RESP_2 : o->client->protocol;
    if (reply->value_size < 0) resp_put_null(op_reply(o), protocol);
    else resp_put_bulk(op_reply(o), bytes, (size_t)reply->value_size);
    op_done(server, o);
}

void length_answered(kv_server *server, op *o, const kv_reply *reply, const uint8_t *bytes) {
    (void)bytes;
    if (refused(server, o, reply)) return;
    resp_put_number(op_reply(o), reply->value_size < 0 ? 0 : reply->value_size);
    op_done(server, o);
}

/* SET key value, EX or PX. */
void set_begin(kv_server *server, op *o) {
    ask_key(o, KV_REQUEST_PUT);
    o->ask.value = word_at(o, 2);
    o->ask.value_size = o->words[2].size;
    for (size_t i = 3; i < o->word_count; i += 2) {
        bool seconds = word_is(o, i, "EX"), good = (seconds || word_is(o, i, "PX")) && i + 1 < o->word_count;
        int64_t ttl;
        if (!good || o->ask.ttl_ms != 0) {
            reply_error(server, o, "ERR syntax error");
            return;
        }
        if (!word_number(o, i + 1, &ttl)) {
            reply_error(server, o, "ERR value is not an integer or out of range");
            return;
        }
        if (ttl <= 0 || ttl > INT64_MAX / 2000) {
            reply_error(server, o, "ERR invalid expire time in 'set' command");
            return;
        }
        o->ask.ttl_ms = seconds ? ttl * 1000 : ttl;
    }
    request_ask(server, o);
}

void ok_answered(kv_server *server, op *o, const kv_reply *reply, const uint8_t *bytes) {
    (void)bytes;
    if (refused(server, o, reply)) return;
    resp_put_simple(op_reply(o), "OK");
    op_done(server, o);
}

void del_begin(kv_server *server, op *o) {
    ask_key(o, KV_REQUEST_DELETE);
    o->ask.argument = -1;
    request_ask(server, o);
}

void deleted_answered(kv_server *server, op *o, const kv_reply *reply, const uint8_t *bytes) {
    (void)bytes;
    bool absent = reply->status == KV_ANSWER_FAILED && reply->error == KV_ABSENT;
    if (!absent && refused(server, o, reply)) return;
    resp_put_number(op_reply(o), !absent);
    op_done(server, o);
}

void incr_begin(kv_server *server, op *o) {
    int64_t by = 1;
    bool down = word_at(o, 0)[0] == 'd' || word_at(o, 0)[0] == 'D';
    ask_key(o, KV_REQUEST_INCR);
    if (o->word_count == 3 && !word_number(o, 2, &by)) {
        reply_error(server, o, "ERR value is not an integer or out of range");
        return;
    }
    if (down && by == INT64_MIN) {
        reply_error(server, o, "ERR decrement would overflow");
        return;
    }
    o->ask.argument = down ? -by : by;
    request_ask(server, o);
}

void number_answered(kv_server *server, op *o, const kv_reply *reply, const uint8_t *bytes) {
    (void)bytes;
    if (refused(server, o, reply)) return;
    resp_put_number(op_reply(o), reply->number);
    op_done(server, o);
}

void append_begin(kv_server *server, op *o) {
    ask_key(o, KV_REQUEST_APPEND);
    o->ask.value = word_at(o, 2);
    o->ask.value_size = o->words[2].size;
    request_ask(server, o);
}
