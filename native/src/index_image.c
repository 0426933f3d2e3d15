/* index_image.c -- the index as it stood at one moment, out to files and back, while readers and writers go on.
 *
 * Writing. begin() makes one entry per table; its number is the table's number in this image.
 *
 *   PLACED      the entry has a place, and nothing more is wanted of the table
 *   WANTED      the table changed since it was last placed; a writer that changes it again first sets a copy aside
 *   HANDED_OUT  the caller has the bytes and will say where it put them
 *
 * An entry knows its table, and the table its number, while two things hold: the entry is not PLACED, and the table
 * still is what the image is to show. table_open() (index.c) ends the second before any change, which makes the
 * copy if there is need for one; so a table is copied at most once per image, and when its place arrives, the link
 * tells whether the place is still the table's own or only good for this image's map.
 *
 * Reading. Loading a map makes tables without slots. The first who needs one verifies the bytes in the file, fills
 * an array and publishes it by compare-and-swap; of two, the second throws its own away. There is no lock to take,
 * so a reader may be thrown out in the middle by a SIGBUS guard of its caller's: what it had allocated leaks then,
 * and the table is as before.
 *
 * Threads: kv_table_load by any thread inside the epoch, everything else under the store's writer lock.
 * Specification of map and slots on disk: docs/formats/index.md. */
#include "index_internal.h"

#include <stdlib.h>

#include "kv/xxh64.h"

enum { PREFETCH_DISTANCE = 16, COPY_UNIT = 128 /* slots */ };

/* --- loading a table --- */

static size_t slots_size(uint32_t slot_count) { return (size_t)slot_count * KV_SLOT_SIZE; }

/* Every load of bytes from a file passes here, also when they only move on to another file: damage must not get a
 * fresh checksum. */
static kv_status source_verify(const kv_index_table *table) {
    if (table->source_count == 0) return KV_OK;
    uint64_t checksum = kv_xxh64(table->source, slots_size(table->source_count), table->source_seed);
    return checksum == table->source_checksum ? KV_OK : KV_ECORRUPT;
}

static bool owned_by_same_table(uint64_t hash, uint64_t other, uint32_t depth) {
    return depth == 0 || (hash ^ other) >> (64 - depth) == 0;
}

/* The slots in the file are in the order of the hash, so this walks through memory once, in order. */
static kv_status slots_fill(kv_slot *slots, const kv_index_table *table, uint64_t hash) {
    for (uint32_t i = 0; i < table->source_count; i++) {
        uint64_t slot_hash = kv_load64(table->source + slots_size(i));
        uint64_t location = kv_load64(table->source + slots_size(i) + 8);
        if (location <= KV_LOCATION_REMOVED) return KV_ECORRUPT;
        if (!owned_by_same_table(slot_hash, hash, table->depth)) return KV_ECORRUPT;
        kv_slots_put(slots, table->capacity, table->depth, slot_hash, location);
    }
    return KV_OK;
}

kv_status kv_table_load(kv_index *index, kv_index_table *table, uint64_t hash) {
    kv_status status = source_verify(table);
    if (status != KV_OK) return status;
    kv_slot *slots = kv_slots_new(index, table);
    if (slots == NULL) return KV_ENOMEM;
    status = slots_fill(slots, table, hash);
    if (status != KV_OK) goto out;

    kv_slot *expected = NULL;
    if (atomic_compare_exchange_strong(&table->slots, &expected, slots)) {
        kv_index_count_slots(index, table, 1);
        slots = NULL;
    }
out:
    kv_slots_free(table, slots);
    return status;
}

/* --- what an image takes of a table --- */

/* The occupied slots, in order, to `bytes`. */
static void table_copy(const kv_index_table *table, uint8_t *bytes) {
    const kv_slot *slots = atomic_load_explicit(&table->slots, memory_order_acquire);
    uint8_t *end = bytes + slots_size(table->slot_count);
    for (uint32_t i = 0; i < table->capacity; i++) {
        uint64_t location = atomic_load_explicit(&slots[i].location, memory_order_relaxed);
        if (location <= KV_LOCATION_REMOVED) continue;
        kv_store64(bytes, atomic_load_explicit(&slots[i].hash, memory_order_relaxed));
        kv_store64(bytes + 8, location);
        bytes += KV_SLOT_SIZE;
    }
    KV_ASSERT(bytes == end);
}

static bool copy_new(kv_image_run *image, kv_image_entry *entry) {
    uint32_t capacity = (uint32_t)kv_align(entry->slot_count, COPY_UNIT);
    bool slabs = entry->table->in_slab && kv_slots_fit_slabs(capacity);
    entry->copy_capacity = slabs ? capacity : 0;
    entry->copy = slabs ? (uint8_t *)kv_slots_take(image->memory, capacity) : malloc(slots_size(entry->slot_count));
    return entry->copy != NULL;
}

