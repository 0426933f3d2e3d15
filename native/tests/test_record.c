/* test_record.c -- what a record promises: it comes back as it went in, or not at all. */
#include "check.h"
#include "kv/record.h"

static uint64_t random_state = 1;

static uint64_t draw(uint64_t below) {
    random_state = random_state * 6364136223846793005ULL + 1442695040888963407ULL;
    return (random_state >> 33) % below;
}

static uint8_t key_bytes[64], value_bytes[256];

/* Any record that encode() may be given, its sizes small enough to look at every bit. */
static kv_record random_record(void) {
    kv_record r = {.kind = (uint8_t)(1 + draw(7)),
                   .flags = (uint8_t)draw(KV_FLAGS_KNOWN + 1),
                   .shard = (uint16_t)draw(64),
                   .options = (uint16_t)draw(KV_OPTIONS_KNOWN + 1),
                   .version = draw(1u << 30),
                   .ballot = draw(1u << 30),
                   .prev_ballot = draw(1u << 30),
                   .expires_ms = draw(1u << 30),
                   .request = {draw(99), draw(99), draw(99), (int64_t)draw(99) - 50, (uint32_t)draw(99), (uint16_t)draw(99), (int16_t)(draw(99) - 50)},
                   .table_id = draw(99),
                   .row_count = draw(99),
                   .next_row = draw(99),
                   .key = key_bytes,
                   .key_size = (uint32_t)draw(sizeof key_bytes),
                   .value = value_bytes,
                   .value_size = (uint32_t)draw(sizeof value_bytes)};
    r.sequence = r.options & KV_HAS_SEQUENCE ? draw(1u << 30) : r.version;
    for (size_t i = 0; i < sizeof key_bytes; i++) key_bytes[i] = (uint8_t)draw(256);
    for (size_t i = 0; i < sizeof value_bytes; i++) value_bytes[i] = (uint8_t)draw(256);
    return r;
}

static bool same(const kv_record *a, const kv_record *b) {
    uint16_t o = a->options;
    if (a->kind != b->kind || a->flags != b->flags || a->shard != b->shard || a->options != b->options) return false;
    if (a->version != b->version || a->sequence != b->sequence) return false;
    if ((o & KV_HAS_BALLOT) && a->ballot != b->ballot) return false;
    if ((o & KV_HAS_PREV_BALLOT) && a->prev_ballot != b->prev_ballot) return false;
    if ((o & KV_HAS_EXPIRY ? a->expires_ms : 0) != b->expires_ms) return false;
    if ((o & KV_HAS_REQUEST) && memcmp(&a->request, &b->request, sizeof a->request) != 0) return false;
    bool table = a->table_id == b->table_id && a->row_count == b->row_count && a->next_row == b->next_row;
    if ((o & KV_HAS_TABLE) && !table) return false;
    if (a->key_size != b->key_size || a->value_size != b->value_size) return false;
    return memcmp(a->key, b->key, a->key_size) == 0 && memcmp(a->value, b->value, a->value_size) == 0;
}

TEST(what_is_encoded_is_decoded) {
    for (int i = 0; i < 2000; i++) {
        kv_record in = random_record(), out;
        uint32_t used;
        uint64_t size = kv_record_size(&in), place = draw(1u << 30);
        uint8_t *bytes = malloc(size); /* exactly, so that ASan sees a byte too many */
        kv_record_encode(&in, place, bytes);
        CHECK_EQ(kv_record_decode(bytes, size, place, &out, &used), KV_OK);
        CHECK_EQ(used, size);
        CHECK(same(&in, &out));
        free(bytes);
    }
}

TEST(a_flipped_bit_is_refused_or_padding) {
    for (int i = 0; i < 60; i++) {
        kv_record in = random_record(), out;
        uint32_t used;
        uint64_t size = kv_record_size(&in), place = draw(1u << 30);
        uint8_t *bytes = malloc(size);
        kv_record_encode(&in, place, bytes);
        for (uint64_t bit = 0; bit < size * 8; bit++) {
            bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
            kv_status status = kv_record_decode(bytes, size, place, &out, &used);
            CHECK(status == KV_ECORRUPT || (status == KV_OK && bit / 8 + KV_RECORD_ALIGN > size && same(&in, &out)));
            bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        }
        free(bytes);
    }
}

TEST(a_cut_record_is_refused) {
    kv_record in = random_record(), out;
    uint32_t used;
    uint64_t size = kv_record_size(&in);
    uint8_t *whole = malloc(size);
    kv_record_encode(&in, 7, whole);
    for (uint64_t left = 0; left < size; left++) {
        uint8_t *bytes = malloc(left + 1);
        memcpy(bytes, whole, left);
        kv_status status = kv_record_decode(bytes, left, 7, &out, &used);
        CHECK_EQ(status, left < KV_RECORD_HEAD_SIZE ? KV_EOF : KV_ECORRUPT);
        free(bytes);
    }
    free(whole);
}

