/* replica.c -- what the replica core alone costs: a set of three in one process and one thread, without sockets.
 *
 *     kv_replica_bench [-s] [-n COMMITS] [-r REPETITIONS] [-b BATCH] [-o one|spread] [-S SHARDS] [-k KEYS] [-c CLIENTS] DIRECTORY
 *
 * Messages are carried by a call; the logs are real files in DIRECTORY/set-c, which must not be there. A batch is so many
 * puts in flight: handed to their owners, packed, taken in by the peers, made durable everywhere, acknowledged, committed,
 * answered; then the next one. "Durable" is said without a look at the disk, or, with -s, after one real fdatasync for
 * each replica. Keys have 16 bytes, values 100. Every key is a new one, or one of so many, by turns (-k). Each request is one of
 * 256 clients', or of so many, with number and `seen`, so sessions are part of the cost; with -c 0 it is nobody's.
 *
 * A cell is who owns the shards (the first replica all, or each every third) and the size of a batch; -o and -b pick one.
 * Each repetition of a cell is a set of its own. The output is one line of JSON a cell; lists have a number a repetition:
 *
 *     cpu_ns, wall_ns    a commit, over the whole set: thread CPU time, and time; without the segments
 *     segment_ns         a commit: making the next segments ready, which a driver of its own does in another thread
 *     phase_ns           wall_ns in parts, of the last repetition (enum phase)
 *     wire_size          bytes for a peer and a commit, both directions, heartbeats included, beyond key and value
 *     log_size           bytes a replica logs for a commit, key and value included
 *     sync_count         fdatasyncs for a replica and a batch
 *
 * Every answer is looked at; after the timer has stopped, every replica has to have applied every commit, and to hold what
 * was put, byte by byte. */
#include <errno.h>
#include <ftw.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "kv/replica.h"

enum {
    NODES = 3,
    KEY_SIZE = 16,
    VALUE_SIZE = 100,
    CLIENTS_DEFAULT = 256,
    POOL_SIZE = 1 << 16,        /* random bytes that values are cut from */
    COMMITS_PER_TICK = 2048,    /* at the rate aimed for, a tick every 4 ms */
    CHECK_COUNT_MAX = 50000,    /* keys compared byte by byte, at each replica */
    SETTLE_COUNT_MAX = 1000,    /* rounds that a set may take to get its owners, or to become quiet */
    REPETITION_COUNT_MAX = 100,
    ASKS_TOGETHER_MAX = 64,     /* handed to an owner by one call, as from one socket */
    PATH_SIZE = 4096,
};

enum phase {
    PHASE_REQUEST, /* the owner: evaluate, append to the log */
    PHASE_PACK,    /* the owner: records into messages */
    PHASE_ACCEPT,  /* the peer: records into the log; what the message says is committed is applied */
    PHASE_SYNC,    /* fdatasync, or nothing */
    PHASE_DURABLE, /* being told so: the owner counts itself */
    PHASE_ACK,     /* the peer: acknowledgements into messages */
    PHASE_COMMIT,  /* the owner: acknowledgements in, count, apply, answer */
    PHASE_ANSWER,  /* looking at the answers */
    PHASE_TICK,
    PHASE_COUNT
};
static const char *const PHASE_NAMES[PHASE_COUNT] = {"request", "pack", "accept", "sync", "durable",
                                                     "ack",     "commit", "answer", "tick"};

typedef struct options {
    const char *directory;
    size_t commit_count;
    unsigned repetition_count;
    size_t batch;       /* 0: all of them */
    const char *owners; /* NULL: all of them */
    uint32_t shard_count;
    size_t key_count;
    size_t client_count;
    bool sync;
} options;

typedef struct workload {
    uint8_t *keys;
    uint8_t *pool;
    uint16_t *shards; /* by key */
    size_t key_count;
    size_t client_count;
} workload;

