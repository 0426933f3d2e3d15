/* faults.c -- who crashes, is cut off or takes over, and when. See world.h.
 *
 * Half of the seeds are harsh, half are mild enough for progress. Some play scripts (scripts.c) and have no other faults. */
#include "world.h"

static double one_of(world *w, const double *choices, uint32_t count) { return choices[pick(w, count)]; }
#define ONE_OF(w, ...) one_of(w, (const double[]){__VA_ARGS__}, sizeof((const double[]){__VA_ARGS__}) / sizeof(double))

static uint32_t weak_choose(world *w) {
    static const uint32_t choices[] = {0, 0, 1u << 3, 1u << 1, 1u << 1 | 1u << 2, 1u << 6}; /* PREPARE, FLOW, ACK, CHECKED */
    return choices[pick(w, 6)];
}

void faults_choose(world *w) {
    static const uint32_t objects[] = {63, 63, 1u << OBJECT_KEY, 1u << OBJECT_FEW, 1u << OBJECT_FEW, 1u << OBJECT_COUNTER,
                                       1u << OBJECT_PAIR, 1u << OBJECT_TABLE, 1u << OBJECT_MORTAL};
    w->session_max = (uint32_t)ONE_OF(w, 2, 3, 3, 9);
    w->batch_max = (uint32_t)ONE_OF(w, 1, 1, 2, 8);
    w->policy = likely(w, 0.25);
    w->bulk = likely(w, 0.15) ? 30 : 0;
    w->window_size_max = (uint32_t)ONE_OF(w, 1024, 1024, 65536, 1 << 24);
    w->keep_max = (uint32_t)ONE_OF(w, 2, 8, 40, 1000);
    w->large = ONE_OF(w, 0.1, 0.5);
    w->drop = ONE_OF(w, 0, 0.01, 0.05);
    w->tail = ONE_OF(w, 0, 0.05, 0.15);
    w->slow_fsync = ONE_OF(w, 0, 0.02, 0.1, 0.25);
    w->harsh = likely(w, 0.5);
    w->pace = w->harsh ? 40 : ONE_OF(w, 60, 150);
    w->late_client = ONE_OF(w, 0.02, 0.3);
    w->takeover = ONE_OF(w, 0.01, 0.06);
    w->loyal = ONE_OF(w, 0.3, 0.8);
    w->weak = weak_choose(w);
    uint32_t after = pick(w, 3);
    w->after_promise = w->harsh ? (const double[]){0.25, 0, 0.1}[after] : 0;
    w->after_takeover = w->harsh ? (const double[]){0, 0.5, 0.3}[after] : 0;
    w->shards_busy = likely(w, 0.5) ? 1 : (1u << SHARDS) - 1;
    w->objects_busy = objects[pick(w, 9)];
    scripts_choose(w);
    if (w->scripts == 0) return;
    w->after_promise = w->after_takeover = w->drop = w->slow_fsync = w->takeover = 0;
    w->weak = 0;
    w->batch_max = (uint32_t)ONE_OF(w, 1, 1, 8);
}

void at_links(world *w, double units, enum event_kind kind, uint64_t links) {
    world_at(w, (uint64_t)(units * UNIT), kind)->argument = links;
}

void at_node(world *w, double units, enum event_kind kind, uint32_t i, uint64_t argument) {
    event *e = world_at(w, (uint64_t)(units * UNIT), kind);
    e->node = i;
    e->argument = argument;
}

double some(world *w, double low, double high) { return low + (high - low) * chance(w); }

/* --- chance --- */

static void crash_for(world *w, uint32_t i, double pause, bool whole_tail) {
    node_crash(w, i, whole_tail);
    world_at(w, between(w, 1, pause), EVENT_RESTART)->node = i;
}

static void nemesis_crash(world *w) {
    uint32_t victim = pick(w, w->n), owners[NODES_MAX], count = 0;
    for (uint32_t i = 0; i < w->n; i++) {
        bool owns = false;
        for (uint32_t s = 0; s < SHARDS; s++) owns |= node_owns(w, i, s);
        if (owns) owners[count++] = i;
    }
    if (count != 0 && likely(w, 0.5)) victim = owners[pick(w, count)];
    crash_for(w, victim, ONE_OF(w, 3, 40), false);
    if (!likely(w, 0.2)) return;
    w->counts.whole_set++;
    for (uint32_t i = 0; i < w->n; i++) crash_for(w, i, 40, false);
}

static void nemesis_partition(world *w) {
    uint32_t i = pick(w, w->n), ways = pick(w, 4);
    uint64_t links = 0;
    bool some_only = likely(w, 0.4);
    for (uint32_t j = 0; j < w->n; j++) {
        if (j == i || (some_only && likely(w, 0.5))) continue;
        if (ways != 2) links |= link_of(i, j);
        if (ways != 3) links |= link_of(j, i);
    }
    w->counts.partitions++;
    trace(w, "replica %u is cut off", i + 1);
    at_links(w, 0, EVENT_CUT, links);
    at_links(w, some(w, 10, 80), EVENT_HEAL, links);
}

