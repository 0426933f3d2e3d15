/* view.h -- what a command sees of the keys it names, and what it would write.
 *
 * A view is filled from what is applied at this replica, in one go, and everything a command does goes into the view alone: so
 * the next command of a transaction sees it. view_finish() then says it as one batch: the operations, and the versions that
 * have to stand for them to be right. If another write came between, the batch is refused as a whole, and the command runs
 * again over a new view.
 *
 *   entry   a key, or a row of a table: what was there (`was`), and what is there now (`is`)
 *
 * Only what an answer rests on is expected: a field that was looked at, and not its hash. Bytes that are handed in have to
 * stay until the batch was answered; what view_room() gives does.
 *
 * Bounds: memory, by the size of what was looked at. One thread. */
#ifndef KV_VIEW_H
#define KV_VIEW_H

#include "kv/store.h"
#include "list.h"

typedef struct text {
    const uint8_t *at;
    size_t size;
} text;

enum kind { KIND_NONE = 0, KIND_STRING, KIND_HASH };

typedef struct entry entry;
struct entry {
    text name;
    entry *table;        /* NULL: it is a key */
    uint64_t version;    /* that it was read at; of a hash, of its newest field */
    int64_t expires_ms;  /* 0: never */
    uint64_t size;       /* of a string's value */
    text value;          /* once `loaded` */
    uint64_t rows;       /* of a hash */
    uint8_t was, is;     /* enum kind; a row there is is a string */
    bool loaded;
    bool expected;       /* the answer rests on it, or on all rows of it */
    bool written;
    bool expiry_written; /* of a hash */
    bool emptied;        /* of a hash: whatever rows the store has, they are gone */
};

typedef struct view_pair {
    text row, value;
} view_pair;

typedef struct view_block view_block;
typedef struct view {
    kv_caller *caller;
    int64_t now_ms;      /* the one moment of all its commands */
    kv_status failed;    /* the store could not be read, or there was no memory: nothing of it is to be used */
    const char *refused; /* an error for whoever asked: what no batch can say */
    list entries;        /* of entry * */
    uint32_t *slots;     /* by hash: 1 + index; 0: empty */
    size_t slot_count;
    view_block *blocks;
    list operations, expectations; /* after view_finish() */
    entry spare;         /* what is handed out when there is no memory; it is used for nothing */
    kv_operation spare_operation;
} view;

void view_begin(view *v, kv_caller *caller, int64_t now_ms); /* empty again, of whatever it was */
void view_free(view *v);  /* what it holds, not itself */
uint8_t *view_room(view *v, size_t size); /* NULL: failed */
text view_copy(view *v, const void *bytes, size_t size);

entry *view_key(view *v, text key);  /* never NULL; the answer rests on it */
entry *view_find(view *v, text key); /* the answer does not: it is only written, or its rows are looked at */
text view_value(view *v, entry *e);  /* of a string */
void view_set(view *v, entry *e, text value, int64_t expires_ms);
void view_delete(view *v, entry *e);
void view_expire(view *v, entry *e, int64_t expires_ms); /* a moment that is past deletes it; 0: never */

/* Of a hash, or of nothing, which then has no rows. */
entry *view_row(view *v, entry *table, text row);
void view_row_set(view *v, entry *row, text value);
void view_row_delete(view *v, entry *row);
/* All there are; until the view ends. */
size_t view_rows(view *v, entry *table, const view_pair **out);

/* What it would write, and what has to stand for that. False: it failed, or is refused. */
bool view_finish(view *v);

#endif
