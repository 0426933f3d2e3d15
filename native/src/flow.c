/* flow.c -- append, group sync, read at a position. See kv/flow.h for what it promises, flow_internal.h for the
 * header page, recover.c for how the end is found again.
 *
 * Order of writes, which recovery stands on:
 *   1. a segment's name appears only when its header and zeros are durable;
 *   2. records go in one behind the other; sync() makes segments durable oldest first;
 *   3. a watermark is written only after everything below it, in this and all earlier segments, is durable;
 *   4. a seal likewise; after it the file is cut to its end;
 *   5. a file is unlinked only when the link that leads around it is durable. */
#include "flow_internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "kv/xxh64.h"

enum {
    MAP_CAPACITY_MIN = 64,
    WARM_SIZE = 64 << 10,
    COOL_SIZE_MIN = 256 << 10,
    RECORD_SIZE_MIN = KV_RECORD_HEAD_SIZE,
    SCRATCH_KEPT_MAX = 4 << 20, /* a batch of 64 MiB is not to cost so much for ever */
    CONTENT_SHARE = 8
};

static int64_t monotonic_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* --- failures --- */

/* The first failed write or sync ends writing for good: what the kernel did with the pages is unknown, and a second
 * fdatasync may say "fine" about pages it dropped (Rebello et al., "Can applications recover from fsync failures?",
 * 2020). A full disk is no such failure as long as nothing was half done. */
kv_status flow_fail(kv_flow *flow, kv_status status) {
    if (status == KV_EDISK || status == KV_EMAPPING) kv_flow_set_poison(flow, status, errno);
    return status;
}

void kv_flow_set_poison(kv_flow *flow, kv_status status, int os_error) {
    int none = 0;
    if (atomic_compare_exchange_strong(&flow->poison, &none, (int)status)) atomic_store(&flow->poison_errno, os_error);
}

kv_status kv_flow_poison(const kv_flow *flow, int *os_error) {
    kv_status status = (kv_status)atomic_load(&flow->poison);
    if (status != KV_OK && os_error != NULL) *os_error = atomic_load(&flow->poison_errno);
    return status;
}

/* --- segments --- */

void segment_path(uint32_t id, char path[SEGMENT_PATH_SIZE]) { snprintf(path, SEGMENT_PATH_SIZE, "flow/%08x.seg", id); }

segment *segment_find(const kv_flow *flow, uint32_t id) {
    const segment_map *map = atomic_load_explicit(&flow->map, memory_order_acquire);
    if (map == NULL || id - map->base >= map->capacity) return NULL;
    return atomic_load_explicit(&map->at[id - map->base], memory_order_acquire);
}

/* Ids only grow, so the map does at its upper end. */
static kv_status map_grow(kv_flow *flow, uint32_t id) {
    segment_map *old = atomic_load_explicit(&flow->map, memory_order_relaxed);
    uint32_t base = old == NULL ? id : old->base;
    uint32_t capacity = MAP_CAPACITY_MIN;
    while (capacity <= id - base) {
        if (capacity > UINT32_MAX / 2) return KV_ENOMEM;
        capacity *= 2;
    }
    segment_map *map = calloc(1, sizeof *map + capacity * sizeof map->at[0]);
    if (map == NULL) return KV_ENOMEM;
    map->previous = old;
    map->base = base;
    map->capacity = capacity;
    for (uint32_t i = 0; old != NULL && i < old->capacity; i++) atomic_store(&map->at[i], atomic_load(&old->at[i]));
    atomic_store_explicit(&flow->map, map, memory_order_release);
    return KV_OK;
}

kv_status segment_register(kv_flow *flow, segment *one) {
    segment_map *map = atomic_load_explicit(&flow->map, memory_order_relaxed);
    KV_ASSERT(map == NULL || one->id >= map->base);
    if (map == NULL || one->id - map->base >= map->capacity) {
        if (map_grow(flow, one->id) != KV_OK) return KV_ENOMEM;
        map = atomic_load_explicit(&flow->map, memory_order_relaxed);
    }
    atomic_store_explicit(&map->at[one->id - map->base], one, memory_order_release);
    return KV_OK;
}

void segment_forget(kv_flow *flow, uint32_t id) {
    segment_map *map = atomic_load(&flow->map);
    atomic_store(&map->at[id - map->base], NULL);
}

void segment_release(kv_flow *flow, segment *one) {
    if (one == NULL) return;
    if (one->bytes != NULL) flow->io->unmap(flow->io, one->file, one->bytes, one->size);
    if (one->file != NULL) flow->io->close(flow->io, one->file);
    free((void *)atomic_load(&one->intact));
    free(one);
}

void segments_release(kv_flow *flow) {
    segment_map *map = atomic_exchange(&flow->map, NULL);
    for (uint32_t i = 0; map != NULL && i < map->capacity; i++) segment_release(flow, atomic_load(&map->at[i]));
    while (map != NULL) {
        segment_map *previous = map->previous;
        free(map);
        map = previous;
    }
}

