/* server.c -- see kv/server.h. The loop, and what waits for the disk. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "command.h"
#include "kv/xxh64.h"
#include "store_internal.h"

enum { SHARD_COUNT = 64, EVENTS_MAX = 128, CLIENTS_DEFAULT = 10000, TICK_MS = 5, REQUEST_MS = 5000, STOP_MS = 3000 };
static const uint64_t WORD_SIZE_MAX = (uint64_t)512 << 20, OWED_SIZE_MAX = (uint64_t)256 << 20;

static const uint64_t SYNC_HERE_NS = 1000000; /* A disk that takes longer is waited for by the other thread. */

static uint64_t clock_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static uint64_t clock_ms(void) { return clock_ns() / 1000000; }

/* A line of JSON, or nothing where nobody reads: the loop waits for no log. */
void server_event(kv_server *server, const char *format, ...) {
    char line[512];
    va_list arguments;
    if (server->options.log_pipe < 0) return;
    va_start(arguments, format);
    int size = vsnprintf(line, sizeof line - 1, format, arguments);
    va_end(arguments);
    if (size < 0 || (size_t)size >= sizeof line - 1) return;
    line[size] = '\n';
    ssize_t written = write(server->options.log_pipe, line, (size_t)size + 1);
    (void)written;
}

bool server_watch(kv_server *server, source *one, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = one};
    return epoll_ctl(server->epoll, EPOLL_CTL_ADD, one->fd, &event) == 0;
}

void server_ring(const kv_server *server) {
    uint64_t one = 1;
    ssize_t written = write(server->bell.fd, &one, sizeof one);
    (void)written; /* Full: it rings already. */
}

static bool alone(const kv_server *server) { return server->options.replica.member_count <= 1; }

/* Alone there is nobody to fetch it from, and what is not damaged is better than nothing. */
bool server_ends(kv_server *server) {
    server->damaged = !alone(server);
    return server->damaged;
}

uint64_t server_lot(kv_server *server) {
    server->lots++;
    return kv_xxh64((const uint8_t *)&server->lots, sizeof server->lots, server->identity);
}

/* --- what waits for the disk --- */

/* Holds the lock, but for the while it takes. */
static void store_checkpoint(kv_server *server) {
    keeping *k = &server->keeping;
    k->wanted = false;
    pthread_mutex_unlock(&server->lock);
    kv_status status = keep_store(server);
    pthread_mutex_lock(&server->lock);
    k->stored = status;
    k->done = true;
}

/* Everything that is wanted. Holds the lock, but for the while it takes. */
static bool sync_step(kv_server *server, kv_flow *flow) {
    uint64_t upto = server->sync_wanted;
    pthread_mutex_unlock(&server->lock);
    uint64_t begin = clock_ns();
    kv_status status = kv_flow_sync(flow, (kv_position){.segment = (uint32_t)(upto >> 32), .offset = (uint32_t)upto});
    uint64_t took = clock_ns() - begin;
    pthread_mutex_lock(&server->lock);
    server->sync_ns = (3 * server->sync_ns + took) / 4;
    if (status == KV_OK) server->synced = upto;
    else server->sync_failed = status;
    return status == KV_OK;
}

/* The next segment is made before it is needed: a sync is the moment when one has become full. */
static void *sync_run(void *context) {
    kv_server *server = context;
    kv_flow *flow = kv_replica_flow(server->replica);
    pthread_mutex_lock(&server->lock);
    while (!server->ends) {
        if (server->keeping.wanted) {
            store_checkpoint(server);
            continue;
        }
        bool syncs = server->sync_wanted > server->synced && server->sync_failed == KV_OK;
        if (!syncs && !server->prepare_wanted) {
            pthread_cond_wait(&server->wanted, &server->lock);
            continue;
        }
        if (syncs) {
            bool good = sync_step(server, flow);
            server_ring(server);
            if (!good) continue;
        }
        server->prepare_wanted = false;
        if (!kv_flow_wants_prepare(flow)) continue;
        pthread_mutex_unlock(&server->lock);
        kv_flow_prepare(flow, 0); /* What fails here fails again, and is told, where a segment is needed. */
        pthread_mutex_lock(&server->lock);
    }
    pthread_mutex_unlock(&server->lock);
    return NULL;
}

