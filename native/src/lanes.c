/* lanes.c -- see lanes.h. */
#include "lanes.h"

#include <stdlib.h>

enum { CAPACITY_MIN = 64 };

void lanes_free(lane_table *l) {
    free(l->slots);
    *l = (lane_table){0};
}

static uint64_t home(const lane_table *l, uint16_t shard, uint64_t client, uint32_t lane) {
    return kv_mix64(client ^ ((uint64_t)shard << 32 | lane) * 0x9E3779B97F4A7C15ULL) & (l->capacity - 1);
}

static uint64_t home_of(const lane_table *l, const undecided_lane *one) {
    return home(l, one->shard, one->told.client, one->told.lane);
}

/* Where the lane is, or would be. */
static undecided_lane *slot_of(const lane_table *l, uint16_t shard, uint64_t client, uint32_t lane) {
    for (uint64_t at = home(l, shard, client, lane);; at = (at + 1) & (l->capacity - 1)) {
        undecided_lane *one = &l->slots[at];
        if (one->told.version == 0) return one;
        if (one->told.client == client && one->told.lane == lane && one->shard == shard) return one;
    }
}

static kv_status slots_grow(lane_table *l) {
    lane_table larger = {.capacity = l->capacity == 0 ? CAPACITY_MIN : 2 * l->capacity, .count = l->count};
    larger.slots = calloc(larger.capacity, sizeof *larger.slots);
    if (larger.slots == NULL) return KV_ENOMEM;
    for (uint64_t i = 0; i < l->capacity; i++) {
        const undecided_lane *one = &l->slots[i];
        if (one->told.version != 0) *slot_of(&larger, one->shard, one->told.client, one->told.lane) = *one;
    }
    free(l->slots);
    *l = larger;
    return KV_OK;
}

kv_status lanes_note(lane_table *l, uint16_t shard, const kv_request *request, uint64_t version) {
    KV_ASSERT(version != 0);
    if (2 * (l->count + 1) > l->capacity) {
        kv_status status = slots_grow(l);
        if (status != KV_OK) return status;
    }
    undecided_lane *one = slot_of(l, shard, request->client, request->lane);
    l->count += one->told.version == 0;
    *one = (undecided_lane){.shard = shard,
                            .told = {.client = request->client, .lane = request->lane, .number = request->number,
                                     .outcome = request->outcome, .result = request->result, .version = version}};
    return KV_OK;
}

const session *lanes_find(const lane_table *l, uint16_t shard, uint64_t client, uint32_t lane) {
    if (l->count == 0) return NULL;
    const undecided_lane *one = slot_of(l, shard, client, lane);
    return one->told.version == 0 ? NULL : &one->told;
}

/* Those that were pushed on past it close up, so that an empty slot goes on meaning "there is no more". */
void lanes_forget(lane_table *l, uint16_t shard, const kv_request *request, uint64_t version) {
    if (l->count == 0) return;
    uint64_t mask = l->capacity - 1, hole = (uint64_t)(slot_of(l, shard, request->client, request->lane) - l->slots);
    if (l->slots[hole].told.version != version) return;
    l->count--;
    for (uint64_t at = (hole + 1) & mask; l->slots[at].told.version != 0; at = (at + 1) & mask) {
        bool stays = ((at - home_of(l, &l->slots[at])) & mask) < ((at - hole) & mask);
        if (stays) continue;
        l->slots[hole] = l->slots[at];
        hole = at;
    }
    l->slots[hole] = (undecided_lane){0};
}
