/* op.c -- commands from their words to their replies, and what they are kept in.
 *
 * An op is found by its index, used again when it is free, and never given back: what is under way at once is bounded by the
 * clients. Its life tells its uses apart, so that an answer to an earlier one finds nobody. */
#include <stdlib.h>

#include "command.h"

static op *op_make(kv_server *server) {
    op *o = calloc(1, sizeof *o);
    op **place = o == NULL ? NULL : list_add(&server->ops, sizeof *place);
    if (place == NULL) {
        free(o);
        return NULL;
    }
    *place = o;
    o->index = (uint32_t)server->ops.count - 1;
    return o;
}

void op_free(kv_server *server, op *o) {
    enum { KEEP_SIZE = 1 << 16 };
    o->life++; /* What is said to its token from now on is said to nobody. */
    o->done = true;
    o->client = NULL;
    if (o->bytes.capacity > KEEP_SIZE) wire_free(&o->bytes);
    if (o->reply.capacity > KEEP_SIZE) wire_free(&o->reply);
    if (o->draft != NULL) draft_begin(o->draft, NULL, 0);
    free((void *)(uintptr_t)o->cursor.at);
    o->cursor = (text){0};
    o->reply.size = 0;
    o->next = server->free_ops;
    server->free_ops = o;
}

/* Its words are those that the reader has, or none. */
static op *op_begin(kv_server *server, const uint8_t *bytes, size_t size, const resp_reader *words) {
    op *o = server->free_ops;
    if (o != NULL) server->free_ops = o->next;
    else o = op_make(server);
    if (o == NULL) return NULL;
    size_t count = words == NULL ? 0 : words->count;
    resp_word *larger = count <= o->word_capacity ? o->words : realloc(o->words, count * sizeof *larger);
    o->bytes.size = 0;
    wire_put_bytes(&o->bytes, bytes, size);
    if (o->bytes.failed || (larger == NULL && count != 0)) {
        o->bytes.failed = false;
        op_free(server, o);
        return NULL;
    }
    o->words = larger;
    if (count > o->word_capacity) o->word_capacity = count;
    if (count != 0) memcpy(o->words, words->words, count * sizeof *o->words);
    o->word_count = count;
    o->next = NULL;
    o->client = NULL;
    o->command = NULL;
    o->done = o->waits = false;
    o->phase = PHASE_REQUEST;
    o->parent = o->parts = o->queue = NULL;
    o->mate = o->group = o->behind = NULL;
    o->behind_last = &o->behind;
    o->leads = o->in_turn = false;
    o->later = NULL;
    o->later_last = &o->later;
    o->part_count = 0;
    o->since = server->ticks;
    o->ask = (kv_ask){0};
    o->passed_to = o->from = 0;
    return o;
}

op *op_new(kv_server *server, client *c, const uint8_t *bytes) {
    op *o = op_begin(server, bytes, c->reader.used, &c->reader);
    if (o == NULL) return NULL;
    o->client = c;
    *c->last = o;
    c->last = &o->next;
    c->op_count++;
    return o;
}

op *op_foreign(kv_server *server, const uint8_t *bytes, size_t size) { return op_begin(server, bytes, size, NULL); }

draft *op_draft(op *o) {
    if (o->draft == NULL) o->draft = calloc(1, sizeof *o->draft);
    if (o->draft != NULL) draft_begin(o->draft, NULL, 0);
    return o->draft;
}

op *op_part(kv_server *server, op *parent) {
    op *o = op_begin(server, NULL, 0, NULL);
    if (o == NULL) return NULL;
    o->parent = parent;
    o->next = parent->parts;
    parent->parts = o;
    parent->part_count++;
    return o;
}

bool op_add_word(op *o, text word) {
    resp_word *larger = o->words;
    if (o->word_count == o->word_capacity) {
        size_t capacity = o->word_capacity == 0 ? 8 : 2 * o->word_capacity;
        larger = realloc(o->words, capacity * sizeof *larger);
        if (larger == NULL) return false;
        o->words = larger;
        o->word_capacity = capacity;
    }
    larger[o->word_count++] = (resp_word){o->bytes.size, word.size};
    wire_put_bytes(&o->bytes, word.at, word.size);
    return !o->bytes.failed;
}

op *op_keep(kv_server *server, const op *o) {
    resp_reader words = {.words = o->words, .count = o->word_count};
    op *kept = op_begin(server, o->bytes.bytes, o->bytes.size, &words);
    if (kept != NULL) kept->command = o->command;
    return kept;
}

void op_drop(kv_server *server, op *o) {
    for (op *next; o != NULL; o = next) {
        next = o->next;
        op_free(server, o);
    }
}

op *op_of(kv_server *server, uint64_t token) {
    uint32_t index = (uint32_t)token;
    op *o = index < server->ops.count ? LIST(op *, &server->ops)[index] : NULL;
    return o != NULL && o->life == token >> 32 && !o->done ? o : NULL;
}

/* What is performed is run again, maybe, and its reply thrown away: it waits with the op until it is done. */
wire_out *op_reply(op *o) {
    bool at_once = o->phase == PHASE_REQUEST && o->client != NULL && o->client->first == o;
    return at_once ? &o->client->out : &o->reply;
}

static void replies_move(kv_server *server, client *c) {
    while (c->first != NULL && c->first->done) {
        op *o = c->first;
        c->first = o->next;
        if (c->first == NULL) c->last = &c->first;
        c->op_count--;
        if (o->reply.size != 0) wire_put_bytes(&c->out, o->reply.bytes, o->reply.size);
        op_free(server, o);
    }
}

void op_done(kv_server *server, op *o) {
    if (o->leads) perform_release(server, o);
    if (o->in_turn) turn_ends(server, o);
    if (o->reply.failed && o->client != NULL) client_close(server, o->client); /* It would get half a reply. */
    if (o->reply.failed && o->parent != NULL) o->parent->reply.failed = true;
    o->reply.failed = false;
    client *c = o->client;
    o->done = true;
    bool ran = o->phase != PHASE_REQUEST && o->command != NULL && o->command->run == exec_run;
    if (ran && c != NULL) client_unwatch(c);
    op_drop(server, o->queue);
    op_drop(server, o->parts);
    o->queue = o->parts = NULL;
    if (o->parent != NULL) {
        part_done(server, o->parent);
        return;
    }
    if (c == NULL) {
        op_free(server, o);
        return;
    }
    replies_move(server, c);
    if (c->first == NULL) c->running = 0;
    client_dirty(server, c);
}
