/* test_replica.c -- one replica alone, and three in one process between which messages are carried by hand.
 *
 * A test of three is a transcript: what is asked, every message as it arrives or is lost, every disk as it catches up,
 * every answer. The whole of it is compared, so no message comes that is not in it. A line of it:
 *
 *     1>2 FLOW c1#2 s0 1.1 after 1 of 1.1 commit 1: put a
 *
 * from 1 to 2, on 1's first connection the second message: of shard 0, under ballot 1.1 (round.node), behind version 1,
 * which is of ballot 1.1, while version 1 is committed, the record of a put. */
#include <stdarg.h>
#include <sys/mman.h>

#include "../src/replica_internal.h"
#include "check.h"
#include "kv/io_sim.h"

enum { NODES = 3, MAIL_MAX = 64, ANSWERS_MAX = 256, TRANSCRIPT_SIZE = 1 << 14, VALUE_MAX = 64, KEPT_MAX = 256 };
static const int64_t START_MS = 1700000000000;

typedef struct frame {
    uint8_t *bytes;
    size_t size;
} frame;

typedef struct answer {
    kv_reply reply;
    char value[VALUE_MAX];
    bool there;
} answer;

typedef struct bench {
    uint32_t count; /* of nodes; 1 to count */
    kv_replica_options options;
    kv_sim *disk[NODES + 1];
    kv_replica *node[NODES + 1];
    frame mail[NODES + 1][NODES + 1][MAIL_MAX]; /* from, to: the oldest first */
    size_t mail_count[NODES + 1][NODES + 1];
    uint64_t connection[NODES + 1][NODES + 1], connections[NODES + 1][NODES + 1];
    answer answers[ANSWERS_MAX]; /* by token */
    uint64_t token;
    char text[TRANSCRIPT_SIZE];
    size_t text_size;
    frame kept[KEPT_MAX]; /* what was carried, if `keeping` */
    uint16_t kept_from[KEPT_MAX];
    size_t kept_count;
    bool keeping;
} bench;

/* --- the transcript --- */

static void __attribute__((format(printf, 2, 3))) say(bench *b, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    int size = vsnprintf(b->text + b->text_size, sizeof b->text - b->text_size, format, arguments);
    va_end(arguments);
    b->text_size += (size_t)size;
    KV_ASSERT(b->text_size < sizeof b->text);
}

static void say_ballot(bench *b, uint64_t ballot) {
    if (ballot == 0) say(b, " 0");
    else say(b, " %llu.%u", (unsigned long long)ballot_round(ballot), ballot_node(ballot));
}

static void say_number(bench *b, const char *word, uint64_t number) { say(b, " %s%llu", word, (unsigned long long)number); }

static void say_record(bench *b, const kv_record *r) {
    static const char *const names[] = {[KV_KIND_PUT] = "put", [KV_KIND_DELETE] = "delete", [KV_KIND_ROW_PUT] = "row put",
                                        [KV_KIND_ROW_DELETE] = "row delete", [KV_KIND_TABLE_NEW] = "table",
                                        [KV_KIND_TABLE_DROP] = "drop", [KV_KIND_BARRIER] = "barrier",
                                        [KV_KIND_SESSION] = "failed"};
    say(b, " %s", names[r->kind]);
    if (r->key_size != 0) say(b, " %.*s", (int)r->key_size, (const char *)r->key);
    if (r->flags & KV_FLAG_EXPIRED) say(b, " (expired)");
}

/* A version: its records with a + between them, and its ballot where that is not the message's. */
static void say_version(bench *b, wire_in *in) {
    uint64_t count = wire_take_varint(in);
    if (wire_take8(in) != 0) say_ballot(b, wire_take64(in));
    for (uint64_t i = 0; i < count; i++) {
        kv_record record;
        wire_take_record(in, &record);
        if (i != 0) say(b, " +");
        say_record(b, &record);
    }
}

static void say_versions(bench *b, wire_in *in, uint64_t count) {
    if (count != 0) say(b, ":");
    for (uint64_t i = 0; i < count; i++) {
        if (i != 0) say(b, ",");
        say_version(b, in);
    }
}

static void say_connection(bench *b, uint32_t from, uint32_t to, wire_in *in) {
    uint64_t incarnation = wire_take_varint(in), number = wire_take_varint(in);
    (void)incarnation;
    if (number != b->connection[from][to]) b->connections[from][to]++;
    b->connection[from][to] = number;
    say_number(b, "c", b->connections[from][to]);
    say(b, "#%llu", (unsigned long long)wire_take_varint(in));
}

/* Of a snapshot: records of any version, and behind the last piece what the lanes were told. */
static void say_piece(bench *b, wire_in *in) {
    say_number(b, "snapshot of ", wire_take_varint(in));
    wire_take64(in);
    wire_take_varint(in); /* which walk: a number of its own */
    say_number(b, "piece ", wire_take_varint(in));
    while (wire_take8(in) == 1) {
        kv_record record;
        say_number(b, "v", wire_take_varint(in));
        wire_take64(in);
        wire_take_record(in, &record);
        say_record(b, &record);
    }
    if (wire_take8(in) == 0) return;
    say_number(b, "of ", wire_take_varint(in));
    say_number(b, "until ", wire_take_varint(in));
    say_number(b, "forgotten ", wire_take_varint(in));
    uint64_t count = wire_take_varint(in);
    say_number(b, "lanes ", count);
    wire_take_bytes(in, 38 * count);
}

static void say_flow(bench *b, uint32_t from, uint32_t to, wire_in *in) {
    say_connection(b, from, to, in);
    while (in->at != in->end && !in->bad) {
        say_number(b, "s", wire_take_varint(in));
        say_ballot(b, wire_take64(in));
        if (wire_take8(in) != 0) {
            say_piece(b, in);
            continue;
        }
        say_number(b, "after ", wire_take_varint(in));
        say(b, " of");
        say_ballot(b, wire_take64(in));
        say_number(b, "commit ", wire_take_varint(in));
        say_versions(b, in, wire_take_varint(in));
    }
}

static void say_ack(bench *b, uint32_t from, uint32_t to, wire_in *in) {
    say_connection(b, to, from, in); /* Of the flow that it answers. */
    if (wire_take8(in) == 0) say(b, " no vote");
    uint64_t count = wire_take_varint(in);
    for (uint64_t i = 0; i < count; i++) {
        say_number(b, "refused #", wire_take_varint(in));
        say_number(b, "s", wire_take_varint(in));
        say_ballot(b, wire_take64(in));
        say(b, ": promised");
        say_ballot(b, wire_take64(in));
        wire_take_varint(in);
        say_number(b, "last ", wire_take_varint(in));
        say_number(b, "commit ", wire_take_varint(in));
        if (wire_take8(in) != 0) say(b, " no state");
    }
}

static void say_prepare(bench *b, wire_in *in) {
    say_ballot(b, wire_take64(in));
    uint64_t count = wire_take_varint(in);
    for (uint64_t i = 0; i < count; i++) {
        say_number(b, "s", wire_take_varint(in));
        say_number(b, "commit ", wire_take_varint(in));
        uint64_t ballot = wire_take64(in);
        say_number(b, "last ", wire_take_varint(in));
        say(b, " of");
        say_ballot(b, ballot);
    }
}

static void say_promise(bench *b, wire_in *in) {
    say_ballot(b, wire_take64(in));
    uint64_t count = wire_take_varint(in);
    for (uint64_t i = 0; i < count; i++) {
        bool granted = wire_take8(in) != 0;
        say_number(b, "s", wire_take_varint(in));
        if (!granted) {
            say(b, " refused, promised");
            say_ballot(b, wire_take64(in));
            continue;
        }
        say_number(b, "commit ", wire_take_varint(in));
        uint64_t ballot = wire_take64(in);
        say_number(b, "last ", wire_take_varint(in));
        say(b, " of");
        say_ballot(b, ballot);
        uint8_t shown = wire_take8(in);
        if (shown == 2) say(b, " which is no longer held");
        if (shown != 1) continue;
        say_number(b, "after ", wire_take_varint(in));
        wire_take64(in); /* size */
        wire_take64(in); /* the ballot before */
        say_versions(b, in, wire_take_varint(in));
    }
}

static void say_check(bench *b, wire_in *in) {
    wire_take_varint(in);
    uint64_t count = wire_take_varint(in);
    for (uint64_t i = 0; i < count; i++) {
        say_number(b, "s", wire_take_varint(in));
        say_ballot(b, wire_take64(in));
    }
}

static void say_position(bench *b, wire_in *in) {
    wire_take_varint(in);
    bool good = wire_take8(in) != 0;
    uint64_t position = wire_take_varint(in);
    if (good) say_number(b, "", position);
    else say(b, " refused");
}

static void say_frame(bench *b, uint32_t from, uint32_t to, const frame *f) {
    static const char *const names[WIRE_TYPE_END] = {[WIRE_FLOW] = "FLOW", [WIRE_ACK] = "ACK", [WIRE_PREPARE] = "PREPARE",
                                                     [WIRE_PROMISE] = "PROMISE", [WIRE_CHECK] = "CHECK", [WIRE_CHECKED] = "CHECKED",
                                                     [WIRE_ASK_POSITION] = "ASK_POSITION", [WIRE_POSITION] = "POSITION",
                                                     [WIRE_PING] = "PING", [WIRE_OFFER] = "OFFER", [WIRE_FETCH] = "FETCH",
                                                     [WIRE_BYTES] = "BYTES", [WIRE_ASK_HELD] = "ASK_HELD",
                                                     [WIRE_HELD] = "HELD"};
    wire_in all = {.at = f->bytes, .end = f->bytes + f->size}, body;
    enum wire_type type;
    KV_ASSERT(wire_next(&all, &type, &body));
    say(b, "%u>%u %s", from, to, names[type]);
    switch (type) {
    case WIRE_FLOW: say_flow(b, from, to, &body); break;
    case WIRE_ACK: say_ack(b, from, to, &body); break;
    case WIRE_PREPARE: say_prepare(b, &body); break;
    case WIRE_PROMISE: say_promise(b, &body); break;
    case WIRE_CHECK:
    case WIRE_CHECKED: say_check(b, &body); break;
    case WIRE_ASK_POSITION:
        wire_take_varint(&body);
        say_number(b, "s", wire_take_varint(&body));
        break;
    case WIRE_POSITION: say_position(b, &body); break;
    case WIRE_OFFER: say_number(b, "s", wire_take_varint(&body)); break;
    default: break;
    }
    CHECK(!body.bad && body.at == body.end); /* Nothing of it is left unsaid. */
}

