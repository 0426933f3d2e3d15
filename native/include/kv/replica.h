/* replica.h -- one replica of a set, as a state machine: the quorum decides versions, the flow carries the records.
 *
 *     in     kv_replica_receive   bytes from a peer            kv_replica_tick      time has passed
 *            kv_replica_request   a client asks                kv_replica_durable   the log is on the disk up to here
 *            kv_replica_takeover  take these shards over
 *     out    kv_replica_outbox    bytes for a peer             kv_replica_answers   for clients
 *            kv_replica_tail      the log wants to be on the disk up to here
 *
 * Whoever drives it hands over what has come, calls kv_replica_flush() once for all of it, sends what lies in the
 * outboxes, hands out the answers, makes the log durable and says so. There is no socket, no clock, no thread and no
 * random number in here; the log is written through the store's kv_io, and nothing waits for a disk unless a segment
 * is full.
 *
 * The rules are docs/protocol/specification.md, and the names here are its names. One handle, one thread. */
#ifndef KV_REPLICA_H
#define KV_REPLICA_H

#include "flow.h"
#include "io.h"
#include "store.h"

enum { KV_MEMBERS_MAX = 7, KV_NODES_MAX = 16, KV_SHARDS_MAX = 1024, KV_SLOT_COUNT = 16384 };

typedef struct kv_replica kv_replica;

typedef struct kv_replica_options {
    uint16_t node;                        /* its id; never that of another disk */
    uint16_t members[KV_MEMBERS_MAX];     /* ids that the set began with; the same for everybody and for ever */
    uint32_t member_count;                /* 1, 3 or 5 */
    uint32_t shard_count;                 /* fixed when the set is made; 0: 64 */
    uint32_t session_max;                 /* lanes that a shard remembers, at most 2^18; 0: 1024 */
    uint32_t keep_max;                    /* applied version records that a shard keeps for peers; 0: 65,536 */
    uint32_t piece_tables;                /* tables of the index that a piece of a snapshot is of; 0: 4 */
    uint32_t batch_max;                   /* version records of a shard in one message; 0: 256 */
    uint64_t window_size_max;             /* bytes under way to a peer; 0: 16 MiB */
    uint64_t incarnation_min;             /* above every one this disk ever had, where that is known otherwise; or 0 */
    uint32_t retransmit_ticks;            /* no progress for so long: the connection is given up. 0: 6 */
    uint32_t takeover_ticks;              /* a takeover that takes longer is given up. 0: 8 */
    uint32_t read_ticks;                  /* so is a read. 0: 10 */
    uint32_t heartbeat_ticks;             /* commits are told without records every so often. 0: 4 */
    int32_t policy;                       /* bool: takes over what has no living owner, and gives back what it should not own */
    uint32_t silence_ticks;               /* policy: not heard of for so long, a member is taken for gone. 0: 16 */
    uint32_t hold_ticks;                  /* policy: a shard is not given back sooner. 0: 12 */
    uint32_t healthy_ticks;               /* policy: nor to one that has been there for less. 0: 40 */
    uint32_t pending_max;                 /* answers a shard owes at most; who comes then is told to retry. 0: 65,536 */
    uint32_t wait_max;                    /* waits under way, of all shards; the same. 0: 16,384 */
    int32_t damaged;                      /* bool: the disk lost something: no votes, no ownership */
    int32_t await_hello;                  /* bool: it says nothing before all others have compared its disk with what they
                                             remember; else before it and those who have are a majority. Decision 0030 */
    uint64_t boot;                        /* a number that no other start of the disk has; 0: it draws one */
    uint16_t gone[KV_NODES_MAX];          /* nodes that will never be back, and are not waited for */
    uint32_t gone_count;
    uint64_t mutations;                   /* rules left out, for tests: KV_MUTATE_* */
    int64_t inline_max;                   /* larger values go by digest. 0: 4096; KV_INLINE_NOTHING: all values do */
    uint64_t fetch_size_max;              /* bytes of values being fetched; 0: 4 MiB */
    kv_options store;
    int32_t joins;                        /* bool: its id is none of `members`: it learns, and may be made a member */
    uint64_t keep_size_max;               /* bytes at the end of the log in which records are kept for peers; 0: 64 MiB */
    const uint8_t *checkpoint;            /* the newest published one (kv_replica_checkpoint), or NULL. Not kept */
    size_t checkpoint_size;
} kv_replica_options;

