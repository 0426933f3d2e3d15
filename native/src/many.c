/* many.c -- many keys in one call: put_many, delete_many, get_many, and batches.
 *
 * Writes go into an envelope: a head, then whole records. Two passes under the writer lock: the first finds what is
 * there and puts the records together, then the envelope becomes part of the log, and only then the second shows it in
 * the index. So a reader never follows the index to a record that is not in the log yet, and what fails in the first
 * pass leaves nothing behind.
 *
 * The keys of one envelope differ: which of two records of one key is the newer would otherwise hang on their order
 * alone, and they would both claim to bring it into being. put_many ends an envelope before a key that comes again.
 *
 * Over millions of keys finding is waiting for memory; so keys are handled in blocks, and what the next step needs is
 * prefetched for a whole block before the first of it is used. */
#include <stdlib.h>

#include "late.h"

enum { BLOCK = 32, ENVELOPE_SIZE_MAX = 1 << 20, ENVELOPE_COUNT_MAX = 1024 };

enum { NO_TABLE = -1 };

typedef struct item {
    target at;       /* of a row: complete only once its table is known, under the lock */
    const uint8_t *value;
    uint64_t expires_ms;
    uint32_t value_size;
    uint32_t offset; /* of its record, from the start of the envelope */
    uint32_t size;   /* of its record; 0: there is nothing to write */
    int32_t table;   /* which of the envelope's; NO_TABLE: a key */
    uint8_t kind;
    uint8_t flags;
    bool append;     /* a row under an id of its own, which is in `bytes` */
    bool expire;     /* only the table's expiry: written with what is new of the tables */
    uint8_t bytes[KV_META_SIZE]; /* or the kv_big, or the META, that stands for its value */
    uint8_t row_id[KV_ROW_ID_SIZE];
} item;

/* A table that a batch writes rows of. */
typedef struct batch_table {
    const uint8_t *key;
    size_t key_size;
    table_state state; /* before the batch, but for row count and next row: those are as of after it */
    uint64_t id;       /* it has, or gets */
    bool is_new;
    bool expires;      /* it gets another expiry */
    uint64_t expires_ms;
    size_t last;       /* its last item that is written; its record becomes the head */
    size_t written_count;
} batch_table;

/* Hashes of names that came before; room for twice what is put in. */
typedef struct name_set {
    uint64_t *seen;
    size_t capacity;
} name_set;

/* One envelope to be written. */
typedef struct envelope {
    write_op base; /* first: store_write() hands it to the step */
    item *items;
    size_t count;
    batch_table *tables;
    size_t table_count;
    size_t new_table_count;
    uint64_t row_id_max; /* of its appends; 0: none */
    const name_set *names; /* of a batch: all that it was handed */
    const kv_expectation *expectations; /* of a batch: what has to hold before anything is planned */
    size_t expectation_count;
    bool one_version;
    size_t written_count;
    uint64_t version;        /* it was written under; the last of them, if there are several */
    kv_late *late;           /* the store's */
    const item *first;       /* that is written: its record carries the request */
} envelope;

static kv_record item_record(const envelope *e, const item *one) {
    kv_record record = {.kind = one->kind,
                        .flags = one->flags,
                        .options = one->expires_ms != 0 ? KV_HAS_EXPIRY : 0,
                        .expires_ms = one->expires_ms,
                        .key = one->at.key,
                        .key_size = (uint32_t)one->at.key_size,
                        .value = one->value,
                        .value_size = one->value_size};
    if (KV_UNLIKELY(e->late != NULL)) late_stamp(e->late, &record, one == e->first);
    if (one->table == NO_TABLE) {
        record.table_id = one->at.table_id; /* of a table that is dropped */
        if (one->kind == KV_KIND_TABLE_DROP) record.options |= KV_HAS_TABLE;
        return record;
    }
    const batch_table *table = &e->tables[one->table];
    record.options |= KV_HAS_TABLE;
    record.table_id = table->id;
    record.row_count = table->state.row_count;
    record.next_row = table->state.next_row;
    return record;
}

