/* test_lanes.c -- undecided requests of lanes, against a list that is searched from end to end. */
#include "../src/lanes.h"
#include "check.h"

enum { STEPS = 20000, LANES_MAX = 400, SHARDS = 3, CLIENTS = 12, LANES_OF = 4 };

typedef struct noted {
    kv_request request;
    uint64_t version;
    uint16_t shard;
} noted;

typedef struct twin {
    noted list[LANES_MAX];
    uint32_t count;
} twin;

static uint64_t random_state;

static uint64_t random_next(void) {
    random_state = random_state * 6364136223846793005ULL + 1442695040888963407ULL;
    return random_state >> 33;
}

static noted *twin_find(twin *t, uint16_t shard, uint64_t client, uint32_t lane) {
    for (uint32_t i = 0; i < t->count; i++) {
        noted *one = &t->list[i];
        if (one->shard == shard && one->request.client == client && one->request.lane == lane) return one;
    }
    return NULL;
}

static noted random_lane(uint64_t version) {
    return (noted){.shard = (uint16_t)(random_next() % SHARDS), .version = version,
                   .request = {.client = 1 + random_next() % CLIENTS, .lane = (uint32_t)(random_next() % LANES_OF),
                               .number = random_next(), .result = (int64_t)random_next() - 1000000,
                               .outcome = (int16_t)-(int)(random_next() % 300)}};
}

static void check_all(const lane_table *l, twin *t) {
    CHECK_EQ(l->count, t->count);
    CHECK(2 * l->count <= l->capacity);
    for (uint16_t shard = 0; shard < SHARDS; shard++)
        for (uint64_t client = 1; client <= CLIENTS; client++)
            for (uint32_t lane = 0; lane < LANES_OF; lane++) {
                const session *is = lanes_find(l, shard, client, lane);
                const noted *was = twin_find(t, shard, client, lane);
                CHECK_EQ(is != NULL, was != NULL);
                if (is == NULL || was == NULL) continue;
                CHECK_EQ(is->version, was->version);
                CHECK_EQ(is->number, was->request.number);
                CHECK_EQ(is->result, was->request.result);
                CHECK_EQ(is->outcome, was->request.outcome);
            }
}

TEST(nobody_is_under_way_at_first) {
    lane_table l = {0};
    kv_request request = {.client = 1};
    CHECK(lanes_find(&l, 0, 1, 0) == NULL);
    lanes_forget(&l, 0, &request, 1);
    lanes_free(&l);
}

TEST(what_is_decided_goes_and_what_is_newer_stays) {
    lane_table l = {0};
    kv_request request = {.client = 7, .lane = 2, .number = 1};
    CHECK_EQ(lanes_note(&l, 1, &request, 10), KV_OK);
    CHECK(lanes_find(&l, 0, 7, 2) == NULL); /* Each shard has lanes of its own. */
    CHECK(lanes_find(&l, 1, 7, 1) == NULL);
    request.number = 2;
    CHECK_EQ(lanes_note(&l, 1, &request, 11), KV_OK);
    CHECK_EQ(l.count, 1);
    lanes_forget(&l, 1, &request, 10);
    CHECK_EQ(lanes_find(&l, 1, 7, 2)->number, 2);
    lanes_forget(&l, 1, &request, 11);
    CHECK(lanes_find(&l, 1, 7, 2) == NULL);
    CHECK_EQ(l.count, 0);
    lanes_free(&l);
}

static twin model;

TEST(any_life_is_that_of_the_twin) {
    lane_table l = {0};
    model.count = 0;
    for (uint64_t version = 1; version <= STEPS; version++) {
        noted next = random_lane(version), *was = twin_find(&model, next.shard, next.request.client, next.request.lane);
        bool decides = random_next() % 100 < (version / 2000 % 2 == 0 ? 30u : 70u); /* It grows, and shrinks. */
        if (!decides) {
            CHECK_EQ(lanes_note(&l, next.shard, &next.request, version), KV_OK);
            if (was == NULL) was = &model.list[model.count++];
            *was = next;
        } else if (was != NULL) {
            bool old = random_next() % 4 == 0;
            lanes_forget(&l, was->shard, &was->request, was->version - old);
            if (!old) *was = model.list[--model.count];
        }
        if (version % 50 == 0) check_all(&l, &model);
    }
    lanes_free(&l);
    lanes_free(&l); /* Twice is once. */
}

int main(void) {
    RUN(nobody_is_under_way_at_first);
    RUN(what_is_decided_goes_and_what_is_newer_stays);
    RUN(any_life_is_that_of_the_twin);
    return check_report();
}
