/* bigs.c -- values in files of their own: "values/%016x.val", bytes and nothing else, named by a small record with
 * length and digest.
 *
 * The order that recovery stands on: the file is whole and durable, name included, before the record that names it is
 * appended; it goes only after a record that took that one's place is durable. So a record in the log always has its
 * file, and a file without a record is what a crash left between the two: it is removed at the next open.
 *
 * Ids are never used twice: the high half is the segment this opener writes first, the low half counts. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "store_internal.h"

enum { PATH_SIZE = 40, CHUNK = 1 << 20, SET_CAPACITY_MIN = 16 };

bool file_name_id(const char *name, const char *suffix, uint64_t *id) {
    char again[PATH_SIZE];
    unsigned long long value = 0;
    if (sscanf(name, "%16llx", &value) != 1) return false;
    snprintf(again, sizeof again, "%016llx%s", value, suffix);
    *id = value;
    return strcmp(again, name) == 0;
}

static void big_path(uint64_t id, char path[PATH_SIZE]) {
    snprintf(path, PATH_SIZE, "values/%016llx.val", (unsigned long long)id);
}

/* --- the set of ids that records point to --- */

static uint64_t set_slot(const big_set *set, uint64_t id) {
    uint64_t at = (id * 0x9E3779B185EBCA87ULL >> 20) & (set->capacity - 1);
    while (set->ids[at] != 0 && set->ids[at] != id) at = (at + 1) & (set->capacity - 1);
    return at;
}

static kv_status set_grow(big_set *set) {
    big_set larger = {.capacity = set->capacity == 0 ? SET_CAPACITY_MIN : set->capacity * 2, .count = set->count};
    larger.ids = calloc(larger.capacity, sizeof *larger.ids);
    if (larger.ids == NULL) return KV_ENOMEM;
    for (uint64_t i = 0; i < set->capacity; i++)
        if (set->ids[i] != 0) larger.ids[set_slot(&larger, set->ids[i])] = set->ids[i];
    free(set->ids);
    *set = larger;
    return KV_OK;
}

bool big_set_has(const big_set *set, uint64_t id) { return set->capacity != 0 && set->ids[set_slot(set, id)] == id; }

kv_status big_set_add(big_set *set, uint64_t id) {
    if (id == 0) return KV_ECORRUPT; /* No file has it: it marks what is empty. */
    if (set->count * 2 >= set->capacity && set_grow(set) != KV_OK) return KV_ENOMEM;
    uint64_t at = set_slot(set, id);
    if (set->ids[at] == 0) set->count++;
    set->ids[at] = id;
    return KV_OK;
}

/* What stands behind a removed id in the same run moves up, so that no search ends too early. */
void big_set_remove(big_set *set, uint64_t id) {
    if (!big_set_has(set, id)) return;
    uint64_t mask = set->capacity - 1, at = set_slot(set, id);
    set->ids[at] = 0;
    set->count--;
    for (at = (at + 1) & mask; set->ids[at] != 0; at = (at + 1) & mask) {
        uint64_t moved = set->ids[at];
        set->ids[at] = 0;
        set->ids[set_slot(set, moved)] = moved;
    }
}

/* --- files --- */

static kv_status make_directory(kv_store *store) {
    if (atomic_load(&store->big_dir_made)) return KV_OK;
    kv_status status = store->io->mkdir(store->io, "values");
    if (status == KV_OK) status = store->io->sync_dir(store->io, "");
    if (status == KV_OK) atomic_store(&store->big_dir_made, true);
    /* As with any failed sync: a second one may say "fine" and not be. */
    if (status == KV_EDISK) kv_flow_set_poison(store->flow, status, errno);
    return status;
}

static kv_status write_file(kv_store *store, const char *path, const uint8_t *value, size_t size, uint64_t *digest) {
    kv_io *io = store->io;
    kv_file *file = NULL;
    kv_xxh64_state state;
    kv_xxh64_begin(&state, 0);
    uint8_t *copy = malloc(CHUNK);
    kv_status status = copy == NULL ? KV_ENOMEM : io->open(io, path, KV_IO_CREATE, &file);
    /* Summed and written from a copy: the caller's buffer may change meanwhile, digest and file must not differ. */
    for (size_t at = 0; status == KV_OK && at < size; at += CHUNK) {
        size_t piece = size - at < CHUNK ? size - at : CHUNK;
        memcpy(copy, value + at, piece);
        kv_xxh64_update(&state, copy, piece);
        status = io->write_at(io, file, copy, piece, at);
    }
    free(copy);
    if (status == KV_OK) status = io->sync(io, file);
    int os_error = errno;
    if (file != NULL) io->close(io, file);
    errno = os_error;
    *digest = kv_xxh64_end(&state);
    return status;
}

static kv_status big_write_open(kv_caller *c, const uint8_t *value, size_t size, kv_big *out) {
    kv_store *store = c->store;
    char path[PATH_SIZE];
    kv_status status = store_usable(store);
    if (status == KV_OK) status = store_writable(store);
    if (status == KV_OK && kv_flow_poison(store->flow, NULL) != KV_OK) status = KV_EPOISONED;
    if (status == KV_OK) status = make_directory(store);
    if (status != KV_OK) return status;
    out->size = size;
    out->file_id = store->generation << 32 | (atomic_fetch_add(&store->big_next, 1) + 1);
    big_path(out->file_id, path);
    status = write_file(store, path, value, size, &out->digest);
    if (status == KV_OK) status = store->io->sync_dir(store->io, "values");
    if (status == KV_OK) return KV_OK;
    int os_error = errno;
    if (status == KV_EDISK) kv_flow_set_poison(store->flow, status, os_error);
    big_give_up(store, out);
    errno = os_error;
    return status;
}

