/* io_sim.c -- a disk in memory that can crash, tear, drop and fail: the disk itself, as processes see it. io_sim.h has
 * the model, sim_internal.h how it is kept, sim_journal.c what can be asked about the past.
 *
 * Every change of the cached tree goes through change_make(), which journals it; every call that changes something
 * is an event, between event_begin() and event_end().
 *
 * Mapped files have their bytes in a block of their own besides ("live"), the truth as long as it exists; `pages`
 * is then what was last seen of it. A write goes to both.
 *
 * Threads: the mutex of the disk guards everything; stores through mappings happen when they like, and are loaded
 * atomically. */
#include "sim_internal.h"

#include <errno.h>
#include <stdio.h>
#include <unistd.h>

enum { PATH_SIZE_MAX = 127 };

static const uint64_t FILE_SIZE_MAX = (uint64_t)1 << 40;
static const int64_t CLOCK_START_MS = 1700000000000;

/* --- what a process has --- */

typedef struct inode {
    uint8_t *live; /* NULL: not mapped */
    uint64_t live_size;
    bool live_writable; /* has been mapped for writing since it is live */
    uint32_t map_count;
    uint32_t open_count;
    bool named;
} inode;

typedef struct sim_io sim_io;

typedef struct mapping {
    uint32_t inode;
    uint64_t size;
    sim_io *io;
    struct mapping *next;
} mapping;

struct kv_file {
    uint32_t inode;
    bool writable;
    char path[PATH_SIZE_MAX + 1];
    kv_file *next; /* of the same io */
};

struct sim_io {
    kv_io table; /* first: a kv_io of this kind is a sim_io */
    kv_sim *sim;
    kv_file *files;
};

/* --- files: pages and live bytes --- */

/* Loads of 8 bytes, as stores from other threads arrive: none of those is ever seen torn. Not memcpy, which
 * ThreadSanitizer would follow: that these race with stores is what a disk does, not a defect. */
__attribute__((no_sanitize_thread)) static void copy_live(uint64_t *to, const uint8_t *live) {
    const uint64_t *from = (const uint64_t *)(const void *)live;
    for (size_t i = 0; i < KV_PAGE_SIZE / sizeof *to; i++) to[i] = __atomic_load_n(from + i, __ATOMIC_RELAXED);
}

/* Whether a page holds these bytes. Every event asks this of every page that is mapped, most of which nobody touched, and
 * that is what a simulation costs: hence a loop that compilers make wide loads of. A store that it half sees differs, and
 * one that it does not see comes later. */
__attribute__((no_sanitize_thread)) static bool is_as_known(const uint8_t *live, const uint8_t *known) {
    enum { STRIDE = 32 };
    const uint64_t *a = (const uint64_t *)(const void *)live;
    const uint64_t *b = (const uint64_t *)(const void *)known;
    for (size_t i = 0; i < KV_PAGE_SIZE / sizeof *a; i += STRIDE) {
        uint64_t differing = 0;
        for (size_t k = 0; k < STRIDE; k++) differing |= a[i + k] ^ b[i + k];
        if (differing != 0) return false;
    }
    return true;
}

/* What somebody stored behind the end of the file is in no file. */
static void see_page(kv_sim *sim, uint32_t number, uint64_t index, uint8_t *bytes) {
    const node *n = &sim->cached.nodes[number];
    uint64_t left = n->size - index * KV_PAGE_SIZE;
    if (left < KV_PAGE_SIZE) memset(bytes + left, 0, KV_PAGE_SIZE - left);
    if (memcmp(page_bytes(node_page(n, index)), bytes, KV_PAGE_SIZE) == 0) return;
    change_make(sim, &(change){.kind = CHANGE_PAGE, .inode = number, .page_index = index, .version = page_new(bytes)});
}

/* Takes in what was stored through mappings of this file. */
static void see_file(kv_sim *sim, uint32_t number) {
    const inode *file = &sim->inodes[number];
    if (file->live == NULL || !file->live_writable) return;
    const node *n = &sim->cached.nodes[number];
    for (uint64_t at = 0; at < n->size && at < file->live_size; at += KV_PAGE_SIZE) {
        if (is_as_known(file->live + at, page_bytes(node_page(n, at / KV_PAGE_SIZE)))) continue;
        uint64_t copy[KV_PAGE_SIZE / sizeof(uint64_t)];
        copy_live(copy, file->live + at);
        see_page(sim, number, at / KV_PAGE_SIZE, (uint8_t *)copy);
    }
}

