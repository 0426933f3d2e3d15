/* simulate.c -- the command: runs seeds, one after another, and says what it saw.
 *
 *     simulate [--n 3] [--seeds A:B] [--mutate NAME] [--each] [--stop] [-v]
 *
 * --each: a line of figures for every seed, in the order of the sums at the end. Exit code 1: a violation was found, and one line names the seed that replays it (-v shows the run). 2: usage. */
#include <stdio.h>
#include <stdlib.h>

#include "world.h"

typedef struct arguments {
    uint32_t n;
    uint64_t low, high, mutations;
    bool each, stop, verbose;
} arguments;

static const char *mutation_name(int32_t mutation) {
    if (mutation == SIM_MUTATE_LATE_FAIL) return "late_fail";
    return mutation == SIM_MUTATE_THROUGH_IGNORED ? "through_ignored" : kv_mutation_name(mutation);
}

/* Keys whose tags send them to each of the shards. */
static void tags_choose(world *w) {
    for (uint32_t s = 0; s < SHARDS; s++) {
        for (uint32_t i = 0;; i++) {
            int size = snprintf(w->tags[s], sizeof w->tags[s], "s%u", i);
            if (kv_shard_of(SHARDS, (const uint8_t *)w->tags[s], (size_t)size) == s) break;
        }
    }
}

static void state_show_all(world *w) {
    for (uint32_t i = 0; w->verbose && i < w->n; i++) {
        kv_shard_state state;
        for (uint32_t s = 0; w->nodes[i].up && s < SHARDS; s++) {
            kv_replica_shard(w->nodes[i].core, s, &state);
            trace(w, "replica %u shard %u: promised %llx base %llu applied %llu commit %llu last %llu of %llx%s%s%s", i + 1, s,
                  (unsigned long long)state.promised, (unsigned long long)state.base, (unsigned long long)state.applied,
                  (unsigned long long)state.commit, (unsigned long long)state.last, (unsigned long long)state.last_ballot,
                  state.owned ? ", owned" : "", state.taking ? ", taking" : "", state.whole ? "" : ", not whole");
        }
    }
}

static void world_finish(world *w) {
    if (w->seed % 4 == 1) /* A power cut: every owner loses all that it has not synced. */
        for (uint32_t i = 0; i < w->n; i++)
            if (node_owns(w, i, 0) || node_owns(w, i, 1)) node_crash(w, i, true);
    w->calm = true;
    w->slow_fsync = 0;
    memset(w->cut, 0, sizeof w->cut);
    for (uint32_t i = 0; i < w->n; i++)
        if (!w->nodes[i].up) node_boot(w, i);
    world_run(w, w->now + (w->policy ? 600 : 250) * UNIT);
    for (uint32_t object = 0; object < OBJECTS; object++) final_ask(w, object);
    bool done = false;
    for (int i = 0; i < 40 && !done; i++) {
        done = exchanges_done(w);
        for (uint32_t object = 0; object < OBJECTS; object++) done &= w->final_done[object];
        if (!done) world_run(w, w->now + 100 * UNIT);
    }
    if (!exchanges_done(w)) violate(w, "an exchange of members has not come to its end long after everything healed");
    if (!done) violate(w, "an object has no answer long after everything healed");
    if (w->violation[0] == 0) feeds_finish(w);
    if (w->violation[0] == 0 && w->policy) one_link(w);
}

static void world_new(world *w, const arguments *a, uint64_t seed) {
    *w = (world){.seed = seed, .random = seed * 0xD1342543DE82EF95ULL + 1, .n = a->n, .founders = a->n, .mutations = a->mutations,
                 .verbose = a->verbose};
    w->entries = malloc(ENTRIES_MAX * sizeof *w->entries);
    KV_ASSERT(w->entries != NULL);
    tags_choose(w);
    faults_choose(w);
    exchange_choose(w);
    digest_choose(w);
    for (uint32_t i = 0; i < w->n; i++) {
        w->nodes[i].disk = kv_sim_new();
        node_boot(w, i);
    }
    clients_begin(w);
    feeds_begin(w);
    world_at(w, 12 * UNIT, EVENT_NEMESIS);
    exchange_begin(w);
}

static void world_free(world *w) {
    uint64_t crashes = w->counts.crashes, owner_crashes = w->counts.owner_crashes;
    for (uint32_t i = 0; i < w->n; i++) {
        if (w->nodes[i].up) node_crash(w, i, false);
        kv_sim_free(w->nodes[i].disk);
    }
    w->counts.crashes = crashes; /* The end of the world is none. */
    w->counts.owner_crashes = owner_crashes;
    for (size_t i = 0; i < w->heap_count; i++) free(w->heap[i].bytes);
    for (uint32_t s = 0; s < SHARDS; s++) {
        free(w->chosen[s].digests);
        free(w->effects[s].at);
    }
    free(w->heap);
    free(w->entries);
}

