/* command.c -- how a command begins, and what the files of commands share. */
#include "command.h"

#include <math.h>
#include <stdlib.h>
#include <strings.h>

enum { NAME_SIZE_MAX = 32, QUEUE_SIZE_MAX = 64 << 20 };

/* --- words --- */

bool text_is(text t, const char *word) {
    return t.size == strlen(word) && strncasecmp((const char *)t.at, word, t.size) == 0;
}

bool word_is(const op *o, size_t n, const char *word) { return text_is(word_text(o, n), word); }
bool word_number(const op *o, size_t n, int64_t *out) { return text_number(word_text(o, n), out); }

/* As strtold() has it, all of it, and nothing before. */
bool text_float(text t, long double *out) {
    char copy[256], *end;
    if (t.size == 0 || t.size >= sizeof copy || t.at[0] == ' ' || (t.at[0] >= '\t' && t.at[0] <= '\r')) return false;
    memcpy(copy, t.at, t.size);
    copy[t.size] = 0;
    *out = strtold(copy, &end);
    return end == copy + t.size && !isnan((double)*out);
}

bool arg_number(call *c, size_t n, int64_t *out) {
    bool good = text_number(arg(c, n), out);
    if (!good) say(c, NOT_INTEGER);
    return good;
}

int op_protocol(const op *o) {
    while (o->client == NULL && o->parent != NULL) o = o->parent;
    return o->client == NULL ? RESP_2 : o->client->protocol;
}

/* --- replies --- */

void reply_error(kv_server *server, op *o, const char *error) {
    server->figures.errors++;
    resp_put_error(op_reply(o), "%s", error);
    op_done(server, o);
}

void say(call *c, const char *error) {
    c->server->figures.errors++;
    resp_put_error(c->out, "%s", error);
}

void say_count(call *c) {
    c->server->figures.errors++;
    resp_put_error(c->out, "ERR wrong number of arguments for '%s' command", c->command->name);
}

void say_ok(call *c) { resp_put_simple(c->out, "OK"); }
void say_value(call *c, text value) { resp_put_bulk(c->out, value.at, value.size); }

void say_subcommand(call *c) {
    char name[NAME_SIZE_MAX];
    text word = arg(c, 1);
    size_t size = strlen(c->command->name);
    for (size_t i = 0; i <= size; i++) {
        char letter = c->command->name[i];
        name[i] = (char)(letter >= 'a' && letter <= 'z' ? letter - 32 : letter);
    }
    c->server->figures.errors++;
    resp_put_error(c->out, "ERR unknown subcommand '%.*s'. Try %s HELP.", (int)(word.size < 128 ? word.size : 128),
                   (const char *)word.at, name);
}

const char *words_of(int32_t error) {
    switch (error) {
    case KV_EWRONGTYPE: return WRONG_TYPE;
    case KV_ENOTINT: return NOT_INTEGER;
    case KV_EOVERFLOW: return "ERR increment or decrement would overflow";
    case KV_EVALUESIZE: return "ERR string exceeds maximum allowed size (proto-max-bulk-len)";
    case KV_EBATCHSIZE: return "ERR it writes more than one batch takes";
    case KV_EKEYSIZE: return "ERR a key has 1 to 65,535 bytes";
    case KV_ENOSPC: return "MISCONF the disk is full: what would grow the log is refused";
    default: return "ERR the replica refused it";
    }
}

bool is_string(call *c, entry *e) {
    if (e->is != KIND_HASH) return true;
    e->expected = true;
    say(c, WRONG_TYPE);
    return false;
}

entry *hash_of_key(call *c, size_t n) {
    entry *e = draft_find(c->draft, arg(c, n));
    if (e->is != KIND_STRING) return e;
    e->expected = true;
    say(c, WRONG_TYPE);
    return NULL;
}

/* --- beginning --- */

static int by_name(const void *name, const void *one) { return strcmp(name, ((const kv_command *)one)->name); }

const kv_command *command_find(const uint8_t *name, size_t size) {
    char lower[NAME_SIZE_MAX];
    if (size >= sizeof lower) return NULL;
    for (size_t i = 0; i < size; i++) lower[i] = (char)(name[i] >= 'A' && name[i] <= 'Z' ? name[i] + 32 : name[i]);
    lower[size] = 0;
    return bsearch(lower, COMMANDS, COMMAND_COUNT, sizeof COMMANDS[0], by_name);
}

static bool is_queued(const client *c, const kv_command *command) {
    return c->multi && command != NULL && (command->flags & COMMAND_NOW) == 0;
}

bool command_has_turn(const kv_command *command, size_t word_count) {
    return (command->flags & COMMAND_WRITE) != 0 && command_key_count(command, word_count) == 1;
}

/* A queued one does nothing yet, and is answered in its place. What is about one key needs to be alone in its slot only. */
uint32_t command_order(const client *c, const kv_command *command, size_t word_count) {
    if (command == NULL || is_queued(c, command)) return 0;
    return command_has_turn(command, word_count) ? COMMAND_WRITE : command->flags & COMMAND_ORDER;
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

/* Whether it may be asked at all; if not, it is answered. */
static bool is_allowed(kv_server *server, op *o) {
    const kv_command *command = o->command;
    const client *c = o->client;
    int count = (int)o->word_count;
    if (!c->known && (command == NULL || (command->flags & COMMAND_STRANGER) == 0)) {
        reply_error(server, o, "NOAUTH Authentication required.");
        return false;
    }
    if (command == NULL) {
        unknown(server, o);
        return false;
    }
    if (command->arity < 0 ? count < -command->arity : count != command->arity) {
        server->figures.errors++;
        resp_put_error(op_reply(o), "ERR wrong number of arguments for '%s' command", command->name);
        op_done(server, o);
        return false;
    }
    bool listens = c->protocol < RESP_3 && c->channel_count + c->pattern_count != 0;
    if (listens && (command->flags & COMMAND_LISTENER) == 0) {
        server->figures.errors++;
        resp_put_error(op_reply(o),
                       "ERR Can't execute '%s': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are allowed in "
                       "this context", command->name);
        op_done(server, o);
        return false;
    }
    return true;
}

static void queue(kv_server *server, op *o) {
    client *c = o->client;
    if (o->command->flags & COMMAND_DIRECT) {
        c->spoilt = true;
        reply_error(server, o, "ERR Command not allowed inside a transaction");
        return;
    }
    op *kept = c->queue_size + o->bytes.size > QUEUE_SIZE_MAX ? NULL : op_keep(server, o);
    if (kept == NULL) {
        c->spoilt = true;
        reply_error(server, o, NO_MEMORY);
        return;
    }
    *c->queue_last = kept;
    c->queue_last = &kept->next;
    c->queue_size += o->bytes.size;
    resp_put_simple(op_reply(o), "QUEUED");
    op_done(server, o);
}

void command_start(kv_server *server, op *o) {
    if (o->command->begin == NULL || !o->command->begin(server, o)) perform_begin(server, o);
}

void command_begin(kv_server *server, op *o) {
    client *c = o->client;
    c->last_command = o->command;
    if (!is_allowed(server, o)) {
        c->spoilt = c->multi;
    } else if (is_queued(c, o->command)) {
        queue(server, o);
    } else if (!command_has_turn(o->command, o->word_count) || !turn_waits(server, o)) {
        command_start(server, o);
    }
}