static void copy_free(kv_image_entry *entry) {
    if (entry->copy != NULL && entry->copy_capacity != 0) kv_slots_give((kv_slot *)entry->copy, entry->copy_capacity);
    else free(entry->copy);
    entry->copy = NULL;
}

static void entry_unlink(kv_image_entry *entry) {
    if (entry->table == NULL) return;
    entry->table->image_number = KV_NO_IMAGE;
    entry->table = NULL;
}

kv_status kv_image_capture(kv_image_run *image, kv_index_table *table) {
    KV_ASSERT(image != NULL);
    KV_ASSERT(table->image_number < image->count);
    kv_image_entry *entry = &image->entries[table->image_number];
    KV_ASSERT(entry->table == table);
    if (entry->state == KV_IMAGE_WANTED) {
        KV_ASSERT(entry->slot_count == table->slot_count);
        if (!copy_new(image, entry)) return KV_ENOMEM;
        table_copy(table, entry->copy);
    }
    entry_unlink(entry);
    return KV_OK;
}

/* --- one image, from begin to end --- */

static void entry_begin(kv_image_entry *entry, kv_index_table *table, uint32_t number) {
    if (table->slot_count == 0) { /* Nothing to write: "empty" is a place. */
        table->place = (kv_table_place){0};
        table->changed = false;
    }
    *entry = (kv_image_entry){.place = table->place, .slot_count = table->slot_count, .depth = table->depth};
    if (!table->changed) return;
    entry->state = KV_IMAGE_WANTED;
    entry->table = table;
    table->image_number = number;
}

kv_status kv_index_image_begin(kv_index *index) {
    KV_ASSERT(index->image == NULL);
    KV_ASSERT(index->table_count < KV_NO_IMAGE);
    kv_image_run *image = calloc(1, sizeof *image + index->table_count * sizeof *image->entries);
    if (image == NULL) return KV_ENOMEM;
    image->memory = kv_slots_memory_new();
    if (image->memory == NULL) {
        free(image);
        return KV_ENOMEM;
    }

    const kv_directory *directory = kv_index_directory(index);
    size_t entry_count = (size_t)1 << directory->depth;
    for (size_t at = 0; at < entry_count;) {
        kv_index_table *table = kv_directory_table(directory, at);
        /* Writers wait for this walk, and heads lie all over memory. */
        size_t ahead = at + PREFETCH_DISTANCE;
        if (ahead < entry_count) __builtin_prefetch(kv_directory_table(directory, ahead));
        KV_ASSERT(image->count < index->table_count);
        entry_begin(&image->entries[image->count], table, (uint32_t)image->count);
        image->count++;
        at += kv_directory_step(directory, table);
    }
    KV_ASSERT(image->count == index->table_count);
    index->image = image;
    return KV_OK;
}

/* The slots of a table that nobody changed since begin(). */
static kv_status image_take(kv_image_run *image, const kv_index_table *table, const uint8_t **out) {
    if (atomic_load_explicit(&table->slots, memory_order_acquire) == NULL) {
        *out = table->source; /* Dislodged and never read: the bytes in the old file will do. */
        return source_verify(table);
    }
    size_t size = slots_size(table->slot_count);
    if (size > image->scratch_size) {
        uint8_t *scratch = realloc(image->scratch, size);
        if (scratch == NULL) return KV_ENOMEM;
        image->scratch = scratch;
        image->scratch_size = size;
    }
    table_copy(table, image->scratch);
    *out = image->scratch;
    return KV_OK;
}

kv_status kv_index_image_next(kv_index *index, kv_image *out) {
    kv_image_run *image = index->image;
    KV_ASSERT(image != NULL);
    while (image->cursor < image->count && image->entries[image->cursor].state != KV_IMAGE_WANTED) image->cursor++;
    if (image->cursor == image->count) return KV_EOF;

    kv_image_entry *entry = &image->entries[image->cursor];
    *out = (kv_image){
        .number = (uint32_t)image->cursor,
        .slot_count = entry->slot_count,
        .bytes = entry->copy,
        .size = slots_size(entry->slot_count),
    };
    if (entry->copy == NULL) {
        kv_status status = image_take(image, entry->table, &out->bytes);
        if (status != KV_OK) return status;
    }
    entry->state = KV_IMAGE_HANDED_OUT;
    return KV_OK;
}