static void say_reply(bench *b, uint32_t from, const answer *a) {
    static const char *const names[] = {"ok", "failed", "retry", "unknown", "unavailable", "seen", "refused"};
    const kv_reply *r = &a->reply;
    say(b, "%u answers %s", from, names[r->status]);
    if (r->value_size >= 0) say(b, " \"%s\"", a->value);
    if (r->version != 0) say_number(b, "version ", r->version);
    if (r->number != 0) say(b, " number %lld", (long long)r->number);
    if (r->error != 0) say(b, " (%s)", kv_status_name(r->error));
    if (r->lag != 0) say_number(b, "lag ", r->lag);
    say(b, "\n");
}

/* The whole of it, and on with an empty one. */
static void check_said(bench *b, const char *file, int line, const char *expected) {
    if (strcmp(b->text, expected) != 0) {
        check_failed_here = 1;
        printf("%s:%d: it went\n%sand not\n%s", file, line, b->text, expected);
    }
    b->text_size = 0;
    b->text[0] = 0;
}
#define SAID(b, expected) check_said(b, __FILE__, __LINE__, expected)
static void forget_said(bench *b) { SAID(b, b->text); }

/* --- the world --- */

static void flush(bench *b, uint32_t n) {
    const kv_reply *replies;
    const uint8_t *bytes;
    size_t count;
    kv_replica_flush(b->node[n]);
    kv_replica_answers(b->node[n], &replies, &count, &bytes);
    for (size_t i = 0; i < count; i++) {
        KV_ASSERT(replies[i].token < ANSWERS_MAX);
        answer *a = &b->answers[replies[i].token];
        CHECK(!a->there); /* One answer each. */
        *a = (answer){.reply = replies[i], .there = true};
        if (replies[i].value_size > 0) snprintf(a->value, VALUE_MAX, "%.*s", (int)replies[i].value_size, (const char *)bytes + replies[i].value_at);
        say_reply(b, n, a);
    }
    for (uint32_t to = 1; to <= b->count; to++) {
        size_t size = 0;
        const uint8_t *out = to == n ? NULL : kv_replica_outbox(b->node[n], (uint16_t)to, &size);
        for (size_t at = 0; out != NULL && at < size;) {
            frame f = {.size = kv_load32(out + at) + 4};
            KV_ASSERT(b->mail_count[n][to] < MAIL_MAX && (f.bytes = malloc(f.size)) != NULL);
            memcpy(f.bytes, out + at, f.size);
            b->mail[n][to][b->mail_count[n][to]++] = f;
            at += f.size;
        }
    }
    kv_replica_clear(b->node[n]);
}

/* The disk has everything that the log has. */
static void sync_node(bench *b, uint32_t n) {
    CHECK_EQ(kv_sync(kv_replica_caller(b->node[n])), 0);
    kv_replica_durable(b->node[n], kv_position_order(kv_flow_durable(kv_replica_flow(b->node[n]))));
    flush(b, n);
}

static void durable(bench *b, uint32_t n) {
    say(b, "%u durable\n", n);
    sync_node(b, n);
}

static void tick(bench *b, uint32_t n, uint32_t count) {
    while (count-- > 0) {
        kv_replica_tick(b->node[n]);
        flush(b, n);
    }
}

static frame mail_take(bench *b, uint32_t from, uint32_t to) {
    frame *box = b->mail[from][to], first = box[0];
    memmove(&box[0], &box[1], --b->mail_count[from][to] * sizeof *box);
    return first;
}

static bool mail_is_there(bench *b, uint32_t from, uint32_t to) {
    if (b->mail_count[from][to] != 0) return true;
    check_failed_here = 1;
    say(b, "%u>%u said nothing\n", from, to);
    return false;
}

static void keep(bench *b, uint32_t from, frame f) {
    if (b->keeping && b->kept_count < KEPT_MAX) {
        b->kept_from[b->kept_count] = (uint16_t)from;
        b->kept[b->kept_count++] = f;
    } else {
        free(f.bytes);
    }
}

/* The oldest message arrives. */
static void pass(bench *b, uint32_t from, uint32_t to) {
    if (!mail_is_there(b, from, to)) return;
    frame f = mail_take(b, from, to);
    say_frame(b, from, to, &f);
    say(b, "\n");
    CHECK_EQ(kv_replica_receive(b->node[to], (uint16_t)from, f.bytes, f.size), KV_OK);
    keep(b, from, f);
    flush(b, to);
}

static void lose(bench *b, uint32_t from, uint32_t to) {
    if (!mail_is_there(b, from, to)) return;
    frame f = mail_take(b, from, to);
    say_frame(b, from, to, &f);
    say(b, " LOST\n");
    free(f.bytes);
}

static void nothing_more(bench *b) {
    for (uint32_t i = 1; i <= b->count; i++)
        for (uint32_t j = 1; j <= b->count; j++)
            while (b->mail_count[i][j] != 0) {
                check_failed_here = 1;
                printf("left over: ");
                lose(b, i, j);
            }
}

/* All messages arrive and all disks catch up, until nothing moves. */
static void settle(bench *b) {
    for (bool moved = true; moved;) {
        moved = false;
        for (uint32_t i = 1; i <= b->count; i++) {
            bool behind = kv_replica_tail(b->node[i]) > kv_position_order(kv_flow_durable(kv_replica_flow(b->node[i])));
            if (behind) sync_node(b, i);
            moved |= behind;
            for (uint32_t j = 1; j <= b->count; j++)
                for (; b->mail_count[i][j] != 0; moved = true) pass(b, i, j);
        }
    }
}

/* A message that nobody sends any more, and everybody's ticks: commits get about. */
static void heartbeat(bench *b) {
    for (uint32_t n = 1; n <= b->count; n++) tick(b, n, b->options.heartbeat_ticks);
    settle(b);
}

static void nothing_more_from(const bench *b, uint32_t n) {
    for (uint32_t to = 1; to <= b->count; to++) CHECK_EQ(b->mail_count[n][to], 0);
}

static void boot(bench *b, uint32_t n) {
    kv_fault fault;
    kv_replica_options options = b->options;
    options.node = (uint16_t)n;
    kv_status status = kv_replica_open(kv_sim_io(b->disk[n]), &options, &fault, &b->node[n]);
    if (status != KV_OK) printf("open: %s\n", fault.what);
    KV_ASSERT(status == KV_OK);
}

static void begin_with(bench *b, uint32_t count, kv_replica_options options) {
    memset(b, 0, sizeof *b);
    b->count = count;
    b->options = options;
    b->options.member_count = count;
    b->options.heartbeat_ticks = 4;
    b->options.store.segment_size_min = b->options.store.segment_size_max = 1 << 16;
    for (uint32_t n = 1; n <= count; n++) b->options.members[n - 1] = (uint16_t)n;
    for (uint32_t n = 1; n <= count; n++) {
        b->disk[n] = kv_sim_new();
        kv_sim_set_recording(b->disk[n], 0);
        kv_sim_set_clock(b->disk[n], START_MS);
        boot(b, n);
        sync_node(b, n);
    }
}

static void begin(bench *b, uint32_t count) { begin_with(b, count, (kv_replica_options){.shard_count = 1}); }

static void end(bench *b) {
    for (uint32_t n = 1; n <= b->count; n++) {
        kv_replica_free(b->node[n]);
        kv_sim_free(b->disk[n]);
    }
    for (uint32_t i = 1; i <= b->count; i++)
        for (uint32_t j = 1; j <= b->count; j++)
            while (b->mail_count[i][j] != 0) free(mail_take(b, i, j).bytes);
    for (size_t i = 0; i < b->kept_count; i++) free(b->kept[i].bytes);
}

/* As kill -9 does it: what was written is there, what was not sent is not. */
static void restart(bench *b, uint32_t n) {
    kv_replica_free(b->node[n]);
    for (uint32_t to = 1; to <= b->count; to++)
        while (b->mail_count[n][to] != 0) free(mail_take(b, n, to).bytes);
    boot(b, n);
    sync_node(b, n);
}

static kv_shard_state state_of(const bench *b, uint32_t n, uint32_t number) {
    kv_shard_state state;
    kv_replica_shard(b->node[n], number, &state);
    return state;
}

static void takeover(bench *b, uint32_t n) {
    uint16_t all[4] = {0, 1, 2, 3};
    kv_replica_takeover(b->node[n], all, b->options.shard_count);
    flush(b, n);
}

/* With everything told to everybody. */
static void own(bench *b, uint32_t n) {
    takeover(b, n);
    settle(b);
    heartbeat(b);
    CHECK(state_of(b, n, 0).owned);
    forget_said(b);
}

/* --- asking --- */

static uint64_t ask(bench *b, uint32_t n, kv_ask a) {
    a.token = ++b->token;
    if (a.attempt == 0) a.attempt = 1;
    kv_replica_request(b->node[n], &a);
    flush(b, n);
    return a.token;
}

static kv_ask about(uint8_t kind, const char *key, const char *value) {
    kv_ask a = {.kind = kind, .key = (const uint8_t *)key, .key_size = strlen(key)};
    if (value != NULL) a.value = (const uint8_t *)value;
    if (value != NULL) a.value_size = strlen(value);
    return a;
}

