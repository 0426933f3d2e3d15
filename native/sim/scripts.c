/* scripts.c -- orders of events that chance seldom finds. What is done is fixed; who does it, and when, is left to chance.
 *
 * A seed that plays scripts plays one after another, of one kind or of all, and has no other faults. Each begins with every
 * link mended. See world.h. */
#include "world.h"

enum {
    SCRIPT_SAME_ROUND = 1, SCRIPT_LOST_PROMISE = 2, SCRIPT_OLD_RECORDS = 4, SCRIPT_OLD_CHECK = 8, SCRIPT_OLD_SNAPSHOT = 16,
    SCRIPT_HALF_SNAPSHOT = 32, SCRIPTS_ALL = 63, SCRIPT_BACKWARDS = 64, SCRIPT_ROTTEN = 128, SCRIPT_ROTTEN_PROMISE = 256,
    SCRIPT_MENDED = 512, SCRIPT_COUNT = 10, SCRIPT_FIRST_DISK = 6
};
enum { STEP_NONE = -1, STEP_OLD_AGAIN, STEP_OLD_LOST_SOON, STEP_OLD_LOST, STEP_SNAPSHOT_HERE };

static uint64_t stuck_until(const world *w, double units) { return w->now + (uint64_t)(units * UNIT); }

static void script_next(world *w, double units) { at_node(w, units, EVENT_NEMESIS, 0, 0); }

static void script_ends(world *w, double units) {
    at_links(w, units, EVENT_HEAL, EVERY_LINK);
    at_links(w, units, EVENT_SLOW, 0);
    at_node(w, units, EVENT_READERS, (uint32_t)-1, 0);
    script_next(w, units + some(w, 5, 20));
}

/* --- ballots and tails --- */

/* P takes over with X alone, X gets records that P loses, P takes over with Y alone. */
static void script_same_round(world *w, uint32_t p, uint32_t x, uint32_t y, uint32_t shard) {
    double t = some(w, 4, 10);
    at_links(w, 0, EVENT_CUT, links_of(p, y));
    at_node(w, 1, EVENT_TAKEOVER, p, 1u << shard);
    at_node(w, 1.2 + some(w, 0, 3), EVENT_STUCK, p, stuck_until(w, 60));
    at_node(w, t, EVENT_CRASH, p, true);
    at_node(w, t + 0.5, EVENT_RESTART, p, 0);
    at_links(w, t + 0.5, EVENT_HEAL, links_of(p, y));
    at_links(w, t + 0.5, EVENT_CUT, links_of(p, x));
    at_node(w, t + 3, EVENT_TAKEOVER, p, 1u << shard);
    at_links(w, t + some(w, 15, 40), EVENT_HEAL, EVERY_LINK);
    script_next(w, some(w, 90, 140));
}

/* X promises P, crashes at once, and meets the old owner before it meets P again. */
static void script_lost_promise(world *w, uint32_t p, uint32_t x, uint32_t old, uint32_t shard) {
    double t = some(w, 12, 20), crash = t + some(w, 1, 4);
    at_node(w, 0, EVENT_TAKEOVER, old, 1u << shard);
    at_links(w, t, EVENT_CUT, links_of(p, old));
    at_node(w, t, EVENT_STUCK, x, stuck_until(w, t + 60));
    at_node(w, t + 0.2, EVENT_TAKEOVER, p, 1u << shard);
    at_node(w, crash, EVENT_CRASH, x, true);
    at_links(w, crash, EVENT_CUT, links_of(p, x));
    at_node(w, crash + 0.5, EVENT_RESTART, x, 0);
    at_links(w, crash + some(w, 10, 40), EVENT_HEAL, EVERY_LINK);
    script_next(w, some(w, 90, 140));
}

/* A has records that nobody else has, B a barrier that nobody else has; then A again, then B. */
static void script_old_records(world *w, uint32_t a, uint32_t b, uint32_t c, uint32_t shard) {
    double t = some(w, 8, 15);
    at_node(w, 0, EVENT_TAKEOVER, a, 1u << shard);
    at_links(w, t, EVENT_CUT, links_of(a, b) | links_of(a, c));
    at_node(w, t + some(w, 3, 15), EVENT_TAKEOVER, b, 1u << shard);
    w->at_barrier[b] = STEP_OLD_AGAIN;
    script_next(w, some(w, 90, 140));
}

