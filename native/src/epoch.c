/* epoch.c -- who is still inside, and what may be freed because nobody is.
 *
 * The global epoch counts retirements. A reader notes it in its slot on entry; what is retired at epoch e moves the
 * global epoch to e + 1. It may be freed when every slot is 0 or above e: whoever is inside then came later.
 *
 * Why that is safe, in two cases. The reclaiming writer reads a slot
 *   - after the reader's store: it sees the reader's epoch g. If g <= e nothing is freed. If g > e the reader took
 *     g from a retirement no older than this one, so it also sees the unlinking that came before.
 *   - before the reader's store: then the reader's second look at the global epoch comes after the retirement in
 *     the one order of all sequentially consistent operations, and so, too, it sees the unlinking.
 * The second look is there for this order alone; a fence would do the same, but ThreadSanitizer does not know
 * fences. A slot may hold an older epoch than it could: that delays a free, nothing else.
 *
 * Threads: as epoch.h says. `lock` guards the list of slots and `blocker`; what is retired belongs to the holder of
 * the caller's writer lock and is touched by nobody else. */
#include "kv/epoch.h"

#include <pthread.h>
#include <stdlib.h>
#include <time.h>

enum { CACHE_LINE_SIZE = 64, DRAIN_WAIT_NS = 50 * 1000 };

typedef struct retired {
    struct retired *next;
    uint64_t epoch;
    void (*free_it)(void *context, void *memory);
    void *context;
    void *memory;
} retired;

struct kv_epoch {
    /* Every reader reads it on entry: a line of its own, so that nothing but a retirement takes it from them. */
    _Alignas(CACHE_LINE_SIZE) _Atomic uint64_t global;
    _Alignas(CACHE_LINE_SIZE) pthread_mutex_t lock;
    kv_epoch_slot *slots;
    kv_epoch_slot *blocker; /* the slot that stopped the last reclaim; NULL: none did */
    uint64_t blocker_epoch; /* what it held then */
    retired *oldest; /* in order of their epoch */
    retired *newest;
};

kv_status kv_epoch_new(kv_epoch **out) {
    KV_ASSERT(out != NULL);
    kv_epoch *epoch = aligned_alloc(CACHE_LINE_SIZE, sizeof *epoch);
    if (epoch == NULL) return KV_ENOMEM;
    memset(epoch, 0, sizeof *epoch);
    atomic_init(&epoch->global, 1); /* Not 0: a slot with 0 is outside. */
    if (pthread_mutex_init(&epoch->lock, NULL) != 0) {
        free(epoch);
        return KV_ENOMEM;
    }
    *out = epoch;
    return KV_OK;
}

/* Frees everything retired before `bound`. The list is advanced first: free_it() may retire in turn. */
static void free_retired_before(kv_epoch *epoch, uint64_t bound) {
    while (epoch->oldest != NULL && epoch->oldest->epoch < bound) {
        retired *gone = epoch->oldest;
        epoch->oldest = gone->next;
        if (epoch->oldest == NULL) epoch->newest = NULL;
        gone->free_it(gone->context, gone->memory);
        free(gone);
    }
}

/* Takes no lock and looks into no slot: in a forked child, threads that exist no more may hold one or stand in one. */
void kv_epoch_free(kv_epoch *epoch) {
    if (epoch == NULL) return;
    free_retired_before(epoch, UINT64_MAX);
    while (epoch->slots != NULL) {
        kv_epoch_slot *slot = epoch->slots;
        epoch->slots = slot->next;
        free(slot);
    }
    pthread_mutex_destroy(&epoch->lock);
    free(epoch);
}

kv_status kv_epoch_join(kv_epoch *epoch, kv_epoch_slot **out) {
    KV_ASSERT(epoch != NULL);
    KV_ASSERT(out != NULL);
    /* A whole line: a reader stores into its slot twice per operation, and neighbours must not feel it. */
    kv_epoch_slot *slot = aligned_alloc(CACHE_LINE_SIZE, kv_align(sizeof *slot, CACHE_LINE_SIZE));
    if (slot == NULL) return KV_ENOMEM;
    atomic_init(&slot->entered, 0);
    slot->previous = NULL;

    pthread_mutex_lock(&epoch->lock);
    slot->next = epoch->slots;
    if (slot->next != NULL) slot->next->previous = slot;
    epoch->slots = slot;
    pthread_mutex_unlock(&epoch->lock);
    *out = slot;
    return KV_OK;
}

