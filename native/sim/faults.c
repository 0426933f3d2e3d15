/* faults.c -- who crashes, is cut off or takes over, and when. See world.h.
 *
 * Half of the seeds are harsh, half are mild enough for progress. Three scripts bring about orders of events that chance
 * seldom finds, with the times left to chance. */
#include "world.h"

static uint64_t link(uint32_t from, uint32_t to) { return (uint64_t)1 << (from * NODES_MAX + to); }
static uint64_t both(uint32_t a, uint32_t b) { return link(a, b) | link(b, a); }
static const uint64_t EVERY_LINK = ((uint64_t)1 << NODES_MAX * NODES_MAX) - 1;

static double one_of(world *w, const double *choices, uint32_t count) { return choices[pick(w, count)]; }
#define ONE_OF(w, ...) one_of(w, (const double[]){__VA_ARGS__}, sizeof((const double[]){__VA_ARGS__}) / sizeof(double))

enum { SCRIPT_SAME_ROUND = 1, SCRIPT_LOST_PROMISE = 2, SCRIPT_OLD_RECORDS = 4, SCRIPTS_ALL = 7 };
enum { STEP_NONE = -1, STEP_OLD_AGAIN, STEP_OLD_LOST_SOON, STEP_OLD_LOST };

static uint32_t weak_choose(world *w) {
    static const uint32_t choices[] = {0, 0, 1u << 3, 1u << 1, 1u << 1 | 1u << 2, 1u << 6}; /* PREPARE, FLOW, ACK, CHECKED */
    return choices[pick(w, 6)];
}

void faults_choose(world *w) {
    static const uint32_t scripts[] = {0, 0, 0, SCRIPTS_ALL, SCRIPT_SAME_ROUND, SCRIPT_LOST_PROMISE, SCRIPT_OLD_RECORDS};
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
    w->scripts = w->policy ? 0 : scripts[pick(w, 7)];
    space_choose(w);
    for (uint32_t i = 0; i < NODES_MAX; i++) w->at_barrier[i] = STEP_NONE;
    if (w->scripts == 0) return;
    w->after_promise = w->after_takeover = w->drop = w->slow_fsync = w->takeover = 0;
    w->weak = 0;
    w->batch_max = (uint32_t)ONE_OF(w, 1, 1, 8);
}

/* --- orders of events --- */

static void at_links(world *w, double units, enum event_kind kind, uint64_t links) {
    world_at(w, (uint64_t)(units * UNIT), kind)->argument = links;
}

static void at_node(world *w, double units, enum event_kind kind, uint32_t i, uint64_t argument) {
    event *e = world_at(w, (uint64_t)(units * UNIT), kind);
    e->node = i;
    e->argument = argument;
}

static double some(world *w, double low, double high) { return low + (high - low) * chance(w); }
static uint64_t stuck_until(const world *w, double units) { return w->now + (uint64_t)(units * UNIT); }

/* P takes over with X alone, X gets records that P loses, P takes over with Y alone. */
static void script_same_round(world *w, uint32_t p, uint32_t x, uint32_t y, uint32_t shard) {
    double t = some(w, 4, 10);
    at_links(w, 0, EVENT_CUT, both(p, y));
    at_node(w, 1, EVENT_TAKEOVER, p, 1u << shard);
    at_node(w, 1.2 + some(w, 0, 3), EVENT_STUCK, p, stuck_until(w, 60));
    at_node(w, t, EVENT_CRASH, p, true);
    at_node(w, t + 0.5, EVENT_RESTART, p, 0);
    at_links(w, t + 0.5, EVENT_HEAL, both(p, y));
    at_links(w, t + 0.5, EVENT_CUT, both(p, x));
    at_node(w, t + 3, EVENT_TAKEOVER, p, 1u << shard);
    at_links(w, t + some(w, 15, 40), EVENT_HEAL, EVERY_LINK);
}

/* X promises P, crashes at once, and meets the old owner before it meets P again. */
static void script_lost_promise(world *w, uint32_t p, uint32_t x, uint32_t old, uint32_t shard) {
    double t = some(w, 12, 20), crash = t + some(w, 1, 4);
    at_node(w, 0, EVENT_TAKEOVER, old, 1u << shard);
    at_links(w, t, EVENT_CUT, both(p, old));
    at_node(w, t, EVENT_STUCK, x, stuck_until(w, t + 60));
    at_node(w, t + 0.2, EVENT_TAKEOVER, p, 1u << shard);
    at_node(w, crash, EVENT_CRASH, x, true);
    at_links(w, crash, EVENT_CUT, both(p, x));
    at_node(w, crash + 0.5, EVENT_RESTART, x, 0);
    at_links(w, crash + some(w, 10, 40), EVENT_HEAL, EVERY_LINK);
}

