/* harness.c -- what the cells of bench/boundary.py cost in C alone: the rest of a figure is cffi's and Python's.
 *
 *     kv_harness DIRECTORY [REPETITIONS]
 *
 * DIRECTORY holds the workload, as `python -m bench boundary --keep` leaves it. Every cell has
 *
 *     <cell>.keys      16-byte keys, one behind the other, in the order of the operations
 *     <cell>.values    100-byte values beside them: what is written, or what a get answers; without this file the
 *                      keys are absent, before a get and after a delete
 *
 * so what is done, in which order and how often is decided in one place, and is not in this file. The sizes of the
 * files say how many. A repetition makes a store in DIRECTORY/store-c, which must not be there, runs the cells on it
 * one after the other, and removes it. The output is one line of JSON a cell: nanoseconds per key, one number a
 * repetition.
 *
 * Timed loops check what calls return and nothing else. Bytes are compared outside the timer: before reads, which
 * also warms the caches, and after writes. Store and durability are those of the Python side: opened with
 * KV_SYNC_NONE, and durable cells ask for it call by call, which is the same path as KV_SYNC_ALWAYS. */
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "kv/store.h"

enum {
    KEY_SIZE = 16,
    VALUE_SIZE = 100,
    MANY = 100,             /* keys per get_many and per batch */
    THREAD_COUNT_MAX = 8,
    CHECK_COUNT_MAX = 50000, /* answers compared byte by byte */
    REPETITION_COUNT_MAX = 100,
    PATH_SIZE = 4096,
};

/* The operations of a cell, or of one of its threads. */
typedef struct work {
    const uint8_t *keys;
    const uint8_t *values; /* NULL: the keys are absent, or will be */
    size_t count;
    kv_operation *operations; /* of a batch cell: the keys and values as kv_batch takes them */
    int durable;
} work;

typedef kv_result (*body)(kv_caller *c, const work *w);

typedef struct cell {
    const char *name;
    body run;
    bool writes;
    bool durable;
    unsigned thread_count;
} cell;

static const uint8_t *key_at(const work *w, size_t i) { return w->keys + i * KEY_SIZE; }
static const uint8_t *value_at(const work *w, size_t i) { return w->values + i * VALUE_SIZE; }
static size_t group_count(const work *w, size_t i) { return w->count - i < MANY ? w->count - i : MANY; }

/* --- what is timed: 0, or the first result that is not what it should be --- */

/* An answer that is no error and yet wrong must not pass for "fine", which is 0. */
static kv_result wrong(kv_result result) { return result < 0 ? result : KV_ECORRUPT; }

static kv_result put_all(kv_caller *c, const work *w) {
    for (size_t i = 0; i < w->count; i++) {
        kv_result result = kv_put(c, key_at(w, i), KEY_SIZE, value_at(w, i), VALUE_SIZE, 0, w->durable);
        if (result <= 0) return wrong(result);
    }
    return 0;
}

static kv_result get_all(kv_caller *c, const work *w) {
    kv_result expected = w->values != NULL ? VALUE_SIZE : kv_ending(KV_ABSENT);
    for (size_t i = 0; i < w->count; i++) {
        kv_result result = kv_get(c, key_at(w, i), KEY_SIZE);
        if (result != expected) return wrong(result);
    }
    return 0;
}

static kv_result get_many_all(kv_caller *c, const work *w) {
    uint32_t key_sizes[MANY];
    int64_t sizes[MANY];
    for (size_t i = 0; i < MANY; i++) key_sizes[i] = KEY_SIZE;
    for (size_t i = 0; i < w->count; i += MANY) {
        size_t count = group_count(w, i);
        kv_many many = {
            .count = count, .keys = key_at(w, i), .keys_size = count * KEY_SIZE, .key_sizes = key_sizes};
        kv_result result = kv_get_many(c, &many, sizes);
        if (result != (kv_result)count * VALUE_SIZE) return wrong(result);
    }
    return 0;
}

