/* run.c -- sorted runs, and the only code that knows their bytes.
 *
 *   header, 32 bytes
 *        0     8  magic         "kvsvrrun"
 *        8     4  format        1
 *       12     4  reserved      0
 *       16     8  run id        as in the file name
 *       24     8  checksum      XXH64 of bytes 0..23, seed = run id
 *
 *   block, of some 4 KiB; they lie one behind the other, an inner block behind those below it
 *        0     8  checksum      XXH64 of bytes 8 to the end of the block, seed = run id
 *        8     8  offset        its own: a block in another's place does not pass
 *       16     8  previous      offset of the one before on its level; 0: it is the first
 *       24     4  size          with this head
 *       28     2  count         of entries, at least 1
 *       30     2  level         0: a leaf
 *       32     .  entries       varint: bytes shared with the entry before; varint: size of the rest; the rest;
 *                               in an inner block then 8 bytes: offset of the block below
 *
 *   footer, the last 64 bytes
 *        0     8  magic         "kvsvrend"
 *        8     8  name count    at least 1
 *       16     8  leaf count
 *       24     8  root          offset of the topmost block
 *       32     4  root level
 *       36     4  reserved      0
 *       40     8  file size
 *       48     8  run id
 *       56     8  checksum      XXH64 of bytes 0..55, seed = run id
 *
 * A separator in an inner block is a shortest string above every name in the blocks before its child and not above the
 * first name in it; that of the first child is empty.
 *
 * Invariants: names ascend strictly, also from block to block; offsets of children and of `previous` are smaller than
 * that of the block that names them, so no chain of them is a circle; the leaf behind a leaf is the next block in the
 * file that is one. A leaf ends at ENTRY_COUNT names, at BLOCK_SIZE bytes, or when its names would take
 * LEAF_NAMES_SIZE_MAX, or, with one name, wherever that ends. An inner block has at least INNER_COUNT_MIN entries, however
 * large, unless it is the last of its level: so there are few levels. */
#include "kv/run.h"

#include <stdio.h>
#include <stdlib.h>

#include "kv/xxh64.h"

#define RUN_MAGIC "kvsvrrun"
#define FOOTER_MAGIC "kvsvrend"

enum {
    RUN_FORMAT = 1,
    HEADER_SIZE = 32,
    FOOTER_SIZE = 64,
    BLOCK_HEAD_SIZE = 32,
    BLOCK_SIZE = 4096,
    LEAF_NAMES_SIZE_MAX = 1 << 16,
    INNER_COUNT_MIN = 4,
    ENTRY_HEAD_MAX = 6, /* two varints of numbers below 2^21 */
    CHILD_SIZE = 8,
    ENTRY_COUNT = 64,   /* is enough: a search decodes one block a level, whole */
    ENTRY_COUNT_MAX = BLOCK_SIZE / 3 + INNER_COUNT_MIN, /* an entry takes at least 3 bytes */
    LEVEL_COUNT_MAX = 32,
    OUT_SIZE = 1 << 16, /* gathered before it is written */
    COPY_SIZE = 32,     /* what is copied in one go; not above FOOTER_SIZE */
    NAMES_CAPACITY_MIN = 2 * BLOCK_SIZE,
};

/* What no writer exceeds; larger numbers are damage that the checksum did not see. */
static const uint64_t BLOCK_SIZE_MAX =
    BLOCK_HEAD_SIZE + BLOCK_SIZE + (uint64_t)INNER_COUNT_MIN * (KV_NAME_SIZE_MAX + ENTRY_HEAD_MAX + CHILD_SIZE);
static const uint64_t NAMES_SIZE_MAX = LEAF_NAMES_SIZE_MAX + (uint64_t)INNER_COUNT_MIN * KV_NAME_SIZE_MAX;

void kv_run_path(uint64_t id, char path[KV_RUN_PATH_SIZE]) {
    snprintf(path, KV_RUN_PATH_SIZE, "runs/%016llx.run", (unsigned long long)id);
}