void kv_index_image_placed(kv_index *index, uint32_t number, uint64_t file_id, uint64_t offset, uint64_t checksum) {
    kv_image_run *image = index->image;
    KV_ASSERT(image != NULL);
    KV_ASSERT(number < image->count);
    KV_ASSERT(file_id != 0);
    kv_image_entry *entry = &image->entries[number];
    KV_ASSERT(entry->state == KV_IMAGE_HANDED_OUT);
    entry->state = KV_IMAGE_PLACED;
    entry->place = (kv_table_place){.file_id = file_id, .offset = offset, .checksum = checksum};
    if (entry->table != NULL) {
        entry->table->place = entry->place;
        entry->table->changed = false;
    }
    entry_unlink(entry);
    copy_free(entry);
}

void kv_index_image_end(kv_index *index) {
    kv_image_run *image = index->image;
    KV_ASSERT(image != NULL);
    for (size_t i = 0; i < image->count; i++) {
        entry_unlink(&image->entries[i]);
        copy_free(&image->entries[i]);
    }
    kv_slots_memory_free(image->memory);
    free(image->scratch);
    free(image);
    index->image = NULL;
}

void kv_index_dislodge(kv_index *index, uint64_t file_id) {
    KV_ASSERT(file_id != 0);
    const kv_directory *directory = kv_index_directory(index);
    for (size_t at = 0; at < (size_t)1 << directory->depth;) {
        kv_index_table *table = kv_directory_table(directory, at);
        if (table->place.file_id == file_id) table->changed = true;
        at += kv_directory_step(directory, table);
    }
}

/* --- which files a map needs --- */

static kv_status share_add(kv_share_list *list, uint64_t file_id, uint64_t size) {
    size_t low = 0, high = list->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (list->items[middle].file_id < file_id) low = middle + 1;
        else high = middle;
    }
    if (low < list->count && list->items[low].file_id == file_id) {
        list->items[low].size += size;
        return KV_OK;
    }
    if (list->count == list->capacity) {
        size_t capacity = 2 * list->capacity + 8;
        kv_index_share *items = realloc(list->items, capacity * sizeof *items);
        if (items == NULL) return KV_ENOMEM;
        list->items = items;
        list->capacity = capacity;
    }
    memmove(&list->items[low + 1], &list->items[low], (list->count - low) * sizeof *list->items);
    list->items[low] = (kv_index_share){.file_id = file_id, .size = size};
    list->count++;
    return KV_OK;
}

static void shares_become(kv_index *index, kv_share_list list) {
    free(index->shares.items);
    index->shares = list;
}

kv_status kv_index_shares(const kv_index *index, kv_index_share **out, size_t *count) {
    size_t size = index->shares.count * sizeof **out;
    *out = malloc(size != 0 ? size : 1); /* Not NULL with nothing in it: the caller may take that for no memory. */
    if (*out == NULL) return KV_ENOMEM;
    if (size != 0) memcpy(*out, index->shares.items, size);
    *count = index->shares.count;
    return KV_OK;
}

/* --- the map, out --- */

kv_status kv_index_image_map(kv_index *index, uint8_t **out, size_t *size) {
    const kv_image_run *image = index->image;
    KV_ASSERT(image != NULL);
    kv_share_list shares = {0};
    kv_status status = KV_ENOMEM;
    uint8_t *map = malloc(image->count * KV_IMAGE_ENTRY_SIZE);
    if (map == NULL) goto fail;
    for (size_t i = 0; i < image->count; i++) {
        const kv_image_entry *entry = &image->entries[i];
        uint8_t *bytes = map + i * KV_IMAGE_ENTRY_SIZE;
        status = KV_EUSAGE;
        if (entry->state != KV_IMAGE_PLACED) goto fail;
        kv_store64(bytes, entry->place.file_id);
        kv_store64(bytes + 8, entry->place.offset);
        kv_store64(bytes + 16, entry->place.checksum);
        kv_store32(bytes + 24, entry->slot_count);
        kv_store32(bytes + 28, entry->depth);
        if (entry->slot_count == 0) continue;
        status = share_add(&shares, entry->place.file_id, slots_size(entry->slot_count));
        if (status != KV_OK) goto fail;
    }
    shares_become(index, shares);
    *out = map;
    *size = image->count * KV_IMAGE_ENTRY_SIZE;
    return KV_OK;
fail:
    free(shares.items);
    free(map);
    return status;
}

/* --- the map, in --- */

/* What a map is checked against, and what it says in sum. */
typedef struct map_reader {
    const uint8_t *map;
    size_t count;
    const kv_index_file *files;
    size_t file_count;
    uint32_t depth_max;
    uint64_t slot_count;
} map_reader;

