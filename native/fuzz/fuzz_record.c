/* fuzz_record.c -- any bytes as records: decoded or refused, nothing read behind the end, and what decodes encodes to
 * the same bytes again.
 *
 *   input   salt (8), segment (4), offset (4), how (1), which bit (2), then the bytes
 *   how     1: the first record gets the checksums that its other bytes ask for; 2: and then one bit of it is flipped */
#include "fuzz.h"

enum { REPAIR = 1, FLIP = 2, OPTION_BYTES = 8 };

static uint32_t options_size(uint16_t options) {
    uint32_t size = 0;
    for (int bit = 0; bit < 6; bit++)
        if (options >> bit & 1) size += bit == 4 ? 40 : bit == 5 ? 24 : OPTION_BYTES;
    return size;
}

/* The record that the bytes would be if their checksums were right; false: they are too short for it, or encode()
 * would refuse to write it. */
static bool read_plainly(const uint8_t *bytes, size_t size, kv_record *out, uint64_t *covered) {
    if (size < KV_RECORD_HEAD_SIZE) return false;
    *out = (kv_record){.kind = bytes[14], .flags = bytes[15], .shard = kv_load16(bytes + 28)};
    out->options = kv_load16(bytes + 30);
    out->version = kv_load64(bytes + 16);
    out->value_size = kv_load32(bytes + 8);
    out->key_size = kv_load16(bytes + 12);
    if (out->kind == 0 || (out->options & ~KV_OPTIONS_KNOWN) != 0) return false;
    uint64_t before = KV_RECORD_HEAD_SIZE + options_size(out->options);
    *covered = before + out->key_size + (out->kind == KV_KIND_ENVELOPE ? 0 : out->value_size);
    if (kv_record_size(out) > size) return false;
    out->key = bytes + before;
    out->value = out->key + out->key_size;
    return true;
}

/* encode() writes what the optional fields say; here they are the bytes that stand there, taken from a decode of the
 * record with its own fields zero. */
static bool repair(uint8_t *bytes, size_t size, uint64_t place, uint64_t *covered) {
    kv_record record, again;
    uint32_t used;
    if (!read_plainly(bytes, size, &record, covered)) return false;
    uint64_t whole = kv_record_size(&record);
    uint8_t *made = copy_of(bytes, whole);
    kv_record_encode(&record, place, made);
    /* peek() believes the head check, and reads the options from the bytes of the input. */
    memcpy(bytes + 24, made + 24, 4);
    bool known = kv_record_peek(bytes, size, place, &again, &used) == KV_OK;
    if (known) {
        KV_ASSERT(used == whole);
        kv_record_encode(&again, place, made);
        memcpy(bytes, made, whole);
    }
    free(made);
    return known;
}

/* What decodes is what encode() writes, but for the padding, which nothing covers. */
static void check_canonical(const uint8_t *bytes, const kv_record *record, uint64_t place, uint32_t used) {
    kv_record again;
    uint32_t used_again;
    uint64_t covered;
    KV_ASSERT(kv_record_size(record) == used);
    uint8_t *made = malloc(used);
    KV_ASSERT(made != NULL);
    kv_record_encode(record, place, made);
    KV_ASSERT(read_plainly(bytes, used, &again, &covered) && covered + KV_RECORD_ALIGN > used && covered <= used);
    KV_ASSERT(memcmp(made, bytes, covered) == 0);
    uint64_t inside = record->kind == KV_KIND_ENVELOPE ? record->value_size : 0;
    kv_status expected = inside == 0 ? KV_OK : KV_ECORRUPT; /* An envelope that has lost what is inside. */
    KV_ASSERT(kv_record_decode(made, used, place, &again, &used_again) == expected);
    free(made);
}

static void check_big(const kv_record *record) {
    kv_big big;
    uint8_t bytes[KV_BIG_SIZE];
    kv_status status = kv_big_decode(record, &big);
    KV_ASSERT(status == KV_OK || status == KV_ECORRUPT);
    if (status != KV_OK) return;
    KV_ASSERT(big.file_id != 0 && big.size <= KV_VALUE_SIZE_MAX);
    kv_big_encode(&big, bytes);
    KV_ASSERT(memcmp(bytes, record->value, sizeof bytes) == 0);
}

/* One record; how many bytes it takes, 0: it is none. */
static uint32_t check_one(const uint8_t *bytes, size_t size, uint64_t place) {
    kv_record peeked, record;
    uint32_t peeked_used, used;
    kv_status peek = kv_record_peek(bytes, size, place, &peeked, &peeked_used);
    kv_status status = kv_record_decode(bytes, size, place, &record, &used);
    KV_ASSERT(peek == KV_OK || peek == KV_EOF || peek == KV_EFORMAT || peek == KV_ECORRUPT);
    if (peek != KV_OK) {
        KV_ASSERT(status == peek);
        return 0;
    }
    KV_ASSERT(status == (kv_record_intact(bytes, place, &peeked) ? KV_OK : KV_ECORRUPT));
    if (status != KV_OK) return 0;
    KV_ASSERT(used == peeked_used && used <= size && used % KV_RECORD_ALIGN == 0);
    KV_ASSERT(record.key >= bytes + KV_RECORD_HEAD_SIZE && record.value == record.key + record.key_size);
    check_canonical(bytes, &record, place, used);
    check_big(&record);
    return used;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    input in = {data, size};
    uint64_t salt = take(&in, 8), covered = 0;
    uint32_t segment = (uint32_t)take(&in, 4), offset = (uint32_t)take(&in, 4);
    uint64_t place = kv_place(salt, segment, offset), how = take(&in, 1), bit = take(&in, 2);
    size_t left = in.left;
    uint8_t *bytes = copy_of(in.at, left);
    bool whole = (how & REPAIR) && repair(bytes, left, place, &covered);
    if (whole) KV_ASSERT(check_one(bytes, left, place) != 0 || bytes[14] == KV_KIND_ENVELOPE);
    if (whole && (how & FLIP)) {
        bytes[bit / 8 % covered] ^= (uint8_t)(1 << bit % 8);
        KV_ASSERT(check_one(bytes, left, place) == 0);
    }
    uint32_t used = 1;
    for (size_t at = 0; used != 0 && at < left; at += used)
        used = check_one(bytes + at, left - at, kv_place(salt, segment, offset + (uint32_t)at));
    free(bytes);
    return 0;
}
