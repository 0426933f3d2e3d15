/* command.h -- what the files of commands share. */
#ifndef KV_COMMAND_H
#define KV_COMMAND_H

#include <unistd.h>

#include "server_internal.h"

#define REDIS_VERSION "7.0.15" /* whose words are spoken here */

extern const kv_command COMMANDS[];
extern const size_t COMMAND_COUNT;

static inline const uint8_t *word_at(const op *o, size_t n) { return o->bytes.bytes + o->words[n].at; }
bool word_is(const op *o, size_t n, const char *text);
bool word_number(const op *o, size_t n, int64_t *out);
void reply_error(kv_server *server, op *o, const char *text);

/* command_key.c */
void get_begin(kv_server *server, op *o);
void set_begin(kv_server *server, op *o);
void del_begin(kv_server *server, op *o);
void incr_begin(kv_server *server, op *o);
void append_begin(kv_server *server, op *o);
void value_answered(kv_server *server, op *o, const kv_reply *reply, const uint8_t *bytes);
void length_answered(kv_server *server, op *o, const kv_reply *reply, const uint8_t *bytes);
void ok_answered(kv_server *server, op *o, const kv_reply *reply, const uint8_t *bytes);
void deleted_answered(kv_server *server, op *o, const kv_reply *reply, const uint8_t *bytes);
void number_answered(kv_server *server, op *o, const kv_reply *reply, const uint8_t *bytes);

#endif
