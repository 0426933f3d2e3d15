/* salvage.c -- reads what is left of a damaged flow. For verify, which lists the damage, and for salvage into a new store.
 *
 * A reader only: nothing on the disk is changed. It goes through the files in the order of their ids, and within a file
 * from record to record. Where none is valid it looks on, four bytes at a time, for the next that is: a record's checks
 * are seeded with its place, so what passes was written there. The bytes between are noted as damage. Records of a
 * damaged envelope count one by one: what is left of a batch is better than nothing, and the damage says so.
 *
 * What a later segment would have said is lost with it: an older value may be the newest that is left. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "flow_internal.h"
#include "kv/xxh64.h"

typedef struct salvage {
    kv_flow *flow;
    kv_replay replay;
    void *context;
    uint32_t *ids; /* of the files, ascending */
    size_t count;
} salvage;

static kv_status note(kv_flow *flow, uint32_t id, uint32_t offset, uint64_t size, const char *what) {
    if (flow->damage_count == flow->damage_capacity) {
        size_t capacity = flow->damage_capacity == 0 ? 16 : 2 * flow->damage_capacity;
        kv_damage *larger = realloc(flow->damages, capacity * sizeof *larger);
        if (larger == NULL) return KV_ENOMEM;
        flow->damages = larger;
        flow->damage_capacity = capacity;
    }
    kv_damage *one = &flow->damages[flow->damage_count++];
    *one = (kv_damage){.segment = id, .offset = offset, .size = size};
    snprintf(one->what, sizeof one->what, "%s", what);
    return KV_OK;
}

const kv_damage *kv_flow_damages(const kv_flow *flow, size_t *count) {
    *count = flow->damage_count;
    return flow->damages;
}

/* --- files --- */

static bool header_intact(const uint8_t *page, size_t size, uint32_t id) {
    return size >= KV_SEGMENT_HEADER_SIZE && memcmp(page, SEGMENT_MAGIC, 8) == 0 &&
           kv_load64(page + HEADER_CHECKSUM) == kv_xxh64(page, HEADER_CHECKSUM, 0) && kv_load32(page + HEADER_ID) == id;
}

static bool same_store(const kv_flow *flow, const uint8_t *page) {
    return memcmp(flow->store_id, page + HEADER_STORE_ID, sizeof flow->store_id) == 0 &&
           kv_load64(page + HEADER_SALT) == flow->salt;
}

static kv_status list_files(salvage *s) {
    char **names;
    size_t count;
    kv_status status = s->flow->io->list(s->flow->io, "flow", &names, &count);
    if (status != KV_OK) return status == KV_ABSENT ? KV_ENOTFOUND : status;
    s->ids = calloc(count + 1, sizeof *s->ids);
    for (size_t i = 0; s->ids != NULL && i < count; i++)
        if (segment_parse_name(names[i], &s->ids[s->count])) s->count++;
    free(names);
    return s->ids == NULL ? KV_ENOMEM : KV_OK;
}

static kv_status read_header(salvage *s, uint32_t id, uint8_t page[KV_SEGMENT_HEADER_SIZE], size_t *got) {
    kv_io *io = s->flow->io;
    char path[SEGMENT_PATH_SIZE];
    kv_file *file;
    segment_path(id, path);
    *got = 0;
    kv_status status = io->open(io, path, KV_IO_READ, &file);
    if (status != KV_OK) return status;
    status = io->read_at(io, file, page, KV_SEGMENT_HEADER_SIZE, 0, got);
    io->close(io, file);
    return status;
}

/* Salt and store id, without which no record can be told: from the first header that is intact. */
static kv_status identify(salvage *s) {
    uint8_t page[KV_SEGMENT_HEADER_SIZE];
    for (size_t i = 0; i < s->count; i++) {
        size_t got;
        if (read_header(s, s->ids[i], page, &got) != KV_OK || !header_intact(page, got, s->ids[i])) continue;
        if (kv_load32(page + HEADER_FORMAT) != FLOW_FORMAT) return KV_EFORMAT;
        memcpy(s->flow->store_id, page + HEADER_STORE_ID, sizeof s->flow->store_id);
        s->flow->salt = kv_load64(page + HEADER_SALT);
        return KV_OK;
    }
    return s->count == 0 ? KV_ENOTFOUND : KV_ECORRUPT;
}

static kv_status map_segment(salvage *s, segment *one) {
    kv_io *io = s->flow->io;
    char path[SEGMENT_PATH_SIZE];
    uint64_t size = 0;
    segment_path(one->id, path);
    kv_status status = io->open(io, path, KV_IO_READ, &one->file);
    if (status == KV_OK) status = io->size(io, one->file, &size);
    one->size = size > KV_SEGMENT_SIZE_MAX ? KV_SEGMENT_SIZE_MAX : (uint32_t)size; /* no location goes further out */
    if (status != KV_OK || size == 0) return status;
    return io->map(io, one->file, one->size, false, &one->bytes);
}

