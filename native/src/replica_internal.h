/* replica_internal.h -- what the files of the replica share, and nobody else sees.
 *
 *   replica.c         opening, replay, what comes in and what goes out
 *   replica_write.c   the owner: evaluate, propose, commit; everybody: apply
 *   replica_flow.c    the flow from owners to peers: packing, acknowledging, accepting
 *   replica_take.c    a takeover, from both sides
 *   replica_read.c    reads, and the checks that they rest on
 *   replica_position.c  reads at a replica that is not the owner
 *   replica_wait.c    who waits for something newer
 *   replica_changes.c a table's changes, and records for who reads a shard himself
 *   replica_snapshot.c  a shard as a whole, for a peer that is far behind
 *   replica_policy.c  who should own what, and when to do something about it
 *   replica_members.c  who has a vote in a shard, and how that changes; whom this replica knows
 *   replica_digest.c  values by digest: what travels with records and behind them, what is fetched, what is kept
 *   replica_state.c   what is kept about a shard besides records, so that the log may go up to there; replaying what is left
 *   replica_trim.c    giving disk back: records that nobody needs, segments, checkpoints
 *   replica_repair.c  records of the own log that are damaged
 *   replica_hello.c   whether the disk is what it was
 *
 * beside version_log (which record is where), sessions (who was told what), lanes (who will be told what), wire (bytes), list (an array with two ends) and
 * late (the store's part). */
#ifndef KV_REPLICA_INTERNAL_H
#define KV_REPLICA_INTERNAL_H

#include "kv/replica.h"
#include "lanes.h"
#include "late.h"
#include "ledger.h"
#include "list.h"
#include "sessions.h"
#include "version_log.h"
#include "wire.h"

enum { NODE_BITS = 16, BATCH_RECORDS_MAX = 1 << 16 };
/* What keeps a FLOW below WIRE_FRAME_SIZE_MAX: nothing is added to one that has MESSAGE_SIZE_MAX bytes, and what is added
 * last is a version, of at most VERSION_SIZE_MAX (ask_fits: keys and values of half a frame, and 64 bytes a record), or a
 * piece of a snapshot: as much again, one record with as much that is kept behind it, and the lanes, at most 10 MiB. */
enum { MESSAGE_SIZE_MAX = 1 << 20, VERSION_SIZE_MAX = 40 << 20 };
static const uint64_t ROUND_MAX = ((uint64_t)1 << 48) - 1;
static inline uint64_t ballot_make(uint64_t round, uint16_t node) { return round << NODE_BITS | node; }
static inline uint64_t ballot_round(uint64_t ballot) { return ballot >> NODE_BITS; }
static inline uint16_t ballot_node(uint64_t ballot) { return (uint16_t)ballot; }

/* Who has a vote in a shard. */
typedef struct members {
    uint16_t nodes[KV_MEMBERS_MAX];
    uint32_t count;
} members;

/* From the CONFIG record at this version on. */
typedef struct config {
    uint64_t version;
    members members;
} config;

/* The same for counting: those of them that are known, and how many are more than half of all. */
typedef struct voters {
    uint32_t peers; /* bits, by index in kv_replica.peers */
    uint32_t majority;
} voters;

/* A client that waits for a version to be applied. */
typedef struct waiting {
    uint64_t version;
    kv_reply reply;
} waiting;

/* A snapshot of a shard on its way to a peer. */
typedef struct sending {
    bool active, walked;
    uint64_t from, from_ballot;
    uint64_t until; /* sent as a whole: it has to hold this before records behind `from` are let go of; 0: nothing was */
    uint64_t hash;  /* where the walk over the index is */
    uint64_t walk;  /* which one it is: pieces of two do not go together, as the index was another one */
    uint64_t piece; /* how many were sent */
    members members; /* as of `from` */
} sending;

/* One that is coming in. */
typedef struct installing {
    bool active;
    uint64_t from, ballot, walk;
    uint8_t *pieces;      /* bits: which have come */
    size_t pieces_size;
    uint64_t piece_count;
    uint64_t count;       /* of all; 0: not known yet */
    uint64_t until;
    uint8_t *lanes;       /* members and sessions, as on the wire */
    size_t lanes_size;
    bool lost;            /* a part of it is damaged: there is no state before the next one */
} installing;

