/* store_internal.h -- what the files of the store share, and nobody else sees.
 *
 *   store.c       one key: find, write, put, get, delete, cas, incr, append, expire
 *   many.c        many keys in one call; batches
 *   expect.c      what transactions have read, and whether it still holds
 *   scan.c        keys in order
 *   store_open.c  open, replay, close; counters
 *   wake.c        the two threads, who waits for a version, and event loops that are told
 *   bigs.c        values in files of their own
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
} big_retired;

typedef struct counters {
    _Atomic uint64_t key_count;
    _Atomic uint64_t tombstone_count;
    uint64_t big_count;
    uint64_t big_size;
    uint64_t live_size;
    uint64_t *segment_live; /* by segment id */
    uint32_t segment_capacity;
} counters;

struct kv_store {
    kv_io *io;
    kv_options options;
    kv_epoch *epoch;
    kv_flow *flow;
    kv_index *index;
    kv_order *order;
    uint64_t hash_seed;
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
    uint64_t generation;         /* high half of the ids of value and index files: unlike that of every opener before */
    _Atomic uint32_t big_next;   /* the low half of the next value file's id */
    bool checkpointing;          /* one is under way; writer lock */
    uint32_t index_file_next;    /* the same for index files and runs; the one checkpoint at a time */
    _Atomic bool big_dir_made;
    _Atomic bool index_damaged;  /* an index file or a run did not hold what was written: no more checkpoints on top */
    uint64_t replayed_count;
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
    uint64_t place;
} found;

/* One write under the lock: what is asked for, what stands there, what comes of it. */
typedef struct write_op {
    const uint8_t *key;
    size_t key_size;
    const uint8_t *value;
    size_t value_size;
    uint64_t hash;
    int64_t ttl_ms;
    int64_t number;     /* incr: by how much; cas, delete: the version asked for */
    uint8_t flags;      /* KV_FLAG_BIG: value is a kv_big */
    bool keep_expiry;
    found old;
    kv_result result;
    kv_position upto;   /* what has to be durable for it to be */
} write_op;
typedef kv_status (*write_step)(kv_caller *c, write_op *w);

/* store.c */
uint64_t store_hash(const kv_store *store, const uint8_t *key, size_t size);
kv_status store_find(kv_store *store, const uint8_t *key, size_t key_size, uint64_t hash, found *out, kv_fault *fault);
kv_status store_usable(const kv_store *store); /* open, and not in a forked child; the first look of every call */
kv_status store_writable(const kv_store *store);
int64_t store_now(const kv_store *store);
void store_set_clock(kv_store *store, int64_t clock_ms); /* writer lock, or nobody else is there yet */
bool found_tombstone(const found *f);
bool found_alive(kv_store *store, const found *f); /* there, no tombstone, not expired */
kv_status store_append(kv_store *store, kv_record *record, kv_position *position, uint32_t *used);
kv_status store_index_put(kv_store *store, uint64_t hash, const found *old, const kv_record *record,
                          kv_position position, uint32_t used);
/* Finds what a decision may rest on (its version, its value, its expiry): bytes that are intact, and a time that is
 * written down. Location 0: never seen, or forgotten. Writer lock. */
kv_status store_find_trusted(kv_caller *c, const uint8_t *key, size_t key_size, uint64_t hash, found *out, bool *alive);
/* Runs one step under the writer lock; waits, if asked to, until what it wrote is durable. store_write() also does
 * where the store is open with KV_SYNC_ALWAYS. */
kv_result store_hold(kv_caller *c, write_step step, write_op *w, int durable);
kv_result store_write(kv_caller *c, write_step step, write_op *w, int durable);
bool store_look_again(kv_caller *c, int look);
kv_status answer_room(kv_caller *c, uint64_t size, uint8_t **out);
kv_result caller_fail(kv_caller *c, kv_status status, const char *what);
kv_status key_check(size_t key_size);
kv_status fault_corrupt(kv_fault *fault, uint64_t location, const char *what);
kv_status big_fault(kv_caller *c, const found *f); /* KV_ECORRUPT: its value file is not what was written */
int64_t store_deadline(const kv_store *store, int64_t ttl_ms); /* 0: never */
kv_status store_note_clock(kv_store *store, int64_t expires_ms); /* writer lock */
kv_result answer_expired(kv_caller *c, int64_t expires_ms);          /* KV_ABSENT, after noting the clock */

/* many.c: values one behind the other in the caller's answer */
typedef struct gathering {
    uint64_t used;      /* bytes gathered */
    int64_t expired_ms; /* the latest expiry of a key that was left out for it */
} gathering;
void store_prefetch(kv_store *store, uint64_t location); /* the record there; 0: nothing */
/* Room for `more` bytes behind the `used` ones; the small buffer as long as everything fits. */
kv_status gather_room(kv_caller *c, uint64_t used, uint64_t more, uint8_t **out);
/* Puts the value of a key behind what is gathered; *size -1: there is none. KV_MORE: its file is missing. */
kv_status gather_value(kv_caller *c, const uint8_t *key, uint32_t key_size, uint64_t hash, gathering *g, int64_t *size);

/* expect.c: KV_OK if nothing was written since *sequence, or all of it still holds, which *sequence then remembers.
 * KV_ECONFLICT: answer.number is the one that does not, answer.version what its key is at. Writer lock. */
kv_status store_expect(kv_caller *c, const kv_expectation *expectations, size_t count, uint64_t *sequence);

/* scan.c: names that may be live */
enum { CANDIDATE_COUNT_MAX = 32 };
typedef struct candidate {
    const uint8_t *name;
    const uint8_t *key;
    uint64_t hash;
    uint32_t name_size;
    uint32_t key_size;
} candidate;
typedef struct candidates {
    candidate at[CANDIDATE_COUNT_MAX];
    size_t count;
    uint8_t *bytes;
    size_t capacity;
} candidates;
/* The next ones of a cursor, with what a look into the index will want prefetched. KV_EOF: no more behind them. */
kv_status candidates_take(kv_store *store, kv_order_cursor *cursor, size_t count, candidates *block);
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
kv_status big_write(kv_caller *c, const uint8_t *value, size_t size, kv_big *out);
void big_give_up(kv_store *store, const kv_big *big); /* its record was never appended */
kv_status big_read(kv_caller *c, const kv_big *big, uint8_t *to);
void big_retire(kv_store *store, const kv_big *big, kv_position since);
void big_reap(kv_store *store);          /* unlinks what is retired and durable; what fails, the next open sweeps */
kv_status big_sweep(kv_store *store);    /* at open: unlinks what no record points to */

/* checkpoint.c */
kv_status checkpoint_load(kv_store *store, const uint8_t *bytes, size_t size, kv_position *start);
void checkpoint_unload(kv_store *store);
const uint8_t *checkpoint_store_id(const uint8_t *bytes); /* of a description that was loaded */
bool checkpoint_belongs(const kv_store *store, const uint8_t *bytes);
/* At open: unlinks index files and runs that the checkpoint in use, if any, does not refer to. */
kv_status checkpoint_sweep(kv_store *store, const uint8_t *bytes, size_t size);

#endif