static bool name_is_sound(uint8_t space, size_t size) {
    if (size < 2 || size > KV_NAME_SIZE_MAX) return false;
    size_t head = space == KV_SPACE_KEYS ? 1 : space == KV_SPACE_ROWS ? KV_NAME_ROW_HEAD_SIZE : KV_NAME_HEAD_MAX;
    return space <= KV_SPACE_CHANGES && size >= head && size - head <= KV_KEY_SIZE_MAX;
}

/* --- opening --- */

kv_status kv_run_open(uint64_t id, const uint8_t *bytes, uint64_t size, kv_run *out) {
    if (size < HEADER_SIZE + BLOCK_HEAD_SIZE + FOOTER_SIZE) return KV_ECORRUPT;
    bool header = memcmp(bytes, RUN_MAGIC, 8) == 0 && kv_load64(bytes + 24) == kv_xxh64(bytes, 24, id) &&
                  kv_load32(bytes + 8) == RUN_FORMAT && kv_load64(bytes + 16) == id;
    if (!header) return KV_ECORRUPT;
    const uint8_t *footer = bytes + size - FOOTER_SIZE;
    uint64_t checksum = kv_xxh64(footer, FOOTER_SIZE - 8, id);
    bool sound = memcmp(footer, FOOTER_MAGIC, 8) == 0 && kv_load64(footer + 56) == checksum &&
                 kv_load64(footer + 40) == size && kv_load64(footer + 48) == id;
    if (!sound) return KV_ECORRUPT;
    *out = (kv_run){
        .info = {.id = id, .name_count = kv_load64(footer + 8), .size = size, .checksum = checksum},
        .bytes = bytes,
        .root = kv_load64(footer + 24),
        .level = kv_load32(footer + 32),
    };
    return out->level < LEVEL_COUNT_MAX ? KV_OK : KV_ECORRUPT;
}

/* --- decoding a block --- */

void kv_run_cursor_init(kv_run_cursor *cursor) { *cursor = (kv_run_cursor){0}; }

void kv_run_cursor_free(kv_run_cursor *cursor) {
    for (size_t i = 0; i < KV_RUN_LEVELS_KEPT; i++) {
        free(cursor->blocks[i].names);
        free(cursor->blocks[i].ends);
        free(cursor->blocks[i].children);
    }
    kv_run_cursor_init(cursor);
}

/* What is allocated stays for the next block, or for the cursor's end. */
static kv_status block_room(kv_run_block *block, bool leaf) {
    if (block->names == NULL) {
        block->names = malloc(NAMES_CAPACITY_MIN);
        block->capacity = block->names == NULL ? 0 : NAMES_CAPACITY_MIN;
    }
    if (block->ends == NULL) block->ends = malloc(ENTRY_COUNT_MAX * sizeof *block->ends);
    if (block->children == NULL && !leaf) block->children = malloc(ENTRY_COUNT_MAX * sizeof *block->children);
    bool good = block->names != NULL && block->ends != NULL && (leaf || block->children != NULL);
    return good ? KV_OK : KV_ENOMEM;
}

/* Up to three bytes of seven bits, lowest first; false: none that ends before `end`. */
static bool take_varint(const uint8_t **from, const uint8_t *end, uint32_t *out) {
    uint32_t value = 0;
    for (unsigned shift = 0; shift < 21 && *from < end; shift += 7) {
        uint8_t byte = *(*from)++;
        value |= (uint32_t)(byte & 127) << shift;
        if (byte < 128) {
            *out = value;
            return true;
        }
    }
    return false;
}