enum { KV_INLINE_NOTHING = -1 }; /* inline_max 0: the quorum never sees bytes of a value. */

/* Rules that tests leave out, to see them missed. Bits; 0 in every real replica. */
enum kv_mutation {
    KV_MUTATE_ACK_BEFORE_FSYNC = 0,  /* a peer acknowledges before its fdatasync */
    KV_MUTATE_PROMISE_NOT_DURABLE,   /* PROMISE is answered before its fdatasync */
    KV_MUTATE_ROUND_REUSED,          /* the own PROMISE is not logged: a restart may use the round again */
    KV_MUTATE_COUNT_OLDER,           /* records of older ballots are counted for commit */
    KV_MUTATE_NO_PREV_CHECK,         /* the ballot of the record before is not compared */
    KV_MUTATE_CUT_BELOW_COMMIT,      /* an APPEND at or below commit may cut */
    KV_MUTATE_LONGEST_TAIL,          /* a takeover adopts the longest tail, not the one of the highest ballot */
    KV_MUTATE_READ_BEFORE_BARRIER,   /* reads are answered before the barrier is committed */
    KV_MUTATE_READ_NO_CHECK,         /* the owner's reads skip the majority's confirmation */
    KV_MUTATE_NO_SESSIONS,           /* no session table */
    KV_MUTATE_DAMAGED_VOTES,         /* a replica whose disk lost something goes on voting */
    KV_MUTATE_CUT_ALWAYS,            /* an APPEND cuts what follows it also where it is the same record */
    KV_MUTATE_COMMIT_UNVERIFIED,     /* a follower takes the commit position without the matching prefix */
    KV_MUTATE_OLD_ACKS,              /* cursors of an earlier connection are counted for the present one */
    KV_MUTATE_SELF_BEFORE_FSYNC,     /* the owner counts itself before its own fdatasync */
    KV_MUTATE_CHECK_JOINED,          /* a read joins a check that is under way */
    KV_MUTATE_FAIL_UNRECORDED,       /* a failed condition of a later attempt leaves no record */
    KV_MUTATE_FAIL_NO_WAIT,          /* a failed condition is answered at once */
    KV_MUTATE_EVICT_BLIND,           /* a request without a session is executed whatever it has seen */
    KV_MUTATE_PROMISE_LATE_TAIL,     /* PROMISE shows a tail taken after a still higher ballot came: harmless */
    KV_MUTATE_RESTART_OWNS,          /* a restarted replica still owns what it had promised itself */
    KV_MUTATE_FOLLOWER_LOCAL,        /* a follower answers at its own applied position */
    KV_MUTATE_SNAPSHOT_DROPS_TAIL,   /* a snapshot is installed whatever commit and tail are here */
    KV_MUTATE_SNAPSHOT_READ_EARLY,   /* what came in pieces is read before it is of one moment */
    KV_MUTATE_SNAPSHOT_NO_SESSIONS,  /* a snapshot leaves out what the lanes were told */
    KV_MUTATE_EXPIRE_LOCALLY,        /* whoever answers a read holds expiries against its own clock */
    KV_MUTATE_REMOVED_VOTES,         /* promises, acks and checks of replicas that are no members are counted */
    KV_MUTATE_FIRST_MEMBERS,         /* majorities are counted among the members that the set began with */
    KV_MUTATE_TAKER_MEMBERS,         /* promises are counted among the taker's members, not those of the tail it adopts */
    KV_MUTATE_CONFIG_SWAP,           /* one record removes a member and adds another */
    KV_MUTATE_CONFIG_TWO,            /* a CONFIG record does not wait until the one before is committed */
    KV_MUTATE_CONFIG_EARLY,          /* nor until a record of the own ballot is */
    KV_MUTATE_CUT_KEEPS_MEMBERS,     /* a cut does not take back the members of what it cuts */
    KV_MUTATE_SNAPSHOT_NO_MEMBERS,   /* a snapshot leaves out the members */
    KV_MUTATE_OUTSIDER_HEARD,        /* a member no more gets promises, and others wait for what it never will own */
    KV_MUTATE_EXPIRE_UNWAITED,       /* the owner answers "absent" before its delete is committed */
    KV_MUTATE_NAMES_UNSAID,          /* who asks for a position does not say what will be read */
    KV_MUTATE_WAIT_UNLOOKED,         /* a wait is not held against what is there as it comes */
    KV_MUTATE_WAIT_EARLY,            /* a wait is held against what is undecided, too */
    KV_MUTATE_PAGE_SPLITS,           /* a page of changes may end within a version */
    KV_MUTATE_FLOOR_IGNORED,         /* changes below the floor are called complete */
    KV_MUTATE_BEHIND_RESTARTS,       /* a replica that is behind a consumer tells it to begin again */
    KV_MUTATE_HEARSAY_IGNORED,       /* an owner that is not heard here is taken for gone, whoever else hears it */
    KV_MUTATE_META_AS_DATA,          /* under `data` a record is accepted without its bytes */
    KV_MUTATE_META_EARLY,            /* a META record leaves its origin before its bytes are durable there */
    KV_MUTATE_DROP_PREVIOUS,         /* nothing is kept behind a META */
    KV_MUTATE_SNAPSHOT_NO_HISTORY,   /* a snapshot leaves out what is kept behind the newest version */
    KV_MUTATE_DIGEST_UNCHECKED,      /* fetched bytes are taken for what was asked for */
    KV_MUTATE_COLLECT_EARLY,         /* bytes that nothing names go before their version is decided */
    KV_MUTATE_STATE_NOT_DURABLE,     /* a segment goes before the STATE that stands for it is written */
    KV_MUTATE_CHECKPOINT_AHEAD,      /* a checkpoint is published before the log it stands on is durable */
    KV_MUTATE_UNDECIDED_GOES,        /* a segment goes whatever records in it are undecided, or kept */
    KV_MUTATE_STATE_NO_SESSIONS,     /* STATE leaves out what the lanes were told */
    KV_MUTATE_STATE_NO_MEMBERS,      /* nor is it asked for the members */
    KV_MUTATE_HOLE_ACKED,            /* an ack vouches for what is behind a damaged record: harmless */
    KV_MUTATE_REPAIR_CUTS,           /* what is fetched back is logged like any other record, which cuts at replay */
    KV_MUTATE_PROMISE_UNTOLD,        /* a PROMISE that is damaged is taken for nothing */
    KV_MUTATE_WIPED_RETURNS,         /* HELLO does not compare the disk: a wiped one returns under its node id */
    KV_MUTATE_ROLLBACK_UNSEEN,       /* HELLO compares nothing */
    KV_MUTATE_MENDED_GOES,           /* what was fetched back goes with the segment of what was damaged */
    KV_MUTATE_HELLO_UNAWAITED,       /* await_hello: it speaks before all others have answered HELLO */
    KV_MUTATION_COUNT,
};
const char *kv_mutation_name(int32_t mutation); /* "ack_before_fsync"; NULL: there is none */

