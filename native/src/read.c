/* read.c -- one key or one row: what is read of it, now or as of a snapshot.
 *
 * Enter the epoch, find the slot, read the record in the mapped flow, verify its checksum, copy, leave. No lock, no
 * system call; under a guard, because a mapped page can vanish. */
#include <stdio.h>
#include <stdlib.h>

#include "store_internal.h"

/* What is looked for: a key, or a row of a table. */
typedef struct name {
    const uint8_t *table; /* NULL: a key */
    size_t table_size;
    const uint8_t *key;
    size_t key_size;
} name;

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

/* The same for a hasty caller. */
static kv_status hasty_room(kv_caller *c, uint64_t size, bool is_big, uint8_t **out) {
    uint64_t room = c->lent == NULL ? KV_HASTY_SIZE : c->lent_size;
    *out = c->lent == NULL ? c->answer.small : c->lent;
    if (KV_LIKELY(!is_big && size <= room)) return KV_OK;
    c->answer.number = (int64_t)size;
    return KV_EWAIT;
}

/* What a read wants of a record it found. */
typedef kv_status (*read_step)(kv_caller *c, const found *f, kv_result *result);

static kv_status read_value(kv_caller *c, const found *f, kv_result *result) {
    if (KV_UNLIKELY(found_table(f))) return KV_EWRONGTYPE;
    kv_big big;
    uint8_t *to;
    bool is_big = (f->record.flags & KV_FLAG_BIG) != 0;
    kv_status status = is_big ? kv_big_decode(&f->record, &big) : KV_OK;
    if (status != KV_OK) return fault_corrupt(&c->answer.fault, f->location, "no description of a value file");
    const uint8_t *bytes = NULL;
    uint64_t size = is_big ? big.size : 0;
    if (!is_big) status = found_bytes(c->store, f, &bytes, &size, &c->answer.fault);
    if (KV_UNLIKELY(status != KV_OK)) return status;
    status = c->hasty ? hasty_room(c, size, is_big, &to) : answer_room(c, size, &to);
    if (KV_UNLIKELY(status != KV_OK)) return status;
    *result = (kv_result)size;
    if (is_big) {
        status = big_read(c, &big, to);
        return status == KV_ECORRUPT ? big_fault(c, f) : status;
    }
    memcpy(to, bytes, size);
    return KV_OK;
}

/* Of a table, also one that has expired: a version that was seen never goes back. The head of one that was dropped since
 * the key was found may be gone. */
static kv_status newest_version(kv_caller *c, const found *f, uint64_t *version) {
    *version = f->record.version;
    if (!found_table(f)) return KV_OK;
    found head;
    target t = target_table(c->store, f->record.table_id, KV_LOC_HEAD);
    kv_status status = reader_find(c, &t, &head);
    if (status == KV_OK) *version = head.record.version;
    return status == KV_ABSENT ? KV_OK : status;
}

static kv_status read_size(kv_caller *c, const found *f, kv_result *result) {
    kv_big big;
    *result = f->record.value_size;
    kv_meta meta;
    if (found_table(f)) return newest_version(c, f, &c->answer.version);
    if (KV_UNLIKELY((f->record.flags & KV_FLAG_META) && kv_meta_decode(f->record.value, f->record.value_size, &meta)))
        *result = (kv_result)meta.size;
    if (!(f->record.flags & KV_FLAG_BIG)) return KV_OK;
    if (kv_big_decode(&f->record, &big) != KV_OK)
        return fault_corrupt(&c->answer.fault, f->location, "no description of a value file");
    *result = (kv_result)big.size;
    return KV_OK;
}

static kv_status read_version(kv_caller *c, const found *f, kv_result *result) {
    uint64_t version;
    kv_status status = newest_version(c, f, &version);
    *result = (kv_result)version;
    return status;
}

static kv_status read_table(kv_caller *c, const found *f, kv_result *result) {
    table_state table;
    kv_status status = reader_find_table(c, f->record.key, f->record.key_size, &table);
    c->answer.version = table.version;
    c->answer.number = (int64_t)table.id;
    *result = (kv_result)table.row_count;
    return status;
}

static kv_status find_named(kv_caller *c, const name *n, found *out) {
    out->location = 0;
    if (KV_LIKELY(n->table == NULL)) {
        target t = target_key(c->store, n->key, n->key_size);
        return reader_find(c, &t, out);
    }
    table_state table;
    kv_status status = reader_find_table(c, n->table, n->table_size, &table);
    out->location = table.at.location;
    if (status != KV_OK) return status;
    c->answer.expires_ms = 0;
    target t = target_row(c->store, table.id, n->key, n->key_size);
    return reader_find(c, &t, out);
}

