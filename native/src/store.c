/* store.c -- one key: find it, write it, and what users ask of it.
 *
 * A read: enter the epoch, find the slot, read the record in the mapped flow, verify its checksum, copy, leave. No
 * lock, no system call. What a flipped bit can do is caught here: the record's checksum covers key, value, version and
 * expiry; a slot whose whole 64-bit hash fits while the key does not is a collision only if that record is intact.
 *
 * A write: take the writer lock, find the old record, append the new one, point the index at it, let go; then wait for
 * the group commit if that was asked for. The record is complete in the flow before the index shows it.
 *
 * Both run under a guard, because a mapped page can vanish (the file truncated, the disk gone). A write that meets that
 * poisons the store: what it had half done is unknown, and recovery is made for exactly that. */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>

#include "store_internal.h"

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

int64_t store_deadline(const kv_store *store, int64_t ttl_ms) {
    if (ttl_ms == 0) return 0;
    int64_t now = store_now(store);
    return ttl_ms < INT64_MAX - now ? now + ttl_ms : INT64_MAX;
}

static bool expired(const kv_store *store, int64_t expires_ms) { return expires_ms != 0 && expires_ms <= store_now(store); }

/* Before anyone hears that something has expired, the flow has to know how late it is. Writer lock. */
kv_status store_note_clock(kv_store *store, int64_t expires_ms) {
    if (atomic_load(&store->clock_ms) >= expires_ms) return KV_OK;
    int64_t now = store_now(store);
    uint8_t value[8];
    kv_position position;
    uint32_t used;
    kv_store64(value, (uint64_t)now);
    kv_record record = {.kind = KV_KIND_CLOCK, .value = value, .value_size = sizeof value};
    kv_status status = store_append(store, &record, &position, &used);
    if (status == KV_OK) store_set_clock(store, now);
    return status;
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
        store_hold(c, step_note_clock, &w, 0);
    }
    return kv_ending(KV_ABSENT);
}

/* --- finding --- */

uint64_t store_hash(const kv_store *store, const uint8_t *key, size_t size) {
    return kv_xxh64(key, size, store->hash_seed);
}

static kv_status find_next(kv_store *store, const uint8_t *key, size_t key_size, found *out, kv_fault *fault) {
    for (; out->location != 0; out->location = kv_index_next(&out->probe)) {
        uint64_t size;
        uint32_t segment = kv_loc_segment(out->location), offset = kv_loc_offset(out->location);
        out->bytes = kv_flow_at(store->flow, segment, offset, &size);
        if (KV_UNLIKELY(out->bytes == NULL)) return fault_corrupt(fault, out->location, "there is no such place");
        out->place = kv_place(kv_flow_salt(store->flow), segment, offset);
        if (KV_UNLIKELY(kv_record_peek(out->bytes, size, out->place, &out->record, &out->used) != KV_OK))
            return fault_corrupt(fault, out->location, "the head of the record is damaged");
        if (KV_LIKELY(out->record.key_size == key_size && memcmp(out->record.key, key, key_size) == 0)) {
            /* The head check does not cover the expiry, and what has expired is gone. */
            if (out->record.expires_ms != 0 && !kv_record_intact(out->bytes, out->place, &out->record)) break;
            return KV_OK;
        }
        if (!kv_record_intact(out->bytes, out->place, &out->record)) break;
    }
    if (out->location != 0) return fault_corrupt(fault, out->location, "the record's checksum is wrong");
    if (KV_LIKELY(out->probe.status == KV_OK)) return KV_ABSENT;
    if (out->probe.status == KV_ECORRUPT) {
        atomic_store(&store->index_damaged, true);
        fault->status = KV_ECORRUPT;
        fault->position = (kv_position){0};
        snprintf(fault->what, sizeof fault->what, "an index file is damaged; the index is rebuilt at the next open");
    }
    return out->probe.status;
}

kv_status store_find(kv_store *store, const uint8_t *key, size_t key_size, uint64_t hash, found *out, kv_fault *fault) {
    out->location = kv_index_first(store->index, hash, &out->probe);
    return find_next(store, key, key_size, out, fault);
}

