/* test_late.c -- what is in the log and not decided: evaluation sees it, readers do not, until it is committed or cut.
 *
 * The store is a replica's, without the replica: here a test says which version is evaluated next, which are committed,
 * and which are cut, as replica_write.c does. Undecided versions wait in a queue, oldest first. */
#include "../src/late.h"
#include "check.h"
#include "kv/io_sim.h"

enum { PENDING_MAX = 512, SHARD = 3, INLINE_SIZE = 256, TEXT_SIZE = 512 };
static const int64_t START_MS = 1700000000000;
static const uint64_t BALLOT = 5 << 16 | 2;

/* The records of one version. */
typedef struct pending {
    kv_position position;
    uint64_t version;
    uint32_t size;
    uint32_t record_count;
} pending;

typedef struct bench {
    kv_sim *sim;
    kv_late late;
    kv_store *store;
    kv_caller *c;
    uint64_t last, committed;
    pending queue[PENDING_MAX];
    size_t count;
    kv_result result;
    char text[TEXT_SIZE]; /* of the last read */
} bench;

/* --- opening; a replay shows what was committed, and queues the rest --- */

static kv_status replayed(void *context, kv_store *store, const kv_record *record, kv_position position, uint32_t used,
                          kv_fault *fault) {
    bench *b = context;
    pending *newest = b->count == 0 ? NULL : &b->queue[b->count - 1];
    CHECK_EQ(record->shard, SHARD);
    CHECK_EQ(record->ballot, BALLOT);
    CHECK_EQ(record->prev_ballot, BALLOT - 1);
    b->last = record->version;
    if (record->version <= b->committed) return store_show(store, record, position, used, fault);
    if (newest != NULL && newest->version == record->version) {
        newest->size = position.offset + used - newest->position.offset;
        newest->record_count++;
        return KV_OK;
    }
    KV_ASSERT(b->count < PENDING_MAX);
    b->queue[b->count++] = (pending){.position = position, .version = record->version, .size = used, .record_count = 1};
    return KV_OK;
}

static void open_it(bench *b) {
    kv_fault fault;
    kv_options options = {.segment_size_min = 1 << 16, .segment_size_max = 1 << 16, .inline_size_max = INLINE_SIZE};
    b->late = (kv_late){.resolve = replayed, .context = b};
    b->count = 0;
    kv_status status = store_open_late(kv_sim_io(b->sim), &options, &b->late, NULL, 0, &fault, &b->store);
    if (status != KV_OK) printf("open: %s\n", fault.what);
    KV_ASSERT(status == KV_OK && kv_caller_new(b->store, &b->c) == KV_OK);
}

static void close_it(bench *b) {
    kv_store_free(b->store);
    late_free(&b->late);
}

static void begin(bench *b) {
    memset(b, 0, sizeof *b);
    b->sim = kv_sim_new();
    kv_sim_set_recording(b->sim, 0);
    kv_sim_set_clock(b->sim, START_MS);
    open_it(b);
}

static void end(bench *b) {
    close_it(b);
    kv_sim_free(b->sim);
}

/* --- evaluating, committing, cutting --- */

static void evaluate_begin(bench *b, const kv_request *request, enum late_tells tells) {
    kv_late *late = &b->late;
    late->shard = SHARD;
    late->version = b->last + 1;
    late->ballot = BALLOT;
    late->prev_ballot = BALLOT - 1;
    late->request = request;
    late->tells = tells;
    late->record_count = 0;
    late->evaluating = true;
}

static kv_result evaluate_end(bench *b) {
    b->late.evaluating = false;
    if (b->late.record_count == 0) return b->result;
    KV_ASSERT(b->count < PENDING_MAX);
    b->queue[b->count++] = (pending){.position = b->late.position, .version = ++b->last, .size = b->late.size,
                                     .record_count = b->late.record_count};
    return b->result;
}

#define ASKED(b, request, tells, call) (evaluate_begin(b, request, tells), (b)->result = (call), evaluate_end(b))
#define EVALUATED(b, call) ASKED(b, NULL, LATE_NOTHING, call)

static kv_record record_at(const bench *b, kv_position position, uint32_t *used) {
    uint64_t size;
    kv_record record = {0};
    const uint8_t *bytes = kv_flow_at(b->store->flow, position.segment, position.offset, &size);
    KV_ASSERT(bytes != NULL);
    CHECK_EQ(kv_record_decode(bytes, size, kv_place(kv_flow_salt(b->store->flow), position.segment, position.offset), &record, used), KV_OK);
    return record;
}

/* The names of a record are undecided no more. */
static void decide(bench *b, const kv_record *record, kv_position position) {
    late_remove(&b->late, target_of(b->store, record).hash, store_location(record, position));
    if (!makes_head(record)) return;
    target head = target_table(b->store, record->table_id, KV_LOC_HEAD);
    late_remove(&b->late, head.hash, kv_loc_make(position.segment, position.offset, KV_LOC_HEAD));
}

enum fate { COMMITTED, CUT, UNDECIDED };

