/* status.h -- how every call of the core ends.
 *
 *   0            done
 *   1 .. 99      a normal ending: nothing there, no more, too late
 *   -100 .. -199 the caller's doing: usage, a condition that failed, a closed store
 *   -200 .. -299 the disk's doing: errno is kept
 *   -300 .. -399 damage: bytes that are not what was written
 *   -400 .. -499 no memory
 *
 * A `kv_result` shares one channel between a value and an ending, so that a call that runs a million times a
 * second needs no out parameter: zero or more is the value, -1 .. -99 a normal ending with its sign turned,
 * anything below is the error itself. */
#ifndef KV_STATUS_H
#define KV_STATUS_H

#include <stdint.h>

typedef enum kv_status {
    KV_OK = 0,

    KV_EOF = 1,     /* no more */
    KV_ABSENT = 2,  /* no such key, or expired */
    KV_TIMEOUT = 3, /* waited long enough */
    KV_MORE = 4,    /* a step is done, others are left */

    KV_EUSAGE = -100,      /* arguments that no store could take */
    KV_EKEYSIZE = -101,    /* a key of 0 bytes or above KV_KEY_SIZE_MAX */
    KV_EVALUESIZE = -102,  /* a value above KV_VALUE_SIZE_MAX */
    KV_EBATCHSIZE = -103,  /* a batch that no segment can hold */
    KV_EREADONLY = -104,   /* a write through a read-only opener */
    KV_ECLOSED = -105,     /* the store is closed */
    KV_EFORKED = -106,     /* the store was opened by the parent of this process */
    KV_ENOTINT = -107,     /* incr of something that is no decimal int64 */
    KV_EOVERFLOW = -108,   /* incr past the int64 limits */
    KV_EWRONGTYPE = -109,  /* a key where a table is, or the other way round */
    KV_ECONFLICT = -110,   /* the version is not the one the caller named */
    KV_ENOTSTORE = -111,   /* the directory holds something else */
    KV_EFORMAT = -112,     /* written by a newer kvsvr */
    KV_ELOCKED = -113,     /* another process has it open for writing */
    KV_ENOTFOUND = -114,   /* read-only, and there is no store */
    KV_EBEHIND = -115,     /* segments that were not read yet were compacted away: open again */
    KV_ESNAPSHOT = -116,   /* the snapshot held on to too much, and was ended */
    KV_EWAIT = -117,       /* the caller is not to wait, and this would */
    KV_ELACKING = -118,    /* a replica has the version, and its bytes are elsewhere */

    KV_EDISK = -200,     /* a file operation failed; errno says how */
    KV_ENOSPC = -201,    /* the disk is full: writes are refused until there is space */
    KV_EPOISONED = -202, /* an earlier write or sync failed: read-only until reopened */
    KV_ELIMIT = -204,    /* no descriptor, mapping or memory for a file now; errno says which; nothing was done */
    KV_EMAPPING = -203,  /* a mapped page could not be read or written (SIGBUS) */

    KV_ECORRUPT = -300, /* bytes below the durable watermark are not what was written */

    KV_ENOMEM = -400
} kv_status;

typedef int64_t kv_result;

/* Folds an ending into the channel of a kv_result. */
static inline kv_result kv_ending(kv_status status) { return status > 0 ? -(kv_result)status : (kv_result)status; }

/* One English word or two for logs and tests, never NULL. */
const char *kv_status_name(int status);

#endif
