/* test_replica_disk.c -- disks that are full, that fail, that do not map well, and bytes that change behind a replica's back:
 * what it says then, and that it says nothing that is not so. */
#include <errno.h>

#include "transcript.h"

/* Its bytes as processes see them: a flipped bit there is one in the page cache. */
static void damage(bench *b, uint32_t n, uint64_t version) {
    const version_entry *entry = log_at(&b->node[n]->shards[0].log, version);
    uint64_t size;
    const kv_position at = entry->position;
    uint8_t *bytes = (uint8_t *)(uintptr_t)kv_flow_at(kv_replica_flow(b->node[n]), at.segment, at.offset, &size);
    KV_ASSERT(bytes != NULL);
    bytes[entry->size / 2] ^= 4;
}

static void check_failed_now(const bench *b, uint32_t n, kv_status status) {
    CHECK_EQ(b->node[n]->failed, status);
    kv_fault why;
    CHECK_EQ(kv_replica_failure(b->node[n], &why), status);
}

/* A replica that failed: nothing is promised, answered or sent any more, whatever comes. */
static void check_silent(bench *b, uint32_t n) {
    wire_out out = {0};
    wire_begin(&out, WIRE_PING);
    wire_end(&out);
    wire_begin(&out, WIRE_PING);
    wire_end(&out);
    if (b->count > 1) CHECK_EQ(kv_replica_receive(b->node[n], n == 1 ? 2 : 1, out.bytes, out.size), KV_OK);
    wire_free(&out);
    forget_said(b);
    takeover(b, n);
    CHECK(!state_of(b, n, 0).taking);
    tick(b, n, 20);
    kv_replica_durable(b->node[n], kv_replica_tail(b->node[n]));
    ask(b, n, put("late", "x"));
    ask(b, n, get("late"));
    char expected[64];
    snprintf(expected, sizeof expected, "%u answers retry\n%u answers retry\n", n, n);
    SAID(b, expected);
    nothing_more_from(b, n);
}

TEST(a_full_disk_makes_writes_unavailable_and_leaves_reads) {
    bench *b = &world;
    begin_with(b, 1, (kv_replica_options){.shard_count = 1, .heartbeat_ticks = 1000});
    own(b, 1);
    TOLD(b, 1, put("a", "x"), KV_ANSWER_OK, 2, 0);
    kv_sim_limit(b->disk[1], kv_sim_used(b->disk[1]));
    static char large[1 << 15];
    memset(large, 'x', sizeof large - 1);
    int32_t status = KV_ANSWER_OK;
    for (int i = 0; i < 8 && status == KV_ANSWER_OK; i++) status = told(b, 1, put("b", large)).reply.status;
    CHECK_EQ(status, KV_ANSWER_UNAVAILABLE);
    VALUE(b, 1, get("a"), "x");
    end(b);
}

TEST(after_a_failed_sync_nothing_more_is_written) {
    bench *b = &world;
    begin(b, 3);
    own(b, 1);
    ask(b, 1, put("a", "x"));
    kv_sim_fail(b->disk[1], KV_SIM_SYNC, 1, EIO, KV_SIM_FAIL_STICKY);
    CHECK(kv_sync(kv_replica_caller(b->node[1])) < 0);
    forget_said(b);
    ask(b, 1, put("b", "x"));
    SAID(b, "1 answers retry\n");
    takeover(b, 2);
    sync_node(b, 2);
    pass(b, 2, 1); /* What 1 has to promise cannot be written. */
    check_failed_now(b, 1, KV_EPOISONED);
    for (uint32_t to = 2; to <= 3; to++)
        while (b->mail_count[1][to] != 0) free(mail_take(b, 1, to).bytes);
    check_silent(b, 1);
    end(b);
}

/* Where stores through a mapping are not to be trusted, records are written by calls, which fail. */
TEST(a_record_that_cannot_be_written_is_not_proposed) {
    bench *b = &world;
    begin(b, 1);
    kv_sim_set_maps_well(b->disk[1], false);
    restart(b, 1);
    own(b, 1);
    TOLD(b, 1, put("a", "x"), KV_ANSWER_OK, 2, 0);
    kv_sim_fail(b->disk[1], KV_SIM_WRITE, 1, EIO, KV_SIM_FAIL_STICKY);
    ask(b, 1, put("b", "x"));
    SAID(b, "1 answers retry\n");
    CHECK_EQ(state_of(b, 1, 0).last, 2);
    tick(b, 1, 4); /* COMMIT cannot be logged. */
    check_failed_now(b, 1, KV_EPOISONED);
    check_silent(b, 1);
    end(b);
}

