/* replica_trim.c -- giving disk back: records that nobody needs any more, the oldest segments, checkpoints.
 *
 *   trim         the oldest segment, once it lies `keep_size_max` behind the end of the log: version logs let go of what they
 *                keep in it, a STATE that it holds is written again, what is live in it is moved to the end
 *   checkpoint   an image of the index, and, beside it, where the log has to be read from
 *   published    the segments go that were empty as of it: the oldest ones, without a gap
 *
 * The engine does the moving, the image and the removal (compact.c, checkpoint.c), and what it does not know is here: that a
 * segment counts, too, as long as `shard_needs` says so. Nothing is published that the log on the disk does not bear out:
 * everything that the checkpoint was made from, and a COMMIT that says so, is durable before. Between two calls anything may
 * happen to the log; a segment that is being emptied holds only what is decided, and gets nothing more.
 *
 * Where bytes of values lie, and what is kept behind them, is in no image: the log says it. So once a replica has met a value by
 * digest its checkpoints serve the removal alone, and it is opened from all that is left of the log. Bytes are moved like
 * what is live; what is kept behind a value stays where it is, and its segment with it.
 *
 * A checkpoint, as it is handed out (little-endian):
 *   offset size field
 *        0    8 magic      "kvsvrrpl"
 *        8    8 start      kv_position_order(): where a replay begins; 0: the image is not used, all of the log is replayed
 *       16    8 checksum   XXH64 of the 16 bytes before, seed 0
 *       24    . of the index, as in checkpoint.c */
#include <stdlib.h>

#include "replica_internal.h"

#define CHECKPOINT_MAGIC "kvsvrrpl"
enum { CHECKPOINT_HEAD_SIZE = 24 };

bool trim_open(kv_replica *r, const uint8_t **bytes, size_t *size) {
    const uint8_t *given = r->options.checkpoint;
    if (given == NULL || r->options.checkpoint_size <= CHECKPOINT_HEAD_SIZE) return false;
    bool mine = memcmp(given, CHECKPOINT_MAGIC, 8) == 0 && kv_load64(given + 16) == kv_xxh64(given, 16, 0);
    if (!mine) return false;
    uint64_t start = kv_load64(given + 8);
    if (start == 0) return false;
    r->late.start = (kv_position){.segment = (uint32_t)(start >> 32), .offset = (uint32_t)start};
    *bytes = given + CHECKPOINT_HEAD_SIZE;
    *size = r->options.checkpoint_size - CHECKPOINT_HEAD_SIZE;
    return true;
}

void sweep_stop(kv_replica *r) {
    kv_sweep_free(r->trimming.sweep);
    r->trimming.sweep = NULL;
}

void compaction_stop(kv_replica *r) {
    kv_compaction_free(r->trimming.compaction);
    r->trimming.compaction = NULL;
}

void kv_replica_checkpoint_end(kv_replica *r) {
    trimming *t = &r->trimming;
    kv_checkpoint_free(t->checkpoint);
    free(t->bytes);
    t->checkpoint = NULL;
    t->bytes = NULL;
    t->wanted = 0;
}

void trim_free(kv_replica *r) {
    if (r->store == NULL) return;
    sweep_stop(r);
    compaction_stop(r);
    kv_replica_checkpoint_end(r);
}

/* --- what has to stay --- */

static uint32_t replica_needs(const kv_replica *r) {
    uint32_t oldest = UINT32_MAX;
    for (uint32_t i = 0; i < r->shard_count; i++) {
        uint32_t needs = shard_needs(&r->shards[i]);
        if (needs < oldest) oldest = needs;
    }
    return oldest;
}

/* Lets go of what is applied and lies before a segment, as far as no peer was promised it. */
static void let_go_before(kv_replica *r, shard *s, uint32_t segment) {
    uint64_t limit = snapshot_pin(r, s), base = s->log.base;
    if (s->installing.active) return;
    if (s->applied < limit) limit = s->applied;
    while (base < limit && version_segment(s, base + 1) < segment) base++;
    if (mended_move(r, s, base)) shard_let_go(s, base);
}

/* No shard needs anything before this segment any more; KV_EWAIT: one does, and will for a while. */
static kv_status needs_move(kv_replica *r, uint32_t segment) {
    bool lost = mutated(r, KV_MUTATE_STATE_NOT_DURABLE), rough = mutated(r, KV_MUTATE_UNDECIDED_GOES);
    kv_status status = KV_OK;
    for (uint32_t i = 0; i < r->shard_count; i++) {
        shard *s = &r->shards[i];
        let_go_before(r, s, segment);
        bool kept = s->log.count != 0 && version_segment(s, s->log.base + 1) < segment;
        if (kept && !rough) status = KV_EWAIT;
        if ((s->state_at.segment >= segment && s->state_needs >= segment) || lost) continue;
        kv_status logged = state_log(r, s);
        if (logged != KV_OK) return logged;
    }
    return status;
}

