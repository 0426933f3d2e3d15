/* recover.c -- finds the end of the log and hands its records to a resolver. The only code that truncates.
 *
 * The reader's algorithm:
 *   - Segments are read in the order of their chain: each seal names the next (0, a clean close: id + 1, if there is
 *     one), or the chain sector does, where segments were removed. The chain begins with segment 1, or with the highest
 *     that says it is the first. A link that leads nowhere is damage.
 *   - A file before the first segment, or between one and its chain next, is a leftover of a removal: it is not read, and
 *     a writer unlinks it once it knows that nothing is damaged.
 *   - Within a segment records follow one another. The first that is not valid, or an envelope that is not whole,
 *     ends the log, whatever follows - unless it lies below the durable watermark or the segment is sealed: then it
 *     is damage, and nothing is changed on the disk.
 *   - A segment behind the end may hold no watermark: one that does was durable once, which says that the end is
 *     damage as well.
 *   - Who can replace a record that is damaged (a replica: options.told) is asked, with what ledgers behind it say, what
 *     it was, and the log goes on behind it. Nothing is changed on the disk for that.
 *
 * What a writer does when the opener before it did not close: nothing, at first. The segment that the log ends in counts
 * as full. The first write, or the close, goes on like behind any full segment (flow.c), in this order:
 *   1. the next segment is made, durably, with a number that was never used and a ceiling above all ceilings seen;
 *   2. the segments behind the end are unlinked, durably; 1 and 2 are done ahead, by whoever prepares segments;
 *   3. a SEAL is written over whatever stands at the end, naming the new one, and only then a record into that;
 *   4. a sync makes durable all that was found and the SEAL, then the header says so and the file is cut behind it.
 * A crash between any two of them leaves a log with the same end, as far as what was found was durable. Stale records
 * behind the end can never join the log: nothing but a SEAL is ever written where it ended. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "flow_internal.h"
#include "kv/xxh64.h"

enum { LIST_COUNT_MAX = 10 };

/* What is in the directory, by id. */
typedef struct listing {
    uint32_t *ids; /* the chain */
    size_t count;
    uint32_t *leftovers;
    size_t leftover_count;
    uint32_t highest; /* of both */
    bool vanished;    /* a file that was listed was not there any more */
} listing;

typedef struct scan {
    kv_flow *flow;
    kv_replay replay;
    void *context;
    kv_fault *fault;
    uint64_t sequence;  /* the highest seen */
    const listing *all; /* of who is to write: what else there is; NULL: a writer may go on meanwhile */
} scan;

static kv_status damage(kv_fault *fault, uint32_t id, uint32_t offset, const char *what) {
    fault->status = KV_ECORRUPT;
    fault->os_error = 0;
    fault->position = (kv_position){.segment = id, .offset = offset};
    snprintf(fault->what, sizeof fault->what, "flow/%08x.seg at %u: %s", id, offset, what);
    return KV_ECORRUPT;
}

static kv_status trouble(kv_fault *fault, kv_status status, uint32_t id, const char *what) {
    fault->status = status;
    fault->os_error = errno;
    fault->position = (kv_position){.segment = id, .offset = 0};
    snprintf(fault->what, sizeof fault->what, "flow/%08x.seg: %s", id, what);
    return status;
}

/* The mapping beyond the cut stays, and is not touched again: readers go where the index points. */
kv_status segment_cut(kv_flow *flow, segment *one, uint32_t offset) {
    kv_status status = flow->io->truncate(flow->io, one->file, offset);
    if (status == KV_OK) status = flow->io->sync(flow->io, one->file);
    return flow_fail(flow, status);
}

/* --- headers --- */

static kv_status header_check(kv_flow *flow, const uint8_t *page, size_t size, uint32_t id, bool first, kv_fault *fault) {
    if (size < KV_SEGMENT_HEADER_SIZE) return damage(fault, id, 0, "the file is shorter than a header");
    if (memcmp(page, SEGMENT_MAGIC, 8) != 0) return damage(fault, id, 0, "the header does not start like a segment's");
    if (kv_load64(page + HEADER_CHECKSUM) != kv_xxh64(page, HEADER_CHECKSUM, 0))
        return damage(fault, id, 0, "the header's checksum is wrong");
    uint32_t format = kv_load32(page + HEADER_FORMAT);
    if (format != FLOW_FORMAT) {
        trouble(fault, KV_EFORMAT, id, "");
        snprintf(fault->what, sizeof fault->what, "the store has format %u; this version reads %d", format, FLOW_FORMAT);
        return KV_EFORMAT;
    }
    if (kv_load32(page + HEADER_ID) != id) return damage(fault, id, 0, "the header is another segment's");
    if (first) {
        memcpy(flow->store_id, page + HEADER_STORE_ID, sizeof flow->store_id);
        flow->salt = kv_load64(page + HEADER_SALT);
    }
    bool same = memcmp(flow->store_id, page + HEADER_STORE_ID, 16) == 0 && flow->salt == kv_load64(page + HEADER_SALT);
    return same ? KV_OK : damage(fault, id, 0, "the segment belongs to another store");
}