/* One at a time is under way, of all there is. */
static void want_sync(kv_server *server) {
    uint64_t tail = kv_replica_tail(server->replica);
    pthread_mutex_lock(&server->lock);
    bool more = tail > server->sync_wanted;
    server->syncs_here = more && alone(server) && server->synced == server->sync_wanted && server->sync_ns < SYNC_HERE_NS;
    if (more && !server->syncs_here) {
        server->sync_wanted = tail;
        pthread_cond_signal(&server->wanted);
    }
    pthread_mutex_unlock(&server->lock);
}

/* What can be answered without it has been. What it makes durable is answered in the same round. */
static kv_status sync_here(kv_server *server) {
    kv_flow *flow = kv_replica_flow(server->replica);
    server->syncs_here = false;
    pthread_mutex_lock(&server->lock);
    server->sync_wanted = kv_replica_tail(server->replica);
    sync_step(server, flow);
    kv_status status = server->sync_failed;
    uint64_t synced = server->synced;
    if (kv_flow_wants_prepare(flow)) {
        server->prepare_wanted = true;
        pthread_cond_signal(&server->wanted);
    }
    pthread_mutex_unlock(&server->lock);
    if (status != KV_OK) return status;
    kv_replica_durable(server->replica, synced);
    server->asked = true;
    return KV_OK;
}

static kv_status hear_bell(kv_server *server) {
    uint64_t count;
    ssize_t got = read(server->bell.fd, &count, sizeof count);
    (void)got;
    pthread_mutex_lock(&server->lock);
    uint64_t synced = server->synced;
    kv_status failed = server->sync_failed;
    if (server->looks_done != server->looks_wanted) look_show(server);
    pthread_mutex_unlock(&server->lock);
    links_arrive(server);
    if (failed != KV_OK) return failed;
    kv_replica_durable(server->replica, synced);
    return KV_OK;
}

/* --- the loop --- */

static kv_status handle(kv_server *server, source *one, uint32_t events) {
    client *c = (client *)one;
    switch (one->kind) {
    case SOURCE_LISTEN: clients_accept(server); break;
    case SOURCE_BELL: return hear_bell(server);
    case SOURCE_CLIENT:
        if (one->fd < 0) break; /* It ended a moment ago. */
        if (events & (EPOLLERR | EPOLLHUP)) { /* Gone in both directions: not even what it sent can be read. */
            client_close(server, c);
            break;
        }
        if (events & EPOLLOUT) client_dirty(server, c);
        if (events & EPOLLIN) client_readable(server, c);
        break;
    case SOURCE_LINK:
        if (one->fd >= 0 && (events & EPOLLOUT)) link_flush(server, (peer_link *)one);
        if (one->fd >= 0 && (events & (EPOLLIN | EPOLLERR | EPOLLHUP))) link_readable(server, (peer_link *)one);
        break;
    }
    return KV_OK;
}

static void tick(kv_server *server) {
    if (server->now_ms < server->next_tick_ms) return;
    server->ticks++;
    server->next_tick_ms = server->now_ms + server->options.tick_ms;
    kv_replica_tick(server->replica);
    requests_tick(server);
    exchange_tick(server);
    keep_tick(server);
    if (server->leaving) leave_send(server);
}

/* Answers let commands go on that waited for them, which ask for more: until nobody does. */
static kv_status work_off(kv_server *server) {
    kv_status status = KV_OK;
    do {
        server->asked = false;
        kv_replica_flush(server->replica);
        requests_answered(server);
        links_send(server);
        kv_replica_clear(server->replica);
        requests_follow(server);
        want_sync(server);
        while (server->dirty != NULL) {
            client *c = server->dirty;
            server->dirty = c->next_dirty;
            c->dirty = false;
            if (c->source.fd >= 0 && (c->blocked || c->in.end != c->in.begin)) client_go_on(server, c);
            client_send(server, c);
        }
        if (server->syncs_here && !server->asked) status = sync_here(server);
    } while (server->asked && status == KV_OK);
    return status;
}

