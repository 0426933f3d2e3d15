/* order.c -- created names, sorted when somebody wants order, over sorted runs. What it promises: kv/order.h.
 *
 *   blocks of locations      written by the holder of the writer lock, read and freed by the holder of the sort lock;
 *                            created_count, stored last, says how many are there
 *   view                     chunks, oldest first, and runs, oldest first; one pointer, replaced as a whole
 *
 * Invariants:
 *   - Chunks hold creations [from, to) without a gap; the last one ends at sorted_count. None holds creations on both
 *     sides of the cut of a build under way.
 *   - No name is twice in a chunk. It may be in several chunks and runs: a key that was deleted and came again.
 *   - A view, a chunk and a run never change once they can be seen, until the epoch gives them back.
 *
 * Sorting reads every record once, and that once it verifies its checksum: a name that is sorted is the name that was
 * written. Whoever is handed a name gets it from a record verified again.
 *
 * Names often begin alike, so comparing prefixes would end in the flow each time. Sorting therefore goes eight bytes at
 * a time: load the bytes of all names, sort by them, go on with each group that is still equal (multikey sorting as in
 * Bentley and Sedgewick, "Fast algorithms for sorting and searching strings", 1997). Each name is fetched once for
 * every eight bytes it has in common with another, not once for every comparison.
 *
 * The first word of a name is what nearly all comparisons end with, so it has to tell names apart. The first eight bytes
 * of a row's name are the same in the whole table, and mostly zeros. Therefore a word holds no bytes but digits, which
 * leave leading zeros out (first_word). All it promises is that a lower name never has a higher word.
 *
 * A scan behind every write is a usual thing. So what was created since the last one is merged, before anybody sees it, with
 * all small chunks and with those that are not far larger. */
#include "kv/order.h"

#include <stdatomic.h>
#include <stdlib.h>

#include "kv/guard.h"
#include "kv/index.h"
#include "kv/large.h"
#include "kv/record.h"

enum {
    BLOCK_COUNT = 8192,     /* locations in a block */
    PIECE_COUNT = 1 << 18,  /* sorted at a time */
    RADIX_COUNT_MIN = 512,  /* fewer items are sorted by comparing */
    DIGIT_BITS = 11,
    SMALL_COUNT = 512,      /* chunks that together have no more are one */
    MERGE_RATIO = 8,        /* a chunk has more than so many times the items of the one behind it */
    WORD_SIZE = 8,
    AHEAD = 24,             /* records prefetched before they are read */
    AHEAD_SEEK = 8,         /* of those, at a seek */
    AHEAD_STEP = 2,         /* and at a step */
    RECORD_LINES = 3,       /* of each: what a record of some 100 bytes lies in */
    LINE_SIZE = 64,
    DEAD_SLACK = 1 << 14,   /* so many dead names in runs are not worth the work */
};
static const uint64_t NO_CUT = UINT64_MAX;
static const uint64_t LOCATION_MASK = ((uint64_t)1 << 56) - 1; /* without the flags of the index */
static const uint64_t CHANGE = (uint64_t)1 << 63; /* beside a location: the change is meant, not the row */

/* What goes through the epoch, or, where that has no memory to note it, is kept until the end. */
typedef struct passing {
    struct passing *kept_next;
    void (*free_it)(struct passing *self);
} passing;

typedef struct order_item {
    uint64_t word;     /* the name's first_word(); while sorting, any eight bytes of it, the first the highest */
    uint64_t location; /* with CHANGE or without; while sorting, bits 56 to 59: how much of the name the word holds */
} order_item;

typedef struct order_chunk {
    passing passing;
    uint64_t from, to; /* creations, counted since the store was opened */
    size_t count;
    order_item items[];
} order_chunk;

typedef struct order_run {
    passing passing;
    kv_run run;
    kv_io *io;
    uint8_t *mapping;
} order_run;

typedef struct order_view {
    passing passing;
    size_t chunk_count, run_count;
    order_chunk **chunks;
    order_run **runs;
} order_view;

typedef struct created_block {
    _Atomic(struct created_block *) next;
    uint64_t locations[BLOCK_COUNT]; /* with CHANGE or without */
} created_block;

struct kv_order {
    kv_epoch *epoch;
    pthread_mutex_t *writer_lock;
    pthread_mutex_t sort_lock;
    _Atomic(order_view *) view;
    _Atomic uint64_t created_count;
    _Atomic uint64_t sorted_count; /* those before are in chunks */
    _Atomic uint64_t cut;
    /* Writer lock. */
    created_block *tail;
    size_t tail_used;
    uint64_t in_runs_count; /* creations before it are in runs */
    passing *kept;
    /* Sort lock. */
    created_block *head;
    size_t head_used;
};

/* --- names in the flow --- */

typedef struct flow_name {
    uint8_t head[KV_NAME_HEAD_MAX];
    uint32_t head_size;
    const uint8_t *key;
    uint32_t key_size;
} flow_name;

static void prefetch(const kv_flow *flow, uint64_t location) {
    uint64_t size;
    const uint8_t *bytes = kv_flow_at(flow, kv_loc_segment(location), kv_loc_offset(location), &size);
    for (size_t i = 0; bytes != NULL && i < RECORD_LINES; i++) __builtin_prefetch(bytes + i * LINE_SIZE);
}

/* What stands before the key in the name of a record; false: a record without such a name. */
static bool name_head(const kv_record *record, bool change, flow_name *out) {
    bool row = record->kind == KV_KIND_ROW_PUT || record->kind == KV_KIND_ROW_DELETE;
    out->head_size = 1;
    out->head[0] = change ? KV_SPACE_CHANGES : row ? KV_SPACE_ROWS : KV_SPACE_KEYS;
    if (!row) return !change;
    kv_store64(out->head + 1, __builtin_bswap64(record->table_id));
    if (change) kv_store64(out->head + KV_NAME_ROW_HEAD_SIZE, __builtin_bswap64(record->version));
    out->head_size = change ? KV_NAME_HEAD_MAX : KV_NAME_ROW_HEAD_SIZE;
    return true;
}

