/* test_glob.c -- patterns are Redis' patterns, and no pattern takes for ever. */
#include <time.h>

#include "../src/command.h"
#include "check.h"

static text of(const char *word) { return (text){(const uint8_t *)word, strlen(word)}; }
static bool fits(const char *pattern, const char *name) { return glob_match(of(pattern), of(name)); }

TEST(patterns_fit_what_they_say) {
    static const char *const good[][2] = {
        {"", ""}, {"*", ""}, {"*", "any"}, {"a*", "a"}, {"a*c", "abc"}, {"a*c", "ac"}, {"*a*b*", "xxaxxbxx"}, {"?", "x"}, {"h?llo", "hello"},
        {"[ab]", "b"}, {"[^ab]", "c"}, {"[a-c]x", "bx"}, {"[c-a]x", "bx"}, {"[a", "a"}, {"[\\]]", "]"}, {"\\*", "*"}, {"a\\?", "a?"}, {"**", "x"},
        {"*.txt", "a.txt.txt"}, {"[^]", "x"}, {"a\\", "a\\"}, {"user:[0-9]*", "user:42"}};
    static const char *const bad[][2] = {
        {"", "x"}, {"a", "b"}, {"a*c", "abd"}, {"?", ""}, {"?", "xy"}, {"[ab]", "c"}, {"[^ab]", "a"}, {"[a-c]", "d"}, {"\\*", "x"},
        {"a*", "ba"}, {"[]", "x"}, {"*a", "ab"}, {"user:[0-9]", "user:42"}};
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        if (!fits(good[i][0], good[i][1])) printf("%s does not fit %s\n", good[i][0], good[i][1]);
        CHECK(fits(good[i][0], good[i][1]));
    }
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        if (fits(bad[i][0], bad[i][1])) printf("%s fits %s\n", bad[i][0], bad[i][1]);
        CHECK(!fits(bad[i][0], bad[i][1]));
    }
    CHECK_EQ(glob_literal(of("user:*")), 5);
    CHECK_EQ(glob_literal(of("user")), 4);
    CHECK_EQ(glob_literal(of("[a]")), 0);
    CHECK_EQ(glob_literal(of("a\\*")), 1);
}

/* Each star would be tried at each place, for each place of the star before. */
TEST(a_pattern_of_many_stars_is_held_against_a_name_at_once) {
    char pattern[101], name[4001];
    for (size_t i = 0; i < 100; i += 2) memcpy(pattern + i, "a*", 2);
    pattern[99] = 'b';
    pattern[100] = 0;
    memset(name, 'a', 4000);
    name[4000] = 0;
    clock_t before = clock();
    CHECK(!fits(pattern, name));
    CHECK(clock() - before < CLOCKS_PER_SEC);
}

int main(void) {
    RUN(patterns_fit_what_they_say);
    RUN(a_pattern_of_many_stars_is_held_against_a_name_at_once);
    return check_report();
}
