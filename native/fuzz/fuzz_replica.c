/* fuzz_replica.c -- any bytes from the peers of a replica that owns a shard, follows in another and has some log: it may
 * be told lies, but it does not crash, no invariant breaks, and what was committed stays as it was.
 *
 * The input is a row of steps, one byte each, with what the step asks for behind it:
 *
 *   bits 0 to 3   TICK, DURABLE, FLUSH, REQUEST, TAKEOVER, RESTART, or what comes from a peer: a message of a type with
 *                 numbers near those that the replica would believe (FLOW to POSITION), RAW: any body, STREAM: any bytes
 *   bit 4         which of the two peers
 *   bits 5 to 7   of a message: what is wrong with it besides (LONG, WRONG_SIZE, MANY)
 *
 * A peer that has been let in is trusted by the protocol. So a lie may make the state wrong: it may cut the tail, have
 * anything committed, end an ownership, and even stop the replica. What it must not do is what is checked here: versions
 * that were committed here are the same for ever, no promise is taken back, and nothing is read or written outside. */
#include "fuzz.h"

#include "../src/replica_internal.h"

enum step { TICK, DURABLE, FLUSH, REQUEST, TAKEOVER, RESTART, FLOW, ACK, PREPARE, PROMISE, CHECK, CHECKED, ASK_POSITION, POSITION,
            RAW, STREAM };
enum { OTHER_PEER = 16, LONG = 32, WRONG_SIZE = 64, MANY = 128 };
enum { SHARDS = 2, NOTED_MAX = 64, STEPS_MAX = 2000, VALUE_MAX = 300, WAITS_MAX = 8 };

typedef struct bench {
    kv_sim *disk;
    kv_replica *r;
    bool opened_again;
    uint64_t digests[SHARDS][NOTED_MAX]; /* of committed versions, from 1 */
    uint64_t noted[SHARDS], commit[SHARDS], promised[SHARDS];
    uint64_t tokens;
    wire_out out;
} bench;

static const uint8_t VALUE[VALUE_MAX];

/* --- in and out --- */

static kv_status boot(bench *b) {
    kv_fault fault;
    kv_replica_options options = {.node = 1, .members = {1, 2, 3}, .member_count = 3, .shard_count = SHARDS, .session_max = 4,
                                  .batch_max = 8, .window_size_max = 4096, .retransmit_ticks = 3, .takeover_ticks = 4,
                                  .read_ticks = 4, .heartbeat_ticks = 2, .keep_max = 12, .policy = 1, .silence_ticks = 4, .wait_max = WAITS_MAX};
    options.store.segment_size_min = 16 << 10;
    options.store.segment_size_max = 64 << 10;
    kv_status status = kv_replica_open(kv_sim_io(b->disk), &options, &fault, &b->r);
    if (status != KV_OK) b->r = NULL;
    return status;
}

static void durable(bench *b) {
    if (kv_sync(kv_replica_caller(b->r)) == 0)
        kv_replica_durable(b->r, kv_position_order(kv_flow_durable(kv_replica_flow(b->r))));
}

/* What goes out is whole frames, and what is answered points at bytes that are there. */
static void flush(bench *b) {
    const kv_reply *replies;
    const uint8_t *bytes;
    size_t count, size;
    kv_replica_flush(b->r);
    kv_replica_answers(b->r, &replies, &count, &bytes);
    for (size_t i = 0; i < count; i++) {
        KV_ASSERT(replies[i].token <= b->tokens);
        if (replies[i].value_size > 0) free(copy_of(bytes + replies[i].value_at, (size_t)replies[i].value_size));
    }
    for (uint16_t node = 2; node <= 3; node++) {
        const uint8_t *out = kv_replica_outbox(b->r, node, &size);
        if (out == NULL) continue;
        wire_in from = {.at = out, .end = out + size}, body;
        enum wire_type type;
        while (wire_next(&from, &type, &body)) continue;
        KV_ASSERT(!from.bad && from.at == from.end);
    }
    kv_replica_clear(b->r);
}

