/* test_replica_digest.c -- values by digest: what leaves when, what is fetched, what is refused, what is kept and fallen back
 * to. Three replicas in one process, once five; the inline size is 0 unless a test says otherwise, so every value goes by digest. */
#include "check.h"
#include "kv/io_sim.h"
#include "kv/replica.h"

enum { NODES = 5, TOKENS_MAX = 64, VALUE_MAX = 256, FETCH = 16, BYTES_TYPE = 17, ASK_HELD = 18, HELD = 19, FRAMES_MAX = 512 };

typedef struct answer {
    kv_reply reply;
    uint8_t value[VALUE_MAX];
    bool there;
} answer;

typedef struct set {
    kv_sim *disks[NODES + 1];
    kv_replica *nodes[NODES + 1]; /* NULL: down */
    uint64_t mutations[NODES + 1];
    kv_replica_options options;
    uint16_t n;
    uint32_t lost_types;          /* frames of these types go lost, as bits */
    uint32_t every;               /* of all of these only one in so many; 0: all of them */
    uint32_t seen_types;
    bool lazy[NODES + 1];         /* its disk never gets there */
    bool cut[NODES + 1][NODES + 1];
    bool spoils;                  /* the last byte of BYTES is another one */
    answer answers[TOKENS_MAX];
    uint64_t token;
    struct { uint8_t bytes[512]; size_t size; uint16_t from; } frames[FRAMES_MAX]; /* of the bulk lane, as they were sent */
    size_t frame_count;
} set;

static const uint8_t *bytes(const char *text) { return (const uint8_t *)text; }

static void boot(set *s, uint16_t i) {
    kv_fault fault;
    kv_replica_options options = s->options;
    options.node = i;
    options.mutations = s->mutations[i];
    options.joins = i > options.member_count;
    kv_sim_set_recording(s->disks[i], 1);
    CHECK_EQ(kv_replica_open(kv_sim_io(s->disks[i]), &options, &fault, &s->nodes[i]), KV_OK);
}

/* What it had not synced is lost. */
static void crash(set *s, uint16_t i) {
    kv_sim *left;
    KV_ASSERT(kv_sim_image(s->disks[i], kv_sim_event_count(s->disks[i]), KV_CUT_ALL_LOST, 0, 1, &left) == KV_OK);
    kv_replica_free(s->nodes[i]);
    kv_sim_free(s->disks[i]);
    s->disks[i] = left;
    s->nodes[i] = NULL;
}

static void frame_carry(set *s, uint16_t from, uint16_t to, const uint8_t *frame, size_t size) {
    uint8_t copy[1 << 16];
    bool lost = (s->lost_types >> frame[4] & 1) != 0;
    if (lost && s->every != 0) lost = kv_mix64(++s->seen_types) % s->every == 0;
    if (lost || s->cut[from][to] || s->nodes[to] == NULL) return;
    KV_ASSERT(size <= sizeof copy);
    memcpy(copy, frame, size);
    if (s->spoils && frame[4] == BYTES_TYPE) copy[size - 1] ^= 1;
    if (frame[4] >= FETCH && s->frame_count < FRAMES_MAX && size <= sizeof s->frames[0].bytes) {
        memcpy(s->frames[s->frame_count].bytes, frame, size);
        s->frames[s->frame_count].size = size;
        s->frames[s->frame_count++].from = from;
    }
    CHECK_EQ(kv_replica_receive(s->nodes[to], from, copy, size), KV_OK);
}

static void answers_take(set *s, uint16_t i) {
    const kv_reply *replies;
    const uint8_t *values;
    size_t count;
    kv_replica_answers(s->nodes[i], &replies, &count, &values);
    for (size_t j = 0; j < count; j++) {
        answer *a = &s->answers[replies[j].token % TOKENS_MAX];
        *a = (answer){.reply = replies[j], .there = true};
        if (replies[j].value_size > 0) memcpy(a->value, values + replies[j].value_at, (size_t)replies[j].value_size);
    }
}

/* Everything that lies ready goes to where it belongs. */
static void round_of(set *s) {
    for (uint16_t i = 1; i <= s->n; i++) {
        kv_replica *r = s->nodes[i];
        size_t size;
        if (r == NULL) continue;
        kv_replica_flush(r);
        if (!s->lazy[i]) {
            CHECK(kv_sync(kv_replica_caller(r)) >= 0);
            kv_replica_durable(r, kv_replica_tail(r));
            kv_replica_flush(r);
        }
        answers_take(s, i);
        for (uint16_t j = 1; j <= s->n; j++) {
            const uint8_t *out = j == i ? NULL : kv_replica_outbox(r, j, &size);
            for (size_t at = 0, frame; out != NULL && at < size; at += frame) {
                frame = kv_load32(out + at) + 4;
                frame_carry(s, i, j, out + at, frame);
            }
        }
        kv_replica_clear(r);
    }
}