/* Opens the store behind `io` (which it owns from now on, also when this fails) and replays its log. Owns nothing, and
 * says nothing but HELLO before others have answered that and the log is durable for the first time. KV_EUSAGE: the options
 * make no set, or the disk is another node's. KV_ECORRUPT: damage of which nothing tells what it was; KV_EBACKWARDS: its peers
 * found it to be wiped or set back. With either the disk counts as wiped: it may come back empty, as another node. */
kv_status kv_replica_open(kv_io *io, const kv_replica_options *options, kv_fault *fault, kv_replica **out);
void kv_replica_free(kv_replica *replica); /* the store is closed as by a crash; accepts NULL */

/* --- in --- */

void kv_replica_tick(kv_replica *replica);
/* Whole frames; bytes that are none: KV_EUSAGE, and the connection they came on is of no more use. */
kv_status kv_replica_receive(kv_replica *replica, uint16_t from, const uint8_t *bytes, size_t size);
/* The log is durable before `upto`, a kv_position_order(). */
void kv_replica_durable(kv_replica *replica, uint64_t upto);
/* Those of the shards that it does not own and is not taking over already; before it may speak: as soon as it may. */
void kv_replica_takeover(kv_replica *replica, const uint16_t *shards, size_t count);
/* The connection to a member broke: with a policy it is taken for gone, until it is heard of again, and without waiting for
 * silence_ticks. What it owns is taken over when nobody else hears it either, in the next flush after they said so. */
