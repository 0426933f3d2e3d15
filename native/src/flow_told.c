/* flow_told.c -- where a record is damaged: looks in what follows for a ledger that says what it was.
 *
 * A ledger (ledger.h) lies some records behind what it tells of, mostly a few, and it may lie behind further damage. So the
 * search goes from record to record, and where none is valid four bytes at a time: a record's checks are seeded with its
 * place, so what passes was written there. It may go beyond the end of the log, into what was written and never became
 * part of it: what a ledger says of earlier places is true all the same, as no place is written twice.
 *
 * Nothing is changed, and nothing kept. One thread: the opener's. */
#include "flow_internal.h"

/* The highest that the map has room for: those that are not there are passed over. */
static uint32_t map_end(const kv_flow *flow) {
    const segment_map *map = atomic_load(&flow->map);
    return map->base + map->capacity - 1;
}

static kv_status segment_ask(kv_flow *flow, void *context, const segment *one, uint32_t offset, kv_position at, uint32_t *size) {
    uint32_t end = one->sealed ? atomic_load(&one->end) : one->size;
    while (offset < end) {
        kv_record record;
        uint32_t used;
        kv_status status = kv_record_decode(one->bytes + offset, end - offset, kv_place(flow->salt, one->id, offset), &record, &used);
        offset += status == KV_OK ? used : KV_RECORD_ALIGN;
        if (status != KV_OK || record.kind != KV_KIND_LEDGER) continue;
        status = flow->options.told(context, &record, at, size);
        if (status != KV_ABSENT) return status;
    }
    return KV_ABSENT;
}

kv_status flow_told(kv_flow *flow, void *context, const segment *one, uint32_t offset, uint32_t *size) {
    kv_position at = {.segment = one->id, .offset = offset};
    kv_status status = segment_ask(flow, context, one, offset + KV_RECORD_ALIGN, at, size);
    for (uint32_t id = one->id + 1; status == KV_ABSENT && id <= map_end(flow); id++) {
        const segment *next = segment_find(flow, id);
        if (next != NULL) status = segment_ask(flow, context, next, KV_SEGMENT_HEADER_SIZE, at, size);
    }
    return status;
}
