/* door.c -- the way from a Python object to its kv_store, for quick methods.
 *
 * The Handle lends a Door to whoever has quick methods, and shuts it before the store is freed: so an object that outlives
 * the Handle, in a cycle of garbage, finds a shut door and no freed memory. Under the GIL. */
#include "quick.h"

#include <structmember.h>

enum {
    KEPT_SIZE_MAX = 4 << 20, /* a caller that has made room for more goes, as in kvsvr.native */
    LOOK_EVERY = 65536,      /* calls from one look at the size of the store to the next */
    MEMORY_SHARE = 2,        /* a store of more than one part in this of the memory does not fit it */
};

/* --- doors --- */

static PyObject *door_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"address", "memory_size", NULL};
    unsigned long long address, memory_size;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "KK:Door", names, &address, &memory_size)) return NULL;
    door *d = (door *)type->tp_alloc(type, 0);
    if (d == NULL) return NULL;
    d->store = (kv_store *)(uintptr_t)address;
    d->memory_size = memory_size;
    return (PyObject *)d;
}

/* Its callers go with the store. */
static PyObject *door_shut(door *d, PyObject *ignored) {
    (void)ignored;
    d->store = NULL;
    d->count = 0;
    Py_RETURN_NONE;
}

/* Without the GIL: measuring takes the writer lock. */
static void door_look(door *d) {
    kv_stats stats;
    kv_store *store = d->store;
    kv_status status;
    d->calls_left = LOOK_EVERY;
    Py_BEGIN_ALLOW_THREADS
    status = kv_store_measure(store, &stats);
    Py_END_ALLOW_THREADS
    d->fits = status == KV_OK && stats.flow_size <= d->memory_size / MEMORY_SHARE;
}

static kv_caller *door_caller_new(door *d) {
    kv_caller *caller;
    if (kv_caller_new(d->store, &caller) != KV_OK) return NULL;
    kv_caller_hasten(caller, 1);
    return caller;
}

kv_caller *door_enter(door *d) {
    if (d == NULL || d->store == NULL) return NULL;
    if (d->calls_left-- == 0) door_look(d);
    return d->count > 0 ? d->callers[--d->count] : door_caller_new(d);
}

void door_leave(door *d, kv_caller *caller) {
    if (d->store == NULL) return;
    bool is_small = kv_caller_answer(caller)->large_capacity <= KEPT_SIZE_MAX;
    if (is_small && d->count < CALLERS_MAX) d->callers[d->count++] = caller;
    else kv_caller_free(caller);
}

static PyMethodDef door_methods[] = {
    {"shut", (PyCFunction)door_shut, METH_NOARGS, PyDoc_STR("Nobody comes through any more: the store is about to be freed.")},
    {NULL, NULL, 0, NULL},
};

PyTypeObject door_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "kvsvr._quick.Door",
    .tp_doc = PyDoc_STR("The way to the kv_store at this address, until shut(), on a machine with so many bytes of memory."),
    .tp_basicsize = sizeof(door),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = door_new,
    .tp_methods = door_methods,
};

/* --- what has quick methods --- */

static void quickened_dealloc(quickened *self) {
    Py_CLEAR(self->door);
    Py_CLEAR(self->pool);
    Py_CLEAR(self->key);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static int quickened_set_door(quickened *self, PyObject *value, void *ignored) {
    (void)ignored;
    if (value == NULL || !Py_IS_TYPE(value, &door_type)) {
        PyErr_SetString(PyExc_TypeError, "a Door is wanted");
        return -1;
    }
    Py_XSETREF(self->door, (door *)Py_NewRef(value));
    return 0;
}

/* Of a table: it is made anew as often as not, so this is quick, too. `_named` makes a key of what is none, or raises. */
static int quickened_init(quickened *self, PyObject *args, PyObject *kwargs) {
    PyObject *pool, *key, *found;
    if (kwargs != NULL || PyTuple_GET_SIZE(args) != 2) {
        PyErr_SetString(PyExc_TypeError, "a pool and a key are wanted");
        return -1;
    }
    pool = PyTuple_GET_ITEM(args, 0);
    key = PyTuple_GET_ITEM(args, 1);
    bool plain = PyBytes_CheckExact(key) && size_of(key) > 0 && size_of(key) <= KV_KEY_SIZE_MAX;
    key = plain ? Py_NewRef(key) : PyObject_CallMethod((PyObject *)self, "_named", "O", key);
    if (key == NULL) return -1;
    Py_XSETREF(self->key, key);
    Py_XSETREF(self->pool, Py_NewRef(pool));
    found = PyObject_GetAttrString(pool, "door");
    if (found == NULL) return -1;
    int status = found == Py_None ? 0 : quickened_set_door(self, found, NULL);
    Py_DECREF(found);
    return status;
}

static PyMemberDef quickened_members[] = {
    {"_handle", T_OBJECT_EX, offsetof(quickened, pool), 0, PyDoc_STR("The Pool.")},
    {"_key", T_OBJECT_EX, offsetof(quickened, key), 0, PyDoc_STR("Of a table: bytes.")},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef quickened_getset[] = {
    {"_door", NULL, (setter)quickened_set_door, PyDoc_STR("Where its quick methods go; set once."), NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyTypeObject quickened_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "kvsvr._quick.Quickened",
    .tp_doc = PyDoc_STR("A base of classes whose methods may be quick."),
    .tp_basicsize = sizeof(quickened),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)quickened_init,
    .tp_dealloc = (destructor)quickened_dealloc,
    .tp_getset = quickened_getset,
    .tp_members = quickened_members,
};

door *door_of(PyObject *self) {
    return PyObject_TypeCheck(self, &quickened_type) ? ((quickened *)self)->door : NULL;
}
