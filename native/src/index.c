/* index.c -- key hash -> location: searching, changing, growing. Layout: index_internal.h. Images: index_image.c.
 *
 * Invariants:
 *   - Tables in directory order cover every hash exactly once, and a table has at least one empty slot, so a search
 *     for something absent ends.
 *   - A slot that is occupied keeps its hash until it is removed, and between its first slot and itself there is
 *     never an empty one: a key that is present throughout is found throughout.
 *   - A table that was replaced never changes again. A reader that still looks at it sees the index as of the
 *     moment it was replaced, which is not before the reader entered the epoch.
 *
 * Sizes. A table is rebuilt when 27/32 of it are in use, for a load of at most 3/4 afterwards; at its maximum it
 * splits. Loads then range over 2/3 to 27/32: 19 to 24 bytes a key, directory and heads included.
 *
 * Writers allocate first, publish then, retire last: no memory means nothing happened. */
#include "index_internal.h"

#include <stdlib.h>

enum { CACHE_LINE_SIZE = 64, CAPACITY_STEP_SMALL = 16, CAPACITY_STEP = 128 };

/* --- building blocks --- */

uint32_t kv_table_capacity_for(uint64_t slot_count) {
    uint64_t wanted = slot_count + slot_count / 3 + 1;
    return (uint32_t)kv_align(wanted, wanted <= CAPACITY_STEP ? CAPACITY_STEP_SMALL : CAPACITY_STEP);
}

static uint32_t used_count_max(uint32_t capacity) { return (uint32_t)((uint64_t)capacity * 27 / 32); }

/* Hashes that agree in more top bits than chance allows would double the directory for nothing. */
bool kv_directory_is_sound(uint32_t depth, uint64_t table_count) {
    return depth <= KV_INDEX_DEPTH_MAX && (uint64_t)1 << depth <= 16 * table_count + 1024;
}

static size_t directory_size(uint32_t depth) {
    return sizeof(kv_directory) + ((size_t)1 << depth) * sizeof(kv_index_table *);
}

kv_directory *kv_directory_new(uint32_t depth) {
    KV_ASSERT(depth <= KV_INDEX_DEPTH_MAX);
    kv_directory *directory = calloc(1, directory_size(depth));
    if (directory != NULL) directory->depth = depth;
    return directory;
}

/* Aligned to a slot, as malloc does it, and not to a cache line: no slot straddles one either way, and the gaps that
 * alignment leaves behind were measured at 3 bytes a key. */
kv_slot *kv_slots_new(uint32_t capacity) {
    return calloc(capacity, KV_SLOT_SIZE);
}

kv_index_table *kv_table_new(uint32_t capacity, uint32_t depth) {
    kv_index_table *table = calloc(1, sizeof *table);
    if (table == NULL) return NULL;
    table->capacity = capacity;
    table->depth = depth;
    table->image_number = KV_NO_IMAGE;
    return table;
}

uint64_t kv_slots_put(kv_slot *slots, uint32_t capacity, uint32_t depth, uint64_t hash, uint64_t location) {
    kv_slot *slot = &slots[kv_slot_first(hash, depth, capacity)];
    uint64_t held;
    while ((held = atomic_load_explicit(&slot->location, memory_order_relaxed)) > KV_LOCATION_REMOVED) {
        if (++slot == slots + capacity) slot = slots;
    }
    atomic_store_explicit(&slot->hash, hash, memory_order_relaxed);
    atomic_store_explicit(&slot->location, location, memory_order_release);
    return held;
}

static kv_slot *table_slots(const kv_index_table *table) {
    return atomic_load_explicit(&table->slots, memory_order_acquire);
}

static void table_free(kv_index_table *table) {
    if (table == NULL) return;
    free((void *)table_slots(table));
    free(table);
}

/* A table in memory: empty, with room for `slot_count`. */
static kv_index_table *table_new_empty(uint64_t slot_count, uint32_t depth) {
    kv_index_table *table = kv_table_new(kv_table_capacity_for(slot_count), depth);
    if (table == NULL) return NULL;
    kv_slot *slots = kv_slots_new(table->capacity);
    if (slots == NULL) {
        free(table);
        return NULL;
    }
    atomic_init(&table->slots, slots);
    table->changed = true; /* It is in no file. */
    return table;
}