/* Records as they were packed for a member: where in its outbox. */
typedef struct packed {
    uint64_t packing; /* in which run of flow_pack(): another one's are not there any more */
    uint64_t start, count;
    uint32_t member;
    size_t at, size;
} packed;

typedef struct ownership {
    uint64_t ballot; /* 0: not owned */
    uint64_t barrier;
    uint64_t since;  /* the tick it began */
    uint64_t expiring; /* the last version with an expiry, of those that were undecided under this ownership */
    uint64_t match[KV_NODES_MAX];   /* by peer: it holds everything up to here, durably, under this ballot */
    uint64_t next[KV_NODES_MAX];    /* by peer: the next version to send; at or below the base, 0 included: a snapshot */
    sending sending[KV_NODES_MAX];
    uint64_t told[KV_NODES_MAX];    /* by peer: the commit position it was last sent */
    uint32_t asks;                  /* bits, by peer: it reads, and is to be told at once */
    list waiting;                   /* of waiting, by version */
    packed packed;                  /* what may be copied for the next member that needs the same */
} ownership;

/* What a promise showed. */
typedef struct shown_tail {
    uint64_t commit, last_ballot, last;
    uint64_t prev_version;
    uint8_t *records; /* as on the wire; NULL: it is not higher than ours */
    size_t records_size;
    bool lost;        /* it is higher, and what we lack of it is no longer held there */
    members members;  /* in force at its end */
} shown_tail;

typedef struct queued_ask {
    kv_ask ask;
    uint8_t *bytes; /* that it points into */
} queued_ask;

/* Somebody who waits for a change. It hangs in a chain for each hash that a record of its name may have. */
typedef struct wait {
    uint64_t token, since;
    uint64_t until;     /* the tick at which its time is up */
    uint64_t hashes[2]; /* of its key, or of its shard; of the head of the table that its key is, or 0 */
    uint32_t next[2];   /* in these chains: 1 + 2 * index + which; 0: the end. Of one that is free: the next free one */
    uint8_t *key;       /* NULL: the shard as a whole */
    uint32_t key_size;
    uint16_t shard;
    bool used;
    bool due;           /* a record may have been about it: it is looked at once all is applied */
} wait;

typedef struct wait_set {
    wait *all;
    uint32_t *chains;   /* as many, a power of two */
    uint32_t capacity, count;
    uint32_t free;      /* 1 + index; 0: none */
    list due;           /* of uint32_t */
    uint64_t soonest;   /* no time is up before this tick */
} wait_set;

typedef struct taking {
    uint64_t ballot; /* 0: no takeover is under way */
    uint64_t since;
    uint32_t answered; /* peers, as bits */
    uint64_t commit;   /* the highest that any of them knows of */
    shown_tail best;
    members members;   /* in force at the end of the highest tail, shown or own */
    list queue;        /* of queued_ask */
} taking;

typedef struct shard {
    uint16_t number;
    uint64_t promised;
    version_log log;
    uint64_t commit, applied;
    uint64_t whole_from; /* the state came in pieces, and is of one moment once this is applied */
    uint64_t lanes_until;  /* what the lanes were told came with a snapshot, as of this version */
    uint64_t newest_shown; /* of what came in pieces, or was ended for them: the highest version */
    installing installing;
    uint64_t verified_ballot, verified; /* up to here the log is that of this ballot's owner */
    uint64_t hole; /* the lowest version above the base whose record is damaged; 0: none. Its entry has no records */
    uint64_t filling, filling_ballot; /* replay: what comes next of this version fills its hole */
    uint64_t mended;         /* the highest version above the base whose record may be one that was fetched back; 0: none */
    bool lacking;            /* a replay has met bytes of a value that are damaged */
    uint32_t mended_segment; /* the oldest segment where one of those damaged records lies */
    uint64_t commit_logged;
    uint64_t commit_heard; /* of the owner: the highest it spoke of */
    uint64_t missed_since; /* policy: the tick from which on it had no living owner; 0: it has one */
    uint64_t wait_until;   /* policy: nothing is done about it before this tick */
    sessions sessions; /* as applied */
    ownership own;
    taking taking;
    members members; /* as applied */
    list configs;    /* of config: those of the log behind that, by version; the last one is in force */
    voters voters;   /* the members in force */
    bool told_out;   /* policy: somebody who knows more of the shard says that we are no member, and we have not heard of it */
    uint64_t hold;   /* a driver wants what is behind the version before this; 0: nothing */
    kv_position state_at;   /* where the newest STATE is; segment 0: there is none */
    uint64_t state_applied; /* what it says is applied */
    uint32_t state_needs;   /* the oldest segment with a record that comes behind that, of those let go of since; or UINT32_MAX */
    bool gap;               /* replaying: records between `applied` and the base went with their segments, a STATE has to come */
    uint64_t gap_from;      /* up to here nothing is missing */
} shard;