void store_prefetch(kv_store *store, uint64_t location) {
    uint64_t size;
    if (location == 0) return;
    const uint8_t *bytes = kv_flow_at(store->flow, kv_loc_segment(location), kv_loc_offset(location), &size);
    if (bytes == NULL) return;
    __builtin_prefetch(bytes);
    __builtin_prefetch(bytes + 64);
    __builtin_prefetch(bytes + 128);
}

/* Their hashes are set. */
static void prefetch_items(kv_store *store, const item *items, size_t count) {
    kv_probe probe;
    for (size_t i = 0; i < count; i++) kv_index_prefetch(store->index, items[i].at.hash);
    for (size_t i = 0; i < count; i++) store_prefetch(store, kv_index_first(store->index, items[i].at.hash, &probe));
}

/* --- writing --- */

static kv_status tables_plan(kv_caller *c, envelope *e) {
    e->new_table_count = 0;
    e->row_id_max = 0;
    for (size_t i = 0; i < e->table_count; i++) {
        batch_table *table = &e->tables[i];
        kv_status status = store_find_table(c, table->key, table->key_size, &table->state);
        if (status != KV_OK) return status;
        table->is_new = false; /* Until a row of it is written. */
        table->id = table->state.id;
        table->written_count = 0;
    }
    return KV_OK;
}

/* Which table that is, and so the row's own hash, is known under the lock only: any that parts tables will do. */
static uint64_t batch_row_hash(const kv_store *store, int32_t table, const uint8_t *row, size_t size) {
    return kv_xxh64(row, size, store->hash_seed ^ (uint64_t)(table + 1));
}

static bool name_known(const name_set *names, uint64_t hash) {
    if (hash == 0) hash = 1;
    size_t at = (size_t)hash & (names->capacity - 1);
    while (names->seen[at] != 0 && names->seen[at] != hash) at = (at + 1) & (names->capacity - 1);
    return names->seen[at] != 0;
}

/* Passes over the rows that this batch names itself, too: they are not in the index yet. */
static kv_status append_name(kv_caller *c, envelope *e, item *one) {
    batch_table *table = &e->tables[one->table];
    uint64_t id;
    do {
        kv_status status =
            store_next_row(c, &table->state, store_next_version(c->store), one->row_id, &id);
        if (status != KV_OK) return status;
        table->state.next_row = id + 1;
        if (id > e->row_id_max) e->row_id_max = id;
    } while (name_known(e->names, batch_row_hash(c->store, one->table, one->row_id, KV_ROW_ID_SIZE)));
    one->at = (target){.key = one->row_id, .key_size = KV_ROW_ID_SIZE};
    return KV_OK;
}

/* A row finds its table, and an append its row. */
static kv_status row_find(kv_caller *c, envelope *e, item *one, found *old) {
    batch_table *table = &e->tables[one->table];
    kv_store *store = c->store;
    old->location = 0;
    kv_status status = one->append ? append_name(c, e, one) : KV_OK;
    if (status != KV_OK) return status;
    if (table->id == 0 && one->kind == KV_KIND_ROW_PUT) {
        /* Its number is one of the sequence, which the batch's version then lies at or above: never used again. */
        table->is_new = true;
        table->id = store_table_id(store, e->new_table_count++);
    }
    if (table->id == 0) return table->is_new ? KV_EBATCHSIZE : KV_ABSENT;
    one->at = target_row(store, table->id, one->at.key, one->at.key_size);
    return table->is_new ? KV_ABSENT : store_find(store, &one->at, old, &c->answer.fault);
}

/* How large its record is: in a replica the bytes of a large value are written first, and are not part of it. */
static kv_status item_measure(kv_caller *c, envelope *e, item *one) {
    if (e->first == NULL) e->first = one;
    kv_record record = item_record(e, one);
    kv_status status = e->late == NULL ? KV_OK : late_keep(c->store, &record, one->bytes);
    one->value = record.value;
    one->value_size = record.value_size;
    one->flags = record.flags;
    one->size = (uint32_t)kv_record_size(&record);
    return status;
}