/* The name that the record at a location brought into being. `verify`: its checksum as well. */
static kv_status name_at(const kv_flow *flow, uint64_t location, bool verify, flow_name *out) {
    uint32_t segment = kv_loc_segment(location), offset = kv_loc_offset(location), used;
    uint64_t size;
    kv_record record;
    const uint8_t *bytes = kv_flow_at(flow, segment, offset, &size);
    if (bytes == NULL) return KV_ECORRUPT;
    uint64_t place = kv_place(kv_flow_salt(flow), segment, offset);
    if (kv_record_peek(bytes, size, place, &record, &used) != KV_OK) return KV_ECORRUPT;
    if (verify && !kv_record_intact(bytes, place, &record)) return KV_ECORRUPT;
    if (!name_head(&record, (location & CHANGE) != 0, out)) return KV_ECORRUPT;
    out->key = record.key;
    out->key_size = record.key_size;
    return KV_OK;
}

/* Eight bytes of a name, the first the highest, zeros behind its end. *held: how many there are; 9: and more. */
static uint64_t name_word(const flow_name *name, uint64_t from, unsigned *held) {
    uint64_t size = (uint64_t)name->head_size + name->key_size, word = 0;
    uint64_t left = size > from ? size - from : 0;
    if (from >= name->head_size && left >= WORD_SIZE) {
        word = __builtin_bswap64(kv_load64(name->key + (from - name->head_size)));
    } else if (from == 0 && name->head_size == 1 && left > WORD_SIZE) {
        word = (uint64_t)name->head[0] << 56 | __builtin_bswap64(kv_load64(name->key)) >> 8; /* Every key begins so. */
    } else {
        for (uint64_t i = from; i < from + WORD_SIZE; i++) {
            uint8_t byte = i >= size ? 0 : i < name->head_size ? name->head[i] : name->key[i - name->head_size];
            word = word << 8 | byte;
        }
    }
    *held = left > WORD_SIZE ? WORD_SIZE + 1 : (unsigned)left;
    return word;
}

/* Up to 8 bytes as a number, the first the highest, zeros behind their end. */
static uint64_t bytes_word(const uint8_t *bytes, size_t size) {
    uint64_t word = 0;
    if (size >= WORD_SIZE) return __builtin_bswap64(kv_load64(bytes));
    for (size_t i = 0; i < WORD_SIZE; i++) word = word << 8 | (i < size ? bytes[i] : 0);
    return word;
}

/* A word that is being put together, the highest bits first; what no longer fits is left out. */
typedef struct word_bits {
    uint64_t word;
    unsigned left;
} word_bits;

static void add_bits(word_bits *to, uint64_t bits, unsigned count) {
    if (to->left == 0) return;
    if (count > to->left) {
        bits >>= count - to->left;
        count = to->left;
    }
    to->left -= count;
    to->word |= bits << to->left;
}

/* A number of 8 bytes: how many of them it needs, then those. */
static void add_number(word_bits *to, uint64_t number) {
    unsigned size = number == 0 ? 0 : WORD_SIZE - (unsigned)__builtin_clzll(number) / 8;
    add_bits(to, size, 4);
    add_bits(to, number, 8 * size);
}

/* A row: its first 8 bytes as a number, and what is behind them. Zeros alone, however many, come before whatever they
 * begin, and so does the word they give. */
static void add_row(word_bits *to, const uint8_t *row, size_t size) {
    add_number(to, bytes_word(row, size));
    if (size > WORD_SIZE) add_bits(to, bytes_word(row + WORD_SIZE, size - WORD_SIZE), 64);
}

/* Of a name, or of a bound that need not be one: its missing bytes count as zeros. A lower string never has a higher word.
 * `head` holds what comes before `key`. Of a key it is the first 8 bytes of the name. */
static uint64_t first_word(const uint8_t *head, size_t head_size, const uint8_t *key, size_t key_size) {
    unsigned space = head_size == 0 ? 0 : head[0];
    if (space == KV_SPACE_KEYS) return bytes_word(key, key_size) >> 8;
    if (space > KV_SPACE_CHANGES) return UINT64_MAX;
    word_bits to = {.word = (uint64_t)space << 56, .left = 56};
    add_number(&to, bytes_word(head + 1, head_size - 1));
    if (space == KV_SPACE_CHANGES)
        add_number(&to, head_size > KV_NAME_ROW_HEAD_SIZE
                            ? bytes_word(head + KV_NAME_ROW_HEAD_SIZE, head_size - KV_NAME_ROW_HEAD_SIZE) : 0);
    add_row(&to, key, key_size);
    return to.word;
}

static uint64_t bound_word(const uint8_t *name, size_t size) {
    size_t head = size == 0 || name[0] == KV_SPACE_KEYS ? 1 : name[0] == KV_SPACE_ROWS ? KV_NAME_ROW_HEAD_SIZE : KV_NAME_HEAD_MAX;
    if (head > size) head = size;
    return first_word(name, head, name + head, size - head);
}

/* --- sorting --- */

static unsigned item_held(const order_item *item) { return (unsigned)(item->location >> 56) & 15; }
static uint64_t item_location(const order_item *item) { return item->location & (LOCATION_MASK | CHANGE); }

static int by_word(const void *left, const void *right) {
    const order_item *a = left, *b = right;
    if (a->word != b->word) return a->word < b->word ? -1 : 1;
    return (int)item_held(a) - (int)item_held(b);
}

enum { FROM_START = -1 }; /* the first_word(), not the bytes from some place on */

