/* lanes.h -- what lanes will be told once their requests are committed: the undecided part of what sessions.h remembers.
 *
 * An owner looks here first and then into the sessions of the shard. An entry is a lane's newest undecided request; it goes
 * when that is committed (sessions has it then) or cut. There are as many as requests are under way, of whatever shards, so
 * that the table stays small and close at hand: a copy of the sessions of each shard would be looked into at random.
 *
 * Open addressing, at most half full. No threads. */
#ifndef KV_LANES_H
#define KV_LANES_H

#include "sessions.h"

typedef struct undecided_lane {
    session told; /* version 0: empty */
    uint16_t shard;
} undecided_lane;

typedef struct lane_table {
    undecided_lane *slots;
    uint64_t capacity; /* a power of two, or 0 */
    uint64_t count;
} lane_table;

void lanes_free(lane_table *l);
/* In the place of what is there of the lane. KV_ENOMEM: nothing has changed. */
kv_status lanes_note(lane_table *l, uint16_t shard, const kv_request *request, uint64_t version);
/* NULL: no request of it is undecided. Until the next note or forget. */
const session *lanes_find(const lane_table *l, uint16_t shard, uint64_t client, uint32_t lane);
/* The request of that version is decided; a newer one of its lane stays. */
void lanes_forget(lane_table *l, uint16_t shard, const kv_request *request, uint64_t version);

#endif