static void table_put(kv_index_table *table, uint64_t hash, uint64_t location) {
    uint64_t held = kv_slots_put(table_slots(table), table->capacity, table->depth, hash, location);
    table->slot_count++;
    table->used_count += held == KV_LOCATION_EMPTY;
}

static void directory_set(kv_directory *directory, size_t at, size_t count, kv_index_table *table) {
    for (size_t i = at; i < at + count; i++) {
        atomic_store_explicit(&directory->tables[i], table, memory_order_release);
    }
}

void kv_directory_free(kv_directory *directory) {
    if (directory == NULL) return;
    size_t entry_count = (size_t)1 << directory->depth;
    for (size_t at = 0; at < entry_count;) {
        kv_index_table *table = kv_directory_table(directory, at);
        at += table != NULL ? kv_directory_step(directory, table) : 1;
        table_free(table);
    }
    free(directory);
}

/* --- memory in use, and memory that readers may still look at --- */

static void count_memory(kv_index *index, uint64_t size, int sign) {
    atomic_fetch_add_explicit(&index->memory_size, sign > 0 ? size : -size, memory_order_relaxed);
}

void kv_index_count_slots(kv_index *index, const kv_index_table *table, int sign) {
    atomic_fetch_add_explicit(&index->loaded_count, sign > 0 ? 1 : UINT64_MAX, memory_order_relaxed);
    count_memory(index, (uint64_t)table->capacity * KV_SLOT_SIZE, sign);
}

static void free_table(void *context, void *memory) {
    (void)context;
    table_free(memory);
}

static void free_memory(void *context, void *memory) {
    (void)context;
    free(memory);
}

static void retire_table(kv_index *index, kv_index_table *table) {
    count_memory(index, sizeof *table, -1);
    if (table_slots(table) != NULL) kv_index_count_slots(index, table, -1);
    if (kv_epoch_retire(index->epoch, free_table, NULL, table) == KV_OK) return;
    table->kept_next = index->kept_tables;
    index->kept_tables = table;
}

static void retire_directory(kv_index *index, kv_directory *directory) {
    count_memory(index, directory_size(directory->depth), -1);
    if (kv_epoch_retire(index->epoch, free_memory, NULL, directory) == KV_OK) return;
    directory->kept_next = index->kept_directories;
    index->kept_directories = directory;
}

/* Puts a directory in the place of the one before, which is retired without its tables. */
static void publish_directory(kv_index *index, kv_directory *directory) {
    kv_directory *before = kv_index_directory(index);
    count_memory(index, directory_size(directory->depth), 1);
    atomic_store_explicit(&index->directory, directory, memory_order_release);
    if (before != NULL) retire_directory(index, before);
}

void kv_index_become(kv_index *index, kv_directory *directory, uint64_t table_count, uint64_t slot_count) {
    kv_index_table *before = NULL;
    if (kv_index_directory(index) != NULL) {
        KV_ASSERT(index->table_count == 1); /* A fresh index has one table, */
        KV_ASSERT(index->slot_count == 0);  /* and it is empty. */
        before = kv_directory_table(kv_index_directory(index), 0);
    }
    count_memory(index, table_count * sizeof(kv_index_table), 1);
    index->table_count = table_count;
    index->slot_count = slot_count;
    publish_directory(index, directory);
    if (before != NULL) retire_table(index, before);
}

/* --- from nothing to nothing --- */

kv_status kv_index_new(kv_epoch *epoch, kv_index **out) {
    KV_ASSERT(epoch != NULL);
    KV_ASSERT(out != NULL);
    kv_index_table *table = NULL;
    kv_directory *directory = NULL;
    kv_index *index = aligned_alloc(CACHE_LINE_SIZE, sizeof *index);
    if (index == NULL) goto fail;
    memset((void *)index, 0, sizeof *index);
    index->epoch = epoch;
    table = table_new_empty(0, 0);
    if (table == NULL) goto fail;
    directory = kv_directory_new(0);
    if (directory == NULL) goto fail;

    directory_set(directory, 0, 1, table);
    kv_index_become(index, directory, 1, 0);
    kv_index_count_slots(index, table, 1);
    *out = index;
    return KV_OK;
fail:
    table_free(table);
    free(index);
    return KV_ENOMEM;
}