static chain_link link_decode(const kv_flow *flow, const uint8_t *page, uint32_t id) {
    const uint8_t *bytes = page + HEADER_CHAIN;
    uint64_t check = kv_xxh64(bytes, 16, kv_place(flow->salt, id, HEADER_CHAIN));
    uint32_t next = kv_load32(bytes);
    /* A chain that led back would never end. */
    if (kv_load64(bytes + 16) != check || (next != 0 && next <= id)) return (chain_link){0};
    return (chain_link){.next = next, .first = kv_load32(bytes + 4), .required = kv_load64(bytes + 8)};
}

void segment_decode_header(kv_flow *flow, const uint8_t *page, segment *one) {
    one->ceiling = kv_load64(page + HEADER_CEILING);
    if (one->ceiling > flow->ceiling) flow->ceiling = one->ceiling;

    one->link = link_decode(flow, page, one->id);
    uint32_t watermark = kv_load32(page + HEADER_WATERMARK);
    if (watermark_check(flow, one->id, watermark) == kv_load32(page + HEADER_WATERMARK + 4)) one->watermark = watermark;

    const uint8_t *seal = page + HEADER_SEAL;
    uint64_t check = kv_xxh64(seal, 16, kv_place(flow->salt, one->id, HEADER_SEAL));
    if (kv_load32(seal) == 0 || check != kv_load64(seal + 16)) return;
    atomic_store(&one->end, kv_load32(seal));
    one->next = kv_load32(seal + 4);
    one->last_sequence = kv_load64(seal + 8);
    one->sealed = true;
    atomic_store(&one->ended, true);
}

/* A chain that led back would never end. */
static bool leads_on(const segment *one, uint32_t next) { return next == 0 || next > one->id; }

static kv_status segment_load(kv_flow *flow, uint32_t id, segment *one, kv_fault *fault) {
    kv_io *io = flow->io;
    char path[SEGMENT_PATH_SIZE];
    uint8_t page[KV_SEGMENT_HEADER_SIZE];
    uint64_t size = 0;
    size_t got = 0;
    segment_path(id, path);
    bool first = atomic_load(&flow->map) == NULL;

    kv_status status = io->open(io, path, flow->options.readonly ? KV_IO_READ : KV_IO_WRITE, &one->file);
    if (status == KV_OK) status = io->size(io, one->file, &size);
    if (status == KV_OK) status = io->read_at(io, one->file, page, sizeof page, 0, &got);
    if (status == KV_ABSENT) return status;
    if (status != KV_OK) return trouble(fault, status, id, "cannot be opened");
    status = header_check(flow, page, got, id, first, fault);
    if (status != KV_OK) return status;
    /* A location in the index has no bits for what lies further out. */
    uint32_t planned = kv_load32(page + HEADER_SIZE);
    if (size > KV_SEGMENT_SIZE_MAX || planned > KV_SEGMENT_SIZE_MAX)
        return damage(fault, id, 0, "the file is larger than a segment can be");
    segment_decode_header(flow, page, one);
    if (one->ceiling > SEQUENCE_MAX) return damage(fault, id, 0, "the header reserves numbers that no record can have");
    if (one->sealed && size < atomic_load(&one->end))
        return damage(fault, id, (uint32_t)size, "the file ends before its last record");
    if (one->sealed && (atomic_load(&one->end) < KV_SEGMENT_HEADER_SIZE + KV_SEAL_SIZE || !leads_on(one, one->next)))
        return damage(fault, id, HEADER_SEAL, "the header's seal cannot be one");
    one->size = (uint32_t)size;
    /* A writer that recovers cuts the file and then lets it grow by a SEAL: a reader that comes in between maps, and
     * does not yet touch, what the file may have again. */
    if (flow->options.readonly && !one->sealed && planned > one->size) one->size = planned;
    status = io->map(io, one->file, one->size, false, &one->bytes);
    return status == KV_OK ? KV_OK : trouble(fault, status, id, "cannot be mapped");
}

/* KV_ABSENT: there is no such file. */
static kv_status segment_open(kv_flow *flow, uint32_t id, kv_fault *fault, segment **out) {
    segment *one = calloc(1, sizeof *one);
    if (one == NULL) return KV_ENOMEM;
    one->id = id;
    kv_status status = segment_load(flow, id, one, fault);
    if (status == KV_OK) status = segment_register(flow, one);
    if (status != KV_OK) {
        segment_release(flow, one);
        return status;
    }
    if (one->sealed) { /* Nothing will be written there: one descriptor less. */
        flow->io->close(flow->io, one->file);
        one->file = NULL;
    }
    *out = one;
    return KV_OK;
}

/* --- records --- */

/* Valid records that follow one another. Replay waits for memory more than for anything else, so the resolver hears of
 * a whole block before it is to apply the first of it. */
typedef struct block {
    kv_record records[KV_REPLAY_BLOCK];
    struct {
        uint32_t offset;
        uint32_t used;
        uint32_t behind; /* where the log goes on once it is applied; within an envelope: again at its head */
    } at[KV_REPLAY_BLOCK];
    size_t count;
    uint32_t next; /* behind the last of them */
    /* The envelope before `next`: its head, and where it ends. What lies between was found valid. */
    uint32_t head, whole;
} block;

