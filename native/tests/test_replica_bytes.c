/* test_replica_bytes.c -- bytes that are no message: cut anywhere, or from nobody. */
#include <sys/mman.h>

#include "transcript.h"

/* Right before a page that cannot be touched. */
static const uint8_t *at_edge(const uint8_t *bytes, size_t size) {
    enum { ROOM = 1 << 16 };
    static uint8_t *edge;
    if (edge == NULL) {
        uint8_t *pages = mmap(NULL, ROOM + KV_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        KV_ASSERT(pages != MAP_FAILED);
        edge = pages + ROOM;
        KV_ASSERT(mprotect(edge, KV_PAGE_SIZE, PROT_NONE) == 0);
    }
    KV_ASSERT(size <= ROOM);
    memcpy(edge - size, bytes, size);
    return edge - size;
}

/* All kinds of messages between all of them. */
static void live_a_little(bench *b) {
    b->keeping = true;
    own_without_3(b);
    settle(b);
    kv_operation all[] = {op(NULL, "{x}a", "1"), op("{x}t", "r", "2")};
    told(b, 1, by(put("a", "x"), 7, 1, 1, 0));
    told(b, 1, batch(all, 2));
    told(b, 1, expiring(put("b", "y"), 1000));
    VALUE(b, 2, at_follower(get("a")), "x");
    VALUE(b, 1, get("b"), "y");
    ask(b, 1, put("c", "z"));
    pass(b, 1, 2);
    lose(b, 1, 3);
    settle(b);
    own(b, 3);
    own(b, 2);
    b->keeping = false;
}

/* What only a policy sends. */
static void keep_more(bench *b) {
    for (int type = WIRE_PING; type <= WIRE_OFFER; type++) {
        wire_out out = {0};
        wire_begin(&out, (enum wire_type)type);
        if (type == WIRE_OFFER) wire_put_varint(&out, 0);
        if (type == WIRE_PING) wire_put_bytes(&out, (const uint8_t[]){3, 1, 0, 7, 2, 3, 7, 3, 1, 0}, 10);
        wire_end(&out);
        b->keeping = true;
        keep(b, 1, (frame){.bytes = out.bytes, .size = out.size});
    }
    b->keeping = false;
}

static void receive_at_edge(bench *b, uint32_t to, uint16_t from, const uint8_t *bytes, size_t size, kv_status expected) {
    kv_status status = kv_replica_receive(b->node[to], from, at_edge(bytes, size), size);
    if (expected != KV_MORE) CHECK_EQ(status, expected);
    CHECK(status == KV_OK || status == KV_EUSAGE);
    kv_replica_flush(b->node[to]);
    kv_replica_clear(b->node[to]);
}

TEST(every_cut_of_every_message_is_refused) {
    bench *b = &world;
    uint32_t types = 0;
    uint8_t *bytes = malloc(1 << 16);
    begin_with(b, 3, (kv_replica_options){.shard_count = 1, .keep_max = 2});
    live_a_little(b);
    keep_more(b);
    for (size_t i = 0; i < b->kept_count; i++) {
        const frame *f = &b->kept[i];
        uint32_t to = b->kept_from[i] == 2 ? 3 : 2;
        KV_ASSERT(bytes != NULL && f->size <= 1 << 16);
        memcpy(bytes, f->bytes, f->size);
        types |= 1u << bytes[4];
        for (size_t cut = 0; cut < f->size; cut++) {
            kv_store32(bytes, (uint32_t)f->size - 4);
            receive_at_edge(b, to, b->kept_from[i], bytes, cut, cut == 0 ? KV_OK : KV_EUSAGE);
            if (cut < WIRE_HEAD_SIZE) continue;
            kv_store32(bytes, (uint32_t)cut - 4); /* As if that were all of it; a FLOW may end between two shards. */
            receive_at_edge(b, to, b->kept_from[i], bytes, cut, bytes[4] == WIRE_FLOW ? KV_MORE : KV_EUSAGE);
        }
    }
    CHECK_EQ(types, (1u << (WIRE_OFFER + 1)) - 2); /* Every type was among them, but those of test_replica_digest.c. */
    free(bytes);
    end(b);
}

TEST(who_is_no_member_is_not_heard) {
    static const uint8_t check[] = {3, 0, 0, 0, WIRE_CHECK, 1, 0};
    bench *b = &world;
    begin(b, 3);
    CHECK_EQ(kv_replica_receive(b->node[1], 2, check, sizeof check), KV_OK);
    CHECK_EQ(kv_replica_receive(b->node[1], 1, check, sizeof check), KV_EUSAGE);
    CHECK_EQ(kv_replica_receive(b->node[1], 4, check, sizeof check), KV_EUSAGE);
    CHECK_EQ(kv_replica_receive(b->node[1], 0, check, sizeof check), KV_EUSAGE);
    end(b);
}

TEST(every_rule_that_can_be_left_out_has_a_name) {
    for (int32_t i = 0; i < KV_MUTATION_COUNT; i++) CHECK(kv_mutation_name(i) != NULL);
    CHECK(kv_mutation_name(-1) == NULL);
    CHECK(kv_mutation_name(KV_MUTATION_COUNT) == NULL);
}

int main(void) {
    RUN(every_cut_of_every_message_is_refused);
    RUN(who_is_no_member_is_not_heard);
    RUN(every_rule_that_can_be_left_out_has_a_name);
    return check_report();
}
