/* world.c -- events, chance, the network and the nodes. See world.h. */
#include "world.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

/* --- chance: splitmix64 --- */

static uint64_t draw(world *w) { return kv_mix64(w->random += 0x9E3779B97F4A7C15ULL); }

double chance(world *w) { return (double)(draw(w) >> 11) / 9007199254740992.0; }
bool likely(world *w, double probability) { return chance(w) < probability; }
uint64_t between(world *w, double low, double high) { return (uint64_t)((low + (high - low) * chance(w)) * UNIT); }
uint64_t rarely(world *w, double mean) { return (uint64_t)(-log(1 - chance(w)) * mean * UNIT); }
uint32_t pick(world *w, uint32_t count) { return (uint32_t)(draw(w) % count); }

void violate(world *w, const char *format, ...) {
    va_list arguments;
    if (w->violation[0] != 0) return;
    va_start(arguments, format);
    vsnprintf(w->violation, sizeof w->violation, format, arguments);
    va_end(arguments);
    trace(w, "VIOLATION: %s", w->violation);
}

void trace(world *w, const char *format, ...) {
    va_list arguments;
    if (!w->verbose) return;
    printf("%9.3f  ", (double)w->now / UNIT);
    va_start(arguments, format);
    vprintf(format, arguments);
    va_end(arguments);
    putchar('\n');
}

/* --- events: a heap by time, and among equals by when they were made --- */

static bool sooner(const event *left, const event *right) {
    return left->at != right->at ? left->at < right->at : left->order < right->order;
}

event *world_at(world *w, uint64_t delay, enum event_kind kind) {
    if (w->heap_count == w->heap_capacity) {
        w->heap_capacity = w->heap_capacity == 0 ? 1024 : 2 * w->heap_capacity;
        w->heap = realloc(w->heap, w->heap_capacity * sizeof *w->heap);
        KV_ASSERT(w->heap != NULL);
    }
    event e = {.at = w->now + delay, .order = w->order++, .kind = kind};
    size_t at = w->heap_count++;
    for (; at > 0 && sooner(&e, &w->heap[(at - 1) / 2]); at = (at - 1) / 2) w->heap[at] = w->heap[(at - 1) / 2];
    w->heap[at] = e;
    return &w->heap[at];
}

static event heap_take(world *w) {
    event first = w->heap[0], last = w->heap[--w->heap_count];
    size_t at = 0, child;
    for (; (child = 2 * at + 1) < w->heap_count; at = child) {
        if (child + 1 < w->heap_count && sooner(&w->heap[child + 1], &w->heap[child])) child++;
        if (!sooner(&w->heap[child], &last)) break;
        w->heap[at] = w->heap[child];
    }
    w->heap[at] = last;
    return first;
}

/* --- the network --- */

static uint64_t delay(world *w) {
    uint64_t d = between(w, 0.3, 1.5);
    if (!w->calm && likely(w, w->tail)) d += rarely(w, 25);
    return d;
}

static void carry(world *w, uint32_t from, uint32_t to, const uint8_t *frame, size_t size, uint64_t after) {
    event *e = world_at(w, after, EVENT_DELIVER);
    e->node = to;
    e->other = from;
    e->size = size;
    e->bytes = malloc(size);
    KV_ASSERT(e->bytes != NULL);
    memcpy(e->bytes, frame, size);
    digest_spoil(w, e->bytes, size);
}

static void frame_send(world *w, uint32_t from, uint32_t to, const uint8_t *frame, size_t size) {
    uint32_t type = frame[4];
    w->counts.messages++;
    if (!w->calm) {
        if (w->cut[from][to] || likely(w, w->drop) || digest_starves(w, type)) return;
        if ((w->weak >> type & 1) && likely(w, 0.3)) return;
    }
    bool slow = !w->calm && (w->slow & link_of(from, to)) != 0, echo = !w->calm && (w->echo & link_of(from, to)) != 0;
    carry(w, from, to, frame, size, delay(w) + (slow ? between(w, 25, 38) : 0));
    if (echo) carry(w, from, to, frame, size, between(w, 25, 38));
    if (w->calm || !likely(w, 0.03)) return;
    carry(w, from, to, frame, size, rarely(w, 40));
    w->counts.duplicates++;
}

