/* test_replica_memory.c -- no memory: each allocation of a life fails once, and all that was answered OK stands.
 *
 * The linker hands every malloc, calloc and realloc of the core to the functions below (--wrap), and those of this file and
 * of the simulated disk to the C library (CMakeLists.txt). A life is a set of three that is taken over, written to, read,
 * left behind, sent a snapshot and restarted. It is lived once to count its allocations, and then again and again: with the
 * nth of them failing, alone, or with all that follow until somebody has given up. Whoever fails is ended and opened again,
 * as a driver would; in the end every counter stands where the answers say, and all replicas hold the same. */
#include "../src/replica_internal.h"
#include "check.h"
#include "kv/io_sim.h"

enum { NODES = 3, REQUESTS_MAX = 64, TRIES_MAX = 60, ROUNDS = 6, SHARDS = 2, KEY_SIZE = 5, BOTH = 3 };

/* --- memory that ends --- */

static uint64_t allocations, failing_at; /* 0: none fails */
static bool failing_on;                  /* and all that follow */
static bool counting;

static bool fails(void) {
    if (!counting) return false;
    allocations++;
    return failing_at != 0 && (allocations == failing_at || (failing_on && allocations > failing_at));
}

void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *old, size_t size);
void *__wrap_malloc(size_t size) { return fails() ? NULL : malloc(size); }
void *__wrap_calloc(size_t count, size_t size) { return fails() ? NULL : calloc(count, size); }
void *__wrap_realloc(void *old, size_t size) { return fails() ? NULL : realloc(old, size); }

/* --- the set --- */

typedef struct set {
    kv_sim *disks[NODES + 1];
    kv_replica *nodes[NODES + 1];
    bool cut[NODES + 1];
    kv_reply reply;      /* to the last ask */
    char value[16];      /* of a read */
    bool answered;
    uint64_t token, numbers; /* requests so far */
    int64_t counters[SHARDS], rows, pairs;
    uint64_t ended;      /* replicas that had to be opened again */
} set;

static char keys[SHARDS][KEY_SIZE + 1]; /* a counter for each shard */

static void keys_choose(void) {
    for (uint32_t s = 0; s < SHARDS; s++)
        for (uint32_t i = 0;; i++) {
            snprintf(keys[s], sizeof keys[s], "n%04u", i);
            if (kv_shard_of(SHARDS, (const uint8_t *)keys[s], KEY_SIZE) == s) break;
        }
}

/* A replica that finds no memory is not there, and is opened again. */
static void boot(set *s, uint16_t i) {
    kv_fault fault;
    kv_replica_options options = {.node = i, .members = {1, 2, 3}, .member_count = NODES, .shard_count = SHARDS, .keep_max = 2,
                                  .piece_tables = 1, .session_max = 8, .heartbeat_ticks = 2};
    options.store.segment_size_min = options.store.segment_size_max = 1 << 14;
    for (int tries = 0; s->nodes[i] == NULL && tries < 2; tries++) {
        kv_status status = kv_replica_open(kv_sim_io(s->disks[i]), &options, &fault, &s->nodes[i]);
        CHECK(status == KV_OK || status == KV_ENOMEM);
        failing_on = failing_on && status == KV_OK;
    }
    CHECK(s->nodes[i] != NULL);
}

static void reboot(set *s, uint16_t i) {
    kv_replica_free(s->nodes[i]);
    s->nodes[i] = NULL;
    failing_on = false; /* The memory is back. */
    s->ended++;
    boot(s, i);
}

static void answers_take(set *s, uint16_t i) {
    const kv_reply *replies;
    const uint8_t *bytes;
    size_t count;
    kv_replica_answers(s->nodes[i], &replies, &count, &bytes);
    for (size_t j = 0; j < count; j++) {
        if (replies[j].token != s->token) continue;
        CHECK(!s->answered);
        s->answered = true;
        s->reply = replies[j];
        int64_t size = replies[j].value_size;
        if (size >= 0 && size < (int64_t)sizeof s->value) memcpy(s->value, bytes + replies[j].value_at, (size_t)size);
        if (size >= 0 && size < (int64_t)sizeof s->value) s->value[size] = 0;
    }
}

static void mail_send(set *s, uint16_t i) {
    for (uint16_t j = 1; j <= NODES; j++) {
        size_t size;
        const uint8_t *out = j == i ? NULL : kv_replica_outbox(s->nodes[i], j, &size);
        if (out == NULL || s->cut[i] || s->cut[j]) continue;
        kv_status status = kv_replica_receive(s->nodes[j], i, out, size);
        CHECK(status == KV_OK);
    }
}

