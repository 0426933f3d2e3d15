/* base.h -- what every module of the core stands on: assertions that stay, little-endian bytes, checked sums. */
#ifndef KV_BASE_H
#define KV_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "formats are little-endian and are mapped, not converted");
_Static_assert(sizeof(void *) == 8, "a segment and its mapping need 64-bit addresses");

/* A broken invariant. On in release too: going on would write what cannot be trusted. */
_Noreturn void kv_assert_failed(const char *condition, const char *file, int line);
#define KV_ASSERT(condition) \
    (__builtin_expect(!!(condition), 1) ? (void)0 : kv_assert_failed(#condition, __FILE__, __LINE__))

#define KV_LIKELY(x) __builtin_expect(!!(x), 1)
#define KV_UNLIKELY(x) __builtin_expect(!!(x), 0)

/* memcpy, because records are aligned to 4 bytes only. */
static inline uint16_t kv_load16(const uint8_t *p) { uint16_t v; memcpy(&v, p, sizeof v); return v; }
static inline uint32_t kv_load32(const uint8_t *p) { uint32_t v; memcpy(&v, p, sizeof v); return v; }
static inline uint64_t kv_load64(const uint8_t *p) { uint64_t v; memcpy(&v, p, sizeof v); return v; }
static inline void kv_store16(uint8_t *p, uint16_t v) { memcpy(p, &v, sizeof v); }
static inline void kv_store32(uint8_t *p, uint32_t v) { memcpy(p, &v, sizeof v); }
static inline void kv_store64(uint8_t *p, uint64_t v) { memcpy(p, &v, sizeof v); }

/* The finish of splitmix64: every bit of the result hangs on every bit of `z`. */
static inline uint64_t kv_mix64(uint64_t z) {
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ULL;
    z = (z ^ z >> 27) * 0x94D049BB133111EBULL;
    return z ^ z >> 31;
}

static inline uint64_t kv_align(uint64_t size, uint64_t unit) { return (size + unit - 1) / unit * unit; }

enum {
    KV_PAGE_SIZE = 4096,
    KV_KEY_SIZE_MAX = 65535,
    KV_INLINE_SIZE_MAX = 1 << 20, /* A larger value goes to a file of its own. */
    KV_VALUE_SIZE_MAX = 1 << 30
};

#endif
