/* store_internal.h -- what the files of the store share, and nobody else sees.
 *
 *   store.c       what every call goes through: the clock, appending, holding the writer lock
 *   find.c        from a name to its record
 *   show.c        what a record does to index, order and counters
 *   write.c       one key, row or table: put, delete, cas, incr, append, expire, drop
 *   read.c        one key or row: get, look, version
 *   table.c       a table as a whole: trim, and the sweep of what was dropped
 *   snapshot.c    a moment that stays
 *   many.c        many keys in one call; batches
 *   expect.c      what transactions have read, and whether it still holds
 *   scan.c        keys, tables and rows in order
 *   store_open.c  open, replay, close; counters
 *   wake.c        the two threads, who waits for a version, and event loops that are told
 *   bigs.c        values in files of their own
 *   late.c        records that are in the log and not shown yet: a replica decides when
 *   checkpoint.c  images of index and counters, sorted runs
 *
 * Locks, in the order they are taken: the one inside order, write_lock, then those inside flow, index and epoch.
 * wake_lock and wait_lock are taken alone. */
#ifndef KV_STORE_INTERNAL_H
#define KV_STORE_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "kv/epoch.h"
#include "kv/guard.h"
#include "kv/index.h"
#include "kv/order.h"
#include "kv/store.h"
#include "kv/undo.h"
#include "kv/xxh64.h"

enum store_state { STORE_OPEN = 1, STORE_QUIET = 2, STORE_CLOSED = 3 };

/* A set of file ids: open addressing, 0 is empty. Writer lock. */
typedef struct big_set {
    uint64_t *ids;
    uint64_t capacity;
    uint64_t count;
} big_set;

/* A value file that no record points to any more, once `since` is durable. */
typedef struct big_retired {
    uint64_t file_id;
    uint64_t size;
    uint64_t since; /* kv_position_order() behind the record that took its place */
    uint64_t replaced; /* the sequence of that record: snapshots from before it still read the file; 0: none does */
} big_retired;

typedef struct counters {
    _Atomic uint64_t key_count;           /* that have a value */
    _Atomic uint64_t table_count;
    _Atomic uint64_t row_count;           /* of all tables, dropped ones included until they are swept */
    _Atomic uint64_t tombstone_count;     /* of keys and tables */
    _Atomic uint64_t row_tombstone_count;
    uint64_t clock_location;              /* of the newest CLOCK; 0: none */
    uint32_t clock_used;
    uint64_t big_count;
    uint64_t big_size;
    uint64_t live_size;
    uint64_t *segment_live; /* by segment id */
    uint32_t segment_capacity;
} counters;

typedef struct kv_late kv_late;

struct kv_store {
    kv_io *io;
    kv_options options;
    kv_epoch *epoch;
    kv_flow *flow;
    kv_index *index;
    kv_order *order;
    uint64_t hash_seed;
    kv_late *late;   /* of a replica's store (late.h); NULL: what is appended is shown at once */
    uint64_t *alive; /* a page of its own that fork() wipes in the child */
    _Atomic int state;
    _Atomic int64_t clock_ms;   /* the highest time an expiry was judged by, as the flow has it */
    _Atomic int64_t clock_lead; /* that, less the monotonic clock when it was noted; 0: nothing was */

    pthread_mutex_t write_lock;
    counters counters;
    big_set bigs;
    big_retired *retired;
    size_t retired_count, retired_capacity;
    uint64_t retired_size;
    big_set retired_tables;      /* ids no key names any more, to be swept */
    uint64_t retired_sequence;   /* when the last of them was retired */
    kv_snapshot *snapshots;      /* those that are open, oldest first; NULL: none */
    kv_snapshot *newest_snapshot;
    uint64_t snapshot_count;
    kv_undo *undo;               /* what they need of the past */
    uint32_t pin_count;          /* backups under way: nothing leaves the directory */
    pthread_mutex_t removal_lock; /* held while segments are taken out, before the writer lock: a pin waits for that */
    uint64_t generation;         /* high half of the ids of value and index files: unlike that of every opener before */
    _Atomic uint32_t big_next;   /* the low half of the next value file's id */
    bool hidden;                 /* slots left the index, unlogged, since the last checkpoint was begun */
    bool checkpointing;          /* one is under way; writer lock */
    uint32_t index_file_next;    /* the same for index files and runs; the one checkpoint at a time */
    _Atomic bool big_dir_made;
    _Atomic bool index_damaged;  /* an index file or a run did not hold what was written: no more checkpoints on top */
    uint64_t replayed_count;
    big_set orphans;             /* while replaying: tables that have rows and, so far, no key */
    uint64_t removed_count;      /* segments taken out since open */
    uint64_t checkpoint_order;   /* kv_position_order() of the newest published checkpoint */
    uint64_t checkpoint_sequence;
    uint8_t **index_mappings;    /* index files that tables still load from, until close */
    uint64_t *index_mapping_sizes;
    size_t index_mapping_count;
    bool used_checkpoint;
    bool was_clean;