/* Every record inside is valid and together they fill it. */
static bool envelope_whole(const scan *s, const segment *one, uint32_t offset, uint32_t end) {
    kv_record record;
    uint32_t used;
    while (offset < end) {
        uint64_t place = kv_place(s->flow->salt, one->id, offset);
        if (kv_record_decode(one->bytes + offset, end - offset, place, &record, &used) != KV_OK) return false;
        if (record.kind == KV_KIND_ENVELOPE || record.kind == KV_KIND_SEAL) return false;
        offset += used;
    }
    return offset == end;
}

/* KV_OK: the record at b->next, `used` bytes of it, is records[count]. */
static kv_status block_decode(block *b, const scan *s, const segment *one, uint32_t limit, uint32_t *used) {
    const uint8_t *bytes = one->bytes + b->next;
    uint64_t place = kv_place(s->flow->salt, one->id, b->next);
    if (b->next < b->whole) return kv_record_peek(bytes, b->whole - b->next, place, &b->records[b->count], used);
    uint64_t left = b->next < limit ? limit - b->next : 0;
    kv_status status = kv_record_decode(bytes, left, place, &b->records[b->count], used);
    return status == KV_OK || status == KV_EFORMAT ? status : KV_EOF;
}

/* KV_MORE: the block is full. KV_OK: a SEAL is next, records[count]. KV_EOF: nothing valid is. KV_EFORMAT: nothing that
 * this version knows. */
static kv_status block_fill(block *b, const scan *s, const segment *one, uint32_t limit) {
    for (b->count = 0; b->count < KV_REPLAY_BLOCK;) {
        uint32_t used = 0, offset = b->next;
        const kv_record *record = &b->records[b->count];
        kv_status status = block_decode(b, s, one, limit, &used);
        b->at[b->count].used = used;
        if (status != KV_OK || record->kind == KV_KIND_SEAL) return status;
        if (record->kind == KV_KIND_ENVELOPE) {
            uint32_t end = offset + used + record->value_size;
            if (!envelope_whole(s, one, offset + used, end)) return KV_EOF;
            b->head = offset;
            b->whole = end;
            b->next += used;
            continue;
        }
        b->next += used;
        b->at[b->count].offset = offset;
        b->at[b->count++].behind = b->next < b->whole ? b->head : b->next;
    }
    return KV_MORE;
}

static kv_status deliver(scan *s, const kv_record *record, uint32_t id, uint32_t offset, uint32_t used) {
    if (record->sequence > s->sequence) s->sequence = record->sequence;
    if (s->replay == NULL) return KV_OK;
    return s->replay(s->context, record, (kv_position){.segment = id, .offset = offset}, used);
}

/* In order. *offset: where the log goes on behind what was applied. */
static kv_status block_apply(scan *s, const block *b, segment *one, uint32_t *offset) {
    if (s->replay != NULL && s->flow->options.ahead != NULL) s->flow->options.ahead(s->context, b->records, b->count);
    for (size_t i = 0; i < b->count; i++) {
        kv_status status = deliver(s, &b->records[i], one->id, b->at[i].offset, b->at[i].used);
        if (status != KV_OK) return status;
        *offset = b->at[i].behind;
        if (!one->sealed) atomic_store(&one->end, *offset);
    }
    *offset = b->next < b->whole ? b->head : b->next; /* An envelope may be empty. */
    if (!one->sealed) atomic_store(&one->end, *offset);
    return KV_OK;
}

/* Never a torn tail, which could be cut: a newer version's records must not be lost to an older one. */
static kv_status unknown_record(scan *s, const segment *one, uint32_t offset) {
    s->fault->status = KV_EFORMAT;
    s->fault->position = (kv_position){.segment = one->id, .offset = offset};
    snprintf(s->fault->what, sizeof s->fault->what, "flow/%08x.seg at %u: a record of a newer version", one->id, offset);
    return KV_EFORMAT;
}

/* KV_EOF: it cannot be one. A header that was sealed keeps its word: it may have been told more since. */
static kv_status take_seal(segment *one, const kv_record *record, uint32_t used, uint32_t *offset) {
    if (record->value_size != 4 || !leads_on(one, kv_load32(record->value))) return KV_EOF;
    *offset += used;
    if (one->sealed) return KV_OK;
    one->next = kv_load32(record->value);
    atomic_store(&one->ended, true);
    atomic_store(&one->end, *offset);
    return KV_OK;
}

/* Replays from *offset. KV_OK: a SEAL ended the segment, *offset is behind it. KV_EOF: no valid record at *offset.
 * Anything else is the resolver's word. */
static kv_status scan_segment(scan *s, segment *one, uint32_t limit, uint32_t *offset) {
    block b = {.next = *offset};
    kv_status ending = KV_MORE;
    while (ending == KV_MORE) {
        ending = block_fill(&b, s, one, limit);
        kv_status status = block_apply(s, &b, one, offset);
        if (status != KV_OK) return status;
    }
    if (ending == KV_EFORMAT) return unknown_record(s, one, *offset);
    return ending == KV_OK ? take_seal(one, &b.records[b.count], b.at[b.count].used, offset) : ending;
}

/* A segment is begun when the one before it is durable as a whole, whatever the header of that one says by then. */
static const char *const LATER_DURABLE = "the log ends here, but later records were durable";

