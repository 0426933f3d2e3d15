/* test_history.c -- the history checker: what a wrong replica would show is found, what a right one shows is not.
 *
 * Histories are written as text, an operation after the other, in ticks:
 *
 *     "0 1 put 7; 2 ? put 8; 3 4 get -> 8 @5"       call, return or ?, what, -> answer, @ version
 *
 *     get -> V          put T             delete -> ok|failed        cas E V -> ok | failed V
 *     append T [-> N]   incr N -> N       drop -> ok|failed          casv E V -> ok|failed (the version: @)
 *     transfer N -> N N     pair -> V V   row T [-> N]      last N -> T...|none       rows F N -> T...|none
 *
 * V is "none", a number, or what a value made of pieces is: 1+2+3.
 *
 * What is known to be wrong comes in pairs: a history and the least change that makes it right, so that nothing is gained by
 * calling everything wrong. Beyond the examples, a second checker judges small histories: it tries every order, keeps
 * values as lists of tokens, and has nothing of the first but the meaning of operations. The two have to agree, on whether
 * and on from when on. */
#include "../sim/history.h"

#include "check.h"

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
enum { AGREE_COUNT = 20000, LONG_COUNT = 1000 };
#else
enum { AGREE_COUNT = 200000, LONG_COUNT = 10000 };
#endif
enum { TEXT_MAX = 512, FEW = 7, MANY = 300 };

static kv_history_checker *checker_new(uint32_t budget) {
    kv_history_checker *checker = kv_history_checker_new(budget);
    KV_ASSERT(checker != NULL);
    return checker;
}

/* --- histories as text --- */

static kv_history_value value_of(const char *word) {
    if (strcmp(word, "none") == 0) return kv_history_absent();
    char *end;
    uint64_t fold = (uint64_t)strtoll(word, &end, 10);
    while (*end == '+') fold = kv_history_fold(fold, (uint64_t)strtoll(end + 1, &end, 10));
    KV_ASSERT(*end == 0);
    return kv_history_present(fold);
}

static const struct {
    const char *word;
    kv_history_kind kind;
    int argument_count;
} spoken[] = {{"get", KV_HISTORY_GET, 0},           {"put", KV_HISTORY_PUT, 1},
              {"delete", KV_HISTORY_DELETE, 0},     {"cas", KV_HISTORY_CAS, 2},
              {"casv", KV_HISTORY_CAS_VERSION, 2},  {"append", KV_HISTORY_APPEND, 1},
              {"incr", KV_HISTORY_INCR, 1},         {"transfer", KV_HISTORY_TRANSFER, 1},
              {"pair", KV_HISTORY_GET_PAIR, 0},     {"row", KV_HISTORY_ROW_APPEND, 1},
              {"last", KV_HISTORY_LAST, 1},         {"rows", KV_HISTORY_ROWS, 2},
              {"drop", KV_HISTORY_DROP, 0}};

static void parse_arguments(kv_history_op *o, int count, kv_history_value *argument) {
    bool cas = o->kind == KV_HISTORY_CAS;
    if (count > 0) o->argument = argument[0];
    if (!cas && o->kind != KV_HISTORY_CAS_VERSION && o->kind != KV_HISTORY_ROWS) return;
    if (cas) o->expected = argument[0];
    if (o->kind == KV_HISTORY_CAS_VERSION) o->expected_version = argument[0].word;
    if (o->kind == KV_HISTORY_ROWS) o->limit = argument[1].word;
    else o->argument = argument[1];
}

static void parse_answer(kv_history_op *o, const char *word, int number) {
    if (strcmp(word, "ok") == 0) return;
    if (strcmp(word, "failed") == 0) {
        o->failed = true;
    } else if (o->kind == KV_HISTORY_LAST || o->kind == KV_HISTORY_ROWS) {
        if (strcmp(word, "none") == 0) return;
        o->answer = kv_history_present(kv_history_fold(o->answer.word, value_of(word).word));
        o->second = kv_history_present(o->second.word + 1);
    } else if (number == 0 || o->failed) {
        o->answer = value_of(word);
    } else {
        o->second = value_of(word);
    }
}

static void parse_op(char *text, kv_history_op *o) {
    char *rest, *word = strtok_r(text, " ", &rest);
    o->call = strtoull(word, NULL, 10);
    word = strtok_r(NULL, " ", &rest);
    o->ret = *word == '?' ? KV_HISTORY_NEVER : strtoull(word, NULL, 10);
    word = strtok_r(NULL, " ", &rest);
    size_t kind = 0;
    while (strcmp(spoken[kind].word, word) != 0) KV_ASSERT(++kind < sizeof spoken / sizeof *spoken);
    o->kind = spoken[kind].kind;

    kv_history_value argument[2] = {{0, false}, {0, false}};
    for (int i = 0; i < spoken[kind].argument_count; i++) argument[i] = value_of(strtok_r(NULL, " ", &rest));
    parse_arguments(o, spoken[kind].argument_count, argument);
    int number = -1; /* of words behind the arrow */
    while ((word = strtok_r(NULL, " ", &rest)) != NULL) {
        if (*word == '@') o->version = strtoull(word + 1, NULL, 10);
        else if (strcmp(word, "->") == 0) number = 0;
        else parse_answer(o, word, number++);
    }
}

static size_t parse(const char *text, kv_history_op *ops) {
    char copy[TEXT_MAX], *rest, *one;
    size_t count = 0;
    KV_ASSERT(strlen(text) < sizeof copy);
    strcpy(copy, text);
    for (one = strtok_r(copy, ";", &rest); one != NULL; one = strtok_r(NULL, ";", &rest)) {
        KV_ASSERT(count < MANY);
        ops[count] = (kv_history_op){.client = count, .request = 1};
        parse_op(one, &ops[count++]);
    }
    return count;
}

/* --- the second checker --- */

enum { ROOM = 16 };
typedef struct naive {
    bool there;
    uint64_t tokens[ROOM]; /* of a key's value or a table's rows; a counter has one */
    uint64_t token_count;
    uint64_t left, right;
    uint64_t write_count;
    uint64_t pinned[ROOM]; /* the version of each write, once an answer has told it; [0] is what there was before any */
    bool is_pinned[ROOM];
} naive;

static uint64_t naive_fold(const naive *n, uint64_t from, uint64_t count) {
    uint64_t fold = 0;
    for (uint64_t i = 0; i < count; i++) fold = kv_history_fold(fold, n->tokens[from + i]);
    return fold;
}

static bool naive_shows(const naive *n, kv_history_value v) {
    if (!n->there) return !v.present;
    return v.present && naive_fold(n, 0, n->token_count) == v.word;
}

static void naive_write(naive *n, uint64_t at, uint64_t token) {
    n->there = true;
    n->tokens[at] = token;
    n->token_count = at + 1;
    n->write_count++;
}

static void naive_clear(naive *n) {
    n->there = false;
    n->token_count = 0;
    n->write_count++;
}

static void naive_assign(naive *n, kv_history_value v) {
    if (v.present) naive_write(n, 0, v.word);
    else naive_clear(n);
}

/* The newest write had this version. False: then there are not enough numbers for the writes between. */
static bool naive_pin(naive *n, uint64_t version) {
    uint64_t at = n->write_count;
    if (n->is_pinned[at]) return n->pinned[at] == version;
    n->is_pinned[at] = true;
    n->pinned[at] = version;
    for (uint64_t i = 0; i < at; i++)
        if (n->is_pinned[i] && version < n->pinned[i] + (at - i)) return false;
    return true;
}

