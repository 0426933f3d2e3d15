/* command_server.c -- commands about the server: what it is, how it does, what it can. */
#include <stdarg.h>
#include <sys/resource.h>
#include <sys/time.h>

#include "command.h"

/* --- INFO --- */

typedef struct info {
    call *c;
    wire_out out;
    bool default_only, all;
} info;

static void put(wire_out *out, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void put(wire_out *out, const char *format, ...) {
    char line[256];
    va_list arguments;
    va_start(arguments, format);
    int size = vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    if (size > 0) wire_put_bytes(out, (const uint8_t *)line, (size_t)size < sizeof line ? (size_t)size : sizeof line - 1);
}

typedef unsigned long long u64; /* for printf */

static void info_server(const kv_server *s, wire_out *out) {
    u64 up = (s->now_ms - s->start_ms) / 1000;
    put(out, "redis_version:%s\r\nserver_name:kvsvr\r\nredis_mode:%s\r\n", REDIS_VERSION,
        server_size(s) == 1 ? "standalone" : "cluster");
    put(out, "process_id:%d\r\ntcp_port:%s\r\n", (int)getpid(), strrchr(s->options.announce, ':') == NULL ? "0"
        : strrchr(s->options.announce, ':') + 1);
    put(out, "uptime_in_seconds:%llu\r\nuptime_in_days:%llu\r\n", up, up / 86400);
}

static void info_clients(const kv_server *s, wire_out *out) {
    put(out, "connected_clients:%llu\r\nmaxclients:%u\r\nblocked_clients:0\r\n", (u64)s->client_count,
        s->options.client_count_max);
}

static uint64_t resident_size(void) {
    unsigned long pages = 0;
    FILE *file = fopen("/proc/self/statm", "re");
    if (file == NULL) return 0;
    if (fscanf(file, "%*u %lu", &pages) != 1) pages = 0;
    fclose(file);
    return (uint64_t)pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

static void info_memory(const kv_server *s, wire_out *out) {
    u64 size = resident_size();
    (void)s;
    put(out, "used_memory:%llu\r\nused_memory_rss:%llu\r\nused_memory_human:%.2fM\r\n", size, size, (double)size / (1 << 20));
    put(out, "maxmemory:0\r\nmaxmemory_policy:noeviction\r\n");
}

static void info_persistence(const kv_server *s, wire_out *out) {
    (void)s;
    put(out, "loading:0\r\naof_enabled:1\r\naof_rewrite_in_progress:0\r\nrdb_bgsave_in_progress:0\r\n");
}

static void info_stats(const kv_server *s, wire_out *out) {
    const kv_server_figures *f = &s->figures;
    put(out, "total_connections_received:%llu\r\ntotal_commands_processed:%llu\r\ntotal_error_replies:%llu\r\n",
        (u64)f->connections, (u64)f->commands, (u64)f->errors);
    put(out, "total_net_input_bytes:%llu\r\ntotal_net_output_bytes:%llu\r\nforwarded_requests:%llu\r\nretried_requests:%llu\r\n",
        (u64)f->received_size, (u64)f->sent_size, (u64)f->forwarded, (u64)f->retried);
}

static uint32_t shards_owned(const kv_server *s) {
    uint32_t count = 0;
    kv_shard_state state;
    for (uint32_t shard = 0; shard < s->shard_count; shard++) {
        kv_replica_shard(s->replica, shard, &state);
        count += state.owned != 0;
    }
    return count;
}

static void info_replication(const kv_server *s, wire_out *out) {
    put(out, "role:master\r\nconnected_slaves:0\r\nmaster_repl_offset:0\r\n");
    put(out, "replica_id:%u\r\nreplicas:%u\r\n", s->options.replica.node, server_size(s));
    put(out, "links:%llu\r\nshards:%u\r\nshards_owned:%u\r\n", (u64)s->figures.links, s->shard_count, shards_owned(s));
}

static void info_cpu(const kv_server *s, wire_out *out) {
    struct rusage usage = {0};
    (void)s;
    getrusage(RUSAGE_SELF, &usage);
    put(out, "used_cpu_sys:%lld.%06lld\r\nused_cpu_user:%lld.%06lld\r\n", (long long)usage.ru_stime.tv_sec,
        (long long)usage.ru_stime.tv_usec, (long long)usage.ru_utime.tv_sec, (long long)usage.ru_utime.tv_usec);
}

static void info_cluster(const kv_server *s, wire_out *out) { put(out, "cluster_enabled:%d\r\n", server_size(s) != 1); }

static void info_keyspace(const kv_server *s, wire_out *out) {
    kv_stats stats;
    if (kv_store_measure(kv_replica_store(s->replica), &stats) != KV_OK) return;
    u64 count = stats.key_count + stats.table_count;
    if (count != 0) put(out, "db0:keys=%llu,expires=0,avg_ttl=0\r\n", count);
}

typedef struct info_section {
    const char *name;
    void (*put)(const kv_server *server, wire_out *out);
} info_section;

static bool is_wanted(const call *c, const char *name) {
    bool found = c->count == 1;
    for (size_t i = 1; i < c->count; i++)
        found |= arg_is(c, i, name) || arg_is(c, i, "all") || arg_is(c, i, "default") || arg_is(c, i, "everything");
    return found;
}

void info_run(call *c) {
    static const info_section ALL[] = {
        {"Server", info_server}, {"Clients", info_clients}, {"Memory", info_memory}, {"Persistence", info_persistence},
        {"Stats", info_stats}, {"Replication", info_replication}, {"CPU", info_cpu}, {"Cluster", info_cluster},
        {"Keyspace", info_keyspace}};
    wire_out out = {0};
    for (size_t i = 0; i < sizeof ALL / sizeof ALL[0]; i++) {
        if (!is_wanted(c, ALL[i].name)) continue;
        put(&out, "%s# %s\r\n", out.size == 0 ? "" : "\r\n", ALL[i].name);
        ALL[i].put(c->server, &out);
    }
    if (c->protocol >= RESP_3) {
        char head[48];
        int size = snprintf(head, sizeof head, "=%zu\r\ntxt:", out.size + 4);
        wire_put_bytes(c->out, (const uint8_t *)head, (size_t)size);
        wire_put_bytes(c->out, out.bytes, out.size);
        wire_put_bytes(c->out, (const uint8_t *)"\r\n", 2);
    } else {
        resp_put_bulk(c->out, out.bytes, out.size);
    }
    if (out.failed) c->draft->failed = KV_ENOMEM;
    wire_free(&out);
}

/* --- CONFIG --- */

typedef struct setting {
    const char *name;
    char value[24];
} setting;

enum { SETTING_COUNT = 11 };

static void settings(const kv_server *s, setting out[SETTING_COUNT]) {
    static const setting FIXED[] = {{"appendfsync", "always"}, {"appendonly", "yes"}, {"cluster-enabled", ""}, {"databases", "1"},
                                    {"maxclients", ""}, {"maxmemory", "0"}, {"maxmemory-policy", "noeviction"}, {"port", ""},
                                    {"proto-max-bulk-len", ""}, {"save", ""}, {"timeout", "0"}};
    const char *port = strrchr(s->options.announce, ':');
    memcpy(out, FIXED, sizeof FIXED);
    snprintf(out[2].value, sizeof out->value, "%s", server_size(s) == 1 ? "no" : "yes");
    snprintf(out[4].value, sizeof out->value, "%u", s->options.client_count_max);
    snprintf(out[7].value, sizeof out->value, "%.8s", port == NULL ? "0" : port + 1);
    snprintf(out[8].value, sizeof out->value, "%llu", (u64)s->options.word_size_max);
}

static bool is_asked_for(const call *c, const setting *one) {
    bool found = false;
    for (size_t i = 2; i < c->count; i++) found |= glob_match(arg(c, i), (text){(const uint8_t *)one->name, strlen(one->name)});
    return found;
}

static void config_get(call *c) {
    setting all[SETTING_COUNT];
    size_t count = 0;
    settings(c->server, all);
    for (size_t i = 0; i < SETTING_COUNT; i++) count += is_asked_for(c, &all[i]);
    resp_put_map(c->out, count, c->protocol);
    for (size_t i = 0; i < SETTING_COUNT; i++) {
        if (!is_asked_for(c, &all[i])) continue;
        resp_put_text(c->out, all[i].name);
        resp_put_text(c->out, all[i].value);
    }
}

/* Nothing can be set while it runs. */
static void config_set(call *c) {
    setting all[SETTING_COUNT];
    text name = arg(c, 2);
    bool known = false;
    settings(c->server, all);
    for (size_t i = 0; i < SETTING_COUNT; i++) known |= text_is(name, all[i].name);
    c->server->figures.errors++;
    resp_put_error(c->out,
                   known ? "ERR CONFIG SET failed (possibly related to argument '%.*s') - can't set immutable config"
                         : "ERR Unknown option or number of arguments for CONFIG SET - '%.*s'",
                   (int)(name.size < 128 ? name.size : 128), (const char *)name.at);
}

void config_run(call *c) {
    if (arg_is(c, 1, "GET") && c->count > 2) {
        config_get(c);
    } else if (arg_is(c, 1, "SET") && c->count > 3 && c->count % 2 == 0) {
        config_set(c);
    } else if (arg_is(c, 1, "RESETSTAT") && c->count == 2) {
        kv_server_figures *f = &c->server->figures;
        *f = (kv_server_figures){.clients = f->clients, .links = f->links, .shards_owned = f->shards_owned};
        say_ok(c);
    } else {
        say_subcommand(c);
    }
}

/* --- the rest --- */

void time_run(call *c) {
    struct timeval now;
    char digits[24];
    gettimeofday(&now, NULL);
    resp_put_array(c->out, 2);
    snprintf(digits, sizeof digits, "%lld", (long long)now.tv_sec);
    resp_put_text(c->out, digits);
    snprintf(digits, sizeof digits, "%lld", (long long)now.tv_usec);
    resp_put_text(c->out, digits);
}

/* Whoever is asked answers for all of the set. */
void role_run(call *c) {
    resp_put_array(c->out, 3);
    resp_put_text(c->out, "master");
    resp_put_number(c->out, 0);
    resp_put_array(c->out, 0);
}

/* What was answered is with a majority, this replica or another among them: so many others have it for sure, now. */
void wait_run(call *c) {
    int64_t wanted, timeout;
    if (!arg_number(c, 1, &wanted)) return;
    if (!text_number(arg(c, 2), &timeout)) say(c, "ERR timeout is not an integer or out of range");
    else if (timeout < 0) say(c, "ERR timeout is negative");
    else resp_put_number(c->out, server_size(c->server) / 2);
}

void shutdown_run(call *c) {
    for (size_t i = 1; i < c->count; i++) {
        if (arg_is(c, i, "NOSAVE") || arg_is(c, i, "SAVE") || arg_is(c, i, "NOW") || arg_is(c, i, "FORCE")) continue;
        say(c, SYNTAX);
        return;
    }
    if (c->client != NULL) c->client->closing = true; /* Redis says nothing either: the connection ends. */
    kv_server_stop(c->server);
}