uint32_t watermark_check(const kv_flow *flow, uint32_t id, uint32_t offset) {
    uint8_t bytes[4];
    kv_store32(bytes, offset);
    return (uint32_t)kv_xxh64(bytes, sizeof bytes, kv_place(flow->salt, id, HEADER_WATERMARK));
}

kv_status segment_write_watermark(kv_flow *flow, segment *one, uint32_t offset) {
    uint8_t bytes[8];
    kv_store32(bytes, offset);
    kv_store32(bytes + 4, watermark_check(flow, one->id, offset));
    kv_status status = flow->io->write_at(flow->io, one->file, bytes, sizeof bytes, HEADER_WATERMARK);
    if (status != KV_OK) return flow_fail(flow, status);
    one->watermark = offset;
    return KV_OK;
}

static kv_status segment_write_seal(kv_flow *flow, segment *one) {
    uint8_t bytes[HEADER_SEAL_BYTES];
    kv_store32(bytes, atomic_load(&one->end));
    kv_store32(bytes + 4, one->next);
    kv_store64(bytes + 8, one->last_sequence);
    kv_store64(bytes + 16, kv_xxh64(bytes, 16, kv_place(flow->salt, one->id, HEADER_SEAL)));
    return flow_fail(flow, flow->io->write_at(flow->io, one->file, bytes, sizeof bytes, HEADER_SEAL));
}

/* Ends a segment at `offset` with a SEAL record; no record before it has a number above `sequence`. */
kv_status segment_write_seal_record(kv_flow *flow, segment *one, uint32_t offset, uint32_t next, uint64_t sequence) {
    uint8_t value[4], bytes[KV_SEAL_SIZE];
    kv_store32(value, next);
    kv_record seal = {.kind = KV_KIND_SEAL, .version = sequence, .value = value, .value_size = sizeof value};
    KV_ASSERT(kv_record_size(&seal) == KV_SEAL_SIZE);
    kv_record_encode(&seal, kv_place(flow->salt, one->id, offset), bytes);
    kv_status status = flow->io->write_at(flow->io, one->file, bytes, sizeof bytes, offset);
    if (status != KV_OK) return flow_fail(flow, status);
    one->next = next;
    one->last_sequence = sequence;
    atomic_store_explicit(&one->end, offset + KV_SEAL_SIZE, memory_order_release);
    atomic_store_explicit(&one->ended, true, memory_order_release);
    return KV_OK;
}

/* --- preparing the next segment --- */

static void header_encode(const kv_flow *flow, const segment *one, uint8_t page[KV_SEGMENT_HEADER_SIZE]) {
    memset(page, 0, KV_SEGMENT_HEADER_SIZE);
    memcpy(page, SEGMENT_MAGIC, 8);
    kv_store32(page + HEADER_FORMAT, FLOW_FORMAT);
    kv_store32(page + HEADER_ID, one->id);
    memcpy(page + HEADER_STORE_ID, flow->store_id, 16);
    kv_store64(page + HEADER_SALT, flow->salt);
    kv_store64(page + HEADER_CEILING, one->ceiling);
    kv_store32(page + HEADER_SIZE, one->size);
    kv_store64(page + HEADER_CREATED, (uint64_t)flow->io->now_ms(flow->io));
    kv_store64(page + HEADER_CHECKSUM, kv_xxh64(page, HEADER_CHECKSUM, 0));
}

/* Zeros in 4 KiB writes: larger ones make the kernel keep the file in large folios, and every small store through
 * the mapping then dirties, and every fdatasync writes, all of one (docs/decisions/0003). */
static kv_status fill_with_zeros(kv_flow *flow, segment *one) {
    static const uint8_t zeros[KV_PAGE_SIZE];
    for (uint32_t at = KV_SEGMENT_HEADER_SIZE; at < one->size; at += KV_PAGE_SIZE) {
        kv_status status = flow->io->write_at(flow->io, one->file, zeros, KV_PAGE_SIZE, at);
        if (status != KV_OK) return status;
    }
    return KV_OK;
}

static bool records_are_large(const kv_flow *flow) {
    enum { LARGE_SIZE = 8192 };
    uint64_t content = atomic_load(&flow->content);
    return content != UINT64_MAX && content / LARGE_SIZE > atomic_load(&flow->content_count);
}

/* Nobody has synced of late, nor is going to. Prepare lock. */
static bool is_warming(const kv_flow *flow) {
    return flow->options.warm && flow->warm_syncs == atomic_load(&flow->sync_count);
}

/* Filled, a segment is written twice: that is worth it where records share pages that are synced over and over, and each
 * record would pay for the first touch of a page that was only allocated (docs/decisions/0020). */
static bool wants_zeros(const kv_flow *flow, const segment *one) {
    bool warms = one->writable && is_warming(flow);
    return !records_are_large(flow) && !warms;
}

