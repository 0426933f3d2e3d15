/* list.c -- see list.h. */
#include "list.h"

#include <stdlib.h>

enum { CAPACITY_MIN = 8 };

static bool make_room(list *l, size_t item_size) {
    if (l->first > l->capacity / 2) {
        memmove(l->items, (uint8_t *)l->items + l->first * item_size, l->count * item_size);
        l->first = 0;
        return true;
    }
    size_t capacity = l->capacity == 0 ? CAPACITY_MIN : 2 * l->capacity;
    void *larger = realloc(l->items, capacity * item_size);
    if (larger == NULL) return false;
    l->items = larger;
    l->capacity = capacity;
    return true;
}

void *list_add(list *l, size_t item_size) {
    if (l->first + l->count == l->capacity && !make_room(l, item_size)) return NULL;
    void *item = (uint8_t *)l->items + (l->first + l->count++) * item_size;
    memset(item, 0, item_size);
    return item;
}

void list_free(list *l) {
    free(l->items);
    *l = (list){0};
}
