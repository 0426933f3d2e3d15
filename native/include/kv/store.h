/* store.h -- the embedded store: keys and values on the flow and the index.
 *
 * A kv_store is one open directory; a kv_caller is one thread's way into it: its place in the epoch, a buffer that
 * answers are left in, and what its last failure was. Every call that works on data takes a caller.
 *
 * Threads: any number of callers at a time, each used by one thread at a time. Writers take one short lock; readers
 * take none, but for those of a transaction (kv_get_with). close() may overlap with everything: calls that come later,
 * or are inside and find out, get KV_ECLOSED; it waits for the rest. free() overlaps with nothing. Threads it starts
 * (unless options.background is false): one for group commits, one that prepares segments; close() joins both.
 *
 * A process that was forked from the opener gets KV_EFORKED from everything; free() then only gives memory back. */
#ifndef KV_STORE_H
#define KV_STORE_H

#include "base.h"
#include "flow.h"
#include "io.h"
#include "status.h"

typedef struct kv_store kv_store;
typedef struct kv_caller kv_caller;

enum kv_sync_mode {
    KV_SYNC_NONE = 0,   /* the OS writes when it likes */
    KV_SYNC_BATCH = 1,  /* a group commit at least every sync_ms_max */
    KV_SYNC_ALWAYS = 2, /* every write waits for its group commit */
};

typedef struct kv_options {
    int32_t sync;            /* enum kv_sync_mode */
    int32_t sync_ms_max;     /* KV_SYNC_BATCH: bound of the loss; 10 */
    int32_t readonly;        /* bool */
    int32_t background;      /* bool: start the threads; tests on the simulated disk work without */
    int32_t salvage;         /* bool, with readonly and no checkpoint: go on behind damage, see kv_store_damages() */
    int32_t write_calls;     /* bool: never store through mappings; set by itself where !io->maps_well */
    uint32_t segment_size_min; /* 0: KV_SEGMENT_SIZE_MIN */
    uint32_t segment_size_max; /* 0: KV_SEGMENT_SIZE_MAX */
    uint32_t inline_size_max;  /* 0: KV_INLINE_SIZE_MAX; tests make values big that are not */
    uint64_t sequence_min;     /* a restored store: versions go on above it. For a store that was not closed */
    uint64_t replay_until;     /* readonly: what lies from this kv_position_order() on is not looked at; 0: all is */
    uint64_t snapshot_size_max; /* bytes that snapshots may hold on to, memory, old records and their value files; 0: 1 GiB */
} kv_options;

/* Opens the directory behind `io`, which the store owns from now on, also when this fails. `checkpoint` is what
 * the newest published checkpoint said (kv_checkpoint_describe), or NULL: then, or if it does not fit what is on
 * disk, everything is replayed; *used_checkpoint tells. Failure: `fault` says what and where. */
kv_status kv_store_open(kv_io *io, const kv_options *options, const uint8_t *checkpoint, size_t checkpoint_size,
                        kv_fault *fault, kv_store **out);
/* Refuses new writes from now on (KV_ECLOSED); those under way end first. Reads go on. */
void kv_store_quiesce(kv_store *store);
/* Seals, syncs, cuts unused tails, joins threads, unmaps. Closed it is in any case, also if it answers with an error
 * (KV_EPOISONED: a write or sync failed before); KV_OK the second time. */
kv_status kv_store_close(kv_store *store, kv_fault *fault);
void kv_store_free(kv_store *store); /* closes without sealing if nobody did; accepts NULL */

/* In a child, right after fork: its copy of the writer's lock goes, so that it does not outlive the parent's. */
void kv_store_let_go(kv_store *store);

kv_status kv_caller_new(kv_store *store, kv_caller **out);
void kv_caller_free(kv_caller *caller); /* before or after close, not after kv_store_free */

/* What the last call through this caller left behind. Fields a call does not name keep what they had. */
enum { KV_SMALL_SIZE = 65536 };
typedef struct kv_answer {
    uint8_t *small;      /* an answer of up to KV_SMALL_SIZE bytes is here; the address never changes */
    uint8_t *large;      /* a larger one here: until the next call that answers with bytes, which may free it */
    uint64_t large_capacity;
    uint64_t version;    /* of the record read or written; after KV_ECONFLICT the current one (0: absent) */
    int64_t expires_ms;  /* 0: never */
    int64_t number;      /* incr: the new number */
    kv_fault fault;      /* after an error */
} kv_answer;
kv_answer *kv_caller_answer(kv_caller *caller);
/* Whether kv_get, kv_put, kv_delete and their like for rows are to answer KV_EWAIT, and do nothing, where they would wait
 * for another thread or for a call that reads or writes a file. For who holds a lock of its own meanwhile. A page of a
 * mapping may still have to come from the disk. An answer that has no room is KV_EWAIT, too: one above KV_HASTY_SIZE bytes,
 * unless a buffer for it was lent; answer.number is its size then, and 0 after any other KV_EWAIT. */
