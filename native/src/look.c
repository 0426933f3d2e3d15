/* look.c -- what may be seen of a server that runs, from outside: figures, and how its shards are.
 *
 * Who asks rings, and the loop writes all of it down when it comes round. So it is of one moment, costs nothing while nobody
 * asks, and a loop that does not come round is found out. */
#include <time.h>

#include "server_internal.h"

static bool is_linked(const kv_server *server, uint16_t node) {
    for (uint32_t i = 0; i < server->link_count; i++)
        if (server->links[i].node == node) return server->links[i].source.fd >= 0;
    return false;
}

static void show_replica(const kv_server *server, kv_server_figures *f) {
    const kv_replica_counts *counts = kv_replica_count(server->replica);
    kv_replica_lag lag;
    kv_stats stats;
    kv_replica_lag_of(server->replica, &lag);
    f->missing = lag.missing_count;
    f->takeovers = counts->takeovers;
    f->damaged = counts->holes + counts->restored;
    f->repaired = counts->repaired + counts->restored;
    if (kv_store_measure(kv_replica_store(server->replica), &stats) != KV_OK) return;
    f->segments_removed = stats.removed_count;
    f->log_size = stats.flow_size;
}

void look_show(kv_server *server) {
    kv_server_figures *f = &server->figures;
    f->clients = server->client_count;
    f->syncs = kv_flow_sync_count(kv_replica_flow(server->replica));
    f->durable = kv_position_order(kv_flow_durable(kv_replica_flow(server->replica)));
    f->pinned = (uint64_t)server->pinned;
    f->shards_owned = f->shards_served = f->shards_voting = 0;
    for (uint32_t i = 0; i < server->shard_count; i++) {
        kv_shard_state state;
        kv_replica_shard(server->replica, i, &state);
        server->shown_shards[i] = (kv_server_shard){state.commit, state.applied, state.owner};
        f->shards_owned += state.owned;
        f->shards_served += state.owned || is_linked(server, state.owner);
        f->shards_voting += state.member && state.hole == 0;
    }
    show_replica(server, f);
    server->shown = *f;
    server->looks_done = server->looks_wanted;
    pthread_cond_broadcast(&server->looked);
}

static struct timespec after_ms(uint32_t ms) {
    struct timespec when;
    clock_gettime(CLOCK_REALTIME, &when); /* A condition's own clock; set back or forth, it costs an answer and no more. */
    when.tv_sec += ms / 1000;
    when.tv_nsec += (long)(ms % 1000) * 1000000;
    when.tv_sec += when.tv_nsec / 1000000000;
    when.tv_nsec %= 1000000000;
    return when;
}

void kv_server_pin(kv_server *server, int32_t pinned) { server->pinned = pinned; }

kv_status kv_server_look(kv_server *server, uint32_t wait_ms, kv_server_figures *out, kv_server_shard *shards) {
    struct timespec until = after_ms(wait_ms);
    int late = 0;
    pthread_mutex_lock(&server->lock);
    uint64_t wanted = ++server->looks_wanted;
    server_ring(server);
    while (server->looks_done < wanted && late == 0) late = pthread_cond_timedwait(&server->looked, &server->lock, &until);
    bool seen = server->looks_done >= wanted;
    if (seen) *out = server->shown;
    if (seen && shards != NULL) memcpy(shards, server->shown_shards, server->shard_count * sizeof *shards);
    pthread_mutex_unlock(&server->lock);
    return seen ? KV_OK : KV_TIMEOUT;
}
