/* test_index_memory.c -- arrays of slots from slabs, against an array of what was taken; and an index that grows into
 * slabs, with its memory counted. */
#include <pthread.h>
#include <stdlib.h>

#include "../src/index_internal.h"
#include "check.h"

enum { HELD_COUNT = 2000, STEP_SLOTS = 128, SLAB = 2 << 20 };

static uint64_t random_next(uint64_t *state) { /* splitmix64 (Steele, Lea, Flood, 2014) */
    uint64_t z = *state += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

/* One array that was taken, filled with its own number. */
typedef struct held {
    kv_slot *slots;
    uint32_t capacity;
    uint64_t number;
} held;

static void hold(kv_slots_memory *memory, held *one, uint64_t *state) {
    one->capacity = STEP_SLOTS * (1 + (uint32_t)(random_next(state) % 8));
    one->slots = kv_slots_take(memory, one->capacity);
    one->number = random_next(state) | 1;
    CHECK(one->slots != NULL);
    bool empty = true;
    for (uint32_t i = 0; i < one->capacity; i++) {
        empty = empty && one->slots[i].hash == 0 && one->slots[i].location == KV_LOCATION_EMPTY;
        one->slots[i].hash = one->slots[i].location = one->number;
    }
    CHECK(empty);
}

static void let_go(held *one) {
    bool own = true;
    for (uint32_t i = 0; i < one->capacity; i++)
        own = own && one->slots[i].hash == one->number && one->slots[i].location == one->number;
    CHECK(own);
    kv_slots_give(one->slots, one->capacity);
    one->slots = NULL;
}

static void take_and_give(kv_slots_memory *memory, held *all, size_t count, int turns, uint64_t state) {
    for (int turn = 0; turn < turns; turn++) {
        held *one = &all[random_next(&state) % count];
        if (one->slots == NULL) hold(memory, one, &state);
        else let_go(one);
    }
}

static void give_all(held *all, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (all[i].slots != NULL) let_go(&all[i]);
}

TEST(arrays_are_empty_and_do_not_overlap) {
    kv_slots_memory *memory = kv_slots_memory_new();
    held *all = calloc(HELD_COUNT, sizeof *all);
    take_and_give(memory, all, HELD_COUNT, 40000, 1);
    give_all(all, HELD_COUNT);
    free(all);
    kv_slots_memory_free(memory);
}

TEST(slabs_are_filled_before_there_are_more) {
    kv_slots_memory *memory = kv_slots_memory_new();
    held all[255];
    uint64_t state = 2;
    for (size_t i = 0; i < 255; i++) { /* 127 of the largest fit into one: a unit is the header's. */
        all[i] = (held){.capacity = KV_TABLE_SLOTS_MAX, .slots = kv_slots_take(memory, KV_TABLE_SLOTS_MAX)};
        CHECK(all[i].slots != NULL);
        CHECK_EQ(kv_slots_memory_size(memory), (i / 127 + 1) * SLAB);
    }
    for (int turn = 0; turn < 1000; turn++) { /* What is given is taken again. */
        held *one = &all[random_next(&state) % 255];
        kv_slots_give(one->slots, one->capacity);
        one->slots = kv_slots_take(memory, one->capacity);
    }
    CHECK_EQ(kv_slots_memory_size(memory), 3 * SLAB);
    for (size_t i = 0; i < 255; i++) kv_slots_give(all[i].slots, all[i].capacity);
    kv_slots_memory_free(memory);
}

TEST(an_empty_slab_goes_back) {
    kv_slots_memory *memory = kv_slots_memory_new();
    held *all = calloc(HELD_COUNT, sizeof *all);
    uint64_t state = 3;
    for (size_t i = 0; i < HELD_COUNT; i++) hold(memory, &all[i], &state);
    CHECK(kv_slots_memory_size(memory) > 4 * SLAB);
    give_all(all, HELD_COUNT);
    CHECK_EQ(kv_slots_memory_size(memory), 0);
    free(all);
    kv_slots_memory_free(memory);
}

/* A table may be freed by the epoch after its index is gone. */
TEST(what_is_held_outlives_the_index) {
    kv_slots_memory *memory = kv_slots_memory_new();
    held all[2] = {0};
    uint64_t state = 4;
    hold(memory, &all[0], &state);
    hold(memory, &all[1], &state);
    kv_slots_memory_free(memory);
    let_go(&all[0]);
    let_go(&all[1]);
}

typedef struct worker {
    pthread_t thread;
    kv_slots_memory *memory;
    uint64_t seed;
} worker;

static void *worker_main(void *context) {
    const worker *w = context;
    held *all = calloc(HELD_COUNT / 10, sizeof *all);
    take_and_give(w->memory, all, HELD_COUNT / 10, 4000, w->seed);
    give_all(all, HELD_COUNT / 10);
    free(all);
    return NULL;
}

TEST(threads_take_and_give_at_once) {
    worker workers[3];
    kv_slots_memory *memory = kv_slots_memory_new();
    for (uint64_t i = 0; i < 3; i++) {
        workers[i] = (worker){.memory = memory, .seed = 5 + i};
        CHECK_EQ(pthread_create(&workers[i].thread, NULL, worker_main, &workers[i]), 0);
    }
    for (size_t i = 0; i < 3; i++) pthread_join(workers[i].thread, NULL);
    CHECK_EQ(kv_slots_memory_size(memory), 0);
    kv_slots_memory_free(memory);
}

/* --- through an index --- */

static uint64_t hash_of(uint64_t key) {
    uint64_t state = key;
    return random_next(&state);
}

TEST(a_small_index_has_no_slab_and_a_large_one_wastes_little) {
    kv_epoch *epoch;
    kv_index *index;
    kv_index_stats stats;
    kv_probe probe;
    const uint64_t count = 600000;
    CHECK_EQ(kv_epoch_new(&epoch), KV_OK);
    CHECK_EQ(kv_index_new(epoch, &index), KV_OK);
    for (uint64_t i = 0; i < count; i++) {
        CHECK_EQ(kv_index_insert(index, hash_of(i), 100 + i), KV_OK);
        kv_epoch_reclaim(epoch);
        if (i % 10000 != 0) continue;
        kv_index_measure(index, &stats);
        if (i <= 100000) CHECK_EQ(stats.slab_size, 0);
        if (i >= 400000) CHECK(stats.slab_size > stats.memory_size / 2);
        CHECK(stats.slab_size <= stats.memory_size + stats.memory_size / 4 + SLAB);
    }
    for (uint64_t i = 0; i < count; i++) CHECK_EQ(kv_index_first(index, hash_of(i), &probe), 100 + i);
    kv_index_free(index);
    kv_epoch_free(epoch);
}

int main(void) {
    RUN(arrays_are_empty_and_do_not_overlap);
    RUN(slabs_are_filled_before_there_are_more);
    RUN(an_empty_slab_goes_back);
    RUN(what_is_held_outlives_the_index);
    RUN(threads_take_and_give_at_once);
    RUN(a_small_index_has_no_slab_and_a_large_one_wastes_little);
    return check_report();
}