static void turn(set *s, uint16_t i) {
    kv_replica *r = s->nodes[i];
    kv_replica_flush(r);
    if (r->failed == KV_OK && kv_sync(s->nodes[i]->caller) >= 0) kv_replica_durable(r, kv_replica_tail(r));
    kv_replica_flush(r);
    answers_take(s, i);
    mail_send(s, i);
    kv_replica_clear(r);
    if (r->failed == KV_OK) return;
    CHECK_EQ(r->failed, KV_ENOMEM);
    reboot(s, i);
}

static void rounds(set *s, int count) {
    for (int round = 0; round < count; round++)
        for (uint16_t i = 1; i <= NODES; i++) {
            kv_replica_tick(s->nodes[i]);
            turn(s, i);
        }
}

static uint16_t owner_of(const set *s, uint32_t number) {
    for (uint16_t i = 1; i <= NODES; i++)
        if (!s->cut[i] && s->nodes[i]->shards[number].own.ballot != 0) return i;
    return 0;
}

static void takeover(set *s, uint16_t i) {
    const uint16_t all[SHARDS] = {0, 1};
    kv_replica_takeover(s->nodes[i], all, SHARDS);
    rounds(s, 2);
}

/* --- asking, until it is answered --- */

/* One request, sent again as another attempt until it is done. An answer of "no" is for what asks for one. */
static bool ask(set *s, uint32_t number, kv_ask a, int32_t wanted) {
    a.number = ++s->numbers;
    a.client = 7;
    for (a.attempt = 1; a.attempt < TRIES_MAX; a.attempt++) {
        uint16_t to = owner_of(s, number);
        if (to == 0) { /* It waits for the takeover, then. */
            to = s->cut[1] ? 2 : 1;
            kv_replica_takeover(s->nodes[to], (const uint16_t[SHARDS]){0, 1}, SHARDS);
        }
        if (a.follower && a.attempt == 1) to = to == 3 ? 2 : 3;
        a.token = ++s->token;
        s->answered = false;
        kv_replica_request(s->nodes[to], &a);
        rounds(s, ROUNDS);
        if (!s->answered) continue;
        int32_t status = s->reply.status;
        if (status == wanted) return true;
        if (status == KV_ANSWER_SEEN) a.seen = s->reply.version;
        if (status == KV_ANSWER_UNAVAILABLE) failing_on = false; /* It did without: the memory is back. */
        CHECK(status == KV_ANSWER_RETRY || status == KV_ANSWER_UNAVAILABLE || status == KV_ANSWER_SEEN);
    }
    return false;
}

static kv_ask about(uint8_t kind, const char *key) {
    return (kv_ask){.kind = kind, .key = (const uint8_t *)key, .key_size = strlen(key), .lane = 1};
}

static void count_one(set *s, uint32_t number) {
    kv_ask a = about(KV_REQUEST_INCR, keys[number]);
    a.argument = 1;
    CHECK(ask(s, number, a, KV_ANSWER_OK));
    CHECK_EQ(s->reply.number, ++s->counters[number]);
}

static void row_add(set *s) {
    kv_ask a = about(KV_REQUEST_ROW_APPEND, "");
    a.table = (const uint8_t *)"t";
    a.table_size = 1;
    a.value = (const uint8_t *)"row";
    a.value_size = 3;
    CHECK(ask(s, kv_shard_of(SHARDS, a.table, 1), a, KV_ANSWER_OK));
    s->rows++;
}

/* The same number under two names, or under neither; only if the first of them stands where it did. */
static void pair_write(set *s) {
    uint8_t number[8];
    kv_store64(number, (uint64_t)++s->pairs);
    kv_operation both[2] = {{.key = (const uint8_t *)"{p}1", .key_size = 4, .value = number, .value_size = 8},
                            {.key = (const uint8_t *)"{p}2", .key_size = 4, .value = number, .value_size = 8}};
    kv_expectation absent = {.key = (const uint8_t *)"{p}0", .key_size = 4};
    kv_ask a = {.kind = KV_REQUEST_BATCH, .operations = both, .operation_count = 2, .lane = 1, .expectations = &absent,
                .expectation_count = 1};
    CHECK(ask(s, kv_shard_of(SHARDS, (const uint8_t *)"{p}", 3), a, KV_ANSWER_OK));
}

static void counter_read(set *s, uint32_t number, bool follower) {
    kv_ask a = about(KV_REQUEST_GET, keys[number]);
    a.follower = follower;
    CHECK(ask(s, number, a, KV_ANSWER_OK));
    CHECK_EQ(strtoll(s->value, NULL, 10), s->counters[number]);
}