static kv_ask get(const char *key) { return about(KV_REQUEST_GET, key, NULL); }
static kv_ask put(const char *key, const char *value) { return about(KV_REQUEST_PUT, key, value); }

static kv_ask in_table(const char *table, kv_ask a) {
    a.table = (const uint8_t *)table;
    a.table_size = strlen(table);
    return a;
}

static kv_ask with(kv_ask a, int64_t argument) {
    a.argument = argument;
    return a;
}

static kv_ask by(kv_ask a, uint64_t client, uint64_t number, uint16_t attempt, uint64_t seen) {
    a.client = client;
    a.number = number;
    a.attempt = attempt;
    a.seen = seen;
    return a;
}

static kv_ask expiring(kv_ask a, int64_t ttl_ms) {
    a.ttl_ms = ttl_ms;
    return a;
}

/* Asked of a replica, with everything done that is needed for an answer. */
static answer told(bench *b, uint32_t n, kv_ask a) {
    uint64_t token = ask(b, n, a);
    settle(b);
    for (uint32_t i = 0; i < b->options.heartbeat_ticks && !b->answers[token].there; i++) {
        for (uint32_t j = 1; j <= b->count; j++) tick(b, j, 1);
        settle(b);
    }
    CHECK(b->answers[token].there);
    forget_said(b);
    return b->answers[token];
}

static void check_told(bench *b, uint32_t n, kv_ask a, int32_t status, uint64_t version, int64_t number, int line) {
    answer is = told(b, n, a);
    if (is.reply.status == status && is.reply.version == version && is.reply.number == number) return;
    check_failed_here = 1;
    printf("%s:%d: answered %d (%s), version %llu, number %lld\n", __FILE__, line, is.reply.status, kv_status_name(is.reply.error),
           (unsigned long long)is.reply.version, (long long)is.reply.number);
}
#define TOLD(b, n, a, status, version, number) check_told(b, n, a, status, version, number, __LINE__)

static void check_value(bench *b, uint32_t n, kv_ask a, const char *value, int line) {
    answer is = told(b, n, a);
    const char *text = is.reply.status != KV_ANSWER_OK ? kv_status_name(is.reply.error) : is.reply.value_size < 0 ? "-" : is.value;
    if (strcmp(text, value) == 0) return;
    check_failed_here = 1;
    printf("%s:%d: read \"%s\", not \"%s\"\n", __FILE__, line, text, value);
}
#define VALUE(b, n, a, value) check_value(b, n, a, value, __LINE__)

/* --- alone --- */

static bench world; /* too large for a stack */

TEST(alone_it_owns_everything) {
    bench *b = &world;
    begin_with(b, 1, (kv_replica_options){.shard_count = 4});
    TOLD(b, 1, put("k", "v"), KV_ANSWER_RETRY, 0, 0); /* Not before it took it over. */
    takeover(b, 1);
    for (uint32_t s = 0; s < 4; s++) CHECK(!state_of(b, 1, s).owned);
    settle(b);
    for (uint32_t s = 0; s < 4; s++) {
        CHECK(state_of(b, 1, s).owned);
        CHECK_EQ(state_of(b, 1, s).commit, 1); /* the barrier */
    }
    end(b);
}

TEST(alone_nothing_is_answered_before_it_is_durable) {
    bench *b = &world;
    begin(b, 1);
    own(b, 1);
    ask(b, 1, put("a", "x"));
    ask(b, 1, get("a"));
    tick(b, 1, 1);
    SAID(b, "1 answers ok\n"); /* As of the barrier; the put is later. */
    ask(b, 1, put("b", "y"));
    durable(b, 1);
    SAID(b, "1 durable\n1 answers ok version 2\n1 answers ok version 3\n");
    end(b);
}

TEST(alone_every_kind_of_write) {
    bench *b = &world;
    begin(b, 1);
    own(b, 1);
    TOLD(b, 1, put("k", "one"), KV_ANSWER_OK, 2, 0);
    VALUE(b, 1, get("k"), "one");
    TOLD(b, 1, with(about(KV_REQUEST_CAS, "k", "two"), 1), KV_ANSWER_FAILED, 2, 0);
    TOLD(b, 1, with(about(KV_REQUEST_CAS, "k", "two"), 2), KV_ANSWER_OK, 3, 0);
    TOLD(b, 1, with(about(KV_REQUEST_CAS, "new", "x"), 0), KV_ANSWER_OK, 4, 0);
    VALUE(b, 1, get("k"), "two");
    TOLD(b, 1, about(KV_REQUEST_APPEND, "k", "!!"), KV_ANSWER_OK, 5, 5);
    VALUE(b, 1, get("k"), "two!!");
    TOLD(b, 1, with(about(KV_REQUEST_INCR, "n", NULL), 40), KV_ANSWER_OK, 6, 40);
    TOLD(b, 1, with(about(KV_REQUEST_INCR, "n", NULL), -50), KV_ANSWER_OK, 7, -10);
    TOLD(b, 1, with(about(KV_REQUEST_INCR, "k", NULL), 1), KV_ANSWER_FAILED, 0, 0);
    TOLD(b, 1, with(about(KV_REQUEST_DELETE, "k", NULL), 4), KV_ANSWER_FAILED, 5, 0);
    TOLD(b, 1, with(about(KV_REQUEST_DELETE, "k", NULL), -1), KV_ANSWER_OK, 8, 0);
    TOLD(b, 1, with(about(KV_REQUEST_DELETE, "k", NULL), -1), KV_ANSWER_FAILED, 0, 0);
    VALUE(b, 1, get("k"), "-");
    VALUE(b, 1, get("n"), "-10");
    end(b);
}

TEST(alone_rows_and_tables) {
    bench *b = &world;
    begin(b, 1);
    own(b, 1);
    TOLD(b, 1, in_table("t", put("r", "one")), KV_ANSWER_OK, 2, 0);
    VALUE(b, 1, in_table("t", get("r")), "one");
    VALUE(b, 1, in_table("t", get("other")), "-");
    VALUE(b, 1, get("t"), "wrong type");
    TOLD(b, 1, in_table("t", with(about(KV_REQUEST_CAS, "r", "two"), 2)), KV_ANSWER_OK, 3, 0);
    TOLD(b, 1, in_table("t", with(about(KV_REQUEST_INCR, "n", NULL), 5)), KV_ANSWER_OK, 4, 5);
    answer given = told(b, 1, in_table("t", about(KV_REQUEST_ROW_APPEND, "", "three"))), next;
    next = told(b, 1, in_table("t", about(KV_REQUEST_ROW_APPEND, "", "four")));
    CHECK(given.reply.number > 0 && next.reply.number > given.reply.number);
    TOLD(b, 1, in_table("t", with(about(KV_REQUEST_DELETE, "r", NULL), -1)), KV_ANSWER_OK, 7, 0);
    VALUE(b, 1, in_table("t", get("r")), "-");
    CHECK_EQ(kv_table_look(kv_replica_caller(b->node[1]), (const uint8_t *)"t", 1), 3);
    TOLD(b, 1, put("t", "value"), KV_ANSWER_OK, 8, 0); /* Replaces it. */
    VALUE(b, 1, get("t"), "value");
    TOLD(b, 1, in_table("t", put("r", "x")), KV_ANSWER_FAILED, 0, 0);
    TOLD(b, 1, in_table("u", put("r", "x")), KV_ANSWER_OK, 9, 0);
    TOLD(b, 1, about(KV_REQUEST_DROP, "u", NULL), KV_ANSWER_OK, 10, 0);
    TOLD(b, 1, about(KV_REQUEST_DROP, "u", NULL), KV_ANSWER_FAILED, 0, 0);
    end(b);
}

static kv_operation op(const char *table, const char *key, const char *value) {
    kv_operation one = {.key = (const uint8_t *)key, .key_size = (uint32_t)strlen(key)};
    if (table != NULL) one.table = (const uint8_t *)table;
    if (table != NULL) one.table_size = (uint32_t)strlen(table);
    if (value != NULL) one.value = (const uint8_t *)value;
    if (value != NULL) one.value_size = strlen(value);
    return one;
}

static kv_ask batch(kv_operation *operations, size_t count) {
    return (kv_ask){.kind = KV_REQUEST_BATCH, .operations = operations, .operation_count = count};
}

TEST(alone_a_batch_is_one_version) {
    bench *b = &world;
    begin(b, 1);
    own(b, 1);
    kv_operation all[] = {op(NULL, "{x}a", "1"), op(NULL, "{x}b", "2"), op("{x}t", "r", "3")};
    TOLD(b, 1, batch(all, 3), KV_ANSWER_OK, 2, 0);
    VALUE(b, 1, get("{x}a"), "1");
    VALUE(b, 1, get("{x}b"), "2");
    VALUE(b, 1, in_table("{x}t", get("r")), "3");
    kv_operation apart[] = {op(NULL, "{x}a", "1"), op(NULL, "{y}b", "2")};
    TOLD(b, 1, batch(apart, 2), KV_ANSWER_REFUSED, 0, 0);
    kv_expectation stands = {.key = (const uint8_t *)"{x}a", .key_size = 4, .version = 2};
    kv_ask careful = batch(all, 2);
    careful.expectations = &stands;
    careful.expectation_count = 1;
    TOLD(b, 1, careful, KV_ANSWER_OK, 3, 0);
    TOLD(b, 1, careful, KV_ANSWER_FAILED, 3, 0); /* It stands at 3 now. */
    end(b);
}