/* What becomes of one row. */
static kv_status row_plan(kv_caller *c, envelope *e, size_t i) {
    item *one = &e->items[i];
    batch_table *table = &e->tables[one->table];
    found old;
    kv_status status = row_find(c, e, one, &old);
    if (status != KV_OK && status != KV_ABSENT) return status;
    bool there = old.location != 0 && !found_tombstone(&old), put = one->kind == KV_KIND_ROW_PUT;
    one->size = 0;
    if (!put && !found_alive(c->store, &old))
        return there ? store_note_clock(c->store, (int64_t)old.record.expires_ms) : KV_OK;
    if (put && !there) one->flags |= KV_FLAG_CREATED;
    table->state.row_count += (uint64_t)((put && !there) - (!put && there));
    if (put) row_moves_next(&table->state, one->at.key, one->at.key_size);
    table->last = i;
    table->written_count++;
    return item_measure(c, e, one);
}

/* What becomes of one key: nothing, if it deletes what is not there. */
static kv_status item_plan(kv_caller *c, envelope *e, size_t i) {
    item *one = &e->items[i];
    kv_store *store = c->store;
    found old;
    if (KV_UNLIKELY(one->expire)) return KV_OK;
    if (KV_UNLIKELY(one->table != NO_TABLE)) return row_plan(c, e, i);
    kv_status status = store_find(store, &one->at, &old, &c->answer.fault);
    if (status != KV_OK && status != KV_ABSENT) return status;
    bool there = old.location != 0 && !found_tombstone(&old);
    one->size = 0;
    if (one->kind != KV_KIND_PUT && !found_alive(store, &old))
        return there ? store_note_clock(store, (int64_t)old.record.expires_ms) : KV_OK;
    if (one->kind == KV_KIND_PUT && !there) one->flags |= KV_FLAG_CREATED;
    if (one->kind != KV_KIND_PUT && found_table(&old)) {
        one->kind = KV_KIND_TABLE_DROP;
        one->at.table_id = old.record.table_id;
    }
    return item_measure(c, e, one);
}

/* The tables that come into being, or get another expiry, as items behind the others: there is room for them. What has
 * none of its rows written is its own newest record. */
static void plan_new_tables(envelope *e) {
    for (size_t i = 0; i < e->table_count; i++) {
        batch_table *table = &e->tables[i];
        const found *before = &table->state.at;
        if (!table->is_new && !(table->expires && table->id != 0)) continue;
        if (table->written_count == 0) table->last = e->count;
        table->written_count++;
        item *one = &e->items[e->count++];
        *one = (item){.at = table->state.key, .kind = KV_KIND_TABLE_NEW, .table = (int32_t)i};
        if (before->location == 0 || found_tombstone(before)) one->flags = KV_FLAG_CREATED;
        one->expires_ms = table->expires ? table->expires_ms : table->is_new ? 0 : before->record.expires_ms;
        if (e->first == NULL) e->first = one;
        kv_record record = item_record(e, one);
        one->size = (uint32_t)kv_record_size(&record);
    }
}

static kv_status envelope_plan(kv_caller *c, envelope *e, uint64_t *size) {
    *size = 0;
    e->written_count = 0;
    e->late = c->store->late;
    e->first = NULL;
    kv_status status = tables_plan(c, e);
    for (size_t from = 0; from < e->count; from += BLOCK) {
        size_t until = from + BLOCK < e->count ? from + BLOCK : e->count;
        prefetch_items(c->store, e->items + from, until - from);
        for (size_t i = from; status == KV_OK && i < until; i++) status = item_plan(c, e, i);
    }
    if (status != KV_OK) return status;
    plan_new_tables(e);
    for (size_t i = 0; i < e->count; i++) {
        *size += e->items[i].size;
        if (e->items[i].size != 0) e->written_count++;
    }
    return KV_OK;
}

/* At or above every number it gives to tables and rows: those are then below all that versions will ever give, also
 * once the table is gone and with it what it knows of its rows. Rows put by hand may have pushed ids further than the
 * sequence can be reserved for; then the table alone knows. */
static uint64_t batch_version(const envelope *e, uint64_t sequence) {
    uint64_t version = sequence + (e->new_table_count > 1 ? e->new_table_count : 1);
    return e->row_id_max > version && e->row_id_max - sequence <= e->written_count ? e->row_id_max : version;
}

