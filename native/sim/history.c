/* history.c -- the search for an order that explains a history. What it promises: history.h; why each shortcut is right:
 * docs/protocol/checker.md.
 *
 * Wing and Gong, "Testing and verifying concurrent objects" (1993), with a memo as of Lowe, "Testing for linearizability"
 * (2017): walk through all orders, one operation at a time, and come to no configuration twice. A configuration is
 *
 *     done    which operations have happened: a set of bits
 *     state   what the object is then
 *
 * Operations are numbered so that the bits mean something: first the known ones (answered), by return; then those of
 * unknown outcome, by call:
 *
 *     0 ... first ......... known_count ........ count        first: the lowest known one that is not done. Whatever
 *     known, by return      unknown, by call                  happens next was called before that one returned: enabled[first]
 *
 * A configuration with all known ones done ends the search: the history is good. What keeps it short:
 *   absorb     a read whose answer fits the state happens at once
 *   dominated  a configuration need not be looked at if one was seen that is like it, but for fewer unknown ones done;
 *              so first all that can be had with none of them is looked at, then with one, with two ...
 *   previous   of unknown ones that do the same, the one that was called first happens first
 *
 * Memory: one block, made with the checker: nodes (the configurations seen) and slots (a hash table over them: the number
 * of a search and of a node). A slot of an earlier search is free, so that nothing has to be cleared, and the table begins
 * small, so that a small search stays in the cache. */
#include "history.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

enum {
    OPS_MAX = KV_HISTORY_OPS_MAX,
    WORDS = OPS_MAX / 64,
    HEAD_BITS = 24,
    BUDGET_MAX = 1 << HEAD_BITS,
    SLOTS_MIN = 256,
    CHAIN_MAX = 64, /* nodes alike to compare with, at most: a longer look would make the search quadratic */
    NO_OP = UINT16_MAX
};

typedef struct bits {
    uint64_t word[WORDS];
} bits;

/* Absent has first and second 0. For all but a pair, `second` follows from what `first` is made of. */
typedef struct state {
    uint64_t first, second;
    uint64_t version; /* of the newest write, if exact; else that is this or higher. Stays 0 if versions are not judged */
    bool present, exact;
} state;

typedef struct node {
    bits done;
    state at;
    uint32_t parent;
    uint16_t taken; /* the operation that leads here from there; NO_OP: the root */
    uint16_t first;
    uint32_t next; /* with the same known ones done and the same value; 0: the last, for node 0 is always a head */
} node;

struct kv_history_checker {
    const kv_history_op *ops[OPS_MAX];
    uint32_t count, known_count;
    bool versions; /* judged */
    bits known, quiet; /* quiet: answered as one that changes nothing */
    bits enabled[OPS_MAX];
    uint16_t previous[OPS_MAX];

    node *nodes;
    uint32_t node_count, node_max;
    uint64_t *slots; /* search << HEAD_BITS | node */
    uint64_t slot_mask;
    uint64_t search; /* 40 bits of it last for a year of searches */
};

typedef enum answer { EXPLAINED, NOT_EXPLAINED, GOES_ON, OUT_OF_BUDGET, OUT_OF_BITS } answer;

/* --- bits --- */

static void bit_set(bits *b, uint32_t index) { b->word[index / 64] |= 1ULL << index % 64; }
static bool bit_get(const bits *b, uint32_t index) { return b->word[index / 64] >> index % 64 & 1; }

/* The lowest of `some` without `but` from `from` on; NO_OP: there is none. */
static uint16_t bits_next(const bits *some, const bits *but, uint32_t from) {
    for (uint32_t w = from / 64; w < WORDS; w++) {
        uint64_t left = some->word[w] & ~but->word[w];
        if (w == from / 64) left &= ~0ULL << from % 64;
        if (left != 0) return (uint16_t)(w * 64 + (uint32_t)__builtin_ctzll(left));
    }
    return NO_OP;
}

/* --- the checker --- */