static bool naive_has_version(naive *n, uint64_t version, bool versions) {
    if (version == 0 || !n->there) return version == 0 && !n->there;
    return !versions || naive_pin(n, version);
}

static bool naive_rows(const naive *n, uint64_t from, uint64_t end, const kv_history_op *o) {
    uint64_t count = end > from ? end - from : 0;
    if (count == 0) return !o->answer.present || o->second.word == 0;
    return o->answer.present && o->second.word == count && o->answer.word == naive_fold(n, from, count);
}

static uint64_t least(uint64_t a, uint64_t b) { return a < b ? a : b; }

/* An operation as the naive object does it. False: it would have answered something else. `told`: there is an answer. */
static bool naive_do(naive *n, const kv_history_op *o, bool told, bool versions) {
    uint64_t count = n->token_count;
    switch (o->kind) {
    case KV_HISTORY_GET: return naive_shows(n, o->answer);
    case KV_HISTORY_PUT: naive_write(n, 0, o->argument.word); return true;
    case KV_HISTORY_DROP:
    case KV_HISTORY_DELETE:
        if (told && o->failed != !n->there) return false;
        if (n->there) naive_clear(n);
        return true;
    case KV_HISTORY_CAS:
        if (naive_shows(n, o->expected)) {
            naive_assign(n, o->argument);
            return !told || !o->failed;
        }
        return !told || (o->failed && naive_shows(n, o->answer));
    case KV_HISTORY_CAS_VERSION:
        if (told && o->failed) return o->version != o->expected_version && naive_has_version(n, o->version, versions);
        if (!naive_has_version(n, o->expected_version, versions)) return false; /* unknown ones need not be done at all */
        naive_assign(n, o->argument);
        return true;
    case KV_HISTORY_INCR: naive_write(n, 0, (n->there ? n->tokens[0] : 0) + o->argument.word);
        return !told || o->answer.word == n->tokens[0];
    case KV_HISTORY_APPEND:
    case KV_HISTORY_ROW_APPEND:
        naive_write(n, count, o->argument.word);
        return !told || !o->answer.present || o->answer.word == count + 1;
    case KV_HISTORY_TRANSFER:
        n->there = true;
        n->left -= o->argument.word;
        n->right += o->argument.word;
        n->write_count++;
        return !told || (o->answer.present && o->second.present && o->answer.word == n->left && o->second.word == n->right);
    case KV_HISTORY_GET_PAIR:
        return o->answer.present == n->there && o->second.present == n->there && o->answer.word == n->left &&
               o->second.word == n->right;
    case KV_HISTORY_LAST: return naive_rows(n, count - least(o->argument.word, count), count, o);
    case KV_HISTORY_ROWS: return naive_rows(n, o->argument.word - 1, least(count, o->argument.word - 1 + o->limit), o);
    }
    return false;
}

static bool answered(const kv_history_op *o, uint64_t until) { return o->ret != KV_HISTORY_NEVER && o->ret <= until; }

static bool may_be_next(const kv_history_op *ops, size_t count, uint64_t until, uint32_t done, size_t i) {
    if (done >> i & 1 || ops[i].call > until) return false;
    for (size_t j = 0; j < count; j++)
        if (!(done >> j & 1) && answered(&ops[j], until) && ops[j].ret < ops[i].call) return false;
    return true;
}

/* Whether some order of what is not done explains the answers that had come up to a tick. */
static bool any_order(const kv_history_op *ops, size_t count, uint64_t until, bool versions, uint32_t done, const naive *now) {
    bool complete = true;
    for (size_t i = 0; i < count; i++) complete = complete && (done >> i & 1 || !answered(&ops[i], until));
    if (complete) return true;
    for (size_t i = 0; i < count; i++) {
        if (!may_be_next(ops, count, until, done, i)) continue;
        bool told = answered(&ops[i], until);
        bool asks = ops[i].kind == KV_HISTORY_GET || ops[i].kind == KV_HISTORY_GET_PAIR || ops[i].kind == KV_HISTORY_LAST ||
                    ops[i].kind == KV_HISTORY_ROWS;
        naive next = *now;
        if (!told && asks) continue;
        if (!naive_do(&next, &ops[i], told, versions)) continue;
        if (told && versions && ops[i].version != 0 && !naive_pin(&next, ops[i].version)) continue;
        if (any_order(ops, count, until, versions, done | 1U << i, &next)) return true;
    }
    return false;
}

static bool naive_good(const kv_history_op *ops, size_t count, uint64_t until, bool versions) {
    naive start = {.is_pinned = {true}};
    return any_order(ops, count, until, versions, 0, &start);
}

/* The last answer that came before a tick; NEVER: none did. */
static uint64_t tick_before(const kv_history_op *ops, size_t count, uint64_t until) {
    uint64_t last = KV_HISTORY_NEVER;
    for (size_t i = 0; i < count; i++)
        if (ops[i].ret < until && (last == KV_HISTORY_NEVER || ops[i].ret > last)) last = ops[i].ret;
    return last;
}

static bool has_versions(const kv_history_op *ops, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (ops[i].version != 0 || ops[i].kind == KV_HISTORY_CAS_VERSION) return true;
    return false;
}

/* What a verdict says is what every order says: whether, from when on, and whether it takes the versions to see it. */
static const char *disagreement(const kv_history_op *ops, size_t count, const kv_history_verdict *verdict) {
    bool versions = has_versions(ops, count);
    bool good = naive_good(ops, count, KV_HISTORY_NEVER - 1, versions);
    if (verdict->finding == KV_HISTORY_GOOD) return good ? NULL : "no order explains it, and it is called good";
    if (good) return "an order explains it, and it is not called good";
    if (verdict->finding != KV_HISTORY_HALF_BATCH) {
        uint64_t before = tick_before(ops, count, verdict->until);
        if (naive_good(ops, count, verdict->until, versions)) return "until then it was good";
        if (before != KV_HISTORY_NEVER && !naive_good(ops, count, before, versions)) return "it was wrong before that";
        bool values_good = naive_good(ops, count, verdict->until, false);
        if (values_good != (verdict->finding == KV_HISTORY_WRONG_VERSIONS)) return "values or versions: the other one";
    }
    return NULL;
}

static void print_history(const kv_history_op *ops, size_t count, const kv_history_verdict *verdict) {
    char text[32768];
    kv_history_show(ops, count, verdict->until, text, sizeof text);
    printf("  %s, until %" PRIu64 "\n%s", kv_history_finding_name(verdict->finding), verdict->until, text);
}

/* --- examples --- */

static kv_history_finding judge_text(kv_history_checker *checker, const char *text) {
    kv_history_op ops[MANY];
    kv_history_verdict verdict;
    size_t count = parse(text, ops);
    kv_history_judge(checker, ops, count, &verdict);
    if (count > FEW + 2) return verdict.finding;
    const char *problem = disagreement(ops, count, &verdict);
    CHECK(problem == NULL);
    if (problem != NULL) {
        printf("%s: %s\n", text, problem);
        print_history(ops, count, &verdict);
    }
    return verdict.finding;
}