bool found_tombstone(const found *f) { return (kv_loc_flags(f->location) & KV_LOC_TOMBSTONE) != 0; }

bool found_alive(kv_store *store, const found *f) {
    return f->location != 0 && !found_tombstone(f) && !expired(store, (int64_t)f->record.expires_ms);
}

/* --- writing --- */

kv_status store_append(kv_store *store, kv_record *record, kv_position *position, uint32_t *used) {
    uint64_t size = kv_record_size(record);
    uint64_t sequence = kv_flow_sequence(store->flow) + 1;
    uint8_t *bytes;
    kv_status status = kv_flow_reserve(store->flow, size, 1, &bytes, position);
    if (KV_UNLIKELY(status != KV_OK)) return status;
    record->version = sequence;
    record->sequence = sequence;
    kv_record_encode(record, kv_place(kv_flow_salt(store->flow), position->segment, position->offset), bytes);
    status = kv_flow_commit(store->flow, *position, size);
    if (KV_UNLIKELY(status != KV_OK)) return status;
    kv_flow_set_sequence(store->flow, sequence);
    *used = (uint32_t)size;
    return KV_OK;
}

static unsigned location_flags(const kv_record *record) {
    unsigned flags = record->kind == KV_KIND_DELETE ? KV_LOC_TOMBSTONE : 0;
    if (record->flags & KV_FLAG_BIG) flags |= KV_LOC_BIG;
    if (record->options & KV_HAS_EXPIRY) flags |= KV_LOC_EXPIRY;
    return flags;
}

static kv_status count_out(kv_store *store, const found *old, const kv_record *by, kv_position since) {
    counters *n = &store->counters;
    n->segment_live[kv_loc_segment(old->location)] -= old->used;
    n->live_size -= old->used;
    if (found_tombstone(old)) n->tombstone_count--;
    else n->key_count--;
    if (!(old->record.flags & KV_FLAG_BIG)) return KV_OK;
    kv_big was, is = {0};
    kv_status status = kv_big_decode(&old->record, &was);
    if (status != KV_OK) return status;
    n->big_count--;
    n->big_size -= was.size;
    if (by->flags & KV_FLAG_BIG) status = kv_big_decode(by, &is);
    if (is.file_id != was.file_id) { /* A new expiry of the same value keeps its file. */
        big_set_remove(&store->bigs, was.file_id);
        big_retire(store, &was, since);
    }
    return status;
}

static kv_status count_in(kv_store *store, const kv_record *record, uint32_t segment, uint32_t used) {
    counters *n = &store->counters;
    n->segment_live[segment] += used;
    n->live_size += used;
    if (record->kind == KV_KIND_DELETE) n->tombstone_count++;
    else n->key_count++;
    if (!(record->flags & KV_FLAG_BIG)) return KV_OK;
    kv_big big;
    kv_status status = kv_big_decode(record, &big);
    if (status != KV_OK) return status;
    n->big_count++;
    n->big_size += big.size;
    return big_set_has(&store->bigs, big.file_id) ? KV_OK : big_set_add(&store->bigs, big.file_id);
}

/* Points the index at a record that is in the flow, and moves the counters with it. `old` with location 0: the key is
 * new. */