void sim_see_all(kv_sim *sim) {
    for (uint32_t number = 0; number < sim->cached.count; number++) see_file(sim, number);
}

/* Bytes of one page as processes see them: `count` of them from `offset`, all in that page. */
static void read_page(const kv_sim *sim, uint32_t number, uint64_t offset, uint8_t *buffer, size_t count) {
    const inode *file = &sim->inodes[number];
    if (offset < file->live_size) {
        memcpy(buffer, file->live + offset, count);
    } else {
        const page *known = node_page(&sim->cached.nodes[number], offset / KV_PAGE_SIZE);
        memcpy(buffer, page_bytes(known) + offset % KV_PAGE_SIZE, count);
    }
}

static void write_page(kv_sim *sim, uint32_t number, uint64_t offset, const uint8_t *bytes, size_t count) {
    inode *file = &sim->inodes[number];
    uint64_t start = offset / KV_PAGE_SIZE * KV_PAGE_SIZE;
    uint64_t copy[KV_PAGE_SIZE / sizeof(uint64_t)];
    if (offset < file->live_size) {
        memcpy(file->live + offset, bytes, count);
        copy_live(copy, file->live + start);
    } else {
        memcpy(copy, page_bytes(node_page(&sim->cached.nodes[number], start / KV_PAGE_SIZE)), KV_PAGE_SIZE);
        memcpy((uint8_t *)copy + (offset - start), bytes, count);
    }
    see_page(sim, number, start / KV_PAGE_SIZE, (uint8_t *)copy);
}

static size_t in_this_page(uint64_t offset, size_t left) {
    size_t room = KV_PAGE_SIZE - offset % KV_PAGE_SIZE;
    return left < room ? left : room;
}

static size_t read_file(const kv_sim *sim, uint32_t number, uint64_t offset, uint8_t *buffer, size_t size) {
    uint64_t end = sim->cached.nodes[number].size;
    if (offset >= end) return 0;
    if (size > end - offset) size = (size_t)(end - offset);
    for (size_t done = 0; done < size;) {
        size_t count = in_this_page(offset + done, size - done);
        read_page(sim, number, offset + done, buffer + done, count);
        done += count;
    }
    return size;
}

static void resize_file(kv_sim *sim, uint32_t number, uint64_t size) {
    KV_ASSERT(size <= FILE_SIZE_MAX);
    inode *file = &sim->inodes[number];
    uint64_t old = sim->cached.nodes[number].size;
    if (size == old) return;
    /* Behind the smaller of both there are zeros from now on, whatever was stored there. */
    uint64_t start = size < old ? size : old;
    if (start < file->live_size) memset(file->live + start, 0, file->live_size - start);
    sim->used = sim->used - old + size;
    change_make(sim, &(change){.kind = CHANGE_SIZE, .inode = number, .size = size});
}

/* Grows the file as far as the limit lets it: the size it has then, at most `end`. */
static uint64_t grow_file(kv_sim *sim, uint32_t number, uint64_t end) {
    uint64_t size = sim->cached.nodes[number].size;
    if (end <= size) return end;
    uint64_t space = sim->limit > sim->used ? sim->limit - sim->used : 0;
    if (end - size > space) end = size + space;
    resize_file(sim, number, end);
    return end;
}

static kv_status no_space(void) {
    errno = ENOSPC;
    return KV_ENOSPC;
}

static kv_status write_file(kv_sim *sim, uint32_t number, uint64_t offset, const uint8_t *bytes, size_t size) {
    KV_ASSERT(size <= FILE_SIZE_MAX);
    KV_ASSERT(offset <= FILE_SIZE_MAX);
    if (size == 0) return KV_OK;
    uint64_t end = grow_file(sim, number, offset + size);
    for (uint64_t at = offset; at < end;) {
        size_t count = in_this_page(at, (size_t)(end - at));
        write_page(sim, number, at, bytes + (at - offset), count);
        at += count;
    }
    return end == offset + size ? KV_OK : no_space();
}