static kv_status names_room(kv_run_block *block, size_t size) {
    if (size + COPY_SIZE <= block->capacity) return KV_OK;
    if (size > NAMES_SIZE_MAX) return KV_ECORRUPT;
    size_t capacity = block->capacity * 2 > size + COPY_SIZE ? block->capacity * 2 : size + COPY_SIZE;
    uint8_t *larger = realloc(block->names, capacity);
    if (larger == NULL) return KV_ENOMEM;
    block->names = larger;
    block->capacity = capacity;
    return KV_OK;
}

/* Most parts of names are short, and copying too much in one go is quicker than a call to memcpy: behind `to` there is
 * room for it, and so there is behind `from` for reading, in a buffer of names, and in a run, which ends in a footer. */
static inline void copy_short(uint8_t *to, const uint8_t *from, size_t size) {
    if (KV_UNLIKELY(size > COPY_SIZE)) {
        memcpy(to, from, size);
        return;
    }
    uint64_t a = kv_load64(from), b = kv_load64(from + 8), c = kv_load64(from + 16), d = kv_load64(from + 24);
    kv_store64(to, a);
    kv_store64(to + 8, b);
    kv_store64(to + 16, c);
    kv_store64(to + 24, d);
}

/* Both numbers of an entry; nearly all are below 128. */
static inline bool take_entry_head(const uint8_t **from, const uint8_t *end, uint32_t *shared, uint32_t *rest) {
    const uint8_t *at = *from;
    if (KV_LIKELY(end - at >= 2 && ((at[0] | at[1]) & 128) == 0)) {
        *shared = at[0];
        *rest = at[1];
        *from = at + 2;
        return true;
    }
    return take_varint(from, end, shared) && take_varint(from, end, rest);
}

/* The name before, while a block is decoded. Its first bytes stay in a register: what was stored a moment ago in pieces
 * cannot be loaded as one word until the stores are done, and that was half the time of decoding. */
typedef struct name_before {
    uint64_t word; /* its first 8 bytes, the first the lowest */
    uint32_t start, size;
} name_before;

static inline uint8_t byte_before(const kv_run_block *block, const name_before *before, uint32_t at) {
    if (at >= sizeof before->word) return block->names[before->start + at];
    return (uint8_t)(before->word >> 8 * at);
}

/* Puts the next name together behind the one before. There is room. */
static inline void join(kv_run_block *block, name_before *before, uint32_t shared, const uint8_t *rest, uint32_t rest_size) {
    uint8_t *to = block->names + before->start + before->size;
    if (shared >= 8) {
        copy_short(to, block->names + before->start, shared);
    } else {
        before->word = (before->word & (((uint64_t)1 << 8 * shared) - 1)) | kv_load64(rest) << 8 * shared;
        kv_store64(to, before->word);
    }
    copy_short(to + shared, rest, rest_size);
    before->start += before->size;
    before->size = shared + rest_size;
}

/* Each name sorts behind the one before, by the first byte in which they differ: a scan goes on behind the last name it
 * saw, so names that do not ascend would lead it in a circle. */
static kv_status decode_entries(kv_run_block *block, const uint8_t *from, const uint8_t *end, bool leaf) {
    name_before before = {0};
    for (uint32_t i = 0; i < block->count; i++) {
        uint32_t shared, rest;
        if (!take_entry_head(&from, end, &shared, &rest)) return KV_ECORRUPT;
        if (shared > before.size || rest > (uint64_t)(end - from) || shared + rest > KV_NAME_SIZE_MAX) return KV_ECORRUPT;
        bool ascends = rest != 0 && (shared == before.size || from[0] > byte_before(block, &before, shared));
        if (i != 0 && !ascends) return KV_ECORRUPT;
        kv_status status = names_room(block, (size_t)before.start + before.size + shared + rest);
        if (status != KV_OK) return status;
        join(block, &before, shared, from, rest);
        from += rest;
        block->ends[i] = before.start + before.size;
        if (leaf && !name_is_sound((uint8_t)before.word, before.size)) return KV_ECORRUPT;
        if (leaf) continue;
        if (end - from < CHILD_SIZE) return KV_ECORRUPT;
        block->children[i] = kv_load64(from);
        from += CHILD_SIZE;
    }
    return from == end ? KV_OK : KV_ECORRUPT;
}

