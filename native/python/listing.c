/* listing.c -- names in order as a Python iterator, a page at a time.
 *
 * A Listing holds nothing between its pages but the place where it goes on, and the bytes of the page it has. For every
 * page it takes a caller from the Pool and gives it back: a store may be closed under it, and the next page says so. */
#include "quick.h"

/* Whoever wants one entry should not pay for a thousand, and whoever wants all of them should not come a thousand times. */
static const uint64_t PAGE_COUNTS[] = {32, 128, 512, 1024};
enum { PAGE_COUNT_LAST = 3, SINGLY_SIZE_MIN = 16384 };

static PyObject *name_take, *name_release, *name_address; /* of what a Pool and a Caller have */

typedef struct listing {
    PyObject_HEAD
    PyObject *pool;
    PyObject *table; /* or None */
    PyObject *start, *stop; /* what is left of the range; None: no bound */
    int what;
    char values, reverse;
    char ended;      /* no page behind this one */
    char singly;     /* values are large: a page has names, and each value is got when it is asked for */
    uint64_t size;   /* of the last value that was got so */
    char fetching;
    uint64_t left;   /* entries that are still wanted */
    unsigned page_number;
    PyObject *page;  /* a list; NULL: none was fetched yet */
    Py_ssize_t at;
} listing;

static PyObject *entry_cut(const uint8_t *content, uint32_t key_size, uint32_t value_size) {
    PyObject *key = PyBytes_FromStringAndSize((const char *)content, key_size);
    PyObject *value = key == NULL ? NULL : PyBytes_FromStringAndSize((const char *)content + key_size, value_size);
    PyObject *entry = value == NULL ? NULL : PyTuple_New(2);
    if (entry == NULL) {
        Py_XDECREF(key);
        Py_XDECREF(value);
        return NULL;
    }
    PyObject_GC_UnTrack(entry); /* Bytes make no cycles, and a long list of entries is walked by every full collection. */
    PyTuple_SET_ITEM(entry, 0, key);
    PyTuple_SET_ITEM(entry, 1, value);
    return entry;
}

/* With values a list of pairs, without one of names. */
PyObject *entries_cut(const kv_page *page, const uint8_t *content, int with_values) {
    PyObject *list = PyList_New((Py_ssize_t)page->count);
    uint32_t key_size = page->key_size, value_size = page->value_size;
    for (uint64_t i = 0; list != NULL && i < page->count; i++) {
        if (!page->equal) {
            key_size = page->sizes[2 * i];
            value_size = page->sizes[2 * i + 1];
        }
        PyObject *entry = with_values ? entry_cut(content, key_size, value_size)
                                      : PyBytes_FromStringAndSize((const char *)content, key_size);
        content += key_size + value_size;
        if (entry == NULL) Py_CLEAR(list);
        else PyList_SET_ITEM(list, (Py_ssize_t)i, entry);
    }
    return list;
}

/* Moves the range behind `name`. */
static bool go_on_behind(listing *l, const uint8_t *name, uint32_t size) {
    PyObject *bound = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size + (l->reverse ? 0 : 1));
    if (bound == NULL) return false;
    memcpy(PyBytes_AS_STRING(bound), name, size);
    if (!l->reverse) PyBytes_AS_STRING(bound)[size] = 0;
    Py_XSETREF(*(l->reverse ? &l->stop : &l->start), bound);
    return true;
}

static void bound_set(PyObject *bound, const uint8_t **bytes, size_t *size) {
    if (bound == Py_None) return;
    *bytes = content_of(bound);
    *size = size_of(bound);
}

static uint64_t count_wanted(const listing *l) {
    if (l->left <= PAGE_COUNTS[PAGE_COUNT_LAST]) return l->left;
    return PAGE_COUNTS[l->page_number < PAGE_COUNT_LAST ? l->page_number : PAGE_COUNT_LAST];
}

/* What kv_scan left with the caller. Where entries turn out to be large, the next pages have their names alone. */
static bool page_take(listing *l, const kv_page *page, const uint8_t *content) {
    PyObject *entries = entries_cut(page, content, l->values && !l->singly);
    if (entries == NULL) return false;
    if (l->values && page->count > 0 && page->size / page->count >= SINGLY_SIZE_MIN) l->singly = 1;
    Py_XSETREF(l->page, entries);
    l->at = 0;
    l->page_number++;
    if (l->left != UINT64_MAX) l->left -= page->count;
    l->ended = !page->more || l->left == 0;
    return l->ended || go_on_behind(l, content + page->size, page->resume_size);
}

static bool page_scan(listing *l, kv_caller *caller, kv_result *total) {
    kv_range range = {.what = l->what, .count_max = count_wanted(l), .reverse = l->reverse,
                      .with_values = l->values && !l->singly};
    kv_page page;
    bound_set(l->start, &range.start, &range.start_size);
    bound_set(l->stop, &range.stop, &range.stop_size);
    bound_set(l->table, &range.table, &range.table_size);
    Py_BEGIN_ALLOW_THREADS
    *total = kv_scan(caller, &range, &page);
    Py_END_ALLOW_THREADS
    return *total < 0 || page_take(l, &page, answered(caller, *total));
}

/* Raises what the Pool makes of an error, and gives the caller back by that. */
static void raise_failed(listing *l, kv_result total, PyObject *caller) {
    PyObject *error = PyObject_CallMethod(l->pool, "failed", "LOOO", (long long)total, caller, l->table, l->table);
    if (error == NULL) return;
    PyErr_SetObject((PyObject *)Py_TYPE(error), error);
    Py_DECREF(error);
}

/* What is done with a caller of the Pool's; its *result below 0, absence apart, is an error. */
typedef bool (*with_caller)(listing *l, kv_caller *caller, kv_result *result);

