/* test_sessions.c -- what lanes were told, against a list that is searched from end to end; and that order, buckets and
 * entries of the real one hang together all the time. */
#include "../src/sessions.h"
#include "check.h"

enum { STEPS = 6000, MODEL_MAX = 512 };

static uint64_t random_state;

static uint64_t random_next(void) {
    random_state = random_state * 6364136223846793005ULL + 1442695040888963407ULL;
    return random_state >> 33;
}

/* --- a naive twin: oldest first --- */

typedef struct told {
    kv_request request;
    uint64_t version;
} told;

typedef struct twin {
    told list[MODEL_MAX];
    uint32_t count, count_max;
    uint64_t forgotten;
} twin;

static void twin_take_out(twin *t, uint32_t at) {
    t->count--;
    memmove(&t->list[at], &t->list[at + 1], (t->count - at) * sizeof t->list[0]);
}

static const told *twin_find(const twin *t, uint64_t client, uint32_t lane) {
    for (uint32_t i = 0; i < t->count; i++)
        if (t->list[i].request.client == client && t->list[i].request.lane == lane) return &t->list[i];
    return NULL;
}

static void twin_note(twin *t, const kv_request *request, uint64_t version) {
    const told *before = twin_find(t, request->client, request->lane);
    if (before != NULL) {
        twin_take_out(t, (uint32_t)(before - t->list));
    } else if (t->count == t->count_max) {
        t->forgotten = t->list[0].version;
        twin_take_out(t, 0);
    }
    t->list[t->count++] = (told){.request = *request, .version = version};
}

/* --- both --- */

static void begin(sessions *s, twin *t, uint32_t count_max) {
    KV_ASSERT(count_max <= MODEL_MAX);
    memset(t, 0, sizeof *t);
    t->count_max = count_max;
    CHECK_EQ(sessions_new(count_max, s), KV_OK);
}

static void note(sessions *s, twin *t, uint64_t client, uint32_t lane, uint64_t version) {
    kv_request request = {.client = client, .lane = lane, .number = random_next(), .seen = 3, .attempt = 2,
                          .result = (int64_t)random_next() - 1000000, .outcome = (int16_t)-(int)(random_next() % 300)};
    sessions_note(s, &request, version);
    twin_note(t, &request, version);
}

static void check_one(const sessions *s, const twin *t, uint64_t client, uint32_t lane) {
    const session *is = sessions_find(s, client, lane);
    const told *was = twin_find(t, client, lane);
    CHECK_EQ(is != NULL, was != NULL);
    if (is == NULL || was == NULL) return;
    CHECK_EQ(is->client, client);
    CHECK_EQ(is->lane, lane);
    CHECK_EQ(is->number, was->request.number);
    CHECK_EQ(is->result, was->request.result);
    CHECK_EQ(is->outcome, was->request.outcome);
    CHECK_EQ(is->version, was->version);
}

/* In order of versions it is the twin's list. Every entry hangs in one bucket, once. */
static void check_all(const sessions *s, const twin *t) {
    uint32_t at = 0, hanging = 0;
    CHECK_EQ(s->count, t->count);
    CHECK_EQ(s->forgotten, t->forgotten);
    CHECK(s->ring_count <= s->ring_capacity);
    for (uint32_t i = 0; i < t->count; i++) {
        const session *one = sessions_next(s, &at);
        const kv_request *request = &t->list[i].request;
        CHECK(one != NULL && one == sessions_find(s, request->client, request->lane));
        check_one(s, t, request->client, request->lane);
    }
    CHECK(sessions_next(s, &at) == NULL);
    for (uint32_t i = 0; i < s->bucket_count; i++)
        for (uint32_t one = s->buckets[i]; one != 0 && hanging <= s->count; one = s->entries[one - 1].next) hanging++;
    CHECK_EQ(hanging, t->count);
}

static twin model, other_model;

/* --- promises --- */

TEST(nobody_is_remembered_at_first) {
    sessions s;
    begin(&s, &model, 4);
    check_all(&s, &model);
    CHECK(sessions_find(&s, 0, 0) == NULL);
    CHECK(sessions_find(&s, 1, 0) == NULL);
    CHECK_EQ(s.forgotten, 0);
    sessions_free(&s);
    sessions_free(&s); /* Twice is once. */
}