static void receive(bench *b, uint16_t node, const uint8_t *bytes, size_t size) {
    uint8_t *copy = copy_of(bytes, size);
    kv_status status = kv_replica_receive(b->r, node, copy, size);
    KV_ASSERT(status == KV_OK || status == KV_EUSAGE);
    free(copy);
}

/* What was put together in b->out. */
static void send(bench *b, uint16_t node) {
    receive(b, node, b->out.bytes, b->out.size);
    b->out.size = 0;
}

/* --- what must hold --- */

static void look_shard(bench *b, uint32_t number) {
    kv_shard_state s;
    kv_replica_shard(b->r, number, &s);
    KV_ASSERT(s.applied <= s.last && s.applied <= s.commit && s.base <= s.applied);
    KV_ASSERT(s.promised >= b->promised[number]);
    KV_ASSERT(s.commit >= b->commit[number]);
    b->promised[number] = s.promised;
    b->commit[number] = s.commit;
    for (uint64_t version = 1; version <= b->noted[number]; version++)
        KV_ASSERT(version <= s.base || kv_replica_digest(b->r, number, version) == b->digests[number][version - 1]);
    while (b->noted[number] < s.applied && b->noted[number] < NOTED_MAX) {
        uint64_t version = ++b->noted[number];
        b->digests[number][version - 1] = kv_replica_digest(b->r, number, version);
    }
}

/* What a peer can make it remember. */
static void look_peer(const bench *b, const peer *p) {
    size_t promises = 0;
    for (size_t i = 0; i < b->r->after.count; i++) promises += LIST(after, &b->r->after)[i].node == p->node;
    KV_ASSERT(p->refusals.count <= 257);
    KV_ASSERT(p->asked <= 32 * SHARDS);
    KV_ASSERT(promises <= 64);
}

static void look_at_all(bench *b) {
    for (uint32_t i = 0; i < SHARDS; i++) {
        look_shard(b, i);
        KV_ASSERT(b->r->shards[i].installing.pieces_size <= 1 << 17);
    }
    for (uint32_t i = 0; i < b->r->peer_count; i++) look_peer(b, &b->r->peers[i]);
    KV_ASSERT(b->r->waits.count <= WAITS_MAX);
}

/* --- a life before: it owns shard 0, and 3 owns shard 1 --- */

/* Those of the options, or others, or a set that nobody writes. */
static void put_members(bench *b, uint64_t which) {
    static const uint8_t lists[][9] = {{3, 1, 0, 2, 0, 3, 0}, {2, 1, 0, 3, 0}, {3, 2, 0, 3, 0, 4, 0}, {2, 2, 0, 2, 0}};
    wire_put_bytes(&b->out, lists[which & 3], 1 + 2 * (size_t)lists[which & 3][0]);
}

static size_t key_in(uint64_t what, char key[8]) { return (size_t)snprintf(key, 8, what & 8 ? "{a}%u" : "{b}%u", (unsigned)(what & 7)); }

static void ask(bench *b, uint8_t kind, uint64_t name, uint64_t size, int64_t argument, uint64_t client, uint64_t number) {
    char key[8], table[8];
    kv_ask a = {.token = ++b->tokens, .kind = kind, .attempt = (uint16_t)(1 + (number >> 4 & 1)), .client = client, .number = number,
                .value = VALUE, .value_size = size % VALUE_MAX, .argument = argument, .ttl_ms = name & 16 ? 50 : 0,
                .follower = name >> 5 & 1, .stale = name >> 6 & 1, .seen = number,
                .since = number, .ticks = argument < 0 ? 0 : (uint64_t)argument, .whole = name >> 3 & 1};
    a.key = (const uint8_t *)key;
    a.key_size = key_in(name, key);
    kv_operation operations[2] = {{.key = a.key, .key_size = (uint32_t)a.key_size, .value = VALUE, .value_size = a.value_size},
                                  {.key = a.key, .key_size = (uint32_t)a.key_size, .value = VALUE, .value_size = 3}};
    size_t table_size = key_in(name | 7, table);
    if (name & 128) {
        a.table = (const uint8_t *)table;
        a.table_size = table_size;
    }
    operations[1].table = (const uint8_t *)table;
    operations[1].table_size = (uint32_t)table_size;
    if (kind == KV_REQUEST_BATCH) a.operations = operations;
    if (kind == KV_REQUEST_BATCH) a.operation_count = 2;
    kv_replica_request(b->r, &a);
}

