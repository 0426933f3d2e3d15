/* index.h -- key hash -> location of the newest record. In memory; readers take no lock.
 *
 * A slot is 16 bytes: the whole 64-bit hash, so that growth reads no record, and a location. The key itself is
 * compared by the caller, in the flow: a hash may stand in several slots.
 *
 *   location (64 bits)
 *     bits  0..23  offset / 4     a segment is at most 64 MiB, records are aligned to 4
 *     bits 24..55  segment id     never 0, so a location is never 0; 0 is an empty slot, 1 a removed one
 *     bits 56..63  flags          KV_LOC_*: what a reader wants to know before it touches the record
 *
 * Extendible hashing: a directory of 2^depth entries, picked by the top bits of the hash, each a table of at most
 * KV_TABLE_SLOTS_MAX slots with linear probing. A table that fills grows in steps to its maximum and then splits
 * in two; the directory doubles when it must. Old tables are retired through the epoch, so a reader that is
 * inside sees the table as it was when it picked it.
 *
 * Threads: first and next by any thread inside the epoch; everything else under the store's writer lock.
 * Specification of the image on disk: docs/formats/index.md. */
#ifndef KV_INDEX_H
#define KV_INDEX_H

#include "base.h"
#include "epoch.h"
#include "status.h"

typedef struct kv_index kv_index;
typedef struct kv_index_table kv_index_table;

enum {
    KV_LOC_TOMBSTONE = 1, /* the record is a delete */
    KV_LOC_EXPIRY = 2,    /* the record has an expiry */
    KV_LOC_TABLE = 4,     /* the key is a table's */
    KV_LOC_ROW = 8,       /* the record is a table's row */
    KV_LOC_BIG = 16,      /* the value is in a file of its own */
    KV_LOC_HEAD = 32,     /* not a row's slot: the newest record of a table, whatever row it is of */
    KV_LOC_FLOOR = 64,    /* the floor of a table's change feed */
};

static inline uint64_t kv_loc_make(uint32_t segment, uint32_t offset, unsigned flags) {
    return (uint64_t)flags << 56 | (uint64_t)segment << 24 | offset >> 2;
}
static inline uint32_t kv_loc_segment(uint64_t loc) { return (uint32_t)(loc >> 24); }
static inline uint32_t kv_loc_offset(uint64_t loc) { return (uint32_t)(loc & 0xffffff) << 2; }
static inline unsigned kv_loc_flags(uint64_t loc) { return (unsigned)(loc >> 56); }

/* Where a search stands: valid while the caller stays in the epoch (a reader) or holds the writer lock and
 * changes nothing else in the index (a writer). */
typedef struct kv_probe {
    const struct kv_slot *slots; /* of its table; NULL: the search has ended */
    uint64_t hash;
    uint32_t slot;
    uint32_t capacity;
    kv_status status; /* why a search ended with 0: KV_OK (not there), KV_ECORRUPT, KV_EMAPPING or KV_ENOMEM (its table could not be loaded) */
} kv_probe;

kv_status kv_index_new(kv_epoch *epoch, kv_index **out);
void kv_index_free(kv_index *index);

void kv_index_prefetch(const kv_index *index, uint64_t hash);
uint64_t kv_index_first(kv_index *index, uint64_t hash, kv_probe *probe); /* a location with that hash, or 0 */
uint64_t kv_index_next(kv_probe *probe);                                  /* the next one, or 0 */

/* Writers. KV_ENOMEM leaves the index as it was. A probe is spent after any of these. */
kv_status kv_index_insert(kv_index *index, uint64_t hash, uint64_t location); /* the caller knows the key is not there */
kv_status kv_index_replace(kv_index *index, const kv_probe *probe, uint64_t location);
kv_status kv_index_remove(kv_index *index, const kv_probe *probe);

/* A walk over everything: the occupied slots of the table that owns *hash, into *slots, which is made larger if need be
 * and stays the caller's to free. *hash is moved on to where the next table begins, 0 behind the last one. A table is
 * shown as it is while it is read; what is there throughout a walk is shown at least once. Inside the epoch, or under the
 * writer lock. */
typedef struct kv_index_slot {
    uint64_t hash;
    uint64_t location;
} kv_index_slot;
kv_status kv_index_walk(kv_index *index, uint64_t *hash, kv_index_slot **slots, size_t *capacity, size_t *count);

typedef struct kv_index_stats {
    uint64_t slot_count;   /* occupied slots, tombstones included */
    uint64_t table_count;
    uint64_t loaded_count; /* tables that are in memory */
    uint64_t memory_size;  /* bytes of tables and directory */
    uint64_t slab_size;   /* bytes mapped for the slots of a large index, in use or not */
} kv_index_stats;
void kv_index_measure(const kv_index *index, kv_index_stats *out);

/* --- images: the index as it stood at one moment, written while writers go on ---
 *
 * begin() fixes the moment. A writer that is about to change a table which has not been written yet first sets a
 * copy of it aside. next() hands out, one at a time, the tables that changed since they were last placed in a
 * file; the caller writes the bytes, then says where with placed(). Tables that did not change keep their place.
 * When next() answers KV_EOF, map() gives the list of all tables and their places, as of begin(). The image is
 * complete when that list is in a file, too. end() ends it, also half way; a table handed out and never placed
 * counts as changed.
 *
 * An image holds the occupied slots only, in slot order, 16 bytes each: hash, location. */
typedef struct kv_image {
    uint32_t number;     /* of the table in this image */
    uint32_t slot_count; /* slots in `bytes`: 16 bytes each */
    const uint8_t *bytes; /* valid until the next call on the index */
    size_t size;
} kv_image;

kv_status kv_index_image_begin(kv_index *index);
kv_status kv_index_image_next(kv_index *index, kv_image *out);
void kv_index_image_placed(kv_index *index, uint32_t number, uint64_t file_id, uint64_t offset, uint64_t checksum);
/* The map: an array of KV_IMAGE_ENTRY_SIZE bytes a table, in order of its hash prefix. For free(). */
kv_status kv_index_image_map(kv_index *index, uint8_t **out, size_t *size);
void kv_index_image_end(kv_index *index);

/*   One table in the map:
 *   offset size field
 *        0    8 file id     of the index file that holds the slots; 0 with a slot count of 0
 *        8    8 offset      in that file
 *       16    8 checksum    XXH64 of the slots, seed = file id
 *       24    4 slot count
 *       28    4 depth       how many top bits of the hash the table owns (0..32); the tables in order cover every
 *                           hash exactly once, so the prefix follows from the depths before it */
enum { KV_IMAGE_ENTRY_SIZE = 32 };

/* An index file, mapped for as long as the index lives. */
typedef struct kv_index_file {
    uint64_t id;
    const uint8_t *bytes;
    uint64_t size;
} kv_index_file;

/* Makes a fresh index show a map; tables load on first touch, by whoever comes first, and their checksum is
 * verified then. Refuses (KV_ECORRUPT) a map that does not cover every hash once, or a place outside its file. */
kv_status kv_index_load(kv_index *index, const uint8_t *map, size_t size, const kv_index_file *files, size_t file_count);
/* For each index file id that tables still lie in: how many slot bytes. Sorted by id; for free(). */
typedef struct kv_index_share {
    uint64_t file_id;
    uint64_t size;
} kv_index_share;
kv_status kv_index_shares(const kv_index *index, kv_index_share **out, size_t *count);
/* Marks all tables of a file as changed, so that the next image carries them and the file can go. */
void kv_index_dislodge(kv_index *index, uint64_t file_id);

#endif
