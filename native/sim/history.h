/* history.h -- is what clients saw of one object linearizable?
 *
 * An object is what linearizability is promised of: a key, a pair of keys that are always written together, a table. Its
 * history is the list of operations that clients sent, each with when it was called, when the answer came and what it said.
 * The history is good if every operation can be given one moment between call and return at which it happened as a whole, so
 * that all answers are right. How the checker finds out: docs/protocol/checker.md.
 *
 *     object     operations                                               state, at first absent
 *     key        GET PUT DELETE CAS CAS_VERSION APPEND INCR               a word (token, fold or sum), and how many tokens
 *     pair       TRANSFER GET_PAIR                                        two balances
 *     table      ROW_APPEND LAST ROWS DROP                                fold of the rows' tokens, and how many rows
 *
 * Tokens stand for bytes: who writes makes up a number other than 0, unique unless a workload wants few values, and puts it
 * into the bytes. What was appended piece by piece is compared by kv_history_fold.
 *
 * Time is in ticks of whoever keeps the history. An operation that is called at the tick at which another one returned may
 * have happened before it: number the events for ticks, and nothing is forgiven.
 *
 * An operation whose outcome its client never learned has `ret` KV_HISTORY_NEVER: it may have happened at any time after its
 * call, once or not at all. Twice is a violation, and so is once if the client was told that nothing happened (such an
 * operation is left out of the history). A delete that the store makes by itself, at an expiry, is one as well: a DELETE or a
 * CAS to absent, called when the time was over at the earliest.
 *
 * Versions. Answers may carry the version that the store reported: a write's own, a read's that of what it found. Then the
 * order has to fit them, too, which finds what values do not show:
 *   - a version that goes back, or a write whose version is not above all that was seen before its call
 *   - one version that shows two states
 *   - one state under two versions with no write between them: a put that was executed twice
 *   - an order of overlapping writes that the values allow and the versions do not
 * A write that is known without its version counts as one above the version before it, at least.
 *
 * Threads: a checker serves one at a time. */
#ifndef KV_SIM_HISTORY_H
#define KV_SIM_HISTORY_H

#include "kv/base.h"

#define KV_HISTORY_NEVER UINT64_MAX

enum {
    KV_HISTORY_OPS_MAX = 256, /* of one object, reads of unknown outcome not counted; above: undecided */
    KV_HISTORY_BUDGET = 100000 /* states to visit before giving up: what a caller without a wish passes */
};

typedef enum kv_history_kind {
    KV_HISTORY_GET,         /* -> answer */
    KV_HISTORY_PUT,         /* argument */
    KV_HISTORY_DELETE,      /* failed: there was nothing */
    KV_HISTORY_CAS,         /* expected, argument (absent: a delete); failed -> answer is what was found instead */
    KV_HISTORY_CAS_VERSION, /* expected_version (0: absent), argument; failed -> version is what was found (0: absent) */
    KV_HISTORY_APPEND,      /* argument -> answer: how many tokens there are then, absent if the store does not tell */
    KV_HISTORY_INCR,        /* argument -> answer: the sum; nothing counts as 0 */
    KV_HISTORY_TRANSFER,    /* argument, from first to second -> answer, second: both balances; nothing counts as 0 */
    KV_HISTORY_GET_PAIR,    /* -> answer, second */
    KV_HISTORY_ROW_APPEND,  /* argument -> answer: how many rows there are then, absent if the store does not tell */
    KV_HISTORY_LAST,        /* argument: so many rows at most -> answer: fold of those returned; second: their count */
    KV_HISTORY_ROWS,        /* argument: from this row on, the first being 1; limit: so many at most -> as LAST */
    KV_HISTORY_DROP         /* failed: there was nothing */
} kv_history_kind;

/* Absent has word 0. Sums and balances are int64 in two's complement. */
typedef struct kv_history_value {
    uint64_t word;
    bool present;
} kv_history_value;

typedef struct kv_history_op {
    uint64_t call, ret;        /* ret >= call */
    uint64_t client, request;  /* for who reads the trace */
    kv_history_kind kind;
    bool failed;
    kv_history_value expected, argument;
    uint64_t expected_version;
    uint64_t limit;
    kv_history_value answer, second;
    uint64_t version;          /* 0: not told */
} kv_history_op;

typedef enum kv_history_finding {
    KV_HISTORY_GOOD,
    KV_HISTORY_WRONG_VALUES,   /* no order explains the answers */
    KV_HISTORY_WRONG_VERSIONS, /* orders explain the answers, but none the versions beside them */
    KV_HISTORY_HALF_BATCH,     /* two balances that do not add up to zero, or one of them absent */
    KV_HISTORY_TOO_LONG,       /* undecided: more than KV_HISTORY_OPS_MAX operations */
    KV_HISTORY_TOO_HARD        /* undecided: the budget is spent */
} kv_history_finding;

typedef struct kv_history_verdict {
    kv_history_finding finding;
    uint64_t until;   /* wrong: what was called and answered up to this tick is wrong already, whatever came later */
    uint32_t visited; /* states, in the search over the whole history */
} kv_history_verdict;

/* More tokens than one, in order. 0 is the fold of none, and a token that of itself alone. */
static inline uint64_t kv_history_fold(uint64_t so_far, uint64_t token) {
    if (so_far == 0) return token;
    return kv_mix64(so_far * 0x9E3779B97F4A7C15ULL + token);
}

static inline kv_history_value kv_history_present(uint64_t word) { return (kv_history_value){word, true}; }
static inline kv_history_value kv_history_absent(void) { return (kv_history_value){0, false}; }

typedef struct kv_history_checker kv_history_checker;

/* Takes all memory that it will ever use (some 100 bytes a state, which the system gives when it is touched); NULL: there is
 * none. The budget is from 1 to 2^24. */
kv_history_checker *kv_history_checker_new(uint32_t budget);
void kv_history_checker_free(kv_history_checker *checker); /* NULL is fine */

/* The operations, in any order, are borrowed for the call. */
void kv_history_judge(kv_history_checker *checker, const kv_history_op *ops, size_t count, kv_history_verdict *out);

/* The history as a person reads it, a line for each operation called up to `until` (KV_HISTORY_NEVER: all), by call:
 *
 *     call return client operation -> answer
 *       17     21 2.5    put 41 -> ok v7
 *       18      ? 0.3    cas 41 to none
 *       30  later 1.4    get
 *       35     38 0.4    get -> 9 v8  <
 *
 * "?" is an outcome that nobody learned, "later" an answer that came after `until`; "<" marks those that came at `until`.
 * Like snprintf: the size without the NUL, had there been room. */
size_t kv_history_show(const kv_history_op *ops, size_t count, uint64_t until, char *text, size_t size);

const char *kv_history_finding_name(kv_history_finding finding);

#endif