kv_status store_index_put(kv_store *store, uint64_t hash, const found *old, const kv_record *record,
                          kv_position position, uint32_t used) {
    uint64_t location = kv_loc_make(position.segment, position.offset, location_flags(record));
    kv_position behind = {.segment = position.segment, .offset = position.offset + used};
    kv_status status = counters_room(&store->counters, position.segment);
    if (status == KV_OK && old->location == 0) status = kv_index_insert(store->index, hash, location);
    else if (status == KV_OK) status = kv_index_replace(store->index, &old->probe, location);
    if (status == KV_OK && (record->flags & KV_FLAG_CREATED)) status = kv_order_created(store->order, location);
    if (status == KV_OK) status = count_in(store, record, position.segment, used);
    if (status == KV_OK && old->location != 0) status = count_out(store, old, record, behind);
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

kv_result store_hold(kv_caller *c, write_step step, write_op *w, int durable) {
    kv_store *store = c->store;
    if (KV_UNLIKELY(*store->alive == 0)) return caller_fail(c, KV_EFORKED, "opened before fork");
    /* Inside the epoch while waiting for the disk: close() waits for us before it takes the flow away. */
    if (durable) kv_epoch_enter(store->epoch, c->slot);
    c->answer.fault.status = KV_OK;

    pthread_mutex_lock(&store->write_lock);
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

kv_result store_write(kv_caller *c, write_step step, write_op *w, int durable) {
    return store_hold(c, step, w, durable > 0 || (durable == 0 && c->store->options.sync == KV_SYNC_ALWAYS));
}

/* Sets out: hash, find. Location 0 in w->old: absent. */
static kv_status write_begin(kv_caller *c, write_op *w) {
    w->hash = store_hash(c->store, w->key, w->key_size);
    kv_status status = store_find(c->store, w->key, w->key_size, w->hash, &w->old, &c->answer.fault);
    return status == KV_ABSENT ? KV_OK : status;
}

/* Appends `record` for the key of `w` and shows it. */
static kv_status write_end(kv_caller *c, write_op *w, kv_record *record) {
    kv_position position;
    uint32_t used;
    record->key = w->key;
    record->key_size = (uint32_t)w->key_size;
    if (record->expires_ms != 0) record->options |= KV_HAS_EXPIRY;
    bool there = w->old.location != 0 && !found_tombstone(&w->old);
    if (record->kind == KV_KIND_PUT && !there) record->flags |= KV_FLAG_CREATED;
    kv_status status = store_append(c->store, record, &position, &used);
    if (KV_UNLIKELY(status != KV_OK)) return status;
    status = store_index_put(c->store, w->hash, &w->old, record, position, used);
    c->answer.version = record->version;
    c->answer.expires_ms = (int64_t)record->expires_ms;
    w->result = (kv_result)record->version;
    return status;
}

kv_status store_find_trusted(kv_caller *c, const uint8_t *key, size_t key_size, uint64_t hash, found *out, bool *alive) {
    kv_store *store = c->store;
    kv_status status = store_find(store, key, key_size, hash, out, &c->answer.fault);
    *alive = false;
    if (status == KV_ABSENT) return KV_OK;
    if (status != KV_OK) return status;
    if (!kv_record_intact(out->bytes, out->place, &out->record))
        return fault_corrupt(&c->answer.fault, out->location, "the record's checksum is wrong");
    *alive = found_alive(store, out);
    bool gone = !*alive && !found_tombstone(out);
    return gone ? store_note_clock(store, (int64_t)out->record.expires_ms) : KV_OK;
}

static kv_status write_begin_trusting(kv_caller *c, write_op *w, bool *alive) {
    w->hash = store_hash(c->store, w->key, w->key_size);
    return store_find_trusted(c, w->key, w->key_size, w->hash, &w->old, alive);
}

static uint64_t expiry_after(const kv_store *store, const write_op *w, bool alive) {
    if (w->ttl_ms == 0 && w->keep_expiry) return alive ? w->old.record.expires_ms : 0;
    return (uint64_t)store_deadline(store, w->ttl_ms);
}

static kv_status step_put(kv_caller *c, write_op *w) {
    kv_status status = write_begin(c, w);
    if (KV_UNLIKELY(status != KV_OK)) return status;
    kv_record record = {.kind = KV_KIND_PUT, .flags = w->flags, .value = w->value, .value_size = (uint32_t)w->value_size};
    if (w->ttl_ms != 0) record.expires_ms = (uint64_t)store_deadline(c->store, w->ttl_ms);
    return write_end(c, w, &record);
}

static kv_status step_cas(kv_caller *c, write_op *w) {
    bool alive;
    kv_status status = write_begin_trusting(c, w, &alive);
    if (status != KV_OK) return status;
    uint64_t current = alive ? w->old.record.version : 0;
    c->answer.version = current;
    if (current != (uint64_t)w->number) return KV_ECONFLICT;
    kv_record record = {.kind = KV_KIND_PUT,
                        .flags = w->flags,
                        .expires_ms = expiry_after(c->store, w, alive),
                        .value = w->value,
                        .value_size = (uint32_t)w->value_size};
    return write_end(c, w, &record);
}

static kv_status step_delete(kv_caller *c, write_op *w) {
    bool alive;
    kv_status status = write_begin_trusting(c, w, &alive);
    if (status != KV_OK) return status;
    uint64_t current = alive ? w->old.record.version : 0;
    c->answer.version = current;
    if (w->number >= 0 && current != (uint64_t)w->number) return KV_ECONFLICT;
    w->result = kv_ending(KV_ABSENT);
    if (!alive) return KV_OK;
    kv_record record = {.kind = KV_KIND_DELETE};
    return write_end(c, w, &record);
}

/* Values above the inline size are written, and made durable, before the lock is taken. Runs the step with what then
 * stands for the value; gives the file up if no record came to name it. */
static kv_result write_value(kv_caller *c, write_step step, write_op *w, int durable) {
    uint8_t bytes[KV_BIG_SIZE];
    kv_big big;
    if (KV_UNLIKELY(key_check(w->key_size) != KV_OK)) return caller_fail(c, KV_EKEYSIZE, "keys have 1 to 65535 bytes");
    if (KV_UNLIKELY(w->value_size > KV_VALUE_SIZE_MAX)) return caller_fail(c, KV_EVALUESIZE, "values have up to 1 GiB");
    if (KV_LIKELY(w->value_size <= c->store->options.inline_size_max)) return store_write(c, step, w, durable);

    kv_status status = big_write(c, w->value, w->value_size, &big);
    if (status != KV_OK) return caller_fail(c, status, "the value could not be written");
    kv_big_encode(&big, bytes);
    w->value = bytes;
    w->value_size = sizeof bytes;
    w->flags = KV_FLAG_BIG;
    w->result = 0;
    kv_result result = store_write(c, step, w, durable);
    if (result < 0 && w->result <= 0) big_give_up(c->store, &big);
    return result;
}

kv_result kv_put(kv_caller *c, const uint8_t *key, size_t key_size, const uint8_t *value, size_t value_size, int64_t ttl_ms,
                 int durable) {
    write_op w;
    w.key = key;
    w.key_size = key_size;
    w.value = value;
    w.value_size = value_size;
    w.ttl_ms = ttl_ms;
    w.flags = 0;
    w.result = 0;
    return write_value(c, step_put, &w, durable);
}

kv_result kv_cas(kv_caller *c, const uint8_t *key, size_t key_size, const uint8_t *value, size_t value_size,
                 uint64_t version, int64_t ttl_ms, int durable) {
    write_op w = {.key = key, .key_size = key_size, .value = value, .value_size = value_size, .ttl_ms = ttl_ms,
               .number = (int64_t)version};
    return write_value(c, step_cas, &w, durable);
}

kv_result kv_delete(kv_caller *c, const uint8_t *key, size_t key_size, int64_t version, int durable) {
    write_op w = {.key = key, .key_size = key_size, .number = version};
    if (key_check(key_size) != KV_OK) return caller_fail(c, KV_EKEYSIZE, "keys have 1 to 65535 bytes");
    return store_write(c, step_delete, &w, durable);
}

/* --- incr --- */

/* Exactly what incr itself writes: no sign but a minus, no leading zeros, no spaces. As Redis has it. */
static bool parse_int64(const uint8_t *bytes, size_t size, int64_t *out) {
    bool negative = size > 0 && bytes[0] == '-';
    size_t at = negative ? 1 : 0;
    if (at == size || size > 20) return false;
    if (bytes[at] == '0' && (size > 1)) return false;
    uint64_t limit = negative ? (uint64_t)INT64_MAX + 1 : INT64_MAX, sum = 0;
    for (; at < size; at++) {
        if (bytes[at] < '0' || bytes[at] > '9') return false;
        uint64_t digit = (uint64_t)(bytes[at] - '0');
        if (sum > (limit - digit) / 10) return false;
        sum = sum * 10 + digit;
    }
    *out = negative ? (int64_t)(0 - sum) : (int64_t)sum;
    return true;
}

static kv_status step_incr(kv_caller *c, write_op *w) {
    bool alive;
    kv_status status = write_begin_trusting(c, w, &alive);
    if (status != KV_OK) return status;
    int64_t number = 0;
    if (alive && (w->old.record.flags & KV_FLAG_BIG)) return KV_ENOTINT;
    if (alive && !parse_int64(w->old.record.value, w->old.record.value_size, &number)) return KV_ENOTINT;
    if (__builtin_add_overflow(number, w->number, &number)) return KV_EOVERFLOW;
    char digits[24];
    int size = snprintf(digits, sizeof digits, "%lld", (long long)number);
    kv_record record = {.kind = KV_KIND_PUT,
                        .expires_ms = expiry_after(c->store, w, alive),
                        .value = (const uint8_t *)digits,
                        .value_size = (uint32_t)size};
    status = write_end(c, w, &record);
    c->answer.number = number;
    return status;
}

kv_result kv_incr(kv_caller *c, const uint8_t *key, size_t key_size, int64_t by, int64_t ttl_ms, int durable) {
    write_op w = {.key = key, .key_size = key_size, .number = by, .ttl_ms = ttl_ms, .keep_expiry = true};
    if (key_check(key_size) != KV_OK) return caller_fail(c, KV_EKEYSIZE, "keys have 1 to 65535 bytes");
    return store_write(c, step_incr, &w, durable);
}

/* --- append --- */

/* The usual case, under the lock. KV_MORE: the result is, or was, too large to be inline. */
static kv_status step_append(kv_caller *c, write_op *w) {
    bool alive;
    kv_status status = write_begin_trusting(c, w, &alive);
    if (status != KV_OK) return status;
    if (alive && (w->old.record.flags & KV_FLAG_BIG)) return KV_MORE;
    size_t old_size = alive ? w->old.record.value_size : 0, size = old_size + w->value_size;
    if (size > c->store->options.inline_size_max) return KV_MORE;
    uint8_t *joined;
    status = answer_room(c, size, &joined);
    if (status != KV_OK) return status;
    if (old_size != 0) memcpy(joined, w->old.record.value, old_size);
    if (w->value_size != 0) memcpy(joined + old_size, w->value, w->value_size);
    kv_record record = {.kind = KV_KIND_PUT,
                        .expires_ms = expiry_after(c->store, w, alive),
                        .value = joined,
                        .value_size = (uint32_t)size};
    status = write_end(c, w, &record);
    w->result = (kv_result)size;
    return status;
}

/* Large values: read, join, and swap in if nobody was faster. */
static kv_result append_large(kv_caller *c, const write_op *asked, int durable) {
    for (;;) {
        kv_result old_size = kv_get(c, asked->key, asked->key_size);
        bool alive = old_size >= 0;
        if (!alive && old_size != kv_ending(KV_ABSENT)) return old_size;
        if (!alive) old_size = 0;
        size_t size = (size_t)old_size + asked->value_size;
        if (size > KV_VALUE_SIZE_MAX) return caller_fail(c, KV_EVALUESIZE, "values have up to 1 GiB");
        uint8_t *joined = malloc(size + 1);
        if (joined == NULL) return caller_fail(c, KV_ENOMEM, "no memory to join the values");
        memcpy(joined, old_size <= KV_SMALL_SIZE ? c->answer.small : c->answer.large, (size_t)old_size);
        if (asked->value_size != 0) memcpy(joined + old_size, asked->value, asked->value_size);
        write_op w = *asked;
        w.number = alive ? (int64_t)c->answer.version : 0;
        w.value = joined;
        w.value_size = size;
        kv_result result = write_value(c, step_cas, &w, durable);
        free(joined);
        if (result >= 0) return (kv_result)size;
        if (result != KV_ECONFLICT) return result;
    }
}

kv_result kv_append(kv_caller *c, const uint8_t *key, size_t key_size, const uint8_t *bytes, size_t size, int64_t ttl_ms,
                    int durable) {
    write_op w = {.key = key, .key_size = key_size, .value = bytes, .value_size = size, .ttl_ms = ttl_ms, .keep_expiry = true};
    if (key_check(key_size) != KV_OK) return caller_fail(c, KV_EKEYSIZE, "keys have 1 to 65535 bytes");
    if (size > KV_VALUE_SIZE_MAX) return caller_fail(c, KV_EVALUESIZE, "values have up to 1 GiB");
    kv_result result = store_write(c, step_append, &w, durable);
    return result == kv_ending(KV_MORE) ? append_large(c, &w, durable) : result;
}

/* --- expiry --- */

/* The same value under a new version and another expiry; a value in a file keeps its file. */
static kv_status step_expire(kv_caller *c, write_op *w) {
    bool alive;
    kv_status status = write_begin_trusting(c, w, &alive);
    if (status != KV_OK) return status;
    w->result = kv_ending(KV_ABSENT);
    bool nothing_to_clear = alive && w->ttl_ms == 0 && w->old.record.expires_ms == 0;
    if (!alive || nothing_to_clear) return KV_OK;
    kv_record record = {.kind = KV_KIND_PUT,
                        .flags = w->old.record.flags & KV_FLAG_BIG,
                        .expires_ms = (uint64_t)store_deadline(c->store, w->ttl_ms),
                        .value = w->old.record.value,
                        .value_size = w->old.record.value_size};
    return write_end(c, w, &record);
}

kv_result kv_expire(kv_caller *c, const uint8_t *key, size_t key_size, int64_t ttl_ms, int durable) {
    write_op w = {.key = key, .key_size = key_size, .ttl_ms = ttl_ms};
    if (key_check(key_size) != KV_OK) return caller_fail(c, KV_EKEYSIZE, "keys have 1 to 65535 bytes");
    return store_write(c, step_expire, &w, durable);
}

/* --- reading --- */

/* Where an answer of `size` bytes goes. A large buffer that is no longer needed goes, too. */
kv_status answer_room(kv_caller *c, uint64_t size, uint8_t **out) {
    kv_answer *answer = &c->answer;
    if (KV_LIKELY(size <= KV_SMALL_SIZE)) {
        if (KV_UNLIKELY(answer->large != NULL)) {
            free(answer->large);
            answer->large = NULL;
            answer->large_capacity = 0;
        }
        *out = answer->small;
        return KV_OK;
    }
    if (answer->large_capacity < size) {
        free(answer->large);
        answer->large = malloc(size);
        answer->large_capacity = answer->large == NULL ? 0 : size;
    }
    *out = answer->large;
    return answer->large == NULL ? KV_ENOMEM : KV_OK;
}

/* What a read wants of a record it found. */
typedef kv_status (*read_step)(kv_caller *c, const found *f, kv_result *result);

static kv_status read_value(kv_caller *c, const found *f, kv_result *result) {
    kv_big big;
    uint8_t *to;
    bool is_big = (f->record.flags & KV_FLAG_BIG) != 0;
    kv_status status = is_big ? kv_big_decode(&f->record, &big) : KV_OK;
    if (status != KV_OK) return fault_corrupt(&c->answer.fault, f->location, "no description of a value file");
    uint64_t size = is_big ? big.size : f->record.value_size;
    status = answer_room(c, size, &to);
    if (status != KV_OK) return status;
    *result = (kv_result)size;
    if (is_big) {
        status = big_read(c, &big, to);
        return status == KV_ECORRUPT ? big_fault(c, f) : status;
    }
    memcpy(to, f->record.value, f->record.value_size);
    return KV_OK;
}

static kv_status read_size(kv_caller *c, const found *f, kv_result *result) {
    kv_big big;
    *result = f->record.value_size;
    if (!(f->record.flags & KV_FLAG_BIG)) return KV_OK;
    if (kv_big_decode(&f->record, &big) != KV_OK)
        return fault_corrupt(&c->answer.fault, f->location, "no description of a value file");
    *result = (kv_result)big.size;
    return KV_OK;
}

/* KV_ABSENT with answer.expires_ms set: it has expired. */
static kv_status read_once(kv_caller *c, const uint8_t *key, size_t key_size, read_step step, kv_result *result,
                           uint64_t *location) {
    kv_store *store = c->store;
    found f;
    c->answer.expires_ms = 0;
    kv_status status = store_find(store, key, key_size, store_hash(store, key, key_size), &f, &c->answer.fault);
    *location = f.location;
    if (KV_UNLIKELY(status != KV_OK)) return status;
    if (KV_UNLIKELY(!kv_record_intact(f.bytes, f.place, &f.record)))
        return fault_corrupt(&c->answer.fault, f.location, "the record's checksum is wrong");
    c->answer.version = f.record.version;
    if (step == NULL) {
        *result = (kv_result)f.record.version;
        return KV_OK;
    }
    if (found_tombstone(&f)) return KV_ABSENT;
    c->answer.expires_ms = (int64_t)f.record.expires_ms;
    if (f.record.expires_ms != 0 && expired(store, (int64_t)f.record.expires_ms)) return KV_ABSENT;
    return step(c, &f, result);
}

/* Inside the epoch and under a guard. A value's file goes some time after another record took its record's place: who
 * finds it gone looks again, and must then find something else. KV_MORE: it did not. */
static kv_status read_found(kv_caller *c, const uint8_t *key, size_t key_size, read_step step, kv_result *result) {
    uint64_t location = 0, before;
    kv_status status;
    do {
        before = location;
        status = read_once(c, key, key_size, step, result, &location);
    } while (status == KV_MORE && location != before);
    if (status == KV_MORE) fault_corrupt(&c->answer.fault, location, "the value's file is missing");
    return status;
}

static kv_status read_guarded(kv_caller *c, const uint8_t *key, size_t key_size, read_step step, kv_result *result) {
    kv_guard guard;
    kv_status status;
    if (KV_GUARD_CAUGHT(&guard)) status = KV_EMAPPING;
    else status = read_found(c, key, key_size, step, result);
    kv_guard_leave(&guard);
    return status;
}

static kv_status read_inside(kv_caller *c, const uint8_t *key, size_t key_size, read_step step, kv_result *result) {
    kv_epoch_enter(c->store->epoch, c->slot);
    kv_status status = store_usable(c->store);
    if (KV_LIKELY(status == KV_OK)) status = read_guarded(c, key, key_size, step, result);
    kv_epoch_leave(c->slot);
    return status;
}

/* A value's file is gone, and the record that names it is still the newest one known here. A read-only opener may only
 * not have heard yet of the one that took its place. Bounded, because the file of that one may go meanwhile as well. */
bool store_look_again(kv_caller *c, int look) {
    enum { LOOKS_MAX = 10 };
    return c->store->options.readonly && look < LOOKS_MAX && kv_refresh(c) >= 0;
}

static kv_result store_read(kv_caller *c, const uint8_t *key, size_t key_size, read_step step) {
    kv_result result = 0;
    if (KV_UNLIKELY(key_check(key_size) != KV_OK)) return caller_fail(c, KV_EKEYSIZE, "keys have 1 to 65535 bytes");
    c->answer.fault.status = KV_OK;
    kv_status status = read_inside(c, key, key_size, step, &result);
    if (KV_LIKELY(status == KV_OK)) return result;
    for (int look = 0; status == KV_MORE && store_look_again(c, look); look++)
        status = read_inside(c, key, key_size, step, &result);
    if (status == KV_OK) return result;
    if (status == KV_ABSENT && c->answer.expires_ms != 0) return answer_expired(c, c->answer.expires_ms);
    if (status == KV_ABSENT) return kv_ending(status);
    return caller_fail(c, status == KV_MORE ? KV_ECORRUPT : status, "the read failed");
}

kv_result kv_get(kv_caller *c, const uint8_t *key, size_t key_size) { return store_read(c, key, key_size, read_value); }

kv_result kv_look(kv_caller *c, const uint8_t *key, size_t key_size) { return store_read(c, key, key_size, read_size); }

kv_result kv_version(kv_caller *c, const uint8_t *key, size_t key_size) {
    kv_result version = store_read(c, key, key_size, NULL);
    return version == kv_ending(KV_ABSENT) ? 0 : version;
}
