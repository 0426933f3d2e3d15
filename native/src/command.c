/* command.c -- the table of commands, and those that are about the connection or the server. */
#include <stdio.h>
#include <stdlib.h>
#include <strings.h>

#include "command.h"

enum { NAME_SIZE_MAX = 32 };

bool word_is(const op *o, size_t n, const char *text) {
    return o->words[n].size == strlen(text) && strncasecmp((const char *)word_at(o, n), text, o->words[n].size) == 0;
}

bool word_number(const op *o, size_t n, int64_t *out) { return resp_number(word_at(o, n), o->words[n].size, out); }

void reply_error(kv_server *server, op *o, const char *text) {
    server->figures.errors++;
    resp_put_error(op_reply(o), "%s", text);
    op_done(server, o);
}

static void reply_ok(kv_server *server, op *o) {
    resp_put_simple(op_reply(o), "OK");
    op_done(server, o);
}

/* --- the connection --- */

static void ping_begin(kv_server *server, op *o) {
    if (o->word_count > 2) {
        reply_error(server, o, "ERR wrong number of arguments for 'ping' command");
        return;
    }
    if (o->word_count == 2) resp_put_bulk(op_reply(o), word_at(o, 1), o->words[1].size);
    else resp_put_simple(op_reply(o), "PONG");
    op_done(server, o);
}

static void echo_begin(kv_server *server, op *o) {
    resp_put_bulk(op_reply(o), word_at(o, 1), o->words[1].size);
    op_done(server, o);
}

static void quit_begin(kv_server *server, op *o) {
    o->client->closing = true;
    reply_ok(server, o);
}

static void select_begin(kv_server *server, op *o) {
    int64_t number;
    if (!word_number(o, 1, &number)) reply_error(server, o, "ERR value is not an integer or out of range");
    else if (number != 0) reply_error(server, o, "ERR DB index is out of range");
    else reply_ok(server, o);
}

static void put_pair(wire_out *out, const char *name, const char *text) {
    resp_put_text(out, name);
    resp_put_text(out, text);
}

static void hello_begin(kv_server *server, op *o) {
    int64_t protocol = o->client->protocol;
    if (o->word_count > 1 && !word_number(o, 1, &protocol)) {
        reply_error(server, o, "ERR Protocol version is not an integer or out of range");
        return;
    }
    if (protocol < RESP_2 || protocol > RESP_3) {
        reply_error(server, o, "NOPROTO unsupported protocol version");
        return;
    }
    for (size_t i = 2; i < o->word_count; i++) {
        if (word_is(o, i, "SETNAME") && i + 1 < o->word_count) {
            i++;
            snprintf(o->client->name, sizeof o->client->name, "%.*s", (int)o->words[i].size, (const char *)word_at(o, i));
            continue;
        }
        resp_put_error(op_reply(o), "ERR Syntax error in HELLO option '%.*s'", (int)o->words[i].size,
                       (const char *)word_at(o, i));
        op_done(server, o);
        return;
    }
    o->client->protocol = (int)protocol;
    wire_out *out = op_reply(o);
    resp_put_map(out, 7, (int)protocol);
    put_pair(out, "server", "redis");
    put_pair(out, "version", REDIS_VERSION);
    resp_put_text(out, "proto");
    resp_put_number(out, protocol);
    resp_put_text(out, "id");
    resp_put_number(out, (int64_t)o->client->id);
    put_pair(out, "mode", server->link_count == 0 ? "standalone" : "cluster");
    put_pair(out, "role", "master");
    resp_put_text(out, "modules");
    resp_put_array(out, 0);
    op_done(server, o);
}

static void unknown_subcommand(kv_server *server, op *o, const char *command) {
    server->figures.errors++;
    resp_put_error(op_reply(o), "ERR unknown subcommand '%.*s'. Try %s HELP.",
                   (int)(o->words[1].size < 128 ? o->words[1].size : 128), (const char *)word_at(o, 1), command);
    op_done(server, o);
}

static void client_begin(kv_server *server, op *o) {
    client *c = o->client;
    if (word_is(o, 1, "ID") && o->word_count == 2) {
        resp_put_number(op_reply(o), (int64_t)c->id);
        op_done(server, o);
    } else if (word_is(o, 1, "GETNAME") && o->word_count == 2) {
        if (c->name[0] == 0) resp_put_null(op_reply(o), c->protocol);
        else resp_put_text(op_reply(o), c->name);
        op_done(server, o);
    } else if (word_is(o, 1, "SETNAME") && o->word_count == 3) {
        snprintf(c->name, sizeof c->name, "%.*s", (int)o->words[2].size, (const char *)word_at(o, 2));
        reply_ok(server, o);
    } else if (word_is(o, 1, "SETINFO") && o->word_count == 4) {
        reply_ok(server, o);
    } else {
        unknown_subcommand(server, o, "CLIENT");
    }
}