enum { KV_HASTY_SIZE = 4096 };
void kv_caller_hasten(kv_caller *caller, int hasty);
/* Where a hasty caller's answers of up to `size` bytes go, until another buffer is lent; NULL: to answer.small. */
void kv_caller_lend(kv_caller *caller, uint8_t *buffer, uint64_t size);

/* --- one key. `ttl_ms` 0: no expiry; > 0: so long from now; < 0: at -ttl_ms, ms since 1970. `durable`: wait until it is on disk. Versions are > 0. --- */
/* A key may name a table instead (below): put replaces it, delete drops it, look, version and expire work on it; what
 * wants a value answers KV_EWRONGTYPE. */
kv_result kv_put(kv_caller *c, const uint8_t *key, size_t key_size, const uint8_t *value, size_t value_size,
                 int64_t ttl_ms, int durable);                                    /* the new version */
kv_result kv_get(kv_caller *c, const uint8_t *key, size_t key_size);              /* size; small or large, version, expires_ms */
kv_result kv_look(kv_caller *c, const uint8_t *key, size_t key_size);             /* value size; version, expires_ms; no bytes */
/* The version and nothing else, also of a deleted or expired key as long as its tombstone is kept; 0: never seen. */
kv_result kv_version(kv_caller *c, const uint8_t *key, size_t key_size);
kv_result kv_delete(kv_caller *c, const uint8_t *key, size_t key_size, int64_t version, int durable);
                                       /* the delete's version; version < 0: any, else KV_ECONFLICT unless it is that */
kv_result kv_cas(kv_caller *c, const uint8_t *key, size_t key_size, const uint8_t *value, size_t value_size,
                 uint64_t version, int64_t ttl_ms, int durable);                  /* the new version */
kv_result kv_incr(kv_caller *c, const uint8_t *key, size_t key_size, int64_t by, int64_t ttl_ms, int durable);
                                       /* the new version; number. ttl_ms 0 keeps what the key has */
kv_result kv_append(kv_caller *c, const uint8_t *key, size_t key_size, const uint8_t *bytes, size_t size,
                    int64_t ttl_ms, int durable);                                 /* the new length; version */
/* Sets (ttl_ms > 0) or clears (0) the expiry. The new version. */
kv_result kv_expire(kv_caller *c, const uint8_t *key, size_t key_size, int64_t ttl_ms, int durable);

/* --- one row of a table. A table is there as soon as it has had a row; it has a key, in one namespace with the others,
 * where a value is KV_EWRONGTYPE. Rows have 0 to 65535 bytes. All as for keys, and `version` is the row's. --- */
kv_result kv_row_put(kv_caller *c, const uint8_t *table, size_t table_size, const uint8_t *row, size_t row_size,
                     const uint8_t *value, size_t value_size, int64_t ttl_ms, int durable);
kv_result kv_row_get(kv_caller *c, const uint8_t *table, size_t table_size, const uint8_t *row, size_t row_size);
kv_result kv_row_look(kv_caller *c, const uint8_t *table, size_t table_size, const uint8_t *row, size_t row_size);
kv_result kv_row_delete(kv_caller *c, const uint8_t *table, size_t table_size, const uint8_t *row, size_t row_size,
                        int64_t version, int durable);
kv_result kv_row_cas(kv_caller *c, const uint8_t *table, size_t table_size, const uint8_t *row, size_t row_size,
                     const uint8_t *value, size_t value_size, uint64_t version, int64_t ttl_ms, int durable);
kv_result kv_row_incr(kv_caller *c, const uint8_t *table, size_t table_size, const uint8_t *row, size_t row_size,
                      int64_t by, int64_t ttl_ms, int durable);
/* Under a row of its own, 8 bytes, big-endian: answer.number. Above all that this table was ever given this way, and above
 * rows of 8 bytes that were put by hand (as in a copy), up to 2 to the 62. */
