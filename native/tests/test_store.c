/* test_store.c -- the store on a real directory with its threads running: what holds while eight threads write, read,
 * wait, checkpoint and close at the same time. Meant for the sanitizers above all; what single calls promise is tested
 * from Python. */
#include <ftw.h>
#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include "check.h"
#include "kv/store.h"

enum { THREADS = 8, KEYS = 64 };

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
enum { ROUNDS = 1500 };
#else
enum { ROUNDS = 15000 };
#endif

static char directory[64];

static void directory_make(void) {
    snprintf(directory, sizeof directory, "kvtest-XXXXXX");
    CHECK(mkdtemp(directory) != NULL);
}

static int remove_one(const char *path, const struct stat *info, int type, struct FTW *where) {
    (void)info;
    (void)type;
    (void)where;
    return remove(path);
}

static void directory_remove(void) { nftw(directory, remove_one, 16, FTW_DEPTH | FTW_PHYS); }

static kv_store *open_store(kv_options options, const uint8_t *checkpoint, size_t size) {
    kv_io *io;
    kv_fault fault;
    kv_store *store = NULL;
    CHECK_EQ(kv_io_posix_new(directory, true, &io), KV_OK);
    kv_status status = kv_store_open(io, &options, checkpoint, size, &fault, &store);
    CHECK_EQ(status, KV_OK);
    if (status != KV_OK) printf("%s\n", fault.what);
    return store;
}

static void close_store(kv_store *store) {
    kv_fault fault;
    CHECK_EQ(kv_store_close(store, &fault), KV_OK);
    kv_store_free(store);
}

typedef struct worker {
    kv_store *store;
    pthread_t thread;
    int number;
    int failures;
    uint64_t written;
} worker;

static kv_result put_text(kv_caller *c, const char *key, const void *value, size_t size) {
    return kv_put(c, (const uint8_t *)key, strlen(key), value, size, 0, 0);
}

