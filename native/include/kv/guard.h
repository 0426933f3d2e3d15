/* guard.h -- turns a SIGBUS on a mapped file into a status, for the thread that met it.
 *
 * A page of a mapped file that cannot be read (the file was truncated behind our back, the disk failed) raises
 * SIGBUS, which would end the process. Between enter and leave of a thread it becomes KV_EMAPPING instead; any
 * other SIGBUS goes to whoever handled the signal before us. The handler is the one thing in the core that belongs
 * to the process and not to a handle: the kernel knows no other way.
 *
 *     kv_guard guard;
 *     if (KV_GUARD_CAUGHT(&guard)) { status = KV_EMAPPING; goto out; }   // comes back here after a SIGBUS
 *     ... read the mapping; locals needed after a catch are volatile or set before ...
 *   out:
 *     kv_guard_leave(&guard);
 *
 * Guards nest; leave in reverse order. Between them no lock of the C library may be held when a mapping is touched. */
#ifndef KV_GUARD_H
#define KV_GUARD_H

#include <setjmp.h>

typedef struct kv_guard {
    sigjmp_buf jump;
    struct kv_guard *outer;
} kv_guard;

void kv_guard_install(void);               /* once per process; again is free */
void kv_guard_enter(kv_guard *guard);      /* through the macro */
void kv_guard_leave(kv_guard *guard);
#define KV_GUARD_CAUGHT(guard) (kv_guard_enter(guard), sigsetjmp((guard)->jump, 0) != 0)

#endif
