/* request.c -- what is asked of replicas on a client's behalf, here or elsewhere, until there is an answer.
 *
 * Reads are asked here: the replica knows what the owner has to say to them. Writes are asked here if this one owns the shard,
 * else of who does. Whatever gets lost on the way, or is told to come again, is asked again until its time is over: a write
 * under the same number, so that it is executed once (docs/protocol/specification.md, section 10). Each op is a lane, since
 * it has one request at a time. */
#include "command.h"

static uint64_t token_of(const op *o) { return (uint64_t)o->life << 32 | o->index; }

static bool asks_to_read(const kv_ask *ask) {
    return ask->kind == KV_REQUEST_GET || ask->kind == KV_REQUEST_READ || ask->kind == KV_REQUEST_WAIT;
}

static const char NOT_SERVED[] = "CLUSTERDOWN Hash slot not served";
static const char LACKING[] = "UNAVAILABLE the bytes of a value are elsewhere, and could not be had in time";

static void put_off(kv_server *server, op *o, list *until) {
    uint32_t *place = list_add(until, sizeof *place);
    o->waits = place != NULL;
    if (place != NULL) *place = o->index;
    else request_give_up(server, o, "OOM no memory to ask again");
}

static void ask_now(kv_server *server, op *o) {
    kv_shard_state state;
    o->ask.token = token_of(o);
    o->ask.attempt++;
    o->waits = false;
    kv_replica_shard(server->replica, o->shard, &state);
    uint16_t self = server->options.replica.node;
    bool elsewhere = !asks_to_read(&o->ask) && !state.owned && state.owner != self && state.owner != 0;
    o->passed_to = elsewhere && o->from == 0 && link_pass_on(server, state.owner, o) ? state.owner : 0;
    if (o->passed_to != 0) server->figures.forwarded++;
    else kv_replica_request(server->replica, &o->ask);
    server->asked = true;
}

static uint16_t shard_asked(const kv_server *server, const kv_ask *ask) {
    const kv_operation *one = ask->operation_count != 0 ? &ask->operations[0] : NULL;
    const uint8_t *table = one != NULL ? one->table : ask->table, *key = one != NULL ? one->key : ask->key;
    size_t table_size = one != NULL ? one->table_size : ask->table_size, key_size = one != NULL ? one->key_size : ask->key_size;
    return (uint16_t)kv_shard_of(server->shard_count, table != NULL ? table : key, table != NULL ? table_size : key_size);
}

/* What a frame has to carry to the owner, but for some bytes for each name. */
static uint64_t ask_size(const kv_ask *ask) {
    uint64_t size = ask->key_size + ask->table_size + ask->value_size;
    for (size_t i = 0; i < ask->operation_count; i++) {
        const kv_operation *one = &ask->operations[i];
        size += 32 + one->key_size + one->table_size + one->value_size;
    }
    for (size_t i = 0; i < ask->expectation_count; i++)
        size += 32 + ask->expectations[i].key_size + ask->expectations[i].table_size;
    return size;
}

/* The replica hands out pointers with its answers, which the next call to it ends: so until they have been looked at
 * nothing is asked. */
void request_ask(kv_server *server, op *o) {
    const kv_ask *ask = &o->ask;
    o->shard = shard_asked(server, ask);
    bool named = ask->client != 0; /* by the client: command_session.c */
    if (!named) o->ask.attempt = 0;
    o->ask.follower = 1;
    if (server->options.durability > o->ask.durability) o->ask.durability = (uint8_t)server->options.durability;
    o->ask.stale = o->client != NULL && o->client->stale && o->phase == PHASE_REQUEST && asks_to_read(ask);
    if (!named && !asks_to_read(ask) && server_size(server) != 1) {
        o->ask.client = server->identity;
        o->ask.lane = o->index;
        o->ask.number = ++server->number;
        o->ask.seen = server->seen[o->shard];
    }
    bool fits = ask_size(ask) <= WIRE_FRAME_SIZE_MAX / 2;
    /* Of one write it is the value; several are within bounds of their own, but all of them may not be. */
    const char *why = ask->operation_count == 0 ? words_of(KV_EVALUESIZE) : "ERR it is larger than a request between replicas may be";
    if (!fits) request_give_up(server, o, why);
    else if (server->answering) put_off(server, o, &server->following);
    else ask_now(server, o);
}

/* It begins when the answers at hand have been looked at. */
void request_put_off(kv_server *server, op *o) {
    server->asked = true;
    put_off(server, o, &server->following);
}

void request_pass(kv_server *server, op *o) {
    o->shard = shard_asked(server, &o->ask);
    o->ask.attempt--;
    ask_now(server, o);
}

