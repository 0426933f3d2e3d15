/* xxh64.h -- the checksum and hash: XXH64, from its specification (Collet, "xxHash fast digest algorithm",
 * doc/xxhash_spec.md, version 0.1.1), one shot and streaming. No state shared: safe from any thread. */
#ifndef KV_XXH64_H
#define KV_XXH64_H

#include "base.h"

uint64_t kv_xxh64(const uint8_t *bytes, size_t size, uint64_t seed);

typedef struct kv_xxh64_state {
    uint64_t lane[4];
    uint64_t total;
    uint64_t seed;
    uint8_t pending[32];
    size_t pending_size;
} kv_xxh64_state;

void kv_xxh64_begin(kv_xxh64_state *state, uint64_t seed);
void kv_xxh64_update(kv_xxh64_state *state, const uint8_t *bytes, size_t size);
uint64_t kv_xxh64_end(const kv_xxh64_state *state);

#endif