static void ticks(set *s, int count) {
    for (int i = 0; i < count; i++) {
        for (uint16_t j = 1; j <= s->n; j++)
            if (s->nodes[j] != NULL) kv_replica_tick(s->nodes[j]);
        for (int j = 0; j < 6; j++) round_of(s);
    }
}

static void take_over(set *s, uint16_t i) {
    kv_replica_takeover(s->nodes[i], (const uint16_t[]){0}, 1);
    ticks(s, 2);
}

static void begin_many(set *s, uint16_t n, uint64_t mutation, int64_t inline_max) {
    *s = (set){.n = n, .options = {.members = {1, 2, 3, 4, 5}, .member_count = n, .shard_count = 1, .inline_max = inline_max}};
    s->options.store.segment_size_min = s->options.store.segment_size_max = 1 << 18;
    for (uint16_t i = 1; i <= s->n; i++) {
        s->mutations[i] = mutation;
        s->disks[i] = kv_sim_new();
        boot(s, i);
    }
    ticks(s, 1);
    take_over(s, 1);
}

static void begin_as(set *s, uint64_t mutation, int64_t inline_max) { begin_many(s, 3, mutation, inline_max); }

static set world;
static set *begin(void) {
    begin_as(&world, 0, KV_INLINE_NOTHING);
    return &world;
}
static set *begin_without(int32_t rule) {
    begin_as(&world, (uint64_t)1 << rule, KV_INLINE_NOTHING);
    return &world;
}

static void end(set *s) {
    for (uint16_t i = 1; i <= s->n; i++) {
        if (s->nodes[i] != NULL) kv_replica_free(s->nodes[i]);
        kv_sim_free(s->disks[i]);
    }
}

/* Asked, and carried for some ticks. NULL: there is no answer. */
static const answer *ask_for(set *s, uint16_t i, kv_ask *a, int tick_count) {
    a->token = ++s->token;
    a->attempt = 1;
    s->answers[a->token % TOKENS_MAX].there = false;
    kv_replica_request(s->nodes[i], a);
    for (int j = 0; j < 6; j++) round_of(s);
    for (int j = 0; j < tick_count && !s->answers[a->token % TOKENS_MAX].there; j++) ticks(s, 1);
    const answer *out = &s->answers[a->token % TOKENS_MAX];
    return out->there ? out : NULL;
}

static const answer *ask(set *s, uint16_t i, kv_ask *a) {
    const answer *out = ask_for(s, i, a, 14);
    CHECK(out != NULL);
    static const answer none = {.reply = {.status = -1}};
    return out == NULL ? &none : out;
}

static kv_ask key_ask(uint8_t kind, const char *value) {
    kv_ask a = {.kind = kind, .key = bytes("k"), .key_size = 1};
    if (value == NULL) return a;
    a.value = bytes(value);
    a.value_size = strlen(value);
    return a;
}

static uint64_t put(set *s, uint16_t i, const char *value, uint8_t durability) {
    kv_ask a = key_ask(KV_REQUEST_PUT, value);
    a.durability = durability;
    const answer *out = ask(s, i, &a);
    CHECK_EQ(out->reply.status, KV_ANSWER_OK);
    return out->reply.version;
}

static const answer *get(set *s, uint16_t i, bool follower) {
    kv_ask a = key_ask(KV_REQUEST_GET, NULL);
    a.follower = follower;
    return ask(s, i, &a);
}

static bool gets(set *s, uint16_t i, bool follower, const char *value) {
    const answer *out = get(s, i, follower);
    return out->reply.status == KV_ANSWER_OK && out->reply.value_size == (int64_t)strlen(value) &&
           memcmp(out->value, value, strlen(value)) == 0;
}

static uint64_t last(set *s, uint16_t i) {
    kv_shard_state state;
    kv_replica_shard(s->nodes[i], 0, &state);
    return state.last;
}

static bool has_bytes(set *s, uint16_t i, uint64_t version) {
    int32_t here = -1;
    CHECK_EQ(kv_replica_content(s->nodes[i], 0, version, 0, &here), KV_OK);
    return here == 1;
}

static kv_replica_lag lag(set *s, uint16_t i) {
    kv_replica_lag out;
    kv_replica_lag_of(s->nodes[i], &out);
    return out;
}

static void lane(set *s, bool open) { s->lost_types = open ? 0 : 1u << FETCH | 1u << BYTES_TYPE; }

/* --- the way of a value --- */

TEST(the_record_names_the_bytes_and_they_follow) {
    set *s = begin();
    kv_record record;
    uint64_t version = put(s, 1, "some bytes", KV_DURABILITY_VERSION);
    for (uint16_t i = 1; i <= s->n; i++) {
        ticks(s, 4);
        CHECK_EQ(kv_replica_record(s->nodes[i], 0, version, 0, &record), KV_OK);
        CHECK(record.flags & KV_FLAG_META);
        CHECK_EQ(record.value_size, KV_META_SIZE);
        CHECK(has_bytes(s, i, version));
        CHECK(gets(s, i, true, "some bytes"));
        CHECK_EQ(lag(s, i).missing_count, 0);
    }
    end(s);
}