/* A file that cannot be read is damage; only what is wrong with this machine ends the salvage. */
static kv_status load_segment(salvage *s, uint32_t id) {
    segment *one = calloc(1, sizeof *one);
    if (one == NULL) return KV_ENOMEM;
    one->id = id;
    kv_status status = map_segment(s, one);
    bool readable = status == KV_OK && one->size > KV_SEGMENT_HEADER_SIZE;
    if (status == KV_ENOMEM || status == KV_ELIMIT) {
        segment_release(s->flow, one);
        return status;
    }
    if (!readable) {
        segment_release(s->flow, one);
        return note(s->flow, id, 0, 0, "the file cannot be read, or holds nothing");
    }
    if (header_intact(one->bytes, one->size, id) && same_store(s->flow, one->bytes)) {
        segment_decode_header(s->flow, one->bytes, one);
    } else {
        status = note(s->flow, id, 0, KV_SEGMENT_HEADER_SIZE, "the header is damaged");
    }
    if (status == KV_OK && one->sealed && atomic_load(&one->end) > one->size) {
        status = note(s->flow, id, one->size, atomic_load(&one->end) - one->size, "the file ends before its last record");
        atomic_store(&one->end, one->size);
    }
    if (status == KV_OK) status = segment_register(s->flow, one);
    if (status != KV_OK) segment_release(s->flow, one);
    return status;
}

/* Files that were taken out of the chain, and came back or never went, hold what is dead. */
static kv_status drop_leftovers(salvage *s) {
    uint32_t next = 0, expected = 1;
    for (size_t i = 0; i < s->count; i++) {
        const segment *one = segment_find(s->flow, s->ids[i]);
        if (one != NULL && one->link.first) next = expected = one->id;
    }
    for (size_t i = 0; i < s->count; i++) {
        segment *one = segment_find(s->flow, s->ids[i]);
        if (one == NULL) continue;
        if (one->id < next) {
            segment_forget(s->flow, one->id);
            segment_release(s->flow, one);
            continue;
        }
        kv_status status = one->id > expected && expected != 0 ? note(s->flow, expected, 0, 0, "the file is missing") : KV_OK;
        if (status != KV_OK) return status;
        if (one->link.next != 0) next = one->link.next;
        expected = one->link.next != 0 || one->sealed ? segment_successor(one) : 0;
    }
    return KV_OK;
}

/* --- records --- */

/* The next place with a valid record; `end`: there is none. */
static uint32_t find_record(const kv_flow *flow, const segment *one, uint32_t offset, uint32_t end) {
    kv_record record;
    uint32_t used;
    for (; offset < end; offset += KV_RECORD_ALIGN) {
        uint64_t place = kv_place(flow->salt, one->id, offset);
        if (kv_record_decode(one->bytes + offset, end - offset, place, &record, &used) == KV_OK) return offset;
    }
    return end;
}

static kv_status deliver(salvage *s, const segment *one, const kv_record *record, uint32_t offset, uint32_t used) {
    kv_flow *flow = s->flow;
    if (record->sequence > flow->sequence) flow->sequence = record->sequence;
    kv_status status = s->replay(s->context, record, (kv_position){.segment = one->id, .offset = offset}, used);
    if (status != KV_ECORRUPT && status != KV_EFORMAT) return status;
    return note(flow, one->id, offset, used, "the record makes no sense");
}

static kv_status read_segment(salvage *s, segment *one) {
    kv_flow *flow = s->flow;
    uint32_t offset = KV_SEGMENT_HEADER_SIZE, end = one->sealed ? atomic_load(&one->end) : one->size;
    kv_status status = KV_OK;
    while (status == KV_OK && offset < end) {
        kv_record record;
        uint32_t used;
        uint64_t place = kv_place(flow->salt, one->id, offset);
        if (kv_record_decode(one->bytes + offset, end - offset, place, &record, &used) != KV_OK) {
            /* Where the log may end, it does, unless something valid follows that was durable. */
            if (!one->sealed && offset >= one->watermark) break;
            uint32_t next = find_record(flow, one, offset + KV_RECORD_ALIGN, end);
            status = note(flow, one->id, offset, next - offset, "no valid record");
            offset = next;
            continue;
        }
        if (record.kind == KV_KIND_SEAL) break;
        if (record.kind != KV_KIND_ENVELOPE) status = deliver(s, one, &record, offset, used);
        offset += used;
    }
    if (!one->sealed) atomic_store(&one->end, offset);
    kv_position tail = {.segment = one->id, .offset = offset};
    atomic_store(&flow->tail, kv_position_order(tail));
    return status;
}

kv_status flow_salvage(kv_flow *flow, kv_replay replay, void *context, kv_fault *fault) {
    salvage s = {.flow = flow, .replay = replay, .context = context};
    KV_ASSERT(flow->options.readonly);
    kv_status status = list_files(&s);
    if (status == KV_OK) status = identify(&s);
    for (size_t i = 0; status == KV_OK && i < s.count; i++) status = load_segment(&s, s.ids[i]);
    if (status == KV_OK) status = drop_leftovers(&s);
    for (size_t i = 0; status == KV_OK && i < s.count; i++) {
        segment *one = segment_find(flow, s.ids[i]);
        if (one != NULL) status = read_segment(&s, one);
    }
    if (status != KV_OK) {
        fault->status = status;
        fault->os_error = errno;
        snprintf(fault->what, sizeof fault->what, "%s",
                 status == KV_ECORRUPT ? "no segment has a header that is intact, and without one no record can be told"
                                       : "the flow could not be read");
    }
    free(s.ids);
    return status;
}