kv_history_checker *kv_history_checker_new(uint32_t budget) {
    KV_ASSERT(budget >= 1);
    KV_ASSERT(budget <= BUDGET_MAX);
    uint64_t slot_count = SLOTS_MIN;
    while (slot_count <= 2 * (uint64_t)budget) slot_count *= 2;
    size_t nodes_at = kv_align(sizeof(kv_history_checker), 64);
    size_t slots_at = nodes_at + kv_align(budget * sizeof(node), 64);
    uint8_t *block = calloc(1, slots_at + slot_count * sizeof(uint64_t));
    if (block == NULL) return NULL;
    kv_history_checker *checker = (void *)block;
    checker->nodes = (void *)(block + nodes_at);
    checker->slots = (void *)(block + slots_at);
    checker->node_max = budget;
    return checker;
}

void kv_history_checker_free(kv_history_checker *checker) { free(checker); }

/* --- what an operation does to a state --- */

typedef enum fit { MISFIT, FOUND, WROTE } fit; /* the answer is another one; it changed nothing; it is a write */

static void state_set(state *s, uint64_t first, uint64_t second) {
    s->first = first;
    s->second = second;
    s->present = true;
}

static fit state_clear(state *s) {
    s->first = s->second = 0;
    s->present = false;
    return WROTE;
}

static bool state_is(const state *s, kv_history_value v) { return s->present == v.present && s->first == v.word; }

static fit state_assign(state *s, kv_history_value v) {
    if (!v.present) return state_clear(s);
    state_set(s, v.word, 1);
    return WROTE;
}

static fit step_remove(const kv_history_op *o, bool known, state *s) {
    if (known && o->failed == s->present) return MISFIT;
    return s->present ? state_clear(s) : FOUND;
}

/* Of unknown outcome, and the condition does not hold: a misfit, for to have happened in vain is to have never happened. */
static fit step_cas(const kv_history_op *o, bool known, state *s) {
    bool holds = state_is(s, o->expected);
    if (!known || !o->failed) return holds ? state_assign(s, o->argument) : MISFIT;
    return !holds && state_is(s, o->answer) ? FOUND : MISFIT;
}

/* Whether the present version may be `version`, 0 being none for an absent object; if so, it is that from now on. */
static bool version_is(const kv_history_checker *c, state *s, uint64_t version) {
    if (version == 0 || !s->present) return version == 0 && !s->present;
    if (!c->versions) return true;
    if (s->exact ? s->version != version : s->version > version) return false;
    s->version = version;
    s->exact = true;
    return true;
}

static fit step_cas_version(const kv_history_checker *c, const kv_history_op *o, bool known, state *s) {
    if (!known || !o->failed) return version_is(c, s, o->expected_version) ? state_assign(s, o->argument) : MISFIT;
    return o->version != o->expected_version && version_is(c, s, o->version) ? FOUND : MISFIT;
}

static fit step_append(const kv_history_op *o, bool known, state *s) {
    state_set(s, kv_history_fold(s->first, o->argument.word), s->second + 1);
    return known && o->answer.present && o->answer.word != s->second ? MISFIT : WROTE;
}

static fit step_incr(const kv_history_op *o, bool known, state *s) {
    state_set(s, s->first + o->argument.word, 1);
    return known && o->answer.word != s->first ? MISFIT : WROTE;
}

static bool pair_is(const state *s, const kv_history_op *o) {
    return state_is(s, o->answer) && s->present == o->second.present && s->second == o->second.word;
}

static fit step_transfer(const kv_history_op *o, bool known, state *s) {
    state_set(s, s->first - o->argument.word, s->second + o->argument.word);
    return known && !pair_is(s, o) ? MISFIT : WROTE;
}

/* The fold of rows [from, from + size), counted from 0. The state is a fold and cannot be taken apart, but the way to a node
 * says which rows were appended, the newest last. */
static uint64_t rows_fold(const kv_history_checker *c, const node *n, uint64_t from, uint64_t size) {
    uint64_t tokens[OPS_MAX], row = n->at.second, fold = 0;
    if (size == row) return n->at.first;
    for (; row > from; n = &c->nodes[n->parent]) {
        KV_ASSERT(n->taken != NO_OP);
        const kv_history_op *o = c->ops[n->taken];
        if (o->kind == KV_HISTORY_ROW_APPEND && --row < from + size) tokens[row - from] = o->argument.word;
    }
    for (uint64_t i = 0; i < size; i++) fold = kv_history_fold(fold, tokens[i]);
    return fold;
}

