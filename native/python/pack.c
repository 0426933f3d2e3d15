/* pack.c -- what goes to C many at a time: batches, and pairs to put.
 *
 * A batch is a dict of names and contents. Its bytes stay where they are: pack() writes an array of kv_operation that
 * points at them, and whoever calls keeps the dict until the batch is written.
 *
 * Pairs are copied, one behind the other as kv_many has them: they may come from anywhere, and the GIL is given away
 * while they are written. */
#include "quick.h"

#include <structmember.h>

/* --- batches --- */

typedef struct collecting {
    PyObject_HEAD
    PyObject *operations; /* {name: (value or None, ttl_ms)} */
    char plain;           /* bool: a put of a key needs nothing looked at but the key and the value */
} collecting;

static int collecting_traverse(collecting *self, visitproc visit, void *arg) {
    Py_VISIT(self->operations);
    return 0;
}

static int collecting_clear(collecting *self) {
    Py_CLEAR(self->operations);
    return 0;
}

static void collecting_dealloc(collecting *self) {
    PyObject_GC_UnTrack(self);
    Py_CLEAR(self->operations);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

PyObject *collecting_put(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    if (!PyObject_TypeCheck(self, &collecting_type) || count != 2) return NULL;
    collecting *c = (collecting *)self;
    if (!c->plain || c->operations == NULL || !PyDict_CheckExact(c->operations)) return NULL;
    if (!PyBytes_CheckExact(args[0]) || !PyBytes_CheckExact(args[1])) return NULL;
    if (size_of(args[0]) == 0 || size_of(args[0]) > KV_KEY_SIZE_MAX) return NULL;
    PyObject *zero = PyLong_FromLong(0), *content = zero == NULL ? NULL : PyTuple_Pack(2, args[1], zero);
    int failed = content == NULL ? -1 : PyDict_SetItem(c->operations, args[0], content);
    Py_XDECREF(zero);
    Py_XDECREF(content);
    return failed ? NULL : Py_NewRef(Py_None);
}

static PyMemberDef collecting_members[] = {
    {"_operations", T_OBJECT_EX, offsetof(collecting, operations), 0, NULL},
    {"_plain", T_BOOL, offsetof(collecting, plain), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

PyTypeObject collecting_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "kvsvr._quick.Collecting",
    .tp_doc = PyDoc_STR("A base of what collects operations: `put` is quick while `_plain`."),
    .tp_basicsize = sizeof(collecting),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .tp_new = PyType_GenericNew,
    .tp_dealloc = (destructor)collecting_dealloc,
    .tp_traverse = (traverseproc)collecting_traverse,
    .tp_clear = (inquiry)collecting_clear,
    .tp_members = collecting_members,
};

/* One operation; false: an exception, or `name` is no bytes. */
static bool operation_fill(kv_operation *operation, PyObject *name, PyObject *content, PyObject *table) {
    if (!PyBytes_Check(name)) return false;
    PyObject *value = PyTuple_CheckExact(content) && PyTuple_GET_SIZE(content) == 2 ? PyTuple_GET_ITEM(content, 0) : NULL;
    if (value == NULL || (value != Py_None && !PyBytes_Check(value))) {
        PyErr_SetString(PyExc_TypeError, "a content is a value, or None, and its ttl_ms");
        return false;
    }
    *operation = (kv_operation){.key = content_of(name), .key_size = (uint32_t)size_of(name)};
    operation->ttl_ms = PyLong_AsLongLong(PyTuple_GET_ITEM(content, 1));
    if (operation->ttl_ms == -1 && PyErr_Occurred() != NULL) return false;
    if (value != Py_None) {
        operation->value = content_of(value);
        operation->value_size = size_of(value);
    }
    if (table != Py_None) {
        operation->table = content_of(table);
        operation->table_size = (uint32_t)size_of(table);
    }
    return true;
}

static PyObject *pack(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    (void)module;
    if (count != 2 || !PyDict_CheckExact(args[0]) || (args[1] != Py_None && !PyBytes_Check(args[1]))) {
        PyErr_SetString(PyExc_TypeError, "a dict and a table, or None, are wanted");
        return NULL;
    }
    PyObject *packed = PyBytes_FromStringAndSize(NULL, PyDict_GET_SIZE(args[0]) * (Py_ssize_t)sizeof(kv_operation));
    if (packed == NULL) return NULL;
    kv_operation *operation = (kv_operation *)PyBytes_AS_STRING(packed);
    PyObject *name, *content;
    for (Py_ssize_t at = 0; PyDict_Next(args[0], &at, &name, &content); operation++) {
        if (operation_fill(operation, name, content, args[1])) continue;
        Py_DECREF(packed);
        return PyErr_Occurred() != NULL ? NULL : Py_NewRef(Py_None);
    }
    return packed;
}

/* --- pairs --- */

enum { PAIRS_COUNT_MAX = 8192, PAIRS_SIZE_MAX = 1 << 20 };

typedef struct bytes_array {
    uint8_t *bytes;
    uint64_t used, capacity;
    uint32_t *sizes;
} bytes_array;

typedef struct pairs {
    PyObject_HEAD
    bytes_array keys, values;
    kv_many many;
} pairs;

static bool array_begin(bytes_array *a) {
    a->capacity = 4096; /* Something, also if all of them are empty: kv_many takes no values for deletes. */
    a->bytes = PyMem_Malloc(a->capacity);
    a->sizes = PyMem_Malloc(PAIRS_COUNT_MAX * sizeof a->sizes[0]);
    if (a->bytes == NULL || a->sizes == NULL) PyErr_NoMemory();
    return a->bytes != NULL && a->sizes != NULL;
}

static bool array_add(bytes_array *a, uint64_t index, PyObject *bytes) {
    uint64_t size = size_of(bytes);
    if (size > UINT32_MAX) {
        PyErr_SetString(PyExc_OverflowError, "larger than 4 GiB");
        return false;
    }
    if (a->used + size > a->capacity) {
        uint64_t capacity = 2 * a->capacity > a->used + size ? 2 * a->capacity : a->used + size;
        uint8_t *larger = PyMem_Realloc(a->bytes, capacity);
        if (larger == NULL) {
            PyErr_NoMemory();
            return false;
        }
        a->bytes = larger;
        a->capacity = capacity;
    }
    memcpy(a->bytes + a->used, content_of(bytes), size);
    a->used += size;
    a->sizes[index] = (uint32_t)size;
    return true;
}

/* Itself, or what `convert` makes of it. */
static PyObject *as_bytes(PyObject *part, PyObject *convert, const char *what) {
    if (PyBytes_CheckExact(part)) return Py_NewRef(part);
    PyObject *made = PyObject_CallFunction(convert, "Os", part, what);
    if (made != NULL && !PyBytes_CheckExact(made)) {
        PyErr_SetString(PyExc_TypeError, "convert() has to make bytes");
        Py_CLEAR(made);
    }
    return made;
}

static bool pairs_add(pairs *p, PyObject *pair, PyObject *convert) {
    PyObject *two = PySequence_Fast(pair, "a pair is a key and a value"), *key = NULL, *value = NULL;
    bool added = false;
    if (two == NULL) return false;
    if (PySequence_Fast_GET_SIZE(two) != 2) {
        PyErr_Format(PyExc_ValueError, "a pair is a key and a value, not %zd things", PySequence_Fast_GET_SIZE(two));
        goto end;
    }
    key = as_bytes(PySequence_Fast_GET_ITEM(two, 0), convert, "key");
    value = key == NULL ? NULL : as_bytes(PySequence_Fast_GET_ITEM(two, 1), convert, "value");
    added = value != NULL && array_add(&p->keys, p->many.count, key) && array_add(&p->values, p->many.count, value);
    p->many.count += added;
end:
    Py_XDECREF(value);
    Py_XDECREF(key);
    Py_DECREF(two);
    return added;
}

/* As many as make one group. */
static bool pairs_take(pairs *p, PyObject *iterator, PyObject *convert) {
    if (!array_begin(&p->keys) || !array_begin(&p->values)) return false;
    while (p->many.count < PAIRS_COUNT_MAX && p->values.used < PAIRS_SIZE_MAX) {
        PyObject *pair = PyIter_Next(iterator);
        if (pair == NULL) break;
        bool added = pairs_add(p, pair, convert);
        Py_DECREF(pair);
        if (!added) return false;
    }
    p->many = (kv_many){.count = p->many.count, .keys = p->keys.bytes, .keys_size = p->keys.used,
                        .key_sizes = p->keys.sizes, .values = p->values.bytes, .values_size = p->values.used,
                        .value_sizes = p->values.sizes};
    return PyErr_Occurred() == NULL;
}

static PyObject *pairs_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"iterator", "convert", NULL};
    PyObject *iterator, *convert;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO:Pairs", names, &iterator, &convert)) return NULL;
    if (!PyIter_Check(iterator)) {
        PyErr_SetString(PyExc_TypeError, "an iterator is wanted");
        return NULL;
    }
    pairs *p = (pairs *)type->tp_alloc(type, 0);
    if (p != NULL && !pairs_take(p, iterator, convert)) Py_CLEAR(p);
    return (PyObject *)p;
}

