/* test_replica_trim.c -- a replica gives disk back: what was in the segments that go is known all the same, from whatever it
 * opens again; and one whose disk is full goes on with what needs no record. */
#include "../src/replica_internal.h"
#include "check.h"
#include "kv/io_sim.h"

#include <stdlib.h>

enum { VALUE_SIZE = 900, CLIENT = 77 };

typedef struct one {
    kv_sim *disk;
    kv_replica *r;
    kv_replica_options options;
    uint8_t *checkpoint;
    size_t checkpoint_size;
    kv_reply reply;
    uint64_t token;
} one;

static kv_status boot_from(one *o, const uint8_t *checkpoint, size_t size) {
    kv_fault fault;
    o->options.checkpoint = checkpoint;
    o->options.checkpoint_size = size;
    o->options.incarnation_min = 0;
    kv_sim_set_recording(o->disk, false);
    return kv_replica_open(kv_sim_io(o->disk), &o->options, &fault, &o->r);
}

static one one_new(kv_replica_options options) {
    one o = {.options = options, .disk = kv_sim_new()};
    o.options.node = 1;
    o.options.members[0] = 1;
    if (o.options.member_count == 0) o.options.member_count = 1;
    o.options.members[1] = 2;
    o.options.members[2] = 3;
    o.options.keep_size_max = 1;
    o.options.store.segment_size_min = o.options.store.segment_size_max = 1 << 15;
    CHECK_EQ(boot_from(&o, NULL, 0), KV_OK);
    return o;
}

static void one_free(one *o) {
    kv_replica_free(o->r);
    kv_sim_free(o->disk);
    free(o->checkpoint);
}

/* The disk is as fast as can be; the last answer stays. */
static void go_on(one *o) {
    const kv_reply *replies;
    const uint8_t *bytes;
    size_t count;
    for (int i = 0; i < 3; i++) {
        kv_replica_flush(o->r);
        CHECK(kv_sync(kv_replica_caller(o->r)) >= 0);
        kv_replica_durable(o->r, kv_replica_tail(o->r));
    }
    kv_replica_flush(o->r);
    kv_replica_answers(o->r, &replies, &count, &bytes);
    if (count != 0) o->reply = replies[count - 1];
    kv_replica_clear(o->r);
}

/* Replica 2 has compared the disk with what it remembers: nothing. */
static void welcome(one *o) {
    wire_out out = {0};
    go_on(o);
    wire_begin(&out, WIRE_WELCOME);
    wire_put64(&out, o->r->self_start.number);
    wire_put8(&out, 1);
    wire_put8(&out, 0);
    wire_end(&out);
    CHECK_EQ(kv_replica_receive(o->r, 2, out.bytes, out.size), KV_OK);
    wire_free(&out);
    go_on(o);
}

static void own(one *o) {
    uint16_t shards[KV_SHARDS_MAX];
    for (uint16_t i = 0; i < o->r->shard_count; i++) shards[i] = i;
    go_on(o);
    kv_replica_takeover(o->r, shards, o->r->shard_count);
    go_on(o);
}

static void ask(one *o, kv_ask a, const char *key) {
    a.token = ++o->token;
    if (a.attempt == 0) a.attempt = 1;
    a.key = (const uint8_t *)key;
    a.key_size = strlen(key);
    o->reply = (kv_reply){.status = -1};
    kv_replica_request(o->r, &a);
    go_on(o);
}

static void put(one *o, const char *key, size_t size) {
    static uint8_t value[1 << 14];
    ask(o, (kv_ask){.kind = KV_REQUEST_PUT, .value = value, .value_size = size}, key);
}

static void put_many(one *o, const char *key, int count) {
    for (int i = 0; i < count; i++) {
        put(o, key, VALUE_SIZE);
        CHECK_EQ(o->reply.status, KV_ANSWER_OK);
    }
}

/* All that can go, goes; its checkpoint is kept. */
static void give_back(one *o) {
    const uint8_t *bytes;
    size_t size;
    kv_status status;
    do {
        status = kv_replica_trim(o->r);
        go_on(o);
    } while (status == KV_MORE || status == KV_OK);
    CHECK(status == KV_EOF || status == KV_EWAIT);
    while ((status = kv_replica_checkpoint(o->r, &bytes, &size)) == KV_MORE || status == KV_EWAIT) go_on(o);
    CHECK_EQ(status, KV_OK);
    free(o->checkpoint);
    o->checkpoint = malloc(size);
    memcpy(o->checkpoint, bytes, size);
    o->checkpoint_size = size;
    CHECK_EQ(kv_replica_published(o->r), KV_OK);
}

static kv_stats stats_of(const one *o) {
    kv_stats stats;
    CHECK_EQ(kv_store_measure(o->r->store, &stats), KV_OK);
    return stats;
}

