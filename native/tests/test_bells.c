/* test_bells.c -- event loops are told: whoever asks for durability or for the next write is rung, in every mode, while
 * others write, ask, come, go, and close. Each loop here is a thread that polls its eventfd; a ring that is lost is a
 * poll that times out. Meant for the sanitizers above all; what coroutines make of it is tested from Python. */
#include <ftw.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "check.h"
#include "kv/store.h"

enum { LOOPS = 4, WRITERS = 2, RING_MS_MAX = 20000, HOUR_MS = 3600 * 1000 };

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
enum { ROUNDS = 100 };
#else
enum { ROUNDS = 1000 };
#endif

static char directory[64];

static int remove_one(const char *path, const struct stat *info, int type, struct FTW *where) {
    (void)info;
    (void)type;
    (void)where;
    return remove(path);
}

static void directory_remove(void) { nftw(directory, remove_one, 16, FTW_DEPTH | FTW_PHYS); }

static kv_store *open_store_for(int32_t sync, int32_t sync_ms_max) {
    kv_io *io;
    kv_fault fault;
    kv_store *store = NULL;
    kv_options options = {.sync = sync, .sync_ms_max = sync_ms_max, .background = 1};
    snprintf(directory, sizeof directory, "kvtest-XXXXXX");
    CHECK(mkdtemp(directory) != NULL);
    CHECK_EQ(kv_io_posix_new(directory, true, &io), KV_OK);
    CHECK_EQ(kv_store_open(io, &options, NULL, 0, &fault, &store), KV_OK);
    return store;
}

/* A group commit that nobody asks for is an hour away: what is durable was asked for. */
static kv_store *open_store(int32_t sync) { return open_store_for(sync, HOUR_MS); }

static void close_store(kv_store *store) {
    kv_fault fault;
    CHECK_EQ(kv_store_close(store, &fault), KV_OK);
    kv_store_free(store);
    directory_remove();
}

typedef struct loop {
    kv_store *store;
    pthread_t thread;
    int number;
    int failures;
} loop;

static bool rung(int fd) {
    uint64_t count;
    struct pollfd one = {.fd = fd, .events = POLLIN};
    return poll(&one, 1, RING_MS_MAX) == 1 && read(fd, &count, sizeof count) == sizeof count;
}

static kv_result put(kv_caller *c, int number, int durable) {
    uint8_t key[] = {'k', (uint8_t)('0' + number)};
    return kv_put(c, key, sizeof key, key, sizeof key, 0, durable);
}

/* Asks until it is durable; the first error. */
static kv_result await_durable(kv_caller *c, int fd) {
    kv_result upto = kv_tail(c), durable = upto;
    if (upto < 0) return upto;
    while ((durable = kv_ask_durable(c, (uint64_t)upto)) >= 0 && durable < upto)
        if (!rung(fd)) return -KV_TIMEOUT;
    return durable;
}

static void run(kv_store *store, void *(*body)(void *), loop loops[LOOPS]) {
    for (int i = 0; i < LOOPS; i++) {
        loops[i] = (loop){.store = store, .number = i};
        CHECK_EQ(pthread_create(&loops[i].thread, NULL, body, &loops[i]), 0);
    }
}

static void join(loop loops[LOOPS]) {
    for (int i = 0; i < LOOPS; i++) {
        pthread_join(loops[i].thread, NULL);
        CHECK_EQ(loops[i].failures, 0);
    }
}

/* --- durability --- */

static void *write_and_ask(void *argument) {
    loop *l = argument;
    kv_caller *c;
    int fd = eventfd(0, EFD_NONBLOCK);
    l->failures += kv_caller_new(l->store, &c) != KV_OK;
    for (int i = 0; i < ROUNDS; i++) {
        /* Loops come and go. */
        if (i % 8 == 0) l->failures += kv_store_notify(l->store, fd) != KV_OK;
        l->failures += put(c, l->number, KV_LATER) <= 0;
        l->failures += await_durable(c, fd) < 0;
        if (i % 8 == 7) kv_store_unnotify(l->store, fd);
    }
    kv_store_unnotify(l->store, fd);
    close(fd);
    kv_caller_free(c);
    return NULL;
}