static kv_status segment_make(kv_flow *flow, segment *one) {
    kv_io *io = flow->io;
    uint8_t header[KV_SEGMENT_HEADER_SIZE];
    char path[SEGMENT_PATH_SIZE];
    segment_path(one->id, path);
    header_encode(flow, one, header);

    kv_status status = io->open(io, SEGMENT_TEMPORARY, KV_IO_CREATE, &one->file);
    if (status == KV_OK) status = io->allocate(io, one->file, one->size);
    if (status == KV_OK && wants_zeros(flow, one)) status = fill_with_zeros(flow, one);
    if (status == KV_OK) status = io->write_at(io, one->file, header, sizeof header, 0);
    if (status == KV_OK) status = io->sync(io, one->file);
    if (status == KV_OK) status = io->rename(io, SEGMENT_TEMPORARY, path);
    if (status == KV_OK) status = io->sync_dir(io, "flow");
    if (status == KV_OK) status = io->map(io, one->file, one->size, one->writable, &one->bytes);
    return status;
}

static kv_status segment_prepare(kv_flow *flow, uint32_t size) {
    if (flow->ceiling > SEQUENCE_MAX - size / RECORD_SIZE_MIN) return KV_ECORRUPT;
    segment *one = calloc(1, sizeof *one);
    if (one == NULL) return KV_ENOMEM;
    one->id = flow->next_id;
    if (flow->first_made == 0) flow->first_made = one->id;
    one->size = size;
    one->ceiling = flow->ceiling + size / RECORD_SIZE_MIN;
    one->writable = !flow->options.write_calls && !records_are_large(flow);
    atomic_init(&one->end, KV_SEGMENT_HEADER_SIZE);

    kv_status status = segment_make(flow, one);
    if (status == KV_OK) status = segments_unlink_behind(flow);
    if (status != KV_OK) {
        int os_error = errno;
        if (one->file != NULL && status == KV_ENOSPC) flow->io->unlink(flow->io, SEGMENT_TEMPORARY);
        segment_release(flow, one);
        errno = os_error;
        return flow_fail(flow, status);
    }
    flow->next_id++;
    flow->ceiling = one->ceiling;
    flow->next_size = size * 2 < flow->options.segment_size_max ? size * 2 : flow->options.segment_size_max;
    atomic_store_explicit(&flow->next, one, memory_order_release);
    return KV_OK;
}

/* Gives up a prepared segment that holds nothing. */
static kv_status next_discard(kv_flow *flow) {
    segment *one = atomic_exchange(&flow->next, NULL);
    if (one == NULL) return KV_OK;
    char path[SEGMENT_PATH_SIZE];
    segment_path(one->id, path);
    segment_release(flow, one);
    kv_status status = flow->io->unlink(flow->io, path);
    if (status == KV_OK) status = flow->io->sync_dir(flow->io, "flow");
    return flow_fail(flow, status);
}

/* Twice the one before, but a small store stays a small directory: compaction frees whole segments, and with few of
 * them each carries much of what is dead. */
static uint32_t scheduled_size(const kv_flow *flow) {
    uint64_t content = atomic_load(&flow->content);
    uint32_t size = flow->next_size;
    while (content != UINT64_MAX && size > flow->options.segment_size_min && size > content / CONTENT_SHARE) size /= 2;
    return size;
}

void kv_flow_set_content(kv_flow *flow, uint64_t live_size, uint64_t live_count) {
    atomic_store(&flow->content, live_size);
    atomic_store(&flow->content_count, live_count);
}

kv_status kv_flow_prepare(kv_flow *flow, uint32_t size) {
    pthread_mutex_lock(&flow->prepare_lock);
    kv_status status = kv_flow_poison(flow, NULL) != KV_OK ? KV_EPOISONED : KV_OK;
    const segment *next = atomic_load(&flow->next);
    if (status == KV_OK && next != NULL && next->size < size) {
        status = next_discard(flow);
        next = NULL;
        flow->next_id--; /* Behind a clean close nothing names the next segment yet: a gap would be a missing one. */
    }
    if (status == KV_OK && next == NULL) {
        uint32_t planned = scheduled_size(flow);
        while (planned < size) planned *= 2;
        status = segment_prepare(flow, planned);
    }
    pthread_mutex_unlock(&flow->prepare_lock);
    return status;
}

/* A piece at a time: while the kernel works on one, whoever maps or unmaps memory in this process waits. Ends when a writer
 * has moved on to the segment: making the one behind it is more urgent then. A writer does not get behind it meanwhile, for
 * that wants the lock; so the segment stays where it is. */
static void segment_warm(kv_flow *flow, const segment *one) {
    for (uint32_t at = 0; at < one->size && atomic_load(&flow->next) == one; at += WARM_SIZE) {
        uint32_t size = one->size - at < WARM_SIZE ? one->size - at : WARM_SIZE;
        flow->io->warm(flow->io, one->bytes + at, size);
    }
}

