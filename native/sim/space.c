/* space.c -- when a replica gives disk back, from what it opens again, and that it opens to the same whatever that is. See
 * world.h.
 *
 * The driver of a replica stores what it is handed as a checkpoint, and says so a little later; a crash may come in between,
 * and, as the disk forgets, in the middle of a removal. When the replica opens again it is given the newest checkpoint, the
 * one before or none. Now and then the same disk is opened twice, with and without, and both have to say the same: of every
 * shard, of what every lane was told, and of every name. Bytes of values that were durable are there again, and so is what was
 * kept behind them: the others would help, so that nobody would see it otherwise. */
#include <stdlib.h>

#include "../src/replica_internal.h"
#include "world.h"

void space_choose(world *w) {
    static const double paces[] = {15, 40, 150, NEVER};
    static const uint32_t sizes[] = {1, 4 << 10, 16 << 10, 64 << 10};
    w->trim_pace = paces[pick(w, 4)];
    w->keep_size_max = sizes[pick(w, 4)];
    w->in_a_hurry = likely(w, 0.5) ? 0.5 : 0;
    w->full_pace = likely(w, 0.3) ? 80 : NEVER;
}

static void space_later(world *w, uint32_t i) {
    if (w->trim_pace == NEVER) return;
    event *e = world_at(w, rarely(w, w->trim_pace), EVENT_TRIM);
    e->node = i;
    e->life = w->nodes[i].life;
}

static bool is_full(const world *w, uint32_t i) { return w->nodes[i].full_until > w->now; }

static void full_later(world *w, uint32_t i) {
    if (w->full_pace != NEVER) world_at(w, rarely(w, w->full_pace), EVENT_FULL)->node = i;
}

void space_begin(world *w, uint32_t i) {
    space_later(w, i);
    if (w->nodes[i].life == 1) full_later(w, i);
}

/* The disk takes a little more, and then nothing. */
static void limit(world *w, uint32_t i) {
    node *x = &w->nodes[i];
    kv_sim_limit(x->disk, is_full(w, i) ? kv_sim_used(x->disk) + pick(w, 1 << 15) : UINT64_MAX);
}

void space_full(world *w, uint32_t i) {
    node *x = &w->nodes[i];
    if (w->calm) return;
    w->counts.full_disks++;
    x->full_until = w->now + between(w, 5, 120);
    trace(w, "the disk of replica %u is full", i + 1);
    limit(w, i);
    world_at(w, x->full_until - w->now, EVENT_ROOM)->node = i;
}

void space_room(world *w, uint32_t i) {
    trace(w, "the disk of replica %u has room again", i + 1);
    limit(w, i);
    full_later(w, i);
}

static void blob_set(blob *to, const uint8_t *bytes, size_t size) {
    to->bytes = malloc(size);
    KV_ASSERT(to->bytes != NULL);
    memcpy(to->bytes, bytes, size);
    to->size = size;
}

void space_free(node *x) {
    free(x->newest.bytes);
    free(x->older.bytes);
    free(x->kept);
    x->kept = NULL;
    x->kept_count = 0;
    x->newest = x->older = (blob){0};
}

/* An open from a checkpoint does not look at what lies before the place that its replay begins at (docs/next.md). */
static void blob_rots(blob *one, uint64_t position) {
    if (one->bytes == NULL || position >= kv_load64(one->bytes + 8)) return;
    free(one->bytes);
    *one = (blob){0};
}

void space_rots(node *x, uint64_t position) {
    blob_rots(&x->newest, position);
    blob_rots(&x->older, position);
}

/* What may go wrong without being wrong: there is nothing to do, it has to wait, or there is no room. */
static bool is_fine(const world *w, uint32_t i, kv_status status) {
    if (status == KV_ENOSPC) return is_full(w, i) || w->nodes[i].core->full; /* It looks again at its next tick. */
    return status == KV_OK || status == KV_MORE || status == KV_EOF || status == KV_EWAIT;
}

static void publish(world *w, uint32_t i) {
    node *x = &w->nodes[i];
    kv_stats was, is;
    uint64_t began = kv_sim_event_count(x->disk);
    KV_ASSERT(kv_store_measure(kv_replica_store(x->core), &was) == KV_OK);
    kv_status status = kv_replica_published(x->core);
    if (!is_fine(w, i, status)) violate(w, "replica %u cannot take segments out: %d", i + 1, (int)status);
    KV_ASSERT(kv_store_measure(kv_replica_store(x->core), &is) == KV_OK);
    uint64_t removed = is.removed_count - was.removed_count, events = kv_sim_event_count(x->disk) - began;
    trace(w, "replica %u has its checkpoint published, %llu segments go", i + 1, (unsigned long long)removed);
    x->unpublished = false;
    w->counts.segments_removed += removed;
    if (w->calm || w->guarded || removed == 0 || !likely(w, w->harsh ? 0.3 : 0.05)) return;
    w->counts.torn_removals++;
    x->crash_event = began + pick(w, (uint32_t)events + 1);
    node_crash(w, i, likely(w, 0.5));
    world_at(w, between(w, 1, 40), EVENT_RESTART)->node = i;
}

