/* test_version_log.c -- the ring of a shard's version records against an array that never forgets anything. */
#include "../src/version_log.h"
#include "check.h"

enum { STEPS = 20000, MODEL_MAX = 4 * STEPS + 64 };

static uint64_t random_state;

static uint64_t random_next(void) {
    random_state = random_state * 6364136223846793005ULL + 1442695040888963407ULL;
    return random_state >> 33;
}

/* --- a naive twin: the entry of version v is model[v] --- */

static version_entry model[MODEL_MAX];
static uint64_t model_base, model_last, model_made;

static version_entry entry_new(void) {
    uint64_t n = ++model_made;
    return (version_entry){.ballot = n * 65537, .position = {.segment = (uint32_t)(n >> 8) + 1, .offset = (uint32_t)n * 4},
                           .size = (uint32_t)n % 999 + 32, .record_count = ((uint32_t)n % 7 + 1) & INT32_MAX};
}

static void begin(version_log *log) {
    *log = (version_log){0};
    model_base = model_last = model_made = 0;
    model[0] = (version_entry){0};
}

static void push(version_log *log) {
    version_entry entry = entry_new();
    CHECK_EQ(log_push(log, &entry), KV_OK);
    model[++model_last] = entry;
}

static void push_many(version_log *log, uint64_t count) {
    while (count-- > 0) push(log);
}

static void cut(version_log *log, uint64_t last) {
    log_cut(log, last);
    if (last < model_last) model_last = last;
}

static void let_go(version_log *log, uint64_t base) {
    log_let_go(log, base);
    if (base > model_base) model_base = base;
}

static bool entry_same(const version_entry *a, const version_entry *b) {
    return a->ballot == b->ballot && a->position.segment == b->position.segment && a->position.offset == b->position.offset &&
           a->size == b->size && a->record_count == b->record_count;
}

static void check_version(const version_log *log, uint64_t version) {
    uint64_t ballot = 77;
    bool known = version >= model_base && version <= model_last;
    CHECK_EQ(log_ballot_at(log, version, &ballot), known);
    CHECK_EQ(ballot, known ? model[version].ballot : 77);
    if (version > model_base && version <= model_last) CHECK(entry_same(log_at(log, version), &model[version]));
}

static void check_ends(const version_log *log) {
    CHECK_EQ(log->base, model_base);
    CHECK_EQ(log_last(log), model_last);
    CHECK_EQ(log_last_ballot(log), model[model_last].ballot);
    CHECK(log->count <= log->capacity);
    check_version(log, model_last + 1);
    check_version(log, UINT64_MAX);
    if (model_base != 0) check_version(log, model_base - 1);
}

static void check_all(const version_log *log) {
    check_ends(log);
    for (uint64_t version = model_base; version <= model_last; version++) check_version(log, version);
}

/* --- promises --- */

TEST(nothing_was_ever_pushed) {
    version_log log;
    begin(&log);
    check_all(&log);
    CHECK_EQ(log_last_ballot(&log), 0);
    log_cut(&log, 0);
    log_cut(&log, 9);
    log_let_go(&log, 0);
    check_all(&log);
    log_free(&log);
}

TEST(versions_are_dense_from_1) {
    version_log log;
    begin(&log);
    for (uint64_t version = 1; version <= 100; version++) {
        push(&log);
        CHECK_EQ(log_last(&log), version);
        check_all(&log);
    }
    log_free(&log);
}

TEST(it_grows_while_it_is_wrapped_round) {
    for (uint64_t gone = 1; gone <= 16; gone++) { /* The first room is for 16: every place for the seam. */
        version_log log;
        begin(&log);
        push_many(&log, 16);
        let_go(&log, gone);
        push_many(&log, gone);
        CHECK_EQ(log.capacity, 16);
        CHECK_EQ(log.count, 16);
        CHECK_EQ(log.first, gone % 16);
        check_all(&log);
        push(&log);
        CHECK(log.capacity > 16);
        check_all(&log);
        push_many(&log, 50);
        check_all(&log);
        log_free(&log);
    }
}

TEST(letting_go_at_the_front_asks_for_no_memory) {
    version_log log;
    begin(&log);
    push_many(&log, 10);
    for (int i = 0; i < 1000; i++) {
        push(&log);
        let_go(&log, model_base + 1);
    }
    CHECK_EQ(log.capacity, 16);
    check_all(&log);
    log_free(&log);
}