static void drop_live(kv_sim *sim, uint32_t number) {
    inode *file = &sim->inodes[number];
    see_file(sim, number);
    free(file->live);
    file->live = NULL;
    file->live_size = 0;
    file->live_writable = false;
}

/* A file without a name goes when nobody has it open or mapped. A journal keeps its own hold on the pages. */
static void drop_if_unused(kv_sim *sim, uint32_t number) {
    const inode *file = &sim->inodes[number];
    if (file->named || file->open_count > 0 || file->map_count > 0) return;
    sim->used -= sim->cached.nodes[number].size;
    node_clear(&sim->cached.nodes[number]);
}

/* --- paths --- */

static uint32_t inode_new(kv_sim *sim, bool is_directory) {
    uint32_t number = sim->cached.count;
    tree_extend(&sim->cached, number + 1);
    sim->cached.nodes[number].is_directory = is_directory;
    sim->inodes = grown(sim->inodes, number, &sim->inode_capacity, sizeof *sim->inodes);
    memset(&sim->inodes[number], 0, sizeof sim->inodes[number]);
    return number;
}

static kv_status os_failure(int errno_value) {
    errno = errno_value;
    switch (errno_value) {
    case ENOENT: return KV_ABSENT;
    case ENOSPC:
    case EDQUOT: return KV_ENOSPC;
    default: return KV_EDISK;
    }
}

/* Of a call for which a missing name is the disk's doing: see io_posix.c. */
static kv_status not_absent(kv_status status) { return status == KV_ABSENT ? KV_EDISK : status; }

/* A name in a directory that exists; the name itself may be new (inode NULL_INODE). */
typedef struct place {
    uint32_t directory;
    uint32_t inode;
    char name[KV_SIM_NAME_SIZE_MAX + 1];
} place;

static const uint32_t NULL_INODE = UINT32_MAX;

static kv_status look_up(const kv_sim *sim, const char *path, place *out) {
    KV_ASSERT(path[0] != '/');
    if (strlen(path) > PATH_SIZE_MAX) return os_failure(ENAMETOOLONG);
    *out = (place){.directory = ROOT, .inode = ROOT};
    while (*path != '\0') {
        size_t size = strcspn(path, "/");
        if (size > KV_SIM_NAME_SIZE_MAX) return os_failure(ENAMETOOLONG);
        if (out->inode == NULL_INODE) return os_failure(ENOENT);
        const node *directory = &sim->cached.nodes[out->inode];
        if (!directory->is_directory) return os_failure(ENOTDIR);
        memcpy(out->name, path, size);
        out->name[size] = '\0';
        out->directory = out->inode;
        uint64_t index;
        out->inode = node_find(directory, out->name, &index) ? directory->entries[index].inode : NULL_INODE;
        path += size + (path[size] == '/');
    }
    return KV_OK;
}

static kv_status look_up_existing(const kv_sim *sim, const char *path, place *out) {
    kv_status status = look_up(sim, path, out);
    if (status == KV_OK && out->inode == NULL_INODE) status = os_failure(ENOENT);
    return status;
}

static kv_status look_up_file(const kv_sim *sim, const char *path, place *out) {
    kv_status status = look_up_existing(sim, path, out);
    if (status == KV_OK && sim->cached.nodes[out->inode].is_directory) status = os_failure(EISDIR);
    return status;
}

static kv_status look_up_directory(const kv_sim *sim, const char *path, place *out) {
    kv_status status = look_up_existing(sim, path, out);
    if (status == KV_OK && !sim->cached.nodes[out->inode].is_directory) status = os_failure(ENOTDIR);
    return status;
}

static void change_name(kv_sim *sim, enum change_kind kind, const place *at, uint32_t number) {
    change c = {.kind = kind, .inode = number, .directory = at->directory};
    c.is_directory = sim->cached.nodes[number].is_directory;
    memcpy(c.name, at->name, sizeof c.name);
    change_make(sim, &c);
    sim->inodes[number].named = kind == CHANGE_BIND;
}

/* --- the frame of every call --- */

static kv_sim *enter(kv_io *io) {
    kv_sim *sim = ((sim_io *)io)->sim;
    pthread_mutex_lock(&sim->mutex);
    return sim;
}