static void ack_everything(bench *b, uint16_t node) {
    const peer *p = &b->r->peers[peer_of(b->r, node)];
    wire_begin(&b->out, WIRE_ACK);
    wire_put_varint(&b->out, p->connection.incarnation);
    wire_put_varint(&b->out, p->connection.number);
    wire_put_varint(&b->out, p->seq);
    wire_put8(&b->out, 1);
    wire_put_varint(&b->out, 0);
    wire_end(&b->out);
    send(b, node);
}

static void own_shard_0(bench *b) {
    kv_replica_takeover(b->r, (uint16_t[]){0}, 1);
    durable(b);
    wire_begin(&b->out, WIRE_PROMISE);
    wire_put64(&b->out, b->r->shards[0].taking.ballot);
    wire_put_varint(&b->out, 1);
    wire_put8(&b->out, 1);
    for (int i = 0; i < 2; i++) wire_put_varint(&b->out, 0); /* shard, commit */
    wire_put64(&b->out, 0);
    wire_put_varint(&b->out, 0);
    put_members(b, 0);
    wire_put8(&b->out, 0);
    wire_end(&b->out);
    send(b, 2);
}

static void follow_in_shard_1(bench *b) {
    kv_record barrier = {.kind = KV_KIND_BARRIER};
    kv_record put = {.kind = KV_KIND_PUT, .key = (const uint8_t *)"{a}0", .key_size = 4, .value = VALUE, .value_size = 9};
    wire_begin(&b->out, WIRE_FLOW);
    for (int i = 0; i < 3; i++) wire_put_varint(&b->out, 1); /* incarnation, number, sequence */
    wire_put_varint(&b->out, 0); /* acknowledged */
    wire_put_varint(&b->out, 1);
    wire_put64(&b->out, ballot_make(1, 3));
    wire_put8(&b->out, 0);
    wire_put_varint(&b->out, 0);
    wire_put64(&b->out, 0);
    wire_put_varint(&b->out, 2);
    wire_put_varint(&b->out, 2);
    for (int i = 0; i < 2; i++) {
        wire_put_varint(&b->out, 1);
        wire_put8(&b->out, 0);
        wire_put_record(&b->out, i == 0 ? &barrier : &put);
    }
    wire_end(&b->out);
    send(b, 3);
}

static void live(bench *b) {
    KV_ASSERT(boot(b) == KV_OK);
    durable(b);
    own_shard_0(b);
    ask(b, KV_REQUEST_PUT, 0, 5, 0, 0, 0);
    ask(b, KV_REQUEST_INCR, 1, 0, 7, 70, 1);
    ask(b, KV_REQUEST_PUT, 128 | 2, 6, 0, 71, 1);
    ask(b, KV_REQUEST_PUT, 16 | 3, 7, 0, 72, 1);
    flush(b);
    durable(b);
    ack_everything(b, 2);
    follow_in_shard_1(b);
    durable(b);
    ask(b, KV_REQUEST_PUT, 4, 8, 0, 73, 1); /* And one that nobody has heard of. */
    flush(b);
    KV_ASSERT(b->r->shards[0].own.ballot != 0 && b->r->shards[0].commit == 5 && b->r->shards[1].commit == 2);
    look_at_all(b);
}

/* --- messages: numbers near those that mean something --- */

static uint64_t near(input *in, uint64_t base) {
    uint64_t how = take(in, 1);
    if (how < 128) return base + how - 64;
    return how < 192 ? how & 63 : take(in, 8);
}

