/* fuzz_recovery.c -- any bytes as the segments of a flow: opened or refused, and once a writer has opened it, what it
 * holds stays.
 *
 * The input is a program that builds one to three segments of 16 KiB and a value file:
 *
 *   how (1), segment count (1), then for each: shape (1), the numbers the shape asks for, and records up to a zero
 *   then edits of four bytes each: segment (1), offset (2), what is xored there (1); offset 0: the file ends at the
 *   byte that follows times 64
 *
 * Records carry the checksums of their places, headers theirs, so the numbers in them are believed. What the store may
 * be asked to believe has one bound here: versions and sequences are below 2^63, as a kv_result can say them. */
#include "fuzz.h"

#include "../src/flow_internal.h" /* Last: its `segment` is a parameter's name elsewhere. */

enum {
    SEGMENTS_MAX = 3,
    SIZE = 4 * KV_PAGE_SIZE,
    BATCH_MAX = 8,
    VALUE_FILE_SIZE = 5,
    EDIT_SIZE = 4,
};
static const uint64_t SALT = 0x5eed5eed5eed5eedULL;

enum how { KILL = 1, START_IN_INPUT = 2, WRITE_CALLS = 4, EARLIER_FILE = 8 };
enum shape {
    OWN_NUMBER = 1,
    OWN_CEILING = 2,
    OWN_WATERMARK = 4,
    DURABLE = 8, /* the watermark is at its end */
    SEALED = 16,
    OWN_SEAL = 32,
    SHORT = 64, /* the file ends where the records do */
    OWN_SIZE = 128,
};
enum step { STOP, PUT, DELETE, CLOCK, BATCH, SEAL, BYTES, ANYTHING, BIG, EXPIRING, GAP, STRAY, LOOSE_BATCH, STEP_COUNT };

typedef struct building {
    uint8_t *bytes;
    uint32_t id;
    uint32_t end;
    uint32_t size; /* of the file */
    uint64_t sequence;
} building;

/* --- records --- */

static void add_at(building *b, const kv_record *record, uint32_t place) {
    uint64_t size = kv_record_size(record);
    if (size > SIZE - b->end) return;
    kv_record_encode(record, kv_place(SALT, b->id, place), b->bytes + b->end);
    b->end += (uint32_t)size;
}

static void add(building *b, const kv_record *record) { add_at(b, record, b->end); }

static void add_data(building *b, input *in, enum step step) {
    uint8_t key[8], value[256];
    uint64_t what = take(in, 1);
    kv_record record = {.kind = step == DELETE ? KV_KIND_DELETE : KV_KIND_PUT, .version = ++b->sequence, .key = key};
    record.key_size = (uint32_t)key_of((int)(what % KEY_COUNT), key);
    record.flags = what & 128 || step == DELETE ? 0 : KV_FLAG_CREATED;
    if (step == EXPIRING) {
        record.options = KV_HAS_EXPIRY;
        record.expires_ms = take(in, 2);
    }
    memset(value, (int)what, sizeof value);
    record.value = value;
    record.value_size = step == DELETE ? 0 : (uint32_t)take(in, 1);
    add_at(b, &record, step == STRAY ? b->end + 4 : b->end);
}

static void add_clock(building *b, input *in) {
    uint8_t value[8];
    kv_store64(value, take(in, 8));
    kv_record record = {.kind = KV_KIND_CLOCK, .version = ++b->sequence, .value = value, .value_size = sizeof value};
    add(b, &record);
}

static void add_seal(building *b, input *in) {
    uint8_t value[4];
    kv_store32(value, (uint32_t)take(in, 1));
    kv_record record = {.kind = KV_KIND_SEAL, .version = b->sequence, .value = value, .value_size = sizeof value};
    add(b, &record);
}

/* No two keys have the same file, as no writer gives an id out twice: key 0 has the one that is there. */
static void add_big(building *b, input *in) {
    uint8_t key[8], value[KV_BIG_SIZE];
    static const uint8_t content[] = {'v', 'a', 'l', 'u', 'e'};
    uint64_t what = take(in, 1);
    kv_big big = {.size = VALUE_FILE_SIZE, .digest = kv_xxh64(content, sizeof content, 0), .file_id = 1 + (what & 7)};
    if (what & 16) big.size = take(in, 4) % (1 << 17);
    if (what & 32) big.file_id = 0;
    kv_big_encode(&big, value);
    kv_record record = {.kind = KV_KIND_PUT, .flags = KV_FLAG_BIG | KV_FLAG_CREATED, .version = ++b->sequence};
    record.key = key;
    record.key_size = (uint32_t)key_of((int)(what & 7), key);
    record.value = value;
    record.value_size = sizeof value;
    add(b, &record);
}

