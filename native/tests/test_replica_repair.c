/* test_replica_repair.c -- records that are damaged below the durable watermark, and disks that are not what they were. */
#include "transcript.h"

static bench world; /* too large for a stack */

/* --- a disk between two lives --- */

typedef bool (*which_record)(const kv_record *record, uint64_t version);

static bool is_version(const kv_record *record, uint64_t version) {
    return (record->options & KV_HAS_PREV_BALLOT) != 0 && record->version == version;
}
static bool is_kind(const kv_record *record, uint64_t kind) { return record->kind == kind; }

/* The nth such record that checks gets another first bit. */
static void rot(bench *b, uint32_t n, which_record is, uint64_t what, uint32_t nth) {
    for (uint32_t segment = 1; segment < 20; segment++) {
        char path[32];
        uint64_t size;
        size_t got;
        snprintf(path, sizeof path, "flow/%08x.seg", segment);
        if (kv_sim_file_size(b->disk[n], path, &size) != KV_OK) continue;
        uint8_t *bytes = malloc(size);
        KV_ASSERT(bytes != NULL && kv_sim_read(b->disk[n], path, 0, bytes, size, &got) == KV_OK);
        uint64_t salt = kv_load64(bytes + 32);
        for (uint32_t offset = KV_SEGMENT_HEADER_SIZE, used; offset < size; offset += used) {
            kv_record record;
            if (kv_record_decode(bytes + offset, size - offset, kv_place(salt, segment, offset), &record, &used) != KV_OK) {
                used = KV_RECORD_ALIGN;
                continue;
            }
            if (!is(&record, what) || nth-- != 0) continue;
            uint8_t byte = bytes[offset] ^ 1;
            KV_ASSERT(kv_sim_write(b->disk[n], path, offset, &byte, 1) == KV_OK);
            free(bytes);
            return;
        }
        free(bytes);
    }
    KV_ASSERT(!"no such record");
}

/* All ledgers, the newest included. */
static void rot_ledgers(bench *b, uint32_t n) {
    for (uint32_t i = 0; i < 200; i++) {
        uint64_t before = kv_sim_hash(b->disk[n]);
        for (uint32_t segment = 1; segment < 20; segment++) {
            char path[32];
            uint64_t size;
            size_t got;
            snprintf(path, sizeof path, "flow/%08x.seg", segment);
            if (kv_sim_file_size(b->disk[n], path, &size) != KV_OK) continue;
            uint8_t *bytes = malloc(size);
            KV_ASSERT(bytes != NULL && kv_sim_read(b->disk[n], path, 0, bytes, size, &got) == KV_OK);
            uint64_t salt = kv_load64(bytes + 32);
            for (uint32_t offset = KV_SEGMENT_HEADER_SIZE, used; offset < size; offset += used) {
                kv_record record;
                used = KV_RECORD_ALIGN;
                if (kv_record_decode(bytes + offset, size - offset, kv_place(salt, segment, offset), &record, &used) != KV_OK) continue;
                uint8_t byte = bytes[offset] ^ 1;
                if (record.kind == KV_KIND_LEDGER) KV_ASSERT(kv_sim_write(b->disk[n], path, offset, &byte, 1) == KV_OK);
            }
            free(bytes);
        }
        if (kv_sim_hash(b->disk[n]) == before) return;
    }
}

static kv_status open_again(bench *b, uint32_t n, kv_fault *fault) {
    kv_replica_options options = b->options;
    options.node = (uint16_t)n;
    return kv_replica_open(kv_sim_io(b->disk[n]), &options, fault, &b->node[n]);
}

/* It does not come back: the test goes on without it. */
static void without(bench *b, uint32_t n) {
    b->node[n] = NULL;
    for (uint32_t i = 1; i <= b->count; i++)
        while (b->mail_count[i][n] != 0) free(mail_take(b, i, n).bytes);
}

static void put_some(bench *b, uint32_t owner) {
    TOLD(b, owner, put("a", "1"), KV_ANSWER_OK, 2, 0);
    TOLD(b, owner, put("b", "2"), KV_ANSWER_OK, 3, 0);
    TOLD(b, owner, put("c", "3"), KV_ANSWER_OK, 4, 0);
    heartbeat(b);
    heartbeat(b); /* Now everybody has logged that all of it is committed. */
    forget_said(b);
}

