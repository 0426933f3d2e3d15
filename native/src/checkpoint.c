/* checkpoint.c -- an image of the index and the counters, and sorted runs of all names, as of one position, so that
 * opening replays a tail only.
 *
 *   index/%016x.idx    slots of tables, then the map of all tables, then the ids of value files in use, then
 *                      those of tables that were dropped and not swept yet
 *   runs/%016x.run     names in order (run.c)
 *   the description    a few hundred bytes for the catalog: position, counters, where the map is
 *
 * An index file carries only the tables that changed since the last image; the map points into older files for the
 * rest. A file whose tables have mostly moved on is emptied into the next image; one that no map needs is unlinked when
 * the description that no longer names it is in the catalog.
 *
 * The run of a checkpoint takes in what was created since the last one, up to the same position, and the newest runs of
 * comparable size, without names that the index says are deleted. A name may be left out for a delete behind the
 * position: so the flow is durable up to where it stood after the last such look before the checkpoint is described. Else
 * a power cut could take the delete back, and the key would be there and in no run.
 *
 * File ids are never used twice (the high half is the segment this opener writes first), so an old description can
 * only name files that are gone, never files that hold something else.
 *
 * A checkpoint is a shortcut and never the only copy: whatever is wrong with it, the flow is replayed from its start.
 * It is never ahead of the flow: the flow is durable up to its position before it is described.
 *
 * The description (little-endian):
 *   offset size field
 *        0    8 magic            "kvsvrckp"
 *        8    4 format           1
 *       12    4 reserved         0
 *       16   16 store id
 *       32    8 salt
 *       40    8 position         segment << 32 | offset: the next record to replay
 *       48    8 sequence         the last one before it
 *       56    8 clock            ms, the highest an expiry was judged by
 *       64    8 key count
 *       72    8 tombstone count
 *       80    8 big count
 *       88    8 big size
 *       96    8 map: file id
 *      104    8 map: offset
 *      112    8 map: size
 *      120    8 map: checksum    XXH64 of map and ids, seed = file id
 *      128    8 value file ids: count
 *      136    8 table count
 *      144    8 row count
 *      152    8 row tombstone count
 *      160    8 clock: location  of the newest CLOCK record; 0: none
 *      168    8 clock: size      bytes of that record
 *      176    8 retired table ids: count
 *      184    8 segments: count n, then n times 16 bytes: id (8), live bytes (8)
 *       ..    8 index files: count m, then m times their ids (8)
 *       ..    8 sorted runs: count r, then r times 32 bytes, oldest first: id, name count, size, checksum of the footer
 *       ..    8 checksum         XXH64 of everything before it, seed 0
 * Specification: docs/formats/index.md. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "kv/large.h"
#include "late.h"

#define CHECKPOINT_MAGIC "kvsvrckp"
#define INDEX_MAGIC "kvsvridx"
enum {
    CHECKPOINT_FORMAT = 1, /* of the description */
    INDEX_FORMAT = 1,
    INDEX_HEADER_SIZE = 16,
    FIXED_WORDS = 23, /* up to and with the count of retired table ids */
    PATH_SIZE = 40,
    STEP_TABLES = 8,  /* copied in one hold of the writer lock: some 10 us */
    STEP_SIZE = 1 << 18,
    STEP_NAMES = 2048, /* for the run, without the lock */
    RUN_WORDS = 4,
    SHARE_MIN = 2,    /* a file of which less than 1 / SHARE_MIN is in use is emptied */
};

struct kv_checkpoint {
    kv_store *store;
    kv_file *file;
    uint64_t file_id;
    uint64_t size; /* of the file so far */
    kv_position position;
    uint64_t sequence;
    int64_t clock_ms;
    counters counters; /* as of the position */
    uint64_t *ids; /* of value files, then of retired tables */
    uint64_t big_id_count, table_id_count;
    uint8_t *buffer;
    size_t buffer_used, buffer_capacity;
    uint64_t map_offset, map_size, map_checksum;
    uint64_t *file_ids; /* what the map points into */
    uint64_t file_id_count;
    uint8_t *description;
    size_t description_size;
    bool counted; /* it is the one under way */
    bool imaging;
    bool published;

    /* The run. */
    kv_epoch_slot *slot;
    kv_order_build build;
    bool building;        /* the build is begun and not ended */
    bool sorted, merged;
    kv_order_cursor *cursor;
    candidates block;
    kv_run_writer *writer; /* NULL until there is a name */
    uint64_t run_id;       /* 0: no name is alive, so far */
    kv_run_info run;
    uint8_t *last;         /* the name before */
    size_t last_size;
    kv_position looked;    /* the tail, after the last look into the index */
    kv_run_info *runs;     /* as they will be */
    size_t run_count;
};

