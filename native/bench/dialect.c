/* dialect.c -- see dialect.h. Answers come from servers that were started a moment ago on the same machine: what is not
 * understood is refused, and no more is made of it. */
#include "dialect.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

uint8_t *text_room(text *t, size_t size) {
    if (t->capacity - t->size < size) {
        size_t capacity = t->capacity == 0 ? 4096 : t->capacity;
        while (capacity - t->size < size) capacity *= 2;
        uint8_t *larger = realloc(t->bytes, capacity);
        if (larger == NULL) abort(); /* A load generator without memory has nothing to measure. */
        t->bytes = larger;
        t->capacity = capacity;
    }
    return t->bytes + t->size;
}

void text_put(text *t, const void *bytes, size_t size) {
    memcpy(text_room(t, size), bytes, size);
    t->size += size;
}

void text_print(text *t, const char *format, ...) {
    enum { LINE_MAX_SIZE = 512 };
    va_list arguments;
    char *room = (char *)text_room(t, LINE_MAX_SIZE);
    va_start(arguments, format);
    int size = vsnprintf(room, LINE_MAX_SIZE, format, arguments);
    va_end(arguments);
    if (size < 0 || size >= LINE_MAX_SIZE) abort();
    t->size += (size_t)size;
}

static void say(request *r, const uint8_t *bytes, size_t size) {
    if (size >= SAID_SIZE) size = SAID_SIZE - 1;
    for (size_t i = 0; i < size; i++) r->said[i] = (char)(bytes[i] < ' ' || bytes[i] > '~' ? ' ' : bytes[i]);
    r->said[size] = 0;
}

static const uint8_t *find(const uint8_t *bytes, size_t size, const char *what) {
    return memmem(bytes, size, what, strlen(what));
}

/* The end of the line that begins here, behind its CR LF; NULL: not there yet. */
static const uint8_t *line_end(const uint8_t *bytes, size_t size) {
    const uint8_t *end = find(bytes, size, "\r\n");
    return end == NULL ? NULL : end + 2;
}

static bool same(const request *r, const uint8_t *bytes, size_t size) {
    return size == r->value_size && memcmp(bytes, r->value, size) == 0;
}

static void no_greeting(text *out, unsigned connection) {
    (void)out;
    (void)connection;
}

/* --- base64 --- */

static size_t base64_size(size_t size) { return (size + 2) / 3 * 4; }

static void put_base64(text *t, const uint8_t *bytes, size_t size) {
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    uint8_t *to = text_room(t, base64_size(size));
    for (size_t i = 0; i < size; i += 3) {
        uint32_t three = (uint32_t)bytes[i] << 16;
        if (i + 1 < size) three |= (uint32_t)bytes[i + 1] << 8;
        if (i + 2 < size) three |= bytes[i + 2];
        *to++ = (uint8_t)letters[three >> 18];
        *to++ = (uint8_t)letters[three >> 12 & 63];
        *to++ = (uint8_t)(i + 1 < size ? letters[three >> 6 & 63] : '=');
        *to++ = (uint8_t)(i + 2 < size ? letters[three & 63] : '=');
    }
    t->size += base64_size(size);
}

/* Whether the text in quotes behind `name` is the value. */
static bool same_in_json(const request *r, const uint8_t *bytes, size_t size, const char *name) {
    const uint8_t *at = find(bytes, size, name);
    if (at == NULL) return false;
    at += strlen(name);
    text expected = {0};
    put_base64(&expected, r->value, r->value_size);
    bool is = (size_t)(bytes + size - at) >= expected.size && memcmp(at, expected.bytes, expected.size) == 0;
    free(expected.bytes);
    return is;
}

/* --- RESP --- */

static void resp_ask(text *out, unsigned connection, const request *r) {
    (void)connection;
    if (!r->is_put) {
        text_print(out, "*2\r\n$3\r\nGET\r\n$%d\r\n%.*s\r\n", KEY_SIZE, KEY_SIZE, (const char *)r->key);
        return;
    }
    text_print(out, "*3\r\n$3\r\nSET\r\n$%d\r\n%.*s\r\n$%zu\r\n", KEY_SIZE, KEY_SIZE, (const char *)r->key, r->value_size);
    text_put(out, r->value, r->value_size);
    text_put(out, "\r\n", 2);
}

static void wait_ask(text *out, unsigned connection, const request *r) {
    resp_ask(out, connection, r);
    if (r->is_put) text_print(out, "*3\r\n$4\r\nWAIT\r\n$1\r\n1\r\n$4\r\n5000\r\n");
}

static void readonly_greet(text *out, unsigned connection) {
    (void)connection;
    text_print(out, "READONLY\r\n");
}