static kv_status damage_tell(kv_fault *fault) {
    fault->status = KV_ECORRUPT;
    snprintf(fault->what, sizeof fault->what, "a record that was read is damaged; the next start fetches it from the others");
    return KV_ECORRUPT;
}

kv_status kv_server_run(kv_server *server, kv_fault *fault) {
    struct epoll_event events[EVENTS_MAX];
    kv_status status = KV_OK;
    bool gone = false;
    server->now_ms = server->next_tick_ms = clock_ms();
    while (status == KV_OK && !gone) {
        uint64_t left = server->next_tick_ms > server->now_ms ? server->next_tick_ms - server->now_ms : 0;
        int count = epoll_wait(server->epoll, events, EVENTS_MAX, (int)left);
        server->now_ms = clock_ms();
        for (int i = 0; status == KV_OK && i < count; i++) status = handle(server, events[i].data.ptr, events[i].events);
        tick(server);
        kv_status worked = work_off(server);
        if (status == KV_OK) status = worked;
        if (status == KV_OK) status = kv_replica_failure(server->replica, fault);
        if (status == KV_OK && server->damaged) status = damage_tell(fault);
        gone = status == KV_OK && atomic_load(&server->stops) != 0 && leave_step(server);
    }
    kv_status first = status == KV_OK ? KV_OK : kv_flow_poison(kv_replica_flow(server->replica), &fault->os_error);
    if (status == KV_EPOISONED && first != KV_OK) { /* What began it says more than what came of it. */
        status = first;
        fault->status = KV_OK;
    }
    /* A replay of all may mend what a short one passes by. */
    if (status == KV_ECORRUPT) keep_forget(kv_replica_store(server->replica)->io);
    if (status != KV_OK && fault->status == KV_OK) {
        fault->status = status;
        snprintf(fault->what, sizeof fault->what, "the replica cannot go on: %s", kv_status_name(status));
    }
    return status;
}

void kv_server_stop(kv_server *server) {
    atomic_fetch_add(&server->stops, 1);
    server_ring(server);
}

/* --- life --- */

static void default_options(kv_server_options *o) {
    if (o->client_count_max == 0) o->client_count_max = CLIENTS_DEFAULT;
    if (o->tick_ms == 0) o->tick_ms = TICK_MS;
    if (o->request_ms == 0) o->request_ms = REQUEST_MS;
    if (o->word_size_max == 0) o->word_size_max = WORD_SIZE_MAX;
    if (o->owed_size_max == 0) o->owed_size_max = OWED_SIZE_MAX;
    if (o->stop_ms == 0) o->stop_ms = STOP_MS;
    /* Alone there is nobody to share the work with, and one shard lets a command take any keys. */
    if (o->replica.shard_count == 0) o->replica.shard_count = o->replica.member_count > 1 ? SHARD_COUNT : 1;
    o->password[sizeof o->password - 1] = o->announce[sizeof o->announce - 1] = 0;
}

/* For every shard a number that lies in it, as a key: something to ask for when it is the shard that is meant. */
static uint32_t *samples_make(uint32_t shard_count) {
    uint32_t *samples = calloc(shard_count, sizeof *samples), missing = shard_count;
    char name[16];
    for (uint32_t number = 1; samples != NULL && missing != 0; number++) {
        int size = snprintf(name, sizeof name, "%u", number);
        uint32_t *sample = &samples[kv_shard_of(shard_count, (const uint8_t *)name, (size_t)size)];
        if (*sample == 0) missing--;
        if (*sample == 0) *sample = number;
    }
    return samples;
}