TEST(who_asks_is_rung_when_it_is_durable) {
    const int32_t modes[] = {KV_SYNC_NONE, KV_SYNC_BATCH, KV_SYNC_ALWAYS};
    for (size_t i = 0; i < sizeof modes / sizeof modes[0]; i++) {
        loop loops[LOOPS];
        kv_stats stats;
        kv_store *store = open_store(modes[i]);
        run(store, write_and_ask, loops);
        join(loops);
        CHECK_EQ(kv_store_measure(store, &stats), KV_OK);
        CHECK_EQ(stats.unsynced_size, 0);
        CHECK(stats.sync_count > 0 && stats.sync_count <= LOOPS * ROUNDS);
        close_store(store);
    }
}

TEST(a_write_that_is_asked_for_later_never_syncs) {
    const int32_t modes[] = {KV_SYNC_NONE, KV_SYNC_BATCH, KV_SYNC_ALWAYS};
    for (size_t i = 0; i < sizeof modes / sizeof modes[0]; i++) {
        kv_caller *c;
        kv_stats stats;
        kv_store *store = open_store(modes[i]);
        CHECK_EQ(kv_caller_new(store, &c), KV_OK);
        CHECK(put(c, 0, KV_LATER) > 0);
        CHECK_EQ(kv_store_measure(store, &stats), KV_OK);
        CHECK_EQ(stats.sync_count, 0);
        CHECK(kv_ask_durable(c, 0) < kv_tail(c));
        kv_caller_free(c);
        close_store(store);
    }
}

/* With KV_SYNC_NONE the syncer is there for those who ask: nobody else's writes are synced behind them. */
TEST(asking_once_does_not_make_every_write_durable) {
    kv_caller *c;
    kv_stats before, after;
    int fd = eventfd(0, EFD_NONBLOCK);
    kv_store *store = open_store_for(KV_SYNC_NONE, 1);
    CHECK_EQ(kv_caller_new(store, &c), KV_OK);
    CHECK_EQ(kv_store_notify(store, fd), KV_OK);
    put(c, 0, KV_LATER);
    CHECK(await_durable(c, fd) > 0);
    CHECK_EQ(kv_store_measure(store, &before), KV_OK);
    put(c, 0, 0);
    usleep(50 * 1000);
    CHECK_EQ(kv_store_measure(store, &after), KV_OK);
    CHECK_EQ(after.sync_count, before.sync_count);
    CHECK(after.unsynced_size > 0);
    kv_store_unnotify(store, fd);
    close(fd);
    kv_caller_free(c);
    close_store(store);
}

/* --- the next write --- */

static _Atomic int writers_left;

static void *write_on(void *argument) {
    kv_caller *c;
    if (kv_caller_new(argument, &c) != KV_OK) return NULL;
    for (int i = 0; i < ROUNDS; i++) put(c, LOOPS + i % WRITERS, 0);
    writers_left--;
    put(c, LOOPS, 0);
    kv_caller_free(c);
    return NULL;
}

/* Sleeps until it is rung; in the end it must have seen the newest version, without ever looking by itself. */
static void *watch(void *argument) {
    loop *l = argument;
    kv_caller *c;
    const uint8_t key[] = {'k', '0' + LOOPS};
    int fd = eventfd(0, EFD_NONBLOCK);
    l->failures += kv_caller_new(l->store, &c) != KV_OK || kv_store_notify(l->store, fd) != KV_OK;
    kv_result written = 0, before = -1;
    for (;;) {
        written = kv_ask_written(c);
        bool last = writers_left == 0; /* Behind the asking: if not, a write is still to come. */
        l->failures += written < before || kv_version(c, key, sizeof key) < 0;
        if (last || written < 0) break;
        before = written;
        l->failures += !rung(fd);
    }
    kv_store_unnotify(l->store, fd);
    close(fd);
    kv_caller_free(c);
    return NULL;
}

TEST(the_next_write_rings) {
    loop loops[LOOPS];
    pthread_t writers[WRITERS];
    kv_store *store = open_store(KV_SYNC_BATCH);
    writers_left = WRITERS;
    run(store, watch, loops);
    for (int i = 0; i < WRITERS; i++) CHECK_EQ(pthread_create(&writers[i], NULL, write_on, store), 0);
    for (int i = 0; i < WRITERS; i++) pthread_join(writers[i], NULL);
    join(loops);
    close_store(store);
}