TEST(alone_time_ends_things_by_a_delete) {
    bench *b = &world;
    begin(b, 1);
    own(b, 1);
    TOLD(b, 1, expiring(put("k", "v"), 1000), KV_ANSWER_OK, 2, 0);
    TOLD(b, 1, put("stays", "v"), KV_ANSWER_OK, 3, 0);
    TOLD(b, 1, expiring(about(KV_REQUEST_EXPIRE, "stays", NULL), 500), KV_ANSWER_OK, 4, 0);
    TOLD(b, 1, about(KV_REQUEST_EXPIRE, "stays", NULL), KV_ANSWER_OK, 5, 0); /* Never, after all. */
    TOLD(b, 1, expiring(in_table("t", put("r", "v")), 1000), KV_ANSWER_OK, 6, 0);
    kv_sim_set_clock(b->disk[1], START_MS + 999);
    VALUE(b, 1, get("k"), "v");
    CHECK_EQ(state_of(b, 1, 0).last, 6);
    kv_sim_set_clock(b->disk[1], START_MS + 1000);
    VALUE(b, 1, get("k"), "-");
    CHECK_EQ(state_of(b, 1, 0).last, 7);
    VALUE(b, 1, get("k"), "-");
    CHECK_EQ(state_of(b, 1, 0).last, 7); /* Once. */
    VALUE(b, 1, in_table("t", get("r")), "-");
    VALUE(b, 1, get("stays"), "v");
    CHECK_EQ(kv_replica_count(b->node[1])->expired, 2);
    TOLD(b, 1, expiring(put("k", "again"), 1000), KV_ANSWER_OK, 9, 0);
    kv_sim_set_clock(b->disk[1], START_MS + 9000);
    TOLD(b, 1, with(about(KV_REQUEST_CAS, "k", "new"), 0), KV_ANSWER_OK, 11, 0); /* Its delete is 10. */
    VALUE(b, 1, get("k"), "new");
    end(b);
}

TEST(alone_what_was_answered_is_there_after_a_restart) {
    bench *b = &world;
    begin(b, 1);
    own(b, 1);
    TOLD(b, 1, put("k", "one"), KV_ANSWER_OK, 2, 0);
    TOLD(b, 1, in_table("t", put("r", "two")), KV_ANSWER_OK, 3, 0);
    heartbeat(b); /* A watermark. */
    TOLD(b, 1, put("k", "three"), KV_ANSWER_OK, 4, 0);
    restart(b, 1);
    CHECK(!state_of(b, 1, 0).owned);
    CHECK_EQ(state_of(b, 1, 0).last, 4);
    TOLD(b, 1, get("k"), KV_ANSWER_RETRY, 0, 0);
    own(b, 1);
    VALUE(b, 1, get("k"), "three");
    VALUE(b, 1, in_table("t", get("r")), "two");
    TOLD(b, 1, put("k", "five"), KV_ANSWER_OK, 6, 0); /* Behind a barrier of its own. */
    CHECK_EQ(ballot_round(state_of(b, 1, 0).promised), 2);
    end(b);
}

TEST(alone_a_lane_is_told_the_same_again_also_after_a_restart) {
    bench *b = &world;
    begin(b, 1);
    own(b, 1);
    TOLD(b, 1, by(with(about(KV_REQUEST_INCR, "n", NULL), 5), 77, 1, 1, 0), KV_ANSWER_OK, 2, 5);
    TOLD(b, 1, by(with(about(KV_REQUEST_INCR, "n", NULL), 5), 77, 1, 2, 0), KV_ANSWER_OK, 2, 5);
    TOLD(b, 1, by(with(about(KV_REQUEST_CAS, "n", "x"), 9), 77, 2, 2, 0), KV_ANSWER_FAILED, 2, 0); /* Recorded. */
    CHECK_EQ(state_of(b, 1, 0).last, 3);
    TOLD(b, 1, by(with(about(KV_REQUEST_INCR, "n", NULL), 5), 77, 1, 3, 0), KV_ANSWER_UNKNOWN, 0, 0); /* Long ago. */
    restart(b, 1);
    own(b, 1);
    TOLD(b, 1, by(with(about(KV_REQUEST_CAS, "n", "x"), 9), 77, 2, 3, 0), KV_ANSWER_FAILED, 2, 0);
    TOLD(b, 1, by(with(about(KV_REQUEST_INCR, "n", NULL), 1), 77, 3, 1, 0), KV_ANSWER_OK, 5, 6);
    CHECK_EQ(kv_replica_count(b->node[1])->deduplicated, 1);
    end(b);
}

/* The record that says what came of it is the one that a restart reads. */
TEST(alone_a_first_row_is_told_the_same_again_after_a_restart) {
    bench *b = &world;
    begin(b, 1);
    own(b, 1);
    answer row = told(b, 1, by(in_table("t", about(KV_REQUEST_ROW_APPEND, "", "v")), 7, 1, 1, 0));
    TOLD(b, 1, by(in_table("u", with(about(KV_REQUEST_INCR, "r", NULL), 5)), 8, 1, 1, 0), KV_ANSWER_OK, 3, 5);
    restart(b, 1);
    own(b, 1);
    TOLD(b, 1, by(in_table("t", about(KV_REQUEST_ROW_APPEND, "", "v")), 7, 1, 2, 0), KV_ANSWER_OK, 2, row.reply.number);
    TOLD(b, 1, by(in_table("u", with(about(KV_REQUEST_INCR, "r", NULL), 5)), 8, 1, 2, 0), KV_ANSWER_OK, 3, 5);
    end(b);
}

TEST(what_no_replica_would_take_is_refused) {
    static char large[KV_INLINE_SIZE_MAX + 2];
    bench *b = &world;
    begin(b, 1);
    own(b, 1);
    memset(large, 'x', sizeof large - 1);
    TOLD(b, 1, put("", "v"), KV_ANSWER_REFUSED, 0, 0);
    TOLD(b, 1, put("k", large), KV_ANSWER_REFUSED, 0, 0);
    TOLD(b, 1, about(KV_REQUEST_KIND_END, "k", NULL), KV_ANSWER_REFUSED, 0, 0);
    TOLD(b, 1, about(0, "k", NULL), KV_ANSWER_REFUSED, 0, 0);
    TOLD(b, 1, (kv_ask){.kind = KV_REQUEST_PUT}, KV_ANSWER_REFUSED, 0, 0);
    CHECK_EQ(state_of(b, 1, 0).last, 1);
    end(b);
}

static kv_status open_with(kv_replica_options options) {
    kv_fault fault;
    kv_replica *r;
    kv_sim *disk = kv_sim_new();
    kv_status status = kv_replica_open(kv_sim_io(disk), &options, &fault, &r);
    if (status == KV_OK) kv_replica_free(r);
    kv_sim_free(disk);
    return status;
}

TEST(members_that_make_no_set_are_refused) {
    CHECK_EQ(open_with((kv_replica_options){.node = 1, .member_count = 3, .members = {1, 2, 3}}), KV_OK);
    CHECK_EQ(open_with((kv_replica_options){.node = 4, .member_count = 3, .members = {1, 2, 3}}), KV_EUSAGE);
    CHECK_EQ(open_with((kv_replica_options){.node = 1, .member_count = 3, .members = {1, 2, 2}}), KV_EUSAGE);
    CHECK_EQ(open_with((kv_replica_options){.node = 1, .member_count = 3, .members = {1, 2, 0}}), KV_EUSAGE);
    CHECK_EQ(open_with((kv_replica_options){.node = 1, .member_count = 0, .members = {1}}), KV_EUSAGE);
    CHECK_EQ(open_with((kv_replica_options){.node = 1, .member_count = KV_MEMBERS_MAX + 1, .members = {1}}), KV_EUSAGE);
    CHECK_EQ(open_with((kv_replica_options){.node = 1, .member_count = 1, .members = {1}, .shard_count = KV_SHARDS_MAX + 1}), KV_EUSAGE);
}

TEST(slots_are_those_of_redis_cluster) {
    CHECK_EQ(kv_slot_of((const uint8_t *)"123456789", 9), 0x31C3); /* The check value of CRC-16/XMODEM; below 16384. */
    CHECK_EQ(kv_slot_of((const uint8_t *)"foo", 3), 12182);
    CHECK_EQ(kv_slot_of((const uint8_t *)"{foo}bar", 8), 12182);
    CHECK_EQ(kv_slot_of((const uint8_t *)"x{foo}{bar}", 11), 12182); /* The first { and the } behind it. */
    CHECK(kv_slot_of((const uint8_t *)"{}foo", 5) != 12182);
    CHECK_EQ(kv_shard_of(64, (const uint8_t *)"foo", 3), 12182 * 64 / 16384);
    CHECK_EQ(kv_shard_of(1, (const uint8_t *)"foo", 3), 0);
}

/* --- three: transcripts --- */

TEST(transcript_nothing_is_said_before_the_log_is_durable) {
    bench *b = &world;
    begin(b, 3);
    kv_replica_free(b->node[2]);
    boot(b, 2);
    takeover(b, 1);
    durable(b, 1);
    pass(b, 1, 2);
    takeover(b, 2); /* Nor does it take anything over. */
    CHECK_EQ(b->mail_count[2][1], 0);
    lose(b, 1, 3);
    SAID(b, "1 durable\n"
            "1>2 PREPARE 1.1 s0 commit 0 last 0 of 0\n"
            "1>3 PREPARE 1.1 s0 commit 0 last 0 of 0 LOST\n");
    durable(b, 2);
    nothing_more(b);
    SAID(b, "2 durable\n");
    end(b);
}

