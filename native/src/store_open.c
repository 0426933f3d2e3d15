/* store_open.c -- opening, replaying, closing, counting.
 *
 * A directory is a store if it holds "flow"; nothing else says so. Opening: take the writer's lock, start from the
 * checkpoint if there is one that fits, replay the flow behind it. Whatever is wrong with the checkpoint, the same
 * state comes from a replay of everything, and that is what happens then. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#include "late.h"

static const uint64_t SNAPSHOT_SIZE_MAX = (uint64_t)1 << 30;

/* --- the directory --- */

static bool name_is_ours(const char *name) {
    static const char *const names[] = {"flow", "values", "index", "runs", "LOCK", "checkpoint", "checkpoint.new", "nodes.json", "nodes.json.new"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (strcmp(name, names[i]) == 0) return true;
    return strncmp(name, "catalog", strlen("catalog")) == 0;
}

/* Nothing may be written into a directory that is somebody else's. */
static kv_status check_directory(kv_io *io, bool readonly, kv_fault *fault) {
    char **names;
    size_t count;
    bool flow = false;
    const char *stranger = NULL;
    kv_status status = io->list(io, "", &names, &count);
    if (status != KV_OK) {
        fault->os_error = errno;
        snprintf(fault->what, sizeof fault->what, "the directory cannot be listed");
        return status;
    }
    for (size_t i = 0; i < count; i++) {
        if (strcmp(names[i], "flow") == 0) flow = true;
        else if (!name_is_ours(names[i])) stranger = names[i];
    }
    if (!flow && stranger != NULL) {
        status = KV_ENOTSTORE;
        snprintf(fault->what, sizeof fault->what, "the directory holds %.80s and no flow", stranger);
    } else if (!flow && readonly) {
        status = KV_ENOTFOUND;
        snprintf(fault->what, sizeof fault->what, "the directory holds no store");
    }
    free(names);
    return status;
}

static kv_status take_lock(kv_io *io, kv_fault *fault) {
    int64_t holder = 0;
    kv_status status = io->lock(io, &holder);
    fault->os_error = status == KV_ELOCKED ? (int)holder : errno;
    if (status == KV_ELOCKED) snprintf(fault->what, sizeof fault->what, "process %lld has it open", (long long)holder);
    else if (status != KV_OK) snprintf(fault->what, sizeof fault->what, "the lock file cannot be taken");
    return status;
}

/* --- replay --- */

kv_status counters_room(counters *n, uint32_t segment) {
    if (segment < n->segment_capacity) return KV_OK;
    uint32_t capacity = n->segment_capacity == 0 ? 64 : n->segment_capacity;
    while (capacity <= segment) {
        if (capacity > UINT32_MAX / 2) return KV_ENOMEM;
        capacity *= 2;
    }
    uint64_t *larger = realloc(n->segment_live, capacity * sizeof *larger);
    if (larger == NULL) return KV_ENOMEM;
    memset(larger + n->segment_capacity, 0, (capacity - n->segment_capacity) * sizeof *larger);
    n->segment_live = larger;
    n->segment_capacity = capacity;
    return KV_OK;
}

/* Keys must not be able to choose their slots: the seed is the store's, and nobody outside knows it. */
static void set_hash_seed(kv_store *store) { store->hash_seed = kv_flow_salt(store->flow) * 0x9E3779B185EBCA87ULL + 1; }

/* A row or a floor may come before its table: compaction moves records on. Which tables never come is known at the end. */
kv_status store_replay_part(kv_store *store, const kv_record *record, kv_fault *fault) {
    found head;
    bool row = record->kind == KV_KIND_ROW_PUT || record->kind == KV_KIND_ROW_DELETE;
    if (record->kind == KV_KIND_TABLE_NEW) big_set_remove(&store->orphans, record->table_id);
    if (!row && record->kind != KV_KIND_TABLE_FLOOR) return KV_OK;
    target t = target_table(store, record->table_id, KV_LOC_HEAD);
    kv_status status = store_find(store, &t, &head, fault);
    return status == KV_ABSENT ? big_set_add(&store->orphans, record->table_id) : status;
}

static kv_status replay_data(kv_store *store, const kv_record *record, kv_position position, uint32_t used, kv_fault *fault) {
    bool row = record->kind == KV_KIND_ROW_PUT || record->kind == KV_KIND_ROW_DELETE;
    bool table = record->kind != KV_KIND_PUT && record->kind != KV_KIND_DELETE;
    if ((record->key_size == 0 && !row) || (table && record->table_id == 0))
        return fault_corrupt(fault, kv_loc_make(position.segment, position.offset, 0), "a record without a name");
    kv_status status = store_replay_part(store, record, fault);
    return status == KV_OK ? store_show(store, record, position, used, fault) : status;
}

/* Behind the last record: rows whose table was dropped, and that drop compacted away. */
static kv_status retire_orphans(kv_store *store) {
    kv_status status = KV_OK;
    for (uint64_t i = 0; status == KV_OK && i < store->orphans.capacity; i++)
        if (store->orphans.ids[i] != 0) status = big_set_add(&store->retired_tables, store->orphans.ids[i]);
    free(store->orphans.ids);
    store->orphans = (big_set){0};
    return status;
}

typedef struct replaying {
    kv_store *store;
    kv_fault *fault;
} replaying;

static kv_status store_replay(void *context, const kv_record *record, kv_position position, uint32_t used) {
    replaying *r = context;
    kv_store *store = r->store;
    uint64_t until = store->options.replay_until;
    if (store->hash_seed == 0) set_hash_seed(store);
    if (KV_UNLIKELY(until != 0 && kv_position_order(position) >= until)) return KV_OK;
    store->replayed_count++;
    if (store->late != NULL) return store->late->resolve(store->late->context, store, record, position, used, r->fault);
    switch (record->kind) {
    case KV_KIND_PUT:
    case KV_KIND_DELETE:
    case KV_KIND_ROW_PUT:
    case KV_KIND_ROW_DELETE:
    case KV_KIND_TABLE_NEW:
    case KV_KIND_TABLE_DROP:
    case KV_KIND_TABLE_FLOOR:
        return replay_data(store, record, position, used, r->fault);
    case KV_KIND_CLOCK:
        return store_show_clock(store, record, position, used);
    default:
        r->fault->status = KV_EFORMAT;
        snprintf(r->fault->what, sizeof r->fault->what, "the store holds records of kind %u, which this version does not know",
                 record->kind);
        return KV_EFORMAT;
    }
}

/* What the records will change or replace lies anywhere in memory: slots first, then what they point at. */
static void store_replay_ahead(void *context, const kv_record *records, size_t count) {
    const replaying *r = context;
    kv_store *store = r->store;
    uint64_t hashes[KV_REPLAY_BLOCK];
    kv_probe probe;
    if (store->hash_seed == 0) set_hash_seed(store);
    for (size_t i = 0; i < count; i++) {
        hashes[i] = target_of(store, &records[i]).hash;
        kv_index_prefetch(store->index, hashes[i]);
    }
    for (size_t i = 0; i < count; i++) store_prefetch(store, kv_index_first(store->index, hashes[i], &probe));
}

static void state_clear(kv_store *store) {
    kv_index_free(store->index);
    kv_order_free(store->order);
    store->index = NULL;
    store->order = NULL;
    checkpoint_unload(store);
    free(store->counters.segment_live);
    store->counters = (counters){0};
    free(store->bigs.ids);
    store->bigs = (big_set){0};
    free(store->retired_tables.ids);
    store->retired_tables = (big_set){0};
    free(store->orphans.ids);
    store->orphans = (big_set){0};
    store->retired_count = 0;
    store->replayed_count = 0;
    store->checkpoint_order = 0;
    store->checkpoint_sequence = 0;
    store->hash_seed = 0;
    atomic_store(&store->clock_ms, 0);
    atomic_store(&store->clock_lead, 0);
    atomic_store(&store->index_damaged, false);
}

static kv_status store_told(void *context, const kv_record *ledger, kv_position at, uint32_t *size) {
    kv_store *store = ((replaying *)context)->store;
    return store->late->told(store->late->context, store, ledger, at, size);
}

static kv_status open_flow(kv_store *store, kv_position start, kv_position noted, const uint8_t *store_id, kv_fault *fault) {
    const kv_options *o = &store->options;
    kv_flow_options options = {.readonly = o->readonly != 0,
                               .write_calls = o->write_calls != 0,
                               .segment_size_min = o->segment_size_min,
                               .segment_size_max = o->segment_size_max,
                               .store_id = store_id,
                               .noted = noted,
                               .sequence_min = o->sequence_min,
                               .salvage = o->salvage != 0,
                               .ahead = store_replay_ahead,
                               .told = store->late != NULL && store->late->told != NULL ? store_told : NULL,
                               .warm = o->sync == KV_SYNC_NONE,
                               .write_watermark_always = !o->background};
    replaying r = {.store = store, .fault = fault};
    return kv_flow_open(store->io, store->epoch, &options, start, store_replay, &r, fault, &store->flow);
}

/* From a checkpoint. KV_EUSAGE: it does not fit, and nothing on the disk was changed. Anything else is final. */
static kv_status open_from(kv_store *store, const uint8_t *bytes, size_t size, kv_fault *fault) {
    kv_position noted;
    if (checkpoint_load(store, bytes, size, &noted) != KV_OK) return KV_EUSAGE;
    kv_late *late = store->late;
    if (late != NULL) late->image = kv_position_order(noted);
    if (late != NULL && kv_position_order(late->start) > late->image) return KV_EUSAGE;
    kv_status status = open_flow(store, late == NULL ? noted : late->start, noted, checkpoint_store_id(bytes), fault);
    if (status == KV_OK && checkpoint_belongs(store, bytes)) {
        store->used_checkpoint = true;
        return KV_OK;
    }
    bool its_fault = status == KV_OK || status == KV_EUSAGE || store->index_damaged;
    kv_flow_free(store->flow);
    store->flow = NULL;
    return its_fault ? KV_EUSAGE : status;
}

static kv_status state_new(kv_store *store) {
    kv_status status = kv_index_new(store->epoch, &store->index);
    return status == KV_OK ? kv_order_new(store->epoch, &store->write_lock, &store->order) : status;
}

static kv_status open_state(kv_store *store, const uint8_t *checkpoint, size_t size, kv_fault *fault) {
    kv_status status = state_new(store);
    if (status == KV_OK) status = checkpoint == NULL ? KV_EUSAGE : open_from(store, checkpoint, size, fault);
    if (status != KV_EUSAGE) return status;
    state_clear(store);
    if (store->late != NULL) {
        store->late->image = 0;
        if (store->late->restart != NULL) store->late->restart(store->late->context);
    }
    *fault = (kv_fault){0};
    status = state_new(store);
    return status == KV_OK ? open_flow(store, (kv_position){0}, (kv_position){0}, NULL, fault) : status;
}

static kv_status open_guarded(kv_store *store, const uint8_t *checkpoint, size_t size, kv_fault *fault) {
    kv_guard guard;
    kv_status status;
    if (KV_GUARD_CAUGHT(&guard)) {
        status = KV_EMAPPING;
        snprintf(fault->what, sizeof fault->what, "a file of the store became shorter while it was read, or the disk fails");
    } else {
        status = open_state(store, checkpoint, size, fault);
    }
    kv_guard_leave(&guard);
    return status;
}

/* --- opening --- */

static void default_options(kv_options *o, kv_io *io) {
    if (o->segment_size_min == 0) o->segment_size_min = KV_SEGMENT_SIZE_MIN;
    if (o->segment_size_max == 0) o->segment_size_max = KV_SEGMENT_SIZE_MAX;
    if (o->segment_size_max < o->segment_size_min) o->segment_size_max = o->segment_size_min;
    if (o->inline_size_max == 0) o->inline_size_max = KV_INLINE_SIZE_MAX;
    if (o->snapshot_size_max == 0) o->snapshot_size_max = SNAPSHOT_SIZE_MAX;
    if (o->sync_ms_max <= 0) o->sync_ms_max = 10;
    if (!io->maps_well(io)) o->write_calls = 1;
}

/* After fork the child shares nothing of this but the addresses: no thread runs there, a lock may be held for ever. A
 * page that the kernel clears in the child tells in one load, also where fork was not Python's. */
static kv_status make_alive(kv_store *store) {
    void *page = mmap(NULL, KV_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED) return KV_ENOMEM;
    store->alive = page;
    if (madvise(page, KV_PAGE_SIZE, MADV_WIPEONFORK) != 0) return KV_EDISK;
    *store->alive = 1;
    return KV_OK;
}

static kv_status open_store(kv_store *store, const uint8_t *checkpoint, size_t size, kv_fault *fault) {
    kv_io *io = store->io;
    bool readonly = store->options.readonly != 0;
    kv_status status = make_alive(store);
    if (status == KV_OK) status = kv_epoch_new(&store->epoch);
    if (status == KV_OK) status = kv_undo_new(&store->undo);
    if (status == KV_OK) status = check_directory(io, readonly, fault);
    if (status == KV_OK && !readonly) status = take_lock(io, fault);
    if (status == KV_OK) status = open_guarded(store, checkpoint, size, fault);
    if (status != KV_OK) return status;

    set_hash_seed(store);
    if (!readonly) status = retire_orphans(store);
    if (status != KV_OK) return status;
    store->was_clean = kv_flow_was_clean(store->flow);
    if (kv_flow_sequence(store->flow) < store->checkpoint_sequence)
        kv_flow_set_sequence(store->flow, store->checkpoint_sequence);
    if (readonly) return KV_OK;
    store->generation = kv_flow_first(store->flow);
    if (store->options.sync != KV_SYNC_NONE) status = kv_flow_sync(store->flow, kv_flow_tail(store->flow));
    if (status == KV_OK) status = big_sweep(store);
    if (status == KV_OK) status = checkpoint_sweep(store, checkpoint, size);
    atomic_store(&store->state, STORE_OPEN);
    return status == KV_OK ? wake_start(store) : status;
}

static kv_status open_as(kv_io *io, const kv_options *options, kv_late *late, const uint8_t *checkpoint,
                         size_t checkpoint_size, kv_fault *fault, kv_store **out) {
    *fault = (kv_fault){0};
    kv_store *store = calloc(1, sizeof *store);
    if (store == NULL) {
        io->free(io);
        return KV_ENOMEM;
    }
    store->io = io;
    store->late = late;
    store->options = *options;
    default_options(&store->options, io);
    pthread_mutex_init(&store->write_lock, NULL);
    pthread_mutex_init(&store->callers_lock, NULL);
    pthread_mutex_init(&store->removal_lock, NULL);
    wake_init(store);
    kv_guard_install();
    atomic_store(&store->state, STORE_OPEN);

    kv_status status = open_store(store, checkpoint, checkpoint_size, fault);
    if (status != KV_OK) {
        fault->status = status;
        if (fault->what[0] == 0) snprintf(fault->what, sizeof fault->what, "%s", kv_status_name(status));
        kv_store_free(store);
        return status;
    }
    *out = store;
    return KV_OK;
}

kv_status kv_store_open(kv_io *io, const kv_options *options, const uint8_t *checkpoint, size_t checkpoint_size,
                        kv_fault *fault, kv_store **out) {
    return open_as(io, options, NULL, checkpoint, checkpoint_size, fault, out);
}

kv_status store_open_late(kv_io *io, const kv_options *options, kv_late *late, const uint8_t *checkpoint, size_t size,
                          kv_fault *fault, kv_store **out) {
    return open_as(io, options, late, checkpoint, size, fault, out);
}

/* --- closing --- */

void kv_store_quiesce(kv_store *store) {
    if (*store->alive == 0) return;
    pthread_mutex_lock(&store->write_lock);
    int open = STORE_OPEN;
    atomic_compare_exchange_strong(&store->state, &open, STORE_QUIET);
    pthread_mutex_unlock(&store->write_lock);
    wake_waiters(store);
    wake_bells(store);
}

/* Takes everything away that points into the flow, when nobody is inside any more. The wait is outside the lock: a
 * durable writer is inside the epoch before it gets the lock; it will find the store closed. */
static void let_go(kv_store *store) {
    pthread_mutex_lock(&store->write_lock);
    atomic_store(&store->state, STORE_CLOSED);
    pthread_mutex_unlock(&store->write_lock);
    kv_epoch_drain(store->epoch);
    pthread_mutex_lock(&store->write_lock);
    kv_flow_free(store->flow);
    store->flow = NULL;
    kv_index_free(store->index);
    store->index = NULL;
    kv_order_free(store->order);
    store->order = NULL;
    checkpoint_unload(store);
    kv_io *io = store->io;
    store->io = NULL; /* First: a child that is forked now must not take it for alive. */
    io->free(io);
    pthread_mutex_unlock(&store->write_lock);
    wake_bells(store);
}

kv_status kv_store_close(kv_store *store, kv_fault *fault) {
    *fault = (kv_fault){0};
    if (*store->alive == 0) return KV_EFORKED;
    if (atomic_load(&store->state) == STORE_CLOSED) return KV_OK;
    kv_store_quiesce(store);
    wake_stop(store);
    kv_status status = kv_flow_close(store->flow, fault);
    if (!store->options.readonly) big_reap(store);
    let_go(store);
    return status;
}

void kv_store_let_go(kv_store *store) {
    if (store->io != NULL) store->io->let_go(store->io);
}

void kv_store_free(kv_store *store) {
    if (store == NULL) return;
    /* In a forked child locks may be held by threads that do not exist there: leave it all to the end of the process. */
    if (store->alive != NULL && *store->alive == 0 && atomic_load(&store->state) != 0) return;
    if (store->epoch != NULL && store->io != NULL) {
        wake_stop(store);
        let_go(store);
    }
    if (store->io != NULL) store->io->free(store->io);
    while (store->callers != NULL) kv_caller_free(store->callers);
    kv_epoch_free(store->epoch);
    if (store->alive != NULL) munmap(store->alive, KV_PAGE_SIZE);
    free(store->counters.segment_live);
    free(store->bigs.ids);
    free(store->retired_tables.ids);
    free(store->orphans.ids);
    free(store->retired);
    kv_undo_free(store->undo);
    pthread_mutex_destroy(&store->write_lock);
    pthread_mutex_destroy(&store->callers_lock);
    pthread_mutex_destroy(&store->removal_lock);
    wake_free(store);
    free(store);
}

/* --- callers --- */

kv_status kv_caller_new(kv_store *store, kv_caller **out) {
    if (*store->alive == 0) return KV_EFORKED;
    kv_caller *c = calloc(1, sizeof *c);
    if (c == NULL) return KV_ENOMEM;
    c->store = store;
    c->answer.small = malloc(KV_SMALL_SIZE);
    kv_status status = c->answer.small == NULL ? KV_ENOMEM : kv_epoch_join(store->epoch, &c->slot);
    if (status != KV_OK) {
        free(c->answer.small);
        free(c);
        return status;
    }
    pthread_mutex_lock(&store->callers_lock);
    c->next = store->callers;
    if (c->next != NULL) c->next->previous = c;
    store->callers = c;
    pthread_mutex_unlock(&store->callers_lock);
    *out = c;
    return KV_OK;
}

void kv_caller_free(kv_caller *c) {
    if (c == NULL) return;
    kv_store *store = c->store;
    if (*store->alive == 0) return; /* A forked child: the locks may be held for ever. */
    pthread_mutex_lock(&store->callers_lock);
    if (c->previous != NULL) c->previous->next = c->next;
    else store->callers = c->next;
    if (c->next != NULL) c->next->previous = c->previous;
    pthread_mutex_unlock(&store->callers_lock);
    kv_epoch_part(store->epoch, c->slot);
    scan_free(c->scan);
    free(c->answer.small);
    free(c->answer.large);
    free(c);
}

kv_answer *kv_caller_answer(kv_caller *c) { return &c->answer; }

void kv_caller_hasten(kv_caller *c, int hasty) { c->hasty = hasty != 0; }

void kv_caller_lend(kv_caller *c, uint8_t *buffer, uint64_t size) {
    c->lent = buffer;
    c->lent_size = size;
}

/* --- the whole store --- */

/* What a look at the store without a lock answers. */
static kv_result look(kv_caller *c, kv_result (*at)(const kv_store *store)) {
    kv_epoch_enter(c->store->epoch, c->slot);
    kv_status status = store_usable(c->store);
    kv_result result = status == KV_OK ? at(c->store) : caller_fail(c, status, "the store cannot be asked");
    kv_epoch_leave(c->slot);
    return result;
}

static kv_result count_of(const kv_store *store) { return (kv_result)atomic_load(&store->counters.key_count); }

kv_result kv_count(kv_caller *c) { return look(c, count_of); }
kv_result kv_now(kv_caller *c) { return look(c, store_now); }

kv_result kv_sync(kv_caller *c) {
    kv_store *store = c->store;
    kv_epoch_enter(store->epoch, c->slot);
    kv_status status = store_usable(store);
    if (status == KV_OK && store->options.readonly) status = KV_EREADONLY;
    if (status == KV_OK) status = kv_flow_sync(store->flow, kv_flow_tail(store->flow));
    kv_result result = status == KV_OK ? 0 : caller_fail(c, status, "what was written is not known to be durable");
    kv_epoch_leave(c->slot);
    return result;
}

kv_result kv_pin(kv_caller *c, kv_position *position, uint64_t *sequence) {
    kv_store *store = c->store;
    if (*store->alive == 0) return caller_fail(c, KV_EFORKED, "opened before fork");
    /* A removal that was decided before is done before. Not inside the epoch, which it waits for. */
    pthread_mutex_lock(&store->removal_lock);
    kv_epoch_enter(store->epoch, c->slot);
    kv_status status = store_usable(store);
    if (status == KV_OK && store->options.readonly) status = KV_EREADONLY;
    if (status == KV_OK) {
        pthread_mutex_lock(&store->write_lock);
        store->pin_count++;
        *position = kv_flow_tail(store->flow);
        *sequence = kv_flow_sequence(store->flow);
        pthread_mutex_unlock(&store->write_lock);
    }
    pthread_mutex_unlock(&store->removal_lock);
    if (status == KV_OK) {
        status = kv_flow_sync(store->flow, *position);
        if (status != KV_OK) kv_unpin(c);
    }
    kv_result result = status == KV_OK ? 0 : caller_fail(c, status, "what was written is not known to be durable");
    kv_epoch_leave(c->slot);
    return result;
}

void kv_unpin(kv_caller *c) {
    kv_store *store = c->store;
    if (*store->alive == 0) return;
    pthread_mutex_lock(&store->write_lock);
    store->pin_count--;
    pthread_mutex_unlock(&store->write_lock);
}

static kv_status refresh_guarded(kv_store *store, kv_fault *fault) {
    kv_guard guard;
    replaying r = {.store = store, .fault = fault};
    kv_status status;
    if (KV_GUARD_CAUGHT(&guard)) status = KV_EMAPPING;
    else status = kv_flow_refresh(store->flow, store_replay, &r, fault);
    kv_guard_leave(&guard);
    return status;
}

kv_result kv_refresh(kv_caller *c) {
    kv_store *store = c->store;
    if (*store->alive == 0) return caller_fail(c, KV_EFORKED, "opened before fork");
    if (!store->options.readonly) return caller_fail(c, KV_EUSAGE, "only a read-only opener has something to refresh");
    c->answer.fault.status = KV_OK;
    pthread_mutex_lock(&store->write_lock);
    kv_status status = store_usable(store);
    uint64_t before = store->replayed_count;
    if (status == KV_OK) status = refresh_guarded(store, &c->answer.fault);
    kv_result applied = (kv_result)(store->replayed_count - before);
    if (status == KV_OK) kv_epoch_reclaim(store->epoch);
    pthread_mutex_unlock(&store->write_lock);
    return status == KV_OK ? applied : caller_fail(c, status, "the flow could not be read on");
}

/* --- counting --- */

static uint64_t size_behind(const kv_segment_info *segments, size_t count, uint64_t order) {
    uint64_t size = 0;
    for (size_t i = 0; i < count; i++) {
        uint64_t end = (uint64_t)segments[i].id << 32 | segments[i].end;
        uint64_t start = (uint64_t)segments[i].id << 32 | KV_SEGMENT_HEADER_SIZE;
        if (order > start) start = order;
        if (end > start) size += end - start;
    }
    return size;
}

static kv_status measure_locked(kv_store *store, kv_stats *out) {
    kv_segment_info *segments;
    size_t count;
    kv_index_stats index;
    kv_order_stats order;
    kv_status status = store_usable(store);
    if (status == KV_OK) status = kv_flow_segments(store->flow, &segments, &count);
    if (status != KV_OK) return status;
    kv_index_measure(store->index, &index);
    kv_order_measure(store->order, &order);
    const counters *n = &store->counters;
    *out = (kv_stats){
        .key_count = n->key_count,
        .table_count = n->table_count,
        .row_count = n->row_count,
        .tombstone_count = n->tombstone_count,
        .row_tombstone_count = n->row_tombstone_count,
        .retired_table_count = store->retired_tables.count,
        .snapshot_count = store->snapshot_count,
        .snapshot_size = snapshot_size(store),
        .live_size = n->live_size,
        .flow_size = size_behind(segments, count, 0),
        .big_count = n->big_count,
        .big_size = n->big_size,
        .segment_count = count,
        .removed_count = store->removed_count,
        .sequence = kv_flow_sequence(store->flow),
        .index_slot_count = index.slot_count,
        .index_memory_size = index.memory_size,
        .run_count = order.run_count,
        .run_name_count = order.run_name_count,
        .run_size = order.run_size,
        .created_count = order.created_count,
        .sync_count = kv_flow_sync_count(store->flow),
        .replayed_count = store->replayed_count,
        .unsynced_size = size_behind(segments, count, kv_position_order(kv_flow_durable(store->flow))),
        .since_checkpoint_size = size_behind(segments, count, store->checkpoint_order) + store->retired_size,
        .clock_ms = atomic_load(&store->clock_ms),
        .was_clean = store->was_clean,
        .used_checkpoint = store->used_checkpoint,
        .writes_by_call = store->options.write_calls,
        .poisoned = kv_flow_poison(store->flow, NULL),
    };
    memcpy(out->store_id, kv_flow_store_id(store->flow), sizeof out->store_id);
    free(segments);
    return KV_OK;
}

const kv_damage *kv_store_damages(kv_store *store, size_t *count) {
    *count = 0;
    return store_usable(store) == KV_OK ? kv_flow_damages(store->flow, count) : NULL;
}

kv_status kv_store_measure(kv_store *store, kv_stats *out) {
    if (*store->alive == 0) return KV_EFORKED;
    pthread_mutex_lock(&store->write_lock);
    kv_status status = measure_locked(store, out);
    pthread_mutex_unlock(&store->write_lock);
    return status;
}
