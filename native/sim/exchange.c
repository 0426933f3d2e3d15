/* exchange.c -- an operator who puts one member in the place of another while clients go on: one that is well, or one whose
 * disk is gone for good and whose place an empty one takes; or one after the other. See world.h.
 *
 * The operator asks for the removal and for the addition in every shard, both at once, and again until each was answered:
 * that the second waits for the first is the owner's business. And three orders of events that chance seldom finds.
 *
 * Whether a seed has any of this is drawn from the seed alone, so those that have none are the same runs without this file. */
#include <stdio.h>

#include "world.h"

enum { PLAN_NONE, PLAN_WELL, PLAN_DEAD, PLAN_TWICE, PLAN_SPLIT, PLAN_REMOVED, PLAN_EARLY, PLAN_STALE };
enum { STEP_CHANGE = STEP_EXCHANGE, STEP_REMOVE, STEP_ADD_FIRST, STEP_TAKE_SECOND, STEP_SECOND_TAKEN, STEP_ADD_SECOND };
enum { STAGE_REMOVE, STAGE_ADD, STAGES };
/* What an operator's turn is about, besides the number of an exchange. */
enum { TURN_BEGIN = 10, TURN_END };

static bool mutates(const world *w, enum kv_mutation mutation) { return w->mutations >> mutation & 1; }

/* --- what a seed has --- */

void exchange_choose(world *w) {
    static const uint32_t three[] = {PLAN_WELL, PLAN_WELL, PLAN_DEAD, PLAN_TWICE, PLAN_TWICE, PLAN_SPLIT, PLAN_REMOVED, PLAN_REMOVED};
    static const uint32_t five[] = {PLAN_WELL, PLAN_DEAD, PLAN_TWICE, PLAN_EARLY, PLAN_EARLY, PLAN_REMOVED, PLAN_STALE, PLAN_STALE};
    uint64_t drawn = kv_mix64(w->seed * 0x9E3779B97F4A7C15ULL + w->founders);
    if (drawn % 16 >= 7) return;
    w->exchange_plan = (w->founders == 3 ? three : five)[drawn / 16 % 8];
    if (w->scripts != 0 && !exchange_plays(w)) w->exchange_plan = PLAN_NONE;
    if (!exchange_plays(w)) return;
    w->scripts = w->weak = 0;
    w->policy = false;
    w->after_promise = w->after_takeover = w->drop = w->slow_fsync = w->takeover = 0;
    w->shards_busy = 1;
}

bool exchange_plays(const world *w) { return w->exchange_plan >= PLAN_SPLIT; }
bool exchange_kills(const world *w) { return w->exchange_plan == PLAN_DEAD; }

bool exchanges_done(const world *w) {
    bool done = true;
    for (uint32_t i = 0; i < w->exchange_count; i++) done &= w->exchanges[i].added == (1u << SHARDS) - 1;
    return done;
}

static uint32_t bits_below(uint32_t count) { return (1u << count) - 1; }

uint32_t members_wanted(const world *w) {
    uint32_t members = bits_below(w->founders);
    for (uint32_t i = 0; i < w->exchange_count; i++)
        members = (members & ~(1u << w->exchanges[i].old)) | 1u << w->exchanges[i].fresh;
    return members;
}

/* --- the operator --- */

static void turn(world *w, uint64_t delay, uint32_t what) { world_at(w, delay, EVENT_OPERATOR)->argument = what; }

static exchange *exchange_add(world *w, uint32_t old, uint32_t fresh) {
    exchange *x = &w->exchanges[w->exchange_count++];
    *x = (exchange){.old = old, .fresh = fresh};
    w->counts.exchanges++;
    trace(w, "node %u for node %u", fresh + 1, old + 1);
    return x;
}

/* Members that are up. */
static uint32_t pick_member(world *w, uint32_t but) {
    uint32_t members = members_wanted(w), found[NODES_MAX], count = 0;
    for (uint32_t i = 0; i < w->n; i++)
        if ((members >> i & 1) && i != but && w->nodes[i].up) found[count++] = i;
    return count == 0 ? w->n : found[pick(w, count)];
}

