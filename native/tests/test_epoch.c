/* test_epoch.c -- nothing is freed while a reader may hold it, and everything is freed in the end. */
#include "kv/epoch.h"

#include <pthread.h>
#include <time.h>

#include "check.h"

typedef struct counter {
    int freed_count;
    void *last;
} counter;

static void count_free(void *context, void *memory) {
    counter *c = context;
    c->freed_count++;
    c->last = memory;
}

TEST(retired_is_freed_when_nobody_is_inside) {
    kv_epoch *epoch;
    kv_epoch_slot *slot;
    counter c = {0};
    CHECK_EQ(kv_epoch_new(&epoch), KV_OK);
    CHECK_EQ(kv_epoch_join(epoch, &slot), KV_OK);
    kv_epoch_reclaim(epoch);
    CHECK_EQ(kv_epoch_retire(epoch, count_free, &c, &epoch), KV_OK);
    CHECK_EQ(c.freed_count, 0); /* Never by retire itself: the caller may still use it. */
    kv_epoch_reclaim(epoch);
    CHECK_EQ(c.freed_count, 1);
    CHECK(c.last == &epoch);
    kv_epoch_part(epoch, slot);
    kv_epoch_part(epoch, NULL);
    kv_epoch_free(epoch);
    CHECK_EQ(c.freed_count, 1);
}

TEST(a_reader_keeps_what_was_retired_after_it_entered_and_nothing_else) {
    kv_epoch *epoch;
    kv_epoch_slot *early, *late;
    counter before = {0}, between = {0}, after = {0};
    CHECK_EQ(kv_epoch_new(&epoch), KV_OK);
    CHECK_EQ(kv_epoch_join(epoch, &early), KV_OK);
    CHECK_EQ(kv_epoch_join(epoch, &late), KV_OK);
    CHECK_EQ(kv_epoch_retire(epoch, count_free, &before, NULL), KV_OK);
    kv_epoch_enter(epoch, early);
    CHECK_EQ(kv_epoch_retire(epoch, count_free, &between, NULL), KV_OK);
    kv_epoch_enter(epoch, late);
    CHECK_EQ(kv_epoch_retire(epoch, count_free, &after, NULL), KV_OK);
    for (int i = 0; i < 3; i++) kv_epoch_reclaim(epoch);
    CHECK_EQ(before.freed_count, 1);
    CHECK_EQ(between.freed_count, 0);
    kv_epoch_leave(early);
    kv_epoch_enter(epoch, early); /* Came back: it cannot hold what was unlinked before. */
    kv_epoch_reclaim(epoch);
    CHECK_EQ(between.freed_count, 1);
    CHECK_EQ(after.freed_count, 0);
    kv_epoch_leave(late);
    kv_epoch_reclaim(epoch);
    CHECK_EQ(after.freed_count, 1);
    kv_epoch_leave(early);
    kv_epoch_part(epoch, late);
    kv_epoch_part(epoch, early);
    kv_epoch_free(epoch);
}

TEST(a_blocking_reader_may_part_and_another_take_over) {
    kv_epoch *epoch;
    kv_epoch_slot *first, *second;
    counter c = {0};
    CHECK_EQ(kv_epoch_new(&epoch), KV_OK);
    CHECK_EQ(kv_epoch_join(epoch, &first), KV_OK);
    CHECK_EQ(kv_epoch_join(epoch, &second), KV_OK);
    kv_epoch_enter(epoch, first);
    kv_epoch_enter(epoch, second);
    CHECK_EQ(kv_epoch_retire(epoch, count_free, &c, NULL), KV_OK);
    kv_epoch_reclaim(epoch);
    kv_epoch_leave(second);
    kv_epoch_part(epoch, second);
    kv_epoch_reclaim(epoch);
    CHECK_EQ(c.freed_count, 0);
    kv_epoch_leave(first);
    kv_epoch_part(epoch, first);
    kv_epoch_reclaim(epoch);
    CHECK_EQ(c.freed_count, 1);
    kv_epoch_free(epoch);
}

TEST(free_frees_what_is_retired_and_slots_that_did_not_part) {
    kv_epoch *epoch;
    kv_epoch_slot *slot;
    counter c = {0};
    CHECK_EQ(kv_epoch_new(&epoch), KV_OK);
    CHECK_EQ(kv_epoch_join(epoch, &slot), KV_OK);
    for (int i = 0; i < 5; i++) CHECK_EQ(kv_epoch_retire(epoch, count_free, &c, NULL), KV_OK);
    kv_epoch_free(epoch);
    CHECK_EQ(c.freed_count, 5);
    kv_epoch_free(NULL);
}

