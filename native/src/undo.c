/* undo.c -- replaced records, first in, first out, and found by hash. What it promises: kv/undo.h.
 *
 *   entries     numbered as they come, from 1 on. [first, next) are there, in blocks; a ring says where each block is.
 *               `replaced` ascends, so what may be forgotten is a prefix: it goes by moving `first`.
 *   buckets     number of the newest entry in the chain; 0: none. A chain leads to ever older entries and ends where
 *               there is none or where the number is below `first`: so nothing has to be unlinked when entries go.
 *   pins        segment -> how many entries point into it
 *
 *       bucket   n = 9                  an entry holds how far back the next one is, in 4 bytes
 *                |
 *       entries  [1 2] 3 4 5 6 7 8 9    with first = 3, the chain is 9, 5 and ends, though 5 points at 1
 *                 ^       |       |
 *                 +-------+<------+
 *
 * Nothing here moves as a whole when it grows. Buckets are added one at a time, each by splitting one (linear hashing:
 * Litwin, "Linear hashing: a new tool for file and table addressing", 1980). Blocks of entries and of buckets stay
 * where they are; only the lists of blocks are copied, 80 KiB at ten million entries. Buckets are given back with the last
 * entry: until then they are as many as the most entries there were asked for.
 *
 * Invariants: along a chain numbers descend, and with them `replaced`; fewer than 2^32 entries are there at a time, so
 * that distances fit; the pin counts add up to the count of entries.
 *
 * Threads: `lock` guards everything. forget takes it anew for every block of entries. */
#include "kv/undo.h"

#include <pthread.h>
#include <stdlib.h>

#include "kv/index.h"

enum {
    BLOCK_ENTRIES = 1024,
    BLOCK_BUCKETS = 512,
    LOAD_MAX = 2, /* entries for each bucket */
    RING_MIN = 16,
    PIN_SLOTS_MIN = 64,
};

typedef struct noted {
    uint64_t hash, location, version, replaced;
    uint32_t size;
    uint32_t back; /* the next entry in the chain is so many numbers below; 0: there was none */
} noted;
_Static_assert(sizeof(noted) == 40, "what the header promises an entry to cost");

typedef struct pin {
    uint32_t segment; /* 0: the slot is empty */
    uint32_t count;   /* 0: nobody's any more, until the table is made anew */
} pin;

/* All that is allocated; goes as a whole with the last entry. */
typedef struct memory {
    noted **ring; /* where block b is: ring[b & (ring_size - 1)] */
    uint64_t ring_size;
    uint64_t block_count; /* from that of `first` on, without a gap */
    uint64_t **buckets; /* blocks of them */
    uint64_t bucket_count, bucket_blocks, bucket_blocks_max;
    pin *pins; /* open addressing */
    uint32_t pin_slots, pin_used;
} memory;

struct kv_undo {
    pthread_mutex_t lock;
    uint64_t first, next;
    uint64_t record_size;
    memory m;
};

kv_status kv_undo_new(kv_undo **out) {
    kv_undo *undo = calloc(1, sizeof *undo);
    if (undo == NULL) return KV_ENOMEM;
    undo->first = undo->next = 1;
    if (pthread_mutex_init(&undo->lock, NULL) != 0) {
        free(undo);
        return KV_ENOMEM;
    }
    *out = undo;
    return KV_OK;
}

/* --- entries --- */

static uint64_t block_of(uint64_t number) { return number / BLOCK_ENTRIES; }
static uint64_t entry_count(const kv_undo *undo) { return undo->next - undo->first; }

static noted *entry_at(const kv_undo *undo, uint64_t number) {
    return &undo->m.ring[block_of(number) & (undo->m.ring_size - 1)][number % BLOCK_ENTRIES];
}