static uint32_t owner_of(const world *w, uint32_t shard) {
    for (uint32_t i = 0; i < w->n; i++)
        if (node_owns(w, i, shard)) return i;
    return w->n;
}

static void change_ask(world *w, uint32_t to, uint32_t shard, uint32_t which, uint32_t stage) {
    const exchange *x = &w->exchanges[which];
    bool swap = mutates(w, KV_MUTATE_CONFIG_SWAP);
    kv_member_change c = {.token = TOKEN_OPERATOR | which << 8 | stage << 16 | shard << 24, .shard = (uint16_t)shard};
    if (stage == STAGE_REMOVE || swap) c.remove = (uint16_t)(x->old + 1);
    if (stage == STAGE_ADD || swap) c.add = (uint16_t)(x->fresh + 1);
    if (to >= w->n || !w->nodes[to].up) return;
    node_clock(w, to);
    kv_replica_member_change(w->nodes[to].core, &c);
}

/* In shard 0, as a part of no exchange. */
static void change_one(world *w, uint32_t to, uint32_t add, uint32_t remove) {
    kv_member_change c = {.token = TOKEN_OPERATOR | STAGES << 16, .add = (uint16_t)add, .remove = (uint16_t)remove};
    if (!w->nodes[to].up) return;
    kv_replica_member_change(w->nodes[to].core, &c);
    node_drain(w, to);
}

static void changes_ask(world *w, uint32_t to, uint32_t shard, uint32_t which) {
    const exchange *x = &w->exchanges[which];
    if (!(x->removed >> shard & 1)) change_ask(w, to, shard, which, STAGE_REMOVE);
    if (!(x->added >> shard & 1)) change_ask(w, to, shard, which, STAGE_ADD);
    node_drain(w, to);
}

/* Mostly the owner is asked. Where there is none somebody is to take over, and where that is the one to go it gives the shard away. */
static void exchange_go(world *w, uint32_t which) {
    exchange *x = &w->exchanges[which];
    for (uint32_t s = 0; s < SHARDS; s++) {
        uint32_t owner = owner_of(w, s), other = pick_member(w, x->old);
        if (x->added >> s & 1) continue;
        if (owner == w->n && other != w->n && !w->policy) node_takeover(w, other, 1u << s);
        uint32_t to = owner != w->n && likely(w, 0.8) ? owner : other;
        if (to == w->n) continue;
        if (w->exchange_plan == PLAN_EARLY && s == 0) change_one(w, to, 0, w->extra[2] + 1); /* Or there is no place for the other. */
        changes_ask(w, to, s, which);
    }
    turn(w, between(w, 10, 25), which);
}

/* Who was removed goes, or not; and everybody may be told that it does. */
static void exchange_end(world *w, uint32_t which) {
    exchange *x = &w->exchanges[which];
    uint64_t when = between(w, 5, 60);
    if (w->exchange_plan == PLAN_TWICE || likely(w, 0.5)) turn(w, when, TURN_END + which);
    if (w->exchange_plan == PLAN_TWICE && w->exchange_count < EXCHANGES_MAX && !w->calm) turn(w, when, TURN_BEGIN);
    trace(w, "node %u has the place of node %u", x->fresh + 1, x->old + 1);
}

static void node_lose(world *w, uint32_t i) {
    node_crash(w, i, false);
    w->nodes[i].gone = true;
    trace(w, "and will not come back");
}

static void node_part(world *w, uint32_t gone) {
    w->nodes[gone].parted = true;
    for (uint32_t i = 0; i < w->n; i++)
        if (i != gone && w->nodes[i].up) kv_replica_part(w->nodes[i].core, (uint16_t)(gone + 1));
}

static void exchange_first(world *w) {
    uint32_t old = pick_member(w, w->n);
    if (w->calm || old == w->n || w->exchange_count == EXCHANGES_MAX) return;
    exchange_add(w, old, node_add(w));
    if (w->exchange_plan == PLAN_DEAD) node_lose(w, old);
    turn(w, between(w, 5, 30), w->exchange_count - 1);
}

