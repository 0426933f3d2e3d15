/* resp.c -- see resp.h. */
#include "resp.h"

#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LINE_SIZE_MAX = 1 << 16, UNKNOWN_WORDS_MAX = 10, UNKNOWN_SIZE_MAX = 16384, WORDS_MIN = 8 };

/* --- reading --- */

void resp_free(resp_reader *r) {
    free(r->words);
    *r = (resp_reader){0};
}

size_t resp_room(const resp_reader *r, size_t size) {
    size_t needed = r->sized ? r->used + r->size + 2 : 0;
    return needed > size ? needed : size + 1;
}

static enum resp_status bad(resp_reader *r, const char *what) {
    snprintf(r->error, sizeof r->error, "%s", what);
    return RESP_BAD;
}

static enum resp_status word_add(resp_reader *r, size_t at, size_t size) {
    if (r->count == r->capacity) {
        size_t capacity = r->capacity == 0 ? WORDS_MIN : 2 * r->capacity;
        resp_word *larger = realloc(r->words, capacity * sizeof *larger);
        if (larger == NULL) return RESP_NOMEM;
        r->words = larger;
        r->capacity = capacity;
    }
    r->words[r->count++] = (resp_word){at, size};
    return RESP_COMMAND;
}

/* The line at `used`, past it with its end; NULL: it has none yet. */
static const uint8_t *line_take(resp_reader *r, const uint8_t *bytes, size_t size, size_t *line_size) {
    const uint8_t *line = bytes + r->used, *end = memchr(line, '\r', size - r->used);
    if (end == NULL || end + 1 == bytes + size) return NULL;
    *line_size = (size_t)(end - line);
    r->used += *line_size + 2;
    return line;
}

/* Digits and a minus, as they are written when nobody means to confuse: no plus, no zeros before, no blanks. */
bool resp_number(const uint8_t *text, size_t size, int64_t *out) {
    char copy[24], again[24];
    if (size == 0 || size >= sizeof copy) return false;
    memcpy(copy, text, size);
    copy[size] = 0;
    *out = strtoll(copy, NULL, 10);
    return (size_t)snprintf(again, sizeof again, "%lld", (long long)*out) == size && memcmp(copy, again, size) == 0;
}

static enum resp_status read_count(resp_reader *r, const uint8_t *bytes, size_t size, const resp_limits *limits) {
    size_t line_size;
    int64_t count;
    const uint8_t *line = line_take(r, bytes, size, &line_size);
    if (line == NULL) return size - r->used > LINE_SIZE_MAX ? bad(r, "too big mbulk count string") : RESP_MORE;
    bool fine = resp_number(line + 1, line_size - 1, &count) && count <= INT_MAX;
    if (!fine || (count > 0 && (size_t)count > limits->word_count_max)) return bad(r, "invalid multibulk length");
    if (!limits->known && count > UNKNOWN_WORDS_MAX) return bad(r, "unauthenticated multibulk length");
    r->wanted = count > 0 ? (size_t)count : 0;
    return RESP_COMMAND;
}

static enum resp_status read_size(resp_reader *r, const uint8_t *bytes, size_t size, const resp_limits *limits) {
    size_t line_size;
    int64_t number;
    if (r->used == size) return RESP_MORE;
    if (bytes[r->used] != '$') {
        snprintf(r->error, sizeof r->error, "expected '$', got '%c'", bytes[r->used]);
        return RESP_BAD;
    }
    const uint8_t *line = line_take(r, bytes, size, &line_size);
    if (line == NULL) return size - r->used > LINE_SIZE_MAX ? bad(r, "too big bulk count string") : RESP_MORE;
    bool fine = resp_number(line + 1, line_size - 1, &number) && number >= 0;
    if (!fine || (uint64_t)number > limits->word_size_max) return bad(r, "invalid bulk length");
    if (!limits->known && number > UNKNOWN_SIZE_MAX) return bad(r, "unauthenticated bulk length");
    r->size = (size_t)number;
    r->sized = true;
    return RESP_COMMAND;
}

/* What stands behind a bulk string is passed over unseen, as Redis does. */
static enum resp_status read_array(resp_reader *r, const uint8_t *bytes, size_t size, const resp_limits *limits) {
    enum resp_status status = RESP_COMMAND;
    if (r->wanted == 0) status = read_count(r, bytes, size, limits);
    while (status == RESP_COMMAND && r->count < r->wanted) {
        if (!r->sized) status = read_size(r, bytes, size, limits);
        if (status != RESP_COMMAND) return status;
        if (size - r->used < r->size + 2) return RESP_MORE;
        status = word_add(r, r->used, r->size);
        if (status != RESP_COMMAND) return status;
        r->used += r->size + 2;
        r->sized = false;
    }
    return status;
}

