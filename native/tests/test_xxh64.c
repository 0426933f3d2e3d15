/* test_xxh64.c -- that kv_xxh64 is XXH64. The expected numbers come from the PyPI package xxhash 4.1.0; a Python test
 * compares far more inputs with it directly. */
#include "kv/xxh64.h"

#include "check.h"

enum { DATA_SIZE = 1 << 20, SHORT_SIZE_MAX = 300, SEED = 0x12345678 };

static uint8_t *data; /* filled by a linear congruential generator, so that Python can make the same bytes */

static void fill(void) {
    data = malloc(DATA_SIZE);
    if (data == NULL) abort();
    uint64_t x = 2654435761u;
    for (size_t i = 0; i < DATA_SIZE; i++) {
        data[i] = (uint8_t)(x >> 56);
        x = x * 6364136223846793005u + 1442695040888963407u;
    }
}

/* A copy of exactly `size` bytes at an odd address, so that a read past either end is seen by ASan. */
static uint64_t hash_of_copy(size_t size, uint64_t seed) {
    uint8_t *copy = malloc(size + 1);
    if (copy == NULL) abort();
    memcpy(copy + 1, data, size);
    uint64_t hash = kv_xxh64(copy + 1, size, seed);
    free(copy);
    return hash;
}

static uint64_t hash_in_pieces(size_t size, uint64_t seed, size_t piece) {
    kv_xxh64_state state;
    kv_xxh64_begin(&state, seed);
    for (size_t at = 0; at < size; at += piece) {
        kv_xxh64_update(&state, data + at, size - at < piece ? size - at : piece);
    }
    return kv_xxh64_end(&state);
}

TEST(published_vectors_hold) {
    CHECK(kv_xxh64(NULL, 0, 0) == 0xef46db3751d8e999u);
    CHECK(kv_xxh64((const uint8_t *)"abc", 3, 0) == 0x44bc2cf5ad770999u);
}

TEST(sizes_around_every_boundary_hold) {
    static const struct {
        size_t size;
        uint64_t seed;
        uint64_t hash;
    } vectors[] = {
        {0, 0, 0xef46db3751d8e999u}, {0, SEED, 0x30b93d611716104au},
        {1, 0, 0xe934a84adb052768u}, {1, SEED, 0x9f72e537da92e987u},
        {3, 0, 0xf9c56dcb754fd546u}, {3, SEED, 0xd8731667ff73fb24u},
        {4, 0, 0xb4a045284c27ad5eu}, {4, SEED, 0xeaf53346e0067b4fu},
        {7, 0, 0xe2843b93fd7e28afu}, {7, SEED, 0xafba33aa01790133u},
        {8, 0, 0x6e00bd73dca55489u}, {8, SEED, 0xc77c6f1569aab461u},
        {12, 0, 0xbf68970331677b8cu}, {12, SEED, 0x628b8a429b0dd851u},
        {31, 0, 0xabff97e451ba4abeu}, {31, SEED, 0x2522ebd0199510edu},
        {32, 0, 0xf93ecf51b1d670b4u}, {32, SEED, 0x1ee23a468d8a802cu},
        {33, 0, 0xf996c8fb746ade63u}, {33, SEED, 0x3fc3c492016bea90u},
        {63, 0, 0x5310eee1b9247cfau}, {63, SEED, 0xaa770ea6cddd764fu},
        {64, 0, 0x0c02cd2418f04befu}, {64, SEED, 0x57f2d1e429cb4828u},
        {140, 0, 0xec8db48750ef4121u}, {140, SEED, 0xe618c00056d60f6au},
        {300, 0, 0x7383e90ab4f72aefu}, {300, SEED, 0x2e1629fb3e2c7d0bu},
        {4096, 0, 0x9cd5427f669a0eb5u}, {4096, SEED, 0x10da0085e0522939u},
        {1048576, 0, 0x73c94368d45a40c4u}, {1048576, SEED, 0x1d902c2faa990484u},
    };
    for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++) {
        CHECK(hash_of_copy(vectors[i].size, vectors[i].seed) == vectors[i].hash);
    }
}

/* The hashes of all lengths 0 to 300, one behind the other, hashed once more: one number checks 301. */
TEST(every_short_length_holds) {
    static const struct {
        uint64_t seed;
        uint64_t hash;
    } digests[] = {
        {0x0000000000000000u, 0x2afad0a2ab20e7a0u},
        {0x0000000000000001u, 0xb9c1d93105d7880cu},
        {0x000000009e3779b1u, 0x6ce8184da2d1f94au},
        {0xffffffffffffffffu, 0x5c3cc802d13afe00u},
    };
    for (size_t i = 0; i < sizeof digests / sizeof *digests; i++) {
        uint64_t hashes[SHORT_SIZE_MAX + 1];
        for (size_t size = 0; size <= SHORT_SIZE_MAX; size++) hashes[size] = hash_of_copy(size, digests[i].seed);
        CHECK(kv_xxh64((const uint8_t *)hashes, sizeof hashes, 0) == digests[i].hash);
    }
}

TEST(pieces_make_the_whole) {
    for (size_t size = 0; size <= SHORT_SIZE_MAX; size++) {
        uint64_t whole = kv_xxh64(data, size, SEED);
        for (size_t piece = 1; piece <= 67; piece++) CHECK(hash_in_pieces(size, SEED, piece) == whole);
    }
    CHECK(hash_in_pieces(DATA_SIZE, SEED, 4097) == kv_xxh64(data, DATA_SIZE, SEED));
}

TEST(an_empty_piece_changes_nothing) {
    kv_xxh64_state state;
    kv_xxh64_begin(&state, SEED);
    kv_xxh64_update(&state, data, 40);
    kv_xxh64_update(&state, NULL, 0);
    CHECK(kv_xxh64_end(&state) == kv_xxh64(data, 40, SEED));
}

TEST(end_may_be_asked_in_between) {
    kv_xxh64_state state;
    kv_xxh64_begin(&state, SEED);
    kv_xxh64_update(&state, data, 50);
    CHECK(kv_xxh64_end(&state) == kv_xxh64(data, 50, SEED));
    kv_xxh64_update(&state, data + 50, 50);
    CHECK(kv_xxh64_end(&state) == kv_xxh64(data, 100, SEED));
}

int main(void) {
    fill();
    RUN(published_vectors_hold);
    RUN(sizes_around_every_boundary_hold);
    RUN(every_short_length_holds);
    RUN(pieces_make_the_whole);
    RUN(an_empty_piece_changes_nothing);
    RUN(end_may_be_asked_in_between);
    free(data);
    return check_report();
}
