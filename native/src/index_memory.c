/* index_memory.c -- where the slots of a large index live: slabs of 2 MiB, which the kernel is asked to back by one
 * huge page each (docs/decisions/0018).
 *
 *   slab, aligned to its size:   unit 0        units 1 to 1023, 2 KiB each
 *                                 this header   arrays of slots, 1 to UNIT_RUN_MAX units long
 *
 * Slabs stand in lists by the longest run of free units they have, so an array goes to the tightest slab that is sure
 * to have room, and a slab that is empty goes back to the kernel. Whoever gives an array back needs the address alone:
 * the header is where the address, rounded down, says.
 *
 * An index frees its tables through the epoch, maybe after it is gone itself; so the memory goes with its last slab.
 *
 * Threads: any may take and give; a lock is held for some 100 ns, or for a system call. After kv_slots_memory_free()
 * only one thread is there, and the lock is left alone: a forked child may have it from a thread that is no more. */
#include "index_internal.h"

#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>

enum {
    SLAB_SIZE = 2 << 20,
    UNIT_SIZE = 2048,
    UNIT_COUNT = SLAB_SIZE / UNIT_SIZE,
    UNIT_RUN_MAX = KV_TABLE_SLOTS_MAX * KV_SLOT_SIZE / UNIT_SIZE,
    WORD_COUNT = UNIT_COUNT / 64,
};

typedef struct slab {
    kv_slots_memory *memory;
    struct slab *next, *previous; /* in the list of its run */
    uint32_t run;                  /* the longest there is of free units, as far as UNIT_RUN_MAX; */
    uint32_t used_count;           /* units, but for this header's */
    uint64_t free[WORD_COUNT];     /* a bit per unit */
} slab;
_Static_assert(sizeof(slab) <= UNIT_SIZE, "the header fits into unit 0");

struct kv_slots_memory {
    pthread_mutex_t lock;
    bool alone;          /* the index is gone: nobody else is there */
    _Atomic uint64_t slab_count;
    slab *by_run[UNIT_RUN_MAX + 1];
};

kv_slots_memory *kv_slots_memory_new(void) {
    kv_slots_memory *memory = calloc(1, sizeof *memory);
    if (memory != NULL) pthread_mutex_init(&memory->lock, NULL);
    return memory;
}

static void memory_end(kv_slots_memory *memory) {
    pthread_mutex_destroy(&memory->lock);
    free(memory);
}

void kv_slots_memory_free(kv_slots_memory *memory) {
    if (memory == NULL) return;
    memory->alone = true;
    if (memory->slab_count == 0) memory_end(memory);
}

uint64_t kv_slots_memory_size(const kv_slots_memory *memory) {
    return atomic_load_explicit(&memory->slab_count, memory_order_relaxed) * SLAB_SIZE;
}

/* --- runs of units --- */

/* Bit i: `count` free units from i on, which may lie in the word behind. */
static uint64_t run_starts(const slab *one, unsigned word, uint32_t count) {
    uint64_t bits = one->free[word], behind = word + 1 < WORD_COUNT ? one->free[word + 1] : 0, starts = bits;
    for (uint32_t i = 1; i < count; i++) starts &= bits >> i | behind << (64 - i);
    return starts;
}

static bool run_find(const slab *one, uint32_t count, uint32_t *out) {
    for (unsigned word = 0; word < WORD_COUNT; word++) {
        uint64_t starts = run_starts(one, word, count);
        if (starts == 0) continue;
        *out = word * 64 + (uint32_t)__builtin_ctzll(starts);
        return true;
    }
    return false;
}

static void units_mark(slab *one, uint32_t from, uint32_t count, bool is_free) {
    for (uint32_t at = from; at < from + count; at++) {
        uint64_t bit = (uint64_t)1 << at % 64;
        if (is_free) one->free[at / 64] |= bit;
        else one->free[at / 64] &= ~bit;
    }
    one->used_count = is_free ? one->used_count - count : one->used_count + count;
}

/* --- slabs --- */

static void slab_unlink(slab *one) {
    if (one->next != NULL) one->next->previous = one->previous;
    if (one->previous != NULL) one->previous->next = one->next;
    else one->memory->by_run[one->run] = one->next;
}

