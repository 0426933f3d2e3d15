/* quick.c -- kvsvr._quick: a call of the engine where nothing about it is special, without the way through Python.
 *
 * Through cffi a get of a small value is 300 ns of which the core needs half: a Python frame, arguments checked and
 * converted one by one, a buffer sliced. docs/decisions/0023 has the measurement that let this file in.
 *
 * A Quick is a method of a class that inherits from Quickened. It wraps the method written in Python, and is the one that
 * is called: if all arguments are plain - bytes, no options - and C can answer without waiting, that is the answer.
 * In every other case, errors included, the wrapped method is called with the same arguments, and starts from scratch.
 * So what a call means stands in one place, in Python, and nothing here raises but for want of memory.
 *
 * The GIL is kept while C works: to give it away and take it back would cost a tenth of a get, and, as soon as two
 * threads want it, a wake-up of the other for every key. Therefore the callers here are hasty (kv_caller_hasten): what
 * would wait is left to the wrapped method, which does give the GIL away. A page of the flow that has to come from the
 * disk cannot be told before; so a store that is large beside the memory of the machine has its gets done without. */
#include "quick.h"

#include <structmember.h>

enum {
    GET_MANY_CHUNK = 512, /* As in kvsvr.store.reads: nobody knows how large the answers are. */
    APART_SIZE_MIN = 4096 /* a larger value goes straight into its object: to copy it twice takes longer than to look again */
};

/* --- the calls --- */

static PyObject *quick_get(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    if (count < 1 || count > 2 || !PyBytes_CheckExact(args[0])) return NULL;
    return value_find(door_of(self), NULL, args[0], count == 2 ? args[1] : Py_None);
}

static PyObject *quick_put(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    if (count != 2 || !PyBytes_CheckExact(args[0]) || !PyBytes_CheckExact(args[1])) return NULL;
    if (size_of(args[1]) > KV_SMALL_SIZE) return NULL;
    door *d = door_of(self);
    kv_caller *caller = door_enter(d);
    if (caller == NULL) return NULL;
    kv_result version = kv_put(caller, content_of(args[0]), size_of(args[0]), content_of(args[1]), size_of(args[1]), 0, 0);
    door_leave(d, caller);
    return version > 0 ? PyLong_FromLongLong(version) : NULL;
}

static PyObject *quick_delete(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    if (count != 1 || !PyBytes_CheckExact(args[0])) return NULL;
    door *d = door_of(self);
    kv_caller *caller = door_enter(d);
    if (caller == NULL) return NULL;
    kv_result version = kv_delete(caller, content_of(args[0]), size_of(args[0]), -1, 0);
    door_leave(d, caller);
    if (version > 0) Py_RETURN_TRUE;
    if (version == kv_ending(KV_ABSENT)) Py_RETURN_FALSE;
    return NULL;
}

/* --- get_many --- */

/* Up to GET_MANY_CHUNK keys, laid out as kv_many wants them. */
typedef struct chunk {
    kv_many many;
    uint32_t key_sizes[GET_MANY_CHUNK];
    int64_t value_sizes[GET_MANY_CHUNK];
    uint8_t *keys;
} chunk;

/* False: one of them is no bytes, or there is no memory. */
static bool chunk_fill(chunk *k, PyObject *const *keys, Py_ssize_t count) {
    uint64_t size = 0;
    for (Py_ssize_t i = 0; i < count; i++) {
        if (!PyBytes_CheckExact(keys[i]) || size_of(keys[i]) > KV_KEY_SIZE_MAX) return false;
        k->key_sizes[i] = (uint32_t)size_of(keys[i]);
        size += k->key_sizes[i];
    }
    k->keys = PyMem_Malloc(size);
    if (k->keys == NULL) return false;
    k->many = (kv_many){.count = (uint64_t)count, .keys = k->keys, .keys_size = size, .key_sizes = k->key_sizes,
                         .value_size_max = APART_SIZE_MIN};
    uint8_t *to = k->keys;
    for (Py_ssize_t i = 0; i < count; i++) {
        memcpy(to, content_of(keys[i]), k->key_sizes[i]);
        to += k->key_sizes[i];
    }
    return true;
}