static void index_path(uint64_t id, char path[PATH_SIZE]) {
    snprintf(path, PATH_SIZE, "index/%016llx.idx", (unsigned long long)id);
}

/* --- making one --- */

static uint64_t copy_ids(const big_set *set, uint64_t *to) {
    uint64_t count = 0;
    for (uint64_t i = 0; i < set->capacity; i++)
        if (set->ids[i] != 0) to[count++] = set->ids[i];
    return count;
}

static kv_status copy_counters(kv_checkpoint *k) {
    kv_store *store = k->store;
    k->counters = store->counters;
    size_t bytes = store->counters.segment_capacity * sizeof(uint64_t);
    k->counters.segment_live = malloc(bytes + 1);
    k->ids = malloc((store->bigs.count + store->retired_tables.count + 1) * sizeof *k->ids);
    if (k->counters.segment_live == NULL || k->ids == NULL) return KV_ENOMEM;
    if (bytes != 0) memcpy(k->counters.segment_live, store->counters.segment_live, bytes);
    k->big_id_count = copy_ids(&store->bigs, k->ids);
    k->table_id_count = copy_ids(&store->retired_tables, k->ids + k->big_id_count);
    return KV_OK;
}

/* Names that a run would hold: keys, rows, and the newest change of each row, deleted ones included. */
static uint64_t name_count(const counters *n) {
    return n->key_count + n->table_count + 2 * n->row_count + n->row_tombstone_count;
}

/* Writer lock. KV_EOF: nothing has changed since the last checkpoint. Where nothing was written, but slots have left the
 * index or segments are wanted no more, the time is noted again: a removal refuses checkpoints by their position, so two
 * that say different things must not have the same. */
static kv_status leave_last_position(kv_store *store) {
    kv_position position = kv_flow_tail(store->flow);
    if (kv_position_order(position) != store->checkpoint_order) return KV_OK;
    if (!store->hidden && !store_has_empty(store, &store->counters, position)) return KV_EOF;
    return store_write_clock(store);
}

/* The moment: everything below is as of this position, because the writer lock is held. */
static kv_status fix_moment(kv_checkpoint *k) {
    kv_store *store = k->store;
    if (store->checkpointing) return KV_EUSAGE;
    if (store->index_damaged) return KV_ECORRUPT;
    kv_status moved = leave_last_position(store);
    if (moved != KV_OK) return moved;
    k->position = kv_flow_tail(store->flow);
    store->hidden = false;
    k->sequence = kv_flow_sequence(store->flow);
    k->clock_ms = atomic_load(&store->clock_ms);
    kv_status status = copy_counters(k);
    if (status == KV_OK) status = kv_index_image_begin(store->index);
    k->imaging = status == KV_OK;
    if (status != KV_OK) return status;
    store_note_content(store);
    store->checkpointing = k->counted = true;
    k->looked = k->position;
    status = kv_order_build_begin(store->order, name_count(&k->counters), &k->build);
    k->building = status == KV_OK;
    return status == KV_EOF ? KV_OK : status;
}

static kv_status fix_moment_guarded(kv_checkpoint *k) {
    kv_guard guard;
    kv_status status;
    if (KV_GUARD_CAUGHT(&guard)) {
        kv_flow_set_poison(k->store->flow, KV_EMAPPING, EIO);
        status = KV_EMAPPING;
    } else {
        status = fix_moment(k);
    }
    kv_guard_leave(&guard);
    return status;
}

static uint64_t new_file_id(kv_store *store) { return store->generation << 32 | ++store->index_file_next; }

static kv_status open_file(kv_checkpoint *k) {
    kv_io *io = k->store->io;
    uint8_t header[INDEX_HEADER_SIZE] = {0};
    char path[PATH_SIZE];
    k->file_id = new_file_id(k->store);
    index_path(k->file_id, path);
    memcpy(header, INDEX_MAGIC, 8);
    kv_store32(header + 8, INDEX_FORMAT);
    kv_status status = io->mkdir(io, "index");
    if (status == KV_OK) status = io->open(io, path, KV_IO_CREATE, &k->file);
    if (status == KV_OK) status = io->write_at(io, k->file, header, sizeof header, 0);
    k->size = sizeof header;
    return status;
}