/* --- what comes late --- */

/* B answers a check of A's, which is long on its way; meanwhile B promises C, and C goes on. Who asks A reads then must not
 * be content with that answer. */
static void script_old_check(world *w, uint32_t a, uint32_t b, uint32_t c, uint32_t shard) {
    double t = some(w, 12, 20), take = t + some(w, 3, 8);
    at_node(w, 0, EVENT_TAKEOVER, a, 1u << shard);
    at_links(w, t, EVENT_CUT, links_of(a, c));
    at_links(w, t, EVENT_SLOW, link_of(b, a));
    at_node(w, t, EVENT_READERS, a, 0);
    at_node(w, take, EVENT_TAKEOVER, c, 1u << shard);
    script_ends(w, take + some(w, 25, 40));
}

/* X comes back and is sent a snapshot, of which a copy is long on its way; then A and X go on without Y; then the copy comes;
 * then X goes on without A. */
static void script_old_snapshot(world *w, uint32_t a, uint32_t x, uint32_t y, uint32_t shard) {
    double away = some(w, 6, 10), back = away + some(w, 20, 30);
    at_node(w, 0, EVENT_TAKEOVER, a, 1u << shard);
    at_links(w, away, EVENT_CUT, links_of(a, x) | links_of(x, y));
    at_links(w, back, EVENT_HEAL, EVERY_LINK);
    at_links(w, back, EVENT_ECHO, link_of(a, x));
    w->at_install[x] = STEP_SNAPSHOT_HERE;
    script_next(w, some(w, 130, 160));
}

static void old_snapshot_here(world *w, uint32_t a, uint32_t x, uint32_t y, uint64_t shards) {
    double alone = some(w, 2, 8), lost = some(w, 42, 50);
    at_links(w, 0, EVENT_ECHO, 0);
    at_links(w, alone, EVENT_CUT, links_of(a, y) | links_of(x, y));
    at_links(w, lost, EVENT_CUT, links_of(a, x));
    at_links(w, lost, EVENT_HEAL, links_of(x, y));
    at_node(w, lost + 1, EVENT_TAKEOVER, x, shards);
    at_links(w, lost + some(w, 15, 30), EVENT_HEAL, EVERY_LINK);
}

/* X comes back and is sent a snapshot in several pieces, while others write and ask X. */
static void script_half_snapshot(world *w, uint32_t a, uint32_t x, uint32_t y, uint32_t shard) {
    double away = some(w, 6, 10), back = away + some(w, 30, 40);
    at_node(w, 0, EVENT_TAKEOVER, a, 1u << shard);
    at_links(w, away, EVENT_CUT, links_of(a, x) | links_of(x, y));
    at_links(w, back, EVENT_HEAL, EVERY_LINK);
    at_node(w, back - 1, EVENT_READERS, x, 0);
    script_ends(w, back + some(w, 45, 60));
}

/* --- disks --- */

/* P and X commit what Y does not hear of; then the disk of X is what it was before, and Y takes over with X, while P is out of
 * reach. Only P remembers. */
static void script_backwards(world *w, uint32_t p, uint32_t x, uint32_t y, uint32_t shard) {
    double t = some(w, 12, 20), back = t + some(w, 15, 40);
    w->disk_fault = DISK_FAULT_BACK;
    at_node(w, 0, EVENT_TAKEOVER, p, 1u << shard);
    at_links(w, t, EVENT_CUT, links_of(p, y) | links_of(x, y));
    at_node(w, t + 0.5, EVENT_DISK, x, DISK_IMAGE_ONLY);
    at_node(w, back, EVENT_DISK, x, DISK_BACK_NOW);
    at_links(w, back, EVENT_CUT, links_of(p, x));
    at_links(w, back, EVENT_HEAL, links_of(x, y));
    at_node(w, back + 0.5, EVENT_RESTART, x, 0);
    for (int i = 0; i < 3; i++) at_node(w, back + some(w, 5, 25), EVENT_TAKEOVER, y, 1u << shard);
    at_links(w, back + some(w, 40, 60), EVENT_HEAL, EVERY_LINK);
    script_next(w, back + some(w, 70, 90));
}