static answer resp_take(request *r, const uint8_t *bytes, size_t size, size_t *used, text *out) {
    (void)out;
    const uint8_t *end = line_end(bytes, size);
    if (end == NULL) return ANSWER_MORE;
    size_t line = (size_t)(end - bytes);
    *used = line;
    switch (bytes[0]) {
    case '+': return r->is_put ? ANSWER_GOOD : ANSWER_BROKEN;
    case '-': say(r, bytes, line - 2); return ANSWER_REFUSED;
    case ':': return r->is_put ? ANSWER_GOOD : ANSWER_BROKEN;
    case '_': return ANSWER_WRONG;
    case '$': break;
    default: return ANSWER_BROKEN;
    }
    long length = strtol((const char *)bytes + 1, NULL, 10);
    if (length < 0) return ANSWER_WRONG;
    if (size - line < (size_t)length + 2) {
        *used = 0;
        return ANSWER_MORE;
    }
    *used = line + (size_t)length + 2;
    return same(r, end, (size_t)length) ? ANSWER_GOOD : ANSWER_WRONG;
}

/* The second answer is how many replicas have it. */
static answer wait_take(request *r, const uint8_t *bytes, size_t size, size_t *used, text *out) {
    answer found = resp_take(r, bytes, size, used, out);
    if (found != ANSWER_GOOD || !r->is_put) return found;
    if (r->part == 0) return bytes[0] == '+' ? ANSWER_PART : ANSWER_BROKEN;
    if (bytes[0] == ':' && bytes[1] != '0') return ANSWER_GOOD;
    say(r, (const uint8_t *)"WAIT: no replica has it", 23);
    return ANSWER_REFUSED;
}

/* --- etcd --- */

static void etcd_post(text *out, const char *path, const request *r, const char *more) {
    size_t size = strlen("{\"key\":\"\"}") + base64_size(KEY_SIZE) + strlen(more);
    if (r->is_put) size += strlen(",\"value\":\"\"") + base64_size(r->value_size);
    text_print(out, "POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n", path);
    text_print(out, "Content-Length: %zu\r\n\r\n{\"key\":\"", size);
    put_base64(out, r->key, KEY_SIZE);
    if (r->is_put) {
        text_print(out, "\",\"value\":\"");
        put_base64(out, r->value, r->value_size);
    }
    text_print(out, "\"%s}", more);
}

static void etcd_ask(text *out, unsigned connection, const request *r) {
    (void)connection;
    etcd_post(out, r->is_put ? "/v3/kv/put" : "/v3/kv/range", r, "");
}

static void etcd_stale_ask(text *out, unsigned connection, const request *r) {
    if (r->is_put) etcd_ask(out, connection, r);
    else etcd_post(out, "/v3/kv/range", r, ",\"serializable\":true");
}

/* Head and body of an HTTP answer. A chunked body is looked at with its chunk sizes in it, so a value that is cut by one would be
 * called wrong: etcd chunks what is larger than 2 KiB, which no cell reads from it. */
static answer etcd_take(request *r, const uint8_t *bytes, size_t size, size_t *used, text *out) {
    (void)out;
    const uint8_t *body = find(bytes, size, "\r\n\r\n");
    if (body == NULL) return ANSWER_MORE;
    body += 4;
    size_t head = (size_t)(body - bytes), length;
    const uint8_t *field = find(bytes, head, "\r\nContent-Length: ");
    if (field != NULL) {
        length = strtoul((const char *)field + strlen("\r\nContent-Length: "), NULL, 10);
        if (size - head < length) return ANSWER_MORE;
    } else {
        const uint8_t *last = find(body - 2, size - head + 2, "\r\n0\r\n\r\n");
        if (last == NULL) return ANSWER_MORE;
        length = (size_t)(last + 7 - body);
    }
    *used = head + length;
    if (size < 12 || memcmp(bytes, "HTTP/1.1 200", 12) != 0) {
        say(r, body, length);
        return ANSWER_REFUSED;
    }
    if (r->is_put) return ANSWER_GOOD;
    return same_in_json(r, body, length, "\"value\":\"") ? ANSWER_GOOD : ANSWER_WRONG;
}

/* --- NATS --- */

static void nats_greet(text *out, unsigned connection) {
    text_print(out, "CONNECT {\"verbose\":false,\"pedantic\":false,\"headers\":true,\"no_responders\":true}\r\n");
    text_print(out, "SUB _INBOX.%u.* 1\r\n", connection);
}

static void nats_put(text *out, unsigned connection, const request *r) {
    text_print(out, "PUB $KV.bench.%.*s _INBOX.%u.r %zu\r\n", KEY_SIZE, (const char *)r->key, connection, r->value_size);
    text_put(out, r->value, r->value_size);
    text_put(out, "\r\n", 2);
}

