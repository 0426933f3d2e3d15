/* perform.c -- a command that reads, decides and writes, from the read to the batch; and commands of several slots.
 *
 *     begin      READ is asked for the slot of its keys: what is applied here is then as new as what anybody was told
 *     read       the command runs over a view of what is applied here, and has its reply ready (view.h)
 *     write      what it would write is asked for as one BATCH that expects what the view saw; nothing: it is answered
 *     refused    because another write came between: from the beginning, until the time of a request is over
 *
 * A batch is executed once, however often it is sent, and one that was refused was not executed; so each run has a number
 * of its own, and the reply of the last one counts. Why it is so: docs/decisions/0034.
 *
 * Of those that want to write to one slot, one is under way at a time here, and who comes meanwhile waits for it. Then all who
 * wait go together: one read, one view, over which they run one after the other, one batch. So a hot key costs a round trip
 * for as many as wait for it, and nobody is refused for what another client of the same replica does.
 *
 * A command of several slots is done in parts, an op for each slot, and their replies are put together. What looks at all
 * keys makes sure of every shard first, and then reads what is applied here. */
#include <stdlib.h>
#include <time.h>

#include "command.h"

enum { PART_KEYS_MAX = 512, NAMES_MAX = 1024, GROUP_MAX = 64 };

static void part_all(kv_server *server, op *o, size_t key_count);
static void make_sure(kv_server *server, op *o);
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

static call call_of(kv_server *server, op *o, view *v) {
    return (call){.server = server, .client = o->client, .op = o, .command = o->command, .view = v,
                  .bytes = o->bytes.bytes, .words = o->words, .count = o->word_count, .out = &o->reply,
                  .protocol = op_protocol(o)};
}

static void run_all(kv_server *server, op *o) {
    view_begin(o->view, kv_replica_caller(server->replica), wall_ms());
    o->reply.size = 0;
    call c = call_of(server, o, o->view);
    o->command->run(&c);
    for (op *mate = o->group; mate != NULL; mate = mate->mate) {
        mate->reply.size = 0;
        c = call_of(server, mate, o->view);
        mate->command->run(&c);
    }
}

/* It and its group are answered, as what they said is what has come to be. */
static void all_done(kv_server *server, op *o) {
    op *mate = o->group;
    o->group = NULL;
    op_done(server, o);
    for (op *next; mate != NULL; mate = next) {
        next = mate->mate;
        op_done(server, mate);
    }
}

/* --- who is under way in a slot --- */

