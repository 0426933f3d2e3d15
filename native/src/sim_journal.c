/* sim_journal.c -- what happened to the simulated disk, and what a power cut could leave of it. io_sim.h has the model,
 * sim_internal.h the words.
 *
 * An image is the cursor's durable nodes (pages shared), to which the open changes that the policy keeps are applied
 * in the order in which they were made.
 *
 * Threads: the mutex of the disk guards everything. An image is a disk of its own, and shares only pages. */
#include "sim_internal.h"

#include <stdio.h>

enum { SECTOR_COUNT = KV_PAGE_SIZE / KV_SIM_SECTOR_SIZE };

/* --- changes --- */

static bool is_name(const change *c) { return c->kind == CHANGE_BIND || c->kind == CHANGE_UNBIND; }

static void change_apply(tree *t, const change *c) {
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
void change_make(kv_sim *sim, change *c) {
    change_apply(&sim->cached, c);
    if (!sim->recording) {
        page_release(c->version);
        return;
    }
    sim->changes = grown(sim->changes, sim->change_count, &sim->change_capacity, sizeof *sim->changes);
    sim->changes[sim->change_count++] = *c;
}

/* --- events --- */

void event_begin(kv_sim *sim, enum kv_sim_kind kind, int64_t tag, uint32_t number, const char *path) {
    if (!sim->recording) return;
    sim_see_all(sim);
    sim->events = grown(sim->events, sim->event_count, &sim->event_capacity, sizeof *sim->events);
    sim->events[sim->event_count++] = (event){.kind = (int32_t)kind, .tag = tag, .inode = number,
        .change_first = sim->change_count, .change_end = sim->change_count, .path = need(strdup(path))};
}

void event_end(kv_sim *sim) {
    if (sim->recording) sim->events[sim->event_count - 1].change_end = sim->change_count;
}

void journal_forget(kv_sim *sim) {
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

void kv_sim_set_recording(kv_sim *sim, int32_t recording) {
    pthread_mutex_lock(&sim->mutex);
    sim_see_all(sim);
    if (recording != 0 && !sim->recording) {
        journal_forget(sim);
        sim->base = tree_copy(&sim->cached); /* Files without a name can never get one again: no base for them. */
    }
    sim->recording = recording != 0;
    pthread_mutex_unlock(&sim->mutex);
}

const char *kv_sim_kind_name(int32_t kind) {
    static const char *const names[KV_SIM_KIND_COUNT] = {
        "write", "allocate", "truncate", "sync", "create", "rename", "unlink", "mkdir", "sync_dir",
        "mark", "open", "size", "read", "map", "list", "lock", "random",
    };
    return kind >= 0 && kind < KV_SIM_KIND_COUNT ? names[kind] : "unknown";
}

void kv_sim_mark(kv_sim *sim, int64_t tag) {
    pthread_mutex_lock(&sim->mutex);
    event_begin(sim, KV_SIM_MARK, tag, ROOT, "");
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

/* --- the cursor --- */

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
        if (makes_durable(e, candidate)) change_apply(&c->durable, candidate);
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
    if (target == sim->event_count && sim->recording) sim_see_all(sim);
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
        if (fate_of(k, c, i, name_ordinal++) == KEPT) change_apply(t, c);
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
        if (fate == KEPT) change_apply(t, c);
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
    sim_inherit(image, sim);
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
    sim_see_all(sim);
    if (sim->recording) {
        kv_status status = cursor_go(sim, sim->event_count);
        KV_ASSERT(status == KV_OK);
    }
    uint64_t digest = digest_node(sim->recording ? &sim->cursor.durable : &sim->cached, ROOT, 0);
    pthread_mutex_unlock(&sim->mutex);
    return digest;
}
