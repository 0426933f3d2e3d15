/* record.h -- one record of the flow, and the only code that knows its bytes.
 *
 *   offset  size  field
 *        0     8  checksum      XXH64 of bytes 8 to the end of the value, seeded with the place (below)
 *        8     4  value size    bytes; of an envelope: bytes of the records inside
 *       12     2  key size      bytes
 *       14     1  kind          KV_KIND_*; 0 is invalid, so a zeroed page never parses
 *       15     1  flags         KV_FLAG_*; unknown bits: refused
 *       16     8  version       what users see; never 0 in a data record
 *       24     4  head check    of bytes 8..15 and 28..31, seeded with the place: the lengths can be trusted alone
 *       28     2  shard         0 in an embedded store
 *       30     2  options       KV_HAS_*: which optional fields follow, in the order of their bits
 *       32     .  optional fields, the key, the value, zeros up to a multiple of 4
 *
 * All integers are little-endian. The place is (store salt) ^ (segment id << 32 | offset): bytes that were written
 * elsewhere, or by a segment that had this name before, never pass.
 *
 * An envelope (KV_KIND_ENVELOPE) is a head whose `value` is whole records, one behind the other, each valid by
 * itself at its own place. Its checksum covers its own head only; the envelope is valid if and only if its head is
 * and every record inside is and together they fill it exactly. So nothing is summed twice, and a record inside can
 * be read, and later moved, like any other.
 *
 * Invariant: decode(encode(r)) == r, and decode never reads past `size`. No state: safe from any thread.
 * Specification with a worked example: docs/formats/flow.md. */
#ifndef KV_RECORD_H
#define KV_RECORD_H

#include "base.h"
#include "status.h"

enum kv_kind {
    /* Data. */
    KV_KIND_PUT = 1,
    KV_KIND_DELETE = 2,
    KV_KIND_ROW_PUT = 3,     /* key = row; KV_HAS_TABLE */
    KV_KIND_ROW_DELETE = 4,  /* key = row; KV_HAS_TABLE */
    KV_KIND_TABLE_NEW = 5,   /* key = the table's key; KV_HAS_TABLE names its id */
    KV_KIND_TABLE_DROP = 6,  /* key = the table's key; KV_HAS_TABLE names the id that is retired */
    KV_KIND_TABLE_FLOOR = 7, /* key = the table's key; value = the version at or below which tombstones may go */
    /* Structure. */
    KV_KIND_ENVELOPE = 16, /* a batch: all or nothing */
    KV_KIND_SEAL = 17,     /* ends a segment; value = id of the next one (4 bytes), 0 at a clean close */
    /* State: small facts of the store or the replica; the newest of a kind and key counts. */
    KV_KIND_CLOCK = 32,    /* value = the highest wall clock an expiry was judged by (8 bytes, ms) */
    KV_KIND_PROMISE = 33,  /* value = shards promised under KV_HAS_BALLOT */
    KV_KIND_NODE = 34,     /* value = incarnation */
    KV_KIND_COMMIT = 35,   /* value = commit watermarks per shard */
    KV_KIND_BARRIER = 36,  /* opens a ballot in a shard */
    KV_KIND_CONFIG = 37,   /* value = members of a shard */
    KV_KIND_SESSION = 38,  /* a condition that failed, with its request */
    KV_KIND_DATA = 39,     /* value = bytes that a version record names by digest; key = the kv_meta it has for them */
    KV_KIND_FORGET = 40,   /* key falls back to the version kept behind: the record behind this one in its envelope; value = both versions */
    KV_KIND_SNAPSHOT_BEGIN = 41, /* what is here of a shard goes; its state comes piece by piece */
    KV_KIND_SNAPSHOT_END = 42,   /* value = from which version on the log goes on, and sessions */
};

enum kv_flag {
    KV_FLAG_CREATED = 1, /* this record brings a key (or a row) into being */
    KV_FLAG_BIG = 2,     /* value = kv_big: the bytes are in a file of their own */
    KV_FLAG_META = 4,    /* value = kv_meta: the bytes are a DATA record's (replica) */
    KV_FLAG_MOVED = 8,   /* rewritten by compaction: older than its place says */
    KV_FLAG_EXPIRED = 16 /* a delete that time, not a caller, asked for */
};
enum { KV_FLAGS_KNOWN = 31 };

