/* command_connection.c -- commands about a connection: who it is, what it speaks, when it ends. */
#include <stdlib.h>

#include "command.h"

void ping_run(call *c) {
    const client *from = c->client;
    bool listens = from != NULL && c->protocol < RESP_3 && from->channel_count + from->pattern_count != 0;
    if (c->count > 2) {
        say_count(c);
    } else if (listens) {
        resp_put_array(c->out, 2);
        resp_put_text(c->out, "pong");
        say_value(c, c->count == 2 ? arg(c, 1) : (text){0});
    } else if (c->count == 2) {
        say_value(c, arg(c, 1));
    } else {
        resp_put_simple(c->out, "PONG");
    }
}

void echo_run(call *c) { say_value(c, arg(c, 1)); }

void quit_run(call *c) {
    if (c->client != NULL) c->client->closing = true;
    say_ok(c);
}

void select_run(call *c) {
    int64_t number;
    if (!arg_number(c, 1, &number)) return;
    if (number != 0) say(c, "ERR DB index is out of range");
    else say_ok(c);
}

/* --- who it is --- */

/* In the same time whatever is wrong with it. */
static bool is_password(const kv_server *server, text said) {
    const char *password = server->options.password;
    size_t size = strlen(password);
    unsigned wrong = said.size != size;
    for (size_t i = 0; i < said.size; i++) wrong |= (unsigned)said.at[i] ^ (unsigned)(uint8_t)password[size == 0 ? 0 : i % size];
    return size != 0 && wrong == 0;
}

/* There is one user. */
static bool log_in(call *c, text user, text password) {
    bool good = text_is(user, "default") && (c->server->options.password[0] == 0 || is_password(c->server, password));
    if (good) c->client->known = true;
    else say(c, "WRONGPASS invalid username-password pair or user is disabled.");
    return good;
}

void auth_run(call *c) {
    if (c->client == NULL) return;
    if (c->count > 3) {
        say(c, SYNTAX);
    } else if (c->count == 2 && c->server->options.password[0] == 0) {
        say(c, "ERR AUTH <password> called without any password configured for the default user. Are you sure your "
               "configuration is correct?");
    } else if (log_in(c, c->count == 3 ? arg(c, 1) : (text){(const uint8_t *)"default", 7}, arg(c, c->count - 1))) {
        say_ok(c);
    }
}

/* What CLIENT LIST shows in a line, without anything that would break it. */
static bool is_name(text name) {
    for (size_t i = 0; i < name.size; i++)
        if (name.at[i] < '!' || name.at[i] > '~') return false;
    return true;
}

static bool set_name(call *c, text name, char *to, size_t size, const char *wrong) {
    if (!is_name(name)) say(c, wrong);
    else snprintf(to, size, "%.*s", (int)name.size, (const char *)name.at);
    return is_name(name);
}

static const char BAD_NAME[] = "ERR Client names cannot contain spaces, newlines or special characters.";

/* --- HELLO --- */

static void put_pair(wire_out *out, const char *name, const char *word) {
    resp_put_text(out, name);
    resp_put_text(out, word);
}

static bool hello_options(call *c) {
    for (size_t i = 2; i < c->count; i++) {
        if (arg_is(c, i, "AUTH") && i + 2 < c->count) {
            if (!log_in(c, arg(c, i + 1), arg(c, i + 2))) return false;
            i += 2;
        } else if (arg_is(c, i, "SETNAME") && i + 1 < c->count) {
            if (!set_name(c, arg(c, ++i), c->client->name, sizeof c->client->name, BAD_NAME)) return false;
        } else {
            text word = arg(c, i);
            c->server->figures.errors++;
            resp_put_error(c->out, "ERR Syntax error in HELLO option '%.*s'", (int)(word.size < 128 ? word.size : 128),
                           (const char *)word.at);
            return false;
        }
    }
    return true;
}

void hello_run(call *c) {
    int64_t protocol = c->protocol;
    if (c->client == NULL) return;
    if (c->count > 1 && !text_number(arg(c, 1), &protocol)) {
        say(c, "ERR Protocol version is not an integer or out of range");
        return;
    }
    if (protocol < RESP_2 || protocol > RESP_3) {
        say(c, "NOPROTO unsupported protocol version");
        return;
    }
    if (!hello_options(c)) return;
    if (!c->client->known) {
        say(c, "NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO <proto> AUTH <user> "
               "<pass> option can be used to authenticate the client and select the RESP protocol version at the same time");
        return;
    }
    c->client->protocol = (int)protocol;
    resp_put_map(c->out, 7, (int)protocol);
    put_pair(c->out, "server", "redis");
    put_pair(c->out, "version", REDIS_VERSION);
    resp_put_text(c->out, "proto");
    resp_put_number(c->out, protocol);
    resp_put_text(c->out, "id");
    resp_put_number(c->out, (int64_t)c->client->id);
    put_pair(c->out, "mode", server_size(c->server) == 1 ? "standalone" : "cluster");
    put_pair(c->out, "role", "master");
    resp_put_text(c->out, "modules");
    resp_put_array(c->out, 0);
}

void reset_run(call *c) {
    client *from = c->client;
    if (from == NULL) return;
    client_forget_multi(c->server, from);
    channels_leave(c->server, from);
    from->protocol = RESP_2;
    from->name[0] = 0;
    from->stale = false;
    from->known = c->server->options.password[0] == 0;
    resp_put_simple(c->out, "RESET");
}

/* Reads of one key from here on are answered at once, with what is here. */
void readonly_run(call *c) {
    if (c->client != NULL) c->client->stale = true;
    say_ok(c);
}

void readwrite_run(call *c) {
    if (c->client != NULL) c->client->stale = false;
    say_ok(c);
}