static kv_status envelope_encode(kv_caller *c, envelope *e, uint64_t size, kv_position *position) {
    kv_store *store = c->store;
    uint64_t salt = kv_flow_salt(store->flow), sequence = kv_flow_sequence(store->flow);
    uint8_t *bytes;
    kv_record head = {.kind = KV_KIND_ENVELOPE, .version = sequence + 1, .value_size = (uint32_t)size};
    /* One record is all or nothing by itself. */
    uint32_t at = e->written_count > 1 ? (uint32_t)kv_record_size(&head) : 0;
    if (size + at > UINT32_MAX) return KV_EBATCHSIZE;
    kv_status status = kv_flow_reserve(store->flow, size + at, e->written_count, &bytes, position);
    if (status != KV_OK) return status;
    if (at != 0) kv_record_encode(&head, kv_place(salt, position->segment, position->offset), bytes);
    if (e->one_version) sequence = batch_version(e, sequence);
    uint32_t first_at = at;
    for (size_t i = 0; i < e->count; i++) {
        item *one = &e->items[i];
        if (one->size == 0) continue;
        kv_record record = item_record(e, one);
        if (!e->one_version) sequence++;
        record.version = e->late == NULL ? sequence : e->late->version;
        record.sequence = sequence;
        one->offset = at;
        kv_record_encode(&record, kv_place(salt, position->segment, position->offset + at), bytes + at);
        at += one->size;
    }
    status = kv_flow_commit(store->flow, *position, at);
    if (status != KV_OK) return status;
    kv_flow_set_sequence(store->flow, sequence);
    e->version = e->late == NULL ? sequence : e->late->version;
    kv_position first = {.segment = position->segment, .offset = position->offset + first_at};
    if (e->late != NULL) late_note(store->late, first, at - first_at, e->written_count);
    return KV_OK;
}

static kv_status item_show(kv_caller *c, envelope *e, const item *one, kv_position position) {
    found old;
    kv_record record = item_record(e, one);
    kv_position at = {.segment = position.segment, .offset = position.offset + one->offset};
    record.version = e->version;
    kv_status status = store_find(c->store, &one->at, &old, &c->answer.fault);
    if (status != KV_OK && status != KV_ABSENT) return status;
    return store_index_put(c->store, one->at.hash, &old, &record, at, one->size);
}

/* Last, so that who reads the table's version finds everything up to it. */
static kv_status heads_show(kv_caller *c, envelope *e, kv_position position) {
    kv_status status = KV_OK;
    for (size_t i = 0; status == KV_OK && i < e->table_count; i++) {
        if (e->tables[i].written_count == 0) continue;
        const item *one = &e->items[e->tables[i].last];
        kv_record record = item_record(e, one);
        record.version = e->version;
        kv_position at = {.segment = position.segment, .offset = position.offset + one->offset};
        status = store_put_head(c->store, &record, at, &c->answer.fault);
    }
    return status;
}

static kv_status envelope_show(kv_caller *c, envelope *e, kv_position position) {
    kv_status status = KV_OK;
    for (size_t from = 0; from < e->count; from += BLOCK) {
        size_t until = from + BLOCK < e->count ? from + BLOCK : e->count;
        prefetch_items(c->store, e->items + from, until - from);
        for (size_t i = from; status == KV_OK && i < until; i++)
            if (e->items[i].size != 0) status = item_show(c, e, &e->items[i], position);
    }
    if (status == KV_OK) status = heads_show(c, e, position);
    /* In the log and not wholly in the index: only a reopen brings the two together again. */
    if (status != KV_OK) kv_flow_set_poison(c->store->flow, status, 0);
    return status;
}

static kv_status step_envelope(kv_caller *c, write_op *w) {
    envelope *e = (envelope *)w;
    kv_position position;
    uint64_t size, never = UINT64_MAX;
    w->result = 0;
    kv_status status = store_expect(c, e->expectations, e->expectation_count, &never);
    if (status == KV_OK) status = envelope_plan(c, e, &size);
    if (status != KV_OK || e->written_count == 0) return status;
    status = envelope_encode(c, e, size, &position);
    if (status != KV_OK) return status;
    status = envelope_show(c, e, position);
    w->result = (kv_result)e->version;
    return status;
}

