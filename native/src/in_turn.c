/* in_turn.c -- writes of one client to one slot take effect in the order in which it sent them.
 *
 * A write may have to be asked again, of another replica maybe: its shard is just being taken over, a link broke. One that was
 * sent behind it and had better luck would take effect first. So what a client sends without waiting goes on side by side,
 * but to the same slot: there the next begins when the one before it was answered.
 *
 * A client that sends many to one key would then wait for a sync with each. So those that wait when one ends begin together,
 * as far as they can run over a draft: in their order, as one batch (perform.c), up to GROUP_MAX.
 *
 *   the table   for a client and a slot that it writes to: what is under way, which if that is a group is the last of it
 *   `later`     hangs on that: what waits, in order
 *
 * KV.ONCE and KV.BATCH are not kept in turn: the first is for clients that wait themselves, the second is alone anyway. */
#include "command.h"

static op **place_of(const kv_server *server, const op *o) {
    op **at = &server->turns[(o->client_id * 0x9e3779b97f4a7c15u + o->slot) % TURNS_SIZE];
    while (*at != NULL && ((*at)->client_id != o->client_id || (*at)->slot != o->slot)) at = &(*at)->turn_next;
    return at;
}

static void enter(op **place, op *o) {
    o->in_turn = true;
    o->turn_next = *place;
    *place = o;
}

bool turn_waits(kv_server *server, op *o) {
    text key = word_text(o, command_key_at(o->command, 0));
    o->client_id = o->client->id;
    o->slot = kv_slot_of(key.at, key.size);
    op **place = place_of(server, o), *before = *place;
    if (before == NULL) {
        enter(place, o);
        return false;
    }
    o->phase = PHASE_TURN;
    *before->later_last = o;
    before->later_last = &o->mate;
    return true;
}

/* Over a draft, with others. */
static bool may_join(const op *o) {
    size_t size = word_text(o, command_key_at(o->command, 0)).size;
    return o->command->run != NULL && size != 0 && size <= KV_KEY_SIZE_MAX;
}

/* The next of those that wait on `o`, with as many others as can go with it, which then hang on it as its group. */
void turn_ends(kv_server *server, op *o) {
    op **place = place_of(server, o), *first = o->later, *last = first;
    o->in_turn = false;
    *place = o->turn_next;
    if (first == NULL) return;
    group_size size = {0};
    group_takes(&size, first);
    while (may_join(first) && last->mate != NULL && may_join(last->mate) && group_takes(&size, last->mate)) {
        last = last->mate;
        last->phase = PHASE_READ;
    }
    last->later = last->mate;
    last->later_last = last->later == NULL ? &last->later : o->later_last;
    last->mate = NULL;
    first->group = first == last ? NULL : first->mate;
    first->mate = NULL;
    enter(place, last);
    o->later = NULL;
    request_put_off(server, first);
}

void turn_begins(kv_server *server, op *o) {
    o->waits = false;
    o->phase = PHASE_REQUEST;
    if (o->group == NULL) command_start(server, o);
    else perform_begin(server, o);
}
