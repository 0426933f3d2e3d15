/* record.c -- one record of the flow, and the only code that knows its bytes. See kv/record.h for the table. */
#include "kv/record.h"

#include "kv/xxh64.h"

enum {
    AT_CHECKSUM = 0,
    AT_VALUE_SIZE = 8,
    AT_KEY_SIZE = 12,
    AT_KIND = 14,
    AT_FLAGS = 15,
    AT_VERSION = 16,
    AT_HEAD_CHECK = 24,
    AT_SHARD = 28,
    AT_OPTIONS = 30,
};

static uint32_t options_size(uint16_t options) {
    uint32_t size = 0;
    if (options & KV_HAS_SEQUENCE) size += 8;
    if (options & KV_HAS_BALLOT) size += 8;
    if (options & KV_HAS_PREV_BALLOT) size += 8;
    if (options & KV_HAS_EXPIRY) size += 8;
    if (options & KV_HAS_REQUEST) size += 40;
    if (options & KV_HAS_TABLE) size += 24;
    return size;
}

/* Two multiplications instead of an XXH64: it runs for every record written and read, and has to catch accidents in
 * twelve bytes, not enemies. The constants are XXH64's first two primes. */
static uint32_t head_check(const uint8_t *bytes, uint64_t place) {
    uint64_t h = (kv_load64(bytes + AT_VALUE_SIZE) ^ place) * 0x9E3779B185EBCA87ULL;
    h ^= h >> 32;
    h = (h ^ kv_load32(bytes + AT_SHARD)) * 0xC2B2AE3D27D4EB4FULL;
    return (uint32_t)(h >> 32);
}

static uint64_t checksum(const uint8_t *bytes, uint64_t size, uint64_t place) {
    return kv_xxh64(bytes + AT_VALUE_SIZE, size - AT_VALUE_SIZE, place);
}

/* Bytes that the checksum covers, from the start of the record: without padding, of an envelope its head alone. */
static uint64_t covered_size(uint8_t kind, uint16_t options, uint32_t key_size, uint32_t value_size) {
    uint64_t size = KV_RECORD_HEAD_SIZE + (uint64_t)key_size;
    if (KV_UNLIKELY(options != 0)) size += options_size(options);
    return kind == KV_KIND_ENVELOPE ? size : size + value_size;
}

uint64_t kv_record_size(const kv_record *record) {
    return kv_align(covered_size(record->kind, record->options, record->key_size, record->value_size), KV_RECORD_ALIGN);
}

static uint8_t *put64(uint8_t *to, uint64_t value) {
    kv_store64(to, value);
    return to + 8;
}

static uint8_t *encode_options(const kv_record *record, uint8_t *to) {
    if (record->options & KV_HAS_SEQUENCE) to = put64(to, record->sequence);
    if (record->options & KV_HAS_BALLOT) to = put64(to, record->ballot);
    if (record->options & KV_HAS_PREV_BALLOT) to = put64(to, record->prev_ballot);
    if (record->options & KV_HAS_EXPIRY) to = put64(to, record->expires_ms);
    if (record->options & KV_HAS_REQUEST) {
        to = put64(to, record->request.client);
        to = put64(to, record->request.number);
        to = put64(to, record->request.seen);
        to = put64(to, (uint64_t)record->request.result);
        uint64_t outcome = (uint16_t)record->request.outcome;
        to = put64(to, (uint64_t)record->request.lane << 32 | outcome << 16 | record->request.attempt);
    }
    if (record->options & KV_HAS_TABLE) {
        to = put64(to, record->table_id);
        to = put64(to, record->row_count);
        to = put64(to, record->next_row);
    }
    return to;
}

void kv_record_encode(const kv_record *record, uint64_t place, uint8_t *bytes) {
    KV_ASSERT((record->options & ~KV_OPTIONS_KNOWN) == 0);
    KV_ASSERT(record->kind != 0);
    KV_ASSERT(record->key_size <= KV_KEY_SIZE_MAX);

    kv_store32(bytes + AT_VALUE_SIZE, record->value_size);
    kv_store16(bytes + AT_KEY_SIZE, (uint16_t)record->key_size);
    bytes[AT_KIND] = record->kind;
    bytes[AT_FLAGS] = record->flags;
    kv_store64(bytes + AT_VERSION, record->version);
    kv_store16(bytes + AT_SHARD, record->shard);
    kv_store16(bytes + AT_OPTIONS, record->options);
    kv_store32(bytes + AT_HEAD_CHECK, head_check(bytes, place));

    uint8_t *to = bytes + KV_RECORD_HEAD_SIZE;
    if (record->options != 0) to = encode_options(record, to);
    if (record->key_size != 0) memcpy(to, record->key, record->key_size);
    to += record->key_size;
    if (record->kind != KV_KIND_ENVELOPE && record->value_size != 0) {
        memcpy(to, record->value, record->value_size);
        to += record->value_size;
    }
    uint64_t size = (uint64_t)(to - bytes);
    memset(to, 0, kv_align(size, KV_RECORD_ALIGN) - size);
    /* Over the bytes as copied: a caller that changes its buffer meanwhile gets what it wrote, never a bad record. */
    kv_store64(bytes + AT_CHECKSUM, checksum(bytes, size, place));
}

static const uint8_t *get64(const uint8_t *from, uint64_t *value) {
    *value = kv_load64(from);
    return from + 8;
}