static void pairs_dealloc(pairs *p) {
    PyMem_Free(p->keys.bytes);
    PyMem_Free(p->keys.sizes);
    PyMem_Free(p->values.bytes);
    PyMem_Free(p->values.sizes);
    Py_TYPE(p)->tp_free((PyObject *)p);
}

static Py_ssize_t pairs_length(PyObject *p) { return (Py_ssize_t)((pairs *)p)->many.count; }

static PyObject *pairs_address(PyObject *p, void *ignored) {
    (void)ignored;
    return PyLong_FromVoidPtr(&((pairs *)p)->many);
}

static PySequenceMethods pairs_sequence = {.sq_length = pairs_length};

static PyGetSetDef pairs_getset[] = {
    {"address", pairs_address, NULL, PyDoc_STR("Of its kv_many, which lives as long as it does."), NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyTypeObject pairs_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "kvsvr._quick.Pairs",
    .tp_doc = PyDoc_STR("The next pairs of an iterator, at most 8192 and some 1 MiB, copied. convert(part, \"key\" or "
                        "\"value\") makes bytes of what is none, or raises."),
    .tp_basicsize = sizeof(pairs),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = pairs_new,
    .tp_dealloc = (destructor)pairs_dealloc,
    .tp_as_sequence = &pairs_sequence,
    .tp_getset = pairs_getset,
};

PyMethodDef pack_functions[] = {
    {"pack", (PyCFunction)(void (*)(void))pack, METH_FASTCALL,
     PyDoc_STR("pack(contents, table)\n--\n\n{name: (value or None, ttl_ms)} as kv_operation[], which points into it; "
               "None if a name is no bytes.")},
    {NULL, NULL, 0, NULL},
};
