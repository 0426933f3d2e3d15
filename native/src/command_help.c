/* command_help.c -- COMMAND: what there is, from the table that runs it; and the same for who writes documentation. */
#include "command.h"

/* --- COMMAND INFO --- */

typedef struct flag_name {
    uint32_t flag;
    const char *name;
} flag_name;

static const flag_name FLAGS[] = {{COMMAND_READ, "readonly"}, {COMMAND_WRITE, "write"}, {COMMAND_DIRECT, "no_multi"},
                                  {COMMAND_STRANGER, "no_auth"}};
enum { FLAG_COUNT = sizeof FLAGS / sizeof FLAGS[0] };

static void put_command(call *c, const kv_command *one) {
    size_t count = 0;
    for (size_t i = 0; i < FLAG_COUNT; i++) count += (one->flags & FLAGS[i].flag) != 0;
    resp_put_array(c->out, 10);
    resp_put_text(c->out, one->name);
    resp_put_number(c->out, one->arity);
    resp_put_set(c->out, count, c->protocol);
    for (size_t i = 0; i < FLAG_COUNT; i++)
        if (one->flags & FLAGS[i].flag) resp_put_simple(c->out, FLAGS[i].name);
    resp_put_number(c->out, one->first);
    resp_put_number(c->out, one->last);
    resp_put_number(c->out, one->step);
    resp_put_set(c->out, 1, c->protocol);
    char category[32];
    snprintf(category, sizeof category, "@%s", one->group);
    resp_put_simple(c->out, category);
    for (int i = 0; i < 3; i++) resp_put_array(c->out, 0); /* tips, key specifications, subcommands */
}

static void say_commands(call *c, size_t from) {
    bool all = from >= c->count;
    resp_put_array(c->out, all ? COMMAND_COUNT : c->count - from);
    for (size_t i = 0; all && i < COMMAND_COUNT; i++) put_command(c, &COMMANDS[i]);
    for (size_t i = from; !all && i < c->count; i++) {
        const kv_command *one = command_find(arg(c, i).at, arg(c, i).size);
        if (one == NULL) resp_put_null_array(c->out, c->protocol);
        else put_command(c, one);
    }
}

/* --- COMMAND DOCS --- */

static void put_docs(call *c, const kv_command *one) {
    resp_put_text(c->out, one->name);
    resp_put_map(c->out, 2, c->protocol);
    resp_put_text(c->out, "summary");
    resp_put_text(c->out, one->summary);
    resp_put_text(c->out, "group");
    resp_put_text(c->out, one->group);
}

static void say_docs(call *c) {
    size_t count = c->count == 2 ? COMMAND_COUNT : 0;
    for (size_t i = 2; i < c->count; i++) count += command_find(arg(c, i).at, arg(c, i).size) != NULL;
    resp_put_map(c->out, count, c->protocol);
    for (size_t i = 0; c->count == 2 && i < COMMAND_COUNT; i++) put_docs(c, &COMMANDS[i]);
    for (size_t i = 2; i < c->count; i++) {
        const kv_command *one = command_find(arg(c, i).at, arg(c, i).size);
        if (one != NULL) put_docs(c, one);
    }
}

/* --- COMMAND GETKEYS, LIST --- */

static void say_keys(call *c) {
    const kv_command *one = command_find(arg(c, 2).at, arg(c, 2).size);
    int count = (int)c->count - 2;
    if (one == NULL || one->first == 0) {
        say(c, one == NULL ? "ERR Invalid command specified" : "ERR The command has no key arguments");
        return;
    }
    if (one->arity < 0 ? count < -one->arity : count != one->arity) {
        say(c, "ERR Invalid number of arguments specified for command");
        return;
    }
    size_t keys = command_key_count(one, (size_t)count);
    resp_put_array(c->out, keys);
    for (size_t i = 0; i < keys; i++) say_value(c, arg(c, 2 + command_key_at(one, i)));
}

static void say_names(call *c) {
    resp_put_array(c->out, COMMAND_COUNT);
    for (size_t i = 0; i < COMMAND_COUNT; i++) resp_put_text(c->out, COMMANDS[i].name);
}

void command_run(call *c) {
    if (c->count == 1) say_commands(c, 1);
    else if (arg_is(c, 1, "COUNT") && c->count == 2) resp_put_number(c->out, (int64_t)COMMAND_COUNT);
    else if (arg_is(c, 1, "INFO")) say_commands(c, 2);
    else if (arg_is(c, 1, "DOCS")) say_docs(c);
    else if (arg_is(c, 1, "LIST") && c->count == 2) say_names(c);
    else if (arg_is(c, 1, "GETKEYS") && c->count > 2) say_keys(c);
    else say_subcommand(c);
}

/* --- for documentation --- */

size_t kv_command_look(size_t index, kv_command_facts *out) {
    if (index < COMMAND_COUNT) {
        const kv_command *one = &COMMANDS[index];
        *out = (kv_command_facts){.name = one->name, .group = one->group, .summary = one->summary, .differs = one->differs,
                                  .arity = one->arity, .first = one->first, .last = one->last, .step = one->step,
                                  .flags = one->flags};
    }
    return COMMAND_COUNT;
}
