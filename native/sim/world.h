/* world.h -- the simulated world: replicas on disks that crash, a network that loses, clients that try again, and a judge.
 *
 * One seed is one run, and the same seed is the same run: time is a number, chance comes from the seed, and the replicas
 * under test (kv/replica.h) are pure. What happens is events in order of time:
 *
 *   world.c    events, chance, the network, nodes: a replica with its disk, its syncs, its crashes
 *   client.c   what clients ask, how they try again, what they saw
 *   feed.c     consumers of changes, and who waits
 *   faults.c   who crashes, is cut off or takes over, and when
 *   scripts.c  orders of events that chance seldom finds
 *   exchange.c an operator who puts one member in the place of another, and orders of events for that
 *   digest.c   values by digest, a disk that is lost, and what is done about it
 *   judge.c    that replicas apply the same, and that what clients saw is linearizable
 *   simulate.c the command
 *
 * Times are in thousandths of the unit in which a message takes about one. */
#ifndef KV_SIM_WORLD_H
#define KV_SIM_WORLD_H

#include "history.h"
#include "kv/io_sim.h"
#include "kv/replica.h"

enum { FOUNDERS_MAX = 5, NODES_MAX = 8, EXCHANGES_MAX = 2, SHARDS = 2, CLIENTS = 5, OPS_PER_CLIENT = 40, UNIT = 1000,
       OBJECTS = 6 * SHARDS, ENTRIES_MAX = 4096, WRITES_MAX = 512 };

/* Rules that only a client can break. */
enum { SIM_MUTATE_LATE_FAIL = KV_MUTATION_COUNT, SIM_MUTATE_THROUGH_IGNORED, SIM_MUTATION_COUNT };

enum { FEEDS = 2 * SHARDS, FEED_ROWS_MAX = 512, WAITERS = 4 };
enum { TOKEN_FORGETTER = 251, TOKEN_OPERATOR = 252, TOKEN_WAITER = 253, TOKEN_NOBODY = 254 }; /* in the low byte, beside numbers of clients */

/* What clients write to, in each shard. */
enum object { OBJECT_KEY, OBJECT_FEW, OBJECT_COUNTER, OBJECT_PAIR, OBJECT_TABLE, OBJECT_MORTAL, OBJECT_KINDS };

enum event_kind {
    EVENT_TICK, EVENT_TAKEOVER, EVENT_FSYNC, EVENT_FSYNCED, EVENT_DELIVER, EVENT_ARRIVE, EVENT_ANSWER, EVENT_CLIENT_NEXT,
    EVENT_CLIENT_TIMEOUT, EVENT_NEMESIS, EVENT_CRASH, EVENT_RESTART, EVENT_CUT, EVENT_HEAL, EVENT_SCRIPT, EVENT_FINAL_TIMEOUT,
    EVENT_STUCK, EVENT_BULK, EVENT_SLOW, EVENT_ECHO, EVENT_READERS, EVENT_OPERATOR, EVENT_FEED, EVENT_ROWS, EVENT_WAITER,
    EVENT_STARVE, EVENT_LOSE
};

typedef struct event {
    uint64_t at, order;
    enum event_kind kind;
    uint32_t node, other;
    uint64_t life;      /* of the node, where that counts */
    uint64_t argument;
    uint8_t *bytes;     /* freed when it has happened */
    size_t size;
} event;

typedef struct node {
    kv_sim *disk;
    kv_replica *core;
    bool up, syncing, damaged;
    uint64_t life, stuck;
    int64_t skew;          /* of its clock, units */
    uint64_t seen[SHARDS]; /* applied versions that were compared */
    uint64_t promises, installed; /* it had logged, and had, when it was last looked at */
    uint32_t owned;        /* shards, as bits, then */
    bool gone;             /* for good */
    bool parted;           /* and everybody was told so */
} node;

/* An operation of a client, as it stands; copied into every sending. */
typedef struct operation {
    uint32_t shard;
    enum object object;
    uint8_t kind;          /* enum kv_request_kind */
    uint64_t token;        /* what is written, or by how much */
    uint64_t version;      /* of a condition */
    int64_t first, second; /* the balances that a transfer writes */
    bool large, follower, data;
    int64_t ttl;           /* units; 0: none */
    uint32_t lane;
    uint64_t number, seen;
    uint16_t attempt;
} operation;

typedef struct client {
    operation op;
    bool busy;
    uint32_t left, sends, tries, entry;
    uint64_t number;
    uint64_t known[SHARDS];   /* the highest version of each shard it has seen */
    uint64_t version[OBJECTS]; /* of what it saw last */
    int64_t balance[OBJECTS][2];
    int hint[SHARDS];         /* who is likely the owner; -1: no idea */
} client;

