/* store.c -- what every call on the store goes through: may it, what time is it, append, hold the writer lock.
 *
 * A write: take the writer lock, find the old record, append the new one, point the index at it, let go; then wait for
 * the group commit if that was asked for. The record is complete in the flow before the index shows it.
 *
 * It runs under a guard, because a mapped page can vanish (the file truncated, the disk gone). A write that meets that
 * poisons the store: what it had half done is unknown, and recovery is made for exactly that. */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>

#include "late.h"

/* --- what every call looks at first --- */

kv_status store_usable(const kv_store *store) {
    if (KV_UNLIKELY(*(const volatile uint64_t *)store->alive == 0)) return KV_EFORKED;
    if (KV_UNLIKELY(atomic_load(&store->state) == STORE_CLOSED)) return KV_ECLOSED;
    return KV_OK;
}

kv_status store_writable(const kv_store *store) {
    if (KV_UNLIKELY(store->options.readonly)) return KV_EREADONLY;
    if (KV_UNLIKELY(atomic_load_explicit(&store->state, memory_order_relaxed) != STORE_OPEN)) return KV_ECLOSED;
    return KV_OK;
}

kv_status key_check(size_t key_size) {
    return KV_LIKELY(key_size >= 1 && key_size <= KV_KEY_SIZE_MAX) ? KV_OK : KV_EKEYSIZE;
}

kv_status fault_corrupt(kv_fault *fault, uint64_t location, const char *what) {
    uint32_t segment = kv_loc_segment(location), offset = kv_loc_offset(location);
    fault->status = KV_ECORRUPT;
    fault->os_error = 0;
    fault->position = (kv_position){.segment = segment, .offset = offset};
    snprintf(fault->what, sizeof fault->what, "flow/%08x.seg at %u: %s", segment, offset, what);
    return KV_ECORRUPT;
}

/* `table` NULL: a key. A row may be empty. */
kv_status name_check(const uint8_t *table, size_t table_size, size_t key_size) {
    if (KV_LIKELY(table == NULL)) return key_check(key_size);
    return key_check(table_size) == KV_OK && key_size <= KV_KEY_SIZE_MAX ? KV_OK : KV_EKEYSIZE;
}

kv_result refuse_name(kv_caller *c) {
    return caller_fail(c, KV_EKEYSIZE, "keys have 1 to 65535 bytes, rows 0 to 65535");
}

/* Leaves the reason in the answer, and is what the call returns. */
kv_result caller_fail(kv_caller *c, kv_status status, const char *what) {
    kv_fault *fault = &c->answer.fault;
    if (status == KV_ECORRUPT && fault->status == KV_ECORRUPT) return kv_ending(status); /* whoever found it said more */
    fault->status = status;
    fault->os_error = status == KV_EDISK || status == KV_ENOSPC ? errno : 0;
    if (status == KV_EPOISONED) kv_flow_poison(c->store->flow, &fault->os_error);
    snprintf(fault->what, sizeof fault->what, "%s", what);
    return kv_ending(status);
}

/* --- the clock --- */

/* Never behind a time that an expiry was judged by before, so a clock set back revives nothing; and going on from that
 * time, so that a clock that was once ahead does not stop everything from expiring until the wall clock is there. */
int64_t store_now(const kv_store *store) {
    int64_t now = store->io->now_ms(store->io);
    int64_t lead = atomic_load_explicit(&store->clock_lead, memory_order_relaxed);
    int64_t seen = lead == 0 ? 0 : store->io->monotonic_ms(store->io) + lead;
    return now > seen ? now : seen;
}

void store_set_clock(kv_store *store, int64_t clock_ms) {
    atomic_store(&store->clock_ms, clock_ms);
    atomic_store(&store->clock_lead, clock_ms - store->io->monotonic_ms(store->io));
}

int64_t store_judge_ms(const kv_store *store) {
    return KV_LIKELY(store->late == NULL) ? store_now(store) : store->late->judge_ms;
}

int64_t store_deadline(const kv_store *store, int64_t ttl_ms) {
    if (ttl_ms <= 0) return ttl_ms == INT64_MIN ? INT64_MAX : -ttl_ms;
    int64_t now = store_now(store);
    return ttl_ms < INT64_MAX - now ? now + ttl_ms : INT64_MAX;
}

void store_note_content(kv_store *store) {
    const counters *c = &store->counters;
    kv_flow_set_content(store->flow, c->live_size, atomic_load(&c->key_count) + atomic_load(&c->row_count));
}