/* What was sent to a peer and is not acknowledged. */
typedef struct sent_item {
    uint64_t seq;
    uint64_t ballot;
    uint64_t version;
    uint32_t size;
    uint16_t shard;
} sent_item;

typedef struct refusal {
    uint64_t seq;
    uint64_t ballot, promised;
    uint64_t prev_version, last, commit;
    uint16_t shard;
    bool no_state; /* only a snapshot helps */
    bool hole;     /* the record behind `last` is damaged */
} refusal;

/* A connection in either direction is named by its sender: incarnation and a counter. */
typedef struct connection {
    uint64_t incarnation, number; /* 0, 0: none */
} connection;
static inline int connection_order(connection left, connection right) {
    if (left.incarnation != right.incarnation) return left.incarnation < right.incarnation ? -1 : 1;
    return left.number < right.number ? -1 : left.number > right.number;
}

/* A start of a replica, and how far its log was durable when it last vouched for something. */
typedef struct disk_start {
    uint64_t disk;   /* 0: nothing is known */
    uint64_t number; /* another one at each start */
    uint64_t incarnation, position;
} disk_start;

enum { SEQ_WINDOW = 64 };
typedef struct peer {
    uint16_t node;
    wire_out out;
    /* from us */
    connection connection;
    uint64_t seq, acked;
    uint64_t progress;   /* the tick of the last */
    uint64_t sent_size;
    list sent;           /* of sent_item, by seq */
    bool abstains;       /* it says that it does not vote */
    uint64_t heard;      /* policy: the tick of its last message; 0: none yet */
    uint64_t healthy_since; /* policy: there has been no long silence since this tick */
    bool gone;           /* it will never be back: it is not waited for */
    bool welcomed;       /* it has compared our disk with what it remembers: we may speak to it */
    bool hello_due, hello_out; /* HELLO is to be sent; lies in the outbox */
    uint64_t welcome_number;   /* of the start that is to be answered; 0: none is */
    bool welcome_fits, welcome_out;
    uint64_t told;       /* how far it was told that our log is durable */
    disk_start memory;   /* of it */
    uint64_t welcomed_life; /* of it: its incarnation */
    bool ended;          /* its disk went backwards: it is refused for good */
    /* to us */
    connection inbound;
    uint64_t cursor;     /* everything up to it is processed */
    uint64_t beyond;     /* bits: which of the SEQ_WINDOW after it are */
    uint64_t cursor_end; /* the log's end when it was */
    uint64_t due, due_end; /* the same, of the acknowledgement that waits for the disk */
    bool ack_wanted;
    list refusals;       /* of refusal: those it is not known to have heard of */
    /* policy: what it said of itself and of others */
    bool hears_us;
    uint32_t links;      /* peers, as bits, itself among them: they vote, and it and they hear each other */
    uint32_t relays[KV_NODES_MAX]; /* by peer: the same of that one, by its own word; 0: it and that one do not hear each other */
    uint32_t asked;      /* reads on its behalf */
} peer;

/* What waits for the log to be durable. */
enum after_kind { AFTER_READY, AFTER_PREPARE, AFTER_PROMISE };
typedef struct after {
    uint64_t end; /* of the log, as it was */
    enum after_kind kind;
    uint16_t node;
    uint64_t ballot;
    uint8_t *asks; /* PROMISE: of the prepare, as on the wire; PREPARE: shard numbers */
    size_t size;
} after;

typedef struct own_end {
    uint64_t end;
    uint64_t ballot;
    uint64_t version;
    uint16_t shard;
} own_end;

