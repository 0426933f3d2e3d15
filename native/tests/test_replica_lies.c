/* test_replica_lies.c -- frames that are well made and say what no replica would: they are refused, or come to nothing.
 *
 * A peer is taken at its word about what it holds (docs/protocol/specification.md, section 1); but no number of its may lead
 * out of an array, into a log where it does not belong, or to an end of this process. */
#include "transcript.h"

enum { CONNECTION = 1 << 20, MUCH = 300 };

static uint64_t ballot_of(uint64_t round, uint16_t node) { return ballot_make(round, node); }

/* A frame from one to another, and what is said to it. */
static kv_status lie(bench *b, uint32_t from, uint32_t to, wire_out *out) {
    wire_end(out);
    kv_status status = kv_replica_receive(b->node[to], (uint16_t)from, out->bytes, out->size);
    wire_free(out);
    kv_replica_flush(b->node[to]);
    kv_replica_clear(b->node[to]);
    return status;
}

static wire_out begin_frame(enum wire_type type) {
    wire_out out = {0};
    wire_begin(&out, type);
    return out;
}

static wire_out flow_of(uint64_t seq, uint64_t shard_number, uint64_t ballot, bool piece) {
    wire_out out = begin_frame(WIRE_FLOW);
    wire_put_varint(&out, CONNECTION);
    wire_put_varint(&out, 1);
    wire_put_varint(&out, seq);
    wire_put_varint(&out, 0); /* It knows of no answer. */
    wire_put_varint(&out, shard_number);
    wire_put64(&out, ballot);
    wire_put8(&out, piece);
    return out;
}

static wire_out append_of(uint64_t seq, uint64_t prev_version, uint64_t count) {
    wire_out out = flow_of(seq, 0, ballot_of(9, 1), false);
    wire_put_varint(&out, prev_version);
    wire_put64(&out, 0);
    wire_put_varint(&out, 0);
    wire_put_varint(&out, count);
    return out;
}

static void put_first_members(wire_out *out) { wire_put_members(out, &(members){.nodes = {1, 2, 3}, .count = 3}); }

static wire_out piece_of(uint64_t from, uint64_t piece) {
    wire_out out = flow_of(1, 0, ballot_of(9, 1), true);
    wire_put_varint(&out, from);
    wire_put64(&out, ballot_of(9, 1));
    wire_put_varint(&out, 1);
    wire_put_varint(&out, piece);
    return out;
}

static void put_state(wire_out *out, uint64_t version, uint8_t kind) {
    kv_record record = {.kind = kind, .key = (const uint8_t *)"k", .key_size = 1};
    wire_put8(out, 1);
    wire_put_varint(out, version);
    wire_put64(out, ballot_of(9, 1));
    wire_put_record(out, &record);
}

static wire_out ack_of(const bench *b, uint64_t cursor, uint64_t refusals) {
    const connection *of = &b->node[1]->peers[1].connection;
    wire_out out = begin_frame(WIRE_ACK);
    wire_put_varint(&out, of->incarnation);
    wire_put_varint(&out, of->number);
    wire_put_varint(&out, cursor);
    wire_put8(&out, 1);
    wire_put_varint(&out, refusals);
    return out;
}

static void put_refusal(wire_out *out, uint64_t shard_number, uint64_t ballot, uint64_t last) {
    wire_put_varint(out, 1);
    wire_put_varint(out, shard_number);
    wire_put64(out, ballot);
    wire_put64(out, ballot);
    wire_put_varint(out, last + 1);
    wire_put_varint(out, last);
    wire_put_varint(out, last);
    wire_put8(out, 0);
}

static wire_out prepare_of(uint64_t ballot, uint64_t count, uint64_t shard_number) {
    wire_out out = begin_frame(WIRE_PREPARE);
    wire_put64(&out, ballot);
    wire_put_varint(&out, count);
    wire_put_varint(&out, shard_number);
    wire_put_varint(&out, 0);
    wire_put64(&out, 0);
    wire_put_varint(&out, 0);
    return out;
}

/* Up to where the tail it shows would begin. */
static wire_out promise_of(uint64_t ballot, uint64_t shard_number, uint64_t last) {
    wire_out out = begin_frame(WIRE_PROMISE);
    wire_put64(&out, ballot);
    wire_put_varint(&out, 1);
    wire_put8(&out, 1);
    wire_put_varint(&out, shard_number);
    wire_put_varint(&out, 0);
    wire_put64(&out, ballot_of(1, 2));
    wire_put_varint(&out, last);
    put_first_members(&out);
    wire_put8(&out, 1);
    return out;
}

/* `count` barriers, one of which may end too early. */
static void put_tail(wire_out *out, uint64_t prev_version, uint64_t count, size_t missing) {
    wire_out tail = {0};
    kv_record record = {.kind = KV_KIND_BARRIER};
    wire_put64(&tail, 0);
    wire_put_varint(&tail, count);
    for (uint64_t i = 0; i < count; i++) {
        wire_put_varint(&tail, 1);
        wire_put8(&tail, 0);
        wire_put_record(&tail, &record);
    }
    wire_put_varint(out, prev_version);
    wire_put64(out, tail.size - missing);
    wire_put_bytes(out, tail.bytes, tail.size - missing);
    wire_free(&tail);
}

