/* resp.h -- the protocol of Redis clients, versions 2 and 3: commands out of bytes, replies into bytes.
 *
 *     *2\r\n$3\r\nGET\r\n$1\r\nk\r\n     a command: an array of bulk strings, or
 *     GET k\r\n                          a line of words, as somebody types it
 *
 * The reader is fed a buffer that begins with a command, says whether a whole one is there, and goes on where it was when
 * it is called again with more: a large value that comes in pieces is looked at once. Words are offsets, so the buffer may
 * move meanwhile. What is wrong is said in the words of Redis 7.0 (networking.c there), since clients know those.
 *
 * Memory: as many words as limits allow, none of their bytes. No state beyond the reader; one thread for each. */
#ifndef KV_RESP_H
#define KV_RESP_H

#include "wire.h"

typedef struct resp_word {
    size_t at;
    size_t size;
} resp_word;

typedef struct resp_limits {
    size_t word_count_max;
    size_t word_size_max;
    bool known;            /* the client has said who it is; if not, what it may send is little */
} resp_limits;

typedef struct resp_reader {
    resp_word *words; /* of the command */
    size_t count;
    size_t capacity;
    size_t used;      /* bytes of the command, or of what of it has been looked at */
    size_t wanted;    /* words that it has; 0: not known yet */
    size_t size;      /* of the next word; with `sized` */
    bool sized;
    bool done;        /* that command was handed out */
    char error[64];   /* after RESP_BAD */
} resp_reader;

enum resp_status {
    RESP_COMMAND, /* words[0 .. count), `used` bytes; no words: an empty line, to be passed over */
    RESP_MORE,    /* it is not all there; a buffer of resp_room() bytes is large enough to go on */
    RESP_BAD,     /* `error`; nothing behind it can be understood */
    RESP_NOMEM,
};

/* Words of a line are unquoted where they lie. After RESP_COMMAND the next call begins with the next command. */
enum resp_status resp_next(resp_reader *r, uint8_t *bytes, size_t size, const resp_limits *limits);
/* The size that the buffer needs at least, as far as is known; above what is in it. */
size_t resp_room(const resp_reader *r, size_t size);
void resp_free(resp_reader *r);
/* An int64, written as one would write it oneself. */
bool resp_number(const uint8_t *text, size_t size, int64_t *out);

/* --- replies --- */

enum { RESP_2 = 2, RESP_3 = 3 };

void resp_put_simple(wire_out *out, const char *text);                /* without line breaks */
void resp_put_error(wire_out *out, const char *format, ...) __attribute__((format(printf, 2, 3)));
void resp_put_number(wire_out *out, int64_t number);
void resp_put_bulk(wire_out *out, const void *bytes, size_t size);
void resp_put_text(wire_out *out, const char *text);                  /* as bulk */
void resp_put_double(wire_out *out, double number, int protocol);
void resp_put_bool(wire_out *out, bool value, int protocol);          /* 2: 1 and 0 */
void resp_put_null(wire_out *out, int protocol);                      /* 2: that of a bulk string */
void resp_put_null_array(wire_out *out, int protocol);
void resp_put_array(wire_out *out, size_t count);                     /* that many replies follow */
void resp_put_map(wire_out *out, size_t count, int protocol);         /* pairs; 2: an array of twice as many */
void resp_put_set(wire_out *out, size_t count, int protocol);
void resp_put_push(wire_out *out, size_t count, int protocol);

#endif