static void settle(bench *b, const pending *one, enum fate fate) {
    kv_fault fault;
    kv_position at = one->position;
    uint32_t used, count = 0;
    for (; at.offset < one->position.offset + one->size; at.offset += used, count++) {
        kv_record record = record_at(b, at, &used);
        CHECK_EQ(record.version, one->version);
        b->late.evaluating = fate == UNDECIDED;
        if (fate != CUT) CHECK_EQ(store_show(b->store, &record, at, used, &fault), KV_OK);
        b->late.evaluating = false;
        if (fate != UNDECIDED) decide(b, &record, at);
    }
    CHECK_EQ(count, one->record_count);
}

static void commit_one(bench *b) {
    KV_ASSERT(b->count != 0);
    settle(b, &b->queue[0], COMMITTED);
    b->committed = b->queue[0].version;
    memmove(&b->queue[0], &b->queue[1], --b->count * sizeof b->queue[0]);
    if (b->count == 0) CHECK_EQ(b->late.count, 0);
}

static void commit_all(bench *b) {
    while (b->count != 0) commit_one(b);
}

/* What stands in the log stays there; only the names go. */
static void cut_all(bench *b) {
    for (size_t i = 0; i < b->count; i++) settle(b, &b->queue[i], CUT);
    b->last -= b->count;
    b->count = 0;
    CHECK_EQ(b->late.count, 0);
}

/* --- reading, as a reader and as whoever evaluates --- */

#define BYTES(text) (const uint8_t *)(text), strlen(text)

static const char *text_of(bench *b, kv_result size) {
    if (size < 0) return size == kv_ending(KV_ABSENT) ? "-" : kv_status_name((int)size);
    KV_ASSERT(size < TEXT_SIZE);
    memcpy(b->text, kv_caller_answer(b->c)->small, (size_t)size);
    b->text[size] = 0;
    return b->text;
}

static const char *reads(bench *b, const char *key) { return text_of(b, kv_get(b->c, BYTES(key))); }

static const char *reads_row(bench *b, const char *table, const char *row) {
    return text_of(b, kv_row_get(b->c, BYTES(table), BYTES(row)));
}

static const char *evaluates(bench *b, const char *key) {
    b->late.evaluating = true;
    const char *text = reads(b, key);
    b->late.evaluating = false;
    return text;
}

static const char *evaluates_row(bench *b, const char *table, const char *row) {
    b->late.evaluating = true;
    const char *text = reads_row(b, table, row);
    b->late.evaluating = false;
    return text;
}

static kv_result rows(bench *b, const char *table, bool evaluating) {
    b->late.evaluating = evaluating;
    kv_result count = kv_table_look(b->c, BYTES(table));
    b->late.evaluating = false;
    return count;
}

