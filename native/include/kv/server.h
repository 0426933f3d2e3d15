/* server.h -- a replica as a process: clients over RESP, peers over frames, the log to the disk.
 *
 * One thread runs the loop (kv_server_run), and everything but the waits for the disk happens there: read what has come from
 * everybody, hand all of it to the replica, let it pack, send. A second thread, the server's own, syncs the log and makes
 * its next segments, and rings when it has. So one sync is shared by all that came while the one before it ran. Where there
 * is one replica and its disk is quick, the loop syncs by itself (docs/decisions/0033).
 *
 * Who may be a peer is not decided here: kv_server_link takes a connection over that has been made, and looked at, by the
 * caller (kvsvr/node). What happens and somebody may want to know is a line in the log pipe.
 *
 * kv_server_run is one thread's; kv_server_stop, _link and _look are any thread's. */
#ifndef KV_SERVER_H
#define KV_SERVER_H

#include "replica.h"

typedef struct kv_server kv_server;

typedef struct kv_server_options {
    kv_replica_options replica;
    int32_t client_socket;      /* it listens; the server's from now on */
    int32_t log_pipe;           /* lines of JSON, one for an event; the caller's. -1: none. A full one loses lines */
    uint32_t client_count_max;  /* 0: 10,000 */
    uint32_t tick_ms;           /* 0: 5 */
    uint32_t request_ms;        /* after which a request is given up; 0: 5,000 */
    uint64_t word_size_max;     /* of a command; 0: 512 MiB, Redis' own */
    uint64_t owed_size_max;     /* to a client that does not read; above it is cut. 0: 256 MiB */
    uint32_t stop_ms;           /* after which a stop waits for nobody any more; 0: 3,000 */
    int32_t replays_all;        /* bool: the checkpoint of the directory is not used, and forgotten: it, or the index, is damaged */
    int32_t durability;         /* enum kv_durability: of every write at least, whatever it says itself */
    char password[128];         /* that clients have to say; "": none */
    char announce[64];          /* host:port where clients find this replica; what others tell theirs */
} kv_server_options;

/* Opens the replica behind `io` (the server's from now on, also when this fails). */
kv_status kv_server_new(kv_io *io, const kv_server_options *options, kv_fault *fault, kv_server **out);
/* Until it is stopped: KV_OK; or the replica can go on no more: why. */
kv_status kv_server_run(kv_server *server, kv_fault *fault);
/* Its shards are handed over, what is under way is answered, and kv_server_run returns. The second time: at once. */
void kv_server_stop(kv_server *server);
/* A connection to or from a peer, whoever made it; the one there was is closed. Who was not known is from now on, for as long as
 * the server lives, and gets the flow as a learner: that it may is the caller's word. KV_EUSAGE: it is this one itself. */
kv_status kv_server_link(kv_server *server, uint16_t node, int32_t socket);
/* That node will never be back: it is known no more as soon as it is a member of no shard. */
kv_status kv_server_part(kv_server *server, uint16_t node);
void kv_server_free(kv_server *server); /* not while it runs; accepts NULL */

/* What the server knows of a command; `flags` as in src/server_internal.h. The number of commands there are. */
typedef struct kv_command_facts {
    const char *name, *group, *summary;
    const char *differs; /* from Redis; NULL: in nothing known */
    int32_t arity, first, last, step;
    uint32_t flags;
} kv_command_facts;
size_t kv_command_look(size_t index, kv_command_facts *out);

typedef struct kv_server_figures {
    uint64_t clients, connections, commands, errors, received_size, sent_size, syncs, shards_owned, links, forwarded, retried,
        shards_served, /* owned here, or by a replica that there is a connection to */
        shards_voting, /* of which this one is a member, and in which it has a vote */
        missing,       /* values whose bytes are not here yet */
        takeovers, checkpoints,
        segments_removed, log_size, /* since it started; bytes of all segments */
        damaged, repaired,          /* records that were found to be, and were fetched back, since it started */
        durable,                    /* the log is on the disk before this kv_position_order() */
        pinned;                     /* bool: no segment goes */
} kv_server_figures;
typedef struct kv_server_shard {
    uint64_t commit, applied;
    uint16_t owner; /* as far as this one knows; 0: nobody */
} kv_server_shard;
/* Of one moment, asked of the loop. `shards`: as many as the set has, or NULL. KV_TIMEOUT: it did not come round in so long. */
/* From any thread: while it is, no segment goes, so that the log can be copied. It is so from the next look on. */
void kv_server_pin(kv_server *server, int32_t pinned);
kv_status kv_server_look(kv_server *server, uint32_t wait_ms, kv_server_figures *out, kv_server_shard *shards);

#endif