static shard *any_shard(bench *b, input *in, uint64_t *number) {
    uint64_t how = take(in, 1);
    *number = how < 250 ? how % SHARDS : how == 250 ? SHARDS : take(in, 8);
    return &b->r->shards[*number % SHARDS];
}

static uint64_t any_ballot(input *in, const shard *s, uint16_t node) {
    switch (take(in, 1) & 7) {
    case 0: return s->promised;
    case 1: return s->own.ballot;
    case 2: return s->taking.ballot;
    case 3: return ballot_make(ballot_round(s->promised) + 1, node);
    case 4: return ballot_make(take(in, 1), (uint16_t)take(in, 1));
    case 5: return log_last_ballot(&s->log);
    case 6: return 0;
    default: return take(in, 8);
    }
}

static uint64_t ballot_at(input *in, const shard *s, uint64_t version, uint16_t node) {
    uint64_t ballot;
    return take(in, 1) < 192 && log_ballot_at(&s->log, version, &ballot) ? ballot : any_ballot(in, s, node);
}

static void put_record(bench *b, input *in) {
    static const uint8_t kinds[] = {KV_KIND_PUT, KV_KIND_DELETE, KV_KIND_ROW_PUT, KV_KIND_ROW_DELETE, KV_KIND_TABLE_NEW,
                                    KV_KIND_TABLE_DROP, KV_KIND_TABLE_FLOOR, KV_KIND_BARRIER, KV_KIND_SESSION, KV_KIND_ENVELOPE,
                                    KV_KIND_SEAL};
    char key[8];
    uint64_t kind = take(in, 1), what = take(in, 1), name = take(in, 1);
    kv_record record = {.kind = kind < 240 ? kinds[kind % sizeof kinds] : (uint8_t)take(in, 1), .value = VALUE,
                        .key = (const uint8_t *)key, .key_size = (uint32_t)key_in(name, key)};
    if (what & 1) record.options |= KV_HAS_EXPIRY;
    if (what & 2) record.options |= KV_HAS_REQUEST;
    if ((what & 4) || (record.kind >= KV_KIND_ROW_PUT && record.kind <= KV_KIND_TABLE_FLOOR && !(what & 8))) record.options |= KV_HAS_TABLE;
    if (what & 16) record.flags = (uint8_t)(take(in, 1) & KV_FLAGS_KNOWN);
    if (what & 32) record.key_size = 0;
    record.value_size = what & 64 ? (uint32_t)take(in, 1) : what & 128 ? KV_BIG_SIZE : 2;
    if (record.options & KV_HAS_EXPIRY) record.expires_ms = take(in, 2);
    if (record.options & KV_HAS_REQUEST)
        record.request = (kv_request){.client = 70 + take(in, 1) % 8, .number = take(in, 1), .attempt = 1, .outcome = (int16_t)take(in, 1)};
    if (record.options & KV_HAS_TABLE) {
        record.table_id = near(in, (uint64_t)(name >> 3 & 1) << 48 | 4 << 8); /* 4: the version that made one, before */
        record.row_count = take(in, 1);
        record.next_row = near(in, 1);
    }
    wire_put_record(&b->out, &record);
}

static void put_version(bench *b, input *in, const shard *s, uint16_t node) {
    uint64_t count = take(in, 1), own = take(in, 1);
    count = count < 250 ? 1 + count % 3 : near(in, 0);
    wire_put_varint(&b->out, count);
    wire_put8(&b->out, own >= 224);
    if (own >= 224) wire_put64(&b->out, any_ballot(in, s, node));
    for (uint64_t i = 0; i < count && i < 3; i++) put_record(b, in);
}

static void put_versions(bench *b, input *in, uint64_t how, const shard *s, uint16_t node) {
    uint64_t count = how & MANY ? near(in, 0) : take(in, 1) % 5;
    wire_put_varint(&b->out, count);
    for (uint64_t i = 0; i < count && i < 5; i++) put_version(b, in, s, node);
}