TEST(a_lane_is_told_its_last_request_alone) {
    sessions s;
    begin(&s, &model, 4);
    note(&s, &model, 7, 0, 1);
    note(&s, &model, 7, 1, 2);
    note(&s, &model, 7, 0, 3);
    CHECK_EQ(s.count, 2);
    CHECK_EQ(sessions_find(&s, 7, 0)->version, 3);
    CHECK_EQ(sessions_find(&s, 7, 1)->version, 2);
    CHECK(sessions_find(&s, 7, 2) == NULL);
    CHECK(sessions_find(&s, 8, 0) == NULL);
    check_all(&s, &model);
    sessions_free(&s);
}

TEST(the_lowest_version_goes_first) {
    sessions s;
    begin(&s, &model, 3);
    note(&s, &model, 1, 0, 10);
    note(&s, &model, 2, 0, 11);
    note(&s, &model, 3, 0, 12);
    CHECK_EQ(s.forgotten, 0); /* Full, and nothing has gone. */
    note(&s, &model, 1, 0, 13); /* So the lowest is client 2's. */
    CHECK_EQ(s.forgotten, 0);
    note(&s, &model, 4, 0, 14);
    CHECK_EQ(s.forgotten, 11);
    CHECK(sessions_find(&s, 2, 0) == NULL);
    note(&s, &model, 5, 0, 15);
    CHECK_EQ(s.forgotten, 12);
    CHECK(sessions_find(&s, 3, 0) == NULL);
    CHECK_EQ(sessions_find(&s, 1, 0)->version, 13);
    check_all(&s, &model);
    sessions_free(&s);
}

TEST(a_lane_that_went_may_come_again) {
    sessions s;
    begin(&s, &model, 2);
    for (uint64_t version = 1; version < 200; version++) {
        note(&s, &model, version % 3, 0, version); /* Each of the three comes again just after it went. */
        CHECK_EQ(s.forgotten, version < 3 ? 0 : version - 2);
        check_all(&s, &model);
    }
    sessions_free(&s);
}

TEST(a_table_of_one) {
    sessions s;
    begin(&s, &model, 1);
    for (uint64_t version = 1; version < 50; version++) {
        note(&s, &model, version / 3, (uint32_t)version & 1, version);
        check_all(&s, &model);
    }
    sessions_free(&s);
}

/* The bucket that a lane hangs in, seen on a table that has nobody else. */
static uint32_t bucket_of(uint32_t count_max, uint64_t client, uint32_t lane) {
    sessions s;
    uint32_t bucket = 0;
    begin(&s, &other_model, count_max);
    note(&s, &other_model, client, lane, 1);
    while (s.buckets[bucket] == 0) bucket++;
    sessions_free(&s);
    return bucket;
}

/* In one chain, entries leave from its end, its middle and its front, because a lane that is heard of again becomes the
 * youngest and stays where it is in the chain. */
TEST(a_chain_stays_whole_wherever_it_is_cut) {
    enum { LANES = 24, SIZE = 16 };
    uint32_t lanes[LANES], count = 0;
    sessions s;
    for (uint32_t lane = 0; count < LANES; lane++)
        if (bucket_of(SIZE, 5, lane) == 3) lanes[count++] = lane;
    begin(&s, &model, SIZE);
    random_state = 99;
    for (uint64_t version = 1; version <= STEPS; version++) {
        note(&s, &model, 5, lanes[random_next() % LANES], version);
        if (version % 7 == 0) check_all(&s, &model);
        check_one(&s, &model, 5, lanes[random_next() % LANES]);
    }
    check_all(&s, &model);
    CHECK(s.buckets[3] != 0);
    sessions_free(&s);
}

/* The same few lanes over and over: what is stale in the order makes room for what is not. */
TEST(the_order_takes_no_more_room_for_lanes_that_never_rest) {
    sessions s;
    begin(&s, &model, 8);
    note(&s, &model, 1, 0, 1); /* One that is told nothing any more, and stays the first to go. */
    for (uint64_t version = 2; version < 3000; version++) {
        note(&s, &model, 2 + version % 3, 0, version);
        if (version % 5 == 0) check_all(&s, &model);
    }
    CHECK_EQ(s.forgotten, 0);
    for (uint64_t i = 0; i < 5; i++) note(&s, &model, 100 + i, 0, 3000 + i);
    CHECK_EQ(s.forgotten, 1);
    check_all(&s, &model);
    sessions_free(&s);
}