/* --- records --- */

TEST(transcript_a_record_that_is_lost_is_fetched_back) {
    bench *b = &world;
    begin(b, 3);
    own(b, 1);
    put_some(b, 1);
    crash(b, 3);
    rot(b, 3, is_version, 3, 0);
    restart(b, 3);
    scenario(b, "A damaged record",
             "3 has found the record of version 3 damaged. A ledger told it which record that was, so it has a hole there, and "
             "shows nothing behind it. It asks everybody, and who has the record gives it. As what was committed is known, the rest "
             "is shown at once.");
    CHECK_EQ(state_of(b, 3, 0).hole, 3);
    CHECK_EQ(state_of(b, 3, 0).applied, 2);
    CHECK_EQ(state_of(b, 3, 0).last, 4);
    tick(b, 3, b->options.heartbeat_ticks);
    pass(b, 3, 1);
    pass(b, 1, 3);
    lose(b, 3, 2);
    SAID(b, "3>1 LOST s0 version 3 of 1.1\n"
            "1>3 FOUND s0 version 3 1.1 put b\n"
            "3>2 LOST s0 version 3 of 1.1 LOST\n");
    CHECK_EQ(state_of(b, 3, 0).hole, 0);
    CHECK_EQ(state_of(b, 3, 0).applied, 4);
    durable(b, 3);
    restart(b, 3); /* The bad bytes are there still, and what takes their place, too. */
    CHECK_EQ(state_of(b, 3, 0).hole, 0);
    CHECK_EQ(state_of(b, 3, 0).applied, 4);
    CHECK_EQ(state_of(b, 3, 0).last, 4);
    forget_said(b);
    VALUE(b, 1, get("c"), "3");
    end(b);
}

TEST(transcript_an_acknowledgement_vouches_for_nothing_behind_a_hole) {
    bench *b = &world;
    begin_with(b, 3, (kv_replica_options){.shard_count = 1, .keep_max = 100, .retransmit_ticks = 100});
    own(b, 1);
    put_some(b, 1);
    crash(b, 3);
    rot(b, 3, is_version, 3, 0);
    restart(b, 3);
    scenario(b, "An acknowledgement behind a damaged record",
             "3 has not asked for the damaged record yet when something new comes. It takes that in, and says what it misses; so the "
             "owner, which had counted it as held, sends it again.");
    peer_reconnect(b->node[1], &b->node[1]->peers[2]); /* As it will by itself: 3 knows nothing of the old connection. */
    ask(b, 1, put("d", "4"));
    lose(b, 1, 2);
    pass(b, 1, 3);
    durable(b, 3);
    pass(b, 3, 1);
    pass(b, 1, 3);
    durable(b, 3);
    pass(b, 3, 1);
    SAID(b, "1>2 FLOW c1#8 s0 1.1 after 4 of 1.1 commit 4: put d LOST\n"
            "1>3 FLOW c2#1 s0 1.1 after 4 of 1.1 commit 4: put d\n"
            "3 durable\n"
            "3>1 ACK c2#1 refused #1 s0 1.1: promised 1.1 last 2 commit 2 damaged\n"
            "1>3 FLOW c2#2 s0 1.1 after 2 of 1.1 commit 4: put b, put c, put d\n"
            "3 durable\n"
            "3>1 ACK c2#2\n");
    CHECK_EQ(state_of(b, 3, 0).applied, 4);
    CHECK_EQ(state_of(b, 3, 0).last, 5); /* What came behind the hole was not cut as that was filled. */
    end(b);
}