/* --- CLIENT --- */

static void put_client(const kv_server *server, const client *one, wire_out *out) {
    char line[640];
    const kv_command *last = one->last_command;
    int size = snprintf(line, sizeof line,
                        "id=%llu addr=%s laddr=%s fd=%d name=%s age=%llu idle=0 flags=%c db=0 sub=%u psub=%u ssub=0 multi=%d "
                        "qbuf=%zu qbuf-free=%zu argv-mem=0 multi-mem=%zu rbs=0 rbp=0 obl=%zu oll=0 omem=0 tot-mem=0 events=r "
                        "cmd=%s user=default redir=-1 resp=%d lib-name=%s lib-ver=%s\n",
                        (unsigned long long)one->id, one->address, server->options.announce, one->source.fd, one->name,
                        (unsigned long long)(server->now_ms - one->since_ms) / 1000,
                        one->channel_count + one->pattern_count != 0 ? 'P' : one->multi ? 'x' : 'N', one->channel_count,
                        one->pattern_count, one->multi ? 0 : -1, one->in.end - one->in.begin,
                        one->in.capacity - one->in.end, one->queue_size, one->out.size - one->sent,
                        last == NULL ? "NULL" : last->name, one->protocol, one->library, one->library_version);
    wire_put_bytes(out, (const uint8_t *)line, (size_t)size < sizeof line ? (size_t)size : sizeof line - 1);
}

static void say_list(call *c) {
    wire_out all = {0};
    for (const client *one = c->server->clients; one != NULL; one = one->next) put_client(c->server, one, &all);
    resp_put_bulk(c->out, all.bytes, all.size);
    if (all.failed) c->draft->failed = KV_ENOMEM;
    wire_free(&all);
}

static void say_info(call *c) {
    wire_out one = {0};
    put_client(c->server, c->client, &one);
    resp_put_bulk(c->out, one.bytes, one.size);
    if (one.failed) c->draft->failed = KV_ENOMEM;
    wire_free(&one);
}

/* CLIENT KILL address, or by ID, ADDR, LADDR is not looked at, SKIPME yes|no. */
typedef struct kill_filter {
    int64_t id;
    text address;
    bool skips_me;
} kill_filter;

static bool kill_options(call *c, kill_filter *f) {
    *f = (kill_filter){.skips_me = true};
    if (c->count == 3) {
        *f = (kill_filter){.address = arg(c, 2)};
        return true;
    }
    for (size_t i = 2; i + 1 < c->count; i += 2) {
        bool good = true;
        if (arg_is(c, i, "ID")) good = text_number(arg(c, i + 1), &f->id) && f->id > 0;
        else if (arg_is(c, i, "ADDR")) f->address = arg(c, i + 1);
        else if (arg_is(c, i, "SKIPME")) f->skips_me = arg_is(c, i + 1, "yes");
        else good = false;
        if (!good) return false;
    }
    return c->count % 2 == 0;
}

static void kill(call *c) {
    kill_filter f;
    int64_t count = 0;
    if (!kill_options(c, &f)) {
        say(c, SYNTAX);
        return;
    }
    for (client *one = c->server->clients, *next; one != NULL; one = next) {
        next = one->next;
        bool fits = f.address.at == NULL || text_is(f.address, one->address);
        if (!fits || (f.id != 0 && (uint64_t)f.id != one->id) || (f.skips_me && one == c->client)) continue;
        count++;
        if (one == c->client) one->closing = true; /* After it has been told. */
        else client_close(c->server, one);
    }
    if (c->count > 3) resp_put_number(c->out, count);
    else if (count != 0) say_ok(c);
    else say(c, "ERR No such client");
}

static void set_info(call *c) {
    static const char bad[] = "ERR lib-name and lib-ver cannot contain spaces, newlines or special characters.";
    client *from = c->client;
    bool name = arg_is(c, 2, "LIB-NAME"), version = arg_is(c, 2, "LIB-VER");
    char *to = name ? from->library : from->library_version;
    size_t size = name ? sizeof from->library : sizeof from->library_version;
    if (!name && !version) {
        text word = arg(c, 2);
        resp_put_error(c->out, "ERR Unrecognized option '%.*s'", (int)(word.size < 128 ? word.size : 128), (const char *)word.at);
    } else if (set_name(c, arg(c, 3), to, size, bad)) {
        say_ok(c);
    }
}

void client_run(call *c) {
    client *from = c->client;
    if (from == NULL) return;
    if (arg_is(c, 1, "ID") && c->count == 2) {
        resp_put_number(c->out, (int64_t)from->id);
    } else if (arg_is(c, 1, "GETNAME") && c->count == 2) {
        if (from->name[0] == 0) resp_put_null(c->out, c->protocol);
        else resp_put_text(c->out, from->name);
    } else if (arg_is(c, 1, "SETNAME") && c->count == 3) {
        if (set_name(c, arg(c, 2), from->name, sizeof from->name, BAD_NAME)) say_ok(c);
    } else if (arg_is(c, 1, "SETINFO") && c->count == 4) {
        set_info(c);
    } else if (arg_is(c, 1, "LIST")) {
        say_list(c);
    } else if (arg_is(c, 1, "INFO") && c->count == 2) {
        say_info(c);
    } else if (arg_is(c, 1, "KILL") && c->count > 2) {
        kill(c);
    } else if ((arg_is(c, 1, "NO-EVICT") || arg_is(c, 1, "NO-TOUCH")) && c->count == 3) {
        if (arg_is(c, 2, "ON") || arg_is(c, 2, "OFF")) say_ok(c);
        else say(c, SYNTAX);
    } else {
        say_subcommand(c);
    }
}