/* As one that came with a snapshot: more was forgotten than is remembered here. */
TEST(what_is_forgotten_is_not_remembered_again) {
    sessions s;
    begin(&s, &model, 1);
    s.forgotten = model.forgotten = 50;
    note(&s, &model, 1, 0, 10);
    kv_request request = {.client = 2};
    sessions_note(&s, &request, 11);
    CHECK_EQ(s.forgotten, 50);
    sessions_free(&s);
}

TEST(cleared_it_is_as_new) {
    sessions s;
    begin(&s, &model, 3);
    for (uint64_t version = 1; version < 100; version++) note(&s, &model, version % 7, 0, version);
    sessions_clear(&s);
    model.count = 0;
    model.forgotten = 0;
    check_all(&s, &model);
    CHECK(sessions_find(&s, 1, 0) == NULL);
    for (uint64_t version = 5; version < 100; version++) {
        note(&s, &model, version % 5, 0, version);
        check_all(&s, &model);
    }
    sessions_free(&s);
}

TEST(any_life_is_that_of_the_list) {
    for (uint64_t seed = 1; seed <= 24; seed++) {
        sessions s;
        uint32_t count_max = (uint32_t[]){1, 2, 3, 7, 8, 64, 100, 500}[seed % 8], clients = count_max / 2 + 2;
        uint64_t version = 0;
        random_state = seed;
        begin(&s, &model, count_max);
        for (int i = 0; i < STEPS; i++) {
            version += 1 + random_next() % 3; /* Not every record has a request. */
            note(&s, &model, 1 + random_next() % clients, (uint32_t)random_next() % 4, version);
            check_one(&s, &model, 1 + random_next() % clients, (uint32_t)random_next() % 4);
            if (i % 61 == 0) check_all(&s, &model);
        }
        check_all(&s, &model);
        sessions_free(&s);
        if (check_failed_here) printf("seed %llu\n", (unsigned long long)seed);
    }
}

/* As a snapshot has them: in order, and then what was forgotten. */
static void copy_in_order(const sessions *from, sessions *to) {
    const session *next;
    for (uint32_t at = 0; (next = sessions_next(from, &at)) != NULL;) {
        kv_request request = {.client = next->client, .lane = next->lane, .number = next->number, .result = next->result,
                              .outcome = next->outcome};
        sessions_note(to, &request, next->version);
    }
    to->forgotten = from->forgotten;
}

/* Replicas that apply the same records agree on who is remembered, wherever each began to copy. */
TEST(the_same_records_make_the_same_table) {
    sessions one, two;
    begin(&one, &model, 10);
    CHECK_EQ(sessions_new(10, &two), KV_OK);
    random_state = 5;
    for (uint64_t version = 1; version <= 2000; version++) {
        kv_request request = {.client = random_next() % 25, .number = version, .result = (int64_t)version};
        sessions_note(&one, &request, version);
        twin_note(&model, &request, version);
        if (version == 1000) copy_in_order(&one, &two);
        if (version > 1000) sessions_note(&two, &request, version);
    }
    check_all(&one, &model);
    check_all(&two, &model);
    sessions_free(&one);
    sessions_free(&two);
}

int main(void) {
    RUN(nobody_is_remembered_at_first);
    RUN(a_lane_is_told_its_last_request_alone);
    RUN(the_lowest_version_goes_first);
    RUN(a_lane_that_went_may_come_again);
    RUN(a_table_of_one);
    RUN(a_chain_stays_whole_wherever_it_is_cut);
    RUN(the_order_takes_no_more_room_for_lanes_that_never_rest);
    RUN(what_is_forgotten_is_not_remembered_again);
    RUN(cleared_it_is_as_new);
    RUN(any_life_is_that_of_the_list);
    RUN(the_same_records_make_the_same_table);
    return check_report();
}
