/* server_internal.h -- what the files of the server share, and nobody else sees.
 *
 *   server.c       life, the loop, what waits for the disk
 *   client.c       connections of clients: commands in, replies out, in their order
 *   request.c      what is asked of replicas on a client's behalf, here or elsewhere, until there is an answer
 *   link.c         connections to peers: frames of the replica, requests that are passed on
 *   command.c      the table of commands, and those that are about the connection or the server
 *   command_key.c  those about keys
 *
 * A command is an `op`, from its first word to its reply. Ops of a client end in any order and are answered in the order
 * they came. A client that sends without waiting has its reads in flight together, or its writes, but never both: else a
 * read could see a write that stands behind it, or miss one that stands before. */
#ifndef KV_SERVER_INTERNAL_H
#define KV_SERVER_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "kv/server.h"
#include "list.h"
#include "resp.h"

typedef struct op op;
typedef struct client client;

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
    COMMAND_ALONE = 4,  /* reads and writes: nothing of the client beside it */
    COMMAND_STRANGER = 8, /* also before AUTH */
};

typedef struct kv_command {
    const char *name;    /* lower case */
    int arity;           /* words; -n: at least n */
    uint32_t flags;
    int first, last, step; /* which words are keys */
    void (*begin)(kv_server *server, op *o);
    /* An answer has come; NULL: there are none to come. */
    void (*answered)(kv_server *server, op *o, const kv_reply *reply, const uint8_t *bytes);
    const char *summary;
} kv_command;

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
    char name[64];
};

typedef struct arrival {
    uint16_t node;
    int fd;
} arrival;

typedef struct peer_link {
    source source;         /* fd -1: there is none */
    uint16_t node;
    input in;
    wire_out out;
    size_t sent;
    bool writing;          /* epoll tells when it can be written */
} peer_link;

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
    list waiting;          /* of uint32_t: ops to be asked again */
    uint64_t identity;     /* as a client of replicas; a random number, so that no life is taken for another */
    uint64_t number;       /* of the last request */
    bool answering;        /* the replica's answers are being looked at: it must not be asked */
    bool asked;            /* since it was last flushed */
    uint32_t shard_count;
    uint64_t *seen;        /* by shard: the highest version heard of */
    peer_link links[KV_MEMBERS_MAX];
    uint32_t link_count;

    /* The other thread. */
    pthread_t syncer;
    bool syncer_runs;
    pthread_mutex_t lock;
    pthread_cond_t wanted;
    uint64_t sync_wanted, synced; /* under the lock */
    kv_status sync_failed;
    bool ends;
    arrival arrived[KV_MEMBERS_MAX]; /* connections to be taken over; under the lock */
    uint32_t arrived_count;
    atomic_bool stop;
    kv_server_figures figures;
};

/* server.c */
void server_ring(const kv_server *server); /* any thread: the loop comes round */
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
/* Where the reply of an op is written. */
wire_out *op_reply(op *o);
void op_done(kv_server *server, op *o);
/* What a client's reader has found, its words copied; what a peer passed on, its frame copied. NULL: no memory. */
op *op_new(kv_server *server, client *c, const uint8_t *bytes);
op *op_foreign(kv_server *server, const uint8_t *bytes, size_t size);

/* request.c */
void request_ask(kv_server *server, op *o);
void request_pass(kv_server *server, op *o); /* as whoever passed it on asks it */
void request_give_up(kv_server *server, op *o, const char *why);
void requests_answered(kv_server *server);
void request_answer(kv_server *server, op *o, const kv_reply *reply, const uint8_t *bytes);
void requests_tick(kv_server *server);
void requests_link_lost(kv_server *server, uint16_t node);
op *op_of(kv_server *server, uint64_t token);

/* link.c */
void links_arrive(kv_server *server);
void link_readable(kv_server *server, peer_link *l);
void links_send(kv_server *server);
void link_flush(kv_server *server, peer_link *l);
void link_close(kv_server *server, peer_link *l, const char *why);
bool link_pass_on(kv_server *server, uint16_t node, const op *o);
void link_pass_back(kv_server *server, const op *o, const kv_reply *reply, const uint8_t *bytes);
void links_free(kv_server *server);

/* command.c */
void command_begin(kv_server *server, op *o);
const kv_command *command_find(const uint8_t *name, size_t size);

#endif