kv_result kv_row_append(kv_caller *c, const uint8_t *table, size_t table_size, const uint8_t *value, size_t value_size,
                        int64_t ttl_ms, int durable);

/* --- a table as a whole. Its version is that of its newest write. --- */
kv_result kv_table_look(kv_caller *c, const uint8_t *table, size_t table_size); /* rows; answer.version, .number = its id */
kv_result kv_table_drop(kv_caller *c, const uint8_t *table, size_t table_size, int durable); /* the drop's version */
/* Raises the floor of the change feed to `version`, at most the table's own: deletes up to it may be forgotten. The
 * floor as it is now. */
kv_result kv_table_trim(kv_caller *c, const uint8_t *table, size_t table_size, uint64_t version, int durable);

/* --- many keys. Keys and values lie one behind the other, their sizes in arrays beside. --- */
typedef struct kv_many {
    uint64_t count;
    const uint8_t *keys;
    uint64_t keys_size;
    const uint32_t *key_sizes;
    const uint8_t *values; /* NULL: deletes, or gets */
    uint64_t values_size;
    const uint32_t *value_sizes;
    uint64_t value_size_max;    /* gets: a larger value is not brought, and its size told as -2 less it. 0: all are */
} kv_many;
/* One version each, in envelopes of at most 1 MiB; a failure in the middle leaves those before. The number written. */
kv_result kv_put_many(kv_caller *c, const kv_many *many, int64_t ttl_ms, int durable);
kv_result kv_delete_many(kv_caller *c, const kv_many *many, int durable);         /* the number that was there */
/* Total size; values one behind the other in small or large, `sizes` (count entries of the caller's) says how long each is,
 * -1: absent, below: too large. As single gets: not one moment for all. */
kv_result kv_get_many(kv_caller *c, const kv_many *many, int64_t *sizes);

/* --- a batch: all of it or nothing, under one version. Names of operations differ, and a key that is written is not
 * that of a table whose rows are. --- */
enum { KV_EXPIRY_ONLY = 1 }; /* `key` is a table, which gets the expiry and nothing else; its rows may be written, too */
typedef struct kv_operation {
    const uint8_t *key;   /* of a row: the row; NULL in a table: append, under a row of its own */
    const uint8_t *value; /* NULL: delete (of what is absent: nothing), unless value_size is KV_EXPIRY_ONLY */
    uint64_t value_size;
    int64_t ttl_ms;
    const uint8_t *table; /* NULL: a key */
    uint32_t key_size;
    uint32_t table_size;
    uint64_t row_id;      /* out: of an append */
} kv_operation;
/* What a transaction has read: a key or row, and the version it was at. */
typedef struct kv_expectation {
    const uint8_t *key;   /* NULL in a table: all of it, at the version of its newest write */
    uint64_t version;     /* 0: absent, or expired */
    const uint8_t *table; /* NULL: a key */
    uint32_t key_size;
    uint32_t table_size;
} kv_expectation;
/* The version; 0 if there was nothing to do. Before anything is written, and under the same hold of the lock, the
 * expectations are checked, also if there is nothing to write: the first that does not hold is KV_ECONFLICT, with the
 * version the key has in answer.version and the expectation's index in answer.number. Then nothing is written. */
kv_result kv_batch(kv_caller *c, kv_operation *operations, size_t count, const kv_expectation *expectations,
                   size_t expectation_count, int durable);
/* A get of one moment with earlier reads, and never of part of a batch: it takes the writer lock (so KV_EREADONLY for
 * read-only openers) and answers as kv_get, with version 0 where there is nothing; but first, if anything was written
 * since *sequence, it checks the expectations as kv_batch does. *sequence is where all of it was last known to hold: 0
 * at first, then what the call before left there. */
kv_result kv_get_with(kv_caller *c, const uint8_t *key, size_t key_size, const kv_expectation *expectations,
                      size_t count, uint64_t *sequence);
kv_result kv_row_get_with(kv_caller *c, const uint8_t *table, size_t table_size, const uint8_t *row, size_t row_size,
                          const kv_expectation *expectations, size_t count, uint64_t *sequence);

