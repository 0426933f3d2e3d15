/* disks.c -- disks that are hurt: records that go bad below the durable watermark, disks set back to an earlier image of
 * themselves, wiped disks. See world.h.
 *
 * One disk a seed, the victim's: as long as one is hurt at a time a majority has everything. A replica that finds its disk
 * damaged where nothing tells what was there, or that its peers find out, is gone for the rest of the seed.
 *
 * What peers remember is in their memory. So a disk is set back, or wiped, only while every other replica is up and
 * remembers the victim as it is, and what it vouched for as an owner it has told somebody; and none of the others crashes before
 * the victim was found out or let in. Seeds like that wait for everybody's HELLO. Then, if any of them remembers more than
 * is left on the disk, the victim has to be found out. */
#include <stdio.h>
#include <stdlib.h>

#include "kv/record.h"
#include "world.h"

enum { CANDIDATES_MAX = 4096, TRIES_MAX = 60, SEGMENTS_MAX = 4096 };
/* Of the header page of a segment (flow_internal.h). */
enum { AT_ID = 12, AT_SALT = 32, AT_WATERMARK = 512, AT_SEAL = 1024 };

/* --- damage --- */

typedef struct place {
    uint32_t segment, offset, size;
    uint32_t end; /* of what was durable, as far as the header knows: what is bad behind it is taken for a torn tail */
    bool data;
    uint8_t kind;
    uint64_t shards; /* PROMISE: bits */
} place;

typedef struct places {
    place at[CANDIDATES_MAX];
    size_t count;
} places;

static void path_of(uint32_t segment, char path[32]) { snprintf(path, 32, "flow/%08x.seg", segment); }

static uint64_t shards_of(const kv_record *record) {
    uint64_t bits = 0;
    for (uint32_t at = 0; record->kind == KV_KIND_PROMISE && at + 2 <= record->value_size; at += 2)
        bits |= (uint64_t)1 << kv_load16(record->value + at) % 64;
    return bits;
}

/* Records that were durable once. */
static void segment_look(uint32_t segment, const uint8_t *bytes, size_t size, places *out) {
    uint64_t salt = kv_load64(bytes + AT_SALT);
    uint32_t end = kv_load32(bytes + AT_SEAL), offset = KV_PAGE_SIZE;
    if (end == 0) end = kv_load32(bytes + AT_WATERMARK);
    while (offset < end && end <= size && out->count < CANDIDATES_MAX) {
        kv_record record;
        uint32_t used;
        if (kv_record_decode(bytes + offset, end - offset, kv_place(salt, segment, offset), &record, &used) != KV_OK) {
            offset += KV_RECORD_ALIGN;
            continue;
        }
        out->at[out->count++] = (place){.segment = segment, .offset = offset, .size = used, .end = end, .data = record.kind < KV_KIND_ENVELOPE,
                                           .kind = record.kind, .shards = shards_of(&record)};
        offset += used;
    }
}

static void disk_look(kv_sim *disk, places *out) {
    out->count = 0;
    for (uint32_t segment = 1, missing = 0; missing < (out->count == 0 ? SEGMENTS_MAX : 4); segment++) { /* The first may be gone. */
        char path[32];
        uint64_t size;
        size_t got;
        path_of(segment, path);
        if (kv_sim_file_size(disk, path, &size) != KV_OK) {
            missing++;
            continue;
        }
        missing = 0;
        uint8_t *bytes = malloc(size + KV_PAGE_SIZE);
        KV_ASSERT(bytes != NULL && kv_sim_read(disk, path, 0, bytes, size, &got) == KV_OK);
        if (got > KV_PAGE_SIZE) segment_look(segment, bytes, got, out);
        free(bytes);
    }
}

/* A bit, some bits, or half a kilobyte from there on. */
static void place_rot(world *w, uint32_t i, const place *at) {
    char path[32];
    uint8_t bytes[512] = {0};
    size_t got, size = 1;
    path_of(at->segment, path);
    uint32_t offset = at->offset + pick(w, at->size);
    if (likely(w, 0.1)) size = sizeof bytes;
    if (offset + size > at->end) size = 1;
    if (size == 1) {
        KV_ASSERT(kv_sim_read(w->nodes[i].disk, path, offset, bytes, 1, &got) == KV_OK);
        bytes[0] ^= (uint8_t)(1u << pick(w, 8));
    }
    KV_ASSERT(kv_sim_write(w->nodes[i].disk, path, offset, bytes, size) == KV_OK);
    trace(w, "the disk of replica %u goes bad in segment %u at %u", i + 1, at->segment, offset);
    space_rots(&w->nodes[i], (uint64_t)at->segment << 32 | at->offset);
}