static kv_status leave(kv_sim *sim, kv_status status) {
    pthread_mutex_unlock(&sim->mutex);
    return status;
}

/* Counts the call; not KV_OK if the test wants it to fail. */
static kv_status admit(kv_sim *sim, enum kv_sim_kind kind) {
    sim->call_counts[kind]++;
    failing *f = &sim->failing[kind];
    if (f->countdown == 0 || --f->countdown > 0) return KV_OK;
    if ((f->flags & KV_SIM_FAIL_STICKY) != 0) f->countdown = 1;
    return os_failure(f->errno_value);
}

/* --- the table: files --- */

static kv_status create_file(kv_sim *sim, const char *path, place *at) {
    kv_status status = look_up(sim, path, at);
    if (status != KV_OK) return status;
    if (at->inode != NULL_INODE && sim->cached.nodes[at->inode].is_directory) return os_failure(EISDIR);
    event_begin(sim, KV_SIM_CREATE, 0, ROOT, path);
    if (at->inode == NULL_INODE) {
        at->inode = inode_new(sim, false);
        change_name(sim, CHANGE_BIND, at, at->inode);
    } else {
        resize_file(sim, at->inode, 0);
    }
    event_end(sim);
    return KV_OK;
}

static kv_status sim_open(kv_io *io, const char *path, enum kv_io_mode mode, kv_file **out) {
    kv_sim *sim = enter(io);
    place at;
    kv_status status = admit(sim, mode == KV_IO_CREATE ? KV_SIM_CREATE : KV_SIM_OPEN);
    if (status == KV_OK && mode == KV_IO_CREATE) status = not_absent(create_file(sim, path, &at));
    else if (status == KV_OK) status = look_up_file(sim, path, &at);
    if (status != KV_OK) return leave(sim, status);

    sim_io *self = (sim_io *)io;
    kv_file *file = need(calloc(1, sizeof *file));
    file->inode = at.inode;
    file->writable = mode != KV_IO_READ;
    strcpy(file->path, path); /* look_up has measured it */
    file->next = self->files;
    self->files = file;
    sim->inodes[at.inode].open_count++;
    *out = file;
    return leave(sim, KV_OK);
}

static void close_file(kv_sim *sim, sim_io *self, kv_file *file) {
    kv_file **link = &self->files;
    while (*link != file) {
        KV_ASSERT(*link != NULL); /* It was opened through this io and is not closed yet. */
        link = &(*link)->next;
    }
    *link = file->next;
    sim->inodes[file->inode].open_count--;
    drop_if_unused(sim, file->inode);
    free(file);
}

static void sim_close(kv_io *io, kv_file *file) {
    kv_sim *sim = enter(io);
    close_file(sim, (sim_io *)io, file);
    leave(sim, KV_OK);
}

static kv_status sim_size(kv_io *io, kv_file *file, uint64_t *out) {
    kv_sim *sim = enter(io);
    kv_status status = admit(sim, KV_SIM_SIZE);
    if (status == KV_OK) *out = sim->cached.nodes[file->inode].size;
    return leave(sim, status);
}

static kv_status sim_read_at(kv_io *io, kv_file *file, uint8_t *buffer, size_t size, uint64_t offset, size_t *out) {
    kv_sim *sim = enter(io);
    kv_status status = admit(sim, KV_SIM_READ);
    if (status == KV_OK) *out = read_file(sim, file->inode, offset, buffer, size);
    return leave(sim, status);
}

static kv_status sim_write_at(kv_io *io, kv_file *file, const uint8_t *bytes, size_t size, uint64_t offset) {
    kv_sim *sim = enter(io);
    kv_status status = admit(sim, KV_SIM_WRITE);
    int kept = errno;
    bool half = status != KV_OK && (sim->failing[KV_SIM_WRITE].flags & KV_SIM_FAIL_HALF) != 0;
    if (status != KV_OK && !half) return leave(sim, status);
    if (!file->writable) return leave(sim, os_failure(EBADF));

    event_begin(sim, KV_SIM_WRITE, 0, file->inode, file->path);
    kv_status written = write_file(sim, file->inode, offset, bytes, half ? size / 2 : size);
    event_end(sim);
    if (!half) return leave(sim, written);
    errno = kept;
    return leave(sim, status);
}