#define CHECK_TEXT(left, right)                                                                     \
    do {                                                                                            \
        const char *check_l = (left);                                                               \
        if (strcmp(check_l, right) != 0) {                                                          \
            check_failed_here = 1;                                                                  \
            printf("%s:%d: %s is \"%s\", not \"%s\"\n", __FILE__, __LINE__, #left, check_l, right); \
        }                                                                                           \
    } while (0)

static kv_result put(bench *b, const char *key, const char *value) {
    return EVALUATED(b, kv_put(b->c, BYTES(key), BYTES(value), 0, 0));
}

static kv_result row_put(bench *b, const char *table, const char *row, const char *value) {
    return EVALUATED(b, kv_row_put(b->c, BYTES(table), BYTES(row), BYTES(value), 0, 0));
}

/* --- promises: keys --- */

TEST(an_undecided_put_is_seen_by_evaluation_only) {
    bench b;
    begin(&b);
    CHECK_EQ(put(&b, "k", "one"), 1);
    CHECK_TEXT(reads(&b, "k"), "-");
    CHECK_TEXT(evaluates(&b, "k"), "one");
    commit_all(&b);
    CHECK_TEXT(reads(&b, "k"), "one");
    CHECK_EQ(put(&b, "k", "two"), 2);
    CHECK_EQ(put(&b, "k", "three"), 3);
    CHECK_TEXT(reads(&b, "k"), "one");
    CHECK_TEXT(evaluates(&b, "k"), "three");
    commit_one(&b); /* The second: the third is what is evaluated still. */
    CHECK_TEXT(reads(&b, "k"), "two");
    CHECK_TEXT(evaluates(&b, "k"), "three");
    commit_all(&b);
    CHECK_TEXT(reads(&b, "k"), "three");
    CHECK_TEXT(evaluates(&b, "k"), "three");
    end(&b);
}

TEST(what_is_cut_was_never_there) {
    bench b;
    begin(&b);
    put(&b, "k", "one");
    commit_all(&b);
    put(&b, "k", "two");
    EVALUATED(&b, kv_delete(b.c, BYTES("k"), -1, 0));
    put(&b, "other", "x");
    CHECK_TEXT(evaluates(&b, "k"), "-");
    cut_all(&b);
    CHECK_TEXT(reads(&b, "k"), "one");
    CHECK_TEXT(evaluates(&b, "k"), "one");
    CHECK_TEXT(evaluates(&b, "other"), "-");
    CHECK_EQ(put(&b, "k", "again"), 2); /* Its version is the next one's. */
    commit_all(&b);
    CHECK_TEXT(reads(&b, "k"), "again");
    end(&b);
}

TEST(an_undecided_delete_is_seen_by_evaluation_only) {
    bench b;
    begin(&b);
    put(&b, "k", "one");
    commit_all(&b);
    CHECK_EQ(EVALUATED(&b, kv_delete(b.c, BYTES("k"), -1, 0)), 2);
    CHECK_TEXT(reads(&b, "k"), "one");
    CHECK_TEXT(evaluates(&b, "k"), "-");
    CHECK_EQ(EVALUATED(&b, kv_delete(b.c, BYTES("k"), -1, 0)), kv_ending(KV_ABSENT));
    CHECK_EQ(b.count, 1); /* A delete of nothing is no record. */
    CHECK_EQ(EVALUATED(&b, kv_cas(b.c, BYTES("k"), BYTES("new"), 0, 0, 0)), 3); /* Absent, it is. */
    CHECK_TEXT(reads(&b, "k"), "one");
    commit_one(&b);
    CHECK_TEXT(reads(&b, "k"), "-");
    commit_one(&b);
    CHECK_TEXT(reads(&b, "k"), "new");
    end(&b);
}

TEST(a_hot_counter_does_not_wait) {
    bench b;
    begin(&b);
    for (int64_t i = 1; i <= 100; i++) {
        EVALUATED(&b, kv_incr(b.c, BYTES("n"), 2, 0, 0));
        CHECK_EQ(kv_caller_answer(b.c)->number, 2 * i);
    }
    CHECK_TEXT(reads(&b, "n"), "-");
    CHECK_EQ(b.late.count, 1); /* One name, however often. */
    for (int i = 0; i < 60; i++) commit_one(&b);
    CHECK_TEXT(reads(&b, "n"), "120");
    CHECK_TEXT(evaluates(&b, "n"), "200");
    commit_all(&b);
    CHECK_TEXT(reads(&b, "n"), "200");
    end(&b);
}

TEST(append_and_cas_rest_on_what_is_undecided) {
    bench b;
    begin(&b);
    CHECK_EQ(EVALUATED(&b, kv_append(b.c, BYTES("k"), BYTES("ab"), 0, 0)), 2);
    CHECK_EQ(EVALUATED(&b, kv_append(b.c, BYTES("k"), BYTES("cde"), 0, 0)), 5);
    CHECK_EQ(EVALUATED(&b, kv_cas(b.c, BYTES("k"), BYTES("x"), 1, 0, 0)), KV_ECONFLICT);
    CHECK_EQ(kv_caller_answer(b.c)->version, 2);
    CHECK_EQ(EVALUATED(&b, kv_cas(b.c, BYTES("k"), BYTES("x"), 2, 0, 0)), 3);
    commit_one(&b);
    CHECK_TEXT(reads(&b, "k"), "ab");
    commit_one(&b);
    CHECK_TEXT(reads(&b, "k"), "abcde");
    commit_one(&b);
    CHECK_TEXT(reads(&b, "k"), "x");
    end(&b);
}

TEST(what_is_refused_leaves_nothing) {
    char large[INLINE_SIZE + 1];
    bench b;
    begin(&b);
    memset(large, 'x', INLINE_SIZE);
    large[INLINE_SIZE] = 0;
    put(&b, "k", large);
    CHECK_EQ(EVALUATED(&b, kv_append(b.c, BYTES("k"), BYTES("y"), 0, 0)), KV_EVALUESIZE);
    CHECK_EQ(EVALUATED(&b, kv_incr(b.c, BYTES("k"), 1, 0, 0)), KV_ENOTINT);
    CHECK_EQ(EVALUATED(&b, kv_row_put(b.c, BYTES("k"), BYTES("row"), BYTES("v"), 0, 0)), KV_EWRONGTYPE);
    CHECK_EQ(b.count, 1);
    CHECK_EQ(b.late.count, 1);
    commit_all(&b);
    end(&b);
}

/* --- tables --- */

TEST(a_new_table_is_there_for_evaluation_only) {
    bench b;
    begin(&b);
    CHECK_EQ(row_put(&b, "t", "r1", "one"), 1);
    CHECK_EQ(b.queue[0].record_count, 2); /* The table, and its row. */
    CHECK_EQ(rows(&b, "t", false), kv_ending(KV_ABSENT));
    CHECK_TEXT(reads_row(&b, "t", "r1"), "-");
    CHECK_EQ(rows(&b, "t", true), 1);
    CHECK_TEXT(evaluates_row(&b, "t", "r1"), "one");
    CHECK_EQ(EVALUATED(&b, kv_put(b.c, BYTES("x"), BYTES("y"), 0, 0)), 2);
    CHECK_EQ(EVALUATED(&b, kv_incr(b.c, BYTES("t"), 1, 0, 0)), KV_EWRONGTYPE);
    CHECK_EQ(row_put(&b, "t", "r2", "two"), 3);
    CHECK_EQ(b.queue[2].record_count, 1); /* Into the table that is undecided, too. */
    CHECK_EQ(rows(&b, "t", true), 2);
    commit_one(&b);
    CHECK_EQ(rows(&b, "t", false), 1);
    CHECK_TEXT(reads_row(&b, "t", "r1"), "one");
    CHECK_TEXT(reads_row(&b, "t", "r2"), "-");
    commit_all(&b);
    CHECK_EQ(rows(&b, "t", false), 2);
    CHECK_TEXT(reads_row(&b, "t", "r2"), "two");
    end(&b);
}

TEST(a_table_that_is_cut_leaves_no_row_behind) {
    bench b;
    begin(&b);
    row_put(&b, "t", "r", "one");
    row_put(&b, "t", "s", "two");
    cut_all(&b);
    CHECK_EQ(rows(&b, "t", true), kv_ending(KV_ABSENT));
    CHECK_TEXT(evaluates_row(&b, "t", "r"), "-");
    CHECK_EQ(row_put(&b, "t", "s", "three"), 1);
    commit_all(&b);
    CHECK_EQ(rows(&b, "t", false), 1);
    CHECK_TEXT(reads_row(&b, "t", "r"), "-");
    CHECK_TEXT(reads_row(&b, "t", "s"), "three");
    end(&b);
}

TEST(rows_over_committed_ones_and_a_drop_over_both) {
    bench b;
    begin(&b);
    row_put(&b, "t", "r", "one");
    commit_all(&b);
    row_put(&b, "t", "r", "two");
    EVALUATED(&b, kv_row_delete(b.c, BYTES("t"), BYTES("r"), -1, 0));
    CHECK_EQ(rows(&b, "t", true), 0);
    CHECK_EQ(rows(&b, "t", false), 1);
    CHECK_TEXT(reads_row(&b, "t", "r"), "one");
    EVALUATED(&b, kv_table_drop(b.c, BYTES("t"), 0));
    CHECK_EQ(rows(&b, "t", true), kv_ending(KV_ABSENT));
    row_put(&b, "t", "s", "new"); /* Another table of that name. */
    CHECK_EQ(rows(&b, "t", true), 1);
    CHECK_EQ(rows(&b, "t", false), 1);
    CHECK_TEXT(evaluates_row(&b, "t", "r"), "-");
    commit_one(&b);
    CHECK_TEXT(reads_row(&b, "t", "r"), "two");
    commit_one(&b);
    CHECK_EQ(rows(&b, "t", false), 0);
    commit_one(&b);
    CHECK_EQ(rows(&b, "t", false), kv_ending(KV_ABSENT));
    commit_one(&b);
    CHECK_EQ(rows(&b, "t", false), 1);
    CHECK_TEXT(reads_row(&b, "t", "s"), "new");
    CHECK_TEXT(reads_row(&b, "t", "r"), "-");
    end(&b);
}

TEST(rows_that_get_their_ids_get_different_ones) {
    bench b;
    int64_t ids[4];
    begin(&b);
    for (int i = 0; i < 4; i++) {
        if (i == 2) commit_one(&b);
        ASKED(&b, NULL, LATE_ROW, kv_row_append(b.c, BYTES("t"), BYTES("v"), 0, 0));
        ids[i] = kv_caller_answer(b.c)->number;
        for (int j = 0; j < i; j++) CHECK(ids[j] < ids[i]);
    }
    commit_all(&b);
    CHECK_EQ(rows(&b, "t", false), 4);
    end(&b);
}

TEST(table_ids_never_come_twice) {
    kv_late late = {0};
    static const uint64_t versions[] = {1, 2, 255, 256, 257, ((uint64_t)1 << 40) - 1};
    uint64_t ids[4 * 6 * 3], count = 0;
    for (uint16_t shard = 0; shard < 1024; shard += 341)
        for (size_t v = 0; v < 6; v++)
            for (uint64_t nth = 0; nth < 256; nth += 127) {
                late.shard = shard;
                late.version = versions[v];
                uint64_t id = late_table_id(&late, nth);
                CHECK(id != 0);
                for (uint64_t i = 0; i < count; i++) CHECK(ids[i] != id);
                ids[count++] = id;
            }
    CHECK_EQ(late_table_id(&late, 256), 0);
}

/* --- batches --- */

static kv_operation operation(const char *table, const char *key, const char *value) {
    kv_operation one = {.key = (const uint8_t *)key, .key_size = (uint32_t)strlen(key)};
    if (table != NULL) one.table = (const uint8_t *)table;
    if (table != NULL) one.table_size = (uint32_t)strlen(table);
    if (value != NULL) one.value = (const uint8_t *)value;
    if (value != NULL) one.value_size = strlen(value);
    return one;
}

TEST(a_batch_is_undecided_as_a_whole) {
    bench b;
    begin(&b);
    put(&b, "gone", "x");
    put(&b, "kept", "x");
    commit_all(&b);
    kv_operation all[] = {operation(NULL, "a", "1"), operation(NULL, "gone", NULL), operation("t", "r", "2"), operation("t", "s", "3"),
                          operation("u", "r", "4")};
    kv_expectation here = {.key = (const uint8_t *)"kept", .key_size = 4, .version = 2}, old = here;
    old.version = 1;
    CHECK_EQ(EVALUATED(&b, kv_batch(b.c, all, 5, &old, 1, 0)), KV_ECONFLICT);
    CHECK_EQ(b.count, 0);
    CHECK_EQ(b.late.count, 0);
    CHECK_EQ(EVALUATED(&b, kv_batch(b.c, all, 5, &here, 1, 0)), 3);
    CHECK_EQ(b.queue[0].record_count, 7); /* Two tables more. */
    CHECK_TEXT(reads(&b, "a"), "-");
    CHECK_TEXT(reads(&b, "gone"), "x");
    CHECK_EQ(rows(&b, "t", false), kv_ending(KV_ABSENT));
    CHECK_TEXT(evaluates(&b, "a"), "1");
    CHECK_TEXT(evaluates(&b, "gone"), "-");
    CHECK_EQ(rows(&b, "t", true), 2);
    CHECK_TEXT(evaluates_row(&b, "u", "r"), "4");
    kv_expectation undecided = {.key = (const uint8_t *)"a", .key_size = 1, .version = 3};
    kv_operation more[] = {operation(NULL, "a", "5")};
    CHECK_EQ(EVALUATED(&b, kv_batch(b.c, more, 1, &undecided, 1, 0)), 4);
    commit_one(&b);
    CHECK_TEXT(reads(&b, "a"), "1");
    CHECK_TEXT(reads(&b, "gone"), "-");
    CHECK_EQ(rows(&b, "t", false), 2);
    CHECK_TEXT(reads_row(&b, "u", "r"), "4");
    cut_all(&b);
    CHECK_TEXT(evaluates(&b, "a"), "1");
    end(&b);
}

TEST(a_version_makes_so_many_tables_and_no_more) {
    static kv_operation all[257];
    static char names[257][16];
    bench b;
    begin(&b);
    for (int i = 0; i < 257; i++) {
        snprintf(names[i], sizeof names[i], "t%d", i);
        all[i] = operation(names[i], "r", "v");
    }
    CHECK_EQ(EVALUATED(&b, kv_batch(b.c, all, 257, NULL, 0, 0)), KV_EBATCHSIZE);
    CHECK_EQ(b.count, 0);
    CHECK_EQ(EVALUATED(&b, kv_batch(b.c, all, 256, NULL, 0, 0)), 1);
    commit_all(&b);
    for (int i = 0; i < 256; i++) CHECK_EQ(rows(&b, names[i], false), 1);
    end(&b);
}

/* --- what a record says of its request --- */

/* The nth record of the newest version. */
static kv_record newest(const bench *b, uint32_t nth) {
    kv_position at = b->queue[b->count - 1].position;
    uint32_t used;
    kv_record record = record_at(b, at, &used);
    while (nth-- > 0) {
        at.offset += used;
        record = record_at(b, at, &used);
    }
    return record;
}

/* One of a version's records carries it, the one that knows the result. */
static void check_request(const bench *b, const kv_request *asked, int64_t result) {
    kv_record record = {0};
    uint32_t carriers = 0;
    for (uint32_t i = 0; i < b->queue[b->count - 1].record_count; i++) {
        kv_record one = newest(b, i);
        if (!(one.options & KV_HAS_REQUEST)) continue;
        record = one;
        carriers++;
    }
    CHECK_EQ(carriers, 1);
    CHECK_EQ(record.request.client, asked->client);
    CHECK_EQ(record.request.number, asked->number);
    CHECK_EQ(record.request.seen, asked->seen);
    CHECK_EQ(record.request.lane, asked->lane);
    CHECK_EQ(record.request.attempt, asked->attempt);
    CHECK_EQ(record.request.outcome, 0);
    CHECK_EQ(record.request.result, result);
}

TEST(a_record_carries_its_request_and_the_result) {
    kv_request asked = {.client = 77, .number = 12, .seen = 9, .lane = 4, .attempt = 2};
    bench b;
    begin(&b);
    ASKED(&b, &asked, LATE_NOTHING, kv_put(b.c, BYTES("k"), BYTES("12345"), 0, 0));
    check_request(&b, &asked, 0);
    ASKED(&b, &asked, LATE_NUMBER, kv_incr(b.c, BYTES("n"), INT64_MIN, 0, 0));
    check_request(&b, &asked, INT64_MIN);
    ASKED(&b, &asked, LATE_NUMBER, kv_incr(b.c, BYTES("n"), INT64_MAX, 0, 0));
    check_request(&b, &asked, -1);
    ASKED(&b, &asked, LATE_SIZE, kv_append(b.c, BYTES("k"), BYTES("67"), 0, 0));
    check_request(&b, &asked, 7);
    ASKED(&b, &asked, LATE_NOTHING, kv_delete(b.c, BYTES("k"), -1, 0));
    check_request(&b, &asked, 0);
    row_put(&b, "t", "r", "v");
    CHECK(!(newest(&b, 0).options & KV_HAS_REQUEST)); /* Nobody's. */
    ASKED(&b, &asked, LATE_ROW, kv_row_append(b.c, BYTES("t"), BYTES("v"), 0, 0));
    check_request(&b, &asked, kv_caller_answer(b.c)->number);
    kv_operation all[] = {operation(NULL, "a", "1"), operation("new", "r", "2")};
    ASKED(&b, &asked, LATE_NOTHING, kv_batch(b.c, all, 2, NULL, 0, 0));
    check_request(&b, &asked, 0);
    kv_record record = newest(&b, 1);
    CHECK_EQ(record.shard, SHARD);
    CHECK(record.ballot == BALLOT && record.prev_ballot == BALLOT - 1);
    end(&b);
}

/* Two records, and it is the row's that says what came of it. */
TEST(the_first_row_of_a_table_carries_its_result) {
    kv_request asked = {.client = 1, .number = 1, .attempt = 1};
    bench b;
    begin(&b);
    ASKED(&b, &asked, LATE_ROW, kv_row_append(b.c, BYTES("t"), BYTES("v"), 0, 0));
    check_request(&b, &asked, kv_caller_answer(b.c)->number);
    end(&b);
}

TEST(an_incr_of_a_row_carries_its_sum) {
    kv_request asked = {.client = 1, .number = 1, .attempt = 1};
    bench b;
    begin(&b);
    row_put(&b, "t", "r", "40");
    ASKED(&b, &asked, LATE_NUMBER, kv_row_incr(b.c, BYTES("t"), BYTES("r"), 2, 0, 0));
    check_request(&b, &asked, 42);
    ASKED(&b, &asked, LATE_NUMBER, kv_row_incr(b.c, BYTES("new"), BYTES("r"), 7, 0, 0)); /* Its table comes with it. */
    check_request(&b, &asked, 7);
    end(&b);
}

/* --- time --- */

TEST(nothing_ends_by_itself) {
    bool deleted;
    bench b;
    begin(&b);
    EVALUATED(&b, kv_put(b.c, BYTES("k"), BYTES("v"), 1000, 0));
    commit_all(&b);
    kv_sim_set_clock(b.sim, START_MS + 5000);
    CHECK_TEXT(reads(&b, "k"), "v");
    CHECK_TEXT(evaluates(&b, "k"), "v");
    target t = target_key(b.store, BYTES("k"));
    EVALUATED(&b, store_expire(b.c, &t, &deleted)); /* Judged by no time, it is alive. */
    CHECK(!deleted && b.count == 0);
    b.late.judge_ms = START_MS + 5000;
    EVALUATED(&b, store_expire(b.c, &t, &deleted));
    b.late.judge_ms = 0;
    CHECK(deleted && b.count == 1);
    CHECK_EQ(newest(&b, 0).kind, KV_KIND_DELETE);
    CHECK(newest(&b, 0).flags & KV_FLAG_EXPIRED);
    CHECK_TEXT(reads(&b, "k"), "v"); /* Until that is committed. */
    CHECK_TEXT(evaluates(&b, "k"), "-");
    commit_all(&b);
    CHECK_TEXT(reads(&b, "k"), "-");
    end(&b);
}

/* --- replay --- */

TEST(a_replay_shows_what_was_committed_and_queues_the_rest) {
    bench b;
    begin(&b);
    put(&b, "k", "one");
    row_put(&b, "t", "r", "two");
    commit_all(&b);
    put(&b, "k", "three");
    kv_operation all[] = {operation(NULL, "a", "4"), operation("u", "r", "5"), operation("t", "r", NULL)};
    EVALUATED(&b, kv_batch(b.c, all, 3, NULL, 0, 0));
    pending was[2];
    memcpy(was, b.queue, sizeof was);
    close_it(&b);
    b.last = 0;
    open_it(&b);
    CHECK_EQ(b.last, 4);
    CHECK_EQ(b.count, 2);
    for (int i = 0; i < 2; i++) { /* Where they were, envelopes aside. */
        CHECK_EQ(kv_position_order(b.queue[i].position), kv_position_order(was[i].position));
        CHECK_EQ(b.queue[i].size, was[i].size);
        CHECK_EQ(b.queue[i].record_count, was[i].record_count);
    }
    CHECK_TEXT(reads(&b, "k"), "one");
    CHECK_TEXT(reads(&b, "a"), "-");
    CHECK_TEXT(reads_row(&b, "t", "r"), "two");
    CHECK_TEXT(evaluates(&b, "k"), "one"); /* Whoever takes over says what is undecided. */
    for (size_t i = 0; i < b.count; i++) settle(&b, &b.queue[i], UNDECIDED);
    CHECK_TEXT(evaluates(&b, "k"), "three");
    CHECK_TEXT(evaluates(&b, "a"), "4");
    CHECK_TEXT(evaluates_row(&b, "u", "r"), "5");
    CHECK_TEXT(evaluates_row(&b, "t", "r"), "-");
    CHECK_TEXT(reads(&b, "k"), "one");
    CHECK_EQ(EVALUATED(&b, kv_append(b.c, BYTES("a"), BYTES("x"), 0, 0)), 2);
    commit_all(&b);
    CHECK_TEXT(reads(&b, "k"), "three");
    CHECK_TEXT(reads(&b, "a"), "4x");
    CHECK_TEXT(reads_row(&b, "u", "r"), "5");
    CHECK_EQ(rows(&b, "t", false), 0);
    end(&b);
}

TEST(records_from_elsewhere_are_appended_as_they_are) {
    kv_record records[2] = {
        {.kind = KV_KIND_PUT, .key = (const uint8_t *)"a", .key_size = 1, .value = (const uint8_t *)"1", .value_size = 1},
        {.kind = KV_KIND_PUT, .key = (const uint8_t *)"b", .key_size = 1, .value = (const uint8_t *)"2", .value_size = 1}};
    bench b;
    begin(&b);
    for (size_t count = 1; count <= 2; count++) {
        pending one = {.version = count, .record_count = (uint32_t)count};
        for (size_t i = 0; i < count; i++) {
            records[i].version = count;
            records[i].shard = SHARD;
            records[i].ballot = BALLOT;
            records[i].prev_ballot = BALLOT - 1;
            records[i].options = KV_HAS_SEQUENCE | KV_HAS_BALLOT | KV_HAS_PREV_BALLOT;
        }
        uint64_t sequence = kv_flow_sequence(b.store->flow);
        CHECK_EQ(late_append(b.store, records, count, &one.position, &one.size), KV_OK);
        CHECK_EQ(kv_flow_sequence(b.store->flow), sequence + count);
        b.queue[b.count++] = one;
    }
    CHECK_EQ(b.late.count, 0); /* Nobody has said that they are undecided. */
    CHECK_TEXT(evaluates(&b, "a"), "-");
    commit_one(&b);
    CHECK_TEXT(reads(&b, "a"), "1");
    CHECK_TEXT(reads(&b, "b"), "-");
    commit_one(&b);
    CHECK_TEXT(reads(&b, "b"), "2");
    close_it(&b);
    open_it(&b);
    CHECK_EQ(b.last, 2);
    CHECK_EQ(b.count, 0);
    CHECK_TEXT(reads(&b, "b"), "2");
    end(&b);
}

/* --- the table of undecided names by itself --- */

static uint64_t random_state;

static uint64_t random_next(void) {
    random_state = random_state * 6364136223846793005ULL + 1442695040888963407ULL;
    return random_state >> 33;
}

/* As a search goes: from its home on, up to the first that is empty. */
static bool late_has(const kv_late *late, uint64_t hash, uint64_t location) {
    uint64_t mask = late->capacity - 1;
    for (uint64_t at = hash & mask; late->capacity != 0 && late->slots[at].location != 0; at = (at + 1) & mask)
        if (late->slots[at].hash == hash && late->slots[at].location == location) return true;
    return false;
}

static uint64_t slots_used(const kv_late *late) {
    uint64_t count = 0;
    for (uint64_t i = 0; i < late->capacity; i++) count += late->slots[i].location != 0;
    return count;
}

/* Few homes, next to each other and about the seam, so that chains run into one another and round it. */
static uint64_t crowded_hash(void) {
    static const uint64_t homes[] = {0, 1, 2, 61, 62, 63, 31, 32};
    return random_next() % 12 << 40 | homes[random_next() % 8];
}

TEST(removals_keep_the_chains_whole) {
    enum { NAMES_MAX = 600, STEPS = 8000 };
    static late_slot names[NAMES_MAX];
    for (uint64_t seed = 1; seed <= 6; seed++) {
        size_t count = 0;
        uint64_t location = 0, limit = seed % 3 == 0 ? NAMES_MAX : 20; /* Twenty never make it grow. */
        kv_late late = {0};
        random_state = seed;
        for (int step = 0; step < STEPS; step++) {
            size_t at = count == 0 ? 0 : random_next() % count;
            uint64_t what = random_next() % 8;
            if (what == 0) { /* What is not there changes nothing. */
                late_remove(&late, crowded_hash(), location + 1000000);
            } else if (what < 4 && count != 0) {
                late_remove(&late, names[at].hash, names[at].location);
                names[at] = names[--count];
            } else if (what < 5 && count != 0) { /* In the place of another record of the name. */
                CHECK_EQ(late_put(&late, names[at].hash, names[at].location, ++location), KV_OK);
                names[at].location = location;
            } else if (count < limit) { /* Over a committed one, or none. */
                names[count] = (late_slot){.hash = crowded_hash(), .location = ++location};
                CHECK_EQ(late_put(&late, names[count].hash, what == 5 ? 1u << 30 : 0, location), KV_OK);
                count++;
            }
            CHECK_EQ(late.count, count);
            CHECK_EQ(slots_used(&late), count);
            CHECK(2 * count <= late.capacity || count == 0);
            for (size_t i = 0; i < count; i++) CHECK(late_has(&late, names[i].hash, names[i].location));
            if (check_failed_here) break;
        }
        while (count != 0) {
            count--;
            late_remove(&late, names[count].hash, names[count].location);
        }
        CHECK_EQ(late.count, 0);
        CHECK_EQ(slots_used(&late), 0);
        late_free(&late);
        if (check_failed_here) {
            printf("seed %llu\n", (unsigned long long)seed);
            return;
        }
    }
}

/* --- any life, against a twin that keeps the state after every version --- */

enum { KEYS = 6, COUNTERS = 2, ROWS = 3, LIFE_STEPS = 4000 };

typedef struct twin_value {
    bool there;
    uint64_t version;
    char text[40];
} twin_value;

typedef struct state {
    twin_value keys[KEYS], rows[ROWS];
    bool table;
} state;

static state states[LIFE_STEPS + 1]; /* by version */

static const char *const key_names[KEYS] = {"n0", "n1", "k2", "k3", "k4", "k5"};
static const char *const row_names[ROWS] = {"r0", "r1", "r2"};

static void twin_set(twin_value *v, uint64_t version, const char *text) {
    v->there = true;
    v->version = version;
    snprintf(v->text, sizeof v->text, "%s", text);
}

/* One operation on a key, foretold; false: it leaves no record. */
static bool step_key(bench *b, state *s, uint64_t version) {
    uint64_t which = random_next() % KEYS;
    const char *key = key_names[which];
    twin_value *v = &s->keys[which];
    char text[40];
    snprintf(text, sizeof text, "%d", (int)(random_next() % 1000));
    switch (random_next() % 5) {
    case 0:
        CHECK_EQ(EVALUATED(b, kv_delete(b->c, BYTES(key), -1, 0)), v->there ? (kv_result)version : kv_ending(KV_ABSENT));
        if (!v->there) return false;
        v->there = false;
        return true;
    case 1: {
        uint64_t is = v->there ? v->version : 0, asked = random_next() % 2 ? is : is + 1;
        CHECK_EQ(EVALUATED(b, kv_cas(b->c, BYTES(key), BYTES(text), asked, 0, 0)), asked == is ? (kv_result)version : KV_ECONFLICT);
        if (asked == is) twin_set(v, version, text);
        return asked == is;
    }
    case 2:
        if (which < COUNTERS) {
            snprintf(text, sizeof text, "%d", (v->there ? atoi(v->text) : 0) + 7);
            CHECK_EQ(EVALUATED(b, kv_incr(b->c, BYTES(key), 7, 0, 0)), version);
        } else {
            if (v->there && strlen(v->text) > 20) return false;
            snprintf(text, sizeof text, "%.20sx", v->there ? v->text : "");
            CHECK_EQ(EVALUATED(b, kv_append(b->c, BYTES(key), BYTES("x"), 0, 0)), strlen(text));
        }
        twin_set(v, version, text);
        return true;
    default:
        CHECK_EQ(put(b, key, text), version);
        twin_set(v, version, text);
        return true;
    }
}

static bool step_row(bench *b, state *s, uint64_t version) {
    uint64_t which = random_next() % ROWS, what = random_next() % 16;
    const char *row = row_names[which];
    char text[40];
    if (what == 0) {
        CHECK_EQ(EVALUATED(b, kv_table_drop(b->c, BYTES("t"), 0)), s->table ? (kv_result)version : kv_ending(KV_ABSENT));
        if (!s->table) return false;
        s->table = false;
        for (int i = 0; i < ROWS; i++) s->rows[i].there = false;
        return true;
    }
    if (what < 6) {
        bool there = s->rows[which].there;
        CHECK_EQ(EVALUATED(b, kv_row_delete(b->c, BYTES("t"), BYTES(row), -1, 0)), there ? (kv_result)version : kv_ending(KV_ABSENT));
        s->rows[which].there = false;
        return there;
    }
    snprintf(text, sizeof text, "row %d", (int)(random_next() % 1000));
    CHECK_EQ(row_put(b, "t", row, text), version);
    twin_set(&s->rows[which], version, text);
    s->table = true;
    return true;
}

static void check_state(bench *b, const state *s, bool evaluating) {
    int count = 0;
    for (int i = 0; i < KEYS; i++)
        CHECK_TEXT(evaluating ? evaluates(b, key_names[i]) : reads(b, key_names[i]), s->keys[i].there ? s->keys[i].text : "-");
    for (int i = 0; i < ROWS; i++) {
        CHECK_TEXT(evaluating ? evaluates_row(b, "t", row_names[i]) : reads_row(b, "t", row_names[i]),
                   s->rows[i].there ? s->rows[i].text : "-");
        count += s->rows[i].there;
    }
    CHECK_EQ(rows(b, "t", evaluating), s->table ? count : kv_ending(KV_ABSENT));
}

TEST(any_life_is_that_of_the_twin) {
    for (uint64_t seed = 1; seed <= 4; seed++) {
        bench b;
        begin(&b);
        random_state = seed;
        states[0] = (state){0};
        for (int step = 0; step < LIFE_STEPS && b.last < LIFE_STEPS && !check_failed_here; step++) {
            uint64_t what = random_next() % 100;
            if (what < 35 && b.count != 0) {
                commit_one(&b);
            } else if (what < 37) {
                cut_all(&b);
            } else if (b.count < PENDING_MAX) {
                uint64_t version = b.last + 1;
                states[version] = states[b.last];
                bool wrote = what < 75 ? step_key(&b, &states[version], version) : step_row(&b, &states[version], version);
                CHECK_EQ(b.last, wrote ? version : version - 1);
            }
            if (b.count > 40) commit_all(&b);
            check_state(&b, &states[b.committed], false);
            check_state(&b, &states[b.last], true);
        }
        if (check_failed_here) printf("seed %llu\n", (unsigned long long)seed);
        end(&b);
    }
}

int main(void) {
    RUN(an_undecided_put_is_seen_by_evaluation_only);
    RUN(what_is_cut_was_never_there);
    RUN(an_undecided_delete_is_seen_by_evaluation_only);
    RUN(a_hot_counter_does_not_wait);
    RUN(append_and_cas_rest_on_what_is_undecided);
    RUN(what_is_refused_leaves_nothing);
    RUN(a_new_table_is_there_for_evaluation_only);
    RUN(a_table_that_is_cut_leaves_no_row_behind);
    RUN(rows_over_committed_ones_and_a_drop_over_both);
    RUN(rows_that_get_their_ids_get_different_ones);
    RUN(table_ids_never_come_twice);
    RUN(a_batch_is_undecided_as_a_whole);
    RUN(a_version_makes_so_many_tables_and_no_more);
    RUN(a_record_carries_its_request_and_the_result);
    RUN(the_first_row_of_a_table_carries_its_result);
    RUN(an_incr_of_a_row_carries_its_sum);
    RUN(nothing_ends_by_itself);
    RUN(a_replay_shows_what_was_committed_and_queues_the_rest);
    RUN(records_from_elsewhere_are_appended_as_they_are);
    RUN(removals_keep_the_chains_whole);
    RUN(any_life_is_that_of_the_twin);
    return check_report();
}