TEST(transcript_a_takeover_is_one_round_trip) {
    bench *b = &world;
    begin(b, 3);
    takeover(b, 1);
    nothing_more(b); /* Its own promise comes first. */
    durable(b, 1);
    pass(b, 1, 2);
    CHECK_EQ(b->mail_count[2][1], 0);
    durable(b, 2);
    pass(b, 2, 1);
    pass(b, 1, 3);
    pass(b, 1, 2);
    pass(b, 1, 3);
    durable(b, 3);
    durable(b, 1);
    pass(b, 3, 1);
    pass(b, 3, 1);
    CHECK(state_of(b, 1, 0).owned);
    CHECK_EQ(state_of(b, 1, 0).commit, 1);
    CHECK_EQ(state_of(b, 2, 0).owner, 1);
    SAID(b, "1 durable\n"
            "1>2 PREPARE 1.1 s0 commit 0 last 0 of 0\n"
            "2 durable\n"
            "2>1 PROMISE 1.1 s0 commit 0 last 0 of 0\n"
            "1>3 PREPARE 1.1 s0 commit 0 last 0 of 0\n"
            "1>2 FLOW c1#1 s0 1.1 after 0 of 0 commit 0: barrier\n"
            "1>3 FLOW c1#1 s0 1.1 after 0 of 0 commit 0: barrier\n"
            "3 durable\n"
            "1 durable\n"
            "3>1 PROMISE 1.1 s0 commit 0 last 1 of 1.1 after 0: barrier\n"
            "3>1 ACK c1#1\n");
    end(b);
}

TEST(transcript_a_write_is_one_round_trip) {
    bench *b = &world;
    begin(b, 3);
    own(b, 1);
    ask(b, 1, put("a", "x"));
    pass(b, 1, 2);
    durable(b, 2);
    pass(b, 2, 1);
    SAID(b, "1>2 FLOW c1#3 s0 1.1 after 1 of 1.1 commit 1: put a\n"
            "2 durable\n"
            "2>1 ACK c1#3\n");
    durable(b, 1); /* Two of three, itself included. */
    SAID(b, "1 durable\n"
            "1 answers ok version 2\n");
    lose(b, 1, 3); /* The third was not needed. */
    nothing_more(b);
    CHECK_EQ(state_of(b, 2, 0).commit, 1); /* It hears of the commit with what comes next. */
    ask(b, 1, put("b", "y"));
    pass(b, 1, 2);
    CHECK_EQ(state_of(b, 2, 0).applied, 2);
    SAID(b, "1>3 FLOW c1#3 s0 1.1 after 1 of 1.1 commit 1: put a LOST\n"
            "1>2 FLOW c1#4 s0 1.1 after 2 of 1.1 commit 2: put b\n");
    end(b);
}

TEST(transcript_two_others_commit_what_the_owner_has_not_on_its_disk) {
    bench *b = &world;
    begin(b, 3);
    own(b, 1);
    ask(b, 1, put("a", "x"));
    pass(b, 1, 2);
    pass(b, 1, 3);
    durable(b, 2);
    durable(b, 3);
    pass(b, 2, 1);
    CHECK_EQ(state_of(b, 1, 0).commit, 1);
    pass(b, 3, 1);
    CHECK_EQ(state_of(b, 1, 0).commit, 2);
    SAID(b, "1>2 FLOW c1#3 s0 1.1 after 1 of 1.1 commit 1: put a\n"
            "1>3 FLOW c1#3 s0 1.1 after 1 of 1.1 commit 1: put a\n"
            "2 durable\n"
            "3 durable\n"
            "2>1 ACK c1#3\n"
            "3>1 ACK c1#3\n"
            "1 answers ok version 2\n");
    end(b);
}

TEST(transcript_no_acknowledgement_before_the_disk) {
    bench *b = &world;
    begin(b, 3);
    own(b, 1);
    ask(b, 1, put("a", "x"));
    pass(b, 1, 2);
    tick(b, 2, 3);
    CHECK_EQ(b->mail_count[2][1], 0);
    durable(b, 2);
    CHECK_EQ(b->mail_count[2][1], 1);
    end(b);
}

TEST(transcript_an_acknowledgement_goes_as_far_as_the_disk_and_no_further) {
    bench *b = &world;
    begin(b, 3);
    own(b, 1);
    ask(b, 1, put("a", "x"));
    pass(b, 1, 2);
    uint64_t first = kv_replica_tail(b->node[2]);
    ask(b, 1, put("b", "y"));
    pass(b, 1, 2);
    kv_replica_durable(b->node[2], first); /* The disk was asked before the second came. */
    flush(b, 2);
    pass(b, 2, 1);
    nothing_more_from(b, 2);
    durable(b, 2);
    pass(b, 2, 1);
    SAID(b, "1>2 FLOW c1#3 s0 1.1 after 1 of 1.1 commit 1: put a\n"
            "1>2 FLOW c1#4 s0 1.1 after 2 of 1.1 commit 1: put b\n"
            "2>1 ACK c1#3\n"
            "2 durable\n"
            "2>1 ACK c1#4\n");
    end(b);
}

TEST(transcript_a_record_of_an_older_ballot_is_not_counted_by_itself) {
    bench *b = &world;
    begin_with(b, 3, (kv_replica_options){.shard_count = 1, .batch_max = 1});
    own(b, 1);
    ask(b, 1, put("a", "x"));
    pass(b, 1, 2);
    lose(b, 1, 3);
    durable(b, 2);
    lose(b, 2, 1);
    takeover(b, 2); /* It has what 3 has not. */
    durable(b, 2);
    lose(b, 2, 1);
    pass(b, 2, 3);
    durable(b, 3);
    pass(b, 3, 2);
    lose(b, 2, 1);
    forget_said(b);
    pass(b, 2, 3);
    durable(b, 2);
    pass(b, 3, 2);
    pass(b, 2, 3);
    durable(b, 3);
    pass(b, 3, 2);
    CHECK_EQ(state_of(b, 2, 0).commit, 1); /* Two of three hold version 2, and it may still be cut. */
    pass(b, 2, 3);
    durable(b, 3);
    pass(b, 3, 2);
    CHECK_EQ(state_of(b, 2, 0).commit, 3);
    SAID(b, "2>3 FLOW c1#1 s0 2.2 after 2 of 1.1 commit 1: barrier\n"
            "2 durable\n"
            "3>2 ACK c1#1 refused #1 s0 2.2: promised 2.2 last 1 commit 1\n"
            "2>3 FLOW c1#2 s0 2.2 after 1 of 1.1 commit 1: 1.1 put a\n"
            "3 durable\n"
            "3>2 ACK c1#2 refused #1 s0 2.2: promised 2.2 last 1 commit 1\n"
            "2>3 FLOW c1#3 s0 2.2 after 2 of 1.1 commit 1: barrier\n"
            "3 durable\n"
            "3>2 ACK c1#3 refused #1 s0 2.2: promised 2.2 last 1 commit 1\n");
    end(b);
}

TEST(transcript_a_hot_key_is_pipelined) {
    bench *b = &world;
    begin(b, 3);
    own(b, 1);
    for (int i = 0; i < 3; i++) ask(b, 1, with(about(KV_REQUEST_INCR, "n", NULL), 2));
    for (int i = 0; i < 3; i++) pass(b, 1, 2);
    durable(b, 1);
    durable(b, 2);
    pass(b, 2, 1);
    SAID(b, "1>2 FLOW c1#3 s0 1.1 after 1 of 1.1 commit 1: put n\n"
            "1>2 FLOW c1#4 s0 1.1 after 2 of 1.1 commit 1: put n\n"
            "1>2 FLOW c1#5 s0 1.1 after 3 of 1.1 commit 1: put n\n"
            "1 durable\n"
            "2 durable\n"
            "2>1 ACK c1#5\n"
            "1 answers ok version 2 number 2\n"
            "1 answers ok version 3 number 4\n"
            "1 answers ok version 4 number 6\n");
    end(b);
}

TEST(transcript_what_came_together_goes_in_one_message) {
    bench *b = &world;
    begin(b, 3);
    own(b, 1);
    for (int i = 0; i < 3; i++) {
        kv_ask a = put("abc" + i, "x");
        a.token = ++b->token;
        a.attempt = 1;
        kv_replica_request(b->node[1], &a);
    }
    kv_operation all[] = {op(NULL, "{x}a", "1"), op("{x}t", "r", "2")};
    ask(b, 1, batch(all, 2));
    pass(b, 1, 2);
    SAID(b, "1>2 FLOW c1#3 s0 1.1 after 1 of 1.1 commit 1: put abc, put bc, put c, put {x}a + row put r + table {x}t\n");
    end(b);
}

TEST(transcript_a_takeover_adopts_what_one_other_holds) {
    bench *b = &world;
    begin(b, 3);
    own(b, 1);
    ask(b, 1, by(put("a", "x"), 7, 1, 1, 0)); /* It reaches 2, and 1 is cut off before it hears so. */
    pass(b, 1, 2);
    lose(b, 1, 3);
    durable(b, 2);
    lose(b, 2, 1);
    forget_said(b);
    takeover(b, 3);
    durable(b, 3);
    lose(b, 3, 1);
    pass(b, 3, 2);
    durable(b, 2);
    pass(b, 2, 3);
    CHECK_EQ(kv_replica_count(b->node[3])->adoptions, 1);
    ask(b, 3, by(put("a", "x"), 7, 1, 2, 0)); /* The client comes again, here: it was executed. */
    lose(b, 3, 1);
    pass(b, 3, 2);
    durable(b, 3);
    CHECK_EQ(state_of(b, 3, 0).commit, 1); /* Nothing of an older ballot is counted by itself. */
    durable(b, 2);
    pass(b, 2, 3);
    SAID(b, "3 durable\n"
            "3>1 PREPARE 2.3 s0 commit 1 last 1 of 1.1 LOST\n"
            "3>2 PREPARE 2.3 s0 commit 1 last 1 of 1.1\n"
            "2 durable\n"
            "2>3 PROMISE 2.3 s0 commit 1 last 2 of 1.1 after 1: put a\n"
            "3>1 FLOW c1#1 s0 2.3 after 2 of 1.1 commit 1: barrier LOST\n"
            "3>2 FLOW c1#1 s0 2.3 after 2 of 1.1 commit 1: barrier\n"
            "3 durable\n"
            "2 durable\n"
            "2>3 ACK c1#1\n"
            "3 answers ok version 2\n");
    nothing_more(b);
    CHECK_EQ(kv_replica_count(b->node[3])->deduplicated, 1);
    VALUE(b, 3, get("a"), "x");
    end(b);
}