static bool is_later_durable(kv_flow *flow, const listing *all, uint32_t last) {
    for (size_t i = 0; i < all->count; i++) {
        const segment *one = segment_find(flow, all->ids[i]);
        if (one->id > last && (one->sealed || one->watermark > KV_SEGMENT_HEADER_SIZE)) return true;
    }
    return false;
}

/* What an end of valid records at `offset` means. KV_EOF: the log ends there. */
static kv_status judge_end(scan *s, const segment *one, uint32_t offset) {
    if (one->sealed || one->link.next != 0)
        return damage(s->fault, one->id, offset, "no valid record, in a sealed segment");
    if (offset < one->watermark) return damage(s->fault, one->id, offset, "no valid record, below the durable watermark");
    if (s->all != NULL && is_later_durable(s->flow, s->all, one->id)) return damage(s->fault, one->id, offset, LATER_DURABLE);
    return KV_EOF;
}

/* The record at *offset is damaged: behind it, if somebody can tell what it was. Its seal a sealed segment can spare. */
static kv_status damage_pass(scan *s, segment *one, uint32_t limit, uint32_t *offset) {
    uint32_t size = 0;
    if (s->flow->options.told == NULL) return KV_ECORRUPT;
    if (one->sealed && *offset + KV_SEAL_SIZE == limit) size = KV_SEAL_SIZE;
    kv_status status = size != 0 ? KV_OK : flow_told(s->flow, s->context, one, *offset, &size);
    if (status == KV_ABSENT || (status == KV_OK && (size == 0 || size > limit - *offset))) return KV_ECORRUPT;
    if (status != KV_OK) return status;
    *s->fault = (kv_fault){0};
    *offset += size;
    if (!one->sealed) atomic_store(&one->end, *offset);
    return KV_OK;
}

/* As scan_segment(), and on behind what is damaged and can be told. KV_EOF: the log ends there. */
static kv_status scan_whole(scan *s, segment *one, uint32_t limit, uint32_t *offset) {
    for (;;) {
        kv_status status = scan_segment(s, one, limit, offset);
        if (status != KV_EOF) return status;
        status = judge_end(s, one, *offset);
        if (status == KV_ECORRUPT) status = damage_pass(s, one, limit, offset);
        if (status != KV_OK) return status;
        if (one->sealed && *offset == limit) return KV_OK;
    }
}

/* The segment that follows, by name: it was there when it was named. 0: a clean close, and nothing followed yet. */
static uint32_t segment_named(const segment *one) { return one->link.next != 0 ? one->link.next : one->next; }

uint32_t segment_successor(const segment *one) {
    uint32_t named = segment_named(one);
    return named != 0 ? named : one->id + 1;
}

/* The file may have been cut to its end since it was mapped, and what was cut cannot be touched. */
static kv_status readable_limit(kv_flow *flow, const segment *one, uint32_t *limit) {
    uint64_t size = 0;
    kv_status status = flow->io->size(flow->io, one->file, &size);
    *limit = size < one->size ? (uint32_t)size : one->size;
    return status;
}

/* Replays the chain from `start` on. *end is where the log ends: behind a clean SEAL, or KV_EOF's place. */
static kv_status scan_chain(scan *s, segment *one, uint32_t offset, kv_position *end) {
    for (;;) {
        uint32_t limit = atomic_load(&one->end);
        kv_status status = one->sealed ? KV_OK : readable_limit(s->flow, one, &limit);
        if (status != KV_OK) return status;
        /* A position noted behind the SEAL of a closed store: nothing is left to read here. */
        if (!one->sealed || offset != limit) status = scan_whole(s, one, limit, &offset);
        *end = (kv_position){.segment = one->id, .offset = offset};
        if (status == KV_EOF) return KV_OK;
        if (status != KV_OK) return status;
        if (one->sealed && offset != atomic_load(&one->end))
            return damage(s->fault, one->id, offset, "the segment ends before its header says");
        segment *next = segment_find(s->flow, segment_successor(one));
        if (next == NULL) {
            /* A writer may have gone on since a reader listed the directory. */
            if (segment_named(one) == 0 || s->flow->options.readonly) return KV_OK;
            return damage(s->fault, segment_named(one), 0, "the file is missing");
        }
        one = next;
        offset = KV_SEGMENT_HEADER_SIZE;
    }
}

/* --- opening --- */

bool segment_parse_name(const char *name, uint32_t *id) {
    char again[SEGMENT_PATH_SIZE];
    unsigned value = 0;
    if (sscanf(name, "%8x.seg", &value) != 1 || value == 0) return false;
    segment_path(value, again);
    *id = value;
    return strcmp(again + strlen("flow/"), name) == 0;
}

static void listing_clear(listing *l) {
    free(l->ids);
    free(l->leftovers);
    *l = (listing){0};
}