static void checkpoint(world *w, uint32_t i, uint32_t steps) {
    node *x = &w->nodes[i];
    const uint8_t *bytes;
    size_t size;
    kv_status status = KV_MORE;
    for (; status == KV_MORE && steps > 0; steps--)
        status = kv_replica_checkpoint(x->core, &bytes, &size);
    if (!is_fine(w, i, status)) violate(w, "replica %u cannot make a checkpoint: %d", i + 1, (int)status);
    if (status != KV_OK) return;
    free(x->older.bytes);
    x->older = x->newest;
    blob_set(&x->newest, bytes, size);
    x->unpublished = true;
    w->counts.checkpoints++;
    trace(w, "replica %u has a checkpoint", i + 1);
}

static void move(world *w, uint32_t i, uint32_t steps) {
    kv_status status = KV_MORE;
    for (; status == KV_MORE && steps > 0; steps--)
        status = kv_replica_trim(w->nodes[i].core);
    if (!is_fine(w, i, status)) violate(w, "replica %u cannot move what is live: %d", i + 1, (int)status);
    w->counts.segments_moved += status == KV_OK;
}

void space_event(world *w, uint32_t i, uint64_t life) {
    node *x = &w->nodes[i];
    if (!x->up || life != x->life) return;
    if (likely(w, w->in_a_hurry)) { /* Nothing comes in between, not even a sync. */
        move(w, i, UINT32_MAX);
        checkpoint(w, i, UINT32_MAX);
        if (x->unpublished) publish(w, i);
    } else if (likely(w, 0.5)) {
        move(w, i, 1 + pick(w, 8));
    } else if (x->unpublished) {
        publish(w, i);
    } else {
        checkpoint(w, i, 1 + pick(w, 6));
    }
    node_drain(w, i);
    if (x->up) space_later(w, i);
}

/* --- bytes of values --- */

typedef struct kept {
    kv_meta meta;
    uint64_t behind; /* location; 0: nothing that is durable */
} kept;

void space_crashes(world *w, uint32_t i) {
    node *x = &w->nodes[i];
    const kv_replica *r = x->core;
    const contents *t = &r->contents;
    free(x->kept);
    x->kept = calloc(t->count + 1, sizeof *x->kept);
    KV_ASSERT(x->kept != NULL);
    x->kept_count = 0;
    for (uint64_t at = 0; at < t->capacity; at++) {
        const content *c = t->slots[at];
        if (c == NULL || c->location == 0 || c->end > r->durable) continue;
        uint64_t end = ((uint64_t)kv_loc_segment(c->behind) << 32 | kv_loc_offset(c->behind)) + c->behind_used;
        x->kept[x->kept_count++] = (kept){.meta = c->meta, .behind = end <= r->durable ? c->behind : 0};
    }
}

static void kept_judge(world *w, uint32_t i) {
    const node *x = &w->nodes[i];
    const kv_replica *r = x->core;
    for (size_t at = 0; at < x->kept_count && w->disk_fault == DISK_FAULT_NONE; at++) {
        const kept *one = &x->kept[at];
        const content *c = contents_find(&r->contents, &one->meta);
        if (c == NULL || c->location == 0) violate(w, "replica %u has lost the bytes of a value that were durable", i + 1);
        found behind = {.location = one->behind};
        if (one->behind == 0) continue;
        if (store_peek(r->store, &behind) != KV_OK || !found_intact(&behind))
            violate(w, "replica %u has lost what it kept behind a value", i + 1);
    }
}

/* --- opening --- */

void space_crashed(world *w, uint32_t i) {
    w->nodes[i].crash_event = 0;
    w->nodes[i].unpublished = false;
    if (is_full(w, i)) limit(w, i);
}

static uint64_t mix(uint64_t digest, uint64_t more) { return kv_mix64(digest ^ more) + digest; }

/* Of what the replica shows, whatever the place of its records. What a sweep has taken out is there again after a replay. Of a shard
 * whose snapshot is on its way nothing is shown: rows may have come before their table, and only a replay of them notices. */