enum { VALUES = KV_HISTORY_WRONG_VALUES, VERSIONS = KV_HISTORY_WRONG_VERSIONS, HALF = KV_HISTORY_HALF_BATCH };

static const struct {
    const char *what;
    int finding;
    const char *bad, *good;
} wrongs[] = {
    /* a key */
    {"a stale read after an acknowledged write", VALUES,
     "0 1 put 1; 2 3 put 2; 4 5 get -> 1",
     "0 1 put 1; 2 3 put 2; 4 5 get -> 2"},
    {"a value that nobody wrote", VALUES,
     "0 1 put 1; 2 3 get -> 7",
     "0 1 put 1; 2 3 get -> 1"},
    {"an acknowledged write is lost", VALUES,
     "0 1 put 1; 2 3 get -> none",
     "0 ? put 1; 2 3 get -> none"},
    {"an acknowledged write is lost after it was seen", VALUES,
     "0 1 put 1; 2 3 get -> 1; 4 5 get -> none",
     "0 1 put 1; 2 3 get -> 1; 4 5 get -> 1"},
    {"a write comes back after a delete", VALUES,
     "0 1 put 1; 2 3 delete -> ok; 4 5 get -> 1",
     "0 1 put 1; 2 5 delete -> ok; 4 5 get -> 1"},
    {"a deleted write rises again", VALUES,
     "0 1 put 1; 2 3 delete -> ok; 4 5 get -> none; 6 7 get -> 1",
     "0 1 put 1; 2 3 delete -> ok; 4 5 get -> none; 6 7 get -> none"},
    {"a delete finds nothing where something is", VALUES,
     "0 1 put 1; 2 3 delete -> failed",
     "0 2 put 1; 2 3 delete -> failed"},
    {"two deletes of one value", VALUES,
     "0 1 put 1; 2 4 delete -> ok; 3 5 delete -> ok",
     "0 1 put 1; 2 4 delete -> ok; 3 5 delete -> failed"},
    {"a read of what is written later", VALUES,
     "0 1 put 1; 2 3 get -> 2; 4 5 put 2",
     "0 1 put 1; 2 4 get -> 2; 4 5 put 2"},
    {"reads go back and forth", VALUES,
     "0 1 put 1; 2 9 put 2; 3 4 get -> 2; 5 6 get -> 1",
     "0 1 put 1; 2 9 put 2; 3 5 get -> 2; 5 6 get -> 1"},
    {"two readers see two writes in different orders", VALUES,
     "0 9 put 1; 0 9 put 2; 1 2 get -> 1; 3 4 get -> 2; 5 6 get -> 1",
     "0 9 put 1; 0 9 put 2; 1 2 get -> 1; 3 4 get -> 2; 5 6 get -> 2"},
    {"a write of unknown outcome is seen and gone", VALUES,
     "0 1 put 1; 2 ? put 2; 3 4 get -> 2; 5 6 get -> 1",
     "0 1 put 1; 2 ? put 2; 3 4 get -> 1; 5 6 get -> 2"},
    {"a put is executed a second time by its retry", VALUES,
     "0 ? put 1; 2 3 get -> 1; 4 5 put 2; 6 7 get -> 1",
     "0 ? put 1; 2 3 get -> 1; 4 7 put 2; 6 7 get -> 1"},
    {"an acknowledged put is executed again", VALUES,
     "0 1 put 1; 2 3 put 2; 4 5 get -> 2; 6 7 get -> 1",
     "0 1 put 1; 2 3 put 2; 4 5 get -> 2; 6 7 get -> 1; 5 ? put 1"},
    {"it expires before its time", VALUES,
     "0 1 put 1; 2 3 get -> none; 4 ? cas 1 none",
     "0 1 put 1; 2 3 get -> none; 3 ? cas 1 none"},
    {"an expiry takes a value that it was not meant for", VALUES,
     "0 1 put 1; 2 3 put 2; 2 ? cas 1 none; 4 5 get -> none",
     "0 1 put 1; 2 3 put 2; 2 ? cas 2 none; 4 5 get -> none"},
    /* conditions */
    {"two winners of one cas", VALUES,
     "0 1 put 1; 2 5 cas 1 2 -> ok; 3 6 cas 1 3 -> ok",
     "0 1 put 1; 2 5 cas 1 2 -> ok; 3 6 cas 1 3 -> failed 2"},
    {"two creators", VALUES,
     "0 3 cas none 1 -> ok; 1 4 cas none 2 -> ok",
     "0 3 cas none 1 -> ok; 1 4 cas none 2 -> failed 1"},
    {"a cas succeeds on what was there before", VALUES,
     "0 1 put 1; 2 3 put 2; 4 5 cas 1 3 -> ok",
     "0 1 put 1; 2 3 put 2; 4 5 cas 2 3 -> ok"},
    {"a cas fails that had to succeed", VALUES,
     "0 1 put 1; 2 3 cas 1 2 -> failed 1",
     "0 1 put 1; 2 3 cas 3 2 -> failed 1"},
    {"a cas fails though the condition is true again", VALUES,
     "0 1 put 1; 2 3 put 2; 4 5 put 1; 6 7 cas 1 9 -> failed 2",
     "0 1 put 1; 2 3 put 2; 4 6 put 1; 6 7 cas 1 9 -> failed 2"},
    {"a failed cas shows what was gone before its call", VALUES,
     "0 1 put 1; 2 3 put 2; 4 5 cas 9 3 -> failed 1",
     "0 1 put 1; 2 4 put 2; 4 5 cas 9 3 -> failed 1"},
    {"a failed cas shows what came after its return", VALUES,
     "0 1 put 1; 2 3 cas 9 3 -> failed 2; 4 5 put 2",
     "0 1 put 1; 2 4 cas 9 3 -> failed 2; 4 5 put 2"},
    {"a failed cas has written", VALUES,
     "0 1 put 1; 2 3 cas 2 3 -> failed 1; 4 5 get -> 3",
     "0 1 put 1; 2 ? cas 1 3; 4 5 get -> 3"},
    {"a cas by version has two winners", VERSIONS,
     "0 1 put 1 @3; 2 5 casv 3 2 -> ok @4; 3 6 casv 3 4 -> ok @5",
     "0 1 put 1 @3; 2 5 casv 3 2 -> ok @4; 3 6 casv 3 4 -> failed @4"},
    {"a cas by version fails on a version that was replaced", VERSIONS,
     "0 1 put 1 @3; 2 3 put 2 @4; 4 5 casv 4 3 -> failed @3",
     "0 1 put 1 @3; 2 4 put 2 @4; 4 5 casv 4 3 -> failed @3"},
    {"a cas by version of something absent", VALUES,
     "0 1 put 1 @3; 2 3 casv 0 2 -> ok @4",
     "0 1 put 1 @3; 2 3 casv 3 2 -> ok @4"},
    {"a cas by version fails on the very version", VALUES,
     "0 1 put 1 @3; 2 3 casv 3 2 -> failed @3",
     "0 1 put 1 @3; 2 3 casv 2 2 -> failed @3"},
    /* pieces */
    {"an append is lost in the middle", VALUES,
     "0 1 append 1; 2 3 append 2; 4 5 append 3; 6 7 get -> 1+3",
     "0 1 append 1; 2 ? append 2; 4 5 append 3; 6 7 get -> 1+3"},
    {"an append happens twice", VALUES,
     "0 1 put 1; 2 ? append 2; 4 5 get -> 1+2+2",
     "0 1 put 1; 2 ? append 2; 4 5 get -> 1+2+2; 3 ? append 2"},
    {"an append happens twice, as its length tells", VALUES,
     "0 1 append 1 -> 1; 2 3 append 2 -> 3",
     "0 1 append 1 -> 1; 2 3 append 2 -> 2"},
    {"appends in the wrong order", VALUES,
     "0 1 append 1; 2 3 append 2; 4 5 get -> 2+1",
     "0 2 append 1; 2 3 append 2; 4 5 get -> 2+1"},
    {"an append survives a put", VALUES,
     "0 1 put 1; 2 3 append 2; 4 5 put 3; 6 7 get -> 3+2",
     "0 1 put 1; 2 5 append 2; 4 5 put 3; 6 7 get -> 3+2"},
    /* versions */
    {"a version that goes back", VERSIONS,
     "0 1 put 1 @5; 2 3 put 2 @4",
     "0 1 put 1 @5; 2 3 put 2 @6"},
    {"one version for two writes", VERSIONS,
     "0 3 put 1 @5; 1 4 put 2 @5",
     "0 3 put 1 @5; 1 4 put 2 @4"},
    {"one version shows two states", VERSIONS,
     "0 ? put 1; 0 ? put 2; 3 4 get -> 1 @5; 5 6 get -> 2 @5",
     "0 ? put 1; 0 ? put 2; 3 4 get -> 1 @5; 5 6 get -> 2 @6"},
    {"a read's version goes back", VERSIONS,
     "0 1 put 1 @5; 2 ? put 1; 3 4 get -> 1 @7; 5 6 get -> 1 @5",
     "0 1 put 1 @5; 2 ? put 1; 3 4 get -> 1 @5; 5 6 get -> 1 @7"},
    {"a write below a version that was seen before its call", VERSIONS,
     "0 ? put 1; 1 2 get -> 1 @7; 3 4 put 2 @6",
     "0 ? put 1; 1 2 get -> 1 @7; 3 4 put 2 @8"},
    {"a put is executed twice, as its version tells", VERSIONS,
     "0 1 put 1 @5; 2 3 get -> 1 @6",
     "0 1 put 1 @5; 2 3 get -> 1 @5"},
    {"of two writes at once, versions say another one came last", VERSIONS,
     "0 5 put 1 @5; 1 6 put 2 @6; 7 8 get -> 1",
     "0 5 put 1 @5; 1 6 put 2 @6; 7 8 get -> 2"},
    {"no version is left for a write between", VERSIONS,
     "0 1 put 1 @5; 2 3 put 2; 4 5 put 3 @6",
     "0 1 put 1 @5; 2 3 put 2; 4 5 put 3 @7"},
    /* a counter */
    {"a retry increments twice", VALUES,
     "0 5 incr 1 -> 1; 6 7 get -> 2",
     "0 5 incr 1 -> 1; 6 7 get -> 2; 1 ? incr 1"},
    {"a retry of unknown outcome increments twice", VALUES,
     "0 1 incr 1 -> 1; 2 ? incr 5; 3 4 get -> 6; 5 6 get -> 11",
     "0 1 incr 1 -> 1; 2 ? incr 5; 3 4 get -> 1; 5 6 get -> 6"},
    {"two increments with one sum", VALUES,
     "0 3 incr 1 -> 1; 1 4 incr 1 -> 1",
     "0 3 incr 1 -> 1; 1 4 incr 1 -> 2"},
    {"an increment is lost", VALUES,
     "0 1 incr 5 -> 5; 2 3 incr 1 -> 1",
     "0 1 incr 5 -> 5; 2 3 incr 1 -> 6"},
    {"a counter goes on after its delete", VALUES,
     "0 1 incr 5 -> 5; 2 3 delete -> ok; 4 5 incr 1 -> 6",
     "0 1 incr 5 -> 5; 2 3 delete -> ok; 4 5 incr 1 -> 1"},
    /* a pair */
    {"half a transfer is visible", HALF,
     "0 1 transfer 5 -> -5 5; 2 3 pair -> -5 0",
     "0 1 transfer 5 -> -5 5; 2 3 pair -> -5 5"},
    {"one half is absent", HALF,
     "0 1 transfer 5 -> -5 5; 2 3 pair -> none 0",
     "0 2 transfer 5 -> -5 5; 2 3 pair -> none none"},
    {"a transfer is lost", VALUES,
     "0 1 transfer 5 -> -5 5; 2 3 transfer 1 -> -6 6; 4 5 pair -> -5 5",
     "0 1 transfer 5 -> -5 5; 2 4 transfer 1 -> -6 6; 4 5 pair -> -5 5"},
    {"a transfer happens twice", VALUES,
     "0 1 transfer 5 -> -5 5; 2 3 pair -> -10 10",
     "0 1 transfer 5 -> -5 5; 2 3 pair -> -10 10; 0 ? transfer 5"},
    /* a table */
    {"a row vanishes", VALUES,
     "0 1 row 1; 2 3 row 2; 4 5 last 9 -> 1 2; 6 7 last 9 -> 1",
     "0 1 row 1; 2 3 row 2; 4 5 last 9 -> 1 2; 6 7 last 9 -> 1 2"},
    {"rows in the wrong order", VALUES,
     "0 1 row 1; 2 3 row 2; 4 5 rows 1 9 -> 2 1",
     "0 1 row 1; 2 3 row 2; 4 5 rows 1 9 -> 1 2"},
    {"a row is appended twice", VALUES,
     "0 ? row 1; 2 3 last 9 -> 1 1",
     "0 ? row 1; 2 3 last 9 -> 1"},
    {"the last row is not the last", VALUES,
     "0 1 row 1; 2 3 row 2; 4 5 row 3; 6 7 last 2 -> 1 2",
     "0 1 row 1; 2 3 row 2; 4 5 row 3; 6 7 last 2 -> 2 3"},
    {"a page skips a row", VALUES,
     "0 1 row 1; 2 3 row 2; 4 5 row 3; 6 7 row 4; 8 9 rows 2 2 -> 2 4",
     "0 1 row 1; 2 3 row 2; 4 5 row 3; 6 7 row 4; 8 9 rows 2 2 -> 2 3"},
    {"two rows with one number", VALUES,
     "0 3 row 1 -> 1; 1 4 row 2 -> 1",
     "0 3 row 1 -> 1; 1 4 row 2 -> 2"},
    {"rows outlive their table", VALUES,
     "0 1 row 1; 2 3 drop -> ok; 4 5 row 2; 6 7 last 9 -> 1 2",
     "0 1 row 1; 2 3 drop -> ok; 4 5 row 2; 6 7 last 9 -> 2"},
    {"a row of a table that was dropped", VALUES,
     "0 1 row 1; 2 3 row 2; 4 5 drop -> ok; 6 7 row 3; 8 9 rows 1 1 -> 1",
     "0 1 row 1; 2 3 row 2; 4 5 drop -> ok; 6 7 row 3; 8 9 rows 1 1 -> 3"},
};