static kv_status server_begin(kv_server *server) {
    server->shard_count = server->options.replica.shard_count;
    server->seen = calloc(server->shard_count, sizeof *server->seen);
    server->shown_shards = calloc(server->shard_count, sizeof *server->shown_shards);
    server->leaders = calloc(KV_SLOT_COUNT, sizeof(op *));
    server->turns = calloc(TURNS_SIZE, sizeof(op *));
    server->samples = samples_make(server->shard_count);
    server->cursors = cursors_new((uint64_t)time(NULL) << 22);
    server->channels = channels_new();
    if (server->seen == NULL || server->samples == NULL || server->leaders == NULL || server->shown_shards == NULL) return KV_ENOMEM;
    if (server->turns == NULL || server->cursors == NULL || server->channels == NULL) return KV_ENOMEM;
    server->start_ms = server->now_ms = clock_ms();
    server->sync_ns = 2 * SYNC_HERE_NS; /* Nothing is known of the disk yet. */
    server->epoll = epoll_create1(EPOLL_CLOEXEC);
    server->bell = (source){SOURCE_BELL, eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)};
    if (server->epoll < 0 || server->bell.fd < 0) return KV_ELIMIT;
    if (!server_watch(server, &server->bell, EPOLLIN) || !server_watch(server, &server->listen, EPOLLIN)) return KV_ELIMIT;
    if (pthread_create(&server->syncer, NULL, sync_run, server) != 0) return KV_ELIMIT;
    server->syncer_runs = true;
    return KV_OK;
}

static kv_status replica_open(kv_server *server, kv_io *io, kv_fault *fault) {
    kv_replica_options *replica = &server->options.replica;
    uint8_t *checkpoint = NULL;
    if (server->options.replays_all) keep_forget(io);
    else keep_load(io, &checkpoint, &replica->checkpoint_size);
    replica->checkpoint = checkpoint;
    kv_status status = kv_replica_open(io, replica, fault, &server->replica);
    replica->checkpoint = NULL;
    free(checkpoint);
    return status;
}

kv_status kv_server_new(kv_io *io, const kv_server_options *options, kv_fault *fault, kv_server **out) {
    kv_server *server = calloc(1, sizeof *server);
    if (server == NULL) {
        io->free(io);
        return KV_ENOMEM;
    }
    server->options = *options;
    server->epoll = -1;
    server->bell.fd = -1;
    server->listen = (source){SOURCE_LISTEN, options->client_socket};
    default_options(&server->options);
    pthread_mutex_init(&server->lock, NULL);
    pthread_cond_init(&server->wanted, NULL);
    pthread_cond_init(&server->looked, NULL);
    kv_status status = io->random(io, (uint8_t *)&server->identity, sizeof server->identity);
    if (status != KV_OK) io->free(io);
    else status = replica_open(server, io, fault);
    if (status == KV_OK) status = server_begin(server);
    if (status != KV_OK) {
        kv_server_free(server);
        return status;
    }
    *out = server;
    return KV_OK;
}

void kv_server_free(kv_server *server) {
    if (server == NULL) return;
    if (server->syncer_runs) {
        pthread_mutex_lock(&server->lock);
        server->ends = true;
        pthread_cond_signal(&server->wanted);
        pthread_mutex_unlock(&server->lock);
        pthread_join(server->syncer, NULL);
    }
    clients_free(server);
    links_free(server);
    if (server->replica != NULL) kv_replica_free(server->replica);
    if (server->listen.fd >= 0) close(server->listen.fd);
    if (server->bell.fd >= 0) close(server->bell.fd);
    if (server->epoll >= 0) close(server->epoll);
    list_free(&server->waiting);
    list_free(&server->following);
    cursors_free(server->cursors);
    channels_free(server->channels);
    free(server->samples);
    free(server->leaders);
    free(server->turns);
    free(server->seen);
    free(server->shown_shards);
    pthread_mutex_destroy(&server->lock);
    pthread_cond_destroy(&server->wanted);
    pthread_cond_destroy(&server->looked);
    free(server);
}
