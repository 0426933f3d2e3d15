/* wake.c -- the store's two threads, who waits for a version, and event loops that are told.
 *
 * The syncer makes what was written durable, at the latest sync_ms_max after it was written, and settles headers when
 * nothing has been written for a while. The preparer makes the next segment while the present one fills.
 *
 * A writer looks, still under its lock, at who has to hear of its write (wake_wanted) and tells them after it
 * (wake_threads). A thread takes its flag back under the writer lock before it looks at what there is to do: so a write
 * either finds the flag down and raises it, or is seen.
 *
 * An event loop waits for nothing here. It asks, and its bell, an eventfd, is rung; either asking is used up by one
 * ring, so a busy store rings no faster than loops come back to ask. With KV_SYNC_NONE the first who asks to be durable
 * starts the syncer, which then works for those who ask and nobody else. */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "store_internal.h"

enum { WAKE_SYNCER = 1, WAKE_PREPARER = 2, WAKE_WAITERS = 4, WAKE_BELLS = 8 };
enum { SETTLE_MS = 200, FULL_DISK_MS = 100, POLL_MS = 5 };

static struct timespec after_ms(int64_t ms) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    at.tv_sec += ms / 1000;
    at.tv_nsec += ms % 1000 * 1000000;
    if (at.tv_nsec >= 1000000000) {
        at.tv_sec++;
        at.tv_nsec -= 1000000000;
    }
    return at;
}

static bool passed(const struct timespec *at) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec > at->tv_sec || (now.tv_sec == at->tv_sec && now.tv_nsec >= at->tv_nsec);
}

unsigned wake_wanted(kv_store *store) {
    unsigned wanted = 0;
    if (store->options.sync != KV_SYNC_NONE && store->syncer_runs && !store->dirty) {
        store->dirty = true;
        wanted |= WAKE_SYNCER;
    }
    if (store->preparer_runs && !store->prepare_asked && kv_flow_wants_prepare(store->flow)) {
        store->prepare_asked = true;
        wanted |= WAKE_PREPARER;
    }
    if (store->waiter_count != 0) wanted |= WAKE_WAITERS;
    if (store->write_asked) wanted |= WAKE_BELLS;
    store->write_asked = false;
    return wanted;
}

void wake_threads(kv_store *store, unsigned wanted) {
    if (wanted & (WAKE_SYNCER | WAKE_PREPARER)) {
        pthread_mutex_lock(&store->wake_lock);
        if (wanted & WAKE_PREPARER) store->prepare_now = true;
        if (wanted & WAKE_SYNCER) store->sync_now = true;
        if (wanted & WAKE_PREPARER) pthread_cond_signal(&store->wake_preparer);
        if (wanted & WAKE_SYNCER) pthread_cond_signal(&store->wake_syncer);
        pthread_mutex_unlock(&store->wake_lock);
    }
    if (wanted & WAKE_WAITERS) wake_waiters(store);
    if (wanted & WAKE_BELLS) wake_bells(store);
}

void wake_waiters(kv_store *store) {
    pthread_mutex_lock(&store->wait_lock);
    pthread_cond_broadcast(&store->waited);
    pthread_mutex_unlock(&store->wait_lock);
}

/* --- the syncer --- */

/* Sleeps until the store is told to stop or `ms` have passed; false: stop. */
static bool sleep_ms(kv_store *store, pthread_cond_t *condition, int64_t ms) {
    struct timespec until = after_ms(ms);
    pthread_mutex_lock(&store->wake_lock);
    while (!store->stop && !passed(&until)) pthread_cond_timedwait(condition, &store->wake_lock, &until);
    bool go_on = !store->stop;
    pthread_mutex_unlock(&store->wake_lock);
    return go_on;
}

enum awaited { STOPPED, WRITTEN, IDLE };