TEST(a_cut_ends_the_log_and_the_next_takes_its_place) {
    version_log log;
    begin(&log);
    push_many(&log, 30);
    cut(&log, 30); /* The last itself, and what is not there: nothing. */
    cut(&log, 31);
    check_all(&log);
    cut(&log, 12);
    check_all(&log);
    push(&log);
    CHECK_EQ(log_last(&log), 13);
    check_all(&log);
    log_free(&log);
}

TEST(a_cut_to_the_base_leaves_the_ballot_of_the_base) {
    version_log log;
    begin(&log);
    push_many(&log, 20);
    let_go(&log, 8);
    cut(&log, 8);
    CHECK_EQ(log.count, 0);
    CHECK_EQ(log_last(&log), 8);
    CHECK_EQ(log_last_ballot(&log), model[8].ballot);
    check_all(&log);
    push_many(&log, 3);
    check_all(&log);
    log_free(&log);
}

TEST(everything_may_be_let_go_of) {
    version_log log;
    begin(&log);
    push_many(&log, 20);
    let_go(&log, 20);
    CHECK_EQ(log.count, 0);
    CHECK_EQ(log_last(&log), 20);
    CHECK_EQ(log_last_ballot(&log), model[20].ballot);
    check_all(&log);
    let_go(&log, 20);
    let_go(&log, 3); /* Long gone. */
    check_all(&log);
    push_many(&log, 40);
    check_all(&log);
    log_free(&log);
}

TEST(a_restart_forgets_everything_but_where_it_begins) {
    version_log log;
    begin(&log);
    push_many(&log, 20);
    log_restart(&log, 1000, 77 << 16);
    model_base = model_last = 1000;
    model[1000] = (version_entry){.ballot = 77 << 16};
    check_all(&log);
    CHECK_EQ(log_last_ballot(&log), 77 << 16);
    push_many(&log, 40);
    check_all(&log);
    log_free(&log);
    log_restart(&log, 5, 6); /* Also of one that never was, or was freed. */
    CHECK_EQ(log_last(&log), 5);
    CHECK_EQ(log_last_ballot(&log), 6);
    log_free(&log);
    CHECK_EQ(log_last(&log), 0);
}

/* What a life is like: it grows, loses tails and lets go, and now and then all of that at once. */
static void random_step(version_log *log) {
    uint64_t held = model_last - model_base;
    switch (random_next() % 16) {
    case 0: cut(log, model_last - (held == 0 ? 0 : random_next() % (held + 1))); break;
    case 1: cut(log, model_last + random_next() % 3); break;
    case 2:
    case 3:
    case 4: let_go(log, model_base + random_next() % (held + 1)); break;
    case 5: let_go(log, random_next() % (model_last + 1)); break;
    case 6: push_many(log, random_next() % 40); break;
    default: push(log);
    }
}

TEST(any_life_is_that_of_the_array) {
    for (random_state = 1; random_state <= 8; random_state++) {
        version_log log;
        uint64_t seed = random_state;
        begin(&log);
        for (int i = 0; i < STEPS && model_last + 64 < MODEL_MAX; i++) {
            random_step(&log);
            check_ends(&log);
            check_version(&log, model_base + random_next() % (model_last - model_base + 1));
            if (i % 97 == 0) check_all(&log);
            if (check_failed_here) break;
        }
        check_all(&log);
        log_free(&log);
        if (check_failed_here) printf("seed %llu\n", (unsigned long long)seed);
        random_state = seed;
    }
}

int main(void) {
    RUN(nothing_was_ever_pushed);
    RUN(versions_are_dense_from_1);
    RUN(it_grows_while_it_is_wrapped_round);
    RUN(letting_go_at_the_front_asks_for_no_memory);
    RUN(a_cut_ends_the_log_and_the_next_takes_its_place);
    RUN(a_cut_to_the_base_leaves_the_ballot_of_the_base);
    RUN(everything_may_be_let_go_of);
    RUN(a_restart_forgets_everything_but_where_it_begins);
    RUN(any_life_is_that_of_the_array);
    return check_report();
}