static void run(kv_store *store, void *(*body)(void *), worker *workers) {
    for (int i = 0; i < THREADS; i++) {
        workers[i] = (worker){.store = store, .number = i};
        CHECK_EQ(pthread_create(&workers[i].thread, NULL, body, &workers[i]), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(workers[i].thread, NULL);
        CHECK_EQ(workers[i].failures, 0);
    }
}

/* --- no lost update --- */

static void *count_up(void *argument) {
    worker *w = argument;
    kv_caller *c;
    if (kv_caller_new(w->store, &c) != KV_OK) return NULL;
    for (int i = 0; i < ROUNDS; i++) w->failures += kv_incr(c, (const uint8_t *)"counter", 7, 1, 0, i % 500 == 0) <= 0;
    kv_caller_free(c);
    return NULL;
}

TEST(increments_of_all_threads_add_up) {
    worker workers[THREADS];
    directory_make();
    kv_store *store = open_store((kv_options){.sync = KV_SYNC_BATCH, .background = 1}, NULL, 0);
    run(store, count_up, workers);
    kv_caller *c;
    CHECK_EQ(kv_caller_new(store, &c), KV_OK);
    kv_result size = kv_get(c, (const uint8_t *)"counter", 7);
    char text[32] = {0};
    if (size > 0) memcpy(text, kv_caller_answer(c)->small, (size_t)size);
    CHECK_EQ(atol(text), (long)THREADS * ROUNDS);
    close_store(store);
    directory_remove();
}

/* --- no torn read, while the index grows, segments roll and checkpoints are made --- */

static size_t make_value(uint64_t seed, int key, uint64_t *value) {
    size_t words = 1 + (size_t)(seed * 7 + (uint64_t)key) % 40;
    for (size_t i = 0; i < words; i++) value[i] = seed << 8 | (uint64_t)key;
    return words * 8;
}

static int wrong_value(const uint8_t *bytes, kv_result size, int key) {
    uint64_t first, word, expected[64];
    if (size < 8 || size % 8 != 0) return 1;
    memcpy(&first, bytes, 8);
    if ((int)(first & 255) != key || make_value(first >> 8, key, expected) != (size_t)size) return 1;
    for (kv_result at = 0; at < size; at += 8) {
        memcpy(&word, bytes + at, 8);
        if (word != first) return 1;
    }
    return 0;
}

static void *write_and_read(void *argument) {
    worker *w = argument;
    kv_caller *c;
    uint64_t value[64], state = (uint64_t)w->number + 1;
    char key[32], fresh[32];
    if (kv_caller_new(w->store, &c) != KV_OK) return NULL;
    for (int i = 0; i < ROUNDS; i++) {
        state = state * 6364136223846793005ULL + 1442695040888963407ULL;
        int which = (int)(state >> 40) % KEYS;
        snprintf(key, sizeof key, "key%d", which);
        if (state >> 62 == 0) {
            w->failures += put_text(c, key, value, make_value((uint64_t)i, which, value)) <= 0;
            snprintf(fresh, sizeof fresh, "fresh%d-%d", w->number, i);
            w->failures += put_text(c, fresh, "x", 1) <= 0;
        } else {
            kv_result size = kv_get(c, (const uint8_t *)key, strlen(key));
            if (size != -KV_ABSENT) w->failures += wrong_value(kv_caller_answer(c)->small, size, which);
        }
    }
    kv_caller_free(c);
    return NULL;
}

static uint8_t description[1 << 16];
static size_t description_size;

static void make_checkpoint(kv_store *store) {
    kv_checkpoint *k;
    const uint8_t *bytes;
    size_t size;
    kv_status status = kv_checkpoint_begin(store, &k);
    if (status == KV_EOF) return;
    CHECK_EQ(status, KV_OK);
    while ((status = kv_checkpoint_step(k)) == KV_MORE) {}
    CHECK_EQ(status, KV_EOF);
    CHECK_EQ(kv_checkpoint_describe(k, &bytes, &size), KV_OK);
    CHECK(size <= sizeof description);
    memcpy(description, bytes, size);
    description_size = size;
    CHECK_EQ(kv_checkpoint_published(k), KV_OK);
    kv_checkpoint_free(k);
}

static _Atomic int keep_going;

static void *checkpoint_again(void *argument) {
    while (keep_going) {
        make_checkpoint(argument);
        usleep(3000);
    }
    return NULL;
}

TEST(reads_are_whole_while_checkpoints_are_made) {
    worker workers[THREADS];
    pthread_t checkpoints;
    kv_stats before, after;
    directory_make();
    kv_options options = {.sync = KV_SYNC_BATCH, .background = 1, .segment_size_min = 1 << 16, .segment_size_max = 1 << 18};
    kv_store *store = open_store(options, NULL, 0);
    keep_going = 1;
    CHECK_EQ(pthread_create(&checkpoints, NULL, checkpoint_again, store), 0);
    run(store, write_and_read, workers);
    keep_going = 0;
    pthread_join(checkpoints, NULL);
    kv_store_quiesce(store);
    make_checkpoint(store);
    CHECK_EQ(kv_store_measure(store, &before), KV_OK);
    close_store(store);

    /* From the checkpoint and from the flow alone: the same counters. In this order: without one, its files go. */
    for (int with = 1; with >= 0; with--) {
        store = open_store(options, with ? description : NULL, with ? description_size : 0);
        CHECK_EQ(kv_store_measure(store, &after), KV_OK);
        CHECK_EQ(after.used_checkpoint, with);
        CHECK_EQ(after.key_count, before.key_count);
        CHECK_EQ(after.live_size, before.live_size);
        close_store(store);
    }
    directory_remove();
}

/* --- group commit --- */

static void *put_durably(void *argument) {
    worker *w = argument;
    kv_caller *c;
    char key[32];
    if (kv_caller_new(w->store, &c) != KV_OK) return NULL;
    for (int i = 0; i < 200; i++) {
        snprintf(key, sizeof key, "d%d-%d", w->number, i);
        w->failures += kv_put(c, (const uint8_t *)key, strlen(key), (const uint8_t *)"v", 1, 0, 1) <= 0;
    }
    kv_caller_free(c);
    return NULL;
}

TEST(durable_writes_of_several_threads_share_a_sync) {
    worker workers[THREADS];
    kv_stats stats;
    directory_make();
    kv_store *store = open_store((kv_options){.sync = KV_SYNC_NONE, .background = 1}, NULL, 0);
    run(store, put_durably, workers);
    CHECK_EQ(kv_store_measure(store, &stats), KV_OK);
    CHECK_EQ(stats.unsynced_size, 0);
    CHECK(stats.sync_count >= 1 && stats.sync_count <= THREADS * 200);
    close_store(store);
    directory_remove();
}

/* --- waiting --- */

static void *wait_for_news(void *argument) {
    worker *w = argument;
    kv_caller *c;
    uint64_t version = 0;
    if (kv_caller_new(w->store, &c) != KV_OK) return NULL;
    for (int i = 0; i < 20; i++) {
        kv_result next = kv_wait(c, (const uint8_t *)"news", 4, version, 20000);
        w->failures += next <= (kv_result)version;
        version = (uint64_t)next;
    }
    kv_caller_free(c);
    return NULL;
}

static void *tell_news(void *argument) {
    kv_caller *c;
    if (kv_caller_new(argument, &c) != KV_OK) return NULL;
    while (keep_going) {
        put_text(c, "news", "n", 1);
        usleep(200);
    }
    kv_caller_free(c);
    return NULL;
}

TEST(every_waiter_hears_of_every_kind_of_news) {
    worker workers[THREADS];
    pthread_t teller;
    directory_make();
    kv_store *store = open_store((kv_options){.sync = KV_SYNC_BATCH, .background = 1}, NULL, 0);
    keep_going = 1;
    CHECK_EQ(pthread_create(&teller, NULL, tell_news, store), 0);
    run(store, wait_for_news, workers);
    keep_going = 0;
    pthread_join(teller, NULL);
    close_store(store);
    directory_remove();
}

/* --- close overlaps with everything --- */

static void *anything(void *argument) {
    worker *w = argument;
    kv_caller *c;
    kv_result result = 0;
    if (kv_caller_new(w->store, &c) != KV_OK) return NULL;
    char key[16];
    snprintf(key, sizeof key, "k%d", w->number);
    while (result != KV_ECLOSED) {
        const uint8_t *k = (const uint8_t *)key;
        size_t size = strlen(key);
        switch (w->number % 6) {
        case 0: result = kv_put(c, k, size, k, size, 0, 0); break;
        case 1: result = kv_put(c, k, size, k, size, 0, 1); break;
        case 2: result = kv_get(c, k, size); break;
        case 3: result = kv_scan(c, &(kv_range){.count_max = 4, .with_values = 1}, &(kv_page){0}); break;
        case 4: result = kv_wait(c, k, size, 1u << 30, 50); break;
        default: result = kv_sync(c); break;
        }
        w->failures += result < 0 && result != KV_ECLOSED && result != -KV_ABSENT;
        w->written++;
    }
    kv_caller_free(c);
    return NULL;
}

static void *close_soon(void *argument) {
    kv_fault fault;
    usleep(20000);
    kv_store_close(argument, &fault);
    return NULL;
}

TEST(close_waits_for_who_is_inside_and_refuses_who_comes_later) {
    for (int round = 0; round < 10; round++) {
        worker workers[THREADS];
        pthread_t closer;
        directory_make();
        kv_store *store = open_store((kv_options){.sync = KV_SYNC_BATCH, .background = 1}, NULL, 0);
        CHECK_EQ(pthread_create(&closer, NULL, close_soon, store), 0);
        run(store, anything, workers);
        pthread_join(closer, NULL);
        kv_store_free(store);
        directory_remove();
    }
}

/* --- scans beside writers and checkpoints --- */

enum { STABLE_COUNT = 300 };

static size_t stable_key(int number, char key[32]) { return (size_t)snprintf(key, 32, "k%04d", number * 7); }

/* Keys come and go between those that stay. */
static void *come_and_go(void *argument) {
    worker *w = argument;
    kv_caller *c;
    uint64_t state = (uint64_t)w->number + 77;
    char key[32];
    if (kv_caller_new(w->store, &c) != KV_OK) return NULL;
    for (int i = 0; i < ROUNDS; i++) {
        state = state * 6364136223846793005ULL + 1442695040888963407ULL;
        int size = snprintf(key, sizeof key, "k%04dx%d", (int)(state >> 33) % 2100, (int)(state >> 60));
        kv_result result = state >> 40 & 1 ? kv_put(c, (const uint8_t *)key, (size_t)size, (const uint8_t *)key, 3, 0, 0)
                                           : kv_delete(c, (const uint8_t *)key, (size_t)size, -1, 0);
        w->failures += result <= 0 && result != -KV_ABSENT;
    }
    kv_caller_free(c);
    return NULL;
}

/* 0: everything that stays was listed once and in order, and so was everything else. */
static int scan_all(kv_caller *c, int reverse, int with_values) {
    uint8_t last[64], bound[65];
    size_t last_size = 0;
    int seen = 0;
    kv_range range = {.count_max = 50, .reverse = reverse, .with_values = with_values};
    kv_page page = {.more = 1};
    while (page.more) {
        kv_result size = kv_scan(c, &range, &page);
        if (size < 0) return 1;
        const uint8_t *bytes = size <= KV_SMALL_SIZE ? kv_caller_answer(c)->small : kv_caller_answer(c)->large;
        for (uint64_t i = 0; i < page.count; i++) {
            uint32_t key_size = page.sizes[2 * i];
            size_t common = key_size < last_size ? key_size : last_size;
            int order = memcmp(bytes, last, common);
            if (order == 0) order = (key_size > last_size) - (key_size < last_size);
            if (last_size != 0 && (reverse ? order >= 0 : order <= 0)) return 1;
            memcpy(last, bytes, last_size = key_size);
            char expected[32];
            if (key_size == 5 && stable_key(reverse ? STABLE_COUNT - 1 - seen : seen, expected) != 0) {
                if (memcmp(bytes, expected, 5) != 0) return 1;
                seen++;
            }
            bytes += key_size + page.sizes[2 * i + 1];
        }
        memcpy(bound, bytes, page.resume_size);
        bound[page.resume_size] = 0;
        if (reverse) range.stop = bound, range.stop_size = page.resume_size;
        else range.start = bound, range.start_size = page.resume_size + 1;
    }
    return seen != STABLE_COUNT;
}

static void *scan_again(void *argument) {
    worker *w = argument;
    kv_caller *c;
    if (kv_caller_new(w->store, &c) != KV_OK) return NULL;
    for (int i = 0; keep_going; i++) w->failures += scan_all(c, i % 2, i / 2 % 2);
    kv_caller_free(c);
    return NULL;
}

TEST(scans_list_what_stays_once_and_in_order) {
    worker workers[THREADS], scanner;
    pthread_t checkpoints;
    kv_caller *c;
    char key[32];
    directory_make();
    kv_options options = {.sync = KV_SYNC_BATCH, .background = 1, .segment_size_min = 1 << 16, .segment_size_max = 1 << 18};
    kv_store *store = open_store(options, NULL, 0);
    CHECK_EQ(kv_caller_new(store, &c), KV_OK);
    for (int i = STABLE_COUNT; i-- > 0;) {
        stable_key(i, key);
        CHECK(put_text(c, key, "stays", 5) > 0);
    }
    scanner = (worker){.store = store};
    keep_going = 1;
    CHECK_EQ(pthread_create(&checkpoints, NULL, checkpoint_again, store), 0);
    CHECK_EQ(pthread_create(&scanner.thread, NULL, scan_again, &scanner), 0);
    run(store, come_and_go, workers);
    keep_going = 0;
    pthread_join(checkpoints, NULL);
    pthread_join(scanner.thread, NULL);
    CHECK_EQ(scanner.failures, 0);
    CHECK_EQ(scan_all(c, 0, 1), 0);
    make_checkpoint(store);
    kv_caller_free(c);
    close_store(store);
    store = open_store(options, description, description_size);
    CHECK_EQ(kv_caller_new(store, &c), KV_OK);
    CHECK_EQ(scan_all(c, 1, 1), 0);
    close_store(store);
    directory_remove();
}

/* --- transactions: expectations, and reads of one moment --- */

static kv_expectation expect_text(const char *key, uint64_t version) {
    return (kv_expectation){.key = (const uint8_t *)key, .key_size = (uint32_t)strlen(key), .version = version};
}

static kv_result get_with(kv_caller *c, const char *key, const kv_expectation *all, size_t count, uint64_t *sequence) {
    return kv_get_with(c, (const uint8_t *)key, strlen(key), all, count, sequence);
}

TEST(a_batch_is_written_only_if_all_that_was_expected_holds) {
    directory_make();
    kv_store *store = open_store((kv_options){.sync = KV_SYNC_NONE, .inline_size_max = 100}, NULL, 0);
    kv_caller *c;
    CHECK_EQ(kv_caller_new(store, &c), KV_OK);
    kv_answer *answer = kv_caller_answer(c);
    uint8_t large[200] = {0};
    uint64_t version = (uint64_t)put_text(c, "a", "1", 1);
    const uint8_t *two = (const uint8_t *)"2";
    kv_operation writes[2] = {{.key = (const uint8_t *)"b", .key_size = 1, .value = two, .value_size = 1},
                              {.key = (const uint8_t *)"c", .key_size = 1, .value = large, .value_size = sizeof large}};
    kv_expectation reads[3] = {expect_text("a", version), expect_text("b", 0), expect_text("c", 7)};

    CHECK_EQ(kv_batch(c, writes, 2, reads, 3, 0), KV_ECONFLICT);
    CHECK_EQ(answer->version, 0);
    CHECK_EQ(answer->number, 2);
    CHECK_EQ(kv_look(c, (const uint8_t *)"b", 1), kv_ending(KV_ABSENT));
    CHECK_EQ(kv_batch(c, NULL, 0, reads, 3, 1), KV_ECONFLICT);
    CHECK_EQ(kv_batch(c, NULL, 0, reads, 2, 0), 0);
    kv_result written = kv_batch(c, writes, 2, reads, 2, 1);
    CHECK(written > (kv_result)version);
    CHECK_EQ(kv_batch(c, writes, 2, reads, 2, 0), KV_ECONFLICT);
    CHECK_EQ(answer->version, written);
    CHECK_EQ(answer->number, 1);
    reads[0].key_size = 0;
    CHECK_EQ(kv_batch(c, NULL, 0, reads, 1, 0), KV_EKEYSIZE);

    uint64_t sequence = 0;
    reads[0] = expect_text("a", version);
    CHECK_EQ(get_with(c, "a", NULL, 0, &sequence), 1);
    CHECK_EQ(answer->version, version);
    CHECK_EQ(get_with(c, "c", reads, 1, &sequence), sizeof large);
    CHECK_EQ(memcmp(answer->small, large, sizeof large), 0);
    CHECK_EQ(get_with(c, "none", reads, 1, &sequence), kv_ending(KV_ABSENT));
    CHECK_EQ(answer->version, 0);
    put_text(c, "other", "1", 1);
    CHECK_EQ(get_with(c, "b", reads, 1, &sequence), 1);
    put_text(c, "a", "2", 1);
    CHECK_EQ(get_with(c, "b", reads, 1, &sequence), KV_ECONFLICT);
    CHECK_EQ(get_with(c, "b", reads, 1, &sequence), KV_ECONFLICT);
    CHECK_EQ(answer->number, 0);
    close_store(store);
    directory_remove();
}

enum { PURSES = 6, PURSE_START = 1000 };
static const char *const purses[PURSES] = {"p0", "p1", "p2", "p3", "p4", "p5"};

/* Reads all purses, each read making sure of those before. KV_ECONFLICT, or 0 with numbers of one moment. */
static kv_result read_purses(kv_caller *c, kv_expectation *reads, int64_t *numbers) {
    uint64_t sequence = 0;
    for (size_t i = 0; i < PURSES; i++) {
        /* On few processors the others would hardly ever come between. */
        if (i == PURSES / 2) sched_yield();
        kv_result size = get_with(c, purses[i], reads, i, &sequence);
        if (size < 0) return size;
        memcpy(&numbers[i], kv_caller_answer(c)->small, sizeof numbers[i]);
        reads[i] = expect_text(purses[i], kv_caller_answer(c)->version);
    }
    return 0;
}

static void *move_money(void *argument) {
    worker *w = argument;
    kv_caller *c;
    kv_expectation reads[PURSES];
    int64_t numbers[PURSES];
    if (kv_caller_new(w->store, &c) != KV_OK) return NULL;
    for (int i = 0; i < ROUNDS / 5; i++) {
        kv_result result = read_purses(c, reads, numbers);
        int64_t sum = 0;
        for (size_t k = 0; result == 0 && k < PURSES; k++) sum += numbers[k];
        if (result == 0 && sum != PURSES * PURSE_START) w->failures++;
        size_t from = (size_t)(i + w->number) % PURSES, to = (from + 1) % PURSES;
        if (result == 0) {
            numbers[from] -= 1 + i % 7;
            numbers[to] += 1 + i % 7;
            kv_operation writes[2];
            for (size_t k = 0; k < 2; k++)
                writes[k] = (kv_operation){.key = (const uint8_t *)purses[k == 0 ? from : to], .key_size = 2,
                                           .value = (const uint8_t *)&numbers[k == 0 ? from : to], .value_size = 8};
            result = kv_batch(c, writes, 2, reads, PURSES, 0);
        }
        w->written += result > 0;
        if (result <= 0 && result != KV_ECONFLICT) w->failures++;
    }
    kv_caller_free(c);
    return NULL;
}

TEST(transactions_of_all_threads_keep_the_sum) {
    worker workers[THREADS];
    kv_caller *c;
    kv_expectation reads[PURSES];
    int64_t numbers[PURSES], sum = 0, start = PURSE_START;
    uint64_t written = 0;
    directory_make();
    kv_store *store = open_store((kv_options){.sync = KV_SYNC_BATCH, .background = 1}, NULL, 0);
    CHECK_EQ(kv_caller_new(store, &c), KV_OK);
    for (size_t i = 0; i < PURSES; i++) put_text(c, purses[i], &start, sizeof start);
    run(store, move_money, workers);
    CHECK_EQ(read_purses(c, reads, numbers), 0);
    for (size_t i = 0; i < PURSES; i++) sum += numbers[i];
    CHECK_EQ(sum, PURSES * PURSE_START);
    for (int i = 0; i < THREADS; i++) written += workers[i].written;
    CHECK(written > 0);
    close_store(store);
    directory_remove();
}

int main(void) {
    RUN(a_batch_is_written_only_if_all_that_was_expected_holds);
    RUN(transactions_of_all_threads_keep_the_sum);
    RUN(increments_of_all_threads_add_up);
    RUN(reads_are_whole_while_checkpoints_are_made);
    RUN(durable_writes_of_several_threads_share_a_sync);
    RUN(every_waiter_hears_of_every_kind_of_news);
    RUN(close_waits_for_who_is_inside_and_refuses_who_comes_later);
    RUN(scans_list_what_stays_once_and_in_order);
    return check_report();
}
