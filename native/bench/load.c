/* load.c -- clients of a key-value server: so many connections, each with a request under way all the time, in one thread.
 *
 *     kv_load -p DIALECT -a PORT[,PORT...] -m MODE [options]
 *
 *     -m fill     every key once                              ends when all are acknowledged
 *        set      random keys                                 ends after -t seconds
 *        get      random keys, each answer compared           ends after -t seconds
 *        new      new keys, one behind the other              ends after -t seconds, or at SIGTERM
 *        check    gets the keys in the file of -r; what is absent or another value is counted as lost
 *     -c 1        clients, each a connection, spread evenly over the ports of 127.0.0.1
 *     -o FILE     who owns which key: for each of the 16,384 slots of Redis Cluster a byte, the place of a port in -a. A client then
 *                 has a connection to each port, and sends a request where its key belongs; not with -x
 *     -P 1        requests that a connection sends at once; the next ones when all are answered
 *     -t 1, -w 0  seconds that count, and before them
 *     -k 10000    keys; -b 0, the number of the first
 *     -v 100      bytes in a value
 *     -i 0        microseconds that a connection waits after an answer
 *     -x 0        milliseconds until a request is sent again, to the next port. So it is when the connection breaks, or is
 *                 refused, or the server says that it cannot. 0: each of these ends the run, exit code 1
 *     -r FILE     new: what was acknowledged, as triples of 64-bit integers: when it was sent and answered (CLOCK_MONOTONIC,
 *                 in nanoseconds), number of the key
 *
 * A key is 16 hexadecimal digits, scrambled from its number, so keys in a row are in no order and in all shards; a value follows
 * from the number of its key, and does not compress. So every get of every mode is checked without a copy of what was written.
 *
 * A request that is sent again has the time of its first attempt. The output is one line of JSON; `all` is how
 * many requests were answered, counted or not; `cpu_seconds` is what this program itself used for them. */
#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "dialect.h"

enum {
    PORTS_MAX = 8,
    SLOT_COUNT = 16384,
    PIPELINE_MAX = 256,
    EVENTS_MAX = 128,
    POOL_SIZE = 1 << 20, /* random bytes that values are cut from */
    READ_SIZE = 1 << 16,
    PAUSE_NS = 500000,   /* before another attempt, the first; twice as long before each one after it, */
    DOUBLINGS_MAX = 4,   /* up to 8 ms: clients that insist would be the load that is measured */
};
static const uint64_t MS_NS = 1000000, SECOND_NS = 1000000000, SILENCE_NS = 10 * (uint64_t)1000000000;

typedef enum mode { MODE_FILL, MODE_SET, MODE_GET, MODE_NEW, MODE_CHECK, MODE_COUNT } mode;
static const char *const MODE_NAMES[MODE_COUNT] = {"fill", "set", "get", "new", "check"};

typedef struct options {
    const dialect *dialect;
    uint16_t ports[PORTS_MAX];
    size_t port_count, client_count, pipeline, value_size;
    mode mode;
    uint64_t key_count, key_base, pause_ns, timeout_ns, count_ns, warm_ns;
    const char *records, *owners; /* files; NULL: none */
} options;

typedef struct record {
    uint64_t sent_ns, answered_ns, key;
} record;

typedef struct pending {
    uint64_t sent_ns, key;
    uint8_t name[KEY_SIZE];
} pending;

typedef struct connection {
    int fd; /* -1: to be made, at resume_ns */
    size_t port;
    struct connection *siblings; /* the first of its client's connections */
    unsigned number; /* of all connections that were made */
    text in, out;
    size_t taken, written;
    unsigned greeting_answers, failure_count; /* in a row */
    bool watches_write;
    size_t first, count; /* of `asked`: those not answered */
    uint64_t resume_ns, deadline_ns;
    request now; /* asked[first] */
    pending asked[PIPELINE_MAX];
} connection;

