/* version_log.c -- see version_log.h. */
#include "version_log.h"

#include <stdlib.h>

enum { CAPACITY_MIN = 16 };

bool log_ballot_at(const version_log *log, uint64_t version, uint64_t *ballot) {
    if (version < log->base || version > log_last(log)) return false;
    *ballot = version == log->base ? log->base_ballot : log_at(log, version)->ballot;
    return true;
}

uint64_t log_last_ballot(const version_log *log) {
    return log->count == 0 ? log->base_ballot : log_at(log, log_last(log))->ballot;
}

static kv_status ring_grow(version_log *log) {
    uint64_t capacity = log->capacity == 0 ? CAPACITY_MIN : 2 * log->capacity;
    version_entry *larger = calloc(capacity, sizeof *larger);
    if (larger == NULL) return KV_ENOMEM;
    for (uint64_t i = 0; i < log->count; i++) larger[i] = log->ring[(log->first + i) & (log->capacity - 1)];
    free(log->ring);
    log->ring = larger;
    log->capacity = capacity;
    log->first = 0;
    return KV_OK;
}

kv_status log_push(version_log *log, const version_entry *entry) {
    if (log->count == log->capacity) {
        kv_status status = ring_grow(log);
        if (status != KV_OK) return status;
    }
    log->count++;
    *log_at(log, log_last(log)) = *entry;
    return KV_OK;
}

void log_cut(version_log *log, uint64_t last) {
    KV_ASSERT(last >= log->base);
    if (last < log_last(log)) log->count = last - log->base;
}

void log_let_go(version_log *log, uint64_t base) {
    if (base <= log->base) return;
    KV_ASSERT(log_ballot_at(log, base, &log->base_ballot));
    log->first = (log->first + base - log->base) & (log->capacity - 1);
    log->count -= base - log->base;
    log->base = base;
}

void log_restart(version_log *log, uint64_t base, uint64_t ballot) {
    log->base = base;
    log->base_ballot = ballot;
    log->first = log->count = 0;
}

void log_free(version_log *log) {
    free(log->ring);
    *log = (version_log){0};
}