kv_status kv_checkpoint_begin(kv_store *store, kv_checkpoint **out) {
    kv_status status = store_usable(store);
    if (status != KV_OK) return status;
    if (store->options.readonly) return KV_EREADONLY;
    if (kv_flow_poison(store->flow, NULL) != KV_OK) return KV_EPOISONED;
    kv_checkpoint *k = calloc(1, sizeof *k);
    if (k == NULL) return KV_ENOMEM;
    k->store = store;
    k->last = malloc(KV_NAME_SIZE_MAX);
    status = k->last == NULL ? KV_ENOMEM : kv_epoch_join(store->epoch, &k->slot);
    if (status == KV_OK) status = kv_order_cursor_new(&k->cursor);
    if (status == KV_OK) {
        pthread_mutex_lock(&store->write_lock);
        status = fix_moment_guarded(k);
        pthread_mutex_unlock(&store->write_lock);
    }
    if (status == KV_OK) status = open_file(k);
    if (status != KV_OK) {
        kv_checkpoint_free(k);
        return status;
    }
    *out = k;
    return KV_OK;
}

static kv_status buffer_room(kv_checkpoint *k, size_t more) {
    if (k->buffer_used + more <= k->buffer_capacity) return KV_OK;
    size_t capacity = (k->buffer_used + more) * 2;
    if (capacity < STEP_SIZE) capacity = STEP_SIZE;
    uint8_t *larger = kv_large_resize(k->buffer, capacity);
    if (larger == NULL) return KV_ENOMEM;
    k->buffer = larger;
    k->buffer_capacity = capacity;
    return KV_OK;
}

static kv_status buffer_add(kv_checkpoint *k, const void *bytes, size_t size) {
    kv_status status = buffer_room(k, size);
    if (status != KV_OK) return status;
    if (size != 0) memcpy(k->buffer + k->buffer_used, bytes, size);
    k->buffer_used += size;
    return KV_OK;
}

static kv_status buffer_flush(kv_checkpoint *k) {
    kv_io *io = k->store->io;
    kv_status status = io->write_at(io, k->file, k->buffer, k->buffer_used, k->size);
    k->size += k->buffer_used;
    k->buffer_used = 0;
    return status;
}

/* Writer lock. A few tables, as they were at the moment, into the buffer. */
static kv_status copy_tables(kv_checkpoint *k) {
    for (int i = 0; i < STEP_TABLES; i++) {
        kv_image image;
        kv_status status = kv_index_image_next(k->store->index, &image);
        if (status != KV_OK) return status;
        uint64_t offset = k->size + k->buffer_used;
        uint64_t checksum = kv_xxh64(image.bytes, image.size, k->file_id);
        status = buffer_add(k, image.bytes, image.size);
        if (status != KV_OK) return status;
        kv_index_image_placed(k->store->index, image.number, k->file_id, offset, checksum);
    }
    return KV_MORE;
}

/* A table that was never touched since open is read from its mapped file now. */
static kv_status copy_tables_guarded(kv_checkpoint *k) {
    kv_guard guard;
    kv_status status;
    if (KV_GUARD_CAUGHT(&guard)) status = KV_EMAPPING;
    else status = copy_tables(k);
    kv_guard_leave(&guard);
    return status;
}

static int by_id(const void *left, const void *right) {
    uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;
    return (a > b) - (a < b);
}

static kv_status collect_files(kv_checkpoint *k, const uint8_t *map, size_t size) {
    size_t count = size / KV_IMAGE_ENTRY_SIZE;
    k->file_ids = malloc((count + 1) * sizeof *k->file_ids);
    if (k->file_ids == NULL) return KV_ENOMEM;
    for (size_t i = 0; i < count; i++) k->file_ids[i] = kv_load64(map + i * KV_IMAGE_ENTRY_SIZE);
    k->file_ids[count] = k->file_id; /* It holds the map. */
    qsort(k->file_ids, count + 1, sizeof *k->file_ids, by_id);
    for (size_t i = 0; i <= count; i++) {
        uint64_t id = k->file_ids[i];
        bool again = k->file_id_count != 0 && k->file_ids[k->file_id_count - 1] == id;
        if (id != 0 && !again) k->file_ids[k->file_id_count++] = id;
    }
    return KV_OK;
}

static kv_status write_map(kv_checkpoint *k, const uint8_t *map, size_t size) {
    kv_io *io = k->store->io;
    kv_status status = buffer_add(k, map, size);
    if (status == KV_OK) status = buffer_add(k, k->ids, (k->big_id_count + k->table_id_count) * sizeof *k->ids);
    if (status == KV_OK) status = collect_files(k, map, size);
    if (status != KV_OK) return status;
    k->map_offset = k->size;
    k->map_size = size;
    k->map_checksum = kv_xxh64(k->buffer, k->buffer_used, k->file_id);
    status = buffer_flush(k);
    if (status == KV_OK) status = io->sync(io, k->file);
    if (status == KV_OK) status = io->sync_dir(io, "index");
    if (status == KV_OK) status = io->sync_dir(io, "");
    return status;
}