typedef struct load {
    options options;
    int epoll, signals;
    connection *connections;
    size_t each, total;        /* connections of a client; of all */
    unsigned connection_count; /* ever made */
    uint8_t owners[SLOT_COUNT];
    uint8_t *pool;
    uint64_t random, next_key;
    uint64_t *listed; /* check: the keys */
    record *records;
    size_t record_count, record_capacity, listed_count;
    uint64_t all, retries, lost;
    uint64_t now_ns, begin_ns, end_ns;
    bool ends, failed;
} load;

static uint64_t clock_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * SECOND_NS + (uint64_t)now.tv_nsec;
}

/* Splitmix64's last step: every number has another number of its own, and neighbours have nothing in common. */
static uint64_t scrambled(uint64_t n) {
    n += 0x9E3779B97F4A7C15U;
    n = (n ^ n >> 30) * 0xBF58476D1CE4E5B9U;
    n = (n ^ n >> 27) * 0x94D049BB133111EBU;
    return n ^ n >> 31;
}

static void fail(load *l, const char *what) {
    if (!l->failed) fprintf(stderr, "kv_load: %s\n", what);
    l->failed = l->ends = true;
}

/* --- what is asked --- */

static const uint8_t *value_of(const load *l, uint64_t key) { return l->pool + scrambled(~key) % POOL_SIZE; }

static bool next_key(load *l, uint64_t *key) {
    const options *o = &l->options;
    switch (o->mode) {
    case MODE_SET:
    case MODE_GET:
        l->random = scrambled(l->random);
        *key = o->key_base + l->random % o->key_count;
        return true;
    case MODE_CHECK:
        if (l->next_key == l->listed_count) return false;
        *key = l->listed[l->next_key++];
        return true;
    default:
        if (o->mode == MODE_FILL && l->next_key == o->key_count) return false;
        *key = o->key_base + l->next_key++;
        return true;
    }
}

static void request_now(load *l, connection *c) {
    const pending *p = &c->asked[c->first];
    c->now.is_put = l->options.mode != MODE_GET && l->options.mode != MODE_CHECK;
    c->now.part = 0;
    c->now.key = p->name;
    c->now.value = value_of(l, p->key);
    c->now.value_size = l->options.value_size;
}

/* CRC16 (XMODEM) of the key, as the specification of Redis Cluster has it. */
static unsigned slot_of(const uint8_t name[KEY_SIZE]) {
    unsigned crc = 0;
    for (size_t i = 0; i < KEY_SIZE; i++) {
        crc ^= (unsigned)name[i] << 8;
        for (int bit = 0; bit < 8; bit++) crc = (crc << 1 ^ (crc & 0x8000 ? 0x1021U : 0)) & 0xFFFF;
    }
    return crc % SLOT_COUNT;
}

/* All that is not answered, from the first on. */
static void ask(load *l, connection *c) {
    size_t first = c->first, count = c->count;
    for (size_t i = 0; i < count; i++, c->first++) {
        request_now(l, c);
        l->options.dialect->ask(&c->out, c->number, &c->now);
    }
    c->first = first;
    request_now(l, c);
    c->deadline_ns = l->now_ns + (l->options.timeout_ns == 0 ? SILENCE_NS : l->options.timeout_ns);
}

static void flush(load *l, connection *c);

static void ask_more(load *l, connection *siblings) {
    uint64_t key;
    for (size_t i = 0; i < l->each; i++) siblings[i].first = siblings[i].count = 0;
    for (size_t i = 0; i < l->options.pipeline && !l->ends && next_key(l, &key); i++) {
        char digits[KEY_SIZE + 1];
        pending p = {.sent_ns = l->now_ns, .key = key};
        snprintf(digits, sizeof digits, "%016" PRIx64, scrambled(key));
        memcpy(p.name, digits, KEY_SIZE);
        connection *c = &siblings[l->each == 1 ? 0 : l->owners[slot_of(p.name)]];
        c->asked[c->count++] = p;
    }
    for (size_t i = 0; i < l->each; i++)
        if (siblings[i].count != 0) ask(l, &siblings[i]);
    for (size_t i = 0; i < l->each; i++) flush(l, &siblings[i]);
}

