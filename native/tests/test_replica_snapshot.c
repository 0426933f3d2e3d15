/* test_replica_snapshot.c -- a shard comes in pieces while its owner goes on: what arrives is of one moment in the end, is not
 * read before, and survives crashes of the one it comes to. */
#include "check.h"
#include "kv/io_sim.h"
#include "kv/replica.h"

enum { NODES = 3, KEYS = 3000, BATCH = 100, CUT_OFF = 3, WRITE = 1, READ = 2 };

typedef struct set {
    kv_sim *disks[NODES + 1];
    kv_replica *nodes[NODES + 1];
    uint64_t mutations;
    bool cut;           /* CUT_OFF hears nothing, and is not heard */
    uint32_t written;     /* batches that were answered */
    uint32_t read, unavailable;
    uint32_t segment_size;
    size_t largest;       /* message */
} set;

static void boot(set *s, uint16_t i) {
    kv_fault fault;
    kv_replica_options options = {.node = i, .members = {1, 2, 3}, .member_count = NODES, .shard_count = 1, .keep_max = 16,
                                  .piece_tables = 1, .window_size_max = 1, .mutations = s->mutations,
                                  .inline_max = KV_INLINE_SIZE_MAX};
    options.store.segment_size_min = options.store.segment_size_max = s->segment_size;
    kv_sim_set_recording(s->disks[i], false);
    CHECK_EQ(kv_replica_open(kv_sim_io(s->disks[i]), &options, &fault, &s->nodes[i]), KV_OK);
}

static set set_new(uint64_t mutations) {
    set s = {.mutations = mutations, .segment_size = 1 << 18};
    for (uint16_t i = 1; i <= NODES; i++) {
        s.disks[i] = kv_sim_new();
        boot(&s, i);
    }
    return s;
}

static void set_free(set *s) {
    for (uint16_t i = 1; i <= NODES; i++) {
        kv_replica_free(s->nodes[i]);
        kv_sim_free(s->disks[i]);
    }
}

/* Everything that lies ready goes to where it belongs, and every disk is as fast as can be. true: something moved. */
static bool round_of(set *s) {
    bool moved = false;
    for (uint16_t i = 1; i <= NODES; i++) {
        const kv_reply *replies;
        const uint8_t *bytes;
        size_t count, size;
        kv_replica_flush(s->nodes[i]);
        CHECK(kv_sync(kv_replica_caller(s->nodes[i])) >= 0);
        kv_replica_durable(s->nodes[i], kv_replica_tail(s->nodes[i]));
        kv_replica_flush(s->nodes[i]);
        kv_replica_answers(s->nodes[i], &replies, &count, &bytes);
        for (size_t j = 0; j < count; j++) {
            s->written += replies[j].token == WRITE && replies[j].status == KV_ANSWER_OK;
            s->read += replies[j].token == READ && replies[j].status == KV_ANSWER_OK;
            s->unavailable += replies[j].token == READ && replies[j].status == KV_ANSWER_UNAVAILABLE;
        }
        for (uint16_t j = 1; j <= NODES; j++) {
            const uint8_t *out = j == i ? NULL : kv_replica_outbox(s->nodes[i], j, &size);
            if (out == NULL || (s->cut && (i == CUT_OFF || j == CUT_OFF))) continue;
            CHECK_EQ(kv_replica_receive(s->nodes[j], i, out, size), KV_OK);
            for (size_t at = 0; at < size; at += kv_load32(out + at) + 4)
                if (kv_load32(out + at) > s->largest) s->largest = kv_load32(out + at);
            moved = true;
        }
        kv_replica_clear(s->nodes[i]);
    }
    return moved;
}

static void ticks(set *s, int count) {
    for (int i = 0; i < count; i++) {
        for (uint16_t j = 1; j <= NODES; j++) kv_replica_tick(s->nodes[j]);
        round_of(s);
    }
}

/* Keys from `from` on, a batch of them; `deleted`: their end. */
static void write_batch(set *s, uint32_t from, uint32_t generation, bool deleted) {
    char keys[BATCH][16], values[BATCH][24];
    kv_operation operations[BATCH] = {0};
    for (uint32_t i = 0; i < BATCH; i++) {
        operations[i].key = (const uint8_t *)keys[i];
        operations[i].key_size = (uint32_t)snprintf(keys[i], sizeof keys[i], "{t}%u", from + i);
        if (deleted) continue;
        operations[i].value = (const uint8_t *)values[i];
        operations[i].value_size = (uint32_t)snprintf(values[i], sizeof values[i], "%u of %u", from + i, generation);
    }
    kv_ask ask = {.kind = KV_REQUEST_BATCH, .attempt = 1, .operations = operations, .operation_count = BATCH,
                  .token = WRITE};
    kv_replica_request(s->nodes[1], &ask);
}

