/* judge.c -- that replicas apply the same, and that what clients saw is linearizable. See world.h. */
#include <stdio.h>
#include <stdlib.h>

#include "world.h"

/* false: somebody had something else at that version. 0: nothing is known here. */
static bool same_as_ever(by_version *all, uint64_t version, uint64_t digest) {
    if (digest == 0) return true;
    if (version >= all->capacity) {
        size_t capacity = all->capacity == 0 ? 256 : all->capacity;
        while (capacity <= version) capacity *= 2;
        uint64_t *larger = realloc(all->digests, capacity * sizeof *larger);
        KV_ASSERT(larger != NULL);
        memset(larger + all->capacity, 0, (capacity - all->capacity) * sizeof *larger);
        all->digests = larger;
        all->capacity = capacity;
    }
    if (all->digests[version] == 0) all->digests[version] = digest;
    return all->digests[version] == digest;
}

/* What is applied at a version is the same at every replica, in every life; what was let go of cannot be asked any more. */
static void compare(world *w, uint32_t i, uint32_t shard, uint64_t version) {
    by_version *chosen = &w->chosen[shard];
    bool known = version < chosen->capacity && chosen->digests[version] != 0;
    uint64_t digest = kv_replica_digest(w->nodes[i].core, shard, version);
    if (digest != 0 && !known) {
        feed_note(w, i, shard, version);
        config_judge(w, i, shard, version);
        version_noted(w, i, shard, version);
    }
    if (!same_as_ever(chosen, version, digest))
        violate(w, "two records at version %llu of shard %u, the second at replica %u", (unsigned long long)version, shard, i + 1);
}

void agree(world *w, uint32_t i) {
    node *x = &w->nodes[i];
    if (!space_goes_on(x->core)) violate(w, "replica %u has given up", i + 1);
    for (uint32_t s = 0; s < SHARDS; s++) {
        kv_shard_state state;
        kv_replica_shard(x->core, s, &state);
        for (uint64_t version = x->seen[s] + 1; version <= state.applied; version++) compare(w, i, s, version);
        if (x->seen[s] != state.applied || x->fresh) {
            if (!same_as_ever(&w->told[s], state.applied, space_lanes(x->core, s)))
                violate(w, "other lanes than elsewhere at version %llu of shard %u, at replica %u",
                        (unsigned long long)state.applied, s, i + 1);
        }
        x->seen[s] = state.applied;
        members_judge(w, i, s, &state);
    }
    x->fresh = false;
}

static void object_judge(world *w, kv_history_checker *checker, uint32_t object, kv_history_op *ops) {
    kv_history_verdict verdict;
    size_t count = 0;
    for (size_t i = 0; i < w->entry_count; i++)
        if (w->entries[i].object == object) ops[count++] = w->entries[i].op;
    kv_history_judge(checker, ops, count, &verdict);
    if (verdict.finding == KV_HISTORY_GOOD) return;
    if (verdict.finding == KV_HISTORY_TOO_LONG || verdict.finding == KV_HISTORY_TOO_HARD) {
        w->counts.undecided++;
        return;
    }
    char key[16];
    object_key(w, object / OBJECT_KINDS, (enum object)(object % OBJECT_KINDS), key);
    violate(w, "%s: %s", key, kv_history_finding_name(verdict.finding));
    if (!w->verbose) return;
    size_t size = kv_history_show(ops, count, verdict.until, NULL, 0) + 1;
    char *text = malloc(size);
    KV_ASSERT(text != NULL);
    kv_history_show(ops, count, verdict.until, text, size);
    fputs(text, stdout);
    free(text);
}

/* Once everything has healed, each shard is with the replica that should have it, and with that one alone. */
static void owners_judge(world *w) {
    uint16_t members[NODES_MAX];
    uint32_t count = 0, wanted = members_wanted(w);
    for (uint32_t i = 0; i < w->n; i++)
        if (wanted >> i & 1) members[count++] = (uint16_t)(i + 1);
    for (uint32_t s = 0; s < SHARDS; s++) {
        bool gone = false;
        for (uint32_t i = 0; i < count; i++)
            gone |= w->nodes[members[i] - 1].gone && kv_owner_rank(members, count, s, members[i]) == 0;
        for (uint32_t i = 0; i < w->n; i++) {
            if (gone) continue; /* Any of the others may have it. */
            bool should = (wanted >> i & 1) && kv_owner_rank(members, count, s, (uint16_t)(i + 1)) == 0;
            if (node_owns(w, i, s) != should) violate(w, "long after everything healed replica %u owns shard %u: %d", i + 1, s, !should);
        }
    }
}

void judge(world *w, kv_history_checker *checker) {
    exchanges_judge(w);
    if (w->policy) owners_judge(w);
    digest_judge(w);
    for (uint32_t i = 0; i < w->n; i++)
        if (w->nodes[i].must_end) violate(w, "the disk of replica %u was set back, and nobody found out", i + 1);
    kv_history_op *ops = malloc((w->entry_count + 1) * sizeof *ops);
    KV_ASSERT(ops != NULL);
    for (uint32_t object = 0; object < OBJECTS; object++) object_judge(w, checker, object, ops);
    free(ops);
}