static void deliver(world *w, const event *e) {
    node *x = &w->nodes[e->node];
    if (!x->up || w->cut[e->other][e->node] || w->nodes[e->other].parted) return;
    node_clock(w, e->node);
    if (kv_replica_receive(x->core, (uint16_t)(e->other + 1), e->bytes, e->size) != KV_OK)
        violate(w, "replica %u took a frame of %u's for bad", e->node + 1, e->other + 1);
    node_drain(w, e->node);
}

/* --- nodes --- */

/* Clocks differ, and jump now and then, also back; in some seeds they are right. */
void node_clock(world *w, uint32_t i) {
    node *x = &w->nodes[i];
    if (!w->calm && likely(w, 0.002) && !w->steady) x->skew = (int64_t)between(w, 0, 60) / UNIT - 30;
    kv_sim_set_clock(x->disk, 1000000 + (int64_t)(w->now / UNIT) + x->skew);
}

static void counts_take(world *w, const kv_replica_counts *c) {
    w->counts.committed += c->committed;
    w->counts.takeovers += c->takeovers;
    w->counts.adoptions += c->adoptions;
    w->counts.step_downs += c->step_downs;
    w->counts.refusals += c->refusals;
    w->counts.cuts += c->cuts;
    w->counts.reconnects += c->reconnects;
    w->counts.deduplicated += c->deduplicated;
    w->counts.evicted += c->evicted;
    w->counts.failures_recorded += c->failures_recorded;
    w->counts.late_flows += c->late_flows;
    w->counts.follower_reads += c->follower_reads;
    w->counts.expired += c->expired;
    w->counts.offers += c->offers;
    w->counts.snapshots += c->snapshots;
    w->counts.installed += c->installed;
    w->counts.questions += c->questions;
    w->counts.configs += c->configs;
    w->counts.outsiders += c->outsiders;
    w->counts.fetched += c->fetched;
    w->counts.spoilt += c->spoilt;
    w->counts.lacking += c->lacking;
    w->counts.collected += c->collected;
    w->counts.settled += c->settled;
}

void node_boot(world *w, uint32_t i) {
    node *x = &w->nodes[i];
    kv_fault fault;
    if (x->gone) return;
    kv_replica_options options = {.node = (uint16_t)(i + 1), .member_count = w->founders, .shard_count = SHARDS, .joins = i >= w->founders,
                                  .window_size_max = w->window_size_max, .keep_max = w->keep_max, .piece_tables = 1, .session_max = w->session_max, .batch_max = w->batch_max, .damaged = x->damaged,
                                  .incarnation_min = ++x->life * 1000,
                                  .mutations = w->mutations & (((uint64_t)1 << KV_MUTATION_COUNT) - 1)};
    options.policy = w->policy;
    options.inline_max = w->inline_max;
    options.fetch_size_max = w->fetch_size_max;
    options.store.segment_size_min = 16 << 10;
    options.store.segment_size_max = 64 << 10;
    for (uint32_t j = 0; j < w->founders; j++) options.members[j] = (uint16_t)(j + 1);
    kv_sim_set_recording(x->disk, true);
    x->syncing = false;
    x->stuck = x->promises = x->installed = 0;
    x->owned = 0;
    x->up = kv_replica_open(kv_sim_io(x->disk), &options, &fault, &x->core) == KV_OK;
    if (!x->up) {
        violate(w, "replica %u cannot open its log: %s", i + 1, fault.what);
        return;
    }
    for (uint32_t j = 0; j < w->n; j++)
        if (j != i && !w->nodes[j].parted) KV_ASSERT(kv_replica_meet(x->core, (uint16_t)(j + 1)) == KV_OK);
    w->counts.restarts += x->life > 1;
    for (uint32_t s = 0; s < SHARDS; s++) {
        kv_shard_state state;
        kv_replica_shard(x->core, s, &state);
        x->seen[s] = state.applied;
    }
    trace(w, "replica %u boots, life %llu", i + 1, (unsigned long long)x->life);
    node_drain(w, i);
    event *e = world_at(w, between(w, 1, 4), EVENT_TICK);
    e->node = i;
    e->life = x->life;
    if (w->policy || !likely(w, 0.7)) return;
    e = world_at(w, between(w, 1, 5), EVENT_TAKEOVER);
    e->node = i;
    e->life = x->life;
    for (uint32_t s = 0; s < SHARDS; s++)
        if (s % w->n == i) e->argument |= (uint64_t)1 << s;
}