void kv_flow_warm(kv_flow *flow) {
    if (!flow->options.warm) return;
    pthread_mutex_lock(&flow->prepare_lock);
    const segment *next = atomic_load(&flow->next);
    if (next != NULL && next->writable && is_warming(flow)) segment_warm(flow, next);
    flow->warm_syncs = atomic_load(&flow->sync_count);
    pthread_mutex_unlock(&flow->prepare_lock);
}

bool kv_flow_wants_prepare(const kv_flow *flow) { return atomic_load(&flow->next) == NULL; }

/* --- appending --- */

static void tail_publish(kv_flow *flow, const segment *one) {
    kv_position tail = {.segment = one->id, .offset = atomic_load_explicit(&one->end, memory_order_relaxed)};
    atomic_store_explicit(&flow->tail, kv_position_order(tail), memory_order_release);
}

/* The first segment behind a clean close: the closed one's header gets to name it, durably, so that it cannot vanish
 * unnoticed. Its SEAL record goes on saying 0. */
static kv_status name_successor(kv_flow *flow, uint32_t id) {
    segment *closed = segment_find(flow, kv_flow_tail(flow).segment);
    char path[SEGMENT_PATH_SIZE];
    if (closed == NULL) return KV_OK; /* a new store */
    KV_ASSERT(closed->sealed && closed->file == NULL);
    segment_path(closed->id, path);
    kv_status status = flow->io->open(flow->io, path, KV_IO_WRITE, &closed->file);
    if (status != KV_OK) return flow_fail(flow, status);
    closed->next = id;
    status = segment_write_seal(flow, closed);
    if (status == KV_OK) status = flow_fail(flow, flow->io->sync(flow->io, closed->file));
    flow->io->close(flow->io, closed->file);
    closed->file = NULL;
    return status;
}

/* Ends the segment before `id`, naming that. Numbers went on above the ceilings of a log that was not closed, so there the
 * last one used is what was found. */
static kv_status seal_for(kv_flow *flow, uint32_t id) {
    bool found = flow->active == NULL;
    segment *last = found ? flow->recovered : flow->active;
    if (last == NULL) return name_successor(flow, id);
    return segment_write_seal_record(flow, last, atomic_load(&last->end), id, found ? last->last_sequence : flow->sequence);
}

/* Moves on to the prepared segment: the one before is sealed only when the next is there to be named. */
static kv_status flow_roll(kv_flow *flow, uint64_t size) {
    uint64_t whole = KV_SEGMENT_HEADER_SIZE + size + KV_SEAL_SIZE;
    if (whole > flow->options.segment_size_max) return KV_EBATCHSIZE;
    /* What is there is the writer's to take, without the lock: the preparer may hold it to warm that very segment. */
    segment *next = atomic_load(&flow->next);
    kv_status status = next == NULL || next->size < whole ? kv_flow_prepare(flow, (uint32_t)whole) : KV_OK;
    if (status != KV_OK) return status;
    next = atomic_load(&flow->next);
    /* First what can fail without a trace: behind a SEAL nothing may be appended any more. */
    status = segment_register(flow, next);
    if (status != KV_OK) return status;
    status = seal_for(flow, next->id);
    if (status != KV_OK) {
        segment_forget(flow, next->id);
        return status;
    }
    atomic_store(&flow->next, NULL);
    flow->active = next;
    flow->recovered = NULL;
    tail_publish(flow, next);
    return KV_OK;
}

bool kv_flow_has_room(const kv_flow *flow, uint64_t size) {
    const segment *active = flow->active;
    return active != NULL && active->writable &&
           atomic_load_explicit(&active->end, memory_order_relaxed) + size + KV_SEAL_SIZE <= active->size;
}

kv_status kv_flow_reserve(kv_flow *flow, uint64_t size, uint64_t sequence_count, uint8_t **bytes, kv_position *position) {
    KV_ASSERT(size % KV_RECORD_ALIGN == 0);
    if (KV_UNLIKELY(atomic_load_explicit(&flow->poison, memory_order_relaxed) != KV_OK)) return KV_EPOISONED;
    segment *active = flow->active;
    if (active == NULL || atomic_load_explicit(&active->end, memory_order_relaxed) + size + KV_SEAL_SIZE > active->size) {
        kv_status status = flow_roll(flow, size);
        if (status != KV_OK) return status;
        active = flow->active;
    }
    KV_ASSERT(flow->sequence + sequence_count <= active->ceiling);
    position->segment = active->id;
    position->offset = atomic_load_explicit(&active->end, memory_order_relaxed);
    if (active->writable) {
        *bytes = active->bytes + position->offset;
        return KV_OK;
    }
    if (flow->scratch_size < size) {
        uint8_t *larger = realloc(flow->scratch, size);
        if (larger == NULL) return KV_ENOMEM;
        flow->scratch = larger;
        flow->scratch_size = size;
    }
    *bytes = flow->scratch;
    return KV_OK;
}