/* The block at `offset`, if it is one and intact; NULL otherwise. */
static const uint8_t *block_at(const kv_run *run, uint64_t offset, uint32_t *size) {
    uint64_t end = run->info.size - FOOTER_SIZE;
    if (offset < HEADER_SIZE || offset > end || end - offset < BLOCK_HEAD_SIZE) return NULL;
    const uint8_t *block = run->bytes + offset;
    *size = kv_load32(block + 24);
    if (*size < BLOCK_HEAD_SIZE || *size > end - offset || *size > BLOCK_SIZE_MAX) return NULL;
    if (kv_load64(block) != kv_xxh64(block + 8, *size - 8, run->info.id)) return NULL;
    return kv_load64(block + 8) == offset ? block : NULL;
}

/* `bytes` were verified. */
static kv_status decode_verified(kv_run_block *block, const uint8_t *bytes, uint32_t size, uint64_t offset, uint32_t level) {
    if (kv_load16(bytes + 30) != level) return KV_ECORRUPT;
    block->level = level;
    block->previous = kv_load64(bytes + 16);
    block->next = offset + size;
    block->count = kv_load16(bytes + 28);
    if (block->previous >= offset || block->count == 0 || block->count > ENTRY_COUNT_MAX) return KV_ECORRUPT;
    kv_status status = block_room(block, level == 0);
    return status == KV_OK ? decode_entries(block, bytes + BLOCK_HEAD_SIZE, bytes + size, level == 0) : status;
}

static kv_run_block *block_of(kv_run_cursor *cursor, uint32_t level) {
    return &cursor->blocks[level < KV_RUN_LEVELS_KEPT ? level : KV_RUN_LEVELS_KEPT - 1];
}

static bool block_is(const kv_run_block *block, const kv_run *run, uint64_t offset, uint32_t level) {
    return block->offset == offset && block->level == level && block->run_id == run->info.id &&
           block->run_checksum == run->info.checksum;
}

/* Makes the verified block the one of its level. */
static kv_status block_take(kv_run_cursor *cursor, const uint8_t *bytes, uint32_t size, uint64_t offset, uint32_t level) {
    const kv_run *run = cursor->run;
    kv_run_block *block = block_of(cursor, level);
    block->offset = 0; /* Until all of it is good. */
    block->count = 0;
    kv_status status = decode_verified(block, bytes, size, offset, level);
    if (status != KV_OK) return status;
    block->offset = offset;
    block->run_id = run->info.id;
    block->run_checksum = run->info.checksum;
    return KV_OK;
}

/* The block of a level, unless it is the one that is there. */
static kv_status block_decode(kv_run_cursor *cursor, uint64_t offset, uint32_t level) {
    uint32_t size;
    if (block_is(block_of(cursor, level), cursor->run, offset, level)) return KV_OK;
    const uint8_t *bytes = block_at(cursor->run, offset, &size);
    return bytes == NULL ? KV_ECORRUPT : block_take(cursor, bytes, size, offset, level);
}

/* --- searching --- */

static inline void entry_at(const kv_run_block *block, uint32_t at, const uint8_t **name, uint32_t *size) {
    uint32_t start = at == 0 ? 0 : block->ends[at - 1];
    *name = block->names + start;
    *size = block->ends[at] - start;
}

/* How many entries of a block are below `name`, or not above it. */
static uint32_t count_before(const kv_run_block *block, const uint8_t *name, size_t size, bool or_equal) {
    uint32_t low = 0, high = block->count;
    while (low < high) {
        const uint8_t *middle;
        uint32_t middle_size, at = low + (high - low) / 2;
        entry_at(block, at, &middle, &middle_size);
        int order = kv_name_compare(middle, middle_size, name, size);
        if (order < 0 || (order == 0 && or_equal)) low = at + 1;
        else high = at;
    }
    return low;
}

