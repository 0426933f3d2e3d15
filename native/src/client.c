/* client.c -- connections of clients: commands come in, run, and are answered in the order they came.
 *
 * What a client costs is bounded: bytes of commands by the largest command, commands under way by OPS_MAX (then it is not
 * read from any more), replies that it does not read by owed_size_max (then it is cut). */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "command.h"

enum { OPS_MAX = 1024, READ_SIZE = 1 << 16, INPUT_MIN = 1 << 14, ROUNDS_MAX = 16, ACCEPT_MAX = 64 };

bool input_room(input *in, size_t size) {
    size_t have = in->end - in->begin;
    if (have == 0) in->begin = in->end = 0;
    if (in->capacity - in->begin >= size) return true;
    if (in->begin != 0) memmove(in->bytes, in->bytes + in->begin, have);
    in->begin = 0;
    in->end = have;
    if (in->capacity >= size) return true;
    size_t capacity = in->capacity == 0 ? INPUT_MIN : in->capacity;
    while (capacity < size) capacity *= 2;
    uint8_t *larger = realloc(in->bytes, capacity);
    if (larger == NULL) return false;
    in->bytes = larger;
    in->capacity = capacity;
    return true;
}

void client_dirty(kv_server *server, client *c) {
    if (c->dirty) return;
    c->dirty = true;
    c->next_dirty = server->dirty;
    server->dirty = c;
}

static void address_of(int fd, char *out, size_t size) {
    struct sockaddr_storage address = {0};
    socklen_t length = sizeof address;
    char host[INET6_ADDRSTRLEN] = "?";
    getpeername(fd, (struct sockaddr *)&address, &length);
    const struct sockaddr_in *four = (const struct sockaddr_in *)(const void *)&address;
    const struct sockaddr_in6 *six = (const struct sockaddr_in6 *)(const void *)&address;
    bool is_six = address.ss_family == AF_INET6;
    if (is_six) inet_ntop(AF_INET6, &six->sin6_addr, host, sizeof host);
    else if (address.ss_family == AF_INET) inet_ntop(AF_INET, &four->sin_addr, host, sizeof host);
    snprintf(out, size, is_six ? "[%s]:%u" : "%s:%u", host, ntohs(is_six ? six->sin6_port : four->sin_port));
}

