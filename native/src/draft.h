/* draft.h -- what a command sees of the keys it names, and what it would write.
 *
 * A draft is filled from what is applied at this replica, in one go, and everything a command does goes into the draft alone: so
 * the next command of a transaction sees it. draft_finish() then says it as one batch: the operations, and the versions that
 * have to stand for them to be right. If another write came between, the batch is refused as a whole, and the command runs
 * again over a new draft.
 *
 *   entry   a key, or a row of a table: what was there (`was`), and what is there now (`is`)
 *
 * Only what an answer rests on is expected: a field that was looked at, and not its hash. Bytes that are handed in have to
 * stay until the batch was answered; what draft_room() gives does.
 *
 * Bounds: memory, by the size of what was looked at. One thread. */
#ifndef KV_DRAFT_H
#define KV_DRAFT_H

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

typedef struct draft_pair {
    text row, value;
} draft_pair;

typedef struct draft_message {
    text channel, message;
} draft_message;

typedef struct draft_block draft_block;
typedef struct draft {
    kv_caller *caller;
    int64_t now_ms;      /* the one moment of all its commands */
    kv_status failed;    /* the store could not be read, or there was no memory: nothing of it is to be used */
    const char *refused; /* an error for whoever asked: what no batch can say */
    list entries;        /* of entry * */
    uint32_t *slots;     /* by hash: 1 + index; 0: empty */
    size_t slot_count;
    draft_block *blocks;
    list operations, expectations; /* after draft_finish() */
    list messages;       /* of draft_message: what a transaction publishes, once it stands */
    entry spare;         /* what is handed out when there is no memory; it is used for nothing */
    kv_operation spare_operation;
} draft;

void draft_begin(draft *v, kv_caller *caller, int64_t now_ms); /* empty again, of whatever it was */
void draft_free(draft *v);  /* what it holds, not itself */
uint8_t *draft_room(draft *v, size_t size); /* NULL: failed */
text draft_copy(draft *v, const void *bytes, size_t size);

entry *draft_key(draft *v, text key);  /* never NULL; the answer rests on it */
entry *draft_find(draft *v, text key); /* the answer does not: it is only written, or its rows are looked at */
text draft_value(draft *v, entry *e);  /* of a string */
void draft_set(draft *v, entry *e, text value, int64_t expires_ms);
void draft_delete(draft *v, entry *e);
void draft_expire(draft *v, entry *e, int64_t expires_ms); /* a moment that is past deletes it; 0: never */

/* Of a hash, or of nothing, which then has no rows. */
entry *draft_row(draft *v, entry *table, text row);
void draft_row_set(draft *v, entry *row, text value);
void draft_row_delete(draft *v, entry *row);
/* All there are; until the draft ends. */
size_t draft_rows(draft *v, entry *table, const draft_pair **out);

/* What it would write, and what has to stand for that. False: it failed, or is refused. */
bool draft_finish(draft *v);

#endif
