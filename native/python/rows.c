/* rows.c -- the quick methods of a table. */
#include "quick.h"

/* Its key, if all that a quick method of a row needs is there. */
static PyObject *table_key_of(PyObject *self) {
    if (door_of(self) == NULL) return NULL;
    PyObject *key = ((quickened *)self)->key;
    return key != NULL && PyBytes_CheckExact(key) ? key : NULL;
}

PyObject *quick_row_get(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    PyObject *key = table_key_of(self);
    if (key == NULL || count < 1 || count > 2 || !PyBytes_CheckExact(args[0])) return NULL;
    return value_find(door_of(self), key, args[0], count == 2 ? args[1] : Py_None);
}

PyObject *quick_row_put(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    PyObject *key = table_key_of(self);
    if (key == NULL || count != 2 || !PyBytes_CheckExact(args[0]) || !PyBytes_CheckExact(args[1])) return NULL;
    if (size_of(args[1]) > KV_SMALL_SIZE) return NULL;
    kv_caller *caller = door_enter(door_of(self));
    if (caller == NULL) return NULL;
    kv_result version = kv_row_put(caller, content_of(key), size_of(key), content_of(args[0]), size_of(args[0]),
                                   content_of(args[1]), size_of(args[1]), 0, 0);
    door_leave(door_of(self), caller);
    return version > 0 ? PyLong_FromLongLong(version) : NULL;
}

PyObject *quick_row_append(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    PyObject *key = table_key_of(self), *row = NULL;
    if (key == NULL || count != 1 || !PyBytes_CheckExact(args[0]) || size_of(args[0]) > KV_SMALL_SIZE) return NULL;
    kv_caller *caller = door_enter(door_of(self));
    if (caller == NULL) return NULL;
    kv_result version =
        kv_row_append(caller, content_of(key), size_of(key), content_of(args[0]), size_of(args[0]), 0, 0);
    if (version > 0) {
        uint64_t number = __builtin_bswap64((uint64_t)kv_caller_answer(caller)->number);
        row = PyBytes_FromStringAndSize((const char *)&number, sizeof number);
    }
    door_leave(door_of(self), caller);
    return row;
}

/* More than a page is left to rows(). */
PyObject *quick_last(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    enum { COUNT_MAX = 1024 };
    PyObject *key = table_key_of(self), *rows = NULL;
    if (key == NULL || count != 1 || !PyLong_CheckExact(args[0])) return NULL;
    long long wanted = PyLong_AsLongLong(args[0]);
    if (wanted < 1 || wanted > COUNT_MAX) {
        PyErr_Clear();
        return NULL;
    }
    kv_caller *caller = door_enter(door_of(self));
    if (caller == NULL) return NULL;
    kv_range range = {.what = KV_SCAN_ROWS, .count_max = (uint64_t)wanted, .reverse = 1, .with_values = 1,
                      .table = content_of(key), .table_size = size_of(key)};
    kv_page page;
    kv_result total;
    kv_caller_hasten(caller, 0);
    Py_BEGIN_ALLOW_THREADS
    total = kv_scan(caller, &range, &page);
    Py_END_ALLOW_THREADS
    kv_caller_hasten(caller, 1);
    if (total >= 0 && (!page.more || page.count == (uint64_t)wanted))
        rows = entries_cut(&page, answered(caller, total), 1);
    if (rows != NULL && PyList_Reverse(rows) < 0) Py_CLEAR(rows);
    door_leave(door_of(self), caller);
    return rows;
}