/* --- connections --- */

static void watch(load *l, connection *c, int how, bool writes) {
    struct epoll_event event = {.events = EPOLLIN | (writes ? (uint32_t)EPOLLOUT : 0), .data.ptr = c};
    epoll_ctl(l->epoll, how, c->fd, &event);
    c->watches_write = writes;
}

static void lose(load *l, connection *c, const char *why) {
    if (l->options.timeout_ns == 0) fail(l, why);
    if (c->fd >= 0) close(c->fd);
    c->fd = -1;
    l->retries++;
    c->port = (c->port + 1) % l->options.port_count;
    c->resume_ns = l->now_ns + ((uint64_t)PAUSE_NS << c->failure_count);
    if (c->failure_count < DOUBLINGS_MAX) c->failure_count++;
}

static void flush(load *l, connection *c) {
    while (c->fd >= 0 && c->written < c->out.size) {
        ssize_t sent = send(c->fd, c->out.bytes + c->written, c->out.size - c->written, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0 && errno == EAGAIN) break;
        if (sent < 0) {
            lose(l, c, strerror(errno));
            return;
        }
        c->written += (size_t)sent;
    }
    bool left = c->written < c->out.size;
    if (!left) c->written = c->out.size = 0;
    if (c->fd >= 0 && left != c->watches_write) watch(l, c, EPOLL_CTL_MOD, left);
}

static void reach(load *l, connection *c) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int one = 1;
    address.sin_port = htons(l->options.ports[c->port]);
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    /* On loopback this waits for nobody: the kernel answers for whoever listens. */
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&address, sizeof address) != 0) {
        lose(l, c, strerror(errno));
        return;
    }
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    c->number = l->connection_count++;
    c->in.size = c->out.size = c->taken = c->written = 0;
    c->greeting_answers = l->options.dialect->greeting_answers;
    l->options.dialect->greet(&c->out, c->number);
    watch(l, c, EPOLL_CTL_ADD, false);
    if (c->count != 0) ask(l, c);
    else if (c == c->siblings + l->each - 1) ask_more(l, c->siblings);
}

/* --- what is answered --- */

static void keep(load *l, const pending *p) {
    if (l->record_count == l->record_capacity) {
        size_t capacity = l->record_capacity == 0 ? 1 << 16 : 2 * l->record_capacity;
        record *larger = realloc(l->records, capacity * sizeof *larger);
        if (larger == NULL) abort();
        l->records = larger;
        l->record_capacity = capacity;
    }
    l->records[l->record_count++] = (record){p->sent_ns, l->now_ns, p->key};
}

static void answered(load *l, connection *c, bool good) {
    const pending *p = &c->asked[c->first];
    l->all++;
    if (!good && l->options.mode != MODE_CHECK) {
        fail(l, "a get was answered with something that was not written");
        return;
    }
    l->lost += !good;
    c->failure_count = 0;
    if (l->now_ns >= l->begin_ns && !l->ends) keep(l, p);
    c->first++;
    c->count--;
    if (c->count != 0) {
        request_now(l, c);
        return;
    }
    c->deadline_ns = 0;
    for (size_t i = 0; i < l->each; i++)
        if (c->siblings[i].count != 0) return;
    if (l->options.pause_ns != 0) c->resume_ns = l->now_ns + l->options.pause_ns;
    else ask_more(l, c->siblings);
}