static void disk_rot(world *w, uint32_t i) {
    static places all;
    disk_look(w->nodes[i].disk, &all);
    if (all.count == 0) return;
    uint32_t count = (uint32_t[]){1, 1, 2, 4}[pick(w, 4)];
    bool rare = likely(w, 0.4); /* Else nearly all would be what clients wrote. */
    for (uint32_t n = 0; n < count; n++) {
        size_t which = pick(w, (uint32_t)all.count);
        for (uint32_t tries = 0; rare && tries < 16 && all.at[which].data; tries++) which = pick(w, (uint32_t)all.count);
        place_rot(w, i, &all.at[which]);
    }
    w->counts.rotten++;
}

/* The newest record that is any client's, or one of the newest, or the newest promise of the script's
 * shard. */
static void disk_rot_newest(world *w, uint32_t i, enum disk_step which) {
    static places all;
    bool promise = which == DISK_ROT_PROMISE;
    uint32_t skipped = which == DISK_ROT_SOME ? pick(w, 6) : 0;
    disk_look(w->nodes[i].disk, &all);
    for (size_t n = all.count; n-- > 0;) {
        if (promise ? (all.at[n].shards >> w->script_shard & 1) == 0 : !all.at[n].data) continue;
        if (skipped-- > 0) continue;
        all.at[n].size = 8; /* Its checksum, so that nothing of it is spared. */
        place_rot(w, i, &all.at[n]);
        w->counts.rotten++;
        return;
    }
}

/* --- out of the game --- */

void node_lost(world *w, uint32_t i) {
    node *x = &w->nodes[i];
    trace(w, "replica %u is lost", i + 1);
    if (x->up) node_crash(w, i, false);
    x->gone = true;
    x->set_back = x->must_end = false;
    w->guarded = false;
    for (uint32_t j = 0; j < w->n; j++)
        if (w->nodes[j].up) kv_replica_declare_gone(w->nodes[j].core, (uint16_t)(i + 1));
    for (uint32_t j = 0; j < w->n; j++) node_drain(w, j);
}

/* true: it is gone. */
bool node_ended(world *w, uint32_t i) {
    kv_fault why;
    node *x = &w->nodes[i];
    kv_status status = kv_replica_failure(x->core, &why);
    if (status != KV_OK && status != KV_EBACKWARDS) violate(w, "replica %u has ended: %s", i + 1, why.what);
    if (status != KV_EBACKWARDS) return false;
    if (!x->set_back) violate(w, "replica %u is said to have gone backwards", i + 1);
    w->counts.found_out++;
    node_lost(w, i);
    return true;
}

/* It was compared by all that had to, or nobody knew more. */
void disk_welcomed(world *w, uint32_t i) {
    node *x = &w->nodes[i];
    if (!x->set_back || x->must_end) return;
    for (uint32_t j = 0; j < w->n; j++) {
        kv_replica_memory memory;
        if (j == i || w->nodes[j].gone) continue;
        if (!kv_replica_remembers(w->nodes[j].core, (uint16_t)(i + 1), &memory) || memory.boot != x->boot) return;
    }
    trace(w, "replica %u had forgotten nothing that counts", i + 1);
    x->set_back = false;
    w->guarded = false;
}

/* --- set back, wiped --- */

/* How far the others know its disk to have been; false: not all of them would know. */
static bool remembered(const world *w, uint32_t i, uint64_t *furthest) {
    *furthest = 0;
    for (uint32_t j = 0; j < w->n; j++) {
        kv_replica_memory memory;
        if (j == i) continue;
        if (!w->nodes[j].up || !kv_replica_remembers(w->nodes[j].core, (uint16_t)(i + 1), &memory)) return false;
        if (memory.boot != w->nodes[i].boot || memory.position < w->nodes[i].found) return false;
        if (memory.position > *furthest) *furthest = memory.position;
    }
    return true;
}

bool disk_may_be_replaced(const world *w, uint32_t i) {
    uint64_t furthest;
    const node *x = &w->nodes[i];
    if (!x->up || x->gone || !remembered(w, i, &furthest)) return false;
    bool owns = false;
    for (uint32_t s = 0; s < SHARDS; s++) owns |= node_owns(w, i, s);
    return !owns || furthest >= kv_position_order(kv_flow_durable(kv_replica_flow(x->core)));
}

void disk_keep_image(world *w, uint32_t i) {
    node *x = &w->nodes[i];
    if (!x->up) return;
    kv_sim_free(x->image);
    KV_ASSERT(kv_sim_image(x->disk, kv_sim_event_count(x->disk), KV_CUT_ALL_LOST, 0, 0, &x->image) == KV_OK);
}

