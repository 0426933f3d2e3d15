/* wire.h -- what replicas send each other, as bytes: numbers, byte strings and version records in frames.
 *
 *   offset  size  field
 *        0     4  size   of what follows, type included
 *        4     1  type   WIRE_*
 *        5     .  body   docs/protocol/wire.md
 *
 * Fixed integers are little-endian; a varint is seven bits a byte, lowest first, the upper bit set on all but the last.
 * A writer that runs out of memory, and a reader of bytes that are none of ours, go on to the end and say so there:
 * `failed`, `bad`. A reader never reads past its end; what it hands out after `bad` is 0 or empty.
 *
 * No state beyond these two; safe from any thread. */
#ifndef KV_WIRE_H
#define KV_WIRE_H

#include "kv/record.h"

enum wire_type {
    WIRE_FLOW = 1,     /* owner to peer: records of its shards, commits */
    WIRE_ACK,          /* how far a connection's flow is durable, and what of it was refused */
    WIRE_PREPARE,      /* a takeover begins */
    WIRE_PROMISE,
    WIRE_CHECK,        /* is any of these ballots out of date? */
    WIRE_CHECKED,
    WIRE_ASK_POSITION, /* a follower read: how far must I have applied? */
    WIRE_POSITION,
    WIRE_PING,         /* I am here */
    WIRE_OFFER,        /* take this shard over: it should be yours, or you have what I lack of it */
    WIRE_FETCH = 16,   /* bytes of values, please */
    WIRE_BYTES,        /* some of them */
    WIRE_ASK_HELD,     /* do you hold these durably? */
    WIRE_HELD,         /* I do, I do not */
    WIRE_TYPE_END,
};

enum { WIRE_HEAD_SIZE = 5, WIRE_FRAME_SIZE_MAX = 64 << 20 };

typedef struct wire_out {
    uint8_t *bytes;
    size_t size;
    size_t capacity;
    size_t frame; /* where the open one begins */
    bool failed;
} wire_out;

void wire_free(wire_out *out);
void wire_begin(wire_out *out, enum wire_type type);
void wire_end(wire_out *out);    /* closes the frame */
void wire_give_up(wire_out *out); /* it never was */
void wire_put8(wire_out *out, uint8_t value);
void wire_put64(wire_out *out, uint64_t value);
void wire_put_varint(wire_out *out, uint64_t value);
void wire_put_bytes(wire_out *out, const uint8_t *bytes, size_t size); /* as they are */
/* Without version, shard, ballots and sequence, which the message around it says. */
void wire_put_record(wire_out *out, const kv_record *record);

typedef struct wire_in {
    const uint8_t *at;
    const uint8_t *end;
    bool bad;
} wire_in;

/* The next whole frame; false: there is none. A frame that no replica sends is `bad`. */
bool wire_next(wire_in *from, enum wire_type *type, wire_in *body);
uint8_t wire_take8(wire_in *in);
uint64_t wire_take64(wire_in *in);
uint64_t wire_take_varint(wire_in *in);
const uint8_t *wire_take_bytes(wire_in *in, uint64_t size); /* NULL: bad */
/* Key and value point into what is read. */
void wire_take_record(wire_in *in, kv_record *out);

#endif