TEST(what_is_no_larger_than_the_inline_size_rides_in_its_record) {
    set *s = &world;
    kv_record record;
    begin_as(s, 0, 4);
    CHECK_EQ(kv_replica_record(s->nodes[2], 0, put(s, 1, "four", 0), 0, &record), KV_OK);
    CHECK(!(record.flags & KV_FLAG_META));
    CHECK_EQ(kv_replica_record(s->nodes[2], 0, put(s, 1, "fives", 0), 0, &record), KV_OK);
    CHECK(record.flags & KV_FLAG_META);
    end(s);
}

/* Power is lost between the record's leaving and the sync of its bytes: then they would be nowhere. */
static bool leaves_early(set *s) {
    uint64_t before = last(s, 2);
    s->lazy[1] = true;
    kv_ask a = key_ask(KV_REQUEST_PUT, "bytes");
    bool answered = ask_for(s, 1, &a, 3) != NULL, left = last(s, 2) != before;
    CHECK(!answered || left);
    s->lazy[1] = false;
    ticks(s, 2);
    CHECK(last(s, 2) != before);
    end(s);
    return left;
}

TEST(a_record_leaves_when_its_bytes_are_durable) {
    CHECK(!leaves_early(begin()));
    CHECK(leaves_early(begin_without(KV_MUTATE_META_EARLY)));
}

/* Under `data` the record may leave at once: what it names travels with it. */
TEST(under_data_the_record_does_not_wait_for_the_origins_disk) {
    set *s = begin();
    s->lazy[1] = true;
    kv_ask a = key_ask(KV_REQUEST_PUT, "bytes");
    a.durability = KV_DURABILITY_DATA;
    CHECK_EQ(ask(s, 1, &a)->reply.status, KV_ANSWER_OK);
    CHECK(has_bytes(s, 2, last(s, 2)) && has_bytes(s, 3, last(s, 3)));
    end(s);
}

TEST(under_data_the_bytes_come_with_the_record) {
    set *s = begin();
    lane(s, false);
    uint64_t version = put(s, 1, "bytes", KV_DURABILITY_DATA);
    CHECK(has_bytes(s, 2, version) && has_bytes(s, 3, version));
    crash(s, 1);
    take_over(s, 2);
    CHECK(gets(s, 2, false, "bytes"));
    end(s);
    s = begin_without(KV_MUTATE_META_AS_DATA);
    lane(s, false);
    version = put(s, 1, "bytes", KV_DURABILITY_DATA);
    CHECK(!has_bytes(s, 2, version) && !has_bytes(s, 3, version));
    end(s);
}

TEST(under_data_nobody_takes_in_a_record_without_its_bytes) {
    set *s = begin();
    crash(s, 1);
    s->mutations[1] = (uint64_t)1 << KV_MUTATE_META_AS_DATA; /* It sends none. */
    boot(s, 1);
    ticks(s, 1);
    take_over(s, 1);
    uint64_t before = last(s, 2);
    kv_ask a = key_ask(KV_REQUEST_PUT, "bytes");
    a.durability = KV_DURABILITY_DATA;
    CHECK(ask_for(s, 1, &a, 12) == NULL);
    CHECK_EQ(last(s, 2), before);
    CHECK_EQ(last(s, 3), before);
    end(s);
}

/* Promised by 3 alone, who has it with its bytes: the new owner gets both. */
TEST(a_promise_shows_the_bytes_too) {
    set *s = begin();
    lane(s, false);
    s->cut[1][2] = s->cut[3][1] = true;
    kv_ask a = key_ask(KV_REQUEST_PUT, "bytes");
    a.durability = KV_DURABILITY_DATA;
    CHECK(ask_for(s, 1, &a, 1) == NULL);
    uint64_t version = last(s, 3);
    CHECK(version > last(s, 2));
    crash(s, 1);
    take_over(s, 2);
    CHECK(has_bytes(s, 2, version));
    CHECK(gets(s, 2, false, "bytes"));
    end(s);
}

TEST(what_was_committed_long_ago_comes_without_its_bytes_and_they_are_pulled) {
    set *s = begin();
    crash(s, 3);
    uint64_t version = put(s, 1, "bytes", KV_DURABILITY_DATA);
    lane(s, false);
    boot(s, 3);
    ticks(s, 12);
    CHECK_EQ(last(s, 3), version);
    CHECK(!has_bytes(s, 3, version));
    CHECK_EQ(lag(s, 3).missing_count, 1);
    CHECK_EQ(lag(s, 3).missing_size, 5);
    CHECK(lag(s, 3).missing_ticks > 0);
    lane(s, true);
    ticks(s, 30);
    CHECK(has_bytes(s, 3, version));
    CHECK_EQ(lag(s, 3).missing_count, 0);
    end(s);
}

/* --- the bulk lane --- */