    pthread_mutex_t callers_lock;
    kv_caller *callers;

    /* wake.c */
    pthread_mutex_t wake_lock;
    pthread_cond_t wake_syncer, wake_preparer;
    pthread_t syncer, preparer;
    bool syncer_runs, preparer_runs;
    bool stop;                   /* wake_lock */
    bool sync_now, prepare_now;  /* wake_lock */
    bool sync_asked;             /* wake_lock: somebody wants to be told of a group commit that begins from now on */
    int *bells;                  /* wake_lock: the eventfds of event loops */
    size_t bell_count, bell_capacity;
    /* Under write_lock, so that no wake-up is lost: what a writer leaves undone and what a thread is about to look for
     * cannot pass each other. */
    bool dirty;                  /* something was written since the syncer last looked */
    bool prepare_asked;
    uint32_t waiter_count;
    bool write_asked;            /* the next write rings */
    pthread_mutex_t wait_lock;
    pthread_cond_t waited;
};

typedef struct scan_scratch scan_scratch;

struct kv_caller {
    kv_store *store;
    kv_epoch_slot *slot;
    kv_answer answer;
    kv_snapshot *snapshot; /* what its reads are as of; NULL: now */
    bool hasty;            /* answers KV_EWAIT where others wait */
    uint8_t *lent;         /* hasty: where answers go; NULL: answer.small */
    uint64_t lent_size;
    scan_scratch *scan; /* NULL until the first scan */
    kv_caller *next, *previous;
};

/* A record found through the index. */
typedef struct found {
    kv_probe probe;
    uint64_t location; /* 0: not there */
    const uint8_t *bytes;
    kv_record record;
    uint32_t used;
    bool intact;       /* its checksum was verified already */
    uint64_t place;
} found;

/* What a slot of the index is for (find.c). */
enum { SLOT_CLASSES = KV_LOC_ROW | KV_LOC_HEAD | KV_LOC_FLOOR };
typedef struct target {
    const uint8_t *key; /* of a row: the row */
    size_t key_size;
    uint64_t table_id;
    uint64_t hash;
    unsigned class;     /* one of SLOT_CLASSES; 0: a key */
} target;

/* A table as it stands. */
typedef struct table_state {
    target key;  /* of the table */
    found at;    /* what its key's slot points at */
    found head;  /* its newest record */
    uint64_t id; /* 0: there is no such table */
    uint64_t version;
    uint64_t row_count;
    uint64_t next_row;
} table_state;

enum { KV_ROW_ID_SIZE = 8 };

/* One write under the lock: what is asked for, what stands there, what comes of it. */
typedef struct write_op {
    const uint8_t *key;
    size_t key_size;
    const uint8_t *value;
    size_t value_size;
    const uint8_t *table; /* the key is a row of this table; NULL: a key */
    size_t table_size;
    int64_t ttl_ms;
    int64_t number;     /* incr: by how much; cas, delete: the version asked for */
    uint8_t flags;      /* KV_FLAG_BIG: value is a kv_big */
    bool keep_expiry;
    uint8_t row_id[KV_ROW_ID_SIZE]; /* of a row that gets one */
    target at;
    found old;
    table_state state;  /* of the table, where there is one */
    kv_result result;
    kv_position upto;   /* what has to be durable for it to be */
} write_op;
typedef kv_status (*write_step)(kv_caller *c, write_op *w);