static fit step_rows(const kv_history_checker *c, const kv_history_op *o, const node *n) {
    uint64_t from, size, row_count = n->at.second;
    if (o->kind == KV_HISTORY_LAST) {
        size = o->argument.word < row_count ? o->argument.word : row_count;
        from = row_count - size;
    } else {
        from = o->argument.word - 1 < row_count ? o->argument.word - 1 : row_count;
        size = o->limit < row_count - from ? o->limit : row_count - from;
    }
    /* A table without rows and none at all are the same: the first row brings it into being. */
    uint64_t told = o->answer.present ? o->second.word : 0;
    if (told != size) return MISFIT;
    return size == 0 || rows_fold(c, n, from, size) == o->answer.word ? FOUND : MISFIT;
}

static fit step_value(const kv_history_checker *c, const kv_history_op *o, bool known, const node *n, state *s) {
    switch (o->kind) {
    case KV_HISTORY_GET: return state_is(s, o->answer) ? FOUND : MISFIT;
    case KV_HISTORY_PUT: return state_assign(s, o->argument);
    case KV_HISTORY_CAS: return step_cas(o, known, s);
    case KV_HISTORY_CAS_VERSION: return step_cas_version(c, o, known, s);
    case KV_HISTORY_INCR: return step_incr(o, known, s);
    case KV_HISTORY_TRANSFER: return step_transfer(o, known, s);
    case KV_HISTORY_GET_PAIR: return pair_is(s, o) ? FOUND : MISFIT;
    case KV_HISTORY_APPEND:
    case KV_HISTORY_ROW_APPEND: return step_append(o, known, s);
    case KV_HISTORY_LAST:
    case KV_HISTORY_ROWS: return step_rows(c, o, n);
    case KV_HISTORY_DELETE:
    case KV_HISTORY_DROP: return step_remove(o, known, s);
    }
    KV_ASSERT(!"a kind");
    return MISFIT;
}

static bool step_version(const kv_history_op *o, bool known, fit what, state *s) {
    uint64_t told = known ? o->version : 0;
    if (told == 0) {
        if (what == WROTE) s->exact = false;
        s->version += what == WROTE;
        return true;
    }
    if (what == WROTE ? told <= s->version : s->exact ? told != s->version : told < s->version) return false;
    s->version = told;
    s->exact = true;
    return true;
}

/* What is there after one more operation. False: its answer does not fit. */
static bool step(const kv_history_checker *c, uint32_t index, const node *n, state *after) {
    const kv_history_op *o = c->ops[index];
    bool known = index < c->known_count;
    *after = n->at;
    fit what = step_value(c, o, known, n, after);
    return what != MISFIT && (!c->versions || step_version(o, known, what, after));
}

/* --- the memo --- */

static bool value_same(const state *a, const state *b) {
    return a->first == b->first && a->second == b->second && a->present == b->present;
}

static bool state_same(const state *a, const state *b) {
    return value_same(a, b) && a->version == b->version && a->exact == b->exact;
}

static uint64_t mixed(uint64_t hash, uint64_t word) {
    hash = (hash ^ word) * 0x9E3779B97F4A7C15ULL;
    return hash ^ hash >> 32;
}

static uint64_t node_hash(const kv_history_checker *c, const node *n) {
    uint64_t hash = mixed(mixed(n->at.present, n->at.first), n->at.second);
    for (uint32_t w = 0; w < WORDS && w * 64 < c->known_count; w++)
        hash = mixed(hash, n->done.word[w] & c->known.word[w]);
    return hash;
}

static bool node_alike(const kv_history_checker *c, const node *a, const node *b) {
    uint64_t differs = 0;
    for (uint32_t w = 0; w < WORDS; w++) differs |= (a->done.word[w] ^ b->done.word[w]) & c->known.word[w];
    return differs == 0 && value_same(&a->at, &b->at);
}

