/* command_cluster.c -- CLUSTER: which replica owns which slots, so that a client that asks goes there at once.
 *
 * Any replica takes any command, so nobody has to ask. A slot whose owner is not known now, or has not said where its clients
 * go, is said to be ours: we pass on what comes. */
#include <stdlib.h>

#include "command.h"

enum { NODE_TEXT_SIZE = 41 };

static void node_text(uint16_t node, char out[NODE_TEXT_SIZE]) { snprintf(out, NODE_TEXT_SIZE, "%040x", node); }

/* NULL: not heard. */
static const char *address_of(const kv_server *server, uint16_t node) {
    if (node == server->options.replica.node) return server->options.announce;
    for (uint32_t i = 0; i < server->link_count; i++)
        if (server->links[i].node == node && server->links[i].client_address[0] != 0) return server->links[i].client_address;
    return NULL;
}

static uint16_t owner_of(const kv_server *server, uint32_t shard) {
    kv_shard_state state;
    kv_replica_shard(server->replica, shard, &state);
    uint16_t owner = state.owned ? server->options.replica.node : state.owner;
    return address_of(server, owner) == NULL ? server->options.replica.node : owner;
}

/* Slots [first, *end) of one owner, in a row. */
static uint16_t owned_from(const kv_server *server, uint32_t first, uint32_t *end) {
    uint32_t shard = first * server->shard_count / KV_SLOT_COUNT;
    uint16_t owner = owner_of(server, shard);
    while (++shard < server->shard_count && owner_of(server, shard) == owner) continue;
    *end = (shard * KV_SLOT_COUNT + server->shard_count - 1) / server->shard_count;
    return owner;
}

/* Of "host:port" the host, without what only makes it readable; one that means "any" says nothing. */
static void host_of(const char *address, char out[64], int *port) {
    const char *colon = strrchr(address, ':');
    size_t size = colon == NULL ? 0 : (size_t)(colon - address);
    if (size > 1 && address[0] == '[') {
        address++;
        size -= 2;
    }
    snprintf(out, 64, "%.*s", (int)size, address);
    if (strcmp(out, "0.0.0.0") == 0 || strcmp(out, "::") == 0) out[0] = 0;
    *port = colon == NULL ? 0 : atoi(colon + 1);
}

/* --- SLOTS --- */

static void put_node(call *c, uint16_t node) {
    char host[64], id[NODE_TEXT_SIZE];
    int port;
    host_of(address_of(c->server, node), host, &port);
    node_text(node, id);
    resp_put_array(c->out, 4);
    resp_put_text(c->out, host);
    resp_put_number(c->out, port);
    resp_put_text(c->out, id);
    resp_put_array(c->out, 0);
}

static size_t member_add(const kv_server *server, uint16_t node, uint16_t *to, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (to[i] == node) return count;
    if (address_of(server, node) != NULL && count < KV_NODES_MAX) to[count++] = node;
    return count;
}

/* The members of some shard but one, those whose address is known; how many. While one takes another's place, both may be there. */
static size_t others(const kv_server *server, uint16_t but, uint16_t out[KV_NODES_MAX]) {
    size_t count = 0;
    for (uint32_t i = 0; i < server->shard_count; i++) {
        kv_shard_state state;
        kv_replica_shard(server->replica, i, &state);
        for (uint32_t j = 0; j < state.member_count; j++)
            if (state.members[j] != but) count = member_add(server, state.members[j], out, count);
    }
    return count;
}

static void say_slots(call *c) {
    uint16_t nodes[KV_NODES_MAX];
    size_t count = 0;
    uint32_t end;
    for (uint32_t slot = 0; slot < KV_SLOT_COUNT; slot = end, count++) owned_from(c->server, slot, &end);
    resp_put_array(c->out, count);
    for (uint32_t slot = 0; slot < KV_SLOT_COUNT; slot = end) {
        uint16_t owner = owned_from(c->server, slot, &end);
        size_t other_count = others(c->server, owner, nodes);
        resp_put_array(c->out, 3 + other_count);
        resp_put_number(c->out, slot);
        resp_put_number(c->out, end - 1);
        put_node(c, owner);
        for (size_t i = 0; i < other_count; i++) put_node(c, nodes[i]);
    }
}

/* --- SHARDS --- */

static void put_shard_node(call *c, uint16_t node, bool owner) {
    char host[64], id[NODE_TEXT_SIZE];
    int port;
    host_of(address_of(c->server, node), host, &port);
    node_text(node, id);
    resp_put_map(c->out, 7, c->protocol);
    resp_put_text(c->out, "id");
    resp_put_text(c->out, id);
    resp_put_text(c->out, "port");
    resp_put_number(c->out, port);
    resp_put_text(c->out, "ip");
    resp_put_text(c->out, host);
    resp_put_text(c->out, "endpoint");
    resp_put_text(c->out, host);
    resp_put_text(c->out, "role");
    resp_put_text(c->out, owner ? "master" : "replica");
    resp_put_text(c->out, "replication-offset");
    resp_put_number(c->out, 0);
    resp_put_text(c->out, "health");
    resp_put_text(c->out, "online");
}

