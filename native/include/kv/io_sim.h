/* io_sim.h -- the disk of io.h in memory, for tests: it remembers what was synced, and can show the disk as any
 * power cut could have left it.
 *
 * A kv_sim is the disk: a directory tree with, for each file, what processes see (cached; a mapping points into it)
 * and a journal of how it came about. A kv_io bound to it is a process' way to it; several may exist one after
 * another or, with one writer, beside each other.
 *
 *   events    changing calls and marks, numbered from 0 in the order in which they began
 *   changes   what the events, and stores through mappings between them, did: one page of a file at a new version,
 *             one new size of a file, or one name that was bound (create, mkdir, rename) or removed (unlink)
 *
 * Stores through mappings make no call, so before each event all writable mappings are compared with what was last
 * seen: a page that differs is a change. A test that marks every acknowledged operation gets versions that fine.
 *
 * A change is durable once a later sync of its file, or sync_dir of its directory (for a rename: of the directory
 * it went to), has returned KV_OK. Until then it is open: a power cut may keep it or lose it, whatever became of
 * the others. A sector of 512 bytes is atomic, a name change is atomic, a change of size is atomic and cuts off
 * what lies behind. A file has one name: binding it takes the old one away.
 *
 * Power cut at event e: all that began before e has happened, e itself has begun and not returned. So changes made
 * by e are open, and a sync e made nothing durable. e may be the number of events: the present moment.
 *
 * Faults of the twin itself are broken invariants (no memory, for one). Limits: a component of a path has at most
 * KV_SIM_NAME_SIZE_MAX bytes; a page behind the end of a file can be touched (a real one raises SIGBUS); while a
 * file is mapped, nobody can map more of it than the first mapping or the file had then.
 *
 * Threads: any, under one mutex of the disk; stores through mappings excepted, which nothing can see being made. */
#ifndef KV_IO_SIM_H
#define KV_IO_SIM_H

#include "base.h"
#include "io.h"
#include "status.h"

typedef struct kv_sim kv_sim;

enum {
    KV_SIM_NAME_SIZE_MAX = 55,
    KV_SIM_SECTOR_SIZE = 512,
};

/* Kinds of calls, to count and to fail; those up to KV_SIM_MARK are also the kinds of events. */
enum kv_sim_kind {
    KV_SIM_WRITE = 0,
    KV_SIM_ALLOCATE = 1,
    KV_SIM_TRUNCATE = 2,
    KV_SIM_SYNC = 3,
    KV_SIM_CREATE = 4, /* open, KV_IO_CREATE */
    KV_SIM_RENAME = 5,
    KV_SIM_UNLINK = 6,
    KV_SIM_MKDIR = 7,
    KV_SIM_SYNC_DIR = 8,
    KV_SIM_MARK = 9,
    KV_SIM_OPEN = 10, /* open, the other modes */
    KV_SIM_SIZE = 11,
    KV_SIM_READ = 12,
    KV_SIM_MAP = 13,
    KV_SIM_LIST = 14,
    KV_SIM_LOCK = 15,
    KV_SIM_RANDOM = 16,
    KV_SIM_KIND_COUNT = 17,
};
const char *kv_sim_kind_name(int32_t kind); /* "write"; never NULL */

/* --- the disk --- */
kv_sim *kv_sim_new(void);                 /* empty, recording */
kv_sim *kv_sim_clone(kv_sim *sim);        /* what processes see now, as a disk of its own; not recording */
void kv_sim_free(kv_sim *sim);            /* after every kv_io of it; accepts NULL */
kv_io *kv_sim_io(kv_sim *sim);            /* its free() closes and unmaps what is left; the disk stays */

/* Off: no journal grows, and what is written counts as durable at once; the old journal can still be asked.
 * On, if it was off: the old journal goes, and what is there now is durable. */
void kv_sim_set_recording(kv_sim *sim, int32_t recording);
void kv_sim_set_random(kv_sim *sim, uint64_t seed);        /* what its processes draw; disks are alike without */
void kv_sim_set_clock(kv_sim *sim, int64_t now_ms);        /* stands still until set again */
void kv_sim_set_maps_well(kv_sim *sim, int32_t maps_well); /* true at first */

/* --- the journal --- */
void kv_sim_mark(kv_sim *sim, int64_t tag); /* an event without effect, for a test to know where it stood */
uint64_t kv_sim_event_count(kv_sim *sim);
/* `path` (for a rename "from -> to") lives as long as the journal. KV_EUSAGE: no such event. */
kv_status kv_sim_event(kv_sim *sim, uint64_t event, int32_t *kind, int64_t *tag, const char **path);
/* The number of changes that are open in a power cut at that event; KV_EUSAGE: no such event. */
kv_result kv_sim_unsynced(kv_sim *sim, uint64_t event);
/* In words what the `choice`-th of them is, cut to `size`. KV_EUSAGE: no such event or choice. */
kv_status kv_sim_describe(kv_sim *sim, uint64_t event, uint64_t choice, char *text, size_t size);

/* --- power cuts --- */
enum kv_sim_cut {
    KV_CUT_ALL_KEPT = 0, /* also what kill -9 leaves */
    KV_CUT_ALL_LOST = 1,
    KV_CUT_ONE_KEPT = 2, /* the choice-th open change alone */
    KV_CUT_ONE_LOST = 3, /* all but it, and but the later ones of the same page or size, which would hide the loss */
    KV_CUT_ONE_TORN = 4, /* of that page some sectors; of the rest, by seed, everything or nothing */
    KV_CUT_RANDOM = 5,   /* by seed each page newest, lost, at an older open version or torn, sizes likewise; names
                            of a directory a prefix of what happened (three seeds of four) or any part of it */
};
/* A new disk with what the cut leaves; not recording. KV_EUSAGE: no such event, policy or choice. */
kv_status kv_sim_image(kv_sim *sim, uint64_t event, int32_t policy, uint64_t choice, uint64_t seed, kv_sim **out);
/* Digest of everything durable now: names, sizes, contents. */
uint64_t kv_sim_hash(kv_sim *sim);

/* --- failing calls --- */
enum {
    KV_SIM_FAIL_STICKY = 1, /* and all calls of that kind after it */
    KV_SIM_FAIL_HALF = 2,   /* writes: after the first half of the bytes was written */
};
/* The nth call of that kind from now fails, 1 being the next; 0: none does any more. */
void kv_sim_fail(kv_sim *sim, int32_t kind, uint64_t nth, int32_t errno_value, int32_t flags);
uint64_t kv_sim_call_count(kv_sim *sim, int32_t kind); /* failed ones included */
/* Files may have that many bytes in all; then growing one is ENOSPC, after what fitted. UINT64_MAX: no limit. */
void kv_sim_limit(kv_sim *sim, uint64_t size);
uint64_t kv_sim_used(kv_sim *sim);

/* --- damage, while nothing is recorded (to change something then: KV_EUSAGE). KV_ABSENT: no such file. --- */
kv_status kv_sim_file_size(kv_sim *sim, const char *path, uint64_t *out);
kv_status kv_sim_read(kv_sim *sim, const char *path, uint64_t offset, uint8_t *buffer, size_t size, size_t *out);
kv_status kv_sim_write(kv_sim *sim, const char *path, uint64_t offset, const uint8_t *bytes, size_t size);
kv_status kv_sim_truncate_file(kv_sim *sim, const char *path, uint64_t size);

#endif