static void nats_ask(text *out, unsigned connection, const request *r) {
    static const char before[] = "{\"last_by_subj\":\"$KV.bench.";
    if (r->is_put) {
        nats_put(out, connection, r);
        return;
    }
    text_print(out, "PUB $JS.API.STREAM.MSG.GET.KV_bench _INBOX.%u.r %zu\r\n", connection, strlen(before) + KEY_SIZE + 2);
    text_print(out, "%s%.*s\"}\r\n", before, KEY_SIZE, (const char *)r->key);
}

static void nats_direct_ask(text *out, unsigned connection, const request *r) {
    if (r->is_put) {
        nats_put(out, connection, r);
        return;
    }
    text_print(out, "PUB $JS.API.DIRECT.GET.KV_bench.$KV.bench.%.*s ", KEY_SIZE, (const char *)r->key);
    text_print(out, "_INBOX.%u.r 0\r\n\r\n", connection);
}

/* The last word of a line is the size of what follows; of HMSG the one before it is that of the headers. */
static bool nats_sizes(const uint8_t *line, size_t size, bool headers, size_t *head, size_t *total) {
    size_t at[2] = {0, 0}, count = 0;
    for (size_t i = size; i-- > 1 && count < 2;)
        if (line[i - 1] == ' ') at[count++] = i;
    if (count < 2) return false;
    *total = strtoul((const char *)line + at[0], NULL, 10);
    *head = headers ? strtoul((const char *)line + at[1], NULL, 10) : 0;
    return *head <= *total;
}

static answer nats_message(request *r, const uint8_t *bytes, size_t head, size_t size) {
    const uint8_t *body = bytes + head;
    size_t body_size = size - head;
    if (head > 12 && memcmp(bytes, "NATS/1.0 404", 12) == 0) return ANSWER_WRONG;
    if (head > 12 && memcmp(bytes, "NATS/1.0 ", 9) == 0 && bytes[9] >= '1' && bytes[9] <= '9') {
        say(r, bytes, head); /* 503: nobody there who answers. */
        return ANSWER_REFUSED;
    }
    if (!r->is_put && head != 0) return same(r, body, body_size) ? ANSWER_GOOD : ANSWER_WRONG;
    if (find(body, body_size, "\"error\":") != NULL) {
        say(r, body, body_size);
        return find(body, body_size, "\"code\":404") != NULL ? ANSWER_WRONG : ANSWER_REFUSED;
    }
    if (r->is_put) return find(body, body_size, "\"seq\":") != NULL ? ANSWER_GOOD : ANSWER_BROKEN;
    return same_in_json(r, body, body_size, "\"data\":\"") ? ANSWER_GOOD : ANSWER_WRONG;
}

static answer nats_take(request *r, const uint8_t *bytes, size_t size, size_t *used, text *out) {
    const uint8_t *end = line_end(bytes, size);
    if (end == NULL) return ANSWER_MORE;
    size_t line = (size_t)(end - bytes), head, total;
    *used = line;
    if (line > 4 && memcmp(bytes, "PING", 4) == 0) text_print(out, "PONG\r\n");
    if (bytes[0] == '-') {
        say(r, bytes, line - 2);
        return ANSWER_REFUSED;
    }
    bool headers = bytes[0] == 'H';
    if (!headers && bytes[0] != 'M') return ANSWER_NOISE; /* INFO, PING, PONG, +OK */
    if (!nats_sizes(bytes, line - 2, headers, &head, &total)) return ANSWER_BROKEN;
    if (size - line < total + 2) {
        *used = 0;
        return ANSWER_MORE;
    }
    *used = line + total + 2;
    return nats_message(r, end, head, total);
}

static const dialect DIALECTS[] = {
    {"resp", 0, no_greeting, resp_ask, resp_take},
    {"resp-wait", 0, no_greeting, wait_ask, wait_take},
    {"resp-readonly", 1, readonly_greet, resp_ask, resp_take},
    {"etcd", 0, no_greeting, etcd_ask, etcd_take},
    {"etcd-stale", 0, no_greeting, etcd_stale_ask, etcd_take},
    {"nats", 0, nats_greet, nats_ask, nats_take},
    {"nats-direct", 0, nats_greet, nats_direct_ask, nats_take},
};

const dialect *dialect_find(const char *name) {
    for (size_t i = 0; i < sizeof DIALECTS / sizeof DIALECTS[0]; i++)
        if (strcmp(DIALECTS[i].name, name) == 0) return &DIALECTS[i];
    return NULL;
}