static void crash(one *o) {
    kv_replica_free(o->r);
    o->r = NULL;
}

/* With the checkpoint first: an opener without one unlinks its files. */
static void both_ways(one *o, void (*look)(one *o)) {
    crash(o);
    CHECK_EQ(boot_from(o, o->checkpoint, o->checkpoint_size), KV_OK);
    CHECK(stats_of(o).used_checkpoint);
    look(o);
    crash(o);
    CHECK_EQ(boot_from(o, NULL, 0), KV_OK);
    CHECK(!stats_of(o).used_checkpoint);
    look(o);
}

/* --- tests --- */

static uint64_t version_before;

static void look_at_key(one *o) {
    own(o);
    ask(o, (kv_ask){.kind = KV_REQUEST_GET}, "k");
    CHECK_EQ(o->reply.status, KV_ANSWER_OK);
    CHECK_EQ(o->reply.version, version_before);
}

static void test_segments_go_and_what_they_said_stays(void) {
    one o = one_new((kv_replica_options){.shard_count = 1});
    own(&o);
    put_many(&o, "k", 200);
    version_before = o.reply.version;
    give_back(&o);
    CHECK(stats_of(&o).removed_count >= 4);
    CHECK(stats_of(&o).segment_count <= 3);
    both_ways(&o, look_at_key);
    one_free(&o);
}

/* A promise, applied versions and user data of a shard in which nothing has happened since the first segment. */
static void look_at_idle(one *o) {
    kv_shard_state state;
    char key[16] = "0";
    for (int i = 0; kv_shard_of(2, (const uint8_t *)key, strlen(key)) != 1; i++) snprintf(key, sizeof key, "%d", i);
    go_on(o);
    kv_replica_shard(o->r, 1, &state);
    CHECK_EQ(state.promised, ballot_make(1, 1));
    CHECK_EQ(state.applied, 2);
    CHECK_EQ(state.last, 2);
    ask(o, (kv_ask){.kind = KV_REQUEST_GET, .stale = 1}, key);
    CHECK_EQ(o->reply.version, 2);
}

static void test_an_idle_shard_is_carried_along(void) {
    one o = one_new((kv_replica_options){.shard_count = 2});
    char busy[16] = "0", idle[16] = "0";
    for (int i = 0; kv_shard_of(2, (const uint8_t *)busy, strlen(busy)) != 0; i++) snprintf(busy, sizeof busy, "%d", i);
    for (int i = 0; kv_shard_of(2, (const uint8_t *)idle, strlen(idle)) != 1; i++) snprintf(idle, sizeof idle, "%d", i);
    own(&o);
    put_many(&o, idle, 1);
    for (int i = 0; i < 4; i++) {
        put_many(&o, busy, 100);
        give_back(&o);
    }
    CHECK(stats_of(&o).removed_count >= 8);
    both_ways(&o, look_at_idle);
    one_free(&o);
}

static void incr_once(one *o) {
    ask(o, (kv_ask){.kind = KV_REQUEST_INCR, .argument = 1, .client = CLIENT, .number = 5, .attempt = 2}, "n");
}

static void look_at_lane(one *o) {
    own(o);
    incr_once(o);
    CHECK_EQ(o->reply.status, KV_ANSWER_OK);
    CHECK_EQ(o->reply.number, 1);
    CHECK_EQ(kv_replica_count(o->r)->deduplicated, 1);
}

static void test_lanes_outlive_the_records_that_told_them(void) {
    one o = one_new((kv_replica_options){.shard_count = 1});
    own(&o);
    incr_once(&o);
    CHECK_EQ(o.reply.number, 1);
    put_many(&o, "k", 200);
    give_back(&o);
    CHECK(stats_of(&o).removed_count >= 4);
    both_ways(&o, look_at_lane);
    one_free(&o);
}

/* Without its rule: a power cut between the removal of the segment with the only STATE, and the next. The log says so. */
static void test_a_log_without_its_state_is_not_opened(void) {
    for (int rule = 0; rule < 2; rule++) {
        uint64_t left_out = rule == 0 ? (uint64_t)1 << KV_MUTATE_STATE_NOT_DURABLE : 0;
        one o = one_new((kv_replica_options){.shard_count = 1, .mutations = left_out});
        kv_sim *left;
        kv_sim_set_recording(o.disk, true);
        own(&o);
        put_many(&o, "k", 100);
        give_back(&o);
        CHECK(stats_of(&o).removed_count >= 1);
        CHECK_EQ(kv_sim_image(o.disk, kv_sim_event_count(o.disk), KV_CUT_ALL_LOST, 0, 0, &left), KV_OK);
        crash(&o);
        kv_sim_free(o.disk);
        o.disk = left;
        CHECK_EQ(boot_from(&o, NULL, 0), rule == 0 ? KV_ECORRUPT : KV_OK);
        one_free(&o);
    }
}