static kv_status stand(kv_run_cursor *cursor, uint32_t at) {
    cursor->at = at;
    entry_at(&cursor->blocks[0], at, &cursor->name, &cursor->name_size);
    return KV_OK;
}

/* To the leaf where `name` is if it is anywhere. */
static kv_status descend(kv_run_cursor *cursor, const uint8_t *name, size_t size) {
    uint64_t offset = cursor->run->root;
    for (uint32_t level = cursor->run->level;; level--) {
        kv_status status = block_decode(cursor, offset, level);
        if (status != KV_OK || level == 0) return status;
        /* The first separator is empty, so there is one that is not above, unless the file is none of ours. */
        const kv_run_block *block = block_of(cursor, level);
        uint32_t below = count_before(block, name, size, true);
        if (below == 0) return KV_ECORRUPT;
        uint64_t child = block->children[below - 1];
        if (child >= offset) return KV_ECORRUPT;
        offset = child;
    }
}

/* The first name of a leaf that was verified sorts behind a name. */
static bool leaf_begins_behind(const uint8_t *leaf, const uint8_t *name, uint32_t name_size) {
    const uint8_t *from = leaf + BLOCK_HEAD_SIZE, *end = leaf + kv_load32(leaf + 24);
    uint32_t shared, size;
    if (!take_varint(&from, end, &shared) || !take_varint(&from, end, &size) || size > (uint64_t)(end - from)) return false;
    return kv_name_compare(name, name_size, from, size) < 0;
}

/* The last name of the decoded leaf. */
static void leaf_last(const kv_run_cursor *cursor, const uint8_t **name, uint32_t *size) {
    entry_at(&cursor->blocks[0], cursor->blocks[0].count - 1, name, size);
}

/* The leaf behind the one decoded, past the inner blocks that lie between them. */
static kv_status leaf_next(kv_run_cursor *cursor) {
    const kv_run *run = cursor->run;
    kv_run_block *leaf = &cursor->blocks[0];
    uint64_t from = leaf->offset, offset = leaf->next, end = run->info.size - FOOTER_SIZE;
    while (offset < end) {
        uint32_t size, last_size;
        const uint8_t *last, *block = block_at(run, offset, &size);
        if (block == NULL) return KV_ECORRUPT;
        if (kv_load16(block + 30) == 0) {
            leaf_last(cursor, &last, &last_size);
            if (kv_load64(block + 16) != from || !leaf_begins_behind(block, last, last_size)) return KV_ECORRUPT;
            return block_take(cursor, block, size, offset, 0);
        }
        offset += size;
    }
    return offset == end ? KV_EOF : KV_ECORRUPT;
}

static kv_status leaf_previous(kv_run_cursor *cursor) {
    const uint8_t *last;
    uint32_t size, last_size;
    uint64_t offset = cursor->blocks[0].offset, previous = cursor->blocks[0].previous;
    if (previous == 0) return KV_EOF;
    kv_status status = block_decode(cursor, previous, 0);
    if (status != KV_OK) return status;
    /* Verified anew: that was when it was decoded, and may be long ago. */
    const uint8_t *leaf = block_at(cursor->run, offset, &size);
    leaf_last(cursor, &last, &last_size);
    return leaf != NULL && leaf_begins_behind(leaf, last, last_size) ? KV_OK : KV_ECORRUPT;
}

kv_status kv_run_next(kv_run_cursor *cursor) {
    if (cursor->at + 1 < cursor->blocks[0].count) return stand(cursor, cursor->at + 1);
    kv_status status = leaf_next(cursor);
    return status == KV_OK ? stand(cursor, 0) : status;
}

kv_status kv_run_previous(kv_run_cursor *cursor) {
    if (cursor->at > 0) return stand(cursor, cursor->at - 1);
    kv_status status = leaf_previous(cursor);
    return status == KV_OK ? stand(cursor, cursor->blocks[0].count - 1) : status;
}

