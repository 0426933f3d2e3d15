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

enum { CACHE_LINE_SIZE = 64, CAPACITY_STEP_SMALL = 16, CAPACITY_STEP = 128, SLABS_FROM_SIZE = 4 << 20 };

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
    return sizeof(kv_directory) + ((size_t)1 << depth) * (sizeof(uint64_t) + sizeof(kv_index_table *));
}

kv_directory *kv_directory_new(uint32_t depth) {
    KV_ASSERT(depth <= KV_INDEX_DEPTH_MAX);
    kv_directory *directory = calloc(1, directory_size(depth));
    if (directory == NULL) return NULL;
    directory->depth = depth;
    directory->tables = (void *)&directory->views[(size_t)1 << depth];
    return directory;
}

/* malloc aligns to a slot, and not to a cache line: no slot straddles one either way, and the gaps that alignment leaves
 * behind were measured at 3 bytes a key. */
kv_slot *kv_slots_new(const kv_index *index, const kv_index_table *table) {
    return table->in_slab ? kv_slots_take(index->slots_memory, table->capacity) : calloc(table->capacity, KV_SLOT_SIZE);
}

void kv_slots_free(const kv_index_table *table, kv_slot *slots) {
    if (slots != NULL && table->in_slab) kv_slots_give(slots, table->capacity);
    else free((void *)slots);
}

/* A small index is to stay small: a slab would be most of it. */
kv_index_table *kv_table_new(uint32_t capacity, uint32_t depth, uint64_t index_size) {
    kv_index_table *table = calloc(1, sizeof *table);
    if (table == NULL) return NULL;
    table->capacity = capacity;
    table->depth = depth;
    table->in_slab = index_size >= SLABS_FROM_SIZE && kv_slots_fit_slabs(capacity);
    table->image_number = KV_NO_IMAGE;
    return table;
}

static inline uint64_t slots_put(kv_slot *slots, uint32_t capacity, uint32_t depth, uint64_t hash, uint64_t location) {
    kv_slot *slot = &slots[kv_slot_first(hash, depth, capacity)], *end = slots + capacity;
    uint64_t held;
    while ((held = atomic_load_explicit(&slot->location, memory_order_relaxed)) > KV_LOCATION_REMOVED) {
        if (++slot == end) slot = slots;
    }
    atomic_store_explicit(&slot->hash, hash, memory_order_relaxed);
    atomic_store_explicit(&slot->location, location, memory_order_release);
    return held;
}

uint64_t kv_slots_put(kv_slot *slots, uint32_t capacity, uint32_t depth, uint64_t hash, uint64_t location) {
    return slots_put(slots, capacity, depth, hash, location);
}

static kv_slot *table_slots(const kv_index_table *table) {
    return atomic_load_explicit(&table->slots, memory_order_acquire);
}

static void table_free(kv_index_table *table) {
    if (table == NULL) return;
    kv_slots_free(table, table_slots(table));
    free(table);
}

/* A table in memory: empty, with room for `slot_count`. */
static kv_index_table *table_new_empty(const kv_index *index, uint64_t slot_count, uint32_t depth) {
    uint64_t index_size = atomic_load_explicit(&index->memory_size, memory_order_relaxed);
    kv_index_table *table = kv_table_new(kv_table_capacity_for(slot_count), depth, index_size);
    if (table == NULL) return NULL;
    kv_slot *slots = kv_slots_new(index, table);
    if (slots == NULL) {
        free(table);
        return NULL;
    }
    atomic_init(&table->slots, slots);
    table->changed = true; /* It is in no file. */
    return table;
}

static void table_put(kv_index_table *table, uint64_t hash, uint64_t location) {
    uint64_t held = slots_put(table_slots(table), table->capacity, table->depth, hash, location);
    table->slot_count++;
    table->used_count += held == KV_LOCATION_EMPTY;
}