/* Whether there may be more to take. */
static bool take_one(load *l, connection *c) {
    size_t used = 0;
    request greeting = {.is_put = true}, *of = c->greeting_answers != 0 || c->count == 0 ? &greeting : &c->now;
    answer found = l->options.dialect->take(of, c->in.bytes + c->taken, c->in.size - c->taken, &used, &c->out);
    if (found == ANSWER_MORE) return false;
    c->taken += used;
    if (found == ANSWER_NOISE) return true;
    if (found == ANSWER_BROKEN || found == ANSWER_REFUSED || (c->count == 0 && c->greeting_answers == 0)) {
        lose(l, c, found == ANSWER_REFUSED ? of->said : "an answer that is none");
        return false;
    }
    if (c->greeting_answers != 0) c->greeting_answers--;
    else if (found == ANSWER_PART) c->now.part++;
    else answered(l, c, found == ANSWER_GOOD);
    return !l->failed;
}

static void receive(load *l, connection *c) {
    if (c->taken == c->in.size) c->taken = c->in.size = 0;
    ssize_t got = recv(c->fd, text_room(&c->in, READ_SIZE), READ_SIZE, MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got <= 0) {
        lose(l, c, got == 0 ? "the server closed a connection" : strerror(errno));
        return;
    }
    c->in.size += (size_t)got;
    while (c->fd >= 0 && c->taken < c->in.size && take_one(l, c)) {}
    if (c->taken != 0 && c->taken < c->in.size) {
        memmove(c->in.bytes, c->in.bytes + c->taken, c->in.size - c->taken);
        c->in.size -= c->taken;
        c->taken = 0;
    }
    flush(l, c);
}

/* --- the loop --- */

/* What waits for a time rather than for an answer. Returns when the next one is due. */
static uint64_t look_at_clocks(load *l) {
    uint64_t next = l->now_ns + 100 * MS_NS;
    for (size_t i = 0; i < l->total; i++) {
        connection *c = &l->connections[i];
        if (c->fd >= 0 && c->count != 0 && l->now_ns >= c->deadline_ns) lose(l, c, "a server did not answer");
        if (c->resume_ns != 0 && l->now_ns >= c->resume_ns) {
            c->resume_ns = 0;
            if (c->fd < 0) reach(l, c);
            else ask_more(l, c->siblings);
            flush(l, c);
        }
        if (c->resume_ns != 0 && c->resume_ns < next) next = c->resume_ns;
        if (c->fd >= 0 && c->count != 0 && c->deadline_ns < next) next = c->deadline_ns;
    }
    return next;
}

static bool all_answered(const load *l) {
    for (size_t i = 0; i < l->total; i++)
        if (l->connections[i].count != 0) return false;
    return true;
}

/* Nothing is begun any more; what is under way is waited for, and counted no more. */
static void finish(load *l) {
    if (l->ends) return;
    l->ends = true;
    l->end_ns = l->now_ns;
}

/* When nothing has to be sent again and nobody pauses, connections are looked at only now and then: it costs with each. */
static void run(load *l) {
    struct epoll_event events[EVENTS_MAX];
    const options *o = &l->options;
    uint64_t next = 0;
    bool by_time = o->mode == MODE_SET || o->mode == MODE_GET || o->mode == MODE_NEW;
    bool patient = o->pause_ns == 0 && o->timeout_ns == 0;
    do {
        if (!patient || l->now_ns >= next) next = look_at_clocks(l);
        uint64_t left = next > l->now_ns ? next - l->now_ns : 0;
        int count = epoll_wait(l->epoll, events, EVENTS_MAX, (int)((left + MS_NS - 1) / MS_NS));
        for (int i = 0; i < count && !l->failed; i++) {
            connection *c = events[i].data.ptr;
            l->now_ns = clock_ns();
            if (c == NULL) finish(l);
            else if (c->fd >= 0 && (events[i].events & EPOLLOUT)) flush(l, c);
            if (c != NULL && c->fd >= 0 && (events[i].events & (EPOLLIN | EPOLLERR | EPOLLHUP))) receive(l, c);
        }
        l->now_ns = clock_ns();
        if (by_time && l->now_ns >= l->end_ns) finish(l);
    } while (!l->failed && (!(l->ends || !by_time) || !all_answered(l)));
    finish(l);
}

