/* fuzz.h -- what the fuzz targets share: input taken as numbers, a disk to lay files on, and a store looked at from
 * outside.
 *
 * A target is fuzz_*.c with LLVMFuzzerTestOneInput. Checksums would stop nearly every random byte at the door, so a
 * target reads its input as a little program: it builds what the engine would have written, with the engine's own
 * encoders and whatever numbers the input has in store, and then edits bytes. Input that is used up goes on as zeros,
 * so every input is a program.
 *
 * A broken promise is a failed KV_ASSERT, which libFuzzer keeps as a finding; so is whatever the sanitizers see. */
#ifndef KV_FUZZ_H
#define KV_FUZZ_H

#include <stdio.h>
#include <stdlib.h>

/* No target uses all of what is shared here. */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"

#include "../src/store_internal.h"
#include "kv/io_sim.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* --- input --- */

typedef struct input {
    const uint8_t *at;
    size_t left;
} input;

static uint64_t take(input *in, size_t size) {
    uint64_t value = 0;
    size_t there = size < in->left ? size : in->left;
    if (there != 0) memcpy(&value, in->at, there);
    in->at += there;
    in->left -= there;
    return value;
}

/* Exactly as large as it says, so that AddressSanitizer sees a byte too many. */
static uint8_t *copy_of(const uint8_t *bytes, size_t size) {
    uint8_t *copy = malloc(size != 0 ? size : 1);
    KV_ASSERT(copy != NULL);
    if (size != 0) memcpy(copy, bytes, size);
    return copy;
}

/* --- files --- */

static void file_put(kv_sim *sim, const char *path, const uint8_t *bytes, size_t size) {
    kv_io *io = kv_sim_io(sim);
    kv_file *file;
    KV_ASSERT(io->open(io, path, KV_IO_CREATE, &file) == KV_OK);
    KV_ASSERT(io->write_at(io, file, bytes, size, 0) == KV_OK);
    io->close(io, file);
    io->free(io);
}

static uint8_t *file_get(kv_sim *sim, const char *path, size_t *size) {
    uint64_t file_size;
    size_t got;
    KV_ASSERT(kv_sim_file_size(sim, path, &file_size) == KV_OK);
    uint8_t *bytes = malloc(file_size + 1);
    KV_ASSERT(bytes != NULL && kv_sim_read(sim, path, 0, bytes, file_size, &got) == KV_OK && got == file_size);
    *size = got;
    return bytes;
}

/* --- runs: all checksums made right again, as far as the sizes lead from block to block --- */

enum { RUN_HEADER = 32, RUN_BLOCK_HEAD = 32, RUN_FOOTER = 64 };

static void run_repair(uint64_t id, uint8_t *bytes, size_t size) {
    if (size < RUN_HEADER + RUN_FOOTER) return;
    size_t end = size - RUN_FOOTER, at = RUN_HEADER;
    kv_store64(bytes + 24, kv_xxh64(bytes, 24, id));
    while (end - at >= RUN_BLOCK_HEAD) {
        uint32_t block = kv_load32(bytes + at + 24);
        if (block < RUN_BLOCK_HEAD || block > end - at) break;
        kv_store64(bytes + at, kv_xxh64(bytes + at + 8, block - 8, id));
        at += block;
    }
    kv_store64(bytes + end + 56, kv_xxh64(bytes + end, 56, id));
}

/* --- a store, as its callers see it --- */

enum { KEY_COUNT = 24, PAGES_MAX = 10000 };

typedef struct seen {
    kv_result size[KEY_COUNT]; /* or how the read ended */
    kv_result version[KEY_COUNT];
    uint64_t digest[KEY_COUNT];
    uint64_t scan; /* digest of what a scan lists, keys and values */
    kv_result scan_status;
    bool ascending; /* what the scan listed */
} seen;

static size_t key_of(int number, uint8_t key[8]) { return (size_t)snprintf((char *)key, 8, "k%d", number); }

static const uint8_t *bytes_of(kv_caller *c, kv_result size) {
    const kv_answer *answer = kv_caller_answer(c);
    return size <= KV_SMALL_SIZE ? answer->small : answer->large;
}

/* An input can make a table of a key. */
static bool is_read_result(kv_result result) {
    return result >= 0 || result == kv_ending(KV_ABSENT) || result == KV_EWRONGTYPE || result == KV_ECORRUPT;
}

/* A reader whose value file is missing may find a disk on which it looks as if compaction had left it behind. */
static kv_result read_result(kv_result result) { return result == KV_EBEHIND ? KV_ECORRUPT : result; }

static void look_scan(kv_caller *c, seen *out) {
    kv_xxh64_state sum;
    kv_range range = {.count_max = 5, .with_values = 1};
    kv_page page = {.more = 1};
    uint8_t *bound = malloc(KV_KEY_SIZE_MAX + 1), *last = malloc(KV_KEY_SIZE_MAX);
    size_t last_size = 0;
    KV_ASSERT(bound != NULL && last != NULL);
    kv_xxh64_begin(&sum, 0);
    out->ascending = true;
    for (int pages = 0; page.more; pages++) {
        KV_ASSERT(pages < PAGES_MAX); /* It ends. */
        out->scan_status = read_result(kv_scan(c, &range, &page));
        KV_ASSERT(is_read_result(out->scan_status));
        if (out->scan_status < 0) break;
        const uint8_t *bytes = bytes_of(c, out->scan_status);
        kv_xxh64_update(&sum, bytes, page.size);
        for (uint64_t i = 0; i < page.count; i++) {
            out->ascending &= kv_name_compare(last, last_size, bytes, page.sizes[2 * i]) < 0;
            last_size = page.sizes[2 * i];
            memcpy(last, bytes, last_size);
            bytes += last_size + page.sizes[2 * i + 1];
        }
        if (!page.more) break;
        memcpy(bound, bytes, page.resume_size);
        bound[page.resume_size] = 0;
        range.start = bound;
        range.start_size = page.resume_size + 1;
    }
    out->scan = kv_xxh64_end(&sum);
    free(bound);
    free(last);
}

static void look(kv_caller *c, seen *out) {
    memset(out, 0, sizeof *out);
    for (int i = 0; i < KEY_COUNT; i++) {
        uint8_t key[8];
        size_t key_size = key_of(i, key);
        out->version[i] = kv_version(c, key, key_size);
        out->size[i] = read_result(kv_get(c, key, key_size));
        KV_ASSERT(is_read_result(out->size[i]));
        if (out->size[i] >= 0) out->digest[i] = kv_xxh64(bytes_of(c, out->size[i]), (size_t)out->size[i], 0);
    }
    look_scan(c, out);
}

static bool key_same(const seen *a, const seen *b, int key) {
    return a->size[key] == b->size[key] && a->version[key] == b->version[key] && a->digest[key] == b->digest[key];
}

static bool keys_same(const seen *a, const seen *b) {
    for (int i = 0; i < KEY_COUNT; i++)
        if (!key_same(a, b, i)) return false;
    return true;
}

#pragma GCC diagnostic pop

#endif