/* Of two alike: whatever can follow `n` can follow `seen`. */
static bool node_dominates(const node *seen, const node *n) {
    uint64_t more = 0;
    for (uint32_t w = 0; w < WORDS; w++) more |= seen->done.word[w] & ~n->done.word[w];
    if (more != 0) return false;
    return seen->at.exact ? n->at.exact && n->at.version == seen->at.version : n->at.version >= seen->at.version;
}

static bool slot_taken(const kv_history_checker *c, uint64_t slot) { return slot >> HEAD_BITS == c->search; }
static uint32_t slot_head(uint64_t slot) { return (uint32_t)(slot & (BUDGET_MAX - 1)); }

/* The slot of the nodes that are like this one, or the free one where they would begin. */
static uint64_t *slot_find(const kv_history_checker *c, const node *n) {
    for (uint64_t at = node_hash(c, n);; at++) {
        uint64_t *slot = &c->slots[at & c->slot_mask];
        if (!slot_taken(c, *slot) || node_alike(c, &c->nodes[slot_head(*slot)], n)) return slot;
    }
}

static void node_link(kv_history_checker *c, uint64_t *slot, uint32_t number) {
    node *n = &c->nodes[number];
    n->next = 0;
    if (slot_taken(c, *slot)) { /* behind the head: what was seen first has the fewest done, as a rule */
        node *head = &c->nodes[slot_head(*slot)];
        n->next = head->next;
        head->next = number;
    } else {
        *slot = c->search << HEAD_BITS | number;
    }
}

static void slots_empty(kv_history_checker *c, uint64_t slot_count) {
    c->search++;
    c->slot_mask = slot_count - 1;
}

static void slots_grow(kv_history_checker *c) {
    slots_empty(c, 2 * (c->slot_mask + 1));
    for (uint32_t i = 0; i < c->node_count; i++) node_link(c, slot_find(c, &c->nodes[i]), i);
}

static bool seen_before(const kv_history_checker *c, uint64_t slot, const node *n) {
    if (!slot_taken(c, slot)) return false;
    uint32_t number = slot_head(slot);
    for (uint32_t i = 0; i < CHAIN_MAX; i++) {
        if (node_dominates(&c->nodes[number], n)) return true;
        number = c->nodes[number].next;
        if (number == 0) return false;
    }
    return false;
}

/* --- the search --- */

/* Every read that fits happens now, which may let others in. True: all known ones are done. */
static bool absorb(const kv_history_checker *c, node *n) {
    for (uint16_t asked = NO_OP;; asked = n->first) {
        n->first = bits_next(&c->known, &n->done, n->first);
        if (n->first == NO_OP) return true;
        if (n->first == asked) return false; /* nobody was let in since */
        bits reads = c->enabled[n->first];
        for (uint32_t w = 0; w < WORDS; w++) reads.word[w] &= c->quiet.word[w];
        for (uint32_t i = bits_next(&reads, &n->done, 0); i != NO_OP; i = bits_next(&reads, &n->done, i + 1)) {
            state after;
            if (step(c, i, n, &after) && state_same(&n->at, &after)) bit_set(&n->done, i);
        }
    }
}

/* GOES_ON: it is the newest node now. NOT_EXPLAINED: nothing that was not tried can come of it. */
static answer enter(kv_history_checker *c, node *n) {
    if (absorb(c, n)) return EXPLAINED;
    uint64_t *slot = slot_find(c, n);
    if (seen_before(c, *slot, n)) return NOT_EXPLAINED;
    if (c->node_count == c->node_max) return OUT_OF_BUDGET;
    c->nodes[c->node_count] = *n;
    node_link(c, slot, c->node_count++);
    if (2 * c->node_count > c->slot_mask) slots_grow(c);
    return GOES_ON;
}

static answer go(kv_history_checker *c, uint32_t from, uint16_t index) {
    const node *n = &c->nodes[from];
    node to = {.done = n->done, .parent = from, .taken = index, .first = n->first};
    if (!step(c, index, n, &to.at)) return NOT_EXPLAINED;
    bit_set(&to.done, index);
    return enter(c, &to);
}

