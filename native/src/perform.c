/* perform.c -- a command that reads, decides and writes, from the read to the batch; and commands of several slots.
 *
 *     begin      READ is asked for the slot of its keys: what is applied here is then as new as what anybody was told
 *     read       the command runs over a draft of what is applied here, and has its reply ready (draft.h)
 *     write      what it would write is asked for as one BATCH that expects what the draft saw; nothing: it is answered
 *     refused    because another write came between: from the beginning, until the time of a request is over
 *
 * A batch is executed once, however often it is sent, and one that was refused was not executed; so each run has a number
 * of its own, and the reply of the last one counts. Why it is so: docs/decisions/0034.
 *
 * Of those that want to write to one slot, one is under way at a time here, and who comes meanwhile waits for it. Then all who
 * wait go together: one read, one draft, over which they run one after the other, one batch. So a hot key costs a round trip
 * for as many as wait for it, and nobody is refused for what another client of the same replica does.
 *
 * Commands of several slots, or about all keys: parts.c. */
#include <stdlib.h>
#include <time.h>

#include "command.h"

enum { NAMES_MAX = 1024 };

static void ask_read(kv_server *server, op *o);

size_t command_key_count(const kv_command *command, size_t word_count) {
    if (command->first == 0 || word_count <= (size_t)command->first) return 0;
    size_t last = command->last < 0 ? word_count - (size_t)-command->last : (size_t)command->last;
    return last < (size_t)command->first ? 0 : (last - (size_t)command->first) / (size_t)command->step + 1;
}

size_t command_key_at(const kv_command *command, size_t n) { return (size_t)command->first + n * (size_t)command->step; }

static int64_t wall_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (int64_t)now.tv_sec * 1000 + (int64_t)now.tv_nsec / 1000000;
}

/* --- which keys --- */

/* All keys of what it is, of its queue, and what its client watches. */
typedef struct key_walk {
    const op *at;
    const list *watched; /* EXEC; else NULL */
    size_t next;
} key_walk;

static bool is_exec(const op *o) { return o->command->run == exec_run; }

static key_walk walk_begin(const op *o) {
    bool exec = is_exec(o);
    return (key_walk){.at = exec ? o->queue : o, .watched = exec && o->client != NULL ? &o->client->watched : NULL};
}

static bool walk_next(const op *o, key_walk *w, text *out) {
    for (; w->at != NULL; w->at = is_exec(o) ? w->at->next : NULL, w->next = 0) {
        if (w->next >= command_key_count(w->at->command, w->at->word_count)) continue;
        *out = word_text(w->at, command_key_at(w->at->command, w->next++));
        return true;
    }
    if (w->watched == NULL || w->next >= w->watched->count) return false;
    *out = LIST(watched_key, w->watched)[w->next++].name;
    return true;
}

/* Of how many slots they are, as far as that matters: with one shard all are one. */
enum spread { SPREAD_NONE, SPREAD_ONE, SPREAD_MANY, SPREAD_BAD };

static enum spread spread_of(const kv_server *server, const op *o, size_t *count) {
    enum spread found = SPREAD_NONE;
    key_walk w = walk_begin(o);
    uint16_t slot = 0;
    text key;
    *count = 0;
    while (walk_next(o, &w, &key)) {
        if (key.size == 0 || key.size > KV_KEY_SIZE_MAX) return SPREAD_BAD;
        uint16_t other = server->shard_count == 1 ? 0 : kv_slot_of(key.at, key.size);
        if (++*count == 1) slot = other;
        if (found == SPREAD_NONE || slot == other) found = found == SPREAD_MANY ? found : SPREAD_ONE;
        else found = SPREAD_MANY;
    }
    return found;
}

/* --- one run --- */

static call call_of(kv_server *server, op *o, draft *v) {
    return (call){.server = server, .client = o->client, .op = o, .command = o->command, .draft = v,
                  .bytes = o->bytes.bytes, .words = o->words, .count = o->word_count, .out = &o->reply,
                  .protocol = op_protocol(o)};
}

static void run_all(kv_server *server, op *o) {
    draft_begin(o->draft, kv_replica_caller(server->replica), wall_ms());
    o->reply.size = 0;
    call c = call_of(server, o, o->draft);
    o->command->run(&c);
    for (op *mate = o->group; mate != NULL; mate = mate->mate) {
        mate->reply.size = 0;
        c = call_of(server, mate, o->draft);
        mate->command->run(&c);
    }
}