TEST(a_value_comes_in_pieces_and_lost_ones_are_asked_for_again) {
    set *s = &world;
    char text[201];
    for (int i = 0; i < 200; i++) text[i] = (char)('a' + i % 26);
    text[200] = 0;
    begin_as(s, 0, KV_INLINE_NOTHING);
    s->options.fetch_size_max = 16;
    for (uint16_t i = 1; i <= s->n; i++) {
        crash(s, i);
        boot(s, i);
    }
    ticks(s, 1);
    take_over(s, 1);
    lane(s, false);
    s->every = 3;
    put(s, 1, text, 0);
    ticks(s, 400);
    CHECK(gets(s, 2, true, text));
    CHECK(gets(s, 3, true, text));
    end(s);
}

TEST(bytes_that_are_not_the_right_ones_are_not_taken) {
    set *s = begin();
    s->spoils = true;
    uint64_t version = put(s, 1, "bytes", 0);
    ticks(s, 10);
    CHECK(!has_bytes(s, 2, version));
    CHECK(kv_replica_count(s->nodes[2])->spoilt > 0);
    s->spoils = false;
    ticks(s, 40);
    CHECK(gets(s, 2, true, "bytes"));
    end(s);
    s = begin_without(KV_MUTATE_DIGEST_UNCHECKED);
    s->spoils = true;
    put(s, 1, "bytes", 0);
    ticks(s, 10);
    CHECK(!gets(s, 2, true, "bytes"));
    end(s);
}

TEST(a_reader_is_told_when_nobody_has_the_bytes_and_who_should) {
    set *s = begin();
    lane(s, false);
    uint64_t version = put(s, 1, "bytes", 0);
    crash(s, 1);
    lane(s, true);
    take_over(s, 2);
    const answer *out = get(s, 2, false);
    CHECK_EQ(out->reply.status, KV_ANSWER_UNAVAILABLE);
    CHECK_EQ(out->reply.error, KV_ELACKING);
    CHECK_EQ(out->reply.version, version);
    CHECK_EQ(out->reply.holder, 1);
    boot(s, 1);
    ticks(s, 40);
    CHECK(gets(s, 2, false, "bytes"));
    CHECK(gets(s, 3, true, "bytes"));
    end(s);
}

TEST(what_needs_the_old_value_waits_for_it_and_the_rest_does_not) {
    static const uint8_t needs[] = {KV_REQUEST_INCR, KV_REQUEST_APPEND}, fine[] = {KV_REQUEST_PUT, KV_REQUEST_DELETE, KV_REQUEST_CAS};
    for (size_t i = 0; i < sizeof needs + sizeof fine; i++) {
        uint8_t kind = i < sizeof needs ? needs[i] : fine[i - sizeof needs];
        set *s = begin();
        lane(s, false);
        uint64_t version = put(s, 1, "12", 0);
        crash(s, 1);
        take_over(s, 2);
        kv_ask a = key_ask(kind, "3");
        a.argument = kind == KV_REQUEST_CAS ? (int64_t)version : kind == KV_REQUEST_DELETE ? -1 : 3;
        const answer *out = ask(s, 2, &a);
        CHECK_EQ(out->reply.status, i < sizeof needs ? KV_ANSWER_UNAVAILABLE : KV_ANSWER_OK);
        lane(s, true);
        boot(s, 1);
        ticks(s, 40);
        out = ask(s, 2, &a);
        if (i < sizeof needs) CHECK_EQ(out->reply.status, KV_ANSWER_OK);
        if (kind == KV_REQUEST_INCR) CHECK(gets(s, 2, false, "15"));
        if (kind == KV_REQUEST_APPEND) CHECK(gets(s, 2, false, "123"));
        end(s);
    }
}

/* --- what is kept --- */

TEST(the_bytes_before_stay_until_a_majority_has_the_new_ones) {
    set *s = begin();
    put(s, 1, "first", 0);
    ticks(s, 8);
    lane(s, false);
    put(s, 1, "second", 0);
    ticks(s, 12);
    for (uint16_t i = 1; i <= s->n; i++) {
        CHECK_EQ(lag(s, i).kept_count, 1);
        CHECK_EQ(lag(s, i).content_count, 2);
    }
    lane(s, true);
    ticks(s, 60);
    for (uint16_t i = 1; i <= s->n; i++) {
        CHECK_EQ(lag(s, i).kept_count, 0);
        CHECK_EQ(lag(s, i).content_count, 1);
    }
    end(s);
}

/* --- members --- */

static void join(set *s) {
    uint16_t fresh = ++s->n;
    s->disks[fresh] = kv_sim_new();
    boot(s, fresh);
    for (uint16_t i = 1; i < fresh; i++) {
        CHECK_EQ(kv_replica_meet(s->nodes[i], fresh), KV_OK);
        CHECK_EQ(kv_replica_meet(s->nodes[fresh], i), KV_OK);
    }
    ticks(s, 8);
}

static void change(set *s, uint16_t add, uint16_t remove) {
    kv_member_change c = {.token = ++s->token, .add = add, .remove = remove};
    kv_replica_member_change(s->nodes[1], &c);
    ticks(s, 8);
    CHECK(s->answers[c.token % TOKENS_MAX].there);
    CHECK_EQ(s->answers[c.token % TOKENS_MAX].reply.status, KV_ANSWER_OK);
}