void kv_index_free(kv_index *index) {
    if (index == NULL) return;
    if (index->image != NULL) kv_index_image_end(index);
    kv_directory_free(kv_index_directory(index));
    while (index->kept_tables != NULL) {
        kv_index_table *table = index->kept_tables;
        index->kept_tables = table->kept_next;
        table_free(table);
    }
    while (index->kept_directories != NULL) {
        kv_directory *directory = index->kept_directories;
        index->kept_directories = directory->kept_next;
        free(directory);
    }
    free(index->shares.items);
    free(index);
}

void kv_index_measure(const kv_index *index, kv_index_stats *out) {
    *out = (kv_index_stats){
        .slot_count = index->slot_count,
        .table_count = index->table_count,
        .loaded_count = atomic_load_explicit(&index->loaded_count, memory_order_relaxed),
        .memory_size = sizeof *index + atomic_load_explicit(&index->memory_size, memory_order_relaxed),
    };
}

/* --- searching --- */

static kv_index_table *index_table(const kv_index *index, uint64_t hash) {
    const kv_directory *directory = kv_index_directory(index);
    return kv_directory_table(directory, kv_directory_at(directory, hash));
}

/* Every head has a page of its own, so with a thousand of them each is a miss. */
void kv_index_prefetch_table(const kv_index *index, uint64_t hash) { __builtin_prefetch(index_table(index, hash)); }

/* Directory and heads are small and usually cached; waiting for them here costs less than not knowing the slot. */
void kv_index_prefetch(const kv_index *index, uint64_t hash) {
    const kv_index_table *table = index_table(index, hash);
    const kv_slot *slots = table_slots(table);
    if (slots != NULL) __builtin_prefetch(&slots[kv_slot_first(hash, table->depth, table->capacity)]);
}

/* Goes on at probe->slot and stops there if it finds something. */
static uint64_t probe_search(kv_probe *probe, const kv_slot *slots) {
    uint32_t capacity = probe->table->capacity;
    uint32_t at = probe->slot;
    for (uint32_t left = probe->left; left != 0;) {
        left--;
        uint64_t location = atomic_load_explicit(&slots[at].location, memory_order_acquire);
        if (location == KV_LOCATION_EMPTY) break;
        if (atomic_load_explicit(&slots[at].hash, memory_order_relaxed) == probe->hash &&
            location != KV_LOCATION_REMOVED) {
            probe->slot = at;
            probe->left = left;
            return location;
        }
        if (++at == capacity) at = 0;
    }
    probe->left = 0;
    return 0;
}

uint64_t kv_index_first(kv_index *index, uint64_t hash, kv_probe *probe) {
    kv_index_table *table = index_table(index, hash);
    *probe = (kv_probe){.table = table, .hash = hash};
    const kv_slot *slots = table_slots(table);
    if (KV_UNLIKELY(slots == NULL)) {
        probe->status = kv_table_load(index, table, hash);
        if (probe->status != KV_OK) return 0;
        slots = table_slots(table);
    }
    probe->slot = kv_slot_first(hash, table->depth, table->capacity);
    probe->left = table->capacity;
    return probe_search(probe, slots);
}

uint64_t kv_index_next(kv_probe *probe) {
    if (probe->left == 0) return 0;
    if (++probe->slot == probe->table->capacity) probe->slot = 0;
    return probe_search(probe, table_slots(probe->table));
}

/* --- walking --- */

/* Where the table behind this one begins; 0: it is the last. A split makes no such place go. */
static uint64_t hash_behind(const kv_index_table *table, uint64_t hash) {
    return table->depth == 0 ? 0 : ((hash >> (64 - table->depth)) + 1) << (64 - table->depth);
}