/* --- the oldest segment --- */

/* Of the sealed segments the oldest that is not empty, if it lies far enough behind the end. */
static kv_status victim_find(kv_replica *r, uint32_t *out) {
    kv_segment_stats *segments;
    size_t count, oldest = 0;
    uint64_t behind = 0;
    kv_status status = kv_flow_settle(r->store->flow);
    if (status == KV_OK) status = kv_store_segments(r->store, &segments, &count);
    if (status != KV_OK) return status;
    while (oldest < count && segments[oldest].sealed && segments[oldest].live_size == 0 &&
           segments[oldest].id < replica_needs(r))
        oldest++;
    for (size_t i = oldest + 1; i < count; i++) behind += segments[i].size;
    bool due = oldest < count && segments[oldest].sealed && behind >= r->options.keep_size_max;
    *out = due ? segments[oldest].id : 0;
    kv_segments_free(segments);
    return due ? KV_OK : KV_EOF;
}

/* Where no shard's state is in pieces: a table that was ended there may come back under the id it had. And not beside a
 * checkpoint: its run would lack names that its image has, and nothing in the log takes these out. */
static bool may_sweep(const kv_replica *r) {
    if (r->trimming.checkpoint != NULL) return false;
    for (uint32_t i = 0; i < r->shard_count; i++) {
        const shard *s = &r->shards[i];
        if (s->installing.active || s->hole != 0 || s->applied < s->whole_from) return false;
    }
    return r->store->retired_tables.count != 0;
}

/* Rows of tables that were dropped, which nothing moves. */
static kv_status sweep_step(kv_replica *r) {
    trimming *t = &r->trimming;
    kv_status status = t->sweep == NULL ? kv_sweep_begin(r->store, &t->sweep) : KV_OK;
    if (status == KV_OK) status = kv_sweep_step(t->sweep);
    if (status != KV_MORE) sweep_stop(r);
    return status;
}

static kv_status victim_begin(kv_replica *r) {
    trimming *t = &r->trimming;
    kv_status status = victim_find(r, &t->segment);
    bool again = status == KV_OK && t->segment == t->done;
    t->done = 0;
    if (again) return KV_EWAIT; /* Rows of a dropped table are left in it, which a sweep has to take out. */
    if (status == KV_OK) status = needs_move(r, t->segment + 1);
    if (status == KV_OK) status = log_commits(r); /* A replay is to have applied what it finds moved. */
    if (status == KV_OK) status = contents_move(r, t->segment);
    if (status == KV_OK) status = kv_compaction_begin(r->store, t->segment, &t->compaction);
    return status == KV_OK ? KV_MORE : status;
}

static kv_status victim_step(kv_replica *r) {
    kv_status status = kv_compaction_step(r->trimming.compaction);
    if (status != KV_MORE) compaction_stop(r);
    if (status == KV_EOF) r->trimming.done = r->trimming.segment;
    return status == KV_EOF ? KV_OK : status;
}

/* Where a snapshot is coming in, what was here before is told from what came by where it lies. */
static bool is_installing(const kv_replica *r) {
    bool one = false;
    for (uint32_t i = 0; i < r->shard_count; i++) one |= r->shards[i].installing.active;
    return one;
}

kv_status kv_replica_trim(kv_replica *r) {
    if (r->failed != KV_OK) return r->failed;
    if (!r->ready || is_installing(r)) return KV_EWAIT;
    kv_status status = KV_EOF;
    if (r->trimming.compaction != NULL) return victim_step(r);
    if (may_sweep(r)) status = sweep_step(r);
    if (status == KV_EOF) status = victim_begin(r);
    if (r->failed != KV_OK) return r->failed;
    return status;
}

/* --- checkpoints --- */

/* Where, counted from its end, the log is as long as records are kept. */
static kv_status horizon_find(const kv_replica *r, uint32_t *out) {
    kv_segment_stats *segments;
    size_t count;
    kv_status status = kv_store_segments(r->store, &segments, &count);
    if (status != KV_OK) return status;
    uint64_t behind = 0;
    size_t at = count;
    while (at > 0 && behind < r->options.keep_size_max) behind += segments[--at].size;
    *out = at < count ? segments[at].id : 1;
    kv_segments_free(segments);
    return KV_OK;
}