static void command_command_begin(kv_server *server, op *o) {
    if (o->word_count == 2 && word_is(o, 1, "COUNT")) resp_put_number(op_reply(o), (int64_t)COMMAND_COUNT);
    else resp_put_array(op_reply(o), 0);
    op_done(server, o);
}

static void info_begin(kv_server *server, op *o) {
    char text[1024];
    const kv_server_figures *f = &server->figures;
    int size = snprintf(text, sizeof text,
                        "# Server\r\nredis_version:%s\r\nredis_mode:%s\r\nprocess_id:%d\r\n\r\n"
                        "# Clients\r\nconnected_clients:%llu\r\n\r\n"
                        "# Stats\r\ntotal_connections_received:%llu\r\ntotal_commands_processed:%llu\r\n",
                        REDIS_VERSION, server->link_count == 0 ? "standalone" : "cluster", (int)getpid(),
                        (unsigned long long)server->client_count, (unsigned long long)f->connections,
                        (unsigned long long)f->commands);
    resp_put_bulk(op_reply(o), text, (size_t)size);
    op_done(server, o);
}

/* --- the table, by name --- */

const kv_command COMMANDS[] = {
    {"append", 3, COMMAND_WRITE, 1, 1, 1, append_begin, number_answered, "adds bytes to the end of a value"},
    {"client", -2, COMMAND_STRANGER, 0, 0, 0, client_begin, NULL, "about this connection"},
    {"command", -1, COMMAND_STRANGER, 0, 0, 0, command_command_begin, NULL, "about commands"},
    {"decr", 2, COMMAND_WRITE, 1, 1, 1, incr_begin, number_answered, "takes one from a number"},
    {"decrby", 3, COMMAND_WRITE, 1, 1, 1, incr_begin, number_answered, "takes from a number"},
    {"del", 2, COMMAND_WRITE, 1, 1, 1, del_begin, deleted_answered, "deletes keys"},
    {"echo", 2, COMMAND_STRANGER, 0, 0, 0, echo_begin, NULL, "says it again"},
    {"get", 2, COMMAND_READ, 1, 1, 1, get_begin, value_answered, "the value of a key"},
    {"hello", -1, COMMAND_STRANGER, 0, 0, 0, hello_begin, NULL, "chooses the protocol"},
    {"incr", 2, COMMAND_WRITE, 1, 1, 1, incr_begin, number_answered, "adds one to a number"},
    {"incrby", 3, COMMAND_WRITE, 1, 1, 1, incr_begin, number_answered, "adds to a number"},
    {"info", -1, 0, 0, 0, 0, info_begin, NULL, "figures of the server"},
    {"ping", -1, COMMAND_STRANGER, 0, 0, 0, ping_begin, NULL, "is somebody there?"},
    {"quit", -1, COMMAND_STRANGER, 0, 0, 0, quit_begin, NULL, "ends the connection"},
    {"select", 2, 0, 0, 0, 0, select_begin, NULL, "there is database 0"},
    {"set", -3, COMMAND_WRITE, 1, 1, 1, set_begin, ok_answered, "writes a value"},
    {"strlen", 2, COMMAND_READ, 1, 1, 1, get_begin, length_answered, "the length of a value"},
};
const size_t COMMAND_COUNT = sizeof COMMANDS / sizeof COMMANDS[0];

static int by_name(const void *name, const void *entry) { return strcmp(name, ((const kv_command *)entry)->name); }

const kv_command *command_find(const uint8_t *name, size_t size) {
    char lower[NAME_SIZE_MAX];
    if (size >= sizeof lower) return NULL;
    for (size_t i = 0; i < size; i++) lower[i] = (char)(name[i] >= 'A' && name[i] <= 'Z' ? name[i] + 32 : name[i]);
    lower[size] = 0;
    return bsearch(lower, COMMANDS, COMMAND_COUNT, sizeof COMMANDS[0], by_name);
}

/* The words of a command that is not known, as Redis repeats them. */
static void unknown(kv_server *server, op *o) {
    char words[129] = "";
    size_t used = 0;
    for (size_t i = 1; i < o->word_count && used < sizeof words - 1; i++)
        used += (size_t)snprintf(words + used, sizeof words - used, "'%.*s' ", (int)o->words[i].size, (const char *)word_at(o, i));
    server->figures.errors++;
    resp_put_error(op_reply(o), "ERR unknown command '%.*s', with args beginning with: %s",
                   (int)(o->words[0].size < 128 ? o->words[0].size : 128), (const char *)word_at(o, 0), words);
    op_done(server, o);
}

void command_begin(kv_server *server, op *o) {
    const kv_command *command = o->command;
    if (command == NULL) {
        unknown(server, o);
        return;
    }
    int count = (int)o->word_count;
    if (command->arity < 0 ? count < -command->arity : count != command->arity) {
        server->figures.errors++;
        resp_put_error(op_reply(o), "ERR wrong number of arguments for '%s' command", command->name);
        op_done(server, o);
        return;
    }
    command->begin(server, o);
}