/* --- the run --- */

static kv_status run_open(kv_checkpoint *k) {
    kv_io *io = k->store->io;
    if (k->writer != NULL) return KV_OK;
    kv_status status = io->mkdir(io, "runs");
    if (status != KV_OK) return status;
    k->run_id = new_file_id(k->store);
    return kv_run_writer_new(io, k->run_id, &k->writer);
}

/* A name goes into the run unless what it names is deleted - a change, unless it was overtaken by a later one. Expired
 * keys stay: until they are reclaimed they are keys. So does what a snapshot may still want to list. */
static kv_status run_name(kv_checkpoint *k, const candidate *one) {
    kv_store *store = k->store;
    found f;
    kv_fault fault;
    kv_status status = store_find(store, &one->at, &f, &fault);
    if (status != KV_OK && status != KV_ABSENT) return status;
    bool change = one->space == KV_SPACE_CHANGES;
    bool live = status == KV_OK && (change ? f.record.version == one->version : !found_tombstone(&f));
    if (!live && !snapshot_wants(store, one->at.hash)) return KV_OK;
    status = run_open(k);
    return status == KV_OK ? kv_run_write(k->writer, one->name, one->name_size) : status;
}

/* Goes on behind the last name: between steps nothing is held, and chunks may have been merged. */
static kv_status run_names(kv_checkpoint *k) {
    kv_store *store = k->store;
    kv_fault fault;
    kv_status status =
        kv_order_build_seek(store->order, store->flow, &k->build, k->cursor, KV_SEEK_GT, k->last, k->last_size);
    for (size_t count = 0; status == KV_OK && count < STEP_NAMES; count += k->block.count) {
        status = candidates_take(store, k->cursor, CANDIDATE_COUNT_MAX, &k->block);
        if (status != KV_OK && status != KV_EOF) break;
        for (size_t i = 0; i < k->block.count; i++) {
            const candidate *one = &k->block.at[i];
            kv_status written = run_name(k, one);
            if (written != KV_OK) return written;
            memcpy(k->last, one->name, one->name_size);
            k->last_size = one->name_size;
        }
    }
    return status == KV_ECORRUPT ? order_fault(store, k->cursor, &fault) : status;
}

static kv_status run_work(kv_checkpoint *k) {
    if (k->sorted) return run_names(k);
    kv_status status = kv_order_build_sort(k->store->order, k->store->flow, &k->build);
    k->sorted = status == KV_OK;
    return status == KV_MORE ? KV_OK : status;
}

/* Inside the epoch, under a guard. KV_OK: there is more; KV_EOF: every name was looked at. */
static kv_status run_step(kv_checkpoint *k) {
    kv_store *store = k->store;
    kv_guard guard;
    kv_epoch_enter(store->epoch, k->slot);
    kv_status status = store_usable(store);
    if (status == KV_OK) {
        if (KV_GUARD_CAUGHT(&guard)) status = KV_EMAPPING;
        else status = run_work(k);
        kv_guard_leave(&guard);
        k->looked = kv_flow_tail(store->flow);
    }
    kv_epoch_leave(k->slot);
    return status;
}

static kv_status run_finish(kv_checkpoint *k) {
    kv_io *io = k->store->io;
    kv_status status = k->writer == NULL ? KV_OK : kv_run_finish(k->writer, &k->run);
    if (status == KV_OK && k->writer != NULL) status = io->sync_dir(io, "runs");
    if (status == KV_OK && k->writer != NULL) status = io->sync_dir(io, "");
    return status;
}

static kv_status list_runs(kv_checkpoint *k) {
    kv_order *order = k->store->order;
    if (!k->building) return kv_order_runs(order, &k->runs, &k->run_count);
    return kv_order_build_list(order, &k->build, k->writer == NULL ? NULL : &k->run, &k->runs, &k->run_count);
}

