/* leave.c -- a stop: shards are handed over before.
 *
 *   1  nobody is let in any more, and every peer is told at each tick which shards it should take over
 *   2  once none is owned, no further command is read, and those under way are answered
 *   3  the loop ends
 *
 * LEAVE, between peers: count, then so many shards. Whoever gets it takes them over, and hands nothing to the sender.
 *
 * No step waits for what cannot come: where those that stay are no majority, as in a set of one or one that is stopped as a
 * whole, nobody could take over. After stop_ms it is over in any case, and what is left is as after a crash: safe. */
#include <stdlib.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "server_internal.h"

static peer_link *stays(kv_server *server, uint16_t node) {
    for (uint32_t i = 0; i < server->link_count; i++) {
        peer_link *l = &server->links[i];
        if (l->node == node && node != 0) return l->source.fd >= 0 && !l->leaving ? l : NULL;
    }
    return NULL;
}

/* The first in rank of those that stay; NULL: they are too few to take it. */
static peer_link *heir(kv_server *server, uint32_t number) {
    kv_shard_state state;
    peer_link *best = NULL;
    uint32_t count = 0, best_rank = 0;
    kv_replica_shard(server->replica, number, &state);
    for (uint32_t i = 0; state.owned && i < state.member_count; i++) {
        peer_link *l = stays(server, state.members[i]);
        uint32_t rank = kv_owner_rank(state.members, state.member_count, number, state.members[i]);
        if (l == NULL) continue;
        count++;
        if (best != NULL && rank > best_rank) continue;
        best = l;
        best_rank = rank;
    }
    return count > state.member_count / 2 ? best : NULL;
}

static bool hands_over(kv_server *server) {
    for (uint32_t i = 0; i < server->shard_count; i++)
        if (heir(server, i) != NULL) return true;
    return false;
}

/* Also to those that get nothing: they are to know it. */
void leave_send(kv_server *server) {
    peer_link *heirs[KV_SHARDS_MAX];
    for (uint32_t i = 0; i < server->shard_count; i++) heirs[i] = heir(server, i);
    for (uint32_t j = 0; j < server->link_count; j++) {
        peer_link *l = &server->links[j];
        uint64_t count = 0;
        if (l->source.fd < 0) continue;
        for (uint32_t i = 0; i < server->shard_count; i++) count += heirs[i] == l;
        wire_begin(&l->out, (enum wire_type)LINK_LEAVE);
        wire_put_varint(&l->out, count);
        for (uint32_t i = 0; i < server->shard_count; i++)
            if (heirs[i] == l) wire_put_varint(&l->out, i);
        wire_end(&l->out);
    }
}

void leave_receive(kv_server *server, peer_link *l, wire_in *in) {
    uint16_t shards[KV_SHARDS_MAX];
    uint64_t count = wire_take_varint(in);
    for (uint64_t i = 0; i < count && !in->bad; i++) {
        uint64_t number = wire_take_varint(in);
        in->bad |= number >= server->shard_count || i >= KV_SHARDS_MAX;
        if (!in->bad) shards[i] = (uint16_t)number;
    }
    if (in->bad) return;
    l->leaving = true;
    if (server->leaving) return;
    kv_replica_takeover(server->replica, shards, count);
    server->asked = true;
}

/* --- this one goes --- */

static void begin(kv_server *server) {
    server->leaving = true;
    server->leave_until_ms = server->now_ms + server->options.stop_ms;
    close(server->listen.fd); /* which also takes it out of epoll */
    server->listen.fd = -1;
    server_event(server, "{\"event\": \"stopping\"}");
    leave_send(server);
    links_send(server);
}

static void drain(kv_server *server) {
    server->draining = true;
    for (client *c = server->clients; c != NULL; c = c->next) client_send(server, c); /* which reads no more from it */
}

static bool drained(const kv_server *server) {
    for (size_t i = 0; i < server->ops.count; i++)
        if (!LIST(op *, &server->ops)[i]->done) return false;
    for (const client *c = server->clients; c != NULL; c = c->next)
        if (c->sent != c->out.size) return false;
    return true;
}

static bool is_over(kv_server *server) {
    if (atomic_load(&server->stops) > 1 || server->now_ms >= server->leave_until_ms) return true;
    if (!server->draining && !hands_over(server)) drain(server);
    return server->draining && drained(server) && !hands_over(server); /* Somebody may have given a shard back. */
}

bool leave_step(kv_server *server) {
    uint32_t kept = 0;
    if (!server->leaving) begin(server);
    if (!is_over(server)) return false;
    for (uint32_t i = 0; i < server->shard_count; i++) {
        kv_shard_state state;
        kv_replica_shard(server->replica, i, &state);
        kept += state.owned != 0;
    }
    server_event(server, "{\"event\": \"left\", \"shards_kept\": %u}", kept);
    return true;
}