static kv_status open_all(kv_flow *flow, kv_fault *fault, listing *l) {
    char **names = NULL;
    size_t name_count = 0;
    kv_status status = flow->io->list(flow->io, "flow", &names, &name_count);
    if (status == KV_ABSENT) return KV_OK;
    if (status != KV_OK) return trouble(fault, status, 0, "the directory cannot be listed");
    l->ids = calloc(name_count + 1, sizeof *l->ids);
    l->leftovers = calloc(name_count + 1, sizeof *l->leftovers);
    if (l->ids == NULL || l->leftovers == NULL) status = KV_ENOMEM;
    for (size_t i = 0; status == KV_OK && i < name_count; i++) {
        segment *one;
        uint32_t id;
        if (!segment_parse_name(names[i], &id)) continue;
        status = segment_open(flow, id, fault, &one);
        if (status == KV_OK) l->ids[l->count++] = l->highest = id;
        /* Between a reader's look at the directory and at the file a writer may remove a segment, or give up its next. */
        if (status != KV_ABSENT || !flow->options.readonly) continue;
        l->vanished = true;
        status = KV_OK;
    }
    free(names);
    return status;
}

/* Oldest first, so that whatever follows a link is seen after it. */
static void set_leftovers_apart(kv_flow *flow, listing *l) {
    uint32_t next = 0; /* the lowest id that can come now */
    size_t kept = 0;
    for (size_t i = 0; i < l->count; i++)
        if (segment_find(flow, l->ids[i])->link.first) next = l->ids[i];
    flow->required = 0;
    for (size_t i = 0; i < l->count; i++) {
        segment *one = segment_find(flow, l->ids[i]);
        if (one->id < next) {
            l->leftovers[l->leftover_count++] = one->id;
            segment_forget(flow, one->id);
            segment_release(flow, one);
            continue;
        }
        l->ids[kept++] = one->id;
        if (one->link.next > next) next = one->link.next;
        if (one->link.required > flow->required) flow->required = one->link.required;
    }
    l->count = kept;
}

/* The chain from the first segment on reaches everything, or ends where the log does: `end` comes later. Before any
 * record is replayed only sealed segments can be followed, which is what matters: a missing one among them is a hole.
 * The id of the first that is missing, or 0. */
static uint32_t find_hole(const kv_flow *flow, const listing *l) {
    if (l->count != 0 && l->ids[0] != 1 && !segment_find(flow, l->ids[0])->link.first) return 1;
    for (size_t i = 0; i < l->count; i++) {
        const segment *one = segment_find(flow, l->ids[i]);
        if (!one->sealed && one->link.next == 0) break;
        uint32_t expected = segment_successor(one);
        bool last = i + 1 == l->count;
        bool hole = last ? segment_named(one) != 0 && !flow->options.readonly : l->ids[i + 1] != expected;
        if (hole) return expected;
    }
    return 0;
}

static kv_status left_behind(kv_fault *fault, uint32_t id) {
    fault->status = KV_EBEHIND;
    fault->os_error = 0;
    fault->position = (kv_position){.segment = id, .offset = 0};
    snprintf(fault->what, sizeof fault->what, "segments from %08x on were compacted away before they were read", id);
    return KV_EBEHIND;
}

/* Whether a writer wrote a link since the headers were read. If not, there was a moment at which all of them were as we
 * have them; else we may have an early segment from before its removal, and lack a later one with the tombstones that
 * went because that one had gone. */
static bool links_changed(const kv_flow *flow, const listing *l) {
    for (size_t i = 0; i < l->count; i++) {
        const segment *one = segment_find(flow, l->ids[i]);
        chain_link now = link_decode(flow, one->bytes, one->id);
        if (now.next != one->link.next || now.first != one->link.first) return true;
    }
    return false;
}

/* While a reader looks, a writer beside it may remove segments. What a header names was there then: so a hole is damage
 * only if a second look finds the same one, and no file went in between. */
static kv_status open_chain(kv_flow *flow, kv_fault *fault, listing *l) {
    uint32_t hole = 0;
    for (int i = 0; i < LIST_COUNT_MAX; i++) {
        uint32_t before = hole;
        listing_clear(l);
        segments_release(flow);
        kv_status status = open_all(flow, fault, l);
        if (status != KV_OK) return status;
        set_leftovers_apart(flow, l);
        hole = find_hole(flow, l);
        if (hole == 0 && !(flow->options.readonly && links_changed(flow, l))) return KV_OK;
        bool stays = hole != 0 && hole == before && !l->vanished;
        if (stays || !flow->options.readonly) return damage(fault, hole, 0, "the file is missing");
    }
    return left_behind(fault, hole);
}

/* In a segment whose header lost its seal: reading on behind the SEAL record would be reading past the end. */
static bool follows_seal(const kv_flow *flow, const segment *one, uint32_t offset) {
    kv_record record;
    uint32_t used;
    if (offset < KV_SEGMENT_HEADER_SIZE + KV_SEAL_SIZE) return false;
    offset -= KV_SEAL_SIZE;
    uint64_t place = kv_place(flow->salt, one->id, offset);
    kv_status status = kv_record_decode(one->bytes + offset, one->size - offset, place, &record, &used);
    return status == KV_OK && record.kind == KV_KIND_SEAL;
}

/* Segments before the start of a replay were durable when that position was noted, and say so themselves. */
static segment *find_start(kv_flow *flow, const uint32_t *ids, size_t count, kv_position start) {
    segment *one = segment_find(flow, start.segment);
    if (one == NULL || start.offset < KV_SEGMENT_HEADER_SIZE || start.offset > one->size) return NULL;
    /* Where the start itself does not, the position is of a later time than these files. */
    bool durable = one->sealed || one->watermark >= start.offset || start.offset == KV_SEGMENT_HEADER_SIZE;
    if (!durable) return NULL;
    if (one->sealed ? start.offset > atomic_load(&one->end) : follows_seal(flow, one, start.offset)) return NULL;
    for (size_t i = 0; i < count && ids[i] < start.segment; i++)
        if (!segment_find(flow, ids[i])->sealed) return NULL;
    return one;
}