/* The same, but of the disk of X a record that it has acknowledged goes bad. */
static void script_rotten(world *w, uint32_t p, uint32_t x, uint32_t y, uint32_t shard) {
    double t = some(w, 12, 20), bad = t + some(w, 8, 25);
    w->disk_fault = DISK_FAULT_ROT;
    at_node(w, 0, EVENT_TAKEOVER, p, 1u << shard);
    at_links(w, t, EVENT_CUT, links_of(p, y) | links_of(x, y));
    at_links(w, bad, EVENT_CUT, links_of(p, x));
    at_links(w, bad, EVENT_HEAL, links_of(x, y));
    at_node(w, bad, EVENT_DISK, x, DISK_ROT_LAST);
    at_node(w, bad + 0.5, EVENT_RESTART, x, 0);
    at_node(w, bad + some(w, 5, 10), EVENT_TAKEOVER, y, 1u << shard);
    at_links(w, bad + some(w, 25, 40), EVENT_HEAL, EVERY_LINK);
    script_next(w, bad + some(w, 70, 90));
}

/* X has P give back a record that went bad, starts again, and then Y takes over with X alone. */
static void script_mended(world *w, uint32_t p, uint32_t x, uint32_t y, uint32_t shard) {
    double t = some(w, 12, 20), bad = t + some(w, 15, 25), again = bad + some(w, 25, 35);
    w->disk_fault = DISK_FAULT_ROT;
    at_node(w, 0, EVENT_TAKEOVER, p, 1u << shard);
    at_links(w, t, EVENT_CUT, links_of(p, y) | links_of(x, y));
    at_node(w, bad, EVENT_DISK, x, DISK_ROT_SOME);
    at_node(w, bad + 0.5, EVENT_RESTART, x, 0);
    at_node(w, again, EVENT_CRASH, x, false);
    at_node(w, again + 0.5, EVENT_RESTART, x, 0);
    at_links(w, again, EVENT_CUT, links_of(p, x));
    at_links(w, again, EVENT_HEAL, links_of(x, y));
    for (int i = 0; i < 2; i++) at_node(w, again + some(w, 5, 15), EVENT_TAKEOVER, y, 1u << shard);
    at_links(w, again + some(w, 25, 40), EVENT_HEAL, EVERY_LINK);
    script_next(w, again + some(w, 60, 80));
}

/* X promises P, and that record goes bad; the old owner starts again, and takes over with X before P
 * hears what X had promised. */
static void script_rotten_promise(world *w, uint32_t p, uint32_t x, uint32_t old, uint32_t shard) {
    double t = some(w, 12, 20), crash = t + some(w, 5, 8);
    w->disk_fault = DISK_FAULT_ROT;
    w->slow_least = 17; /* P must not have given up by then. */
    w->slow_most = 24;
    at_node(w, 0, EVENT_TAKEOVER, old, 1u << shard);
    at_links(w, t, EVENT_CUT, links_of(p, old));
    at_links(w, t + 0.1, EVENT_SLOW, link_of(x, p)); /* What it promised arrives when it has forgotten it. */
    at_node(w, t + 0.2, EVENT_TAKEOVER, p, 1u << shard);
    at_node(w, crash, EVENT_DISK, x, DISK_ROT_PROMISE);
    at_node(w, crash + 0.5, EVENT_RESTART, x, 0);
    at_node(w, crash + 0.5, EVENT_CRASH, old, false);
    at_node(w, crash + 1, EVENT_RESTART, old, 0);
    for (int i = 0; i < 2; i++) at_node(w, crash + some(w, 2, 8), EVENT_TAKEOVER, old, 1u << shard);
    at_links(w, crash + some(w, 5, 10), EVENT_SLOW, 0);
    at_links(w, crash + some(w, 40, 60), EVENT_HEAL, EVERY_LINK);
    script_next(w, some(w, 90, 140));
}

/* --- what a script waited for --- */