static kv_status sim_allocate(kv_io *io, kv_file *file, uint64_t size) {
    kv_sim *sim = enter(io);
    kv_status status = admit(sim, KV_SIM_ALLOCATE);
    if (status != KV_OK) return leave(sim, status);
    if (!file->writable) return leave(sim, os_failure(EBADF));
    uint64_t old = sim->cached.nodes[file->inode].size;
    uint64_t space = sim->limit > sim->used ? sim->limit - sim->used : 0;
    if (size > old && size - old > space) return leave(sim, no_space()); /* all or nothing, unlike a write */

    event_begin(sim, KV_SIM_ALLOCATE, 0, file->inode, file->path);
    if (size > old) resize_file(sim, file->inode, size);
    event_end(sim);
    return leave(sim, KV_OK);
}

/* A hole takes no space, so growing by truncate is never refused. */
static kv_status sim_truncate(kv_io *io, kv_file *file, uint64_t size) {
    kv_sim *sim = enter(io);
    kv_status status = admit(sim, KV_SIM_TRUNCATE);
    if (status != KV_OK) return leave(sim, status);
    if (!file->writable) return leave(sim, os_failure(EBADF));
    event_begin(sim, KV_SIM_TRUNCATE, 0, file->inode, file->path);
    resize_file(sim, file->inode, size);
    event_end(sim);
    return leave(sim, KV_OK);
}

/* A sync that fails is no event: nothing became durable by it. */
static kv_status sim_sync(kv_io *io, kv_file *file) {
    kv_sim *sim = enter(io);
    kv_status status = admit(sim, KV_SIM_SYNC);
    if (status == KV_OK) event_begin(sim, KV_SIM_SYNC, 0, file->inode, file->path);
    return leave(sim, status);
}

static void make_live(kv_sim *sim, uint32_t number, uint64_t size) {
    inode *file = &sim->inodes[number];
    const node *n = &sim->cached.nodes[number];
    file->live_size = kv_align(size > n->size ? size : n->size, KV_PAGE_SIZE);
    file->live = need(aligned_alloc(KV_PAGE_SIZE, file->live_size));
    for (uint64_t at = 0; at < file->live_size; at += KV_PAGE_SIZE) {
        memcpy(file->live + at, page_bytes(node_page(n, at / KV_PAGE_SIZE)), KV_PAGE_SIZE);
    }
}

static kv_status sim_map(kv_io *io, kv_file *file, uint64_t size, bool writable, uint8_t **out) {
    kv_sim *sim = enter(io);
    kv_status status = admit(sim, KV_SIM_MAP);
    if (status != KV_OK) return leave(sim, status);
    if (size == 0) return leave(sim, os_failure(EINVAL));
    if (writable && !file->writable) return leave(sim, os_failure(EACCES));

    inode *mapped = &sim->inodes[file->inode];
    if (mapped->live == NULL) make_live(sim, file->inode, size);
    KV_ASSERT(size <= mapped->live_size); /* else the older mapping would have to move */
    mapped->live_writable |= writable;
    mapped->map_count++;
    mapping *made = need(malloc(sizeof *made));
    *made = (mapping){file->inode, size, (sim_io *)io, sim->mappings};
    sim->mappings = made;
    *out = mapped->live;
    return leave(sim, KV_OK);
}

static void remove_mapping(kv_sim *sim, mapping **link) {
    mapping *removed = *link;
    *link = removed->next;
    if (--sim->inodes[removed->inode].map_count == 0) drop_live(sim, removed->inode);
    drop_if_unused(sim, removed->inode);
    free(removed);
}

/* Its mappings are memory. */
static void sim_hint(kv_io *io, uint8_t *pages, uint64_t size) {
    (void)io;
    (void)pages;
    (void)size;
}

static void sim_unmap(kv_io *io, kv_file *file, uint8_t *bytes, uint64_t size) {
    (void)file;
    kv_sim *sim = enter(io);
    mapping **link = &sim->mappings;
    for (;; link = &(*link)->next) {
        const mapping *m = *link;
        KV_ASSERT(m != NULL); /* It was mapped through this io with that size. */
        if (m->io == (sim_io *)io && m->size == size && sim->inodes[m->inode].live == bytes) break;
    }
    remove_mapping(sim, link);
    leave(sim, KV_OK);
}