static kv_status ring_grow(kv_undo *undo) {
    uint64_t size = undo->m.ring_size == 0 ? RING_MIN : undo->m.ring_size * 2, from = block_of(undo->first);
    noted **larger = calloc(size, sizeof *larger);
    if (larger == NULL) return KV_ENOMEM;
    for (uint64_t block = from; block < from + undo->m.block_count; block++)
        larger[block & (size - 1)] = undo->m.ring[block & (undo->m.ring_size - 1)];
    free(undo->m.ring);
    undo->m.ring = larger;
    undo->m.ring_size = size;
    return KV_OK;
}

/* Makes sure that there is a block for the next entry. */
static kv_status entry_room(kv_undo *undo) {
    if (entry_count(undo) == UINT32_MAX) return KV_ENOMEM;
    if (block_of(undo->next) < block_of(undo->first) + undo->m.block_count) return KV_OK;
    if (undo->m.block_count == undo->m.ring_size && ring_grow(undo) != KV_OK) return KV_ENOMEM;
    noted *block = malloc(BLOCK_ENTRIES * sizeof *block);
    if (block == NULL) return KV_ENOMEM;
    undo->m.ring[block_of(undo->next) & (undo->m.ring_size - 1)] = block;
    undo->m.block_count++;
    return KV_OK;
}

/* --- pins --- */

/* The slot of a segment, or the empty one where it would be. */
static pin *pin_slot(pin *pins, uint32_t slots, uint32_t segment) {
    uint32_t at = segment & (slots - 1); /* Ids are given out one by one: they do not fall together. */
    while (pins[at].segment != 0 && pins[at].segment != segment) at = (at + 1) & (slots - 1);
    return &pins[at];
}

/* Makes the table anew, for the segments that are still pinned and as many more. */
static kv_status pins_renew(kv_undo *undo) {
    uint32_t live = 0, slots = PIN_SLOTS_MIN;
    for (uint32_t i = 0; i < undo->m.pin_slots; i++) live += undo->m.pins[i].count != 0;
    while (slots < 4 * live) slots *= 2;
    pin *fresh = calloc(slots, sizeof *fresh);
    if (fresh == NULL) return KV_ENOMEM;
    for (uint32_t i = 0; i < undo->m.pin_slots; i++)
        if (undo->m.pins[i].count != 0) *pin_slot(fresh, slots, undo->m.pins[i].segment) = undo->m.pins[i];
    free(undo->m.pins);
    undo->m.pins = fresh;
    undo->m.pin_slots = slots;
    undo->m.pin_used = live;
    return KV_OK;
}

static kv_status pin_room(kv_undo *undo, uint32_t segment, pin **out) {
    if (undo->m.pin_used >= undo->m.pin_slots / 2) {
        kv_status status = pins_renew(undo);
        if (status != KV_OK) return status;
    }
    *out = pin_slot(undo->m.pins, undo->m.pin_slots, segment);
    if ((*out)->segment == 0) undo->m.pin_used++;
    (*out)->segment = segment;
    return KV_OK;
}

/* --- chains --- */

static uint64_t *bucket_at(const kv_undo *undo, uint64_t bucket) {
    return &undo->m.buckets[bucket / BLOCK_BUCKETS][bucket % BLOCK_BUCKETS];
}

/* The highest power of two that is not above `count`. */
static uint64_t power_below(uint64_t count) { return (uint64_t)1 << (63 - __builtin_clzll(count)); }

static uint64_t *bucket_of(const kv_undo *undo, uint64_t hash) {
    uint64_t low = power_below(undo->m.bucket_count), bucket = hash & (2 * low - 1);
    return bucket_at(undo, bucket < undo->m.bucket_count ? bucket : bucket & (low - 1));
}

/* The number itself if its entry is there, or 0: the chain ends. */
static uint64_t if_there(const kv_undo *undo, uint64_t number) { return number >= undo->first ? number : 0; }

static uint64_t chain_start(const kv_undo *undo, uint64_t hash) {
    return undo->m.bucket_count == 0 ? 0 : if_there(undo, *bucket_of(undo, hash));
}