kv_status kv_index_walk(kv_index *index, uint64_t *hash, kv_index_slot **slots, size_t *capacity, size_t *count) {
    kv_index_table *table = index_table(index, *hash);
    kv_status status = table_slots(table) == NULL ? kv_table_load(index, table, *hash) : KV_OK;
    *count = 0;
    if (status != KV_OK) return status;
    if (*capacity < table->capacity) {
        kv_index_slot *larger = realloc(*slots, table->capacity * sizeof *larger);
        if (larger == NULL) return KV_ENOMEM;
        *slots = larger;
        *capacity = table->capacity;
    }
    const kv_slot *from = table_slots(table);
    for (uint32_t i = 0; i < table->capacity; i++) {
        uint64_t location = atomic_load_explicit(&from[i].location, memory_order_acquire);
        if (location <= KV_LOCATION_REMOVED) continue;
        uint64_t held = atomic_load_explicit(&from[i].hash, memory_order_relaxed);
        (*slots)[(*count)++] = (kv_index_slot){.hash = held, .location = location};
    }
    *hash = hash_behind(table, *hash);
    return KV_OK;
}

/* --- changing --- */

/* The way to every change of a table: in memory, and what an image under way wants of it is set aside. */
static kv_status table_open(kv_index *index, kv_index_table *table, uint64_t hash) {
    kv_status status = KV_OK;
    if (KV_UNLIKELY(table_slots(table) == NULL)) status = kv_table_load(index, table, hash);
    if (status != KV_OK) return status;
    if (KV_UNLIKELY(table->image_number != KV_NO_IMAGE)) status = kv_image_capture(index->image, table);
    if (status != KV_OK) return status;
    table->changed = true;
    return KV_OK;
}

/* The slot a probe stands on, open for a change. */
static kv_status probe_open(kv_index *index, const kv_probe *probe, kv_slot **out) {
    KV_ASSERT(probe->table == index_table(index, probe->hash));
    kv_status status = table_open(index, probe->table, probe->hash);
    if (status != KV_OK) return status;
    *out = &table_slots(probe->table)[probe->slot];
    KV_ASSERT(atomic_load_explicit(&(*out)->location, memory_order_relaxed) > KV_LOCATION_REMOVED);
    KV_ASSERT(atomic_load_explicit(&(*out)->hash, memory_order_relaxed) == probe->hash);
    return KV_OK;
}

kv_status kv_index_replace(kv_index *index, const kv_probe *probe, uint64_t location) {
    KV_ASSERT(location > KV_LOCATION_REMOVED);
    kv_slot *slot;
    kv_status status = probe_open(index, probe, &slot);
    if (status != KV_OK) return status;
    atomic_store_explicit(&slot->location, location, memory_order_release);
    return KV_OK;
}

kv_status kv_index_remove(kv_index *index, const kv_probe *probe) {
    kv_slot *slot;
    kv_status status = probe_open(index, probe, &slot);
    if (status != KV_OK) return status;
    atomic_store_explicit(&slot->location, KV_LOCATION_REMOVED, memory_order_release);
    probe->table->slot_count--;
    index->slot_count--;
    return KV_OK;
}

/* --- growing --- */

static unsigned half_of(uint64_t hash, uint32_t depth) { return hash >> (63 - depth) & 1; }

/* Moves what a table holds into `to[0]` and `to[1]`, by the first hash bit it does not own. */
static void table_move(const kv_index_table *from, kv_index_table *const to[2]) {
    const kv_slot *slots = table_slots(from);
    for (uint32_t i = 0; i < from->capacity; i++) {
        uint64_t location = atomic_load_explicit(&slots[i].location, memory_order_relaxed);
        if (location <= KV_LOCATION_REMOVED) continue;
        uint64_t hash = atomic_load_explicit(&slots[i].hash, memory_order_relaxed);
        table_put(to[half_of(hash, from->depth)], hash, location);
    }
}

