/* test_undo.c -- what readers of the past find, against a list that is searched from end to end; growth; threads. */
#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#include "check.h"
#include "kv/index.h"
#include "kv/undo.h"

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
enum { MANY = 200000, THREAD_ADDS = 40000, RANDOM_STEPS = 6000 };
#else
enum { MANY = 2000000, THREAD_ADDS = 400000, RANDOM_STEPS = 20000 };
#endif
enum { MODEL_MAX = 1 << 20, SEGMENTS = 300, FOUND_MAX = 64 };

static uint64_t random_state;

static uint64_t random_next(void) {
    random_state = random_state * 6364136223846793005ULL + 1442695040888963407ULL;
    return random_state >> 33;
}

static uint64_t spread(uint64_t number) { return number * 0x9E3779B185EBCA87ULL; }

static kv_undo_entry entry_of(uint64_t hash, uint32_t segment, uint64_t version, uint64_t replaced) {
    uint64_t location = kv_loc_make(segment, 64, KV_LOC_EXPIRY);
    return (kv_undo_entry){.hash = hash, .location = location, .version = version, .replaced = replaced, .size = 128};
}

/* --- a naive twin --- */

static kv_undo_entry model[MODEL_MAX]; /* [model_first, model_count) are there */
static size_t model_first, model_count;

static void model_clear(void) { model_first = model_count = 0; }

static size_t model_find(uint64_t hash, uint64_t sequence, uint64_t *locations) {
    size_t count = 0;
    for (size_t i = model_count; i-- > model_first;) {
        const kv_undo_entry *e = &model[i];
        if (e->hash != hash || e->version > sequence || sequence >= e->replaced) continue;
        if (count < FOUND_MAX) locations[count] = e->location;
        count++;
    }
    return count;
}

static bool model_has(uint64_t hash) {
    for (size_t i = model_first; i < model_count; i++)
        if (model[i].hash == hash) return true;
    return false;
}

static void add(kv_undo *undo, kv_undo_entry entry) {
    CHECK_EQ(kv_undo_add(undo, &entry), KV_OK);
    model[model_count++] = entry;
}

static void forget(kv_undo *undo, uint64_t sequence) {
    kv_undo_forget(undo, sequence);
    while (model_first < model_count && model[model_first].replaced <= sequence) model_first++;
}

static void check_find(kv_undo *undo, uint64_t hash, uint64_t sequence) {
    uint64_t found[FOUND_MAX], expected[FOUND_MAX], few[1] = {0};
    size_t count = model_find(hash, sequence, expected);
    CHECK_EQ(kv_undo_find(undo, hash, sequence, found, FOUND_MAX), count);
    for (size_t i = 0; i < count && i < FOUND_MAX; i++) CHECK(found[i] == expected[i]);
    CHECK_EQ(kv_undo_find(undo, hash, sequence, NULL, 0), count);
    CHECK_EQ(kv_undo_find(undo, hash, sequence, few, 1), count);
    CHECK(few[0] == (count == 0 ? 0 : expected[0]));
    CHECK_EQ(kv_undo_has(undo, hash), model_has(hash));
}

static void check_sums(kv_undo *undo) {
    static uint32_t pins[SEGMENTS + 1];
    kv_undo_stats stats;
    uint64_t record_size = 0;
    memset(pins, 0, sizeof pins);
    for (size_t i = model_first; i < model_count; i++) {
        record_size += model[i].size;
        pins[kv_loc_segment(model[i].location)]++;
    }
    for (uint32_t segment = 1; segment <= SEGMENTS; segment++) CHECK_EQ(kv_undo_pins(undo, segment), pins[segment]);
    CHECK_EQ(kv_undo_pins(undo, UINT32_MAX), 0);
    kv_undo_measure(undo, &stats);
    CHECK_EQ(stats.count, model_count - model_first);
    CHECK_EQ(stats.record_size, record_size);
}

/* --- promises --- */