/* One that was too large to be copied twice; None: it has gone meanwhile. */
static PyObject *value_apart(kv_caller *caller, const uint8_t *key, uint32_t key_size, uint64_t size) {
    kv_result result;
    PyObject *name = PyBytes_FromStringAndSize((const char *)key, key_size);
    if (name == NULL) return NULL;
    PyObject *value = value_get_any(caller, NULL, name, size, &result);
    Py_DECREF(name);
    return value == NULL && result == kv_ending(KV_ABSENT) ? Py_NewRef(Py_None) : value;
}

/* The values of `list` from `at` on; None in place of those that were too large. */
static bool values_cut(const chunk *k, const uint8_t *content, PyObject *list, Py_ssize_t at) {
    for (uint64_t i = 0; i < k->many.count; i++) {
        PyObject *value;
        if (k->value_sizes[i] < 0) {
            value = Py_NewRef(Py_None);
        } else {
            value = PyBytes_FromStringAndSize((const char *)content, (Py_ssize_t)k->value_sizes[i]);
            if (value == NULL) return false;
            content += k->value_sizes[i];
        }
        PyList_SET_ITEM(list, at + (Py_ssize_t)i, value);
    }
    return true;
}

/* Those: they use the caller's buffers, which the others were cut from. */
static bool values_fetch(kv_caller *caller, const chunk *k, PyObject *list, Py_ssize_t at) {
    const uint8_t *key = k->keys;
    for (uint64_t i = 0; i < k->many.count; key += k->key_sizes[i++]) {
        if (k->value_sizes[i] >= -1) continue;
        PyObject *value = value_apart(caller, key, k->key_sizes[i], (uint64_t)(-2 - k->value_sizes[i]));
        if (value == NULL || PyList_SetItem(list, at + (Py_ssize_t)i, value) < 0) return false;
    }
    return true;
}

static bool get_chunk(door *d, chunk *k, PyObject *list, Py_ssize_t at) {
    kv_caller *caller = door_enter(d);
    if (caller == NULL) return false;
    kv_result total;
    kv_caller_hasten(caller, 0);
    Py_BEGIN_ALLOW_THREADS
    total = kv_get_many(caller, &k->many, k->value_sizes);
    Py_END_ALLOW_THREADS
    bool done = total >= 0 && values_cut(k, answered(caller, total), list, at) && values_fetch(caller, k, list, at);
    kv_caller_hasten(caller, 1);
    door_leave(d, caller);
    return done;
}

static PyObject *quick_get_many(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    if (count != 1 || !PyList_CheckExact(args[0])) return NULL;
    door *d = door_of(self);
    Py_ssize_t key_count = PyList_GET_SIZE(args[0]);
    PyObject *list = PyList_New(key_count);
    for (Py_ssize_t at = 0; list != NULL && at < key_count;) {
        chunk k;
        k.keys = NULL;
        /* Another thread may change it while the GIL is away. */
        Py_ssize_t left = PyList_GET_SIZE(args[0]) - at, size = left < GET_MANY_CHUNK ? left : GET_MANY_CHUNK;
        bool done = PyList_GET_SIZE(args[0]) == key_count && chunk_fill(&k, &PyList_GET_ITEM(args[0], at), size) &&
                    get_chunk(d, &k, list, at);
        PyMem_Free(k.keys);
        if (!done) Py_CLEAR(list);
        at += size;
    }
    return list;
}

/* --- a quick method --- */

typedef struct quick {
    PyObject_HEAD
    vectorcallfunc vectorcall;
    quick_call call;
    PyObject *wrapped;
    PyObject *dict; /* for functools.update_wrapper, which makes it look like what it wraps */
} quick;

static PyObject *quick_vectorcall(PyObject *callable, PyObject *const *args, size_t flags, PyObject *names) {
    quick *q = (quick *)callable;
    Py_ssize_t count = PyVectorcall_NARGS(flags);
    if (names == NULL && count >= 1) {
        PyObject *answer = q->call(args[0], args + 1, count - 1);
        if (answer != NULL || PyErr_Occurred() != NULL) return answer;
    }
    return PyObject_Vectorcall(q->wrapped, args, flags, names);
}