/* Nobody else is there to commit anything. */
static void test_undecided_records_keep_their_segment(void) {
    one o = one_new((kv_replica_options){.shard_count = 1, .member_count = 3});
    welcome(&o);
    shard *s = &o.r->shards[0];
    s->promised = ballot_make(1, 1);
    shard_own(o.r, s, s->promised);
    CHECK(shard_barrier(o.r, s));
    for (int i = 0; i < 100; i++) put(&o, "k", VALUE_SIZE);
    CHECK_EQ(log_last(&s->log), 101);
    CHECK_EQ(kv_replica_trim(o.r), KV_EWAIT);
    give_back(&o);
    CHECK_EQ(stats_of(&o).removed_count, 0);
    crash(&o);
    CHECK_EQ(boot_from(&o, o.checkpoint, o.checkpoint_size), KV_OK);
    CHECK(stats_of(&o).used_checkpoint);
    CHECK_EQ(log_last(&o.r->shards[0].log), 101);
    CHECK_EQ(o.r->shards[0].applied, 0);
    one_free(&o);
}

/* What a peer says of the last FLOW that it was sent. */
static void refuse_last(one *o, bool no_state) {
    const peer *p = &o->r->peers[1];
    const shard *s = &o->r->shards[0];
    wire_out out = {0};
    wire_begin(&out, WIRE_ACK);
    wire_put_varint(&out, 0); /* It vouches for nothing in particular. */
    wire_put_varint(&out, 0);
    wire_put_varint(&out, p->connection.incarnation);
    wire_put_varint(&out, p->connection.number);
    wire_put_varint(&out, p->seq);
    wire_put8(&out, 1);
    wire_put_varint(&out, 1);
    wire_put_varint(&out, p->seq);
    wire_put_varint(&out, 0);
    wire_put64(&out, s->own.ballot);
    wire_put64(&out, s->own.ballot);
    wire_put_varint(&out, log_last(&s->log));
    wire_put_varint(&out, 3); /* its last */
    wire_put_varint(&out, 2);
    wire_put8(&out, no_state);
    wire_end(&out);
    CHECK_EQ(kv_replica_receive(o->r, 2, out.bytes, out.size), KV_OK);
    wire_free(&out);
    go_on(o);
}

/* A snapshot was begun for a peer whose refusal from before comes late and says that records will do. They would not, if it has
 * taken in the first piece by then. Seed 1660 of some version: neither sent anything any more. */
static void test_a_late_refusal_does_not_strand_a_snapshot(void) {
    one o = one_new((kv_replica_options){.shard_count = 1, .member_count = 3});
    welcome(&o);
    shard *s = &o.r->shards[0];
    s->promised = ballot_make(1, 1);
    shard_own(o.r, s, s->promised);
    CHECK(shard_barrier(o.r, s));
    for (int i = 0; i < 5; i++) put(&o, "k", VALUE_SIZE);
    s->own.sending[1] = (sending){.active = true, .from = 2, .from_ballot = s->promised, .walk = 7, .piece = 1};
    s->own.next[1] = 0;
    uint64_t before = o.r->counts.snapshots;
    refuse_last(&o, false);
    CHECK_EQ(o.r->counts.snapshots, before + 1); /* It came to its end. */
    CHECK(!s->own.sending[1].active);
    CHECK_EQ(s->own.next[1], log_last(&s->log) + 1); /* And what comes behind it was sent. */
    refuse_last(&o, true);
    CHECK_EQ(o.r->counts.snapshots, before + 2);
    one_free(&o);
}

static void test_a_checkpoint_waits_for_the_log(void) {
    one o = one_new((kv_replica_options){.shard_count = 1});
    const uint8_t *bytes;
    size_t size;
    kv_status status;
    own(&o);
    put_many(&o, "k", 5);
    while ((status = kv_replica_checkpoint(o.r, &bytes, &size)) == KV_MORE) continue;
    CHECK_EQ(status, KV_EWAIT);
    CHECK_EQ(kv_replica_checkpoint(o.r, &bytes, &size), KV_EWAIT);
    CHECK_EQ(kv_replica_published(o.r), KV_EUSAGE);
    go_on(&o);
    while ((status = kv_replica_checkpoint(o.r, &bytes, &size)) == KV_MORE) continue;
    CHECK_EQ(status, KV_OK);
    CHECK_EQ(kv_replica_published(o.r), KV_OK);
    CHECK_EQ(kv_replica_published(o.r), KV_EUSAGE);
    go_on(&o);
    for (int i = 0; i < 3 && status != KV_EOF; i++) /* The COMMIT that it waited for came behind it. */
        while ((status = kv_replica_checkpoint(o.r, &bytes, &size)) == KV_MORE || status == KV_EWAIT) go_on(&o);
    one_free(&o);
}