static kv_status load_words(const kv_flow *flow, order_item *items, size_t count, int64_t from, uint64_t *damaged) {
    for (size_t i = 0; i < count; i++) {
        flow_name name;
        unsigned held = WORD_SIZE + 1; /* What a row's first word holds is no part of its name. */
        uint64_t location = item_location(&items[i]);
        if (i + AHEAD < count) prefetch(flow, items[i + AHEAD].location);
        if (name_at(flow, location, from == FROM_START, &name) != KV_OK) {
            *damaged = location;
            return KV_ECORRUPT;
        }
        bool row = from == FROM_START && name.head[0] != KV_SPACE_KEYS;
        items[i].word = row ? first_word(name.head, name.head_size, name.key, name.key_size)
                            : name_word(&name, from == FROM_START ? 0 : (uint64_t)from, &held);
        items[i].location = (uint64_t)held << 56 | location;
    }
    return KV_OK;
}

/* One name, so one space, brought into being several times: the newest stays, the others get location 0. */
static void keep_newest(order_item *items, size_t count) {
    size_t newest = 0;
    for (size_t i = 1; i < count; i++)
        if (item_location(&items[i]) > item_location(&items[newest])) newest = i;
    for (size_t i = 0; i < count; i++)
        if (i != newest) items[i].location = 0;
}

/* By one digit of the word, into `to`. false: all have the same one, and nothing was done. */
static bool radix_pass(const order_item *items, order_item *to, size_t count, unsigned shift) {
    size_t starts[1 << DIGIT_BITS] = {0};
    const size_t digit_mask = ((size_t)1 << DIGIT_BITS) - 1;
    for (size_t i = 0; i < count; i++) starts[items[i].word >> shift & digit_mask]++;
    if (starts[items[0].word >> shift & digit_mask] == count) return false;
    for (size_t i = 0, sum = 0; i <= digit_mask; i++) {
        size_t here = starts[i];
        starts[i] = sum;
        sum += here;
    }
    for (size_t i = 0; i < count; i++) to[starts[items[i].word >> shift & digit_mask]++] = items[i];
    return true;
}

/* Digit by digit, the lowest first. Many items are too many for comparing; where there is no memory for a second place to
 * put them, that will do. */
static void sort_by_word(order_item *items, size_t count) {
    order_item *other = count < RADIX_COUNT_MIN ? NULL : kv_large_new(count * sizeof *other), *from = items, *to = other;
    if (other == NULL) {
        qsort(items, count, sizeof *items, by_word);
        return;
    }
    for (unsigned shift = 0; shift < 64; shift += DIGIT_BITS) {
        if (!radix_pass(from, to, count, shift)) continue;
        order_item *sorted = to;
        to = from;
        from = sorted;
    }
    if (from != items) memcpy(items, from, count * sizeof *items);
    kv_large_free(other);
}

static kv_status sort_items(const kv_flow *flow, order_item *items, size_t count, int64_t from, uint64_t *damaged);

/* Items with the same word: by how much of it their names hold, then each such group by what is behind it. */
static kv_status sort_equal(const kv_flow *flow, order_item *items, size_t count, int64_t from, uint64_t *damaged) {
    uint64_t word = items[0].word;
    if (from == FROM_START && word >> 56 == KV_SPACE_KEYS) from = 0; /* A key's first word is its first 8 bytes. */
    int64_t behind = from == FROM_START ? 0 : from + WORD_SIZE;
    qsort(items, count, sizeof *items, by_word);
    for (size_t at = 0, end; at < count; at = end) {
        unsigned held = item_held(&items[at]);
        for (end = at + 1; end < count && item_held(&items[end]) == held;) end++;
        if (end - at == 1) continue;
        if (held <= WORD_SIZE) {
            keep_newest(items + at, end - at);
            continue;
        }
        kv_status status = sort_items(flow, items + at, end - at, behind, damaged);
        if (status != KV_OK) return status;
        for (size_t i = at; i < end; i++) items[i].word = word;
    }
    return KV_OK;
}

/* Sorts items whose names agree in the first `from` bytes. Afterwards all have the word that begins there. As deep as
 * names are long, eight bytes a level, in the worst of cases. */
static kv_status sort_items(const kv_flow *flow, order_item *items, size_t count, int64_t from, uint64_t *damaged) {
    kv_status status = load_words(flow, items, count, from, damaged);
    if (status != KV_OK) return status;
    sort_by_word(items, count);
    for (size_t at = 0, end; at < count && status == KV_OK; at = end) {
        for (end = at + 1; end < count && items[end].word == items[at].word;) end++;
        if (end - at > 1) status = sort_equal(flow, items + at, end - at, from, damaged);
    }
    return status;
}

static void chunk_free(passing *self) { kv_large_free(self); }

static order_chunk *chunk_new(uint64_t from, uint64_t to, size_t count) {
    order_chunk *chunk = kv_large_new(sizeof *chunk + count * sizeof chunk->items[0]);
    if (chunk == NULL) return NULL;
    *chunk = (order_chunk){.passing = {.free_it = chunk_free}, .from = from, .to = to, .count = count};
    return chunk;
}

static kv_status chunk_sort(const kv_flow *flow, order_chunk *chunk, uint64_t *damaged) {
    size_t kept = 0;
    kv_status status = sort_items(flow, chunk->items, chunk->count, FROM_START, damaged);
    if (status != KV_OK) return status;
    for (size_t i = 0; i < chunk->count; i++) {
        uint64_t location = item_location(&chunk->items[i]);
        if (location == 0) continue;
        chunk->items[kept++] = (order_item){.word = chunk->items[i].word, .location = location};
    }
    chunk->count = kept;
    return KV_OK;
}

/* Of two names in the flow whose words are equal. */
static kv_status compare_in_flow(const kv_flow *flow, uint64_t left, uint64_t right, int *order, uint64_t *damaged) {
    flow_name a, b;
    *damaged = left;
    kv_status status = name_at(flow, left, true, &a);
    if (status == KV_OK) {
        *damaged = right;
        status = name_at(flow, right, true, &b);
    }
    if (status != KV_OK) return status;
    *order = kv_name_compare(a.head, a.head_size, b.head, b.head_size);
    if (*order == 0) *order = kv_name_compare(a.key, a.key_size, b.key, b.key_size);
    return KV_OK;
}