/* What no writer of ours writes, with checksums that are right. */
static void add_anything(building *b, input *in) {
    uint8_t bytes[256];
    kv_record record = {.kind = (uint8_t)take(in, 1), .flags = (uint8_t)take(in, 1)};
    record.options = take(in, 1) & KV_OPTIONS_KNOWN;
    record.version = take(in, 8) & INT64_MAX;
    record.sequence = record.options & KV_HAS_SEQUENCE ? take(in, 8) & INT64_MAX : record.version;
    record.expires_ms = take(in, 8);
    record.key_size = (uint32_t)take(in, 1);
    record.value_size = (uint32_t)take(in, record.kind == KV_KIND_ENVELOPE ? 4 : 1);
    memset(bytes, (int)take(in, 1), sizeof bytes);
    record.key = record.value = bytes;
    if (record.kind != 0) add(b, &record);
}

static void add_bytes(building *b, input *in, enum step step) {
    size_t size = take(in, 1) * (step == GAP ? 4 : 1);
    for (; size != 0 && b->end < SIZE; size--) b->bytes[b->end++] = step == GAP ? 0 : (uint8_t)take(in, 1);
    while (b->end % KV_RECORD_ALIGN != 0) b->end++;
}

static void add_batch(building *b, input *in, enum step step, int depth);

static bool add_step(building *b, input *in, int depth) {
    enum step step = (enum step)(take(in, 1) % STEP_COUNT);
    switch (step) {
    case PUT: case DELETE: case EXPIRING: case STRAY: add_data(b, in, step); break;
    case CLOCK: add_clock(b, in); break;
    case BATCH: case LOOSE_BATCH: add_batch(b, in, step, depth); break;
    case SEAL: add_seal(b, in); break;
    case BYTES: case GAP: add_bytes(b, in, step); break;
    case ANYTHING: add_anything(b, in); break;
    case BIG: add_big(b, in); break;
    default: return false;
    }
    return true;
}

/* The head is written last, where room was left for it: it says how much is inside, or, loose, some other number. */
static void add_batch(building *b, input *in, enum step step, int depth) {
    uint64_t count = take(in, 1) % BATCH_MAX;
    uint32_t head = b->end;
    if (depth > 1 || SIZE - head < KV_RECORD_HEAD_SIZE) return;
    b->end += KV_RECORD_HEAD_SIZE;
    for (uint64_t i = 0; i < count && add_step(b, in, depth + 1); i++) continue;
    uint32_t inside = b->end - head - KV_RECORD_HEAD_SIZE;
    kv_record record = {.kind = KV_KIND_ENVELOPE, .version = b->sequence, .value_size = inside};
    if (step == LOOSE_BATCH) record.value_size += (uint32_t)take(in, 1) - 128;
    kv_record_encode(&record, kv_place(SALT, b->id, head), b->bytes + head);
}

/* --- headers --- */

static void write_seal(building *b, input *in, uint64_t shape, uint32_t following) {
    uint8_t *seal = b->bytes + HEADER_SEAL;
    kv_store32(seal, shape & OWN_SEAL ? (uint32_t)take(in, 2) : b->end);
    kv_store32(seal + 4, shape & OWN_SEAL ? (uint32_t)take(in, 1) : following);
    kv_store64(seal + 8, shape & OWN_SEAL ? take(in, 8) & INT64_MAX : b->sequence);
    kv_store64(seal + 16, kv_xxh64(seal, 16, kv_place(SALT, b->id, HEADER_SEAL)));
}

static void write_watermark(building *b, uint32_t offset) {
    uint8_t *watermark = b->bytes + HEADER_WATERMARK;
    kv_store32(watermark, offset);
    kv_store32(watermark + 4, (uint32_t)kv_xxh64(watermark, 4, kv_place(SALT, b->id, HEADER_WATERMARK)));
}