#define REFUSED(b, from, to, ...) do { wire_out made = __VA_ARGS__; CHECK_EQ(lie(b, from, to, &made), KV_EUSAGE); } while (0)
#define NOTHING(b, from, to, ...) do { wire_out made = __VA_ARGS__; CHECK_EQ(lie(b, from, to, &made), KV_OK); } while (0)

TEST(a_flow_speaks_of_what_is_there_and_of_its_own_ballot) {
    bench *b = &world;
    begin(b, 3);
    REFUSED(b, 1, 2, flow_of(1, 1, ballot_of(9, 1), false)); /* There is one shard. */
    REFUSED(b, 1, 2, flow_of(1, 0, ballot_of(9, 3), false));
    REFUSED(b, 1, 2, flow_of(1, 0, ballot_of(9, 1), false)); /* And then nothing. */
    wire_out out = append_of(1, 0, 1);
    wire_put_varint(&out, 0); /* A version without records. */
    REFUSED(b, 1, 2, out);
    out = append_of(1, 0, 1);
    wire_put_varint(&out, BATCH_RECORDS_MAX + 1);
    REFUSED(b, 1, 2, out);
    out = append_of(1, 5, 1); /* Nothing is known of version 5; what is behind it has to be a version all the same. */
    wire_put_varint(&out, 0);
    REFUSED(b, 1, 2, out);
    CHECK_EQ(state_of(b, 2, 0).last, 0);
    end(b);
}

/* In a version of its own, and no node twice. */
TEST(members_that_nobody_writes_are_refused) {
    kv_record one = {.kind = KV_KIND_CONFIG, .value = (const uint8_t *)"\1\0\1\0", .value_size = 4};
    bench *b = &world;
    begin(b, 3);
    for (uint64_t count = 1; count <= 2; count++) {
        wire_out out = append_of(1, 0, 1);
        wire_put_varint(&out, count);
        wire_put8(&out, 0);
        for (uint64_t i = 0; i < count; i++) wire_put_record(&out, &one);
        REFUSED(b, 1, 2, out);
        one.value = (const uint8_t *)"\1\0\2\0";
    }
    takeover(b, 1);
    sync_node(b, 1);
    wire_out out = begin_frame(WIRE_PROMISE);
    wire_put64(&out, state_of(b, 1, 0).promised);
    wire_put_varint(&out, 1);
    wire_put8(&out, 1);
    for (int i = 0; i < 2; i++) wire_put_varint(&out, 0); /* Shard, commit. */
    wire_put64(&out, 0);
    wire_put_varint(&out, 0);
    wire_put8(&out, 0); /* Nobody. */
    wire_put8(&out, 0);
    REFUSED(b, 2, 1, out);
    CHECK(state_of(b, 1, 0).taking);
    end(b);
}

TEST(a_piece_of_a_snapshot_brings_data_and_no_more_lanes_than_there_are) {
    bench *b = &world;
    begin_with(b, 3, (kv_replica_options){.shard_count = 1, .session_max = 4});
    REFUSED(b, 1, 2, piece_of((uint64_t)1 << LATE_VERSION_BITS, 0)); /* Nobody could write behind it. */
    wire_out out = piece_of(5, 0);
    put_state(&out, 0, KV_KIND_PUT);
    REFUSED(b, 1, 2, out);
    out = piece_of(5, 0);
    put_state(&out, 3, KV_KIND_BARRIER);
    REFUSED(b, 1, 2, out);
    out = piece_of(5, 0);
    wire_put8(&out, 0);
    wire_put8(&out, 1);
    wire_put_varint(&out, 1);
    wire_put_varint(&out, 5);
    put_first_members(&out);
    wire_put_varint(&out, 0);
    wire_put_varint(&out, 5); /* Lanes. */
    REFUSED(b, 1, 2, out);
    out = piece_of(5, UINT64_MAX / 2); /* So far on that no snapshot has it. */
    wire_put8(&out, 0);
    wire_put8(&out, 0);
    NOTHING(b, 1, 2, out);
    CHECK_EQ(state_of(b, 2, 0).applied, 0);
    end(b);
}

TEST(an_acknowledgement_is_of_what_was_sent) {
    bench *b = &world;
    begin(b, 3);
    own(b, 1);
    ask(b, 1, put("a", "x"));
    uint64_t ballot = state_of(b, 1, 0).promised, seq = b->node[1]->peers[1].seq;
    wire_out out = ack_of(b, 0, 1);
    put_refusal(&out, 1, ballot, 0);
    REFUSED(b, 2, 1, out);
    REFUSED(b, 2, 1, ack_of(b, 0, MUCH)); /* And then none of them. */
    out = ack_of(b, seq, 1);
    put_refusal(&out, 0, ballot, 1000); /* More than the owner has. */
    NOTHING(b, 2, 1, out);
    NOTHING(b, 2, 1, ack_of(b, seq + 1000, 0));
    CHECK_EQ(b->node[1]->peers[1].acked, seq);
    CHECK_EQ(state_of(b, 1, 0).last, 2);
    end(b);
}

