/* guard.c -- the SIGBUS handler and the chain of guards of each thread.
 *
 * A guard is a jump buffer on the stack of the code it protects, linked into its thread's chain. A SIGBUS the
 * kernel raised for a memory access of this thread takes the innermost guard off the chain and jumps to it; a second
 * fault before that guard is left then goes to the next one outside, never round in a circle. Everything else
 * (no guard here, or a signal that somebody sent) is dealt with as if this handler did not exist.
 *
 * The jump buffer holds no signal mask (saving one would cost every guard a system call), so before it jumps the
 * handler puts back the mask of the code it interrupted: with SA_NODEFER that is mostly the one it has, but a tool
 * that wraps sigaction (ThreadSanitizer does) may have blocked everything. SA_ONSTACK, because a handler before us
 * may have arranged for a stack of its own, and it is called on ours.
 *
 * A handler that somebody installs after us replaces ours and the guards no longer catch: it cannot be put in front
 * again without a circle, should the newer one chain to it. So whoever wants both installs theirs first.
 *
 * Threads: any. What is static here is written once, by the first install, except where said. */
#include "kv/guard.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <ucontext.h>

#include "kv/base.h"

/* initial-exec: the lazy kind of thread-local storage allocates on first use, which a signal handler must not. */
static _Thread_local kv_guard *innermost __attribute__((tls_model("initial-exec")));

static struct sigaction previous;
static atomic_bool previous_spent; /* a SA_RESETHAND handler that has had its one call; set by the handler */

static bool is_memory_access(const siginfo_t *info) {
    return info->si_code == BUS_ADRERR || info->si_code == BUS_OBJERR || info->si_code == BUS_MCEERR_AR;
}

static bool was_sent(const siginfo_t *info) { return info->si_code <= 0; /* kill, raise, sigqueue */ }

/* Lets the signal end the process: at once if it was sent, else when the faulting instruction runs again. */
static void act_by_default(int signal_number, const siginfo_t *info) {
    struct sigaction by_default;
    memset(&by_default, 0, sizeof by_default);
    by_default.sa_handler = SIG_DFL;
    sigemptyset(&by_default.sa_mask);
    sigaction(signal_number, &by_default, NULL);
    if (was_sent(info)) raise(signal_number);
}

/* Blocks what the kernel would have blocked for the previous handler. Returning from ours undoes it. */
static void block_for_previous(int signal_number, const ucontext_t *interrupted) {
    sigset_t blocked = previous.sa_mask;
    sigorset(&blocked, &blocked, &interrupted->uc_sigmask);
    if ((previous.sa_flags & SA_NODEFER) == 0) sigaddset(&blocked, signal_number);
    pthread_sigmask(SIG_SETMASK, &blocked, NULL);
}

static void chain(int signal_number, siginfo_t *info, void *context) {
    if ((previous.sa_flags & SA_SIGINFO) == 0) {
        if (previous.sa_handler == SIG_IGN && was_sent(info)) return;
        /* A fault cannot be ignored: it would happen again at once, so the kernel takes SIG_IGN for SIG_DFL. */
        if (previous.sa_handler == SIG_DFL || previous.sa_handler == SIG_IGN) {
            act_by_default(signal_number, info);
            return;
        }
    }
    if ((previous.sa_flags & SA_RESETHAND) != 0 && atomic_exchange(&previous_spent, true)) {
        act_by_default(signal_number, info);
        return;
    }
    block_for_previous(signal_number, context);
    if ((previous.sa_flags & SA_SIGINFO) != 0) previous.sa_sigaction(signal_number, info, context);
    else previous.sa_handler(signal_number);
}

static void on_sigbus(int signal_number, siginfo_t *info, void *context) {
    kv_guard *guard = innermost;
    if (guard == NULL || !is_memory_access(info)) {
        chain(signal_number, info, context);
        return;
    }
    innermost = guard->outer;
    const ucontext_t *interrupted = context;
    pthread_sigmask(SIG_SETMASK, &interrupted->uc_sigmask, NULL);
    siglongjmp(guard->jump, 1);
}

static void install(void) {
    /* Read first: once ours is in place a fault of another thread may need `previous` at any moment. */
    int failed = sigaction(SIGBUS, NULL, &previous);
    KV_ASSERT(failed == 0);
    struct sigaction ours;
    memset(&ours, 0, sizeof ours);
    ours.sa_sigaction = on_sigbus;
    ours.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
    sigemptyset(&ours.sa_mask);
    failed = sigaction(SIGBUS, &ours, NULL);
    KV_ASSERT(failed == 0);
}

void kv_guard_install(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, install);
}

/* The fences keep the compiler from moving the guarded accesses out between enter and leave. */
void kv_guard_enter(kv_guard *guard) {
    guard->outer = innermost;
    innermost = guard;
    atomic_signal_fence(memory_order_seq_cst);
}

void kv_guard_leave(kv_guard *guard) {
    atomic_signal_fence(memory_order_seq_cst);
    KV_ASSERT(innermost == guard || innermost == guard->outer); /* the latter: it has caught */
    innermost = guard->outer;
}
