/* test_wire.c -- what one replica writes another reads, and bytes that nobody wrote are refused.
 *
 * Whatever is read here lies right before a page that cannot be touched: one byte too many, and the test is killed. */
#include <sys/mman.h>

#include "../src/wire.h"
#include "check.h"

enum { ROOM = 1 << 18, FIELDS_MAX = 24, RANDOM_MESSAGES = 300 };

static uint64_t random_state;

static uint64_t random_next(void) {
    random_state = random_state * 6364136223846793005ULL + 1442695040888963407ULL;
    return random_state >> 33;
}

/* Of any length: what varints are about. */
static uint64_t random_number(void) {
    uint64_t wide = random_next() << 33 ^ random_next() << 2 ^ random_next();
    return wide >> random_next() % 64;
}

/* --- the edge --- */

static uint8_t *edge; /* the first byte that cannot be touched */

static void edge_make(void) {
    uint8_t *pages = mmap(NULL, ROOM + KV_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    KV_ASSERT(pages != MAP_FAILED);
    edge = pages + ROOM;
    KV_ASSERT(mprotect(edge, KV_PAGE_SIZE, PROT_NONE) == 0);
}

static wire_in at_edge(const uint8_t *bytes, size_t size) {
    KV_ASSERT(size <= ROOM);
    if (size != 0) memcpy(edge - size, bytes, size);
    return (wire_in){.at = edge - size, .end = edge};
}

/* --- a message of any fields, and the same fields read back --- */

enum field_kind { FIELD_8, FIELD_64, FIELD_VARINT, FIELD_BYTES, FIELD_RECORD, FIELD_KINDS };

typedef struct field {
    enum field_kind kind;
    uint64_t number; /* of bytes: how many */
    kv_record record;
    size_t end;      /* behind it in the message */
} field;

static uint8_t pool[4096]; /* what keys and values are made of */

static kv_record random_record(void) {
    uint8_t kind = (uint8_t)(1 + random_next() % 40);
    bool structure = kind == KV_KIND_ENVELOPE || kind == KV_KIND_SEAL;
    kv_record r = {.kind = structure ? KV_KIND_PUT : kind, .flags = (uint8_t)(random_next() & KV_FLAGS_KNOWN)};
    r.key_size = (uint32_t)(random_next() % 3 == 0 ? random_next() % 300 : random_next() % 8);
    r.value_size = (uint32_t)(random_next() % 3 == 0 ? random_next() % 3000 : random_next() % 8);
    r.key = pool + random_next() % 256;
    r.value = pool + random_next() % 256;
    r.options = random_next() & (KV_HAS_EXPIRY | KV_HAS_REQUEST | KV_HAS_TABLE);
    if (r.options & KV_HAS_EXPIRY) r.expires_ms = random_number();
    if (r.options & KV_HAS_REQUEST)
        r.request = (kv_request){.client = random_number(), .number = random_number(), .seen = random_number(),
                                 .result = (int64_t)(random_number() - random_number()), .lane = (uint32_t)random_number(),
                                 .attempt = (uint16_t)random_number(), .outcome = (int16_t)random_number()};
    if (r.options & KV_HAS_TABLE) {
        r.table_id = random_number();
        r.row_count = random_number();
        r.next_row = random_number();
    }
    return r;
}

static void field_put(wire_out *out, field *f) {
    switch (f->kind) {
    case FIELD_8: wire_put8(out, (uint8_t)f->number); break;
    case FIELD_64: wire_put64(out, f->number); break;
    case FIELD_VARINT: wire_put_varint(out, f->number); break;
    case FIELD_BYTES: wire_put_bytes(out, pool, f->number); break;
    default: wire_put_record(out, &f->record);
    }
    f->end = out->size;
}

static bool request_same(const kv_request *a, const kv_request *b) {
    return a->client == b->client && a->number == b->number && a->seen == b->seen && a->result == b->result &&
           a->lane == b->lane && a->attempt == b->attempt && a->outcome == b->outcome;
}

static bool bytes_same(const uint8_t *a, size_t a_size, const uint8_t *b, size_t b_size) {
    return a_size == b_size && (a_size == 0 || memcmp(a, b, a_size) == 0);
}

static bool record_same(const kv_record *a, const kv_record *b) {
    return a->kind == b->kind && a->flags == b->flags && a->options == b->options && a->expires_ms == b->expires_ms &&
           request_same(&a->request, &b->request) && a->table_id == b->table_id && a->row_count == b->row_count &&
           a->next_row == b->next_row && bytes_same(a->key, a->key_size, b->key, b->key_size) &&
           bytes_same(a->value, a->value_size, b->value, b->value_size);
}

/* What a reader has to hand out once it is bad. */
static const kv_record NOTHING;

static bool record_nothing(const kv_record *r) { return record_same(r, &NOTHING) && r->key == NULL && r->value == NULL; }

/* true: it is what was written; or, of bad bytes, it is nothing. */
static bool field_take(wire_in *in, const field *f) {
    kv_record record;
    const uint8_t *bytes;
    switch (f->kind) {
    case FIELD_8: return wire_take8(in) == (in->bad ? 0 : (uint8_t)f->number);
    case FIELD_64: return wire_take64(in) == (in->bad ? 0 : f->number);
    case FIELD_VARINT: return wire_take_varint(in) == (in->bad ? 0 : f->number);
    case FIELD_BYTES:
        bytes = wire_take_bytes(in, f->number);
        return in->bad ? bytes == NULL : bytes != NULL && memcmp(bytes, pool, f->number) == 0;
    default:
        wire_take_record(in, &record);
        return in->bad ? record_nothing(&record) : record_same(&record, &f->record);
    }
}

static size_t random_fields(field fields[FIELDS_MAX]) {
    size_t count = 1 + random_next() % FIELDS_MAX;
    for (size_t i = 0; i < count; i++) {
        fields[i] = (field){.kind = (enum field_kind)(random_next() % FIELD_KINDS), .number = random_number()};
        if (fields[i].kind == FIELD_BYTES) fields[i].number %= sizeof pool;
        if (fields[i].kind == FIELD_RECORD) fields[i].record = random_record();
    }
    return count;
}

/* Everything before the cut is as it was written; what the cut goes through, and all behind it, is bad. */
static void check_cut(const wire_out *out, const field *fields, size_t count, size_t cut) {
    wire_in in = at_edge(out->bytes, cut);
    for (size_t i = 0; i < count; i++) {
        CHECK(field_take(&in, &fields[i]));
        CHECK_EQ(in.bad, fields[i].end > cut);
        CHECK(in.at <= in.end);
    }
}

/* --- numbers --- */

static size_t varint_size(uint64_t number) {
    wire_out out = {0};
    wire_put_varint(&out, number);
    size_t size = out.size;
    wire_in in = at_edge(out.bytes, size);
    CHECK(wire_take_varint(&in) == number);
    CHECK(!in.bad && in.at == in.end);
    wire_free(&out);
    return size;
}

TEST(varints_are_as_long_as_their_numbers) {
    CHECK_EQ(varint_size(0), 1);
    CHECK_EQ(varint_size(UINT64_MAX), 10);
    for (unsigned bits = 7; bits < 64; bits += 7) {
        uint64_t power = (uint64_t)1 << bits;
        CHECK_EQ(varint_size(power - 1), bits / 7);
        CHECK_EQ(varint_size(power), bits / 7 + 1);
        CHECK_EQ(varint_size(power + 1), bits / 7 + 1);
    }
    for (unsigned bit = 0; bit < 64; bit++) varint_size((uint64_t)1 << bit);
}

TEST(a_varint_that_does_not_fit_is_bad) {
    uint8_t bytes[12];
    wire_in in;
    memset(bytes, 0xff, sizeof bytes);
    bytes[9] = 1;
    in = at_edge(bytes, 10);
    CHECK(wire_take_varint(&in) == UINT64_MAX);
    CHECK(!in.bad);
    for (unsigned tenth = 2; tenth < 256; tenth++) { /* More than one bit, or a byte more to come. */
        bytes[9] = (uint8_t)tenth;
        in = at_edge(bytes, 12);
        CHECK_EQ(wire_take_varint(&in), 0);
        CHECK(in.bad);
    }
}

TEST(what_is_not_there_is_bad_and_stays_bad) {
    wire_in in = at_edge(pool, 7);
    CHECK_EQ(wire_take64(&in), 0); /* Eight bytes of seven. */
    CHECK(in.bad);
    CHECK_EQ(wire_take8(&in), 0); /* There would be seven, but nobody knows what they are. */
    CHECK(wire_take_bytes(&in, 0) == NULL);
    in = at_edge(pool, 7);
    CHECK(wire_take_bytes(&in, 8) == NULL);
    CHECK(in.bad);
    in = at_edge(pool, 7);
    CHECK(wire_take_bytes(&in, UINT64_MAX) == NULL); /* Added to a pointer it would come out before it. */
    CHECK(in.bad);
    in = at_edge(pool, 7);
    CHECK(wire_take_bytes(&in, 7) != NULL);
    CHECK(wire_take_bytes(&in, 0) != NULL); /* Nothing, at the very end. */
    CHECK(!in.bad);
}

/* --- records --- */

TEST(a_record_comes_back_as_it_was) {
    for (random_state = 1; random_state <= 3000; random_state++) {
        uint64_t seed = random_state;
        wire_out out = {0};
        kv_record record = random_record(), back;
        wire_put_record(&out, &record);
        wire_in in = at_edge(out.bytes, out.size);
        wire_take_record(&in, &back);
        CHECK(!in.bad && in.at == in.end);
        CHECK(record_same(&record, &back));
        CHECK(back.key == in.end - back.value_size - back.key_size); /* They point into what was read. */
        CHECK(back.value == in.end - back.value_size);
        wire_free(&out);
        if (check_failed_here) printf("seed %llu\n", (unsigned long long)seed);
        random_state = seed;
    }
}

TEST(what_the_message_says_is_left_out_of_a_record) {
    wire_out bare = {0}, full = {0};
    kv_record record = {.kind = KV_KIND_PUT, .key = pool, .key_size = 5, .value = pool, .value_size = 9};
    wire_put_record(&bare, &record);
    record.options = KV_HAS_SEQUENCE | KV_HAS_BALLOT | KV_HAS_PREV_BALLOT;
    record.shard = 7;
    record.version = record.sequence = record.ballot = record.prev_ballot = UINT64_MAX;
    wire_put_record(&full, &record);
    CHECK(bytes_same(bare.bytes, bare.size, full.bytes, full.size));
    CHECK(bare.size <= 5 + 5 + 9); /* Five bytes beside key and value. */
    wire_free(&bare);
    wire_free(&full);
}

/* A record with one of its first bytes otherwise. */
static bool refused_with(size_t at, uint8_t byte) {
    wire_out out = {0};
    kv_record record = {.kind = KV_KIND_PUT, .key = pool, .key_size = 5, .value = pool, .value_size = 9}, back;
    wire_put_record(&out, &record);
    out.bytes[at] = byte;
    wire_in in = at_edge(out.bytes, out.size);
    wire_take_record(&in, &back);
    CHECK(!in.bad || record_nothing(&back));
    wire_free(&out);
    return in.bad;
}

TEST(a_record_that_no_replica_writes_is_bad) {
    CHECK(refused_with(0, 0)); /* no kind */
    CHECK(refused_with(0, KV_KIND_ENVELOPE)); /* What gives a log its structure is nobody's but its own. */
    CHECK(refused_with(0, KV_KIND_SEAL));
    for (unsigned flag = 1; flag < 256; flag *= 2) CHECK_EQ(refused_with(1, (uint8_t)flag), (flag & ~KV_FLAGS_KNOWN) != 0);
    CHECK(refused_with(2, KV_HAS_SEQUENCE)); /* What the message says is not said again. */
    CHECK(refused_with(2, KV_HAS_BALLOT));
    CHECK(refused_with(2, KV_HAS_PREV_BALLOT));
    CHECK(refused_with(2, 64));
    CHECK(refused_with(3, 6) && !refused_with(3, 4)); /* A key that is longer than what there is. */
    CHECK(refused_with(4, 10) && !refused_with(4, 8));
}

/* A number for key size or value size, then no more. */
static bool sizes_refused(uint64_t key_size, uint64_t value_size, size_t size) {
    static uint8_t bytes[ROOM];
    wire_out out = {0};
    kv_record back;
    wire_put8(&out, KV_KIND_PUT);
    wire_put8(&out, 0);
    wire_put8(&out, 0);
    wire_put_varint(&out, key_size);
    wire_put_varint(&out, value_size);
    memcpy(bytes, out.bytes, out.size);
    wire_in in = at_edge(bytes, out.size + size);
    wire_take_record(&in, &back);
    wire_free(&out);
    return in.bad;
}

TEST(sizes_are_held_against_limits_and_against_what_is_there) {
    CHECK(!sizes_refused(KV_KEY_SIZE_MAX, 0, KV_KEY_SIZE_MAX));
    CHECK(sizes_refused(KV_KEY_SIZE_MAX, 0, KV_KEY_SIZE_MAX - 1));
    CHECK(sizes_refused(KV_KEY_SIZE_MAX + 1, 0, KV_KEY_SIZE_MAX + 1));
    CHECK(sizes_refused(UINT64_MAX, 0, 100));
    CHECK(sizes_refused(((uint64_t)1 << 32) + 4, 0, 100)); /* Cut to 32 bits it would be four. */
    CHECK(!sizes_refused(4, 90000, 90004));
    CHECK(sizes_refused(4, 90000, 90003));
    CHECK(sizes_refused(4, (uint64_t)1 << 31, 100));
    CHECK(sizes_refused(4, ((uint64_t)1 << 32) + 4, 100));
}

/* --- messages --- */

TEST(any_message_reads_back_and_no_cut_of_it_does) {
    for (int i = 1; i <= RANDOM_MESSAGES; i++) {
        field fields[FIELDS_MAX];
        wire_out out = {0};
        random_state = (uint64_t)i;
        size_t count = random_fields(fields);
        for (size_t j = 0; j < count; j++) field_put(&out, &fields[j]);
        check_cut(&out, fields, count, out.size);
        size_t step = out.size > 2000 ? 7 : 1; /* Long ones are values mostly. */
        for (size_t cut = 0; cut < out.size; cut += step) check_cut(&out, fields, count, cut);
        wire_free(&out);
        if (check_failed_here) {
            printf("message %d\n", i);
            return;
        }
    }
}

/* A flipped bit is another message, or none; it is never a reason to read on behind the end. */
TEST(a_flipped_bit_reads_nothing_outside) {
    static uint8_t bytes[ROOM];
    for (int i = 1; i <= 40; i++) {
        field fields[FIELDS_MAX];
        wire_out out = {0};
        random_state = (uint64_t)i;
        size_t count = random_fields(fields);
        for (size_t j = 0; j < count; j++) field_put(&out, &fields[j]);
        memcpy(bytes, out.bytes, out.size);
        for (size_t bit = 0; bit < 8 * out.size; bit += out.size > 1000 ? 11 : 1) {
            bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
            wire_in in = at_edge(bytes, out.size);
            for (size_t j = 0; j < count; j++) {
                kv_record record;
                if (fields[j].kind != FIELD_RECORD) field_take(&in, &fields[j]);
                else wire_take_record(&in, &record);
                CHECK(in.at <= in.end);
            }
            bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
        }
        wire_free(&out);
    }
}

/* --- frames --- */

static void put_frame(wire_out *out, enum wire_type type, size_t size) {
    wire_begin(out, type);
    wire_put_bytes(out, pool, size);
    wire_end(out);
}

TEST(frames_come_out_in_a_row_as_far_as_they_are_whole) {
    static const size_t sizes[] = {0, 1, 30, 0, 700, 5, 0};
    enum { COUNT = sizeof sizes / sizeof sizes[0] };
    wire_out out = {0};
    size_t ends[COUNT];
    for (size_t i = 0; i < COUNT; i++) {
        put_frame(&out, (enum wire_type)(1 + i), sizes[i]);
        ends[i] = out.size;
    }
    CHECK_EQ(ends[0], WIRE_HEAD_SIZE);
    for (size_t cut = 0; cut <= out.size; cut++) {
        wire_in from = at_edge(out.bytes, cut), body;
        enum wire_type type;
        size_t i = 0;
        for (; wire_next(&from, &type, &body); i++) {
            KV_ASSERT(i < COUNT);
            CHECK_EQ(type, 1 + i);
            CHECK_EQ(body.end - body.at, sizes[i]);
            CHECK(body.end == from.at && !body.bad);
            CHECK(sizes[i] == 0 || memcmp(body.at, pool, sizes[i]) == 0);
        }
        CHECK(!from.bad); /* Not whole yet is not bad. */
        CHECK(i == COUNT || ends[i] > cut);
        CHECK_EQ(from.end - from.at, cut - (i == 0 ? 0 : ends[i - 1]));
    }
    wire_free(&out);
}

/* As docs/protocol/wire.md has them. */
static bool is_used(unsigned type) { return (type >= 1 && type <= 10) || (type >= 16 && type <= 19); }

static bool head_refused(uint32_t size, uint8_t type) {
    uint8_t head[WIRE_HEAD_SIZE];
    wire_in from, body;
    enum wire_type read;
    kv_store32(head, size);
    head[4] = type;
    from = at_edge(head, sizeof head);
    bool next = wire_next(&from, &read, &body);
    CHECK_EQ(next, size == 1 && is_used(type));
    CHECK(!from.bad || !wire_next(&from, &read, &body)); /* And nothing comes behind it. */
    return from.bad;
}

TEST(a_head_that_no_replica_writes_is_bad) {
    for (unsigned type = 0; type < 256; type++) CHECK_EQ(head_refused(1, (uint8_t)type), !is_used(type));
    CHECK(head_refused(0, WIRE_FLOW)); /* Without room for its type. */
    CHECK(!head_refused(WIRE_FRAME_SIZE_MAX, WIRE_FLOW));
    CHECK(head_refused(WIRE_FRAME_SIZE_MAX + 1, WIRE_FLOW));
    CHECK(head_refused(UINT32_MAX, WIRE_FLOW));
}

TEST(a_frame_that_is_given_up_never_was) {
    wire_out out = {0};
    put_frame(&out, WIRE_FLOW, 100);
    size_t size = out.size;
    wire_begin(&out, WIRE_CHECK);
    wire_put_bytes(&out, pool, sizeof pool);
    wire_give_up(&out);
    CHECK_EQ(out.size, size);
    put_frame(&out, WIRE_ACK, 3);
    wire_in from = at_edge(out.bytes, out.size), body;
    enum wire_type type;
    CHECK(wire_next(&from, &type, &body) && type == WIRE_FLOW);
    CHECK(wire_next(&from, &type, &body) && type == WIRE_ACK);
    CHECK(from.at == from.end);
    wire_free(&out);
}

/* A sanitizer's malloc ends the process where the others answer NULL. */
TEST(without_memory_it_says_so_at_the_end) {
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    volatile size_t too_much = (size_t)1 << 60;
    wire_out out = {0};
    put_frame(&out, WIRE_FLOW, 10);
    wire_begin(&out, WIRE_ACK);
    wire_put_bytes(&out, pool, too_much);
    CHECK(out.failed);
    wire_put64(&out, 7);
    wire_put_bytes(&out, pool, sizeof pool);
    wire_end(&out);
    put_frame(&out, WIRE_CHECK, 300);
    CHECK(out.failed);
    CHECK(out.size <= out.capacity);
    wire_free(&out);
#endif
}

int main(void) {
    edge_make();
    for (size_t i = 0; i < sizeof pool; i++) pool[i] = (uint8_t)(i * 37 + i / 256);
    RUN(varints_are_as_long_as_their_numbers);
    RUN(a_varint_that_does_not_fit_is_bad);
    RUN(what_is_not_there_is_bad_and_stays_bad);
    RUN(a_record_comes_back_as_it_was);
    RUN(what_the_message_says_is_left_out_of_a_record);
    RUN(a_record_that_no_replica_writes_is_bad);
    RUN(sizes_are_held_against_limits_and_against_what_is_there);
    RUN(any_message_reads_back_and_no_cut_of_it_does);
    RUN(a_flipped_bit_reads_nothing_outside);
    RUN(frames_come_out_in_a_row_as_far_as_they_are_whole);
    RUN(a_head_that_no_replica_writes_is_bad);
    RUN(a_frame_that_is_given_up_never_was);
    RUN(without_memory_it_says_so_at_the_end);
    return check_report();
}
