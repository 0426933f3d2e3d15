/* server_internal.h -- what the files of the server share, and nobody else sees.
 *
 *   server.c       life, the loop, what waits for the disk
 *   client.c       connections of clients: commands in, replies out, in their order
 *   request.c      what is asked of replicas on a client's behalf, here or elsewhere, until there is an answer
 *   link.c         connections to peers: frames of the replica, requests that are passed on
 *   leave.c        a stop: shards are handed over first
 *   keep.c         giving disk back, checkpoints
 *   exchange.c     whom it knows, and who has a vote: what `kvsvr replace` asks for
 *   look.c         figures, for who asks from outside
 *   op.c           commands from their words to their replies, and what they are kept in
 *   perform.c      a command that reads, decides and writes, from the read to the batch
 *   parts.c        a command of several slots, or about all keys
 *   draft.c         what such a command sees and would write
 *   in_turn.c       writes of one client to one slot, one after the other
 *   cursors.c      where SCANs are; channels.c: who listens to what
 *   command*.c     the commands, by what they are about; command.c has what they share, command_table.c their table
 *
 * A command is an `op`, from its first word to its reply: one request to the replica (GET, SET, INCR), or performed over a
 * draft (docs/decisions/0034). Ops of a client end in any order and are answered in the order
 * they came. A client that sends without waiting has its reads in flight together, or its writes, but never both: else a
 * read could see a write that stands behind it, or miss one that stands before. Of its writes to one slot the next begins
 * when the one before it is answered: else one that has to be asked again would be overtaken. */
#ifndef KV_SERVER_INTERNAL_H
#define KV_SERVER_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "kv/server.h"
#include "list.h"
#include "resp.h"
#include "draft.h"

typedef struct op op;
typedef struct client client;
typedef struct cursors cursors;
typedef struct channels channels;

enum source_kind { SOURCE_LISTEN, SOURCE_BELL, SOURCE_CLIENT, SOURCE_LINK };
/* What epoll hands back: the head of whoever has a descriptor. */
typedef struct source {
    enum source_kind kind;
    int fd;
} source;

typedef struct input {
    uint8_t *bytes;
    size_t begin, end, capacity; /* bytes [begin, end) are not looked at yet */
} input;

enum command_flags {
    COMMAND_READ = 1,
    COMMAND_WRITE = 2,
    COMMAND_ALONE = 4,     /* reads and writes: nothing of the client beside it, unless it is about one key */
    COMMAND_STRANGER = 8,  /* also before AUTH */
    COMMAND_DIRECT = 16,   /* not in a transaction, where EXEC is no EXEC without it */
    COMMAND_NOW = 32,      /* within a transaction it is not queued either, but done */
    COMMAND_SLOTS = 64,    /* its keys may be of several slots: it is done for each, and the replies put together */
    COMMAND_ALL = 128,     /* over all keys: every shard is made sure of first */
    COMMAND_LISTENER = 256, /* also on a connection of RESP2 that listens to channels */
};
enum { COMMAND_ORDER = COMMAND_READ | COMMAND_WRITE | COMMAND_ALONE };

/* One run of a command: over a draft, or over nothing but the connection. It writes its reply to `out`, once, and may be
 * run again, with another draft and an empty `out`, if what it rests on has changed. */
typedef struct call {
    kv_server *server;
    client *client;        /* NULL: it has gone, or never was */
    op *op;
    const struct kv_command *command;
    draft *draft;            /* NULL: it names no keys */
    const uint8_t *bytes;
    const resp_word *words;
    size_t count;
    wire_out *out;
    int protocol;
} call;

typedef struct kv_command {
    const char *name;      /* lower case */
    int arity;             /* words; -n: at least n */
    uint32_t flags;
    int first, last, step; /* which words are keys; a last of -1: to the end */
    void (*run)(call *c);  /* NULL: it is `begin` or nothing */
    /* What may be one request to the replica, and need not run: false, it does need to. */
    bool (*begin)(kv_server *server, op *o);
    void (*answered)(kv_server *server, op *o, const kv_reply *reply, const uint8_t *bytes);
    const char *group, *summary;
    const char *differs;   /* from Redis; NULL: in nothing known */
} kv_command;

