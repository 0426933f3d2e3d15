/* test_resp.c -- commands are read however they are cut, what is none is refused in the words of Redis, and replies are
 * what the protocol says.
 *
 * What is read lies right before a page that cannot be touched: one byte too many, and the test is killed. */
#include <math.h>
#include <sys/mman.h>

#include "../src/resp.h"
#include "check.h"

enum { ROOM = 1 << 20 };

static const resp_limits LIMITS = {.word_count_max = 1024, .word_size_max = 1 << 19, .known = true};
static uint8_t *edge; /* the first byte that cannot be touched */

static void edge_make(void) {
    uint8_t *pages = mmap(NULL, ROOM + KV_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    KV_ASSERT(pages != MAP_FAILED);
    edge = pages + ROOM;
    KV_ASSERT(mprotect(edge, KV_PAGE_SIZE, PROT_NONE) == 0);
}

static uint8_t *at_edge(const char *bytes, size_t size) {
    memcpy(edge - size, bytes, size);
    return edge - size;
}

/* Whole at once. The words as "GET|key", the error in its place. */
static enum resp_status read_as(const char *bytes, size_t size, const resp_limits *limits, char out[512], size_t *used) {
    resp_reader r = {0};
    uint8_t *at = at_edge(bytes, size);
    enum resp_status status = resp_next(&r, at, size, limits);
    size_t length = 0;
    out[0] = 0;
    for (size_t i = 0; status == RESP_COMMAND && i < r.count; i++)
        length += (size_t)snprintf(out + length, 512 - length, "%s%.*s", i == 0 ? "" : "|", (int)r.words[i].size,
                                   (const char *)at + r.words[i].at);
    if (status == RESP_BAD) snprintf(out, 512, "%s", r.error);
    *used = r.used;
    resp_free(&r);
    return status;
}

static void reads(const char *bytes, const char *words) {
    char out[512];
    size_t used;
    enum resp_status status = read_as(bytes, strlen(bytes), &LIMITS, out, &used);
    CHECK_EQ(status, RESP_COMMAND);
    CHECK_EQ(used, strlen(bytes));
    if (strcmp(out, words) != 0) printf("%s: %s, not %s\n", bytes, out, words);
    CHECK(strcmp(out, words) == 0);
}

static void refuses(const char *bytes, const char *why) {
    char out[512];
    size_t used;
    CHECK_EQ(read_as(bytes, strlen(bytes), &LIMITS, out, &used), RESP_BAD);
    if (strcmp(out, why) != 0) printf("%s: %s, not %s\n", bytes, out, why);
    CHECK(strcmp(out, why) == 0);
}

/* --- commands --- */

TEST(arrays_of_bulk_strings_are_commands) {
    reads("*1\r\n$4\r\nPING\r\n", "PING");
    reads("*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$5\r\na\r\nbc\r\n", "SET|k|a\r\nbc");
    reads("*2\r\n$3\r\nGET\r\n$0\r\n\r\n", "GET|");
    reads("*0\r\n", "");
    reads("*-1\r\n", "");
}

TEST(lines_are_commands) {
    reads("PING\r\n", "PING");
    reads("  SET  k\tv \n", "SET|k|v");
    reads("\r\n", "");
    reads("\n", "");
    reads("SET k \"a b\\n\\x41\\\"\\q\"\r\n", "SET|k|a b\nA\"q");
    reads("SET k 'a \\'b\\n'\r\n", "SET|k|a 'b\\n");
    reads("SET k \"\"\r\n", "SET|k|");
    reads("SET k a\"b c\"\r\n", "SET|k|ab c");
}

TEST(what_is_no_command_is_refused_in_the_words_of_redis) {
    refuses("*x\r\n", "invalid multibulk length");
    refuses("*\r\n", "invalid multibulk length");
    refuses("*01\r\n", "invalid multibulk length");
    refuses("*1025\r\n", "invalid multibulk length");
    refuses("*99999999999999999999\r\n", "invalid multibulk length");
    refuses("*1\r\nGET\r\n", "expected '$', got 'G'");
    refuses("*1\r\n$-1\r\n", "invalid bulk length");
    refuses("*1\r\n$\r\n", "invalid bulk length");
    refuses("*1\r\n$524289\r\n", "invalid bulk length");
    refuses("SET k \"a\r\n", "unbalanced quotes in request");
    refuses("SET k \"a\"b\r\n", "unbalanced quotes in request");
    refuses("SET k 'a\r\n", "unbalanced quotes in request");
}

TEST(a_line_without_end_is_refused_when_it_is_too_long) {
    static char bytes[(1 << 16) + 4];
    char out[512];
    size_t used;
    memset(bytes, 'a', sizeof bytes);
    CHECK_EQ(read_as(bytes, 1 << 16, &LIMITS, out, &used), RESP_MORE);
    CHECK_EQ(read_as(bytes, (1 << 16) + 1, &LIMITS, out, &used), RESP_BAD);
    CHECK(strcmp(out, "too big inline request") == 0);
    memcpy(bytes, "*1", 2);
    CHECK_EQ(read_as(bytes, sizeof bytes, &LIMITS, out, &used), RESP_BAD);
    CHECK(strcmp(out, "too big mbulk count string") == 0);
    memcpy(bytes, "*1\r\n$", 5);
    CHECK_EQ(read_as(bytes, sizeof bytes, &LIMITS, out, &used), RESP_MORE);
    CHECK_EQ(used, 4);
}

TEST(who_is_not_known_may_send_little) {
    resp_limits stranger = LIMITS;
    char out[512];
    size_t used;
    stranger.known = false;
    CHECK_EQ(read_as("*11\r\n", 5, &stranger, out, &used), RESP_BAD);
    CHECK(strcmp(out, "unauthenticated multibulk length") == 0);
    CHECK_EQ(read_as("*1\r\n$16385\r\n", 12, &stranger, out, &used), RESP_BAD);
    CHECK(strcmp(out, "unauthenticated bulk length") == 0);
    CHECK_EQ(read_as("a b c d e f g h i j k\n", 22, &stranger, out, &used), RESP_BAD);
    CHECK_EQ(read_as("*10\r\n", 5, &stranger, out, &used), RESP_MORE);
}

/* --- pieces --- */

/* Every command of a row of them, fed up to `step` bytes more at a time, from a buffer that moves. */
static size_t count_in_pieces(const char *bytes, size_t size, size_t step, size_t *words) {
    resp_reader r = {0};
    size_t begin = 0, have = 0, count = 0;
    *words = 0;
    while (begin < size) {
        enum resp_status status = resp_next(&r, at_edge(bytes + begin, have), have, &LIMITS);
        if (status == RESP_COMMAND) {
            count++;
            *words += r.count;
            begin += r.used;
            have -= r.used;
        } else {
            CHECK_EQ(status, RESP_MORE);
            CHECK(resp_room(&r, have) > have);
            if (status != RESP_MORE || begin + have == size) break;
            have = begin + have + step < size ? have + step : size - begin;
        }
    }
    CHECK_EQ(begin, size);
    resp_free(&r);
    return count;
}

TEST(commands_are_the_same_however_they_are_cut) {
    static const char row[] = "*3\r\n$3\r\nSET\r\n$10\r\n0123456789\r\n$4\r\n\r\n\r\n\r\nPING\r\n\r\n*0\r\n*2\r\n$3\r\nGET\r\n$0\r\n\r\n"
                              "SET \"a b\" c\r\n";
    for (size_t step = 1; step < sizeof row; step++) {
        size_t words;
        CHECK_EQ(count_in_pieces(row, sizeof row - 1, step, &words), 6);
        CHECK_EQ(words, 9);
    }
}

TEST(a_large_value_is_asked_for_as_a_whole_and_looked_at_once) {
    resp_reader r = {0};
    static const char head[] = "*2\r\n$1\r\nx\r\n$100000\r\n";
    CHECK_EQ(resp_next(&r, at_edge(head, sizeof head - 1), sizeof head - 1, &LIMITS), RESP_MORE);
    CHECK_EQ(resp_room(&r, sizeof head - 1), sizeof head - 1 + 100002);
    CHECK_EQ(r.used, sizeof head - 1);
    resp_free(&r);
}

TEST(random_bytes_are_read_or_refused) {
    static const char parts[][12] = {"*1\r\n", "*2\r\n", "$1\r\n", "$3\r\n", "a", "GET", "\r\n", "\"", "'", " ", "\\x4", "-1", "*", "$"};
    uint64_t random = 7;
    for (int i = 0; i < 200000; i++) {
        char bytes[128];
        size_t size = 0, used;
        char out[512];
        for (int k = 0; k < 8; k++) {
            random = random * 6364136223846793005ULL + 1442695040888963407ULL;
            const char *part = parts[(random >> 33) % (sizeof parts / sizeof parts[0])];
            memcpy(bytes + size, part, strlen(part));
            size += strlen(part);
        }
        enum resp_status status = read_as(bytes, size, &LIMITS, out, &used);
        CHECK(used <= size);
        CHECK(status == RESP_COMMAND || status == RESP_MORE || status == RESP_BAD);
        CHECK(status != RESP_COMMAND || used > 0);
    }
}

/* --- replies --- */

static void says(wire_out *out, const char *expected) {
    bool same = out->size == strlen(expected) && memcmp(out->bytes, expected, out->size) == 0;
    if (!same) printf("%.*s, not %s\n", (int)out->size, (const char *)out->bytes, expected);
    CHECK(same);
    wire_free(out);
}

TEST(replies_are_written_as_the_protocol_has_them) {
    wire_out out = {0};
    resp_put_simple(&out, "OK");
    resp_put_error(&out, "ERR no %s", "a\r\nb");
    resp_put_number(&out, 0);
    resp_put_number(&out, INT64_MIN);
    resp_put_bulk(&out, "a\r\n", 3);
    resp_put_bulk(&out, NULL, 0);
    resp_put_array(&out, 12);
    says(&out, "+OK\r\n-ERR no a  b\r\n:0\r\n:-9223372036854775808\r\n$3\r\na\r\n\r\n$0\r\n\r\n*12\r\n");
}

TEST(version_3_has_kinds_that_version_2_says_with_others) {
    wire_out two = {0}, three = {0};
    for (int protocol = RESP_2; protocol <= RESP_3; protocol++) {
        wire_out *out = protocol == RESP_2 ? &two : &three;
        resp_put_null(out, protocol);
        resp_put_null_array(out, protocol);
        resp_put_bool(out, true, protocol);
        resp_put_double(out, 0.5, protocol);
        resp_put_double(out, -INFINITY, protocol);
        resp_put_map(out, 2, protocol);
        resp_put_set(out, 1, protocol);
        resp_put_push(out, 3, protocol);
    }
    says(&two, "$-1\r\n*-1\r\n:1\r\n$3\r\n0.5\r\n$4\r\n-inf\r\n*4\r\n*1\r\n*3\r\n");
    says(&three, "_\r\n_\r\n#t\r\n,0.5\r\n,-inf\r\n%2\r\n~1\r\n>3\r\n");
}

int main(void) {
    edge_make();
    RUN(arrays_of_bulk_strings_are_commands);
    RUN(lines_are_commands);
    RUN(what_is_no_command_is_refused_in_the_words_of_redis);
    RUN(a_line_without_end_is_refused_when_it_is_too_long);
    RUN(who_is_not_known_may_send_little);
    RUN(commands_are_the_same_however_they_are_cut);
    RUN(a_large_value_is_asked_for_as_a_whole_and_looked_at_once);
    RUN(random_bytes_are_read_or_refused);
    RUN(replies_are_written_as_the_protocol_has_them);
    RUN(version_3_has_kinds_that_version_2_says_with_others);
    return check_report();
}