TEST(nothing_was_noted) {
    kv_undo *undo;
    uint64_t location;
    kv_undo_stats stats;
    CHECK_EQ(kv_undo_new(&undo), KV_OK);
    CHECK_EQ(kv_undo_find(undo, 7, 7, &location, 1), 0);
    CHECK(!kv_undo_has(undo, 7));
    CHECK_EQ(kv_undo_pins(undo, 1), 0);
    kv_undo_forget(undo, 5);
    kv_undo_forget(undo, UINT64_MAX);
    kv_undo_measure(undo, &stats);
    CHECK_EQ(stats.count, 0);
    CHECK_EQ(stats.record_size, 0);
    CHECK(stats.memory_size < 1024);
    kv_undo_free(undo);
    kv_undo_free(NULL);
}

TEST(a_record_is_seen_from_its_version_on_until_it_was_replaced) {
    kv_undo *undo;
    uint64_t location = 0;
    CHECK_EQ(kv_undo_new(&undo), KV_OK);
    kv_undo_entry entry = {
        .hash = 1, .location = kv_loc_make(3, 64, KV_LOC_BIG), .version = 10, .replaced = 20, .size = 100};
    CHECK_EQ(kv_undo_add(undo, &entry), KV_OK);
    CHECK_EQ(kv_undo_find(undo, 1, 9, &location, 1), 0);
    CHECK_EQ(kv_undo_find(undo, 1, 10, &location, 1), 1);
    CHECK_EQ(location, entry.location);
    CHECK_EQ(kv_undo_find(undo, 1, 19, &location, 1), 1);
    CHECK_EQ(kv_undo_find(undo, 1, 20, &location, 1), 0);
    CHECK_EQ(kv_undo_find(undo, 2, 15, &location, 1), 0);
    CHECK_EQ(kv_undo_pins(undo, 3), 1);
    kv_undo_forget(undo, 19);
    CHECK(kv_undo_has(undo, 1));
    kv_undo_forget(undo, 20);
    CHECK(!kv_undo_has(undo, 1));
    CHECK_EQ(kv_undo_find(undo, 1, 15, &location, 1), 0);
    CHECK_EQ(kv_undo_pins(undo, 3), 0);
    kv_undo_free(undo);
}

/* One key ten times, and another with the same hash: as of any moment the one version of each. */
TEST(keys_that_share_a_hash_are_all_found) {
    kv_undo *undo;
    uint64_t found[2];
    CHECK_EQ(kv_undo_new(&undo), KV_OK);
    model_clear();
    for (uint64_t i = 0; i < 10; i++) {
        add(undo, entry_of(9, 1 + (uint32_t)i, i * 10 + 1, i * 10 + 11));
        if (i == 4) add(undo, entry_of(9, 100, 25, 55));
    }
    for (uint64_t sequence = 0; sequence < 120; sequence++) {
        check_find(undo, 9, sequence);
        size_t expected = (sequence >= 1 && sequence <= 100) + (sequence >= 25 && sequence < 55);
        CHECK_EQ(kv_undo_find(undo, 9, sequence, found, 2), expected);
    }
    kv_undo_free(undo);
}

static uint64_t hash_random(uint64_t hashes) {
    uint64_t number = random_next() % hashes;
    return number % 4 == 0 ? number << 40 : spread(number); /* Some agree in all the bits that buckets go by. */
}

static kv_undo_entry entry_random(uint64_t hashes, uint64_t *sequence) {
    *sequence += random_next() % 3;
    uint64_t age = random_next() % 400;
    return (kv_undo_entry){
        .hash = hash_random(hashes),
        .location = kv_loc_make(1 + (uint32_t)(random_next() % SEGMENTS), (uint32_t)(random_next() % 5000) * 4, 3),
        .version = *sequence - age,
        .replaced = *sequence,
        .size = (uint32_t)random_next() % 1000,
    };
}

