/* value.c -- one value: a small one through the caller's buffer, a large one straight into its object. */
#include "quick.h"

enum { GIL_SIZE_MAX = KV_SMALL_SIZE }; /* what is copied under the GIL; more takes longer than to give it away */

static kv_result get_named(kv_caller *caller, PyObject *table, PyObject *name) {
    if (table == NULL) return kv_get(caller, content_of(name), size_of(name));
    return kv_row_get(caller, content_of(table), size_of(table), content_of(name), size_of(name));
}

PyObject *value_get(kv_caller *caller, PyObject *table, PyObject *name, uint64_t size, kv_result *result) {
    PyObject *value = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);
    if (value == NULL) return NULL;
    kv_caller_hasten(caller, 1);
    kv_caller_lend(caller, (uint8_t *)PyBytes_AS_STRING(value), size);
    if (size <= GIL_SIZE_MAX) {
        *result = get_named(caller, table, name);
    } else {
        Py_BEGIN_ALLOW_THREADS
        *result = get_named(caller, table, name);
        Py_END_ALLOW_THREADS
    }
    kv_caller_lend(caller, NULL, 0);
    if (*result >= 0 && (uint64_t)*result == size) return value;
    if (*result >= 0 && _PyBytes_Resize(&value, (Py_ssize_t)*result) == 0) return value;
    Py_CLEAR(value);
    return NULL;
}

static PyObject *value_get_plain(kv_caller *caller, PyObject *table, PyObject *name, kv_result *result) {
    kv_caller_hasten(caller, 0);
    Py_BEGIN_ALLOW_THREADS
    *result = get_named(caller, table, name);
    Py_END_ALLOW_THREADS
    if (*result < 0) return NULL;
    return PyBytes_FromStringAndSize((const char *)answered(caller, *result), (Py_ssize_t)*result);
}

PyObject *value_get_any(kv_caller *caller, PyObject *table, PyObject *name, uint64_t size, kv_result *result) {
    PyObject *value = value_get(caller, table, name, size, result);
    int64_t larger = kv_caller_answer(caller)->number;
    if (value == NULL && *result == KV_EWAIT && larger > 0 && larger <= KV_INLINE_SIZE_MAX)
        value = value_get(caller, table, name, (uint64_t)larger, result);
    if (value == NULL && *result == KV_EWAIT && PyErr_Occurred() == NULL)
        value = value_get_plain(caller, table, name, result);
    kv_caller_hasten(caller, 0);
    return value;
}

/* After a get that found more than there is room for with the caller. */
static PyObject *find_large(kv_caller *caller, PyObject *table, PyObject *name) {
    int64_t size = kv_caller_answer(caller)->number;
    kv_result result;
    if (size <= 0 || size > KV_INLINE_SIZE_MAX) return NULL;
    return value_get(caller, table, name, (uint64_t)size, &result);
}

PyObject *value_find(door *d, PyObject *table, PyObject *name, PyObject *otherwise) {
    kv_caller *caller = door_enter(d);
    PyObject *value = NULL;
    kv_result size;
    if (caller == NULL) return NULL;
    if (d->fits) {
        size = get_named(caller, table, name);
    } else {
        Py_BEGIN_ALLOW_THREADS
        size = get_named(caller, table, name);
        Py_END_ALLOW_THREADS
    }
    if (size >= 0) value = PyBytes_FromStringAndSize((const char *)answered(caller, size), (Py_ssize_t)size);
    else if (size == kv_ending(KV_ABSENT)) value = Py_NewRef(otherwise);
    else if (size == KV_EWAIT) value = find_large(caller, table, name);
    door_leave(d, caller);
    return value;
}
