/* command.h -- what the files of commands share. */
#ifndef KV_COMMAND_H
#define KV_COMMAND_H

#include <stdio.h>
#include <unistd.h>

#include "server_internal.h"

#define REDIS_VERSION "7.0.15" /* whose words are spoken here */
#define NOT_INTEGER "ERR value is not an integer or out of range"
#define NOT_FLOAT "ERR value is not a valid float"
#define SYNTAX "ERR syntax error"
#define WRONG_TYPE "WRONGTYPE Operation against a key holding the wrong kind of value"
#define NO_MEMORY "OOM command not allowed when used memory > 'maxmemory'."

extern const kv_command COMMANDS[];
extern const size_t COMMAND_COUNT;

/* --- words of an op --- */

static inline const uint8_t *word_at(const op *o, size_t n) { return o->bytes.bytes + o->words[n].at; }
static inline text word_text(const op *o, size_t n) { return (text){word_at(o, n), o->words[n].size}; }
bool word_is(const op *o, size_t n, const char *text);
bool word_number(const op *o, size_t n, int64_t *out);
int op_protocol(const op *o);
void reply_error(kv_server *server, op *o, const char *error);
const char *words_of(int32_t error); /* what a replica refuses, in the words of Redis */

/* --- of a call --- */

static inline text arg(const call *c, size_t n) { return (text){c->bytes + c->words[n].at, c->words[n].size}; }
bool text_is(text t, const char *word); /* whatever the case */
static inline bool arg_is(const call *c, size_t n, const char *word) { return text_is(arg(c, n), word); }
static inline bool text_number(text t, int64_t *out) { return resp_number(t.at, t.size, out); }
bool text_float(text t, long double *out);
/* An integer, or it is answered that it is none. */
bool arg_number(call *c, size_t n, int64_t *out);
void say(call *c, const char *error) __attribute__((nonnull));
void say_count(call *c); /* wrong number of arguments */
void say_ok(call *c);
void say_value(call *c, text value);
void say_subcommand(call *c); /* there is none of that name */
/* Of a key that is no string, or no hash: it is answered. A key that is not there is either. */
bool is_string(call *c, entry *e);
entry *hash_of_key(call *c, size_t n); /* NULL: it is none, and that was answered */

/* As Redis writes floats; its size. */
size_t float_text(long double number, char out[64]);

/* What commands of one request share. */
bool refused(kv_server *server, op *o, const kv_reply *reply);
void ask_key(op *o, uint8_t kind);

/* --- the commands --- */

typedef void answer_function(kv_server *server, op *o, const kv_reply *reply, const uint8_t *bytes);
typedef bool begin_function(kv_server *server, op *o);
typedef void run_function(call *c);

begin_function get_begin, set_begin, del_begin, incr_begin, append_begin, mget_begin, mset_begin, expire_begin;
answer_function value_answered, length_answered, ok_answered, deleted_answered, number_answered, element_answered;

run_function get_run, set_run, setex_run, setnx_run, getset_run, getdel_run, getex_run, mget_run, mset_run, msetnx_run,
    append_run, strlen_run, getrange_run, setrange_run, incr_run, incrbyfloat_run;
run_function rename_run, copy_run, randomkey_run, hrandfield_run;
run_function del_run, exists_run, type_run, expire_run, ttl_run, persist_run;
run_function hset_run, hsetnx_run, hmset_run, hget_run, hmget_run, hgetall_run, hdel_run, hlen_run, hexists_run, hkeys_run,
    hvals_run, hincrby_run, hincrbyfloat_run, hstrlen_run, hscan_run;
run_function keys_run, scan_run, dbsize_run, flushall_run;
bool needs_all(const op *o);
run_function multi_run, discard_run, watch_run, unwatch_run, exec_run;
begin_function exec_begin;
run_function ping_run, echo_run, quit_run, select_run, hello_run, auth_run, reset_run, client_run, readonly_run, readwrite_run;
run_function command_run, info_run, config_run, time_run, role_run, wait_run, shutdown_run, cluster_run,
    kv_member_run;
run_function subscribe_run, unsubscribe_run, publish_run, pubsub_run;
run_function kv_get_run, tbl_get_run, tbl_range_run, tbl_last_run, tbl_version_run;
begin_function kv_cas_begin, kv_batch_begin, tbl_put_begin, tbl_append_begin;
answer_function version_answered, row_answered;
run_function kv_count_run, kv_look_run, kv_page_run, tbl_page_run, tbl_changes_run;
begin_function kv_once_begin, kv_wait_begin;
answer_function once_answered, wait_answered;

/* glob.c: as Redis' patterns; the longest beginning without special characters is literal. */
bool glob_match(text pattern, text name);
size_t glob_literal(text pattern);

/* cursors.c: numbers that stand for a place in an order, for SCANs. */
cursors *cursors_new(uint64_t start); /* above 0 */
void cursors_free(cursors *all); /* accepts NULL */
/* `space` tells orders apart; 0: no memory, and the scan ends here. */
uint64_t cursor_make(cursors *all, uint8_t space, text after);
bool cursor_find(const cursors *all, uint64_t number, uint8_t *space, text *after);

/* channels.c */
channels *channels_new(void);
void channels_free(channels *all); /* accepts NULL */

#endif