/* store.c */
kv_status store_usable(const kv_store *store); /* open, and not in a forked child; the first look of every call */
kv_status store_writable(const kv_store *store);
int64_t store_now(const kv_store *store);
int64_t store_judge_ms(const kv_store *store); /* what expiries are held against */
uint64_t store_next_version(const kv_store *store);
uint64_t store_table_id(const kv_store *store, uint64_t nth); /* of the nth table that the next version makes, from 0 */
void store_note_content(kv_store *store); /* tells the flow how much is live, for segment sizes; writer lock */
void store_set_clock(kv_store *store, int64_t clock_ms); /* writer lock, or nobody else is there yet */
kv_status store_append(kv_store *store, kv_record *record, kv_position *position, uint32_t *used);
kv_status store_append_pair(kv_store *store, kv_record *first, kv_record *second, kv_position at[2], uint32_t used[2]);
/* Runs one step under the writer lock; waits, if asked to, until what it wrote is durable. store_write() also does
 * where the store is open with KV_SYNC_ALWAYS. */
kv_result store_hold(kv_caller *c, write_step step, write_op *w, int durable);
kv_result store_write(kv_caller *c, write_step step, write_op *w, int durable);
/* Runs what only looks, without the lock: inside the epoch and under a guard, unless the store is closed. */
typedef kv_status (*look_step)(void *context);
kv_status store_look(kv_caller *c, look_step step, void *context);
kv_result caller_fail(kv_caller *c, kv_status status, const char *what);
kv_status key_check(size_t key_size);
kv_status name_check(const uint8_t *table, size_t table_size, size_t key_size); /* of a key, or of a row in a table */
kv_result refuse_name(kv_caller *c);
kv_status fault_corrupt(kv_fault *fault, uint64_t location, const char *what);
int64_t store_deadline(const kv_store *store, int64_t ttl_ms); /* 0: never; below: that moment itself */
kv_status store_note_clock(kv_store *store, int64_t expires_ms); /* writer lock */
kv_status store_write_clock(kv_store *store);                    /* the same, in any case */
kv_result answer_expired(kv_caller *c, int64_t expires_ms);          /* KV_ABSENT, after noting the clock */

/* find.c */
uint64_t store_hash(const kv_store *store, const uint8_t *key, size_t size);
target target_key(const kv_store *store, const uint8_t *key, size_t size);
target target_row(const kv_store *store, uint64_t table_id, const uint8_t *row, size_t size);
target target_table(const kv_store *store, uint64_t table_id, unsigned class);
target target_of(const kv_store *store, const kv_record *record); /* the slot of its name */
kv_status store_find(kv_store *store, const target *t, found *out, kv_fault *fault); /* KV_ABSENT: location 0 */
kv_status store_peek(const kv_store *store, found *out); /* at out->location, its head checked; KV_ABSENT: no such place */
kv_status store_look_at(kv_store *store, const target *t, found *out, kv_fault *fault); /* at out->location */
/* The slot with this hash that holds this location; false: there is none any more. Reads no record. */
bool store_probe(kv_store *store, uint64_t hash, uint64_t location, kv_probe *probe);
bool found_intact(const found *f); /* its checksum is right; verified once, by whoever asks first */
bool found_intact_once(const kv_store *store, const found *f); /* the same, a large one once as long as it is mapped */
/* For whoever is not after its value: a large one that this opener wrote counts as whole unseen. */
bool found_whole(const kv_store *store, found *f);
/* For whoever is: KV_ECORRUPT if it is not what was written. */
kv_status found_value(kv_caller *c, const found *f);
/* The bytes of a value that is no file; in a replica they may be those of a DATA record, or, KV_ELACKING, not be here. */
kv_status found_bytes(kv_store *store, const found *f, const uint8_t **bytes, uint64_t *size, kv_fault *fault);
bool found_tombstone(const found *f);
bool found_table(const found *f);
bool found_alive(kv_store *store, const found *f); /* there, no tombstone, not expired */
/* Finds what a decision may rest on (its version, its value, its expiry): bytes that are intact, and a time that is
 * written down. Location 0: never seen, or forgotten. Writer lock. */