void operator_next(world *w, const event *e) {
    uint32_t what = (uint32_t)e->argument;
    if (what == TURN_BEGIN) {
        exchange_first(w);
    } else if (what >= TURN_END) {
        uint32_t old = w->exchanges[what - TURN_END].old;
        if (!digest_settled(w, members_wanted(w))) { /* It may have the only bytes of something. */
            turn(w, between(w, 5, 15), what);
            return;
        }
        node_lose(w, old);
        if (likely(w, 0.5)) node_part(w, old);
    } else if (w->exchanges[what].added != bits_below(SHARDS)) {
        exchange_go(w, what);
    } else {
        exchange_end(w, what);
    }
}

void operator_answer(world *w, const kv_reply *reply) {
    exchange *x = &w->exchanges[reply->token >> 8 & 255];
    uint32_t stage = reply->token >> 16 & 255, bit = 1u << (reply->token >> 24 & 255);
    trace(w, "operator hears %d of stage %u in shard %u", reply->status, stage, (uint32_t)(reply->token >> 24));
    if (reply->status != KV_ANSWER_OK) return;
    if (stage == STAGE_REMOVE || mutates(w, KV_MUTATE_CONFIG_SWAP)) x->removed |= bit;
    if (stage == STAGE_ADD || mutates(w, KV_MUTATE_CONFIG_SWAP)) x->added |= bit;
}

/* --- orders of events: in shard 0 --- */

/* Between these and all others nothing passes. */
static void at_divide(world *w, double units, uint32_t some_of) {
    uint64_t links = 0;
    for (uint32_t i = 0; i < w->n; i++)
        for (uint32_t j = 0; j < i; j++)
            if ((some_of >> i & 1) != (some_of >> j & 1)) links |= links_of(i, j);
    at_links(w, units, EVENT_CUT, links);
}

static void at_step(world *w, double units, uint32_t step) { world_at(w, (uint64_t)(units * UNIT), EVENT_SCRIPT)->argument = step; }
static void at_take(world *w, double units, uint32_t i) { at_node(w, units, EVENT_TAKEOVER, i, 1); }

/* Of the set, in any order. */
static void deal(world *w, uint32_t nodes[FOUNDERS_MAX]) {
    for (uint32_t i = 0; i < w->founders; i++) {
        uint32_t j = pick(w, i + 1);
        nodes[i] = nodes[j];
        nodes[j] = i;
    }
}

/* B exchanges C for D while it reaches nobody but D, and A takes over with all others. */
static void script_split(world *w, uint32_t a, uint32_t b, uint32_t c) {
    uint32_t d = node_add(w);
    double t = 90 + some(w, 0, 40);
    exchange_add(w, c, d);
    at_take(w, some(w, 5, 60), b);
    at_take(w, t, b);
    at_divide(w, t + 12, 1u << b | 1u << d);
    at_step(w, t + 12.5, STEP_CHANGE);
    at_take(w, t + some(w, 16, 25), a);
    at_links(w, t + some(w, 50, 90), EVENT_HEAL, EVERY_LINK);
    turn(w, (uint64_t)((t + 95) * UNIT), 0);
}

/* C is exchanged for D and does not hear of it; then it takes over with A, as B and D go on. */
static void script_removed(world *w, uint32_t a, uint32_t b, uint32_t c) {
    uint32_t d = node_add(w);
    double t = 60 + some(w, 0, 60), alone = t + some(w, 40, 80);
    exchange_add(w, c, d);
    at_take(w, t - 20, b);
    at_take(w, t - 12, b);
    at_divide(w, t, 1u << c);
    for (double step = 1; step < 30; step += 6) at_step(w, t + step, STEP_CHANGE);
    at_divide(w, alone, 1u << b | 1u << d);
    at_links(w, alone, EVENT_HEAL, links_of(a, c));
    for (double again = 2; again < 20; again += 8) at_take(w, alone + again, c);
    at_links(w, alone + some(w, 40, 80), EVENT_HEAL, EVERY_LINK);
    turn(w, (uint64_t)((alone + 85) * UNIT), 0);
}

