/* pick.c -- some key, near a place in the index that the caller draws by lot: for who wants one at random.
 *
 * Places are hashes, which are as good as drawn by lot, so keys come about equally often; one that lies behind many slots of
 * rows, or free ones, comes somewhat more often. Where nearly all slots are rows it may go through all of the index. */
#include <stdlib.h>

#include "store_internal.h"

typedef struct picking {
    kv_caller *c;
    uint64_t place;       /* of the table of the index that is next */
    uint64_t lot;         /* which of its slots is first */
    kv_index_slot *slots; /* of the one before */
    size_t capacity;
    kv_result size;
} picking;

/* A key, or a table's; not what is over, nor what cannot be read. */
static bool is_key(kv_store *store, uint64_t location, found *out) {
    out->location = location;
    if ((kv_loc_flags(location) & SLOT_CLASSES) != 0 || found_tombstone(out)) return false;
    return store_peek(store, out) == KV_OK && found_alive(store, out) && found_intact_once(store, out);
}

static kv_status pick_one(void *context) {
    picking *p = context;
    size_t count;
    found f;
    uint8_t *to;
    kv_status status = kv_index_walk(p->c->store->index, &p->place, &p->slots, &p->capacity, &count);
    for (size_t i = 0; status == KV_OK && p->size < 0 && i < count; i++) {
        if (!is_key(p->c->store, p->slots[(p->lot + i) % count].location, &f)) continue;
        status = answer_room(p->c, f.record.key_size, &to);
        if (status != KV_OK) break;
        memcpy(to, f.record.key, f.record.key_size);
        p->size = (kv_result)f.record.key_size;
    }
    return status;
}

kv_result kv_pick(kv_caller *c, uint64_t place, uint64_t lot) {
    picking p = {.c = c, .place = place, .lot = lot, .size = kv_ending(KV_ABSENT)};
    kv_status status = KV_OK;
    for (int lap = 0; status == KV_OK && p.size < 0 && lap < 2; lap++) /* Behind the last table comes the first. */
        do status = store_look(c, pick_one, &p);
        while (status == KV_OK && p.size < 0 && p.place != 0);
    free(p.slots);
    return status == KV_OK ? p.size : caller_fail(c, status, "the index could not be looked through");
}