TEST(a_record_that_changed_is_not_sent) {
    bench *b = &world;
    begin(b, 3);
    own(b, 1);
    CHECK_EQ(told(b, 1, put("a", "x")).reply.status, KV_ANSWER_OK);
    peer_reconnect(b->node[1], &b->node[1]->peers[1]);
    b->node[1]->shards[0].own.next[1] = 2;
    damage(b, 1, 2);
    kv_replica_flush(b->node[1]);
    check_failed_now(b, 1, KV_ECORRUPT);
    end(b);
}

TEST(a_record_that_changed_is_not_applied) {
    bench *b = &world;
    begin(b, 3);
    own(b, 1);
    ask(b, 1, put("a", "x"));
    pass(b, 1, 2);
    sync_node(b, 2);
    settle(b);
    CHECK_EQ(state_of(b, 2, 0).applied, 1);
    damage(b, 2, 2);
    tick(b, 1, 4);
    pass(b, 1, 2);
    check_failed_now(b, 2, KV_ECORRUPT);
    check_silent(b, 2);
    end(b);
}

TEST(what_changed_is_unavailable_to_who_reads_it) {
    bench *b = &world;
    begin(b, 1);
    own(b, 1);
    CHECK_EQ(told(b, 1, put("a", "x")).reply.status, KV_ANSWER_OK);
    damage(b, 1, 2);
    CHECK_EQ(told(b, 1, get("a")).reply.status, KV_ANSWER_UNAVAILABLE);
    CHECK_EQ(told(b, 1, about(KV_REQUEST_APPEND, "a", "y")).reply.status, KV_ANSWER_UNAVAILABLE);
    TOLD(b, 1, put("b", "x"), KV_ANSWER_OK, 3, 0);
    end(b);
}

TEST(what_changed_is_not_part_of_a_snapshot) {
    bench *b = &world;
    begin_with(b, 3, (kv_replica_options){.shard_count = 1, .keep_max = 1});
    own_without_3(b);
    for (int i = 0; i < 5; i++) {
        ask(b, 1, put("a", "x"));
        ask(b, 1, put("b", "x"));
        sync_node(b, 1);
        sync_node(b, 2);
        while (b->mail_count[1][2] != 0) pass(b, 1, 2);
        sync_node(b, 2);
        while (b->mail_count[2][1] != 0) pass(b, 2, 1);
        while (b->mail_count[1][3] != 0) lose(b, 1, 3);
    }
    forget_said(b);
    tick(b, 1, 1);
    CHECK(state_of(b, 1, 0).base > 2);
    damage(b, 1, state_of(b, 1, 0).last);
    tick(b, 1, 8);
    for (int i = 0; i < 20 && b->node[1]->failed == KV_OK; i++) {
        while (b->mail_count[1][3] != 0) pass(b, 1, 3);
        sync_node(b, 3);
        while (b->mail_count[3][1] != 0) pass(b, 3, 1);
    }
    forget_said(b);
    check_failed_now(b, 1, KV_ECORRUPT);
    end(b);
}

TEST(what_expires_and_cannot_be_read_is_left_to_who_asks_for_it) {
    bench *b = &world;
    begin(b, 1);
    own(b, 1);
    CHECK_EQ(told(b, 1, expiring(put("a", "x"), 1000)).reply.status, KV_ANSWER_OK);
    damage(b, 1, 2);
    kv_sim_set_clock(b->disk[1], START_MS + 5000);
    tick(b, 1, 4);
    CHECK_EQ(b->node[1]->failed, KV_OK);
    CHECK_EQ(kv_replica_count(b->node[1])->expired, 0);
    end(b);
}

int main(void) {
    RUN(a_full_disk_makes_writes_unavailable_and_leaves_reads);
    RUN(after_a_failed_sync_nothing_more_is_written);
    RUN(a_record_that_cannot_be_written_is_not_proposed);
    RUN(a_record_that_changed_is_not_sent);
    RUN(a_record_that_changed_is_not_applied);
    RUN(what_changed_is_unavailable_to_who_reads_it);
    RUN(what_changed_is_not_part_of_a_snapshot);
    RUN(what_expires_and_cannot_be_read_is_left_to_who_asks_for_it);
    return check_report();
}