/* Waits for a write; while something is left to settle, not for ever. */
static enum awaited await_write(kv_store *store, bool settled) {
    struct timespec until = after_ms(SETTLE_MS);
    bool late = false;
    pthread_mutex_lock(&store->wake_lock);
    while (!store->stop && !store->sync_now && !store->sync_asked && !late) {
        if (settled) pthread_cond_wait(&store->wake_syncer, &store->wake_lock);
        else late = pthread_cond_timedwait(&store->wake_syncer, &store->wake_lock, &until) == ETIMEDOUT;
    }
    enum awaited what = store->stop ? STOPPED : store->sync_now || store->sync_asked ? WRITTEN : IDLE;
    store->sync_now = false;
    pthread_mutex_unlock(&store->wake_lock);
    return what;
}

/* Lets writes gather, unless somebody asks, and takes the asking over; false: stop. */
static bool await_due(kv_store *store, bool *asked) {
    struct timespec until = after_ms(store->options.sync_ms_max);
    pthread_mutex_lock(&store->wake_lock);
    while (!store->stop && !store->sync_asked && !passed(&until))
        pthread_cond_timedwait(&store->wake_syncer, &store->wake_lock, &until);
    bool go_on = !store->stop;
    *asked = store->sync_asked;
    store->sync_asked = false;
    pthread_mutex_unlock(&store->wake_lock);
    return go_on;
}

static void group_commit(kv_store *store) {
    pthread_mutex_lock(&store->write_lock);
    store->dirty = false;
    pthread_mutex_unlock(&store->write_lock);
    kv_flow_sync(store->flow, kv_flow_tail(store->flow));
    big_reap(store);
}

/* Failures poison the flow; every writer hears of that, and every loop, which is rung and asks again: nobody has
 * to be told here. */
static void *syncer_main(void *argument) {
    kv_store *store = argument;
    bool settled = false, asked;
    for (;;) {
        enum awaited what = await_write(store, settled);
        if (what == STOPPED) return NULL;
        if (what == IDLE) kv_flow_settle(store->flow);
        settled = what == IDLE;
        if (what == IDLE) continue;
        if (!await_due(store, &asked)) return NULL;
        group_commit(store);
        if (asked) wake_bells(store);
    }
}

/* --- the preparer --- */

static bool await_prepare(kv_store *store) {
    pthread_mutex_lock(&store->wake_lock);
    while (!store->stop && !store->prepare_now) pthread_cond_wait(&store->wake_preparer, &store->wake_lock);
    store->prepare_now = false;
    bool go_on = !store->stop;
    pthread_mutex_unlock(&store->wake_lock);
    return go_on;
}

static void *preparer_main(void *argument) {
    kv_store *store = argument;
    do {
        pthread_mutex_lock(&store->write_lock);
        store_note_content(store);
        pthread_mutex_unlock(&store->write_lock);
        kv_status status = kv_flow_prepare(store->flow, 0);
        kv_flow_warm(store->flow);
        /* A full disk: the writer that needs the segment will try again, and hear of it. */
        if (status != KV_OK && !sleep_ms(store, &store->wake_preparer, FULL_DISK_MS)) break;
        pthread_mutex_lock(&store->write_lock);
        store->prepare_asked = false;
        pthread_mutex_unlock(&store->write_lock);
    } while (await_prepare(store));
    return NULL;
}

/* --- starting and stopping --- */

static void init_condition(pthread_cond_t *condition) {
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC); /* A clock that is set must not wake or hold anybody. */
    pthread_cond_init(condition, &attributes);
    pthread_condattr_destroy(&attributes);
}

/* Signals meant for the program must not land here: Python handles them in its main thread. */
static bool start(pthread_t *thread, void *(*run)(void *), kv_store *store) {
    sigset_t all, before;
    sigfillset(&all);
    sigdelset(&all, SIGBUS);
    sigdelset(&all, SIGSEGV);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    bool started = pthread_create(thread, NULL, run, store) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return started;
}

void wake_init(kv_store *store) {
    pthread_mutex_init(&store->wake_lock, NULL);
    pthread_mutex_init(&store->wait_lock, NULL);
    init_condition(&store->wake_syncer);
    init_condition(&store->wake_preparer);
    init_condition(&store->waited);
}