TEST(what_a_wrong_replica_shows_is_found) {
    kv_history_checker *checker = checker_new(KV_HISTORY_BUDGET);
    for (size_t i = 0; i < sizeof wrongs / sizeof *wrongs; i++) {
        int bad = judge_text(checker, wrongs[i].bad), good = judge_text(checker, wrongs[i].good);
        CHECK_EQ(bad, wrongs[i].finding);
        CHECK_EQ(good, KV_HISTORY_GOOD);
        if (bad != wrongs[i].finding || good != KV_HISTORY_GOOD) printf("  %s\n", wrongs[i].what);
    }
    kv_history_checker_free(checker);
}

static const char *const rights[] = {
    "",
    "0 ? put 1",
    "0 1 get -> none",
    "0 0 put 1; 0 0 get -> none; 0 0 get -> 1",
    "0 1 put 1; 2 3 get -> 1; 4 5 delete -> ok; 6 7 delete -> failed; 8 9 get -> none",
    "0 1 cas none 1 -> ok; 2 3 cas 1 2 -> ok; 4 5 cas 1 3 -> failed 2; 6 7 cas 2 none -> ok; 8 9 get -> none",
    "0 1 put 1; 2 3 cas 9 9 -> failed 1; 4 5 cas none 9 -> failed 1",
    "0 1 put 1; 2 3 put 2; 4 5 put 1; 6 7 cas 1 3 -> ok; 8 9 get -> 3",
    "0 1 append 1 -> 1; 2 3 append 2 -> 2; 4 5 get -> 1+2; 6 7 put 9; 8 9 append 3 -> 2; 10 11 get -> 9+3",
    "0 1 incr 5 -> 5; 2 3 incr -7 -> -2; 4 5 get -> -2; 6 7 delete -> ok; 8 9 incr 1 -> 1",
    "0 1 pair -> none none; 2 3 transfer 3 -> -3 3; 4 5 transfer -3 -> 0 0; 6 7 pair -> 0 0",
    "0 1 last 3 -> none; 2 3 row 1 -> 1; 4 5 row 2 -> 2; 6 7 last 1 -> 2; 8 9 last 3 -> 1 2; 10 11 rows 2 1 -> 2",
    "0 1 row 1; 2 3 rows 2 9 -> none; 4 5 last 0 -> none; 6 7 drop -> ok; 8 9 drop -> failed; 10 11 rows 1 9 -> none",
    "0 1 put 1 @5; 2 3 get -> 1 @5; 4 5 delete -> ok @9; 6 7 get -> none; 8 9 casv 0 2 -> ok @10; 10 11 casv 10 3 -> ok @11",
    /* unknown outcomes that happened: at once, late, in any order, and those that did not */
    "0 ? put 1; 5 6 get -> none; 7 8 get -> 1",
    "0 ? put 1; 0 ? put 2; 5 6 get -> 2; 7 8 get -> 1; 9 10 get -> 1",
    "0 1 put 1; 2 ? delete; 3 4 get -> 1; 5 6 get -> none; 7 8 delete -> failed",
    "0 1 put 1; 2 ? cas 1 2; 3 4 put 3; 5 6 put 1; 7 8 get -> 2",
    "0 1 put 1; 2 ? cas 9 2; 3 4 get -> 1",
    "0 1 incr 1 -> 1; 2 ? incr 1; 3 ? incr 1; 4 5 incr 1 -> 3; 6 7 get -> 4",
    "0 ? transfer 2; 0 ? transfer 3; 1 2 pair -> -3 3; 3 4 transfer 1 -> -6 6",
    "0 ? row 1; 0 ? row 2; 0 ? row 3; 1 2 row 4 -> 3; 3 4 last 9 -> 3 1 4; 5 6 last 2 -> 4 2",
    "0 1 row 1; 2 ? drop; 3 4 last 1 -> 1; 5 6 row 2 -> 1; 7 8 last 9 -> 2",
    "0 ? append 1; 1 2 append 2 -> 2; 3 4 get -> 1+2",
    "0 1 put 1 @5; 2 ? put 2; 3 4 get -> 2 @8; 5 6 put 3 @9",
    "0 1 put 1 @5; 2 ? put 1; 3 4 casv 7 2 -> ok @8; 5 6 get -> 2 @8",
    "0 1 put 1 @5; 2 ? casv 5 2; 3 4 casv 5 3 -> failed @6; 5 6 get -> 2 @6",
    "0 ? get; 1 ? put 1; 2 ? get",
};