static uint64_t item_count(input *in, uint64_t how) { return how & MANY ? near(in, 0) : 1 + take(in, 1) % 3; }

static void put_connection(bench *b, input *in, connection near_to) {
    wire_put_varint(&b->out, near(in, near_to.incarnation));
    wire_put_varint(&b->out, near(in, near_to.number));
}

/* Of a snapshot. One of three is the last, and says how many there were. */
static void put_piece(bench *b, input *in, const shard *s, const peer *p) {
    uint64_t count = take(in, 1) % 4;
    wire_put_varint(&b->out, s->installing.active && take(in, 1) < 192 ? s->installing.from : near(in, s->commit + 8));
    wire_put64(&b->out, any_ballot(in, s, p->node));
    wire_put_varint(&b->out, near(in, 64)); /* 64 - 64 is the first */
    for (uint64_t i = 0; i < count; i++) {
        wire_put8(&b->out, 1);
        wire_put_varint(&b->out, near(in, s->commit));
        wire_put64(&b->out, any_ballot(in, s, p->node));
        put_record(b, in);
    }
    wire_put8(&b->out, 0);
    bool last = take(in, 1) < 128;
    wire_put8(&b->out, last);
    if (!last) return;
    wire_put_varint(&b->out, take(in, 1) % 3);
    wire_put_varint(&b->out, near(in, s->commit + 8));
    uint64_t forgotten = near(in, 0);
    put_members(b, forgotten >> 2);
    wire_put_varint(&b->out, forgotten);
    count = take(in, 1) % 6;
    wire_put_varint(&b->out, count);
    for (uint64_t i = 0; i < count; i++) wire_put_bytes(&b->out, VALUE, 38);
}

static void put_flow(bench *b, input *in, uint64_t how, const peer *p) {
    uint64_t number, count = item_count(in, how);
    put_connection(b, in, p->inbound);
    wire_put_varint(&b->out, near(in, p->cursor + 1));
    wire_put_varint(&b->out, near(in, p->cursor));
    for (uint64_t i = 0; i < count && i < 4; i++) {
        const shard *s = any_shard(b, in, &number);
        uint64_t ballot = any_ballot(in, s, p->node), piece = take(in, 1);
        wire_put_varint(&b->out, number);
        wire_put64(&b->out, ballot);
        wire_put8(&b->out, piece >= 192);
        if (piece >= 192) {
            put_piece(b, in, s, p);
            continue;
        }
        uint64_t before = near(in, log_last(&s->log));
        wire_put_varint(&b->out, before);
        wire_put64(&b->out, ballot_at(in, s, before, p->node));
        wire_put_varint(&b->out, near(in, s->commit));
        put_versions(b, in, how, s, p->node);
    }
}

static void put_ack(bench *b, input *in, uint64_t how, const peer *p) {
    uint64_t number;
    put_connection(b, in, p->connection);
    wire_put_varint(&b->out, near(in, p->seq));
    wire_put8(&b->out, take(in, 1) < 240);
    uint64_t count = how & MANY ? near(in, 0) : take(in, 1) % 4;
    wire_put_varint(&b->out, count);
    for (uint64_t i = 0; i < count && i < 4; i++) {
        wire_put_varint(&b->out, near(in, p->seq));
        const shard *s = any_shard(b, in, &number);
        wire_put_varint(&b->out, number);
        wire_put64(&b->out, any_ballot(in, s, p->node));
        wire_put64(&b->out, any_ballot(in, s, p->node));
        wire_put_varint(&b->out, near(in, log_last(&s->log)));
        wire_put_varint(&b->out, near(in, log_last(&s->log)));
        wire_put_varint(&b->out, near(in, s->commit));
        wire_put8(&b->out, take(in, 1) >= 192);
    }
}

