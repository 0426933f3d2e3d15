/* large.h -- memory for a while: what a checkpoint, a sort or a compaction needs by the megabyte and then gives back.
 *
 * malloc keeps what is freed, and learns to keep more the larger the pieces are: the heap of the thread that makes
 * checkpoints ended at twice what a store of a million keys holds. Large pieces come from the kernel here, and go back to
 * it; small ones are malloc's. Never for what is asked for often: a piece costs two system calls, and a fault a page.
 *
 * Threads: any. Under AddressSanitizer everything is malloc's, so that it is watched. */
#ifndef KV_LARGE_H
#define KV_LARGE_H

#include "base.h"

void *kv_large_new(size_t size); /* aligned to 16; NULL: no memory */
/* What it holds moves along, as far as there is room. NULL: no memory, and it is as it was. `large` may be NULL. */
void *kv_large_resize(void *large, size_t size);
void kv_large_free(void *large); /* accepts NULL */

#endif