kv_status kv_run_seek(kv_run_cursor *cursor, const kv_run *run, enum kv_seek how, const uint8_t *name, size_t size) {
    cursor->run = run;
    kv_status status = descend(cursor, name, size);
    if (status != KV_OK) return status;
    bool forward = how == KV_SEEK_GE || how == KV_SEEK_GT;
    const kv_run_block *leaf = &cursor->blocks[0];
    uint32_t before = count_before(leaf, name, size, how == KV_SEEK_GT || how == KV_SEEK_LE);
    if (forward && before < leaf->count) return stand(cursor, before);
    if (!forward && before > 0) return stand(cursor, before - 1);
    /* It is the first of the next leaf, or the last of the one before. */
    cursor->at = forward ? leaf->count - 1 : 0;
    status = forward ? kv_run_next(cursor) : kv_run_previous(cursor);
    if (status != KV_OK) return status;
    int order = kv_name_compare(cursor->name, cursor->name_size, name, size);
    return (forward ? order > 0 : order < 0) ? KV_OK : KV_ECORRUPT; /* The separators lied. */
}

/* --- writing --- */

/* The block of one level that is being filled. */
typedef struct level_block {
    uint8_t *bytes; /* with room for the head in front */
    size_t used, capacity;
    uint32_t count;
    size_t names_size; /* what decoding will take */
    uint64_t previous;
    uint8_t *last; /* the entry before, in the same block */
    size_t last_size, last_capacity;
    uint8_t *separator; /* of the block, for the level above */
    size_t separator_size, separator_capacity;
} level_block;

struct kv_run_writer {
    kv_io *io;
    kv_file *file;
    uint64_t id;
    uint64_t size; /* of the file, with what is gathered */
    uint8_t *out;
    size_t out_used, out_capacity;
    uint64_t name_count, leaf_count;
    uint8_t *last; /* the name before */
    size_t last_size;
    uint32_t level_count;
    level_block levels[LEVEL_COUNT_MAX];
};

static kv_status bytes_room(uint8_t **bytes, size_t *capacity, size_t size) {
    if (size <= *capacity) return KV_OK;
    size_t wanted = size * 2 > 64 ? size * 2 : 64;
    uint8_t *larger = realloc(*bytes, wanted);
    if (larger == NULL) return KV_ENOMEM;
    *bytes = larger;
    *capacity = wanted;
    return KV_OK;
}

static kv_status bytes_set(uint8_t **bytes, size_t *capacity, size_t *used, const uint8_t *from, size_t size) {
    kv_status status = bytes_room(bytes, capacity, size);
    if (status != KV_OK) return status;
    if (size != 0) memcpy(*bytes, from, size);
    *used = size;
    return KV_OK;
}

static kv_status out_flush(kv_run_writer *w) {
    if (w->out_used == 0) return KV_OK;
    kv_status status = w->io->write_at(w->io, w->file, w->out, w->out_used, w->size - w->out_used);
    w->out_used = 0;
    return status;
}

static kv_status out_add(kv_run_writer *w, const uint8_t *bytes, size_t size) {
    kv_status status = bytes_room(&w->out, &w->out_capacity, w->out_used + size);
    if (status != KV_OK) return status;
    memcpy(w->out + w->out_used, bytes, size);
    w->out_used += size;
    w->size += size;
    return w->out_used >= OUT_SIZE ? out_flush(w) : KV_OK;
}