/* Waits until the key's version is above `version`, at most timeout_ms. The version it has then (see kv_version). */
kv_result kv_wait(kv_caller *c, const uint8_t *key, size_t key_size, uint64_t version, int64_t timeout_ms);
/* Neither takes a lock: keys that have a value, expired ones included; the time expiries are judged by, ms since 1970. */
kv_result kv_count(kv_caller *c);
kv_result kv_now(kv_caller *c);
kv_result kv_sync(kv_caller *c);       /* everything written so far is durable when this returns */
kv_result kv_refresh(kv_caller *c);    /* read-only openers: takes in what was written since; records applied */

/* --- names in order, a page at a time. Nothing is held between pages; what is there throughout appears exactly once. */
enum kv_scan_what {
    KV_SCAN_KEYS = 0,   /* that have a value */
    KV_SCAN_TABLES = 1, /* the keys of tables; no values */
    KV_SCAN_ROWS = 2,   /* of `table`; KV_ABSENT, KV_EWRONGTYPE */
};
typedef struct kv_range {
    int32_t what;         /* enum kv_scan_what */
    const uint8_t *start; /* the first key, if it is there; NULL: from the lowest */
    const uint8_t *stop;  /* ends before it; NULL: with the highest */
    size_t start_size;
    size_t stop_size;
    uint64_t count_max;   /* entries of the page, at least 1 */
    int32_t reverse;      /* bool: the same range, from its end */
    int32_t with_values;  /* bool; else every value counts as empty and is not read */
    const uint8_t *table;
    size_t table_size;
} kv_range;
typedef struct kv_page {
    uint64_t count;
    uint64_t size;         /* bytes of the entries: key, value, key, value ... */
    const uint32_t *sizes; /* of each: key size, value size; the caller's, until its next scan */
    uint32_t key_size;     /* of the first entry */
    uint32_t value_size;
    int32_t equal;         /* bool: and of all others */
    int32_t more;          /* bool: the range goes on behind the key that lies behind the entries (maybe none) */
    uint32_t resume_size;  /* of that key */
} kv_page;
/* size + resume_size; small or large. The next page: `start` is that key and a zero byte; in reverse `stop` is the key. */
kv_result kv_scan(kv_caller *c, const kv_range *range, kv_page *page);
/* Some key, or name of a table: size; small or large. `place` and `lot` are random numbers. KV_ABSENT: there is none. */
kv_result kv_pick(kv_caller *c, uint64_t place, uint64_t lot);

/* --- the sweep: rows of dropped tables leave index and counters, some at a time. One at a time, by one thread, and
 * freed before the store is closed. step until KV_EOF: there is nothing to sweep, or snapshots still want it. --- */
typedef struct kv_sweep kv_sweep;
kv_status kv_sweep_begin(kv_store *store, kv_sweep **out);
kv_status kv_sweep_step(kv_sweep *sweep); /* KV_MORE, KV_EOF */
void kv_sweep_free(kv_sweep *sweep);      /* accepts NULL */

/* --- the change feed: which rows of a table were written or deleted above a version. A row is there once, as it is at
 * the time of the page; what was dropped and made anew is another table. --- */
typedef struct kv_change_page {
    kv_page page;          /* rows and values; a value size of (uint32_t)KV_DELETED: the row is gone */
    uint64_t version;      /* this far the caller has seen everything: the next page's `since` */
    uint64_t floor;        /* below it deletes may have been forgotten */
    int32_t complete;      /* bool: nothing between `since` and the page was forgotten. A `since` of 0 knows of nothing,
                              so nothing it has to unlearn is missing */
    int32_t more;          /* bool: there are changes above `version` */
} kv_change_page;
enum { KV_DELETED = -1 };
/* Size of the page: at least count_max entries, if there are so many, and on to the end of a version. A table that is
 * not there has no changes and version 0, and is complete for a `since` of 0 only. */
kv_result kv_changes(kv_caller *c, const uint8_t *table, size_t table_size, uint64_t since, uint64_t count_max,
                     kv_change_page *out);

/* --- snapshots: the store as it is now, for reads, as long as it is open. What replaced and deleted records it holds
 * on to is bounded by options.snapshot_size_max: then the oldest snapshot ends, and its reads answer KV_ESNAPSHOT. --- */
typedef struct kv_snapshot kv_snapshot;
kv_status kv_snapshot_open(kv_store *store, kv_snapshot **out);
void kv_snapshot_close(kv_snapshot *snapshot); /* before kv_store_free(); callers bound to it read no more */
uint64_t kv_snapshot_version(const kv_snapshot *snapshot); /* the newest version it shows */
/* What the caller reads from now on: the snapshot, which outlives that; NULL: the present. For reads only. */
void kv_caller_bind(kv_caller *c, kv_snapshot *snapshot);