void request_give_up(kv_server *server, op *o, const char *why) {
    if (o->phase != PHASE_REQUEST) o->reply.size = 0; /* What it would have said. */
    for (op *mate = o->group, *next; mate != NULL; mate = next) {
        next = mate->mate;
        request_give_up(server, mate, why);
    }
    o->group = NULL;
    if (o->from == 0) resp_put_error(op_reply(o), "%s", why);
    else link_pass_back(server, o, &(kv_reply){.status = KV_ANSWER_RETRY}, NULL);
    server->figures.errors++;
    op_done(server, o);
}

bool request_is_over(const kv_server *server, const op *o) {
    return (server->ticks - o->since) * server->options.tick_ms >= server->options.request_ms;
}

static void ask_again_later(kv_server *server, op *o, const char *why) {
    server->figures.retried++;
    /* Who passed it on asks again himself: by then another one may be the owner. */
    if (request_is_over(server, o) || o->from != 0) request_give_up(server, o, why);
    else put_off(server, o, &server->waiting);
}

void request_fetch(kv_server *server, op *o) {
    kv_replica_fetch(server->replica);
    o->phase = PHASE_LACKS;
    ask_again_later(server, o, LACKING);
}

/* An answer to what this op asked last. */
void request_answer(kv_server *server, op *o, const kv_reply *reply, const uint8_t *bytes) {
    uint64_t *seen = &server->seen[o->shard];
    bool damaged = reply->status == KV_ANSWER_UNAVAILABLE && reply->error == KV_ECORRUPT;
    if (damaged && server_ends(server)) return; /* Without an answer: the client asks another one. */
    if (reply->shard_version > *seen) *seen = reply->shard_version;
    if (o->from != 0) {
        link_pass_back(server, o, reply, bytes);
        op_done(server, o);
    } else if (reply->status == KV_ANSWER_RETRY) {
        ask_again_later(server, o, NOT_SERVED);
    } else if (reply->status == KV_ANSWER_UNAVAILABLE && reply->error == KV_ELACKING) {
        ask_again_later(server, o, LACKING); /* They were sent for: a copy of them may be one that comes back. */
    } else if (reply->status == KV_ANSWER_SEEN && session_is_foreign(server, o)) {
        session_seen(server, o, reply);
    } else if (reply->status == KV_ANSWER_SEEN) {
        o->ask.seen = reply->version;
        put_off(server, o, &server->following);
    } else if (reply->status == KV_ANSWER_UNKNOWN) {
        request_give_up(server, o, "UNKNOWN the write may have been executed, and nobody remembers what came of it");
    } else if (reply->status == KV_ANSWER_UNAVAILABLE) {
        request_give_up(server, o, "UNAVAILABLE what is asked for cannot be had now");
    } else if (o->phase != PHASE_REQUEST) {
        perform_answered(server, o, reply);
    } else {
        o->command->answered(server, o, reply, bytes);
    }
}

void requests_answered(kv_server *server) {
    const kv_reply *replies;
    const uint8_t *bytes;
    size_t count;
    kv_replica_answers(server->replica, &replies, &count, &bytes);
    server->answering = true;
    for (size_t i = 0; i < count; i++) {
        op *o = op_of(server, replies[i].token);
        if (o != NULL) request_answer(server, o, &replies[i], bytes + replies[i].value_at);
    }
    server->answering = false;
}

static void ask_all(kv_server *server, list *put) {
    list due = *put;
    *put = (list){0};
    for (size_t i = 0; i < due.count; i++) {
        op *o = LIST(op *, &server->ops)[LIST(uint32_t, &due)[i]];
        if (!o->waits || o->done) continue;
        if (o->phase == PHASE_TURN) turn_begins(server, o);
        else if (o->phase == PHASE_LACKS) perform_again(server, o);
        else ask_now(server, o);
    }
    list_free(&due);
}

/* What was put off is asked again: at a tick, so that whoever is to be found has a moment to become the owner. */
void requests_tick(kv_server *server) { ask_all(server, &server->waiting); }

void requests_follow(kv_server *server) {
    if (server->following.count != 0) ask_all(server, &server->following);
}

/* What was passed on to a peer that cannot be heard any more: it may have been executed, and is asked again. */
void requests_link_lost(kv_server *server, uint16_t node) {
    for (size_t i = 0; i < server->ops.count; i++) {
        op *o = LIST(op *, &server->ops)[i];
        if (o->passed_to != node || o->done) continue;
        o->passed_to = 0;
        ask_again_later(server, o, NOT_SERVED);
    }
}