static const struct {
    const char *name;
    quick_call call;
} CALLS[] = {
    {"Reads.get", quick_get},
    {"Engine.put", quick_put},
    {"Engine.delete", quick_delete},
    {"Reads.get_many", quick_get_many},
    {"TableReads.get", quick_row_get},
    {"TableReads.last", quick_last},
    {"Table.put", quick_row_put},
    {"Table.append", quick_row_append},
    {"Writes.put", collecting_put},
};

static PyObject *quick_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"method", NULL};
    PyObject *wrapped;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O:quick", names, &wrapped)) return NULL;
    PyObject *name = PyObject_GetAttrString(wrapped, "__qualname__");
    if (name == NULL) return NULL;
    quick_call call = NULL;
    for (size_t i = 0; i < sizeof CALLS / sizeof CALLS[0]; i++)
        if (PyUnicode_CompareWithASCIIString(name, CALLS[i].name) == 0) call = CALLS[i].call;
    if (call == NULL) PyErr_Format(PyExc_ValueError, "there is no quick %R", name);
    Py_DECREF(name);
    quick *q = call == NULL ? NULL : (quick *)type->tp_alloc(type, 0);
    if (q == NULL) return NULL;
    q->vectorcall = quick_vectorcall;
    q->call = call;
    q->wrapped = Py_NewRef(wrapped);
    q->dict = PyDict_New();
    if (q->dict == NULL) Py_CLEAR(q);
    return (PyObject *)q;
}

static int quick_traverse(quick *q, visitproc visit, void *arg) {
    Py_VISIT(q->wrapped);
    Py_VISIT(q->dict);
    return 0;
}

static int quick_clear(quick *q) {
    Py_CLEAR(q->dict);
    return 0;
}

static void quick_dealloc(quick *q) {
    PyObject_GC_UnTrack(q);
    Py_CLEAR(q->dict);
    Py_CLEAR(q->wrapped);
    Py_TYPE(q)->tp_free((PyObject *)q);
}

static PyObject *quick_descr_get(PyObject *self, PyObject *object, PyObject *type) {
    (void)type;
    return object == NULL || object == Py_None ? Py_NewRef(self) : PyMethod_New(self, object);
}

static PyMemberDef quick_members[] = {
    {"__dictoffset__", T_PYSSIZET, offsetof(quick, dict), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef quick_getset[] = {
    {"__dict__", PyObject_GenericGetDict, PyObject_GenericSetDict, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyTypeObject quick_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "kvsvr._quick.Quick",
    .tp_basicsize = sizeof(quick),
    .tp_dictoffset = offsetof(quick, dict),
    .tp_vectorcall_offset = offsetof(quick, vectorcall),
    .tp_call = PyVectorcall_Call,
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL | Py_TPFLAGS_METHOD_DESCRIPTOR,
    .tp_new = quick_new,
    .tp_dealloc = (destructor)quick_dealloc,
    .tp_traverse = (traverseproc)quick_traverse,
    .tp_clear = (inquiry)quick_clear,
    .tp_descr_get = quick_descr_get,
    .tp_members = quick_members,
    .tp_getset = quick_getset,
};

static int module_fill(PyObject *module) {
    if (PyModule_AddType(module, &door_type) < 0) return -1;
    if (PyModule_AddType(module, &quickened_type) < 0) return -1;
    if (PyModule_AddType(module, &collecting_type) < 0) return -1;
    if (PyModule_AddType(module, &pairs_type) < 0) return -1;
    if (listing_prepare() < 0 || PyModule_AddType(module, &listing_type) < 0) return -1;
    return PyModule_AddType(module, &quick_type);
}

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, module_fill}, {0, NULL}};

static struct PyModuleDef module_def = {
    PyModuleDef_HEAD_INIT,
    .m_name = "kvsvr._quick",
    .m_doc = "Methods of the engine that C does by itself where nothing about a call is special.",
    .m_methods = pack_functions,
    .m_slots = module_slots,
};

PyMODINIT_FUNC PyInit__quick(void) { return PyModuleDef_Init(&module_def); }