kv_status store_write_clock(kv_store *store) {
    int64_t now = store_now(store);
    uint8_t value[8];
    kv_position position;
    uint32_t used;
    kv_store64(value, (uint64_t)now);
    kv_record record = {.kind = KV_KIND_CLOCK, .value = value, .value_size = sizeof value};
    kv_status status = store_append(store, &record, &position, &used);
    return status == KV_OK ? store_show_clock(store, &record, position, used) : status;
}

/* Before anyone hears that something has expired, the flow has to know how late it is. In a replica nothing expires but by
 * a record. Writer lock. */
kv_status store_note_clock(kv_store *store, int64_t expires_ms) {
    if (store->late != NULL) return KV_OK;
    return atomic_load(&store->clock_ms) >= expires_ms ? KV_OK : store_write_clock(store);
}

static kv_status step_note_clock(kv_caller *c, write_op *w) {
    kv_status status = store_note_clock(c->store, w->number);
    w->result = 0;
    return status;
}

/* A reader found something expired. It waits for no disk: the syncer makes the note durable soon enough. Where the time cannot be written down (read-only, disk full, poisoned), the
 * answer is the same. */
kv_result answer_expired(kv_caller *c, int64_t expires_ms) {
    kv_store *store = c->store;
    if (!store->options.readonly && atomic_load(&store->clock_ms) < expires_ms) {
        write_op w = {.number = expires_ms};
        if (store_hold(c, step_note_clock, &w, 0) == kv_ending(KV_EWAIT)) return kv_ending(KV_EWAIT);
    }
    return kv_ending(KV_ABSENT);
}

/* --- writing --- */

uint64_t store_next_version(const kv_store *store) {
    return KV_LIKELY(store->late == NULL) ? kv_flow_sequence(store->flow) + 1 : store->late->version;
}

uint64_t store_table_id(const kv_store *store, uint64_t nth) {
    return KV_LIKELY(store->late == NULL) ? kv_flow_sequence(store->flow) + 1 + nth : late_table_id(store->late, nth);
}

kv_status store_append(kv_store *store, kv_record *record, kv_position *position, uint32_t *used) {
    uint64_t sequence = kv_flow_sequence(store->flow) + 1;
    uint8_t *bytes;
    kv_status status = KV_OK;
    if (KV_UNLIKELY(store->late != NULL)) {
        late_stamp(store->late, record, true);
        status = late_keep(store, record, store->late->meta);
        if (status != KV_OK) return status;
        sequence = kv_flow_sequence(store->flow) + 1;
    }
    uint64_t size = kv_record_size(record);
    status = kv_flow_reserve(store->flow, size, 1, &bytes, position);
    if (KV_UNLIKELY(status != KV_OK)) return status;
    record->version = store_next_version(store);
    record->sequence = sequence;
    kv_record_encode(record, kv_place(kv_flow_salt(store->flow), position->segment, position->offset), bytes);
    status = kv_flow_commit(store->flow, *position, size);
    if (KV_UNLIKELY(status != KV_OK)) return status;
    kv_flow_set_sequence(store->flow, sequence);
    *used = (uint32_t)size;
    if (KV_UNLIKELY(store->late != NULL)) late_note(store->late, *position, (uint32_t)size, 1);
    return KV_OK;
}

/* Two records in one envelope, under one version. */
kv_status store_append_pair(kv_store *store, kv_record *first, kv_record *second, kv_position at[2], uint32_t used[2]) {
    kv_record *records[2] = {first, second};
    kv_position position;
    uint8_t *bytes;
    kv_status status = KV_OK;
    if (store->late != NULL) { /* The row has what the asker is told. */
        late_stamp(store->late, first, false);
        late_stamp(store->late, second, true);
        status = late_keep(store, second, store->late->meta);
    }
    if (status != KV_OK) return status;
    uint64_t salt = kv_flow_salt(store->flow), sequence = kv_flow_sequence(store->flow) + 1;
    kv_record head = {.kind = KV_KIND_ENVELOPE, .version = sequence};
    uint64_t size = kv_record_size(&head);
    for (int i = 0; i < 2; i++) {
        used[i] = (uint32_t)kv_record_size(records[i]);
        head.value_size += used[i];
    }
    status = kv_flow_reserve(store->flow, size + head.value_size, 1, &bytes, &position);
    if (status != KV_OK) return status;
    kv_record_encode(&head, kv_place(salt, position.segment, position.offset), bytes);
    for (int i = 0; i < 2; i++) {
        at[i] = (kv_position){.segment = position.segment, .offset = position.offset + (uint32_t)size};
        records[i]->version = store_next_version(store);
        records[i]->sequence = sequence;
        kv_record_encode(records[i], kv_place(salt, at[i].segment, at[i].offset), bytes + size);
        size += used[i];
    }
    status = kv_flow_commit(store->flow, position, size);
    if (status == KV_OK) kv_flow_set_sequence(store->flow, sequence);
    if (status == KV_OK && store->late != NULL) late_note(store->late, at[0], used[0] + used[1], 2);
    return status;
}