kv_status wake_start(kv_store *store) {
    if (store->options.readonly || !store->options.background) return KV_OK;
    store->prepare_asked = true; /* The preparer looks once before it first sleeps. */
    store->preparer_runs = start(&store->preparer, preparer_main, store);
    if (!store->preparer_runs) return KV_ENOMEM;
    if (store->options.sync == KV_SYNC_NONE) return KV_OK;
    store->syncer_runs = start(&store->syncer, syncer_main, store);
    return store->syncer_runs ? KV_OK : KV_ENOMEM;
}

void wake_stop(kv_store *store) {
    pthread_mutex_lock(&store->wake_lock);
    store->stop = true;
    pthread_cond_broadcast(&store->wake_syncer);
    pthread_cond_broadcast(&store->wake_preparer);
    pthread_mutex_unlock(&store->wake_lock);
    if (store->syncer_runs) pthread_join(store->syncer, NULL);
    if (store->preparer_runs) pthread_join(store->preparer, NULL);
    store->syncer_runs = store->preparer_runs = false;
    wake_waiters(store);
}

void wake_free(kv_store *store) {
    pthread_mutex_destroy(&store->wake_lock);
    pthread_mutex_destroy(&store->wait_lock);
    pthread_cond_destroy(&store->wake_syncer);
    pthread_cond_destroy(&store->wake_preparer);
    pthread_cond_destroy(&store->waited);
    free(store->bells);
}

/* --- waiting for a version --- */

static void count_waiter(kv_store *store, int by) {
    pthread_mutex_lock(&store->write_lock);
    store->waiter_count += (uint32_t)by;
    pthread_mutex_unlock(&store->write_lock);
}

/* Another process writes: nobody here is told. */
static kv_result wait_polling(kv_caller *c, const uint8_t *key, size_t key_size, uint64_t version, struct timespec until) {
    for (;;) {
        kv_result result = kv_refresh(c);
        if (result >= 0) result = kv_version(c, key, key_size);
        if (result < 0 || (uint64_t)result > version || passed(&until)) return result;
        struct timespec pause = {.tv_nsec = POLL_MS * 1000000L};
        nanosleep(&pause, NULL);
    }
}

static kv_result wait_told(kv_caller *c, const uint8_t *key, size_t key_size, uint64_t version, struct timespec until) {
    kv_store *store = c->store;
    kv_result result;
    pthread_mutex_lock(&store->wait_lock);
    for (;;) {
        result = kv_version(c, key, key_size);
        if (result < 0 || (uint64_t)result > version || passed(&until)) break;
        if (atomic_load(&store->state) != STORE_OPEN) {
            result = caller_fail(c, KV_ECLOSED, "the store was closed");
            break;
        }
        pthread_cond_timedwait(&store->waited, &store->wait_lock, &until);
    }
    pthread_mutex_unlock(&store->wait_lock);
    return result;
}

kv_result kv_wait(kv_caller *c, const uint8_t *key, size_t key_size, uint64_t version, int64_t timeout_ms) {
    kv_store *store = c->store;
    if (*store->alive == 0) return caller_fail(c, KV_EFORKED, "opened before fork");
    struct timespec until = after_ms(timeout_ms);
    if (store->options.readonly) return wait_polling(c, key, key_size, version, until);
    count_waiter(store, 1);
    kv_result result = wait_told(c, key, key_size, version, until);
    count_waiter(store, -1);
    return result;
}

/* --- telling event loops --- */

/* A writer may be in the middle of an error of its own: errno stays what it was. */
void wake_bells(kv_store *store) {
    const uint64_t one = 1;
    int os_error = errno;
    pthread_mutex_lock(&store->wake_lock);
    for (size_t i = 0; i < store->bell_count; i++) {
        ssize_t written = write(store->bells[i], &one, sizeof one);
        (void)written; /* What can fail is a counter that is full, and that rings as loud. */
    }
    pthread_mutex_unlock(&store->wake_lock);
    errno = os_error;
}

