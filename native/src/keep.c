/* keep.c -- giving disk back, and checkpoints, while the server runs: some steps at each tick, between commands.
 *
 *   trim         while a third of the log is dead, besides what is kept for peers: what is live in the oldest segment is moved
 *                (kv_replica_trim). Without that bound cold data would go round for ever
 *   checkpoint   each time the log has grown by as much as is kept for peers, SIZE_MAX at most; it takes out what was
 *                emptied, and bounds what the next start has to read. And where too much is dead and nothing is left to move: who
 *                stops writing would leave it there for ever
 *   store        its description becomes the file `checkpoint`, by the thread that syncs; then segments go, unless somebody
 *                copies them (kv_server_pin)
 *
 * A step is short, but that it may wait for the sync of a header or of an index file (docs/decisions/0027). What fails costs room
 * and nothing else: it is told, and tried again after a pause that doubles. */
#include <stdlib.h>
#include <time.h>

#include "server_internal.h"
#include "store_internal.h"

#define CHECKPOINT_NAME "checkpoint"
#define DRAFT_NAME "checkpoint.new"
enum { DEAD_SHARE = 3, STEPS_US = 1000, LOOK_TICKS = 20, TIDY_TICKS = 400, FAILED_TICKS = 200, FAILURES_MAX = 6 };
static const uint64_t KEPT_DEFAULT = 64 << 20, SIZE_MAX_BETWEEN = 64 << 20, FILE_SIZE_MAX = (uint64_t)1 << 30;

/* --- the file --- */

static kv_status whole_file(kv_io *io, kv_file *file, uint8_t **bytes, size_t *size) {
    uint64_t there;
    size_t got = 0;
    kv_status status = io->size(io, file, &there);
    if (status == KV_OK && (there == 0 || there > FILE_SIZE_MAX)) status = KV_ECORRUPT;
    if (status != KV_OK) return status;
    *bytes = malloc((size_t)there);
    if (*bytes == NULL) return KV_ENOMEM;
    *size = (size_t)there;
    status = io->read_at(io, file, *bytes, *size, 0, &got);
    return status == KV_OK && got != *size ? KV_ECORRUPT : status;
}

/* It is a shortcut: what cannot be read is not there. */
void keep_load(kv_io *io, uint8_t **bytes, size_t *size) {
    kv_file *file;
    *bytes = NULL;
    *size = 0;
    if (io->open(io, CHECKPOINT_NAME, KV_IO_READ, &file) != KV_OK) return;
    kv_status status = whole_file(io, file, bytes, size);
    io->close(io, file);
    if (status == KV_OK) return;
    free(*bytes);
    *bytes = NULL;
    *size = 0;
}

void keep_forget(kv_io *io) {
    if (io->unlink(io, CHECKPOINT_NAME) == KV_OK) io->sync_dir(io, "");
}

kv_status keep_store(kv_server *server) {
    kv_io *io = kv_replica_store(server->replica)->io;
    kv_file *file;
    kv_status status = io->open(io, DRAFT_NAME, KV_IO_CREATE, &file);
    if (status != KV_OK) return status;
    status = io->write_at(io, file, server->keeping.bytes, server->keeping.size, 0);
    if (status == KV_OK) status = io->sync(io, file);
    io->close(io, file);
    if (status == KV_OK) status = io->rename(io, DRAFT_NAME, CHECKPOINT_NAME);
    return status == KV_OK ? io->sync_dir(io, "") : status;
}

static void store_begin(kv_server *server) {
    pthread_mutex_lock(&server->lock);
    server->keeping.wanted = true;
    server->keeping.done = false;
    pthread_cond_signal(&server->wanted);
    pthread_mutex_unlock(&server->lock);
}

/* --- steps --- */

static uint64_t kept_size(const kv_server *server) {
    uint64_t kept = server->options.replica.keep_size_max;
    return kept == 0 ? KEPT_DEFAULT : kept;
}