TEST(a_misplaced_record_is_refused) {
    kv_record in = random_record(), out;
    uint32_t used;
    uint64_t size = kv_record_size(&in), salt = 0x1234567890abcdefULL;
    uint8_t *bytes = malloc(size);
    kv_record_encode(&in, kv_place(salt, 5, 4096), bytes);
    CHECK_EQ(kv_record_decode(bytes, size, kv_place(salt, 5, 4096), &out, &used), KV_OK);
    CHECK_EQ(kv_record_decode(bytes, size, kv_place(salt, 5, 4100), &out, &used), KV_ECORRUPT);
    CHECK_EQ(kv_record_decode(bytes, size, kv_place(salt, 6, 4096), &out, &used), KV_ECORRUPT);
    CHECK_EQ(kv_record_decode(bytes, size, kv_place(salt + 1, 5, 4096), &out, &used), KV_ECORRUPT);
    free(bytes);
}

TEST(zeros_were_never_written) {
    uint8_t zeros[64] = {0};
    kv_record out;
    uint32_t used;
    for (uint64_t place = 0; place < 1000; place++) CHECK_EQ(kv_record_decode(zeros, sizeof zeros, place, &out, &used), KV_EOF);
}

TEST(any_bytes_are_decoded_or_refused) {
    uint8_t bytes[128];
    kv_record out;
    uint32_t used;
    for (int i = 0; i < 100000; i++) {
        uint64_t size = draw(sizeof bytes + 1);
        uint8_t *exact = malloc(size + 1);
        for (uint64_t k = 0; k < size; k++) exact[k] = (uint8_t)draw(256);
        kv_status status = kv_record_decode(exact, size, draw(1u << 30), &out, &used);
        CHECK(status == KV_EOF || status == KV_ECORRUPT);
        free(exact);
    }
}

/* Which an older version must not take for a torn tail, and cut. */
TEST(flags_of_a_newer_version_are_told_from_damage) {
    uint8_t bytes[64];
    kv_record in = {.kind = KV_KIND_PUT, .flags = 128, .version = 1, .key = key_bytes, .key_size = 3}, out;
    uint32_t used;
    kv_record_encode(&in, 5, bytes);
    CHECK_EQ(kv_record_decode(bytes, sizeof bytes, 5, &out, &used), KV_EFORMAT);
    bytes[15] = 64;
    CHECK_EQ(kv_record_decode(bytes, sizeof bytes, 5, &out, &used), KV_ECORRUPT);
}

TEST(an_envelope_is_checked_by_its_head_alone) {
    uint8_t bytes[KV_RECORD_HEAD_SIZE + 8] = {0};
    kv_record in = {.kind = KV_KIND_ENVELOPE, .version = 9, .value_size = 8}, out;
    uint32_t used;
    CHECK_EQ(kv_record_size(&in), KV_RECORD_HEAD_SIZE);
    kv_record_encode(&in, 3, bytes);
    bytes[KV_RECORD_HEAD_SIZE] = 0xff; /* what is inside has checksums of its own */
    CHECK_EQ(kv_record_decode(bytes, sizeof bytes, 3, &out, &used), KV_OK);
    CHECK_EQ(used, KV_RECORD_HEAD_SIZE);
    CHECK_EQ(out.value_size, 8);
    CHECK_EQ(kv_record_decode(bytes, sizeof bytes - 1, 3, &out, &used), KV_ECORRUPT);
}

/* The worked example of docs/formats/flow.md, byte for byte. */
TEST(the_worked_example_holds) {
    static const uint8_t expected[] = {
#include "example_record.inc"
    };
    uint8_t bytes[sizeof expected];
    kv_record in = {.kind = KV_KIND_PUT,
                    .flags = KV_FLAG_CREATED,
                    .version = 7,
                    .key = (const uint8_t *)"hello",
                    .key_size = 5,
                    .value = (const uint8_t *)"world!",
                    .value_size = 6};
    CHECK_EQ(kv_record_size(&in), sizeof expected);
    kv_record_encode(&in, kv_place(0x0123456789abcdefULL, 1, 4096), bytes);
    CHECK(memcmp(bytes, expected, sizeof expected) == 0);
}

TEST(a_big_description_comes_back) {
    uint8_t bytes[KV_BIG_SIZE];
    kv_big in = {.size = 5 << 20, .digest = 77, .file_id = 1}, out;
    kv_big_encode(&in, bytes);
    kv_record record = {.kind = KV_KIND_PUT, .flags = KV_FLAG_BIG, .value = bytes, .value_size = sizeof bytes};
    CHECK_EQ(kv_big_decode(&record, &out), KV_OK);
    CHECK(memcmp(&in, &out, sizeof in) == 0);
    record.value_size--;
    CHECK_EQ(kv_big_decode(&record, &out), KV_ECORRUPT);
    record.value_size++;
    record.flags = 0;
    CHECK_EQ(kv_big_decode(&record, &out), KV_ECORRUPT);
}

int main(void) {
    RUN(what_is_encoded_is_decoded);
    RUN(a_flipped_bit_is_refused_or_padding);
    RUN(a_cut_record_is_refused);
    RUN(a_misplaced_record_is_refused);
    RUN(zeros_were_never_written);
    RUN(any_bytes_are_decoded_or_refused);
    RUN(flags_of_a_newer_version_are_told_from_damage);
    RUN(an_envelope_is_checked_by_its_head_alone);
    RUN(the_worked_example_holds);
    RUN(a_big_description_comes_back);
    return check_report();
}