static kv_status item_compare(const kv_flow *flow, const order_item *a, const order_item *b, int *order, uint64_t *damaged) {
    *order = a->word < b->word ? -1 : a->word > b->word;
    return *order != 0 ? KV_OK : compare_in_flow(flow, a->location, b->location, order, damaged);
}

/* How many items of a chunk, from `from` on, come before an item: looked for in steps that double, so what is near costs
 * little, and a few items among many do as well. *same: the next one has its name. */
static kv_status count_below(const kv_flow *flow, const order_chunk *chunk, size_t from, const order_item *item,
                             size_t *out, bool *same, uint64_t *damaged) {
    size_t low = from, high = chunk->count;
    *same = false;
    for (size_t step = 1; low < high;) {
        bool leaping = high == chunk->count;
        size_t at = leaping && step < high - low ? low + step - 1 : low + (high - low) / 2;
        int order;
        kv_status status = item_compare(flow, &chunk->items[at], item, &order, damaged);
        if (status != KV_OK) return status;
        if (order < 0) low = at + 1;
        else high = at;
        if (order == 0) *same = true; /* Names differ within a chunk: what is looked at from now on is below. */
        step *= 2;
    }
    *out = low - from;
    return KV_OK;
}

static kv_status chunk_merge(const kv_flow *flow, const order_chunk *old, const order_chunk *new, order_chunk *out,
                             uint64_t *damaged) {
    size_t i = 0, count = 0;
    for (size_t j = 0; j < new->count; j++) {
        size_t below;
        bool same, near = i < old->count && old->items[i].word == new->items[j].word;
        /* Where words do not tell names apart, both are read. */
        if (near && i + AHEAD < old->count) prefetch(flow, old->items[i + AHEAD].location);
        if (near && j + AHEAD < new->count) prefetch(flow, new->items[j + AHEAD].location);
        kv_status status = count_below(flow, old, i, &new->items[j], &below, &same, damaged);
        if (status != KV_OK) return status;
        memcpy(out->items + count, old->items + i, below * sizeof *out->items);
        i += below;
        count += below;
        out->items[count++] = new->items[j];
        if (same) i++;
    }
    memcpy(out->items + count, old->items + i, (old->count - i) * sizeof *out->items);
    out->count = count + old->count - i;
    return KV_OK;
}

/* The sort lock is held, and must not be lost to a jump: mapped pages are touched under a guard of its own. */
static kv_status chunk_make(const kv_flow *flow, const order_chunk *old, const order_chunk *new, order_chunk *out,
                            uint64_t *damaged) {
    kv_guard guard;
    kv_status status;
    if (KV_GUARD_CAUGHT(&guard)) status = KV_EMAPPING;
    else status = old == NULL ? chunk_sort(flow, out, damaged) : chunk_merge(flow, old, new, out, damaged);
    kv_guard_leave(&guard);
    return status;
}

/* --- views --- */

static void view_free(passing *self) { free(self); }

static order_view *view_new(size_t chunk_count, size_t run_count) {
    order_view *view = malloc(sizeof *view + (chunk_count + run_count) * sizeof(void *));
    if (view == NULL) return NULL;
    *view = (order_view){.passing = {.free_it = view_free}, .chunk_count = chunk_count, .run_count = run_count};
    view->chunks = (order_chunk **)(view + 1);
    view->runs = (order_run **)(view->chunks + chunk_count);
    return view;
}

static void run_free(passing *self) {
    order_run *one = (order_run *)self;
    if (one->mapping != NULL) one->io->unmap(one->io, NULL, one->mapping, one->run.info.size);
    free(one);
}

static void free_passing(void *context, void *memory) {
    (void)context;
    ((passing *)memory)->free_it(memory);
}

/* Writer lock. */
static void pass_on(kv_order *order, passing *gone) {
    if (kv_epoch_retire(order->epoch, free_passing, NULL, gone) == KV_OK) return;
    gone->kept_next = order->kept;
    order->kept = gone;
}

static order_view *view_now(kv_order *order) { return atomic_load_explicit(&order->view, memory_order_acquire); }

/* Sort lock. `view` with the chunks of `before` up to `chunk_count`, its runs up to `run_count`, one more of either. */
static order_view *view_after(const order_view *before, size_t chunk_from, size_t chunk_until, order_chunk *chunk,
                              size_t run_count, order_run *run) {
    size_t chunks = chunk_until - chunk_from;
    order_view *view = view_new(chunks + (chunk != NULL), run_count + (run != NULL));
    if (view == NULL) return NULL;
    if (chunks != 0) memcpy(view->chunks, before->chunks + chunk_from, chunks * sizeof *view->chunks);
    if (chunk != NULL) view->chunks[chunks] = chunk;
    if (run_count != 0) memcpy(view->runs, before->runs, run_count * sizeof *view->runs);
    if (run != NULL) view->runs[run_count] = run;
    return view;
}

static bool view_has(const order_view *view, const passing *what) {
    for (size_t i = 0; i < view->chunk_count; i++)
        if (&view->chunks[i]->passing == what) return true;
    for (size_t i = 0; i < view->run_count; i++)
        if (&view->runs[i]->passing == what) return true;
    return false;
}

/* Sort lock and writer lock. */
static void view_replace_locked(kv_order *order, order_view *view) {
    order_view *before = view_now(order);
    atomic_store_explicit(&order->view, view, memory_order_release);
    for (size_t i = 0; i < before->chunk_count; i++)
        if (!view_has(view, &before->chunks[i]->passing)) pass_on(order, &before->chunks[i]->passing);
    for (size_t i = 0; i < before->run_count; i++)
        if (!view_has(view, &before->runs[i]->passing)) pass_on(order, &before->runs[i]->passing);
    pass_on(order, &before->passing);
}

