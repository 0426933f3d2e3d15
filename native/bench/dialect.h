/* dialect.h -- what kv_load says to each kind of server, and how it reads the answer.
 *
 *     resp            SET, GET: kvsvr, Redis
 *     resp-wait       SET and WAIT 1 in one write, answered when a replica of Redis has it, too; GET
 *     resp-readonly   READONLY once, then GET: stale reads of a kvsvr replica
 *     etcd            POST /v3/kv/put and /v3/kv/range over HTTP/1.1, kept alive; JSON, keys and values in base64
 *     etcd-stale      the same, but a range is answered by the member that is asked ("serializable")
 *     nats            a put is a message published to $KV.bench.KEY and acknowledged by the stream; a get is asked of the stream's
 *                     leader
 *     nats-direct     the same, but a get is answered by any replica
 *
 * A request is appended to a text; an answer is cut from the front of what has come. Both know nothing of sockets. */
#ifndef BENCH_DIALECT_H
#define BENCH_DIALECT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { KEY_SIZE = 16, SAID_SIZE = 160 };

typedef struct text {
    uint8_t *bytes;
    size_t size, capacity;
} text;

void text_put(text *t, const void *bytes, size_t size);
void text_print(text *t, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Makes room for so many more and says where; `size` grows by what is written there, which is the caller's to say. */
uint8_t *text_room(text *t, size_t size);

typedef enum answer {
    ANSWER_MORE,    /* not all of it is there */
    ANSWER_NOISE,   /* taken, and no answer to anything that was asked */
    ANSWER_PART,    /* the first of two */
    ANSWER_GOOD,
    ANSWER_WRONG,   /* absent, or another value than the one written */
    ANSWER_REFUSED, /* an error of the server's: `said` has it */
    ANSWER_BROKEN,  /* not the protocol */
} answer;

/* One put or get, and what is known of its answer so far. */
typedef struct request {
    bool is_put;
    unsigned part; /* of the answers to one request */
    const uint8_t *key, *value;
    size_t value_size;
    char said[SAID_SIZE];
} request;

typedef struct dialect {
    const char *name;
    unsigned greeting_answers; /* to the greeting, before those to requests */
    void (*greet)(text *out, unsigned connection);
    void (*ask)(text *out, unsigned connection, const request *r);
    /* Takes `*used` bytes, 0 if more are needed; `out` is for what the protocol itself has to say. */
    answer (*take)(request *r, const uint8_t *bytes, size_t size, size_t *used, text *out);
} dialect;

const dialect *dialect_find(const char *name);

#endif