enum read_kind { READ_ASK, READ_POSITION, READ_REPLY };
typedef struct read {
    enum read_kind kind;
    uint16_t shard;
    uint64_t ballot;
    uint64_t position;   /* has to be applied; of a follower's: once it is told */
    uint64_t nonce;      /* of the check that counts for it, or of the question to the owner; 0: not sent yet */
    uint64_t since;
    uint32_t votes;      /* peers, as bits */
    bool follower;       /* waits for the owner's position first, and is told it */
    bool told;
    bool refused;        /* the one asked is not the owner */
    bool confirmed;
    uint16_t node;       /* POSITION: who asked; of a follower's: who was asked */
    uint64_t question;   /* POSITION: its nonce */
    kv_reply reply;      /* REPLY: what to say */
    queued_ask asked;    /* ASK */
} read;

/* The answer to a question for a position, until the next flush. */
typedef struct told_position {
    uint64_t question, position;
    uint16_t node;  /* who asked; nobody, if it has gone since */
    uint16_t shard;
    bool good;
} told_position;
/* A read whose position is confirmed and applied, and whose bytes are not here. */
typedef struct lack {
    uint16_t shard;
    uint64_t since;
    kv_meta meta;
    queued_ask asked;
} lack;
typedef struct replaying {
    bool on;      /* the store is being opened */
    bool begun;
    bool trimmed; /* what there is of the log does not begin where it once began */
    bool hidden;  /* before the position of the checkpoint: the index knows of it */
} replaying;

/* Work that goes on from call to call. */
typedef struct trimming {
    kv_compaction *compaction; /* NULL: none is under way */
    uint32_t segment;          /* which one it is of, or was */
    uint32_t done;             /* the one that was emptied last */
    kv_sweep *sweep;
    kv_checkpoint *checkpoint;
    kv_position start;         /* from where a replay beside it has to begin */
    uint64_t wanted;           /* the log has to be durable up to here before it is described; 0: not known yet */
    uint8_t *bytes;            /* the checkpoint as it is handed out; NULL: not yet */
    size_t size;
} trimming;

struct kv_replica {
    kv_replica_options options;
    kv_late late;
    kv_store *store;
    kv_caller *caller;
    uint32_t peer_count, self;  /* self: its index */
    peer peers[KV_NODES_MAX];   /* nodes that are known, its own among them; an id of 0: one that has gone */
    shard *shards;
    uint32_t shard_count;
    uint64_t round;       /* the highest seen or used */
    uint64_t incarnation;
    uint64_t nonce;
    disk_start self_start;    /* as it was before anything was logged */
    bool begun;           /* NODE is logged */
    uint64_t wanted[KV_SHARDS_MAX / 64]; /* bits: to be taken over as soon as it may speak */
    uint16_t ended_by;    /* who found out that the disk went backwards */
    ledger ledger;
    uint64_t now;         /* ticks */
    uint64_t durable;     /* kv_position_order() */
    bool replayed;        /* the log was read */
    bool ready;           /* the incarnation is durable: we may speak */
    bool votes;
    uint64_t expire_hash; /* where the walk that looks for what is due has come to */
    kv_index_slot *expire_slots; /* and what it works in */
    size_t expire_capacity;
    uint64_t packing;     /* runs of flow_pack() */
    uint64_t stirred[KV_SHARDS_MAX / 64]; /* bits: shards that may have something for a peer */
    kv_status failed;     /* the log could not be written, or there is no memory: it does nothing any more */
    list after;           /* of after */
    list own_ends;        /* of own_end: proposals that are not durable here */
    list reads;           /* of read */
    list replies;         /* of kv_reply */
    wire_out reply_bytes;
    list records;         /* of kv_record: the version record that is being taken in */
    list positions;       /* of told_position */
    wait_set waits;
    uint64_t pinged;      /* policy: a hash of what the last PING said */
    bool look;            /* policy: who is linked with whom is not as it was */
    contents contents;    /* bytes of values by digest (content.h) */
    list lacking;         /* of lack: reads that wait for bytes */
    list asking;          /* of content *: to be asked for with the next flush */
    uint64_t pulling_size;
    uint32_t pulling_count;
    lane_table undecided;      /* of all shards owned here: what was proposed and is not applied yet */
    kv_replica_counts counts;
    replaying replaying;
    trimming trimming;
    bool full;    /* the log had no room for a record; nothing that needs one is tried again before the next tick */
    bool dropped; /* so something of the message at hand was not taken in, and all of it has to come again */
    bool blocked; /* so a name whose time is over could not be ended */
};