static void test_a_checkpoint_that_is_none_is_not_used(void) {
    one o = one_new((kv_replica_options){.shard_count = 1});
    own(&o);
    put_many(&o, "k", 100);
    version_before = o.reply.version;
    give_back(&o);
    for (size_t at = 0; at < o.checkpoint_size; at += 7) {
        crash(&o);
        o.checkpoint[at] ^= 64;
        CHECK_EQ(boot_from(&o, o.checkpoint, o.checkpoint_size), KV_OK);
        CHECK(!stats_of(&o).used_checkpoint);
        o.checkpoint[at] ^= 64;
    }
    crash(&o);
    CHECK_EQ(boot_from(&o, o.checkpoint, 24), KV_OK);
    CHECK(!stats_of(&o).used_checkpoint);
    look_at_key(&o);
    one_free(&o);
}

/* --- a full disk --- */

static void fill(one *o) {
    kv_sim_limit(o->disk, kv_sim_used(o->disk));
    for (int i = 0; i < 1000 && o->reply.status == KV_ANSWER_OK; i++) put(o, "k", VALUE_SIZE);
}

static void test_a_full_owner_refuses_writes_and_reads_on(void) {
    one o = one_new((kv_replica_options){.shard_count = 1});
    own(&o);
    put_many(&o, "k", 5);
    fill(&o);
    CHECK_EQ(o.reply.status, KV_ANSWER_UNAVAILABLE);
    CHECK_EQ(o.reply.error, KV_ENOSPC);
    for (int i = 0; i < 20; i++) {
        kv_replica_tick(o.r); /* COMMIT and expiry find no room, either. */
        go_on(&o);
        put(&o, "k", VALUE_SIZE);
        CHECK_EQ(o.reply.error, KV_ENOSPC);
        ask(&o, (kv_ask){.kind = KV_REQUEST_GET}, "k");
        CHECK_EQ(o.reply.status, KV_ANSWER_OK);
    }
    kv_sim_limit(o.disk, UINT64_MAX);
    put(&o, "k", VALUE_SIZE);
    CHECK_EQ(o.reply.error, KV_ENOSPC); /* It looks again at the next tick. */
    kv_replica_tick(o.r);
    put(&o, "k", VALUE_SIZE);
    CHECK_EQ(o.reply.status, KV_ANSWER_OK);
    one_free(&o);
}

static void test_a_full_replica_promises_nothing(void) {
    one o = one_new((kv_replica_options){.shard_count = 1});
    own(&o);
    put_many(&o, "k", 5);
    fill(&o);
    shard *s = &o.r->shards[0];
    uint64_t promised = s->promised;
    uint16_t number = 0;
    shard_step_down(o.r, s);
    for (int i = 0; i < 30; i++) { /* The little that is left fills up. */
        kv_replica_tick(o.r);
        kv_replica_takeover(o.r, &number, 1);
        if (o.r->full) break;
        promised = s->promised;
        shard_step_down(o.r, s);
    }
    CHECK(o.r->full);
    CHECK_EQ(s->promised, promised);
    CHECK_EQ(s->taking.ballot, 0);
    kv_sim_limit(o.disk, UINT64_MAX);
    kv_replica_tick(o.r);
    own(&o);
    CHECK_EQ(s->own.ballot, s->promised);
    one_free(&o);
}

/* It is read, and says nothing before its life is on the disk. */
static void test_a_full_disk_opens_and_begins_when_there_is_room(void) {
    one o = one_new((kv_replica_options){.shard_count = 1});
    own(&o);
    put_many(&o, "k", 5);
    version_before = o.reply.version;
    crash(&o);
    kv_sim_limit(o.disk, kv_sim_used(o.disk));
    CHECK_EQ(boot_from(&o, NULL, 0), KV_OK);
    go_on(&o);
    CHECK(!o.r->ready);
    kv_sim_limit(o.disk, UINT64_MAX);
    for (uint32_t i = 0; i < o.r->options.heartbeat_ticks; i++) kv_replica_tick(o.r);
    look_at_key(&o);
    one_free(&o);
}

int main(void) {
    RUN(segments_go_and_what_they_said_stays);
    RUN(an_idle_shard_is_carried_along);
    RUN(lanes_outlive_the_records_that_told_them);
    RUN(a_log_without_its_state_is_not_opened);
    RUN(undecided_records_keep_their_segment);
    RUN(a_late_refusal_does_not_strand_a_snapshot);
    RUN(a_checkpoint_waits_for_the_log);
    RUN(a_checkpoint_that_is_none_is_not_used);
    RUN(a_full_owner_refuses_writes_and_reads_on);
    RUN(a_full_replica_promises_nothing);
    RUN(a_full_disk_opens_and_begins_when_there_is_room);
    return check_report();
}