void script_step(world *w, const event *e) {
    uint32_t a = w->script_nodes[0], b = w->script_nodes[1], c = w->script_nodes[2];
    uint64_t shards = (uint64_t)1 << w->script_shard;
    if (e->argument >= STEP_EXCHANGE && e->argument < 2 * STEP_EXCHANGE) {
        exchange_step(w, (uint32_t)e->argument);
        return;
    }
    switch ((int)e->argument) {
    case STEP_OLD_AGAIN:
        at_links(w, 0, EVENT_CUT, links_of(b, c));
        at_links(w, 1, EVENT_HEAL, links_of(a, c));
        at_node(w, 1.5, EVENT_TAKEOVER, a, shards);
        at_node(w, 6, EVENT_TAKEOVER, a, shards); /* The first may have met a higher round. */
        w->at_barrier[a] = STEP_OLD_LOST_SOON;
        break;
    case STEP_OLD_LOST_SOON:
        world_at(w, between(w, 2, 9), EVENT_SCRIPT)->argument = STEP_OLD_LOST;
        break;
    case STEP_SNAPSHOT_HERE: old_snapshot_here(w, a, b, c, shards); break;
    default:
        at_links(w, 0, EVENT_CUT, links_of(a, c));
        at_links(w, 0, EVENT_HEAL, links_of(b, c));
        at_node(w, 0.5, EVENT_CRASH, a, false);
        at_node(w, 1, EVENT_TAKEOVER, b, shards);
        at_links(w, some(w, 20, 40), EVENT_HEAL, EVERY_LINK);
        at_node(w, 30, EVENT_RESTART, a, 0);
        break;
    }
}

/* --- which, and when --- */

static void (*const SCRIPTS[SCRIPT_COUNT])(world *, uint32_t, uint32_t, uint32_t, uint32_t) = {
    script_same_round, script_lost_promise, script_old_records, script_old_check, script_old_snapshot, script_half_snapshot,
    script_backwards, script_rotten, script_rotten_promise, script_mended};

bool scripts_hurt_disks(const world *w) { return w->scripts >= SCRIPT_BACKWARDS; }

void scripts_choose(world *w) {
    static const uint32_t scripts[] = {0, 0, 0, 0, SCRIPTS_ALL, SCRIPT_SAME_ROUND, SCRIPT_LOST_PROMISE, SCRIPT_OLD_RECORDS,
                                       SCRIPT_OLD_CHECK, SCRIPT_OLD_SNAPSHOT, SCRIPT_HALF_SNAPSHOT, SCRIPT_BACKWARDS,
                                       SCRIPT_ROTTEN, SCRIPT_ROTTEN_PROMISE, SCRIPT_MENDED};
    w->scripts = w->policy ? 0 : scripts[pick(w, sizeof scripts / sizeof *scripts)];
    w->readers = -1;
    for (uint32_t i = 0; i < NODES_MAX; i++) w->at_barrier[i] = w->at_install[i] = STEP_NONE;
    w->await_hello = w->scripts == SCRIPT_BACKWARDS;
    if (w->scripts == SCRIPT_OLD_SNAPSHOT || w->scripts == SCRIPT_HALF_SNAPSHOT) w->keep_max = 2;
    if (w->scripts != SCRIPT_HALF_SNAPSHOT) return;
    w->objects_busy = 1u << OBJECT_PAIR;
    w->shards_busy = 1;
    w->bulk = 30;
    w->window_size_max = 1024;
}

static bool step_due(world *w, int *step) {
    if (*step == STEP_NONE) return false;
    world_at(w, 0, EVENT_SCRIPT)->argument = (uint64_t)*step;
    *step = STEP_NONE;
    return true;
}

/* The replica has opened a ballot: true if a script was waiting for that. */
bool script_takes(world *w, uint32_t i) { return step_due(w, &w->at_barrier[i]); }

void script_installed(world *w, uint32_t i) { step_due(w, &w->at_install[i]); }

void script_begin(world *w) {
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
    do which = pick(w, SCRIPT_COUNT);
    while ((w->scripts >> which & 1) == 0);
    do w->script_shard = pick(w, SHARDS);
    while ((w->shards_busy >> w->script_shard & 1) == 0);
    for (uint32_t i = 0; i < 3 && which >= SCRIPT_FIRST_DISK; i++) { /* One disk a seed is hurt: X's. */
        if (three[i] == w->victim) three[i] = three[1];
    }
    if (which >= SCRIPT_FIRST_DISK) three[1] = w->victim;
    for (uint32_t i = 0; i < NODES_MAX; i++) w->at_barrier[i] = w->at_install[i] = STEP_NONE;
    at_links(w, 0, EVENT_HEAL, EVERY_LINK);
    w->slow_least = 25;
    w->slow_most = 38;
    w->counts.scripts++;
    trace(w, "script %u with %u, %u, %u in shard %u", which, three[0] + 1, three[1] + 1, three[2] + 1, w->script_shard);
    SCRIPTS[which](w, three[0], three[1], three[2], w->script_shard);
}