/* Of five, E is exchanged for F, of which B and E do not hear. Then C goes on with D and F, and B takes over, in a higher round,
 * with A, who knows, and E, who does not. A has just restarted, or B would hear of it from its flow. */
static void script_stale(world *w, const uint32_t five[FOUNDERS_MAX]) {
    uint32_t f = node_add(w), a = five[0], b = five[1], c = five[2], e = five[4];
    double t = 60 + some(w, 0, 60), alone = t + some(w, 40, 80);
    exchange_add(w, e, f);
    w->script_nodes[1] = a; /* Who is asked. */
    at_take(w, t - 20, a);
    at_take(w, t - 12, a);
    at_divide(w, t, 1u << b | 1u << e);
    for (double step = 1; step < 30; step += 6) at_step(w, t + step, STEP_CHANGE);
    for (double again = 2; again < alone - t; again += 36) at_take(w, t + again, b);
    at_node(w, alone, EVENT_CRASH, a, false);
    at_node(w, alone + 0.5, EVENT_RESTART, a, 0);
    at_links(w, alone, EVENT_HEAL, EVERY_LINK);
    at_divide(w, alone, 1u << a | 1u << b | 1u << e);
    for (double again = 0.2; again < 15; again += 6) at_take(w, alone + again, c);
    for (double again = 20; again < 60; again += 36) at_take(w, alone + again, b);
    at_links(w, alone + some(w, 60, 80), EVENT_HEAL, EVERY_LINK);
    turn(w, (uint64_t)((alone + 85) * UNIT), 0);
}

/* Of five, E is removed. A adds F where only F hears of it; B, which has promises of all others but has committed nothing,
 * adds G where C does not hear of it; and A takes over again, with F and C. */
static void script_early(world *w, const uint32_t five[FOUNDERS_MAX]) {
    uint32_t f = node_add(w), g = node_add(w);
    exchange_add(w, five[4], f); /* Which of the two it is in the end is left to the operator. */
    w->extra[0] = five[3];
    w->extra[1] = f;
    w->extra[2] = g;
    at_take(w, some(w, 40, 60), five[0]);
    for (double again = 80; again < 115; again += 15) at_step(w, again, STEP_REMOVE);
    at_divide(w, 130, 1u << five[0] | 1u << f);
    at_step(w, 130.2, STEP_ADD_FIRST);
    at_step(w, 136, STEP_TAKE_SECOND);
    at_links(w, 230 + some(w, 0, 30), EVENT_HEAL, EVERY_LINK);
    turn(w, 270 * UNIT, 0);
}

static void second_taken(world *w, uint32_t a, uint32_t b, uint32_t c) {
    at_links(w, 0, EVENT_CUT, links_of(b, c) | links_of(w->extra[0], c) | links_of(w->extra[2], c));
    for (double again = 0; again < 6; again++) at_step(w, again, STEP_ADD_SECOND);
    at_links(w, 6, EVENT_HEAL, links_of(a, c));
    at_take(w, 14, a);
    at_take(w, 22, a);
}

void exchange_step(world *w, uint32_t step) {
    uint32_t a = w->script_nodes[0], b = w->script_nodes[1], c = w->script_nodes[2];
    switch (step) {
    case STEP_CHANGE: changes_ask(w, b, 0, 0); break;
    case STEP_REMOVE: change_one(w, a, 0, w->exchanges[0].old + 1); break;
    case STEP_ADD_FIRST: change_one(w, a, w->extra[1] + 1, 0); break;
    case STEP_ADD_SECOND: change_one(w, b, w->extra[2] + 1, 0); break;
    case STEP_TAKE_SECOND:
        w->at_barrier[b] = STEP_SECOND_TAKEN;
        at_take(w, 0, b);
        at_take(w, 12, b); /* The first may have met a higher round. */
        break;
    default: second_taken(w, a, b, c); break;
    }
}