/* Whether a key with this hash has been seen; `seen` has room for twice what is put in. */
static bool seen_before(uint64_t *seen, size_t capacity, uint64_t hash) {
    if (hash == 0) hash = 1;
    size_t at = (size_t)hash & (capacity - 1);
    for (; seen[at] != 0; at = (at + 1) & (capacity - 1))
        if (seen[at] == hash) return true;
    seen[at] = hash;
    return false;
}

/* --- put_many, delete_many --- */

typedef struct many_cursor {
    const kv_many *many;
    size_t next;
    const uint8_t *key;
    const uint8_t *value;
} many_cursor;

static uint32_t next_value_size(const many_cursor *m) {
    return m->many->values == NULL ? 0 : m->many->value_sizes[m->next];
}

static void cursor_step(many_cursor *m) {
    m->key += m->many->key_sizes[m->next];
    if (m->many->values != NULL) m->value += m->many->value_sizes[m->next];
    m->next++;
}

/* Checked once, so that nothing behind has to look again. */
static kv_status many_check(kv_caller *c, const kv_many *many) {
    uint64_t keys = 0, values = 0;
    for (size_t i = 0; i < many->count; i++) {
        if (key_check(many->key_sizes[i]) != KV_OK)
            return (kv_status)caller_fail(c, KV_EKEYSIZE, "keys have 1 to 65535 bytes");
        keys += many->key_sizes[i];
        if (many->values == NULL) continue;
        if (many->value_sizes[i] > KV_VALUE_SIZE_MAX)
            return (kv_status)caller_fail(c, KV_EVALUESIZE, "values have up to 1 GiB");
        values += many->value_sizes[i];
    }
    bool fits = keys == many->keys_size && values == many->values_size;
    return fits ? KV_OK : (kv_status)caller_fail(c, KV_EUSAGE, "the sizes do not add up");
}

/* Takes items from the cursor until the envelope is full, a key comes again or a value wants a file of its own. */
static void envelope_fill(kv_caller *c, many_cursor *m, int64_t ttl_ms, envelope *e, const name_set *names) {
    kv_store *store = c->store;
    uint64_t size = 0;
    uint8_t kind = m->many->values == NULL ? KV_KIND_DELETE : KV_KIND_PUT;
    memset(names->seen, 0, names->capacity * sizeof *names->seen);
    e->count = 0;
    while (m->next < m->many->count && e->count < names->capacity / 2) {
        item *one = &e->items[e->count];
        *one = (item){.at = {.key = m->key, .key_size = m->many->key_sizes[m->next]}, .value = m->value, .kind = kind,
                      .table = NO_TABLE};
        one->value_size = next_value_size(m);
        if (one->value_size > store->options.inline_size_max) return;
        one->expires_ms = (uint64_t)store_deadline(store, ttl_ms);
        kv_record record = item_record(e, one);
        size += kv_record_size(&record);
        if (e->count > 0 && size > ENVELOPE_SIZE_MAX) return;
        one->at = target_key(store, one->at.key, one->at.key_size);
        if (seen_before(names->seen, names->capacity, one->at.hash)) return;
        e->count++;
        cursor_step(m);
    }
}

static kv_result write_many(kv_caller *c, const kv_many *many, int64_t ttl_ms, int durable) {
    kv_status status = many_check(c, many);
    if (status != KV_OK) return status;
    /* No larger than this call needs: a hundred keys must not pay for clearing, and faulting in, room for thousands. */
    name_set names = {.capacity = 16};
    while (names.capacity < 2 * ENVELOPE_COUNT_MAX && names.capacity < 2 * many->count) names.capacity *= 2;
    item *items = malloc(names.capacity / 2 * sizeof *items);
    names.seen = malloc(names.capacity * sizeof *names.seen);
    many_cursor m = {.many = many, .key = many->keys, .value = many->values};
    envelope e = {.items = items};
    kv_result result = items == NULL || names.seen == NULL ? caller_fail(c, KV_ENOMEM, "no memory for an envelope") : 0;
    kv_result written = 0;
    while (result >= 0 && m.next < many->count) {
        envelope_fill(c, &m, ttl_ms, &e, &names);
        if (e.count > 0) {
            result = store_write(c, step_envelope, &e.base, durable && m.next == many->count);
            written += (kv_result)(result < 0 ? 0 : e.written_count);
        } else {
            result = kv_put(c, m.key, many->key_sizes[m.next], m.value, next_value_size(&m), ttl_ms, durable);
            cursor_step(&m);
            written += result > 0;
        }
    }
    free(items);
    free(names.seen);
    return result < 0 ? result : written;
}