TEST(transcript_who_misses_a_record_has_no_vote_there) {
    bench *b = &world;
    begin_with(b, 3, (kv_replica_options){.shard_count = 2});
    own(b, 1);
    heartbeat(b);
    forget_said(b);
    CHECK(state_of(b, 1, 1).owned);
    crash(b, 3);
    rot(b, 3, is_kind, KV_KIND_BARRIER, 0);
    restart(b, 3);
    CHECK_EQ(state_of(b, 3, 0).hole, 1);
    CHECK_EQ(state_of(b, 3, 1).hole, 0);
    takeover(b, 3); /* It takes over what it may. */
    durable(b, 3);
    lose(b, 3, 1);
    lose(b, 3, 2);
    takeover(b, 2);
    durable(b, 2);
    lose(b, 2, 1);
    pass(b, 2, 3);
    durable(b, 3);
    pass(b, 3, 2);
    SAID(b, "3 durable\n"
            "3>1 PREPARE 2.3 s1 commit 1 last 1 of 1.1 LOST\n"
            "3>2 PREPARE 2.3 s1 commit 1 last 1 of 1.1 LOST\n"
            "2 durable\n"
            "2>1 PREPARE 2.2 s0 commit 1 last 1 of 1.1 s1 commit 1 last 1 of 1.1 LOST\n"
            "2>3 PREPARE 2.2 s0 commit 1 last 1 of 1.1 s1 commit 1 last 1 of 1.1\n"
            "3 durable\n"
            "3>2 PROMISE 2.2 s1 refused, promised 2.3\n");
    end(b);
}

TEST(transcript_a_promise_that_is_lost_is_kept) {
    bench *b = &world;
    begin(b, 3);
    takeover(b, 3);
    settle(b);
    forget_said(b);
    takeover(b, 1); /* Twice: its round is above 3's. */
    durable(b, 1);
    lose(b, 1, 3);
    pass(b, 1, 2);
    durable(b, 2);
    lose(b, 2, 1);
    forget_said(b);
    crash(b, 2);
    rot(b, 2, is_kind, KV_KIND_PROMISE, 1); /* The second: the first was to 3. */
    restart(b, 2);
    CHECK_EQ(state_of(b, 2, 0).promised, ballot_make(2, 1));
    CHECK_EQ(state_of(b, 2, 0).hole, 0);
    scenario(b, "A promise that was damaged",
             "2 had promised the shard to 1, and finds that record damaged; the ledger behind it has all that it said. So 3, which "
             "does not know yet that it is the owner no more, gets no vote of 2's.");
    peer_reconnect(b->node[3], &b->node[3]->peers[1]);
    ask(b, 3, put("a", "x"));
    lose(b, 3, 1);
    pass(b, 3, 2);
    pass(b, 2, 3);
    SAID(b, "3>1 FLOW c1#2 s0 1.3 after 1 of 1.3 commit 1: put a LOST\n"
            "3>2 FLOW c2#1 s0 1.3 after 1 of 1.3 commit 1: put a\n"
            "2>3 ACK c2#1 refused #1 s0 1.3: promised 2.1 last 1 commit 0\n"
            "3 answers retry\n");
    CHECK(!state_of(b, 3, 0).owned);
    end(b);
}

TEST(a_batch_that_is_damaged_comes_back_whole) {
    bench *b = &world;
    begin(b, 3);
    own(b, 1);
    kv_operation all[] = {{.key = (const uint8_t *)"{x}a", .key_size = 4, .value = (const uint8_t *)"1", .value_size = 1},
                          {.key = (const uint8_t *)"{x}b", .key_size = 4, .value = (const uint8_t *)"2", .value_size = 1}};
    kv_ask both = {.kind = KV_REQUEST_BATCH, .operations = all, .operation_count = 2};
    TOLD(b, 1, both, KV_ANSWER_OK, 2, 0);
    heartbeat(b);
    heartbeat(b);
    for (int i = 0; i < 3; i++) {
        crash(b, 3);
        rot(b, 3, i == 0 ? is_kind : is_version, i == 0 ? KV_KIND_ENVELOPE : 2, (uint32_t)i * 2); /* Then what was fetched. */
        restart(b, 3);
        CHECK_EQ(state_of(b, 3, 0).hole, 2);
        heartbeat(b);
        CHECK_EQ(state_of(b, 3, 0).hole, 0);
        CHECK_EQ(state_of(b, 3, 0).applied, 2);
        CHECK_EQ(kv_replica_digest(b->node[3], 0, 2), kv_replica_digest(b->node[1], 0, 2));
    }
    forget_said(b);
    end(b);
}