static uint64_t chain_next(const kv_undo *undo, uint64_t number) {
    uint32_t back = entry_at(undo, number)->back;
    return back == 0 ? 0 : if_there(undo, number - back);
}

static kv_status bucket_block_add(kv_undo *undo) {
    if (undo->m.bucket_blocks == undo->m.bucket_blocks_max) {
        uint64_t most = undo->m.bucket_blocks_max == 0 ? RING_MIN : undo->m.bucket_blocks_max * 2;
        uint64_t **larger = realloc(undo->m.buckets, most * sizeof *larger);
        if (larger == NULL) return KV_ENOMEM;
        undo->m.buckets = larger;
        undo->m.bucket_blocks_max = most;
    }
    uint64_t *block = calloc(BLOCK_BUCKETS, sizeof *block);
    if (block == NULL) return KV_ENOMEM;
    undo->m.buckets[undo->m.bucket_blocks++] = block;
    return KV_OK;
}

/* Parts the chain of the bucket whose turn it is between itself and a new bucket; both keep its order. */
static void bucket_split(kv_undo *undo) {
    uint64_t low = power_below(undo->m.bucket_count);
    uint64_t *heads[2] = {bucket_at(undo, undo->m.bucket_count - low), bucket_at(undo, undo->m.bucket_count)};
    noted *last[2] = {NULL, NULL};
    uint64_t last_number[2] = {0, 0}, number = if_there(undo, *heads[0]);
    *heads[0] = 0;
    while (number != 0) {
        uint64_t following = chain_next(undo, number);
        noted *entry = entry_at(undo, number);
        unsigned side = (entry->hash & low) != 0;
        if (last[side] == NULL) *heads[side] = number;
        else last[side]->back = (uint32_t)(last_number[side] - number);
        entry->back = 0;
        last[side] = entry;
        last_number[side] = number;
        number = following;
    }
    undo->m.bucket_count++;
}

/* One bucket more if entries ask for it; without memory for it chains grow longer, and no more than that. */
static kv_status buckets_grow(kv_undo *undo) {
    bool first = undo->m.bucket_count == 0;
    if (!first && entry_count(undo) < LOAD_MAX * undo->m.bucket_count) return KV_OK;
    if (undo->m.bucket_count == undo->m.bucket_blocks * BLOCK_BUCKETS && bucket_block_add(undo) != KV_OK)
        return first ? KV_ENOMEM : KV_OK;
    if (first) undo->m.bucket_count = BLOCK_BUCKETS;
    else bucket_split(undo);
    return KV_OK;
}

/* --- noting and finding --- */

static void entry_put(kv_undo *undo, const kv_undo_entry *entry) {
    uint64_t number = undo->next, *head = bucket_of(undo, entry->hash), before = if_there(undo, *head);
    *entry_at(undo, number) = (noted){
        .hash = entry->hash,
        .location = entry->location,
        .version = entry->version,
        .replaced = entry->replaced,
        .size = entry->size,
        .back = before == 0 ? 0 : (uint32_t)(number - before),
    };
    *head = number;
    undo->next++;
    undo->record_size += entry->size;
}

kv_status kv_undo_add(kv_undo *undo, const kv_undo_entry *entry) {
    pin *of;
    pthread_mutex_lock(&undo->lock);
    if (entry_count(undo) != 0) KV_ASSERT(entry->replaced >= entry_at(undo, undo->next - 1)->replaced);
    kv_status status = entry_room(undo);
    if (status == KV_OK) status = buckets_grow(undo);
    if (status == KV_OK) status = pin_room(undo, kv_loc_segment(entry->location), &of);
    if (status == KV_OK) {
        entry_put(undo, entry);
        of->count++;
    }
    pthread_mutex_unlock(&undo->lock);
    return status;
}