TEST(what_a_right_replica_shows_is_good) {
    kv_history_checker *checker = checker_new(KV_HISTORY_BUDGET);
    for (size_t i = 0; i < sizeof rights / sizeof *rights; i++) {
        kv_history_finding finding = judge_text(checker, rights[i]);
        CHECK_EQ(finding, KV_HISTORY_GOOD);
        if (finding != KV_HISTORY_GOOD) printf("  %s\n", rights[i]);
    }
    kv_history_checker_free(checker);
}

/* --- chance --- */

static uint64_t random_state;

static uint64_t below(uint64_t bound) {
    random_state = random_state * 6364136223846793005ULL + 1442695040888963407ULL;
    return (random_state >> 33) % bound;
}

static bool chance(uint64_t percent) { return below(100) < percent; }

enum object { REGISTER, FEW_VALUES, COUNTER, PAIR, TABLE, OBJECTS };

/* How a history is to be. */
typedef struct recipe {
    enum object object;
    uint64_t versions, unknown; /* percent of answers with a version; of operations without an outcome */
    uint64_t spread; /* an operation begins and ends at most so long before and after its moment; moments are 10 apart */
} recipe;

/* A right replica: answers, and becomes what it is after the operation. */
typedef struct server {
    uint64_t tokens[MANY], token_count;
    int64_t left;
    bool there;
    uint64_t version, next_token;
} server;

static uint64_t server_fold(const server *s, uint64_t from) {
    uint64_t fold = 0;
    for (uint64_t i = from; i < s->token_count; i++) fold = kv_history_fold(fold, s->tokens[i]);
    return fold;
}

static kv_history_value server_value(const server *s) {
    return s->there ? kv_history_present(server_fold(s, 0)) : kv_history_absent();
}

static void server_set(server *s, kv_history_value v) {
    s->there = v.present;
    s->tokens[0] = v.word;
    s->token_count = v.present;
    s->version += 1 + below(2);
}

static void server_add(server *s, kv_history_op *o) {
    s->there = true;
    s->tokens[s->token_count++] = o->argument.word;
    s->version += 1 + below(2);
    if (chance(50)) o->answer = kv_history_present(s->token_count);
}

static void server_show_rows(const server *s, kv_history_op *o, uint64_t from) {
    if (!s->there || from >= s->token_count) return;
    o->answer = kv_history_present(server_fold(s, from));
    o->second = kv_history_present(s->token_count - from);
}

static void server_condition(server *s, kv_history_op *o) {
    kv_history_value now = server_value(s);
    bool by_version = o->kind == KV_HISTORY_CAS_VERSION;
    uint64_t version = s->there ? s->version : 0;
    o->failed = by_version ? version != o->expected_version
                           : now.present != o->expected.present || now.word != o->expected.word;
    if (!o->failed) server_set(s, o->argument);
    else if (by_version) o->version = version;
    else o->answer = now;
}

