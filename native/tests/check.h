/* check.h -- what a C test needs: promises as functions, checks that say where they failed, one line at the end.
 *
 *     TEST(torn_tail_is_cut) { CHECK_EQ(status, KV_OK); }
 *     int main(void) { RUN(torn_tail_is_cut); return check_report(); }
 */
#ifndef KV_CHECK_H
#define KV_CHECK_H

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int check_passed_count, check_failed_count, check_failed_here;

#define TEST(name) static void test_##name(void)
#define RUN(name)                                                             \
    do {                                                                      \
        check_failed_here = 0;                                                \
        test_##name();                                                        \
        if (check_failed_here) { check_failed_count++; printf("FAILED %s\n", #name); } \
        else check_passed_count++;                                            \
    } while (0)

#define CHECK(condition)                                                      \
    do {                                                                      \
        if (!(condition)) {                                                   \
            check_failed_here = 1;                                            \
            printf("%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);    \
        }                                                                     \
    } while (0)
#define CHECK_EQ(left, right)                                                 \
    do {                                                                      \
        int64_t check_l = (int64_t)(left), check_r = (int64_t)(right);        \
        if (check_l != check_r) {                                             \
            check_failed_here = 1;                                            \
            printf("%s:%d: %s is %" PRId64 ", not %" PRId64 "\n", __FILE__, __LINE__, #left, check_l, check_r); \
        }                                                                     \
    } while (0)

static int check_report(void) {
    printf("%d passed, %d failed\n", check_passed_count, check_failed_count);
    return check_failed_count != 0 || check_passed_count == 0;
}

#endif
