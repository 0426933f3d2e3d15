/* io.h -- the only way to the disk: one table of operations, bound to one directory.
 *
 * Two implementations: io_posix.c (the system calls) and io_sim.c (a disk in memory that can crash, tear, drop
 * and fail, mappings included). Paths are relative to the directory ("flow/00000001.seg"), so a store can be
 * moved while it is closed and no path is ever too long.
 *
 * Every operation returns KV_OK, or KV_ENOSPC (disk full or quota), or KV_ELIMIT (no descriptor, mapping or memory for it
 * now: nothing was done), or KV_EDISK, with errno kept. KV_ABSENT, of open (but to create), unlink and list: the file or
 * directory is not there. Threads: any, at the same time; one file's close and unmap overlap with
 * nothing else on that file.
 *
 * What each promises about a crash, and io_sim.c takes them at their word:
 *   - bytes of a file are durable after sync() of that file returned KV_OK, and not before: until then each page
 *     may be there, be missing, or be torn, whatever became of the others;
 *   - size changes (truncate, write_at behind the end, allocate) likewise;
 *   - a name (create, rename, unlink, mkdir) is durable after sync_dir() of its directory. */
#ifndef KV_IO_H
#define KV_IO_H

#include "base.h"
#include "status.h"

typedef struct kv_io kv_io;
typedef struct kv_file kv_file;

enum kv_io_mode {
    KV_IO_READ = 0,
    KV_IO_WRITE = 1,  /* read and write; must exist */
    KV_IO_CREATE = 2, /* read and write; created, or emptied if it was there */
};

struct kv_io {
    kv_status (*open)(kv_io *io, const char *path, enum kv_io_mode mode, kv_file **out);
    void (*close)(kv_io *io, kv_file *file);
    kv_status (*size)(kv_io *io, kv_file *file, uint64_t *out);
    /* Reads up to `size` bytes; fewer only at the end of the file. */
    kv_status (*read_at)(kv_io *io, kv_file *file, uint8_t *buffer, size_t size, uint64_t offset, size_t *out);
    kv_status (*write_at)(kv_io *io, kv_file *file, const uint8_t *bytes, size_t size, uint64_t offset);
    /* Makes room for `size` bytes from the start, so that stores through a mapping cannot meet a full disk.
     * KV_OK also where the file system knows no such call (errno EOPNOTSUPP): writing then finds out. */
    kv_status (*allocate)(kv_io *io, kv_file *file, uint64_t size);
    kv_status (*truncate)(kv_io *io, kv_file *file, uint64_t size);
    kv_status (*sync)(kv_io *io, kv_file *file); /* fdatasync */
    /* Maps the first `size` bytes, shared: what is stored there is in the file as if written. */
    kv_status (*map)(kv_io *io, kv_file *file, uint64_t size, bool writable, uint8_t **out);
    /* Makes pages of a writable mapping ready to be stored to, so that the first store to each meets no fault. A hint: it may
     * do nothing, and what fails is met by that store. They are dirty then: the next sync writes them. */
    void (*warm)(kv_io *io, uint8_t *pages, uint64_t size);
    /* The other way: takes pages of a mapping out of the page table; what was stored stays in the file, and the next access
     * finds them again. A hint, ahead of a sync, which would write-protect each of them by itself, with an interrupt to every
     * core that runs this process (docs/decisions/0024). */
    void (*cool)(kv_io *io, uint8_t *pages, uint64_t size);
    void (*unmap)(kv_io *io, kv_file *file, uint8_t *mapping, uint64_t size); /* file may be NULL: closed before */
    kv_status (*rename)(kv_io *io, const char *from, const char *to);
    kv_status (*unlink)(kv_io *io, const char *path);
    kv_status (*mkdir)(kv_io *io, const char *path); /* KV_OK if it is there */
    kv_status (*sync_dir)(kv_io *io, const char *path);
    /* The names in a directory, sorted bytewise, without . and ..; one block, for free(). "" is the root. */
    kv_status (*list)(kv_io *io, const char *path, char ***names, size_t *count);
    /* Takes the writer's lock of the directory until io is closed. KV_ELOCKED: *holder is its process id, or 0
     * where that cannot be told. */
    kv_status (*lock)(kv_io *io, int64_t *holder);
    void (*let_go)(kv_io *io); /* for a forked child: closes its copy of the lock, which would outlive the parent's */
    /* Whether stores through a shared mapping and fdatasync work together here as the flow needs it (not so on
     * copy-on-write file systems). */
    bool (*maps_well)(kv_io *io);
    int64_t (*now_ms)(kv_io *io); /* the wall clock: milliseconds since 1970, may jump */
    int64_t (*monotonic_ms)(kv_io *io); /* since some moment; never goes back (io_sim: stands still) */
    /* Bytes nobody can guess (io_sim: the same ones in every run). */
    kv_status (*random)(kv_io *io, uint8_t *bytes, size_t size);
    void (*free)(kv_io *io);      /* ends the table itself and drops the lock */
};

/* io_posix.c. `root` is created if `create` (its parent must exist). KV_ABSENT: there is none. */
kv_status kv_io_posix_new(const char *root, bool create, kv_io **out);
/* For tests of clocks that jump: adds `shift_ms` to what now_ms answers. */
void kv_io_posix_shift_clock(kv_io *io, int64_t shift_ms);

#endif
