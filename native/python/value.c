/* value.c -- one value straight into its object, without a stay in the caller's buffer: for large ones. */
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

PyObject *value_get_plain(kv_caller *caller, PyObject *table, PyObject *name, kv_result *result) {
    kv_caller_hasten(caller, 0);
    Py_BEGIN_ALLOW_THREADS
    *result = get_named(caller, table, name);
    Py_END_ALLOW_THREADS
    if (*result < 0) return NULL;
    const kv_answer *answer = kv_caller_answer(caller);
    const uint8_t *content = *result <= KV_SMALL_SIZE ? answer->small : answer->large;
    return PyBytes_FromStringAndSize((const char *)content, (Py_ssize_t)*result);
}