/* From a node on by known operations, deep first: a good history is mostly one way straight ahead. */
static answer follow(kv_history_checker *c, uint32_t from) {
    struct { uint32_t node; uint16_t next; } path[OPS_MAX + 1]; /* each step does one, so it is no longer */
    uint32_t depth = 0;
    path[0].node = from;
    path[0].next = 0;
    for (;;) {
        const node *n = &c->nodes[path[depth].node];
        uint16_t index = bits_next(&c->enabled[n->first], &n->done, path[depth].next);
        if (index >= c->known_count) {
            if (depth-- == 0) return NOT_EXPLAINED;
            continue;
        }
        path[depth].next = (uint16_t)(index + 1);
        answer found = go(c, path[depth].node, index);
        if (found == GOES_ON) {
            path[++depth].node = c->node_count - 1;
            path[depth].next = 0;
        } else if (found != NOT_EXPLAINED) {
            return found;
        }
    }
}

static bool has_turn(const kv_history_checker *c, const node *n, uint32_t index) {
    return c->previous[index] == NO_OP || bit_get(&n->done, c->previous[index]);
}

/* From a node on by one operation of unknown outcome, and then by known ones. */
static answer branch(kv_history_checker *c, uint32_t from) {
    const node *n = &c->nodes[from];
    answer found = NOT_EXPLAINED;
    uint16_t index = bits_next(&c->enabled[n->first], &n->done, c->known_count);
    for (; index != NO_OP && found == NOT_EXPLAINED; index = bits_next(&c->enabled[n->first], &n->done, index + 1U)) {
        if (has_turn(c, n, index)) found = go(c, from, index);
        if (found == GOES_ON) found = follow(c, c->node_count - 1);
    }
    return found;
}

static answer search(kv_history_checker *c) {
    node root = {.at = {.exact = true}, .taken = NO_OP};
    c->node_count = 0;
    slots_empty(c, SLOTS_MIN);
    answer found = enter(c, &root);
    if (found == GOES_ON) found = follow(c, 0);
    /* Those with one more unknown done come to the end: so fewer come first. */
    for (uint32_t i = 0; i < c->node_count && found == NOT_EXPLAINED; i++) found = branch(c, i);
    return found;
}

/* --- a history, or what of it was there up to a tick, made ready --- */

static bool is_read(const kv_history_op *o) {
    return o->kind == KV_HISTORY_GET || o->kind == KV_HISTORY_GET_PAIR || o->kind == KV_HISTORY_LAST ||
           o->kind == KV_HISTORY_ROWS;
}

static bool is_known(const kv_history_op *o, uint64_t until) { return o->ret != KV_HISTORY_NEVER && o->ret <= until; }

/* Insertion sort: histories come nearly in order. */
static void sort_by_return(const kv_history_op **ops, uint32_t count) {
    for (uint32_t i = 1; i < count; i++) {
        const kv_history_op *o = ops[i];
        uint32_t at = i;
        for (; at > 0 && ops[at - 1]->ret > o->ret; at--) ops[at] = ops[at - 1];
        ops[at] = o;
    }
}

static void sort_by_call(const kv_history_op *const *ops, uint16_t *indexes, uint32_t count) {
    for (uint32_t i = 1; i < count; i++) {
        uint16_t index = indexes[i];
        uint32_t at = i;
        for (; at > 0 && ops[indexes[at - 1]]->call > ops[index]->call; at--) indexes[at] = indexes[at - 1];
        indexes[at] = index;
    }
}

static bool value_equal(kv_history_value a, kv_history_value b) { return a.word == b.word && a.present == b.present; }

static bool do_the_same(const kv_history_op *a, const kv_history_op *b) {
    return a->kind == b->kind && value_equal(a->expected, b->expected) && value_equal(a->argument, b->argument) &&
           a->expected_version == b->expected_version;
}