static kv_status check_behind_end(kv_flow *flow, const listing *l, kv_position end, kv_fault *fault) {
    bool reserved = flow->sequence <= flow->ceiling && segment_find(flow, end.segment)->last_sequence <= flow->ceiling;
    if (!reserved) return damage(fault, end.segment, end.offset, "a number above all ceilings was used before");
    if (flow->ceiling > SEQUENCE_MAX - SEQUENCE_SPARE || l->highest == UINT32_MAX)
        return damage(fault, l->highest, 0, "the header leaves no numbers to go on with");
    for (size_t i = 0; i < l->count; i++) {
        const segment *one = segment_find(flow, l->ids[i]);
        /* Nobody read what a seal leads around, and once that is in the header a file is missing there. */
        bool leads = l->ids[i] <= end.segment && atomic_load(&one->ended) && i + 1 < l->count;
        if (leads && segment_successor(one) != l->ids[i + 1]) return damage(fault, l->ids[i + 1], 0, "no seal leads to it");
    }
    return is_later_durable(flow, l, end.segment) ? damage(fault, end.segment, end.offset, LATER_DURABLE) : KV_OK;
}

/* --- taking the end over --- */

static kv_status activate_next(kv_flow *flow) {
    kv_status status = segment_register(flow, atomic_load(&flow->next));
    if (status != KV_OK) return status;
    flow->active = atomic_exchange(&flow->next, NULL);
    kv_position start = {.segment = flow->active->id, .offset = KV_SEGMENT_HEADER_SIZE};
    atomic_store(&flow->tail, kv_position_order(start));
    atomic_store(&flow->durable, kv_position_order(start));
    return KV_OK;
}

kv_status segments_unlink_behind(kv_flow *flow) {
    for (size_t i = 0; i < flow->behind_count; i++) {
        char path[SEGMENT_PATH_SIZE];
        segment_path(flow->behind[i], path);
        kv_status status = flow->io->unlink(flow->io, path);
        if (status != KV_OK && status != KV_ABSENT) return status;
    }
    kv_status status = flow->behind_count != 0 ? flow->io->sync_dir(flow->io, "flow") : KV_OK;
    if (status == KV_OK) flow->behind_count = 0;
    return status;
}

/* Nobody looks at them any more; their files have to wait for the next segment, whose header takes over their ceilings. */
static kv_status set_behind_apart(kv_flow *flow, const listing *l, uint32_t last) {
    flow->behind = calloc(l->count, sizeof *flow->behind);
    if (flow->behind == NULL) return KV_ENOMEM;
    for (size_t i = 0; i < l->count; i++) {
        if (l->ids[i] <= last) continue;
        flow->behind[flow->behind_count++] = l->ids[i];
        segment *one = segment_find(flow, l->ids[i]);
        segment_forget(flow, l->ids[i]);
        segment_release(flow, one);
    }
    return KV_OK;
}

/* A clean close that did not get as far as the header. Its SEAL will be written anew, naming the next segment; it lies
 * below the watermark, and a half of it may not pass for damage: the watermark goes first, durably. */
static kv_status take_seal_back(kv_flow *flow, segment *last, kv_position *end) {
    end->offset -= KV_SEAL_SIZE;
    kv_status status = KV_OK;
    if (last->watermark > end->offset) {
        status = segment_write_watermark(flow, last, end->offset);
        if (status == KV_OK) status = flow_fail(flow, flow->io->sync(flow->io, last->file));
    }
    if (status == KV_OK) status = segment_cut(flow, last, end->offset);
    last->next = 0;
    atomic_store(&last->end, end->offset);
    atomic_store(&last->ended, false);
    return status;
}

/* Known to be durable: where the oldest segment that is not sealed says so. */
static kv_position known_durable(const kv_flow *flow, const listing *l) {
    for (size_t i = 0; i < l->count; i++) {
        const segment *one = segment_find(flow, l->ids[i]);
        if (one->sealed) continue;
        uint32_t offset = one->watermark > KV_SEGMENT_HEADER_SIZE ? one->watermark : KV_SEGMENT_HEADER_SIZE;
        return (kv_position){.segment = one->id, .offset = offset};
    }
    KV_ASSERT(!"the last segment of a log that was not closed is not sealed");
}

/* From here on the end is that of a segment which is full: the first write seals it there and goes on in a new one, a sync
 * reaches what was found as if it had just been written. */
static kv_status take_over(kv_flow *flow, const listing *l, kv_position end) {
    segment *last = segment_find(flow, end.segment);
    kv_status status = atomic_load(&last->ended) ? take_seal_back(flow, last, &end) : KV_OK;
    if (status != KV_OK) return status;
    atomic_store(&flow->durable, kv_position_order(known_durable(flow, l)));
    atomic_store(&flow->tail, kv_position_order(end));
    for (size_t i = 0; i < l->count && l->ids[i] <= end.segment; i++) {
        segment *one = segment_find(flow, l->ids[i]);
        if (!one->sealed) one->last_sequence = flow->sequence;
    }
    flow->recovered = last;
    if (flow->ceiling < flow->options.sequence_min) flow->ceiling = flow->options.sequence_min;
    flow->sequence = flow->ceiling;
    return set_behind_apart(flow, l, end.segment);
}