static kv_status under_guard(kv_caller *c, write_step step, write_op *w) {
    kv_store *store = c->store;
    kv_guard guard;
    kv_status status;
    if (KV_GUARD_CAUGHT(&guard)) {
        kv_flow_set_poison(store->flow, KV_EMAPPING, EIO);
        status = KV_EMAPPING;
    } else {
        status = step(c, w);
    }
    kv_guard_leave(&guard);
    return status;
}

/* Room for what one step may append at most: a clock note, an envelope, a table that is new, and the record itself. */
static bool write_fits(const kv_store *store, const write_op *w) {
    enum { HEADS_SIZE_MAX = 4 * (KV_RECORD_HEAD_SIZE + KV_RECORD_OPTIONS_SIZE_MAX) };
    uint64_t names = w->key_size + (w->table == NULL ? 0 : w->table_size);
    return kv_flow_has_room(store->flow, kv_align(names + w->value_size, KV_RECORD_ALIGN) + HEADS_SIZE_MAX);
}

/* The writer lock; false: somebody has it, or the next segment is needed, and the caller is not to wait. */
static bool take_lock(kv_caller *c, const write_op *w) {
    kv_store *store = c->store;
    if (KV_LIKELY(!c->hasty)) return pthread_mutex_lock(&store->write_lock) == 0;
    if (pthread_mutex_trylock(&store->write_lock) != 0) return false;
    /* What is not writable has no flow to ask, maybe, and will be refused without waiting. */
    if (store_writable(store) != KV_OK || KV_LIKELY(write_fits(store, w))) return true;
    pthread_mutex_unlock(&store->write_lock);
    return false;
}

kv_result store_hold(kv_caller *c, write_step step, write_op *w, int durable) {
    kv_store *store = c->store;
    if (KV_UNLIKELY(*store->alive == 0)) return caller_fail(c, KV_EFORKED, "opened before fork");
    if (KV_UNLIKELY(c->hasty && durable)) return kv_ending(KV_EWAIT);
    /* Inside the epoch while waiting for the disk: close() waits for us before it takes the flow away. */
    if (durable) kv_epoch_enter(store->epoch, c->slot);
    c->answer.fault.status = KV_OK;

    if (KV_UNLIKELY(!take_lock(c, w))) return kv_ending(KV_EWAIT);
    kv_status status = store_writable(store);
    bool moved = false;
    if (KV_LIKELY(status == KV_OK)) {
        kv_position before = kv_flow_tail(store->flow);
        status = under_guard(c, step, w);
        w->upto = kv_flow_tail(store->flow);
        moved = kv_position_order(w->upto) != kv_position_order(before);
        /* In the flow and not in the index: only a reopen brings the two together again. */
        if (status == KV_ENOMEM && moved) kv_flow_set_poison(store->flow, KV_ENOMEM, ENOMEM);
        kv_epoch_reclaim(store->epoch);
    }
    kv_result result = KV_LIKELY(status == KV_OK) ? w->result : caller_fail(c, status, "the write was refused");
    unsigned wanted = moved ? wake_wanted(store) : 0;
    pthread_mutex_unlock(&store->write_lock);

    if (KV_UNLIKELY(wanted != 0)) wake_threads(store, wanted);
    /* Also if it was refused: the time that the refusal rests on may just have been noted. */
    if (durable && (moved || status == KV_OK)) {
        kv_status synced = kv_flow_sync(store->flow, w->upto);
        if (status == KV_OK && synced != KV_OK) result = caller_fail(c, synced, "the write did not become durable");
    }
    if (durable) kv_epoch_leave(c->slot);
    return result;
}

static kv_status look_guarded(look_step step, void *context) {
    kv_guard guard;
    kv_status status;
    if (KV_GUARD_CAUGHT(&guard)) status = KV_EMAPPING;
    else status = step(context);
    kv_guard_leave(&guard);
    return status;
}

kv_status store_look(kv_caller *c, look_step step, void *context) {
    kv_epoch_enter(c->store->epoch, c->slot);
    kv_status status = store_usable(c->store);
    if (status == KV_OK) status = look_guarded(step, context);
    kv_epoch_leave(c->slot);
    return status;
}

kv_result store_write(kv_caller *c, write_step step, write_op *w, int durable) {
    return store_hold(c, step, w, durable > 0 || (durable == 0 && c->store->options.sync == KV_SYNC_ALWAYS));
}