/* --- for backups: what is in the directory now stays until unpin: segments and value files are neither removed nor
 * reaped. Everything before *position is durable then; *sequence is the last number before it. Pins add up. --- */
kv_result kv_pin(kv_caller *c, kv_position *position, uint64_t *sequence);
void kv_unpin(kv_caller *c);

typedef struct kv_stats {
    uint64_t key_count;        /* keys with a value, expired ones included until they are reclaimed */
    uint64_t table_count;
    uint64_t row_count;        /* of dropped tables, too, until they are swept */
    uint64_t tombstone_count;  /* of keys and tables */
    uint64_t row_tombstone_count;
    uint64_t retired_table_count; /* dropped and not swept yet */
    uint64_t snapshot_count;
    uint64_t snapshot_size;    /* bytes that snapshots hold on to: memory and old records */
    uint64_t live_size;        /* bytes of records the index points to */
    uint64_t flow_size;        /* bytes of records in all segments */
    uint64_t big_count;        /* live values in files of their own */
    uint64_t big_size;
    uint64_t segment_count;
    uint64_t removed_count;    /* segments taken out since open */
    uint64_t sequence;         /* the last number given to a record */
    uint64_t index_slot_count;
    uint64_t index_memory_size;
    uint64_t run_count;        /* sorted runs, and the names in them; a name may be in several */
    uint64_t run_name_count;
    uint64_t run_size;
    uint64_t created_count;    /* names that are in no run yet */
    uint64_t sync_count;       /* fdatasyncs of the flow since open */
    uint64_t replayed_count;   /* records replayed at open */
    uint64_t unsynced_size;    /* written and not known durable */
    uint64_t since_checkpoint_size; /* what a checkpoint would save: bytes to replay, and value files it lets go */
    int64_t clock_ms;          /* the highest time an expiry was judged by */
    int32_t was_clean;         /* the opener before closed the store */
    int32_t used_checkpoint;   /* opened from the index image, not by full replay */
    int32_t writes_by_call;    /* options.write_calls, or the file system asked for it */
    int32_t poisoned;          /* a kv_status, 0: none */
    uint8_t store_id[16];
} kv_stats;
kv_status kv_store_measure(kv_store *store, kv_stats *out);
/* The counters, counted anew from what the index points at. Takes the writer lock for as long as that takes. */
typedef struct kv_audit {
    uint64_t key_count;
    uint64_t table_count;
    uint64_t row_count;
    uint64_t tombstone_count;
    uint64_t row_tombstone_count;
    uint64_t big_count;
    uint64_t big_size;
    uint64_t live_size;
    uint64_t slot_count;
    uint64_t wrong_slot_count;    /* slots that point at something else than a record of their name */
    uint64_t wrong_segment_count; /* segments whose live bytes are not what is counted */
} kv_audit;
kv_status kv_store_audit(kv_store *store, kv_audit *out);
/* Of a store that was opened with salvage; its own, until it is closed. */
const kv_damage *kv_store_damages(kv_store *store, size_t *count);

/* --- compaction: what is live in an old segment is written anew, and the segment goes with the next published checkpoint
 * that finds it empty. One object is one segment, used by one thread; several at a time are fine. Freed before the store
 * is closed.
 *
 * What a good policy looks at: the dead share, 1 - live_size / size; the id, which is the age; that a segment becomes empty
 * only when no snapshot needs what is dead in it, and dropped tables were swept (their rows are left where they are); and
 * that one whose compaction answered KV_ECORRUPT is damaged: it stays, and so it is left alone from then on. A segment
 * whose live_size is 0 needs no compaction, only a checkpoint. --- */
typedef struct kv_segment_stats {
    uint32_t id;
    int32_t sealed;     /* bool: may be compacted */
    int32_t removable;  /* bool: nothing in it is live or wanted; it goes with the next checkpoint */
    uint64_t size;      /* bytes of records */
    uint64_t live_size; /* of those that count */
} kv_segment_stats;
kv_status kv_store_segments(kv_store *store, kv_segment_stats **out, size_t *count); /* oldest first */
void kv_segments_free(kv_segment_stats *segments);