static void server_do(server *s, kv_history_op *o) {
    kv_history_value now = server_value(s);
    switch (o->kind) {
    case KV_HISTORY_GET: o->answer = now; break;
    case KV_HISTORY_PUT: server_set(s, o->argument); break;
    case KV_HISTORY_DROP:
    case KV_HISTORY_DELETE:
        o->failed = !s->there;
        if (s->there) server_set(s, kv_history_absent());
        break;
    case KV_HISTORY_CAS:
    case KV_HISTORY_CAS_VERSION: server_condition(s, o); break;
    case KV_HISTORY_APPEND:
    case KV_HISTORY_ROW_APPEND: server_add(s, o); break;
    case KV_HISTORY_INCR:
        server_set(s, kv_history_present(now.word + o->argument.word));
        o->answer = server_value(s);
        break;
    case KV_HISTORY_TRANSFER:
        s->there = true;
        s->left -= (int64_t)o->argument.word;
        s->version += 1 + below(2);
        /* fall through */
    case KV_HISTORY_GET_PAIR:
        o->answer = (kv_history_value){(uint64_t)s->left, s->there};
        o->second = (kv_history_value){(uint64_t)-s->left, s->there};
        break;
    case KV_HISTORY_LAST: server_show_rows(s, o, s->token_count - least(o->argument.word, s->token_count)); break;
    case KV_HISTORY_ROWS: server_show_rows(s, o, o->argument.word - 1); break;
    }
}

static kv_history_value some_token(server *s, enum object object) {
    return kv_history_present(object == FEW_VALUES ? 1 + below(2) : ++s->next_token);
}

/* What a client asks next. */
static void ask(server *s, const recipe *r, kv_history_op *o) {
    static const kv_history_kind menu[OBJECTS][8] = {
        [REGISTER] = {KV_HISTORY_GET, KV_HISTORY_GET, KV_HISTORY_GET, KV_HISTORY_PUT, KV_HISTORY_PUT, KV_HISTORY_DELETE,
                      KV_HISTORY_CAS, KV_HISTORY_APPEND},
        [FEW_VALUES] = {KV_HISTORY_GET, KV_HISTORY_GET, KV_HISTORY_PUT, KV_HISTORY_PUT, KV_HISTORY_CAS, KV_HISTORY_CAS,
                        KV_HISTORY_DELETE, KV_HISTORY_CAS_VERSION},
        [COUNTER] = {KV_HISTORY_GET, KV_HISTORY_GET, KV_HISTORY_GET, KV_HISTORY_INCR, KV_HISTORY_INCR, KV_HISTORY_INCR,
                     KV_HISTORY_INCR, KV_HISTORY_DELETE},
        [PAIR] = {KV_HISTORY_GET_PAIR, KV_HISTORY_GET_PAIR, KV_HISTORY_GET_PAIR, KV_HISTORY_GET_PAIR,
                  KV_HISTORY_TRANSFER, KV_HISTORY_TRANSFER, KV_HISTORY_TRANSFER, KV_HISTORY_TRANSFER},
        [TABLE] = {KV_HISTORY_ROW_APPEND, KV_HISTORY_ROW_APPEND, KV_HISTORY_ROW_APPEND, KV_HISTORY_LAST,
                   KV_HISTORY_LAST, KV_HISTORY_ROWS, KV_HISTORY_ROWS, KV_HISTORY_DROP}};
    do o->kind = menu[r->object][below(8)];
    while ((o->kind == KV_HISTORY_CAS_VERSION && r->versions == 0) || (o->kind == KV_HISTORY_DROP && !chance(30)));
    switch (o->kind) {
    case KV_HISTORY_CAS:
        o->expected = chance(70) ? server_value(s) : r->object == FEW_VALUES ? some_token(s, FEW_VALUES) : kv_history_absent();
        o->argument = some_token(s, r->object);
        break;
    case KV_HISTORY_CAS_VERSION:
        o->expected_version = s->there && chance(90) ? s->version - (s->version > 1 && chance(30)) : 0;
        o->argument = some_token(s, r->object);
        break;
    case KV_HISTORY_PUT:
    case KV_HISTORY_APPEND:
    case KV_HISTORY_ROW_APPEND: o->argument = some_token(s, r->object); break;
    case KV_HISTORY_INCR:
    case KV_HISTORY_TRANSFER: o->argument = kv_history_present(1 + below(3)); break;
    case KV_HISTORY_LAST: o->argument = kv_history_present(chance(50) ? MANY : below(4)); break;
    case KV_HISTORY_ROWS:
        o->argument = kv_history_present(1 + below(3));
        o->limit = MANY;
        break;
    default: break;
    }
}

static void answer(server *s, const recipe *r, kv_history_op *o) {
    server_do(s, o);
    bool told = o->kind == KV_HISTORY_CAS_VERSION || chance(r->versions);
    if (told && s->there) o->version = s->version;
    if (!o->failed && o->kind == KV_HISTORY_DELETE && told) o->version = s->version;
}

/* A right replica is asked one thing after the other, each at some moment between its call and its return. */
static void make(const recipe *r, kv_history_op *ops, size_t count) {
    server s = {.version = below(3)};
    for (size_t i = 0; i < count; i++) {
        kv_history_op *o = &ops[i];
        uint64_t moment = 1000 + 10 * i;
        *o = (kv_history_op){.client = i % 5, .request = i};
        o->call = moment - below(r->spread + 1);
        o->ret = moment + below(r->spread + 1);
        ask(&s, r, o);
        bool lost = chance(r->unknown);
        if (!lost || chance(50)) answer(&s, r, o);
        if (!lost) continue;
        o->ret = KV_HISTORY_NEVER;
        o->failed = false;
        o->version = 0;
        o->answer = o->second = kv_history_absent();
    }
}

static recipe some_recipe(uint64_t spread_max) {
    recipe r = {.object = (enum object)below(OBJECTS), .spread = 1 + below(spread_max)};
    r.versions = below(3) * 50;
    r.unknown = chance(40) ? 0 : below(40);
    return r;
}

static void spoil_value(kv_history_op *o, kv_history_op *other) {
    switch (below(4)) {
    case 0: o->answer = other->answer; break;
    case 1: o->failed = o->kind == KV_HISTORY_CAS || o->kind == KV_HISTORY_DELETE || o->kind == KV_HISTORY_DROP ||
                        o->kind == KV_HISTORY_CAS_VERSION ? !o->failed : false; break;
    case 2: if (o->answer.present) o->answer.word += below(3) - 1; break;
    default:
        o->answer = other->answer;
        o->second = other->second;
    }
}

/* One answer becomes another one, or comes at another time. It may still be right. */
static void spoil(kv_history_op *ops, size_t count) {
    kv_history_op *o = &ops[below(count)], *other = &ops[below(count)];
    uint64_t moved = below(30);
    switch (below(6)) {
    case 0: o->call = o->call < moved ? 0 : o->call - moved; break;
    case 1: o->call = least(o->ret, o->call + moved); break;
    case 2: if (o->ret != KV_HISTORY_NEVER) o->ret = o->call; break;
    case 3: if (o->version != 0) o->version += below(5) > 2 ? 1 : o->version > 1 ? -1ULL : 0; break;
    default: spoil_value(o, other);
    }
}

static void shuffle(kv_history_op *ops, size_t count) {
    for (size_t i = count; i > 1; i--) {
        size_t j = below(i);
        kv_history_op swapped = ops[j];
        ops[j] = ops[i - 1];
        ops[i - 1] = swapped;
    }
}