TEST(what_nobody_holds_any_more_comes_as_a_snapshot) {
    bench *b = &world;
    begin_with(b, 3, (kv_replica_options){.shard_count = 1, .keep_max = 1});
    own(b, 1);
    put_some(b, 1);
    crash(b, 3);
    rot(b, 3, is_version, 2, 0);
    restart(b, 3);
    CHECK_EQ(state_of(b, 3, 0).hole, 2);
    for (int i = 0; i < 4; i++) heartbeat(b);
    CHECK_EQ(state_of(b, 3, 0).hole, 0);
    CHECK_EQ(state_of(b, 3, 0).applied, 4);
    CHECK(kv_replica_count(b->node[3])->installed != 0);
    forget_said(b);
    end(b);
}

static bool is_state(const kv_record *record, uint64_t version) {
    return record->kind < KV_KIND_ENVELOPE && (record->flags & KV_FLAG_MOVED) != 0 && record->version == version;
}

TEST(a_piece_of_a_snapshot_that_is_lost_is_made_good_by_another_snapshot) {
    bench *b = &world;
    begin_with(b, 3, (kv_replica_options){.shard_count = 1, .keep_max = 1});
    own(b, 1);
    crash(b, 3);
    b->count = 2;
    put_some(b, 1);
    b->count = 3;
    restart(b, 3);
    for (int i = 0; i < 4; i++) heartbeat(b);
    CHECK(kv_replica_count(b->node[3])->installed != 0);
    for (int i = 0; i < 2; i++) { /* A record of it, and its end. */
        crash(b, 3);
        rot(b, 3, i == 0 ? is_state : is_kind, i == 0 ? 3 : KV_KIND_SNAPSHOT_END, (uint32_t)i);
        restart(b, 3);
        CHECK(!state_of(b, 3, 0).whole);
        for (int j = 0; j < 4; j++) heartbeat(b);
        CHECK(state_of(b, 3, 0).whole);
        CHECK_EQ(state_of(b, 3, 0).applied, 4);
        CHECK(kv_replica_count(b->node[3])->installed != 0);
    }
    forget_said(b);
    end(b);
}

TEST(what_was_said_of_lives_commits_and_ledgers_is_not_missed) {
    static const uint8_t kinds[] = {KV_KIND_NODE, KV_KIND_COMMIT, KV_KIND_LEDGER};
    bench *b = &world;
    begin(b, 3);
    own(b, 1);
    put_some(b, 1);
    for (size_t i = 0; i < sizeof kinds; i++) {
        uint64_t incarnation = b->node[3]->incarnation;
        crash(b, 3);
        rot(b, 3, is_kind, kinds[i], 0);
        restart(b, 3);
        CHECK_EQ(state_of(b, 3, 0).hole, 0);
        CHECK_EQ(state_of(b, 3, 0).last, 4);
        CHECK_EQ(b->node[3]->incarnation, incarnation + 1);
    }
    forget_said(b);
    end(b);
}

TEST(what_no_ledger_tells_counts_as_a_wiped_disk) {
    bench *b = &world;
    kv_fault fault;
    begin(b, 3);
    own(b, 1);
    put_some(b, 1);
    crash(b, 3);
    rot(b, 3, is_version, 3, 0);
    rot_ledgers(b, 3);
    uint64_t before = kv_sim_hash(b->disk[3]);
    CHECK_EQ(open_again(b, 3, &fault), KV_ECORRUPT);
    CHECK(strstr(fault.what, "counts as wiped") != NULL);
    CHECK_EQ(kv_sim_hash(b->disk[3]), before); /* Nothing was cut. */
    without(b, 3);
    end(b);
}

/* --- disks --- */

static kv_status ended(const bench *b, uint32_t n) {
    kv_fault why;
    return kv_replica_failure(b->node[n], &why);
}

