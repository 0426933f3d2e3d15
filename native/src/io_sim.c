/* io_sim.c -- a disk in memory that can crash, tear, drop and fail. io_sim.h has the model; here is how it is kept.
 *
 *   page     4 KiB that never change, counted by reference, shared by files, journals and images; NULL: all zeros
 *   node     what a file or directory is at one moment: pages and size, or sorted names. There is one for the
 *            cached state, one in the base (where recording began), one in the cursor (below), one in each image.
 *   change   one step from node to node; the log of them and the base give every state in between
 *   cursor   the durable nodes of one event and the open changes there. Going to a later event folds what was
 *            synced in between into the nodes; tests ask event by event, so this is short. Going back starts again.
 *
 * An image is the cursor's durable nodes (pages shared), to which the open changes that the policy keeps are applied
 * in the order in which they were made.
 *
 * Mapped files have their bytes in a block of their own besides ("live"), the truth as long as it exists; `pages`
 * is then what was last seen of it. A write goes to both.
 *
 * This is a test's tool: no memory is a broken invariant. Threads: the mutex of the disk guards all but the count
 * and the digest of a page, which disks share and which are atomic. */
#include "kv/io_sim.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "kv/xxh64.h"

enum { ROOT = 0, PATH_SIZE_MAX = 127, SECTOR_COUNT = KV_PAGE_SIZE / KV_SIM_SECTOR_SIZE };

static const uint64_t FILE_SIZE_MAX = (uint64_t)1 << 40;
static const int64_t CLOCK_START_MS = 1700000000000;
static const uint8_t ZEROS[KV_PAGE_SIZE];

static void *need(void *memory) {
    KV_ASSERT(memory != NULL);
    return memory;
}

/* Room for one more, doubling. */
static void *grown(void *items, uint64_t count, uint64_t *capacity, size_t item_size) {
    if (count < *capacity) return items;
    *capacity = *capacity == 0 ? 16 : 2 * *capacity;
    return need(realloc(items, *capacity * item_size));
}

/* --- pages --- */

typedef struct page {
    _Atomic uint32_t reference_count;
    _Atomic uint64_t digest; /* 0: not computed yet */
    uint8_t bytes[KV_PAGE_SIZE];
} page;

static bool is_zero(const uint8_t *bytes) { return memcmp(bytes, ZEROS, KV_PAGE_SIZE) == 0; }

static page *page_new(const uint8_t *bytes) {
    if (is_zero(bytes)) return NULL;
    page *made = need(malloc(sizeof *made));
    atomic_init(&made->reference_count, 1);
    atomic_init(&made->digest, 0);
    memcpy(made->bytes, bytes, KV_PAGE_SIZE);
    return made;
}

static page *page_share(page *shared) {
    if (shared != NULL) atomic_fetch_add_explicit(&shared->reference_count, 1, memory_order_relaxed);
    return shared;
}

static void page_release(page *released) {
    if (released == NULL) return;
    if (atomic_fetch_sub_explicit(&released->reference_count, 1, memory_order_acq_rel) == 1) free(released);
}

static const uint8_t *page_bytes(const page *read) { return read == NULL ? ZEROS : read->bytes; }

static uint64_t page_digest(page *digested) {
    uint64_t digest = atomic_load_explicit(&digested->digest, memory_order_relaxed);
    if (digest != 0) return digest;
    digest = kv_xxh64(digested->bytes, KV_PAGE_SIZE, 0) | 1;
    atomic_store_explicit(&digested->digest, digest, memory_order_relaxed);
    return digest;
}

/* --- nodes --- */

typedef struct entry {
    char name[KV_SIM_NAME_SIZE_MAX + 1];
    uint32_t inode;
} entry;

typedef struct node {
    bool is_directory;
    uint64_t size;
    page **pages; /* cached and finished nodes have none that is not NULL behind the size */
    uint64_t page_count;
    entry *entries; /* sorted by name */
    uint64_t entry_count;
    uint64_t entry_capacity;
} node;

static void node_set_page(node *n, uint64_t index, page *owned) {
    if (index >= n->page_count) {
        if (owned == NULL) return;
        n->pages = need(realloc(n->pages, (index + 1) * sizeof *n->pages));
        memset(n->pages + n->page_count, 0, (index + 1 - n->page_count) * sizeof *n->pages);
        n->page_count = index + 1;
    }
    page_release(n->pages[index]);
    n->pages[index] = owned;
}

static page *node_page(const node *n, uint64_t index) { return index < n->page_count ? n->pages[index] : NULL; }