typedef struct map_entry {
    kv_table_place place;
    uint32_t slot_count;
    uint32_t depth;
    const uint8_t *bytes;
} map_entry;

/* One entry; KV_ECORRUPT if its place is not inside a file we have. */
static kv_status map_read(const map_reader *reader, size_t i, map_entry *out) {
    const uint8_t *bytes = reader->map + i * KV_IMAGE_ENTRY_SIZE;
    out->place.file_id = kv_load64(bytes);
    out->place.offset = kv_load64(bytes + 8);
    out->place.checksum = kv_load64(bytes + 16);
    out->slot_count = kv_load32(bytes + 24);
    out->depth = kv_load32(bytes + 28);
    out->bytes = NULL;
    if (out->depth > KV_INDEX_DEPTH_MAX) return KV_ECORRUPT;
    if (out->slot_count == 0) return out->place.file_id == 0 ? KV_OK : KV_ECORRUPT;
    if (out->place.file_id == 0) return KV_ECORRUPT;
    for (size_t f = 0; f < reader->file_count; f++) {
        const kv_index_file *file = &reader->files[f];
        if (file->id != out->place.file_id) continue;
        if (out->place.offset > file->size) return KV_ECORRUPT;
        if (slots_size(out->slot_count) > file->size - out->place.offset) return KV_ECORRUPT;
        if (out->slot_count > UINT32_MAX / 2) return KV_ECORRUPT; /* Its capacity would not be a uint32_t. */
        out->bytes = file->bytes + out->place.offset;
        return KV_OK;
    }
    return KV_ECORRUPT;
}

/* Every entry is sound, and their hash prefixes, one behind the other, cover every hash once. */
static kv_status map_check(map_reader *reader) {
    const uint64_t whole = (uint64_t)1 << KV_INDEX_DEPTH_MAX;
    uint64_t covered = 0;
    for (size_t i = 0; i < reader->count; i++) {
        map_entry entry;
        kv_status status = map_read(reader, i, &entry);
        if (status != KV_OK) return status;
        uint64_t part = whole >> entry.depth;
        if (covered % part != 0 || part > whole - covered) return KV_ECORRUPT;
        covered += part;
        reader->slot_count += entry.slot_count;
        if (entry.depth > reader->depth_max) reader->depth_max = entry.depth;
    }
    if (covered != whole) return KV_ECORRUPT;
    return kv_directory_is_sound(reader->depth_max, reader->count) ? KV_OK : KV_ECORRUPT;
}

static kv_index_table *table_new_stub(const map_entry *entry, uint64_t index_size) {
    kv_index_table *table = kv_table_new(kv_table_capacity_for(entry->slot_count), entry->depth, index_size);
    if (table == NULL) return NULL;
    table->slot_count = entry->slot_count;
    table->used_count = entry->slot_count;
    table->place = entry->place;
    table->source = entry->bytes;
    table->source_count = entry->slot_count;
    table->source_seed = entry->place.file_id;
    table->source_checksum = entry->place.checksum;
    return table;
}

kv_status kv_index_load(kv_index *index, const uint8_t *map, size_t size, const kv_index_file *files,
                        size_t file_count) {
    KV_ASSERT(index->image == NULL);
    if (size == 0 || size % KV_IMAGE_ENTRY_SIZE != 0) return KV_ECORRUPT;
    map_reader reader = {.map = map, .count = size / KV_IMAGE_ENTRY_SIZE, .files = files, .file_count = file_count};
    kv_status status = map_check(&reader);
    if (status != KV_OK) return status;

    kv_share_list shares = {0};
    kv_directory *directory = kv_directory_new(reader.depth_max);
    if (directory == NULL) return KV_ENOMEM;
    size_t at = 0;
    for (size_t i = 0; i < reader.count; i++) {
        map_entry entry;
        status = map_read(&reader, i, &entry);
        if (status != KV_OK) goto fail;
        kv_index_table *table = table_new_stub(&entry, reader.slot_count * KV_SLOT_SIZE);
        if (table == NULL) {
            status = KV_ENOMEM;
            goto fail;
        }
        for (size_t end = at + kv_directory_step(directory, table); at < end; at++) {
            atomic_store_explicit(&directory->tables[at], table, memory_order_relaxed);
        }
        if (entry.slot_count == 0) continue;
        status = share_add(&shares, entry.place.file_id, slots_size(entry.slot_count));
        if (status != KV_OK) goto fail;
    }
    shares_become(index, shares);
    kv_index_become(index, directory, reader.count, reader.slot_count);
    return KV_OK;
fail:
    free(shares.items);
    kv_directory_free(directory);
    return status;
}
