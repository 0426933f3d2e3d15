/* ledger.c -- see ledger.h. */
#include "ledger.h"

#include <string.h>

/* A piece of one segment, as it lies in the bytes. */
typedef struct ledger_stretch {
    size_t size;       /* of it there */
    uint64_t log_size; /* that it tells of */
    bool old;          /* it was in a ledger before */
} ledger_stretch;

void ledger_free(ledger *l) {
    wire_free(&l->bytes);
    list_free(&l->stretches);
}

/* --- telling --- */

/* KV_OK: a record; its head alone is checked: it was appended a moment ago, or found valid by a replay. */
static kv_status peek(const kv_flow *flow, kv_position at, kv_record *out, uint32_t *used) {
    uint64_t size;
    const uint8_t *bytes = kv_flow_at(flow, at.segment, at.offset, &size);
    if (bytes == NULL) return KV_EOF;
    return kv_record_peek(bytes, size, kv_place(kv_flow_salt(flow), at.segment, at.offset), out, used);
}

static enum told what_is(const kv_record *record) {
    if (record->options & KV_HAS_PREV_BALLOT) return TOLD_VERSION;
    if (record->kind < KV_KIND_ENVELOPE) return record->flags & KV_FLAG_MOVED ? TOLD_STATE : TOLD_OTHER;
    switch (record->kind) {
    case KV_KIND_COMMIT:
    case KV_KIND_LEDGER: return TOLD_IDLE;
    case KV_KIND_REPAIR: return TOLD_REPAIR;
    case KV_KIND_DATA: return TOLD_BYTES;
    case KV_KIND_PROMISE:
    case KV_KIND_NODE:
    case KV_KIND_STATE:
    case KV_KIND_SNAPSHOT_BEGIN:
    case KV_KIND_SNAPSHOT_END: return TOLD_RECORD;
    default: return TOLD_OTHER;
    }
}

/* An envelope is what its first record of a version log is, or its first. */
static void envelope_look(const kv_flow *flow, kv_position at, uint32_t used, kv_record *record) {
    uint32_t end = at.offset + used + record->value_size;
    kv_record one;
    bool first = true;
    for (at.offset += used; at.offset < end; at.offset += used) {
        if (peek(flow, at, &one, &used) != KV_OK) return;
        bool version = (one.options & KV_HAS_PREV_BALLOT) != 0;
        if (first || version) *record = one;
        if (version || one.kind == KV_KIND_REPAIR) return;
        first = false;
    }
}

/* As far as no peer can say it: lanes, which come last, are in every snapshot. */
static uint32_t value_told(const kv_record *record) {
    uint32_t fixed = record->kind == KV_KIND_STATE ? STATE_FIXED : SNAPSHOT_FIXED;
    bool lanes = record->kind == KV_KIND_STATE || record->kind == KV_KIND_SNAPSHOT_END;
    if (!lanes || record->value_size <= fixed) return record->value_size;
    uint32_t size = fixed + 1 + 2 * (uint32_t)record->value[fixed];
    return size < record->value_size ? size : record->value_size;
}

static void item_put(wire_out *out, const kv_record *record, uint32_t size) {
    enum told what = what_is(record);
    wire_put8(out, (uint8_t)what);
    wire_put_varint(out, size / KV_RECORD_ALIGN);
    switch (what) {
    case TOLD_VERSION:
        wire_put_varint(out, record->shard);
        wire_put_varint(out, record->version);
        wire_put_varint(out, record->ballot >> 16);
        wire_put_varint(out, record->ballot & 0xFFFF);
        break;
    case TOLD_BYTES:
    case TOLD_STATE: wire_put_varint(out, record->shard); break;
    case TOLD_RECORD:
        wire_put8(out, record->kind);
        wire_put_varint(out, record->shard);
        wire_put64(out, record->options & KV_HAS_BALLOT ? record->ballot : 0);
        wire_put_varint(out, value_told(record));
        wire_put_bytes(out, record->value, value_told(record));
        break;
    default: break;
    }
}