static void alone(set *s, uint16_t i, bool cut) {
    for (uint16_t j = 1; j <= s->n; j++) s->cut[i][j] = s->cut[j][i] = cut;
}

/* 4 has taken the place of 3, and the newest bytes are at 1 alone. */
static set *begin_with_exchange(void) {
    set *s = begin();
    put(s, 1, "first", 0);
    join(s);
    change(s, 0, 3);
    change(s, 4, 0);
    lane(s, false);
    put(s, 1, "second", 0);
    ticks(s, 12);
    CHECK_EQ(lag(s, 1).kept_count, 1);
    return s;
}

TEST(bytes_that_a_removed_member_has_are_given_away_and_are_not_held) {
    set *s = begin_with_exchange();
    alone(s, 2, true);
    alone(s, 4, true);
    lane(s, true);
    ticks(s, 60);
    CHECK_EQ(lag(s, 3).missing_count, 0);
    CHECK_EQ(lag(s, 1).kept_count, 1); /* 1 and 3 have them: no majority of 1, 2 and 4. */
    alone(s, 4, false);
    s->cut[1][4] = s->cut[4][1] = true;
    ticks(s, 60);
    CHECK_EQ(lag(s, 4).missing_count, 0); /* From 3. */
    alone(s, 4, false);
    ticks(s, 60);
    CHECK_EQ(lag(s, 1).kept_count, 0);
    end(s);
}

TEST(who_has_gone_is_not_asked_for_bytes_any_more) {
    set *s = begin_with_exchange();
    for (uint16_t i = 1; i <= s->n; i++)
        if (i != 3) CHECK_EQ(kv_replica_part(s->nodes[i], 3), KV_OK);
    alone(s, 3, true);
    lane(s, true);
    ticks(s, 60);
    for (uint16_t i = 1; i <= s->n; i++) {
        if (i == 3) continue;
        CHECK_EQ(lag(s, i).missing_count, 0);
        CHECK_EQ(lag(s, i).kept_count, 0);
    }
    end(s);
}

/* More are kept, one behind the other, than are asked for at once: with the newest that is held all behind it go. */
TEST(a_long_row_of_versions_settles_at_once) {
    set *s = begin();
    char value[16];
    lane(s, false);
    for (int i = 0; i < 400; i++) {
        snprintf(value, sizeof value, "value %d", i);
        put(s, 1, value, 0);
    }
    ticks(s, 24);
    lane(s, true);
    ticks(s, 60);
    for (uint16_t i = 1; i <= s->n; i++) {
        CHECK_EQ(lag(s, i).kept_count, 0);
        CHECK(gets(s, i, true, "value 399"));
    }
    end(s);
}

/* Whoever follows a table waits for bytes as a reader of his own does, and loses nothing. */
TEST(a_page_of_changes_waits_for_bytes) {
    set *s = begin();
    kv_replica_page page;
    kv_ask row = {.kind = KV_REQUEST_PUT, .table = bytes("t"), .table_size = 1, .key = bytes("r"), .key_size = 1,
                  .value = bytes("row"), .value_size = 3};
    lane(s, false);
    CHECK_EQ(ask(s, 1, &row)->reply.status, KV_ANSWER_OK);
    ticks(s, 8);
    CHECK_EQ(kv_replica_changes(s->nodes[2], bytes("t"), 1, 0, 0, 8, &page), KV_ELACKING);
    CHECK_EQ(kv_replica_changes(s->nodes[1], bytes("t"), 1, 0, 0, 8, &page), 4);
    kv_replica_fetch(s->nodes[2]);
    lane(s, true);
    ticks(s, 60);
    CHECK_EQ(kv_replica_changes(s->nodes[2], bytes("t"), 1, 0, 0, 8, &page), 4);
    CHECK(memcmp(kv_caller_answer(kv_replica_caller(s->nodes[2]))->small, "rrow", 4) == 0);
    end(s);
}

/* Once with a first value that is inline. */
static void lose_newest(set *s, int count) {
    char value[8] = "new0";
    lane(s, false);
    for (int i = 0; i < count; i++, value[3]++) put(s, 1, value, 0);
    ticks(s, 2);
    crash(s, 1);
    take_over(s, 2);
}

static const answer *forget(set *s, uint16_t i) {
    kv_ask a = key_ask(KV_REQUEST_FORGET, NULL);
    return ask(s, i, &a);
}

TEST(forget_falls_back_to_what_is_held) {
    for (int count = 1; count <= 3; count++) {
        set *s = begin();
        uint64_t first = put(s, 1, "first", 0);
        ticks(s, 12);
        lose_newest(s, count);
        for (int i = 0; i < count; i++) {
            CHECK_EQ(get(s, 2, false)->reply.status, KV_ANSWER_UNAVAILABLE);
            const answer *out = forget(s, 2);
            CHECK_EQ(out->reply.status, KV_ANSWER_OK);
            if (i + 1 == count) CHECK_EQ(out->reply.number, first);
        }
        CHECK(gets(s, 2, false, "first"));
        CHECK(gets(s, 3, true, "first"));
        crash(s, 2);
        crash(s, 3);
        boot(s, 2);
        boot(s, 3);
        ticks(s, 2);
        take_over(s, 3);
        CHECK(gets(s, 3, false, "first"));
        end(s);
    }
}