TEST(transcript_a_prepare_is_refused_and_comes_again_with_a_higher_round) {
    bench *b = &world;
    begin(b, 3);
    takeover(b, 3);
    durable(b, 3);
    lose(b, 3, 2); /* Who does not hear of it, and uses the same round. */
    pass(b, 3, 1);
    durable(b, 1);
    pass(b, 1, 3);
    forget_said(b);
    takeover(b, 2);
    durable(b, 2);
    lose(b, 2, 3);
    pass(b, 2, 1);
    pass(b, 1, 2);
    CHECK(!state_of(b, 2, 0).taking);
    takeover(b, 2);
    durable(b, 2);
    lose(b, 2, 3);
    pass(b, 2, 1);
    pass(b, 3, 1); /* The barrier of the one that was the owner comes too late. */
    durable(b, 1);
    pass(b, 1, 2);
    CHECK(state_of(b, 2, 0).owned);
    CHECK(state_of(b, 3, 0).owned); /* It does not know better, and can commit nothing. */
    pass(b, 1, 3);
    CHECK(!state_of(b, 3, 0).owned);
    SAID(b, "2 durable\n"
            "2>3 PREPARE 1.2 s0 commit 0 last 0 of 0 LOST\n"
            "2>1 PREPARE 1.2 s0 commit 0 last 0 of 0\n"
            "1>2 PROMISE 1.2 s0 refused, promised 1.3\n"
            "2 durable\n"
            "2>3 PREPARE 2.2 s0 commit 0 last 0 of 0 LOST\n"
            "2>1 PREPARE 2.2 s0 commit 0 last 0 of 0\n"
            "3>1 FLOW c1#1 s0 1.3 after 0 of 0 commit 0: barrier\n"
            "1 durable\n"
            "1>2 PROMISE 2.2 s0 commit 0 last 0 of 0\n"
            "1>3 ACK c1#1 refused #1 s0 1.3: promised 2.2 last 0 commit 0\n");
    end(b);
}

TEST(transcript_one_prepare_takes_any_number_of_shards) {
    bench *b = &world;
    begin_with(b, 3, (kv_replica_options){.shard_count = 2});
    takeover(b, 1);
    durable(b, 1);
    pass(b, 1, 2);
    durable(b, 2);
    pass(b, 2, 1);
    lose(b, 1, 3);
    pass(b, 1, 2);
    durable(b, 1);
    durable(b, 2);
    pass(b, 2, 1);
    CHECK_EQ(state_of(b, 1, 0).commit, 1);
    CHECK_EQ(state_of(b, 1, 1).commit, 1);
    SAID(b, "1 durable\n"
            "1>2 PREPARE 1.1 s0 commit 0 last 0 of 0 s1 commit 0 last 0 of 0\n"
            "2 durable\n"
            "2>1 PROMISE 1.1 s0 commit 0 last 0 of 0 s1 commit 0 last 0 of 0\n"
            "1>3 PREPARE 1.1 s0 commit 0 last 0 of 0 s1 commit 0 last 0 of 0 LOST\n"
            "1>2 FLOW c1#1 s0 1.1 after 0 of 0 commit 0: barrier s1 1.1 after 0 of 0 commit 0: barrier\n"
            "1 durable\n"
            "2 durable\n"
            "2>1 ACK c1#1\n");
    end(b);
}

/* What 1 owns is known to 2, and 3 was cut off from the beginning. */
static void own_without_3(bench *b) {
    takeover(b, 1);
    durable(b, 1);
    pass(b, 1, 2);
    lose(b, 1, 3);
    durable(b, 2);
    pass(b, 2, 1);
}

TEST(transcript_a_gap_is_told_and_the_flow_goes_on_behind_what_is_there) {
    bench *b = &world;
    begin(b, 3);
    own_without_3(b);
    ask(b, 1, put("a", "x"));
    for (int i = 0; i < 2; i++) {
        pass(b, 1, 2);
        lose(b, 1, 3);
    }
    durable(b, 1);
    durable(b, 2);
    pass(b, 2, 1);
    tick(b, 1, 8); /* No word of 3 for so long: another connection. */
    for (int i = 0; i < 2; i++) pass(b, 1, 2);
    lose(b, 1, 3);
    forget_said(b);
    pass(b, 1, 3);
    pass(b, 3, 1);
    pass(b, 1, 3);
    durable(b, 3);
    pass(b, 3, 1);
    SAID(b, "1>3 FLOW c2#1 s0 1.1 after 2 of 1.1 commit 2\n"
            "3>1 ACK c2#1 refused #1 s0 1.1: promised 1.1 last 0 commit 0\n"
            "1>3 FLOW c2#2 s0 1.1 after 0 of 0 commit 2: barrier, put a\n"
            "3 durable\n"
            "3>1 ACK c2#2 refused #1 s0 1.1: promised 1.1 last 0 commit 0\n");
    CHECK_EQ(state_of(b, 3, 0).applied, 2);
    end(b);
}

static void swap_mail(bench *b, uint32_t from, uint32_t to) {
    KV_ASSERT(b->mail_count[from][to] >= 2);
    frame first = b->mail[from][to][0];
    b->mail[from][to][0] = b->mail[from][to][1];
    b->mail[from][to][1] = first;
}

TEST(transcript_a_message_that_is_overtaken_is_sent_again) {
    bench *b = &world;
    begin(b, 3);
    own(b, 1);
    ask(b, 1, put("a", "x"));
    ask(b, 1, put("b", "y"));
    swap_mail(b, 1, 3);
    pass(b, 1, 3);
    pass(b, 3, 1); /* The cursor has not passed the refusal: it counts for nothing yet. */
    pass(b, 1, 3);
    durable(b, 3);
    pass(b, 3, 1);
    pass(b, 1, 3);
    SAID(b, "1>3 FLOW c1#4 s0 1.1 after 2 of 1.1 commit 1: put b\n"
            "3>1 ACK c1#2 refused #4 s0 1.1: promised 1.1 last 1 commit 1\n"
            "1>3 FLOW c1#3 s0 1.1 after 1 of 1.1 commit 1: put a\n"
            "3 durable\n"
            "3>1 ACK c1#4 refused #4 s0 1.1: promised 1.1 last 1 commit 1\n"
            "1>3 FLOW c1#5 s0 1.1 after 2 of 1.1 commit 1: put b\n");
    CHECK_EQ(state_of(b, 3, 0).last, 3);
    end(b);
}

TEST(transcript_a_message_that_comes_twice_changes_nothing) {
    bench *b = &world;
    begin(b, 3);
    own(b, 1);
    ask(b, 1, put("a", "x"));
    frame *first = &b->mail[1][2][0];
    KV_ASSERT(b->mail_count[1][2] == 1);
    b->mail[1][2][1] = (frame){.bytes = malloc(first->size), .size = first->size};
    memcpy(b->mail[1][2][1].bytes, first->bytes, first->size);
    b->mail_count[1][2]++;
    pass(b, 1, 2);
    uint64_t tail = kv_replica_tail(b->node[2]);
    pass(b, 1, 2);
    CHECK_EQ(kv_replica_tail(b->node[2]), tail);
    durable(b, 2);
    pass(b, 2, 1);
    durable(b, 1);
    lose(b, 1, 3);
    nothing_more(b);
    SAID(b, "1>2 FLOW c1#3 s0 1.1 after 1 of 1.1 commit 1: put a\n"
            "1>2 FLOW c1#3 s0 1.1 after 1 of 1.1 commit 1: put a\n"
            "2 durable\n"
            "2>1 ACK c1#3\n"
            "1 durable\n"
            "1 answers ok version 2\n"
            "1>3 FLOW c1#3 s0 1.1 after 1 of 1.1 commit 1: put a LOST\n");
    end(b);
}

TEST(transcript_a_tail_that_nobody_else_holds_is_cut) {
    bench *b = &world;
    begin(b, 3);
    own(b, 1);
    ask(b, 1, put("a", "lost"));
    lose(b, 1, 2);
    lose(b, 1, 3);
    durable(b, 1);
    takeover(b, 3);
    durable(b, 3);
    lose(b, 3, 1);
    pass(b, 3, 2);
    durable(b, 2);
    pass(b, 2, 3);
    ask(b, 3, put("b", "y"));
    for (int i = 0; i < 2; i++) {
        pass(b, 3, 2);
        lose(b, 3, 1);
    }
    durable(b, 3);
    durable(b, 2);
    pass(b, 2, 3);
    tick(b, 3, 8);
    lose(b, 3, 1);
    for (int i = 0; i < 2; i++) lose(b, 3, 2);
    forget_said(b);
    pass(b, 3, 1);
    pass(b, 1, 3);
    pass(b, 3, 1); /* Where its log seems to go on another one lies: so from what is committed on. */
    pass(b, 1, 3);
    pass(b, 3, 1);
    durable(b, 1);
    pass(b, 1, 3);
    SAID(b, "3>1 FLOW c2#1 s0 2.3 after 3 of 2.3 commit 3\n"
            "1 answers retry\n"
            "1>3 ACK c2#1 refused #1 s0 2.3: promised 2.3 last 2 commit 1\n"
            "3>1 FLOW c2#2 s0 2.3 after 2 of 2.3 commit 3: put b\n"
            "1>3 ACK c2#2 refused #1 s0 2.3: promised 2.3 last 2 commit 1 refused #2 s0 2.3: promised 2.3 last 2 commit 1\n"
            "3>1 FLOW c2#3 s0 2.3 after 1 of 1.1 commit 3: barrier, put b\n"
            "1 durable\n"
            "1>3 ACK c2#3 refused #1 s0 2.3: promised 2.3 last 2 commit 1 refused #2 s0 2.3: promised 2.3 last 2 commit 1\n");
    CHECK_EQ(kv_replica_count(b->node[1])->cuts, 1);
    CHECK_EQ(state_of(b, 1, 0).applied, 3);
    CHECK_EQ(kv_replica_digest(b->node[1], 0, 2), kv_replica_digest(b->node[3], 0, 2));
    own(b, 1);
    VALUE(b, 1, get("a"), "-");
    VALUE(b, 1, get("b"), "y");
    end(b);
}