static inline bool mutated(const kv_replica *r, enum kv_mutation mutation) {
    return KV_UNLIKELY((r->options.mutations >> mutation & 1) != 0);
}

/* Of rounds seen or used, the highest: the next one of its own lies above. */
static inline void note_round(kv_replica *r, uint64_t ballot) {
    if (ballot_round(ballot) > r->round) r->round = ballot_round(ballot);
}
/* The only count there is: of promises, of copies, of confirmations. Who has no vote may be among the bits. */
static inline bool is_majority(const voters *v, uint32_t peers) {
    return (uint32_t)__builtin_popcount(peers & v->peers) >= v->majority;
}
/* Somebody to talk to. */
static inline bool is_peer(const kv_replica *r, uint32_t index) { return index != r->self && r->peers[index].node != 0; }
static inline void stir(kv_replica *r, const shard *s) { r->stirred[s->number / 64] |= (uint64_t)1 << s->number % 64; }

/* replica.c */
void replica_fail(kv_replica *r, kv_status status);
/* What an append came to: no room is no failure, and passes. */
void append_failed(kv_replica *r, kv_status status);
uint64_t replica_nonce(kv_replica *r);
int peer_of(const kv_replica *r, uint16_t node); /* its index, or the own one; -1: it is not known */
void reply_add(kv_replica *r, const kv_reply *reply);
void reply_simple(kv_replica *r, uint64_t token, int32_t status);
/* Appends a record of the replica itself, about a shard (by number) or, 0, about none. */
void log_state(kv_replica *r, uint8_t kind, uint16_t shard_number, uint64_t ballot, const uint8_t *value, size_t size);
/* The same; KV_ENOSPC is the caller's to answer, and has set `full`. */
kv_status log_try(kv_replica *r, uint8_t kind, uint16_t shard_number, uint64_t ballot, const uint8_t *value, size_t size,
                  kv_position *position);
kv_status log_commits(kv_replica *r); /* COMMIT, of shards where it has risen; KV_ENOSPC */
uint64_t log_end(const kv_replica *r);
after *after_add(kv_replica *r, enum after_kind kind);
kv_status ask_copy(const kv_ask *ask, queued_ask *out);
void ask_free(queued_ask *asked);
/* One record of a version that is held; KV_EOF: there are no more. *at is where it begins, and then where the next does. */
kv_status version_next(const kv_replica *r, const version_entry *entry, uint32_t *at, kv_record *out, uint32_t *used);
/* What a replay does with a record. */
kv_status replica_resolve(void *context, kv_store *store, const kv_record *record, kv_position position, uint32_t used,
                          kv_fault *fault);

/* replica_write.c */
void shard_write(kv_replica *r, shard *s, const kv_ask *ask);
void shard_own(kv_replica *r, shard *s, uint64_t ballot);
void shard_step_down(kv_replica *r, shard *s);
/* What an owner of this ballot sends may be taken in; a higher ballot ends what is under way here. */
bool ballot_heed(kv_replica *r, shard *s, uint64_t ballot);
void shard_advance(kv_replica *r, shard *s);
void shard_apply(kv_replica *r, shard *s);
bool shard_barrier(kv_replica *r, shard *s); /* false: there is no room for it */
void owned_durable(kv_replica *r);
/* Appends a record without data of its own; false: there is no room for it. The answer waits until a version is applied. */
bool propose_mark(kv_replica *r, shard *s, uint8_t kind, const kv_request *request, const uint8_t *value, size_t size);
void wait_for(kv_replica *r, shard *s, uint64_t version, const kv_reply *reply);
void answer_full(kv_replica *r, uint64_t token); /* the log has no room: nothing was done, and nothing will come of it */
/* Deletes, by a record, what an ask is about and its time has ended; true: a read has to wait for the last record there is. */
bool shard_expire(kv_replica *r, shard *s, const kv_ask *ask);
/* The same for what nobody asks for, a table of the index at a time. */
void expire_some(kv_replica *r);