TEST(forget_is_for_what_is_lost_and_has_something_behind_it) {
    set *s = begin();
    CHECK_EQ(forget(s, 1)->reply.error, KV_ABSENT);
    put(s, 1, "first", 0);
    const answer *out = forget(s, 1);
    CHECK_EQ(out->reply.status, KV_ANSWER_FAILED);
    CHECK_EQ(out->reply.error, KV_ECONFLICT); /* It is here. */
    end(s);
    s = begin();
    lose_newest(s, 1);
    out = forget(s, 2);
    CHECK_EQ(out->reply.status, KV_ANSWER_FAILED);
    CHECK_EQ(out->reply.error, KV_ELACKING); /* Nothing was there before. */
    end(s);
    s = begin_without(KV_MUTATE_DROP_PREVIOUS);
    put(s, 1, "first", 0);
    ticks(s, 12);
    lose_newest(s, 1);
    CHECK_EQ(forget(s, 2)->reply.error, KV_ELACKING);
    end(s);
}

TEST(an_inline_value_is_kept_as_well) {
    set *s = &world;
    begin_as(s, 0, 5);
    uint64_t first = put(s, 1, "first", 0);
    lane(s, false);
    put(s, 1, "second", 0);
    crash(s, 1);
    take_over(s, 2);
    CHECK_EQ(forget(s, 2)->reply.number, first);
    CHECK(gets(s, 2, false, "first"));
    end(s);
}

/* 3 was away while the key was written twice, or both writes had reached it before; and what it is sent is a snapshot. */
static int32_t forget_behind_a_snapshot(int32_t rule, bool knew, bool restarts) {
    set *s = &world;
    begin_as(s, rule < 0 ? 0 : (uint64_t)1 << rule, KV_INLINE_NOTHING);
    s->options.keep_max = 2;
    for (uint16_t i = 1; i <= s->n; i++) {
        crash(s, i);
        boot(s, i);
    }
    ticks(s, 1);
    take_over(s, 1);
    if (!knew) crash(s, 3);
    put(s, 1, "first", 0);
    ticks(s, 12);
    lane(s, false);
    put(s, 1, "second", 0);
    ticks(s, 5); /* What was applied is in the log then. */
    if (knew) crash(s, 3);
    for (int i = 0; i < 20; i++) {
        kv_ask a = {.kind = KV_REQUEST_PUT, .key = bytes("other"), .key_size = 5, .value = bytes("x"), .value_size = 1};
        CHECK_EQ(ask(s, 1, &a)->reply.status, KV_ANSWER_OK);
        ticks(s, 1);
    }
    boot(s, 3);
    ticks(s, 20);
    CHECK_EQ(kv_replica_count(s->nodes[3])->installed, 1);
    if (restarts) {
        crash(s, 3);
        boot(s, 3);
        ticks(s, 4);
    }
    crash(s, 1);
    lane(s, true);
    take_over(s, 3);
    const answer *out = forget(s, 3);
    int32_t error = out->reply.status == KV_ANSWER_OK ? KV_OK : out->reply.error;
    if (error == KV_OK) CHECK(gets(s, 3, false, "first"));
    end(s);
    return error;
}

TEST(a_snapshot_has_what_is_kept) {
    CHECK_EQ(forget_behind_a_snapshot(-1, false, false), KV_OK);
    CHECK_EQ(forget_behind_a_snapshot(KV_MUTATE_SNAPSHOT_NO_HISTORY, false, false), KV_ELACKING);
}

/* What is kept is older than what was ended to make room. */
TEST(what_is_kept_comes_back_to_who_had_the_newer_one) {
    CHECK_EQ(forget_behind_a_snapshot(-1, true, false), KV_OK);
    CHECK_EQ(forget_behind_a_snapshot(-1, true, true), KV_OK);
}

/* --- what goes --- */

static void cut_off(set *s, uint16_t i, uint16_t j, bool on) { s->cut[i][j] = s->cut[j][i] = on; }

/* Of five. 1 and 3 have a record that nobody else has heard of; 2 takes over from 4 and 5, and only 1 hears of it: it cuts the
 * record for 2's barrier. Then 3 takes over from 4 and 5, and the record comes to be committed, with its bytes at 1 alone. */