uint32_t node_add(world *w) {
    uint32_t i = w->n++;
    KV_ASSERT(i < NODES_MAX);
    w->nodes[i].disk = kv_sim_new();
    for (uint32_t j = 0; j < i; j++)
        if (w->nodes[j].up) KV_ASSERT(kv_replica_meet(w->nodes[j].core, (uint16_t)(i + 1)) == KV_OK);
    node_boot(w, i);
    return i;
}

/* What was not synced reaches the disk page by page, or not. */
void node_crash(world *w, uint32_t i, bool whole_tail) {
    node *x = &w->nodes[i];
    kv_sim *left;
    if (!x->up) return;
    w->counts.crashes++;
    for (uint32_t s = 0; s < SHARDS; s++) w->counts.owner_crashes += node_owns(w, i, s);
    x->up = false;
    int32_t policy = whole_tail ? KV_CUT_ALL_LOST : pick(w, 4) == 0 ? KV_CUT_ALL_KEPT : KV_CUT_RANDOM;
    trace(w, "replica %u crashes%s", i + 1, whole_tail ? " and loses what it has not synced" : "");
    KV_ASSERT(kv_sim_image(x->disk, kv_sim_event_count(x->disk), policy, 0, draw(w), &left) == KV_OK);
    counts_take(w, kv_replica_count(x->core));
    kv_replica_free(x->core);
    kv_sim_free(x->disk);
    x->core = NULL;
    x->disk = left;
}

bool node_owns(const world *w, uint32_t i, uint32_t shard) {
    kv_shard_state state;
    if (!w->nodes[i].up) return false;
    kv_replica_shard(w->nodes[i].core, shard, &state);
    return state.owned != 0;
}

void node_takeover(world *w, uint32_t i, uint32_t shards) {
    uint16_t numbers[SHARDS];
    size_t count = 0;
    if (!w->nodes[i].up) return;
    for (uint32_t s = 0; s < SHARDS; s++)
        if (shards >> s & 1) numbers[count++] = (uint16_t)s;
    trace(w, "replica %u takes over %x", i + 1, shards);
    kv_replica_takeover(w->nodes[i].core, numbers, count);
    node_drain(w, i);
}

static void frames_send(world *w, uint32_t i) {
    for (uint32_t j = 0; j < w->n; j++) {
        size_t size;
        const uint8_t *bytes = j == i ? NULL : kv_replica_outbox(w->nodes[i].core, (uint16_t)(j + 1), &size);
        for (size_t at = 0, frame; bytes != NULL && at < size; at += frame) {
            frame = kv_load32(bytes + at) + 4;
            frame_send(w, i, j, bytes + at, frame);
        }
    }
}

static void sync_later(world *w, uint32_t i, double low, double high) {
    node *x = &w->nodes[i];
    x->syncing = true;
    event *e = world_at(w, between(w, low, high), EVENT_FSYNC);
    e->node = i;
    e->life = x->life;
}

static uint64_t durable_now(const node *x) { return kv_position_order(kv_flow_durable(kv_replica_flow(x->core))); }

bool node_synced(const world *w, uint32_t i) { return w->nodes[i].up && kv_replica_tail(w->nodes[i].core) == durable_now(&w->nodes[i]); }

void node_drain(world *w, uint32_t i) {
    node *x = &w->nodes[i];
    const kv_reply *replies;
    const uint8_t *bytes;
    size_t count;
    if (!x->up) return;
    kv_replica_flush(x->core);
    kv_replica_answers(x->core, &replies, &count, &bytes);
    for (size_t j = 0; j < count; j++) reply_send(w, i, &replies[j], bytes);
    frames_send(w, i);
    kv_replica_clear(x->core);
    agree(w, i);
    waiters_look(w, i);
    tables_look(w, i);
    moment(w, i);
    if (!x->syncing && kv_replica_tail(x->core) > durable_now(x)) sync_later(w, i, 0.05, 0.6);
}