static void seed_run(world *w, const arguments *a, uint64_t seed, kv_history_checker *checker) {
    world_new(w, a, seed);
    world_run(w, 880 * UNIT);
    if (seed % 4 == 1)
        for (uint32_t i = 0; i < w->n; i++) w->nodes[i].stuck = 1000 * UNIT;
    world_run(w, 900 * UNIT);
    if (w->violation[0] == 0) world_finish(w);
    state_show_all(w);
    if (w->violation[0] == 0) judge(w, checker);
}

static void counts_add(counts *sum, const counts *more) {
    const uint64_t *from = (const uint64_t *)more;
    uint64_t *to = (uint64_t *)sum;
    for (size_t i = 0; i < sizeof *sum / sizeof *to; i++) to[i] += from[i];
}

static void counts_show(const counts *c, uint64_t seeds) {
    static const char *const names[] = {
        "operations", "answered", "unknown", "messages", "duplicates", "crashes", "owner_crashes", "whole_set", "partitions",
        "steals", "scripts", "restarts", "undecided", "committed", "takeovers", "adoptions", "step_downs", "refusals", "cuts",
        "reconnects", "deduplicated", "evicted", "failures_recorded", "late_flows", "follower_reads", "expired", "offers",
        "snapshots", "installed", "exchanges", "configs", "outsiders", "questions", "pages", "compared", "resyncs", "waits",
        "waited", "fetched", "spoilt", "lacking", "collected", "settled", "disks_lost", "forgets"};
    const uint64_t *all = (const uint64_t *)c;
    for (size_t i = 0; i < sizeof *c / sizeof *all; i++)
        printf("%s %llu (%.1f a seed)\n", names[i], (unsigned long long)all[i], (double)all[i] / (double)seeds);
}

static void each_show(const counts *c, uint64_t seed) {
    const uint64_t *all = (const uint64_t *)c;
    printf("each %llu:", (unsigned long long)seed);
    for (size_t i = 0; i < sizeof *c / sizeof *all; i++) printf(" %llu", (unsigned long long)all[i]);
    putchar('\n');
}

static int usage(void) {
    fputs("simulate [--n 3|5] [--seeds A:B] [--mutate NAME] [--each] [--stop] [-v]\nNAME is one of", stderr);
    for (int32_t i = 0; i < SIM_MUTATION_COUNT; i++) fprintf(stderr, " %s", mutation_name(i));
    fputc('\n', stderr);
    return 2;
}

/* Digits, and `end` behind them. */
static bool take_number(const char *text, char end, uint64_t *out) {
    char *stop;
    if (*text < '0' || *text > '9') return false;
    *out = strtoull(text, &stop, 10);
    return *stop == end;
}

static bool take_seeds(arguments *a, const char *text) {
    const char *colon = strchr(text, ':');
    if (colon != NULL) return take_number(text, ':', &a->low) && take_number(colon + 1, 0, &a->high) && a->low < a->high;
    bool one = take_number(text, 0, &a->low);
    a->high = a->low + 1;
    return one;
}

static bool take_mutation(arguments *a, const char *name) {
    for (int32_t i = 0; i < SIM_MUTATION_COUNT; i++)
        if (strcmp(name, mutation_name(i)) == 0) {
            a->mutations |= (uint64_t)1 << i;
            return true;
        }
    return false;
}

static bool take_arguments(int count, char **values, arguments *a) {
    uint64_t n = a->n;
    for (int i = 1; i < count; i++) {
        const char *name = values[i], *value = i + 1 < count ? values[i + 1] : NULL;
        if (strcmp(name, "--each") == 0) a->each = true;
        else if (strcmp(name, "--stop") == 0) a->stop = true;
        else if (strcmp(name, "-v") == 0) a->verbose = true;
        else if (value == NULL) return false;
        else if (strcmp(name, "--n") == 0 && take_number(value, 0, &n)) i++;
        else if (strcmp(name, "--mutate") == 0 && take_mutation(a, value)) i++;
        else if (strcmp(name, "--seeds") == 0 && take_seeds(a, value)) i++;
        else return false;
    }
    a->n = (uint32_t)n;
    return n == 3 || n == 5;
}

int main(int count, char **values) {
    arguments a = {.n = 3, .high = 100};
    if (!take_arguments(count, values, &a)) return usage();
    kv_history_checker *checker = kv_history_checker_new(KV_HISTORY_BUDGET);
    KV_ASSERT(checker != NULL);
    static world w;
    counts sum = {0};
    uint64_t violations = 0, seeds = 0;
    for (uint64_t seed = a.low; seed < a.high; seed++) {
        seed_run(&w, &a, seed, checker);
        world_free(&w);
        counts_add(&sum, &w.counts);
        if (a.each) each_show(&w.counts, seed);
        seeds++;
        if (w.violation[0] == 0) continue;
        violations++;
        if (a.mutations == 0 || a.stop) printf("seed %llu: %s\n", (unsigned long long)seed, w.violation);
        if (a.stop) break;
    }
    printf("n %u, seeds %llu:%llu, violations %llu\n", a.n, (unsigned long long)a.low, (unsigned long long)(a.low + seeds),
           (unsigned long long)violations);
    if (a.mutations == 0) counts_show(&sum, seeds);
    kv_history_checker_free(checker);
    return violations != 0;
}