/* The position moves with each checkpoint: a removal refuses older ones by it. */
static kv_status position_moves(kv_replica *r) {
    kv_position tail = kv_flow_tail(r->store->flow);
    if (log_end(r) != r->store->checkpoint_order) return KV_OK;
    if (!r->store->hidden && !store_has_empty(r->store, &r->store->counters, tail)) return KV_EOF;
    return node_log(r, false);
}

/* The oldest segment that is needed, or that there is. */
static kv_status start_find(kv_replica *r, kv_position *out) {
    kv_segment_stats *segments;
    size_t count;
    uint32_t needs = replica_needs(r);
    kv_status status = kv_store_segments(r->store, &segments, &count);
    if (status != KV_OK) return status;
    *out = (kv_position){.segment = needs > segments[0].id ? needs : segments[0].id, .offset = KV_SEGMENT_HEADER_SIZE};
    kv_segments_free(segments);
    return KV_OK;
}

static kv_status checkpoint_begin(kv_replica *r) {
    trimming *t = &r->trimming;
    uint32_t horizon = 0;
    bool careless = mutated(r, KV_MUTATE_STATE_NOT_DURABLE) || mutated(r, KV_MUTATE_UNDECIDED_GOES);
    kv_status status = horizon_find(r, &horizon);
    if (status == KV_OK) status = needs_move(r, horizon);
    if (status == KV_OK || status == KV_EWAIT) status = log_commits(r);
    r->late.kept_from = careless ? horizon : replica_needs(r);
    r->late.checkpoint_may_end = false;
    if (status == KV_OK) status = position_moves(r);
    if (status == KV_OK) status = start_find(r, &t->start);
    if (status == KV_OK) status = kv_checkpoint_begin(r->store, &t->checkpoint);
    return status == KV_OK ? KV_MORE : status;
}

/* All is written but the description. Names of which the run was told that they are gone were ended by records that are
 * applied: what says so has to be on the disk, too. */
static kv_status checkpoint_wait(kv_replica *r) {
    trimming *t = &r->trimming;
    kv_status status = t->wanted == 0 ? log_commits(r) : KV_OK;
    if (status != KV_OK) return status;
    if (t->wanted == 0) t->wanted = log_end(r);
    if (r->durable < t->wanted && !r->late.hasty) return KV_EWAIT;
    r->late.checkpoint_may_end = true;
    return KV_MORE;
}

static kv_status checkpoint_hand_out(kv_replica *r) {
    trimming *t = &r->trimming;
    const uint8_t *of_index;
    size_t size;
    kv_status status = kv_checkpoint_describe(t->checkpoint, &of_index, &size);
    if (status != KV_OK) return status;
    t->bytes = malloc(CHECKPOINT_HEAD_SIZE + size);
    if (t->bytes == NULL) return KV_ENOMEM;
    memcpy(t->bytes, CHECKPOINT_MAGIC, 8);
    kv_store64(t->bytes + 8, r->contents.capacity == 0 ? kv_position_order(t->start) : 0);
    kv_store64(t->bytes + 16, kv_xxh64(t->bytes, 16, 0));
    memcpy(t->bytes + CHECKPOINT_HEAD_SIZE, of_index, size);
    t->size = CHECKPOINT_HEAD_SIZE + size;
    return KV_OK;
}

static kv_status checkpoint_step(kv_replica *r) {
    trimming *t = &r->trimming;
    if (t->checkpoint == NULL) return checkpoint_begin(r);
    if (t->bytes != NULL) return KV_OK;
    kv_status status = kv_checkpoint_step(t->checkpoint);
    if (status == KV_EWAIT) return checkpoint_wait(r);
    return status == KV_EOF ? checkpoint_hand_out(r) : status;
}

kv_status kv_replica_checkpoint(kv_replica *r, const uint8_t **bytes, size_t *size) {
    if (r->failed != KV_OK) return r->failed;
    if (!r->ready) return KV_EWAIT;
    r->late.hasty = mutated(r, KV_MUTATE_CHECKPOINT_AHEAD);
    kv_status status = checkpoint_step(r);
    if (r->failed != KV_OK) status = r->failed;
    if (status != KV_OK && status != KV_MORE && status != KV_EWAIT) kv_replica_checkpoint_end(r);
    *bytes = r->trimming.bytes;
    *size = r->trimming.size;
    return status;
}

kv_status kv_replica_published(kv_replica *r) {
    if (r->trimming.bytes == NULL) return KV_EUSAGE;
    kv_status status = kv_checkpoint_published(r->trimming.checkpoint);
    kv_replica_checkpoint_end(r);
    for (uint32_t i = 0; mutated(r, KV_MUTATE_STATE_NOT_DURABLE) && i < r->shard_count; i++) state_log(r, &r->shards[i]);
    return status;
}