TEST(a_prepare_is_of_the_sender_and_of_shards_that_are_there) {
    bench *b = &world;
    begin(b, 3);
    REFUSED(b, 2, 1, prepare_of(ballot_of(3, 2), 0, 0));
    REFUSED(b, 2, 1, prepare_of(ballot_of(3, 2), 2, 0));
    REFUSED(b, 2, 1, prepare_of(ballot_of(3, 3), 1, 0));
    REFUSED(b, 2, 1, prepare_of(ballot_of(3, 2), 1, 1));
    CHECK_EQ(state_of(b, 1, 0).promised, 0);
    end(b);
}

TEST(a_promise_shows_a_tail_that_is_whole) {
    bench *b = &world;
    begin(b, 3);
    takeover(b, 1);
    sync_node(b, 1);
    uint64_t ballot = state_of(b, 1, 0).promised;
    wire_out out = promise_of(ballot, 0, 2);
    put_tail(&out, 0, 2, 3); /* The last record is cut. */
    REFUSED(b, 2, 1, out);
    out = promise_of(ballot, 0, 3);
    put_tail(&out, 0, 2, 0); /* It ends before its last version. */
    REFUSED(b, 2, 1, out);
    out = promise_of(ballot, 0, 9);
    put_tail(&out, 7, 2, 0); /* It begins behind what was asked for. */
    REFUSED(b, 2, 1, out);
    out = promise_of(ballot, 0, 2);
    wire_put_varint(&out, 0);
    wire_put64(&out, 1000); /* Bytes that are not there. */
    REFUSED(b, 2, 1, out);
    REFUSED(b, 2, 1, promise_of(ballot, 1, 0));
    out = begin_frame(WIRE_PROMISE);
    wire_put64(&out, ballot);
    wire_put_varint(&out, 1);
    wire_put8(&out, 0); /* Refused, by what? */
    wire_put_varint(&out, 0);
    REFUSED(b, 2, 1, out);
    CHECK(state_of(b, 1, 0).taking);
    CHECK_EQ(state_of(b, 1, 0).last, 0);
    end(b);
}

TEST(what_is_asked_about_a_shard_that_is_not_there_is_refused) {
    bench *b = &world;
    begin(b, 3);
    for (int i = 0; i < 2; i++) {
        wire_out out = begin_frame(WIRE_CHECK);
        wire_put_varint(&out, 1);
        wire_put_varint(&out, MUCH);
        if (i == 0) wire_put_varint(&out, 1);
        if (i == 0) wire_put64(&out, 0);
        REFUSED(b, 2, 1, out);
    }
    wire_out out = begin_frame(WIRE_CHECKED);
    wire_put_varint(&out, 1);
    wire_put_varint(&out, MUCH);
    REFUSED(b, 2, 1, out);
    out = begin_frame(WIRE_ASK_POSITION);
    wire_put_varint(&out, 1);
    wire_put_varint(&out, 1);
    REFUSED(b, 2, 1, out);
    out = begin_frame(WIRE_OFFER);
    wire_put_varint(&out, 1);
    REFUSED(b, 2, 1, out);
    end(b);
}

/* The next round above the highest there is would be below what was promised. */
TEST(the_last_round_is_the_end_of_takeovers_and_of_nothing_else) {
    bench *b = &world;
    begin(b, 3);
    NOTHING(b, 2, 1, prepare_of(ballot_of(ROUND_MAX, 2), 1, 0));
    takeover(b, 1);
    CHECK(!state_of(b, 1, 0).taking);
    CHECK_EQ(state_of(b, 1, 0).promised, ballot_of(ROUND_MAX, 2));
    end(b);
}

TEST(who_is_refused_without_end_is_not_answered_any_more) {
    bench *b = &world;
    begin(b, 3);
    for (uint64_t seq = 1; seq <= MUCH; seq++) NOTHING(b, 1, 2, append_of(seq, 5, 0));
    sync_node(b, 2);
    size_t answers = b->mail_count[2][1];
    NOTHING(b, 1, 2, append_of(MUCH + 1, 5, 0));
    sync_node(b, 2);
    CHECK_EQ(b->mail_count[2][1], answers);
    end(b);
}

int main(void) {
    RUN(a_flow_speaks_of_what_is_there_and_of_its_own_ballot);
    RUN(members_that_nobody_writes_are_refused);
    RUN(a_piece_of_a_snapshot_brings_data_and_no_more_lanes_than_there_are);
    RUN(an_acknowledgement_is_of_what_was_sent);
    RUN(a_prepare_is_of_the_sender_and_of_shards_that_are_there);
    RUN(a_promise_shows_a_tail_that_is_whole);
    RUN(what_is_asked_about_a_shard_that_is_not_there_is_refused);
    RUN(the_last_round_is_the_end_of_takeovers_and_of_nothing_else);
    RUN(who_is_refused_without_end_is_not_answered_any_more);
    return check_report();
}