static void put_prepare(bench *b, input *in, uint64_t how, const peer *p) {
    uint64_t number, count = item_count(in, how);
    wire_put64(&b->out, any_ballot(in, any_shard(b, in, &number), p->node));
    wire_put_varint(&b->out, count);
    for (uint64_t i = 0; i < count && i < 4; i++) {
        const shard *s = any_shard(b, in, &number);
        wire_put_varint(&b->out, number);
        wire_put_varint(&b->out, near(in, s->commit));
        wire_put64(&b->out, any_ballot(in, s, p->node));
        wire_put_varint(&b->out, near(in, log_last(&s->log)));
    }
}

static void put_tail(bench *b, input *in, uint64_t how, const shard *s, const peer *p) {
    uint64_t before = near(in, s->commit);
    wire_put_varint(&b->out, before);
    size_t at = b->out.size;
    wire_put64(&b->out, 0);
    wire_put64(&b->out, ballot_at(in, s, before, p->node));
    put_versions(b, in, how, s, p->node);
    uint64_t size = b->out.size - at - 8;
    kv_store64(b->out.bytes + at, how & WRONG_SIZE ? near(in, size) : size);
}

static void put_promise(bench *b, input *in, uint64_t how, const peer *p) {
    uint64_t number, count = item_count(in, how);
    wire_put64(&b->out, any_ballot(in, any_shard(b, in, &number), p->node));
    wire_put_varint(&b->out, count);
    for (uint64_t i = 0; i < count && i < 4; i++) {
        uint64_t granted = take(in, 1) < 200, drawn = take(in, 1), shown = drawn;
        shown = shown < 200 ? 1 : shown & 3;
        const shard *s = any_shard(b, in, &number);
        wire_put8(&b->out, (uint8_t)granted);
        wire_put_varint(&b->out, number);
        if (!granted) wire_put64(&b->out, any_ballot(in, s, p->node));
        if (!granted) continue;
        wire_put_varint(&b->out, near(in, s->commit));
        wire_put64(&b->out, any_ballot(in, s, p->node));
        wire_put_varint(&b->out, near(in, log_last(&s->log)));
        put_members(b, drawn < 160 ? 0 : drawn >> 3);
        wire_put8(&b->out, (uint8_t)shown);
        if (shown == 1) put_tail(b, in, how, s, p);
    }
}

/* CHECK and CHECKED are the same: a nonce, and ballots of shards. */
static void put_check(bench *b, input *in, uint64_t how, const peer *p) {
    uint64_t number, count = item_count(in, how);
    wire_put_varint(&b->out, near(in, b->r->nonce));
    wire_put_varint(&b->out, count);
    for (uint64_t i = 0; i < count && i < 4; i++) {
        const shard *s = any_shard(b, in, &number);
        wire_put_varint(&b->out, number);
        wire_put64(&b->out, any_ballot(in, s, p->node));
    }
}

static void put_name(bench *b, input *in) {
    char key[8];
    uint64_t what = take(in, 1), name = take(in, 1);
    wire_put8(&b->out, (uint8_t)(what & 3));
    for (int bit = 0; bit < 2; bit++) {
        if ((what >> bit & 1) == 0) continue;
        size_t size = key_in(bit == 0 ? name | 7 : name, key);
        wire_put_varint(&b->out, size);
        wire_put_bytes(&b->out, (const uint8_t *)key, size);
    }
}

static void put_ask_position(bench *b, input *in, uint64_t how) {
    uint64_t number, count = item_count(in, how);
    wire_put_varint(&b->out, near(in, b->r->nonce));
    for (uint64_t i = 0; i < count && i < 4; i++) {
        wire_put8(&b->out, 1);
        any_shard(b, in, &number);
        wire_put_varint(&b->out, number);
        uint64_t names = take(in, 1);
        names = names < 250 ? names % 3 : near(in, 0);
        wire_put_varint(&b->out, names);
        for (uint64_t j = 0; j < names && j < 3; j++) put_name(b, in);
    }
    wire_put8(&b->out, take(in, 1) >= 250);
}