/* Known ones first. False: too many. */
static bool gather(kv_history_checker *c, const kv_history_op *ops, size_t count, uint64_t until) {
    c->count = 0;
    for (size_t i = 0; i < count; i++) {
        if (!is_known(&ops[i], until)) continue;
        if (c->count == OPS_MAX) return false;
        c->ops[c->count++] = &ops[i];
    }
    c->known_count = c->count;
    sort_by_return(c->ops, c->known_count);
    for (size_t i = 0; i < count; i++) {
        if (is_known(&ops[i], until) || ops[i].call > until || is_read(&ops[i])) continue;
        if (c->count == OPS_MAX) return false;
        uint32_t at = c->count++;
        for (; at > c->known_count && c->ops[at - 1]->call > ops[i].call; at--) c->ops[at] = c->ops[at - 1];
        c->ops[at] = &ops[i];
    }
    return true;
}

/* The sets are put together where they stay. When they were filled aside and copied, gcc 12.2 addressed the copy from a null
 * base, took the function for one that writes nothing, and left the call out. */
static void enable(kv_history_checker *c) {
    uint16_t by_call[OPS_MAX];
    uint32_t next = 0;
    for (uint32_t i = 0; i < c->count; i++) by_call[i] = (uint16_t)i;
    sort_by_call(c->ops, by_call, c->count);
    for (uint32_t first = 0; first < c->known_count; first++) {
        bits *called = &c->enabled[first];
        if (first == 0) memset(called, 0, sizeof *called);
        else *called = c->enabled[first - 1];
        for (; next < c->count && c->ops[by_call[next]]->call <= c->ops[first]->ret; next++) bit_set(called, by_call[next]);
    }
}

static void mark(kv_history_checker *c) {
    c->known = c->quiet = (bits){{0}};
    for (uint32_t i = 0; i < c->known_count; i++) {
        c->previous[i] = NO_OP;
        bit_set(&c->known, i);
        if (is_read(c->ops[i]) || c->ops[i]->failed) bit_set(&c->quiet, i);
    }
    for (uint32_t i = c->known_count; i < c->count; i++) {
        c->previous[i] = NO_OP;
        for (uint32_t twin = c->known_count; twin < i; twin++)
            if (do_the_same(c->ops[twin], c->ops[i])) c->previous[i] = (uint16_t)twin;
    }
}

static answer explain(kv_history_checker *c, const kv_history_op *ops, size_t count, uint64_t until, bool versions) {
    c->node_count = 0;
    if (!gather(c, ops, count, until)) return OUT_OF_BITS;
    c->versions = versions;
    mark(c);
    enable(c);
    return search(c);
}

/* --- the verdict --- */

static void check_value(kv_history_value v) { KV_ASSERT(v.present || v.word == 0); }

static void check_usage(const kv_history_op *o) {
    KV_ASSERT(o->call <= o->ret);
    KV_ASSERT(o->call != KV_HISTORY_NEVER);
    check_value(o->expected);
    check_value(o->argument);
    check_value(o->answer);
    check_value(o->second);
    switch (o->kind) {
    case KV_HISTORY_PUT:
    case KV_HISTORY_APPEND:
    case KV_HISTORY_ROW_APPEND:
        KV_ASSERT(o->argument.word != 0); /* A fold could not tell it from nothing. */
        KV_ASSERT(!o->failed);
        break;
    case KV_HISTORY_CAS: KV_ASSERT(o->expected.present || o->argument.present); break;
    case KV_HISTORY_ROWS: KV_ASSERT(o->argument.word >= 1); break;
    case KV_HISTORY_INCR:
    case KV_HISTORY_TRANSFER: KV_ASSERT(!o->failed); break;
    default: break;
    }
}

/* 0: a key, 1: a pair, 2: a table. */
static int object_of(const kv_history_op *o) {
    if (o->kind == KV_HISTORY_TRANSFER || o->kind == KV_HISTORY_GET_PAIR) return 1;
    return o->kind >= KV_HISTORY_ROW_APPEND ? 2 : 0;
}

