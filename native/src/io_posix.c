/* io_posix.c -- the table of io.h on a real directory: the only file of the core that makes system calls on files.
 *
 * Everything is relative to a descriptor of the directory, so the store may be moved while it is open and the
 * process may change its working directory. All descriptors are O_CLOEXEC.
 *
 * A call that a signal interrupted is made again. A failed sync is not: the kernel drops its note of pages that
 * could not be written, so a second fdatasync would return success for bytes that are gone.
 *
 * The lock is an open file description lock on the file LOCK. It falls with the last descriptor of that description,
 * also on SIGKILL, and not, as a POSIX record lock would, when somebody in the process copies the directory and so
 * closes another descriptor of the file. Its price: a forked child holds it, too, until it lets go.
 *
 * Threads: any. Only lock and free change the handle. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#include "kv/io.h"

static const char LOCK_NAME[] = "LOCK";

/* The umask decides, as for any file the user makes. */
enum { DIRECTORY_MODE = 0777, FILE_MODE = 0666 };

struct kv_file {
    int fd;
};

typedef struct posix {
    kv_io table; /* first: a kv_io of this kind is a posix */
    int root_fd;
    int lock_fd; /* -1: not locked through this table */
    _Atomic int64_t clock_shift_ms;
} posix;

static posix *posix_of(kv_io *io) { return (posix *)io; }

/* errno stays as the failed call left it. */
static kv_status failure(void) {
    switch (errno) {
    case ENOSPC:
    case EDQUOT: return KV_ENOSPC;
    case EMFILE:
    case ENFILE:
    case ENOMEM: return KV_ELIMIT;
    default: return KV_EDISK;
    }
}

/* Of a call that asks for a name that may not be there. Of any other ENOENT is the disk's doing: a directory that is
 * in use has gone. */
static kv_status failure_of_name(void) { return errno == ENOENT ? KV_ABSENT : failure(); }

static kv_status outcome(long result) { return result < 0 ? failure() : KV_OK; }

/* Clean-up follows failures, and must not overwrite what they said. close is not repeated after EINTR: on Linux
 * the descriptor is gone by then and may already be another thread's. */
static void close_quietly(int fd) {
    int kept = errno;
    if (fd >= 0) close(fd);
    errno = kept;
}

/* --- files --- */

static int open_flags(enum kv_io_mode mode) {
    switch (mode) {
    case KV_IO_READ: return O_RDONLY;
    case KV_IO_WRITE: return O_RDWR;
    case KV_IO_CREATE: return O_RDWR | O_CREAT | O_TRUNC;
    }
    KV_ASSERT(!"a mode of kv_io_mode");
}

static kv_status file_open(kv_io *io, const char *path, enum kv_io_mode mode, kv_file **out) {
    KV_ASSERT(path[0] != '/');
    kv_file *file = malloc(sizeof *file);
    if (file == NULL) return KV_ENOMEM;
    file->fd = (int)TEMP_FAILURE_RETRY(openat(posix_of(io)->root_fd, path, open_flags(mode) | O_CLOEXEC, FILE_MODE));
    if (file->fd < 0) {
        kv_status status = mode == KV_IO_CREATE ? failure() : failure_of_name();
        free(file);
        return status;
    }
    *out = file;
    return KV_OK;
}

static void file_close(kv_io *io, kv_file *file) {
    (void)io;
    close_quietly(file->fd);
    free(file);
}

static kv_status file_size(kv_io *io, kv_file *file, uint64_t *out) {
    (void)io;
    struct stat facts;
    if (fstat(file->fd, &facts) != 0) return failure();
    *out = (uint64_t)facts.st_size;
    return KV_OK;
}

static kv_status file_read_at(kv_io *io, kv_file *file, uint8_t *buffer, size_t size, uint64_t offset, size_t *out) {
    (void)io;
    size_t done = 0;
    while (done < size) {
        ssize_t count = TEMP_FAILURE_RETRY(pread(file->fd, buffer + done, size - done, (off_t)(offset + done)));
        if (count < 0) return failure();
        if (count == 0) break; /* the end of the file */
        done += (size_t)count;
    }
    *out = done;
    return KV_OK;
}

