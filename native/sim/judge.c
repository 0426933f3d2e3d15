/* judge.c -- that replicas apply the same, and that what clients saw is linearizable. See world.h. */
#include <stdio.h>
#include <stdlib.h>

#include "world.h"

/* What is applied at a version is the same at every replica, in every life. */
static void compare(world *w, uint32_t i, uint32_t shard, uint64_t version) {
    uint64_t digest = kv_replica_digest(w->nodes[i].core, shard, version);
    if (digest == 0) return; /* Let go of. */
    if (version >= w->chosen[shard].capacity) {
        size_t capacity = w->chosen[shard].capacity == 0 ? 256 : 2 * w->chosen[shard].capacity;
        uint64_t *larger = realloc(w->chosen[shard].digests, capacity * sizeof *larger);
        KV_ASSERT(larger != NULL);
        memset(larger + w->chosen[shard].capacity, 0, (capacity - w->chosen[shard].capacity) * sizeof *larger);
        w->chosen[shard].digests = larger;
        w->chosen[shard].capacity = capacity;
    }
    uint64_t *chosen = &w->chosen[shard].digests[version];
    if (*chosen == 0) {
        *chosen = digest;
        feed_note(w, i, shard, version);
        config_judge(w, i, shard, version);
        version_noted(w, i, shard, version);
    }
    if (*chosen != digest)
        violate(w, "two records at version %llu of shard %u, the second at replica %u", (unsigned long long)version, shard, i + 1);
}

void agree(world *w, uint32_t i) {
    node *x = &w->nodes[i];
    for (uint32_t s = 0; s < SHARDS; s++) {
        kv_shard_state state;
        kv_replica_shard(x->core, s, &state);
        for (uint64_t version = x->seen[s] + 1; version <= state.applied; version++) compare(w, i, s, version);
        x->seen[s] = state.applied;
        members_judge(w, i, s, &state);
    }
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
    for (uint32_t s = 0; s < SHARDS; s++)
        for (uint32_t i = 0; i < w->n; i++) {
            bool should = (wanted >> i & 1) && kv_owner_rank(members, count, s, (uint16_t)(i + 1)) == 0;
            if (node_owns(w, i, s) != should) violate(w, "long after everything healed replica %u owns shard %u: %d", i + 1, s, !should);
        }
}

void judge(world *w, kv_history_checker *checker) {
    exchanges_judge(w);
    if (w->policy && w->lost == NODES_MAX) owners_judge(w); /* Who lost his disk owns nothing. */
    digest_judge(w);
    kv_history_op *ops = malloc((w->entry_count + 1) * sizeof *ops);
    KV_ASSERT(ops != NULL);
    for (uint32_t object = 0; object < OBJECTS; object++) object_judge(w, checker, object, ops);
    free(ops);
}