kv_status kv_flow_commit(kv_flow *flow, kv_position position, uint64_t size) {
    segment *active = flow->active;
    KV_ASSERT(active != NULL && active->id == position.segment && atomic_load(&active->end) == position.offset);
    if (!active->writable) {
        kv_status status = flow->io->write_at(flow->io, active->file, flow->scratch, size, position.offset);
        if (status != KV_OK) {
            /* Half a record may stand there now, so even a full disk ends writing here. */
            kv_flow_set_poison(flow, KV_EDISK, errno);
            return status;
        }
        if (flow->scratch_size > SCRATCH_KEPT_MAX) {
            free(flow->scratch);
            flow->scratch = NULL;
            flow->scratch_size = 0;
        }
    }
    atomic_store_explicit(&active->end, position.offset + (uint32_t)size, memory_order_release);
    tail_publish(flow, active);
    return KV_OK;
}

/* --- group sync --- */

/* One thread at a time makes things durable: it leads, the others wait for what it reaches. Who is beyond its target waits
 * for the next turn, and of those one is woken when this turn ends, to lead: so everybody is woken once, and the disk is
 * busy again before the first of those who have what they wanted runs. Lock held; let go on return. */
static void lead(kv_flow *flow, uint64_t target) {
    while (flow->syncing) pthread_cond_wait(&flow->sync_done[flow->turn], &flow->sync_lock);
    flow->syncing = true;
    flow->turn ^= 1;
    flow->sync_target = target;
    pthread_mutex_unlock(&flow->sync_lock);
}

static void follow(kv_flow *flow) {
    pthread_mutex_lock(&flow->sync_lock);
    pthread_cond_t *done = &flow->sync_done[flow->turn], *late = &flow->sync_done[flow->turn ^ 1];
    flow->syncing = false;
    flow->sync_target = 0;
    pthread_mutex_unlock(&flow->sync_lock);
    pthread_cond_signal(late);
    pthread_cond_broadcast(done);
}

/* Not for a handful of pages: who reads or writes there next meets a fault for every 64 KiB. */
static void cool_unsynced(kv_flow *flow, const segment *one, kv_position from, kv_position to) {
    uint32_t start = one->id == from.segment ? from.offset : 0, end = one->id == to.segment ? to.offset : one->size;
    start = (start + KV_PAGE_SIZE - 1) / KV_PAGE_SIZE * KV_PAGE_SIZE;
    end = end / KV_PAGE_SIZE * KV_PAGE_SIZE;
    if (one->writable && end > start && end - start >= COOL_SIZE_MIN) flow->io->cool(flow->io, one->bytes + start, end - start);
}

/* Leader. Oldest first: durable is a prefix of the log, never a patchwork. */
static kv_status sync_files(kv_flow *flow, kv_position from, kv_position to) {
    for (uint32_t id = from.segment; id <= to.segment; id++) {
        segment *one = segment_find(flow, id);
        if (one == NULL || one->file == NULL) continue;
        cool_unsynced(flow, one, from, to);
        kv_status status = flow->io->sync(flow->io, one->file);
        if (status != KV_OK) {
            kv_flow_set_poison(flow, KV_EDISK, errno);
            return status;
        }
        atomic_fetch_add(&flow->sync_count, 1);
    }
    return KV_OK;
}

/* Leader. At most every KV_WATERMARK_MS_MIN: a second dirty page in every fdatasync costs a fifth of its speed
 * (docs/decisions/0004), and being late only makes a torn tail longer than it was. */
static kv_status watermark_note(kv_flow *flow, kv_position durable) {
    int64_t now = monotonic_ms();
    if (flow->options.write_watermark_always || now - flow->watermark_ms >= KV_WATERMARK_MS_MIN) {
        segment *one = segment_find(flow, durable.segment);
        if (one == NULL || one->file == NULL || one->watermark >= durable.offset) return KV_OK;
        flow->watermark_ms = now;
        flow->watermark_dirty = true;
        return segment_write_watermark(flow, one, durable.offset);
    }
    return KV_OK;
}

static kv_status sync_lead(kv_flow *flow, kv_position target) {
    kv_position durable = kv_flow_durable(flow);
    kv_status status = sync_files(flow, durable, target);
    if (status != KV_OK) return status;
    flow->watermark_dirty = false;
    atomic_store_explicit(&flow->durable, kv_position_order(target), memory_order_release);
    /* Everything is durable already. Where there is no room to write the header anew, a later sync will do it. */
    status = watermark_note(flow, target);
    return status == KV_ENOSPC ? KV_OK : status;
}

kv_status kv_flow_sync(kv_flow *flow, kv_position upto) {
    uint64_t wanted = kv_position_order(upto);
    if (atomic_load_explicit(&flow->durable, memory_order_acquire) >= wanted) return KV_OK;
    pthread_mutex_lock(&flow->sync_lock);
    while (flow->syncing && atomic_load(&flow->durable) < wanted && kv_flow_poison(flow, NULL) == KV_OK) {
        unsigned turn = wanted <= flow->sync_target ? flow->turn : flow->turn ^ 1;
        pthread_cond_wait(&flow->sync_done[turn], &flow->sync_lock);
    }
    bool done = atomic_load(&flow->durable) >= wanted, failed = kv_flow_poison(flow, NULL) != KV_OK;
    if (done || failed) {
        pthread_mutex_unlock(&flow->sync_lock);
        if (done) return KV_OK;
        /* Perhaps this was the one that was woken to lead: the others have to hear of it. */
        for (size_t i = 0; i < 2; i++) pthread_cond_broadcast(&flow->sync_done[i]);
        return KV_EPOISONED;
    }
    kv_position target = kv_flow_tail(flow);
    lead(flow, kv_position_order(target));
    kv_status status = sync_lead(flow, target);
    follow(flow);
    return status;
}