TEST(a_slot_has_a_cache_line_of_its_own) {
    kv_epoch *epoch;
    kv_epoch_slot *slots[8];
    CHECK_EQ(kv_epoch_new(&epoch), KV_OK);
    for (int i = 0; i < 8; i++) {
        CHECK_EQ(kv_epoch_join(epoch, &slots[i]), KV_OK);
        CHECK_EQ((uintptr_t)slots[i] % 64, 0);
    }
    for (int i = 0; i < 8; i++) kv_epoch_part(epoch, slots[(i * 3 + 1) % 8]); /* in any order */
    kv_epoch_free(epoch);
}

/* --- threads --- */

enum { READER_COUNT = 3, SWAP_COUNT = 20000 };
static const uint64_t ALIVE = 0x600df00d;

typedef struct shared {
    kv_epoch *epoch;
    _Atomic(uint64_t *) cell;
    atomic_bool stop;
    atomic_int inside;
    atomic_int bad_count;
} shared;

static void free_cell(void *context, void *memory) {
    (void)context;
    *(uint64_t *)memory = 0; /* So that a reader that still holds it sees it without a sanitizer, too. */
    free(memory);
}

static void *read_cells(void *context) {
    shared *s = context;
    kv_epoch_slot *slot;
    if (kv_epoch_join(s->epoch, &slot) != KV_OK) abort();
    for (uint64_t i = 1; !atomic_load(&s->stop); i++) {
        kv_epoch_enter(s->epoch, slot);
        const uint64_t *cell = atomic_load_explicit(&s->cell, memory_order_acquire);
        for (int again = 0; again < 20; again++) {
            if (*(const volatile uint64_t *)cell != ALIVE) atomic_fetch_add(&s->bad_count, 1);
        }
        kv_epoch_leave(slot);
        if (i % 512 != 0) continue; /* Threads come and go. */
        kv_epoch_part(s->epoch, slot);
        if (kv_epoch_join(s->epoch, &slot) != KV_OK) abort();
    }
    kv_epoch_part(s->epoch, slot);
    return NULL;
}

TEST(readers_never_see_freed_memory) {
    shared s = {0};
    pthread_t readers[READER_COUNT];
    CHECK_EQ(kv_epoch_new(&s.epoch), KV_OK);
    uint64_t *cell = malloc(sizeof *cell);
    *cell = ALIVE;
    atomic_store(&s.cell, cell);
    for (int i = 0; i < READER_COUNT; i++) CHECK_EQ(pthread_create(&readers[i], NULL, read_cells, &s), 0);
    for (int i = 0; i < SWAP_COUNT; i++) {
        uint64_t *fresh = malloc(sizeof *fresh);
        *fresh = ALIVE;
        uint64_t *old = atomic_exchange(&s.cell, fresh);
        CHECK_EQ(kv_epoch_retire(s.epoch, free_cell, NULL, old), KV_OK);
        kv_epoch_reclaim(s.epoch);
    }
    atomic_store(&s.stop, true);
    for (int i = 0; i < READER_COUNT; i++) pthread_join(readers[i], NULL);
    CHECK_EQ(atomic_load(&s.bad_count), 0);
    kv_epoch_free(s.epoch);
    free(atomic_load(&s.cell));
}

static void *stay_a_while(void *context) {
    shared *s = context;
    kv_epoch_slot *slot;
    if (kv_epoch_join(s->epoch, &slot) != KV_OK) abort();
    kv_epoch_enter(s->epoch, slot);
    atomic_store(&s->inside, 1);
    nanosleep(&(struct timespec){.tv_nsec = 20 * 1000 * 1000}, NULL);
    atomic_store(&s->inside, 0);
    kv_epoch_leave(slot);
    kv_epoch_part(s->epoch, slot);
    return NULL;
}

TEST(drain_waits_for_whoever_is_inside) {
    shared s = {0};
    counter c = {0};
    pthread_t reader;
    CHECK_EQ(kv_epoch_new(&s.epoch), KV_OK);
    CHECK_EQ(pthread_create(&reader, NULL, stay_a_while, &s), 0);
    while (atomic_load(&s.inside) == 0) nanosleep(&(struct timespec){.tv_nsec = 1000}, NULL);
    CHECK_EQ(kv_epoch_retire(s.epoch, count_free, &c, NULL), KV_OK);
    kv_epoch_drain(s.epoch);
    CHECK_EQ(atomic_load(&s.inside), 0);
    CHECK_EQ(c.freed_count, 1);
    pthread_join(reader, NULL);
    kv_epoch_free(s.epoch);
}

int main(void) {
    RUN(retired_is_freed_when_nobody_is_inside);
    RUN(a_reader_keeps_what_was_retired_after_it_entered_and_nothing_else);
    RUN(a_blocking_reader_may_part_and_another_take_over);
    RUN(free_frees_what_is_retired_and_slots_that_did_not_part);
    RUN(a_slot_has_a_cache_line_of_its_own);
    RUN(readers_never_see_freed_memory);
    RUN(drain_waits_for_whoever_is_inside);
    return check_report();
}