TEST(an_asking_is_used_up_by_one_ring) {
    kv_caller *c;
    uint64_t count = 0;
    int fd = eventfd(0, EFD_NONBLOCK);
    kv_store *store = open_store(KV_SYNC_NONE);
    CHECK_EQ(kv_caller_new(store, &c), KV_OK);
    CHECK_EQ(kv_store_notify(store, fd), KV_OK);
    kv_result first = kv_ask_written(c);
    CHECK_EQ(kv_ask_written(c), first);
    for (int i = 0; i < 5; i++) put(c, 0, 0);
    CHECK_EQ(read(fd, &count, sizeof count), sizeof count);
    CHECK_EQ(count, 1);
    CHECK(kv_ask_written(c) > first);
    kv_store_unnotify(store, fd);
    put(c, 0, 0);
    CHECK_EQ(read(fd, &count, sizeof count), -1);
    close(fd);
    kv_caller_free(c);
    close_store(store);
}

/* --- the end --- */

static void *ask_until_closed(void *argument) {
    loop *l = argument;
    kv_caller *c;
    kv_result result = 0;
    int fd = eventfd(0, EFD_NONBLOCK);
    if (kv_caller_new(l->store, &c) != KV_OK || kv_store_notify(l->store, fd) != KV_OK) return NULL;
    while (result >= 0) {
        if (l->number % 2 == 0) {
            put(c, l->number, KV_LATER);
            result = await_durable(c, fd);
        } else {
            result = kv_ask_written(c);
            if (result >= 0 && !rung(fd)) result = -KV_TIMEOUT;
        }
    }
    l->failures += result != KV_ECLOSED;
    kv_store_unnotify(l->store, fd);
    close(fd);
    kv_caller_free(c);
    return NULL;
}

/* The first ring is for who waits for a write or a commit, the second for who holds the eventfd. */
TEST(close_rings_when_writes_are_refused_and_when_everything_is) {
    kv_caller *c;
    uint64_t count = 0;
    int fd = eventfd(0, EFD_NONBLOCK);
    kv_store *store = open_store(KV_SYNC_NONE);
    CHECK_EQ(kv_caller_new(store, &c), KV_OK);
    CHECK_EQ(kv_store_notify(store, fd), KV_OK);
    put(c, 0, KV_LATER);
    kv_store_quiesce(store);
    CHECK(rung(fd));
    CHECK_EQ(kv_ask_durable(c, (uint64_t)kv_tail(c)), KV_ECLOSED);
    CHECK_EQ(kv_ask_written(c), KV_ECLOSED);
    CHECK(kv_ask_durable(c, 0) > 0);
    kv_fault fault;
    CHECK_EQ(kv_store_close(store, &fault), KV_OK);
    CHECK_EQ(read(fd, &count, sizeof count), sizeof count);
    CHECK_EQ(count, 2); /* It refuses writes once more, to be sure. */
    CHECK_EQ(kv_ask_durable(c, 0), KV_ECLOSED);
    CHECK_EQ(kv_tail(c), KV_ECLOSED);
    kv_store_unnotify(store, fd);
    close(fd);
    kv_store_free(store);
    directory_remove();
}

TEST(close_rings_for_everybody) {
    for (int round = 0; round < 10; round++) {
        loop loops[LOOPS];
        kv_fault fault;
        kv_store *store = open_store(round % 2 == 0 ? KV_SYNC_NONE : KV_SYNC_BATCH);
        run(store, ask_until_closed, loops);
        usleep(5000);
        CHECK_EQ(kv_store_close(store, &fault), KV_OK);
        join(loops);
        CHECK_EQ(kv_store_notify(store, 0), KV_ECLOSED);
        kv_store_free(store);
        directory_remove();
    }
}

int main(void) {
    RUN(who_asks_is_rung_when_it_is_durable);
    RUN(a_write_that_is_asked_for_later_never_syncs);
    RUN(asking_once_does_not_make_every_write_durable);
    RUN(the_next_write_rings);
    RUN(an_asking_is_used_up_by_one_ring);
    RUN(close_rings_when_writes_are_refused_and_when_everything_is);
    RUN(close_rings_for_everybody);
    return check_report();
}