static bool is_blank(uint8_t c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

static int hex(uint8_t c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* One character behind a backslash in double quotes; how many bytes it was written with. */
static size_t escaped(const uint8_t *at, const uint8_t *end, uint8_t *out) {
    static const char names[] = "nrtba", bytes[] = "\n\r\t\b\a";
    if (end - at >= 3 && at[0] == 'x' && hex(at[1]) >= 0 && hex(at[2]) >= 0) {
        *out = (uint8_t)(hex(at[1]) << 4 | hex(at[2]));
        return 3;
    }
    const char *name = memchr(names, at[0], sizeof names - 1);
    *out = name == NULL ? at[0] : (uint8_t)bytes[name - names];
    return 1;
}

/* A quoted part from behind its quote; NULL: it does not end, or not before a blank. What it says is no longer than it. */
static uint8_t *unquote(uint8_t *at, const uint8_t *end, uint8_t quote, uint8_t **to) {
    while (at < end && *at != quote) {
        if (*at == '\\' && at + 1 < end && quote == '"') {
            at += 1 + escaped(at + 1, end, *to);
            *to += 1;
        } else {
            if (*at == '\\' && at + 1 < end && at[1] == '\'') at++;
            *(*to)++ = *at++;
        }
    }
    if (at == end || (at + 1 < end && !is_blank(at[1]))) return NULL;
    return at + 1;
}

static enum resp_status read_words(resp_reader *r, uint8_t *bytes, uint8_t *at, const uint8_t *end, size_t count_max) {
    while (true) {
        while (at < end && is_blank(*at)) at++;
        if (at == end) return RESP_COMMAND;
        if (r->count == count_max) return bad(r, "invalid multibulk length");
        uint8_t *from = at, *to = at;
        while (at != NULL && at < end && !is_blank(*at)) {
            uint8_t c = *at++;
            if (c == '"' || c == '\'') at = unquote(at, end, c, &to);
            else *to++ = c;
        }
        if (at == NULL) return bad(r, "unbalanced quotes in request");
        enum resp_status status = word_add(r, (size_t)(from - bytes), (size_t)(to - from));
        if (status != RESP_COMMAND) return status;
    }
}

/* `used` is how far was looked for the line's end. */
static enum resp_status read_line(resp_reader *r, uint8_t *bytes, size_t size, const resp_limits *limits) {
    uint8_t *end = memchr(bytes + r->used, '\n', size - r->used);
    if (end == NULL) {
        r->used = size;
        return size > LINE_SIZE_MAX ? bad(r, "too big inline request") : RESP_MORE;
    }
    r->used = (size_t)(end - bytes) + 1;
    if (end > bytes && end[-1] == '\r') end--;
    return read_words(r, bytes, bytes, end, limits->known ? limits->word_count_max : UNKNOWN_WORDS_MAX);
}

enum resp_status resp_next(resp_reader *r, uint8_t *bytes, size_t size, const resp_limits *limits) {
    if (r->done) *r = (resp_reader){.words = r->words, .capacity = r->capacity};
    if (size == 0) return RESP_MORE;
    enum resp_status status = bytes[0] == '*' ? read_array(r, bytes, size, limits) : read_line(r, bytes, size, limits);
    r->done = status == RESP_COMMAND;
    return status;
}

/* --- replies --- */

static void put_text(wire_out *out, const char *text) { wire_put_bytes(out, (const uint8_t *)text, strlen(text)); }

/* A head: what it is, a number, the line's end. Written backwards, because that is how digits come. */
static void put_head(wire_out *out, char kind, int64_t number) {
    char bytes[24], *at = bytes + sizeof bytes;
    uint64_t left = number < 0 ? 0 - (uint64_t)number : (uint64_t)number;
    *--at = '\n';
    *--at = '\r';
    do *--at = (char)('0' + left % 10);
    while ((left /= 10) != 0);
    if (number < 0) *--at = '-';
    *--at = kind;
    wire_put_bytes(out, (const uint8_t *)at, (size_t)(bytes + sizeof bytes - at));
}

void resp_put_simple(wire_out *out, const char *text) {
    wire_put8(out, '+');
    put_text(out, text);
    put_text(out, "\r\n");
}

/* What a client sent may be in it, and may not end the line. */
void resp_put_error(wire_out *out, const char *format, ...) {
    char text[256];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    for (char *c = text; *c != 0; c++)
        if (*c == '\r' || *c == '\n') *c = ' ';
    wire_put8(out, '-');
    put_text(out, text);
    put_text(out, "\r\n");
}

void resp_put_number(wire_out *out, int64_t number) { put_head(out, ':', number); }

void resp_put_bulk(wire_out *out, const void *bytes, size_t size) {
    put_head(out, '$', (int64_t)size);
    wire_put_bytes(out, bytes, size);
    put_text(out, "\r\n");
}

void resp_put_text(wire_out *out, const char *text) { resp_put_bulk(out, text, strlen(text)); }

void resp_put_double(wire_out *out, double number, int protocol) {
    char text[40];
    if (isinf(number)) snprintf(text, sizeof text, number > 0 ? "inf" : "-inf");
    else snprintf(text, sizeof text, "%.17g", number);
    if (protocol < RESP_3) {
        resp_put_text(out, text);
        return;
    }
    wire_put8(out, ',');
    put_text(out, text);
    put_text(out, "\r\n");
}

void resp_put_bool(wire_out *out, bool value, int protocol) {
    if (protocol < RESP_3) resp_put_number(out, value);
    else put_text(out, value ? "#t\r\n" : "#f\r\n");
}

void resp_put_null(wire_out *out, int protocol) { put_text(out, protocol < RESP_3 ? "$-1\r\n" : "_\r\n"); }
void resp_put_null_array(wire_out *out, int protocol) { put_text(out, protocol < RESP_3 ? "*-1\r\n" : "_\r\n"); }

void resp_put_array(wire_out *out, size_t count) { put_head(out, '*', (int64_t)count); }

void resp_put_map(wire_out *out, size_t count, int protocol) {
    if (protocol < RESP_3) put_head(out, '*', 2 * (int64_t)count);
    else put_head(out, '%', (int64_t)count);
}

void resp_put_set(wire_out *out, size_t count, int protocol) { put_head(out, protocol < RESP_3 ? '*' : '~', (int64_t)count); }
void resp_put_push(wire_out *out, size_t count, int protocol) { put_head(out, protocol < RESP_3 ? '*' : '>', (int64_t)count); }