TEST(random_histories_are_as_the_naive_twin_has_them) {
    for (uint64_t seed = 1; seed <= 6; seed++) {
        kv_undo *undo;
        uint64_t sequence = 1000, hashes = seed % 2 ? 30 : 3000;
        random_state = seed;
        model_clear();
        CHECK_EQ(kv_undo_new(&undo), KV_OK);
        for (int step = 0; step < RANDOM_STEPS; step++) {
            uint64_t what = random_next() % 100, burst = random_next() % 400 == 0 ? random_next() % 5000 : 1;
            if (what >= 60) burst = 0;
            for (; burst > 0 && model_count < MODEL_MAX; burst--) add(undo, entry_random(hashes, &sequence));
            if (what >= 60 && what < 99) check_find(undo, hash_random(hashes), sequence - random_next() % 500);
            if (what == 99) forget(undo, sequence - random_next() % 4000);
            if (random_next() % 1500 == 0) check_sums(undo);
            if (random_next() % 2000 == 0) forget(undo, UINT64_MAX);
        }
        check_sums(undo);
        forget(undo, sequence);
        check_sums(undo);
        kv_undo_free(undo);
    }
}

TEST(memory_goes_with_the_last_entry) {
    kv_undo *undo;
    kv_undo_stats empty, now;
    CHECK_EQ(kv_undo_new(&undo), KV_OK);
    kv_undo_measure(undo, &empty);
    for (int round = 0; round < 3; round++) {
        for (uint64_t i = 1; i <= 5000; i++) {
            kv_undo_entry entry = entry_of(spread(i), 1 + (uint32_t)i, i, 100000);
            CHECK_EQ(kv_undo_add(undo, &entry), KV_OK);
        }
        kv_undo_measure(undo, &now);
        CHECK(now.memory_size > 5000 * sizeof(kv_undo_entry));
        kv_undo_forget(undo, UINT64_MAX);
        kv_undo_measure(undo, &now);
        CHECK_EQ(now.memory_size, empty.memory_size);
        CHECK(!kv_undo_has(undo, spread(77)));
        CHECK_EQ(kv_undo_pins(undo, 78), 0);
    }
    kv_undo_free(undo);
}

/* A store that always has some snapshot open: memory follows what is there at a time, not what ever was. */
TEST(memory_is_bounded_while_the_oldest_go) {
    kv_undo *undo;
    kv_undo_stats before, after;
    CHECK_EQ(kv_undo_new(&undo), KV_OK);
    for (uint64_t i = 1; i <= MANY / 10; i++) {
        kv_undo_entry entry = entry_of(spread(i), 1 + (uint32_t)(i / 100), i, i);
        CHECK_EQ(kv_undo_add(undo, &entry), KV_OK);
        if (i > 4000) kv_undo_forget(undo, i - 4000);
        if (i == 12000) kv_undo_measure(undo, &before);
    }
    kv_undo_measure(undo, &after);
    CHECK_EQ(after.count, 4000);
    CHECK(after.memory_size <= before.memory_size + 2 * 1024 * sizeof(kv_undo_entry)); /* two blocks more at most */
    kv_undo_free(undo);
}

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

TEST(millions_take_at_most_64_bytes_each) {
    kv_undo *undo;
    kv_undo_stats stats;
    uint64_t worst = 0, found, start = now_ns(), from = start;
    CHECK_EQ(kv_undo_new(&undo), KV_OK);
    for (uint64_t i = 1; i <= MANY; i++) {
        kv_undo_entry entry = entry_of(spread(i), 1 + (uint32_t)(i >> 16), i, MANY + i);
        CHECK_EQ(kv_undo_add(undo, &entry), KV_OK);
        uint64_t until = now_ns();
        if (until - from > worst) worst = until - from;
        from = until;
    }
    uint64_t each = (from - start) / MANY;
    kv_undo_measure(undo, &stats);
    CHECK_EQ(stats.count, MANY);
    CHECK(stats.memory_size <= (uint64_t)MANY * 64);
    for (uint64_t i = 1; i <= MANY; i += 7) CHECK_EQ(kv_undo_find(undo, spread(i), MANY, &found, 1), 1);
    from = now_ns();
    kv_undo_forget(undo, UINT64_MAX);
    printf("%d entries: %.1f bytes each, %d ns to add one, %d us at worst, %d ms to forget them all\n", (int)MANY,
           (double)stats.memory_size / MANY, (int)each, (int)(worst / 1000), (int)((now_ns() - from) / 1000000));
    kv_undo_free(undo);
}