static kv_status file_write_at(kv_io *io, kv_file *file, const uint8_t *bytes, size_t size, uint64_t offset) {
    (void)io;
    for (size_t done = 0; done < size;) {
        /* A full disk shows as a short write first; the next round then says ENOSPC. */
        ssize_t count = TEMP_FAILURE_RETRY(pwrite(file->fd, bytes + done, size - done, (off_t)(offset + done)));
        if (count < 0) return failure();
        if (count == 0) {
            errno = EIO; /* Not to be expected of a file, and must not become an endless loop. */
            return KV_EDISK;
        }
        done += (size_t)count;
    }
    return KV_OK;
}

static kv_status file_allocate(kv_io *io, kv_file *file, uint64_t size) {
    (void)io;
    if (size == 0) return KV_OK; /* which fallocate would refuse */
    if (TEMP_FAILURE_RETRY(fallocate(file->fd, 0, 0, (off_t)size)) == 0) return KV_OK;
    return errno == EOPNOTSUPP || errno == ENOSYS ? KV_OK : failure();
}

static kv_status file_truncate(kv_io *io, kv_file *file, uint64_t size) {
    (void)io;
    return outcome(TEMP_FAILURE_RETRY(ftruncate(file->fd, (off_t)size)));
}

static kv_status file_sync(kv_io *io, kv_file *file) {
    (void)io;
    return outcome(TEMP_FAILURE_RETRY(fdatasync(file->fd)));
}

static kv_status file_map(kv_io *io, kv_file *file, uint64_t size, bool writable, uint8_t **out) {
    (void)io;
    /* What will be written to soon is faulted in now, by whoever prepares it, and not under a writer's lock. */
    int flags = MAP_SHARED | (writable ? MAP_POPULATE : 0);
    void *mapping = mmap(NULL, size, PROT_READ | (writable ? PROT_WRITE : 0), flags, file->fd, 0);
    if (mapping == MAP_FAILED) return failure();
    *out = mapping;
    return KV_OK;
}

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14; older kernels refuse what they do not know */
#endif

/* MAP_POPULATE maps the pages of a shared file read-only: what makes one writable is a store, or this. */
static void pages_warm(kv_io *io, uint8_t *pages, uint64_t size) {
    (void)io;
    int os_error = errno;
    madvise(pages, size, MADV_POPULATE_WRITE);
    errno = os_error;
}

/* Of a shared mapping of a file this throws nothing away. */
static void pages_cool(kv_io *io, uint8_t *pages, uint64_t size) {
    (void)io;
    int os_error = errno;
    madvise(pages, size, MADV_DONTNEED);
    errno = os_error;
}

static void file_unmap(kv_io *io, kv_file *file, uint8_t *mapping, uint64_t size) {
    (void)io;
    (void)file;
    int failed = munmap(mapping, size);
    KV_ASSERT(failed == 0); /* It fails for addresses that were never a mapping. */
}

/* --- names --- */

static kv_status name_rename(kv_io *io, const char *from, const char *to) {
    int root_fd = posix_of(io)->root_fd;
    return outcome(renameat(root_fd, from, root_fd, to));
}

static kv_status name_unlink(kv_io *io, const char *path) {
    return unlinkat(posix_of(io)->root_fd, path, 0) == 0 ? KV_OK : failure_of_name();
}

static kv_status name_mkdir(kv_io *io, const char *path) {
    if (mkdirat(posix_of(io)->root_fd, path, DIRECTORY_MODE) == 0 || errno == EEXIST) return KV_OK;
    return failure();
}