/* replica_flow.c */
void flow_pack(kv_replica *r, bool heartbeat);
void flow_receive(kv_replica *r, peer *from, wire_in *in);
void ack_receive(kv_replica *r, peer *from, wire_in *in);
void acks_pack(kv_replica *r);
void peer_reconnect(kv_replica *r, peer *p);
void wire_put_version(kv_replica *r, wire_out *out, const version_entry *entry, uint64_t ballot);
/* The records of one version, in r->records. NULL: the bytes are bad, or there is no memory. */
kv_record *version_parse(kv_replica *r, wire_in *in, uint64_t count);
/* As many version records, to get behind them. */
void versions_skip(kv_replica *r, wire_in *in, uint64_t count);
/* One version record from the wire into the log, unless it is there. false: the bytes are bad, or, unless `trusting`, those
 * of a value that has to come with it are not there. */
bool version_take(kv_replica *r, shard *s, wire_in *in, uint64_t version, uint64_t ballot, uint64_t *prev_ballot,
                  bool trusting);

/* replica_take.c */
void take_over(kv_replica *r, const uint16_t *shards, size_t count);
void prepare_send(kv_replica *r, const after *a);
void prepare_receive(kv_replica *r, peer *from, wire_in *in);
void promise_send(kv_replica *r, const after *a);
void promise_receive(kv_replica *r, peer *from, wire_in *in);
void taking_clear(kv_replica *r, shard *s, bool answer);

/* replica_read.c */
bool shard_is_whole(const kv_replica *r, const shard *s);
uint64_t read_position(const kv_replica *r, const shard *s);
read *read_add(kv_replica *r, const shard *s, enum read_kind kind);
read *read_add_owned(kv_replica *r, shard *s, enum read_kind kind, uint64_t position);
/* `patient`: bytes that are not here are waited for. */
void answer_ask(kv_replica *r, const kv_ask *ask, const shard *s, bool patient);
void read_owned(kv_replica *r, shard *s, const kv_ask *ask);
void read_stale(kv_replica *r, shard *s, const kv_ask *ask);
void reply_confirmed(kv_replica *r, shard *s, uint64_t position, const kv_reply *reply);
void reads_check(kv_replica *r);   /* one check for all that came since the last */
bool reads_wait(const kv_replica *r); /* for a check that is under way */
void reads_expire(kv_replica *r);
void reads_answer(kv_replica *r);
void check_receive(kv_replica *r, peer *from, wire_in *in);
void checked_receive(kv_replica *r, peer *from, wire_in *in);

/* replica_position.c */
kv_status names_check(const kv_ask *ask);
void read_followed(kv_replica *r, shard *s, const kv_ask *ask);
void questions_send(kv_replica *r, bool again); /* one for all reads that wait for one; again: though one is under way */
void ask_position_receive(kv_replica *r, peer *from, wire_in *in);
void position_receive(kv_replica *r, peer *from, wire_in *in);
void position_tell(kv_replica *r, const read *one, bool good);
void positions_pack(kv_replica *r);

/* replica_wait.c */
void wait_add(kv_replica *r, shard *s, const kv_ask *ask);
void waits_touch(kv_replica *r, const kv_record *record); /* is shown */
void waits_touch_shard(kv_replica *r, const shard *s);    /* has applied something */
void waits_answer(kv_replica *r);
void waits_expire(kv_replica *r);
void waits_end(kv_replica *r, const shard *s); /* all of the shard are told to try again */
void waits_free(wait_set *w);

/* replica_changes.c */
uint64_t hold_pin(const kv_replica *r, const shard *s);

/* replica_snapshot.c */
void sending_clear(sending *one);
uint64_t piece_put(kv_replica *r, wire_out *out, shard *s, uint32_t index);
bool piece_take(kv_replica *r, shard *s, uint64_t ballot, wire_in *in);
uint64_t snapshot_pin(const kv_replica *r, const shard *s);
kv_status state_show(kv_replica *r, const kv_record *record, kv_position position, uint32_t used, kv_fault *fault);
/* Logs a record of the state again, or for the first time, and shows it. KV_ENOSPC; what else goes wrong ends the replica. */
kv_status state_append(kv_replica *r, kv_record *record);
void installing_clear(shard *s);
kv_status installing_end(kv_replica *r, shard *s, const uint8_t *bytes, size_t size);