static bool call_with(listing *l, with_caller call, kv_result *result) {
    PyObject *caller = PyObject_CallMethodNoArgs(l->pool, name_take);
    PyObject *address = caller == NULL ? NULL : PyObject_GetAttr(caller, name_address);
    bool done = address != NULL && call(l, (kv_caller *)PyLong_AsVoidPtr(address), result);
    if (done && *result < 0 && *result != kv_ending(KV_ABSENT)) {
        raise_failed(l, *result, caller);
        done = false;
    } else if (done) {
        PyObject *released = PyObject_CallMethodOneArg(l->pool, name_release, caller);
        done = released != NULL;
        Py_XDECREF(released);
    }
    Py_XDECREF(address);
    Py_XDECREF(caller);
    return done;
}

static bool page_fetch(listing *l) {
    kv_result total = 0;
    if (!call_with(l, page_scan, &total)) return false;
    if (total < 0) l->ended = true; /* The table is not there, or not any more. */
    return true;
}

/* --- large values, one at a time --- */

/* The value of the name that the page is at, in its place. */
static bool value_take(listing *l, kv_caller *caller, kv_result *result) {
    PyObject *name = PyList_GET_ITEM(l->page, l->at), *table = l->table == Py_None ? NULL : l->table;
    PyObject *value = value_get_any(caller, table, name, l->size, result);
    if (*result == KV_EWRONGTYPE && table == NULL) *result = kv_ending(KV_ABSENT); /* It has become a table. */
    if (value == NULL) return PyErr_Occurred() == NULL;
    l->size = size_of(value);
    PyObject *entry = PyTuple_Pack(2, name, value);
    Py_DECREF(value);
    return entry != NULL && PyList_SetItem(l->page, l->at, entry) == 0;
}

/* *gone: there is no such name any more. */
static bool value_fetch(listing *l, bool *gone) {
    kv_result result = 0;
    if (!call_with(l, value_take, &result)) return false;
    *gone = result < 0;
    return true;
}

/* Nothing has to be fetched for most entries. */
static bool entry_is_there(const listing *l) {
    return l->page != NULL && l->at < PyList_GET_SIZE(l->page) &&
           (!l->singly || !l->values || PyTuple_CheckExact(PyList_GET_ITEM(l->page, l->at)));
}

/* Brings the page to an entry that can be given; false: the end, or an exception. */
static bool entry_fetch(listing *l) {
    for (;;) {
        while (l->page == NULL || l->at == PyList_GET_SIZE(l->page))
            if (l->ended || !page_fetch(l)) return false;
        bool gone = false;
        if (!entry_is_there(l) && !value_fetch(l, &gone)) return false;
        if (!gone) return true;
        l->at++;
    }
}

static PyObject *listing_next(listing *l) {
    if (!entry_is_there(l)) {
        if (l->fetching) {
            PyErr_SetString(PyExc_ValueError, "another thread is fetching from this iterator: give each its own");
            return NULL;
        }
        l->fetching = 1;
        bool done = entry_fetch(l);
        l->fetching = 0;
        if (!done) return NULL;
    }
    PyObject *entry = Py_NewRef(PyList_GET_ITEM(l->page, l->at++));
    if (l->singly) PyList_SetItem(l->page, l->at - 1, Py_NewRef(Py_None)); /* A page of large values is not kept. */
    return entry;
}

static PyObject *listing_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"pool", "what", "values", "reverse", "start", "stop", "limit", "table", NULL};
    PyObject *pool, *start, *stop, *limit, *table;
    int what, values, reverse;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OippOOOO:Listing", names, &pool, &what, &values, &reverse, &start,
                                     &stop, &limit, &table))
        return NULL;
    PyObject *names_given[] = {start, stop, table};
    for (int i = 0; i < 3; i++) {
        if (names_given[i] == Py_None || PyBytes_CheckExact(names_given[i])) continue;
        PyErr_SetString(PyExc_TypeError, "start, stop and table are bytes or None");
        return NULL;
    }
    /* Of more than there can be, all. */
    uint64_t left = limit == Py_None ? UINT64_MAX : PyLong_AsUnsignedLongLong(limit);
    if (left == UINT64_MAX && PyErr_Occurred() != NULL) {
        if (!PyErr_ExceptionMatches(PyExc_OverflowError)) return NULL;
        PyErr_Clear();
    }
    listing *l = (listing *)type->tp_alloc(type, 0);
    if (l == NULL) return NULL;
    l->pool = Py_NewRef(pool);
    l->start = Py_NewRef(start);
    l->stop = Py_NewRef(stop);
    l->table = Py_NewRef(table);
    l->what = what;
    l->values = (char)values;
    l->reverse = (char)reverse;
    l->left = left;
    l->ended = left == 0;
    return (PyObject *)l;
}

static void listing_dealloc(listing *l) {
    Py_XDECREF(l->pool);
    Py_XDECREF(l->start);
    Py_XDECREF(l->stop);
    Py_XDECREF(l->table);
    Py_XDECREF(l->page);
    Py_TYPE(l)->tp_free((PyObject *)l);
}

PyTypeObject listing_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "kvsvr._quick.Listing",
    .tp_doc = PyDoc_STR("Names in order from a Pool, with values or without."),
    .tp_basicsize = sizeof(listing),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = listing_new,
    .tp_dealloc = (destructor)listing_dealloc,
    .tp_iter = PyObject_SelfIter,
    .tp_iternext = (iternextfunc)listing_next,
};

int listing_prepare(void) {
    name_take = PyUnicode_InternFromString("take");
    name_release = PyUnicode_InternFromString("release");
    name_address = PyUnicode_InternFromString("address");
    return name_take == NULL || name_release == NULL || name_address == NULL ? -1 : 0;
}