static kv_status describe(kv_checkpoint *k) {
    kv_store *store = k->store;
    uint64_t segment_count = 0, at = 0;
    for (uint32_t i = 0; i < k->counters.segment_capacity; i++) segment_count += k->counters.segment_live[i] != 0;
    size_t words = FIXED_WORDS + 1 + 2 * segment_count + 1 + k->file_id_count + 1 + RUN_WORDS * k->run_count + 1;
    uint64_t *word = calloc(words, sizeof *word);
    if (word == NULL) return KV_ENOMEM;
    memcpy(word, CHECKPOINT_MAGIC, 8);
    word[1] = CHECKPOINT_FORMAT;
    memcpy(word + 2, kv_flow_store_id(store->flow), 16);
    word[4] = kv_flow_salt(store->flow);
    word[5] = kv_position_order(k->position);
    word[6] = k->sequence;
    word[7] = (uint64_t)k->clock_ms;
    word[8] = atomic_load(&k->counters.key_count);
    word[9] = atomic_load(&k->counters.tombstone_count);
    word[10] = k->counters.big_count;
    word[11] = k->counters.big_size;
    word[12] = k->file_id;
    word[13] = k->map_offset;
    word[14] = k->map_size;
    word[15] = k->map_checksum;
    word[16] = k->big_id_count;
    word[17] = atomic_load(&k->counters.table_count);
    word[18] = atomic_load(&k->counters.row_count);
    word[19] = atomic_load(&k->counters.row_tombstone_count);
    word[20] = k->counters.clock_location;
    word[21] = k->counters.clock_used;
    word[22] = k->table_id_count;
    word[at = FIXED_WORDS] = segment_count;
    for (uint32_t i = 0; i < k->counters.segment_capacity; i++) {
        if (k->counters.segment_live[i] == 0) continue;
        word[++at] = i;
        word[++at] = k->counters.segment_live[i];
    }
    word[++at] = k->file_id_count;
    for (uint64_t i = 0; i < k->file_id_count; i++) word[++at] = k->file_ids[i];
    word[++at] = k->run_count;
    for (size_t i = 0; i < k->run_count; i++) {
        word[++at] = k->runs[i].id;
        word[++at] = k->runs[i].name_count;
        word[++at] = k->runs[i].size;
        word[++at] = k->runs[i].checksum;
    }
    k->description = (uint8_t *)word;
    k->description_size = words * sizeof *word;
    word[++at] = kv_xxh64(k->description, k->description_size - 8, 0);
    KV_ASSERT(at + 1 == words);
    return KV_OK;
}

static kv_status complete_image(kv_checkpoint *k) {
    kv_store *store = k->store;
    uint8_t *map = NULL;
    size_t size = 0;
    pthread_mutex_lock(&store->write_lock);
    kv_status status = kv_index_image_map(store->index, &map, &size);
    if (status == KV_OK) kv_index_image_end(store->index);
    k->imaging = status != KV_OK;
    pthread_mutex_unlock(&store->write_lock);
    if (status == KV_OK) status = write_map(k, map, size);
    free(map);
    return status;
}

static kv_status complete(kv_checkpoint *k) {
    kv_store *store = k->store;
    if (store->late != NULL && !store->late->checkpoint_may_end) return KV_EWAIT;
    kv_status status = run_finish(k);
    if (status == KV_OK) status = list_runs(k);
    /* As far as deletes were believed; settled, because a reopen starts at the position and takes what lies before for
     * sealed and durable. */
    bool hasty = store->late != NULL && store->late->hasty;
    if (status == KV_OK && !hasty) status = kv_flow_sync(store->flow, k->looked);
    if (status == KV_OK) status = kv_flow_settle(store->flow);
    if (status == KV_OK) status = describe(k);
    if (status == KV_OK) big_reap(store);
    return status == KV_OK ? KV_EOF : status;
}

kv_status kv_checkpoint_step(kv_checkpoint *k) {
    kv_store *store = k->store;
    if (k->description != NULL) return KV_EOF;
    if (!k->imaging) {
        kv_status status = k->building && !k->merged ? run_step(k) : KV_EOF;
        k->merged = status == KV_EOF;
        if (status == KV_OK) return KV_MORE;
        return status == KV_EOF ? complete(k) : status;
    }
    pthread_mutex_lock(&store->write_lock);
    kv_status status = copy_tables_guarded(k);
    pthread_mutex_unlock(&store->write_lock);
    if (status != KV_MORE && status != KV_EOF) return status;
    kv_status flushed = buffer_flush(k);
    if (flushed != KV_OK) return flushed;
    if (status == KV_EOF) status = complete_image(k);
    return status == KV_OK ? KV_MORE : status;
}

kv_status kv_checkpoint_steps(kv_checkpoint *k, uint32_t count) {
    kv_status status = KV_MORE;
    for (uint32_t i = 0; status == KV_MORE && i < count; i++) status = kv_checkpoint_step(k);
    return status;
}

kv_status kv_checkpoint_describe(kv_checkpoint *k, const uint8_t **bytes, size_t *size) {
    if (k->description == NULL) return KV_EUSAGE;
    *bytes = k->description;
    *size = k->description_size;
    return KV_OK;
}

/* --- files that are not needed --- */

static bool needed(const uint64_t *ids, uint64_t count, uint64_t id) {
    return count != 0 && bsearch(&id, ids, count, sizeof *ids, by_id) != NULL;
}