static kv_shard_state state_of(const set *s, uint16_t i) {
    kv_shard_state state;
    kv_replica_shard(s->nodes[i], 0, &state);
    return state;
}

/* 1 owns a shard of KEYS keys, and 3, which has none of them, needs records that are let go of. */
static void begin(set *s) {
    const uint16_t shard = 0;
    ticks(s, 2);
    s->cut = true;
    kv_replica_takeover(s->nodes[1], &shard, 1);
    ticks(s, 4);
    for (uint32_t at = 0; at < KEYS; at += BATCH) {
        write_batch(s, at, 0, false);
        ticks(s, 1);
    }
    ticks(s, 10);
    CHECK_EQ(s->written, KEYS / BATCH);
    CHECK(state_of(s, 1).base > 0);
    CHECK_EQ(state_of(s, CUT_OFF).last, 0);
    s->cut = false;
}

/* While pieces arrive the owner overwrites, deletes and adds, all over the index. */
static void go_on(set *s, uint32_t step) {
    write_batch(s, step * 700 % KEYS / BATCH * BATCH, step, false);
    write_batch(s, (step * 700 + 300) % KEYS / BATCH * BATCH, step, true);
    write_batch(s, KEYS + step % 5 * BATCH, step, false);
}

static void stale_read(set *s) {
    kv_ask ask = {.kind = KV_REQUEST_GET, .stale = true, .attempt = 1, .key = (const uint8_t *)"{t}1", .key_size = 4,
                  .token = READ};
    s->read = s->unavailable = 0;
    kv_replica_request(s->nodes[CUT_OFF], &ask);
    round_of(s);
}

/* Until the first piece has come. */
static void first_piece(set *s) {
    for (int i = 0; i < 50 && state_of(s, CUT_OFF).whole; i++) ticks(s, 1);
    CHECK(!state_of(s, CUT_OFF).whole);
}

/* Until 3 has all pieces. *between: how many steps it was without a whole state. */
static void follow(set *s, uint32_t *between) {
    *between = 0;
    for (uint32_t step = 1; step < 200; step++) {
        go_on(s, step);
        ticks(s, 1);
        if (state_of(s, CUT_OFF).whole && state_of(s, CUT_OFF).applied > 0) return;
        ++*between;
    }
    CHECK(false);
}

static void compare(set *s) {
    kv_caller *mine = kv_replica_caller(s->nodes[1]), *theirs = kv_replica_caller(s->nodes[CUT_OFF]);
    ticks(s, 30);
    CHECK_EQ(state_of(s, CUT_OFF).applied, state_of(s, 1).applied);
    CHECK_EQ(kv_count(theirs), kv_count(mine));
    uint32_t there = 0;
    for (uint32_t i = 0; i < KEYS + 5 * BATCH; i++) {
        char key[16];
        size_t size = (size_t)snprintf(key, sizeof key, "{t}%u", i);
        kv_result left = kv_get(mine, (const uint8_t *)key, size), right = kv_get(theirs, (const uint8_t *)key, size);
        CHECK_EQ(right, left);
        if (left < 0 || right != left) continue;
        there++;
        CHECK(memcmp(kv_caller_answer(mine)->small, kv_caller_answer(theirs)->small, (size_t)left) == 0);
        CHECK_EQ(kv_caller_answer(theirs)->version, kv_caller_answer(mine)->version);
    }
    CHECK(there > KEYS / 3);
}

static void restart(set *s, uint16_t i) {
    kv_sim *left = kv_sim_clone(s->disks[i]);
    kv_replica_free(s->nodes[i]);
    kv_sim_free(s->disks[i]);
    s->disks[i] = left;
    boot(s, i);
}

TEST(what_comes_in_pieces_is_of_one_moment_in_the_end) {
    set s = set_new(0);
    uint32_t between;
    begin(&s);
    follow(&s, &between);
    CHECK(between > 3); /* Or the owner had no time to go on. */
    compare(&s);
    restart(&s, CUT_OFF);
    compare(&s);
    CHECK(kv_replica_count(s.nodes[1])->snapshots > 0);
    set_free(&s);
}