/* --- what came of it --- */

static int by_time_taken(const void *a, const void *b) {
    const record *one = a, *other = b;
    uint64_t first = one->answered_ns - one->sent_ns, second = other->answered_ns - other->sent_ns;
    return first < second ? -1 : first > second;
}

static double quantile_us(const load *l, double part) {
    if (l->record_count == 0) return 0;
    size_t at = (size_t)((double)l->record_count * part);
    const record *one = &l->records[at < l->record_count ? at : l->record_count - 1];
    return (double)(one->answered_ns - one->sent_ns) / 1000;
}

static bool write_records(const load *l) {
    FILE *file = fopen(l->options.records, "wb");
    if (file == NULL) return false;
    bool good = fwrite(l->records, sizeof *l->records, l->record_count, file) == l->record_count;
    return (fclose(file) == 0) && good;
}

static void report(load *l, double cpu_seconds) {
    static const double parts[] = {0.5, 0.9, 0.99, 0.999, 1};
    static const char *const names[] = {"p50", "p90", "p99", "p99.9", "max"};
    qsort(l->records, l->record_count, sizeof *l->records, by_time_taken);
    printf("{\"operations\": %zu, \"all\": %" PRIu64 ", \"seconds\": %.6f, \"cpu_seconds\": %.6f, \"retries\": %" PRIu64
           ", \"lost\": %" PRIu64 ", \"curve\": {",
           l->record_count, l->all, (double)(l->end_ns - l->begin_ns) / (double)SECOND_NS, cpu_seconds, l->retries, l->lost);
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++)
        printf("%s\"%s\": %.2f", i == 0 ? "" : ", ", names[i], quantile_us(l, parts[i]));
    printf("}}\n");
}

static double own_seconds(void) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) + 1e-6 * (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec);
}

/* --- life --- */

static bool read_list(load *l) {
    FILE *file = fopen(l->options.records, "rb");
    if (file == NULL) return false;
    for (record one; fread(&one, sizeof one, 1, file) == 1;) keep(l, &(pending){.key = one.key});
    l->listed = calloc(l->record_count + 1, sizeof *l->listed);
    for (size_t i = 0; l->listed != NULL && i < l->record_count; i++) l->listed[i] = l->records[i].key;
    l->listed_count = l->record_count;
    l->record_count = 0;
    fclose(file);
    return l->listed != NULL;
}

static bool read_owners(load *l) {
    FILE *file = fopen(l->options.owners, "rb");
    if (file == NULL) return false;
    bool good = fread(l->owners, 1, SLOT_COUNT, file) == SLOT_COUNT;
    fclose(file);
    for (size_t i = 0; good && i < SLOT_COUNT; i++) good = l->owners[i] < l->options.port_count;
    if (!good) errno = EINVAL;
    return good;
}

static bool load_begin(load *l) {
    const options *o = &l->options;
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigprocmask(SIG_BLOCK, &set, NULL);
    l->signals = signalfd(-1, &set, SFD_CLOEXEC);
    l->epoll = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    if (l->epoll < 0 || l->signals < 0 || epoll_ctl(l->epoll, EPOLL_CTL_ADD, l->signals, &event) != 0) return false;
    l->each = o->owners == NULL ? 1 : o->port_count;
    l->total = o->client_count * l->each;
    l->connections = calloc(l->total, sizeof *l->connections);
    l->pool = malloc(POOL_SIZE + o->value_size + sizeof l->random);
    if (l->connections == NULL || l->pool == NULL) return false;
    for (size_t i = 0; i < POOL_SIZE + o->value_size; i += sizeof l->random) {
        l->random = scrambled(l->random + i);
        memcpy(l->pool + i, &l->random, sizeof l->random);
    }
    if (o->mode == MODE_CHECK && !read_list(l)) return false;
    if (o->owners != NULL && !read_owners(l)) return false;
    l->now_ns = clock_ns();
    l->random = scrambled(l->now_ns);
    l->begin_ns = l->now_ns + o->warm_ns;
    l->end_ns = l->begin_ns + o->count_ns;
    for (size_t i = 0; i < l->total && !l->failed; i++) {
        connection *c = &l->connections[i];
        c->port = i % o->port_count;
        c->siblings = c - i % l->each;
        reach(l, c);
        flush(l, c);
    }
    return true;
}

