/* test_large.c -- memory for a while: holds what is put into it, moves it along, and is gone from the process when it is
 * freed, whatever malloc was taught before. */
#include <stdio.h>
#include <stdlib.h>

#include "check.h"
#include "kv/large.h"

enum { PIECE_SIZE = 1 << 20, PIECE_COUNT = 32 };

TEST(what_is_in_a_piece_moves_along_to_any_size) {
    static const size_t sizes[] = {1, 100, 65535, 65536, 65537, 1 << 20, 70000, 3 << 20, 65536, 17, 1};
    uint8_t *bytes = NULL;
    size_t held = 0;
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        bytes = kv_large_resize(bytes, sizes[i]);
        CHECK(bytes != NULL);
        CHECK_EQ((uintptr_t)bytes % 16, 0);
        for (size_t at = 0; at < held && at < sizes[i]; at++) CHECK(bytes[at] == (uint8_t)(at * 31));
        held = sizes[i];
        for (size_t at = 0; at < held; at++) bytes[at] = (uint8_t)(at * 31);
    }
    kv_large_free(bytes);
    kv_large_free(NULL);
}

TEST(what_cannot_be_had_is_refused) {
    CHECK(kv_large_new(SIZE_MAX) == NULL);
    CHECK(kv_large_new(SIZE_MAX - 100) == NULL);
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
static long anonymous_kib(void) {
    char line[256];
    long kib = 0;
    FILE *status = fopen("/proc/self/status", "r");
    CHECK(status != NULL);
    while (fgets(line, sizeof line, status) != NULL)
        if (sscanf(line, "RssAnon: %ld", &kib) == 1) break;
    fclose(status);
    return kib;
}

TEST(what_is_freed_goes_back_to_the_kernel) {
    void *pieces[PIECE_COUNT], *between[PIECE_COUNT];
    free(malloc(24 << 20)); /* From here on malloc keeps pieces of this size. */
    long before = anonymous_kib();
    for (int i = 0; i < PIECE_COUNT; i++) {
        pieces[i] = kv_large_new(PIECE_SIZE);
        between[i] = malloc(100); /* What stays must hold nothing back. */
        CHECK(pieces[i] != NULL && between[i] != NULL);
        memset(pieces[i], 1, PIECE_SIZE);
    }
    CHECK(anonymous_kib() - before >= PIECE_COUNT * 1024);
    for (int i = 0; i < PIECE_COUNT; i++) kv_large_free(pieces[i]);
    CHECK(anonymous_kib() - before < 1024);
    for (int i = 0; i < PIECE_COUNT; i++) free(between[i]);
}
#endif

int main(void) {
    RUN(what_is_in_a_piece_moves_along_to_any_size);
    RUN(what_cannot_be_had_is_refused);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    RUN(what_is_freed_goes_back_to_the_kernel);
#endif
    return check_report();
}