static void view_replace(kv_order *order, order_view *view) {
    pthread_mutex_lock(order->writer_lock);
    view_replace_locked(order, view);
    pthread_mutex_unlock(order->writer_lock);
}

/* --- from nothing to nothing --- */

kv_status kv_order_new(kv_epoch *epoch, pthread_mutex_t *writer_lock, kv_order **out) {
    kv_order *order = calloc(1, sizeof *order);
    if (order == NULL) return KV_ENOMEM;
    order->epoch = epoch;
    order->writer_lock = writer_lock;
    order_view *view = view_new(0, 0);
    order->tail = order->head = kv_large_new(sizeof *order->tail);
    if (view == NULL || order->tail == NULL || pthread_mutex_init(&order->sort_lock, NULL) != 0) {
        free(view);
        kv_large_free(order->tail);
        free(order);
        return KV_ENOMEM;
    }
    atomic_init(&order->tail->next, NULL);
    atomic_init(&order->view, view);
    atomic_init(&order->cut, NO_CUT);
    *out = order;
    return KV_OK;
}

void kv_order_free(kv_order *order) {
    if (order == NULL) return;
    order_view *view = view_now(order);
    for (size_t i = 0; i < view->chunk_count; i++) chunk_free(&view->chunks[i]->passing);
    for (size_t i = 0; i < view->run_count; i++) run_free(&view->runs[i]->passing);
    free(view);
    while (order->kept != NULL) {
        passing *gone = order->kept;
        order->kept = gone->kept_next;
        gone->free_it(gone);
    }
    while (order->head != NULL) {
        created_block *block = order->head;
        order->head = atomic_load(&block->next);
        kv_large_free(block);
    }
    pthread_mutex_destroy(&order->sort_lock);
    free(order);
}

/* --- created names --- */

kv_status kv_order_created(kv_order *order, uint64_t location, unsigned space) {
    KV_ASSERT(space <= KV_SPACE_CHANGES);
    if (KV_UNLIKELY(order->tail_used == BLOCK_COUNT)) {
        created_block *block = kv_large_new(sizeof *block);
        if (block == NULL) return KV_ENOMEM;
        atomic_init(&block->next, NULL);
        atomic_store_explicit(&order->tail->next, block, memory_order_release);
        order->tail = block;
        order->tail_used = 0;
    }
    uint64_t change = space == KV_SPACE_CHANGES ? CHANGE : 0;
    order->tail->locations[order->tail_used++] = (location & LOCATION_MASK) | change;
    uint64_t count = atomic_load_explicit(&order->created_count, memory_order_relaxed);
    atomic_store_explicit(&order->created_count, count + 1, memory_order_release);
    return KV_OK;
}

/* Sort lock. Copies locations from the first unsorted one on, without moving on. */
static void copy_created(const kv_order *order, order_chunk *chunk) {
    const created_block *block = order->head;
    size_t used = order->head_used;
    for (size_t i = 0; i < chunk->count; i++) {
        if (used == BLOCK_COUNT) {
            block = atomic_load_explicit(&block->next, memory_order_acquire);
            used = 0;
        }
        chunk->items[i].location = block->locations[used++];
    }
}

/* Sort lock. Gives back the blocks that were used up, except the one that the writer may still stand on. */
static void skip_created(kv_order *order, uint64_t count) {
    while (count != 0) {
        if (order->head_used == BLOCK_COUNT) {
            created_block *spent = order->head;
            order->head = atomic_load_explicit(&spent->next, memory_order_acquire);
            order->head_used = 0;
            kv_large_free(spent);
        }
        uint64_t left = BLOCK_COUNT - order->head_used, taken = count < left ? count : left;
        order->head_used += taken;
        count -= taken;
    }
}

/* Sort lock. Takes in the chunks before it as long as they are small or not far larger, and on one side of the cut: each
 * creation is moved some 4 log8(n) times, and there are log8(n) chunks. *kept: how many chunks of the view stay. */
static kv_status merge_into(kv_order *order, const kv_flow *flow, order_chunk **chunk, size_t *kept, uint64_t *damaged) {
    const order_view *view = view_now(order);
    for (*kept = view->chunk_count; *kept != 0; --*kept) {
        const order_chunk *old = view->chunks[*kept - 1], *new = *chunk;
        bool small = old->count + new->count <= SMALL_COUNT;
        if ((!small && old->count / MERGE_RATIO > new->count) || new->from == atomic_load(&order->cut)) return KV_OK;
        order_chunk *merged = chunk_new(old->from, new->to, old->count + new->count);
        if (merged == NULL) return KV_ENOMEM;
        kv_status status = chunk_make(flow, old, new, merged, damaged);
        kv_large_free(status == KV_OK ? *chunk : merged);
        if (status != KV_OK) return status;
        *chunk = merged;
    }
    return KV_OK;
}

/* Sort lock. Creations up to `until` become a chunk. The cut is loaded after the count that `until` comes from: one that was
 * set before any creation beyond it is seen. */
static kv_status sort_piece(kv_order *order, const kv_flow *flow, uint64_t until, uint64_t *damaged) {
    uint64_t from = atomic_load_explicit(&order->sorted_count, memory_order_relaxed);
    uint64_t cut = atomic_load(&order->cut);
    if (from < cut && until > cut) until = cut;
    if (until - from > PIECE_COUNT) until = from + PIECE_COUNT;
    const order_view *before = view_now(order);
    size_t kept = before->chunk_count;
    order_view *view = NULL;
    order_chunk *chunk = chunk_new(from, until, until - from);
    if (chunk == NULL) return KV_ENOMEM;
    copy_created(order, chunk);
    kv_status status = chunk_make(flow, NULL, NULL, chunk, damaged);
    if (status == KV_OK) status = merge_into(order, flow, &chunk, &kept, damaged);
    if (status == KV_OK) view = view_after(before, 0, kept, chunk, before->run_count, NULL);
    if (view == NULL) {
        kv_large_free(chunk);
        return status == KV_OK ? KV_ENOMEM : status;
    }
    view_replace(order, view);
    skip_created(order, until - from);
    atomic_store_explicit(&order->sorted_count, until, memory_order_release);
    return KV_OK;
}

