/* link.c -- connections to peers: frames of the replica, and requests that are passed on.
 *
 * Whoever a connection is for is known from then on: places are made as nodes come, and freed when they will not be back.
 *
 * A link may go at any moment, and a frame with it: the replica takes that for a lost message, and whoever passed a request
 * on asks again. A frame is size (4), type (1), body, as docs/protocol/wire.md has it; types from PASS on are the server's:
 *
 *     PASS     token 8, then the request                  to the owner of its shard
 *     PASSED   token 8, then the answer                   back
 *     ADDRESS  where clients of this one go               when the link is new
 *     LEAVE    leave.c
 *     PUBLISH  the channel's size (varint), channel, message; never answered, and dropped where much is owed */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "server_internal.h"

enum { LINK_PASS = 200, LINK_PASSED = 201, LINK_ADDRESS = 202, LINK_PUBLISH = 204, LINK_READ_SIZE = 1 << 18, LINK_OWED_MAX = 64 << 20,
       PUBLISH_OWED_MAX = 16 << 20 };

peer_link *link_to(kv_server *server, uint16_t node) {
    for (uint32_t i = 0; i < server->link_count; i++)
        if (server->links[i].node == node && node != 0) return &server->links[i];
    return NULL;
}

/* Its place, a free one or a new one; NULL: there is none. */
static peer_link *link_make(kv_server *server, uint16_t node) {
    peer_link *l = link_to(server, node);
    for (uint32_t i = 0; l == NULL && i < server->link_count; i++)
        if (server->links[i].node == 0) l = &server->links[i];
    if (l == NULL && server->link_count < KV_NODES_MAX) l = &server->links[server->link_count++];
    if (l != NULL && l->node != node) *l = (peer_link){.source = {SOURCE_LINK, -1}, .node = node};
    return l;
}

void link_close(kv_server *server, peer_link *l, const char *why) {
    if (l->source.fd < 0) return;
    close(l->source.fd);
    l->source.fd = -1;
    l->in.begin = l->in.end = 0;
    l->out.size = l->sent = 0;
    l->writing = false;
    server->figures.links--;
    server_event(server, "{\"event\": \"link_down\", \"node\": %u, \"why\": \"%s\"}", l->node, why);
    requests_link_lost(server, l->node);
}

void link_drop(peer_link *l, kv_server *server) {
    link_close(server, l, "it will not be back");
    free(l->in.bytes);
    wire_free(&l->out);
    *l = (peer_link){.source = {SOURCE_LINK, -1}};
}

static kv_status arrive(kv_server *server, uint16_t node, int32_t socket) {
    if (node == 0 || node == server->options.replica.node) return KV_EUSAGE;
    pthread_mutex_lock(&server->lock);
    bool room = server->arrived_count < KV_NODES_MAX;
    if (room) server->arrived[server->arrived_count++] = (arrival){node, socket};
    pthread_mutex_unlock(&server->lock);
    if (!room) return KV_ELIMIT;
    server_ring(server);
    return KV_OK;
}

kv_status kv_server_link(kv_server *server, uint16_t node, int32_t socket) {
    return socket < 0 ? KV_EUSAGE : arrive(server, node, socket);
}

kv_status kv_server_part(kv_server *server, uint16_t node) { return arrive(server, node, -1); }

