/* cursors.c -- where SCANs are. Clients know a place by a number; our places are names, so somebody has to remember.
 *
 * A ring: the newest COUNT places, in SIZE_MAX_ALL bytes together. Whoever scans uses each number soon, or never, so what is
 * forgotten are scans that were given up; one that was only slow is told to begin again. A number is used as often as
 * its client likes. It belongs to this replica and this run of it: numbers begin at a time of the clock, so that those of
 * an earlier run are forgotten, and not taken for others. */
#include <stdlib.h>

#include "command.h"

enum { COUNT = 1 << 14, SIZE_MAX_ALL = 16 << 20 };

typedef struct place {
    uint8_t *name;
    size_t size;
    uint8_t space;
} place;

struct cursors {
    uint64_t first, next; /* the numbers remembered */
    size_t size;
    place places[COUNT];
};

cursors *cursors_new(uint64_t start) {
    cursors *all = calloc(1, sizeof *all);
    if (all != NULL) all->first = all->next = start;
    return all;
}

static void forget_first(cursors *all) {
    place *one = &all->places[all->first++ % COUNT];
    all->size -= one->size;
    free(one->name);
    *one = (place){0};
}

void cursors_free(cursors *all) {
    if (all == NULL) return;
    while (all->first != all->next) forget_first(all);
    free(all);
}

uint64_t cursor_make(cursors *all, uint8_t space, text after) {
    uint8_t *name = malloc(after.size + 1);
    if (name == NULL) return 0;
    memcpy(name, after.at, after.size);
    while (all->next - all->first == COUNT || (all->first != all->next && all->size + after.size > SIZE_MAX_ALL)) forget_first(all);
    all->places[all->next % COUNT] = (place){name, after.size, space};
    all->size += after.size;
    return all->next++;
}

bool cursor_find(const cursors *all, uint64_t number, uint8_t *space, text *after) {
    if (number < all->first || number >= all->next) return false;
    const place *one = &all->places[number % COUNT];
    *space = one->space;
    *after = (text){one->name, one->size};
    return true;
}
