/* index_internal.h -- what index.c and index_image.c share: the table, the directory, and two duties.
 *
 *   directory          tables            slots
 *   000 -> A           A  depth 2  --->  [hash location][hash location] ...   16 to KV_TABLE_SLOTS_MAX of them
 *   001 -> A           B  depth 3
 *   010 -> B           C  depth 3        A table of depth d owns the hashes that share its d top bits; the bits
 *   011 -> C           D  depth 1        below say where in it the search begins, so slot order is hash order but
 *   100 -> D                             for collisions.
 *   ...
 *
 * A directory entry is two words: the table, and its view, which is all that a search needs - slots, capacity and depth
 * packed into one word, so that a reader goes from the directory straight to the slot. The view is 0 as long as nobody
 * has loaded the table; whoever finds it so goes through the table, and leaves the view behind.
 *
 * What is published never changes but in four ways: a slot's two words, the slots pointer of a table (once, from
 * NULL), a directory entry, and a view, which readers may set, once, from 0. The rest of a table head is for writers,
 * and readers do not look.
 *
 * The two duties: whoever changes a table or takes it out of the directory calls table_open() first, so that an
 * image under way keeps what it needs; whoever takes it out hands it to the epoch. */
#ifndef KV_INDEX_INTERNAL_H
#define KV_INDEX_INTERNAL_H

#include "kv/index.h"

enum {
    KV_TABLE_SLOTS_MAX = 1024,
    KV_INDEX_DEPTH_MAX = 32,
    KV_SLOT_SIZE = 16,
    KV_LOCATION_EMPTY = 0,   /* ends a search */
    KV_LOCATION_REMOVED = 1, /* does not; insert may take the slot */
};
static const uint32_t KV_NO_IMAGE = UINT32_MAX;

/* A writer stores the hash, then, releasing, the location; a reader loads the location, acquiring, then the hash.
 * A removed slot may be given to another key while a reader is between the two and holds the old location with the
 * new hash. That is harmless: the caller compares the key at the location, which is still readable inside the
 * epoch, finds another one, and goes on. The key that was there before is gone, so nobody can miss it. */
typedef struct kv_slot {
    _Atomic uint64_t hash;
    _Atomic uint64_t location;
} kv_slot;
_Static_assert(sizeof(kv_slot) == KV_SLOT_SIZE, "an image is slots as they lie in memory");

/* Where an image of the table lies; file id 0: nowhere, and the table is empty. */
typedef struct kv_table_place {
    uint64_t file_id;
    uint64_t offset;
    uint64_t checksum;
} kv_table_place;

struct kv_index_table {
    _Atomic(kv_slot *) slots; /* NULL: still in the index file only */
    uint32_t capacity;
    uint32_t depth;
    bool in_slab;         /* where the slots are, or will be once they are loaded; else malloc has them */
    uint32_t slot_count;   /* occupied */
    uint32_t used_count;   /* occupied or removed: what a search walks over */
    uint32_t image_number; /* in the image under way, as long as that wants something of the table; KV_NO_IMAGE */
    bool changed;          /* is not what lies at `place` */
    kv_table_place place;
    kv_index_table *kept_next;
    /* Where a table loads from, and never changes: `place` may move on while the slots are still unread. */
    const uint8_t *source;
    uint32_t source_count; /* slots; not slot_count, which a writer changes as soon as the table is loaded */
    uint64_t source_seed;
    uint64_t source_checksum;
};

typedef struct kv_directory {
    uint32_t depth;
    struct kv_directory *kept_next;
    _Atomic(kv_index_table *) *tables; /* 1 << depth, behind the views */
    _Atomic uint64_t views[];          /* 1 << depth */
} kv_directory;

/* One table of the image under way. */
typedef struct kv_image_entry {
    kv_index_table *table; /* as long as it is what the image is to show; else NULL */
    uint8_t *copy;         /* set aside by a writer about to change the table; or NULL */
    uint32_t copy_capacity; /* in slots, of a copy that lies in the run's slabs; 0: malloc has it */
    kv_table_place place;
    uint32_t slot_count;
    uint32_t depth;
    enum { KV_IMAGE_PLACED, KV_IMAGE_WANTED, KV_IMAGE_HANDED_OUT } state;
} kv_image_entry;

typedef struct kv_slots_memory kv_slots_memory;

typedef struct kv_image_run {
    kv_slots_memory *memory; /* for copies: a large index has thousands, and malloc would keep what they took */
    size_t count;
    size_t cursor; /* entries before it were handed out, or need not be */
    uint8_t *scratch; /* the slots last handed out, unless they were set aside before */
    size_t scratch_size;
    kv_image_entry entries[];
} kv_image_run;

typedef struct kv_share_list {
    kv_index_share *items; /* sorted by file id */
    size_t count;
    size_t capacity;
} kv_share_list;