static const uint8_t *decode_options(const uint8_t *from, kv_record *out) {
    uint64_t word;
    if (out->options & KV_HAS_SEQUENCE) from = get64(from, &out->sequence);
    if (out->options & KV_HAS_BALLOT) from = get64(from, &out->ballot);
    if (out->options & KV_HAS_PREV_BALLOT) from = get64(from, &out->prev_ballot);
    if (out->options & KV_HAS_EXPIRY) from = get64(from, &out->expires_ms);
    if (out->options & KV_HAS_REQUEST) {
        from = get64(from, &out->request.client);
        from = get64(from, &out->request.number);
        from = get64(from, &out->request.seen);
        from = get64(from, &word);
        out->request.result = (int64_t)word;
        from = get64(from, &word);
        out->request.attempt = (uint16_t)word;
        out->request.outcome = (int16_t)(uint16_t)(word >> 16);
        out->request.lane = (uint32_t)(word >> 32);
    }
    if (out->options & KV_HAS_TABLE) {
        from = get64(from, &out->table_id);
        from = get64(from, &out->row_count);
        from = get64(from, &out->next_row);
    }
    return from;
}

static bool never_written(const uint8_t *bytes) {
    return (kv_load64(bytes) | kv_load64(bytes + 8) | kv_load64(bytes + 16) | kv_load64(bytes + 24)) == 0;
}

kv_status kv_record_peek(const uint8_t *bytes, uint64_t size, uint64_t place, kv_record *out, uint32_t *used) {
    if (size < KV_RECORD_HEAD_SIZE) return KV_EOF;
    if (KV_UNLIKELY(kv_load32(bytes + AT_HEAD_CHECK) != head_check(bytes, place) || bytes[AT_KIND] == 0))
        return never_written(bytes) ? KV_EOF : KV_ECORRUPT;

    out->kind = bytes[AT_KIND];
    out->flags = bytes[AT_FLAGS];
    out->shard = kv_load16(bytes + AT_SHARD);
    out->options = kv_load16(bytes + AT_OPTIONS);
    out->key_size = kv_load16(bytes + AT_KEY_SIZE);
    out->value_size = kv_load32(bytes + AT_VALUE_SIZE);
    out->version = kv_load64(bytes + AT_VERSION);
    out->sequence = out->version;
    out->expires_ms = 0;
    /* The head is whole, so somebody wrote these bits and meant something by them. */
    if ((out->flags & ~KV_FLAGS_KNOWN) || (out->options & ~KV_OPTIONS_KNOWN)) return KV_EFORMAT;

    uint64_t covered = covered_size(out->kind, out->options, out->key_size, out->value_size);
    uint64_t inside = out->kind == KV_KIND_ENVELOPE ? out->value_size : 0;
    if (kv_align(covered, KV_RECORD_ALIGN) + inside > size) return KV_ECORRUPT;

    const uint8_t *from = bytes + KV_RECORD_HEAD_SIZE;
    if (out->options != 0) from = decode_options(from, out);
    out->key = from;
    out->value = from + out->key_size;
    *used = (uint32_t)kv_align(covered, KV_RECORD_ALIGN);
    return KV_OK;
}

bool kv_record_intact(const uint8_t *bytes, uint64_t place, const kv_record *record) {
    uint64_t covered = covered_size(record->kind, record->options, record->key_size, record->value_size);
    return kv_load64(bytes + AT_CHECKSUM) == checksum(bytes, covered, place);
}

kv_status kv_record_decode(const uint8_t *bytes, uint64_t size, uint64_t place, kv_record *out, uint32_t *used) {
    kv_status status = kv_record_peek(bytes, size, place, out, used);
    if (status != KV_OK) return status;
    return kv_record_intact(bytes, place, out) ? KV_OK : KV_ECORRUPT;
}

void kv_big_encode(const kv_big *big, uint8_t bytes[KV_BIG_SIZE]) {
    kv_store64(bytes, big->size);
    kv_store64(bytes + 8, big->digest);
    kv_store64(bytes + 16, big->file_id);
}

kv_status kv_big_decode(const kv_record *record, kv_big *out) {
    if (!(record->flags & KV_FLAG_BIG) || record->value_size != KV_BIG_SIZE) return KV_ECORRUPT;
    out->size = kv_load64(record->value);
    out->digest = kv_load64(record->value + 8);
    out->file_id = kv_load64(record->value + 16);
    return out->size <= KV_VALUE_SIZE_MAX && out->file_id != 0 ? KV_OK : KV_ECORRUPT;
}

void kv_meta_encode(const kv_meta *meta, uint8_t bytes[KV_META_SIZE]) {
    memset(bytes, 0, KV_META_SIZE);
    kv_store64(bytes, meta->size);
    kv_store64(bytes + 8, meta->digest);
    kv_store64(bytes + 16, meta->number);
    kv_store16(bytes + 24, meta->origin);
    bytes[26] = meta->data;
}

bool kv_meta_decode(const uint8_t *bytes, uint64_t size, kv_meta *out) {
    static const uint8_t zeros[5];
    if (size != KV_META_SIZE || bytes[26] > 1 || memcmp(bytes + 27, zeros, sizeof zeros) != 0) return false;
    out->size = kv_load64(bytes);
    out->digest = kv_load64(bytes + 8);
    out->number = kv_load64(bytes + 16);
    out->origin = kv_load16(bytes + 24);
    out->data = bytes[26] != 0;
    return out->origin != 0 && out->size <= KV_VALUE_SIZE_MAX;
}
