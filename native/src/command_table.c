/* command_table.c -- the table of commands, by name. What runs, what COMMAND tells and docs/commands.md are all from here. */
#include "command.h"

#define READ COMMAND_READ
#define WRITE COMMAND_WRITE
#define CHANGE (COMMAND_WRITE | COMMAND_ALONE) /* reads, and then writes */
#define SLOTS COMMAND_SLOTS
#define NOW COMMAND_NOW
#define DIRECT COMMAND_DIRECT
#define ALL (COMMAND_READ | COMMAND_ALL)
#define HERE COMMAND_LISTENER

#define OF_ONE 1, 1, 1
#define OF_ALL 1, -1, 1
#define OF_PAIRS 1, -1, 2
#define OF_NONE 0, 0, 0

static const char PER_SLOT[] = "keys of several slots: done for each slot by itself, not as one; with one replica, as one up to 512 keys";
static const char SECONDS_OF_OWNER[] = "a key ends by the clock of the replica that owns it";

const kv_command COMMANDS[] = {
    {"append", 3, WRITE, OF_ONE, append_run, append_begin, number_answered, "string", "adds bytes to the end of a value", NULL},
    {"auth", -2, COMMAND_STRANGER | DIRECT, OF_NONE, auth_run, NULL, NULL, "connection", "says the password", "there is one user, `default`"},
    {"client", -2, 0, OF_NONE, client_run, NULL, NULL, "connection", "this connection and the others: ID GETNAME SETNAME SETINFO LIST INFO KILL NO-EVICT", "no other subcommands; KILL takes an address, ID, ADDR and SKIPME"},
    {"cluster", -2, 0, OF_NONE, cluster_run, NULL, NULL, "server", "who owns which slots: SLOTS SHARDS INFO KEYSLOT MYID", "any replica takes any command, and no MOVED is ever sent; with one replica there is no cluster"},
    {"command", -1, 0, OF_NONE, command_run, NULL, NULL, "server", "what commands there are: COUNT INFO DOCS LIST GETKEYS", NULL},
    {"config", -2, 0, OF_NONE, config_run, NULL, NULL, "server", "settings: GET SET RESETSTAT", "SET is always refused: settings are read when a replica starts"},
    {"dbsize", 1, ALL, OF_NONE, dbsize_run, NULL, NULL, "server", "how many keys there are", "counts what is over and not deleted yet"},
    {"decr", 2, WRITE, OF_ONE, incr_run, incr_begin, number_answered, "string", "takes one from a number", NULL},
    {"decrby", 3, WRITE, OF_ONE, incr_run, incr_begin, number_answered, "string", "takes from a number", NULL},
    {"del", -2, CHANGE | SLOTS, OF_ALL, del_run, del_begin, deleted_answered, "generic", "deletes keys", PER_SLOT},
    {"discard", 1, NOW, OF_NONE, discard_run, NULL, NULL, "transactions", "ends a transaction without doing it", NULL},
    {"echo", 2, 0, OF_NONE, echo_run, NULL, NULL, "connection", "says it again", NULL},
    {"exec", 1, CHANGE | NOW, OF_NONE, exec_run, exec_begin, NULL, "transactions", "does what was queued, all or nothing", "with several replicas its keys, and those that are watched, are of one slot"},
    {"exists", -2, READ | SLOTS, OF_ALL, exists_run, NULL, NULL, "generic", "how many of the keys there are", PER_SLOT},
    {"expire", -3, CHANGE, OF_ONE, expire_run, expire_begin, deleted_answered, "generic", "a key ends in so many seconds", SECONDS_OF_OWNER},
    {"expireat", -3, CHANGE, OF_ONE, expire_run, NULL, NULL, "generic", "a key ends at a second since 1970", SECONDS_OF_OWNER},
    {"expiretime", 2, READ, OF_ONE, ttl_run, NULL, NULL, "generic", "the second at which a key ends", NULL},
    {"flushall", -1, CHANGE | COMMAND_ALL | DIRECT, OF_NONE, flushall_run, NULL, NULL, "server", "deletes all keys", "key by key, while others write; ASYNC is taken and means nothing"},
    {"flushdb", -1, CHANGE | COMMAND_ALL | DIRECT, OF_NONE, flushall_run, NULL, NULL, "server", "deletes all keys", "as FLUSHALL: there is one database"},
    {"get", 2, READ, OF_ONE, get_run, get_begin, value_answered, "string", "the value of a key", NULL},
    {"getdel", 2, CHANGE, OF_ONE, getdel_run, NULL, NULL, "string", "the value of a key, which goes", NULL},
    {"getex", -2, CHANGE, OF_ONE, getex_run, NULL, NULL, "string", "the value of a key, which gets another end", NULL},
    {"getrange", 4, READ, OF_ONE, getrange_run, NULL, NULL, "string", "a part of a value", NULL},
    {"getset", 3, CHANGE, OF_ONE, getset_run, NULL, NULL, "string", "writes a value, and answers the one before", NULL},
    {"hdel", -3, CHANGE, OF_ONE, hdel_run, NULL, NULL, "hash", "deletes fields", NULL},
    {"hello", -1, COMMAND_STRANGER | DIRECT, OF_NONE, hello_run, NULL, NULL, "connection", "chooses the protocol", NULL},
    {"hexists", 3, READ, OF_ONE, hexists_run, NULL, NULL, "hash", "whether there is a field", NULL},
    {"hget", 3, READ, OF_ONE, hget_run, NULL, NULL, "hash", "the value of a field", NULL},
    {"hgetall", 2, READ, OF_ONE, hgetall_run, NULL, NULL, "hash", "all fields and their values", "in the order of their names"},
    {"hincrby", 4, CHANGE, OF_ONE, hincrby_run, NULL, NULL, "hash", "adds to a number in a field", NULL},
    {"hincrbyfloat", 4, CHANGE, OF_ONE, hincrbyfloat_run, NULL, NULL, "hash", "adds a fraction to a number in a field", NULL},
    {"hkeys", 2, READ, OF_ONE, hkeys_run, NULL, NULL, "hash", "the names of all fields", "in their order"},
    {"hlen", 2, READ, OF_ONE, hlen_run, NULL, NULL, "hash", "how many fields there are", NULL},
    {"hmget", -3, READ, OF_ONE, hmget_run, NULL, NULL, "hash", "the values of some fields", NULL},
    {"hmset", -4, CHANGE, OF_ONE, hset_run, NULL, NULL, "hash", "writes fields", NULL},
    {"hscan", -3, READ, OF_ONE, hscan_run, NULL, NULL, "hash", "the fields, a page at a time", "in the order of their names; a small hash comes in pages, too; a cursor belongs to the replica that gave it"},
    {"hset", -4, CHANGE, OF_ONE, hset_run, NULL, NULL, "hash", "writes fields", NULL},
    {"hsetnx", 4, CHANGE, OF_ONE, hsetnx_run, NULL, NULL, "hash", "writes a field that is not there", NULL},
    {"hstrlen", 3, READ, OF_ONE, hstrlen_run, NULL, NULL, "hash", "the length of a field's value", NULL},
    {"hvals", 2, READ, OF_ONE, hvals_run, NULL, NULL, "hash", "the values of all fields", "in the order of the names"},
    {"incr", 2, WRITE, OF_ONE, incr_run, incr_begin, number_answered, "string", "adds one to a number", NULL},
    {"incrby", 3, WRITE, OF_ONE, incr_run, incr_begin, number_answered, "string", "adds to a number", NULL},
    {"incrbyfloat", 3, CHANGE, OF_ONE, incrbyfloat_run, NULL, NULL, "string", "adds a fraction to a number", NULL},
    {"info", -1, 0, OF_NONE, info_run, NULL, NULL, "server", "figures of the server", "sections and fields of its own; what they share with Redis has Redis' name"},
    {"keys", 2, ALL, OF_NONE, keys_run, NULL, NULL, "generic", "the keys that fit a pattern", "keys with values first, then hashes, each in order; a pattern that begins with letters looks at keys that do"},
    {"kv.batch", -3, CHANGE | DIRECT, OF_NONE, NULL, kv_batch_begin, version_answered, "kv", "PUT key value, DEL key, EXPECT key version, ROW.PUT table row value, ROW.DEL table row, ROW.EXPECT table row version, all or nothing: the version", "not in Redis; a version that does not stand is a CONFLICT"},
    {"kv.cas", -4, WRITE | DIRECT, OF_ONE, NULL, kv_cas_begin, version_answered, "kv", "key version value [PX ms]: writes if the key is at that version, 0: not there; the new version", "not in Redis"},
    {"kv.get", 2, READ, OF_ONE, kv_get_run, NULL, NULL, "kv", "the value of a key, and its version", "not in Redis"},
    {"mget", -2, READ | SLOTS, OF_ALL, mget_run, mget_begin, element_answered, "string", "the values of keys", PER_SLOT},
    {"mset", -3, CHANGE | SLOTS, OF_PAIRS, mset_run, mset_begin, ok_answered, "string", "writes values", PER_SLOT},
    {"msetnx", -3, CHANGE, OF_PAIRS, msetnx_run, NULL, NULL, "string", "writes values, if none of the keys is there", "with several replicas its keys are of one slot"},
    {"multi", 1, NOW, OF_NONE, multi_run, NULL, NULL, "transactions", "begins a transaction", NULL},
    {"persist", 2, CHANGE, OF_ONE, persist_run, NULL, NULL, "generic", "a key ends no more", NULL},
    {"pexpire", -3, CHANGE, OF_ONE, expire_run, expire_begin, deleted_answered, "generic", "a key ends in so many milliseconds", SECONDS_OF_OWNER},
    {"pexpireat", -3, CHANGE, OF_ONE, expire_run, NULL, NULL, "generic", "a key ends at a millisecond since 1970", SECONDS_OF_OWNER},
    {"pexpiretime", 2, READ, OF_ONE, ttl_run, NULL, NULL, "generic", "the millisecond at which a key ends", NULL},
    {"ping", -1, HERE, OF_NONE, ping_run, NULL, NULL, "connection", "is somebody there?", NULL},
    {"psetex", 4, CHANGE, OF_ONE, setex_run, NULL, NULL, "string", "writes a value that ends in so many milliseconds", NULL},
    {"psubscribe", -2, COMMAND_ALONE | HERE, OF_NONE, subscribe_run, NULL, NULL, "pubsub", "listens to channels that fit a pattern", "hears what is published at this replica"},
    {"pttl", 2, READ, OF_ONE, ttl_run, NULL, NULL, "generic", "the milliseconds that a key has left", NULL},
    {"publish", 3, 0, OF_NONE, publish_run, NULL, NULL, "pubsub", "says something to those who listen to a channel", "reaches those who listen at this replica"},
    {"pubsub", -2, 0, OF_NONE, pubsub_run, NULL, NULL, "pubsub", "who listens, at this replica: CHANNELS NUMSUB NUMPAT", NULL},
    {"punsubscribe", -1, COMMAND_ALONE | HERE, OF_NONE, unsubscribe_run, NULL, NULL, "pubsub", "listens to a pattern no more", NULL},
    {"quit", -1, COMMAND_STRANGER | NOW | HERE, OF_NONE, quit_run, NULL, NULL, "connection", "ends the connection", NULL},
    {"readonly", 1, 0, OF_NONE, readonly_run, NULL, NULL, "connection", "GET, STRLEN and MGET of one key are answered at once from what this replica has, which may be old", "other reads stay linearizable"},
    {"readwrite", 1, 0, OF_NONE, readwrite_run, NULL, NULL, "connection", "reads are linearizable again", NULL},
    {"reset", 1, COMMAND_STRANGER | NOW | HERE, OF_NONE, reset_run, NULL, NULL, "connection", "the connection is as if it were new", NULL},
    {"role", 1, 0, OF_NONE, role_run, NULL, NULL, "server", "what this replica is", "always a master: any replica takes any command"},
    {"scan", -2, ALL, OF_NONE, scan_run, NULL, NULL, "generic", "the keys, a page at a time", "as KEYS in order; a cursor belongs to the replica that gave it, and one of long ago is refused"},
    {"select", 2, 0, OF_NONE, select_run, NULL, NULL, "connection", "there is database 0", "no other database"},
    {"set", -3, CHANGE, OF_ONE, set_run, set_begin, ok_answered, "string", "writes a value", NULL},
    {"setex", 4, CHANGE, OF_ONE, setex_run, NULL, NULL, "string", "writes a value that ends in so many seconds", NULL},
    {"setnx", 3, CHANGE, OF_ONE, setnx_run, NULL, NULL, "string", "writes a value, if there is none", NULL},
    {"setrange", 4, CHANGE, OF_ONE, setrange_run, NULL, NULL, "string", "writes over a part of a value", NULL},
    {"shutdown", -1, DIRECT, OF_NONE, shutdown_run, NULL, NULL, "server", "ends this replica", "NOSAVE and SAVE are taken and mean nothing: what was answered is durable; no ABORT"},
    {"strlen", 2, READ, OF_ONE, strlen_run, get_begin, length_answered, "string", "the length of a value", NULL},
    {"subscribe", -2, COMMAND_ALONE | HERE, OF_NONE, subscribe_run, NULL, NULL, "pubsub", "listens to channels", "hears what is published at this replica"},
    {"substr", 4, READ, OF_ONE, getrange_run, NULL, NULL, "string", "a part of a value", NULL},
    {"tbl.append", -3, WRITE | DIRECT, OF_ONE, NULL, tbl_append_begin, row_answered, "table", "table value [PX ms]: a row under the next number: its name, eight bytes", "not in Redis"},
    {"tbl.get", 3, READ, OF_ONE, tbl_get_run, NULL, NULL, "table", "the value of a row, and its version", "not in Redis"},
    {"tbl.last", -2, READ | DIRECT, OF_ONE, tbl_last_run, NULL, NULL, "table", "table [count]: the last rows, the last first", "not in Redis"},
    {"tbl.put", -4, WRITE | DIRECT, OF_ONE, NULL, tbl_put_begin, version_answered, "table", "table row value [row value ...]: the version", "not in Redis"},
    {"tbl.range", -4, READ | DIRECT, OF_ONE, tbl_range_run, NULL, NULL, "table", "table start stop [LIMIT n] [REV]: rows in order, bounds as in ZRANGEBYLEX", "not in Redis"},
    {"tbl.version", 2, READ, OF_ONE, tbl_version_run, NULL, NULL, "table", "the version of a table's newest write; 0: there is none", "not in Redis"},
    {"time", 1, 0, OF_NONE, time_run, NULL, NULL, "server", "the time", NULL},
    {"touch", -2, READ | SLOTS, OF_ALL, exists_run, NULL, NULL, "generic", "how many of the keys there are", PER_SLOT},
    {"ttl", 2, READ, OF_ONE, ttl_run, NULL, NULL, "generic", "the seconds that a key has left", NULL},
    {"type", 2, READ, OF_ONE, type_run, NULL, NULL, "generic", "what a key holds: string, hash, none", NULL},
    {"unlink", -2, CHANGE | SLOTS, OF_ALL, del_run, del_begin, deleted_answered, "generic", "deletes keys", PER_SLOT},
    {"unsubscribe", -1, COMMAND_ALONE | HERE, OF_NONE, unsubscribe_run, NULL, NULL, "pubsub", "listens to a channel no more", NULL},
    {"unwatch", 1, 0, OF_NONE, unwatch_run, NULL, NULL, "transactions", "watches nothing any more", NULL},
    {"wait", 3, 0, OF_NONE, wait_run, NULL, NULL, "server", "how many other replicas have what was answered", "a majority has it already, so it answers at once, and never more than that"},
    {"watch", -2, COMMAND_READ | COMMAND_ALONE | NOW, OF_ALL, watch_run, NULL, NULL, "transactions", "EXEC does nothing if these keys have changed until then", "one that was not there, was made and deleted again, has not changed"},
};
const size_t COMMAND_COUNT = sizeof COMMANDS / sizeof COMMANDS[0];