struct kv_index {
    _Atomic(kv_directory *) directory;
    kv_epoch *epoch;
    kv_slots_memory *slots_memory;
    /* Counted by whoever loads a table, readers included. */
    _Atomic uint64_t loaded_count;
    _Atomic uint64_t memory_size;
    /* The writer's, away from the line that every reader needs. */
    _Alignas(64) uint64_t slot_count;
    uint64_t table_count;
    kv_image_run *image;  /* NULL: none under way */
    kv_share_list shares; /* of the map last made or loaded */
    /* What the epoch had no memory to note: kept until the index is freed. */
    kv_index_table *kept_tables;
    kv_directory *kept_directories;
};

/* --- index.c --- */

static inline uint64_t kv_directory_at(const kv_directory *directory, uint64_t hash) {
    return hash >> 1 >> (63 - directory->depth); /* In two steps: a shift by 64 is undefined. */
}
static inline size_t kv_directory_step(const kv_directory *directory, const kv_index_table *table) {
    return (size_t)1 << (directory->depth - table->depth); /* entries that point to the table */
}
static inline kv_index_table *kv_directory_table(const kv_directory *directory, size_t at) {
    return atomic_load_explicit(&directory->tables[at], memory_order_acquire);
}
static inline kv_directory *kv_index_directory(const kv_index *index) {
    return atomic_load_explicit(&index->directory, memory_order_acquire);
}

/* A view: slots / 16 in bits 20..63, capacity / 16 in bits 6..19, depth in bits 0..5. What does not fit (a table that
 * could not split and grew out of all proportion) is looked up through its table. */
static const uint64_t KV_VIEW_UNFIT = 63; /* No slots, and not 0: readers set what is 0. */
static inline uint64_t kv_view_make(const kv_slot *slots, uint32_t capacity, uint32_t depth) {
    uint64_t address = (uint64_t)(uintptr_t)slots;
    bool fits = address >> 48 == 0 && address % 16 == 0 && capacity % 16 == 0 && capacity >> 18 == 0;
    return fits ? address >> 4 << 20 | (uint64_t)(capacity >> 4) << 6 | depth : KV_VIEW_UNFIT;
}
static inline kv_slot *kv_view_slots(uint64_t view) { return (kv_slot *)(uintptr_t)(view >> 20 << 4); }
static inline uint32_t kv_view_capacity(uint64_t view) { return (uint32_t)(view >> 6 & 0x3fff) << 4; }
static inline uint32_t kv_view_depth(uint64_t view) { return view & 63; }

/* The bits below those that picked the table, spread over any capacity by a multiplication (Lemire, "Fast random
 * integer generation in an interval", 2019); 32 of them are plenty. */
static inline uint32_t kv_slot_first(uint64_t hash, uint32_t depth, uint32_t capacity) {
    return (uint32_t)((hash << depth >> 32) * capacity >> 32);
}

uint32_t kv_table_capacity_for(uint64_t slot_count);          /* a load of about 3/4 */
bool kv_directory_is_sound(uint32_t depth, uint64_t table_count); /* not grown out of all proportion */
kv_directory *kv_directory_new(uint32_t depth);               /* entries NULL */
/* No slots yet. `index_size`: bytes of slots the index has, or will have. */
kv_index_table *kv_table_new(uint32_t capacity, uint32_t depth, uint64_t index_size);
kv_slot *kv_slots_new(const kv_index *index, const kv_index_table *table); /* all empty, for this table */
void kv_slots_free(const kv_index_table *table, kv_slot *slots); /* accepts NULL */
/* Takes the first slot that is not occupied; there is one. What it held: EMPTY or REMOVED. */
uint64_t kv_slots_put(kv_slot *slots, uint32_t capacity, uint32_t depth, uint64_t hash, uint64_t location);
void kv_directory_free(kv_directory *directory); /* with its tables; entries may be NULL, and so may it */
/* The directory and its tables become the index; what was there before is retired. */
void kv_index_become(kv_index *index, kv_directory *directory, uint64_t table_count, uint64_t slot_count);
void kv_index_count_slots(kv_index *index, const kv_index_table *table, int sign); /* 1: loaded, -1: retired */

/* --- index_memory.c: any thread --- */

kv_slots_memory *kv_slots_memory_new(void);
void kv_slots_memory_free(kv_slots_memory *memory); /* accepts NULL; what was taken and not given yet keeps it */
uint64_t kv_slots_memory_size(const kv_slots_memory *memory); /* of its slabs, in use or not */
bool kv_slots_fit_slabs(uint32_t capacity);
kv_slot *kv_slots_take(kv_slots_memory *memory, uint32_t capacity); /* all empty; of a capacity that fits */
void kv_slots_give(kv_slot *slots, uint32_t capacity);

/* --- index_image.c --- */

/* Verifies and fills a table that is in its file only; any thread, also several. `hash` is one the table owns. */
kv_status kv_table_load(kv_index *index, kv_index_table *table, uint64_t hash);
/* The image under way gets what it needs of a table that is about to change. */
kv_status kv_image_capture(kv_image_run *image, kv_index_table *table);

#endif