static kv_status bell_add(kv_store *store, int fd) {
    if (atomic_load(&store->state) == STORE_CLOSED) return KV_ECLOSED;
    if (store->bell_count == store->bell_capacity) {
        size_t capacity = store->bell_capacity * 2 + 4;
        int *larger = realloc(store->bells, capacity * sizeof *larger);
        if (larger == NULL) return KV_ENOMEM;
        store->bells = larger;
        store->bell_capacity = capacity;
    }
    store->bells[store->bell_count++] = fd;
    return KV_OK;
}

kv_status kv_store_notify(kv_store *store, int fd) {
    if (*store->alive == 0) return KV_EFORKED;
    pthread_mutex_lock(&store->wake_lock);
    kv_status status = bell_add(store, fd);
    pthread_mutex_unlock(&store->wake_lock);
    return status;
}

void kv_store_unnotify(kv_store *store, int fd) {
    if (*store->alive == 0) return; /* A forked child: the lock may be held for ever. */
    pthread_mutex_lock(&store->wake_lock);
    for (size_t i = store->bell_count; i-- > 0;)
        if (store->bells[i] == fd) store->bells[i] = store->bells[--store->bell_count];
    pthread_mutex_unlock(&store->wake_lock);
}

kv_result kv_tail(kv_caller *c) {
    kv_epoch_enter(c->store->epoch, c->slot);
    kv_status status = store_usable(c->store);
    kv_result result = status == KV_OK ? (kv_result)kv_position_order(kv_flow_tail(c->store->flow))
                                       : caller_fail(c, status, "the store cannot be asked");
    kv_epoch_leave(c->slot);
    return result;
}

/* wake_stop raises `stop` under the same lock before it joins, so no syncer starts behind its back. */
static kv_status ask_syncer(kv_store *store) {
    pthread_mutex_lock(&store->wake_lock);
    kv_status status = store->stop ? KV_ECLOSED : KV_OK;
    if (status == KV_OK && !store->syncer_runs) {
        store->syncer_runs = start(&store->syncer, syncer_main, store);
        if (!store->syncer_runs) status = KV_ENOMEM;
    }
    if (status == KV_OK && !store->sync_asked) {
        store->sync_asked = true;
        pthread_cond_signal(&store->wake_syncer);
    }
    pthread_mutex_unlock(&store->wake_lock);
    return status;
}

/* Inside the epoch. What is durable already is so also in a store that is poisoned or being closed. */
static kv_status ask_durable(kv_store *store, uint64_t upto, uint64_t *durable) {
    kv_status status = store_usable(store);
    if (status != KV_OK) return status;
    *durable = kv_position_order(kv_flow_durable(store->flow));
    if (*durable >= upto) return KV_OK;
    status = store_writable(store);
    if (status == KV_OK && kv_flow_poison(store->flow, NULL) != KV_OK) status = KV_EPOISONED;
    return status == KV_OK ? ask_syncer(store) : status;
}

kv_result kv_ask_durable(kv_caller *c, uint64_t upto) {
    uint64_t durable = 0;
    kv_epoch_enter(c->store->epoch, c->slot);
    kv_status status = ask_durable(c->store, upto, &durable);
    kv_result result = (kv_result)durable;
    if (status != KV_OK) result = caller_fail(c, status, "the write did not become durable");
    kv_epoch_leave(c->slot);
    return result;
}

kv_result kv_ask_written(kv_caller *c) {
    kv_store *store = c->store;
    kv_result result = 0;
    if (*store->alive == 0) return caller_fail(c, KV_EFORKED, "opened before fork");
    pthread_mutex_lock(&store->write_lock);
    kv_status status = store_writable(store);
    if (status == KV_OK) {
        store->write_asked = true;
        result = (kv_result)kv_flow_sequence(store->flow);
    }
    pthread_mutex_unlock(&store->write_lock);
    return status == KV_OK ? result : caller_fail(c, status, "nothing will be written");
}