/* Says in its header, durably, that a durable segment is complete, and gives its unused tail back. One sync for both: the
 * SEAL record is durable already, so either may reach the disk without the other. */
kv_status segment_finish(kv_flow *flow, segment *one) {
    uint32_t end = atomic_load(&one->end);
    kv_status status = segment_write_seal(flow, one);
    if (status == KV_OK) status = segment_write_watermark(flow, one, end);
    if (status == KV_OK) status = segment_cut(flow, one, end);
    if (status != KV_OK) return status;
    flow->io->close(flow->io, one->file);
    one->file = NULL;
    one->sealed = true;
    return KV_OK;
}

/* Ended, and behind its SEAL durable. */
static bool wholly_durable(const segment *one, kv_position durable) {
    if (!atomic_load_explicit(&one->ended, memory_order_acquire)) return false;
    return one->id != durable.segment || durable.offset >= atomic_load(&one->end);
}

static kv_status settle_lead(kv_flow *flow) {
    kv_position durable = kv_flow_durable(flow);
    for (uint32_t id = flow->unsealed; id <= durable.segment; id++) {
        segment *one = segment_find(flow, id);
        bool waits = one != NULL && !one->sealed;
        if (waits && !wholly_durable(one, durable)) break;
        kv_status status = waits ? segment_finish(flow, one) : KV_OK;
        if (status != KV_OK) return status;
        flow->unsealed = id + 1;
    }
    segment *last = segment_find(flow, durable.segment);
    if (last == NULL || last->sealed || last->file == NULL) return KV_OK;
    if (last->watermark < durable.offset) {
        kv_status status = segment_write_watermark(flow, last, durable.offset);
        if (status != KV_OK) return status;
        flow->watermark_dirty = true;
    }
    if (!flow->watermark_dirty) return KV_OK;
    flow->watermark_dirty = false;
    return flow_fail(flow, flow->io->sync(flow->io, last->file));
}

kv_status kv_flow_settle(kv_flow *flow) {
    if (kv_flow_poison(flow, NULL) != KV_OK) return KV_EPOISONED;
    pthread_mutex_lock(&flow->sync_lock);
    lead(flow, 0);
    kv_status status = settle_lead(flow);
    follow(flow);
    return status;
}

/* --- taking segments out --- */

/* Segments that follow one another in the chain, and the link that leads around them. */
typedef struct removal {
    uint32_t first;
    uint32_t last;
    segment *target; /* whose header gets the link */
    chain_link link;
} removal;

static uint64_t larger(uint64_t a, uint64_t b) { return a > b ? a : b; }

static bool is_among(const uint32_t *ids, size_t count, uint32_t id) {
    for (size_t i = 0; i < count; i++)
        if (ids[i] == id) return true;
    return false;
}

/* Whatever was written may reach the disk later even if this fails, so what is unknown ends writing. By path: a sealed
 * segment has no file open, and that of the newest one belongs to whoever leads a sync. */
static kv_status link_write(kv_flow *flow, uint32_t id, const chain_link *link) {
    kv_io *io = flow->io;
    kv_file *file;
    char path[SEGMENT_PATH_SIZE];
    uint8_t bytes[HEADER_CHAIN_BYTES];
    kv_store32(bytes, link->next);
    kv_store32(bytes + 4, link->first);
    kv_store64(bytes + 8, link->required);
    kv_store64(bytes + 16, kv_xxh64(bytes, 16, kv_place(flow->salt, id, HEADER_CHAIN)));

    segment_path(id, path);
    kv_status status = io->open(io, path, KV_IO_WRITE, &file);
    if (status == KV_ABSENT) status = KV_EDISK; /* Taken away behind our back. */
    if (status != KV_OK) return flow_fail(flow, status);
    status = flow_fail(flow, io->write_at(io, file, bytes, sizeof bytes, HEADER_CHAIN));
    if (status == KV_OK) {
        status = io->sync(io, file);
        if (status != KV_OK) kv_flow_set_poison(flow, KV_EDISK, errno);
    }
    int os_error = errno;
    io->close(io, file);
    errno = os_error;
    return status;
}