static bool is_found_again(uint64_t mutation) {
    set *s = &world;
    begin_many(s, 5, mutation, KV_INLINE_NOTHING);
    ticks(s, 4);
    lane(s, false);
    s->cut[1][2] = s->cut[1][4] = s->cut[1][5] = s->cut[3][1] = true;
    kv_ask a = key_ask(KV_REQUEST_PUT, "bytes");
    CHECK(ask_for(s, 1, &a, 1) == NULL);
    uint64_t version = last(s, 3);
    CHECK(version == last(s, 1) && version == last(s, 2) + 1);

    cut_off(s, 1, 2, true);
    cut_off(s, 3, 2, true);
    for (uint16_t i = 4; i <= 5; i++) cut_off(s, 3, i, true);
    kv_replica_takeover(s->nodes[2], (const uint16_t[]){0}, 1);
    round_of(s);
    s->cut[2][4] = s->cut[2][5] = true;
    s->cut[2][1] = false;
    ticks(s, 12);
    kv_shard_state state;
    kv_replica_shard(s->nodes[1], 0, &state);
    CHECK_EQ(state.last, version);
    CHECK_EQ(state.last_ballot & 0xFFFF, 2);
    CHECK_EQ(last(s, 4), version - 1);

    for (uint16_t i = 2; i <= 5; i++) cut_off(s, 1, i, true);
    crash(s, 2);
    for (uint16_t i = 4; i <= 5; i++) cut_off(s, 3, i, false);
    take_over(s, 3);
    take_over(s, 3);
    ticks(s, 4);
    kv_replica_shard(s->nodes[4], 0, &state);
    CHECK(state.commit >= version);
    for (uint16_t i = 2; i <= 5; i++) cut_off(s, 1, i, false);
    lane(s, true);
    ticks(s, 60);
    bool found = gets(s, 3, false, "bytes");
    end(s);
    return found;
}

TEST(bytes_of_a_record_that_may_come_back_stay) {
    CHECK(is_found_again(0));
    CHECK(!is_found_again((uint64_t)1 << KV_MUTATE_COLLECT_EARLY));
}

/* Of five. 2 alone has heard of three records of 1, and not of their bytes; 3 takes over from 4 and 5, and its barrier cuts them.
 * The shard has not come to the version of the last of them, and need never. */
TEST(bytes_that_nothing_names_are_not_missing) {
    set *s = &world;
    begin_many(s, 5, 0, KV_INLINE_NOTHING);
    ticks(s, 4);
    lane(s, false);
    s->cut[1][3] = s->cut[1][4] = s->cut[1][5] = true;
    kv_ask a = key_ask(KV_REQUEST_PUT, "bytes");
    for (int i = 0; i < 3; i++) CHECK(ask_for(s, 1, &a, 1) == NULL);
    CHECK_EQ(lag(s, 2).missing_count, 3);
    CHECK_EQ(last(s, 2), last(s, 3) + 3);
    crash(s, 1);
    cut_off(s, 2, 3, true);
    take_over(s, 3);
    cut_off(s, 2, 3, false);
    lane(s, true);
    ticks(s, 60);
    CHECK_EQ(last(s, 2), last(s, 3));
    CHECK_EQ(lag(s, 2).missing_count, 0);
    end(s);
}

/* --- kinds of writes --- */

TEST(rows_batches_and_tables_go_by_digest_too) {
    set *s = begin();
    kv_ask row = {.kind = KV_REQUEST_PUT, .table = bytes("t"), .table_size = 1, .key = bytes("r"), .key_size = 1,
                  .value = bytes("row"), .value_size = 3};
    CHECK_EQ(ask(s, 1, &row)->reply.status, KV_ANSWER_OK);
    kv_operation operations[] = {{.table = bytes("t"), .table_size = 1, .key = bytes("q"), .key_size = 1, .value = bytes("more"),
                                  .value_size = 4},
                                 {.key = bytes("{t}k"), .key_size = 4, .value = bytes("key"), .value_size = 3}};
    kv_ask batch = {.kind = KV_REQUEST_BATCH, .operations = operations, .operation_count = 2,
                    .durability = KV_DURABILITY_DATA};
    CHECK_EQ(ask(s, 1, &batch)->reply.status, KV_ANSWER_OK);
    kv_ask incr = {.kind = KV_REQUEST_INCR, .table = bytes("t"), .table_size = 1, .key = bytes("n"), .key_size = 1, .argument = 7};
    CHECK_EQ(ask(s, 1, &incr)->reply.number, 7);
    CHECK_EQ(ask(s, 1, &incr)->reply.number, 14);
    ticks(s, 12);
    for (uint16_t i = 1; i <= s->n; i++) {
        kv_page page;
        kv_range range = {.what = KV_SCAN_ROWS, .count_max = 10, .with_values = true, .table = bytes("t"), .table_size = 1};
        CHECK_EQ(kv_scan(kv_replica_caller(s->nodes[i]), &range, &page), 12);
        CHECK(memcmp(kv_caller_answer(kv_replica_caller(s->nodes[i]))->small, "n14qmorerrow", 12) == 0);
        CHECK_EQ(kv_get(kv_replica_caller(s->nodes[i]), bytes("{t}k"), 4), 3);
        CHECK_EQ(kv_look(kv_replica_caller(s->nodes[i]), bytes("{t}k"), 4), 3);
    }
    end(s);
}

