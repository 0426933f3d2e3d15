/* exchange.c -- KV.MEMBER: whom this replica knows, and how one member takes another's place. `kvsvr replace` asks for it, of
 * every replica in turn and again and again, until every shard is done.
 *
 *     KV.MEMBER LIST             for each node that is known, itself first: id, where its clients go, whether there is a
 *                                connection, shards it is a member of, shards it owns, as far as this one knows
 *     KV.MEMBER REPLACE old new  for a while, of the shards that this one owns: new takes old's place. Which of them are
 *                                done: new is a member, old is none, and both are committed. That is true for ever
 *     KV.MEMBER MISSING          values whose bytes are not here, and the age of the oldest in milliseconds
 *     KV.MEMBER PART node        it will never be back: it is known no more. An error while it is a member of something
 *
 * A member is removed only when the new one follows (decision 0029 leaves that to whoever asks): else the shard would have
 * one member less for as long as a snapshot takes. It goes on for REPLACE_TICKS only, so whoever asks may die, and another
 * one go on; or nobody.
 *
 * Commands note what is wanted, and ticks do it: the replica must not be called while its answers are looked at. */
#include "command.h"

uint32_t server_size(const kv_server *server) { return server->options.replica.member_count; }

enum { EVERY_TICKS = 4, REPLACE_TICKS = 400 };

static bool is_member(const kv_shard_state *state, uint16_t node) {
    for (uint32_t i = 0; i < state->member_count; i++)
        if (state->members[i] == node) return true;
    return false;
}

/* --- parting --- */

static bool is_member_anywhere(const kv_server *server, uint16_t node) {
    kv_shard_state state;
    for (uint32_t i = 0; i < server->shard_count; i++) {
        kv_replica_shard(server->replica, i, &state);
        if (is_member(&state, node)) return true;
    }
    return false;
}

static bool part(kv_server *server, uint16_t node) {
    peer_link *l = link_to(server, node);
    if (kv_replica_part(server->replica, node) != KV_OK && is_member_anywhere(server, node)) return false;
    if (l != NULL) link_drop(l, server);
    server_event(server, "{\"event\": \"parted\", \"node\": %u}", node);
    return true;
}

void exchange_part(kv_server *server, uint16_t node) {
    uint16_t *free_place = NULL;
    for (uint32_t i = 0; i < KV_NODES_MAX; i++) {
        if (server->parting[i] == node) return;
        if (server->parting[i] == 0) free_place = &server->parting[i];
    }
    if (free_place != NULL) *free_place = node;
}

/* --- who is there --- */

static void count_shards(const kv_server *server, uint16_t node, int64_t *member, int64_t *owned) {
    kv_shard_state state;
    *member = *owned = 0;
    for (uint32_t i = 0; i < server->shard_count; i++) {
        kv_replica_shard(server->replica, i, &state);
        for (uint32_t j = 0; j < state.member_count; j++) *member += state.members[j] == node;
        *owned += node == server->options.replica.node ? state.owned : state.owner == node;
    }
}

static void put_node(call *c, uint16_t node, const char *address, bool linked) {
    int64_t member, owned;
    count_shards(c->server, node, &member, &owned);
    resp_put_array(c->out, 5);
    resp_put_number(c->out, node);
    resp_put_text(c->out, address);
    resp_put_number(c->out, linked);
    resp_put_number(c->out, member);
    resp_put_number(c->out, owned);
}

static void say_list(call *c) {
    const kv_server *server = c->server;
    size_t count = 1;
    for (uint32_t i = 0; i < server->link_count; i++) count += server->links[i].node != 0;
    resp_put_array(c->out, count);
    put_node(c, server->options.replica.node, server->options.announce, true);
    for (uint32_t i = 0; i < server->link_count; i++) {
        const peer_link *l = &server->links[i];
        if (l->node != 0) put_node(c, l->node, l->client_address, l->source.fd >= 0);
    }
}

/* --- one for another --- */

/* No op has that token: whether it is done is seen when it is asked for again. */
static const uint64_t NOBODY = UINT64_MAX;

static void change(kv_server *server, uint32_t number, uint16_t add, uint16_t remove) {
    kv_member_change one = {.token = NOBODY, .shard = (uint16_t)number, .add = add, .remove = remove};
    kv_replica_member_change(server->replica, &one);
    server->asked = true;
}

