/* channels.c -- who listens to what on this replica, and PUBLISH to them.
 *
 * A channel's listeners hang in a chain by the hash of its name; those to patterns in one list, which every message goes
 * through. A message goes into each listener's output at once, between two replies; one that does not read it is cut like
 * anybody (client.c). What is published goes to the other replicas over the links (link.c), as far as these take it: nobody
 * waits for that, nothing is kept, and what a broken link had on it is lost. */
#include <stdlib.h>

#include "command.h"
#include "kv/xxh64.h"

enum { CHAINS = 1024 };

typedef struct listener listener;
struct listener {
    listener *next;
    client *client;
    size_t size;
    uint8_t name[];
};

struct channels {
    listener *exact[CHAINS];
    listener *patterns;
};

channels *channels_new(void) { return calloc(1, sizeof(channels)); }

static void chain_free(listener *one) {
    for (listener *next; one != NULL; one = next) {
        next = one->next;
        free(one);
    }
}

void channels_free(channels *all) {
    if (all == NULL) return;
    for (size_t i = 0; i < CHAINS; i++) chain_free(all->exact[i]);
    chain_free(all->patterns);
    free(all);
}

static text name_of(const listener *one) { return (text){one->name, one->size}; }
static bool same(text a, text b) { return a.size == b.size && memcmp(a.at, b.at, a.size) == 0; }

static listener **chain_of(channels *all, bool pattern, text name) {
    return pattern ? &all->patterns : &all->exact[kv_xxh64(name.at, name.size, 0) % CHAINS];
}

static uint32_t *count_of(client *c, bool pattern) { return pattern ? &c->pattern_count : &c->channel_count; }

static listener **find(channels *all, const client *c, bool pattern, text name) {
    listener **at = chain_of(all, pattern, name);
    while (*at != NULL && ((*at)->client != c || !same(name_of(*at), name))) at = &(*at)->next;
    return at;
}

static bool join(channels *all, client *c, bool pattern, text name) {
    if (*find(all, c, pattern, name) != NULL) return true;
    listener *one = malloc(sizeof *one + name.size), **chain = chain_of(all, pattern, name);
    if (one == NULL) return false;
    *one = (listener){.next = *chain, .client = c, .size = name.size};
    memcpy(one->name, name.at, name.size);
    *chain = one;
    ++*count_of(c, pattern);
    return true;
}

static void leave(channels *all, client *c, bool pattern, text name) {
    listener **at = find(all, c, pattern, name), *one = *at;
    if (one == NULL) return;
    *at = one->next;
    free(one);
    --*count_of(c, pattern);
}

/* The first that the client has; NULL: none. */
static listener *any_of(channels *all, const client *c, bool pattern) {
    for (size_t i = 0; i < (pattern ? 1 : CHAINS); i++)
        for (listener *one = pattern ? all->patterns : all->exact[i]; one != NULL; one = one->next)
            if (one->client == c) return one;
    return NULL;
}

void channels_leave(kv_server *server, client *c) {
    for (int pattern = 0; pattern < 2; pattern++)
        while (*count_of(c, pattern) != 0) leave(server->channels, c, pattern, name_of(any_of(server->channels, c, pattern)));
}

/* --- commands --- */

static bool is_pattern(const call *c) { return c->command->name[0] == 'p' && c->command->name[1] != 'u'; }

static void say_membership(call *c, text name) {
    char word[16];
    snprintf(word, sizeof word, "%s", c->command->name);
    resp_put_push(c->out, 3, c->protocol);
    resp_put_text(c->out, word);
    if (name.at == NULL) resp_put_null(c->out, c->protocol);
    else say_value(c, name);
    resp_put_number(c->out, c->client->channel_count + c->client->pattern_count);
}

void subscribe_run(call *c) {
    if (c->client == NULL) return;
    for (size_t i = 1; i < c->count; i++) {
        if (!join(c->server->channels, c->client, is_pattern(c), arg(c, i))) c->draft->failed = KV_ENOMEM;
        say_membership(c, arg(c, i));
    }
}