TEST(it_is_not_read_before) {
    set s = set_new(0);
    uint32_t between;
    begin(&s);
    go_on(&s, 1);
    first_piece(&s);
    stale_read(&s);
    CHECK_EQ(s.read, 0);
    CHECK_EQ(s.unavailable, 1);
    follow(&s, &between);
    stale_read(&s);
    CHECK_EQ(s.unavailable, 0);
    CHECK_EQ(s.read, 1);
    set_free(&s);
}

TEST(the_rule_that_it_is_not_read_before_can_be_left_out) {
    set s = set_new((uint64_t)1 << KV_MUTATE_SNAPSHOT_READ_EARLY);
    begin(&s);
    first_piece(&s);
    stale_read(&s);
    CHECK_EQ(s.read, 1);
    set_free(&s);
}

TEST(a_crash_amid_the_pieces_leaves_no_state_and_another_snapshot_comes) {
    set s = set_new(0);
    uint32_t between;
    begin(&s);
    go_on(&s, 1);
    first_piece(&s);
    restart(&s, CUT_OFF);
    CHECK(!state_of(&s, CUT_OFF).whole);
    follow(&s, &between);
    compare(&s);
    CHECK(kv_replica_count(s.nodes[CUT_OFF])->installed > 0);
    set_free(&s);
}

TEST(a_second_absence_is_answered_by_a_second_snapshot) {
    set s = set_new(0);
    uint32_t between;
    begin(&s);
    follow(&s, &between);
    s.cut = true;
    for (uint32_t step = 200; step < 260; step++) {
        go_on(&s, step);
        ticks(&s, 1);
    }
    s.cut = false;
    follow(&s, &between);
    compare(&s);
    CHECK(kv_replica_count(s.nodes[CUT_OFF])->installed > 1);
    set_free(&s);
}

/* Of a shard whose index is one table: 6 MiB in as many pieces as it takes. */
TEST(a_piece_ends_where_a_message_is_full) {
    enum { LARGE = 96, SIZE = 1 << 16 };
    const uint16_t shard = 0;
    static uint8_t value[SIZE];
    set s = set_new(0);
    for (uint16_t i = 1; i <= NODES; i++) {
        kv_replica_free(s.nodes[i]);
        kv_sim_free(s.disks[i]);
        s.disks[i] = kv_sim_new();
        s.segment_size = 1 << 22;
        boot(&s, i);
    }
    ticks(&s, 2);
    s.cut = true;
    kv_replica_takeover(s.nodes[1], &shard, 1);
    ticks(&s, 4);
    for (uint32_t i = 0; i < LARGE; i++) {
        char key[16];
        kv_ask ask = {.kind = KV_REQUEST_PUT, .attempt = 1, .key = (const uint8_t *)key, .value = value, .value_size = SIZE, .token = WRITE};
        ask.key_size = (size_t)snprintf(key, sizeof key, "{t}%u", i);
        memset(value, (int)i, sizeof value);
        kv_replica_request(s.nodes[1], &ask);
        ticks(&s, 1);
    }
    ticks(&s, 10);
    s.cut = false;
    s.largest = 0;
    for (int i = 0; i < 200 && (state_of(&s, CUT_OFF).applied == 0 || !state_of(&s, CUT_OFF).whole); i++) ticks(&s, 1);
    CHECK_EQ(kv_replica_count(s.nodes[CUT_OFF])->installed, 1);
    CHECK(s.largest > 1 << 20);
    CHECK(s.largest < (1 << 20) + 2 * SIZE);
    for (uint32_t i = 0; i < LARGE; i++) {
        char key[16];
        size_t size = (size_t)snprintf(key, sizeof key, "{t}%u", i);
        kv_caller *c = kv_replica_caller(s.nodes[CUT_OFF]);
        CHECK_EQ(kv_get(c, (const uint8_t *)key, size), SIZE);
        const kv_answer *answer = kv_caller_answer(c);
        const uint8_t *bytes = answer->small;
        if (SIZE > (int)KV_SMALL_SIZE) bytes = answer->large;
        CHECK_EQ(bytes[7], (uint8_t)i);
    }
    set_free(&s);
}

int main(void) {
    RUN(what_comes_in_pieces_is_of_one_moment_in_the_end);
    RUN(it_is_not_read_before);
    RUN(the_rule_that_it_is_not_read_before_can_be_left_out);
    RUN(a_crash_amid_the_pieces_leaves_no_state_and_another_snapshot_comes);
    RUN(a_piece_ends_where_a_message_is_full);
    RUN(a_second_absence_is_answered_by_a_second_snapshot);
    return check_report();
}