void exchange_begin(world *w) {
    uint32_t nodes[FOUNDERS_MAX] = {0};
    if (w->exchange_plan == PLAN_NONE) return;
    trace(w, "exchange: plan %u", w->exchange_plan);
    if (!exchange_plays(w)) {
        turn(w, between(w, 60, w->exchange_plan == PLAN_TWICE ? 250 : 500), TURN_BEGIN);
        return;
    }
    deal(w, nodes);
    for (uint32_t i = 0; i < 3; i++) w->script_nodes[i] = nodes[i];
    if (w->exchange_plan == PLAN_SPLIT) script_split(w, nodes[0], nodes[1], nodes[2]);
    else if (w->exchange_plan == PLAN_REMOVED) script_removed(w, nodes[0], nodes[1], nodes[2]);
    else if (w->exchange_plan == PLAN_STALE) script_stale(w, nodes);
    else script_early(w, nodes);
}

/* --- the judge's part. A rule left out is to be noticed by what comes of it, and not here. --- */

static uint32_t bits_of(const uint8_t *value, uint32_t size) {
    uint32_t bits = 0;
    for (uint32_t at = 0; at + 2 <= size; at += 2) bits |= 1u << (kv_load16(value + at) - 1);
    return bits;
}

/* One more or one less than before, and as many as the set began with, or one less. */
void config_judge(world *w, uint32_t i, uint32_t shard, uint64_t version) {
    uint32_t *known = &w->chosen_members[shard];
    kv_record record;
    if (*known == 0) *known = bits_below(w->founders);
    if (kv_replica_record(w->nodes[i].core, shard, version, 0, &record) != KV_OK || record.kind != KV_KIND_CONFIG) return;
    uint32_t now = bits_of(record.value, record.value_size), count = (uint32_t)__builtin_popcount(now);
    trace(w, "shard %u has members %x from version %llu on", shard, now, (unsigned long long)version);
    bool good = __builtin_popcount(now ^ *known) == 1 && (count == w->founders || count + 1 == w->founders);
    if (!good && w->mutations == 0) violate(w, "in shard %u members %x follow upon %x", shard, now, *known);
    *known = now;
}

static uint32_t bits_of_state(const kv_shard_state *state) {
    uint32_t bits = 0;
    for (uint32_t i = 0; i < state->member_count; i++) bits |= 1u << (state->members[i] - 1);
    return bits;
}

/* Who has what is applied and no more has the members that were chosen. And what an owner that has committed something of
 * its own does not know to be committed is not. */
void members_judge(world *w, uint32_t i, uint32_t shard, const kv_shard_state *state) {
    uint64_t *newest = &w->newest[shard];
    if (state->applied > *newest) *newest = state->applied;
    if (state->applied == *newest && state->last == *newest && *newest != 0 && bits_of_state(state) != w->chosen_members[shard])
        violate(w, "replica %u has members %x of shard %u, not %x", i + 1, bits_of_state(state), shard, w->chosen_members[shard]);
    bool knows = state->owned && state->commit >= state->barrier;
    if (w->mutations == 0 && knows && state->changing > 1)
        violate(w, "replica %u has %u undecided changes of the members of shard %u", i + 1, state->changing, shard);
}

void exchanges_judge(world *w) {
    uint32_t wanted = members_wanted(w);
    for (uint32_t i = 0; i < w->n; i++) {
        kv_shard_state state;
        for (uint32_t s = 0; s < SHARDS && w->nodes[i].up && (wanted >> i & 1); s++) {
            kv_replica_shard(w->nodes[i].core, s, &state);
            uint32_t members = bits_of_state(&state);
            if (!state.whole) violate(w, "in the end replica %u has not all of shard %u", i + 1, s);
            if (members != wanted) violate(w, "in the end replica %u has members %x in shard %u, not %x", i + 1, members, s, wanted);
        }
    }
}