/* replica_digest.c */
/* How a version is told on the wire, bits. */
enum { VERSION_BALLOT = 1, VERSION_GONE = 2 }; /* its ballot follows; it was committed, and bytes it names may be gone */
void digest_begin(kv_replica *r); /* before the replay */
void digest_live(kv_replica *r);  /* the incarnation is known */
void digest_end(kv_replica *r);
kv_status digest_replay(kv_replica *r, const kv_record *record, kv_position position, uint32_t used);
void digest_note(kv_replica *r, const kv_record *record); /* of a version that is in the log now */
bool may_leave(const kv_replica *r, const version_entry *entry);
/* The bytes that go with a version, in front of it: how many, and how large; into `out` unless that is NULL. */
uint64_t carried(kv_replica *r, wire_out *out, const version_entry *entry, uint64_t *size, bool *gone);
/* Bytes that stand in front of a version's records are taken in. How many there are; -1: some are missing. */
int64_t carried_take(kv_replica *r, const shard *s, kv_record *records, uint64_t count, uint64_t version, uint8_t how,
                     bool trusting);
bool carried_sound(kv_replica *r, const kv_record *records, uint64_t count, uint8_t how);
void digest_tick(kv_replica *r, bool heartbeat);
/* Bytes that lie in segments up to this one are written again, some at each call: KV_MORE, while there are others. KV_EWAIT: a
 * record that is kept behind a value lies there; KV_ENOSPC. What else goes wrong ends the replica. */
kv_status contents_move(kv_replica *r, uint32_t segment);
void digest_pack(kv_replica *r);
void digest_parted(kv_replica *r, uint32_t index); /* that peer holds nothing any more, and is not asked */
void fetch_receive(kv_replica *r, peer *p, wire_in *in);
void bytes_receive(kv_replica *r, peer *p, wire_in *in);
void ask_held_receive(kv_replica *r, peer *p, wire_in *in);
void held_receive(kv_replica *r, peer *p, wire_in *in);
void content_want(kv_replica *r, const kv_meta *meta); /* somebody waits for it */
void lack_add(kv_replica *r, const shard *s, const kv_ask *ask);
void lacks_answer(kv_replica *r);
kv_result evaluate_forget(kv_replica *r, const kv_ask *ask);
void lanes_put(wire_out *out, const sessions *s);
bool lanes_take(wire_in *in, sessions *to);

/* replica_state.c */
kv_status state_log(kv_replica *r, shard *s); /* KV_ENOSPC; what else goes wrong ends the replica */
kv_status state_replay(kv_replica *r, const kv_record *record, kv_position position);
/* A version record, where replay meets it: as the next one, in the place of another tail, or behind what is gone. */
kv_status version_replay(kv_replica *r, shard *s, const kv_record *record, kv_position position, uint32_t used);
/* The same of one that is damaged, and leaves a hole. */
kv_status hole_replay(kv_replica *r, shard *s, uint64_t version, uint64_t ballot, kv_position position);
void replay_at(kv_replica *r, kv_position position); /* before each record */
void replay_restart(kv_replica *r);
kv_status replay_end(const kv_replica *r, kv_fault *fault);
void shard_let_go(shard *s, uint64_t base);               /* of records up to it, at most of the applied ones */
void shard_restart(shard *s, uint64_t base, uint64_t ballot); /* the log is empty, from there on */
/* The segment that a replay needs for the record of this version: not where it was fetched back to, but where it was first. */
uint32_t version_segment(const shard *s, uint64_t version);
/* The oldest segment with something that is not in the index and counts. */
uint32_t shard_needs(const shard *s);

/* replica_trim.c */
bool trim_open(kv_replica *r, const uint8_t **bytes, size_t *size); /* of the options' checkpoint the store's part */
void trim_free(kv_replica *r);
void sweep_stop(kv_replica *r);