static size_t ranges_of(call *c, uint16_t node, bool put) {
    size_t count = 0;
    uint32_t end;
    for (uint32_t slot = 0; slot < KV_SLOT_COUNT; slot = end) {
        if (owned_from(c->server, slot, &end) != node) continue;
        count++;
        if (put) resp_put_number(c->out, slot);
        if (put) resp_put_number(c->out, end - 1);
    }
    return count;
}

/* What one replica owns is one of Redis' shards: itself the master, the others its replicas. */
static void say_shards(call *c) {
    uint16_t owners[KV_NODES_MAX], nodes[KV_NODES_MAX];
    size_t count = others(c->server, 0, owners), some = 0;
    for (size_t i = 0; i < count; i++)
        if (ranges_of(c, owners[i], false) != 0) owners[some++] = owners[i];
    resp_put_array(c->out, some);
    for (size_t i = 0; i < some; i++) {
        size_t other_count = others(c->server, owners[i], nodes);
        resp_put_map(c->out, 2, c->protocol);
        resp_put_text(c->out, "slots");
        resp_put_array(c->out, 2 * ranges_of(c, owners[i], false));
        ranges_of(c, owners[i], true);
        resp_put_text(c->out, "nodes");
        resp_put_array(c->out, 1 + other_count);
        put_shard_node(c, owners[i], true);
        for (size_t k = 0; k < other_count; k++) put_shard_node(c, nodes[k], false);
    }
}

/* --- NODES --- */

static void put_ranges(call *c, uint16_t node, wire_out *out) {
    char word[32];
    uint32_t end;
    for (uint32_t slot = 0; slot < KV_SLOT_COUNT; slot = end) {
        if (owned_from(c->server, slot, &end) != node) continue;
        int size = end - 1 == slot ? snprintf(word, sizeof word, " %u", slot)
                                   : snprintf(word, sizeof word, " %u-%u", slot, end - 1);
        wire_put_bytes(out, (const uint8_t *)word, (size_t)size);
    }
}

/* A line for each member, all of them masters. Nobody gossips: the port for that is 0, and so are its times. */
static void put_line(call *c, uint16_t node, wire_out *out) {
    const kv_server *server = c->server;
    bool self = node == server->options.replica.node, linked = self;
    const char *address = address_of(server, node);
    char line[256], host[64] = "", id[NODE_TEXT_SIZE];
    int port = 0;
    for (uint32_t i = 0; i < server->link_count; i++) linked |= server->links[i].node == node && server->links[i].source.fd >= 0;
    if (address != NULL) host_of(address, host, &port);
    node_text(node, id);
    int size = snprintf(line, sizeof line, "%s %s:%d@0 %s%s - 0 0 0 %s", id, host, port, self ? "myself,master" : "master",
                        address == NULL ? ",noaddr" : "", linked ? "connected" : "disconnected");
    wire_put_bytes(out, (const uint8_t *)line, (size_t)size);
    put_ranges(c, node, out);
    wire_put_bytes(out, (const uint8_t *)"\n", 1);
}

static void say_nodes(call *c) {
    const kv_replica_options *o = &c->server->options.replica;
    wire_out lines = {0};
    for (uint32_t i = 0; i < o->member_count; i++) put_line(c, o->members[i], &lines);
    resp_put_bulk(c->out, lines.bytes, lines.size);
    c->out->failed |= lines.failed;
    wire_free(&lines);
}

/* --- INFO --- */

static void say_cluster_info(call *c) {
    char lines[256];
    uint32_t unowned = 0;
    for (uint32_t shard = 0; shard < c->server->shard_count; shard++) {
        kv_shard_state state;
        kv_replica_shard(c->server->replica, shard, &state);
        unowned += !state.owned && state.owner == 0;
    }
    int size = snprintf(lines, sizeof lines,
                        "cluster_enabled:1\r\ncluster_state:%s\r\ncluster_slots_assigned:16384\r\ncluster_known_nodes:%u\r\n"
                        "cluster_size:%u\r\n",
                        unowned == 0 ? "ok" : "fail", server_size(c->server), server_size(c->server));
    resp_put_bulk(c->out, lines, (size_t)size);
}

void cluster_run(call *c) {
    char id[NODE_TEXT_SIZE];
    if (server_size(c->server) == 1) {
        say(c, "ERR This instance has cluster support disabled");
    } else if (arg_is(c, 1, "SLOTS") && c->count == 2) {
        say_slots(c);
    } else if (arg_is(c, 1, "SHARDS") && c->count == 2) {
        say_shards(c);
    } else if (arg_is(c, 1, "NODES") && c->count == 2) {
        say_nodes(c);
    } else if (arg_is(c, 1, "INFO") && c->count == 2) {
        say_cluster_info(c);
    } else if (arg_is(c, 1, "KEYSLOT") && c->count == 3) {
        resp_put_number(c->out, kv_slot_of(arg(c, 2).at, arg(c, 2).size));
    } else if (arg_is(c, 1, "MYID") && c->count == 2) {
        node_text(c->server->options.replica.node, id);
        resp_put_text(c->out, id);
    } else {
        say_subcommand(c);
    }
}