/* An owner is cut off from the other replicas, not from its clients, and one of them takes over. */
static void nemesis_steal(world *w) {
    uint32_t owners[NODES_MAX * SHARDS], shards[NODES_MAX * SHARDS], count = 0, ways = pick(w, 4);
    for (uint32_t i = 0; i < w->n; i++)
        for (uint32_t s = 0; s < SHARDS; s++)
            if (node_owns(w, i, s)) {
                owners[count] = i;
                shards[count++] = s;
            }
    if (count == 0) return;
    uint32_t which = pick(w, count), old = owners[which], taker = (old + 1 + pick(w, w->n - 1)) % w->n;
    uint64_t links = 0;
    for (uint32_t j = 0; j < w->n; j++) {
        if (j == old) continue;
        if (ways != 2) links |= link_of(old, j);
        if (ways != 3) links |= link_of(j, old);
    }
    w->counts.steals++;
    at_links(w, some(w, 0, 3), EVENT_CUT, links);
    at_node(w, some(w, 3, 10), EVENT_TAKEOVER, taker, 1u << shards[which]);
    at_links(w, some(w, 20, 120), EVENT_HEAL, links);
}

void nemesis(world *w) {
    if (w->now > 850 * UNIT || exchange_plays(w)) return;
    if (w->scripts != 0) {
        script_begin(w);
        return;
    }
    double kind = chance(w);
    if (kind < 0.4) nemesis_crash(w);
    else if (kind < 0.75) nemesis_partition(w);
    else if (kind < 0.9) nemesis_steal(w);
    else if (kind < 0.95) at_node(w, 0, EVENT_TAKEOVER, pick(w, w->n), 1 + pick(w, (1u << SHARDS) - 1));
    world_at(w, rarely(w, w->pace), EVENT_NEMESIS);
}

/* --- the moments that matter: just after a promise, just after a takeover --- */

static void after_takeover(world *w, uint32_t i, uint32_t shard) {
    if (script_takes(w, i)) return;
    if (!likely(w, w->after_takeover)) return;
    if (likely(w, 0.5)) {
        double pause = ONE_OF(w, 3, 30), when = some(w, 0.1, 5), back = some(w, 1, pause);
        at_node(w, when, EVENT_CRASH, i, false);
        at_node(w, when + back, EVENT_RESTART, i, 0);
        if (likely(w, 0.6)) at_node(w, when + pause + 1.5, EVENT_TAKEOVER, i, 1u << shard);
        return;
    }
    uint64_t links = 0;
    for (uint32_t j = 0; j < w->n; j++)
        if (j != i && likely(w, 0.6)) links |= link_of(i, j);
    at_links(w, ONE_OF(w, 0, 0, 2), EVENT_CUT, links);
    at_links(w, some(w, 10, 80), EVENT_HEAL, links);
}

void moment(world *w, uint32_t i) {
    node *x = &w->nodes[i];
    uint64_t promises = kv_replica_count(x->core)->promises, installed = kv_replica_count(x->core)->installed;
    uint32_t owned = 0;
    for (uint32_t s = 0; s < SHARDS; s++) owned |= (uint32_t)node_owns(w, i, s) << s;
    uint32_t fresh = owned & ~x->owned;
    bool promised = promises != x->promises;
    x->promises = promises;
    x->owned = owned;
    if (installed != x->installed) script_installed(w, i);
    x->installed = installed;
    if (w->calm || w->now > 850 * UNIT) return;
    for (uint32_t s = 0; s < SHARDS; s++)
        if (fresh >> s & 1) after_takeover(w, i, s);
    if (!promised || fresh != 0 || !likely(w, w->after_promise)) return;
    double when = some(w, 0.1, 3);
    at_node(w, when, EVENT_CRASH, i, false);
    at_node(w, when + some(w, 1, 3), EVENT_RESTART, i, 0);
}

/* --- one link --- */

static uint64_t takeovers(const world *w) {
    uint64_t sum = 0;
    for (uint32_t i = 0; i < w->n; i++)
        if (w->nodes[i].up) sum += kv_replica_count(w->nodes[i].core)->takeovers;
    return sum;
}

/* Between two of them alone: nobody takes anything from anybody, as each owner still has a majority. */
void one_link(world *w) {
    uint32_t a = pick(w, w->n), b = (a + 1 + pick(w, w->n - 1)) % w->n;
    uint64_t before = takeovers(w);
    w->cut[a][b] = w->cut[b][a] = true;
    world_run(w, w->now + 600 * UNIT);
    uint64_t during = takeovers(w) - before;
    w->cut[a][b] = w->cut[b][a] = false;
    world_run(w, w->now + 100 * UNIT);
    if (during != 0) violate(w, "%llu takeovers while one link was cut", (unsigned long long)during);
}