/* Inside the epoch. Returns with everything that was created before `until` in chunks. */
static kv_status sort_created(kv_order *order, const kv_flow *flow, uint64_t until, uint64_t *damaged) {
    kv_status status = KV_OK;
    if (atomic_load_explicit(&order->sorted_count, memory_order_acquire) >= until) return KV_OK;
    pthread_mutex_lock(&order->sort_lock);
    while (status == KV_OK && atomic_load_explicit(&order->sorted_count, memory_order_relaxed) < until)
        status = sort_piece(order, flow, until, damaged);
    pthread_mutex_unlock(&order->sort_lock);
    return status;
}

/* --- walking --- */

typedef struct source {
    const order_chunk *chunk; /* NULL: a run */
    const order_run *run;
    size_t at;
    size_t ahead; /* of a chunk: so many items from `at` on were prefetched */
    bool ended;
    bool spent; /* its name was handed out: step before the next look */
    uint64_t word;
    const uint8_t *name;
    size_t name_size;
    uint8_t *buffer; /* where a chunk's name is put together */
    size_t capacity;
    kv_run_cursor cursor;
} source;

struct kv_order_cursor {
    const kv_flow *flow;
    bool reverse;
    source *sources;
    size_t count, capacity;
    source *leader; /* whose name was handed out, if no other source has it; NULL: look at all of them */
    source *bound;  /* of the others, the one whose name comes first; NULL: they have ended */
    uint64_t seen;  /* the location of the record that the name was read in */
    uint64_t damaged, damaged_run;
};

kv_status kv_order_cursor_new(kv_order_cursor **out) {
    *out = calloc(1, sizeof **out);
    return *out == NULL ? KV_ENOMEM : KV_OK;
}

void kv_order_cursor_free(kv_order_cursor *cursor) {
    if (cursor == NULL) return;
    for (size_t i = 0; i < cursor->capacity; i++) {
        free(cursor->sources[i].buffer);
        kv_run_cursor_free(&cursor->sources[i].cursor);
    }
    free(cursor->sources);
    free(cursor);
}

uint64_t kv_order_damage(const kv_order_cursor *cursor, uint64_t *run_id) {
    *run_id = cursor->damaged_run;
    return cursor->damaged & LOCATION_MASK;
}

/* Sources keep their buffers from one seek to the next. */
static kv_status sources_room(kv_order_cursor *cursor, size_t count) {
    if (count <= cursor->capacity) return KV_OK;
    size_t capacity = count * 2;
    source *larger = realloc(cursor->sources, capacity * sizeof *larger);
    if (larger == NULL) return KV_ENOMEM;
    memset(larger + cursor->capacity, 0, (capacity - cursor->capacity) * sizeof *larger);
    cursor->sources = larger;
    cursor->capacity = capacity;
    return KV_OK;
}

static source *source_next(kv_order_cursor *cursor, const order_chunk *chunk, const order_run *run) {
    source *s = &cursor->sources[cursor->count++];
    s->chunk = chunk;
    s->run = run;
    s->ended = false;
    s->spent = false;
    return s;
}

/* The name that a chunk's item stands for, from a record that is intact. */
static kv_status item_name(kv_order_cursor *cursor, source *s, size_t at) {
    flow_name name;
    uint64_t location = s->chunk->items[at].location;
    if (name_at(cursor->flow, location, true, &name) != KV_OK) {
        cursor->damaged = location;
        return KV_ECORRUPT;
    }
    size_t size = (size_t)name.head_size + name.key_size;
    if (size > s->capacity) {
        uint8_t *larger = realloc(s->buffer, size * 2);
        if (larger == NULL) return KV_ENOMEM;
        s->buffer = larger;
        s->capacity = size * 2;
    }
    memcpy(s->buffer, name.head, name.head_size);
    memcpy(s->buffer + name.head_size, name.key, name.key_size);
    s->name = s->buffer;
    s->name_size = size;
    return KV_OK;
}

/* Prefetches up to `count` records more, but none that is AHEAD items away: some at a seek, since the first ones are
 * wanted at once, and then by and by more, since many seeks want no more than those. */
static void source_ahead(const kv_order_cursor *cursor, source *s, size_t count) {
    for (; count != 0 && s->ahead < AHEAD; count--) {
        size_t at = cursor->reverse ? s->at - s->ahead : s->at + s->ahead;
        if (at < s->chunk->count) prefetch(cursor->flow, s->chunk->items[at].location);
        s->ahead++;
    }
}

static kv_status chunk_stand(kv_order_cursor *cursor, source *s, size_t at) {
    const order_chunk *chunk = s->chunk;
    s->at = at;
    s->ended = at >= chunk->count; /* One below 0 is above everything. */
    if (s->ended) return KV_OK;
    s->word = chunk->items[at].word;
    source_ahead(cursor, s, AHEAD_STEP);
    s->ahead--; /* as seen from the next one */
    return item_name(cursor, s, at);
}

static kv_status chunk_seek(kv_order_cursor *cursor, source *s, enum kv_seek how, const uint8_t *name, size_t size) {
    const order_chunk *chunk = s->chunk;
    uint64_t word = bound_word(name, size);
    bool or_equal = how == KV_SEEK_GT || how == KV_SEEK_LE;
    size_t low = 0, high = chunk->count;
    while (low < high) {
        size_t at = low + (high - low) / 2;
        int order = chunk->items[at].word < word ? -1 : chunk->items[at].word > word;
        if (order == 0) {
            kv_status status = item_name(cursor, s, at);
            if (status != KV_OK) return status;
            order = kv_name_compare(s->name, s->name_size, name, size);
        }
        if (order < 0 || (order == 0 && or_equal)) low = at + 1;
        else high = at;
    }
    s->at = cursor->reverse ? low - 1 : low;
    s->ahead = 0;
    source_ahead(cursor, s, AHEAD_SEEK);
    return chunk_stand(cursor, s, s->at);
}