void kv_epoch_part(kv_epoch *epoch, kv_epoch_slot *slot) {
    KV_ASSERT(epoch != NULL);
    if (slot == NULL) return;
    KV_ASSERT(atomic_load(&slot->entered) == 0);

    pthread_mutex_lock(&epoch->lock);
    if (slot->next != NULL) slot->next->previous = slot->previous;
    if (slot->previous != NULL) slot->previous->next = slot->next;
    else epoch->slots = slot->next;
    if (epoch->blocker == slot) epoch->blocker = NULL;
    pthread_mutex_unlock(&epoch->lock);
    free(slot);
}

void kv_epoch_enter(kv_epoch *epoch, kv_epoch_slot *slot) {
    KV_ASSERT(atomic_load_explicit(&slot->entered, memory_order_relaxed) == 0);
    atomic_store(&slot->entered, atomic_load(&epoch->global));
    (void)atomic_load(&epoch->global); /* The second look: see the top. */
}

void kv_epoch_leave(kv_epoch_slot *slot) {
    KV_ASSERT(atomic_load_explicit(&slot->entered, memory_order_relaxed) != 0);
    atomic_store_explicit(&slot->entered, 0, memory_order_release);
}

kv_status kv_epoch_retire(kv_epoch *epoch, void (*free_it)(void *context, void *memory), void *context, void *memory) {
    KV_ASSERT(epoch != NULL);
    KV_ASSERT(free_it != NULL);
    retired *entry = malloc(sizeof *entry);
    if (entry == NULL) return KV_ENOMEM;
    *entry = (retired){.free_it = free_it, .context = context, .memory = memory};
    entry->epoch = atomic_fetch_add(&epoch->global, 1);
    if (epoch->newest != NULL) epoch->newest->next = entry;
    else epoch->oldest = entry;
    epoch->newest = entry;
    return KV_OK;
}

/* Whether the slot that stopped the last reclaim still does. A slot that was left and entered again holds a newer
 * epoch, because the retirement it stopped had already moved the global one on. */
static bool still_blocked(const kv_epoch *epoch) {
    return epoch->blocker != NULL && atomic_load(&epoch->blocker->entered) == epoch->blocker_epoch;
}

/* The oldest epoch some reader is inside with, and remembers who; UINT64_MAX: nobody is inside. Under `lock`. */
static uint64_t find_oldest_reader(kv_epoch *epoch) {
    uint64_t oldest = UINT64_MAX;
    epoch->blocker = NULL;
    for (kv_epoch_slot *slot = epoch->slots; slot != NULL; slot = slot->next) {
        uint64_t entered = atomic_load(&slot->entered);
        if (entered == 0 || entered >= oldest) continue;
        oldest = entered;
        epoch->blocker = slot;
    }
    epoch->blocker_epoch = oldest;
    return oldest;
}

void kv_epoch_reclaim(kv_epoch *epoch) {
    if (KV_LIKELY(epoch->oldest == NULL)) return;
    /* Taken before the slots are read: what a free_it() retires meanwhile is newer and stays. */
    uint64_t bound = epoch->newest->epoch + 1;
    uint64_t reader = 0;
    pthread_mutex_lock(&epoch->lock);
    /* One reader inside for long must not make every write walk all slots. */
    if (!still_blocked(epoch) || epoch->oldest->epoch < epoch->blocker_epoch) reader = find_oldest_reader(epoch);
    pthread_mutex_unlock(&epoch->lock);
    free_retired_before(epoch, reader < bound ? reader : bound);
}

void kv_epoch_wait(kv_epoch *epoch) {
    KV_ASSERT(epoch != NULL);
    uint64_t now = atomic_fetch_add(&epoch->global, 1);
    for (;;) {
        pthread_mutex_lock(&epoch->lock); /* Not held while waiting: threads may join and part meanwhile. */
        uint64_t reader = find_oldest_reader(epoch);
        pthread_mutex_unlock(&epoch->lock);
        if (reader > now) break;
        nanosleep(&(struct timespec){.tv_nsec = DRAIN_WAIT_NS}, NULL);
    }
}

void kv_epoch_drain(kv_epoch *epoch) {
    kv_epoch_wait(epoch);
    kv_epoch_reclaim(epoch);
}