/* Writer lock. */
static kv_status removal_check(const kv_flow *flow, const uint32_t *ids, size_t count) {
    if (flow->options.readonly) return KV_EREADONLY;
    if (kv_flow_poison(flow, NULL) != KV_OK) return KV_EPOISONED;
    uint32_t newest = kv_flow_tail(flow).segment;
    for (size_t i = 0; i < count; i++) {
        const segment *one = segment_find(flow, ids[i]);
        if (one == NULL || !one->sealed || one->id == newest) return KV_EUSAGE;
    }
    return KV_OK;
}

/* The oldest neighbours among `ids` that are still in the log; false: none are. Writer lock. */
static bool removal_plan(const kv_flow *flow, const uint32_t *ids, size_t count, kv_position required, removal *out) {
    const segment_map *map = atomic_load(&flow->map);
    segment *before = NULL, *behind = NULL;
    *out = (removal){0};
    uint64_t least = kv_position_order(required);
    for (uint32_t i = 0; behind == NULL && i < map->capacity; i++) {
        segment *one = atomic_load(&map->at[i]);
        if (one == NULL) continue;
        if (is_among(ids, count, one->id)) {
            if (out->first == 0) out->first = one->id;
            out->last = one->id;
            least = larger(least, one->link.required);
        } else if (out->first == 0) {
            before = one;
        } else {
            behind = one;
        }
    }
    if (out->first == 0) return false;
    KV_ASSERT(behind != NULL); /* The newest is never among them. */
    out->target = before != NULL ? before : behind;
    out->link = out->target->link;
    out->link.required = larger(least, out->link.required);
    if (before != NULL) out->link.next = behind->id;
    else out->link.first = 1;
    return true;
}

static void segment_reclaim(void *context, void *memory) {
    kv_flow *flow = context;
    flow->retired_count--;
    segment_release(flow, memory);
}

/* Leading, because a leader looks at segments without being inside the epoch. */
static void removal_take_out(kv_flow *flow, pthread_mutex_t *writer_lock, const removal *r) {
    pthread_mutex_lock(&flow->sync_lock);
    lead(flow, 0);
    pthread_mutex_lock(writer_lock);
    r->target->link = r->link;
    for (uint32_t id = r->first; id <= r->last; id++) {
        segment *one = segment_find(flow, id);
        if (one == NULL) continue;
        segment_forget(flow, id);
        if (kv_epoch_retire(flow->epoch, segment_reclaim, flow, one) == KV_OK) {
            flow->retired_count++;
        } else {
            one->kept = flow->kept;
            flow->kept = one;
        }
    }
    pthread_mutex_unlock(writer_lock);
    follow(flow);
}

/* Oldest first, so that a reader in one of them that is still there finds the next, or finds that it is behind. Neither
 * failure nor a name that comes back in a crash does harm: no link leads there, and the next writer sweeps. */
static void removal_unlink(kv_flow *flow, const uint32_t *ids, size_t count, const removal *r) {
    for (uint32_t id = r->first; id <= r->last; id++) {
        char path[SEGMENT_PATH_SIZE];
        segment_path(id, path);
        if (is_among(ids, count, id)) flow->io->unlink(flow->io, path);
    }
}

kv_status kv_flow_remove(kv_flow *flow, pthread_mutex_t *writer_lock, const uint32_t *ids, size_t count,
                         kv_position required) {
    removal r;
    pthread_mutex_lock(writer_lock);
    kv_status status = removal_check(flow, ids, count);
    pthread_mutex_unlock(writer_lock);
    while (status == KV_OK) {
        pthread_mutex_lock(writer_lock);
        bool any = removal_plan(flow, ids, count, required, &r);
        pthread_mutex_unlock(writer_lock);
        if (!any) break;
        status = link_write(flow, r.target->id, &r.link);
        if (status != KV_OK) break;
        removal_take_out(flow, writer_lock, &r);
        removal_unlink(flow, ids, count, &r);
    }
    return status;
}

/* --- the end --- */

static kv_status close_writer(kv_flow *flow) {
    kv_status status = flow->recovered != NULL ? flow_roll(flow, 0) : KV_OK;
    /* On a full disk a log that was not closed, and not written to since, stays as it was found. */
    if (status == KV_ENOSPC) return KV_OK;
    segment *active = flow->active;
    if (status == KV_OK && active != NULL) {
        status = segment_write_seal_record(flow, active, atomic_load(&active->end), 0, flow->sequence);
        if (status == KV_OK) tail_publish(flow, active);
    }
    if (status == KV_OK) status = kv_flow_sync(flow, kv_flow_tail(flow));
    if (status == KV_OK) status = kv_flow_settle(flow);
    if (status == KV_OK) status = next_discard(flow);
    return status;
}

static kv_status close_failed(const kv_flow *flow, kv_status status, kv_fault *fault) {
    fault->status = status;
    fault->os_error = errno;
    if (status == KV_EPOISONED) kv_flow_poison(flow, &fault->os_error);
    fault->position = kv_flow_tail(flow);
    snprintf(fault->what, sizeof fault->what, "the flow could not be closed; the next open recovers what is durable");
    return status;
}