enum kv_option {
    KV_HAS_SEQUENCE = 1,     /*  8: arrival number; without it, the version */
    KV_HAS_BALLOT = 2,       /*  8: round << 16 | node */
    KV_HAS_PREV_BALLOT = 4,  /*  8: of the record at version - 1 */
    KV_HAS_EXPIRY = 8,       /*  8: wall clock, ms since 1970 */
    KV_HAS_REQUEST = 16,     /* 40: client id, request number, seen version, result, attempt (2), outcome (2) and lane (4) */
    KV_HAS_TABLE = 32,       /* 24: table id, row count, next row id, all as of this record */
};
enum { KV_OPTIONS_KNOWN = 63 };

enum { KV_RECORD_ALIGN = 4, KV_RECORD_HEAD_SIZE = 32, KV_RECORD_OPTIONS_SIZE_MAX = 96, KV_BIG_SIZE = 24, KV_META_SIZE = 32 };

/* Who asked for a record, and what it was told: enough to answer the same request again. */
typedef struct kv_request {
    uint64_t client;
    uint64_t number;
    uint64_t seen;
    int64_t result;
    uint32_t lane;
    uint16_t attempt;
    int16_t outcome; /* a kv_status */
} kv_request;

typedef struct kv_record {
    uint8_t kind;
    uint8_t flags;
    uint16_t shard;
    uint16_t options;
    uint64_t version;
    uint64_t sequence; /* == version unless KV_HAS_SEQUENCE */
    uint64_t ballot;
    uint64_t prev_ballot;
    uint64_t expires_ms; /* 0: never */
    kv_request request;
    uint64_t table_id;
    uint64_t row_count;
    uint64_t next_row;
    const uint8_t *key; /* decode: points into the bytes decoded */
    uint32_t key_size;
    const uint8_t *value;
    uint32_t value_size;
} kv_record;

/* The value of a record with KV_FLAG_BIG: where the bytes are. 24 bytes: length, digest (XXH64, seed 0), file id. */
typedef struct kv_big {
    uint64_t size;
    uint64_t digest;
    uint64_t file_id;
} kv_big;
void kv_big_encode(const kv_big *big, uint8_t bytes[KV_BIG_SIZE]);
kv_status kv_big_decode(const kv_record *record, kv_big *out); /* KV_ECORRUPT */

/* The value of a record with KV_FLAG_META, and the key of the DATA record that has its bytes. 32 bytes: length, digest (XXH64,
 * seed 0), number, origin (2), durability (1), zeros (5). Origin and number are the name of the bytes: no other bytes ever
 * get it. A record with the same bytes under another expiry has the same name in it. */
typedef struct kv_meta {
    uint64_t size;
    uint64_t digest;
    uint64_t number;
    uint16_t origin;  /* the node that wrote them first */
    bool data;        /* durability `data`: voted for only where the bytes are */
} kv_meta;
void kv_meta_encode(const kv_meta *meta, uint8_t bytes[KV_META_SIZE]);
bool kv_meta_decode(const uint8_t *bytes, uint64_t size, kv_meta *out); /* false: these are none */

static inline uint64_t kv_place(uint64_t salt, uint32_t segment, uint32_t offset) {
    return salt ^ ((uint64_t)segment << 32 | offset);
}

/* Bytes that encode() will write, padding included. For an envelope: of its head alone. */
uint64_t kv_record_size(const kv_record *record);

/* Writes the record to `bytes`, which holds kv_record_size() bytes. An envelope: its head, with value_size as
 * given and nothing behind it. */
void kv_record_encode(const kv_record *record, uint64_t place, uint8_t *bytes);

/* The outcome is one of four:
 *   KV_OK       a valid record; *out is filled and *used is its size (of an envelope: of its head)
 *   KV_EOF      the bytes at this place were never written: the head is zeros, or less than a head is left
 *   KV_EFORMAT  a whole head with flags or options that this version does not know: written by a newer one
 *   KV_ECORRUPT something else
 * `size` is what may be read from `bytes`. */
kv_status kv_record_decode(const uint8_t *bytes, uint64_t size, uint64_t place, kv_record *out, uint32_t *used);

/* The same without the checksum over key and value: for bytes that were verified before, or will be by the caller.
 * Safe on any bytes: the head check guards the lengths. */
kv_status kv_record_peek(const uint8_t *bytes, uint64_t size, uint64_t place, kv_record *out, uint32_t *used);
/* The checksum over a record that peek() let pass. */
bool kv_record_intact(const uint8_t *bytes, uint64_t place, const kv_record *record);

#endif
