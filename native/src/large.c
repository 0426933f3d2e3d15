/* large.c -- memory for a while. See kv/large.h.
 *
 *   offset size
 *        0    8  bytes mapped; 0: from malloc
 *        8    8  bytes asked for
 *       16       what the caller gets */
#include "kv/large.h"

#include <stdlib.h>
#include <sys/mman.h>

enum { HEAD_SIZE = 16 };
#if defined(__SANITIZE_ADDRESS__)
static const size_t MAPPED_MIN = SIZE_MAX;
#else
static const size_t MAPPED_MIN = 64 << 10;
#endif

static size_t *head_of(void *large) { return (size_t *)((uint8_t *)large - HEAD_SIZE); }

void *kv_large_new(size_t size) {
    if (size > SIZE_MAX - HEAD_SIZE - KV_PAGE_SIZE) return NULL;
    size_t mapped = size < MAPPED_MIN ? 0 : kv_align(size + HEAD_SIZE, KV_PAGE_SIZE);
    void *bytes = mapped == 0 ? malloc(size + HEAD_SIZE)
                              : mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (bytes == NULL || bytes == MAP_FAILED) return NULL;
    size_t *head = bytes;
    head[0] = mapped;
    head[1] = size;
    return (uint8_t *)bytes + HEAD_SIZE;
}

void kv_large_free(void *large) {
    if (large == NULL) return;
    size_t *head = head_of(large);
    if (head[0] == 0) free(head);
    else munmap(head, head[0]);
}

void *kv_large_resize(void *large, size_t size) {
    void *other = kv_large_new(size);
    if (other == NULL || large == NULL) return other;
    size_t held = head_of(large)[1];
    memcpy(other, large, held < size ? held : size);
    kv_large_free(large);
    return other;
}