/* Where a command stands that is more than one request. */
enum op_phase {
    PHASE_REQUEST = 0, /* it is one */
    PHASE_READ,        /* a read is asked for, and then it runs */
    PHASE_WRITE,       /* it has run, and what it writes is asked for */
    PHASE_SURE,        /* a part: the shard is made sure of, and that is all */
    PHASE_PARTS,       /* it waits for its parts */
    PHASE_LACKS,       /* bytes of a value were sent for: at the next tick it begins anew */
    PHASE_TURN,        /* the one before it, of its client and slot, has ended: it begins when answers were looked at */
};

struct op {
    op *next;              /* of the client's, or of what is free */
    client *client;        /* NULL: it has gone */
    const kv_command *command;
    uint32_t index, life;  /* the token: life << 32 | index */
    bool done;
    wire_out reply;        /* while others stand before it */

    /* The words of the command, copied: what is asked is asked again, if need be. */
    wire_out bytes;
    resp_word *words;
    size_t word_count, word_capacity;

    /* A command that is performed: perform.c. */
    enum op_phase phase;
    draft *draft;            /* kept from one use to the next */
    op *queue;             /* EXEC: its commands, by `next` */
    op *parent;            /* it is a part of that one */
    op *parts;             /* by `next`, the last first */
    uint32_t part_count;
    void (*joined)(kv_server *server, op *o); /* all parts are done */
    text cursor;           /* FLUSHALL: how far it has come; malloc'ed */
    bool leads;            /* it is the one of its slot that is under way */
    uint16_t slot;
    op *mate;              /* the next in one of these: */
    op *group;             /* those that run with it, over one draft */
    op *behind, **behind_last; /* those that wait for it */

    /* in_turn.c. */
    bool in_turn;          /* it is among those that end before the next may begin, and the last of them */
    uint64_t client_id;
    op *turn_next;         /* in the table */
    op *later, **later_last; /* what waits for it, by `mate` */

    /* What is asked of the replica. */
    kv_ask ask;
    uint16_t shard;
    uint64_t since;        /* tick */
    bool waits;            /* to be asked again at the next tick */
    uint16_t passed_to;    /* node; 0: it is asked here */
    uint16_t from;         /* a peer passed it on; 0: a client's */
    uint64_t from_token;
};

struct client {
    source source;
    client *next_dirty, *prev, *next;
    bool dirty, closing;
    bool parsed, blocked;  /* the reader holds a command; and that waits for those before it */
    uint32_t events;       /* as epoll knows them */
    int protocol;
    uint64_t id;
    resp_reader reader;
    input in;
    wire_out out;
    size_t sent;
    op *first, **last;
    size_t op_count;
    uint32_t running;      /* enum command_flags of what is under way */
    char name[64], library[64], library_version[32];
    char address[64];
    uint64_t since_ms;
    bool known;            /* it has said the password, or there is none */
    bool stale;            /* READONLY: its reads need to be no newer than what is here */
    bool multi, spoilt;    /* it is in a transaction; in which something was wrong */
    op *queue, **queue_last; /* of the transaction */
    size_t queue_size;     /* bytes of it */
    list watched;          /* of watched_key */
    uint32_t channel_count, pattern_count; /* that it listens to */
    const kv_command *last_command;
};

/* A key as it was when WATCH saw it. */
typedef struct watched_key {
    text name; /* malloc'ed */
    uint64_t version;
    uint8_t kind;
} watched_key;

typedef struct arrival {
    uint16_t node;
    int fd;                /* -1: it will never be back */
} arrival;

typedef struct peer_link {
    source source;         /* fd -1: there is none */
    uint16_t node;         /* 0: nobody's, and free */
    input in;
    wire_out out;
    size_t sent;
    bool writing;          /* epoll tells when it can be written */
    bool leaving;          /* it said so: nothing is handed over to it */
    char client_address[64]; /* where its clients go, as it said itself; "": not heard */
} peer_link;

/* Which member is to take another's place, until some tick. */
typedef struct replacing {
    uint16_t old, new;
    uint64_t until;
} replacing;

/* What keep.c is at. */
enum keep_phase { KEEP_LOOK = 0, KEEP_TRIM, KEEP_CHECKPOINT, KEEP_STORE };
typedef struct keeping {
    enum keep_phase phase;
    uint64_t again;        /* nothing is done before this tick */
    uint64_t tidy;         /* from this tick on a checkpoint may be made for nothing but room */
    uint32_t failures;     /* in a row */
    const uint8_t *bytes;  /* of a checkpoint, to be stored by the other thread */
    size_t size;
    bool wanted, done;     /* under the lock: they are to be stored; it was tried */
    kv_status stored;
} keeping;

