/* parts.c -- commands of several slots, and those about all keys.
 *
 * The first are done in parts, an op for each slot, and the replies of the parts are put together: not as one, and if a part
 * fails, the first error is the reply. The others make sure of every shard, by a read of each; then what is applied here is as
 * new as what anybody was told, and is looked at. */
#include <stdlib.h>

#include "command.h"

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
    if (o->reply.failed) { /* Of a part, for want of memory: nothing can be put together. */
        op_done(server, o);
        return true;
    }
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

void parts_split(kv_server *server, op *o, size_t count) {
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

/* Here is something that may be read: of no shard a snapshot is just coming in. */
static bool all_whole(const kv_server *server) {
    bool whole = true;
    kv_shard_state state;
    for (uint32_t shard = 0; shard < server->shard_count; shard++) {
        kv_replica_shard(server->replica, shard, &state);
        whole &= state.whole != 0;
    }
    return whole;
}

void perform_sure(kv_server *server, op *o) {
    if (parts_failed(server, o)) return;
    op_drop(server, o->parts);
    o->parts = NULL;
    o->phase = PHASE_READ;
    if (!all_whole(server)) {
        request_give_up(server, o, "UNAVAILABLE a shard is just being copied to this replica");
        return;
    }
    if (!perform_run(server, o)) return;
    if (o->parts == NULL) op_done(server, o); /* Else it goes on with what it found. */
    else parts_begin(server, o, perform_sure);
}

void parts_make_sure(kv_server *server, op *o) {
    bool good = op_draft(o) != NULL;
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
    if (good) parts_begin(server, o, perform_sure);
    else parts_fail(server, o);
}
