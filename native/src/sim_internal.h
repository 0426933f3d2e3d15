/* sim_internal.h -- what the parts of the simulated disk share, and nobody else sees.
 *
 *   sim_tree.c     pages, nodes and trees: content at one moment, as values
 *   io_sim.c       the disk: the kv_io table over the cached tree, mappings, failing calls, damage
 *   sim_journal.c  what happened to it: changes, events, power cuts and the images they leave, the digest
 *
 *   page     4 KiB that never change, counted by reference, shared by files, journals and images; NULL: all zeros
 *   node     what a file or directory is at one moment: pages and size, or sorted names. There is one for the
 *            cached state, one in the base (where recording began), one in the cursor (below), one in each image.
 *   tree     an array of nodes by inode number; ROOT is its root, some may be in no directory
 *   change   one step from node to node; the log of them and the base give every state in between
 *   cursor   the durable nodes of one event and the open changes there. Going to a later event folds what was
 *            synced in between into the nodes; tests ask event by event, so this is short. Going back starts again.
 *
 * Threads: the mutex of a disk guards all of it but the count and the digest of a page, which disks share and which are
 * atomic. The functions here are called with it held. */
#ifndef KV_SIM_INTERNAL_H
#define KV_SIM_INTERNAL_H

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "kv/io_sim.h"
#include "kv/xxh64.h"

enum { ROOT = 0 };

/* This is a test's tool: no memory is a broken invariant. */
static inline void *need(void *memory) {
    KV_ASSERT(memory != NULL);
    return memory;
}

/* Room for one more, doubling. */
static inline void *grown(void *items, uint64_t count, uint64_t *capacity, size_t item_size) {
    if (count < *capacity) return items;
    *capacity = *capacity == 0 ? 16 : 2 * *capacity;
    return need(realloc(items, *capacity * item_size));
}

static inline uint64_t draw(uint64_t seed, uint64_t about, uint64_t which) {
    uint64_t words[2] = {about, which};
    return kv_xxh64((const uint8_t *)words, sizeof words, seed);
}

/* --- sim_tree.c --- */

typedef struct page page;

page *page_new(const uint8_t *bytes);
page *page_share(page *shared);
void page_release(page *released);
const uint8_t *page_bytes(const page *read); /* of zeros for NULL */
uint64_t page_digest(page *digested);

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

void node_set_page(node *n, uint64_t index, page *owned);
page *node_page(const node *n, uint64_t index);
void node_set_size(node *n, uint64_t size);
bool node_find(const node *n, const char *name, uint64_t *index);
void node_copy_entries(node *to, const node *from);
void node_copy_content(node *to, const node *from);
void node_clear(node *n);

typedef struct tree {
    node *nodes;
    uint32_t count;
} tree;

tree tree_new(uint32_t count);
tree tree_copy(const tree *from); /* what can be reached from the root */
void tree_clear(tree *t);
void tree_extend(tree *t, uint32_t count);
bool tree_find_name(const tree *t, uint32_t inode, uint32_t *directory, uint64_t *index);
void tree_bind(tree *t, uint32_t directory, const char *name, uint32_t inode);
void tree_unbind(tree *t, uint32_t directory, const char *name, uint32_t inode);

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

typedef struct failing {
    uint64_t countdown; /* 0: not armed */
    int errno_value;
    int32_t flags;
} failing;

struct kv_sim {
    pthread_mutex_t mutex;
    tree cached;
    struct inode *inodes; /* beside cached.nodes */
    uint64_t inode_capacity;
    struct mapping *mappings;
    uint32_t io_count;
    const struct sim_io *locked_by;
    uint64_t used;
    uint64_t limit;
    int64_t now_ms;
    bool maps_well;
    uint64_t random_state;
    failing failing[KV_SIM_KIND_COUNT];
    uint64_t call_counts[KV_SIM_KIND_COUNT];

    /* The journal. */
    bool recording;
    tree base;
    change *changes;
    uint64_t change_count, change_capacity;
    event *events;
    uint64_t event_count, event_capacity;
    cursor cursor;
};

/* io_sim.c */
kv_sim *sim_of_tree(tree content); /* takes the tree over */
void sim_inherit(kv_sim *child, const kv_sim *parent);
void sim_see_all(kv_sim *sim);     /* takes in what was stored through mappings */

/* sim_journal.c */
void change_make(kv_sim *sim, change *c); /* takes over the reference of a page */
void event_begin(kv_sim *sim, enum kv_sim_kind kind, int64_t tag, uint32_t number, const char *path);
void event_end(kv_sim *sim);
void journal_forget(kv_sim *sim);

#endif