static kv_status run_stood(kv_order_cursor *cursor, source *s, kv_status status) {
    s->ended = status == KV_EOF;
    if (status == KV_ECORRUPT) cursor->damaged_run = s->run->run.info.id;
    if (status != KV_OK) return s->ended ? KV_OK : status;
    s->name = s->cursor.name;
    s->name_size = s->cursor.name_size;
    s->word = bound_word(s->name, s->name_size);
    return KV_OK;
}

static kv_status source_seek(kv_order_cursor *cursor, source *s, enum kv_seek how, const uint8_t *name, size_t size) {
    if (s->chunk != NULL) return chunk_seek(cursor, s, how, name, size);
    return run_stood(cursor, s, kv_run_seek(&s->cursor, &s->run->run, how, name, size));
}

static kv_status source_step(kv_order_cursor *cursor, source *s) {
    s->spent = false;
    if (s->chunk != NULL) return chunk_stand(cursor, s, cursor->reverse ? s->at - 1 : s->at + 1);
    return run_stood(cursor, s, cursor->reverse ? kv_run_previous(&s->cursor) : kv_run_next(&s->cursor));
}

/* Over the chunks before `cut` and the runs from `run_from` on. */
static kv_status cursor_open(kv_order_cursor *cursor, const kv_flow *flow, const order_view *view, uint64_t cut,
                             size_t run_from, enum kv_seek how, const uint8_t *name, size_t size) {
    kv_status status = sources_room(cursor, view->chunk_count + view->run_count);
    cursor->flow = flow;
    cursor->reverse = how == KV_SEEK_LE || how == KV_SEEK_LT;
    cursor->count = 0;
    cursor->leader = cursor->bound = NULL;
    for (size_t i = 0; status == KV_OK && i < view->chunk_count && view->chunks[i]->to <= cut; i++)
        status = source_seek(cursor, source_next(cursor, view->chunks[i], NULL), how, name, size);
    for (size_t i = run_from; status == KV_OK && i < view->run_count; i++)
        status = source_seek(cursor, source_next(cursor, NULL, view->runs[i]), how, name, size);
    return status;
}

kv_status kv_order_seek(kv_order *order, const kv_flow *flow, kv_order_cursor *cursor, enum kv_seek how,
                        const uint8_t *name, size_t size) {
    cursor->damaged = cursor->damaged_run = 0;
    uint64_t created = atomic_load_explicit(&order->created_count, memory_order_acquire);
    kv_status status = sort_created(order, flow, created, &cursor->damaged);
    if (status != KV_OK) return status;
    return cursor_open(cursor, flow, view_now(order), NO_CUT, 0, how, name, size);
}

/* Below 0: the cursor comes to `left` first. */
static int source_compare(const kv_order_cursor *cursor, const source *left, const source *right) {
    int order = left->word < right->word ? -1 : left->word > right->word;
    if (order == 0) order = kv_name_compare(left->name, left->name_size, right->name, right->name_size);
    return cursor->reverse ? -order : order;
}

static void hand_out(kv_order_cursor *cursor, const source *s, const uint8_t **name, size_t *size) {
    cursor->seen = s->chunk == NULL ? 0 : s->chunk->items[s->at].location & LOCATION_MASK;
    *name = s->name;
    *size = s->name_size;
}

/* Looks at every source. The one whose name comes first leads, unless another has the same name: then all that have it
 * are spent. */
static kv_status look_around(kv_order_cursor *cursor, source **out) {
    source *best = NULL, *second = NULL;
    for (size_t i = 0; i < cursor->count; i++) {
        source *s = &cursor->sources[i];
        kv_status status = s->spent && !s->ended ? source_step(cursor, s) : KV_OK;
        if (status != KV_OK) return status;
        if (s->ended) continue;
        if (best == NULL || source_compare(cursor, s, best) < 0) {
            second = best;
            best = s;
        } else if (second == NULL || source_compare(cursor, s, second) < 0) {
            second = s;
        }
    }
    *out = best;
    bool alone = best != NULL && (second == NULL || source_compare(cursor, best, second) != 0);
    cursor->leader = alone ? best : NULL;
    cursor->bound = second;
    for (size_t i = 0; best != NULL && !alone && i < cursor->count; i++) {
        source *s = &cursor->sources[i];
        if (!s->ended && source_compare(cursor, s, best) == 0) s->spent = true;
    }
    return best == NULL ? KV_EOF : KV_OK;
}

/* A source leads for as long as its names come before those of all others, which is known by one comparison. */
kv_status kv_order_next(kv_order_cursor *cursor, const uint8_t **name, size_t *size) {
    source *s = cursor->leader;
    if (s != NULL) {
        kv_status status = source_step(cursor, s);
        if (status != KV_OK) return status;
        bool leads = !s->ended && (cursor->bound == NULL || source_compare(cursor, s, cursor->bound) < 0);
        if (leads) hand_out(cursor, s, name, size);
        if (leads) return KV_OK;
        cursor->leader = NULL;
    }
    kv_status status = look_around(cursor, &s);
    if (status == KV_OK) hand_out(cursor, s, name, size);
    return status;
}

uint64_t kv_order_seen(const kv_order_cursor *cursor) { return cursor->seen; }

/* --- runs --- */

static kv_status run_map(kv_io *io, order_run *one, const kv_run_info *info) {
    kv_file *file;
    uint64_t size = 0;
    char path[KV_RUN_PATH_SIZE];
    kv_run_path(info->id, path);
    kv_status status = io->open(io, path, KV_IO_READ, &file);
    if (status != KV_OK) return status;
    status = io->size(io, file, &size);
    if (status == KV_OK && size != info->size) status = KV_ECORRUPT;
    if (status == KV_OK) status = io->map(io, file, size, false, &one->mapping);
    io->close(io, file);
    if (status != KV_OK) return status;
    one->run.info.size = size;
    status = kv_run_open(info->id, one->mapping, size, &one->run);
    if (status != KV_OK) return status;
    bool same = one->run.info.name_count == info->name_count && one->run.info.checksum == info->checksum;
    return same ? KV_OK : KV_ECORRUPT;
}