/* --- the table: names --- */

static kv_status rename_name(kv_sim *sim, const char *from, const char *to) {
    place source, target;
    kv_status status = look_up_existing(sim, from, &source);
    if (status == KV_OK) status = look_up(sim, to, &target);
    if (status != KV_OK) return status;
    if (target.inode == source.inode) return KV_OK;
    if (target.inode != NULL_INODE && sim->cached.nodes[target.inode].is_directory) return os_failure(EISDIR);

    char both[2 * PATH_SIZE_MAX + 8];
    snprintf(both, sizeof both, "%s -> %s", from, to);
    event_begin(sim, KV_SIM_RENAME, 0, ROOT, both);
    change_name(sim, CHANGE_BIND, &target, source.inode);
    if (target.inode != NULL_INODE) {
        sim->inodes[target.inode].named = false;
        drop_if_unused(sim, target.inode);
    }
    event_end(sim);
    return KV_OK;
}

static kv_status sim_rename(kv_io *io, const char *from, const char *to) {
    kv_sim *sim = enter(io);
    kv_status status = admit(sim, KV_SIM_RENAME);
    if (status == KV_OK) status = not_absent(rename_name(sim, from, to));
    return leave(sim, status);
}

static kv_status sim_unlink(kv_io *io, const char *path) {
    kv_sim *sim = enter(io);
    place at;
    kv_status status = admit(sim, KV_SIM_UNLINK);
    if (status == KV_OK) status = look_up_file(sim, path, &at);
    if (status != KV_OK) return leave(sim, status);
    event_begin(sim, KV_SIM_UNLINK, 0, ROOT, path);
    change_name(sim, CHANGE_UNBIND, &at, at.inode);
    drop_if_unused(sim, at.inode);
    event_end(sim);
    return leave(sim, KV_OK);
}

static kv_status sim_mkdir(kv_io *io, const char *path) {
    kv_sim *sim = enter(io);
    place at;
    kv_status status = admit(sim, KV_SIM_MKDIR);
    if (status == KV_OK) status = not_absent(look_up(sim, path, &at));
    if (status != KV_OK || at.inode != NULL_INODE) return leave(sim, status);
    event_begin(sim, KV_SIM_MKDIR, 0, ROOT, path);
    change_name(sim, CHANGE_BIND, &at, inode_new(sim, true));
    event_end(sim);
    return leave(sim, KV_OK);
}

static kv_status sim_sync_dir(kv_io *io, const char *path) {
    kv_sim *sim = enter(io);
    place at;
    kv_status status = admit(sim, KV_SIM_SYNC_DIR);
    if (status == KV_OK) status = not_absent(look_up_directory(sim, path, &at));
    if (status == KV_OK) event_begin(sim, KV_SIM_SYNC_DIR, 0, at.inode, path);
    return leave(sim, status);
}

/* Pointers first, then the names: one block. */
static char **list_names(const node *directory) {
    size_t pointers_size = directory->entry_count * sizeof(char *);
    size_t names_size = directory->entry_count * (KV_SIM_NAME_SIZE_MAX + 1);
    char **block = need(malloc(pointers_size + names_size + 1));
    char *next = (char *)block + pointers_size;
    for (uint64_t i = 0; i < directory->entry_count; i++, next += KV_SIM_NAME_SIZE_MAX + 1) {
        memcpy(next, directory->entries[i].name, KV_SIM_NAME_SIZE_MAX + 1);
        block[i] = next;
    }
    return block;
}

static kv_status sim_list(kv_io *io, const char *path, char ***names, size_t *count) {
    kv_sim *sim = enter(io);
    place at;
    kv_status status = admit(sim, KV_SIM_LIST);
    if (status == KV_OK) status = look_up_directory(sim, path, &at);
    if (status != KV_OK) return leave(sim, status);
    *names = list_names(&sim->cached.nodes[at.inode]);
    *count = sim->cached.nodes[at.inode].entry_count;
    return leave(sim, KV_OK);
}

/* --- the table: the directory as a whole --- */