/* Unlinks the files of a directory except those in `ids` (sorted). */
static kv_status sweep_directory(kv_store *store, const char *directory, const char *suffix, const uint64_t *ids,
                                 uint64_t id_count) {
    char **names;
    size_t count;
    kv_status status = store->io->list(store->io, directory, &names, &count);
    if (status != KV_OK) return status == KV_ABSENT ? KV_OK : status;
    for (size_t i = 0; i < count; i++) {
        uint64_t id;
        char path[PATH_SIZE];
        if (!file_name_id(names[i], suffix, &id) || needed(ids, id_count, id)) continue;
        snprintf(path, sizeof path, "%s/%016llx%s", directory, (unsigned long long)id, suffix);
        store->io->unlink(store->io, path);
    }
    free(names);
    return KV_OK;
}

static kv_status sweep(kv_store *store, const uint64_t *ids, uint64_t id_count, const kv_run_info *runs,
                       size_t run_count) {
    uint64_t *run_ids = malloc((run_count + 1) * sizeof *run_ids);
    if (run_ids == NULL) return KV_ENOMEM;
    for (size_t i = 0; i < run_count; i++) run_ids[i] = runs[i].id;
    qsort(run_ids, run_count, sizeof *run_ids, by_id);
    kv_status status = sweep_directory(store, "index", ".idx", ids, id_count);
    if (status == KV_OK) status = sweep_directory(store, "runs", ".run", run_ids, run_count);
    free(run_ids);
    return status;
}

/* So that no file is kept for a few tables in it. */
static void dislodge_remains(kv_store *store, uint64_t newest) {
    kv_index_share *shares;
    size_t count;
    pthread_mutex_lock(&store->write_lock);
    if (kv_index_shares(store->index, &shares, &count) == KV_OK) {
        for (size_t i = 0; i < count; i++) {
            uint64_t size = 0;
            kv_file *file;
            char path[PATH_SIZE];
            index_path(shares[i].file_id, path);
            if (shares[i].file_id == newest || store->io->open(store->io, path, KV_IO_READ, &file) != KV_OK) continue;
            kv_status status = store->io->size(store->io, file, &size);
            store->io->close(store->io, file);
            if (status == KV_OK && shares[i].size * SHARE_MIN < size) kv_index_dislodge(store->index, shares[i].file_id);
        }
        free(shares);
    }
    pthread_mutex_unlock(&store->write_lock);
}

kv_status kv_checkpoint_published(kv_checkpoint *k) {
    kv_store *store = k->store;
    if (k->description == NULL) return KV_EUSAGE;
    k->published = true;
    pthread_mutex_lock(&store->write_lock);
    store->checkpoint_order = kv_position_order(k->position);
    pthread_mutex_unlock(&store->write_lock);
    if (k->building) {
        const kv_run_info *run = k->writer == NULL ? NULL : &k->run;
        kv_status status = kv_order_build_publish(store->order, &k->build, store->io, run);
        /* The old runs stay in use, so their files stay, too. */
        if (status != KV_OK) return status;
    }
    dislodge_remains(store, k->file_id);
    kv_status status = sweep(store, k->file_ids, k->file_id_count, k->runs, k->run_count);
    /* Last: the names that were created in them are in the run, and older checkpoints are not used any more. */
    return status == KV_OK ? store_remove_segments(store, &k->counters, k->position) : status;
}

void kv_checkpoint_free(kv_checkpoint *k) {
    if (k == NULL) return;
    kv_store *store = k->store;
    char path[PATH_SIZE];
    pthread_mutex_lock(&store->write_lock);
    if (k->counted) store->checkpointing = false;
    if (k->imaging && store->index != NULL) kv_index_image_end(store->index);
    if (k->building && store->order != NULL) kv_order_build_end(store->order);
    /* Tables believed to lie in a file that nobody will name have to be written again. */
    if (!k->published && k->file_id != 0 && store->index != NULL) kv_index_dislodge(store->index, k->file_id);
    pthread_mutex_unlock(&store->write_lock);
    if (k->file != NULL) store->io->close(store->io, k->file);
    if (!k->published && k->file != NULL) {
        index_path(k->file_id, path);
        store->io->unlink(store->io, path);
    }
    kv_run_writer_free(k->writer);
    if (!k->published && k->run_id != 0) {
        kv_run_path(k->run_id, path);
        store->io->unlink(store->io, path);
    }
    kv_order_cursor_free(k->cursor);
    kv_epoch_part(store->epoch, k->slot);
    free(k->block.bytes);
    free(k->last);
    free(k->runs);
    free(k->counters.segment_live);
    free(k->ids);
    kv_large_free(k->buffer);
    free(k->file_ids);
    free(k->description);
    free(k);
}