TEST(every_order_says_the_same) {
    kv_history_checker *checker = checker_new(KV_HISTORY_BUDGET);
    uint64_t found[KV_HISTORY_TOO_HARD + 1] = {0}, late_count = 0;
    for (uint64_t seed = 0; seed < AGREE_COUNT; seed++) {
        kv_history_op ops[FEW];
        kv_history_verdict verdict;
        random_state = seed;
        recipe r = some_recipe(30);
        size_t count = 1 + below(FEW);
        make(&r, ops, count);
        for (uint64_t i = below(7); i > 0; i--) spoil(ops, count);
        shuffle(ops, count);
        kv_history_judge(checker, ops, count, &verdict);
        const char *problem = disagreement(ops, count, &verdict);
        CHECK(problem == NULL);
        if (problem != NULL) {
            printf("seed %" PRIu64 ": %s\n", seed, problem);
            print_history(ops, count, &verdict);
            break;
        }
        found[verdict.finding]++;
        late_count += verdict.until != KV_HISTORY_NEVER && tick_before(ops, count, verdict.until) != KV_HISTORY_NEVER;
    }
    /* Else the agreement would say little. */
    CHECK(found[KV_HISTORY_GOOD] > AGREE_COUNT / 4);
    CHECK(found[KV_HISTORY_WRONG_VALUES] > AGREE_COUNT / 10);
    CHECK(found[KV_HISTORY_WRONG_VERSIONS] > AGREE_COUNT / 50);
    CHECK(found[KV_HISTORY_HALF_BATCH] > AGREE_COUNT / 100);
    CHECK(late_count > AGREE_COUNT / 10);
    kv_history_checker_free(checker);
}

static bool shows_value(const kv_history_op *o) {
    return o->ret != KV_HISTORY_NEVER && o->answer.present &&
           (o->kind == KV_HISTORY_GET || o->kind == KV_HISTORY_LAST || o->kind == KV_HISTORY_ROWS);
}

TEST(long_histories_of_a_right_replica_are_good_and_a_foreign_value_in_them_is_not) {
    enum { LONG = 60 };
    kv_history_checker *checker = checker_new(KV_HISTORY_BUDGET);
    uint64_t wrong_count = 0;
    for (uint64_t seed = 0; seed < LONG_COUNT; seed++) {
        kv_history_op ops[LONG];
        kv_history_verdict verdict;
        random_state = seed;
        recipe r = some_recipe(40);
        r.unknown /= 4;
        size_t count = 30 + below(LONG - 29);
        make(&r, ops, count);
        kv_history_judge(checker, ops, count, &verdict);
        CHECK_EQ(verdict.finding, KV_HISTORY_GOOD);
        if (check_failed_here) printf("seed %" PRIu64 "\n", seed);
        if (check_failed_here) print_history(ops, count, &verdict);
        if (check_failed_here) break;
        kv_history_op *o = &ops[below(count)];
        if (!shows_value(o)) continue;
        o->answer.word ^= 0x5a5a5a5a00000000;
        kv_history_judge(checker, ops, count, &verdict);
        CHECK_EQ(verdict.finding, KV_HISTORY_WRONG_VALUES);
        CHECK_EQ(verdict.until, o->ret);
        wrong_count++;
    }
    CHECK(wrong_count > LONG_COUNT / 8);
    kv_history_checker_free(checker);
}

/* --- bounds --- */

TEST(as_many_operations_as_promised_are_judged_and_no_more) {
    kv_history_checker *checker = checker_new(KV_HISTORY_BUDGET);
    kv_history_op ops[MANY];
    kv_history_verdict verdict;
    for (enum object object = 0; object < OBJECTS; object++) {
        recipe r = {.object = object, .versions = 50, .spread = 20};
        random_state = object;
        make(&r, ops, MANY);
        kv_history_judge(checker, ops, KV_HISTORY_OPS_MAX, &verdict);
        CHECK_EQ(verdict.finding, KV_HISTORY_GOOD);
        kv_history_judge(checker, ops, KV_HISTORY_OPS_MAX + 1, &verdict);
        CHECK_EQ(verdict.finding, KV_HISTORY_TOO_LONG);
    }
    kv_history_checker_free(checker);
}

TEST(reads_of_unknown_outcome_take_no_room) {
    kv_history_checker *checker = checker_new(KV_HISTORY_BUDGET);
    kv_history_op ops[MANY];
    kv_history_verdict verdict;
    for (size_t i = 0; i < MANY; i++) ops[i] = (kv_history_op){.kind = KV_HISTORY_GET, .ret = KV_HISTORY_NEVER};
    ops[MANY - 1] = (kv_history_op){.kind = KV_HISTORY_GET, .answer = kv_history_present(1)};
    kv_history_judge(checker, ops, MANY, &verdict);
    CHECK_EQ(verdict.finding, KV_HISTORY_WRONG_VALUES);
    kv_history_checker_free(checker);
}

/* Forty transfers nobody knows the outcome of, of amounts whose sums all differ, and a balance that none of them is. */
static size_t make_hard(kv_history_op *ops) {
    size_t count = 40;
    for (size_t i = 0; i < count; i++)
        ops[i] = (kv_history_op){.ret = KV_HISTORY_NEVER, .kind = KV_HISTORY_TRANSFER, .request = i,
                                 .argument = kv_history_present(2ULL << i)};
    ops[count] = (kv_history_op){.call = 1, .ret = 2, .kind = KV_HISTORY_GET_PAIR, .answer = kv_history_present(-1ULL),
                                 .second = kv_history_present(1)};
    return count + 1;
}

TEST(a_hard_history_ends_undecided_and_the_checker_goes_on) {
    kv_history_checker *checker = checker_new(5000);
    kv_history_op ops[MANY];
    kv_history_verdict verdict;
    size_t count = make_hard(ops);
    for (int i = 0; i < 3; i++) {
        kv_history_judge(checker, ops, count, &verdict);
        CHECK_EQ(verdict.finding, KV_HISTORY_TOO_HARD);
        CHECK_EQ(verdict.visited, 5000);
        CHECK_EQ(judge_text(checker, wrongs[0].bad), KV_HISTORY_WRONG_VALUES);
        CHECK_EQ(judge_text(checker, wrongs[0].good), KV_HISTORY_GOOD);
    }
    kv_history_checker_free(checker);
}

TEST(a_budget_of_any_size_is_kept) {
    kv_history_op ops[MANY];
    kv_history_verdict verdict;
    size_t count = make_hard(ops);
    for (uint32_t budget = 1; budget < 1100; budget += budget < 140 ? 1 : 61) {
        kv_history_checker *checker = checker_new(budget);
        kv_history_judge(checker, ops, count, &verdict);
        CHECK_EQ(verdict.finding, KV_HISTORY_TOO_HARD);
        CHECK_EQ(verdict.visited, budget);
        kv_history_checker_free(checker);
    }
}

/* Eight writes at once: a set of them that has happened, and which was the last. Far more ways lead to each of these. */
TEST(nothing_is_visited_twice) {
    kv_history_checker *checker = checker_new(KV_HISTORY_BUDGET);
    kv_history_op ops[MANY];
    kv_history_verdict verdict;
    for (size_t i = 0; i < 8; i++)
        ops[i] = (kv_history_op){.ret = 10, .kind = KV_HISTORY_PUT, .argument = kv_history_present(i + 1)};
    ops[8] = (kv_history_op){.call = 11, .ret = 12, .kind = KV_HISTORY_GET, .answer = kv_history_present(9)};
    kv_history_judge(checker, ops, 9, &verdict);
    CHECK_EQ(verdict.finding, KV_HISTORY_WRONG_VALUES);
    CHECK_EQ(verdict.visited, 1 + 8 * 128);
    kv_history_checker_free(checker);
}