static kv_status sim_lock(kv_io *io, int64_t *holder) {
    kv_sim *sim = enter(io);
    kv_status status = admit(sim, KV_SIM_LOCK);
    if (status != KV_OK) return leave(sim, status);
    if (sim->locked_by != NULL) {
        *holder = getpid();
        return leave(sim, KV_ELOCKED);
    }
    sim->locked_by = (sim_io *)io;
    return leave(sim, KV_OK);
}

static bool sim_maps_well(kv_io *io) {
    kv_sim *sim = enter(io);
    bool answer = sim->maps_well;
    leave(sim, KV_OK);
    return answer;
}

/* There are no children of a simulated process. */
static void sim_let_go(kv_io *io) { (void)io; }

/* Stands still, so that a recorded history does not depend on how long it took. */
static int64_t sim_monotonic_ms(kv_io *io) {
    (void)io;
    return 0;
}

static int64_t sim_now_ms(kv_io *io) {
    kv_sim *sim = enter(io);
    int64_t answer = sim->now_ms;
    leave(sim, KV_OK);
    return answer;
}

static kv_status sim_random(kv_io *io, uint8_t *bytes, size_t size) {
    kv_sim *sim = enter(io);
    kv_status status = admit(sim, KV_SIM_RANDOM);
    for (size_t i = 0; status == KV_OK && i < size; i++) bytes[i] = (uint8_t)draw(0, sim->random_state++, 0);
    return leave(sim, status);
}

static void sim_io_free(kv_io *io) {
    kv_sim *sim = enter(io);
    sim_io *self = (sim_io *)io;
    for (mapping **link = &sim->mappings; *link != NULL;) {
        if ((*link)->io == self) remove_mapping(sim, link);
        else link = &(*link)->next;
    }
    while (self->files != NULL) close_file(sim, self, self->files);
    if (sim->locked_by == self) sim->locked_by = NULL;
    sim->io_count--;
    leave(sim, KV_OK);
    free(self);
}

static const kv_io TABLE = {
    .open = sim_open,
    .close = sim_close,
    .size = sim_size,
    .read_at = sim_read_at,
    .write_at = sim_write_at,
    .allocate = sim_allocate,
    .truncate = sim_truncate,
    .sync = sim_sync,
    .map = sim_map,
    .warm = sim_hint,
    .cool = sim_hint,
    .unmap = sim_unmap,
    .rename = sim_rename,
    .unlink = sim_unlink,
    .mkdir = sim_mkdir,
    .sync_dir = sim_sync_dir,
    .list = sim_list,
    .lock = sim_lock,
    .let_go = sim_let_go,
    .maps_well = sim_maps_well,
    .now_ms = sim_now_ms,
    .monotonic_ms = sim_monotonic_ms,
    .random = sim_random,
    .free = sim_io_free,
};

kv_io *kv_sim_io(kv_sim *sim) {
    sim_io *self = need(calloc(1, sizeof *self));
    self->table = TABLE;
    self->sim = sim;
    pthread_mutex_lock(&sim->mutex);
    sim->io_count++;
    pthread_mutex_unlock(&sim->mutex);
    return &self->table;
}

/* --- the disk --- */

/* Takes the tree over. */
kv_sim *sim_of_tree(tree content) {
    kv_sim *sim = need(calloc(1, sizeof *sim));
    pthread_mutex_init(&sim->mutex, NULL);
    sim->cached = content;
    sim->inodes = need(calloc(content.count, sizeof *sim->inodes));
    sim->inode_capacity = content.count;
    for (uint32_t d = 0; d < content.count; d++) {
        const node *n = &content.nodes[d];
        for (uint64_t i = 0; i < n->entry_count; i++) sim->inodes[n->entries[i].inode].named = true;
        sim->used += n->size;
    }
    sim->inodes[ROOT].named = true;
    sim->limit = UINT64_MAX;
    sim->now_ms = CLOCK_START_MS;
    sim->maps_well = true;
    return sim;
}

void sim_inherit(kv_sim *child, const kv_sim *parent) {
    child->limit = parent->limit;
    child->now_ms = parent->now_ms;
    child->maps_well = parent->maps_well;
    child->random_state = parent->random_state;
}

kv_sim *kv_sim_new(void) {
    kv_sim *sim = sim_of_tree(tree_new(1));
    kv_sim_set_recording(sim, true);
    return sim;
}