/* --- opening from one --- */

typedef struct parsed {
    const uint8_t *bytes;
    uint64_t segment_count, file_count, run_count;
    const uint8_t *segments, *files, *runs;
} parsed;

static uint64_t word_at(const uint8_t *bytes, uint64_t index) { return kv_load64(bytes + index * 8); }

static bool parse(const uint8_t *bytes, size_t size, parsed *out) {
    uint64_t words = size / 8, at = FIXED_WORDS;
    if (size % 8 != 0 || words < FIXED_WORDS + 4 || memcmp(bytes, CHECKPOINT_MAGIC, 8) != 0) return false;
    if (word_at(bytes, 1) != CHECKPOINT_FORMAT || word_at(bytes, words - 1) != kv_xxh64(bytes, size - 8, 0)) return false;
    out->bytes = bytes;
    out->segment_count = word_at(bytes, at);
    if (out->segment_count > (words - at) / 2) return false;
    out->segments = bytes + (at + 1) * 8;
    at += 1 + 2 * out->segment_count;
    if (at + 2 >= words) return false;
    out->file_count = word_at(bytes, at);
    out->files = bytes + (at + 1) * 8;
    if (out->file_count > words - at - 3) return false;
    at += 1 + out->file_count;
    out->run_count = word_at(bytes, at);
    out->runs = bytes + (at + 1) * 8;
    return out->run_count <= words / RUN_WORDS && at + 1 + RUN_WORDS * out->run_count + 1 == words;
}

static kv_run_info run_at(const parsed *p, uint64_t i) {
    const uint8_t *word = p->runs + i * RUN_WORDS * 8;
    return (kv_run_info){.id = word_at(word, 0),
                         .name_count = word_at(word, 1),
                         .size = word_at(word, 2),
                         .checksum = word_at(word, 3)};
}

static kv_status map_file(kv_store *store, uint64_t id, kv_index_file *out) {
    kv_io *io = store->io;
    kv_file *file;
    uint8_t *bytes = NULL;
    uint64_t size = 0;
    char path[PATH_SIZE];
    index_path(id, path);
    kv_status status = io->open(io, path, KV_IO_READ, &file);
    if (status != KV_OK) return status;
    status = io->size(io, file, &size);
    if (status == KV_OK && size < INDEX_HEADER_SIZE) status = KV_ECORRUPT;
    if (status == KV_OK) status = io->map(io, file, size, false, &bytes);
    io->close(io, file);
    if (status != KV_OK) return status;
    store->index_mappings[store->index_mapping_count] = bytes;
    store->index_mapping_sizes[store->index_mapping_count++] = size;
    /* An opener that wrote no segment made it in the generation that is ours now, too. */
    if ((uint32_t)id > store->index_file_next) store->index_file_next = (uint32_t)id;
    *out = (kv_index_file){.id = id, .bytes = bytes, .size = size};
    return KV_OK;
}

static kv_status load_map(kv_store *store, const parsed *p, const kv_index_file *files) {
    uint64_t id = word_at(p->bytes, 12), offset = word_at(p->bytes, 13), size = word_at(p->bytes, 14);
    uint64_t big_count = word_at(p->bytes, 16), table_count = word_at(p->bytes, 22);
    const kv_index_file *holder = NULL;
    for (uint64_t i = 0; i < p->file_count; i++)
        if (files[i].id == id) holder = &files[i];
    if (holder == NULL || offset > holder->size || size > holder->size - offset) return KV_ECORRUPT;
    uint64_t room = (holder->size - offset - size) / 8;
    if (big_count > room || table_count > room - big_count) return KV_ECORRUPT;
    const uint8_t *map = holder->bytes + offset, *ids = map + size;
    if (kv_xxh64(map, size + (big_count + table_count) * 8, id) != word_at(p->bytes, 15)) return KV_ECORRUPT;
    kv_status status = kv_index_load(store->index, map, size, files, p->file_count);
    for (uint64_t i = 0; status == KV_OK && i < big_count; i++) status = big_set_add(&store->bigs, word_at(ids, i));
    for (uint64_t i = 0; status == KV_OK && i < table_count; i++)
        status = big_set_add(&store->retired_tables, word_at(ids, big_count + i));
    return status;
}