static bool is_replaced(const kv_shard_state *state, uint16_t old, uint16_t new) {
    bool settled = state->owned && state->changing == 0 && state->commit >= state->barrier;
    return settled && !is_member(state, old) && is_member(state, new);
}

static void replace_step(kv_server *server, uint32_t number, uint16_t old, uint16_t new) {
    kv_shard_state state;
    kv_replica_shard(server->replica, number, &state);
    bool had = is_member(&state, old), has = is_member(&state, new);
    if (!state.owned || state.changing != 0 || has) return;
    if (had && !kv_replica_follows(server->replica, number, new)) return;
    if (had) change(server, number, 0, old);
    else change(server, number, new, 0);
}

void exchange_tick(kv_server *server) {
    const replacing *wanted = &server->replacing;
    if (server->ticks % EVERY_TICKS != 0) return;
    for (uint32_t i = 0; server->ticks < wanted->until && i < server->shard_count; i++)
        replace_step(server, i, wanted->old, wanted->new);
    for (uint32_t i = 0; i < KV_NODES_MAX; i++)
        if (server->parting[i] != 0 && part(server, server->parting[i])) server->parting[i] = 0;
}

/* Why it cannot be, as far as this one knows; NULL: it can. With both in a shard it would have one member less for ever; with
 * neither it may be half done, unless all members are there. */
static const char *replace_check(const kv_server *server, uint16_t old, uint16_t new) {
    kv_shard_state state;
    if (old == new) return "ERR a node does not take its own place";
    for (uint32_t i = 0; i < server->shard_count; i++) {
        kv_replica_shard(server->replica, i, &state);
        bool had = is_member(&state, old), has = is_member(&state, new);
        if (had && has) return "ERR both of them are members of a shard";
        if (!had && !has && state.member_count == server_size(server)) return "ERR a shard has all its members, and neither of them";
    }
    return NULL;
}

static void say_replace(call *c, uint16_t old, uint16_t new) {
    uint16_t done[KV_SHARDS_MAX];
    size_t count = 0;
    const char *why = replace_check(c->server, old, new);
    if (why != NULL) {
        say(c, why);
        return;
    }
    c->server->replacing = (replacing){.old = old, .new = new, .until = c->server->ticks + REPLACE_TICKS};
    for (uint32_t i = 0; i < c->server->shard_count; i++) {
        kv_shard_state state;
        kv_replica_shard(c->server->replica, i, &state);
        if (is_replaced(&state, old, new)) done[count++] = (uint16_t)i;
    }
    resp_put_array(c->out, count);
    for (size_t i = 0; i < count; i++) resp_put_number(c->out, done[i]);
}

static void say_part(call *c, uint16_t node) {
    if (node == c->server->options.replica.node) {
        say(c, "ERR that is this replica itself");
    } else if (is_member_anywhere(c->server, node)) {
        say(c, "ERR it is a member of a shard");
    } else {
        exchange_part(c->server, node);
        resp_put_simple(c->out, "OK");
    }
}

static bool arg_node(call *c, size_t index, uint16_t *out) {
    int64_t number;
    bool good = text_number(arg(c, index), &number) && number > 0 && number <= UINT16_MAX;
    *out = good ? (uint16_t)number : 0;
    if (!good) say(c, "ERR a node id is a number from 1 to 65535");
    return good;
}

static void say_missing(call *c) {
    kv_replica_lag lag;
    kv_replica_lag_of(c->server->replica, &lag);
    resp_put_array(c->out, 2);
    resp_put_number(c->out, (int64_t)lag.missing_count);
    resp_put_number(c->out, (int64_t)(lag.missing_ticks * c->server->options.tick_ms));
}

void kv_member_run(call *c) {
    uint16_t node, other;
    if (arg_is(c, 1, "LIST") && c->count == 2) {
        say_list(c);
    } else if (arg_is(c, 1, "MISSING") && c->count == 2) {
        say_missing(c);
    } else if (arg_is(c, 1, "REPLACE") && c->count == 4) {
        if (!arg_node(c, 2, &node) || !arg_node(c, 3, &other)) return;
        say_replace(c, node, other);
    } else if (arg_is(c, 1, "PART") && c->count == 3) {
        if (arg_node(c, 2, &node)) say_part(c, node);
    } else {
        say_subcommand(c);
    }
}