/* A has records that nobody else has, B a barrier that nobody else has; then A again, then B. */
static void script_old_records(world *w, uint32_t a, uint32_t b, uint32_t c, uint32_t shard) {
    double t = some(w, 8, 15);
    at_node(w, 0, EVENT_TAKEOVER, a, 1u << shard);
    at_links(w, t, EVENT_CUT, both(a, b) | both(a, c));
    at_node(w, t + some(w, 3, 15), EVENT_TAKEOVER, b, 1u << shard);
    w->at_barrier[b] = STEP_OLD_AGAIN;
}

void script_step(world *w, const event *e) {
    uint32_t a = w->script_nodes[0], b = w->script_nodes[1], c = w->script_nodes[2];
    uint64_t shards = (uint64_t)1 << w->script_shard;
    switch ((int)e->argument) {
    case STEP_OLD_AGAIN:
        at_links(w, 0, EVENT_CUT, both(b, c));
        at_links(w, 1, EVENT_HEAL, both(a, c));
        at_node(w, 1.5, EVENT_TAKEOVER, a, shards);
        at_node(w, 6, EVENT_TAKEOVER, a, shards); /* The first may have met a higher round. */
        w->at_barrier[a] = STEP_OLD_LOST_SOON;
        break;
    case STEP_OLD_LOST_SOON:
        world_at(w, between(w, 2, 9), EVENT_SCRIPT)->argument = STEP_OLD_LOST;
        break;
    default:
        at_links(w, 0, EVENT_CUT, both(a, c));
        at_links(w, 0, EVENT_HEAL, both(b, c));
        at_node(w, 0.5, EVENT_CRASH, a, false);
        at_node(w, 1, EVENT_TAKEOVER, b, shards);
        at_links(w, some(w, 20, 40), EVENT_HEAL, EVERY_LINK);
        at_node(w, 30, EVENT_RESTART, a, 0);
        break;
    }
}

static void script_begin(world *w) {
    uint32_t which, three[3];
    for (uint32_t i = 0; i < 3; i++) {
        bool again;
        do {
            three[i] = pick(w, w->n);
            again = false;
            for (uint32_t j = 0; j < i; j++) again |= three[j] == three[i];
        } while (again);
        w->script_nodes[i] = three[i];
    }
    do which = 1u << pick(w, 3);
    while ((w->scripts & which) == 0);
    do w->script_shard = pick(w, SHARDS);
    while ((w->shards_busy >> w->script_shard & 1) == 0);
    for (uint32_t i = 0; i < NODES_MAX; i++) w->at_barrier[i] = STEP_NONE;
    at_links(w, 0, EVENT_HEAL, EVERY_LINK);
    w->counts.scripts++;
    trace(w, "script %u with %u, %u, %u in shard %u", which, three[0] + 1, three[1] + 1, three[2] + 1, w->script_shard);
    if (which == SCRIPT_SAME_ROUND) script_same_round(w, three[0], three[1], three[2], w->script_shard);
    else if (which == SCRIPT_LOST_PROMISE) script_lost_promise(w, three[0], three[1], three[2], w->script_shard);
    else script_old_records(w, three[0], three[1], three[2], w->script_shard);
}

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
        if (ways != 2) links |= link(i, j);
        if (ways != 3) links |= link(j, i);
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
        if (ways != 2) links |= link(old, j);
        if (ways != 3) links |= link(j, old);
    }
    w->counts.steals++;
    at_links(w, some(w, 0, 3), EVENT_CUT, links);
    at_node(w, some(w, 3, 10), EVENT_TAKEOVER, taker, 1u << shards[which]);
    at_links(w, some(w, 20, 120), EVENT_HEAL, links);
}

void nemesis(world *w) {
    if (w->now > 850 * UNIT) return;
    if (w->scripts != 0) {
        script_begin(w);
        world_at(w, between(w, 90, 140), EVENT_NEMESIS);
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
    if (w->at_barrier[i] != STEP_NONE) {
        world_at(w, 0, EVENT_SCRIPT)->argument = (uint64_t)w->at_barrier[i];
        w->at_barrier[i] = STEP_NONE;
        return;
    }
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
        if (j != i && likely(w, 0.6)) links |= link(i, j);
    at_links(w, ONE_OF(w, 0, 0, 2), EVENT_CUT, links);
    at_links(w, some(w, 10, 80), EVENT_HEAL, links);
}

void moment(world *w, uint32_t i) {
    node *x = &w->nodes[i];
    uint64_t promises = kv_replica_count(x->core)->promises;
    uint32_t owned = 0;
    for (uint32_t s = 0; s < SHARDS; s++) owned |= (uint32_t)node_owns(w, i, s) << s;
    uint32_t fresh = owned & ~x->owned;
    bool promised = promises != x->promises;
    x->promises = promises;
    x->owned = owned;
    if (w->calm || w->now > 850 * UNIT) return;
    for (uint32_t s = 0; s < SHARDS; s++)
        if (fresh >> s & 1) after_takeover(w, i, s);
    if (!promised || fresh != 0 || !likely(w, w->after_promise)) return;
    double when = some(w, 0.1, 3);
    at_node(w, when, EVENT_CRASH, i, false);
    at_node(w, when + some(w, 1, 3), EVENT_RESTART, i, 0);
}