kv_result kv_put_many(kv_caller *c, const kv_many *many, int64_t ttl_ms, int durable) {
    if (many->values == NULL && many->count != 0) return caller_fail(c, KV_EUSAGE, "put_many needs values");
    return write_many(c, many, ttl_ms, durable);
}

kv_result kv_delete_many(kv_caller *c, const kv_many *many, int durable) {
    if (many->values != NULL) return caller_fail(c, KV_EUSAGE, "delete_many takes keys only");
    return write_many(c, many, 0, durable);
}

/* --- batches --- */

/* The batch's entry for a table. A new one counts as a name: its key is not written as well. KV_EUSAGE: it was. */
static kv_status batch_find_table(kv_caller *c, envelope *e, const uint8_t *key, size_t key_size, name_set *names,
                                  int32_t *out) {
    /* From the last: operations on one table usually follow one another. */
    for (size_t i = e->table_count; i-- > 0;) {
        const batch_table *one = &e->tables[i];
        *out = (int32_t)i;
        if (one->key_size == key_size && memcmp(one->key, key, key_size) == 0) return KV_OK;
    }
    *out = (int32_t)e->table_count;
    e->tables[e->table_count++] = (batch_table){.key = key, .key_size = key_size};
    uint64_t hash = store_hash(c->store, key, key_size);
    return seen_before(names->seen, names->capacity, hash) ? KV_EUSAGE : KV_OK;
}

static bool expires_only(const kv_operation *operation) {
    return operation->value == NULL && operation->table == NULL && operation->value_size == KV_EXPIRY_ONLY;
}

static kv_status batch_expire(kv_caller *c, envelope *e, const kv_operation *operation, name_set *names, item *one) {
    one->expire = true;
    kv_status status = batch_find_table(c, e, operation->key, operation->key_size, names, &one->table);
    if (status != KV_OK) return status;
    e->tables[one->table].expires = true;
    e->tables[one->table].expires_ms = one->expires_ms;
    return KV_OK;
}

/* KV_EUSAGE: the name came before. */
static kv_status batch_name(kv_caller *c, envelope *e, const kv_operation *operation, name_set *names, item *one) {
    kv_store *store = c->store;
    one->at = (target){.key = operation->key, .key_size = operation->key_size};
    one->table = NO_TABLE;
    if (expires_only(operation)) return batch_expire(c, e, operation, names, one);
    if (operation->table == NULL) {
        one->at = target_key(store, operation->key, operation->key_size);
        return seen_before(names->seen, names->capacity, one->at.hash) ? KV_EUSAGE : KV_OK;
    }
    one->kind = operation->value == NULL ? KV_KIND_ROW_DELETE : KV_KIND_ROW_PUT;
    one->append = operation->key == NULL;
    if (one->append && operation->value == NULL) return KV_EUSAGE;
    kv_status status = batch_find_table(c, e, operation->table, operation->table_size, names, &one->table);
    if (status != KV_OK || one->append) return status;
    uint64_t hash = batch_row_hash(store, one->table, operation->key, operation->key_size);
    return seen_before(names->seen, names->capacity, hash) ? KV_EUSAGE : KV_OK;
}

