/* test_wire_example.c -- the worked example of docs/protocol/wire.md, held against the code from both sides: it is what an
 * owner sends, and what a peer takes in. */
#include "check.h"
#include "kv/io_sim.h"
#include "kv/replica.h"

static const uint8_t EXAMPLE[] = {
#include "example_wire.inc"
};

enum { SHARD = 3 /* of "hello", of 64 */, BALLOT = 1 << 16 | 1 };

typedef struct one {
    kv_sim *disk;
    kv_replica *core;
} one;

static one begin(uint16_t node) {
    kv_fault fault;
    kv_replica_options options = {.node = node, .members = {1, 2, 3}, .member_count = 3, .boot = 5};
    options.store.segment_size_min = options.store.segment_size_max = 64 << 10;
    one x = {.disk = kv_sim_new()};
    kv_sim_set_recording(x.disk, 0);
    CHECK_EQ(kv_replica_open(kv_sim_io(x.disk), &options, &fault, &x.core), KV_OK);
    const uint64_t number = 5; /* Of its start: whoever is welcomed once is welcomed. */
    for (uint16_t other = 1; other <= 3; other++) {
        uint8_t welcome[] = {11, 0, 0, 0, 12, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0};
        kv_store64(welcome + 5, number);
        if (other != node) CHECK_EQ(kv_replica_receive(x.core, other, welcome, sizeof welcome), KV_OK);
    }
    kv_replica_durable(x.core, kv_replica_tail(x.core));
    return x;
}

static void end(one *x) {
    kv_replica_free(x->core);
    kv_sim_free(x->disk);
}

/* Everything that `from` has to say to `to`; the log is durable before and after. */
static void tell(one *from, uint16_t from_node, one *to, uint16_t to_node) {
    size_t size;
    kv_replica_durable(from->core, kv_replica_tail(from->core));
    kv_replica_flush(from->core);
    const uint8_t *bytes = kv_replica_outbox(from->core, to_node, &size);
    CHECK(bytes != NULL);
    CHECK_EQ(kv_replica_receive(to->core, from_node, bytes, size), KV_OK);
    kv_replica_clear(from->core);
    kv_replica_durable(to->core, kv_replica_tail(to->core));
}

TEST(an_owner_sends_the_example) {
    one owner = begin(1), peer = begin(2);
    uint16_t shard = SHARD;
    size_t size;
    kv_ask ask = {.token = 1, .kind = KV_REQUEST_PUT, .attempt = 1, .lane = 1, .client = 0x1122334455667788, .number = 9,
                  .key = (const uint8_t *)"hello", .key_size = 5, .value = (const uint8_t *)"world!", .value_size = 6};
    kv_replica_takeover(owner.core, &shard, 1);
    kv_replica_request(owner.core, &ask); /* Behind the barrier. */
    tell(&owner, 1, &peer, 2);            /* PREPARE */
    tell(&peer, 2, &owner, 1);            /* PROMISE */
    kv_replica_flush(owner.core);
    const uint8_t *bytes = kv_replica_outbox(owner.core, 2, &size);
    CHECK_EQ(size, sizeof EXAMPLE);
    CHECK(size == sizeof EXAMPLE && memcmp(bytes, EXAMPLE, size) == 0);
    end(&owner);
    end(&peer);
}

TEST(a_peer_takes_the_example_in) {
    one peer = begin(2);
    kv_shard_state state;
    kv_record record;
    size_t size;
    CHECK_EQ(kv_replica_receive(peer.core, 1, EXAMPLE, sizeof EXAMPLE), KV_OK);
    kv_replica_shard(peer.core, SHARD, &state);
    CHECK_EQ(state.promised, BALLOT);
    CHECK_EQ(state.last, 2);
    CHECK_EQ(state.last_ballot, BALLOT);
    CHECK_EQ(state.commit, 0);
    CHECK_EQ(kv_replica_record(peer.core, SHARD, 1, 0, &record), KV_OK);
    CHECK_EQ(record.kind, KV_KIND_BARRIER);
    CHECK_EQ(kv_replica_record(peer.core, SHARD, 2, 0, &record), KV_OK);
    CHECK_EQ(record.kind, KV_KIND_PUT);
    CHECK_EQ(record.flags, KV_FLAG_CREATED);
    CHECK_EQ(record.prev_ballot, BALLOT);
    CHECK(record.request.client == 0x1122334455667788 && record.request.number == 9 && record.request.lane == 1);
    CHECK(record.key_size == 5 && memcmp(record.key, "hello", 5) == 0);
    CHECK(record.value_size == 6 && memcmp(record.value, "world!", 6) == 0);
    kv_replica_flush(peer.core);
    CHECK(kv_replica_outbox(peer.core, 1, &size) == NULL); /* Nothing is acknowledged before it is durable. */
    kv_replica_durable(peer.core, kv_replica_tail(peer.core));
    kv_replica_flush(peer.core);
    CHECK(kv_replica_outbox(peer.core, 1, &size) != NULL);
    end(&peer);
}

TEST(a_cut_of_the_example_is_refused) {
    for (size_t size = 1; size < sizeof EXAMPLE; size++) {
        one peer = begin(2);
        CHECK_EQ(kv_replica_receive(peer.core, 1, EXAMPLE, size), KV_EUSAGE);
        end(&peer);
    }
}

int main(void) {
    RUN(an_owner_sends_the_example);
    RUN(a_peer_takes_the_example_in);
    RUN(a_cut_of_the_example_is_refused);
    return check_report();
}
