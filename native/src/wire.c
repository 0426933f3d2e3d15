/* wire.c -- see wire.h. */
#include "wire.h"

#include <stdlib.h>
#include <string.h>

enum { CAPACITY_MIN = 256 };

/* Which optional fields a record brings with it; the others are the message's. */
enum { CARRIED = KV_HAS_EXPIRY | KV_HAS_REQUEST | KV_HAS_TABLE };

/* --- writing --- */

void wire_free(wire_out *out) {
    free(out->bytes);
    *out = (wire_out){0};
}

static uint8_t *room(wire_out *out, size_t size) {
    if (KV_UNLIKELY(out->capacity - out->size < size)) {
        size_t capacity = out->capacity == 0 ? CAPACITY_MIN : out->capacity;
        while (capacity - out->size < size) capacity *= 2;
        uint8_t *larger = out->failed ? NULL : realloc(out->bytes, capacity);
        if (larger == NULL) {
            out->failed = true;
            return NULL;
        }
        out->bytes = larger;
        out->capacity = capacity;
    }
    uint8_t *to = out->bytes + out->size;
    out->size += size;
    return to;
}

void wire_begin(wire_out *out, enum wire_type type) {
    out->frame = out->size;
    uint8_t *to = room(out, WIRE_HEAD_SIZE);
    if (to != NULL) to[4] = (uint8_t)type;
}

void wire_end(wire_out *out) {
    if (out->failed) return;
    size_t size = out->size - out->frame - 4;
    KV_ASSERT(size <= WIRE_FRAME_SIZE_MAX);
    kv_store32(out->bytes + out->frame, (uint32_t)size);
}

void wire_give_up(wire_out *out) { out->size = out->frame; }

void wire_put8(wire_out *out, uint8_t value) {
    uint8_t *to = room(out, 1);
    if (to != NULL) *to = value;
}

void wire_put64(wire_out *out, uint64_t value) {
    uint8_t *to = room(out, 8);
    if (to != NULL) kv_store64(to, value);
}

void wire_put_varint(wire_out *out, uint64_t value) {
    uint8_t bytes[10];
    size_t size = 0;
    for (; value >= 128; value >>= 7) bytes[size++] = (uint8_t)(value | 128);
    bytes[size++] = (uint8_t)value;
    wire_put_bytes(out, bytes, size);
}

void wire_put_bytes(wire_out *out, const uint8_t *bytes, size_t size) {
    uint8_t *to = size == 0 ? NULL : room(out, size);
    if (to != NULL) memcpy(to, bytes, size);
}

static uint64_t zigzag(int64_t value) { return (uint64_t)value << 1 ^ (uint64_t)(value >> 63); }
static int64_t unzigzag(uint64_t value) { return (int64_t)(value >> 1) ^ -(int64_t)(value & 1); }

void wire_put_record(wire_out *out, const kv_record *record) {
    wire_put8(out, record->kind);
    wire_put8(out, record->flags);
    wire_put8(out, (uint8_t)(record->options & CARRIED));
    wire_put_varint(out, record->key_size);
    wire_put_varint(out, record->value_size);
    if (record->options & KV_HAS_EXPIRY) wire_put_varint(out, record->expires_ms);
    if (record->options & KV_HAS_REQUEST) {
        wire_put64(out, record->request.client);
        wire_put_varint(out, record->request.number);
        wire_put_varint(out, record->request.seen);
        wire_put_varint(out, zigzag(record->request.result));
        wire_put_varint(out, record->request.lane);
        wire_put_varint(out, record->request.attempt);
        wire_put_varint(out, zigzag(record->request.outcome));
    }
    if (record->options & KV_HAS_TABLE) {
        wire_put64(out, record->table_id);
        wire_put_varint(out, record->row_count);
        wire_put_varint(out, record->next_row);
    }
    wire_put_bytes(out, record->key, record->key_size);
    wire_put_bytes(out, record->value, record->value_size);
}

/* --- reading --- */

