/* ledger.h -- what the records of a replica's log are, told a second time, for the day on which one of them is damaged.
 *
 * With every flush that leaves something in the log goes a LEDGER record. It lists, place by place, what was appended
 * since the one before, and, once more, what that one listed, or all of the last LEDGER_REACH bytes if that is more: so a
 * bad sector that takes records and the ledger behind them leaves the ledger after it.
 *
 *     value     stretches, one behind the other: pieces of one segment
 *     stretch   segment, offset / 4 (varints), items, 0
 *     item      what (1 byte, enum told), size / 4 of the record or envelope (varint), and by `what`:
 *
 *       TOLD_IDLE      -                                     COMMIT and LEDGER: nothing is lost with them
 *       TOLD_VERSION   shard, version, round, node           a version record: the peers have it
 *       TOLD_REPAIR    -                                     one that was fetched back: it is missing again
 *       TOLD_STATE     shard                                 a record of a snapshot, or moved: a new snapshot has it
 *       TOLD_RECORD    kind (1), shard, ballot (8), size,    PROMISE, NODE, SNAPSHOT_BEGIN: the record itself; STATE and
 *                      value                                 SNAPSHOT_END, but for the lanes: a new snapshot has them
 *       TOLD_OTHER     -                                     nothing is known of it: it counts as lost for good
 *       TOLD_BYTES     shard                                 DATA: bytes are missing, and are fetched again
 *
 * An envelope is one item, of what is in it. All numbers are varints but for ballots. The list is made by reading what
 * was appended, so it has all of it, whoever appended it. */
#ifndef KV_LEDGER_H
#define KV_LEDGER_H

#include "kv/flow.h"
#include "list.h"
#include "wire.h"

enum { LEDGER_REACH = 8192, LEDGER_SIZE_MAX = 32768 };
/* Where in the values of these the members begin; behind them come the lanes. */
enum { SNAPSHOT_FIXED = 25, STATE_FIXED = 59 };

enum told { TOLD_NOTHING, TOLD_IDLE, TOLD_VERSION, TOLD_REPAIR, TOLD_STATE, TOLD_RECORD, TOLD_OTHER, TOLD_BYTES };

typedef struct told_item {
    enum told what;
    uint32_t size;
    uint16_t shard;
    uint64_t version, ballot;
    kv_record record;                  /* RECORD: kind, ballot, shard, value */
} told_item;

typedef struct ledger {
    kv_position from;  /* what lies behind it is not told yet */
    kv_position last;  /* of what the last ledger listed anew: told once */
    wire_out bytes;    /* stretches */
    list stretches;    /* of ledger_stretch, in the order of the bytes */
} ledger;

void ledger_free(ledger *l);
/* Reads what was appended, as far as one record tells it. KV_EOF: nothing but ledgers. Else the value is in l->bytes. */
kv_status ledger_extend(ledger *l, const kv_flow *flow);
/* Once it is written: what was told twice, and lies far enough back, is told no more. */
void ledger_wrote(ledger *l);
/* What stood at a place, by the value of a LEDGER. false: it does not say. */
bool ledger_find(const kv_record *record, kv_position at, told_item *out);

#endif