/* What lies behind the new size is gone for good: growing again shows zeros. */
static void node_set_size(node *n, uint64_t size) {
    n->size = size;
    uint64_t kept_count = kv_align(size, KV_PAGE_SIZE) / KV_PAGE_SIZE;
    while (n->page_count > kept_count) page_release(n->pages[--n->page_count]);

    uint64_t tail = size % KV_PAGE_SIZE;
    page *last = tail == 0 ? NULL : node_page(n, size / KV_PAGE_SIZE);
    if (last == NULL || memcmp(last->bytes + tail, ZEROS, KV_PAGE_SIZE - tail) == 0) return;
    uint8_t bytes[KV_PAGE_SIZE] = {0};
    memcpy(bytes, last->bytes, tail);
    node_set_page(n, size / KV_PAGE_SIZE, page_new(bytes));
}

/* Where the name is, or where it belongs. */
static bool node_find(const node *n, const char *name, uint64_t *index) {
    uint64_t low = 0, high = n->entry_count;
    while (low < high) {
        uint64_t middle = (low + high) / 2;
        int order = strcmp(n->entries[middle].name, name);
        if (order == 0) {
            *index = middle;
            return true;
        }
        if (order < 0) low = middle + 1;
        else high = middle;
    }
    *index = low;
    return false;
}

static void node_remove_entry(node *n, uint64_t index) {
    n->entry_count--;
    memmove(n->entries + index, n->entries + index + 1, (n->entry_count - index) * sizeof *n->entries);
}

static void node_bind(node *n, const char *name, uint32_t inode) {
    uint64_t index;
    if (!node_find(n, name, &index)) {
        n->entries = grown(n->entries, n->entry_count, &n->entry_capacity, sizeof *n->entries);
        memmove(n->entries + index + 1, n->entries + index, (n->entry_count - index) * sizeof *n->entries);
        n->entry_count++;
        memset(&n->entries[index], 0, sizeof n->entries[index]);
        strcpy(n->entries[index].name, name); /* lookup has measured it */
    }
    n->entries[index].inode = inode;
}

static void node_copy_entries(node *to, const node *from) {
    to->is_directory = from->is_directory;
    if (from->entry_count == 0) return;
    to->entries = need(malloc(from->entry_count * sizeof *to->entries));
    memcpy(to->entries, from->entries, from->entry_count * sizeof *to->entries);
    to->entry_count = to->entry_capacity = from->entry_count;
}

static void node_copy_content(node *to, const node *from) {
    to->size = from->size;
    if (from->page_count == 0) return;
    to->pages = need(malloc(from->page_count * sizeof *to->pages));
    to->page_count = from->page_count;
    for (uint64_t i = 0; i < from->page_count; i++) to->pages[i] = page_share(from->pages[i]);
}

static void node_clear(node *n) {
    for (uint64_t i = 0; i < n->page_count; i++) page_release(n->pages[i]);
    free(n->pages);
    free(n->entries);
    memset(n, 0, sizeof *n);
}

/* A tree is an array of nodes by inode number; ROOT is its root, some may be in no directory. */
typedef struct tree {
    node *nodes;
    uint32_t count;
} tree;

static tree tree_new(uint32_t count) {
    tree made = {need(calloc(count, sizeof(node))), count};
    made.nodes[ROOT].is_directory = true;
    return made;
}

static void tree_clear(tree *t) {
    for (uint32_t i = 0; i < t->count; i++) node_clear(&t->nodes[i]);
    free(t->nodes);
    memset(t, 0, sizeof *t);
}

static void tree_extend(tree *t, uint32_t count) {
    if (count <= t->count) return;
    t->nodes = need(realloc(t->nodes, count * sizeof *t->nodes));
    memset(t->nodes + t->count, 0, (count - t->count) * sizeof *t->nodes);
    t->count = count;
}

static bool tree_find_name(const tree *t, uint32_t inode, uint32_t *directory, uint64_t *index) {
    for (uint32_t d = 0; d < t->count; d++) {
        for (uint64_t i = 0; i < t->nodes[d].entry_count; i++) {
            if (t->nodes[d].entries[i].inode != inode) continue;
            *directory = d;
            *index = i;
            return true;
        }
    }
    return false;
}

/* One name a file: this is what makes a rename one change, and keeps a lost rename from leaving two names. */
static void tree_bind(tree *t, uint32_t directory, const char *name, uint32_t inode) {
    uint32_t old_directory;
    uint64_t index;
    if (tree_find_name(t, inode, &old_directory, &index)) node_remove_entry(&t->nodes[old_directory], index);
    t->nodes[directory].is_directory = true;
    node_bind(&t->nodes[directory], name, inode);
}

static void tree_unbind(tree *t, uint32_t directory, const char *name, uint32_t inode) {
    uint64_t index;
    node *n = &t->nodes[directory];
    if (node_find(n, name, &index) && n->entries[index].inode == inode) node_remove_entry(n, index);
}

/* --- changes, events, the disk --- */