/* Numbers are left out between them: nobody sends those. */
static bool is_type(uint8_t type) {
    switch ((enum wire_type)type) {
    case WIRE_FLOW:
    case WIRE_ACK:
    case WIRE_PREPARE:
    case WIRE_PROMISE:
    case WIRE_CHECK:
    case WIRE_CHECKED:
    case WIRE_ASK_POSITION:
    case WIRE_POSITION:
    case WIRE_PING:
    case WIRE_OFFER:
    case WIRE_FETCH:
    case WIRE_BYTES:
    case WIRE_ASK_HELD:
    case WIRE_HELD: return true;
    case WIRE_TYPE_END: break;
    }
    return false;
}

bool wire_next(wire_in *from, enum wire_type *type, wire_in *body) {
    size_t left = (size_t)(from->end - from->at);
    if (from->bad || left < WIRE_HEAD_SIZE) return false;
    uint32_t size = kv_load32(from->at);
    if (size == 0 || size > WIRE_FRAME_SIZE_MAX || !is_type(from->at[4])) {
        from->bad = true;
        return false;
    }
    if (left - 4 < size) return false;
    *type = (enum wire_type)from->at[4];
    *body = (wire_in){.at = from->at + WIRE_HEAD_SIZE, .end = from->at + 4 + size};
    from->at = body->end;
    return true;
}

const uint8_t *wire_take_bytes(wire_in *in, uint64_t size) {
    if (in->bad || size > (uint64_t)(in->end - in->at)) {
        in->bad = true;
        return NULL;
    }
    const uint8_t *bytes = in->at;
    in->at += size;
    return bytes;
}

uint8_t wire_take8(wire_in *in) {
    const uint8_t *bytes = wire_take_bytes(in, 1);
    return bytes == NULL ? 0 : *bytes;
}

uint64_t wire_take64(wire_in *in) {
    const uint8_t *bytes = wire_take_bytes(in, 8);
    return bytes == NULL ? 0 : kv_load64(bytes);
}

/* Ten bytes at most, and in the tenth one bit: more would not fit. */
uint64_t wire_take_varint(wire_in *in) {
    uint64_t value = 0;
    for (unsigned shift = 0;; shift += 7) {
        uint8_t byte = wire_take8(in);
        if (shift == 63 && byte > 1) break;
        value |= (uint64_t)(byte & 127) << shift;
        if (byte < 128) return in->bad ? 0 : value;
    }
    in->bad = true;
    return 0;
}

static uint64_t take_below(wire_in *in, uint64_t limit) {
    uint64_t value = wire_take_varint(in);
    if (value < limit) return value;
    in->bad = true;
    return 0;
}

static void take_request(wire_in *in, kv_request *out) {
    out->client = wire_take64(in);
    out->number = wire_take_varint(in);
    out->seen = wire_take_varint(in);
    out->result = unzigzag(wire_take_varint(in));
    out->lane = (uint32_t)take_below(in, (uint64_t)1 << 32);
    out->attempt = (uint16_t)take_below(in, 1 << 16);
    out->outcome = (int16_t)unzigzag(take_below(in, 1 << 16));
}

void wire_take_record(wire_in *in, kv_record *out) {
    *out = (kv_record){0};
    out->kind = wire_take8(in);
    out->flags = wire_take8(in);
    out->options = wire_take8(in);
    bool structure = out->kind == KV_KIND_ENVELOPE || out->kind == KV_KIND_SEAL; /* It would be read as ours at a replay. */
    if (out->kind == 0 || structure || (out->flags & ~KV_FLAGS_KNOWN) || (out->options & ~CARRIED)) in->bad = true;
    out->key_size = (uint32_t)take_below(in, KV_KEY_SIZE_MAX + 1);
    out->value_size = (uint32_t)take_below(in, (uint64_t)1 << 31);
    if (out->options & KV_HAS_EXPIRY) out->expires_ms = wire_take_varint(in);
    if (out->options & KV_HAS_REQUEST) take_request(in, &out->request);
    if (out->options & KV_HAS_TABLE) {
        out->table_id = wire_take64(in);
        out->row_count = wire_take_varint(in);
        out->next_row = wire_take_varint(in);
    }
    out->key = wire_take_bytes(in, out->key_size);
    out->value = wire_take_bytes(in, out->value_size);
    if (in->bad) *out = (kv_record){0};
}