/* As much of one segment as there is, or as fits. *counts: whether any of it is worth a ledger of its own. */
static kv_status stretch_add(ledger *l, const kv_flow *flow, uint64_t tail, bool *counts) {
    ledger_stretch *one = list_add(&l->stretches, sizeof *one);
    wire_out *out = &l->bytes;
    size_t start = out->size;
    kv_position at = l->from, next = at;
    if (one == NULL) return KV_ENOMEM;
    wire_put_varint(out, at.segment);
    wire_put_varint(out, at.offset / KV_RECORD_ALIGN);
    while (next.segment == at.segment && kv_position_order(next) < tail && out->size - start < LEDGER_SIZE_MAX) {
        kv_record record = {0};
        uint32_t used;
        kv_status status = peek(flow, next, &record, &used);
        bool elsewhere = at.segment < (uint32_t)(tail >> 32);
        if (status != KV_OK && !elsewhere) return KV_ECORRUPT;
        if (status != KV_OK || record.kind == KV_KIND_SEAL) { /* No record: where an earlier life ended. */
            uint32_t named = record.value_size == 4 ? kv_load32(record.value) : 0;
            next = (kv_position){.segment = named != 0 ? named : at.segment + 1, .offset = KV_SEGMENT_HEADER_SIZE};
            break;
        }
        uint32_t size = used + (record.kind == KV_KIND_ENVELOPE ? record.value_size : 0);
        if (record.kind == KV_KIND_ENVELOPE) envelope_look(flow, next, used, &record);
        *counts |= record.kind != KV_KIND_LEDGER;
        item_put(out, &record, size);
        next.offset += size;
        one->log_size += size;
    }
    wire_put8(out, TOLD_NOTHING);
    one->size = out->size - start;
    l->from = next;
    return out->failed ? KV_ENOMEM : KV_OK;
}

kv_status ledger_extend(ledger *l, const kv_flow *flow) {
    uint64_t tail = kv_position_order(kv_flow_tail(flow));
    size_t size = l->bytes.size, count = l->stretches.count;
    kv_position from = l->from;
    bool counts = false;
    while (kv_position_order(l->from) < tail && l->bytes.size - size < LEDGER_SIZE_MAX) {
        kv_status status = stretch_add(l, flow, tail, &counts);
        if (status != KV_OK) return status;
    }
    if (counts) return KV_OK;
    l->from = from; /* A ledger that tells of nothing but ledgers would want one of its own. */
    l->bytes.size = size;
    l->stretches.count = count;
    return KV_EOF;
}

void ledger_wrote(ledger *l) {
    ledger_stretch *all = LIST(ledger_stretch, &l->stretches);
    uint64_t reach = 0;
    size_t kept = l->stretches.count, bytes = 0, dropped = 0;
    /* From the newest backwards: what is new, and as much as the reach asks for. */
    while (kept > 0 && (!all[kept - 1].old || reach < LEDGER_REACH) && bytes < 2 * LEDGER_SIZE_MAX) {
        kept--;
        reach += all[kept].log_size;
        bytes += all[kept].size;
        all[kept].old = true;
    }
    for (size_t i = 0; i < kept; i++) dropped += all[i].size;
    if (dropped != 0) memmove(l->bytes.bytes, l->bytes.bytes + dropped, l->bytes.size - dropped);
    l->bytes.size -= dropped;
    list_drop_front(&l->stretches, kept);
}

/* --- reading --- */

static uint16_t take_shard(wire_in *in) {
    uint64_t number = wire_take_varint(in);
    if (number > UINT16_MAX) in->bad = true;
    return (uint16_t)number;
}

static void item_take(wire_in *in, told_item *out) {
    *out = (told_item){.what = (enum told)wire_take8(in)};
    if (out->what == TOLD_NOTHING) return;
    uint64_t size = wire_take_varint(in) * KV_RECORD_ALIGN;
    if (size == 0 || size > KV_SEGMENT_SIZE_MAX || out->what > TOLD_BYTES) in->bad = true;
    out->size = (uint32_t)size;
    switch (out->what) {
    case TOLD_VERSION:
        out->shard = take_shard(in);
        out->version = wire_take_varint(in);
        out->ballot = wire_take_varint(in) << 16;
        out->ballot |= wire_take_varint(in);
        break;
    case TOLD_BYTES:
    case TOLD_STATE: out->shard = take_shard(in); break;
    case TOLD_RECORD:
        out->record.kind = wire_take8(in);
        out->record.shard = take_shard(in);
        out->record.ballot = wire_take64(in);
        out->record.value_size = (uint32_t)wire_take_varint(in);
        out->record.value = wire_take_bytes(in, out->record.value_size);
        break;
    default: break;
    }
    if (in->bad) *out = (told_item){0};
}

bool ledger_find(const kv_record *record, kv_position at, told_item *out) {
    wire_in in = {.at = record->value, .end = record->value + record->value_size};
    while (!in.bad && in.at != in.end) {
        uint64_t segment = wire_take_varint(&in), offset = wire_take_varint(&in) * KV_RECORD_ALIGN;
        for (item_take(&in, out); out->what != TOLD_NOTHING; item_take(&in, out)) {
            if (segment == at.segment && offset == at.offset) return true;
            offset += out->size;
        }
    }
    return false;
}
