/* transcript.h -- replicas of a set in one process, between which a test carries the messages by hand, and what is told of it.
 *
 * A transcript is what is asked, every message as it arrives or is lost, every disk as it catches up, every answer. The
 * whole of it is compared, so no message comes that is not in it. A line of it:
 *
 *     1>2 FLOW c1#2 s0 1.1 after 1 of 1.1 commit 1: put a
 *
 * from 1 to 2, on 1's first connection the second message: of shard 0, under ballot 1.1 (round.node), behind version 1,
 * which is of ballot 1.1, while version 1 is committed, the record of a put. */
#ifndef KV_TRANSCRIPT_H
#define KV_TRANSCRIPT_H

/* No test uses all of what is shared here. */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"

#include <stdarg.h>

#include "../src/replica_internal.h"
#include "check.h"
#include "kv/io_sim.h"

enum { NODES = 5, MAIL_MAX = 64, ANSWERS_MAX = 256, TRANSCRIPT_SIZE = 1 << 14, VALUE_MAX = 64, KEPT_MAX = 256 };
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
    char story[TRANSCRIPT_SIZE]; /* the same and more, if it is drawn */
    size_t story_size;
    bool drawn;
    uint64_t tails[NODES + 1]; /* of the logs, as they were told */
    frame kept[KEPT_MAX]; /* what was carried, if `keeping` */
    uint16_t kept_from[KEPT_MAX];
    size_t kept_count;
    bool keeping;
} bench;

/* --- the transcript --- */

static void text_add(char *text, size_t *size, const char *format, va_list arguments) {
    *size += (size_t)vsnprintf(text + *size, TRANSCRIPT_SIZE - *size, format, arguments);
    KV_ASSERT(*size < TRANSCRIPT_SIZE);
}

/* What a drawing shows and a transcript leaves out. */
static void __attribute__((format(printf, 2, 3))) tell(bench *b, const char *format, ...) {
    va_list arguments;
    if (!b->drawn) return;
    va_start(arguments, format);
    text_add(b->story, &b->story_size, format, arguments);
    va_end(arguments);
}

static void __attribute__((format(printf, 2, 3))) say(bench *b, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    text_add(b->text, &b->text_size, format, arguments);
    va_end(arguments);
    if (!b->drawn) return;
    va_start(arguments, format);
    text_add(b->story, &b->story_size, format, arguments);
    va_end(arguments);
}

static void say_ballot(bench *b, uint64_t ballot) {
    if (ballot == 0) say(b, " 0");
    else say(b, " %llu.%u", (unsigned long long)ballot_round(ballot), ballot_node(ballot));
}

static void say_number(bench *b, const char *word, uint64_t number) { say(b, " %s%llu", word, (unsigned long long)number); }

static void say_nodes(bench *b, const members *m) {
    for (uint32_t i = 0; i < m->count; i++) say(b, " %u", m->nodes[i]);
}

static void say_record(bench *b, const kv_record *r) {
    static const char *const names[] = {[KV_KIND_PUT] = "put", [KV_KIND_DELETE] = "delete", [KV_KIND_ROW_PUT] = "row put",
                                        [KV_KIND_ROW_DELETE] = "row delete", [KV_KIND_TABLE_NEW] = "table",
                                        [KV_KIND_TABLE_DROP] = "drop", [KV_KIND_BARRIER] = "barrier",
                                        [KV_KIND_SESSION] = "failed", [KV_KIND_CONFIG] = "members", [KV_KIND_DATA] = "bytes",
                                        [KV_KIND_FORGET] = "forget"};
    members m;
    say(b, " %s", names[r->kind]);
    if (r->kind == KV_KIND_CONFIG && members_parse(r->value, r->value_size, &m)) say_nodes(b, &m);
    if (r->kind == KV_KIND_DATA) {
        say(b, " %.*s", (int)r->value_size, (const char *)r->value);
        return;
    }
    if (r->key_size != 0) say(b, " %.*s", (int)r->key_size, (const char *)r->key);
    if (r->flags & KV_FLAG_EXPIRED) say(b, " (expired)");
    if (r->flags & KV_FLAG_META) say(b, " (by digest)");
}