/* --- threads: KEYS keys are replaced in turn, so what was the newest as of any sequence can be worked out --- */

enum { KEYS = 64, WINDOW = 3000 };

typedef struct shared {
    kv_undo *undo;
    _Atomic uint64_t written; /* every write up to it is noted */
    _Atomic uint64_t floor;   /* forgotten up to it, or soon */
    _Atomic bool stop;
    _Atomic int checked, failed;
} shared;

static uint64_t location_of(uint64_t version) {
    return kv_loc_make(1 + (uint32_t)(version / 1000), (uint32_t)(version % 1000) * 4, 0);
}

static void *write_in_turn(void *context) {
    shared *s = context;
    for (uint64_t sequence = KEYS + 1; sequence <= THREAD_ADDS; sequence++) {
        kv_undo_entry entry = entry_of(spread(sequence % KEYS), 1, sequence - KEYS, sequence);
        entry.location = location_of(sequence - KEYS);
        if (kv_undo_add(s->undo, &entry) != KV_OK) atomic_fetch_add(&s->failed, 1);
        atomic_store(&s->written, sequence);
    }
    atomic_store(&s->stop, true);
    return NULL;
}

static void *forget_behind(void *context) {
    shared *s = context;
    while (!atomic_load(&s->stop)) {
        uint64_t written = atomic_load(&s->written);
        if (written > WINDOW) {
            atomic_store(&s->floor, written - WINDOW);
            kv_undo_forget(s->undo, written - WINDOW);
        }
        nanosleep(&(struct timespec){.tv_nsec = 100 * 1000}, NULL);
    }
    return NULL;
}

static void *read_the_past(void *context) {
    shared *s = context;
    uint64_t state = 99;
    while (!atomic_load(&s->stop)) {
        uint64_t found[2] = {0}, written = atomic_load(&s->written);
        state = state * 6364136223846793005ULL + 1442695040888963407ULL;
        uint64_t key = (state >> 33) % KEYS, sequence = written - KEYS - (state >> 40) % 500;
        if (written < 1000) continue;
        size_t count = kv_undo_find(s->undo, spread(key), sequence, found, 2);
        bool has = kv_undo_has(s->undo, spread(key));
        uint64_t version = sequence - (sequence - key) % KEYS;
        bool pinned = kv_undo_pins(s->undo, kv_loc_segment(location_of(version))) != 0;
        if (atomic_load(&s->floor) > sequence) continue; /* It may have been forgotten meanwhile. */
        atomic_fetch_add(&s->checked, 1);
        if (count != 1 || found[0] != location_of(version) || !has || !pinned) atomic_fetch_add(&s->failed, 1);
    }
    return NULL;
}

TEST(readers_find_what_they_need_beside_add_and_forget) {
    shared s = {0};
    pthread_t threads[4];
    kv_undo_stats stats;
    CHECK_EQ(kv_undo_new(&s.undo), KV_OK);
    CHECK_EQ(pthread_create(&threads[0], NULL, read_the_past, &s), 0);
    CHECK_EQ(pthread_create(&threads[1], NULL, read_the_past, &s), 0);
    CHECK_EQ(pthread_create(&threads[2], NULL, forget_behind, &s), 0);
    CHECK_EQ(pthread_create(&threads[3], NULL, write_in_turn, &s), 0);
    for (int i = 0; i < 100; i++) kv_undo_measure(s.undo, &stats);
    for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
    CHECK(atomic_load(&s.checked) > 0);
    CHECK_EQ(atomic_load(&s.failed), 0);
    kv_undo_free(s.undo);
}

int main(void) {
    RUN(nothing_was_noted);
    RUN(a_record_is_seen_from_its_version_on_until_it_was_replaced);
    RUN(keys_that_share_a_hash_are_all_found);
    RUN(random_histories_are_as_the_naive_twin_has_them);
    RUN(memory_goes_with_the_last_entry);
    RUN(memory_is_bounded_while_the_oldest_go);
    RUN(millions_take_at_most_64_bytes_each);
    RUN(readers_find_what_they_need_beside_add_and_forget);
    return check_report();
}
