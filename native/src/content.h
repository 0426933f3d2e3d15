/* content.h -- values by digest: from the name that a META has for bytes to the DATA record that holds them here.
 *
 *   slot of the index --> version record with META --(origin, number)--> content --> DATA record
 *                                                                          | behind
 *                                                                          v
 *                                                    the record that stood there before, with its content if it has one
 *
 * A content is known from the moment on at which something names it: a DATA record, a version record in the log, a record
 * that is shown. Its bytes may come later, or never. It goes when nothing names it any more, and the version it was
 * written for is behind us: until then the record may still turn up in somebody's tail.
 *
 * What stood there before a META is kept behind its content as long as it is not known that a majority holds those bytes:
 * `forget` falls back to it. So a name has a chain of contents, newest first, which ends where a record is inline, nothing,
 * or known to be held. The chain lives here and not in the index, as readers never see it.
 *
 * All of it is memory, made anew by a replay: DATA records and version records come by in the order they were written.
 * One thread: that of the replica. */
#ifndef KV_CONTENT_H
#define KV_CONTENT_H

#include "store_internal.h"

enum content_list {
    CONTENT_LOOSE,     /* no record that is shown names it */
    CONTENT_MISSING,   /* its bytes are not here; the oldest first */
    CONTENT_UNSETTLED, /* something is kept behind it */
    CONTENT_LISTS
};

typedef struct content content;
struct content {
    kv_meta meta;
    uint64_t version;  /* of the record it was written for, in `shard` */
    uint16_t shard;
    uint32_t named;    /* by the slot of a name, or by the content of what stands in front of it */
    uint64_t table_id; /* of a row's; 0: a key's */
    uint64_t location; /* of the DATA record; 0: the bytes are not here */
    uint32_t used;     /* its size */
    uint64_t end;      /* kv_position_order() behind it: before the log is durable to there, they are nobody else's */
    uint64_t behind;   /* location of the record that is kept; 0: none */
    uint32_t behind_used;
    content *behind_content;
    uint32_t holders;  /* peers known to hold the bytes durably, as bits */
    bool held;         /* a majority does: nothing is kept behind it */
    bool marked;       /* while collecting */
    uint64_t since;    /* the tick from which on the bytes were missing */
    struct {
        bool active, wanted; /* wanted: somebody waits for it */
        uint8_t *bytes;
        uint64_t have;       /* of meta.size, from the front */
        uint64_t asked;      /* the tick */
        uint32_t peer;       /* the one who was asked */
        uint32_t refused;    /* those who say that they have not got it, as bits */
        uint32_t silent;     /* so often nobody has said anything, since the last bytes came */
    } pull;
    struct {
        content *next, *previous;
        bool in;
    } links[CONTENT_LISTS];
};

typedef struct contents {
    content **slots; /* open addressing, at most half full */
    uint64_t capacity, count;
    struct {
        content *first, *last;
        uint64_t count;
    } lists[CONTENT_LISTS];
    uint64_t now;       /* ticks */
    bool keeps_nothing; /* the rule left out: nothing is kept behind anything */
} contents;

void contents_free(contents *t);
content *contents_find(const contents *t, const kv_meta *meta); /* NULL: never heard of, or of other bytes */
/* The same, or a new one that is loose and missing. NULL: no memory. */
content *contents_note(contents *t, const kv_meta *meta, uint16_t shard, uint64_t version);
/* Its bytes lie in the DATA record there. */
kv_status content_arrived(kv_store *store, content *c, kv_position position, uint32_t used);
/* What a slot says has changed: from `old` (location 0, or NULL: nothing) to `record` (NULL: nothing). */
kv_status content_shown(kv_store *store, const found *old, const kv_record *record);
/* A majority holds it: what is kept behind it may go. */
void content_settle(kv_store *store, content *c);
void content_drop(kv_store *store, content *c); /* a loose one that nobody needs */
void content_leave(contents *t, enum content_list list, content *c);
/* Behind the others in its list. */
void content_requeue(contents *t, enum content_list list, content *c);

/* Is it, or is there, a META? */
static inline bool is_meta(const kv_record *record) { return (record->flags & KV_FLAG_META) != 0; }

#endif