static kv_ask at_follower(kv_ask a) {
    a.follower = 1;
    return a;
}

static kv_ask stale(kv_ask a) {
    a.stale = 1;
    return a;
}

TEST(transcript_a_read_waits_for_its_check) {
    bench *b = &world;
    begin(b, 3);
    own(b, 1);
    ask(b, 1, get("a"));
    pass(b, 1, 2);
    ask(b, 1, get("a")); /* Too late for this check: the next begins when it has its answer. */
    pass(b, 2, 1);
    pass(b, 1, 3);
    pass(b, 3, 1); /* Of the first one, for which nobody waits any more. */
    pass(b, 1, 3);
    pass(b, 3, 1);
    SAID(b, "1>2 CHECK s0 1.1\n"
            "2>1 CHECKED s0 1.1\n"
            "1 answers ok\n"
            "1>3 CHECK s0 1.1\n"
            "3>1 CHECKED s0 1.1\n"
            "1>3 CHECK s0 1.1\n"
            "3>1 CHECKED s0 1.1\n"
            "1 answers ok\n");
    end(b);
}

TEST(transcript_an_owner_that_was_replaced_answers_no_read) {
    bench *b = &world;
    begin(b, 3);
    own(b, 1);
    takeover(b, 3);
    durable(b, 3);
    lose(b, 3, 1);
    pass(b, 3, 2);
    durable(b, 2);
    pass(b, 2, 3);
    lose(b, 3, 1);
    forget_said(b);
    ask(b, 1, get("a"));
    pass(b, 1, 2);
    pass(b, 2, 1);
    pass(b, 1, 3);
    pass(b, 3, 1);
    SAID(b, "1>2 CHECK s0 1.1\n"
            "2>1 CHECKED s0 2.3\n"
            "1>3 CHECK s0 1.1\n"
            "3>1 CHECKED s0 2.3\n");
    tick(b, 1, 10);
    SAID(b, "");
    tick(b, 1, 1);
    SAID(b, "1 answers retry\n");
    end(b);
}

TEST(transcript_a_read_at_another_replica) {
    bench *b = &world;
    begin(b, 3);
    own(b, 1);
    ask(b, 1, put("a", "x"));
    settle(b);
    forget_said(b);
    CHECK_EQ(state_of(b, 2, 0).applied, 1);
    ask(b, 2, at_follower(get("a")));
    pass(b, 2, 1);
    pass(b, 1, 2);
    pass(b, 2, 1);
    pass(b, 1, 2);
    SAID(b, "2>1 ASK_POSITION s0\n"
            "1>2 CHECK s0 1.1\n"
            "2>1 CHECKED s0 1.1\n"
            "1>2 POSITION 2\n");
    tick(b, 1, 4); /* It waits until it has heard of the commit. */
    pass(b, 1, 2);
    SAID(b, "1>2 FLOW c1#4 s0 1.1 after 2 of 1.1 commit 2\n"
            "2 answers ok \"x\" version 2\n");
    CHECK_EQ(kv_replica_count(b->node[2])->follower_reads, 1);
    end(b);
}

TEST(transcript_a_position_is_refused_by_who_does_not_own) {
    bench *b = &world;
    begin(b, 3);
    own(b, 1);
    restart(b, 1);
    ask(b, 2, at_follower(get("a")));
    pass(b, 2, 1);
    pass(b, 1, 2);
    SAID(b, "2>1 ASK_POSITION s0\n"
            "1>2 POSITION refused\n"
            "2 answers retry\n");
    end(b);
}

TEST(a_stale_read_says_how_far_behind_it_is) {
    bench *b = &world;
    begin(b, 3);
    own(b, 1);
    TOLD(b, 1, put("a", "x"), KV_ANSWER_OK, 2, 0);
    ask(b, 2, stale(get("a")));
    SAID(b, "2 answers ok\n"); /* Of the commit it has not heard. */
    heartbeat(b);
    forget_said(b);
    ask(b, 2, stale(get("a")));
    SAID(b, "2 answers ok \"x\" version 2\n");
    end(b);
}

TEST(transcript_who_was_away_for_too_long_gets_a_snapshot) {
    bench *b = &world;
    begin_with(b, 3, (kv_replica_options){.shard_count = 1, .keep_max = 2});
    own_without_3(b);
    for (int i = 0; i < 4; i++) {
        ask(b, 1, by(put("a", "x"), 7, (uint64_t)i + 1, 1, 0));
        durable(b, 1);
    }
    for (int i = 0; i < 5; i++) {
        pass(b, 1, 2);
        lose(b, 1, 3);
    }
    durable(b, 2);
    pass(b, 2, 1);
    tick(b, 1, 8);
    CHECK_EQ(state_of(b, 1, 0).base, 3);
    lose(b, 1, 3);
    forget_said(b);
    pass(b, 1, 3);
    pass(b, 3, 1);
    pass(b, 1, 3);
    CHECK_EQ(state_of(b, 3, 0).applied, 5);
    CHECK_EQ(state_of(b, 3, 0).base, 5);
    durable(b, 3);
    pass(b, 3, 1);
    SAID(b, "1>3 FLOW c2#1 s0 1.1 after 5 of 1.1 commit 5\n"
            "3>1 ACK c2#1 refused #1 s0 1.1: promised 1.1 last 0 commit 0\n"
            "1>3 FLOW c2#2 s0 1.1 snapshot of 5 piece 0 v5 put a of 1 until 5 forgotten 0 lanes 1\n"
            "3 durable\n"
            "3>1 ACK c2#2 refused #1 s0 1.1: promised 1.1 last 0 commit 0\n");
    end(b);
}

TEST(a_restarted_owner_owns_nothing_and_its_last_write_is_kept) {
    bench *b = &world;
    begin(b, 3);
    own(b, 1);
    TOLD(b, 1, put("a", "x"), KV_ANSWER_OK, 2, 0);
    restart(b, 1);
    CHECK(!state_of(b, 1, 0).owned);
    own(b, 2);
    CHECK_EQ(state_of(b, 2, 0).owner, 2);
    VALUE(b, 2, get("a"), "x");
    VALUE(b, 1, at_follower(get("a")), "x");
    VALUE(b, 3, at_follower(get("a")), "x");
    for (uint64_t version = 1; version <= 3; version++)
        for (uint32_t n = 1; n <= 2; n++)
            CHECK(kv_replica_digest(b->node[n], 0, version) == kv_replica_digest(b->node[3], 0, version));
    end(b);
}

TEST(transcript_a_failed_condition_of_a_later_attempt_is_a_record) {
    bench *b = &world;
    begin(b, 3);
    own(b, 1);
    ask(b, 1, by(with(about(KV_REQUEST_CAS, "a", "x"), 9), 7, 1, 1, 0)); /* A first one is answered like a read. */
    pass(b, 1, 2);
    pass(b, 2, 1);
    lose(b, 1, 3);
    ask(b, 1, by(with(about(KV_REQUEST_CAS, "a", "x"), 9), 7, 1, 2, 0));
    pass(b, 1, 2);
    durable(b, 1);
    durable(b, 2);
    pass(b, 2, 1);
    SAID(b, "1>2 CHECK s0 1.1\n"
            "2>1 CHECKED s0 1.1\n"
            "1 answers failed (version conflict)\n"
            "1>3 CHECK s0 1.1 LOST\n"
            "1>2 FLOW c1#3 s0 1.1 after 1 of 1.1 commit 1: failed\n"
            "1 durable\n"
            "2 durable\n"
            "2>1 ACK c1#3\n"
            "1 answers failed (version conflict)\n");
    settle(b);
    own(b, 3);
    TOLD(b, 3, by(with(about(KV_REQUEST_CAS, "a", "x"), 0), 7, 1, 3, 0), KV_ANSWER_FAILED, 0, 0); /* As it was told before. */
    end(b);
}

TEST(who_was_forgotten_is_told_so) {
    bench *b = &world;
    begin_with(b, 3, (kv_replica_options){.shard_count = 1, .session_max = 1});
    own(b, 1);
    TOLD(b, 1, by(put("a", "1"), 71, 1, 1, 0), KV_ANSWER_OK, 2, 0);
    TOLD(b, 1, by(put("a", "2"), 72, 1, 1, 0), KV_ANSWER_OK, 3, 0); /* There is room for one. */
    TOLD(b, 1, by(put("a", "1"), 71, 1, 2, 0), KV_ANSWER_UNKNOWN, 0, 0);
    TOLD(b, 1, by(put("a", "3"), 73, 1, 1, 0), KV_ANSWER_SEEN, 3, 0);
    TOLD(b, 1, by(put("a", "3"), 73, 1, 2, 3), KV_ANSWER_OK, 4, 0);
    heartbeat(b);
    own(b, 2); /* Who agrees on who is remembered. */
    TOLD(b, 2, by(put("a", "2"), 72, 1, 3, 0), KV_ANSWER_UNKNOWN, 0, 0);
    TOLD(b, 2, by(put("a", "3"), 73, 1, 3, 3), KV_ANSWER_OK, 4, 0);
    TOLD(b, 2, by(put("a", "4"), 74, 1, 1, 2), KV_ANSWER_SEEN, 5, 0);
    VALUE(b, 2, get("a"), "3");
    end(b);
}