static void slab_link(slab *one, uint32_t run) {
    slab **list = &one->memory->by_run[run];
    one->run = run;
    one->previous = NULL;
    one->next = *list;
    if (one->next != NULL) one->next->previous = one;
    *list = one;
}

/* To the list where it belongs now that units of it were taken or given. */
static void slab_sort(slab *one) {
    uint32_t run = UNIT_RUN_MAX, at;
    while (run > 0 && !run_find(one, run, &at)) run--;
    if (run == one->run) return;
    slab_unlink(one);
    slab_link(one, run);
}

/* Twice the size is mapped and cut, which leaves an aligned slab whatever the kernel prefers. */
static slab *slab_map(void) {
    uint8_t *bytes = mmap(NULL, 2 * SLAB_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (bytes == MAP_FAILED) return NULL;
    size_t before = (SLAB_SIZE - (uintptr_t)bytes % SLAB_SIZE) % SLAB_SIZE;
    if (before != 0) munmap(bytes, before);
    munmap(bytes + before + SLAB_SIZE, SLAB_SIZE - before);
    /* Where the kernel has none, or is told not to, the same memory comes in small pages. */
    madvise(bytes + before, SLAB_SIZE, MADV_HUGEPAGE);
    return (slab *)(bytes + before);
}

static slab *slab_new(kv_slots_memory *memory) {
    slab *one = slab_map();
    if (one == NULL) return NULL;
    one->memory = memory;
    memset(one->free, 0xff, sizeof one->free);
    one->free[0] &= ~(uint64_t)1;
    slab_link(one, UNIT_RUN_MAX);
    memory->slab_count++;
    return one;
}

static void slab_free(slab *one) {
    slab_unlink(one);
    one->memory->slab_count--;
    munmap(one, SLAB_SIZE);
}

/* --- arrays of slots --- */

bool kv_slots_fit_slabs(uint32_t capacity) {
    uint32_t size = capacity * KV_SLOT_SIZE;
    return size != 0 && size % UNIT_SIZE == 0 && size <= UNIT_RUN_MAX * UNIT_SIZE;
}

static uint8_t *units_take(kv_slots_memory *memory, uint32_t count) {
    slab *one = NULL;
    uint32_t at;
    for (uint32_t run = count; one == NULL && run <= UNIT_RUN_MAX; run++) one = memory->by_run[run];
    if (one == NULL) one = slab_new(memory);
    if (one == NULL) return NULL;
    bool found = run_find(one, count, &at);
    KV_ASSERT(found);
    units_mark(one, at, count, false);
    slab_sort(one);
    return (uint8_t *)one + (size_t)at * UNIT_SIZE;
}

kv_slot *kv_slots_take(kv_slots_memory *memory, uint32_t capacity) {
    KV_ASSERT(kv_slots_fit_slabs(capacity));
    pthread_mutex_lock(&memory->lock);
    uint8_t *bytes = units_take(memory, capacity * KV_SLOT_SIZE / UNIT_SIZE);
    pthread_mutex_unlock(&memory->lock);
    if (bytes != NULL) memset(bytes, 0, (size_t)capacity * KV_SLOT_SIZE); /* Who had it before left something there. */
    return (kv_slot *)bytes;
}

static void units_give(slab *one, uint32_t at, uint32_t count) {
    units_mark(one, at, count, true);
    if (one->used_count == 0) slab_free(one);
    else slab_sort(one);
}

void kv_slots_give(kv_slot *slots, uint32_t capacity) {
    uint8_t *bytes = (uint8_t *)slots;
    size_t offset = (uintptr_t)bytes % SLAB_SIZE;
    slab *one = (slab *)(bytes - offset);
    kv_slots_memory *memory = one->memory;
    bool alone = memory->alone;
    if (!alone) pthread_mutex_lock(&memory->lock);
    units_give(one, (uint32_t)(offset / UNIT_SIZE), capacity * KV_SLOT_SIZE / UNIT_SIZE);
    if (!alone) pthread_mutex_unlock(&memory->lock);
    else if (memory->slab_count == 0) memory_end(memory);
}