typedef struct kv_compaction kv_compaction;
typedef struct kv_compacted {
    uint64_t moved_count;
    uint64_t moved_size;    /* bytes: what was written for it */
    uint64_t expired_count; /* deleted, because their time had come */
    kv_fault fault;         /* after an error */
} kv_compacted;
/* KV_EUSAGE: there is no such segment, or it may not be compacted. */
kv_status kv_compaction_begin(kv_store *store, uint32_t segment, kv_compaction **out);
/* KV_MORE, or KV_EOF: what was live is elsewhere. KV_ECORRUPT: a record is damaged; what is live in the segment stays.
 * KV_ENOSPC, and anything else: what was not moved stays, too. Holds up writers for some 20 us at a time. */
kv_status kv_compaction_step(kv_compaction *compaction);
const kv_compacted *kv_compaction_look(kv_compaction *compaction); /* so far */
void kv_compaction_free(kv_compaction *compaction);                /* accepts NULL */

/* --- what time ends, and what was deleted long ago --- */
/* Deletes, under new versions, what has expired: slot_count slots of the index are looked at, a few more or less, from
 * *cursor on (0 at first), which is 0 again when all were. The number deleted. For what nobody asks for, in segments that
 * nobody compacts. */
kv_result kv_expire_step(kv_caller *c, uint64_t *cursor, uint64_t slot_count);

/* Forgets deletes: of keys and tables where no segment holds an older record of the name, which a replay would bring back
 * to life; of rows where, besides, the table's floor is above them and the table has newer records. Reads all segments
 * that hold anything dead: so it is worth while when segments went since the last time. Nothing is written for it. Freed
 * before the store is closed. KV_MORE, or KV_EOF; KV_ECORRUPT: a segment is damaged, and no more is forgotten. */
typedef struct kv_forget kv_forget;
kv_status kv_forget_begin(kv_store *store, kv_forget **out);
kv_status kv_forget_step(kv_forget *forget);
uint64_t kv_forget_count(const kv_forget *forget);          /* forgotten so far */
const kv_fault *kv_forget_fault(const kv_forget *forget);   /* after an error */
void kv_forget_free(kv_forget *forget);                     /* accepts NULL */

/* --- checkpoints: an image of the index and the counters as of one position, so that opening replays a tail only.
 * One at a time, by one thread (a second begin: KV_EUSAGE), and freed before the store is closed. begin, step until KV_EOF, describe, (store that durably), published. --- */
typedef struct kv_checkpoint kv_checkpoint;
kv_status kv_checkpoint_begin(kv_store *store, kv_checkpoint **out); /* KV_EOF: nothing changed since the last */
kv_status kv_checkpoint_step(kv_checkpoint *checkpoint);             /* KV_MORE, or KV_EOF: written and durable, flow included */
kv_status kv_checkpoint_steps(kv_checkpoint *checkpoint, uint32_t count); /* up to so many */
kv_status kv_checkpoint_describe(kv_checkpoint *checkpoint, const uint8_t **bytes, size_t *size); /* until free */
/* The catalog has it: files that only older ones used go, and segments that were empty as of it. Without this call, free() gives the new file up. */
kv_status kv_checkpoint_published(kv_checkpoint *checkpoint);
void kv_checkpoint_free(kv_checkpoint *checkpoint);

/* --- being told instead of waiting, for event loops. Each has an eventfd, non-blocking, which the store rings: it adds
 * 1. A ring says "look again", no more; one may come without a reason. --- */

/* For `durable` of calls that write one key or one batch: never wait, whatever options.sync says. The caller asks. */
enum { KV_LATER = -1 };

/* Rings `fd`, which stays the caller's, until kv_store_unnotify has returned. Also rings as the store is closed:
 * when it refuses writes, and when it refuses everything. */
kv_status kv_store_notify(kv_store *store, int fd);
void kv_store_unnotify(kv_store *store, int fd); /* before `fd` is closed; one that is not notified: nothing */
/* The tail, as kv_position_order(): everything this thread has written lies before it. */
kv_result kv_tail(kv_caller *c);
/* What is durable now, as kv_position_order(). If that is not `upto` yet, the syncer begins a group commit at once,
 * without any sync_ms_max, and rings when that is done or has failed; all who ask before it begins share it. An error:
 * `upto` is not durable, and nobody will ring. */
kv_result kv_ask_durable(kv_caller *c, uint64_t upto);
/* The next write rings, once. A number that changes with every write: the same one twice, and nothing was written. */
kv_result kv_ask_written(kv_caller *c);

#endif