static void write_header(building *b, input *in, uint64_t shape, uint32_t following, uint64_t ceiling) {
    uint8_t *page = b->bytes;
    memcpy(page, SEGMENT_MAGIC, 8);
    kv_store32(page + HEADER_FORMAT, FLOW_FORMAT);
    kv_store32(page + HEADER_ID, b->id);
    memset(page + HEADER_STORE_ID, 7, 16);
    kv_store64(page + HEADER_SALT, SALT);
    kv_store64(page + HEADER_CEILING, shape & OWN_CEILING ? take(in, 8) : ceiling);
    kv_store32(page + HEADER_SIZE, shape & OWN_SIZE ? (uint32_t)take(in, 4) : SIZE);
    kv_store64(page + HEADER_CHECKSUM, kv_xxh64(page, HEADER_CHECKSUM, 0));
    if (shape & OWN_WATERMARK) write_watermark(b, (uint32_t)take(in, 2));
    else if (shape & DURABLE) write_watermark(b, b->end);
    if (shape & (SEALED | OWN_SEAL)) write_seal(b, in, shape, following);
}

/* --- the disk --- */

static void build_segment(building *b, input *in, uint32_t number, uint32_t count, uint64_t sequence) {
    uint64_t shape = take(in, 1);
    *b = (building){.bytes = calloc(1, SIZE), .id = number + 1, .end = KV_SEGMENT_HEADER_SIZE, .size = SIZE};
    KV_ASSERT(b->bytes != NULL);
    b->sequence = sequence;
    if (shape & OWN_NUMBER) b->id = (uint32_t)take(in, 1);
    while (in->left != 0 && add_step(b, in, 0)) continue;
    if (shape & SHORT) b->size = b->end;
    write_header(b, in, shape, number + 1 < count ? number + 2 : 0, (number + 1) * (SIZE / KV_RECORD_HEAD_SIZE));
}

static void edit(building *segments, uint64_t count, input *in) {
    while (in->left >= EDIT_SIZE) {
        building *b = &segments[take(in, 1) % count];
        uint64_t offset = take(in, 2), with = take(in, 1);
        if (offset == 0) b->size = (uint32_t)with * 64;
        else b->bytes[offset % SIZE] ^= (uint8_t)with;
    }
}

static kv_sim *build_disk(input *in, uint64_t how) {
    building segments[SEGMENTS_MAX];
    uint64_t count = 1 + take(in, 1) % SEGMENTS_MAX, sequence = 0;
    kv_sim *sim = kv_sim_new();
    kv_io *io = kv_sim_io(sim);
    kv_sim_set_recording(sim, 0);
    kv_sim_set_clock(sim, 1000);
    KV_ASSERT(io->mkdir(io, "flow") == KV_OK && io->mkdir(io, "values") == KV_OK);
    for (uint32_t i = 0; i < count; i++) {
        build_segment(&segments[i], in, i, (uint32_t)count, sequence);
        sequence = segments[i].sequence;
    }
    edit(segments, count, in);
    for (uint32_t i = 0; i < count; i++) {
        char path[SEGMENT_PATH_SIZE];
        snprintf(path, sizeof path, "flow/%08x.seg", segments[i].id);
        file_put(sim, path, segments[i].bytes, segments[i].size);
        free(segments[i].bytes);
    }
    file_put(sim, "values/0000000000000001.val", (const uint8_t *)"value", VALUE_FILE_SIZE);
    if (how & EARLIER_FILE) file_put(sim, "flow/next.tmp", (const uint8_t *)"torn", 4);
    io->free(io);
    return sim;
}

/* --- promises --- */

/* A header may claim that nearly all numbers were used; then the first writer's segment can be the last. */
#define VERSION_SPENT (INT64_MAX - ((int64_t)1 << 48))

static bool is_refusal(kv_status status) {
    return status == KV_ECORRUPT || status == KV_EFORMAT || status == KV_ENOTFOUND || status == KV_EBEHIND;
}

static kv_status count_records(void *context, const kv_record *record, kv_position position, uint32_t size) {
    uint64_t *sum = context;
    KV_ASSERT(record->kind != KV_KIND_ENVELOPE && record->kind != KV_KIND_SEAL && position.offset % 4 == 0);
    *sum += size + kv_xxh64(record->key, record->key_size, 0) + kv_xxh64(record->value, record->value_size, 0);
    return KV_OK;
}