void kv_replica_lost(kv_replica *replica, uint16_t node);

/* There is a replica of that id: it is spoken to and heard from now on, until this one is closed. Who is a member of a shard is
 * known without it. KV_EUSAGE: 0, or its own id; KV_ELIMIT: KV_NODES_MAX are known. */
kv_status kv_replica_meet(kv_replica *replica, uint16_t node);
/* There is none any more, and bytes of values that it alone has (kv_replica_lag_of) are not got from it. KV_EUSAGE: it is a
 * member of a shard, as far as this one knows, or not known. */
kv_status kv_replica_part(kv_replica *replica, uint16_t node);

/* Makes a replica that learns a member of a shard, or ends that; asked of the owner. */
typedef struct kv_member_change {
    uint64_t token;     /* comes back with the answer: OK once it is committed, or was so before */
    uint16_t shard;
    uint16_t add;       /* a node; 0: nobody */
    uint16_t remove;    /* likewise; one of the two */
} kv_member_change;
/* RETRY: it is not the owner (one that is to remove itself gives the shard away first), another change is under way, or who
 * is to be added does not follow yet. FAILED, KV_ECONFLICT: the set would be of another size than all members or one less. */
void kv_replica_member_change(kv_replica *replica, const kv_member_change *change);
/* Of an owner: whether a node follows its flow, as it has to before it is added. */
bool kv_replica_follows(const kv_replica *replica, uint32_t shard, uint16_t node);

enum kv_request_kind {
    KV_REQUEST_GET = 1,    /* a key, or a row where there is a table */
    KV_REQUEST_READ,       /* anything the asker reads itself, from the store, when it has the answer; `operations` may
                              name up to KV_READ_NAMES_MAX keys and rows, for the owner to see what of them is over */
    KV_REQUEST_PUT,
    KV_REQUEST_DELETE,
    KV_REQUEST_CAS,        /* number: the version; 0: absent */
    KV_REQUEST_INCR,       /* number: by how much */
    KV_REQUEST_APPEND,
    KV_REQUEST_EXPIRE,
    KV_REQUEST_ROW_APPEND, /* under an id of its own */
    KV_REQUEST_DROP,       /* the table `key` */
    KV_REQUEST_BATCH,      /* operations, all or nothing, in one shard */
    KV_REQUEST_TRIM,       /* of the table `key`: the floor of its changes rises to version `argument`, at most its own */
    KV_REQUEST_WAIT,       /* until `key`, or the table of that name, or with `whole` its shard, is newer than `since`:
                              answered where it was asked, owner or not, from what is applied there. OK: the version it
                              has; one that is not above `since` says that the time is up, or that it cannot be told */
    KV_REQUEST_FORGET,     /* an operator's: a key or row whose bytes are lost falls back to the version kept behind */
    KV_REQUEST_KIND_END,
};
enum { KV_READ_NAMES_MAX = 1024 };

enum kv_durability {
    KV_DURABILITY_VERSION = 0, /* a majority holds the version, and who wrote the value its bytes */
    KV_DURABILITY_DATA,        /* a majority holds both */
};