TEST(transcript_a_disk_that_was_set_back_meets_a_peer_that_remembers) {
    bench *b = &world;
    kv_fault fault;
    begin(b, 3);
    own(b, 1);
    kv_sim *image = kv_sim_clone(b->disk[3]);
    put_some(b, 1);
    crash(b, 3);
    kv_sim_free(b->disk[3]);
    b->disk[3] = image;
    b->greeted = true;
    boot(b, 3);
    scenario(b, "A disk that was set back",
             "3 starts on an earlier image of its disk, and does not know it. It says how far its log goes before it says anything "
             "else; 1 remembers that it vouched for more.");
    flush(b, 3);
    pass(b, 3, 1);
    lose(b, 3, 2);
    pass(b, 1, 3);
    SAID(b, "3>1 HELLO\n"
            "3>2 HELLO LOST\n"
            "1>3 WELCOME it does not fit\n");
    CHECK_EQ(ended(b, 3), KV_EBACKWARDS);
    takeover(b, 3);
    tick(b, 3, 8);
    nothing_more(b); /* It says nothing any more. */
    sync_node(b, 3);
    kv_replica_free(b->node[3]);
    CHECK_EQ(open_again(b, 3, &fault), KV_EBACKWARDS); /* Not then, and not later. */
    CHECK(strstr(fault.what, "new node id") != NULL);
    without(b, 3);
    end(b);
}

TEST(a_wiped_disk_does_not_return_under_its_node_id) {
    bench *b = &world;
    begin(b, 3);
    own(b, 1);
    put_some(b, 1);
    crash(b, 3);
    kv_sim_free(b->disk[3]);
    b->disk[3] = kv_sim_new();
    kv_sim_set_random(b->disk[3], 99);
    kv_sim_set_recording(b->disk[3], 0);
    boot(b, 3);
    sync_node(b, 3);
    CHECK_EQ(ended(b, 3), KV_EBACKWARDS);
    end(b);
}

/* Starts alone do not move the end of its log on, until it is past what others remember. */
TEST(starting_again_and_again_does_not_help) {
    bench *b = &world;
    begin(b, 3);
    own(b, 1);
    kv_sim *image = kv_sim_clone(b->disk[3]);
    for (int i = 0; i < 3; i++) restart(b, 3);
    heartbeat(b);
    crash(b, 3);
    kv_sim_free(b->disk[3]);
    b->disk[3] = image;
    b->greeted = true;
    for (int i = 0; i < 8; i++) {
        boot(b, 3);
        sync_node(b, 3);
        crash(b, 3);
    }
    b->greeted = false;
    boot(b, 3);
    sync_node(b, 3);
    CHECK_EQ(ended(b, 3), KV_EBACKWARDS);
    forget_said(b);
    end(b);
}

TEST(a_disk_that_lost_nothing_it_vouched_for_is_welcome) {
    bench *b = &world;
    begin(b, 3);
    own(b, 1);
    put_some(b, 1);
    for (int i = 0; i < 4; i++) {
        for (uint32_t n = 1; n <= 3; n++) {
            restart(b, n);
            CHECK_EQ(ended(b, n), KV_OK);
            CHECK(b->node[n]->ready);
        }
        heartbeat(b);
    }
    forget_said(b);
    end(b);
}

TEST(transcript_no_word_before_hello_is_answered) {
    bench *b = &world;
    begin(b, 3);
    own(b, 1);
    crash(b, 3);
    b->greeted = true;
    boot(b, 3);
    sync_node(b, 3);
    ask(b, 1, put("a", "x"));
    pass(b, 1, 3);
    sync_node(b, 3);
    takeover(b, 3);
    lose(b, 3, 1);
    pass(b, 3, 2);
    pass(b, 2, 3);
    sync_node(b, 3);
    durable(b, 3);
    pass(b, 3, 2); /* To who has answered, and to nobody else. */
    CHECK_EQ(b->mail_count[3][1], 0);
    end(b);
}

TEST(who_awaits_everybody_says_nothing_before) {
    bench *b = &world;
    begin_with(b, 3, (kv_replica_options){.shard_count = 1, .await_hello = 1});
    own(b, 1);
    crash(b, 1);
    crash(b, 3);
    b->count = 2; /* 3 stays away. */
    boot(b, 1);
    sync_node(b, 1);
    sync_node(b, 1);
    CHECK(b->node[1]->peers[1].welcomed);
    CHECK(!b->node[1]->ready);
    kv_replica_declare_gone(b->node[1], 3);
    flush(b, 1);
    sync_node(b, 1);
    CHECK(b->node[1]->ready);
    b->count = 3;
    boot(b, 3);
    forget_said(b);
    end(b);
}