struct kv_server {
    kv_server_options options;
    kv_replica *replica;
    int epoll;
    source listen, bell;
    uint64_t now_ms, next_tick_ms, ticks;

    client *clients, *dirty;
    uint64_t client_count, client_last;
    list ops;              /* of op *, by index */
    op *free_ops;
    list waiting;          /* of uint32_t: ops to be asked again, at the next tick */
    list following;        /* of uint32_t: ops whose next request waits for the answers to have been looked at */
    uint64_t identity;     /* as a client of replicas; a random number, so that no life is taken for another */
    uint64_t number;       /* of the last request */
    uint64_t lots;         /* random numbers given out */
    bool answering;        /* the replica's answers are being looked at: it must not be asked */
    bool asked;            /* since it was last flushed */
    uint32_t shard_count;
    uint64_t *seen;        /* by shard: the highest version heard of */
    op **leaders;          /* by slot: what reads and writes there now; NULL: nothing */
    op **turns;            /* by client and slot: writes under way (in_turn.c) */
    uint32_t *samples;     /* by shard: a number which, as a key, lies in it */
    cursors *cursors;
    channels *channels;
    uint64_t start_ms;
    peer_link links[KV_NODES_MAX];
    uint32_t link_count;   /* places, free ones among them */
    uint16_t parting[KV_NODES_MAX]; /* that will never be back, and are members of something yet; 0: none */
    replacing replacing;
    keeping keeping;
    _Atomic int32_t pinned; /* bool: nothing goes, somebody copies it */

    /* The other thread. */
    pthread_t syncer;
    bool syncer_runs;
    pthread_mutex_t lock;
    pthread_cond_t wanted;
    uint64_t sync_wanted, synced; /* under the lock */
    kv_status sync_failed;
    uint64_t sync_ns;      /* what one takes of late; under the lock */
    bool prepare_wanted;   /* a segment; under the lock */
    bool syncs_here;       /* the loop does the next one itself */
    bool ends;
    arrival arrived[KV_NODES_MAX]; /* connections to be taken over; under the lock */
    uint32_t arrived_count;
    uint64_t looks_wanted, looks_done; /* under the lock, and what was seen last */
    pthread_cond_t looked;
    kv_server_figures shown;
    kv_server_shard *shown_shards;
    atomic_int stops;      /* how often it was told to */
    bool damaged;          /* a record that was read is */
    bool leaving, draining; /* nobody is let in; no command is read */
    uint64_t leave_until_ms;
    kv_server_figures figures;
};