/* A version: its records with a + between them, and its ballot where that is not the message's. */
static void say_version(bench *b, wire_in *in) {
    uint64_t count = wire_take_varint(in);
    uint8_t how = wire_take8(in);
    if (how & VERSION_BALLOT) say_ballot(b, wire_take64(in));
    if (how & VERSION_GONE) say(b, " gone");
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

/* Where they are not those that the set began with. */
static void say_members(bench *b, wire_in *in) {
    members m, first = {.count = b->options.member_count};
    memcpy(first.nodes, b->options.members, sizeof first.nodes);
    wire_take_members(in, &m);
    if (m.count == first.count && memcmp(m.nodes, first.nodes, 2 * m.count) == 0) return;
    say(b, " members");
    say_nodes(b, &m);
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
    say_members(b, in);
    say_number(b, "forgotten ", wire_take_varint(in));
    uint64_t count = wire_take_varint(in);
    say_number(b, "lanes ", count);
    wire_take_bytes(in, 38 * count);
}

static void say_flow(bench *b, uint32_t from, uint32_t to, wire_in *in) {
    say_connection(b, from, to, in);
    wire_take_varint(in); /* Of which acknowledgements it knows. */
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
        uint8_t what = wire_take8(in);
        say_number(b, "s", wire_take_varint(in));
        if (what == 2) {
            say(b, " you are no member");
            continue;
        }
        if (what == 0) {
            say(b, " refused, promised");
            say_ballot(b, wire_take64(in));
            continue;
        }
        say_number(b, "commit ", wire_take_varint(in));
        uint64_t ballot = wire_take64(in);
        say_number(b, "last ", wire_take_varint(in));
        say(b, " of");
        say_ballot(b, ballot);
        say_members(b, in);
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

static void say_name(bench *b, wire_in *in) {
    uint8_t what = wire_take8(in);
    for (int bit = 1; bit <= 2; bit *= 2) {
        if ((what & bit) == 0) continue;
        uint64_t size = wire_take_varint(in);
        const uint8_t *bytes = wire_take_bytes(in, size);
        say(b, "%s%.*s", bit == 2 && (what & 1) ? "/" : " ", (int)size, (const char *)bytes);
    }
}

static void say_question(bench *b, wire_in *in) {
    wire_take_varint(in);
    while (wire_take8(in) == 1) {
        say_number(b, "s", wire_take_varint(in));
        uint64_t count = wire_take_varint(in);
        for (uint64_t i = 0; i < count; i++) say_name(b, in);
    }
}

static void say_position(bench *b, wire_in *in) {
    uint64_t count = wire_take_varint(in);
    for (uint64_t i = 0; i < count; i++) {
        wire_take_varint(in);
        say_number(b, "s", wire_take_varint(in));
        bool good = wire_take8(in) != 0;
        uint64_t position = wire_take_varint(in);
        if (good) say_number(b, "", position);
        else say(b, " refused");
    }
}

static void say_ping(bench *b, wire_in *in) {
    uint64_t count = wire_take_varint(in);
    for (uint64_t i = 0; i < count; i++) {
        uint64_t node = wire_take_varint(in);
        uint8_t flags = wire_take8(in);
        uint64_t links = wire_take_varint(in);
        if (i != 0 && flags != 0) say_number(b, "hears ", node);
        if (flags == 3) say(b, " and is heard");
        if (links != 0) say_number(b, "links ", links);
    }
}

static void say_content(bench *b, wire_in *in) {
    kv_meta meta;
    const uint8_t *bytes = wire_take_bytes(in, KV_META_SIZE);
    KV_ASSERT(bytes != NULL && kv_meta_decode(bytes, KV_META_SIZE, &meta));
    say(b, " %u.%llu", meta.origin, (unsigned long long)(meta.number & 0xFFFFFFFF));
}

/* FETCH: what and from where on; BYTES: the same, as it comes. */
static void say_fetch(bench *b, wire_in *in, bool comes) {
    uint64_t count = comes ? 1 : wire_take_varint(in);
    for (uint64_t i = 0; i < count; i++) {
        if (i != 0) say(b, ",");
        say_content(b, in);
        say_number(b, "from ", wire_take_varint(in));
        uint64_t size = wire_take_varint(in);
        say_number(b, "size ", size);
        if (comes) wire_take_bytes(in, size);
    }
}

static void say_held(bench *b, wire_in *in, bool asked) {
    uint64_t count = wire_take_varint(in);
    for (uint64_t i = 0; i < count; i++) {
        if (i != 0) say(b, ",");
        say_content(b, in);
        if (!asked && wire_take8(in) == 0) say(b, " not");
    }
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
    case WIRE_ASK_POSITION: say_question(b, &body); break;
    case WIRE_PING: say_ping(b, &body); break;
    case WIRE_POSITION: say_position(b, &body); break;
    case WIRE_OFFER: say_number(b, "s", wire_take_varint(&body)); break;
    case WIRE_FETCH:
    case WIRE_BYTES: say_fetch(b, &body, type == WIRE_BYTES); break;
    case WIRE_ASK_HELD:
    case WIRE_HELD: say_held(b, &body, type == WIRE_ASK_HELD); break;
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

/* --- what is drawn --- */

static bool telling; /* by --tell on the command line */

static void scenario_end(bench *b) {
    if (b->drawn && telling) printf("%send\n", b->story);
    b->drawn = false;
    b->story_size = 0;
    b->story[0] = 0;
}

/* From here to the end of the test, or to the next one, the transcript is a scenario: tests/sim/scenarios.py draws it. */
static void scenario(bench *b, const char *title, const char *about) {
    scenario_end(b);
    b->drawn = true;
    for (uint32_t n = 1; n <= b->count; n++) b->tails[n] = kv_replica_tail(b->node[n]);
    tell(b, "scenario %s\nabout %s\n", title, about);
}

static void note(bench *b, const char *text) { tell(b, "note %s\n", text); }

static void tell_log(bench *b, uint32_t n) {
    uint64_t tail = kv_replica_tail(b->node[n]);
    if (tail != b->tails[n]) tell(b, "%u logs\n", n);
    b->tails[n] = tail;
}

static void tell_ask(bench *b, uint32_t to, const kv_ask *a) {
    static const char *const names[KV_REQUEST_KIND_END] = {
        [KV_REQUEST_GET] = "get", [KV_REQUEST_READ] = "read", [KV_REQUEST_PUT] = "put", [KV_REQUEST_DELETE] = "delete",
        [KV_REQUEST_CAS] = "cas", [KV_REQUEST_INCR] = "incr", [KV_REQUEST_APPEND] = "append", [KV_REQUEST_EXPIRE] = "expire",
        [KV_REQUEST_ROW_APPEND] = "row append", [KV_REQUEST_DROP] = "drop", [KV_REQUEST_BATCH] = "batch",
        [KV_REQUEST_TRIM] = "trim", [KV_REQUEST_WAIT] = "wait"};
    if (!b->drawn) return;
    tell(b, "client>%u %s", to, names[a->kind]);
    if (a->key_size != 0) tell(b, " %.*s", (int)a->key_size, (const char *)a->key);
    if (a->value_size != 0) tell(b, " = \"%.*s\"", (int)a->value_size, (const char *)a->value);
    if (a->kind == KV_REQUEST_INCR) tell(b, " by %lld", (long long)a->argument);
    if (a->kind == KV_REQUEST_BATCH) tell(b, " of %zu", a->operation_count);
    if (a->stale) tell(b, ", stale");
    if (a->follower) tell(b, ", at a follower");
    if (a->client != 0)
        tell(b, " (client %llu, number %llu, attempt %u)", (unsigned long long)a->client, (unsigned long long)a->number, a->attempt);
    tell(b, "\n");
}

/* --- the world --- */

static void flush(bench *b, uint32_t n) {
    tell_log(b, n);
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
    tell(b, "%u waits %u\n", n, count);
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
    options.joins = n > options.member_count;
    kv_status status = kv_replica_open(kv_sim_io(b->disk[n]), &options, &fault, &b->node[n]);
    if (status != KV_OK) printf("open: %s\n", fault.what);
    KV_ASSERT(status == KV_OK);
    for (uint32_t i = 1; i <= b->count; i++)
        if (i != n) CHECK_EQ(kv_replica_meet(b->node[n], (uint16_t)i), KV_OK);
}

static void boot_new(bench *b, uint32_t n) {
    b->disk[n] = kv_sim_new();
    kv_sim_set_recording(b->disk[n], 0);
    kv_sim_set_clock(b->disk[n], START_MS);
    boot(b, n);
    sync_node(b, n);
}

static void begin_with(bench *b, uint32_t count, kv_replica_options options) {
    memset(b, 0, sizeof *b);
    b->count = count;
    b->options = options;
    b->options.member_count = count;
    if (b->options.heartbeat_ticks == 0) b->options.heartbeat_ticks = 4;
    if (b->options.store.segment_size_max == 0) b->options.store.segment_size_min = b->options.store.segment_size_max = 1 << 16;
    for (uint32_t n = 1; n <= count; n++) b->options.members[n - 1] = (uint16_t)n;
    for (uint32_t n = 1; n <= count; n++) boot_new(b, n);
}

/* One more, that is no member of anything. */
static uint32_t join(bench *b) {
    uint32_t fresh = ++b->count;
    tell(b, "%u starts\n", fresh);
    for (uint32_t n = 1; n < fresh; n++)
        if (b->node[n] != NULL) CHECK_EQ(kv_replica_meet(b->node[n], (uint16_t)fresh), KV_OK);
    boot_new(b, fresh);
    return fresh;
}

static void begin(bench *b, uint32_t count) { begin_with(b, count, (kv_replica_options){.shard_count = 1}); }

static void end(bench *b) {
    scenario_end(b);
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
static void crash(bench *b, uint32_t n) {
    tell(b, "%u crashes\n", n);
    kv_replica_free(b->node[n]);
    b->node[n] = NULL;
    for (uint32_t to = 1; to <= b->count; to++)
        while (b->mail_count[n][to] != 0) free(mail_take(b, n, to).bytes);
}

static void restart(bench *b, uint32_t n) {
    if (b->node[n] != NULL) crash(b, n);
    tell(b, "%u restarts\n", n);
    boot(b, n);
    sync_node(b, n);
}

static kv_shard_state state_of(const bench *b, uint32_t n, uint32_t number) {
    kv_shard_state state;
    kv_replica_shard(b->node[n], number, &state);
    return state;
}

static void takeover(bench *b, uint32_t n) {
    tell(b, "%u takes over\n", n);
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

/* What 1 owns is known to 2, and 3 was cut off from the beginning. */
static void own_without_3(bench *b) {
    takeover(b, 1);
    durable(b, 1);
    pass(b, 1, 2);
    lose(b, 1, 3);
    durable(b, 2);
    pass(b, 2, 1);
}

/* --- asking --- */

/* Beside others that come with it. */
static uint64_t ask_beside(bench *b, uint32_t n, kv_ask a) {
    a.token = ++b->token;
    if (a.attempt == 0) a.attempt = 1;
    tell_ask(b, n, &a);
    kv_replica_request(b->node[n], &a);
    return a.token;
}

static uint64_t ask(bench *b, uint32_t n, kv_ask a) {
    uint64_t token = ask_beside(b, n, a);
    flush(b, n);
    return token;
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

static kv_ask at_follower(kv_ask a) {
    a.follower = 1;
    return a;
}

static kv_ask stale(kv_ask a) {
    a.stale = 1;
    return a;
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

static void check_told(bench *b, uint32_t n, kv_ask a, int32_t status, uint64_t version, int64_t number, const char *file,
                       int line) {
    answer is = told(b, n, a);
    if (is.reply.status == status && is.reply.version == version && is.reply.number == number) return;
    check_failed_here = 1;
    printf("%s:%d: answered %d (%s), version %llu, number %lld\n", file, line, is.reply.status, kv_status_name(is.reply.error),
           (unsigned long long)is.reply.version, (long long)is.reply.number);
}
#define TOLD(b, n, a, status, version, number) check_told(b, n, a, status, version, number, __FILE__, __LINE__)

static void check_value(bench *b, uint32_t n, kv_ask a, const char *value, const char *file, int line) {
    answer is = told(b, n, a);
    const char *text = is.reply.status != KV_ANSWER_OK ? kv_status_name(is.reply.error) : is.reply.value_size < 0 ? "-" : is.value;
    if (strcmp(text, value) == 0) return;
    check_failed_here = 1;
    printf("%s:%d: read \"%s\", not \"%s\"\n", file, line, text, value);
}
#define VALUE(b, n, a, value) check_value(b, n, a, value, __FILE__, __LINE__)

static bench world; /* too large for a stack */

#pragma GCC diagnostic pop
#endif