/* replica_repair.c */
bool shard_votes(const kv_replica *r, const shard *s);
void state_lose(shard *s); /* what stands in the index of the shard is not all there should be: only a snapshot helps */
bool hole_at(const shard *s, uint64_t version, uint64_t ballot);
void hole_look(shard *s); /* after its version log was cut or begun anew, or a hole was filled */
/* r->records are what belongs there, behind `with` records of bytes, which were taken in. */
void hole_fill(kv_replica *r, shard *s, uint64_t version, uint64_t ballot, size_t with);
/* A table is there that may have been taken for dropped: its rows are missed again. */
void table_back(kv_replica *r, uint64_t table_id);
void holes_lacking(kv_replica *r); /* replayed: undecided records of durability `data` whose bytes are damaged count as damaged */
kv_status replica_told(void *context, kv_store *store, const kv_record *told_by, kv_position at, uint32_t *size);
kv_status replay_repair(shard *s, const kv_record *record);
/* KV_OK: it is a part of what was fetched back, and where it belongs. KV_ABSENT: it is none. */
kv_status replay_fills(kv_replica *r, shard *s, const kv_record *record, kv_position position, uint32_t used);
/* Before records up to `base` are let go of: what was fetched back lies behind what followed it, and a replay of a log whose
 * front has gone takes no notice of it there. So what is live of it is logged again, as compaction does. false: no room. */
bool mended_move(kv_replica *r, shard *s, uint64_t base);
void lost_ask(kv_replica *r);
void lost_receive(kv_replica *r, peer *p, wire_in *in);
void found_receive(kv_replica *r, wire_in *in);
void ledger_write(kv_replica *r);

/* replica_hello.c */
kv_status node_log(kv_replica *r, bool ended); /* NODE: KV_ENOSPC, as log_try() */
kv_status hello_begin(kv_replica *r);
void hello_peer(kv_replica *r, peer *p); /* it is known from now on */
void hello_parted(kv_replica *r);        /* somebody is known no more */
void hello_tick(kv_replica *r);
void hello_pack(kv_replica *r); /* last of all: nothing else goes out to who has not welcomed us */
void hello_taken(kv_replica *r);
void hello_receive(kv_replica *r, peer *p, wire_in *in);
void welcome_receive(kv_replica *r, peer *p, wire_in *in);
/* Incarnation and durable position: what is vouched for here. */
void vouch_put(kv_replica *r, peer *p);
void vouch_tick(kv_replica *r);
/* false: by an earlier life than the one that was welcomed, and nobody has compared what that had vouched for with the disk. */
bool vouch_take(peer *p, wire_in *in);
void vouched(peer *p, uint64_t incarnation, uint64_t position);

/* replica_policy.c */
void policy_heard(kv_replica *r, peer *p);
void ping_receive(kv_replica *r, peer *p, wire_in *in);
void policy_parted(kv_replica *r, uint32_t index); /* nothing that it said, or that was said of it, is known any more */
void policy_refused(kv_replica *r, shard *s);
void policy_tick(kv_replica *r);
void policy_flush(kv_replica *r); /* who is linked with whom has changed: nobody waits for the next tick */
void offer_send(kv_replica *r, const shard *s, uint32_t to);
void offer_receive(kv_replica *r, peer *p, wire_in *in);
/* Whoever should have it of those that live, but this one; -1: there is nobody. */
int policy_next(const kv_replica *r, const shard *s);

/* replica_members.c */
void members_begin(kv_replica *r); /* what the options say */
void members_first(kv_replica *r, shard *s); /* the same, of a shard of which nothing is known */
void members_replayed(kv_replica *r); /* who is a member now is known, and who was once is not */
const members *members_now(const shard *s); /* in force */
bool is_member(const members *m, uint16_t node);
voters voters_of(const kv_replica *r, const members *m);
bool members_parse(const uint8_t *value, size_t size, members *out); /* of a CONFIG record; false: nobody writes that */
void members_set(kv_replica *r, shard *s, const members *m, uint64_t from, bool goes_on); /* as a snapshot of that version has it */
void wire_put_members(wire_out *out, const members *m);
void wire_take_members(wire_in *in, members *out);
/* A CONFIG record is in the log, is applied; what lies behind `last` is not in the log any more. */
void config_note(kv_replica *r, shard *s, const kv_record *record);
void config_apply(kv_replica *r, shard *s, const kv_record *record);
void configs_cut(kv_replica *r, shard *s, uint64_t last);

#endif