static kv_status make_new(kv_flow *flow) {
    kv_io *io = flow->io;
    kv_status status = io->random(io, flow->store_id, sizeof flow->store_id);
    if (status == KV_OK) status = io->random(io, (uint8_t *)&flow->salt, sizeof flow->salt);
    if (status == KV_OK) status = io->mkdir(io, "flow");
    if (status == KV_OK) status = io->sync_dir(io, "");
    if (status == KV_OK) status = kv_flow_prepare(flow, 0);
    if (status == KV_OK) status = activate_next(flow);
    return flow_fail(flow, status);
}

/* Nobody waits for them to be gone: what fails, or comes back in a crash, is the next opener's. */
static void unlink_leftovers(kv_flow *flow, const listing *l) {
    for (size_t i = 0; i < l->leftover_count; i++) {
        char path[SEGMENT_PATH_SIZE];
        segment_path(l->leftovers[i], path);
        flow->io->unlink(flow->io, path);
    }
}

/* A writer's open, after the replay. */
static kv_status become_writer(kv_flow *flow, const listing *l, kv_position end) {
    segment *last = segment_find(flow, end.segment);
    flow->was_clean = last->sealed && last->next == 0;
    flow->next_id = l->highest + 1;
    flow->unsealed = l->ids[0];
    unlink_leftovers(flow, l);
    if (flow->was_clean) {
        flow->sequence = last->last_sequence;
        atomic_store(&flow->tail, kv_position_order(end));
        atomic_store(&flow->durable, kv_position_order(end));
        return KV_OK;
    }
    return take_over(flow, l, end);
}

static kv_status flow_recover(kv_flow *flow, kv_position start, scan *s) {
    if (flow->options.salvage) return flow_salvage(flow, s->replay, s->context, s->fault);
    listing l = {0};
    kv_position end = {0};
    kv_status status = open_chain(flow, s->fault, &l);
    if (status != KV_OK) goto out;
    if (!flow->options.readonly) s->all = &l;
    /* Before anything is looked for at a position of another store's: an end found there would be cut. */
    const uint8_t *expected = flow->options.store_id;
    if (l.count != 0 && expected != NULL && memcmp(flow->store_id, expected, sizeof flow->store_id) != 0) {
        status = KV_EUSAGE;
        goto out;
    }
    kv_position noted = flow->options.noted.segment != 0 && start.segment != 0 ? flow->options.noted : start;
    /* A checkpoint is published only after the flow it stands on is durable: what it knows of must be here. */
    if (noted.segment > (l.count == 0 ? 0 : l.ids[l.count - 1])) {
        status = damage(s->fault, noted.segment, 0, "the file is missing");
        goto out;
    }
    if (noted.segment != 0 && kv_position_order(noted) < flow->required) {
        status = KV_EUSAGE; /* Records that it counts on are gone. */
        goto out;
    }
    if (l.count == 0) {
        status = flow->options.readonly ? KV_ENOTFOUND : make_new(flow);
        goto out;
    }
    if (start.segment == 0) start = (kv_position){.segment = l.ids[0], .offset = KV_SEGMENT_HEADER_SIZE};
    bool there = noted.segment == 0 || find_start(flow, l.ids, l.count, noted) != NULL;
    segment *first = there ? find_start(flow, l.ids, l.count, start) : NULL;
    status = first == NULL ? KV_EUSAGE : scan_chain(s, first, start.offset, &end);
    if (status != KV_OK) goto out;
    flow->sequence = s->sequence;
    flow->replayed = end;
    atomic_store(&flow->tail, kv_position_order(end));
    if (flow->options.readonly) goto out;
    status = check_behind_end(flow, &l, end, s->fault);
    if (status == KV_OK) status = become_writer(flow, &l, end);
out:
    listing_clear(&l);
    return status;
}

kv_status kv_flow_open(kv_io *io, kv_epoch *epoch, const kv_flow_options *options, kv_position start, kv_replay replay,
                       void *context, kv_fault *fault, kv_flow **out) {
    KV_ASSERT(options->segment_size_min >= 4 * KV_PAGE_SIZE && options->segment_size_max <= KV_SEGMENT_SIZE_MAX);
    kv_flow *flow = calloc(1, sizeof *flow);
    if (flow == NULL) return KV_ENOMEM;
    flow->io = io;
    flow->epoch = epoch;
    flow->options = *options;
    flow->next_id = 1;
    flow->unsealed = 1;
    flow->next_size = options->segment_size_min;
    atomic_init(&flow->content, UINT64_MAX);
    pthread_mutex_init(&flow->prepare_lock, NULL);
    pthread_mutex_init(&flow->sync_lock, NULL);
    for (size_t i = 0; i < 2; i++) pthread_cond_init(&flow->sync_done[i], NULL);

    scan s = {.flow = flow, .replay = replay, .context = context, .fault = fault};
    *out = flow;
    kv_status status = flow_recover(flow, start, &s);
    if (status == KV_OK) return KV_OK;
    *out = NULL;
    if (fault->status == KV_OK) {
        fault->status = status;
        fault->os_error = errno;
        snprintf(fault->what, sizeof fault->what, "the flow could not be opened");
    }
    kv_flow_free(flow);
    return status;
}