enum change_kind { CHANGE_PAGE, CHANGE_SIZE, CHANGE_BIND, CHANGE_UNBIND };

typedef struct change {
    enum change_kind kind;
    uint32_t inode;
    uint32_t directory; /* names */
    bool is_directory;  /* names: what the inode is */
    uint64_t page_index;
    uint64_t size;
    page *version;
    char name[KV_SIM_NAME_SIZE_MAX + 1];
} change;

typedef struct event {
    int32_t kind;
    int64_t tag;
    uint32_t inode;        /* of a sync or sync_dir */
    uint64_t change_first; /* its own changes; those between the events before and it were stores */
    uint64_t change_end;
    char *path;
} event;

typedef struct cursor {
    bool valid;
    uint64_t event;
    uint64_t change_end; /* changes below are folded or open */
    tree durable;
    uint64_t *open; /* indices of changes, ascending */
    uint64_t open_count;
    uint64_t open_capacity;
} cursor;

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

typedef struct failing {
    uint64_t countdown; /* 0: not armed */
    int errno_value;
    int32_t flags;
} failing;

struct kv_sim {
    pthread_mutex_t mutex;
    tree cached;
    inode *inodes; /* beside cached.nodes */
    uint64_t inode_capacity;
    mapping *mappings;
    uint32_t io_count;
    const sim_io *locked_by;
    uint64_t used;
    uint64_t limit;
    int64_t now_ms;
    bool maps_well;
    uint64_t random_state;
    failing failing[KV_SIM_KIND_COUNT];
    uint64_t call_counts[KV_SIM_KIND_COUNT];

    bool recording;
    tree base;
    change *changes;
    uint64_t change_count, change_capacity;
    event *events;
    uint64_t event_count, event_capacity;
    cursor cursor;
};

static uint64_t draw(uint64_t seed, uint64_t about, uint64_t which) {
    uint64_t words[2] = {about, which};
    return kv_xxh64((const uint8_t *)words, sizeof words, seed);
}

static bool is_name(const change *c) { return c->kind == CHANGE_BIND || c->kind == CHANGE_UNBIND; }

static void apply(tree *t, const change *c) {
    switch (c->kind) {
    case CHANGE_PAGE: node_set_page(&t->nodes[c->inode], c->page_index, page_share(c->version)); break;
    case CHANGE_SIZE: node_set_size(&t->nodes[c->inode], c->size); break;
    case CHANGE_BIND:
        t->nodes[c->inode].is_directory = c->is_directory;
        tree_bind(t, c->directory, c->name, c->inode);
        break;
    case CHANGE_UNBIND: tree_unbind(t, c->directory, c->name, c->inode); break;
    }
}

/* Every change of the cached state comes through here. Takes over the reference of a page. */
static void make_change(kv_sim *sim, change *c) {
    apply(&sim->cached, c);
    if (!sim->recording) {
        page_release(c->version);
        return;
    }
    sim->changes = grown(sim->changes, sim->change_count, &sim->change_capacity, sizeof *sim->changes);
    sim->changes[sim->change_count++] = *c;
}

/* --- files: pages and live bytes --- */

/* Loads of 8 bytes, as stores from other threads arrive: none of those is ever seen torn. Not memcpy, which
 * ThreadSanitizer would follow: that these race with stores is what a disk does, not a defect. */
__attribute__((no_sanitize_thread)) static void copy_live(uint64_t *to, const uint8_t *live) {
    const uint64_t *from = (const uint64_t *)(const void *)live;
    for (size_t i = 0; i < KV_PAGE_SIZE / sizeof *to; i++) to[i] = __atomic_load_n(from + i, __ATOMIC_RELAXED);
}

/* What somebody stored behind the end of the file is in no file. */
static void see_page(kv_sim *sim, uint32_t number, uint64_t index, uint8_t *bytes) {
    const node *n = &sim->cached.nodes[number];
    uint64_t left = n->size - index * KV_PAGE_SIZE;
    if (left < KV_PAGE_SIZE) memset(bytes + left, 0, KV_PAGE_SIZE - left);
    if (memcmp(page_bytes(node_page(n, index)), bytes, KV_PAGE_SIZE) == 0) return;
    make_change(sim, &(change){.kind = CHANGE_PAGE, .inode = number, .page_index = index, .version = page_new(bytes)});
}

/* Takes in what was stored through mappings of this file. */
static void see_file(kv_sim *sim, uint32_t number) {
    const inode *file = &sim->inodes[number];
    if (file->live == NULL || !file->live_writable) return;
    uint64_t size = sim->cached.nodes[number].size;
    for (uint64_t at = 0; at < size && at < file->live_size; at += KV_PAGE_SIZE) {
        uint64_t copy[KV_PAGE_SIZE / sizeof(uint64_t)];
        copy_live(copy, file->live + at);
        see_page(sim, number, at / KV_PAGE_SIZE, (uint8_t *)copy);
    }
}