/* KV_ABSENT with answer.expires_ms set: it has expired. */
static kv_status read_once(kv_caller *c, const name *n, read_step step, kv_result *result, uint64_t *location) {
    found f;
    c->answer.expires_ms = 0;
    kv_status status = find_named(c, n, &f);
    *location = f.location;
    if (KV_UNLIKELY(status != KV_OK)) return status;
    status = found_value(c, &f);
    if (KV_UNLIKELY(status != KV_OK)) return status;
    c->answer.version = f.record.version;
    if (KV_UNLIKELY(step == read_version)) return step(c, &f, result);
    if (found_tombstone(&f)) return KV_ABSENT;
    c->answer.expires_ms = (int64_t)f.record.expires_ms;
    if (f.record.expires_ms != 0 && !reader_alive(c, &f)) return KV_ABSENT;
    return step(c, &f, result);
}

/* Inside the epoch and under a guard. A value's file goes some time after another record took its record's place: who
 * finds it gone looks again, and must then find something else. KV_MORE: it did not. */
static kv_status read_found(kv_caller *c, const name *n, read_step step, kv_result *result) {
    uint64_t location = 0, before;
    kv_status status;
    do {
        before = location;
        status = read_once(c, n, step, result, &location);
    } while (status == KV_MORE && location != before);
    if (status == KV_MORE) fault_corrupt(&c->answer.fault, location, "the value's file is missing");
    return status;
}

static kv_status read_guarded(kv_caller *c, const name *n, read_step step, kv_result *result) {
    kv_guard guard;
    kv_status status;
    if (KV_GUARD_CAUGHT(&guard)) status = KV_EMAPPING;
    else status = read_found(c, n, step, result);
    kv_guard_leave(&guard);
    return status;
}

static kv_status read_inside(kv_caller *c, const name *n, read_step step, kv_result *result) {
    kv_epoch_enter(c->store->epoch, c->slot);
    kv_status status = store_usable(c->store);
    if (KV_LIKELY(status == KV_OK)) status = read_guarded(c, n, step, result);
    kv_epoch_leave(c->slot);
    return status;
}

/* A value's file is gone, and the record that names it is still the newest one known here. A read-only opener may only
 * not have heard yet of the one that took its place. Bounded, because the file of that one may go meanwhile as well. */
bool store_look_again(kv_caller *c, int look) {
    enum { LOOKS_MAX = 10 };
    return c->store->options.readonly && look < LOOKS_MAX && kv_refresh(c) >= 0;
}

/* A value's file is missing for good: damage, or the record that took its record's place was compacted away before this
 * reader read it, which the last refresh then said. */
kv_result answer_gone(kv_caller *c) {
    bool behind = c->answer.fault.status == KV_EBEHIND;
    return caller_fail(c, behind ? KV_EBEHIND : KV_ECORRUPT, "the value's file is missing");
}

static kv_result store_read(kv_caller *c, const name *n, read_step step) {
    kv_result result = 0;
    if (KV_UNLIKELY(name_check(n->table, n->table_size, n->key_size) != KV_OK)) return refuse_name(c);
    c->answer.fault.status = KV_OK;
    if (c->hasty) c->answer.number = 0;
    kv_status status = read_inside(c, n, step, &result);
    if (KV_LIKELY(status == KV_OK)) return result;
    if (status == KV_EWAIT) return kv_ending(status);
    for (int look = 0; status == KV_MORE && store_look_again(c, look); look++)
        status = read_inside(c, n, step, &result);
    if (status == KV_OK) return result;
    if (status == KV_ABSENT && c->answer.expires_ms != 0) return answer_expired(c, c->answer.expires_ms);
    if (status == KV_ABSENT) return kv_ending(status);
    return status == KV_MORE ? answer_gone(c) : caller_fail(c, status, "the read failed");
}

kv_result kv_get(kv_caller *c, const uint8_t *key, size_t key_size) {
    return store_read(c, &(name){.key = key, .key_size = key_size}, read_value);
}

kv_result kv_row_get(kv_caller *c, const uint8_t *table, size_t table_size, const uint8_t *row, size_t row_size) {
    return store_read(c, &(name){.table = table, .table_size = table_size, .key = row, .key_size = row_size}, read_value);
}

kv_result kv_row_look(kv_caller *c, const uint8_t *table, size_t table_size, const uint8_t *row, size_t row_size) {
    return store_read(c, &(name){.table = table, .table_size = table_size, .key = row, .key_size = row_size}, read_size);
}

kv_result kv_look(kv_caller *c, const uint8_t *key, size_t key_size) {
    return store_read(c, &(name){.key = key, .key_size = key_size}, read_size);
}

kv_result kv_version(kv_caller *c, const uint8_t *key, size_t key_size) {
    kv_result version = store_read(c, &(name){.key = key, .key_size = key_size}, read_version);
    return version == kv_ending(KV_ABSENT) ? 0 : version;
}

kv_result kv_table_look(kv_caller *c, const uint8_t *table, size_t table_size) {
    return store_read(c, &(name){.key = table, .key_size = table_size}, read_table);
}