typedef struct set {
    kv_replica *replicas[NODES];
    uint64_t known[KV_SHARDS_MAX];   /* what clients take for `seen` */
    uint32_t owners[KV_SHARDS_MAX];
    bool sync;
    size_t answered;
    uint64_t wire_size;
    size_t since_tick;
    int64_t phase_ns[PHASE_COUNT];
    int64_t segment_ns, segment_cpu_ns;
    const char *failure; /* the first */
} set;

typedef struct figures {
    double cpu_ns, wall_ns, segment_ns, wire_size, log_size, sync_count, phase_ns[PHASE_COUNT];
} figures;

static int64_t clock_ns(clockid_t which) {
    struct timespec now;
    clock_gettime(which, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

/* Adds the time since *from to a phase, and begins the next. */
static void stamp(set *s, enum phase phase, int64_t *from) {
    int64_t now = clock_ns(CLOCK_MONOTONIC);
    s->phase_ns[phase] += now - *from;
    *from = now;
}

static void fail(set *s, const char *what) {
    if (s->failure == NULL) s->failure = what;
}

/* --- the workload: splitmix64 --- */

static uint64_t mix(uint64_t *state) { return kv_mix64(*state += 0x9E3779B97F4A7C15ULL); }

static void workload_free(workload *w) {
    free(w->keys);
    free(w->pool);
    free(w->shards);
}

static bool workload_make(const options *o, workload *w) {
    uint64_t state = 1;
    *w = (workload){.key_count = o->key_count, .client_count = o->client_count, .keys = malloc(o->key_count * KEY_SIZE),
                    .pool = malloc(POOL_SIZE + VALUE_SIZE), .shards = malloc(o->key_count * sizeof *w->shards)};
    if (w->keys == NULL || w->pool == NULL || w->shards == NULL) return false;
    for (size_t i = 0; i + 8 <= POOL_SIZE + VALUE_SIZE; i += 8) kv_store64(w->pool + i, mix(&state));
    for (size_t i = 0; i < o->key_count; i++) {
        uint8_t *key = w->keys + i * KEY_SIZE;
        kv_store64(key, mix(&state));
        kv_store64(key + 8, mix(&state));
        w->shards[i] = (uint16_t)kv_shard_of(o->shard_count, key, KEY_SIZE);
    }
    return true;
}

/* Of the ith write. */
static const uint8_t *key_of(const workload *w, size_t i) { return w->keys + i % w->key_count * KEY_SIZE; }
static uint16_t shard_of(const workload *w, size_t i) { return w->shards[i % w->key_count]; }
static const uint8_t *value_of(const workload *w, size_t i) { return w->pool + i * 31 % POOL_SIZE; }

/* --- what a driver does --- */

static void flush_all(set *s) {
    for (uint32_t i = 0; i < NODES; i++) kv_replica_flush(s->replicas[i]);
}

static void answers_look(set *s, const workload *w, uint32_t i) {
    const kv_reply *replies;
    const uint8_t *bytes;
    size_t count;
    kv_replica_answers(s->replicas[i], &replies, &count, &bytes);
    for (size_t j = 0; j < count; j++) {
        if (replies[j].status != KV_ANSWER_OK) fail(s, "a write was not answered with OK");
        s->known[shard_of(w, replies[j].token)] = replies[j].shard_version;
    }
    s->answered += count;
}

/* Messages and answers, as they lie there. What a receiver says at once waits for its own turn, or the next call. */
static void drain_all(set *s, const workload *w) {
    for (uint32_t i = 0; i < NODES; i++) {
        answers_look(s, w, i);
        for (uint32_t j = 0; j < NODES; j++) {
            size_t size = 0;
            const uint8_t *bytes = j == i ? NULL : kv_replica_outbox(s->replicas[i], (uint16_t)(j + 1), &size);
            if (bytes == NULL) continue;
            s->wire_size += size;
            if (kv_replica_receive(s->replicas[j], (uint16_t)(i + 1), bytes, size) != KV_OK) fail(s, "a message was refused");
        }
        kv_replica_clear(s->replicas[i]);
    }
}

/* The segments behind the ones in use. Rare, so it is timed by itself. */
static void segments_prepare(set *s) {
    for (uint32_t i = 0; i < NODES; i++) {
        kv_flow *flow = kv_replica_flow(s->replicas[i]);
        if (!kv_flow_wants_prepare(flow)) continue;
        int64_t wall = clock_ns(CLOCK_MONOTONIC), cpu = clock_ns(CLOCK_THREAD_CPUTIME_ID);
        if (kv_flow_prepare(flow, 0) != KV_OK) fail(s, "no segment could be made");
        kv_flow_warm(flow);
        s->segment_ns += clock_ns(CLOCK_MONOTONIC) - wall;
        s->segment_cpu_ns += clock_ns(CLOCK_THREAD_CPUTIME_ID) - cpu;
    }
}

static void sync_all(set *s) {
    for (uint32_t i = 0; i < NODES && s->sync; i++) {
        kv_flow *flow = kv_replica_flow(s->replicas[i]);
        if (kv_flow_sync(flow, kv_flow_tail(flow)) != KV_OK) fail(s, "a sync failed");
    }
}

static void durable_all(set *s) {
    for (uint32_t i = 0; i < NODES; i++) kv_replica_durable(s->replicas[i], kv_replica_tail(s->replicas[i]));
}

static void requests_send(set *s, const workload *w, size_t first, size_t count) {
    kv_ask asks[NODES][ASKS_TOGETHER_MAX];
    size_t held[NODES] = {0};
    for (size_t i = first; i < first + count; i++) {
        uint16_t number = shard_of(w, i);
        uint32_t owner = s->owners[number];
        kv_ask *ask = &asks[owner][held[owner]++];
        *ask = (kv_ask){.token = i, .kind = KV_REQUEST_PUT, .attempt = 1, .seen = s->known[number], .key = key_of(w, i),
                        .key_size = KEY_SIZE, .value = value_of(w, i), .value_size = VALUE_SIZE};
        if (w->client_count != 0) {
            ask->client = 1 + i % w->client_count;
            ask->number = 1 + i / w->client_count;
        }
        if (held[owner] < ASKS_TOGETHER_MAX) continue;
        kv_replica_requests(s->replicas[owner], asks[owner], held[owner]);
        held[owner] = 0;
    }
    for (uint32_t i = 0; i < NODES; i++) kv_replica_requests(s->replicas[i], asks[i], held[i]);
}

/* From what was asked to the answers, if the window to a peer has room for all of it. */
static void round_trip(set *s, const workload *w, int64_t *from) {
    flush_all(s);
    stamp(s, PHASE_PACK, from);
    drain_all(s, w);
    stamp(s, PHASE_ACCEPT, from);
    sync_all(s);
    stamp(s, PHASE_SYNC, from);
    durable_all(s);
    stamp(s, PHASE_DURABLE, from);
    flush_all(s);
    stamp(s, PHASE_ACK, from);
    drain_all(s, w);
    stamp(s, PHASE_COMMIT, from);
    drain_all(s, w);
    stamp(s, PHASE_ANSWER, from);
}

static void tick_all(set *s) {
    for (uint32_t i = 0; i < NODES; i++) kv_replica_tick(s->replicas[i]);
}

static void batch_run(set *s, const workload *w, size_t first, size_t count) {
    size_t wanted = s->answered + count;
    segments_prepare(s);
    int64_t from = clock_ns(CLOCK_MONOTONIC);
    requests_send(s, w, first, count);
    stamp(s, PHASE_REQUEST, &from);
    for (unsigned i = 0; s->answered < wanted && s->failure == NULL; i++) {
        round_trip(s, w, &from);
        if (i > SETTLE_COUNT_MAX) fail(s, "writes were not answered");
    }
    s->since_tick += count;
    if (s->since_tick < COMMITS_PER_TICK) return;
    s->since_tick = 0;
    tick_all(s);
    stamp(s, PHASE_TICK, &from);
}

/* --- a set --- */

static bool set_is_owned(const set *s, uint32_t shard_count) {
    for (uint32_t number = 0; number < shard_count; number++) {
        kv_shard_state state;
        kv_replica_shard(s->replicas[s->owners[number]], number, &state);
        if (!state.owned || state.applied == 0) return false;
    }
    return true;
}

static bool set_is_quiet(const set *s, uint32_t shard_count) {
    for (uint32_t number = 0; number < shard_count; number++) {
        kv_shard_state state;
        uint64_t last = 0;
        for (uint32_t i = 0; i < NODES; i++) {
            kv_replica_shard(s->replicas[i], number, &state);
            if (i != 0 && state.last != last) return false;
            if (state.applied != state.last) return false;
            last = state.last;
        }
    }
    return true;
}

static void set_settle(set *s, const workload *w, uint32_t shard_count, bool (*done)(const set *, uint32_t)) {
    int64_t from = 0;
    for (unsigned i = 0; !done(s, shard_count) && s->failure == NULL; i++) {
        tick_all(s);
        round_trip(s, w, &from);
        if (i > SETTLE_COUNT_MAX) fail(s, "the set does not settle");
    }
}

static bool replica_open(const options *o, const char *root, uint32_t i, kv_replica **out) {
    char path[PATH_SIZE];
    kv_io *io;
    kv_fault fault = {0};
    kv_replica_options r = {.node = (uint16_t)(i + 1), .members = {1, 2, 3}, .member_count = NODES, .shard_count = o->shard_count};
    if (snprintf(path, sizeof path, "%s/%u", root, i + 1) >= (int)sizeof path) return false;
    kv_status status = kv_io_posix_new(path, true, &io);
    if (status == KV_OK) status = kv_replica_open(io, &r, &fault, out);
    if (status != KV_OK) fprintf(stderr, "kv_replica_bench: %s: %s %s\n", path, kv_status_name(status), fault.what);
    return status == KV_OK;
}

static bool set_open(const options *o, const workload *w, const char *root, bool spread, set *s) {
    uint16_t wanted[NODES][KV_SHARDS_MAX];
    size_t counts[NODES] = {0};
    int64_t from = 0;
    *s = (set){0};
    for (uint32_t i = 0; i < NODES; i++)
        if (!replica_open(o, root, i, &s->replicas[i])) return false;
    for (uint32_t number = 0; number < o->shard_count; number++) {
        s->owners[number] = spread ? number % NODES : 0;
        wanted[s->owners[number]][counts[s->owners[number]]++] = (uint16_t)number;
    }
    round_trip(s, w, &from); /* Nobody speaks before his log was durable once. */
    for (uint32_t i = 0; i < NODES; i++) kv_replica_takeover(s->replicas[i], wanted[i], counts[i]);
    set_settle(s, w, o->shard_count, set_is_owned);
    return true;
}

static void set_close(set *s) {
    for (uint32_t i = 0; i < NODES; i++) kv_replica_free(s->replicas[i]);
}

static uint64_t logged_size(const set *s) {
    kv_stats stats;
    uint64_t size = 0;
    for (uint32_t i = 0; i < NODES; i++)
        if (kv_store_measure(kv_replica_store(s->replicas[i]), &stats) == KV_OK) size += stats.flow_size;
    return size;
}

static uint64_t synced_count(const set *s) {
    uint64_t count = 0;
    for (uint32_t i = 0; i < NODES; i++) count += kv_flow_sync_count(kv_replica_flow(s->replicas[i]));
    return count;
}

static void set_check(set *s, const options *o, const workload *w) {
    size_t first = o->commit_count > o->key_count ? o->commit_count - o->key_count : 0; /* Who wrote each key last. */
    size_t step = (o->commit_count - first + CHECK_COUNT_MAX - 1) / CHECK_COUNT_MAX;
    set_settle(s, w, o->shard_count, set_is_quiet);
    for (uint32_t i = 0; i < NODES; i++) {
        kv_caller *c = kv_replica_caller(s->replicas[i]);
        for (size_t k = first; k < o->commit_count && s->failure == NULL; k += step)
            if (kv_get(c, key_of(w, k), KEY_SIZE) != VALUE_SIZE ||
                memcmp(kv_caller_answer(c)->small, value_of(w, k), VALUE_SIZE) != 0)
                fail(s, "a replica does not hold what was put");
    }
}

/* --- a cell --- */

static int remove_entry(const char *path, const struct stat *status, int kind, struct FTW *place) {
    (void)status;
    (void)kind;
    (void)place;
    return remove(path);
}

static void set_time(const options *o, const workload *w, size_t batch, set *s, figures *out) {
    double commits = (double)o->commit_count, batch_count = (double)((o->commit_count + batch - 1) / batch);
    uint64_t logged = logged_size(s), synced = synced_count(s);
    s->sync = o->sync;
    s->wire_size = 0;
    s->answered = 0;
    memset(s->phase_ns, 0, sizeof s->phase_ns);
    s->segment_ns = s->segment_cpu_ns = 0;
    int64_t wall = clock_ns(CLOCK_MONOTONIC), cpu = clock_ns(CLOCK_THREAD_CPUTIME_ID);
    for (size_t i = 0; i < o->commit_count && s->failure == NULL; i += batch)
        batch_run(s, w, i, o->commit_count - i < batch ? o->commit_count - i : batch);
    cpu = clock_ns(CLOCK_THREAD_CPUTIME_ID) - cpu - s->segment_cpu_ns;
    wall = clock_ns(CLOCK_MONOTONIC) - wall - s->segment_ns;
    *out = (figures){.cpu_ns = (double)cpu / commits,
                     .wall_ns = (double)wall / commits,
                     .segment_ns = (double)s->segment_ns / commits,
                     .wire_size = (double)s->wire_size / (commits * (NODES - 1)) - KEY_SIZE - VALUE_SIZE,
                     .log_size = (double)(logged_size(s) - logged) / (commits * NODES),
                     .sync_count = (double)(synced_count(s) - synced) / (batch_count * NODES)};
    for (int i = 0; i < PHASE_COUNT; i++) out->phase_ns[i] = (double)s->phase_ns[i] / commits;
}

static bool run_repetition(const options *o, const workload *w, bool spread, size_t batch, figures *out) {
    char root[PATH_SIZE];
    set s;
    if (snprintf(root, sizeof root, "%s/set-c", o->directory) >= (int)sizeof root || mkdir(root, 0700) != 0) {
        fprintf(stderr, "kv_replica_bench: %s/set-c: %s\n", o->directory, strerror(errno));
        return false; /* Whatever is there is not ours to remove. */
    }
    bool good = set_open(o, w, root, spread, &s);
    if (good && s.failure == NULL) set_time(o, w, batch, &s, out);
    if (good && s.failure == NULL) set_check(&s, o, w);
    if (good && s.failure != NULL) fprintf(stderr, "kv_replica_bench: %s\n", s.failure);
    good = good && s.failure == NULL;
    set_close(&s);
    return nftw(root, remove_entry, 16, FTW_DEPTH | FTW_PHYS) == 0 && good;
}

static void print_list(const char *name, const figures *all, unsigned count, size_t at) {
    printf(", \"%s\": [", name);
    for (unsigned i = 0; i < count; i++) printf("%s%.1f", i > 0 ? ", " : "", *(const double *)((const char *)&all[i] + at));
    printf("]");
}

static void print_cell(const options *o, bool spread, size_t batch, const figures *all) {
    const figures *last = &all[o->repetition_count - 1];
    printf("{\"owners\": \"%s\", \"batch\": %zu, \"shards\": %" PRIu32 ", \"sync\": %s, \"commits\": %zu, \"keys\": %zu, \"clients\": %zu",
           spread ? "spread" : "one", batch, o->shard_count, o->sync ? "true" : "false", o->commit_count, o->key_count,
           o->client_count);
    print_list("cpu_ns", all, o->repetition_count, offsetof(figures, cpu_ns));
    print_list("wall_ns", all, o->repetition_count, offsetof(figures, wall_ns));
    print_list("segment_ns", all, o->repetition_count, offsetof(figures, segment_ns));
    printf(", \"phase_ns\": {");
    for (int i = 0; i < PHASE_COUNT; i++) printf("%s\"%s\": %.1f", i > 0 ? ", " : "", PHASE_NAMES[i], last->phase_ns[i]);
    printf("}, \"wire_size\": %.1f, \"log_size\": %.1f, \"sync_count\": %.3f}\n", last->wire_size, last->log_size, last->sync_count);
    fflush(stdout);
}

static bool run_cells(const options *o, const workload *w) {
    static const size_t batches[] = {1, 16, 256, 4096};
    figures all[REPETITION_COUNT_MAX];
    for (int spread = 0; spread < 2; spread++) {
        if (o->owners != NULL && (strcmp(o->owners, "spread") == 0) != spread) continue;
        for (size_t b = 0; b < sizeof batches / sizeof *batches; b++) {
            if (o->batch != 0 && b > 0) break;
            size_t batch = o->batch != 0 ? o->batch : batches[b];
            for (unsigned r = 0; r < o->repetition_count; r++)
                if (!run_repetition(o, w, spread != 0, batch, &all[r])) return false;
            print_cell(o, spread != 0, batch, all);
        }
    }
    return true;
}

static bool options_parse(int argc, char **argv, options *o) {
    *o = (options){.commit_count = 300000, .repetition_count = 1, .shard_count = 64, .client_count = CLIENTS_DEFAULT};
    for (int letter; (letter = getopt(argc, argv, "sn:r:b:o:S:k:c:")) != -1;) {
        long number = optarg == NULL ? 0 : strtol(optarg, NULL, 10);
        switch (letter) {
        case 's': o->sync = true; break;
        case 'n': o->commit_count = (size_t)number; break;
        case 'r': o->repetition_count = (unsigned)number; break;
        case 'b': o->batch = (size_t)number; break;
        case 'o': o->owners = optarg; break;
        case 'S': o->shard_count = (uint32_t)number; break;
        case 'k': o->key_count = (size_t)number; break;
        case 'c': o->client_count = (size_t)number; break;
        default: return false;
        }
        if (letter != 's' && letter != 'o' && number < (letter != 'c')) return false;
    }
    if (o->key_count == 0) o->key_count = o->commit_count;
    o->directory = argv[optind];
    bool named = o->owners == NULL || strcmp(o->owners, "one") == 0 || strcmp(o->owners, "spread") == 0;
    return optind + 1 == argc && named && o->repetition_count <= REPETITION_COUNT_MAX && o->shard_count <= KV_SHARDS_MAX;
}

int main(int argc, char **argv) {
    options o;
    workload w;
    if (!options_parse(argc, argv, &o)) {
        fprintf(stderr, "usage: kv_replica_bench [-s] [-n COMMITS] [-r REPETITIONS, 1 to %d] [-b BATCH] [-o one|spread] "
                        "[-S SHARDS, 1 to %d] [-k KEYS] [-c CLIENTS] DIRECTORY\n", REPETITION_COUNT_MAX, KV_SHARDS_MAX);
        return 2;
    }
    bool good = workload_make(&o, &w) && run_cells(&o, &w);
    workload_free(&w);
    return good ? 0 : 1;
}