/* --- read-only openers --- */

/* A writer that closes gives up the segment it prepared and did not use, and the next one makes another under that
 * name: as long as it is empty, ours may be the one that is gone. No record in it, so nobody points there. *gone: there
 * is no file of that name, and what we have is what there was. */
static kv_status look_again(kv_flow *flow, segment **one, bool *gone, kv_fault *fault) {
    segment *again;
    kv_status status = segment_open(flow, (*one)->id, fault, &again);
    *gone = status == KV_ABSENT;
    if (status != KV_OK) return *gone ? KV_OK : status;
    segment_release(flow, *one);
    *one = again;
    return KV_OK;
}

/* The file of this segment is not there. If later ones are it was removed: only the newest one is ever given up. */
static kv_status judge_gone(kv_flow *flow, uint32_t id, kv_fault *fault) {
    char **names;
    size_t count;
    bool here = false, later = false;
    kv_status status = flow->io->list(flow->io, "flow", &names, &count);
    if (status != KV_OK) return trouble(fault, status, id, "the directory cannot be listed");
    for (size_t i = 0; i < count; i++) {
        uint32_t listed;
        if (!segment_parse_name(names[i], &listed)) continue;
        here |= listed == id;
        later |= listed > id;
    }
    free(names);
    return later && !here ? left_behind(fault, id) : KV_ABSENT;
}

/* The file of the segment behind `one` is not there. KV_ABSENT: not yet. KV_OK: `one` has been told its name. */
static kv_status judge_missing(kv_flow *flow, segment *one, kv_fault *fault) {
    if (segment_named(one) != 0) return left_behind(fault, segment_named(one));
    char path[SEGMENT_PATH_SIZE];
    uint8_t page[KV_SEGMENT_HEADER_SIZE];
    size_t got = 0;
    kv_file *file;
    segment now = {.id = one->id};
    segment_path(one->id, path);

    kv_status status = flow->io->open(flow->io, path, KV_IO_READ, &file);
    if (status == KV_ABSENT) return judge_gone(flow, one->id, fault);
    if (status == KV_OK) {
        status = flow->io->read_at(flow->io, file, page, sizeof page, 0, &got);
        flow->io->close(flow->io, file);
    }
    if (status != KV_OK) return trouble(fault, status, one->id, "the header cannot be read");
    status = header_check(flow, page, got, one->id, false, fault);
    if (status != KV_OK) return status;
    segment_decode_header(flow, page, &now);
    one->next = now.next; /* Not the link's, which leads around what we have not read. */
    return one->next != 0 ? KV_OK : KV_ABSENT;
}

/* KV_ABSENT: there is none yet. Never over a link: what it leads around was in the log when this reader opened, or came
 * since, and it has read none of it. */
static kv_status open_successor(kv_flow *flow, segment *one, bool *gone, kv_fault *fault, segment **out) {
    kv_status status;
    if (one->link.next != 0) return left_behind(fault, one->id + 1);
    do {
        uint32_t id = segment_successor(one);
        *gone = false;
        *out = segment_find(flow, id);
        /* The one we may have from opening was only prepared then. */
        status = *out != NULL ? look_again(flow, out, gone, fault) : segment_open(flow, id, fault, out);
        if (status != KV_ABSENT) return status;
        status = judge_missing(flow, one, fault);
    } while (status == KV_OK);
    return status;
}

kv_status kv_flow_refresh(kv_flow *flow, kv_replay replay, void *context, kv_fault *fault) {
    KV_ASSERT(flow->options.readonly);
    scan s = {.flow = flow, .replay = replay, .context = context, .fault = fault, .sequence = flow->sequence};
    segment *one = segment_find(flow, flow->replayed.segment);
    uint32_t offset = flow->replayed.offset;
    bool empty = !atomic_load(&one->ended) && offset == KV_SEGMENT_HEADER_SIZE;
    bool gone = false;
    kv_status status = empty ? look_again(flow, &one, &gone, fault) : KV_OK;
    while (status == KV_OK) {
        /* Sealed does not mean read: a segment may have been filled and sealed since we last looked. */
        uint32_t limit = atomic_load(&one->end);
        bool done = atomic_load(&one->ended) && offset == limit;
        if (!done && !one->sealed) status = readable_limit(flow, one, &limit);
        if (!done && status == KV_OK) status = scan_segment(&s, one, limit, &offset);
        if (status == KV_EOF) status = judge_end(&s, one, offset);
        flow->replayed = (kv_position){.segment = one->id, .offset = offset};
        if (status == KV_EOF && gone && offset == KV_SEGMENT_HEADER_SIZE) status = judge_gone(flow, one->id, fault);
        if (status != KV_OK) break;
        status = open_successor(flow, one, &gone, fault, &one);
        offset = KV_SEGMENT_HEADER_SIZE;
    }
    flow->sequence = s.sequence;
    atomic_store(&flow->tail, kv_position_order(flow->replayed));
    return status == KV_EOF || status == KV_ABSENT ? KV_OK : status;
}