TEST(a_disk_is_of_one_node) {
    bench *b = &world;
    kv_fault fault;
    kv_replica *other = NULL;
    begin(b, 3);
    crash(b, 3);
    kv_replica_options options = b->options;
    options.node = 2;
    CHECK_EQ(kv_replica_open(kv_sim_io(b->disk[3]), &options, &fault, &other), KV_EUSAGE);
    CHECK(strstr(fault.what, "another node") != NULL);
    boot(b, 3);
    end(b);
}

/* --- bytes of values --- */

static uint64_t missing(const bench *b, uint32_t n) {
    kv_replica_lag lag;
    kv_replica_lag_of(b->node[n], &lag);
    return lag.missing_count;
}

TEST(bytes_that_are_damaged_are_missing) {
    bench *b = &world;
    begin_with(b, 3, (kv_replica_options){.shard_count = 1, .inline_max = KV_INLINE_NOTHING});
    own(b, 1);
    put_some(b, 1);
    crash(b, 3);
    rot(b, 3, is_kind, KV_KIND_DATA, 1);
    restart(b, 3);
    CHECK_EQ(state_of(b, 3, 0).hole, 0);
    CHECK_EQ(state_of(b, 3, 0).applied, 4);
    CHECK_EQ(missing(b, 3), 1);
    heartbeat(b);
    CHECK_EQ(missing(b, 3), 0);
    VALUE(b, 3, stale(get("a")), "1");
    VALUE(b, 3, stale(get("b")), "2");
    restart(b, 3); /* The bad ones are there still, and those that were fetched, too. */
    CHECK_EQ(missing(b, 3), 0);
    VALUE(b, 3, stale(get("b")), "2");
    end(b);
}

TEST(who_has_voted_with_bytes_that_are_damaged_has_no_vote) {
    bench *b = &world;
    begin_with(b, 3, (kv_replica_options){.shard_count = 1, .inline_max = KV_INLINE_NOTHING});
    own(b, 1);
    put_some(b, 1);
    kv_ask data = put("d", "4");
    data.durability = KV_DURABILITY_DATA;
    ask(b, 1, data);
    durable(b, 1);
    pass(b, 1, 3);
    durable(b, 3);
    crash(b, 3);
    rot(b, 3, is_kind, KV_KIND_DATA, 3);
    restart(b, 3);
    CHECK_EQ(state_of(b, 3, 0).hole, 5); /* Sent on as it is, it would be taken for one that was committed. */
    settle(b);
    heartbeat(b);
    CHECK_EQ(state_of(b, 3, 0).hole, 0);
    CHECK_EQ(missing(b, 3), 0);
    heartbeat(b);
    VALUE(b, 3, stale(get("d")), "4");
    end(b);
}

int main(int count, char **words) {
    telling = count == 2 && strcmp(words[1], "--tell") == 0;
    RUN(transcript_a_record_that_is_lost_is_fetched_back);
    RUN(transcript_an_acknowledgement_vouches_for_nothing_behind_a_hole);
    RUN(transcript_who_misses_a_record_has_no_vote_there);
    RUN(transcript_a_promise_that_is_lost_is_kept);
    RUN(a_batch_that_is_damaged_comes_back_whole);
    RUN(what_nobody_holds_any_more_comes_as_a_snapshot);
    RUN(a_piece_of_a_snapshot_that_is_lost_is_made_good_by_another_snapshot);
    RUN(what_was_said_of_lives_commits_and_ledgers_is_not_missed);
    RUN(what_no_ledger_tells_counts_as_a_wiped_disk);
    RUN(transcript_a_disk_that_was_set_back_meets_a_peer_that_remembers);
    RUN(a_wiped_disk_does_not_return_under_its_node_id);
    RUN(starting_again_and_again_does_not_help);
    RUN(a_disk_that_lost_nothing_it_vouched_for_is_welcome);
    RUN(transcript_no_word_before_hello_is_answered);
    RUN(who_awaits_everybody_says_nothing_before);
    RUN(a_disk_is_of_one_node);
    RUN(bytes_that_are_damaged_are_missing);
    RUN(who_has_voted_with_bytes_that_are_damaged_has_no_vote);
    return check_report();
}