/* It comes back with its image, or with nothing, and must not get away with it if somebody knows more. */
void disk_replace(world *w, uint32_t i, bool wiped) {
    node *x = &w->nodes[i];
    if (!x->up || (!wiped && x->image == NULL)) return;
    node_crash(w, i, false);
    kv_sim_free(x->disk);
    x->disk = wiped ? kv_sim_new() : x->image;
    if (wiped) kv_sim_set_random(x->disk, w->seed * 8 + i + (1u << 20));
    else x->image = NULL;
    trace(w, "the disk of replica %u is %s", i + 1, wiped ? "wiped" : "set back");
    w->counts.set_back++;
    space_free(x); /* Its checkpoints were on it. */
    x->set_back = x->replaced = true;
    w->guarded = true;
}

/* Its log was opened, and has nothing new in it yet. */
void disk_compare(world *w, uint32_t i) {
    uint64_t furthest;
    node *x = &w->nodes[i];
    x->found = kv_replica_tail(x->core);
    if (!x->replaced) return;
    x->replaced = false;
    for (uint32_t j = 0; j < w->n; j++) {
        kv_replica_memory memory;
        if (j == i || !w->nodes[j].up || !kv_replica_remembers(w->nodes[j].core, (uint16_t)(i + 1), &memory)) continue;
        furthest = memory.position;
        if (furthest > kv_replica_tail(x->core)) x->must_end = true;
    }
    if (x->must_end) w->counts.to_find_out++;
}

/* --- by chance --- */

static void disk_later(world *w, uint64_t delay, enum disk_step step, uint32_t tries) {
    event *e = world_at(w, delay, EVENT_DISK);
    e->argument = step;
    e->other = tries;
}

void disks_choose(world *w) {
    double kind = chance(w);
    w->victim = pick(w, w->n);
    w->await_hello |= kind < 0.1 || likely(w, 0.1);
    if (w->scripts != 0) return;
    w->disk_fault = kind < 0.07 ? DISK_FAULT_BACK : kind < 0.1 ? DISK_FAULT_WIPE : kind < 0.35 ? DISK_FAULT_ROT : DISK_FAULT_NONE;
    if (w->disk_fault == DISK_FAULT_ROT) disk_later(w, between(w, 60, 300), DISK_ROT, 0);
    if (w->disk_fault == DISK_FAULT_BACK) disk_later(w, between(w, 30, 300), DISK_IMAGE, 0);
    if (w->disk_fault == DISK_FAULT_WIPE) disk_later(w, between(w, 100, 500), DISK_WIPE, 0);
}

static void rot_now(world *w) {
    uint32_t i = w->victim;
    if (w->nodes[i].gone || w->now > 850 * UNIT) return;
    if (w->nodes[i].up) node_crash(w, i, false);
    disk_rot(w, i);
    world_at(w, between(w, 1, 20), EVENT_RESTART)->node = i;
    disk_later(w, rarely(w, 150), DISK_ROT, 0);
}

void disk_step(world *w, const event *e) {
    bool wipe = e->argument == DISK_WIPE, scripted = e->argument >= DISK_IMAGE_ONLY;
    uint32_t i = scripted ? e->node : w->victim;
    if (w->calm || w->nodes[i].gone || w->now > 800 * UNIT || w->disk_fault == DISK_FAULT_NONE) return;
    switch ((enum disk_step)e->argument) {
    case DISK_ROT: rot_now(w); return;
    case DISK_IMAGE:
        disk_keep_image(w, i);
        disk_later(w, between(w, 5, 150), DISK_BACK, 0);
        return;
    case DISK_BACK:
    case DISK_WIPE:
        if (!disk_may_be_replaced(w, i)) {
            if (e->other < TRIES_MAX) disk_later(w, between(w, 1, 4), (enum disk_step)e->argument, e->other + 1);
            return;
        }
        disk_replace(w, i, wipe);
        world_at(w, between(w, 1, 20), EVENT_RESTART)->node = i;
        return;
    case DISK_IMAGE_ONLY: disk_keep_image(w, i); return;
    case DISK_BACK_NOW:
        if (disk_may_be_replaced(w, i)) disk_replace(w, i, false);
        return;
    case DISK_ROT_LAST:
    case DISK_ROT_SOME:
    case DISK_ROT_PROMISE:
        w->nodes[i].killed = true; /* Else the header might not know that it was durable. */
        if (w->nodes[i].up) node_crash(w, i, false);
        disk_rot_newest(w, i, (enum disk_step)e->argument);
    }
}