static bool is_half(const kv_history_op *o) {
    if (object_of(o) != 1 || o->ret == KV_HISTORY_NEVER) return false;
    return o->answer.present != o->second.present || o->answer.word + o->second.word != 0;
}

static bool has_versions(const kv_history_op *ops, size_t count) {
    for (size_t i = 0; i < count; i++)
        if ((ops[i].ret != KV_HISTORY_NEVER && ops[i].version != 0) || ops[i].kind == KV_HISTORY_CAS_VERSION) return true;
    return false;
}

/* The first tick at which the history was wrong already. What is right up to a tick was so at every earlier one, so halves
 * will do. A part that the budget does not suffice for counts as right: then the tick is a later one than need be. */
static uint64_t first_wrong(kv_history_checker *c, const kv_history_op *ops, size_t count, bool versions) {
    uint64_t ticks[OPS_MAX];
    uint32_t low = 0, high = c->known_count - 1; /* wrong at `high`, not so below `low` */
    for (uint32_t i = 0; i < c->known_count; i++) ticks[i] = c->ops[i]->ret;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (explain(c, ops, count, ticks[middle], versions) == NOT_EXPLAINED) high = middle;
        else low = middle + 1;
    }
    return ticks[high];
}

static bool find_half(const kv_history_op *ops, size_t count, kv_history_verdict *out) {
    for (size_t i = 0; i < count; i++) {
        if (!is_half(&ops[i]) || (out->finding == KV_HISTORY_HALF_BATCH && out->until <= ops[i].ret)) continue;
        out->finding = KV_HISTORY_HALF_BATCH;
        out->until = ops[i].ret;
    }
    return out->finding == KV_HISTORY_HALF_BATCH;
}

void kv_history_judge(kv_history_checker *checker, const kv_history_op *ops, size_t count, kv_history_verdict *out) {
    KV_ASSERT(checker != NULL);
    KV_ASSERT(ops != NULL || count == 0);
    for (size_t i = 0; i < count; i++) {
        check_usage(&ops[i]);
        KV_ASSERT(object_of(&ops[i]) == object_of(&ops[0]));
    }
    *out = (kv_history_verdict){.finding = KV_HISTORY_GOOD, .until = KV_HISTORY_NEVER};
    if (find_half(ops, count, out)) return;
    bool versions = has_versions(ops, count);
    answer found = explain(checker, ops, count, KV_HISTORY_NEVER, versions);
    out->visited = checker->node_count;
    if (found == OUT_OF_BITS) out->finding = KV_HISTORY_TOO_LONG;
    if (found == OUT_OF_BUDGET) out->finding = KV_HISTORY_TOO_HARD;
    if (found != NOT_EXPLAINED) return;
    out->until = first_wrong(checker, ops, count, versions);
    bool by_values = !versions || explain(checker, ops, count, out->until, false) == NOT_EXPLAINED;
    out->finding = by_values ? KV_HISTORY_WRONG_VALUES : KV_HISTORY_WRONG_VERSIONS;
}

const char *kv_history_finding_name(kv_history_finding finding) {
    switch (finding) {
    case KV_HISTORY_GOOD: return "linearizable";
    case KV_HISTORY_WRONG_VALUES: return "not linearizable";
    case KV_HISTORY_WRONG_VERSIONS: return "versions do not fit any order";
    case KV_HISTORY_HALF_BATCH: return "half a batch was visible";
    case KV_HISTORY_TOO_LONG: return "undecided: too many operations";
    case KV_HISTORY_TOO_HARD: return "undecided: the budget is spent";
    }
    return "no finding";
}

/* --- showing it --- */

typedef struct text {
    char *bytes;
    size_t size, used; /* used may go beyond size: how much there would be */
} text;

__attribute__((format(printf, 2, 3))) static void say(text *t, const char *format, ...) {
    va_list arguments;
    bool fits = t->used < t->size;
    va_start(arguments, format);
    int size = vsnprintf(fits ? t->bytes + t->used : NULL, fits ? t->size - t->used : 0, format, arguments);
    va_end(arguments);
    KV_ASSERT(size >= 0);
    t->used += (size_t)size;
}