static void see_all(kv_sim *sim) {
    for (const mapping *m = sim->mappings; m != NULL; m = m->next) see_file(sim, m->inode);
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
    make_change(sim, &(change){.kind = CHANGE_SIZE, .inode = number, .size = size});
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
    make_change(sim, &c);
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

static void begin_event(kv_sim *sim, enum kv_sim_kind kind, int64_t tag, uint32_t number, const char *path) {
    if (!sim->recording) return;
    see_all(sim);
    sim->events = grown(sim->events, sim->event_count, &sim->event_capacity, sizeof *sim->events);
    sim->events[sim->event_count++] = (event){.kind = (int32_t)kind, .tag = tag, .inode = number,
        .change_first = sim->change_count, .change_end = sim->change_count, .path = need(strdup(path))};
}

static void end_event(kv_sim *sim) {
    if (sim->recording) sim->events[sim->event_count - 1].change_end = sim->change_count;
}

/* --- the table: files --- */

static kv_status create_file(kv_sim *sim, const char *path, place *at) {
    kv_status status = look_up(sim, path, at);
    if (status != KV_OK) return status;
    if (at->inode != NULL_INODE && sim->cached.nodes[at->inode].is_directory) return os_failure(EISDIR);
    begin_event(sim, KV_SIM_CREATE, 0, ROOT, path);
    if (at->inode == NULL_INODE) {
        at->inode = inode_new(sim, false);
        change_name(sim, CHANGE_BIND, at, at->inode);
    } else {
        resize_file(sim, at->inode, 0);
    }
    end_event(sim);
    return KV_OK;
}

static kv_status sim_open(kv_io *io, const char *path, enum kv_io_mode mode, kv_file **out) {
    kv_sim *sim = enter(io);
    place at;
    kv_status status = admit(sim, mode == KV_IO_CREATE ? KV_SIM_CREATE : KV_SIM_OPEN);
    if (status == KV_OK) status = mode == KV_IO_CREATE ? create_file(sim, path, &at) : look_up_file(sim, path, &at);
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

    begin_event(sim, KV_SIM_WRITE, 0, file->inode, file->path);
    kv_status written = write_file(sim, file->inode, offset, bytes, half ? size / 2 : size);
    end_event(sim);
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

    begin_event(sim, KV_SIM_ALLOCATE, 0, file->inode, file->path);
    if (size > old) resize_file(sim, file->inode, size);
    end_event(sim);
    return leave(sim, KV_OK);
}

/* A hole takes no space, so growing by truncate is never refused. */
static kv_status sim_truncate(kv_io *io, kv_file *file, uint64_t size) {
    kv_sim *sim = enter(io);
    kv_status status = admit(sim, KV_SIM_TRUNCATE);
    if (status != KV_OK) return leave(sim, status);
    if (!file->writable) return leave(sim, os_failure(EBADF));
    begin_event(sim, KV_SIM_TRUNCATE, 0, file->inode, file->path);
    resize_file(sim, file->inode, size);
    end_event(sim);
    return leave(sim, KV_OK);
}

/* A sync that fails is no event: nothing became durable by it. */
static kv_status sim_sync(kv_io *io, kv_file *file) {
    kv_sim *sim = enter(io);
    kv_status status = admit(sim, KV_SIM_SYNC);
    if (status == KV_OK) begin_event(sim, KV_SIM_SYNC, 0, file->inode, file->path);
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
    begin_event(sim, KV_SIM_RENAME, 0, ROOT, both);
    change_name(sim, CHANGE_BIND, &target, source.inode);
    if (target.inode != NULL_INODE) {
        sim->inodes[target.inode].named = false;
        drop_if_unused(sim, target.inode);
    }
    end_event(sim);
    return KV_OK;
}

static kv_status sim_rename(kv_io *io, const char *from, const char *to) {
    kv_sim *sim = enter(io);
    kv_status status = admit(sim, KV_SIM_RENAME);
    if (status == KV_OK) status = rename_name(sim, from, to);
    return leave(sim, status);
}

static kv_status sim_unlink(kv_io *io, const char *path) {
    kv_sim *sim = enter(io);
    place at;
    kv_status status = admit(sim, KV_SIM_UNLINK);
    if (status == KV_OK) status = look_up_file(sim, path, &at);
    if (status != KV_OK) return leave(sim, status);
    begin_event(sim, KV_SIM_UNLINK, 0, ROOT, path);
    change_name(sim, CHANGE_UNBIND, &at, at.inode);
    drop_if_unused(sim, at.inode);
    end_event(sim);
    return leave(sim, KV_OK);
}

static kv_status sim_mkdir(kv_io *io, const char *path) {
    kv_sim *sim = enter(io);
    place at;
    kv_status status = admit(sim, KV_SIM_MKDIR);
    if (status == KV_OK) status = look_up(sim, path, &at);
    if (status != KV_OK || at.inode != NULL_INODE) return leave(sim, status);
    begin_event(sim, KV_SIM_MKDIR, 0, ROOT, path);
    change_name(sim, CHANGE_BIND, &at, inode_new(sim, true));
    end_event(sim);
    return leave(sim, KV_OK);
}

static kv_status sim_sync_dir(kv_io *io, const char *path) {
    kv_sim *sim = enter(io);
    place at;
    kv_status status = admit(sim, KV_SIM_SYNC_DIR);
    if (status == KV_OK) status = look_up_directory(sim, path, &at);
    if (status == KV_OK) begin_event(sim, KV_SIM_SYNC_DIR, 0, at.inode, path);
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
    .unmap = sim_unmap,
    .rename = sim_rename,
    .unlink = sim_unlink,
    .mkdir = sim_mkdir,
    .sync_dir = sim_sync_dir,
    .list = sim_list,
    .lock = sim_lock,
    .maps_well = sim_maps_well,
    .now_ms = sim_now_ms,
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
static kv_sim *sim_of_tree(tree content) {
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

static void inherit(kv_sim *child, const kv_sim *parent) {
    child->limit = parent->limit;
    child->now_ms = parent->now_ms;
    child->maps_well = parent->maps_well;
    child->random_state = parent->random_state;
}

/* What can be reached from the root: entries of the directories, and, if asked for, the content of files. */
static void copy_reachable(tree *to, const tree *from, uint32_t number, bool with_content) {
    const node *source = &from->nodes[number];
    node_copy_entries(&to->nodes[number], source);
    if (with_content) node_copy_content(&to->nodes[number], source);
    for (uint64_t i = 0; i < source->entry_count; i++) copy_reachable(to, from, source->entries[i].inode, with_content);
}

static tree tree_copy(const tree *from) {
    tree copy = tree_new(from->count);
    copy_reachable(&copy, from, ROOT, true);
    return copy;
}

static void forget_journal(kv_sim *sim) {
    for (uint64_t i = 0; i < sim->change_count; i++) page_release(sim->changes[i].version);
    for (uint64_t i = 0; i < sim->event_count; i++) free(sim->events[i].path);
    free(sim->changes);
    free(sim->events);
    free(sim->cursor.open);
    tree_clear(&sim->cursor.durable);
    tree_clear(&sim->base);
    memset(&sim->cursor, 0, sizeof sim->cursor);
    sim->changes = NULL;
    sim->events = NULL;
    sim->change_count = sim->change_capacity = sim->event_count = sim->event_capacity = 0;
}

kv_sim *kv_sim_new(void) {
    kv_sim *sim = sim_of_tree(tree_new(1));
    kv_sim_set_recording(sim, true);
    return sim;
}

kv_sim *kv_sim_clone(kv_sim *sim) {
    pthread_mutex_lock(&sim->mutex);
    see_all(sim);
    kv_sim *clone = sim_of_tree(tree_copy(&sim->cached));
    inherit(clone, sim);
    pthread_mutex_unlock(&sim->mutex);
    return clone;
}

void kv_sim_free(kv_sim *sim) {
    if (sim == NULL) return;
    KV_ASSERT(sim->io_count == 0);
    forget_journal(sim);
    tree_clear(&sim->cached);
    free(sim->inodes);
    pthread_mutex_destroy(&sim->mutex);
    free(sim);
}

void kv_sim_set_recording(kv_sim *sim, int32_t recording) {
    pthread_mutex_lock(&sim->mutex);
    see_all(sim);
    if (recording != 0 && !sim->recording) {
        forget_journal(sim);
        sim->base = tree_copy(&sim->cached); /* Files without a name can never get one again: no base for them. */
    }
    sim->recording = recording != 0;
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

/* --- the journal --- */

const char *kv_sim_kind_name(int32_t kind) {
    static const char *const names[KV_SIM_KIND_COUNT] = {
        "write", "allocate", "truncate", "sync", "create", "rename", "unlink", "mkdir", "sync_dir",
        "mark", "open", "size", "read", "map", "list", "lock", "random",
    };
    return kind >= 0 && kind < KV_SIM_KIND_COUNT ? names[kind] : "unknown";
}

void kv_sim_mark(kv_sim *sim, int64_t tag) {
    pthread_mutex_lock(&sim->mutex);
    begin_event(sim, KV_SIM_MARK, tag, ROOT, "");
    pthread_mutex_unlock(&sim->mutex);
}

uint64_t kv_sim_event_count(kv_sim *sim) {
    pthread_mutex_lock(&sim->mutex);
    uint64_t count = sim->event_count;
    pthread_mutex_unlock(&sim->mutex);
    return count;
}

kv_status kv_sim_event(kv_sim *sim, uint64_t index, int32_t *kind, int64_t *tag, const char **path) {
    pthread_mutex_lock(&sim->mutex);
    kv_status status = index < sim->event_count ? KV_OK : KV_EUSAGE;
    if (status == KV_OK) {
        *kind = sim->events[index].kind;
        *tag = sim->events[index].tag;
        *path = sim->events[index].path;
    }
    pthread_mutex_unlock(&sim->mutex);
    return status;
}

static void cursor_rewind(kv_sim *sim) {
    cursor *c = &sim->cursor;
    tree_clear(&c->durable);
    c->durable = tree_copy(&sim->base);
    c->valid = true;
    c->event = 0;
    c->change_end = 0;
    c->open_count = 0;
}

static void cursor_open_until(kv_sim *sim, uint64_t change_end) {
    cursor *c = &sim->cursor;
    for (; c->change_end < change_end; c->change_end++) {
        c->open = grown(c->open, c->open_count, &c->open_capacity, sizeof *c->open);
        c->open[c->open_count++] = c->change_end;
        const change *opened = &sim->changes[c->change_end];
        tree_extend(&c->durable, (opened->inode > opened->directory ? opened->inode : opened->directory) + 1);
    }
}

static bool makes_durable(const event *e, const change *c) {
    if (e->kind == KV_SIM_SYNC) return !is_name(c) && c->inode == e->inode;
    if (e->kind == KV_SIM_SYNC_DIR) return is_name(c) && c->directory == e->inode;
    return false;
}

/* The event has returned: what it made durable is open no more. */
static void cursor_fold(kv_sim *sim, const event *e) {
    cursor *c = &sim->cursor;
    if (e->kind != KV_SIM_SYNC && e->kind != KV_SIM_SYNC_DIR) return;
    uint64_t kept = 0;
    for (uint64_t i = 0; i < c->open_count; i++) {
        const change *candidate = &sim->changes[c->open[i]];
        if (makes_durable(e, candidate)) apply(&c->durable, candidate);
        else c->open[kept++] = c->open[i];
    }
    c->open_count = kept;
}

static kv_status cursor_go(kv_sim *sim, uint64_t target) {
    if (target > sim->event_count || sim->base.nodes == NULL) return KV_EUSAGE;
    cursor *c = &sim->cursor;
    if (!c->valid || target < c->event) cursor_rewind(sim);
    /* Standing still may still mean more changes: stores since, if the event is the present moment. */
    for (; c->event < target; c->event++) {
        cursor_open_until(sim, sim->events[c->event].change_end);
        cursor_fold(sim, &sim->events[c->event]);
    }
    if (target == sim->event_count && sim->recording) see_all(sim);
    cursor_open_until(sim, target < sim->event_count ? sim->events[target].change_end : sim->change_count);
    return KV_OK;
}

kv_result kv_sim_unsynced(kv_sim *sim, uint64_t at) {
    pthread_mutex_lock(&sim->mutex);
    kv_status status = cursor_go(sim, at);
    kv_result result = status == KV_OK ? (kv_result)sim->cursor.open_count : kv_ending(status);
    pthread_mutex_unlock(&sim->mutex);
    return result;
}

static void describe_change(const kv_sim *sim, const change *c, char *text, size_t size) {
    uint32_t directory;
    uint64_t index;
    const char *name = c->name;
    if (!is_name(c)) {
        bool found = tree_find_name(&sim->cached, c->inode, &directory, &index);
        name = found ? sim->cached.nodes[directory].entries[index].name : "(unlinked)";
    }
    switch (c->kind) {
    case CHANGE_PAGE: snprintf(text, size, "%s: page %llu", name, (unsigned long long)c->page_index); break;
    case CHANGE_SIZE: snprintf(text, size, "%s: size %llu", name, (unsigned long long)c->size); break;
    case CHANGE_BIND: snprintf(text, size, "%s: name given", name); break;
    case CHANGE_UNBIND: snprintf(text, size, "%s: name removed", name); break;
    }
}

kv_status kv_sim_describe(kv_sim *sim, uint64_t at, uint64_t choice, char *text, size_t size) {
    pthread_mutex_lock(&sim->mutex);
    kv_status status = cursor_go(sim, at);
    if (status == KV_OK && choice >= sim->cursor.open_count) status = KV_EUSAGE;
    if (status == KV_OK) describe_change(sim, &sim->changes[sim->cursor.open[choice]], text, size);
    pthread_mutex_unlock(&sim->mutex);
    return status;
}

/* --- power cuts --- */

enum fate { LOST, KEPT, TORN };

/* What a policy needs to know to decide about one open change after the other. */
typedef struct cut {
    int32_t policy;
    uint64_t choice;
    uint64_t seed;
    const change *chosen;      /* ONE_*: the chosen change */
    uint64_t name_change_count; /* open ones, RANDOM */
} cut;

/* What draws are about, so that they are independent of each other. */
enum {
    ABOUT_BIAS, ABOUT_REST, ABOUT_PAGE, ABOUT_SIZE, ABOUT_VERSION, ABOUT_NAMES, ABOUT_PREFIX, ABOUT_NAME, ABOUT_SECTORS
};

/* Whether `later` would overwrite what became of `chosen`. */
static bool hides(const change *later, const change *chosen) {
    if (is_name(later) || later->kind != chosen->kind || later->inode != chosen->inode) return false;
    return later->kind == CHANGE_SIZE || later->page_index == chosen->page_index;
}

static enum fate fate_around_chosen(const cut *k, const change *c, uint64_t ordinal) {
    bool rest_kept = draw(k->seed, ABOUT_REST, 0) % 2 == 0;
    switch (k->policy) {
    case KV_CUT_ONE_KEPT: return ordinal == k->choice ? KEPT : LOST;
    case KV_CUT_ONE_LOST: return ordinal == k->choice || (ordinal > k->choice && hides(c, k->chosen)) ? LOST : KEPT;
    default: /* KV_CUT_ONE_TORN */
        if (ordinal == k->choice) return c->kind == CHANGE_PAGE ? TORN : rest_kept ? LOST : KEPT;
        if (ordinal > k->choice && hides(c, k->chosen)) return LOST;
        return rest_kept ? KEPT : LOST;
    }
}

/* All versions of a page share its lot: the newest, none, any mixture of older ones, or sectors of them. A third of
 * the seeds keeps nearly everything and a third nearly nothing: single holes are what independent coins would miss. */
static enum fate random_content_fate(const cut *k, const change *c, uint64_t ordinal) {
    static const uint8_t shares[3][3] = {{4, 8, 12}, {11, 12, 14}, {1, 12, 14}}; /* of 16: kept, lost, mixed, torn */
    const uint8_t *share = shares[draw(k->seed, ABOUT_BIAS, 0) % 3];
    uint64_t subject = (uint64_t)c->inode << 32 | c->page_index;
    uint64_t lot = draw(k->seed, c->kind == CHANGE_PAGE ? ABOUT_PAGE : ABOUT_SIZE, subject) % 16;
    bool coin = draw(k->seed, ABOUT_VERSION, ordinal) % 2 == 0;
    if (lot < share[0]) return KEPT;
    if (lot < share[1]) return LOST;
    if (lot < share[2] || c->kind == CHANGE_SIZE) return coin ? KEPT : LOST;
    return coin ? TORN : KEPT;
}

static enum fate random_name_fate(const cut *k, const change *c, uint64_t name_ordinal) {
    if (draw(k->seed, ABOUT_NAMES, 0) % 4 == 0) return draw(k->seed, ABOUT_NAME, name_ordinal) % 2 == 0 ? KEPT : LOST;
    uint64_t prefix = draw(k->seed, ABOUT_PREFIX, c->directory) % (k->name_change_count + 1);
    return name_ordinal < prefix ? KEPT : LOST;
}

static enum fate fate_of(const cut *k, const change *c, uint64_t ordinal, uint64_t name_ordinal) {
    switch (k->policy) {
    case KV_CUT_ALL_KEPT: return KEPT;
    case KV_CUT_ALL_LOST: return LOST;
    case KV_CUT_RANDOM: return is_name(c) ? random_name_fate(k, c, name_ordinal) : random_content_fate(k, c, ordinal);
    default: return fate_around_chosen(k, c, ordinal);
    }
}

static void apply_torn(tree *t, const change *c, uint64_t seed, uint64_t ordinal) {
    node *n = &t->nodes[c->inode];
    unsigned all = (1u << SECTOR_COUNT) - 1;
    unsigned sectors = 1 + (unsigned)(draw(seed, ABOUT_SECTORS, ordinal) % (all - 1)); /* neither none nor all */
    uint8_t bytes[KV_PAGE_SIZE];
    memcpy(bytes, page_bytes(node_page(n, c->page_index)), KV_PAGE_SIZE);
    for (unsigned i = 0; i < SECTOR_COUNT; i++) {
        size_t at = (size_t)i * KV_SIM_SECTOR_SIZE;
        if ((sectors >> i & 1) != 0) memcpy(bytes + at, page_bytes(c->version) + at, KV_SIM_SECTOR_SIZE);
    }
    node_set_page(n, c->page_index, page_new(bytes));
}

/* Names first, so that content is only copied for files that are still there. */
static void apply_names(tree *t, const kv_sim *sim, const cut *k) {
    uint64_t name_ordinal = 0;
    for (uint64_t i = 0; i < sim->cursor.open_count; i++) {
        const change *c = &sim->changes[sim->cursor.open[i]];
        if (!is_name(c)) continue;
        if (fate_of(k, c, i, name_ordinal++) == KEPT) apply(t, c);
    }
}

static void copy_named_content(tree *t, const tree *durable, uint32_t number, bool *named) {
    named[number] = true;
    node *n = &t->nodes[number];
    if (!n->is_directory) node_copy_content(n, &durable->nodes[number]);
    for (uint64_t i = 0; i < n->entry_count; i++) copy_named_content(t, durable, n->entries[i].inode, named);
}

static void apply_content(tree *t, const kv_sim *sim, const cut *k, const bool *named) {
    for (uint64_t i = 0; i < sim->cursor.open_count; i++) {
        const change *c = &sim->changes[sim->cursor.open[i]];
        if (is_name(c) || !named[c->inode]) continue;
        enum fate fate = fate_of(k, c, i, 0);
        if (fate == KEPT) apply(t, c);
        if (fate == TORN) apply_torn(t, c, k->seed, i);
    }
}

static void finish_tree(tree *t, const bool *named) {
    for (uint32_t i = 0; i < t->count; i++) {
        if (!named[i]) node_clear(&t->nodes[i]);
        else if (!t->nodes[i].is_directory) node_set_size(&t->nodes[i], t->nodes[i].size); /* cuts pages behind it */
    }
}

static kv_sim *make_image(const kv_sim *sim, const cut *k) {
    const tree *durable = &sim->cursor.durable;
    tree t = tree_new(durable->count);
    bool *named = need(calloc(durable->count, sizeof *named));
    for (uint32_t i = 0; i < durable->count; i++) node_copy_entries(&t.nodes[i], &durable->nodes[i]);
    apply_names(&t, sim, k);
    copy_named_content(&t, durable, ROOT, named);
    apply_content(&t, sim, k, named);
    finish_tree(&t, named);
    free(named);
    kv_sim *image = sim_of_tree(t);
    inherit(image, sim);
    return image;
}

static kv_status prepare_cut(kv_sim *sim, uint64_t at, cut *k) {
    if (k->policy < KV_CUT_ALL_KEPT || k->policy > KV_CUT_RANDOM) return KV_EUSAGE;
    kv_status status = cursor_go(sim, at);
    if (status != KV_OK) return status;
    const cursor *c = &sim->cursor;
    if (k->policy >= KV_CUT_ONE_KEPT && k->policy <= KV_CUT_ONE_TORN) {
        if (k->choice >= c->open_count) return KV_EUSAGE;
        k->chosen = &sim->changes[c->open[k->choice]];
    }
    for (uint64_t i = 0; i < c->open_count; i++) k->name_change_count += is_name(&sim->changes[c->open[i]]);
    return KV_OK;
}

kv_status kv_sim_image(kv_sim *sim, uint64_t at, int32_t policy, uint64_t choice, uint64_t seed, kv_sim **out) {
    cut k = {.policy = policy, .choice = choice, .seed = seed};
    pthread_mutex_lock(&sim->mutex);
    kv_status status = prepare_cut(sim, at, &k);
    if (status == KV_OK) *out = make_image(sim, &k);
    pthread_mutex_unlock(&sim->mutex);
    return status;
}

/* Inode numbers do not enter: the same disk reached on two ways has one digest. */
static uint64_t digest_node(const tree *t, uint32_t number, uint64_t seed) {
    const node *n = &t->nodes[number];
    uint64_t digest = draw(seed, n->is_directory, n->size);
    for (uint64_t i = 0; i < n->page_count; i++) {
        if (n->pages[i] != NULL) digest = draw(digest, i, page_digest(n->pages[i]));
    }
    for (uint64_t i = 0; i < n->entry_count; i++) {
        const entry *e = &n->entries[i];
        digest = digest_node(t, e->inode, kv_xxh64((const uint8_t *)e->name, strlen(e->name), digest));
    }
    return draw(digest, n->entry_count, 0);
}

uint64_t kv_sim_hash(kv_sim *sim) {
    pthread_mutex_lock(&sim->mutex);
    see_all(sim);
    if (sim->recording) {
        kv_status status = cursor_go(sim, sim->event_count);
        KV_ASSERT(status == KV_OK);
    }
    uint64_t digest = digest_node(sim->recording ? &sim->cursor.durable : &sim->cached, ROOT, 0);
    pthread_mutex_unlock(&sim->mutex);
    return digest;
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