typedef struct entry {
    kv_history_op op;
    uint32_t object; /* shard * OBJECT_KINDS + enum object */
    uint64_t asked;  /* the time */
    uint64_t over;   /* of a write with a time to live, once answered: by then it has ended by every clock */
} entry;

/* What a chosen record does to a table. */
typedef struct effect {
    uint64_t version, table_id, token;
    uint32_t key_size;
    uint8_t kind;
    uint8_t key[16]; /* of the row, or of the table */
} effect;

typedef struct effects {
    effect *at;
    size_t count, capacity;
} effects;

/* A consumer of a table's changes, and its copy. */
typedef struct feed {
    uint32_t shard, table;
    uint64_t since, began, through;
    bool exact;
    size_t count;
    struct { uint8_t key[16]; uint32_t size; uint64_t token; } rows[FEED_ROWS_MAX];
} feed;

typedef struct waiter {
    bool active;
    uint32_t node, shard, name;
    uint64_t life, generation, since, ticks;
} waiter;

typedef struct counts {
    uint64_t operations, answered, unknown, messages, duplicates, crashes, owner_crashes, whole_set, partitions, steals,
        scripts, restarts, undecided, committed, takeovers, adoptions, step_downs, refusals, cuts, reconnects, deduplicated,
        evicted, failures_recorded, late_flows, follower_reads, expired, offers, snapshots, installed, exchanges, configs,
        outsiders, questions, pages, compared, resyncs, waits, waited, fetched, spoilt, lacking, collected, settled, disks_lost,
        forgets;
} counts;

/* One member for another, in every shard. */
typedef struct exchange {
    uint32_t old, fresh;
    uint32_t removed, added; /* shards, as bits, where that is done */
} exchange;

typedef struct world {
    uint64_t seed, random, now, order;
    uint32_t n;        /* nodes that there are or were */
    uint32_t founders; /* and those the set began with */
    uint64_t mutations;
    event *heap;
    size_t heap_count, heap_capacity;
    node nodes[NODES_MAX];
    client clients[CLIENTS];
    bool cut[NODES_MAX][NODES_MAX];
    exchange exchanges[EXCHANGES_MAX];
    uint32_t exchange_count, exchange_plan;
    uint32_t chosen_members[SHARDS]; /* as the records have it that are applied: bits */
    uint64_t newest[SHARDS];         /* of those the last */
    uint32_t extra[3];               /* nodes that a script has added, and its others */
    bool calm;
    char tags[SHARDS][8];
    /* how harsh it is */
    uint32_t session_max, batch_max, keep_max, window_size_max;
    double large, drop, tail, slow_fsync, pace, late_client, takeover, loyal, after_promise, after_takeover;
    bool harsh;
    uint32_t bulk;                 /* batches of keys that nobody looks at: an index of several tables */
    bool policy;                   /* the replicas themselves decide who takes over */
    uint32_t weak;                 /* bits of wire types that are lost more often */
    uint32_t shards_busy, objects_busy; /* bits */
    uint32_t scripts;              /* bits */
    int at_barrier[NODES_MAX];     /* which step of a script waits for the node's barrier; -1: none */
    int at_install[NODES_MAX];     /* the same, for a snapshot that it has as a whole */
    uint32_t script_nodes[3], script_shard;
    int64_t inline_max;
    uint64_t fetch_size_max;
    double data;                   /* how many writes have durability `data` */
    bool spoils, loses, starved;   /* bytes change on their way; a disk is lost; the bulk lane is cut */
    bool absent;                   /* somebody is away while the bulk lane is cut */
    uint32_t away;
    uint32_t lost;                 /* whose disk was; NODES_MAX: nobody's */
    uint64_t writes[OBJECTS][WRITES_MAX]; /* where a disk is lost: the versions of each key, twice, and 1 if it is there then */
    uint32_t write_counts[OBJECTS];
    struct { uint32_t patience, sends, count, entry; uint64_t version; } forgets[OBJECTS];
    uint64_t slow, echo;           /* links: on which everything comes late; on which copies of everything come late */
    int readers;                   /* whom every other client asks what it reads; -1: nobody in particular */
    /* what happened */
    entry *entries;
    size_t entry_count;
    struct { uint64_t *digests; size_t capacity; } chosen[SHARDS];
    effects effects[SHARDS];
    feed feeds[FEEDS];
    waiter waiters[WAITERS];
    uint64_t feed_random, feed_token;
    bool steady;                   /* clocks are right, and do not jump */
    bool final_done[OBJECTS];
    uint32_t final_entry[OBJECTS], final_sends[OBJECTS];
    counts counts;
    char violation[512];           /* the first; empty: none */
    bool verbose;
} world;