/* Numbers as they are; what is large is a fold, and better told apart in hexadecimal. */
static void say_value(text *t, kv_history_value v) {
    int64_t number = (int64_t)v.word;
    if (!v.present) say(t, " none");
    else if (number > -1000000000000 && number < 1000000000000) say(t, " %" PRId64, number);
    else say(t, " %016" PRIx64, v.word);
}

static const char *const kind_names[] = {
    [KV_HISTORY_GET] = "get", [KV_HISTORY_PUT] = "put", [KV_HISTORY_DELETE] = "delete", [KV_HISTORY_CAS] = "cas",
    [KV_HISTORY_CAS_VERSION] = "cas", [KV_HISTORY_APPEND] = "append", [KV_HISTORY_INCR] = "incr",
    [KV_HISTORY_TRANSFER] = "transfer", [KV_HISTORY_GET_PAIR] = "get pair", [KV_HISTORY_ROW_APPEND] = "row append",
    [KV_HISTORY_LAST] = "last", [KV_HISTORY_ROWS] = "rows", [KV_HISTORY_DROP] = "drop"};

static void say_asked(text *t, const kv_history_op *o) {
    say(t, "%s", kind_names[o->kind]);
    if (o->kind == KV_HISTORY_CAS) say_value(t, o->expected);
    if (o->kind == KV_HISTORY_CAS_VERSION) say(t, " v%" PRIu64, o->expected_version);
    if (o->kind == KV_HISTORY_CAS || o->kind == KV_HISTORY_CAS_VERSION) say(t, " to");
    if (o->argument.present || o->kind == KV_HISTORY_CAS || o->kind == KV_HISTORY_CAS_VERSION) say_value(t, o->argument);
    if (o->kind == KV_HISTORY_ROWS) say(t, " limit %" PRIu64, o->limit);
}

static void say_answered(text *t, const kv_history_op *o) {
    bool rows = o->kind == KV_HISTORY_LAST || o->kind == KV_HISTORY_ROWS;
    say(t, " ->");
    if (o->failed) say(t, " failed");
    else if (!is_read(o) && !o->answer.present) say(t, " ok");
    if (is_read(o) || o->answer.present || (o->failed && o->kind == KV_HISTORY_CAS)) say_value(t, o->answer);
    if (object_of(o) == 1) say_value(t, o->second);
    if (rows && o->answer.present) say(t, " of %" PRIu64, o->second.word);
    if (o->version != 0) say(t, " v%" PRIu64, o->version);
}

static void say_op(text *t, const kv_history_op *o, uint64_t until) {
    bool known = is_known(o, until);
    say(t, "%8" PRIu64, o->call);
    if (known) say(t, " %8" PRIu64, o->ret);
    else say(t, " %8s", o->ret == KV_HISTORY_NEVER ? "?" : "later");
    say(t, " %" PRIu64 ".%-4" PRIu64 " ", o->client, o->request);
    say_asked(t, o);
    if (known) say_answered(t, o);
    say(t, known && o->ret == until ? "  <\n" : "\n");
}

static bool comes_before(const kv_history_op *a, const kv_history_op *b) {
    if (a->call != b->call) return a->call < b->call;
    if (a->ret != b->ret) return a->ret < b->ret;
    if (a->client != b->client) return a->client < b->client;
    if (a->request != b->request) return a->request < b->request;
    return a < b;
}

size_t kv_history_show(const kv_history_op *ops, size_t count, uint64_t until, char *bytes, size_t size) {
    text t = {.bytes = bytes, .size = size};
    const kv_history_op *last = NULL;
    if (size != 0) bytes[0] = 0;
    for (;;) { /* The next one is looked for each time: a person reads this, and it wants no memory. */
        const kv_history_op *next = NULL;
        for (size_t i = 0; i < count; i++) {
            const kv_history_op *o = &ops[i];
            if (o->call > until || (last != NULL && !comes_before(last, o))) continue;
            if (next == NULL || comes_before(o, next)) next = o;
        }
        if (next == NULL) return t.used;
        say_op(&t, next, until);
        last = next;
    }
}