kv_status store_find_trusted(kv_caller *c, const target *t, found *out, bool *alive);
kv_status store_find_table(kv_caller *c, const uint8_t *key, size_t size, table_state *out); /* id 0: absent; KV_EWRONGTYPE */
/* As of the caller's snapshot, or now. */
kv_status reader_find(kv_caller *c, const target *t, found *out);
kv_status reader_find_table(kv_caller *c, const uint8_t *key, size_t size, table_state *out); /* KV_ABSENT; KV_EWRONGTYPE */
bool reader_alive(kv_caller *c, const found *f);

/* show.c */
uint64_t store_location(const kv_record *record, kv_position position); /* what its slot holds */
bool makes_head(const kv_record *record); /* of its table, if it is the newest */
kv_status store_index_put(kv_store *store, uint64_t hash, const found *old, const kv_record *record,
                          kv_position position, uint32_t used);
kv_status store_put_head(kv_store *store, const kv_record *record, kv_position position, kv_fault *fault);
kv_status store_show(kv_store *store, const kv_record *record, kv_position position, uint32_t used, kv_fault *fault);
kv_status store_show_clock(kv_store *store, const kv_record *record, kv_position position, uint32_t used);
kv_status store_hide(kv_store *store, const found *old); /* takes a slot out of the index; not a table's key */
void count_live(counters *n, uint32_t segment, int64_t size);

/* scan.c */
/* What is otherwise in a page of changes that a replica makes (replica_changes.c). */
typedef struct change_rules {
    uint64_t began;        /* the `through` of the first page of this copy; 0: there was none */
    uint64_t through;      /* out: the table's version */
    bool ahead;            /* rules left out: the consumer has seen more than is applied here, and is sent back; */
    bool splits, blind;    /* a page ends anywhere; the floor is passed over */
} change_rules;
kv_result store_changes(kv_caller *c, const uint8_t *table, size_t table_size, uint64_t since, uint64_t count_max,
                        change_rules *rules, kv_change_page *out);

/* write.c */
void row_moves_next(table_state *table, const uint8_t *row, size_t size); /* a row that is put */
/* Deletes what has expired and stands in this slot, under a new version, so that the change feed and waiters hear of it.
 * *deleted: bool. Writer lock. */
kv_status store_expire(kv_caller *c, const target *t, bool *deleted);
kv_status store_next_row(kv_caller *c, const table_state *table, uint64_t version, uint8_t row[KV_ROW_ID_SIZE], uint64_t *id);

/* read.c */
bool store_look_again(kv_caller *c, int look);
kv_result answer_gone(kv_caller *c);
kv_status answer_room(kv_caller *c, uint64_t size, uint8_t **out);

/* snapshot.c */
/* What a slot pointed at goes into the undo table, if an open snapshot may want it; before the slot changes. Writer lock. */
kv_status snapshot_keep(kv_store *store, uint64_t hash, const found *old, const kv_record *by);
/* What the caller's snapshot sees in place of what the index has (`status`, *out). */
kv_status snapshot_find(kv_caller *c, const target *t, kv_status status, found *out);
bool snapshot_wants(kv_store *store, uint64_t hash); /* one may want to list what has this hash. Any thread. */
uint64_t snapshot_size(const kv_store *store);
int64_t snapshot_now(const kv_snapshot *snapshot);
bool snapshot_ended(const kv_snapshot *snapshot); /* and what was read is worth nothing. NULL: the present, which does not */
bool snapshot_shows_file(const kv_store *store, uint64_t file_id); /* an open one may read this value file. Writer lock. */
uint64_t snapshot_oldest(const kv_store *store); /* the sequence of the oldest open one; UINT64_MAX: none. Writer lock. */

/* many.c: values one behind the other in the caller's answer */
typedef struct gathering {
    uint64_t used;      /* bytes gathered */
    int64_t expired_ms; /* the latest expiry of a key that was left out for it */
    bool skip_tables;   /* whose key has no value; else KV_EWRONGTYPE */
    uint64_t size_max;  /* a larger value is not gathered; 0: any is */
} gathering;
void store_prefetch(kv_store *store, uint64_t location); /* the record there; 0: nothing */
/* Room for `more` bytes behind the `used` ones; the small buffer as long as everything fits. */
kv_status gather_room(kv_caller *c, uint64_t used, uint64_t more, uint8_t **out);
/* Puts the value of a key behind what is gathered; *size -1: there is none, -2 less its size: it is too large. KV_MORE: its
 * file is missing. */