/* It and its group are answered, as what they said is what has come to be. */
static void all_done(kv_server *server, op *o) {
    op *mate = o->group;
    o->group = NULL;
    channels_say(server, &o->draft->messages);
    op_done(server, o);
    for (op *next; mate != NULL; mate = next) {
        next = mate->mate;
        op_done(server, mate);
    }
}

/* --- who is under way in a slot --- */

bool group_takes(group_size *size, const op *o) {
    size->count++;
    size->bytes += o->bytes.size;
    return size->count <= GROUP_MAX && size->bytes <= GROUP_SIZE_MAX;
}

/* A transaction goes alone: what it watches is to be as the store has it, and not as others before it left it. */
static void lead(kv_server *server, op *o) {
    op **last = &o->group;
    group_size size = {0};
    server->leaders[o->slot] = o;
    o->leads = true;
    group_takes(&size, o);
    for (; *last != NULL; last = &(*last)->mate) group_takes(&size, *last); /* Those of its client that come with it. */
    while (!is_exec(o) && o->behind != NULL && !is_exec(o->behind) && group_takes(&size, o->behind)) {
        *last = o->behind;
        last = &o->behind->mate;
        o->behind = o->behind->mate;
    }
    *last = NULL;
    if (o->behind == NULL) o->behind_last = &o->behind;
    ask_read(server, o);
}

void perform_release(kv_server *server, op *leader) {
    op *next = leader->behind;
    leader->leads = false;
    server->leaders[leader->slot] = NULL;
    if (next == NULL) return;
    next->behind = next->mate;
    next->behind_last = next->mate == NULL ? &next->behind : leader->behind_last;
    next->mate = NULL;
    lead(server, next);
}

/* What reads only waits for nobody. */
static void take_turn(kv_server *server, op *o) {
    key_walk w = walk_begin(o);
    text key;
    if ((o->command->flags & COMMAND_WRITE) == 0 || !walk_next(o, &w, &key)) {
        ask_read(server, o);
        return;
    }
    o->slot = kv_slot_of(key.at, key.size);
    op *leader = server->leaders[o->slot];
    if (leader == NULL) {
        lead(server, o);
        return;
    }
    o->mate = o->group;
    o->group = NULL;
    *leader->behind_last = o;
    while (*leader->behind_last != NULL) leader->behind_last = &(*leader->behind_last)->mate;
}

/* One of them cannot be done together with the others, or at all: the first goes alone, and then the rest. */
static bool dissolved(kv_server *server, op *o) {
    op *last = o->group;
    if (last == NULL) return false;
    while (last->mate != NULL) last = last->mate;
    last->mate = o->behind;
    if (o->behind == NULL) o->behind_last = &last->mate;
    o->behind = o->group;
    o->group = NULL;
    ask_read(server, o);
    return true;
}

/* It cannot be answered now; it is asked again if all it lacks is bytes that are elsewhere. */
static void give_up_draft(kv_server *server, op *o) {
    if (o->draft->failed == KV_ELACKING) request_fetch(server, o);
    else if (o->draft->refused != NULL) request_give_up(server, o, o->draft->refused);
    else if (o->draft->failed == KV_ENOMEM) request_give_up(server, o, NO_MEMORY);
    else if (o->draft->failed == KV_ECORRUPT && server_ends(server)) return; /* Without an answer: the client asks another one. */
    else request_give_up(server, o, "UNAVAILABLE what is asked for cannot be read here");
}

static void names_add(draft *v, const op *o) {
    key_walk w = walk_begin(o);
    text key;
    while (v->operations.count < NAMES_MAX && walk_next(o, &w, &key)) {
        kv_operation *one = list_add(&v->operations, sizeof *one);
        if (one == NULL) return; /* It is the deletes of what is over that would wait. */
        *one = (kv_operation){.key = key.at, .key_size = (uint32_t)key.size};
    }
}