static uint64_t table_view(const kv_index_table *table) {
    const kv_slot *slots = table_slots(table);
    return slots == NULL ? 0 : kv_view_make(slots, table->capacity, table->depth);
}

/* What replaces a table is in memory, so a view that is 0 is that of the only table the entry ever had: a reader that
 * sets it by compare-and-swap (view_note) cannot bring one back that was replaced meanwhile. */
static void directory_set(kv_directory *directory, size_t at, size_t count, kv_index_table *table) {
    uint64_t view = table_view(table);
    for (size_t i = at; i < at + count; i++) {
        atomic_store_explicit(&directory->tables[i], table, memory_order_release);
        atomic_store_explicit(&directory->views[i], view, memory_order_release);
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
    index->slots_memory = kv_slots_memory_new();
    if (index->slots_memory == NULL) goto fail;
    table = table_new_empty(index, 0, 0);
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
    if (index != NULL) kv_slots_memory_free(index->slots_memory);
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
    kv_slots_memory_free(index->slots_memory);
    free(index->shares.items);
    free(index);
}

void kv_index_measure(const kv_index *index, kv_index_stats *out) {
    *out = (kv_index_stats){
        .slot_count = index->slot_count,
        .table_count = index->table_count,
        .loaded_count = atomic_load_explicit(&index->loaded_count, memory_order_relaxed),
        .memory_size = sizeof *index + atomic_load_explicit(&index->memory_size, memory_order_relaxed),
        .slab_size = kv_slots_memory_size(index->slots_memory),
    };
}

/* --- searching --- */

static kv_index_table *index_table(const kv_index *index, uint64_t hash) {
    const kv_directory *directory = kv_index_directory(index);
    return kv_directory_table(directory, kv_directory_at(directory, hash));
}

void kv_index_prefetch(const kv_index *index, uint64_t hash) {
    const kv_directory *directory = kv_index_directory(index);
    uint64_t view = atomic_load_explicit(&directory->views[kv_directory_at(directory, hash)], memory_order_acquire);
    const kv_slot *slots = kv_view_slots(view);
    if (slots != NULL) __builtin_prefetch(&slots[kv_slot_first(hash, kv_view_depth(view), kv_view_capacity(view))]);
}

/* Goes on at slots[at] and stops there if it finds something. There is an empty slot, so it ends. */
static inline uint64_t probe_search(kv_probe *probe, const kv_slot *slots, uint32_t at, uint32_t capacity) {
    const kv_slot *slot = slots + at, *end = slots + capacity;
    for (;;) {
        uint64_t location = atomic_load_explicit(&slot->location, memory_order_acquire);
        if (location == KV_LOCATION_EMPTY) break;
        if (atomic_load_explicit(&slot->hash, memory_order_relaxed) == probe->hash && location != KV_LOCATION_REMOVED) {
            probe->slot = (uint32_t)(slot - slots);
            return location;
        }
        if (++slot == end) slot = slots;
    }
    probe->slots = NULL;
    return 0;
}

static void view_note(kv_directory *directory, uint64_t hash, const kv_index_table *table) {
    uint64_t none = 0;
    atomic_compare_exchange_strong(&directory->views[kv_directory_at(directory, hash)], &none, table_view(table));
}

/* Where the entry does not say: the table was not loaded yet, or does not fit. */
static uint64_t first_by_table(kv_index *index, kv_directory *directory, kv_probe *probe) {
    kv_index_table *table = kv_directory_table(directory, kv_directory_at(directory, probe->hash));
    if (table_slots(table) == NULL) probe->status = kv_table_load(index, table, probe->hash);
    if (probe->status != KV_OK) return 0;
    view_note(directory, probe->hash, table);
    probe->slots = table_slots(table);
    probe->capacity = table->capacity;
    return probe_search(probe, probe->slots, kv_slot_first(probe->hash, table->depth, table->capacity), table->capacity);
}

uint64_t kv_index_first(kv_index *index, uint64_t hash, kv_probe *probe) {
    kv_directory *directory = kv_index_directory(index);
    uint64_t view = atomic_load_explicit(&directory->views[kv_directory_at(directory, hash)], memory_order_acquire);
    const kv_slot *slots = kv_view_slots(view);
    probe->hash = hash;
    probe->slots = slots;
    probe->status = KV_OK;
    if (KV_UNLIKELY(slots == NULL)) return first_by_table(index, directory, probe);
    probe->capacity = kv_view_capacity(view);
    return probe_search(probe, slots, kv_slot_first(hash, kv_view_depth(view), probe->capacity), probe->capacity);
}

uint64_t kv_index_next(kv_probe *probe) {
    if (probe->slots == NULL) return 0;
    uint32_t at = probe->slot + 1 == probe->capacity ? 0 : probe->slot + 1;
    return probe_search(probe, probe->slots, at, probe->capacity);
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
static kv_status probe_open(kv_index *index, kv_index_table *table, const kv_probe *probe, kv_slot **out) {
    KV_ASSERT(probe->slots == table_slots(table));
    kv_status status = table_open(index, table, probe->hash);
    if (status != KV_OK) return status;
    *out = &table_slots(table)[probe->slot];
    KV_ASSERT(atomic_load_explicit(&(*out)->location, memory_order_relaxed) > KV_LOCATION_REMOVED);
    KV_ASSERT(atomic_load_explicit(&(*out)->hash, memory_order_relaxed) == probe->hash);
    return KV_OK;
}

kv_status kv_index_replace(kv_index *index, const kv_probe *probe, uint64_t location) {
    KV_ASSERT(location > KV_LOCATION_REMOVED);
    kv_slot *slot;
    kv_status status = probe_open(index, index_table(index, probe->hash), probe, &slot);
    if (status != KV_OK) return status;
    atomic_store_explicit(&slot->location, location, memory_order_release);
    return KV_OK;
}

kv_status kv_index_remove(kv_index *index, const kv_probe *probe) {
    kv_slot *slot;
    kv_index_table *table = index_table(index, probe->hash);
    kv_status status = probe_open(index, table, probe, &slot);
    if (status != KV_OK) return status;
    atomic_store_explicit(&slot->location, KV_LOCATION_REMOVED, memory_order_release);
    table->slot_count--;
    index->slot_count--;
    return KV_OK;
}

/* --- growing --- */

static unsigned half_of(uint64_t hash, uint32_t depth) { return hash >> (63 - depth) & 1; }

/* Moves what a table holds into `to[0]` and `to[1]`, empty ones or twice the same, by the first hash bit it does not own. A
 * fifth of what a new key costs is spent in this loop. */
static void table_move(const kv_index_table *from, kv_index_table *const to[2]) {
    const kv_slot *slots = table_slots(from), *end = slots + from->capacity;
    kv_slot *into[2] = {table_slots(to[0]), table_slots(to[1])};
    const uint32_t capacity[2] = {to[0]->capacity, to[1]->capacity}, depth = to[0]->depth;
    uint32_t counts[2] = {0, 0};
    for (const kv_slot *slot = slots; slot != end; slot++) {
        uint64_t location = atomic_load_explicit(&slot->location, memory_order_relaxed);
        if (location <= KV_LOCATION_REMOVED) continue;
        uint64_t hash = atomic_load_explicit(&slot->hash, memory_order_relaxed);
        unsigned half = half_of(hash, from->depth);
        slots_put(into[half], capacity[half], depth, hash, location);
        counts[half]++;
    }
    for (int i = 0; i < 2; i++) {
        to[i]->slot_count += counts[i];
        to[i]->used_count += counts[i];
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
    kv_index_table *table = table_new_empty(index, (uint64_t)old->slot_count + 1, old->depth);
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
        halves[i] = table_new_empty(index, counts[i], old->depth + 1);
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