typedef struct kv_ask {
    uint64_t token;     /* comes back with the answer */
    uint8_t kind;       /* enum kv_request_kind */
    uint8_t follower;   /* bool: a read that a replica which is not the owner may answer, after asking it */
    uint8_t stale;      /* bool: a read that needs to be no newer than what is here */
    uint16_t attempt;   /* from 1; every sending, also on somebody's behalf, is a new one */
    uint32_t lane;
    uint64_t client;    /* 0: a write whose answer nobody will ask for again */
    uint64_t number;    /* of the request in its lane, ascending */
    uint64_t seen;      /* the highest version of the shard that the client knew at attempt 1 */
    const uint8_t *key; /* of a row: the row */
    size_t key_size;
    const uint8_t *table;
    size_t table_size;
    const uint8_t *value;
    size_t value_size;
    int64_t argument;   /* CAS: version; INCR: by; DELETE: version or -1 */
    int64_t ttl_ms;
    kv_operation *operations;
    size_t operation_count;
    const kv_expectation *expectations; /* BATCH: versions that have to stand, or it fails with KV_ECONFLICT */
    size_t expectation_count;
    uint64_t since;     /* WAIT */
    uint64_t ticks;     /* WAIT: so long at most; 0: for ever */
    uint8_t whole;      /* WAIT, bool: for anything in the shard of `key` */
    uint8_t durability; /* enum kv_durability: of values that are not inline */
} kv_ask;
void kv_replica_request(kv_replica *replica, const kv_ask *ask);
/* The same of several, in their order: what they will touch is fetched side by side. */
void kv_replica_requests(kv_replica *replica, const kv_ask *asks, size_t count);
/* The waits with this token end without an answer, unless that has been given. */
void kv_replica_cancel(kv_replica *replica, uint64_t token);

/* The operator's word that a member will never be back: its answer to HELLO is not waited for. */
void kv_replica_declare_gone(kv_replica *replica, uint16_t node);

/* --- out --- */

/* Packs what has come up into the outboxes and the answers; once after every row of the calls above. */
void kv_replica_flush(kv_replica *replica);

enum kv_answer_status {
    KV_ANSWER_OK = 0,
    KV_ANSWER_FAILED,      /* a condition did not hold, or the kind was wrong: `error` says which */
    KV_ANSWER_RETRY,       /* not here, or not now; says nothing about earlier attempts */
    KV_ANSWER_UNKNOWN,     /* it may have been executed, and nobody knows any more what came of it */
    KV_ANSWER_UNAVAILABLE, /* what is asked for cannot be had now. KV_ELACKING: nobody within reach has the value's bytes */
    KV_ANSWER_SEEN,        /* not executed, and no copy ever will be: send it again, with `seen` = version */
    KV_ANSWER_REFUSED,     /* what no replica would take: `error` */
};
typedef struct kv_reply {
    uint64_t token;
    int32_t status;     /* enum kv_answer_status */
    int32_t error;      /* a kv_status */
    uint64_t version;   /* of the record written; of a read, what it read; SEEN: what to say; a failed CAS: the current one */
    uint64_t shard_version; /* what the client may take as `seen` from now on */
    int64_t number;     /* INCR: the sum; APPEND: the size; ROW_APPEND: the row's id; FORGET: the version fallen back to */
    int64_t value_size; /* GET: -1: absent */
    uint64_t value_at;  /* in the bytes */
    uint64_t lag;       /* of a stale read: versions known to be committed and not applied here */
    uint16_t holder;    /* UNAVAILABLE: who has the bytes, as far as is known; its version is `version` */
} kv_reply;
/* All since the last clear. The pointers stay until the next call of any kind. */
void kv_replica_answers(kv_replica *replica, const kv_reply **replies, size_t *count, const uint8_t **bytes);
/* Bytes for a node that is known; NULL: none. A row of frames, each of which may be lost, or come twice, without harm. */
const uint8_t *kv_replica_outbox(kv_replica *replica, uint16_t to, size_t *size);
void kv_replica_clear(kv_replica *replica); /* answers and outboxes have been taken */

