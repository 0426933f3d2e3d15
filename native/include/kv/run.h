/* run.h -- sorted runs: immutable files of names in ascending order, prefix-compressed, read where they are mapped.
 *
 * A name is what is listed in order, as one string of bytes that sorts bytewise:
 *
 *   space 0    00, key                  keys and the keys of tables
 *   space 1    01, table id (8, big-endian), row        the rows of a table
 *   space 2    02, table id, version (8, big-endian), row      its changes: what a row write did, by its version
 *
 * A run is "runs/%016x.run": a header, blocks, a footer. The leaves hold the names; an inner block holds, for each
 * block one level below, a string that parts it from the one before: so a search decodes one block a level, and opening
 * reads header and footer alone. Every block is verified when it is decoded, every time.
 *
 * A cursor decodes a whole block into memory of its own, so that a step back is as simple as a step forward, and a step
 * allocates nothing unless a block is larger than all before it. It keeps the last block of each level: runs never
 * change, so the next search that comes by needs neither verify nor decode it again.
 *
 * Threads: a kv_run is never changed after it was opened: any. A cursor and a writer belong to one thread at a time.
 * Specification: docs/formats/run.md. */
#ifndef KV_RUN_H
#define KV_RUN_H

#include "base.h"
#include "io.h"
#include "status.h"

enum {
    KV_SPACE_KEYS = 0,
    KV_SPACE_ROWS = 1,
    KV_SPACE_CHANGES = 2,
    KV_NAME_ROW_HEAD_SIZE = 9,
    KV_NAME_HEAD_MAX = 17,
    KV_NAME_SIZE_MAX = KV_NAME_HEAD_MAX + KV_KEY_SIZE_MAX,
    KV_RUN_PATH_SIZE = 40,
};

/* Bytewise; a name sorts before what it begins. */
static inline int kv_name_compare(const uint8_t *left, size_t left_size, const uint8_t *right, size_t right_size) {
    size_t common = left_size < right_size ? left_size : right_size;
    int order = common == 0 ? 0 : memcmp(left, right, common);
    return order != 0 ? order : (left_size > right_size) - (left_size < right_size);
}

/* What a checkpoint says of a run, so that no other file passes for it. */
typedef struct kv_run_info {
    uint64_t id;
    uint64_t name_count;
    uint64_t size;     /* bytes of the file */
    uint64_t checksum; /* of its footer */
} kv_run_info;

/* --- reading --- */

typedef struct kv_run {
    kv_run_info info;
    const uint8_t *bytes;
    uint64_t root; /* where the topmost block is */
    uint32_t level; /* which level that is: 0 is a leaf */
} kv_run;

void kv_run_path(uint64_t id, char path[KV_RUN_PATH_SIZE]);
/* Reads header and footer. KV_ECORRUPT: no run, or another one. The bytes stay the caller's. */
kv_status kv_run_open(uint64_t id, const uint8_t *bytes, uint64_t size, kv_run *out);

/* A block as run.c decoded it. */
typedef struct kv_run_block {
    uint64_t run_id, run_checksum; /* whose block it is */
    uint64_t offset, previous, next; /* offset 0: nothing is decoded */
    uint32_t count;
    uint32_t level;
    uint8_t *names; /* one behind the other */
    size_t capacity;
    uint32_t *ends; /* where each of them ends */
    uint64_t *children; /* of an inner block: where the blocks below are */
} kv_run_block;

enum { KV_RUN_LEVELS_KEPT = 4 };

typedef struct kv_run_cursor {
    const uint8_t *name; /* where it stands, after KV_OK; until the next call */
    uint32_t name_size;
    /* What follows is run.c's. */
    const kv_run *run;
    uint32_t at; /* in the leaf */
    kv_run_block blocks[KV_RUN_LEVELS_KEPT]; /* by level, leaves first; the last one is for all levels from there on */
} kv_run_cursor;

enum kv_seek { KV_SEEK_GE, KV_SEEK_GT, KV_SEEK_LE, KV_SEEK_LT };

void kv_run_cursor_init(kv_run_cursor *cursor);
void kv_run_cursor_free(kv_run_cursor *cursor); /* accepts zeros */
/* The first name from `name` on, or the last up to it. Any bytes will do for `name`. KV_EOF: there is none, and the
 * cursor stands nowhere. KV_ECORRUPT: a block on the way is not what was written. */
kv_status kv_run_seek(kv_run_cursor *cursor, const kv_run *run, enum kv_seek how, const uint8_t *name, size_t size);
kv_status kv_run_next(kv_run_cursor *cursor);
kv_status kv_run_previous(kv_run_cursor *cursor);

/* --- writing --- */

typedef struct kv_run_writer kv_run_writer;

/* Creates the file; its directory is there. */
kv_status kv_run_writer_new(kv_io *io, uint64_t id, kv_run_writer **out);
/* KV_EUSAGE: not above the name before, or no name at all. */
kv_status kv_run_write(kv_run_writer *writer, const uint8_t *name, size_t size);
/* Footer, sync. The name in the directory is the caller's to make durable. */
kv_status kv_run_finish(kv_run_writer *writer, kv_run_info *out);
void kv_run_writer_free(kv_run_writer *writer); /* closes, does not unlink; accepts NULL */

#endif