static uint64_t index_digest(const kv_replica *r) {
    kv_index_slot *slots = NULL;
    size_t capacity = 0, count;
    uint64_t hash = 0, sum = 0;
    do {
        KV_ASSERT(kv_index_walk(r->store->index, &hash, &slots, &capacity, &count) == KV_OK);
        for (size_t i = 0; i < count; i++) {
            found f = {.location = slots[i].location};
            bool part = (kv_loc_flags(f.location) & (KV_LOC_ROW | KV_LOC_FLOOR)) != 0;
            if (kv_loc_flags(f.location) & KV_LOC_HEAD) continue;
            bool good = store_peek(r->store, &f) == KV_OK && found_intact(&f);
            if (good && part && big_set_has(&r->store->retired_tables, f.record.table_id)) continue;
            if (good && r->shards[f.record.shard].installing.active) continue;
            uint64_t what = !good ? 1 : mix(kv_xxh64(f.record.key, f.record.key_size, f.record.table_id), f.record.version);
            sum += mix(what, kv_loc_flags(f.location));
        }
    } while (hash != 0);
    free(slots);
    return sum;
}

static uint64_t lanes_digest(const sessions *s) {
    wire_out out = {0};
    lanes_put(&out, s);
    uint64_t digest = kv_xxh64(out.bytes, out.size, 0);
    wire_free(&out);
    return digest;
}

/* Those that are in force, and those of what is applied. */
static uint64_t members_digest(const shard *s) {
    wire_out out = {0};
    wire_put_members(&out, members_now(s));
    wire_put_members(&out, &s->members);
    uint64_t digest = kv_xxh64(out.bytes, out.size, s->configs.count);
    wire_free(&out);
    return digest;
}

bool space_goes_on(const kv_replica *r) { return r->failed == KV_OK; }

uint64_t space_lanes(const kv_replica *r, uint32_t number) {
    const shard *s = &r->shards[number];
    return s->installing.active || s->applied < s->whole_from ? 0 : lanes_digest(&s->sessions) | 1;
}

static uint64_t whole_from(const shard *s) { return s->applied < s->whole_from ? s->whole_from : 0; }

static void compare(world *w, uint32_t i, const kv_replica *one, const kv_replica *other) {
    if (index_digest(one) != index_digest(other)) violate(w, "replica %u shows something else without its checkpoint", i + 1);
    if (one->incarnation != other->incarnation) violate(w, "replica %u has another life without its checkpoint", i + 1);
    for (uint32_t s = 0; s < SHARDS; s++) {
        const shard *a = &one->shards[s], *b = &other->shards[s];
        bool same = a->promised == b->promised && a->commit == b->commit && a->applied == b->applied &&
                    log_last(&a->log) == log_last(&b->log) && log_last_ballot(&a->log) == log_last_ballot(&b->log) &&
                    whole_from(a) == whole_from(b) && a->installing.active == b->installing.active &&
                    members_digest(a) == members_digest(b) && lanes_digest(&a->sessions) == lanes_digest(&b->sessions);
        if (!same) violate(w, "replica %u has another shard %u without its checkpoint", i + 1, s);
    }
}

static void open_twice(world *w, uint32_t i, const kv_replica_options *options, kv_sim *copy) {
    kv_replica_options plain = *options;
    kv_replica *other;
    kv_fault fault;
    plain.checkpoint = NULL;
    w->counts.opened_twice++;
    if (kv_replica_open(kv_sim_io(copy), &plain, &fault, &other) != KV_OK) {
        violate(w, "replica %u cannot open its log without its checkpoint: %s", i + 1, fault.what);
        return;
    }
    compare(w, i, w->nodes[i].core, other);
    kv_replica_free(other);
}

bool space_open(world *w, uint32_t i, kv_replica_options *options, kv_fault *fault) {
    node *x = &w->nodes[i];
    const blob *from = likely(w, 0.7) ? &x->newest : likely(w, 0.5) ? &x->older : NULL;
    options->keep_size_max = w->keep_size_max;
    if (from != NULL && from->bytes != NULL) {
        options->checkpoint = from->bytes;
        options->checkpoint_size = from->size;
    }
    bool twice = options->checkpoint != NULL && likely(w, 0.3);
    kv_sim *copy = twice ? kv_sim_clone(x->disk) : NULL;
    bool opened = kv_replica_open(kv_sim_io(x->disk), options, fault, &x->core) == KV_OK;
    kv_stats stats = {0};
    if (opened) KV_ASSERT(kv_store_measure(kv_replica_store(x->core), &stats) == KV_OK);
    w->counts.checkpoints_used += stats.used_checkpoint != 0;
    w->counts.checkpoints_refused += options->checkpoint != NULL && opened && !stats.used_checkpoint;
    if (opened) kept_judge(w, i);
    if (opened && twice && stats.used_checkpoint) open_twice(w, i, options, copy);
    kv_sim_free(copy);
    return opened;
}