/* --- giving disk back: on the replica's thread, between other calls, whenever the driver likes (docs/decisions/0027) --- */

/* A step of moving what is live out of the oldest segment, so that the next checkpoint takes that out of the log. KV_MORE: of
 * this segment there is more. KV_OK: it is done, whether there was anything to do or not; the next call begins with the next.
 * KV_EOF: no segment is old enough (keep_size_max). KV_EWAIT: the oldest one holds something that
 * cannot be moved now: records that are undecided, or that a peer was promised. KV_ENOSPC: there is no room to move into. Others: the store is damaged, or poisoned. */
kv_status kv_replica_trim(kv_replica *replica);

/* A step of a checkpoint, which begins one if none is under way. KV_MORE. KV_EWAIT: the log has to be durable as far as it
 * goes now (kv_replica_tail). KV_EOF: nothing has changed since the last. KV_OK: *bytes are it, until the next call; to
 * be stored durably, and then kv_replica_published(): what only older ones need goes then, empty segments among it. Anything
 * else: it is given up. */
kv_status kv_replica_checkpoint(kv_replica *replica, const uint8_t **bytes, size_t *size);
kv_status kv_replica_published(kv_replica *replica); /* KV_EUSAGE: there is none that waits for this */
void kv_replica_checkpoint_end(kv_replica *replica); /* gives one up that is under way */

/* The end of the log; durable it wants to be. */
uint64_t kv_replica_tail(const kv_replica *replica);
kv_store *kv_replica_store(kv_replica *replica); /* for reads, and to sync */
kv_caller *kv_replica_caller(kv_replica *replica);
kv_flow *kv_replica_flow(kv_replica *replica);
/* KV_OK; or why it does nothing any more, and is to be ended: its log could not be written or read, or there was no memory.
 * KV_EBACKWARDS: a peer remembers more of its disk than is on it, so it must not be started on that disk again. */
kv_status kv_replica_failure(const kv_replica *replica, kv_fault *why);

/* --- reading what is applied here, in a call of one's own. It stands still from one call to the next: nothing in here is
 * done behind a driver's back. --- */

/* A page of a table's changes, as of what is applied here; KV_EOF: not now, the shard is not of one moment; KV_ELACKING: the
 * bytes of a row are not here, as kv_replica_fetch() has it. The rows lie in
 * kv_caller_answer() of kv_replica_caller(). A consumer begins with `since` and `began` 0 and an empty copy; next it asks,
 * any replica, with the page's version and the `through` of its first page. It has an exact copy, of its version, where
 * there is no more and its version has come to the highest `through` that it was shown. */
typedef struct kv_replica_page {
    kv_change_page changes; /* not complete: begin again. As kv_changes() has it, but never that because we are behind */
    uint64_t through;       /* the table's version as the page was made */
} kv_replica_page;
kv_result kv_replica_changes(kv_replica *replica, const uint8_t *table, size_t table_size, uint64_t since, uint64_t began,
                             uint64_t count_max, kv_replica_page *out);
/* Records of the shard behind `version` stay, for kv_replica_record(), until that is taken back, or until there are four
 * times keep_max of them. One hold for each shard. KV_ABSENT: they have been let go of. */
kv_status kv_replica_hold(kv_replica *replica, uint32_t shard, uint64_t version);
void kv_replica_unhold(kv_replica *replica, uint32_t shard);

/* --- looking --- */

uint16_t kv_slot_of(const uint8_t *key, size_t size);                     /* of the Redis Cluster, {tag} included */
/* Who should own a shard, of these members: 0 is the one, 1 the one if that is gone, and so on. */
uint32_t kv_owner_rank(const uint16_t *members, uint32_t count, uint32_t shard, uint16_t node);
uint32_t kv_shard_of(uint32_t shard_count, const uint8_t *key, size_t size);

