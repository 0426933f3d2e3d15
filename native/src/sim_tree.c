/* sim_tree.c -- what the simulated disk is made of: pages, nodes, trees. See sim_internal.h for what each is.
 *
 * Invariants: a page never changes, and one of zeros only is NULL, so that equal content may be shared and compared
 * cheaply; the entries of a node are sorted by name; a file has one name in a tree.
 *
 * Threads: the mutex of a disk guards its trees; the count and the digest of a page, which disks share, are atomic. */
#include "sim_internal.h"

#include <stdatomic.h>

_Alignas(uint64_t) static const uint8_t ZEROS[KV_PAGE_SIZE];

/* --- pages --- */

struct page {
    _Atomic uint32_t reference_count;
    _Atomic uint64_t digest; /* 0: not computed yet */
    uint8_t bytes[KV_PAGE_SIZE];
};

static bool is_zero(const uint8_t *bytes) { return memcmp(bytes, ZEROS, KV_PAGE_SIZE) == 0; }

page *page_new(const uint8_t *bytes) {
    if (is_zero(bytes)) return NULL;
    page *made = need(malloc(sizeof *made));
    atomic_init(&made->reference_count, 1);
    atomic_init(&made->digest, 0);
    memcpy(made->bytes, bytes, KV_PAGE_SIZE);
    return made;
}

page *page_share(page *shared) {
    if (shared != NULL) atomic_fetch_add_explicit(&shared->reference_count, 1, memory_order_relaxed);
    return shared;
}

void page_release(page *released) {
    if (released == NULL) return;
    if (atomic_fetch_sub_explicit(&released->reference_count, 1, memory_order_acq_rel) == 1) free(released);
}

const uint8_t *page_bytes(const page *read) { return read == NULL ? ZEROS : read->bytes; }

uint64_t page_digest(page *digested) {
    uint64_t digest = atomic_load_explicit(&digested->digest, memory_order_relaxed);
    if (digest != 0) return digest;
    digest = kv_xxh64(digested->bytes, KV_PAGE_SIZE, 0) | 1;
    atomic_store_explicit(&digested->digest, digest, memory_order_relaxed);
    return digest;
}

/* --- nodes --- */

void node_set_page(node *n, uint64_t index, page *owned) {
    if (index >= n->page_count) {
        if (owned == NULL) return;
        n->pages = need(realloc(n->pages, (index + 1) * sizeof *n->pages));
        memset(n->pages + n->page_count, 0, (index + 1 - n->page_count) * sizeof *n->pages);
        n->page_count = index + 1;
    }
    page_release(n->pages[index]);
    n->pages[index] = owned;
}

page *node_page(const node *n, uint64_t index) { return index < n->page_count ? n->pages[index] : NULL; }

/* What lies behind the new size is gone for good: growing again shows zeros. */
void node_set_size(node *n, uint64_t size) {
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
bool node_find(const node *n, const char *name, uint64_t *index) {
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

void node_copy_entries(node *to, const node *from) {
    to->is_directory = from->is_directory;
    if (from->entry_count == 0) return;
    to->entries = need(malloc(from->entry_count * sizeof *to->entries));
    memcpy(to->entries, from->entries, from->entry_count * sizeof *to->entries);
    to->entry_count = to->entry_capacity = from->entry_count;
}

void node_copy_content(node *to, const node *from) {
    to->size = from->size;
    if (from->page_count == 0) return;
    to->pages = need(malloc(from->page_count * sizeof *to->pages));
    to->page_count = from->page_count;
    for (uint64_t i = 0; i < from->page_count; i++) to->pages[i] = page_share(from->pages[i]);
}

void node_clear(node *n) {
    for (uint64_t i = 0; i < n->page_count; i++) page_release(n->pages[i]);
    free(n->pages);
    free(n->entries);
    memset(n, 0, sizeof *n);
}

/* --- trees --- */

tree tree_new(uint32_t count) {
    tree made = {need(calloc(count, sizeof(node))), count};
    made.nodes[ROOT].is_directory = true;
    return made;
}

void tree_clear(tree *t) {
    for (uint32_t i = 0; i < t->count; i++) node_clear(&t->nodes[i]);
    free(t->nodes);
    memset(t, 0, sizeof *t);
}

void tree_extend(tree *t, uint32_t count) {
    if (count <= t->count) return;
    t->nodes = need(realloc(t->nodes, count * sizeof *t->nodes));
    memset(t->nodes + t->count, 0, (count - t->count) * sizeof *t->nodes);
    t->count = count;
}

bool tree_find_name(const tree *t, uint32_t inode, uint32_t *directory, uint64_t *index) {
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
void tree_bind(tree *t, uint32_t directory, const char *name, uint32_t inode) {
    uint32_t old_directory;
    uint64_t index;
    if (tree_find_name(t, inode, &old_directory, &index)) node_remove_entry(&t->nodes[old_directory], index);
    t->nodes[directory].is_directory = true;
    node_bind(&t->nodes[directory], name, inode);
}

void tree_unbind(tree *t, uint32_t directory, const char *name, uint32_t inode) {
    uint64_t index;
    node *n = &t->nodes[directory];
    if (node_find(n, name, &index) && n->entries[index].inode == inode) node_remove_entry(n, index);
}

static void copy_reachable(tree *to, const tree *from, uint32_t number) {
    const node *source = &from->nodes[number];
    node_copy_entries(&to->nodes[number], source);
    node_copy_content(&to->nodes[number], source);
    for (uint64_t i = 0; i < source->entry_count; i++) copy_reachable(to, from, source->entries[i].inode);
}

tree tree_copy(const tree *from) {
    tree copy = tree_new(from->count);
    copy_reachable(&copy, from, ROOT);
    return copy;
}