/* A transaction goes alone: what it watches is to be as the store has it, and not as others before it left it. */
static void lead(kv_server *server, op *o) {
    op **last = &o->group;
    server->leaders[o->slot] = o;
    o->leads = true;
    for (size_t count = 1; count < GROUP_MAX && !is_exec(o) && o->behind != NULL && !is_exec(o->behind); count++) {
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
    *leader->behind_last = o;
    leader->behind_last = &o->mate;
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

static void give_up_view(kv_server *server, op *o) {
    if (o->view->refused != NULL) request_give_up(server, o, o->view->refused);
    else if (o->view->failed == KV_ENOMEM) request_give_up(server, o, NO_MEMORY);
    else request_give_up(server, o, "UNAVAILABLE what is asked for cannot be read here");
}

static void names_add(view *v, const op *o) {
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
    view *v = op_view(o);
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
    view *v = o->view;
    run_all(server, o);
    if (!view_finish(v)) {
        if (!dissolved(server, o)) give_up_view(server, o);
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

static bool time_is_over(const kv_server *server, const op *o) {
    return (server->ticks - o->since) * server->options.tick_ms >= server->options.request_ms;
}

/* A hash became a string, or the other way round: as if a version had changed. Nothing to be done: all of it stands. */
static void has_written(kv_server *server, op *o, const kv_reply *reply) {
    bool stands = reply->status == KV_ANSWER_OK || (reply->status == KV_ANSWER_FAILED && reply->error == KV_ABSENT);
    bool conflict = reply->status == KV_ANSWER_FAILED && !stands;
    if (stands) all_done(server, o);
    else if (!conflict && !dissolved(server, o)) request_give_up(server, o, words_of(reply->error));
    else if (!conflict) return;
    else if (time_is_over(server, o)) request_give_up(server, o, "TRYAGAIN others write to these keys all the time");
    else ask_read(server, o);
}

void perform_answered(kv_server *server, op *o, const kv_reply *reply) {
    if (o->phase == PHASE_WRITE) has_written(server, o, reply);
    else if (reply->status != KV_ANSWER_OK) request_give_up(server, o, words_of(reply->error));
    else if (o->phase == PHASE_SURE) op_done(server, o);
    else has_read(server, o);
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
    else if ((flags & COMMAND_ALL) != 0 && needs_all(o)) make_sure(server, o);
    else if (in_parts && o->parent == NULL) part_all(server, o, count);
    else if (spread == SPREAD_MANY && !in_pairs) reply_count_wrong(server, o);
    else if (spread == SPREAD_MANY) request_give_up(server, o, "CROSSSLOT Keys in request don't hash to the same slot");
    else if (spread == SPREAD_ONE) take_turn(server, o);
    else if (op_view(o) == NULL) request_give_up(server, o, NO_MEMORY);
    else {
        run_all(server, o);
        if (view_finish(o->view)) op_done(server, o);
        else give_up_view(server, o);
    }
}

/* --- parts --- */

/* The parts are there; they may end while others are only beginning, and the last of them ends the whole. */
static void parts_begin(kv_server *server, op *o, void (*joined)(kv_server *server, op *o)) {
    o->phase = PHASE_PARTS;
    o->joined = joined;
    o->part_count++; /* This function's own, so that the whole outlives its loop. */
    for (op *part = o->parts, *next; part != NULL; part = next) {
        next = part->next;
        bool begun = part->phase != PHASE_SURE && part->command->begin != NULL && part->command->begin(server, part);
        if (part->phase == PHASE_SURE) request_ask(server, part);
        else if (!begun) perform_begin(server, part);
    }
    part_done(server, o);
}

void part_done(kv_server *server, op *parent) {
    if (--parent->part_count == 0) parent->joined(server, parent);
}

static void parts_fail(kv_server *server, op *o) {
    op_drop(server, o->parts);
    o->parts = NULL;
    o->part_count = 0;
    request_give_up(server, o, NO_MEMORY);
}

/* The first error among the parts, which is then the reply. */
static bool parts_failed(kv_server *server, op *o) {
    for (const op *part = o->parts; part != NULL; part = part->next) {
        if (part->reply.size == 0 || part->reply.bytes[0] != '-') continue;
        o->reply.size = 0;
        wire_put_bytes(&o->reply, part->reply.bytes, part->reply.size);
        op_done(server, o);
        return true;
    }
    return false;
}

typedef struct placed {
    uint32_t slot, place;
} placed;

static int by_slot(const void *left, const void *right) {
    const placed *a = left, *b = right;
    if (a->slot != b->slot) return a->slot < b->slot ? -1 : 1;
    return a->place < b->place ? -1 : a->place > b->place;
}

/* The keys in the order in which the parts have them: by slot, then as they were said. NULL: no memory. */
static placed *places_of(const kv_server *server, const op *o, size_t count) {
    placed *all = malloc(count * sizeof *all);
    for (size_t i = 0; all != NULL && i < count; i++) {
        text key = word_text(o, command_key_at(o->command, i));
        all[i] = (placed){server->shard_count == 1 ? 0 : kv_slot_of(key.at, key.size), (uint32_t)i};
    }
    if (all != NULL) qsort(all, count, sizeof *all, by_slot);
    return all;
}

/* One reply behind the other, element by element: a bulk string or a null. */
static void element_skip(const uint8_t **at) {
    const uint8_t *line = *at, *end = line;
    while (*end != '\n') end++;
    int64_t size = line[0] == '$' ? strtoll((const char *)line + 1, NULL, 10) : -1;
    *at = end + 1 + (size < 0 ? 0 : size + 2);
}

/* Which part's turn it is, for every key in the order of the command. */
static void gather(op *o, const placed *places, size_t count, const uint8_t **found) {
    const op *part = o->parts;
    const uint8_t *at = NULL;
    size_t in_part = 0;
    for (size_t i = count; i-- > 0;) { /* The last part is the first in the list. */
        if (i + 1 == count || in_part == 0) {
            if (i + 1 != count) part = part->next;
            in_part = part->word_count - 1;
            at = part->reply.bytes;
            element_skip(&at); /* The head of the array. */
            const uint8_t *element = at;
            for (size_t k = 0; k < in_part; k++) {
                found[places[i + 1 - in_part + k].place] = element;
                element_skip(&element);
            }
        }
        in_part--;
    }
}

static void joined_values(kv_server *server, op *o) {
    size_t count = o->word_count - 1;
    if (parts_failed(server, o)) return;
    placed *places = places_of(server, o, count);
    const uint8_t **found = calloc(count, sizeof *found);
    if (places != NULL && found != NULL) {
        gather(o, places, count, found);
        o->reply.size = 0;
        resp_put_array(&o->reply, count);
        for (size_t i = 0; i < count; i++) {
            const uint8_t *end = found[i];
            element_skip(&end);
            wire_put_bytes(&o->reply, found[i], (size_t)(end - found[i]));
        }
        op_done(server, o);
    } else {
        request_give_up(server, o, NO_MEMORY);
    }
    free(places);
    free(found);
}

static void joined_sum(kv_server *server, op *o) {
    int64_t sum = 0;
    if (parts_failed(server, o)) return;
    for (const op *part = o->parts; part != NULL; part = part->next)
        sum += strtoll((const char *)part->reply.bytes + 1, NULL, 10);
    o->reply.size = 0;
    resp_put_number(&o->reply, sum);
    op_done(server, o);
}

static void joined_ok(kv_server *server, op *o) {
    if (parts_failed(server, o)) return;
    o->reply.size = 0;
    resp_put_simple(&o->reply, "OK");
    op_done(server, o);
}

static bool part_add(kv_server *server, op *o, const placed *places, size_t count) {
    op *part = op_part(server, o);
    if (part == NULL) return false;
    part->command = o->command;
    bool good = op_add_word(part, word_text(o, 0));
    for (size_t i = 0; good && i < count; i++) {
        size_t at = command_key_at(o->command, places[i].place);
        for (int k = 0; good && k < o->command->step; k++) good = op_add_word(part, word_text(o, at + (size_t)k));
    }
    return good;
}

static void part_all(kv_server *server, op *o, size_t count) {
    placed *places = places_of(server, o, count);
    bool good = places != NULL;
    for (size_t from = 0, to; good && from < count; from = to) {
        for (to = from + 1; to < count && places[to].slot == places[from].slot && to - from < PART_KEYS_MAX;) to++;
        good = part_add(server, o, places + from, to - from);
    }
    free(places);
    if (!good) parts_fail(server, o);
    else if (o->command->flags & COMMAND_READ && o->command->run == mget_run) parts_begin(server, o, joined_values);
    else parts_begin(server, o, o->command->step == 2 ? joined_ok : joined_sum);
}

/* --- all shards --- */

static void joined_sure(kv_server *server, op *o) {
    if (parts_failed(server, o)) return;
    op_drop(server, o->parts);
    o->parts = NULL;
    o->phase = PHASE_READ;
    run_all(server, o);
    if (!view_finish(o->view)) give_up_view(server, o);
    else if (o->parts == NULL) op_done(server, o); /* Else it goes on with what it found. */
    else parts_begin(server, o, joined_sure);
}

static void make_sure(kv_server *server, op *o) {
    bool good = op_view(o) != NULL;
    for (uint32_t shard = 0; good && shard < server->shard_count; shard++) {
        char name[16];
        op *part = op_part(server, o);
        int size = snprintf(name, sizeof name, "%u", server->samples[shard]);
        good = part != NULL && op_add_word(part, (text){(const uint8_t *)name, (size_t)size});
        if (!good) break;
        part->phase = PHASE_SURE;
        text key = word_text(part, 0);
        part->ask = (kv_ask){.kind = KV_REQUEST_READ, .key = key.at, .key_size = key.size};
    }
    if (good) parts_begin(server, o, joined_sure);
    else parts_fail(server, o);
}