/* The flow alone, from the start or from anywhere, read only. */
static void open_flow_alone(kv_sim *sim, kv_position start) {
    kv_flow_options options = {.readonly = true, .segment_size_min = SIZE, .segment_size_max = SIZE};
    kv_io *io = kv_sim_io(sim);
    kv_epoch *epoch;
    kv_flow *flow;
    kv_fault fault = {0};
    uint64_t sum = 0;
    KV_ASSERT(kv_epoch_new(&epoch) == KV_OK);
    kv_status status = kv_flow_open(io, epoch, &options, start, count_records, &sum, &fault, &flow);
    KV_ASSERT(status == KV_OK || is_refusal(status) || (status == KV_EUSAGE && start.segment != 0 && sum == 0));
    if (status == KV_OK) {
        uint64_t before = sum;
        kv_status again = kv_flow_refresh(flow, count_records, &sum, &fault);
        KV_ASSERT(again == KV_OK ? sum == before : is_refusal(again));
        kv_flow_free(flow);
    }
    kv_epoch_free(epoch);
    io->free(io);
}

static kv_status open_store(kv_sim *sim, bool readonly, uint64_t how, kv_store **store, kv_caller **caller) {
    kv_options options = {.segment_size_min = SIZE, .segment_size_max = SIZE, .readonly = readonly};
    kv_fault fault;
    options.write_calls = (how & WRITE_CALLS) != 0;
    kv_status status = kv_store_open(kv_sim_io(sim), &options, NULL, 0, &fault, store);
    KV_ASSERT(status == KV_OK || (is_refusal(status) && fault.what[0] != 0));
    if (status == KV_OK) KV_ASSERT(kv_caller_new(*store, caller) == KV_OK);
    return status;
}

static void end_store(kv_store *store, bool kill) {
    kv_fault fault;
    if (!kill) KV_ASSERT(kv_store_close(store, &fault) == KV_OK);
    kv_store_free(store);
}

static kv_status look_readonly(kv_sim *sim, seen *out) {
    kv_store *store;
    kv_caller *caller;
    uint64_t before = kv_sim_hash(sim);
    kv_status status = open_store(sim, true, 0, &store, &caller);
    if (status == KV_OK) {
        look(caller, out);
        end_store(store, false);
    }
    KV_ASSERT(kv_sim_hash(sim) == before);
    return status;
}

/* A writer sees what the reader saw, and what it saw and wrote is there for the next one. */
static void write_and_look_again(kv_sim *sim, uint64_t how, kv_status reader, const seen *read) {
    kv_store *store;
    kv_caller *caller;
    seen written, after;
    uint64_t before = kv_sim_hash(sim);
    kv_status status = open_store(sim, false, how, &store, &caller);
    if (status != KV_OK) {
        KV_ASSERT(kv_sim_hash(sim) == before);
        return;
    }
    look(caller, &written);
    KV_ASSERT(written.ascending);
    KV_ASSERT(reader != KV_OK || (keys_same(&written, read) && written.scan == read->scan));
    kv_result version = kv_put(caller, (const uint8_t *)"new", 3, (const uint8_t *)"value", 5, 0, 0);
    KV_ASSERT(version > 0);
    end_store(store, how & KILL);

    status = open_store(sim, false, how, &store, &caller);
    if (status != KV_OK) {
        KV_ASSERT(status == KV_ECORRUPT && version >= VERSION_SPENT);
        return;
    }
    look(caller, &after);
    KV_ASSERT(keys_same(&after, &written));
    KV_ASSERT(kv_version(caller, (const uint8_t *)"new", 3) == version);
    KV_ASSERT(kv_delete(caller, (const uint8_t *)"new", 3, -1, 0) > version);
    look(caller, &after);
    KV_ASSERT(after.scan_status == written.scan_status && after.scan == written.scan);
    end_store(store, false);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    input in = {data, size};
    seen read;
    uint64_t how = take(&in, 1);
    kv_position start = {0};
    if (how & START_IN_INPUT) start = (kv_position){.segment = (uint32_t)take(&in, 1), .offset = (uint32_t)take(&in, 2)};
    kv_sim *sim = build_disk(&in, how);
    open_flow_alone(sim, start);
    kv_status reader = look_readonly(sim, &read);
    write_and_look_again(sim, how, reader, &read);
    kv_sim_free(sim);
    return 0;
}