static void refused_write(set *s) {
    kv_ask a = about(KV_REQUEST_CAS, keys[0]);
    a.argument = 1; /* The barrier's version, so never the counter's. */
    CHECK(ask(s, 0, a, KV_ANSWER_FAILED));
}

/* --- a life --- */

static void mortal_write(set *s) {
    kv_ask a = about(KV_REQUEST_PUT, keys[1]);
    a.key = (const uint8_t *)"{p}m";
    a.key_size = 4;
    a.ttl_ms = 10;
    CHECK(ask(s, kv_shard_of(SHARDS, a.key, 4), a, KV_ANSWER_OK));
}

static void live(set *s) {
    for (uint16_t i = 1; i <= NODES; i++) boot(s, i);
    rounds(s, 2);
    takeover(s, 1);
    for (int i = 0; i < 3; i++) count_one(s, (uint32_t)i % SHARDS);
    s->cut[3] = true; /* It will need a snapshot. */
    mortal_write(s);
    for (int i = 0; i < 4; i++) pair_write(s);
    for (int i = 0; i < 6; i++) count_one(s, (uint32_t)i % SHARDS);
    row_add(s);
    s->cut[3] = false;
    rounds(s, 12);
    refused_write(s);
    counter_read(s, 0, true);
    counter_read(s, 1, false);
    for (uint16_t i = 1; i <= NODES; i++) kv_sim_set_clock(s->disks[i], 1000);
    rounds(s, 4);
    /* 1 writes what only 2 hears of; 3 takes over and finds it. */
    s->cut[3] = true;
    count_one(s, 0);
    s->cut[3] = false;
    s->cut[1] = true;
    takeover(s, 3);
    count_one(s, 0);
    s->cut[1] = false;
    rounds(s, 12);
    row_add(s);
    for (uint16_t i = 1; i <= NODES; i++) reboot(s, i);
    count_one(s, 1);
}

/* Memory is back, and everybody has heard of everything. */
static void look(set *s) {
    counting = false;
    memset(s->cut, 0, sizeof s->cut);
    rounds(s, 20);
    for (uint32_t i = 0; i < SHARDS; i++) {
        counter_read(s, i, false);
        uint64_t commit = s->nodes[1]->shards[i].commit;
        for (uint16_t j = 2; j <= NODES; j++) {
            CHECK_EQ(s->nodes[j]->shards[i].commit, commit);
            uint64_t mine = kv_replica_digest(s->nodes[1], i, commit), other = kv_replica_digest(s->nodes[j], i, commit);
            CHECK(mine == 0 || other == 0 || mine == other);
        }
    }
    for (uint16_t i = 1; i <= NODES; i++) {
        kv_caller *c = kv_replica_caller(s->nodes[i]);
        CHECK_EQ(kv_table_look(c, (const uint8_t *)"t", 1), s->rows);
        for (int both = 0; both < 2; both++) {
            CHECK_EQ(kv_get(c, (const uint8_t *)(both ? "{p}1" : "{p}2"), 4), 8);
            CHECK_EQ(kv_load64(kv_caller_answer(c)->small), s->pairs);
        }
    }
}

/* How many allocations it was; `at` 0: all of them are good. */
static uint64_t lived(uint64_t at, bool on) {
    set s = {0};
    for (uint16_t i = 1; i <= NODES; i++) {
        s.disks[i] = kv_sim_new();
        kv_sim_set_recording(s.disks[i], false);
        kv_sim_set_clock(s.disks[i], 0);
    }
    allocations = 0;
    failing_at = at;
    failing_on = on;
    counting = true;
    live(&s);
    look(&s);
    for (uint16_t i = 1; i <= NODES; i++) {
        kv_replica_free(s.nodes[i]);
        kv_sim_free(s.disks[i]);
    }
    return allocations;
}

static void each_allocation(bool on) {
    uint64_t count = lived(0, false);
    for (uint64_t at = 1; at <= count && !check_failed_here; at++) {
        lived(at, on);
        if (check_failed_here) printf("allocation %llu of %llu\n", (unsigned long long)at, (unsigned long long)count);
    }
}

TEST(each_allocation_may_fail) { each_allocation(false); }
TEST(each_allocation_may_be_the_first_to_fail) { each_allocation(true); }

int main(void) {
    keys_choose();
    RUN(each_allocation_may_fail);
    RUN(each_allocation_may_be_the_first_to_fail);
    return check_report();
}