static kv_result batch_all(kv_caller *c, const work *w) {
    for (size_t i = 0; i < w->count; i += MANY) {
        kv_result result = kv_batch(c, w->operations + i, group_count(w, i), NULL, 0, w->durable);
        if (result <= 0) return wrong(result);
    }
    return 0;
}

static kv_result delete_all(kv_caller *c, const work *w) {
    for (size_t i = 0; i < w->count; i++) {
        kv_result result = kv_delete(c, key_at(w, i), KEY_SIZE, -1, w->durable);
        if (result <= 0) return wrong(result);
    }
    return 0;
}

/* In this order one store serves all; bench/boundary.py has the same list, and its test compares them. */
static const cell CELLS[] = {
    {"put", put_all, true, false, 1},
    {"get-hit", get_all, false, false, 1},
    {"get-miss", get_all, false, false, 1},
    {"get-many", get_many_all, false, false, 1},
    {"overwrite", put_all, true, false, 1},
    {"batch", batch_all, true, false, 1},
    {"put-fsync", put_all, true, true, 1},
    {"put-fsync-8", put_all, true, true, THREAD_COUNT_MAX},
    {"batch-fsync", batch_all, true, true, 1},
    {"delete", delete_all, true, false, 1},
};
enum { CELL_COUNT = sizeof CELLS / sizeof CELLS[0] };

/* --- the workload --- */

/* Mapped and faulted in: the timed loops must not pay for reading these files. *out NULL: there is no such file. */
static bool file_map(const char *directory, const char *name, const char *suffix, const uint8_t **out, size_t *size) {
    char path[PATH_SIZE];
    struct stat status;
    *out = NULL;
    *size = 0;
    if (snprintf(path, sizeof path, "%s/%s.%s", directory, name, suffix) >= (int)sizeof path) return false;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return errno == ENOENT;
    bool good = fstat(fd, &status) == 0 && status.st_size > 0;
    if (good) {
        void *mapping = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE | MAP_POPULATE, fd, 0);
        good = mapping != MAP_FAILED;
        *out = good ? mapping : NULL;
        *size = good ? (size_t)status.st_size : 0;
    }
    close(fd);
    return good;
}

static void work_unload(work *w) {
    if (w->keys != NULL) munmap((void *)w->keys, w->count * KEY_SIZE);
    if (w->values != NULL) munmap((void *)w->values, w->count * VALUE_SIZE);
    free(w->operations);
    *w = (work){0};
}

static bool operations_make(work *w) {
    w->operations = calloc(w->count, sizeof *w->operations);
    if (w->operations == NULL) return false;
    for (size_t i = 0; i < w->count; i++)
        w->operations[i] = (kv_operation){
            .key = key_at(w, i), .value = value_at(w, i), .value_size = VALUE_SIZE, .key_size = KEY_SIZE};
    return true;
}

static bool work_load(const char *directory, const cell *one, work *w) {
    size_t keys_size = 0, values_size = 0;
    *w = (work){.durable = one->durable};
    bool good = file_map(directory, one->name, "keys", &w->keys, &keys_size) && w->keys != NULL &&
                file_map(directory, one->name, "values", &w->values, &values_size);
    w->count = keys_size / KEY_SIZE;
    good = good && keys_size % KEY_SIZE == 0;
    bool may_lack_values = one->run == get_all || one->run == delete_all;
    good = good && (w->values != NULL ? values_size == w->count * VALUE_SIZE : may_lack_values);
    good = good && (one->run != batch_all || operations_make(w));
    if (!good) fprintf(stderr, "kv_harness: %s: files of %s are missing or of a wrong size\n", directory, one->name);
    return good;
}

/* The part of one of several threads: neighbours stay together. */
static work work_share(const work *w, size_t index, size_t share_count) {
    size_t first = w->count * index / share_count, end = w->count * (index + 1) / share_count;
    return (work){.keys = key_at(w, first),
                  .values = w->values != NULL ? value_at(w, first) : NULL,
                  .operations = w->operations != NULL ? w->operations + first : NULL,
                  .count = end - first,
                  .durable = w->durable};
}

