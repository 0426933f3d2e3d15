/* quick.h -- what the files of kvsvr._quick share. */
#ifndef KV_PYTHON_QUICK_H
#define KV_PYTHON_QUICK_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "kv/store.h"

static inline const uint8_t *content_of(PyObject *bytes) { return (const uint8_t *)PyBytes_AS_STRING(bytes); }
static inline size_t size_of(PyObject *bytes) { return (size_t)PyBytes_GET_SIZE(bytes); }

/* The bytes of an answer of that size. */
static inline const uint8_t *answered(kv_caller *caller, kv_result size) {
    const kv_answer *answer = kv_caller_answer(caller);
    return size <= KV_SMALL_SIZE ? answer->small : answer->large;
}

/* --- door.c --- */
enum { CALLERS_MAX = 16 }; /* kept; each has 64 KiB for answers */

typedef struct door {
    PyObject_HEAD
    kv_store *store; /* NULL: shut */
    uint64_t memory_size;
    uint32_t calls_left; /* until the next look at the size of the store */
    bool fits;           /* what is read is in memory, as far as one can know */
    Py_ssize_t count;
    kv_caller *callers[CALLERS_MAX];
} door;

typedef struct quickened {
    PyObject_HEAD
    door *door;     /* NULL until it is given one, and where there is none: in a snapshot */
    PyObject *pool; /* whose callers it takes where it is not quick */
    PyObject *key;  /* of a table: bytes; else NULL */
} quickened;

extern PyTypeObject door_type, quickened_type;
door *door_of(PyObject *self); /* NULL: it has none */
/* A hasty caller, for one call; NULL: the door is shut, or none can be had. */
kv_caller *door_enter(door *d);
void door_leave(door *d, kv_caller *caller);

/* --- value.c: of a key, or of a row of `table` (NULL: a key) --- */
/* What a quick get answers; NULL: see quick_call. */
PyObject *value_find(door *d, PyObject *table, PyObject *name, PyObject *otherwise);
/* NULL: *result has the error, or there is an exception. One of about `size` bytes: *result is KV_EWAIT, and answer.number
 * the size, if it is larger; the caller is hasty then. One of any size, at best of that; the caller is not hasty then. */
PyObject *value_get(kv_caller *caller, PyObject *table, PyObject *name, uint64_t size, kv_result *result);
PyObject *value_get_any(kv_caller *caller, PyObject *table, PyObject *name, uint64_t size, kv_result *result);

/* quick.c: the call of a quick method; NULL without an exception: the wrapped method has to do it. */
typedef PyObject *(*quick_call)(PyObject *self, PyObject *const *args, Py_ssize_t count);

/* pack.c */
extern PyTypeObject collecting_type, pairs_type;
PyObject *collecting_put(PyObject *self, PyObject *const *args, Py_ssize_t count);
extern PyMethodDef pack_functions[];

/* rows.c */
PyObject *quick_row_get(PyObject *self, PyObject *const *args, Py_ssize_t count);
PyObject *quick_row_put(PyObject *self, PyObject *const *args, Py_ssize_t count);
PyObject *quick_row_append(PyObject *self, PyObject *const *args, Py_ssize_t count);
PyObject *quick_last(PyObject *self, PyObject *const *args, Py_ssize_t count);

/* listing.c */
PyObject *entries_cut(const kv_page *page, const uint8_t *content, int with_values);
extern PyTypeObject listing_type;
int listing_prepare(void); /* once, before the first */

#endif