static inline uint64_t link_of(uint32_t from, uint32_t to) { return (uint64_t)1 << (from * NODES_MAX + to); }
static inline uint64_t links_of(uint32_t a, uint32_t b) { return link_of(a, b) | link_of(b, a); }
static const uint64_t EVERY_LINK = UINT64_MAX; /* NODES_MAX * NODES_MAX of them. */

/* world.c */
void world_run(world *w, uint64_t until);
event *world_at(world *w, uint64_t delay, enum event_kind kind); /* to be filled in before the next call */
double chance(world *w);                       /* 0 <= it < 1 */
bool likely(world *w, double probability);
uint64_t between(world *w, double low, double high); /* units, as time */
uint64_t rarely(world *w, double mean);              /* exponentially distributed */
uint32_t pick(world *w, uint32_t count);
void violate(world *w, const char *format, ...) __attribute__((format(printf, 2, 3)));
void node_boot(world *w, uint32_t i);
void node_crash(world *w, uint32_t i, bool whole_tail);
void node_drain(world *w, uint32_t i);
void node_clock(world *w, uint32_t i); /* the replica sees what time it is */
void node_takeover(world *w, uint32_t i, uint32_t shards); /* bits */
bool node_owns(const world *w, uint32_t i, uint32_t shard);
bool node_synced(const world *w, uint32_t i); /* up, and all it has is durable */
uint32_t node_add(world *w); /* an empty one; which it is */
void trace(world *w, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* client.c */
void clients_begin(world *w);
void bulk_next(world *w);
void client_next(world *w, uint32_t i);
void client_timeout(world *w, uint32_t i, uint32_t sends, int hint);
void request_arrive(world *w, const event *e);
void request_send(world *w, uint32_t to, const operation *op, uint64_t token, uint64_t late);
uint32_t entry_new(world *w, const operation *op, uint64_t who, uint64_t number);
void reply_send(world *w, uint32_t from, const kv_reply *reply, const uint8_t *bytes);
void reply_arrive(world *w, const event *e);
void final_ask(world *w, uint32_t object);
void final_timeout(world *w, uint32_t object, uint32_t sends);
size_t object_key(const world *w, uint32_t shard, enum object object, char key[16]);

/* feed.c */
void feeds_begin(world *w);
void feed_next(world *w, uint32_t number);
void rows_next(world *w);
void waiters_next(world *w, uint32_t number);
void feed_note(world *w, uint32_t i, uint32_t shard, uint64_t version);
void waiter_told(world *w, uint32_t i, const kv_reply *reply);
void waiters_look(world *w, uint32_t i);
void tables_look(world *w, uint32_t i);
void feeds_finish(world *w);

/* faults.c */
void faults_choose(world *w);
void nemesis(world *w);
void one_link(world *w); /* is cut, when all is well */
void at_links(world *w, double units, enum event_kind kind, uint64_t links);
void at_node(world *w, double units, enum event_kind kind, uint32_t i, uint64_t argument);
double some(world *w, double low, double high);
void moment(world *w, uint32_t i); /* has the node just promised, or opened a ballot? */

/* exchange.c */
enum { STEP_EXCHANGE = 100 }; /* the first of the steps that are played there */
void exchange_choose(world *w);
bool exchange_kills(const world *w); /* one that nobody has taken leave of */
void exchange_begin(world *w);
void operator_next(world *w, const event *e);
void operator_answer(world *w, const kv_reply *reply);
void exchange_step(world *w, uint32_t step);
bool exchange_plays(const world *w); /* a script, which nothing is to disturb */
bool exchanges_done(const world *w);
uint32_t members_wanted(const world *w); /* in the end: bits */
void config_judge(world *w, uint32_t i, uint32_t shard, uint64_t version);
void members_judge(world *w, uint32_t i, uint32_t shard, const kv_shard_state *state);
void exchanges_judge(world *w);

/* scripts.c */
void scripts_choose(world *w);
void script_begin(world *w);
void script_step(world *w, const event *e);
bool script_takes(world *w, uint32_t i);
void script_installed(world *w, uint32_t i);

/* digest.c */
void digest_choose(world *w);
uint8_t digest_durability(const world *w, bool data); /* of what nobody forgets in the end */
bool digest_settled(const world *w, uint32_t nodes); /* each of these bits has all bytes it knows of, for good */
void digest_starve(world *w, bool on);
bool digest_starves(const world *w, uint32_t type);
void digest_spoil(world *w, uint8_t *frame, size_t size);
void digest_lose(world *w, bool waits);
void digest_lacking(world *w, uint32_t object, uint64_t version);
bool digest_answer(world *w, const kv_reply *reply);
void version_noted(world *w, uint32_t i, uint32_t shard, uint64_t version);
void digest_judge(world *w);

/* judge.c */
void agree(world *w, uint32_t i);
void judge(world *w, kv_history_checker *checker);

#endif