/* --- around the timer --- */

/* Every `step`-th key from `first` on holds its value, or is absent where there are none. */
static kv_result check(kv_caller *c, const work *w, size_t first, size_t step) {
    const uint8_t *answer = kv_caller_answer(c)->small;
    kv_result expected = w->values != NULL ? VALUE_SIZE : kv_ending(KV_ABSENT);
    for (size_t i = first; i < w->count; i += step) {
        kv_result result = kv_get(c, key_at(w, i), KEY_SIZE);
        if (result != expected) return wrong(result);
        if (w->values != NULL && memcmp(answer, value_at(w, i), VALUE_SIZE) != 0) return KV_ECORRUPT;
    }
    return 0;
}

static kv_result check_last(kv_caller *c, const work *w) {
    return check(c, w, w->count > CHECK_COUNT_MAX ? w->count - CHECK_COUNT_MAX : 0, 1);
}

static kv_result check_spread(kv_caller *c, const work *w) {
    return check(c, w, 0, (w->count + CHECK_COUNT_MAX - 1) / CHECK_COUNT_MAX);
}

static int64_t own_us(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * INT64_C(1000000) + usage.ru_utime.tv_usec +
           usage.ru_stime.tv_usec;
}

/* Waits for background work by the rule of bench/load.py: until the process uses no CPU, then for dirty pages. */
static void settle(void) {
    struct timespec pause = {.tv_nsec = 30 * 1000 * 1000};
    for (unsigned quiet_count = 0; quiet_count < 3;) {
        int64_t before = own_us();
        nanosleep(&pause, NULL);
        quiet_count = own_us() - before < 2000 ? quiet_count + 1 : 0;
    }
    sync();
}

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

/* --- a cell --- */

typedef struct runner {
    pthread_t thread;
    pthread_barrier_t *barrier;
    kv_caller *caller;
    body run;
    work share;
    int64_t started_ns, ended_ns;
    kv_result result;
} runner;

static void *runner_main(void *context) {
    runner *r = context;
    pthread_barrier_wait(r->barrier);
    r->started_ns = now_ns();
    r->result = r->run(r->caller, &r->share);
    r->ended_ns = now_ns();
    return NULL;
}

/* From the moment all threads are ready until the last one is done. A thread that cannot be started ends the
 * program: the others wait for it at the barrier. */
static kv_result time_threads(runner *runners, unsigned count, int64_t *out_ns) {
    pthread_barrier_t barrier;
    kv_result result = 0;
    KV_ASSERT(pthread_barrier_init(&barrier, NULL, count) == 0);
    for (unsigned i = 0; i < count; i++) {
        runners[i].barrier = &barrier;
        KV_ASSERT(pthread_create(&runners[i].thread, NULL, runner_main, &runners[i]) == 0);
    }
    for (unsigned i = 0; i < count; i++) pthread_join(runners[i].thread, NULL);
    pthread_barrier_destroy(&barrier);
    int64_t started_ns = runners[0].started_ns, ended_ns = runners[0].ended_ns;
    for (unsigned i = 0; i < count; i++) {
        if (runners[i].started_ns < started_ns) started_ns = runners[i].started_ns;
        if (runners[i].ended_ns > ended_ns) ended_ns = runners[i].ended_ns;
        if (result == 0) result = runners[i].result;
    }
    *out_ns = ended_ns - started_ns;
    return result;
}

static kv_result cell_time(kv_store *store, const cell *one, const work *w, int64_t *out_ns) {
    runner runners[THREAD_COUNT_MAX] = {0};
    kv_result result = 0;
    for (unsigned i = 0; i < one->thread_count && result == 0; i++) {
        runners[i].run = one->run;
        runners[i].share = work_share(w, i, one->thread_count);
        result = kv_caller_new(store, &runners[i].caller);
    }
    if (result == 0 && !one->writes) result = check_last(runners[0].caller, w);
    if (result == 0) result = time_threads(runners, one->thread_count, out_ns);
    if (result == 0 && one->writes) result = check_spread(runners[0].caller, w);
    for (unsigned i = 0; i < one->thread_count; i++)
        if (runners[i].caller != NULL) kv_caller_free(runners[i].caller);
    return result;
}

