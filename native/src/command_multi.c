/* command_multi.c -- transactions: MULTI, EXEC, DISCARD, WATCH, UNWATCH.
 *
 * EXEC runs what was queued, one after the other over one draft, and the draft's batch is all or nothing. What is watched is
 * in the draft, too: if it is not what WATCH saw, nothing is done; and the batch expects it, so nothing comes between. */
#include <stdlib.h>

#include "command.h"

void multi_run(call *c) {
    if (c->client->multi) {
        say(c, "ERR MULTI calls can not be nested");
        return;
    }
    c->client->multi = true;
    say_ok(c);
}

void discard_run(call *c) {
    if (!c->client->multi) {
        say(c, "ERR DISCARD without MULTI");
        return;
    }
    client_forget_multi(c->server, c->client);
    say_ok(c);
}

void unwatch_run(call *c) {
    if (c->client != NULL && !c->client->multi) client_unwatch(c->client);
    say_ok(c);
}

static bool watch_one(client *c, const entry *e) {
    for (size_t i = 0; i < c->watched.count; i++) {
        const watched_key *one = &LIST(watched_key, &c->watched)[i];
        if (one->name.size == e->name.size && memcmp(one->name.at, e->name.at, e->name.size) == 0) return true;
    }
    uint8_t *name = malloc(e->name.size);
    watched_key *one = name == NULL ? NULL : list_add(&c->watched, sizeof *one);
    if (one == NULL) {
        free(name);
        return false;
    }
    memcpy(name, e->name.at, e->name.size);
    *one = (watched_key){.name = {name, e->name.size}, .version = e->version, .kind = e->was};
    return true;
}

void watch_run(call *c) {
    if (c->client == NULL) return;
    if (c->client->multi) {
        say(c, "ERR WATCH inside MULTI is not allowed");
        return;
    }
    for (size_t i = 1; i < c->count; i++) {
        const entry *e = draft_key(c->draft, arg(c, i));
        if (c->draft->failed == KV_OK && !watch_one(c->client, e)) c->draft->failed = KV_ENOMEM;
    }
    say_ok(c);
}

/* The queue goes with the op, from where it is freed; what is watched stays with the client until then. */
bool exec_begin(kv_server *server, op *o) {
    client *c = o->client;
    bool multi = c->multi, spoilt = c->spoilt;
    o->queue = c->queue;
    c->queue = NULL;
    c->queue_last = &c->queue;
    c->queue_size = 0;
    c->multi = c->spoilt = false;
    if (spoilt) client_unwatch(c);
    if (!multi) reply_error(server, o, "ERR EXEC without MULTI");
    else if (spoilt) reply_error(server, o, "EXECABORT Transaction discarded because of previous errors.");
    return !multi || spoilt;
}

static bool is_as_watched(call *c) {
    bool same = true;
    for (size_t i = 0; i < c->client->watched.count; i++) {
        const watched_key *one = &LIST(watched_key, &c->client->watched)[i];
        const entry *e = draft_key(c->draft, one->name);
        same &= e->version == one->version && e->was == one->kind;
    }
    return same;
}

void exec_run(call *c) {
    size_t count = 0;
    if (c->client == NULL) return; /* Nobody is there to be told, and what was watched has gone with him. */
    if (!is_as_watched(c)) {
        resp_put_null_array(c->out, c->protocol);
        return;
    }
    for (const op *one = c->op->queue; one != NULL; one = one->next) count++;
    resp_put_array(c->out, count);
    for (const op *one = c->op->queue; one != NULL; one = one->next) {
        call next = *c;
        next.command = one->command;
        next.bytes = one->bytes.bytes;
        next.words = one->words;
        next.count = one->word_count;
        next.protocol = c->client->protocol; /* HELLO may have been among them. */
        one->command->run(&next);
    }
}