kv_status kv_flow_close(kv_flow *flow, kv_fault *fault) {
    if (flow->closed || flow->options.readonly) return KV_OK;
    flow->closed = true;
    /* Not silently: the sync that failed may have been one that nobody waited for. */
    kv_status status = kv_flow_poison(flow, NULL) != KV_OK ? KV_EPOISONED : close_writer(flow);
    return status == KV_OK ? KV_OK : close_failed(flow, status, fault);
}

void kv_flow_free(kv_flow *flow) {
    if (flow == NULL) return;
    if (flow->retired_count != 0) kv_epoch_reclaim(flow->epoch);
    KV_ASSERT(flow->retired_count == 0); /* Later there is no flow to free them by. */
    segment_release(flow, atomic_load(&flow->next));
    segments_release(flow);
    while (flow->kept != NULL) {
        segment *one = flow->kept;
        flow->kept = one->kept;
        segment_release(flow, one);
    }
    free(flow->scratch);
    free(flow->behind);
    free(flow->damages);
    pthread_mutex_destroy(&flow->prepare_lock);
    pthread_mutex_destroy(&flow->sync_lock);
    for (size_t i = 0; i < 2; i++) pthread_cond_destroy(&flow->sync_done[i]);
    free(flow);
}

/* --- looking --- */

const uint8_t *kv_flow_at(const kv_flow *flow, uint32_t id, uint32_t offset, uint64_t *size) {
    const segment *one = segment_find(flow, id);
    if (one == NULL || offset >= one->size) return NULL;
    *size = one->size - offset;
    return one->bytes + offset;
}

/* At most one record of KV_NOTED_SIZE_MIN bytes begins in a page. */
static uint64_t page_bit(uint32_t offset) { return (uint64_t)1 << (offset / KV_PAGE_SIZE % 64); }

bool kv_flow_made(const kv_flow *flow, uint32_t id) { return flow->first_made != 0 && id >= flow->first_made; }

bool kv_flow_was_intact(const kv_flow *flow, uint32_t id, uint32_t offset) {
    const segment *one = segment_find(flow, id);
    _Atomic uint64_t *words = one == NULL ? NULL : atomic_load_explicit(&one->intact, memory_order_acquire);
    if (words == NULL) return false;
    return (atomic_load_explicit(&words[offset / KV_PAGE_SIZE / 64], memory_order_relaxed) & page_bit(offset)) != 0;
}

/* No memory, no note. */
void kv_flow_note_intact(const kv_flow *flow, uint32_t id, uint32_t offset) {
    segment *one = segment_find(flow, id);
    if (one == NULL) return;
    _Atomic uint64_t *words = atomic_load_explicit(&one->intact, memory_order_acquire);
    if (words == NULL) {
        _Atomic uint64_t *made = calloc(one->size / KV_PAGE_SIZE / 64 + 1, sizeof *made);
        if (made == NULL) return;
        /* Somebody else may have been faster: then `words` becomes theirs. */
        if (atomic_compare_exchange_strong(&one->intact, &words, made)) words = made;
        else free((void *)made);
    }
    atomic_fetch_or_explicit(&words[offset / KV_PAGE_SIZE / 64], page_bit(offset), memory_order_relaxed);
}

kv_status kv_flow_segments(const kv_flow *flow, kv_segment_info **out, size_t *count) {
    const segment_map *map = atomic_load(&flow->map);
    uint32_t capacity = map == NULL ? 0 : map->capacity;
    kv_segment_info *infos = calloc(capacity + 1, sizeof *infos);
    if (infos == NULL) return KV_ENOMEM;
    *count = 0;
    for (uint32_t i = 0; i < capacity; i++) {
        const segment *one = atomic_load(&map->at[i]);
        if (one == NULL) continue;
        infos[(*count)++] = (kv_segment_info){
            .id = one->id, .size = one->size, .end = atomic_load(&one->end), .sealed = one->sealed};
    }
    *out = infos;
    return KV_OK;
}

kv_position kv_flow_tail(const kv_flow *flow) {
    return position_of(atomic_load_explicit(&flow->tail, memory_order_acquire));
}

kv_position kv_flow_durable(const kv_flow *flow) {
    return position_of(atomic_load_explicit(&flow->durable, memory_order_acquire));
}

uint64_t kv_flow_sync_count(const kv_flow *flow) { return atomic_load(&flow->sync_count); }
uint64_t kv_flow_salt(const kv_flow *flow) { return flow->salt; }
const uint8_t *kv_flow_store_id(const kv_flow *flow) { return flow->store_id; }
bool kv_flow_was_clean(const kv_flow *flow) { return flow->was_clean; }
uint64_t kv_flow_sequence(const kv_flow *flow) { return flow->sequence; }
uint64_t kv_flow_ceiling(const kv_flow *flow) { return flow->ceiling; }
uint32_t kv_flow_first(const kv_flow *flow) { return flow->active != NULL ? flow->active->id : flow->next_id; }
void kv_flow_set_sequence(kv_flow *flow, uint64_t sequence) { flow->sequence = sequence; }