/* Rows of tables that were dropped count as live until they are swept, which is a part of trimming. */
static bool trim_is_due(const kv_server *server, const kv_stats *stats) {
    uint64_t dead = stats->flow_size > stats->live_size ? stats->flow_size - stats->live_size : 0;
    return kv_replica_store(server->replica)->retired_tables.count != 0 || dead > kept_size(server) + stats->flow_size / DEAD_SHARE;
}

static bool checkpoint_is_due(const kv_server *server, const kv_stats *stats) {
    uint64_t kept = kept_size(server);
    return stats->since_checkpoint_size >= (kept > SIZE_MAX_BETWEEN ? SIZE_MAX_BETWEEN : kept);
}

/* What there is to do next. KV_MORE: something, at once; KV_EOF: nothing for a while. */
static kv_status look(kv_server *server) {
    keeping *k = &server->keeping;
    kv_stats stats;
    kv_status status = kv_store_measure(kv_replica_store(server->replica), &stats);
    if (status != KV_OK) return status;
    if (checkpoint_is_due(server, &stats)) k->phase = KEEP_CHECKPOINT;
    else if (trim_is_due(server, &stats)) k->phase = KEEP_TRIM;
    else return KV_EOF;
    return KV_MORE;
}

/* A segment, or why none is to be had: then only a checkpoint may help. */
static kv_status trim_step(kv_server *server) {
    kv_status status = kv_replica_trim(server->replica);
    if (status == KV_MORE) return KV_MORE;
    keeping *k = &server->keeping;
    k->phase = status == KV_EOF && server->ticks >= k->tidy ? KEEP_CHECKPOINT : KEEP_LOOK;
    return status == KV_OK || k->phase == KEEP_CHECKPOINT ? KV_MORE : status;
}

static kv_status checkpoint_step(kv_server *server) {
    keeping *k = &server->keeping;
    kv_status status = kv_replica_checkpoint(server->replica, &k->bytes, &k->size);
    if (status == KV_EOF) k->phase = KEEP_LOOK;
    if (status != KV_OK) return status;
    k->phase = KEEP_STORE;
    store_begin(server);
    return KV_EWAIT;
}

static kv_status store_step(kv_server *server) {
    keeping *k = &server->keeping;
    pthread_mutex_lock(&server->lock);
    bool done = k->done;
    kv_status status = k->stored;
    pthread_mutex_unlock(&server->lock);
    if (!done || server->pinned) return KV_EWAIT;
    k->phase = KEEP_LOOK;
    k->tidy = server->ticks + TIDY_TICKS;
    if (status == KV_OK) status = kv_replica_published(server->replica);
    if (status == KV_OK) server->figures.checkpoints++;
    return status;
}

static kv_status step(kv_server *server) {
    switch (server->keeping.phase) {
    case KEEP_LOOK: return look(server);
    case KEEP_TRIM: return trim_step(server);
    case KEEP_CHECKPOINT: return checkpoint_step(server);
    default: return store_step(server);
    }
}

static void failed(kv_server *server, kv_status status) {
    keeping *k = &server->keeping;
    kv_replica_checkpoint_end(server->replica);
    k->phase = KEEP_LOOK;
    k->again = server->ticks + ((uint64_t)FAILED_TICKS << k->failures);
    if (k->failures < FAILURES_MAX) k->failures++;
    server_event(server, "{\"event\": \"keeps_all\", \"why\": \"%s\"}", kv_status_name(status));
}

static uint64_t clock_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

void keep_tick(kv_server *server) {
    keeping *k = &server->keeping;
    uint64_t until = clock_us() + STEPS_US;
    kv_status status = KV_MORE;
    if (server->ticks < k->again || server->leaving) return;
    while (status == KV_MORE && clock_us() < until) status = step(server);
    if (status == KV_MORE || (k->phase != KEEP_LOOK && status == KV_EWAIT)) return; /* At the next tick. */
    if (status == KV_OK || status == KV_EOF || status == KV_EWAIT) {
        k->again = server->ticks + LOOK_TICKS;
        k->failures = 0;
    } else if (kv_replica_failure(server->replica, &(kv_fault){0}) == KV_OK) {
        failed(server, status);
    }
}