/* Of segments up to the position's: the memory they take goes by the highest id. */
static kv_status load_counters(kv_store *store, const parsed *p) {
    counters *n = &store->counters;
    atomic_store(&n->key_count, word_at(p->bytes, 8));
    atomic_store(&n->tombstone_count, word_at(p->bytes, 9));
    n->big_count = word_at(p->bytes, 10);
    n->big_size = word_at(p->bytes, 11);
    atomic_store(&n->table_count, word_at(p->bytes, 17));
    atomic_store(&n->row_count, word_at(p->bytes, 18));
    atomic_store(&n->row_tombstone_count, word_at(p->bytes, 19));
    n->clock_location = word_at(p->bytes, 20);
    n->clock_used = (uint32_t)word_at(p->bytes, 21);
    for (uint64_t i = 0; i < p->segment_count; i++) {
        uint64_t id = word_at(p->segments, 2 * i), live = word_at(p->segments, 2 * i + 1);
        kv_status status = id > word_at(p->bytes, 5) >> 32 ? KV_ECORRUPT : counters_room(n, (uint32_t)id);
        if (status != KV_OK) return status;
        n->segment_live[id] = live;
        n->live_size += live;
    }
    return KV_OK;
}

static kv_status load_runs(kv_store *store, const parsed *p) {
    for (uint64_t i = 0; i < p->run_count; i++) {
        kv_run_info info = run_at(p, i);
        kv_status status = kv_order_add_run(store->order, store->io, &info);
        if (status != KV_OK) return status;
        if ((uint32_t)info.id > store->index_file_next) store->index_file_next = (uint32_t)info.id;
    }
    return KV_OK;
}

static kv_status load_parsed(kv_store *store, const parsed *p) {
    kv_index_file *files = calloc(p->file_count + 1, sizeof *files);
    store->index_mappings = calloc(p->file_count + 1, sizeof *store->index_mappings);
    store->index_mapping_sizes = calloc(p->file_count + 1, sizeof *store->index_mapping_sizes);
    bool room = files != NULL && store->index_mappings != NULL && store->index_mapping_sizes != NULL;
    kv_status status = room ? KV_OK : KV_ENOMEM;
    for (uint64_t i = 0; status == KV_OK && i < p->file_count; i++)
        status = map_file(store, word_at(p->files, i), &files[i]);
    if (status == KV_OK) status = load_map(store, p, files);
    if (status == KV_OK) status = load_counters(store, p);
    if (status == KV_OK) status = load_runs(store, p);
    free(files);
    return status;
}

/* Anything but KV_OK: the checkpoint is of no use; checkpoint_unload() before going on without. The flow compares the
 * store id before it does anything, the caller the salt when the flow has been opened. */
kv_status checkpoint_load(kv_store *store, const uint8_t *bytes, size_t size, kv_position *start) {
    parsed p;
    if (!parse(bytes, size, &p)) return KV_ECORRUPT;
    uint64_t order = word_at(bytes, 5);
    *start = (kv_position){.segment = (uint32_t)(order >> 32), .offset = (uint32_t)order};
    store->checkpoint_order = order;
    store->checkpoint_sequence = word_at(bytes, 6);
    if (word_at(bytes, 7) != 0) store_set_clock(store, (int64_t)word_at(bytes, 7));
    return load_parsed(store, &p);
}

const uint8_t *checkpoint_store_id(const uint8_t *bytes) { return bytes + 16; }

bool checkpoint_belongs(const kv_store *store, const uint8_t *bytes) {
    bool same_store = memcmp(checkpoint_store_id(bytes), kv_flow_store_id(store->flow), 16) == 0;
    bool same_salt = word_at(bytes, 4) == kv_flow_salt(store->flow);
    return same_store && same_salt && word_at(bytes, 6) <= kv_flow_ceiling(store->flow);
}

void checkpoint_unload(kv_store *store) {
    for (size_t i = 0; i < store->index_mapping_count; i++)
        store->io->unmap(store->io, NULL, store->index_mappings[i], store->index_mapping_sizes[i]);
    free(store->index_mappings);
    free(store->index_mapping_sizes);
    store->index_mappings = NULL;
    store->index_mapping_sizes = NULL;
    store->index_mapping_count = 0;
}

kv_status checkpoint_sweep(kv_store *store, const uint8_t *bytes, size_t size) {
    parsed p;
    bool kept = store->used_checkpoint && parse(bytes, size, &p);
    if (!kept) return sweep(store, NULL, 0, NULL, 0);
    uint64_t *ids = malloc((p.file_count + 1) * sizeof *ids);
    kv_run_info *runs = malloc((p.run_count + 1) * sizeof *runs);
    for (uint64_t i = 0; ids != NULL && i < p.file_count; i++) ids[i] = word_at(p.files, i);
    for (uint64_t i = 0; runs != NULL && i < p.run_count; i++) runs[i] = run_at(&p, i);
    kv_status status = ids == NULL || runs == NULL ? KV_ENOMEM : sweep(store, ids, p.file_count, runs, p.run_count);
    free(runs);
    free(ids);
    return status;
}