kv_status kv_run_writer_new(kv_io *io, uint64_t id, kv_run_writer **out) {
    uint8_t header[HEADER_SIZE] = {0};
    char path[KV_RUN_PATH_SIZE];
    kv_run_writer *w = calloc(1, sizeof *w);
    if (w == NULL) return KV_ENOMEM;
    w->io = io;
    w->id = id;
    w->last = malloc(KV_NAME_SIZE_MAX);
    kv_run_path(id, path);
    memcpy(header, RUN_MAGIC, 8);
    kv_store32(header + 8, RUN_FORMAT);
    kv_store64(header + 16, id);
    kv_store64(header + 24, kv_xxh64(header, 24, id));
    kv_status status = w->last == NULL ? KV_ENOMEM : io->open(io, path, KV_IO_CREATE, &w->file);
    if (status == KV_OK) status = out_add(w, header, sizeof header);
    if (status != KV_OK) {
        kv_run_writer_free(w);
        return status;
    }
    *out = w;
    return KV_OK;
}

void kv_run_writer_free(kv_run_writer *w) {
    if (w == NULL) return;
    if (w->file != NULL) w->io->close(w->io, w->file);
    for (size_t i = 0; i < LEVEL_COUNT_MAX; i++) {
        free(w->levels[i].bytes);
        free(w->levels[i].last);
        free(w->levels[i].separator);
    }
    free(w->out);
    free(w->last);
    free(w);
}

static uint8_t *put_varint(uint8_t *to, uint32_t value) {
    for (; value >= 128; value >>= 7) *to++ = (uint8_t)(value | 128);
    *to++ = (uint8_t)value;
    return to;
}

static size_t shared_size(const uint8_t *left, size_t left_size, const uint8_t *right, size_t right_size) {
    size_t most = left_size < right_size ? left_size : right_size, shared = 0;
    while (shared < most && left[shared] == right[shared]) shared++;
    return shared;
}

/* Whether one more entry, of at most `size` bytes, goes into the block. */
static bool block_takes(const level_block *block, bool leaf, size_t size, size_t name_size) {
    if (block->count == 0 || (!leaf && block->count < INNER_COUNT_MIN)) return true;
    if (block->count == ENTRY_COUNT) return false;
    return block->used + size <= BLOCK_SIZE && block->names_size + name_size <= LEAF_NAMES_SIZE_MAX;
}

/* Appends an entry; `child` 0: to a leaf. */
static kv_status block_add(level_block *block, const uint8_t *name, size_t size, uint64_t child) {
    if (block->count == 0) block->used = BLOCK_HEAD_SIZE;
    size_t shared = block->count == 0 ? 0 : shared_size(block->last, block->last_size, name, size);
    size_t most = ENTRY_HEAD_MAX + size - shared + CHILD_SIZE;
    kv_status status = bytes_room(&block->bytes, &block->capacity, block->used + most);
    if (status == KV_OK) status = bytes_set(&block->last, &block->last_capacity, &block->last_size, name, size);
    if (status != KV_OK) return status;
    uint8_t *to = put_varint(block->bytes + block->used, (uint32_t)shared);
    to = put_varint(to, (uint32_t)(size - shared));
    if (size != shared) memcpy(to, name + shared, size - shared);
    to += size - shared;
    if (child != 0) {
        kv_store64(to, child);
        to += CHILD_SIZE;
    }
    block->used = (size_t)(to - block->bytes);
    block->names_size += size;
    block->count++;
    return KV_OK;
}

static kv_status level_add(kv_run_writer *w, uint32_t level, const uint8_t *separator, size_t size, uint64_t child);

/* Writes the block of a level and tells the level above. */
static kv_status level_flush(kv_run_writer *w, uint32_t level, bool tell) {
    level_block *block = &w->levels[level];
    uint64_t offset = w->size;
    uint8_t *head = block->bytes;
    memset(head, 0, BLOCK_HEAD_SIZE);
    kv_store64(head + 8, offset);
    kv_store64(head + 16, block->previous);
    kv_store32(head + 24, (uint32_t)block->used);
    kv_store16(head + 28, (uint16_t)block->count);
    kv_store16(head + 30, (uint16_t)level);
    kv_store64(head, kv_xxh64(head + 8, block->used - 8, w->id));
    kv_status status = out_add(w, head, block->used);
    block->count = 0;
    block->names_size = 0;
    block->previous = offset;
    if (status == KV_OK && tell) status = level_add(w, level + 1, block->separator, block->separator_size, offset);
    return status;
}