TEST(another_expiry_has_the_same_bytes) {
    set *s = begin();
    uint64_t version = put(s, 1, "bytes", 0);
    kv_ask a = key_ask(KV_REQUEST_EXPIRE, NULL);
    a.ttl_ms = 1 << 20;
    CHECK_EQ(ask(s, 1, &a)->reply.status, KV_ANSWER_OK);
    ticks(s, 12);
    CHECK(last(s, 2) > version);
    CHECK(gets(s, 2, true, "bytes"));
    CHECK_EQ(lag(s, 2).content_count, 1);
    end(s);
}

TEST(a_value_that_no_frame_holds_is_refused) {
    set *s = begin();
    uint8_t *large = calloc(1, (16 << 20) + 1);
    kv_ask a = key_ask(KV_REQUEST_PUT, NULL);
    a.value = large;
    a.value_size = (16 << 20) + 1;
    CHECK_EQ(ask(s, 1, &a)->reply.error, KV_EVALUESIZE);
    free(large);
    end(s);
}

TEST(a_restart_finds_everything_in_its_log) {
    set *s = begin();
    put(s, 1, "first", 0);
    ticks(s, 12);
    lane(s, false);
    put(s, 1, "second", 0);
    ticks(s, 5); /* The commit is in the logs then. */
    for (uint16_t i = 1; i <= s->n; i++) {
        crash(s, i);
        boot(s, i);
    }
    ticks(s, 1);
    take_over(s, 1);
    ticks(s, 8);
    CHECK(gets(s, 1, false, "second"));
    for (uint16_t i = 1; i <= s->n; i++) CHECK_EQ(lag(s, i).kept_count, 1);
    CHECK_EQ(lag(s, 2).missing_count, 1);
    lane(s, true);
    ticks(s, 60);
    CHECK(gets(s, 3, true, "second"));
    for (uint16_t i = 1; i <= s->n; i++) CHECK_EQ(lag(s, i).content_count, 1);
    end(s);
}

/* --- bytes that no replica sends --- */

TEST(half_a_body_is_refused) {
    set *s = begin();
    uint32_t types = 0;
    s->frame_count = 0;
    put(s, 1, "first", 0);
    ticks(s, 12);
    put(s, 1, "second", 0);
    ticks(s, 12);
    for (size_t i = 0; i < s->frame_count; i++) {
        uint8_t frame[512];
        uint16_t from = s->frames[i].from, to = from == 2 ? 3 : 2;
        types |= 1u << s->frames[i].bytes[4];
        for (size_t cut = 5; cut < s->frames[i].size; cut++) {
            memcpy(frame, s->frames[i].bytes, cut);
            kv_store32(frame, (uint32_t)cut - 4);
            CHECK_EQ(kv_replica_receive(s->nodes[to], from, frame, cut), KV_EUSAGE);
            kv_replica_clear(s->nodes[to]);
        }
    }
    CHECK_EQ(types, 1u << FETCH | 1u << BYTES_TYPE | 1u << ASK_HELD | 1u << HELD);
    end(s);
}

int main(void) {
    RUN(the_record_names_the_bytes_and_they_follow);
    RUN(what_is_no_larger_than_the_inline_size_rides_in_its_record);
    RUN(a_record_leaves_when_its_bytes_are_durable);
    RUN(under_data_the_record_does_not_wait_for_the_origins_disk);
    RUN(under_data_the_bytes_come_with_the_record);
    RUN(under_data_nobody_takes_in_a_record_without_its_bytes);
    RUN(a_promise_shows_the_bytes_too);
    RUN(what_was_committed_long_ago_comes_without_its_bytes_and_they_are_pulled);
    RUN(a_value_comes_in_pieces_and_lost_ones_are_asked_for_again);
    RUN(bytes_that_are_not_the_right_ones_are_not_taken);
    RUN(a_reader_is_told_when_nobody_has_the_bytes_and_who_should);
    RUN(what_needs_the_old_value_waits_for_it_and_the_rest_does_not);
    RUN(the_bytes_before_stay_until_a_majority_has_the_new_ones);
    RUN(bytes_that_a_removed_member_has_are_given_away_and_are_not_held);
    RUN(who_has_gone_is_not_asked_for_bytes_any_more);
    RUN(a_long_row_of_versions_settles_at_once);
    RUN(a_page_of_changes_waits_for_bytes);
    RUN(forget_falls_back_to_what_is_held);
    RUN(forget_is_for_what_is_lost_and_has_something_behind_it);
    RUN(an_inline_value_is_kept_as_well);
    RUN(a_snapshot_has_what_is_kept);
    RUN(what_is_kept_comes_back_to_who_had_the_newer_one);
    RUN(bytes_of_a_record_that_may_come_back_stay);
    RUN(bytes_that_nothing_names_are_not_missing);
    RUN(rows_batches_and_tables_go_by_digest_too);
    RUN(another_expiry_has_the_same_bytes);
    RUN(a_value_that_no_frame_holds_is_refused);
    RUN(a_restart_finds_everything_in_its_log);
    RUN(half_a_body_is_refused);
    return check_report();
}
