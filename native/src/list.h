/* list.h -- an array that grows at its end and is taken from its front, of whatever type its owner says.
 *
 * What is taken from the front is passed over; the rest moves down only where room is needed and most of it is passed over,
 * so both ends cost a constant on average. Adding may move everything: pointers into a list last until the next add. */
#ifndef KV_LIST_H
#define KV_LIST_H

#include "kv/base.h"

typedef struct list {
    void *items;
    size_t first, count, capacity;
} list;

/* Of an empty list: whatever `items` is, without arithmetic on a null pointer. */
static inline void *list_at_first(const list *l, size_t item_size) {
    return l->first == 0 ? l->items : (uint8_t *)l->items + l->first * item_size;
}
#define LIST(type, l) ((type *)list_at_first(l, sizeof(type)))

void *list_add(list *l, size_t item_size); /* zeroed; NULL: no memory */
static inline void list_drop_front(list *l, size_t count) {
    KV_ASSERT(count <= l->count);
    l->count -= count;
    l->first = l->count == 0 ? 0 : l->first + count;
}
static inline void list_clear(list *l) { l->first = l->count = 0; }
void list_free(list *l);

#endif