static kv_status batch_item(kv_caller *c, envelope *e, const kv_operation *operation, name_set *names, item *one) {
    if (name_check(operation->table, operation->table_size, operation->key_size) != KV_OK) return KV_EKEYSIZE;
    if (operation->value_size > KV_VALUE_SIZE_MAX) return KV_EVALUESIZE;
    *one = (item){.kind = operation->value == NULL ? KV_KIND_DELETE : KV_KIND_PUT,
                  .value = operation->value,
                  .value_size = (uint32_t)operation->value_size,
                  .expires_ms = (uint64_t)store_deadline(c->store, operation->ttl_ms)};
    kv_status status = batch_name(c, e, operation, names, one);
    if (status != KV_OK || operation->value_size <= c->store->options.inline_size_max) return status;
    if (c->store->late != NULL && c->store->late->contents != NULL) return KV_OK; /* By digest. */
    kv_big big;
    status = big_write(c, operation->value, operation->value_size, &big);
    if (status != KV_OK) return status;
    kv_big_encode(&big, one->bytes);
    one->value = one->bytes;
    one->value_size = KV_BIG_SIZE;
    one->flags = KV_FLAG_BIG;
    return KV_OK;
}

static void batch_give_up(kv_caller *c, const envelope *e, size_t count) {
    for (size_t i = 0; i < count; i++) {
        kv_big big;
        kv_record record = item_record(e, &e->items[i]);
        if (kv_big_decode(&record, &big) == KV_OK) big_give_up(c->store, &big);
    }
}

static void tell_row_ids(kv_operation *operations, const item *items, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (items[i].append) operations[i].row_id = __builtin_bswap64(kv_load64(items[i].row_id));
}

/* `e` has its arrays and expectations; they are filled in from the operations. */
static kv_result batch_write(kv_caller *c, kv_operation *operations, size_t count, int durable, envelope *e,
                             name_set *names) {
    for (size_t i = 0; i < count; i++) {
        kv_status status = batch_item(c, e, &operations[i], names, &e->items[i]);
        if (status == KV_OK) continue;
        batch_give_up(c, e, i);
        return caller_fail(c, status, status == KV_EUSAGE ? "the names of a batch differ, and a key is not written with rows "
                                                            "under it" : "an operation of the batch cannot be written");
    }
    e->count = count;
    e->names = names;
    kv_result result = store_write(c, step_envelope, &e->base, durable);
    if (result < 0 && e->base.result == 0) batch_give_up(c, e, count);
    if (e->base.result > 0) tell_row_ids(operations, e->items, count);
    return result;
}

kv_result kv_batch(kv_caller *c, kv_operation *operations, size_t count, const kv_expectation *expectations,
                   size_t expectation_count, int durable) {
    name_set names = {.capacity = 16};
    size_t row_count = 0;
    if (count > UINT32_MAX / 64) return caller_fail(c, KV_EBATCHSIZE, "a batch fits into one segment");
    for (size_t i = 0; i < count; i++) row_count += operations[i].table != NULL || expires_only(&operations[i]);
    while (names.capacity < 2 * (count + row_count)) names.capacity *= 2;
    names.seen = calloc(names.capacity, sizeof *names.seen);
    envelope e = {.expectations = expectations, .expectation_count = expectation_count, .one_version = true};
    e.items = calloc(count + row_count + 1, sizeof *e.items); /* every row may bring its table with it, an expiry has one */
    e.tables = calloc(row_count + 1, sizeof *e.tables);
    bool room = names.seen != NULL && e.items != NULL && e.tables != NULL;
    kv_result result = room ? batch_write(c, operations, count, durable, &e, &names)
                            : caller_fail(c, KV_ENOMEM, "no memory for the batch");
    free(e.items);
    free(e.tables);
    free(names.seen);
    return result;
}

/* --- get_many --- */

kv_status gather_room(kv_caller *c, uint64_t used, uint64_t more, uint8_t **out) {
    kv_answer *answer = &c->answer;
    uint64_t size = used + more;
    if (size <= KV_SMALL_SIZE || size <= answer->large_capacity) {
        *out = size <= KV_SMALL_SIZE ? answer->small : answer->large;
        if (used <= KV_SMALL_SIZE && *out == answer->large) memcpy(answer->large, answer->small, used);
        *out += used;
        return KV_OK;
    }
    uint64_t capacity = size * 2;
    uint8_t *larger = malloc(capacity);
    if (larger == NULL) return KV_ENOMEM;
    memcpy(larger, used <= KV_SMALL_SIZE ? answer->small : answer->large, used);
    free(answer->large);
    answer->large = larger;
    answer->large_capacity = capacity;
    *out = larger + used;
    return KV_OK;
}