void unsubscribe_run(call *c) {
    bool pattern = is_pattern(c);
    if (c->client == NULL) return;
    for (size_t i = 1; i < c->count; i++) {
        leave(c->server->channels, c->client, pattern, arg(c, i));
        say_membership(c, arg(c, i));
    }
    if (c->count > 1) return;
    const listener *one = any_of(c->server->channels, c->client, pattern);
    if (one == NULL) say_membership(c, (text){0});
    for (; one != NULL; one = any_of(c->server->channels, c->client, pattern)) {
        text name = draft_copy(c->draft, one->name, one->size);
        if (name.at == NULL) return;
        leave(c->server->channels, c->client, pattern, name);
        say_membership(c, name);
    }
}

static void deliver(kv_server *server, const listener *to, bool pattern, text channel, text message) {
    client *c = to->client;
    resp_put_push(&c->out, pattern ? 4 : 3, c->protocol);
    resp_put_text(&c->out, pattern ? "pmessage" : "message");
    if (pattern) resp_put_bulk(&c->out, to->name, to->size);
    resp_put_bulk(&c->out, channel.at, channel.size);
    resp_put_bulk(&c->out, message.at, message.size);
    client_dirty(server, c);
}

/* How many there are; `tell`: and they are told. */
static int64_t listeners(kv_server *server, text name, text message, bool tell) {
    int64_t count = 0;
    for (const listener *one = *chain_of(server->channels, false, name); one != NULL; one = one->next) {
        if (!same(name_of(one), name)) continue;
        if (tell) deliver(server, one, false, name, message);
        count++;
    }
    for (const listener *one = server->channels->patterns; one != NULL; one = one->next) {
        if (!glob_match(name_of(one), name)) continue;
        if (tell) deliver(server, one, true, name, message);
        count++;
    }
    return count;
}

void channels_tell(kv_server *server, text channel, text message) { listeners(server, channel, message, true); }

void channels_say(kv_server *server, const list *messages) {
    for (size_t i = 0; i < messages->count; i++) {
        const draft_message *one = &LIST(draft_message, messages)[i];
        channels_tell(server, one->channel, one->message);
        links_publish(server, one->channel, one->message);
    }
}

/* As in Redis Cluster, who listens elsewhere is told and not counted. It is told once this stands: a transaction may run again. */
void publish_run(call *c) {
    draft_message *one = list_add(&c->draft->messages, sizeof *one);
    if (one == NULL) {
        c->draft->failed = KV_ENOMEM;
        return;
    }
    *one = (draft_message){arg(c, 1), arg(c, 2)};
    resp_put_number(c->out, listeners(c->server, one->channel, one->message, false));
}

/* --- PUBSUB --- */

/* Whether an earlier listener of the chain has the same name. */
static bool seen_before(const listener *first, const listener *one) {
    while (first != one && !same(name_of(first), name_of(one))) first = first->next;
    return first != one;
}

static void say_channels(call *c, text pattern) {
    wire_out found = {0};
    size_t count = 0;
    for (size_t i = 0; i < CHAINS; i++) {
        const listener *first = c->server->channels->exact[i];
        for (const listener *one = first; one != NULL; one = one->next) {
            if (seen_before(first, one) || (pattern.at != NULL && !glob_match(pattern, name_of(one)))) continue;
            resp_put_bulk(&found, one->name, one->size);
            count++;
        }
    }
    resp_put_array(c->out, count);
    wire_put_bytes(c->out, found.bytes, found.size);
    if (found.failed) c->draft->failed = KV_ENOMEM;
    wire_free(&found);
}

static void say_counts(call *c) {
    resp_put_array(c->out, 2 * (c->count - 2));
    for (size_t i = 2; i < c->count; i++) {
        int64_t count = 0;
        for (const listener *one = *chain_of(c->server->channels, false, arg(c, i)); one != NULL; one = one->next)
            count += same(name_of(one), arg(c, i));
        say_value(c, arg(c, i));
        resp_put_number(c->out, count);
    }
}

void pubsub_run(call *c) {
    if (arg_is(c, 1, "CHANNELS") && c->count <= 3) {
        say_channels(c, c->count == 3 ? arg(c, 2) : (text){0});
    } else if (arg_is(c, 1, "NUMSUB")) {
        say_counts(c);
    } else if (arg_is(c, 1, "NUMPAT") && c->count == 2) {
        int64_t count = 0;
        const listener *first = c->server->channels->patterns;
        for (const listener *one = first; one != NULL; one = one->next) count += !seen_before(first, one);
        resp_put_number(c->out, count);
    } else {
        say_subcommand(c);
    }
}