static uint64_t count_upper_half(const kv_index_table *table) {
    const kv_slot *slots = table_slots(table);
    uint64_t count = 0;
    for (uint32_t i = 0; i < table->capacity; i++) {
        if (atomic_load_explicit(&slots[i].location, memory_order_relaxed) <= KV_LOCATION_REMOVED) continue;
        count += half_of(atomic_load_explicit(&slots[i].hash, memory_order_relaxed), table->depth);
    }
    return count;
}

/* Another capacity, or the same without removed slots. */
static kv_status table_rebuild(kv_index *index, kv_index_table *old, uint64_t hash) {
    kv_index_table *table = table_new_empty((uint64_t)old->slot_count + 1, old->depth);
    if (table == NULL) return KV_ENOMEM;
    table_move(old, (kv_index_table *const[2]){table, table});

    kv_directory *directory = kv_index_directory(index);
    size_t step = kv_directory_step(directory, old);
    directory_set(directory, kv_directory_at(directory, hash) / step * step, step, table);
    count_memory(index, sizeof *table, 1);
    kv_index_count_slots(index, table, 1);
    retire_table(index, old);
    return KV_OK;
}

/* The same tables, each under twice as many entries. */
static kv_directory *directory_doubled(const kv_directory *directory) {
    kv_directory *doubled = kv_directory_new(directory->depth + 1);
    if (doubled == NULL) return NULL;
    size_t entry_count = (size_t)1 << directory->depth;
    for (size_t i = 0; i < entry_count; i++) directory_set(doubled, 2 * i, 2, kv_directory_table(directory, i));
    return doubled;
}

static kv_status table_split(kv_index *index, kv_index_table *old, uint64_t hash) {
    kv_directory *directory = kv_index_directory(index);
    kv_directory *doubled = NULL;
    kv_index_table *halves[2] = {NULL, NULL};
    uint64_t upper_count = count_upper_half(old);
    uint64_t counts[2] = {old->slot_count - upper_count, upper_count};
    for (int i = 0; i < 2; i++) {
        halves[i] = table_new_empty(counts[i], old->depth + 1);
        if (halves[i] == NULL) goto fail;
    }
    if (old->depth == directory->depth) {
        doubled = directory_doubled(directory);
        if (doubled == NULL) goto fail;
        directory = doubled;
    }

    table_move(old, halves);
    size_t step = kv_directory_step(directory, halves[0]);
    size_t at = kv_directory_at(directory, hash) / (2 * step) * (2 * step);
    directory_set(directory, at, step, halves[0]);
    directory_set(directory, at + step, step, halves[1]);
    if (doubled != NULL) publish_directory(index, doubled);
    for (int i = 0; i < 2; i++) kv_index_count_slots(index, halves[i], 1);
    count_memory(index, 2 * sizeof *old, 1);
    index->table_count++;
    retire_table(index, old);
    return KV_OK;
fail:
    table_free(halves[0]);
    table_free(halves[1]);
    return KV_ENOMEM;
}

static bool may_split(const kv_index *index, const kv_index_table *table) {
    const kv_directory *directory = kv_index_directory(index);
    return table->depth < directory->depth || kv_directory_is_sound(directory->depth + 1, index->table_count + 1);
}

/* A table that must not split grows past its maximum: slow, but right. */
static kv_status table_make_room(kv_index *index, kv_index_table *table, uint64_t hash) {
    bool is_large = kv_table_capacity_for((uint64_t)table->slot_count + 1) > KV_TABLE_SLOTS_MAX;
    if (is_large && may_split(index, table)) return table_split(index, table, hash);
    return table_rebuild(index, table, hash);
}

kv_status kv_index_insert(kv_index *index, uint64_t hash, uint64_t location) {
    KV_ASSERT(location > KV_LOCATION_REMOVED);
    for (;;) {
        kv_index_table *table = index_table(index, hash);
        kv_status status = table_open(index, table, hash);
        if (status != KV_OK) return status;
        if (table->used_count < used_count_max(table->capacity)) {
            table_put(table, hash, location);
            index->slot_count++;
            return KV_OK;
        }
        status = table_make_room(index, table, hash); /* A split may leave everything in one half: look again. */
        if (status != KV_OK) return status;
    }
}