/* Inside the epoch: a value takes long to write, and close() has to wait for it. */
kv_status big_write(kv_caller *c, const uint8_t *value, size_t size, kv_big *out) {
    kv_epoch_enter(c->store->epoch, c->slot);
    kv_status status = big_write_open(c, value, size, out);
    kv_epoch_leave(c->slot);
    return status;
}

/* What cannot be removed now is removed at the next open. */
void big_give_up(kv_store *store, const kv_big *big) {
    char path[PATH_SIZE];
    big_path(big->file_id, path);
    pthread_mutex_lock(&store->write_lock);
    /* After a failed write nobody knows whether the record is in the log: then it needs its file. */
    bool unknown = store->io == NULL || kv_flow_poison(store->flow, NULL) != KV_OK;
    if (!unknown) store->io->unlink(store->io, path);
    pthread_mutex_unlock(&store->write_lock);
}

/* KV_MORE: the file is gone, so the record has been replaced: look again. KV_ECORRUPT: it holds something else. */
kv_status big_read(kv_caller *c, const kv_big *big, uint8_t *to) {
    kv_io *io = c->store->io;
    kv_file *file;
    char path[PATH_SIZE];
    size_t got = 0;
    big_path(big->file_id, path);
    kv_status status = io->open(io, path, KV_IO_READ, &file);
    if (status != KV_OK) return status == KV_ABSENT ? KV_MORE : status;
    status = io->read_at(io, file, to, big->size, 0, &got);
    io->close(io, file);
    if (status != KV_OK) return status;
    return got == big->size && kv_xxh64(to, got, 0) == big->digest ? KV_OK : KV_ECORRUPT;
}

kv_status big_fault(kv_caller *c, const found *f) {
    return fault_corrupt(&c->answer.fault, f->location, "its value's file does not hold what was written");
}

/* --- files that nothing points to any more --- */

/* Without memory to remember it the file stays until the next open sweeps it. */
void big_retire(kv_store *store, const kv_big *big, kv_position since, uint64_t replaced) {
    if (store->retired_count == store->retired_capacity) {
        size_t capacity = store->retired_capacity == 0 ? 16 : store->retired_capacity * 2;
        big_retired *larger = realloc(store->retired, capacity * sizeof *larger);
        if (larger == NULL) return;
        store->retired = larger;
        store->retired_capacity = capacity;
    }
    store->retired[store->retired_count++] =
        (big_retired){
            .file_id = big->file_id, .size = big->size, .since = kv_position_order(since), .replaced = replaced};
    store->retired_size += big->size;
}

/* Takes what may go out of the list; the rest stays in order. For free(). */
static uint64_t *take_durable(kv_store *store, size_t *count) {
    *count = 0;
    uint64_t *ids = store->retired_count == 0 || store->pin_count != 0 ? NULL : malloc(store->retired_count * sizeof *ids);
    if (ids == NULL) return NULL;
    uint64_t durable = kv_position_order(kv_flow_durable(store->flow)), oldest = snapshot_oldest(store);
    size_t kept = 0;
    for (size_t i = 0; i < store->retired_count; i++) {
        big_retired one = store->retired[i];
        if (one.since > durable || one.replaced > oldest) {
            store->retired[kept++] = one;
        } else {
            ids[(*count)++] = one.file_id;
            store->retired_size -= one.size;
        }
    }
    store->retired_count = kept;
    return ids;
}

/* The files go outside the lock: giving back a gigabyte takes a disk longer than a writer should wait. */
void big_reap(kv_store *store) {
    size_t count;
    pthread_mutex_lock(&store->write_lock);
    uint64_t *ids = take_durable(store, &count);
    pthread_mutex_unlock(&store->write_lock);
    for (size_t i = 0; i < count; i++) {
        char path[PATH_SIZE];
        big_path(ids[i], path);
        store->io->unlink(store->io, path);
    }
    free(ids);
}

kv_status big_sweep(kv_store *store) {
    char **names;
    size_t count;
    kv_status status = store->io->list(store->io, "values", &names, &count);
    if (status != KV_OK) return status == KV_ABSENT ? KV_OK : status;
    for (size_t i = 0; i < count; i++) {
        uint64_t id;
        char path[PATH_SIZE];
        if (!file_name_id(names[i], ".val", &id) || big_set_has(&store->bigs, id)) continue;
        /* What took its place may not be durable yet: the log may have been found, and not synced since. */
        status = kv_flow_sync(store->flow, kv_flow_tail(store->flow));
        if (status != KV_OK) break;
        big_path(id, path);
        store->io->unlink(store->io, path);
    }
    free(names);
    if (status != KV_OK) return status;
    store->retired_count = 0; /* What a replay retired is among what was just removed. */
    store->retired_size = 0;
    return KV_OK;
}