static void load_end(load *l) {
    for (size_t i = 0; l->connections != NULL && i < l->total; i++) {
        if (l->connections[i].fd >= 0) close(l->connections[i].fd);
        free(l->connections[i].in.bytes);
        free(l->connections[i].out.bytes);
    }
    free(l->connections);
    free(l->pool);
    free(l->listed);
    free(l->records);
}

static bool parse_ports(options *o, const char *list) {
    char *end;
    do {
        unsigned long port = strtoul(list, &end, 10);
        if (end == list || port == 0 || port > UINT16_MAX || o->port_count == PORTS_MAX) return false;
        o->ports[o->port_count++] = (uint16_t)port;
        list = end + 1;
    } while (*end == ',');
    return *end == 0;
}

static bool parse_mode(options *o, const char *name) {
    for (int i = 0; i < MODE_COUNT; i++) {
        if (strcmp(MODE_NAMES[i], name) != 0) continue;
        o->mode = (mode)i;
        return true;
    }
    return false;
}

static bool parse(options *o, int count, char **words) {
    bool has_mode = false;
    for (int letter; (letter = getopt(count, words, "p:a:m:c:P:t:w:k:b:v:i:x:r:o:")) != -1;) {
        uint64_t number = optarg == NULL ? 0 : strtoull(optarg, NULL, 10);
        switch (letter) {
        case 'p': o->dialect = dialect_find(optarg); break;
        case 'a':
            if (!parse_ports(o, optarg)) return false;
            break;
        case 'm': has_mode = parse_mode(o, optarg); break;
        case 'c': o->client_count = number; break;
        case 'P': o->pipeline = number; break;
        case 't': o->count_ns = (uint64_t)(strtod(optarg, NULL) * 1e9); break;
        case 'w': o->warm_ns = (uint64_t)(strtod(optarg, NULL) * 1e9); break;
        case 'k': o->key_count = number; break;
        case 'b': o->key_base = number; break;
        case 'v': o->value_size = number; break;
        case 'i': o->pause_ns = number * 1000; break;
        case 'x': o->timeout_ns = number * MS_NS; break;
        case 'r': o->records = optarg; break;
        case 'o': o->owners = optarg; break;
        default: return false;
        }
    }
    return o->dialect != NULL && o->port_count != 0 && has_mode && o->client_count != 0 && o->pipeline != 0 &&
           o->pipeline <= PIPELINE_MAX && o->key_count != 0 && o->value_size != 0 && (o->mode != MODE_CHECK || o->records != NULL) &&
           (o->owners == NULL || o->timeout_ns == 0);
}

int main(int count, char **words) {
    load l = {.options = {.client_count = 1, .pipeline = 1, .value_size = 100, .key_count = 10000, .count_ns = SECOND_NS}, .epoll = -1};
    if (!parse(&l.options, count, words)) {
        fprintf(stderr, "kv_load: see the opening of native/bench/load.c\n");
        return 2;
    }
    double before = own_seconds();
    if (load_begin(&l)) run(&l);
    else fail(&l, strerror(errno));
    double used = own_seconds() - before;
    if (!l.failed && l.options.mode == MODE_NEW && l.options.records != NULL && !write_records(&l)) fail(&l, strerror(errno));
    if (!l.failed) report(&l, used);
    load_end(&l);
    return l.failed ? 1 : 0;
}