static void put_position(bench *b, input *in, uint64_t how) {
    uint64_t number, count = item_count(in, how);
    wire_put_varint(&b->out, count);
    for (uint64_t i = 0; i < count && i < 4; i++) {
        wire_put_varint(&b->out, near(in, b->r->nonce));
        const shard *s = any_shard(b, in, &number);
        wire_put_varint(&b->out, number);
        wire_put8(&b->out, take(in, 1) < 200);
        wire_put_varint(&b->out, near(in, s->commit));
    }
}

static void put_raw(bench *b, input *in, size_t size) {
    for (size_t i = 0; i < size && in->left != 0; i++) wire_put8(&b->out, (uint8_t)take(in, 1));
}

static void message(bench *b, input *in, enum step step, uint64_t how) {
    const peer *p = &b->r->peers[how & OTHER_PEER ? 2 : 1];
    enum wire_type type = step == RAW ? (enum wire_type)(1 + take(in, 1) % (WIRE_TYPE_END - 1)) : (enum wire_type)(step - FLOW + 1);
    wire_begin(&b->out, type);
    switch (step) {
    case FLOW: put_flow(b, in, how, p); break;
    case ACK: put_ack(b, in, how, p); break;
    case PREPARE: put_prepare(b, in, how, p); break;
    case PROMISE: put_promise(b, in, how, p); break;
    case CHECK:
    case CHECKED: put_check(b, in, how, p); break;
    case RAW: put_raw(b, in, take(in, 1)); break;
    case ASK_POSITION: put_ask_position(b, in, how); break;
    default: put_position(b, in, how);
    }
    if (how & LONG) put_raw(b, in, take(in, 1) & 15);
    wire_end(&b->out);
    KV_ASSERT(!b->out.failed);
    send(b, p->node);
}

static void stream(bench *b, input *in, uint64_t how) {
    put_raw(b, in, take(in, 1));
    send(b, how & OTHER_PEER ? 3 : 2);
}

/* --- steps --- */

/* A log with lies in it may be refused; what it then says was committed is what was. false: refused. */
static bool restart(bench *b) {
    kv_replica_free(b->r);
    kv_status status = boot(b);
    KV_ASSERT(status == KV_OK || status == KV_ECORRUPT || status == KV_EFORMAT);
    memset(b->commit, 0, sizeof b->commit); /* Learned again. */
    memset(b->promised, 0, sizeof b->promised);
    return b->r != NULL;
}

static void request(bench *b, input *in) {
    uint64_t kind = take(in, 1), name = take(in, 1), size = take(in, 1), argument = take(in, 1), who = take(in, 1);
    ask(b, (uint8_t)(kind % KV_REQUEST_KIND_END), name, size, (int64_t)argument - 2, who % 4 == 0 ? 0 : 69 + who % 4, who >> 2);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    input in = {data, size};
    bench b = {.disk = kv_sim_new()};
    kv_sim_set_recording(b.disk, 0);
    kv_sim_set_clock(b.disk, 1000);
    live(&b);
    for (int i = 0; in.left != 0 && i < STEPS_MAX; i++) {
        uint64_t how = take(&in, 1);
        enum step step = (enum step)(how & 15);
        switch (step) {
        case TICK: kv_replica_tick(b.r); break;
        case DURABLE: durable(&b); break;
        case FLUSH: flush(&b); break;
        case REQUEST: request(&b, &in); break;
        case TAKEOVER: kv_replica_takeover(b.r, (uint16_t[]){0, 1, 0, SHARDS}, how >> 5 & 3); break;
        case RESTART: break;
        case STREAM: stream(&b, &in, how); break;
        default: message(&b, &in, step, how);
        }
        if (step == RESTART && !restart(&b)) break;
        look_at_all(&b);
    }
    if (b.r != NULL) {
        flush(&b);
        durable(&b);
        flush(&b);
        look_at_all(&b);
        if (restart(&b)) look_at_all(&b);
    }
    kv_replica_free(b.r);
    wire_free(&b.out);
    kv_sim_free(b.disk);
    return 0;
}