static kv_status gather_once(kv_caller *c, const target *t, gathering *g, int64_t *size, uint64_t *location) {
    found f;
    uint8_t *to;
    kv_big big = {0};
    *size = -1;
    kv_status status = reader_find(c, t, &f);
    *location = f.location;
    if (status != KV_OK) return status == KV_ABSENT ? KV_OK : status;
    if (!found_intact_once(c->store, &f))
        return fault_corrupt(&c->answer.fault, f.location, "the record's checksum is wrong");
    if (found_tombstone(&f) || (found_table(&f) && g->skip_tables)) return KV_OK;
    if (!reader_alive(c, &f)) {
        if ((int64_t)f.record.expires_ms > g->expired_ms) g->expired_ms = (int64_t)f.record.expires_ms;
        return KV_OK;
    }
    if (found_table(&f)) return KV_EWRONGTYPE;
    bool is_big = (f.record.flags & KV_FLAG_BIG) != 0;
    if (is_big && kv_big_decode(&f.record, &big) != KV_OK)
        return fault_corrupt(&c->answer.fault, f.location, "no description of a value file");
    const uint8_t *bytes = NULL;
    uint64_t value_size = big.size;
    if (!is_big) status = found_bytes(c->store, &f, &bytes, &value_size, &c->answer.fault);
    if (status != KV_OK) return status;
    *size = (int64_t)value_size;
    if (g->size_max != 0 && (uint64_t)*size > g->size_max) {
        *size = -2 - *size;
        return KV_OK;
    }
    status = gather_room(c, g->used, (uint64_t)*size, &to);
    if (status != KV_OK) return status;
    status = is_big ? big_read(c, &big, to) : KV_OK;
    if (status == KV_ECORRUPT) return big_fault(c, &f);
    if (status != KV_OK) return status;
    if (!is_big) memcpy(to, bytes, value_size);
    g->used += (uint64_t)*size;
    return KV_OK;
}

/* As a single read: a value file that is gone means that the record has been replaced. KV_MORE: it was not. */
kv_status gather_value(kv_caller *c, const target *t, gathering *g, int64_t *size) {
    uint64_t location = 0, before;
    kv_status status;
    do {
        before = location;
        status = gather_once(c, t, g, size, &location);
    } while (status == KV_MORE && location != before);
    if (status == KV_MORE) fault_corrupt(&c->answer.fault, location, "the value's file is missing");
    return status;
}

typedef struct gathering_many {
    kv_caller *caller;
    const kv_many *many;
    int64_t *sizes;
    gathering gathered;
} gathering_many;

static kv_status gather(void *context) {
    gathering_many *g = context;
    kv_caller *c = g->caller;
    const kv_many *many = g->many;
    item block[BLOCK];
    const uint8_t *key = many->keys;
    g->gathered = (gathering){.size_max = many->value_size_max};
    for (size_t from = 0; from < many->count; from += BLOCK) {
        size_t count = many->count - from < BLOCK ? many->count - from : BLOCK;
        for (size_t i = 0; i < count; i++) {
            block[i].at = target_key(c->store, key, many->key_sizes[from + i]);
            key += many->key_sizes[from + i];
        }
        prefetch_items(c->store, block, count);
        for (size_t i = 0; i < count; i++) {
            kv_status status = gather_value(c, &block[i].at, &g->gathered, &g->sizes[from + i]);
            if (status != KV_OK) return status;
        }
    }
    return KV_OK;
}

kv_result kv_get_many(kv_caller *c, const kv_many *many, int64_t *sizes) {
    gathering_many g = {.caller = c, .many = many, .sizes = sizes};
    kv_status status = many_check(c, many);
    if (status != KV_OK) return status;
    c->answer.fault.status = KV_OK;
    status = store_look(c, gather, &g);
    for (int look = 0; status == KV_MORE && store_look_again(c, look); look++) status = store_look(c, gather, &g);
    if (status == KV_MORE) return answer_gone(c);
    if (status != KV_OK) return caller_fail(c, status, "the read failed");
    if (g.gathered.expired_ms != 0) answer_expired(c, g.gathered.expired_ms);
    return (kv_result)g.gathered.used;
}