kv_status gather_value(kv_caller *c, const target *t, gathering *g, int64_t *size);

/* expect.c: KV_OK if nothing was written since *sequence, or all of it still holds, which *sequence then remembers.
 * KV_ECONFLICT: answer.number is the one that does not, answer.version what its key is at. Writer lock. */
kv_status store_expect(kv_caller *c, const kv_expectation *expectations, size_t count, uint64_t *sequence);

/* scan.c: names that may be live */
enum { CANDIDATE_COUNT_MAX = 32 };
typedef struct candidate {
    const uint8_t *name;
    uint32_t name_size;
    uint32_t space;
    uint64_t version;  /* of a change */
    uint64_t seen;     /* an intact record of this name, as kv_order_seen(); 0: none was looked at */
    uint64_t location; /* the first that the index has for it, which may be another name's; 0: none */
    target at;         /* the slot it is about: of a change, the row's */
} candidate;
typedef struct candidates {
    candidate at[CANDIDATE_COUNT_MAX];
    size_t count;
    uint8_t *bytes;
    size_t capacity;
} candidates;
/* The next ones of a cursor, with what a look into the index will want prefetched. KV_EOF: no more behind them. */
kv_status candidates_take(kv_store *store, kv_order_cursor *cursor, size_t count, candidates *block);
/* Where the names of a table begin in a space: 9 bytes. */
enum { TABLE_NAME_SIZE = 9 };
void table_name(unsigned space, uint64_t table_id, uint8_t name[TABLE_NAME_SIZE]);
kv_status order_fault(kv_store *store, const kv_order_cursor *cursor, kv_fault *fault); /* after KV_ECORRUPT */
void scan_free(scan_scratch *scratch); /* accepts NULL */

/* store_open.c */
kv_status counters_room(counters *c, uint32_t segment);

/* wake.c */
void wake_init(kv_store *store);
void wake_free(kv_store *store);
kv_status wake_start(kv_store *store);
void wake_stop(kv_store *store);
unsigned wake_wanted(kv_store *store);              /* writer lock: who has to hear of what was just written */
void wake_threads(kv_store *store, unsigned wanted); /* after it */
void wake_waiters(kv_store *store);
void wake_bells(kv_store *store); /* rings; no other lock of the store is held */

/* bigs.c */
bool file_name_id(const char *name, const char *suffix, uint64_t *id); /* "%016x" and the suffix, nothing else */
kv_status big_set_add(big_set *set, uint64_t id);
void big_set_remove(big_set *set, uint64_t id);
bool big_set_has(const big_set *set, uint64_t id);
kv_status big_fault(kv_caller *c, const found *f); /* KV_ECORRUPT: its value file is not what was written */
kv_status big_write(kv_caller *c, const uint8_t *value, size_t size, kv_big *out);
void big_give_up(kv_store *store, const kv_big *big); /* its record was never appended */
kv_status big_read(kv_caller *c, const kv_big *big, uint8_t *to);
void big_retire(kv_store *store, const kv_big *big, kv_position since, uint64_t replaced);
void big_reap(kv_store *store);          /* unlinks what is retired and durable; what fails, the next open sweeps */
kv_status big_sweep(kv_store *store);    /* at open: unlinks what no record points to */

/* compact.c: takes segments out that were empty as of a published checkpoint. */
bool store_has_empty(kv_store *store, const counters *as_of, kv_position position); /* writer lock */
kv_status store_remove_segments(kv_store *store, const counters *as_of, kv_position position);

/* checkpoint.c */
kv_status checkpoint_load(kv_store *store, const uint8_t *bytes, size_t size, kv_position *start);
void checkpoint_unload(kv_store *store);
const uint8_t *checkpoint_store_id(const uint8_t *bytes); /* of a description that was loaded */
bool checkpoint_belongs(const kv_store *store, const uint8_t *bytes);
/* At open: unlinks index files and runs that the checkpoint in use, if any, does not refer to. */
kv_status checkpoint_sweep(kv_store *store, const uint8_t *bytes, size_t size);

#endif