/* Without the shortcut for those that do the same there would be 2^40 sets of them. */
TEST(retries_that_do_the_same_cost_little) {
    kv_history_checker *checker = checker_new(KV_HISTORY_BUDGET);
    kv_history_op ops[MANY];
    kv_history_verdict verdict;
    for (size_t i = 0; i < 40; i++)
        ops[i] = (kv_history_op){.ret = KV_HISTORY_NEVER, .kind = KV_HISTORY_INCR, .argument = kv_history_present(1)};
    ops[40] = (kv_history_op){.call = 1, .ret = 2, .kind = KV_HISTORY_GET, .answer = kv_history_present(41)};
    kv_history_judge(checker, ops, 41, &verdict);
    CHECK_EQ(verdict.finding, KV_HISTORY_WRONG_VALUES);
    CHECK(verdict.visited < 50);
    ops[40].answer.word = 40;
    kv_history_judge(checker, ops, 41, &verdict);
    CHECK_EQ(verdict.finding, KV_HISTORY_GOOD);
    kv_history_checker_free(checker);
}

/* Without dominance every set of the puts that nobody saw would be a state of its own behind the acknowledged one. */
TEST(writes_that_nobody_saw_cost_little) {
    kv_history_checker *checker = checker_new(KV_HISTORY_BUDGET);
    kv_history_op ops[MANY];
    kv_history_verdict verdict;
    for (size_t i = 0; i < 20; i++)
        ops[i] = (kv_history_op){.ret = KV_HISTORY_NEVER, .kind = KV_HISTORY_PUT, .argument = kv_history_present(i + 1)};
    for (size_t i = 20; i < 40; i++)
        ops[i] = (kv_history_op){.call = 2 * i, .ret = 2 * i + 1, .kind = KV_HISTORY_PUT,
                                 .argument = kv_history_present(i + 1)};
    ops[40] = (kv_history_op){.call = 100, .ret = 101, .kind = KV_HISTORY_GET, .answer = kv_history_present(99)};
    kv_history_judge(checker, ops, 41, &verdict);
    CHECK_EQ(verdict.finding, KV_HISTORY_WRONG_VALUES);
    CHECK(verdict.visited < 1000);
    kv_history_checker_free(checker);
}

/* --- what a person reads --- */

static const char shown[] = "       0        1 0.1    put 1 -> ok v5\n"
                            "       2        ? 1.1    cas 1 to none\n"
                            "       3        4 2.1    get -> 9 v7  <\n"
                            "       3    later 3.1    delete\n";

TEST(a_trace_ends_where_it_went_wrong) {
    kv_history_checker *checker = checker_new(KV_HISTORY_BUDGET);
    kv_history_op ops[MANY];
    kv_history_verdict verdict;
    char text[1000];
    size_t count = parse("0 1 put 1 @5; 2 ? cas 1 none; 3 4 get -> 9 @7; 3 8 delete -> failed; 5 6 put 9; 9 9 get -> 9", ops);
    kv_history_judge(checker, ops, count, &verdict);
    CHECK_EQ(verdict.finding, KV_HISTORY_WRONG_VALUES);
    CHECK_EQ(verdict.until, 4);
    size_t size = kv_history_show(ops, count, verdict.until, text, sizeof text);
    CHECK_EQ(size, strlen(text));
    CHECK(strcmp(text, shown) == 0);
    kv_history_checker_free(checker);
}

TEST(a_trace_is_in_the_same_order_whatever_order_it_came_in) {
    kv_history_op ops[MANY], turned[MANY];
    char text[4000], other[4000];
    size_t count = parse("5 6 get -> 1; 0 9 put 1; 0 4 put 2; 0 4 get -> none; 7 ? row 3; 1 2 last 4 -> 7 8; "
                         "3 3 pair -> -1 1", ops);
    for (size_t i = 0; i < count; i++) turned[i] = ops[count - 1 - i];
    kv_history_show(ops, count, KV_HISTORY_NEVER, text, sizeof text);
    kv_history_show(turned, count, KV_HISTORY_NEVER, other, sizeof other);
    CHECK(strcmp(text, other) == 0);
    CHECK(strstr(text, "last 4 -> ") != NULL);
    CHECK(strstr(text, " of 2\n") != NULL);
    CHECK(strstr(text, "get pair -> -1 1\n") != NULL);
    CHECK(strstr(text, "?") != NULL);
}

TEST(a_trace_fits_the_room_it_is_given) {
    kv_history_op ops[MANY];
    size_t count = parse("0 1 put 1; 2 3 get -> 1", ops);
    char whole[200], part[30];
    size_t size = kv_history_show(ops, count, KV_HISTORY_NEVER, whole, sizeof whole);
    CHECK_EQ(kv_history_show(ops, count, KV_HISTORY_NEVER, part, sizeof part), size);
    CHECK_EQ(kv_history_show(ops, count, KV_HISTORY_NEVER, NULL, 0), size);
    CHECK_EQ(strlen(part), sizeof part - 1);
    CHECK(memcmp(part, whole, sizeof part - 1) == 0);
}

TEST(every_finding_has_a_name_of_its_own) {
    for (int i = KV_HISTORY_GOOD; i <= KV_HISTORY_TOO_HARD; i++)
        for (int j = KV_HISTORY_GOOD; j < i; j++)
            CHECK(strcmp(kv_history_finding_name((kv_history_finding)i), kv_history_finding_name((kv_history_finding)j)) != 0);
}

TEST(a_fold_knows_order_and_number) {
    CHECK(kv_history_fold(0, 7) == 7);
    CHECK(kv_history_fold(7, 8) != kv_history_fold(8, 7));
    CHECK(kv_history_fold(7, 7) != kv_history_fold(0, 7));
    CHECK(kv_history_fold(kv_history_fold(1, 2), 3) != kv_history_fold(kv_history_fold(1, 3), 2));
    CHECK(kv_history_fold(kv_history_fold(1, 2), 3) != kv_history_fold(1, kv_history_fold(2, 3)));
}

int main(void) {
    RUN(what_a_wrong_replica_shows_is_found);
    RUN(what_a_right_replica_shows_is_good);
    RUN(every_order_says_the_same);
    RUN(long_histories_of_a_right_replica_are_good_and_a_foreign_value_in_them_is_not);
    RUN(as_many_operations_as_promised_are_judged_and_no_more);
    RUN(reads_of_unknown_outcome_take_no_room);
    RUN(a_hard_history_ends_undecided_and_the_checker_goes_on);
    RUN(a_budget_of_any_size_is_kept);
    RUN(nothing_is_visited_twice);
    RUN(retries_that_do_the_same_cost_little);
    RUN(writes_that_nobody_saw_cost_little);
    RUN(a_trace_ends_where_it_went_wrong);
    RUN(a_trace_is_in_the_same_order_whatever_order_it_came_in);
    RUN(a_trace_fits_the_room_it_is_given);
    RUN(every_finding_has_a_name_of_its_own);
    RUN(a_fold_knows_order_and_number);
    return check_report();
}
