/* expect.c -- what a transaction stands on: keys that were read at versions, and whether they are still there.
 *
 * A transaction keeps what it has read as expectations. Its commit is a batch that checks them under the hold of the
 * writer lock in which it writes, so nothing comes between. Absent is version 0, whatever was there in the meantime:
 * who saw nothing and finds nothing has not been overtaken.
 *
 * Its reads take the writer lock, too, unlike all others, and that is why it never sees part of a batch: batches are
 * shown under that lock. All it has read is then of one moment, because each read first makes sure of the earlier
 * ones. That costs a comparison as long as nobody wrote: the flow's sequence has not moved. Time alone takes keys away
 * without a write; but nothing is called expired before the flow has a record of that time, and that moves the
 * sequence. So while it stands still, what was alive at an earlier read was alive together with all that is found
 * alive now, and whoever finds something newly expired looks at everything again. */
#include "store_internal.h"

/* What stands under a name. A row of a table that is not there is absent, too. */
static kv_status find_now(kv_caller *c, const uint8_t *table, size_t table_size, const uint8_t *key, size_t key_size,
                          found *out, bool *alive) {
    out->location = 0;
    *alive = false;
    if (name_check(table, table_size, key_size) != KV_OK) return KV_EKEYSIZE;
    if (table == NULL) {
        target t = target_key(c->store, key, key_size);
        return store_find_trusted(c, &t, out, alive);
    }
    table_state state;
    kv_status status = store_find_table(c, table, table_size, &state);
    if (status != KV_OK || state.id == 0) return status;
    target t = target_row(c->store, state.id, key, key_size);
    return store_find_trusted(c, &t, out, alive);
}

static kv_status expect_one(kv_caller *c, const kv_expectation *one) {
    found now;
    bool alive;
    kv_status status = find_now(c, one->table, one->table_size, one->key, one->key_size, &now, &alive);
    /* It was a row of a table, and there is a value now: another thing, and no longer what was read. */
    if (status == KV_EWRONGTYPE) status = KV_OK;
    if (status != KV_OK) return status;
    c->answer.version = alive ? now.record.version : 0;
    return c->answer.version == one->version ? KV_OK : KV_ECONFLICT;
}

kv_status store_expect(kv_caller *c, const kv_expectation *expectations, size_t count, uint64_t *sequence) {
    uint64_t now;
    /* Again if looking moved it: something has expired since, and so may what was looked at before it. Set only when
     * all of it holds, so that who goes on after a conflict meets it again. */
    while ((now = kv_flow_sequence(c->store->flow)) != *sequence) {
        for (size_t i = 0; i < count; i++) {
            kv_status status = expect_one(c, &expectations[i]);
            c->answer.number = (int64_t)i;
            if (status != KV_OK) return status;
        }
        *sequence = now;
    }
    return KV_OK;
}

/* A read under the writer lock. */
typedef struct held_read {
    write_op base; /* first: store_hold() hands it to the step */
    const kv_expectation *expectations;
    size_t count;
    uint64_t *sequence;
    kv_big big;
    bool is_big; /* and then the value is not read yet */
} held_read;

static kv_status step_read(kv_caller *c, write_op *w) {
    held_read *r = (held_read *)w;
    bool alive;
    kv_status status;
    do {
        status = store_expect(c, r->expectations, r->count, r->sequence);
        if (status == KV_OK) status = find_now(c, w->table, w->table_size, w->key, w->key_size, &w->old, &alive);
        if (status != KV_OK) return status;
    } while (*r->sequence != kv_flow_sequence(c->store->flow));

    const kv_record *record = &w->old.record;
    w->result = kv_ending(KV_ABSENT);
    c->answer.version = alive ? record->version : 0;
    c->answer.expires_ms = alive ? (int64_t)record->expires_ms : 0;
    if (!alive) return KV_OK;
    if (found_table(&w->old)) return KV_EWRONGTYPE;
    status = found_value(c, &w->old);
    if (status != KV_OK) return status;
    r->is_big = (record->flags & KV_FLAG_BIG) != 0;
    if (r->is_big && kv_big_decode(record, &r->big) != KV_OK)
        return fault_corrupt(&c->answer.fault, w->old.location, "no description of a value file");
    w->result = (kv_result)(r->is_big ? r->big.size : record->value_size);
    if (r->is_big) return KV_OK;
    uint8_t *to;
    status = answer_room(c, record->value_size, &to);
    if (status == KV_OK && record->value_size != 0) memcpy(to, record->value, record->value_size);
    return status;
}

/* Value files never change, so they are read without holding up the writers. Inside the epoch: close() waits. */
static kv_status read_file(kv_caller *c, const kv_big *big) {
    uint8_t *to;
    kv_epoch_enter(c->store->epoch, c->slot);
    kv_status status = store_usable(c->store);
    if (status == KV_OK) status = answer_room(c, big->size, &to);
    if (status == KV_OK) status = big_read(c, big, to);
    kv_epoch_leave(c->slot);
    return status;
}

static kv_result get_with(kv_caller *c, const write_op *asked, const kv_expectation *expectations, size_t count,
                          uint64_t *sequence) {
    if (name_check(asked->table, asked->table_size, asked->key_size) != KV_OK) return refuse_name(c);
    uint64_t location = 0;
    for (;;) {
        held_read r = {.base = *asked, .expectations = expectations, .count = count, .sequence = sequence};
        /* Nothing to wait for, also where every write waits: the commit does. */
        kv_result result = store_hold(c, step_read, &r.base, 0);
        if (result < 0 || !r.is_big) return result;
        kv_status status = read_file(c, &r.big);
        if (status == KV_OK) return result;
        if (status != KV_MORE) return caller_fail(c, status, "the read failed");
        /* The file went after the lock was let go, so another record must have taken its record's place. */
        if (r.base.old.location == location) return caller_fail(c, KV_ECORRUPT, "the value's file is missing");
        location = r.base.old.location;
    }
}

kv_result kv_get_with(kv_caller *c, const uint8_t *key, size_t key_size, const kv_expectation *expectations,
                      size_t count, uint64_t *sequence) {
    write_op asked = {.key = key, .key_size = key_size};
    return get_with(c, &asked, expectations, count, sequence);
}

kv_result kv_row_get_with(kv_caller *c, const uint8_t *table, size_t table_size, const uint8_t *row, size_t row_size,
                          const kv_expectation *expectations, size_t count, uint64_t *sequence) {
    write_op asked = {.table = table, .table_size = table_size, .key = row, .key_size = row_size};
    return get_with(c, &asked, expectations, count, sequence);
}