static int open_directory(int root_fd, const char *path) {
    const char *name = path[0] == '\0' ? "." : path;
    return (int)TEMP_FAILURE_RETRY(openat(root_fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
}

static kv_status sync_directory(int root_fd, const char *path) {
    int fd = open_directory(root_fd, path);
    if (fd < 0) return failure();
    kv_status status = outcome(TEMP_FAILURE_RETRY(fsync(fd)));
    close_quietly(fd);
    return status;
}

static kv_status name_sync_dir(kv_io *io, const char *path) { return sync_directory(posix_of(io)->root_fd, path); }

/* Names one behind the other, each with its final zero. */
typedef struct names {
    char *bytes;
    size_t size;
    size_t capacity;
    size_t count;
} names;

static kv_status names_add(names *all, const char *name) {
    size_t size = strlen(name) + 1;
    if (all->capacity - all->size < size) {
        size_t capacity = 2 * all->capacity + size;
        char *bytes = realloc(all->bytes, capacity);
        if (bytes == NULL) return KV_ENOMEM;
        all->bytes = bytes;
        all->capacity = capacity;
    }
    memcpy(all->bytes + all->size, name, size);
    all->size += size;
    all->count++;
    return KV_OK;
}

static kv_status names_read(names *all, DIR *directory) {
    for (;;) {
        errno = 0; /* readdir tells the end from a failure by nothing else. */
        const struct dirent *entry = readdir(directory);
        if (entry == NULL) return errno == 0 ? KV_OK : failure();
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        kv_status status = names_add(all, entry->d_name);
        if (status != KV_OK) return status;
    }
}

static int compare_names(const void *left, const void *right) {
    return strcmp(*(char *const *)left, *(char *const *)right);
}

/* Pointers first, then the bytes they point to: one block, so that one free() is enough. */
static kv_status names_finish(const names *all, char ***out) {
    size_t pointers_size = all->count * sizeof(char *);
    char **block = malloc(pointers_size + all->size + 1); /* 1: never a request for nothing, which may yield NULL */
    if (block == NULL) return KV_ENOMEM;
    char *next = (char *)block + pointers_size;
    if (all->size > 0) memcpy(next, all->bytes, all->size);
    for (size_t i = 0; i < all->count; i++) {
        block[i] = next;
        next += strlen(next) + 1;
    }
    qsort(block, all->count, sizeof *block, compare_names);
    *out = block;
    return KV_OK;
}

static kv_status name_list(kv_io *io, const char *path, char ***out, size_t *count) {
    names all = {0};
    int fd = open_directory(posix_of(io)->root_fd, path);
    if (fd < 0) return failure_of_name();
    DIR *directory = fdopendir(fd);
    if (directory == NULL) {
        close_quietly(fd);
        return KV_ENOMEM; /* Nothing else is left to fail for an open directory. */
    }
    kv_status status = names_read(&all, directory);
    if (status == KV_OK) status = names_finish(&all, out);
    if (status == KV_OK) *count = all.count;

    int kept = errno;
    closedir(directory); /* closes fd */
    free(all.bytes);
    errno = kept;
    return status;
}

/* --- the directory as a whole --- */

/* What the holder wrote; 0 if that cannot be read. */
static int64_t read_holder(int fd) {
    char text[32] = {0};
    ssize_t size = pread(fd, text, sizeof text - 1, 0);
    return size > 0 ? strtoll(text, NULL, 10) : 0;
}

/* KV_OK: it is ours. */
static kv_status try_lock(int fd, int64_t *holder) {
    struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    if (fcntl(fd, F_OFD_SETLK, &whole) == 0) return KV_OK;
    if (errno != EAGAIN && errno != EACCES) return failure();
    *holder = read_holder(fd);
    return KV_ELOCKED;
}

/* For the message of whoever finds it locked. What decides is the lock, so a failure here (a full disk) does not count.
 * Always as long, so that the file is never cut: that would wait for whatever the file system's journal is busy with. */
static void write_holder(int fd) {
    char text[32];
    int size = snprintf(text, sizeof text, "%-19ld\n", (long)getpid());
    ssize_t written = pwrite(fd, text, (size_t)size, 0);
    (void)written;
}

static kv_status directory_lock(kv_io *io, int64_t *holder) {
    posix *self = posix_of(io);
    KV_ASSERT(self->lock_fd < 0);
    int fd = (int)TEMP_FAILURE_RETRY(openat(self->root_fd, LOCK_NAME, O_RDWR | O_CREAT | O_CLOEXEC, FILE_MODE));
    if (fd < 0) return failure();
    kv_status status = try_lock(fd, holder);
    if (status != KV_OK) {
        close_quietly(fd);
        return status;
    }
    write_holder(fd);
    self->lock_fd = fd;
    return KV_OK;
}

static void directory_let_go(kv_io *io) {
    posix *self = posix_of(io);
    close_quietly(self->lock_fd);
    self->lock_fd = -1;
}

/* File systems that write a dirty page of a shared mapping back in place. The numbers are those of statfs(2). */
static bool directory_maps_well(kv_io *io) {
    static const uint32_t kinds[] = {
        0xEF53,     /* ext2, ext3, ext4 */
        0x58465342, /* xfs */
        0x01021994, /* tmpfs */
        0xF2F52010, /* f2fs */
    };
    struct statfs facts;
    if (fstatfs(posix_of(io)->root_fd, &facts) != 0) return false; /* Unknown: the careful answer. */
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        if ((uint32_t)facts.f_type == kinds[i]) return true;
    }
    return false;
}

static int64_t directory_monotonic_ms(kv_io *io) {
    (void)io;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static int64_t directory_now_ms(kv_io *io) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    int64_t shift_ms = atomic_load_explicit(&posix_of(io)->clock_shift_ms, memory_order_relaxed);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000 + shift_ms;
}

static kv_status directory_random(kv_io *io, uint8_t *bytes, size_t size) {
    (void)io;
    for (size_t done = 0; done < size;) { /* More than 256 bytes may come in parts. */
        ssize_t count = TEMP_FAILURE_RETRY(getrandom(bytes + done, size - done, 0));
        if (count < 0) return failure();
        done += (size_t)count;
    }
    return KV_OK;
}

static void directory_free(kv_io *io) {
    posix *self = posix_of(io);
    close_quietly(self->lock_fd); /* drops the lock */
    close_quietly(self->root_fd);
    free(self);
}

/* Makes the directory's own name durable, until there is a flow in it: whoever created it may have been killed before its
 * sync, but whoever began a flow had come to the end of this. A parent that may be passed through but not be read cannot
 * be synced by us, and that is its owner's wish. */
static kv_status sync_parent(int root_fd) {
    kv_status status = sync_directory(root_fd, "..");
    return status != KV_OK && errno == EACCES ? KV_OK : status;
}

static kv_status open_root(const char *root, bool create, int *out) {
    if (create && mkdir(root, DIRECTORY_MODE) != 0 && errno != EEXIST) return failure_of_name();
    int fd = (int)TEMP_FAILURE_RETRY(open(root, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (fd < 0) return failure_of_name();
    kv_status status = create && faccessat(fd, "flow", F_OK, 0) != 0 ? sync_parent(fd) : KV_OK;
    if (status != KV_OK) {
        close_quietly(fd);
        return status;
    }
    *out = fd;
    return KV_OK;
}

static const kv_io TABLE = {
    .open = file_open,
    .close = file_close,
    .size = file_size,
    .read_at = file_read_at,
    .write_at = file_write_at,
    .allocate = file_allocate,
    .truncate = file_truncate,
    .sync = file_sync,
    .map = file_map,
    .warm = pages_warm,
    .cool = pages_cool,
    .unmap = file_unmap,
    .rename = name_rename,
    .unlink = name_unlink,
    .mkdir = name_mkdir,
    .sync_dir = name_sync_dir,
    .list = name_list,
    .lock = directory_lock,
    .let_go = directory_let_go,
    .maps_well = directory_maps_well,
    .now_ms = directory_now_ms,
    .monotonic_ms = directory_monotonic_ms,
    .random = directory_random,
    .free = directory_free,
};

kv_status kv_io_posix_new(const char *root, bool create, kv_io **out) {
    KV_ASSERT(root != NULL);
    KV_ASSERT(out != NULL);
    posix *self = calloc(1, sizeof *self);
    if (self == NULL) return KV_ENOMEM;
    self->table = TABLE;
    self->lock_fd = -1;
    kv_status status = open_root(root, create, &self->root_fd);
    if (status != KV_OK) {
        free(self);
        return status;
    }
    *out = &self->table;
    return KV_OK;
}

void kv_io_posix_shift_clock(kv_io *io, int64_t shift_ms) {
    atomic_store_explicit(&posix_of(io)->clock_shift_ms, shift_ms, memory_order_relaxed);
}
