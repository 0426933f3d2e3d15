/* late.h -- records that are in the log and not decided yet: the store of a replica shows a record when it is committed.
 *
 * The steps of write.c and many.c run as ever: find what stands there, decide, append, show. For a store that has a
 * kv_late, and while `evaluating`, two of these mean something else:
 *
 *   find    the newest record of the name that is not committed, if there is one; else what the index has
 *   show    the name is noted here as undecided; store_show() comes once the record is committed
 *
 * So what the owner of a shard decides rests on everything it proposed before, and what readers see on what is
 * committed. Every record gets what the version log needs: shard, ballot, version, the ballot before, the request.
 *
 * And no time ends anything by itself: expiries are held against `judge_ms`, which is 0 but for the moment in which the
 * owner looks whether it has to delete something.
 *
 * One thread at a time: that of the replica. */
#ifndef KV_LATE_H
#define KV_LATE_H

#include "content.h"

typedef struct late_slot {
    uint64_t hash;
    uint64_t location; /* 0: empty */
} late_slot;

enum { LATE_CONTENT_SIZE_MAX = 16 << 20 }; /* Two of them, and what goes with them, fit into a frame. */
enum { LATE_VERSION_BITS = 40 }; /* Versions of a shard are below 2 to the 40. */
enum { LATE_OPTIONS = KV_HAS_SEQUENCE | KV_HAS_BALLOT | KV_HAS_PREV_BALLOT }; /* What every record of a version log has. */

/* What the answer to a request is, besides a version. */
enum late_tells { LATE_NOTHING, LATE_NUMBER, LATE_SIZE, LATE_ROW };

typedef kv_status (*late_resolve)(void *context, kv_store *store, const kv_record *record, kv_position position,
                                  uint32_t used, kv_fault *fault);

struct kv_late {
    late_resolve resolve; /* gets what a replay finds, in the order of its arrival */
    void *context;

    /* What the next record gets. */
    uint16_t shard;
    uint64_t version;
    uint64_t ballot;
    uint64_t prev_ballot;
    const kv_request *request; /* NULL: nobody's */
    enum late_tells tells;
    int64_t judge_ms;
    bool evaluating;

    /* Values by digest (content.h). NULL: every value rides in its record. */
    contents *contents;
    uint32_t inline_max;
    uint16_t node;
    bool data;        /* the durability of what is evaluated */
    uint64_t number;  /* the last name given to bytes */
    bool metas;       /* the call under way named some */
    uint8_t meta[KV_META_SIZE]; /* of the record that is being written */
    kv_meta lacking;  /* whose bytes a look did not find here */

    /* What the call under way appended: records that follow one another, of one version. */
    kv_position position;
    uint32_t size;
    uint32_t record_count; /* 0: nothing */
    int64_t result;        /* what the one who asked is told, by `tells` */
    bool expiring;         /* one of them has an expiry */

    /* Undecided names: open addressing, at most half full. */
    late_slot *slots;
    uint64_t capacity;
    uint64_t count;
};

void late_free(kv_late *late); /* what it holds, not itself */

/* The version log's part of a record; with the request, if it is the one of its version to carry it. */
void late_stamp(kv_late *late, kv_record *record, bool first);
/* Above the inline size: its bytes become a DATA record, now, and its value a META, which lies in `meta`. */
kv_status late_keep(kv_store *store, kv_record *record, uint8_t meta[KV_META_SIZE]);
/* A DATA record with these bytes. */
kv_status late_write_content(kv_store *store, const kv_meta *meta, uint16_t shard, uint64_t version, const uint8_t *bytes);
void late_note(kv_late *late, kv_position position, uint32_t size, uint64_t record_count);
/* Unique for ever: of the shard, of the version and of which one it is in it. 0: a version makes no more tables. */
uint64_t late_table_id(const kv_late *late, uint64_t nth);
uint64_t late_table_version(uint64_t table_id); /* under which such a table was made */
/* Appends records as they are but for their sequence, several as one envelope; *position is that of the first. */
kv_status late_append(kv_store *store, kv_record *records, size_t count, kv_position *position, uint32_t *size);
/* As kv_store_open(), of a store whose records are shown late. */
kv_status store_open_late(kv_io *io, const kv_options *options, kv_late *late, kv_fault *fault, kv_store **out);

/* KV_ABSENT: nothing undecided has that name, or nobody evaluates. */
kv_status late_find(kv_store *store, const target *t, found *out, kv_fault *fault);
/* `old`: the location it takes the place of, undecided or not; 0: none. */
kv_status late_put(kv_late *late, uint64_t hash, uint64_t old, uint64_t location);
/* Committed, or cut: the name is undecided no more, unless something newer has come. */
void late_remove(kv_late *late, uint64_t hash, uint64_t location);

#endif