static void fsync_begins(world *w, uint32_t i, uint64_t life) {
    node *x = &w->nodes[i];
    if (!x->up || life != x->life) return;
    uint64_t took = between(w, 0.2, 1.5);
    if (likely(w, w->slow_fsync)) took += between(w, 10, 60);
    if (x->stuck > w->now && took < x->stuck - w->now) took = x->stuck - w->now;
    event *e = world_at(w, took, EVENT_FSYNCED);
    e->node = i;
    e->life = life;
}

static void fsync_ends(world *w, uint32_t i, uint64_t life) {
    node *x = &w->nodes[i];
    if (!x->up || life != x->life) return;
    if (kv_sync(kv_replica_caller(x->core)) < 0) violate(w, "replica %u cannot sync", i + 1);
    x->syncing = false;
    kv_replica_durable(x->core, durable_now(x));
    node_drain(w, i);
}

/* --- what happens --- */

static void tick(world *w, uint32_t i, uint64_t life) {
    node *x = &w->nodes[i];
    if (!x->up || life != x->life) return;
    node_clock(w, i);
    kv_replica_tick(x->core);
    node_drain(w, i);
    event *e = world_at(w, 4 * UNIT, EVENT_TICK);
    e->node = i;
    e->life = life;
}

static void cut_set(world *w, uint64_t links, bool on) {
    for (uint32_t i = 0; i < w->n; i++)
        for (uint32_t j = 0; j < w->n; j++)
            if (links & link_of(i, j)) w->cut[i][j] = on;
}

static void happen(world *w, event *e) {
    switch (e->kind) {
    case EVENT_TICK: tick(w, e->node, e->life); break;
    case EVENT_TAKEOVER:
        if (e->life == 0 || e->life == w->nodes[e->node].life) node_takeover(w, e->node, (uint32_t)e->argument);
        break;
    case EVENT_FSYNC: fsync_begins(w, e->node, e->life); break;
    case EVENT_FSYNCED: fsync_ends(w, e->node, e->life); break;
    case EVENT_DELIVER: deliver(w, e); break;
    case EVENT_ARRIVE: request_arrive(w, e); break;
    case EVENT_ANSWER: reply_arrive(w, e); break;
    case EVENT_CLIENT_NEXT: client_next(w, e->node); break;
    case EVENT_CLIENT_TIMEOUT: client_timeout(w, e->node, e->other, (int)e->argument); break;
    case EVENT_NEMESIS: nemesis(w); break;
    case EVENT_CRASH: node_crash(w, e->node, e->argument != 0); break;
    case EVENT_RESTART:
        if (!w->nodes[e->node].up) node_boot(w, e->node);
        break;
    case EVENT_CUT: cut_set(w, e->argument, true); break;
    case EVENT_HEAL: cut_set(w, e->argument, false); break;
    case EVENT_SCRIPT: script_step(w, e); break;
    case EVENT_FINAL_TIMEOUT: final_timeout(w, e->node, (uint32_t)e->argument); break;
    case EVENT_BULK: bulk_next(w); break;
    case EVENT_OPERATOR: operator_next(w, e); break;
    case EVENT_FEED: feed_next(w, e->node); break;
    case EVENT_ROWS: rows_next(w); break;
    case EVENT_WAITER: waiters_next(w, e->node); break;
    case EVENT_STARVE: digest_starve(w, e->argument != 0); break;
    case EVENT_LOSE: digest_lose(w, e->argument != 0); break;
    case EVENT_SLOW: w->slow = e->argument; break;
    case EVENT_ECHO: w->echo = e->argument; break;
    case EVENT_READERS: w->readers = (int)e->node; break;
    case EVENT_STUCK: w->nodes[e->node].stuck = e->argument; break;
    }
    free(e->bytes);
}

void world_run(world *w, uint64_t until) {
    while (w->heap_count != 0 && w->heap[0].at <= until && w->violation[0] == 0) {
        event e = heap_take(w);
        w->now = e.at;
        happen(w, &e);
    }
    w->now = until;
}