/* server.c */
bool server_ends(kv_server *server); /* a record that was read is damaged: whether the process ends, as a start may mend it */
void server_ring(const kv_server *server); /* any thread: the loop comes round */
uint64_t server_lot(kv_server *server); /* a random number, of no worth to who wants a secret one */
bool server_watch(kv_server *server, source *one, uint32_t events);
void server_event(kv_server *server, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* client.c */
void clients_accept(kv_server *server);
void client_readable(kv_server *server, client *c);
void client_go_on(kv_server *server, client *c); /* commands that waited */
void client_dirty(kv_server *server, client *c);
void client_send(kv_server *server, client *c);
void client_close(kv_server *server, client *c);
void clients_free(kv_server *server);
bool input_room(input *in, size_t size);

/* op.c */
/* Where the reply of an op is written. */
wire_out *op_reply(op *o);
void op_done(kv_server *server, op *o);
/* What a client's reader has found, its words copied; what a peer passed on, its frame copied. NULL: no memory. */
op *op_new(kv_server *server, client *c, const uint8_t *bytes);
op *op_foreign(kv_server *server, const uint8_t *bytes, size_t size);
draft *op_draft(op *o); /* empty; NULL: no memory */
op *op_part(kv_server *server, op *parent); /* without words */
bool op_add_word(op *o, text word);
op *op_keep(kv_server *server, const op *o); /* the words of it, for a transaction */
void op_free(kv_server *server, op *o);
void op_drop(kv_server *server, op *o);      /* what op_keep() gave, and what hangs on it by `next` */
void client_forget_multi(kv_server *server, client *c);
void client_unwatch(client *c);

/* request.c */
void request_ask(kv_server *server, op *o);
void request_put_off(kv_server *server, op *o);
void request_pass(kv_server *server, op *o); /* as whoever passed it on asks it */
void request_give_up(kv_server *server, op *o, const char *why);
bool request_is_over(const kv_server *server, const op *o); /* its time */
/* The store has just said KV_ELACKING of something that it reads: it reads again when the bytes may have come. */
void request_fetch(kv_server *server, op *o);
void requests_answered(kv_server *server);
void request_answer(kv_server *server, op *o, const kv_reply *reply, const uint8_t *bytes);
void requests_tick(kv_server *server);
void requests_follow(kv_server *server);
void requests_link_lost(kv_server *server, uint16_t node);
op *op_of(kv_server *server, uint64_t token);

/* channels.c */
void channels_leave(kv_server *server, client *c); /* all of them */
void channels_tell(kv_server *server, text channel, text message); /* those that listen here */
void channels_say(kv_server *server, const list *messages); /* everywhere; of a draft */

/* link.c */
void links_arrive(kv_server *server);
void link_readable(kv_server *server, peer_link *l);
void links_send(kv_server *server);
void link_flush(kv_server *server, peer_link *l);
void link_close(kv_server *server, peer_link *l, const char *why);
bool link_pass_on(kv_server *server, uint16_t node, const op *o);
/* To those who listen at other replicas, of those that can be reached and take it in. */
void links_publish(kv_server *server, text channel, text message);
void link_pass_back(kv_server *server, const op *o, const kv_reply *reply, const uint8_t *bytes);
peer_link *link_to(kv_server *server, uint16_t node); /* NULL: there is none */
void link_drop(peer_link *l, kv_server *server); /* it is known no more */
void links_free(kv_server *server);

/* leave.c */
bool leave_step(kv_server *server); /* once a round while it is told to stop; true: it is over */
void leave_send(kv_server *server); /* at a tick */
void leave_receive(kv_server *server, peer_link *l, wire_in *in);
enum { LINK_LEAVE = 203 }; /* the type of what it sends */

/* keep.c */
/* The checkpoint of the directory, if there is one: malloc'ed. */
void keep_load(kv_io *io, uint8_t **bytes, size_t *size);
void keep_forget(kv_io *io);          /* it is of no use any more */
void keep_tick(kv_server *server);
kv_status keep_store(kv_server *server); /* the other thread's, without the lock */

/* exchange.c */
void exchange_part(kv_server *server, uint16_t node); /* at a tick, as soon as it is a member of nothing */
void exchange_tick(kv_server *server);
uint32_t server_size(const kv_server *server); /* replicas of the set; the members that it began with */

/* look.c */
void look_show(kv_server *server); /* holds the lock */

/* command.c */
void command_begin(kv_server *server, op *o);
const kv_command *command_find(const uint8_t *name, size_t size);
/* How it is to be kept in order with others of its client. */
uint32_t command_order(const client *c, const kv_command *command, size_t word_count);
bool command_has_turn(const kv_command *command, size_t word_count); /* a write about one key */
void command_start(kv_server *server, op *o); /* it may be done, and now is */

/* command_session.c */
bool session_is_foreign(const kv_server *server, const op *o); /* its client has named the request itself */
void session_seen(kv_server *server, op *o, const kv_reply *reply);

/* in_turn.c */
enum { TURNS_SIZE = 4096 };
bool turn_waits(kv_server *server, op *o); /* one of its client is under way in its slot; else it is, now */
void turn_ends(kv_server *server, op *o);
void turn_begins(kv_server *server, op *o); /* of one in PHASE_TURN */

/* perform.c */
/* Commands that go together over one draft, and their bytes: far below what one batch takes. */
enum { GROUP_MAX = 64, GROUP_SIZE_MAX = 4 << 20 };
typedef struct group_size {
    size_t count, bytes;
} group_size;
bool group_takes(group_size *size, const op *o);
void perform_begin(kv_server *server, op *o);
void perform_answered(kv_server *server, op *o, const kv_reply *reply);
bool perform_run(kv_server *server, op *o);
void perform_again(kv_server *server, op *o);
void perform_release(kv_server *server, op *leader); /* it is done: who waited for it is next */
/* parts.c */
enum { PART_KEYS_MAX = 512 };
void parts_split(kv_server *server, op *o, size_t key_count); /* by slot, and so many keys at most */
void parts_make_sure(kv_server *server, op *o);
void perform_sure(kv_server *server, op *o); /* every shard was made sure of */
void part_done(kv_server *server, op *parent);

/* How many keys it names, and the nth. */
size_t command_key_count(const kv_command *command, size_t word_count);
size_t command_key_at(const kv_command *command, size_t n);

#endif