static kv_status run_load(kv_io *io, const kv_run_info *info, order_run **out) {
    order_run *one = calloc(1, sizeof *one);
    if (one == NULL) return KV_ENOMEM;
    one->passing.free_it = run_free;
    one->io = io;
    kv_status status = run_map(io, one, info);
    if (status == KV_OK) *out = one;
    else run_free(&one->passing);
    return status;
}

kv_status kv_order_add_run(kv_order *order, kv_io *io, const kv_run_info *info) {
    order_run *run;
    kv_status status = run_load(io, info, &run);
    if (status != KV_OK) return status;
    const order_view *before = view_now(order);
    order_view *view = view_after(before, 0, before->chunk_count, NULL, before->run_count, run);
    if (view == NULL) {
        run_free(&run->passing);
        return KV_ENOMEM;
    }
    view_replace_locked(order, view);
    return KV_OK;
}

kv_status kv_order_build_begin(kv_order *order, uint64_t live_count, kv_order_build *out) {
    const order_view *view = view_now(order);
    uint64_t created = atomic_load_explicit(&order->created_count, memory_order_relaxed);
    uint64_t fresh = created - order->in_runs_count, total = fresh, listed = fresh;
    for (size_t i = 0; i < view->run_count; i++) listed += view->runs[i]->run.info.name_count;
    *out = (kv_order_build){.cut = created};
    /* Size-tiered: what is taken in is never much larger than what is new, so a name is written some log2(n) times. */
    for (size_t i = view->run_count; i-- > 0 && fresh != 0;) {
        uint64_t count = view->runs[i]->run.info.name_count;
        if (count > 2 * total) break;
        total += count;
        out->run_count++;
    }
    /* Where most names are dead, every scan walks over them: all go into one. */
    if (listed > 2 * live_count + DEAD_SLACK) out->run_count = view->run_count;
    if (fresh == 0 && out->run_count == 0) return KV_EOF;
    atomic_store(&order->cut, created);
    return KV_OK;
}

kv_status kv_order_build_sort(kv_order *order, const kv_flow *flow, const kv_order_build *build) {
    uint64_t damaged = 0, sorted = atomic_load_explicit(&order->sorted_count, memory_order_acquire);
    if (sorted >= build->cut) return KV_OK;
    uint64_t until = build->cut - sorted > PIECE_COUNT ? sorted + PIECE_COUNT : build->cut;
    kv_status status = sort_created(order, flow, until, &damaged);
    return status == KV_OK ? KV_MORE : status;
}

kv_status kv_order_build_seek(kv_order *order, const kv_flow *flow, const kv_order_build *build,
                              kv_order_cursor *cursor, enum kv_seek how, const uint8_t *name, size_t size) {
    const order_view *view = view_now(order);
    cursor->damaged = cursor->damaged_run = 0;
    return cursor_open(cursor, flow, view, build->cut, view->run_count - build->run_count, how, name, size);
}

kv_status kv_order_build_list(kv_order *order, const kv_order_build *build, const kv_run_info *run, kv_run_info **out,
                              size_t *count) {
    kv_status status = kv_order_runs(order, out, count);
    if (status != KV_OK) return status;
    *count -= build->run_count;
    if (run != NULL) (*out)[(*count)++] = *run;
    return KV_OK;
}

kv_status kv_order_build_publish(kv_order *order, const kv_order_build *build, kv_io *io, const kv_run_info *info) {
    order_run *run = NULL;
    size_t kept = 0;
    kv_status status = info == NULL ? KV_OK : run_load(io, info, &run);
    if (status != KV_OK) return status;
    pthread_mutex_lock(&order->sort_lock);
    const order_view *before = view_now(order);
    while (kept < before->chunk_count && before->chunks[kept]->to <= build->cut) kept++;
    order_view *view = view_after(before, kept, before->chunk_count, NULL, before->run_count - build->run_count, run);
    pthread_mutex_lock(order->writer_lock);
    if (view != NULL) {
        view_replace_locked(order, view);
        order->in_runs_count = build->cut;
    }
    pthread_mutex_unlock(order->writer_lock);
    pthread_mutex_unlock(&order->sort_lock);
    if (view == NULL && run != NULL) run_free(&run->passing);
    return view == NULL ? KV_ENOMEM : KV_OK;
}

void kv_order_build_end(kv_order *order) { atomic_store(&order->cut, NO_CUT); }

kv_status kv_order_runs(kv_order *order, kv_run_info **out, size_t *count) {
    /* The caller need not be inside the epoch, and the view must not go meanwhile. */
    pthread_mutex_lock(&order->sort_lock);
    const order_view *view = view_now(order);
    *count = view->run_count;
    *out = malloc((view->run_count + 1) * sizeof **out); /* One more: a list that grows by a run fits. */
    for (size_t i = 0; *out != NULL && i < view->run_count; i++) (*out)[i] = view->runs[i]->run.info;
    pthread_mutex_unlock(&order->sort_lock);
    return *out == NULL ? KV_ENOMEM : KV_OK;
}

void kv_order_measure(kv_order *order, kv_order_stats *out) {
    const order_view *view = view_now(order);
    *out = (kv_order_stats){
        .created_count = atomic_load_explicit(&order->created_count, memory_order_relaxed) - order->in_runs_count,
        .run_count = view->run_count,
    };
    for (size_t i = 0; i < view->run_count; i++) {
        out->run_name_count += view->runs[i]->run.info.name_count;
        out->run_size += view->runs[i]->run.info.size;
    }
}