size_t kv_undo_find(kv_undo *undo, uint64_t hash, uint64_t sequence, uint64_t *locations, size_t max) {
    size_t count = 0;
    pthread_mutex_lock(&undo->lock);
    for (uint64_t number = chain_start(undo, hash); number != 0; number = chain_next(undo, number)) {
        const noted *entry = entry_at(undo, number);
        if (entry->replaced <= sequence) break; /* As are all that are older. */
        if (entry->hash != hash || entry->version > sequence) continue;
        if (count < max) locations[count] = entry->location;
        count++;
    }
    pthread_mutex_unlock(&undo->lock);
    return count;
}

bool kv_undo_has(kv_undo *undo, uint64_t hash) {
    pthread_mutex_lock(&undo->lock);
    uint64_t number = chain_start(undo, hash);
    while (number != 0 && entry_at(undo, number)->hash != hash) number = chain_next(undo, number);
    pthread_mutex_unlock(&undo->lock);
    return number != 0;
}

/* --- forgetting --- */

/* Drops what may go of the oldest block. *spent: the block, if nothing is left in it. False: the next one must stay. */
static bool forget_piece(kv_undo *undo, uint64_t sequence, noted **spent) {
    uint64_t block = block_of(undo->first);
    while (undo->first < undo->next && block_of(undo->first) == block) {
        const noted *entry = entry_at(undo, undo->first);
        if (entry->replaced > sequence) return false;
        pin_slot(undo->m.pins, undo->m.pin_slots, kv_loc_segment(entry->location))->count--;
        undo->record_size -= entry->size;
        undo->first++;
    }
    if (block_of(undo->first) == block) return false; /* The next entry goes into this block. */
    noted **where = &undo->m.ring[block & (undo->m.ring_size - 1)];
    *spent = *where;
    *where = NULL;
    undo->m.block_count--;
    return undo->first < undo->next;
}

static void memory_free(memory *m) {
    for (uint64_t i = 0; i < m->ring_size; i++) free(m->ring[i]);
    for (uint64_t i = 0; i < m->bucket_blocks; i++) free(m->buckets[i]);
    free(m->ring);
    free(m->buckets);
    free(m->pins);
}

void kv_undo_forget(kv_undo *undo, uint64_t sequence) {
    memory all = {0};
    for (bool more = true; more;) {
        noted *spent = NULL;
        pthread_mutex_lock(&undo->lock);
        more = forget_piece(undo, sequence, &spent);
        if (!more && sequence == UINT64_MAX && entry_count(undo) == 0) {
            all = undo->m;
            undo->m = (memory){0};
        }
        pthread_mutex_unlock(&undo->lock);
        free(spent); /* Not under the lock: that may be a system call. */
    }
    memory_free(&all);
}

void kv_undo_free(kv_undo *undo) {
    if (undo == NULL) return;
    memory_free(&undo->m);
    pthread_mutex_destroy(&undo->lock);
    free(undo);
}

/* --- looking --- */

uint32_t kv_undo_pins(kv_undo *undo, uint32_t segment) {
    pthread_mutex_lock(&undo->lock);
    uint32_t count = undo->m.pin_slots == 0 ? 0 : pin_slot(undo->m.pins, undo->m.pin_slots, segment)->count;
    pthread_mutex_unlock(&undo->lock);
    return count;
}

void kv_undo_measure(kv_undo *undo, kv_undo_stats *out) {
    pthread_mutex_lock(&undo->lock);
    const memory *m = &undo->m;
    *out = (kv_undo_stats){.count = entry_count(undo), .record_size = undo->record_size};
    out->memory_size = sizeof *undo + m->ring_size * sizeof *m->ring + m->bucket_blocks_max * sizeof *m->buckets +
                       m->pin_slots * sizeof *m->pins + m->block_count * BLOCK_ENTRIES * sizeof **m->ring +
                       m->bucket_blocks * BLOCK_BUCKETS * sizeof **m->buckets;
    pthread_mutex_unlock(&undo->lock);
}