static void link_take(kv_server *server, const arrival *one) {
    int yes = 1;
    peer_link *l = kv_replica_meet(server->replica, one->node) == KV_OK ? link_make(server, one->node) : NULL;
    if (l == NULL) {
        close(one->fd);
        server_event(server, "{\"event\": \"too_many\", \"node\": %u}", one->node);
        return;
    }
    link_close(server, l, "another connection took its place");
    setsockopt(one->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    l->source.fd = one->fd;
    l->leaving = false;
    if (!server_watch(server, &l->source, EPOLLIN)) {
        close(one->fd);
        l->source.fd = -1;
        return;
    }
    wire_begin(&l->out, (enum wire_type)LINK_ADDRESS);
    wire_put_bytes(&l->out, (const uint8_t *)server->options.announce, strlen(server->options.announce));
    wire_end(&l->out);
    server->figures.links++;
    server_event(server, "{\"event\": \"link_up\", \"node\": %u}", l->node);
}

void links_arrive(kv_server *server) {
    arrival taken[KV_NODES_MAX];
    pthread_mutex_lock(&server->lock);
    uint32_t count = server->arrived_count;
    memcpy(taken, server->arrived, count * sizeof *taken);
    server->arrived_count = 0;
    pthread_mutex_unlock(&server->lock);
    for (uint32_t i = 0; i < count; i++) {
        if (taken[i].fd < 0) exchange_part(server, taken[i].node);
        else link_take(server, &taken[i]);
    }
}

/* The other end is gone, or the way to it. A process that ends closes all it has, so the replica does not wait for silence; whether
 * somebody else still hears that one it asks itself (docs/decisions/0031). */
static void link_lost(kv_server *server, peer_link *l, const char *why) {
    link_close(server, l, why);
    kv_replica_lost(server->replica, l->node);
    server->asked = true;
}

/* --- out --- */

static void watch_writing(kv_server *server, peer_link *l, bool writing) {
    if (l->writing == writing) return;
    l->writing = writing;
    struct epoll_event event = {.events = EPOLLIN | (writing ? EPOLLOUT : 0), .data.ptr = &l->source};
    epoll_ctl(server->epoll, EPOLL_CTL_MOD, l->source.fd, &event);
}

void link_flush(kv_server *server, peer_link *l) {
    while (l->sent < l->out.size) {
        ssize_t done = send(l->source.fd, l->out.bytes + l->sent, l->out.size - l->sent, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (done < 0 && errno == EINTR) continue;
        if (done < 0 && errno == EAGAIN) break;
        if (done < 0) {
            link_lost(server, l, "it cannot be written to");
            return;
        }
        l->sent += (size_t)done;
    }
    if (l->sent == l->out.size) l->out.size = l->sent = 0;
    watch_writing(server, l, l->sent < l->out.size);
}

/* What the replica has for a peer that cannot take it is dropped: it will be told that it was lost. */
void links_send(kv_server *server) {
    for (uint32_t i = 0; i < server->link_count; i++) {
        peer_link *l = &server->links[i];
        size_t size;
        const uint8_t *bytes = kv_replica_outbox(server->replica, l->node, &size);
        if (l->source.fd < 0) continue;
        if (size != 0 && l->out.size - l->sent < LINK_OWED_MAX) wire_put_bytes(&l->out, bytes, size);
        if (l->out.failed) link_close(server, l, "no memory");
        else if (l->out.size != 0) link_flush(server, l);
    }
}

/* --- requests --- */

static void put_string(wire_out *out, const uint8_t *bytes, size_t size) {
    wire_put_varint(out, bytes == NULL ? 0 : size + 1);
    if (bytes != NULL) wire_put_bytes(out, bytes, size);
}

static const uint8_t *take_string(wire_in *in, size_t *size) {
    uint64_t length = wire_take_varint(in);
    *size = length == 0 ? 0 : length - 1;
    return length == 0 ? NULL : wire_take_bytes(in, length - 1);
}

static void put_operation(wire_out *out, const kv_operation *one) {
    wire_put8(out, one->value == NULL && one->value_size == KV_EXPIRY_ONLY);
    wire_put64(out, (uint64_t)one->ttl_ms);
    put_string(out, one->key, one->key_size);
    put_string(out, one->table, one->table_size);
    put_string(out, one->value, one->value_size);
}

static void put_batch(wire_out *out, const kv_ask *ask) {
    wire_put_varint(out, ask->operation_count);
    for (size_t i = 0; i < ask->operation_count; i++) put_operation(out, &ask->operations[i]);
    wire_put_varint(out, ask->expectation_count);
    for (size_t i = 0; i < ask->expectation_count; i++) {
        const kv_expectation *one = &ask->expectations[i];
        wire_put_varint(out, one->version);
        put_string(out, one->key, one->key_size);
        put_string(out, one->table, one->table_size);
    }
}

bool link_pass_on(kv_server *server, uint16_t node, const op *o) {
    peer_link *l = link_to(server, node);
    const kv_ask *ask = &o->ask;
    if (l == NULL || l->source.fd < 0) return false;
    wire_out *out = &l->out;
    wire_begin(out, (enum wire_type)LINK_PASS);
    wire_put64(out, ask->token);
    wire_put8(out, ask->kind);
    wire_put_varint(out, ask->attempt);
    wire_put_varint(out, ask->lane);
    wire_put64(out, ask->client);
    wire_put_varint(out, ask->number);
    wire_put_varint(out, ask->seen);
    wire_put8(out, ask->durability);
    wire_put64(out, (uint64_t)ask->argument);
    wire_put64(out, (uint64_t)ask->ttl_ms);
    put_string(out, ask->key, ask->key_size);
    put_string(out, ask->table, ask->table_size);
    put_string(out, ask->value, ask->value_size);
    put_batch(out, ask);
    wire_end(out);
    return !out->failed;
}

static uint32_t take_name(wire_in *in, const uint8_t **name) {
    size_t size;
    *name = take_string(in, &size);
    if (size > UINT32_MAX) in->bad = true;
    return (uint32_t)size;
}

static void take_operation(wire_in *in, kv_operation *one) {
    size_t size;
    bool expiry_only = wire_take8(in) != 0;
    *one = (kv_operation){0};
    one->ttl_ms = (int64_t)wire_take64(in);
    one->key_size = take_name(in, &one->key);
    one->table_size = take_name(in, &one->table);
    one->value = take_string(in, &size);
    one->value_size = one->value == NULL && expiry_only ? KV_EXPIRY_ONLY : size;
    if (one->key == NULL && (one->table == NULL || one->value == NULL)) in->bad = true;
}

static void take_expectation(wire_in *in, kv_expectation *one) {
    *one = (kv_expectation){.version = wire_take_varint(in)};
    one->key_size = take_name(in, &one->key);
    one->table_size = take_name(in, &one->table);
    if (one->key == NULL && one->table == NULL) in->bad = true;
}

/* Into the lists of a draft, which are there for such. A count that is not true ends with the bytes. */
static void take_batch(wire_in *in, draft *v, kv_ask *ask) {
    uint64_t count = wire_take_varint(in);
    for (uint64_t i = 0; i < count && !in->bad; i++) {
        kv_operation *one = list_add(&v->operations, sizeof *one);
        if (one == NULL) in->bad = true;
        else take_operation(in, one);
    }
    count = wire_take_varint(in);
    for (uint64_t i = 0; i < count && !in->bad; i++) {
        kv_expectation *one = list_add(&v->expectations, sizeof *one);
        if (one == NULL) in->bad = true;
        else take_expectation(in, one);
    }
    ask->operations = LIST(kv_operation, &v->operations);
    ask->operation_count = v->operations.count;
    ask->expectations = LIST(kv_expectation, &v->expectations);
    ask->expectation_count = v->expectations.count;
}

static void pass_receive(kv_server *server, peer_link *l, wire_in *in, uint8_t *bytes, size_t size) {
    op *o = op_foreign(server, bytes, size);
    if (o == NULL) return; /* As if it had been lost. */
    in->end = o->bytes.bytes + (in->end - bytes);
    in->at = o->bytes.bytes + (in->at - bytes);
    o->from = l->node;
    o->from_token = wire_take64(in);
    kv_ask *ask = &o->ask;
    ask->kind = wire_take8(in);
    ask->attempt = (uint16_t)wire_take_varint(in);
    ask->lane = (uint32_t)wire_take_varint(in);
    ask->client = wire_take64(in);
    ask->number = wire_take_varint(in);
    ask->seen = wire_take_varint(in);
    ask->durability = wire_take8(in) == KV_DURABILITY_DATA ? KV_DURABILITY_DATA : KV_DURABILITY_VERSION;
    ask->argument = (int64_t)wire_take64(in);
    ask->ttl_ms = (int64_t)wire_take64(in);
    ask->key = take_string(in, &ask->key_size);
    ask->table = take_string(in, &ask->table_size);
    ask->value = take_string(in, &ask->value_size);
    draft *v = op_draft(o);
    if (v == NULL) in->bad = true;
    else take_batch(in, v, ask);
    if (in->bad || ask->attempt == 0 || (ask->key == NULL && ask->table == NULL && ask->operation_count == 0)) op_done(server, o);
    else request_pass(server, o);
}

void link_pass_back(kv_server *server, const op *o, const kv_reply *reply, const uint8_t *bytes) {
    peer_link *l = link_to(server, o->from);
    if (l == NULL || l->source.fd < 0) return;
    wire_out *out = &l->out;
    wire_begin(out, (enum wire_type)LINK_PASSED);
    wire_put64(out, o->from_token);
    wire_put8(out, (uint8_t)reply->status);
    wire_put64(out, (uint64_t)(int64_t)reply->error);
    wire_put_varint(out, reply->version);
    wire_put_varint(out, reply->shard_version);
    wire_put64(out, (uint64_t)reply->number);
    put_string(out, reply->value_size < 0 ? NULL : bytes, reply->value_size < 0 ? 0 : (size_t)reply->value_size);
    wire_end(out);
}

static void passed_receive(kv_server *server, wire_in *in) {
    size_t size;
    op *o = op_of(server, wire_take64(in));
    kv_reply reply = {.status = wire_take8(in)};
    reply.error = (int32_t)wire_take64(in);
    reply.version = wire_take_varint(in);
    reply.shard_version = wire_take_varint(in);
    reply.number = (int64_t)wire_take64(in);
    const uint8_t *bytes = take_string(in, &size);
    reply.value_size = bytes == NULL ? -1 : (int64_t)size;
    if (o == NULL || in->bad || o->passed_to == 0) return;
    if (reply.error == KV_ECORRUPT) reply.error = 0; /* There, and not here. */
    o->passed_to = 0;
    request_answer(server, o, &reply, bytes);
}

static void address_receive(peer_link *l, const wire_in *in) {
    size_t size = (size_t)(in->end - in->at);
    if (size >= sizeof l->client_address) return;
    memcpy(l->client_address, in->at, size);
    l->client_address[size] = 0;
}

/* --- channels --- */

/* Room is left for what the set lives on: a link that owes much takes no messages. */
void links_publish(kv_server *server, text channel, text message) {
    for (uint32_t i = 0; i < server->link_count; i++) {
        peer_link *l = &server->links[i];
        if (l->source.fd < 0 || l->out.size - l->sent + channel.size + message.size > PUBLISH_OWED_MAX) continue;
        wire_begin(&l->out, (enum wire_type)LINK_PUBLISH);
        wire_put_varint(&l->out, channel.size);
        wire_put_bytes(&l->out, channel.at, channel.size);
        wire_put_bytes(&l->out, message.at, message.size);
        wire_end(&l->out);
        server->asked = true;
    }
}

static void publish_receive(kv_server *server, wire_in *in) {
    uint64_t size = wire_take_varint(in);
    text channel = {wire_take_bytes(in, size), (size_t)size};
    if (!in->bad) channels_tell(server, channel, (text){in->at, (size_t)(in->end - in->at)});
}

/* --- in --- */

/* Frames of the replica that follow one another go to it in one piece. */
static bool frames_take(kv_server *server, peer_link *l) {
    uint8_t *at = l->in.bytes + l->in.begin, *end = l->in.bytes + l->in.end, *run = at;
    bool good = true;
    while (good && end - at >= WIRE_HEAD_SIZE) {
        uint64_t size = kv_load32(at);
        uint8_t type = at[4];
        if (size == 0 || size > WIRE_FRAME_SIZE_MAX) return false;
        if ((uint64_t)(end - at) < size + 4) break;
        uint8_t *next = at + size + 4;
        if (type >= LINK_PASS) {
            if (run != at) good = kv_replica_receive(server->replica, l->node, run, (size_t)(at - run)) == KV_OK;
            wire_in body = {.at = at + WIRE_HEAD_SIZE, .end = next};
            if (type == LINK_PASS) pass_receive(server, l, &body, at, (size_t)(next - at));
            else if (type == LINK_PASSED) passed_receive(server, &body);
            else if (type == LINK_ADDRESS) address_receive(l, &body);
            else if (type == LINK_LEAVE) leave_receive(server, l, &body);
            else if (type == LINK_PUBLISH) publish_receive(server, &body);
            run = next;
        }
        at = next;
    }
    if (good && run != at) good = kv_replica_receive(server->replica, l->node, run, (size_t)(at - run)) == KV_OK;
    l->in.begin = (size_t)(at - l->in.bytes);
    return good;
}

/* The size that the frame at the front needs, if its head is there. */
static size_t frame_room(const peer_link *l) {
    size_t have = l->in.end - l->in.begin;
    uint64_t size = have < WIRE_HEAD_SIZE ? 0 : (uint64_t)kv_load32(l->in.bytes + l->in.begin) + 4;
    return size > have + LINK_READ_SIZE ? (size_t)size : have + LINK_READ_SIZE;
}

void link_readable(kv_server *server, peer_link *l) {
    size_t room = LINK_READ_SIZE;
    ssize_t got = (ssize_t)room;
    while (l->source.fd >= 0 && (size_t)got == room) {
        if (!input_room(&l->in, frame_room(l))) {
            link_close(server, l, "no memory");
            return;
        }
        room = l->in.capacity - l->in.end;
        got = recv(l->source.fd, l->in.bytes + l->in.end, room, MSG_DONTWAIT);
        if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
        if (got <= 0) {
            link_lost(server, l, got == 0 ? "it was closed" : "it was cut");
            return;
        }
        l->in.end += (size_t)got;
        if (!frames_take(server, l)) link_close(server, l, "it sends what no replica sends");
    }
}

void links_free(kv_server *server) {
    for (uint32_t i = 0; i < server->link_count; i++) {
        peer_link *l = &server->links[i];
        if (l->source.fd >= 0) close(l->source.fd);
        free(l->in.bytes);
        wire_free(&l->out);
    }
    for (uint32_t i = 0; i < server->arrived_count; i++)
        if (server->arrived[i].fd >= 0) close(server->arrived[i].fd);
}
