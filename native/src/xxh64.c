/* xxh64.c -- XXH64, step by step as the specification counts them (doc/xxhash_spec.md, "XXH64 Algorithm").
 *
 *   1  four lanes start from the seed          (an input below 32 bytes starts from one sum and skips to 4)
 *   2  each stripe of 32 bytes feeds 8 to every lane
 *   3  the lanes converge into one number
 *   4  the length is added
 *   5  what is left of the input: words of 8, at most one of 4, single bytes
 *   6  avalanche: every input bit reaches every output bit
 *
 * This runs over every record written or verified, usually 100 to 200 bytes, so the lanes stay in registers: they
 * are a value handed from step to step, and only a streaming state ever stores them. Unaligned words are loaded by
 * memcpy, which compiles to one instruction. All sums and products wrap at 64 bits, as the specification has it. */
#include "kv/xxh64.h"

enum { STRIPE_SIZE = 32 };

static const uint64_t PRIME_1 = 0x9E3779B185EBCA87u;
static const uint64_t PRIME_2 = 0xC2B2AE3D27D4EB4Fu;
static const uint64_t PRIME_3 = 0x165667B19E3779F9u;
static const uint64_t PRIME_4 = 0x85EBCA77C2B2AE63u;
static const uint64_t PRIME_5 = 0x27D4EB2F165667C5u;

typedef struct lanes {
    uint64_t a, b, c, d;
} lanes;

static inline uint64_t rotate(uint64_t x, unsigned bits) { return x << bits | x >> (64 - bits); }

static inline uint64_t round_of(uint64_t lane, uint64_t word) {
    return rotate(lane + word * PRIME_2, 31) * PRIME_1;
}

static inline lanes start(uint64_t seed) {
    return (lanes){seed + PRIME_1 + PRIME_2, seed + PRIME_2, seed, seed - PRIME_1};
}

static inline lanes consume(lanes l, const uint8_t *stripe) {
    l.a = round_of(l.a, kv_load64(stripe));
    l.b = round_of(l.b, kv_load64(stripe + 8));
    l.c = round_of(l.c, kv_load64(stripe + 16));
    l.d = round_of(l.d, kv_load64(stripe + 24));
    return l;
}

static inline uint64_t merge(uint64_t hash, uint64_t lane) {
    return (hash ^ round_of(0, lane)) * PRIME_1 + PRIME_4;
}

static inline uint64_t converge(lanes l) {
    uint64_t hash = rotate(l.a, 1) + rotate(l.b, 7) + rotate(l.c, 12) + rotate(l.d, 18);
    hash = merge(hash, l.a);
    hash = merge(hash, l.b);
    hash = merge(hash, l.c);
    return merge(hash, l.d);
}

/* Steps 5 and 6: `size` is below 32. */
static inline uint64_t finish(uint64_t hash, const uint8_t *bytes, size_t size) {
    for (; size >= 8; bytes += 8, size -= 8) {
        hash = rotate(hash ^ round_of(0, kv_load64(bytes)), 27) * PRIME_1 + PRIME_4;
    }
    if (size >= 4) {
        hash = rotate(hash ^ kv_load32(bytes) * PRIME_1, 23) * PRIME_2 + PRIME_3;
        bytes += 4;
        size -= 4;
    }
    for (; size > 0; bytes++, size--) hash = rotate(hash ^ *bytes * PRIME_5, 11) * PRIME_1;

    hash = (hash ^ hash >> 33) * PRIME_2;
    hash = (hash ^ hash >> 29) * PRIME_3;
    return hash ^ hash >> 32;
}

uint64_t kv_xxh64(const uint8_t *bytes, size_t size, uint64_t seed) {
    if (size < STRIPE_SIZE) return finish(seed + PRIME_5 + size, bytes, size);
    lanes l = start(seed);
    size_t left = size;
    for (; left >= STRIPE_SIZE; bytes += STRIPE_SIZE, left -= STRIPE_SIZE) l = consume(l, bytes);
    return finish(converge(l) + size, bytes, left);
}

/* --- streaming: the same steps, with the lanes and up to 31 bytes of a stripe kept between calls --- */

static lanes load_lanes(const kv_xxh64_state *state) {
    return (lanes){state->lane[0], state->lane[1], state->lane[2], state->lane[3]};
}

static void keep_lanes(kv_xxh64_state *state, lanes l) {
    state->lane[0] = l.a;
    state->lane[1] = l.b;
    state->lane[2] = l.c;
    state->lane[3] = l.d;
}

void kv_xxh64_begin(kv_xxh64_state *state, uint64_t seed) {
    memset(state, 0, sizeof *state);
    keep_lanes(state, start(seed));
    state->seed = seed;
}

void kv_xxh64_update(kv_xxh64_state *state, const uint8_t *bytes, size_t size) {
    KV_ASSERT(state->pending_size < STRIPE_SIZE);
    if (size == 0) return; /* `bytes` may be NULL then, which memcpy must not see. */
    state->total += size;

    size_t wanted = STRIPE_SIZE - state->pending_size;
    if (size < wanted) {
        memcpy(state->pending + state->pending_size, bytes, size);
        state->pending_size += size;
        return;
    }
    lanes l = load_lanes(state);
    if (state->pending_size > 0) {
        memcpy(state->pending + state->pending_size, bytes, wanted);
        l = consume(l, state->pending);
        bytes += wanted;
        size -= wanted;
    }
    for (; size >= STRIPE_SIZE; bytes += STRIPE_SIZE, size -= STRIPE_SIZE) l = consume(l, bytes);
    keep_lanes(state, l);
    memcpy(state->pending, bytes, size);
    state->pending_size = size;
}

uint64_t kv_xxh64_end(const kv_xxh64_state *state) {
    uint64_t hash = state->total < STRIPE_SIZE ? state->seed + PRIME_5 : converge(load_lanes(state));
    return finish(hash + state->total, state->pending, state->pending_size);
}