/* An entry for a block of the level below. */
static kv_status level_add(kv_run_writer *w, uint32_t level, const uint8_t *separator, size_t size, uint64_t child) {
    KV_ASSERT(level < LEVEL_COUNT_MAX);
    level_block *block = &w->levels[level];
    kv_status status = KV_OK;
    if (level >= w->level_count) w->level_count = level + 1;
    if (!block_takes(block, false, ENTRY_HEAD_MAX + size + CHILD_SIZE, size)) status = level_flush(w, level, true);
    /* What parts the child from everything before parts the block that begins with it as well. */
    if (status == KV_OK && block->count == 0)
        status = bytes_set(&block->separator, &block->separator_capacity, &block->separator_size, separator, size);
    return status == KV_OK ? block_add(block, separator, size, child) : status;
}

kv_status kv_run_write(kv_run_writer *w, const uint8_t *name, size_t size) {
    level_block *leaf = &w->levels[0];
    bool first = w->name_count == 0;
    if (size == 0 || !name_is_sound(name[0], size)) return KV_EUSAGE;
    if (!first && kv_name_compare(w->last, w->last_size, name, size) >= 0) return KV_EUSAGE;
    size_t shared = first ? 0 : shared_size(w->last, w->last_size, name, size);
    kv_status status = KV_OK;
    if (!block_takes(leaf, true, ENTRY_HEAD_MAX + size - shared, size)) {
        status = level_flush(w, 0, true);
        w->leaf_count++;
    }
    if (status == KV_OK && leaf->count == 0)
        status = bytes_set(&leaf->separator, &leaf->separator_capacity, &leaf->separator_size, name,
                           first ? 0 : shared + 1);
    if (status == KV_OK) status = block_add(leaf, name, size, 0);
    if (status != KV_OK) return status;
    memcpy(w->last, name, size);
    w->last_size = size;
    w->name_count++;
    if (w->level_count == 0) w->level_count = 1;
    return KV_OK;
}

/* From the leaves up; a level that has one block is the root. */
static kv_status flush_levels(kv_run_writer *w, uint64_t *root, uint32_t *root_level) {
    for (uint32_t level = 0;; level++) {
        bool top = level + 1 == w->level_count && w->levels[level].previous == 0;
        kv_status status = level_flush(w, level, !top);
        if (status != KV_OK) return status;
        *root = w->levels[level].previous;
        *root_level = level;
        if (top) return KV_OK;
    }
}

kv_status kv_run_finish(kv_run_writer *w, kv_run_info *out) {
    uint8_t footer[FOOTER_SIZE] = {0};
    uint64_t root;
    uint32_t level;
    if (w->name_count == 0) return KV_EUSAGE;
    kv_status status = flush_levels(w, &root, &level);
    if (status != KV_OK) return status;
    w->leaf_count++;
    memcpy(footer, FOOTER_MAGIC, 8);
    kv_store64(footer + 8, w->name_count);
    kv_store64(footer + 16, w->leaf_count);
    kv_store64(footer + 24, root);
    kv_store32(footer + 32, level);
    kv_store64(footer + 40, w->size + FOOTER_SIZE);
    kv_store64(footer + 48, w->id);
    uint64_t checksum = kv_xxh64(footer, FOOTER_SIZE - 8, w->id);
    kv_store64(footer + 56, checksum);
    status = out_add(w, footer, sizeof footer);
    if (status == KV_OK) status = out_flush(w);
    if (status == KV_OK) status = w->io->sync(w->io, w->file);
    *out = (kv_run_info){.id = w->id, .name_count = w->name_count, .size = w->size, .checksum = checksum};
    return status;
}