/* --- a repetition --- */

static int remove_entry(const char *path, const struct stat *status, int kind, struct FTW *place) {
    (void)status;
    (void)kind;
    (void)place;
    return remove(path);
}

static bool store_open(const char *path, kv_store **out) {
    kv_options options = {.sync = KV_SYNC_NONE, .background = true};
    kv_io *io;
    kv_fault fault = {0};
    kv_status status = kv_io_posix_new(path, false, &io);
    if (status == KV_OK) status = kv_store_open(io, &options, NULL, 0, &fault, out);
    if (status != KV_OK) fprintf(stderr, "kv_harness: %s: %s %s\n", path, kv_status_name(status), fault.what);
    return status == KV_OK;
}

/* Nanoseconds per key of every cell, into the column of this repetition. */
static bool run_cells(kv_store *store, const work *works, double (*ns)[REPETITION_COUNT_MAX], unsigned repetition) {
    for (unsigned i = 0; i < CELL_COUNT; i++) {
        int64_t elapsed_ns = 0;
        settle();
        kv_result result = cell_time(store, &CELLS[i], &works[i], &elapsed_ns);
        if (result != 0) {
            fprintf(stderr, "kv_harness: %s: %s\n", CELLS[i].name, kv_status_name((int)result));
            return false;
        }
        ns[i][repetition] = (double)elapsed_ns / (double)works[i].count;
    }
    return true;
}

static bool run_repetition(const char *directory, const work *works, double (*ns)[REPETITION_COUNT_MAX],
                           unsigned repetition) {
    char path[PATH_SIZE];
    kv_store *store = NULL;
    kv_fault fault;
    if (snprintf(path, sizeof path, "%s/store-c", directory) >= (int)sizeof path || mkdir(path, 0700) != 0) {
        fprintf(stderr, "kv_harness: %s/store-c: %s\n", directory, strerror(errno));
        return false; /* Whatever is there is not ours to remove. */
    }
    bool good = store_open(path, &store) && run_cells(store, works, ns, repetition) &&
                kv_store_close(store, &fault) == KV_OK;
    kv_store_free(store);
    return nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS) == 0 && good;
}

static void print_cells(const work *works, double (*ns)[REPETITION_COUNT_MAX], unsigned repetition_count) {
    for (unsigned i = 0; i < CELL_COUNT; i++) {
        printf("{\"cell\": \"%s\", \"operations\": %zu, \"ns\": [", CELLS[i].name, works[i].count);
        for (unsigned r = 0; r < repetition_count; r++) printf("%s%.3f", r > 0 ? ", " : "", ns[i][r]);
        printf("]}\n");
    }
}

int main(int argc, char **argv) {
    double ns[CELL_COUNT][REPETITION_COUNT_MAX] = {0};
    work works[CELL_COUNT] = {0};
    bool good = true;
    long repetition_count = argc > 2 ? strtol(argv[2], NULL, 10) : 1;
    if (argc < 2 || argc > 3 || repetition_count < 1 || repetition_count > REPETITION_COUNT_MAX) {
        fprintf(stderr, "usage: kv_harness DIRECTORY [REPETITIONS, 1 to %d]\n", REPETITION_COUNT_MAX);
        return 2;
    }
    for (unsigned i = 0; i < CELL_COUNT && good; i++) good = work_load(argv[1], &CELLS[i], &works[i]);
    for (unsigned r = 0; r < repetition_count && good; r++) good = run_repetition(argv[1], works, ns, r);
    if (good) print_cells(works, ns, (unsigned)repetition_count);
    for (unsigned i = 0; i < CELL_COUNT; i++) work_unload(&works[i]);
    return good ? 0 : 1;
}