static void client_new(kv_server *server, int fd) {
    int yes = 1;
    client *c = calloc(1, sizeof *c);
    if (c == NULL || server->client_count >= server->options.client_count_max) {
        static const char full[] = "-ERR max number of clients reached\r\n";
        send(fd, full, sizeof full - 1, MSG_NOSIGNAL | MSG_DONTWAIT);
        free(c);
        close(fd);
        return;
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    *c = (client){.source = {SOURCE_CLIENT, fd}, .protocol = RESP_2, .id = ++server->client_last, .events = EPOLLIN};
    c->last = &c->first;
    c->queue_last = &c->queue;
    c->known = server->options.password[0] == 0;
    c->since_ms = server->now_ms;
    address_of(fd, c->address, sizeof c->address);
    if (!server_watch(server, &c->source, EPOLLIN)) {
        free(c);
        close(fd);
        return;
    }
    c->next = server->clients;
    if (c->next != NULL) c->next->prev = c;
    server->clients = c;
    server->client_count++;
    server->figures.connections++;
}

void clients_accept(kv_server *server) {
    for (int i = 0; i < ACCEPT_MAX; i++) {
        int fd = accept4(server->listen.fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) client_new(server, fd);
        else if (errno != EINTR && errno != ECONNABORTED) return;
    }
}

/* The transaction is over, however it ended, and with it what was watched. */
void client_forget_multi(kv_server *server, client *c) {
    op_drop(server, c->queue);
    c->queue = NULL;
    c->queue_last = &c->queue;
    c->queue_size = 0;
    c->multi = c->spoilt = false;
    client_unwatch(c);
}

void client_unwatch(client *c) {
    for (size_t i = 0; i < c->watched.count; i++) free((void *)(uintptr_t)LIST(watched_key, &c->watched)[i].name.at);
    list_clear(&c->watched);
}

/* Its ops go on, for nobody: what was asked of a replica cannot be taken back. */
void client_close(kv_server *server, client *c) {
    if (c->source.fd < 0) return;
    close(c->source.fd); /* which also takes it out of epoll */
    c->source.fd = -1;
    for (op *o = c->first, *next; o != NULL; o = next) {
        next = o->next;
        o->client = NULL;
        if (o->done) op_free(server, o);
    }
    client_forget_multi(server, c);
    channels_leave(server, c);
    if (c->prev != NULL) c->prev->next = c->next;
    else server->clients = c->next;
    if (c->next != NULL) c->next->prev = c->prev;
    server->client_count--;
    c->first = NULL;
    client_dirty(server, c); /* where it is freed: events of it may still be in hand */
}

static void client_free(client *c) {
    resp_free(&c->reader);
    free(c->in.bytes);
    wire_free(&c->out);
    list_free(&c->watched);
    free(c);
}

static void interest(kv_server *server, client *c) {
    bool full = c->blocked || c->op_count >= OPS_MAX || c->closing || server->draining;
    uint32_t events = (full ? 0 : EPOLLIN) | (c->sent < c->out.size ? EPOLLOUT : 0);
    if (events == c->events) return;
    c->events = events;
    struct epoll_event event = {.events = events, .data.ptr = &c->source};
    epoll_ctl(server->epoll, EPOLL_CTL_MOD, c->source.fd, &event);
}

/* Whether a command may begin beside those of its client that are under way. */
static bool may_begin(const client *c, const kv_command *command) {
    if (c->first == NULL) return true;
    uint32_t kind = command_order(c, command, c->reader.count);
    if (kind == 0) return true; /* It is answered in its place. */
    return !((c->running | kind) & COMMAND_ALONE) && (c->running == 0 || c->running == kind);
}

/* Commands that are there and may begin. */
void client_go_on(kv_server *server, client *c) {
    resp_limits limits = {.word_count_max = 1 << 20, .word_size_max = server->options.word_size_max, .known = c->known};
    c->blocked = false;
    while (c->source.fd >= 0 && !c->closing && !server->draining && c->op_count < OPS_MAX) {
        uint8_t *bytes = c->in.bytes + c->in.begin;
        size_t size = c->in.end - c->in.begin;
        enum resp_status status = c->parsed ? RESP_COMMAND : resp_next(&c->reader, bytes, size, &limits);
        if (status == RESP_MORE) break;
        if (status != RESP_COMMAND) {
            if (status == RESP_BAD) resp_put_error(&c->out, "ERR Protocol error: %s", c->reader.error);
            c->closing = true;
            client_dirty(server, c);
            break;
        }
        c->parsed = true;
        const resp_word *name = c->reader.words;
        const kv_command *command = c->reader.count == 0 ? NULL : command_find(bytes + name->at, name->size);
        c->blocked = c->reader.count != 0 && !may_begin(c, command);
        if (c->blocked) break;
        op *o = c->reader.count == 0 ? NULL : op_new(server, c, bytes);
        bool failed = o == NULL && c->reader.count != 0;
        c->in.begin += c->reader.used;
        c->parsed = false;
        if (failed) {
            client_close(server, c);
            return;
        }
        if (o == NULL) continue;
        o->command = command;
        server->figures.commands++;
        c->running |= command_order(c, command, o->word_count);
        command_begin(server, o);
    }
}

void client_readable(kv_server *server, client *c) {
    for (int i = 0; i < ROUNDS_MAX && c->source.fd >= 0 && !c->blocked && !c->closing && c->op_count < OPS_MAX; i++) {
        size_t have = c->in.end - c->in.begin, needed = resp_room(&c->reader, have);
        if (needed < have + READ_SIZE / 4) needed = have + READ_SIZE / 4;
        if (!input_room(&c->in, needed)) {
            client_close(server, c);
            return;
        }
        size_t room = c->in.capacity - c->in.end;
        ssize_t got = recv(c->source.fd, c->in.bytes + c->in.end, room, 0);
        if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
        if (got <= 0) {
            client_close(server, c);
            return;
        }
        c->in.end += (size_t)got;
        server->figures.received_size += (size_t)got;
        client_go_on(server, c);
        if ((size_t)got < room) return;
    }
}

/* All that is owed, as far as it goes now. Also the place where clients end. */
void client_send(kv_server *server, client *c) {
    if (c->source.fd < 0) {
        client_free(c);
        return;
    }
    while (c->sent < c->out.size) {
        ssize_t done = send(c->source.fd, c->out.bytes + c->sent, c->out.size - c->sent, MSG_NOSIGNAL);
        if (done < 0 && errno == EINTR) continue;
        if (done < 0 && errno == EAGAIN) break;
        if (done < 0) {
            client_close(server, c); /* Nobody will read the rest. */
            return;
        }
        c->sent += (size_t)done;
        server->figures.sent_size += (size_t)done;
    }
    bool all = c->sent == c->out.size;
    if (all) c->out.size = c->sent = 0;
    bool cut = c->out.failed || c->out.size - c->sent > server->options.owed_size_max;
    if (cut || (c->closing && all && c->first == NULL)) {
        client_close(server, c);
        return;
    }
    interest(server, c);
}

/* With the server: nobody is told any more. */
void clients_free(kv_server *server) {
    while (server->clients != NULL) client_close(server, server->clients);
    while (server->dirty != NULL) {
        client *c = server->dirty;
        server->dirty = c->next_dirty;
        client_free(c);
    }
    for (size_t i = 0; i < server->ops.count; i++) {
        op *o = LIST(op *, &server->ops)[i];
        wire_free(&o->bytes);
        wire_free(&o->reply);
        if (o->draft != NULL) draft_free(o->draft);
        free(o->draft);
        free((void *)(uintptr_t)o->cursor.at);
        free(o->words);
        free(o);
    }
    list_free(&server->ops);
}