/* The names that are read, so that who owns them can see what of them is over. */
static void ask_read(kv_server *server, op *o) {
    draft *v = op_draft(o);
    o->phase = PHASE_READ;
    if (v == NULL) {
        request_give_up(server, o, NO_MEMORY);
        return;
    }
    o->ask = (kv_ask){.kind = KV_REQUEST_READ};
    for (const op *one = o; one != NULL; one = one == o ? o->group : one->mate) names_add(v, one);
    if (v->operations.count == 0) {
        request_give_up(server, o, NO_MEMORY);
        return;
    }
    o->ask.operations = LIST(kv_operation, &v->operations);
    o->ask.operation_count = v->operations.count;
    request_ask(server, o);
}

static void has_read(kv_server *server, op *o) {
    draft *v = o->draft;
    run_all(server, o);
    if (!draft_finish(v)) {
        bool waits = v->failed == KV_ELACKING && !request_is_over(server, o);
        if (waits || !dissolved(server, o)) give_up_draft(server, o);
    } else if (v->operations.count == 0) {
        all_done(server, o);
    } else {
        o->phase = PHASE_WRITE;
        o->ask = (kv_ask){.kind = KV_REQUEST_BATCH,
                          .operations = LIST(kv_operation, &v->operations),
                          .operation_count = v->operations.count,
                          .expectations = LIST(kv_expectation, &v->expectations),
                          .expectation_count = v->expectations.count};
        request_ask(server, o);
    }
}

/* A hash became a string, or the other way round: as if a version had changed. Nothing to be done: all of it stands. */
static void has_written(kv_server *server, op *o, const kv_reply *reply) {
    bool stands = reply->status == KV_ANSWER_OK || (reply->status == KV_ANSWER_FAILED && reply->error == KV_ABSENT);
    bool conflict = reply->status == KV_ANSWER_FAILED && !stands;
    if (stands) all_done(server, o);
    else if (!conflict && !dissolved(server, o)) request_give_up(server, o, words_of(reply->error));
    else if (!conflict) return;
    else if (request_is_over(server, o)) request_give_up(server, o, "TRYAGAIN others write to these keys all the time");
    else ask_read(server, o);
}

void perform_answered(kv_server *server, op *o, const kv_reply *reply) {
    if (o->phase == PHASE_WRITE) has_written(server, o, reply);
    else if (reply->status != KV_ANSWER_OK) request_give_up(server, o, words_of(reply->error));
    else if (o->phase == PHASE_SURE) op_done(server, o);
    else has_read(server, o);
}

/* Of a shard after the other, where it is about all of them: what they hold may be another by now. */
void perform_again(kv_server *server, op *o) {
    o->waits = false;
    if ((o->command->flags & COMMAND_ALL) != 0) parts_make_sure(server, o);
    else ask_read(server, o);
}

/* Without a batch behind it. False: it has been given up, or put off. */
bool perform_run(kv_server *server, op *o) {
    run_all(server, o);
    bool good = draft_finish(o->draft);
    if (good) channels_say(server, &o->draft->messages);
    else give_up_draft(server, o);
    return good;
}

static void reply_count_wrong(kv_server *server, op *o) {
    resp_put_error(&o->reply, "ERR wrong number of arguments for '%s' command", o->command->name);
    server->figures.errors++;
    op_done(server, o);
}

void perform_begin(kv_server *server, op *o) {
    size_t count;
    uint32_t flags = o->command->flags;
    enum spread spread = spread_of(server, o, &count);
    bool in_pairs = o->command->step != 2 || o->word_count % 2 != 0; /* Else it says so itself. */
    bool in_parts = (flags & COMMAND_SLOTS) != 0 && in_pairs && (spread == SPREAD_MANY || count > PART_KEYS_MAX);
    o->phase = PHASE_READ;
    if (spread == SPREAD_BAD) request_give_up(server, o, words_of(KV_EKEYSIZE));
    else if ((flags & COMMAND_ALL) != 0 && needs_all(o)) parts_make_sure(server, o);
    else if (in_parts && o->parent == NULL) parts_split(server, o, count);
    else if (spread == SPREAD_MANY && !in_pairs) reply_count_wrong(server, o);
    else if (spread == SPREAD_MANY) request_give_up(server, o, "CROSSSLOT Keys in request don't hash to the same slot");
    else if (spread == SPREAD_ONE) take_turn(server, o);
    else if (op_draft(o) == NULL) request_give_up(server, o, NO_MEMORY);
    else if ((flags & COMMAND_ALL) != 0) perform_sure(server, o);
    else if (perform_run(server, o)) op_done(server, o);
}