kv_sim *kv_sim_clone(kv_sim *sim) {
    pthread_mutex_lock(&sim->mutex);
    sim_see_all(sim);
    kv_sim *clone = sim_of_tree(tree_copy(&sim->cached));
    sim_inherit(clone, sim);
    pthread_mutex_unlock(&sim->mutex);
    return clone;
}

void kv_sim_free(kv_sim *sim) {
    if (sim == NULL) return;
    KV_ASSERT(sim->io_count == 0);
    journal_forget(sim);
    tree_clear(&sim->cached);
    free(sim->inodes);
    pthread_mutex_destroy(&sim->mutex);
    free(sim);
}

void kv_sim_set_random(kv_sim *sim, uint64_t seed) {
    pthread_mutex_lock(&sim->mutex);
    sim->random_state = kv_mix64(seed);
    pthread_mutex_unlock(&sim->mutex);
}

void kv_sim_set_clock(kv_sim *sim, int64_t now_ms) {
    pthread_mutex_lock(&sim->mutex);
    sim->now_ms = now_ms;
    pthread_mutex_unlock(&sim->mutex);
}

void kv_sim_set_maps_well(kv_sim *sim, int32_t maps_well) {
    pthread_mutex_lock(&sim->mutex);
    sim->maps_well = maps_well != 0;
    pthread_mutex_unlock(&sim->mutex);
}

/* --- failing calls --- */

static bool is_kind(int32_t kind) { return kind >= 0 && kind < KV_SIM_KIND_COUNT; }

void kv_sim_fail(kv_sim *sim, int32_t kind, uint64_t nth, int32_t errno_value, int32_t flags) {
    KV_ASSERT(is_kind(kind));
    pthread_mutex_lock(&sim->mutex);
    sim->failing[kind] = (failing){nth, errno_value, flags};
    pthread_mutex_unlock(&sim->mutex);
}

uint64_t kv_sim_call_count(kv_sim *sim, int32_t kind) {
    KV_ASSERT(is_kind(kind));
    pthread_mutex_lock(&sim->mutex);
    uint64_t count = sim->call_counts[kind];
    pthread_mutex_unlock(&sim->mutex);
    return count;
}

void kv_sim_limit(kv_sim *sim, uint64_t size) {
    pthread_mutex_lock(&sim->mutex);
    sim->limit = size;
    pthread_mutex_unlock(&sim->mutex);
}

uint64_t kv_sim_used(kv_sim *sim) {
    pthread_mutex_lock(&sim->mutex);
    uint64_t used = sim->used;
    pthread_mutex_unlock(&sim->mutex);
    return used;
}

/* --- damage --- */

/* Locks; the caller unlocks, whatever the answer is. */
static kv_status find_for_damage(kv_sim *sim, const char *path, uint32_t *out) {
    pthread_mutex_lock(&sim->mutex);
    place at;
    kv_status status = look_up_file(sim, path, &at);
    if (status == KV_OK) *out = at.inode;
    return status;
}

kv_status kv_sim_file_size(kv_sim *sim, const char *path, uint64_t *out) {
    uint32_t number;
    kv_status status = find_for_damage(sim, path, &number);
    if (status == KV_OK) *out = sim->cached.nodes[number].size;
    return leave(sim, status);
}

kv_status kv_sim_read(kv_sim *sim, const char *path, uint64_t offset, uint8_t *buffer, size_t size, size_t *out) {
    uint32_t number;
    kv_status status = find_for_damage(sim, path, &number);
    if (status == KV_OK) *out = read_file(sim, number, offset, buffer, size);
    return leave(sim, status);
}

kv_status kv_sim_write(kv_sim *sim, const char *path, uint64_t offset, const uint8_t *bytes, size_t size) {
    uint32_t number;
    kv_status status = find_for_damage(sim, path, &number);
    if (status == KV_OK && sim->recording) status = KV_EUSAGE;
    if (status == KV_OK) status = write_file(sim, number, offset, bytes, size);
    return leave(sim, status);
}

kv_status kv_sim_truncate_file(kv_sim *sim, const char *path, uint64_t size) {
    uint32_t number;
    kv_status status = find_for_damage(sim, path, &number);
    if (status == KV_OK && sim->recording) status = KV_EUSAGE;
    if (status == KV_OK) resize_file(sim, number, size);
    return leave(sim, status);
}