typedef struct kv_shard_state {
    uint64_t promised, commit, applied, last, last_ballot, base;
    uint64_t hole;  /* the lowest version whose record is damaged and not yet fetched back: no vote here; 0: none */
    int32_t owned;  /* bool */
    int32_t taking; /* bool */
    int32_t whole;  /* bool: its state is of one moment, and may be read */
    uint16_t owner; /* who that is as far as this one knows; 0: nobody */
    int32_t member; /* bool: it has a vote */
    uint16_t members[KV_MEMBERS_MAX]; /* in force */
    uint32_t member_count;
    uint32_t changing; /* CONFIG records that it does not know to be committed */
    uint64_t barrier;  /* of an owner: the version that its ballot begins with */
} kv_shard_state;
void kv_replica_shard(const kv_replica *replica, uint32_t shard, kv_shard_state *out);
/* Digest of the record at a version that is held and above the base: what it says, not where it lies. 0: not held. */
uint64_t kv_replica_digest(kv_replica *replica, uint32_t shard, uint64_t version);
/* The nth record of it. KV_EOF: there are no more; KV_ABSENT: the version is not held. Pointers: until the next call. */
kv_status kv_replica_record(kv_replica *replica, uint32_t shard, uint64_t version, uint32_t nth, kv_record *out);

typedef struct kv_replica_counts {
    uint64_t takeovers, adoptions, step_downs, refusals, cuts, reconnects, deduplicated, evicted, failures_recorded,
        late_flows, expired, follower_reads, committed, promises, offers, snapshots, installed, configs, outsiders, questions,
        waited, fetched, spoilt, lacking, collected, settled, forgets, states, full, holes, repaired, restored,
        told; /* records of the own log that are damaged, whatever they were */
} kv_replica_counts;
const kv_replica_counts *kv_replica_count(const kv_replica *replica);

/* --- offline --- */

/* What a replica's directory holds. Nobody else has it open; nothing is written. */
typedef struct kv_examination {
    uint64_t record_count;
    uint64_t key_count, table_count, row_count;
    uint64_t applied_count;   /* versions that it knows to be committed, of all shards */
    uint64_t undecided_count; /* behind those */
    uint64_t content_count;   /* values by digest that something names */
    uint64_t missing_count;   /* of which the bytes are not here */
    uint64_t missing_size;
    uint64_t damaged_count;   /* records of the log; the next start as a member of a set fetches them from the others */
    uint64_t wrong_count;     /* slots of the index that point at no record of their name, and bytes that are not what their name says */
} kv_examination;
/* The log is replayed as a replica replays it. KV_ECORRUPT: it is damaged, where is in the fault. */
kv_status kv_replica_examine(kv_io *io, const kv_replica_options *options, kv_fault *fault, kv_examination *out);

/* How far the bulk lane is behind. */
typedef struct kv_replica_lag {
    uint64_t missing_count; /* values whose version is here, and whose bytes are not */
    uint64_t missing_size;
    uint64_t missing_ticks; /* the age of the oldest */
    uint64_t content_count; /* values by digest that are known of at all */
    uint64_t kept_count;    /* of which the version before is kept, as no majority is known to hold them */
} kv_replica_lag;
/* A read of the asker's own, through the caller, has ended with KV_ELACKING: those bytes are sent for before all others. */
void kv_replica_fetch(kv_replica *replica);
void kv_replica_lag_of(const kv_replica *replica, kv_replica_lag *out);
/* Whether the bytes of the nth record of a version that is held are here; KV_ABSENT: that has no value by digest. */
kv_status kv_replica_content(const kv_replica *replica, uint32_t shard, uint64_t version, uint32_t nth, int32_t *here);

/* What is remembered of a member's disk; false: nothing. */
typedef struct kv_replica_memory {
    uint64_t boot, incarnation, position; /* kv_position_order() */
} kv_replica_memory;
bool kv_replica_remembers(const kv_replica *replica, uint16_t node, kv_replica_memory *out);

#endif