TEST(transcript_only_the_owner_ends_what_has_expired) {
    bench *b = &world;
    begin(b, 3);
    own(b, 1);
    TOLD(b, 1, expiring(put("k", "v"), 1000), KV_ANSWER_OK, 2, 0);
    heartbeat(b);
    for (uint32_t n = 1; n <= 3; n++) kv_sim_set_clock(b->disk[n], START_MS + 5000);
    forget_said(b);
    ask(b, 2, stale(get("k")));
    SAID(b, "2 answers ok \"v\" version 2\n");
    ask(b, 1, get("k"));
    pass(b, 1, 2);
    pass(b, 2, 1); /* It is the owner; what it is to answer is not committed yet. */
    pass(b, 1, 2);
    durable(b, 1);
    durable(b, 2);
    pass(b, 2, 1);
    CHECK_EQ(kv_replica_count(b->node[1])->expired, 1);
    CHECK_EQ(kv_replica_count(b->node[2])->expired, 0);
    SAID(b, "1>2 CHECK s0 1.1\n"
            "2>1 CHECKED s0 1.1\n"
            "1>2 FLOW c1#5 s0 1.1 after 2 of 1.1 commit 2: delete k (expired)\n"
            "1 durable\n"
            "2 durable\n"
            "2>1 ACK c1#5\n"
            "1 answers ok\n");
    end(b);
}

TEST(a_damaged_replica_follows_and_does_not_vote) {
    bench *b = &world;
    begin(b, 3);
    kv_replica_free(b->node[3]);
    b->options.damaged = 1;
    boot(b, 3);
    b->options.damaged = 0;
    sync_node(b, 3);
    takeover(b, 3);
    nothing_more(b);
    takeover(b, 1);
    durable(b, 1);
    pass(b, 1, 3);
    durable(b, 3);
    CHECK_EQ(b->mail_count[3][1], 0); /* No promise. */
    own(b, 1);
    ask(b, 1, put("a", "x"));
    lose(b, 1, 2);
    pass(b, 1, 3);
    durable(b, 1);
    durable(b, 3);
    pass(b, 3, 1);
    SAID(b, "1>2 FLOW c1#3 s0 1.1 after 1 of 1.1 commit 1: put a LOST\n"
            "1>3 FLOW c1#3 s0 1.1 after 1 of 1.1 commit 1: put a\n"
            "1 durable\n"
            "3 durable\n"
            "3>1 ACK c1#3 no vote\n");
    CHECK_EQ(state_of(b, 1, 0).commit, 1);
    CHECK_EQ(state_of(b, 3, 0).last, 2);
    end(b);
}

/* --- bytes --- */

/* Right before a page that cannot be touched. */
static const uint8_t *at_edge(const uint8_t *bytes, size_t size) {
    enum { ROOM = 1 << 16 };
    static uint8_t *edge;
    if (edge == NULL) {
        uint8_t *pages = mmap(NULL, ROOM + KV_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        KV_ASSERT(pages != MAP_FAILED);
        edge = pages + ROOM;
        KV_ASSERT(mprotect(edge, KV_PAGE_SIZE, PROT_NONE) == 0);
    }
    KV_ASSERT(size <= ROOM);
    memcpy(edge - size, bytes, size);
    return edge - size;
}

/* All kinds of messages between all of them. */
static void live_a_little(bench *b) {
    b->keeping = true;
    own_without_3(b);
    settle(b);
    kv_operation all[] = {op(NULL, "{x}a", "1"), op("{x}t", "r", "2")};
    told(b, 1, by(put("a", "x"), 7, 1, 1, 0));
    told(b, 1, batch(all, 2));
    told(b, 1, expiring(put("b", "y"), 1000));
    VALUE(b, 2, at_follower(get("a")), "x");
    VALUE(b, 1, get("b"), "y");
    ask(b, 1, put("c", "z"));
    pass(b, 1, 2);
    lose(b, 1, 3);
    settle(b);
    own(b, 3);
    own(b, 2);
    b->keeping = false;
}

/* What only a policy sends. */
static void keep_more(bench *b) {
    for (int type = WIRE_PING; type <= WIRE_OFFER; type++) {
        wire_out out = {0};
        wire_begin(&out, (enum wire_type)type);
        if (type == WIRE_OFFER) wire_put_varint(&out, 0);
        wire_end(&out);
        b->keeping = true;
        keep(b, 1, (frame){.bytes = out.bytes, .size = out.size});
    }
    b->keeping = false;
}

static void receive_at_edge(bench *b, uint32_t to, uint16_t from, const uint8_t *bytes, size_t size, kv_status expected) {
    kv_status status = kv_replica_receive(b->node[to], from, at_edge(bytes, size), size);
    if (expected != KV_MORE) CHECK_EQ(status, expected);
    CHECK(status == KV_OK || status == KV_EUSAGE);
    kv_replica_flush(b->node[to]);
    kv_replica_clear(b->node[to]);
}

TEST(every_cut_of_every_message_is_refused) {
    bench *b = &world;
    uint32_t types = 0;
    uint8_t *bytes = malloc(1 << 16);
    begin_with(b, 3, (kv_replica_options){.shard_count = 1, .keep_max = 2});
    live_a_little(b);
    keep_more(b);
    for (size_t i = 0; i < b->kept_count; i++) {
        const frame *f = &b->kept[i];
        uint32_t to = b->kept_from[i] == 2 ? 3 : 2;
        KV_ASSERT(bytes != NULL && f->size <= 1 << 16);
        memcpy(bytes, f->bytes, f->size);
        types |= 1u << bytes[4];
        for (size_t cut = 0; cut < f->size; cut++) {
            kv_store32(bytes, (uint32_t)f->size - 4);
            receive_at_edge(b, to, b->kept_from[i], bytes, cut, cut == 0 ? KV_OK : KV_EUSAGE);
            if (cut < WIRE_HEAD_SIZE) continue;
            kv_store32(bytes, (uint32_t)cut - 4); /* As if that were all of it; a FLOW may end between two shards. */
            receive_at_edge(b, to, b->kept_from[i], bytes, cut, bytes[4] == WIRE_FLOW ? KV_MORE : KV_EUSAGE);
        }
    }
    CHECK_EQ(types, (1u << (WIRE_OFFER + 1)) - 2); /* Every type was among them; for values by digest there is another file. */
    free(bytes);
    end(b);
}

TEST(who_is_no_member_is_not_heard) {
    static const uint8_t check[] = {3, 0, 0, 0, WIRE_CHECK, 1, 0};
    bench *b = &world;
    begin(b, 3);
    CHECK_EQ(kv_replica_receive(b->node[1], 2, check, sizeof check), KV_OK);
    CHECK_EQ(kv_replica_receive(b->node[1], 1, check, sizeof check), KV_EUSAGE);
    CHECK_EQ(kv_replica_receive(b->node[1], 4, check, sizeof check), KV_EUSAGE);
    CHECK_EQ(kv_replica_receive(b->node[1], 0, check, sizeof check), KV_EUSAGE);
    end(b);
}

TEST(every_rule_that_can_be_left_out_has_a_name) {
    for (int32_t i = 0; i < KV_MUTATION_COUNT; i++) CHECK(kv_mutation_name(i) != NULL);
    CHECK(kv_mutation_name(-1) == NULL);
    CHECK(kv_mutation_name(KV_MUTATION_COUNT) == NULL);
}

int main(void) {
    RUN(alone_it_owns_everything);
    RUN(alone_nothing_is_answered_before_it_is_durable);
    RUN(alone_every_kind_of_write);
    RUN(alone_rows_and_tables);
    RUN(alone_a_batch_is_one_version);
    RUN(alone_time_ends_things_by_a_delete);
    RUN(alone_what_was_answered_is_there_after_a_restart);
    RUN(alone_a_lane_is_told_the_same_again_also_after_a_restart);
    RUN(alone_a_first_row_is_told_the_same_again_after_a_restart);
    RUN(what_no_replica_would_take_is_refused);
    RUN(members_that_make_no_set_are_refused);
    RUN(slots_are_those_of_redis_cluster);
    RUN(transcript_nothing_is_said_before_the_log_is_durable);
    RUN(transcript_a_takeover_is_one_round_trip);
    RUN(transcript_a_write_is_one_round_trip);
    RUN(transcript_two_others_commit_what_the_owner_has_not_on_its_disk);
    RUN(transcript_no_acknowledgement_before_the_disk);
    RUN(transcript_an_acknowledgement_goes_as_far_as_the_disk_and_no_further);
    RUN(transcript_a_record_of_an_older_ballot_is_not_counted_by_itself);
    RUN(transcript_a_hot_key_is_pipelined);
    RUN(transcript_what_came_together_goes_in_one_message);
    RUN(transcript_a_takeover_adopts_what_one_other_holds);
    RUN(transcript_a_prepare_is_refused_and_comes_again_with_a_higher_round);
    RUN(transcript_one_prepare_takes_any_number_of_shards);
    RUN(transcript_a_gap_is_told_and_the_flow_goes_on_behind_what_is_there);
    RUN(transcript_a_message_that_is_overtaken_is_sent_again);
    RUN(transcript_a_message_that_comes_twice_changes_nothing);
    RUN(transcript_a_tail_that_nobody_else_holds_is_cut);
    RUN(transcript_a_read_waits_for_its_check);
    RUN(transcript_an_owner_that_was_replaced_answers_no_read);
    RUN(transcript_a_read_at_another_replica);
    RUN(transcript_a_position_is_refused_by_who_does_not_own);
    RUN(a_stale_read_says_how_far_behind_it_is);
    RUN(transcript_who_was_away_for_too_long_gets_a_snapshot);
    RUN(a_restarted_owner_owns_nothing_and_its_last_write_is_kept);
    RUN(transcript_a_failed_condition_of_a_later_attempt_is_a_record);
    RUN(who_was_forgotten_is_told_so);
    RUN(transcript_only_the_owner_ends_what_has_expired);
    RUN(a_damaged_replica_follows_and_does_not_vote);
    RUN(every_cut_of_every_message_is_refused);
    RUN(who_is_no_member_is_not_heard);
    RUN(every_rule_that_can_be_left_out_has_a_name);
    return check_report();
}
