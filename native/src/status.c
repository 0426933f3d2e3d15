/* status.c -- the names of how calls end, and the one way in which a broken invariant ends the process.
 *
 * No state: safe from any thread. */
#include "kv/status.h"

#include <stdio.h>
#include <stdlib.h>

#include "kv/base.h"

const char *kv_status_name(int status) {
    switch ((kv_status)status) { /* No default: the compiler then names a status that has been forgotten here. */
    case KV_OK: return "ok";
    case KV_EOF: return "end";
    case KV_ABSENT: return "absent";
    case KV_TIMEOUT: return "timeout";
    case KV_MORE: return "more";
    case KV_EUSAGE: return "usage";
    case KV_EKEYSIZE: return "key size";
    case KV_EVALUESIZE: return "value size";
    case KV_EBATCHSIZE: return "batch size";
    case KV_EREADONLY: return "read-only";
    case KV_ECLOSED: return "closed";
    case KV_EFORKED: return "forked";
    case KV_ENOTINT: return "not an integer";
    case KV_EOVERFLOW: return "overflow";
    case KV_EWRONGTYPE: return "wrong type";
    case KV_ECONFLICT: return "version conflict";
    case KV_ENOTSTORE: return "not a store";
    case KV_EFORMAT: return "newer format";
    case KV_ELOCKED: return "locked";
    case KV_ENOTFOUND: return "not found";
    case KV_EBEHIND: return "left behind";
    case KV_ESNAPSHOT: return "snapshot expired";
    case KV_EWAIT: return "would wait";
    case KV_ELACKING: return "bytes elsewhere";
    case KV_EDISK: return "disk error";
    case KV_ENOSPC: return "no space";
    case KV_EPOISONED: return "poisoned";
    case KV_ELIMIT: return "out of descriptors";
    case KV_EMAPPING: return "mapping error";
    case KV_ECORRUPT: return "corruption";
    case KV_ENOMEM: return "no memory";
    }
    return "unknown";
}

_Noreturn void kv_assert_failed(const char *condition, const char *file, int line) {
    fprintf(stderr, "kvsvr: broken invariant: %s (%s:%d)\n", condition, file, line);
    abort();
}
